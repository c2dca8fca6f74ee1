"Heads and models against an independent implementation, and as torch modules"
import copy
import json
import time
import tracemalloc

import numpy as np
import pytest
from conftest import within
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from tinyrpn.all import *
from tinyrpn.contraction import contraction_cost
from tinyrpn.core import FileError, ShapeError, TooLargeError, sizes_forced
from tinyrpn.model import CALLS, packaged_models


def taylor_head(m, n, norm='plain', d=2, **kwargs):
    D = TaylorExpansion(d).dim(m)
    post = None if norm == 'none' else nn.LayerNorm(D, elementwise_affine=norm == 'affine')
    return RPNHead(m, n, TaylorExpansion(d, post=post), IdentityReconciliation(), **kwargs)


def numpy_head(x, w, n, d, norm, eps=1e-5):
    "The definition, term by term, in float64"
    terms = [x]
    for _ in range(d - 1): terms.append(np.einsum('bi,bj->bij', terms[-1], x).reshape(len(x), terms[-1].shape[1]*x.shape[1]))
    kappa = np.concatenate(terms, 1)
    if norm != 'none': kappa = (kappa - kappa.mean(1, keepdims=True))/np.sqrt(kappa.var(1, keepdims=True) + eps)
    return np.mean([kappa @ row.reshape(n, -1).T for row in w], 0)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.integers(0, 4), st.integers(1, 3), st.sampled_from(['none', 'plain', 'affine']), st.sampled_from(['auto', 'dense']), st.integers(0, 2**31))
def test_head_equals_its_definition(m, n, d, batch, channels, norm, contraction, seed):
    x = np.random.default_rng(seed).normal(size=(batch, m))
    head = taylor_head(m, n, norm, d, channels=channels, contraction=contraction).double()
    out = head(torch.tensor(x)).detach().numpy()
    np.testing.assert_allclose(out, numpy_head(x, head.weight.detach().numpy(), n, d, norm), rtol=1e-9, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 5), st.sampled_from(['none', 'plain', 'affine']), st.integers(0, 2**31))
def test_closed_form_has_the_dense_gradients(m, n, batch, norm, seed):
    torch.manual_seed(seed)
    head = taylor_head(m, n, norm).double()
    other = copy.deepcopy(head); other.contraction = 'dense'
    x = torch.randn(batch, m, dtype=torch.float64)
    grads = []
    for h in (head, other):
        leaf = x.clone().requires_grad_()
        grads.append(torch.autograd.grad(h(leaf).square().sum(), [leaf, *h.parameters()]))
    for a, b in zip(*grads): torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_large_mean_does_not_cancel():
    "LayerNorm's statistics are taken in float64, so a large offset costs the closed form no more than the dense one"
    torch.manual_seed(0)
    head = taylor_head(20, 5)
    x = torch.rand(8, 20)*0.1 + 3
    exact = copy.deepcopy(head).double()(x.double())
    dense = copy.deepcopy(head); dense.contraction = 'dense'
    error, dense_error = (head(x) - exact).abs().max(), (dense(x) - exact).abs().max()
    assert error < 10*dense_error + 1e-5


def test_inputs_may_be_views():
    head = taylor_head(4, 3)
    wide = torch.randn(5, 9)
    for view in (wide[:, 1:5], wide[:, ::2][:, :4], wide[:4].T[:5, :4]): torch.testing.assert_close(head(view), head(view.contiguous()))


def test_second_derivatives():
    head = taylor_head(3, 2).double()
    assert torch.autograd.gradgradcheck(head, torch.rand(2, 3, dtype=torch.float64, requires_grad=True))


def test_gradients_add_up():
    head, x = taylor_head(3, 2), torch.randn(4, 3)
    head(x).sum().backward(); once = head.weight.grad.clone()
    head(x).sum().backward()
    torch.testing.assert_close(head.weight.grad, 2*once)


def test_module_habits():
    model = RPN([taylor_head(3, 4, 'affine', bias=True), taylor_head(4, 2)])
    x = torch.randn(5, 3)
    clone = copy.deepcopy(model)
    assert torch.equal(clone(x), model(x)) and clone.layers[0].heads[0].weight.data_ptr() != model.layers[0].heads[0].weight.data_ptr()
    torch.testing.assert_close(copy.deepcopy(model).double()(x.double()).float(), model(x), rtol=1e-4, atol=1e-5)
    assert {k.rpartition('.')[2] for k in model.state_dict()} == {'weight', 'bias'}
    meta = copy.deepcopy(model).to('meta'); assert meta(x.to('meta')).shape == (5, 2)
    ref = torch.export.export(model, (x,)); torch.testing.assert_close(ref.module()(x), model(x))


@pytest.mark.slow
def test_compile():
    "One graph, forward and backward, with the same results"
    model = RPN([taylor_head(3, 4), taylor_head(4, 2)])
    x = torch.randn(5, 3)
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)
    model(x).sum().backward(); compiled(x).sum().backward()
    torch.testing.assert_close(compiled._orig_mod.layers[0].heads[0].weight.grad, model.layers[0].heads[0].weight.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
def test_save_and_load_are_equal_to_the_bit(dtype):
    model = RPN([taylor_head(3, 4, 'affine', bias=True, output=[nn.GELU(), nn.BatchNorm1d(4)], remainder=LinearRemainder(bias=True, activation=nn.SiLU()), channels=2), taylor_head(4, 2)]).to(dtype)
    model(torch.randn(8, 3, dtype=dtype)); model.eval()
    model.save('m.safetensors')
    again = RPN.load('m.safetensors').eval()
    assert model.state_dict().keys() == again.state_dict().keys()
    for k, v in model.state_dict().items(): assert v.dtype == again.state_dict()[k].dtype and torch.equal(v, again.state_dict()[k])
    x = torch.randn(7, 3, dtype=dtype)
    assert torch.equal(model(x), again(x)) and again.config() == model.config()


def test_loading_leaves_the_random_state_alone():
    RPN([taylor_head(3, 2)]).save('m.safetensors')
    state = torch.get_rng_state(); RPN.load('m.safetensors'); assert torch.equal(state, torch.get_rng_state())


# ---- sizes are known before anything is allocated

def plan(expansion, reconciliation='identity', m=784, n=10, **rest):
    with torch.device('meta'): return RPN.from_config({'model': {'layers': [{'m': m, 'n': n, 'expansion': expansion, 'reconciliation': reconciliation, **rest}]}})


def written(path, config, signature='{}', **tensors):
    "A model file made by hand"
    from safetensors.torch import save_file
    with torch.device('meta'): model = RPN.from_config({'model': config})
    save_file({k: torch.zeros(v.shape, dtype=v.dtype) for k, v in model.state_dict().items()} | {k.replace('_', '.'): v for k, v in tensors.items()}, path, {'format': '1', 'config': json.dumps(config), 'signature': signature})
    return path


COSTED = [('taylor', 'identity', 784), ('taylor', 'dual_lphm', 784), ({'name': 'bspline', 't': 30}, 'lorr', 300), ({'name': 'bspline', 't': 30, 'post': 'Tanh'}, 'lorr', 300), ({'name': 'taylor', 'd': 3}, 'dual_lphm', 40), ('combinatorial', 'lorr', 100), ({'name': 'fourier', 'post': 'LayerNorm'}, 'lphm', 300)]
@pytest.mark.parametrize('expansion, psi, m', COSTED, ids=str)
@pytest.mark.parametrize('batch', [64, 5000])
@pytest.mark.parametrize('backward', [True, False])
def test_a_cost_within_limits_is_the_cost(expansion, psi, m, batch, backward):
    head = plan(expansion, psi, m).layers[0].heads[0]
    about = head.cost(batch, backward=backward)
    exact = contraction_cost(head.expansion, head.reconciliation, m, 10, batch, backward=backward)
    assert about['calls'] <= 3*CALLS and about['whole']
    assert about['flop'] == pytest.approx(exact['flop'], rel=0.1) and exact['bytes']/2 <= about['bytes'] <= 2*exact['bytes']
    if batch == 64 and m < 784: assert about['flop'] == exact['flop']


@pytest.mark.parametrize('expansion, psi, rest', [({'name': 'bspline', 't': 10**6}, 'lorr', {}), ({'name': 'combinatorial', 'd': 3}, 'constant', {}), ({'name': 'taylor', 'd': 4}, 'constant', {}), ({'name': 'taylor', 'd': 4}, 'hypernet', {'contraction': 'dense'}), ('bspline', 'dual_lphm', {'m': 9_999_991}),
                                                  ({'name': 'extended', 'composition_functions': ['bspline']*40}, 'lorr', {'width': 100}), ('taylor', 'lorr', {'width': 600}), ('taylor', 'identity', {'n': 10**7}), ({'name': 'bspline', 't': 10**6}, 'identity', {'n': 10**6})], ids=str)
def test_describing_takes_neither_time_nor_memory(expansion, psi, rest):
    model, start = plan(expansion, psi, **rest), time.time()
    tracemalloc.start()
    try: rows, peak = model.describe(10**6), tracemalloc.get_traced_memory()[1]
    finally: tracemalloc.stop()
    repr(model)
    assert within(time.time() - start, 20) and peak < 100e6 # tracing takes three times as long
    for row in rows[:-1]:
        empty = [k for k in ('MFLOP', 'dense MFLOP', 'MB', 'dense MB') if row[k] is None]
        assert bool(empty) == ('too long to count' in row['why'])


def test_equal_heads_are_counted_once(monkeypatch):
    seen = []
    monkeypatch.setattr(RPNHead, 'cost', lambda self, *a, old=RPNHead.cost, **k: seen.append(self) or old(self, *a, **k))
    rows = plan('taylor', m=5, n=5, width=50).describe()
    assert len(seen) == 2 and len({(r['MFLOP'], r['why']) for r in rows[:-1]}) == 1
    assert rows[-1]['MFLOP'] == pytest.approx(50*rows[0]['MFLOP'], rel=1e-3)


@pytest.mark.parametrize('expansion, psi', [({'name': 'taylor', 'd': 4}, 'constant'), ({'name': 'combinatorial', 'd': 3}, 'constant'), ({'name': 'bspline', 't': 10**6}, 'constant'), ({'name': 'taylor', 'd': 3, 'post': 'Tanh'}, 'constant')], ids=str)
def test_a_file_of_a_few_bytes_that_needs_gigabytes_is_refused(tmp_path, monkeypatch, expansion, psi):
    path = written(tmp_path/'m.safetensors', {'layers': [{'m': 784, 'n': 2, 'expansion': expansion, 'reconciliation': psi}]})
    monkeypatch.setattr('tinyrpn.config.memory_free', lambda device='cpu': 2**31)
    with pytest.raises(TooLargeError, match=r'GiB and 2\.0 GiB are free \(weights 0\.0 MiB, forward (at least )?[\d,.]+ GiB\).*sizes_forced') as e: RPN.load(path)
    assert path.stat().st_size < 1000 and str(path) in str(e.value)
    with sizes_forced(), pytest.warns(UserWarning, match='tried all the same'): assert 'RPN 784 -> 2' in repr(RPN.load(path))


@pytest.mark.parametrize('signature, words', [('{"shape": [%s]}' % ', '.join(['9'*4299]*900), 'at most 8 whole numbers'), ('{"mean": 1%s}' % ('0'*400), 'mean=a number of 400 digits'), ('{"std": 1%s}' % ('0'*400), 'std=a number of 400 digits'), ('{"shape": [true, 4]}', 'whole numbers'), ('{"shape": ["x", 1000000000000]}', 'whole numbers'),
                                              ('{"shape": [[1], 4]}', 'whole numbers'), ('{"shape": [1, 1, 1, 1, 1, 1, 1, 1, 4]}', 'at most 8'), ('{"shape": [100000001]}', 'from 1 to 100,000,000'), ('{"classes": 5}', 'text'), ('{"mean": true}', 'mean=True'), ('{"std": -1}', 'std > 0')])
def test_signatures_that_cannot_be(tmp_path, signature, words):
    path, start = written(tmp_path/'m.safetensors', {'dims': [4, 3], 'expansion': 'taylor'}, signature), time.time()
    with pytest.raises(ShapeError) as e: RPN.load(path)
    assert words in str(e.value) and within(time.time() - start, 2)


@pytest.mark.parametrize('kind, name, value', [('standard', 'scale', 0.), ('minmax', 'scale', -1.), ('quantile', 'knots', torch.linspace(1, 0, 101).repeat(4, 1))])
def test_a_scaler_that_no_data_could_have_given(tmp_path, kind, name, value):
    config = {'dims': [4, 2], 'expansion': 'taylor', 'scaler': kind}
    model = RPN.from_config({'model': config})
    model.save(tmp_path/'new.safetensors'); RPN.load(tmp_path/'new.safetensors') # not fitted yet
    model.scaler.fit(torch.rand(20, 4))
    model.save(tmp_path/'good.safetensors'); RPN.load(tmp_path/'good.safetensors')
    getattr(model.scaler, name).copy_(torch.as_tensor(value))
    model.save(tmp_path/'bad.safetensors')
    with pytest.raises(FileError, match=f'bad.safetensors: tensor scaler.{name} holds [\\d,]+ numbers that cannot be'): RPN.load(tmp_path/'bad.safetensors')


@pytest.mark.parametrize('path', ['x'*300, 'a\0b', 'x'*300 + '/y'])
def test_a_path_that_cannot_be_looked_up(path):
    with pytest.raises(FileError, match='cannot be looked up'): RPN.load(path)


def test_paths(tmp_path):
    from tinyrpn.core import path_exists
    (tmp_path/'f').write_text('x'); (tmp_path/'loop').symlink_to('loop')
    assert path_exists(tmp_path) and path_exists(str(tmp_path/'f')) and not path_exists(tmp_path/'g') and not path_exists(tmp_path/'f'/'g') and not path_exists('')
    for path in (tmp_path/'loop', None, 3, 'a\0b'):
        with pytest.raises(FileError, match='cannot be looked up'): path_exists(path)


def test_models_that_one_uses_are_not_refused():
    for name in packaged_models(): RPN.load(name)
    assert sum(p.numel() for p in RPN.from_config('mnist').parameters()) == 39_696_000
