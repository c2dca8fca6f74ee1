"Every expansion with every reconciliation and every remainder: written as YAML, built, and one step of training"
from itertools import product
from pathlib import Path

import pytest
import torch
import yaml

from tinyrpn.all import *

SMALL = {'hypernet_reconciliation': {'l': 3, 'hidden_dim': 4}, 'random_matrix_hypernet_reconciliation': {'l': 3, 'hidden_dim': 4}} # instead of the defaults
own = lambda kind: [n for n in names(kind) if lookup(n, kind).__module__.startswith('tinyrpn.')]
EXPANSIONS, RECONCILIATIONS, REMAINDERS, FUSIONS = map(own, ('expansion', 'reconciliation', 'remainder', 'fusion'))


@pytest.fixture(autouse=True, scope='module')
def counted_once():
    "What a product costs, which is counted before a model is built, is the same whatever the remainder: it is counted once for each expansion and reconciliation"
    import tinyrpn.model
    count, known = tinyrpn.model.contraction_cost, {}
    def cost(expansion, reconciliation, *args, **kwargs):
        key = repr((expansion.config(), reconciliation.config(), args, kwargs))
        if key not in known: known[key] = count(expansion, reconciliation, *args, **kwargs)
        return {**known[key]}
    with pytest.MonkeyPatch.context() as m:
        m.setattr(tinyrpn.model, 'contraction_cost', cost)
        yield


def parameters(name): return {**getattr(lookup(name), 'sample', {}), **SMALL.get(name, {})}


def spec(name): return {'name': name, **parameters(name)} if parameters(name) else name


def write(m, n, fusion=None, learns=True, **parts):
    "A model as a file; where it learns, of two layers: the second one is plain, so that something learns in any case"
    first = {'m': m, 'n': n, **({'width': 2, 'fusion': spec(fusion)} if fusion else {}), **{kind: spec(name) for kind, name in parts.items()}}
    layers = [first, {'m': 2*n if fusion == 'concatenation_fusion' else n, 'n': 3, 'expansion': 'identity', 'bias': True}]
    Path('model.yaml').unlink(missing_ok=True) # many a file system waits for the disk when a file is overwritten
    Path('model.yaml').write_text(yaml.safe_dump({'model': {'layers': layers if learns else layers[:1]}}))
    return 'model.yaml'


def check_step(model):
    "One step with AdamW: all numbers stay finite, and all parameters of the first layer move; of the second, its bias at least"
    x, y = torch.rand(6, model.m)*0.8 + 0.1, torch.arange(6) % 3 # in the domain of all but a few, and never 0
    before = {k: p.detach().clone() for k, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0) # without decay nothing moves that has no gradient
    loss = torch.nn.functional.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    assert loss.isfinite(), f'the loss is {loss}'
    for k, p in model.named_parameters():
        assert p.isfinite().all(), f'{k} is not finite after a step'
        if p.numel() and ('layers.0' in k or k.endswith('bias')): assert not torch.equal(p, before[k]), f'{k} does not move'
    assert torch.nn.functional.cross_entropy(model(x), y).isfinite(), 'the loss after a step'


def reasons(m, n, expansion, reconciliation, remainder):
    "Why these sizes do not go together, from the definitions; nothing where they do"
    if expansion == 'combinatorial_expansion' and m < 2: return [f'd=2 different coordinates cannot be chosen from m={m}']
    D, padded = create(expansion, **parameters(expansion)).dim(m), 'duplicated' in reconciliation
    found = {f'needs m = n, and m={m}, n={n}': remainder == 'identity_remainder' and m != n, f'p=2 does not divide n={n}': padded and n % 2, f'q=2 does not divide D={D}': padded and D % 2}
    return [text for text, true in found.items() if true]


def check_all(m, n, combinations, step=True):
    "Every combination works, or is refused with a message that says why; how many did which"
    wrong, done, refused = [], 0, 0
    for expansion, reconciliation, remainder in combinations:
        why = reasons(m, n, expansion, reconciliation, remainder)
        torch.manual_seed(0)
        try: model = load_config(write(m, n, learns=step, expansion=expansion, reconciliation=reconciliation, remainder=remainder)).model()
        except Exception as e:
            if isinstance(e, TinyRPNError) and any(text in str(e) for text in why): refused += 1
            else: wrong.append(f'{expansion} x {reconciliation} x {remainder}: {type(e).__name__}: {e}')
            continue
        if why: wrong.append(f'{expansion} x {reconciliation} x {remainder} is accepted, although {why[0]}'); continue
        if step:
            try: check_step(model)
            except Exception as e: wrong.append(f'{expansion} x {reconciliation} x {remainder}: {type(e).__name__}: {str(e).splitlines()[0]}')
        done += 1
    print(f'm={m}, n={n}: {done} combinations work, {refused} are refused with their reason, {len(wrong)} are wrong')
    assert not wrong, f'{len(wrong)} of {len(wrong) + done + refused} combinations:\n' + '\n'.join(wrong[:10])
    return done, refused


@pytest.mark.slow
@pytest.mark.parametrize('expansion', EXPANSIONS)
def test_every_combination_learns(expansion):
    done, refused = check_all(4, 4, product([expansion], RECONCILIATIONS, REMAINDERS))
    assert done == len(RECONCILIATIONS)*len(REMAINDERS) and refused == 0


@pytest.mark.slow
@pytest.mark.parametrize('m,n', [(5, 3), (1, 4), (3, 6)])
def test_every_combination_fits_or_is_refused_with_its_reason(m, n):
    done, refused = check_all(m, n, product(EXPANSIONS, RECONCILIATIONS, REMAINDERS), step=False)
    assert refused >= len(EXPANSIONS)*len(RECONCILIATIONS) # with the identity as remainder


def test_each_component_with_a_few_partners():
    pick = lambda parts, i: parts[i % len(parts)]
    few = {(e, pick(RECONCILIATIONS, i), pick(REMAINDERS, i)) for i, e in enumerate(EXPANSIONS)} | {(pick(EXPANSIONS, 7*i), r, pick(REMAINDERS, i + k)) for i, r in enumerate(RECONCILIATIONS) for k in (1, 4)}
    few |= {(e, r, pi) for e in ('taylor_expansion', 'bspline_expansion') for r in ('identity_reconciliation', 'dual_lphm_reconciliation') for pi in REMAINDERS}
    assert [{*part} for part in zip(*few)] == [{*EXPANSIONS}, {*RECONCILIATIONS}, {*REMAINDERS}]
    done, refused = check_all(4, 4, sorted(few))
    assert done == len(few)
    done, refused = check_all(3, 5, sorted(few), step=False)
    assert done and refused


@pytest.mark.parametrize('expansion,reconciliation', [('taylor_expansion', 'identity_reconciliation'), ('bspline_expansion', 'lorr_reconciliation'), ('normal_expansion', 'hypernet_reconciliation'), ('haar_wavelet_expansion', 'hm_reconciliation')])
@pytest.mark.parametrize('fusion', FUSIONS)
def test_every_fusion_learns(fusion, expansion, reconciliation):
    torch.manual_seed(0)
    check_step(load_config(write(4, 4, fusion, expansion=expansion, reconciliation=reconciliation, remainder='linear_remainder')).model())
