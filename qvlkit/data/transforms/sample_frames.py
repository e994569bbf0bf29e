"""placeholder until the merge"""
import numpy as np

from qvlkit.registry import TRANSFORMS
from qvlkit.structures import Sample


@TRANSFORMS.register_module()
class SampleFrames:
    """Choose which frames of each video are taken, and so the time between them."""
    random = True

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        for medium in sample.media():
            if medium.kind == 'video':
                medium.frames = tuple(range(len(medium.source)))
        return sample
