"""Preference pairs in every form in which they are kept."""
from pathlib import Path

import pytest

from qvlkit.data.datasets.conversation import ConversationDataset
from qvlkit.data.formats.preference import read
from qvlkit.structures import Box, Media, SampleError, Turn

SHARED = Path(__file__).parents[3] / '..' / 'shared' / 'data'
PICTURE = Media('image', 'a.jpg')


def load(record, **given):
    return read(record, sample_id='p.json[0]', source='p', resolve=lambda path: path, **given)


def user(content):
    return {'role': 'user', 'content': content}


def answer(content):
    return {'role': 'assistant', 'content': content}


TAGGED = {'conversations': [{'from': 'human', 'value': '<image>Q'}], 'images': ['a.jpg'],
          'chosen': {'from': 'gpt', 'value': 'A'}, 'rejected': {'from': 'gpt', 'value': 'B'}}


@pytest.mark.parametrize('record', [
    TAGGED,
    {**TAGGED, 'chosen': 'A', 'rejected': 'B'},
    {'messages': [user('<image>Q')], 'image': 'a.jpg', 'chosen': answer('A'), 'rejected': answer('B')},
    {'instruction': '<image>Q', 'images': ['a.jpg'], 'chosen': 'A', 'rejected': 'B'},
    {'prompt': '<image>Q', 'images': ['a.jpg'], 'chosen': 'A', 'rejected': 'B'},
    {'prompt': 'Q', 'images': ['a.jpg'], 'chosen': 'A', 'rejected': [answer('B')]},
    {'prompt': [user('Q')], 'image': 'a.jpg', 'chosen': [answer('A')], 'rejected': answer('B')},
    {'prompt': [user([{'type': 'image'}, {'type': 'text', 'text': 'Q'}])], 'images': ['a.jpg'],
     'chosen': [answer([{'type': 'text', 'text': 'A'}])], 'rejected': [answer([{'type': 'text', 'text': 'B'}])]},
    {'chosen': [user('<image>Q'), answer('A')], 'rejected': [user('<image>Q'), answer('B')], 'images': ['a.jpg']},
    {'prompt': 'Q', 'chosen': [user([{'type': 'image', 'image': 'a.jpg'}, 'Q']), answer('A')],
     'rejected': [user([{'type': 'image', 'image': 'a.jpg'}, 'Q']), answer('B')]}])
def test_every_form_gives_the_same_pair(record):
    sample = load(record)
    assert sample.turns == [Turn('user', [PICTURE, 'Q']), Turn('assistant', ['A'])]
    assert sample.rejected == [Turn('assistant', ['B'])]
    assert sample.media() == [PICTURE]


def test_longer_conversations_and_system():
    sample = load({'system': 'S', 'prompt': [user('Q'), answer('A'), user('R')], 'chosen': 'C', 'rejected': 'D'})
    assert [turn.role for turn in sample.turns] == ['system', 'user', 'assistant', 'user', 'assistant']
    assert sample.rejected == [Turn('assistant', ['D'])]


def test_boxes_of_both_answers_move_with_the_picture():
    sample = load({**TAGGED, 'chosen': '{"bbox_2d": [1, 2, 3, 4]}', 'rejected': '{"bbox_2d": [5, 6, 7, 8]}'},
                  boxes='thousand')
    assert sample.turns[1].content[1] == Box((1, 2, 3, 4), '', 0, 'thousand')
    assert sample.rejected[0].content[1] == Box((5, 6, 7, 8), '', 0, 'thousand')


@pytest.mark.parametrize('record, reason, kind', [
    ({**TAGGED, 'rejected': TAGGED['chosen']}, 'are the same answer', 'same_answers'),
    ({'prompt': 'Q', 'chosen': 'A', 'rejected': 'A'}, 'chosen and rejected are the same answer', 'same_answers'),
    ({'prompt': 'Q', 'chosen': 'A', 'rejected': ''}, 'rejected: expected an answer', 'wrong_type'),
    ({'prompt': 7, 'chosen': 'A', 'rejected': 'B'}, 'prompt: expected text or a list', 'wrong_type'),
    ({'chosen': [user('Q'), answer('A')], 'rejected': [user('R'), answer('B')]}, 'differ before', 'other_prompt'),
    ({'chosen': 'A', 'rejected': 'B'}, 'expected a question and then an answer', 'no_answer'),
    ({**TAGGED, 'chosen': {'from': 'human', 'value': 'A'}}, 'expected a question and then an answer', 'no_answer'),
    ({**TAGGED, 'chosen': {'from': 'gpt', 'value': 3}}, r'conversations\[1\].value: expected text', 'wrong_type'),
    ({**TAGGED, 'images': []}, '<image> tag number 1, but 0 images', 'tag_count'),
    ({'prompt': [user([{'type': 'image'}])], 'chosen': 'A', 'rejected': 'B', 'images': ['a', 'b']},
     '1 image parts but 2 images', 'tag_count')])
def test_errors(record, reason, kind):
    with pytest.raises(SampleError, match=reason) as caught:
        load(record)
    assert caught.value.kind == kind and str(caught.value).startswith('p.json[0]: ')


@pytest.mark.skipif(not SHARED.is_dir(), reason='shared real data is absent')
def test_real_pairs():
    data = ConversationDataset(str(SHARED / 'preference' / 'dpo_en.json'))
    samples = [data[index] for index in range(len(data))]
    assert len(samples) > 200
    assert all(len(sample.rejected) == 1 and sample.rejected != sample.turns[-1:] for sample in samples)
