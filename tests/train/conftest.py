"""The tiny config made tinier still, as a file, so that a test changes one thing in it."""
import json

import pytest
import torch

from qvlkit.config import load_config, save_config
from qvlkit.train.hooks.jsonl import read_log
from qvlkit.train.recipe import build_stage

SMALLER = [
    'run=[sft]', 'stages.sft.parts.vision_encoder.trainable=true',
    'model.vision_encoder.width=32', 'model.vision_encoder.depth=2', 'model.vision_encoder.num_heads=2',
    'model.vision_encoder.feed_forward_width=48', 'model.vision_encoder.full_attention_blocks=[1]',
    'model.vision_encoder.window_size=56', 'model.language_model.width=64', 'model.language_model.depth=2',
    'model.language_model.num_heads=2', 'model.language_model.num_kv_heads=1',
    'model.language_model.feed_forward_width=96', 'model.position_encoding.sections=[4,6,6]',
    'tokenizer.vocab_size=384', 'stages.sft.data.type=PictureTasks', 'stages.sft.data.size=60',
    'stages.sft.data.tasks=[name,count,locate]', 'stages.sft.data.picture_sizes=[[112,112]]',
    'stages.sft.data.questions_per_picture=3', 'stages.sft.optimizer.lr=0.002',
    'stages.sft.loader.row_length=384', 'stages.sft.loader.window=60',
    'stages.sft.loader.num_workers=0', 'stages.sft.max_steps=8', 'stages.sft.accumulation=1',
    'stages.sft.hooks.evaluation=null', 'stages.sft.hooks.console=null', 'stages.sft.hooks.jsonl.interval=1',
    'stages.sft.hooks.checkpoint.interval=4', 'threads=1']


@pytest.fixture(scope='session')
def small_file(tmp_path_factory):
    """A complete config of a model that makes a step in a few hundredths of a second."""
    path = tmp_path_factory.mktemp('config') / 'small.json'
    save_config(load_config('qwen25vl_tiny', SMALLER), path)
    return path


@pytest.fixture
def small(small_file):
    """overrides -> config."""
    return lambda *overrides: load_config(small_file, overrides)


@pytest.fixture
def build(small, tmp_path):
    """overrides -> trainer; `dtype` changes the model's."""
    def make(*overrides, dtype=torch.float32, work_dir=None):
        trainer = build_stage(small(*overrides), 'sft', work_dir or tmp_path / 'sft')
        trainer.model.to(dtype)
        return trainer
    return make


def smaller_sizes(value, most):
    """Plain data with every `size` cut down to `most`, and texts of few sentences."""
    if isinstance(value, dict):
        cut = {key: smaller_sizes(item, most) for key, item in value.items()}
        return cut | ({'size': min(cut['size'], most)} if 'size' in cut else {}) | (
            {'sentences': [2, 6]} if 'sentences' in cut else {})
    return [smaller_sizes(item, most) for item in value] if isinstance(value, list) else value


@pytest.fixture
def six_stages(small):
    """overrides -> config of the whole recipe with all its hooks, three steps a stage, plain data."""
    def make(*overrides, steps=3):
        config = json.loads(json.dumps(small(
            'run=[contrastive,visual,multimodal,long_context,sft,dpo]',
            'stages.sft.parts.vision_encoder.trainable=false', *overrides)))
        for stage in config['stages'].values():
            stage['data'] = smaller_sizes(stage['data'], 160)
            hooks = {name: smaller_sizes(hook, 12) for name, hook in stage['hooks'].items() if hook}
            for name in ('jsonl', 'sources', 'checkpoint'):
                hooks[name] = {**hooks[name], 'interval': 2 if name == 'checkpoint' else 1}
            hooks['composition'] = dict(type='CompositionHook', samples=8)
            hooks['statistics'] = dict(type='StatisticsHook', interval=2)
            if 'evaluation' in hooks:
                hooks['evaluation']['max_new_tokens'] = 3
            hooks.pop('console', None)
            stage.update(max_steps=steps, hooks=hooks)
            stage['loader'].update(row_length=384, window=24, num_workers=0)
        config['stages']['sft']['hooks']['evaluation'] = config['stages']['long_context']['hooks']['evaluation']
        return config
    return make


@pytest.fixture
def losses():
    """Folder of a stage -> the log's rows without times."""
    def read(folder):
        return [json.dumps({key: value for key, value in row.items() if key != 'seconds'})
                for row in read_log(folder / 'log.jsonl')]
    return read
