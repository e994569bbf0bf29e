"""`qvlkit inspect_data CONFIG`: parse, build the data pipeline as training does, hand over to planning/data_page.py."""
import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qvlkit.cli.main import run_tool

EXAMPLES = '''\
examples:
  qvlkit inspect_data qwen25vl_tiny
      what the model of the first run is given: WORK_DIR/STAGE/data.html, to open in a browser
  qvlkit inspect_data my_config.py --stage sft --samples 20 --steps 200
      one stage, more samples in close-up, more steps planned
  qvlkit inspect_data my_config.py --set stages.sft.loader.row_length=16384
      how rows would fill with another setting
  qvlkit inspect_data my_config.py --epoch 1
      each source at its second visit: another order, other random crops

The page shows shares of the sources, what the data are made of (subsets, languages, turns, pictures), lengths, costs
and how rows are filled, samples that cannot be used, and some samples as the model gets them: pictures with their
boxes, tokens coloured by what is learned, position ids. Rows are planned from headers; only the samples that are shown
are decoded. No weight is allocated, nothing is trained.
Exit codes: 0 done; 2 a mistake in the arguments, the config or the data, told in one line; 130 interrupted.'''

SOURCE_COLUMNS = ('source', 'by sample', 'by token', 'samples', 'mean tokens', 'bad')  # the narrow ones of the page's
COUNTED = 2000  # samples of the composition


def parser() -> argparse.ArgumentParser:
    """The tool's arguments."""
    result = argparse.ArgumentParser(prog='qvlkit inspect_data', epilog=EXAMPLES,
                                     description='Show what a model is given in a stage: samples, tokens, packing.',
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument('config', metavar='CONFIG',
                        help='a .py, .yaml or .json config, or the name of a shipped one such as qwen25vl_tiny')
    result.add_argument('--stage', metavar='NAME', help="the stage (default: the first of the config's run)")
    result.add_argument('--set', metavar='KEY=VALUE', nargs='+', action='extend', default=[], dest='overrides',
                        help='change settings: key.path=value, as for qvlkit train')
    result.add_argument('--work-dir', metavar='DIR', help="write here instead of the config's work_dir")
    result.add_argument('--samples', metavar='N', type=int, default=8, help='samples in close-up (default: 8)')
    result.add_argument('--steps', metavar='N', type=int, default=50, help='optimizer steps to plan (default: 50)')
    result.add_argument('--epoch', metavar='E', type=int, default=0,
                        help='read each source as at this visit, the first being 0 (default: 0)')
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and run; returns the exit code."""
    return run_tool(inspect_data, parser().parse_args(argv))


def inspect_data(arguments: argparse.Namespace) -> None:
    """What the parsed arguments ask for. Imports torch, so that --help need not."""
    from qvlkit.config import check_complete, load_config
    from qvlkit.registry import near_names
    for name, low in (('samples', 0), ('steps', 1), ('epoch', 0)):
        if getattr(arguments, name) < low:
            raise ValueError(f'--{name}: expected a number of at least {low}, got {getattr(arguments, name)}')
    config = load_config(arguments.config, arguments.overrides)
    stage = arguments.stage or next(iter(config.get('run', [])), None)
    stages = list(config.get('stages', {}))
    if stage is not None and stage not in stages:
        raise ValueError(f'--stage: no stage is called {stage!r}{near_names(stage, stages)}; '
                         f'stages: {", ".join(stages)}')
    check_complete(config, [stage] if stage else [])
    folder = Path(arguments.work_dir or config['work_dir']) / stage
    page, table, composition = with_progress(lambda progress: build_page(
        config, stage, samples=arguments.samples, steps=arguments.steps, epoch=arguments.epoch, progress=progress))
    print_table(*table, kept=SOURCE_COLUMNS)
    print()
    print_table(*composition.table())
    print(f'wrote {page.write(folder / "data.html")}')


def build_page(config: dict, stage: str, *, samples: int, steps: int, epoch: int, progress: Any
               ) -> tuple[Any, tuple, Any]:
    """The page, header and rows of its table of sources, and the composition of the samples.

    Raises:
        ValueError: A file that the stage reads is absent, or no sample can be used.
    """
    from qvlkit.planning.close_up import CloseUp, close_ups, run_processor
    from qvlkit.planning.composition import compose
    from qvlkit.planning.data_page import data_page, source_table
    from qvlkit.planning.survey import survey
    loader = build_stage_loader(config, stage)
    found = survey(loader, steps=steps, epoch=epoch, progress=progress)
    shown, bad = [], list(found.errors)
    for result in close_ups(found.items, samples, loader.mixture, loader.processor):
        if isinstance(result, CloseUp):
            shown.append(result)
            progress('encoding samples', len(shown), samples)
        else:
            bad.append(result)
    tokenizer = run_processor(loader.processor).tokenizer
    notes = [f'stage {stage}, {type(tokenizer).__name__} with {tokenizer.vocab_size:,} ids, visit {epoch} of '
             f'each source, seed {config.get("seed", 0)}. '
             f'The first {len(found.steps):,} steps of one process, planned from headers; {len(shown)} samples '
             'decoded.']
    if bad and loader.on_error == 'raise':
        notes.append("Training stops at the first sample that cannot be used: loader.on_error is 'raise'.")
    draws = [(item.placed.draw, item.placed.length) for item in found.items[:COUNTED]]
    composition = compose((loader.mixture.sample(draw.source, draw.index), length) for draw, length in draws)
    page = data_page(f'Data of {stage}', found, shown, bad, tokenizer, notes=notes, composition=composition)
    return page, source_table(found, bad), composition


def build_stage_loader(config: dict, name: str) -> Any:
    """The loader of a stage, as training builds it; the model is rules on the meta device, without weights."""
    from qvlkit.models.builder import build_model, stage_model
    from qvlkit.planning.readiness import absent_paths
    from qvlkit.registry import DATASETS, TRAINERS
    from qvlkit.train.recipe import build_loader, build_processor, build_tokenizer
    from qvlkit.train.stage_check import check_stage
    check_stage(config, name)
    absent = absent_paths(config, [name])
    if absent:
        raise ValueError('; '.join(map(str, absent)))
    stage, seed = config['stages'][name], config.get('seed', 0)
    dataset = DATASETS.build(stage['data'], config_key=f'stages.{name}.data')
    dataset = TRAINERS.get(stage['trainer']['type']).prepare_dataset(dataset, stage, config_key=f'stages.{name}')
    tokenizer = build_tokenizer(config['tokenizer'], dataset)
    rules = build_model(stage.get('model', config['model']), vocab_size=tokenizer.vocab_size, device='meta')
    processor = build_processor(rules, tokenizer, stage.get('processor', config.get('processor', {})), seed=seed)
    if stage.get('towers'):
        rules = stage_model(config, stage, name=name, vocab_size=tokenizer.vocab_size, device='meta')
    return build_loader(dataset, processor, rules, stage, seed=seed, num_workers=0)


def with_progress(work: Any) -> Any:
    """Do `work` under bars on stderr, one for each thing that it says it does."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    console = Console(stderr=True)
    with Progress(TextColumn('{task.description:<18}'), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                  console=console, disable=not console.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def progress(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)
        return work(progress)


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]], kept: Sequence[str] | None = None) -> None:
    """A table on standard output; `kept` are the columns that it has, all if absent."""
    from rich.console import Console
    from rich.table import Table
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style='bold')
    places = [header.index(name) for name in kept or header]
    for index in places:
        name = header[index]
        table.add_column(name, justify='left' if name in ('source', 'of', 'value') else 'right', no_wrap=bool(index),
                         overflow='fold')
    for row in rows:
        table.add_row(*(str(row[index]) for index in places))
    Console(highlight=False, markup=False, soft_wrap=True).print(table)


if __name__ == '__main__':
    raise SystemExit(main())
