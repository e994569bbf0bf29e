"""A record's format by its keys."""
import pytest

from qvlkit.data.formats.detect import FORMATS, detect_format
from qvlkit.structures import SampleError


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
