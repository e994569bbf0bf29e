"""Every shipped config loads, builds on the meta device, and says what it is for."""
import ast
import re
from pathlib import Path

import pytest

from qvlkit.config import load_config
from qvlkit.models.builder import build_model
from qvlkit.planning.parameters import count_parameters, total_parameters
from qvlkit.planning.readiness import vocabulary_rows

FOLDER = Path(__file__).parents[1] / 'configs'
CONFIGS = sorted(FOLDER.glob('*.py'))
TOTALS = {'qwen25vl_3b': 3_754_622_976, 'qwen25vl_7b': 8_292_166_656, 'qwen25vl_72b': 73_410_777_344}


def built(path: Path):
    config = load_config(path)
    stage = config['stages'][config['run'][0]]
    return build_model(config['model'], vocab_size=vocabulary_rows(config, stage), device='meta')


def test_the_released_sizes_are_shipped():
    assert {path.stem for path in CONFIGS} >= {'qwen25vl_tiny', *TOTALS}


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_loads_and_builds(path):
    model = built(path)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert total_parameters(model) > 1_000_000


@pytest.mark.parametrize('name', TOTALS)
def test_exact_totals(name):
    assert total_parameters(built(FOLDER / f'{name}.py')) == TOTALS[name]


def test_parts_of_72b():
    assert count_parameters(built(FOLDER / 'qwen25vl_72b.py')) == {
        'vision_encoder': 636_401_664, 'merger': 68_172_032,
        'language_model': 70_214_787_072 + 2 * 1_245_708_288}


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_docstring_and_hooks(path):
    text = ast.get_docstring(ast.parse(path.read_text(encoding='utf-8')))
    for word in ('Purpose', 'Command', 'Hardware', 'Expected'):
        assert re.search(rf'^{word}:', text, re.MULTILINE), f'{path.name}: its docstring lacks {word}'
    if path.stem in TOTALS:
        assert f'{TOTALS[path.stem]:,}' in text
        hooks = {hook['type'] for hook in load_config(path)['stages']['sft']['hooks'].values()}
        assert hooks >= {'ConsoleHook', 'JSONLHook', 'TensorBoardHook', 'CheckpointHook'}


def test_the_frozen_part_can_be_trained_by_an_override():
    config = load_config(FOLDER / 'qwen25vl_3b.py', ['stages.sft.parts.vision_encoder.trainable=true'])
    assert config['stages']['sft']['parts']['vision_encoder']['trainable'] is True
