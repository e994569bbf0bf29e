"""SigLIP and SigLIP 2 from the transformers library, at any grid: a plain ViT with learnt positions.

Source: SigLIP, arXiv 2303.15343; SigLIP 2, arXiv 2502.14786 (positions resized for pictures of native aspect ratio).
Shapes: N patches, D width, C*P*P values of a patch, S side of the learnt grid of positions.

Both were trained on pictures with mean and standard deviation 0.5 in every colour: set model.image_mean and
model.image_std to [0.5, 0.5, 0.5].
"""
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from qvlkit.models.layers.transformers_models import (
    build_from_config,
    folder_config,
    need_sizes,
    require_transformers,
    settle_sizes,
)
from qvlkit.models.layers.vision import check_patch, frame_lengths, grid_positions, vision_flops
from qvlkit.registry import VISION_ENCODERS, near_names
from qvlkit.structures import AttentionPlan, Grid, VisionPlan

KEY = 'model.vision_encoder'
# architecture: (class of its config, class of its model, what a checkpoint of the whole pair calls itself)
_KNOWN = {'siglip_vision_model': ('SiglipVisionConfig', 'SiglipVisionModel', 'siglip'),
          'siglip2_vision_model': ('Siglip2VisionConfig', 'Siglip2VisionModel', 'siglip2')}
_NAMES = dict(width='hidden_size', depth='num_hidden_layers', num_heads='num_attention_heads',
              feed_forward_width='intermediate_size', patch_size='patch_size')


@functools.lru_cache(maxsize=4096)
def resize_weights(size: int, side: int) -> np.ndarray:
    """(size, side) float32: each of `size` places as a mixture of `side` learnt ones; bilinear, with antialias."""
    scale = side / size
    centres = (np.arange(size) + 0.5) * scale - 0.5
    weights = np.clip(1 - np.abs(np.arange(side) - centres[:, None]) / max(scale, 1.0), 0, None)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


@VISION_ENCODERS.register_module()
class HFVisionEncoder(nn.Module):
    """A ViT of transformers over packed patches: full attention within each frame, positions resized to each grid.

    Every frame of a video is encoded by itself: temporal_patch_size is 1. The pooling head is left out. Tensors have
    the names of Hugging Face checkpoints below `model.`: `qvlkit.convert.parts.load_part` fills them.

    Args:
        architecture: Its model_type in transformers: 'siglip_vision_model' or 'siglip2_vision_model'.
        path: Instead, a local Hugging Face folder of the vision model or of the whole pair, whose config.json decides
            every size. Weights are not read here.
        width, depth, num_heads, feed_forward_width: D, blocks, attention heads, hidden width of the feed-forward
            network.
        patch_size: P in pixels.
        image_size: Pixels of a side of the square pictures of the learnt positions: S = image_size // P.
        merge_size: Side of a merge cell in patches; injected from the merger.
        attention: Name of the attention backend; injected.

    Raises:
        ValueError: transformers is not installed, the architecture is not one of these, or a size is missing.
    """
    temporal_patch_size = 1

    def __init__(self, architecture: str | None = None, path: str | None = None, *, width: int | None = None,
                 depth: int | None = None, num_heads: int | None = None, feed_forward_width: int | None = None,
                 patch_size: int | None = None, image_size: int | None = None, merge_size: int = 2,
                 attention: str = 'sdpa'):
        super().__init__()
        transformers = require_transformers(KEY)
        sizes = dict(width=width, depth=depth, num_heads=num_heads, feed_forward_width=feed_forward_width,
                     patch_size=patch_size)
        config = _vision_config(transformers, architecture, path, sizes, image_size)
        _, model, pair = _KNOWN[config.model_type]
        self.architecture, self.architectures = config.model_type, (config.model_type, pair)
        self.width, self.depth = config.hidden_size, config.num_hidden_layers
        self.num_heads, self.feed_forward_width = config.num_attention_heads, config.intermediate_size
        self.patch_size, self.in_channels, self.merge_size = config.patch_size, config.num_channels, merge_size
        self.model = build_from_config(getattr(transformers, model), config, attention)
        self.model.embeddings._buffers.pop('position_ids', None)  # the plan has them; no file does
        self.side = int(self.model.embeddings.position_embedding.num_embeddings**0.5)

    @staticmethod
    def released_to_ours(name: str) -> str | None:
        """Name of a tensor in a checkpoint -> name here; '' for the pooling head and the text side, None if there is
        none."""
        name = name.removeprefix('vision_model.')
        if name.startswith(('text_model.', 'head.', 'logit_', 'embeddings.position_ids')):
            return ''
        return f'model.{name}' if name.startswith(('embeddings.', 'encoder.', 'post_layernorm.')) else None

    def plan(self, grids: Sequence[Grid]) -> VisionPlan:
        """Patches stay in block order; one attention segment for each frame; how each grid mixes the positions."""
        positions = grid_positions(grids, self.merge_size)
        starts, table = {}, 0
        for _, rows, columns in grids:
            if (rows, columns) not in starts:
                starts[rows, columns] = table
                table += rows * columns
        counts = [t * rows * columns for t, rows, columns in grids]
        start, columns = (np.repeat(np.array(values), counts) for values in
                          ([starts[grid[1:]] for grid in grids], [grid[2] for grid in grids]))
        extra = dict(position_index=torch.from_numpy(start + positions[:, 0] * columns + positions[:, 1]))
        for name, axis in (('position_rows', 0), ('position_columns', 1)):
            extra[name] = torch.from_numpy(np.concatenate([resize_weights(grid[axis], self.side) for grid in starts]))
        return VisionPlan(order=torch.arange(len(positions)),
                          token_order=torch.arange(len(positions) // self.merge_size**2),
                          positions=torch.from_numpy(positions), extra=extra, grids=tuple(grids),
                          attention=dict(full=AttentionPlan.from_lengths(frame_lengths(grids), causal=False)))

    def forward(self, patches: torch.Tensor, plan: VisionPlan) -> torch.Tensor:
        """(N, C*P*P) normalised patches in plan order -> (N, D)."""
        embedding = self.model.embeddings.patch_embedding
        weight = embedding.weight
        if weight.ndim == 2:  # SigLIP 2 flattens a patch with its colours last
            weight = weight.unflatten(1, (self.patch_size**2, self.in_channels)).transpose(1, 2)
        x = F.linear(patches.to(weight.dtype), weight.flatten(1), embedding.bias) + self._positions(plan)
        output = self.model.encoder(inputs_embeds=x.unsqueeze(0), attention_mask=plan.attention['full'])
        return self.model.post_layernorm(output.last_hidden_state.squeeze(0))

    def _positions(self, plan: VisionPlan) -> torch.Tensor:
        """(N, D): the learnt positions, resized once for each distinct grid, at every patch."""
        learnt = self.model.embeddings.position_embedding.weight
        kind = torch.promote_types(learnt.dtype, torch.float32)
        grid = learnt.to(kind).view(self.side, self.side * self.width)
        sizes = list(dict.fromkeys(grid[1:] for grid in plan.grids))
        mixed = zip(plan.extra['position_rows'].to(kind).split([rows for rows, _ in sizes]),
                    plan.extra['position_columns'].to(kind).split([columns for _, columns in sizes]))
        tables = [(columns @ (rows @ grid).view(-1, self.side, self.width)).flatten(0, 1) for rows, columns in mixed]
        return torch.cat(tables).index_select(0, plan.extra['position_index']).to(learnt.dtype)

    def flops(self, grid: Grid) -> int:
        """Forward FLOPs over one picture."""
        _, rows, columns = grid
        resizing = 2 * rows * self.side * self.width * (self.side + columns)
        return resizing + vision_flops(
            grid, width=self.width, depth=self.depth, feed_forward_matrices=2,
            feed_forward_width=self.feed_forward_width, patch_values=self.in_channels * self.patch_size**2,
            attended=[frame_lengths([grid])] * self.depth)


def _vision_config(transformers: Any, architecture: str | None, path: str | None, given: dict[str, Any],
                   image_size: int | None) -> Any:
    """The config of transformers, from a folder or from plain sizes."""
    if path is not None:
        config = folder_config(path, KEY)
        config = getattr(config, 'vision_config', config)
        if architecture not in (None, config.model_type):
            raise ValueError(f'{KEY}.architecture: {architecture!r} differs from the {config.model_type!r} of '
                             f'{KEY}.path')
        architecture = config.model_type
    if architecture not in _KNOWN:
        raise ValueError(f'{KEY}.architecture: {architecture!r} is not supported'
                         f'{near_names(architecture, list(_KNOWN))}; expected one of {", ".join(_KNOWN)}')
    if path is None:
        need_sizes({**given, 'image_size': image_size}, KEY)
        check_patch(patch_size=given['patch_size'], image_size=image_size)
        side = image_size // given['patch_size']
        if given['width'] % given['num_heads'] or not side:
            raise ValueError(f'{KEY}: width {given["width"]} must be a multiple of num_heads {given["num_heads"]}, and '
                             f'image_size {image_size} at least patch_size {given["patch_size"]}')
        stated = {_NAMES[key]: value for key, value in given.items()}
        stated.update(dict(image_size=image_size) if architecture == 'siglip_vision_model' else
                      dict(num_patches=side**2))
        config = getattr(transformers, _KNOWN[architecture][0])(**stated)
    else:
        settle_sizes(config, given, _NAMES, KEY)
        learnt = getattr(config, 'image_size', None) or int(config.num_patches**0.5) * config.patch_size
        if image_size not in (None, learnt):
            raise ValueError(f'{KEY}.image_size: {image_size!r} differs from the {learnt!r} of {KEY}.path; leave it '
                             'out and it follows')
    if config.attention_dropout:
        raise ValueError(f'{KEY}.architecture: {architecture!r} has dropout in its attention '
                         f'({config.attention_dropout!r}), which is not supported')
    config.vision_use_head = False
    return config
