"Configuration files: both dialects of the reference and the short form mean the same"
import os
import time
import warnings
from pathlib import Path

import pytest
from conftest import within
import torch
import yaml

from tinyrpn.all import *
from tinyrpn.config import ConfigError
from tinyrpn.core import ParameterError, TooLargeError
from tinyrpn.memory import Meter


def part(role, name, dialect, **params):
    key = 'function' if dialect == 'new' else role
    return {f'{key}_class': f'tinybig.{name}', f'{key}_parameters': {'name': name.rpartition('.')[2], **params}}


def reference_file(dialect, m=6, n=3, result='result'):
    norm = [{'function_class': 'torch.nn.LayerNorm', 'function_parameters': {'normalized_shape': m + m*m, 'device': 'mps'}}]
    head = {'l': None, 'channel_num': 2,
            'data_transformation_configs': part('data_transformation', 'expansion.taylor_expansion', dialect, d=2, postprocess_function_configs=norm),
            'parameter_fabrication_configs': part('parameter_fabrication', 'reconciliation.identity_reconciliation', dialect, enable_bias=True),
            'remainder_configs': part('remainder', 'remainder.linear_remainder', dialect, require_parameters=True, activation_functions='torch.nn.functional.silu'),
            'output_process_function_configs': [{'function_class': 'torch.nn.GELU'}]}
    layer = {'layer_class': 'tinybig.module.rpn_layer', 'layer_parameters': {'name': 'rpn_layer', 'm': m, 'n': n, 'width': None, 'width_alloc': [2], 'fusion_strategy': 'average',
             'head_configs': [{'head_class': 'tinybig.module.rpn_head', 'head_parameters': head}]}}
    return {'configurations': {'device': 'mps', 'random_seed': 7, 'model_configs': {'model_class': 'tinybig.model.rpn', 'model_parameters': {'name': 'rpn', 'depth': 1, 'depth_alloc': [1], 'layer_configs': [layer]}},
            f'{result}_configs': {f'{result}_class': 'tinybig.output.rpn_output', f'{result}_parameters': {'name': 'prediction_output'}}}}


SHORT = {'model': {'layers': [{'m': 6, 'n': 3, 'width': 2, 'expansion': {'name': 'taylor_expansion', 'd': 2, 'post': {'name': 'LayerNorm'}}, 'channels': 2, 'bias': True, 'output': 'GELU',
                               'remainder': {'name': 'linear', 'activation': 'torch.nn.functional.silu'}}]}}


@pytest.mark.parametrize('dialect, result', [('old', 'result'), ('new', 'output')])
def test_dialects_mean_the_same(dialect, result):
    theirs, ours = load_config(reference_file(dialect, result=result)), load_config(SHORT)
    assert theirs.model().config() == ours.model().config()
    assert (theirs.seed, theirs.device) == (7, 'mps')


@pytest.mark.parametrize('raw', [SHORT, reference_file('old'), reference_file('new')], ids=['short', 'old', 'new'])
def test_saved_and_read_back_without_change(raw):
    load_config(raw).save('c.yaml')
    assert yaml.safe_load(Path('c.yaml').read_text()) == raw == load_config('c.yaml').raw
    assert load_config(load_config(raw).short()).short() == load_config(raw).short()


def test_a_module_from_yaml_has_no_affine_and_one_from_python_keeps_its_own():
    assert not list(load_config(SHORT).model().layers[0].heads[0].expansion.parameters())
    assert len(list(TaylorExpansion(2, post=torch.nn.LayerNorm(6)).parameters())) == 2


@pytest.mark.parametrize('cls', ['os.system', 'builtins.eval', 'torch.load', 'torch.nn.Module', 'subprocess.run', 'tinybig.expansion', 'tinyrpn.core.create', 'pickle.loads', '', None, 3, ['os']])
def test_nothing_else_is_named(cls):
    raw = reference_file('new')
    head = raw['configurations']['model_configs']['model_parameters']['layer_configs'][0]['layer_parameters']['head_configs'][0]['head_parameters']
    head['data_transformation_configs']['function_class'] = cls
    with pytest.raises(TinyRPNError, match='model_configs'): load_config(raw)


def test_absent_components_are_refused_when_built_not_when_read():
    raw = reference_file('new')
    head = raw['configurations']['model_configs']['model_parameters']['layer_configs'][0]['layer_parameters']['head_configs'][0]['head_parameters']
    head['data_transformation_configs'] = {'function_class': 'tinybig.expansion.no_such_expansion', 'function_parameters': {'t': 5, 'composition_function_configs': []}}
    raw['configurations']['data_configs'] = {'data_class': 'tinybig.data.imdb', 'data_parameters': {'name': 'imdb', 'train_batch_size': 64, 'test_batch_size': 64, 'equation_index': 3}}
    cfg = load_config(raw)
    with pytest.raises(UnknownNameError, match='no_such_expansion'): cfg.model()
    with pytest.raises(UnknownNameError, match='imdb'): cfg.data()


@pytest.mark.skipif('TINYRPN_REFERENCE' not in os.environ, reason='needs a folder of the reference library\'s YAML files in $TINYRPN_REFERENCE')
def test_every_yaml_of_the_reference_is_read():
    files = sorted(f for f in Path(os.environ['TINYRPN_REFERENCE']).rglob('*.yaml') if 'model_class' in f.read_text())
    assert files
    for f in files:
        with warnings.catch_warnings(): warnings.simplefilter('ignore'); assert load_config(f).layers, f


@pytest.mark.slow
@pytest.mark.skipif('TINYRPN_REFERENCE' not in os.environ, reason='needs mnist_example.py and mnist_configs.yaml in $TINYRPN_REFERENCE')
def test_the_reference_script_runs_as_it_stands(capsys):
    source = Path(os.environ['TINYRPN_REFERENCE'])
    script = (source/'mnist_example.py').read_text().splitlines()
    script[:2] = ['from tinyrpn.compat import rpn_config, set_random_seed']
    Path('configs').mkdir(); Path('configs/mnist_configs.yaml').write_text((source/'mnist_configs.yaml').read_text())
    with warnings.catch_warnings(): warnings.simplefilter('ignore'); exec('\n'.join(script), {})
    out = capsys.readouterr().out
    assert 'parameter num:  39696000' in out and 'Epoch: 24, Test Loss: ' in out
    assert float(out.split('\naccuracy ')[1].split()[0]) > 0.85
    assert Path('result/mnist_configs_record.json').is_file() and Path('ckpt/mnist_configs_checkpoint.safetensors').is_file()


# ---- sizes are known before anything is allocated

LONG = {'data': {'name': 'mnist_sample', 'batch_size': 2000}, 'model': {'dims': [784, 10], 'expansion': {'name': 'bspline', 't': 1500, 'post': 'Tanh'}, 'reconciliation': {'name': 'lorr', 'r': 1}}}
WIDE = {'model': {'dims': [784, 10], 'width': 100, 'expansion': {'name': 'extended', 'composition_functions': [{'name': 'bspline', 't': 20, 'post': 'Tanh'}]*2}, 'reconciliation': {'name': 'lorr', 'r': 1}}}


def limited(monkeypatch, gib=4):
    monkeypatch.setattr('tinyrpn.config.memory_free', lambda device='cpu': int(gib*2**30))


@pytest.mark.parametrize('raw', [LONG, {**LONG, 'data': {'name': 'mnist', 'batch_size': 10**8}}, {**WIDE, 'data': {'name': 'mnist', 'batch_size': 256}}, {'model': {**LONG['model'], 'contraction': 'dense', 'expansion': {'name': 'taylor', 'd': 3, 'post': ['Tanh']}}},
                                 {'model': {'dims': [784, 10], 'expansion': {'name': 'extended', 'composition_functions': [{'name': 'bspline', 't': 300, 'post': 'Tanh'}]*40}, 'reconciliation': {'name': 'lorr', 'r': 1}}}], ids=['long', 'batch', 'wide', 'dense', 'parts'])
def test_a_step_that_does_not_fit_is_refused_before_the_model_is_built(raw, monkeypatch):
    limited(monkeypatch)
    start = time.time()
    with pytest.raises(TooLargeError, match=r'the model and its training would take .* GiB and 4\.0 GiB are free \(weights .*step .* GiB.*would shrink it, --force or sizes_forced'): load_config(raw).learner(data=(), device='cpu')
    assert within(time.time() - start, 10)


def test_what_a_step_holds_is_what_it_takes():
    "The estimate against the memory of a step as torch's own profiler counts it"
    config = load_config({'model': {'dims': [100, 10], 'width': 3, 'expansion': {'name': 'bspline', 't': 50, 'post': 'Tanh'}, 'reconciliation': {'name': 'lorr', 'r': 2}}})
    model, x = config.model(), torch.rand(200, 100)
    model(x).sum().backward()
    with Meter() as seen: model(x).sum().backward()
    rows = {r['what']: r['bytes'] for r in config.estimate(200)}
    assert seen.peak/1.5 < rows['step'] < 1.5*seen.peak and rows['in all'] == sum(v for k, v in rows.items() if k != 'in all')


def test_a_step_that_is_not_counted_is_bounded_from_below():
    from tinyrpn.config import AtLeast, memory_needed, plan_model
    plan = plan_model(load_config({'model': {'dims': [784, 10], 'expansion': {'name': 'extended', 'composition_functions': [{'name': 'bspline', 'post': 'Tanh'}]*40}}}).layers)
    needed = memory_needed(plan, 64)
    assert isinstance(needed['step'], AtLeast) and needed['step'] >= 2*4*64*784*8*40
    assert not isinstance(memory_needed(plan_model(load_config(SHORT).layers))['step'], AtLeast)
    for batch in (0, 10**9, 1.5):
        with pytest.raises(ParameterError, match='batch_size='): memory_needed(plan, batch)


@pytest.mark.parametrize('batch', [10**9, 10**12, 10**18, 2**62, 10**20])
def test_batches_beyond_all_data(batch):
    with pytest.raises(ParameterError, match='batch_size=.*at most 100,000,000'): load_config({**SHORT, 'data': {'name': 'mnist', 'batch_size': batch}})
    with pytest.raises(ParameterError, match='batch_size=.*at most 100,000,000'): load_config(SHORT).override(batch_size=batch)
    with pytest.raises(ParameterError, match='batch_size=.*at most 100,000,000'): load_config(SHORT).estimate(batch)
    theirs = reference_file('new')
    theirs['configurations']['data_configs'] = {'data_class': 'tinybig.data.mnist', 'data_parameters': {'train_batch_size': batch}}
    with pytest.raises(ParameterError, match='batch_size=.*at most 100,000,000'): load_config(theirs)


def test_a_benchmark_counts_both_models(monkeypatch):
    from tinyrpn.bench import bench_steps
    limited(monkeypatch, 2)
    with pytest.raises(TooLargeError, match=r'the same by the rules 3\.7 GiB, arrays of the floor 2\.8 GiB'): bench_steps({'data': {'batch_size': 2}, 'model': {'dims': [784, 400], 'expansion': 'taylor'}})
    with pytest.raises(TooLargeError, match='a smaller batch'): bench_steps({'data': {'batch_size': 10**8}, 'model': {'dims': [784, 10], 'expansion': 'identity'}})
    assert len(bench_steps({'data': {'batch_size': 2}, 'model': {'dims': [4, 3], 'expansion': 'taylor'}}, repeat=1)) == 5


@pytest.mark.parametrize('learner, words', [({'deterministic': 'no'}, ('learner.deterministic', "'no'", 'true or false')), ({'deterministic': 1}, ('learner.deterministic', '1', 'true or false')), ({'metrics': {1: 'accuracy'}}, ('the key 1', 'text')), ({'metrics': {None: 'accuracy'}}, ('the key None', 'text')), ({'metrics': {'loss': 'accuracy'}}, ('learner.metrics.loss', 'another')), ({10**5000: 3}, ('the key a number of 5000 digits', 'text'))])
def test_the_learner_section_is_checked_when_it_is_read(learner, words):
    with pytest.raises(ConfigError) as e: load_config({**SHORT, 'learner': learner})
    assert all(w in str(e.value) for w in words)
    load_config({**SHORT, 'learner': {'deterministic': True, 'metrics': {'hits': 'accuracy'}}})


def test_a_key_of_thousands_of_digits():
    for text in ('? ' + ':'.join(['59']*2900) + '\n: 3', 'model: {? ' + ':'.join(['59']*2900) + '\n: 3}', '? 2001-01-01\n: 3', '? ~\n: 3', 'yes: 3'):
        Path('case.yaml').write_text(text)
        with pytest.raises(ConfigError, match='the key .*; text is needed'): load_config('case.yaml')


@pytest.mark.parametrize('raw', [{'model': {'dims': [784, 64, 10], 'expansion': e, 'reconciliation': r}} for e, r in (({'name': 'taylor', 'post': 'LayerNorm'}, 'identity'), ('bspline', 'identity'), ('fourier', 'identity'), ('chebyshev', 'identity'), ('identity', 'identity'), ({'name': 'taylor', 'd': 3}, {'name': 'dual_lphm', 'r': 2}), ('combinatorial', 'lorr'))], ids=str)
def test_usual_models_fit_in_two_gigabytes(raw, monkeypatch):
    limited(monkeypatch, 2)
    load_config({**raw, 'data': {'name': 'mnist', 'batch_size': 64}}).learner(data=(), device='cpu', progress=False)


def test_a_learner_for_any_module():
    "The training section serves other torch modules too"
    from tinyrpn.data import load_data
    cfg = load_config({'data': {'name': 'mnist_sample', 'batch_size': 500}, 'learner': {'epochs': 1, 'optimizer': {'name': 'AdamW', 'lr': 0.01}}})
    learner = cfg.learner(torch.nn.Linear(784, 10), load_data('mnist_sample', say=lambda _: None), progress=False, device='cpu')
    assert learner.fit().rows[-1]['test_accuracy'] > 0.3
