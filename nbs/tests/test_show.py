"Displays: every object, quick and light, legible without styles, and with nothing in it that a user's text could do"
import re
import subprocess
import sys
import threading
import time
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
import torch._dynamo # torch imports it at the first use of some operations, which is not to be counted
from conftest import within
from IPython.core.formatters import DisplayFormatter
from torch import nn

from tinyrpn.all import *
from tinyrpn.checks import example
from tinyrpn.config import Config, load_config
from tinyrpn.core import registry
from tinyrpn.data import Data
from tinyrpn.learner import History
from tinyrpn.model import Signature
from tinyrpn.show import Card, Dice, actual, bundle, card, chart, draw_basis, draw_counts, draw_history, draw_images, draw_layers, draw_pattern, fabricated, html, images, quoted, tex

EVIL = '<script>alert("1")</script>$x$\'&'
SECONDS, LETTERS = 0.2, 200_000
pytestmark = pytest.mark.usefixtures('settled') # or the search for garbage would be counted
CLASSES = sorted({cls for kind in registry().values() for cls in kind.values() if cls.__module__.startswith('tinyrpn.')}, key=lambda c: (c.kind, c.name))
VOID = 'img', 'br', 'meta', 'link', 'input', 'hr'


class Page(HTMLParser):
    "Tags that are opened and closed in order, and the text in each"
    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.texts = [], [], [], []
        self.feed(text); self.close()
        assert not self.open, f'not closed: {self.open}'
    def handle_starttag(self, tag, attrs):
        self.tags.append(tag); self.attributes += attrs
        if tag not in VOID: self.open.append(tag)
    def handle_endtag(self, tag): assert self.open.pop() == tag
    def handle_data(self, data): self.texts.append((tuple(self.open), data))
    @property
    def words(self): return ' '.join(t for where, t in self.texts if 'style' not in where)


def shown(obj, least=1):
    "The page of an object, whose pictures all can be drawn"
    made = card(obj)
    pictures = [p() for p in made.pictures] # nothing is caught here
    start = time.process_time()
    text = bundle(obj)['text/html']
    seconds = time.process_time() - start
    page = Page(text)
    assert len(text) < LETTERS and page.tags.count('figure') == sum(p is not None for p in pictures) >= least
    assert not {'script', 'iframe', 'object', 'link'} & {*page.tags} and not any(k.startswith('on') for k, _ in page.attributes)
    return page, seconds


def iris(classes=('setosa', 'versicolor', 'virginica'), name='iris', note=''):
    rng = np.random.default_rng(0)
    return Data(rng.random((30, 4)), np.arange(30) % 3, rng.random((6, 4)), np.arange(6) % 3, Signature(name, [4], 0., 1., list(classes)), note=note)


# ---- every component

UNDRAWN = {'combinatorial_expansion', 'combinatorial_normal_expansion'} # of two coordinates and more


@pytest.mark.parametrize('cls', CLASSES, ids=lambda c: c.name)
def test_component(cls):
    part = example(cls)
    start = time.process_time(); html(card(part)); first = time.process_time() - start
    page, seconds = shown(part, least=cls.kind in ('expansion', 'reconciliation') and cls.name not in UNDRAWN)
    assert cls.__name__ in page.words and cls.name in page.words and within(max(first, seconds), SECONDS)
    assert rf'\({re.findall(r"[$](.+?)[$]", cls.__doc__)[0]}\)' in page.words, 'the formula'
    assert '$' not in page.words


@pytest.mark.parametrize('cls', [c for c in CLASSES if c.kind == 'expansion' and c.name not in UNDRAWN], ids=lambda c: c.name)
def test_the_curves_are_the_expansion(cls):
    "The first curve, read back from the picture, against the expansion itself"
    from tinyrpn.catalogue import basis_curves
    e = example(cls).double()
    x, kappa = basis_curves(e, 160)
    runs = [np.array([[float(v) for v in p.split(',')] for p in line.split()]) for line in re.findall(r'points="([^"]*)"', str(draw_basis(e, most=1)))]
    points = np.concatenate(runs)
    gaps = np.append(np.abs(np.diff(kappa[:, 0].numpy())) > 4, False) | ~np.isfinite(kappa[:, 0].numpy())
    assert len(points) == (~gaps).sum()
    y, inside = kappa[:, 0].numpy()[~gaps], (points[:, 1] > -100) & (points[:, 1] < 200)
    if np.ptp(y[inside]) > 1e-6: # the height of a point is a linear function of the value
        slope, start = np.polyfit(y[inside], points[inside, 1], 1)
        assert slope < 0 and np.abs(slope*y[inside] + start - points[inside, 1]).max() < 0.2


def test_a_matrix_is_that_of_its_kind():
    assert np.linalg.matrix_rank(fabricated(LorrReconciliation(2), 12, 24)) == 2
    w = torch.default_generator.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0); expected = torch.randn(12*24).view(12, 24).numpy()
    assert np.array_equal(fabricated(IdentityReconciliation(), 12, 24), expected) and torch.equal(w, torch.default_generator.get_state())
    h = RPNHead(3, 2, TaylorExpansion(2), HmReconciliation(), channels=3)
    assert np.allclose(actual(h), torch.stack([h.reconciliation(w, 2, 12) for w in h.weight]).mean(0).detach().numpy(), atol=1e-6)


DRAWS = {
    'rand': lambda: torch.rand(4), 'randn': lambda: torch.randn((2, 3), generator=None, device='cpu'), 'randint': lambda: torch.randint(3, 9, (5,)), 'randperm': lambda: torch.randperm(7), 'normal': lambda: torch.normal(0., 1., (3,)),
    'rand_like': lambda: torch.rand_like(torch.ones(4)), 'bernoulli': lambda: torch.bernoulli(torch.full((9,), 0.5)), 'multinomial': lambda: torch.multinomial(torch.ones(9), 4), 'randn_like': lambda: torch.randn_like(torch.ones(4)),
    'init': lambda: nn.init.xavier_uniform_(torch.empty(3, 4)), 'bernoulli_': lambda: torch.empty(9, dtype=torch.bool).bernoulli_(0.3), 'exponential_': lambda: torch.empty(5).exponential_(), 'layer': lambda: nn.Linear(3, 2).weight.detach()}


@pytest.mark.parametrize('name', DRAWS)
def test_dice_of_ones_own(name):
    "The numbers are those after the same seed; torch's own stay, in this thread and in the others"
    torch.manual_seed(3); expected = DRAWS[name]()
    states, state, other = [], torch.get_rng_state(), []
    with Dice(3):
        drawn = DRAWS[name](); states.append(torch.get_rng_state())
        thread = threading.Thread(target=lambda: other.append(DRAWS[name]())); thread.start(); thread.join()
        again = DRAWS[name]()
    assert torch.equal(drawn, expected) and torch.equal(states[0], state)
    torch.set_rng_state(state)
    assert torch.equal(other[0], DRAWS[name]()), 'the other thread draws from torch'
    torch.manual_seed(3); DRAWS[name](); assert torch.equal(again, DRAWS[name]())
    own = torch.Generator().manual_seed(8)
    with Dice(3): given = torch.randn(2, generator=own)
    assert torch.equal(given, torch.randn(2, generator=torch.Generator().manual_seed(8)))


def test_a_matrix_needs_no_compiler():
    "To import it takes seconds, at the first display"
    said = subprocess.run([sys.executable, '-c', "import sys; from tinyrpn.all import *; from tinyrpn.show import fabricated; [fabricated(create(f'{k}_reconciliation'), 12, 24) for k in ('lorr', 'hypernet', 'masking')]; print('torch._dynamo' in sys.modules)"], capture_output=True, text=True, check=True).stdout
    assert said.split() == ['False']


# ---- models

def test_the_seed_model_is_quick_and_light():
    model = RPN.from_config('mnist')
    shown(RPN.from_config({'model': {'dims': [4, 2], 'expansion': 'taylor'}})) # imports are not counted
    page, seconds = shown(model)
    assert within(seconds, SECONDS), f'{seconds:.2f} s'
    for text in ('39,696,000', '39,388,160', '615,440', "LayerNorm of u' W x", 'taylor(d=2)', '151.4 MiB', '605.7 MiB', r'\langle \kappa(x), \psi(w) \rangle', 'name: taylor_expansion'): assert text in page.words, text


def test_nothing_takes_long_however_large():
    with torch.device('meta'):
        models = [RPN.from_config({'model': {'dims': dims, 'width': width, 'expansion': e}}) for dims, width, e in (([4, 2], 1500, 'identity'), ([4]*300, 1, 'taylor'), ([4, 2], 1, {'name': 'extended', 'composition_functions': ['taylor']*4900}))]
        models.append(RPNHead(10**5, 2, TaylorExpansion(2), LorrReconciliation(1)))
    rows = [dict(epoch=i, **{f'{part}_{k}': 1/(i + 1) for part in ('train', 'test') for k in 'abcdefgh'}) for i in range(3000)]
    for obj in (*models, TaylorExpansion(100), FourierExpansion(N=500), History(rows), load_config({'model': {'dims': [4, 2], 'expansion': {'name': 'extended', 'composition_functions': ['taylor']*4900}}})):
        start = time.process_time(); text = html(card(obj)); seconds = time.process_time() - start
        assert within(seconds, 3*SECONDS) and len(text) < LETTERS, (type(obj), seconds, len(text))
        Page(text)


def test_head_and_layer():
    head = RPNHead(4, 3, TaylorExpansion(2), LorrReconciliation(1), LinearRemainder(bias=True), channels=2, bias=True, output='Sigmoid')
    page, _ = shown(head, least=2)
    for text in (r'f(\tfrac{1}{2} \sum_{c=1}^{2}', '+ b + ', 'Sigmoid', 'linear(bias=True)', '64: w 2 × 23, b 3, bias in π 3, weight in π 12', '3 × 20'): assert text in page.words, text
    page, _ = shown(RPNLayer.repeat(3, 'max', m=4, n=2, expansion=TaylorExpansion(2), reconciliation=LorrReconciliation(1)))
    for text in ('3 heads', r'\max_i z_i', 'low rank of'): assert text in page.words, text


def test_on_the_meta_device():
    with torch.device('meta'):
        model = RPN.from_config('mnist')
        page, _ = shown(model)
        assert 'float32 on meta' in page.words and '39,696,000' in page.words
        for part in (model.layers[0], model.layers[0].heads[0], BsplineExpansion(), HypernetReconciliation()): shown(part)


def test_without_gradients_and_in_other_precisions():
    model = RPN.from_config({'model': {'dims': [4, 3, 2], 'expansion': 'bspline', 'width': 2}}).to(torch.bfloat16)
    with torch.inference_mode(): shown(model.layers[0].heads[0], least=2)
    assert 'bfloat16 on cpu' in shown(model)[0].words


# ---- histories, data, configurations

def test_history():
    history = History([dict(epoch=i, train_loss=2.*0.5**i, test_loss=2., train_accuracy=i/10, lr=0.1, seconds=1.) for i in range(8)])
    page, _ = shown(history, least=2)
    for text in ('0.01562 at last, 0.01562 at best, in epoch 8', 'logarithmic', '8.0 s'): assert text in page.words, text
    assert page.tags.count('polyline') == 3 and page.tags.count('circle') == 24
    drawn = str(draw_history(history, 'loss', ['train_loss']))
    ys = [float(p.split(',')[1]) for p in re.search(r'points="([^"]*)"', drawn)[1].split()]
    assert np.allclose(np.diff(ys), np.diff(ys)[0], atol=0.1) # halving is a straight line


def test_empty_history(): assert 'no epochs yet' in shown(History(), least=0)[0].words


def test_odd_history():
    page, _ = shown(History([dict(epoch=0, loss=float('nan'), score=float('inf'), text=EVIL, large=10**400), dict(epoch=1, loss=1e308, **{EVIL: 1.}), dict(loss=-1e308)]))
    assert 'nan' not in ' '.join(v for k, v in page.attributes if k == 'points')


def test_images_are_those_of_the_data():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    for shape in ([1, 28, 28], [28, 28]):
        data = Data(pixels.reshape(20, *shape), np.arange(20) % 2, pixels.reshape(20, *shape), np.arange(20) % 2, Signature('noise', shape, 0.1307, 0.3081, ['a', 'b']))
        assert np.array_equal(images(data), pixels[:16]) and 'the first 16: a b a b' in ' '.join(shown(data)[0].words.split())
    large = Data(np.zeros((3, 1, 500, 200), np.uint8), [0, 1, 0], np.zeros((1, 1, 500, 200), np.uint8), [0], Signature('large', [1, 500, 200], 0., 1., []))
    assert images(large).shape == (3, 63, 25) and draw_images(large) is not None


def test_data_without_images():
    page, _ = shown(iris())
    assert page.tags.count('rect') == 3 and 'virginica' in page.words and draw_images(iris()) is None and draw_counts([1]) is not None


def test_config():
    page, _ = shown(load_config('mnist'))
    for text in ('AdamW, lr=0.002', 'taylor', 'gamma: 0.9', '1,234'): assert text in page.words, text
    assert 'none' in shown(load_config({'data': {'name': 'mnist'}}), least=0)[0].words
    assert 'no_such_thing' in shown(load_config({'model': {'dims': [4, 2], 'expansion': 'no_such_thing'}}))[0].words # read, not built


# ---- text that is not ours

def hostile():
    evil = type(EVIL, (Expansion,), {'name': EVIL, '__doc__': f'{EVIL} no formula', 'dim': lambda self, m: m, 'expand': lambda self, x: x}, abstract=True)
    data = iris((EVIL, 'b', 'c'), EVIL, EVIL)
    model = RPN([RPNHead(4, 3, evil(), IdentityReconciliation())])
    model.signature = data.signature
    history = History([{'epoch': 0, EVIL: 1., 'text': EVIL}]); history.note = EVIL
    config = Config({'data': {'name': EVIL}, 'device': EVIL, 'model': {'dims': [4, 2], 'expansion': {'name': EVIL, EVIL: EVIL}}})
    return {'expansion': evil(), 'head': model.layers[0].heads[0], 'layer': model.layers[0], 'model': model, 'data': data, 'history': history, 'config': config, 'anything': type(EVIL, (), {'__repr__': lambda self: EVIL})()}


@pytest.mark.parametrize('name', ['expansion', 'head', 'layer', 'model', 'data', 'history', 'config', 'anything'])
def test_text_of_users_is_text(name):
    page, _ = shown(hostile()[name], least=0)
    assert 'alert' in page.words, 'it is shown'
    for where, text in page.texts:
        assert 'alert' not in text or {'code', 'pre'} & {*where} or 'no formula' in text, f'{text} in {where}: mathematics is looked for there'


def test_markup_of_our_own():
    assert str(quoted(EVIL)) == '<code>&lt;script&gt;alert("1")&lt;/script&gt;$x$\'&amp;</code>'
    assert tex('$a$, $$b$$ and $c$') == r'\(a\), \[b\] and \(c\)' and tex('5 $') == '5 $'
    assert str(chart([0, 1, 2], [[0, 1, 4]], width=200, height=100)).count('points="0,100 100,75 200,0"') == 1


# ---- what must not happen

class Broken(Expansion, abstract=True):
    r"$\kappa(x) = ?$"
    name = 'broken_expansion'
    def dim(self, m): return m
    def expand(self, x): raise RuntimeError('cannot be computed')


def test_a_picture_that_fails_is_left_out():
    with pytest.raises(RuntimeError): card(Broken()).pictures[0]()
    page = Page(html(card(Broken())))
    assert 'Broken' in page.words and 'figure' not in page.tags


def test_looking_changes_nothing():
    set_seed(0)
    e = ChebyshevExpansion(3, domain='clamp'); e(torch.tensor([[0.5, 2.]]))
    objects = [e, ExtendedExpansion([e, 'taylor']), RandomMatrixAdaptionReconciliation(), HypernetReconciliation(), RPN([RPNHead(4, 2, ChebyshevExpansion(2), HypernetReconciliation())]), load_data('mnist_sample')]
    state, weights = random_state(), {k: v.clone() for k, v in objects[4].state_dict().items()}
    for o in objects: shown(o)
    assert torch.equal(torch.get_rng_state(), state['torch']) and np.array_equal(np.random.get_state()[1], state['numpy'][1])
    assert e.outside() == 0.5 and objects[2]._size is None and all(torch.equal(v, weights[k]) for k, v in objects[4].state_dict().items()) and objects[4].training


def test_without_styles_it_reads():
    "What is left where styles, scripts and drawings are taken away"
    text = html(card(RPN.from_config('mnist')))
    plain = re.sub(r'<style>.*?</style>|<svg.*</svg>', '', text, flags=re.DOTALL)
    page = Page(re.sub(r' (style|class)="[^"]*"', '', plain))
    assert 'table' in page.tags and 'details' in page.tags and '39,696,000' in page.words


def test_layers():
    many = str(draw_layers([2]*101, [5]*100))
    assert many.count('<polygon') == 8 and '...' in many and len(many) < 10_000


# ---- in Jupyter

def test_what_jupyter_gets():
    formats = DisplayFormatter().format
    for obj, markdown in ((RPN.from_config({'model': {'dims': [4, 2], 'expansion': 'taylor'}}), True), (TaylorExpansion(2), False), (History([dict(epoch=0, loss=1.)]), True), (iris(), False), (load_config('mnist'), False), (RPNHead(4, 2, TaylorExpansion(2), IdentityReconciliation()), False)):
        data, _ = formats(obj)
        assert data['text/plain'] == repr(obj) and data['text/html'].startswith('<div') and ('text/markdown' in data) == markdown
        assert [*formats(obj, include=['text/plain'])[0]] == ['text/plain']
    assert isinstance(card(iris()), Card)
