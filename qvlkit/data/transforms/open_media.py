"""Open: the size of every picture and the times of every video, from headers alone."""
from pathlib import Path
from typing import Any

import numpy as np

from qvlkit.data.transforms.load_media import MediaError, describe, image_size
from qvlkit.registry import TRANSFORMS
from qvlkit.structures import Media, Sample, SampleError


@TRANSFORMS.register_module()
class OpenMedia:
    """Fill `size` and `source_size` of each medium, and `video` of video files. A medium with a size is left alone.

    Args:
        decoder: Probes video files (`VideoDecoder`); injected.
    """
    random = False

    def __init__(self, *, decoder: Any = None):
        self.decoder = decoder

    def __call__(self, sample: Sample, rng: np.random.Generator | None) -> Sample:
        """Every failure names the sample."""
        for medium in sample.media():
            if medium.size is not None:
                continue
            try:
                medium.size = self._size(medium)
            except MediaError as error:
                raise SampleError(sample.id, error.reason, error.kind) from error
            medium.source_size = medium.size
        return sample

    def _size(self, medium: Media) -> tuple[int, int]:
        if medium.kind == 'image':
            return image_size(medium.source)
        if is_frame_list(medium.source):
            if not len(medium.source):
                raise MediaError('a video without frames', 'empty_video')
            return image_size(medium.source[0])
        if not is_video_file(medium.source):
            raise MediaError(f'expected a video as a file or a list of frames, got {type(medium.source).__name__}',
                             'wrong_type')
        if self.decoder is None:
            raise MediaError(f'video {describe(medium.source)} is a file, and no reader of video files is at hand',
                             'no_video_reader')
        medium.video = self.decoder.probe(medium.source)
        return medium.video.width, medium.video.height


def is_frame_list(source: Any) -> bool:
    """Whether a video is given as its frames."""
    return isinstance(source, list | tuple) or (isinstance(source, np.ndarray) and source.ndim == 4)


def is_video_file(source: Any) -> bool:
    """Whether a video is given as a path or as a file's bytes."""
    return isinstance(source, str | Path | bytes | bytearray | memoryview)
