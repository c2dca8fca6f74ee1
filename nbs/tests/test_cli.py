"The command line in processes of its own"
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import matplotlib.font_manager  # noqa: F401  writes its cache now, not within a case
import numpy as np
import pytest
from conftest import within
from forked import Forked, tinyrpn

from tinyrpn.cli import main

SMALL = '''
name: small
seed: 1
data: {name: mnist_sample, batch_size: 50}
model: {dims: [784, 10], expansion: {name: identity, post: LayerNorm}}
learner: {epochs: EPOCHS, optimizer: {name: AdamW, lr: 5.0e-3}}
'''


def anew(*args, cwd=None, **env):
    "With a Python that begins from nothing, as in a shell"
    return subprocess.run([sys.executable, '-m', 'tinyrpn', *map(str, args)], capture_output=True, text=True, cwd=cwd, env={**{k: v for k, v in os.environ.items() if k != 'TINYRPN_DATA'}, **env})


def listing(): return {str(p): os.readlink(p) if p.is_symlink() else p.read_bytes() if p.is_file() else 'folder' for p in Path().rglob('*')}


def start(*args):
    "A run of its own that hears Ctrl-C, even when these tests run in the background, where signals are ignored"
    return subprocess.Popen([sys.executable, '-m', 'tinyrpn', *args], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))


@pytest.fixture
def small():
    Path('small.yaml').write_text(SMALL.replace('EPOCHS', '1'))
    return 'small.yaml'


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    "(what the command line has answered that was started anew and trained, talking much; where the results are), to be looked at only"
    folder = tmp_path_factory.mktemp('trained')
    (folder/'small.yaml').write_text(SMALL.replace('EPOCHS', '1'))
    return anew('train', 'small.yaml', '--device', 'cpu', '--verbose', cwd=folder, XDG_CACHE_HOME=str(folder/'cache')), folder/'runs'/'small'


def test_version_is_quick():
    start = time.time(); run = anew('--version')
    assert run.returncode == 0 and run.stdout.startswith('tinyrpn ') and within(time.time() - start, 2)


def test_train_then_predict(trained):
    from PIL import Image
    run, folder = trained
    assert run.returncode == 0, run.stderr
    assert 'packaged sample' in run.stdout and 'results: runs/small/' in run.stdout.replace(os.sep, '/')
    Image.fromarray(np.full((40, 60, 3), 255, np.uint8)).save('white.png')
    run = tinyrpn('predict', folder/'model.safetensors', 'white.png')
    assert run.returncode == 0 and 'white.png' in run.stdout


def test_same_seed_same_history(trained, small):
    assert tinyrpn('train', small, '--device', 'cpu', '--out', 'b').returncode == 0
    a, b = (np.load(Path(o, 'predictions.npz'), allow_pickle=False)['logits'] for o in (trained[1], 'b'))
    assert np.array_equal(a, b)


@pytest.mark.parametrize('args, message', [
    (['train', 'mnits'], "Did you mean 'mnist'?"), (['train', 'small.yaml', '--device', 'cuda:7'], 'Present:'), (['train', 'small.yaml', '--data', 'nowhere'], 'no such file or folder'),
    (['train', 'small.yaml', '--lr', 'inf'], 'a positive number is needed'), (['train', 'small.yaml', '--epochs', 'two'], 'argument --epochs'), (['train', 'x'*300], 'no file of that name'), (['tran'], 'invalid choice'), (['predict', 'no.safetensors', 'x.png'], 'there is no such file'), (['train', 'small.yaml', '--data', 'tiny.npz', '--batch-size', '4'], 'takes m=784'),
    (['describe', 'mnits'], "Did you mean 'mnist'?"), (['describe', 'mnist', '--batch-size', '0'], 'batch_size=0'), (['train', 'small.yaml', '--contraction', 'fast'], 'invalid choice'), (['predict', 'mnist_dual_lph', 'x.png'], "Did you mean 'mnist_dual_lphm'?"), (['bench', '--out', 'nowhere/table.csv'], 'nowhere is no folder')])
def test_a_mistake_is_one_line_and_status_2(small, args, message):
    x = np.zeros((4, 3, 3), np.uint8)
    np.savez('tiny.npz', x_train=x, y_train=[0, 1, 0, 1], x_test=x, y_test=[0, 1, 0, 1])
    for run in (tinyrpn, anew) if message in ('argument --epochs', 'takes m=784') else (tinyrpn,): # the latter imports what there is
        run = run(*args)
        assert run.returncode == 2 and message in run.stderr and len(run.stderr.strip().splitlines()) == 1 and not Path('runs').exists(), run.stderr


def test_huge_pages_are_announced_and_the_users_choice_stays(trained, small):
    assert 'huge pages' in trained[0].stdout or sys.platform != 'linux'
    assert 'huge pages' not in anew('train', small, '--device', 'cpu', '--verbose', THP_MEM_ALLOC_ENABLE='0').stdout


@pytest.mark.skipif(sys.platform == 'win32', reason='signals differ')
def test_ctrl_c_keeps_what_was_learnt():
    Path('long.yaml').write_text(SMALL.replace('EPOCHS', '100000'))
    p = start('train', 'long.yaml', '--device', 'cpu')
    while 'epoch   1/' not in p.stdout.readline(): assert p.poll() is None
    p.send_signal(signal.SIGINT)
    out, _ = p.communicate(timeout=60)
    assert p.returncode == 130 and 'interrupted ' in out
    assert all((Path('runs/small')/f).is_file() for f in ('model.safetensors', 'config.yaml', 'history.csv', 'predictions.npz', 'curves.png'))


def test_diverging_run_ends_in_one_line_with_the_last_good_weights(small):
    from tinyrpn.all import RPN
    run = tinyrpn('train', small, '--device', 'cpu', '--lr', '1e37')
    assert run.returncode == 2 and 'Try a smaller learning rate' in run.stderr.strip().splitlines()[-1] and 'Traceback' not in run.stderr
    if Path('runs/small/model.safetensors').exists(): assert all(p.isfinite().all() for p in RPN.load('runs/small/model.safetensors').parameters())


def test_own_images(small):
    from PIL import Image
    rng = np.random.default_rng(0)
    for c in ('dark', 'light'):
        for i in range(10):
            Path('pictures', c).mkdir(parents=True, exist_ok=True)
            Image.fromarray((rng.integers(0, 100, (28, 28)) + 155*(c == 'light')).astype(np.uint8)).save(f'pictures/{c}/{i}.png')
    assert 'at most 16 is needed' in tinyrpn('train', small, '--data', 'pictures').stderr
    Path(small).write_text(Path(small).read_text().replace('batch_size: 50', 'batch_size: 16'))
    assert 'the data have 2 classes and the model has n=10 outputs' in tinyrpn('train', small, '--data', 'pictures').stderr
    Path(small).write_text(Path(small).read_text().replace('[784, 10]', '[784, 2]'))
    run = tinyrpn('train', small, '--data', 'pictures', '--epochs', 3, '--device', 'cpu')
    assert run.returncode == 0 and 'every fifth of a class' in run.stdout, run.stderr
    assert 'dark' in tinyrpn('predict', 'runs/small/model.safetensors', 'pictures/dark/0.png').stdout


def test_two_runs_do_not_share_a_folder():
    Path('small.yaml').write_text(SMALL.replace('EPOCHS', '3'))
    runs = [Forked('tinyrpn', 'train', 'small.yaml', '--device', 'cpu') for _ in range(2)]
    assert [r.wait(timeout=120) for r in runs] == [0, 0]
    assert all(Path(f, 'model.safetensors').is_file() for f in ('runs/small', 'runs/small-2'))


@pytest.mark.skipif(sys.platform == 'win32', reason='signals differ')
def test_interrupted_in_the_first_epoch():
    "The model so far is kept, and only files that exist are named"
    Path('slow.yaml').write_text(SMALL.replace('EPOCHS', '5').replace('batch_size: 50', 'batch_size: 1'))
    p = Forked('tinyrpn', 'train', 'slow.yaml', '--device', 'cpu')
    p.until('about ')
    p.send_signal(signal.SIGINT); p.wait(60)
    out, _ = p.said()
    named = out.split('results: ')[-1].split('(')[-1].split(')')[0].split(', ')
    assert p.returncode == 130 and 'model.safetensors' in named and all(Path('runs/small', f).is_file() for f in named)


def begun(folder):
    "A run begun in Python, without results"
    import torch
    from tinyrpn.all import Batches, IdentityExpansion, IdentityReconciliation, Learner, RPN, RPNHead
    learner = Learner(RPN([RPNHead(784, 10, IdentityExpansion(), IdentityReconciliation())]), (Batches(torch.rand(20, 784), torch.arange(20) % 10), None), device='cpu', progress=False)
    learner.fit(1, checkpoint=folder)


def refused(capsys, words, *line):
    "One line, status 2, and nothing on disk changes"
    before, _ = listing(), capsys.readouterr()
    try: status = main([*line])
    except SystemExit as e: status = e.code
    said = capsys.readouterr().err
    assert status == 2 and words in said and said.count('\n') == 1 and said.rstrip('\n').isprintable() and 'unexpected' not in said, said
    assert listing() == before


def test_runs_begun_in_python_and_folders_of_others_stay(small, capsys):
    begun('runs/small')
    Path('checkpoints').mkdir(); Path('checkpoints/best.ckpt').write_text('of another program')
    before = listing()
    refused(capsys, '--out runs/small holds a run already', 'train', small, '--out', 'runs/small')
    refused(capsys, 'a folder checkpoints that is not empty', 'train', small, '--out', '.')
    refused(capsys, '--resume . holds a run without checkpoints', 'train', small, '--resume', '.')
    assert main(['train', small, '--device', 'cpu']) == 0 and 'results: runs/small-2/' in capsys.readouterr().out
    assert main(['train', small, '--device', 'cpu', '--lr', '1e37']) == 2 # it gives back runs/small-3, and nothing else
    after = listing()
    assert all(after[k] == v for k, v in before.items()) and not Path('runs/small-3').exists()
    assert main(['train', small, '--device', 'cpu', '--out', '.', '--overwrite']) == 0 and Path('checkpoints/best.ckpt').read_text() == 'of another program'


def test_a_refused_run_gives_back_every_folder_it_made(small, capsys):
    Path('loss.yaml').write_text(Path(small).read_text().replace('epochs: 1', 'epochs: 1, loss: MSELoss'))
    Path('mine').mkdir()
    before = listing()
    for more in ([], ['--out', 'a/b/c'], ['--out', 'mine'], ['--resume', 'd']):
        assert main(['train', 'loss.yaml', '--device', 'cpu', *more]) == 2 and listing() == before


@pytest.mark.skipif(sys.platform == 'win32', reason='symbolic links need a right there')
@pytest.mark.parametrize('odd, words', [('link', 'checkpoints is a link'), ('file link', 'history.csv is a link'), ('folder', 'model.safetensors is a folder'), ('file', 'checkpoints is a file')])
def test_overwriting_looks_before_it_removes(small, capsys, odd, words):
    Path('run').mkdir(); Path('run/config.yaml').write_text('seed: 7'); Path('run/curves.png').write_text('curves')
    Path('elsewhere').mkdir(); Path('elsewhere/.epoch-private').write_text('precious'); Path('elsewhere/history.csv').write_text('precious')
    if odd == 'link': Path('run/checkpoints').symlink_to('../elsewhere')
    elif odd == 'file link': Path('run/history.csv').symlink_to('../elsewhere/history.csv')
    elif odd == 'folder': Path('run/model.safetensors').mkdir()
    else: Path('run/checkpoints').write_text('')
    refused(capsys, words, 'train', small, '--out', 'run', '--overwrite')


@pytest.mark.parametrize('args, words', [
    (['--checkpoint', 'daily'], '--checkpoint daily'), (['--checkpoint', '0'], '--checkpoint=0'), (['--checkpoint', '\u00b2'], '--checkpoint'), (['--checkpoint', '9'*5000], '--checkpoint 999'), (['--keep', '0'], '--keep=0'), (['--clip', '-1'], 'clip=-1'), (['--accumulate', '0'], 'accumulate=0'),
    (['--epochs', '0'], 'epochs=0'), (['--out', 'old'], 'holds a run already'), (['--out', 'text'], 'text is a file'), (['--out', 'text/x'], 'text is a file'), (['--out', 'x'*300], 'too long'), (['--out', 'new/' + 'x'*300], 'too long'), (['--resume', 'x'*300], 'too long'), (['--resume', 'old2'], 'without checkpoints'), (['--overwrite', '--resume', 'old'], 'leave out'),
    pytest.param(['--out', '/proc/x'], 'cannot be written', marks=pytest.mark.skipif(sys.platform != 'linux', reason='where nobody can write'))])
def test_what_is_wrong_is_said_before_any_data_are_looked_for(small, capsys, monkeypatch, args, words):
    monkeypatch.setattr('tinyrpn.config.load_data', lambda *a, **k: pytest.fail('data were looked for'))
    Path('text').write_text(''); Path('old').mkdir(); Path('old/config.yaml').write_text(''); Path('old2').mkdir(); Path('old2/model.safetensors').write_text('')
    refused(capsys, words, 'train', small, '--device', 'cpu', *args)


def test_a_name_too_long_for_the_disk_leaves_no_folder(capsys):
    Path('long.yaml').write_text(SMALL.replace('EPOCHS', '1').replace('name: small', 'name: ' + '\u3042'*100), encoding='utf-8')
    refused(capsys, 'too long', 'train', 'long.yaml', '--device', 'cpu')


def test_outputs_that_are_no_numbers_are_no_prediction(capsys, monkeypatch):
    import torch
    from PIL import Image
    Image.new('L', (28, 28), 9).save('a.png')
    monkeypatch.setattr('tinyrpn.model.RPN.forward', lambda self, x: torch.full((len(x), 10), torch.nan))
    refused(capsys, 'mnist_dual_lphm: what it computes of a.png is not a finite number', 'predict', 'mnist_dual_lphm', 'a.png')


@pytest.mark.skipif(sys.platform == 'win32', reason='such names are refused there')
def test_names_from_others_are_text_and_nothing_else(small, capsys):
    from PIL import Image
    names = ['a\nb.png', 'a\x1b[2Jb.png', 'a\u202eb.png', '\u00e9.png']
    for name in names: Image.new('L', (28, 28), 9).save(name)
    assert main(['predict', 'mnist_dual_lphm', *names]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(names) and all(line.isprintable() for line in lines) and r'a\x1b[2Jb.png' in lines[3] and '\u00e9.png' in lines[5]
    Path(small).write_text(Path(small).read_text().replace('epochs: 1', 'epochs: 1, metrics: {"\\e[2J": accuracy}'))
    assert main(['train', small, '--device', 'cpu']) in (0, 2) # a name that is refused is no trouble either
    assert all(line.isprintable() for line in capsys.readouterr().out.split('\n'))
    refused(capsys, r'no\x1b[2Jne', 'train', small, '--colour', 'no\x1b[2Jne\nthing')


@pytest.mark.skipif(sys.platform != 'linux', reason='/dev/full')
def test_what_is_printed_can_be_written_or_that_is_said():
    from PIL import Image
    Image.new('L', (28, 28), 9).save('\u00e9.png')
    ascii_ = anew('predict', 'mnist_dual_lphm', '\u00e9.png', PYTHONIOENCODING='ascii')
    assert ascii_.returncode == 0 and r'\xe9.png' in ascii_.stdout, ascii_.stderr
    shell = lambda line: subprocess.run(f'{sys.executable} -m tinyrpn {line}', shell=True, capture_output=True, text=True)
    for line in ('configs', '--version'):
        full = shell(f'{line} > /dev/full')
        assert full.returncode == 2 and full.stderr == 'tinyrpn: the output cannot be written: No space left on device\n', full.stderr
    for line, status in (('--version >&-', 0), ('new nope x 2>&-', 2), ('new nope x 2>/dev/full', 2)):
        closed = shell(line)
        assert closed.returncode == status and not closed.stdout and not closed.stderr


def test_a_plugin_cannot_end_the_program_unsaid(capsys, monkeypatch):
    for name, code in (('quits', 'import sys; sys.exit(0)'), ('odd', 'class Odd(BaseException): pass\nraise Odd("a\\nb")'), ('warns', 'import warnings; warnings.warn("a\\nb\\x1b[2J")')): Path(f'{name}_plugin.py').write_text(code)
    monkeypatch.setattr(sys, 'path', [*sys.path])
    for name, status, words in (('quits', 2, 'a plugin has ended the program with sys.exit(0)'), ('odd', 2, 'Odd, which is unexpected'), ('warns', 0, 'note: a b\\x1b[2J\n')):
        assert main(['--plugin', f'{name}_plugin', 'configs']) == status
        said = capsys.readouterr()
        assert words in said.err and said.err.count('\n') == 1 and bool(said.out) == (status == 0), said.err
