"The rules of contraction against the dense product: values, gradients, precision, memory."
import copy
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from tinyrpn.all import *
from tinyrpn.data import read_sample
from tinyrpn.expansion import as_expansion
from tinyrpn.memory import Meter

EPS = 2**-23
EXPANSIONS = ['identity', {'name': 'taylor', 'd': 1}, 'taylor', {'name': 'taylor', 'd': 3}, {'name': 'bspline', 't': 2, 'd': 2}, {'name': 'fourier', 'N': 2}, 'chebyshev', {'name': 'gaussian_rbf', 'num_interval': 3},
              {'name': 'extended', 'composition_functions': ['identity', 'taylor']}, {'name': 'extended', 'composition_functions': [{'name': 'bspline', 't': 1, 'd': 1}, 'taylor', {'name': 'fourier', 'N': 1}]},
              {'name': 'nested', 'composition_functions': [{'name': 'chebyshev', 'd': 2}, 'taylor']}]
NORMS = 'none', 'plain', 'affine', 'affine without bias'

def divisors(k): return [i for i in range(1, k + 1) if k % i == 0]

def with_norm(kappa, m, how):
    "The expansion with a LayerNorm after it"
    if how != 'none':
        norm = nn.LayerNorm(kappa.dim(m), elementwise_affine=how != 'plain', bias='without' not in how)
        for p in norm.parameters(): nn.init.uniform_(p)
        kappa.post.append(norm)
    return kappa

@st.composite
def cases(draw):
    "(expansion with a norm or without, reconciliation, x, w, n), in float64"
    m, n, batch, channels = draw(st.integers(1, 7)), draw(st.integers(1, 8)), draw(st.integers(0, 7)), draw(st.integers(1, 3))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    kappa = with_norm(as_expansion(draw(st.sampled_from(EXPANSIONS))), m, draw(st.sampled_from(NORMS))).double()
    D, r = kappa.dim(m), draw(st.integers(1, 4))
    p, q = draw(st.sampled_from([None, *divisors(n)])), draw(st.sampled_from([None, *divisors(D)]))
    psi = draw(st.sampled_from([IdentityReconciliation(), LorrReconciliation(r), HmReconciliation(p, q), LphmReconciliation(p, q, r), DualLphmReconciliation(p, q, r)]))
    x, w = torch.randn(batch, m, dtype=torch.float64), torch.randn(channels, psi.numel(n, D), dtype=torch.float64)
    if draw(st.booleans()): x = torch.randn(m, 2*batch, dtype=torch.float64)[:, ::2].T # not contiguous
    return kappa, psi, x.detach().requires_grad_(), w.requires_grad_(), n

@settings(max_examples=400, deadline=None)
@given(cases())
def test_every_rule_equals_the_dense_product(case):
    kappa, psi, x, w, n = case
    auto, dense = (contract(kappa, psi, x, w, n, how) for how in ('auto', 'dense'))
    assert auto.shape == dense.shape == (len(x), n)
    leaves = [x, w, *kappa.parameters()]
    G = torch.randn_like(dense)
    for a, b in zip([auto, *torch.autograd.grad(auto, leaves, G)], [dense, *torch.autograd.grad(dense, leaves, G)]):
        assert a.shape == b.shape
        zero = len(kappa.post) and kappa.dim(x.shape[1]) == 1 # LayerNorm of a single number is 0: both ways give its rounding, and nothing is relative to 0
        if b.numel(): assert (a - b).abs().max() <= 1e-10*max(b.abs().max(), 1 if zero else 1e-3)

@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(0, 99))
def test_kronecker_products_are_torchs(p, q, s, t, r, seed):
    torch.manual_seed(seed)
    P, Q, S, T = torch.randn(p, r), torch.randn(r, q), torch.randn(s, r), torch.randn(r, t)
    for psi, factors, oracle in ((HmReconciliation(p, q), (P @ Q, S @ T), torch.kron(P @ Q, S @ T)), (LphmReconciliation(p, q, r), (P @ Q, S, T), torch.kron(P @ Q, S @ T)), (DualLphmReconciliation(p, q, r), (P, Q, S, T), torch.kron(P @ Q, S @ T))):
        w = torch.cat([f.flatten() for f in factors])
        assert psi.numel(p*s, q*t) == len(w)
        torch.testing.assert_close(psi(w, p*s, q*t), oracle)

@pytest.mark.parametrize('norm', NORMS[:3])
@pytest.mark.parametrize('q', [None, 2, 4, 5])
def test_a_batch_of_no_samples(q, norm):
    "Not every version of torch transforms an empty batch"
    kappa, psi = with_norm(TaylorExpansion(2), 4, norm), DualLphmReconciliation(q=q, r=1)
    x, w = torch.empty(0, 4).requires_grad_(), torch.randn(1, psi.numel(6, 20)).requires_grad_()
    for graph in (False, True):
        out = contract(kappa, psi, x, w, 6)
        dx, dw = torch.autograd.grad(out.sum(), (x, w), create_graph=graph, materialize_grads=True)
        assert out.shape == (0, 6) and dx.shape == (0, 4) and dw.shape == w.shape and not dw.any()

def digits(): arrays, signature, _ = read_sample(); return (torch.tensor(arrays[2][:64]).flatten(1)/255 - signature.mean)/signature.std

@pytest.mark.parametrize('inputs', ['digits', 'noise'])
@pytest.mark.parametrize('norm', ['none', 'plain'])
@pytest.mark.parametrize('psi', [IdentityReconciliation(), LorrReconciliation(5), HmReconciliation(), LphmReconciliation(r=5), DualLphmReconciliation(r=5), DualLphmReconciliation(q=785, r=5), DualLphmReconciliation(q=1570, r=5)], ids=repr)
def test_float32_is_at_most_twice_as_wrong_as_dense(inputs, norm, psi):
    torch.manual_seed(0)
    x = digits() if inputs == 'digits' else torch.randn(64, 784)
    kappa, n = with_norm(TaylorExpansion(2), 784, norm), 8
    w = torch.randn(1, psi.numel(n, 615_440))*0.01
    exact = contract(copy.deepcopy(kappa).double(), psi, x.double(), w.double(), n, 'dense')
    auto, dense = ((contract(kappa, psi, x, w, n, how) - exact).abs() for how in ('auto', 'dense'))
    assert auto.max() <= 2*dense.max() and auto.square().mean() <= 4*dense.square().mean()

def unpleasant(kind, batch, m):
    noise = torch.randn(batch, m)
    return {'noise': noise, 'shifted': 1 + 0.1*noise, 'constant': 1 + 1e-5*noise, 'one': 1000*torch.eye(m)[torch.arange(batch) % m], 'tiny': 1e-6*noise, 'wide': noise.sign()*10**(8*torch.rand(batch, m) - 4), 'zero': 0*noise}[kind]

@settings(max_examples=200, deadline=None)
@given(st.integers(2, 24), st.integers(1, 6), st.sampled_from(['noise', 'shifted', 'constant', 'one', 'tiny', 'wide', 'zero']), st.sampled_from(['none', 'plain']), st.sampled_from(['identity', 'lorr', 'outer', 'pieces']), st.integers(0, 10**6))
def test_float32_error_is_within_the_bound(m, n, kind, norm, which, seed):
    torch.manual_seed(seed)
    x, D = unpleasant(kind, 5, m), m + m*m
    psi = {'identity': IdentityReconciliation(), 'lorr': LorrReconciliation(2), 'outer': DualLphmReconciliation(1, m + 1, 2), 'pieces': DualLphmReconciliation(1, 1, 2)}[which]
    w, kappa = torch.randn(1, psi.numel(n, D)), with_norm(TaylorExpansion(2), m, norm)
    exact = contract(copy.deepcopy(kappa).double(), psi, x.double(), w.double(), n, 'dense')
    K, W = TaylorExpansion(2)(x.double()), psi(w[0].double().abs(), n, D)
    mean, rstd = (0, 1) if norm == 'none' else (K.mean(1, keepdim=True).abs(), (K.var(1, correction=0, keepdim=True) + 1e-5).rsqrt())
    bound = 8*EPS*rstd*((K.abs() + mean) @ W.T)
    assert ((contract(kappa, psi, x, w, n) - exact).abs() <= bound + 1e-37).all()

@settings(max_examples=150, deadline=None)
@given(st.integers(2, 40), st.sampled_from(['noise', 'shifted', 'constant', 'one', 'tiny', 'wide']), st.integers(0, 10**6))
def test_correlation_error_is_within_its_bound(m, kind, seed):
    "Rounding in an FFT is spread over all lags: a row of K times a row of T counts with the product of their lengths"
    torch.manual_seed(seed)
    x, Q, T = unpleasant(kind, 5, m), torch.randn(1, 3, m), torch.randn(1, 2, m + 1)
    kappa = TaylorExpansion(2).lazy(x)
    assert kappa.bilinear_rule(m, m + 1).name == 'correlation'
    exact = torch.einsum('caq,bqk,ctk->bcat', Q.double(), TaylorExpansion(2)(x.double()).view(5, m, m + 1), T.double())
    u = torch.cat([torch.ones(5, 1), x], 1).abs()
    length = torch.maximum(u[:, :-1], u[:, 1:])*x.norm(dim=1, keepdim=True)                       # (B, m), of the rows of K
    bound = 8*EPS*torch.einsum('caq,bq,ct->bcat', Q.abs(), length, T.norm(dim=2))
    assert ((kappa.bilinear(Q, T) - exact).abs() <= bound).all()

# ---- memory

def sizes_of(step):
    "The elements of each tensor allocated by a function"
    sizes = []
    class Every(Meter):
        def _is_new(self, t):
            if new := super()._is_new(t): sizes.append(t.untyped_storage().nbytes()//t.element_size())
            return new
    with Every(): step()
    return sizes

def check_step(heads, batch):
    "No tensor of batch x D or n x D in a training step, but the gradients"
    for head in heads:
        optimizer = torch.optim.AdamW(head.parameters(), fused=True)
        x = torch.randn(batch, head.m).requires_grad_()
        def step():
            optimizer.zero_grad(set_to_none=True)
            head(x).square().mean().backward()
            optimizer.step()
        step()                                      # the optimizer's state is made here
        sizes = sizes_of(step)
        parts = [head.n*e.dim(head.m) for e in getattr(head.expansion, 'composition_functions', ())] # the gradient for each part, before they are put together
        for gradient in [*(p.numel() for p in head.parameters()), *parts]: sizes.remove(gradient) if gradient in sizes else None
        assert max(sizes) < min(batch*head.D, head.n*head.D), (head, max(sizes))

@pytest.mark.parametrize('psi', [IdentityReconciliation(), LorrReconciliation(3), HmReconciliation(), LphmReconciliation(r=3), DualLphmReconciliation(r=3), DualLphmReconciliation(q=1, r=3)], ids=repr)
@pytest.mark.parametrize('kappa', ['taylor', 'bspline', 'gaussian_rbf', {'name': 'extended', 'composition_functions': ['bspline', 'taylor']}], ids=str)
@pytest.mark.parametrize('norm', NORMS)
@pytest.mark.parametrize('m,n,batch', [(100, 30, 90), (90, 100, 80)])
def test_no_step_allocates_what_it_multiplies(kappa, psi, norm, m, n, batch):
    kappa = with_norm(as_expansion(kappa), m, norm)
    check_step([RPNHead(m, n, kappa, psi)], batch)

@pytest.mark.slow
@pytest.mark.parametrize('config', ['mnist', 'mnist_dual_lphm'])
def test_no_step_of_the_examples_allocates_what_it_multiplies(config):
    check_step([l.heads[0] for l in RPN.from_config(config).layers], 64)

def test_the_check_of_memory_can_fail():
    with pytest.raises(AssertionError): check_step([RPNHead(40, 48, with_norm(TaylorExpansion(2), 40, 'plain'), IdentityReconciliation(), contraction='dense')], 64)

# ---- the gradient and its place

def big_head(): return RPNHead(100, 110, TaylorExpansion(2), IdentityReconciliation())    # 1.1 million weights: large enough to have a place

def test_two_backward_passes_add_up_and_nothing_kept_is_overwritten():
    head, x = big_head(), torch.randn(9, 100)
    loss = lambda: head(x).square().sum()
    loss().backward()
    once = head.weight.grad.clone()
    loss().backward()
    torch.testing.assert_close(head.weight.grad, 2*once)
    kept = head.weight.grad
    head.zero_grad(set_to_none=True)
    with torch.no_grad(): head.weight.mul_(3)
    loss().backward()
    assert kept.data_ptr() != head.weight.grad.data_ptr()
    torch.testing.assert_close(kept, 2*once)
    torch.testing.assert_close(head.weight.grad, 3*once, rtol=1e-4, atol=1e-2)

def test_the_place_is_used_again_and_hooks_see_the_gradient():
    head, x, seen = big_head(), torch.randn(9, 100), []
    head.weight.register_hook(lambda g: seen.append(g.sum().item()))
    places = set()
    for _ in range(4):
        head.zero_grad(set_to_none=True)
        head(x).sum().backward()
        places.add(head.weight.grad.data_ptr())
    assert len(places) == 1 and len(seen) == 4 and len({*seen}) == 1
    views = head.weight.grad.view(-1)[:10]                              # somebody holds a part
    head.zero_grad(set_to_none=True)
    head(x).sum().backward()
    assert head.weight.grad.data_ptr() not in places and views.data_ptr() in places

def test_a_copy_of_a_model_has_a_place_of_its_own():
    a = big_head(); x = torch.randn(9, 100)
    a(x).sum().backward()
    b = copy.deepcopy(a); b.zero_grad(set_to_none=True)
    (2*b(x)).sum().backward()
    torch.testing.assert_close(b.weight.grad, 2*a.weight.grad)

def test_distributed_data_parallel_sees_the_gradient(tmp_path):
    if not torch.distributed.is_available(): pytest.skip('torch without distributed')
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        head, x = big_head(), torch.randn(9, 100)
        model = nn.parallel.DistributedDataParallel(head)
        for _ in range(3):
            model.zero_grad(set_to_none=True)
            model(x).sum().backward()
        through = head.weight.grad.clone()
        head.zero_grad(set_to_none=True)
        head(x).sum().backward()
        torch.testing.assert_close(through, head.weight.grad)
    finally: torch.distributed.destroy_process_group()

# ---- the rest

@pytest.mark.parametrize('how', ['auto', 'dense'])
@pytest.mark.parametrize('d,largest', [(2, 1e20), (3, 1e13), (2, 3e19)])
def test_overflow_is_an_error(how, d, largest):
    x = torch.randn(3, 4); x[1, 2] = largest
    for post in ('none', 'plain'):
        with pytest.raises(RangeError, match='too large for float32'): contract(with_norm(TaylorExpansion(d), 4, post), IdentityReconciliation(), x, torch.randn(2*TaylorExpansion(d).dim(4)), 2, how)
        assert contract(with_norm(TaylorExpansion(d), 4, post).double(), IdentityReconciliation(), x.double(), torch.randn(2*TaylorExpansion(d).dim(4)).double(), 2, how).isfinite().all()

@pytest.mark.parametrize('spec', EXPANSIONS, ids=str)
@pytest.mark.parametrize('psi', [IdentityReconciliation(), LorrReconciliation(2), DualLphmReconciliation(r=2)], ids=repr)
def test_autocast_and_bfloat16(spec, psi):
    torch.manual_seed(0)
    kappa = with_norm(as_expansion(spec), 6, 'plain')
    x, w = torch.randn(8, 6), torch.randn(2, psi.numel(4, kappa.dim(6))).requires_grad_()
    exact = contract(kappa, psi, x, w, 4)
    with torch.autocast('cpu', dtype=torch.bfloat16): out = contract(kappa, psi, x, w, 4)
    assert (out - exact).abs().max() < 0.05*exact.abs().max()
    out.float().sum().backward()
    assert w.grad.dtype == torch.float32 and w.grad.isfinite().all()
    half = contract(copy.deepcopy(kappa).bfloat16(), psi, x.bfloat16(), w.detach().bfloat16(), 4)
    assert half.dtype == torch.bfloat16 and half.isfinite().all()

@pytest.mark.slow
@pytest.mark.parametrize('spec,psi', [('taylor', IdentityReconciliation()), ({'name': 'taylor', 'd': 3}, IdentityReconciliation()), ('taylor', LorrReconciliation(2)), ('taylor', DualLphmReconciliation(q=7)), ('taylor', DualLphmReconciliation(q=6)), ('taylor', DualLphmReconciliation(q=2)), ('bspline', IdentityReconciliation()), (EXPANSIONS[-2], LorrReconciliation(2))], ids=str)
def test_every_rule_compiles_as_one_graph(spec, psi):
    torch._dynamo.reset()
    model = RPN([RPNHead(6, 4, with_norm(as_expansion(spec), 6, 'plain'), psi)])
    x = torch.randn(5, 6)
    compiled = torch.compile(model, fullgraph=True)
    outs = [f(x) for f in (model, compiled)]
    torch.testing.assert_close(*outs, rtol=1e-4, atol=1e-4)
    for a, b in zip(*(torch.autograd.grad(out.square().sum(), list(model.parameters())) for out in outs)): torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)

@pytest.mark.parametrize('width,channels', [(1, 3), (4, 1), (3, 2)])
def test_width_and_channels_in_one_pass(width, channels):
    torch.manual_seed(0)
    layer = RPNLayer.repeat(width, m=6, n=4, expansion=with_norm(TaylorExpansion(2), 6, 'plain'), reconciliation=DualLphmReconciliation(r=2), channels=channels).double()
    x = torch.randn(5, 6, dtype=torch.float64)
    one = torch.stack([contract(h.expansion, h.reconciliation, x, w, 4) for h in layer.heads for w in h.weight]).mean(0)
    torch.testing.assert_close(layer(x), one, rtol=1e-12, atol=1e-12)

@pytest.mark.parametrize('name', ['mnist', 'mnist_dual_lphm'])
def test_describe_builds_nothing(name):
    with torch.device('meta'): model = RPN.from_config(name)
    rows = model.describe(64)
    for row in rows[:-1]: assert row['dense MB'] > row['MB'] and row['why']
    assert rows[-1]['parameters'] == {'mnist': 39_696_000, 'mnist_dual_lphm': 9_330}[name]
    assert rows[0]['dense MB'] > 300 and (name == 'mnist' or rows[0]['dense MFLOP']/rows[0]['MFLOP'] > 100)

def test_second_derivatives_of_a_large_step():
    "Second derivatives do not go through the gradient's place"
    head, x = big_head(), torch.randn(3, 100).requires_grad_()
    g, = torch.autograd.grad(head(x).square().sum(), x, create_graph=True)
    h, = torch.autograd.grad(g.square().sum(), head.weight)
    head.contraction = 'dense'
    g2, = torch.autograd.grad(head(x).square().sum(), x, create_graph=True)
    h2, = torch.autograd.grad(g2.square().sum(), head.weight)
    torch.testing.assert_close(h, h2, rtol=1e-3, atol=1e-3*h2.abs().max().item())

# ---- what a hostile reader found

@pytest.mark.parametrize('spec,psi', [('taylor', HmReconciliation(q=6)), ({'name': 'taylor', 'd': 3}, HmReconciliation(q=2)), ({'name': 'extended', 'composition_functions': ['taylor', 'identity']}, HmReconciliation()), ('bspline', IdentityReconciliation())], ids=str)
def test_gradients_for_second_derivatives_are_the_same_gradients(spec, psi):
    torch.manual_seed(0)
    head = RPNHead(6, 4, as_expansion(spec), psi).double()
    x = torch.randn(3, 6, dtype=torch.float64).requires_grad_()
    plain, graph = (torch.autograd.grad(head(x).sum(), [x, head.weight], create_graph=g) for g in (False, True))
    for a, b in zip(plain, graph): torch.testing.assert_close(a, b.detach())
    assert torch.autograd.gradgradcheck(head, x[:1, :].detach().mul(0.5).requires_grad_())

def test_empty_batch_with_create_graph():
    head = RPNHead(3, 2, TaylorExpansion(2), IdentityReconciliation())
    torch.autograd.grad(head(torch.randn(0, 3).requires_grad_()).sum(), head.weight, create_graph=True)

@pytest.mark.parametrize('pre', [nn.LayerNorm(4), nn.PReLU(), nn.BatchNorm1d(4)], ids=lambda f: type(f).__name__)
def test_functions_with_parameters_before_an_expansion(pre):
    model = RPN([RPNHead(4, 3, TaylorExpansion(2, pre=pre), IdentityReconciliation())])
    assert 'taylor' in repr(model) and model.describe(1)[0]['MFLOP'] > 0
    for how in ('auto', 'dense'):
        other = copy.deepcopy(model); other.contraction = how
        other(torch.randn(5, 4))
        if isinstance(pre, nn.BatchNorm1d): assert other.layers[0].heads[0].expansion.pre[0].num_batches_tracked == 1

def test_a_part_that_throws_dice_is_computed_once():
    kappa = as_expansion({'name': 'extended', 'composition_functions': [TaylorExpansion(2, post=nn.Dropout(0.5)), 'identity']})
    kappa.post.append(nn.LayerNorm(48, elementwise_affine=False))
    out = contract(kappa, IdentityReconciliation(), torch.randn(3, 6), torch.eye(48).reshape(1, -1), 48)
    torch.testing.assert_close(out.std(1, correction=0), torch.ones(3), rtol=1e-3, atol=1e-3)

@pytest.mark.parametrize('post', [nn.ReLU(), nn.LayerNorm(12)], ids=lambda f: type(f).__name__)
def test_composed_within_composed(post):
    inner = as_expansion({'name': 'extended', 'composition_functions': [TaylorExpansion(2, post=post), 'identity']})
    kappa = as_expansion({'name': 'extended', 'composition_functions': [inner, 'identity', {'name': 'nested', 'composition_functions': ['identity', 'taylor']}]})
    for q in (1, 2, 3, 5):
        D = kappa.dim(3)
        if D % q: continue
        psi = HmReconciliation(q=q)
        x, w = torch.randn(2, 3), torch.randn(1, psi.numel(2, D))
        torch.testing.assert_close(contract(kappa, psi, x, w, 2), contract(kappa, psi, x, w, 2, 'dense'), rtol=1e-4, atol=1e-4)

def test_heads_of_ones_own_keep_their_forward():
    class Seven(RPNHead):
        def forward(self, x): return super().forward(x)*0 + 7
    layer = RPNLayer([Seven(3, 2, TaylorExpansion(), IdentityReconciliation()) for _ in 'ab'])
    assert (layer(torch.randn(2, 3)) == 7).all()
    layer, seen = RPNLayer.repeat(2, m=3, n=2, expansion=TaylorExpansion(), reconciliation=IdentityReconciliation()), []
    layer.heads[0].register_full_backward_hook(lambda *_: seen.append(1))
    layer(torch.randn(2, 3).requires_grad_()).sum().backward()
    assert seen == [1]

def test_the_seed_zero_is_a_seed():
    config = load_config({'seed': 0, 'model': {'dims': [16, 4], 'expansion': 'taylor'}})
    assert config.seed == 0 and config.override(epochs=1).seed == 0

@pytest.mark.parametrize('offset', [1e4, 1e6, 1e8])
def test_layernorm_of_the_identity_keeps_its_precision(offset):
    kappa = as_expansion('identity'); kappa.post.append(nn.LayerNorm(20).double())
    x, w = offset + torch.randn(4, 20, dtype=torch.float64), torch.randn(1, 60, dtype=torch.float64)
    torch.testing.assert_close(contract(kappa, IdentityReconciliation(), x, w, 3), contract(kappa, IdentityReconciliation(), x, w, 3, 'dense'), rtol=1e-10, atol=1e-10)

@pytest.mark.parametrize('last', ['taylor', 'fourier'])
def test_overflow_inside_a_nested_expansion(last):
    kappa = as_expansion({'name': 'nested', 'composition_functions': ['taylor', last]})
    for how in ('auto', 'dense'):
        with pytest.raises(RangeError): contract(kappa, IdentityReconciliation(), torch.full((1, 2), 1e30), torch.ones(1, kappa.dim(2)), 1, how)

@pytest.mark.parametrize('spec,psi', [('taylor', IdentityReconciliation()), ('taylor', HmReconciliation(q=3)), ('bspline', IdentityReconciliation())], ids=str)
def test_transforms_of_torch_func(spec, psi):
    kappa = as_expansion(spec)
    x, w = torch.rand(4, 3, dtype=torch.float64), torch.randn(1, psi.numel(2, kappa.dim(3)), dtype=torch.float64)
    f = lambda x, w: contract(kappa, psi, x, w, 2).square().sum()
    gx, gw = torch.func.grad(f, argnums=(0, 1))(x, w)
    leaves = [x.clone().requires_grad_(), w.clone().requires_grad_()]
    for a, b in zip((gx, gw), torch.autograd.grad(f(*leaves), leaves)): torch.testing.assert_close(a, b)
    each = torch.vmap(torch.func.grad(lambda x, w: f(x[None], w), argnums=1), in_dims=(0, None))(x, w)
    torch.testing.assert_close(each.sum(0), gw)

def test_backward_inside_autocast_of_a_value_computed_at_once():
    torch.manual_seed(0)
    head, x = RPNHead(6, 4, as_expansion('bspline'), IdentityReconciliation()), torch.rand(5, 6)
    out = head(x).sum(); g, = torch.autograd.grad(out, head.weight, retain_graph=True)
    with torch.autocast('cpu', dtype=torch.bfloat16): h, = torch.autograd.grad(out, head.weight)
    torch.testing.assert_close(g, h)

def test_backward_inside_autocast_and_inputs_from_inference_mode():
    torch.manual_seed(0)
    for spec, psi in (('bspline', IdentityReconciliation()), ('taylor', IdentityReconciliation())):
        head, x = RPNHead(6, 4, as_expansion(spec), psi), torch.rand(1000, 6) # more than is computed at once and kept
        out = head(x).sum(); g, = torch.autograd.grad(out, head.weight, retain_graph=True)
        with torch.autocast('cpu', dtype=torch.bfloat16): h, = torch.autograd.grad(out, head.weight)
        torch.testing.assert_close(g, h)
    with torch.inference_mode(): y = head(x)*1 + x[:, :4].sum()
    RPNHead(4, 2, TaylorExpansion(2), IdentityReconciliation())(y).sum().backward()

def test_learnt_bases_get_gradients():
    class LearntExpansion(ElementwiseExpansion):
        per_coordinate = 4
        def __init__(self): super().__init__(); self.net = nn.Linear(1, 4)
        def basis(self, x): return self.net(x.unsqueeze(-1)).tanh()
    head = RPNHead(3, 2, LearntExpansion(), IdentityReconciliation())
    head(torch.randn(5, 3)).sum().backward()
    assert head.expansion.net.weight.grad.abs().sum() > 0

def test_parts_of_a_composed_expansion_find_their_sizes_in_yaml():
    for name, D in (('extended', 12 + 3), ('nested', 3 + 9 + 144)):
        parts = [{'name': 'taylor', 'post': 'LayerNorm'}, 'identity'] if name == 'extended' else ['taylor', {'name': 'taylor', 'pre': 'LayerNorm', 'post': 'LayerNorm'}]
        model = RPN.from_config({'model': {'layers': [{'m': 3, 'n': 2, 'expansion': {'name': name, 'composition_functions': parts, 'post': 'LayerNorm'}}]}})
        assert model.layers[0].heads[0].D == D and model(torch.randn(4, 3)).shape == (4, 2)
        assert RPN.from_config({'model': model.config()}).config() == model.config()
