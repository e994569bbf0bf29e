"""The vision-language model: encode, merge, place, decode. Read this file first.

Source: Qwen2.5-VL Technical Report, arXiv 2502.13923, figure 1.
Shapes: T packed tokens, N patches, M visual tokens, D vision width, E language width, A position axes, V vocabulary,
C colour channels, F frames in a patch, P patch side.
"""
from collections.abc import Sequence

import torch
from torch import nn

from qvlkit.structures import PackedBatch, VisionGeometry

# Mean and standard deviation of each colour channel that CLIP's training pictures have, in 0 ... 1 (arXiv 2103.00020).
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)


class VLM(nn.Module):
    """Four parts in a chain. Every index it needs comes with the batch: it never asks the device for a number.

    Args:
        vision_encoder, merger, position_encoding, language_model: Built parts that fit `models/interfaces.py`.
        image_mean, image_std: Normalisation of each colour channel.
    """

    def __init__(self, vision_encoder: nn.Module, merger: nn.Module, *, position_encoding: nn.Module,
                 language_model: nn.Module, image_mean: Sequence[float] = IMAGE_MEAN,
                 image_std: Sequence[float] = IMAGE_STD):
        super().__init__()
        self.vision_encoder = vision_encoder
        self.merger = merger
        self.position_encoding = position_encoding
        self.language_model = language_model
        self.image_mean, self.image_std = tuple(image_mean), tuple(image_std)

    @property
    def geometry(self) -> VisionGeometry:
        """Sizes from which the data pipeline derives resize factors, placeholder counts and box scales."""
        encoder = self.vision_encoder
        return VisionGeometry(encoder.patch_size, encoder.temporal_patch_size, self.merger.merge_size,
                              encoder.in_channels)

    def forward(self, batch: PackedBatch, cache=None, features: torch.Tensor | None = None) -> torch.Tensor:
        """Packed batch -> hidden states (T, E) after the final norm.

        `features` (N, D) are what `encode` gave for these pictures before: no second pass then.
        """
        visual_tokens = self.merger(self.encode(batch) if features is None else features)
        embeddings = self.place(self.language_model.embed(batch.token_ids), visual_tokens, batch.visual_rows)
        rotary = self.position_encoding.rotary(batch.position_ids)
        return self.language_model(embeddings, rotary, batch.attention, cache)

    def logits(self, batch: PackedBatch) -> torch.Tensor:
        """Packed batch -> (T, V). For training use the hidden states: few rows have a target."""
        return self.language_model.logits(self(batch))

    def encode(self, batch: PackedBatch) -> torch.Tensor:
        """All pictures and videos of the batch in one call -> features (N, D)."""
        patches = [self.normalise(patches, frames) for patches, frames in
                   ((batch.image_patches, 1), (batch.video_patches, self.vision_encoder.temporal_patch_size))
                   if patches.shape[0]]
        return self.vision_encoder(patches[0] if len(patches) == 1 else torch.cat(patches), batch.vision_plan)

    def normalise(self, patches: torch.Tensor, frames: int) -> torch.Tensor:
        """uint8 patches (N, C*frames*P*P) -> float32 (N, C*F*P*P), a single frame repeated F times."""
        channels = self.vision_encoder.in_channels
        mean, std = (torch.stack([torch.full((frames, 1), value, device=patches.device) for value in values])
                     for values in (self.image_mean, self.image_std))
        pixels = patches.unflatten(1, (channels, frames, -1)).float() / 255
        pixels = (pixels - mean) / std
        return pixels.expand(-1, -1, self.vision_encoder.temporal_patch_size, -1).flatten(1)

    @staticmethod
    def place(embeddings: torch.Tensor, visual_tokens: torch.Tensor, visual_rows: torch.Tensor) -> torch.Tensor:
        """Write the visual tokens (M, E) over the rows (M,) of the embeddings (T, E).

        A batch without media names no rows: its blank picture stays in the graph, with gradient zero.
        """
        visual_tokens = visual_tokens[:visual_rows.shape[0]].to(embeddings.dtype)
        return embeddings.index_copy(0, visual_rows, visual_tokens)

    def parts(self) -> dict[str, nn.Module]:
        """The parts that hold weights, by the names that a config uses."""
        return dict(vision_encoder=self.vision_encoder, merger=self.merger, language_model=self.language_model)
