"""The decoder: readers in turn, edits, what it remembers, and the process that it keeps."""
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qvlkit.data.transforms.edits import Crop, Flip, Resize, apply_edits
from qvlkit.data.transforms.load_media import MediaError
from qvlkit.data.video_readers import decoder as module
from qvlkit.data.video_readers.decoder import VideoDecoder
from qvlkit.data.video_readers.pyav import PyAVReader

pytest.importorskip('av', reason='needs the extra [video]')
ROOT = Path(__file__).parents[3]
STUBS = '''
import os, signal
from qvlkit.data.transforms.load_media import MediaError
from qvlkit.data.video_readers.pyav import PyAVReader
from qvlkit.registry import VIDEO_READERS

@VIDEO_READERS.register_module()
class Chatty(PyAVReader):
    def frames(self, indices):
        print('a line on standard output')
        os.write(1, b'{"and": "another"}\\n')
        yield from super().frames(indices)

@VIDEO_READERS.register_module()
class Refusing(PyAVReader):
    def frames(self, indices):
        raise MediaError('I would rather not', 'bad_video')

@VIDEO_READERS.register_module()
class Crashing(PyAVReader):
    def frames(self, indices):
        yield next(super().frames(indices))
        os.kill(os.getpid(), signal.SIGSEGV)

@VIDEO_READERS.register_module()
class Buggy(PyAVReader):
    def frames(self, indices):
        raise AssertionError('a bug of its own')
        yield

@VIDEO_READERS.register_module()
class Absent(PyAVReader):
    def __init__(self, path):
        raise MediaError('the package nothing cannot be imported', 'no_video_reader')
'''


@pytest.fixture(scope='module')
def clip(tmp_path_factory, clips):
    return clips.write(tmp_path_factory.mktemp('clip') / 'a.mp4', 100, 25, gop=20)


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Decoders that know the readers above; they are closed at the end."""
    (tmp_path / 'reader_stubs.py').write_text(STUBS)
    monkeypatch.syspath_prepend(tmp_path)
    made = []

    def decoder(*readers, **settings):
        made.append(VideoDecoder(readers or ('PyAVReader',), modules=['reader_stubs'], **settings))
        return made[-1]

    yield decoder
    for one in made:
        one.close()


def gone(pid):
    """Whether a process has ended, or is a zombie that waits for another parent."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] == 'Z'
    except FileNotFoundError:
        return True


def test_probe_and_read(make, clip, clips):
    decoder = make()
    info = decoder.probe(clip)
    assert (info.width, info.height, info.num_frames, info.seconds) == (72, 48, 100, 4.0)
    frames = decoder.read(str(clip), [0, 7, 7, 99])
    assert frames.shape == (4, 48, 72, 3) and frames.dtype == np.uint8
    assert [clips.number(frame) for frame in frames] == [0, 7, 7, 99]


def test_edits_are_done_to_each_frame(make, clip):
    edits = [Crop(10, 4, 60, 40), Flip(), Resize(28, 56)]
    frames = make().read(clip, [3, 50], edits)
    reader = PyAVReader(str(clip))
    expected = [np.asarray(apply_edits(Image.fromarray(frame), edits)) for frame in reader.frames([3, 50])]
    assert frames.shape == (2, 56, 28, 3) and (frames == np.stack(expected)).all()


def test_bytes_leave_no_file_behind(make, clip, clips, tmp_path, monkeypatch):
    monkeypatch.setattr(module.tempfile, 'tempdir', str(tmp_path / 'temporary'))
    (tmp_path / 'temporary').mkdir()
    decoder = make()
    assert decoder.probe(clip.read_bytes()).num_frames == 100
    assert clips.number(decoder.read(clip.read_bytes(), [42])[0]) == 42
    assert not list((tmp_path / 'temporary').iterdir())
    assert len(decoder._known) == 1


def test_probe_is_remembered_until_the_file_changes(make, clip, clips, tmp_path, monkeypatch):
    decoder, path = make(), tmp_path / 'b.mp4'
    path.write_bytes(clip.read_bytes())
    info = decoder.probe(path)
    decoder.close()
    assert decoder.probe(path) is info and decoder._child is None
    clips.write(path, 10, 25)
    assert decoder.probe(path).num_frames == 10
    monkeypatch.setattr(module, 'REMEMBERED', 1)
    decoder.probe(clip)
    assert len(decoder._known) == 1


@pytest.mark.parametrize('frames', [[], [-1], [5, 4], [0, 100]])
def test_indices_that_make_no_sense(make, clip, frames):
    with pytest.raises(ValueError, match='ascending indices from 0 to 99'):
        make().read(clip, frames)


def test_what_is_printed_does_not_disturb(make, clip, clips):
    decoder = make('Chatty')
    for _ in range(2):
        assert [clips.number(frame) for frame in decoder.read(clip, [1, 2])] == [1, 2]


@pytest.mark.parametrize('bad, says', [
    ('Refusing', 'Refusing: I would rather not'), ('Crashing', 'signal 11'),
    ('Buggy', 'AssertionError: a bug of its own'),
])
def test_the_next_reader_gets_its_turn(make, clip, clips, bad, says):
    decoder = make(bad, 'PyAVReader')
    assert [clips.number(frame) for frame in decoder.read(clip, [1, 98])] == [1, 98]
    with pytest.raises(MediaError, match=says) as error:
        make(bad).read(clip, [1, 98])
    assert error.value.kind == 'bad_video' and str(clip) in str(error.value)
    assert clips.number(decoder.read(clip, [97])[0]) == 97


def test_absent_packages_are_passed_over(make, clip):
    decoder = make('Absent', 'PyAVReader')
    assert decoder.probe(clip).num_frames == 100
    assert list(decoder._absent) == ['Absent']
    with pytest.raises(MediaError, match='nothing cannot be imported') as error:
        make('Absent').probe(clip)
    assert error.value.kind == 'no_video_reader'


def test_one_process_serves_many_requests_and_a_dead_one_is_replaced(make, clip, clips):
    decoder = make()
    decoder.read(clip, [0])
    first = decoder._child.pid
    decoder.read(clip, [1])
    assert decoder._child.pid == first
    os.kill(first, signal.SIGKILL)
    while decoder._child.alive():
        time.sleep(0.01)
    assert clips.number(decoder.read(clip, [2])[0]) == 2
    assert decoder._child.pid != first and gone(first)


def test_an_interrupted_request_does_not_answer_the_next_one(make, clip, clips, monkeypatch):
    decoder = make()
    decoder.probe(clip)
    with monkeypatch.context() as patch:
        messages = []

        def interrupt(child):
            if len(messages) == 2:
                raise KeyboardInterrupt
            messages.append(child.receive())
            return messages[-1]

        patch.setattr(module, '_receive', interrupt)
        with pytest.raises(KeyboardInterrupt):
            decoder.read(clip, [10, 11, 12, 13])
    assert [clips.number(frame) for frame in decoder.read(clip, [20, 21])] == [20, 21]


def test_pickled_decoders_start_anew(make, clip):
    decoder = make('PyAVReader', deadline=7, longest=70)
    decoder.probe(clip)
    other = pickle.loads(pickle.dumps(decoder))
    assert other._child is None and not other._known
    assert (other.readers, other.deadline, other.longest, other.modules) == (
        ('PyAVReader',), 7, 70, ('reader_stubs',))
    assert other.probe(clip).num_frames == 100
    other.close()


def _in_a_fork(decoder, clip, queue):
    frames = decoder.read(clip, [5])
    queue.put((decoder._child.pid, int(frames.sum())))
    decoder.close()


def test_a_fork_has_its_own_process_and_leaves_ours_alone(make, clip):
    decoder = make()
    expected = int(decoder.read(clip, [5]).sum())
    pid = decoder._child.pid
    context = multiprocessing.get_context('fork')
    queue = context.Queue()
    locked, free = threading.Event(), threading.Event()

    def hold():  # another thread of ours is in the middle of a request
        with decoder._lock:
            locked.set()
            free.wait(120)

    thread = threading.Thread(target=hold)
    thread.start()
    locked.wait(60)
    worker = context.Process(target=_in_a_fork, args=(decoder, clip, queue))
    worker.start()
    try:
        other, total = queue.get(timeout=30)
    finally:
        free.set()
        thread.join()
        worker.join(5)
        worker.kill()
    assert total == expected and other != pid and gone(other)
    assert int(decoder.read(clip, [5]).sum()) == expected and decoder._child.pid == pid


class _Videos(torch.utils.data.Dataset):
    def __init__(self, decoder, clip):
        self.decoder, self.clip = decoder, clip

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return self.decoder.read(self.clip, [index])[0], self.decoder._child.pid


def test_workers_of_a_loader(make, clip, clips):
    decoder = make()
    decoder.probe(clip)
    loader = torch.utils.data.DataLoader(_Videos(decoder, clip), batch_size=None, num_workers=2)
    items = list(loader)
    assert [clips.number(np.asarray(frame)) for frame, _ in items] == list(range(8))
    pids = {pid for _, pid in items}
    assert len(pids) == 2 and decoder._child.pid not in pids
    end = time.monotonic() + 15
    while not all(map(gone, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    assert all(map(gone, pids))


def test_the_process_does_not_outlive_a_killed_parent(clip):
    code = f'''
    import time
    from qvlkit.data.video_readers.decoder import VideoDecoder
    decoder = VideoDecoder(('PyAVReader',))
    decoder.probe({str(clip)!r})
    print(decoder._child.pid, flush=True)
    time.sleep(60)'''
    parent = subprocess.Popen([sys.executable, '-c', textwrap.dedent(code)], stdout=subprocess.PIPE, text=True,
                              cwd=ROOT)
    pid = int(parent.stdout.readline())
    assert not gone(pid)
    parent.kill()
    parent.communicate()
    end = time.monotonic() + 15
    while not gone(pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert gone(pid)


def test_a_module_that_does_not_import_is_no_fault_of_the_video(clip):
    decoder = VideoDecoder(('PyAVReader',), modules=['no_such_module_anywhere'])
    with pytest.raises(ValueError, match='No module named .no_such_module_anywhere') as error:
        decoder.probe(clip)
    assert not isinstance(error.value, MediaError)


def test_an_unknown_reader_is_no_fault_of_the_video(make, clip):
    with pytest.raises(ValueError, match="registered as 'PyAVRedaer', did you mean 'PyAVReader'") as error:
        make('PyAVRedaer').probe(clip)
    assert not isinstance(error.value, MediaError)


def test_settings():
    with pytest.raises(ValueError, match='readers: expected'):
        VideoDecoder(())
