"""One row of a training step on fake tensors: every shape is checked and nothing is computed or allocated.

A fake tensor has a shape, a type and a device, and no values (torch's FakeTensorMode). A model of any size passes
forward and backward this way on a laptop, through the same code as in training.
"""
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from qvlkit.planning.memory import saved_activations
from qvlkit.structures import ImageTextBatch, PackedBatch

OUTPUTS = dict(vision_encoder='features', merger='visual tokens', language_model='hidden states',
               pooling='picture vectors', text_tower='caption vectors')  # of the parts, as the chain names them


@dataclass(frozen=True)
class Rehearsal:
    """What a row's pass through the model showed.

    chain: (name, shape) from the patches to the loss; activations: bytes that autograd keeps for the backward pass;
    gradients: part -> parameters that received a gradient.
    """
    chain: list[tuple[str, tuple[int, ...]]]
    activations: int
    gradients: dict[str, int]


def from_meta(model: nn.Module) -> nn.Module:
    """A model on the meta device with its tensors on the CPU, unfilled; in place, and fake where everything is."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            empty = torch.empty(parameter.shape, dtype=parameter.dtype, device='cpu')
            setattr(module, name, nn.Parameter(empty, parameter.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype, device='cpu'))
    return model


def rehearse(build: Callable[[], nn.Module], prepare: Callable[[nn.Module], Callable],
             batch: PackedBatch | ImageTextBatch, *, compute_dtype: torch.dtype,
             first: Callable[[], None] | None = None) -> Rehearsal:
    """Forward and backward of one row.

    Args:
        build: Makes the model; called where whatever it makes is fake.
        prepare: Model -> compute_loss (batch -> sum of the losses), after freezing what does not train.
        batch: Real; only its shapes matter.
        compute_dtype: Type of matrix products; parameters keep theirs.
        first: Called before the row's loss, where everything is fake: what a step does before.

    Raises:
        Whatever a wrong shape makes torch raise, with torch's own message.
    """
    chain = dict(image_patches=batch.image_patches, video_patches=batch.video_patches)
    chain = {name.replace('_', ' '): tuple(patches.shape) for name, patches in chain.items()}

    def note(name: str) -> Callable:  # a part that a reference shares answers twice
        return lambda module, inputs, output: chain.setdefault(name, tuple(output.shape)) and None

    with FakeTensorMode(allow_non_fake_inputs=True), warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'Accessing the data pointer of FakeTensor')  # torch's own, in a copy
        model = build()
        compute_loss = prepare(model)
        for part, name in OUTPUTS.items():
            if hasattr(model, part):
                getattr(model, part).register_forward_hook(note(name))
        model.train()
        mixed = torch.autocast('cpu', compute_dtype, enabled=compute_dtype.itemsize < 4)
        if first is not None:
            with mixed:
                first()
        with saved_activations(model) as sizes, mixed:
            loss = compute_loss(batch)
        if isinstance(batch, PackedBatch):
            chain['target rows'] = tuple(batch.target_rows.shape)
        chain['loss'] = tuple(loss.shape)
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    gradients: dict[str, int] = {}
    for name, gradient in zip(trained, found):
        if gradient is not None:
            part = name.partition('.')[0]
            gradients[part] = gradients.get(part, 0) + gradient.numel()
    return Rehearsal([item for item in chain.items() if item[1][:1] != (0,)], sum(sizes), gradients)
