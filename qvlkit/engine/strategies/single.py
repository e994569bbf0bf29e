"""One process, one device: the plain strategy, and the interface that every strategy has.

A strategy places the model, chooses the precision of its computations, and adds up over ranks. It has no loop and no
backward(): those are the trainer's. The whole interface:

    rank, world_size, is_main      who this process is
    device, dtype                  where the batch goes; what matrix products are computed in
    prepare(model) -> model        before the optimizer is built
    autocast()                     context of the forward pass
    sum_over_ranks(tensor)         the same shape, added over ranks, on the device
    gather_rows(tensor)            rows of all ranks one after the other, and where this rank's own begin
    reduce_gradients(params)       after the last backward of a step: gradients added over ranks
    barrier()                      wait for every rank
    clip_gradients(params, norm)   -> global norm before clipping, a device tensor
"""
import contextlib
from collections.abc import Iterable

import torch
from torch import nn

from qvlkit.registry import STRATEGIES, near_names

PRECISIONS = ['auto', 'bf16', 'fp32']


@STRATEGIES.register_module()
class SingleDevice:
    """Train on one device.

    Args:
        precision: 'bf16' computes matrix products in bfloat16, the weights stay as they are; 'fp32' everything in
            the weights' type; 'auto' is bf16 on a CUDA device that has it, else fp32.
        device: Default: the first CUDA device, or the CPU where there is none.

    Raises:
        ValueError: The precision is unknown.
    """
    rank, world_size, is_main = 0, 1, True

    def __init__(self, precision: str = 'auto', device: str | torch.device | None = None):
        if precision not in PRECISIONS:
            raise ValueError(f'precision: expected one of {", ".join(PRECISIONS)}, got {precision!r}'
                             f'{near_names(precision, PRECISIONS)}')
        self.device = torch.device(device or ('cuda' if torch.cuda.is_available() else 'cpu'))
        has_bf16 = self.device.type == 'cuda' and torch.cuda.is_bf16_supported(including_emulation=False)
        self.dtype = torch.bfloat16 if precision == 'bf16' or (precision == 'auto' and has_bf16) else torch.float32

    def prepare(self, model: nn.Module) -> nn.Module:
        """The model on the device."""
        return model.to(self.device)

    def autocast(self) -> contextlib.AbstractContextManager:
        """Context of the forward pass and the loss; the backward pass stays outside."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def sum_over_ranks(self, tensor: torch.Tensor) -> torch.Tensor:
        """Itself: there is one rank."""
        return tensor

    def gather_rows(self, tensor: torch.Tensor) -> tuple[torch.Tensor, int]:
        """(n, ...) -> rows of all ranks (N, ...), where this rank's own begin; gradients reach every rank."""
        return tensor, 0

    def reduce_gradients(self, parameters: Iterable[torch.Tensor]) -> None:
        """Nothing: there is one rank."""

    def barrier(self) -> None:
        """Nothing: there is one rank."""

    def clip_gradients(self, parameters: Iterable[torch.Tensor], max_norm: float | None) -> torch.Tensor:
        """Scale all gradients so that their joint norm is at most `max_norm`, without asking the device for a number.

        Returns:
            The norm before clipping, a scalar tensor on the device; None as `max_norm` only measures.
        """
        parameters = list(parameters)
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if max_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
        return norm
