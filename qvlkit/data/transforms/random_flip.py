"""Flip: mirror pictures at random, planned before they are decoded; boxes go along."""
import numpy as np

from qvlkit.data.transforms.edits import Flip
from qvlkit.data.transforms.plan import plan_edit
from qvlkit.registry import TRANSFORMS
from qvlkit.structures import Sample


@TRANSFORMS.register_module()
class RandomFlip:
    """Mirror left and right. Only for data whose text does not speak of sides, and whose pictures hold no writing.

    Args:
        probability: Of each picture.
    """
    needs_pixels = False

    def __init__(self, probability: float = 0.5):
        if not 0 <= probability <= 1:
            raise ValueError(f'RandomFlip.probability: expected 0 to 1, got {probability!r}')
        self.probability = probability

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Sample -> Sample."""
        for index in range(len(sample.media())):
            if rng.random() < self.probability:
                plan_edit(sample, index, Flip())
        return sample
