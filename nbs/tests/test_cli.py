"The command line in processes of its own"
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

SMALL = '''
name: small
seed: 1
data: {name: mnist_sample, batch_size: 50}
model: {dims: [784, 10], expansion: {name: identity, post: LayerNorm}}
learner: {epochs: EPOCHS, optimizer: {name: AdamW, lr: 5.0e-3}}
'''


def tinyrpn(*args, **env):
    return subprocess.run([sys.executable, '-m', 'tinyrpn', *map(str, args)], capture_output=True, text=True, env={**os.environ, **env})


def start(*args):
    "A run of its own that hears Ctrl-C, even when these tests run in the background, where signals are ignored"
    return subprocess.Popen([sys.executable, '-m', 'tinyrpn', *args], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))


@pytest.fixture
def small():
    Path('small.yaml').write_text(SMALL.replace('EPOCHS', '1'))
    return 'small.yaml'


def test_version_is_quick():
    start = time.time(); run = tinyrpn('--version')
    assert run.returncode == 0 and run.stdout.startswith('tinyrpn ') and time.time() - start < 2


def test_train_then_predict(small):
    from PIL import Image
    run = tinyrpn('train', small, '--device', 'cpu')
    assert run.returncode == 0, run.stderr
    assert 'packaged sample' in run.stdout and 'results: runs/small/' in run.stdout.replace(os.sep, '/')
    Image.fromarray(np.full((40, 60, 3), 255, np.uint8)).save('white.png')
    run = tinyrpn('predict', 'runs/small/model.safetensors', 'white.png')
    assert run.returncode == 0 and 'white.png' in run.stdout


def test_same_seed_same_history(small):
    drop_time = lambda f: [line.rpartition(',')[0] for line in f.read_text().splitlines()]
    for out in 'ab': assert tinyrpn('train', small, '--device', 'cpu', '--out', out).returncode == 0
    a, b = (np.load(f'{o}/predictions.npz', allow_pickle=False)['logits'] for o in 'ab')
    assert np.array_equal(a, b)


@pytest.mark.parametrize('args, message', [
    (['train', 'mnits'], "Did you mean 'mnist'?"), (['train', 'small.yaml', '--device', 'cuda:7'], 'Present:'), (['train', 'small.yaml', '--data', 'nowhere'], 'no such file or folder'),
    (['train', 'small.yaml', '--lr', 'inf'], 'a positive number is needed'), (['train', 'small.yaml', '--epochs', 'two'], 'argument --epochs'), (['train', 'x'*300], 'no file of that name'), (['tran'], 'invalid choice'), (['predict', 'no.safetensors', 'x.png'], 'there is no such file'), (['train', 'small.yaml', '--data', 'tiny.npz', '--batch-size', '4'], 'takes m=784'),
    (['describe', 'mnits'], "Did you mean 'mnist'?"), (['describe', 'mnist', '--batch-size', '0'], 'batch_size=0'), (['train', 'small.yaml', '--contraction', 'fast'], 'invalid choice'), (['predict', 'mnist_dual_lph', 'x.png'], "Did you mean 'mnist_dual_lphm'?"), (['bench', '--out', 'nowhere/table.csv'], 'nowhere is no folder')])
def test_a_mistake_is_one_line_and_status_2(small, args, message):
    x = np.zeros((4, 3, 3), np.uint8)
    np.savez('tiny.npz', x_train=x, y_train=[0, 1, 0, 1], x_test=x, y_test=[0, 1, 0, 1])
    run = tinyrpn(*args)
    assert run.returncode == 2 and message in run.stderr and len(run.stderr.strip().splitlines()) == 1 and not Path('runs').exists(), run.stderr


def test_huge_pages_are_announced_and_the_users_choice_stays(small):
    assert 'huge pages' in tinyrpn('train', small, '--device', 'cpu', '--verbose').stdout or sys.platform != 'linux'
    assert 'huge pages' not in tinyrpn('train', small, '--device', 'cpu', '--verbose', THP_MEM_ALLOC_ENABLE='0').stdout


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
    runs = [subprocess.Popen([sys.executable, '-m', 'tinyrpn', 'train', 'small.yaml', '--device', 'cpu'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [r.wait(timeout=120) for r in runs] == [0, 0]
    assert all(Path(f, 'model.safetensors').is_file() for f in ('runs/small', 'runs/small-2'))


@pytest.mark.skipif(sys.platform == 'win32', reason='signals differ')
def test_interrupted_in_the_first_epoch():
    "The model so far is kept, and only files that exist are named"
    Path('slow.yaml').write_text(SMALL.replace('EPOCHS', '5').replace('batch_size: 50', 'batch_size: 1'))
    p = start('train', 'slow.yaml', '--device', 'cpu')
    while 'about ' not in p.stdout.readline(): assert p.poll() is None
    p.send_signal(signal.SIGINT)
    out, _ = p.communicate(timeout=60)
    named = out.split('results: ')[-1].split('(')[-1].split(')')[0].split(', ')
    assert p.returncode == 130 and 'model.safetensors' in named and all(Path('runs/small', f).is_file() for f in named)
