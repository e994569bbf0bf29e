"""Losses of the tiny recipe's first steps, stage after stage, as they were when they were written down.

A refactor on one machine gives the same bits; another machine 1e-3 of the value. After a change that is meant to change
them: python tests/golden/test_recipe_losses.py
"""
import json
import tempfile
from pathlib import Path

import pytest

from qvlkit.config import load_config
from qvlkit.train.hooks.jsonl import read_log
from qvlkit.train.recipe import run_recipe

FILE = Path(__file__).with_name('recipe_losses.json')
STEPS = 5
HELD_OUT = {'contrastive': 'zero_shot', 'visual': 'held_out', 'multimodal': 'held_out', 'long_context': 'evaluation',
            'sft': 'evaluation', 'dpo': 'preference'}


def losses(folder: Path) -> dict[str, list[float]]:
    """Stage -> loss of each of its first steps, each stage from the one before."""
    config = load_config('qwen25vl_tiny', [
        *(f'stages.{stage}.hooks.{hook}=null' for stage, hook in HELD_OUT.items()),
        *(f'stages.{stage}.{setting}' for stage in HELD_OUT for setting in (
            f'max_steps={STEPS}', 'hooks.console=null', 'loader.num_workers=0', 'loader.window=64'))])
    assert config['run'] == list(HELD_OUT)
    run_recipe(config, work_dir=str(folder))
    return {stage: [row['loss'] for row in read_log(folder / stage / 'log.jsonl')] for stage in HELD_OUT}


@pytest.mark.slow
def test_the_recipe_loses_what_it_lost(tmp_path):
    found, golden = losses(tmp_path), json.loads(FILE.read_text())
    assert found.keys() == golden.keys()
    for stage, expected in golden.items():
        assert len(expected) == STEPS and found[stage] == pytest.approx(expected, rel=1e-3), stage


if __name__ == '__main__':
    with tempfile.TemporaryDirectory() as name:
        FILE.write_text(json.dumps(losses(Path(name)), indent=1) + '\n')
