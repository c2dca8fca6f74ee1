"Estimators for tables: scikit-learn's own checks, closed forms, weights as repetitions, one minimum, files, and CSV."
import copy
import json
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

pytest.importorskip('sklearn')
from hypothesis import given, settings, strategies as st
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris, load_wine, make_friedman1
from sklearn.ensemble import BaggingClassifier, StackingRegressor
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.multioutput import MultiOutputRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, PolynomialFeatures, StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from tinyrpn.core import *
from tinyrpn.data import DataError
from tinyrpn.estimator import *
from tinyrpn.model import RPN


@pytest.fixture(autouse=True)
def same_dice():
    "The same random numbers whichever tests ran before"
    torch.manual_seed(0)


BOTH = RPNClassifier, RPNRegressor
DIABETES = load_diabetes(return_X_y=True)
WINE = load_wine(return_X_y=True)


def close(a, b, eps): np.testing.assert_allclose(a, b, rtol=0, atol=eps)


def scaled(X): return (X - X.mean(0))/X.std(0)


# scikit-learn's promises

@pytest.mark.parametrize('cls', BOTH)
def test_check_estimator_passes_as_constructed_by_default(cls, tell):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        found = check_estimator(cls(), on_skip=None, on_fail=None)
    assert {r['check_name'] for r in found if r['status'] not in ('passed', 'skipped')} == set()
    assert [r['check_name'] for r in found if r['status'] == 'skipped'] in ([], ['check_array_api_input'])
    assert any('sample_weight_equivalence' in r['check_name'] for r in found) and not any(r['expected_to_fail'] for r in found)
    tell(f'{cls.__name__}: {sum(r["status"] == "passed" for r in found)} checks of scikit-learn passed')


@pytest.mark.slow
@pytest.mark.parametrize('cls', BOTH)
def test_check_estimator_of_adamw_fails_only_what_mini_batches_cannot_keep(cls):
    "As scikit-learn says of its own: batches of weighted samples are not batches of repeated ones"
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        found = check_estimator(cls(solver='adamw', max_iter=60, random_state=0), on_skip=None, on_fail=None, expected_failed_checks={'check_sample_weight_equivalence_on_dense_data': 'mini-batches'})
    assert {r['check_name'] for r in found if r['status'] == 'failed'} == set()


@pytest.mark.parametrize('cls', BOTH)
def test_parameters_are_kept_as_given(cls):
    est = cls(expansion={'name': 'taylor', 'd': 3}, hidden=(4, 5), alpha=np.float64(2), scaler='minmax')
    twin = clone(est)
    assert twin.get_params() == est.get_params() and twin is not est
    assert twin.set_params(alpha=3.).alpha == 3. and 'taylor' in repr(twin)
    with pytest.raises(ValueError, match='Invalid parameter'): twin.set_params(alhpa=1)


# closed forms

@pytest.mark.parametrize('alpha', [0.01, 1., 100.])
def test_identity_expansion_is_ridge_regression(alpha):
    X, y = DIABETES
    Z = scaled(X)
    w = np.linalg.solve(Z.T @ Z + alpha*10*np.eye(10), Z.T @ (y - y.mean())) # scaled inputs have mean |x|^2 = 10
    mine = RPNRegressor(expansion='identity', remainder='zero', alpha=alpha).fit(X, y)
    close(mine.predict(X), y.mean() + Z @ w, 1e-6*y.std())
    close(mine.model_.layers[0].heads[0].weight.detach().numpy().ravel(), w, 1e-5)


def test_weighted_ridge_without_scaler():
    X, y = make_friedman1(60, random_state=0)
    weights = np.random.default_rng(0).uniform(0.1, 3, 60)
    q = np.average((X**2).sum(1), weights=weights)
    mine = RPNRegressor(expansion='identity', remainder='zero', scaler=None, alpha=0.3).fit(X, y, weights)
    close(mine.predict(X), Ridge(0.3*q, tol=1e-12).fit(X, y, weights).predict(X), 1e-6)


@pytest.mark.parametrize('alpha', [0.01, 1.])
def test_identity_expansion_is_logistic_regression(alpha):
    X, y = WINE
    mine = RPNClassifier(expansion='identity', remainder='zero', alpha=alpha).fit(X, y)
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=1/(alpha*13), solver='newton-cg', tol=1e-12, max_iter=1000)).fit(X, y)
    close(mine.predict_proba(X), theirs.predict_proba(X), 1e-6)
    close(mine.decision_function(X) - mine.decision_function(X).mean(1, keepdims=True), theirs.decision_function(X), 1e-5)


def test_two_classes_are_logistic_regression_of_half_the_penalty():
    "Two outputs w and -w have twice the squares of one that is 2w, halved"
    X, y = load_breast_cancer(return_X_y=True)
    mine = RPNClassifier(expansion='identity', remainder='zero', alpha=0.5).fit(X, y)
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=2/(0.5*30), solver='newton-cg', tol=1e-12, max_iter=1000)).fit(X, y)
    close(mine.predict_proba(X), theirs.predict_proba(X), 1e-6)
    assert mine.decision_function(X).shape == (569,) and ((mine.decision_function(X) > 0) == (mine.predict(X) == 1)).all()


def test_default_is_a_kernel_machine():
    "Each part's kernel has a mean diagonal of 1, and the predictions are those of kernel ridge regression"
    X, y = DIABETES
    Z = scaled(X)
    centres = np.linspace(-1, 1, 10)
    kappa = np.concatenate([Z, (Z[:, :, None]*Z[:, None]).reshape(442, -1), np.exp(-(Z[:, :, None] - centres)**2).reshape(442, -1)], 1)
    K = sum(f @ f.T/(f**2).sum(1).mean() for f in (kappa, Z))
    K = K - K.mean(0) - K.mean(1)[:, None] + K.mean()
    theirs = KernelRidge(0.5, kernel='precomputed').fit(K, y - y.mean())
    close(RPNRegressor().fit(X, y).predict(X), theirs.predict(K) + y.mean(), 1e-4)


# one minimum

@pytest.mark.parametrize('cls, data', [(RPNClassifier, WINE), (RPNRegressor, DIABETES)])
def test_seed_order_and_repetition_change_nothing(cls, data):
    X, y = data
    times = np.random.default_rng(1).integers(0, 3, len(X))
    order = np.random.default_rng(2).permutation(np.repeat(np.arange(len(X)), times))
    a, b = cls(random_state=0).fit(X, y, times), cls(random_state=1).fit(X[order], y[order])
    out = (lambda e: e.predict_proba(X)) if cls is RPNClassifier else (lambda e: e.predict(X)/y.std())
    close(out(a), out(b), 1e-7)


@pytest.mark.parametrize('kind', ['standard', 'minmax', 'quantile', None])
def test_scalers_count_weights(kind):
    X, y = load_iris(return_X_y=True)
    times = np.random.default_rng(3).integers(0, 3, len(X))
    a, b = RPNClassifier(scaler=kind, expansion='taylor').fit(X, y, times), RPNClassifier(scaler=kind, expansion='taylor').fit(X.repeat(times, 0), y.repeat(times))
    close(a.predict_proba(X), b.predict_proba(X), 1e-6)


def test_from_anywhere_to_the_same_minimum():
    X, y = WINE
    est = RPNClassifier(warm_start=True).fit(X, y)
    want = est.predict_proba(X)
    torch.manual_seed(0)
    for p in est._core.parameters(): p.data.add_(torch.randn_like(p))
    close(est.fit(X, y).predict_proba(X), want, 1e-6)
    again = est.fit(X, y).n_iter_
    assert again == 1 # it is there already


def test_gradient_at_the_minimum_and_what_a_step_costs():
    "The objective, written down anew, grows in every direction"
    X, y = load_iris(return_X_y=True)
    est = RPNClassifier(expansion='taylor', alpha=0.2).fit(X, y)
    head, Z = est.model_.layers[0].heads[0], torch.tensor(scaled(X))
    kappa = torch.cat([Z, (Z[:, :, None]*Z[:, None]).flatten(1)], 1)
    q, r = (kappa**2).sum(1).mean(), (Z**2).sum(1).mean()
    def value(W, A, b): return (torch.nn.functional.cross_entropy(kappa @ W.T + Z @ A.T + b, torch.tensor(y), reduction='sum') + 0.1*(q*(W**2).sum() + r*(A**2).sum()))/150
    parts = [p.detach().clone().requires_grad_() for p in (head.weight.view(3, -1), head.remainder_params['weight'], head.bias)]
    least = value(*parts)
    assert max(g.abs().max() for g in torch.autograd.grad(least, parts)) < 1e-7
    for seed in range(5):
        torch.manual_seed(seed)
        assert value(*(p + 0.01*torch.randn_like(p) for p in parts)) > least


def test_adamw_comes_near_the_minimum_of_lbfgs():
    X, y = WINE
    exact, batches = RPNClassifier().fit(X, y), RPNClassifier(solver='adamw', learning_rate=0.03, max_iter=100, random_state=0)
    with pytest.warns(ConvergenceWarning, match='max_iter=100'): batches.fit(X, y)
    assert batches.n_iter_ == 100 and abs(batches.predict_proba(X) - exact.predict_proba(X)).max() < 0.05
    X, y = DIABETES
    exact, batches = RPNRegressor().fit(X, y), RPNRegressor(solver='adamw', learning_rate=0.005, tol=1e-6, random_state=0).fit(X, y)
    assert 20 < batches.n_iter_ < 1000 and abs(batches.predict(X) - exact.predict(X)).max() < 0.1*y.std()


@pytest.mark.parametrize('cls, data', [(RPNClassifier, WINE), (RPNRegressor, DIABETES)])
def test_not_converged_is_said(cls, data):
    with pytest.warns(ConvergenceWarning, match=r'max_iter=3\) at a gradient'): est = cls(max_iter=3).fit(*data)
    assert est.n_iter_ == 3
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert 3 < cls().fit(*data).n_iter_ < 500


def test_minimise_goes_down_a_bent_valley():
    "Rosenbrock's function: lower with every look, and at the end to the last digits"
    def f(v):
        v.grad = None
        value = 1e12*((1 - v[0])**2 + 100*(v[1] - v[0]**2)**2)
        value.backward()
        return value.detach()
    seen, start = [], torch.tensor([-1.2, 1.], dtype=torch.float64)
    v, n, gradient = minimise(f, start, 500, 1e-10, lambda n, value, g: seen.append(value))
    close(v, 1, 1e-9)
    assert 20 < n < 100 and gradient <= 1e-10 and seen == sorted(seen, reverse=True)
    few, n, _ = minimise(f, start, 20, 1e-10) # stopped halfway: the last and lowest point, not the flattest
    assert n == 20 and 0 < f(few.requires_grad_())/1e12 < seen[0]


# inputs of all kinds

def test_data_frames_keep_their_names():
    pd = pytest.importorskip('pandas')
    X, y = load_iris(return_X_y=True, as_frame=True)
    est = RPNClassifier().fit(X, y.map({0: 'a', 1: 'b', 2: 'c'}).astype('category'))
    assert list(est.feature_names_in_) == list(X.columns) and list(est.classes_) == ['a', 'b', 'c'] and set(est.predict(X)) == {'a', 'b', 'c'}
    with pytest.raises(ValueError, match='feature names'): est.predict(X[X.columns[::-1]])
    with pytest.raises(ValueError, match='NaN'): est.predict(X.mask(X > 7))
    close(est.predict_proba(X), RPNClassifier().fit(X.to_numpy(), y).predict_proba(X.to_numpy()), 1e-12)
    regressor = RPNRegressor().fit(X, pd.Series(range(150)))
    assert regressor.predict(X.astype('float32')).dtype == np.float64


@pytest.mark.parametrize('labels', [['no', 'yes', 'maybe'], [True, False, True], [-1, 1, 5], [2., 3., 7.], np.array(['x', 'y', 'z'], object)], ids=repr)
def test_labels_of_any_kind_come_back(labels):
    X, y = load_iris(return_X_y=True)
    given_ = np.asarray(labels)[y]
    est = RPNClassifier().fit(X, given_)
    assert est.predict(X).dtype == given_.dtype and set(est.predict(X)) <= set(given_) and est.score(X, given_) > 0.6
    assert (est.classes_ == np.unique(given_)).all()


@pytest.mark.parametrize('weights', ['balanced', {0: 1., 1: 5., 2: 0.5}])
def test_class_weights_multiply_sample_weights(weights):
    X, y = load_iris(return_X_y=True)
    X, y = X[20:], y[20:]
    each = {0: 130/(3*30), 1: 130/(3*50), 2: 130/(3*50)} if weights == 'balanced' else weights
    a, b = RPNClassifier(class_weight=weights).fit(X, y), RPNClassifier().fit(X, y, np.vectorize(each.get)(y))
    close(a.predict_proba(X), b.predict_proba(X), 1e-7)


def test_several_outputs_are_one_by_one():
    X, y = DIABETES
    Y = np.stack([y, 1000 - 3*y, np.ones(442)], 1)
    both = RPNRegressor().fit(X, Y)
    single = MultiOutputRegressor(RPNRegressor()).fit(X, Y)
    assert both.predict(X).shape == (442, 3) and RPNRegressor().fit(X, y[:, None]).predict(X).shape == (442, 1)
    close(both.predict(X), single.predict(X), 1e-4)
    close(both.predict(X)[:, 2], 1, 1e-9)


@settings(max_examples=15, deadline=None)
@given(scale=st.floats(1e-6, 1e6), shift=st.floats(-1e6, 1e6), which=st.booleans())
def test_units_change_nothing(scale, shift, which):
    "Neither those of the inputs nor those of the target"
    X, y = DIABETES
    X, y = X[:60], y[:60]
    want = scaled(RPNRegressor(expansion='taylor').fit(X, y).predict(X))
    got = RPNRegressor(expansion='taylor').fit(X*scale + shift*scale, y).predict(X*scale + shift*scale) if which and abs(shift) < 100 else RPNRegressor(expansion='taylor').fit(X, y*scale + shift*scale*1e-3).predict(X)
    close(scaled(got), want, 1e-4)


def test_constant_and_repeated_columns():
    X, y = WINE
    more = np.column_stack([X, np.full(len(X), 7.), X[:, 0]])
    est = RPNClassifier().fit(more, y)
    assert np.isfinite(est.predict_proba(more)).all() and est.score(more, y) > 0.98
    assert np.isfinite(RPNRegressor().fit(np.ones((5, 2)), np.arange(5.)).predict(np.ones((2, 2)))).all()


# refusals

@pytest.mark.parametrize('params, says', [
    (dict(alpha=-1), 'alpha=-1'), (dict(alpha='x'), "alpha='x'"), (dict(alpha=float('nan')), 'alpha=nan'), (dict(tol=0), 'tol=0'), (dict(max_iter=0), 'max_iter=0'), (dict(max_iter=2.5), 'max_iter=2.5'),
    (dict(solver='sgd'), "solver='sgd'"), (dict(batch_size=0), 'batch_size=0'), (dict(learning_rate=0), 'learning_rate=0'), (dict(validation_fraction=1), 'validation_fraction=1'),
    (dict(hidden=(0,)), 'dims'), (dict(hidden='x'), "hidden='x'"), (dict(scaler='normal'), "kind='normal'"), (dict(layers=[]), 'layers=[]'), (dict(layers=[{'n': 3}]), 'expansion is missing'), (dict(expansion=()), 'expansion'), (dict(hidden=5), 'hidden=5')])
@pytest.mark.parametrize('cls', BOTH)
def test_bad_parameters_are_value_errors_of_ours(cls, params, says):
    with pytest.raises(TinyRPNError) as e: cls(**params).fit(*WINE)
    assert says in str(e.value) and isinstance(e.value, ValueError) and '\n' not in str(e.value)


def test_names_that_do_not_exist():
    with pytest.raises(UnknownNameError, match="Did you mean 'taylor"): RPNClassifier(expansion='tailor').fit(*WINE)
    with pytest.raises(DeviceError): RPNClassifier(device='cuda:99').fit(*WINE)


def test_too_large_is_refused_before_it_is_tried():
    X = np.random.default_rng(0).normal(size=(4, 3000))
    with pytest.raises(TooLargeError): RPNClassifier(expansion={'name': 'taylor', 'd': 3}).fit(X, [0, 1, 0, 1])


@pytest.mark.parametrize('cls', BOTH)
def test_bad_data_are_value_errors(cls):
    X, y = WINE
    bad = X.copy(); bad[3, 4] = np.nan
    for args in ((bad, y), (X[:, :0], y), (X[0], y), (X, y[:5]), (X[:0], y[:0]), (X, y, -np.ones(len(y))), (X, y, np.ones(3)), (X, y, np.zeros(len(y)))):
        with pytest.raises(ValueError): cls().fit(*args)
    with pytest.raises(NotFittedError): cls().predict(X)
    with pytest.raises(ValueError, match='features'): cls().fit(X, y).predict(X[:, :5])


def test_classes_are_checked():
    X, y = WINE
    with pytest.raises(ValueError, match='1 class'): RPNClassifier().fit(X, np.zeros(len(X)))
    with pytest.raises(ValueError, match='1 class'): RPNClassifier().fit(X, y, (y == 1).astype(float))
    with pytest.raises(ValueError, match='continuous'): RPNClassifier().fit(X, X[:, 0])
    with pytest.raises(ParameterError, match='must be equal'): RPNClassifier(warm_start=True).fit(X, y).fit(X, np.where(y == 2, 5, y))
    with pytest.raises(ParameterError, match='warm_start=True'): RPNClassifier(warm_start=True).fit(X, y).fit(X[:, :5], y)
    assert list(RPNClassifier().fit(X, y, (y != 2).astype(float)).classes_) == [0, 1] # what counts as absent is absent


# other solvers and models

def test_partial_fit():
    X, y = WINE
    assert not hasattr(RPNClassifier(), 'partial_fit') and not hasattr(RPNRegressor(), 'partial_fit')
    est = RPNClassifier(solver='adamw', random_state=0)
    with pytest.raises(ParameterError, match='classes=None'): est.partial_fit(X, y)
    est.partial_fit(X[:50], y[:50], classes=[0, 1, 2]) # all of one class
    for _ in range(15): est.partial_fit(X, y)
    assert est.n_iter_ == 16 and est.score(X, y) > 0.95
    with pytest.raises(ParameterError, match='found the label 9'): est.partial_fit(X[:2], [0, 9])
    with pytest.raises(ParameterError, match='must be equal'): est.partial_fit(X, y, classes=[0, 1])
    copied = pickle.loads(pickle.dumps(est)).partial_fit(X, y)
    assert copied.score(X, y) > 0.95
    regressor = RPNRegressor(solver='adamw', random_state=0)
    for _ in range(20): regressor.partial_fit(*DIABETES)
    assert regressor.score(*DIABETES) > 0.4


@pytest.mark.parametrize('cls, data', [(RPNClassifier, WINE), (RPNRegressor, DIABETES)])
def test_early_stopping_repeats_itself_and_leaves_the_dice(cls, data):
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    fits = [cls(solver='adamw', early_stopping=True, n_iter_no_change=3, random_state=5).fit(*data) for _ in range(2)]
    assert fits[0].n_iter_ == fits[1].n_iter_ < 300 and (fits[0].predict(data[0]) == fits[1].predict(data[0])).all()
    rows = fits[0].history_['test_loss']
    assert rows.index(min(rows)) == len(rows) - 4 # three epochs after the best
    assert (torch.get_rng_state() == state[0]).all() and (np.random.get_state()[1] == state[1]).all()


def test_layers_in_between():
    X, y = DIABETES
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', ConvergenceWarning)
        deep = RPNRegressor(hidden=(5,), expansion='bspline', scaler='minmax', max_iter=100, random_state=0).fit(X, y)
        low = RPNRegressor(layers=[{'n': 4, 'expansion': 'taylor', 'reconciliation': {'name': 'lorr', 'r': 1}, 'output': 'Tanh'}, {'expansion': 'identity', 'bias': True}], max_iter=100, random_state=0).fit(X, y)
        assert [l.n for l in deep.model_.layers] == [5, 1] and [l.n for l in low.model_.layers] == [4, 1] and deep.score(X, y) > 0.55 and low.score(X, y) > 0.45
        before = deep.score(X, y)
        assert deep.set_params(warm_start=True).fit(X, y).score(X, y) > before
        end = RPNRegressor(layers=[{'expansion': 'taylor', 'output': 'Sigmoid'}], max_iter=50, random_state=0).fit(X, y)
        assert [l.n for l in end.model_.layers] == [1, 1] # the target's scale has a layer of its own
        assert abs(end.predict(X) - y).mean() < 2*y.std()
    assert not is_convex(deep.model_) and is_convex(RPNRegressor().fit(X, y).model_)


def test_expansions_in_all_notations():
    X, y = WINE
    from tinyrpn.expansion import TaylorExpansion
    same = [RPNClassifier(expansion=e).fit(X, y).predict_proba(X) for e in ('taylor', ('taylor',), {'name': 'taylor', 'd': 2}, TaylorExpansion(2))]
    for s in same: close(s, same[0], 1e-9)


# in company

def test_pipeline_search_bagging_and_stacking():
    X, y = WINE
    search = GridSearchCV(make_pipeline(MinMaxScaler(), RPNClassifier(scaler=None, tol=1e-5)), {'rpnclassifier__alpha': [0.01, 0.1], 'rpnclassifier__expansion': ['identity', 'taylor', {'name': 'taylor', 'd': 1}]}, cv=3).fit(X, y)
    assert search.best_score_ > 0.95
    assert BaggingClassifier(RPNClassifier(tol=1e-4), 3, random_state=0).fit(X, y).score(X, y) > 0.98
    assert StackingRegressor([('a', RPNRegressor(tol=1e-4)), ('b', Ridge())], cv=2).fit(*DIABETES).score(*DIABETES) > 0.4
    assert cross_val_score(RPNClassifier(), X, y, cv=3, scoring='neg_log_loss').mean() > -0.15


def test_diagram_shows_parameters_and_links_here():
    html = RPNClassifier(alpha=0.25).fit(*WINE)._repr_html_()
    assert 'RPNClassifier' in html and '0.25' in html and 'tables.html' in html and 'scikit-learn.org/stable/modules/generated/tinyrpn' not in html


# files

def test_save_and_load(tmp_path):
    X, y = WINE
    est = RPNClassifier().fit(X, np.array(['soft', 'dry', 'sour'])[y])
    est.save(tmp_path/'wine.safetensors')
    back, model = RPNClassifier.load(tmp_path/'wine.safetensors'), RPN.load(tmp_path/'wine.safetensors')
    assert (back.predict_proba(X) == est.predict_proba(X)).all() and (back.predict(X) == est.predict(X)).all() and back.n_features_in_ == 13
    assert model.signature.classes == ['dry', 'soft', 'sour'] and repr(model.scaler) == 'InputScaler(standard)'
    close(model(torch.tensor(X)).softmax(1).detach(), est.predict_proba(X), 1e-12)
    assert clone(back).fit(X, y).score(X, y) > 0.98
    close(clone(back).fit(X, y).predict_proba(X), RPNClassifier().fit(X, y).predict_proba(X), 1e-9)
    with pytest.raises(FileError): RPNClassifier.load(tmp_path/'none.safetensors')
    with pytest.raises(NotFittedError): RPNClassifier().save(tmp_path/'x.safetensors')


def test_labels_that_are_numbers_come_back_as_such(tmp_path):
    X, y = WINE
    RPNClassifier().fit(X, y - 1).save(tmp_path/'a.safetensors')
    assert RPNClassifier.load(tmp_path/'a.safetensors').classes_.tolist() == [-1, 0, 1]
    assert RPNClassifier.load(tmp_path/'a.safetensors', classes=['u', 'v', 'w']).classes_.tolist() == ['u', 'v', 'w']
    with pytest.raises(ParameterError, match='3 labels are needed'): RPNClassifier.load(tmp_path/'a.safetensors', classes=[1])


def test_pickled_twin_predicts_alike():
    for est, (X, y) in ((RPNClassifier(), WINE), (RPNRegressor(solver='adamw', max_iter=3), DIABETES)):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', ConvergenceWarning)
            est.fit(X, y)
        for twin in (pickle.loads(pickle.dumps(est)), copy.deepcopy(est)): assert (twin.predict(X) == est.predict(X)).all()


def test_nothing_else_imports_scikit_learn():
    code = "import sys; sys.modules['sklearn'] = None; import tinyrpn.all\ntry: import tinyrpn.estimator\nexcept ImportError as e: print(e)"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0 and "pip install 'tinyrpn[sklearn]'" in done.stdout, done.stderr


# CSV

def table(tmp_path, text, name='t.csv'):
    (tmp_path/name).write_text(text, encoding='utf-8')
    return tmp_path/name


def test_csv_round_trip(tmp_path):
    X, y = load_iris(return_X_y=True)
    rows = [f'{a!r},{b!r},{"" if i else "big"}{"small" if i else ""},{("x", "y", "z")[k]}' for i, (a, b, k) in enumerate(zip(X[:, 0].tolist(), X[:, 2].tolist(), y))]
    path = table(tmp_path, 'sepal,petal,size,kind\n' + '\n'.join(rows) + '\n')
    found = read_table(path, 'kind')
    assert (found.x[:, :2] == X[:, [0, 2]]).all() and found.columns.names == ['sepal', 'petal', 'size=big', 'size=small'] and (found.x[:, 2] == (np.arange(150) == 0)).all()
    assert (found.y == np.array(['x', 'y', 'z'])[y]).all() and found.columns.classes == ['x', 'y', 'z']
    run = learn_table(path, 'kind', folds=3)
    assert run.scores.mean() > 0.9 and 'accuracy' in repr(run) and 'RPNClassifier of kind from 4 inputs' in repr(run)
    run.estimator.save(tmp_path/'m.safetensors'); run.columns.save(tmp_path/'c.json')
    new = table(tmp_path, 'size,petal,sepal\nsmall,1.4,5.0\nsmall,6.0,6.5\n', 'new.csv') # in another order, without the target
    assert predict_table(tmp_path/'m.safetensors', Columns.load(tmp_path/'c.json'), new).tolist() == ['x', 'z']


@pytest.mark.parametrize('text, kwargs, says', [
    ('a,y\n1,2\n,3\n', {}, "column 'a', line 3: the entry is missing"), ('a,y\n1,2\nNA,3\n', {}, "column 'a', line 3: the entry is missing"), ('a,y\nu,2\n?,3\n', {}, "column 'a', line 3: the entry is missing"),
    ('a,y\n1,2\n2,nan\n', {}, "column 'y', line 3: the target is missing"), ('a,y\n1,2\n2\n', {}, 'line 3: 1 entries'), ('a,y\n1,2\n2,3,4\n', {}, 'line 3: 3 entries'),
    ('a,y,a\n1,2,3\n', {}, "the column 'a' twice"), ('a,,y\n1,2,3\n', {}, 'must name each column'), ('a,y\n', {}, 'no rows'), ('a,z\n1,2\n', {}, "no column 'y'"),
    ('a,y\n' + '1,2\n'*30 + 'l,2\n', {}, "column 'a', line 32: found 'l'"), ('a,y\n' + '1,2\n'*30 + 'inf,2\n', {}, "line 32: found 'inf'"), ('a,y\n,1\n,2\n', {}, "column 'a': all entries are missing"),
    ('a,y\n' + ''.join(f't{i},1\n' for i in range(101)), {}, '101 different texts'), ('y\n1\n', {}, 'no column beside'), ('a,y\n1,x\n2,y\n', {'task': 'regression'}, 'texts cannot be predicted'),
    ('a,y\n"1,2\n', {}, 'line 2: '), ('a,y\n1,2\n', {'drop': ['b']}, "no column 'b'")])
def test_csv_mistakes_are_named(tmp_path, text, kwargs, says):
    path = table(tmp_path, text)
    with pytest.raises(DataError) as e: read_table(path, 'y', **kwargs)
    assert says in str(e.value) and 't.csv' in str(e.value) and '\n' not in str(e.value)


def test_csv_imputed_and_other_separators(tmp_path):
    for mark in ';\t,':
        found = read_table(table(tmp_path, f'a{mark}b{mark}y\n1{mark}u{mark}1\n\n{mark}{mark}2\n9{mark}v{mark}3\n'), 'y', missing='impute', task='regression')
        assert found.x.tolist() == [[1, 1, 0], [5, 0, 0], [9, 0, 1]] and found.y.tolist() == [1, 2, 3] and found.columns.classes is None
    with pytest.raises(ParameterError, match="missing='zero'"): read_table(tmp_path/'t.csv', 'y', missing='zero')
    with pytest.raises(ParameterError, match="task='x'"): read_table(tmp_path/'t.csv', 'y', task='x')


@pytest.mark.parametrize('text, says', [('a,y\nred,1\n', "column 'a', line 2: found 'red'; one of ['blue', 'green']"), ('b,y\n1,1\n', "no column 'a'"), ('a,y\nblue,7\n', "column 'y', line 2: found '7'; one of [1, 2]")])
def test_another_table_must_fit(tmp_path, text, says):
    columns = read_table(table(tmp_path, 'a,y\nblue,1\ngreen,2\n'), 'y').columns
    with pytest.raises(DataError) as e: read_table(table(tmp_path, text, 'u.csv'), like=columns)
    assert says in str(e.value)


def test_columns_file_is_checked(tmp_path):
    (tmp_path/'c.json').write_text(json.dumps({'kinds': {}, 'colour': 1}))
    with pytest.raises(FileError, match='does not describe columns'): Columns.load(tmp_path/'c.json')
