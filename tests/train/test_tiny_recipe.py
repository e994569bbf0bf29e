"""The first command, whole: six stages, each of which has to show on held-out samples that it did its work."""
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qvlkit.config import load_config
from qvlkit.engine.checkpoint import load_checkpoint
from qvlkit.models.builder import build_model
from qvlkit.train.summary import read_summary

ROOT = Path(__file__).parents[2]
QUESTIONS = ('name', 'count', 'locate', 'read', 'photo subject')


def part(folder, name):
    """Tensors of one part in the newest checkpoint of a stage."""
    return {key: value for key, value in load_checkpoint(folder).tensors('model.safetensors').items()
            if key.startswith(f'{name}.')}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(value, second[key]) for key, value in first.items())


def mean(results, key):
    return sum(results[task][key] for task in QUESTIONS) / len(QUESTIONS)


@pytest.mark.acceptance
@pytest.mark.parametrize('seed', [0, 1, 2])
def test_every_stage_does_its_work(tmp_path, seed):
    subprocess.run([sys.executable, ROOT / 'tools' / 'train.py', ROOT / 'configs' / 'qwen25vl_tiny.py', '--work-dir',
                    tmp_path, '--set', f'seed={seed}'], check=True, cwd=tmp_path)
    config = load_config('qwen25vl_tiny')
    summaries = {stage: read_summary(tmp_path / stage) for stage in config['run']}
    assert list(summaries) == ['contrastive', 'visual', 'multimodal', 'long_context', 'sft', 'dpo']
    results = {stage: summary['results'] for stage, summary in summaries.items()}
    print(seed, {stage: summary['seconds'] for stage, summary in summaries.items()}, results)
    page = (tmp_path / 'report.html').read_text()
    assert all(f'<h2>{stage}' in page for stage in summaries)

    shown = results['contrastive']['zero-shot accuracy']
    assert shown['after'] >= 5 * shown['chance']

    for stage, name in (('visual', 'caption loss'), ('multimodal', 'document loss')):
        loss, others = results[stage][name], results[stage][f'{name}, other pictures']
        assert loss['after'] < loss['before'] and loss['after'] < others['after'] - 0.5  # the pictures are what helps
    fresh = build_model(config['model'], vocab_size=config['tokenizer']['vocab_size'], seed=seed)
    untouched = {f'language_model.{key}': value for key, value in fresh.language_model.state_dict().items()}
    assert same(part(tmp_path / 'visual', 'language_model'), untouched)
    assert not same(part(tmp_path / 'multimodal', 'language_model'), untouched)

    for task in ('recall', 'recall picture'):
        found, removed = results['long_context'][task], results['long_context'][f'{task} without evidence']
        assert found['after'] >= 3 * found['chance'], task
        assert removed['after'] <= removed['chance'] + 0.10, task

    assert mean(results['sft'], 'after') >= mean(results['sft'], 'before') + 0.20
    for task in QUESTIONS:
        least = 0.30 if task == 'locate' else 3 * results['sft'][task]['chance']  # of boxes: twice the best constant
        assert results['sft'][task]['after'] >= least, task

    own = results['dpo']['own log-probability prefers chosen']
    assert 0.4 <= own['before'] <= 0.65
    assert results['dpo']['preference accuracy']['after'] >= 0.8
    assert same(part(tmp_path / 'dpo', 'vision_encoder'), part(tmp_path / 'sft', 'vision_encoder'))
    assert not same(part(tmp_path / 'dpo', 'language_model'), part(tmp_path / 'sft', 'language_model'))
