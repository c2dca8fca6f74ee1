"Heads and models against an independent implementation, and as torch modules"
import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from tinyrpn.all import *


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
