"Configuration files: both dialects of the reference and the short form mean the same"
import os
import warnings
from pathlib import Path

import pytest
import torch
import yaml

from tinyrpn.all import *


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
