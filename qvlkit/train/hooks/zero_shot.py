"""Held-out pairs before and after contrastive training: retrieval, and naming a picture's class without a question."""
import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

import torch

from qvlkit.data.image_text import EncodedPair, collate_image_text
from qvlkit.evaluation.zero_shot import Score, ZeroShotEvaluator
from qvlkit.registry import DATASETS, HOOKS
from qvlkit.train.hooks.base import Hook

FILE = 'evaluation.json'
IN_THE_TABLE = ('zero-shot accuracy', 'retrieval recall@1')  # of the stages; the file has them all


@HOOKS.register_module()
class ZeroShotHook(Hook):
    """Retrieval and zero-shot classification beside chance and the untrained towers; `evaluation.json`.

    Args:
        dataset: Config of held-out pairs, or a built dataset; see `ZeroShotEvaluator`.
        batch_size: Pairs embedded at once.
        templates: Captions of a class, with {} where its name stands.
    """
    main_only = True

    def __init__(self, dataset: Any, *, batch_size: int = 64, templates: Sequence[str] = ('{}',)):
        self.dataset = DATASETS.build(dataset, config_key='hooks.zero_shot.dataset') if isinstance(
            dataset, dict) else dataset
        self.batch_size, self.templates = batch_size, tuple(templates)

    @classmethod
    def misfit(cls, trainer: type) -> str | None:
        return None if trainer.two_towers else 'compares the two towers of a contrastive stage (towers)'

    def before_train(self, trainer) -> None:
        if not hasattr(trainer.model, 'embed_images'):
            raise ValueError(f'stages.{trainer.stage}.hooks: ZeroShotHook needs two towers, and the stage trains a '
                             f'{type(trainer.model).__name__} (stages.{trainer.stage}.towers)')
        self.evaluator = ZeroShotEvaluator(self.dataset, trainer.loader.processor, batch_size=self.batch_size,
                                           templates=self.templates)
        if trainer.step == 0:
            self._note(trainer, 'before', self.evaluate(trainer))

    def after_train(self, trainer) -> None:
        self._note(trainer, 'after', self.evaluate(trainer))

    def evaluate(self, trainer) -> dict[str, Score]:
        """The towers as they stand."""
        model, processor = trainer.model, trainer.loader.processor

        def embed(tower: Callable) -> Callable[[list[EncodedPair]], torch.Tensor]:
            def rows(pairs: list[EncodedPair]) -> torch.Tensor:
                batch = collate_image_text(pairs, plan=processor.plan, geometry=processor.geometry)
                return tower(batch.to(trainer.device))
            return rows

        was_training = model.training
        model.eval()
        with torch.no_grad(), trainer.strategy.autocast():
            scores = self.evaluator(embed(model.embed_images), embed(model.embed_texts))
        model.train(was_training)
        return scores

    def _note(self, trainer, when: str, scores: dict[str, Score]) -> None:
        """Into the table of stages, and the file; what stood there from before a resume stays."""
        for name in IN_THE_TABLE:
            if name in scores:
                score = scores[name]
                result = trainer.results.setdefault(name, dict(unit='%', chance=score.chance, count=score.count))
                result[when] = score.share
        path = trainer.work_dir / FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        key = {'before': 'untrained', 'after': 'trained'}[when]
        kept = json.loads(path.read_text(encoding='utf-8')) if key == 'trained' and path.is_file() else {}
        kept |= {key: {name: dataclasses.asdict(score) for name, score in scores.items()}}
        path.write_text(json.dumps(kept, indent=1), encoding='utf-8')
