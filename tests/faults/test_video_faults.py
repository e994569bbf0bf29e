"""Broken and hostile videos: an answer in time, the truth about what there is, and a worker that lives on."""
import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from qvlkit.data.transforms.edits import Resize
from qvlkit.data.transforms.load_media import MediaError
from qvlkit.data.transforms.sample_frames import choose_frames
from qvlkit.data.video_readers.child import GRACE
from qvlkit.data.video_readers.decoder import VideoDecoder

pytest.importorskip('av', reason='needs the extra [video]')
ROOT = Path(__file__).parents[2]
# A loop that holds the interpreter's lock in C, deaf to signals: sum() over an iterator that never ends.
STUBS = '''
import ctypes, itertools, time
import numpy as np
from qvlkit.data.transforms.load_media import MediaError
from qvlkit.data.video_readers.base import VideoInfo
from qvlkit.data.video_readers.pyav import PyAVReader
from qvlkit.registry import VIDEO_READERS

@VIDEO_READERS.register_module()
class Spinning(PyAVReader):
    def frames(self, indices):
        yield next(super().frames(indices))
        sum(itertools.repeat(0))

@VIDEO_READERS.register_module()
class SpinningAtOnce:
    def __init__(self, path):
        sum(itertools.repeat(0))

@VIDEO_READERS.register_module()
class Slow(PyAVReader):
    def frames(self, indices):
        for frame in super().frames(indices):
            time.sleep(0.6)
            yield frame

@VIDEO_READERS.register_module()
class Boasting(PyAVReader):
    """Says that there are more frames than there are, as some containers do."""
    def info(self):
        info = super().info()
        return VideoInfo(info.width, info.height, np.arange(431) / 25, 431 / 25)
    def frames(self, indices):
        if max(indices) >= 300:
            raise MediaError('end of file', 'bad_video')
        yield from super().frames(indices)
'''


@pytest.fixture(scope='module')
def video(tmp_path_factory, clips):
    """Path of 300 good frames, the index at the front."""
    return clips.write(tmp_path_factory.mktemp('good') / 'good.mp4', 300, 25, gop=50, size=(180, 120),
                       options=dict(crf='5'))


@pytest.fixture
def make(tmp_path, monkeypatch):
    (tmp_path / 'spinning_stubs.py').write_text(STUBS)
    monkeypatch.syspath_prepend(tmp_path)
    made = []

    def decoder(*readers, **settings):
        readers = dict(readers=readers) if readers else {}
        made.append(VideoDecoder(**readers, modules=['spinning_stubs'], **settings))
        return made[-1]

    yield decoder
    for one in made:
        one.close()


def faststart(path, clips, frames=300):
    """A video whose index stands before its frames, as files for the web have it."""
    import av
    plain = clips.write(path.with_suffix('.plain.mp4'), frames, 25, gop=50, size=(180, 120), options=dict(crf='5'))
    with av.open(str(plain)) as source, av.open(str(path), 'w', options=dict(movflags='faststart')) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    data = path.read_bytes()
    assert data.find(b'moov') < data.find(b'mdat')
    return data


def flipped(data, seed=0, start=0.3, count=400):
    """The same bytes with one bit of some of them changed."""
    rng, data = np.random.default_rng(seed), bytearray(data)
    for place in rng.integers(int(len(data) * start), len(data), count):
        data[place] ^= 1 << int(rng.integers(8))
    return bytes(data)


@pytest.mark.parametrize('name', ['zero bytes', 'html', 'no index', 'no frames', 'playlist', 'random bytes',
                                  'half a header'])
def test_what_is_no_video_is_refused_in_time(make, clips, video, tmp_path, name):
    good = video.read_bytes()
    index = good.find(b'moov')
    content = {
        'zero bytes': b'', 'html': b'\n <!DOCTYPE html><title>404</title>', 'random bytes': os.urandom(50_000),
        'playlist': b'#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n',
        'no index': good[:index - 4], 'half a header': good[:20],
        'no frames': good[:index] + good[index:].replace(b'stsz', b'free').replace(b'stts', b'free')}[name]
    path = tmp_path / 'bad.mp4'
    path.write_bytes(content)
    decoder, start = make(), time.monotonic()
    with pytest.raises(MediaError) as error:
        decoder.read(path, [0])
    assert error.value.kind == 'bad_video' and str(path) in str(error.value)
    says = {'zero bytes': 'is empty', 'html': 'looks like HTML', 'playlist': 'looks like a playlist'}
    assert says.get(name, 'PyAVReader: ') in str(error.value)
    assert time.monotonic() - start < 20
    assert clips.number(decoder.read(video, [123])[0]) == 123  # and the next sample is read


def test_cut_files_give_the_frames_they_have(make, clips, tmp_path):
    data = faststart(tmp_path / 'whole.mp4', clips)
    path = tmp_path / 'cut.mp4'
    path.write_bytes(data[:len(data) * 6 // 10])
    decoder = make()
    info = decoder.probe(path)
    assert 100 < info.num_frames < 260 and info.seconds == pytest.approx(info.num_frames / 25, abs=0.2)
    shown = [clips.number(frame) for frame in decoder.read(path, range(info.num_frames))]
    assert shown == np.round(25 * info.timestamps).tolist()  # at the cut, frames in between may miss


@pytest.mark.parametrize('seed', range(4))
def test_flipped_bits_get_an_answer(make, clips, tmp_path, video, seed):
    path = tmp_path / 'flipped.mp4'
    path.write_bytes(flipped(faststart(tmp_path / 'whole.mp4', clips), seed))
    decoder, start = make(deadline=10), time.monotonic()
    try:
        frames = decoder.read(path, [0, 100, 200, 299])
        assert frames.shape == (4, 120, 180, 3)
    except MediaError as error:
        assert error.kind == 'bad_video'
    assert time.monotonic() - start < 20
    assert clips.number(decoder.read(video, [123])[0]) == 123


def test_one_frame(make, clips, tmp_path):
    path = clips.write(tmp_path / 'one.mp4', 1, 25)
    info = make().probe(path)
    assert info.num_frames == 1 and info.seconds == pytest.approx(1 / 25)
    indices, seconds = choose_frames(info, fps=2.0)
    assert indices == (0,) and seconds == pytest.approx(1 / 25)
    assert clips.number(make().read(path, indices)[0]) == 0


def test_variable_rate_is_read_by_time(make, clips, tmp_path):
    times = [40 * index for index in range(100)] + [4000 + 1000 * index for index in range(10)]
    path = clips.write(tmp_path / 'uneven.mp4', 110, 25, times=times)
    info = make().probe(path)
    indices, _ = choose_frames(info, fps=1.0)
    shown = [clips.number(frame) for frame in make().read(path, indices)]
    wanted = np.linspace(0, 13, len(indices))
    brute = [int(np.abs(np.array(times) / 1000 - time).argmin()) for time in wanted]
    assert shown == brute and len(shown) >= 12


def test_a_container_that_claims_more_frames_than_it_has(make, clips, video):
    decoder = make('Boasting')
    assert decoder.probe(video).num_frames == 431
    with pytest.raises(MediaError, match='end of file'):  # of which this reader cannot say how many there are
        decoder.read(video, [0, 430])
    decoder = make('Boasting', 'PyAVReader')
    indices, _ = choose_frames(decoder.probe(video), fps=1.0)
    assert max(indices) == 430
    shown = [clips.number(frame) for frame in decoder.read(video, indices)]
    assert shown == [min(index, 299) for index in indices]
    info = decoder.probe(video)  # now the truth is known
    assert info.num_frames == 300 and info.seconds == pytest.approx(12.0)
    indices, _ = choose_frames(info, fps=1.0)
    assert [clips.number(frame) for frame in decoder.read(video, indices)] == list(indices)


def test_a_reader_that_spins_is_killed_and_the_next_one_answers(make, clips, video):
    decoder, start = make('Spinning', 'PyAVReader', deadline=4), time.monotonic()
    decoder.probe(video)
    first = decoder._child.pid
    assert [clips.number(frame) for frame in decoder.read(video, [7, 250])] == [7, 250]
    assert time.monotonic() - start < 20
    assert not Path(f'/proc/{first}').exists() and decoder._child.pid != first
    assert clips.number(decoder.read(video, [8], [Resize(180, 120)])[0]) == 8


@pytest.mark.parametrize('reader', ['Spinning', 'SpinningAtOnce'])
def test_if_no_reader_answers_in_time_the_error_says_so(make, video, reader):
    decoder, start = make(reader, deadline=4), time.monotonic()
    with pytest.raises(MediaError, match='no sign of life for 4 s') as error:
        decoder.read(video, [7, 250])
    assert error.value.kind == 'video_timeout' and time.monotonic() - start < 15
    assert decoder._child is None or not decoder._child.alive()


@pytest.mark.slow
def test_the_deadline_is_for_each_frame_and_a_longer_one_for_all(make, clips, video):
    decoder = make('Slow', deadline=4)
    assert len(decoder.read(video, range(8))) == 8  # 4.8 s
    decoder.longest = 3.0
    with pytest.raises(MediaError, match='not ready in time'):
        decoder.read(video, range(8))


def test_a_spinning_process_does_not_outlive_a_killed_parent(video, tmp_path):
    (tmp_path / 'spinning_stubs.py').write_text(STUBS)
    code = f'''
    import sys, threading
    sys.path.insert(0, {str(tmp_path)!r})
    from qvlkit.data.video_readers.decoder import VideoDecoder
    decoder = VideoDecoder(('Spinning',), deadline=3, modules=['spinning_stubs'])
    decoder.probe({str(video)!r})
    print(decoder._child.pid, flush=True)
    decoder.read({str(video)!r}, [0, 9])'''
    parent = subprocess.Popen([sys.executable, '-c', textwrap.dedent(code)], stdout=subprocess.PIPE, text=True,
                              cwd=ROOT)
    pid = int(parent.stdout.readline())
    time.sleep(1)  # it spins by now
    parent.kill()
    parent.communicate()
    end = time.monotonic() + 3 + GRACE + 10
    status = Path(f'/proc/{pid}/stat')
    while status.exists() and status.read_text().rsplit(')', 1)[1].split()[0] != 'Z' and time.monotonic() < end:
        time.sleep(0.1)
    assert time.monotonic() < end


LONG = '''
import json, sys, threading, time
from pathlib import Path
from qvlkit.data.transforms.edits import Resize
from qvlkit.data.transforms.sample_frames import choose_frames
from qvlkit.data.video_readers.decoder import VideoDecoder
path = sys.argv[1]
decoder, start = VideoDecoder(('PyAVReader',)), time.monotonic()
info = decoder.probe(path)
indices, seconds = choose_frames(info, fps=2.0)
frames = decoder.read(path, indices, [Resize(int(sys.argv[2]), int(sys.argv[3]))])
own, child = (int(Path(f'/proc/{who}/status').read_text().split('VmHWM:')[1].split()[0])
              for who in ('self', decoder._child.pid))
print(json.dumps(dict(indices=indices, seconds=seconds, length=info.seconds, took=time.monotonic() - start,
                      memory=[own / 1024, child / 1024],
                      times=[float(info.timestamps[index]) for index in indices])))
frames.tofile(sys.argv[4])
'''


@pytest.mark.parametrize('rate', [1, pytest.param(24, marks=pytest.mark.slow)])
def test_two_hours_of_video(clips, tmp_path, rate):
    frames = 7200 * rate
    path = clips.write(tmp_path / 'long.mp4', frames, rate, options=dict(preset='ultrafast'), gop=250)
    result = subprocess.run([sys.executable, '-c', LONG, str(path), '144', '96', str(tmp_path / 'frames')], cwd=ROOT,
                            capture_output=True, text=True, timeout=300, check=True)
    found = json.loads(result.stdout)
    assert found['length'] == pytest.approx(7200) and len(found['indices']) == 768
    assert found['seconds'] == pytest.approx(7200 / 768)
    shown = [clips.number(frame[::2, ::2]) for frame in
             np.fromfile(tmp_path / 'frames', np.uint8).reshape(768, 96, 144, 3)]
    assert shown == found['indices']
    event = 4321.0  # seconds: it is found within one interval of where it is
    nearest = min(range(768), key=lambda place: abs(found['times'][place] - event))
    assert abs(shown[nearest] / rate - event) <= found['seconds']
    assert sum(found['memory']) < 1024 and found['took'] < 120  # MiB, seconds
