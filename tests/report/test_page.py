import base64
import io
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from PIL import Image

from qvlkit.report.page import SERIES, Page, Picture, _edges, series_colour


class Checker(HTMLParser):
    """Counts tags and checks that they close."""
    VOID = ('meta', 'img')

    def __init__(self, text):
        super().__init__()
        self.open, self.count = [], {}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.count[tag] = self.count.get(tag, 0) + 1
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.count[tag] = self.count.get(tag, 0) + 1

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def full_page():
    picture = Image.new('RGB', (40, 20), 'blue')
    return (Page('a <title>').heading('<h>').text('1 < 2 & "so"').table(('x<', 'y'), [('<b>', 0.51234), ('c', 2)])
            .plot('curve <1>', {'_raw': ([1, 2], [3, 4]), 'mean': ([1, 2], [3, 4])}, 'step', 'loss', log=True)
            .bars('levels', {'name': {'chance': 0.1, 'trained': (0.5, 0.4, 0.6)}}).text('after')
            .pictures([Picture(picture, 'Where?\n<i>', [((1, 2, 30, 90), 'red', '<label>')], True),
                       (picture, 'plain'), (picture, 'wrong', (), False)]))


def test_all_text_is_escaped_and_tags_close():
    text = full_page().html()
    for raw in ('<title>a <', '<h>', '<b>&', '<i>', '<label>', '<1>'):
        assert raw not in text
    for escaped in ('a &lt;title&gt;', '&lt;h&gt;', '1 &lt; 2 &amp; &quot;so&quot;', '&lt;b&gt;', '&lt;label&gt;'):
        assert escaped in text
    checker = Checker(text)
    assert checker.open == [] and checker.count['table'] == 1 and checker.count['figure'] == 5


def test_the_page_is_self_contained():
    text = full_page().html()
    assert re.findall(r'(?:src|href)="(?!data:)', text) == []
    pictures = re.findall(r'data:image/png;base64,([^"]+)', text)
    assert len(pictures) == 3 and base64.b64decode(pictures[0]).startswith(b'\x89PNG')
    assert text.count('data:image/svg+xml') == 2


def test_boxes_are_drawn_in_pixels_and_kept_on_the_picture():
    text = full_page().html()
    assert 'viewBox="0 0 40 20"' in text
    assert '<rect x="1" y="2" width="29" height="18"' in text  # y2 = 90 lies below the picture
    assert text.count('✓') == 1 and text.count('✗') == 1


def test_inverted_and_far_boxes_do_not_break_the_page():
    picture = Image.new('RGB', (40, 20))
    boxes = [((30, 15, 5, 5), '"><b>', ''), ((1e9, 0, -1e9, 5), 'red', '')]
    text = Page('t').pictures([Picture(picture, '', boxes)]).html()
    assert '<rect x="5" y="5" width="25" height="10"' in text and '<rect x="0" y="0" width="40" height="5"' in text
    assert 'stroke="&quot;&gt;&lt;b&gt;"' in text


def test_tables_set_numbers_flush_right_and_refuse_ragged_rows():
    text = full_page().html()
    assert '<td class=number>0.5123</td>' in text and '<td>&lt;b&gt;</td>' in text
    with pytest.raises(ValueError, match='2 cells'):
        Page('t').table(('a',), [('b', 'c')])


def test_the_same_data_gives_the_same_page(tmp_path):
    first = full_page().write(tmp_path / 'deep' / 'page.html')
    assert first.read_text(encoding='utf-8') == full_page().html()


def test_matplotlib_is_loaded_only_by_plots():
    code = ("import sys; from qvlkit.report.page import Page; Page('t').text('x').table(('a',), [(1,)]).html(); "
            "assert 'matplotlib' not in sys.modules")
    subprocess.run([sys.executable, '-c', code], check=True)


def test_points_and_outlines_are_drawn_in_pixels_and_kept_on_the_picture():
    text = Page('t').pictures([Picture(
        Image.new('RGB', (200, 100)), 'c', points=[((50, 20), 'red', '<tip>'), ((900, -3), '"x', '')],
        polygons=[((0, 0, 10, 0, 5, 300), 'green', 'leaf')])], layout='large').html()
    assert 'class="pictures large"' in text
    assert text.count('cx="50" cy="20"') == 2 and text.count('cx="200" cy="0"') == 2
    assert '<polygon points="0,0 10,0 5,100" fill-opacity=".15"' in text
    assert '&lt;tip&gt;</text>' in text and 'stroke="&quot;x"' in text and '>leaf</text>' in text
    assert Checker(text).open == []


def test_a_large_picture_is_stored_smaller_and_marked_in_its_own_frame():
    noise = Image.effect_noise((3000, 1500), 80).convert('RGB')
    text = Page('t').pictures([Picture(noise, '', [((1000, 100, 2900, 1400), 'red', '')])]).html()
    stored, = re.findall(r'data:image/jpeg;base64,([^"]+)', text)
    assert Image.open(io.BytesIO(base64.b64decode(stored))).size == (800, 400)
    assert 'viewBox="0 0 3000 1500"' in text and '<image width="3000" height="1500"' in text
    assert '<rect x="1000" y="100" width="1900" height="1300"' in text


def svg(text, number=0):
    return base64.b64decode(re.findall(r'data:image/svg\+xml;base64,([^"]+)', text)[number]).decode()


def test_a_histogram_counts_and_stacks():
    axes = svg(Page('t').histogram('h<', {'a<b': [1, 1, 2], 'c': [2, 3]}, 'tokens', 'samples').html())
    assert 'a&lt;b' in axes and 'tokens' in axes and 'samples' in axes
    assert axes.count(f'fill: {SERIES[0]}') >= 3 and axes.count(f'fill: {SERIES[1]}') >= 3  # bins 1, 2, 3
    for values in ({'a': [5]}, {'a': []}, {'a': [0.5, 0.5], 'b': []}, {'a': [7, 7]}):
        Page('t').histogram('h', values)
    assert 'x' in svg(Page('t').histogram('h', {'x': [1, 10, 1000, 90000]}, log=True).html())


def test_edges_of_bins_hold_every_value():
    for values, log in (([1, 2, 500], False), ([0.1, 7.3], False), ([3], False), ([3], True), ([1, 90000], True)):
        edges = _edges([values, []], 40, log)
        assert edges[0] <= min(values) and edges[-1] >= max(values) * (1 - 1e-12) and len(edges) >= 2
        assert edges == sorted(set(edges))
    assert _edges([[1, 2, 3]], 40, False) == [0.5, 1.5, 2.5, 3.5]


def test_separate_plots_have_axes_each():
    axes = svg(Page('t').separate_plots('p', {'t': ([0, 1], [0, 5]), 'h': ([0, 1], [2, 2])}, 'token').html())
    assert axes.count('id="axes_') == 2 and 'token' in axes


def test_strips_leave_the_rest_empty_and_escape():
    text = Page('t').strips([[(25, 'red', 'a<"'), (50, '#123456', 'b')], [(300, 'red', 'long')]], 100).legend(
        {'a<': 'red', 'roles': 'target'}).html()
    assert '<i style="width:25.000%;background:red" title="a&lt;&quot;"></i>' in text
    assert 'width:50.000%' in text and 'width:100.000%' in text
    assert '<i style="background:red"></i>a&lt;' in text and '<i class=target></i>roles' in text
    assert Checker(text).open == []


def test_tokens_are_coloured_and_escaped():
    text = Page('t').tokens([('<script>', 'target', '5 "6"'), ('gap', '', ''), ('x', 'context', '7')]).html()
    assert ('<i class=target title="5 &quot;6&quot;">&lt;script&gt;</i><em>gap</em><i class=context title="7">x</i>'
            in text)
    assert Checker(text).open == []


def test_colours_of_series_do_not_run_out():
    colours = [series_colour(number) for number in range(40)]
    assert colours[:len(SERIES)] == list(SERIES) and len(set(colours)) == 40
    assert all(re.fullmatch('#[0-9a-f]{6}', colour) for colour in colours)
