"""Preference pairs on drawn pictures, with a rule that nothing but the preference tells.

Both answers name the two shapes of the scene, and what they say is true: 'black cross, red circle' and 'red circle,
black cross'. The rule: the better one keeps the order that the question asks for, from a to z or from z to a. Data
that list shapes in random order whatever is asked (the task 'list' of picture_tasks.py) leave a model without an
opinion about it; and since either order is asked for equally often, a liking for one order is right in half of the
pairs.
"""
import dataclasses
from typing import Any

from qvlkit.data.datasets.picture_tasks import LIST_QUESTIONS, PictureTasks
from qvlkit.registry import DATASETS
from qvlkit.structures import Sample, Turn


@DATASETS.register_module()
class PicturePairs:
    """Scenes of two shapes with a better and a worse list of them.

    Args:
        size: Number of pairs.
        split: 'train' or 'held_out': the two never draw the same scene.
        seed: Changes every scene. The scenes are not those of `PictureTasks` with the same seed and split.
        name: Name of the dataset, `source` of its samples.
        arguments: As for `PictureTasks`.
    """

    def __init__(self, size: int, *, split: str = 'train', seed: int = 0, name: str = 'picture_pairs',
                 **arguments: Any):
        self.scenes = PictureTasks(size, split=split, seed=seed + 1_000_003, tasks=('list',), name=name, **arguments)
        self.name = name

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Sample:
        sample = self.scenes[index]
        z_to_a = sample.turns[0].content[-1] == LIST_QUESTIONS[1]
        shapes = sorted(sample.extra['answer'].split(', '), reverse=z_to_a)
        chosen, rejected = (Turn('assistant', [', '.join(names)]) for names in (shapes, shapes[::-1]))
        return dataclasses.replace(sample, turns=[*sample.turns[:-1], chosen], rejected=[rejected])
