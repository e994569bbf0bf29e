"""Questions on the real photos that scikit-image carries in its package: nothing is downloaded.

Each sample is a random crop of one photo at its own aspect ratio, resized to a small picture. Three tasks:

    subject   what is in the photo?                             1 / number of photos
    upright   is the photo upside down? (half of them are)      1 / 2
    colour    is the photo in colour?  (half of them are)       1 / 2

The held-out split draws other crops of the same photos: it measures whether the model reads crops that it has not
seen, not whether it knows new scenes.
"""
import importlib.util
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
        picture = self._crop(rng, load_photo(self.folder / file))
        turned, grey = (rng.random(2) < 0.5).tolist()
        if turned and 'upright' in possible:
            picture = picture.transpose(Image.Transpose.ROTATE_180)
        if grey and 'colour' in possible:
            picture = picture.convert('L').convert('RGB')
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

    def _crop(self, rng: np.random.Generator, photo: Image.Image) -> Image.Image:
        """A random part of the photo whose longer side has between the least and the most pixels."""
        width, height = (int(side * part) for side, part in zip(photo.size, rng.uniform(*CROP, size=2)))
        x, y = int(rng.integers(photo.width - width + 1)), int(rng.integers(photo.height - height + 1))
        scale = rng.integers(self.longer_side[0], self.longer_side[1] + 1) / max(width, height)
        size = max(28, round(width * scale)), max(28, round(height * scale))
        return photo.resize(size, Image.Resampling.BILINEAR, box=(x, y, x + width, y + height), reducing_gap=2.0)


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
def load_photo(path: Path) -> Image.Image:
    """The photo in RGB, its longer side at most KEPT_SIDE pixels."""
    with Image.open(path) as photo:
        photo = photo.convert('RGB')
    photo.thumbnail((KEPT_SIDE, KEPT_SIDE), Image.Resampling.BILINEAR)
    return photo
