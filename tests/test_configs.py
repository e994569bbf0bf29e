"""Every shipped config loads, builds on the meta device, and says what it is for; the recipe is the report's."""
import ast
import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from qvlkit.cli.dry_run import dry_run
from qvlkit.config import load_config
from qvlkit.engine.optimizer import trainable_table
from qvlkit.models.builder import build_model, stage_model
from qvlkit.planning.parameters import count_parameters, total_parameters
from qvlkit.planning.readiness import vocabulary_rows

FOLDER = Path(__file__).parents[1] / 'configs'
CONFIGS = sorted(FOLDER.glob('*.py'))
FRAGMENTS = sorted((FOLDER / '_base_').glob('*/*.py'))
TOTALS = {'qwen25vl_3b': 3_754_622_976, 'qwen25vl_7b': 8_292_166_656, 'qwen25vl_72b': 73_410_777_344}
STAGES = ['contrastive', 'visual', 'multimodal', 'long_context', 'sft', 'dpo']
FIRST = ['caption', 'visual_knowledge', 'ocr']
SECOND = [*FIRST, 'text', 'interleaved', 'vqa', 'maths', 'grounding', 'document', 'video', 'agent']
THIRD = [*SECOND, 'long_video', 'long_document', 'long_agent']
# The report's table 2 and section 2.3; the contrastive stage has no row length in it.
ROWS = dict(visual=8192, multimodal=8192, long_context=32768, sft=32768, dpo=8192)
TOKENS = dict(visual=1.5e12, multimodal=2e12, long_context=0.6e12)
TRAINS = dict(visual=['vision_encoder', 'merger'], multimodal=['vision_encoder', 'merger', 'language_model'],
              long_context=['vision_encoder', 'merger', 'language_model'], sft=['merger', 'language_model'],
              dpo=['merger', 'language_model'])


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


@pytest.mark.parametrize('path', [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (
    path.stem.startswith('qwen25vl'))) for path in CONFIGS])
def test_every_stage_is_rehearsed(path, shorten):
    """With two blocks in each part: the released depth is test_dry_run's."""
    console, config = Console(record=True, width=120, file=io.StringIO()), shorten(load_config(path))
    assert dry_run(config, console=console) == 0
    text = console.export_text()
    assert [line.split()[1] for line in text.splitlines() if line.startswith('stage ')] == config['run']
    assert text.count('that trains') == text.count('features') == len(config['run'])
    assert ('synthetic' in text) == (path.stem != 'qwen25vl_tiny')


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
        for name, stage in load_config(path)['stages'].items():
            hooks = {hook['type'] for hook in stage['hooks'].values()}
            assert hooks >= {'ConsoleHook', 'JSONLHook', 'TensorBoardHook', 'SourcesHook', 'CheckpointHook'}
            assert ('CompositionHook' in hooks) == (name == 'sft')


@pytest.mark.parametrize('path', [*FRAGMENTS, FOLDER / '_base_' / 'recipe.py'], ids=lambda path: path.stem)
def test_a_fragment_says_what_it_is(path):
    text = ast.get_docstring(ast.parse(path.read_text(encoding='utf-8')))
    assert text and (path.parent.name != 'stages' or re.search(r'^Source: .*arXiv 2502.13923', text, re.MULTILINE))


@pytest.mark.parametrize('name', TOTALS)
def test_the_recipe_is_the_reports(name):
    config = load_config(FOLDER / f'{name}.py')
    stages = config['stages']
    assert config['run'] == list(stages) == STAGES
    assert {stage: stages[stage]['loader']['row_length'] for stage in ROWS} == ROWS
    ranks = int(re.search(r'^_ranks = (\d+)', (FOLDER / f'{name}.py').read_text(), re.MULTILINE)[1])
    for stage, tokens in TOKENS.items():
        step = stages[stage]['loader']['row_length'] * stages[stage]['accumulation'] * ranks
        assert 0 <= tokens - stages[stage]['max_steps'] * step < step
    for stage, kinds in dict(visual=FIRST, multimodal=SECOND, long_context=THIRD).items():
        assert list(stages[stage]['data']['parts']) == kinds
    assert stages['visual']['init']['vision_encoder'] == 'contrastive'
    assert [stage for stage in STAGES if 'init' in stages[stage]] == ['visual']  # the others start from the one before
    assert all(source.get('epochs') == 1 for source in stages['dpo']['data']['parts'].values())
    halves = stages['sft']['data']['parts']
    assert halves['text']['weight'] == halves['multimodal']['weight'] and 'by' not in stages['sft']['data']


def test_sizes_differ_in_model_batch_and_rates_alone():
    def rest(name):
        config = load_config(FOLDER / f'{name}.py').to_dict()
        for key in ('model', 'tokenizer', 'work_dir'):
            del config[key]
        for stage in config['stages'].values():
            for key in ('accumulation', 'max_steps', 'init'):
                stage.pop(key, None)
            del stage['optimizer']['lr']
        return config
    assert rest('qwen25vl_3b') == rest('qwen25vl_7b') == rest('qwen25vl_72b')


@pytest.mark.parametrize('stage', STAGES)
def test_what_trains_in_a_stage(stage):
    config = load_config(FOLDER / 'qwen25vl_7b.py')
    settings = config['stages'][stage]
    model = stage_model(config, settings, name=stage, vocab_size=152064, device='meta')
    table = trainable_table(model, settings.get('parts') or {}, settings['optimizer'])
    trains = [row['part'] for row in table if row['trainable']]
    if stage == 'contrastive':
        assert set(trains) == {'vision_encoder', 'pooling', 'text_tower', 'temperature'}
    else:
        assert trains == TRAINS[stage]


def test_a_kind_is_pointed_at_a_file_by_one_override():
    config = load_config(FOLDER / 'qwen25vl_7b.py', ['stages.visual.data.parts.caption.dataset.path=/my/captions.jsonl',
                                                     'stages.multimodal.data.parts.agent=null',
                                                     'stages.sft.data.parts.text=null'])
    visual, multimodal, sft = (config['stages'][stage]['data']['parts'] for stage in ('visual', 'multimodal', 'sft'))
    assert visual['caption']['dataset']['path'] == '/my/captions.jsonl'
    assert multimodal['caption']['dataset']['path'] == 'data/caption.jsonl'  # another stage's is its own
    assert 'agent' not in multimodal and list(sft) == ['multimodal']


def test_named_runs_change_what_their_name_says_and_nothing_else():
    whole, own = (load_config(FOLDER / f'{name}.py') for name in ('qwen25vl_7b', 'sft_7b_own_json'))
    assert own['run'] == ['sft'] and own['stages']['sft']['data'] == dict(type='ConversationDataset',
                                                                          path='data/sft.json')
    for key in ('trainer', 'parts', 'optimizer', 'schedule', 'hooks'):
        assert own['stages']['sft'][key] == whole['stages']['sft'][key]
    lora = load_config(FOLDER / 'lora_7b.py')['stages']['sft']
    assert lora['lora'] == dict(parts=['language_model'], rank=16, alpha=32)
    assert [part for part, setting in lora['parts'].items() if setting['trainable']] == ['language_model']
    pairs = load_config(FOLDER / 'dpo_7b_own_pairs.py')
    assert pairs['run'] == ['dpo'] and pairs['stages']['dpo']['trainer'] == whole['stages']['dpo']['trainer']
    assert load_config(FOLDER / 'dpo_tiny.py')['run'] == ['dpo']


def test_the_frozen_part_can_be_trained_by_an_override():
    config = load_config(FOLDER / 'qwen25vl_3b.py', ['stages.sft.parts.vision_encoder.trainable=true'])
    assert config['stages']['sft']['parts']['vision_encoder']['trainable'] is True
