"""Window attention: what a patch sees, in window blocks and in full blocks; windows against a plain loop over cells."""
import numpy as np
import pytest
import torch

from qvlkit.models.vision_encoders.qwen2_vit import Qwen2ViT
from qvlkit.models.vision_encoders.qwen25_vit import Qwen25ViT

GRID = (2, 8, 12)  # two frame groups of 4 x 6 cells: windows of 4 x 4 and 4 x 2 cells


def encoder(full_attention_blocks, depth=1):
    torch.manual_seed(0)
    return Qwen25ViT(32, depth, num_heads=2, feed_forward_width=24, patch_size=2, window_size=16,
                     full_attention_blocks=full_attention_blocks).double()


def reach(model, row):
    """Patches, in block order, whose change alters the features of patch `row`."""
    plan = model.plan([GRID])
    patches = torch.randn(len(plan.order), 24, dtype=torch.float64, requires_grad=True)
    features = model(patches[plan.order], plan)
    place = (plan.order == row).nonzero().item()
    gradient, = torch.autograd.grad(features[place].sum(), patches)
    return set((gradient.abs().amax(1) > 0).nonzero().squeeze(1).tolist())


def cell_columns():
    """Column of the merge cell of each patch, in block order."""
    return np.tile(np.repeat(np.arange(6), 4), GRID[0] * 4)


def test_a_window_block_sees_its_window_alone():
    columns, first_group = cell_columns(), np.arange(2 * 96) < 96
    assert reach(encoder([]), 0) == set(np.flatnonzero(first_group & (columns < 4)).tolist())
    assert reach(encoder([]), 17) == set(np.flatnonzero(first_group & (columns >= 4)).tolist())


@pytest.mark.parametrize('model', [encoder([0]), Qwen2ViT(32, 1, num_heads=2, patch_size=2).double()],
                         ids=['Qwen25ViT', 'Qwen2ViT'])
def test_a_full_block_sees_its_frame_group_and_never_crosses_time(model):
    assert reach(model, 0) == set(range(96))
    assert reach(model, 100) == set(range(96, 192))


def test_full_attention_blocks_are_those_that_are_named():
    """One full block of two is enough to see the whole frame group, in either place; without one, never."""
    assert len(reach(encoder([0], depth=2), 0)) == len(reach(encoder([1], depth=2), 0)) == 96
    assert len(reach(encoder([], depth=2), 0)) == 64


@pytest.mark.parametrize('merge_size, window_size', [(1, 4), (2, 8), (2, 16), (2, 20), (4, 16), (4, 32)])
def test_windows_equal_a_loop_over_cells(merge_size, window_size):
    """Windows of any size, partial at the right and bottom edge, without empty ones where the sides divide."""
    model = Qwen25ViT(32, 1, num_heads=2, feed_forward_width=24, patch_size=2, window_size=window_size,
                      full_attention_blocks=[0], merge_size=merge_size)
    side = window_size // (2 * merge_size)
    for t, rows, columns in ((1, 1, 1), (1, 4, 4), (2, 3, 5), (1, 8, 4), (3, 1, 9)):  # in cells
        order, lengths = [], []
        for group in range(t):
            for top in range(0, rows, side):
                for left in range(0, columns, side):
                    window = [(group * rows + y) * columns + x for y in range(top, min(top + side, rows))
                              for x in range(left, min(left + side, columns))]
                    order += window
                    lengths.append(len(window) * merge_size**2)
        plan = model.plan([(t, rows * merge_size, columns * merge_size)])
        assert plan.token_order.tolist() == order
        assert plan.attention['window'].lengths_q == tuple(lengths)
        assert plan.attention['full'].lengths_q == (rows * columns * merge_size**2,) * t


def test_positions_are_those_of_the_patch_in_its_own_picture():
    """Cut a picture whose patches hold their own row and column: the plan names the same."""
    from qvlkit.data.transforms.patchify import patchify_image
    from qvlkit.structures import VisionGeometry
    rows, columns = 8, 12
    pixels = np.zeros((rows, columns, 2), dtype=np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(rows)[:, None], np.arange(columns)
    pixels = pixels.repeat(2, axis=0).repeat(2, axis=1)
    for merge_size in (1, 2, 4):
        patches, grid = patchify_image(pixels, VisionGeometry(2, 2, merge_size, in_channels=2))
        model = Qwen25ViT(32, 1, num_heads=2, feed_forward_width=24, patch_size=2, window_size=8, merge_size=merge_size,
                          full_attention_blocks=[0])
        for plan in (model.plan([grid]), Qwen2ViT(32, 1, num_heads=2, merge_size=merge_size).plan([grid])):
            assert torch.equal(torch.from_numpy(patches[:, [0, 4]]).long()[plan.order], plan.positions)


@pytest.mark.parametrize('key', ['patch_size', 'temporal_patch_size'])
@pytest.mark.parametrize('value', [0, -1, 1.5, True])
def test_a_patch_without_pixels_is_refused(key, value):
    with pytest.raises(ValueError, match=f'model.vision_encoder.{key}.*{value!r}'):
        Qwen25ViT(width=16, depth=1, num_heads=1, full_attention_blocks=[0], **{key: value})


def test_a_grid_that_does_not_divide_is_refused():
    for model in (encoder([0]), Qwen2ViT(32, 1, num_heads=2)):
        with pytest.raises(ValueError, match=r'3 x 4 patches .* blocks of 2 x 2 \(model\.merger\.merge_size\)'):
            model.plan([(1, 3, 4)])
