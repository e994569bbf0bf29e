import hashlib
import pickle
import time

import numpy as np
import pytest
from PIL import Image

from qvlkit.data.datasets.picture_tasks import COLOURS, SHAPES, STEPS, WORDS, PictureTasks, draw_scene, place_shapes
from qvlkit.evaluation.chance import constant_box_chance
from qvlkit.registry import DATASETS
from qvlkit.structures import Box
from qvlkit.utils.seeded import seeded


def picture_of(sample):
    return sample.turns[0].content[0].source.draw()


def picture_hash(sample):
    return hashlib.sha256(picture_of(sample).tobytes()).hexdigest()


def test_a_sample_depends_on_seed_split_and_index_alone():
    dataset = DATASETS.build({'type': 'PictureTasks', 'size': 8})
    first = [picture_hash(dataset[i]) for i in range(8)]
    assert [picture_hash(PictureTasks(100)[i]) for i in reversed(range(8))] == first[::-1]
    assert [[turn.content[-2:] for turn in dataset[i].turns[1:]] for i in range(8)] == [
        [turn.content[-2:] for turn in PictureTasks(8)[i].turns[1:]] for i in range(8)]
    assert not {picture_hash(PictureTasks(8, seed=1)[i]) for i in range(8)} & set(first)


def test_train_and_held_out_share_no_picture():
    train = {picture_hash(PictureTasks(400)[i]) for i in range(400)}
    held_out = {picture_hash(PictureTasks(200, split='held_out')[i]) for i in range(200)}
    assert len(train) == 400 and len(held_out) == 200 and not train & held_out


def test_held_out_asks_one_question_and_train_several():
    train, held_out = PictureTasks(40), PictureTasks(40, split='held_out')
    assert {len(held_out[i].turns) for i in range(40)} == {2}
    assert {len(train[i].turns) for i in range(40)} == {2, 4}
    assert {len(PictureTasks(40, questions_per_picture=1)[i].turns) for i in range(40)} == {2}
    assert [held_out[i].extra['task'] for i in range(4)] == ['name', 'count', 'locate', 'read']


def test_no_answer_stands_in_an_earlier_question():
    dataset = PictureTasks(200, questions_per_picture=5)
    for i in range(200):
        turns = dataset[i].turns
        for place in range(1, len(turns), 2):
            answer = turns[place].content[0]
            asked = [item for turn in turns[:place] for item in turn.content if isinstance(item, str)]
            assert not any(answer in text for text in asked), asked
            assert dataset[i].extra['answer'] in turns[1].content


def test_answers_are_those_of_the_scene():
    rng = seeded(0, 'scene')
    for count, sides in ((1, (0.5, 0.7)), (3, (0.3, 0.4)), (6, (0.19, 0.25))):
        for width, height in ((112, 112), (84, 112), (84, 84)):
            shapes = place_shapes(rng, width, height, count, sides)
            pixels = np.asarray(draw_scene(rng, width, height, shapes), dtype=float)
            assert len(shapes) == count and len({shape.colour for shape in shapes}) == count
            assert all(int(sides[0] * min(width, height)) <= shape.side <= sides[1] * min(width, height)
                       for shape in shapes)
            outside = np.ones((height, width), dtype=bool)
            for shape in shapes:
                x1, y1, x2, y2 = shape.box
                outside[y1:y2, x1:x2] = False
                near = np.abs(pixels - COLOURS[shape.colour]).max(axis=2) <= 40
                rows, columns = np.nonzero(near)
                inside = (rows >= y1) & (rows < y2) & (columns >= x1) & (columns < x2)
                assert inside.sum() >= 0.4 * shape.side ** 2  # the object is there
                if shape.colour != 'black':  # black edges of others pass through its neighbours' dark shades
                    assert inside.mean() > 0.97  # and nowhere else
                assert abs(rows[inside].min() - y1) <= 3 and abs(rows[inside].max() + 1 - y2) <= 3
                assert abs(columns[inside].min() - x1) <= 3 and abs(columns[inside].max() + 1 - x2) <= 3
            assert pixels[outside].min() > 180  # background only


def test_locate_answers_with_the_box_of_the_named_colour():
    dataset = PictureTasks(400, split='held_out', tasks=('locate',))
    for i in range(60):
        sample = dataset[i]
        question, answer = sample.turns[0].content[1], sample.turns[1].content
        colour, shape = question.removeprefix('Locate the ').removesuffix('.').split()
        box = sample.extra['answer']
        assert answer == ['[{"bbox_2d": ', box, '}]'] and isinstance(box, Box) and box.space == 'source'
        x1, y1, x2, y2 = map(int, box.coordinates)
        centre = np.asarray(picture_of(sample))[(y1 + y2) // 2, (x1 + x2) // 2].astype(int)
        assert np.abs(centre - COLOURS[colour]).max() <= 16 and shape in SHAPES


def test_boxes_that_are_asked_for_lie_on_a_grid_and_differ():
    dataset = PictureTasks(400, tasks=('locate',))
    boxes = {tuple(dataset[i].extra['answer'].coordinates) for i in range(400)}
    assert all(value % STEPS['locate'] == 0 and 0 < value < 84 for box in boxes for value in box)
    assert len(boxes) > 60
    fractions = [[value / 84 for value in dataset[i].extra['answer'].coordinates] for i in range(400)]
    assert constant_box_chance(fractions, fractions)[0] < 0.15  # no one box is right often


def test_every_answer_of_a_task_occurs_about_equally_often():
    dataset = PictureTasks(2000, split='held_out')
    answers = {'count': [], 'read': [], 'name': []}
    for i in range(1000):
        extra = dataset[i].extra
        if extra['task'] != 'locate':
            answers[extra['task']].append(extra['answer'])
            assert extra['chance'] == {'name': 1 / (len(COLOURS) * len(SHAPES)), 'count': 1 / 6,
                                       'read': 1 / len(WORDS)}[extra['task']]
    assert set(answers['count']) == set('123456') and set(answers['read']) == set(WORDS)
    assert {answers['count'].count(answer) for answer in '123456'} <= {41, 42}  # in turn
    assert max(answers['name'].count(answer) for answer in answers['name']) <= 30


def test_words_begin_at_the_margin_and_are_whole():
    dataset = PictureTasks(200, split='held_out', tasks=('read',))
    for i in range(100):
        pixels = np.asarray(picture_of(dataset[i])).astype(int).min(axis=2)
        ink = pixels < 150
        assert ink.sum() > 40
        assert not (ink[0].any() or ink[:, 0].any() or ink[-1].any() or ink[:, -1].any())
        assert 1 <= np.flatnonzero(ink.any(axis=0))[0] <= 9


def test_sizes_are_those_asked_for():
    dataset = PictureTasks(60, picture_sizes=((112, 112), (84, 140)), tasks=('name', 'count', 'locate'))
    assert {picture_of(dataset[i]).size for i in range(60)} == {(112, 112), (84, 140)}


@pytest.mark.parametrize(('arguments', 'words'), [
    ({'split': 'test'}, 'split'), ({'tasks': ('names',)}, "'name'"), ({'tasks': ()}, 'tasks'),
    ({'max_objects': 7}, 'max_objects'), ({'picture_sizes': ((56, 56),)}, '56 x 56'),
    ({'questions_per_picture': 0}, 'questions_per_picture')])
def test_wrong_arguments_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        PictureTasks(10, **arguments)


def test_index_out_of_range():
    with pytest.raises(IndexError):
        PictureTasks(10)[10]


def test_pictures_are_drawn_when_asked_and_the_same_each_time(monkeypatch):
    drawn = []
    monkeypatch.setattr('qvlkit.data.datasets.picture_tasks._background', lambda rng, width, height: drawn.append(
        (width, height)) or Image.new('RGB', (width, height)))
    samples = [PictureTasks(8)[i] for i in range(8)]
    assert not drawn
    for sample in samples:
        source = sample.turns[0].content[0].source
        again = pickle.loads(pickle.dumps(source))
        assert again == source and source.draw().size == source.size
        assert source.draw().tobytes() == again.draw().tobytes()
    assert len(drawn) == 24


def test_samples_and_drawings_are_fast():
    dataset = PictureTasks(400)
    start = time.process_time()
    samples = [dataset[i] for i in range(400)]
    middle = time.process_time()
    for sample in samples:
        picture_of(sample)
    assert (middle - start) / 400 < 0.0004  # about 0.00006 on one idle core
    assert (time.process_time() - middle) / 400 < 0.003  # about 0.0004
