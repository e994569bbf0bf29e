"""Index making for one row of 32 pictures: ours against transformers' functions, which must agree first.

    python benchmarks/index_making.py [--rounds 30] [--no-save]

What both sides make, from grids and a layout of text and pictures: the window order of merge cells, the cumulative
lengths of windows and of whole pictures, the row and column of each patch, and the M-RoPE ids of each token. Ours is
made by `Qwen25ViT.plan` and `AbsoluteTimeMRoPE.ids`, for which tokens are no input; theirs by get_vision_window_index,
get_vision_position_ids, get_vision_cu_seqlens and get_rope_index. Ours also gives the order of patches and positions
already in it, which transformers gathers later on the device: that is not charged to it here.

'warm' is what a loader's worker sees after its first batches: the plans of pictures of a size it has met are kept.
'cold' forgets them before each run. Goals: warm 10 times, cold 4 times as fast.
"""
import argparse
from functools import partial
from types import SimpleNamespace

import harness  # first: it makes qvlkit importable
import numpy as np
import torch

from qvlkit.models.layers.vision import block_positions
from qvlkit.models.position_encodings.absolute_time_mrope import AbsoluteTimeMRoPE
from qvlkit.models.vision_encoders import qwen25_vit
from qvlkit.structures import TextSpan, VisionSpan

PICTURES, TEXT, MERGE, WINDOW, PATCH = 32, 100, 2, 112, 14
CALLS = 5  # in a turn; the median of them is its time
SIDES = (8, 35)  # rows and columns of a picture in merge cells: 224 to 952 pixels


def make_inputs(seed: int = 0) -> tuple[list[tuple[int, int, int]], list]:
    """Grids in patches, and the layout of a row with 100 tokens of text before each picture and at the end."""
    sides = np.random.default_rng(seed).integers(*SIDES, size=(PICTURES, 2), endpoint=True) * MERGE
    grids = [(1, int(rows), int(columns)) for rows, columns in sides]
    layout = [span for t, rows, columns in grids
              for span in (TextSpan(TEXT), VisionSpan((t, rows // MERGE, columns // MERGE)))]
    return grids, [*layout, TextSpan(TEXT)]


def make_sides(grids: list, layout: list) -> dict:
    """The two functions; each returns (window order, window lengths, picture lengths, positions, ids)."""
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel
    from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids, get_vision_window_index
    with torch.device('meta'):
        encoder = qwen25_vit.Qwen25ViT(depth=1, full_attention_blocks=[0])
        encoding = AbsoluteTimeMRoPE(head_dim=128)

    def ours():
        plan = encoder.plan(grids)
        return plan, encoding.ids(layout)

    kinds = torch.cat([torch.full((1, span.length), int(isinstance(span, VisionSpan))) for span in layout], dim=1)
    tokens, grid_thw = torch.zeros_like(kinds), torch.tensor(grids)
    rope = SimpleNamespace(config=Qwen2_5_VLConfig(),
                           get_vision_position_ids=partial(Qwen2_5_VLModel.get_vision_position_ids, None))

    def transformers():
        order, windows = get_vision_window_index(grid_thw, MERGE, WINDOW, PATCH)
        pictures = get_vision_cu_seqlens(grid_thw)
        positions = get_vision_position_ids(grid_thw, MERGE)
        return order, windows, pictures, positions, Qwen2_5_VLModel.get_rope_index(
            rope, tokens, kinds, image_grid_thw=grid_thw)[0][:, 0]

    return dict(transformers=transformers, ours=ours)


def check_equal(sides: dict) -> None:
    """Both sides give the same numbers, or AssertionError."""
    order, windows, pictures, positions, theirs = sides['transformers']()
    plan, ids = sides['ours']()
    pairs = dict(window_order=(plan.token_order, order), window_lengths=(plan.attention['window'].cu_q, windows),
                 picture_lengths=(plan.attention['full'].cu_q, pictures),
                 positions=(plan.positions, positions.unflatten(0, (-1, MERGE**2))[order].flatten(0, 1)),
                 rope_ids=(ids, theirs))
    for name, (a, b) in pairs.items():
        assert torch.equal(a, b), f'{name} differ'


def forget() -> None:
    """Empty every cache on our side."""
    for cached in (qwen25_vit.window_order, qwen25_vit._frame_plan, block_positions):
        cached.cache_clear()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rounds', type=int, default=30)
    parser.add_argument('--no-save', action='store_true', help='print only')
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # as in a loader's worker
    grids, layout = make_inputs()
    sides = make_sides(grids, layout)
    check_equal(sides)
    row = dict(setting=f'{PICTURES} pictures, {sum(t * h * w for t, h, w in grids):,} patches, '
                       f'{sum(span.length for span in layout):,} tokens')
    import transformers
    row['peer'] = f'transformers {transformers.__version__}'
    for name, before in (('warm', None), ('cold', forget)):
        result = harness.compare(harness.interleaved(sides, rounds=arguments.rounds, warmup=3, before=before,
                                                     calls=CALLS),
                                 'transformers', 'ours')
        row[name] = result
        print(f'{name}: transformers {result["transformers_ms"]:.2f} ms, ours {result["ours_ms"]:.3f} ms, '
              f'{result["ratio"]:.1f} times as fast (quartiles {result["ratio_quartiles"]})')
    if not arguments.no_save:
        print(f'written: {harness.save("index_making", row)}')


if __name__ == '__main__':
    main()
