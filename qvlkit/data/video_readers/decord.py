"""Video reader on decord 0.6, which is no longer maintained.

It is read strictly in order, frame by frame: after a seek or a skip it returns other frames than those asked for, of
streams without times of presentation (AVI) and of many with B-frames (open groups of pictures, as x265 writes them, and
MPEG-4). In order it is right, but for containers without an index (MPEG-TS), whose first frames it loses: those are
refused. Of pictures narrower than 96 pixels it may hand out rows with their padding, as if there were more colours than
three. And it may spin for ever on a file that claims more frames than it has; that is why readers run in a process that
can be killed.
"""
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from qvlkit.data.transforms.load_media import MediaError
from qvlkit.data.video_readers.base import ShortVideoError, VideoInfo, import_package, make_info, usable_times
from qvlkit.registry import VIDEO_READERS

# Beginnings of files with an index: (bytes, at), for MP4 and MOV, Matroska and WebM, AVI, FLV.
INDEXED = ((b'ftyp', 4), (b'moov', 4), (b'mdat', 4), (b'wide', 4), (b'\x1aE\xdf\xa3', 0), (b'AVI ', 8), (b'FLV', 0))


@VIDEO_READERS.register_module()
class DecordReader:
    """Decode with decord, in order only.

    Args:
        path: Of a video file.
    """

    def __init__(self, path: str):
        self._decord = import_package('decord')
        self._decord.logging.set_level(self._decord.logging.QUIET)
        self._path = path
        with open(path, 'rb') as file:
            head = file.read(16)
        if not any(head[at:at + len(mark)] == mark for mark, at in INDEXED):
            raise MediaError(f'{path!r} is in no container that decord reads rightly', 'bad_video')
        self._start_over()
        with self._media_errors():
            self._count, self._rate = len(self._video), float(self._video.get_avg_fps())
            spans = np.asarray(self._video.get_frame_timestamp(range(self._count)), np.float64)
            self._times, self._last = spans[:, 0], float(spans[-1, 1] - spans[-1, 0])
            self._height, self._width = self._next().shape[:2]
        self._start_over()

    @contextmanager
    def _media_errors(self) -> Iterator[None]:
        """decord's errors become MediaErrors that name the file."""
        try:
            yield
        except (RuntimeError, AssertionError, StopIteration, self._decord.DECORDError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1][:300]
            raise MediaError(f'{self._path!r} cannot be decoded: {reason}', 'bad_video') from error

    def _start_over(self) -> None:
        with self._media_errors():
            self._video, self._at = self._decord.VideoReader(self._path, num_threads=1), 0

    def info(self) -> VideoInfo:
        """Size and times of the stream."""
        times, rate = self._times, self._rate
        if not usable_times(times):
            rate = rate if 0 < rate < 1000 else 25.0
            times = np.arange(self._count) / rate
        return make_info(self._width, self._height, times, self._last, rate)

    def frames(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Frames of these ascending indices, uint8 (H, W, 3)."""
        before, image = None, None
        for index in indices:
            if index != before:
                if index >= self._count:
                    raise ShortVideoError(f'{self._path!r} has {self._count} frames', self._count)
                if index < self._at:
                    self._start_over()
                with self._media_errors():
                    while self._at <= index:
                        image = self._next()
                before = index
            yield image

    def close(self) -> None:
        """Let go of the file."""
        self._video = None

    def _next(self) -> np.ndarray:
        image = self._video.next().asnumpy()
        self._at += 1
        height, width = image.shape[:2]
        return image.reshape(height, -1)[:, :3 * width].reshape(height, width, 3)
