"""Shards: how members become records, and that the index agrees with tarfile's."""
import io
import json
import pickle
import tarfile

import pytest

from qvlkit.data.datasets.conversation import ConversationDataset
from qvlkit.data.stores.interface import StoreError
from qvlkit.data.stores.tar import TarStore
from qvlkit.data.transforms.load_media import MediaError
from qvlkit.structures import SampleError


def write(path, members, form=tarfile.GNU_FORMAT):
    with tarfile.open(path, 'w', format=form) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_members_become_records(tmp_path, make):
    path = write(tmp_path / 'shard-000.tar', [
        ('a/0.jpg', b'zero'), ('a/0.json', json.dumps(make.talk('0.jpg')).encode()), ('a/0.txt', b'Caption \xc3\xa9'),
        ('a/1.left.png', b'left'), ('a/1.right.png', b'right'), ('a/1.txt', b'T'), ('a/._x', b'hidden'),
        ('b/1.mp4', b'video'), ('b/2.json', b'{"image": "jpg", "caption": "mine"}'), ('b/2.jpg', b'two'),
        ('b/2.txt', b'not mine')])
    store = TarStore(path)
    assert len(store) == 4 and store.name == 'shard-000'
    assert store.record_id(3) == 'shard-000.tar[3]'
    assert store.record(0) == {**make.talk('0.jpg'), 'caption': 'Caption é'}
    assert store.record(1) == {'images': ['1.left.png', '1.right.png'], 'caption': 'T'}
    assert store.record(2) == {'video': '1.mp4'}
    assert store.record(3) == {'image': 'jpg', 'caption': 'mine'}
    assert [store.resolve(0, text) for text in ('0.jpg', 'a/0.jpg', 'jpg')] == [b'zero'] * 3
    assert store.resolve(1, 'right.png') == b'right' and store.resolve(3, 'jpg') == b'two'
    assert store.resolve(0, 'data:image/png;base64,aGk=') == b'hi'
    with pytest.raises(IndexError):
        store.record(4)


def test_several_shards_as_a_dataset(tmp_path, make):
    for number in range(3):
        write(tmp_path / f's-{number}.tar', [
            member for row in range(2) for member in (
                (f'{row}.jpg', make.encoded()),
                (f'{row}.json', json.dumps(make.talk('jpg', f'{number}{row}')).encode()))])
    data = pickle.loads(pickle.dumps(ConversationDataset(str(tmp_path / 's-*.tar'))))
    assert len(data) == 6 and data.name == tmp_path.name
    assert [data[index].id for index in (1, 2, 5)] == ['s-0.tar[1]', 's-1.tar[0]', 's-2.tar[1]']
    assert data[4].turns[1].content == ['20'] and data[4].turns[0].content[0].source == make.encoded()


def test_a_reference_leads_nowhere_else(tmp_path):
    path = write(tmp_path / 's.tar', [('0.jpg', b'x'), ('1.jpg', b'y')])
    (tmp_path / 'a.jpg').touch()
    for text in ('1.jpg', 'a.jpg', '../s.tar', str(tmp_path / 'a.jpg'), ''):
        with pytest.raises(MediaError):
            TarStore(path).resolve(0, text)
    store = TarStore(path, media_root=tmp_path)
    assert store.resolve(0, 'a.jpg') == tmp_path.resolve() / 'a.jpg'
    with pytest.raises(MediaError, match='leads out'):
        store.resolve(0, '../x')


@pytest.mark.parametrize('form', [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_the_index_agrees_with_tarfile(tmp_path, form):
    long = '' if form == tarfile.USTAR_FORMAT else 'd' * 150 + '/'
    path = write(tmp_path / 's.tar', [('./0.jpg', b'a' * 700), (f'{long}1é.json', b'{}'), ('e/2.txt', b''),
                                      ('3.jpg', b'c' * 512)], form)
    with tarfile.open(path) as archive:
        expected = [(member.name.removeprefix('./'), member.offset_data, member.size) for member in archive]
    found = [(member.name, member.start, member.size) for group in TarStore(path)._members for member in group]
    assert found == expected and len(found) == 4


@pytest.mark.parametrize('data, reason', [(b'{', 'is not JSON'), (b'[]', 'expected a record'), (b'[' * 99999, 'JSON')])
def test_a_broken_record_does_not_hurt_the_others(tmp_path, data, reason):
    store = TarStore(write(tmp_path / 's.tar', [('0.json', data), ('1.json', b'{}'), ('2.txt', b'\xff')]))
    with pytest.raises(SampleError, match=r's\.tar\[0\]: .*' + reason):
        store.record(0)
    assert store.record(1) == {}
    with pytest.raises(SampleError, match="'2.txt'"):
        store.record(2)


def test_cut_shards(tmp_path):
    path = write(tmp_path / 's.tar', [('0.jpg', b'x' * 2000), ('1.jpg', b'y' * 2000)])
    data, store = path.read_bytes(), TarStore(path)
    path.write_bytes(data[:3500])
    with pytest.raises(StoreError, match=r"'1.jpg' claims 2,000 bytes, but the file ends after") as caught:
        TarStore(path)
    assert caught.value.kind == 'truncated'
    with pytest.raises(MediaError, match='was cut since it was opened'):
        store.resolve(1, 'jpg')
    path.write_bytes(b'x' * 2000)
    with pytest.raises(StoreError, match='no tar header at byte 0'):
        TarStore(path)
