"""Boxes as JSON and back."""
import json

import pytest

from qvlkit.data.formats.boxes import boxes_to_text, find_boxes, parse_boxes, write_boxes
from qvlkit.structures import Box

TWO = [Box((147, 134, 619, 407), 'cat "Tom"', space='resized'), Box((0, 1, 2, 3), '狗', space='resized')]


def test_written_boxes_are_json_and_parse_back():
    text = write_boxes(TWO)
    assert text == ('[{"bbox_2d": [147, 134, 619, 407], "label": "cat \\"Tom\\""}, '
                    '{"bbox_2d": [0, 1, 2, 3], "label": "狗"}]')
    assert json.loads(text)[1]['label'] == '狗'
    assert parse_boxes(text) == TWO


def test_labelled_neighbours_become_one_list_and_bare_boxes_coordinates():
    assert boxes_to_text(['see ', *TWO, ' and ', Box((5, 6, 7, 8))]) == ['see ', write_boxes(TWO), ' and ',
                                                                        '[5, 6, 7, 8]']


@pytest.mark.parametrize('text', [
    '```json\n[\n\t{"bbox_2d": [1, 2, 3, 4], "label": "a"}\n]\n```', 'Here: {"bbox_2d": [1, 2, 3, 4], "label": "a"}.',
    '[{"bbox_2d": [1, 2, 3, 4], "label": "a"}, {"bbox_2d": [5, 6,', '```json\n[{"bbox_2d": [1, 2, 3, 4], "label": "a"}',
    '[{"bbox_2d": [1, 2, 3, 4], "label": "a"} {"bbox_2d": [5, 6, 7], "label": "b"}]',
    'It is [here]: [{"bbox_2d": [1, 2, 3, 4], "text_content": "a"}]',
    '[{"bbox_2d": [1, 2, 3, 4], "label": "a"}, {"bbox_2d": "none"}, {"point_2d": [1, 2]}]'])
def test_lenient_parsing(text):
    assert parse_boxes(text) == [Box((1, 2, 3, 4), 'a', 0, 'resized')]


@pytest.mark.parametrize('text', ['', 'no box', '[]', '{"bbox_2d": [1, 2, 3]}', '{"bbox_2d": [1, 2, NaN, 4]}',
                                  '{"bbox_2d": [true, 2, 3, 4]}', '[1, 2, 3, 4]', '[' * 100_000])
def test_answers_without_boxes(text):
    assert parse_boxes(text) == []


def test_found_boxes_join_to_the_same_text():
    text = 'A: [{"bbox_2d": [1, 2, 3, 4], "label": "a"}, {"bbox_2d":[5.5,6,7,8]}] end'
    pieces = find_boxes(text, 0)
    assert [piece.coordinates for piece in pieces if isinstance(piece, Box)] == [(1, 2, 3, 4), (5.5, 6, 7, 8)]
    joined = ''.join(boxes_to_text(pieces))
    assert joined == text.replace('[5.5,6,7,8]', '[5.5, 6, 7, 8]')
