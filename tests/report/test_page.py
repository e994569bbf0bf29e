import base64
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from PIL import Image

from qvlkit.report.page import Page, Picture


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
