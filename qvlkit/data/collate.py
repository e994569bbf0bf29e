"""Collate: encoded samples end to end, with every index that the model needs.

Shape letters: T packed tokens, N patches, M visual tokens, S supervised rows, A position axes.
"""
from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import accumulate

import numpy as np
import torch

from qvlkit.structures import AttentionPlan, EncodedSample, Grid, PackedBatch, VisionGeometry, VisionPlan

VISUAL_BUCKETS = (0, 64, 256, 1024, 4096)  # visual tokens of a sample, at most; more are the last bucket
BUCKET_NAMES = ('text', *(f'up to {most:,} visual tokens' for most in VISUAL_BUCKETS[1:]),
                f'over {VISUAL_BUCKETS[-1]:,} visual tokens')


def collate(samples: Sequence[EncodedSample], *, plan: Callable[[Sequence[Grid]], VisionPlan],
            geometry: VisionGeometry, sources: Sequence[str] = ()) -> PackedBatch:
    """One row of samples as a batch.

    Args:
        samples: In the order in which they stand in the row.
        plan: The vision encoder's `plan`.
        geometry: Of the model; sizes the blank picture that a row without media carries.
        sources: Names of the data's sources. Each target is then noted under its sample's source and number of visual
            tokens: group = source * len(BUCKET_NAMES) + bucket.
    """
    starts = [0, *accumulate(sample.length for sample in samples)][:-1]
    target_rows, target_ids, groups = [], [], []
    for start, sample in zip(starts, samples):
        rows = sample.is_target[1:].nonzero().squeeze(1)  # the row before a target predicts it
        target_rows.append(rows + start)
        target_ids.append(sample.token_ids[1:][rows])
        if sources:
            groups.append(torch.full_like(rows, target_group(sample, sources)))
    image_patches, video_patches, vision_plan, visual_rows = collate_media(samples, starts, plan, geometry)
    return PackedBatch(
        token_ids=torch.cat([sample.token_ids for sample in samples]),
        position_ids=torch.cat([sample.position_ids for sample in samples], dim=1),
        attention=AttentionPlan.from_lengths([sample.length for sample in samples], causal=True),
        image_patches=image_patches, video_patches=video_patches, vision_plan=vision_plan, visual_rows=visual_rows,
        target_rows=torch.cat(target_rows), target_ids=torch.cat(target_ids),
        target_groups=torch.cat(groups) if sources else None, num_groups=len(sources) * len(BUCKET_NAMES),
        sample_ids=tuple(sample.id for sample in samples), sources=tuple(sample.source for sample in samples))


def target_group(sample: EncodedSample, sources: Sequence[str]) -> int:
    """The group of a sample's targets, by its source and its number of visual tokens."""
    bucket = bisect_left(VISUAL_BUCKETS, sum(sample.token_counts))
    return sources.index(sample.source) * len(BUCKET_NAMES) + bucket


def collate_media(samples: Sequence[EncodedSample], starts: Sequence[int], plan: Callable, geometry: VisionGeometry
                  ) -> tuple[torch.Tensor, torch.Tensor, VisionPlan, torch.Tensor]:
    """Images of all samples, then videos: patches in the plan's order, the plan, and the row of each visual token.

    Samples without any carry one smallest blank picture that has no row.
    """
    patches: dict[str, list] = dict(image=[], video=[])
    grids: dict[str, list] = dict(image=[], video=[])
    rows: dict[str, list] = dict(image=[], video=[])
    for start, sample in zip(starts, samples):
        places = sample.visual_rows.split(sample.token_counts) if sample.token_counts else ()
        for kind, grid, medium, place in zip(sample.kinds, sample.grids, sample.patches, places):
            patches[kind].append(medium)
            grids[kind].append(grid)
            rows[kind].append(place + start)
    frame_values = geometry.in_channels * geometry.patch_size**2
    if not patches['image'] and not patches['video']:
        side = geometry.merge_size
        patches['image'].append(np.zeros((side * side, frame_values), dtype=np.uint8))
        grids['image'].append((1, side, side))
        visual_rows = torch.zeros(0, dtype=torch.int64)
        vision_plan = plan(grids['image'])
    else:
        vision_plan = plan(grids['image'] + grids['video'])
        visual_rows = torch.cat(rows['image'] + rows['video'])[vision_plan.token_order]
    num_images = sum(len(medium) for medium in patches['image'])
    order = vision_plan.order.numpy()
    return (_reordered(patches['image'], order[:num_images], frame_values),
            _reordered(patches['video'], order[num_images:] - num_images, frame_values * geometry.temporal_patch_size),
            vision_plan, visual_rows)


def _reordered(patches: list[np.ndarray], order: np.ndarray, values: int) -> torch.Tensor:
    if not patches:
        return torch.zeros(0, values, dtype=torch.uint8)
    return torch.from_numpy(np.concatenate(patches)[order])
