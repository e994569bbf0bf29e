"""The moving average of the weights that train.

After each step average = decay * average + (1 - decay) * weight (Polyak and Juditsky, 1992; torch.optim.swa_utils), on
the device, in float32 at least. The model itself is not touched.
"""
import torch
from torch import nn

from qvlkit.registry import near_names

_KEYS = ['decay']


class WeightAverage:
    """Averages of the parameters that require a gradient, from their present values on.

    Args:
        model: After `build_optimizer`.
        decay: Share of the average that stays in a step, 0 to below 1.

    Raises:
        ValueError: `decay` is not such a number.
    """

    def __init__(self, model: nn.Module, decay: float, *, config_key: str = 'ema'):
        if type(decay) not in (int, float) or not 0 <= decay < 1:
            raise ValueError(f'{config_key}.decay: expected a number of 0 to below 1, got {decay!r}')
        self.decay = decay
        self._weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._averages = {name: p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True)
                          for name, p in self._weights.items()}

    @torch.no_grad()
    def update(self, skipped: torch.Tensor | None = None) -> None:
        """Take in the present weights; called after each step.

        Args:
            skipped: Whether the step was left out: a bool scalar on the device; then the averages stay as they are.
        """
        averages = list(self._averages.values())
        weights = [p.detach().to(average.dtype) for p, average in zip(self._weights.values(), averages)]
        if skipped is None:
            torch._foreach_lerp_(averages, weights, 1 - self.decay)
            return
        share = (~skipped).double() * (1 - self.decay)
        shares = {kind: share.to(kind) for kind in {average.dtype for average in averages}}
        torch._foreach_lerp_(averages, weights, [shares[average.dtype] for average in averages])

    def tensors(self) -> dict[str, torch.Tensor]:
        """The averages, by the names of their parameters."""
        return dict(self._averages)

    def check(self, tensors: dict[str, torch.Tensor]) -> None:
        """ValueError if names or shapes are not those of the weights that train."""
        shapes = {name: tuple(average.shape) for name, average in self._averages.items()}
        stored = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        wrong = sorted(name for name in shapes.keys() | stored.keys() if shapes.get(name) != stored.get(name))
        if wrong:
            raise ValueError(f'ema: the averages of the checkpoint do not fit the weights that train; {len(wrong)} '
                             f'differ: {", ".join(wrong[:5])}')

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """The reverse of `tensors`; ValueError as `check`, and nothing is changed then."""
        self.check(tensors)
        for name, average in self._averages.items():
            average.copy_(tensors[name])


def build_average(model: nn.Module, config: dict | None, *, config_key: str = 'ema') -> WeightAverage | None:
    """The average that a stage's `ema` asks for, dict(decay=0.999); None if it asks for none.

    Raises:
        ValueError: A key is unknown or absent.
    """
    if config is None:
        return None
    for name in config:
        if name not in _KEYS:
            raise ValueError(f'{config_key}.{name}: unknown{near_names(name, _KEYS)}; known: {", ".join(_KEYS)}')
    return WeightAverage(model, config.get('decay'), config_key=config_key)
