"Exported graphs against the models they come from: combinations of the whole catalogue, batches, precisions, metadata, and what is refused"
import json
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import tinyrpn
import tinyrpn.export as export
from tinyrpn.all import *
from tinyrpn.checks import example, points
from tinyrpn.core import TinyRPNError, _registry
from tinyrpn.expansion import Expansion
from tinyrpn.export import ExportError, export_file

onnx, onnxruntime = pytest.importorskip('onnx'), pytest.importorskip('onnxruntime')
FORMATS = 'torch', 'onnx'
BATCHES = 1, 2, 7
EXPANSIONS, RECONCILIATIONS, REMAINDERS, FUSIONS, SCALERS = names('expansion'), names('reconciliation'), names('remainder'), names('fusion'), (None, 'standard', 'minmax', 'quantile')


def runner(path):
    "A function of a NumPy batch, for either format"
    if path.suffix == '.pt2':
        graph = torch.export.load(path).module()
        return lambda x: graph(torch.from_numpy(x)).detach().numpy()
    session = onnxruntime.InferenceSession(path)
    return lambda x: session.run(['logits'], {'x': x})[0]


def compare(model, inputs, format, path):
    "Export, run with three sizes of batch, compare with the model"
    written = model.export(path/f'm{export.FORMATS[format][0]}', format)
    assert not written.dense
    run, most = runner(written.path), 1e-6 if format == 'torch' else 1e-5
    for batch in BATCHES:
        x = inputs(batch)
        with torch.no_grad(): expected = model(x).numpy()
        assert np.isfinite(expected).all(), 'the example says nothing'
        np.testing.assert_allclose(run(x.numpy()), expected, rtol=0, atol=most*(1 + np.abs(expected).max()), err_msg=f'{format}, batch {batch}: {model}')


def mixed(e, psi='identity_reconciliation', pi='zero_remainder', fusion='average_fusion', scaler=None, norm=False, width=2, channels=2, bias=True):
    "(model, its inputs): two heads in the first layer with the given parts, and a layer behind them"
    torch.manual_seed(0)
    def head():
        kappa = example(lookup(e))
        if norm: kappa = type(kappa)(**getattr(type(kappa), 'sample', {}), post=nn.LayerNorm(kappa.dim(4), elementwise_affine=norm == 'affine'))
        for p in kappa.post.parameters(): nn.init.normal_(p)
        return RPNHead(4, 4, kappa, example(lookup(psi)), example(lookup(pi)), channels=channels, bias=bias)
    first = RPNLayer([head() for _ in range(width)], example(lookup(fusion)))
    model = RPN([first, RPNHead(first.n, 3, create('identity_expansion'), create('identity_reconciliation'))], scaler=scaler).eval()
    inputs = lambda batch, seed=1: points(model.layers[0].heads[0].expansion, batch, 4, seed=seed).float()
    if scaler: model.scaler.fit(inputs(50, 9))
    return model, inputs


tiny = lambda e='identity_expansion', **kwargs: RPN([RPNHead(4, 3, create(e, **kwargs), create('identity_reconciliation'))])
SOME = [dict(e='taylor_expansion', norm='affine', psi='dual_lphm_reconciliation'), dict(e='bspline_expansion', fusion='median_fusion', scaler='quantile'), dict(e='cauchy_expansion', psi='hypernet_reconciliation', pi='bspline_remainder'),
        dict(e='extended_expansion', norm=True, psi='lphm_reconciliation'), dict(e='combinatorial_expansion', norm=True, psi='lorr_reconciliation'), dict(e='arc_hyperbolic_expansion', psi='masking_reconciliation', fusion='lphm_parameterized_concatenation_fusion')]


@pytest.mark.parametrize('format', FORMATS)
@pytest.mark.parametrize('case', SOME, ids=lambda c: '-'.join(v.rsplit('_', 1)[0] for v in c.values() if isinstance(v, str)))
def test_some_of_the_catalogue(case, format, tmp_path): compare(*mixed(**case), format, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize('i', range(len(EXPANSIONS)), ids=EXPANSIONS)
def test_every_expansion_with_other_parts_in_turn(i, tmp_path):
    "Each expansion, normalised, with a reconciliation, a remainder, a fusion and a scaler; all of them come up"
    turn = lambda parts: parts[i % len(parts)]
    norm, psi = turn((True, 'affine', False, False)), turn(RECONCILIATIONS)
    if norm is True and psi in ('constant_reconciliation', 'one_reconciliation'): norm = 'affine' # normalised numbers add up to 0: rounding alone would be compared
    for format in FORMATS: compare(*mixed(EXPANSIONS[i], psi, turn(REMAINDERS), turn(FUSIONS), turn(SCALERS), norm=norm), format, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize('psi', RECONCILIATIONS)
def test_every_reconciliation_with_a_structure(psi, tmp_path):
    for format in FORMATS: compare(*mixed('taylor_expansion', psi, norm='affine', width=1), format, tmp_path)


def test_all_parts_come_up(): assert len(EXPANSIONS) >= max(map(len, (RECONCILIATIONS, REMAINDERS, FUSIONS, SCALERS)))


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    "The packaged model in both formats"
    folder, model = tmp_path_factory.mktemp('digits'), RPN.load('mnist_dual_lphm').eval()
    return model, {format: model.export(folder/f'digits{export.FORMATS[format][0]}').path for format in FORMATS}


@pytest.mark.parametrize('format', FORMATS)
def test_the_packaged_model_reads_digits(digits, format):
    model, paths = digits
    data = load_data('mnist_sample', say=lambda *_: None).test
    with torch.no_grad(): expected = model(data.x).numpy()
    out = runner(paths[format])(data.x.numpy())
    np.testing.assert_allclose(out, expected, rtol=0, atol=(1e-6 if format == 'torch' else 1e-5)*np.abs(expected).max())
    assert (out.argmax(1) == expected.argmax(1)).all() and (out.argmax(1) == data.y.numpy()).mean() > 0.9
    assert runner(paths[format])(data.x[:0].numpy()).shape == (0, 10)


def test_the_files_say_what_they_are(digits):
    model, paths = digits
    torch.export.load(paths['torch'], extra_files=(extra := {'tinyrpn.json': ''}))
    session = onnxruntime.InferenceSession(paths['onnx'])
    for held in (json.loads(extra['tinyrpn.json']), session.get_modelmeta().custom_metadata_map):
        assert held['tinyrpn'] == tinyrpn.__version__ and json.loads(held['config']) == model.config() and json.loads(held['signature']) == asdict(model.signature)
        assert RPN.from_config({'model': json.loads(held['config'])}).config() == model.config()
    assert [(i.name, i.shape) for i in (*session.get_inputs(), *session.get_outputs())] == [('x', ['batch', 784]), ('logits', ['batch', 10])]
    onnx.checker.check_model(onnx.load(paths['onnx']), full_check=True)


def test_no_path_of_this_machine_is_in_a_file(digits):
    for path in digits[1].values():
        for private in (Path(tinyrpn.__file__).parent, Path(torch.__file__).parent.parent, Path.home(), path.parent): assert str(private).encode() not in path.read_bytes(), (path.name, private)


@pytest.mark.parametrize('format', FORMATS)
def test_float64(format, tmp_path):
    model, inputs = mixed('taylor_expansion', 'lorr_reconciliation', norm=True)
    path = model.double().export(tmp_path/f'm{export.FORMATS[format][0]}').path
    x = inputs(3).double()
    np.testing.assert_allclose(runner(path)(x.numpy()), model(x).detach().numpy(), rtol=1e-12, atol=1e-12)


class ScalesExpansion(Expansion):
    r"$0.1 x_i / 0.1 + 0 \cdot 10^{108} x_i$ in float64; $D = m$"
    def dim(self, m): return m
    def expand(self, x): return ((x.double()*0.1 + 0*(1e108*x.double()))/0.1).to(x.dtype)


_registry['expansion'].pop('scales_expansion') # at once: other tests draw from all components that are registered when they are collected


def test_numbers_of_a_formula_keep_their_precision(tmp_path):
    "The exporter's own way is through float32: 1e108 would be infinite, and 0.1 another number"
    for model in (RPN([RPNHead(4, 3, ScalesExpansion(), create('identity_reconciliation'))]), tiny('normal_expansion'), tiny('gamma_expansion')):
        x = torch.rand(5, 4, dtype=torch.float64)
        np.testing.assert_allclose(runner(model.double().export(tmp_path/'m.onnx').path)(x.numpy()), model(x).detach().numpy(), rtol=1e-12, atol=1e-12)


def test_images_are_flattened_by_whoever_calls(tmp_path):
    "The graph takes (batch, m) alone"
    run = runner(RPN([RPNHead(16, 2, create('identity_expansion'), create('identity_reconciliation'))]).export(tmp_path/'m.onnx').path)
    assert run(np.zeros((2, 16), np.float32)).shape == (2, 2)
    with pytest.raises(Exception, match='Invalid rank'): run(np.zeros((2, 1, 4, 4), np.float32))


def test_the_model_stays_as_it_was(tmp_path):
    model, _ = mixed('taylor_expansion', 'masking_reconciliation')
    before = {k: v.clone() for k, v in model.train().state_dict().items()}
    modes, random = [m.training for m in model.modules()], torch.get_rng_state()
    for format in FORMATS: model.export(tmp_path/f'm{export.FORMATS[format][0]}')
    assert [m.training for m in model.modules()] == modes and model.contraction == 'auto' and torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and all(p.requires_grad for p in model.parameters())


# ---- refused, in one line, with nothing written

def unfitted(): return RPN([RPNHead(4, 3, create('identity_expansion'), create('identity_reconciliation'))], scaler='minmax')


def on_meta():
    with torch.device('meta'): return tiny()


def huge():
    with torch.device('meta'): return RPN([RPNHead(784, 1000, create('taylor_expansion'), create('identity_reconciliation'))])


def nested_error(): return tiny('extended_expansion', composition_functions=['identity', {'name': 'legendre', 'domain': 'error'}])


def remainder_error(): return RPN([RPNHead(4, 3, create('identity_expansion'), create('identity_reconciliation'), create('expansion_remainder', expansion={'name': 'laguerre', 'domain': 'error'}))])


REFUSED = {'another suffix': (tiny, 'm.h5', None, ParameterError, "m.h5', format=None: a path ending in .pt2 or .onnx"), 'another format': (tiny, 'm.onnx', 'tflite', ParameterError, "format='tflite'"),
           'suffix against format': (tiny, 'm.onnx', 'torch', ParameterError, "a file in format 'torch' ends in .pt2"), 'no folder': (tiny, 'nowhere/m.pt2', None, FileError, 'nowhere is no folder'),
           'a folder as the file': (tiny, 'folder.onnx', None, FileError, 'folder.onnx cannot be written'), 'unfitted scaler': (unfitted, 'm.onnx', None, ParameterError, 'InputScaler is not fitted'),
           'meta': (on_meta, 'm.pt2', None, ExportError, "on the device 'meta'"), 'more than 2 GiB': (huge, 'm.onnx', None, ExportError, '2.29 GiB of weights, and an ONNX file holds at most 2'),
           **{f'domain error, {e}': ((lambda e=e: tiny(e, domain='error')), 'm.onnx', None, ExportError, 'a graph cannot refuse an input; choose another domain: clamp, squash') for e in ('chebyshev_expansion', 'bspline_expansion', 'gamma_expansion', 'arc_trigonometric_expansion', 'reciprocal_expansion', 'hybrid_probabilistic_expansion')},
           'domain error within': (nested_error, 'm.pt2', None, ExportError, 'legendre(d=2, domain=error) cannot be exported'), 'domain error in a remainder': (remainder_error, 'm.pt2', None, ExportError, 'laguerre(d=2, alpha=1.0, domain=error) cannot be exported')}


@pytest.mark.parametrize('case', REFUSED)
def test_refusals(case, tmp_path):
    make, name, format, error, message = REFUSED[case]
    (tmp_path/'folder.onnx').mkdir()
    with pytest.raises(error) as caught: make().export(tmp_path/name, format)
    assert message in str(caught.value) and '\n' not in str(caught.value) and isinstance(caught.value, TinyRPNError)
    assert [f.name for f in tmp_path.iterdir()] == ['folder.onnx']


def test_domain_error_without_an_end_refuses_nothing(tmp_path):
    assert tiny('taylor_expansion', domain='error').export(tmp_path/'m.pt2').path.exists()


@pytest.mark.parametrize('missing', ['onnx', 'onnxscript'])
def test_without_the_packages(missing, tmp_path, monkeypatch):
    find = export.importlib.util.find_spec
    monkeypatch.setattr(export.importlib.util, 'find_spec', lambda name, *a: None if name == missing else find(name, *a))
    with pytest.raises(ExportError, match=rf"format='onnx' needs {missing}, not installed here: pip install 'tinyrpn\[onnx\]'"): tiny().export(tmp_path/'m.onnx')
    assert not list(tmp_path.iterdir()) and tiny().export(tmp_path/'m.pt2').format == 'torch'


# ---- writing

def test_the_command_never_overwrites(tmp_path):
    said = export_file('mnist_dual_lphm', tmp_path/'m.pt2')
    assert 'format torch; x (batch, 784) to logits (batch, 10)' in said and '\n' not in said
    before = (tmp_path/'m.pt2').read_bytes()
    with pytest.raises(FileError, match='m.pt2 exists already'): export_file('mnist_dual_lphm', tmp_path/'m.pt2')
    with pytest.raises(FileError, match='no packaged model of that name'): export_file(tmp_path/'none.safetensors', tmp_path/'n.onnx')
    assert (tmp_path/'m.pt2').read_bytes() == before and [f.name for f in tmp_path.iterdir()] == ['m.pt2']


FULL = '''
import resource, signal, sys
from tinyrpn.all import *
import tinyrpn.export
model = RPN([RPNHead(4, 3, create('taylor_expansion'), create('identity_reconciliation'))])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (500, resource.RLIM_INFINITY))
for path in sys.argv[1:]:
    try: model.export(path)
    except FileError as e: print(e)
'''


@pytest.mark.skipif(not hasattr(signal, 'SIGXFSZ'), reason='no limit on the size of files here')
def test_a_disk_that_is_full(tmp_path):
    "The files that were there are whole, nothing is left over"
    (folder := tmp_path/'here').mkdir()
    paths = [folder/'m.onnx', folder/'m.pt2']
    for path in paths: path.write_bytes(b'the one before')
    done = subprocess.run([sys.executable, '-c', FULL, *paths], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count('cannot be written') == done.stdout.count('\n') == 2, done
    assert all(path.read_bytes() == b'the one before' for path in paths) and sorted(folder.iterdir()) == paths


def test_nothing_is_said(tmp_path):
    "The exporters' chatter, warnings and logs stay away, when it works and when it does not"
    code = "import sys\nfrom tinyrpn.all import *\nfrom tinyrpn.export import *\nfrom tinyrpn.expansion import Expansion\n" \
           "class LoudExpansion(Expansion):\n    def dim(self, m): return m\n    def expand(self, x): return x*2 if x.max() > 1 else x\n" \
           "model = lambda e: RPN([RPNHead(4, 3, e, create('lphm_reconciliation'))])\nfor name in ('m.onnx', 'm.pt2'): model(create('taylor_expansion')).export(f'{sys.argv[1]}/{name}')\n" \
           "try: model(LoudExpansion()).export(sys.argv[1] + '/n.onnx')\nexcept ExportError as e: print(e)\n"
    done = subprocess.run([sys.executable, '-W', 'always', '-c', code, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count('\n') == 1 and 'depends on the numbers it meets' in done.stdout, done
    assert 'tinyrpn' not in done.stderr and 'onnx' not in done.stderr and 'torch.export' not in done.stderr, done.stderr[-2000:]
