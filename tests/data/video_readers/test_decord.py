"""decord reader: right where a seek of decord's own is wrong, and no word on what it cannot read rightly."""
import sys

import pytest

from qvlkit.data.video_readers.decord import DecordReader

pytest.importorskip('av', reason='needs the extra [video]')
ASKED = [1, 9, 35, 35, 38, 55, 70, 81, 90, 93, 125, 149]


@pytest.mark.parametrize('name, settings', [
    ('a.mp4', dict(options={'x264-params': 'keyint=20:open-gop=1:bframes=3'})),
    ('a.mp4', dict(codec='libx265', options={'x265-params': 'log-level=none:keyint=25'})),
    ('a.mp4', dict(codec='mpeg4', options=dict(bf='2'), gop=12)),
    ('a.avi', dict(gop=30, options=dict(bf='2'))),
    ('a.avi', dict(codec='mpeg4', options=dict(bf='2'))),
])
def test_the_frame_that_was_asked_for(tmp_path, clips, name, settings):
    pytest.importorskip('decord')
    reader = DecordReader(str(clips.write(tmp_path / name, 150, 25, **settings)))
    assert reader.info().timestamps[75] == pytest.approx(3.0)
    for _ in range(2):
        assert [clips.number(frame) for frame in reader.frames(ASKED)] == ASKED


@pytest.mark.parametrize('width', [36, 40, 48, 72, 90, 398])
def test_narrow_pictures(tmp_path, clips, width):
    pytest.importorskip('decord')
    reader = DecordReader(str(clips.write(tmp_path / 'a.mp4', 5, 25, size=(width, 40))))
    (frame,) = reader.frames([3])
    assert frame.shape == (40, width, 3) and clips.number(frame) == 3
    if width % 18 > 4:
        assert (frame[:18, -(width % 18 - 2):] > 80).all()  # what no bar covers


def test_transport_streams_are_refused(tmp_path, clips):
    pytest.importorskip('decord')
    with pytest.raises(ValueError, match='no container that decord reads rightly'):
        DecordReader(str(clips.write(tmp_path / 'a.ts', 50, 25, gop=12)))


def test_absent_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'decord', None)
    with pytest.raises(ValueError, match=r"pip install 'qvlkit\[video\]'") as error:
        DecordReader(str(tmp_path / 'a.mp4'))
    assert error.value.kind == 'no_video_reader'
