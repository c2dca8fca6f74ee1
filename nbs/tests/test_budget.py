"Budgets: what is chosen meets every limit and is the best that does; counts are those of the model; a refusal names limits that work."
import copy
import io
import math
import pickle
import resource
import sys
import time

import numpy as np
import pytest
import torch
from conftest import pace
from hypothesis import HealthCheck, given, settings, strategies as st

from tinyrpn.budget import ENOUGH, BudgetError, as_bytes, as_seconds, frontier, plans, step_seconds
from tinyrpn.core import ParameterError, ShapeError, TinyRPNError, UnknownNameError, UnknownParameterError, create
from tinyrpn.memory import Meter
from tinyrpn.model import RPN


def clock(model, batch, optimizer):
    "A machine that is the same everywhere: some time a layer, and some a weight and a number of kappa(x)"
    heads = [h for l in model.layers for h in l.heads]
    return 1e-4*len(heads) + 1e-9*sum(p.numel() for p in model.parameters()) + 1e-10*batch*sum(h.D for h in heads)


def counting(model, batch, optimizer):
    "A machine whose time is what is counted"
    costs = [h.cost(batch, input_grad=i > 0) for i, h in enumerate(l.heads[0] for l in model.layers)]
    return 1e-4 + sum(1e-6*c['calls'] + 1e-9*c['flop'] for c in costs) + 1e-9*size(model)


def ask(m, n, **kwargs): return RPN.for_budget(m, n, timer=clock, **kwargs)


def size(model): return sum(p.numel() for p in model.parameters())


def every(groups): return [p for g in groups for p in g]


def kept(model, m, n, params=None, memory=None, step=None, batch=64):
    "Whether a model keeps what was promised of it"
    plan = model.budget.plan
    assert size(model) == plan.parameters and (params is None or plan.parameters <= params)
    assert math.isfinite(plan.memory) and (memory is None or plan.memory <= as_bytes(memory))
    assert step is None or model.budget.measured <= as_seconds(step)
    assert (model.m, model.n) == (m, n) and model(torch.zeros(3, m)).shape == (3, n)


SIZES = st.sampled_from([1, 2, 3, 4, 7, 13, 30, 64, 101, 257])


@settings(max_examples=12, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(m=SIZES, n=st.sampled_from([1, 2, 3, 7, 10, 101]), params=st.one_of(st.none(), st.integers(1, 200_000)), memory=st.one_of(st.none(), st.sampled_from([500, '20 kB', '200 kB', '3 MB', '30 MB'])),
       step=st.one_of(st.none(), st.sampled_from(['20 us', '150 us', '400 us', 0.001, '1 s'])), batch=st.sampled_from([1, 8, 64]))
def test_a_budget_is_kept_or_refused_with_one_that_is(m, n, params, memory, step, batch):
    asked = dict(params=params, memory=memory, step=step)
    if params is None and memory is None: asked['memory'] = '30 MB' # lest the test takes long
    for turn in range(4): # each refusal names one limit
        try: kept(ask(m, n, batch=batch, **asked), m, n, **asked); break
        except BudgetError as e:
            assert e.limits and all(f'{k}={v!r}' in str(e) for k, v in e.limits.items()), str(e)
            (k, v), = e.limits.items()
            assert str(asked[k]) in str(e) and (k == 'params' and v > asked[k] or k == 'memory' and as_bytes(v) > as_bytes(asked[k]) or k == 'step' and as_seconds(v) > as_seconds(asked[k]))
            asked[k] = v
    else: raise AssertionError(f'refused again and again: {asked}')
    assert turn <= 3


@pytest.mark.parametrize('m, n, options', [(13, 7, dict(reconciliations=('identity', 'lphm', 'eigen'))), (5, 1, {}), (64, 10, dict(hidden=[(), (8, 8)], expansions=('taylor', 'identity'), reconciliations=('hm', 'eigen'))), (37, 3, dict(expansions=('taylor',), channels=(1, 3)))])
def test_nothing_better_would_have_fitted(m, n, options):
    "Against all plans, counted one by one"
    alle = every(plans(m, n, **options))
    sizes, memories = sorted(p.parameters for p in alle), sorted(p.memory for p in alle)
    for part in (0., 0.2, 0.5, 0.8, 1.):
        params, memory = sizes[int(part*(len(sizes) - 1))], memories[int((1 - part)*(len(memories) - 1))]
        fit = [p.key for p in alle if p.parameters <= params and p.memory <= memory]
        if not fit:
            with pytest.raises(BudgetError, match='memory='): ask(m, n, params=params, memory=memory, **options)
            continue
        assert ask(m, n, params=params, memory=memory, **options).budget.plan.key == max(fit)


@pytest.mark.parametrize('m, n', [(1, 1), (2, 1), (7, 5), (30, 2), (64, 11), (101, 13), (3072, 100)])
def test_counts_are_those_of_the_model(m, n):
    for p in every(plans(m, n))[::3]:
        assert p.parameters == size(p.outline), p
        assert p.outline.m == m and p.outline.n == n


def jacobian(part, n, D, channels):
    "Of the mean of the channels' matrices, by all their parameters, at a random place, float64"
    w = torch.randn(channels, part.numel(n, D), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    matrix = lambda w: sum(part(v, n, D) for v in w).flatten()/channels
    return matrix(w).view(n, D), torch.autograd.functional.jacobian(matrix, w).flatten(1)


@pytest.mark.parametrize('m, n', [(3, 4), (4, 6), (5, 3), (3, 9)])
def test_features_and_freedom_are_ranks(m, n):
    "The rank of a random matrix, and of its derivative: what can be told apart, counted by linear algebra"
    from tinyrpn.budget import _counts
    import json
    seen = 0
    for p in every(plans(m, n, expansions=('taylor',), hidden=())):
        h = p.heads[0]; spec = h['reconciliation']; part = create(**spec) if 'name' not in spec else create(spec['name'], **{k: v for k, v in spec.items() if k != 'name'})
        l, rank, freedom = _counts(n, D := m*(m + 1), json.dumps(spec), h.get('channels', 1))
        W, J = jacobian(part, n, D, h.get('channels', 1))
        assert rank == torch.linalg.matrix_rank(W), p
        if h.get('channels', 1) == 1: assert freedom == torch.linalg.matrix_rank(J), p
        else: assert torch.linalg.matrix_rank(J) <= freedom, p # sums of Kronecker products overlap
        seen += 1
    assert seen >= 10


def test_the_published_models_are_among_the_plans():
    found = {p.parameters: p for p in every(plans(784, 10, hidden=(64, 64), expansions=('taylor',)))}
    for parameters, config in ((39_696_000, 'mnist'), (9_330, 'mnist_dual_lphm')):
        with torch.device('meta'): reference = RPN.from_config(config)
        assert [h.formula() for l in found[parameters].outline.layers for h in l.heads] == [h.formula() for l in reference.layers for h in l.heads]


def test_each_plan_of_the_frontier_is_what_its_parameters_buy():
    found = frontier(784, 10)
    assert all(a.parameters < b.parameters and a.key < b.key for a, b in zip(found, found[1:])) and len(found) > 20
    for p in found[::12]:
        if p.parameters < 300_000: assert ask(784, 10, params=p.parameters).budget.plan.key == p.key
    assert {p.key[0] for p in found} >= {1, 10} and max(p.key[0] for p in frontier(784, 100)) == ENOUGH


def test_a_step_is_as_short_as_promised():
    options = dict(params=30_000, expansions=('taylor', 'identity'), reconciliations=('hm', 'eigen'), hidden=[(), (16,), (16, 16)], channels=1)
    free = ask(100, 10, **options).budget.plan
    seconds, best = {p: counting(p.outline, 64, 'AdamW') for p in every(plans(100, 10, **{k: v for k, v in options.items() if k != 'params'})) if p.parameters <= 30_000}, []
    for share in (2., 0.7, 0.3):
        limit = share*max(seconds.values())
        model = RPN.for_budget(100, 10, timer=counting, step=limit, **options)
        kept(model, 100, 10, params=30_000, step=limit)
        assert model.budget.plan.key >= max(p.key for p, s in seconds.items() if s <= 0.75*limit) # predictions are off by a little
        assert abs(model.budget.predicted/model.budget.measured - 1) < 0.3 # from seven samples
        best.append(model.budget.plan.key)
    assert best == sorted(best, reverse=True) and best[0] == free.key and best[-1] < best[0]


def test_little_memory_does_not_make_it_timid():
    "Speeds that could not be measured within the memory are hoped for, not feared"
    options = dict(hidden=(), reconciliations=('identity', 'eigen'), expansions=('taylor', 'identity'))
    small = next(p for g in plans(784, 10, **options) for p in g if 'eigen' in p.formula)
    for memory in ('3 MB', '300 MB'): assert RPN.for_budget(784, 10, params=16_000, memory=memory, step=1.1*counting(small.outline, 64, 'AdamW'), timer=counting, **options).budget.plan.formula == small.formula


def test_one_outlier_does_not_rule_out_the_rest():
    "The first step that is timed takes ten times too long"
    calls, options = [], dict(hidden=[(), (16,), (64,)], reconciliations=('eigen', 'identity'), expansions=('taylor', 'identity'))
    seconds = sorted(counting(p.outline, 64, 'AdamW') for p in every(plans(784, 10, **options)) if p.parameters < 10**5)
    plain = RPN.for_budget(784, 10, params=10**5, timer=counting, step=(limit := seconds[len(seconds)//2]), **options).budget
    def once(model, batch, optimizer):
        calls.append(size(model))
        return counting(model, batch, optimizer)*(10 if len(calls) == 8 else 1) # after the seven samples
    model = RPN.for_budget(784, 10, params=10**5, timer=once, step=limit, **options)
    assert model.budget.plan.key[:2] == plain.plan.key[:2] and len(calls) > 8
    kept(model, 784, 10, params=10**5, step=limit)


def test_predictions_follow_the_clock():
    "A machine that is twice as slow is predicted to be twice as slow"
    slow = lambda *args: 2*clock(*args)
    a, b = (RPN.for_budget(100, 10, params=30_000, timer=t).budget for t in (clock, slow))
    assert a.plan.key == b.plan.key and b.measured == pytest.approx(2*a.measured) and b.predicted == pytest.approx(2*a.predicted)


def test_a_promise_that_the_clock_breaks_is_not_given():
    "Whatever was predicted, only what has been timed counts; the next plan is tried, and not for ever"
    calls = []
    def moody(model, batch, optimizer):
        calls.append(size(model))
        return clock(model, batch, optimizer)*(50 if 5_000 < size(model) < 20_000 else 1)
    model = RPN.for_budget(100, 10, params=20_000, step='2 ms', timer=moody, hidden=(16,))
    assert size(model) <= 5_000 and model.budget.measured <= 2e-3 and len(calls) < 20


def test_two_limits_that_conflict():
    options = dict(expansions=('taylor',), reconciliations=('hm', 'eigen'), hidden=())
    with pytest.raises(BudgetError, match=r"memory='3 MB'.*within params=6,000.*memory='(.*?)' would do; or params=15690 with memory='(.*?)'") as e: ask(784, 10, params=6000, memory='3 MB', **options)
    kept(ask(784, 10, params=6000, **e.value.limits, **options), 784, 10, params=6000, **e.value.limits)
    assert ask(784, 10, params=15_690, memory='3 MB', **options).budget.plan.heads[0]['reconciliation']['name'] == 'eigen_reconciliation'


@pytest.mark.parametrize('kwargs, said', [
    (dict(params=0), 'params=0: a whole number'), (dict(params=True), 'params=True'), (dict(params=1e4), 'params=10000.0'), (dict(params='10'), "params='10'"), (dict(params=-3), 'params=-3'), (dict(params=math.nan), 'params=nan'),
    *((dict(memory=v), f'memory={v!r}: \'256 MB\'') for v in (0, -1, True, math.nan, math.inf, '256', '256 M', 'MB', '', '1,5 GB', '-1 MB', '0 MB', 'nan MB', '1e400 MB', b'1 MB', ['1 MB'], '50 ms')),
    *((dict(step=v), f'step={v!r}: \'50 ms\'') for v in (0, -0.1, False, math.nan, '50', '0 ms', '5 m', '256 MB', '9'*400 + ' s')),
    (dict(batch=0), 'batch=0'), (dict(batch=2.5), 'batch=2.5'), (dict(seed=-1), 'seed=-1'), (dict(seed=True), 'seed=True'), (dict(hidden=64), 'hidden=64'), (dict(hidden=(64, 0)), 'hidden=0'), (dict(hidden='64'), "hidden='64'"), (dict(hidden=[(8,), 9]), 'hidden'),
    (dict(expansions=()), 'expansions=()'), (dict(reconciliations=[]), 'reconciliations=[]'), (dict(expansions=(3,)), 'expansions: found 3'), (dict(channels=0), 'channels=0'), (dict(channels=()), 'channels=()')])
def test_what_makes_no_sense_is_refused(kwargs, said):
    with pytest.raises(ParameterError) as e: ask(20, 3, **kwargs)
    assert said[:60] in str(e.value) and not isinstance(e.value, BudgetError)


def test_sizes_and_names_are_checked():
    for bad in (0, -1, 1.5, True, None, 'a'):
        with pytest.raises(ParameterError, match='m='): ask(bad, 3)
        with pytest.raises(ParameterError, match='n='): ask(3, bad)
    with pytest.raises(UnknownNameError, match="Did you mean 'taylor'"): ask(20, 3, expansions=('tailor',))
    with pytest.raises(UnknownNameError, match='dual_lphm'): ask(20, 3, reconciliations=('dual_lpm',))
    with pytest.raises(UnknownParameterError, match='rank'): ask(20, 3, reconciliations=({'name': 'lorr', 'rank': 3},))
    with pytest.raises(UnknownNameError, match="AdamW"): ask(20, 3, optimizer='AdmW')
    with pytest.raises(ShapeError, match='p=4 does not divide n=3'): ask(20, 3, reconciliations=({'name': 'hm', 'p': 4},))
    with pytest.raises(TypeError, match='width'): ask(20, 3, width=3)


def test_units():
    assert [as_bytes(v) for v in ('256 MB', '1.5GiB', ' 2 kb ', 300, 2.5, '.5 MB')] == [256e6, 1.5*2**30, 2000, 300, 2.5, 5e5]
    assert [as_seconds(v) for v in ('50 ms', '2 s', '3us', '1 min', 0.25)] == pytest.approx([0.05, 2, 3e-6, 60, 0.25])


@pytest.mark.parametrize('names', [dict(expansions='bspline'), dict(expansions=({'name': 'taylor', 'd': 3}, 'fourier')), dict(reconciliations='lorr'), dict(reconciliations=({'name': 'lphm', 'r': 1}, {'name': 'dual_lphm', 'q': 4})), dict(reconciliations=('masking', 'hypernet', 'duplicated_padding', 'random_matrix_adaption', 'constant')), dict(optimizer='SGD'), dict(optimizer={'name': 'SGD', 'momentum': 0.9}), dict(hidden=(8,)), dict(hidden=[(3,), (5, 5)])])
def test_lists_of_ones_own(names):
    model = ask(8, 4, params=20_000, memory='200 MB', **names)
    kept(model, 8, 4, params=20_000, memory='200 MB')
    if 'reconciliations' in names: assert model.budget.plan.heads[0]['reconciliation']['name'].removesuffix('_reconciliation') in str(names)


def test_the_optimizer_counts():
    with_sgd, with_adam = (next(p for p in plans(20, 3, reconciliations='identity', optimizer=o)[0]) for o in ('SGD', 'AdamW'))
    assert with_adam.memory - with_sgd.memory == 8*with_adam.parameters


def test_the_same_call_gives_the_same_model_and_touches_no_dice():
    torch.manual_seed(3); before = torch.get_rng_state()
    a, b, other = ask(50, 10, params=4000), ask(50, 10, params=4000), ask(50, 10, params=4000, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    same = lambda a, b: all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
    assert same(a, b) and not same(a, other) and a.config() == other.config()
    torch.manual_seed(0); c = RPN.from_config({'model': a.config()})
    assert same(a, c) # as if it had been built by hand
    torch.manual_seed(5); d = ask(50, 10, params=4000, seed=None); torch.manual_seed(5); e = ask(50, 10, params=4000, seed=None, step='1 s')
    assert same(d, e) and not same(d, a) and d.config() == e.config()


def test_it_is_a_model_like_any_other(tmp_path):
    model = ask(50, 10, params=4000)
    model.save(tmp_path/'a.safetensors')
    x = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    for again in (RPN.load(tmp_path/'a.safetensors'), copy.deepcopy(model)): assert torch.equal(again(x), model(x))
    assert RPN.from_config({'model': model.config()}).config() == model.config()
    assert copy.deepcopy(model).budget is model.budget
    pickle.dump(model.budget, file := io.BytesIO()); file.seek(0); read = pickle.load(file) # a process of its own may be given the model
    assert str(read) == str(model.budget) and read.plan.parameters == size(model)


def test_it_shows_itself():
    b = ask(100, 10, params=9000, memory='20 MB', step='5 ms').budget
    text = repr(b)
    for part in ('params=9000', "memory='20 MB'", "step='5 ms'", 'measured', b.plan.formula, f'{b.plan.parameters:,}'): assert part in text
    shown = b._repr_mimebundle_()
    assert {*shown} == {'text/plain', 'text/markdown', 'text/html'} and all(b.plan.formula in v for v in shown.values()) and all(len(line) < 300 for line in text.splitlines())


def test_neighbours_are_what_they_are_called():
    b = ask(100, 10, params=9000, memory='20 MB').budget
    rows = {r['']: r for r in b.neighbours}
    assert {'chosen', 'less parameters', 'more parameters'} <= {*rows}
    mine = rows['chosen']
    for k, column in (('parameters', 'parameters'), ('memory', 'MB'), ('time', 'ms')):
        if f'less {k}' in rows: assert rows[f'less {k}'][column] <= mine[column]
        if f'more {k}' in rows: assert rows[f'more {k}'][column] >= mine[column]
    more = rows['more parameters']['parameters']
    assert more > 9000 and ask(100, 10, params=more, memory='20 MB').budget.plan.key > b.plan.key
    assert ask(100, 10, params=rows['less parameters']['parameters'], memory='20 MB').budget.plan.formula == rows['less parameters']['plan']


def test_what_is_counted_is_what_is_allocated():
    "A real step, with torch's own tensors, against the plan"
    for params in (100, 5_000, 100_000):
        model = ask(64, 10, params=params); plan = model.budget.plan
        x, opt = torch.zeros(64, 64), torch.optim.AdamW(model.parameters())
        with Meter() as seen:
            model(x).square().mean().backward()
            opt.step()
        real = seen.peak + 4*plan.parameters + 4*x.numel() # weights and batch were there before
        assert 0.3*plan.memory < real < 1.3*plan.memory, (params, real, plan.memory)


def test_timing_leaves_a_model_as_it_was():
    model = RPN.from_config({'model': {'dims': [6, 4, 3], 'expansion': {'name': 'chebyshev', 'd': 2}}})
    model(torch.randn(2, 6, generator=torch.Generator().manual_seed(0))).sum().backward(); model.reset_outside()
    before, grads, dice = [p.clone() for p in model.parameters()], [p.grad for p in model.parameters()], torch.get_rng_state()
    for optimizer in ('AdamW', 'SGD', 'Adagrad', {'name': 'RMSprop', 'weight_decay': 0.1}): assert step_seconds(model, 8, optimizer, repeat=3) > 0
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters())) and all(p.grad is g for p, g in zip(model.parameters(), grads))
    assert torch.equal(dice, torch.get_rng_state()) and not model.outside()


@pytest.mark.parametrize('m, n, kwargs', [(10**7, 10**6, dict(params=10_000)), (10**7, 10**6, dict(params=10**15)), (10**6, 1000, dict(memory='300 MB')), (10**7, 1, dict(memory='1 kB')), (9_999_991, 999_983, dict(params=5)), (3, 2, dict(params=10**15)), (3072, 1000, dict(params=5)), (784, 10, dict(memory='1 kB')), (784, 10, dict(batch=10**8, memory='1 TB'))])
def test_sizes_that_are_absurd_are_answered_at_once(m, n, kwargs):
    start, peak = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try: ask(m, n, **{'memory': '500 MB', **kwargs})
    except TinyRPNError as e: assert str(e).isprintable() and len(str(e)) < 600
    assert time.process_time() - start < 6*pace()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak)*(1 if sys.platform == 'darwin' else 1024)
    assert grown < 700e6


def test_a_class_that_is_defined_again_is_used():
    "A chapter run twice in one process registers its classes twice"
    from tinyrpn.reconciliation import kronecker
    old = kronecker.HmReconciliation
    try:
        again = type('HmReconciliation', (old,), {'__module__': old.__module__, '__doc__': old.__doc__})
        assert again is not old
        model = ask(30, 4, params=500, reconciliations='hm')
        kept(model, 30, 4, params=500)
        assert type(model.layers[0].heads[0].reconciliation) is again
        type('HmReconciliation', (old,), {'__module__': old.__module__, 'numel': lambda self, n, D: 77})
        assert plans(30, 4, reconciliations='hm', channels=1)[0][-1].parameters == 77 + 4 # a count that has changed is not remembered
    finally: old._register()


# ---- what a hostile reading found

@pytest.mark.parametrize('asked', [dict(params=6400, memory='9 MB', step='1 us', expansions='taylor', reconciliations='hm'), dict(params=6400, memory='8 MB', expansions='taylor', reconciliations='hm'), dict(params=10**6, memory='8 MB', expansions='taylor', reconciliations='hm'),
                                   dict(params=5, memory='300 kB'), dict(memory='300 kB', step='1 us'), dict(params=5, step='1 us'), dict(params=5, memory='300 kB', step='1 us')], ids=str)
def test_several_limits_are_told_at_once(asked):
    "What is passed on after one refusal is met"
    with pytest.raises(BudgetError) as e: RPN.for_budget(784, 10, timer=clock, **asked)
    plan = RPN.for_budget(784, 10, timer=clock, **{**asked, **e.value.limits}).budget.plan
    assert plan.parameters <= {**asked, **e.value.limits}.get('params', math.inf) and all(str(v) in str(e.value) for v in e.value.limits.values())


@pytest.mark.parametrize('megabytes', [6, 10, 12, 14, 16, 18, 24])
def test_no_better_plan_is_missed(megabytes):
    "Memory is not monotone over shapes; the choice is that of looking at every plan"
    few = dict(expansions='taylor', reconciliations=('hm', 'lphm'), hidden=[(16,), (64, 64), (256, 256)])
    fits = [p for group in plans(784, 10, **few) for p in group if p.memory <= megabytes*1e6 and p.parameters <= 60_000]
    if fits: assert RPN.for_budget(784, 10, params=60_000, memory=megabytes*10**6, timer=clock, **few).budget.plan.key == max(p.key for p in fits)


def test_the_fastest_is_looked_for_again_when_times_are_not_as_expected():
    odd = lambda model, batch, optimizer: 1e-6*(0.2 if 'chebyshev' in repr(model) else 10)*sum(p.numel() for p in model.parameters())
    with pytest.raises(BudgetError) as e: RPN.for_budget(784, 10, step='10 us', timer=odd)
    assert RPN.for_budget(784, 10, timer=odd, **e.value.limits).budget.measured > 1e-5


def test_parameters_of_functions_count_and_functions_stay():
    model = RPN.for_budget(8, 3, params=135, expansions={'name': 'taylor', 'd': 2, 'pre': 'PReLU'})
    assert sum(p.numel() for p in model.parameters()) == model.budget.plan.parameters <= 135
    assert 'Tanh' in repr(RPN.for_budget(64, 3, expansions={'name': 'taylor', 'd': 2, 'post': 'Tanh'}, hidden=(), timer=clock))
    assert RPN.for_budget(8, 6, reconciliations='masking', timer=clock).budget.plan.parameters
    with pytest.raises(BudgetError): RPN.for_budget(784, 10, reconciliations='zero', expansions='identity', hidden=()) # nothing to learn


def test_timing_leaves_everything_as_it_was():
    model = RPN.from_config({'model': {'layers': [{'m': 4, 'n': 3, 'expansion': {'name': 'bspline', 'post': ['BatchNorm1d', 'Dropout']}}]}})
    with torch.no_grad(): model(torch.full((5, 4), 7.))
    before, shares, dice = copy.deepcopy(model.state_dict()), model.outside(), torch.get_rng_state()
    step_seconds(model, 8, repeat=3)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and model.outside() == shares and torch.equal(dice, torch.get_rng_state())


def test_numbers_of_numpy_and_odd_words():
    for kw in (dict(memory=np.int64(10**9)), dict(step=np.float32(5), timer=clock), dict(expansions={'name': 'taylor', 'd': np.int64(2)}), dict(channels=np.int64(2)), dict(step='5 sec', timer=clock)): assert RPN.for_budget(20, 3, **{'timer': clock, **kw}).budget
    for kw, words in ((dict(expansions='nested'), 'composition_functions'), (dict(memory='256 MB' + ' '*45 + 'junk'), "'256 MB', '1.5 GiB'"), (dict(step=1, timer=lambda *a: math.nan), 'timer=nan')):
        with pytest.raises(ParameterError, match=words): RPN.for_budget(20, 3, **{'timer': clock, **kw})


def test_what_no_machine_of_this_size_can_hold_is_not_promised():
    for asked in (dict(batch=10**8, memory='1 TB'), dict(batch=10**8), dict(batch=10**8, params=5)):
        with pytest.raises(BudgetError, match='are free here') as e: ask(10**5, 10, **asked)
        assert e.value.limits == {} and 'would do, with' not in str(e.value)
