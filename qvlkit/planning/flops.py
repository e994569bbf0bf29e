"""Floating-point operations of a training step, from what each part says of its own forward pass.

A multiply-add counts as two. The parts' `flops` methods count matrix products and attention, and leave out norms,
activations and rotations, which are below one percent at real widths. With f the forward operations of a part:

    backward = f, to pass the gradient on,                      if the part or one before it trains
             + f, for the gradient of its weights,              if the part itself trains

The order of the parts is that of the model: vision encoder, merger, language model. Two small errors are known: the
first matrix of the first trained part needs no gradient of its input (counted too high), and attention in a frozen
part costs 2f backwards, not f (counted too low). What is computed a second time is not counted: by a backend, or by a
contrastive step of several rows, which embeds each twice. Nor are similarities of pairs, W operations for each two.

The forward pass of a live DPO reference is work that the loss is made of, and is counted.
"""
import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from qvlkit.structures import AttentionPlan, Grid, ImageTextBatch, Measure, PackedBatch


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
        batch: Its grids, attention plan and number of targets are read; it may be one of preference pairs.
        trainable: Part -> whether it trains; a part that is not named does.
    """
    rows, gradient_passes = [], False
    for part, operations in _forward(model, batch).items():
        trains = trainable.get(part, True)
        gradient_passes = gradient_passes or trains
        rows.append(PartFlops(part, operations, operations * (gradient_passes + trains)))
    return rows


def reference_flops(model: nn.Module, batch: PackedBatch, *, shares_features: bool) -> PartFlops:
    """The pass of a model that only answers, beside one that trains: forward alone.

    Args:
        model: A VLM.
        batch: As for `batch_flops`.
        shares_features: It takes the other model's features, and its vision encoder does not run.
    """
    forward = _forward(model, batch)
    return PartFlops('reference', sum(forward.values()) - shares_features * forward['vision_encoder'], 0)


def pair_flops(model: nn.Module, batch: ImageTextBatch, trainable: Mapping[str, bool]) -> list[PartFlops]:
    """Forward and backward operations of each part over one batch of pairs.

    Args:
        model: A TwoTowers; its parts answer `flops`. A language model that is the text tower counts as such.
        batch: Its grids and caption lengths are read.
        trainable: Part -> whether it trains; a part that is not named does.
    """
    grids = batch.vision_plan.grids
    forward = dict(vision_encoder=sum(map(model.vision_encoder.flops, grids)),
                   pooling=sum(map(model.pooling.flops, grids)),
                   text_tower=model.text_tower.flops(batch.attention.lengths_q))
    passes = _tower_passes(model, trainable)
    return [PartFlops(part, operations, operations * passes[part]) for part, operations in forward.items()]


def _forward(model: nn.Module, batch: PackedBatch) -> dict[str, int]:
    """Part -> forward operations."""
    grids = batch.vision_plan.grids
    return dict(vision_encoder=sum(map(model.vision_encoder.flops, grids)),
                merger=sum(map(model.merger.flops, grids)),
                language_model=_planned(model.language_model, batch.attention, batch.num_targets))


def _planned(language_model: nn.Module, attention: AttentionPlan, num_logits: int) -> int:
    """Forward operations of a decoder where q queries see k keys, the last q of them their own: those of k tokens but
    for those of the k - q that only others compute."""
    seen = [k - q for q, k in zip(attention.lengths_q, attention.lengths_k) if k > q]
    return language_model.flops(attention.lengths_k, num_logits) - language_model.flops(seen, 0)


def _tower_passes(model: nn.Module, trainable: Mapping[str, bool]) -> dict[str, int]:
    """Part of two towers -> how often its forward operations are done backwards. Each tower begins a chain."""
    encoder, pooling, text = (trainable.get(part, True) for part in ('vision_encoder', 'pooling', 'text_tower'))
    text = trainable.get('language_model', True) if hasattr(model, 'language_model') else text
    return dict(vision_encoder=2 * encoder, pooling=(encoder or pooling) + pooling, text_tower=2 * text)


class SampleCost:
    """Measure -> operations of one sample in a training step: by this the data pipeline evens out rows.

    Args:
        model: A VLM, of which the parts' `flops` are asked; weights are not needed.
        trainable: Part -> whether it trains; a part that is not named does.
    """

    def __init__(self, model: nn.Module, trainable: Mapping[str, bool]):
        self._language_model = model.language_model
        self._encoder, self._merger = model.vision_encoder, model.merger
        gradient_passes, self._factors = False, {}
        for part in ('vision_encoder', 'merger', 'language_model'):
            trains = trainable.get(part, True)
            gradient_passes = gradient_passes or trains
            self._factors[part] = 1 + gradient_passes + trains
        self._of_grid: dict[Grid, float] = {}

    def __call__(self, measure: Measure) -> float:
        """Forward and backward operations."""
        language = self._language_model.flops((measure.length,), measure.num_targets)
        return self._factors['language_model'] * language + sum(map(self._grid_cost, measure.grids))

    def _grid_cost(self, grid: Grid) -> float:
        if grid not in self._of_grid:
            self._of_grid[grid] = (self._factors['vision_encoder'] * self._encoder.flops(grid) +
                                   self._factors['merger'] * self._merger.flops(grid))
        return self._of_grid[grid]


class PairCost:
    """Measure -> operations of one pair of a picture and its caption in a contrastive step.

    Each tower begins a chain of its own: a tower that trains costs 3f, a frozen one f.

    Args:
        model: A TwoTowers, whose parts' `flops` are asked; weights are not needed.
        trainable: Part -> whether it trains; a part that is not named does.
    """

    def __init__(self, model: nn.Module, trainable: Mapping[str, bool]):
        self._model = model
        self._factors = {part: 1 + passes for part, passes in _tower_passes(model, trainable).items()}
        self._of_grid: dict[Grid, tuple[float, int]] = {}

    def __call__(self, measure: Measure) -> float:
        """Forward and backward operations; what is no merge cell of the picture is caption."""
        costs, cells = zip(*map(self._picture, measure.grids))
        caption = measure.length - sum(cells)
        return sum(costs) + self._factors['text_tower'] * self._model.text_tower.flops((caption,))

    def _picture(self, grid: Grid) -> tuple[float, int]:
        """Operations and merge cells of a picture."""
        if grid not in self._of_grid:
            operations = sum(self._factors[part] * getattr(self._model, part).flops(grid)
                             for part in ('vision_encoder', 'pooling'))
            self._of_grid[grid] = operations, math.prod(self._model.geometry.token_grid(grid))
        return self._of_grid[grid]


def format_flops(count: float) -> str:
    """1.5e12 -> '1.50 TFLOP'."""
    units = ['', 'K', 'M', 'G', 'T', 'P']
    while count >= 1000 and len(units) > 1:
        count /= 1000
        units.pop(0)
    return f'{count:,.2f} {units[0]}FLOP'
