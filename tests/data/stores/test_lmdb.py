"""The LMDB store: what was packed comes back, whole, in any order, and sizes without a read."""
import gc
import hashlib
import json
import pickle

import pytest

from qvlkit.data.datasets.conversation import ConversationDataset
from qvlkit.data.stores.interface import StoreError
from qvlkit.data.stores.lmdb import LMDBStore, import_lmdb, record_key
from qvlkit.data.stores.pack_lmdb import pack
from qvlkit.data.transforms.load_media import MediaError
from qvlkit.structures import MediaSize, SampleError, SampleSizes

lmdb = pytest.importorskip('lmdb')


@pytest.fixture
def packed(folder):
    pack(ConversationDataset(str(folder / 'chat.json')), folder / 'chat.lmdb', text_key='words',
         measure=lambda sample: (len(sample.turns[0].content[-1]), 1))
    return folder / 'chat.lmdb'


def test_the_same_samples_as_from_files(folder, packed):
    files, stored = ConversationDataset(str(folder / 'chat.json')), ConversationDataset(str(packed))
    assert len(stored) == 4 and stored.name == 'chat' and stored[3].id == 'chat.lmdb[3]'
    for index in (3, 0, 2, 1):
        assert stored.store.record(index) == files.store.record(index)
        media, expected = stored[index].media(), files[index].media()
        assert [medium.source for medium in media] == [medium.source.read_bytes() for medium in expected]
        assert stored[index].turns[1] == files[index].turns[1]


def test_sizes_need_no_read(packed):
    store = LMDBStore(packed)
    store._get = None  # any read would fail
    assert store.sizes(1) == SampleSizes(3, 1, (MediaSize('image', 10, 4),), 'words')
    assert [len(store.sizes(index).media) for index in range(4)] == [1, 1, 1, 0]
    with pytest.raises(IndexError):
        store.sizes(4)
    assert ConversationDataset(str(packed), limit=2).sizes(1) == store.sizes(1)
    with pytest.raises(IndexError):
        ConversationDataset(str(packed), limit=2).sizes(2)


def test_sizes_that_were_not_measured_are_not_known(folder):
    pack(ConversationDataset(str(folder / 'chat.json')), folder / 'x.lmdb')
    assert ConversationDataset(str(folder / 'x.lmdb')).sizes(0) is None


def test_a_reference_leads_to_what_was_packed_with_the_record(packed):
    store = LMDBStore(packed)
    assert store.resolve(0, 'a.jpg') and store.resolve(0, 'data:image/png;base64,aGk=') == b'hi'
    for text in ('b.png', '../a.jpg', '/etc/passwd', '', None, 'progress'):
        with pytest.raises(MediaError, match='was not packed with this record'):
            store.resolve(0, text)


def test_stores_share_what_is_open_and_the_last_closes_it(packed):
    first, second = LMDBStore(packed), LMDBStore(packed)
    assert first.record(0) and second.record(1) and first._environment is second._environment
    first.close()
    assert second.record(2) and first.record(3)
    first.close()
    second.close()
    gc.collect()
    lmdb.open(str(packed), readonly=True, lock=False).close()  # LMDB refuses while it is open in this process
    assert pickle.loads(pickle.dumps(first)).record(0) == first.record(0)


def test_a_replaced_store_is_opened_anew(folder, packed):
    store = LMDBStore(packed)
    assert store.record(0)
    for path in packed.iterdir():
        path.unlink()
    records = [json.loads((folder / 'chat.json').read_text())[3]] * 500
    (folder / 'other.json').write_text(json.dumps(records))
    pack(ConversationDataset(str(folder / 'other.json')), packed)
    assert len(LMDBStore(packed)) == 500 and LMDBStore(packed).record(499) == records[0]


@pytest.mark.parametrize('text, reason', [
    ('{', 'index.json cannot be read'), ('[]', r'expected schema 1, got \[\]'),
    ('{"schema": 9}', 'expected schema 1, got 9'),
    ('{"schema": 1, "count": "4"}', "count: expected int, got '4'"),
    ('{"schema": 1, "count": -4}', 'count: expected int, got -4')])
def test_a_broken_index(packed, text, reason):
    (packed / 'index.json').write_text(text)
    with pytest.raises(StoreError, match=reason):
        LMDBStore(packed)


@pytest.mark.parametrize('text', [b'7', b'{}', b'{"record": 1, "media": {}}', b'{', b'[' * 99999])
def test_a_strange_header_with_a_right_digest(packed, text):
    with lmdb.open(str(packed)) as environment, environment.begin(write=True) as transaction:
        transaction.put(record_key(1), hashlib.sha256(text).digest() + text)
    index = json.loads((packed / 'index.json').read_text())
    size = (packed / 'data.mdb').stat().st_size
    (packed / 'index.json').write_text(json.dumps({**index, 'bytes': size}))
    with pytest.raises(SampleError, match=r"chat\.lmdb\[1\]: expected a header with 'record' and 'media'"):
        LMDBStore(packed).record(1)


@pytest.mark.parametrize('change, reason', [
    (lambda table: table.pop('width'), 'width: expected 3 numbers, got none'),
    (lambda table: table.update(offsets=table['offsets'][:-1]), 'offsets: expected 5 numbers'),
    (lambda table: table['offsets'].__setitem__(-1, 99), 'do not fit'),
    (lambda table: table['offsets'].__setitem__(1, -5), 'do not fit'),
    (lambda table: table['kind'].__setitem__(0, 3), 'do not fit')])
def test_strange_sizes_with_a_right_digest(packed, change, reason):
    from safetensors.numpy import load, save
    table = {name: column.copy() for name, column in load((packed / 'sizes.safetensors').read_bytes()).items()}
    change(table)
    (packed / 'sizes.safetensors').write_bytes(save(table))
    index = json.loads((packed / 'index.json').read_text())
    digest = hashlib.sha256((packed / 'sizes.safetensors').read_bytes()).hexdigest()
    (packed / 'index.json').write_text(json.dumps({**index, 'sizes_sha256': digest}))
    with pytest.raises(StoreError, match=reason):
        LMDBStore(packed).sizes(0)


def test_old_versions_are_refused(monkeypatch):
    monkeypatch.setattr(lmdb, '__version__', '1.9.0')
    with pytest.raises(ValueError, match='needs lmdb>=2.1.1.* found 1.9.0'):
        import_lmdb()
