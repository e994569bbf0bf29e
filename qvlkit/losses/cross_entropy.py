"""Next-token cross-entropy from hidden states, without ever holding all logits.

Only supervised rows reach the head, and they do so in chunks: each chunk's logits are turned into its loss and its
gradients at once and then dropped. Rows that fill no more than one chunk take the plain path: it holds that one chunk's
logits too, and no gradient of the head between the passes. The same maths as `F.cross_entropy(hidden @ weight.T)`, in
another order; idea: Cut Your Losses, arXiv 2411.09009, and Liger Kernel, arXiv 2410.10989.
Shapes: S supervised rows, E width, V vocabulary, c rows of a chunk.
"""
import torch
from torch.nn import functional as F

from qvlkit.registry import LOSSES


class _ChunkedLinearCrossEntropy(torch.autograd.Function):
    """Sum of cross-entropies; the gradients for a unit upstream gradient are made in the forward pass.

    Under autocast every matrix product runs in its dtype; the loss and the head's gradient are summed in float32.
    """

    @staticmethod
    def forward(ctx, hidden, weight, target_ids, chunk_rows, losses):
        wants_hidden, wants_weight = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        ctx.hidden_dtype, ctx.weight_dtype = hidden.dtype, weight.dtype
        device = hidden.device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            hidden, weight = (x.to(torch.get_autocast_dtype(device)) for x in (hidden, weight))
        accumulator = torch.promote_types(hidden.dtype, torch.float32)
        loss = torch.zeros((), dtype=accumulator, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros(weight.shape, dtype=accumulator, device=weight.device) if wants_weight else None
        for start in range(0, hidden.shape[0], chunk_rows):
            rows, targets = hidden[start:start + chunk_rows], target_ids[start:start + chunk_rows]
            log_probabilities = F.log_softmax(F.linear(rows, weight), dim=-1, dtype=accumulator)
            each = F.nll_loss(log_probabilities, targets, reduction='none')
            loss += each.sum()
            if losses is not None:
                losses[start:start + chunk_rows] = each
            if not (wants_hidden or wants_weight):
                continue
            grad_logits = log_probabilities.exp_()
            grad_logits.scatter_add_(1, targets[:, None], grad_logits.new_full((len(targets), 1), -1.0))
            grad_logits = grad_logits.to(hidden.dtype)
            if wants_hidden:
                torch.mm(grad_logits, weight, out=grad_hidden[start:start + chunk_rows])
            if wants_weight:
                if rows.dtype == accumulator:
                    grad_weight.addmm_(grad_logits.T, rows)  # no second (V, E)
                else:
                    grad_weight += grad_logits.T @ rows
        ctx.save_for_backward(grad_hidden, grad_weight)
        return loss

    @staticmethod
    def backward(ctx, grad_loss):
        grad_hidden, grad_weight = ctx.saved_tensors
        if grad_hidden is not None:
            grad_hidden = grad_hidden.to(ctx.hidden_dtype) * grad_loss
        if grad_weight is not None:
            grad_weight = (grad_weight * grad_loss).to(ctx.weight_dtype)
        return grad_hidden, grad_weight, None, None, None


@LOSSES.register_module()
class LinearCrossEntropy:
    """Summed cross-entropy of the supervised rows.

    Args:
        chunk_rows: c, rows whose logits are held at one time; memory grows with c * V.
    """

    def __init__(self, *, chunk_rows: int = 1024):
        if chunk_rows < 1:
            raise ValueError(f'loss.chunk_rows: expected at least 1, got {chunk_rows}')
        self.chunk_rows = chunk_rows

    def __call__(self, hidden: torch.Tensor, head_weight: torch.Tensor, target_ids: torch.Tensor, *,
                 losses: torch.Tensor | None = None) -> torch.Tensor:
        """Hidden states (S, E), head (V, E), targets (S,) -> sum, a scalar in float32 or wider.

        `losses` (S,), if given, receives the loss of each target, without a gradient.
        """
        if hidden.shape[0] <= self.chunk_rows:
            return _plain(hidden, head_weight, target_ids, losses)
        return _ChunkedLinearCrossEntropy.apply(hidden, head_weight, target_ids, self.chunk_rows, losses)


@LOSSES.register_module()
class FullCrossEntropy:
    """The plain path: all logits at once. The reference that LinearCrossEntropy is held to."""

    def __call__(self, hidden: torch.Tensor, head_weight: torch.Tensor, target_ids: torch.Tensor, *,
                 losses: torch.Tensor | None = None) -> torch.Tensor:
        """As LinearCrossEntropy."""
        return _plain(hidden, head_weight, target_ids, losses)


def _plain(hidden: torch.Tensor, head_weight: torch.Tensor, target_ids: torch.Tensor,
           losses: torch.Tensor | None) -> torch.Tensor:
    logits = F.linear(hidden, head_weight)
    each = F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), target_ids, reduction='none')
    if losses is not None:
        losses.copy_(each.detach())
    return each.sum()
