"""Parameter groups cover each trained parameter once, each at its own rate; bad numbers are named."""
import pytest
import torch
from torch import nn

from qvlkit.engine.optimizer import build_optimizer, trainable_table
from qvlkit.engine.optimizers import AdamW

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
    assert by_part['merger'] == {'part': 'merger', 'parameters': 25, 'trained': 25, 'trainable': True, 'lr': 0.5,
                                 'min_lr': 0.5, 'weight_decay': 0.1}
    assert by_part['vision_encoder']['lr'] is None and not by_part['vision_encoder']['trainable']
    assert sum(row['parameters'] for row in rows) == sum(p.numel() for p in model.parameters())
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize('parts, config, message', [
    ({'merge': {}}, {}, r"stages.sft.parts.merge: .*did you mean 'merger'"),
    ({'position_encoding': {}}, {}, 'stages.sft.parts.position_encoding'),
    ({'merger': {'trainabel': False}}, {}, r"stages.sft.parts.merger.trainabel: .*'trainable'"),
    ({'merger': {'trainable': 'no'}}, {}, "stages.sft.parts.merger.trainable: .*'no'"),
    ({'merger': {'trainable': [[5, True]]}}, {}, 'stages.sft.parts.merger.trainable: .*rising steps from 0'),
    ({'merger': {'trainable': [[0, True], [0, False]]}}, {}, 'stages.sft.parts.merger.trainable: .*rising'),
    ({'merger': {'trainable': [[0, 1]]}}, {}, 'stages.sft.parts.merger.trainable: .*True or False'),
    ({'merger': {'layer_decay': 0.9}}, {}, 'stages.sft.parts.merger.layer_decay: merger has no blocks'),
    ({'merger': {'layer_decay': 1.1}}, {}, 'stages.sft.parts.merger.layer_decay: .*1.1'),
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


def deep(depth: int = 3) -> nn.Module:
    """A part with something before and after its blocks, and one without blocks."""
    model = nn.Module()
    model.vision_encoder = nn.ModuleDict({
        'patch_embed': nn.Linear(6, 4), 'blocks': nn.ModuleList(nn.Linear(4, 4) for _ in range(depth)),
        'norm': nn.LayerNorm(4)})
    model.merger = nn.Linear(4, 5)
    return model


def test_layer_decay_gives_each_block_its_rate():
    model, decay = deep(), 0.5
    optimizer = build_optimizer(model, {'vision_encoder': {'layer_decay': decay}}, CONFIG, config_key=KEY)
    rate = {id(p): group['lr'] for group in optimizer.param_groups for p in group['params']}
    named = {name: rate[id(p)] for name, p in model.named_parameters()}
    expected = {'vision_encoder.patch_embed': decay ** 4, 'vision_encoder.blocks.0': decay ** 3,
                'vision_encoder.blocks.1': decay ** 2, 'vision_encoder.blocks.2': decay, 'vision_encoder.norm': 1,
                'merger': 1}
    assert {name.rpartition('.')[0]: lr for name, lr in named.items()} == pytest.approx(
        {name: 1e-3 * factor for name, factor in expected.items()})
    assert [(group['part'], group.get('layer'), group['weight_decay']) for group in optimizer.param_groups] == [
        ('vision_encoder', layer, decay) for layer in range(4) for decay in (0.1, 0.0)] + [
        ('vision_encoder', 4, 0.0), ('merger', None, 0.1), ('merger', None, 0.0)]
    row = trainable_table(deep(), {'vision_encoder': {'layer_decay': decay}}, CONFIG, config_key=KEY)[0]
    assert (row['min_lr'], row['lr']) == pytest.approx((1e-3 / 16, 1e-3))


def test_layer_decay_of_one_changes_no_group():
    groups = [build_optimizer(deep(), {'vision_encoder': setting}, CONFIG, config_key=KEY).param_groups
              for setting in ({}, {'layer_decay': 1.0})]
    assert len(groups[0]) == len(groups[1]) == 4


def test_muon_takes_the_matrices_of_the_blocks_alone():
    model = deep()
    optimizer = build_optimizer(model, {}, CONFIG | {'type': 'Muon'}, config_key=KEY)
    hidden = [p for group in optimizer.param_groups if group['hidden'] for p in group['params']]
    assert [id(p) for p in hidden] == [id(block.weight) for block in model.vision_encoder['blocks']]
    assert isinstance(build_optimizer(model, {}, CONFIG, config_key=KEY), AdamW)


def test_a_part_that_trains_later_is_in_the_optimizer():
    model, parts = deep(), {'merger': {'trainable': [[0, False], [5, True]]}}
    optimizer = build_optimizer(model, parts, CONFIG, config_key=KEY)
    assert 'merger' in {group['part'] for group in optimizer.param_groups}
    assert {row['part']: row['trainable'] for row in trainable_table(model, parts, CONFIG, config_key=KEY)} == {
        'vision_encoder': True, 'merger': True}
