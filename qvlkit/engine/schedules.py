"""Learning-rate schedules: a factor for every group, from the number of steps done.

All rise linearly over the first W steps: (k + 1) / (W + 1) with k steps done, so that the first step is not wasted on a
rate of 0. They are functions of k alone, so a resume is exact.
"""
import math
from collections.abc import Callable

import torch
from torch.optim.lr_scheduler import LambdaLR

from qvlkit.registry import SCHEDULES, near_names

_DECAYS: dict[str, Callable[[float], float]] = {'linear': lambda share: 1 - share,
                                                '1-sqrt': lambda share: 1 - math.sqrt(share)}


@SCHEDULES.register_module()
class WarmupCosine(LambdaLR):
    """Linear rise over W steps, then half a cosine down to `final_ratio` times the learning rate.

    With k steps done: (k + 1) / (W + 1) for k < W, then
    final + (1 - final) * (1 + cos(pi * (k - W) / (max_steps - W))) / 2.

    Args:
        optimizer: Every group is scaled by the same factor.
        max_steps: Steps of the whole stage (injected).
        warmup_steps: W.
        warmup_ratio: W as a share of max_steps, rounded up; instead of warmup_steps.
        final_ratio: Factor at the end, 0 to 1.

    Raises:
        ValueError: A value is outside its range, or both kinds of warm-up are given.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, max_steps: int, warmup_steps: int | None = None,
                 warmup_ratio: float = 0.0, final_ratio: float = 0.0):
        super().__init__(optimizer, _rise_and_fall(max_steps, _warmup(max_steps, warmup_steps, warmup_ratio),
                                                   final_ratio, lambda share: (1 + math.cos(math.pi * share)) / 2))


@SCHEDULES.register_module()
class WarmupLinear(LambdaLR):
    """Linear rise over W steps, then a straight line down to `final_ratio`. Arguments as for WarmupCosine."""

    def __init__(self, optimizer: torch.optim.Optimizer, *, max_steps: int, warmup_steps: int | None = None,
                 warmup_ratio: float = 0.0, final_ratio: float = 0.0):
        super().__init__(optimizer, _rise_and_fall(max_steps, _warmup(max_steps, warmup_steps, warmup_ratio),
                                                   final_ratio, _DECAYS['linear']))


@SCHEDULES.register_module()
class WarmupConstant(LambdaLR):
    """Linear rise over W steps as in WarmupCosine, then the full learning rate. Arguments as there."""

    def __init__(self, optimizer: torch.optim.Optimizer, *, max_steps: int, warmup_steps: int | None = None,
                 warmup_ratio: float = 0.0):
        warmup = _warmup(max_steps, warmup_steps, warmup_ratio)
        super().__init__(optimizer, lambda done: min(1.0, (done + 1) / (warmup + 1)))


@SCHEDULES.register_module()
class WarmupStableDecay(LambdaLR):
    """Linear rise over W steps, the full rate, and a decay over the last D steps (MiniCPM, arXiv 2404.06395).

    With k steps done and s = (k - (max_steps - D)) / D: final + (1 - final) * (1 - s), or (1 - sqrt(s)), the shape that
    arXiv 2405.18392 found better.

    Args:
        optimizer, max_steps, warmup_steps, warmup_ratio, final_ratio: As for WarmupCosine.
        decay_ratio: D as a share of max_steps, rounded up.
        decay: 'linear' or '1-sqrt'.

    Raises:
        ValueError: A value is outside its range, or warm-up and decay are longer than the stage.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, max_steps: int, warmup_steps: int | None = None,
                 warmup_ratio: float = 0.0, decay_ratio: float = 0.1, decay: str = '1-sqrt',
                 final_ratio: float = 0.0):
        warmup = _warmup(max_steps, warmup_steps, warmup_ratio)
        if not 0 <= decay_ratio <= 1:
            raise ValueError(f'schedule.decay_ratio: expected 0 to 1, got {decay_ratio!r}')
        if decay not in _DECAYS:
            raise ValueError(f'schedule.decay: expected one of {", ".join(_DECAYS)}, got {decay!r}'
                             f'{near_names(decay, list(_DECAYS))}')
        begin = max_steps - math.ceil(decay_ratio * max_steps)
        if begin < warmup:
            raise ValueError(f'schedule: {warmup} steps of warm-up and decay_ratio {decay_ratio!r} are more than '
                             f'max_steps ({max_steps})')
        fall = _rise_and_fall(max_steps, 0, final_ratio, _DECAYS[decay], begin)
        super().__init__(optimizer, lambda done: (done + 1) / (warmup + 1) if done < warmup else fall(done))


def _rise_and_fall(max_steps: int, warmup: int, final_ratio: float, shape: Callable[[float], float],
                   begin: int | None = None) -> Callable[[int], float]:
    """Steps done -> factor: the rise, then `shape` (1 to 0 over the share done) from step `begin`, or warmup, on."""
    if not 0 <= final_ratio <= 1:
        raise ValueError(f'schedule.final_ratio: expected 0 to 1, got {final_ratio!r}')
    begin = warmup if begin is None else begin

    def factor(done: int) -> float:
        if done < warmup:
            return (done + 1) / (warmup + 1)
        share = min(1.0, max(0, done - begin) / max(1, max_steps - begin))
        return final_ratio + (1 - final_ratio) * shape(share)

    return factor


def _warmup(max_steps: int, warmup_steps: int | None, warmup_ratio: float) -> int:
    if max_steps < 1:
        raise ValueError(f'max_steps: expected at least 1, got {max_steps!r}')
    if not 0 <= warmup_ratio <= 1:
        raise ValueError(f'schedule.warmup_ratio: expected 0 to 1, got {warmup_ratio!r}')
    if warmup_steps is None:
        return math.ceil(warmup_ratio * max_steps)
    if warmup_ratio:
        raise ValueError(f'schedule: give warmup_steps ({warmup_steps!r}) or warmup_ratio ({warmup_ratio!r}), not both')
    if not 0 <= warmup_steps <= max_steps:
        raise ValueError(f'schedule.warmup_steps: expected 0 to max_steps ({max_steps}), got {warmup_steps!r}')
    return warmup_steps
