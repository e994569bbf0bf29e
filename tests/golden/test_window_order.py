"""Window order of merge cells and cumulative lengths of windows, for grids computed with transformers 4.49 to 5.23."""
import pytest
import torch

from qvlkit.models.vision_encoders.qwen25_vit import Qwen25ViT

GOLDEN = {
    (1, 4, 6): (list(range(6)), [0, 24]),
    (1, 10, 18): ([0, 1, 2, 3, 9, 10, 11, 12, 18, 19, 20, 21, 27, 28, 29, 30, 4, 5, 6, 7, 13, 14, 15, 16, 22, 23, 24,
                   25, 31, 32, 33, 34, 8, 17, 26, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44],
                  [0, 64, 128, 144, 160, 176, 180]),
    (2, 4, 10): ([0, 1, 2, 3, 5, 6, 7, 8, 4, 9, 10, 11, 12, 13, 15, 16, 17, 18, 14, 19], [0, 32, 40, 72, 80]),
    # A side that is a multiple of 8 patches has no empty window at its end.
    (1, 16, 16): ([0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22,
                   23, 28, 29, 30, 31, 32, 33, 34, 35, 40, 41, 42, 43, 48, 49, 50, 51, 56, 57, 58, 59, 36, 37, 38, 39,
                   44, 45, 46, 47, 52, 53, 54, 55, 60, 61, 62, 63], [0, 64, 128, 192, 256]),
}


@pytest.fixture(scope='module')
def encoder():
    with torch.device('meta'):
        return Qwen25ViT(depth=8, full_attention_blocks=[7])  # released patch, window and merge sizes


@pytest.mark.parametrize('grid', GOLDEN)
def test_window_order(encoder, grid):
    cells, cumulative = GOLDEN[grid]
    plan = encoder.plan([grid])
    assert plan.token_order.tolist() == cells
    assert plan.attention['window'].cu_q.tolist() == cumulative
    assert plan.order.tolist() == [4 * cell + place for cell in cells for place in range(4)]
    t, rows, columns = grid
    assert plan.attention['full'].cu_q.tolist() == [group * rows * columns for group in range(t + 1)]


def test_window_order_of_several_pictures(encoder):
    """Cells and lengths of each picture count on from those before it; rows and columns start anew."""
    grids = list(GOLDEN)
    plan = encoder.plan(grids)
    cells, cumulative, positions = [], [0], []
    for grid in grids:
        order, lengths = GOLDEN[grid]
        cells += [cell + len(cells) for cell in order]
        cumulative += [length + cumulative[-1] for length in lengths[1:]]
        positions.append(encoder.plan([grid]).positions)
    assert plan.token_order.tolist() == cells
    assert plan.attention['window'].cu_q.tolist() == cumulative
    assert torch.equal(plan.positions, torch.cat(positions))


def test_positions_follow_the_patches(encoder):
    """(1, 4, 6): one window, so block order: rows 0 0 1 1, columns 0 1 0 1, then the next cell."""
    positions = encoder.plan([(1, 4, 6)]).positions
    assert positions[:, 0].tolist() == [0, 0, 1, 1] * 3 + [2, 2, 3, 3] * 3
    assert positions[:, 1].tolist() == [0, 1, 0, 1, 2, 3, 2, 3, 4, 5, 4, 5] * 2
