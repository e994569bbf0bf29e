"""Announce: an agent's trajectory tells, in its system turn, the actions there are and the size of the screen.

Source: Qwen2.5-VL (arXiv 2502.13923) section 2.2.1, agent data: actions as function calls, in pixels of the screenshot
as the model sees it. So the size is known only after resizing.
"""
import numpy as np

from qvlkit.data.formats.trajectory import announce
from qvlkit.registry import TRANSFORMS
from qvlkit.structures import Sample


@TRANSFORMS.register_module()
class AnnounceScreen:
    """Put the system turn in front of samples whose `extra` names a platform ('mobile' or 'computer')."""
    random = False

    def __call__(self, sample: Sample, rng: np.random.Generator | None) -> Sample:
        """Sample -> Sample."""
        media = sample.media()
        if 'platform' not in sample.extra or not media or any(turn.role == 'system' for turn in sample.turns):
            return sample
        return announce(sample, media[0].size)
