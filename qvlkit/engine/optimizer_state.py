"""An optimizer's state as named tensors and JSON, so that it needs no pickle and no order of parameters.

A state tensor of parameter `merger.mlp.0.weight` is called `exp_avg/merger.mlp.0.weight`; the rest (hyper-parameters of
each group, values that are not tensors) is plain data. Restoring is exact to the bit, and all or nothing.
"""
import logging
from collections.abc import Iterable

import torch

_log = logging.getLogger(__name__)


def pack_optimizer(optimizer: torch.optim.Optimizer,
                   named_parameters: Iterable[tuple[str, torch.Tensor]]) -> tuple[dict[str, torch.Tensor], dict]:
    """State of `optimizer` as (tensors by name, JSON-able table).

    Args:
        optimizer: Any torch optimizer with one state for each parameter. Entries that have not the parameter's shape
            are named in its attribute `other_shapes`.
        named_parameters: `model.named_parameters()`.

    Raises:
        ValueError: The optimizer holds a parameter that has no name.
    """
    names = _names(optimizer, named_parameters)
    tensors, values = {}, {}
    for parameter, entries in optimizer.state.items():
        for key, value in entries.items():
            if isinstance(value, torch.Tensor):
                tensors[f'{key}/{names[parameter]}'] = value.detach()
            else:
                values.setdefault(names[parameter], {})[key] = value
    groups = [{key: _plain(value) for key, value in group.items() if key != 'params'}
              | {'parameters': [names[parameter] for parameter in group['params']]}
              for group in optimizer.param_groups]
    return tensors, {'groups': groups, 'values': values}


def unpack_optimizer(optimizer: torch.optim.Optimizer, named_parameters: Iterable[tuple[str, torch.Tensor]],
                     tensors: dict[str, torch.Tensor], table: dict) -> None:
    """Restore what `pack_optimizer` gave, dtypes kept. The checkpoint's hyper-parameters win, with a warning.

    Raises:
        ValueError: Parameters differ, or their grouping, or a shape: named, and nothing has been changed.
    """
    names = _names(optimizer, named_parameters)
    by_name = {name: parameter for parameter, name in names.items()}
    groups = table['groups']
    saved = [name for group in groups for name in group['parameters']]
    _refuse(sorted(set(saved) - set(by_name)), 'are in the checkpoint, but this run does not train them')
    _refuse(sorted(set(by_name) - set(saved)), 'are trained in this run, but the checkpoint has no state for them')
    ours = {names[parameter]: index for index, group in enumerate(optimizer.param_groups)
            for parameter in group['params']}
    _refuse([name for index, group in enumerate(groups) for name in group['parameters'] if ours[name] != index],
            'are in another parameter group than in the checkpoint')
    state = {parameter: dict(table['values'].get(name, {})) for name, parameter in by_name.items()}
    other_shapes = getattr(optimizer, 'other_shapes', frozenset())
    wrong = []
    for full_name, tensor in tensors.items():
        key, _, name = full_name.partition('/')
        parameter = by_name.get(name)
        if parameter is None or (tensor.dim() and key not in other_shapes and tensor.shape != parameter.shape):
            wrong.append(f'{name} ({key}: {tuple(tensor.shape)})')
            continue
        group = optimizer.param_groups[ours[name]]
        on_host = key == 'step' and not (group.get('fused') or group.get('capturable'))
        state[parameter][key] = tensor.to('cpu' if on_host else parameter.device, copy=True)
    _refuse(wrong, 'have a state of another shape in the checkpoint')
    for index, (group, stored) in enumerate(zip(optimizer.param_groups, groups)):
        _restore_group(group, {key: value for key, value in stored.items() if key != 'parameters'}, index)
    optimizer.state.clear()
    optimizer.state.update({parameter: entries for parameter, entries in state.items() if entries})


def _names(optimizer: torch.optim.Optimizer, named_parameters) -> dict[torch.Tensor, str]:
    known = {parameter: name for name, parameter in named_parameters}
    held = [parameter for group in optimizer.param_groups for parameter in group['params']]
    nameless = [tuple(parameter.shape) for parameter in held if parameter not in known]
    if nameless:
        raise ValueError(f"the optimizer holds {len(nameless)} parameters that are not the model's, of shapes "
                         f'{nameless[:3]}')
    return {parameter: known[parameter] for parameter in held}


def _plain(value):
    return list(value) if isinstance(value, tuple) else value


def _restore_group(group: dict, stored: dict, index: int) -> None:
    """Copy hyper-parameters; how the device computes (fused, foreach) stays this run's choice."""
    for key, value in stored.items():
        if key in ('fused', 'foreach', 'capturable'):
            continue
        mine = group.get(key)
        if isinstance(mine, tuple):
            value = tuple(value)
        if key != 'lr' and key in group and mine != value:  # lr itself moves with the schedule
            _log.warning("optimizer group %d: the checkpoint's %s=%r is used, not %r", index, key, value, mine)
        group[key] = value


def _refuse(names: list[str], complaint: str) -> None:
    if names:
        more = f' and {len(names) - 5} more' if len(names) > 5 else ''
        raise ValueError(f'the optimizer of the checkpoint does not fit: {", ".join(names[:5])}{more} {complaint}')
