"""Video reader on PyAV, which brings its own FFmpeg.

The packets of the stream are listed once, without decoding: they give the number of frames and their times. A frame is
found by its time of presentation: from the keyframe before it, the stream is decoded until that time comes up, and a
frame of another time is never returned in its place. A stream whose packets carry no such times (AVI) is decoded in
order and counted.
"""
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from qvlkit.data.transforms.load_media import MediaError
from qvlkit.data.video_readers.base import ShortVideoError, VideoInfo, import_package, make_info
from qvlkit.registry import VIDEO_READERS


@VIDEO_READERS.register_module()
class PyAVReader:
    """Decode with PyAV: it seeks, and checks the time of what it hands out.

    Args:
        path: Of a video file.
    """

    def __init__(self, path: str):
        self._av = import_package('av')
        self._path, self._container = path, None
        self._late = 0  # so many keyframes earlier do we have to seek
        with self._media_errors():
            self._scan()
            self._go(0)
            first = next(self._decoded, None)
            if first is None:
                raise MediaError(f'no frame of {path!r} can be decoded', 'bad_video')
            self._height, self._width = _upright(first[1]).shape[:2]
            self._go(0)

    @contextmanager
    def _media_errors(self) -> Iterator[None]:
        """FFmpeg's errors become MediaErrors that name the file."""
        try:
            yield
        except self._av.FFmpegError as error:
            raise MediaError(f'{self._path!r} cannot be decoded: {error.strerror or error}', 'bad_video') from error

    def _open(self) -> None:
        self.close()
        self._container = self._av.open(self._path, metadata_errors='replace')
        self._stream = self._container.streams.best('video')
        if self._stream is None or self._stream.codec_context is None:
            raise MediaError(f'{self._path!r} has no video stream that can be decoded', 'bad_video')
        self._stream.codec_context.thread_count = 1

    def _scan(self) -> None:
        """List the packets: times of all frames, and of keyframes, in units of the stream's time base."""
        self._open()
        packets = [(packet.pts, packet.duration or 0, packet.is_keyframe)
                   for packet in self._container.demux(self._stream) if _holds_frame(packet)]
        if not packets:
            raise MediaError(f'{self._path!r} has no frame', 'bad_video')
        times = [pts for pts, _, _ in packets]
        self._rate = float(self._stream.average_rate or self._stream.base_rate or 0)
        guessed = 'avi' in self._container.format.name  # an AVI file holds no times; FFmpeg makes some up
        self._in_order = guessed or None in times or len(set(times)) < len(times)
        if self._in_order:
            self._times, self._keys, self._last = list(range(len(packets))), [], 0
            return
        self._keys = sorted(pts for pts, _, key in packets if key)
        packets = sorted(packet for packet in packets if not self._keys or packet[0] >= self._keys[0])
        self._times, self._last = [pts for pts, _, _ in packets], packets[-1][1]

    def info(self) -> VideoInfo:
        """Size and times of the stream."""
        if self._in_order:
            rate = self._rate or 25.0
            return make_info(self._width, self._height, np.arange(len(self._times)) / rate, 1 / rate, rate)
        base = self._stream.time_base
        times = np.array([float(pts * base) for pts in self._times])
        return make_info(self._width, self._height, times, float(self._last * base), self._rate)

    def frames(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Frames of these ascending indices, uint8 (H, W, 3)."""
        before, image = None, None
        for index in indices:
            if index != before:
                if index >= len(self._times):
                    raise ShortVideoError(f'{self._path!r} has {len(self._times)} frames', len(self._times))
                with self._media_errors():
                    image = self._frame(index)
                before = index
            yield image

    def close(self) -> None:
        """Let go of the file."""
        if self._container is not None:
            self._container.close()
            self._container = None

    def _frame(self, index: int) -> np.ndarray:
        target = self._times[index]
        key = bisect_right(self._keys, target) - 1
        start = max(0, key - self._late)
        if self._at is None or target <= self._at or (start > 0 and self._at < self._keys[start]):
            self._go(start)
        frame = self._decode_until(target)
        while frame is None and self._sought > 0:  # some containers seek to a later place than they are asked to
            self._late = 2 * self._late + 1
            self._go(max(0, key - self._late))
            frame = self._decode_until(target)
        if frame is not None and not frame.is_corrupt:
            return _upright(frame)
        if self._at is None or self._at < target:
            decodable = 0 if self._at is None else bisect_right(self._times, self._at)
            raise ShortVideoError(f'{self._path!r} says that it has {len(self._times)} frames, but its stream ends '
                                  f'after {decodable}', decodable)
        raise MediaError(f'frame {index} of {self._path!r} cannot be decoded', 'bad_video')

    def _go(self, key: int) -> None:
        """Decode from this keyframe on; from the start of the file if it is the first."""
        self._sought = key
        if key == 0:
            self._open()
        else:
            self._container.seek(self._keys[key], stream=self._stream)
        self._decoded, self._at = self._decode(), None

    def _decode_until(self, target: int):
        for time, frame in self._decoded:
            self._at = time
            if time == target:
                return frame
            if time > target:
                break
        return None

    def _decode(self) -> Iterator[tuple]:
        """(time, frame) of each frame from here on; in a stream without times, the frame's number is its time."""
        count = 0
        for packet in self._container.demux(self._stream):
            if packet.is_corrupt:  # the end of the file cuts it
                continue
            for frame in packet.decode():
                if self._in_order or frame.pts is not None:
                    yield (count if self._in_order else frame.pts), frame
                count += 1


def _upright(frame) -> np.ndarray:
    """The frame as RGB, turned as the container says."""
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format='rgb24'), frame.rotation // 90 % 4))


def _holds_frame(packet) -> bool:
    return bool(packet.size) and not packet.is_discard and not packet.is_corrupt
