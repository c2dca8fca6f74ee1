"Random and mutated files: only `TinyRPNError` comes out, in two seconds and little memory (slow)"
import json
import resource
import sys
import time
import warnings
from pathlib import Path

import pytest
from conftest import settle, within
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from tinyrpn.config import Config, load_config, packaged, read_yaml
from tinyrpn.core import TinyRPNError, constructor_params, lookup, names
from tinyrpn.inspection import inspect_file
from tinyrpn.learner import LOSSES, METRICS, OPTIMIZERS, SCHEDULERS
from tinyrpn.model import RPN

pytestmark = pytest.mark.slow
MUCH = settings(max_examples=2000, deadline=None, derandomize=True, database=None, phases=[Phase.generate, Phase.shrink], suppress_health_check=list(HealthCheck))
SECONDS, BYTES = 2, 500*2**20


def peak(anew=False):
    "The most memory that this process has held, in bytes; where Linux lets us, since it was last asked `anew`"
    try:
        if anew: Path('/proc/self/clear_refs').write_text('5')
        return next(int(line.split()[1])*1024 for line in Path('/proc/self/status').read_text().splitlines() if line.startswith('VmHWM'))
    except (OSError, StopIteration): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*(1 if sys.platform == 'darwin' else 1024)


def put_file(path, data):
    "Anew, since many a file system waits for the disk when a file is overwritten"
    path.unlink(missing_ok=True); path.write_bytes(data)


class Watch:
    "Counts what happened over the examples of one test, and holds each to its limits"
    def __init__(self):
        load_config('mnist'); names()
        settle() # what earlier tests have left is not looked through again on these tests' time
        self.before, self.refused, self.accepted, self.slowest = peak(anew=True), 0, 0, 0.

    def __call__(self, action):
        start = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            try: action(); self.accepted += 1
            except TinyRPNError as e:
                self.refused += 1
                assert (said := str(e)).isprintable() and len(said) < 600
        self.slowest = max(self.slowest, time.process_time() - start)
        assert within(self.slowest, SECONDS), f'{self.slowest:.1f} s'
        assert peak() - self.before < BYTES, f'{(peak() - self.before)/2**20:.0f} MB'

    def report(self, what, tell):
        settle()
        tell(f'{what}: {self.refused + self.accepted} examples, {self.refused} refused, {self.accepted} accepted, {self.slowest:.2f} s at most, {(peak() - self.before)/2**20:.0f} MB more')
        assert self.refused + self.accepted >= 2000 and self.refused > 200 and self.accepted > 0


# YAML: values that mean something here, in places where they do and do not belong
NAMES = st.sampled_from([*names(), *OPTIMIZERS, *LOSSES, *SCHEDULERS, *METRICS, 'taylor', 'identity', 'lorr', 'dual_lphm', 'LayerNorm', 'BatchNorm1d', 'Dropout', 'Tanh', 'Softmax', 'torch.nn.functional.silu', 'mnist', 'minmax', 'os.system', 'tinybig.expansion.taylor_expansion', 'torch.optim.Adam'])
SIZES = st.one_of(st.integers(-2, 12), st.sampled_from([64, 784, 1000, 10**6, 10**8, 10**9, 10**12, 10**18, 2**63, 2**64, 10**400]))
SCALARS = st.one_of(st.none(), st.booleans(), SIZES, st.floats(), NAMES, st.text(max_size=8), st.dates())
KEYS = st.sampled_from('''name m n d t s r l p q b N C k degree target kind quantiles width channels channel_num bias output expansion reconciliation remainder fusion scaler contraction layers heads dims pre post activation composition_functions domain grid_range
    model data learner epochs loss optimizer scheduler metrics lr seed device batch_size test_batch_size normalized_shape num_features negative_slope dim weights hidden_dim with_replacement num_interval base_range epsilon alpha beta sigma a configurations model_configs model_class
    model_parameters layer_configs layer_class layer_parameters head_configs head_parameters depth depth_alloc width_alloc data_transformation_configs parameter_fabrication_configs remainder_configs function_class function_parameters fusion_strategy'''.split())
VALUES = st.recursive(SCALARS, lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=5)), max_leaves=12)
SMALL = st.integers(1, 4)
LIKELY = st.one_of(SMALL, SMALL, SMALL, st.floats(-2, 2), st.booleans(), st.sampled_from(['squash', 'clamp', 'extend', 'refuse', 'LayerNorm', 'Tanh', [-1, 1], [0, 2.5], [1, 2], [[1, 0], [0, 1]], ['taylor', {'name': 'bspline', 't': 2}], {'name': 'taylor', 'd': 1}]), SIZES, VALUES)


def part(kind):
    "A component with some of its own parameters, likely ones and others, and now and then with anything at all"
    def of(name):
        cls = lookup(name, kind)
        sample = {k: st.one_of(st.just(v), st.just(v), LIKELY) for k, v in getattr(cls, 'sample', {}).items()}
        own = st.fixed_dictionaries({'name': st.just(name), **sample}, optional={k: LIKELY for k in constructor_params(cls) if k not in sample})
        return st.one_of(st.just(name), st.fixed_dictionaries({'name': st.just(name), **sample}), own, own, st.dictionaries(KEYS, VALUES, max_size=3).map(lambda d: {**d, 'name': name}))
    return st.sampled_from(names(kind)).flatmap(of)


SIMPLE = st.one_of(SMALL, SMALL, SMALL, SIZES)
OPTIONAL = {'reconciliation': part('reconciliation'), 'remainder': st.one_of(st.just('zero'), st.just('linear'), part('remainder')), 'channels': SIMPLE, 'bias': st.booleans(), 'output': st.one_of(st.just('Tanh'), st.just([]), VALUES), 'width': SIMPLE, 'fusion': st.one_of(st.just('sum'), part('fusion')), 'contraction': st.sampled_from(['auto', 'auto', 'dense', 'fast'])}
HEAD = {'expansion': part('expansion')}
MODELS = st.one_of(st.fixed_dictionaries({'dims': st.lists(SMALL, min_size=2, max_size=3), **HEAD}), st.fixed_dictionaries({'dims': st.lists(SIMPLE, min_size=1, max_size=4), **HEAD}, optional={**OPTIONAL, 'scaler': st.one_of(st.sampled_from(['minmax', 'standard', 'quantile']), VALUES)}),
                   st.fixed_dictionaries({'layers': st.lists(st.fixed_dictionaries({'m': SIMPLE, 'n': SIMPLE, **HEAD}, optional=OPTIONAL), max_size=2)}))
CONFIGS = st.one_of(st.fixed_dictionaries({'model': MODELS}), st.fixed_dictionaries({'model': MODELS}), st.fixed_dictionaries({'model': MODELS}, optional={'learner': VALUES, 'data': VALUES, 'seed': SCALARS}), st.dictionaries(KEYS, VALUES, max_size=5))


def plan(config):
    "Everything that a config leads to, short of allocating it"
    if config.layers is not None:
        with torch.device('meta'): config.model()
        config.estimate()
    config.short(); repr(config)


def test_structured_configs(tell):
    watch = Watch()
    @MUCH
    @given(CONFIGS)
    def check(raw): watch(lambda: plan(Config(raw)))
    check(); watch.report('configs', tell)


PIECES = st.sampled_from(['*a', '&a ', '<<: *a', '!!python/object/apply:os.system ', '!!binary ', '!x ', '[', ']', '{', '}', ': ', '- ', '\n', '  ', '"', "'", '|\n', '>\n', '? ', '--- ', '...\n', '%YAML 1.1\n', '\t', '\0', '\x1b', '1e999', '.nan', '-.inf', '0x', '1:2:3.4', '2001-01-01', '~', 'yes', '9'*5000, 'x'*20000, '['*60, '\ud800', '\ufeff', 'é', '#', '@', '`', '\\e'])
EDITS = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 12), st.one_of(PIECES, st.text(max_size=4), NAMES, SIZES.map(str))), min_size=1, max_size=4)
TEXTS = [f.read_text(encoding='utf-8') for f in packaged().values()] + ['base: &b {d: 2, post: LayerNorm}\nmodel: {dims: [6, 4, 2], expansion: {<<: *b, name: taylor}, width: 2}\nlearner: {optimizer: {name: SGD, lr: 2e-3}, epochs: 3}\n']


def edited(text, edits):
    for place, cut, piece in edits: text = text[:place % (len(text) + 1)] + piece + text[place % (len(text) + 1) + cut:]
    return text


def test_mutated_yaml(tell, tmp_path):
    watch, path = Watch(), tmp_path/'c.yaml'
    @MUCH
    @given(st.sampled_from(TEXTS), EDITS)
    def check(text, edits):
        put_file(path, edited(text, edits).encode('utf-8', 'surrogatepass'))
        watch(lambda: plan(load_config(path)))
    check(); watch.report('mutated YAML', tell)


@pytest.mark.parametrize('text', [*TEXTS, '[1, {a: b}, [c]]', 'a: 1'])
def test_the_reader_agrees_with_the_safe_loader(text): assert read_yaml(text, 'text') == yaml.safe_load(text)


def test_random_values_are_read_as_they_were_written():
    "What the safe dumper writes, the reader reads, if it does not refuse it"
    watch = Watch()
    @settings(MUCH, max_examples=300)
    @given(VALUES)
    def check(value):
        text = yaml.safe_dump(value)
        def same():
            got = read_yaml(text, 'text')
            assert got == yaml.safe_load(text) or 'nan' in text.lower()
        watch(same)
    check()


# safetensors: bytes and headers of a small model
def good():
    torch.manual_seed(0)
    model = RPN.from_config({'model': {'layers': [{'m': 3, 'n': 2, 'width': 2, 'bias': True, 'expansion': {'name': 'taylor', 'post': {'name': 'LayerNorm', 'elementwise_affine': True}}, 'reconciliation': {'name': 'lorr', 'r': 1}}, {'m': 2, 'n': 2, 'expansion': 'identity'}], 'scaler': 'minmax'}})
    model.scaler.fit(torch.rand(9, 3))
    return save(model.state_dict(), {'format': '1', 'config': json.dumps(model.config()), 'signature': '{"name": "x", "shape": [3], "classes": ["a", "b"]}', 'tinyrpn': '0'})


GOOD = good()
CHANGES = st.lists(st.tuples(st.sampled_from(['set', 'cut', 'insert', 'flip']), st.one_of(st.integers(0, 40), st.integers(0, len(GOOD) - 1)), st.binary(min_size=1, max_size=9)), min_size=1, max_size=5)


def changed(data, changes):
    for how, place, piece in changes:
        place %= len(data) + 1
        if how == 'set': data = data[:place] + piece + data[place + len(piece):]
        elif how == 'cut': data = data[:place] + data[place + len(piece):]
        elif how == 'insert': data = data[:place] + piece + data[place:]
        elif place < len(data): data = data[:place] + bytes([data[place] ^ (1 << piece[0] % 8)]) + data[place + 1:]
    return data


def loaded(path):
    "Inspected, and loaded; whatever loads also computes"
    try: repr(inspect_file(path))
    except TinyRPNError: pass
    RPN.load(path)(torch.rand(2, 3))


def test_mutated_bytes(tell, tmp_path):
    watch, path = Watch(), tmp_path/'m.safetensors'
    @MUCH
    @given(CHANGES)
    def check(changes):
        put_file(path, changed(GOOD, changes))
        watch(lambda: loaded(path))
    check(); watch.report('mutated safetensors', tell)


JSONS = st.recursive(st.one_of(st.none(), st.booleans(), SIZES, st.floats(allow_nan=False), st.sampled_from(['F32', 'F64', 'BOOL', 'I64', 'F4', 'dtype', '1']), NAMES, st.text(max_size=6)), lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.one_of(KEYS, st.sampled_from(['dtype', 'shape', 'data_offsets']), st.text(max_size=3)), inner, max_size=4)), max_leaves=8)
TENSORS = [k for k in json.loads(GOOD[8:8 + int.from_bytes(GOOD[:8], 'little')]) if k != '__metadata__']
TARGETS = st.one_of(st.tuples(st.sampled_from(TENSORS), st.sampled_from(['dtype', 'shape', 'data_offsets'])), st.tuples(st.just('__metadata__'), st.sampled_from(['format', 'config', 'signature', 'plugins', 'kind'])), st.tuples(st.one_of(st.sampled_from(TENSORS), st.text(max_size=4), st.just('__metadata__'))), st.tuples(st.just('config')), st.tuples(st.just('signature'), st.sampled_from(['name', 'shape', 'mean', 'std', 'classes', 'other'])))


def put(header, way, value, deeper):
    "The header with `value` at one place: in an entry, in the metadata, or somewhere inside the configuration"
    meta = header.setdefault('__metadata__', {})
    if way[0] == 'config':
        node = config = json.loads(meta['config'])
        for step in deeper:
            keys = list(node if isinstance(node, dict) else range(len(node)))
            if not keys: break
            key = keys[step % len(keys)]
            if not isinstance(node[key], (dict, list)) or step > 60: break
            node = node[key]
        else: key = None
        if key is not None: node[key] = value
        elif isinstance(node, dict): node['expansion'] = value
        meta['config'] = json.dumps(config)
    elif way[0] == 'signature': meta['signature'] = json.dumps({**json.loads(meta['signature']), way[1]: value})
    elif len(way) == 1: header[way[0]] = value
    elif isinstance(header.get(way[0]), dict): header[way[0]][way[1]] = value if way[0] != '__metadata__' else json.dumps(value)


def test_mutated_headers(tell, tmp_path):
    watch, path, length = Watch(), tmp_path/'m.safetensors', int.from_bytes(GOOD[:8], 'little')
    @MUCH
    @given(TARGETS, JSONS, st.lists(st.integers(0, 70), max_size=7))
    def check(way, value, deeper):
        header = json.loads(GOOD[8:8 + length])
        put(header, way, value, deeper)
        text = json.dumps(header).encode()
        put_file(path, len(text).to_bytes(8, 'little') + text + GOOD[8 + length:])
        watch(lambda: loaded(path))
    check(); watch.report('mutated headers', tell)
