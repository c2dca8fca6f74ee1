"Rows and trials in bad company: keys that look alike, files cut short, recipes for other data, folders that are none, two at one file."
import math
import shlex
import subprocess
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from tinyrpn.config import Config, load_config
from tinyrpn.core import FileError, ParameterError, RangeError
from tinyrpn.data import Batches
from tinyrpn.model import RPN
from tinyrpn.trials import MEASURED, KeptRows, command_for, read_head, read_rows, recipe, run_trial, run_trials, summary, what_data

LINE = {'model': {'dims': [20, 5], 'expansion': 'identity', 'bias': True}}


def linear(): return nn.Linear(20, 5)
def data_of(dtype=torch.float32, name=None, **more):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(96, 20, generator=generator), torch.arange(96) % 5
    signature = name and SimpleNamespace(name=name)
    return SimpleNamespace(train=Batches(x[:64].to(dtype), y[:64], signature=signature), test=Batches(x[64:].to(dtype), y[64:]), **more)

@pytest.fixture(scope='module')
def data(): return data_of()


# ---- files

def test_keys_are_text(tmp_path):
    kept = KeptRows(tmp_path/'a.csv', 'model score', 'model')
    names = ['1', '01', '1.0', '1e0', 'nan', 'inf', '', ' 1', 2, 2.5, float('nan')]
    for i, name in enumerate(names[:-1]): assert not kept.has(model=name); kept.add(dict(model=name, score=i)); assert kept.has(model=name)
    assert len(kept) == len(names) - 1
    for same in (1, float('nan'), None, float('inf'), np.int64(2), np.float64(2.5)): assert kept.has(model=same)
    with pytest.raises(ParameterError, match='has a row of model=nan already'): kept.add(dict(model=float('nan'), score=0))
    assert not kept.has(model=3) and not kept.has(model='001')


def test_a_row_may_be_kept_without_a_command(tmp_path):
    path = tmp_path/'a.csv'
    for seed in range(3): KeptRows(path, 'model seed', note='').add(dict(model='a', seed=seed))
    assert 'command' not in path.read_text() and path.read_text().count('# note:') == 1 and read_head(path)['note'] == '' and len(read_rows(path)) == 3
    old = tmp_path/'old.csv'; old.write_text('# command: \n# date: 2020-01-01\nmodel,seed\na,0\n') # as such files began
    KeptRows(old, 'model seed').add(dict(model='a', seed=1))
    assert old.read_text().count('command') == 1 and len(read_rows(old)) == 2


@pytest.mark.parametrize('cut', ['# da', '# date: 2020', '# seeds: 0, 1', '# command: x\n# seeds', ''])
def test_a_beginning_without_columns_is_written_again(tmp_path, cut):
    path = tmp_path/'a.csv'; path.write_text(cut)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore'); KeptRows(path, 'model seed', seeds=[0]).add(dict(model='a', seed=0))
    assert path.read_text().startswith('# seeds: 0\n# date: ') and len(read_rows(path)) == 1


def test_cells_that_would_close_the_file(tmp_path):
    kept = KeptRows(tmp_path/'a.csv', 'model seed')
    for odd in ('x'*10_001, 'x'*200_000, 10**5000, -10**5000, 1j, b'a', [1]):
        with pytest.raises(ParameterError, match='model=.*a line of text of at most 10,000 letters'): kept.add(dict(model=odd, seed=0))
    kept.add(dict(model='"'*10_000, seed=0)); kept.add(dict(model=10**4000, seed=0))
    assert [r['model'] for r in kept.rows()] == ['"'*10_000, 10**4000]
    with pytest.raises(ParameterError, match='number of 5000 digits'): KeptRows(tmp_path/'b.csv', 'model seed', budget=10**5000)
    with pytest.raises(ParameterError, match='names are needed'): KeptRows(tmp_path/'b.csv', ['model', 'seed', 'x'*200_000])


def test_what_has_no_line_end_is_told(tmp_path):
    path = tmp_path/'a.csv'
    kept = KeptRows(path, 'model seed'); kept.add(dict(model='a', seed=0))
    with open(path, 'a') as f: f.write('bb,1')
    for read in (kept.rows, lambda: read_rows(path)):
        with pytest.warns(UserWarning, match=r"a\.csv: the end of the file was cut short and is left out: 'bb,1'") as told: assert len(read()) == 1
        assert len(told) == 1 and '\n' not in str(told[0].message)
    with pytest.warns(UserWarning, match="removed: 'bb,1'"): kept.add(dict(model='c', seed=0))
    with warnings.catch_warnings():
        warnings.simplefilter('error'); assert [r['model'] for r in kept.rows()] == ['a', 'c']


@pytest.mark.parametrize('place', range(3))
def test_a_nan_shows_in_the_summary(place):
    values = [0.5, 0.6]; values.insert(place, math.nan)
    row = summary([dict(model='a', accuracy=v, parameters=7) for v in values], also='parameters')[0]
    assert math.isnan(row['low']) and math.isnan(row['high']) and math.isnan(row['median']) and row['parameters'] == 7 and row['seeds'] == 3
    rows = [dict(model='a', accuracy=a, errors=e, kind='x') for a, e in ((0.5, 3), (0.75, 1))]
    assert summary(rows, value='errors', also='kind accuracy')[0] == dict(model='a', kind='x', accuracy=0.625, median=2., low=1, high=3, seeds=2)


@pytest.mark.parametrize('odd', [None, 'n/a'])
def test_what_is_no_number_is_not_summed_up(odd):
    rows = [dict(model='a', accuracy=0.5, cpu=1.), dict(model='a', accuracy=0.5, cpu=odd)]
    with pytest.raises(ParameterError, match=f'cpu={odd!r}'): summary(rows, also=['cpu'])
    with pytest.raises(ParameterError, match='cpu=.*numbers are needed'): summary(rows, value='cpu')


def test_the_command_can_be_typed(tmp_path):
    KeptRows(tmp_path/'it is.csv', 'model seed').add(dict(model='a', seed=0))
    command = command_for(read_rows, tmp_path/'it is.csv')
    assert command == "python -c \"from tinyrpn.trials import *; read_rows('it is.csv')\""
    words = shlex.split(command.replace('read_rows(', 'print(*read_rows(')[:-1] + ')"')
    assert "{'model': 'a', 'seed': 0}" in subprocess.run([sys.executable, *words[1:]], cwd=tmp_path, capture_output=True, text=True, check=True).stdout


def test_the_command_tells_what_differs():
    def make(path, root=None, seeds=(0, 1), lr=1e-3, names=None, **more): "..."
    made = lambda **given: command_for(make, 'a/b.csv', **given).partition('make(')[2]
    assert made(root='/mine', seeds=[0, 1], lr=np.float64(1e-3), names=None) == made(seeds=np.arange(2)) == made() == "'b.csv')\""
    assert made(seeds=range(3), names=['a', "b'c"[:1]], other=True) == "'b.csv', seeds=(0, 1, 2), names=('a', 'b'), other=True)\""
    assert made(lr=1) == "'b.csv', lr=1)\"" and made(names=()) == "'b.csv', names=())\""
    for odd in ('a"b', "it's", '$HOME', '`ls`', 'a\\b', object(), math.nan, torch.ones(2), linear):
        with pytest.raises(ParameterError, match='names='): made(names=odd)
    with pytest.raises(ParameterError, match='path='): command_for(make, "it's.csv")
    with pytest.raises(ParameterError, match="speed=1: read_rows has the parameters path"): command_for(read_rows, 'a.csv', speed=1)


# ---- recipes, cases, data

def with_data(**section): return {**recipe(1), 'data': section}

@pytest.mark.parametrize('how, message', [(with_data(hold_out=5), 'hold_out=5, where the data have 0'), (with_data(name='cifar10'), "name='cifar10', where the data are 'mnist'"), ({**recipe(1), 'data': 'kmnist'}, "name='kmnist'"), (Config(recipe(1)).override(hold_out=3), 'hold_out=3')])
def test_recipes_for_other_data(how, message, tmp_path):
    data = data_of(name='mnist')
    with pytest.raises(ParameterError, match=message): run_trial(linear, how, data, 0)
    def never(): raise AssertionError('trained before all recipes were looked at')
    with pytest.raises(ParameterError, match=message): run_trials(tmp_path/'a.csv', {'a': (never, recipe(1)), 'b': (linear, how)}, (0,), data)
    assert not (tmp_path/'a.csv').exists()


def test_recipes_for_these_data():
    for how, data in ((with_data(name='mnist_sample', hold_out=0), data_of(name='mnist')), (with_data(hold_out=7), data_of(held_out=7)), (with_data(), data_of(name='cifar10')), (with_data(name='mnist'), data_of())):
        assert run_trial(linear, how, data, 0)[1]['epochs'] == 1
    assert '64 training and 32 held-out samples' in what_data(data_of(held_out=32)) and '32 test samples' in what_data(data_of(held_out=0))


def test_a_recipe_is_said_as_its_contents(data, tmp_path):
    (tmp_path/'how.yaml').write_text(yaml.safe_dump({**recipe(1), **LINE}))
    cases = {'path': (linear, tmp_path/'how.yaml'), 'text': (linear, str(tmp_path/'how.yaml')), 'config': (linear, Config(recipe(1))), 'both': (load_config(tmp_path/'how.yaml'), tmp_path/'how.yaml')}
    run_trials(tmp_path/'a.csv', cases, (0,), data)
    head = read_head(tmp_path/'a.csv')
    for name in cases: assert yaml.safe_load(head[f'recipe of {name}']) == recipe(1)
    assert Config({"model": yaml.safe_load(head["model of both"])}).short()["model"] == Config(LINE).short()["model"]
    assert [k for k in head if k.startswith('model of')] == ['model of both']
    (tmp_path/'how.yaml').write_text(yaml.safe_dump(recipe(2))) # the same name, other contents
    with pytest.raises(ParameterError, match='another recipe of path'): run_trials(tmp_path/'a.csv', {'path': cases['path']}, (1,), data)


def test_another_model_under_the_same_name(data, tmp_path):
    cases = {'f': (linear, recipe(1)), 'c': (LINE, recipe(1))}
    run_trials(tmp_path/'a.csv', cases, (0,), data)
    wider = lambda: nn.Sequential(nn.Linear(20, 6), nn.Linear(6, 5))
    with pytest.raises(ParameterError, match=r'f has 161 parameters, and in a\.csv 105'): run_trials(tmp_path/'a.csv', {'f': (wider, recipe(1))}, (1,), data)
    with pytest.raises(ParameterError, match='another model of c'): run_trials(tmp_path/'a.csv', {'c': ({'model': {'dims': [20, 5], 'expansion': 'identity'}}, recipe(1))}, (1,), data)
    assert len(read_rows(tmp_path/'a.csv')) == 2 and len(run_trials(tmp_path/'a.csv', cases, np.arange(2), data)) == 4


@pytest.mark.parametrize('cases, seeds, message', [
    ({'a': (linear, recipe(1))}, 3, 'seeds=3: whole numbers'), ({'a': (linear, recipe(1))}, '01', "seeds='0'"), ({'a': (linear, recipe(1))}, (0, 0), 'each is needed once'), ({'a': (linear, recipe(1))}, (0.5,), 'seeds=0.5'),
    ({'a': linear}, (0,), r'\(make, recipe\) is needed'), ([linear], (0,), r'cases=.*\(make, recipe\)'), ({'1': (linear, recipe(1)), 1: (linear, recipe(1))}, (0,), "two are called '1'"), ({'a': ({'learner': {'epochs': 1}}, recipe(1))}, (0,), 'describes no model')])
def test_cases_and_seeds_that_are_none(cases, seeds, message, data, tmp_path):
    with pytest.raises(ParameterError, match=message): run_trials(tmp_path/'a.csv', cases, seeds, data)
    assert not (tmp_path/'a.csv').exists()


def test_data_that_are_none(data, tmp_path):
    def never(): raise AssertionError('made before the data were looked at')
    empty = SimpleNamespace(train=data.train, test=data.test.take(slice(0)))
    for odd, message in ((empty, r'data\.test=.*at least one sample'), (None, 'train and test are needed')):
        for run in (lambda: run_trial(never, recipe(1), odd, 0), lambda: run_trials(tmp_path/'a.csv', {'a': (never, recipe(1))}, (0,), odd), lambda: what_data(odd)):
            with pytest.raises(ParameterError, match=message): run()


def test_the_check_sum_is_of_the_bytes(data):
    import zlib
    total = 0
    for v in (data.train.x, data.train.y, data.test.x, data.test.y): total = zlib.crc32(v.numpy().tobytes(), total)
    assert what_data(data).endswith(f'check sum {total:08x}')
    assert len({what_data(data_of(d)) for d in (torch.bfloat16, torch.float16, torch.float64)}) == 3


# ---- trials that go wrong

class TooLarge(nn.Linear):
    "What it computes is too large: while it is trained, or always"
    def __init__(self, always, steps=0): super().__init__(20, 5); self.always, self.steps = always, steps
    def forward(self, x):
        self.steps -= self.training
        if self.steps < 0 and (self.always or self.training): raise RangeError('too large')
        return super().forward(x)


def test_what_cannot_be_computed_is_a_row(data, tmp_path, monkeypatch):
    cases = {'training': (lambda: TooLarge(False), recipe(1)), 'always': (lambda: TooLarge(True), recipe(1)), 'fine': (linear, recipe(1))}
    with pytest.warns(UserWarning) as told: rows = run_trials(tmp_path/'a.csv', cases, (0,), data)
    assert [r['model'] for r in rows] == [*cases] and [math.isnan(r['train_loss']) for r in rows] == [True, True, False]
    assert rows[0]['errors'] < 32 and rows[1]['errors'] == 32 and rows[1]['accuracy'] == 0
    assert any('seed 0: all samples count as wrong: too large' in str(w.message) for w in told)
    def fit(self, *args): raise RangeError('no way') # from wherever it comes
    monkeypatch.setattr('tinyrpn.learner.Learner.fit', fit)
    with pytest.warns(UserWarning, match='seed 3: no way'): row = run_trial(linear, recipe(1), data, 3)[1]
    assert math.isnan(row['train_loss']) and row['epochs'] == 0


def test_logits_that_are_no_numbers_are_wrong(data):
    class Lost(nn.Linear):
        def forward(self, x): return super().forward(x) if self.training else super().forward(x)*math.nan
    assert run_trial(lambda: Lost(20, 5), recipe(1), data, 0)[1]['errors'] == 32


@pytest.mark.skipif(sys.platform == 'win32', reason='a file is written while it is read')
def test_two_runs_at_one_file(data, tmp_path):
    path, made = tmp_path/'a.csv', []
    def slow(): # while this one trains, another run has the row
        if not made: made.append(1); run_trials(path, {'a': (slow, recipe(1))}, (0,), data)
        return linear()
    with pytest.warns(UserWarning, match="has a row of model='a', seed=0 already: somebody else has measured it meanwhile"): rows = run_trials(path, {'a': (slow, recipe(1)), 'b': (linear, recipe(1))}, (0,), data)
    assert [r['model'] for r in rows] == ['a', 'b']


def test_models_that_cannot_be_kept(data, tmp_path):
    def case(name, make=LINE): return {name: (make, recipe(1))}
    def untrained(*args, **kwargs): raise AssertionError('trained first')
    (tmp_path/'file').write_text('')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('tinyrpn.learner.Learner.fit', untrained)
        for cases, keep, message in ((case('a/b'), tmp_path, 'no file name'), (case('a'*300), tmp_path, 'no file name'), ({**case('a'), **case('b', linear)}, tmp_path, 'model of b has no `save`'), (case('a'), tmp_path/'file', 'the folder cannot be made'), (case('a'), 3, 'cannot be made')):
            with pytest.raises((ParameterError, FileError), match=message): run_trials(tmp_path/'a.csv', cases, (0,), data, keep=keep)
        with pytest.raises(ParameterError, match='two cases would be kept in a-b-c-0'): run_trials(tmp_path/'a.csv', {('a', 'b-c'): (LINE, recipe(1)), ('a-b', 'c'): (LINE, recipe(1))}, (0,), data, by='x y', keep=tmp_path)
        with pytest.raises(ParameterError, match='a line of text'): run_trials(tmp_path/'a.csv', case('a\0b'), (0,), data, keep=tmp_path)
    assert not (tmp_path/'a.csv').exists()
    run_trials(tmp_path/'a.csv', case('a'), (0,), data, keep=tmp_path/'new'/'folder')
    assert (tmp_path/'new'/'folder'/'a-0.safetensors').exists()


def test_a_save_that_fails_keeps_the_row(data, tmp_path, monkeypatch):
    def full(self, path): raise FileError(f'{path} cannot be written: no space left')
    monkeypatch.setattr(RPN, 'save', full)
    with pytest.raises(FileError, match='no space left'): run_trials(tmp_path/'a.csv', {'a': (LINE, recipe(1))}, (0, 1), data, keep=tmp_path)
    assert [(r['model'], r['seed'], [*r][2:]) for r in read_rows(tmp_path/'a.csv')] == [('a', 0, MEASURED)]
