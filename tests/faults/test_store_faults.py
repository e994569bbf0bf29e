"""Broken, cut and hostile stores: typed errors, never a signal, never a file elsewhere; and stores in many processes.

What could kill a process runs in a child, and its exit signal is asserted.
"""
import faulthandler
import gc
import gzip
import io
import json
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from qvlkit.data.datasets.conversation import ConversationDataset
from qvlkit.data.stores.interface import StoreError
from qvlkit.data.stores.lmdb import LMDBStore, record_key
from qvlkit.data.stores.opening import open_store
from qvlkit.data.stores.pack_lmdb import pack
from qvlkit.data.stores.tar import TarStore
from qvlkit.structures import SampleError

lmdb = pytest.importorskip('lmdb')
ROOT = Path(__file__).parents[2]
COUNT = 60
FORK = multiprocessing.get_context('fork')


def write_source(folder):
    """A file of COUNT records with pictures of their own."""
    folder.mkdir(exist_ok=True)
    records = []
    for number in range(COUNT):
        Image.new('RGB', (40, 30), (number, 0, 0)).save(folder / f'{number}.png')
        records.append({'image': f'{number}.png', 'conversations': [
            {'from': 'human', 'value': '<image>' + 'Q' * 200}, {'from': 'gpt', 'value': str(number)}]})
    (folder / 'chat.json').write_text(json.dumps(records))
    return str(folder / 'chat.json')


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    return write_source(tmp_path_factory.mktemp('source'))


@pytest.fixture(scope='module')
def whole(source, tmp_path_factory):
    """A packed store, which tests copy and do not touch."""
    folder = tmp_path_factory.mktemp('whole') / 'chat.lmdb'
    pack(ConversationDataset(source), folder)
    return folder


@pytest.fixture
def store(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / 'chat.lmdb'))


def read_all(folder):
    """'' for each sample that reads as it was packed, else the kind of its error, or 'wrong'."""
    data = ConversationDataset(str(folder))
    found = []
    for index in range(len(data)):
        try:
            sample = data[index]
            image = Image.open(io.BytesIO(sample.media()[0].source))
            same = sample.turns[1].content == [str(index)] and image.convert('RGB').getpixel((0, 0)) == (index, 0, 0)
            found.append('' if same else 'wrong')
        except SampleError as error:
            found.append(error.kind)
    return found


def in_child(work, *arguments):
    """(exit code, negative for a signal; what `work` returned, or the StoreError that it raised)."""
    receiver, sender = FORK.Pipe(duplex=False)

    def child():
        faulthandler.disable()  # else a signal prints where it came from
        try:
            sender.send(work(*arguments))
        except StoreError as error:
            sender.send(error)

    process = FORK.Process(target=child)
    process.start()
    sender.close()
    process.join(60)
    if process.exitcode is None:
        process.kill()
        pytest.fail('the child hangs')
    return process.exitcode, receiver.recv() if process.exitcode == 0 else None


def raw_read(folder):
    """What a reader without the check of the size does."""
    with lmdb.open(str(folder), readonly=True, lock=False, create=False) as environment, environment.begin() as reading:
        return [len(value) for _, value in reading.cursor()]


# 13: LMDB files that are cut, garbage or changed


def test_a_whole_store_reads(store):
    """The control of what follows."""
    assert in_child(read_all, store) == (0, [''] * COUNT)


def test_a_cut_file_would_kill_a_reader_that_does_not_check(store):
    os.truncate(store / 'data.mdb', 3 * 4096)
    assert in_child(raw_read, store)[0] == -signal.SIGBUS


@pytest.mark.parametrize('keep', [0, 1, 100, 4096, 8191, 8192, 20_000, -4096, -1])
def test_a_cut_file_is_a_typed_error(store, keep):
    size = (store / 'data.mdb').stat().st_size
    os.truncate(store / 'data.mdb', keep if keep >= 0 else size + keep)
    code, error = in_child(read_all, store)
    assert code == 0 and isinstance(error, StoreError) and error.kind == 'truncated' and f'{size:,}' in error.reason


def test_a_cut_file_is_seen_by_its_own_pages_too(store):
    """index.json may be a stranger's, or have been written for the cut file."""
    os.truncate(store / 'data.mdb', 5 * 4096)
    index = json.loads((store / 'index.json').read_text())
    (store / 'index.json').write_text(json.dumps({**index, 'bytes': 5 * 4096}))
    code, error = in_child(read_all, store)
    assert code == 0 and error.kind == 'truncated' and 'its pages reach to' in error.reason


def test_a_file_cut_between_two_openings(store):
    data = ConversationDataset(str(store))
    assert data[0] and data[1]
    data.store.close()
    os.truncate(store / 'data.mdb', 5 * 4096)
    code, error = in_child(lambda: data[2])
    assert code == 0 and error.kind == 'truncated'


@pytest.mark.parametrize('garbage', [b'\0', b'garbage '])
def test_a_garbage_file(store, garbage):
    size = (store / 'data.mdb').stat().st_size
    (store / 'data.mdb').write_bytes((garbage * size)[:size])
    code, error = in_child(read_all, store)
    assert code == 0 and 'is not an LMDB file' in error.reason
    (store / 'data.mdb').write_bytes(b'')
    assert in_child(read_all, store)[1].kind == 'truncated'
    (store / 'data.mdb').unlink()
    with pytest.raises(ValueError):
        open_store(store)
    with pytest.raises(StoreError, match='cannot be read'):
        LMDBStore(store)


@pytest.mark.parametrize('break_index', [Path.unlink, lambda path: path.write_text('{"schema": 1'),
                                         lambda path: path.write_bytes(os.urandom(300))])
def test_a_broken_sidecar(store, break_index):
    break_index(store / 'index.json')
    code, error = in_child(read_all, store)
    assert code == 0 and error.kind in ('unfinished', 'not_a_store')


def test_broken_sizes(store):
    data = (store / 'sizes.safetensors').read_bytes()
    for broken in (data[:-1], b'', data[:-1] + bytes([data[-1] ^ 1])):
        (store / 'sizes.safetensors').write_bytes(broken)
        with pytest.raises(StoreError, match='has changed'):
            LMDBStore(store).sizes(0)
    (store / 'sizes.safetensors').unlink()
    with pytest.raises(StoreError, match='cannot be read'):
        LMDBStore(store).sizes(0)


def change(folder, edit):
    """Edit the entries of a store through LMDB, and let index.json agree with the size."""
    with lmdb.open(str(folder), map_size=2 ** 24) as environment, environment.begin(write=True) as transaction:
        edit(transaction)
    (folder / 'lock.mdb').unlink(missing_ok=True)
    index = json.loads((folder / 'index.json').read_text())
    (folder / 'index.json').write_text(json.dumps({**index, 'bytes': (folder / 'data.mdb').stat().st_size}))


def test_a_missing_key(store):
    media = LMDBStore(store)._header(9)['media']
    change(store, lambda transaction: (transaction.delete(record_key(4)),
                                       transaction.delete(media['9.png'].encode())))
    code, found = in_child(read_all, store)
    assert code == 0 and [index for index, kind in enumerate(found) if kind] == [4, 9]
    assert {found[4], found[9]} == {'corrupt_record'}
    with pytest.raises(SampleError, match=r'chat\.lmdb\[4\]: its key is missing'):
        ConversationDataset(str(store))[4]
    with pytest.raises(SampleError, match=r"chat\.lmdb\[9\]: medium '9.png' .* is missing"):
        ConversationDataset(str(store))[9]


def test_every_flipped_bit_of_a_value_is_seen(store):
    clean, data = (store / 'data.mdb').read_bytes(), LMDBStore(store)
    values = {7: data._get(record_key(7)), 8: data._get(data._header(8)['media']['8.png'].encode())}
    data.close()
    generator = random.Random(0)
    for index, value in values.items():
        assert value in clean
        for _ in range(25):
            flipped = bytearray(value)
            flipped[generator.randrange(len(value))] ^= 1 << generator.randrange(8)
            broken = clean.replace(value, flipped)  # in the free space, too, where LMDB left copies
            (store / 'data.mdb').write_bytes(broken)
            expected = ['corrupt_record' if other == index else '' for other in range(COUNT)]
            assert read_all(store) == expected


@pytest.mark.slow
def test_a_flipped_bit_anywhere_gives_no_wrong_sample_and_no_bus_error(store):
    """LMDB's own pages included: there its assertions may end the process, but nothing is read that was not packed."""
    clean, generator, kinds = (store / 'data.mdb').read_bytes(), random.Random(1), set()
    for number in range(150):
        broken = bytearray(clean)
        page = generator.randrange(len(clean) // 4096)
        broken[page * 4096 + generator.randrange(48 if number % 2 else 4096)] ^= 1 << generator.randrange(8)
        (store / 'data.mdb').write_bytes(broken)
        code, found = in_child(read_all, store)
        assert code in (0, -signal.SIGABRT)
        assert not isinstance(found, list) or 'wrong' not in found
        kinds.add(type(found).__name__ + ''.join(sorted(set(found or []))) if isinstance(found, list) else 'refused')
    assert len(kinds) > 1  # some flips were met


# 13: writing


def test_a_killed_writer_leaves_whole_transactions_and_is_gone_on_with(source, whole, tmp_path):
    folder = tmp_path / 'out'

    def kill_at(number):
        def progress(done, total):
            if done == number:
                os.kill(os.getpid(), signal.SIGKILL)
        return progress

    for number in (25, 47):
        code, _ = in_child(lambda number=number: pack(ConversationDataset(source), folder, batch_records=10,
                                                      progress=kill_at(number)))
        assert code == -signal.SIGKILL
        with lmdb.open(str(folder), readonly=True, lock=False) as environment, environment.begin() as transaction:
            records = [key for key, _ in transaction.cursor() if len(key) == 10]
        assert records == [record_key(index) for index in range(number // 10 * 10)]
        with pytest.raises(StoreError, match='unfinished'):
            ConversationDataset(str(folder))
    pack(ConversationDataset(source), folder)
    assert LMDBStore(folder).index == {**LMDBStore(whole).index, 'bytes': LMDBStore(folder).index['bytes']}
    assert read_all(folder) == [''] * COUNT


def test_a_writer_killed_at_any_time(source, tmp_path):
    folder, generator = tmp_path / 'out', random.Random(2)
    for _ in range(5):
        process = FORK.Process(target=lambda: pack(ConversationDataset(source), folder, batch_records=1))
        process.start()
        time.sleep(generator.uniform(0.01, 0.2))
        process.kill()
        process.join()
    pack(ConversationDataset(source), folder)
    assert read_all(folder) == [''] * COUNT


def test_a_full_disk_is_a_typed_error(source, tmp_path):
    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
        return pack(ConversationDataset(source), tmp_path / 'out', batch_records=10)

    code, error = in_child(work)
    assert code == 0 and error.kind == 'not_writable', error
    pack(ConversationDataset(source), tmp_path / 'out')
    assert read_all(tmp_path / 'out') == [''] * COUNT


def test_a_full_map_grows(source, tmp_path):
    code, packed = in_child(lambda: pack(ConversationDataset(source), tmp_path / 'out', map_bytes=4096 * 4))
    assert code == 0 and packed.count == COUNT and packed.bytes > 4096 * 8
    assert read_all(tmp_path / 'out') == [''] * COUNT


READ_ONLY = '''
import sys
from qvlkit.data.datasets.conversation import ConversationDataset
from qvlkit.data.stores.interface import StoreError
from qvlkit.data.stores.pack_lmdb import pack
source, folder = sys.argv[1:]
assert ConversationDataset(folder + '/chat.lmdb')[5].media()[0].source, 'a reader needs no right to write'
for target in ('/new.lmdb', '/begun.lmdb'):
    try:
        pack(ConversationDataset(source), folder + target)
    except StoreError as error:
        print(error.kind, error.reason)
'''


def test_a_read_only_file_system(source, whole, tmp_path):
    shutil.copytree(whole, tmp_path / 'chat.lmdb')
    (tmp_path / 'begun.lmdb').mkdir()
    command = [sys.executable, '-c', READ_ONLY, source, str(tmp_path)]
    if os.geteuid() == 0:  # for whom rights are no obstacle
        mount = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" || exit 77; exec "$@"'
        command = ['unshare', '--mount', 'sh', '-c', mount, str(tmp_path), *command]
        if shutil.which('unshare') is None:
            pytest.skip('root, and no unshare')
    else:
        (tmp_path / 'begun.lmdb').chmod(0o555)
        tmp_path.chmod(0o555)
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False,
                            env={**os.environ, 'PYTHONPATH': str(ROOT)}, cwd=ROOT)
    tmp_path.chmod(0o755)
    if result.returncode == 77 or 'unshare failed' in result.stderr:
        pytest.skip(f'a read-only mount is not allowed here: {result.stderr}')
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 2 and all(line.startswith('not_writable cannot be written: ') for line in lines), lines


# 14: many readers


def open_files(pid='self'):
    return len(os.listdir(f'/proc/{pid}/fd'))


@pytest.mark.slow
def test_two_hundred_readers_at_once(store):
    data = ConversationDataset(str(store))
    assert data[0]  # open before the fork
    release_read, release_write = os.pipe()
    done_read, done_write = os.pipe()
    children = []
    for number in range(200):
        pid = os.fork()
        if pid == 0:
            os.close(release_write)
            good = data[number % COUNT].turns[1].content == [str(number % COUNT)]
            try:
                held = data.store._environment.handle.begin()  # a table of readers would be full at 126
            except lmdb.Error:
                held = None
            os.write(done_write, b'.' if good and held else b'x')
            os.read(release_read, 1)  # holds the transaction until all have read
            os._exit(0 if good and held else 1)
        children.append(pid)
    os.close(done_write)
    answers = b''
    while len(answers) < 200 and (more := os.read(done_read, 200)):
        answers += more
    os.close(release_write)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    os.close(release_read)
    os.close(done_read)
    assert codes == [0] * 200 and answers == b'.' * 200
    assert data[1]


def test_opened_before_a_fork_and_used_on_both_sides(store):
    data = ConversationDataset(str(store))
    before, handle = data[3], data.store._environment
    for _ in range(3):
        code, found = in_child(lambda: (data[3] == before, data[4].turns[1].content, data.store._environment is handle))
        assert code == 0 and found == (True, ['4'], False)
        assert data[5].turns[1].content == ['5'] and data.store._environment is handle


def test_used_after_close_and_pickled_while_open(store):
    data = ConversationDataset(str(store))
    before = data[3]
    data.store.close()
    data.store.close()
    assert data[3] == before
    copy = pickle.loads(pickle.dumps(data))
    data.store.close()
    assert copy[3] == before and data[3] == before


@pytest.mark.slow
@pytest.mark.parametrize('start', ['fork', 'spawn'])
def test_loader_workers_over_five_epochs(store, start):
    data = ConversationDataset(str(store))
    expected = [sample.turns[1].content for sample in (data[index] for index in range(COUNT))]  # opens it
    loader = torch.utils.data.DataLoader(data, batch_size=None, shuffle=True, num_workers=2, persistent_workers=True,
                                         multiprocessing_context=start)
    counts, here = [], []
    for _ in range(5):
        answers = [sample.turns[1].content for sample in loader]
        assert sorted(answers) == sorted(expected)
        workers = multiprocessing.active_children()
        assert len(workers) >= 2
        counts.append({worker.pid: open_files(worker.pid) for worker in workers})
        here.append(open_files())
    assert counts[0] == counts[-1] and here[0] == here[-1], (counts, here)
    iterator = loader._iterator
    iterator._shutdown_workers()
    assert [worker.exitcode for worker in iterator._workers] == [0, 0]


@pytest.mark.parametrize('kind', ['jsonl', 'parquet', 'tar', 'saved'])
def test_other_stores_in_forked_workers(source, tmp_path, kind):
    folder, path = Path(source).parent, tmp_path / f'x.{kind}'
    rows = [{**record, 'image': (folder / record['image']).read_bytes()}
            for record in json.loads(Path(source).read_text())]
    if kind == 'jsonl':
        path.write_text('\n'.join(json.dumps({**row, 'image': f'{number}.png'}) for number, row in enumerate(rows)))
    elif kind == 'parquet':
        pytest.importorskip('pyarrow.parquet').write_table(
            pytest.importorskip('pyarrow').Table.from_pylist(rows), path, row_group_size=7)
    elif kind == 'tar':
        with tarfile.open(path, 'w') as opened:
            for number, row in enumerate(rows):
                for name, data in (('png', row['image']), ('json', json.dumps({**row, 'image': 'png'}).encode())):
                    info = tarfile.TarInfo(f'{number}.{name}')
                    info.size = len(data)
                    opened.addfile(info, io.BytesIO(data))
    else:
        pytest.importorskip('datasets').Dataset.from_list(rows).save_to_disk(path)
    data = ConversationDataset(str(path), media_root=str(folder) if kind == 'jsonl' else None)
    expected = [data[index] for index in range(COUNT)]
    loader = torch.utils.data.DataLoader(data, batch_size=None, num_workers=2, multiprocessing_context='fork',
                                         timeout=60)
    counts = []
    for _ in range(3):
        assert [sample.turns for sample in loader] == [sample.turns for sample in expected]
        gc.collect()
        counts.append(open_files())
    assert counts[1] == counts[2], counts


def test_no_file_stays_open_when_stores_come_and_go(store):
    ConversationDataset(str(store))[0]
    before = open_files()
    for index in range(20):
        ConversationDataset(str(store))[index]
    assert open_files() == before


# 11: archives


def archive(path, name='../outside.txt', kind=tarfile.REGTYPE, size=4, link='', headers=None):
    with tarfile.open(path, 'w', format=tarfile.PAX_FORMAT) as opened:
        good = tarfile.TarInfo('0.txt')
        good.size = 4
        opened.addfile(good, io.BytesIO(b'good'))
        info = tarfile.TarInfo(name)
        info.type, info.size, info.linkname, info.pax_headers = kind, size, link, headers or {}
        opened.addfile(info, io.BytesIO(bytes(size)) if kind == tarfile.REGTYPE else None)
    return path


@pytest.mark.parametrize('member, words', [
    (dict(), ['../outside.txt', 'leads out']), (dict(name='a/../../outside.txt'), ['leads out']),
    (dict(name='/tmp/outside.txt'), ['leads out']),
    (dict(headers={'path': '../outside.txt'}, name='x'), ['../outside.txt', 'leads out']),
    (dict(kind=tarfile.SYMTYPE, name='l.txt', link='/etc/passwd', size=0), ['symbolic link']),
    (dict(kind=tarfile.LNKTYPE, name='l.txt', link='../outside.txt', size=0), ['hard link']),
    (dict(kind=tarfile.CHRTYPE, name='d', size=0), ['a device']), (dict(kind=tarfile.BLKTYPE, name='d', size=0),
                                                                ['a device']),
    (dict(kind=tarfile.FIFOTYPE, name='p', size=0), ['a device or a pipe']),
    (dict(kind=b'S', name='s', size=0), ['unknown type']),
    (dict(name='x', headers={'GNU.sparse.major': '1'}), ['sparse']),
    (dict(name='x', headers={'size': '-5'}), ["size '-5'"]), (dict(name='x', headers={'size': '9' * 30}), ['size']),
    (dict(name='x', headers={'comment': 'c' * 100_000}), ['pax header of 100,'])])
def test_hostile_archives_are_refused(tmp_path, member, words):
    (tmp_path / 'in').mkdir()
    path = archive(tmp_path / 'in' / 's.tar', **member)
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(StoreError) as caught:
        ConversationDataset(str(path))
    assert caught.value.kind == 'archive_refused' and all(word in str(caught.value) for word in words), caught.value
    assert sorted(tmp_path.rglob('*')) == before and not Path('/tmp/outside.txt').exists()


def test_the_same_archive_without_the_hostile_member_opens(tmp_path):
    assert len(TarStore(archive(tmp_path / 's.tar', name='1.txt'))) == 2


def test_absurd_sizes_are_refused_unread(tmp_path):
    path = archive(tmp_path / 's.tar', name='1.txt')
    with open(path, 'r+b') as file:
        header = tarfile.TarInfo('big.jpg')
        header.size = 2 ** 40
        file.write(header.tobuf())
    with pytest.raises(StoreError, match="'big.jpg' claims 1,099,511,627,776 bytes") as caught:
        TarStore(path)
    assert caught.value.kind == 'truncated'
    with open(path, 'r+b') as file:  # a file with holes may really be that long
        header.size = 2 ** 32
        file.write(header.tobuf(tarfile.GNU_FORMAT))
        file.truncate(2 ** 33)

    def work():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            TarStore(path)
        except StoreError as error:
            return error.kind, error.reason, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before

    code, (kind, reason, grown) = in_child(work)
    assert code == 0 and kind == 'archive_refused' and 'max_member_bytes' in reason and grown < 200 * 1024


def test_bombs_are_refused_unopened(tmp_path):
    line = b'{"conversations": [' + b' ' * 2 ** 20 + b']}\n'
    with gzip.open(tmp_path / 'x.jsonl.gz', 'wb') as file:
        for _ in range(300):
            file.write(line)
    assert 300 * len(line) > 900 * (tmp_path / 'x.jsonl.gz').stat().st_size
    shutil.copy(tmp_path / 'x.jsonl.gz', tmp_path / 'x.tar.gz')
    shutil.copy(tmp_path / 'x.jsonl.gz', tmp_path / 'x.tar')

    def work():
        before, kinds = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
        for name in ('x.jsonl.gz', 'x.tar.gz', 'x.tar'):
            try:
                ConversationDataset(str(tmp_path / name))
            except StoreError as error:
                kinds.append((error.kind, 'decompress' in error.reason))
        return kinds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before

    code, (kinds, grown) = in_child(work)
    assert code == 0 and kinds == [('archive_refused', True)] * 2 + [('not_a_store', True)]
    assert grown < 200 * 1024, f'{grown} KiB'  # of 300 MiB that they unfold to
    assert sorted(path.name for path in tmp_path.iterdir()) == ['x.jsonl.gz', 'x.tar', 'x.tar.gz']
