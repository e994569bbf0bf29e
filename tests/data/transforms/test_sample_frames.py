"""Which frames are taken: the released sampler's arithmetic to the frame, times for uneven streams, short videos."""
import math
import random
from collections import Counter

import numpy as np
import pytest
import torch

from qvlkit.data.transforms.load_media import MediaError
from qvlkit.data.transforms.sample_frames import choose_frames, draw_rate, is_steady
from qvlkit.data.video_readers.base import VideoInfo, make_info


def steady(total, rate):
    return make_info(64, 48, np.arange(total) / rate, 1 / rate, rate)


def released(total, rate, fps, start=None, end=None, min_frames=4, max_frames=768):
    """The arithmetic of qwen-vl-utils, written down once more: (indices, sampled frames per second)."""
    first = 0 if start is None else min(max(math.ceil(start * rate), 0), total - 1)
    last = total - 1 if end is None else min(max(math.floor(end * rate), 0), total - 1)
    total = last - first + 1
    low, high = math.ceil(min_frames / 2) * 2, math.floor(min(max_frames, total) / 2) * 2
    count = total / rate * fps
    count = min(min(max(count, low), high), total)
    count = math.floor(count / 2) * 2
    return tuple(torch.linspace(first, last, count).round().long().tolist()), count / total * rate


@pytest.mark.parametrize('total, rate, count, seconds_per_grid', [
    (300, 30, 20, 1.0), (301, 29.97, 20, 1.00434), (45, 30, 4, 0.75), (1000, 30, 66, 1.0101), (90000, 25, 768, 9.375)])
def test_worked_values(total, rate, count, seconds_per_grid):
    indices, seconds = choose_frames(steady(total, rate), fps=2.0)
    assert len(indices) == count and indices[0] == 0 and indices[-1] == total - 1
    assert 2 * seconds == pytest.approx(seconds_per_grid, abs=1e-5)


def test_steady_streams_as_the_released_sampler():
    draw = random.Random(0)
    for _ in range(500):
        rate = draw.choice([1, 3, 12, 24000 / 1001, 23.976, 25, 359 / 12, 29.97, 30000 / 1001, 30, 50, 60])
        total = draw.choice([draw.randint(4, 400), draw.randint(400, 200_000)])
        fps = draw.choice([0.5, 1.0, 2.0, 3.0, draw.uniform(0.1, 8)])
        length = total / rate
        start, end = draw.choice([(None, None), (length * 0.1, None), (None, length * 0.7), (length / 5, length / 2)])
        part = released(total, rate, fps, start, end)
        if len(part[0]) < 4:
            continue
        indices, seconds = choose_frames(steady(total, rate), fps=fps, start=start, end=end)
        assert indices == part[0], (total, rate, fps, start, end)
        assert seconds == pytest.approx(1 / part[1], rel=1e-12)


@pytest.mark.parametrize('total', [1, 2, 3])
def test_short_videos_give_all_they_have(total):
    indices, seconds = choose_frames(steady(total, 25), fps=2.0)
    assert indices == tuple(range(total)) and seconds == pytest.approx(1 / 25)


def test_limits():
    video = steady(1000, 25)
    assert len(choose_frames(video, fps=2.0, max_frames=9)[0]) == 8
    assert len(choose_frames(video, fps=0.01, min_frames=5)[0]) == 6
    assert len(choose_frames(video, fps=2.0, frame_factor=3)[0]) == 78  # 80 frames, rounded down
    assert len(choose_frames(steady(5, 25), fps=100.0)[0]) == 4  # never more than there are
    with pytest.raises(ValueError, match='min_frames=8, max_frames=4'):
        choose_frames(video, fps=2.0, min_frames=8, max_frames=4)
    with pytest.raises(ValueError, match='fps=0'):
        choose_frames(video, fps=0)


def test_a_part_of_a_video():
    video = steady(300, 30)
    indices, seconds = choose_frames(video, fps=2.0, start=2.0, end=5.0)
    assert indices[0] == 60 and indices[-1] == 150 and len(indices) == 6
    assert seconds == pytest.approx(91 / 30 / 6)
    assert choose_frames(video, fps=2.0, start=8.0, end=1e6)[0][-1] == 299
    assert choose_frames(video, fps=2.0, start=2.001, end=2.002)[0] == (60,)  # shorter than a frame
    with pytest.raises(MediaError, match='outside a video of 10 s'):
        choose_frames(video, fps=2.0, start=10.0)
    for start, end in ((5.0, 2.0), (3.0, 3.0), (-1.0, 2.0)):
        with pytest.raises(ValueError, match='start < end'):
            choose_frames(video, fps=2.0, start=start, end=end)


def uneven():
    """10 s at 30 frames per second, then 10 s of which there is a frame each second."""
    times = np.concatenate([np.arange(300) / 30, 10.0 + np.arange(10)])
    return VideoInfo(64, 48, times, 20.0)


def test_uneven_streams_are_sampled_by_time():
    video = uneven()
    assert not is_steady(video) and is_steady(steady(300, 30000 / 1001))
    indices, seconds = choose_frames(video, fps=1.0)
    assert len(indices) == 20 and seconds == pytest.approx(1.0)
    wanted = np.linspace(0, 19, 20)
    assert np.abs(video.timestamps[list(indices)] - wanted).max() <= 1 / 60
    brute = [int(np.abs(video.timestamps - time).argmin()) for time in wanted]
    assert list(indices) == brute
    counted = released(310, 310 / 20, 1.0)[0]  # by number, the second half would be seconds off
    assert np.abs(video.timestamps[list(counted)] - wanted).max() > 4


def test_a_part_of_an_uneven_stream():
    indices, seconds = choose_frames(uneven(), fps=1.0, start=9.5, end=14.2)
    assert indices[0] == 285 and indices[-1] == 304 and list(indices) == sorted(indices)
    assert seconds * len(indices) == pytest.approx(15.0 - 9.5)
    assert choose_frames(uneven(), fps=2.0, start=12.2, end=12.7)[0] == (302,)  # the frame that is shown then


def test_each_rate_is_as_likely():
    rng = random.Random(0)
    seen = Counter(draw_rate([0.5, 1.0, 2.0, 4.0], rng) for _ in range(8000))
    assert sorted(seen) == [0.5, 1.0, 2.0, 4.0] and all(abs(count - 2000) < 200 for count in seen.values())
    assert draw_rate([3], np.random.default_rng(0)) == 3.0
    with pytest.raises(ValueError, match='at least one'):
        draw_rate([], rng)
