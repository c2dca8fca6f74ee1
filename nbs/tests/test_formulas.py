"Formulas of models: every export is run, as a stranger would run it, and compared with the model; what has no formula is refused; nothing is changed by reading."
import copy
import math
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from fastcore.basics import camel2snake
from hypothesis import given, settings, strategies as st
from torch import nn

from tinyrpn import __version__
from tinyrpn.core import ParameterError, ShapeError, TinyRPNError, create, names, random_state, set_seed
from tinyrpn.expansion import TaylorExpansion
from tinyrpn.formulas import Formula, Tree, _EXPANSIONS, _names_of_steps, plain_names, steps_of, walked
from tinyrpn.model import RPN, RPNHead, RPNLayer


@pytest.fixture(autouse=True)
def same_dice():
    "The same random numbers whichever tests ran before"
    torch.manual_seed(0)


CC = shutil.which('cc') or shutil.which('gcc') or shutil.which('clang')
needs_cc = pytest.mark.skipif(CC is None, reason='no C compiler here')
RANGE = -1.3, 1.3


def head(expansion='taylor_expansion', reconciliation='identity_reconciliation', m=2, n=2, **kwargs):
    made = lambda part: create(part) if isinstance(part, str) else part
    return RPNHead(m, n, made(expansion), made(reconciliation), **kwargs)


def one(*args, scaler=None, seed=0, **kwargs):
    set_seed(seed)
    return settled(RPN([head(*args, **kwargs)], scaler=scaler))


def settled(model, seed=0):
    "In float64, with no parameter or statistic left at 0 or 1"
    set_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for p in model.parameters(): p.add_(0.2*torch.randn_like(p))
        for m in model.modules():
            if isinstance(m, nn.BatchNorm1d) and m.track_running_stats: m.running_mean.normal_(); m.running_var.uniform_(0.5, 2)
    if model.scaler is not None: model.scaler.fit(torch.rand(200, model.m, dtype=torch.float64)*torch.arange(1., model.m + 1) + 3)
    return model


def says(model, x):
    with torch.no_grad(): return model(torch.tensor(x)).numpy()


def relative(found, want): return (np.abs(found - want)/np.maximum(np.abs(want), 1e-3*np.abs(want).max(0))).max()


def run_in_c(text, x, n, folder, name='f'):
    "The C text behind a `main` of our own: numbers in, numbers out"
    (folder/'f.c').write_text(text)
    (folder/'main.c').write_text('#include <stdio.h>\nvoid %s(const double *x, double *y);\nint main(void){double x[%d], y[%d]; for(;;){for(int i=0;i<%d;i++) if(scanf("%%lf", x+i)!=1) return 0; %s(x, y); for(int j=0;j<%d;j++) printf("%%.17g ", y[j]);}}\n' % (name, x.shape[1], n, x.shape[1], name, n))
    subprocess.run([CC, '-std=c99', '-Wall', '-Wextra', '-Werror', 'f.c', 'main.c', '-o', 'f', '-lm'], cwd=folder, check=True)
    out = subprocess.run([str(folder/'f')], input='\n'.join(' '.join(map(repr, r)) for r in x.tolist()), capture_output=True, text=True, check=True).stdout
    return np.array(out.split(), float).reshape(len(x), n)


def run_in_python(text, x, n, folder):
    "The NumPy text in a Python of its own"
    (folder/'formula.py').write_text(text); np.save(folder/'x.npy', x)
    subprocess.run([sys.executable, '-c', "import numpy as np, formula; np.save('y.npy', formula.f(np.load('x.npy')))"], cwd=folder, check=True)
    return np.load(folder/'y.npy')


EXTENDED = lambda: create('extended_expansion', composition_functions=['bspline', {'name': 'taylor', 'd': 2}])
CASES = {
    **{k: (lambda k=k: one(k)) for k in ('identity_expansion', 'trigonometric_expansion', 'hyperbolic_expansion', 'gaussian_rbf_expansion', 'inverse_quadratic_rbf_expansion')},
    **{f'taylor {d}': (lambda d=d: one(create('taylor_expansion', d=d), bias=True)) for d in (1, 2, 3, 4)},
    **{k: (lambda k=k: one(create(f'{k}_expansion', d=5), bias=True)) for k in 'chebyshev legendre gegenbauer jacobi hermite laguerre bessel reverse_bessel fibonacci lucas'.split()},
    'orthogonal parameters': lambda: one(create('extended_expansion', composition_functions=[{'name': 'gegenbauer', 'alpha': 0.3, 'd': 3}, {'name': 'jacobi', 'alpha': 0.5, 'beta': 2., 'd': 4}, {'name': 'laguerre', 'alpha': 0.7, 'd': 3, 'domain': 'squash'}])),
    'fourier': lambda: one(create('fourier_expansion', N=3, P=1.7)), 'linear C': lambda: one(create('linear_expansion', pre_C=[[1., 2.], [3., 4.], [5., 6.]])),
    **{f'bspline {d} {where}': (lambda d=d, where=where: one(create('bspline_expansion', d=d, t=4, domain=where))) for d in (0, 1, 2, 3, 5) for where in ('clamp', 'extend', 'squash')},
    'bspline range': lambda: one(create('bspline_expansion', grid_range=(0.2, 0.9))), 'chebyshev clamp': lambda: one(create('chebyshev_expansion', d=4, domain='clamp')), 'chebyshev squash': lambda: one(create('chebyshev_expansion', d=4, domain='squash')),
    'extended': lambda: one(EXTENDED(), 'lorr_reconciliation'), 'nested': lambda: one(create('nested_expansion', composition_functions=['bspline', {'name': 'taylor', 'd': 2}]), n=1),
    'nested of waves': lambda: one(create('nested_expansion', composition_functions=['trigonometric', {'name': 'gaussian_rbf', 'num_interval': 3}])),
    'LayerNorm': lambda: one(create('taylor_expansion', post=nn.LayerNorm(6, elementwise_affine=False))), 'affine LayerNorm': lambda: one(create('extended_expansion', composition_functions=['bspline', 'fourier'], post=nn.LayerNorm(36))),
    'pre and post': lambda: one(create('taylor_expansion', pre=[nn.LayerNorm(2), 'tanh'], post=['sigmoid', nn.LayerNorm(6)])), 'BatchNorm': lambda: one('taylor_expansion', output=nn.BatchNorm1d(2)),
    'channels': lambda: one('taylor_expansion', 'lorr_reconciliation', channels=3, bias=True),
    'minmax': lambda: one('bspline_expansion', scaler='minmax'), 'standard': lambda: one('taylor_expansion', scaler='standard'),
    'deep': lambda: settled(RPN([RPNLayer([head(n=3), head('bspline_expansion', n=3)], 'average'), head(EXTENDED(), 'lorr_reconciliation', m=3, bias=True, remainder=create('linear_remainder', pre='SiLU')), head(m=2, output=[nn.LayerNorm(2), 'softplus'])], scaler='minmax')),
    'linear layers': lambda: settled(RPN([head('identity_expansion', n=20, bias=True), head('identity_expansion', m=20, bias=True)])),
}


@pytest.mark.parametrize('case', CASES)
def test_every_export_computes_what_the_model_computes(case, tmp_path):
    model = CASES[case]()
    f = model.formula(ranges=None if model.scaler is not None else RANGE, most=20_000)
    low, high = np.array(f.ranges).T
    x = np.random.default_rng(9).uniform(low - 0.2, high + 0.2, (500, model.m)) # other points than those of the certificate, and a little outside
    want, n = says(model, x), model.n
    assert relative(f(x), want) < 1e-8 and f.certificate.relative < 1e-8 and f.certificate.points == 1000
    assert relative(walked(f.numpy(), x), want) < 1e-8
    assert relative(run_in_python(f.numpy(), x[:50], n, tmp_path), want[:50]) < 1e-8
    if CC: assert relative(run_in_c(f.c(), x, n, tmp_path), want) < 1e-8
    if f.operations < 700: assert f.sympy(5).certificate.relative < 1e-8
    assert f.latex(17).certificate.relative < 1e-8 and f.rewritten()(x) == pytest.approx(f(x), rel=1e-9, abs=1e-12)


@needs_cc
def test_the_issue_asks_for_1e_6_in_c(tell, tmp_path):
    worst = 0.
    for case in ('extended', 'deep', 'nested'):
        model = CASES[case]()
        f = model.formula(ranges=None if model.scaler is not None else RANGE, most=20_000)
        x = np.random.default_rng(1).uniform(*np.array(f.ranges).T, (2000, 2))
        worst = max(worst, relative(run_in_c(f.c('g'), x, model.n, tmp_path, 'g'), says(model, x)))
    assert worst < 1e-6
    tell(f'C against model, three models, 2,000 points each: largest relative error {worst:.1e}')


@needs_cc
def test_the_check_in_the_c_text_passes_and_can_fail(tmp_path):
    def check(text):
        (tmp_path/'f.c').write_text(text)
        subprocess.run([CC, '-std=c99', '-Wall', '-Wextra', '-Werror', '-DCHECK', 'f.c', '-o', 'f', '-lm'], cwd=tmp_path, check=True)
        return subprocess.run([str(tmp_path/'f')], capture_output=True, text=True)
    text = CASES['taylor 3']().formula('length for').c()
    good, bad = check(text), check(re.sub(r'out\[1\] = ', 'out[1] = 0.001 + ', text))
    assert good.returncode == 0 and 'at 20 points' in good.stdout and bad.returncode == 1
    assert check(one('taylor_expansion', 'zero_reconciliation').formula().c()).returncode == 0 # no input is used


# ---- the parts

@pytest.mark.parametrize('name', names('reconciliation'))
def test_every_reconciliation(name): assert one('taylor_expansion', name, n=4, channels=2).formula().certificate.absolute < 1e-12


@pytest.mark.parametrize('remainder', ['zero_remainder', 'one_remainder', create('constant_remainder', c=2.), create('identity_remainder', activation='sigmoid'), create('linear_remainder', bias=True, pre='SiLU'), create('expansion_remainder', expansion='chebyshev', bias=True), create('bspline_remainder')], ids=str)
def test_every_remainder(remainder): assert one(remainder=create(remainder) if isinstance(remainder, str) else remainder).formula().certificate.absolute < 1e-12


@pytest.mark.parametrize('name', [n for n in names('fusion') if n not in ('median_fusion', 'metric_fusion')])
@pytest.mark.parametrize('heads', [1, 3])
def test_every_fusion(name, heads):
    fusion = {'name': name, 'weights': [0.5, -2., 1.][:heads]} if name == 'weighted_summation_fusion' else name
    assert settled(RPN([RPNLayer([head() for _ in range(heads)], fusion)])).formula().certificate.absolute < 1e-11


@pytest.mark.parametrize('function', ['tanh', 'Sigmoid', 'relu', torch.relu, torch.tanh, 'torch.nn.functional.silu', 'silu', 'softplus', nn.Softplus(beta=3.), 'softsign', nn.LeakyReLU(0.3), nn.ELU(0.7), nn.Hardtanh(-0.2, 0.1), 'relu6', 'tanhshrink', 'softmax', nn.Dropout(0.5), nn.Identity(), nn.LayerNorm(2)], ids=lambda f: getattr(f, '__name__', str(f)))
def test_every_function(function): assert one(output=function).formula().certificate.absolute < 1e-8


@pytest.mark.parametrize('name', [n for n in names('expansion') if 'nested' not in n and 'extended' not in n])
def test_an_expansion_has_a_formula_or_is_refused_by_name(name):
    params = {'linear_expansion': {'c': 2.}}.get(name, {})
    model = one(create(name, **params))
    if type(model.layers[0].heads[0].expansion).__name__ in _EXPANSIONS: assert model.formula(ranges=(0.1, 0.9)).certificate.absolute < 1e-9
    else:
        with pytest.raises(ParameterError, match=f'{name} cannot be written as a formula; bessel, bspline'): model.formula(ranges=(0.1, 0.9))


def test_the_issue_list_of_expansions():
    assert {'identity', 'taylor', 'chebyshev', 'legendre', 'hermite', 'laguerre', 'jacobi', 'gegenbauer', 'bessel', 'trigonometric', 'fourier', 'bspline', 'gaussian_rbf', 'extended', 'nested'} <= {camel2snake(e).removesuffix('_expansion') for e in _EXPANSIONS}


class OwnTaylor(TaylorExpansion, abstract=True): "A plugin's, which may compute anything"


def test_what_has_no_formula_is_refused():
    set_seed(0)
    for model, message in ((one(output='gelu'), 'GELU cannot be written'), (one(output=nn.PReLU()), 'PReLU cannot be written'), (one(output=torch.nn.functional.gelu), 'gelu cannot be written'), (one(scaler='quantile'), "scaler='quantile' cannot be written"),
                           (settled(RPN([RPNLayer([head(), head(), head()], 'median')])), 'median_fusion with median cannot be written'), (one(output=nn.BatchNorm1d(2, track_running_stats=False)), 'without running statistics'),
                           (one(output=nn.Softmax(0)), 'dim=0 runs over the batch')):
        with pytest.raises(ParameterError, match=re.escape(message)): model.formula()
    own = one(); own.layers[0].heads[0].expansion.__class__ = OwnTaylor
    with pytest.raises(ParameterError, match='cannot be written as a formula'): own.formula()
    broken = one()
    with torch.no_grad(): broken.layers[0].heads[0].weight.fill_(math.nan)
    with pytest.raises(TinyRPNError): broken.formula()
    with pytest.raises(ParameterError, match='scaler is not fitted'): RPN([head()], scaler='minmax').formula()


@pytest.mark.parametrize('bad', [dict(most=0), dict(most=1.5), dict(points=1), dict(seed=-1), dict(names='a'), dict(names=['a', 'b', 'c']), dict(ranges=(1, 1)), dict(ranges=[(0, 1)]), dict(ranges=[(0, 1), (0, math.inf)]), dict(ranges='ab'), dict(ranges=3), dict(ranges=[])], ids=str)
def test_bad_arguments_are_refused(bad):
    with pytest.raises(ParameterError): one().formula(**bad)


def test_a_long_formula_is_refused_with_its_length():
    model = one()
    n = model.formula().operations
    with pytest.raises(ParameterError, match=f'it has {n} operations; most={n} or more'): model.formula(most=n - 1)
    assert model.formula(most=n).operations == n
    with pytest.raises(ParameterError, match='its matrices have 4,923,520 numbers'): RPN.from_config({'model': {'layers': [{'m': 784, 'n': 8, 'expansion': {'name': 'taylor', 'd': 2}, 'reconciliation': {'name': 'lorr', 'r': 1}}]}}).formula()
    with pytest.raises(ParameterError, match='more than'): one(create('nested_expansion', composition_functions=['trigonometric', 'trigonometric', {'name': 'taylor', 'd': 2}], post=nn.LayerNorm(1332)), 'lorr_reconciliation', m=4, n=1).formula(most=27)


# ---- reading

def test_reading_changes_nothing():
    for case in ('deep', 'BatchNorm', 'bspline 3 clamp', 'standard'):
        model = CASES[case]()
        x = torch.full((3, 2), 5., dtype=torch.float64)
        model.train()
        model.reset_outside()
        before, state, flags, parts = copy.deepcopy(model.state_dict()), random_state(), [m.training for m in model.modules()], [id(m) for m in model.modules()]
        f = model.formula(ranges=(-9, 9), most=20_000)
        f.latex(), f.numpy(), f.c(), f.pruned(0.5), f.prices()
        if case == 'standard': f.simplified(), f.sympy()
        after = random_state()
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and list(before) == list(model.state_dict()) and flags == [m.training for m in model.modules()] and parts == [id(m) for m in model.modules()]
        assert torch.equal(state['torch'], after['torch']) and state['python'] == after['python'] and np.array_equal(state['numpy'][1], after['numpy'][1]) and state['numpy'][2:] == after['numpy'][2:]
        assert all(p.grad is None and p.requires_grad for p in model.parameters()) and not model.outside() and {p.dtype for p in model.parameters()} == {torch.float64}


def test_the_certificate_is_the_error_that_anyone_would_measure():
    model = CASES['extended']()
    f = model.formula(ranges=(-0.5, 0.25), points=300, seed=4)
    x = np.random.default_rng(4).uniform((-0.5, -0.5), (0.25, 0.25), (300, 2))
    rough = f.rounded(2)
    error = np.abs(rough(x) - says(model, x))
    assert rough.certificate.absolute == pytest.approx(error.max(), rel=1e-9) and rough.certificate.relative == pytest.approx(relative(rough(x), says(model, x)), rel=1e-9) and error.max() > 1e-4
    for text in (rough.numpy(), rough.c(), f.latex(2)):
        assert f'{error.max():.2e}' in text and 'range: x0 in [-0.5, 0.25], x1 in [-0.5, 0.25]' in text and f'tinyrpn {__version__}' in text and 'at 300 random points' in text and '(float64)' in text
    assert f.rounded(17).certificate.absolute < 1e-13 and f.rounded(6).certificate.absolute < rough.certificate.absolute/100


def test_a_model_in_single_precision_says_so():
    set_seed(0)
    model = RPN([head(EXTENDED())])
    f = model.formula()
    assert f.certificate.dtype == 'float32' and f.certificate.absolute < 1e-5 and '(float32)' in f.c() and model.double().formula().certificate.absolute < 1e-13


def test_the_range_follows_the_scaler_and_the_domain():
    assert one('taylor_expansion').formula().ranges == [(-1., 1.)]*2 and one(create('bspline_expansion', grid_range=(2, 5))).formula().ranges == [(2., 5.)]*2
    model = one('bspline_expansion', scaler='minmax')
    x = torch.rand(100, 2, dtype=torch.float64)*7 + 2; model.scaler.fit(x)
    assert np.allclose(model.formula().ranges, torch.stack([x.amin(0), x.amax(0)], 1))
    assert one('laguerre_expansion').formula().ranges == [(0., 2.)]*2 and one().formula(ranges={'a': (0, 1), 'b': (2, 3)}).ranges == [(0., 1.), (2., 3.)]


HOSTILE = ['*/ system("rm"); /*', '\n#include <evil>', '__import__("os")', 'x; import os', 'def', 'double', 't1', 'np', 'in', '0', '', '\\input{/etc/passwd}', 'ä', 'a'*500]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(HOSTILE), st.text(max_size=30)), min_size=1, max_size=8))
def test_names_are_safe(given_names):
    made = plain_names(given_names, len(given_names))
    assert len(set(made)) == len(made) and all(re.fullmatch('[A-Za-z][A-Za-z0-9_]*', n) and not re.fullmatch(r't\d+', n) for n in made)


def test_texts_with_hostile_names_compute_the_same(tmp_path):
    model = one('bspline_expansion', m=len(HOSTILE))
    f = model.formula(HOSTILE, most=10_000)
    x = np.random.default_rng(0).uniform(-1, 1, (20, len(HOSTILE)))
    assert relative(run_in_python(f.numpy(), x, 2, tmp_path), says(model, x)) < 1e-8
    if CC: assert relative(run_in_c(f.c(), x, 2, tmp_path), says(model, x)) < 1e-8
    for text in (f.numpy(), f.c(), f.latex()):
        assert 'system(' not in text and 'evil' not in text.replace('include_evil', '').replace(r'include\_evil', '') and '/etc' not in text and text.isascii()
    for name in ('', 'main', 'x', '1f', 'f g', None, 3, 'sin', 'f;'):
        with pytest.raises(ParameterError, match='letters, digits and _'): f.numpy(name)
        with pytest.raises(ParameterError, match='letters, digits and _'): f.c(name)


@pytest.mark.parametrize('text', ['import os', 'os.system("x")', '__import__("os")', 'np.load("x")', 'columns.tofile("x")', 'open("x")', '(lambda: 1)()', '"text"', '[v for v in columns]'])
def test_the_walk_runs_nothing_else(text):
    with pytest.raises((ParameterError, KeyError, ValueError, AttributeError)): walked(f'def f(columns):\n    t0 = {text}\n    return t0' if text != 'import os' else 'import os\nos.x', np.zeros((2, 2)))


# ---- algebra

def polynomials():
    "A recipe for an expression of two inputs"
    return st.recursive(st.one_of(st.sampled_from(['x', 'y']), st.integers(-3, 3)), lambda inner: st.tuples(st.sampled_from('+*-'), inner, inner), max_leaves=8)


def built(recipe, t):
    if recipe in ('x', 'y'): return t.x('xy'.index(recipe))
    if isinstance(recipe, int): return t.number(recipe)
    op, a, b = recipe
    a, b = built(a, t), built(b, t)
    return t.mul(a, b) if op == '*' else t.add([(1., a), (1. if op == '+' else -1., b)])


@settings(max_examples=150, deadline=None)
@given(polynomials())
def test_the_tree_agrees_with_sympy(recipe):
    import sympy as sp
    x, y = sp.symbols('x y', real=True)
    def theirs(r): return {'x': x, 'y': y}.get(r) if isinstance(r, str) else sp.Integer(r) if isinstance(r, int) else {'+': lambda a, b: a + b, '-': lambda a, b: a - b, '*': lambda a, b: a*b}[r[0]](theirs(r[1]), theirs(r[2]))
    truth = sp.expand(theirs(recipe))
    points = np.random.default_rng(0).integers(-4, 5, (6, 2)).astype(float)
    want = np.array([[float(truth.subs({x: a, y: b}))] for a, b in points.tolist()])
    for expand in (False, True):
        f = Formula([built(recipe, Tree(10_000, expand))], 'xy', [(-4, 4)]*2, points, want)
        assert np.array_equal(f(points), want) and np.array_equal(walked(f.numpy(), points), want) and sp.expand(f.sympy(6)[0] - truth) == 0
        if expand: assert sum(len(n.args) + bool(n.data[0]) for n in f.outputs if n.kind == 'sum') in (0, 1, len(sp.Add.make_args(truth))) # as many terms as sympy has
    assert f.simplified()(points) == pytest.approx(want)


def test_equal_steps_are_shared():
    model = one(create('nested_expansion', composition_functions=['trigonometric', {'name': 'taylor', 'd': 2}]), n=3)
    f = model.formula()
    assert len({(n.kind, n.args, n.data) for n in steps_of(f.outputs)}) == len(steps_of(f.outputs)) and f.c().count('sin(x0)') == 1 and f.numpy().count('np.sin(x0)') == 1
    assert len(_names_of_steps(f.outputs)) >= 6
    assert 2*2 + 2 + 2 == CASES['linear layers']().formula().operations # two linear maps are one


@pytest.mark.parametrize('text,power', [('(x+y)**2', 2), ('(x+y)**3', 3)])
def test_a_polynomial_in_the_span_is_found_exactly(text, power):
    "Solved by least squares here, so that only the reading is tested"
    import sympy as sp
    model = one(create('taylor_expansion', d=power), n=1, bias=True)
    x = torch.rand(400, 2, dtype=torch.float64)
    with torch.no_grad():
        K = torch.cat([model.layers[0].heads[0].expansion(x), torch.ones(400, 1, dtype=torch.float64)], 1)
        w = torch.linalg.lstsq(K, x.sum(1, keepdim=True)**power, driver='gelsd').solution[:, 0]
        model.layers[0].heads[0].weight.copy_(w[None, :-1]); model.layers[0].heads[0].bias.copy_(w[-1:])
    f = model.formula('x y', ranges=(0, 1)).simplified(6)
    a, b = sp.symbols('x y', real=True)
    assert sp.expand(f.sympy()[0] - (a + b)**power) == 0 and f.certificate.absolute < 1e-6


# ---- pruning

def test_prices_are_what_brute_force_finds():
    model = one(create('taylor_expansion', d=2), n=1, bias=True)
    f = model.formula()
    s = f.outputs[0]
    found = {i: loss for (n, i), loss in f.effects()}
    monomials = [f.x[:, 0], f.x[:, 1], f.x[:, 0]**2, f.x[:, 0]*f.x[:, 1], f.x[:, 1]**2]
    for i, (c, v) in enumerate(zip(s.data[1:], monomials)): assert found[i] == pytest.approx(c**2*v.var()/f.y.var(), rel=1e-6)
    first = min(found, key=found.get)
    assert f.path()[1].loss == pytest.approx(found[first], rel=1e-9) and f.path()[1].terms == 4


@pytest.mark.parametrize('case', ['taylor 3', 'extended', 'deep', 'LayerNorm', 'gaussian_rbf_expansion'])
def test_the_path_is_measured_and_gets_shorter(case):
    model = CASES[case]()
    f = model.formula(most=20_000)
    path = f.path(rows=12)
    y = says(model, f.x)
    assert path[0].formula is f and path[0].loss < 1e-20 and (path[-1].terms == 0 or math.isinf(path[-1].formula.effects()[0][1])) and all(a.terms > b.terms for a, b in zip(path, path[1:]))
    for p in path[::4]:
        if math.isfinite(p.loss): assert p.loss == pytest.approx(((p.formula(f.x) - y)**2).mean(0) @ (1/y.var(0))/len(y[0]), rel=1e-6, abs=1e-20) # below it both are squares of rounding errors, as for the first loss above
    assert all(path[i].formula.operations <= f.operations for i in range(len(path)))
    for tolerance in (1e-3, 1e-1): assert ((f.pruned(tolerance)(f.x) - y)**2).mean(0) @ (1/y.var(0))/len(y[0]) <= tolerance*1.0001
    assert f.pruned(1e-1).operations <= f.pruned(1e-3).operations


def test_prices_on_data_and_bad_shapes():
    f = CASES['taylor 2']().formula()
    table = f.prices(f.x, f.y)
    assert float(table[0]['error on the data']) < 1e-20 and table[0]['terms'] == len(f.effects())
    for bad in (f.x[:, :1], f.x[0], np.zeros((2, 3))):
        with pytest.raises(ShapeError, match=r'\(N, 2\) is needed'): f(bad)
    with pytest.raises(ParameterError, match='both are needed'): f.prices(f.x)


def test_without_sympy_it_says_what_to_install(monkeypatch):
    f = CASES['taylor 2']().formula()
    monkeypatch.setitem(sys.modules, 'sympy', None)
    with pytest.raises(ParameterError, match=r'tinyrpn\[formulas\]'): f.sympy()


def test_latex_is_balanced_and_short():
    for case in ('deep', 'pre and post', 'bspline 3 extend', 'affine LayerNorm'):
        text = CASES[case]().formula('length_of_it y', most=20_000).latex()
        body = text[text.index('\\begin'):]
        assert body.count('{') == body.count('}') and body.count('\\left') == body.count('\\right') and body.count('\\begin{cases}') == body.count('\\end{cases}') and '+ -' not in body and 'nan' not in body
        assert all(len(n.replace('.', '').lstrip('0')) <= 4 for n in re.findall(r'\d+\.\d+', body)) and r'\mathrm{length\_of\_it}' in body
