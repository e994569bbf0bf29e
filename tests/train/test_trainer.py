"""The loop: accumulation, what the loss is divided by, hooks, clipping, and resuming bit for bit."""
import itertools
import json

import pytest
import torch
from safetensors.torch import load_file
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode

from qvlkit.cli import train as train_cli
from qvlkit.data.collate import collate
from qvlkit.engine.checkpoint import checkpoints
from qvlkit.engine.optimizers import AdamW
from qvlkit.engine.schedules import WarmupConstant
from qvlkit.models.builder import build_model
from qvlkit.train.hooks.base import Hook
from qvlkit.train.recipe import build_stage, run_recipe

POINTS = ['before_run', 'before_train', 'before_train_iter', 'after_train_iter', 'before_save_checkpoint',
          'after_train', 'after_run']


class Stop(Exception):
    pass


class StopAfter(Hook):
    """Breaks the run off, as a kill between two steps does."""

    def __init__(self, step):
        self.step = step

    def after_train_iter(self, trainer):
        if trainer.step == self.step:
            raise Stop


class Recorder(Hook):
    def __init__(self, name, calls):
        for point in POINTS:
            setattr(self, point, lambda trainer, point=point: calls.append((point, trainer.step, name)))


def encoded(trainer, count):
    return [trainer.processor.encode(trainer.loader.dataset[index]) for index in range(count)]


def join(trainer, samples):
    return collate(samples, plan=trainer.processor.plan, geometry=trainer.model.geometry)


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def test_accumulated_rows_are_one_big_step(build):
    """In float64: two or three rows of unequal targets, or the same samples in one row."""
    numbers, states = [], []
    for cuts in ([0, 6], [0, 1, 6], [0, 2, 3, 6]):
        trainer = build(dtype=torch.float64)
        samples = encoded(trainer, 12)
        steps = []
        for start in (0, 6):
            rows = [join(trainer, samples[start + a:start + b]) for a, b in itertools.pairwise(cuts)]
            steps.append(trainer.train_step(rows))
        numbers.append([[step[key].item() for key in ('loss', 'grad_norm', 'num_targets')] for step in steps])
        states.append(weights(trainer))
    assert 1 < numbers[0][0][0] < 20 and numbers[0][0] != numbers[0][1]
    for other, state in zip(numbers[1:], states[1:]):
        assert other[0] == pytest.approx(numbers[0][0], rel=0, abs=1e-10)
        assert other[1] == pytest.approx(numbers[0][1], rel=0, abs=1e-10)
        for name, value in state.items():
            torch.testing.assert_close(value, states[0][name], rtol=0, atol=1e-10, msg=name)


def test_the_loss_is_the_sum_over_targets_by_their_number(build):
    trainer = build(dtype=torch.float64)
    rows = [join(trainer, encoded(trainer, 2)), join(trainer, encoded(trainer, 5)[2:])]
    total = 0.0
    with torch.no_grad():
        for row in rows:
            log_probabilities = trainer.model.logits(row)[row.target_rows].log_softmax(-1)
            total -= log_probabilities.gather(1, row.target_ids[:, None]).sum().item()
    targets = sum(row.num_targets for row in rows)
    metrics = trainer.train_step(rows)
    assert metrics['loss'].item() == pytest.approx(total / targets, rel=1e-10)
    assert metrics['num_targets'].item() == targets
    assert metrics['num_tokens'] == sum(row.num_tokens for row in rows)


def test_hooks_are_called_at_every_point_in_their_order(build):
    calls = []
    trainer = build('stages.sft.max_steps=2')
    trainer.hooks = [Recorder('a', calls), Recorder('b', calls)]
    trainer.fit()
    points = [('before_run', 0), ('before_train', 0), ('before_train_iter', 0), ('after_train_iter', 1),
              ('before_train_iter', 1), ('after_train_iter', 2), ('after_train', 2), ('after_run', 2)]
    assert calls == [(*point, name) for point in points for name in 'ab']
    calls.clear()
    trainer.save()
    assert calls == [('before_save_checkpoint', 2, name) for name in 'ab']


def test_after_run_is_called_where_training_breaks_off(build):
    calls = []
    trainer = build()
    trainer.hooks = [Recorder('a', calls), StopAfter(2)]
    with pytest.raises(Stop):
        trainer.fit()
    assert [call[:2] for call in calls[-2:]] == [('after_train_iter', 2), ('after_run', 2)]


def test_gradients_are_clipped_to_the_norm(build):
    """With plain steps of size 1, the weights move by exactly the clipped norm."""
    norms = {}
    for limit in (None, 0.25):
        trainer = build(f'stages.sft.max_grad_norm={"null" if limit is None else limit}', dtype=torch.float64)
        before = weights(trainer)
        trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=1.0)
        trainer.schedule = WarmupConstant(trainer.optimizer, max_steps=8)
        norms[limit] = trainer.train_step([join(trainer, encoded(trainer, 3))])['grad_norm'].item()
        moved = torch.stack([(value - before[name]).norm() for name, value in weights(trainer).items()]).norm().item()
        assert moved == pytest.approx(norms[limit] if limit is None else limit, rel=1e-5)
    assert norms[None] == norms[0.25] > 0.25


def test_a_step_asks_the_device_for_nothing(build):
    """On fake tensors, which have no values, reading a number back from the device is an error."""
    trainer = build()
    rows = [join(trainer, encoded(trainer, count)) for count in (2, 3)]
    with FakeTensorMode(allow_non_fake_inputs=True):
        trainer.model = build_model(trainer.config['model'], vocab_size=384)
        trainer.optimizer = AdamW(trainer.model.parameters(), lr=0.1)
        trainer.schedule = WarmupConstant(trainer.optimizer, max_steps=8)
        metrics = trainer.train_step(rows)
        with pytest.raises(DataDependentOutputException):
            metrics['loss'].item()
    assert all(isinstance(metrics[key], FakeTensor) for key in ('loss', 'grad_norm'))


def interrupt(config, folder, step):
    trainer = build_stage(config, 'sft', folder / 'sft')
    trainer.hooks.append(StopAfter(step))
    with pytest.raises(Stop):
        trainer.fit()
    return trainer


def final(folder):
    """The newest step, and its weights and optimizer states bit by bit (a file's header has no fixed order)."""
    step, path = max((int(path.name.removeprefix('step_')), path) for path in (folder / 'sft').glob('step_*'))
    tensors = {f'{file}: {name}': tensor.numpy().tobytes() for file in ('model', 'optimizer')
               for name, tensor in load_file(path / f'{file}.safetensors').items()}
    return step, tensors


@pytest.fixture
def straight(small, tmp_path):
    config = small()
    run_recipe(config, work_dir=tmp_path / 'straight')
    return tmp_path / 'straight'


@pytest.mark.parametrize('stop', [4, 6])
def test_a_stop_and_a_resume_are_bit_equal_to_no_stop(small, tmp_path, straight, losses, stop):
    """Stopped at the checkpoint of step 4, and two steps behind it; both lie inside a window of samples."""
    interrupt(small(), tmp_path / 'resumed', stop)
    state = json.loads((tmp_path / 'resumed' / 'sft' / 'step_4' / 'state.json').read_text())['trainer']['loader']
    assert 0 < state['step'] and state['key']
    run_recipe(small(), work_dir=tmp_path / 'resumed', resume=True)
    assert len(losses(straight / 'sft')) == 8
    assert losses(tmp_path / 'resumed' / 'sft') == losses(straight / 'sft')
    assert final(tmp_path / 'resumed') == final(straight)
    assert final(straight)[0] == 8


def test_without_the_loaders_state_a_resume_differs(small, tmp_path, straight, losses):
    interrupt(small(), tmp_path / 'resumed', 4)
    trainer = build_stage(small(), 'sft', tmp_path / 'resumed' / 'sft')
    fresh = trainer.loader.state_dict()
    trainer.resume()
    trainer.loader.load_state_dict(fresh)
    trainer.fit()
    assert losses(tmp_path / 'resumed' / 'sft')[:4] == losses(straight / 'sft')[:4]
    assert losses(tmp_path / 'resumed' / 'sft')[4] != losses(straight / 'sft')[4]
    assert final(tmp_path / 'resumed') != final(straight)


def test_another_number_of_workers_and_accumulated_rows_resume_too(small, tmp_path, losses):
    config = small('stages.sft.accumulation=3')
    run_recipe(config, work_dir=tmp_path / 'straight')
    interrupt(config, tmp_path / 'resumed', 5)
    with_worker = small('stages.sft.accumulation=3', 'stages.sft.loader.num_workers=1')
    run_recipe(with_worker, work_dir=tmp_path / 'resumed', resume=True)
    assert losses(tmp_path / 'resumed' / 'sft') == losses(tmp_path / 'straight' / 'sft')


def test_the_resolved_config_trains_again_to_the_same_losses(small_file, tmp_path, losses):
    arguments = ['--set', 'stages.sft.max_steps=3', 'seed=5', '--work-dir', str(tmp_path / 'first')]
    assert train_cli.main([str(small_file), *arguments]) == 0
    assert train_cli.main([str(tmp_path / 'first' / 'config.json'), '--work-dir', str(tmp_path / 'second')]) == 0
    assert losses(tmp_path / 'first' / 'sft') == losses(tmp_path / 'second' / 'sft')
    assert len(losses(tmp_path / 'first' / 'sft')) == 3
    assert train_cli.main([str(small_file), '--set', 'stages.sft.max_steps=3', '--work-dir', str(tmp_path / 'o')]) == 0
    assert losses(tmp_path / 'o' / 'sft') != losses(tmp_path / 'first' / 'sft')  # another seed, other losses


def test_an_earlier_run_is_not_overwritten_and_nothing_is_resumed_from_nothing(small_file, tmp_path, capsys):
    arguments = [str(small_file), '--set', 'stages.sft.max_steps=2', '--work-dir', str(tmp_path / 'run')]
    assert train_cli.main([*arguments, '--resume']) == 2
    assert str(tmp_path / 'run' / 'sft') in capsys.readouterr().err
    assert train_cli.main(arguments) == 0
    kept = final(tmp_path / 'run')
    assert train_cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert 'earlier run' in error and '--resume' in error and '--work-dir' in error
    assert final(tmp_path / 'run') == kept and len(checkpoints(tmp_path / 'run' / 'sft')) == 1
