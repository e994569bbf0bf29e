"""The page and the table at the end of a recipe: what each stage cost, and what it did to held-out numbers."""
import json
from collections.abc import Iterable
from pathlib import Path

from qvlkit.evaluation.training_report import smooth
from qvlkit.report.page import Page

HEADER = ('stage', 'steps', 'tokens', 'trains', 'time', 'final loss', 'held out', 'chance', 'before', 'after')
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
    table = Table(*HEADER, title='The stages')
    for row in stage_rows(summaries.values()):
        table.add_row(*row, end_section=True)
    console = Console()
    console.print(table)
    page = write_recipe_report(folder / PAGE, summaries)
    console.print(f'report: {page}', soft_wrap=True)
    return page


def stage_rows(summaries: Iterable[dict]) -> list[tuple[str, ...]]:
    """Rows under `HEADER`: one for each held-out number of a stage, the first of which holds the stage's costs."""
    rows = []
    for summary in summaries:
        loss = summary['loss']
        costs = (summary['stage'], f'{summary["steps"]:,}', f'{summary["tokens"]:,}', f'{summary["trainable"]:,}',
                 _time(summary['seconds']), '–' if loss is None else f'{loss:.4f}')
        results = [(name, *(_value(result.get(key), result.get('unit')) for key in ('chance', 'before', 'after')))
                   for name, result in summary['results'].items()] or [('–',) * 4]
        rows += [((*costs, *result) if number == 0 else (*('',) * len(costs), *result))
                 for number, result in enumerate(results)]
    return rows


def write_recipe_report(path: Path, summaries: dict[str, dict]) -> Path:
    """Write the page and return its path.

    Args:
        path: In the folder of the run.
        summaries: Stage -> its summary (train/summary.py); the stage's log is read from its folder.
    """
    page = Page('The recipe, stage by stage')
    page.text('Each stage starts from the one before. Held-out numbers are taken before its first and after its last '
              'step, on samples that are not in its training data.')
    page.table(HEADER, stage_rows(summaries.values()), bold=HEADER.index('after'))
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
