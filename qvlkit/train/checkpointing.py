"""What a training checkpoint holds, and how a trainer is put back to it.

    model.safetensors       the model's state_dict
    optimizer.safetensors   the optimizer's tensors, by parameter name
    ema.safetensors         the moving average of the weights that train, by parameter name, where the stage has one
    state.json              step, stage, schedule, the optimizer's hyper-parameters, and `trainer.state_dict()`
                            (data position, random generators)
    config.json             the resolved config, beside the processor's own files

How it reaches the disk, and how it is verified, is engine/checkpoint.py.
"""
import json
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from qvlkit.engine.checkpoint import EMA, Checkpoint, load_checkpoint, save_checkpoint
from qvlkit.engine.optimizer_state import pack_optimizer, unpack_optimizer

MODEL, OPTIMIZER, CONFIG = 'model.safetensors', 'optimizer.safetensors', 'config.json'
_log = logging.getLogger(__name__)


def save_training_state(trainer, *, keep: int | None = None,
                        after_write: Callable[[str], None] | None = None) -> Path:
    """Write `trainer.work_dir/step_N`; arguments, result and errors as `save_checkpoint`.

    Each of `trainer.hooks` (a list) is told first, by `before_save_checkpoint`.
    """
    for hook in trainer.hooks:
        hook.before_save_checkpoint(trainer)
    tensors, table = pack_optimizer(trainer.optimizer, trainer.model.named_parameters())
    state = {'step': trainer.step, 'stage': trainer.stage, 'schedule': trainer.schedule.state_dict(),
             'optimizer': table, 'trainer': trainer.state_dict()}

    def write_more(folder: Path) -> None:
        (folder / CONFIG).write_text(json.dumps(trainer.config, indent=1), encoding='utf-8')
        if trainer.processor is not None:
            trainer.processor.save(folder)

    files = {MODEL: trainer.model.state_dict(), OPTIMIZER: tensors}
    if trainer.ema is not None:
        files[EMA] = trainer.ema.tensors()
    return save_checkpoint(trainer.work_dir, trainer.step, keep=keep, state=state, write_more=write_more,
                           tensors=files, after_write=after_write)


def load_training_state(trainer, path: str | Path, *, strict: bool = False) -> Checkpoint:
    """Put a trainer whose parts are built back to a checkpoint: model, optimizer, schedule, then everything else.

    Args:
        trainer: Its model, optimizer, schedule and `load_state_dict` receive the state.
        path: A stage's folder, or one checkpoint; see `load_checkpoint`, also for `strict` and the errors.

    Raises:
        ValueError: The checkpoint is of another stage, or its tensors do not fit; what does not is named.
    """
    checkpoint = load_checkpoint(path, strict=strict)
    state = checkpoint.state
    if state.get('stage') != trainer.stage:
        raise ValueError(f'{checkpoint.path} is a checkpoint of stage {state.get("stage")!r}, cannot resume stage '
                         f'{trainer.stage!r} from it; to start from its weights, load them instead')
    weights = _fitting_weights(trainer.model, checkpoint)
    averages = _averages(trainer, checkpoint)
    unpack_optimizer(trainer.optimizer, trainer.model.named_parameters(), checkpoint.tensors(OPTIMIZER),
                     state['optimizer'])
    trainer.model.load_state_dict(weights)
    if trainer.ema is not None:
        trainer.ema.load(averages)
    trainer.schedule.load_state_dict(state['schedule'])
    trainer.load_state_dict(state['trainer'])
    return checkpoint


def _averages(trainer, checkpoint: Checkpoint) -> dict[str, torch.Tensor] | None:
    """The moving average of the weights; ValueError where the run keeps one and the checkpoint has none."""
    if trainer.ema is None:
        if EMA in checkpoint.files:
            _log.warning('%s holds a moving average of the weights, which this run does not go on with: '
                         'stages.%s.ema is not set', checkpoint.path, trainer.stage)
        return None
    if EMA not in checkpoint.files:
        raise ValueError(f'{checkpoint.path} holds no {EMA}, but stages.{trainer.stage}.ema asks for a moving average; '
                         'an average cannot begin in the middle of a stage')
    averages = checkpoint.tensors(EMA)
    trainer.ema.check(averages)
    return averages


def _fitting_weights(model: nn.Module, checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """The checkpoint's weights, after their names and shapes were compared with the model's."""
    weights, ours = checkpoint.tensors(MODEL), model.state_dict()
    complaints = [f'{name} is not in the checkpoint' for name in ours if name not in weights]
    complaints += [f'{name} is not in the model' for name in weights if name not in ours]
    complaints += [f'{name} is {tuple(weights[name].shape)} in the checkpoint, {tuple(ours[name].shape)} in the model'
                   for name in ours if name in weights and weights[name].shape != ours[name].shape]
    if complaints:
        more = f'; and {len(complaints) - 5} more' if len(complaints) > 5 else ''
        raise ValueError(f'{checkpoint.path} does not fit the model: {"; ".join(complaints[:5])}{more}')
    return weights
