"""Low-rank adapters of linear layers, by peft; and the frozen weights below them, in 4 or 8 bits if asked.

Source: LoRA, arXiv 2106.09685; QLoRA, arXiv 2305.14314 (NF4: section 3 and appendix E).
Shapes: O x I weight, r rank: y = W x + (alpha / r) * B A dropout(x), A (r, I), B (O, r), B = 0 at first.

A layer `q_proj` becomes q_proj.base_layer (frozen), q_proj.lora_A.default and q_proj.lora_B.default (trained); these
are its names in a checkpoint. convert/adapted_files.py reads them as the plain q_proj.weight, merged.
"""
import contextlib
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from qvlkit.registry import near_names

BASE, LORA_A, LORA_B, ABSMAX = '.base_layer', '.lora_A.default.weight', '.lora_B.default.weight', '.absmax'
KINDS = ('nf4', 'int8')
DEFAULTS = dict(parts=None, rank=8, alpha=16, dropout=0.0, target_modules=None, quantize=None)
NF4_BLOCK = 64  # values that share a scale
# The 16 values of NF4: quantiles of the normal distribution, as the paper's authors publish them.
NF4_VALUES = (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
              -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
              0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023,
              1.0)


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return '.lora_A.' in name or '.lora_B.' in name


def add_adapters(model: nn.Module, config: dict | None, config_key: str = 'lora') -> nn.Module:
    """Put adapters into the parts that `config` names, in place; the other weights of these parts are frozen.

    Args:
        model: With its weights loaded, or on the meta device.
        config: parts, and rank=8, alpha=16, dropout=0.0, target_modules=None: every linear layer of the part's blocks,
            or of the whole part if it has none; 'all-linear': of the whole part; a list: those whose name is, or ends
            with, one of these. quantize=None | 'nf4' | 'int8': how the layers that None would name are kept, with or
            without adapter. None as `config` does nothing.
        config_key: Path of `config` in the whole config.

    Returns:
        The model.

    Raises:
        ValueError: A value is not what it may be, a part or layer is not there, a layer is the output head (the loss
            reads its weight), or a package is missing.
    """
    if config is None:
        return model
    config = _checked(config, config_key)
    parts = {part: _part(model, part, f'{config_key}.parts') for part in config['parts']}
    targets = {part: _targets(module, config['target_modules']) for part, module in parts.items()}
    for part, names in targets.items():
        _refuse_targets(parts[part], names, config['target_modules'], part, f'{config_key}.target_modules')
    peft = _peft(config_key)
    for part, module in parts.items():
        for parameter in module.parameters():
            parameter.requires_grad_(False)
        for name in _targets(module, None) if config['quantize'] else ():
            layer = QuantizedLinear(module.get_submodule(name), config['quantize'], config_key=config_key)
            module.set_submodule(name, layer)
        settings = peft.LoraConfig(r=config['rank'], lora_alpha=config['alpha'], lora_dropout=config['dropout'],
                                   target_modules='|'.join(map(re.escape, targets[part])))
        with next(module.parameters()).device:
            peft.inject_adapter_in_model(settings, module)
    return model


def has_adapters(model: nn.Module) -> bool:
    """Whether some layer of the model has an adapter."""
    return any(is_adapter(name) for name, _ in model.named_parameters())


def num_weights(parameter: torch.Tensor) -> int:
    """Weights that a parameter stands for: a byte of NF4 holds two."""
    return parameter.numel() * (2 if parameter.dtype == torch.uint8 else 1)


@contextlib.contextmanager
def adapters_disabled(model: nn.Module) -> Iterator[None]:
    """Context in which the model answers as without adapters, and everything is as before afterwards."""
    layers = [layer for _, layer in _layers(model)]
    required = {parameter: parameter.requires_grad for layer in layers for parameter in layer.parameters()}
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for parameter, requires_grad in required.items():
            parameter.requires_grad_(requires_grad)


def merge_adapters(model: nn.Module) -> nn.Module:
    """Add the adapters to the weights, in place: plain linear layers with plain names again, not quantized.

    Returns:
        The model.
    """
    adapted = _layers(model)
    unadapted = [(name, module) for name, module in model.named_modules() if isinstance(module, QuantizedLinear)
                 and not name.endswith(BASE)]
    for name, layer in adapted + unadapted:
        base = layer if isinstance(layer, QuantizedLinear) else layer.get_base_layer()
        weight = base.dequantized() if isinstance(base, QuantizedLinear) else base.weight.detach()
        if base is not layer:
            weight = merged_weight(weight, layer.lora_A['default'].weight, layer.lora_B['default'].weight,
                                   layer.scaling['default'])
        with torch.device('meta'):
            plain = nn.Linear(base.in_features, base.out_features, bias=False)
        plain.weight, plain.bias = nn.Parameter(weight), base.bias
        model.set_submodule(name, plain.train(layer.training))
    return model


def merged_weight(weight: torch.Tensor, lora_a: torch.Tensor, lora_b: torch.Tensor, scaling: float) -> torch.Tensor:
    """W (O, I) + scaling * B (O, r) A (r, I), computed in the wider of the types and in float32 at least."""
    kind = torch.promote_types(torch.promote_types(weight.dtype, lora_a.dtype), torch.float32)
    with torch.no_grad():
        return torch.addmm(weight.to(kind), lora_b.to(kind), lora_a.to(kind), alpha=scaling).to(weight.dtype)


def dequantize(weight: torch.Tensor, absmax: torch.Tensor) -> torch.Tensor:
    """What a QuantizedLinear keeps -> the weight (O, I) in float32; needs no package.

    Args:
        weight: int8 (O, I), or uint8 (O, I / 2) with two NF4 values in a byte, the first in the upper half.
        absmax: int32, the bits of float32 numbers: largest absolute value of each row, or of each NF4 block.
    """
    scale = absmax.view(torch.float32)
    if weight.dtype == torch.int8:
        return weight.float() * (scale[:, None] / 127)
    pairs = torch.stack([weight.flatten() >> 4, weight.flatten() & 15], dim=1).flatten()
    values = torch.tensor(NF4_VALUES, device=weight.device)[pairs.int()]
    return (values * scale.repeat_interleave(NF4_BLOCK)[:len(values)]).view(len(weight), -1)


class QuantizedLinear(nn.Linear):
    """A frozen linear layer whose weight is kept in NF4 (by bitsandbytes) or int8, and opened for each product.

    Its tensors, `weight` and `absmax` (see `dequantize`), are integers: a change of the model's type leaves them.

    Args:
        linear: Its weight is quantized where it lies; its bias is taken over.
        kind: 'nf4' or 'int8'.

    Raises:
        ValueError: NF4, and bitsandbytes cannot be imported, or the number of inputs is odd.
    """

    def __init__(self, linear: nn.Linear, kind: str, *, config_key: str = 'lora'):
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self.kind = kind
        weight = linear.weight.detach().float()
        if kind == 'nf4':
            if self.in_features % 2:
                raise ValueError(f"{config_key}.quantize: 'nf4' packs inputs in pairs, and a layer has "
                                 f'{self.in_features} of them; expected an even number')
            packed, absmax = _pack_nf4(weight.contiguous(), config_key)
        else:
            absmax = weight.abs().amax(dim=1)
            packed = (weight / absmax.clamp_min(torch.finfo(torch.float32).tiny)[:, None] * 127).round().to(torch.int8)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.register_buffer('absmax', absmax.float().view(torch.int32))

    def dequantized(self) -> torch.Tensor:
        """(O, I) in float32."""
        if self.kind == 'int8':
            return dequantize(self.weight, self.absmax)
        functional = _bitsandbytes('lora')
        code = torch.tensor(NF4_VALUES, device=self.weight.device)
        shape = torch.Size((1, self.in_features * self.out_features))  # its CPU kernel begins a block with each row
        state = functional.QuantState(absmax=self.absmax.view(torch.float32), shape=shape, code=code,
                                      blocksize=NF4_BLOCK, quant_type='nf4', dtype=torch.float32)
        opened = functional.dequantize_4bit(self.weight.detach().view(-1, 1), state)
        return opened.view(self.out_features, self.in_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., I) -> (..., O)."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        with torch.autocast(x.device.type, enabled=False):
            y = _Product.apply(x, self)
            return y if self.bias is None else y + self.bias.to(y.dtype)


def _pack_nf4(weight: torch.Tensor, config_key: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(O, I) -> values (O, I / 2), scales of the blocks; sizes alone on the meta device."""
    functional = _bitsandbytes(config_key)
    if weight.device.type == 'meta':
        return (weight.new_empty(len(weight), weight.shape[1] // 2, dtype=torch.uint8),
                weight.new_empty(-(-weight.numel() // NF4_BLOCK)))
    packed, state = functional.quantize_4bit(weight, blocksize=NF4_BLOCK, quant_type='nf4', compress_statistics=False)
    return packed.view(len(weight), -1), state.absmax


class _Product(torch.autograd.Function):
    """x W^T, keeping nothing for the backward pass but the quantized layer, which is opened again there."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: QuantizedLinear) -> torch.Tensor:
        ctx.layer = layer
        return F.linear(x, layer.dequantized().to(x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient @ ctx.layer.dequantized().to(gradient.dtype), None


def _layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """(name, layer) of each adapted layer: what peft put around a linear layer."""
    return [(name, module) for name, module in model.named_modules() if hasattr(module, 'lora_A')
            and hasattr(module, 'get_base_layer')]


def _part(model: nn.Module, part: str, config_key: str) -> nn.Module:
    children = dict(model.named_children())
    if part not in children or not any(True for _ in children[part].parameters()):
        known = [name for name, child in children.items() if any(True for _ in child.parameters())]
        raise ValueError(f'{config_key}: the model has no part {part!r} with weights{near_names(part, known)}; '
                         f'it has: {", ".join(known)}')
    return children[part]


def _targets(part: nn.Module, wanted: str | list | None) -> list[str]:
    """Names within the part of the linear layers that get adapters."""
    head = _head(part)
    linear = [name for name, module in part.named_modules() if isinstance(module, nn.Linear) and name]
    if isinstance(wanted, list):
        return [name for name in linear if any(name == item or name.endswith(f'.{item}') for item in wanted)]
    linear = [name for name in linear if part.get_submodule(name).weight is not head]
    in_blocks = [name for name in linear if name.partition('.')[0] in ('blocks', 'layers')]
    return in_blocks if wanted is None and in_blocks else linear


def _head(part: nn.Module) -> torch.Tensor | None:
    return getattr(part, 'head_weight', None)


def _refuse_targets(part: nn.Module, names: list[str], wanted: Any, name: str, config_key: str) -> None:
    ends = sorted({layer.rpartition('.')[2] for layer, module in part.named_modules() if isinstance(module, nn.Linear)})
    if not names:
        raise ValueError(f'{config_key}: {wanted!r} names no linear layer of {name}; its linear layers are called: '
                         f'{", ".join(ends) or "(it has none)"}')
    for layer in names:
        if part.get_submodule(layer).weight is _head(part):
            raise ValueError(f'{config_key}: {layer!r} of {name} is the output head, of which the loss reads the '
                             'weight alone; expected other linear layers')


def _checked(config: dict, key: str) -> dict:
    """The config with its defaults."""
    for name in config:
        if name not in DEFAULTS:
            raise ValueError(f'{key}.{name}: unknown{near_names(name, list(DEFAULTS))}; known: {", ".join(DEFAULTS)}')
    config = DEFAULTS | dict(config)
    parts, targets = config['parts'], config['target_modules']
    rules = {
        'parts': (isinstance(parts, (list, tuple)) and parts and len(set(parts)) == len(parts)
                  and all(isinstance(part, str) for part in parts), 'a list of parts, each once'),
        'rank': (type(config['rank']) is int and config['rank'] > 0, 'a whole number above 0'),
        'alpha': (type(config['alpha']) in (int, float) and 0 < config['alpha'] < float('inf'), 'a number above 0'),
        'dropout': (type(config['dropout']) in (int, float) and 0 <= config['dropout'] < 1, 'a number of 0 to below 1'),
        'target_modules': (targets in (None, 'all-linear') or isinstance(targets, (list, tuple)) and targets
                           and all(isinstance(name, str) for name in targets),
                           "None, 'all-linear' or a list of names of linear layers"),
        'quantize': (config['quantize'] in (None, *KINDS), f'None, {" or ".join(map(repr, KINDS))}')}
    for name, (fits, expected) in rules.items():
        if not fits:
            raise ValueError(f'{key}.{name}: expected {expected}, got {config[name]!r}')
    if isinstance(targets, tuple):
        config['target_modules'] = list(targets)
    return config


def _peft(config_key: str) -> Any:
    try:
        import peft
    except ImportError as error:
        raise ValueError(f'{config_key}: adapters need the package peft (pip install peft), which cannot be imported '
                         f'here: {error}') from error
    return peft


def _bitsandbytes(config_key: str) -> Any:
    try:
        from bitsandbytes import functional
    except ImportError as error:
        raise ValueError(f"{config_key}.quantize: 'nf4' needs the package bitsandbytes (pip install bitsandbytes), "
                         f"which cannot be imported here: {error}; 'int8' needs no package") from error
    return functional
