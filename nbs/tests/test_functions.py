"Formulas that are read and never run, the 161 functions, their samples, fits that repeat themselves, the comparison's file, the second-order finish."
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from tinyrpn.core import ParameterError, RangeError, TinyRPNError, random_state, set_seed
from tinyrpn.functions import (FUNCTIONS, FormulaError, Function, own_function, compare_on_functions, comparison_table, fit_errors, fit_function, functions,
                               median_errors, parse_formula, read_comparison, sample_function, sized)
from tinyrpn.config import load_config
from tinyrpn.second_order import finish


@pytest.fixture(autouse=True)
def same_dice():
    "The same random numbers whichever tests ran before"
    torch.manual_seed(0)


every = pytest.mark.parametrize('f', functions(), ids=lambda f: f'{f.family}-{f.index}')
ELEMENTARY = {'model': {'dims': [2, 2, 1], 'expansion': {'name': 'extended', 'composition_functions': ['bspline', {'name': 'taylor', 'd': 2}]}, 'reconciliation': {'name': 'lorr', 'r': 1}, 'contraction': 'dense'}}


# ---- a second reader of formulas, which shares nothing with the first: recursive descent over tokens, in NumPy

NUMPY = {**{k: getattr(np, k) for k in 'exp log sqrt sin cos tan sinh cosh tanh'.split()}, 'abs': np.absolute, 'ln': np.log, 'arcsin': np.asin, 'arccos': np.acos, 'arctan': np.atan, 'arcsinh': np.asinh, 'arccosh': np.acosh, 'arctanh': np.atanh}

class Reader:
    def __init__(self, text, columns): self.tokens, self.columns = re.findall(r'\*\*|\d*\.?\d+(?:e[+-]?\d+)?|\w+|[-+*/()]', text.replace(' ', '')), columns
    def take(self, *wanted): return self.tokens.pop(0) if self.tokens and (not wanted or self.tokens[0] in wanted) else None
    def read(self):
        value = self.sum()
        assert not self.tokens
        return value
    def sum(self):
        value = self.product()
        while op := self.take('+', '-'): value = value + self.product() if op == '+' else value - self.product()
        return value
    def product(self):
        value = self.signed()
        while op := self.take('*', '/'): value = value*self.signed() if op == '*' else value/self.signed()
        return value
    def signed(self):
        if op := self.take('+', '-'): return self.signed() if op == '+' else -self.signed()
        return self.power()
    def power(self):
        base = self.atom()
        return np.power(base, self.signed()) if self.take('**') else base
    def atom(self):
        if (token := self.take()) == '(': value = self.sum(); assert self.take(')'); return value
        if token in self.columns: return self.columns[token]
        if token in NUMPY: assert self.take('('); value = self.sum(); assert self.take(')'); return NUMPY[token](value)
        return np.pi if token == 'pi' else np.float64(token)


@every
def test_values(f):
    "The parser, on arrays and on tensors, against the second reader"
    data = sample_function(f, 400, seed=7)
    x = torch.cat([data.train.x, data.test.x]).numpy()
    theirs = Reader(f.formula, dict(zip(f.variables, x.T))).read()
    for ours in (f(x), f(torch.from_numpy(x)).numpy(), torch.cat([data.train.y, data.test.y])[:, 0].numpy()):
        assert ours.dtype == np.float64
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12*np.abs(theirs).max())


@every
def test_gradient(f):
    "Derivatives by torch against central differences of the second reader, where the function is smooth"
    low, high = np.array(list(f.variables.values())).T
    x = np.random.default_rng(3).uniform(low + 0.3*(high - low), low + 0.6*(high - low), (20, f.m))
    t = torch.from_numpy(x).requires_grad_()
    ours, = torch.autograd.grad(f(t).sum(), t)
    h = 1e-6
    at = lambda x: Reader(f.formula, dict(zip(f.variables, x.T))).read()
    for i in range(f.m):
        step = h*np.eye(f.m)[i]
        theirs = (at(x + step) - at(x - step))/(2*h)
        np.testing.assert_allclose(ours[:, i].numpy(), theirs, rtol=1e-4, atol=1e-5*(1 + np.abs(theirs).max()))


def test_table_is_the_reference():
    "The packaged table has the families, numbers and ranges of the reference"
    assert [len(functions(k)) for k in ('elementary', 'composite', 'feynman', 'dimensionless_feynman')] == [17, 17, 100, 27]
    for family in ('elementary', 'composite', 'feynman', 'dimensionless_feynman'): assert [f.index for f in functions(family)] == [*range(len(functions(family)))]
    for f in functions(): assert all(low < high for low, high in f.variables.values()) and {*re.findall(r'[A-Za-z_]\w*', f.formula)} - {*FUNCTIONS, 'pi'} <= {*f.variables}


# ---- what is refused

HOSTILE = ("__import__('os').system('touch canary')", "open('canary', 'w')", 'x.__class__.__mro__', 'getattr(x, "real")', '(lambda: x)()', '[x for x in (1, 2)]', '{x: x}', '{x}', '(x, x)', 'x if x else x', 'x < 1', 'x or 1', 'not x', 'x[0]', 'x.real', 'sin.__call__(x)', '(x := 1)', '*x', 'sin(*x)', 'sin(**x)', 'sin(x=1)',
           "f'{x}'", "'a'", 'b"a"', '1j', 'None', 'True', '...', 'x // 1', 'x % 1', 'x @ x', 'x ^ 2', 'x | 1', 'x << 3', '~x', 'await x', 'yield x', 'exec("1")', 'eval("1")', 'compile("1", "", "eval")', 'np.sin(x)', 'torch.sin(x)', 'print(x)', 'sin', 'sin + 1', 'y', 'pi(x)', 'x(x)', 'import os', 'x = 1', 'x; x', 'def f(): pass', 'x\\', '#', '\x00', '٣+', 'sin(x', ')', '1 1', '')

@pytest.mark.parametrize('text', HOSTILE)
def test_hostile(text):
    with pytest.raises(FormulaError) as e: parse_formula(text, ['x'])
    assert len(str(e.value)) < 700 and '\n' not in str(e.value) and not Path('canary').exists()
    with pytest.raises(FormulaError): own_function(text, x=(0, 1))


LARGE = {'tower': '9**9**9**9', 'tower of floats': '9.**9.**9.**9.', 'factorial-like': '*'.join(['9**999']*9), 'huge literal': '9'*999, 'exponent': '1e99999', 'brackets': '('*450 + 'x' + ')'*450, 'open brackets': '('*999, 'minus': '-'*900 + 'x', 'minus in a list': '[' + '-'*900 + 'x]',
         'calls': 'sin('*150 + 'x' + ')'*150, 'powers': 'x**'*300 + 'x', 'long': 'x+'*10**6 + 'x', 'long name': 'x'*999, 'blank': ' '*10**6}

@pytest.mark.parametrize('name', LARGE)
def test_large(name):
    "Refused at once, in little memory"
    start = time.process_time()
    with pytest.raises(FormulaError) as e: parse_formula(LARGE[name], ['x'])
    assert time.process_time() - start < 1 and len(str(e.value)) < 700


def test_large_at_run_time():
    "What the numbers decide is float64, in time that does not depend on them"
    f = parse_formula('x**x**x**x', 'x')
    with np.errstate(all='ignore'): assert np.isinf(f([9.])) and f([1.]) == 1
    with pytest.raises(FormulaError, match='not finite at'): sample_function(own_function('9**x**x', x=(5, 9)))


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet='x y0123.e+-*/()[]{}_^=,:"\'sincoelabmtr\\\n\t', max_size=60))
def test_any_text(text):
    "Any text is a formula or a FormulaError, and what is a formula gives float64"
    try: f = parse_formula(text, ['x', 'y'])
    except FormulaError: return
    with np.errstate(all='ignore'): assert np.asarray(f(np.array([0.5]), np.array([2.]))).dtype == np.float64


parts = st.recursive(st.sampled_from(['x', 'y', '2', '0.5', 'pi']), lambda inner: st.one_of(st.tuples(inner, st.sampled_from('+-*/'), inner).map(lambda t: f'({t[0]}{t[1]}{t[2]})'), inner.map(lambda a: f'-{a}'), inner.map(lambda a: f'sin({a})'), inner.map(lambda a: f'arctan({a})**2')), max_leaves=12)

@settings(max_examples=200, deadline=None)
@given(parts)
def test_drawn_formulas(text):
    "Formulas drawn at random mean the same to both readers"
    columns = {'x': np.array([0.3, -1.2]), 'y': np.array([2., 0.7])}
    try: f = parse_formula(text, 'x y')
    except FormulaError as e:
        assert 'no finite number' in str(e) or 'nested' in str(e)
        return
    with np.errstate(all='ignore'): np.testing.assert_allclose(np.broadcast_to(f(*columns.values()), 2), np.broadcast_to(Reader(text, columns).read(), 2), rtol=1e-9, atol=1e-12)


# ---- samples

def test_samples_repeat_themselves():
    "The same in another process, whatever the global seeds, which stay as they are"
    code = "import torch; torch.manual_seed(5); from tinyrpn.functions import *; d = sample_function(functions()[150]); print(d.train.x.sum().item().hex(), d.test.y.sum().item().hex())"
    d, state = sample_function(functions()[150]), torch.get_rng_state()
    said = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, env={**os.environ, 'OMP_NUM_THREADS': '1'}).stdout.split()
    assert said == [d.train.x.sum().item().hex(), d.test.y.sum().item().hex()]
    assert torch.equal(sample_function(functions()[150]).train.x, d.train.x) and not torch.equal(sample_function(functions()[150], seed=1).train.x, d.train.x)
    assert torch.equal(state, torch.get_rng_state())


@every
def test_samples(f):
    d = sample_function(f, normalise=True)
    low, high = torch.tensor(list(f.variables.values()), dtype=torch.float64).T
    for b in (d.train, d.test): assert b.x.shape == (1000, f.m) and b.y.shape == (1000, 1) and (b.x >= low).all() and (b.x <= high).all() and b.y.isfinite().all()
    torch.testing.assert_close(d.std*d.test.y[:, 0] + d.mean, f(d.test.x), rtol=1e-9, atol=1e-9*f(d.test.x).abs().max().item())


def test_odd_numbers_of_samples():
    d = sample_function(functions()[0], 7)
    assert (len(d.train.x), len(d.test.x)) == (3, 4)


# ---- fits

def test_elementary_14():
    "47 parameters, 1e-8 or better"
    d = sample_function(functions()[14])
    model = fit_function(ELEMENTARY, d, restarts=2, steps=(150, 500))
    assert sum(p.numel() for p in model.parameters()) == 47 and fit_errors(model, d).test < 1e-8


@pytest.mark.slow
def test_elementary_14_on_three_seeds(tell):
    d = sample_function(functions()[14])
    found = [fit_errors(fit_function(ELEMENTARY, d, seed=100*k), d).test for k in range(3)]
    tell('elementary 14, 47 parameters, test errors: ' + ', '.join(f'{e:.1e}' for e in found))
    assert max(found) < 1e-8


def test_fits_repeat_themselves():
    d = sample_function(functions()[5], 200)
    before = torch.get_rng_state()
    one, two, other = (fit_function(ELEMENTARY, d, restarts=1, epochs=5, steps=(20, 5), seed=s) for s in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters())) and not torch.equal(next(one.parameters()), next(other.parameters()))
    assert torch.equal(before, torch.get_rng_state())


def test_errors_by_hand():
    "A model that says 0: its error is the mean square, relative to the variance"
    d = sample_function(functions()[2], 100, normalise=True)
    zero = nn.Linear(2, 1).double()
    for p in zero.parameters(): nn.init.zeros_(p)
    y = d.function(d.test.x)
    e = fit_errors(zero, d)
    assert math.isclose(e.test, (y - d.mean).square().mean().item(), rel_tol=1e-12) and math.isclose(e.relative, e.test/y.var(correction=0).item(), rel_tol=1e-12) and math.isclose(e.train, d.std**2, rel_tol=1e-9)


@pytest.mark.parametrize('m', range(1, 10))
def test_sizes(m):
    counts = [sum(p.numel() for p in load_config(sized(k, m)).model().parameters()) for k in ('rpn', 'mlp', 'kan')]
    assert max(counts) < 1.05*min(counts)


def test_comparison_goes_on(tmp_path):
    "A run that was stopped in the middle of a row's function goes on, and ends as one that was not"
    few, how = functions()[:2], dict(seeds=[0], epochs=2, steps=(5, 0))
    compare_on_functions(tmp_path/'whole.csv', few, **how)
    lines = (tmp_path/'whole.csv').read_text().splitlines(keepends=True)
    (tmp_path/'part.csv').write_text(''.join(lines[:-2]))
    compare_on_functions(tmp_path/'part.csv', few, **how)
    key = lambda rows: [{k: v for k, v in r.items() if k != 'seconds'} for r in rows]
    whole, part = (read_comparison(tmp_path/f'{k}.csv') for k in ('whole', 'part'))
    assert key(whole) == key(part) and len(whole) == 6
    with pytest.raises(ParameterError, match='another recipe'): compare_on_functions(tmp_path/'part.csv', few)


def test_kept_comparison(tell):
    "The kept table has every function and model, no failed row, and sizes that agree"
    rows = read_comparison(Path(__file__).parents[1]/'images'/'functions.csv')
    by = median_errors(rows)
    assert {*by} == {(f.family, f.index) for f in functions()} and all({*v} == {'rpn', 'mlp', 'kan'} for v in by.values())
    assert all(math.isfinite(r[k]) for r in rows for k in ('train', 'test')) and len({(r['family'], r['index'], r['model'], r['seed']) for r in rows}) == len(rows)
    whole = comparison_table(rows)[-1]
    tell('161 functions, median relative errors: ' + ', '.join(f"{k} {whole[f'{k}, median error']}, best on {whole[f'{k} best']}" for k in ('rpn', 'mlp', 'kan')))


# ---- the finish

def test_finish_is_least_squares():
    "A linear model: what numpy's lstsq finds"
    x, y = torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    model = nn.Linear(4, 3).double()
    done = finish(model, x, y, tolerance=1e-9)
    theirs = np.linalg.lstsq(np.hstack([x, np.ones((50, 1))]), y.numpy(), rcond=None)[0]
    np.testing.assert_allclose(np.vstack([model.weight.detach().T, model.bias.detach()[None]]), theirs, atol=1e-7)
    assert done.after < done.before and done.steps <= 500


@pytest.mark.parametrize('unit', (1e-30, 1e-12, 1., 1e12, 1e30))
def test_finish_knows_no_unit(unit):
    "Multiplying the loss changes nothing"
    x = torch.linspace(-1, 1, 40, dtype=torch.float64)[:, None]
    def fitted(unit):
        set_seed(0)
        model = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1)).double()
        return finish(model, x, x**3, lambda out, y: unit*(out - y).square().mean(), steps=100).after/unit
    state = random_state()
    one, other = fitted(1.), fitted(unit)
    assert one < 1e-5 and math.isclose(one, other, rel_tol=0.5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 7, 60]), st.sampled_from([1e-3, 1., 1e4]))
def test_finish_never_worse(seed, steps, size):
    "Whatever the beginning, the loss is not higher after, and it is what the weights give"
    g = torch.Generator().manual_seed(seed)
    x, y = torch.randn(30, 2, generator=g, dtype=torch.float64)*size, torch.randn(30, 1, generator=g, dtype=torch.float64)*size
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    for p in model.parameters(): nn.init.normal_(p, 0, size, generator=g)
    done = finish(model, x, y, steps=steps)
    assert done.after <= done.before and math.isclose(nn.functional.mse_loss(model(x), y).item(), done.after, rel_tol=1e-9) and done.steps <= steps


@pytest.mark.parametrize('wall', (math.nan, math.inf, RangeError))
def test_finish_at_a_wall(wall):
    "A region where the loss is no number is left again"
    class Wall(nn.Module):
        def __init__(self): super().__init__(); self.w = nn.Parameter(torch.tensor([3., 1.], dtype=torch.float64))
        def forward(self, x):
            if self.w[0] < 2 and wall is RangeError: raise RangeError('too large')
            return torch.where(self.w[0] < 2, wall if wall is not RangeError else 0., self.w.sum()).expand(len(x), 1)
    model = Wall()
    done = finish(model, torch.zeros(3, 1), torch.zeros(3, 1, dtype=torch.float64), steps=120)
    assert done.after <= done.before == 16. and model.w.isfinite().all() and model.w[0] >= 2


def test_finish_refuses():
    model, x, y = nn.Linear(2, 1).double(), torch.zeros(3, 2), torch.zeros(3, 1)
    for change, message in ((dict(steps=0), 'steps=0'), (dict(history=0), 'history=0'), (dict(x=[[1, 2]]), 'x is a list'), (dict(y=None), 'y is a NoneType'), (dict(y=y*math.nan), 'the loss is nan'), (dict(loss=lambda out, y: -out.square().sum() - 1), 'the loss is -'), (dict(model=nn.Linear(2, 1).requires_grad_(False)), 'nothing to train')):
        with pytest.raises(TinyRPNError, match=re.escape(message)): finish(**{**dict(model=model, x=x, y=y), **change})
