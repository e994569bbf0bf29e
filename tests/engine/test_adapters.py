"""Adapters: the base stays as it is, merged equals adapted, off equals never added, and mistakes are named."""
import sys

import pytest
import torch
from torch import nn

from qvlkit.engine.adapters import (
    QuantizedLinear,
    adapters_disabled,
    add_adapters,
    dequantize,
    has_adapters,
    merge_adapters,
)
from qvlkit.engine.optimizer import build_optimizer, trainable_table

CONFIG = {'type': 'AdamW', 'lr': 1e-2, 'weight_decay': 0.1}
PARTS = ['vision_encoder', 'merger', 'language_model']


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(12, 16)
        self.layers = nn.ModuleList(nn.ModuleDict({'q_proj': nn.Linear(16, 16), 'mlp': nn.Sequential(
            nn.Linear(16, 24, bias=False), nn.Tanh(), nn.Linear(24, 16))}) for _ in range(2))
        self.lm_head = nn.Linear(16, 12, bias=False)

    @property
    def head_weight(self):
        return self.lm_head.weight

    def forward(self, x):
        for layer in self.layers:
            x = x + layer['mlp'](layer['q_proj'](x))
        return x @ self.head_weight.T


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.vision_encoder = nn.ModuleDict({'patch_embed': nn.Linear(6, 16), 'blocks': nn.ModuleList(
            [nn.Linear(16, 16), nn.Linear(16, 16)])})
        self.merger = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16))
        self.language_model = Decoder()

    def forward(self, x):
        x = self.vision_encoder['patch_embed'](x)
        for block in self.vision_encoder['blocks']:
            x = x + block(x).tanh()
        return self.language_model(self.merger(x))


def make(dtype=torch.float64, **config):
    torch.manual_seed(0)
    model = Model().to(dtype)
    plain = {name: value.clone() for name, value in model.state_dict().items()}
    add_adapters(model, {'parts': PARTS, 'rank': 4} | config)
    return model, plain


def stir(model) -> None:
    """Adapters begin as zero; give them something to say."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if 'lora_B' in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


INPUT = torch.randn(7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def test_only_the_adapters_train_and_the_base_is_bit_identical():
    model, plain = make()
    optimizer = build_optimizer(model, {}, CONFIG)
    held = {id(p) for group in optimizer.param_groups for p in group['params']}
    before = {name: p.clone() for name, p in model.named_parameters()}
    for _ in range(3):
        model(INPUT).square().mean().backward()
        for name, parameter in model.named_parameters():
            adapter = 'lora_' in name
            assert (parameter.grad is not None) == parameter.requires_grad == (id(parameter) in held) == adapter, name
        optimizer.step()
        optimizer.zero_grad()
    assert all('lora_' in name for name, p in model.named_parameters() if p in optimizer.state)
    after = {name.replace('.base_layer.', '.'): value for name, value in model.state_dict().items()}
    assert all(torch.equal(after[name], value) for name, value in plain.items())
    changed = {name.partition('.')[0] for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == set(PARTS)  # every part's adapters are reached
    unreached = [name for name, p in model.named_parameters() if 'lora_' in name and torch.equal(p, before[name])]
    assert not unreached


def test_default_targets_are_the_blocks_without_embedding_and_head():
    model, _ = make()
    adapted = {name.removesuffix('.lora_A.default.weight') for name, _ in model.named_parameters() if 'lora_A' in name}
    assert adapted == {'vision_encoder.blocks.0', 'vision_encoder.blocks.1', 'merger.1'} | {
        f'language_model.layers.{i}.{name}' for i in range(2) for name in ('q_proj', 'mlp.0', 'mlp.2')}
    model, _ = make(target_modules='all-linear')
    assert model.vision_encoder['patch_embed'].lora_A and not hasattr(model.language_model.lm_head, 'lora_A')
    model, _ = make(parts=['language_model'], target_modules=['q_proj'])
    assert sum('lora_A' in name for name, _ in model.named_parameters()) == 2


def test_other_parts_follow_their_own_settings():
    model, _ = make(parts=['language_model'])
    build_optimizer(model, {'vision_encoder': {'trainable': False}}, CONFIG)
    assert {name.partition('.')[0] for name, p in model.named_parameters() if p.requires_grad} == {
        'merger', 'language_model'}
    rows = {row['part']: row for row in trainable_table(model, {}, CONFIG)}
    assert rows['merger']['trained'] == rows['merger']['parameters']
    assert rows['language_model']['trained'] == 4 * 2 * (32 + 40 + 40)
    with pytest.raises(ValueError, match=r'parts.language_model.trainable: .*lora.parts'):
        build_optimizer(model, {'language_model': {'trainable': False}}, CONFIG)


def test_merged_equals_adapted():
    model, plain = make()
    stir(model)
    expected = model(INPUT)
    assert has_adapters(model)
    merge_adapters(model)
    assert not has_adapters(model) and list(model.state_dict()) == list(plain)
    assert (model(INPUT) - expected).abs().max() < 1e-10
    base = Model().double()
    base.load_state_dict(plain)
    assert (base(INPUT) - expected).abs().max() > 1e-2


def test_disabled_is_the_base_model_and_leaves_no_trace():
    model, plain = make()
    base = Model().double()
    base.load_state_dict(plain)
    stir(model)
    build_optimizer(model, {}, CONFIG)
    frozen = next(p for name, p in model.named_parameters() if 'lora_A' in name)
    frozen.requires_grad_(False)  # as a freeze schedule may have it
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    adapted = model(INPUT)
    with torch.no_grad(), adapters_disabled(model):
        assert torch.equal(model(INPUT), base(INPUT))
    assert torch.equal(model(INPUT), adapted) and not torch.equal(adapted, base(INPUT))
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before
    with pytest.raises(KeyError), adapters_disabled(model):
        raise KeyError
    assert torch.equal(model(INPUT), adapted)


@pytest.mark.parametrize('kind', ['nf4', 'int8'])
def test_quantized_bases_train_their_adapters(kind):
    if kind == 'nf4':
        pytest.importorskip('bitsandbytes')
    model, plain = make(dtype=torch.float32, quantize=kind)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}
    assert len(layers) == 9 and not isinstance(model.vision_encoder['patch_embed'], QuantizedLinear)
    for name, layer in layers.items():
        opened = layer.dequantized()
        assert torch.equal(opened, dequantize(layer.weight, layer.absmax))  # read without any package
        exact = plain[f'{name.removesuffix(".base_layer")}.weight']
        assert (opened - exact).abs().max() < (0.2 if kind == 'nf4' else 0.01) * exact.abs().max()
    integers = {name: value.clone() for name, value in model.state_dict().items() if not value.is_floating_point()}
    model.to(torch.float64)
    stir(model)
    optimizer = build_optimizer(model, {}, CONFIG)
    x = INPUT.clone().requires_grad_()
    model(x).square().mean().backward()
    assert x.grad.abs().sum() > 0
    optimizer.step()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in integers.items())
    again, _ = make(dtype=torch.float32, quantize=kind)
    again.double().load_state_dict(model.state_dict())
    expected = model(INPUT)
    assert torch.equal(again(INPUT), expected)
    merge_adapters(model)
    assert not any(isinstance(module, QuantizedLinear) for module in model.modules())
    assert (model.double()(INPUT) - expected).abs().max() < 1e-5  # the merged weights are float32


@pytest.mark.parametrize('inputs, outputs', [(16, 16), (24, 7), (2, 3), (128, 40)])
def test_nf4_is_read_without_a_package_whatever_the_shape(inputs, outputs):
    pytest.importorskip('bitsandbytes')
    layer = QuantizedLinear(nn.Linear(inputs, outputs), 'nf4')
    assert torch.equal(layer.dequantized(), dequantize(layer.weight, layer.absmax))
    with pytest.raises(ValueError, match='lora.quantize: .*13'):
        QuantizedLinear(nn.Linear(13, 4), 'nf4')


def test_the_gradient_through_a_quantized_layer_is_that_of_its_opened_weight():
    linear = nn.Linear(16, 8)
    layer = QuantizedLinear(linear, 'int8')
    x = torch.randn(5, 16, dtype=torch.float64, requires_grad=True)
    found, = torch.autograd.grad(layer(x).square().sum(), x)
    expected, = torch.autograd.grad((x @ layer.dequantized().double().T + linear.bias).square().sum(), x)
    assert (found - expected).abs().max() < 1e-10
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape), lambda tensor: tensor):
        layer(x)
    assert not kept  # the opened weight is not kept for the backward pass


@pytest.mark.parametrize('config, message', [
    ({'parts': ['languge_model']}, r"lora.parts: .*'languge_model'.*did you mean 'language_model'"),
    ({'parts': []}, r'lora.parts: .*\[\]'), ({'rank': 0}, 'lora.rank: .*0'), ({'alpha': -1}, 'lora.alpha: .*-1'),
    ({'dropout': 1.0}, 'lora.dropout: .*1.0'), ({'quantize': 'fp4'}, "lora.quantize: .*'fp4'"),
    ({'ranks': 4}, "lora.ranks: .*did you mean 'rank'"), ({'target_modules': 'all'}, "lora.target_modules: .*'all'"),
    ({'target_modules': ['q_projj']}, 'lora.target_modules: .*names no linear layer of'),
    ({'parts': ['language_model'], 'target_modules': ['lm_head']}, "lora.target_modules: 'lm_head' .*output head")])
def test_mistakes_are_named(config, message):
    with pytest.raises(ValueError, match=message):
        make(**config)


@pytest.mark.parametrize('package, config', [('peft', {}), ('bitsandbytes', {'quantize': 'nf4'})])
def test_missing_packages_are_named(monkeypatch, package, config):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=f'pip install {package}'):
        make(dtype=torch.float32, **config)
