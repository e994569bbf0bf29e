"""How many parameters each part of a model has. Exact, and the same on the meta device.

A part is a top-level child of the model: vision_encoder, merger, language_model. A tied weight counts once.
"""
from torch import nn

from qvlkit.engine.adapters import num_weights


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Part -> number of parameters, in the model's order; parts without parameters are left out."""
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        part = name.partition('.')[0]
        counts[part] = counts.get(part, 0) + num_weights(parameter)
    return counts


def total_parameters(model: nn.Module) -> int:
    """The sum over all parts."""
    return sum(count_parameters(model).values())
