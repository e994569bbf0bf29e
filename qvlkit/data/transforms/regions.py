"""Boxes, points and outlines: from what a dataset gives, through the edits of a picture, to what a model reads.

Source: Qwen2.5-VL (arXiv 2502.13923) section 2.2.1, absolute coordinates; its fine-tuning code for the conversion
(scale by new / old size, round, clamp to [0, size - 1]). Clipping of outlines: Sutherland and Hodgman, 1974.

Sizes are (width, height) in pixels. Coordinates are continuous until `finish`, the picture spanning 0 to width and 0 to
height. A picture's EXIF orientation is applied before: source coordinates are those of the upright picture.
"""
import dataclasses
import math
from collections.abc import Callable, Sequence

from qvlkit.data.transforms.edits import Crop, Edit, Resize, Size, Spot
from qvlkit.structures import Box, Point, Polygon, Region

SPACES = ('source', 'pixels', 'resized', 'thousand', 'unit')
_EPSILON = 1e-9  # pixels: what a way there and back in floats may lose


def to_pixels(region: Region, media_size: Size, resized_size: Size) -> Region:
    """`region` in the space 'pixels', before any edit.

    Args:
        region: In any space.
        media_size: The upright source picture, which 'source', 'thousand' and 'unit' refer to.
        resized_size: The picture as it would be resized for the model without other edits, which 'resized' refers to.

    Raises:
        ValueError: The space is unknown, or the coordinates are not as many finite numbers as the kind has.
    """
    check(region)
    if region.space in ('source', 'pixels'):
        scale = (1, 1), (1, 1)
    elif region.space == 'resized':
        scale = media_size, resized_size
    else:
        scale = media_size, ((1000, 1000) if region.space == 'thousand' else (1, 1))
    new, old = scale
    coordinates = tuple(value * new[axis % 2] / old[axis % 2] if new != old else value
                        for axis, value in enumerate(region.coordinates))
    return dataclasses.replace(region, coordinates=coordinates, space='pixels')


def move(region: Region, edit: Edit, size: Size, *, min_visible: float = 0.3) -> Region | None:
    """Where `region` is after `edit`; None if it is no longer in the picture.

    Only a crop takes regions away: points outside, and boxes and outlines of which less than `min_visible` of the area
    is left. What is left of them is clipped to the picture. A resize or a flip moves coordinates and nothing else.

    Args:
        region: In the space 'pixels' of a picture of `size`.
        edit: From `qvlkit.data.transforms.edits`.
        size: (width, height) before the edit.
        min_visible: Share of the area before the edit.
    """
    check(region)
    if region.space != 'pixels':
        raise ValueError(f"{_name(region)}: expected the space 'pixels', got {region.space!r}")
    spots = [edit.move(spot, size) for spot in _spots(region)]
    if isinstance(region, Box):
        spots = [tuple(map(min, *spots)), tuple(map(max, *spots))]
    if isinstance(edit, Crop):
        spots = _cut(region, spots, edit.size(size), min_visible)
    if not spots:
        return None
    return dataclasses.replace(region, coordinates=tuple(value for spot in spots for value in spot))


def finish(region: Region, size: Size) -> Region:
    """`region`, in 'pixels' of the final picture of `size`, as whole pixels in [0, size - 1]: the space 'resized'."""
    check(region)
    coordinates = tuple(min(max(_round(value), 0), size[axis % 2] - 1) for axis, value in enumerate(region.coordinates))
    return dataclasses.replace(region, coordinates=coordinates, space='resized')


def to_resized(region: Region, sizes: Sequence[tuple[Size, Size]]) -> Region:
    """`region` as the model reads it, on a picture that is resized and not edited otherwise.

    Args:
        region: In any space.
        sizes: For each medium of the sample, its (source size, resized size).

    Raises:
        ValueError: The medium does not exist, or as for `to_pixels`.
    """
    if not 0 <= region.media_index < len(sizes):
        raise ValueError(f'{_name(region)} is on medium {region.media_index}, but the sample has {len(sizes)} images '
                         f'and videos')
    source_size, resized_size = sizes[region.media_index]
    if region.space == 'resized':
        return finish(region, resized_size)
    pixels = to_pixels(region, source_size, resized_size)
    return finish(move(pixels, Resize(*resized_size), source_size), resized_size)


def check(region: Region) -> None:
    """ValueError unless the space is known and the coordinates are finite and as many as the kind of region has."""
    if region.space not in SPACES:
        raise ValueError(f'{_name(region)}: space {region.space!r} is unknown; expected one of {", ".join(SPACES)}')
    count = len(region.coordinates)
    kinds = {Box: (count == 4, 'a box of 4'), Point: (count == 2, 'a point of 2'),
             Polygon: (count >= 6 and count % 2 == 0, 'an outline of 6, 8, 10, ...')}
    right, expected = kinds.get(type(region), (False, 'a Box, Point or Polygon with its'))
    if not right or not all(math.isfinite(value) for value in region.coordinates):
        raise ValueError(f'expected {expected} finite numbers, got {list(region.coordinates)!r:.200}')


def _cut(region: Region, spots: list[Spot], size: Size, min_visible: float) -> list[Spot]:
    """What a crop leaves of a region whose corners have been moved already; empty if too little."""
    width, height = size
    if isinstance(region, Point):
        return spots if 0 <= spots[0][0] <= width and 0 <= spots[0][1] <= height else []
    if isinstance(region, Box):
        (x1, y1), (x2, y2) = spots
        kept = [(min(max(x1, 0), width), min(max(y1, 0), height)), (min(max(x2, 0), width), min(max(y2, 0), height))]
        share = _share(x1, x2, width) * _share(y1, y2, height)
    else:
        kept = clip(spots, size)
        whole = abs(_area(spots))
        share = abs(_area(kept)) / whole if whole else float(len(kept) == len(spots))
    return kept if share > 0 and share >= min_visible else []


def _share(low: float, high: float, length: float) -> float:
    """How much of [low, high] lies in [0, length]; of a single point, all or nothing."""
    if high == low:
        return float(0 <= low <= length)
    return max(min(high, length) - max(low, 0), 0) / (high - low)


def clip(corners: Sequence[Spot], size: Size) -> list[Spot]:
    """The part of an outline that lies in a picture of `size`: one side of the picture after the other."""
    result = list(corners)
    for axis in (0, 1):
        result = _clip_side(result, axis, 0, lambda value: value >= 0)
        result = _clip_side(result, axis, size[axis], lambda value, limit=size[axis]: value <= limit)
    return result if len(result) >= 3 else []


def _clip_side(corners: list[Spot], axis: int, limit: float, inside: Callable[[float], bool]) -> list[Spot]:
    result = []
    for before, here in zip([*corners[-1:], *corners[:-1]], corners):
        if inside(before[axis]) != inside(here[axis]):
            share = (limit - before[axis]) / (here[axis] - before[axis])
            crossing = [before[0] + share * (here[0] - before[0]), before[1] + share * (here[1] - before[1])]
            crossing[axis] = limit
            result.append(tuple(crossing))
        if inside(here[axis]):
            result.append(here)
    return result


def _area(corners: Sequence[Spot]) -> float:
    """Area inside an outline, its sign by the sense in which it runs."""
    return sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(corners, [*corners[1:], *corners[:1]])) / 2


def _spots(region: Region) -> list[Spot]:
    return list(zip(region.coordinates[::2], region.coordinates[1::2]))


def _round(value: float) -> int:
    """Nearest whole number, halves to even; what lies a rounding error beside a half counts as that half."""
    half = math.floor(value) + 0.5
    return round(half if abs(value - half) < _EPSILON else value)


def _name(region: Region) -> str:
    return f'{type(region).__name__.lower()} {list(region.coordinates)!r:.200}'
