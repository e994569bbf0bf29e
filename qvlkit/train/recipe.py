"""From a config to trained stages: builds what a stage names, joins it, and runs the stages in order."""
import logging
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qvlkit.config import check_complete, save_config
from qvlkit.config.load import redact
from qvlkit.data.datasets.mixture import as_mixture
from qvlkit.data.formats.grounding import regions_to_text
from qvlkit.data.loader import PackedLoader
from qvlkit.data.processor import Processor
from qvlkit.data.tokenizers import HFTokenizer
from qvlkit.data.transforms.chat_template import ChatTemplate
from qvlkit.engine.adapters import add_adapters
from qvlkit.engine.checkpoint import checkpoints
from qvlkit.engine.ema import build_average
from qvlkit.engine.freezing import Freezing, ever_trains, trainable_schedule
from qvlkit.engine.optimizer import build_optimizer
from qvlkit.engine.seed import seed_everything
from qvlkit.engine.strategies.processes import build_strategy, processes
from qvlkit.evaluation.recipe_report import report_stages
from qvlkit.models.builder import build_model, stage_model
from qvlkit.planning.readiness import absent_paths, check_ready
from qvlkit.registry import DATASETS, HOOKS, SCHEDULES, TOKENIZERS, TRAINERS, constructor_keys
from qvlkit.structures import SampleError, Turn
from qvlkit.train.guard import build_guard
from qvlkit.train.hand_over import WHOLE, describe, first_weights, load_first_weights
from qvlkit.train.stage_check import check_stage
from qvlkit.train.summary import changed_settings, read_summary, stage_settings, write_summary
from qvlkit.train.trainer import Trainer

logger = logging.getLogger('qvlkit')

SAMPLES_FOR_TOKENIZER = 2000  # a tokenizer that is trained on the run's own data reads about this many of its samples


@processes()
def run_recipe(config: dict, *, stages: list[str] | None = None, resume: bool = False, load_from: str | None = None,
               work_dir: str | None = None) -> None:
    """Train the stages one after the other, each from the weights that the config says (train/hand_over.py).

    A finished stage is not run again. At the end, `report.html` of the run's folder holds a table of all its stages.

    Args:
        config: Resolved; see `qvlkit.config.load_config`.
        stages: Names to run, in order; the config's `run` if absent.
        resume: Leave out finished stages, go on from the newest intact checkpoint of one that has begun.
        load_from: Checkpoint or Hugging Face folder whose weights the first stage starts from.
        work_dir: Instead of the config's.

    Raises:
        FileNotFoundError: There is no folder `load_from`.
        ValueError: Something the run needs is absent or does not fit. Keys, paths and memory are asked before anything
            is read, built or written; the rest before any step.
    """
    stages = stages or list(config.get('run', []))
    check_complete(config, stages)
    folder = Path(work_dir or config['work_dir'])
    for name in stages:
        if not resume and checkpoints(folder / name):
            raise ValueError(f'work_dir: {folder / name} holds the checkpoints of an earlier run; go on with --resume, '
                             'or choose another folder with --work-dir')
    waiting = [name for name in stages if not _is_finished(config, name, folder)]
    for name in waiting:
        check_stage(config, name)
    starting = [name for name in waiting if not (resume and checkpoints(folder / name))
                and not (load_from is not None and name == stages[0])]
    check_ready(config, waiting, starting=starting)
    if load_from is not None and not Path(load_from).expanduser().is_dir():
        raise FileNotFoundError(f'{load_from}: no such folder to load weights from')
    if config.get('threads'):
        torch.set_num_threads(config['threads'])
    strategy = build_strategy(config)
    begun = any(checkpoints(folder / name) for name in stages)
    for name in waiting:
        resumes = resume and (checkpoints(folder / name) or not begun)  # an error, where there is nothing to resume
        sources = {} if resumes else first_weights(config, name, folder, load_from if name == stages[0] else None,
                                                   stages)
        trainer = build_stage(config, name, folder / name, load_from=sources,
                              tokenizer=run_tokenizer(config, stages, folder, strategy))
        if resumes:
            trainer.resume()
        init = 'its own checkpoint' if resumes else describe(sources)
        if strategy.is_main:
            save_config(config, folder / 'config.json')
        logger.info('stage %s: %s; steps %d to %d, writing into %s', name, init, trainer.step + 1, trainer.max_steps,
                    trainer.work_dir)
        trainer.fit()
        if trainer.saved_step != trainer.step:  # what the next stage starts from
            trainer.save()
        if strategy.is_main:
            write_summary(trainer, init=init)
    if strategy.is_main:
        report_stages(folder, [*config.get('run', []), *stages])


def _is_finished(config: dict, name: str, folder: Path) -> bool:
    """Whether the stage has been run to its end, and the config gives it no further steps; other settings that have
    changed since then are told."""
    summary = read_summary(folder / name)
    if summary is None or config['stages'][name]['max_steps'] > summary['settings']['max_steps']:
        return False
    changed = changed_settings(summary['settings'], stage_settings(config, name))
    logger.info('stage %s is finished and is not run again', name)
    if changed:
        logger.warning('stage %s was run with other settings than the config has now: %s', name, '; '.join(changed))
    return True


def run_tokenizer(config: dict, stages: list[str], folder: Path, strategy: Any) -> Any:
    """The one tokenizer of all stages. One that learns its vocabulary reads samples of every stage's data whose files
    are there, once, and is kept in the run's folder, where the main rank puts it."""
    settings, kept = config['tokenizer'], folder / 'tokenizer'
    if 'texts' not in (constructor_keys(TOKENIZERS.get(settings.get('type'), config_key='tokenizer')) or ()):
        return TOKENIZERS.build(settings, config_key='tokenizer')
    if strategy.is_main and not kept.is_dir():
        names = [name for name in dict.fromkeys([*config.get('run', []), *stages]) if not absent_paths(config, [name])]
        datasets = [DATASETS.build(config['stages'][name]['data'], config_key=f'stages.{name}.data') for name in names]
        texts = chain.from_iterable(map(dataset_texts, datasets))
        TOKENIZERS.build(settings, config_key='tokenizer', texts=texts).save(kept)
    strategy.barrier()
    return HFTokenizer(str(kept))


def build_stage(config: dict, name: str, work_dir: Path, *, load_from: str | dict[str, Path] | None = None,
                tokenizer: Any = None) -> Trainer:
    """The trainer of one stage, with everything in it.

    Args:
        config: Resolved.
        name: Of the stage.
        work_dir: Its folder.
        load_from: Folder whose weights it starts from, or part -> folder.
        tokenizer: That of the run; if absent, the one that the config names, for this stage's data alone.
    """
    check_stage(config, name)
    stage, key = config['stages'][name], f'stages.{name}'
    seed = config.get('seed', 0)
    seed_everything(seed)
    strategy = build_strategy(config)
    dataset = DATASETS.build(stage['data'], config_key=f'{key}.data')
    dataset = TRAINERS.get(stage['trainer']['type']).prepare_dataset(dataset, stage, config_key=key)
    tokenizer = tokenizer or build_tokenizer(config['tokenizer'], dataset)
    model_config = stage.get('model', config['model'])
    # The data pipeline gets the rules of a model without weights: it travels to worker processes.
    rules = build_model(model_config, vocab_size=tokenizer.vocab_size, device='meta')
    processor = build_processor(rules, tokenizer, stage.get('processor', config.get('processor', {})), seed=seed)
    if stage.get('towers'):
        rules = stage_model(config, stage, name=name, vocab_size=tokenizer.vocab_size, device='meta')
    loader = build_loader(dataset, processor, rules, stage, seed=seed, pin_memory=strategy.device.type == 'cuda',
                          quarantine=work_dir / 'quarantine.jsonl', rank=strategy.rank,
                          world_size=strategy.world_size)
    model = stage_model(config, stage, name=name, vocab_size=tokenizer.vocab_size, seed=seed)
    if load_from:
        load_first_weights(model, load_from if isinstance(load_from, dict) else {WHOLE: Path(load_from)})
    model = strategy.prepare(add_adapters(model, stage.get('lora'), f'{key}.lora'))
    parts = stage.get('parts') or {}
    optimizer = build_optimizer(model, parts, stage['optimizer'], config_key=f'{key}.optimizer')
    schedule = SCHEDULES.build(stage['schedule'], config_key=f'{key}.schedule', optimizer=optimizer,
                               max_steps=stage['max_steps'])
    hooks = [HOOKS.build(hook, config_key=f'{key}.hooks.{hook_name}')
             for hook_name, hook in stage.get('hooks', {}).items() if hook]
    return TRAINERS.build(
        stage['trainer'], config_key=f'{key}.trainer', model=model, loader=loader, optimizer=optimizer,
        schedule=schedule, strategy=strategy, hooks=hooks, max_steps=stage['max_steps'],
        max_grad_norm=stage.get('max_grad_norm'), work_dir=work_dir, stage=name, config=redact(config),
        processor=processor, freezing=Freezing(model, parts, parts_key=f'{key}.parts'),
        ema=build_average(model, stage.get('ema'), config_key=f'{key}.ema'),
        guard=build_guard(stage.get('guard', {}), f'{key}.guard'))


def build_tokenizer(config: dict, dataset: Any) -> Any:
    """The tokenizer that the config names; one that learns its vocabulary reads the dataset's own texts."""
    return TOKENIZERS.build(config, config_key='tokenizer', texts=dataset_texts(dataset))


def build_processor(model: nn.Module, tokenizer: Any, settings: dict, *, seed: int = 0) -> Processor:
    """Joins the data pipeline to the rules of the model's parts."""
    return Processor(tokenizer, model.geometry, num_tokens=model.merger.num_tokens,
                     token_grid=model.merger.token_grid, position_ids=model.position_encoding.ids, plan=model.plan,
                     seed=seed, **settings)


def build_loader(dataset: Any, processor: Processor, model: nn.Module, stage: dict, **settings: Any) -> PackedLoader:
    """The loader of a stage: rows are evened out by what the model's parts say that a sample costs."""
    trainer = TRAINERS.get(stage['trainer']['type'])
    join = partial(trainer.collate, plan=model.plan, geometry=model.geometry,
                   sources=tuple(source.name for source in as_mixture(dataset).sources))
    parts = stage.get('parts') or {}
    trains = {part: ever_trains(trainable_schedule(parts.get(part, {}).get('trainable', True), f'parts.{part}'))
              for part in model.parts()}
    return PackedLoader(dataset, trainer.encoder(processor, stage['trainer']), join,
                        cost=trainer.sample_cost(model, trains), accumulation=stage.get('accumulation', 1),
                        **{**stage['loader'], **settings})


def dataset_texts(dataset: Any) -> Iterator[str]:
    """Every text of some samples as a model reads it: with role names, system turn and boxes written out.

    Samples that cannot be used are left out: the loader meets them again and raises or counts them.
    """
    for index in range(0, len(dataset), -(-len(dataset) // SAMPLES_FOR_TOKENIZER)):
        try:
            sample = dataset[index]
        except SampleError:
            continue
        sample.turns = [Turn(turn.role, regions_to_text(turn.content)) for turn in sample.turns]
        yield from (segment.text for segment in ChatTemplate()(sample, None).segments if segment.kind == 'text')
