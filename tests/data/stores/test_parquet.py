import pickle

import pytest

from qvlkit.data.datasets.conversation import ConversationDataset
from qvlkit.data.stores.interface import StoreError
from qvlkit.data.stores.parquet import ParquetStore
from qvlkit.data.transforms.load_media import MediaError
from qvlkit.structures import SampleError

pa = pytest.importorskip('pyarrow')
pq = pytest.importorskip('pyarrow.parquet')


@pytest.fixture
def table(make):
    """Seven rows: an image as a struct, more of them as bytes, turns."""
    rows = [{**make.talk('x', str(number)), 'image': {'bytes': make.encoded(size=(8 + number, 6)), 'path': 'x.jpg'},
             'more': [b'%d' % number, b'z']} for number in range(7)]
    return pa.Table.from_pylist(rows)


@pytest.fixture
def files(table, folder):
    pq.write_table(table.slice(0, 5), folder / 'part-0.parquet', row_group_size=2)
    pq.write_table(table.slice(5), folder / 'part-1.parquet')
    return folder / 'part-*.parquet'


def test_rows_in_any_order(files):
    store = ParquetStore(files)
    assert len(store) == 7
    for index in (6, 0, 3, 4, 5, 1, 2, 0):
        record = store.record(index)
        assert record['conversations'][1]['value'] == str(index) and record['image'] == 'stored:0'
        assert store.resolve(index, record['more'][0]) == b'%d' % index
    assert [store.record_id(index) for index in (0, 4, 5, 6)] == [
        'part-0.parquet[0]', 'part-0.parquet[4]', 'part-1.parquet[0]', 'part-1.parquet[1]']
    with pytest.raises(IndexError):
        store.record(7)


def test_media_of_one_record_are_not_those_of_another(files):
    store = ParquetStore(files)
    store.record(1)
    assert store.resolve(5, 'stored:1') == b'5' and store.resolve(1, 'stored:1') == b'1'
    store.close()
    assert store.resolve(2, 'stored:1') == b'2'


def test_as_a_dataset_and_pickled(files):
    data = ConversationDataset(str(files))
    assert data[3].turns[0].content[0].source[:2] == b'\xff\xd8' and data[3].id == 'part-0.parquet[3]'
    assert len(pickle.dumps(data)) < 5000  # no rows travel
    assert pickle.loads(pickle.dumps(data))[6].turns == data[6].turns


def test_only_one_row_group_is_read_and_kept(files, monkeypatch):
    read, asked = pq.ParquetFile.read_row_group, []
    monkeypatch.setattr(pq.ParquetFile, 'read_row_group', lambda self, group, **more: asked.append(group) or read(
        self, group, **more))
    store = ParquetStore(files)
    for index in (0, 1, 0, 2, 3):
        store.record(index)
    assert asked == [0, 1] and store._group[1].num_rows == 2


def test_columns_and_paths(folder, make):
    pq.write_table(pa.Table.from_pylist([{**make.talk('a.jpg'), 'x': 1}]), folder / 'p.parquet')
    store = ParquetStore(folder / 'p.parquet', columns=['image'])
    assert store.record(0) == {'image': 'a.jpg'} and store.resolve(0, 'a.jpg') == folder.resolve() / 'a.jpg'
    with pytest.raises(MediaError, match='leads out'):
        store.resolve(0, '../b')
    with pytest.raises(ValueError, match="no column 'imge', did you mean 'image'"):
        ParquetStore(folder / 'p.parquet', columns=['imge'])


def test_broken_files(files, folder):
    with pytest.raises(StoreError, match=r'unfolds to .* limit 10 \(max_group_bytes\)'):
        ParquetStore(files, max_group_bytes=10)
    store, path = ParquetStore(files), folder / 'part-0.parquet'
    data = bytearray(path.read_bytes())
    data[4:len(data) // 2] = bytes(len(data) // 2 - 4)
    path.write_bytes(data)
    with pytest.raises(SampleError, match=r'part-0\.parquet\[0\]') as caught:
        store.record(0)
    assert caught.value.kind == 'corrupt_record' and store.record(6)
    path.write_bytes(data[:100])
    with pytest.raises(StoreError, match='is not a Parquet file'):
        ParquetStore(files)
