"""Supervised fine-tuning: predict the assistant's tokens.

Source: Qwen2.5-VL Technical Report, arXiv 2502.13923, section 2.3.
Shapes: S supervised rows, E width.
"""
from collections.abc import Callable
from typing import Any

import torch

from qvlkit.registry import LOSSES, TRAINERS
from qvlkit.structures import PackedBatch
from qvlkit.train.trainer import Trainer


@TRAINERS.register_module()
class SFTTrainer(Trainer):
    """Next-token loss on the targets of each conversation.

    Args:
        loss: Config or object: hidden states (S, E), head weight, target ids -> summed loss; fills its argument
            `losses` (S,) with the loss of each target.
        arguments: As for `Trainer`.
    """

    def __init__(self, *, loss: dict | Callable | None = None, **arguments: Any):
        super().__init__(**arguments)
        loss = loss or dict(type='LinearCrossEntropy')
        self.loss = LOSSES.build(loss, config_key='trainer.loss') if isinstance(loss, dict) else loss

    def compute_loss(self, batch: PackedBatch) -> torch.Tensor:
        """Summed cross-entropy of the batch's targets."""
        hidden = self.model(batch)
        losses = torch.empty(batch.num_targets, device=hidden.device)
        total = self.loss(hidden.index_select(0, batch.target_rows), self.model.language_model.head_weight,
                          batch.target_ids, losses=losses)
        self.note_groups(batch, losses)
        return total
