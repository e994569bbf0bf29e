"""The loss on held-out samples, before and after training, and with the pictures of other samples in their place."""
import dataclasses
from typing import Any

import torch

from qvlkit.registry import DATASETS, HOOKS
from qvlkit.structures import Media, Sample
from qvlkit.train.contrastive import ContrastiveTrainer
from qvlkit.train.hooks.base import Hook


@HOOKS.register_module()
class HeldOutLossHook(Hook):
    """Mean loss of each held-out target, noted in `trainer.results`.

    Args:
        dataset: Config of the held-out samples, or a built dataset.
        name: Of the number in the table of stages.
        row_length: Tokens of a row, at most.
        other_pictures: Also measure the loss with each sample's media swapped for those of the next sample with as
            many: what the pictures are worth to the model is the difference.

    Raises:
        ValueError: When training begins: the stage is contrastive, where a pair's loss depends on the pairs beside it.
    """
    main_only = True

    def __init__(self, dataset: Any, *, name: str = 'held-out loss', row_length: int = 2048,
                 other_pictures: bool = False):
        self.dataset = DATASETS.build(dataset, config_key='hooks.held_out_loss.dataset') if isinstance(
            dataset, dict) else dataset
        self.name, self.row_length, self.other_pictures = name, row_length, other_pictures

    def before_train(self, trainer) -> None:
        if isinstance(trainer, ContrastiveTrainer):
            raise ValueError(f'stages.{trainer.stage}.hooks: HeldOutLossHook cannot measure a contrastive loss: '
                             'that of a pair depends on the others of its step; expected a ZeroShotHook')
        if trainer.step == 0:
            self._note(trainer, 'before')

    def after_train(self, trainer) -> None:
        self._note(trainer, 'after')

    def _note(self, trainer, when: str) -> None:
        samples = [self.dataset[index] for index in range(len(self.dataset))]
        trainer.results.setdefault(self.name, {})[when] = self.measure(trainer, samples)
        if self.other_pictures:
            swapped = trainer.results.setdefault(f'{self.name}, other pictures', {})
            swapped[when] = self.measure(trainer, with_other_media(samples))

    def measure(self, trainer, samples: list[Sample]) -> float:
        """Sum of the losses over the targets of all samples."""
        encoder, collate = trainer.loader.rows.processor, trainer.loader.rows.collate
        rows, used = [[]], 0
        for sample in samples:
            encoded = encoder.encode(dataclasses.replace(sample, source=trainer.loader.dataset.sources[0].name))
            if used + encoded.length > self.row_length and rows[-1]:
                rows.append([])
                used = 0
            rows[-1].append(encoded)
            used += encoded.length
        total, units = 0.0, 0
        trainer.model.eval()
        with torch.no_grad(), trainer.strategy.autocast():
            for row in rows:
                batch = collate(row).to(trainer.device)
                total = total + trainer.compute_loss(batch).double()
                units += trainer.loss_units(batch)
        trainer.model.train()
        return (total / units).item()


def with_other_media(samples: list[Sample]) -> list[Sample]:
    """The samples with the media of the next one that has as many of the same kinds."""
    kinds = [tuple(medium.kind for medium in sample.media()) for sample in samples]
    result = []
    for index, sample in enumerate(samples):
        places = [*range(index + 1, len(samples)), *range(index)]
        other = next((place for place in places if kinds[place] == kinds[index]), index)
        media = iter(samples[other].media())
        turns = [dataclasses.replace(turn, content=[next(media) if isinstance(item, Media) else item
                                                    for item in turn.content]) for turn in sample.turns]
        result.append(dataclasses.replace(sample, turns=turns))
    return result
