"""Floating-point operations of a training step, from what each part says of its own forward pass.

A multiply-add counts as two. The parts' `flops` methods count matrix products and attention, and leave out norms,
activations and rotations, which are below one percent at real widths. With f the forward operations of a part:

    backward = f, to pass the gradient on,                      if the part or one before it trains
             + f, for the gradient of its weights,              if the part itself trains

The order of the parts is that of the model: vision encoder, merger, language model. Two small errors are known: the
first matrix of the first trained part needs no gradient of its input (counted too high), and attention in a frozen
part costs 2f backwards, not f (counted too low). What a backend computes a second time is not counted.
"""
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from qvlkit.structures import PackedBatch


@dataclass(frozen=True)
class PartFlops:
    """Operations of one part for one batch."""
    part: str
    forward: int
    backward: int

    @property
    def total(self) -> int:
        return self.forward + self.backward


def batch_flops(model: nn.Module, batch: PackedBatch, trainable: Mapping[str, bool]) -> list[PartFlops]:
    """Forward and backward operations of each part over one packed batch.

    Args:
        model: A VLM; its parts answer `flops`. The head runs on the rows that have a target, and on no other.
        batch: Its grids, sample lengths and number of targets are read.
        trainable: Part -> whether it trains; a part that is not named does.
    """
    grids = batch.vision_plan.grids
    forward = dict(vision_encoder=sum(map(model.vision_encoder.flops, grids)),
                   merger=sum(map(model.merger.flops, grids)),
                   language_model=model.language_model.flops(batch.attention.lengths_q, batch.num_targets))
    rows, gradient_passes = [], False
    for part, operations in forward.items():
        trains = trainable.get(part, True)
        gradient_passes = gradient_passes or trains
        rows.append(PartFlops(part, operations, operations * (gradient_passes + trains)))
    return rows


def format_flops(count: float) -> str:
    """1.5e12 -> '1.50 TFLOP'."""
    units = ['', 'K', 'M', 'G', 'T', 'P']
    while count >= 1000 and len(units) > 1:
        count /= 1000
        units.pop(0)
    return f'{count:,.2f} {units[0]}FLOP'
