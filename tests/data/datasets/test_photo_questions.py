import hashlib
import importlib.util
import pickle
import sys

import numpy as np
import pytest
from PIL import Image

from qvlkit.data.datasets.photo_questions import (
    KEPT_SIDE,
    PHOTOS,
    QUESTIONS,
    PhotoQuestions,
    kept_size,
    load_photo,
    photo_folder,
)
from qvlkit.registry import DATASETS

HAS_PHOTOS = pytest.mark.skipif(importlib.util.find_spec('skimage') is None, reason='scikit-image is not installed')


def picture_of(sample):
    return sample.turns[0].content[0].source.draw()


def picture_hash(sample):
    return hashlib.sha256(picture_of(sample).tobytes()).hexdigest()


@HAS_PHOTOS
def test_samples_are_fixed_and_splits_are_disjoint():
    train, held_out = DATASETS.build({'type': 'PhotoQuestions', 'size': 120}), PhotoQuestions(120, split='held_out')
    first = [picture_hash(train[i]) for i in range(120)]
    assert first == [picture_hash(PhotoQuestions(120)[i]) for i in range(120)]
    assert not set(first) & {picture_hash(held_out[i]) for i in range(120)}
    assert {len(held_out[i].turns) for i in range(30)} == {2}
    assert max(len(train[i].turns) for i in range(30)) == 6


@HAS_PHOTOS
def test_colour_answers_fit_the_pixels():
    dataset = PhotoQuestions(200, split='held_out', tasks=('colour',))
    seen = set()
    for i in range(60):
        pixels = np.asarray(picture_of(dataset[i])).astype(int)
        coloured = (pixels.max(axis=2) - pixels.min(axis=2)).max() > 8
        assert dataset[i].extra['answer'] == ('yes' if coloured else 'no')
        seen.add(coloured)
    assert seen == {True, False}


@HAS_PHOTOS
def test_upside_down_is_what_it_says(tmp_path, monkeypatch):
    """On a photo that is dark above and bright below."""
    ramp = np.linspace(0, 255, 200).astype(np.uint8)[:, None, None].repeat(200, 1).repeat(3, 2)
    Image.fromarray(ramp).save(tmp_path / 'ramp.png')
    dataset = PhotoQuestions(40, split='held_out', tasks=('upright',))
    dataset.folder = tmp_path
    monkeypatch.setattr('qvlkit.data.datasets.photo_questions.PHOTOS', {'ramp.png': ('a ramp', ('upright',))})
    answers = []
    for i in range(40):
        rows = np.asarray(picture_of(dataset[i])).mean(axis=(1, 2))
        assert dataset[i].extra['answer'] == ('yes' if rows[0] > rows[-1] else 'no')
        answers.append(dataset[i].extra['answer'])
    assert set(answers) == {'yes', 'no'}


@HAS_PHOTOS
def test_pictures_are_small_and_questions_suit_the_photo():
    dataset = PhotoQuestions(300, longer_side=(60, 90))
    suited = dict(PHOTOS.values())
    for i in range(100):
        sample = dataset[i]
        assert 28 <= min(picture_of(sample).size) and max(picture_of(sample).size) <= 90
        talk = {turn.content[-1]: answer.content[0] for turn, answer in zip(sample.turns[::2], sample.turns[1::2])}
        assert (QUESTIONS['upright'] in talk) == ('upright' in suited[talk[QUESTIONS['subject']]])
        assert sample.extra['task'].startswith('photo ') and 0 < sample.extra['chance'] <= 0.5


@HAS_PHOTOS
def test_a_sample_is_decided_from_the_headers_alone(monkeypatch):
    monkeypatch.setattr('qvlkit.data.datasets.photo_questions.load_photo', lambda path: pytest.fail('decoded'))
    sources = [PhotoQuestions(40)[i].turns[0].content[0].source for i in range(40)]
    monkeypatch.undo()
    for source in sources:
        x1, y1, x2, y2 = source.box
        assert 0 <= x1 < x2 <= kept_size(source.path)[0] and 0 <= y1 < y2 <= kept_size(source.path)[1]
        assert pickle.loads(pickle.dumps(source)) == source and source.draw().size == source.size
    for file in PHOTOS:
        assert load_photo(photo_folder() / file).size == kept_size(photo_folder() / file)
        assert max(kept_size(photo_folder() / file)) <= KEPT_SIDE


@HAS_PHOTOS
def test_scikit_image_is_not_imported():
    PhotoQuestions(3)[0]
    assert 'pooch' not in sys.modules


def test_absent_scikit_image_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ValueError, match='scikit-image is not installed'):
        PhotoQuestions(3)


@pytest.mark.parametrize(('arguments', 'words'), [
    ({'split': 'heldout'}, "'held_out'"), ({'tasks': ('subjects',)}, "'subject'"), ({'tasks': ()}, 'tasks'),
    ({'longer_side': (20, 90)}, 'longer_side')])
def test_wrong_arguments_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        PhotoQuestions(10, **arguments)
