"""The whole recipe with other parts: every stage trains, and each begins with what the one before has made."""
import json
import math

import pytest
import torch
from safetensors.torch import load_file

from qvlkit import load
from qvlkit.train.hooks.jsonl import read_log
from qvlkit.train.recipe import run_recipe

SIGLIP = ('model.vision_encoder.type=HFVisionEncoder model.vision_encoder.architecture=siglip_vision_model '
          'model.vision_encoder.image_size=56')
LORA = {'parts': ['language_model'], 'rank': 2}
VARIANTS = {  # overrides, and stages with adapters
    'as it is': ('', ()),
    'llama': ('model.language_model.type=HFDecoder model.language_model.architecture=llama', ()),
    'qwen2': ('model.language_model.type=HFDecoder model.language_model.architecture=qwen2', ()),
    'siglip': (SIGLIP, ()),
    'resampler': ('model.merger.type=ResamplerMerger model.merger.queries=[2,4]', ()),
    'adapters': ('', ('sft', 'dpo')),
    'llama, siglip, adapters': ('model.language_model.type=HFDecoder model.language_model.architecture=llama ' + SIGLIP,
                                ('sft', 'dpo')),
}


def part_of(tensors, part):
    return {name: value for name, value in tensors.items() if name.startswith(f'{part}.')}


@pytest.mark.slow
@pytest.mark.parametrize('variant', VARIANTS)
def test_six_stages_with_other_parts(six_stages, tmp_path, variant):
    overrides, adapted = VARIANTS[variant]
    config = six_stages(*overrides.split(), steps=2)
    for stage in adapted:
        config['stages'][stage]['lora'] = LORA
    run_recipe(config, work_dir=tmp_path)
    stages = config['run']
    rows = {stage: read_log(tmp_path / stage / 'log.jsonl') for stage in stages}
    for stage in stages:
        assert [row['step'] for row in rows[stage]] == [1, 2]
        assert all(math.isfinite(row['loss']) and not row['skipped'] for row in rows[stage]), stage
    stored = {stage: load_file(tmp_path / stage / 'step_2' / 'model.safetensors') for stage in stages}
    assert {part.partition('.')[0] for part in stored['contrastive']} >= {'vision_encoder', 'text_tower'}
    plain = {stage: load(tmp_path / stage)[0].state_dict() for stage in stages[1:]}
    # what is frozen is what the stage before has made, bit for bit; what trains is not
    for before, after, part in (('long_context', 'sft', 'vision_encoder'), ('sft', 'dpo', 'vision_encoder')):
        first, second = part_of(plain[before], part), part_of(plain[after], part)
        assert first and all(torch.equal(value, second[name]) for name, value in first.items())
    for before, after in zip(stages[1:], stages[2:]):
        first, second = part_of(plain[before], 'language_model'), part_of(plain[after], 'language_model')
        assert first.keys() == second.keys() and any(not torch.equal(first[name], second[name]) for name in first)
    # the language model is frozen in the visual stage, and the encoder begins with the contrastive one
    visual = json.loads((tmp_path / 'visual' / 'summary.json').read_text())
    assert visual['init'] == f'vision encoder from {tmp_path / "contrastive"}'
    # the policy begins as the reference
    assert rows['dpo'][0]['reward_margin'] == pytest.approx(0, abs=1e-6)
    assert abs(rows['dpo'][1]['reward_margin']) > 1e-7
    preference = json.loads((tmp_path / 'dpo' / 'summary.json').read_text())['results']['preference accuracy']
    assert preference['before'] == 0.5
    for stage in adapted:
        assert any('lora_A' in name for name in stored[stage]) and not any('lora' in name for name in plain[stage])
    assert (tmp_path / 'report.html').is_file()
