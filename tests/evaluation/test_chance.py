import numpy as np
import pytest

from qvlkit.evaluation.chance import constant_answer_chance, constant_box_chance, iou_matrix
from qvlkit.evaluation.metrics import box_iou


def test_the_most_common_answer_or_the_classes():
    assert constant_answer_chance(['a', 'b', 'a', 'c'], 1 / 3) == (0.5, "always answering 'a'")
    assert constant_answer_chance(['a', 'b', 'c', 'd'], 1 / 3) == (pytest.approx(1 / 3), '1 of 3 classes')
    assert constant_answer_chance(['yes', 'no']) == (0.5, "always answering 'yes'")


def test_the_constant_box_is_chosen_on_the_reference_and_scored_on_the_held_out():
    common, rare = (0.1, 0.1, 0.5, 0.5), (0.6, 0.6, 0.9, 0.9)
    chance, how = constant_box_chance([common] + [rare] * 3, [common] * 3 + [rare])
    assert chance == 0.25 and '0.10 0.10 0.50 0.50' in how
    assert constant_box_chance([common] + [rare] * 3, [rare])[0] == 0.75


def test_the_constant_box_beats_others_on_its_reference():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 0.6, (200, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(0.2, 0.4, (200, 2))], axis=1)
    chance, _ = constant_box_chance(boxes, boxes)
    assert chance == max((iou_matrix(box[None], boxes) >= 0.5).mean() for box in boxes) > 0.02


def test_iou_matrix_is_box_iou():
    first, second = np.array([[0, 0, 4, 4], [1, 1, 2, 5]]), np.array([[2, 2, 6, 6], [9, 9, 10, 10], [0, 0, 4, 4]])
    expected = [[box_iou(a, b) for b in second] for a in first]
    np.testing.assert_allclose(iou_matrix(first, second), expected, atol=1e-12)
