"""Collation: targets and rows by hand, the order of media, the blank picture, and windows of mixed pictures."""
import numpy as np
import pytest
import torch

from qvlkit.data.collate import collate
from qvlkit.models.builder import build_model
from qvlkit.structures import EncodedSample, TextSpan, VisionGeometry, VisionPlan, VisionSpan

PATCH = 4
GEOMETRY = VisionGeometry(PATCH, 2, 2)
IMAGE_VALUES, VIDEO_VALUES = 3 * PATCH**2, 2 * 3 * PATCH**2


def reading_order(grids):
    """A plan that leaves everything where it is."""
    patches = sum(int(np.prod(grid)) for grid in grids)
    return VisionPlan(torch.arange(patches), torch.arange(patches // 4), torch.zeros(patches, 2), {}, tuple(grids))


def reversed_order(grids):
    """A plan that turns the merge cells of each medium around."""
    order, tokens, start = [], [], 0
    for grid in grids:
        cells = int(np.prod(grid)) // 4
        tokens += range(start + cells - 1, start - 1, -1)
        start += cells
    order = [4 * token + patch for token in tokens for patch in range(4)]
    return VisionPlan(torch.tensor(order), torch.tensor(tokens), torch.zeros(len(order), 2), {}, tuple(grids))


def sample(items, targets=None, name='s', seed=0, ids=None):
    """Items: a number of text tokens, or (kind, grid, value): a medium whose patch i of n has the value value + i."""
    layout, tokens, rows, media = [], [], [], []
    random = np.random.default_rng(seed)
    for item in items:
        if isinstance(item, int):
            layout.append(TextSpan(item))
            tokens += random.integers(0, 40, item).tolist()
            continue
        kind, grid, value = item
        count = int(np.prod(grid))
        values = IMAGE_VALUES if kind == 'image' else VIDEO_VALUES
        pixels = (random.integers(0, 256, (count, values)) if value is None else
                  np.broadcast_to(value + np.arange(count)[:, None], (count, values))).astype(np.uint8)
        layout.append(VisionSpan(GEOMETRY.token_grid(grid), 0.0 if kind == 'image' else 1.0))
        rows += range(len(tokens), len(tokens) + count // 4)
        tokens += [0] * (count // 4)
        media.append((kind, grid, pixels))
    is_target = torch.zeros(len(tokens), dtype=torch.bool)
    is_target[targets or []] = True
    return EncodedSample(
        id=name, token_ids=torch.tensor(tokens), is_target=is_target,
        position_ids=torch.arange(len(tokens)).expand(3, -1) if ids is None else ids(layout),
        patches=[pixels for *_, pixels in media], grids=[grid for _, grid, _ in media],
        kinds=[kind for kind, *_ in media], token_counts=[int(np.prod(grid)) // 4 for _, grid, _ in media],
        visual_rows=torch.tensor(rows, dtype=torch.int64), source=f'{name} file')


def test_targets_are_predicted_by_the_row_before_and_never_across_samples():
    first, second = sample([5], [3, 4], 'a'), sample([4], [0, 2], 'b', seed=1)
    batch = collate([first, second], plan=reading_order, geometry=GEOMETRY)
    assert batch.target_rows.tolist() == [2, 3, 6]  # a sample's first token has no row before it
    assert batch.target_ids.tolist() == [*first.token_ids[[3, 4]].tolist(), second.token_ids[2].item()]
    assert batch.token_ids.tolist() == first.token_ids.tolist() + second.token_ids.tolist()
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 3]] * 3
    assert batch.attention.lengths_q == batch.attention.lengths_k == (5, 4) and batch.attention.causal
    assert (batch.sample_ids, batch.sources) == (('a', 'b'), ('a file', 'b file'))
    assert (batch.num_tokens, batch.num_targets) == (9, 3)


def test_images_of_all_samples_come_before_videos():
    samples = [sample([1, ('video', (2, 2, 2), 100), 1, ('image', (1, 2, 4), 0), 1]),
               sample([2, ('image', (1, 2, 2), 50), 1])]
    batch = collate(samples, plan=reading_order, geometry=GEOMETRY)
    assert batch.vision_plan.grids == ((1, 2, 4), (1, 2, 2), (2, 2, 2))
    assert batch.image_patches[:, 0].tolist() == [*range(8), *range(50, 54)]
    assert batch.video_patches[:, 0].tolist() == list(range(100, 108))
    assert batch.image_patches.shape == (12, IMAGE_VALUES) and batch.video_patches.shape == (8, VIDEO_VALUES)
    # the first sample is 1 text, 2 video, 1 text, 2 image, 1 text tokens; the second begins at row 7
    assert batch.visual_rows.tolist() == [4, 5, 9, 1, 2]


def test_patches_and_rows_follow_the_plan():
    samples = [sample([1, ('image', (1, 2, 4), 0), 1, ('video', (1, 2, 4), 100)])]
    batch = collate(samples, plan=reversed_order, geometry=GEOMETRY)
    assert batch.visual_rows.tolist() == [2, 1, 5, 4]
    assert batch.image_patches[:, 0].tolist() == [4, 5, 6, 7, 0, 1, 2, 3]
    assert batch.video_patches[:, 0].tolist() == [104, 105, 106, 107, 100, 101, 102, 103]
    assert batch.image_patches.dtype == batch.video_patches.dtype == torch.uint8


def test_a_row_of_text_carries_one_blank_picture_that_takes_no_row():
    batch = collate([sample([3], [2])], plan=reading_order, geometry=GEOMETRY)
    assert batch.vision_plan.grids == ((1, 2, 2),)
    assert batch.image_patches.shape == (4, IMAGE_VALUES) and not batch.image_patches.any()
    assert batch.video_patches.shape == (0, VIDEO_VALUES) and batch.visual_rows.shape == (0,)


MODEL = dict(
    vision_encoder=dict(type='Qwen25ViT', width=32, depth=3, num_heads=2, feed_forward_width=40, patch_size=PATCH,
                        window_size=16, full_attention_blocks=[1]),
    merger=dict(type='PatchMerger', merge_size=2),
    position_encoding=dict(type='AbsoluteTimeMRoPE', sections=[1, 1, 2], tokens_per_second=2, theta=100.0),
    language_model=dict(type='Qwen2Decoder', width=32, depth=2, num_heads=4, num_kv_heads=2, feed_forward_width=48,
                        vocab_size=40, tie_embeddings=True))


@pytest.fixture(scope='module')
def model():
    result = build_model(MODEL, dtype=torch.float64, seed=0)
    with torch.no_grad():
        for parameter in result.parameters():  # so that attention is not nearly uniform
            parameter.mul_(6 if parameter.ndim > 1 else 1)
    return result


def test_mixed_pictures_of_several_windows_give_alone_what_they_give_packed(model):
    ids = model.position_encoding.ids
    samples = [sample([2, ('image', (1, 10, 6), None), 3], seed=1, ids=ids),
               sample([4], seed=2, ids=ids),
               sample([1, ('video', (2, 6, 10), None), 2, ('image', (1, 2, 2), None), 1], seed=3, ids=ids),
               sample([('image', (1, 6, 14), None), 2, ('image', (1, 8, 8), None), 2], seed=4, ids=ids)]

    def run(row):
        batch = collate(row, plan=model.plan, geometry=model.geometry)
        with torch.no_grad():
            return model(batch)
    packed = run(samples).split([one.length for one in samples])
    assert not torch.equal(model.vision_encoder.plan([(1, 10, 6)]).token_order, torch.arange(15))
    for one, hidden in zip(samples, packed):
        alone = run([one])
        assert alone.abs().max() > 0.1
        torch.testing.assert_close(hidden, alone, rtol=0, atol=1e-10)
    first = run([sample([2, ('image', (1, 10, 6), None), 3], seed=9, ids=ids)])
    assert (first[-1] - packed[0][-1]).abs().max() > 1e-3  # the pixels do reach the last token


def test_each_visual_token_lands_on_the_row_of_its_own_cell(model):
    """Only the cell at one place of a picture is bright: only its row gets another token."""
    grid, cells = (1, 6, 10), 15
    dark = sample([1, ('image', grid, None), 1])
    dark.patches[0] = np.zeros_like(dark.patches[0])
    plan = model.plan
    for cell in range(cells):
        bright = sample([1, ('image', grid, None), 1])
        bright.patches[0] = np.zeros_like(bright.patches[0])
        bright.patches[0][4 * cell:4 * cell + 4] = 255
        before, after = (collate([one], plan=plan, geometry=GEOMETRY) for one in (dark, bright))
        changed = (after.image_patches != before.image_patches).any(1).unflatten(0, (cells, 4)).all(1)
        assert after.visual_rows[changed].tolist() == [1 + cell]
