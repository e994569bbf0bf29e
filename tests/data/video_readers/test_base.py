"""Times of a stream, as containers round them."""
import numpy as np
import pytest

from qvlkit.data.video_readers.base import make_info, usable_times


def test_rounded_times_of_a_steady_stream_become_exact():
    rate = 30000 / 1001
    info = make_info(4, 2, np.round(np.arange(300) / rate + 5, 3), 0.033, rate)
    assert (info.timestamps == np.arange(300) / rate).all() and info.seconds == 300 / rate
    assert info.fps == pytest.approx(rate, abs=1e-12) and info.num_frames == 300


def test_other_times_are_kept():
    times = [2.0, 2.1, 2.9, 3.0]
    info = make_info(4, 2, times, 0.5, 10.0)
    np.testing.assert_allclose(info.timestamps, [0, 0.1, 0.9, 1.0])
    assert info.seconds == pytest.approx(1.5)


@pytest.mark.parametrize('last', [0.0, -1.0, 1e12, float('nan')])
def test_last_frame_of_unknown_length_lasts_as_long_as_the_others(last):
    assert make_info(4, 2, [0.0, 0.1, 0.9, 1.2], last, 0.0).seconds == pytest.approx(1.6)
    assert make_info(4, 2, [0.0], last, 0.0).seconds == 1.0


@pytest.mark.parametrize('times, usable', [
    ([0.0, 0.1], True), ([0.1, 0.0], False), ([0.0, 0.0], False), ([-3e17, -3e17 + 1e9], False), ([], False),
    ([0.0, float('nan')], False), ([0.0, float('inf')], False)])
def test_usable_times(times, usable):
    assert usable_times(times) == usable
