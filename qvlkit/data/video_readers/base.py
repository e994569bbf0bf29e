"""What every video reader does, and what they share.

A reader is a registered class that is built with a path:

    reader = READER(path)             # opens the file; raises MediaError
    reader.info()                     # -> VideoInfo
    reader.frames([0, 15, 15, 30])    # yields uint8 (H, W, 3), upright RGB, one for each index
    reader.close()

Indices ascend and may repeat. Only one decoded frame is held at a time. A reader knows nothing of sampling, sizes or
deadlines; `decoder.py` runs it in a process of its own.
"""
import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol

import numpy as np

from qvlkit.data.transforms.load_media import MediaError

STEADY = 0.1  # a stream whose frames stray less than this part of a frame from its rate has that rate
LONGEST = 1e7  # seconds: a time beyond it is not a time


@dataclass(frozen=True, eq=False)
class VideoInfo:
    """What is known of a video's stream.

    width, height: pixels of the upright picture. timestamps (frames,): float64, when each frame is shown, in seconds
    from the first one, ascending. seconds: how long the video lasts, its last frame included.
    """
    width: int
    height: int
    timestamps: np.ndarray
    seconds: float

    @classmethod
    def uniform(cls, width: int, height: int, frames: int, seconds: float) -> 'VideoInfo':
        """Of a stream whose frames are evenly spaced."""
        return cls(width, height, np.arange(frames) * (seconds / frames), seconds)

    @property
    def num_frames(self) -> int:
        """Frames that can be decoded, as far as the container tells."""
        return len(self.timestamps)

    @property
    def fps(self) -> float:
        """Frames per second, on average."""
        return self.num_frames / self.seconds


class VideoReader(Protocol):
    """See the top of this file."""

    def __init__(self, path: str):
        ...

    def info(self) -> VideoInfo:
        """Size and times of the stream."""

    def frames(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Frames of these ascending indices, uint8 (H, W, 3)."""

    def close(self) -> None:
        """Let go of the file."""


class ShortVideoError(MediaError):
    """The stream ends before a frame that was asked for.

    Args:
        reason: As for MediaError.
        decodable: How many frames there are.
    """

    def __init__(self, reason: str, decodable: int):
        super().__init__(reason, 'bad_video')
        self.decodable = decodable

    def __reduce__(self):
        return type(self), (self.reason, self.decodable)


def import_package(name: str, needs: str = "pip install 'qvlkit[video]'") -> ModuleType:
    """The module a reader needs; MediaError of the kind 'no_video_reader' that says how to get it."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:  # a library that it links to is absent: the last two
        raise MediaError(f'{name} cannot be imported ({str(error).strip().splitlines()[0][:200]}); it needs: {needs}',
                         'no_video_reader') from error


def usable_times(times: np.ndarray) -> bool:
    """Whether these are times of presentation: finite, not absurd, one for each frame, ascending."""
    times = np.asarray(times, np.float64)
    return bool(len(times) and np.isfinite(times).all() and np.abs(times).max() < LONGEST
                and (np.diff(times) > 0).all())


def make_info(width: int, height: int, times: np.ndarray, last: float, rate: float) -> VideoInfo:
    """The VideoInfo of a stream with these ascending times of presentation.

    Containers round times, some to a millisecond; where all agree with the stream's rate, that is exact and is used.

    Args:
        width, height: Of the upright picture.
        times: Seconds, from any start.
        last: How long the last frame is shown, in seconds; 0 if not known.
        rate: Frames per second that the container states; 0 if it states none.
    """
    times = np.asarray(times, np.float64)
    times = times - times[0]
    count = len(times)
    if rate > 0 and np.abs(times * rate - np.arange(count)).max() < STEADY:
        return VideoInfo(width, height, np.arange(count) / rate, count / rate)
    if not 0 < last < LONGEST:
        last = 1 / rate if rate > 0 else times[-1] / (count - 1) if count > 1 else 1.0
    return VideoInfo(width, height, times, float(times[-1] + last))
