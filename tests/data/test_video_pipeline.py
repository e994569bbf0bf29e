"""Video files to tokens: ids that follow real seconds, two hours within the limits, real conversations."""
import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from qvlkit.data.datasets.conversation import ConversationDataset
from qvlkit.data.processor import Processor
from qvlkit.data.tokenizers import StandInTokenizer
from qvlkit.models.position_encodings.absolute_time_mrope import AbsoluteTimeMRoPE
from qvlkit.structures import Media, Sample, Turn, VisionGeometry

pytest.importorskip('av', reason='needs the extra [video]')
ROOT = Path(__file__).parents[2]
SHARED = next((parent / 'shared' / 'data' for parent in Path(__file__).resolve().parents
               if (parent / 'shared' / 'data').is_dir()), None)
GEOMETRY = VisionGeometry(14, 2, 2)
UNEVEN = np.cumsum(np.random.default_rng(0).choice([20, 33, 40, 67, 500], 150)).tolist()  # milliseconds


def make(**limits):
    limits = dict(video_readers=('PyAVReader',), video_min_pixels=56 * 56) | limits
    return Processor(StandInTokenizer(400), GEOMETRY, num_tokens=lambda grid: int(np.prod(grid)) // 4,
                     position_ids=AbsoluteTimeMRoPE(128).ids, **limits)


def document(path):
    """Two text tokens, a letter and <|vision_start|>, stand before the video."""
    return Sample('s', [Turn('document', ['a', Media('video', str(path)), 'b'])])


def frame_ids(encoded):
    """The temporal id of each frame group: all tokens of a group have the same one."""
    groups = encoded.grids[0][0]
    ids = encoded.position_ids[0, encoded.visual_rows].reshape(groups, -1)
    assert (ids == ids[:, :1]).all()
    return ids[:, 0].tolist()


@pytest.fixture(scope='module')
def ten_seconds(tmp_path_factory, clips):
    """Name -> (path, frames, seconds)."""
    folder = tmp_path_factory.mktemp('ten')
    made = {name: (clips.write(folder / f'{name}.mp4', 250, rate), 250, 250 / float(rate))
            for name, rate in (('25', Fraction(25)), ('29.97', Fraction(30000, 1001)))}
    path = clips.write(folder / 'uneven.mp4', 150, 30, times=UNEVEN)
    made['uneven'] = path, 150, float(make().geometry_steps['open'].decoder.probe(path).seconds)
    return made


@pytest.mark.parametrize('fps', [0.5, 1, 2, 4, 8])
@pytest.mark.parametrize('name', ['25', '29.97', 'uneven'])
def test_ids_follow_real_seconds(ten_seconds, name, fps):
    path, frames, seconds = ten_seconds[name]
    encoded = make(fps=fps).encode(document(path))
    count = min(max(seconds * fps, 4), frames) // 2 * 2  # the released sampler
    sample_fps = count / frames * (frames / seconds)
    assert encoded.grids[0][0] == count / 2
    assert frame_ids(encoded) == [2 + int(k * (2 / sample_fps) * 2) for k in range(int(count) // 2)]
    assert encoded.position_ids.shape == (3, encoded.length) and encoded.visual_rows[0] == 2


@pytest.mark.parametrize('rate, frames, fps, seconds_per_grid, expected', [
    (25, 75, 2, 1.0, [2, 4, 6]), (24, 36, 4, 0.5, [2, 3, 4]), (200, 597, 2.02, 0.995, [2, 3, 5]),
    (10, 39, 1.6, 1.3, [2, 4, 7])])
def test_golden_rows(clips, tmp_path, rate, frames, fps, seconds_per_grid, expected):
    processor, layouts = make(fps=fps), []
    position_ids = processor.position_ids
    processor.position_ids = lambda layout: layouts.append(layout) or position_ids(layout)
    encoded = processor.encode(document(clips.write(tmp_path / 'a.mp4', frames, rate)))
    assert layouts[0][1].seconds_per_grid == pytest.approx(seconds_per_grid, abs=1e-12)
    assert frame_ids(encoded) == expected


def test_the_patches_show_the_frames_that_were_chosen(ten_seconds, clips):
    path, frames, _ = ten_seconds['25']
    encoded = make(video_min_pixels=28 * 28 * 9 * 6, fps=2).encode(document(path))
    shown = [clips.number(frame) for frame in pictures(encoded.patches[0], encoded.grids[0])]
    assert shown == torch.linspace(0, frames - 1, 20).round().long().tolist()


def pictures(patches, grid):
    """uint8 (N, C*F*P*P) of a video in block order -> (frames, H, W, 3)."""
    groups, rows, columns = grid
    blocks = patches.reshape(groups, rows // 2, columns // 2, 2, 2, 3, 2, 14, 14)
    #                         0 group, 1 block row, 2 block column, 3 row, 4 column, 5 channel, 6 frame, 7 y, 8 x
    return blocks.transpose(0, 6, 1, 3, 7, 2, 4, 8, 5).reshape(groups * 2, rows * 14, columns * 14, 3)


LONG = '''
import json, sys, time
from pathlib import Path
import numpy as np
from qvlkit.data.processor import Processor
from qvlkit.data.tokenizers import StandInTokenizer
from qvlkit.models.position_encodings.absolute_time_mrope import AbsoluteTimeMRoPE
from qvlkit.structures import Media, Sample, Turn, VisionGeometry
path, out = sys.argv[1:]
processor = Processor(StandInTokenizer(400), VisionGeometry(14, 2, 2), num_tokens=lambda grid: int(np.prod(grid)) // 4,
                      position_ids=AbsoluteTimeMRoPE(128).ids, video_readers=('PyAVReader',), max_frames=768,
                      video_total_pixels=24576 * 28 * 28, video_min_pixels=32 * 28 * 28)
start = time.monotonic()
encoded = processor.encode(Sample('long', [Turn('document', ['a', Media('video', path), 'b'])]))
took = time.monotonic() - start
decoder = processor.cut_patches.decoder
own, child = (int(Path(f'/proc/{who}/status').read_text().split('VmHWM:')[1].split()[0])
              for who in ('self', decoder._child.pid))
encoded.patches[0].tofile(out)
groups = encoded.grids[0][0]
print(json.dumps(dict(took=took, grid=encoded.grids[0], tokens=encoded.token_counts[0],
                      memory=[own / 1024, child / 1024],
                      ids=encoded.position_ids[0, encoded.visual_rows].reshape(groups, -1)[:, 0].tolist())))
decoder.close()
'''


@pytest.mark.slow
def test_two_hours_within_the_limits_and_every_event_at_its_time(clips, tmp_path):
    rate, seconds = 2, 7200
    path = clips.write(tmp_path / 'long.mp4', rate * seconds, rate, options=dict(preset='ultrafast'), gop=250,
                       size=(288, 192))
    result = subprocess.run([sys.executable, '-c', LONG, str(path), str(tmp_path / 'patches')], cwd=ROOT,
                            capture_output=True, text=True, timeout=300, check=True)
    found = json.loads(result.stdout)
    groups, rows, columns = found['grid']
    assert 2 * groups == 768 and found['tokens'] == groups * rows * columns // 4 <= 24576
    assert found['took'] < 120 and max(found['memory']) < 2048, found  # seconds, MiB
    patches = np.fromfile(tmp_path / 'patches', np.uint8).reshape(groups * rows * columns, -1)
    shown = np.array([clips.number(frame) for frame in pictures(patches, found['grid'])]) / rate
    interval = seconds / 768
    told = np.repeat((np.array(found['ids']) - found['ids'][0]) / 2, 2) + np.tile([0, interval], groups)
    for event in (7.5, 1000.0, 2345.5, 4321.0, 6000.5, 7190.0):
        frame = int(np.abs(shown - event).argmin())
        assert abs(shown[frame] - event) <= interval / 2 + 1 / rate
        assert abs(told[frame] - shown[frame]) <= interval, (event, told[frame], shown[frame])
    assert (np.diff(shown) > 0).all() and shown[0] == 0 and shown[-1] == seconds - 1 / rate
    print(found['took'], found['memory'], found['tokens'])


@pytest.mark.skipif(SHARED is None, reason='shared real data is absent')
@pytest.mark.parametrize('path', ['chat/video_chat.json', 'video/video.json'])
def test_real_video_conversations_encode(path):
    data = ConversationDataset(str(SHARED / path))
    processor = make(video_max_pixels=28 * 28 * 48, video_min_pixels=28 * 28 * 16)
    for index in range(len(data)):
        encoded, measure = processor.encode(data[index]), processor.measure(data[index])
        assert (encoded.length, tuple(encoded.grids)) == (measure.length, measure.grids)
        assert encoded.kinds == ['video'] and encoded.token_counts == [int(np.prod(encoded.grids[0])) // 4]
        assert encoded.patches[0].shape == (np.prod(encoded.grids[0]), 1176) and encoded.patches[0].std() > 10
        seconds = processor.geometry_steps['open'].decoder.probe(data[index].media()[0].source).seconds
        ids = frame_ids(encoded)
        assert (ids[-1] - ids[0]) / 2 == pytest.approx(seconds, abs=seconds / len(ids) + 0.5)
        answer = processor.tokenizer.decode(encoded.token_ids[encoded.is_target].tolist())
        assert answer.rstrip('\n') == data[index].turns[-1].content[-1]
