"""Documents in every form."""
import pytest

from qvlkit.data.formats.document import read
from qvlkit.structures import Media, SampleError, Turn

A, B = Media('image', 'a.jpg'), Media('image', 'b.jpg')


def load(record):
    return read(record, sample_id='d.jsonl[0]', source='d', resolve=lambda path: path)


@pytest.mark.parametrize('record, content', [
    ({'text': 'One.\n<image> is a tag of HTML.', 'url': 'x'}, ['One.\n<image> is a tag of HTML.']),
    ({'text': '<image>One. <image>', 'images': ['a.jpg', 'b.jpg']}, [A, 'One. ', B]),
    ({'text': 'See <video>', 'video': [['f0', 'f1']], 'fps': 4}, ['See ', Media('video', ['f0', 'f1'], 4.0)]),
    ({'images': ['a.jpg', None, 'b.jpg', None], 'texts': [None, 'One.', None, 'Two.']}, [A, 'One.', B, 'Two.']),
    ({'images': [None, None], 'texts': ['One.', None]}, ['One.']),
    ({'document': ['One.', {'type': 'image', 'image': 'a.jpg'}, {'type': 'text', 'text': '<image>'}]},
     ['One.', A, '<image>'])])
def test_forms(record, content):
    sample = load(record)
    assert sample.turns == [Turn('document', content)] and not sample.rejected


@pytest.mark.parametrize('record, reason', [
    ({'text': 3}, 'text: expected text, got 3'), ({'text': ' \n'}, 'a document without text'),
    ({'text': '<image>', 'images': ['a']}, 'a document without text'),
    ({'text': '<image><image>One', 'images': ['a']}, 'tag number 2, but 1 images'),
    ({'text': 'One', 'images': ['a']}, '0 <image> tags but 1 images'),
    ({'images': ['a'], 'texts': [None, 'One']}, 'lists of one length'),
    ({'images': ['a'], 'texts': ['One']}, r'images\[0\] and texts\[0\]: expected one of the two, got both'),
    ({'images': [None], 'texts': [3]}, r'texts\[0\]: expected a dict or text'),
    ({'document': 'One'}, 'document: expected a list of parts'),
    ({'document': [{'type': 'audio'}]}, r'document\[0\].type: expected')])
def test_errors_name_the_sample(record, reason):
    with pytest.raises(SampleError, match=reason) as caught:
        load(record)
    assert str(caught.value).startswith('d.jsonl[0]: ')
