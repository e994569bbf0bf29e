"""Block order against loops that spell it out."""
import numpy as np
import pytest

from qvlkit.data.transforms.patchify import patchify_image, patchify_video, unpatchify
from qvlkit.structures import VisionGeometry


def by_loops(frames, side, merge, depth):
    """Rows in the order: group, block row, block column, row, column; values: channel, frame, y, x."""
    rows = []
    for group in range(len(frames) // depth):
        for block_y in range(frames.shape[1] // side // merge):
            for block_x in range(frames.shape[2] // side // merge):
                for inner_y in range(merge):
                    for inner_x in range(merge):
                        y, x = (block_y * merge + inner_y) * side, (block_x * merge + inner_x) * side
                        cut = frames[group * depth:(group + 1) * depth, y:y + side, x:x + side]
                        rows.append(cut.transpose(3, 0, 1, 2).reshape(-1))
    return np.stack(rows)


@pytest.mark.parametrize('side, merge, depth', [(14, 2, 2), (4, 1, 1), (2, 4, 3)])
def test_order_of_rows_and_values(side, merge, depth):
    geometry = VisionGeometry(side, depth, merge)
    random = np.random.default_rng(0)
    frames = random.integers(0, 256, (2 * depth, side * merge * 3, side * merge * 2, 3), dtype=np.uint8)
    patches, grid = patchify_video(frames, geometry)
    assert grid == (2, merge * 3, merge * 2)
    np.testing.assert_array_equal(patches, by_loops(frames, side, merge, depth))
    patches, grid = patchify_image(frames[0], geometry)
    assert grid == (1, merge * 3, merge * 2) and patches.dtype == np.uint8
    np.testing.assert_array_equal(patches, by_loops(frames[:1], side, merge, 1))


def test_an_odd_video_repeats_its_last_frame():
    geometry = VisionGeometry(2, 2, 2)
    frames = np.random.default_rng(1).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    patches, grid = patchify_video(frames, geometry)
    assert grid == (2, 2, 2)
    np.testing.assert_array_equal(patches, by_loops(np.stack([*frames, frames[2]]), 2, 2, 2))


def test_refuses_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match='multiples of 28'):
        patchify_image(np.zeros((28, 30, 3), dtype=np.uint8), VisionGeometry(14, 2, 2))


@pytest.mark.parametrize('side, merge, depth', [(14, 2, 2), (4, 1, 1), (2, 4, 3), (3, 2, 1)])
def test_the_inverse_gives_the_pixels_back(side, merge, depth):
    geometry = VisionGeometry(side, depth, merge)
    random = np.random.default_rng(2)
    frames = random.integers(0, 256, (2 * depth, side * merge * 3, side * merge * 2, 3), dtype=np.uint8)
    np.testing.assert_array_equal(unpatchify(*patchify_video(frames, geometry), geometry), frames)
    np.testing.assert_array_equal(unpatchify(*patchify_image(frames[0], geometry), geometry), frames[:1])


def test_the_inverse_shows_the_repeated_frame_and_refuses_another_grid():
    geometry = VisionGeometry(2, 2, 2)
    frames = np.random.default_rng(3).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    patches, grid = patchify_video(frames, geometry)
    np.testing.assert_array_equal(unpatchify(patches, grid, geometry), np.stack([*frames, frames[2]]))
    with pytest.raises(ValueError, match='expected 4 patches of 3 x 2 x 2'):
        unpatchify(patches, (1, 2, 2), geometry)
    with pytest.raises(ValueError, match='got'):
        unpatchify(patches[:, :-1], grid, geometry)
