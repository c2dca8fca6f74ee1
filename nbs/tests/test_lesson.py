"The page that a model is written to, opened from its file in a browser without a network"
import html
import math
import os
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from conftest import within

from tinyrpn.config import load_config
from tinyrpn.core import ParameterError, set_seed
from tinyrpn.data import Data, load_data
from tinyrpn.expansion import IdentityExpansion, TaylorExpansion
from tinyrpn.fusion import ParameterizedConcatenationFusion
from tinyrpn.learner import History
import tinyrpn.lesson  # noqa: F401  gives models their `to_html`
from tinyrpn.model import RPN, RPNHead, RPNLayer, Signature
from tinyrpn.quadratic import eigen_digits, explain, first_gradients
from tinyrpn.reconciliation import (ConstantReconciliation, DualLphmReconciliation, EigenReconciliation, HmReconciliation, ImageHmReconciliation, HypernetReconciliation,
                                    IdentityReconciliation, LorrReconciliation, LphmReconciliation, MaskingReconciliation)
from tinyrpn.remainder import ConstantRemainder, IdentityRemainder, LinearRemainder

BROWSER = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable'))), None)
pytestmark = pytest.mark.skipif(not BROWSER, reason='no Chromium or Chrome here')
ROOT = Path(__file__).parent.parent.parent
HISTORY = ROOT/'nbs'/'images'/'mnist_dual_lphm_history.csv'


@pytest.fixture(scope='module')
def browser():
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        started = p.chromium.launch(executable_path=BROWSER, args=['--no-sandbox'])
        yield started
        started.close()


@pytest.fixture
def opened(browser):
    "A function that opens a page from its file; at the end nothing may have been asked for but the file, and nothing complained about"
    contexts, wrong, asked = [], [], []
    def go(path, **settings):
        contexts.append(context := browser.new_context(offline=True, **settings))
        tab = context.new_page()
        context.on('request', lambda r: asked.append(r.url))
        tab.on('console', lambda m: m.type == 'error' and wrong.append(f'console: {m.text}'))
        tab.on('pageerror', lambda e: wrong.append(f'script: {e}'))
        tab.on('dialog', lambda d: (wrong.append(f'dialog: {d.message}'), d.dismiss()))
        tab.goto(Path(path).as_uri())
        return tab
    yield go
    for context in contexts: context.close()
    assert wrong == []
    assert [url for url in asked if not url.startswith(('file:', 'data:'))] == [] and sum(url.startswith('file:') for url in asked) == len(contexts)


@pytest.fixture(scope='module')
def packaged(tmp_path_factory):
    "(model, its page)"
    model = RPN.load('mnist_dual_lphm').eval()
    return model, model.to_html(tmp_path_factory.mktemp('lesson')/'digits.html', history=HISTORY)


def greys(shape=(28, 28)):
    "The 500 test digits as 8-bit greys where they fit, a blank page, a full one, and random ones"
    m = shape[0]*shape[1]
    digits = load_data('mnist_sample', say=lambda line: None).test.x*0.3081 + 0.1307
    rng = np.random.default_rng(0)
    sparse = rng.integers(0, 256, (8, m))*(rng.random((8, m)) < 0.2)
    more = [np.zeros((1, m)), np.full((1, m), 255), rng.integers(0, 256, (8, m)), sparse]
    return torch.from_numpy(np.concatenate([(digits*255).round().numpy()] + more if m == 784 else more)).round().to(torch.uint8)


def prepared(model, pixels): return (pixels.float()/255 - model.signature.mean)/model.signature.std


def asked(tab, call, pixels): return np.array(tab.evaluate(f'list => list.map(g => {call})', pixels.tolist()))


def check_logits(model, tab, pixels):
    "The page's logits and probabilities are PyTorch's; returns the largest relative and absolute difference"
    x = prepared(model, pixels)
    with torch.no_grad(): logits, exact = model(x), model.double()(x.double())
    model.float()
    got = asked(tab, 'lesson.logits(g)', pixels)
    size = exact.abs().amax(1, keepdim=True).clamp(min=1e-3).numpy()
    assert np.abs((got - exact.numpy())/size).max() < 1e-5, 'the page computes in float64'
    relative = np.abs((got - logits.numpy())/size).max()
    absolute = np.abs(asked(tab, 'lesson.probabilities(g)', pixels) - logits.softmax(1).numpy()).max()
    assert relative < 1e-4 and absolute < 1e-4
    return relative, absolute


# ---- the numbers

def test_the_packaged_model_computes_what_pytorch_does(packaged, opened, tell):
    model, path = packaged
    pixels = greys()
    assert len(pixels) == 518
    relative, absolute = check_logits(model, opened(path), pixels)
    tell(f'lesson: {len(pixels)} digits in the browser; logits differ by {relative:.1e} of the largest, probabilities by {absolute:.1e}')


def test_the_packaged_model_is_explained(packaged, opened):
    "The first layer's units, weighed by the gradient of a logit, in parts"
    model, (head,) = packaged[0].double(), packaged[0].layers[0].heads
    tab, pixels, blank = opened(packaged[1]), greys(), prepared(model, torch.zeros(784)).double()
    for n, unit in ((2, 2), (40, 9)):
        x = prepared(model, pixels[n]).double()
        g, = first_gradients(model, x[None], unit)
        parts = explain(head, x, g[0], blank)
        assert abs(parts.total - float(g[0] @ model.layers[0](x[None])[0].detach())) < 1e-9
        check_parts(tab, pixels[n], unit, [parts])
    model.float()


def test_a_prediction_is_quick(packaged, opened, tell):
    tab = opened(packaged[1])
    times = tab.evaluate('''() => {
      const g = lesson.page.examples.greys.subarray(0, 784), list = f => Array.from({length: 25}, () => { const t = performance.now(); f(); return performance.now() - t }).slice(5).sort((a, b) => a - b)[10];
      return [list(() => lesson.logits(g)), list(() => lesson.explain(g, 3))] }''')
    tell(f'lesson: a prediction takes {times[0]:.1f} ms, an explanation {times[1]:.1f} ms')
    assert within(times[0], 30) and within(times[1], 150)


@pytest.mark.slow
def test_a_single_layer_of_six_million_numbers(opened, tmp_path, tell):
    "Logits, the exact parts of each, and its patterns"
    set_seed(0)
    model = load_config('mnist_one_layer').model().eval()
    model.signature = RPN.load('mnist_dual_lphm').signature
    with torch.no_grad(): model.layers[0].heads[0].weight.mul_(30) # logits of the usual size
    tab = opened(model.to_html(tmp_path/'one.html', most=50_000_000))
    pixels = greys()
    relative, absolute = check_logits(model, tab, pixels)
    tell(f'lesson: one layer of 6,154,400 numbers; logits differ by {relative:.1e}, probabilities by {absolute:.1e}')
    head, blank = model.layers[0].heads[0], prepared(model, torch.zeros(784))
    for n, unit in ((0, 3), (7, 7), (501, 0), (510, 2)):
        check_parts(tab, pixels[n], unit, [explain(head, prepared(model, pixels[n]), unit, blank)])
        assert tab.evaluate('lesson.page.exact') is True
    for page, images in zip(tab.evaluate('lesson.page.patterns.slice(0, 2).map(p => [...p.positive, ...p.negative].map(q => [...q.pixels]))'), (eigen_digits(head, u, 2) for u in (0, 1))):
        want = torch.cat([p.images.flatten(1) for p in images])
        np.testing.assert_allclose(np.array(page)/127, want/want.abs().amax(1, keepdim=True), atol=0.01)


def check_parts(tab, pixels, unit, explanations, weights=(1.,)):
    "Pairs, single pixels and constant on the page are the weighted sum of explanations of the first layer's units"
    got = tab.evaluate('([g, u]) => { const e = lesson.explain(g, u), ends = e.strongest(5); return {pairs: [...e.pairs], alone: [...e.alone], constant: e.constant, total: e.total, output: e.output, strongest: ends} }', [pixels.tolist(), unit])
    m = len(pixels)
    pairs = sum(w*e.pairs for w, e in zip(weights, explanations))
    alone = sum(w*e.linear for w, e in zip(weights, explanations)) + pairs.diag()
    size = float(pairs.abs().max()) + float(alone.abs().max())
    np.testing.assert_allclose(np.array(got['pairs']).reshape(m, m), 2*pairs.triu(1), atol=2e-5*size)
    np.testing.assert_allclose(got['alone'], alone, atol=2e-5*size)
    total = sum(w*e.total for w, e in zip(weights, explanations))
    assert abs(got['total'] - total) < 1e-4*(1 + abs(total) + float(alone.abs().sum()))
    both = 2*pairs.triu(1)
    np.testing.assert_allclose([abs(p['adds']) for p in got['strongest']], both.abs().flatten().topk(len(got['strongest'])).values, atol=4e-5*size)
    for p in got['strongest']: assert abs(p['adds'] - both[p['i'], p['j']]) < 4e-5*size
    return got


def head(m, n, psi=None, d=2, norm=None, **kwargs):
    "A head with random numbers everywhere; norm: None, False without and True with learnable numbers"
    made = RPNHead(m, n, TaylorExpansion(d) if d else IdentityExpansion(), psi or IdentityReconciliation(), **kwargs)
    if norm is not None: made.expansion.post.append(nn.LayerNorm(made.D, elementwise_affine=norm))
    for p in made.parameters(): nn.init.normal_(p, std=0.5)
    return made


def many():
    "Small models with everything that a page accepts, for images of 6 x 5"
    set_seed(3)
    full = dict(channels=2, bias=True, remainder=LinearRemainder(bias=True))
    first = {
        'all at once': [RPNLayer([head(30, 12, DualLphmReconciliation(p=3, q=30, r=2), norm=True, **full), head(30, 12, norm=False, **full)], 'summation'), head(12, 4, norm=True)],
        'kronecker': [head(30, 12, HmReconciliation(), norm=False, output='tanh'), head(12, 12, LphmReconciliation(r=2), remainder=IdentityRemainder(), output=nn.LayerNorm(12)), head(12, 4, LorrReconciliation(2), output='sigmoid')],
        'other matrices': [RPNLayer([head(30, 8, HypernetReconciliation(5, 4)), head(30, 8, MaskingReconciliation(0.5), remainder=ConstantRemainder(2.))], 'concatenation'), head(16, 4, ConstantReconciliation(0.1), bias=True)],
        'near pixels': [head(30, 6, ImageHmReconciliation(2, 2, 1, shape=[6, 5]), norm=True, output='LayerNorm'), head(6, 4, ImageHmReconciliation(2, 2, 1), channels=2)],
        'symmetric forms': [head(30, 6, EigenReconciliation(2), norm=False, channels=2, output='softplus'), head(6, 4, EigenReconciliation(2), norm=True, output=['leaky_relu', 'softmax'])],
        'degree one': [RPNLayer([head(30, 7, d=1, norm=True, output='silu'), head(30, 7, d=0, norm=False, output='elu')], {'name': 'weighted_summation', 'weights': [0.3, -2.]}), head(7, 4, d=1, output='log_softmax')],
        'a learnt fusion': [RPNLayer([head(30, 5, output='softsign'), head(30, 5, output='relu')], ParameterizedConcatenationFusion(6)), head(6, 4, LorrReconciliation(1))],
        'one layer of two heads': [RPNLayer([head(30, 4, norm=False, **full), head(30, 4, DualLphmReconciliation(p=2, q=31, r=2), norm=True)], 'average')],
    }
    for name, layers in first.items():
        model = RPN(layers).eval()
        model.signature = Signature('random', [1, 6, 5], 0.4, 0.5, ['a', 'b', 'c', 'd'])
        yield name, model


@pytest.mark.parametrize('name, model', list(many()), ids=lambda v: v if isinstance(v, str) else '')
def test_models_with_everything_that_is_accepted(name, model, opened, tmp_path):
    "Logits, and the parts of the first layer weighed by the gradient"
    pixels = greys((6, 5))
    tab = opened(model.to_html(tmp_path/'page.html'))
    check_logits(model, tab, pixels)
    model, blank = model.double(), prepared(model, torch.zeros(30)).double()
    for n, unit in ((4, 0), (12, 2)):
        x = prepared(model, pixels[n]).double()
        heads = model.layers[0].heads
        weights = [g[0] for g in first_gradients(model, x[None], unit)]
        parts = [explain(h, x, u, blank) for h in heads for u in range(h.n)]
        got = check_parts(tab, pixels[n], unit, parts, torch.cat(weights).tolist())
        exact = name == 'one layer of two heads'
        assert tab.evaluate('lesson.page.exact') is exact and (not exact or abs(got['total'] - got['output']) < 1e-9)
    assert tab.locator('#picture').count() == 1 and 'logit for' in tab.inner_text('#sums')


def test_a_scaler_and_number_fields(opened, tmp_path):
    "A model of no image has a field for each input; what it sees is scaled as in PyTorch"
    set_seed(1)
    model = RPN([head(3, 4, norm=False), head(4, 2)], scaler='standard').eval()
    model.signature = Signature('wine', [3], 0., 1., ['red', 'white'])
    with pytest.raises(ParameterError, match='scaler=InputScaler\\(standard, not fitted\\)'): model.to_html(tmp_path/'page.html')
    data = torch.randn(50, 3)*torch.tensor([1., 20., 0.1]) + 5
    model.scaler.fit(data)
    tab = opened(model.to_html(tmp_path/'page.html'))
    with torch.no_grad(): want = model(data[:5]).numpy()
    np.testing.assert_allclose(asked(tab, 'lesson.logits(g)', data[:5]), want, rtol=1e-4, atol=1e-5)
    fields = tab.locator('#fields input')
    assert fields.count() == 3 and tab.locator('canvas').count() == 0
    for i in range(3): fields.nth(i).fill(f'{data[1, i]:.6f}')
    with torch.no_grad(): answer = ['red', 'white'][int(model(data[1:2]).argmax())]
    assert tab.inner_text('#answer').startswith(answer) and tab.inner_text('#pairs').count('input') >= 3


def test_a_minmax_scaler(opened, tmp_path):
    "Numbers that a scaler brings into a range are computed as in PyTorch, and said to be"
    set_seed(2)
    model = RPN([head(3, 4, HypernetReconciliation(5, 4), norm=True), head(4, 2)], scaler={'kind': 'minmax', 'target': (-0.5, 2)}).eval()
    model.signature = Signature('wine', [3], 1., 2., ['red', 'white'])
    data = torch.randn(50, 3)*torch.tensor([1., 20., 0.1]) + 5
    model.scaler.fit((data - 1)/2)
    tab = opened(model.to_html(tmp_path/'page.html'))
    with torch.no_grad(): want = model((data[:5] - 1)/2).numpy()
    np.testing.assert_allclose(asked(tab, 'lesson.logits(g)', data[:5]), want, rtol=1e-4, atol=1e-5)
    assert 'each becomes (value \u2212 1) / 2, and then is moved and stretched, each by numbers of its own.' in tab.inner_text('main')
    model.signature.mean, model.signature.std = 0., 1.
    assert 'The 3 numbers are moved and stretched, each by numbers of its own.' in told(model, tmp_path) and 'as they are' not in told(model, tmp_path)
    model.scaler = None
    assert 'The 3 numbers are taken as they are.' in told(model, tmp_path)


def test_numbers_that_are_too_large(opened, tmp_path):
    model = RPN([head(2, 2)]).eval()
    model.signature = Signature('wine', [2], 0., 1., ['red', 'white'])
    tab = opened(model.to_html(tmp_path/'page.html'))
    for value, answer in (('1e200', 'No answer'), ('1e90', 'with 100.0'), ('1', ' with ')):
        tab.locator('#fields input').nth(0).fill(value); settle(tab)
        assert answer in tab.inner_text('#answer') and 'NaN' not in tab.inner_text('#draw') + tab.inner_text('#words')
        assert len(tab.inner_text('#sums')) < 200
        assert ('Nothing can be said' in tab.inner_text('#sums')) == (value == '1e200')


def test_a_log_softmax_does_not_underflow(opened, tmp_path):
    model = RPN([head(30, 4, output='log_softmax')]).eval()
    with torch.no_grad(): model.layers[0].heads[0].weight.mul_(1000)
    model.signature = Signature('random', [1, 6, 5], 0., 1.)
    pixels = greys((6, 5))
    with torch.no_grad(): assert model(prepared(model, pixels)).min() < -1000
    check_logits(model, opened(model.to_html(tmp_path/'page.html')), pixels)


def test_one_output_is_no_probability(opened, tmp_path):
    model = RPN([head(2, 1)]).eval()
    model.signature = Signature(shape=[2])
    tab = opened(model.to_html(tmp_path/'page.html'))
    assert '%' not in tab.inner_text('#bars') and tab.inner_text('#answer').startswith('output 1')


# ---- what the prose says is true of every model

def told(model, folder, **kwargs):
    "The words of a page, without its scripts"
    text = model.to_html(folder/'told.html', **kwargs).read_text(encoding='utf-8').split('<script')[0].split('</style>')[1]
    return ' '.join(html.unescape(re.sub(r'<[^>]+>', ' ', re.sub(r'</?(?:m[^>]*|i|b|sub)>', '', text))).split())


def test_formulas_name_functions_channels_and_fusions(tmp_path):
    words = {name: told(model, tmp_path) for name, model in many()}
    assert 'mean over 2 channels of' in words['all at once'] and 'summation fusion' in words['all at once'] and 'Each head computes, and each layer' in words['all at once']
    assert re.search(r'Layer 1:.*f=tanh.*Layer 2:.*f=layer_norm.*Layer 3:.*f=sigmoid', words['kronecker']) and 'Each layer computes:' in words['kronecker']
    assert 'concatenation fusion' in words['other matrices'] and 'f=leaky_relu, then softmax' in words['symmetric forms']
    assert 'Layer 1, head 2:' in words['degree one'] and 'makes one number of them' in words['degree one'] and 'adds everything up' in words['kronecker']
    assert re.search(r'1, all heads 30 6 parameterized concatenation fusion 60 ', words['a learnt fusion'])
    for text in words.values(): assert 'thick pen' not in text and 'drawn at random' not in text and 'thousandths' not in text
    # heads that do different things first
    unlike = told(of_shape(RPN([RPNLayer([head(30, 4, norm=False), head(30, 4, d=1)])]).eval(), [1, 6, 5]), tmp_path)
    assert 'makes one number of them' in unlike and 'spread 1' not in unlike and 'adds everything up' not in unlike
    # a function after the only layer: there are no further ones
    model = of_shape(RPN([head(30, 4, output='tanh')]).eval(), [1, 6, 5])
    assert 'more layer' not in told(model, tmp_path) and 'What is shown, precisely' in told(model, tmp_path)


def test_the_table_of_weights_is_spoken_of_where_there_is_one(tmp_path):
    "Of a single head of a single channel; several would make several tables"
    table = lambda layer: 'a table of' in told(of_shape(RPN([layer, head(12, 4)]).eval(), [1, 6, 5]), tmp_path)
    one = lambda **kwargs: head(30, 12, DualLphmReconciliation(p=3, q=30, r=2), **kwargs)
    assert table(one()) and not table(one(channels=2)) and not table(RPNLayer([one(), one()])) and not table(head(30, 12))


def test_the_constant_of_a_normalised_layer_is_not_called_an_empty_page(opened, tmp_path):
    "Since the scale is that of the drawing, what an empty page scores is another number"
    model = RPN([head(30, 4, norm=True)]).eval()
    model.signature = Signature('random', [1, 6, 5], 0.4, 0.5)
    tab, pixels = opened(model.to_html(tmp_path/'page.html')), greys((6, 5))
    constant, empty = tab.evaluate('([g, none]) => [lesson.explain(g, 0).constant, lesson.logits(none)[0]]', [pixels[5].tolist(), [0]*30])
    assert abs(constant - empty) > 1e-3
    assert 'These parts are exact' in tab.inner_text('#words') and 'would score' not in tab.inner_text('#words')


def test_credit_goes_to_published_sets_alone(tmp_path):
    model, data = RPN.load('mnist_dual_lphm').eval(), load_data('mnist_sample', say=lambda line: None)
    credited = lambda: re.search(r'The example images are from .*', told(model, tmp_path, data=data))
    assert 'MNIST database' in credited()[0] and 'one of these digits' in told(model, tmp_path)
    for name, credit in (('mnist_of_mine', None), ('mnist', 'MNIST database'), ('fashion_mnist', 'Zalando'), ('kmnist', 'CODH')):
        data.signature.name = model.signature.name = name
        assert credited() is None if credit is None else credit in credited()[0], name
        assert ('one of these digits' in told(model, tmp_path, data=data)) == (name == 'mnist')


def test_odd_histories(tmp_path):
    "A missing epoch, one epoch, no number, none at all"
    model = of_shape(RPN([head(4, 2)]), [4])
    page = lambda *rows: told(model, tmp_path, history=History(rows))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        one = page({'epoch': None, 'train_loss': 1., 'test_accuracy': 0.})
        assert 'data 1 time, an epoch' in one and 'right about 0.00%' in one
        nothing = page({'epoch': 0, 'train_loss': math.nan, 'test_accuracy': math.nan}, {'epoch': 1, 'train_loss': math.inf, 'test_accuracy': math.nan})
        assert 'How it learnt' not in nothing and 'right about' not in nothing # there is nothing to draw
        half = page({'epoch': 0, 'train_loss': 1., 'test_accuracy': 0.5}, {'epoch': 1, 'train_loss': 0.5, 'test_accuracy': math.nan})
        assert '2 times' in half and 'right about' not in half and 'nan' not in half.split('How it learnt')[1]
        some = page({'epoch': 0, 'test_loss': math.nan}, {'epoch': 1, 'test_loss': 3.}, {'epoch': 2, 'test_loss': 2.}, {'epoch': 3})
        assert 'loss by epoch, from 3 to 2' in some
    for key in ('epoch', 'test_accuracy', 'test_loss'):
        with pytest.raises(ParameterError, match=f"history: {key}='much'; a number"): page({'epoch': 0, 'train_loss': 1., 'test_loss': 1., key: 'much'})


# ---- refusals

def of_shape(model, shape):
    model.signature = Signature('shaped', shape)
    return model


def frozen(model):
    next(model.layers[0].heads[0].reconciliation.buffers()).view(-1)[0] = torch.inf
    return model


def unsigned(model):
    model.signature = None
    return model


def broken(model):
    model.layers[0].heads[0].weight.data[0, 1] = torch.nan
    return model


@pytest.mark.parametrize('make, message', [
    (lambda: RPN([head(4, 2, d=3)]), 'layer 0, head 0: expansion=taylor\\(d=3\\)'),
    (lambda: RPN([head(4, 2, remainder=LinearRemainder(activation='tanh'))]), 'layer 0, head 0: remainder='),
    (lambda: RPN([head(4, 4), head(4, 2, output='gelu')]), 'layer 1, head 0: output=Functional|layer 1, head 0: output=GELU'),
    (lambda: RPN([RPNLayer([head(4, 2), head(4, 2)], 'prod')]), 'layer 0: fusion='),
    (lambda: RPN([head(100, 2)]), 'signature.shape=\\[\\]: images of one channel'),
    (lambda: of_shape(RPN([head(2500, 2, LorrReconciliation(1), d=1)]), [1, 50, 50]), 'at most 2,304 pixels'),
    (lambda: of_shape(RPN([head(2000, 2, LorrReconciliation(1), d=1)]), [1, 2000, 1]), 'sides of at most 1 to 4'),
    (lambda: of_shape(RPN([head(144, 2, d=1)]), [1, 1, 144]), 'sides of at most 1 to 4'),
    (lambda: unsigned(RPN([head(4, 2)])), 'signature=None: a Signature is needed'),
    (lambda: frozen(RPN([head(4, 2, HypernetReconciliation(5, 4))])), 'the model holds NaN or infinite numbers'),
    (lambda: RPN([head(4, 2)], scaler='quantile'), 'scaler=InputScaler\\(quantile'),
    (lambda: broken(RPN([head(4, 2)])), 'the model holds NaN or infinite numbers')], ids='expansion remainder output fusion signature size tall wide unsigned frozen scaler nan'.split())
def test_what_a_page_cannot_compute_is_refused(make, message, tmp_path):
    with pytest.raises(ParameterError, match=message): make().to_html(tmp_path/'page.html')
    assert list(tmp_path.iterdir()) == []


def test_labels_that_are_no_outputs_are_refused(tmp_path):
    rng = np.random.default_rng(0)
    data = lambda more: Data(*(part for n in (30, 20) for part in (rng.integers(0, 256, (n, 30)).astype(np.uint8), np.arange(n) % 3 + more)), Signature('mine', [1, 6, 5], 0., 1.))
    model = of_shape(RPN([head(30, 3)]).eval(), [1, 6, 5])
    assert model.to_html(tmp_path/'page.html', data=data(0)).exists()
    with pytest.raises(ParameterError, match='data has labels up to 7; the model has 3 outputs, for labels from 0 to 2'): model.to_html(tmp_path/'page.html', data=data(5))


def test_a_line_of_a_few_pixels_has_fields(opened, tmp_path):
    "A pad would be a slit"
    tab = opened(of_shape(RPN([head(30, 4)]).eval(), [1, 1, 30]).to_html(tmp_path/'page.html'))
    assert tab.locator('canvas').count() == 0 and tab.locator('#fields input').count() == 30
    tab = opened(of_shape(RPN([head(16, 4)]).eval(), [1, 8, 2]).to_html(tmp_path/'page.html'))
    box = tab.locator('#pad canvas').bounding_box()
    assert abs(box['height']/box['width'] - 4) < 0.05


def test_text_that_others_wrote_stays_text(opened, tmp_path):
    "Names of classes and of the signature are shown, never obeyed"
    evil = ['</script><script>alert(1)</script>', '<img src=x onerror=alert(2)>', '"><b>', '<!--<script>']
    model = RPN([head(30, 4)]).eval()
    model.signature = Signature('</title><script>alert(3)</script>{{css}}', [1, 6, 5], 0., 1., evil)
    tab = opened(model.to_html(tmp_path/'page.html', title=None))
    assert [b.inner_text() for b in tab.locator('#bars button > span:first-child').all()] == evil
    assert tab.title().startswith('</title><script>alert(3)</script>{{css}}: a network')
    assert tab.locator('h1').inner_text() == tab.title()
    tab.click('#bars button >> nth=1')
    assert tab.inner_text('#chosen') == evil[1] and evil[1] in tab.inner_text('#sums')
    assert tab.locator('script').count() == 2 and tab.locator('img').count() == 0


# ---- the page

def test_it_is_small_and_needs_nothing_else(packaged, tell):
    text = packaged[1].read_text(encoding='utf-8')
    size = len(text.encode())
    tell(f'lesson: the page of 9,330 parameters has {size:,} bytes')
    assert size < 200_000
    assert re.findall(r'https?://[^"]*', text) == ['https://tinyrpn.github.io/tinyrpn'] # a link, nothing that is loaded
    assert not re.search(r'@import|url\(|src=|href="(?!data:|#|https://tinyrpn)', text)
    assert not re.search(r'\{\{|\}\}', text.split('<script')[0]) # every blank is filled


def settle(tab): tab.wait_for_timeout(120)


def test_drawing_with_mouse_finger_and_keyboard(packaged, opened):
    tab = opened(packaged[1], has_touch=True, viewport={'width': 1280, 'height': 900})
    answer = lambda: (settle(tab), tab.inner_text('#answer'))[1]
    assert answer().startswith('0 with 99') and tab.inner_text('#chosen') == '0'
    tab.click('#clear')
    assert 'empty page' in answer()
    box = tab.locator('#pad canvas').bounding_box()
    at = lambda x, y: (box['x'] + x*box['width'], box['y'] + y*box['height'])
    tab.mouse.move(*at(0.5, 0.15)); tab.mouse.down(); tab.mouse.move(*at(0.5, 0.85), steps=12); tab.mouse.up()
    assert answer().startswith('1 with') and tab.inner_text('#chosen') == '1'
    tab.wait_for_function("document.querySelector('#spoken').textContent.startsWith('Answer: 1,')")
    assert tab.locator('#spoken').get_attribute('aria-live') == 'polite'
    # a seven, with a finger
    tab.click('#clear')
    session = tab.context.new_cdp_session(tab)
    touch = lambda kind, *points: session.send('Input.dispatchTouchEvent', {'type': kind, 'touchPoints': [{'x': x, 'y': y} for x, y in points]})
    touch('touchStart', at(0.25, 0.2))
    for p in [(0.25 + 0.5*t/8, 0.2) for t in range(1, 9)] + [(0.75 - 0.3*t/8, 0.2 + 0.65*t/8) for t in range(1, 9)]: touch('touchMove', at(*p))
    touch('touchEnd')
    assert answer().startswith('7 with')
    # a one, with the keyboard
    tab.click('#clear'); tab.focus('#pad canvas')
    for key in ['ArrowUp']*9 + [' '] + ['ArrowDown']*18: tab.keyboard.press(key)
    assert answer().startswith('1 with')
    tab.keyboard.press('Delete')
    assert 'empty page' in answer()


def test_examples_and_questions_by_keyboard(packaged, opened):
    tab = opened(packaged[1])
    rows = tab.locator('#examples button')
    assert rows.count() == 15 and tab.locator('#examples .missed').count() == 5
    rows.nth(0).focus()
    for label in range(1, 10):
        tab.keyboard.press('Tab'); tab.keyboard.press('Enter'); settle(tab)
        assert tab.inner_text('#answer').startswith(f'{label} with') and rows.nth(label).get_attribute('aria-pressed') == 'true', label
    assert 'which it takes for' in rows.nth(12).get_attribute('aria-label')
    # why not a four?
    tab.locator('#bars button').nth(4).focus(); tab.keyboard.press('Enter')
    assert tab.inner_text('#chosen') == '4' and 'decided most about 4' in tab.locator('#picture').get_attribute('aria-label')
    assert re.search(r'The logit for 4 is .* The first layer, weighed by what follows, says .*: pairs [+−].*, single pixels [+−].*, constant', tab.inner_text('#sums'))
    assert len(re.findall(r'row \d+, column \d+\trow \d+, column \d+\t[+−].* (?:for|against)', tab.inner_text('#pairs'))) == 8


def test_a_question_is_kept_while_drawing(packaged, opened):
    "Until another class, or the answer, is chosen"
    tab = opened(packaged[1], viewport={'width': 1280, 'height': 900})
    chosen = lambda: (settle(tab), tab.inner_text('#chosen'))[1]
    box = tab.locator('#pad canvas').bounding_box()
    def stroke():
        tab.mouse.move(box['x'] + 0.5*box['width'], box['y'] + 0.2*box['height']); tab.mouse.down()
        tab.mouse.move(box['x'] + 0.5*box['width'], box['y'] + 0.8*box['height'], steps=8); tab.mouse.up()
    button = lambda i: tab.locator('#bars button').nth(i)
    button(9).click(); tab.click('#clear'); stroke()
    assert tab.inner_text('#answer').startswith('1 with') and chosen() == '9' and button(9).get_attribute('aria-pressed') == 'true'
    button(3).click(); stroke()
    assert chosen() == '3'
    button(1).click()
    assert chosen() == '1'
    tab.locator('#examples button').nth(7).click()
    assert chosen() == '7' # it follows the answer again


def test_a_narrow_frame_shows_what_decided_when_asked(packaged, opened):
    tab = opened(packaged[1], viewport={'width': 390, 'height': 844})
    tab.evaluate("document.documentElement.classList.add('framed')")
    assert not tab.is_visible('#why')
    tab.locator('#bars button').nth(4).click()
    assert tab.is_visible('#why') and tab.inner_text('#chosen') == '4' and tab.evaluate(FITS) == []
    assert not tab.is_visible('#words')


def test_a_frame_of_number_fields_says_what_decided_when_asked(opened, tmp_path):
    model = RPN([head(2, 2)]).eval()
    model.signature = Signature('wine', [2], 0., 1., ['red', 'white'])
    tab = opened(model.to_html(tmp_path/'page.html'))
    tab.evaluate("document.documentElement.classList.add('framed')")
    assert not tab.is_visible('#words')
    tab.locator('#bars button').nth(1).click()
    assert tab.is_visible('#words') and 'for white is' in tab.inner_text('#sums')


def test_pairs_are_drawn_over_the_digit_in_two_colours(packaged, opened):
    tab = opened(packaged[1]); settle(tab)
    count = '''() => { const c = document.querySelector('#picture'), d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data, n = {blue: 0, orange: 0};
      for (let i = 0; i < d.length; i += 4) if (d[i + 3]) { if (d[i + 2] > d[i] + 60) n.blue++; else if (d[i] > d[i + 2] + 60) n.orange++ } return n }'''
    few = tab.evaluate(count)
    tab.locator('#many').fill('150')
    lots = tab.evaluate(count)
    tab.locator('#many').fill('0')
    none = tab.evaluate(count)
    tab.check('#heat')
    heat = tab.evaluate(count)
    assert min(few.values()) > 100 and lots['blue'] > few['blue'] and none == {'blue': 0, 'orange': 0} and min(heat.values()) > 1000
    patterns = tab.locator('#patterns canvas')
    assert patterns.count() == 40 and 'Pattern that speaks for 0, strength +' in patterns.nth(0).get_attribute('aria-label')
    assert tab.locator('.charts > figure').count() == 2 and tab.locator('math').count() == 5


FITS = '''() => { const wrong = [], boxed = e => { for (let a = e.parentElement; a; a = a.parentElement) if (/auto|scroll/.test(getComputedStyle(a).overflowX) || a.matches('svg, .hidden')) return true; return false };
  if (document.documentElement.scrollWidth > innerWidth) wrong.push(`${document.documentElement.scrollWidth} wide`);
  for (const e of document.querySelectorAll('main *')) { const r = e.getBoundingClientRect(); if (r.width && (r.right > innerWidth + 1 || r.left < -1) && !boxed(e)) wrong.push(`${e.tagName} ${e.className} ${e.textContent.slice(0, 40)}`) }
  return wrong }'''
CONTRAST = '''() => { const numbers = c => c.match(/[\\d.]+/g).map(Number), wrong = [];
  const light = c => { const [r, g, b] = c.slice(0, 3).map(v => (v /= 255) <= 0.03928 ? v/12.92 : ((v + 0.055)/1.055)**2.4); return 0.2126*r + 0.7152*g + 0.0722*b };
  const behind = e => { for (; e; e = e.parentElement) { const c = numbers(getComputedStyle(e).backgroundColor); if (c.length === 3 || c[3] > 0.5) return c } };
  for (const e of document.querySelectorAll('main :is(p, a, td, th, h1, h2, h3, li, span, figcaption, caption, .one, code, output, label, button)')) {
    if (!e.textContent.trim() || /^[\\s\\u25a0]*$/.test(e.textContent) || !e.getBoundingClientRect().width) continue;
    const [a, b] = [light(numbers(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x), ratio = (a + 0.05)/(b + 0.05);
    if (ratio < 4.5) wrong.push(`${e.tagName} ${e.className}: ${ratio.toFixed(1)} ${e.textContent.slice(0, 30)}`) }
  return wrong }'''


def test_it_fits_and_stands_out_everywhere(packaged, opened):
    "Narrow and wide, light and dark; pictures of it in $TINYRPN_SCREENSHOTS (else runs/screenshots)"
    folder = Path(os.environ.get('TINYRPN_SCREENSHOTS', ROOT/'runs'/'screenshots')); folder.mkdir(parents=True, exist_ok=True)
    tab = opened(packaged[1])
    settle(tab)
    for scheme in ('light', 'dark'):
        for width, height in ((1280, 900), (390, 844)):
            tab.emulate_media(color_scheme=scheme); tab.set_viewport_size({'width': width, 'height': height}); settle(tab)
            assert tab.evaluate(FITS) == [], (width, scheme)
            assert tab.evaluate(CONTRAST) == [], (width, scheme)
            paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (paper == 'rgb(255, 255, 255)') == (scheme == 'light')
            tab.screenshot(path=folder/f'lesson-{width}-{scheme}.png', full_page=True)


def test_long_names_fit(opened, tmp_path):
    "Of classes, without a space where a line could end"
    model = of_shape(RPN([head(30, 2)]).eval(), [1, 6, 5])
    model.signature.classes = ['Donaudampfschifffahrtsgesellschaftskapitaensmuetze', 'x'*60]
    tab = opened(model.to_html(tmp_path/'page.html'), viewport={'width': 360, 'height': 800}); settle(tab)
    for n in (0, 1):
        tab.locator('#bars button').nth(n).click()
        assert tab.evaluate(FITS) == []


def test_history_as_object_or_path_or_not_at_all(packaged, tmp_path):
    "The curves are the history's; without one the page does without"
    model = packaged[0]
    section = lambda path: re.search(r'How it learnt.*?</section>', Path(path).read_text(encoding='utf-8'), re.S)
    same = [section(model.to_html(tmp_path/'a.html', history=h))[0] for h in (History.load(HISTORY), str(HISTORY))]
    assert same[0] == same[1] and '20 times' in same[0] and '97.95%' in same[0] and same[0].count('<polyline') == 4
    assert section(model.to_html(tmp_path/'b.html')) is None
    with pytest.raises(ParameterError, match='history: it has no epochs'): model.to_html(tmp_path/'c.html', history=History())
    own = model.to_html(tmp_path/'own.html', history=History([{'epoch': 0, 'train_loss': 2., 'test_loss': 1.}, {'epoch': 1, 'train_loss': 1., 'test_loss': None}]))
    assert section(own)[0].count('<polyline') == 2 and 'right about' not in section(own)[0]


def test_writing_leaves_the_model_as_it_was(tmp_path):
    model = RPN.load('mnist_dual_lphm').double().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.to_html(tmp_path/'page.html')
    assert model.training and all(torch.equal(v, before[k]) and v.dtype == before[k].dtype for k, v in model.state_dict().items())
    assert [p.name for p in tmp_path.glob('*.html')] == ['page.html'] and not list(tmp_path.glob('.*'))
