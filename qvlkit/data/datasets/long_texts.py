"""Long texts with a few facts at their start and questions about them at their end.

A sample begins with facts, each of which gives one attribute a value ('The password is gold.'), or with a picture of
one shape; then come sentences that say nothing of them; then questions. Nobody can answer who cannot look back over
everything between. Held-out samples ask one question, and `evidence=False` leaves out the facts and the picture: what a
model scores then is guessed.
"""
from typing import Any

import numpy as np

from qvlkit.data.datasets.picture_tasks import COLOUR_NAMES, SHAPES, SIDES, SPLITS, STEPS, DrawnScene, place_shapes
from qvlkit.registry import DATASETS, near_names
from qvlkit.structures import Media, Sample, Turn
from qvlkit.utils.seeded import seeded

# Attribute -> its values. No two attributes share a value, and no value stands in a sentence between.
FACTS = {'password': ('gold', 'iron', 'silk', 'salt', 'wood', 'glass', 'stone', 'paper'),
         'captain': ('Anna', 'Ben', 'Clara', 'David', 'Emma', 'Felix', 'Greta', 'Hugo'),
         'city': ('Paris', 'Rome', 'Oslo', 'Cairo', 'Lima', 'Delhi', 'Tokyo', 'Quito'),
         'month': ('March', 'April', 'May', 'June', 'July', 'August', 'October', 'December')}
SUBJECTS = ('the dog', 'the fox', 'the owl', 'the pig', 'the ant', 'a boy', 'a girl', 'the cook', 'the king', 'my aunt')
VERBS = ('sees', 'likes', 'takes', 'finds', 'keeps', 'wants', 'sells', 'draws')
OBJECTS = ('a cup', 'the hat', 'some jam', 'a key', 'the map', 'a nut', 'the sun', 'a toy', 'the van', 'some tea')
SHAPE_QUESTION = 'Name the shape.'


@DATASETS.register_module()
class LongTexts:
    """Facts, sentences between, questions.

    Args:
        size: Number of samples.
        sentences: (least, most) sentences between facts and questions, about six tokens each.
        split: 'train' (every fact is asked for, in random order) or 'held_out' (one).
        seed: Changes everything.
        pictures: Share of the samples whose evidence is a picture of one shape; the others have facts.
        evidence: False leaves out facts and pictures, not the questions.
        name: Name of the dataset, `source` of its samples.

    `extra` describes the answer to the last question: task ('recall' or 'recall picture', with ' without evidence'
    where there is none), answer and chance.
    """

    def __init__(self, size: int, *, sentences: tuple[int, int] = (10, 20), split: str = 'train', seed: int = 0,
                 pictures: float = 0.25, evidence: bool = True, name: str = 'long_texts'):
        if split not in SPLITS:
            raise ValueError(f'LongTexts.split: expected one of {SPLITS}, got {split!r}{near_names(split, SPLITS)}')
        least, most = sentences
        if not 0 <= least <= most:
            raise ValueError(f'LongTexts.sentences: expected 0 <= least <= most, got {sentences!r}')
        if not 0 <= pictures <= 1:
            raise ValueError(f'LongTexts.pictures: expected a share from 0 to 1, got {pictures!r}')
        self.size, self.sentences, self.split, self.seed = size, (least, most), split, seed
        self.pictures, self.evidence, self.name = pictures, evidence, name

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.size:
            raise IndexError(f'{self.name}: index {index} of {self.size}')
        rng = seeded(self.seed, self.split, index, 'long text')
        with_picture = (index + 1) * self.pictures % 1 < self.pictures  # evenly spread
        evidence, questions = self._picture(rng, index) if with_picture else self._facts(rng)
        count = int(rng.integers(self.sentences[0], self.sentences[1] + 1))
        between = ' '.join(map(_sentence, rng.integers(10, size=(count, 3)).tolist()))
        turns = []
        for question, answer in questions:
            turns += [Turn('user', [question]), Turn('assistant', [answer])]
        turns[0].content[:0] = [*(evidence if self.evidence else []), between + '\n']
        values = len(COLOUR_NAMES) * len(SHAPES) if with_picture else len(FACTS['password'])
        task = ('recall picture' if with_picture else 'recall') + ('' if self.evidence else ' without evidence')
        return Sample(f'{self.name}/{self.split}[{index}]', turns, self.name,
                      {'task': task, 'answer': questions[-1][1], 'chance': 1 / values})

    def _facts(self, rng: np.random.Generator) -> tuple[list, list[tuple[str, str]]]:
        values = {key: options[rng.integers(len(options))] for key, options in FACTS.items()}
        keys = [list(FACTS)[place] for place in rng.permutation(len(FACTS))]
        text = ' '.join(f'The {key} is {values[key]}.' for key in keys) + ' '
        asked = [list(FACTS)[place] for place in rng.permutation(len(FACTS))]
        if self.split == 'held_out':
            asked = asked[:1]
        return [text], [(f'What is the {key}?', values[key]) for key in asked]

    def _picture(self, rng: np.random.Generator, index: int) -> tuple[list, list[tuple[str, str]]]:
        side = 84
        shapes = place_shapes(rng, side, side, 1, SIDES['name'], STEPS['name'])
        stream: tuple[Any, ...] = (self.seed, self.split, index, 'drawing of a long text')
        return [Media('image', DrawnScene((side, side), shapes, stream))], [(SHAPE_QUESTION, shapes[0].name)]


def _sentence(numbers: list[int]) -> str:
    subject, verb, thing = numbers
    text = f'{SUBJECTS[subject]} {VERBS[verb % len(VERBS)]} {OBJECTS[thing]}.'
    return text[0].upper() + text[1:]
