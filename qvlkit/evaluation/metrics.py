"""Metrics: how right one answer is, from 0 to 1. Built-ins register as a stranger's metric does."""
import math
from collections.abc import Sequence

from qvlkit.data.formats.grounding import parse_boxes
from qvlkit.data.transforms.regions import to_resized
from qvlkit.registry import METRICS
from qvlkit.structures import Box, Sample

Size = tuple[int, int]  # width, height in pixels


@METRICS.register_module()
class ExactMatch:
    """1.0 if the answer is the expected text, apart from case, white space and a final full stop."""

    def score(self, sample: Sample, answer: str, sizes: Sequence[tuple[Size, Size]] = ()) -> float:
        """`sample.extra['answer']` holds the expected text."""
        return float(_plain(answer) == _plain(str(sample.extra['answer'])))


@METRICS.register_module()
class BoxIoU:
    """1.0 if the answer's first box overlaps the expected one by at least `threshold`.

    Args:
        threshold: Least intersection over union, in (0, 1].
    """

    def __init__(self, threshold: float = 0.5):
        if not 0 < threshold <= 1:
            raise ValueError(f'BoxIoU.threshold: expected a number above 0 and at most 1, got {threshold!r}')
        self.threshold = threshold

    def score(self, sample: Sample, answer: str, sizes: Sequence[tuple[Size, Size]] = ()) -> float:
        """`sample.extra['answer']` is the expected `Box`; the answer's coordinates are pixels the model sees.

        Args:
            sizes: For each medium of the sample, its (source size, resized size).
        """
        boxes = parse_boxes(answer)
        expected = to_resized(sample.extra['answer'], list(sizes))
        return float(bool(boxes) and box_iou(boxes[0].coordinates, expected.coordinates) >= self.threshold)


def box_iou(first: Sequence[float], second: Sequence[float]) -> float:
    """Intersection over union of two boxes (x1, y1, x2, y2); 0.0 where one of them has no area."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second) if box[2] > box[0] and box[3] > box[1]]
    if len(areas) < 2 or width <= 0 or height <= 0:
        return 0.0
    return width * height / (sum(areas) - width * height)


def wilson_interval(right: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval (for z = 1.96) of a share of `right` in `count` independent trials (Wilson, 1927)."""
    if not count:
        return 0.0, 1.0
    share, square = right / count, z * z
    centre = (share + square / (2 * count)) / (1 + square / count)
    half = z / (1 + square / count) * math.sqrt(share * (1 - share) / count + square / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def default_metric(sample: Sample) -> ExactMatch | BoxIoU:
    """The metric that suits the expected answer's type."""
    return BoxIoU() if isinstance(sample.extra['answer'], Box) else ExactMatch()


def _plain(text: str) -> str:
    return ' '.join(text.split()).rstrip('.').casefold()
