"""Regions as text in every style and back."""
import itertools
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvlkit.data.formats.grounding import (
    SpecialToken,
    find_regions,
    parse_boxes,
    parse_regions,
    regions_to_text,
)
from qvlkit.structures import Box, Media, Point, Polygon

WIDTH, HEIGHT = SIZE = (1288, 756)
STYLES = ('json', 'xml', 'plain', 'qwen2')
CAT, DOG = Box((147, 134, 619, 407), 'cat "Tom"', 0, 'resized'), Box((0, 1, 2, 3), '狗', 0, 'resized')
POINT, OUTLINE = Point((5, 6), 'eye', 0, 'resized'), Polygon((1, 2, 30, 4, 5, 60), 'leaf', 0, 'resized')

spots = st.tuples(st.integers(0, WIDTH - 1), st.integers(0, HEIGHT - 1))
labels = st.text(st.sampled_from('ab9 :,.<>&;"\'{}[]()/\\=é狗🐈|#'), max_size=12).map(
    lambda text: ' '.join(text.split()))


def regions(labels):
    outlines = st.lists(spots, min_size=3, max_size=6).map(lambda corners: tuple(itertools.chain(*corners)))
    return st.one_of(st.builds(lambda a, b, label: Box((*a, *b), label, 0, 'resized'), spots, spots, labels),
                     st.builds(lambda a, label: Point(a, label, 0, 'resized'), spots, labels),
                     st.builds(lambda a, label: Polygon(a, label, 0, 'resized'), outlines, labels))


def written(content, style, sizes=(SIZE,)):
    return ''.join(regions_to_text(content, sizes, style))


@settings(max_examples=100, deadline=None)
@given(found=st.lists(regions(labels), max_size=5), style=st.sampled_from(STYLES))
def test_round_trip_within_one_pixel(found, style):
    content = [item for region in found for item in (region, '\n')]
    for text in (written(content, style), written([region for region in found if region.label], style)):
        back = parse_regions(text, style, SIZE)
        expected = found if text.endswith('\n') else [region for region in found if region.label]
        assert [(type(region), region.label) for region in back] == [
            (type(region), region.label) for region in expected]
        for ours, theirs in zip(back, expected):
            assert ours.space == 'resized'
            assert max(abs(a - b) for a, b in zip(ours.coordinates, theirs.coordinates)) <= (style == 'qwen2')


@settings(max_examples=100, deadline=None)
@given(found=st.lists(regions(st.text('ab9é狗', min_size=1)), min_size=1, max_size=4), style=st.sampled_from(STYLES))
def test_auto_knows_the_style(found, style):
    text = written(found, style)
    assert parse_regions(text, 'auto', SIZE) == parse_regions(text, style, SIZE)
    fenced = f'Here you are:\n```\n{text}\n```\n'
    assert len(parse_regions(fenced, 'auto', SIZE)) == len(found)


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.sampled_from('{}[]()<>|"\\,:. -019exybo_startbbox_2dpoint'), max_size=80),
       style=st.sampled_from(('auto', *STYLES)))
def test_parsers_never_raise(text, style):
    for start in ('', '<|box_start|>', '[{"bbox_2d": [1, 2, 3, 4]', '<points x1="1"'):
        for region in parse_regions(start + text, style, SIZE):
            assert len(region.coordinates) == {Box: 4, Point: 2}.get(type(region), len(region.coordinates))


def test_what_each_style_looks_like():
    assert written([CAT, DOG], 'json') == ('[{"bbox_2d": [147, 134, 619, 407], "label": "cat \\"Tom\\""}, '
                                           '{"bbox_2d": [0, 1, 2, 3], "label": "狗"}]')
    assert json.loads(written([POINT, OUTLINE], 'json')) == [
        {'point_2d': [5, 6], 'label': 'eye'}, {'polygon_2d': [[1, 2], [30, 4], [5, 60]], 'label': 'leaf'}]
    assert written([CAT, POINT, Point((7, 8), 'eye', 0, 'resized')], 'xml') == (
        '<box x1="147" y1="134" x2="619" y2="407">cat &quot;Tom&quot;</box>\n'
        '<points x1="5" y1="6" x2="7" y2="8" alt="eye">eye</points>')
    assert written([DOG, POINT], 'plain') == '狗: 0,1,2,3\neye: 5,6'
    assert written(['see ', Box((1, 2, 3, 4)), '!'], 'plain') == 'see 1,2,3,4!'


def test_special_tokens_are_items_of_their_own():
    half = Box((644, 378, 1287, 755), 'cat', 1, 'resized')
    items = regions_to_text(['a ', half, OUTLINE], [(10, 10), SIZE], 'qwen2')
    assert items[:7] == ['a ', '<|object_ref_start|>', 'cat', '<|object_ref_end|>', '<|box_start|>',
                         '(500,500),(999,999)', '<|box_end|>']
    assert [isinstance(item, SpecialToken) for item in items[:7]] == [False, True, False, True, True, False, True]
    assert items[10] == '<|quad_start|>' and isinstance(items[10], SpecialToken)
    assert regions_to_text([Point((1, 999), space='thousand')], None, 'qwen2')[1] == '(1,999)'


def test_labelled_neighbours_share_a_list_and_other_items_stay():
    media = Media('image', 'a.jpg')
    assert regions_to_text([media, 'see ', CAT, DOG, ' and ', Box((5, 6, 7, 8)), POINT]) == [
        media, 'see ', written([CAT, DOG], 'json'), ' and ', '[5, 6, 7, 8]', '[{"point_2d": [5, 6], "label": "eye"}]']


@pytest.mark.parametrize('style', STYLES)
def test_a_value_in_json_text_is_json_in_every_style(style):
    content = ['{"action": "click", "coordinate": ', Point((5, 6), '', 0, 'resized'), '}']
    assert json.loads(written(content, style)) == {'action': 'click', 'coordinate': [5, 6]}


@pytest.mark.parametrize('style, words', [('jsn', "'jsn' is unknown, did you mean 'json'"), ('auto', 'is unknown')])
def test_the_table_of_styles_is_closed(style, words):
    with pytest.raises(ValueError, match=words):
        regions_to_text([CAT], None, style)


@pytest.mark.parametrize('region, sizes', [(CAT, None), (CAT, []), (Box((1, 2, 3, 4), space='source'), [SIZE])])
def test_qwen2_needs_sizes(region, sizes):
    with pytest.raises(ValueError, match="style 'qwen2'.*expected the space 'resized'"):
        regions_to_text([region], sizes, 'qwen2')


BOX = [Box((1, 2, 3, 4), 'a', 0, 'resized')]


@pytest.mark.parametrize('text', [
    '```json\n[\n\t{"bbox_2d": [1, 2, 3, 4], "label": "a"}\n]\n```', 'Here: {"bbox_2d": [1, 2, 3, 4], "label": "a"}.',
    '[{"bbox_2d": [1, 2, 3, 4], "label": "a"}, {"bbox_2d": [5, 6,',
    '```json\n[{"bbox_2d": [1, 2, 3, 4], "label": "a"}',
    '[{"bbox_2d": [1, 2, 3, 4], "label": "a"} {"bbox_2d": [5, 6, 7], "label": "b"}]',
    'It is [here]: [{"bbox_2d": [1, 2, 3, 4], "text_content": "a"}]',
    '{"found": [{"bbox_2d": [1,2,3,4], "label": "a"}]}',
    '[{"bbox_2d": [1 2 3 4] "label": "a"}]', '[{"label": "a", "bbox_2d": [1, 2, 3, 4],}]',
    '<box y2="4" x2=3 y1=\'2\' x1="1">a</box>', '<box x1="1" y1="2" x2="3" y2="4" alt="a"/>',
    '<box x1="1" y1="2" x2="3" y2="4" alt="a"', 'a: 1,2,3,4', 'a: [1, 2, 3, 4]', 'a: (1,2),(3,4)',
    'x\n a : 1, 2, 3, 4 \n'])
def test_lenient_parsing(text):
    assert parse_regions(text) == BOX


def test_qwen2_text():
    text = ('<|object_ref_start|>a<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|><|box_start|>(5, 6)<|box_end|> '
            'and <|box_start|>(7,8),(9,9)')
    assert parse_regions(text) == [Box((1, 2, 3, 4), 'a', 0, 'thousand'), Point((5, 6), 'a', 0, 'thousand'),
                                   Box((7, 8, 9, 9), '', 0, 'thousand')]
    assert parse_regions('(100,200),(300,400)', 'qwen2', (500, 100)) == [Box((50, 20, 150, 40), '', 0, 'resized')]


def test_boxes_only_and_only_with_their_key():
    text = '[{"bbox_2d": [1, 2, 3, 4], "label": "a"}, {"bbox_2d": "none"}, {"point_2d": [1, 2]}]'
    assert parse_boxes(text) == BOX
    for text in ('', 'no box', '[]', '{"bbox_2d": [1, 2, 3]}', '{"bbox_2d": [1, 2, NaN, 4]}', '[' * 100_000,
                 '{"bbox_2d": [true, 2, 3, 4]}', '[1, 2, 3, 4]'):
        assert parse_boxes(text) == []
    assert parse_regions('[1, 2, 3, 4]') == [Box((1, 2, 3, 4), '', 0, 'resized')]


def test_long_broken_answers_take_no_time():
    pieces = ['[', '{', '[1,', '{"', '"\\', '<box ', '<points x1="', '<|box_start|>', '<|object_ref_start|>', '(1,',
              '1,', '{"bbox_2d": [1, 2', '[[1,2],', '1' * 5000 + ' ', 'a:', '```', '((', '{"a":{', '<box x1=']
    started = time.perf_counter()
    for piece in pieces:
        for style in ('auto', *STYLES):
            parse_regions(piece * (40_000 // len(piece) + 1), style)
    assert time.perf_counter() - started < 20


def test_found_regions_join_to_the_same_text():
    text = ('A: [{"bbox_2d": [1, 2, 3, 4], "label": "a"}, {"point_2d":[5.5, 6]}, '
            '{"polygon_2d": [[1, 2], [3, 4], [5, 6]]}, {"bbox_2d": null}] end')
    pieces = find_regions(text, 2, 'unit')
    assert [piece for piece in pieces if not isinstance(piece, str)] == [
        Box((1, 2, 3, 4), '', 2, 'unit'), Point((5.5, 6), '', 2, 'unit'), Polygon((1, 2, 3, 4, 5, 6), '', 2, 'unit')]
    for style in ('json', 'xml', 'plain'):
        assert ''.join(regions_to_text(pieces, None, style)) == text
