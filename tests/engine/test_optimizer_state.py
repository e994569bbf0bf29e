"""An optimizer's state: bit-equal after the disk, refused by name where it does not fit."""
import json
import logging

import pytest
import torch
from torch import nn

from qvlkit.engine.checkpoint import load_checkpoint, save_checkpoint
from qvlkit.engine.optimizer_state import pack_optimizer, unpack_optimizer
from qvlkit.engine.optimizers import AdamW
from qvlkit.engine.schedules import WarmupCosine


def make(seed: int = 0, kind: str = 'adamw', width: int = 6, lr: float = 0.01):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, width), nn.LayerNorm(width), nn.Linear(width, 3, bias=False))
    matrices = [p for p in model.parameters() if p.dim() > 1]
    groups = [{'params': matrices, 'weight_decay': 0.1}, {'params': [p for p in model.parameters() if p.dim() < 2]}]
    if kind == 'adamw':
        return model, AdamW(groups, lr=lr)
    if kind == 'amsgrad':
        return model, torch.optim.Adam(groups, lr=lr, amsgrad=True)
    return model, torch.optim.SGD(groups, lr=lr, momentum=0.9 if kind == 'momentum' else 0.0)


def train(model, optimizer, schedule, steps: range) -> None:
    for step in steps:
        inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize('kind', ['adamw', 'amsgrad', 'momentum', 'sgd'])
def test_resumed_steps_are_bit_equal(tmp_path, kind):
    model, optimizer = make(0, kind)
    schedule = WarmupCosine(optimizer, max_steps=10, warmup_steps=3)
    train(model, optimizer, schedule, range(5))
    tensors, table = pack_optimizer(optimizer, model.named_parameters())
    save_checkpoint(tmp_path, 5, state={'optimizer': table, 'schedule': schedule.state_dict()},
                    tensors={'model.safetensors': model.state_dict(), 'optimizer.safetensors': tensors})
    train(model, optimizer, schedule, range(5, 10))

    again, other = make(1, kind)
    other_schedule = WarmupCosine(other, max_steps=10, warmup_steps=3)
    checkpoint = load_checkpoint(tmp_path)
    unpack_optimizer(other, again.named_parameters(), checkpoint.tensors('optimizer.safetensors'),
                     checkpoint.state['optimizer'])
    again.load_state_dict(checkpoint.tensors('model.safetensors'))
    other_schedule.load_state_dict(checkpoint.state['schedule'])
    train(again, other, other_schedule, range(5, 10))
    for (name, mine), theirs in zip(model.named_parameters(), again.parameters()):
        assert torch.equal(mine, theirs), name
        for key, value in optimizer.state[mine].items():
            assert torch.equal(value, other.state[theirs][key]) if torch.is_tensor(value) else value is None
    assert [g['lr'] for g in optimizer.param_groups] == [g['lr'] for g in other.param_groups]


def test_names_dtypes_and_groups():
    model, optimizer = make()
    model[0].weight.data = model[0].weight.data.bfloat16()
    weight = model[0].weight
    optimizer.state[weight] = {'step': torch.tensor(3.0), 'exp_avg': torch.randn(6, 4), 'exp_avg_sq': torch.rand(6, 4)}
    tensors, table = pack_optimizer(optimizer, model.named_parameters())
    assert sorted(tensors) == ['exp_avg/0.weight', 'exp_avg_sq/0.weight', 'step/0.weight']
    assert [group['parameters'] for group in table['groups']] == [['0.weight', '2.weight'],
                                                                  ['0.bias', '1.weight', '1.bias']]
    again, other = make(1)
    again[0].weight.data = again[0].weight.data.bfloat16()
    unpack_optimizer(other, again.named_parameters(), tensors, json.loads(json.dumps(table)))
    restored = other.state[again[0].weight]
    assert restored['exp_avg'].dtype == torch.float32  # torch's own load_state_dict would round it to bfloat16
    assert torch.equal(restored['exp_avg'], tensors['exp_avg/0.weight']) and restored['step'] == 3
    assert other.param_groups[0]['betas'] == (0.9, 0.95) and isinstance(other.param_groups[0]['betas'], tuple)
    restored['exp_avg'].zero_()
    assert tensors['exp_avg/0.weight'].any()  # a copy


def unchanged(optimizer) -> tuple:
    return [dict(group, params=len(group['params'])) for group in optimizer.param_groups], len(optimizer.state)


@pytest.mark.parametrize('change, message', [
    (lambda tensors, table: table['groups'][1]['parameters'].append('ghost.weight'), 'ghost.weight are in the'),
    (lambda tensors, table: table['groups'][1]['parameters'].remove('1.bias'), '1.bias are trained'),
    (lambda tensors, table: table['groups'][0]['parameters'].append(table['groups'][1]['parameters'].pop()),
     '1.bias are in another parameter group'),
    (lambda tensors, table: tensors.update({'exp_avg/2.weight': torch.zeros(3, 7)}), r'2.weight \(exp_avg: \(3, 7\)\)'),
    (lambda tensors, table: tensors.update({'exp_avg/ghost': torch.zeros(3)}), 'ghost')])
def test_what_does_not_fit_is_named_and_changes_nothing(change, message):
    model, optimizer = make()
    train(model, optimizer, WarmupCosine(optimizer, max_steps=5), range(2))
    tensors, table = pack_optimizer(optimizer, model.named_parameters())
    change(tensors, table)
    again, other = make(1, lr=0.5)
    before = unchanged(other)
    with pytest.raises(ValueError, match=message):
        unpack_optimizer(other, again.named_parameters(), tensors, table)
    assert unchanged(other) == before


def test_a_changed_hyper_parameter_is_reported(caplog):
    model, optimizer = make()
    tensors, table = pack_optimizer(optimizer, model.named_parameters())
    again, other = make()
    other.param_groups[0]['weight_decay'] = 0.7
    with caplog.at_level(logging.WARNING):
        unpack_optimizer(other, again.named_parameters(), tensors, table)
    assert 'weight_decay=0.1' in caplog.text and '0.7' in caplog.text
    assert other.param_groups[0]['weight_decay'] == 0.1


def test_a_stray_parameter_is_refused():
    model, optimizer = make()
    optimizer.add_param_group({'params': [nn.Parameter(torch.zeros(9, 9))]})
    with pytest.raises(ValueError, match=r'\(9, 9\)'):
        pack_optimizer(optimizer, model.named_parameters())
