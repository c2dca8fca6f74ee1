"Numbers that hold: the bound on every rule, inputs drawn to break it, gradients, threads, precisions, training that repeats itself."
import copy
import math
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from torch import nn

from tinyrpn.all import *
from tinyrpn.checks import example, points
from tinyrpn.core import registry
from tinyrpn.data import Batches
from tinyrpn.expansion import as_expansion

C, EPS, TINY, MOST = 8, 2**-23, 2**-126, torch.finfo(torch.float32).max
SPECS = {'identity': 'identity', 'taylor 1': {'name': 'taylor', 'd': 1}, 'taylor 2': 'taylor', 'taylor 3': {'name': 'taylor', 'd': 3}, 'linear': 'linear', 'bspline': 'bspline', 'fourier': {'name': 'fourier', 'N': 2}, 'chebyshev': 'chebyshev', 'rbf': 'gaussian_rbf',
         'side by side': {'name': 'extended', 'composition_functions': ['identity', 'taylor']}, 'spline beside taylor': {'name': 'extended', 'composition_functions': [{'name': 'bspline', 't': 1, 'd': 1}, 'taylor']}, 'nested': {'name': 'nested', 'composition_functions': ['linear', 'taylor']}}
PSIS = {'identity': lambda: IdentityReconciliation(), 'lorr': lambda: LorrReconciliation(2), 'hm': lambda: HmReconciliation(), 'lphm': lambda: LphmReconciliation(r=2), 'dual lphm': lambda: DualLphmReconciliation(r=2), 'dual lphm in one': lambda: DualLphmReconciliation(1, 1, 2), 'copies': lambda: DuplicatedPaddingReconciliation(1),
        'copies on the diagonal': lambda: DuplicatedDiagonalPaddingReconciliation(1), 'adaption': lambda: RandomMatrixAdaptionReconciliation(seed=1), 'hypernet': lambda: HypernetReconciliation(l=5, hidden_dim=7, seed=1), 'low-rank hypernet': lambda: RandomMatrixHypernetReconciliation(l=5, hidden_dim=7, seed=1),
        'mask': lambda: MaskingReconciliation(), 'constant': lambda: ConstantReconciliation(2.), 'eye': lambda: ConstantEyeReconciliation()}
NORMS = 'none', 'plain', 'affine'
every_rule = lambda f: pytest.mark.parametrize('spec', SPECS)(pytest.mark.parametrize('psi', PSIS)(f))


def pair(spec, psi, m, n, norm='none'):
    "(expansion, perhaps with a LayerNorm, reconciliation), ready for m inputs and n outputs"
    kappa, psi = as_expansion(SPECS[spec]), PSIS[psi]()
    if norm != 'none':
        kappa.post.append(nn.LayerNorm(kappa.dim(m), elementwise_affine=norm == 'affine'))
        for p in kappa.post.parameters(): nn.init.uniform_(p, -1, 1)
    psi.prepare(n, kappa.dim(m))
    return kappa, psi


# ---- the bound

def magnitude(psi, w, n, D):
    "W bar: psi(w) with the absolute values of its factors, in float64"
    fixed = lambda: [v.abs() for v in psi.fixed(w, n, D)]
    if psi.name == 'random_matrix_adaption_reconciliation': A, B = fixed(); return (w[:n, None].abs()*A*w[n:].abs()) @ B
    if psi.name == 'hypernet_reconciliation':
        U1, b1, *_ = psi.fixed(w, n, D)
        return ((w @ U1.T + b1).sigmoid() @ fixed()[2].T + fixed()[3]).view(n, D)
    if psi.name == 'random_matrix_hypernet_reconciliation':
        P, Q, *_ = psi.fixed(w, n, D)
        return ((w @ P @ Q.T).sigmoid() @ fixed()[2] @ fixed()[3].T).view(n, D)
    return psi(w.abs(), n, D).abs()


def lengths(kappa, psi, x, w, n):
    "The sums of the bound where a correlation is done by FFT: a row of K times a row of T counts with the product of their lengths"
    factor = lambda A, B: B.abs() if A is None else A.abs() @ B.abs()
    P, Q, S, T = psi.factors(w, n, kappa.dim(x.shape[1]))
    u = torch.cat([torch.ones(len(x), 1), x], 1).abs()
    rows = torch.maximum(u[:, :-1], u[:, 1:])*x.norm(dim=1, keepdim=True)
    T = T.norm(dim=1, keepdim=True)
    return torch.einsum('pq,bq,s->bps', factor(P, Q), rows, (T if S is None else S.abs() @ T)[:, 0]).flatten(1)


def expanded(kappa, x):
    "kappa(x) in float64: exact where it is a polynomial, else of the numbers in float32, since what a spline rounds is not the rule's doing"
    if kappa.name == 'extended_expansion': return torch.cat([expanded(e, x) for e in kappa.composition_functions], 1)
    if kappa.name in ('identity_expansion', 'linear_expansion', 'taylor_expansion', 'nested_expansion'): return kappa.double()(x.double())
    try: return kappa(x).double()
    except RangeError: return kappa.double()(x.double()) # weights of 0 may meet what is too large: then float64 says what is right

class Exact:
    "<kappa(x), psi(w)> in float64, and what an error may be"
    def __init__(self, kappa, psi, x, w, n):
        self.bare, norm, x, w = copy.deepcopy(kappa), kappa.post[0] if len(kappa.post) else None, x.detach(), w.detach()[0]
        self.bare.post, rule = Functions(None), contraction_rule(kappa, psi, x.shape[1], n).name
        K = expanded(self.bare, x)
        D, psi = K.shape[1], copy.deepcopy(psi).double()
        mean, rstd = (0., 1.) if norm is None else (K.mean(1, keepdim=True), (K.var(1, correction=0, keepdim=True) + norm.eps).rsqrt())
        scale, shift = ((torch.ones(D), torch.zeros(D)) if norm is None or norm.weight is None else (norm.weight.detach(), norm.bias.detach()))
        scale, shift = scale.double(), shift.double()
        W, bar, most = psi(w.double(), n, D).detach(), magnitude(psi, w.double(), n, D).detach(), magnitude(psi, w.double().abs().clamp(min=1), n, D).detach().clamp(min=1)
        spread = K.abs().mean(1, keepdim=True)
        middle = 0. if norm is None else abs(mean) + 2**-28*spread if kappa.lazy(x).structured else spread # sums in float64 round too; torch's own LayerNorm has the mean in float32
        sizes = K.abs() + middle
        self.K, self.rstd, self.sizes = K, rstd, sizes
        self.value = ((K - mean)*rstd*scale + shift) @ W.T
        sums = lengths(self.bare, psi, self.inner(x.double()), w.double(), n) + middle*bar.sum(1) if 'correlation' in rule else (sizes*scale.abs()) @ bar.T
        self.largest = ((sizes + 1)*scale.abs().clamp(min=1)) @ most.T # what small numbers are multiplied by at most
        self.on_the_way = (sizes.max() + 1)*scale.abs().max().clamp(min=1)*most.sum(1).max() # W x comes before u' (W x): the largest of each may meet
        self.error = C*EPS*(rstd*sums + shift.abs() @ bar.T) + TINY*(rstd*self.largest)
    def inner(self, x): # what the last of nested expansions sees
        for e in list(getattr(self.bare, 'composition_functions', ()))[:-1]: x = e.double()(x)
        return x


KINDS = 'noise', 'constant', 'cluster', 'one step', 'signs', 'one hot', 'all sizes', 'zeros'

def hard(kind, batch, m, size):
    "Inputs that are unpleasant, of about this size"
    z = torch.randn(batch, m, dtype=torch.float64)
    x = {'noise': lambda: z, 'constant': lambda: torch.ones(batch, m), 'cluster': lambda: 1 + 1e-6*z, 'one step': lambda: 1 + EPS*(z > 0.5), 'signs': lambda: (-1.)**torch.arange(m).expand(batch, m), 'one hot': lambda: torch.eye(m)[torch.randint(m, (batch,))],
         'all sizes': lambda: z.sign()*10**(45*torch.rand(batch, m, dtype=torch.float64) - 30)/max(size, 1e-8), 'zeros': lambda: 0*z}[kind]()
    return (x*size).clamp(-MOST, MOST).float()

def weights(how, psi, kappa, x, n, size):
    "Parameters: noise; only where kappa(x) is small or 0; such that they cancel"
    w = torch.randn(1, psi.numel(n, kappa.dim(x.shape[1])))
    if psi.name == 'identity_reconciliation' and how != 'noise':
        w, K = w.view(n, -1), kappa.expand(x.clamp(-1e9, 1e9))[0].abs()
        if how == 'elsewhere': w = w*(K <= K.median())
        else: w = torch.stack([w[:, 0::2].repeat_interleave(2, 1)[:, :len(K)]]).squeeze(0)*torch.cat([torch.tensor([1., -1.])]*(len(K)//2 + 1))[:len(K)] if len(K) > 1 else w
    return (w.reshape(1, -1)*size).contiguous()

@st.composite
def hard_cases(draw):
    "(kappa, psi, x, w, n), in float32"
    m, n, batch = draw(st.integers(1, 9)), draw(st.sampled_from([1, 2, 4, 6])), draw(st.sampled_from([1, 1, 3]))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    kappa, psi = pair(draw(st.sampled_from(list(SPECS))), draw(st.sampled_from(list(PSIS))), m, n, draw(st.sampled_from(NORMS)))
    size = draw(st.sampled_from([1e-44, 1e-30, 1e-20, 1e-10, 1e-5, 1e-2, 1., 1., 3., 1e3, 1e6, 1e9, 1e12, 1e15, 1e19, 1e30, 3e38]))
    x = hard(draw(st.sampled_from(KINDS)), batch, m, size)
    w = weights(draw(st.sampled_from(['noise', 'elsewhere', 'cancelling'])), psi, kappa, x, n, draw(st.sampled_from([1., 1., 1., 1e-38, 1e-20, 1e10, 1e30])))
    return kappa, psi, x.requires_grad_(), w.requires_grad_(), n

def check_case(kappa, psi, x, w, n):
    "Within the bound and with finite gradients, or a `RangeError` where something is too large indeed; never a number that is none"
    try: out, refused = contract(kappa, psi, x, w, n), False
    except RangeError: refused = True
    exact = Exact(kappa, psi, x, w, n)
    if refused: assert exact.on_the_way > MOST/1e3, 'refused without need'
    else:
        assert out.isfinite().all()
        assert ((out - exact.value).abs() <= exact.error).all(), ((out - exact.value).abs()/exact.error).max()
        check_gradients(kappa, psi, x, w, exact, out)
    return refused

def check_gradients(kappa, psi, x, w, exact, out):
    "Finite, or refused; and those of plain weights within the bound that belongs to them"
    leaves = [t for t in (x, w, *kappa.parameters()) if t.numel()]
    G = torch.randn_like(out)
    try: grads = torch.autograd.grad(out, leaves, G, allow_unused=True) if out.requires_grad else []
    except RangeError: assert exact.on_the_way > 1e15 or x.detach().abs().max() > 1e15, 'refused without need'; return
    assert all(g is None or g.isfinite().all() for g in grads[:2])
    if psi.name != 'identity_reconciliation' or len(kappa.post) and kappa.post[0].weight is not None or exact.sizes.max() > 1e30: return
    mean = exact.K.mean(1, keepdim=True) if len(kappa.post) else 0
    true, unit = G.double().T @ ((exact.K - mean)*exact.rstd), G.double().abs().T @ (exact.sizes*exact.rstd)
    assert ((grads[1].view_as(true) - true).abs() <= C*EPS*unit + TINY*(1 + unit + 1e8*exact.sizes.max())).all()

@settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
@given(hard_cases())
def test_every_rule_is_within_its_bound_or_refuses(case): check_case(*case)

@pytest.mark.slow
@settings(max_examples=6000, deadline=None, suppress_health_check=list(HealthCheck))
@given(hard_cases())
def test_every_rule_is_within_its_bound_or_refuses_at_length(case): check_case(*case)


@pytest.mark.parametrize('wrong', ['nothing', 'a weight', 'the mean', 'the scale'])
def test_the_bound_can_be_missed(wrong):
    "What a small mistake in a rule would look like"
    torch.manual_seed(0)
    kappa, psi = pair('taylor 2', 'identity', 5, 3, 'plain')
    x, w = torch.randn(3, 5), torch.randn(1, 90)
    exact, out = Exact(kappa, psi, x, w, 3), contract(kappa, psi, x, w, 3)
    out = {'nothing': out, 'a weight': contract(kappa, psi, x, w*(1 + 1e-4*torch.eye(90)[7]), 3), 'the mean': out + 1e-4, 'the scale': out*(1 + 1e-4)}[wrong]
    assert ((out - exact.value).abs() <= exact.error).all() == (wrong == 'nothing')

# ---- LayerNorm of large numbers, and of numbers far from 0

@pytest.mark.parametrize('how', ['auto', 'dense'])
@pytest.mark.parametrize('spec', ['identity', 'taylor 1', 'linear', 'taylor 2', 'side by side'])
@pytest.mark.parametrize('size', [1e14, 1e18, 1e19, 1e25, 1e30])
def test_layernorm_of_large_numbers_is_not_zero(how, spec, size):
    torch.manual_seed(0)
    kappa, psi = pair(spec, 'identity', 6, 3, 'affine')
    x, w = (size**(1 if spec in ('identity', 'taylor 1', 'linear') else 0.5)*torch.randn(4, 6)).requires_grad_(), torch.randn(1, 3*kappa.dim(6)).requires_grad_()
    true = contract(copy.deepcopy(kappa).double(), psi, x.double(), w.double(), 3, 'dense')
    out = contract(kappa, psi, x, w, 3, how)
    torch.testing.assert_close(out, true.float(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(kappa(x), copy.deepcopy(kappa).double()(x.double()).float(), rtol=1e-5, atol=1e-4) # the expansion alone
    for g, h in zip(*(torch.autograd.grad(o.square().sum(), [x, w]) for o in (out, true))): torch.testing.assert_close(g, h, rtol=1e-3, atol=1e-4*h.abs().max().item())

def test_layernorm_before_an_expansion_of_large_numbers():
    torch.manual_seed(0)
    kappa, x = TaylorExpansion(2, pre=nn.LayerNorm(6)), 1e30*torch.randn(4, 6)
    torch.testing.assert_close(kappa(x), copy.deepcopy(kappa).double()(x.double()).float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(kappa.lazy(x).dense(), kappa(x))

@pytest.mark.parametrize('how', ['auto', 'dense'])
@pytest.mark.parametrize('size,d', [(1e160, 1), (1e90, 2)])
def test_layernorm_beyond_float64_is_refused(how, size, d):
    kappa, x = TaylorExpansion(d, post=nn.LayerNorm(TaylorExpansion(d).dim(3), elementwise_affine=False)).double(), size*torch.randn(2, 3, dtype=torch.float64)
    with pytest.raises(RangeError): contract(kappa, IdentityReconciliation(), x, torch.ones(1, kappa.dim(3), dtype=torch.float64), 1, how)

@pytest.mark.parametrize('offset', [0., 1., 1e3, 1e6])
def test_layernorm_far_from_zero_in_float64_keeps_what_is_left(offset):
    "mean/std of a million costs twice its digits in the closed form: the bound, with the mean in it, still holds in float64 with its own spacing"
    torch.manual_seed(0)
    kappa = as_expansion({'name': 'extended', 'composition_functions': ['identity', 'linear']}); kappa.post.append(nn.LayerNorm(12, elementwise_affine=False))
    x, w = offset + torch.randn(4, 6, dtype=torch.float64), torch.randn(1, 36, dtype=torch.float64)
    auto, dense = (contract(kappa.double(), IdentityReconciliation(), x, w, 3, how) for how in ('auto', 'dense'))
    assert ((auto - dense).abs() <= 16*2**-52*max(1, offset)**2*w.abs().sum()).all()

# ---- gradients

def test_a_gradient_that_overflows_is_refused():
    kappa, psi = TaylorExpansion(2), IdentityReconciliation()
    x, w = torch.tensor([[1e15, 1.]]).requires_grad_(), torch.full((1, 6), 1e-30).requires_grad_()
    for how in ('auto', 'dense'):
        out = contract(kappa, psi, x, w, 1, how)
        torch.autograd.grad(out.sum(), [x, w], retain_graph=True)
        with pytest.raises(RangeError, match='the gradient for w is too large for float32'): torch.autograd.grad(1e10*out.sum(), w, retain_graph=True)
        assert torch.autograd.grad(out.sum()*math.inf, w, retain_graph=True)[0].isinf().any() # it came from outside: nothing to refuse
    ones, large = torch.ones(1, 2).requires_grad_(), torch.full((1, 6), 1e20)
    with pytest.raises(RangeError, match='the gradient for x'): torch.autograd.grad((1e30*contract(kappa, psi, ones, large, 1)*1e-30).sum()*1e30, ones)

def test_a_large_gradient_of_many_weights_is_refused_too():
    head, x = RPNHead(100, 110, TaylorExpansion(2), IdentityReconciliation()), torch.full((3, 100), 1e15)
    with torch.no_grad(): head.weight.mul_(1e-30)
    head(x).sum().backward()
    with pytest.raises(RangeError, match='the gradient for w'): (1e10*head(x)).sum().backward()

def test_hooks_keep_no_graph_alive():
    import gc, weakref
    gc.collect(); gc.disable()
    try:
        for spec in ('taylor 2', 'bspline', 'side by side'):
            head, x = RPNHead(4, 3, as_expansion(SPECS[spec]), LorrReconciliation(2)), torch.rand(5, 4).requires_grad_()
            middle = x*2; kept = weakref.ref(middle)
            out = head(middle).sum(); out.backward()
            del middle, out
            assert kept() is None
    finally: gc.enable()

@every_rule
def test_second_derivatives_of_every_rule(spec, psi):
    "By the rule and dense, in float64, at sizes from 1e-3 to 1e3"
    torch.manual_seed(0)
    for norm in ('none', 'affine'):
        kappa, r = pair(spec, psi, 4, 4, norm)
        kappa, r = kappa.double(), r.double()
        x = (torch.randn(3, 4, dtype=torch.float64)*torch.tensor([[1e-3], [1], [30.]])).requires_grad_()
        w = torch.randn(1, r.numel(4, kappa.dim(4)), dtype=torch.float64).requires_grad_()
        found = []
        for how in ('auto', 'dense'):
            leaves = [x, w] if w.numel() else [x]
            out = contract(kappa, r, x, w, 4, how)
            first = torch.autograd.grad(out.square().sum(), leaves, create_graph=True)
            second = torch.autograd.grad(sum((g*torch.linspace(1, 2, g.numel(), dtype=g.dtype).view_as(g)).sum() for g in first), leaves, allow_unused=True)
            found.append([*first, *(s for s in second if s is not None)])
        for a, b in zip(*found): assert (a - b).abs().max() <= 1e-9*max(b.abs().max(), 1e-3)

# ---- precisions

ROUNDED = {torch.bfloat16: 2**-8, torch.float16: 2**-11} # half the spacing at 1

@every_rule
@pytest.mark.parametrize('dtype', list(ROUNDED), ids=str)
def test_autocast_forwards_and_backwards(spec, psi, dtype):
    "Under autocast an error is at most a few roundings of the largest number, for results and gradients"
    torch.manual_seed(0)
    for norm in ('none', 'plain'):
        kappa, r = pair(spec, psi, 6, 4, norm)
        x, w = torch.rand(16, 6).mul(2).sub(1).requires_grad_(), torch.randn(1, r.numel(4, kappa.dim(6))).requires_grad_()
        leaves = [x, w] if w.numel() else [x]
        with torch.autocast('cpu', dtype=dtype): out = contract(kappa, r, x, w, 4).float()
        exact, terms = contract(kappa, r, x, w, 4), Exact(kappa, r, x, w, 4).error.max()/(C*EPS) # all terms of a sum, which may cancel
        assert (out - exact).abs().max() <= 4*ROUNDED[dtype]*terms
        for a, b in zip([out, *torch.autograd.grad(out.sum(), leaves)], [exact, *torch.autograd.grad(exact.sum(), leaves)]):
            assert a.dtype == torch.float32 and (b is exact or (a - b).abs().max() <= 8*ROUNDED[dtype]*max(b.abs().max(), 1)), (norm, (a - b).abs().max()/b.abs().max())

@pytest.mark.parametrize('spec', ['taylor 2', 'taylor 3', 'bspline', 'fourier', 'chebyshev', 'rbf', 'spline beside taylor'])
def test_autocast_changes_nothing_where_a_rule_has_structure(spec):
    torch.manual_seed(0)
    for psi in ('identity', 'lorr', 'dual lphm'):
        kappa, r = pair(spec, psi, 6, 4)
        x, w = torch.rand(16, 6), torch.randn(1, r.numel(4, kappa.dim(6)))
        with torch.autocast('cpu', dtype=torch.bfloat16): out = contract(kappa, r, x, w, 4)
        assert out.dtype == torch.float32 and torch.equal(out, contract(kappa, r, x, w, 4))

@every_rule
def test_float64_is_float64(spec, psi):
    torch.manual_seed(0)
    for norm in ('none', 'affine'):
        kappa, r = (p.double() for p in pair(spec, psi, 6, 4, norm))
        x, w = torch.randn(5, 6, dtype=torch.float64), torch.randn(1, r.numel(4, kappa.dim(6)), dtype=torch.float64)
        auto, dense = (contract(kappa, r, x, w, 4, how) for how in ('auto', 'dense'))
        assert auto.dtype == torch.float64 and (auto - dense).abs().max() <= 1e-13*max(1, dense.abs().max())

@pytest.mark.parametrize('spec,psi', [('bspline', 'identity'), ('bspline', 'hm'), ('chebyshev', 'identity'), ('taylor 2', 'identity'), ('rbf', 'hm')])
def test_backward_inside_autocast_of_small_values(spec, psi):
    "A value small enough to be computed at once is multiplied without autocast in the backward pass too"
    torch.manual_seed(0)
    kappa, r = pair(spec, psi, 6, 4)
    x, w = torch.rand(5, 6), torch.randn(1, r.numel(4, kappa.dim(6))).requires_grad_()
    out = contract(kappa, r, x, w, 4).sum()
    g, = torch.autograd.grad(out, w, retain_graph=True)
    with torch.autocast('cpu', dtype=torch.bfloat16): h, = torch.autograd.grad(out, w)
    torch.testing.assert_close(g, h)

# ---- threads

@pytest.fixture
def threads():
    "Sets the number of threads; puts it back afterwards"
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)

THREADED = [(s, p) for s in ('identity', 'taylor 2', 'bspline', 'fourier', 'side by side') for p in ('identity', 'lorr', 'dual lphm', 'adaption')]

@pytest.mark.parametrize('spec,psi', THREADED)
def test_threads_change_no_more_than_rounding(spec, psi, threads):
    "Outputs and gradients on 1, 2 and 4 threads: within 1e-5 of the largest number"
    torch.manual_seed(0)
    kappa, r = pair(spec, psi, 60, 32, 'affine')
    x, w, found = torch.randn(128, 60), torch.randn(1, r.numel(32, kappa.dim(60)))*0.1, []
    for k in (1, 2, 4):
        threads(k)
        leaves = [x.clone().requires_grad_(), w.clone().requires_grad_()]
        out = contract(kappa, r, *leaves, 32)
        found.append([out.detach(), *torch.autograd.grad(out.square().mean(), leaves)])
    for other in found[1:]:
        for a, b in zip(found[0], other): assert (a - b).abs().max() <= 1e-5*a.abs().max()

def training(spec, steps=30, dtype=torch.float32, cast=None):
    "Losses of a short run on made-up data"
    set_seed(0)
    model = RPN([RPNHead(20, 16, as_expansion({**(SPECS[spec] if isinstance(SPECS[spec], dict) else {'name': SPECS[spec]}), 'post': nn.LayerNorm(as_expansion(SPECS[spec]).dim(20))}), IdentityReconciliation()), RPNHead(16, 3, as_expansion('identity'), IdentityReconciliation())]).to(dtype)
    x = torch.rand(256, 20); y = (3*x[:, :3]).sum(1).long().clamp(0, 2)
    optimizer, losses = torch.optim.AdamW(model.parameters(), 1e-2), []
    for i in range(steps):
        with torch.autocast('cpu', dtype=cast or torch.bfloat16, enabled=cast is not None): loss = nn.functional.cross_entropy(model(x.to(dtype)), y)
        optimizer.zero_grad(); loss.backward(); optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses, dtype=torch.float64)

@pytest.mark.parametrize('spec', ['taylor 2', 'bspline'])
def test_a_training_run_on_other_numbers_of_threads(spec, threads):
    "Thirty steps in float32: losses within 1e-3; in float64 within 1e-9"
    for dtype, most in ((torch.float32, 1e-3), (torch.float64, 1e-9)):
        runs = []
        for k in (1, 2, 4): threads(k); runs.append(training(spec, dtype=dtype))
        for r in runs[1:]: torch.testing.assert_close(r, runs[0], rtol=most, atol=most)
        assert runs[0][-1] < runs[0][0]

@pytest.mark.parametrize('spec', ['taylor 2', 'bspline', 'identity'])
@pytest.mark.parametrize('cast', list(ROUNDED), ids=str)
def test_a_training_run_under_autocast(spec, cast):
    full, half = training(spec), training(spec, cast=cast)
    assert half.isfinite().all() and (full - half).abs().max() <= 0.05*full[0] and half[-1] < half[0]

# ---- the learner: accumulation, clipping, precision, determinism

ready = pytest.mark.skipif('accumulate' not in Learner.__init__.__code__.co_varnames, reason='the learner of this version does not accumulate')

class Batched:
    "Batches of given sizes, in order"
    def __init__(self, x, y, sizes): self.x, self.y, self.sizes = x, y, sizes
    def __len__(self): return len(self.sizes)
    def __iter__(self): return zip(self.x.split(self.sizes), self.y.split(self.sizes))

def learnt(sizes, epochs=3, dtype=torch.float64, spec='taylor', seed=0, **settings):
    "The weights and losses of a run on made-up data, in batches of these sizes"
    set_seed(seed)
    model = RPN([RPNHead(5, 6, as_expansion(spec), LorrReconciliation(2)), RPNHead(6, 3, as_expansion('identity'), IdentityReconciliation(), bias=True)]).to(dtype)
    x = torch.rand(sum(sizes), 5, dtype=dtype)*2 - 1; y = (2*x[:, :2] + 1).sum(1).long().clamp(0, 2)
    given = dict(optimizer={'name': 'AdamW', 'lr': 0.01}, device='cpu', progress=False) | settings
    learner = Learner(model, Batched(x, y, sizes), **given)
    with warnings.catch_warnings(): warnings.simplefilter('ignore'); learner.fit(epochs)
    return [p.detach().clone() for p in model.parameters()], learner

def furthest(a, b): return max((p - q).abs().max().item() for p, q in zip(a, b))

@ready
@pytest.mark.parametrize('small,large,k', [([8]*6, [24]*2, 3), ([8]*7, [24, 24, 8], 3), ([8, 3, 5, 1, 9, 2, 4], [16, 12, 4], 3), ([1]*7, [5, 2], 5), ([4, 7], [11], 9), ([6, 5], [6, 5], 1)], ids=str)
@pytest.mark.parametrize('settings', [{}, {'clip': 0.05}, {'loss': {'name': 'CrossEntropyLoss', 'reduction': 'sum'}}, {'optimizer': {'name': 'SGD', 'lr': 0.1, 'momentum': 0.9}, 'clip': 0.1}], ids=str)
def test_accumulation_is_the_large_batch(small, large, k, settings):
    "float64, to 1e-10, over five epochs, whole groups or not, batches of equal sizes or not"
    together, _ = learnt(large, 5, **settings)
    apart, _ = learnt(small, 5, accumulate=k, **settings)
    assert furthest(together, apart) <= 1e-10
    if k > 1: assert furthest(together, learnt(small, 5, **settings)[0]) > 1e-6 # it is not the same without

@ready
def test_clipping_shortens_the_gradient_and_only_that():
    norms = []
    class Watch(Callback):
        def after_step(self, learner): norms.append(torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in learner.model.parameters()])).item())
    learnt([16]*3, clip=0.01, callbacks=[Watch()])
    assert max(norms) <= 0.01*(1 + 1e-9)
    assert furthest(learnt([16]*3, clip=1e6)[0], learnt([16]*3)[0]) == 0

@ready
def test_precisions_of_the_learner():
    plain, a = learnt([32]*4, dtype=torch.float32)
    double, b = learnt([32]*4, dtype=torch.float32, precision='float64')
    half, c = learnt([32]*4, dtype=torch.float32, precision='bfloat16')
    assert double[0].dtype == torch.float64 and half[0].dtype == torch.float32
    assert 0 < furthest(plain, double) < 1e-3 and furthest(plain, half) < 0.1
    assert abs(a.history['train_loss'][-1] - c.history['train_loss'][-1]) < 0.05*a.history['train_loss'][0]

@ready
def test_deterministic_is_put_back_afterwards():
    seen = []
    class Watch(Callback):
        def after_step(self, learner): seen.append(torch.are_deterministic_algorithms_enabled())
    for before in (False, True):
        torch.use_deterministic_algorithms(before)
        try:
            learnt([8]*2, deterministic=True, callbacks=[Watch()])
            assert torch.are_deterministic_algorithms_enabled() == before
        finally: torch.use_deterministic_algorithms(False)
    assert seen and all(seen)

COMPONENTS = sorted({c for kind in ('expansion', 'reconciliation', 'remainder', 'fusion') for c in registry()[kind].values() if c.__module__.startswith('tinyrpn.')}, key=lambda c: (c.kind, c.name))

def with_component(cls):
    "A small model in which the component does its part"
    head = dict(m=4, n=4, expansion=as_expansion('taylor'), reconciliation=IdentityReconciliation())
    if cls.kind != 'fusion': return RPN([RPNHead(**head | {cls.kind: example(cls)})])
    k = len(getattr(example(cls), 'weights', None) or '12')
    return RPN([RPNLayer([RPNHead(**copy.deepcopy(head)) for _ in range(k)], fusion=example(cls))])

def two_steps(cls):
    "All parameters after three updates that begin with the seed 0"
    set_seed(0)
    model = with_component(cls)
    model = RPN([*model.layers, RPNHead(model.n, 2, as_expansion('identity'), IdentityReconciliation())])
    x, y = torch.rand(96, 4)*0.8 + 0.1, torch.randint(2, (96,))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        Learner(model, Batches(x, y, 32, shuffle=True), device='cpu', progress=False, **({'deterministic': True} if 'deterministic' in Learner.__init__.__code__.co_varnames else {})).fit(1)
    return torch.cat([p.detach().flatten() for p in model.parameters()])

@pytest.mark.slow
@pytest.mark.parametrize('cls', COMPONENTS, ids=lambda c: c.name)
def test_every_component_repeats_itself_to_the_bit(cls): assert torch.equal(two_steps(cls), two_steps(cls))
