"""Memory of a training step on one device, by category. An estimate: it counts tensors, not an allocator's gaps.

    weights       sum over parameters and buffers of numel * bytes (float32 in training: 4; less where quantized)
    gradients     the same over the parameters that train: of a part with adapters, these
    optimizer     twice the gradients: AdamW's two moments
    reference     a live DPO reference: a frozen copy of each part that trains by other weights than adapters
    average       the moving average of what trains (`ema`), in float32 at least
    activations   the storages that autograd keeps between the forward and the backward pass of one row, each counted
                  once, parameters left out. Counted on the pass itself (`saved_activations`), so it holds for any part,
                  any backend and any precision; with bf16 it includes the copies that autocast makes of the weights.
                  It includes what LinearCrossEntropy keeps: the head's gradients, or the logits of one chunk.
    head          while the loss is made, c = min(chunk_rows, S) rows of logits: c * V * (2 * b + 4), their values and
                  gradients in b bytes each and their log-probabilities in float32.

Shape letters: S supervised rows, V vocabulary, c rows of a chunk, b bytes of the compute type.
"""
import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from qvlkit.engine.adapters import is_adapter

OPTIMIZER_STATES = 2  # tensors that AdamW keeps for each parameter that trains


@dataclass(frozen=True)
class Memory:
    """Bytes by category, as the head of this file defines them."""
    weights: int
    gradients: int
    optimizer: int
    reference: int = 0
    average: int = 0
    activations: int = 0
    head: int = 0

    @property
    def total(self) -> int:
        return sum(self.categories().values())

    def categories(self) -> dict[str, int]:
        """Name -> bytes; without `reference` and `average` where there is none."""
        sizes = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: size for name, size in sizes.items() if size or name not in ('reference', 'average')}


def model_memory(model: nn.Module, trainable: Mapping[str, bool], *, reference: bool = False,
                 average: bool = False) -> Memory:
    """What training holds before the first row arrives: weights, gradients, optimizer states, and copies.

    Args:
        model: May be on the meta device, or fake.
        trainable: Part -> whether it trains; a part that is not named does.
        reference, average: Whether the stage has a live reference, and a moving average.
    """
    weights, gradients, averages = sum(buffer.nbytes for buffer in model.buffers()), 0, 0
    adapted = {name.partition('.')[0] for name, _ in model.named_parameters() if is_adapter(name)}
    for name, parameter in model.named_parameters():
        part, size = name.partition('.')[0], parameter.numel() * parameter.element_size()
        weights += size
        if trainable.get(part, True) and (part not in adapted or is_adapter(name)):
            gradients += size
            averages += parameter.numel() * torch.promote_types(parameter.dtype, torch.float32).itemsize
    copied = [module for part, module in model.named_children() if trainable.get(part, True) and part not in adapted
              and any(True for _ in module.parameters())]
    copies = sum(tensor.nbytes for module in copied for tensor in [*module.parameters(), *module.buffers()])
    return Memory(weights, gradients, OPTIMIZER_STATES * gradients, reference * copies, average * averages)


def head_memory(*, num_targets: int, vocab_size: int, chunk_rows: int, compute_dtype: torch.dtype) -> int:
    """Bytes of one chunk of logits; the formula is at the top of this file."""
    return min(chunk_rows, num_targets) * vocab_size * (2 * compute_dtype.itemsize + 4)


@contextlib.contextmanager
def saved_activations(model: nn.Module) -> Iterator[list[int]]:
    """Context of a forward pass whose kept tensors are counted.

    Yields a list that grows by the bytes of each storage that autograd keeps, real or fake; its sum is the category
    `activations`. Parameters of `model` are left out.
    """
    seen = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    storages, sizes = [], []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            storages.append(storage)  # alive for as long as we count: an address is not given out again
            sizes.append(storage.nbytes())
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        yield sizes


def format_bytes(count: float) -> str:
    """1536 -> '1.5 KiB'; three digits are meant to be read, not trusted."""
    units = ['B', 'KiB', 'MiB', 'GiB', 'TiB']
    while count >= 1024 and len(units) > 1:
        count /= 1024
        units.pop(0)
    return f'{count:,.0f} B' if units[0] == 'B' else f'{count:,.2f} {units[0]}'
