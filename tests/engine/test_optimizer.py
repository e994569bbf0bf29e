"""Parameter groups cover each trained parameter once; schedules follow their formulas; bad numbers are named."""
import math

import pytest
import torch
from torch import nn

from qvlkit.engine.optimizer import build_optimizer, trainable_table
from qvlkit.registry import OPTIMIZERS, SCHEDULES

KEY = 'stages.sft.optimizer'


def tiny(device: str = 'cpu') -> nn.Module:
    model = nn.Module()
    with torch.device(device):
        model.vision_encoder = nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4))
        model.merger = nn.Linear(4, 5)
        model.position_encoding = nn.Identity()
        model.language_model = nn.ModuleDict({'embed_tokens': nn.Embedding(10, 5), 'norm': nn.RMSNorm(5),
                                              'lm_head': nn.Linear(5, 10, bias=False)})
        model.temperature = nn.Parameter(torch.zeros(()))
    return model


CONFIG = {'type': 'AdamW', 'lr': 1e-3, 'weight_decay': 0.1}


@pytest.mark.parametrize('tied', [False, True])
@pytest.mark.parametrize('parts', [{}, {'merger': {'lr': 1e-2}}, {'vision_encoder': {'trainable': False}},
                                   {'language_model': {'trainable': False}, 'temperature': {'trainable': False}}])
def test_groups_cover_each_trained_parameter_once(parts, tied):
    model = tiny()
    if tied:
        model.language_model['lm_head'].weight = model.language_model['embed_tokens'].weight
    optimizer = build_optimizer(model, parts, CONFIG, config_key=KEY)
    held = [p for group in optimizer.param_groups for p in group['params']]
    frozen = {part for part, setting in parts.items() if not setting.get('trainable', True)}
    expected = [p for name, p in model.named_parameters() if name.split('.')[0] not in frozen]
    assert sorted(map(id, held)) == sorted(map(id, expected))
    assert {p for p in model.parameters() if p.requires_grad} == set(expected)
    for group in optimizer.param_groups:
        assert {p.dim() > 1 for p in group['params']} == {group['weight_decay'] == 0.1}
        assert group['lr'] == parts.get(group['part'], {}).get('lr', 1e-3)


def test_a_later_stage_unfreezes():
    model = tiny()
    build_optimizer(model, {'merger': {'trainable': False}}, CONFIG, config_key=KEY)
    assert not model.merger.weight.requires_grad
    build_optimizer(model, {}, CONFIG, config_key=KEY)
    assert model.merger.weight.requires_grad


def test_table_says_what_is_trained_and_changes_nothing():
    model = tiny('meta')
    parts = {'merger': {'lr': 0.5}, 'vision_encoder': {'trainable': False}}
    rows = trainable_table(model, parts, CONFIG, config_key=KEY)
    by_part = {row['part']: row for row in rows}
    assert list(by_part) == ['temperature', 'vision_encoder', 'merger', 'language_model']
    assert by_part['merger'] == {'part': 'merger', 'parameters': 25, 'trainable': True, 'lr': 0.5, 'weight_decay': 0.1}
    assert by_part['vision_encoder']['lr'] is None and not by_part['vision_encoder']['trainable']
    assert sum(row['parameters'] for row in rows) == sum(p.numel() for p in model.parameters())
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize('parts, config, message', [
    ({'merge': {}}, {}, r"stages.sft.parts.merge: .*did you mean 'merger'"),
    ({'position_encoding': {}}, {}, 'stages.sft.parts.position_encoding'),
    ({'merger': {'trainabel': False}}, {}, r"stages.sft.parts.merger.trainabel: .*'trainable'"),
    ({'merger': {'trainable': 'no'}}, {}, "stages.sft.parts.merger.trainable: .*'no'"),
    ({'merger': {'lr': float('nan')}}, {}, 'stages.sft.parts.merger.lr: .*nan'),
    ({}, {'lr': float('nan')}, 'stages.sft.optimizer.lr: .*nan'),
    ({}, {'lr': -1.0}, 'stages.sft.optimizer.lr: .*-1.0'),
    ({}, {'lr': '1e-5'}, "stages.sft.optimizer.lr: .*'1e-5'"),
    ({}, {'weight_decay': float('inf')}, 'stages.sft.optimizer.weight_decay: .*inf'),
    ({}, {'momentum': 0.9}, 'stages.sft.optimizer.momentum'),
    ({part: {'trainable': False} for part in ('vision_encoder', 'merger', 'language_model', 'temperature')}, {},
     'stages.sft.parts: every part is frozen')])
def test_mistakes_are_named_with_their_key(parts, config, message):
    with pytest.raises(ValueError, match=message):
        build_optimizer(tiny(), parts, CONFIG | config, config_key=KEY)


def test_a_missing_learning_rate_is_named():
    with pytest.raises(ValueError, match='stages.sft.optimizer.lr'):
        build_optimizer(tiny(), {}, {'type': 'AdamW'}, config_key=KEY)


def rates(config: dict, max_steps: int, steps: int) -> list[float]:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = OPTIMIZERS.build({'type': 'AdamW', 'lr': 2.0}, params=[parameter])
    schedule = SCHEDULES.build(config, optimizer=optimizer, max_steps=max_steps)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        schedule.step()
    return seen


@pytest.mark.parametrize('final', [0.0, 0.1])
@pytest.mark.parametrize('warmup, max_steps', [(0, 10), (3, 10), (1, 1), (10, 10)])
def test_cosine_follows_its_formula(final, warmup, max_steps):
    seen = rates({'type': 'WarmupCosine', 'warmup_steps': warmup, 'final_ratio': final}, max_steps, max_steps + 3)
    for done, rate in enumerate(seen):
        if done < warmup:
            expected = 2 * (done + 1) / (warmup + 1)
        elif done >= max_steps and max_steps > warmup:
            expected = 2 * final
        else:
            share = min(1, (done - warmup) / max(1, max_steps - warmup))
            expected = 2 * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * share)))
        assert rate == pytest.approx(expected, abs=1e-15)
    assert all(rate > 0 for rate in seen[:max_steps])


def test_constant_and_ratio():
    assert rates({'type': 'WarmupConstant', 'warmup_ratio': 0.25}, 8, 5) == pytest.approx([2 / 3, 4 / 3, 2, 2, 2])
    assert rates({'type': 'WarmupConstant'}, 8, 3) == [2, 2, 2]
    assert rates({'type': 'WarmupCosine', 'warmup_ratio': 0.03}, 10, 2)[0] == 1.0  # rounded up to one step


@pytest.mark.parametrize('options, message', [
    ({'warmup_steps': 2, 'warmup_ratio': 0.1}, 'not both'), ({'warmup_steps': 11}, 'warmup_steps.*11'),
    ({'warmup_ratio': 1.5}, 'warmup_ratio.*1.5'), ({'final_ratio': -1}, 'final_ratio.*-1')])
def test_bad_schedules_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        rates({'type': 'WarmupCosine', **options}, 10, 1)
