import pytest

from qvlkit.data.stores.embedded import is_stored, pick, take_out
from qvlkit.data.transforms.load_media import MediaError


def test_bytes_are_named_in_order_and_absent_keys_left_out():
    row = {'image': {'bytes': b'a', 'path': 'x.png'}, 'other': {'bytes': None, 'path': 'y.png'}, 'none': None,
           'turns': [{'type': 'image', 'image': b'b', 'text': None}, {'type': 'text', 'image': None, 'text': 'Q'}],
           'lists': [{'bytes': b'c', 'path': None}], 'number': 3}
    record, media = take_out(row)
    assert media == [b'a', b'b', b'c']
    assert record == {'image': 'stored:0', 'other': 'y.png', 'turns': [{'type': 'image', 'image': 'stored:1'},
                      {'type': 'text', 'text': 'Q'}], 'lists': ['stored:2'], 'number': 3}
    assert pick(media, 'stored:2') == b'c' and is_stored('stored:0') and not is_stored('y.png')


@pytest.mark.parametrize('text', ['stored:', 'stored:1', 'stored:-1', 'stored:x', 'stored:²', 'stored:' + '9' * 5000])
def test_a_number_that_is_not_there(text):
    with pytest.raises(MediaError, match='names no medium'):
        pick([b'a'], text)
