"A run that is killed anywhere and resumed ends like one that was never touched; the command line's side of checkpoints"
import hashlib, json, os, random, signal, subprocess, sys, time
from pathlib import Path

import pytest
from forked import Forked, tinyrpn

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


def anew(*args):
    "With a Python that begins from nothing, and so hashes otherwise"
    return subprocess.run([sys.executable, '-m', 'tinyrpn', *args], capture_output=True, text=True)


def weights(folder):
    from safetensors.torch import load_file
    return load_file(Path(folder)/'model.safetensors')


def same(a, b):
    a, b = weights(a), weights(b)
    return a.keys() == b.keys() and all((v == b[k]).all() for k, v in a.items())


def half_written(folder): return [p for pattern in ('.tmp*', '.epoch-*.safetensors') for p in Path(folder, 'checkpoints').glob(pattern)] # safetensors' own file first, then ours


def kill_once(folder, rng, while_writing):
    "Start or go on, and kill: while a checkpoint is being written, or after a random time; returns whether it was killed, and in a write"
    args = ['train', '--resume', folder] if Path(folder).exists() else ['train', 'run.yaml', '--device', 'cpu', '--out', folder, '--checkpoint', '7']
    p = Forked('slowed.py', *args)
    while p.poll() is None and not list(Path(folder, 'checkpoints').glob('epoch-*.safetensors')): time.sleep(0.01)
    start, wait = time.time(), rng.uniform(0, 1.2)
    while p.poll() is None and time.time() - start < wait: time.sleep(0.002)
    while while_writing and p.poll() is None and not half_written(folder): pass
    p.send_signal(signal.SIGKILL); p.wait()
    return p.returncode == -signal.SIGKILL, bool(half_written(folder))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == 'win32', reason='no SIGKILL')
def test_twenty_kills_leave_no_trace(tell):
    rng, kills, in_writing = random.Random(0), 0, 0
    Path('run.yaml').write_text(RUN); Path('slowed.py').write_text(SLOWED)
    assert anew('train', 'run.yaml', '--device', 'cpu', '--out', 'unbroken', '--checkpoint', 'never').returncode == 0
    for i in range(20):
        killed, writing = kill_once(folder := f'run{i}', rng, i % 2 == 1)
        kills, in_writing = kills + killed, in_writing + writing
        done = tinyrpn('train', '--resume', folder)
        assert done.returncode == 0, done.stderr
        assert same('unbroken', folder), f'kill {i}: other weights'
        assert not half_written(folder)
    tell(f'{kills} killed, {in_writing} of them in the middle of writing; 20 of 20 equal to the bit')
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


@pytest.mark.parametrize('trouble, words', [('a full disk', 'the disk is full'), ('no memory', 'CUDA out of memory'), ('broken data', 'NaN or infinite numbers')])
def test_trouble_in_the_first_epoch_leaves_the_checkpoints(trouble, words, capsys, monkeypatch):
    import errno
    import safetensors.torch, torch
    from tinyrpn.checkpoint import Checkpoints
    from tinyrpn.cli import main
    from tinyrpn.learner import Learner
    written, save, step = [], safetensors.torch.save_file, Learner.train_step
    def full(tensors, path, header):
        written.append(path)
        if len(written) > 3: Path(path).write_bytes(b'half'); raise OSError(errno.ENOSPC, 'No space left on device')
        return save(tensors, path, header)
    def breaks(self, x, y):
        if self.step > 4 and trouble == 'no memory': raise torch.OutOfMemoryError('CUDA out of memory')
        return step(self, x*float('inf') if self.step > 4 else x, y)
    Path('run.yaml').write_text(RUN.replace('epochs: 4', 'epochs: 1'))
    monkeypatch.setattr(Checkpoints, 'due', lambda self: True)
    with monkeypatch.context() as m:
        m.setattr('safetensors.torch.save_file', full) if trouble == 'a full disk' else m.setattr(Learner, 'train_step', breaks)
        assert main(['train', 'run.yaml', '--device', 'cpu', '--out', 'run', '--checkpoint', '2', '--keep', '3']) == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
    assert [p.name[6:-12] for p in Checkpoints('run').files()] == ['000000-step-00000000', '000000-step-00000002', '000000-step-00000004'] and not half_written('run')
    assert main(['train', '--resume', 'run']) == 0 and Path('run/model.safetensors').is_file()


def abouts(folder):
    from tinyrpn.checkpoint import Checkpoints
    store = Checkpoints(folder)
    return len(store.files()), store.about()['extra']


def test_how_checkpoints_are_kept_is_kept(capsys, monkeypatch):
    from tinyrpn.checkpoint import Checkpoints
    from tinyrpn.cli import main
    monkeypatch.setattr(Checkpoints, 'due', lambda self: True)
    Path('run.yaml').write_text(RUN.replace('epochs: 4', 'epochs: 1'))
    assert main(['train', 'run.yaml', '--device', 'cpu', '--out', 'run', '--checkpoint', '5', '--keep', '4']) == 0
    assert abouts('run') == (4, {'data': None, 'checkpoint': 5, 'keep': 4})
    assert main(['train', '--resume', 'run', '--epochs', '2']) == 0 and abouts('run')[1] == {'data': None, 'checkpoint': 5, 'keep': 4}
    names = [p.name[6:-12] for p in Checkpoints('run').files()]
    assert {'000001-step-00000045', '000001-step-00000040', '000002-step-00000000'} <= {*names}, names
    assert main(['train', '--resume', 'run', '--epochs', '3', '--checkpoint', 'epoch', '--keep', '1']) == 0 and abouts('run')[1] == {'data': None, 'checkpoint': 'epoch', 'keep': 1}


def test_a_run_killed_before_its_first_checkpoint_is_begun_anew(capsys):
    from tinyrpn.cli import main
    Path('run.yaml').write_text(RUN.replace('epochs: 4', 'epochs: 1'))
    for folder, left in (('a', []), ('b', ['.lock', 'holder.json', '.epoch-000000-step-000.1-2.safetensors', 'epoch-000000-step-00000000.safetensors.sha256'])):
        Path(folder).mkdir(); Path(folder, 'config.yaml').write_text('')
        if left: Path(folder, 'checkpoints').mkdir()
        for name in left: Path(folder, 'checkpoints', name).write_text('')
        assert main(['train', 'run.yaml', '--device', 'cpu', '--resume', folder]) == 0, capsys.readouterr().err
        assert Path(folder, 'model.safetensors').is_file() and 'name: kill' in Path(folder, 'config.yaml').read_text()
        assert main(['train', 'run.yaml', '--device', 'cpu', '--resume', folder]) == 0 and 'is finished' in capsys.readouterr().err


@pytest.mark.parametrize('extra', ['text', ['a', 'list'], {'data': 5}, {'checkpoint': ['epoch']}, {'keep': 'two'}])
def test_what_a_checkpoint_notes_is_checked(extra, capsys, monkeypatch):
    from tinyrpn.checkpoint import Checkpoints
    from tinyrpn.cli import main
    monkeypatch.setattr('tinyrpn.config.load_data', lambda *a, **k: pytest.fail('data were looked for'))
    store = Checkpoints('run').open()
    store.write(0, 0, {}, {'config': {'model': {'dims': [784, 10], 'expansion': 'identity'}}, 'extra': extra}); store.close()
    assert main(['train', '--resume', 'run']) == 2
    said = capsys.readouterr().err
    assert 'the newest checkpoint says extra=' in said and said.count('\n') == 1, said


def test_notes_on_resuming_are_text_and_nothing_else(capsys):
    import json
    from tinyrpn import checkpoint
    from tinyrpn.cli import main
    Path('run.yaml').write_text(RUN.replace('epochs: 4', 'epochs: 1'))
    assert main(['train', 'run.yaml', '--device', 'cpu', '--out', 'run']) == 0
    store = checkpoint.Checkpoints('run').open()
    state, about = checkpoint.read_state(store.files()[-1])
    store.write(1, 0, state, {**about, 'torch': '9\x1b[2J\n' + 'x'*5000, 'device': '\u202ecpu'}); store.close(); capsys.readouterr()
    assert main(['train', '--resume', 'run', '--device', 'cpu']) == 0
    notes = [line for line in capsys.readouterr().err.split('\n') if 'note: ' in line]
    assert notes and all(line[line.index('note: '):].isprintable() and len(line) < 1500 for line in notes), notes


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
    p = Forked('slowed.py', 'train', 'run.yaml', '--device', 'cpu', '--out', 'run', '--checkpoint', '1000000')
    p.until('about ')
    p.send_signal(signal.SIGTERM); p.wait(60)
    assert p.returncode == 143 and 'tinyrpn train --resume run goes on' in p.said()[0]
    assert anew('train', '--resume', 'run').returncode == 0


def test_there_is_a_file_of_each_format():
    from tinyrpn.checkpoint import CHECKPOINT_FORMAT
    assert [p.stem for p in sorted((Path(__file__).parent/'files').glob('checkpoint-format-*.safetensors'))] == [f'checkpoint-format-{i}' for i in range(1, CHECKPOINT_FORMAT + 1)]


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
