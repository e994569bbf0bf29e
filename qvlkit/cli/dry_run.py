"""`qvlkit train CONFIG --dry-run`: what a run would build, one row rehearsed on fake tensors, and the costs.

Nothing of the model is allocated, so the largest config passes on a laptop. Where the tokenizer or the data are not at
hand, stand-ins take their place and the output says so.
"""
import time
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from qvlkit.data.processor import Processor
from qvlkit.data.tokenizers import StandInTokenizer
from qvlkit.engine.adapters import add_adapters
from qvlkit.engine.ema import build_average
from qvlkit.engine.freezing import Freezing
from qvlkit.engine.optimizer import build_optimizer, trainable_table
from qvlkit.engine.strategies.single import SingleDevice
from qvlkit.models.builder import build_model, stage_model
from qvlkit.planning.flops import PartFlops, format_flops
from qvlkit.planning.memory import Memory, format_bytes, head_memory
from qvlkit.planning.parameters import count_parameters
from qvlkit.planning.readiness import (
    AbsentPath,
    absent_data,
    absent_paths,
    absent_sources,
    stage_memory,
    vocabulary_rows,
)
from qvlkit.planning.rehearsal import Rehearsal, from_meta, rehearse
from qvlkit.planning.synthetic import KINDS, SyntheticSamples, usable_kinds
from qvlkit.registry import DATASETS, HOOKS, SCHEDULES, TOKENIZERS, TRAINERS
from qvlkit.structures import ImageTextBatch, PackedBatch, PreferenceBatch
from qvlkit.train.guard import build_guard
from qvlkit.train.hand_over import planned_weights
from qvlkit.train.recipe import build_loader, build_processor, dataset_texts
from qvlkit.train.stage_check import check_stage

RELEASED_VOCABULARY = 151665  # ids of the released tokenizer, without the padding rows of the embedding


def dry_run(config: dict, stages: list[str] | None = None, console: Console | None = None,
            load_from: str | None = None) -> int:
    """Rehearse stages and print what they would do.

    Args:
        config: Resolved; see `qvlkit.config.load_config`.
        stages: Names; the config's `run` if absent.
        console: Where to print; standard output if absent.
        load_from: Folder from which the first stage would take its weights; it is not opened.

    Returns:
        0, after 'dry run passed'.

    Raises:
        ValueError: Something in the config does not fit.
    """
    console = console or Console(highlight=False, soft_wrap=True)
    start = time.perf_counter()
    stages = stages or list(config['run'])
    for name in stages:
        check_stage(config, name)
    data = _Data(config, stages)
    for name in stages:
        _StageRun(config, name, console, data, stages, load_from if name == stages[0] else None).run()
    console.print(f'{time.perf_counter() - start:.0f} s; no weight was allocated, nothing was trained or written')
    console.print('dry run passed')
    return 0


class _Data:
    """The stages' datasets and their one tokenizer, or stand-ins where paths lead nowhere."""

    def __init__(self, config: dict, stages: list[str]):
        self.config, self.absent, self.datasets = config, {}, {}
        for name in stages:
            stage, key = config['stages'][name], f'stages.{name}'
            self.absent[name] = absent_paths(config, [name])
            if not _any_below(self.absent[name], f'{key}.data'):
                dataset = DATASETS.build(stage['data'], config_key=f'{key}.data')
                trainer = TRAINERS.get(stage['trainer']['type'])
                self.datasets[name] = trainer.prepare_dataset(dataset, stage, config_key=key)
        self._tokenizer: Any = None

    def tokenizer(self, name: str) -> Any:
        """That of the run, which may learn from all stages' samples; for a stage alone where its files are absent."""
        if _any_below(self.absent[name], 'tokenizer'):
            rows = vocabulary_rows(self.config, self.config['stages'][name]) or RELEASED_VOCABULARY
            return StandInTokenizer(vocab_size=min(rows, RELEASED_VOCABULARY))
        if self._tokenizer is None:
            texts = chain.from_iterable(map(dataset_texts, self.datasets.values() or [SyntheticSamples()]))
            self._tokenizer = TOKENIZERS.build(self.config['tokenizer'], config_key='tokenizer', texts=texts)
        return self._tokenizer


class _StageRun:
    """The dry run of one stage: builds its parts in the recipe's order, then rehearses a row."""

    def __init__(self, config: dict, name: str, console: Console, data: _Data, stages: list[str],
                 load_from: str | None):
        self.config, self.name, self.console = config, name, console
        self.data, self.stages, self.load_from = data, stages, load_from
        self.stage, self.key = config['stages'][name], f'stages.{name}'
        self.trainer_class = TRAINERS.get(self.stage['trainer']['type'])
        self.rows_per_step = self.stage.get('accumulation', 1)
        precision = config.get('precision', 'auto')
        self.compute_dtype = torch.float32 if precision == 'fp32' else torch.bfloat16
        self.products = str(self.compute_dtype).removeprefix('torch.') + ' products'
        if SingleDevice(precision).dtype != self.compute_dtype:
            self.products += ', which auto takes on a GPU that has them; float32 on this machine'

    def run(self) -> None:
        """Build, rehearse, print."""
        self.console.rule(f'stage {self.name}', align='left')
        tokenizer = self.data.tokenizer(self.name)
        rules, processor = self._rules(tokenizer)
        row = self._row(tokenizer, processor, rules)
        init = planned_weights(self.config, self.name, rules, running=self.stages, load_from=self.load_from)
        self.console.print(f'init       {init}')
        adapted = self._adapted(tokenizer)
        table = trainable_table(adapted, self.stage.get('parts') or {}, self.stage['optimizer'],
                                config_key=f'{self.key}.optimizer')
        self._print_parameters(adapted, table)
        self._print_row(row)
        memory = stage_memory(adapted, self.stage, {line['part']: line['trainable'] for line in table})
        rehearsal, trainer = self._rehearsed(tokenizer, row, adapted)
        _check_gradients(rehearsal, table, f'{self.key}.parts')
        self._print_chain(rehearsal)
        self._print_flops(trainer.part_flops(row))
        rows = getattr(trainer.loss, 'chunk_rows', None) or getattr(trainer, 'chunk_rows', 0)
        if isinstance(row, PackedBatch):
            memory = replace(memory, head=head_memory(
                num_targets=row.num_targets, vocab_size=rules.language_model.vocab_size, chunk_rows=rows,
                compute_dtype=self.compute_dtype))
        self._print_memory(replace(memory, activations=rehearsal.activations))

    def _rules(self, tokenizer: Any) -> tuple[nn.Module, Processor]:
        """The stage's model on the meta device, and the processor, which follows the whole model."""
        model = self.stage.get('model', self.config['model'])
        whole = build_model(model, vocab_size=tokenizer.vocab_size, device='meta',
                            config_key=f'{self.key}.model' if 'model' in self.stage else 'model')
        processor = build_processor(whole, tokenizer, self.stage.get('processor', self.config.get('processor', {})))
        return self._built(tokenizer) if self.stage.get('towers') else whole, processor

    def _built(self, tokenizer: Any) -> nn.Module:
        return stage_model(self.config, self.stage, name=self.name, vocab_size=tokenizer.vocab_size, device='meta')

    def _adapted(self, tokenizer: Any, **changes: Any) -> nn.Module:
        """The stage's model on the meta device, with its adapters."""
        lora = self.stage.get('lora')
        return add_adapters(self._built(tokenizer), lora and {**lora, **changes}, f'{self.key}.lora')

    def _row(self, tokenizer: Any, processor: Processor, rules: nn.Module) -> Any:
        """The first row that training would see; of synthetic samples, one row with every kind in it that the trainer
        takes. Says where it comes from."""
        for path in [*self.data.absent[self.name],
                     *([] if self.load_from else absent_sources(self.config, [self.name]))]:
            self.console.print(f'absent     {path}')
        dataset = self.data.datasets.get(self.name)
        seed = self.config.get('seed', 0)
        loader = build_loader(SyntheticSamples() if dataset is None else dataset, processor, rules, self.stage,
                              seed=seed, num_workers=0)
        if dataset is None:
            kinds = usable_kinds(loader.processor)
            self.console.print(f'data       synthetic samples: {", ".join(kinds)}')
        else:
            self.console.print(f'data       {self.stage["data"]["type"]}, {len(dataset):,} samples')
        name = 'StandInTokenizer' if isinstance(tokenizer, StandInTokenizer) else self.config['tokenizer']['type']
        note = ', the released special tokens, text as bytes' if name == 'StandInTokenizer' else ''
        self.console.print(f'tokenizer  {name}: {tokenizer.vocab_size:,} ids{note}')
        return next(iter(loader))[0] if dataset is not None else self._synthetic_row(loader, kinds)

    def _synthetic_row(self, loader: Any, kinds: list[str]) -> Any:
        dataset, samples, free = SyntheticSamples(), [], self.stage['loader']['row_length']
        for index in range(len(dataset)):
            if KINDS[index % len(KINDS)] in kinds:
                sample = loader.processor.encode(dataset[index])
                free -= sample.length
                if free < 0:
                    break
                samples.append(sample)
        if len(samples) < len(kinds):
            raise ValueError(f'{self.key}.loader.row_length: {self.stage["loader"]["row_length"]} tokens do not hold '
                             f'one synthetic sample of each kind ({", ".join(kinds)})')
        samples.sort(key=lambda sample: sample.id)  # equal lengths side by side share attention calls
        return loader.rows.collate(samples)

    def _rehearsed(self, tokenizer: Any, row: Any, adapted: nn.Module) -> tuple[Rehearsal, Any]:
        """The row's pass, and the trainer that made it; `adapted` is used up."""
        if (self.stage.get('lora') or {}).get('quantize'):  # no product is computed: no need of it
            adapted = self._adapted(tokenizer, quantize=None)
        trainers: list[Any] = []

        def prepare(model: nn.Module) -> Any:
            trainers.append(self._trainer(model))
            return trainers[0].compute_loss
        rehearsal = rehearse(lambda: from_meta(adapted), prepare, row, compute_dtype=self.compute_dtype,
                             first=lambda: trainers[0].prepare_step([row] * min(2, self.rows_per_step)))
        return rehearsal, trainers[0]

    def _trainer(self, model: nn.Module) -> Any:
        """The stage's trainer with everything but a loader."""
        stage, key = self.stage, self.key
        parts = stage.get('parts') or {}
        optimizer = build_optimizer(model, parts, stage['optimizer'], config_key=f'{key}.optimizer')
        schedule = SCHEDULES.build(stage['schedule'], config_key=f'{key}.schedule', optimizer=optimizer,
                                   max_steps=stage['max_steps'])
        for name, hook in (stage.get('hooks') or {}).items():
            if hook:
                self._check_hook(hook, f'{key}.hooks.{name}')
        return TRAINERS.build(
            stage['trainer'], config_key=f'{key}.trainer', model=model, loader=None, optimizer=optimizer,
            schedule=schedule, strategy=SingleDevice('fp32', device='cpu'), hooks=[], max_steps=stage['max_steps'],
            max_grad_norm=stage.get('max_grad_norm'), work_dir=Path(self.config['work_dir']) / self.name,
            stage=self.name, config={}, processor=None, freezing=Freezing(model, parts, parts_key=f'{key}.parts'),
            ema=build_average(model, stage.get('ema'), config_key=f'{key}.ema'),
            guard=build_guard(stage.get('guard', {}), f'{key}.guard'))

    @staticmethod
    def _check_hook(hook: dict, key: str) -> None:
        """Build it, unless it reads files that are absent."""
        if not absent_data(hook, key):
            HOOKS.build(hook, config_key=key)

    def _print_parameters(self, model: nn.Module, table: list[dict]) -> None:
        output = _table('part', 'type', 'parameters', 'trains', 'lr', 'weight decay', right=(2, 4, 5))
        for line in table:
            trains = line['trainable']
            output.add_row(line['part'], type(getattr(model, line['part'])).__name__, f'{line["parameters"]:,}',
                           _trains(line), _rates(line),
                           f'{line["weight_decay"]:g}' if trains else '-')
        output.add_section()
        output.add_row('total', '', f'{sum(count_parameters(model).values()):,}', '', '', '')
        trained = sum(line['trained'] for line in table)
        output.add_row('that trains', '', f'{trained:,}', '', '', '')
        self.console.print(output)

    def _print_row(self, row: Any) -> None:
        if isinstance(row, ImageTextBatch):
            visual, what = row.num_tokens - row.token_ids.numel(), 'pairs of a picture and its caption'
        else:
            visual, what = row.visual_rows.numel(), f'samples, {row.num_targets:,} targets'
        if isinstance(row, PreferenceBatch):
            what = f'preference pairs, {row.num_targets:,} targets of both answers'
        self.console.print(f'one row    {row.num_tokens:,} tokens ({visual:,} visual, {row.num_tokens - visual:,} '
                           f'text), {len(row.sample_ids)} {what}; {self.rows_per_step} such rows in a step')

    def _print_chain(self, rehearsal: Rehearsal) -> None:
        output = _table('chain', 'shape')
        for name, shape in rehearsal.chain:
            output.add_row(name, ' x '.join(f'{side:,}' for side in shape) or 'a number')
        self.console.print(output)

    def _print_flops(self, parts: list[PartFlops]) -> None:
        rows = self.rows_per_step
        output = _table('operations of a step', 'forward', 'backward', 'both', right=(1, 2, 3))
        for part in parts:
            output.add_row(part.part, format_flops(rows * part.forward), format_flops(rows * part.backward),
                           format_flops(rows * part.total))
        output.add_section()
        output.add_row('total', '', '', format_flops(rows * sum(part.total for part in parts)))
        self.console.print(output)

    def _print_memory(self, memory: Memory) -> None:
        self.console.print(f'memory     of one device, with {self.products}')
        output = _table('memory', 'estimate', right=(1,))
        for name, size in memory.categories().items():
            output.add_row(name, format_bytes(size))
        output.add_section()
        output.add_row('total', format_bytes(memory.total))
        self.console.print(output)


def _any_below(absent: list[AbsentPath], key: str) -> bool:
    return any(path.key.startswith(f'{key}.') for path in absent)


def _check_gradients(rehearsal: Rehearsal, table: list[dict], key: str) -> None:
    """Every part that trains received its gradients."""
    for line in table:
        reached = rehearsal.gradients.get(line['part'], 0)
        if reached < line['trained']:
            raise ValueError(f'{key}.{line["part"]}: the loss reaches {reached:,} of its {line["trained"]:,} '
                             'parameters that are to train')


def _trains(line: dict) -> str:
    if line['trained'] in (0, line['parameters']):
        return 'yes' if line['trained'] else 'no'
    return f'{line["trained"]:,}'


def _rates(line: dict) -> str:
    """Learning rate of a part, from its lowest layer to its highest where they differ."""
    if not line['trainable']:
        return '-'
    return f'{line["lr"]:g}' if line['lr'] == line['min_lr'] else f'{line["min_lr"]:.3g} .. {line["lr"]:g}'


def _table(*columns: str, right: tuple[int, ...] = ()) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, column in enumerate(columns):
        table.add_column(column, justify='right' if index in right else 'left', no_wrap=True)
    return table
