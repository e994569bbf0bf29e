"""Resize: every picture to the size at which the model sees it, and so its grid of patches.

Source: Qwen2-VL (arXiv 2409.12191) section 2.1, native resolution.
"""
import numpy as np

from qvlkit.data.transforms.edits import Resize
from qvlkit.data.transforms.plan import plan_edit
from qvlkit.data.transforms.resize import smart_resize, video_frame_limits
from qvlkit.registry import TRANSFORMS
from qvlkit.structures import Media, Sample, SampleError, VisionGeometry


@TRANSFORMS.register_module()
class ResizeMedia:
    """Plan the last resizing, to multiples of the model's factor within the sample's pixel limits.

    Args:
        geometry: Of the model; injected.
    """
    random = False

    def __init__(self, *, geometry: VisionGeometry):
        self.geometry = geometry

    def __call__(self, sample: Sample, rng: np.random.Generator | None) -> Sample:
        """SampleError where a picture has a shape that cannot be resized."""
        for index, medium in enumerate(sample.media()):
            try:
                width, height = self.target(medium, sample.limits)
            except ValueError as error:
                raise SampleError(sample.id, f'{_name(medium)}{error}', 'bad_size') from error
            if medium.size != (width, height):
                plan_edit(sample, index, Resize(width, height))
            groups = -(-len(medium.frames) // self.geometry.temporal_patch_size) if medium.kind == 'video' else 1
            side = self.geometry.patch_size
            medium.grid = (groups, height // side, width // side)
        return sample

    def target(self, medium: Media, limits: dict) -> tuple[int, int]:
        """(width, height) at which the model sees a medium of its present size."""
        low, high = limits['min_pixels'], limits['max_pixels']
        if medium.kind == 'video':
            low, high = video_frame_limits(max(1, len(medium.frames)), min_pixels=limits['video_min_pixels'],
                                           max_pixels=limits['video_max_pixels'],
                                           total_pixels=limits['video_total_pixels'],
                                           temporal_patch_size=self.geometry.temporal_patch_size)
        width, height = medium.size
        height, width = smart_resize(height, width, factor=self.geometry.factor, min_pixels=low, max_pixels=high)
        return width, height


def _name(medium: Media) -> str:
    from pathlib import Path
    return f'{str(medium.source)[:300]!r}: ' if isinstance(medium.source, str | Path) else ''
