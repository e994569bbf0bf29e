"""What is told of planned rows, on numbers that can be checked by hand."""
import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch

from qvlkit.data.planner import Placed
from qvlkit.data.sampler import Draw
from qvlkit.data.tokenizers import StandInTokenizer
from qvlkit.planning.close_up import CloseUp
from qvlkit.planning.data_page import data_page, row_facts, source_table
from qvlkit.planning.survey import Item, Survey
from qvlkit.structures import EncodedSample, Media, Sample, SampleError, Turn


def item(source, length, cost, visual=0):
    return Item(f'{source}[0]', source, Placed(Draw(0, 0, 0), length), cost, visual, 2)


def small_survey(sources=('a', 'b')):
    steps = [[[item('a', 60, 6e9), item('a', 30, 2e9, 15)], [item('b', 50, 4e9)]], [[item('a', 100, 6e9)]]]
    return Survey(steps, 100, list(sources), dict.fromkeys(sources, 1 / len(sources)), Counter(a=4, b=3),
                  Counter(a=1), [], True)


def test_shares_of_sources():
    bad = [SampleError('b[1]', 'torn', 'bad_image')]
    bad[0].source = 'b'
    header, rows = source_table(small_survey(), bad)
    table = {row[0]: dict(zip(header, row)) for row in rows}
    assert table['a']['by sample'] == '75.0 %' and table['b']['by token'] == '20.8 %'  # 50 of 240
    assert table['a']['mean tokens'] == '63.3' and table['a']['visual'] == '7.9 %'  # 15 of 190
    assert (table['a']['too long'], table['b']['bad'], table['all']['bad'], table['a']['bad']) == (1, 1, 1, 0)


def test_facts_of_rows():
    found = small_survey()
    np.testing.assert_array_equal(found.row_tokens(), [90, 50, 100])
    facts = dict(row_facts(found))
    assert facts['rows filled'] == '80.0 % on average, 50.0 % the emptiest'
    assert facts['rows in a step'] == '1 to 2' and facts['steps planned'] == '2 (the data ended)'
    # rows cost 8, 4 and 6: their spread is 1.633 of 6; in the one step with two rows 2 of 6
    assert facts['cost of rows, all steps'] == 'spread 27.2 % of the mean, costliest / mean 1.333'
    assert facts['cost of rows within a step'].startswith('spread 33.3 % of the mean, costliest / mean 1.333')


@pytest.mark.parametrize('count', [2, 12])
def test_a_page_without_close_ups_and_with_many_sources(count):
    bad = [SampleError(f's[{i}]', f'reason {i}', 'torn') for i in range(25)]
    text = data_page('t', small_survey([*'abcdefghijkl'][:count]), [], bad, None).html()
    assert 'torn: 25' in text and 'reason 19' in text and 'reason 20' not in text and 'and 5 more' in text
    assert 'None was asked for' in text and text.count('<i style="width') == 4
    assert text.count('<div class=legend>') == (2 if count > 8 else 1)


def test_of_many_pictures_the_first_are_shown():
    medium = Media('image', None, size=(28, 28), source_size=(28, 28), grid=(1, 2, 2))
    limits = dict(min_pixels=1, max_pixels=2)
    sample = Sample('s', [Turn('user', [dataclasses.replace(medium) for _ in range(6)])], limits=limits)
    encoded = EncodedSample('s', torch.arange(6), torch.zeros(6, dtype=torch.bool), torch.arange(6).repeat(3, 1), [],
                            [], ['image'] * 6, [1] * 6, torch.arange(6))
    shown = CloseUp(item('a', 6, 1.0), sample, encoded, [np.zeros((1, 28, 28, 3), np.uint8)] * 6,
                    np.array(['visual'] * 6))
    text = data_page('t', small_survey(), [shown], [], StandInTokenizer(512)).html()
    assert text.count('<image ') == 4 and 'and 2 more, which are not shown' in text
    assert '6: image' in text and 'min_pixels=1, max_pixels=2' in text and 'shrink factor 1' in text
