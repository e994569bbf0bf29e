"""Crop: keep a random part of each picture, planned before it is decoded; boxes go along."""
import numpy as np

from qvlkit.data.transforms.edits import Crop
from qvlkit.data.transforms.plan import plan_edit
from qvlkit.data.transforms.regions import move
from qvlkit.registry import TRANSFORMS
from qvlkit.structures import Region, Sample


@TRANSFORMS.register_module()
class RandomCrop:
    """Keep a random part of each picture. A part that would lose one of the sample's regions is not taken.

    Args:
        scale: (least, most) share of each side that stays.
        tries: How many parts are tried before the picture is left whole.
    """
    needs_pixels = False

    def __init__(self, scale: tuple[float, float] = (0.6, 1.0), tries: int = 10):
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f'RandomCrop.scale: expected 0 < least <= most <= 1, got {scale!r}')
        self.scale, self.tries = tuple(scale), tries

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Sample -> Sample."""
        regions = [item for turn in sample.turns for item in turn.content if isinstance(item, Region)]
        for index, medium in enumerate(sample.media()):
            width, height = medium.size
            for _ in range(self.tries):
                kept_width, kept_height = (max(1, round(side * part)) for side, part in
                                           zip(medium.size, rng.uniform(*self.scale, size=2)))
                x, y = int(rng.integers(width - kept_width + 1)), int(rng.integers(height - kept_height + 1))
                crop = Crop(x, y, x + kept_width, y + kept_height)
                if all(move(region, crop, medium.size) is not None for region in regions
                       if region.media_index == index):
                    plan_edit(sample, index, crop)
                    break
        return sample
