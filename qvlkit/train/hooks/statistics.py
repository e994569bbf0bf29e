"""How each part of the model is doing, in `statistics.jsonl` of the stage's folder."""
import json
import math

import torch

from qvlkit.registry import HOOKS
from qvlkit.train.hooks.base import Hook, check_interval, cut_lines


@HOOKS.register_module()
class StatisticsHook(Hook):
    """Appends, every `interval` steps, a line with three norms of each part that trains:

        {"step": 100, "parts": {"merger": {"grad_norm": 0.2, "weight_norm": 31.0, "update_ratio": 0.0011}, ...}}

    grad_norm: of the gradients of all rows and ranks, before clipping. weight_norm: before the step. update_ratio: norm
    of the step's change over the weight's norm; around 0.001 is usual, far more is too fast, far less stands still. A
    step that the guard left out has a ratio of 0.

    Such a step copies the trained weights; the steps between cost nothing.

    Args:
        interval: Steps between two lines.
        file: Name of the file.
        tensorboard: Also write `parts/<part>/<name>` where a TensorBoardHook stands in the same config.
    """
    main_only = True  # every rank has the same gradients and weights

    def __init__(self, interval: int = 100, file: str = 'statistics.jsonl', tensorboard: bool = True):
        self.interval, self.file = check_interval(interval, 'StatisticsHook'), file
        self.tensorboard = tensorboard
        self._noted: dict[str, tuple] | None = None

    def before_train(self, trainer) -> None:
        self._path = trainer.work_dir / self.file
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self.after_rollback(trainer)
        self._parts: dict[str, list[torch.Tensor]] = {}
        for name, parameter in trainer.model.named_parameters():
            if parameter.requires_grad:
                self._parts.setdefault(name.partition('.')[0], []).append(parameter)

    def after_rollback(self, trainer) -> None:
        cut_lines(self._path, trainer.step)

    @torch.no_grad()
    def before_optimizer_step(self, trainer) -> None:
        step = trainer.step + 1
        if step % self.interval and step < trainer.max_steps:
            return
        self._noted = {
            part: (_norm([p.new_zeros(()) if p.grad is None else p.grad for p in parameters]), _norm(parameters),
                   [p.detach().clone() for p in parameters]) for part, parameters in self._parts.items()}

    @torch.no_grad()
    def after_train_iter(self, trainer) -> None:
        if self._noted is None:
            return
        names, rows = ('grad_norm', 'weight_norm', 'update_ratio'), []
        for part, (gradient, weight, before) in self._noted.items():
            change = _norm(torch._foreach_sub(self._parts[part], before))
            rows.append(torch.stack([gradient, weight, change / weight.clamp_min(1e-30)]))
        values = torch.stack(rows).tolist()  # waits for the device
        parts = {part: {name: number if math.isfinite(number) else None for name, number in zip(names, numbers)}
                 for part, numbers in zip(self._noted, values)}
        self._noted = None
        with open(self._path, 'a', encoding='utf-8') as file:
            file.write(json.dumps(dict(step=trainer.step, parts=parts)) + '\n')
        for hook in trainer.hooks if self.tensorboard else ():
            if hasattr(hook, 'add_scalars'):
                hook.add_scalars({f'parts/{part}/{name}': value for part, numbers in parts.items()
                                  for name, value in numbers.items() if value is not None}, trainer.step)


def _norm(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Joint norm of some tensors, in float64, on the device."""
    return torch.stack(torch._foreach_norm(tensors)).double().norm()
