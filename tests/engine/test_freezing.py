"""A schedule of freezing: who trains when, and that frozen means unchanged."""
import pytest
import torch
from torch import nn

from qvlkit.engine.freezing import Freezing
from qvlkit.engine.optimizer import build_optimizer

CONFIG = {'type': 'AdamW', 'lr': 1e-2, 'weight_decay': 0.5}


def make(parts: dict):
    torch.manual_seed(0)
    model = nn.Module()
    model.vision_encoder = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    model.merger = nn.Linear(4, 4)
    model.temperature = nn.Parameter(torch.ones(()))
    return model, build_optimizer(model, parts, CONFIG), Freezing(model, parts)


def one_step(model, optimizer, freezing, step: int) -> dict[str, bool]:
    """Part -> whether anything of it changed: parameters, buffers, optimizer state."""
    def parts():
        state = {name: optimizer.state[p] for name, p in model.named_parameters()}
        return {key: value.clone() for key, value in model.state_dict().items()} | {
            f'{name}/{key}': value.clone() for name, entries in state.items() for key, value in entries.items()}
    model.train()
    freezing.apply(step)
    before = parts()
    (model.merger(model.vision_encoder(torch.randn(5, 3))).square().mean() * model.temperature).backward()
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert all(dict(model.named_parameters())[name].grad is None for name in frozen)
    optimizer.step()
    optimizer.zero_grad()
    after = parts()
    changed: dict[str, bool] = {}
    for key in after:
        part = key.partition('.')[0].partition('/')[0]
        changed[part] = changed.get(part, False) or key not in before or not torch.equal(before[key], after[key])
    return changed


def test_each_part_changes_when_it_trains_and_only_then():
    parts = {'vision_encoder': {'trainable': [[0, False], [2, True], [4, False]]}, 'merger': {'trainable': True},
             'temperature': {'trainable': [[0, True], [3, False]]}}
    model, optimizer, freezing = make(parts)
    seen = [one_step(model, optimizer, freezing, step) for step in range(6)]
    assert [row['vision_encoder'] for row in seen] == [False, False, True, True, False, False]
    assert [row['temperature'] for row in seen] == [True, True, True, False, False, False]
    assert all(row['merger'] for row in seen)


def test_what_is_frozen_for_good_keeps_its_buffers_too():
    model, optimizer, freezing = make({'vision_encoder': {'trainable': False}})
    assert not one_step(model, optimizer, freezing, 0)['vision_encoder']


def test_a_step_at_which_nothing_trains_is_refused():
    with pytest.raises(ValueError, match='parts: at step 3 every part is frozen'):
        make({'vision_encoder': {'trainable': False}, 'temperature': {'trainable': False},
              'merger': {'trainable': [[0, True], [3, False]]}})
