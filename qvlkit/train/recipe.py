"""From a config to trained stages: builds what a stage names, joins it, and runs the stages in order."""
import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qvlkit.config import check_complete, save_config
from qvlkit.config.load import redact
from qvlkit.convert.huggingface import load_weights
from qvlkit.data.datasets.mixture import as_mixture
from qvlkit.data.formats.grounding import regions_to_text
from qvlkit.data.loader import PackedLoader
from qvlkit.data.processor import Processor
from qvlkit.data.transforms.chat_template import ChatTemplate
from qvlkit.engine.checkpoint import checkpoints
from qvlkit.engine.optimizer import build_optimizer
from qvlkit.engine.seed import seed_everything
from qvlkit.engine.strategies.single import SingleDevice
from qvlkit.models.builder import build_model
from qvlkit.planning.readiness import check_ready
from qvlkit.registry import DATASETS, HOOKS, SCHEDULES, TOKENIZERS, TRAINERS
from qvlkit.structures import SampleError, Turn
from qvlkit.train.trainer import Trainer

logger = logging.getLogger('qvlkit')

SAMPLES_FOR_TOKENIZER = 2000  # a tokenizer that is trained on the run's own data reads about this many of its samples


def run_recipe(config: dict, *, stages: list[str] | None = None, resume: bool = False, load_from: str | None = None,
               work_dir: str | None = None) -> None:
    """Train the stages one after the other, each from the weights of the one before.

    Args:
        config: Resolved; see `qvlkit.config.load_config`.
        stages: Names to run, in order; the config's `run` if absent.
        resume: Go on from the newest intact checkpoint of the last stage that has one.
        load_from: Checkpoint or Hugging Face folder whose weights the first stage starts from.
        work_dir: Instead of the config's.

    Raises:
        FileNotFoundError: There is no folder `load_from`.
        ValueError: Something the run needs is absent or does not fit. Keys, paths and memory are asked before anything
            is read, built or written; the rest before any step.
    """
    if torch.distributed.is_available() and torch.distributed.is_torchelastic_launched():
        raise ValueError('torchrun: a run is one process on one device; start it without torchrun')
    stages = stages or list(config.get('run', []))
    check_complete(config, stages)
    folder = Path(work_dir or config['work_dir'])
    for name in stages:
        stage_folder = folder / name
        if not resume and checkpoints(stage_folder):
            raise ValueError(f'work_dir: {stage_folder} holds the checkpoints of an earlier run; go on with --resume, '
                             'or choose another folder with --work-dir')
    begun = [name for name in stages if checkpoints(folder / name)]
    stages = stages[stages.index(begun[-1]):] if begun else stages  # those before it are done
    check_ready(config, stages)
    if load_from is not None and not Path(load_from).expanduser().is_dir():
        raise FileNotFoundError(f'{load_from}: no such folder to load weights from')
    if config.get('threads'):
        torch.set_num_threads(config['threads'])
    for name in stages:
        trainer = build_stage(config, name, folder / name, load_from=load_from)
        save_config(config, folder / 'config.json')
        if resume:
            trainer.resume()
            resume = False
        logger.info('stage %s: steps %d to %d, writing into %s', name, trainer.step + 1, trainer.max_steps,
                    trainer.work_dir)
        trainer.fit()
        load_from = str(trainer.work_dir)


def build_stage(config: dict, name: str, work_dir: Path, *, load_from: str | None = None) -> Trainer:
    """The trainer of one stage, with everything in it."""
    if name not in config['stages']:
        raise ValueError(f'run: no stage is called {name!r}; stages: {", ".join(config["stages"])}')
    stage, key = config['stages'][name], f'stages.{name}'
    seed = config.get('seed', 0)
    seed_everything(seed)
    strategy = SingleDevice(config.get('precision', 'auto'))
    dataset = DATASETS.build(stage['data'], config_key=f'{key}.data')
    tokenizer = build_tokenizer(config['tokenizer'], dataset)
    model_config = stage.get('model', config['model'])
    # The data pipeline gets the rules of a model without weights: it travels to worker processes.
    rules = build_model(model_config, vocab_size=tokenizer.vocab_size, device='meta')
    processor = build_processor(rules, tokenizer, stage.get('processor', config.get('processor', {})), seed=seed)
    loader = build_loader(dataset, processor, rules, stage, seed=seed, pin_memory=strategy.device.type == 'cuda',
                          quarantine=work_dir / 'quarantine.jsonl')
    model = build_model(model_config, vocab_size=tokenizer.vocab_size, seed=seed)
    if load_from is not None:
        load_weights(model, load_from)
    model = strategy.prepare(model)
    optimizer = build_optimizer(model, stage.get('parts', {}), stage['optimizer'], config_key=f'{key}.optimizer')
    schedule = SCHEDULES.build(stage['schedule'], config_key=f'{key}.schedule', optimizer=optimizer,
                               max_steps=stage['max_steps'])
    hooks = [HOOKS.build(hook, config_key=f'{key}.hooks.{hook_name}')
             for hook_name, hook in stage.get('hooks', {}).items() if hook]
    return TRAINERS.build(
        stage['trainer'], config_key=f'{key}.trainer', model=model, loader=loader, optimizer=optimizer,
        schedule=schedule, strategy=strategy, hooks=hooks, max_steps=stage['max_steps'],
        max_grad_norm=stage.get('max_grad_norm'), work_dir=work_dir, stage=name, config=redact(config),
        processor=processor)


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
    trains = {part: (stage.get('parts') or {}).get(part, {}).get('trainable', True)
              for part in ('vision_encoder', 'merger', 'language_model')}
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
