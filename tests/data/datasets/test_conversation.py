"""Annotation files: what opens, what does not, and bad records that do not hurt the others."""
import json
import pickle
from pathlib import Path

import pytest
from PIL import Image

from qvlkit.data.datasets.conversation import ConversationDataset
from qvlkit.registry import DATASETS
from qvlkit.structures import Box, SampleError

SHARED = Path(__file__).parents[3] / '..' / 'shared' / 'data'
ANSWERED = [{'from': 'human', 'value': 'Q é'}, {'from': 'gpt', 'value': 'A'}]


def record(value='<image>Q', image='a.png', **extra):
    turns = [{'from': 'human', 'value': value}, {'from': 'gpt', 'value': 'A'}]
    return {'image': image, 'conversations': turns, **extra}


@pytest.fixture
def folder(tmp_path):
    Image.new('RGB', (8, 8)).save(tmp_path / 'a.png')
    return tmp_path


def write(folder, records, name='x.json'):
    lines = records if name.endswith('.json') else None
    path = folder / name
    path.write_text(json.dumps(lines) if lines is not None else '\n'.join(
        line if isinstance(line, str) else json.dumps(line) for line in records), encoding='utf-8')
    return str(path)


def test_list_and_lines_give_the_same_samples(folder):
    records = [record(), {'conversations': ANSWERED}]
    listed = ConversationDataset(write(folder, records))
    lined = DATASETS.build({'type': 'ConversationDataset', 'path': write(folder, records, 'x.jsonl')})
    assert len(listed) == len(lined) == 2
    for index in range(2):
        assert listed[index].turns == lined[index].turns
    assert listed[0].id == 'x.json[0]' and listed[0].source == listed.name == 'x'
    assert listed[0].turns[0].content[0].source == (folder / 'a.png').resolve()


def test_formats_are_told_apart_record_by_record(folder):
    messages = [{'role': 'user', 'content': 'Q'}, {'role': 'assistant', 'content': 'A'}]
    parts = [{'role': 'user', 'content': [{'type': 'image', 'image': 'a.png'}]}, messages[1]]
    data = ConversationDataset(write(folder, [record(), {'messages': messages}, {'messages': parts}]))
    assert [len(data[index].turns) for index in range(3)] == [2, 2, 2]


def test_a_broken_line_is_one_bad_sample(folder):
    path = write(folder, [record(), '', '{"conversations": [', record(), b'\xff'.decode('latin1')], 'x.jsonl')
    data = ConversationDataset(path)
    assert len(data) == 4 and data[0].turns and data[2].turns
    with pytest.raises(SampleError, match=r'x\.jsonl\[1\]: line 3 of .*x\.jsonl') as caught:
        data[1]
    assert caught.value.kind == 'bad_json'
    with pytest.raises(SampleError, match='line 5'):
        data[3]


def test_lines_that_are_not_utf8_and_a_byte_order_mark(folder):
    path = folder / 'x.jsonl'
    path.write_bytes(b'\xef\xbb\xbf' + json.dumps(record()).encode() + b'\r\n\xff\xfe{}\n')
    data = ConversationDataset(str(path))
    assert data[0].turns
    with pytest.raises(SampleError, match='line 2'):
        data[1]


@pytest.mark.parametrize('text, reason', [
    ('[{"a": 1},\n {"b" 2}]', 'line 2, column 7'), ('{"a": 1}\n{"a": 2}', 'JSON lines are read from a .jsonl'),
    ('{"a": 1}', 'expected a list of records, got dict'), ('[]', 'holds no records'), ('[' * 100_000, 'x.json')])
def test_whole_files_that_do_not_open(folder, text, reason):
    (folder / 'x.json').write_text(text)
    with pytest.raises(ValueError, match=reason):
        ConversationDataset(str(folder / 'x.json'))


@pytest.mark.parametrize('given, reason', [
    ({'path': 'none.json'}, "annotation file 'none.json' does not exist"),
    ({'format': 'lava'}, "did you mean 'llava'"),
    ({'boxes': 'relative'}, "boxes: expected None, 'source', 'thousand' or 'unit', got 'relative'"),
    ({'limit': 0}, 'limit: expected'),
    ({'dataset': 'a'}, 'names an entry of a dataset_info.json')])
def test_arguments_are_checked(folder, given, reason):
    with pytest.raises(ValueError, match=reason):
        ConversationDataset(**{'path': write(folder, [record()]), **given})


@pytest.mark.parametrize('bad, reason, kind', [
    (record(image='gone.png'), "media file 'gone.png' does not exist", 'missing_media'),
    (record(image='../a.png'), 'leads out of the media folder', 'path_refused'),
    (record(image='/etc/passwd'), "'/etc/passwd' leads out", 'path_refused'),
    (record(image='http://x/a.png'), 'is a URL', 'url_refused'),
    (record('no tag'), '0 <image> tags but 1 images', 'tag_count'),
    (record('<image><image>'), 'tag number 2', 'tag_count'),
    ({'conversations': []}, 'the conversation is empty', 'empty_conversation'),
    ({'conversations': [{'from': 'system', 'value': 'S'}]}, 'the conversation is empty', 'empty_conversation'),
    ({'conversations': ANSWERED[:1]}, 'no assistant turn', 'no_answer'),
    ({'conversations': {}}, 'expected a list of turns, got dict', 'wrong_type'),
    ({'instruction': 'x'}, "found the keys 'instruction'", 'unknown_format'),
    ([], 'expected a record', 'wrong_type'), (None, 'expected a record', 'wrong_type')])
def test_bad_records_name_file_record_and_reason(folder, bad, reason, kind):
    data = ConversationDataset(write(folder, [{'conversations': ANSWERED}, bad]))
    assert data[0].turns
    with pytest.raises(SampleError, match=reason) as caught:
        data[1]
    assert str(caught.value).startswith('x.json[1]: ') and caught.value.kind == kind


def test_media_root_limit_and_name(folder):
    (folder / 'notes').mkdir()
    path = write(folder / 'notes', [record(), record()])
    data = ConversationDataset(path, media_root=str(folder), limit=1, name='mine')
    assert len(data) == 1 and data[0].source == 'mine'
    with pytest.raises(IndexError):
        data[1]
    with pytest.raises(SampleError, match='does not exist'):
        ConversationDataset(path)[0]


def test_dataset_info_entry(folder):
    write(folder, [{'chat': [{'from': 'human', 'value': 'Q'}, {'from': 'gpt', 'value': 'A'}]}], 'data.json')
    info = write(folder, {'mine': {'file_name': 'data.json', 'formatting': 'sharegpt',
                                   'columns': {'messages': 'chat'}}}, 'dataset_info.json')
    data = ConversationDataset(info, dataset='mine')
    assert data.name == 'mine' and data[0].id == 'data.json[0]' and len(data[0].turns) == 2


def test_source_boxes(folder):
    box = {'image': 'a.png', 'conversations': [{'from': 'human', 'value': '<image>Q'},
                                               {'from': 'gpt', 'value': '[{"bbox_2d": [1, 2, 3, 4]}]'}]}
    path = write(folder, [box])
    assert ConversationDataset(path)[0].turns[1].content == ['[{"bbox_2d": [1, 2, 3, 4]}]']
    assert ConversationDataset(path, boxes='source')[0].turns[1].content[1] == Box((1, 2, 3, 4))


def test_travels_between_processes(folder):
    data = ConversationDataset(write(folder, [record()], 'x.jsonl'))
    assert pickle.loads(pickle.dumps(data))[0] == data[0]


@pytest.mark.skipif(not SHARED.is_dir(), reason='shared real data is absent')
@pytest.mark.parametrize('path, count', [('chat/image_chat.json', 6), ('chat/video_chat.json', 2),
                                         ('grounding/single_images.json', 3), ('text/toolcall_en.json', 300)])
def test_real_data_reads(path, count):
    data = ConversationDataset(str(SHARED / path))
    assert len(data) == count
    assert all(data[index].turns[-1].content for index in range(count))
