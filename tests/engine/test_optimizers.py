"""Every optimizer is torch's own rule, and goes on after the disk as if nothing had happened."""
import json
import sys

import pytest
import torch
from torch import nn

from qvlkit.engine.checkpoint import load_checkpoint, save_checkpoint
from qvlkit.engine.optimizer import build_optimizer
from qvlkit.engine.optimizer_state import pack_optimizer, unpack_optimizer
from qvlkit.engine.schedules import WarmupLinear

CONFIGS = {'AdamW': dict(lr=1e-2), 'SGD': dict(lr=0.3), 'Adafactor': dict(lr=1e-1), 'Muon': dict(lr=1e-2),
           'AdamW8bit': dict(lr=1e-2)}


def make(name: str, seed: int = 0, **options):
    torch.manual_seed(seed)
    model = nn.Module()
    model.language_model = nn.Sequential()
    model.language_model.embed_tokens = nn.Embedding(80, 64)  # 5120 values: kept in 8 bits
    model.language_model.layers = nn.ModuleList(nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 64))
                                                for _ in range(2))
    model.language_model.norm = nn.LayerNorm(64)
    config = dict(type=name, weight_decay=0.1, **CONFIGS[name]) | options
    optimizer = build_optimizer(model, {'language_model': {'layer_decay': 0.8}}, config)
    return model, optimizer, WarmupLinear(optimizer, max_steps=12, warmup_steps=3)


def train(model, optimizer, schedule, steps: range) -> list[float]:
    losses = []
    for step in steps:
        ids = torch.randint(0, 80, (32,), generator=torch.Generator().manual_seed(step))
        x = model.language_model.embed_tokens(ids)
        for layer in model.language_model.layers:
            x = x + layer(x)
        loss = (model.language_model.norm(x) - torch.linspace(-1, 1, 64)).square().mean()
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def package(name: str) -> None:
    if name == 'AdamW8bit':
        pytest.importorskip('bitsandbytes')


@pytest.mark.parametrize('name', CONFIGS)
def test_it_learns_and_resumes_bit_for_bit(tmp_path, name):
    package(name)
    model, optimizer, schedule = make(name)
    losses = train(model, optimizer, schedule, range(6))
    assert losses[-1] < losses[0]
    tensors, table = pack_optimizer(optimizer, model.named_parameters())
    save_checkpoint(tmp_path, 6, state={'optimizer': table, 'schedule': schedule.state_dict()},
                    tensors={'model.safetensors': model.state_dict(), 'optimizer.safetensors': tensors})
    expected = train(model, optimizer, schedule, range(6, 12))
    again, other, other_schedule = make(name, seed=1)
    checkpoint = load_checkpoint(tmp_path)
    again.load_state_dict(checkpoint.tensors('model.safetensors'))
    unpack_optimizer(other, again.named_parameters(), checkpoint.tensors('optimizer.safetensors'),
                     checkpoint.state['optimizer'])
    other_schedule.load_state_dict(checkpoint.state['schedule'])
    assert train(again, other, other_schedule, range(6, 12)) == expected
    for (key, mine), theirs in zip(model.state_dict().items(), again.state_dict().values()):
        assert torch.equal(mine, theirs), key


@pytest.mark.parametrize('name', CONFIGS)
def test_the_state_matters(name):
    """The negative control of the test above."""
    package(name)
    model, optimizer, schedule = make(name)
    train(model, optimizer, schedule, range(6))
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    expected = train(model, optimizer, schedule, range(6, 12))
    again, other, other_schedule = make(name)
    again.load_state_dict(weights)
    other_schedule.load_state_dict(json.loads(json.dumps(schedule.state_dict())) | {'last_epoch': 6})
    assert train(again, other, other_schedule, range(6, 12)) != expected


@pytest.mark.parametrize('name', CONFIGS)
def test_a_parameter_without_gradient_stays(name):
    package(name)
    model, optimizer, schedule = make(name)
    train(model, optimizer, schedule, range(2))
    weight = model.language_model.layers[0][0].weight
    before, state = weight.clone(), {k: v.clone() for k, v in optimizer.state[weight].items() if torch.is_tensor(v)}
    weight.requires_grad_(False)
    train(model, optimizer, schedule, range(2, 4))
    assert torch.equal(weight, before)
    assert all(torch.equal(optimizer.state[weight][key], value) for key, value in state.items())
    assert not torch.equal(model.language_model.layers[1][0].weight, before)


def test_muon_is_torchs_muon_and_adamw():
    model, optimizer, schedule = make('Muon', weight_decay=0.1)
    twin, _, _ = make('Muon')
    named = dict(twin.named_parameters())
    rate = {name: group['lr'] for name, p in model.named_parameters() for group in optimizer.param_groups
            if any(p is q for q in group['params'])}
    hidden = [name for name in named if '.layers.' in name and named[name].dim() == 2]
    muon = torch.optim.Muon([dict(params=[named[name]], lr=rate[name]) for name in hidden], lr=1, weight_decay=0.1,
                            adjust_lr_fn='match_rms_adamw')
    adamw = torch.optim.AdamW([dict(params=[p], lr=rate[name], weight_decay=0.1 if p.dim() > 1 else 0)
                               for name, p in named.items() if name not in hidden], lr=1, betas=(0.9, 0.95),
                              fused=True)

    class Both:
        def step(self):
            muon.step()
            adamw.step()

        def zero_grad(self):
            twin.zero_grad()

    class Still:
        def step(self):
            pass
    train(model, optimizer, Still(), range(3))
    train(twin, Both(), Still(), range(3))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, named[name]), name


def test_the_eight_bits_are_eight_bits():
    package('AdamW8bit')
    model, optimizer, schedule = make('AdamW8bit')
    train(model, optimizer, schedule, range(1))
    assert optimizer.state[model.language_model.embed_tokens.weight]['state1'].dtype == torch.uint8


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'bitsandbytes.optim', None)
    with pytest.raises(ValueError, match='optimizer.type: .*bitsandbytes'):
        make('AdamW8bit')
