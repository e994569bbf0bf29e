"""`qvlkit train CONFIG --dry-run`: what a run would build, one row rehearsed on fake tensors, and the costs.

Nothing of the model is allocated, so the largest config passes on a laptop. Where the tokenizer or the data are not at
hand, stand-ins take their place and the output says so.
"""
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from qvlkit.data.processor import Processor
from qvlkit.data.tokenizers import StandInTokenizer
from qvlkit.engine.adapters import add_adapters
from qvlkit.engine.optimizer import build_optimizer, trainable_table
from qvlkit.engine.strategies.single import SingleDevice
from qvlkit.models.builder import build_model
from qvlkit.planning.flops import batch_flops, format_flops
from qvlkit.planning.memory import Memory, format_bytes, head_memory, model_memory
from qvlkit.planning.parameters import count_parameters
from qvlkit.planning.readiness import AbsentPath, absent_paths, vocabulary_rows
from qvlkit.planning.rehearsal import Rehearsal, from_meta, rehearse
from qvlkit.planning.synthetic import KINDS, SyntheticSamples
from qvlkit.registry import DATASETS, HOOKS, SCHEDULES, TRAINERS
from qvlkit.structures import PackedBatch
from qvlkit.train.recipe import build_loader, build_processor, build_tokenizer

RELEASED_VOCABULARY = 151665  # ids of the released tokenizer, without the padding rows of the embedding


def dry_run(config: dict, stages: list[str] | None = None, console: Console | None = None) -> int:
    """Rehearse stages and print what they would do.

    Args:
        config: Resolved; see `qvlkit.config.load_config`.
        stages: Names; the config's `run` if absent.
        console: Where to print; standard output if absent.

    Returns:
        0, after 'dry run passed'.

    Raises:
        ValueError: Something in the config does not fit.
    """
    console = console or Console(highlight=False, soft_wrap=True)
    start = time.perf_counter()
    for name in stages or list(config['run']):
        _StageRun(config, name, console).run()
    console.print(f'{time.perf_counter() - start:.0f} s; no weight was allocated, nothing was trained or written')
    console.print('dry run passed')
    return 0


class _StageRun:
    """The dry run of one stage: builds its parts in the recipe's order, then rehearses a row."""

    def __init__(self, config: dict, name: str, console: Console):
        self.config, self.name, self.console = config, name, console
        self.stage, self.key = config['stages'][name], f'stages.{name}'
        self.model_config = self.stage.get('model', config['model'])
        self.rows_per_step = self.stage.get('accumulation', 1)
        precision = config.get('precision', 'auto')
        self.compute_dtype = torch.float32 if precision == 'fp32' else torch.bfloat16
        self.products = str(self.compute_dtype).removeprefix('torch.') + ' products'
        if SingleDevice(precision).dtype != self.compute_dtype:
            self.products += ', which auto takes on a GPU that has them; float32 on this machine'

    def run(self) -> None:
        """Build, rehearse, print."""
        self.console.rule(f'stage {self.name}', align='left')
        tokenizer, dataset = self._inputs()
        rules = build_model(self.model_config, vocab_size=tokenizer.vocab_size, device='meta')
        lora = self.stage.get('lora')
        adapted = self._adapted(tokenizer, lora)
        table = trainable_table(adapted, self.stage.get('parts') or {}, self.stage['optimizer'],
                                config_key=f'{self.key}.optimizer')
        self._print_parameters(adapted, table)
        processor = build_processor(rules, tokenizer, self.stage.get('processor', self.config.get('processor', {})))
        row = self._row(dataset, processor, rules)
        self._print_row(row)
        loss: list[Any] = []
        whole = self._adapted(tokenizer, lora and {**lora, 'quantize': None})  # no product is computed: no need of it
        rehearsal = rehearse(lambda: from_meta(whole),
                             lambda model: self._trainer(model, loss).compute_loss, row,
                             compute_dtype=self.compute_dtype)
        _check_gradients(rehearsal, table)
        self._print_chain(rehearsal)
        trains = {line['part']: line['trainable'] for line in table}
        self._print_flops(rules, row, trains)
        memory = model_memory(adapted, trains)
        head = head_memory(num_targets=row.num_targets, vocab_size=rules.language_model.vocab_size,
                           chunk_rows=getattr(loss[0], 'chunk_rows', 0), compute_dtype=self.compute_dtype)
        self._print_memory(Memory(memory.weights, memory.gradients, memory.optimizer, rehearsal.activations, head))

    def _adapted(self, tokenizer: Any, lora: dict | None) -> nn.Module:
        """The stage's model on the meta device, with its adapters."""
        return add_adapters(build_model(self.model_config, vocab_size=tokenizer.vocab_size, device='meta'), lora,
                            f'{self.key}.lora')

    def _inputs(self) -> tuple[Any, Any]:
        """Tokenizer and dataset of the stage, or their stand-ins where their paths lead nowhere."""
        absent = absent_paths(self.config, [self.name])
        for path in absent:
            self.console.print(f'absent     {path}')
        if _any_below(absent, f'{self.key}.data'):
            dataset = SyntheticSamples()
            self.console.print(f'data       synthetic samples: {", ".join(KINDS)}')
        else:
            dataset = DATASETS.build(self.stage['data'], config_key=f'{self.key}.data')
            self.console.print(f'data       {self.stage["data"]["type"]}, {len(dataset):,} samples')
        if _any_below(absent, 'tokenizer'):
            rows = vocabulary_rows(self.config, self.stage) or RELEASED_VOCABULARY
            tokenizer = StandInTokenizer(vocab_size=min(rows, RELEASED_VOCABULARY))
            self.console.print(f'tokenizer  StandInTokenizer: {tokenizer.vocab_size:,} ids, the released special '
                               'tokens, text as bytes')
        else:
            tokenizer = build_tokenizer(self.config['tokenizer'], dataset)
            self.console.print(f'tokenizer  {self.config["tokenizer"]["type"]}, {tokenizer.vocab_size:,} ids')
        return tokenizer, dataset

    def _row(self, dataset: Any, processor: Processor, rules: nn.Module) -> PackedBatch:
        """The first row that training would see; of synthetic samples, one row with every kind in it."""
        loader = build_loader(dataset, processor, rules, self.stage, seed=self.config.get('seed', 0), num_workers=0)
        if not isinstance(dataset, SyntheticSamples):
            return next(iter(loader))[0]
        encode, join = processor.encode, loader.rows.collate
        samples, free = [], self.stage['loader']['row_length']
        for index in range(len(dataset)):
            sample = encode(dataset[index])
            free -= sample.length
            if free < 0:
                break
            samples.append(sample)
        if len(samples) < len(KINDS):
            raise ValueError(f'{self.key}.loader.row_length: {self.stage["loader"]["row_length"]} tokens do not hold '
                             f'one synthetic sample of each kind ({", ".join(KINDS)})')
        return join(sorted(samples, key=lambda sample: sample.id))  # equal lengths side by side share attention calls

    def _trainer(self, model: nn.Module, loss: list[Any]) -> Any:
        """The stage's trainer with everything but a loader; its loss is put into `loss`."""
        stage, key = self.stage, self.key
        optimizer = build_optimizer(model, stage.get('parts') or {}, stage['optimizer'], config_key=f'{key}.optimizer')
        schedule = SCHEDULES.build(stage['schedule'], config_key=f'{key}.schedule', optimizer=optimizer,
                                   max_steps=stage['max_steps'])
        for name, hook in (stage.get('hooks') or {}).items():
            if hook:
                HOOKS.build(hook, config_key=f'{key}.hooks.{name}')
        trainer = TRAINERS.build(
            stage['trainer'], config_key=f'{key}.trainer', model=model, loader=None, optimizer=optimizer,
            schedule=schedule, strategy=SingleDevice('fp32', device='cpu'), hooks=[], max_steps=stage['max_steps'],
            max_grad_norm=stage.get('max_grad_norm'), work_dir=Path(self.config['work_dir']) / self.name,
            stage=self.name, config={}, processor=None)
        loss.append(getattr(trainer, 'loss', None))
        return trainer

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

    def _print_row(self, row: PackedBatch) -> None:
        visual = row.visual_rows.numel()
        self.console.print(f'one row    {row.num_tokens:,} tokens ({visual:,} visual, {row.num_tokens - visual:,} '
                           f'text), {row.num_targets:,} targets, {len(row.sample_ids)} samples; '
                           f'{self.rows_per_step} such rows in a step')

    def _print_chain(self, rehearsal: Rehearsal) -> None:
        output = _table('chain', 'shape')
        for name, shape in rehearsal.chain:
            output.add_row(name, ' x '.join(f'{side:,}' for side in shape) or 'a number')
        self.console.print(output)

    def _print_flops(self, model: nn.Module, row: PackedBatch, trains: dict[str, bool]) -> None:
        rows = self.rows_per_step
        parts = batch_flops(model, row, trains)
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


def _check_gradients(rehearsal: Rehearsal, table: list[dict]) -> None:
    """Every part that trains received its gradients."""
    for line in table:
        reached = rehearsal.gradients.get(line['part'], 0)
        if reached < line['trained']:
            raise ValueError(f'parts.{line["part"]}: the loss reaches {reached:,} of its {line["trained"]:,} '
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
