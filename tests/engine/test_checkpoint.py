"""Checkpoints: what is written comes back, and every way in which a save or a disk can fail is noticed."""
import errno
import json
import logging
import os
import pickle
import random
import shutil
import signal
from pathlib import Path

import pytest
import torch

from qvlkit.engine.checkpoint import CorruptCheckpointError, checkpoints, load_checkpoint, read_tensors, save_checkpoint

POINTS = ['model.safetensors', 'optimizer.safetensors', 'state.json', 'manifest.json', 'step_N', 'latest']


def contents(step: int) -> dict:
    """Tensors and state that only step `step` has."""
    tensors = {'model.safetensors': {'weight': torch.full((40, 50), float(step)), 'bias': torch.arange(step + 1)},
               'optimizer.safetensors': {'exp_avg/weight': torch.full((40, 50), step / 7)}}
    return {'tensors': tensors, 'state': {'step': step, 'loader': {'position': [step, 2]}}}


def assert_is(checkpoint, step: int) -> None:
    assert (checkpoint.step, checkpoint.state) == (step, contents(step)['state'])
    for file, tensors in contents(step)['tensors'].items():
        read = checkpoint.tensors(file)
        assert read.keys() == tensors.keys()
        assert all(torch.equal(read[name], tensors[name]) for name in tensors)


def latest(root: Path) -> str:
    return (root / 'latest').read_text().strip()


def flip_byte(path: Path, position: int = -9) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_what_is_saved_comes_back(tmp_path):
    folder = save_checkpoint(tmp_path / 'run', 7, **contents(7))
    assert folder == tmp_path / 'run' / 'step_7' and latest(tmp_path / 'run') == 'step_7'
    assert_is(load_checkpoint(tmp_path / 'run'), 7)
    assert_is(load_checkpoint(folder, strict=True), 7)
    manifest = json.loads((folder / 'manifest.json').read_text())
    assert sorted(manifest['files']) == ['model.safetensors', 'optimizer.safetensors', 'state.json']
    assert (manifest['step'], manifest['format_version'], manifest['versions']['torch']) == (7, 1, torch.__version__)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64,
                                   torch.uint8, torch.bool])
def test_dtypes_scalars_and_empty_tensors_are_exact(tmp_path, dtype):
    named = {'matrix': torch.randn(3, 4).to(dtype), 'scalar': torch.tensor(1).to(dtype),
             'empty': torch.zeros(0, 3).to(dtype), 'empty too': torch.zeros(0, 5).to(dtype)}
    save_checkpoint(tmp_path, 1, tensors={'a.safetensors': named}, state={})
    read = load_checkpoint(tmp_path).tensors('a.safetensors')
    assert {name: (t.dtype, t.shape, t.tolist()) for name, t in named.items()} == {
        name: (t.dtype, t.shape, t.tolist()) for name, t in read.items()}


def test_tied_tensors_are_written_once_and_views_of_one_memory_are_right(tmp_path):
    weight = torch.randn(200, 100)
    named = {'embed': weight, 'head': weight, 'transposed': weight.t(), 'row': weight[3]}
    save_checkpoint(tmp_path, 1, tensors={'a.safetensors': {'embed': weight, 'head': weight}}, state={})
    assert (tmp_path / 'step_1' / 'a.safetensors').stat().st_size < 1.1 * weight.nbytes
    save_checkpoint(tmp_path, 2, tensors={'a.safetensors': named}, state={})
    read = load_checkpoint(tmp_path).tensors('a.safetensors')
    assert all(torch.equal(read[name], named[name]) for name in named)
    assert read['head'].data_ptr() == read['embed'].data_ptr()


def test_further_files_are_covered_by_the_manifest(tmp_path):
    def write_more(folder: Path) -> None:
        (folder / 'tokenizer').mkdir()
        (folder / 'tokenizer' / 'vocabulary.txt').write_text('ein zwei drei')

    folder = save_checkpoint(tmp_path, 1, tensors={}, state={}, write_more=write_more)
    assert 'tokenizer/vocabulary.txt' in load_checkpoint(tmp_path).files
    flip_byte(folder / 'tokenizer' / 'vocabulary.txt')
    with pytest.raises(CorruptCheckpointError, match='vocabulary.txt'):
        load_checkpoint(tmp_path)


def test_nothing_to_resume_is_an_error(tmp_path):
    for path in (tmp_path, tmp_path / 'absent', tmp_path / 'absent' / 'step_3'):
        with pytest.raises(FileNotFoundError, match='no checkpoint'):
            load_checkpoint(path)
    (tmp_path / 'step_3.tmp').mkdir()
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path)


def test_retention_counts_whole_checkpoints_only(tmp_path):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, **contents(step), keep=2)
    assert sorted(path.name for path in checkpoints(tmp_path)) == ['step_2', 'step_3']
    (tmp_path / 'step_3' / 'manifest.json').unlink()
    save_checkpoint(tmp_path, 4, **contents(4), keep=2)
    assert (tmp_path / 'step_2').is_dir()
    save_checkpoint(tmp_path, 5, **contents(5), keep=1)
    assert_is(load_checkpoint(tmp_path), 5)
    assert not (tmp_path / 'step_2').exists() and not (tmp_path / 'step_4').exists()
    with pytest.raises(ValueError, match='keep'):
        save_checkpoint(tmp_path, 6, **contents(6), keep=0)


def test_rolling_back_goes_on_from_latest_and_spares_later_ones(tmp_path):
    for step in (10, 20, 30):
        save_checkpoint(tmp_path, step, **contents(step))
    save_checkpoint(tmp_path, 11, **contents(11), keep=1)
    assert_is(load_checkpoint(tmp_path), 11)
    assert (tmp_path / 'step_30').is_dir() and not (tmp_path / 'step_10').exists()


def test_a_step_can_be_saved_again_and_no_kill_loses_it(tmp_path):
    for kill_at in POINTS:
        root = tmp_path / kill_at
        save_checkpoint(root, 5, tensors={'model.safetensors': {'w': torch.zeros(2)}}, state={}, keep=1)
        assert run_killed(root, 5, kill_at, keep=1) == -signal.SIGKILL
        load_checkpoint(root)
        save_checkpoint(root, 5, **contents(5), keep=1)
        assert_is(load_checkpoint(root, strict=True), 5)
        assert [path.name for path in checkpoints(root)] == ['step_5']


@pytest.mark.parametrize('renames', [0, 1, 2])
def test_a_kill_between_the_renames_of_a_second_save_loses_nothing(tmp_path, renames, monkeypatch):
    save_checkpoint(tmp_path, 5, **contents(5), keep=1)
    left, rename = [renames], os.rename

    def rename_or_die(source, target) -> None:
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        rename(source, target)

    monkeypatch.setattr(os, 'rename', rename_or_die)  # only the child's renames are counted
    assert run_killed(tmp_path, 5, 'no such point', keep=1) == -signal.SIGKILL
    monkeypatch.undo()
    assert_is(load_checkpoint(tmp_path), 5)
    save_checkpoint(tmp_path, 5, **contents(5), keep=1)
    assert [path.name for path in checkpoints(tmp_path)] == ['step_5'] and not list(tmp_path.glob('*.tmp'))


def run_killed(root: Path, step: int, point: str, **options) -> int:
    """Save in a child process that is killed right after `point` was written; its exit status."""
    point = f'step_{step}' if point == 'step_N' else point
    child = os.fork()
    if child == 0:
        save_checkpoint(root, step, **contents(step), **options,
                        after_write=lambda name: os.kill(os.getpid(), signal.SIGKILL) if name == point else None)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize('point', POINTS)
def test_sigkill_in_a_save_leaves_a_verified_checkpoint(tmp_path, point, caplog):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, **contents(step), keep=1)
    assert run_killed(tmp_path, 3, point, keep=1) == -signal.SIGKILL
    expected = 3 if point == 'latest' else 2
    assert latest(tmp_path) == f'step_{expected}'
    assert_is(load_checkpoint(tmp_path, strict=True), expected)
    unfinished = POINTS.index(point) < POINTS.index('step_N')
    assert (tmp_path / 'step_3.tmp').exists() == unfinished
    save_checkpoint(tmp_path, 4, **contents(4), keep=1)
    assert not list(tmp_path.glob('*.tmp')) and not caplog.records
    assert_is(load_checkpoint(tmp_path, strict=True), 4)


def test_sigkill_at_random_moments_of_a_run(tmp_path):
    generator, step = random.Random(0), 1
    save_checkpoint(tmp_path, step, **contents(step), keep=2)
    for _ in range(10):
        point = generator.choice(POINTS)
        run_killed(tmp_path, step + 1, point, keep=2)
        resumed = load_checkpoint(tmp_path, strict=True)
        assert resumed.step >= step
        assert_is(resumed, resumed.step)
        step = resumed.step


def damage_truncate(folder):
    os.truncate(folder / 'model.safetensors', 100)


def damage_empty(folder):
    (folder / 'model.safetensors').write_bytes(b'')


def damage_missing(folder):
    (folder / 'model.safetensors').unlink()


def damage_no_manifest(folder):
    (folder / 'manifest.json').unlink()


def damage_half_manifest(folder):
    os.truncate(folder / 'manifest.json', (folder / 'manifest.json').stat().st_size // 2)


def damage_manifest_of_another_step(folder):
    shutil.copy(folder.parent / 'step_1' / 'manifest.json', folder / 'manifest.json')


def damage_outside_name(folder):
    manifest = json.loads((folder / 'manifest.json').read_text())
    manifest['files']['../../secret'] = {'bytes': 1, 'sha256': ''}
    (folder / 'manifest.json').write_text(json.dumps(manifest))


@pytest.mark.parametrize('damage, file', [
    (damage_truncate, 'model.safetensors'), (damage_empty, 'model.safetensors'), (damage_missing, 'model.safetensors'),
    (damage_no_manifest, 'manifest.json'), (damage_half_manifest, 'manifest.json'),
    (damage_manifest_of_another_step, 'manifest.json'), (damage_outside_name, '../../secret')])
def test_damage_names_file_and_step_and_falls_back(tmp_path, damage, file, caplog):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, **contents(step))
    damage(tmp_path / 'step_2')
    with pytest.raises(CorruptCheckpointError) as caught:
        load_checkpoint(tmp_path, strict=True)
    assert (caught.value.step, caught.value.file) == (2, file)
    assert 'step_2' in str(caught.value) and file in str(caught.value)
    with pytest.raises(CorruptCheckpointError):
        load_checkpoint(tmp_path / 'step_2')  # named itself: nothing stands in for it
    with caplog.at_level(logging.WARNING):
        assert_is(load_checkpoint(tmp_path), 1)
    assert all(text in caplog.text for text in ('CORRUPT', 'step_2', file, 'falling back'))


def test_all_damaged_or_latest_gone_is_an_error(tmp_path):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, **contents(step))
        flip_byte(tmp_path / f'step_{step}' / 'state.json')
    with pytest.raises(CorruptCheckpointError, match='no other checkpoint of 2'):
        load_checkpoint(tmp_path)
    for step in (1, 2):
        shutil.rmtree(tmp_path / f'step_{step}')
    with pytest.raises(CorruptCheckpointError, match='step_2'):
        load_checkpoint(tmp_path)


def test_a_garbled_pointer_is_reported_and_the_newest_is_taken(tmp_path, caplog):
    for step in (9, 10):
        save_checkpoint(tmp_path, step, **contents(step))
    (tmp_path / 'latest').write_text('../elsewhere')
    assert_is(load_checkpoint(tmp_path), 10)
    assert 'elsewhere' in caplog.text


@pytest.mark.parametrize('file', ['model.safetensors', 'optimizer.safetensors', 'state.json'])
@pytest.mark.parametrize('position', [0, 8, 40, -1])
def test_one_flipped_byte_is_found_before_any_tensor_is_read(tmp_path, file, position, monkeypatch):
    save_checkpoint(tmp_path, 1, **contents(1))
    flip_byte(tmp_path / 'step_1' / file, position)
    monkeypatch.setattr('qvlkit.engine.checkpoint.read_tensors', lambda path: pytest.fail('a tensor was read'))
    with pytest.raises(CorruptCheckpointError, match=file):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize('point', POINTS[:-1])
@pytest.mark.parametrize('code', [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_failing_disk_is_an_error_and_harms_nothing(tmp_path, point, code):
    save_checkpoint(tmp_path, 1, **contents(1), keep=1)

    def fail(name: str) -> None:
        if name == ('step_2' if point == 'step_N' else point):
            raise OSError(code, os.strerror(code))

    with pytest.raises(OSError, match=os.strerror(code)):
        save_checkpoint(tmp_path, 2, **contents(2), keep=1, after_write=fail)
    assert latest(tmp_path) == 'step_1' and not list(tmp_path.glob('step_*.tmp'))
    assert_is(load_checkpoint(tmp_path, strict=True), 1)


def test_a_real_write_error_is_an_oserror(tmp_path):
    save_checkpoint(tmp_path, 1, **contents(1))
    with pytest.raises(OSError, match='model'):
        save_checkpoint(tmp_path, 2, tensors={'no such folder/model.safetensors': {'w': torch.zeros(1)}}, state={})
    (tmp_path / 'occupied').write_text('a file, not a folder')
    with pytest.raises(OSError, match='occupied'):
        save_checkpoint(tmp_path / 'occupied', 2, **contents(2))
    assert_is(load_checkpoint(tmp_path, strict=True), 1)


@pytest.mark.parametrize('tensors, state', [
    ({'model.pt': {}}, {}), ({}, {'rng': torch.zeros(2)}), ({}, {'a': object()})])
def test_only_safetensors_and_json_are_written(tmp_path, tensors, state):
    with pytest.raises(ValueError, match='safetensors|JSON'):
        save_checkpoint(tmp_path, 1, tensors=tensors, state=state)
    assert not checkpoints(tmp_path)


class Hostile:
    """Touches a file when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize('file', ['model.safetensors', 'optimizer.safetensors', 'state.json', 'model.pt'])
@pytest.mark.parametrize('zipped', [True, False])
def test_a_hostile_pickle_is_refused_and_not_run(tmp_path, file, zipped):
    """Also where its writer gave it a manifest that fits."""
    marker = tmp_path / 'code was run'

    def plant(folder: Path) -> None:
        if zipped:
            torch.save(Hostile(marker), folder / file)
        else:
            (folder / file).write_bytes(pickle.dumps(Hostile(marker)))

    save_checkpoint(tmp_path / 'run', 1, **contents(1), write_more=plant)
    with pytest.raises(CorruptCheckpointError, match=file):
        checkpoint = load_checkpoint(tmp_path / 'run')
        read_tensors(checkpoint.path / file)
    if file == 'model.pt':
        with pytest.raises(CorruptCheckpointError, match='pickles .* refused'):
            checkpoint.tensors(file)
    assert not marker.exists()
    with open(tmp_path / 'run' / 'step_1' / file, 'rb') as planted:
        torch.load(planted, weights_only=False) if zipped else pickle.load(planted)
    assert marker.exists()  # it was a live one
