"""A loader that is killed at any moment goes on exactly; corrupt shards and samples are counted, named, replaced."""
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qvlkit.config import load_config
from qvlkit.data.datasets.conversation import ConversationDataset
from qvlkit.data.datasets.mixture import Mixture
from qvlkit.data.tokenizers import StandInTokenizer
from qvlkit.data.video_readers.decoder import VideoDecoder
from qvlkit.models.builder import build_model
from qvlkit.structures import Media, Sample, SampleError, Turn
from qvlkit.train.recipe import build_loader, build_processor

ROOT = Path(__file__).parents[2]
STEPS = 36  # of a run that is never killed
SIZES = dict(a=(40, (56, 84)), b=(31, (112, 140)), c=(25, None))  # source -> records, sizes of pictures


def talk(question, answer, **extra):
    return {**extra, 'conversations': [{'from': 'human', 'value': question}, {'from': 'gpt', 'value': answer}]}


def write_sources(folder):
    """Three files of conversations with pictures, and without."""
    rng = np.random.default_rng(0)
    for name, (count, sizes) in SIZES.items():
        records = []
        for index in range(count):
            picture = {}
            if sizes:
                picture = dict(image=f'{name}{index}.png')
                width, height = rng.choice(sizes, 2)
                Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(folder / picture['image'])
            records.append(talk('<image>Q' if sizes else 'Q', 'word ' * int(rng.integers(1, 9)), **picture))
        (folder / f'{name}.json').write_text(json.dumps(records))


def make_loader(dataset, workers=0, transforms=None, accumulation=2, **settings):
    """As a stage of a config has it: real parts, real rows."""
    model = build_model(load_config('qwen25vl_tiny')['model'], vocab_size=400, device='meta')
    processor = build_processor(model, StandInTokenizer(400), dict(max_pixels=200 * 200, min_pixels=56 * 56,
                                                                   transforms=transforms or {}), seed=5)
    settings = dict(row_length=500, window=40) | settings
    stage = dict(trainer=dict(type='SFTTrainer'), loader=dict(settings, num_workers=workers), accumulation=accumulation)
    return build_loader(dataset, processor, model, stage, seed=5)


def mixed_loader(folder, workers):
    """Shares by token, one of them falling; packing; every picture at a random scale; two rows in a step."""
    weights = dict(a=[[0, 1.0], [20_000, 0.2]], b=1.0, c=0.4)
    mixture = Mixture({name: dict(dataset=ConversationDataset(str(Path(folder) / f'{name}.json')), weight=weight)
                       for name, weight in weights.items()}, by='token')
    return make_loader(mixture, workers, dict(scale=dict(type='RandomScale', scale=(0.6, 1.4))))


def step_line(number, rows):
    """What a step gave: its number, the ids of its rows, and a hash of all that the model would see."""
    digest = hashlib.sha256()
    for row in rows:
        for tensor in (row.token_ids, row.position_ids, row.target_rows, row.image_patches, row.visual_rows):
            digest.update(np.ascontiguousarray(tensor.numpy()).tobytes())
    return json.dumps([number, [list(row.sample_ids) for row in rows], digest.hexdigest()])


def child(folder, workers, out, state):
    """Iterate up to STEPS, from `state` if it is given; note each step, and the state behind it, on the disk."""
    loader, done = mixed_loader(folder, workers), 0
    if state:
        done, saved = json.loads(Path(state).read_text())
        loader.load_state_dict(saved)
    with open(f'{out}.steps', 'w') as steps, open(f'{out}.states', 'w') as states:
        for number, rows in enumerate(islice(loader, STEPS - done), start=done + 1):
            for file, line in ((steps, step_line(number, rows)), (states, json.dumps([number, loader.state_dict()]))):
                file.write(line + '\n')
                file.flush()
                os.fsync(file.fileno())
            print(number, flush=True)


def start(folder, workers, out, state=''):
    code = (f'import importlib.util as u; s = u.spec_from_file_location("faults", {__file__!r}); '
            f'm = u.module_from_spec(s); s.loader.exec_module(m); '
            f'm.child({str(folder)!r}, {workers}, {str(out)!r}, {str(state)!r})')
    return subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True,
                            env={**os.environ, 'PYTHONPATH': str(ROOT)}, cwd=folder)


def finished(folder, workers, out, state=''):
    """The steps of a run that ends by itself."""
    with start(folder, workers, out, state) as process:
        process.communicate(timeout=120)
    assert process.returncode == 0
    return lines(f'{out}.steps')


def lines(path):
    """The whole lines of a file; the last one of a killed run may be cut."""
    text = Path(path).read_text()
    return [json.loads(line) for line in text[:text.rfind('\n') + 1].splitlines()]


def killed(folder, workers, out, seed):
    """The steps of a run killed at a random moment up to its last state, and the file of that state."""
    rng = random.Random(seed)
    with start(folder, workers, out) as process:
        for _ in range(rng.randrange(3, STEPS - 8)):
            process.stdout.readline()
        time.sleep(rng.random() * 0.05)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    state = lines(f'{out}.states')[-1]
    Path(f'{out}.last').write_text(json.dumps(state))
    return lines(f'{out}.steps')[:state[0]], f'{out}.last'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    result = tmp_path_factory.mktemp('sources')
    write_sources(result)
    return result


@pytest.fixture(scope='module')
def straight(folder, tmp_path_factory):
    """The run that is never killed."""
    steps = finished(folder, 0, tmp_path_factory.mktemp('straight') / 'run')
    assert len(steps) == STEPS and all(len(rows) == 2 for _, rows, _ in steps)
    assert len({name for _, rows, _ in steps for row in rows for name in row}) == sum(n for n, _ in SIZES.values())
    return steps


@pytest.mark.parametrize('first, second, seed', [
    (2, 0, 1), *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        (0, 3, 2), (3, 2, 3), (0, 0, 4), (2, 2, 5), (3, 3, 6), (2, 0, 7), (0, 3, 8), (3, 2, 9)))])
def test_a_killed_run_goes_on_as_if_nothing_had_been(folder, straight, tmp_path, first, second, seed):
    before, state = killed(folder, first, tmp_path / 'first', seed)
    assert 3 <= len(before) < STEPS and before == straight[:len(before)]
    after = finished(folder, second, tmp_path / 'second', state)
    assert before + after == straight


@pytest.mark.slow
def test_without_the_state_it_does_not(folder, straight, tmp_path):
    """The control: it is the state that makes the test above pass."""
    before, _ = killed(folder, 0, tmp_path / 'first', 10)
    after = finished(folder, 0, tmp_path / 'second')[:STEPS - len(before)]
    assert [step[1:] for step in after] != [step[1:] for step in straight[len(before):]]


def write_tar(path, count, bad=(), damage=None, size=(28, 28)):
    """A shard of conversations about pictures of noise; `damage` changes the bytes of those that are bad."""
    rng = np.random.default_rng(1)
    with tarfile.open(path, 'w') as archive:
        for index in range(count):
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(buffer, 'JPEG', quality=90)
            data = damage(buffer.getvalue()) if index in bad else buffer.getvalue()
            for name, content in ((f'{index:05}.jpg', data),
                                  (f'{index:05}.json', json.dumps(talk('<image>', 'x', image='jpg')).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return str(path)


def truncated(data):
    return data[:len(data) * 2 // 3]


def broken_header(data):
    return b'\0' * 8 + data[8:]


@pytest.mark.parametrize('damage, workers', [(truncated, 0), (truncated, 2), (broken_header, 0)])
def test_a_wholly_corrupt_shard_ends_the_run_with_its_name(folder, tmp_path, damage, workers):
    path = write_tar(tmp_path / 'shard-7.tar', 60, range(60), damage)
    mixture = Mixture(dict(good=dict(dataset=ConversationDataset(str(folder / 'c.json'))),
                           shard=dict(dataset=ConversationDataset(path), weight=0.2)))
    loader = make_loader(mixture, workers, on_error='skip', max_bad_in_a_row=15, max_bad_share=1.0)
    with pytest.raises(ValueError, match=r"15 samples of 'shard' in a row.*shard-7\.tar\[\d+\]"):
        list(islice(loader, 500))
    with pytest.raises(ValueError, match=r'more than 1\.0% .*shard-7\.tar\[\d+\]'):
        list(islice(make_loader(mixture, workers, on_error='skip'), 500))
    with pytest.raises(SampleError, match=r'^shard-7\.tar\[\d+\]: '):
        list(islice(make_loader(mixture, workers), 500))


@pytest.mark.slow
def test_a_few_corrupt_samples_are_counted_exactly_and_replaced_alike(tmp_path):
    bad = range(100, 2400, 200)  # 0.5 %
    path = write_tar(tmp_path / 'shard.tar', 2400, bad, truncated)

    def run(name, workers):
        mixture = Mixture(dict(shard=dict(dataset=ConversationDataset(path), epochs=1)))
        loader = make_loader(mixture, workers, on_error='skip', quarantine=tmp_path / name, row_length=1500, window=256)
        steps = [step_line(0, rows) for rows in loader]
        rows = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        return steps, rows, loader.errors
    steps, quarantine, errors = run('one', 0)
    assert sorted(row['sample'] for row in quarantine) == sorted(f'shard.tar[{index}]' for index in bad)
    assert errors == dict(bad_image=len(bad))
    ids = [name for step in steps for row in json.loads(step)[1] for name in row]
    assert len(ids) == 2400  # every place was filled
    assert set(ids) == {f'shard.tar[{index}]' for index in range(2400) if index not in bad}
    assert run('two', 0) == (steps, quarantine, errors)
    assert run('three', 2) == (steps, quarantine, errors)


@pytest.mark.parametrize('on_error, known', [('raise', ()), ('skip', ()), ('skip', (3, 9))])
def test_a_sample_that_breaks_between_stop_and_resume_is_named(tmp_path, on_error, known):
    """Not skipped in silence: the rows of the present window could not be those of the run that stopped."""
    path = write_tar(tmp_path / 'shard.tar', 60, known, broken_header)
    source = dict(shard=dict(dataset=ConversationDataset(path), order='sequential'))
    first = make_loader(Mixture(source), on_error=on_error, window=60)
    list(islice(first, 2))
    state = json.loads(json.dumps(first.state_dict()))
    assert state['step'] == 2
    write_tar(tmp_path / 'shard.tar', 60, (*known, 41), broken_header)
    source['shard']['dataset'] = ConversationDataset(path)
    second = make_loader(Mixture(source), on_error=on_error, window=60)
    second.load_state_dict(state)
    with pytest.raises(ValueError, match=r'resume: .*cannot be read now \(shard\.tar\[41\]: '):
        list(islice(second, 2))


SPINNING = '''
import itertools
from qvlkit.data.video_readers.pyav import PyAVReader
from qvlkit.registry import VIDEO_READERS

@VIDEO_READERS.register_module()
class SpinningAtSome(PyAVReader):
    """Hangs, deaf to signals, in files of one name."""
    def __init__(self, path):
        super().__init__(path)
        self.path = path

    def frames(self, indices):
        if 'spin' in self.path:
            sum(itertools.repeat(0))
        yield from super().frames(indices)
'''


@pytest.mark.parametrize('workers', [pytest.param(0, marks=pytest.mark.slow), 1])
def test_bad_videos_go_to_the_quarantine_and_the_workers_live_on(clips, tmp_path, monkeypatch, workers):
    """One hangs while it is decoded, one is cut so that it cannot be opened, one is a page of HTML."""
    (tmp_path / 'spinning_at_some.py').write_text(SPINNING)
    monkeypatch.syspath_prepend(tmp_path)
    good = clips.write(tmp_path / 'good.mp4', 25, 25).read_bytes()
    for name, content in (('spin', good), ('cut', good[:300]), ('page', b'<!DOCTYPE html>')):
        (tmp_path / f'{name}.mp4').write_bytes(content)
    names = ['good', 'spin', 'good', 'cut', 'page', *['good'] * 6]
    (tmp_path / 'v.json').write_text(json.dumps([talk('<video>', 'x', video=f'{name}.mp4') for name in names]))
    data = Mixture(dict(v=dict(dataset=ConversationDataset(str(tmp_path / 'v.json')), epochs=1)))
    loader = make_loader(data, workers, on_error='skip', quarantine=tmp_path / 'quarantine.jsonl', row_length=6000)
    decoder = VideoDecoder(('SpinningAtSome',), deadline=3, modules=['spinning_at_some'])
    loader.processor.cut_patches.decoder = loader.processor.geometry_steps['open'].decoder = decoder
    ids = [name for rows in loader for row in rows for name in row.sample_ids]
    decoder.close()
    rows = [json.loads(line) for line in (tmp_path / 'quarantine.jsonl').read_text().splitlines()]
    assert {(row['sample'], row['kind']) for row in rows} == {
        ('v.json[1]', 'video_timeout'), ('v.json[3]', 'bad_video'), ('v.json[4]', 'bad_video')}
    assert len(rows) == 3 and loader.errors == dict(bad_video=2, video_timeout=1)
    assert set(ids) == {f'v.json[{index}]' for index, name in enumerate(names) if name == 'good'}
    assert len(ids) == 9  # the hung one was replaced


def test_paths_and_addresses_that_are_refused_are_counted_by_kind(tmp_path):
    Image.new('RGB', (56, 56)).save(tmp_path / 'a.png')
    bad = {'../../etc/passwd': 'path_refused', '/etc/passwd': 'path_refused', '%2e%2e/a.png': 'missing_media',
           'A.PNG': 'missing_media', 'a.png\0': 'path_refused', 'file:///etc/passwd': 'url_refused',
           'http://169.254.169.254/latest': 'url_refused', 'https://example.org/a.png': 'url_refused'}
    (tmp_path / 'x.json').write_text(json.dumps([talk('<image>', 'x', image=name) for name in [*bad, 'a.png']]))
    loader = make_loader(Mixture(dict(x=dict(dataset=ConversationDataset(str(tmp_path / 'x.json')), epochs=1))),
                         on_error='skip', quarantine=tmp_path / 'quarantine.jsonl')
    assert [row.sample_ids for rows in loader for row in rows] == [('x.json[8]',)]
    assert loader.errors == dict(path_refused=3, missing_media=2, url_refused=3)
    assert len((tmp_path / 'quarantine.jsonl').read_text().splitlines()) == len(bad)


def test_a_picture_whose_content_has_another_size_than_its_header_said_is_a_bad_sample(tmp_path):
    """The placeholders are counted from the header: as many patches must follow, or they would land in other rows."""
    class Lying:
        size = (56, 84)

        def draw(self):
            return Image.new('RGB', (84, 84))
    model = build_model(load_config('qwen25vl_tiny')['model'], vocab_size=400, device='meta')
    processor = build_processor(model, StandInTokenizer(400), {})
    sample = Sample('x.json[3]', [Turn('user', [Media('image', Lying())]), Turn('assistant', ['x'])])
    assert processor.measure(sample).grids == ((1, 6, 4),)
    with pytest.raises(SampleError, match=r'x.json\[3\]: a picture of 84 x 84 pixels whose header says 56 x 84'):
        processor.encode(sample)
