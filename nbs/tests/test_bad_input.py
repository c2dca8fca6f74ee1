"Bad input, everywhere: each named case ends in one line of the right kind that says what is wrong and what would do, and nothing on disk changes"
import gzip
import hashlib
import http.server
import io
import math
import os
import struct
import threading
import time
import tracemalloc
import urllib.request
import zipfile
import zlib
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import matplotlib.font_manager  # noqa: F401  writes its cache now, not within a case
import numpy as np
import pytest
from conftest import within
import torch
import torchmetrics  # noqa: F401  takes long under tracemalloc
from PIL import Image
from torch import nn

from tinyrpn import data
from tinyrpn.cli import main
from tinyrpn.config import ConfigError, load_config
from tinyrpn.core import DeviceError, FileError, ParameterError, ShapeError, TinyRPNError, TooLargeError, UnknownNameError, UnknownParameterError, create, names, set_seed
from tinyrpn.data import Batches, Data, DataError, MissingDataError, find_idx, image_batch, load_data, read_folder, read_idx, read_npz
from tinyrpn.learner import Callback, History, Learner
from tinyrpn.model import RPN, RPNHead, RPNLayer, Signature
from tinyrpn.scaler import InputScaler

nan, inf, URLOPEN = math.nan, math.inf, urllib.request.urlopen
X, Y = torch.linspace(0, 1, 48).view(12, 4), torch.arange(12) % 3
RAW = np.arange(96, dtype=np.uint8).reshape(24, 2, 2)
LABELS = np.arange(24) % 2
TWO = Signature('two', [1, 2, 2], 0.5, 0.25, ['even', 'odd'])


def disk():
    "What is on disk, with hashes"
    return {str(p): os.readlink(p) if p.is_symlink() else hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else 'folder' for p in Path().rglob('*')}


def refused(name, call, error, words):
    "The check that all cases share"
    before, start = disk(), time.time()
    tracemalloc.start()
    try:
        with pytest.raises(TinyRPNError) as e: call()
        peak = tracemalloc.get_traced_memory()[1]
    finally: tracemalloc.stop()
    message = str(e.value)
    assert isinstance(e.value, error) and type(e.value) is not TinyRPNError, repr(e.value)
    assert '\n' not in message and message.isprintable() and len(message) < 600
    assert len(words) > 1 and all(w in message for w in words), f'{words}: {message}'
    assert disk() == before
    assert within(time.time() - start, 10) and peak < 100e6


@pytest.fixture(autouse=True)
def counted(request):
    if request.node.name != 'test_there_are_many': request.node.user_properties.append(('counted', 'cases of bad input refused'))


def parametrize(cases):
    assert len({c[0] for c in cases}) == len(cases)
    return pytest.mark.parametrize('case', cases, ids=[c[0] for c in cases])


def head(expansion='taylor_expansion', m=4, n=3, psi='identity_reconciliation', **kw): return RPNHead(m, n, create(expansion), create(psi), **kw)
def model(**kw): return RPN([head()], **kw)
def learner(x=X, y=Y, net=None, test=None, **kw): return Learner(net or model(), (Batches(x, y, 4), test), device='cpu', progress=False, **kw)
def fit(*args, **kw): return learner(*args, **kw).fit(2)
def on(loader, **kw): return Learner(model(), loader, device='cpu', progress=False, **kw).fit(1)
def but(x, value, i=5): x = x.clone(); x[i] = value; return x


COMPONENTS = [
    ('a component that is not there', lambda: create('tailor_expansion'), UnknownNameError, "'tailor_expansion'", "Did you mean 'taylor_expansion'?"),
    ('a number for a component', lambda: create(3), UnknownNameError, 'no component 3', 'Known:'),
    ('a kind that is not there', lambda: names('expansions'), UnknownNameError, "'expansions'", "Did you mean 'expansion'?"),
    ('an unknown parameter', lambda: create('taylor_expansion', degree=2), UnknownParameterError, "no parameter 'degree'", 'Known: d,'),
    ('degree 0', lambda: create('taylor_expansion', d=0), ParameterError, 'd=0', 'at least 1'),
    ('degree 1.5', lambda: create('taylor_expansion', d=1.5), ParameterError, 'd=1.5', 'a whole number'),
    ('degree True', lambda: create('taylor_expansion', d=True), ParameterError, 'd=True', 'a whole number'),
    ('degree of 500 digits', lambda: create('taylor_expansion', d=10**500), ParameterError, 'd=a number of 500 digits', 'at most'),
    ('a grid from right to left', lambda: create('bspline_expansion', grid_range=(1, -1)), ParameterError, 'grid_range=(1, -1)', 'the lower one first'),
    ('a grid of one number', lambda: create('bspline_expansion', grid_range=1), ParameterError, 'grid_range=1', 'two numbers'),
    ('a grid to NaN', lambda: create('bspline_expansion', grid_range=(0, nan)), ParameterError, 'grid_range=nan', 'a number'),
    ('a period of 0', lambda: create('fourier_expansion', P=0), ParameterError, 'P=0', 'a positive number'),
    ('a domain rule that is not there', lambda: create('legendre_expansion', domain='wrap'), ParameterError, "domain='wrap'", 'clamp'),
    ('a function that is not there', lambda: create('taylor_expansion', pre='Tanhh'), UnknownNameError, "'Tanhh'", "Did you mean 'Tanh'?"),
    ('9 of 3 coordinates', lambda: create('combinatorial_expansion', d=9)(torch.rand(2, 3)), ShapeError, 'd=9', 'm=3', 'lower d'),
    ('rank -2', lambda: create('lorr_reconciliation', r=-2), ParameterError, 'r=-2', 'at least 1'),
    ('whole numbers to expand', lambda: create('taylor_expansion')(torch.ones(2, 3).long()), ShapeError, 'torch.int64', 'x.float()'),
    ('a list to expand', lambda: create('taylor_expansion')([1., 2.]), ShapeError, 'x is a list', 'a tensor'),
    ('seed -1', lambda: set_seed(-1), ParameterError, 'seed=-1', 'at least 0'),
    ('seed 2**32', lambda: set_seed(2**32), ParameterError, 'seed=4294967296', 'at most 4294967295'),
    ('scaler of an unknown kind', lambda: InputScaler('standrad'), ParameterError, "kind='standrad'", 'standard'),
    ('scaler to an empty target', lambda: InputScaler('minmax', target=(1, 0)), ParameterError, 'target=(1, 0)', 'the lower one first'),
    ('scaler of one quantile', lambda: InputScaler('quantile', quantiles=1), ParameterError, 'quantiles=1', 'at least 2'),
    ('scaler fitted on nothing', lambda: InputScaler().fit(X[:0]), ParameterError, 'InputScaler', 'no samples'),
    ('scaler fitted on NaN', lambda: InputScaler().fit(but(X, nan)), ParameterError, 'InputScaler', 'NaN'),
    ('scaler fitted on whole numbers', lambda: InputScaler().fit(torch.ones(3, 4).long()), ShapeError, 'torch.int64', 'x.float()'),
    ('scaler not fitted', lambda: model(scaler='minmax')(X), ParameterError, 'not fitted', 'fit(x)'),
    ('scaler of another width', lambda: RPN([head(m=5)], scaler=InputScaler().fit(X)), ShapeError, '4 inputs', 'm=5'),
]

MODELS = [
    ('no inputs', lambda: head(m=0), ParameterError, 'm=0', 'at least 1'),
    ('-1 outputs', lambda: head(n=-1), ParameterError, 'n=-1', 'at least 1'),
    ('1.5 inputs', lambda: head(m=1.5), ParameterError, 'm=1.5', 'a whole number'),
    ('no channels', lambda: head(channels=0), ParameterError, 'channels=0', 'at least 1'),
    ('a bias that is text', lambda: head(bias='yes'), ParameterError, "bias='yes'", 'True or False'),
    ('a name for an expansion', lambda: RPNHead(4, 3, 'taylor', create('identity_reconciliation')), ParameterError, "expansion='taylor'", 'such as create('),
    ('a reconciliation for an expansion', lambda: RPNHead(4, 3, create('identity_reconciliation'), create('taylor_expansion')), ParameterError, 'expansion=identity_reconciliation()', 'an expansion is needed'),
    ('a name for a remainder', lambda: head(remainder='linear'), ParameterError, "remainder='linear'", 'such as create('),
    ('an output function of another size', lambda: head(output=nn.LayerNorm(7)), ShapeError, 'normalized_shape=7', 'normalized_shape=3'),
    ('an unknown way to multiply', lambda: head(contraction='fast'), ParameterError, "contraction='fast'", "'auto' or 'dense'"),
    ('a head of a petabyte', lambda: head(m=30000, n=10**6), TooLargeError, 'n=1000000', 'GiB are free'),
    ('a layer of nothing', lambda: RPNLayer([]), ParameterError, 'heads=[]', 'at least one head'),
    ('a layer of names', lambda: RPNLayer(['taylor']), ParameterError, "'taylor'", 'RPNHead'),
    ('heads of different m', lambda: RPNLayer([head(m=3), head(m=4)]), ShapeError, 'm=[3, 4]', 'equal m'),
    ('heads of different n', lambda: RPNLayer([head(n=3), head(n=4)]), ShapeError, 'n=[3, 4]', 'equal n'),
    ('a fusion that is not there', lambda: RPNLayer([head()], fusion='avrage'), UnknownNameError, "'avrage'", "Did you mean 'average_fusion'?"),
    ('a layer 0 wide', lambda: RPNLayer.repeat(0, m=2, n=2, expansion=create('taylor_expansion'), reconciliation=create('identity_reconciliation')), ParameterError, 'width=0', 'at least 1'),
    ('a model of nothing', lambda: RPN([]), ParameterError, 'layers=[]', 'at least one layer'),
    ('a model of None', lambda: RPN(None), ParameterError, 'layers', 'None', 'a list'),
    ('a model of names', lambda: RPN(['taylor']), ParameterError, 'layers', "'taylor'", 'a list'),
    ('layers that do not fit', lambda: RPN([head(n=5), head(m=6)]), ShapeError, 'n=5', 'm=6', 'must be equal'),
    ('a scaler that is a number', lambda: model(scaler=3), ParameterError, 'scaler=', 'an InputScaler'),
    ('a scaler with an unknown parameter', lambda: model(scaler={'kind': 'minmax', 'low': 1}), UnknownParameterError, "no parameter 'low'", 'Known:'),
    ('whole numbers for a model', lambda: model()(torch.ones(2, 4).long()), ShapeError, 'torch.int64', 'x.float()'),
    ('truth values for a model', lambda: model()(torch.ones(2, 4).bool()), ShapeError, 'torch.bool', 'x.float()'),
    ('complex numbers for a model', lambda: model()(X.cfloat()), ShapeError, 'torch.complex64', 'floating-point'),
    ('half precision for a model', lambda: model()(X.half()), ShapeError, 'torch.float16', 'x.to(weight.dtype)'),
    ('double precision for a model', lambda: model()(X.double()), ShapeError, 'torch.float64', 'model.double()'),
    ('complex numbers for a scaler', lambda: RPN([head()], scaler=InputScaler().fit(X))(X.cfloat()), ShapeError, 'torch.complex64', 'floating-point'),
    ('an array for a model', lambda: model()(X.numpy()), ShapeError, 'x is a ndarray', 'a tensor (batch, 4)'),
    ('a list for a model', lambda: model()([1., 2., 3., 4.]), ShapeError, 'x is a list', 'a tensor (batch, 4)'),
    ('one sample without a batch', lambda: model()(X[0]), ShapeError, '(4,)', '(batch, 4)'),
    ('samples that are too wide', lambda: model()(torch.rand(2, 5)), ShapeError, '(2, 5)', '(batch, 4)'),
    ('images of another size', lambda: model()(torch.rand(2, 1, 3, 3)), ShapeError, '(2, 9)', '(batch, 4)'),
    ('a batch of 0 to describe', lambda: model().describe(0), ParameterError, 'batch=0', 'at least 1'),
    ('a batch of 10^9 to describe', lambda: model().describe(10**9), ParameterError, 'batch=1000000000', 'at most 100,000,000'),
    ('a signature of deviation 0', lambda: Signature('x', [4], 0., 0.).check(4, 3), ShapeError, 'std=0.0', 'std > 0'),
    ('a signature of a mean beyond all floats', lambda: Signature('x', [4], 10**400).check(4, 3), ShapeError, 'mean=a number of 400 digits', 'finite numbers'),
    ('a signature of a mean of 5000 digits', lambda: Signature('x', [4], 10**5000).check(4, 3), ShapeError, 'mean=a number of 5000 digits', 'finite numbers'),
    ('a signature of 9 dimensions', lambda: Signature('x', [1]*8 + [4]).check(4, 3), ShapeError, "Signature('x', [1, 1, 1, 1, 1, 1, 1, 1, 4]", 'at most 8 whole numbers'),
    ('a signature of a side of 5000 digits', lambda: Signature('x', [10**5000]).check(4, 3), ShapeError, '[a number of 5000 digits]', 'from 1 to 100,000,000'),
    ('a model saved nowhere', lambda: model().save('nowhere/m.safetensors'), FileError, 'nowhere/m.safetensors', 'no folder'),
    ('a model saved over a folder', lambda: model().save('folder'), FileError, 'folder', 'it is a folder'),
    ('a model saved as None', lambda: model().save(None), ParameterError, 'None', 'the name of a file'),
    ('a model that is not there', lambda: RPN.load('m.safetensors'), FileError, 'm.safetensors', 'no such file'),
    ('a model of a name too long', lambda: RPN.load('x'*300), FileError, 'xxx', 'cannot be looked up'),
    ('a model of a name with a zero byte', lambda: RPN.load('a\0b'), FileError, 'a', 'cannot be looked up'),
    ('10^8 inputs', lambda: head(m=10**8), ParameterError, 'm=100000000', 'at most 10,000,000'),
    ('a packaged model that is nearly there', lambda: RPN.load('mnist_dual_lph'), FileError, 'mnist_dual_lph', "Did you mean 'mnist_dual_lphm'?"),
    ('a model file that is text', lambda: RPN.load('text'), FileError, 'text', 'safetensors'),
    ('a model from None', lambda: RPN.load(None), ParameterError, 'None', 'a path'),
    ('a model on a device that is not here', lambda: RPN.load('mnist_dual_lphm', device='cuda:7'), DeviceError, "'cuda:7'", 'Present: '),
    ('a plugin that is not there', lambda: RPN.load('mnist_dual_lphm', plugins=['no_such']), ParameterError, "'no_such'", 'a module that Python finds'),
    ('a history saved as text', lambda: History().save('h.txt'), FileError, 'h.txt', '.csv or .json'),
    ('a history saved nowhere', lambda: History().save('nowhere/h.csv'), FileError, 'nowhere/h.csv', 'no folder'),
    ('a history that is not there', lambda: History.load('h.csv'), FileError, 'h.csv', 'no such file'),
    ('a history that is a folder', lambda: History.load('folder'), FileError, 'folder', 'no file but'),
    ('a history that is no JSON', lambda: History.load('text.json'), FileError, 'text.json', 'no JSON'),
]

TRAINING = [
    *[(f'learning rate {lr}', lambda lr=lr: fit(optimizer={'name': 'AdamW', 'lr': lr}), ParameterError, f'lr={lr!r}', 'a positive number') for lr in (0, -1, inf, nan, 'fast', True)],
    ('weight decay -1', lambda: fit(optimizer={'name': 'AdamW', 'weight_decay': -1}), ParameterError, 'weight_decay=-1', 'AdamW'),
    ('weight decay NaN', lambda: fit(optimizer={'name': 'SGD', 'weight_decay': nan}), ParameterError, 'weight_decay=nan', 'a number'),
    ('betas above 1', lambda: fit(optimizer={'name': 'AdamW', 'betas': [2, 3]}), ParameterError, 'betas=[2, 3]', 'AdamW'),
    ('an optimizer that is not there', lambda: fit(optimizer='AdmW'), UnknownNameError, "'AdmW'", "Did you mean 'AdamW'?"),
    ('an optimizer without a name', lambda: fit(optimizer={'lr': 1}), UnknownNameError, 'no optimizer None', 'Known: '),
    ('None for an optimizer', lambda: fit(optimizer=None), ParameterError, 'optimizer=None', 'is needed'),
    ('a number for an optimizer', lambda: fit(optimizer=3), ParameterError, 'optimizer=3', 'is needed'),
    *[(f'{n} epochs', lambda n=n: learner().fit(n), ParameterError, f'n_epochs={n}', 'at least 1') for n in (0, -1, 1.5, None)],
    ('a learner for 0 epochs', lambda: learner(n_epochs=0), ParameterError, 'n_epochs=0', 'at least 1'),
    ('a loss that is not there', lambda: fit(loss='CrossEntropy'), UnknownNameError, "'CrossEntropy'", "Did you mean 'CrossEntropyLoss'?"),
    ('None for a loss', lambda: fit(loss=None), ParameterError, 'loss=None', 'is needed'),
    ('a number for a loss', lambda: fit(loss=3), ParameterError, 'loss=3', 'is needed'),
    ('a loss for each sample', lambda: fit(loss={'name': 'CrossEntropyLoss', 'reduction': 'none'}), ParameterError, "reduction='none'", "'mean' or 'sum'"),
    ('a loss module for each sample', lambda: fit(loss=nn.CrossEntropyLoss(reduction='none')), ShapeError, 'loss=CrossEntropyLoss', '(4,)', 'one number'),
    ('squares of class numbers', lambda: fit(loss='MSELoss'), ShapeError, 'loss=MSELoss', '(4, 3)', '(4,)'),
    ('a row against a column', lambda: fit(net=RPN([head(n=1)]), y=Y.float(), loss='MSELoss', metrics=None), ShapeError, 'loss=MSELoss', '(4, 1)', '(4,)'),
    ('class numbers that are not whole', lambda: fit(y=torch.rand(12)), DataError, 'torch.float32', 'y.long()'),
    ('label n', lambda: fit(y=but(Y, 3)), DataError, 'label 3', 'n=3', '0 to 2'),
    ('label -1', lambda: fit(y=but(Y, -1)), DataError, 'label -1', '0 to 2'),
    ('label n in the test set', lambda: learner().evaluate(Batches(X, but(Y, 3))), DataError, 'label 3', '0 to 2'),
    ('NaN to train on', lambda: fit(x=but(X, nan)), DataError, 'NaN', 'epoch 1, step 2', 'number 1'),
    ('infinity to train on', lambda: fit(x=but(X, inf)), DataError, 'infinite', 'epoch 1, step 2'),
    ('NaN for the scaler', lambda: fit(x=but(X, nan), net=model(scaler='standard')), ParameterError, 'InputScaler', 'NaN'),
    ('NaN to test on', lambda: learner().evaluate(Batches(but(X, nan), Y)), DataError, 'NaN', 'batch 1'),
    ('NaN to predict', lambda: learner().predict(but(X, nan)), DataError, 'NaN', 'number 5', 'finite numbers'),
    ('whole numbers to predict', lambda: learner().predict(torch.ones(3, 4).long()), ShapeError, 'torch.int64', 'x.float()'),
    ('complex numbers to predict', lambda: learner().predict(X.cfloat()), ShapeError, 'torch.complex64', 'floating-point'),
    ('half precision to predict', lambda: learner().predict(X.half()), ShapeError, 'torch.float16', 'x.to(weight.dtype)'),
    ('objects to predict', lambda: learner().predict(np.array([[{}]])), ShapeError, 'x', 'object'),
    ('None to predict', lambda: learner().predict(None), ShapeError, 'x=None', 'samples (N, m)'),
    ('one number to predict', lambda: learner().predict(torch.tensor(1.)), ShapeError, 'x=', 'samples (N, m)'),
    ('a path to predict', lambda: learner().predict('x.png'), ParameterError, 'a str', 'batches'),
    ('0 predictions at a time', lambda: learner().predict(X, 0), ParameterError, 'batch_size=0', 'at least 1'),
    ('no data', lambda: on(None), ParameterError, 'data=None', 'training data'),
    ('a number for data', lambda: on(3), ParameterError, 'data', 'a int', 'batches (x, y)'),
    ('a name for data', lambda: on('mnist'), ParameterError, 'data', 'a str', 'batches (x, y)'),
    ('tensors for loaders', lambda: on((X, Y)), ParameterError, 'data', 'a Tensor', 'Batches(x, y)'),
    ('a dict of other loaders', lambda: on({'train': Batches(X, Y)}), ParameterError, "'train'", "'train_loader'"),
    ('an empty training loader', lambda: on(([], None)), ParameterError, 'no batches', 'it is empty'),
    ('an empty test loader', lambda: learner().evaluate([]), ParameterError, 'data', 'the loader is empty'),
    ('nothing to evaluate', lambda: learner().evaluate(), ParameterError, 'data=None', 'evaluate needs data'),
    ('batches without labels', lambda: on(([(X, None)], None)), ParameterError, 'data', 'without labels'),
    ('a test without labels', lambda: learner().evaluate([(X, None)]), ParameterError, 'data', 'without labels'),
    ('fewer labels than samples', lambda: on(([(X, Y[:5])], None)), ShapeError, '12 samples', '5 labels'),
    ('labels in a column', lambda: on(([(X, Y[:, None])], None)), ShapeError, '(12, 1)', 'labels'),
    ('batches of arrays', lambda: on(([(X.numpy(), Y.numpy())], None)), ParameterError, 'a ndarray', 'tensors (x, y)'),
    ('text for a callback', lambda: fit(callbacks='x'), ParameterError, "'x'", 'Callback'),
    ('a class for a callback', lambda: fit(callbacks=[Callback]), ParameterError, 'callbacks', 'objects of a subclass of Callback'),
    ('another object for a callback', lambda: fit(callbacks=[object()]), ParameterError, 'callbacks', 'objects of a subclass of Callback'),
    ('a metric that is not there', lambda: fit(metrics='acuracy'), UnknownNameError, "'acuracy'", "Did you mean 'accuracy'?"),
    ('a number for a metric', lambda: fit(metrics={'a': 3}), UnknownNameError, 'metric 3', 'Known: '),
    ('a metric of numbers for classes', lambda: fit(metrics='r2'), ShapeError, 'metrics', '(4, 3)', '(4,)'),
    ('None for a model', lambda: Learner(None, device='cpu'), ParameterError, 'model=None', 'a torch module'),
    ('a name for a model', lambda: Learner('mnist', device='cpu'), ParameterError, "model='mnist'", 'a torch module'),
    ('a model that learns nothing', lambda: fit(net=RPN([head(psi='constant_reconciliation')])), ParameterError, 'model has no parameters', 'nothing to train'),
    ('a schedule that is not there', lambda: fit(scheduler='StepLr'), UnknownNameError, "'StepLr'", "Did you mean 'StepLR'?"),
    ('a schedule that lacks a parameter', lambda: fit(scheduler='StepLR'), ParameterError, 'StepLR', 'step_size'),
    ('a schedule with another parameter', lambda: fit(scheduler={'name': 'StepLR', 'step': 1}), UnknownParameterError, "'step'", "Did you mean 'step_size'?"),
    ('steps of 0 epochs', lambda: fit(scheduler={'name': 'StepLR', 'step_size': 0}), ParameterError, 'step_size=0', 'at least 1'),
    ('a half wave of 0 epochs', lambda: fit(scheduler={'name': 'CosineAnnealingLR', 'T_max': 0}), ParameterError, 'T_max=0', 'at least 1'),
    ('a decay that is NaN', lambda: fit(scheduler={'name': 'ExponentialLR', 'gamma': nan}), ParameterError, 'gamma=nan', 'a positive number'),
    ('a decay of -1', lambda: fit(scheduler={'name': 'ExponentialLR', 'gamma': -1}), ParameterError, 'gamma=-1', 'a positive number'),
    ('a number for a schedule', lambda: fit(scheduler=3), ParameterError, 'scheduler=3', 'is needed'),
    ('a device that is not here', lambda: Learner(model(), device='cuda:9'), DeviceError, "'cuda:9'", 'Present: '),
    ('clipping at -1', lambda: learner(clip=-1), ParameterError, 'clip=-1', 'a positive number'),
    ('0 batches an update', lambda: learner(accumulate=0), ParameterError, 'accumulate=0', 'at least 1'),
    ('a precision that is not there', lambda: learner(precision='float8'), ParameterError, "precision='float8'", 'bfloat16'),
    ('batches of unequal length', lambda: Batches(X, Y[:3]), ShapeError, '12', '3', 'must be equal'),
    ('batches of lists', lambda: Batches([1, 2], [3, 4]), ShapeError, 'x is a list', 'a tensor'),
    ('batches of single numbers', lambda: Batches(torch.tensor(1.), torch.tensor(1)), ShapeError, 'x is a single number', 'a row for each sample'),
    *[(f'batch size {n}', lambda n=n: Batches(X, Y, n), ParameterError, f'batch_size={n}', 'at least 1') for n in (0, -1, 1.5)],
]


@pytest.fixture
def files():
    "What some cases point at"
    Path('folder').mkdir(); Path('text').write_text('plain text'); Path('text.json').write_text('plain text')


@parametrize(COMPONENTS + MODELS + TRAINING)
def test_api(files, case):
    name, call, error, *words = case
    refused(name, call, error, words)


SIMPLE = 'model: {dims: [4, 3], expansion: taylor}\n'
YAML = [
    ('an empty file', '', ConfigError, 'found None', 'a mapping'),
    ('a list', '- a\n- b', ConfigError, "found ['a', 'b']", 'a mapping'),
    ('plain text', 'hello', ConfigError, "found 'hello'", 'a mapping'),
    ('a tab', 'model:\n\tdims: [4, 3]', ConfigError, 'case.yaml', 'cannot start any token', 'line 2'),
    ('a bracket left open', 'model: {dims: [4, 3', ConfigError, 'case.yaml', 'expected'),
    ('a key that stands twice', 'seed: 1\nseed: 2\n' + SIMPLE, ConfigError, 'seed', 'twice'),
    ('bytes that are no text', b'\xff\xfe\x00', FileError, 'case.yaml', 'is not text in UTF-8'),
    ('a tag that calls', '!!python/object/apply:os.system ["touch here"]', ConfigError, 'case.yaml', 'is refused; plain values'),
    ('an unknown section', 'modle: {dims: [4, 3]}', ConfigError, 'modle', "Did you mean 'model'?"),
    ('dims that are text', 'model: {dims: big, expansion: taylor}', ConfigError, 'model.dims', "'big'", 'a list'),
    ('one dim', 'model: {dims: [4], expansion: taylor}', ConfigError, '[4]', 'two or more'),
    ('a dim of 0', 'model: {dims: [4, 0], expansion: taylor}', ConfigError, '[4, 0]', 'whole numbers'),
    ('a dim of 2.5', 'model: {dims: [4, 2.5], expansion: taylor}', ConfigError, '[4, 2.5]', 'whole numbers'),
    ('no expansion', 'model: {dims: [4, 3]}', ConfigError, 'model', 'expansion is missing'),
    ('an expansion that is not there', 'model: {dims: [4, 3], expansion: tailor}', UnknownNameError, "'tailor'", "Did you mean 'taylor'?"),
    ('an expansion with another parameter', 'model: {dims: [4, 3], expansion: {name: taylor, dd: 2}}', ConfigError, 'model.expansion.dd', "Did you mean 'd'?"),
    ('a degree that is text', 'model: {dims: [4, 3], expansion: {name: taylor, d: two}}', ParameterError, "d='two'", 'a whole number'),
    ('an expansion in a list', 'model: {dims: [4, 3], expansion: [taylor]}', ConfigError, "['taylor']", 'a mapping'),
    ('a function that is not there', 'model: {dims: [4, 3], expansion: {name: taylor, post: LayerNrm}}', UnknownNameError, "'LayerNrm'", "Did you mean 'LayerNorm'?"),
    ('a function that is none of ours', 'model: {dims: [4, 3], expansion: {name: taylor, post: os.system}}', UnknownNameError, "'os.system'", 'Known: '),
    ('an eps that is text', 'model: {dims: [4, 3], expansion: {name: taylor, post: {name: LayerNorm, eps: abc}}}', ParameterError, "eps='abc'", 'a number'),
    ('seed -1', 'seed: -1\n' + SIMPLE, ParameterError, 'seed=-1', 'at least 0'),
    ('a seed that is text', 'seed: x\n' + SIMPLE, ConfigError, "seed: found 'x'", 'a whole number'),
    ('a seed beyond 32 bits', 'seed: 4294967296\n' + SIMPLE, ParameterError, 'seed=4294967296', 'at most 4,294,967,295'),
    ('a device that is a number', 'device: 3\n' + SIMPLE, ConfigError, 'device: found 3', 'text'),
    ('a name that is a path', 'name: ../../etc\n' + SIMPLE, ConfigError, "'../../etc'", 'letters'),
    *[(f'learning rate {lr}', SIMPLE + f'learner: {{optimizer: {{name: AdamW, lr: {lr}}}}}', ParameterError, 'lr=', 'a positive number') for lr in ('0', '-1', '.inf', '.nan', 'fast')],
    ('an optimizer with another parameter', SIMPLE + 'learner: {optimizer: {name: AdamW, lrr: 1}}', UnknownParameterError, "'lrr'", "Did you mean 'lr'?"),
    ('an optimizer that is none of ours', SIMPLE + 'learner: {optimizer: os.system}', UnknownNameError, "'os.system'", 'Known: '),
    *[(f'{n} epochs', SIMPLE + f'learner: {{epochs: {n}}}', ParameterError, 'learner.epochs', 'at least 1') for n in ('0', '-1', '1.5', 'many', 'null')],
    *[(f'batch size {n}', f'data: {{name: mnist, batch_size: {n}}}\n' + SIMPLE, ParameterError, 'batch_size=', 'at least 1') for n in ('0', '-1', 'all')],
    ('a batch beyond the data', 'data: {name: mnist_sample, batch_size: 2001}\n' + SIMPLE, ParameterError, 'batch_size=2001', 'at most 2000'),
    ('an unknown key of the data', 'data: {name: mnist, batchsize: 3}\n' + SIMPLE, ConfigError, 'data.batchsize', "Did you mean 'batch_size'?"),
    ('a batch of 10^12', 'data: {name: mnist, batch_size: 1000000000000}\n' + SIMPLE, ParameterError, 'batch_size=1000000000000', 'at most 100,000,000'),
    ('deterministic as text', SIMPLE + 'learner: {deterministic: "no"}', ConfigError, "learner.deterministic: found 'no'", 'true or false'),
    ('a metric named by a number', SIMPLE + 'learner: {metrics: {1: accuracy}}', ConfigError, 'the key 1', 'text'),
    ('a metric named by nothing', SIMPLE + 'learner: {metrics: {~: accuracy}}', ConfigError, 'the key None', 'text'),
    ('a metric named loss', SIMPLE + 'learner: {metrics: {loss: accuracy}}', ConfigError, 'learner.metrics.loss', 'another one'),
    ('a key of 5000 digits', '? ' + ':'.join(['59']*2900) + '\n: 3', ConfigError, 'the key a number of 5156 digits', 'text'),
    ('data that are not there', 'data: mnits\n' + SIMPLE, UnknownNameError, "'mnits'", "Did you mean 'mnist'?"),
    ('a metric that is not there', SIMPLE + 'learner: {metrics: acuracy}', UnknownNameError, "'acuracy'", "Did you mean 'accuracy'?"),
    ('a loss that is not there', SIMPLE + 'learner: {loss: CrossEntropy}', UnknownNameError, "'CrossEntropy'", "Did you mean 'CrossEntropyLoss'?"),
    ('steps of 0 epochs', SIMPLE + 'learner: {scheduler: {name: StepLR, step_size: 0}}', ParameterError, 'step_size=0', 'at least 1'),
    ('layers that are text', 'model: {layers: many}', ConfigError, "'many'", 'a list of layers'),
    ('no layers', 'model: {layers: []}', ConfigError, 'model.layers', 'at least one'),
    ('layers that do not fit', 'model: {layers: [{m: 4, n: 3, expansion: taylor}, {m: 5, n: 2, expansion: taylor}]}', ShapeError, 'm=5', 'n=3', 'must be equal'),
    ('a head that does not fit its layer', 'model: {layers: [{m: 4, n: 3, heads: [{m: 5, expansion: taylor}]}]}', ShapeError, 'm=4', 'm=5', 'must be equal'),
    ('heads twice', 'model: {layers: [{m: 4, n: 3, expansion: taylor, heads: [{expansion: taylor}]}]}', ConfigError, 'heads beside expansion', 'one or the other'),
    ('width 0', 'model: {dims: [4, 3], width: 0, expansion: taylor}', ParameterError, 'width=0', 'at least 1'),
    ('width 100000', 'model: {dims: [4, 3], width: 100000, expansion: taylor}', ConfigError, '100000', 'at most 10000'),
    ('an unknown way to multiply', 'model: {dims: [4, 3], expansion: taylor, contraction: fast}', ParameterError, "contraction='fast'", "'auto' or 'dense'"),
    ('a bias that is text', 'model: {dims: [4, 3], expansion: taylor, bias: maybe}', ConfigError, "'maybe'", 'true or false'),
    ('a scaler that is not there', 'model: {dims: [4, 3], expansion: taylor, scaler: standrad}', ParameterError, "'standrad'", 'standard'),
    ('a model of a petabyte', 'model: {dims: [100000, 100000], expansion: taylor}', TooLargeError, 'layer 0', 'GiB are free'),
]


@parametrize(YAML)
def test_yaml(case):
    name, text, error, *words = case
    Path('case.yaml').write_bytes(text if isinstance(text, bytes) else text.encode())

    def everything():
        cfg = load_config('case.yaml')
        if cfg.data_spec: cfg.data(say=lambda *_: None)
        cfg.learner(cfg.model(), (Batches(X, Y, 4), None), device='cpu', progress=False).fit(2)
    refused(f'YAML: {name}', everything, error, words)


TRAIN = 'train small.yaml --device cpu '
CLI = [
    ('no command', '', 'COMMAND'), ('a command that is not there', 'tran', "'tran'", "'train'"), ('no configuration', 'train', 'the name of a configuration'), ('an unknown option', TRAIN + '--colour red', '--colour red'),
    *[(f'learning rate {lr}', TRAIN + f'--lr {lr}', 'lr=', 'a positive number') for lr in ('0', '-1', 'inf', 'nan')],
    ('a learning rate that is text', TRAIN + '--lr fast', "'fast'", '--lr'), ('0 epochs', TRAIN + '--epochs 0', 'epochs=0', 'at least 1'), ('-1 epochs', TRAIN + '--epochs -1', 'epochs=-1', 'at least 1'), ('1.5 epochs', TRAIN + '--epochs 1.5', "'1.5'", '--epochs'),
    ('batches of 0', TRAIN + '--batch-size 0', 'batch_size=0', 'at least 1'), ('batches of -1', TRAIN + '--batch-size -1', 'batch_size=-1', 'at least 1'), ('batches beyond the data', TRAIN + '--batch-size 5000', 'batch_size=5000', 'at most 2000'),
    ('batches of 10^20', TRAIN + '--batch-size 100000000000000000000', 'batch_size=1', 'at most'), ('seed -1', TRAIN + '--seed -1', 'seed=-1', 'at least 0'), ('a seed beyond 32 bits', TRAIN + '--seed 4294967296', 'seed=4294967296', 'at most'),
    ('a device that is not here', 'train small.yaml --device cuda:9', "'cuda:9'", 'Present: '), ('a device of no kind', 'train small.yaml --device gpu', "'gpu'", 'Present: '), ('a packaged configuration that is nearly there', 'train mnits', "'mnits'", "Did you mean 'mnist'?"),
    ('a file that is not there', 'train absent.yaml', "'absent.yaml'", 'no file of that name'), ('a folder for a configuration', 'train folder', "'folder'", 'no file of that name'), ('text for a configuration', 'train text', "'plain text'", 'a mapping'),
    ('data that are not there', TRAIN + '--data absent', "'absent'", 'no such file'), ('text for data', TRAIN + '--data text', "'text'", '.npz'), ('an empty folder for data', TRAIN + '--data folder', "'folder'", 'class folders'), ('data of another size', TRAIN + '--batch-size 4 --data mine.npz', '4 numbers', 'm=784'),
    ('results in a file', TRAIN + '--out text', 'text', 'file'), ('results below a file', TRAIN + '--out text/x', 'text/x', 'cannot be written'), ('results in no folder', ['train', 'small.yaml', '--device', 'cpu', '--out', ''], "''", 'folder'),
    ('results on a run', TRAIN + '--out old', 'old', '--overwrite'), ('an unknown way to multiply', TRAIN + '--contraction fast', "'fast'", "'auto'"), ('no image', 'predict mnist_dual_lphm', 'IMAGE'), ('a model that is not there', 'predict absent.safetensors x.png', 'absent.safetensors', 'no such file'),
    ('text for a model', 'predict text x.png', 'text', 'safetensors'), ('an image that is not there', 'predict mnist_dual_lphm absent.png', 'absent.png', 'no such file'), ('text for an image', 'predict mnist_dual_lphm text', 'text', 'PNG or JPEG'), ('a folder for an image', 'predict mnist_dual_lphm folder', 'folder', 'no file but a folder'),
    ('a model without an image', 'predict absent.safetensors', 'absent.safetensors', 'no image is given'), ('a table without a model', 'predict New.CSV', 'New.CSV', 'predict MODEL'), ('a packaged model nearly named, without an image', 'predict mnist_dual_lph', 'no such image', "Did you mean 'mnist_dual_lphm'?"), ('one image that is not there', 'predict absent.PNG', 'absent.PNG', 'no such file'), ('text for the one image', 'predict text', 'text', 'PNG or JPEG'), ('no file at all', 'predict --force', 'IMAGE'),
    ('nothing to hold out from', TRAIN + '--hold-out 2000', 'hold_out=2000', 'at most 1,999'), ('-1 held out', TRAIN + '--hold-out -1', 'hold_out=-1', 'at least 0'), ('half a sample held out', TRAIN + '--hold-out 0.5', "'0.5'", '--hold-out'), ('samples of a table held out', 'train mine.csv --target a --hold-out 3', '--hold-out', 'does not go with a table'),
    ('a packaged model that is nearly there', 'predict mnist_dual_lph x.png', 'mnist_dual_lph', "Did you mean 'mnist_dual_lphm'?"), ('batches of 0 described', 'describe mnist --batch-size 0', 'batch_size=0', 'at least 1'), ('a benchmark over a file', 'bench --out text', 'text', 'another file'),
    ('a benchmark nowhere', 'bench --out nowhere/x.csv', 'nowhere', 'no folder'), ('a configuration copied over a file', 'configs mnist text', 'text', 'another file'), ('a configuration copied nowhere', 'configs mnist nowhere/x.yaml', 'nowhere', 'no folder'),
    ('a chapter of no kind', 'new expansio x', "'expansio'", "Did you mean 'expansion'?"), ('a chapter with spaces', ['new', 'expansion', 'Soft Sign'], "'Soft Sign'", 'small letters'), ('a chapter for what is there', 'new expansion taylor', "'taylor'", 'already'), ('a plugin that is not there', '--plugin no_such configs', "'no_such'", 'a module'),
    *[(f'an empty text: {" ".join(line)}', line, "found ''", where) for line, where in ((['train', 'small.yaml', '--data', ''], '--data'), (['train', '--resume', ''], '--resume'), (['bench', ''], 'NAME_OR_YAML'), (['bench', '--out', ''], '--out'), (['configs', ''], 'name'), (['configs', 'mnist', ''], 'argument to'), (['inspect', ''], 'FILE'), (['new', 'expansion', 'x', '--folder', ''], '--folder'), (['--plugin', '', 'configs'], '--plugin'))],
    *[(f'a name of 300 letters: {line}', line.replace('LONG', 'x'*300), 'too long', 'xxx') for line in ('configs mnist LONG', 'bench --out LONG', 'bench --out LONG/x.csv', TRAIN + '--out LONG', TRAIN + '--out folder/LONG/x', TRAIN + '--resume LONG', 'export mnist_dual_lphm LONG.onnx', 'new expansion LONG', 'new expansion abc --folder LONG')],
    ('checkpoints every two squared', TRAIN + '--checkpoint \u00b2', '--checkpoint', "'epoch'"), ('checkpoints every 5000 digits', TRAIN + '--checkpoint ' + '9'*5000, '--checkpoint', "'epoch'"), ('no checkpoints kept', TRAIN + '--keep 0', '--keep=0', 'at least 1'),
    ('lines and colours in an argument', ['train', 'small.yaml', '--colour\nred', '\x1b[31m'], '--colour red', r'\x1b[31m'), ('a run to go on with and to overwrite', TRAIN + '--resume old --overwrite', '--resume', 'leave out'),
]


@parametrize(CLI)
def test_command_line(files, capsys, case):
    name, line, *words = case
    Path('small.yaml').write_text('data: {name: mnist_sample, batch_size: 50}\nmodel: {dims: [784, 10], expansion: identity}\nlearner: {epochs: 1}\n')
    Path('old').mkdir(); Path('old/config.yaml').write_text('seed: 1\n')
    np.savez('mine.npz', x_train=RAW, y_train=LABELS, x_test=RAW, y_test=LABELS)
    before = disk()
    try: status = main(line.split() if isinstance(line, str) else line)
    except SystemExit as e: status = e.code
    said = capsys.readouterr().err
    assert status == 2 and said.startswith('tinyrpn: ') and said.count('\n') == 1 and len(said) < 650, said
    assert all(w in said for w in words) and 'unexpected' not in said and 'Traceback' not in said, said
    assert disk() == before


def idx(a, head=None): return (head or bytes([0, 0, 8, a.ndim]) + struct.pack(f'>{a.ndim}I', *a.shape)) + a.astype(np.uint8).tobytes()
PIXELS, DIGITS = np.zeros((20, 3, 4)), np.arange(20) % 10
SETS = [idx(PIXELS), idx(DIGITS), idx(PIXELS[:10]), idx(DIGITS[:10])]


def mnist(gz=False, **changed):
    "The four files in the folder `set`, some of them changed, loaded"
    Path('set').mkdir()
    for i, f in enumerate(data.FILES):
        body = changed.get('abcd'[i], SETS[i])
        Path('set', f + '.gz'*gz).write_bytes(gzip.compress(body) if gz and f'raw_{"abcd"[i]}' not in changed else changed.get(f'raw_{"abcd"[i]}', body))
    return lambda: load_data('mnist', 'set', say=lambda *_: None)


def npz(**changed):
    "mine.npz with some arrays changed"
    np.savez('mine.npz', **{k: v for k, v in {**dict(x_train=RAW, y_train=LABELS, x_test=RAW, y_test=LABELS), **changed}.items() if v is not None})
    return lambda: read_npz('mine.npz')


def npy(a, **header):
    f = io.BytesIO(); np.lib.format.write_array_header_1_0(f, {**np.lib.format.header_data_from_array_1_0(a), **header})
    return f.getvalue() + a.tobytes()


def zipped(*more, method=zipfile.ZIP_DEFLATED, edit=lambda b: b, **changed):
    "A zip made by hand, its bytes changed by `edit`"
    members = {'x_train': npy(RAW), 'y_train': npy(LABELS), 'x_test': npy(RAW), 'y_test': npy(LABELS), **changed}
    with zipfile.ZipFile('mine.npz', 'w', method) as z, pytest.MonkeyPatch.context() as p:
        p.setattr('warnings.warn', lambda *a, **k: None)
        for k, v in [*((f'{k}.npy', v) for k, v in members.items()), *more]: z.writestr(k, v)
    Path('mine.npz').write_bytes(edit(Path('mine.npz').read_bytes()))
    return lambda: read_npz('mine.npz')


def entry(at, value): # in the table of contents, of the first member
    return lambda b: b[:(i := b.index(b'PK\1\2')) + at] + value + b[i + at + len(value):]


def end(at, value): # at the end of the zip
    return lambda b: b[:(i := b.rindex(b'PK\5\6')) + at] + value + b[i + at + len(value):]


def written(name, body, call):
    Path(name).parent.mkdir(parents=True, exist_ok=True); Path(name).write_bytes(body)
    return call


def made(**changed): return lambda: Data(**{**dict(x_train=RAW, y_train=LABELS, x_test=RAW, y_test=LABELS, signature=TWO), **changed})
def broken(value): x = RAW.astype(np.float32); x[3, 1, 0] = value; return x
def scarce(call):
    def call_it():
        with mock.patch('tinyrpn.core.memory_free', return_value=2**27): call()
    return call_it
def denied(call):
    def call_it():
        with mock.patch('os.open', side_effect=PermissionError(13, 'Permission denied')): call()
    return call_it


floats = RAW.astype(np.float32)
ARRAYS = [
    *[(f'{k} samples', lambda k=k: made(x_train=RAW.astype(k)), DataError, 'x_train', k, word) for k, word in (('complex128', 'real part'), ('int64', 'np.uint8'), ('uint16', 'np.uint8'), ('bool', 'uint8 pixels'), ('object', 'plain numbers'))],
    ('samples of text', lambda: made(x_train=RAW.astype(str)), DataError, 'x_train', '<U', 'uint8 pixels'),
    ('samples of unequal length', lambda: made(x_train=[[1.], [1., 2.]]), DataError, 'x_train', 'no array'),
    *[(f'{v} among samples', lambda v=v: made(x_train=broken(v), x_test=floats), DataError, 'x_train', '1 of 96', f'{v} at [3, 1, 0]') for v in (nan, inf, -inf)],
    ('a number beyond float32', lambda: made(x_train=np.full((24, 4), 1e39), x_test=floats.reshape(24, 4)), DataError, '1e+39', '3.4e+38'),
    ('NaN in the test set', lambda: made(x_train=floats, x_test=broken(nan)), DataError, 'x_test', 'nan at [3, 1, 0]'),
    ('samples without shape', lambda: made(x_train=RAW[:, 0, 0]), DataError, '(24,)', '(N, ...)'),
    ('samples of no numbers', lambda: made(x_train=RAW[:, :0]), DataError, '(24, 0, 2)', 'at least one number'),
    ('an empty training set', lambda: made(x_train=RAW[:0], y_train=[]), DataError, 'x_train', 'empty', 'at least one sample'),
    ('an empty test set', lambda: made(x_test=RAW[:0], y_test=[]), DataError, 'x_test', 'empty', 'at least one sample'),
    ('a test set of another shape', lambda: made(x_test=RAW[:, :1]), ShapeError, '(2, 2)', '(1, 2)', 'must be alike'),
    ('a test set of another kind', lambda: made(x_test=floats), ShapeError, 'uint8', 'float32', 'must be alike'),
    ('labels that are not whole', lambda: made(y_train=LABELS/2), DataError, 'y_train', 'float64', 'y.astype(int)'),
    ('labels in a column', lambda: made(y_train=LABELS[:, None]), DataError, 'y_train', '(24, 1)', '(N,)'),
    ('a label of -1', lambda: made(y_train=LABELS - 1), DataError, 'label -1 at [0]', '0 to 1'),
    ('a label beyond the classes', lambda: made(y_test=LABELS + 1), DataError, 'y_test', 'label 2 at [1]', '0 to 1'),
    ('a label of 10^18 and no classes', lambda: made(y_train=LABELS*10**18, signature=Signature()), DataError, 'label 1000000000000000000', '0 to'),
    ('fewer labels than samples', lambda: made(y_train=LABELS[:23]), DataError, 'y_train', '23 labels for 24', 'must be equal'),
    ('one class only', lambda: made(y_train=LABELS*0), DataError, 'y_train', 'are 0', 'two classes'),
    ('a batch beyond the data', lambda: made(batch_size=25), ParameterError, 'batch_size=25', 'at most 24'),
    ('a batch of 0', lambda: made(batch_size=0), ParameterError, 'batch_size=0', 'at least 1'),
    ('a test batch of -1', lambda: made(test_batch_size=-1), ParameterError, 'test_batch_size=-1', 'at least 1'),
    ('a signature of another shape', lambda: made(signature=Signature('x', [1, 3, 3])), ShapeError, '4 numbers', '1x3x3', '9'),
    ('a signature of deviation 0', lambda: made(signature=Signature('x', std=0.)), ShapeError, 'std=0.0', 'std > 0'),
    ('no signature', lambda: made(signature=None), ParameterError, 'signature=None', 'such as Signature('),
]

FILES = [
    ('idx: images cut short', lambda: mnist(a=SETS[0][:-1]), DataError, 'train-images', 'promises 240', '239 follow'),
    ('idx: bytes at the end', lambda: mnist(b=SETS[1] + b'x'), DataError, 'train-labels', 'promises 20', '21 follow'),
    ('idx: an empty file', lambda: mnist(c=b''), DataError, 't10k-images', 'begins with nothing'),
    ('idx: a header and no more', lambda: mnist(a=SETS[0][:9]), DataError, 'train-images', 'no idx file'),
    ('idx: three bytes', lambda: mnist(a=SETS[0][:3]), DataError, 'train-images', '000008'),
    ('idx: text', lambda: mnist(a=b'<html>not found</html>'), DataError, 'train-images', '3c68746d'),
    ('idx: labels for images', lambda: mnist(a=SETS[1]), DataError, 'train-images', 'holds labels where images are needed'),
    ('idx: images for labels', lambda: mnist(b=SETS[0]), DataError, 'train-labels', 'holds images where labels are needed'),
    ('idx: training and test labels exchanged', lambda: mnist(b=SETS[3], d=SETS[1]), DataError, 'train-labels', '10 labels for 20 images', 'must be equal'),
    ('idx: the wrong byte order', lambda: mnist(a=SETS[0][:4][::-1] + SETS[0][4:]), DataError, 'wrong byte order', '00000803'),
    ('idx: sizes in the wrong byte order', lambda: mnist(a=idx(PIXELS, bytes([0, 0, 8, 3]) + struct.pack('<3I', 20, 3, 4))), DataError, 'train-images', 'sizes are in the wrong byte order'),
    ('idx: no images', lambda: mnist(a=idx(PIXELS[:0]), b=idx(DIGITS[:0])), DataError, 'train-images', 'is empty', '0 x 3 x 4'),
    ('idx: images of no pixels', lambda: mnist(c=idx(PIXELS[:10, :0])), DataError, 't10k-images', 'is empty', '10 x 0 x 4'),
    ('idx: a label of 10', lambda: mnist(b=idx(DIGITS + 1)), DataError, 'label 10', '0 to 9'),
    ('idx: one class only', lambda: mnist(b=idx(DIGITS*0)), DataError, 'y_train', 'two classes'),
    ('idx: test images of another size', lambda: mnist(c=idx(PIXELS[:10, :2])), DataError, 't10k-images', '(2, 4)', '(3, 4)'),
    ('idx: a file is missing', lambda: (mnist(), Path('set', data.FILES[3]).unlink(), lambda: load_data('mnist', 'set'))[2], MissingDataError, 'set', 't10k-labels'),
    ('idx: a folder in place of a file', lambda: (mnist(), Path('set', data.FILES[3]).unlink(), Path('set', data.FILES[3]).mkdir(), lambda: load_data('mnist', 'set'))[3], MissingDataError, 'set', 't10k-labels'),
    ('idx: a folder', lambda: (Path('folder').mkdir(), lambda: read_idx('folder', 3))[1], DataError, 'folder', 'no file but a folder'),
    ('idx: None for a path', lambda: lambda: read_idx(None, 3), DataError, 'None', 'cannot be read'),
    ('idx: a data set that there is not', lambda: lambda: find_idx('set', 'nope'), UnknownNameError, "'nope'", 'Known: fashion_mnist'),
    ('class folders: not there', lambda: lambda: read_folder('absent'), MissingDataError, 'absent', 'no such folder'),
    ('class folders: None for a path', lambda: lambda: read_folder(None), ParameterError, 'root=None', 'a folder is needed'),
    ('idx: no permission', lambda: denied(mnist()), DataError, 'train-images', 'Permission denied'),
    ('idx: a batch beyond the data', lambda: (mnist(), lambda: load_data('mnist', 'set', 21, say=print))[1], ParameterError, 'batch_size=21', 'at most 20'),
    ('gz: cut short', lambda: mnist(gz=True, raw_a=gzip.compress(SETS[0])[:-9]), DataError, 'train-images', 'cannot be read'),
    ('gz: a byte changed', lambda: mnist(gz=True, raw_a=(lambda b: b[:-6] + b'?' + b[-5:])(gzip.compress(SETS[0]))), DataError, 'train-images', 'cannot be read'),
    ('gz: bytes at the end', lambda: mnist(gz=True, raw_b=gzip.compress(SETS[1]) + b'rubbish'), DataError, 'train-labels', 'cannot be read'),
    ('gz: not packed at all', lambda: mnist(gz=True, raw_a=SETS[0]), DataError, 'train-images', 'cannot be read'),
    ('gz: promises little, holds 200 MB', lambda: mnist(gz=True, a=SETS[0] + bytes(200_000_000)), DataError, 'promises 240', 'more follow'),
    ('gz: promises a gigabyte', lambda: mnist(gz=True, a=bytes([0, 0, 8, 3]) + struct.pack('>3I', 10**6, 32, 32) + bytes(10**6)), TooLargeError, '1024000000', 'a hundredfold'),
    ('gz: promises 2^96 bytes', lambda: mnist(gz=True, a=bytes([0, 0, 8, 3]) + b'\xff'*12), TooLargeError, 'train-images', 'a hundredfold'),
    ('npz: cut short', lambda: written('mine.npz', (npz(), Path('mine.npz').read_bytes()[:-30])[1], lambda: read_npz('mine.npz')), DataError, 'mine.npz', 'not an .npz'),
    ('npz: text', lambda: written('mine.npz', b'plain text', lambda: load_data('mnist', 'mine.npz')), DataError, 'mine.npz', 'not an .npz'),
    ('npz: empty', lambda: written('mine.npz', b'', lambda: load_data('mnist', 'mine.npz')), DataError, 'mine.npz', 'not an .npz'),
    ('npz: a folder', lambda: (Path('mine.npz').mkdir(), lambda: read_npz('mine.npz'))[1], DataError, 'mine.npz', 'no file but a folder'),
    ('npz: None for a path', lambda: lambda: read_npz(None), DataError, 'None', 'cannot be read'),
    ('npz: labels of 300 letters', lambda: npz(y_train=np.array(['a', 'b']*12, '<U300')), DataError, 'y_train', '300 letters', 'at most 200'),
    ('npz: something after its end', lambda: zipped(edit=lambda b: b + b'more'), DataError, 'mine.npz', 'something follows'),
    ('npz: more than the memory has', lambda: scarce(zipped(x_train=npy(np.frombuffer(os.urandom(2**21), np.uint8).reshape(-1, 2, 2).repeat(28, 0)))), TooLargeError, 'mine.npz', 'in float32', 'are free'),
    ('npz: not there', lambda: lambda: read_npz('mine.npz'), MissingDataError, 'mine.npz', 'no such file'),
    ('npz: an array is missing', lambda: npz(y_test=None), DataError, 'y_test is missing', 'x_train, y_train, x_test and y_test'),
    ('npz: objects', lambda: npz(x_train=np.array([[{}]], dtype=object)), DataError, 'x_train', 'Python objects'),
    ('npz: a pickle in place of an array', lambda: zipped(x_train=b'\x80\x04cos\nsystem\n.'), DataError, 'mine.npz', 'not an .npz'),
    ('npz: a structured array', lambda: npz(x_train=np.zeros(6, [('a', 'f4')])), DataError, 'x_train', "('a', '<f4')", 'floating-point'),
    ('npz: complex', lambda: npz(x_train=RAW.astype(complex)), DataError, 'x_train', 'complex128', 'floating-point'),
    ('npz: a single number', lambda: npz(x_test=np.uint8(3)), DataError, 'x_test', '()', '(N, ...)'),
    ('npz: labels that are not whole', lambda: npz(y_train=LABELS/2), DataError, 'y_train', 'float64', 'whole numbers'),
    ('npz: fewer labels than samples', lambda: npz(y_train=LABELS[:5]), DataError, 'y_train', '5 labels for 24', 'must be equal'),
    ('npz: NaN', lambda: npz(x_train=broken(nan), x_test=floats), DataError, 'x_train', 'nan at [3, 1, 0]'),
    ('npz: a number beyond float32', lambda: npz(x_train=np.full((24, 4), 1e39), x_test=np.zeros((24, 4))), DataError, 'x_train', '1e+39', '3.4e+38'),
    ('npz: an empty test set', lambda: npz(x_test=RAW[:0], y_test=LABELS[:0]), DataError, 'x_test', 'empty', 'at least one sample'),
    ('npz: one class only', lambda: npz(y_train=LABELS*0, y_test=LABELS*0), DataError, 'one class only, 0', 'two classes'),
    ('npz: a class only in the test', lambda: npz(y_test=LABELS + 1), DataError, '[2]', 'the training set lacks'),
    ('npz: a class that clears the screen', lambda: npz(y_train=np.where(LABELS, 'a', '\x1b[2J'), y_test=np.where(LABELS, 'a', '\x1b[2J')), DataError, 'name of a class', 'printable'),
    ('npz: bytes and numbers', lambda: npz(x_test=floats), DataError, 'uint8', 'float32', 'must be alike'),
    ('npz: a member that is a path', lambda: zipped(('../../evil.npy', b'')), DataError, '../../evil.npy', 'plain names'),
    ('npz: a member that stands twice', lambda: zipped(('x_train.npy', npy(RAW))), DataError, 'x_train.npy', '2 times', 'once'),
    ('npz: encrypted', lambda: zipped(edit=entry(8, b'\1')), DataError, 'x_train.npy', 'encrypted'),
    ('npz: packed in another way', lambda: zipped(method=zipfile.ZIP_BZIP2), DataError, 'method 12', 'np.savez'),
    ('npz: a header that promises 24 GB', lambda: zipped(x_train=npy(RAW, shape=(6*10**9, 2, 2))), DataError, 'x_train', '24000000000', '96 follow'),
    ('npz: a header with negative sizes', lambda: zipped(x_train=npy(RAW, shape=(24, -2, -2))), DataError, 'x_train', '-2', '96 follow'),
    ('npz: a header that is no header', lambda: zipped(x_train=b'\x93NUMPY\1\0\x10\0' + b'('*16 + RAW.tobytes()), DataError, 'mine.npz', 'not an .npz'),
    ('npz: more than the header says', lambda: zipped(x_train=npy(RAW) + b'more'), DataError, 'x_train', '100 follow'),
    ('npz: unfolds three hundredfold', lambda: zipped(x_train=npy(np.zeros((3*10**5, 1000), np.uint8))), TooLargeError, 'mine.npz', '300', 'a hundredfold'),
    ('npz: says it unfolds to 2 GB', lambda: zipped(edit=entry(24, struct.pack('<I', 2**31))), TooLargeError, '2147', 'a hundredfold'),
    ('npz: says it unfolds to less', lambda: zipped(edit=entry(24, struct.pack('<I', 140))), DataError, 'mine.npz', 'not an .npz'),
    ('npz: a check sum that is wrong', lambda: zipped(edit=entry(16, b'????')), DataError, 'mine.npz', 'not an .npz'),
    ('npz: a table of contents of a gigabyte', lambda: zipped(edit=end(12, struct.pack('<I', 2**30))), DataError, '1,073,741,824', 'table of contents'),
    ('data: not there', lambda: lambda: load_data('mnist', 'absent'), MissingDataError, "'absent'", 'no such file'),
    ('data: a number for a path', lambda: lambda: load_data('mnist', 3), ParameterError, 'data=3', 'the path of'),
    ('data: no path', lambda: lambda: load_data('mnist', ''), ParameterError, "data=''", 'the path of'),
    ('data: a path with a NUL', lambda: lambda: load_data('mnist', 'a\0b'), TinyRPNError, 'data=', 'a\\x00b'),
    ('data: a name that is not there', lambda: lambda: load_data('mnits'), UnknownNameError, "'mnits'", "Did you mean 'mnist'?"),
    ('data: a pipe', lambda: (os.mkfifo('pipe.npz'), lambda: load_data('mnist', 'pipe.npz'))[1], DataError, 'pipe.npz', 'an .npz file is needed'),
]


def png(**kw): f = io.BytesIO(); kw.pop('im', Image.new('L', (6, 5), 7)).save(f, 'PNG', **kw); return f.getvalue()
def chunk(kind, body): return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))
def claims(w, h): return png()[:8] + chunk(b'IHDR', struct.pack('>2I5B', w, h, 8, 0, 0, 0, 0)) + chunk(b'IDAT', zlib.compress(bytes(100))) + chunk(b'IEND', b'')
def image(body): return written('a.png', body, lambda: image_batch(['a.png'], TWO))
def moving(kind): f = io.BytesIO(); Image.new('L', (6, 5), 7).save(f, kind, save_all=True, append_images=[Image.new('L', (6, 5), 200)]); return f.getvalue()
def closed(): im = Image.open(io.BytesIO(png())); im.close(); return im
def folder(**classes): # class -> list of bytes
    for c, bodies in classes.items():
        Path('pets', c).mkdir(parents=True)
        for i, b in enumerate(bodies): Path('pets', c, f'{i}.png').write_bytes(b)
    return lambda: load_data('mnist', 'pets', say=lambda *_: None)


FIVE = [png()]*5
IMAGES = [
    ('an image cut short', lambda: image(png(im=Image.effect_noise((50, 50), 80))[:1500]), DataError, 'a.png', 'PNG or JPEG'),
    ('an image of zero bytes', lambda: image(b''), DataError, 'a.png', 'PNG or JPEG'),
    ('text for an image', lambda: image(b'plain text'), DataError, 'a.png', 'PNG or JPEG'),
    ('a GIF', lambda: image(b'GIF89a' + bytes(100)), DataError, 'a.png', 'PNG or JPEG'),
    ('an image of 10^10 pixels', lambda: image(claims(10**5, 10**5)), TooLargeError, 'a.png', '64,000,000'),
    ('an image of 10^8 pixels', lambda: image(claims(10**4, 10**4)), TooLargeError, '10,000 x 10,000', '64,000,000'),
    ('a PIL image of 10^8 pixels', lambda: lambda: image_batch([Image.new('1', (10**4, 10**4))], TWO), TooLargeError, '10,000 x 10,000', '64,000,000'),
    ('an image with a wrong check sum', lambda: image(png()[:20] + b'????' + png()[24:]), DataError, 'a.png', 'PNG or JPEG'),
    ('a moving picture', lambda: image(png(save_all=True, append_images=[Image.new('L', (6, 5), 9)])), DataError, 'a.png', 'animated', '2 pictures'),
    ('an image that is not there', lambda: lambda: image_batch(['a.png'], TWO), MissingDataError, 'a.png', 'no such file'),
    ('a PIL image cut short', lambda: lambda: image_batch([Image.open(io.BytesIO(png(im=Image.effect_noise((50, 50), 80))[:1500]))], TWO), DataError, 'images[0]', 'truncated'),
    ('a PIL image that is closed', lambda: lambda: image_batch([closed()], TWO), DataError, 'images[0]', 'closed'),
    ('a PIL image of no pixels', lambda: lambda: image_batch([Image.new('L', (0, 5))], TWO), DataError, 'images[0]', '0 x 5', 'at least one'),
    ('a PIL image of numbers', lambda: lambda: image_batch([Image.new('F', (2, 2), 0.5)], TWO), DataError, 'images[0]', 'mode F', 'what is white'),
    ('a PIL image of whole numbers', lambda: lambda: image_batch([Image.new('I', (2, 2), 255)], TWO), DataError, 'images[0]', 'mode I', 'what is white'),
    *[(f'a moving {kind}', lambda kind=kind: lambda: image_batch([Image.open(io.BytesIO(moving(kind)))], TWO), DataError, 'images[0]', 'animated', 'a single picture') for kind in ('GIF', 'TIFF', 'PNG')],
    ('no signature for images', lambda: lambda: image_batch([Image.new('L', (2, 2))], None), ParameterError, 'signature=None', 'a Signature is needed'),
    ('a model of four channels', lambda: lambda: image_batch([Image.new('L', (2, 2))], Signature('m', [4, 2, 2])), ParameterError, '[4, 2, 2]', '1 channel or 3'),
    ('a model of 10^8 pixels', lambda: lambda: image_batch([Image.new('L', (2, 2))], Signature('m', [1, 10**4, 10**4])), ParameterError, '10000', 'at most 8,000,000 pixels'),
    ('a folder for an image', lambda: (Path('a.png').mkdir(), lambda: image_batch(['a.png'], TWO))[1], DataError, 'a.png', 'no file but a folder'),
    ('an image that leads to itself', lambda: (os.symlink('a.png', 'a.png'), lambda: image_batch(['a.png'], TWO))[1], DataError, 'a.png', 'symbolic links'),
    ('an image without permission', lambda: (written('a.png', png(), None), denied(lambda: image_batch(['a.png'], TWO)))[1], DataError, 'a.png', 'Permission denied'),
    ('no images', lambda: lambda: image_batch([], TWO), ParameterError, 'images=[]', 'at least one'),
    ('a path in place of a list', lambda: lambda: image_batch('a.png', TWO), ParameterError, "images='a.png'", 'a list'),
    ('an array for an image', lambda: lambda: image_batch([RAW[0]], TWO), ParameterError, 'a ndarray', 'PIL images'),
    ('images for a model of tables', lambda: lambda: image_batch([Image.new('L', (2, 2))], Signature('table', [4])), ParameterError, '[4]', 'not images'),
    ('class folders: one class', lambda: folder(cat=FIVE), DataError, 'one class only, cat', 'two classes'),
    ('class folders: a class without images', lambda: folder(cat=FIVE, dog=FIVE, cow=[]), DataError, 'cow', 'no PNG or JPEG images'),
    ('class folders: a class of four', lambda: folder(cat=FIVE, dog=FIVE[:4]), DataError, "'dog'", '4 images', 'at least 5'),
    ('class folders: another size', lambda: folder(cat=FIVE, dog=[*FIVE, png(im=Image.new('L', (5, 6)))]), DataError, '5.png', '5 x 6', '6 x 5'),
    ('class folders: one that is no image', lambda: folder(cat=FIVE, dog=[*FIVE, b'plain text']), DataError, '5.png', 'PNG or JPEG'),
    ('class folders: one of 10^10 pixels', lambda: folder(cat=FIVE, dog=[*FIVE, claims(10**5, 10**5)]), TooLargeError, '5.png', '64,000,000'),
    ('class folders: one that leads to itself', lambda: (folder(cat=FIVE, dog=FIVE), os.symlink('x.png', 'pets/dog/x.png'), lambda: load_data('mnist', 'pets'))[2], DataError, 'x.png', 'symbolic links'),
    ('class folders: a folder that leads to itself', lambda: (folder(cat=FIVE), os.symlink('dog', 'pets/dog'), lambda: load_data('mnist', 'pets'))[2], DataError, 'one class only, cat', 'two classes'),
    ('class folders: no test images', lambda: (folder(train=[]), Path('pets/test').mkdir(), written('pets/train/cat/0.png', png(), None), written('pets/train/dog/0.png', png(), None), lambda: load_data('mnist', 'pets'))[4], DataError, 'x_test', 'empty'),
    ('class folders: a batch beyond the data', lambda: (folder(cat=FIVE, dog=FIVE), lambda: load_data('mnist', 'pets', 9))[1], ParameterError, 'batch_size=9', 'at most 8'),
]


@parametrize(ARRAYS + FILES + IMAGES)
def test_data(case):
    name, make, error, *words = case
    refused(name, make(), error, words)


def test_what_is_unusual_and_right():
    "Not everything that is odd is wrong"
    for x in (floats.astype(np.float16), floats.astype('>f8'), np.asfortranarray(floats), torch.tensor(floats), floats[::-1][::-1]):
        assert torch.equal(Data(x, LABELS, x, LABELS, Signature('odd', [1, 2, 2])).train.x, torch.tensor(floats).flatten(1))
    npz(x_train=np.asfortranarray(floats.astype('>f4')), x_test=floats.astype(np.float16), y_train=LABELS.astype('>i2'))
    assert np.array_equal(read_npz('mine.npz')[0][0], floats) and len(load_data('mnist', 'mine.npz', say=lambda *_: None).train) == 1
    assert len(Data(RAW, LABELS, RAW, LABELS, TWO).train) == 1 and len(Batches(X, Y, 10**6)) == 1
    for im in (Image.new('L', (1, 1)), Image.new('CMYK', (3, 1)), Image.new('RGB', (9, 9)).quantize(2), Image.new('I;16', (2, 2), 65535), Image.new('LA', (2, 2)), Image.new('1', (4, 4))):
        im.save('a.jpg' if im.mode == 'CMYK' else 'a.png')
        assert image_batch(['a.jpg' if im.mode == 'CMYK' else 'a.png'], TWO).isfinite().all()
    assert read_folder(Path('.')) is None


BODY = [gzip.compress(b) for b in SETS]


class Server(http.server.BaseHTTPRequestHandler):
    "Sends a file whole, or in some way not"
    how, sent = 'whole', 0
    def log_message(self, *_): pass
    def do_GET(self):
        how, body = Server.how, BODY[data.FILES.index(Path(self.path).name.removesuffix('.gz'))]
        self.send_response(404 if how == 'absent' else 200)
        if how != 'endless': self.send_header('Content-Length', len(body))
        self.end_headers()
        try: getattr(self, how)(body)
        except OSError: pass
    def write(self, b): self.wfile.write(b); self.wfile.flush(); Server.sent += len(b)
    def whole(self, body): self.write(body)
    def half(self, body): self.write(body[:len(body)//2])
    def other(self, body): self.write(body[:-1] + b'?')
    def absent(self, body): self.write(body)
    def stalls(self, body): self.write(body[:9]); time.sleep(1)
    def endless(self, body):
        while True: self.write(bytes(2**16))
    def drips(self, body):
        for b in body: self.write(bytes([b])); time.sleep(0.05)


@pytest.fixture
def server(monkeypatch):
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Server)
    server.daemon_threads, server.block_on_close = True, False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sums = [(f'{f}.gz', hashlib.md5(b).hexdigest()) for f, b in zip(data.FILES, BODY)]
    monkeypatch.setattr('urllib.request.urlopen', URLOPEN)
    monkeypatch.setattr(data, 'published', lambda name: SimpleNamespace(mirrors=[f'http://127.0.0.1:{server.server_port}/'], resources=sums if name == 'kmnist' else [(f, '0'*32) for f, _ in sums]))
    monkeypatch.setattr(data, 'fetch', partial(data.fetch, timeout=0.4))
    monkeypatch.setattr(data, 'MOST_BYTES', 2**20)
    monkeypatch.setattr(data._body, '__defaults__', (0.8,))
    Server.sent = 0
    yield server
    server.shutdown(); server.server_close()


@pytest.mark.parametrize('how', ['half', 'other', 'absent', 'stalls', 'endless', 'drips'])
def test_a_download_that_breaks_leaves_nothing(server, how):
    Server.how = how
    refused(f'a download: {how}', lambda: load_data('kmnist', say=lambda *_: None), MissingDataError, ['kmnist', 'could not be downloaded', '--data'])
    assert 'the packaged sample' in load_data('mnist', say=lambda *_: None).note and not disk()
    assert Server.sent < 50e6


def test_a_download_that_breaks_is_taken_up_again(server):
    Server.how = 'whole'
    with pytest.MonkeyPatch.context() as m:
        m.setattr(Server, 'whole', lambda self, body: self.write(body if body is BODY[0] else body[:9]))
        with pytest.raises(MissingDataError): load_data('kmnist', say=lambda *_: None)
    assert [Path(p).name for p, what in disk().items() if what != 'folder'] == [f'{data.FILES[0]}.gz']
    assert len(load_data('kmnist', say=lambda *_: None).train.x) == 20 and len(disk()) == 4 + 3


def test_there_are_many():
    everything = sum(map(len, (COMPONENTS, MODELS, TRAINING, YAML, CLI, ARRAYS, FILES, IMAGES))) + 6
    assert everything >= 390
