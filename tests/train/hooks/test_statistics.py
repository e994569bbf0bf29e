"""Norms of each part: against what plain steps of size 1 do to the weights."""
import json

import pytest
import torch

from qvlkit.engine.schedules import WarmupConstant
from qvlkit.train.guard import Guard
from qvlkit.train.hooks.base import Hook
from qvlkit.train.hooks.statistics import StatisticsHook


class Weights(Hook):
    """Copies of the weights before and after each step."""

    def __init__(self):
        self.before, self.after = [], []

    def before_train_iter(self, trainer):
        self.before.append({name: value.clone() for name, value in trainer.model.state_dict().items()})

    def after_train_iter(self, trainer):
        self.after.append({name: value.clone() for name, value in trainer.model.state_dict().items()})


def norm(tensors):
    return torch.cat([tensor.flatten().double() for tensor in tensors]).norm().item()


def lines(folder):
    return [json.loads(line) for line in (folder / 'statistics.jsonl').read_text().splitlines()]


def test_norms_of_each_part_that_trains(build, tmp_path):
    """Steps of SGD with a rate of 1 and no clipping change the weights by their gradients."""
    trainer = build('stages.sft.max_steps=5', 'stages.sft.parts.vision_encoder.trainable=false',
                    'stages.sft.max_grad_norm=null', dtype=torch.float64)
    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    trainer.optimizer = torch.optim.SGD(trained, lr=1.0)
    trainer.schedule = WarmupConstant(trainer.optimizer, max_steps=5)
    watch = Weights()
    trainer.hooks = [watch, StatisticsHook(interval=2)]
    trainer.fit()
    found = lines(tmp_path / 'sft')
    assert [line['step'] for line in found] == [2, 4, 5]
    for line in found:
        before, after = watch.before[line['step'] - 1], watch.after[line['step'] - 1]
        assert set(line['parts']) == {'merger', 'language_model'}
        for part, numbers in line['parts'].items():
            names = [name for name, _ in trainer.model.named_parameters() if name.startswith(part)]
            weight = norm(before[name] for name in names)
            change = norm(after[name] - before[name] for name in names)
            assert change > 0
            assert numbers == dict(grad_norm=pytest.approx(change, rel=1e-9), weight_norm=pytest.approx(weight),
                                   update_ratio=pytest.approx(change / weight, rel=1e-9))


def test_a_step_that_is_left_out_has_no_update_and_clipping_does_not_hide_the_gradient(build, tmp_path):
    trainer = build('stages.sft.max_steps=1', 'stages.sft.max_grad_norm=1e-6')
    trainer.hooks = [StatisticsHook(interval=1)]
    trainer.guard = Guard(max_skips_in_a_row=9)
    trainer.guard.judge = lambda loss, norm: torch.tensor(True)
    trainer.fit()
    (line,) = lines(tmp_path / 'sft')
    assert all(numbers['update_ratio'] == 0.0 and numbers['grad_norm'] > 1e-4 for numbers in line['parts'].values())


def test_a_resume_cuts_lines_behind_its_checkpoint_and_half_lines(build, tmp_path):
    trainer, file = build(), tmp_path / 'sft' / 'statistics.jsonl'
    file.parent.mkdir(exist_ok=True)
    file.write_text('{"step": 2}\n{"step": 4}\n{"st')
    trainer.step, trainer.hooks = 2, [StatisticsHook()]
    trainer.call_hooks('before_train')
    assert file.read_text() == '{"step": 2}\n'


def test_curves_go_to_a_tensorboard_hook(build):
    seen = {}

    class Board(Hook):
        def add_scalars(self, values, step):
            seen.update(values)
    trainer = build('stages.sft.max_steps=1')
    trainer.hooks = [Board(), StatisticsHook(interval=1)]
    trainer.fit()
    assert seen['parts/merger/update_ratio'] > 0


def test_a_wrong_interval_is_named():
    with pytest.raises(ValueError, match='StatisticsHook.interval'):
        StatisticsHook(interval=0)
