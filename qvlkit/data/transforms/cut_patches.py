"""Cut patches: the one place where pixels are decoded; the planned edits are done, and the result is cut up."""
from typing import Any

import numpy as np
from PIL import Image

from qvlkit.data.transforms.edits import apply_edits
from qvlkit.data.transforms.load_media import MediaError, load_image
from qvlkit.data.transforms.open_media import is_frame_list
from qvlkit.data.transforms.patchify import patchify_image, patchify_video
from qvlkit.registry import TRANSFORMS
from qvlkit.structures import Media, Sample, SampleError, VisionGeometry


@TRANSFORMS.register_module()
class CutPatches:
    """Fill `patches` of each medium.

    Args:
        geometry: Of the model; injected.
        decoder: Decodes video files (`VideoDecoder`); injected.
    """
    random = False

    def __init__(self, *, geometry: VisionGeometry, decoder: Any = None):
        self.geometry, self.decoder = geometry, decoder

    def __call__(self, sample: Sample, rng: np.random.Generator | None) -> Sample:
        """Every failure names the sample."""
        for medium in sample.media():
            try:
                if medium.kind == 'image':
                    picture = np.asarray(decode_picture(medium))
                    medium.patches, grid = patchify_image(picture, self.geometry)
                else:
                    medium.patches, grid = patchify_video(self._frames(medium), self.geometry)
            except MediaError as error:
                raise SampleError(sample.id, error.reason, error.kind) from error
            if grid != medium.grid:
                raise SampleError(sample.id, f'a {medium.kind} of grid {grid} was planned as {medium.grid}: its header '
                                  'and its content differ', 'bad_size')
        return sample

    def _frames(self, medium: Media) -> np.ndarray:
        """uint8 (frames, H, W, C) of a video, edited."""
        if not is_frame_list(medium.source):
            return self.decoder.read(medium.source, medium.frames, medium.edits)
        frames = []
        for index in medium.frames:
            image = load_image(medium.source[index])
            if image.size != medium.source_size:
                raise MediaError(f'frame {index} of a video has {image.width} x {image.height} pixels, frame 0 has '
                                 f'{medium.source_size[0]} x {medium.source_size[1]}', 'frame_size')
            frames.append(np.asarray(apply_edits(image, medium.edits)))
        return np.stack(frames)


def decode_picture(medium: Media) -> Image.Image:
    """The picture of an opened image, after the edits planned so far; MediaError as for `load_image`."""
    image = load_image(medium.source)
    if image.size != medium.source_size:
        raise MediaError(f'a picture of {image.width} x {image.height} pixels whose header says '
                         f'{medium.source_size[0]} x {medium.source_size[1]}', 'bad_image')
    return apply_edits(image, medium.edits)
