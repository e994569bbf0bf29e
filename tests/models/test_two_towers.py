"""Two towers: packed pairs = each alone, gradients reach every weight, and the encoder is the VLM's own.

Shapes: B pairs, W common width.
"""
import math

import pytest
import torch

from qvlkit.models.builder import build_model, build_two_towers, stage_model
from qvlkit.registry import POOLINGS, TEXT_TOWERS

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5}
TOWERS = dict(text_tower=dict(type='TextTransformer', width=24, depth=1, num_heads=2), width=16)
every_pair_of_parts = pytest.mark.parametrize('pooling, text_tower, encoder', [
    *((pooling, tower, 'Qwen25ViT') for pooling in POOLINGS.names() for tower in TEXT_TOWERS.names()),
    ('AttentionPooling', 'TextTransformer', 'Qwen2ViT')])


def outputs_and_gradients(model, batch, upstream):
    model.zero_grad(set_to_none=True)
    sides = model(batch)
    sum((side * rows).sum() for side, rows in zip(sides, upstream)).backward()
    return sides, {name: parameter.grad for name, parameter in model.named_parameters()}


@every_pair_of_parts
@pytest.mark.parametrize('dtype', TOLERANCES, ids=str)
def test_packed_equals_alone(make_towers, make_pairs, join_pairs, pooling, text_tower, encoder, dtype):
    model = make_towers(pooling, text_tower, dtype, parts=dict(vision_encoder=encoder))
    pairs = make_pairs(model)
    generator = torch.Generator().manual_seed(0)
    upstream = [torch.randn(len(pairs), 16, dtype=dtype, generator=generator) for _ in range(2)]
    packed, gradients = outputs_and_gradients(model, join_pairs(model, pairs), upstream)
    summed = {}
    for row, pair in enumerate(pairs):
        alone, own = outputs_and_gradients(model, join_pairs(model, [pair]), [rows[row] for rows in upstream])
        for side, expected in zip(packed, alone):
            assert float((side[row] - expected[0]).detach().norm()) <= TOLERANCES[dtype]
        for name, gradient in own.items():
            summed[name] = gradient if name not in summed or gradient is None else summed[name] + gradient
    for name, gradient in gradients.items():
        if name.startswith('temperature.') or 'lm_head' in name:
            assert gradient is None
            continue
        scale = float(summed[name].norm())
        assert float(gradient.norm()) > 0, name
        assert float((gradient - summed[name]).norm()) <= TOLERANCES[dtype] * scale + 1e-13, name


@every_pair_of_parts
def test_the_order_of_pairs_changes_nothing(make_towers, make_pairs, join_pairs, pooling, text_tower, encoder):
    """The negative control is inside: the pairs' vectors differ from each other."""
    model = make_towers(pooling, text_tower, parts=dict(vision_encoder=encoder))
    pairs = make_pairs(model)
    for side, other in zip(model(join_pairs(model, pairs)), model(join_pairs(model, pairs[::-1]))):
        torch.testing.assert_close(side, other.flip(0), rtol=0, atol=1e-10)
        torch.testing.assert_close(side.norm(dim=1), torch.ones(len(pairs), dtype=torch.float64), rtol=0, atol=1e-12)
        assert (side @ side.T - torch.eye(len(pairs))).triu(1).max() < 0.999


def test_the_vision_encoder_is_that_of_the_vlm(model_config):
    """Names, shapes, and with one seed the first weights; what it sees is normalised alike."""
    config = dict(model_config(), image_mean=(0.1, 0.2, 0.3))
    towers = build_two_towers(config, TOWERS, vocab_size=40, seed=3)
    vlm = build_model(config, vocab_size=40, seed=3)
    assert towers.geometry == vlm.geometry
    for (name, ours), (other, theirs) in zip(towers.vision_encoder.state_dict().items(),
                                             vlm.vision_encoder.state_dict().items(), strict=True):
        assert name == other and torch.equal(ours, theirs), name
    patches = torch.randint(0, 256, (5, 48), dtype=torch.uint8)
    assert torch.equal(towers.normalise(patches, 1), vlm.normalise(patches, 1))
    assert {name.partition('.')[0] for name, _ in towers.named_parameters()} == set(towers.parts())


def test_temperature(model_config):
    towers = build_two_towers(model_config(), dict(TOWERS, temperature=20, bias=-10), vocab_size=40, seed=0)
    scale, bias = towers.temperature()
    assert scale.item() == pytest.approx(20) and bias.item() == -10 and scale.shape == bias.shape == ()
    towers.temperature.limit()
    assert towers.temperature()[0].item() == pytest.approx(20)
    with torch.no_grad():
        towers.temperature.log_scale.fill_(math.log(250))
    towers.temperature.limit()
    assert towers.temperature()[0].item() == pytest.approx(100)
    assert build_two_towers(model_config(), TOWERS, vocab_size=40).temperature()[1] is None


@pytest.mark.parametrize('changes, words', [
    (dict(text_tower=None), ['stages.x.towers.text_tower', 'empty']),
    (dict(text_tower='TextTransformer'), ['stages.x.towers.text_tower', "'type'"]),
    (dict(pooling=dict(type='MeenPooling')), ['stages.x.towers.pooling.type', "did you mean 'MeanPooling'"]),
    (dict(text_tower=dict(type='TextTransfomer')), ['stages.x.towers.text_tower.type', "'TextTransformer'"]),
    (dict(width=0), ['stages.x.towers.width', '0']), (dict(width=1.5), ['stages.x.towers.width', '1.5']),
    (dict(temperature=0), ['stages.x.towers.temperature', '0']),
    (dict(temperature=101), ['stages.x.towers.temperature', '101', '100']),
    (dict(bias='low'), ['stages.x.towers.bias', "'low'"]),
    (dict(widht=3), ['stages.x.towers.widht', "did you mean 'width'"])], ids=str)
def test_wrong_towers_are_refused(model_config, changes, words):
    config = dict(model=model_config())
    with pytest.raises(ValueError) as error:
        stage_model(config, dict(towers={**TOWERS, **changes}), name='x', vocab_size=40)
    assert all(word in str(error.value) for word in words), error.value


def test_a_stage_without_towers_is_the_vlm_and_a_slot_that_is_not_asked_for_may_be_empty(model_config):
    config = model_config()
    assert type(stage_model(dict(model=config), {}, vocab_size=40)).__name__ == 'VLM'
    del config['language_model'], config['position_encoding']
    assert type(stage_model(dict(model=config), dict(towers=TOWERS), vocab_size=40)).__name__ == 'TwoTowers'
    with pytest.raises(ValueError, match=r'stages.x.model.language_model: this slot is empty'):
        stage_model({}, dict(model=config, towers=dict(TOWERS, text_tower=dict(type='LanguageModelTower'))), name='x')


def test_meta_builds_without_memory(make_towers):
    model = make_towers('AttentionPooling', 'LanguageModelTower', device='meta')
    assert all(parameter.is_meta for parameter in model.parameters())
