"Two processes train as one does; each test starts them with torchrun or by hand"
import csv, os, signal, socket, subprocess, sys, time
from pathlib import Path

import pytest
from forked import Forked, tinyrpn

RUN = '''
name: together
seed: 3
data: {name: mnist_sample, batch_size: 100}
model: {dims: [784, 12, 10], expansion: {name: identity, post: LayerNorm}}
learner: {epochs: 1, optimizer: {name: AdamW, lr: 5.0e-3}, scheduler: {name: ExponentialLR, gamma: 0.8}, precision: float64}
'''
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != 'linux', reason='gloo on Linux')]


def launch(*args, processes=2, launcher='torch.distributed.run'):
    how = ['--nproc-per-node', str(processes)] if launcher == 'torch.distributed.run' else ['--num_processes', str(processes), '--cpu', '--num_machines', '1', '--mixed_precision', 'no', '--dynamo_backend', 'no']
    p = subprocess.run([sys.executable, '-m', launcher, *how, '-m', 'tinyrpn', *args], capture_output=True, text=True, timeout=300, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert p.returncode == 0, p.stderr[-3000:]
    return p


def by_hand(*args):
    "Two processes with what a launcher would tell them"
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    env = {'OMP_NUM_THREADS': '1', 'WORLD_SIZE': '2', 'LOCAL_WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port)}
    return [Forked('tinyrpn', *args, **env, RANK=str(r), LOCAL_RANK=str(r)) for r in range(2)]


def together(*args, launcher=None):
    "What two processes say: started by a launcher, or by hand"
    if launcher: return launch(*args, launcher=launcher).stderr
    ps = by_hand(*args)
    assert [p.wait(300) for p in ps] == [0, 0], [p.said()[1][-3000:] for p in ps]
    return ''.join(p.said()[1] for p in ps)


def alone(*args):
    p = tinyrpn(*args, OMP_NUM_THREADS='1')
    assert p.returncode == 0, p.stderr
    return p


def steps(folder):
    from tinyrpn.checkpoint import Checkpoints
    return Checkpoints(folder).newest()[1]['steps']


def rows(folder): return [{k: float(v) for k, v in r.items() if k != 'seconds'} for r in csv.DictReader(Path(folder, 'history.csv').open())]


@pytest.mark.parametrize('launcher, more', [('torch.distributed.run', []), ('torch.distributed.run', ['--sharded']), ('accelerate.commands.launch', []), (None, ['--accumulate', '3', '--clip', '0.5']), (None, ['--sharded', '--batch-size', '99', '--clip', '0.5'])], ids=['torchrun', 'sharded', 'accelerate', 'accumulated and clipped', 'sharded, uneven, clipped'])
def test_two_processes_train_as_one(launcher, more, tell):
    Path('run.yaml').write_text(RUN)
    args = ['train', 'run.yaml', '--device', 'cpu']
    alone(*args, '--out', 'one', *[a for a in more if a != '--sharded'])
    together(*args, '--out', 'two', *more, launcher=launcher)
    a, b = steps('one')[:20], steps('two')[:20]
    worst = float((a[:, 2] - b[:, 2]).abs().max())
    tell(f'largest difference of a loss in 20 steps: {worst:.1e}')
    assert a.shape == b.shape == (20, 5) and worst < 1e-6 and float((a[:, 3] - b[:, 3]).abs().max()) < 1e-6
    for r, s in zip(rows('one'), rows('two')): assert r.keys() == s.keys() and all(abs(r[k] - s[k]) < 1e-6 for k in r)
    assert sorted(p.name for p in Path('two').iterdir()) == sorted(p.name for p in Path('one').iterdir())


def test_resumed_by_another_number_of_processes():
    Path('run.yaml').write_text(RUN)
    alone('train', 'run.yaml', '--device', 'cpu', '--epochs', '3', '--out', 'unbroken')
    alone('train', 'run.yaml', '--device', 'cpu', '--epochs', '1', '--out', 'run')
    assert 'processes was 1 and is 2' in together('train', '--resume', 'run', '--epochs', '2', '--sharded')
    alone('train', '--resume', 'run', '--epochs', '3')
    assert float((steps('unbroken')[:, 2] - steps('run')[:, 2]).abs().max()) < 1e-6


def test_a_killed_worker_ends_the_others(tell):
    "Without a launcher that would end them: the survivor sees it by itself"
    Path('run.yaml').write_text(RUN.replace('epochs: 1', 'epochs: 10000'))
    ps = by_hand('train', 'run.yaml', '--device', 'cpu', '--out', 'run')
    try:
        ps[0].until('epoch   1/')
        ps[1].send_signal(signal.SIGKILL)
        start = time.time()
        ps[0].wait(60); _, err = ps[0].said()
        assert ps[0].returncode == 2 and 'another process of this run has ended' in err.splitlines()[-1] and '--resume run' in err, err[-2000:]
        tell(f'the other ended after {time.time() - start:.1f} s')
    finally: [p.send_signal(signal.SIGKILL) for p in ps]


TOGETHER = """
import os, sys, torch, torchmetrics, warnings
from torch import nn
from tinyrpn.all import *
from tinyrpn.learner import Callback, Learner
rank = int(os.environ['RANK'])
X = torch.rand(60, 6, generator=torch.Generator().manual_seed(0)); Y = (X.sum(1) > 3).long()
class StopAt(Callback):
    def after_step(self, learner):
        if (learner.epoch, learner.done) == (1, 3): learner.stop()
def make(seed=1, callbacks=(), model=None, **settings):
    set_seed(seed)
    return Learner((model or (lambda: nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.3), nn.Linear(8, 2))))(), (Batches(X, Y, 9, shuffle=True), Batches(X, Y, 20)), device='cpu', progress=False, callbacks=callbacks, **settings)
equal = lambda a, b: all(torch.equal(v, w) for v, w in zip(a.model.state_dict().values(), b.model.state_dict().values()))
# parts that are not equally large, dropout, a metric that keeps lists: stopped and taken up by as many
auroc = lambda: {'auroc': torchmetrics.AUROC(task='multiclass', num_classes=2)}
unbroken = make(metrics=auroc()); unbroken.fit(3)
make(callbacks=[StopAt()], metrics=auroc()).fit(3, checkpoint='drop')
again = make(seed=5, metrics=auroc()); again.fit(checkpoint='drop', resume=True)
assert equal(unbroken, again) and unbroken.history['train_auroc'] == again.history['train_auroc'], 'not to the bit'
# no seed: each process draws its own, and the main one's are taken
class Frozen(nn.Module):
    def __init__(self): super().__init__(); self.register_buffer('r', torch.rand(6, 8)); self.last = nn.Linear(8, 2)
    def forward(self, x): return self.last(x @ self.r)
apart = make(seed=rank, model=Frozen, sharded=True); apart.fit(1)
both = apart.crew.everyones(apart.model.r.tolist())
assert both[0] == both[1], 'buffers differ'
# a model without a configuration, sharded: another number of processes goes on with it
make(model=lambda: nn.Sequential(nn.Linear(6, 2)), sharded=True).fit(1, checkpoint='plain')
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter('always')
    make(model=lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))).fit(1)
assert any('BatchNorm takes its means' in str(w.message) for w in said), 'no warning'
apart.crew.close()
sys.stdout.flush(); os._exit(0) # torch's threads of that many copies of models may not end in order
"""


def test_parts_that_are_kept_by_each_process_or_by_the_main_one():
    import warnings
    import torch
    from torch import nn
    from tinyrpn.all import Batches
    from tinyrpn.learner import Learner
    Path('together.py').write_text(TOGETHER)
    p = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node', '2', 'together.py'], capture_output=True, text=True, timeout=300, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert p.returncode == 0, p.stderr[-3000:]
    X = torch.rand(60, 6, generator=torch.Generator().manual_seed(0)); Y = (X.sum(1) > 3).long()
    learner = Learner(nn.Sequential(nn.Linear(6, 2)), (Batches(X, Y, 9, shuffle=True), Batches(X, Y, 20)), device='cpu', progress=False)
    with warnings.catch_warnings(): warnings.simplefilter('ignore'); learner.fit(2, checkpoint='plain', resume=True)
    assert learner.epoch == 2
