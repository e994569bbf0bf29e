"""Which parts train at which step.

`trainable` of a part is True, False, or a schedule [[0, false], [500, true]]: from that many steps done on. At a step
at which a part is frozen it has no gradients, keeps no activations for them, is in evaluation mode, and neither its
parameters and buffers nor its optimizer state change.
"""
from typing import Any

from torch import nn

Schedule = list[tuple[int, bool]]  # (steps done, trains from there on), from step 0, in order


def trainable_schedule(value: Any, config_key: str) -> Schedule:
    """The value of `trainable`, checked.

    Raises:
        ValueError: It is neither a truth value nor pairs of rising step and truth value that begin at step 0.
    """
    if isinstance(value, bool):
        return [(0, value)]
    pairs = value if isinstance(value, (list, tuple)) else []
    whole = all(isinstance(pair, (list, tuple)) and len(pair) == 2 and type(pair[0]) is int and type(pair[1]) is bool
                for pair in pairs)
    steps = [pair[0] for pair in pairs] if whole else []
    if not steps or steps[0] != 0 or any(later <= earlier for earlier, later in zip(steps, steps[1:])):
        raise ValueError(f'{config_key}: expected True or False, or a schedule such as [[0, false], [500, true]] with '
                         f'rising steps from 0, got {value!r}')
    return [tuple(pair) for pair in pairs]


def ever_trains(schedule: Schedule) -> bool:
    """Whether a part of this schedule trains at some step."""
    return any(trains for _, trains in schedule)


class Freezing:
    """Applies the schedules of a model's parts, by host integers alone.

    Args:
        model: After `build_optimizer`: what requires a gradient now is what trains while its part does.
        parts: As for `build_optimizer`.
        parts_key: Their path in the whole config.

    Raises:
        ValueError: At some step every part is frozen.
    """

    def __init__(self, model: nn.Module, parts: dict, *, parts_key: str = 'parts'):
        self._schedules: dict[str, Schedule] = {}
        self._trained: dict[str, list[nn.Parameter]] = {}
        self._modules: dict[str, nn.Module] = {}
        for name, parameter in model.named_parameters():
            part = name.partition('.')[0]
            if part not in self._schedules:
                value = (parts.get(part) or {}).get('trainable', True)
                self._schedules[part] = trainable_schedule(value, f'{parts_key}.{part}.trainable')
                self._trained[part] = []
                if isinstance(getattr(model, part, None), nn.Module):
                    self._modules[part] = getattr(model, part)
            if parameter.requires_grad:
                self._trained[part].append(parameter)
        for step in sorted({step for schedule in self._schedules.values() for step, _ in schedule}):
            if not any(self.trains(part, step) for part in self._schedules):
                raise ValueError(f'{parts_key}: at step {step} every part is frozen ({", ".join(self._schedules)})')

    def trains(self, part: str, step: int) -> bool:
        """Whether `part` trains when `step` steps are done."""
        return [trains for begin, trains in self._schedules[part] if begin <= step][-1]

    def apply(self, step: int) -> None:
        """Set the gradients and the mode of every part; called when `step` steps are done and the next begins."""
        for part, schedule in self._schedules.items():
            trains = self.trains(part, step)
            if len(schedule) > 1:
                for parameter in self._trained[part]:
                    if parameter.requires_grad != trains:
                        parameter.requires_grad_(trains)
            module = self._modules.get(part)
            if module is not None and module.training != trains:
                module.train(trains)
