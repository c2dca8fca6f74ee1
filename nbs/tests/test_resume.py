"A run that is killed anywhere and resumed ends like one that was never touched; the command line's side of checkpoints"
import hashlib, json, os, random, signal, subprocess, sys, time
from pathlib import Path

import pytest

RUN = '''
name: kill
seed: 3
data: {name: mnist_sample, batch_size: 40}
model: {dims: [784, 12, 10], expansion: {name: identity, post: LayerNorm}, output: {name: Dropout, p: 0.1}}
learner: {epochs: 4, optimizer: {name: AdamW, lr: 5.0e-3}, scheduler: {name: ExponentialLR, gamma: 0.8}}
'''
SLOWED = '''
import sys, time
from tinyrpn import checkpoint, cli, learner
class Slow(learner.Callback):
    def after_step(self, learner): time.sleep(0.004)
plain = learner.Learner.__init__
def init(self, *args, **kwargs): plain(self, *args, **kwargs); self.callbacks.append(Slow())
learner.Learner.__init__ = init
whole = checkpoint.Checkpoints.__init__
def eager(self, *args, **kwargs): whole(self, *args, **kwargs); self.share = None # every checkpoint that falls due is written
checkpoint.Checkpoints.__init__ = eager
sys.exit(cli.main(sys.argv[1:]))
'''


def tinyrpn(*args, **env):
    return subprocess.run([sys.executable, '-m', 'tinyrpn', *map(str, args)], capture_output=True, text=True, env={**os.environ, **env})


def weights(folder):
    from safetensors.torch import load_file
    return load_file(Path(folder)/'model.safetensors')


def same(a, b):
    a, b = weights(a), weights(b)
    return a.keys() == b.keys() and all((v == b[k]).all() for k, v in a.items())


def half_written(folder): return list(Path(folder, 'checkpoints').glob('.epoch-*.safetensors'))


def kill_once(folder, rng, while_writing):
    "Start or go on, and kill: while a checkpoint is being written, or after a random time; returns whether it was killed, and in a write"
    args = ['train', '--resume', folder] if Path(folder).exists() else ['train', 'run.yaml', '--device', 'cpu', '--out', folder, '--checkpoint', '7']
    p = subprocess.Popen([sys.executable, 'slowed.py', *args], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while p.poll() is None and not list(Path(folder, 'checkpoints').glob('epoch-*.safetensors')): time.sleep(0.01)
    start, wait = time.time(), rng.uniform(0, 1.2)
    while p.poll() is None and time.time() - start < wait: time.sleep(0.002)
    while while_writing and p.poll() is None and not half_written(folder): pass
    p.send_signal(signal.SIGKILL); p.wait()
    return p.returncode == -signal.SIGKILL, bool(half_written(folder))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == 'win32', reason='no SIGKILL')
def test_twenty_kills_leave_no_trace(capsys):
    rng, kills, in_writing = random.Random(0), 0, 0
    Path('run.yaml').write_text(RUN); Path('slowed.py').write_text(SLOWED)
    assert tinyrpn('train', 'run.yaml', '--device', 'cpu', '--out', 'unbroken', '--checkpoint', 'never').returncode == 0
    for i in range(20):
        killed, writing = kill_once(folder := f'run{i}', rng, i % 2 == 1)
        kills, in_writing = kills + killed, in_writing + writing
        done = tinyrpn('train', '--resume', folder)
        assert done.returncode == 0, done.stderr
        assert same('unbroken', folder), f'kill {i}: other weights'
        assert not half_written(folder)
    with capsys.disabled(): print(f'\n{kills} killed, {in_writing} of them in the middle of writing; 20 of 20 equal to the bit')
    assert kills >= 18 and in_writing >= 3


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == 'win32', reason='no SIGKILL')
def test_one_run_killed_again_and_again():
    rng, kills = random.Random(1), 0
    Path('run.yaml').write_text(RUN); Path('slowed.py').write_text(SLOWED)
    assert tinyrpn('train', 'run.yaml', '--device', 'cpu', '--out', 'unbroken', '--checkpoint', 'never').returncode == 0
    while kills < 5 and kill_once('run', rng, kills % 2 == 0)[0]: kills += 1
    assert tinyrpn('train', '--resume', 'run').returncode == 0 and same('unbroken', 'run') and kills >= 2


def test_resuming_from_the_command_line():
    Path('run.yaml').write_text(RUN.replace('epochs: 4', 'epochs: 2'))
    first = tinyrpn('train', 'run.yaml', '--device', 'cpu', '--out', 'run')
    assert first.returncode == 0, first.stderr
    again = tinyrpn('train', '--resume', 'run')
    assert again.returncode == 0 and 'run is finished: 2 of 2 epochs are done' in again.stderr
    more = tinyrpn('train', '--resume', 'run', '--epochs', 3, '--lr', '1e-3')
    assert more.returncode == 0 and 'lr of the optimizer was 0.005 and is 0.001' in more.stderr and len(Path('run/history.csv').read_text().splitlines()) == 4
    for args, message in ((['--resume', 'nothing'], 'there are no checkpoints'), (['--resume', 'run', '--out', 'x'], 'leave out --out'), (['run.yaml', '--out', 'run'], 'holds a run already'), (['run.yaml', '--checkpoint', 'daily'], "'epoch', a number of steps or 'never'")):
        refused = tinyrpn('train', *args)
        assert refused.returncode == 2 and message in refused.stderr and len(refused.stderr.strip().splitlines()) == 1, refused.stderr


def test_a_changed_model_is_refused_and_what_is_there_stays():
    Path('run.yaml').write_text(RUN.replace('epochs: 4', 'epochs: 1'))
    assert tinyrpn('train', 'run.yaml', '--device', 'cpu', '--out', 'run').returncode == 0
    listing = lambda: {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(Path('run').rglob('*')) if p.is_file() and p.suffix != '.lock'}
    before = listing()
    Path('run.yaml').write_text(RUN.replace('12, 10', '13, 10'))
    refused = tinyrpn('train', 'run.yaml', '--resume', 'run')
    assert refused.returncode == 2 and 'the checkpoint is of another model' in refused.stderr and listing() == before


def test_two_runs_do_not_mix():
    from tinyrpn.checkpoint import Checkpoints
    Path('run.yaml').write_text(RUN.replace('epochs: 4', 'epochs: 1'))
    assert tinyrpn('train', 'run.yaml', '--device', 'cpu', '--out', 'run').returncode == 0
    holder = Checkpoints('run').open()
    for args in (['--resume', 'run'], ['run.yaml', '--out', 'run', '--overwrite']):
        refused = tinyrpn('train', *args)
        assert refused.returncode == 2 and f'run is in use by process {os.getpid()} on' in refused.stderr, refused.stderr
    holder.close()
    assert Path('run/model.safetensors').is_file()


@pytest.mark.skipif(sys.platform == 'win32', reason='signals differ')
def test_being_asked_to_end_keeps_a_checkpoint():
    Path('run.yaml').write_text(RUN); Path('slowed.py').write_text(SLOWED)
    p = subprocess.Popen([sys.executable, 'slowed.py', 'train', 'run.yaml', '--device', 'cpu', '--out', 'run', '--checkpoint', '1000000'], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    while 'about ' not in p.stdout.readline(): assert p.poll() is None
    p.send_signal(signal.SIGTERM)
    out, _ = p.communicate(timeout=60)
    assert p.returncode == 143 and 'tinyrpn train --resume run goes on' in out
    assert tinyrpn('train', '--resume', 'run').returncode == 0


FORMATS = sorted((Path(__file__).parent/'files').glob('checkpoint-format-*.safetensors'))
@pytest.mark.parametrize('file', FORMATS, ids=lambda p: p.stem)
def test_checkpoints_of_each_format_are_read(file):
    from tinyrpn.checkpoint import read_state
    state, about = read_state(file)
    assert about['epoch'] == state['epoch'] == 1 and about['n_epochs'] == 2 and state['model'] and state['optimizer']['state'] and len(state['rows']) == 1


def test_there_is_a_file_of_each_format():
    from tinyrpn.checkpoint import CHECKPOINT_FORMAT
    assert [p.stem for p in FORMATS] == [f'checkpoint-format-{i}' for i in range(1, CHECKPOINT_FORMAT + 1)]


@pytest.mark.parametrize('trouble, message', [('read only', 'cannot be used: Read-only file system'), ('no permission', 'cannot be used: Permission denied'), ('a file', 'a file where a folder should be')])
def test_folders_that_cannot_be_used(trouble, message, monkeypatch):
    "One clear error before the first step; root may write anywhere, so the system's answer is made up"
    import errno, torch
    from tinyrpn.all import Batches, FileError, IdentityExpansion, IdentityReconciliation, Learner, RPN, RPNHead
    learner = Learner(RPN([RPNHead(3, 2, IdentityExpansion(), IdentityReconciliation())]), (Batches(torch.rand(8, 3), torch.arange(8) % 2), None), device='cpu', progress=False)
    with monkeypatch.context() as m:
        if trouble == 'a file': Path('run').mkdir(); Path('run/checkpoints').write_text('')
        else:
            code = errno.EROFS if trouble == 'read only' else errno.EACCES
            m.setattr(Path, 'mkdir', lambda *a, **k: (_ for _ in ()).throw(OSError(code, os.strerror(code))))
        with pytest.raises(FileError, match=message): learner.fit(1, checkpoint='run')
    learner.fit(1); assert learner.epoch == 1
