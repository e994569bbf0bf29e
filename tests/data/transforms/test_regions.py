"""Regions through conversions and edits: exact where a picture is only resized, true to its pixels elsewhere."""
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from qvlkit.data.transforms.edits import Crop, Flip, Resize, apply_edits
from qvlkit.data.transforms.regions import clip, finish, move, to_pixels, to_resized
from qvlkit.structures import Box, Point, Polygon, Region

SIZES = ((640, 428), (644, 420))
sides = st.integers(1, 4000)
pairs = st.tuples(sides, sides)
numbers = st.one_of(st.integers(-50, 5000), st.integers(-500, 50_000).map(lambda value: value / 10))


def scale_box(coordinates, source_size, resized_size):
    """The released conversion: scale by new / old size, round, clamp to [0, size - 1]."""
    return tuple(min(max(round(value * resized_size[i % 2] / source_size[i % 2]), 0), resized_size[i % 2] - 1)
                 for i, value in enumerate(coordinates))


def test_the_released_conversion():
    box = to_resized(Box((146, 137, 615, 415), 'cat'), [SIZES])
    assert box == Box((147, 134, 619, 407), 'cat', 0, 'resized')
    assert to_resized(Point((146, 137)), [SIZES]).coordinates == (147, 134)
    assert to_resized(Polygon((-5, -1, 640, 428, 0, 9)), [SIZES]).coordinates == (0, 0, 643, 419, 0, 9)


@settings(max_examples=300, deadline=None)
@given(source=pairs, resized=pairs, coordinates=st.tuples(numbers, numbers, numbers, numbers))
def test_a_picture_that_is_only_resized_gives_what_scale_box_gives(source, resized, coordinates):
    x1, y1, x2, y2 = coordinates
    box = Box((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)))
    moved = move(to_pixels(box, source, resized), Resize(*resized), source)
    assert finish(moved, resized).coordinates == scale_box(box.coordinates, source, resized)
    resized_box = Box(box.coordinates, space='resized')
    back = move(to_pixels(resized_box, source, resized), Resize(*resized), source)
    assert finish(back, resized).coordinates == scale_box(box.coordinates, resized, resized)


@pytest.mark.parametrize('space, given_at, expected', [
    ('source', (320, 107), (320, 107)), ('pixels', (320, 107), (320, 107)), ('resized', (322, 105), (320, 107)),
    ('thousand', (500, 250), (320, 107)), ('unit', (0.5, 0.25), (320, 107))])
def test_every_space_becomes_pixels(space, given_at, expected):
    point = to_pixels(Point(given_at, 'a', 2, space), *SIZES)
    assert point == Point(pytest.approx(expected), 'a', 2, 'pixels')


def pixels(kind, *coordinates):
    return kind(coordinates, 'a', 0, 'pixels')


def test_a_flip_sorts_corners_and_twice_is_nothing():
    box = pixels(Box, 10, 20, 30, 50)
    flipped = move(box, Flip(), (100, 60))
    assert flipped.coordinates == (70, 20, 90, 50)
    assert move(flipped, Flip(), (100, 60)) == box
    assert move(pixels(Point, 0, 5), Flip(), (100, 60)).coordinates == (100, 5)  # clamped by finish
    assert finish(pixels(Point, 100, 5), (100, 60)).coordinates == (99, 5)


@pytest.mark.parametrize('box, expected', [
    ((12, 12, 20, 20), (2, 2, 10, 10)), ((0, 10, 20, 30), (0, 0, 10, 20)), ((0, 0, 14, 14), None),
    ((0, 10, 14, 20), (0, 0, 4, 10)), ((0, 10, 13, 20), None), ((60, 60, 90, 90), None), ((0, 0, 99, 99), None),
    ((20, 20, 20, 30), (10, 10, 10, 20)), ((5, 20, 5, 30), None)])
def test_boxes_cut_by_a_crop(box, expected):
    """A crop of 40 x 40 pixels at (10, 10): 0.4 / 1.4 and 4 / 14 < 0.3 < 0.5, unless enough is left."""
    moved = move(pixels(Box, *box), Crop(10, 10, 50, 50), (100, 100), min_visible=0.25)
    assert (moved.coordinates if moved else None) == expected


def test_the_share_that_must_be_left():
    crop, half = Crop(10, 0, 100, 100), pixels(Box, 0, 0, 20, 20)
    assert move(half, crop, (100, 100), min_visible=0.5).coordinates == (0, 0, 10, 20)
    assert move(half, crop, (100, 100), min_visible=0.51) is None
    assert move(pixels(Box, 0, 0, 13, 20), crop, (100, 100)) is None  # 0.23 < 0.3
    assert move(pixels(Box, 0, 0, 15, 20), crop, (100, 100)).coordinates == (0, 0, 5, 20)
    assert move(pixels(Box, 0, 0, 10, 20), crop, (100, 100), min_visible=0) is None


def test_points_outside_are_dropped_by_crops_only():
    assert move(pixels(Point, 9, 30), Crop(10, 10, 50, 50), (100, 100)) is None
    assert move(pixels(Point, 10, 30), Crop(10, 10, 50, 50), (100, 100)).coordinates == (0, 20)
    assert move(pixels(Point, -5, 30), Resize(50, 50), (100, 100)).coordinates == (-2.5, 15)


def test_outlines_are_clipped():
    triangle = pixels(Polygon, 0, 0, 20, 0, 0, 20)
    cut = move(triangle, Crop(0, 0, 10, 10), (40, 40))
    assert set(zip(cut.coordinates[::2], cut.coordinates[1::2])) == {(0, 0), (10, 0), (10, 10), (0, 10)}
    assert move(triangle, Crop(15, 0, 40, 40), (40, 40)) is None
    assert move(triangle, Crop(15, 0, 40, 40), (40, 40), min_visible=0.01) is not None
    assert move(triangle, Crop(20, 20, 40, 40), (40, 40), min_visible=0) is None


@settings(max_examples=60, deadline=None)
@given(angles=st.lists(st.floats(0, 2 * math.pi), min_size=3, max_size=8, unique=True), x=st.integers(0, 60),
       y=st.integers(0, 60), radius=st.integers(10, 40))
def test_clipping_agrees_with_drawn_pixels(angles, x, y, radius):
    """The area of a clipped convex outline against the pixels that Pillow fills, on a grid 8 times as fine."""
    corners = [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in sorted(angles)]
    kept = clip(corners, (50, 40))
    drawn = Image.new('1', (50 * 8, 40 * 8))
    ImageDraw.Draw(drawn).polygon([(8 * a, 8 * b) for a, b in corners], fill=1, outline=0)
    area = np.asarray(drawn).sum() / 64
    shoelace = sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(kept, [*kept[1:], *kept[:1]])) / 2
    assert abs(abs(shoelace) - area) <= 0.02 * radius * radius + 6 * radius / 8
    assert all(0 <= a <= 50 and 0 <= b <= 40 for a, b in kept)


def test_a_box_stays_on_its_object_through_edits():
    image = Image.new('RGB', (200, 120))
    ImageDraw.Draw(image).rectangle((60, 30, 99, 79), fill='white')  # pixels 60..99, 30..79
    region, size = pixels(Box, 60, 30, 100, 80), image.size
    edits = (Crop(40, 10, 180, 110), Flip(), Resize(280, 200), Crop(20, 20, 280, 190), Resize(130, 85))
    for edit in edits:
        region, size = move(region, edit, size), edit.size(size)
    rows, columns = np.nonzero(np.asarray(apply_edits(image, edits).convert('L')) > 127)
    found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert np.abs(np.array(region.coordinates) - found).max() <= 1


@pytest.mark.parametrize('region, words', [
    (Box((1, 2, 3)), 'a box of 4 finite numbers'), (Box((1, 2, 3, float('nan'))), 'finite'),
    (Point((1,)), 'a point of 2'),
    (Polygon((1, 2, 3, 4)), 'an outline of 6'), (Box((1, 2, 3, 4), space='percent'), "'percent' is unknown"),
    (Region((1, 2)), 'a Box, Point or Polygon'), (Box((1, 2, 3, 4), media_index=1), 'medium 1, but the sample has 1')])
def test_wrong_regions_are_named(region, words):
    with pytest.raises(ValueError, match=words):
        to_resized(region, [SIZES])


def test_edits_move_pixels_only():
    with pytest.raises(ValueError, match="expected the space 'pixels', got 'source'"):
        move(Box((1, 2, 3, 4)), Flip(), (10, 10))


@pytest.mark.parametrize('x', [24.5, 40.5, 67.5, 75.5])
def test_halves_survive_the_way_to_source_pixels_and_back(x):
    """24.5 * 640 / 644 * 644 / 640 is a little more than 24.5 in floats."""
    assert x * 640 / 644 * 644 / 640 != x
    pixels_of_source = to_pixels(Point((x, 0), space='resized'), (640, 428), (644, 420))
    assert finish(move(pixels_of_source, Resize(644, 420), (640, 428)), (644, 420)).coordinates == (round(x), 0)
