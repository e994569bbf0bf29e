"""Samples that stand in for data that is not at hand: one of each kind, in a fixed order, always the same.

Kinds: text alone, one image, several images of different sizes, the frames of a video. Each has a worse answer beside
its own, and so is a preference pair where pairs are asked for; one image with its answer is a captioned picture.
"""
from typing import Any

import numpy as np
from PIL import Image

from qvlkit.structures import Media, Sample, SampleError, Turn

KINDS = ('text', 'one image', 'several images', 'video frames')
# (width, height) in pixels; most are whole attention windows of the released encoder, and one is not.
IMAGE_SIZES = ((448, 336), (224, 224), (336, 336), (280, 504))
VIDEO_SIZE, VIDEO_FRAMES, VIDEO_FPS = (336, 336), 8, 2.0
ANSWER = 'A plain answer of a few dozen words, as long as answers usually are in a conversation: it names what is '

WORSE = 'A worse answer, which is a little shorter, and says less of what there is. '


class SyntheticSamples:
    """A dataset without end: sample i is of kind KINDS[i % 4]."""
    name = 'synthetic'

    def __init__(self, size: int = 4096):
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.size:
            raise IndexError(f'{self.name}: index {index} of {self.size}')
        kind = KINDS[index % len(KINDS)]
        if kind == 'text':
            media = []
        elif kind == 'video frames':
            media = [Media('video', [_picture(VIDEO_SIZE, frame) for frame in range(VIDEO_FRAMES)], fps=VIDEO_FPS)]
        else:
            sizes = IMAGE_SIZES[:1] if kind == 'one image' else IMAGE_SIZES[1:]
            media = [Media('image', _picture(size, number)) for number, size in enumerate(sizes)]
        turns = [Turn('user', [*media, 'What is there, and what is it for?']), Turn('assistant', [ANSWER])]
        return Sample(f'{self.name}/{kind}[{index}]', turns, self.name, rejected=[Turn('assistant', [WORSE])])


def usable_kinds(encoder: Any) -> list[str]:
    """Those of KINDS that `encoder` (a trainer's) takes, in order.

    Raises:
        SampleError: It takes none; the error of the first.
    """
    samples, kinds, errors = SyntheticSamples(), [], []
    for index, kind in enumerate(KINDS):
        try:
            encoder.measure(samples[index])
            kinds.append(kind)
        except SampleError as error:
            errors.append(error)
    if not kinds:
        raise errors[0]
    return kinds


def _picture(size: tuple[int, int], shade: int) -> Image.Image:
    """A plain picture: what it shows costs nothing and changes nothing."""
    width, height = size
    return Image.fromarray(np.full((height, width, 3), 16 * shade % 256, dtype=np.uint8))
