"""Boxes from the pixels of the picture to the pixels that the model sees.

Source: Qwen2.5-VL (arXiv 2502.13923) section 2.2.1, absolute coordinates. Sizes are (width, height) in pixels, boxes
(x1, y1, x2, y2). A picture's EXIF orientation is applied before: source coordinates are those of the upright picture.
"""
import math

from qvlkit.structures import Box

Size = tuple[int, int]


def scale_box(coordinates: tuple, source_size: Size, resized_size: Size) -> tuple[int, int, int, int]:
    """Coordinates on a picture of `source_size`, as whole pixels of it at `resized_size`.

    Scaled by new / old size, rounded, and clamped to [0, size - 1].
    """
    scaled = []
    for position, value in enumerate(coordinates):
        old, new = source_size[position % 2], resized_size[position % 2]
        scaled.append(min(max(round(value * new / old), 0), new - 1))
    return tuple(scaled)


def resized_box(box: Box, sizes: list[tuple[Size, Size]]) -> Box:
    """`box` in the space 'resized'.

    Args:
        box: In the space 'source' or 'resized'.
        sizes: For each medium of the sample, its (source size, resized size).

    Raises:
        ValueError: The medium does not exist, the space is unknown, or a coordinate is not a finite number.
    """
    if not 0 <= box.media_index < len(sizes):
        raise ValueError(f'box {list(box.coordinates)} is on medium {box.media_index}, but the sample has '
                         f'{len(sizes)} images and videos')
    if len(box.coordinates) != 4 or not all(math.isfinite(value) for value in box.coordinates):
        raise ValueError(f'expected a box of 4 finite numbers, got {list(box.coordinates)}')
    source_size, resized_size = sizes[box.media_index]
    if box.space == 'resized':
        source_size = resized_size
    elif box.space != 'source':
        raise ValueError(f"box space {box.space!r}: expected 'source' or 'resized'")
    return Box(scale_box(box.coordinates, source_size, resized_size), box.label, box.media_index, 'resized')
