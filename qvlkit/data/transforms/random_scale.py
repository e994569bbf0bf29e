"""Scale: another resolution of each picture at random, planned before it is decoded; boxes go along."""
import numpy as np

from qvlkit.data.transforms.edits import Resize
from qvlkit.data.transforms.plan import plan_edit
from qvlkit.registry import TRANSFORMS
from qvlkit.structures import Sample


@TRANSFORMS.register_module()
class RandomScale:
    """Scale each picture, its shape kept, so that training sees every resolution (dynamic resolution).

    Args:
        scale: (least, most) factor of each side, drawn evenly on a logarithmic scale.
    """
    needs_pixels = False

    def __init__(self, scale: tuple[float, float] = (0.5, 1.5)):
        if not 0 < scale[0] <= scale[1]:
            raise ValueError(f'RandomScale.scale: expected 0 < least <= most, got {scale!r}')
        self.scale = tuple(scale)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Sample -> Sample."""
        for index, medium in enumerate(sample.media()):
            factor = float(np.exp(rng.uniform(*np.log(self.scale))))
            width, height = (max(1, round(side * factor)) for side in medium.size)
            plan_edit(sample, index, Resize(width, height))
        return sample
