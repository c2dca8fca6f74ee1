"Held-out samples, the packaged models, and pictures in files of CIFAR-10's format"
import copy
import csv
import os
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import within
from PIL import Image

import tinyrpn
from tinyrpn.all import Batches, ConfigError, Data, DataError, MissingDataError, ParameterError, RPN, Signature, TinyRPNError, TooLargeError, UnknownNameError, load_config, load_data
from tinyrpn.cifar import CIFAR_CLASSES, CIFAR_FILES, find_cifar10, read_cifar10, read_records, write_records
from tinyrpn.cli import main
from tinyrpn.model import DEFAULT_MODEL, model_table, packaged_models

SMALL = '''
name: small
seed: 1
data: {name: mnist_sample, batch_size: 100HOLD}
model: {dims: [784, 10], expansion: {name: identity, post: LayerNorm}}
learner: {epochs: 2, optimizer: {name: AdamW, lr: 5.0e-3}}
'''


def quiet(line): pass


@pytest.fixture(scope='module')
def digits(): return load_data('mnist_sample', say=quiet)


# ---- a validation split

def rows(batches): return {x.numpy().tobytes() + bytes([int(y)]) for x, y in zip(batches.x, batches.y)}


@pytest.mark.parametrize('n, seed', [(2, 3), (500, 0), (500, 1), (1936, 0)])
def test_held_out_samples_and_the_others_are_the_training_set(digits, n, seed):
    state, split = torch.get_rng_state(), digits.hold_out(n, seed)
    assert torch.equal(state, torch.get_rng_state())
    assert (len(split.train.x), len(split.test.x), split.held_out, digits.held_out) == (2000 - n, n, n, 0)
    assert rows(split.train) | rows(split.test) == rows(digits.train) and not rows(split.train) & rows(split.test) and not rows(split.test) & rows(digits.test)
    order = torch.randperm(2000, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(split.test.x, digits.train.x[order[:n]]) and torch.equal(split.train.y, digits.train.y[order[n:]])


def test_the_split_does_not_depend_on_what_was_drawn_before(digits):
    torch.manual_seed(5); a = digits.hold_out(100)
    torch.manual_seed(6); torch.rand(9); b = digits.hold_out(100)
    assert torch.equal(a.test.x, b.test.x) and not torch.equal(a.test.x, digits.hold_out(100, seed=1).test.x)


def test_batches_transform_and_signature_stay(digits):
    data = copy.copy(digits)
    data.train, data.test = Batches(digits.train.x, digits.train.y, 30, True, digits.signature, torch.neg), Batches(digits.test.x, digits.test.y, 70, signature=digits.signature)
    split = data.hold_out(100)
    assert (split.train.batch_size, split.train.shuffle, split.train.transform, split.test.batch_size, split.test.shuffle, split.test.transform) == (30, True, torch.neg, 70, False, None)
    assert split.signature is split.train.signature is split.test.signature is digits.signature and data.train.batch_size == 30
    assert '100 of the 2,000 training samples are held out in its place (seed 0)' in split.note and '1,900 training and 100 held-out samples' in repr(split)


def test_held_out_twice(digits):
    twice = digits.hold_out(1000).hold_out(500)
    assert (len(twice.train.x), len(twice.test.x)) == (500, 500) and not rows(twice.train) & rows(twice.test)


@pytest.mark.parametrize('n, words', [(0, 'hold_out=0: a whole number of at least 1'), (-1, 'hold_out=-1'), (2000, 'has 2,000 samples; at most 1,999'), (10**30, 'hold_out='), (1.5, 'hold_out=1.5'), (True, 'hold_out=True'), ('9', "hold_out='9'"), (None, 'hold_out=None'),
                                      (1, 'labels of the samples that are held out'), (1999, 'labels of the samples that stay'), (1937, '63 samples stay for the training, fewer than batch_size=64; at most 1,936')])
def test_numbers_that_cannot_be_held_out(digits, n, words):
    with pytest.raises(ParameterError) as e: digits.hold_out(n)
    assert words in str(e.value)


def test_a_batch_of_the_whole_set_stays_one():
    x = np.arange(40, dtype=np.float32).reshape(20, 2)
    data = Data(x, np.arange(20) % 2, x, np.arange(20) % 2, Signature('mine', [2], classes=['a', 'b'])).hold_out(6)
    assert data.train.batch_size == 14 and len(data.train) == 1


def test_held_out_in_yaml():
    cfg = load_config({'data': {'name': 'mnist_sample', 'hold_out': 300, 'batch_size': 50}})
    data = cfg.data(say=quiet)
    assert (len(data.train.x), len(data.test.x), data.held_out) == (1700, 300, 300)
    cfg.save('c.yaml')
    assert load_config('c.yaml').data_spec == cfg.data_spec == cfg.override(epochs=3).data_spec
    assert cfg.override(hold_out=20).data_spec['hold_out'] == 20 and cfg.override(hold_out=0).data(say=quiet).held_out == 0
    with pytest.raises(ParameterError, match='data.hold_out: hold_out=-3'): load_config({'data': {'name': 'mnist', 'hold_out': -3}})
    with pytest.raises(ParameterError, match="hold_out='many': a whole number"): load_config({'data': {'name': 'mnist', 'hold_out': 'many'}})


def test_the_card_says_what_is_held_out(digits):
    import tinyrpn.show  # noqa: F401  gives data their card
    whole, split = (d._repr_mimebundle_()['text/html'] for d in (digits, digits.hold_out(300)))
    assert 'held out' in split and '300 samples' in split and 'test' in whole and 'held out' not in whole


def test_held_out_on_the_command_line(capsys):
    Path('small.yaml').write_text(SMALL.replace('HOLD', ''))
    assert main(['train', 'small.yaml', '--device', 'cpu', '--hold-out', '400', '--epochs', '1']) == 0
    out = capsys.readouterr().out
    assert 'held-out samples: loss' in out and '400 of the 2,000 training samples are held out' in out and 'test set: ' not in out
    assert load_config('runs/small/config.yaml').data_spec['hold_out'] == 400
    with np.load('runs/small/predictions.npz', allow_pickle=False) as p: assert np.array_equal(p['y_true'], load_data('mnist_sample', say=quiet).hold_out(400).test.y.numpy())
    capsys.readouterr()
    for other in ('0', '300'): # it would be judged on samples that it has learnt
        assert main(['train', '--resume', 'runs/small', '--hold-out', other, '--device', 'cpu']) == 2
        assert f'--hold-out {other}: the run in runs/small holds out 400 samples' in capsys.readouterr().err
    assert main(['train', 'small.yaml', '--resume', 'runs/small', '--epochs', '2', '--device', 'cpu']) == 0 and 'held-out samples: loss' in capsys.readouterr().out # the name of a configuration changes nothing of it
    assert main(['train', '--resume', 'runs/small', '--device', 'cpu', '--epochs', '2']) == 0 # the run knows what it holds out
    seen = capsys.readouterr()
    assert 'held-out samples: loss' in seen.out and 'other data' not in seen.out + seen.err
    Path('held.yaml').write_text(SMALL.replace('HOLD', ', hold_out: 400').replace('name: small', 'name: held'))
    assert main(['train', 'held.yaml', '--device', 'cpu', '--epochs', '1']) == 0 and 'held-out samples: loss' in capsys.readouterr().out
    assert main(['train', 'held.yaml', '--device', 'cpu', '--epochs', '1', '--hold-out', '0']) == 0 and 'test set: loss' in capsys.readouterr().out


@pytest.mark.parametrize('line, words', [('--hold-out 2000', 'hold_out=2000: the training set has 2,000 samples'), ('--hold-out -1', 'hold_out=-1'), ('--hold-out x', 'argument --hold-out'), ('--hold-out 1999', 'at least two classes')])
def test_a_wrong_number_on_the_command_line_leaves_nothing(capsys, line, words):
    Path('small.yaml').write_text(SMALL.replace('HOLD', ''))
    try: status = main(['train', 'small.yaml', '--device', 'cpu', *line.split()])
    except SystemExit as e: status = e.code
    said = capsys.readouterr().err
    assert status == 2 and words in said and said.count('\n') == 1 and not Path('runs').exists()


# ---- the packaged models

ASSETS = Path(tinyrpn.__file__).parent/'assets'


def noted():
    "The rows of models.csv, read anew"
    return list(csv.DictReader(line for line in (ASSETS/'models.csv').read_text(encoding='utf-8').splitlines() if not line.startswith('#')))


def test_every_packaged_model_has_a_row_and_every_row_a_model():
    names = [row['model'] for row in noted()]
    assert len({*names}) == len(names) and {*names} == {p.stem for p in ASSETS.glob('*.safetensors')} == {*packaged_models()}
    assert DEFAULT_MODEL in names


@pytest.mark.parametrize('row', noted(), ids=lambda row: row['model'])
def test_what_is_said_of_a_packaged_model(row):
    "Errors and accuracy are of the same 10,000 digits, and the sample of 500 of them bears them out"
    accuracy, errors = float(row['test_accuracy']), int(row['errors'])
    assert round(10_000*(1 - accuracy)) == errors and abs(10_000*(1 - accuracy) - errors) < 1e-6 and row['about'].isprintable() and 0 < len(row['about']) < 80
    model, data = RPN.load(row['model']).eval(), load_data('mnist_sample', say=quiet)
    with torch.no_grad(): wrong = (model(data.test.x).argmax(1) != data.test.y).sum().item()
    assert wrong/500 < 1 - accuracy + 4*((1 - accuracy)*accuracy/500)**0.5 + 1/500
    shown = next(r for r in model_table() if r['model'] == row['model'])
    assert shown == {'model': row['model'], 'parameters': sum(p.numel() for p in model.parameters()), 'kB': round((ASSETS/f"{row['model']}.safetensors").stat().st_size/1e3), 'test accuracy': f'{accuracy:.2%}', 'about': row['about']}


def test_the_list_on_the_command_line(capsys):
    assert main(['models']) == 0
    out = capsys.readouterr().out
    assert repr(model_table()) in out and all(f'\n{name} ' in out for name in packaged_models()) and f'{DEFAULT_MODEL} is used where none is named' in out
    sizes = [row['parameters'] for row in model_table()]
    assert sizes == sorted(sizes)


def test_a_model_without_a_row_is_listed_all_the_same(monkeypatch):
    monkeypatch.setattr('tinyrpn.model._noted_models', dict)
    assert {row['model'] for row in model_table()} == {*packaged_models()} and model_table()[0]['test accuracy'] == 'nan%'


def test_they_are_packaged():
    "The wheel takes all assets, and so does the source"
    root = Path(tinyrpn.__file__).parent.parent
    if not (root/'setup.py').is_file(): pytest.skip('installed without its sources')
    assert "'assets/*'" in (root/'setup.py').read_text() and 'recursive-include tinyrpn/assets *' in (root/'MANIFEST.in').read_text()


# ---- reading digits without a model

def test_records_of_one_file_and_of_an_iterator(tmp_path):
    from tinyrpn.cifar import read_records, write_records
    x, y = np.arange(2*3072, dtype=np.uint8).reshape(2, 3, 32, 32), np.array([3, 7])
    write_records(tmp_path/'a.bin', x, y)
    for paths in (tmp_path/'a.bin', str(tmp_path/'a.bin'), iter([tmp_path/'a.bin'])): assert np.array_equal(read_records(paths)[0], x) and read_records([tmp_path/'a.bin'])[1].tolist() == [3, 7]


def said(capsys, *line):
    try: status = main([*line])
    except SystemExit as e: status = e.code
    return status, *capsys.readouterr()


@pytest.fixture
def pictures(digits):
    "Three digits as files, and what they are"
    s, names = digits.signature, ('a.png', 'b.JPG', 'c.jpeg')
    x = ((digits.test.x[:3]*s.std + s.mean)*255).round().byte().view(-1, 28, 28).numpy()
    for name, image in zip(names, x): Image.fromarray(image).save(name)
    return [*names], [str(int(y)) for y in digits.test.y[:3]]


def test_images_alone_are_read_by_the_packaged_model(pictures, capsys):
    names, answers = pictures
    status, out, err = said(capsys, 'predict', *names)
    first, *rest = out.splitlines()
    assert (status, err) == (0, '') and first == f'model: {DEFAULT_MODEL}, of {sum(p.numel() for p in RPN.load(DEFAULT_MODEL).parameters()):,} parameters (none was given)'
    assert [line.split()[:2] for line in rest[2:]] == [[n, a] for n, a in zip(names, answers)]
    assert said(capsys, 'predict', DEFAULT_MODEL, *names) == (0, '\n'.join(rest) + '\n', '')
    for line in (['predict', names[0]], ['predict', names[0], '--device', 'cpu'], ['predict', '--device', 'cpu', names[0]], ['predict', '--force', names[0], '--verbose']):
        status, out, _ = said(capsys, *line)
        assert status == 0 and first in out.splitlines() and out.splitlines()[-1].split()[:2] == [names[0], answers[0]]


def test_an_image_by_another_name_needs_no_model_if_it_stands_alone(pictures, capsys):
    Path('a.png').rename('picture')
    status, out, _ = said(capsys, 'predict', 'picture')
    assert status == 0 and out.startswith('model: ') and 'picture' in out
    status, _, err = said(capsys, 'predict', 'picture', 'b.JPG')
    assert status == 2 and 'picture is not a safetensors file' in err


def test_options_may_stand_between_model_and_images(pictures, capsys):
    names, _ = pictures
    RPN.load(DEFAULT_MODEL).save('mine.safetensors')
    want = said(capsys, 'predict', 'mine.safetensors', *names)
    assert want[0] == 0 and 'none was given' not in want[1]
    for line in (['mine.safetensors', '--device', 'cpu', *names], [*'--device cpu mine.safetensors'.split(), *names], ['mine.safetensors', *names, '--device=cpu'], ['mine.safetensors', names[0], '--force', *names[1:]], ['mine.safetensors', '--', *names]):
        assert said(capsys, 'predict', *line) == want


@pytest.mark.parametrize('files, words', [(['mnist_dual_lphm'], 'tinyrpn predict mnist_dual_lphm IMAGE...'), (['mine.safetensors'], 'mine.safetensors is a model'), (['new.csv'], 'tinyrpn predict MODEL new.csv'), (['new.csv', 'a.png'], 'new.csv is a table'), (['a.png', 'new.csv'], 'new.csv is not a PNG or JPEG'), (['mnist_dual_lphn'], "Did you mean 'mnist_dual_lphm'?"),
                                          (['absent.png'], 'absent.png: there is no such file'), (['absent'], 'absent: there is no such image'), ([], 'IMAGE'), (['x'*300], 'too long'), (['--colour', 'a.png'], '--colour')])
def test_what_is_given_in_the_place_of_an_image(pictures, capsys, files, words):
    Path('new.csv').write_text('a,b\n1,2\n')
    status, out, err = said(capsys, 'predict', *files)
    assert status == 2 and words in err and err.count('\n') == 1 and not out, err


def test_help_says_that_the_model_may_be_left_out(capsys):
    status, out, _ = said(capsys, 'predict', '--help')
    assert status == 0 and '[MODEL] IMAGE' in out and 'where none is given' in ' '.join(out.split()) and 'tinyrpn models' in ' '.join(out.split())


def test_a_digit_pad_takes_the_same_model():
    from tinyrpn.widget import DigitPad
    pad = DigitPad()
    assert all(torch.equal(v, pad.model.state_dict()[k]) for k, v in RPN.load(DEFAULT_MODEL).state_dict().items())
    pad.close()


# ---- CIFAR-10's binary version

RECORD = 3073


def record(label, image): return bytes([label]) + bytes(int(image[c, i, j]) for c in range(3) for i in range(32) for j in range(32)) # one byte after the other, as the format is published


def made_up(n, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8), np.arange(n) % 10


def cifar(folder='set', sizes=(4, 4, 4, 4, 4, 10), meta=None, **changed):
    "The six files, written record by record, some of them changed"
    Path(folder).mkdir(parents=True, exist_ok=True)
    for k, (name, n) in enumerate(zip(CIFAR_FILES, sizes)): Path(folder, name).write_bytes(b''.join(record((y + k) % 10, x) for x, y in zip(*made_up(n, k))))
    if meta is not None: Path(folder, 'batches.meta.txt').write_bytes(meta if isinstance(meta, bytes) else meta.encode())
    for name, data in changed.items(): Path(folder, f'{name}.bin').write_bytes(data)
    return folder


def test_read_as_written_one_byte_after_the_other():
    cifar()
    data = load_data('cifar10', 'set', say=quiet)
    x = np.concatenate([made_up(4, k)[0] for k in range(5)]); y = [(i + k) % 10 for k in range(5) for i in range(4)]
    s = data.signature
    assert (s.name, s.shape, s.classes) == ('cifar10', [3, 32, 32], [*CIFAR_CLASSES]) and data.train.y.tolist() == y and data.test.y.tolist() == [(i + 5) % 10 for i in range(10)]
    np.testing.assert_allclose((s.mean, s.std), (x.mean()/255, x.std()/255), rtol=1e-12)
    np.testing.assert_allclose(data.train.x.view(-1, 3, 32, 32).numpy()*s.std + s.mean, x/255, atol=1e-6)
    np.testing.assert_allclose(data.test.x.view(-1, 3, 32, 32).numpy()*s.std + s.mean, made_up(10, 5)[0]/255, atol=1e-6)
    assert data.note == 'cifar10, 20 training and 10 test images, from set (other numbers than were published)'


@pytest.mark.parametrize('n', [1, 999, 1000, 1001, 2500])
def test_what_is_written_is_read_again(n):
    x, y = made_up(n)
    write_records('a.bin', x, y)
    assert Path('a.bin').read_bytes()[:RECORD] == record(0, x[0]) and Path('a.bin').stat().st_size == n*RECORD
    again = read_records(['a.bin', 'a.bin'])
    assert np.array_equal(again[0], np.concatenate([x, x])) and np.array_equal(again[1], [*y, *y]) and again[0].dtype == np.uint8


def test_images_in_another_order_of_memory_are_written_alike():
    x, y = made_up(3)
    for other in (np.asfortranarray(x), torch.tensor(x), x[::-1][::-1], x.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2)):
        write_records('b.bin', other, torch.tensor(y))
        assert np.array_equal(read_records(['b.bin'])[0], x)


@pytest.mark.parametrize('x, y, words', [(made_up(2)[0], [0, 10], 'the label 10'), (made_up(2)[0], [0, -1], 'the label -1'), (made_up(2)[0], [0], '1 labels for 2'), (made_up(2)[0][:, :1], [0, 1], '(N, 3, 32, 32)'), (made_up(2)[0]/255, [0, 1], 'float64'), (made_up(2)[0].astype(int), [0, 1], 'int64'), (made_up(0)[0], [], 'empty'), ('x', [0], 'x')])
def test_what_cannot_be_written(x, y, words):
    with pytest.raises(TinyRPNError) as e: write_records('a.bin', x, y)
    assert words in str(e.value) and not Path('a.bin').exists()


@pytest.mark.parametrize('below', ['', 'cifar10', 'cifar-10-batches-bin', 'cifar10/cifar-10-batches-bin'])
def test_where_they_may_lie(below, monkeypatch, tmp_path):
    cifar(Path('root', below))
    assert find_cifar10('root') == [Path('root', below, f) for f in CIFAR_FILES] and len(load_data('cifar10', 'root', say=quiet).train.x) == 20
    monkeypatch.setenv('TINYRPN_DATA', 'root')
    assert load_data('cifar10', say=quiet).note.startswith('cifar10, 20 training and 10 test images, from $TINYRPN_DATA')
    monkeypatch.delenv('TINYRPN_DATA')
    with pytest.raises(MissingDataError, match='data_batch_1.bin to data_batch_5.bin and test_batch.bin there'): load_data('cifar10', say=quiet)


def test_in_the_cache_and_beside_other_sets(monkeypatch, tmp_path):
    cifar(tmp_path/'cache'/'tinyrpn'/'cifar10')
    assert 'from the cache' in load_data('cifar10', say=quiet).note
    Path('elsewhere').mkdir(); monkeypatch.setenv('TINYRPN_DATA', 'elsewhere')
    said = []
    assert 'from the cache' in load_data('cifar10', say=said.append).note and 'does not hold cifar10' in said[0]
    Path(tmp_path/'cache'/'tinyrpn'/'cifar10'/'test_batch.bin').unlink() # half a set in the cache counts as none
    with pytest.raises(MissingDataError, match='is not downloaded'): load_data('cifar10', say=quiet)
    Path('elsewhere/data_batch_1.bin').touch()
    with pytest.raises(MissingDataError, match='elsewhere holds some files of CIFAR-10, but not data_batch_2.bin, .*test_batch.bin'): load_data('cifar10', say=quiet)


def test_class_folders_and_arrays_of_ones_own_by_that_name():
    for c in 'ab':
        for i in range(5): Path('pets', c).mkdir(parents=True, exist_ok=True); Image.new('RGB', (4, 4), (9*i, 0, 0)).save(f'pets/{c}/{i}.png')
    assert load_data('cifar10', 'pets', say=quiet).signature.shape == [3, 4, 4]
    x, y = made_up(20)
    np.savez('mine.npz', x_train=x, y_train=y, x_test=x, y_test=y)
    mine = load_data('cifar10', 'mine.npz', say=quiet)
    assert mine.signature.shape == [3, 32, 32] and torch.equal(mine.train.x, mine.test.x)


def test_names_of_the_classes():
    cifar(meta='\n'.join(f' thing {i} ' for i in range(10)) + '\n\n')
    assert load_data('cifar10', 'set', say=quiet).signature.classes == [f'thing {i}' for i in range(10)]
    cifar(meta='\r\n'.join(CIFAR_CLASSES) + '\r\n')
    assert load_data('cifar10', 'set', say=quiet).signature.classes == [*CIFAR_CLASSES]


def test_the_numbers_that_were_published(monkeypatch):
    "Only then does the note say nothing of numbers"
    monkeypatch.setattr('tinyrpn.cifar.read_records', lambda paths: (np.zeros((50_000 if len(paths) == 5 else 10_000, 3, 1, 1), np.uint8), np.zeros(1)))
    arrays, signature, note = read_cifar10([Path('x')/f for f in CIFAR_FILES])
    assert note == 'cifar10, 50,000 training and 10,000 test images' and (signature.mean, signature.std) == (0., 1.)


GOOD = record(3, made_up(1)[0][0])
NAMES = [f'c{i}' for i in range(9)]
HOSTILE = {
    'empty': (lambda: cifar(data_batch_2=b''), DataError, 'data_batch_2.bin is empty'), 'one byte': (lambda: cifar(data_batch_2=b'\x03'), DataError, 'its last record has 1'), 'a byte too few': (lambda: cifar(data_batch_3=GOOD[:-1]), DataError, 'its last record has 3,072'), 'a byte too many': (lambda: cifar(test_batch=GOOD*2 + b'x'), DataError, 'test_batch.bin has 6,147 bytes'),
    'CIFAR-100': (lambda: cifar(test_batch=(b'\x01' + GOOD)*3), DataError, 'CIFAR-100'), 'text': (lambda: cifar(data_batch_5=b'<html>not found</html>'), DataError, 'data_batch_5.bin has 22 bytes'), 'label 10': (lambda: cifar(data_batch_1=GOOD*1500 + b'\x0a' + GOOD[1:]), DataError, 'data_batch_1.bin: record 1500 has the label 10; 0 to 9'), 'label 255': (lambda: cifar(test_batch=b'\xff'*RECORD), DataError, 'test_batch.bin: record 0 has the label 255'),
    'one class': (lambda: cifar(**{f'data_batch_{i}': GOOD*2 for i in range(1, 6)}), DataError, 'all 10 labels are 3; at least two classes'), 'a batch is missing': (lambda: (cifar(), Path('set/data_batch_4.bin').unlink()), MissingDataError, 'but not data_batch_4.bin'), 'two are missing': (lambda: (cifar(), Path('set/data_batch_4.bin').unlink(), Path('set/test_batch.bin').unlink()), MissingDataError, 'but not data_batch_4.bin, test_batch.bin'),
    'a folder for a file': (lambda: (cifar(), Path('set/data_batch_4.bin').unlink(), Path('set/data_batch_4.bin').mkdir()), MissingDataError, 'but not data_batch_4.bin'), 'a link to itself': (lambda: (cifar(), Path('set/data_batch_4.bin').unlink(), Path('set/data_batch_4.bin').symlink_to('data_batch_4.bin')), MissingDataError, 'but not data_batch_4.bin'),
    'a pipe': (lambda: (cifar(), Path('set/data_batch_4.bin').unlink(), os.mkfifo('set/data_batch_4.bin')), MissingDataError, 'but not data_batch_4.bin'), 'the Python version': (lambda: (Path('set/cifar-10-batches-py').mkdir(parents=True), Path('set/cifar-10-batches-py/data_batch_1').write_bytes(b"cos\nsystem\n(S'touch canary'\ntR.")), DataError, 'pickled and so never read'), 'its folder itself': (lambda: (Path('set').mkdir(), Path('set/data_batch_1').write_bytes(b'\x80')), DataError, 'the binary version'),
    'nothing': (lambda: Path('set').mkdir(), MissingDataError, 'neither the binary batches of cifar10'), 'files of MNIST': (lambda: (Path('set').mkdir(), Path('set/train-images-idx3-ubyte').touch()), MissingDataError, 'neither the binary batches of cifar10'),
    'nine names': (lambda: cifar(meta='\n'.join(NAMES)), DataError, 'batches.meta.txt has 9 names'), 'a name twice': (lambda: cifar(meta='\n'.join([*NAMES, 'c0'])), DataError, '10 names, 9 of them different'), 'no name': (lambda: cifar(meta=''), DataError, '0 names'), 'names that are no text': (lambda: cifar(meta=bytes(range(128, 256))), DataError, 'not text in UTF-8'), 'a name of a terminal': (lambda: cifar(meta='\n'.join([*NAMES, '\x1b[2J'])), DataError, "the name of a class is '\\x1b[2J'"),
    'a long name': (lambda: cifar(meta='\n'.join([*NAMES, 'x'*300])), DataError, 'at most 200 printable letters'), 'names without end': (lambda: cifar(meta='x\n'*10**6), DataError, 'at most 65,536 are read'), 'names in a folder': (lambda: (cifar(), Path('set/batches.meta.txt').mkdir()), DataError, 'batches.meta.txt cannot be read'),
}


@pytest.mark.parametrize('name', HOSTILE)
def test_refused(name, capsys):
    "One line that says which file, quickly; the command line says the same and leaves nothing"
    make, error, words = HOSTILE[name]
    make()
    start = time.process_time()
    with pytest.raises(error) as e: load_data('cifar10', 'set', say=quiet)
    message = str(e.value)
    assert words in message and message.isprintable() and len(message) < 600 and within(time.process_time() - start, 2), message
    Path('c.yaml').write_text('data: cifar10\nmodel: {dims: [3072, 10], expansion: identity}\nlearner: {epochs: 1}\n')
    status, _, err = said(capsys, 'train', 'c.yaml', '--data', 'set', '--device', 'cpu')
    assert status == 2 and err.count('\n') == 1 and message in err and not Path('runs').exists() and not Path('canary').exists()


def test_a_file_beyond_the_memory_is_refused_before_anything_is_read():
    cifar()
    with open('set/data_batch_5.bin', 'wb') as f: f.truncate(RECORD*10**9) # 3 TB of nothing
    start = time.process_time()
    with pytest.raises(TooLargeError, match='set/data_batch_1.bin hold'): load_data('cifar10', 'set', say=quiet)
    assert within(time.process_time() - start, 1)


def test_a_file_that_shrinks_while_it_is_read(monkeypatch):
    write_records('a.bin', *made_up(3))
    monkeypatch.setattr('tinyrpn.cifar._count', lambda path: 5)
    with pytest.raises(DataError, match='a.bin became shorter while it was read'): read_records(['a.bin'])


def test_nothing_is_held_twice(monkeypatch):
    "Files are read in pieces into one array: beside it, a few pieces"
    write_records('a.bin', np.zeros((4000, 3, 32, 32), np.uint8), np.zeros(4000, int))
    tracemalloc.start()
    x, y = read_records(['a.bin']*3)
    held, peak = tracemalloc.get_traced_memory(); tracemalloc.stop()
    assert x.nbytes <= held and peak < x.nbytes + y.nbytes + 4*1000*RECORD


def test_config_and_command_line(capsys):
    cifar(sizes=(20,)*6, meta='\n'.join(f'kind {i}' for i in range(10)))
    Path('c.yaml').write_text('name: colours\nseed: 1\ndata: {name: cifar10, batch_size: 10, hold_out: 20, augment: {shift: 2}}\nmodel: {dims: [3072, 10], expansion: identity, reconciliation: {name: dual_lphm, p: 10, q: 3, r: 2}}\nlearner: {epochs: 1}\n')
    assert load_config('c.yaml').estimate()[-2]['bytes'] == 60_000*(3072*4 + 8)
    status, out, err = said(capsys, 'train', 'c.yaml', '--data', 'set', '--device', 'cpu')
    assert status == 0 and 'held-out samples: loss' in out and '20 of the 100 training samples' in out, err
    Image.new('RGB', (64, 48), 'red').save('red.png')
    status, out, _ = said(capsys, 'predict', 'runs/colours/model.safetensors', 'red.png')
    assert status == 0 and 'kind ' in out
    status, _, err = said(capsys, 'train', 'c.yaml', '--device', 'cpu')
    assert status == 2 and 'cifar10 is not in $TINYRPN_DATA' in err and err.count('\n') == 1
    with pytest.raises(ConfigError, match="data.shape: unknown key"): load_config({'data': {'name': 'cifar10', 'shape': 3}})
    with pytest.raises(UnknownNameError, match="Did you mean 'cifar10'"): load_data('cifar01')


def test_the_reference_names_it_too():
    theirs = {'configurations': {'data_configs': {'data_class': 'tinybig.data.cifar10', 'data_parameters': {'name': 'cifar10', 'train_batch_size': 5, 'test_batch_size': 10}}}}
    cifar()
    assert load_config(theirs).data('set', say=quiet).train.batch_size == 5
