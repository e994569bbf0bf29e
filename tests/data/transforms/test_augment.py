"""Random flips, crops and scales: the box stays on its object, lengths are planned, all is fixed by the seed."""
import numpy as np
import pytest
import torch
from PIL import Image

from qvlkit.data.formats.grounding import parse_boxes
from qvlkit.data.processor import Processor
from qvlkit.data.tokenizers import StandInTokenizer
from qvlkit.registry import TRANSFORMS
from qvlkit.structures import Box, Media, Sample, Turn, VisionGeometry

GEOMETRY = VisionGeometry(14, 2, 2)
ALL = dict(scale=dict(type='RandomScale', scale=(0.6, 1.6)), crop=dict(type='RandomCrop', scale=(0.5, 1.0)),
           flip=dict(type='RandomFlip'))


def make(seed=0, **transforms):
    return Processor(StandInTokenizer(400), GEOMETRY, num_tokens=lambda grid: grid[0] * grid[1] * grid[2] // 4,
                     position_ids=lambda layout: torch.zeros(3, sum(span.length for span in layout)),
                     transforms=transforms, seed=seed)


def boxed(index):
    """A red rectangle somewhere on grey, and its box."""
    rng = np.random.default_rng(index)
    width, height = rng.integers(200, 500, 2).tolist()
    x1, y1 = (int(rng.integers(10, side // 2)) for side in (width, height))
    x2, y2 = x1 + int(rng.integers(60, width // 2)), y1 + int(rng.integers(60, height // 2))
    pixels = np.full((height, width, 3), 128, np.uint8)
    pixels[y1:y2, x1:x2] = (255, 0, 0)
    return Sample(f's[{index}]', [Turn('user', [Media('image', Image.fromarray(pixels))]),
                                  Turn('assistant', [Box((x1, y1, x2, y2), 'red')])])


def picture_of(encoded):
    """(H, W, 3) from the patches of the only image."""
    _, rows, columns = encoded.grids[0]
    blocks = encoded.patches[0].reshape(rows // 2, columns // 2, 2, 2, 3, 14, 14)
    return blocks.transpose(0, 2, 5, 1, 3, 6, 4).reshape(rows * 14, columns * 14, 3)


@pytest.mark.parametrize('transforms', [{}, *({name: part} for name, part in ALL.items()), ALL])
def test_the_box_stays_on_its_object_and_the_length_is_known_beforehand(transforms):
    processor = make(**transforms)
    shapes = set()
    for index in range(25):
        sample = boxed(index)
        encoded = processor.encode(sample)
        measure = processor.measure(sample)
        assert (measure.length, list(measure.grids)) == (encoded.length, encoded.grids)
        assert measure.num_targets == int(encoded.is_target[1:].sum())
        box, = parse_boxes(processor.tokenizer.decode(encoded.token_ids[encoded.is_target].tolist()))
        picture = picture_of(encoded).astype(int)
        y, x = np.nonzero(picture[..., 0] - picture[..., 1] > 128)
        # edges lie between pixels and coordinates are whole: within two pixels
        assert np.abs(np.array(box.coordinates) - (x.min(), y.min(), x.max() + 1, y.max() + 1)).max() <= 2
        shapes.add((encoded.grids[0], box.coordinates))
    assert len(shapes) == 25


def test_what_is_drawn_is_fixed_by_seed_epoch_and_sample():
    processor, sample = make(**ALL), boxed(3)
    first = processor.encode(sample)
    for same in (processor.encode(sample), make(**ALL).encode(sample)):
        assert torch.equal(first.token_ids, same.token_ids) and np.array_equal(first.patches[0], same.patches[0])
    others = [processor.encode(sample, epoch=1), make(seed=1, **ALL).encode(sample)]
    assert all(not np.array_equal(first.patches[0], other.patches[0]) for other in others)


def test_a_question_is_asked_without_augmentation():
    sample = Sample('q', boxed(3).turns[:1])
    plain, asked = make().encode(sample, generation_prompt=True), make(**ALL).encode(sample, generation_prompt=True)
    assert np.array_equal(plain.patches[0], asked.patches[0])


@pytest.mark.parametrize('part, word', [
    (dict(type='RandomFlip', probability=2), 'RandomFlip.probability'), (dict(type='RandomCrop', scale=(0, 1)),
    'scale'), (dict(type='RandomScale', scale=(2, 1)), 'RandomScale.scale'), (dict(type='RandomFlop'), "'RandomFlip'")])
def test_wrong_settings_are_named(part, word):
    with pytest.raises(ValueError, match=word):
        TRANSFORMS.build(part)
