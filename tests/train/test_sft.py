"""Supervised fine-tuning: the loss of the supervised rows, frozen parts, learning."""
import itertools

import pytest
import torch
from torch.nn import functional as F

from qvlkit.losses.cross_entropy import FullCrossEntropy


def test_the_loss_is_the_cross_entropy_of_the_targets(build):
    trainer = build(dtype=torch.float64)
    batch, = next(iter(trainer.loader))
    expected = F.cross_entropy(trainer.model.logits(batch)[batch.target_rows], batch.target_ids, reduction='sum')
    assert trainer.compute_loss(batch).item() == pytest.approx(expected.item(), rel=1e-10)
    assert batch.num_targets > 10


def test_another_loss_by_one_override(build):
    chunked, full = build(dtype=torch.float64), build('stages.sft.trainer.loss.type=FullCrossEntropy',
                                                      dtype=torch.float64)
    assert isinstance(full.loss, FullCrossEntropy)
    for rows in itertools.islice(chunked.loader, 2):
        assert chunked.train_step(rows)['loss'].item() == pytest.approx(full.train_step(rows)['loss'].item(), rel=1e-9)


@pytest.mark.parametrize('frozen', ['vision_encoder', 'merger', 'language_model'])
def test_a_frozen_part_keeps_every_bit_and_the_others_move(build, frozen):
    trainer = build(f'stages.sft.parts.{frozen}.trainable=false')
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    for rows in itertools.islice(trainer.loader, 2):
        trainer.train_step(rows)
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith(f'{frozen}.'), name


def test_a_part_has_its_own_learning_rate(build):
    trainer = build('stages.sft.parts.merger.lr=0.0')
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train_step(next(iter(trainer.loader)))
    moved = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and not any(name.startswith('merger.') for name in moved)


def test_the_loss_falls(build):
    trainer = build('stages.sft.data.size=10', 'stages.sft.max_steps=25', 'stages.sft.optimizer.lr=0.003')
    losses = [trainer.train_step(rows)['loss'].item() for rows in itertools.islice(trainer.loader, 25)]
    assert sum(losses[-3:]) < 0.6 * sum(losses[:3])
