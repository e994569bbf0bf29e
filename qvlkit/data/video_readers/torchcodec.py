"""Video reader on TorchCodec, which needs FFmpeg's shared libraries on the system.

It lists the frames when it opens a file, but does not hand out their times. Where the first frame, the last and some
between are shown when the stream's rate says, that rate gives all times; otherwise every frame is decoded once for its
own.
"""
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from qvlkit.data.transforms.load_media import MediaError
from qvlkit.data.video_readers.base import STEADY, ShortVideoError, VideoInfo, import_package, make_info
from qvlkit.registry import VIDEO_READERS

PROBES = 16  # frames that are decoded to see whether the rate is steady


@VIDEO_READERS.register_module()
class TorchCodecReader:
    """Decode with TorchCodec, by its exact index of frames.

    Args:
        path: Of a video file.
    """

    def __init__(self, path: str):
        decoders = import_package('torchcodec.decoders', "pip install torchcodec, and FFmpeg's shared libraries")
        self._path = path
        with self._media_errors():
            self._video = decoders.VideoDecoder(path, dimension_order='NHWC', num_ffmpeg_threads=1, seek_mode='exact')
            self._count = len(self._video)
            self._rate = float(self._video.metadata.average_fps or 0)
            self._height, self._width = self._video.get_frame_at(0).data.shape[:2]

    @contextmanager
    def _media_errors(self) -> Iterator[None]:
        """TorchCodec's errors become MediaErrors that name the file."""
        try:
            yield
        except (RuntimeError, ValueError, IndexError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
            raise MediaError(f'{self._path!r} cannot be decoded: {reason}', 'bad_video') from error

    def info(self) -> VideoInfo:
        """Size and times of the stream."""
        with self._media_errors():
            some = np.unique(np.linspace(0, self._count - 1, PROBES).round().astype(int))
            times, _ = self._spans(some)
            if self._rate > 0 and np.abs((times - times[0]) * self._rate - some).max() < STEADY:
                return make_info(self._width, self._height, np.arange(self._count) / self._rate, 0, self._rate)
            times, last = self._spans(np.arange(self._count))
        return make_info(self._width, self._height, times, last, self._rate)

    def _spans(self, indices: np.ndarray) -> tuple[np.ndarray, float]:
        """Times of these frames, and how long the last of them is shown."""
        times, last = [], 0.0
        for index in indices:
            frame = self._video.get_frame_at(int(index))
            times.append(frame.pts_seconds)
            last = frame.duration_seconds
        return np.array(times), last

    def frames(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Frames of these ascending indices, uint8 (H, W, 3)."""
        before, image = None, None
        for index in indices:
            if index != before:
                if index >= self._count:
                    raise ShortVideoError(f'{self._path!r} has {self._count} frames', self._count)
                with self._media_errors():
                    image = self._video.get_frame_at(int(index)).data.numpy()
                before = index
            yield image

    def close(self) -> None:
        """Let go of the file."""
        self._video = None
