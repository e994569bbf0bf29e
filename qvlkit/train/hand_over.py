"""Where a stage's first weights come from: the stage before, other stages, folders, or nowhere.

A stage without `init` starts from the checkpoint of the stage before it in the config's `run`. With `init`, each part
says its own source, and a part that is not named there starts from first weights:

    init = dict(vision_encoder='contrastive',                     a stage of this config
                language_model='checkpoints/Qwen2.5-7B',          a folder
                merger=None)                                      first weights

A stage that `run` leaves out is skipped: what would come from it keeps its first weights, and the log says so.
"""
import logging
from pathlib import Path

from torch import nn

from qvlkit.convert.huggingface import load_weights
from qvlkit.convert.parts import load_part
from qvlkit.engine.checkpoint import checkpoints

logger = logging.getLogger('qvlkit')

WHOLE = 'model'  # stands for every part in a table of sources


def first_weights(config: dict, name: str, folder: Path, load_from: str | None = None,
                  running: list[str] | None = None) -> dict[str, Path]:
    """Part -> folder that its weights come from, or {'model': folder} where all parts come from one.

    Args:
        config: Resolved.
        name: Of the stage.
        folder: The run's, in which each stage has a folder.
        load_from: Folder that takes the place of everything the config says.
        running: The stages that are run now, in order: they say what comes before a stage that is not in `run`.

    Raises:
        ValueError: It starts from a stage that has not been run, or from a folder that is not there.
    """
    key, run, stages = f'stages.{name}', list(config.get('run', [])), config['stages']
    if load_from is not None:
        return {WHOLE: Path(load_from)}
    init = stages[name].get('init')
    if init is None:
        order = run if name in run else running or [name]
        before = order[:order.index(name)]
        return {WHOLE: _stage_folder(folder, before[-1], f'{key} starts')} if before else {}
    sources = {}
    for part, source in init.items():
        if source is None:
            continue
        if source in stages and source not in run:
            logger.warning('%s.init.%s: stage %s is not in run, so the %s keeps its first weights', key, part, source,
                           part.replace('_', ' '))
        elif source in stages:
            sources[part] = _stage_folder(folder, source, f'{key}.init.{part}: its weights come')
        elif Path(source).expanduser().is_dir():
            sources[part] = Path(source).expanduser()
        else:
            raise ValueError(f'{key}.init.{part}: {source!r} is neither a stage of this config '
                             f'({", ".join(stages)}) nor a folder')
    return sources


def load_first_weights(model: nn.Module, sources: dict[str, Path]) -> None:
    """Copy them. Two towers take from a whole model the parts that they share with it."""
    for part, source in sources.items():
        if part != WHOLE:
            load_part(model, part, source)
        elif hasattr(model, 'merger'):
            load_weights(model, source)
        else:
            load_part(model, 'vision_encoder', source)


def describe(sources: dict[str, Path]) -> str:
    """One line for the log and the report."""
    if not sources:
        return 'first weights'
    return '; '.join(f'{part.replace("_", " ")} from {source}' for part, source in sources.items())


def _stage_folder(folder: Path, stage: str, what: str) -> Path:
    if not checkpoints(folder / stage):
        raise ValueError(f'{what} from stage {stage!r}, which has no checkpoint in {folder / stage}: run it first, '
                         'say --load-from, or leave it out of run')
    return folder / stage
