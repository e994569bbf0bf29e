"""Planning from what a packed store knows: no record is read, and the rows are those that reading gives."""
import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from qvlkit.data.datasets.conversation import ConversationDataset
from qvlkit.data.datasets.mixture import Mixture
from qvlkit.data.planner import Planner
from qvlkit.data.processor import Processor
from qvlkit.data.stores.measure import video_measure
from qvlkit.data.stores.pack_lmdb import pack
from qvlkit.data.text_measure import TextMeasure
from qvlkit.data.tokenizers import ByteLevelBPE, StandInTokenizer
from qvlkit.data.video_readers.decoder import VideoDecoder
from qvlkit.structures import Box, Media, Sample, Turn, VisionGeometry

pytest.importorskip('lmdb')
pytest.importorskip('av')
TOKENIZER = StandInTokenizer(400)
SCALE = dict(scale=dict(type='RandomScale', scale=(0.5, 1.5)), flip=dict(type='RandomFlip'), crop=dict(
    type='RandomCrop'))


def make(**settings):
    settings = dict(transforms=SCALE, video_max_pixels=6272, video_min_pixels=3136, max_pixels=28 * 28 * 30,
                    video_readers=('PyAVReader',)) | settings
    return Processor(settings.pop('tokenizer', TOKENIZER), VisionGeometry(14, 2, 2),
                     num_tokens=lambda grid: int(np.prod(grid)) // 4,
                     position_ids=lambda layout: torch.zeros(3, sum(span.length for span in layout)), **settings)


def talk(question, answer, **extra):
    return {**extra, 'conversations': [{'from': 'human', 'value': question}, {'from': 'gpt', 'value': answer}]}


@pytest.fixture(scope='module')
def folder(tmp_path_factory, clips):
    result = tmp_path_factory.mktemp('mixed')
    rng = np.random.default_rng(0)
    for index, size in enumerate([(60, 90), (120, 80), (200, 50), (33, 171)]):
        Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8)).save(result / f'{index}.png')
    Image.new('RGB', (90, 40)).save(result / 'turned.jpg', exif=_turned())
    clips.write(result / 'steady.mp4', 53, 25)
    clips.write(result / 'film.mp4', 47, '30000/1001')
    clips.write(result / 'uneven.mp4', 40, 30, times=np.cumsum(rng.choice([20, 33, 500], 40)).tolist())
    kinds = {'text': talk('Q', 'A'), 'image': talk('<image>What?', 'It é.', image='0.png'),
             'turned': talk('<image>', 'x', image='turned.jpg'),
             'two': talk('<image> and <image>', 'two', image=['1.png', '2.png']),
             'steady': talk('<video>', 'v', video='steady.mp4'), 'film': talk('<video>', 'v', video='film.mp4'),
             'uneven': talk('<video>', 'v', video='uneven.mp4'),
             'frames': talk('<video>', 'frames', video=[['0.png'] * 5]),
             'many frames': talk('<video>', 'frames', video=[['3.png'] * 9]),
             'box': talk('<image>', '[{"bbox_2d": [7, 8, 33, 44]}]', image='0.png'),
             'box as text': talk('Where?', 'bbox_2d [1, 2]'),
             'document': {'text': 'A page of text.'}}
    lines = [json.dumps(talk('Q' * number, 'A' * (number % 7 + 1))) for number in range(20)]
    (result / 'x.jsonl').write_text('\n'.join([*map(json.dumps, kinds.values()), *lines]))
    for name, boxes in (('packed', 'source'), ('plain', None)):
        data = ConversationDataset(str(result / 'x.jsonl'), boxes=boxes)
        decoder = VideoDecoder(('PyAVReader',))
        text = TextMeasure(TOKENIZER)
        assert pack(data, result / name, measure=text, text_key=text.key,
                    measure_video=video_measure(decoder)).quarantined == 0
        decoder.close()
    return result, list(kinds)


def _turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def windows(data, processor, count=3, **settings):
    planner = Planner(Mixture(dict(a=dict(dataset=data, **settings))), processor, row_length=700, window=64, seed=1)
    return [planner.next_window() for _ in range(count)]


class Unread:
    """A dataset whose records are noted when they are read."""

    def __init__(self, data):
        self.data, self.read = data, []

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        self.read.append(index)
        return self.data[index]

    def sample_id(self, index):
        return self.data.sample_id(index)

    def sizes(self, index):
        return self.data.sizes(index)


class WithoutSizes(Unread):
    sizes = None


@pytest.mark.parametrize('settings', [{}, dict(fps=[1, 2, 4]), dict(transforms={}), dict(max_frames=6, min_frames=2)])
def test_planned_rows_are_those_of_the_records_and_only_two_kinds_are_read(folder, settings):
    path, kinds = folder
    packed = ConversationDataset(str(path / 'packed'), boxes='source')
    known, unknown = Unread(packed), WithoutSizes(packed)
    limits = dict(limits=dict(max_pixels=28 * 28 * 12))
    for more in ({}, limits):
        planned = windows(known, make(**settings), **more)
        assert [(window.key, window.steps) for window in planned] == [
            (window.key, window.steps) for window in windows(unknown, make(**settings), **more)]
        assert not any(window.errors for window in planned)
    assert {kinds[index] for index in known.read} == {'box', 'uneven'}  # the others' sizes say everything
    assert len(set(unknown.read)) == len(packed)


def test_no_record_is_read_where_all_sizes_are_known(folder, tmp_path, monkeypatch):
    path, kinds = folder
    lines = (path / 'x.jsonl').read_text().splitlines()
    (path / 'known.jsonl').write_text('\n'.join(line for line, kind in zip(lines, kinds + ['text'] * 20)
                                                if kind not in ('box', 'uneven')))
    text, decoder = TextMeasure(TOKENIZER), VideoDecoder(('PyAVReader',))
    pack(ConversationDataset(str(path / 'known.jsonl')), tmp_path / 'known', measure=text, text_key=text.key,
         measure_video=video_measure(decoder))
    decoder.close()
    data = ConversationDataset(str(tmp_path / 'known'))
    expected = [window.key for window in windows(WithoutSizes(data), make())]

    def refuse(*arguments):
        raise AssertionError('a record is read')
    monkeypatch.setattr(data.store, 'record', refuse)
    monkeypatch.setattr(data.store, 'resolve', refuse)
    assert [window.key for window in windows(data, make())] == expected


def test_what_is_measured_is_what_is_encoded(folder):
    path, kinds = folder
    data, processor = ConversationDataset(str(path / 'packed'), boxes='source'), make()
    for index, kind in enumerate(kinds):
        encoded, sizes = processor.encode(data[index], epoch=2), data.sizes(index)
        assert (sizes is None) == (kind in ('box', 'uneven')), kind
        if sizes is not None:
            measure = processor.measure_sizes(sizes, data.sample_id(index), epoch=2)
            assert (measure.length, measure.grids) == (encoded.length, tuple(encoded.grids)), kind
            assert measure.num_targets == int(encoded.is_target[1:].sum())
            assert processor.measure_text(data[index]) == (sizes.text_tokens, sizes.num_targets)


def test_records_that_are_read_in_another_way_than_they_were_packed(folder):
    path, kinds = folder
    plain, box = ConversationDataset(str(path / 'plain')), kinds.index('box')
    assert plain.sizes(box) is not None  # its box is plain text, and so it was counted
    assert ConversationDataset(str(path / 'plain'), boxes='source').sizes(box) is None
    assert ConversationDataset(str(path / 'plain'), format='llava').sizes(0) is None
    assert ConversationDataset(str(path / 'packed')).sizes(0) is None


def test_regions_have_no_fixed_text():
    sample = Sample('s', [Turn('user', [Media('image', None)]), Turn('assistant', [Box((1, 2, 3, 4))])])
    assert TextMeasure(TOKENIZER)(sample) is None and make().measure_text(sample) is None


def test_sizes_are_void_for_another_processor(folder):
    path, _ = folder
    data = ConversationDataset(str(path / 'packed'), boxes='source')
    sizes = data.sizes(0)
    assert make().measure_sizes(sizes, 's') is not None

    class Unknown:
        def __call__(self, sample, rng):
            return sample
    for other in (dict(add_vision_id=True), dict(region_style='plain'), dict(tokenizer=StandInTokenizer(401)),
                  dict(transforms=dict(mine=Unknown()))):
        assert make(**other).measure_sizes(sizes, 's') is None


def test_the_key_is_that_of_the_whole_table():
    def trained(texts):
        return ByteLevelBPE(282, texts=texts)
    one, same, other = (TextMeasure(trained(texts)).key for texts in (['aaab'] * 5, ['aaab'] * 5, ['aaac'] * 5))
    assert one == same != other  # equal in size, and in the ids of most texts
    assert pickle.loads(pickle.dumps(TextMeasure(TOKENIZER))).key == make().text_key == TextMeasure(TOKENIZER).key
    assert len({TextMeasure(TOKENIZER, **settings).key for settings in (
        {}, dict(add_vision_id=True), dict(region_style='xml'))}) == 3

    class Nameless:
        encode, special_id, vocab_size = TOKENIZER.encode, TOKENIZER.special_id, 400
    assert TextMeasure(Nameless()).key == ''
