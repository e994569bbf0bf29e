"""The parameter groups of a model's parts, and the optimizer over them.

A part is a top-level child of the model (vision_encoder, merger, language_model): the first word of a parameter's name.
Each part may be frozen, now or at some steps (engine/freezing.py), or have its own learning rate. Weight decay applies
to matrices, not to biases and norms (Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019).

Layer-wise decay (BEiT, arXiv 2106.08254, appendix): in a part of n blocks, block i learns at lr * decay ** (n - i);
what is registered before the blocks, such as the patch embedding, at lr * decay ** (n + 1), what comes after at lr.

Of a part with adapters (engine/adapters.py) only these train.
"""
import math
import re
from collections.abc import Iterator

import torch
from torch import nn

from qvlkit.engine.adapters import is_adapter, num_weights
from qvlkit.engine.freezing import ever_trains, trainable_schedule
from qvlkit.registry import OPTIMIZERS, near_names

_PART_KEYS = ['trainable', 'lr', 'weight_decay', 'layer_decay']
_IN_BLOCK = re.compile(r'[^.]+\.(?:blocks|layers)\.(\d+)\.')


def build_optimizer(model: nn.Module, parts: dict, config: dict, *, config_key: str = 'optimizer',
                    parts_key: str | None = None) -> torch.optim.Optimizer:
    """Freeze and unfreeze the model's parts, and make an optimizer with groups of part x layer x (decay | no decay).

    Args:
        model: Its parameters' `requires_grad` is set, to what `parts` says and nothing else.
        parts: Part name -> dict(trainable=True, lr=the optimizer's, weight_decay=the optimizer's, layer_decay=1). A
            part that is not named trains with the defaults; one that trains at some steps only is in the optimizer.
        config: `type`, `lr` and further arguments of the optimizer.
        config_key: Path of `config` in the whole config, for messages; `parts_key` is that of `parts`, by default
            beside it.

    Raises:
        ValueError: A part or key is unknown, a number is not one, or nothing is left to train.
    """
    settings = _settings(model, parts, config, config_key, parts_key)
    hidden_apart = getattr(OPTIMIZERS.get(config.get('type'), config_key=config_key), 'hidden_apart', False)
    groups: dict[tuple, dict] = {}
    for part, setting in settings.items():
        trained = {id(parameter) for _, parameter, _ in _trained(setting)}
        for _, parameter in setting['named']:
            if parameter.is_floating_point():  # what is quantised is never trained
                parameter.requires_grad_(id(parameter) in trained)
        for name, parameter, layer in _trained(setting):
            matrix = parameter.dim() > 1
            hidden = hidden_apart and parameter.dim() == 2 and _IN_BLOCK.match(name) is not None
            group = groups.setdefault((part, layer, not matrix, not hidden), {
                'params': [], 'lr': setting['lr'] * _layer_factor(setting, layer),
                'weight_decay': setting['weight_decay'] if matrix else 0.0, 'part': part}
                | ({'hidden': hidden} if hidden_apart else {}) | ({} if layer is None else {'layer': layer}))
            group['params'].append(parameter)
    if not groups:
        raise ValueError(f'{_parts_key(config_key, parts_key)}: every part is frozen ({", ".join(settings)}); '
                         'nothing is left to train')
    order = {part: place for place, part in enumerate(settings)}
    groups = dict(sorted(groups.items(), key=lambda item: (
        order[item[0][0]], -1 if item[0][1] is None else item[0][1], *item[0][2:])))
    return OPTIMIZERS.build(config, config_key=config_key, params=list(groups.values()))


def trainable_table(model: nn.Module, parts: dict, config: dict, *, config_key: str = 'optimizer',
                    parts_key: str | None = None) -> list[dict]:
    """What `build_optimizer` would train, changing nothing: one row for each part.

    Keys: part, parameters (their number), trained (how many of them train), trainable (at any step), lr, min_lr (the
    lowest of its layers), weight_decay (None where frozen). Works on the meta device.
    """
    rows = []
    for part, setting in _settings(model, parts, config, config_key, parts_key).items():
        trained = list(_trained(setting))
        trains = bool(trained)
        factors = [_layer_factor(setting, layer) for _, _, layer in trained]
        rows.append({'part': part, 'parameters': sum(num_weights(p) for _, p in setting['named']),
                     'trained': sum(p.numel() for _, p, _ in trained), 'trainable': trains,
                     'lr': setting['lr'] * max(factors) if trains else None,
                     'min_lr': setting['lr'] * min(factors) if trains else None,
                     'weight_decay': setting['weight_decay'] if trains else None})
    return rows


def _trained(setting: dict) -> Iterator[tuple[str, torch.Tensor, int | None]]:
    """(name, parameter, layer) of what trains at some step; layer: 0 before the blocks, n + 1 after them, None without
    layer-wise decay."""
    if not setting['trainable']:
        return
    layer = None if setting['layer_decay'] == 1 else 0
    for name, parameter in setting['named']:
        if layer is not None:
            match = _IN_BLOCK.match(name)
            layer = int(match[1]) + 1 if match else setting['depth'] + 1 if layer else 0
        if not setting['has_adapters'] or is_adapter(name):
            yield name, parameter, layer


def _layer_factor(setting: dict, layer: int | None) -> float:
    return 1.0 if layer is None else setting['layer_decay'] ** (setting['depth'] + 1 - layer)


def _settings(model: nn.Module, parts: dict, config: dict, config_key: str, parts_key: str | None) -> dict[str, dict]:
    """Part name -> its named parameters, trainable, lr, weight_decay, layer_decay, depth; all checked."""
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
                'weight_decay': _number(config.get('weight_decay', 0.0), f'{config_key}.weight_decay'),
                'layer_decay': 1.0}
    for part, setting in settings.items():
        own, key = parts.get(part) or {}, f'{parts_key}.{part}'
        for name in own:
            if name not in _PART_KEYS:
                raise ValueError(f'{key}.{name}: unknown{near_names(name, _PART_KEYS)}; a part takes: '
                                 f'{", ".join(_PART_KEYS)}')
        setting['trainable'] = ever_trains(trainable_schedule(own.get('trainable', True), f'{key}.trainable'))
        for name, default in defaults.items():
            setting[name] = default if own.get(name) is None else _number(own[name], f'{key}.{name}')
        setting['has_adapters'] = any(is_adapter(name) for name, _ in setting['named'])
        if setting['has_adapters'] and not setting['trainable']:
            raise ValueError(f'{key}.trainable: a part that is frozen has adapters (lora.parts), which would not train')
        setting['depth'] = _depth(part, setting, key)
    return settings


def _depth(part: str, setting: dict, key: str) -> int:
    """Blocks of the part; 0 if it has none."""
    decay = setting['layer_decay']
    if not 0 < decay <= 1:
        raise ValueError(f'{key}.layer_decay: expected a number above 0 and up to 1, got {decay!r}')
    depth = len({match[1] for name, _ in setting['named'] if (match := _IN_BLOCK.match(name))})
    if decay != 1 and not depth:
        raise ValueError(f"{key}.layer_decay: {part} has no blocks; expected a part with a list 'blocks' or 'layers'")
    return depth


def _parts_key(config_key: str, parts_key: str | None) -> str:
    return parts_key or '.'.join([*config_key.split('.')[:-1], 'parts'])


def _number(value, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise ValueError(f'{key}: expected a finite number of at least 0, got {value!r}')
    return float(value)
