"""The composition of data: each property by hand, of the shipped samples and of real files, and shares by weight."""
import json
import runpy
from pathlib import Path

import pytest

from qvlkit.data.datasets.conversation import ConversationDataset
from qvlkit.data.datasets.mixture import Mixture
from qvlkit.planning.composition import Composition, compose, drawn_composition, language, properties, subset
from qvlkit.structures import Media, Sample, SampleError, Turn

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / 'configs' / '_base_' / 'data' / 'samples'
SHARED = next((parent / 'shared' / 'data' for parent in ROOT.parents if (parent / 'shared' / 'data').is_dir()), None)


def said(text, *media, source='', role='user', **extra):
    turns = [Turn(role, [*media, text])] + ([Turn('assistant', ['1'])] if role == 'user' else [])
    return Sample('s', turns, source, extra)


@pytest.mark.parametrize('text, expected', [
    ('What is it?', 'English'), ('这是什么？', 'Chinese'), ('图中的 logo 是什么品牌的标志？请回答。', 'Chinese'),
    ('これは何ですか', 'other'), ('이것은 무엇입니까', 'other'), ('Что это такое', 'other'),
    ('Où est la forêt près d’ici', 'other'),
    ('12 + 30 = ?', 'none'), ('The word 中 means middle, and it is written with four strokes.', 'English'),
    ('<tool_call>{"coordinate": [1, 2]}</tool_call> 点击按钮', 'Chinese')])
def test_languages(text, expected):
    assert language(said(text)) == expected


def test_the_system_turn_does_not_decide_the_language():
    sample = said('这是什么？')
    sample.turns.insert(0, Turn('system', ['You are a helpful assistant. ' * 9]))
    assert language(sample) == 'Chinese'


@pytest.mark.parametrize('source, expected', [
    ('multimodal/vqa', 'general VQA'), ('text/maths', 'maths'), ('text/general', 'text'), ('captions', 'caption'),
    ('visual_knowledge', 'caption'), ('long_document', 'doc/OCR'), ('images/charts', 'doc/OCR'), ('ocr', 'doc/OCR'),
    ('long_agent', 'agent'), ('long_video', 'video'), ('grounding', 'grounding'), ('text/code', 'code'),
    ('security', 'security'), ('mine', 'other'), ('decoder', 'other')])
def test_subsets_by_the_sources_name(source, expected):
    media = [] if source.startswith('text') else [Media('image', None)]
    assert subset(said('?', *media, source=source)) == expected


def test_what_a_sample_says_itself_goes_first():
    assert subset(said('?', source='text/code', subset='planning')) == 'planning'


def test_properties():
    picture, clip = Media('image', None), Media('video', None)
    assert properties(said('Look.', picture, picture, clip)) == {
        'kind': 'multimodal', 'subset': 'other', 'language': 'English', 'turns': '1', 'images': '2', 'videos': '1'}
    assert properties(said('Read on.', role='document'))['turns'] == 'document'
    many = Sample('s', [Turn('user', [picture, 'a']), Turn('assistant', ['b'])] * 7)
    assert properties(many)['turns'] == properties(many)['images'] == '6 or more'


def test_shares_by_samples_and_by_tokens():
    found = compose([(said('a'), 10), (said('a'), 10), (said('a'), 10), (said('a', Media('image', None)), 70)])
    assert found.shares('kind') == {'text': (0.75, 0.3), 'multimodal': (0.25, 0.7)}
    assert found.table()[1][:2] == [['kind', 'text', '3', '75.0 %', '30.0 %'],
                                    ['', 'multimodal', '1', '25.0 %', '70.0 %']]
    assert found.to_dict()['kind']['multimodal'] == {'samples': 1, 'tokens': 70, 'by_sample': 0.25, 'by_token': 0.7}
    assert Composition().to_dict() == {'samples': 0, 'tokens': 0, 'unusable': 0}


class Counted:
    """Twenty samples of one text, of as many tokens as asked; every fourth is broken if wanted."""

    def __init__(self, tokens, broken=False, media=()):
        self.tokens, self.broken, self.media = tokens, broken, media

    def __len__(self):
        return 20

    def __getitem__(self, index):
        if self.broken and index % 4 == 0:
            raise SampleError(f's[{index}]', 'broken')
        return Sample(f's[{index}]', [Turn('user', [*self.media, 'a' * self.tokens]), Turn('assistant', ['b'])])


class ByLength:
    """A processor that takes letters for tokens."""

    def measure(self, sample, *, epoch=0):
        from qvlkit.structures import Measure
        return Measure(len(sample.turns[0].content[-1]), 1)


def test_what_is_drawn_follows_the_weights():
    parts = dict(text=dict(dataset=Counted(10), weight=3.0),
                 vqa=dict(dataset=Counted(90, media=[Media('image', None)])))
    found = drawn_composition(Mixture(parts), ByLength(), samples=400)
    assert found.samples == 400
    assert found.shares('kind')['text'] == pytest.approx((0.75, 0.25), abs=0.01)
    steered = drawn_composition(Mixture(parts, by='token'), ByLength(), samples=4000)
    assert steered.shares('kind')['text'][1] == pytest.approx(0.75, abs=0.02)


def test_what_cannot_be_used_is_counted_and_data_may_end():
    found = drawn_composition(Mixture(dict(a=dict(dataset=Counted(5, broken=True), epochs=1))), ByLength(), samples=500)
    assert (found.samples, found.unusable) == (15, 5)


def test_the_shipped_samples():
    """Twenty of each kind: every kind is in the report's subset, and each number is that of its script."""
    expected = dict(caption='caption', visual_knowledge='caption', ocr='doc/OCR', text='text', interleaved='other',
                    vqa='general VQA', maths='maths', grounding='grounding', document='doc/OCR', video='video',
                    agent='agent', long_video='video', long_document='doc/OCR', long_agent='agent')
    parts = {}
    for kind in expected:
        dataset = {**runpy.run_path(str(SAMPLES.parent / f'{kind}.py'))[f'_{kind}']['dataset'],
                   'path': str(SAMPLES / kind / f'{kind}.jsonl')}
        parts[kind] = dict(dataset=dataset)
    mixture = Mixture(parts)
    found = compose((mixture[index], 1) for index in range(len(mixture)))
    assert found.samples == 280
    counts = {name: {value: count[0] for value, count in values.items()} for name, values in found.counts.items()}
    for name in set(expected.values()):
        assert counts['subset'][name] == 20 * list(expected.values()).count(name)
    assert counts['language']['Chinese'] == 10  # half of the texts
    assert counts['videos']['1'] == 40 and counts['images']['6 or more'] == 20  # the calculator's windows
    assert counts['turns'] == {'document': 100, '1': 100, '2': 20, '3 to 5': 40, '6 or more': 20}
    assert counts['kind'] == {'multimodal': 260, 'text': 20}


@pytest.mark.skipif(SHARED is None, reason='shared real data is absent')
def test_real_files():
    """Against what stands in the files."""
    def counts(path, **arguments):
        dataset = ConversationDataset(str(SHARED / path), **arguments)
        found = compose((dataset[index], 1) for index in range(len(dataset)))
        return {name: {value: count[0] for value, count in values.items()} for name, values in found.counts.items()}

    chinese = counts('text/alpaca_zh.json')
    assert chinese['kind'] == {'text': len(json.loads((SHARED / 'text/alpaca_zh.json').read_text()))}
    assert chinese['language']['Chinese'] > 0.95 * sum(chinese['language'].values())
    pairs = counts('preference/dpo_en.json')
    assert pairs['language']['English'] > 0.9 * sum(pairs['language'].values())
    records = json.loads((SHARED / 'chat/image_chat.json').read_text())
    chat = counts('chat/image_chat.json')
    assert chat['images'] == {str(count): sum(len(record['images']) == count for record in records)
                              for count in {len(record['images']) for record in records}}
    assert counts('video/video.json')['videos'].get('0', 0) == 0
