"""Pictures drawn on the fly, with questions whose answers are known because we drew them.

Four tasks, small enough for a model of a few million parameters and minutes of training, each with its chance level:

    name    one coloured shape: name it, 'red circle'                             1 / (colours * shapes)
    count   a scene of shapes: how many?                                         1 / max_objects
    locate  one coloured shape: its box                                           measured: the best constant box
    read    a picture with a printed word from a fixed list                      1 / len(words)

A fifth, `list`, names the two shapes of a scene. The question asks for an order, and the answer does not keep to
it: the order is random. It has no right answer to score, and serves preference pairs (picture_pairs.py), which keep
to the order.

A training sample can ask several questions about one picture, in one conversation; a held-out sample asks one.
Everything about sample i is drawn from hash(seed, split, i).

A sample is decided without a pixel: its picture is a description that is drawn when the sample is encoded.
"""
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from qvlkit.registry import DATASETS, near_names
from qvlkit.structures import Box, Media, Sample, Turn
from qvlkit.utils.seeded import seeded

COLOURS = {'red': (220, 40, 40), 'green': (40, 160, 60), 'blue': (40, 80, 220), 'yellow': (240, 205, 20),
           'purple': (150, 50, 180), 'black': (25, 25, 25)}
COLOUR_NAMES = tuple(COLOURS)
INKS = tuple(colour for colour in COLOURS if colour != 'yellow')  # of words: legible on a pale ground
SHAPES = ('circle', 'square', 'triangle', 'cross')
WORDS = ('ant', 'bag', 'bus', 'cup', 'dog', 'egg', 'fish', 'fox', 'hat', 'ice', 'jam', 'key', 'leaf', 'map', 'nut',
         'owl', 'pig', 'rain', 'sun', 'toy', 'van', 'web', 'yes', 'zoo')
TASKS = ('name', 'count', 'locate', 'read')
ALL_TASKS = (*TASKS, 'list')
SPLITS = ('train', 'held_out')
# Questions about one scene, in order: a name must not follow the question that tells it.
FOLLOWED_BY = {'name': ('name', 'locate'), 'count': ('count',), 'locate': ('locate',), 'list': ('list',)}
LIST_QUESTIONS = ('List the shapes from a to z.', 'List the shapes from z to a.')
WORD_PICTURES = ((84, 56),)  # (width, height) of a picture with a word

# Sides of shapes, as parts of the picture's shorter side, by the task that the scene is made for. To be named they are
# large; to be located smaller, or one constant box would be right too often; to be counted so small that six find room.
SIDES = {'name': (0.50, 0.70), 'locate': (0.34, 0.52), 'count': (0.19, 0.25), 'list': (0.30, 0.42)}
# Places and sides of a shape are multiples of so many pixels. Where its box is asked for that is half a patch: finer
# digits would be noise to a model that cannot see them yet, and drown what it could learn from the coarser ones.
STEPS = {'name': 7, 'locate': 7, 'count': 1, 'list': 1}
FONT_SIZES = (35, 37)
WORD_START = (4, 12)  # (x, y) of a word's left edge and of the top of its tall letters: lines begin at one margin
JITTER = 2  # pixels by which a word is off that place, at most
TRIES = 20  # random places at which a shape is tried before its scene starts anew
GAP = 3  # pixels between objects, and between an object and the border
SMOOTHING = 2  # pictures are drawn this much larger and averaged down, for smooth edges


@dataclass(frozen=True)
class Shape:
    """One drawn object; `box` is (x1, y1, x2, y2) in pixels of the picture."""
    colour: str
    shape: str
    box: tuple[int, int, int, int]

    @property
    def name(self) -> str:
        return f'{self.colour} {self.shape}'

    @property
    def side(self) -> int:
        return self.box[2] - self.box[0]


@dataclass(frozen=True)
class DrawnScene:
    """A picture of shapes that is not drawn yet. `stream` names its random stream: background and shades."""
    size: tuple[int, int]
    shapes: tuple[Shape, ...]
    stream: tuple[int | str, ...]

    def draw(self) -> Image.Image:
        return draw_scene(seeded(*self.stream), *self.size, self.shapes)


@dataclass(frozen=True)
class DrawnWord:
    """A picture of a word that is not drawn yet. `stream` names its random stream: place, letter size and colours."""
    size: tuple[int, int]
    word: str
    stream: tuple[int | str, ...]

    def draw(self) -> Image.Image:
        return draw_word(seeded(*self.stream), *self.size, self.word)


@DATASETS.register_module()
class PictureTasks:
    """Questions on drawn pictures.

    Args:
        size: Number of samples.
        split: 'train' (several questions in a sample) or 'held_out' (one); the two never draw the same stream.
        seed: Changes every picture.
        tasks: Which of 'name', 'count', 'locate', 'read', 'list' to ask; sample i is around tasks[i % len(tasks)].
        questions_per_picture: Most questions in a training sample; scenes that allow fewer ask fewer.
        picture_sizes: (width, height) of a scene in pixels, one drawn for each sample.
        max_objects: A scene to count has 1 to this many shapes, in turn; no two of them share a colour.
        name: Name of the dataset, `source` of its samples.

    The first answer of a sample is described by `extra`: task, answer (str or `Box` in source pixels) and chance
    (float, or None for 'locate', whose chance has to be measured).
    """

    def __init__(self, size: int, *, split: str = 'train', seed: int = 0, tasks: tuple[str, ...] = TASKS,
                 questions_per_picture: int = 2, picture_sizes=((84, 84),),
                 max_objects: int = 6, name: str = 'picture_tasks'):
        if split not in SPLITS:
            raise ValueError(f'PictureTasks.split: expected one of {SPLITS}, got {split!r}{near_names(split, SPLITS)}')
        for task in tasks:
            if task not in ALL_TASKS:
                raise ValueError(f'PictureTasks.tasks: no task is called {task!r}{near_names(task, ALL_TASKS)}; '
                                 f'expected some of {ALL_TASKS}')
        if not tasks:
            raise ValueError(f'PictureTasks.tasks: expected at least one of {ALL_TASKS}, got none')
        if not 1 <= max_objects <= len(COLOURS):
            raise ValueError(f'PictureTasks.max_objects: expected 1 to {len(COLOURS)}, since the shapes of a scene '
                             f'differ in colour, got {max_objects!r}')
        if questions_per_picture < 1:
            raise ValueError(f'PictureTasks.questions_per_picture: expected at least 1, got {questions_per_picture!r}')
        for width, height in picture_sizes:
            if min(width, height) < 80:
                raise ValueError(f'PictureTasks.picture_sizes: expected sides of 80 pixels or more, for the shapes '
                                 f'to fit, got {width} x {height}')
        self.size, self.split, self.seed, self.name = size, split, seed, name
        self.tasks, self.max_objects = tuple(tasks), max_objects
        self.picture_sizes = tuple(map(tuple, picture_sizes))
        self.questions_per_picture = questions_per_picture if split == 'train' else 1

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.size:
            raise IndexError(f'{self.name}: index {index} of {self.size}')
        rng = seeded(self.seed, self.split, index)
        task = self.tasks[index % len(self.tasks)]
        sizes = WORD_PICTURES if task == 'read' else self.picture_sizes
        size = sizes[rng.integers(len(sizes))]
        stream = (self.seed, self.split, index, 'drawing')
        if task == 'read':
            word = WORDS[rng.integers(len(WORDS))]
            picture = DrawnWord(size, word, stream)
            questions = [('read', 'Read the word.', word, 1 / len(WORDS))]
        else:
            count = {'count': 1 + index // len(self.tasks) % self.max_objects, 'list': 2}.get(task, 1)
            shapes = place_shapes(rng, *size, count, SIDES[task], STEPS[task])
            picture = DrawnScene(size, shapes, stream)
            questions = self._questions(rng, task, shapes)
        turns = []
        for _, question, answer, _ in questions:
            content = ['[{"bbox_2d": ', answer, '}]'] if isinstance(answer, Box) else [answer]
            turns += [Turn('user', [question]), Turn('assistant', content)]
        turns[0].content.insert(0, Media('image', picture))
        task, _, answer, chance = questions[0]
        return Sample(f'{self.name}/{self.split}[{index}]', turns, self.name,
                      {'task': task, 'answer': answer, 'chance': chance})

    def _questions(self, rng, task: str, shapes: tuple[Shape, ...]) -> list[tuple]:
        """The questions about a scene as (task, question, answer, chance), `task` first."""
        possible = {'name': [('name', 'Name the shape.', shapes[0].name, 1 / (len(COLOURS) * len(SHAPES)))],
                    'count': [('count', 'How many shapes?', str(len(shapes)), 1 / self.max_objects)],
                    'list': [('list', LIST_QUESTIONS[rng.integers(2)], ', '.join(
                        shapes[i].name for i in rng.permutation(len(shapes))), None)],
                    'locate': [('locate', f'Locate the {shapes[i].name}.', Box(tuple(map(float, shapes[i].box))), None)
                               for i in rng.permutation(len(shapes))]}
        # The sample's own task comes first, as in a held-out question; behind it only what it has not told already.
        questions = [question for other in FOLLOWED_BY[task] if other in self.tasks for question in possible[other]]
        return questions[:self.questions_per_picture]


def place_shapes(rng: np.random.Generator, width: int, height: int, count: int,
                 sides: tuple[float, float], step: int = 1) -> tuple[Shape, ...]:
    """`count` shapes of different colours that do not touch.

    Their sides are in a range of parts of the picture's shorter side; sides and places are multiples of `step` pixels.
    """
    low, high = (min(width, height) * part for part in sides)
    colours = rng.permutation(len(COLOURS))[:count].tolist()
    kinds = rng.integers(len(SHAPES), size=count).tolist()
    while True:
        shapes: list[Shape] = []
        parts, tries = rng.random(count).tolist(), rng.random((count, TRIES, 2)).tolist()
        for i in range(count):
            side = step * int((low + parts[i] * (high - low)) / step)
            box = _free_place(tries[i], width, height, side, step, shapes)
            if box is None:
                break
            shapes.append(Shape(COLOUR_NAMES[colours[i]], SHAPES[kinds[i]], box))
        else:
            return tuple(shapes)


def _free_place(tries, width: int, height: int, side: int, step: int,
                taken: list[Shape]) -> tuple[int, int, int, int] | None:
    """The first of the tried places, pairs in [0, 1), where a square of `side` pixels is clear of the others by GAP."""
    margin = max(GAP, step)
    columns, rows = ((length - side - 2 * margin) // step + 1 for length in (width, height))
    for across, down in tries:
        x, y = margin + step * int(across * columns), margin + step * int(down * rows)
        if all(x + side + GAP <= other.box[0] or other.box[2] + GAP <= x or
               y + side + GAP <= other.box[1] or other.box[3] + GAP <= y for other in taken):
            return x, y, x + side, y + side
    return None


def draw_scene(rng: np.random.Generator, width: int, height: int, shapes: Sequence[Shape]) -> Image.Image:
    """The shapes on a pale, softly uneven background: an RGB picture of (width, height)."""
    picture = _background(rng, width * SMOOTHING, height * SMOOTHING)
    canvas = ImageDraw.Draw(picture)
    for shape in shapes:
        x1, y1, x2, y2 = (SMOOTHING * value for value in shape.box)
        x2, y2, third = x2 - 1, y2 - 1, (x2 - x1) // 3  # the canvas includes the last pixel
        colour = _shade(rng, shape.colour)
        if shape.shape == 'circle':
            canvas.ellipse((x1, y1, x2, y2), fill=colour)
        elif shape.shape == 'square':
            canvas.rectangle((x1, y1, x2, y2), fill=colour)
        elif shape.shape == 'triangle':
            canvas.polygon(((x1, y2), ((x1 + x2) // 2, y1), (x2, y2)), fill=colour)
        else:
            canvas.rectangle((x1 + third, y1, x2 - third, y2), fill=colour)
            canvas.rectangle((x1, y1 + third, x2, y2 - third), fill=colour)
    return picture.reduce(SMOOTHING)


def draw_word(rng: np.random.Generator, width: int, height: int, word: str) -> Image.Image:
    """The word in one colour at the left margin, whole: an RGB picture of (width, height)."""
    picture = _background(rng, width, height)
    font = _font(int(rng.integers(FONT_SIZES[0], FONT_SIZES[1] + 1)))
    left, _, right, _ = font.getbbox(word, stroke_width=1)
    top = font.getbbox('l', stroke_width=1)[1]  # all words stand on one line
    x, y = (start + int(off) for start, off in zip(WORD_START, rng.integers(-JITTER, JITTER + 1, size=2)))
    x = min(x, width - 1 - (right - left))
    colour = _shade(rng, INKS[rng.integers(len(INKS))], darker=0.4)
    ImageDraw.Draw(picture).text((x - left, y - top), word, fill=colour, font=font, stroke_width=1)
    return picture


def _background(rng, width: int, height: int) -> Image.Image:
    base = rng.integers(205, 246, size=3)
    cells = np.clip(base + rng.integers(-9, 10, size=(4, 4, 3)), 0, 255).astype(np.uint8)
    return Image.fromarray(cells).resize((width, height), Image.Resampling.BILINEAR)


def _shade(rng, colour: str, darker: float = 1.0) -> tuple[int, ...]:
    """The colour, a little off."""
    return tuple(int(np.clip(darker * value + offset, 0, 255))
                 for value, offset in zip(COLOURS[colour], rng.integers(-15, 16, size=3)))


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
