"""Which frames of a video the model sees, and how far apart they are.

Source: Qwen2.5-VL (arXiv 2502.13923) section 2.1.1, dynamic frame rate; the arithmetic is that of the released
`qwen-vl-utils`: the number of frames is rounded down to a multiple of the temporal patch size, and the frames are
evenly spaced from the first to the last. For a stream of steady rate the result is the same, frame by frame. In a
stream of variable rate the frames nearest to evenly spaced times are taken, which the released code does not do.
"""
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from qvlkit.data.transforms.load_media import MediaError
from qvlkit.data.video_readers.base import STEADY, VideoInfo
from qvlkit.registry import TRANSFORMS
from qvlkit.structures import Media, Sample, SampleError


@TRANSFORMS.register_module()
class SampleFrames:
    """Fill `frames` and `seconds_per_grid` of each video: which frames are taken, and the time between frame groups.

    The rate is the sample's limit 'fps'; of a list of rates each sample draws one, so that a model meets all of them.

    Args:
        temporal_patch_size: Frames in a group; injected.
    """

    def __init__(self, *, temporal_patch_size: int = 2):
        self.temporal_patch_size = temporal_patch_size

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Sample -> Sample; SampleError where the part of a video that is asked for is not there."""
        for medium in sample.media():
            if medium.kind != 'video':
                continue
            try:
                medium.frames, seconds = self._frames(medium, sample.limits, rng)
            except MediaError as error:
                raise SampleError(sample.id, error.reason, error.kind) from error
            except ValueError as error:
                raise SampleError(sample.id, str(error), 'bad_time_range') from error
            medium.seconds_per_grid = self.temporal_patch_size * seconds
        return sample

    def _frames(self, medium: Media, limits: dict, rng: np.random.Generator) -> tuple[tuple[int, ...], float]:
        if medium.video is not None:
            fps = limits['fps']
            return choose_frames(medium.video, fps=draw_rate(fps, rng) if isinstance(fps, list | tuple) else fps,
                                 min_frames=limits['min_frames'], max_frames=limits['max_frames'],
                                 frame_factor=self.temporal_patch_size, start=medium.start, end=medium.end)
        count = len(medium.source)
        taken = min(count, limits['max_frames'])  # frames that were chosen by whoever made the list
        return tuple(np.linspace(0, count - 1, taken).round().astype(int).tolist()), count / taken / float(medium.fps)


def choose_frames(info: VideoInfo, *, fps: float, min_frames: int = 4, max_frames: int = 768, frame_factor: int = 2,
                  start: float | None = None, end: float | None = None) -> tuple[tuple[int, ...], float]:
    """Frame indices, ascending, and the seconds that each stands for: the length of the range by their number.

    The time between frame groups (`seconds_per_grid`) is the temporal patch size times these seconds. A video of fewer
    than `min_frames` frames gives all of them, be they even in number or not.

    Args:
        info: Of the video.
        fps: Frames to take for each second.
        min_frames, max_frames: Limits of their number, rounded to multiples of `frame_factor` inside them.
        frame_factor: Their number is a multiple of it.
        start, end: Part of the video to take, in seconds; what reaches beyond the video is cut off.

    Raises:
        ValueError: `fps`, the limits or the order of the times makes no sense.
        MediaError: The part lies outside the video.
    """
    least = math.ceil(min_frames / frame_factor) * frame_factor
    most = math.floor(max_frames / frame_factor) * frame_factor
    if not (fps > 0 and math.isfinite(fps) and 0 < least <= most):
        raise ValueError(f'expected fps above 0 and 0 < min_frames <= max_frames in multiples of {frame_factor}, got '
                         f'fps={fps}, min_frames={min_frames}, max_frames={max_frames}')
    steady = is_steady(info)
    rate = _exact_rate(info.fps)
    first, last = _range(info, rate if steady else None, start, end)
    total = last - first + 1
    seconds = total / rate if steady else _time(info, last + 1) - _time(info, first)
    if total < least:
        return tuple(range(first, last + 1)), seconds / total
    count = min(max(seconds * fps, least), most, total)
    count = math.floor(count / frame_factor) * frame_factor
    if steady:  # float32, like the released code: among many frames its rounding decides
        indices = torch.linspace(first, last, count).round().long().tolist()
        return tuple(indices), 1 / (count / total * rate)
    times = np.linspace(info.timestamps[first], info.timestamps[last], count)
    return tuple(map(int, _nearest(info.timestamps[first:last + 1], times) + first)), seconds / count


def is_steady(info: VideoInfo) -> bool:
    """Whether each frame is shown when the average rate says."""
    return bool(np.abs(info.timestamps * info.fps - np.arange(info.num_frames)).max() < STEADY)


def draw_rate(rates: Sequence[float], rng: Any) -> float:
    """One of the frame rates, each as likely, for training on a dynamic one. `rng`: anything with a method `random`."""
    if not rates:
        raise ValueError('rates: expected at least one frame rate, got none')
    return float(rates[min(int(rng.random() * len(rates)), len(rates) - 1)])


def _exact_rate(fps: float) -> float:
    """A rate that was measured as frames by seconds, without the rounding: 30000 / 1001, 25, 359 / 12."""
    exact = float(Fraction(fps).limit_denominator(1001))
    return exact if abs(exact - fps) < 1e-9 * fps else fps


def _range(info: VideoInfo, rate: float | None, start: float | None, end: float | None) -> tuple[int, int]:
    """First and last frame of a part; the nearest one if it is so short that it holds none."""
    if (start or 0) < 0 or (start is not None and end is not None and start >= end):
        raise ValueError(f'expected 0 <= start < end of a part of a video, got start={start}, end={end}')
    begin, finish = 0.0 if start is None else start, info.seconds if end is None else end
    if begin >= info.seconds or finish <= 0:
        raise MediaError(f'the part from {begin:g} s to {finish:g} s lies outside a video of {info.seconds:g} s',
                         'bad_time_range')
    last = info.num_frames - 1
    if rate is not None:
        first = min(math.ceil(begin * rate), last) if start is not None else 0
        final = min(math.floor(finish * rate), last) if end is not None else last
    else:
        first = min(int(np.searchsorted(info.timestamps, begin, 'left')), last)
        final = int(np.searchsorted(info.timestamps, finish, 'right')) - 1
    return (first, final) if first <= final else (final, final)


def _time(info: VideoInfo, index: int) -> float:
    return float(info.timestamps[index]) if index < info.num_frames else info.seconds


def _nearest(times: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """For each wanted time the index of the nearest of the ascending `times`; the earlier one of two as near."""
    after = np.clip(np.searchsorted(times, wanted), 1, max(len(times) - 1, 1))
    if len(times) == 1:
        return np.zeros(len(wanted), int)
    return np.where(wanted - times[after - 1] <= times[after] - wanted, after - 1, after)
