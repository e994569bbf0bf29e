"""Place: boxes, points and polygons of every coordinate space onto the pixels of the opened picture."""
from collections.abc import Callable

import numpy as np

from qvlkit.data.transforms.regions import to_pixels
from qvlkit.registry import TRANSFORMS
from qvlkit.structures import Media, Region, Sample, SampleError


@TRANSFORMS.register_module()
class PlaceRegions:
    """Boxes, points and polygons of every space to the pixels of the picture as it was opened.

    Args:
        resized_size: (medium, limits) -> the size that the picture would be resized to; injected.
    """
    random = False

    def __init__(self, *, resized_size: Callable[[Media, dict], tuple[int, int]]):
        self.resized_size = resized_size

    def __call__(self, sample: Sample, rng: np.random.Generator | None) -> Sample:
        """SampleError where a region is ill-formed or lies on no medium."""
        media = sample.media()
        for turn in sample.turns:
            turn.content = [self._place(item, media, sample) if isinstance(item, Region) else item
                            for item in turn.content]
        return sample

    def _place(self, region: Region, media: list[Media], sample: Sample) -> Region:
        if not 0 <= region.media_index < len(media):
            raise SampleError(sample.id, f'box {list(region.coordinates)} is on medium {region.media_index}, but the '
                              f'sample has {len(media)} images and videos', 'bad_box')
        medium = media[region.media_index]
        try:
            resized = self.resized_size(medium, sample.limits) if region.space == 'resized' else medium.size
            return to_pixels(region, medium.size, resized)
        except ValueError as error:
            raise SampleError(sample.id, str(error), 'bad_box') from error
