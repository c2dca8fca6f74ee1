"Rows that are kept whatever happens, recipes, trials that repeat themselves and see no test data, models sized to one count."
import csv
import io
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings, strategies as st
from torch import nn

from tinyrpn.config import load_config
from tinyrpn.core import FileError, ParameterError, TinyRPNError, random_state
from tinyrpn.data import Batches, load_data
from tinyrpn.match import FAMILIES, Contender, contender
from tinyrpn.trials import MEASURED, KeptRows, read_head, read_rows, recipe, run_trial, run_trials, summary, what_data

COLUMNS = 'model seed accuracy note'


@pytest.fixture(scope='module')
def digits():
    "256 digits to learn from, 100 to be measured on"
    data = load_data('mnist_sample', say=lambda note: None)
    return SimpleNamespace(train=Batches(data.train.x[:256], data.train.y[:256], signature=data.signature), test=Batches(data.test.x[:100], data.test.y[:100], 50))


def mlp(h=8): return lambda: nn.Sequential(nn.Linear(784, h), nn.ReLU(), nn.Linear(h, 10))
def measured(row): return {k: v for k, v in row.items() if k not in ('seconds', 'cpu')}
def row_of(model, seed, accuracy=0.5, note=''): return dict(model=model, seed=seed, accuracy=accuracy, note=note)


# ---- rows in a file

cells = st.one_of(st.integers(-10**20, 10**20), st.floats(allow_nan=False, allow_infinity=False), st.none(),
                  st.text(st.characters(codec='utf-8', exclude_categories=('C', 'Z')), max_size=12).filter(lambda s: not s.startswith('#')))

def meant(value): # what a cell is read back as
    for kind in (int, float):
        try: return kind(value) if isinstance(value, str) and '_' not in value else value
        except ValueError: pass
    return value if value != '' else None


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(cells, cells), max_size=8, unique_by=lambda r: str(meant(r[0]))), cut=st.floats(0, 1))
def test_what_is_written_is_read(rows, cut, tmp_path_factory):
    path = tmp_path_factory.mktemp('kept')/'rows.csv'
    kept = KeptRows(path, 'seed value', 'seed', command='x', budget={'a': [1, 2.5, 'ü']})
    for seed, value in rows: kept.add(dict(seed=seed, value=value))
    wanted = [dict(seed=meant(a), value=meant(b)) for a, b in rows]
    assert str(kept.rows()) == str(wanted) or kept.rows() == wanted
    if not rows: assert not path.exists(); return
    assert [r for r in csv.reader(io.StringIO(''.join(line for line in open(path, encoding='utf-8', newline='') if line[0] != '#')))][1:] == [[('' if v is None else repr(v) if isinstance(v, float) else str(v)) for v in r] for r in rows]
    whole = path.read_bytes()
    path.write_bytes(whole[:int(cut*len(whole))]) # a machine fails
    again = KeptRows(path, 'seed value', 'seed', command='x', budget={'a': [1, 2.5, 'ü']})
    there = again.rows()
    assert there == wanted[:len(there)]
    for seed, value in rows[len(there):]: again.add(dict(seed=seed, value=value))
    assert path.read_bytes() == whole


def test_other_said_values_are_refused(tmp_path):
    path = tmp_path/'a.csv'
    KeptRows(path, COLUMNS, command='c', recipe={'epochs': 3}, held_out=10).add(row_of('a', 0))
    KeptRows(path, COLUMNS, command='another way', recipe={'epochs': 3}, held_out=10)
    for said, message in ((dict(recipe={'epochs': 4}), r'made with another recipe: \{epochs: 3\}; \{epochs: 4\} needs another file'), (dict(held_out=11), 'another held_out: 10; 11'), (dict(recipe=None), 'another recipe')):
        with pytest.raises(ParameterError, match=message): KeptRows(path, COLUMNS, **said)
    with pytest.raises(ParameterError, match='has the columns model seed accuracy note'): KeptRows(path, 'model seed')
    kept = KeptRows(path, COLUMNS, command='c')
    with pytest.raises(ParameterError, match='another held_out'): kept.say(held_out=0)


def test_a_file_that_changed_meanwhile_is_not_added_to(tmp_path):
    path = tmp_path/'a.csv'
    mine, theirs = KeptRows(path, COLUMNS, budget=1), KeptRows(path, COLUMNS, budget=2)
    theirs.add(row_of('a', 0))
    with pytest.raises(ParameterError, match='another budget: 2; 1 needs another file'): mine.add(row_of('a', 1))
    with pytest.raises(ParameterError, match='has a row of'): theirs.add(row_of('a', 0))
    assert len(theirs) == 1


def test_the_head_tells_where_the_source_changed(tmp_path):
    path = tmp_path/'a.csv'
    KeptRows(path, COLUMNS, command='one', seeds=range(2), budget=3).add(row_of('a', 0))
    KeptRows(path, COLUMNS, command='one', seeds=range(4), budget=3).add(row_of('a', 1))
    lines = path.read_text().splitlines()
    assert [line for line in lines if 'seeds' in line] == ['# seeds: 0, 1', '# seeds: 0, 1, 2, 3'] and lines.index('# seeds: 0, 1, 2, 3') == len(lines) - 2
    assert sum('command' in line for line in lines) == sum('versions' in line for line in lines) == 1
    assert read_head(path)['seeds'] == '0, 1, 2, 3' and len(read_rows(path)) == 2


WRITER = '''
import sys
from tinyrpn.trials import KeptRows
kept = KeptRows(sys.argv[1], 'model seed accuracy note', command='w')
for i in range(int(sys.argv[3])): kept.add(dict(model=sys.argv[2], seed=i, accuracy=i/7, note='n'*200)); print(i, flush=True)
'''

def writer(path, name, count, **kwargs): return subprocess.Popen([sys.executable, '-c', WRITER, str(path), name, str(count)], stdout=subprocess.PIPE, text=True, **kwargs)


@pytest.mark.skipif(os.name == 'nt', reason='one process at a time there')
def test_two_processes_write_to_one_file(tmp_path):
    path = tmp_path/'a.csv'
    both = [writer(path, name, 40) for name in 'ab']
    for p in both: p.communicate(timeout=120); assert p.returncode == 0
    rows = read_rows(path)
    assert sorted((r['model'], r['seed']) for r in rows) == sorted((m, i) for m in 'ab' for i in range(40))
    assert all(r['accuracy'] == r['seed']/7 and r['note'] == 'n'*200 for r in rows) and path.read_text().count('# command') == 1


@pytest.mark.skipif(os.name == 'nt', reason='no such signal there')
def test_a_killed_writer_loses_a_line_at_most(tmp_path, tell):
    path = tmp_path/'a.csv'
    p = writer(path, 'a', 10**6)
    said = [int(p.stdout.readline()) for _ in range(30)][-1]
    p.send_signal(signal.SIGKILL)
    said = max([said, *map(int, p.stdout.read().split())]); p.wait(timeout=60)
    kept = KeptRows(path, COLUMNS, command='w')
    there = [r['seed'] for r in kept.rows()]
    assert there == list(range(len(there))) and said + 1 <= len(there) <= said + 2 # what was said to be kept is there
    kept.add(row_of('b', 0)); assert len(kept) == len(there) + 1
    tell(f'a writer was killed after {len(there)} rows, and all that it had said to be kept were there')


@pytest.mark.parametrize('data, message', [(b'\xff\xfe\n', 'not text in UTF-8'), (b'model,seed\na\n', 'a row of 1 cells'), (b'# a remark\n# another\n', 'names no columns'), (b'"model,seed\n', 'is no table')])
def test_files_that_are_none(tmp_path, data, message):
    path = tmp_path/'a.csv'; path.write_bytes(data)
    for read in (read_rows, read_head, lambda p: KeptRows(p, 'model seed')):
        with pytest.raises(FileError, match=message): read(path)
    assert path.read_bytes() == data


def test_paths_that_cannot_be(tmp_path):
    for path in (tmp_path, tmp_path/'no'/'a.csv'):
        with pytest.raises(FileError): KeptRows(path, COLUMNS).add(row_of('a', 0))
    with pytest.raises(FileError, match='cannot be read'): read_rows(tmp_path/'none.csv')


def test_summary():
    rows = [dict(model=m, size=s, accuracy=a, seconds=t) for m, s, a, t in (('a', 1, 0.5, 1.), ('a', 1, 0.7, 3.), ('a', 2, 0.9, 2.), ('b', 1, 0.1, 4.), ('a', 1, 0.4, 9.))]
    assert summary(rows, by='model size', also=['seconds'])[0] == dict(model='a', size=1, seconds=3., median=0.5, low=0.4, high=0.7, seeds=3)
    assert [r['median'] for r in summary(rows)] == [0.6, 0.1] and summary([]) == []
    with pytest.raises(ParameterError, match='score: the rows have model'): summary(rows, value='score')


# ---- recipes and trials

def test_a_recipe_is_a_configuration(tmp_path):
    full = recipe(2, 1e-3, 0.1, 32, 0.1, 20, dict(rotation=5))
    (tmp_path/'a.yaml').write_text(yaml.safe_dump({**full, 'model': {'dims': [784, 10], 'expansion': 'identity'}}))
    config = load_config(tmp_path/'a.yaml')
    assert config.learner_spec == full['learner'] and config.data_spec == {'name': 'mnist', **full['data']}
    for wrong in (dict(epochs=0), dict(lr=-1), dict(lr='x'), dict(batch_size=0), dict(smoothing='a'), dict(average=2), dict(augment={'rotate': 1})):
        with pytest.raises(TinyRPNError): recipe(**{'epochs': 1, **wrong})


def test_the_trial_is_the_learner(digits):
    "By hand: seed, model, batches, learner; the same weights to the bit"
    from tinyrpn.core import set_seed
    from tinyrpn.learner import Learner
    from tinyrpn.recipe import AverageWeights, OneCycle, RandomAffine
    model, row = run_trial(mlp(), recipe(3, average=8, augment=dict(shift=1)), digits, 7)
    state = random_state()
    set_seed(7); theirs = mlp()()
    change = RandomAffine(digits.train.signature, shift=1)
    history = Learner(theirs, Batches(digits.train.x, digits.train.y, 128, True, transform=change), {'name': 'CrossEntropyLoss', 'label_smoothing': 0.02}, {'name': 'AdamW', 'lr': 4e-3, 'weight_decay': 1e-3}, callbacks=[OneCycle(), AverageWeights(8)], progress=False, device='cpu').fit(3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), theirs.parameters()))
    with torch.no_grad(): errors = (theirs.eval()(digits.test.x).argmax(1) != digits.test.y).sum().item()
    assert row['errors'] == errors and row['accuracy'] == (100 - errors)/100 and row['train_loss'] == float(f'{history.rows[-1]["train_loss"]:.5g}')
    assert [*row] == MEASURED and row['epochs'] == 3 and row['parameters'] == 785*8 + 90 and row['threads'] == torch.get_num_threads() and row['seconds'] >= 0 <= row['cpu']


def test_the_caller_keeps_the_dice(digits):
    torch.manual_seed(3); np.random.seed(3)
    run_trial(mlp(), recipe(1), digits, 0)
    a = torch.rand(3), np.random.rand(3)
    torch.manual_seed(3); np.random.seed(3)
    assert torch.equal(a[0], torch.rand(3)) and (a[1] == np.random.rand(3)).all()
    torch.manual_seed(4)
    with pytest.raises(ZeroDivisionError): run_trial(lambda: 1/0, recipe(1), digits, 0)
    b = torch.rand(1); torch.manual_seed(4); assert torch.equal(b, torch.rand(1))


def test_the_test_set_is_asked_for_once_at_the_end(digits):
    events = []
    class Watched(nn.Module):
        def __init__(self): super().__init__(); self.linear = nn.Linear(784, 10)
        def forward(self, x): events.append('train' if self.training else 'measure'); return self.linear(x)
    class Seen(Batches):
        def __iter__(self): events.append('test asked for'); return super().__iter__()
        def to(self, device): return self
    run_trial(Watched, recipe(2), SimpleNamespace(train=digits.train, test=Seen(digits.test.x, digits.test.y, 50)), 0)
    assert events == ['train']*4 + ['test asked for'] + ['measure']*2


def test_seeds_matter_and_repeat(digits):
    rows = [measured(run_trial(mlp(), recipe(2), digits, seed)[1]) for seed in (0, 1, 0)]
    assert rows[0] == rows[2] != rows[1]


@pytest.mark.skipif(os.name == 'nt', reason='signals differ there')
def test_an_interrupted_trial_is_no_row(digits, tmp_path):
    class Interrupting(nn.Linear):
        def forward(self, x):
            if self.training: os.kill(os.getpid(), signal.SIGINT)
            return super().forward(x)
    cases = {'a': (mlp(), recipe(1)), 'b': (lambda: Interrupting(784, 10), recipe(1))}
    with pytest.raises(KeyboardInterrupt, match='interrupted'): run_trials(tmp_path/'a.csv', cases, (0,), digits)
    assert [r['model'] for r in read_rows(tmp_path/'a.csv')] == ['a']
    rows = run_trials(tmp_path/'a.csv', {**cases, 'b': (mlp(4), recipe(1))}, (0,), digits, 'again')
    assert [r['model'] for r in rows] == ['a', 'b']


TRIALS = '''
import sys, torch
from types import SimpleNamespace
from torch import nn
from tinyrpn.data import Batches
from tinyrpn.trials import *
torch.manual_seed(0)
x, y = torch.randn(512, 20), torch.arange(512) % 5
data = SimpleNamespace(train=Batches(x, y), test=Batches(x[:64], y[:64]))
run_trials(sys.argv[1], {name: (lambda h=h: nn.Sequential(nn.Linear(20, h), nn.ReLU(), nn.Linear(h, 5)), recipe(4)) for name, h in (('small', 4), ('large', 40))}, range(4), data, 'x', progress=True)
'''

@pytest.mark.skipif(os.name == 'nt', reason='no such signal there')
def test_killed_and_gone_on_with_is_the_same(tmp_path):
    "Rows of a run that was killed after its third are those of a run that was left alone"
    run = lambda name: subprocess.Popen([sys.executable, '-c', TRIALS, str(tmp_path/name)], stdout=subprocess.PIPE, text=True)
    p = run('killed.csv')
    for _ in range(3): assert p.stdout.readline()
    p.send_signal(signal.SIGKILL); p.communicate(timeout=60)
    before = (tmp_path/'killed.csv').read_text()
    assert 3 <= len(read_rows(tmp_path/'killed.csv')) < 8
    for name in ('killed.csv', 'alone.csv'):
        p = run(name); p.communicate(timeout=120); assert p.returncode == 0
    rows = [[measured(r) for r in read_rows(tmp_path/name)] for name in ('killed.csv', 'alone.csv')]
    assert rows[0] == rows[1] and len(rows[0]) == 8 and (tmp_path/'killed.csv').read_text().startswith(before[:before.rfind('\n') + 1])


def test_rows_of_other_data_are_kept_apart(digits, tmp_path):
    other = SimpleNamespace(train=digits.train, test=Batches(digits.test.x, digits.test.y.roll(1), 50))
    run_trials(tmp_path/'a.csv', {'a': (mlp(), recipe(1))}, (0,), digits)
    with pytest.raises(ParameterError, match='another data: mnist, 256 training and 100 test samples, check sum'): run_trials(tmp_path/'a.csv', {'a': (mlp(), recipe(1))}, (0,), other)
    assert what_data(digits) == what_data(digits) != what_data(other)


def test_a_case_of_several_names(digits, tmp_path):
    rows = run_trials(tmp_path/'a.csv', {('mlp', h, lr): (mlp(h), recipe(1, lr)) for h in (2, 3) for lr in (1e-3, 1e-2)}, (0, 1), digits, by='model width lr', held_out=0)
    assert [(r['width'], r['lr'], r['seed']) for r in rows] == [(h, lr, s) for s in (0, 1) for h in (2, 3) for lr in (1e-3, 1e-2)]
    assert all(r['parameters'] == 785*r['width'] + 10*(r['width'] + 1) for r in rows) and read_head(tmp_path/'a.csv')['held_out'] == '0'
    assert load_config(yaml.safe_load(read_head(tmp_path/'a.csv')['recipe of mlp 2 0.01'])).raw == recipe(1, 1e-2)


def test_trained_models_are_kept(digits, tmp_path):
    from tinyrpn.model import RPN
    config = {'model': {'dims': [784, 10], 'expansion': 'identity', 'bias': True}}
    run_trials(tmp_path/'a.csv', {'line': (config, recipe(1))}, (0, 1), digits, keep=tmp_path)
    model, row = run_trial(config, recipe(1), digits, 1)
    loaded = RPN.load(tmp_path/'line-1.safetensors')
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters())) and (tmp_path/'line-0.safetensors').exists()
    assert measured(row) == {k: v for k, v in measured(read_rows(tmp_path/'a.csv')[1]).items() if k not in ('model', 'seed')}


# ---- models of one size

@pytest.mark.parametrize('kind', FAMILIES)
@pytest.mark.parametrize('size', (10_000, 100_000))
def test_contenders_have_the_size(kind, size):
    met = 0
    for variant in FAMILIES[kind]:
        try: c = contender(kind, size, variant)
        except ParameterError as e: assert str(size)[:2] in str(e) and 'parameters' in str(e); continue
        model, met = c(), met + 1
        assert c.parameters == sum(p.numel() for p in model.parameters()) and 0.9*size <= c.parameters <= size
        assert model(torch.randn(3, 784)).shape == (3, 10)
        larger = Contender(kind, variant, c.width + 1, 0, 784, 10)()
        assert sum(p.numel() for p in larger.parameters()) > size # there is no nearer one
    assert met


def test_contenders_draw_no_random_numbers():
    torch.manual_seed(5); contender('mlp', 12_345); contender('rpn', 11_111, 'products'); a = torch.rand(2)
    torch.manual_seed(5); assert torch.equal(a, torch.rand(2))
