"Runs that are stopped in awkward places, resumed with awkward parts, or taken up from a stranger's checkpoint"
import math
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from tinyrpn.all import Batches, FileError, ParameterError, ShapeError, TinyRPNError, random_state, restore_random_state, set_seed
from tinyrpn.checkpoint import Checkpoints, read_state, write_state
from tinyrpn.learner import Callback, DivergedError, Learner

X = torch.rand(60, 5, generator=torch.Generator().manual_seed(0))
Y = (X.sum(1) > 2.5).long()


@pytest.fixture(autouse=True)
def dice():
    "The random numbers of other tests stay as they are"
    state = random_state()
    yield
    restore_random_state(state)


class StopAt(Callback):
    "Asks the run to stop, or raises, after a step of an epoch"
    def __init__(self, epoch, step, error=None): self.at, self.error = (epoch, step), error
    def after_step(self, learner):
        if (learner.epoch, learner.done) != self.at: return
        if self.error: raise self.error
        learner.stop()


def net(*more): return nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.2), *more, nn.Linear(8, 2))
def batches(): return Batches(X, Y, 8, shuffle=True), Batches(X[:20], Y[:20], 8)


def make(*callbacks, model=net, data=batches, seed=1, **settings):
    set_seed(seed)
    given = dict(optimizer={'name': 'AdamW', 'lr': 0.01}, scheduler={'name': 'ExponentialLR', 'gamma': 0.5}) | settings
    return Learner(model(), data(), device='cpu', progress=False, callbacks=callbacks, **given)


def quietly(f):
    "f's warnings, as text"
    with warnings.catch_warnings(record=True) as said: warnings.simplefilter('always'); f()
    return [str(w.message) for w in said]


def same(a, b):
    for (k, v), w in zip({**a.model.state_dict(), **a._passing()}.items(), {**b.model.state_dict(), **b._passing()}.values()): assert torch.equal(v, w) if isinstance(v, torch.Tensor) else v == w, k
    timeless = lambda l: [{k: v for k, v in r.items() if k != 'seconds'} for r in l.history.rows]
    assert a.history.steps == b.history.steps and timeless(a) == timeless(b)


# ---- equal to the bit

class Passing(nn.Module):
    "A running mean that a model file leaves out, a mask with infinities, and two buffers that overlap"
    def __init__(self):
        super().__init__()
        self.register_buffer('mean', torch.zeros(8), persistent=False)
        self.register_buffer('mask', torch.full((3, 3), -math.inf).triu(1))
        whole = torch.arange(6.)
        self.register_buffer('first', whole[:4]); self.register_buffer('last', whole[2:])
    def forward(self, x):
        if self.training: self.mean = 0.9*self.mean + 0.1*x.detach().mean(0)
        return x - self.mean


class Extra(nn.Module):
    "State that is no tensor"
    calls = 0
    def forward(self, x): self.calls += self.training; return x*(1 + 0.01*self.calls)
    def get_extra_state(self): return {'calls': self.calls}
    def set_extra_state(self, state): self.calls = state['calls']


class Remembering:
    "A loader with dice of its own, which it gives when asked"
    batch_size = 8
    def __init__(self): self.dice = np.random.default_rng(0)
    def __len__(self): return 8
    def __iter__(self):
        order = torch.from_numpy(self.dice.permutation(60))
        return iter([(X[i], Y[i]) for i in order.split(8)])
    def state_dict(self): return self.dice.bit_generator.state
    def load_state_dict(self, state): self.dice.bit_generator.state = state


def loader(**settings): return lambda: (DataLoader(TensorDataset(X, Y), 8, **{'shuffle': True, **settings}), DataLoader(TensorDataset(X, Y), 20))
def own(): return torch.Generator().manual_seed(0)
def sampled(): return DataLoader(TensorDataset(X, Y), 8, sampler=RandomSampler(X, generator=own())), batches()[1]


CASES = {'loader with a generator': dict(data=lambda: loader(generator=own())()), 'sampler with a generator': dict(data=sampled), 'loader with a state': dict(data=lambda: (Remembering(), batches()[1])), 'workers that stay': dict(data=loader(num_workers=1, persistent_workers=True)),
         'buffers of all kinds': dict(model=lambda: net(Passing())), 'extra state': dict(model=lambda: net(Extra())), 'warm restarts': dict(scheduler={'name': 'CosineAnnealingWarmRestarts', 'T_0': 2}),
         'momentum that moves': dict(optimizer=lambda ps: torch.optim.SGD(ps, 0.1, momentum=0.9), scheduler=lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.2, total_steps=20)),
         'one schedule after another': dict(scheduler=lambda o: torch.optim.lr_scheduler.SequentialLR(o, [torch.optim.lr_scheduler.LinearLR(o), torch.optim.lr_scheduler.ExponentialLR(o, 0.5)], [1])),
         'NAdam in float64': dict(optimizer={'name': 'NAdam', 'lr': 0.01}, precision='float64'), 'Adafactor': dict(optimizer=lambda ps: torch.optim.Adafactor(ps, 0.01)), 'Adadelta': dict(optimizer='Adadelta'), 'centered': dict(optimizer={'name': 'RMSprop', 'centered': True, 'momentum': 0.9}), 'ASGD': dict(optimizer=lambda ps: torch.optim.ASGD(ps, 0.1)),
         'a score of two outputs': dict(metrics='r2', loss='MSELoss', data=lambda: (Batches(X, torch.stack([X.sum(1), X[:, 0]], 1), 8, shuffle=True), Batches(X[:20], X[:20, :2], 8))),
         'a schedule that knows only to step': dict(scheduler=lambda o: type('Steps', (), {'step': lambda self: None})()),
         'a function for a schedule': dict(scheduler=lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda e: 1/(1 + e)))}


@pytest.mark.parametrize('stop', [(0, 8), (1, 3), (1, 8)], ids=str)
@pytest.mark.parametrize('case', CASES)
def test_resumed_equals_unbroken(case, stop):
    unbroken = make(**CASES[case]); quietly(lambda: unbroken.fit(3))
    stopped = make(StopAt(*stop), **CASES[case]); quietly(lambda: stopped.fit(3, checkpoint='run'))
    assert 'interrupted' in stopped.history.note
    again = make(seed=5, **CASES[case]); said = quietly(lambda: again.fit(checkpoint='run', resume=True))
    assert not [s for s in said if 'does not go on' in s], said
    same(unbroken, again)


class Interrupts:
    "A test loader that is stopped in its second pass, once"
    passes, error = 0, None
    def __len__(self): return 3
    def __iter__(self):
        self.passes += 1
        for i, b in enumerate(DataLoader(TensorDataset(X[:20], Y[:20]), 8)): # draws a random number
            if self.error and self.passes == 2 and i == 1: raise self.error
            yield b


@pytest.mark.parametrize('error', [KeyboardInterrupt(), OSError('the disk is gone')], ids=repr)
def test_stopped_in_the_evaluation(error):
    "Neither the epoch's steps nor the schedule are done twice; the random numbers are as they were"
    def data(error=None): test = Interrupts(); test.error = error; return batches()[0], test
    unbroken = make(data=data); unbroken.fit(3)
    stopped = make(data=lambda: data(error))
    try: stopped.fit(3, checkpoint=Checkpoints('run', every=1, share=None))
    except OSError: pass
    assert (stopped.epoch, stopped.done, len(stopped.history)) == (1, 8, 1)
    stopped.fit(2); same(unbroken, stopped)
    again = make(data=data, seed=9); again.fit(checkpoint='run', resume=True); same(unbroken, again)


@pytest.mark.parametrize('error', [KeyboardInterrupt(), OSError('no space')], ids=repr)
def test_stopped_at_the_end_of_an_epoch(error):
    class Fails(Callback):
        def after_epoch(self, learner):
            if learner.epoch == 1: raise error
    unbroken = make(); unbroken.fit(3)
    stopped = make(Fails())
    try: stopped.fit(3, checkpoint='run')
    except OSError: pass
    assert stopped.epoch == 2 and stopped.done == 0 and stopped.history['epoch'] == [0, 1]
    stopped.callbacks.pop(); stopped.fit(1); same(unbroken, stopped)
    again = make(seed=9); again.fit(3, checkpoint='run', resume=True); same(unbroken, again)


def test_a_file_counts_more_than_what_a_learner_holds():
    "An interruption within a step leaves it half done; dice that were thrown since are put back"
    class Half(nn.Module):
        armed, count = False, 0
        def forward(self, x):
            if self.armed and self.training and self.count == 11: raise KeyboardInterrupt
            self.count += self.training
            return x
    unbroken = make(model=lambda: net(Half())); unbroken.fit(3)
    learner = make(model=lambda: net(Half())); half = learner.model[2]; half.armed = True
    learner.fit(3, checkpoint=Checkpoints('run', every=1, share=None)); half.armed = False
    torch.rand(3)
    learner.fit(3, checkpoint='run', resume=True); same(unbroken, learner)


def test_two_callbacks_of_one_class_keep_their_own_state():
    class Counts(Callback):
        def __init__(self, n): self.n = n
        def state(self, learner): return self.n
        def load_state(self, learner, state): self.n = state
    make(Counts(1), Counts(2), StopAt(1, 1)).fit(2, checkpoint='run')
    again = make(a := Counts(7), b := Counts(8)); again.fit(checkpoint='run', resume=True)
    assert (a.n, b.n) == (1, 2)


def test_diverging_after_a_pause_goes_back_to_the_last_good_epoch():
    class Explode(Callback):
        def after_step(self, learner):
            if (learner.epoch, learner.done) == (1, 5): learner.optimizer.param_groups[0]['lr'] = 1e30
    unbroken = make(Explode())
    with pytest.raises(DivergedError): unbroken.fit(3)
    paused = make(StopAt(1, 2), Explode()); paused.fit(3)
    with pytest.raises(DivergedError): paused.fit(2)
    for v, w in zip(unbroken.model.parameters(), paused.model.parameters()): assert torch.equal(v, w)


def test_half_a_group_of_batches_is_forgotten_when_a_checkpoint_is_taken_up():
    unbroken = make(accumulate=5); unbroken.fit(2)
    stopped = make(StopAt(0, 7, KeyboardInterrupt()), accumulate=5); stopped.fit(2, checkpoint=Checkpoints('run', every=1, share=None))
    assert stopped.group
    stopped.callbacks.pop(); stopped.fit(2, checkpoint='run', resume=True); same(unbroken, stopped)


def test_keep_waits_until_nothing_is_half_done():
    "Within a group of batches, and at the end of an epoch"
    class Keeps(Callback):
        def after_step(self, learner): learner.keep()
        def after_epoch(self, learner): learner.keep()
    unbroken = make(accumulate=3); unbroken.fit(3)
    for stop in ((0, 4), (1, 8)):
        store = Checkpoints(f'run{stop}', share=None)
        make(Keeps(), StopAt(*stop), accumulate=3).fit(3, checkpoint=store)
        again = make(seed=8, accumulate=3); again.fit(3, checkpoint=store.run, resume=True); same(unbroken, again)


def test_the_good_weights_are_those_of_the_run_that_goes_on():
    paused = make(StopAt(1, 3)); paused.fit(4, checkpoint='run')
    other = make(seed=2); other.fit(3, checkpoint='run', resume=True)
    class Explode(Callback):
        def after_step(self, learner): learner.optimizer.param_groups[0]['lr'] = 1e30
    paused.callbacks[-1] = Explode()
    with pytest.raises(DivergedError): paused.fit(4, checkpoint='run', resume=True)
    for v, w in zip(paused.model.parameters(), other.model.parameters()): assert torch.equal(v, w)


def test_learning_rates_as_tensors_and_from_zero():
    make(optimizer=lambda ps: torch.optim.AdamW(ps, torch.tensor(0.01)), scheduler=None).fit(1, checkpoint='run')
    again = make(optimizer=lambda ps: torch.optim.AdamW(ps, torch.tensor(0.01)), scheduler=None); again.fit(2, checkpoint='run', resume=True)
    assert again.history['lr'] == pytest.approx([0.01, 0.01])
    make(optimizer=lambda ps: torch.optim.SGD(ps, 0.), scheduler=None).fit(1, checkpoint='zero')
    again = make(optimizer=lambda ps: torch.optim.SGD(ps, 0.1), scheduler=None); quietly(lambda: again.fit(2, checkpoint='zero', resume=True))
    assert again.history['lr'] == [0., 0.1]


# ---- what is on the disk

def written(): return [p.name[6:-12] for p in Checkpoints('run').files()]


def test_the_best_is_kept_whatever_writing_costs():
    class Score(Callback):
        def after_epoch(self, learner): learner.history.rows[-1]['test_accuracy'] = [0.1, 0.5, 0.9, 0.2, 0.3, 0.4][learner.epoch]
    store = Checkpoints('run'); store.due = lambda: False
    make(Score()).fit(6, checkpoint=store)
    assert written() == ['000003-step-00000000', '000006-step-00000000']


def test_weights_that_are_no_numbers_are_not_written():
    class Poison(Callback):
        def after_step(self, learner):
            if learner.done == 4: learner.model[0].weight.data[0, 0] = math.nan
    learner = make(Poison())
    with pytest.raises(DivergedError): learner.fit(2, checkpoint=Checkpoints('run', every=1, share=None))
    assert written()[-1] == '000000-step-00000003'
    make().fit(2, checkpoint='run', resume=True)


def test_every_so_many_steps_with_accumulated_batches():
    make(accumulate=5).fit(1, checkpoint=Checkpoints('run', every=2, share=None, keep=9))
    assert '000000-step-00000005' in written()


def test_nobody_writes_over_what_another_took_further():
    a = make(); a.fit(2, checkpoint='run')
    make().fit(4, checkpoint='run', resume=True)
    with pytest.raises(FileError, match='holds a run already'): a.fit(1, checkpoint='run')
    assert written()[-1] == '000004-step-00000000'


def test_a_long_history_is_read_back():
    learner = make(); learner.fit(1)
    learner.history.rows = [{**learner.history.rows[0], 'epoch': e, 'note': 'x' if e % 9999 == 0 else None} for e in range(50_000)]
    for r in learner.history.rows[1:]: r.pop('note')
    learner.epoch = 50_000
    learner.fit(1, checkpoint='run')
    again = make(); again.fit(50_002, checkpoint='run', resume=True)
    assert again.history.rows[:50_001] == learner.history.rows and again.history.rows[0]['note'] == 'x'


def test_values_of_numpy_and_torch_in_a_run():
    "What trains without a checkpoint trains with one"
    class Notes(Callback):
        def after_epoch(self, learner): learner.history.rows[-1].update(gap=np.float32(0.5), steps=np.int64(8), norm=torch.tensor(2.))
    class Loader:
        x, y = X.numpy(), Y.numpy()
        def __len__(self): return 1
        def __iter__(self): return iter([(X, Y)])
    settings = dict(data=lambda: (Loader(), None), optimizer=lambda ps: torch.optim.SGD(ps, np.float32(0.1)), scheduler=lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [np.int64(1)]))
    make(Notes(), **settings).fit(2, checkpoint='run')
    again = make(Notes(), **settings)
    assert not [s for s in quietly(lambda: again.fit(3, checkpoint='run', resume=True)) if 'does not go on' in s] and len(again.history) == 3


def test_the_folder_is_where_it_was_when_the_process_goes_elsewhere():
    class Leaves(Callback):
        def after_epoch(self, learner): os.chdir('elsewhere')
    Path('elsewhere').mkdir()
    make(Leaves()).fit(1, checkpoint='run'); os.chdir('..')
    assert written() == ['000000-step-00000000', '000001-step-00000000'] and not list(Path('elsewhere').iterdir())


def test_a_folder_that_is_lost_is_one_error():
    import shutil
    class Lost(Callback):
        def after_epoch(self, learner): shutil.rmtree('run')
    learner = make(Lost())
    with pytest.raises(FileError, match='cannot be written'): learner.fit(2, checkpoint='run')
    learner.callbacks.pop(); learner.fit(1); assert learner.epoch == 2


# ---- what is said

def said_on_resuming(first, second):
    make(**first).fit(1, checkpoint='run')
    return ' '.join(quietly(lambda: make(**second).fit(2, checkpoint='run', resume=True)))


other = lambda: (DataLoader(TensorDataset(X.flip(0), Y), 8, shuffle=True), DataLoader(TensorDataset(X, Y), 20))
unshuffled = lambda: (Batches(X, Y, 8), batches()[1])
SAID = {'other data in a DataLoader': (dict(data=loader()), dict(data=other), 'data was'), 'other test data': ({}, dict(data=lambda: (batches()[0], Batches(X[20:], Y[20:], 8))), 'test_data was'), 'no shuffling': ({}, dict(data=unshuffled), 'shuffle was True and is False'),
        'settings of a loss': ({}, dict(loss={'name': 'CrossEntropyLoss', 'label_smoothing': 0.1}), "'label_smoothing': 0.1"), 'weights of a loss': (dict(loss=nn.CrossEntropyLoss(torch.ones(2))), dict(loss=nn.CrossEntropyLoss(torch.tensor([1., 2.]))), 'loss was'),
        'a function for a schedule': (dict(scheduler=lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.5)), dict(scheduler=lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.6)), "'gamma': 0.6"),
        'momentum': (dict(optimizer={'name': 'SGD', 'lr': 0.1, 'momentum': 0.9}), dict(optimizer={'name': 'SGD', 'lr': 0.1}), 'momentum of the optimizer changed: its numbers begin anew'), 'another metric of the same name': (dict(metrics={'s': 'accuracy'}), dict(metrics={'s': 'mae'}, loss='L1Loss', data=lambda: (Batches(X, X[:, :2], 8, shuffle=True), None)), 'metrics was'),
        'metrics': ({}, dict(metrics=None), 'metrics was'), 'deterministic': ({}, dict(deterministic=True), 'deterministic was False and is True')}


@pytest.mark.parametrize('case', SAID)
def test_what_differs_is_said(case):
    first, second, words = SAID[case]
    assert words in said_on_resuming(first, second)
    assert said_on_resuming_again(second) == ''


def said_on_resuming_again(settings):
    "Once it was said and the run went on so, it is the run's own"
    return ' '.join(quietly(lambda: make(**settings).fit(3, checkpoint='run', resume=True)))


def test_another_model_is_told_by_its_first_difference():
    from tinyrpn.all import IdentityExpansion, IdentityReconciliation, RPN, RPNHead
    rpn = lambda bias, how: lambda: RPN([RPNHead(5, 2, IdentityExpansion(), IdentityReconciliation(), bias=bias, contraction=how)])
    make(model=rpn(False, 'auto')).fit(1, checkpoint='run')
    with pytest.raises(ParameterError, match=r'run: the checkpoint is of another model: model\.layers\[0\]\.heads\[0\]\.bias was None and is True'): make(model=rpn(True, 'auto')).fit(2, checkpoint='run', resume=True)
    make(model=rpn(False, 'dense')).fit(2, checkpoint='run', resume=True)


@pytest.mark.parametrize('scheduler', [{'name': 'CosineAnnealingWarmRestarts', 'T_0': 4}, {'name': 'CosineAnnealingLR', 'T_max': 4}, {'name': 'ExponentialLR', 'gamma': 0.5}, lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda e: 1/(1 + e)), {'name': 'LinearLR', 'start_factor': 0.5, 'total_iters': 3}], ids=['warm restarts', 'cosine', 'exponential', 'a function', 'linear'])
def test_another_learning_rate_scales_the_course_that_is_left(scheduler):
    whole = make(scheduler=scheduler); whole.fit(6)
    make(scheduler=scheduler).fit(2, checkpoint='run')
    faster = make(scheduler=scheduler, optimizer={'name': 'AdamW', 'lr': 0.1})
    assert 'lr of the optimizer was 0.01 and is 0.1' in ' '.join(quietly(lambda: faster.fit(6, checkpoint='run', resume=True)))
    assert faster.history['lr'] == pytest.approx([lr*(1 if e < 2 else 10) for e, lr in enumerate(whole.history['lr'])])


def test_another_schedule_begins_anew():
    make().fit(3, checkpoint='run')
    again = make(scheduler={'name': 'CosineAnnealingWarmRestarts', 'T_0': 2}); quietly(lambda: again.fit(6, checkpoint='run', resume=True))
    assert again.history['lr'][3:] == pytest.approx([0.01, 0.005, 0.01])


# ---- checkpoints of strangers

def tampered(change):
    "A whole checkpoint in whose state something has been changed"
    make(StopAt(1, 4)).fit(3, checkpoint='run')
    path = Checkpoints('run').files()[-1]
    state, about = read_state(path)
    change(state)
    write_state(path, state, about)


def kept(state, i=0): return state['optimizer']['state'][i]
def group(state): return state['optimizer']['param_groups'][0]
def numpys(place): return lambda s: s['dice'][0].update(numpy=('MT19937', np.zeros(624, np.uint32), place, 0, 0.))


HOSTILE = {'two numbers for a weight': lambda s: kept(s).update(exp_avg=torch.zeros(2)), 'no numbers for a weight': lambda s: kept(s).update(exp_avg_sq=torch.zeros(0)), 'many numbers': lambda s: kept(s).update(exp_avg=torch.zeros(20_000)), 'whole numbers': lambda s: kept(s).update(exp_avg=torch.zeros(8, 5, dtype=torch.int64)),
           'NaN in the optimizer': lambda s: kept(s).update(exp_avg=torch.full((8, 5), math.nan)), 'a step that is text': lambda s: kept(s).update(step='many'), 'a step of two numbers': lambda s: kept(s).update(step=torch.ones(2)), 'no step': lambda s: kept(s).pop('step'), 'one more': lambda s: kept(s).update(other=torch.ones(1)),
           'weight 99': lambda s: s['optimizer']['state'].update({99: {}}), 'a learning rate of text': lambda s: group(s).update(lr='fast'), 'a learning rate of NaN': lambda s: group(s).update(lr=math.nan), 'betas of text': lambda s: group(s).update(betas=('a', 'b')), 'no group': lambda s: s['optimizer'].update(param_groups=[]),
           'a method for a number': lambda s: s['scheduler'].update(step=1), 'an epoch of text': lambda s: s['scheduler'].update(last_epoch='x'), 'a tensor in the schedule': lambda s: s['scheduler'].update(more=torch.ones(2)),
           "NumPy's place": numpys(10**9), "NumPy's place, below": numpys(-1), 'no order': lambda s: s.update(order=None), 'other dice': lambda s: s['order'].update(torch=torch.zeros(3)),
           'rows of text': lambda s: s.update(rows='many'), 'rows without a loss': lambda s: s['rows'].pop('train_loss'), 'a column that is no name': lambda s: s['rows'].update({'\x1b[2J': s['rows']['lr']}), 'a place of 10^18': lambda s: s['rows'].update(more=(np.array([10**18]), np.array([1.]))),
           'good weights that are text': lambda s: s['callbacks'][0].__setitem__(2, 'w'), 'good weights of another model': lambda s: s['callbacks'][0].__setitem__(2, {'w': torch.ones(3)}), 'weights of another shape': lambda s: s['model'].update({'0.weight': torch.ones(2)}), 'minus one epoch': lambda s: s.update(epoch=-1)}


@pytest.mark.parametrize('case', HOSTILE)
def test_hostile_states_are_refused(case):
    tampered(HOSTILE[case])
    learner = make()
    weights = [p.clone() for p in learner.model.parameters()]
    with pytest.raises(TinyRPNError) as e: learner.fit(3, checkpoint='run', resume=True)
    assert str(e.value).isprintable() and len(str(e.value)) < 700 and isinstance(e.value, (FileError, ParameterError, ShapeError))


@pytest.mark.parametrize('change', [lambda s: group(s).update(maximize=True, amsgrad=True, eps=-1., weight_decay='x', differentiable=True, fused=False, more=3), lambda s: s['scheduler'].update(gamma='x', base_lrs=[7.], optimizer=1)], ids=['groups', 'schedule'])
def test_settings_are_the_learners_own(change):
    unbroken = make(); unbroken.fit(3)
    tampered(change)
    again = make(seed=4); again.fit(checkpoint='run', resume=True); same(unbroken, again)


@pytest.mark.parametrize('change', [lambda s: s['metrics']['accuracy'].update(state={'reset': 1}), lambda s: s['metrics']['accuracy']['state'].update(tp=torch.ones(7)), lambda s: s['metrics'].update(accuracy=None)], ids=['a method', 'another shape', 'nothing'])
def test_counts_of_a_metric_that_do_not_fit_are_left(change):
    tampered(change)
    again = make()
    assert "metric 'accuracy': what it has counted cannot be taken up" in ' '.join(quietly(lambda: again.fit(3, checkpoint='run', resume=True)))
    assert again.epoch == 3 and callable(again.metrics['accuracy'].reset)


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='no pipes here')
def test_a_pipe_for_a_sum_does_not_hang():
    make().fit(1, checkpoint='run')
    beside = Checkpoints('run').files()[-1]; beside = beside.with_name(beside.name + '.sha256'); beside.unlink(); os.mkfifo(beside)
    with pytest.raises(FileError, match='it is no file but a folder, a pipe or a device'): make().fit(2, checkpoint='run', resume=True)


def test_a_link_for_the_folder_is_refused():
    Path('elsewhere').mkdir(); Path('elsewhere/.epoch-mine').write_text('x'); Path('run').mkdir(); Path('run/checkpoints').symlink_to('../elsewhere')
    for use in (lambda s: s.open(), lambda s: s.clear()):
        with pytest.raises(FileError, match='is a link'): use(Checkpoints('run'))
    assert Path('elsewhere/.epoch-mine').read_text() == 'x' and len(list(Path('elsewhere').iterdir())) == 1


# ---- checkpoints of earlier versions

@pytest.mark.parametrize('file', sorted((Path(__file__).parent/'files').glob('checkpoint-format-*.safetensors')), ids=lambda p: p.stem)
def test_runs_of_each_format_go_on(file):
    "The file holds a run of `make()` after one epoch of two"
    unbroken = make(); unbroken.fit(2)
    folder = Path('run/checkpoints'); folder.mkdir(parents=True)
    for suffix in ('', '.sha256'): (folder/f'epoch-000001-step-00000000.safetensors{suffix}').write_bytes(file.with_name(file.name + suffix).read_bytes())
    again = make(seed=3); quietly(lambda: again.fit(checkpoint='run', resume=True))
    assert again.epoch == 2 and again.history.rows[0]['train_accuracy'] > 0
    for v, w in zip(unbroken.model.parameters(), again.model.parameters()): torch.testing.assert_close(v, w, rtol=1e-4, atol=1e-5)
