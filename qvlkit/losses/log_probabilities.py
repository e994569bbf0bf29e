"""Log-probability of each target from hidden states, without ever holding all logits.

As `cross_entropy.py`, but every target keeps a value and a gradient of its own: a preference loss weighs each answer
differently, and only after the whole row is known. So the forward pass keeps one log-sum-exp for each row, and the
backward pass computes the logits of a chunk again. Rows that fill no more than one chunk take the plain path.
Idea: Cut Your Losses, arXiv 2411.09009.
Shapes: S target rows, E width, V vocabulary, c rows of a chunk.
"""
import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def linear_log_probabilities(hidden: torch.Tensor, weight: torch.Tensor, target_ids: torch.Tensor,
                             chunk_rows: int = 1024) -> torch.Tensor:
    """Hidden states (S, E), head (V, E), targets (S,) -> log-probability of each target (S,), in float32 or wider.

    Args:
        chunk_rows: c, rows whose logits are held at one time; memory grows with c * V.
    """
    if hidden.shape[0] <= chunk_rows:
        logits = F.linear(hidden, weight)
        return -F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), target_ids,
                                reduction='none')
    return _ChunkedLogProbabilities.apply(hidden, weight, target_ids, chunk_rows)


class _ChunkedLogProbabilities(torch.autograd.Function):
    """Under autocast every matrix product runs in its dtype, and what is summed is summed in float32."""

    @staticmethod
    def forward(ctx, hidden, weight, target_ids, chunk_rows):
        device = hidden.device.type
        autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        ctx.compute_dtype = torch.get_autocast_dtype(device) if autocast else hidden.dtype
        ctx.chunk_rows = chunk_rows
        rounded = weight.to(ctx.compute_dtype)
        accumulator = torch.promote_types(ctx.compute_dtype, torch.float32)
        values = torch.empty(hidden.shape[0], dtype=accumulator, device=hidden.device)
        log_sums = torch.empty_like(values)
        for start in range(0, hidden.shape[0], chunk_rows):
            chunk = slice(start, start + chunk_rows)
            logits = F.linear(hidden[chunk].to(ctx.compute_dtype), rounded).to(accumulator)
            log_sums[chunk] = logits.logsumexp(dim=-1)
            values[chunk] = logits.gather(1, target_ids[chunk, None]).squeeze(1) - log_sums[chunk]
        ctx.save_for_backward(hidden, weight, target_ids, log_sums)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        hidden, weight, target_ids, log_sums = ctx.saved_tensors
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        rounded = weight.to(ctx.compute_dtype)
        accumulator = log_sums.dtype
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros(weight.shape, dtype=accumulator, device=weight.device) if wants_weight else None
        for start in range(0, hidden.shape[0], ctx.chunk_rows):
            chunk = slice(start, start + ctx.chunk_rows)
            rows, scale = hidden[chunk].to(ctx.compute_dtype), upstream[chunk, None].to(accumulator)
            grad_logits = F.linear(rows, rounded).to(accumulator).sub_(log_sums[chunk, None]).exp_().mul_(-scale)
            grad_logits = grad_logits.scatter_add_(1, target_ids[chunk, None], scale).to(ctx.compute_dtype)
            if wants_hidden:
                grad_hidden[chunk] = grad_logits @ rounded
            if wants_weight:
                if rows.dtype == accumulator:
                    grad_weight.addmm_(grad_logits.T, rows)  # no second (V, E)
                else:
                    grad_weight += grad_logits.T @ rows
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), None, None
