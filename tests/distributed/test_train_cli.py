"""torchrun tools/train.py: the losses of one process with twice the rows, one set of files, and a resume."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from qvlkit.config import save_config
from qvlkit.train.hooks.jsonl import read_log

ROOT = Path(__file__).parents[2]
TORCHRUN = ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2']


def train(config, folder, *overrides, launcher=(), resume=False, code=0):
    command = [sys.executable, *launcher, str(ROOT / 'tools' / 'train.py'), str(config), '--work-dir', str(folder)]
    command += ['--set', *overrides] if overrides else []
    result = subprocess.run([*command, *(['--resume'] if resume else [])], capture_output=True, text=True, timeout=240,
                            env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}, check=False)
    assert (result.returncode == 0) == (code == 0), result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout + result.stderr


@pytest.mark.slow
def test_torchrun_is_one_process_with_twice_the_rows_and_resumes(small_file, tmp_path):
    steps = 'stages.sft.max_steps=6'
    console = 'stages.sft.hooks.console={type: ConsoleHook, interval: 2}'
    statistics = 'stages.sft.hooks.statistics={type: StatisticsHook, interval: 3}'
    train(small_file, tmp_path / 'one', steps, 'stages.sft.accumulation=2')
    text = train(small_file, tmp_path / 'two', steps, console, statistics, launcher=TORCHRUN)
    logs = [read_log(tmp_path / name / 'sft' / 'log.jsonl') for name in ('one', 'two')]
    assert [row['step'] for row in logs[1]] == list(range(1, 7))
    for expected, found in zip(*logs, strict=True):
        assert found['loss'] == pytest.approx(expected['loss'], rel=1e-6)
        assert found['num_tokens'] == expected['num_tokens'] and found['num_targets'] == expected['num_targets']
        assert found['flops'] == expected['flops'] > 0
    assert text.count('sft 2/6') == 1 and 'FLOP/s' in text  # one rank prints
    lines = (tmp_path / 'two' / 'sft' / 'statistics.jsonl').read_text().splitlines()
    assert [json.loads(line)['step'] for line in lines] == [3, 6]

    resumed = tmp_path / 'resumed'
    train(small_file, resumed, 'stages.sft.max_steps=4', launcher=TORCHRUN)
    (resumed / 'sft' / 'summary.json').unlink()  # as if it had been stopped there
    train(small_file, resumed, steps, launcher=TORCHRUN, resume=True)
    again = read_log(resumed / 'sft' / 'log.jsonl')
    assert [row['step'] for row in again] == list(range(1, 7))
    longer = [row['loss'] for row in again[:4]]
    assert longer[0] == logs[1][0]['loss']  # the rate differs from there on: it depends on max_steps
    weights = load_file(resumed / 'sft' / 'step_6' / 'model.safetensors')
    assert weights and all(value.isfinite().all() for value in weights.values())


@pytest.mark.slow
def test_the_whole_recipe_on_two_processes_is_that_of_one(six_stages, tmp_path):
    """Six stages with all their hooks: losses of each step, the same files, and weights that differ by rounding."""
    for name, accumulation, launcher in (('one', 2, ()), ('two', 1, TORCHRUN)):
        config = six_stages()
        for stage in config['stages'].values():
            stage['accumulation'] = accumulation
        save_config(config, tmp_path / f'{name}.json')
        train(tmp_path / f'{name}.json', tmp_path / name, launcher=launcher)
    for stage in config['run']:
        expected, found = (read_log(tmp_path / name / stage / 'log.jsonl') for name in ('one', 'two'))
        assert [row['step'] for row in found] == [1, 2, 3]
        for wanted, row in zip(expected, found, strict=True):
            assert row['loss'] == pytest.approx(wanted['loss'], rel=1e-6), (stage, row['step'])
            assert (row['num_tokens'], row['num_targets']) == (wanted['num_tokens'], wanted['num_targets']), stage
        files = [{path.name for path in (tmp_path / name / stage).iterdir()} for name in ('one', 'two')]
        assert files[0] == files[1], stage
        summaries = [json.loads((tmp_path / name / stage / 'summary.json').read_text()) for name in ('one', 'two')]
        assert summaries[0]['results'].keys() == summaries[1]['results'].keys()
        assert summaries[0]['tokens'] == summaries[1]['tokens']
    assert (tmp_path / 'two' / 'report.html').is_file()


@pytest.mark.slow
def test_a_stopped_run_of_two_processes_goes_on_bit_for_bit(small, on_ranks, tmp_path):
    """Straight through; and the weights of one that was resumed in the middle of a window."""
    config = small('stages.sft.max_steps=6', 'stages.sft.hooks.checkpoint.interval=3',
                   'stages.sft.hooks.checkpoint.keep=2')
    arguments = dict(config=config, stage='sft', positions=[], rank=0, value='nan')
    straight = on_ranks('poisoned', 2, dict(arguments, work_dir=str(tmp_path / 'straight')))
    folder = tmp_path / 'straight'
    for name in ('step_6', 'latest'):
        path = folder / name
        path.rename(tmp_path / f'gone_{name}')
    resumed = on_ranks('poisoned', 2, dict(arguments, work_dir=str(folder), resume=True))
    assert len(straight[0]['equal']) == 6 and len(resumed[0]['equal']) == 3
    assert [rank['total'] for rank in resumed] == [rank['total'] for rank in straight]
    assert resumed[0]['total'] == resumed[1]['total']
    first, second = (load_file(path / 'model.safetensors') for path in (tmp_path / 'gone_step_6', folder / 'step_6'))
    assert all(value.numpy().tobytes() == second[name].numpy().tobytes() for name, value in first.items())
    assert [row['step'] for row in read_log(folder / 'log.jsonl')] == list(range(1, 7))
