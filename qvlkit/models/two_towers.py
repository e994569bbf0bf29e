"""Two towers: a picture and its caption as neighbouring vectors. The first stage trains its vision encoder by them.

Source: Learning Transferable Visual Models From Natural Language Supervision, arXiv 2103.00020, figure 3; pictures at
their own aspect ratio as in Qwen2.5-VL, arXiv 2502.13923, section 2.1.
Shapes: B pairs, N patches, D vision width, W common width of the two towers.
"""
import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from qvlkit.models.vlm import IMAGE_MEAN, IMAGE_STD, VLM
from qvlkit.structures import Grid, ImageTextBatch, VisionGeometry, VisionPlan

LARGEST_SCALE = 100.0  # of similarities: beyond it training is not stable (arXiv 2103.00020, section 2.5)


class Temperature(nn.Module):
    """The learnt scale of similarities, kept as its logarithm, and for SigLIP a learnt bias that is added to them.

    Args:
        scale: First value of the scale.
        bias: First value of the bias; None: there is none.
    """

    def __init__(self, scale: float, *, bias: float | None = None):
        super().__init__()
        self.log_scale = nn.Parameter(torch.full((1,), math.log(scale)))
        self.logit_bias = None if bias is None else nn.Parameter(torch.full((1,), float(bias)))

    def forward(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Scale and bias: scalars, the bias None where there is none."""
        return self.log_scale.exp().squeeze(0), None if self.logit_bias is None else self.logit_bias.squeeze(0)

    @torch.no_grad()
    def limit(self) -> None:
        """Bring the scale back to at most 100, unless it is frozen."""
        if self.log_scale.requires_grad:
            self.log_scale.clamp_(max=math.log(LARGEST_SCALE))


class TwoTowers(nn.Module):
    """A vision encoder with a pooling, and a text tower. Every index they need comes with the batch.

    Args:
        vision_encoder: As in the VLM, with the same names of parameters: the part is handed over.
        pooling: (N, D) -> (B, W); see `models/interfaces.py`, as for the text tower.
        text_tower: Captions -> (B, W).
        temperature: Scale and bias of similarities.
        merge_size: Side of a merge cell in patches, by which the encoder orders its patches.
        embed_dim: W.
        language_model: Where the text tower is the config's language model: that model.
        image_mean, image_std: Normalisation of each colour channel.
    """

    def __init__(self, vision_encoder: nn.Module, pooling: nn.Module, *, text_tower: nn.Module,
                 temperature: Temperature, merge_size: int, embed_dim: int, language_model: nn.Module | None = None,
                 image_mean: Sequence[float] = IMAGE_MEAN, image_std: Sequence[float] = IMAGE_STD):
        super().__init__()
        self.vision_encoder = vision_encoder
        self.pooling = pooling
        self.text_tower = text_tower
        if language_model is not None:
            self.language_model = language_model
        self.temperature = temperature
        self.merge_size, self.embed_dim = merge_size, embed_dim
        self.image_mean, self.image_std = tuple(image_mean), tuple(image_std)

    def plan(self, grids: Sequence[Grid]) -> VisionPlan:
        """Orders, positions and attention plans of the vision encoder for these grids, as of a VLM."""
        return self.vision_encoder.plan(grids)

    @property
    def geometry(self) -> VisionGeometry:
        """Sizes from which the data pipeline derives resize factors and merge cells."""
        encoder = self.vision_encoder
        return VisionGeometry(encoder.patch_size, encoder.temporal_patch_size, self.merge_size, encoder.in_channels)

    def forward(self, batch: ImageTextBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Pairs -> pictures (B, W) and captions (B, W), of unit length, in float32 or wider."""
        return self.embed_images(batch), self.embed_texts(batch)

    def embed_images(self, batch: ImageTextBatch) -> torch.Tensor:
        """The batch's pictures -> (B, W) of unit length."""
        return _unit(self.pooling(self.encode(batch), batch.picture_index, batch.picture_lengths))

    def embed_texts(self, batch: ImageTextBatch) -> torch.Tensor:
        """The batch's captions -> (B, W) of unit length."""
        return _unit(self.text_tower(batch))

    encode, normalise = VLM.encode, VLM.normalise  # pictures reach the encoder as they do in the VLM

    def parts(self) -> dict[str, nn.Module]:
        """The parts that hold weights, by the names that a config uses."""
        return dict(self.named_children())


def _unit(rows: torch.Tensor) -> torch.Tensor:
    return F.normalize(rows.to(torch.promote_types(rows.dtype, torch.float32)), dim=-1)
