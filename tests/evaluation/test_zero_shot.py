"""Zero-shot numbers by hand: towers that know, towers that mix two classes up, chance, and refusals."""
import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from qvlkit.data.image_text import EncodedPair
from qvlkit.evaluation.zero_shot import ZeroShotEvaluator
from qvlkit.structures import Box, Media, Sample, Turn

CLASSES = ['cat', 'dog', 'owl', 'pig', 'ant', 'fox', 'bee', 'cow']


class Letters:
    """Stands for the pair processor: a caption's tokens are the numbers of its letters."""

    def caption(self, text):
        return EncodedPair(text, torch.tensor([ord(letter) for letter in text]), None, (1, 2, 2), 1)

    def encode(self, sample):
        return EncodedPair(sample.id, self.caption(self.caption_text(sample)).token_ids, None, (1, 2, 2), 1)

    def caption_text(self, sample):
        return sample.turns[0].content[1]


def samples(labels, key='class', caption='a {}'):
    return [Sample(f's[{index}]', [Turn('document', [Media('image', None), caption.format(label)])], extra={key: label})
            for index, label in enumerate(labels)]


def text_of(pair):
    return ''.join(chr(number) for number in pair.token_ids.tolist())


def by_class(pairs, swap=()):
    """A vector for the class that a caption names; those in `swap` take each other's."""
    names = [next(number for number, name in enumerate(CLASSES) if name in text_of(pair)) for pair in pairs]
    names = [dict(zip(swap, swap[::-1])).get(number, number) for number in names]
    return F.one_hot(torch.tensor(names), len(CLASSES)).float()


def test_towers_that_know_find_everything():
    scores = ZeroShotEvaluator(samples([*CLASSES, *CLASSES]), Letters(), batch_size=3)(by_class, by_class)
    assert {name: score.share for name, score in scores.items()} == dict.fromkeys(
        ['zero-shot accuracy', 'retrieval recall@1', 'caption to picture recall@1', 'retrieval recall@5',
         'caption to picture recall@5'], 1.0)
    assert (scores['zero-shot accuracy'].count, scores['caption to picture recall@1'].count) == (16, 8)
    low, high = scores['zero-shot accuracy'].low, scores['zero-shot accuracy'].high
    assert 0.7 < low < high == pytest.approx(1)


def test_two_classes_mixed_up_are_counted_as_wrong():
    scores = ZeroShotEvaluator(samples([*CLASSES, 'cat']), Letters())(lambda pairs: by_class(pairs, (0, 1)), by_class)
    assert scores['zero-shot accuracy'].share == scores['retrieval recall@1'].share == 6 / 9  # cat, cat, dog
    assert scores['caption to picture recall@1'].share == 6 / 8


def test_a_caption_finds_any_of_its_pictures_and_five_are_looked_at():
    """Eight captions on a ring; each picture's own caption is the fourth nearest to it."""
    def images(pairs):
        own = by_class(pairs).argmax(1)
        return torch.stack([torch.roll(torch.tensor([1, 0.9, 0.8, 0.7, 0.1, 0, 0, 0]), int(number) - 3)
                            for number in own])
    scores = ZeroShotEvaluator(samples(CLASSES), Letters())(images, by_class)
    assert scores['retrieval recall@1'].share == 0 and scores['retrieval recall@5'].share == 1
    assert scores['caption to picture recall@1'].share == 0 and scores['caption to picture recall@5'].share == 1


def test_chance_is_what_draws_give():
    labels = ['cat'] * 3 + ['dog', 'owl', 'pig', 'ant', 'fox']
    scores = ZeroShotEvaluator(samples(labels), Letters())(by_class, by_class)
    assert scores['zero-shot accuracy'].chance == 3 / 8 and "'cat'" in scores['zero-shot accuracy'].chance_by
    assert scores['retrieval recall@1'].chance == pytest.approx(1 / 6)
    assert scores['retrieval recall@5'].chance == pytest.approx(5 / 6)
    draws = list(itertools.combinations(labels, 5))
    expected = sum(sum(name in draw for draw in draws) / math.comb(8, 5) for name in set(labels)) / 6
    assert scores['caption to picture recall@5'].chance == pytest.approx(expected)
    assert scores['caption to picture recall@1'].chance == pytest.approx((3 / 8 + 5 / 8) / 6)


def test_templates_are_averaged_and_classes_come_from_the_answer_too():
    asked = []

    def texts(pairs):
        asked.extend(map(text_of, pairs))
        return by_class(pairs)
    evaluator = ZeroShotEvaluator(samples(CLASSES[:3], 'answer'), Letters(), templates=['a {}', 'one {} here'])
    assert evaluator(by_class, texts)['zero-shot accuracy'].share == 1
    assert asked[3:] == [template.format(name) for name in CLASSES[:3] for template in ('a {}', 'one {} here')]
    wrong = ZeroShotEvaluator(samples(CLASSES[:3]), Letters(), templates=['cat or {}'])
    assert wrong(by_class, by_class)['zero-shot accuracy'].share == pytest.approx(1 / 3)  # all named 'cat' first


def test_without_classes_only_retrieval_is_measured():
    plain = [Sample('a', samples(['cat'])[0].turns, extra={'answer': Box((0, 0, 1, 1))})]
    assert 'zero-shot accuracy' not in ZeroShotEvaluator(plain, Letters())(by_class, by_class)


@pytest.mark.parametrize('dataset, settings, words', [
    ([], {}, ['none']), ([*samples(['cat']), Sample('x', samples(['dog'])[0].turns)], {}, ['x:', '1 of 2']),
    (samples(['cat']), dict(templates=['a cat']), ['zero_shot.templates', "'a cat'"]),
    (samples(['cat']), dict(templates=[]), ['zero_shot.templates'])])
def test_refusals(dataset, settings, words):
    with pytest.raises(ValueError) as error:
        ZeroShotEvaluator(dataset, Letters(), **settings)
    assert all(word in str(error.value) for word in words), error.value
