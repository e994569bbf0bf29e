"""MMCV's transforms: colours in the right order, regions with their object, randomness of its own, clear refusals."""
import importlib.util
import random
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from qvlkit.config.parts import drop_inherited, validate
from qvlkit.data.processor import Processor
from qvlkit.data.tokenizers import StandInTokenizer
from qvlkit.data.transforms.mmcv_transform import MMCVTransform
from qvlkit.structures import Box, Media, Point, Polygon, Sample, SampleError, Turn, VisionGeometry
from qvlkit.utils.seeded import seeded

needs_mmcv = pytest.mark.skipif(importlib.util.find_spec('mmcv') is None, reason='needs the extra [mmcv]')
OBJECT = (20, 30, 52, 70)  # a white rectangle on black


def picture(colour=(0, 0, 0), size=(120, 90)):
    image = np.full((size[1], size[0], 3), colour, np.uint8)
    return image


def scene(size=(120, 90), box=OBJECT):
    image = picture(size=size)
    image[box[1]:box[3], box[0]:box[2]] = 255
    return image


def opened(image, *regions):
    height, width = image.shape[:2]
    medium = Media('image', image, size=(width, height), source_size=(width, height))
    regions = [type(region)(region.coordinates, region.label, 0, 'pixels') for region in regions]
    return Sample('s', [Turn('user', [medium, 'Q']), Turn('assistant', ['before', *regions, 'after'])])


def run(transform, sample, seed=0, **settings):
    result = MMCVTransform(transform, **settings)(sample, seeded('mmcv', seed))
    return result, result.media()[0]


def regions_of(sample):
    return [item for item in sample.turns[1].content if not isinstance(item, str)]


def found_box(image):
    """(x1, y1, x2, y2) of what is bright."""
    rows, columns = np.nonzero(image[..., 0] > 127)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


@needs_mmcv
@pytest.mark.parametrize('color', ['bgr', 'rgb'])
@pytest.mark.parametrize('transform', [dict(type='RandomGrayscale', prob=0.0), dict(type='RandomFlip', prob=1.0)])
def test_red_stays_red(transform, color):
    _, medium = run(transform, opened(picture((200, 10, 30))), color=color)
    assert medium.source.dtype == np.uint8 and (medium.source == (200, 10, 30)).all()


@needs_mmcv
@pytest.mark.parametrize('color, expected', [('bgr', 30), ('rgb', 200)])
def test_the_order_of_the_channels_is_the_one_asked_for(color, expected):
    """A grey that keeps the first channel alone."""
    grey = dict(type='RandomGrayscale', prob=1.0, channel_weights=(1.0, 0.0, 0.0))
    for keep in (False, True):
        _, medium = run(dict(grey, keep_channels=keep), opened(picture((200, 10, 30))), color=color)
        assert medium.source.shape == (90, 120, 3) and (medium.source == expected).all()


@needs_mmcv
@pytest.mark.parametrize('transform', [
    dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=1.0, direction='vertical'),
    dict(type='RandomFlip', prob=1.0, direction='diagonal'), dict(type='Resize', scale=(240, 45), keep_ratio=False),
    dict(type='Resize', scale_factor=0.5), dict(type='RandomResize', scale=(200, 200), ratio_range=(0.5, 1.5)),
    dict(type='CenterCrop', crop_size=(100, 80)), dict(type='Pad', size=(200, 160)),
    dict(type='Compose', transforms=[dict(type='RandomFlip', prob=1.0), dict(type='CenterCrop', crop_size=(90, 70))])])
def test_regions_follow_the_object(transform):
    x1, y1, x2, y2 = OBJECT
    corners = (x1, y1, x2, y1, x2, y2)
    sample, medium = run(transform, opened(scene(), Box(OBJECT, 'a'), Point(OBJECT[:2]), Polygon(corners)))
    box, point, outline = regions_of(sample)
    expected = np.array(found_box(medium.source))
    assert medium.size == medium.source_size == medium.source.shape[1::-1] and medium.edits == ()
    assert np.abs(np.array(box.coordinates) - expected).max() <= 1 and box.label == 'a'
    assert box.space == point.space == outline.space == 'pixels'
    assert all(np.abs(expected[axis::2] - point.coordinates[axis]).min() <= 1 for axis in (0, 1))
    xs, ys = np.array(outline.coordinates[::2]), np.array(outline.coordinates[1::2])
    assert np.abs(np.array([xs.min(), ys.min(), xs.max(), ys.max()]) - expected).max() <= 1
    assert [item for item in sample.turns[1].content if isinstance(item, str)] == ['before', 'after']


@needs_mmcv
def test_what_is_cut_off_leaves_and_the_rest_keep_their_order():
    around = Polygon((0, 0, 120, 0, 120, 90, 0, 90), 'around')
    sample, _ = run(dict(type='CenterCrop', crop_size=(40, 30)), opened(
        scene(), Box((0, 0, 10, 10), 'gone'), Point((3, 3), 'gone'), Box((50, 40, 90, 50), 'cut'), around,
        Polygon((0, 0, 5, 0, 5, 5), 'gone'), Point((60, 45), 'kept')))
    assert [(region.label, tuple(map(round, region.coordinates))) for region in regions_of(sample)] == [
        ('cut', (10, 10, 40, 20)), ('around', (0, 0, 40, 0, 40, 30, 0, 30)), ('kept', (20, 15))]


@needs_mmcv
def test_only_the_own_regions_of_each_picture_move():
    sample = opened(scene(), Box(OBJECT))
    sample.turns[0].content.insert(0, Media('image', picture(size=(50, 50)), size=(50, 50), source_size=(50, 50)))
    sample.turns[1].content[1].media_index = 1
    sample.turns[1].content.append(Box((0, 0, 10, 20), '', 0, 'pixels'))
    sample, _ = run(dict(type='RandomFlip', prob=1.0), sample)
    assert [tuple(region.coordinates) for region in regions_of(sample)] == [(68, 30, 100, 70), (40, 0, 50, 20)]


@needs_mmcv
def test_a_seed_fixes_the_result_and_the_global_state_is_left_alone():
    choice = dict(type='RandomApply', prob=0.5, transforms=[dict(type='RandomFlip', prob=0.5),
                                                           dict(type='RandomGrayscale', prob=0.5)])
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    np.random.seed(7)
    random.seed(7)
    before = np.random.get_state()[1].tolist(), random.getstate()
    results = [run(choice, opened(noise), seed)[1].source.tobytes() for seed in range(30)]
    assert results == [run(choice, opened(noise), seed)[1].source.tobytes() for seed in range(30)]
    assert len(set(results)) > 2
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before
    with pytest.raises(ValueError, match='Normalize'):
        run(dict(type='Normalize', mean=[0, 0, 0], std=[1, 1, 1]), opened(noise))
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before


@needs_mmcv
@pytest.mark.parametrize('transform, words', [
    (dict(type='Normalize', mean=[0.0] * 3, std=[1.0] * 3), 'Normalize gives float32 values, expected a uint8'),
    (dict(type='ImageToTensor', keys=['img']), 'ImageToTensor gives a Tensor'),
    (dict(type='LoadImageFromFile'), "LoadImageFromFile needs 'img_path'"),
    (dict(type='RandomFlp', prob=1.0), "no transform 'RandomFlp', did you mean 'RandomFlip'"),
    (dict(type='os.getpid'), "no transform 'os.getpid'"), (dict(prob=1.0), "the key 'type'"),
    (dict(type='Compose', transforms=[dict(type='subprocess.getoutput', cmd='ls')]),
     r"transform.transforms.0.type: MMCV registers no transform 'subprocess.getoutput'"),
    (dict(type='RandomFlip', probability=1.0), 'RandomFlip cannot be built'),
    (dict(type='CenterCrop', crop_size=[4, 4]), 'CenterCrop cannot be built')])
def test_what_cannot_be_used_is_named(transform, words):
    with pytest.raises(ValueError, match=words):
        run(transform, opened(scene()))


@needs_mmcv
def test_videos_and_broken_pictures_are_bad_samples():
    for kind, source, expected in (('video', [scene()], 'unsupported_video'), ('image', b'<html>', 'bad_image')):
        sample = Sample('x.json[3]', [Turn('user', [Media(kind, source, size=(4, 4), source_size=(4, 4))])])
        with pytest.raises(SampleError, match=r'x.json\[3\]') as caught:
            MMCVTransform(dict(type='RandomFlip', prob=1.0))(sample, seeded(0))
        assert caught.value.kind == expected


def test_a_wrong_colour_and_a_missing_package(monkeypatch):
    with pytest.raises(ValueError, match="'bgr' or 'rgb', got 'bgrr', did you mean 'bgr'"):
        MMCVTransform(dict(type='RandomFlip', prob=1.0), color='bgrr')
    monkeypatch.setitem(sys.modules, 'mmcv.transforms', None)
    with pytest.raises(ValueError, match=r"needs the package 'mmcv'.*pip install 'qvlkit\[mmcv\]'"):
        MMCVTransform(dict(type='RandomFlip', prob=1.0))


@needs_mmcv
def test_in_a_processor_the_plan_and_the_encoding_agree(tmp_path):
    def make(**transforms):
        return Processor(StandInTokenizer(400), VisionGeometry(14, 2, 2),
                         num_tokens=lambda grid: grid[1] * grid[2] // 4,
                         position_ids=lambda layout: torch.zeros(3, sum(span.length for span in layout)),
                         transforms=transforms)
    Image.fromarray(scene((200, 112), (28, 56, 84, 84))).save(tmp_path / 'a.png')
    turns = [Turn('user', [Media('image', tmp_path / 'a.png'), 'Q']), Turn('assistant', [Box((28, 56, 84, 84))])]
    processor = make(crop=dict(type='RandomCrop', scale=(0.8, 0.9)),
                     mm=dict(type='MMCVTransform', transform=dict(type='RandomFlip', prob=1.0)))
    lengths = set()
    for epoch in range(6):
        sample = Sample('s', turns)
        encoded, measured = processor.encode(sample, epoch=epoch), processor.measure(sample, epoch=epoch)
        assert (measured.length, measured.grids) == (encoded.length, tuple(encoded.grids))
        lengths.add(encoded.length)
    assert len(lengths) > 1
    plain = make(mm=dict(type='MMCVTransform', transform=dict(type='RandomFlip', prob=1.0)))
    encoded = plain.encode(Sample('s', turns))
    answer = plain.tokenizer.decode(encoded.token_ids[encoded.is_target].tolist())
    assert answer.startswith('[114, 56, 169, 84]')  # mirrored on 200 pixels, then resized to 196
    assert (encoded.patches[0] != make().encode(Sample('s', turns)).patches[0]).any()


def test_a_config_may_name_them():
    part = dict(type='MMCVTransform', transform=dict(type='RandomFlip', prob=1.0, direction=['horizontal']))
    validate(dict(processor=dict(transforms=dict(mm=part))))
    drop_inherited(dict(processor=dict(transforms=dict(mm=part))), dict(processor=dict(transforms=dict(mm=dict(
        type='MMCVTransform', transform=dict(type='Resize', scale_factor=0.5))))))
    with pytest.raises(ValueError, match="mm.colour: MMCVTransform has no argument 'colour'"):
        validate(dict(processor=dict(transforms=dict(mm=dict(part, colour='rgb')))))
