"""Packing: deduplicated, counted, quarantined, gone on with, and the same whatever the transactions."""
import base64
import fcntl
import io
import json
import tarfile

import pytest

from qvlkit.data.datasets.conversation import ConversationDataset
from qvlkit.data.datasets.photo_questions import PhotoQuestions
from qvlkit.data.stores.interface import StoreError
from qvlkit.data.stores.lmdb import LMDBStore
from qvlkit.data.stores.pack_lmdb import Packed, pack
from qvlkit.structures import MediaSize, SampleError

pytest.importorskip('lmdb')


@pytest.fixture
def source(folder):
    return ConversationDataset(str(folder / 'chat.json'))


def of(folder, records, **arguments):
    (folder / 'x.json').write_text(json.dumps(records))
    return ConversationDataset(str(folder / 'x.json'), **arguments)


def test_media_are_stored_once(folder, source, make):
    packed = pack(source, folder / 'out')
    assert (packed.count, packed.quarantined, packed.media) == (4, 0, 2)
    assert packed.bytes == (folder / 'out' / 'data.mdb').stat().st_size
    (folder / 'c.jpg').write_bytes((folder / 'a.jpg').read_bytes())
    assert pack(of(folder, [make.talk('a.jpg'), make.talk('c.jpg')]), folder / 'same').media == 1
    assert sorted(path.name for path in (folder / 'out').iterdir()) == [
        'data.mdb', 'index.json', 'quarantine.jsonl', 'sizes.safetensors']


def test_transactions_do_not_show(folder, source):
    prints = set()
    for name, batch in (('one', dict(batch_records=1)), ('bytes', dict(batch_bytes=1)), ('all', {})):
        pack(source, folder / name, **batch)
        prints.add(LMDBStore(folder / name).index['fingerprint'])
    assert len(prints) == 1
    (folder / 'b.png').write_bytes((folder / 'a.jpg').read_bytes())
    pack(source, folder / 'other')
    assert LMDBStore(folder / 'other').index['fingerprint'] not in prints  # it covers the media, too


def test_bad_records_are_counted_and_named(folder, make):
    (folder / 'page.jpg').write_text('<html>')
    bad = [make.talk('gone.jpg'), make.talk('../a.jpg'), make.talk('page.jpg'), {'conversations': []}, 7]
    packed = pack(of(folder, [make.talk('a.jpg'), *bad, make.talk(None, 'last')]), folder / 'out', batch_records=2)
    assert (packed.count, packed.quarantined) == (2, 5)
    lines = [json.loads(line) for line in (folder / 'out' / 'quarantine.jsonl').read_text().splitlines()]
    assert [line['kind'] for line in lines] == ['missing_media', 'path_refused', 'bad_image', 'empty_conversation',
                                                'wrong_type']
    assert lines[1]['sample'] == 'x.json[2]' and 'leads out' in lines[1]['reason']
    assert ConversationDataset(str(folder / 'out'))[1].turns[1].content == ['last']


def test_from_any_store(folder, make):
    pq = pytest.importorskip('pyarrow.parquet')
    import pyarrow as pa
    rows = [{**make.talk('x', str(number)), 'image': {'bytes': make.encoded(size=(8, 6 + number)), 'path': None}}
            for number in range(3)]
    pq.write_table(pa.Table.from_pylist(rows), folder / 'x.parquet')
    with tarfile.open(folder / 'x.tar', 'w') as archive:
        for number, row in enumerate(rows):
            for name, data in ((f'{number}.jpg', row['image']['bytes']),
                               (f'{number}.json', json.dumps({**row, 'image': 'jpg'}).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    for name in ('x.parquet', 'x.tar'):
        source, target = ConversationDataset(str(folder / name)), folder / f'{name}.lmdb'
        assert pack(source, target).media == 3
        packed = ConversationDataset(str(target))
        assert [packed[index].turns for index in range(3)] == [source[index].turns for index in range(3)]
    assert pack(packed, folder / 'again').count == 3


def test_nothing_usable(folder, make):
    with pytest.raises(ValueError, match='no record of .* can be used'):
        pack(of(folder, [make.talk('gone.jpg')]), folder / 'out')
    with pytest.raises(StoreError, match='unfinished') as caught:
        ConversationDataset(str(folder / 'out'))
    assert caught.value.kind == 'unfinished'


def test_a_data_uri_becomes_bytes_stored_once(folder, make):
    data = make.encoded()
    uri = 'data:image/jpeg;base64,' + base64.b64encode(data).decode()
    parts = [{'type': 'image_url', 'image_url': {'url': uri}}, {'type': 'text', 'text': 'Q'}]
    record = {'messages': [{'role': 'user', 'content': parts}, {'role': 'assistant', 'content': 'A'}]}
    pack(of(folder, [record]), folder / 'out')
    stored = ConversationDataset(str(folder / 'out'))
    assert stored[0].turns[0].content[0].source == data
    assert uri not in json.dumps(stored.store.record(0)) and stored[0].turns[0].content[1] == 'Q'


def test_renamed_columns_are_remembered(folder):
    turns = [{'from': 'human', 'value': 'Q'}, {'from': 'gpt', 'value': 'A'}]
    (folder / 'x.json').write_text(json.dumps([{'chat': turns}]))
    (folder / 'dataset_info.json').write_text(json.dumps({'mine': {
        'file_name': 'x.json', 'formatting': 'sharegpt', 'columns': {'messages': 'chat'}}}))
    pack(ConversationDataset(str(folder / 'dataset_info.json'), dataset='mine'), folder / 'out')
    stored = ConversationDataset(str(folder / 'out'))
    assert [turn.content for turn in stored[0].turns] == [['Q'], ['A']]


def test_videos_are_measured_by_who_can(folder, make):
    (folder / 'v.mp4').write_bytes(b'video')
    record = {'video': ['v.mp4', ['a.jpg', 'a.jpg']],
              'conversations': [{'from': 'human', 'value': '<video><video>Q'}, {'from': 'gpt', 'value': 'A'}]}
    known = MediaSize('video', 64, 48, 30, 1.0)
    counts = dict(measure=lambda sample: (5, 2), text_key='k')
    pack(of(folder, [record]), folder / 'one', measure_video=lambda data: known, **counts)
    assert LMDBStore(folder / 'one').sizes(0).media == (known, MediaSize('frames', 8, 6, 2, 1.0))
    pack(of(folder, [record]), folder / 'two', measure_video=lambda data: None, **counts)
    assert LMDBStore(folder / 'two').sizes(0) is None


def test_a_sample_that_measuring_refuses(folder, source):
    def measure(sample):
        if sample.id.endswith('[1]'):
            raise SampleError(sample.id, 'too long', 'too_long')
        return 3, 1

    assert pack(source, folder / 'out', measure=measure, text_key='k').quarantined == 1
    assert LMDBStore(folder / 'out').sizes(2).text_tokens == 3
    with pytest.raises(ValueError, match='belong together'):
        pack(source, folder / 'other', measure=measure)


def test_the_map_grows(folder, make):
    (folder / 'big.jpg').write_bytes(make.encoded(size=(64, 64)) + bytes(3_000_000))
    packed = pack(of(folder, [make.talk('a.jpg'), make.talk('big.jpg')]), folder / 'out', map_bytes=2 ** 16)
    assert packed.count == 2 and packed.bytes > 3_000_000
    assert len(ConversationDataset(str(folder / 'out'))[1].media()[0].source) > 3_000_000


class Stop(Exception):
    pass


def stop_at(number):
    def progress(done, total):
        if done == number:
            raise Stop
    return progress


def test_it_goes_on_where_it_stopped(folder, make):
    records = [make.talk('a.jpg' if row % 3 else 'gone.jpg', str(row)) for row in range(10)]
    source, seen = of(folder, records), []
    for stop in (5, 7):
        with pytest.raises(Stop):
            pack(source, folder / 'out', batch_records=2, progress=stop_at(stop))
    packed = pack(source, folder / 'out', batch_records=2, progress=lambda done, total: seen.append(done))
    assert seen[0] > 5 and seen[-1] == 10
    assert (packed.count, packed.quarantined) == (6, 4)
    assert len((folder / 'out' / 'quarantine.jsonl').read_text().splitlines()) == 4
    pack(source, folder / 'whole')
    assert LMDBStore(folder / 'out').index['fingerprint'] == LMDBStore(folder / 'whole').index['fingerprint']
    assert pack(source, folder / 'out', progress=stop_at(1)) == packed  # finished: nothing is done again


def test_another_source_is_refused(folder, source, make):
    with pytest.raises(Stop):
        pack(source, folder / 'out', batch_records=1, progress=stop_at(2))
    with pytest.raises(StoreError, match='another source: files was .*chat.json.* and is .*x.json'):
        pack(of(folder, [make.talk()]), folder / 'out')
    pack(source, folder / 'out')
    with pytest.raises(StoreError, match='another source: samples was 4 and is 3'):
        pack(ConversationDataset(str(folder / 'chat.json'), limit=3), folder / 'out')


def test_folders_that_are_not_free(folder, source):
    with pytest.raises(StoreError, match='is not empty'):
        pack(source, folder)
    with pytest.raises(StoreError, match='cannot be written'):
        pack(source, folder / 'a.jpg')
    (folder / 'out').mkdir()
    with open(folder / 'out' / 'pack.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match='another process is packing'):
            pack(source, folder / 'out')
    assert isinstance(pack(source, folder / 'out'), Packed)


def test_a_dataset_without_records(folder):
    with pytest.raises(ValueError, match='PhotoQuestions has no records to pack'):
        pack(PhotoQuestions(4), folder / 'out')
