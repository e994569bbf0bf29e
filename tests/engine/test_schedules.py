"""Schedules follow their formulas; bad numbers are named; a resume goes on exactly."""
import json
import math

import pytest
import torch
from torch import nn

from qvlkit.registry import OPTIMIZERS, SCHEDULES


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


def test_linear_falls_in_a_straight_line():
    seen = rates({'type': 'WarmupLinear', 'warmup_steps': 2, 'final_ratio': 0.1}, 6, 8)
    assert seen == pytest.approx([2 / 3, 4 / 3, 2, 1.55, 1.1, 0.65, 0.2, 0.2])


@pytest.mark.parametrize('decay', ['linear', '1-sqrt'])
@pytest.mark.parametrize('final', [0.0, 0.1])
def test_warmup_stable_decay_follows_its_formula(decay, final):
    seen = rates({'type': 'WarmupStableDecay', 'warmup_steps': 3, 'decay_ratio': 0.25, 'decay': decay,
                  'final_ratio': final}, 20, 22)
    assert seen[:3] == pytest.approx([0.5, 1.0, 1.5])
    assert seen[3:16] == [2.0] * 13  # step 16 is the first of the decay, and still at the full rate
    for step in range(15, 22):
        share = min(1, (step - 15) / 5)
        shape = 1 - share if decay == 'linear' else 1 - math.sqrt(share)
        assert seen[step] == pytest.approx(2 * (final + (1 - final) * shape), abs=1e-15)


@pytest.mark.parametrize('options, message', [
    ({'decay': 'exp'}, "schedule.decay: .*'exp'"), ({'decay_ratio': 2}, 'schedule.decay_ratio: .*2'),
    ({'warmup_steps': 8, 'decay_ratio': 0.5}, 'more than max_steps'), ({'final_ratio': 2}, 'schedule.final_ratio')])
def test_bad_stable_schedules_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        rates({'type': 'WarmupStableDecay', **options}, 10, 1)


@pytest.mark.parametrize('name', ['WarmupCosine', 'WarmupConstant', 'WarmupLinear', 'WarmupStableDecay'])
def test_a_resumed_schedule_goes_on(name):
    config = {'type': name, 'warmup_steps': 3}
    if name == 'WarmupStableDecay':
        config['decay_ratio'] = 0.5
    expected = rates(config, 12, 12)
    for stop in (2, 7):
        made = []
        for _ in range(2):
            optimizer = OPTIMIZERS.build({'type': 'AdamW', 'lr': 2.0}, params=[nn.Parameter(torch.zeros(1))])
            made.append((optimizer, SCHEDULES.build(config, optimizer=optimizer, max_steps=12)))
        (optimizer, schedule), (other, resumed) = made
        for _ in range(stop):
            optimizer.step()
            schedule.step()
        resumed.load_state_dict(json.loads(json.dumps(schedule.state_dict())))
        other.param_groups[0]['lr'] = optimizer.param_groups[0]['lr']  # engine/optimizer_state.py carries it
        seen = []
        for _ in range(stop, 12):
            seen.append(other.param_groups[0]['lr'])
            other.step()
            resumed.step()
        assert seen == expected[stop:]
