"""Where a stage's first weights come from: the stage before, other stages, folders, or nowhere.

A stage without `init` starts from the checkpoint of the stage before it in the config's `run`; a whole model after two
towers takes their vision encoder, and the rest has first weights. With `init`, each part says its own source, and a
part that is not named there starts from first weights:

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
from qvlkit.models.builder import stage_model
from qvlkit.registry import near_names

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
    if load_from is not None:
        return {WHOLE: Path(load_from)}
    key, stages, sources = f'stages.{name}', config['stages'], {}
    begins = stages[name].get('init') is None
    for part, source in named_sources(config, name, running).items():
        if source in stages:
            what = f'{key} starts' if begins else f'{key}.init.{part}: its weights come'
            sources[part] = _stage_folder(folder, source, what)
        elif Path(source).expanduser().is_dir():
            sources[part] = Path(source).expanduser()
        else:
            raise ValueError(f'{key}.init.{part}: {source!r} is neither a stage of this config '
                             f'({", ".join(stages)}) nor a folder')
    return sources


def named_sources(config: dict, name: str, running: list[str] | None = None) -> dict[str, str]:
    """Part -> stage or folder, as the config says it; arguments as for `first_weights`. Nothing is looked up."""
    run, stages = list(config.get('run', [])), config['stages']
    init = stages[name].get('init')
    if init is None:
        order = run if name in run else running or [name]
        before = order[:order.index(name)][-1:]
        part = WHOLE
        if before and stages[before[0]].get('towers') and not stages[name].get('towers'):
            part = 'vision_encoder'
            logger.warning('stages.%s: stage %s before it has two towers; their vision encoder is taken, the other '
                           'parts have first weights', name, before[0])
        return {part: before[0]} if before else {}
    sources = {}
    for part, source in init.items():
        if source in stages and source not in run:
            logger.warning('stages.%s.init.%s: stage %s is not in run, so the %s keeps its first weights', name, part,
                           source, part.replace('_', ' '))
        elif source is not None:
            sources[part] = source
    return sources


def planned_weights(config: dict, name: str, model: nn.Module, *, running: list[str] | None = None,
                    load_from: str | None = None) -> str:
    """Where each part of a stage's model would come from, in one line; what comes from a folder is not opened.

    Args:
        config, name, running, load_from: As for `first_weights`.
        model: The stage's, perhaps on the meta device.

    Raises:
        ValueError: `init` names a part that the model lacks, or that its source does not hold.
    """
    if load_from is not None:
        return f'model from {load_from}'
    stages, key, parts = config['stages'], f'stages.{name}.init', _with_weights(model)
    sources = named_sources(config, name, running)
    for part in stages[name].get('init') or {}:
        if part not in parts:
            raise ValueError(f'{key}.{part}: the model of the stage has no such part{near_names(part, parts)}; parts: '
                             f'{", ".join(parts)}')
    lines = []
    for part, source in sources.items():
        if part != WHOLE and source in stages:
            held = stage_model(config, stages[source], name=source, vocab_size=1, device='meta')
            if part not in _with_weights(held):
                raise ValueError(f'{key}.{part}: stage {source!r} trains no {part.replace("_", " ")}; it has: '
                                 f'{", ".join(_with_weights(held))}')
        lines.append(f'{part.replace("_", " ")} from {"stage " if source in stages else ""}{source}')
    rest = [] if WHOLE in sources else [part.replace('_', ' ') for part in parts if part not in sources]
    return '; '.join([*lines, *([f'first weights: {", ".join(rest)}'] if rest else [])])


def _with_weights(model: nn.Module) -> list[str]:
    return [name for name, part in model.named_children() if any(True for _ in part.parameters())]


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
