"""What an answer that ignores the picture would score: the figure that an accuracy must be read beside."""
from collections import Counter
from collections.abc import Sequence

import numpy as np

MOST_CANDIDATES = 400


def constant_answer_chance(answers: Sequence[str], classes_chance: float | None = None) -> tuple[float, str]:
    """Chance of a task with text answers, and how it was found.

    The best that one fixed answer scores on these very questions, or 1 / classes where that is more.
    """
    answer, times = Counter(answers).most_common(1)[0]
    share = times / len(answers)
    if classes_chance is not None and classes_chance >= share:
        return classes_chance, f'1 of {round(1 / classes_chance)} classes'
    return share, f'always answering {answer!r}'


def constant_box_chance(expected: Sequence, reference: Sequence, threshold: float = 0.5) -> tuple[float, str]:
    """Chance of a task with boxes: one fixed box, chosen on `reference`, scored on `expected`.

    Args:
        expected, reference: Boxes (x1, y1, x2, y2) as parts of the picture's width and height, in [0, 1].
        threshold: Intersection over union that counts as right.

    The fixed box is the reference box that hits most reference boxes. (Intersection over union does not change when a
    picture is stretched, so fractions serve for pictures of all sizes.)
    """
    reference = np.asarray(reference, dtype=float).reshape(-1, 4)[:MOST_CANDIDATES]
    expected = np.asarray(expected, dtype=float).reshape(-1, 4)
    hits = (iou_matrix(reference, reference) >= threshold).sum(axis=1)
    best = reference[int(hits.argmax())]
    share = float((iou_matrix(best[None], expected) >= threshold).mean())
    return share, f'always the box {" ".join(f"{value:.2f}" for value in best)}, as parts of width and height'


def iou_matrix(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Boxes (n, 4) and (m, 4) -> intersection over union (n, m)."""
    lower = np.maximum(first[:, None, :2], second[None, :, :2])
    upper = np.minimum(first[:, None, 2:], second[None, :, 2:])
    common = np.clip(upper - lower, 0, None).prod(axis=2)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1) for boxes in (first, second)]
    return common / np.maximum(areas[0][:, None] + areas[1][None] - common, 1e-12)
