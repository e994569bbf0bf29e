"""A sample in close-up, without a dataset: pieces of text, bends of position ids, regions that lie outside."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from qvlkit.data.tokenizers import StandInTokenizer
from qvlkit.planning.close_up import CloseUp
from qvlkit.planning.data_page import _token_pieces
from qvlkit.structures import Box, EncodedSample, Media, Point, Polygon, Sample, Turn


def shown(ids, roles=None, content=(), positions=None, visual=()):
    """A close-up of tokens, and of one white picture of 56 x 28 if `content` marks something on it."""
    media = [Media('image', None, size=(56, 28), grid=(1, 2, 4))] if content else []
    roles = np.array(roles or ['context'] * len(ids), dtype=object)
    encoded = EncodedSample('s', torch.tensor(ids), torch.zeros(len(ids), dtype=torch.bool),
                            torch.tensor(positions if positions is not None else [range(len(ids))] * 3), [], [], [], [],
                            torch.tensor(visual))
    return CloseUp(SimpleNamespace(), Sample('s', [Turn('user', [*media, *content])]), encoded,
                   [np.full((1, 28, 56, 3), 255, np.uint8)], roles)


def test_bytes_of_a_character_are_one_piece_and_no_id_is_lost():
    tokenizer = StandInTokenizer(vocab_size=512)  # a token for each byte
    ids = tokenizer.encode('a你😀b') + [tokenizer.special_id('<|im_end|>'), *tokenizer.encode('é')[:1], 300]
    pieces = list(shown(ids).pieces(tokenizer))
    assert [piece.text for piece in pieces[:5]] == ['a', '你', '😀', 'b', '<|im_end|>']
    assert [len(piece.ids) for piece in pieces[:4]] == [1, 3, 4, 1]
    assert [number for piece in pieces for number in piece.ids] == ids  # half a character and an unused id too


def test_pieces_do_not_cross_roles():
    tokenizer = StandInTokenizer(vocab_size=512)
    ids = tokenizer.encode('你') + [tokenizer.special_id('<|image_pad|>')] * 3
    roles = ['context', 'target', 'target', 'visual', 'visual', 'visual']
    pieces = list(shown(ids, roles).pieces(tokenizer))
    assert [(piece.role, len(piece.ids)) for piece in pieces] == [('context', 1), ('target', 2), ('visual', 3)]
    assert pieces[-1].text == '<|image_pad|> x 3'


def test_a_long_sample_is_cut_in_the_middle_and_says_so():
    tokenizer = StandInTokenizer(vocab_size=512)
    pieces = _token_pieces(shown(tokenizer.encode('x' * 5000)), tokenizer)
    assert len(pieces) == 1601 and pieces[1200] == ('\n[3,400 pieces are not shown]\n', '', '')


@pytest.mark.parametrize('ids', [[0], [0, 1], [0, 1, 2, 2, 2, 5, 6, 7, 3, 4, 5], [4, 4, 4]])
def test_position_lines_pass_through_every_id(ids):
    lines = shown([0] * len(ids), positions=[ids] * 3).positions()
    assert list(lines) == ['t', 'h', 'w']
    xs, ys = lines['w']
    np.testing.assert_array_equal(np.interp(range(len(ids)), xs, ys), ids)
    assert list(shown([0] * len(ids), positions=[ids]).positions()) == ['axis 0']


def test_regions_become_marks_and_what_lies_outside_is_said():
    content = [Box((1, 2, 30, 20), 'b', 0, 'pixels'), Point((5, 6), '', 0, 'pixels'),
               Polygon((0, 0, 9, 0, 5, 9), 'p', 0, 'pixels'), Box((1, 2, 3, 4), 'other', 1, 'pixels')]
    picture, = shown([0], content=content).pictures(0)
    assert isinstance(picture.image, Image.Image) and picture.image.size == (56, 28)
    assert [mark[0] for mark in picture.boxes] == [(1, 2, 30, 20)]
    assert [mark[0] for mark in picture.points] == [(5, 6)] and picture.polygons[0][2] == 'p'
    assert picture.caption == '56 x 28 pixels\n3 marked'
    picture, = shown([0], content=[Point((5, 40), '', 0, 'pixels')]).pictures(0)
    assert '1 OUTSIDE THE PICTURE: [5, 40]' in picture.caption
