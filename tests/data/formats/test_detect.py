"""A record's format by its keys."""
import json
import re
from pathlib import Path

import pytest

from qvlkit.data.formats.detect import FORMATS, detect_format
from qvlkit.structures import SampleError

DOCS = Path(__file__).parents[3] / 'docs' / 'record_formats.md'


@pytest.mark.parametrize('record, name', [
    ({'conversations': []}, 'llava'), ({'messages': []}, 'sharegpt'), ({'messages': [{'content': []}]}, 'openai'),
    ({'conversations': [], 'chosen': {}, 'rejected': {}}, 'preference'),
    ({'messages': [{'content': []}], 'chosen': [], 'rejected': []}, 'preference'),
    ({'prompt': '', 'chosen': '', 'rejected': ''}, 'preference'), ({'instruction': '', 'output': ''}, 'alpaca'),
    ({'text': ''}, 'document'), ({'images': [], 'texts': []}, 'document'), ({'document': []}, 'document'),
    ({'image': '', 'caption': ''}, 'caption'), ({'image': '', 'objects': []}, 'grounding'),
    ({'conversations': [], 'image': '', 'objects': {}}, 'llava'), ({'task': '', 'steps': []}, 'trajectory')])
def test_detection(record, name):
    assert detect_format(record, 'x') == name and name in FORMATS


def test_an_unknown_record_lists_what_is_known():
    with pytest.raises(SampleError, match="found the keys 'image', expected 'messages'.*'task' and 'steps'"):
        detect_format({'image': 'a'}, 'x.json[1]')


def test_the_records_of_the_docs_are_read():
    blocks = re.findall(r'^## (\w+)|```json\n(.*?)```', DOCS.read_text(encoding='utf-8'), re.MULTILINE | re.DOTALL)
    section, seen = '', set()
    for heading, block in blocks:
        section = heading or section
        if block:
            record = json.loads(block)
            assert detect_format(record, 'x') == section
            assert FORMATS[section](record, sample_id='x', source='x', resolve=lambda path: path).turns
            seen.add(section)
    assert seen == FORMATS.keys() - {'llava', 'sharegpt', 'openai'}
