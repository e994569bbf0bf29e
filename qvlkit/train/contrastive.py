"""Contrastive pre-training: a picture and its caption come near each other, the others of the step apart.

Source: arXiv 2103.00020, section 2.3; the ViT of Qwen2.5-VL begins so, arXiv 2502.13923, section 2.2.2. Several rows in
a step: Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, arXiv 2101.06983 (GradCache).
Shapes: n pairs of a row, N pairs of all rows and ranks, W common width.
"""
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from qvlkit.data.image_text import ImageTextProcessor, collate_image_text
from qvlkit.losses.contrastive import nearest_is_own
from qvlkit.planning.flops import PairCost, PartFlops, SampleCost, pair_flops
from qvlkit.registry import LOSSES, TRAINERS
from qvlkit.structures import ImageTextBatch, Measure
from qvlkit.train.trainer import Trainer

MAX_TEXT_TOKENS = 77  # as in arXiv 2103.00020, section 2.4, rounded up


@TRAINERS.register_module()
class ContrastiveTrainer(Trainer):
    """Every pair of a step is compared with every other, on all ranks and in all rows.

    With one row the loss is computed as it is written. With several, every row is embedded without a graph, the loss of
    all is taken with respect to the embeddings, and each row is then embedded again with that gradient: the same step,
    for the memory of one row and one more forward pass. On several ranks the loss is always taken so, because ranks may
    have different numbers of rows, also none; a single row is embedded once and keeps its graph.

    Args:
        loss: Config or object: own and all embeddings, scale and bias -> sum over own pairs; see losses/contrastive.py.
        max_text_tokens: Longest caption; what is over is cut off.
        arguments: As for `Trainer`; the model is a `TwoTowers`.

    Raises:
        ValueError: The model has no text tower.
    """
    collate = staticmethod(collate_image_text)
    two_towers = True

    def __init__(self, *, loss: dict | Callable | None = None, max_text_tokens: int = MAX_TEXT_TOKENS,
                 **arguments: Any):
        super().__init__(**arguments)
        if not _has_towers(self.model):
            raise ValueError(f'stages.{self.stage}.towers: the stage names no towers, and ContrastiveTrainer compares '
                             'two; give it towers = dict(text_tower=dict(type=...), pooling=dict(type=...), width=...)')
        loss = loss or dict(type='InfoNCE')
        self.loss = LOSSES.build(loss, config_key='trainer.loss') if isinstance(loss, dict) else loss
        self.max_text_tokens = max_text_tokens
        self._shares: dict[int, _Share] = {}  # of the rows of this step that were embedded already

    @classmethod
    def encoder(cls, processor: Any, settings: dict) -> ImageTextProcessor:
        """Measures and encodes pairs."""
        return ImageTextProcessor(processor, max_text_tokens=settings.get('max_text_tokens', MAX_TEXT_TOKENS))

    @classmethod
    def sample_cost(cls, model: nn.Module, trainable: Mapping[str, bool]) -> Callable[[Measure], float]:
        """Operations of both towers. (A model without towers is refused later, where the stage's name is known.)"""
        return (PairCost if _has_towers(model) else SampleCost)(model, trainable)

    def part_flops(self, batch: ImageTextBatch) -> list[PartFlops]:
        """Of both towers, each pair once: that several rows are embedded twice is the price of memory, not work."""
        return pair_flops(self.model, batch, self.trains())

    def prepare_step(self, rows: list[ImageTextBatch]) -> None:
        """Limit the scale; of several rows or ranks, embed all and keep each row's share of the loss and its gradients.

        Every rank gathers once here, whatever it has, and not at all later.
        """
        self.model.temperature.limit()
        self._shares = {}
        if len(rows) > 1:
            self._refuse_dropout()
        if len(rows) > 1 or self.strategy.world_size > 1:
            with self.strategy.autocast():
                self._shares = self._cached(rows)

    def compute_loss(self, batch: ImageTextBatch) -> torch.Tensor:
        """Summed loss of the batch's pairs, among all pairs of the step."""
        share = self._shares.pop(id(batch), None)
        image, text = share.sides if share is not None and share.sides else self.model(batch)
        scale, bias = self.model.temperature()
        if share is None:
            return self._row_loss(image, text, *self._of_all_ranks(image, text), scale, bias)
        image_gradient, text_gradient, scale_gradient, bias_gradient = share.gradients
        surrogate = (image * image_gradient).sum() + (text * text_gradient).sum() + scale * scale_gradient
        if bias is not None:
            surrogate = surrogate + bias * bias_gradient
        return surrogate + (share.loss - surrogate).detach()  # the loss's value, the cached gradients

    def _cached(self, rows: list[ImageTextBatch]) -> dict[int, '_Share']:
        """Share of the loss and gradients of every row, by the row's identity.

        The gradients with respect to the own embeddings hold the losses of all ranks: they come back through the
        gather. Those of scale and bias belong to the whole step, and are given to its first row alone.
        """
        with torch.set_grad_enabled(len(rows) == 1):
            embedded = [self.model(row) for row in rows]
        sides = [torch.cat(side) for side in zip(*embedded)] if rows else self._no_embeddings()
        leaves = [*sides, *(value for value in self.model.temperature() if value is not None)]
        leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
        with torch.enable_grad():
            image, text, scale, *bias = leaves
            all_images, all_texts, first = self._of_all_ranks(image, text)
            lengths = [row.num_targets for row in rows]
            losses, start = [], first
            for images, texts, length in zip(image.split(lengths), text.split(lengths), lengths):
                losses.append(self._row_loss(images, texts, all_images, all_texts, start, scale, *bias or [None]))
                start += length
            # without a row: the gather's backward pass, in which the other ranks wait for this one
            total = torch.stack(losses).sum() if rows else 0.0 * (all_images.sum() + all_texts.sum())
            gradients = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
        once = list(gradients[2:])
        shares = {}
        for row, loss, *own in zip(rows, losses, gradients[0].split(lengths), gradients[1].split(lengths)):
            shares[id(row)] = _Share(loss.detach(), [*own, *once, *[None] * (2 - len(once))],
                                     embedded[0] if len(rows) == 1 else None)
            once = [torch.zeros_like(gradient) for gradient in once]
        return shares

    def _of_all_ranks(self, image: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
        """(N, W), (N, W), and where this rank's own rows begin."""
        both, first = self.strategy.gather_rows(torch.cat([image, text], dim=1))
        return *both.split([image.shape[1], text.shape[1]], dim=1), first

    def _no_embeddings(self) -> list[torch.Tensor]:
        """Pictures and captions (0, W) of a rank without a row."""
        weight = self.model.temperature.log_scale
        return [weight.new_zeros(0, self.model.embed_dim, dtype=torch.promote_types(weight.dtype, torch.float32))] * 2

    def _row_loss(self, image, text, all_images, all_texts, first, scale, bias) -> torch.Tensor:
        """Summed loss of one row's pairs; notes how often the nearest caption is the picture's own."""
        self.note('accuracy', nearest_is_own(image, all_texts, first=first))
        self.note('scale', scale.reshape(1))
        return self.loss(image, text, all_images, all_texts, first=first, scale=scale, bias=bias)

    def _refuse_dropout(self) -> None:
        for name, module in self.model.named_modules():
            if isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0:
                raise ValueError(f'stages.{self.stage}.accumulation: several rows in a step are embedded twice, and '
                                 f'{name} drops other values each time (p = {module.p}); set its dropout to 0 or '
                                 'accumulation to 1')


class _Share:
    """Of one row: its part of the step's loss, gradients of image, text, scale and bias (None without one), and its
    embeddings if they have a graph."""

    def __init__(self, loss: torch.Tensor, gradients: list, sides: tuple[torch.Tensor, torch.Tensor] | None = None):
        self.loss, self.gradients, self.sides = loss, gradients, sides


def _has_towers(model: nn.Module) -> bool:
    return hasattr(model, 'text_tower') and hasattr(model, 'pooling')
