"""Write: boxes, points and polygons as text, the last thing that happens to them.

Source: Qwen2.5-VL (arXiv 2502.13923) section 2.2.1: absolute pixels of the picture as the model sees it.
"""
import numpy as np

from qvlkit.data.formats.grounding import check_style, regions_to_text
from qvlkit.data.transforms.regions import finish
from qvlkit.registry import TRANSFORMS
from qvlkit.structures import Region, Sample, SampleError


@TRANSFORMS.register_module()
class WriteRegions:
    """Replace each region in the turns by its text.

    Args:
        style: 'json' (Qwen2.5-VL's own), 'xml', 'plain', or 'qwen2' (Qwen2-VL's tokens, 0 to 1000).
    """
    random = False

    def __init__(self, style: str = 'json'):
        check_style(style)
        self.style = style

    def __call__(self, sample: Sample, rng: np.random.Generator | None) -> Sample:
        """SampleError where a region cannot be written."""
        sizes = [medium.size for medium in sample.media()]
        try:
            for turn in sample.turns:
                finished = [finish(item, sizes[item.media_index]) if isinstance(item, Region) else item
                            for item in turn.content]
                turn.content = regions_to_text(finished, sizes, self.style)
        except ValueError as error:
            raise SampleError(sample.id, str(error), 'bad_box') from error
        return sample
