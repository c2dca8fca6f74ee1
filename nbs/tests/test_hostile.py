"Files made to harm: each is refused with one line, quickly, in little memory, and nothing in it is run"
import gc
import gzip
import io
import json
import math
import os
import pickle
import resource
import struct
import subprocess
import sys
import time
import warnings
import zipfile
import zlib
from pathlib import Path

import matplotlib.font_manager  # noqa: F401  asks the system for its fonts now, not within a case
import numpy as np
import pytest
import torch
from conftest import within
from PIL import Image
from safetensors.torch import save

from tinyrpn.cli import main
from tinyrpn.config import load_config
from tinyrpn.core import TinyRPNError
from tinyrpn.data import image_batch, load_data, open_image, read_idx, read_npz
from tinyrpn.inspection import inspect_file
from tinyrpn.learner import History
from tinyrpn.model import RPN, Signature

pytestmark = pytest.mark.usefixtures('settled')
HERE = Path(__file__).parent
WATCHED = {'os.system', 'os.exec', 'os.posix_spawn', 'os.fork', 'subprocess.Popen', 'pickle.find_class', 'socket.connect', 'urllib.Request'}
QUICK = 2 # s of computing
events, watching = [], [False]
sys.addaudithook(lambda event, args: events.append((event, str(args)[:80])) if watching[0] and (event in WATCHED or event == 'import' and 'evil' in str(args[0])) else None)


class Bomb:
    "Unpickling it would leave a file behind"
    def __reduce__(self): return os.system, ('touch canary',)


MODEL = {'layers': [{'m': 4, 'n': 3, 'fusion': 'average_fusion', 'heads': [{'m': 4, 'n': 3, 'expansion': {'name': 'taylor', 'd': 2, 'post': 'LayerNorm'}}]}, {'m': 3, 'n': 2, 'fusion': 'average_fusion', 'heads': [{'m': 3, 'n': 2, 'expansion': {'name': 'bspline'}}]}], 'scaler': 'minmax'}
PICTURE = Signature('mine', [1, 2, 2])
CASES = {} # name -> (how it is opened, bytes or a function that gives them, suffix)
LOOKED = {} # the same, for files that only `inspect_file` opens, and that it need not refuse


def tensors(**changed):
    torch.manual_seed(0)
    model = RPN.from_config({'model': MODEL})
    model.scaler.fit(torch.rand(10, 4))
    return {**model.state_dict(), **changed}


def model_file(state=None, **metadata):
    header = {'format': '1', 'config': json.dumps(MODEL), 'signature': '{}', **metadata}
    return save(tensors() if state is None else state, {k: v for k, v in header.items() if v is not None})


def relabelled(change, data=None):
    "A valid file whose header has been changed: `change` maps its text to another"
    data = data or model_file()
    n = int.from_bytes(data[:8], 'little')
    text = change(data[8:8 + n].decode())
    return len(text.encode()).to_bytes(8, 'little') + text.encode() + data[8 + n:]


def entry(change):
    "A valid file in which one tensor's entry has been changed"
    def go(text):
        header = json.loads(text)
        change(header, header['layers.0.heads.0.weight'])
        return json.dumps(header)
    return relabelled(go)


def configured(model): return model_file(config=model if isinstance(model, str) else json.dumps(model))


def with_part(**parts): return {'layers': [{'m': 4, 'n': 3, 'heads': [{'m': 4, 'n': 3, 'expansion': 'taylor', **parts}]}]}


def in_yaml(model='{dims: [4, 2], expansion: taylor}', rest=''): return f'model: {model}\n{rest}'.encode()


def laughs(first, line): return '\n'.join([f'a0: &a0 {first}', *(f'a{i}: &a{i} ' + line(i - 1) for i in range(1, 12))]).encode()


def npz(write=None, **arrays):
    good = dict(x_train=np.zeros((10, 2, 2), np.uint8), y_train=np.arange(10) % 2, x_test=np.zeros((4, 2, 2), np.uint8), y_test=np.arange(4) % 2)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        out = io.BytesIO(); np.savez_compressed(out, **{**good, **arrays})
        if write:
            with zipfile.ZipFile(out, 'a', zipfile.ZIP_DEFLATED) as z: write(z)
    return out.getvalue()


def headed(text, body=b'', version=1, length=None):
    return b'\x93NUMPY' + bytes([version, 0]) + struct.pack('<H' if version == 1 else '<I', len(text) if length is None else length) + text.encode('latin-1') + body


def npy(shape, descr="'|u1'", body=b''):
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"
    return headed(text + ' '*(-(len(text) + 11) % 64) + '\n', body)


def zipped(members, zeros=None, method=zipfile.ZIP_DEFLATED):
    out = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, 'w', method) as z:
        warnings.simplefilter('ignore')
        for name, data in members: z.writestr(name, data)
        for name, head, count in zeros or ():
            with z.open(name, 'w', force_zip64=True) as f:
                f.write(head)
                for _ in range(count): f.write(bytes(2**20))
    return out.getvalue()


def four(first): return [('x_train.npy', first), ('y_train.npy', npy('(1,)', "'<i8'", bytes(8))), ('x_test.npy', npy('(1, 2, 2)', body=bytes(4))), ('y_test.npy', npy('(1,)', "'<i8'", bytes(8)))]


def png(width, height, mode=0, body=None, extra=b''):
    chunk = lambda kind, data: struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, mode, 0, 0, 0)) + extra + chunk(b'IDAT', zlib.compress(bytes(100)) if body is None else body) + chunk(b'IEND', b'')


def chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def plain_png(width, height, row, bits=8, mode=0, extra=b''):
    "A PNG of zeros, of `row` bytes a row"
    pack = zlib.compressobj(9)
    packed = b''.join(pack.compress(bytes((row + 1)*min(500, height - i))) for i in range(0, height, 500)) + pack.flush()
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, bits, mode, 0, 0, 0)) + extra + chunk(b'IDAT', packed) + chunk(b'IEND', b'')


def jpeg(extra=b'', after=b'', size=(28, 28), **kw):
    "A JPEG with something behind its first two bytes, and something before its last two"
    out = io.BytesIO(); Image.new('L', size, 90).save(out, 'JPEG', **kw)
    return out.getvalue()[:2] + extra + out.getvalue()[2:-2] + after + out.getvalue()[-2:]


def decoy():
    "A zip file of 100,000 members, with an end record inside its end record"
    entry = b'PK\1\2' + struct.pack('<4B4HL2L5H2L', 20, 0, 20, 0, 0, 0, 0, 33, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b'a'
    return b'PK\3\4' + bytes(30) + entry*10**5 + b'PK\5\6' + struct.pack('<4H2LH', 0, 0, 65535, 65535, len(entry)*10**5, int.from_bytes(b'PK\5\6', 'little'), 0)


def torch_saved():
    out = io.BytesIO(); torch.save(Bomb(), out)
    return out.getvalue()


PICKLES = {'pickle': lambda: pickle.dumps(Bomb()), 'old pickle': lambda: pickle.dumps(Bomb(), 0), 'torch.save': torch_saved}
for what, made in PICKLES.items():
    for how, suffix in (('model', '.safetensors'), ('config', '.yaml'), ('data', '.npz'), ('image', '.png'), ('history', '.json'), ('history', '.csv')): CASES[f'{what} as {suffix}'] = how, made, suffix
    CASES[f'{what} as idx.gz'] = 'idx', lambda made=made: gzip.compress(made()), '.gz'

# model files: the format
for name, data in {
    'empty': b'', 'eight bytes': bytes(8), 'a header longer than the file': (10**6).to_bytes(8, 'little') + b'{}', 'a header of 10^18 bytes': (10**18).to_bytes(8, 'little') + b'{}', 'a header of 2^64-1 bytes': b'\xff'*8 + b'{}',
    'header is a list': (6).to_bytes(8, 'little') + b'[1, 2]', 'header nested 10^5 deep': relabelled(lambda t: '{"a": ' + '['*10**5 + ']'*10**5 + '}'), 'header of 5 million lists': lambda: relabelled(lambda t: '{"a": [' + '[],'*5_000_000 + '1]}'),
    'a million tensors': lambda: relabelled(lambda t: '{' + ','.join(f'"{i}":[]' for i in range(10**6)) + '}'), 'metadata of 100 MB': lambda: relabelled(lambda t: t.replace('"format":"1"', '"format":"1","note":"' + 'x'*10**8 + '"')), 'config of 15 MB': lambda: configured('{"a": [' + '1,'*7_000_000 + '1]}'),
    'no UTF-8': (4).to_bytes(8, 'little') + b'{\xff\xfe}', 'the same name twice': relabelled(lambda t: t.replace('"layers.1.heads.0.weight"', '"layers.0.heads.0.weight"')), 'metadata that are numbers': relabelled(lambda t: t.replace('"format":"1"', '"format":1')),
    'shape lies': entry(lambda h, t: t.update(shape=[1, 10**12])), 'shape is negative': entry(lambda h, t: t.update(shape=[-1, -60])), 'shape of 10^12 dimensions': entry(lambda h, t: t.update(shape=[1]*10**5)), 'shape overflows': entry(lambda h, t: t.update(shape=[2**32, 2**32])),
    'shape is text': entry(lambda h, t: t.update(shape='big')), 'shape is a fraction': entry(lambda h, t: t.update(shape=[1, 60.0])), 'shape of 10^4400': relabelled(lambda t: t.replace('[1,60]', '[' + '9'*4400 + ']')), 'another shape of the same size': entry(lambda h, t: t.update(shape=[60, 1])),
    'dtype lies': entry(lambda h, t: t.update(dtype='F64')), 'dtype is unknown': entry(lambda h, t: t.update(dtype='OBJECT')), 'dtype is half a byte': entry(lambda h, t: t.update(dtype='F4')), 'dtype is a path': entry(lambda h, t: t.update(dtype='os.system')), 'integers for weights': entry(lambda h, t: t.update(dtype='I32')),
    'offsets overlap': entry(lambda h, t: t.update(data_offsets=[t['data_offsets'][0] - 4, t['data_offsets'][1] - 4])), 'offsets backwards': entry(lambda h, t: t.update(data_offsets=t['data_offsets'][::-1])), 'offsets past the end': entry(lambda h, t: t.update(data_offsets=[10**15, 10**15 + 240])),
    'offsets are negative': entry(lambda h, t: t.update(data_offsets=[-240, 0])), 'two tensors on one place': entry(lambda h, t: h.update(other=dict(t))), 'a hole between tensors': lambda: (lambda d: relabelled(lambda t: t, d + bytes(16)))(model_file()), 'the end is missing': lambda: model_file()[:-5],
}.items(): CASES[f'safetensors: {name}'] = 'model', data, '.safetensors'

# model files: what they hold
for name, data in {
    'NaN weights': lambda: model_file(tensors(**{'layers.0.heads.0.weight': torch.full((1, 60), math.nan)})), 'one infinite weight': lambda: model_file(tensors(**{'layers.1.heads.0.weight': torch.where(torch.arange(48) == 7, math.inf, 0.)[None]})),
    'infinite scaler': lambda: model_file(tensors(**{'scaler.scale': torch.full((4,), math.inf)})), 'path in a tensor name': lambda: model_file(tensors(**{'../../../tmp/evil': torch.ones(1)})), 'escapes in a tensor name': lambda: model_file(tensors(**{'\x1b]0;owned\x07\x1b[2J\n': torch.ones(1)})),
    'a tensor name of a million letters': lambda: model_file(tensors(**{'x'*10**6: torch.ones(1)})), 'config nested 10^5 deep': lambda: configured('['*10**5), 'config with a number of a million digits': lambda: configured('{"dims": [4, ' + '9'*10**6 + ']}'), 'config is text': lambda: configured('"taylor"'),
    'config with the same key twice': lambda: configured('{"dims": [4, 2], "dims": [4, 3], "expansion": "taylor"}'), 'config of 10^12 inputs': lambda: configured({'dims': [10**12, 2], 'expansion': 'identity'}), 'config that needs 10^14 weights': lambda: configured({'dims': [10**7, 10**7], 'expansion': 'identity'}),
    'config of degree 100': lambda: configured({'dims': [784, 10], 'expansion': {'name': 'taylor', 'd': 100}}), 'combinations without end': lambda: configured({'dims': [10**8, 10], 'expansion': {'name': 'combinatorial', 'd': 100, 'with_replacement': True}}),
    'a plugin': lambda: model_file(plugins='["evil_plugin"]', config=json.dumps(with_part(expansion='evil_expansion'))), 'a plugin that is a command': lambda: model_file(plugins='["os; touch canary"]', config=json.dumps(with_part(expansion='evil'))), 'plugins nested deeply': lambda: model_file(plugins='['*10**5, config=json.dumps(with_part(expansion='evil'))),
    'signature of text times 10^12': lambda: model_file(signature='{"shape": ["x", 1000000000000]}'), 'signature of a list times 10^12': lambda: model_file(signature='{"shape": [[1], 1000000000000]}'), 'signature of 900 long numbers': lambda: model_file(signature='{"shape": [%s]}' % ','.join(['9'*4299]*900)), 'signature of a mean of 10^400': lambda: model_file(signature='{"mean": 1%s}' % ('0'*400)),
    'no signature that fits': lambda: model_file(signature='{"shape": [1000000000000], "classes": []}'), 'signature with escapes': lambda: model_file(signature=json.dumps({'shape': [4], 'classes': ['\x1b[2J', 'b']})), 'signature with other keys': lambda: model_file(signature='{"__class__": "os"}'), 'signature is a list': lambda: model_file(signature='[1]'),
    'format 10^9': lambda: model_file(format='1000000000'), 'format with escapes': lambda: model_file(format='\x1b[2J'*1000), 'a checkpoint': lambda: model_file(kind='checkpoint'), 'no config': lambda: model_file(config=None),
}.items(): CASES[f'model: {name}'] = 'model', data, '.safetensors'

# dotted paths and unknown names wherever a name may stand, in models and in configs
for evil in ('os.system', 'torch.hub.load', 'builtins.eval', '__import__', '../../evil'):
    for place, made in {'expansion': lambda e: with_part(expansion=e), 'post': lambda e: with_part(expansion={'name': 'taylor', 'post': e}), 'reconciliation': lambda e: with_part(reconciliation=e), 'remainder': lambda e: with_part(remainder={'name': e}), 'output': lambda e: with_part(output=[{'name': e, 'command': 'touch canary'}]),
                        'composition': lambda e: with_part(expansion={'name': 'extended', 'composition_functions': [e]}), 'fusion': lambda e: {'layers': [{'m': 4, 'n': 3, 'fusion': e, 'heads': [{'expansion': 'taylor'}]}]}, 'scaler': lambda e: {'dims': [4, 2], 'expansion': 'taylor', 'scaler': e}}.items():
        if evil == 'os.system' or place in ('expansion', 'post'): CASES[f'name: {evil} as {place}'] = 'model', lambda e=evil, made=made: configured(made(e)), '.safetensors'
    for place in ('loss', 'optimizer', 'scheduler'): CASES[f'name: {evil} as {place}'] = 'config', in_yaml(rest=f'learner: {{{place}: {evil!r}}}'), '.yaml'
for key in ('function_class', 'model_class'): CASES[f'name: os.system as {key}'] = 'config', f'model_configs: {{{key}: os.system, model_parameters: {{layer_configs: [{{layer_class: os.system}}]}}}}'.encode(), '.yaml'
CASES['name: os.system as data'] = 'config', in_yaml(rest='data: os.system'), '.yaml'

# configs: the language
for name, text in {
    'tag os.system': b'!!python/object/apply:os.system ["touch canary"]', 'tag inside': in_yaml('!!python/object/new:os.system ["touch canary"]'), 'tag name': in_yaml('!!python/name:builtins.eval ""'), 'tag module': in_yaml('!!python/module:evil ""'), 'tag of its own': in_yaml('!evil {}'),
    'laughs by lists': laughs('[x, x]', lambda i: '[' + ', '.join([f'*a{i}']*10) + ']'), 'laughs by mappings': laughs('{x: 1}', lambda i: '{' + ', '.join(f'k{j}: *a{i}' for j in range(10)) + '}'), 'laughs by merges': laughs('{x: 1, y: 2}', lambda i: '{<<: [' + ', '.join([f'*a{i}']*10) + ']}'), 'a list that holds itself': b'model: &a [1, *a]',
    'a mapping that is merged into itself': b'model: &a {<<: *a}', 'nested 10^5 deep': b'model: ' + b'['*10**5, 'nested 10^5 deep by indentation': '\n'.join(' '*i + 'a:' for i in range(1400)).encode(), 'a number of 10^6 digits': b'seed: ' + b'9'*10**6, 'a number in base 60': b'seed: ' + b':'.join([b'59']*3000), 'binary digits': b'seed: 0b' + b'1'*9000,
    'a megabyte of entries': b'model: [' + b'[],'*340_000 + b']', 'ten megabytes': b'# ' + b'x'*10**7, 'zeros': bytes(1000), 'the same key twice': b'model: {dims: [4, 2], expansion: taylor}\nmodel: {dims: [4, 3], expansion: taylor}', 'a key that is a list': b'{[1]: 2}',
    'no UTF-8': b'model: \xff\xfe', 'escapes': b'model: "\\e[2J\\e]0;owned\\a"', 'a name that is a path': in_yaml(rest='name: ../../../etc/passwd'), 'a name with escapes': in_yaml(rest='name: "\\e[2J"'), 'a device that is a path': in_yaml(rest='device: [1]'), 'seed of 10^12': in_yaml(rest='seed: 1000000000000000000000000'),
}.items(): CASES[f'yaml: {name}'] = 'config', text, '.yaml'

# configs: sizes
huge = 10**12
for name, model in {
    'dims': f'{{dims: [{huge}, 2], expansion: identity}}', 'outputs': f'{{dims: [2, {huge}], expansion: identity}}', 'm': f'{{layers: [{{m: {huge}, n: 2, expansion: identity}}]}}', 'channels': f'{{dims: [4, 2], expansion: identity, channels: {huge}}}', 'width': f'{{dims: [4, 2], expansion: identity, width: {huge}}}',
    'rank': f'{{dims: [4, 2], expansion: identity, reconciliation: {{name: lorr, r: {huge}}}}}', 'degree': f'{{dims: [4, 2], expansion: {{name: taylor, d: {huge}}}}}', 'splines': f'{{dims: [4, 2], expansion: {{name: bspline, t: {huge}}}}}', 'dims that fit one by one': '{dims: [100000000, 100000000], expansion: identity}',
    'degree 4 of 784': '{dims: [784, 64], expansion: {name: taylor, d: 4}}', '10,000 heads in 10,000 layers': '{dims: [' + '2, '*10_000 + '2], width: 10000, expansion: identity}', '30,000 splines': '{dims: [4, 2], expansion: {name: extended, composition_functions: [' + 'bspline, '*30_000 + 'bspline]}}',
    '90,000 functions': '{dims: [4, 2], expansion: identity, output: [' + 'Tanh, '*90_000 + 'Tanh]}', 'taylor of taylor of taylor': '{dims: [784, 2], expansion: {name: nested, composition_functions: [' + ', '.join(['{name: taylor, d: 100}']*50) + ']}}', 'a long prime': '{dims: [99999989, 2], expansion: {name: bspline, t: 999980}, reconciliation: {name: dual_lphm, r: 2}}',
    'hundreds of heads with long primes': '{dims: [99999989, 2], width: 700, expansion: {name: bspline, t: 9970, d: 3}, reconciliation: {name: dual_lphm, r: 1}}', 'many kinds of long primes': '{layers: [' + ', '.join(f'{{m: {9973 + i}, n: {9974 + i}, expansion: {{name: bspline, t: {10**6 - i}}}, reconciliation: {{name: dual_lphm, r: 1}}}}' for i in range(300)) + ']}',
    'quantiles': f'{{dims: [4, 2], expansion: identity, scaler: {{kind: quantile, quantiles: {huge}}}}}', 'a LayerNorm': f'{{dims: [4, 2], expansion: {{name: taylor, post: {{name: LayerNorm, normalized_shape: {huge}}}}}}}', 'hidden units': f'{{dims: [4, 2], expansion: taylor, reconciliation: {{name: hypernet, l: {huge}, hidden_dim: {huge}}}}}',
    'a fusion': f'{{layers: [{{m: 4, n: 2, expansion: identity, fusion: {{name: parameterized_concatenation, n: {huge}}}}}]}}', 'parameters of the wrong kind': '{dims: [4, 2], expansion: {name: taylor, post: {name: LayerNorm, normalized_shape: {a: 1}}}}', 'infinity': '{dims: [4, 2], expansion: {name: bspline, grid_range: [-.inf, .nan]}}',
}.items(): CASES[f'size: {name}'] = 'config', in_yaml(model), '.yaml'

# data
H = "{'descr': %s, 'fortran_order': False, 'shape': (1,), }"
HEADERS = ["'''", '(((', "{1: 2, 'a': 3}", '{[]: 1}', H % '()', H % "('|u1',)", H % '5', H % "'<m8[999999999999s]'", '-'*9000 + '1', '('*9000, '[],'*3000, 'a\0b', '\t{}', ' {\n  1:2}\n 3', '{1,2}', H.replace('(1,)', '(True,)') % "'|O'", '']
objects = np.array([Bomb()], dtype=object)
for name, data in {
    'pickled objects': lambda: npz(x_train=objects), 'pickled labels': lambda: npz(y_train=objects), 'a zip bomb': lambda: zipped(four(npy('(1, 2, 2)', body=bytes(4)))[1:], [('x_train.npy', npy('(1073741824, 1, 1)'), 1024)]), 'a promise of 10^12 images': lambda: zipped(four(npy('(1000000000000, 28, 28)', body=bytes(4)))), 'a shape that overflows': lambda: zipped(four(npy('(4294967296, 4294967296, 4)', body=bytes(4)))),
    'a negative shape': lambda: zipped(four(npy('(-1, -2, 2)', body=bytes(4)))), 'a header that is code': lambda: zipped(four(npy('(__import__("os").system("touch canary"), 2)', body=bytes(4)))), 'a header nested deeply': lambda: zipped(four(npy('('*9000 + ')'*9000, body=bytes(4)))), 'a dtype that is code': lambda: zipped(four(npy('(1, 2, 2)', '"os.system"', bytes(4)))),
    'a member that is a path': lambda: npz(lambda z: z.writestr('../../evil.npy', npy('(1,)'))), 'an absolute member': lambda: npz(lambda z: z.writestr('/etc/evil.npy', npy('(1,)'))), 'a member twice': lambda: npz(lambda z: z.writestr('x_train.npy', npy('(1, 2, 2)', body=bytes(4)))), '60,000 members': lambda: zipped([(f'{i}.npy', b'') for i in range(60_000)]),
    'no zip': b'PK\3\4 and no more', 'NaN': lambda: npz(x_train=np.full((10, 2, 2), np.nan, np.float32), x_test=np.zeros((4, 2, 2), np.float32)), 'escapes in classes': lambda: npz(y_train=np.array(['\x1b[2J', 'b']*5), y_test=np.array(['b']*4)), 'the end is missing': lambda: npz()[:-30],
    'a header of 50 MB': lambda: zipped(four(headed(' '*50_000_000, version=2))), 'a header that promises 4 GB': lambda: zipped(four(headed(' '*10**6, version=2, length=2**32 - 1))), 'labels of a million letters': lambda: npz(y_train=np.array(list('ab')*5, '<U1000000'), y_test=np.array(list('abab'))), 'zeros of 250 MB': lambda: npz(x_train=np.zeros((10, 5000, 5000), np.uint8), x_test=np.zeros((4, 5000, 5000), np.uint8)),
    'zeros of 84 MB in eight bytes each': lambda: npz(x_train=np.zeros((10, 1000, 750)), x_test=np.zeros((4, 1000, 750))), 'a decoy end': decoy, 'something after its end': lambda: npz() + bytes(9), 'packed by LZMA': lambda: zipped(four(npy('(1, 2, 2)', body=bytes(4))), method=zipfile.ZIP_LZMA), 'damaged inside': lambda: (lambda b: b[:70] + b'\xff'*15 + b[85:])(npz()),
    **{f'a header {text[:30]}': lambda text=text: zipped(four(headed(text, b'a'))) for text in HEADERS},
}.items(): CASES[f'npz: {name}'] = 'data', data, '.npz'
for n, text in enumerate(HEADERS): LOOKED[f'50 headers {text[:30]}'] = 'look', lambda text=text: zipped([(f'{i}.npy', headed(text, b'a')) for i in range(50)]), '.npz'
idx = lambda *shape, body=b'', kind=8: bytes([0, 0, kind, len(shape)]) + b''.join(struct.pack('>I', n) for n in shape) + body
for name, data in {'10^12 pixels': idx(10**4, 10**4, 10**4), '2^96 pixels': idx(2**32 - 1, 2**32 - 1, 2**32 - 1), 'more than it says': idx(1, 2, 2, body=bytes(500)), '255 dimensions': bytes([0, 0, 8, 255])}.items():
    CASES[f'idx: {name}'] = 'idx', data, ''
small, other = idx(1, 2, 2, body=bytes(4)), gzip.compress(b'')
for name, data in {'a name of 3 MB': lambda: gzip.compress(small)[:3] + b'\x08' + gzip.compress(small)[4:10] + b'x'*3_000_000 + b'\0' + gzip.compress(small)[10:], '500,000 more members': lambda: gzip.compress(small) + other*500_000, 'zeros of 100 MB behind it': lambda: gzip.compress(small) + bytes(10**8), 'a million empty blocks': lambda: gzip.compress(b'')[:10] + b'\0\0\0\xff\xff'*10**6 + gzip.compress(small)[10:],
                   'a member cut short': lambda: gzip.compress(small)[:-9], 'nothing': b''}.items(): CASES[f'idx.gz: {name}'] = 'idx', data, '.gz'
CASES['idx: a gzip bomb'] = 'idx', lambda: gzip.compress(idx(2**10, 2**10, 2**10) + bytes(2**28)), '.gz'

# images
for name, data in {'100,000 x 100,000': png(100_000, 100_000), '2^31 x 2^31': png(2**31 - 1, 2**31 - 1), '9,000 x 9,000 in a kilobyte': lambda: png(9000, 9000, body=zlib.compress(bytes(9001*9000))), 'no pixels': png(0, 0), 'too few pixels': png(50, 50, body=b''), 'only a name': b'\x89PNG\r\n\x1a\n',
                   'PostScript': b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(touch canary) run', 'SVG': b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>', 'GIF': b'GIF89a\xff\xff\xff\xff\0\0\0'}.items(): CASES[f'image: {name}'] = 'image', data, '.png'

for name, data in {'8,000 x 8,000 grey in 62 kB': lambda: plain_png(8000, 8000, 8000), '8,000 x 8,000 in colour, transparent': lambda: plain_png(8000, 8000, 32_000, mode=6), '8,000 x 8,000 of 16 bits': lambda: plain_png(8000, 8000, 16_000, bits=16), '8,000 x 8,000 of one bit in 8 kB': lambda: plain_png(8000, 8000, 1000, bits=1), '64,000,000 x 1': lambda: plain_png(64_000_000, 1, 8_000_000, bits=1), '8,000,000 x 1': lambda: plain_png(8_000_000, 1, 10**6, bits=1),
                   '850,000 chunks': lambda: plain_png(28, 28, 28, extra=chunk(b'abCd', b'')*850_000), '600,000 texts': lambda: plain_png(28, 28, 28, extra=chunk(b'tEXt', b'a\0b')*600_000), 'a JPEG of 2,500,000 comments': lambda: jpeg(b'\xff\xfe\0\2'*2_500_000), 'a JPEG of 2,500,000 profiles': lambda: jpeg(b'\xff\xe2\0\2'*2_500_000), 'a JPEG with 10 MB of padding': lambda: jpeg(b'\xff'*10**7),
                   'a JPEG in 2,000 passes': lambda: (lambda b: jpeg(after=b[b.rfind(b'\xff\xc4'):-2]*2000, size=(2000, 2000), progressive=True))(jpeg(size=(2000, 2000), progressive=True)), 'a JPEG cut short': lambda: jpeg(size=(8000, 8000))[:20_000], 'a JPEG header and 40 MB': lambda: jpeg() + bytes(40_000_000), 'a moving picture': lambda: plain_png(28, 28, 28, extra=chunk(b'acTL', struct.pack('>II', 9, 0)))}.items(): CASES[f'image: {name}'] = 'image', data, '.png'

# tables, for looking into
for name, (data, suffix) in {'10,000 columns and 25,000 rows': (lambda: ','.join(f'c{i}' for i in range(10_000)).encode() + b'\n' + b'1\n'*25_000, '.csv'), '8 million rows': (b'a\n' + b'1\n'*(2**23 - 9), '.csv'), '8 million columns': (b'1,'*(2**23 - 9) + b'\n1', '.csv'), 'a row of 5 million fields': (b'a\n' + b'11,'*(2**22 + 2**20), '.csv'), 'fields over many lines': (b'a\n' + b'"\n",'*(2**22 - 9), '.csv'), '16 MB of quotes': (b'a\n' + b'"'*(2**24 - 9), '.csv'),
                             'a million rows in JSON': (b'{"rows":[' + b'{"a":1},'*10**6 + b'{}]}', '.json'), '2 million empty rows': (b'{"rows":[' + b'{},'*1_900_000 + b'{}]}', '.json'), 'a mean of 15 million digits': (lambda: model_file(signature='{"mean": 0.%s}' % ('1'*15_000_000)), '.safetensors')}.items(): LOOKED[name] = 'look', data, suffix

# histories
for name, (data, suffix) in {'nested 10^5 deep': (b'['*10**5, '.json'), 'a number of a million digits': (b'{"rows": [{"a": ' + b'9'*10**6 + b'}]}', '.json'), 'other keys': (b'{"__class__": "os.system"}', '.json'), 'rows that are numbers': (b'{"rows": [1, 2]}', '.json'), 'the same key twice': (b'{"rows": [], "rows": [{}]}', '.json'),
                             'ten million entries': (lambda: b'{"rows": [' + b'[],'*10**7 + b'[]]}', '.json'), 'formulas': (b'epoch,loss\n0,"=cmd|\' /C calc\'!A0"', '.csv'), 'a field of a million letters': (b'epoch\n"' + b'x'*10**6 + b'"', '.csv'), 'more fields than columns': (b'epoch\n1,2,3', '.csv'), 'zeros': (bytes(100), '.csv')}.items():
    CASES[f'history: {name}'] = 'history', data, suffix


def write(name, folder):
    "The file of a case; idx data are a folder of four"
    how, data, suffix = {**CASES, **LOOKED}[name]
    data = data() if callable(data) else data
    if how == 'idx':
        for i, part in enumerate(('train-images-idx3-ubyte', 'train-labels-idx1-ubyte', 't10k-images-idx3-ubyte', 't10k-labels-idx1-ubyte')): (folder/f'{part}{suffix}').write_bytes(data if i == 0 else idx(1, body=bytes(1)) if not suffix else gzip.compress(idx(1, body=bytes(1))))
        return folder
    (path := folder/f'file{suffix}').write_bytes(data)
    return path


OPEN = {'model': RPN.load, 'config': lambda path: load_config(path).learner(device='cpu'), 'data': lambda path: load_data(root=path, say=lambda *_: None), 'idx': lambda path: load_data(root=path, say=lambda *_: None),
        'image': lambda path: image_batch([path], PICTURE), 'history': History.load}
COMMANDS = {'model': lambda path: ['predict', path, 'image.png'], 'config': lambda path: ['train', path, '--out', 'out', '--device', 'cpu'], 'data': lambda path: ['train', 'small.yaml', '--data', path, '--out', 'out'], 'image': lambda path: ['predict', 'mnist_dual_lphm', path]}
COMMANDS['idx'] = COMMANDS['data']


def one_refusal(message):
    "Whether a message is one short line that a terminal may print"
    assert message and message.isprintable() and len(message) < 600, message[:300]


def watched(action):
    "What the action raised, and its seconds of computing; nothing may have been run"
    events.clear(); watching[0] = True
    start, error = time.process_time(), None
    try: action()
    except Exception as e: error = e
    finally: watching[0] = False
    return error, time.process_time() - start


@pytest.mark.parametrize('name', CASES)
def test_refused(name, tmp_path):
    "A `TinyRPNError` with one line, within two seconds of computing, and nothing run"
    (folder := tmp_path/'files').mkdir()
    path = write(name, folder)
    before = sorted(p.name for p in folder.iterdir())
    gc.collect()
    error, seconds = watched(lambda: OPEN[CASES[name][0]](path))
    assert isinstance(error, TinyRPNError), f'{type(error).__name__}: {error}'
    one_refusal(str(error))
    assert within(seconds, QUICK) and not events and not Path('canary').exists()
    assert sorted(p.name for p in folder.iterdir()) == before


@pytest.mark.parametrize('name', [n for n, (how, *_) in CASES.items() if how in COMMANDS])
def test_refused_on_the_command_line(name, tmp_path, capsys):
    "One line, status 2, no results"
    (folder := tmp_path/'files').mkdir()
    path = write(name, folder)
    Path('image.png').write_bytes(png(2, 2, body=zlib.compress(bytes(6))))
    Path('small.yaml').write_text('model: {dims: [4, 2], expansion: taylor}\nlearner: {epochs: 1}\n')
    status = []
    error, seconds = watched(lambda: status.append(main([str(a) for a in COMMANDS[CASES[name][0]](path)])))
    out = capsys.readouterr()
    said = [line for line in out.err.splitlines() if not line.startswith('note: ')]
    assert error is None and status == [2], (error, status, out)
    assert len(said) == 1 and said[0].startswith('tinyrpn: ') and 'which is unexpected' not in said[0], said
    one_refusal(said[0].removeprefix('tinyrpn: '))
    assert within(seconds, 1.5*QUICK) and not events and not Path('canary').exists() and not Path('out').exists()


@pytest.mark.parametrize('name', [n for n, (how, *_) in {**CASES, **LOOKED}.items() if how != 'idx'])
def test_inspected(name, tmp_path):
    "Looking into it gives a screen of printable text, or one line that refuses"
    (folder := tmp_path/'files').mkdir()
    path, text = write(name, folder), []
    error, seconds = watched(lambda: text.append(repr(inspect_file(path))))
    assert error is None or isinstance(error, TinyRPNError), f'{type(error).__name__}: {error}'
    if error: one_refusal(str(error))
    else: assert all(line.isprintable() and len(line) < 1000 for line in text[0].splitlines()) and len(text[0].splitlines()) < 70
    assert within(seconds, QUICK) and not events and not Path('canary').exists()


def test_what_is_watched_is_seen(tmp_path):
    "The canary sings: loading a pickle the careless way is noticed"
    error, _ = watched(lambda: pickle.loads(pickle.dumps(Bomb())))
    assert error is None and Path('canary').exists() and {e for e, _ in events} >= {'pickle.find_class', 'os.system'}


@pytest.mark.parametrize('what', ['pipe', 'folder', 'loop', 'absent', '/dev/zero', '/proc/self/mem'])
def test_what_is_no_file(what, tmp_path):
    "Pipes and devices would wait, or give zeros, for ever"
    if what[0] == '/' and not Path(what).exists(): pytest.skip(f'there is no {what} here')
    for i, (name, suffix) in enumerate({'model': '.safetensors', 'config': '.yaml', 'data': '.npz', 'image': '.png', 'history': '.csv', 'inspect': ''}.items()):
        path = Path(what) if what[0] == '/' else tmp_path/f'{what}{suffix}'
        if what == 'pipe': os.mkfifo(path)
        if what == 'folder': path.mkdir()
        if what == 'loop': path.symlink_to(path.name)
        error, seconds = watched(lambda: {**OPEN, 'inspect': inspect_file}[name](path))
        assert isinstance(error, TinyRPNError) and within(seconds, QUICK), (name, error)
        one_refusal(str(error))
    for read in (lambda: read_idx(path, 3), lambda: read_npz(path), lambda: open_image(path)):
        error, _ = watched(read)
        assert isinstance(error, TinyRPNError), error


def test_a_pipe_among_class_folders(tmp_path):
    for name in 'ab':
        (tmp_path/name).mkdir()
        for i in range(5): Image.new('L', (4, 4), i).save(tmp_path/name/f'{i}.png')
    os.mkfifo(tmp_path/'b'/'z.png')
    error, seconds = watched(lambda: load_data(root=tmp_path, say=lambda *_: None))
    assert isinstance(error, TinyRPNError) and 'z.png' in str(error) and within(seconds, QUICK)
    (tmp_path/'b'/'z.png').unlink()
    (tmp_path/'b'/'z.png').write_bytes(plain_png(2800, 2800, 4*2800, mode=6)) # of another size, which its header says
    error, seconds = watched(lambda: load_data(root=tmp_path, say=lambda *_: None))
    assert isinstance(error, TinyRPNError) and '2800 x 2800' in str(error) and within(seconds, 0.25*QUICK)


def test_what_a_camera_adds_is_not_looked_at(tmp_path, recwarn):
    "Five thousand tags that share 400 kB, a photograph of 64 million pixels, a film behind a picture, a text that unfolds to 100 MB"
    tags = b'II*\0\x08\0\0\0' + struct.pack('<H', 5000) + b''.join(struct.pack('<HHLL', 1000 + i, 7, 400_000, 0) for i in range(5000)) + bytes(400_014)
    part = b'\xff\xe1\xff\xff' + b'Exif\0\0' + tags[:65527]
    for name, data, size in (('tags.png', plain_png(28, 28, 28, extra=chunk(b'eXIf', tags)), (28, 28)), ('tags.jpg', jpeg(part*7), (28, 28)), ('photo.jpg', jpeg(size=(8000, 8000)), (2000, 2000)), ('film.jpg', jpeg() + os.urandom(2**24), (28, 28)), ('text.png', plain_png(28, 28, 28, extra=chunk(b'zTXt', b'a\0\0' + zlib.compress(bytes(10**8)))), (28, 28))):
        (tmp_path/name).write_bytes(data)
        start = time.process_time()
        assert open_image(tmp_path/name).size == size and within(time.process_time() - start, QUICK)
    assert not recwarn.list


def test_good_files_are_not_refused(tmp_path):
    "The files that the cases are made from"
    (tmp_path/'m.safetensors').write_bytes(model_file()); (tmp_path/'d.npz').write_bytes(npz(x_train=np.arange(40, dtype=np.uint8).reshape(10, 2, 2))); (tmp_path/'i.png').write_bytes(png(2, 2, body=zlib.compress(bytes(6)))); (tmp_path/'c.yaml').write_bytes(in_yaml())
    assert RPN.load(tmp_path/'m.safetensors')(torch.rand(2, 4)).shape == (2, 2)
    assert len(load_data(root=tmp_path/'d.npz', say=lambda *_: None).test.x) == 4
    assert image_batch([tmp_path/'i.png'], PICTURE).shape == (1, 4) and open_image(tmp_path/'i.png').size == (2, 2)
    assert load_config(tmp_path/'c.yaml').model().m == 4
    for name in ('m.safetensors', 'd.npz', 'i.png', 'c.yaml'): assert not inspect_file(tmp_path/name).suspicious, name
    relabelled_again = relabelled(lambda t: t)
    (tmp_path/'m.safetensors').write_bytes(relabelled_again); RPN.load(tmp_path/'m.safetensors')
    (tmp_path/'m.safetensors').write_bytes(entry(lambda h, t: None)); RPN.load(tmp_path/'m.safetensors')


def test_a_model_of_format_1():
    "A file that was written by the first version gives the numbers that it gave then"
    model = RPN.load(HERE/'files'/'model-format-1.safetensors')
    assert model.signature == Signature('mine', [1, 2, 2], 0.5, 0.25, ['no', 'yes']) and [len(l.heads) for l in model.layers] == [1, 2] and repr(model.scaler) == 'InputScaler(quantile to [-1, 1])'
    x = torch.tensor([[0., 1., 2., 3.], [5., 4., 3., 2.], [12., 1., 7., 0.5]])
    kept = [[1.6066316833480299, 0.9439299857347623], [0.24643493788366688, 1.945348979145776], [0.3661680058187011, 1.954991411715617]]
    torch.testing.assert_close(model(x).tolist(), kept, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.double()(x.double()).tolist(), kept, rtol=1e-9, atol=1e-9)


def refuse_all(folder):
    "Open every case; returns how many were refused, and how many megabytes the process grew by at most (in a process of its own)"
    folder = Path(folder); os.chdir(folder)
    paths = {}
    for i, name in enumerate(both := {**CASES, **LOOKED}):
        (folder/f'{i}').mkdir(); paths[name] = write(name, folder/f'{i}')
    os.environ['PATHS'] = json.dumps({k: [both[k][0], str(v)] for k, v in paths.items()})
    return subprocess.run([sys.executable, '-W', 'ignore', '-c', 'import test_hostile as t; t.measure()'], cwd=HERE, capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})


def peak():
    "The most memory that this process has held so far, in bytes (Linux counts a parent's memory in ru_maxrss)"
    try: return next(int(line.split()[1])*1024 for line in Path('/proc/self/status').read_text().splitlines() if line.startswith('VmHWM'))
    except (OSError, StopIteration): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*(1 if sys.platform == 'darwin' else 1024)


def measure():
    "The cases that the environment names, opened and looked into one after the other; prints how many were refused, and the growth of memory"
    load_config({'model': {'dims': [4, 2], 'expansion': 'taylor'}}).model()
    before, refused, worst = peak(), 0, []
    for name, (how, path) in json.loads(os.environ['PATHS']).items():
        start = peak()
        try: how == 'look' or OPEN[how](Path(path))
        except TinyRPNError: refused += 1
        try: how == 'idx' or repr(inspect_file(path))
        except TinyRPNError: pass
        worst.append((peak() - start, name))
    print(json.dumps({'refused': refused, 'of': len(CASES), 'grown': peak() - before, 'by': max(worst)[1]}))


def test_the_corpus_is_refused_in_little_memory(tmp_path, tell):
    "All cases in one process of their own, whose memory may grow by 500 MB; prints how many were refused"
    run = refuse_all(tmp_path)
    assert run.returncode == 0, run.stderr[-800:]
    result = json.loads(run.stdout.splitlines()[-1])
    tell(f'{result["refused"]} of {result["of"]} hostile files were refused; memory grew by {result["grown"]/2**20:.0f} MB at most')
    assert result['refused'] == result['of'] == len(CASES) >= 45
    assert 0 < result['grown'] < 500*2**20, result
