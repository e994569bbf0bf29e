"""Bad steps: not finite, spiking, and too many in a row. On one process and on two; without the guard they do harm."""
import importlib.util
import itertools
import json
import math
from pathlib import Path

import pytest
import torch

from qvlkit.engine.checkpoint import checkpoints
from qvlkit.train.guard import FEW_LOSSES, Guard, build_guard
from qvlkit.train.hooks.base import Hook
from qvlkit.train.hooks.checkpoint import CheckpointHook
from qvlkit.train.hooks.jsonl import JSONLHook, read_log
from qvlkit.train.recipe import build_stage


def _fixtures(path: str):
    spec = importlib.util.spec_from_file_location(path.replace('/', '_'), Path(__file__).parents[1] / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_train, _ranks = _fixtures('train/conftest.py'), _fixtures('distributed/conftest.py')
small_file, small, build, on_ranks = _train.small_file, _train.small, _train.build, _ranks.on_ranks


class Faults(Hook):
    """Multiplies the loss (or only its gradient) of some micro-batches at some positions of the data.

    Args:
        trainer: Its `compute_loss` is wrapped.
        positions: Steps of data, from 1.
        value: The factor.
        row: Which micro-batch of the step; all if None.
        gradient_only: The loss stays as it is and its gradient does not.
    """

    def __init__(self, trainer, positions, value, *, row=None, gradient_only=False):
        self.unchanged, self.ids, self.seen = [], [], []
        self.rows, original = itertools.count(), trainer.compute_loss

        def compute_loss(batch):
            number = next(self.rows)
            loss = original(batch)
            if trainer.guard.position not in positions or number != (number if row is None else row):
                return loss
            if gradient_only:
                loss.register_hook(lambda gradient: gradient * value)
                return loss
            return loss * value
        trainer.compute_loss = compute_loss

    def before_train_iter(self, trainer):
        self.rows = itertools.count()

    def before_optimizer_step(self, trainer):
        self.before = state(trainer)

    def after_train_iter(self, trainer):
        now = state(trainer)
        self.unchanged.append(all(torch.equal(now[name], self.before[name]) for name in self.before))
        self.ids.append([name for row in trainer.rows for name in row.sample_ids])
        self.seen.append(trainer.guard.position)


def state(trainer):
    """Weights and the optimizer's tensors."""
    found = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    for number, entries in enumerate(trainer.optimizer.state.values()):
        found |= {f'{number}/{key}': value.clone() for key, value in entries.items() if key != 'step' or number == 0}
    return found


def log_of(folder):
    return [json.loads(line) for line in (folder / 'guard.jsonl').read_text().splitlines()]


def run(build, positions, value, *overrides, guard=None, steps=6, **options):
    trainer = build(f'stages.sft.max_steps={steps}', 'stages.sft.accumulation=2', *overrides)
    trainer.guard = guard or Guard()
    trainer.hooks = [faults := Faults(trainer, positions, value, **options)]
    trainer.fit()
    return trainer, faults


@pytest.mark.parametrize('value, options, reason', [
    (math.nan, dict(row=0), 'the loss is nan'), (math.nan, dict(row=1), 'the loss is nan'),
    (math.inf, {}, 'the loss is inf'),
    (math.inf, dict(gradient_only=True), 'the norm of the gradients is'),
    (1e38, dict(gradient_only=True), 'the norm of the gradients is inf')])
def test_a_step_that_is_not_finite_changes_nothing(build, tmp_path, value, options, reason):
    """One micro-batch, or the gradients alone: weights and the optimizer's state stay bit for bit."""
    trainer, faults = run(build, {3}, value, **options)
    assert faults.unchanged == [False, False, True, False, False, False]
    assert all(torch.isfinite(parameter).all() for parameter in trainer.model.parameters())
    entry, = log_of(tmp_path / 'sft')
    assert (entry['step'], entry['position'], entry['in_a_row'], entry['skipped']) == (3, 3, 1, 1)
    assert entry['reason'].startswith(reason)
    assert [name for row in entry['rows'] for name in row['samples']] == faults.ids[2]
    assert all(len(row['sources']) == len(row['samples']) for row in entry['rows'])
    if 'row' in options:
        assert [row['loss'] == 'nan' for row in entry['rows']] == [row == options['row'] for row in (0, 1)]
    assert trainer.step == 6 and trainer.schedule.last_epoch == 6  # data and learning rate went on
    assert trainer.guard.streak == [] and trainer.guard.skipped == 1


def test_the_control_without_the_guard_the_weights_are_lost(build):
    trainer, faults = run(build, {3}, math.nan, guard=build_guard(None), row=0)
    assert not faults.unchanged[2]
    assert not any(torch.isfinite(parameter).all() for parameter in trainer.model.parameters())


def test_the_guard_changes_no_bit_of_a_good_run(build):
    states = [state(run(build, (), 1.0, guard=guard)[0]) for guard in (Guard(), build_guard(None))]
    assert states[0].keys() == states[1].keys() and all(torch.equal(states[0][n], states[1][n]) for n in states[0])


def test_an_optimizer_that_cannot_be_told_on_the_device_is_not_called(build):
    trainer = build('stages.sft.max_steps=4')
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.01)
    trainer.schedule = torch.optim.lr_scheduler.ConstantLR(trainer.optimizer)
    trainer.hooks = [faults := Faults(trainer, {2}, math.nan)]
    trainer.fit()
    assert faults.unchanged == [False, True, False, False]


@pytest.mark.parametrize('factor, left_out', [(20.0, [25]), (3.0, [])])
def test_a_single_spike_is_left_out_and_a_small_one_is_not(build, tmp_path, factor, left_out):
    trainer, faults = run(build, {25}, factor, 'stages.sft.accumulation=1', steps=27)
    assert [step for step, same in enumerate(faults.unchanged, 1) if same] == left_out
    if left_out:
        entry, = log_of(tmp_path / 'sft')
        assert 'over 10 times the median' in entry['reason'] and entry['loss'] > 10 * entry['median']
        assert 1 < entry['median'] < 8


def test_a_spike_among_the_first_steps_is_not_judged_and_none_is_without_a_factor():
    for guard, steps, expected in ((Guard(), FEW_LOSSES - 1, False), (Guard(), FEW_LOSSES, True),
                                   (Guard(spike_factor=None), 50, False), (Guard(spike_window=3), 3, True)):
        for loss in [2.0] * steps:
            assert not guard.judge(torch.tensor(loss), torch.tensor(1.0))
        assert bool(guard.judge(torch.tensor(21.0), torch.tensor(1.0))) is expected
        assert not guard.judge(torch.tensor(19.0), torch.tensor(1.0))


def test_the_median_forgets_old_losses_and_never_learns_bad_ones():
    guard = Guard(spike_window=20)
    for loss in [1.0] * 20 + [100.0, math.nan] * 5:
        bad = guard.judge(torch.tensor(loss), torch.tensor(1.0))
        assert bool(bad) is (loss != 1.0)
    for _ in range(30):
        guard.judge(torch.tensor(5.0), torch.tensor(1.0))
    assert not guard.judge(torch.tensor(45.0), torch.tensor(1.0))


def saving(trainer, positions, value, interval=2, keep=2):
    """Hooks as a config has them: log, faults, checkpoints."""
    faults = Faults(trainer, positions, value)
    trainer.hooks = [JSONLHook(interval=1), faults, CheckpointHook(interval=interval, keep=keep)]
    return faults


def test_too_many_in_a_row_put_the_run_back_and_their_data_are_left_out(build, tmp_path):
    """Bad data at 5, 6, 7; checkpoints at 2, 4, 6. The one of step 6 lies amid the bad steps: it is not taken, and does
    not push out the one of step 4."""
    trainer = build('stages.sft.max_steps=10')
    trainer.guard = Guard(max_skips_in_a_row=3)
    faults = saving(trainer, {5, 6, 7}, math.nan, keep=1)
    trainer.fit()
    assert faults.seen == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]
    assert faults.unchanged == [False] * 4 + [True] * 3 + [False] * 6
    assert trainer.step == 10 and trainer.guard.left_out == {5, 6, 7} and trainer.guard.rollbacks == 1
    events = log_of(tmp_path / 'sft')
    assert [event['in_a_row'] for event in events[:3]] == [1, 2, 3]
    assert events[3:] == [dict(step=7, rolled_back_to=4, left_out=[5, 6, 7])]
    rows = read_log(tmp_path / 'sft' / 'log.jsonl')
    assert [row['step'] for row in rows] == list(range(1, 11))  # each step once
    assert not any(row['skipped'] for row in rows) and all(math.isfinite(row['loss']) for row in rows)
    # the same weights come of a run that never had these data
    other = build('stages.sft.max_steps=10', work_dir=tmp_path / 'other')
    other.hooks, other.guard.left_out = [], {5, 6, 7}
    other.fit()
    assert all(torch.equal(value, other.model.state_dict()[name]) for name, value in trainer.model.state_dict().items())


def test_a_resume_behind_a_rollback_leaves_the_data_out_too(build, small, tmp_path):
    class Stop(Exception):
        pass

    class StopAt(Hook):
        def after_train_iter(self, trainer):
            if trainer.guard.position == 8:
                raise Stop
    trainer = build('stages.sft.max_steps=10')
    trainer.guard = Guard(max_skips_in_a_row=3)
    saving(trainer, {5, 6, 7}, math.nan)
    trainer.hooks.append(StopAt())
    with pytest.raises(Stop):
        trainer.fit()
    resumed = build('stages.sft.max_steps=10')
    resumed.guard = Guard(max_skips_in_a_row=3)
    faults = saving(resumed, {5, 6, 7}, math.nan)
    resumed.resume()
    assert (resumed.step, resumed.guard.rollbacks, resumed.guard.left_out) == (4, 1, {5, 6, 7})
    resumed.fit()
    assert faults.seen == [8, 9, 10, 11, 12, 13] and not any(faults.unchanged)


def test_the_count_of_bad_steps_goes_on_behind_a_resume(build, tmp_path):
    """Two bad steps before the stop and one after it are three in a row."""
    first = build('stages.sft.max_steps=4')
    saving(first, {3, 4}, math.nan)
    first.fit()
    second = build('stages.sft.max_steps=8')
    second.guard = Guard(max_skips_in_a_row=3)
    faults = saving(second, {3, 4, 5}, math.nan)
    second.resume()
    assert [step['step'] for step in second.guard.streak] == [3, 4] and second.guard.skipped == 2
    second.fit()
    assert log_of(tmp_path / 'sft')[-1] == dict(step=5, rolled_back_to=2, left_out=[3, 4, 5])
    assert faults.seen == [5, 6, 7, 8, 9, 10, 11] and second.guard.skipped == 3


def test_the_average_takes_in_no_step_that_was_left_out_and_goes_back_with_the_weights(build):
    """Bad data at 2, and at 6, 7, 8, behind which the run goes back to step 4, before the good step 5."""
    trainer = build('stages.sft.max_steps=10', 'stages.sft.ema={decay: 0.5}')
    trainer.guard = Guard(max_skips_in_a_row=3)
    saving(trainer, {2, 6, 7, 8}, math.nan)
    seen, back = [{name: value.clone() for name, value in trainer.ema.tensors().items()}], {}

    class Follow(Hook):
        def after_train_iter(self, trainer):
            seen.append({name: value.clone() for name, value in trainer.ema.tensors().items()})
            for name, value in seen[-1].items():
                if trainer.metrics['skipped']:
                    assert torch.equal(value, seen[-2][name]), name
                else:
                    weight = trainer.model.get_parameter(name)
                    torch.testing.assert_close(value, torch.lerp(seen[-2][name], weight, 0.5), rtol=1e-6, atol=1e-8)

        def after_rollback(self, trainer):
            back.update({name: value.clone() for name, value in trainer.ema.tensors().items()})
            assert trainer.step == 4
            seen.append(back)
    trainer.hooks.append(Follow())
    trainer.fit()
    assert len(seen) == 1 + 8 + 1 + 6 and trainer.guard.rollbacks == 1
    assert any(not torch.equal(value, seen[5][name]) for name, value in back.items())
    assert all(torch.equal(value, seen[4][name]) for name, value in back.items())


def test_the_median_of_a_resumed_run_is_that_of_one_that_went_on():
    first, second, other = Guard(spike_window=30), Guard(spike_window=30), Guard(spike_window=20)
    for number in range(40):
        first.judge(torch.tensor(1.0 + number), torch.tensor(1.0))
    saved = json.loads(json.dumps(first.state_dict()))
    second.load_state_dict(saved)
    other.load_state_dict(saved)
    for guard in (first, second, other):
        guard.judge(torch.tensor(50.0), torch.tensor(1.0))
    assert first.median == second.median == 25.0 and other.median == 30.0


def test_the_end_comes_after_so_many_rollbacks_and_says_what_was_seen(build, tmp_path):
    trainer = build('stages.sft.max_steps=20', 'stages.sft.data.size=200')
    trainer.guard = Guard(max_skips_in_a_row=2, max_rollbacks=1)
    saving(trainer, set(range(5, 30)), math.nan)
    with pytest.raises(ValueError, match=r'2 bad steps in a row, 5 to 6: the loss is nan.*went back 1 times already '
                                         r'\(guard.max_rollbacks\).*guard\.jsonl'):
        trainer.fit()
    assert all(torch.isfinite(parameter).all() for parameter in trainer.model.parameters())


def test_a_run_without_an_earlier_checkpoint_stops(build):
    trainer = build('stages.sft.max_steps=8')
    trainer.guard = Guard(max_skips_in_a_row=2)
    saving(trainer, {1, 2}, math.nan, interval=1)
    with pytest.raises(ValueError, match='2 bad steps in a row, 1 to 2: the loss is nan.*no checkpoint from before'):
        trainer.fit()


def test_a_corrupt_checkpoint_is_passed_over_for_the_one_before(build, tmp_path, caplog):
    trainer = build('stages.sft.max_steps=8')
    trainer.guard = Guard(max_skips_in_a_row=2)

    class Spoil(Hook):
        def after_train_iter(self, trainer):
            if trainer.step == 5:
                file = tmp_path / 'sft' / 'step_4' / 'model.safetensors'
                file.write_bytes(file.read_bytes()[:-1] + b'!')
    saving(trainer, {5, 6}, math.nan)
    trainer.hooks.insert(0, Spoil())
    trainer.fit()
    assert log_of(tmp_path / 'sft')[-1]['rolled_back_to'] == 2 and 'CORRUPT CHECKPOINT' in caplog.text
    assert checkpoints(tmp_path / 'sft')[0].name == 'step_8'


def test_settings_are_checked(small, tmp_path):
    for settings, words in ((dict(max_skips_in_a_row=0), r'guard.max_skips_in_a_row: .* at least 1, got 0'),
                            (dict(spike_factor=1.0), r'guard.spike_factor: .* above 1'),
                            (dict(spike_windw=3), "guard.spike_windw: unknown, did you mean 'spike_window'")):
        with pytest.raises(ValueError, match=words):
            build_guard(settings)
    with pytest.raises(ValueError, match="stages.sft.guard.max_rollback.*did you mean 'max_rollbacks'"):
        small('stages.sft.guard.max_rollback=3')
    assert build_stage(small('stages.sft.guard.max_rollbacks=0'), 'sft', tmp_path / 'sft').guard.max_rollbacks == 0
    assert not build_stage(small('stages.sft.guard=null'), 'sft', tmp_path / 'sft').guard.enabled
    assert build_stage(small(), 'sft', tmp_path / 'sft').guard.enabled


@pytest.mark.slow
def test_two_ranks_decide_alike_where_one_has_the_bad_rows(small, on_ranks):
    """Rows of rank 1 are bad at 3 and at 6 to 8: no rank moves, both go back, and the log has the rows of both."""
    config = small('stages.sft.max_steps=8', 'stages.sft.hooks.checkpoint.interval=2', 'stages.sft.data.size=200',
                   'stages.sft.guard.max_skips_in_a_row=3')
    arguments = dict(config=config, stage='sft', positions=[3, 6, 7, 8], rank=1, value='nan')
    first, second = on_ranks('poisoned', 2, arguments)
    assert first == second and first['error'] is None
    assert first['equal'] == [False, False, True, False, False, True, True, True, *[False] * 4]
    assert first['error'] is None and first['step'] == 8 and first['total'] not in ('nan', 'inf')
    assert first['guard']['left_out'] == [6, 7, 8] and first['guard']['skipped'] == 4
    assert first['log'][-1] == dict(step=8, rolled_back_to=4, left_out=[6, 7, 8])
    rows = first['log'][0]['rows']
    assert [row['rank'] for row in rows] == [0, 1] and [row['loss'] == 'nan' for row in rows] == [False, True]
    assert all(row['samples'] for row in rows)
