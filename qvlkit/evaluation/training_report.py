"""The page at the end of a training run: what was learned, task by task, beside chance and the untrained model."""
from collections.abc import Sequence
from pathlib import Path

from qvlkit.evaluation.evaluator import Evaluation, Example
from qvlkit.report.page import Page, Picture

HEADER = ('task', 'chance', 'untrained', 'trained', '95 % interval', 'questions')
LONGEST_ANSWER = 80  # characters of an answer that a caption shows


def comparison_rows(before: Evaluation | None, after: Evaluation) -> list[tuple[str, ...]]:
    """Rows under `HEADER`, one for each task: for a page and for a terminal."""
    return [(task, _percent(result.chance), _percent(before.tasks[task].accuracy) if before else '–',
             _percent(result.accuracy), f'{100 * result.low:.0f} – {100 * result.high:.0f} %', str(result.count))
            for task, result in after.tasks.items()]


def write_training_report(path: str | Path, *, title: str, history: Sequence[dict], before: Evaluation | None,
                          after: Evaluation, summary: dict[str, object] | None = None) -> Path:
    """Write the page and return its path.

    Args:
        history: One dict for each logged step: 'step', 'loss' and perhaps 'lr', 'grad_norm', 'tokens_per_second'.
        before: Results of the untrained model, if it was asked.
        after: Results of the trained model on the same questions.
        summary: What to list of the run: model size, steps, seconds, machine.
    """
    page = Page(title)
    page.text('Accuracy on held-out questions: pictures and crops that are not in the training data.')
    page.table(HEADER, comparison_rows(before, after), bold=HEADER.index('trained'))
    page.text('Chance is what an answer that ignores the picture would score: ' + '; '.join(
        f'{task}: {result.chance_by}' for task, result in after.tasks.items()) + '.', soft=True)
    page.bars('Held-out accuracy', {task: _levels(task, before, after) for task in after.tasks})
    _plot_history(page, history)
    if summary:
        page.heading('The run')
        page.table(('', ''), summary.items())
    page.heading('What it answers')
    page.text('The first held-out questions of each task, not chosen. Boxes: green as expected, red as answered.',
              soft=True)
    untrained = {example.sample_id: example for example in before.examples} if before else {}
    for task in after.tasks:
        page.heading(task.capitalize())
        page.pictures([_picture(example, untrained.get(example.sample_id)) for example in after.examples
                       if example.task == task and example.picture is not None])
    return page.write(path)


def _levels(task: str, before: Evaluation | None, after: Evaluation) -> dict:
    result = after.tasks[task]
    untrained = {'untrained': before.tasks[task].accuracy} if before else {}
    return {'chance': result.chance, **untrained, 'trained': (result.accuracy, result.low, result.high)}


def _plot_history(page: Page, history: Sequence[dict]) -> None:
    """The loss and, where logged, the learning rate, over steps."""
    rows = [row for row in history if 'loss' in row]
    if not rows:
        return
    steps, losses = [row['step'] for row in rows], [float(row['loss']) for row in rows]
    page.plot('Loss', {'_each logged step': (steps, losses), 'mean of neighbours': (steps, smooth(losses))}, 'step',
              'loss for each target token', log=min(losses) > 0)
    rows = [row for row in history if 'lr' in row]
    if rows:
        page.plot('Learning rate', {'lr': ([row['step'] for row in rows], [float(row['lr']) for row in rows])}, 'step')


def smooth(values: Sequence[float]) -> list[float]:
    """Each value as the mean of its neighbours, over a tenth of the run."""
    half = len(values) // 20
    windows = [values[max(0, i - half):i + half + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def _picture(example: Example, untrained: Example | None) -> Picture:
    shown = _short(example.answer)
    if example.answer_boxes:
        shown = str([round(value) for value in example.answer_boxes[0]])
    caption = [example.question, f'expected: {example.expected}', f'answered: {shown}']
    if untrained is not None:
        caption.append(f'untrained: {_short(untrained.answer, 24)}')
    boxes = [(box, colour, '') for colour, found in (('green', example.expected_boxes), ('red', example.answer_boxes))
             for box in found]
    return Picture(example.picture, '\n'.join(caption), boxes, example.score >= 1.0)


def _short(text: str, longest: int = LONGEST_ANSWER) -> str:
    text = ' '.join(text.split())
    return (text[:longest - 1] + '…' if len(text) > longest else text) or '(nothing)'


def _percent(share: float) -> str:
    return f'{100 * share:.1f} %'
