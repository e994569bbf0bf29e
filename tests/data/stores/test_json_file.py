import json
import pickle

import pytest

from qvlkit.data.stores.json_file import JSONStore
from qvlkit.data.transforms.load_media import MediaError
from qvlkit.structures import SampleError


def test_lists_and_lines_hold_the_same_records(folder):
    records = json.loads((folder / 'chat.json').read_text())
    (folder / 'chat.jsonl').write_text('\n'.join(map(json.dumps, records)))
    for name in ('chat.json', 'chat.jsonl'):
        store = pickle.loads(pickle.dumps(JSONStore(folder / name)))
        assert [store.record(index) for index in range(len(store))] == records
        assert store.record_id(1) == f'{name}[1]' and store.name == 'chat' and store.sizes(0) is None
        with pytest.raises(IndexError):
            store.record(4)


def test_references_stay_under_the_root(folder):
    store = JSONStore(folder / 'chat.json')
    assert store.resolve(0, 'a.jpg') == (folder / 'a.jpg').resolve()
    assert store.resolve(0, 'data:image/png;base64,aGk=') == b'hi'
    with pytest.raises(MediaError, match='leads out'):
        store.resolve(0, '../a.jpg')


def test_a_broken_line_names_its_place(folder):
    (folder / 'chat.jsonl').write_text('{}\n\n{"a"\n')
    with pytest.raises(SampleError, match=r'chat\.jsonl\[1\]: line 3 of') as caught:
        JSONStore(folder / 'chat.jsonl').record(1)
    assert caught.value.kind == 'bad_json'
