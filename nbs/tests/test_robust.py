"What went wrong once: caches, scalers, limits, files from strangers"
import copy
import json
import sys
import time
from pathlib import Path

import pytest
from conftest import within
from forked import Forked
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tinyrpn.core import ParameterError, RangeError, ShapeError, TinyRPNError, TooLargeError, create
from tinyrpn.config import load_config
from tinyrpn.data import Batches
from tinyrpn.learner import Learner
from tinyrpn.model import RPN, RPNHead, RPNLayer
from tinyrpn.scaler import InputScaler


def head(expansion='bspline_expansion', m=4, n=3, psi='identity_reconciliation', **params):
    return RPNHead(m, n, create(expansion, **params), create(psi))


@pytest.mark.parametrize('first', ["torch.device('meta')", 'FakeTensorMode()'])
@pytest.mark.parametrize('name', ['bspline_expansion', 'combinatorial_expansion', 'linear_expansion'])
def test_no_cache_keeps_a_tensor_without_numbers(first, name):
    "In a process of its own, since caches last as long as it"
    code = f'''
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from tinyrpn.core import create
make = lambda: create({name!r}, **({{'pre_C': [[1., 2., 0., 1.]]*3}} if 'linear' in {name!r} else {{}}))
kappa = make()
with {first}:
    for use in (lambda x: kappa.expand(x), lambda x: kappa.lazy_expand(x).dot(torch.empty(2, kappa.dim(4)))): use(torch.empty(3, 4))
for e in (kappa, make()): assert e(torch.rand(2, 4)).isfinite().all()
'''
    Path('code.py').write_text(code)
    run = Forked('code.py')
    assert run.wait() == 0, run.said()[1][-800:]


@pytest.mark.parametrize('params', [dict(contraction='dense'), dict(expansion=create('bspline_expansion', post=torch.tanh)), dict(expansion=create('nested_expansion', composition_functions=['bspline', 'chebyshev']))])
def test_splines_under_autocast(params):
    h = RPNHead(**{**dict(m=4, n=3, expansion=create('bspline_expansion'), reconciliation=create('identity_reconciliation')), **params})
    x = torch.rand(2, 4)
    with torch.autocast('cpu', dtype=torch.bfloat16): low = h(x)
    torch.testing.assert_close(low.float(), h(x), rtol=0.05, atol=0.05)


def test_a_large_matrix_is_saved_and_loaded(tmp_path):
    model = RPN([head('linear_expansion', 400, 2, pre_C=torch.randn(400, 400))])
    model.save(tmp_path/'m.safetensors')
    x = torch.randn(3, 400)
    assert torch.equal(RPN.load(tmp_path/'m.safetensors')(x), model(x))


def test_a_fitted_scaler_stays_fitted_and_its_own():
    data = torch.rand(50, 4)*9
    for kind in ('standard', 'minmax', 'quantile'):
        scaler = InputScaler(kind, **({} if kind == 'standard' else {'target': (-1, 1)})).fit(data)
        one, two = RPN([head()], scaler=scaler), RPN([head()], scaler=scaler)
        for model in (one, two): assert torch.equal(model.scaler(data), scaler(data))
        two.scaler.fit(data*2)
        assert torch.equal(one.scaler(data), scaler(data))


@pytest.mark.parametrize('name,params,target', [('laguerre_expansion', {}, (0., 2.)), ('chi2_expansion', {}, (0.001, 2.001)), ('bspline_expansion', {'grid_range': (5, 6)}, (5., 6.)), ('taylor_expansion', {}, (-1., 1.)),
                                                ('extended_expansion', {'composition_functions': [{'name': 'bspline', 'grid_range': [5, 6]}, 'taylor']}, (5., 6.))])
def test_a_scaler_aims_at_the_domain(name, params, target):
    model = RPN([head(name, **params)], scaler='minmax')
    assert model.scaler.target == pytest.approx(target)
    data = torch.rand(40, 4)*100 - 50
    model.scaler.fit(data); model(data)
    assert all(share == 0 for share in model.outside().values())


def test_loaders_that_cannot_be_used_say_so():
    def generator():
        for _ in range(3): yield torch.rand(8, 4), torch.zeros(8).long()
    fit = lambda data, **kw: Learner(RPN([head()], **kw), data, device='cpu', progress=False).fit(2)
    with pytest.raises(ParameterError, match='one-shot iterator'): fit((generator(), None), scaler='minmax')
    with pytest.raises(ParameterError, match='no batches in epoch 2'): fit((generator(), None))
    with pytest.raises(ParameterError, match='loader is empty'): fit(([], None), scaler='minmax')
    with pytest.raises(ParameterError, match='without labels'): fit(([(torch.rand(8, 4), None)], None))
    assert len(fit((Batches(torch.rand(30, 4), torch.zeros(30).long(), 10), None), scaler='quantile')) == 2


@pytest.mark.parametrize('psi', ['hypernet_reconciliation', 'masking_reconciliation', 'random_matrix_adaption_reconciliation'])
def test_what_belongs_to_a_head_keeps_its_matrices(psi):
    h, x = head('taylor_expansion', psi=psi), torch.rand(2, 4)
    before = h(x)
    with pytest.raises(ShapeError, match='belongs to a head'): h.reconciliation(torch.rand(h.reconciliation.numel(2, 5)), 2, 5)
    other = RPNHead(4, 3, create('identity_expansion'), h.reconciliation)      # a second head makes its own
    assert torch.equal(h(x), before) and other(x).shape == (2, 3)


def test_overflow_in_a_remainder_and_nan_in_an_input_are_seen():
    h = RPNHead(4, 3, create('identity_expansion'), create('identity_reconciliation'), create('expansion_remainder', expansion={'name': 'taylor', 'd': 3}))
    with pytest.raises(RangeError): h(torch.full((2, 4), 1e20))
    for name in ('beta_wavelet_expansion', 'haar_wavelet_expansion', 'bspline_expansion'):
        e = create(name)
        e(torch.tensor([[float('nan')]]))
        assert e.outside() == 1
    assert create('beta_wavelet_expansion', alpha=2, beta=2)(torch.tensor([[float('nan')]])).isnan().all()
    assert create('reciprocal_expansion')(torch.zeros(1, 2).half()).isfinite().all()


HUGE = 10**400
@pytest.mark.parametrize('model', [
    {'expansion': {'name': 'bspline', 'd': 10**6}}, {'expansion': {'name': 'bspline', 't': 10**9}}, {'expansion': {'name': 'chebyshev', 'd': 10**6}}, {'expansion': {'name': 'fourier', 'N': 10**9}},
    {'expansion': {'name': 'gaussian_rbf', 'num_interval': 10**9}}, {'expansion': {'name': 'haar_wavelet', 't': 10**9}}, {'expansion': {'name': 'combinatorial', 'd': 3000, 'with_replacement': True}},
    {'expansion': {'name': 'combinatorial', 'd': 90, 'with_replacement': True}}, {'expansion': 'taylor', 'reconciliation': {'name': 'hypernet', 'hidden_dim': 10**9}}, {'expansion': 'taylor', 'reconciliation': {'name': 'hypernet', 'seed': 2**64}},
    {'expansion': 'taylor', 'scaler': {'kind': 'quantile', 'quantiles': 10**12}}, {'expansion': {'name': 'linear', 'c': HUGE}}, {'expansion': {'name': 'bspline', 't': HUGE}}, {'expansion': {'name': 'bspline', 'grid_range': [-1e308, 1e308]}},
    {'expansion': 'identity', 'reconciliation': 'constant', 'dims': [2, 10**18]}, {'expansion': 'identity', 'remainder': {'name': 'bspline', 'd': 400}}], ids=lambda m: json.dumps(m)[:60])
def test_absurd_values_are_refused_at_once(model):
    start = time.time()
    with pytest.raises(TinyRPNError) as e:
        built = load_config({'model': {'dims': [40, 2], **model}}).model()
        built(torch.rand(2, 40))
    assert within(time.time() - start, 8) and len(str(e.value)) < 700


def edited(path, tmp_path, **header):
    "A copy of a model file with other words in its header"
    with safe_open(path, 'pt') as f: tensors, meta = {k: f.get_tensor(k) for k in f.keys()}, dict(f.metadata())
    save_file(tensors, tmp_path/'edited.safetensors', {**meta, **header})
    return tmp_path/'edited.safetensors'


def test_a_file_cannot_write_to_the_terminal(tmp_path):
    RPN([head()]).save(tmp_path/'m.safetensors')
    evil = '\x1b[2J\n'
    config = json.dumps({'layers': [{'m': 4, 'n': 3, 'heads': [{'m': 4, 'n': 3, 'expansion': 'no_such_expansion'}]}]})
    for header in ({'format': evil}, {'plugins': json.dumps([evil, 'a b; rm -rf /', 'fine.module']), 'config': config}, {'signature': json.dumps({'classes': [evil, 'b', 'c']})}):
        with pytest.raises(TinyRPNError) as e: RPN.load(edited(tmp_path/'m.safetensors', tmp_path, **header))
        assert '\x1b' not in str(e.value) and 'rm -rf' not in str(e.value)
    assert 'fine.module' not in sys.modules
    with pytest.raises(TinyRPNError, match=r"plugins=\['fine.module'\]"): RPN.load(edited(tmp_path/'m.safetensors', tmp_path, plugins=json.dumps(['x y', 'fine.module']), config=config))


@pytest.mark.parametrize('name', ['', '.x', 5, None, 'a b', 'no_such_module_at_all', '__main__'])
def test_plugins_that_are_no_modules(name):
    with pytest.raises(ParameterError, match='plugins'): RPN.load('mnist_dual_lphm', plugins=[name])


def test_domain_error_within_transforms_says_so():
    e = create('legendre_expansion', domain='error')
    assert e(torch.rand(2, 3)).isfinite().all()
    with pytest.raises(TinyRPNError, match='torch.func'): torch.func.vmap(lambda x: e(x[None]))(torch.rand(2, 3))


def test_heads_in_one_pass_and_apart_count_the_same():
    layer = RPNLayer.repeat(3, m=4, n=2, expansion=create('bspline_expansion'), reconciliation=create('identity_reconciliation'))
    apart = copy.deepcopy(layer); apart.heads[1].register_forward_hook(lambda *_: None)
    x = torch.randn(20, 4)*2
    torch.testing.assert_close(layer(x), apart(x))
    assert layer.heads[0].outside() == apart.heads[2].outside() > 0
