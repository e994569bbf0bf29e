"""Questions on the real photos that scikit-image carries in its package: nothing is downloaded.

Each sample is a random crop of one photo at its own aspect ratio, resized to a small picture. Three tasks:

    subject   what is in the photo?                             1 / number of photos
    upright   is the photo upside down? (half of them are)      1 / 2
    colour    is the photo in colour?  (half of them are)       1 / 2

The held-out split draws other crops of the same photos: it measures whether the model reads crops that it has not
seen, not whether it knows new scenes.

A sample is decided from the size in the photo's header: its crop is a description that is cut when it is encoded.
"""
import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from qvlkit.registry import DATASETS, near_names
from qvlkit.structures import Media, Sample, Turn
from qvlkit.utils.seeded import seeded

# File: what it shows, and which other questions suit every crop of it: 'upright' where an upper side can be told,
# 'colour' where the photo has colours to take away.
PHOTOS = {'astronaut.png': ('an astronaut', ('upright', 'colour')), 'chelsea.png': ('a cat', ('upright', 'colour')),
          'coffee.png': ('coffee', ('upright', 'colour')), 'rocket.jpg': ('a rocket', ('upright', 'colour')),
          'motorcycle_left.png': ('a motorcycle', ('upright', 'colour')), 'camera.png': ('a cameraman', ('upright',)),
          'horse.png': ('a horse', ('upright',)), 'page.png': ('a page', ('upright',)),
          'hubble_deep_field.jpg': ('galaxies', ('colour',)), 'ihc.png': ('tissue', ('colour',)),
          'retina.jpg': ('an eye', ('colour',)), 'coins.png': ('coins', ()), 'moon.png': ('the moon', ()),
          'brick.png': ('bricks', ()), 'grass.png': ('grass', ()), 'gravel.png': ('gravel', ())}
QUESTIONS = {'subject': 'What is in the photo?', 'upright': 'Is the photo upside down?',
             'colour': 'Is the photo in colour?'}
SPLITS = ('train', 'held_out')
KEPT_SIDE = 384  # photos are kept in memory with the longer side shrunk to this many pixels
CROP = (0.6, 0.95)  # sides of a crop, as a part of the photo's


@dataclass(frozen=True)
class PhotoCrop:
    """A part of a photo that is not cut yet: `box` is (x1, y1, x2, y2) in pixels of the kept photo."""
    path: Path
    box: tuple[int, int, int, int]
    size: tuple[int, int]
    upside_down: bool = False
    grey: bool = False

    def draw(self) -> Image.Image:
        picture = load_photo(self.path).resize(self.size, Image.Resampling.BILINEAR, box=self.box, reducing_gap=2.0)
        if self.upside_down:
            picture = picture.transpose(Image.Transpose.ROTATE_180)
        return picture.convert('L').convert('RGB') if self.grey else picture


@DATASETS.register_module()
class PhotoQuestions:
    """Questions on crops of packaged photos; needs scikit-image to be installed.

    Args:
        size: Number of samples.
        split: 'train' (all questions that suit the photo, in one conversation) or 'held_out' (one question).
        seed: Changes every crop.
        tasks: Which of 'subject', 'upright' and 'colour' to ask. Sample i is built around tasks[i % len(tasks)].
        longer_side: (least, most) pixels of the crop's longer side after resizing.
        name: Name of the dataset, `source` of its samples.

    The last answer of a sample is described by `extra`: task ('photo subject' and so on), answer and chance.

    Raises:
        ValueError: scikit-image is not installed, or an argument is not one of the expected values.
    """

    def __init__(self, size: int, *, split: str = 'train', seed: int = 0,
                 tasks: tuple[str, ...] = tuple(QUESTIONS), longer_side: tuple[int, int] = (84, 140),
                 name: str = 'photo_questions'):
        if split not in SPLITS:
            raise ValueError(f'PhotoQuestions.split: expected one of {SPLITS}, got {split!r}'
                             f'{near_names(split, SPLITS)}')
        for task in tasks:
            if task not in QUESTIONS:
                raise ValueError(f'PhotoQuestions.tasks: no task is called {task!r}{near_names(task, list(QUESTIONS))};'
                                 f' expected some of {tuple(QUESTIONS)}')
        if not tasks:
            raise ValueError(f'PhotoQuestions.tasks: expected at least one of {tuple(QUESTIONS)}, got none')
        least, most = longer_side
        if not 28 <= least <= most <= KEPT_SIDE:
            raise ValueError(f'PhotoQuestions.longer_side: expected 28 <= least <= most <= {KEPT_SIDE} pixels, '
                             f'got {longer_side!r}')
        self.size, self.split, self.seed, self.name = size, split, seed, name
        self.tasks, self.longer_side = tuple(tasks), (least, most)
        self.folder = photo_folder()

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.size:
            raise IndexError(f'{self.name}: index {index} of {self.size}')
        rng = seeded(self.seed, self.split, index, 'photo')
        task = self.tasks[index % len(self.tasks)]
        files = [file for file in PHOTOS if task in suitable_tasks(file)]
        file = files[rng.integers(len(files))]
        possible = [other for other in self.tasks if other in suitable_tasks(file)]
        box, size = self._crop(rng, *kept_size(self.folder / file))
        turned, grey = (rng.random(2) < 0.5).tolist()
        picture = PhotoCrop(self.folder / file, box, size, turned and 'upright' in possible,
                            grey and 'colour' in possible)
        answers = {'subject': (PHOTOS[file][0], 1 / len(PHOTOS)), 'upright': ('yes' if turned else 'no', 0.5),
                   'colour': ('no' if grey else 'yes', 0.5)}
        asked = [str(other) for other in rng.permutation(possible)] if self.split == 'train' else [task]
        turns = []
        for other in asked:
            turns += [Turn('user', [QUESTIONS[other]]), Turn('assistant', [answers[other][0]])]
        turns[0].content.insert(0, Media('image', picture))
        answer, chance = answers[asked[-1]]
        return Sample(f'{self.name}/{self.split}[{index}]', turns, self.name,
                      {'task': f'photo {asked[-1]}', 'answer': answer, 'chance': chance})

    def _crop(self, rng: np.random.Generator, width: int, height: int) -> tuple[tuple, tuple[int, int]]:
        """A random part of a photo of (width, height), and its size when its longer side is one of those asked for."""
        wide, high = (int(side * part) for side, part in zip((width, height), rng.uniform(*CROP, size=2)))
        x, y = int(rng.integers(width - wide + 1)), int(rng.integers(height - high + 1))
        scale = rng.integers(self.longer_side[0], self.longer_side[1] + 1) / max(wide, high)
        return (x, y, x + wide, y + high), (max(28, round(wide * scale)), max(28, round(high * scale)))


def suitable_tasks(file: str) -> tuple[str, ...]:
    """The tasks whose question has an answer on every crop of this photo."""
    return ('subject', *PHOTOS[file][1])


def photo_folder() -> Path:
    """Where the installed scikit-image keeps its pictures; it is found, not imported, so nothing is fetched."""
    package = importlib.util.find_spec('skimage')
    if package is None:
        raise ValueError('PhotoQuestions: scikit-image is not installed, and its packaged photos are the pictures of '
                         'this dataset: pip install scikit-image')
    folder = Path(package.submodule_search_locations[0]) / 'data'
    missing = [file for file in PHOTOS if not (folder / file).is_file()]
    if missing:
        raise ValueError(f'PhotoQuestions: this scikit-image does not carry {", ".join(missing)} in {folder}; expected '
                         f'a wheel of version 0.20 or newer')
    return folder


@cache
def kept_size(path: Path) -> tuple[int, int]:
    """(width, height) at which the photo is kept, from its header: the longer side at most KEPT_SIDE pixels."""
    with Image.open(path) as photo:
        scale = min(1.0, KEPT_SIDE / max(photo.size))
        return max(1, round(photo.width * scale)), max(1, round(photo.height * scale))


@cache
def load_photo(path: Path) -> Image.Image:
    """The photo in RGB, at its kept size."""
    with Image.open(path) as photo:
        return photo.convert('RGB').resize(kept_size(path), Image.Resampling.BILINEAR, reducing_gap=2.0)
