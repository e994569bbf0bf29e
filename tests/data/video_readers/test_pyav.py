"""PyAV reader: containers and codecs that mislead a seek, and how much it decodes."""
import random

import pytest

from qvlkit.data.video_readers.pyav import PyAVReader

pytest.importorskip('av', reason='needs the extra [video]')
KINDS = {
    'open groups of pictures': ('a.mp4', dict(options={'x264-params': 'keyint=20:open-gop=1:bframes=3'})),
    'x265': ('a.mp4', dict(codec='libx265', options={'x265-params': 'log-level=none:keyint=25'})),
    'MPEG-4 with B-frames': ('a.mp4', dict(codec='mpeg4', options=dict(bf='2'), gop=12)),
    'Matroska': ('a.mkv', dict(gop=12)),
    'transport stream': ('a.ts', dict(gop=12, options=dict(bf='2'))),
    'AVI with B-frames': ('a.avi', dict(gop=30, options=dict(bf='2'))),
    'AVI, MPEG-4 with B-frames': ('a.avi', dict(codec='mpeg4', options=dict(bf='2'))),
    'AVI, MJPEG': ('a.avi', dict(codec='mjpeg')),
    'FLV': ('a.flv', dict(gop=30)),
}


@pytest.mark.parametrize('kind', KINDS)
def test_the_frame_that_was_asked_for(tmp_path, clips, kind):
    name, settings = KINDS[kind]
    reader = PyAVReader(str(clips.write(tmp_path / name, 150, 25, **settings)))
    info = reader.info()
    assert info.num_frames == 150 and info.fps == pytest.approx(25) and info.timestamps[75] == pytest.approx(3.0)
    for seed in range(4):
        asked = sorted(random.Random(seed).choices(range(150), k=12))
        assert [clips.number(frame) for frame in reader.frames(asked)] == asked


def test_a_stream_that_does_not_start_at_zero(tmp_path, clips):
    times = [40 * index + 7000 for index in range(50)]
    info = PyAVReader(str(clips.write(tmp_path / 'a.mkv', 50, 25, times=times))).info()
    assert info.timestamps[0] == 0 and info.timestamps[-1] == pytest.approx(49 / 25)


def test_far_frames_are_sought_and_near_ones_are_not(tmp_path, clips, monkeypatch):
    reader = PyAVReader(str(clips.write(tmp_path / 'a.mp4', 1000, 25, gop=20)))
    decoded, until = [], reader._decode

    def counting():
        for item in until():
            decoded.append(item)
            yield item

    monkeypatch.setattr(reader, '_decode', counting)
    assert [clips.number(frame) for frame in reader.frames([0, 5, 500, 505, 990])] == [0, 5, 500, 505, 990]
    assert len(decoded) <= 6 + 3 * 20


def test_sound_alone_is_refused(tmp_path):
    import av
    import numpy as np
    with av.open(str(tmp_path / 'a.mp4'), 'w') as container:
        stream = container.add_stream('aac', rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format='fltp', layout='mono')
        frame.sample_rate = 48000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match='no video stream'):
        PyAVReader(str(tmp_path / 'a.mp4'))


def test_an_unknown_codec_is_refused(tmp_path, clips):
    path = clips.write(tmp_path / 'a.mp4', 5, 25)
    path.write_bytes(path.read_bytes().replace(b'avc1', b'zzzz'))
    with pytest.raises(ValueError, match='no video stream that can be decoded'):
        PyAVReader(str(path))
