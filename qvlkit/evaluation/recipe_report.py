"""The page and the table at the end of a recipe: what each stage cost, and what it did to held-out numbers."""
import json
from collections.abc import Iterable
from pathlib import Path

from qvlkit.evaluation.training_report import smooth
from qvlkit.report.page import Page

COSTS = ('stage', 'trainer', 'steps', 'tokens', 'parameters that train', 'time', 'final loss')
RESULTS = ('stage', 'held out', 'chance', 'before', 'after')
WIDTH = 110  # columns of a table where the output goes to a file
PAGE, SUMMARY, LOG = 'report.html', 'summary.json', 'log.jsonl'


def report_stages(folder: Path, names: Iterable[str]) -> Path | None:
    """Print the table of the finished stages and write `report.html`; None if no stage is finished.

    Args:
        folder: Of the run, with a folder for each stage.
        names: Stages, in order; a name may come twice.
    """
    from rich.console import Console
    from rich.table import Table
    summaries = {name: json.loads((folder / name / SUMMARY).read_text(encoding='utf-8'))
                 for name in dict.fromkeys(names) if (folder / name / SUMMARY).is_file()}
    if not summaries:
        return None
    console = Console()
    console = console if console.is_terminal else Console(width=WIDTH)
    for title, header, rows in (('The stages', COSTS, cost_rows(summaries.values())),
                                ('What each stage changed', RESULTS, result_rows(summaries.values()))):
        table = Table(*header, title=title)
        for row in rows:
            table.add_row(*row)
        if table.row_count:
            console.print(table)
    page = write_recipe_report(folder / PAGE, summaries)
    console.print(f'report: {page}', soft_wrap=True)
    return page


def cost_rows(summaries: Iterable[dict]) -> list[tuple[str, ...]]:
    """Rows under `COSTS`, one for each stage."""
    return [(summary['stage'], summary['trainer'], f'{summary["steps"]:,}', f'{summary["tokens"]:,}',
             f'{summary["trainable"]:,} of {summary["parameters"]:,}', _time(summary['seconds']),
             '–' if summary['loss'] is None else f'{summary["loss"]:.4f}') for summary in summaries]


def result_rows(summaries: Iterable[dict]) -> list[tuple[str, ...]]:
    """Rows under `RESULTS`, one for each held-out number of a stage."""
    return [(summary['stage'], name, *(_value(result.get(key), result.get('unit'))
                                       for key in ('chance', 'before', 'after')))
            for summary in summaries for name, result in summary['results'].items()]


def write_recipe_report(path: Path, summaries: dict[str, dict]) -> Path:
    """Write the page and return its path.

    Args:
        path: In the folder of the run.
        summaries: Stage -> its summary (train/summary.py); the stage's log is read from its folder.
    """
    page = Page('The recipe, stage by stage')
    page.text('Each stage starts from the one before. Held-out numbers are taken before its first and after its last '
              'step, on samples that are not in its training data.')
    page.table(COSTS, cost_rows(summaries.values()))
    if any(summary['results'] for summary in summaries.values()):
        page.table(RESULTS, result_rows(summaries.values()), bold=RESULTS.index('after'))
    shares = {f'{name}: {metric}': _levels(result) for name, summary in summaries.items()
              for metric, result in summary['results'].items() if result.get('unit') == '%'}
    if shares:
        page.bars('Held-out shares', shares)
    for name, summary in summaries.items():
        page.heading(name)
        page.text(f'{summary["trainer"]}. Started from: {summary["init"]}.', soft=True)
        if (path.parent / name / PAGE).is_file():
            page.text(f'Questions, pictures and answers: {name}/{PAGE}', soft=True)
        log = path.parent / name / LOG
        rows = [json.loads(line) for line in log.read_text(encoding='utf-8').splitlines()] if log.is_file() else []
        if rows:
            steps, losses = [row['step'] for row in rows], [row['loss'] for row in rows]
            page.plot(f'{name}: loss', {'_each step': (steps, losses), 'mean of neighbours': (steps, smooth(losses))},
                      'step', 'loss', log=min(losses) > 0)
    return page.write(path)


def _levels(result: dict) -> dict:
    return {key: result[key] for key in ('chance', 'before', 'after') if result.get(key) is not None}


def _value(value: float | None, unit: str | None) -> str:
    if value is None:
        return '–'
    return f'{100 * value:.1f} %' if unit == '%' else f'{value:.4f}'


def _time(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f'{minutes // 60}:{minutes % 60:02d}:{seconds:02d}'
