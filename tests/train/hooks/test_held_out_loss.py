"""Held-out loss: the same as the trainer's own on the same rows, before and after, and with others' pictures."""
import pytest
import torch

from qvlkit.data.datasets.as_documents import AsDocuments
from qvlkit.data.datasets.picture_tasks import PictureTasks
from qvlkit.train.hooks.held_out_loss import HeldOutLossHook, with_other_media
from qvlkit.train.recipe import build_stage

CAPTIONS = ['stages.sft.trainer.type=PretrainTrainer', 'stages.sft.data.tasks=[name]']


def held_out(size=12):
    return AsDocuments(PictureTasks(size, split='held_out', tasks=('name',), picture_sizes=((112, 112),)),
                       questions=False)


def test_it_is_the_mean_over_all_targets_whatever_the_rows(build):
    trainer, samples = build(*CAPTIONS, dtype=torch.float64), [held_out()[index] for index in range(12)]
    alone = [HeldOutLossHook(held_out(), row_length=1).measure(trainer, [sample]) for sample in samples]
    targets = [trainer.processor.measure(sample).num_targets for sample in samples]
    expected = sum(loss * count for loss, count in zip(alone, targets)) / sum(targets)
    for row_length in (1, 60, 10_000):
        hook = HeldOutLossHook(held_out(), row_length=row_length)
        assert hook.measure(trainer, samples) == pytest.approx(expected, rel=1e-10)
    assert trainer.model.training and all(p.grad is None for p in trainer.model.parameters())


def test_training_lowers_it_and_the_numbers_go_into_the_results(build):
    trainer = build(*CAPTIONS, 'stages.sft.max_steps=6')
    trainer.hooks.append(HeldOutLossHook(held_out(), name='caption loss', other_pictures=True))
    trainer.fit()
    result = trainer.results['caption loss']
    assert result['after'] < result['before'] - 0.2
    assert set(trainer.results['caption loss, other pictures']) == {'before', 'after'}


def test_a_contrastive_stage_is_refused(small, tmp_path):
    trainer = build_stage(small('stages.contrastive.hooks={}'), 'contrastive', tmp_path)
    trainer.hooks = [HeldOutLossHook(held_out())]
    with pytest.raises(ValueError, match=r'stages.contrastive.hooks: HeldOutLossHook .* expected a ZeroShotHook'):
        trainer.fit()


def test_other_media_are_those_of_another_sample_of_the_same_kind():
    samples = [held_out()[index] for index in range(4)]
    swapped = with_other_media(samples)
    for index, sample in enumerate(swapped):
        assert sample.media() == samples[(index + 1) % 4].media() != samples[index].media()
        assert sample.turns[0].content[1:] == samples[index].turns[0].content[1:]
    assert with_other_media(samples[:1])[0].media() == samples[0].media()
