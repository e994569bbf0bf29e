"""Optimizers, learning-rate schedules, and the parameter groups of a model's parts.

A part is a top-level child of the model (vision_encoder, merger, language_model): the first word of a parameter's name.
Each part may be frozen or have its own learning rate. Weight decay applies to matrices, not to biases and norms
(Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019).
"""
import math

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from qvlkit.registry import OPTIMIZERS, SCHEDULES, near_names

_PART_KEYS = ['trainable', 'lr', 'weight_decay']


@OPTIMIZERS.register_module()
class AdamW(torch.optim.AdamW):
    """torch's AdamW; its fused kernel where every parameter is on a CPU or a CUDA device, else torch's own choice.

    Args:
        params: Parameters, or groups of them.
        lr: Learning rate of groups that have none of their own.
        weight_decay: The same for the decay.
    """

    def __init__(self, params, *, lr: float, weight_decay: float = 0.0, betas=(0.9, 0.95), eps: float = 1e-8):
        params = list(params)
        flat = [p for item in params for p in (item['params'] if isinstance(item, dict) else [item])]
        fused = True if flat and all(p.device.type in ('cpu', 'cuda') and p.is_floating_point() for p in flat) else None
        super().__init__(params, lr=lr, weight_decay=weight_decay, betas=tuple(betas), eps=eps, fused=fused)


@SCHEDULES.register_module()
class WarmupCosine(LambdaLR):
    """Linear rise over W steps, then half a cosine down to `final_ratio` times the learning rate.

    With k steps done: (k + 1) / (W + 1) for k < W, so that the first step is not wasted on a rate of 0; then
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
        warmup = _warmup(max_steps, warmup_steps, warmup_ratio)
        if not 0 <= final_ratio <= 1:
            raise ValueError(f'schedule.final_ratio: expected 0 to 1, got {final_ratio!r}')

        def factor(done: int) -> float:
            if done < warmup:
                return (done + 1) / (warmup + 1)
            progress = min(1.0, (done - warmup) / max(1, max_steps - warmup))
            return final_ratio + (1 - final_ratio) * (1 + math.cos(math.pi * progress)) / 2

        super().__init__(optimizer, factor)


@SCHEDULES.register_module()
class WarmupConstant(LambdaLR):
    """Linear rise over W steps as in WarmupCosine, then the full learning rate. Arguments as there."""

    def __init__(self, optimizer: torch.optim.Optimizer, *, max_steps: int, warmup_steps: int | None = None,
                 warmup_ratio: float = 0.0):
        warmup = _warmup(max_steps, warmup_steps, warmup_ratio)
        super().__init__(optimizer, lambda done: min(1.0, (done + 1) / (warmup + 1)))


def build_optimizer(model: nn.Module, parts: dict, config: dict, *, config_key: str = 'optimizer',
                    parts_key: str | None = None) -> torch.optim.Optimizer:
    """Freeze and unfreeze the model's parts, and make an optimizer with groups of part x (decay | no decay).

    Args:
        model: Its parameters' `requires_grad` is set, to what `parts` says and nothing else.
        parts: Part name -> dict(trainable=True, lr=the optimizer's, weight_decay=the optimizer's). A part that is not
            named trains with the defaults.
        config: `type`, `lr` and further arguments of the optimizer.
        config_key: Path of `config` in the whole config, for messages; `parts_key` is that of `parts`, by default
            beside it.

    Raises:
        ValueError: A part or key is unknown, a number is not one, or nothing is left to train.
    """
    settings = _settings(model, parts, config, config_key, parts_key)
    groups = []
    for part, setting in settings.items():
        for _, parameter in setting['named']:
            parameter.requires_grad_(setting['trainable'])
        if not setting['trainable']:
            continue
        matrices = [p for _, p in setting['named'] if p.dim() > 1]
        others = [p for _, p in setting['named'] if p.dim() <= 1]
        for params, decay in ((matrices, setting['weight_decay']), (others, 0.0)):
            if params:
                groups.append({'params': params, 'lr': setting['lr'], 'weight_decay': decay, 'part': part})
    if not groups:
        raise ValueError(f'{_parts_key(config_key, parts_key)}: every part is frozen ({", ".join(settings)}); '
                         'nothing is left to train')
    return OPTIMIZERS.build(config, config_key=config_key, params=groups)


def trainable_table(model: nn.Module, parts: dict, config: dict, *, config_key: str = 'optimizer',
                    parts_key: str | None = None) -> list[dict]:
    """What `build_optimizer` would train, changing nothing: one row for each part.

    Keys: part, parameters (their number), trainable, lr, weight_decay (None where frozen). Works on the meta device.
    """
    rows = []
    for part, setting in _settings(model, parts, config, config_key, parts_key).items():
        trainable = setting['trainable']
        rows.append({'part': part, 'parameters': sum(p.numel() for _, p in setting['named']), 'trainable': trainable,
                     'lr': setting['lr'] if trainable else None,
                     'weight_decay': setting['weight_decay'] if trainable else None})
    return rows


def _settings(model: nn.Module, parts: dict, config: dict, config_key: str, parts_key: str | None) -> dict[str, dict]:
    """Part name -> its named parameters, trainable, lr, weight_decay; all checked."""
    parts_key = _parts_key(config_key, parts_key)
    settings: dict[str, dict] = {}
    for name, parameter in model.named_parameters():  # a tied parameter comes once
        settings.setdefault(name.partition('.')[0], {'named': []})['named'].append((name, parameter))
    for part in parts:
        if part not in settings:
            raise ValueError(f'{parts_key}.{part}: the model has no such part with parameters'
                             f'{near_names(part, list(settings))}; it has: {", ".join(settings)}')
    if 'lr' not in config:
        raise ValueError(f'{config_key}.lr: the optimizer needs a learning rate')
    defaults = {'lr': _number(config['lr'], f'{config_key}.lr'),
                'weight_decay': _number(config.get('weight_decay', 0.0), f'{config_key}.weight_decay')}
    for part, setting in settings.items():
        own, key = parts.get(part) or {}, f'{parts_key}.{part}'
        for name in own:
            if name not in _PART_KEYS:
                raise ValueError(f'{key}.{name}: unknown{near_names(name, _PART_KEYS)}; a part takes: '
                                 f'{", ".join(_PART_KEYS)}')
        trainable = own.get('trainable', True)
        if not isinstance(trainable, bool):
            raise ValueError(f'{key}.trainable: expected True or False, got {trainable!r}')
        setting['trainable'] = trainable
        for name, default in defaults.items():
            setting[name] = default if own.get(name) is None else _number(own[name], f'{key}.{name}')
    return settings


def _parts_key(config_key: str, parts_key: str | None) -> str:
    return parts_key or '.'.join([*config_key.split('.')[:-1], 'parts'])


def _number(value, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise ValueError(f'{key}: expected a finite number of at least 0, got {value!r}')
    return float(value)


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
