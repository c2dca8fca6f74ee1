"Every component once more, from NumPy, SciPy and the standard library alone: `REFERENCES[name](part)` is a function of NumPy arrays"
from itertools import combinations, combinations_with_replacement, product
from math import comb, isqrt, lgamma, prod

import numpy as np
from numpy.polynomial import chebyshev
from scipy import special, stats
from scipy.interpolate import BSpline

REFERENCES = {} # registered name -> (part -> function)
MARGIN, GAP, FAR = 1e-3, 1e-6, 1e15 # what the chapters promise: distance from an infinite value, from the hole of 1/x, and where waves end


def reference(*names): return lambda make: [REFERENCES.__setitem__(n, make) for n in names] and make


def array(t): return t.detach().double().numpy() # of a frozen or learnt tensor


# ---- domains: what becomes of x outside

def inside(part, x, low=-np.inf, high=np.inf, squash=None):
    "x as the functions see it"
    if part.domain == 'clamp': return np.clip(x, low, high)
    if part.domain != 'squash': return x
    if squash: return squash(x)
    if np.isinf(low) and np.isinf(high): return x
    if np.isinf(high): return low + np.logaddexp(0, x - low)
    centre, half = (low + high)/2, (high - low)/2
    return centre + half*np.tanh((x - centre)/half)


def by_coordinate(f): return lambda x: np.stack(f(x), -1).reshape(len(x), -1) if x.size else np.zeros((0, len(f(np.zeros(1)))*x.shape[1]))


def by_function(f): return lambda x: np.concatenate(f(x), 1)


# ---- products, sums, maps

def powers(x, d):
    "All products of up to d coordinates, in lexicographic order"
    return np.concatenate([np.stack([np.prod(x[:, list(i)], 1) for i in product(range(x.shape[1]), repeat=k)], 1) for k in range(1, d + 1)], 1)


@reference('identity_expansion')
def _(e): return lambda x: x


@reference('taylor_expansion')
def _(e): return lambda x: powers(x, e.d)


@reference('linear_expansion')
def _(e):
    if e.pre_C: return lambda x: np.einsum('dm,bm->bd', np.array(e.pre_C, dtype=float), x)
    if e.post_C: return lambda x: np.einsum('bm,md->bd', x, np.array(e.post_C, dtype=float))
    return lambda x: x if e.c is None else np.multiply(e.c, x)


@reference('reciprocal_expansion')
def _(e):
    sign = lambda x: np.where(x < 0, -1., 1.)
    into = {'clamp': lambda x: sign(x)*np.maximum(np.abs(x), GAP), 'squash': lambda x: sign(x)*np.hypot(x, GAP)}
    return lambda x: np.power(into.get(e.domain, lambda x: x)(x), -1)


def groups(e, m): return [i for r in range(1, e.d + 1) for i in (combinations_with_replacement if e.with_replacement else combinations)(range(m), r)]


@reference('combinatorial_expansion')
def _(e): return lambda x: x[:, [j for i in groups(e, x.shape[1]) for j in i]]


@reference('combinatorial_normal_expansion')
def _(e): return lambda x: np.stack([stats.norm.logpdf(x[:, list(i)]).sum(1) for i in groups(e, x.shape[1])], 1)


def of(part): return REFERENCES[part.name](part)


@reference('extended_expansion')
def _(e): return lambda x: np.concatenate([of(part)(x) for part in e.composition_functions], 1)


@reference('nested_expansion')
def _(e):
    def f(x):
        for part in e.composition_functions: x = of(part)(x)
        return x
    return f


# ---- polynomials

def polynomials(name, P, low=-np.inf, high=np.inf, first=1):
    "P(e, n, x) for n = first, ..., first + d - 1"
    @reference(name)
    def _(e): return by_coordinate(lambda x: [P(e, n, inside(e, x, low, high)) + 0*x for n in range(first, first + e.d)])


def series(coefficients): return lambda e, n, x: sum(c*x**k for k, c in coefficients(n).items())


def odd(k): return prod(range(1, 2*k, 2)) # 1 * 3 * ... * (2k - 1)


polynomials('chebyshev_expansion', lambda e, n, x: chebyshev.chebval(x, [0]*n + [1]), -1, 1)
polynomials('legendre_expansion', lambda e, n, x: special.eval_legendre(n, x), -1, 1)
polynomials('gegenbauer_expansion', lambda e, n, x: special.eval_gegenbauer(n, e.alpha, x), -1, 1)
polynomials('hermite_expansion', lambda e, n, x: special.eval_hermitenorm(n, x))
polynomials('laguerre_expansion', lambda e, n, x: special.eval_genlaguerre(n, e.alpha, x), 0)
polynomials('jacobi_expansion', lambda e, n, x: sum(special.binom(n + e.alpha, n - s)*special.binom(n + e.beta, s)*((x - 1)/2)**s*((x + 1)/2)**(n - s) for s in range(n + 1)), -1, 1) # Rodrigues
polynomials('bessel_expansion', series(lambda n: {k: comb(n + k, 2*k)*odd(k) for k in range(n + 1)}))
polynomials('reverse_bessel_expansion', series(lambda n: {n - k: comb(n + k, 2*k)*odd(k) for k in range(n + 1)}))
polynomials('fibonacci_expansion', series(lambda n: {n - 1 - 2*k: comb(n - 1 - k, k) for k in range((n - 1)//2 + 1)}))
polynomials('lucas_expansion', series(lambda n: {n - 2*k: n/(n - k)*comb(n - k, k) for k in range(n//2 + 1)}))


# ---- waves, splines, bumps

@reference('fourier_expansion')
def _(e):
    turn = lambda x: [np.exp(2j*np.pi*k*x/e.P) for k in range(1, e.N + 1)]
    return by_function(lambda x: [part for z in turn(x) for part in (z.real, z.imag)])


@reference('trigonometric_expansion')
def _(e): return by_function(lambda x: [np.cos(x - np.pi/2), np.cos(x), np.sin(x)/np.cos(x)])


@reference('hyperbolic_expansion')
def _(e): return by_function(lambda x: [np.sign(x)*np.exp(np.abs(x))*-np.expm1(-2*np.abs(x))/2, np.exp(np.abs(x))*(1 + np.exp(-2*np.abs(x)))/2, 2*special.expit(2*x) - 1])


@reference('arc_trigonometric_expansion')
def _(e):
    z = special.expit
    unit = lambda x: inside(e, x, -1 + MARGIN, 1 - MARGIN, lambda x: 0.99*z(x))
    return by_function(lambda x: [np.arctan2(unit(x), np.sqrt(1 - unit(x)**2)), np.arctan2(np.sqrt(1 - unit(x)**2), unit(x)), np.arctan2(inside(e, x, squash=z), 1)])


@reference('arc_hyperbolic_expansion')
def _(e):
    z = special.expit
    return by_function(lambda x: [np.arcsinh(inside(e, x, squash=z)), np.arccosh(inside(e, x, 1 + MARGIN, squash=lambda x: z(x) + 1.01)), special.logit((1 + inside(e, x, -1 + MARGIN, 1 - MARGIN, lambda x: 0.99*z(x)))/2)/2])


@reference('bspline_expansion')
def _(e):
    low, high = e.grid_range
    knots = low + (high - low)/e.t*np.arange(-e.d, e.t + e.d + 1)
    knots[e.d], knots[e.t + e.d] = low, high
    def one(i, x): # its own piece of the axis, and zero elsewhere
        y = (knots[i] <= x)*1. if e.d == 0 else np.nan_to_num(BSpline.basis_element(knots[i:i + e.d + 2], extrapolate=False)(x))
        last = e.d == 0 and i == e.t - 1 and x == high # the last interval has an end
        return np.where((x < knots[i]) | (x >= knots[i + e.d + 1]), 0., y) + last
    return by_coordinate(lambda x: [one(i, inside(e, x, low, high)) for i in range(e.t + e.d)])


def centres(e): return [e.base_range[0] + (e.base_range[1] - e.base_range[0])*i/max(1, e.num_interval - 1) for i in range(e.num_interval)]


@reference('gaussian_rbf_expansion')
def _(e): return by_coordinate(lambda x: [stats.norm.pdf(inside(e, x, *e.base_range), c, np.sqrt(0.5)/e.epsilon)*np.sqrt(np.pi)/e.epsilon for c in centres(e)])


@reference('inverse_quadratic_rbf_expansion')
def _(e): return by_coordinate(lambda x: [stats.cauchy.pdf(inside(e, x, *e.base_range), c, 1/e.epsilon)*np.pi/e.epsilon for c in centres(e)])


# ---- likelihoods: function after function

def cauchy(x, mu, gamma): # SciPy's own overflows for large numbers
    with np.errstate(divide='ignore'): return -np.log(np.pi*gamma) - np.logaddexp(0, 2*np.log(np.abs((x - mu)/gamma)))


DENSITIES = {'normal': (stats.norm.logpdf, [(0, 1), (1, 1), (-1, 1), (0, .1), (1, .1), (-1, .1)]),
             'cauchy': (cauchy, [(0, 1), (0, .5), (1, 1), (1, .5), (-1, 1), (-1, .5)]),
             'laplace': (stats.laplace.logpdf, [(0, 1), (0, 2), (1, 1), (1, 2), (-1, 1), (-1, 2)]),
             'chi2': (stats.chi2.logpdf, [(1,), (2,)]),
             'gamma': (lambda x, a, rate: stats.gamma.logpdf(x, a, scale=1/rate), [(.5, 1), (.5, 2), (1, 1), (1, 2), (2, 1), (2, 2)]),
             'exponential': (lambda x, rate: stats.expon.logpdf(x, scale=1/rate), [(.5,), (.75,), (1,), (2,), (3,), (5,)])}
WHOLE_AXIS = 'normal', 'cauchy', 'laplace'


def positive(e, x, name): return inside(e, x, MARGIN, np.inf, lambda x: special.expit(x)*(1 if name == 'chi2' else 0.99) + MARGIN)


def likelihood(name, parameters, logpdf):
    return lambda e: by_function(lambda x: [logpdf(x if name in WHOLE_AXIS else positive(e, x, name), *p) for p in parameters])


for _name, (_logpdf, _parameters) in DENSITIES.items():
    REFERENCES[f'{_name}_expansion'] = likelihood(_name, _parameters, _logpdf)
    REFERENCES[f'naive_{_name}_expansion'] = likelihood(_name, _parameters[:1], _logpdf)


@reference('hybrid_probabilistic_expansion')
def _(e): return by_function(lambda x: [stats.norm.logpdf(x), cauchy(x, 0, 1), *(lambda p: (stats.chi2.logpdf(p, 1), stats.gamma.logpdf(p, .5)))(positive(e, x, 'gamma')), stats.laplace.logpdf(x), stats.expon.logpdf(positive(e, x, 'gamma'))])


# ---- wavelets

def wavelet(name, psi, bounded=False):
    "psi(e, tau) at s scales and t shifts, and products of up to d of these"
    @reference(f'{name}_wavelet_expansion')
    def _(e):
        high = (1 + (e.t - 1)*e.b)*max(1., e.a**(e.s - 1))
        x_of = (lambda x: inside(e, x, 0., high)) if bounded else (lambda x: np.clip(x, -FAR, FAR))
        scales = [(e.a**i, e.b*j) for i in range(e.s) for j in range(e.t)]
        one = by_coordinate(lambda x: [psi(e, x_of(x)/width - shift)/np.sqrt(width) for width, shift in scales])
        return lambda x: powers(one(x), e.d)


def haar(e, tau): return np.select([(0 <= tau) & (tau < 0.5), (0.5 <= tau) & (tau < 1)], [1., -1.], 0.)


def beta(e, tau):
    "The density; a power below 1 goes on in a straight line from 0 to MARGIN, where it would have an infinite slope"
    def power(u, p): return np.where(u < MARGIN, u*MARGIN**(p - 1), np.maximum(u, MARGIN)**p) if 0 < p < 1 else u**p
    u = np.clip(tau, 0, 1)
    bent = ((u < MARGIN) & (1 < e.alpha < 2)) | ((1 - u < MARGIN) & (1 < e.beta < 2))
    straight = np.exp(lgamma(e.alpha + e.beta) - lgamma(e.alpha) - lgamma(e.beta))*power(u, e.alpha - 1)*power(1 - u, e.beta - 1)
    return np.where(tau == u, np.where(bent, straight, stats.beta.pdf(u, e.alpha, e.beta)), 0.)


def ricker(e, tau): # the second derivative of a bell curve
    z = np.clip(tau/e.sigma, -50, 50)
    return -2/(np.sqrt(3*e.sigma)*np.pi**0.25)*special.eval_hermitenorm(2, z)*stats.norm.pdf(z)*np.sqrt(2*np.pi)


def meyer(e, tau):
    "The cosine transform of 1 up to 2 pi/3, and of a quarter of a cosine wave from there to 4 pi/3; far out, its closed form"
    node, weight = special.roots_legendre(200)
    def integral(low, high, f, t):
        w = (high - low)/2*node + (low + high)/2
        return ((high - low)/2*weight*f(w)*np.cos(w*t[..., None])).sum(-1)
    third, near = 2*np.pi/3, np.where(np.abs(tau) < 20, tau, 0.)
    far = np.where(np.abs(tau) < 20, 20., tau)
    inner = (integral(0, third, lambda w: 1 + 0*w, near) + integral(third, 2*third, lambda w: np.cos(np.pi/2*(w/third - 1)), near))/np.pi
    outer = (np.sin(third*far) + 4/3*far*np.cos(2*third*far))/(np.pi*far - 16*np.pi/9*far**3)
    return np.where(np.abs(tau) < 20, inner, outer)


wavelet('haar', haar, bounded=True)
wavelet('beta', beta, bounded=True)
wavelet('ricker', ricker)
wavelet('dog', lambda e, tau: stats.norm.pdf(tau, scale=e.sigma_1) - stats.norm.pdf(tau, scale=e.sigma_2))
wavelet('shannon', lambda e, tau: 2*np.sinc(2*tau) - np.sinc(tau))
wavelet('meyer', meyer)


# ---- reconciliations: (w, n, D) -> (n, D)

def pieces(w, *shapes):
    "Matrices that lie one after another in w"
    ends = np.cumsum([a*b for a, b in shapes])
    return [part.reshape(shape) for part, shape in zip(np.split(w, ends[:-1]), shapes)]


def near_square(k): return max(i for i in range(1, isqrt(k) + 1) if k % i == 0)


def factors(psi, n, D): return psi.p or near_square(n), psi.q or near_square(D)


REFERENCES['identity_reconciliation'] = lambda psi: lambda w, n, D: w.reshape(n, D)
REFERENCES['constant_reconciliation'] = lambda psi: lambda w, n, D: np.full((n, D), float(psi.c))
REFERENCES['one_reconciliation'] = lambda psi: lambda w, n, D: np.ones((n, D))
REFERENCES['zero_reconciliation'] = lambda psi: lambda w, n, D: np.zeros((n, D))
REFERENCES['constant_eye_reconciliation'] = lambda psi: lambda w, n, D: np.eye(n, D)
REFERENCES['masking_reconciliation'] = lambda psi: lambda w, n, D: w.reshape(n, D)*(array(psi.mask) if psi.fixed_mask else psi.p) # a mask that changes: its mean, outside of training
REFERENCES['lorr_reconciliation'] = lambda psi: lambda w, n, D: np.matmul(*pieces(w, (n, psi.r), (psi.r, D)))


@reference('hm_reconciliation')
def _(psi):
    def f(w, n, D):
        p, q = factors(psi, n, D)
        return np.kron(*pieces(w, (p, q), (n//p, D//q)))
    return f


@reference('lphm_reconciliation')
def _(psi):
    def f(w, n, D):
        p, q = factors(psi, n, D)
        A, S, T = pieces(w, (p, q), (n//p, psi.r), (psi.r, D//q))
        return np.kron(A, S @ T)
    return f


@reference('dual_lphm_reconciliation')
def _(psi):
    def f(w, n, D):
        p, q = factors(psi, n, D)
        P, Q, S, T = pieces(w, (p, psi.r), (psi.r, q), (n//p, psi.r), (psi.r, D//q))
        return np.kron(P @ Q, S @ T)
    return f


@reference('image_hm_reconciliation')
def _(psi):
    def f(w, n, D):
        p, q = factors(psi, n, D)
        t = D//q
        h = near_square(q) if psi.shape is None else psi.shape[0]
        width = q//h
        cos = lambda side, i: np.cos(np.pi*i*(np.arange(side) + 0.5)/side)
        C = np.stack([np.outer(cos(h, i)/np.linalg.norm(cos(h, i)), cos(width, j)/np.linalg.norm(cos(width, j))).flatten() for i in range(min(psi.frequencies, h)) for j in range(min(psi.frequencies, width))])
        up, left = min(psi.reach, (h - 1)//2), min(psi.reach, (width - 1)//2)
        columns = [(width*dy + dx - 1) % t for dy in range(-up, up + 1) for dx in range(-left, left + 1)]
        A, B = pieces(w, (p, len(C)), (n//p, len(columns)))
        full = np.zeros((n//p, t))
        for value, column in zip(B.T, columns): full[:, column] += value
        return np.kron(A @ C, full)
    return f


@reference('eigen_reconciliation')
def _(psi):
    def f(w, n, D):
        m = max(m for m in range(D + 1) if m*(m + 1) <= D)
        strengths, V, rest = pieces(w, (n, psi.r), (n*psi.r, m), (n, D - m*m))
        forms = [(v.T @ np.diag(s) @ v).flatten() for s, v in zip(strengths, V.reshape(n, psi.r, m))]
        return np.stack([np.concatenate([a[:m], A, a[m:]]) for A, a in zip(forms, rest)])
    return f


@reference('duplicated_padding_reconciliation')
def _(psi): return lambda w, n, D: np.tile(w.reshape(n//psi.p, -1), (psi.p, psi.q or psi.p))


@reference('duplicated_diagonal_padding_reconciliation')
def _(psi):
    def f(w, n, D):
        p, q = psi.p, psi.q or psi.p
        res = np.zeros((n, D))
        for i in range(min(p, q)): res[i*(n//p):(i + 1)*(n//p), i*(D//q):(i + 1)*(D//q)] = w.reshape(n//p, D//q)
        return res
    return f


@reference('random_matrix_adaption_reconciliation')
def _(psi): return lambda w, n, D: np.diag(w[:n]) @ array(psi.A) @ np.diag(w[n:]) @ array(psi.B)


@reference('hypernet_reconciliation')
def _(psi): return lambda w, n, D: (array(psi.U2) @ special.expit(array(psi.U1) @ w + array(psi.b1)) + array(psi.b2)).reshape(n, D)


@reference('random_matrix_hypernet_reconciliation')
def _(psi): return lambda w, n, D: (array(psi.T) @ array(psi.S).T @ special.expit(array(psi.Q) @ array(psi.P).T @ w)).reshape(n, D)


# ---- remainders: (x, params, n) -> (B, n)

REFERENCES['zero_remainder'] = lambda pi: lambda x, params, n: np.zeros((len(x), n))
REFERENCES['one_remainder'] = lambda pi: lambda x, params, n: np.ones((len(x), n))
REFERENCES['constant_remainder'] = lambda pi: lambda x, params, n: np.full((len(x), n), float(pi.c))
REFERENCES['identity_remainder'] = lambda pi: lambda x, params, n: x
REFERENCES['linear_remainder'] = lambda pi: lambda x, params, n: np.einsum('bm,nm->bn', x, params['weight']) + params.get('bias', 0.)


@reference('expansion_remainder', 'bspline_remainder')
def _(pi): return lambda x, params, n: np.einsum('bd,nd->bn', of(pi.expansion)(x), params['weight']) + params.get('bias', 0.)


# ---- fusions: (arrays (B, n_i), weight or None) -> (B, n)

STATISTICS = {'sum': lambda z: np.sum(z, 0), 'mean': lambda z: np.mean(z, 0), 'prod': lambda z: np.prod(z, 0), 'max': lambda z: np.max(z, 0), 'min': lambda z: np.min(z, 0), 'median': lambda z: np.median(z, 0),
              'variance': lambda z: np.var(z, 0), 'l1_norm': lambda z: np.linalg.norm(z, 1, 0), 'l2_norm': lambda z: np.linalg.norm(z, 2, 0)}

REFERENCES['average_fusion'] = lambda f: lambda z, weight: sum(z)/len(z)
REFERENCES['summation_fusion'] = lambda f: lambda z, weight: sum(z)
REFERENCES['weighted_summation_fusion'] = lambda f: lambda z, weight: sum(a*v for a, v in zip(f.weights, z))
REFERENCES['parameterized_weighted_summation_fusion'] = lambda f: lambda z, weight: sum(a*v for a, v in zip(weight, z))
REFERENCES['metric_fusion'] = lambda f: lambda z, weight: STATISTICS[f.metric](np.stack(z))
REFERENCES['concatenation_fusion'] = lambda f: lambda z, weight: np.hstack(z)
for _name in ('prod', 'max', 'min', 'median', 'l1_norm', 'l2_norm'): REFERENCES[f'{_name}_fusion'] = lambda f, name=_name: lambda z, weight: STATISTICS[name](np.stack(z))


class Settings: # what the reference of a reconciliation asks for
    def __init__(self, **settings): vars(self).update(settings)


def mapped(name, psi, *settings):
    "The concatenation times the matrix that a reconciliation makes of the weight"
    @reference(f'{name}parameterized_concatenation_fusion')
    def _(f):
        def fused(z, weight):
            n, part = f.n or z[0].shape[1], Settings(**{k: getattr(f, k) for k in settings}, **dict(f.psi.named_buffers()))
            z = np.hstack(z)
            return z @ REFERENCES[f'{psi}_reconciliation'](part)(weight.reshape(-1), n, z.shape[1]).T
        return fused


mapped('', 'identity')
mapped('lowrank_', 'lorr', 'r')
mapped('hm_', 'hm', *'pq')
mapped('lphm_', 'lphm', *'pqr')
mapped('dual_lphm_', 'dual_lphm', *'pqr')
mapped('random_matrix_adaption_', 'random_matrix_adaption', 'r')
