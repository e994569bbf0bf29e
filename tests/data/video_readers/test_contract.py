"""What each reader has to do, on videos whose frames show their numbers and on real ones."""
import importlib.util
import random
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from qvlkit.data.transforms.load_media import MediaError
from qvlkit.data.video_readers.base import ShortVideoError
from qvlkit.registry import VIDEO_READERS

av = pytest.importorskip('av', reason='needs the extra [video]')
SHARED = next((parent / 'shared' / 'data' for parent in Path(__file__).resolve().parents
               if (parent / 'shared' / 'data').is_dir()), None)
REAL = ['chat/media/1.mp4', 'chat/media/2.avi', 'video/v_rBMQFpHspmo.mp4']
PACKAGES = {'PyAVReader': 'av', 'DecordReader': 'decord', 'TorchCodecReader': 'torchcodec'}
RATES = {'12': 12, '23.976': Fraction(24000, 1001), '25': 25, '29.97': Fraction(30000, 1001), '60': 60}
FRAMES = 120
UNEVEN = np.cumsum(random.Random(0).choices([20, 33, 40, 67, 500], k=FRAMES)).tolist()  # milliseconds


@pytest.fixture(params=PACKAGES)
def reader_type(request):
    if importlib.util.find_spec(PACKAGES[request.param]) is None:
        pytest.skip(f'{PACKAGES[request.param]} is not installed')
    return VIDEO_READERS.get(request.param)


@pytest.fixture(scope='module')
def made(tmp_path_factory, clips):
    """Name -> path: one video of each rate, one of variable rate."""
    folder = tmp_path_factory.mktemp('clips')
    paths = {name: clips.write(folder / f'{name}.mp4', FRAMES, rate, gop=24, options=dict(bf='2'))
             for name, rate in RATES.items()}
    paths['uneven'] = clips.write(folder / 'uneven.mp4', FRAMES, 30, times=UNEVEN, gop=24)
    return paths


@pytest.mark.parametrize('name', [*RATES, 'uneven'])
def test_frames_and_their_times(reader_type, made, clips, name):
    reader = reader_type(str(made[name]))
    info = reader.info()
    assert (info.width, info.height, info.num_frames) == (72, 48, FRAMES)
    times = (np.array(UNEVEN) - UNEVEN[0]) / 1000 if name == 'uneven' else np.arange(FRAMES) / float(RATES[name])
    assert info.timestamps.dtype == np.float64 and info.timestamps[0] == 0
    assert np.abs(info.timestamps - times).max() < (0.001 if name == 'uneven' else 1e-9)
    if name != 'uneven':
        assert info.seconds == pytest.approx(FRAMES / float(RATES[name]), abs=1e-9)
    for seed in range(4):  # the reader stays open: each request goes back
        asked = sorted(random.Random(seed).choices(range(FRAMES), k=15))
        frames = list(reader.frames(asked))
        assert [clips.number(frame) for frame in frames] == asked
        assert all(frame.shape == (48, 72, 3) and frame.dtype == np.uint8 for frame in frames)
    assert [clips.number(frame) for frame in reader.frames([FRAMES - 1, FRAMES - 1])] == [FRAMES - 1] * 2
    reader.close()


@pytest.mark.parametrize('turn', [90, 180, 270])
def test_frames_are_upright(reader_type, tmp_path, clips, turn):
    reader = reader_type(str(clips.write(tmp_path / 'turned.mp4', 10, 10, turn=turn)))
    info, (frame,) = reader.info(), reader.frames([6])
    assert (info.height, info.width, 3) == frame.shape == ((48, 72, 3) if turn == 180 else (72, 48, 3))
    assert clips.number(np.rot90(frame, -turn // 90)) == 6


def test_past_the_end(reader_type, made):
    reader = reader_type(str(made['25']))
    with pytest.raises(ShortVideoError) as error:
        list(reader.frames([0, FRAMES]))
    assert error.value.decodable == FRAMES and error.value.kind == 'bad_video'


def test_not_a_video(reader_type, tmp_path):
    path = tmp_path / 'a.mp4'
    path.write_bytes(b'\0\0\0\x18ftypmp42' + bytes(300))
    with pytest.raises(MediaError, match=r'a\.mp4'):
        reader_type(str(path)).info()


@pytest.mark.skipif(SHARED is None, reason='shared real data is absent')
@pytest.mark.parametrize('name', REAL)
def test_real_videos_as_decoded_from_start_to_end(reader_type, name):
    asked = [0, 1, 59, 60, 60, 130, 200, 242]
    with av.open(str(SHARED / name)) as container:
        stream = container.streams.video[0]
        whole = [frame.to_ndarray(format='rgb24') for frame in container.decode(stream)]
        rate = float(stream.average_rate)
    reader = reader_type(str(SHARED / name))
    info = reader.info()
    assert info.num_frames == len(whole)
    assert np.abs(info.timestamps - np.arange(len(whole)) / rate).max() < 0.5 / rate
    for _ in range(2):
        for index, frame in zip(asked, reader.frames(asked), strict=True):
            assert np.abs(frame.astype(int) - whole[index]).mean() < 2, index
            if index and np.abs(whole[index].astype(int) - whole[index - 1]).mean() > 1:  # its neighbour is further off
                near, far = (np.abs(frame.astype(int) - whole[i]).mean() for i in (index, index - 1))
                assert near < far
