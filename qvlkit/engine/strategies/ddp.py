"""Several processes, each with the whole model and with rows of its own: gradients are added up after each step.

What a step computes on N ranks with A rows each is what one process computes with N x A rows: the trainer divides by
the number of targets on all ranks before its backward(), so gradients are summed and not averaged.

Numbers that live on the device travel by its own backend (NCCL on CUDA, Gloo on a CPU); counts and flags that the host
decides by travel by Gloo, so that no rank asks its device for them.
"""
from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import nn

from qvlkit.engine.strategies.processes import connect, own_device
from qvlkit.engine.strategies.single import SingleDevice
from qvlkit.registry import STRATEGIES

BUCKET_BYTES = 256 * 2 ** 20  # of gradients that are added over ranks in one call


@STRATEGIES.register_module()
class DDP(SingleDevice):
    """Data parallel: every rank holds the model, the optimizer's state and a share of each step's rows.

    Every rank makes the same calls in the same order. Without torchrun it is a group of one process.

    Args:
        precision: As for `SingleDevice`.
        device: 'cpu' or 'cuda'; default: the CUDA device with the number of the local rank, or the CPU where there is
            none.
        timeout: Seconds that a rank waits for the others before it gives up: longer than the slowest thing that one
            rank does alone, such as writing a checkpoint or answering held-out questions.

    Raises:
        ValueError: The precision is unknown, or this machine has fewer CUDA devices than processes.
    """

    def __init__(self, precision: str = 'auto', device: str | torch.device | None = None, *, timeout: float = 3600.0):
        super().__init__(precision, own_device(device))
        connect(self.device, timeout)
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.is_main = self.rank == 0

    def prepare(self, model: nn.Module) -> nn.Module:
        """The model on the device, with the main rank's weights on every rank."""
        model = model.to(self.device)
        for tensor in _tensors(model):
            dist.broadcast(tensor, src=0)
        return model

    def sum_over_ranks(self, tensor: torch.Tensor) -> torch.Tensor:
        """A new tensor of the same shape, added over ranks, without a gradient."""
        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total

    def gather_rows(self, tensor: torch.Tensor) -> tuple[torch.Tensor, int]:
        """(n, ...) -> rows of all ranks (N, ...), where this rank's own begin.

        Ranks may have different n, also 0. The backward pass gives this rank's rows the sum of what all ranks found for
        them, so every rank must take part in it, or none.
        """
        counts = self._counts(tensor.shape[0])
        return _GatherRows.apply(tensor, counts, self.rank), sum(counts[:self.rank])

    def reduce_gradients(self, parameters: Iterable[torch.Tensor]) -> None:
        """Add gradients over ranks, in place, in flat buckets of one dtype.

        A parameter that has no gradient here but one on another rank counts as zero; one that has none anywhere stays
        without.
        """
        parameters = list(parameters)
        has_gradient = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.int32)
        dist.all_reduce(has_gradient, op=dist.ReduceOp.MAX)
        used = [parameter for parameter, anywhere in zip(parameters, has_gradient.tolist()) if anywhere]
        for parameter in used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for bucket in buckets([parameter.grad for parameter in used]):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            dist.all_reduce(flat)
            for gradient, piece in zip(bucket, flat.split([gradient.numel() for gradient in bucket])):
                gradient.copy_(piece.view_as(gradient))

    def barrier(self) -> None:
        """Wait for every rank."""
        dist.all_reduce(torch.zeros(1))  # on the host: the device goes on with what it has

    def _counts(self, count: int) -> list[int]:
        """`count` of every rank, read on the host."""
        counts = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world_size)]
        dist.all_gather(counts, torch.tensor([count]))
        return [int(each) for each in counts]


class _GatherRows(torch.autograd.Function):
    """Rows (n, ...) -> rows of all ranks (N, ...): padded to the longest, gathered, stripped."""

    @staticmethod
    def forward(ctx, tensor, counts, rank):
        ctx.start, ctx.count = sum(counts[:rank]), counts[rank]
        longest = max(counts)
        padded = tensor.new_zeros(longest, *tensor.shape[1:])
        padded[:tensor.shape[0]] = tensor
        everyone = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(everyone, padded)
        return torch.cat([rows[:count] for rows, count in zip(everyone, counts)])

    @staticmethod
    def backward(ctx, gradient):
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[ctx.start:ctx.start + ctx.count], None, None


def buckets(tensors: Iterable[torch.Tensor], most_bytes: int = BUCKET_BYTES) -> Iterator[list[torch.Tensor]]:
    """Tensors of one dtype each, in order, up to `most_bytes` together; a larger one stands alone."""
    open_buckets: dict[torch.dtype, list[torch.Tensor]] = {}
    for tensor in tensors:
        bucket = open_buckets.setdefault(tensor.dtype, [])
        if bucket and sum(each.nbytes for each in bucket) + tensor.nbytes > most_bytes:
            yield bucket
            bucket = open_buckets[tensor.dtype] = []
        bucket.append(tensor)
    yield from open_buckets.values()


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    """What a checkpoint of the model holds, each tensor once."""
    return list({id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}.values())
