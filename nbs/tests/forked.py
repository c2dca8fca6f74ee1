"The command line in real processes of its own that need not import torch anew: each is forked from a server that imported it once"
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

WAYS = multiprocessing.get_context('forkserver' if 'forkserver' in multiprocessing.get_all_start_methods() else 'spawn')
if WAYS.get_start_method() == 'forkserver':
    WAYS.set_forkserver_preload(['torch._dynamo', 'torchmetrics', 'matplotlib.pyplot', 'PIL.Image', 'tqdm.auto', 'tinyrpn.all', 'tinyrpn.checkpoint', 'tinyrpn.cli', 'tinyrpn.processes']) # and nothing is computed there


def _enter(what, args, folder, env, out, err):
    "In the new process: as `python -m tinyrpn` (or `python script.py`) begins, in this folder and environment, with these files to write to"
    os.chdir(folder); os.environ.clear(); os.environ.update(env)
    for fd, path in ((1, out), (2, err)): os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), fd)
    sys.stdout, sys.stderr = open(1, 'w', encoding='utf-8', closefd=False), open(2, 'w', encoding='utf-8', errors='backslashreplace', closefd=False, buffering=1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    __import__('random').seed(); __import__('numpy').random.seed() # dice of its own
    __import__('tqdm').tqdm.set_lock(threading.RLock()) # one shared by processes would outlive a process that is killed
    if env.get('OMP_NUM_THREADS', '').isdigit(): __import__('torch').set_num_threads(int(env['OMP_NUM_THREADS'])) # it was read in the server
    sys.argv, sys.path[:0] = [what, *args], [folder]
    runpy.run_path(what, run_name='__main__') if what.endswith('.py') else runpy.run_module(what, run_name='__main__', alter_sys=True)


class Forked:
    "A process that runs; what of subprocess.Popen the tests use, and what it has said so far"
    def __init__(self, what, *args, **env):
        self.out, self.err = (tempfile.NamedTemporaryFile(prefix='said-') for _ in range(2))
        self.process = WAYS.Process(target=_enter, args=(what, [*map(str, args)], os.getcwd(), {**os.environ, **env}, self.out.name, self.err.name), daemon=True) # ends with the tests, if not before
        self.process.start()
        self.pid = self.process.pid

    def poll(self): return self.process.exitcode

    returncode = property(poll)

    def send_signal(self, sig):
        if self.poll() is None: os.kill(self.pid, sig)

    def wait(self, timeout=120):
        self.process.join(timeout)
        if self.poll() is None: self.process.kill(); self.process.join(); raise subprocess.TimeoutExpired('a process', timeout)
        return self.returncode

    def said(self): return [Path(f.name).read_text(encoding='utf-8') for f in (self.out, self.err)]

    def until(self, words):
        "Wait until it has printed this"
        while words not in self.said()[0]: assert self.poll() is None, self.said()[1]; time.sleep(0.01)


def tinyrpn(*args, **env):
    "Run `tinyrpn` with these arguments to its end, as subprocess.run would"
    p = Forked('tinyrpn', *args, **env)
    p.wait(300)
    return subprocess.CompletedProcess([*args], p.returncode, *p.said())
