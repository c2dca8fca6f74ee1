"Every registered component: written down, of the promised size, equal to an independent reference, finite, and there and back through YAML and a file."
import inspect
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings, strategies as st
from references import REFERENCES, STATISTICS

import tinyrpn.all as everything
from tinyrpn.all import *
from tinyrpn.checks import *
from tinyrpn.core import constructor_params, registry

KINDS = 'expansion', 'reconciliation', 'remainder', 'fusion'
CLASSES = sorted({cls for kind in KINDS for cls in registry()[kind].values() if cls.__module__.startswith('tinyrpn.')}, key=lambda c: (KINDS.index(c.kind), c.name))
of_kind = lambda *kinds: pytest.mark.parametrize('cls', [c for c in CLASSES if c.kind in kinds], ids=lambda c: c.name)
every = of_kind(*KINDS)
WORDS_ARE_ENOUGH = 'median_fusion', # a statistic that words say better than a formula


def reference(part):
    assert part.name in REFERENCES, f'{part.name} has no entry in references.py: write its formula there, with NumPy or SciPy and without the class'
    return REFERENCES[part.name](part)


# ---- written down

@every
def test_it_has_an_example(cls):
    try: part = example(cls)
    except TypeError as e: pytest.fail(f'{cls.name} cannot be built without parameters, and its class has no `sample` with some: {e}')
    assert type(part) is cls and part.kind == cls.kind


@every
def test_it_is_a_component_of_its_own(cls):
    assert not inspect.isabstract(cls) and not cls.__name__.startswith('_') and cls.name.endswith(f'_{cls.kind}'), f'{cls.__name__} is registered as {cls.name!r}'
    assert lookup(cls.name) is cls and cls.name in names(cls.kind)
    assert cls.__name__ in everything.__all__, f'{cls.__name__} is not among the public names'


@every
def test_it_has_a_formula_and_comments(cls):
    text = vars(cls).get('__doc__') or ''
    assert cls.name in WORDS_ARE_ENOUGH and len(text) > 20 or len(text.split('$')) >= 3, f'{cls.name} has no formula of its own between dollar signs in its docstring: {text!r}'
    assert cls.kind != 'expansion' or re.search(r'\bD = |D = ', text), f'{cls.name}: the docstring does not say D, the length of the expansion'
    check_written(cls)


@of_kind('expansion')
def test_it_says_where_it_is_defined(cls):
    part = example(cls)
    assert part.defined_on is not None or all(e.defined_on is not None for e in part.composition_functions), f'{cls.name} does not say where it is defined'
    assert part.domain in part.choices and part.edge in part.choices


def chapters():
    "module -> cells that do not define it"
    found = {}
    for path in Path(__file__).parent.parent.glob('*.ipynb'):
        cells = [''.join(c['source']) for c in json.loads(path.read_text(encoding='utf-8'))['cells']]
        for module in re.findall(r'#\s*\|\s*default_exp (\S+)', '\n'.join(cells)): found['tinyrpn.' + module.removesuffix('.__init__')] = [c for c in cells if not re.match(r'#\s*\|\s*export', c)]
    return found


CHAPTERS = chapters()


@every
def test_its_chapter_names_it(cls):
    assert cls.__module__ in CHAPTERS, f'{cls.name}: no chapter exports {cls.__module__}'
    short = cls.name.removesuffix(f'_{cls.kind}')
    wanted = rf'\b({cls.__name__}|{cls.name})\b|[`\'"]{short}[`\'"]'
    assert any(re.search(wanted, cell) for cell in CHAPTERS[cls.__module__]), f'{cls.name}: the chapter of {cls.__module__} shows or names {cls.__name__} nowhere but in its definition'


# ---- sizes, values, derivatives, edges

@of_kind('expansion', 'reconciliation', 'remainder')
def test_size(cls): check_size(example(cls))


@of_kind('expansion', 'reconciliation', 'remainder')
def test_values(cls): check_values(part := example(cls), reference(part))


@of_kind('expansion', 'reconciliation')
def test_contraction(cls): check_contraction(example(cls))


@of_kind('expansion', 'reconciliation', 'remainder')
def test_gradient(cls): check_gradient(example(cls))


@of_kind('expansion')
def test_edges(cls): check_edges(example(cls))


# ---- the same for fusions

FUSED = {'weighted_summation_fusion': [{'weights': [0.5, 2.]}, {'weights': [1, -1, 3]}], 'metric_fusion': [{'metric': k} for k in STATISTICS]}
MORE = {'': [{'n': 5}], 'lowrank_': [{'r': 3}], 'hm_': [{'p': 3, 'q': 4}, {'p': 1}], 'lphm_': [{'p': 2, 'q': 6, 'r': 1}], 'dual_lphm_': [{'q': 3, 'n': 4}], 'random_matrix_adaption_': [{'r': 1, 'n': 2}]}
FUSED.update({f'{k}parameterized_concatenation_fusion': [{}, *v] for k, v in MORE.items()})


def fusions(cls):
    "(fusion, sizes of the heads), ready to be used"
    for params in FUSED.get(cls.name, [{}]):
        params = params or dict(getattr(cls, 'sample', {}))
        for sizes in ([6]*len(params.get('weights', '12')), [6]*len(params.get('weights', '123')), *([[6], [6]*4] if 'weights' not in params else []), *([[4, 6, 2]] if params.get('n') or cls.name == 'concatenation_fusion' else [])):
            fusion = cls(**params)
            try: fusion.out(sizes); fusion.prepare(sizes)
            except ShapeError: continue
            yield fusion, sizes


def results(sizes, batch, dtype=torch.float64): return [torch.rand(batch, n, dtype=torch.float64, generator=torch.Generator().manual_seed(i)).sub(0.4).to(dtype) for i, n in enumerate(sizes)]


@of_kind('fusion')
def test_fusions_have_the_promised_size(cls):
    for fusion, sizes in fusions(cls):
        for batch in (0, 1, 3):
            for dtype in (torch.float32, torch.float64):
                out = fusion.to(dtype)(results(sizes, batch, dtype))
                assert out.shape == (batch, fusion.out(sizes)) and out.dtype == dtype, (fusion, sizes)


@of_kind('fusion')
def test_fusions_equal_their_references(cls):
    seen = 0
    for fusion, sizes in fusions(cls):
        fusion, z = fusion.double(), results(sizes, 3)
        weight = getattr(fusion, 'weight', None)
        if weight is not None: weight = torch.nn.init.normal_(weight).detach().numpy()
        np.testing.assert_allclose(fusion(z).detach(), reference(fusion)([v.numpy() for v in z], weight), rtol=1e-12, atol=1e-12, err_msg=f'{fusion} of {sizes}')
        seen += 1
    assert seen >= 2


@of_kind('fusion')
def test_fusions_have_the_gradients_of_finite_differences(cls):
    for fusion, sizes in fusions(cls):
        fusion = fusion.double()
        z = [v.requires_grad_() for v in results(sizes, 2)]
        assert torch.autograd.gradcheck(lambda *z: fusion(list(z[:len(sizes)])), (*z, *fusion.parameters()))


# ---- YAML, and a file of weights

OTHER = {'linear_expansion': {'post_C': [[1., 0.5], [0., 2.], [-1., 0.25], [3., 1.]]}, 'taylor_expansion': {'d': 3}, 'fourier_expansion': {'P': 4.5, 'N': 2}, 'bspline_expansion': {'grid_range': [-2., 2.], 't': 3, 'd': 2, 'domain': 'squash'},
         'chebyshev_expansion': {'d': 4, 'domain': 'clamp'}, **{f'{k}_expansion': {'d': 3} for k in ('legendre', 'hermite', 'bessel', 'reverse_bessel', 'fibonacci', 'lucas')}, 'laguerre_expansion': {'d': 3, 'alpha': 0.5}, 'gegenbauer_expansion': {'alpha': 2.5}, 'jacobi_expansion': {'d': 3, 'alpha': 0.5, 'beta': -0.5}, 'combinatorial_expansion': {'d': 3, 'with_replacement': True},
         'combinatorial_normal_expansion': {'d': 2}, 'gaussian_rbf_expansion': {'base_range': [-3., 2.], 'num_interval': 4, 'epsilon': 0.5}, 'inverse_quadratic_rbf_expansion': {'base_range': [0., 2.], 'num_interval': 3}, 'haar_wavelet_expansion': {'d': 2, 's': 2, 't': 2, 'a': 2., 'b': 0.5},
         'beta_wavelet_expansion': {'alpha': 2., 'beta': 3., 't': 2}, 'ricker_wavelet_expansion': {'sigma': 0.5, 's': 2, 'a': 2.}, 'dog_wavelet_expansion': {'sigma_1': 0.5, 'sigma_2': 1.5}, 'meyer_wavelet_expansion': {'t': 2, 'b': 0.5}, 'shannon_wavelet_expansion': {'s': 2, 'a': 0.5},
         'nested_expansion': {'composition_functions': [{'name': 'chebyshev', 'd': 2}, 'taylor']}, 'extended_expansion': {'composition_functions': ['identity', {'name': 'nested', 'composition_functions': ['normal', 'identity']}]},
         'constant_reconciliation': {'c': 0.5}, 'masking_reconciliation': {'p': 0.25}, 'lorr_reconciliation': {'r': 3}, 'eigen_reconciliation': {'r': 3}, 'hm_reconciliation': {'p': 4, 'q': 2}, 'lphm_reconciliation': {'p': 1, 'r': 1}, 'dual_lphm_reconciliation': {'q': 4, 'r': 3}, 'image_hm_reconciliation': {'frequencies': 2, 'reach': 1}, 'duplicated_padding_reconciliation': {'p': 4, 'q': 2},
         'duplicated_diagonal_padding_reconciliation': {'p': 2, 'q': 4}, 'hypernet_reconciliation': {'l': 5, 'hidden_dim': 3, 'static': False, 'seed': 3}, 'random_matrix_adaption_reconciliation': {'r': 3, 'seed': 1}, 'random_matrix_hypernet_reconciliation': {'r': 3, 'l': 4, 'hidden_dim': 5},
         'constant_remainder': {'c': -2.}, 'linear_remainder': {'bias': True, 'activation': 'tanh'}, 'bspline_remainder': {'grid_range': [-3., 3.], 't': 2, 'd': 1}, 'expansion_remainder': {'expansion': {'name': 'taylor', 'd': 3}, 'bias': True},
         'weighted_summation_fusion': {'weights': [3., -1.]}, 'metric_fusion': {'metric': 'variance'},
         **{f'{k}parameterized_concatenation_fusion': v for k, v in {'': {'n': 5}, 'lowrank_': {'r': 3}, 'hm_': {'p': 1, 'q': 4}, 'lphm_': {'p': 2, 'q': 8, 'r': 1}, 'dual_lphm_': {'q': 2, 'n': 6}, 'random_matrix_adaption_': {'r': 1, 'n': 2}}.items()}}


def model_with(name, kind, params):
    "The short form of a model of two layers, with the component in the first one"
    spec = {'name': name, **params} if params else name
    first = {'m': 4, 'n': 4, 'expansion': 'taylor', **({'fusion': spec, 'width': 2} if kind == 'fusion' else {kind: spec})}
    outputs = 8 if name.startswith('concatenation') else params.get('n', 4) if kind == 'fusion' else 4
    return {'seed': 1, 'model': {'layers': [first, {'m': outputs, 'n': 3, 'expansion': 'identity'}]}}


@pytest.mark.parametrize('short', [False, True], ids=['full name', 'short name'])
@pytest.mark.parametrize('other', [False, True], ids=['sample', 'other parameters'])
@every
def test_there_and_back_through_yaml_and_a_file(cls, other, short, tmp_path):
    if other and not (constructor_params(cls).keys() - {'pre', 'post', 'domain', 'activation', 'seed'}): pytest.skip('no parameters')
    assert not other or cls.name in OTHER, f'{cls.name}: OTHER has no parameters for it that are not its defaults'
    params = OTHER[cls.name] if other else getattr(cls, 'sample', {})
    path = tmp_path/'a model.yaml'
    path.write_text(yaml.safe_dump(model_with(cls.name.removesuffix(f'_{cls.kind}') if short else cls.name, cls.kind, params)))
    torch.manual_seed(0)
    model = load_config(path).model()
    part = model.layers[0].fusion if cls.kind == 'fusion' else getattr(model.layers[0].heads[0], cls.kind)
    assert type(part) is cls
    plain = json.loads(json.dumps(part.settings(), default=lambda o: o.config()))
    for k, v in params.items(): assert isinstance(v, (list, dict, str)) and k in plain or plain.get(k, constructor_params(cls)[k].default) == v, f'{cls.name}: {k}={v!r} was asked for; the settings are {plain}'

    x = torch.rand(5, 4)*0.8 + 0.1
    out = model(x)
    assert out.shape == (5, 3) and out.isfinite().all()
    text = yaml.safe_dump({'model': model.config()})
    (tmp_path/'again.yaml').write_text(text)
    again = load_config(tmp_path/'again.yaml')
    assert again.model().config() == model.config() and yaml.safe_dump({'model': again.model().config()}) == text
    assert load_config(again.short()).model().config() == model.config()
    model.save(tmp_path/'m.safetensors')
    loaded = RPN.load(tmp_path/'m.safetensors')
    assert loaded.config() == model.config()
    for (k, a), (l, b) in zip(model.state_dict().items(), loaded.state_dict().items(), strict=True): assert k == l and a.dtype == b.dtype and torch.equal(a, b), k
    assert torch.equal(loaded.eval()(x), model.eval()(x))


# ---- the names and parameters of RPN version 1

PUBLISHED = {
    'expansion': '''identity; reciprocal; linear c pre_C post_C; taylor d; fourier P N; trigonometric; hyperbolic; arc_trigonometric; arc_hyperbolic;
        normal; cauchy; chi2; gamma; exponential; laplace; hybrid_probabilistic; naive_normal; naive_cauchy; naive_chi2; naive_gamma; naive_exponential; naive_laplace;
        gaussian_rbf base_range num_interval epsilon; inverse_quadratic_rbf base_range num_interval epsilon; bspline grid_range t d;
        chebyshev d; legendre d; hermite d; laguerre d alpha; gegenbauer d alpha; jacobi d alpha beta; bessel d; reverse_bessel d; fibonacci d; lucas d;
        haar_wavelet a b; harr_wavelet a b; ricker_wavelet sigma a b; beta_wavelet alpha beta a b; dog_wavelet sigma_1 sigma_2 a b; shannon_wavelet a b; meyer_wavelet a b;
        combinatorial d with_replacement; combinatorial_normal d with_replacement; extended composition_functions; nested composition_functions''',
    'reconciliation': '''identity; constant c; zero; one; constant_eye; masking p fixed_mask; duplicated_padding p q; duplicated_diagonal_padding p q; lorr r; hm p q; lphm p q r; dual_lphm p q r;
        hypernet l hidden_dim static; random_matrix_adaption r; random_matrix_hypernet r l hidden_dim''',
    'remainder': 'zero; one; constant c; identity; linear; bspline grid_range t d; expansion expansion',
    'fusion': '''average; mean; summation; sum; weighted_summation weights; parameterized_weighted_summation; prod; max; min; median; metric metric; l1_norm; l2_norm; concatenation; parameterized_concatenation n;
        lowrank_parameterized_concatenation r n; hm_parameterized_concatenation p q n; lphm_parameterized_concatenation p q r n; dual_lphm_parameterized_concatenation p q r n; random_matrix_adaption_parameterized_concatenation r n'''}
PUBLISHED = [(f'{name}_{kind}', kind, params) for kind, text in PUBLISHED.items() for name, *params in map(str.split, text.split(';'))]
ALIASES = {'harr_wavelet_expansion': 'haar_wavelet_expansion', 'mean_fusion': 'average_fusion', 'sum_fusion': 'summation_fusion'}


@pytest.mark.parametrize('name,kind,params', PUBLISHED, ids=[p[0] for p in PUBLISHED])
def test_published_names_and_parameters(name, kind, params):
    cls = lookup(name, kind)
    assert cls.name == ALIASES.get(name, name) and lookup(name.removesuffix(f'_{kind}'), kind) is cls
    assert not [k for k in params if k not in constructor_params(cls)], f'{name} lacks a published parameter: it has {list(constructor_params(cls))}'


def test_all_that_is_published_is_registered(): assert {ALIASES.get(p[0], p[0]) for p in PUBLISHED} <= {c.name for c in CLASSES}
def test_references_are_of_components(): assert set(REFERENCES) <= {c.name for c in CLASSES}, 'a reference for a component that is not there'


# ---- parameters, sizes and inputs at random

EXAMPLES = 25 # an expansion
whole = st.integers
fine = lambda low, high: st.integers(int(low*8), int(high*8)).map(lambda i: i/8) # exact in every precision, so that jumps are where they should be
ranges = st.tuples(fine(-3, 0), fine(0.5, 3)).map(list)
params = lambda **kwargs: lambda m: st.fixed_dictionaries({}, optional=kwargs)
degree = lambda high=6, **kwargs: params(d=whole(1, high), **kwargs)
wave = lambda **kwargs: params(d=whole(1, 2), s=whole(1, 2), t=whole(1, 2), a=st.sampled_from([0.5, 1., 2., 4.]), b=fine(0, 2), **kwargs)
matrix = lambda rows, columns: st.lists(st.lists(fine(-2, 2), min_size=columns, max_size=columns), min_size=rows, max_size=rows)
groups = lambda m: st.booleans().flatmap(lambda again: st.fixed_dictionaries({'d': whole(1, 3 if again else min(3, m)), 'with_replacement': st.just(again)}))
simple = st.sampled_from(['identity', 'chebyshev', {'name': 'taylor', 'd': 2}, {'name': 'fourier', 'N': 1}, {'name': 'bspline', 't': 2, 'd': 1}, 'naive_gamma', 'arc_trigonometric'])
parts = lambda most: lambda m: st.lists(simple, min_size=1, max_size=most).map(lambda v: {'composition_functions': v})
unlike = lambda d: d.get('sigma_1', 1.) != d.get('sigma_2', 2.)

DRAWN = {'linear': lambda m: st.one_of(params(c=fine(-3, 3))(m), whole(1, 4).flatmap(lambda D: matrix(D, m)).map(lambda C: {'pre_C': C}), whole(1, 4).flatmap(lambda D: matrix(m, D)).map(lambda C: {'post_C': C})),
         'taylor': degree(3), 'fourier': params(P=fine(0.5, 20), N=whole(1, 4)), 'bspline': params(grid_range=ranges, t=whole(1, 6), d=whole(0, 7)),
         **{name: degree() for name in ('chebyshev', 'legendre', 'hermite', 'bessel', 'reverse_bessel', 'fibonacci', 'lucas')},
         'laguerre': degree(alpha=fine(-0.875, 4)), 'gegenbauer': degree(alpha=fine(-0.375, 4).filter(bool)), 'jacobi': degree(alpha=fine(-0.875, 4), beta=fine(-0.875, 4)),
         'combinatorial': groups, 'combinatorial_normal': groups, 'extended': parts(3), 'nested': parts(2),
         **{name: params(base_range=ranges, num_interval=whole(1, 12), epsilon=fine(0.125, 4)) for name in ('gaussian_rbf', 'inverse_quadratic_rbf')},
         'haar_wavelet': wave(), 'shannon_wavelet': wave(), 'meyer_wavelet': wave(), 'ricker_wavelet': wave(sigma=fine(0.125, 3)), 'beta_wavelet': wave(alpha=fine(1, 6), beta=fine(1, 6)),
         'dog_wavelet': lambda m: wave(sigma_1=fine(0.125, 3), sigma_2=fine(0.125, 3))(m).filter(unlike)}
NUMBERS = {'float32': torch.float32, 'float64': torch.float64, 'bfloat16': torch.bfloat16}


@st.composite
def drawn(draw, cls, m, domain=None):
    "An instance with parameters of its own"
    given = draw(DRAWN.get(cls.name.removesuffix('_expansion'), params())(m))
    choices = [c for c in cls.choices if c != 'error']
    return cls(**given, domain=draw(st.sampled_from(domain or [None, *choices])))


def batch_of(data, batch, m, numbers): return torch.tensor(data.draw(st.lists(numbers, min_size=batch*m, max_size=batch*m)), dtype=torch.float64).reshape(batch, m)


def test_every_parameter_of_an_expansion_is_drawn():
    for cls in CLASSES:
        if cls.kind != 'expansion' or not (own := constructor_params(cls).keys() - {'pre', 'post', 'domain'}): continue
        assert cls.name.removesuffix('_expansion') in DRAWN, f'{cls.name} has parameters {own}, and DRAWN has no strategies for them'


@of_kind('expansion')
@settings(max_examples=EXAMPLES, deadline=None)
@given(data=st.data())
def test_any_expansion_equals_its_reference(cls, data):
    m, batch = data.draw(whole(1, 5)), data.draw(whole(0, 4))
    part = data.draw(drawn(cls, m))
    x = batch_of(data, batch, m, st.floats(-3, 3, width=32).filter(lambda v: v == 0 or abs(v) > 1e-30))
    D, f = part.dim(m), reference(part)
    with np.errstate(all='ignore'): exact, near = f(x.numpy()), [f(x.numpy()*(1 + s)) for s in (-1e-6, 1e-6)]
    assert exact.shape == (batch, D), 'the reference has another size'
    for dtype in NUMBERS.values():
        out = part(x.to(dtype))
        assert out.shape == part.lazy(x.to(dtype)).dense().shape == (batch, D) and out.dtype == dtype
        if dtype == torch.bfloat16 or not out.numel(): continue
        largest = np.abs(exact).max(1, keepdims=True)
        allowed = 1e-9*(1 + largest) if dtype == torch.float64 else 1e-3*(1 + largest) + 2*sum(np.abs(v - exact) for v in near) # a steep place may move a little
        worst = np.unravel_index(np.argmax(np.abs(out.double().numpy() - exact) - allowed), exact.shape)
        assert np.abs(out.double().numpy() - exact)[worst] <= np.broadcast_to(allowed, exact.shape)[worst], f'{part!r}, {dtype}: {out[worst].item():.12g} for x={x[worst[0]].tolist()} at place {worst[1]}, and {exact[worst]:.12g} is expected'


def too_large(part, x, most):
    "Whether the true value, or that of a part of a nested expansion, is larger than `most`"
    steps = part.composition_functions if part.name == 'nested_expansion' else [part]
    with np.errstate(all='ignore'):
        for e in steps:
            if e is not part and too_large(e, x, most): return True
            x = reference(e)(x)
    return not np.all(np.abs(x) < most)


@of_kind('expansion')
@settings(max_examples=EXAMPLES, deadline=None)
@given(data=st.data())
def test_any_finite_number_gives_finite_numbers(cls, data):
    "With 'clamp' and 'squash'"
    m, dtype = data.draw(whole(1, 3)), data.draw(st.sampled_from([torch.float32, torch.float64]))
    numbers = st.sampled_from(extremes(dtype)) | st.floats(allow_nan=False, allow_infinity=False, width=32 if dtype == torch.float32 else 64)
    check_finite(data.draw(drawn(cls, m, ['clamp', 'squash'])), batch_of(data, 2, m, numbers).to(dtype))


@of_kind('expansion')
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=str)
def test_extreme_numbers_give_finite_numbers(cls, dtype):
    for domain in ('clamp', 'squash'):
        for x in extremes(dtype): check_finite(cls(**getattr(cls, 'sample', {}), domain=domain), torch.full((1, 2), x, dtype=dtype))


def extremes(dtype): return [s*v for s in (-1, 1) for v in (0., 1., torch.finfo(dtype).tiny, 1e-20, 1e10, 1e30, torch.finfo(dtype).max**0.49, torch.finfo(dtype).max)]


def check_finite(part, x):
    "Finite values and derivatives; an error is accepted only where the true value is too large for the precision"
    leaf = x.clone().requires_grad_()
    try: out = part(leaf)
    except RangeError as e:
        assert too_large(part, x.double().numpy(), torch.finfo(x.dtype).max/1e3), f'{part!r} of x={x.tolist()} is refused, although its true value is not too large: {e}'
        return
    assert out.isfinite().all(), f'{part!r} of x={x.tolist()} is {out.tolist()}'
    if out.requires_grad and x.abs().max() < 1e15: assert torch.autograd.grad(out.sum(), leaf)[0].isfinite().all(), f'the derivative of {part!r} at x={x.tolist()}'


@pytest.mark.parametrize('psi,params', [(cls, p) for cls in CLASSES if cls.kind == 'reconciliation' for p in [{}, *([OTHER[cls.name]] if cls.name in OTHER else [])]], ids=lambda v: getattr(v, 'name', str(v)))
@settings(max_examples=10, deadline=None)
@given(n=whole(1, 3), D=whole(1, 3), seed=whole(0, 99), fixed=st.booleans())
def test_any_reconciliation_equals_its_reference(psi, params, n, D, seed, fixed):
    n, D = 4*n, 4*D # whatever divides 4 divides them
    part = psi(**params, **({'fixed_mask': fixed} if psi.name == 'masking_reconciliation' else {})).eval()
    w = torch.randn(part.numel(n, D), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    for dtype, rtol in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        out = part(w.to(dtype), n, D)
        exact = reference(part)(w.numpy(), n, D)
        assert out.dtype == dtype and exact.shape == out.shape == (n, D)
        np.testing.assert_allclose(out.detach().double(), exact, rtol=rtol, atol=rtol*max(1, np.abs(exact).max()))


@of_kind('remainder')
@settings(max_examples=10, deadline=None)
@given(m=whole(1, 5), n=whole(1, 5), batch=whole(0, 4), seed=whole(0, 99), other=st.booleans())
def test_any_remainder_equals_its_reference(cls, m, n, batch, seed, other):
    part = cls(**({k: v for k, v in OTHER[cls.name].items() if k != 'activation'} if other and cls.name in OTHER else getattr(cls, 'sample', {})))
    if cls.name == 'identity_remainder': n = m
    gen = torch.Generator().manual_seed(seed)
    rand = lambda shape: torch.randn(shape, dtype=torch.float64, generator=gen)
    x, weights = rand((batch, m)), {k: rand(s) for k, s in part.shapes(m, n).items()}
    np.testing.assert_allclose(part(x, weights, n), reference(part)(x.numpy(), {k: v.numpy() for k, v in weights.items()}, n), rtol=1e-9, atol=1e-9)
