import json
import pickle

import pytest

from qvlkit.data.datasets.conversation import ConversationDataset
from qvlkit.data.stores.huggingface import HuggingFaceStore
from qvlkit.data.stores.interface import StoreError

datasets = pytest.importorskip('datasets')


@pytest.fixture
def saved(folder, make):
    """A saved data set of three rows whose image column is of the type Image, with a list of images beside it."""
    rows = [{**make.talk('x', str(number)), 'image': {'bytes': make.encoded(size=(8, 6 + number)), 'path': None},
             'more': [{'bytes': b'not a picture', 'path': None}]} for number in range(3)]
    data = datasets.Dataset.from_list(rows).cast_column('image', datasets.Image())
    data = data.cast_column('more', datasets.List(datasets.Image()))
    data.save_to_disk(folder / 'saved')
    return folder / 'saved'


def test_rows_stay_encoded(saved, make):
    store = HuggingFaceStore(saved)
    assert len(store) == 3 and store.record_id(2) == 'saved[2]' and store.sizes(0) is None
    for index in (2, 0, 1):
        record = store.record(index)
        assert record['conversations'][1]['value'] == str(index)
        assert store.resolve(index, record['image']) == make.encoded(size=(8, 6 + index))
        assert store.resolve(index, record['more'][0]) == b'not a picture'
    store.close()
    assert store.record(1)
    with pytest.raises(IndexError):
        store.record(3)


def test_as_a_dataset_and_pickled(saved):
    data = ConversationDataset(str(saved))
    copy = pickle.loads(pickle.dumps(data))
    assert copy[2].turns == data[2].turns and isinstance(copy[2].turns[0].content[0].source, bytes)


def test_files_elsewhere_are_refused(saved):
    state = json.loads((saved / 'state.json').read_text())
    name = state['_data_files'][0]['filename']
    for other in ('../x.arrow', '/etc/passwd', 'x.py'):
        (saved / 'state.json').write_text(json.dumps({**state, '_data_files': [{'filename': other}]}))
        with pytest.raises(StoreError, match='expected the name of an .arrow file') as caught:
            HuggingFaceStore(saved)
        assert caught.value.kind == 'archive_refused'
    (saved / 'state.json').write_text(json.dumps(state))
    (saved / name).write_bytes((saved / name).read_bytes()[:200])
    with pytest.raises(StoreError, match='cannot be opened'):
        HuggingFaceStore(saved)
    (saved / name).unlink()
    with pytest.raises(StoreError, match='is missing'):
        HuggingFaceStore(saved)
    with pytest.raises(StoreError, match='state.json cannot be read'):
        (saved / 'state.json').write_text('{')
        HuggingFaceStore(saved)
    with pytest.raises(ValueError, match='does not exist'):
        HuggingFaceStore(saved / 'none')
