"Searches for tables: the same with one process, taken up, shared out, killed, stored by strangers; every configuration that can be proposed"
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import asdict
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import yaml

optuna = pytest.importorskip('optuna')
pytest.importorskip('sklearn')
from sklearn.datasets import load_breast_cancer, load_iris, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import KFold, cross_val_score

import tinyrpn.tuning as tuning
from tinyrpn.core import *
from tinyrpn.estimator import *
from tinyrpn.tuning import *
from tinyrpn.tuning import Fixed, Tickets, begin_study, held, load_task, quiet, save_task, split_task

DICE = np.random.default_rng(0)
X = DICE.normal(size=(60, 3)); Y = X[:, 0]*X[:, 1] + X[:, 2] + 0.1*DICE.normal(size=60)
SPACE = Space(expansion=['identity', {'name': 'taylor', 'd': [2, 3]}, {'name': 'bspline', 't': [4, 8]}], reconciliation=['identity', {'name': 'lorr', 'r': [1, 2]}], hidden=[[], [3]], scaler=['standard', 'minmax'], fixed={'max_iter': 30, 'tol': 1e-3})
SLOW = Space(**{**asdict(SPACE), 'expansion': [{'name': 'taylor', 'd': 3}], 'hidden': [[8]], 'reconciliation': ['identity'], 'fixed': {'max_iter': 150, 'tol': 1e-12}}) # trials of half a second or so
ONE = dict(space=SPACE, folds=2, processes=1, progress=False)


def history(t, failed=False): return [(f.params, f.state.name, f.value) for f in t.study.trials if failed or f.state.name != 'FAIL']
def finished(t): return t.count('COMPLETE') + t.count('PRUNED')


def kill_in_trial(path, first, sign=signal.SIGKILL):
    "End a process in the middle of a trial, the `first` or a later one"
    while True:
        time.sleep(0.02)
        try: running = [t for t in load_study(path).get_trials(deepcopy=False) if t.state.name == 'RUNNING' and t.number >= first and 'process' in t.user_attrs]
        except (TinyRPNError, OSError): continue
        for t in running:
            try:
                p = psutil.Process(t.user_attrs['process']); p.suspend()
                if load_study(path).trials[t.number].state.name == 'RUNNING' and not Path(f'{path}.lock').exists(): p.send_signal(sign); p.resume() if sign != signal.SIGKILL else None; return p.pid
                p.resume()
            except psutil.NoSuchProcess: pass


# ---- one process

def test_one_process_finds_the_same_however_often_it_is_stopped(tell):
    a = tune(X, Y, 'a.log', trials=12, **ONE)
    for trials in (1, 6, 12): b = tune(X, Y, 'b.log', trials=trials, **ONE)
    assert history(a) == history(b) and finished(a) == 12 and len({str(p) for p, _, _ in history(a)}) == 12
    assert a.test == b.test and np.array_equal(a.estimator.predict(X), b.estimator.predict(X))
    other = tune(X, Y, 'a.log', 'other', trials=2, **{**ONE, 'seed': 1})
    assert history(other) != history(a)[:2]
    tell(f'one process: {a.trial_counts()}, R2 {a.best.value:.3f}, held out {a.test:.3f}')


def test_the_total_is_in_all():
    t = tune(X, Y, trials=3, **ONE)
    assert finished(t) == 3 and Path('study.log').is_file()
    before = Path('study.log').read_bytes()
    assert finished(tune(X, Y, trials=2, **ONE)) == 3 and Path('study.log').read_bytes() == before
    t = tune(X, Y, trials=20, seconds=1e-9, **ONE)
    assert finished(t) == 3 and 'out of time; the same call goes on' in repr(t)
    lines = [json.loads(line) for line in Path('study.log').read_text().splitlines()]
    assert all('op_code' in line for line in lines)


def test_the_refit_equals_what_was_measured():
    for data, scoring in ((load_iris(return_X_y=True), 'balanced_accuracy'), ((X, Y), None), ((X, Y > 0), 'neg_log_loss')):
        t = tune(*data, f'{scoring}.log', trials=6, scoring=scoring, test=0, **ONE)
        assert list(t.task.scores(t.task.estimator(**t.parameters))) == list(t.scores) and t.best.value == sum(t.scores)/2
        again = yaml.safe_load(t.to_yaml())
        assert t.test is None and np.array_equal((type(t.estimator))(**again).fit(*data).predict(data[0]), t.estimator.predict(data[0]))


def test_scores_are_those_of_scikit_learn():
    task = Task(X, Y, True, SPACE, folds=4, seed=3)
    e = task.estimator(expansion='taylor')
    assert np.allclose(list(task.scores(e)), cross_val_score(e, X, Y, cv=KFold(4, shuffle=True, random_state=3)), atol=1e-12)


def test_labels_of_text_and_frames():
    pd = pytest.importorskip('pandas')
    iris = load_iris(as_frame=True)
    t = tune(iris.data, iris.target_names[iris.target], trials=2, **ONE)
    assert set(t.estimator.predict(iris.data)) == {'setosa', 'versicolor', 'virginica'} and t.columns.names == list(iris.data.columns)
    assert 0 < t.test <= 1 and t.columns.classes == ['setosa', 'versicolor', 'virginica']
    t.save('out')
    iris.data.to_csv('iris.csv', index=False)
    said = subprocess.run([sys.executable, '-m', 'tinyrpn', 'predict', 'out/model.safetensors', 'iris.csv'], capture_output=True, text=True)
    assert said.stdout.splitlines()[1:] == list(t.estimator.predict(iris.data)), said.stderr
    assert sorted(os.listdir('out')) == ['columns.json', 'model.safetensors', 'parameters.yaml']


def test_global_state_stays():
    level, threads, dice, filters = optuna.logging.get_verbosity(), torch.get_num_threads(), random_state(), list(warnings.filters)
    tune(X, Y, trials=2, **ONE)
    after = random_state()
    assert (optuna.logging.get_verbosity(), torch.get_num_threads(), warnings.filters) == (level, threads, filters)
    assert torch.equal(after['torch'], dice['torch']) and after['python'] == dice['python'] and (after['numpy'][1] == dice['numpy'][1]).all()


# ---- several processes, and their ends

def test_two_processes_share_a_study_and_a_killed_one_loses_nothing(tell):
    killed = []
    thread = threading.Thread(target=lambda: killed.append(kill_in_trial('study.log', 2)), daemon=True); thread.start()
    shared = dict(space=SPACE, folds=3, progress=False)
    with pytest.warns(UserWarning, match=r'process \d+ ended with -9; the others did its trials'): t = tune(X, Y, trials=8, processes=2, **shared)
    thread.join(10)
    states = [f.state.name for f in t.study.trials]
    assert finished(t) == 8 and states.count('FAIL') == 1 and states.count('RUNNING') == 0
    assert {f.user_attrs['process'] for f in t.study.trials if f.state.name == 'FAIL'} == set(killed) and os.getpid() not in killed
    assert len({str(f.params) for f in t.study.trials}) >= 8
    before = history(t, failed=True)
    t = tune(X, Y, trials=11, processes=1, **shared) # taken up by this process
    assert finished(t) == 11 and history(t, failed=True)[:len(before)] == before
    tell(f'two processes, one killed: {t.trial_counts()}')


CHILD = '''
import sys
from dataclasses import asdict
sys.path.insert(0, {tests!r})
from test_tuning import *
t = tune(X, Y, trials=40, processes={processes}, space=SLOW, folds=2, progress=False)
print(t)
'''


def child(processes): return subprocess.Popen([sys.executable, '-c', CHILD.format(tests=str(Path(__file__).parent), processes=processes)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.skipif(os.name == 'nt', reason='signals')
def test_killed_as_a_whole_then_taken_up():
    p = child(1)
    try: kill_in_trial('study.log', 1)
    finally: p.kill(); p.communicate()
    left = [t.state.name for t in load_study('study.log').trials]
    assert left.count('RUNNING') == 1 and len(left) >= 2
    whole = sum(s != 'RUNNING' for s in left)
    t = tune(X, Y, trials=whole + 1, processes=1, space=SLOW, folds=2, progress=False)
    assert finished(t) == whole + 1 and t.count('FAIL') == 1 and t.count('RUNNING') == 0
    last = t.study.trials
    assert last[whole].state.name == 'FAIL' and last[whole + 1].params == last[whole].params # it is tried once more


@pytest.mark.skipif(os.name == 'nt', reason='signals')
def test_interrupted_softly(monkeypatch):
    real, count = tuning.run_trial, []
    def third(*args):
        count.append(1)
        if len(count) == 3: raise KeyboardInterrupt
        real(*args)
    monkeypatch.setattr(tuning, 'run_trial', third)
    t = tune(X, Y, trials=9, **ONE)
    assert finished(t) == 2 and 'stopped by hand; the same call goes on' in repr(t)
    monkeypatch.setattr(tuning, 'run_trial', lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(TuningError, match='no trial came to its end.*stopped by hand'): tune(X, Y, 'new.log', trials=2, **ONE)
    monkeypatch.setattr(tuning, 'run_trial', real)
    assert finished(tune(X, Y, trials=4, **ONE)) == 4


@pytest.mark.slow
@pytest.mark.skipif(os.name == 'nt', reason='signals')
def test_interrupted_with_processes_at_work():
    p = child(2)
    while not Path('study.log').exists() or sum(t.state.name == 'COMPLETE' for t in load_study('study.log').trials) < 2: time.sleep(0.1); assert p.poll() is None
    members = psutil.Process(p.pid).children()
    p.send_signal(signal.SIGINT)
    out, err = p.communicate(timeout=60)
    assert p.returncode == 0 and 'stopped by hand; the same call goes on' in out, err
    assert len(members) == 2 and not any(m.is_running() and m.status() != psutil.STATUS_ZOMBIE for m in members)
    assert not [t for t in load_study('study.log').trials if t.state.name == 'RUNNING']


@pytest.mark.slow
def test_no_process_is_left(monkeypatch):
    monkeypatch.setenv('PYTHONSTARTUP', ''); monkeypatch.setattr(tuning.sys, 'executable', '/bin/false')
    if os.name == 'nt' or not Path('/bin/false').exists(): pytest.skip('no /bin/false here')
    with pytest.raises(TuningError, match=r'no process is left \(process \d+ ended with 1\); what was found so far is in study.log'): tune(X, Y, trials=4, space=SPACE, folds=3, progress=False)


def test_a_second_search_in_the_file_is_refused():
    with held('study.log'), pytest.raises(FileError, match='study.log is in use by another search'): tune(X, Y, trials=2, **ONE)
    assert finished(tune(X, Y, trials=2, **ONE)) == 2


def test_what_processes_are_told_comes_back(tmp_path):
    data = as_table(*load_wine(return_X_y=True))
    task, apart = split_task(data, Space(), 0.25, folds=3, scoring='balanced_accuracy', seed=4)
    save_task(task, tmp_path); back = load_task(tmp_path)
    assert np.array_equal(back.x, task.x) and np.array_equal(back.y, task.y) and {k: v for k, v in vars(back).items() if k not in 'xy'} == {k: v for k, v in vars(task).items() if k not in 'xy'}
    assert len(task.x) + len(apart[0]) == 178 and not {map(tuple, task.x)} & {map(tuple, apart[0])}


# ---- what is stored

def test_another_table_space_or_setting_is_refused():
    tune(X, Y, trials=2, **ONE)
    for what, change in {'table': dict(table=X + 1e-9), 'table ': dict(target=Y[::-1].copy()), 'space': dict(space=Space(**{**asdict(SPACE), 'remainder': ['zero']})), 'settings': dict(seed=1, table=X), 'settings ': dict(scoring='neg_mean_absolute_error'), 'settings  ': dict(folds=4)}.items():
        with pytest.raises(TuningError, match=f"study.log holds a study 'tuning' of (another|other) ({what.strip()}|table) .*give another name or another file") as e: tune(**{'table': X, 'target': Y, 'trials': 3, **ONE, **change})
        assert '\n' not in str(e.value)
    assert finished(tune(X, Y, trials=2, **ONE)) == 2
    assert finished(tune(X + 1, Y, name='another', trials=2, **ONE)) == 2 # beside it


@pytest.mark.parametrize('text', ["cos\nsystem\n(S'touch hacked'\ntR.", b'\x80\x04\x95\x20\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x0ctouch hacked\x94\x85\x94R\x94.\n{}\n', '{"op_code": "__import__(\'os\').system(\'touch hacked\')"}\n{}\n', '{"op_code": 0, "worker_id": "a", "study_name": "tuning", "directions": ["__import__"]}\n', '[]\n[]\n', '{"op_code": 5}\n', '['*100_000 + '\n' + '\n', '{"op_code": 4, "worker_id": "x", "study_id": 0}\n{"op_code": 99, "worker_id": "x"}\n', '!!python/object/apply:os.system ["touch hacked"]\n\n'], ids=range(9))
def test_a_hostile_journal_executes_nothing(text):
    Path('study.log').write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(TinyRPNError) as e: tune(X, Y, trials=2, **ONE)
    assert 'study.log' in str(e.value) and '\n' not in str(e.value) and len(str(e.value)) < 600
    assert not Path('hacked').exists()


def stored(change):
    "The journal of a search with its lines changed"
    tune(X, Y, trials=3, **ONE)
    lines = [json.loads(line) for line in Path('study.log').read_text().splitlines()]
    for line in lines: change(line)
    Path('study.log').write_text('\n'.join(map(json.dumps, lines)) + '\n')


def put(op, key, value):
    def change(line):
        if line['op_code'] == op and (key in line or key in line.get('user_attr', {})): (line if key in line else line['user_attr'])[key] = value
    return change


@pytest.mark.parametrize('change', [put(8, 'scores', [9., 9.]), put(8, 'scores', 'x'), put(8, 'parameters', None), put(6, 'values', [7.]), put(5, 'param_name', '__class__'), put(5, 'distribution', '{"name": "CategoricalDistribution", "attributes": {"choices": ["os.system"]}}'), put(5, 'param_value_internal', 10**9), put(2, 'table', [])], ids=range(8))
def test_trials_that_the_space_does_not_hold_are_refused(change):
    stored(change)
    with pytest.raises(TinyRPNError) as e: tune(X, Y, trials=4, **ONE)
    assert 'study.log' in str(e.value) and '\n' not in str(e.value)


def test_a_line_that_was_cut_short_is_taken_back():
    before = history(tune(X, Y, trials=3, **ONE))
    with open('study.log', 'a') as f: f.write('{"op_code":6,"worker_id":"x","tri')
    t = tune(X, Y, trials=5, **ONE)
    assert history(t)[:3] == before and finished(t) == 5
    Path('mine.txt').write_text('a letter of mine')
    with pytest.raises(FileError, match='mine.txt'): tune(X, Y, 'mine.txt', trials=1, **ONE)
    assert Path('mine.txt').read_text() == 'a letter of mine'


def test_sqlite_does_as_well():
    a = tune(X, Y, 'sqlite:///study.db', trials=5, **ONE)
    assert history(a) == history(tune(X, Y, 'study.log', trials=5, **ONE)) and Path('study.db').is_file()
    assert finished(tune(X, Y, 'sqlite:///study.db', trials=6, **ONE)) == 6 and len(load_study('sqlite:///study.db').trials) == 6
    Path('bad.db').write_text('no database'*100)
    with pytest.raises(FileError, match='bad.db holds no study of optuna'): tune(X, Y, 'sqlite:///bad.db', trials=1, **ONE)


# ---- refusals

@pytest.mark.parametrize('change, says', [
    (dict(trials=0), 'trials=0'), (dict(processes=0), 'processes=0'), (dict(folds=1), 'folds=1'), (dict(seed=-1), 'seed=-1'), (dict(test=1), 'test=1'), (dict(seconds=0), 'seconds=0'), (dict(sampler='grid'), "'tpe' or 'random' is needed"),
    (dict(scoring='acuracy'), "Did you mean 'accuracy'?"), (dict(folds=60), 'folds=60: the table has 60 rows'), (dict(target=[0]*57 + [1]*3), 'folds=2: the smallest class has 3 rows'), (dict(target=['a']*60), 'there is only the class'),
    (dict(target=Y[:9]), r'target of shape \(9,\)'), (dict(table=X[0]), r'table of shape \(3,\)'), (dict(table=[['a', 1]]*60), 'numbers are needed'), (dict(table=X*np.nan), 'missing or infinite'), (dict(drop=['x0']), 'drop: is for CSV files only'), (dict(task='regress'), "task='regress'"),
    (dict(task='regression', target=['a', 'b']*30), "task='regression'"), (dict(storage='postgresql://x/y'), "storage='postgresql://x/y'"), (dict(storage=''), "storage=''"), (dict(storage='no/such/folder/study.log'), 'is no folder'), (dict(storage='.'), 'cannot be|holds no'), (dict(table='none.csv', target='y'), 'none.csv')], ids=str)
def test_what_is_refused_before_anything_runs(change, says):
    with pytest.raises(TinyRPNError, match=says): tune(**{'table': X, 'target': Y, **ONE, 'trials': 1, **change})
    assert not Path('study.log').exists()


def test_without_optuna_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'optuna', None)
    spec = importlib.util.spec_from_file_location('tinyrpn.tuning_again', tuning.__file__)
    with pytest.raises(ImportError, match=r"optuna.*pip install 'tinyrpn\[tuning\]'"): spec.loader.exec_module(importlib.util.module_from_spec(spec))


# ---- the space

@pytest.mark.parametrize('m, n, regression', [(1, 1, True), (4, 3, False), (30, 2, False)])
def test_every_configuration_that_can_be_proposed_builds_and_fits(m, n, regression, tell):
    dice = np.random.default_rng(m)
    x = dice.normal(size=(24, m)); x[:, 0] = np.round(x[:, 0]); y = x.sum(1) + dice.normal(size=24) if regression else np.arange(24) % n
    space = Space(fixed={'max_iter': 2}).within(m, n)
    task = Task(x, y, regression, space, folds=2)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    large = 0
    for i in range(100):
        trial = study.ask(); parameters = space.propose(trial)
        assert space.propose(Fixed(trial.params)) == parameters
        try: size = space.size(parameters, m, n)
        except TooLargeError as e: large += 1; assert str(e).endswith('at most 20,000 are tried'); continue
        if i % 3: continue # a third of them is fitted
        with warnings.catch_warnings(action='ignore', category=ConvergenceWarning): e = task.estimator(**parameters).fit(x, y)
        assert size == sum(p.numel() for p in e._core.parameters()) <= space.most and np.isfinite(e.predict(x)).all(), parameters
        assert yaml.safe_load(yaml.safe_dump(parameters)) == json.loads(json.dumps(parameters)) == parameters
    assert large <= 10
    tell(f'{m} inputs: 100 configurations, {large} too large')


def test_what_is_impossible_is_pruned_with_its_reason():
    space = Space(expansion=['identity', 'taylor'], reconciliation=[{'name': 'hm', 'p': 2, 'q': 1}, 'identity'], hidden=[[]], fixed={'max_iter': 5, 'tol': 1.})
    t = tune(X, Y, trials=8, **{**ONE, 'space': space})
    pruned = [f for f in t.study.trials if 'hm' in f.params.values()]
    assert pruned and all(f.state.name == 'PRUNED' and 'p=2 does not divide n=1' in f.user_attrs['why'] and 'parameters' not in f.user_attrs for f in pruned) and finished(t) == 8
    bad = Space(**{**asdict(space), 'reconciliation': [{'name': 'hm', 'p': 2, 'q': 1}]})
    with pytest.raises(TuningError, match='no trial came to its end: 2 trials, 2 of them pruned.*does not divide'): tune(X, Y, 'bad.log', trials=2, **{**ONE, 'space': bad})


def test_the_defaults_come_first_where_the_space_holds_them():
    X, y = load_breast_cancer(return_X_y=True)
    space = Space(fixed={'max_iter': 20, 'tol': 1e-2})
    t = tune(X[:, :5], y, trials=1, **{**ONE, 'space': space})
    assert t.best.params == t.task.start() and t.parameters['expansion'] == [{'name': 'taylor'}, {'name': 'gaussian_rbf'}] and t.parameters['alpha'] == RPNClassifier().alpha
    assert t.test == t.default_test


def test_tickets_are_exact_among_threads():
    tickets, taken = Tickets(1000), []
    def many():
        while tickets.take(): taken.append(1)
    threads = [threading.Thread(target=many) for _ in range(8)]
    [t.start() for t in threads]; [t.join() for t in threads]
    assert len(taken) == 1000 and not tickets.left
    tickets.back(); assert tickets.left and not Tickets(3, -math.inf).take()
