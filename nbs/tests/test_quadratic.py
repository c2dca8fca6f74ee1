"Quadratic forms of heads of degree 2: against the head itself, against NumPy's eigenvectors, and what is refused."
import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.linalg import subspace_angles
from torch import nn

from tinyrpn.checks import example
from tinyrpn.config import load_config
from tinyrpn.core import *
from tinyrpn.data import Batches, load_data
from tinyrpn.expansion import IdentityExpansion, TaylorExpansion
from tinyrpn.memory import Meter
from tinyrpn.model import RPN, RPNHead, RPNLayer
from tinyrpn.quadratic import *
from tinyrpn.reconciliation import *
from tinyrpn.remainder import *

STRUCTURED = sorted(n for n in names('reconciliation') if lookup(n).__module__.startswith('tinyrpn.'))
NORMS = 'none', 'plain', 'scale', 'scale and shift'
REMAINDERS = {'zero': ZeroRemainder, 'one': OneRemainder, 'constant': lambda: ConstantRemainder(-1.5), 'linear': lambda: LinearRemainder(bias=True), 'identity': IdentityRemainder}


def rand(*shape, seed=0): return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def make(psi='identity_reconciliation', m=6, n=6, d=2, norm='none', channels=1, bias=False, remainder='zero', seed=0, output=None, expansion=None):
    "A head in float64 with random parameters"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        e = expansion or TaylorExpansion(d)
        if norm != 'none': e.post.append(nn.LayerNorm(e.dim(m), eps=1e-3, elementwise_affine=norm != 'plain', bias=norm != 'scale'))
        head = RPNHead(m, n, e, example(lookup(psi)) if isinstance(psi, str) else psi, REMAINDERS[remainder](), channels, bias, output)
        for p in head.parameters(): nn.init.normal_(p)
    return head.double().eval()


def by_hand(head, unit):
    "(A, b) of a head without LayerNorm or with a plain one, from the dense matrix, by NumPy"
    W = torch.stack([head.reconciliation(w, head.n, head.D) for w in head.weight]).mean(0)[unit].detach().numpy()
    W = W - W.mean() if len(head.expansion.post) else W
    V = W[head.m:].reshape(head.m, head.m)
    return (V + V.T)/2, W[:head.m]


close = lambda a, b, rtol=1e-9: np.testing.assert_allclose(*(np.asarray(t.detach() if isinstance(t, torch.Tensor) else t, dtype=float) for t in (a, b)), rtol=rtol, atol=rtol*max(1, float(np.abs(np.asarray(b.detach() if isinstance(b, torch.Tensor) else b)).max())))


# ---- the form against the head

@pytest.mark.parametrize('psi', STRUCTURED)
@pytest.mark.parametrize('norm', NORMS)
@pytest.mark.parametrize('d', [1, 2])
def test_a_form_is_its_output(psi, norm, d):
    for channels, remainder in ((1, 'zero'), (3, 'linear'), (2, 'identity'), (1, 'constant')):
        head = make(psi, d=d, norm=norm, channels=channels, bias=channels > 1, remainder=remainder)
        x = rand(20, 6, seed=4)*3
        for unit in (0, 3, 5): close(quadratic_form(head, unit)(x), head(x)[:, unit])


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(STRUCTURED), st.integers(1, 9), st.sampled_from([2, 4]), st.sampled_from(NORMS), st.integers(1, 3), st.booleans(), st.sampled_from(['zero', 'one', 'linear']), st.integers(0, 99), st.sampled_from([1e-3, 1., 30.]))
def test_any_form_is_its_output(psi, m, n, norm, channels, bias, remainder, seed, size):
    try: head = make(psi, m, n, 2, norm, channels, bias, remainder, seed)
    except ShapeError: return # what does not divide
    x = rand(7, m, seed=seed + 1)*size
    for unit in range(n): close(quadratic_form(head, unit)(x), head(x)[:, unit], rtol=1e-8)


@pytest.mark.parametrize('remainder', [r for r in REMAINDERS])
def test_without_a_layer_norm_it_is_a_plain_polynomial(remainder):
    head = make(remainder=remainder, bias=True)
    form, x = quadratic_form(head, 2), rand(5, 6)
    close((torch.einsum('bi,ij,bj->b', x, form.A, x) + x @ form.b + form.c), head(x)[:, 2])
    assert torch.equal(form.A, form.A.T) and not form.after.any() and form.centred()[0] is form.A


def test_before_and_after_the_layer_norm():
    head, bare = make(norm='plain'), make()
    assert torch.equal(head.weight, bare.weight)
    form, x = quadratic_form(head, 1), rand(5, 6)
    close(torch.einsum('bi,ij,bj->b', x, form.A, x) + x @ form.b, bare(x)[:, 1])       # before
    A, b = by_hand(head, 1)
    close(form.centred()[0], A); close(form.centred()[1], b)                            # after
    K = bare.expansion(x)
    close(form.rstd(x), 1/np.sqrt(K.numpy().var(1) + 1e-3))
    close(form.mass, bare.weight.view(6, -1)[1].sum())


def test_an_identity_expansion_is_degree_1():
    head = make(norm='scale and shift', remainder='linear', expansion=IdentityExpansion())
    close(quadratic_form(head, 4)(rand(5, 6)), head(rand(5, 6))[:, 4]); assert not quadratic_form(head, 4).A.any()


def test_float32_and_no_gradients_and_inference():
    head = make('dual_lphm_reconciliation', norm='plain').float()
    with torch.no_grad(): a = quadratic_form(head, 0)
    with torch.inference_mode(): b = quadratic_form(head, 0)
    assert torch.equal(a.A, b.A) and a.A.dtype == torch.float64 and not a.A.requires_grad and head.weight.grad is None
    close(a(rand(5, 6)), head(rand(5, 6).float())[:, 0], rtol=1e-4)


@pytest.mark.parametrize('psi', [LorrReconciliation(2), HmReconciliation(8, 784), DualLphmReconciliation(8, 784, 5), RandomMatrixAdaptionReconciliation(2), DuplicatedPaddingReconciliation(8, 784)], ids=lambda p: p.name)
def test_a_row_is_had_without_the_matrix(psi):
    head = RPNHead(784, 64, TaylorExpansion(2), psi)
    with Meter() as seen: form = quadratic_form(head, 7)
    assert seen.largest <= 4*head.D < 64*head.D/10
    x = rand(3, 784).float()
    close(form(x), head(x)[:, 7], rtol=1e-4)


# ---- eigenvectors against NumPy

@pytest.mark.parametrize('norm', ['none', 'plain'])
@pytest.mark.parametrize('psi', ['identity_reconciliation', 'lorr_reconciliation', 'dual_lphm_reconciliation', 'eigen_reconciliation'])
def test_eigenvectors_are_numpys(psi, norm):
    head = make(psi, m=9, norm=norm)
    for unit in range(6):
        A = by_hand(head, unit)[0]
        values, vectors = quadratic_form(head, unit).eigen()
        theirs = np.linalg.eigh(A)[0]
        close(values, theirs[np.argsort(-np.abs(theirs), kind='stable')])
        close(vectors @ vectors.T, np.eye(9)); close(vectors.T @ torch.diag(values) @ vectors, A)
        assert (values.abs().diff() <= 1e-12).all() and (vectors.gather(1, vectors.abs().argmax(1, keepdim=True)) > 0).all()
        positive, negative = eigen_digits(head, unit, k=4)
        assert positive.images.shape[1:] == (3, 3) and len(positive.values) == min(4, (theirs > 1e-9).sum()) and len(negative.values) == min(4, (theirs < -1e-9).sum())
        for v, image in zip((*positive.values, *negative.values), (*positive.images, *negative.images)): close(A @ image.flatten().numpy(), v*image.flatten())
    if norm == 'plain': close(quadratic_form(head, 0).eigen(centred=False)[0].sum(), np.trace(quadratic_form(head, 0).A.numpy()))


def test_the_worked_example():
    head = make(m=2, n=1)
    head.weight.data[:] = torch.tensor([1., -1., 2., 1., 3., -1.])
    (up,), (down,) = (p.values.tolist() for p in eigen_digits(head, 0, shape=(1, 2)))
    assert up == pytest.approx(3) and down == pytest.approx(-2) and quadratic_form(head, 0)(torch.tensor([[1., 2.]])).item() == pytest.approx(5)


def test_angles_are_scipys():
    a, b = make(m=9, seed=1), make(m=9, seed=2)
    cosines = eigen_cosines(a, b, 3, k=4)
    for k in range(1, 5):
        angles = subspace_angles(*(quadratic_form(h, 3).eigen()[1][:k].T.numpy() for h in (a, b)))
        close(shared_span(cosines)[k - 1], (np.cos(angles)**2).mean())


# ---- explanations add up

def exact(e, expected): assert abs(e.total - expected) <= 1e-5*max(1e-3, abs(expected)), (e.total, expected)


@pytest.mark.parametrize('psi', STRUCTURED)
@pytest.mark.parametrize('norm', NORMS)
def test_explanations_add_up(psi, norm):
    head = make(psi, norm=norm, channels=2, bias=True, remainder='linear')
    for i, x in enumerate(rand(4, 6, seed=3)):
        for baseline in (0., -0.42, rand(6, seed=9)):
            e = explain(head, x, i, baseline)
            exact(e, head(x[None])[0, i].item())
            close(e.pixels().sum() + e.constant, e.total); assert torch.equal(e.pairs, e.pairs.T)
    same = explain(head, x, 0, baseline=x)
    assert not same.pairs.any() and not same.linear.any(); exact(same, head(x[None])[0, 0].item())


@pytest.fixture(scope='module')
def digits(): return load_data('mnist_sample', say=lambda *_: None)


@pytest.fixture(scope='module')
def trained(digits):
    with torch.random.fork_rng(devices=[]):
        set_seed(3)
        cfg = load_config('mnist_one_layer')
        learner = cfg.learner(cfg.model(), digits, device='cpu', progress=False)
        learner.fit(2)
    return learner.model.eval()


def test_explanations_of_real_digits_add_up(trained, digits):
    head, double = trained.layers[0].heads[0], copy.deepcopy(trained).double()
    empty = digits.train.x.min()
    for x in digits.test.x[:4]:
        logits = double(x[None].double())[0]
        for unit in (0, 4, 9):
            for baseline in (0., empty): exact(e := explain(head, x.view(28, 28), unit, baseline), logits[unit].item())
            assert not e.pixels()[x == empty].any()


def test_explanations_of_the_packaged_model_add_up(digits):
    head = RPN.load('mnist_dual_lphm').layers[0].heads[0]
    out = copy.deepcopy(head).double()(digits.test.x[:2].double())
    for x, row in zip(digits.test.x, out):
        for unit in (0, 63): exact(explain(head, x, unit), row[unit].item())


def test_a_form_gives_its_gradient():
    "The parts of an explanation are a polynomial, whose derivative is 2 A x + b"
    head = make(remainder='linear')
    x = rand(1, 6).requires_grad_()
    form = quadratic_form(head, 5)
    close(torch.autograd.grad(head(x)[0, 5], x)[0][0], 2*form.A @ x[0] + form.b)


def test_strongest_pairs():
    e = explain(make(), torch.tensor([1., -2., 3., 0., 0.5, 2.]), 0)
    pairs = sorted(((abs(2*e.pairs[i, j]).item(), i, j) for i in range(6) for j in range(i + 1, 6)), reverse=True)[:4]
    assert [(r['i'], r['j']) for r in e.strongest(4)] == [p[1:] for p in pairs] and len(e.strongest(99)) == 15 and e.strongest(0) == []
    assert e.strongest(1)[0]['adds'] == pytest.approx(2*e.pairs[pairs[0][1], pairs[0][2]].item())


# ---- baked heads

@pytest.mark.parametrize('psi', ['identity_reconciliation', 'lorr_reconciliation', 'dual_lphm_reconciliation', 'eigen_reconciliation', 'masking_reconciliation'])
@pytest.mark.parametrize('norm', NORMS)
def test_all_eigenvectors_are_the_head(psi, norm):
    for remainder in REMAINDERS:
        head = make(psi, norm=norm, channels=2, bias=remainder == 'zero', remainder=remainder, output='tanh')
        for x in (rand(9, 6), rand(0, 6)): close(head.bake(6)(x), head(x)) if len(x) else head.bake(6)(x)


@pytest.mark.parametrize('norm', ['none', 'plain'])
@pytest.mark.parametrize('k', range(6))
def test_fewer_are_the_best_of_their_rank(norm, k):
    head, x = make(norm=norm, remainder='constant'), rand(9, 6)
    baked = head.bake(k)
    for unit in range(6):
        A, b = by_hand(head, unit)
        values, vectors = np.linalg.eigh(A)
        keep = np.argsort(-np.abs(values))[:k]
        kept = vectors[:, keep]*values[keep] @ vectors[:, keep].T
        W = np.concatenate([b, kept.flatten()])
        if norm == 'plain': assert np.linalg.norm(W - W.mean() - np.concatenate([b, A.flatten()])) <= np.linalg.norm(kept - A) + 1e-12 # nearer for the LayerNorm
        close(baked(x)[:, unit], head.expansion(x).numpy() @ W - 1.5)
    assert baked.reconciliation.config() == {'name': 'eigen_reconciliation', **({'r': k} if k != 2 else {})}
    assert sum(p.numel() for p in baked.parameters()) == 6*(k*7 + 6)


def test_baking_changes_nothing_else():
    head = make(norm='scale and shift', channels=2).float().train()
    before, dice = copy.deepcopy(head.state_dict()), torch.get_rng_state()
    baked = head.bake(3)
    assert torch.equal(dice, torch.get_rng_state()) and all(torch.equal(v, before[k]) for k, v in head.state_dict().items())
    assert baked.training and baked.weight.dtype == torch.float32 and baked.m == baked.n == 6 and baked.weight.requires_grad
    assert torch.equal(keep_strongest(head, 2, eigen_forms(head, 5)).weight, head.bake(2).weight)
    plain, x = make(), rand(5, 6)
    close(plain.bake(3).bake(3)(x), plain.bake(3)(x)); close(plain.bake(5).bake(2)(x), plain.bake(2)(x)) # the strongest of the strongest


def test_a_baked_head_is_differentiable_and_can_be_trained_on():
    baked = make(norm='plain', bias=True).bake(2)
    names, values = zip(*baked.named_parameters())
    f = lambda x, *p: torch.func.functional_call(baked, dict(zip(names, p)), (x,))
    assert torch.autograd.gradcheck(f, (rand(3, 6).requires_grad_(), *values), atol=1e-6)
    x, target = rand(50, 6), rand(50, 6, seed=5)
    optimizer = torch.optim.SGD(baked.parameters(), 1e-3)
    losses = []
    for _ in range(20): optimizer.zero_grad(); loss = (baked(x) - target).square().mean(); loss.backward(); optimizer.step(); losses.append(loss.item())
    assert losses[-1] < losses[0]


def several():
    "Two layers with several heads, a fusion with parameters, and a signature"
    first = RPNLayer([make(m=6, n=4, norm='plain', seed=i) for i in (1, 2)], 'parameterized_weighted_summation')
    model = RPN([first, RPNLayer([make('lorr_reconciliation', m=4, n=3, seed=3)])]).double()
    nn.init.normal_(model.layers[0].fusion.weight) if getattr(model.layers[0].fusion, 'weight', None) is not None else None
    model.signature.name, model.signature.shape = 'mine', [6]
    return model


def test_models_of_several_heads():
    model, x = several(), rand(9, 6)
    close(model.bake(6)(x), model(x)); close(model.bake(4, layer=1)(x), model(x))
    one = model.bake(1, layer=0)
    assert [h.reconciliation.name for l in one.layers for h in l.heads] == ['eigen_reconciliation']*2 + ['lorr_reconciliation']
    assert one.signature == model.signature and one.layers[1].heads[0] is not model.layers[1].heads[0]
    middle = one.layers[0](x)
    close(middle, one.layers[0].fusion([h.bake(1)(x) for h in model.layers[0].heads])); close(one(x), model.layers[1](middle))
    assert [h.reconciliation.name for h in model.layers[0].heads] == ['identity_reconciliation']*2


FRESH = """
import sys, torch
from tinyrpn.model import RPN
model = RPN.load('baked.safetensors')
assert 'tinyrpn.quadratic' not in sys.modules
x, out = torch.load('x.pt', weights_only=True)
assert torch.equal(model(x), out) and model.signature.name == 'mine'
assert RPN.from_config({'model': model.config()}).config() == model.config()
print(model.describe())
"""


def test_a_baked_model_loads_in_a_process_of_its_own(tmp_path):
    model = several().float()
    baked, x = model.bake(2), rand(3, 6).float()
    baked.save(tmp_path/'baked.safetensors')
    torch.save((x, baked(x).detach()), tmp_path/'x.pt')
    done = subprocess.run([sys.executable, '-c', FRESH], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert 'LayerNorm of sum of squares' in done.stdout


def test_it_is_cheaper(trained):
    rows = [m.describe(64) for m in (trained, trained.bake(10))]
    assert rows[1][0]['MFLOP'] < rows[0][0]['MFLOP']/10 and rows[1][0]['parameters'] == 86_340 < rows[0][0]['parameters']/70 and rows[1][0]['MB'] < rows[0][0]['MB']


# ---- accuracy, slider, pictures

def test_accuracy_by_k(trained, digits):
    table = accuracy_by_k(trained, digits, ks=(0, 1, 20))
    assert [r['eigenvectors'] for r in table] == ['0', '1', '20', 'as it is'] and [r['parameters'] for r in table] == [7840, 15_690, 164_840, 6_154_400]
    for row, model in zip(table, (trained.bake(0), trained.bake(1), trained.bake(20), trained)):
        assert row['accuracy'] == pytest.approx((model(digits.test.x).argmax(1) == digits.test.y).float().mean().item())
    assert table[0]['accuracy'] < table[2]['accuracy'] > 0.8
    assert accuracy_by_k(trained, digits.test, ks=[1])[0] == table[1]


def test_the_slider_can_be_set_from_code(trained, digits):
    box = bake_slider(trained, digits, most=6)
    slider, bar, text = box.children
    assert slider.value == 5 and slider.max == 6 and slider.min == 0
    for k in (0, 6, 2):
        slider.value = k
        right = (trained.bake(k)(digits.test.x).argmax(1) == digits.test.y).float().mean().item()
        assert bar.value == pytest.approx(right) and f'{right:.1%} with {10*(k*785 + 784):,} parameters' in text.value
        assert box.model.layers[0].heads[0].reconciliation.r == k
    box.close_all()


def test_pictures(trained, digits, tmp_path):
    import matplotlib
    matplotlib.use('agg')
    import matplotlib.pyplot as plt
    head = trained.layers[0].heads[0]
    axes = plot_eigen_digits(head, units=[4, 2], k=1)
    positive, negative = eigen_digits(head, 2, 1)
    assert len(axes) == 4 and [a.get_title()[:3] for a in axes] == ['4: ', '2: ', '4: ', '2: ']
    close(axes[1].images[0].get_array(), positive.images[0]); close(axes[3].images[0].get_array(), negative.images[0])
    few = plot_eigen_digits(make('eigen_reconciliation', m=9, n=2), k=3)
    assert len(few) == 12 and sum(bool(a.images) for a in few) == 4 # of rank 2: no patterns of eigenvalue 0
    e = explain(head, digits.test.x[0], 7)
    ax = plot_explanation(e, k=5)
    close(ax.images[0].get_array(), e.pixels().view(28, 28)); assert len(ax.lines) == 5 and f'{e.total:+.2f}' in ax.get_title()
    best = e.strongest(1)[0]
    assert [list(map(int, v)) for v in ax.lines[0].get_data()] == [[best['i'] % 28, best['j'] % 28], [best['i']//28, best['j']//28]]
    assert len(plot_explanation(explain(make(), torch.zeros(6), 0), shape=(2, 3)).lines) == 15
    plt.gcf().savefig(tmp_path/'p.png'); plt.close('all')


def test_the_packaged_configuration():
    cfg = load_config('mnist_one_layer')
    head = cfg.model().layers[0].heads[0]
    assert (head.m, head.n, head.expansion.d, head.reconciliation.name, head.weight.numel()) == (784, 10, 2, 'identity_reconciliation', 6_154_400)
    assert [type(f) for f in head.expansion.post] == [nn.LayerNorm] and head.expansion.post[0].weight is None


# ---- what is refused

REFUSED = {
    'degree 3': (lambda: quadratic_form(make(d=3), 0), ParameterError, 'taylor(d=3)', 'taylor of degree 1 or 2'),
    'another expansion': (lambda: quadratic_form(make(expansion=create('chebyshev_expansion')), 0), ParameterError, 'chebyshev', '{name: taylor, d: 2}'),
    'a function before': (lambda: quadratic_form(make(expansion=TaylorExpansion(2, pre='tanh')), 0), ParameterError, 'pre=Tanh', 'no function before'),
    'a function after': (lambda: quadratic_form(make(expansion=TaylorExpansion(2, post='relu')), 0), ParameterError, 'post=ReLU', 'one LayerNorm'),
    'two LayerNorms': (lambda: quadratic_form(make(expansion=TaylorExpansion(2, post=[nn.LayerNorm(42), nn.LayerNorm(42)])), 0), ParameterError, 'LayerNorm + LayerNorm', 'one LayerNorm'),
    'RMSNorm': (lambda: quadratic_form(make(expansion=TaylorExpansion(2, post=nn.RMSNorm(42))), 0), ParameterError, 'post=RMSNorm', 'one LayerNorm'),
    'a remainder that bends': (lambda: quadratic_form(RPNHead(6, 6, TaylorExpansion(2), IdentityReconciliation(), BsplineRemainder()), 0), ParameterError, 'bspline_remainder', 'linear_remainder'),
    'an activation': (lambda: quadratic_form(RPNHead(6, 6, TaylorExpansion(2), IdentityReconciliation(), LinearRemainder(activation='tanh')), 0), ParameterError, 'activation', 'without functions around it'),
    'no head': (lambda: quadratic_form(nn.Linear(6, 6), 0), ParameterError, 'head=Linear', 'model.layers[0].heads[0]'),
    'a mask that changes': (lambda: quadratic_form(make(MaskingReconciliation(fixed_mask=False)).train(), 0), ParameterError, 'fixed_mask=False', 'head.eval()'),
    'a unit too many': (lambda: quadratic_form(make(), 6), ParameterError, 'unit=6', 'at most 5'),
    'a unit below 0': (lambda: explain(make(), torch.ones(6), -1), ParameterError, 'unit=-1', 'at least 0'),
    'no square': (lambda: eigen_digits(make(), 0), ShapeError, 'shape=(2, 2)', '6 inputs'),
    'no patterns': (lambda: eigen_digits(make(), 0, k=0, shape=(2, 3)), ParameterError, 'k=0', 'at least 1'),
    'no units': (lambda: plot_eigen_digits(make(), units=[], shape=(2, 3)), ParameterError, 'units=[]', 'from 0 to 5'),
    'a batch for a sample': (lambda: explain(make(), torch.ones(2, 6), 0), ShapeError, 'x has 12 numbers', 'one sample of 6'),
    'half a baseline': (lambda: explain(make(), torch.ones(6), 0, torch.ones(3)), ShapeError, 'baseline has 3 numbers', '6'),
    'a linear head baked': (lambda: make(d=1).bake(1), ParameterError, 'taylor(d=1)', 'a Taylor expansion of degree 2'),
    'more eigenvectors than there are': (lambda: make().bake(7), ParameterError, 'k=7', 'at most 6'),
    'fewer than none': (lambda: make().bake(-1), ParameterError, 'k=-1', 'at least 0'),
    'more than the forms have': (lambda: keep_strongest(make(), 4, eigen_forms(make(), 3)), ParameterError, 'k=4', 'at most 3'),
    'a layer that is not there': (lambda: several().bake(1, layer=2), ParameterError, 'layer=2', 'at most 1'),
    'a layer that cannot': (lambda: RPN([make(), make(d=1)]).bake(1), ParameterError, 'layer 1, head 0: ', 'degree 2'),
    'heads of other sizes': (lambda: eigen_cosines(make(), make(m=4), 0, 2), ShapeError, 'm=6 and m=4', 'equal'),
    'half an eigenvector': (lambda: accuracy_by_k(RPN([make()]), Batches(torch.rand(4, 6), torch.zeros(4, dtype=torch.long)), ks=[1.5]), ParameterError, 'ks=1.5', 'a whole number'),
}


@pytest.mark.parametrize('what', REFUSED)
def test_refused_in_one_line(what):
    f, kind, *parts = REFUSED[what]
    with pytest.raises(kind) as e: f()
    assert '\n' not in str(e.value) and all(p in str(e.value) for p in parts), str(e.value)
