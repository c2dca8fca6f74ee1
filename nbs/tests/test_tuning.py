"Searches for tables: the same with one process, taken up, shared out, killed, stored by strangers; every configuration that can be proposed"
import importlib.util
import io
import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import warnings
from contextlib import closing
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


def kill_in_trial(path, first, running=lambda: True, seconds=180):
    "Kill a process in the middle of a trial, the `first` or a later one"
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        assert running(); time.sleep(0.02)
        try: trials = [t for t in load_study(path).get_trials(deepcopy=False) if t.state.name == 'RUNNING' and t.number >= first and 'process' in t.user_attrs]
        except (TinyRPNError, OSError): continue
        for t in trials:
            try:
                p = psutil.Process(t.user_attrs['process']); p.suspend()
                if load_study(path).trials[t.number].state.name == 'RUNNING' and not Path(f'{path}.lock').exists(): p.kill(); return p.pid
                p.resume()
            except psutil.NoSuchProcess: pass
    raise AssertionError(f'no trial to be killed in {seconds} seconds')


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


def test_targets_of_objects_and_columns_of_frames():
    pd = pytest.importorskip('pandas')
    t = tune(X, np.array([1, 2, 3]*20, object), '1.log', trials=1, **ONE)
    assert t.columns.classes == [1, 2, 3] and set(t.estimator.predict(X)) <= {1, 2, 3}
    frame = pd.DataFrame(X, columns=['a', 'b', 'c']).assign(y=pd.Series(Y, dtype=object))
    t = tune(frame, 'y', '2.log', trials=1, **ONE)
    assert t.task.regression and t.columns.target == 'y' and t.columns.names == ['a', 'b', 'c'] == list(t.estimator.feature_names_in_)
    t = tune(pd.DataFrame(X, columns=[0, 'a', 'b']), Y, '3.log', trials=1, **ONE)
    assert t.columns.names == ['0', 'a', 'b'] and np.isfinite(t.estimator.predict(X)).all()
    with pytest.raises(ParameterError, match="target 'kind': 20 of 60 entries are missing"): tune(X, pd.Series(['a', None, 'b']*20, name='kind'), '4.log', trials=1, **ONE)
    t = tune(X[:10], [0]*5 + [1]*5, '5.log', trials=1, **{**ONE, 'test': 0, 'folds': 5}) # as many rows as folds
    assert t.best.state.name == 'COMPLETE'


def test_defaults_that_are_too_large_are_not_fitted():
    x = np.random.default_rng(0).normal(size=(40, 200))
    t = tune(x, x[:, 0], trials=1, **ONE)
    assert t.default_test is None and math.isfinite(t.test) and 'the defaults' not in repr(t)


@pytest.mark.parametrize('good, bad', [(0.9, 0.5), (-0.5, -0.9)])
def test_what_falls_behind_is_pruned_whatever_the_sign(good, bad):
    study = optuna.create_study(direction='maximize', pruner=tuning.FoldPruner(), sampler=optuna.samplers.RandomSampler(seed=0))
    def run(values):
        trial = study.ask()
        for k in range(4):
            trial.report(sum(values[:k + 1])/4, k)
            if trial.should_prune(): study.tell(trial, state=optuna.trial.TrialState.PRUNED); return k + 1
        study.tell(trial, sum(values)/4); return 0
    with quiet():
        assert [run([bad]*4) for _ in range(4)] == [0]*4 # there is nothing to compare with
        assert [run([good]*4) for _ in range(5)] == [0]*5
        assert run([bad]*4) == 2 and run([bad, bad + 3*(good - bad), good, good]) == 0 and run([good, good, good, good - 1]) == 4
    assert tune(X, Y > 0, trials=30, scoring='neg_log_loss', **{**ONE, 'folds': 4, 'sampler': 'random'}).count('PRUNED') >= 3


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
    with pytest.warns(UserWarning, match=r'process \d+ ended with (-9|15); the others did its trials'): t = tune(X, Y, trials=8, processes=2, **shared)
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
t = tune(X, Y, trials=400, processes={processes}, space=SLOW, folds=2, progress=False)
print(t)
'''


def child(processes): return subprocess.Popen([sys.executable, '-c', CHILD.format(tests=str(Path(__file__).parent), processes=processes)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.skipif(os.name == 'nt', reason='signals')
def test_killed_as_a_whole_then_taken_up():
    p = child(1)
    try: kill_in_trial('study.log', 1, lambda: p.poll() is None)
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


class Member: # a process that stores a trial and is killed before it says so, or before it stores it
    stdin = io.StringIO()
    def __init__(self, study, task, trials): self.pid, self.stdout, self.study, self.task, self.trials, self.ended = os.getpid(), self, study, task, trials, False
    def poll(self): return -9 if self.ended else None
    def readline(self):
        if self.ended: return ''
        if self.trials: tuning.run_trial(self.study, self.task)
        self.trials -= 1; self.ended = self.trials <= 0
        return '' if self.ended else 'done\n'
    def wait(self, timeout=None): pass


@pytest.mark.parametrize('trials', [0, 1, 3])
def test_a_trial_that_was_stored_but_not_answered_counts(trials):
    t = tune(X, Y, trials=2, **ONE)
    crew = tuning.Crew(t.study, '.', 'study.log', 0, 'tpe')
    tickets, bar = Tickets(5), []
    tickets.after = lambda: bar.append(1)
    with quiet(): crew.serve(Member(t.study, t.task, trials), tickets)
    assert finished(t) == 2 + trials and tickets.count == 5 - trials and len(bar) == trials


def test_workers_that_greet_and_modules_in_the_folder(monkeypatch):
    Path('site').mkdir(); Path('site/sitecustomize.py').write_text('import os; print("welcome", flush=True); os.write(1, b"no end")')
    for name in ('optuna', 'tinyrpn', 'random'): Path(f'{name}.py').write_text('open("hacked", "w").close()')
    monkeypatch.setenv('PYTHONPATH', os.path.abspath('site'))
    found = []
    thread = threading.Thread(target=lambda: found.append(tune(X, Y, trials=4, processes=2, space=SPACE, folds=2, progress=False)), daemon=True)
    thread.start(); thread.join(180)
    assert found and finished(found[0]) == 4 and not Path('hacked').exists()


def test_no_python_to_start(monkeypatch):
    monkeypatch.setattr(tuning.sys, 'executable', os.path.abspath('no-python'))
    with pytest.raises(TuningError, match='study.log.*no-python.*what is stored stays'): tune(X, Y, trials=4, space=SPACE, folds=3, progress=False)


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
    for what, change in {'settings   ': dict(test=0.3), 'table': dict(table=X + 1e-9), 'table ': dict(target=Y[::-1].copy()), 'space': dict(space=Space(**{**asdict(SPACE), 'remainder': ['zero']})), 'settings': dict(seed=1, table=X), 'settings ': dict(scoring='neg_mean_absolute_error'), 'settings  ': dict(folds=4)}.items():
        with pytest.raises(TuningError, match=f"study.log holds a study 'tuning' of (another|other) ({what.strip()}|table) .*give another name or another file") as e: tune(**{'table': X, 'target': Y, 'trials': 3, **ONE, **change})
        assert '\n' not in str(e.value) and ('test: there 0.2, here 0.3' in str(e.value)) == (change.get('test') == 0.3)
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


@pytest.mark.parametrize('name, what', [('settings.json', b'{"a": 1, "b": 2}'), ('columns.json', b'{\n "a": 1,\n "b": [\n  1\n ]\n}'), ('photo.png', b'\x89PNG\r\n' + bytes(3*2**20)), ('table.csv', b'a,b\n' + b'1,2\n'*300_000 + b'3,4'), ('torn.log', b'{"op_code":0,"wo')])
def test_a_file_that_is_no_study_stays_as_it_is(name, what):
    Path(name).write_bytes(what)
    for storage in (name, f'sqlite:///{name}'):
        with pytest.raises(FileError, match=f'{name} holds no study of optuna'): tune(X, Y, storage, trials=1, **ONE)
        assert Path(name).read_bytes() == what


def test_an_empty_file_may_be_used():
    Path('study.log').touch()
    assert finished(tune(X, Y, trials=1, **ONE)) == 1


def test_a_database_of_others_or_with_programs_is_refused():
    with closing(sqlite3.connect('places.db')) as db: db.execute('create table places (url text)'); db.commit()
    before = Path('places.db').read_bytes()
    with pytest.raises(FileError, match='holds no study of optuna, but other tables'): tune(X, Y, 'sqlite:///places.db', trials=1, **ONE)
    assert Path('places.db').read_bytes() == before
    tune(X, Y, 'sqlite:///study.db', trials=1, **ONE)
    with closing(sqlite3.connect('study.db')) as db:
        db.execute('alter table studies rename to others')
        db.execute('create view studies as with recursive r(n) as (select 1 union all select n + 1 from r) select study_id, study_name from others, r where n < 0'); db.commit()
    with pytest.raises(FileError, match='study.db holds a view'): load_study('sqlite:///study.db')


def test_names_of_files():
    for name in ('sqlite_study.log', 'ä b%20{x}#.log', 'sqlite:///ä b%20{x}#.db'): assert finished(tune(X, Y, name, trials=1, **ONE)) == 1 and len(load_study(name).trials) == 1
    assert Path('sqlite_study.log').read_bytes().startswith(b'{"op_code"') and {'ä b%20{x}#.db', 'ä b%20{x}#.log'} <= {*os.listdir()}
    with pytest.raises(FileError, match='nope.log: there is no such file'): load_study('nope.log')
    assert not Path('nope.log').exists()


@pytest.mark.skipif(os.name == 'nt', reason='symbolic links need special rights')
def test_two_names_of_one_file_are_one():
    tune(X, Y, trials=1, **ONE); Path('link.log').symlink_to('study.log')
    with held('study.log'), pytest.raises(FileError, match='in use by another search'): tune(X, Y, 'link.log', trials=2, **ONE)
    assert finished(tune(X, Y, 'link.log', trials=2, **ONE)) == 2
    if Path('/proc/self').exists():
        with pytest.raises(FileError, match='x.log cannot be written: '): tune(X, Y, '/proc/x.log', trials=1, **ONE)


@pytest.mark.parametrize('directions', [['minimize'], ['maximize', 'minimize']])
def test_a_study_that_is_not_to_be_maximised_is_refused(directions):
    with quiet(): optuna.create_study(study_name='tuning', directions=directions, storage=open_storage('study.log'))
    with pytest.raises(TuningError, match="study 'tuning' that is not one score to be maximised"): tune(X, Y, trials=1, **ONE)


def test_trials_of_others_outside_the_space_are_pruned():
    tune(X, Y, trials=2, **ONE)
    with quiet(), warnings.catch_warnings(action='ignore'):
        study = load_study('study.log')
        for odd in ({'expansion': 'nonsense'}, {'alpha': 1e9}, {'expansion': 'taylor', 'taylor.d': 9}): study.enqueue_trial(odd)
        t = tune(X, Y, trials=16, **ONE)
    odd = [f for f in t.study.trials if f.user_attrs.get('why', '').startswith('not of this space')]
    assert len(odd) == 3 and {f.state.name for f in odd} == {'PRUNED'} and finished(t) == 16 and t.best.number not in {f.number for f in odd}
    assert finished(tune(X, Y, trials=17, **ONE)) == 17


def test_a_full_disk_and_a_damaged_line(monkeypatch):
    tune(X, Y, trials=3, **ONE)
    def full(self, logs): raise OSError(28, 'No space left on device')
    with monkeypatch.context() as m:
        m.setattr(tuning.JournalFileBackend, 'append_logs', full)
        with pytest.raises(TinyRPNError, match='study.log.*No space left on device'): tune(X, Y, trials=5, **ONE)
    count, real = [], tuning.JournalFileBackend.append_logs
    with monkeypatch.context() as m:
        m.setattr(tuning.JournalFileBackend, 'append_logs', lambda self, logs: full(self, logs) if len(count) > 4 else (count.append(1), real(self, logs))[1])
        with pytest.raises(TuningError, match='study.log.*No space left on device; what is stored stays'): tune(X, Y, trials=5, **ONE)
    assert finished(tune(X, Y, trials=5, **ONE)) == 5
    lines = Path('study.log').read_text().splitlines(True)
    lines[7] = lines[7][:20] + '\n'
    Path('study.log').write_text(''.join(lines))
    with pytest.raises(TinyRPNError, match='line 8 is damaged'): tune(X, Y, trials=6, **ONE)


def test_a_lock_that_was_left_behind_is_removed():
    tune(X, Y, trials=1, **ONE)
    (lock := Path('study.log.lock')).touch()
    with held('study.log'): assert lock.exists() # somebody may be writing
    os.utime(lock, (time.time() - 60,)*2)
    start = time.monotonic()
    assert finished(tune(X, Y, trials=2, **ONE)) == 2 and time.monotonic() - start < 25 and not lock.exists()


def test_sqlite_does_as_well():
    a = tune(X, Y, 'sqlite:///study.db', trials=5, **ONE)
    assert history(a) == history(tune(X, Y, 'study.log', trials=5, **ONE)) and Path('study.db').is_file()
    assert finished(tune(X, Y, 'sqlite:///study.db', trials=6, **ONE)) == 6 and len(load_study('sqlite:///study.db').trials) == 6
    Path('bad.db').write_text('no database'*100)
    with pytest.raises(FileError, match='bad.db holds no study of optuna'): tune(X, Y, 'sqlite:///bad.db', trials=1, **ONE)


# ---- refusals

@pytest.mark.parametrize('change, says', [
    (dict(trials=0), 'trials=0'), (dict(processes=0), 'processes=0'), (dict(folds=1), 'folds=1'), (dict(seed=-1), 'seed=-1'), (dict(test=1), 'test=1'), (dict(seconds=0), 'seconds=0'), (dict(sampler='grid'), "'tpe' or 'random' is needed"),
    (dict(scoring='acuracy'), "Did you mean 'accuracy'?"), (dict(folds=60), 'folds=60: the table has 60 rows'), (dict(target=[0]*58 + [1]*2), "folds=2: the smallest class has 2 rows, .*if the target is a quantity, say task='regression'"), (dict(target=['a']*58 + ['b']*2), r'class has 2 rows, too few for that many folds beside test=0.2$'), (dict(target=['a']*60), 'there is only the class'),
    (dict(target=Y[:9]), r'target of shape \(9,\)'), (dict(table=X[0]), r'table of shape \(3,\)'), (dict(table=[['a', 1]]*60), 'numbers are needed'), (dict(table=X*np.nan), 'missing or infinite'), (dict(drop=['x0']), 'drop: is for CSV files only'), (dict(task='regress'), "task='regress'"),
    (dict(task='regression', target=['a', 'b']*30), "task='regression'"), (dict(storage='postgresql://x/y'), "storage='postgresql://x/y'"), (dict(storage=''), "storage=''"), (dict(storage='no/such/folder/study.log'), 'is no folder'), (dict(storage='.'), 'cannot be|holds no'), (dict(table='none.csv', target='y'), 'none.csv'),
    (dict(scoring='accuracy'), "scoring='accuracy' does not suit a target of numbers"), (dict(scoring='roc_auc', target=[0, 1, 2]*20), "scoring='roc_auc' does not suit a target of 3 classes"), (dict(test=0.01), 'test=0.01: that holds out 1 of 60 rows; at least 2'), (dict(test=0.02, target=[0, 1, 2]*20), 'test=0.02: that holds out 2 of 60 rows; at least 3'),
    (dict(target=['a', 'b', None]*20), "target 'y': 20 of 60 entries are missing"), (dict(target=['a', 'b', math.nan]*20), '20 of 60 entries are missing'), (dict(target=[b'a', b'b']*30), 'numbers or texts are needed'), (dict(target=['a', 1]*30), 'one kind is needed'), (dict(target=[1, np.inf]*30), 'target: an entry is missing or infinite'), (dict(table=X*1j), 'complex'),
    (dict(name=''), "name=''"), (dict(name='a\0'), 'control characters'), (dict(name=5), 'name=5'), (dict(space='x'), "space='x'"), (dict(storage='sqlite:///a?b.db'), "storage='sqlite:///a[?]b.db'"), (dict(space=Space(fixed={'class_weight': 'balanced'})), 'has no parameter .class_weight')], ids=lambda v: str(v)[:60])
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
