"""Ask a model held-out questions and score its answers, task by task, beside chance.

The model is handed in as a function from encoded prompts to texts, so that nothing here knows how answers are made.
"""
import dataclasses
from collections.abc import Callable
from typing import Any

from PIL import Image

from qvlkit.data.formats.grounding import parse_boxes
from qvlkit.data.transforms.load_media import load_image
from qvlkit.data.transforms.regions import to_resized
from qvlkit.evaluation.chance import constant_answer_chance, constant_box_chance
from qvlkit.evaluation.metrics import BoxIoU, default_metric, wilson_interval
from qvlkit.registry import METRICS, near_names
from qvlkit.structures import Box, EncodedSample, Media, Sample

Answer = Callable[[list[EncodedSample]], list[str]]


@dataclasses.dataclass
class TaskResult:
    """Accuracy of one task in [0, 1], its 95 % interval (low, high), and chance with the way it was found."""
    task: str
    accuracy: float
    count: int
    low: float
    high: float
    chance: float
    chance_by: str


@dataclasses.dataclass
class Example:
    """One question with its picture at the size that the model sees; boxes are in pixels of that picture."""
    sample_id: str
    task: str
    picture: Image.Image | None
    question: str
    expected: str
    answer: str
    score: float
    expected_boxes: list[tuple]
    answer_boxes: list[tuple]


@dataclasses.dataclass
class Evaluation:
    """Results by task, in the order of first appearance, and the first examples of each task."""
    tasks: dict[str, TaskResult]
    examples: list[Example]

    def to_dict(self) -> dict:
        """The results as plain JSON values, without pictures."""
        return {'tasks': {task: dataclasses.asdict(result) for task, result in self.tasks.items()},
                'examples': [{field.name: getattr(example, field.name) for field in dataclasses.fields(example)
                              if field.name != 'picture'} for example in self.examples]}


@dataclasses.dataclass
class _Question:
    sample: Sample
    prompt: EncodedSample
    metric: Any
    sizes: list  # (source size, resized size) of each medium
    picture: Image.Image | None


class Evaluator:
    """Held-out questions, prepared once and asked as often as wanted.

    Args:
        dataset: Samples whose last turn is the answer, described by extra['task'] and extra['answer'].
        processor: Encodes the prompts.
        metrics: Task -> config of its metric or a built one. Other tasks: `BoxIoU` for a box, else `ExactMatch`.
        reference: Training samples, from which the best constant box is chosen; without it, from `dataset` itself.
        batch_size: Most prompts in one call of the model.
        keep: Examples to keep of each task: the first ones, not chosen.

    Raises:
        ValueError: The dataset is empty, a sample lacks what it needs, or `metrics` names an unknown task.
    """

    def __init__(self, dataset, processor, *, metrics: dict[str, Any] | None = None, reference=None,
                 batch_size: int = 64, keep: int = 10):
        if len(dataset) == 0:
            raise ValueError('evaluation: expected held-out samples, but the dataset has none')
        self.batch_size, self.keep = batch_size, keep
        given = {task: METRICS.build(metric, config_key=f'metrics.{task}') if isinstance(metric, dict) else metric
                 for task, metric in (metrics or {}).items()}
        self.questions = [_prepare(dataset[i], processor, given) for i in range(len(dataset))]
        self.by_task: dict[str, list[int]] = {}
        for i, question in enumerate(self.questions):
            self.by_task.setdefault(question.sample.extra['task'], []).append(i)
        for task in given:
            if task not in self.by_task:
                raise ValueError(f'metrics.{task}: no held-out sample has this task'
                                 f'{near_names(task, list(self.by_task))}; tasks: {", ".join(self.by_task)}')
        self.chances = {task: self._chance(rows, reference) for task, rows in self.by_task.items()}

    def __call__(self, answer: Answer) -> Evaluation:
        """Ask every question; `answer` gives one text for each of at most `batch_size` prompts."""
        answers: list[str] = []
        for start in range(0, len(self.questions), self.batch_size):
            prompts = [question.prompt for question in self.questions[start:start + self.batch_size]]
            texts = answer(prompts)
            if len(texts) != len(prompts):
                raise ValueError(f'evaluation: {len(prompts)} prompts were asked and {len(texts)} answers came back')
            answers += texts
        scores = [question.metric.score(question.sample, text, question.sizes)
                  for question, text in zip(self.questions, answers)]
        tasks, examples = {}, []
        for task, rows in self.by_task.items():
            right = sum(scores[i] for i in rows)
            tasks[task] = TaskResult(task, right / len(rows), len(rows), *wilson_interval(right, len(rows)),
                                     *self.chances[task])
            examples += [_example(self.questions[i], answers[i], scores[i]) for i in rows[:self.keep]]
        return Evaluation(tasks, examples)

    def _chance(self, rows: list[int], reference) -> tuple[float, str]:
        """Chance of the task that these questions belong to, and how it was found."""
        questions = [self.questions[i] for i in rows]
        expected = [question.sample.extra['answer'] for question in questions]
        if not isinstance(expected[0], Box):
            return constant_answer_chance([str(item) for item in expected], questions[0].sample.extra.get('chance'))
        fractions = [_fraction(box, question.sizes[box.media_index][0])
                     for box, question in zip(expected, questions)]
        known = _reference_boxes(reference) if reference is not None else []
        threshold = questions[0].metric.threshold if isinstance(questions[0].metric, BoxIoU) else 0.5
        return constant_box_chance(fractions, known or fractions, threshold)


def _prepare(sample: Sample, processor, metrics: dict[str, Any]) -> _Question:
    """Encode a sample without its answer, and note the sizes of its pictures."""
    for key in ('task', 'answer'):
        if key not in sample.extra:
            raise ValueError(f'{sample.id}: a held-out sample needs extra[{key!r}], but it has '
                             f'{sorted(sample.extra) or "nothing"}')
    if not sample.turns or sample.turns[-1].role != 'assistant':
        raise ValueError(f"{sample.id}: expected a held-out sample to end with the assistant's answer")
    asked = dataclasses.replace(sample, turns=sample.turns[:-1])
    prompt = processor.encode(asked, generation_prompt=True)
    media = [item for turn in asked.turns for item in turn.content if isinstance(item, Media)]
    sizes, picture = [], None
    for medium, (_, rows, columns) in zip(media, prompt.grids):
        first = medium.source if medium.kind == 'image' else medium.source[0]
        image = load_image(first)
        resized = columns * processor.geometry.patch_size, rows * processor.geometry.patch_size
        sizes.append((image.size, resized))
        picture = picture or image.convert('RGB').resize(resized, Image.Resampling.BICUBIC)
    return _Question(sample, prompt, metrics.get(sample.extra['task']) or default_metric(sample), sizes, picture)


def _example(question: _Question, answer: str, score: float) -> Example:
    sample = question.sample
    expected = sample.extra['answer']
    is_box = isinstance(expected, Box)
    boxes = [to_resized(expected, question.sizes).coordinates] if is_box else []
    asked = ' '.join(item for turn in sample.turns[-2:-1] for item in turn.content if isinstance(item, str))
    text = str([round(value) for value in boxes[0]]) if is_box else str(expected)
    return Example(sample.id, sample.extra['task'], question.picture, asked, text, answer, score, boxes,
                   [tuple(box.coordinates) for box in parse_boxes(answer)[:1]] if is_box else [])


def _fraction(box: Box, size: tuple[int, int]) -> tuple[float, ...]:
    return tuple(value / size[axis % 2] for axis, value in enumerate(box.coordinates))


def _reference_boxes(reference, most: int = 400) -> list[tuple[float, ...]]:
    """Boxes that the assistant gives in the first `most` training samples, as parts of width and height."""
    boxes = []
    for i in range(min(most, len(reference))):
        sample = reference[i]
        media = [item for turn in sample.turns for item in turn.content if isinstance(item, Media)]
        answers = [item for turn in sample.turns if turn.role == 'assistant' for item in turn.content
                   if isinstance(item, Box)]
        if answers:
            sizes = [load_image(medium.source if medium.kind == 'image' else medium.source[0]).size
                     for medium in media]
            boxes += [_fraction(box, sizes[box.media_index]) for box in answers]
    return boxes
