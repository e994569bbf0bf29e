"""Builds a VLM or two towers from a config: joins the parts, injects widths and geometry, refuses a misfit."""
import inspect
from typing import Any

import torch
from torch import nn

from qvlkit.models.two_towers import LARGEST_SCALE, Temperature, TwoTowers
from qvlkit.models.vlm import VLM
from qvlkit.registry import (
    LANGUAGE_MODELS,
    MERGERS,
    POOLINGS,
    POSITION_ENCODINGS,
    TEXT_TOWERS,
    VISION_ENCODERS,
    constructor_keys,
    near_names,
)

# What a part receives from another part, and the config key that decides it.
_DECIDED_BY = dict(vision_dim='vision_encoder.width', language_dim='language_model.width',
                   head_dim='language_model (width / num_heads)', merge_size='merger.merge_size')
_SLOTS = dict(language_model=LANGUAGE_MODELS, vision_encoder=VISION_ENCODERS, merger=MERGERS,
              position_encoding=POSITION_ENCODINGS)
_TOWERS = dict(text_tower=None, pooling=dict(type='MeanPooling'), width=512, temperature=14.3, bias=None)


def build_model(config: dict, *, vocab_size: int | None = None, device: torch.device | str = 'cpu',
                dtype: torch.dtype | None = None, seed: int | None = None, config_key: str = 'model') -> VLM:
    """The model that `config` describes.

    Args:
        config: Dicts with `type` under vision_encoder, merger, position_encoding and language_model; `attention`, the
            backend's name; optionally image_mean and image_std.
        vocab_size: Tokens of the tokenizer; sizes the embedding where the config does not.
        device: 'meta' builds without memory.
        dtype: Of the parameters; float32 if absent.
        seed: Draws the first weights; None leaves them as torch makes them (for weights that are loaded next).

    Raises:
        ValueError: A part is missing or unknown, or two parts do not fit; the message names both config keys.
    """
    for slot in _SLOTS:
        _check_slot(config, slot, config_key)
    build = _PartBuilder(config, vocab_size, config_key)
    with torch.device(device):
        language_model = build.language_model()
        encoder = build.vision_encoder()
        merger = build('merger', vision_dim=encoder.width, language_dim=language_model.width,
                       attention=build.attention)
        positions = build('position_encoding', head_dim=language_model.head_dim)
        model = VLM(encoder, merger, position_encoding=positions, language_model=language_model, **build.pixels)
    return _finished(model, device, dtype, seed)


def build_two_towers(config: dict, towers: dict, *, vocab_size: int | None = None, device: torch.device | str = 'cpu',
                     dtype: torch.dtype | None = None, seed: int | None = None, config_key: str = 'towers',
                     model_key: str = 'model') -> TwoTowers:
    """The two towers around the vision encoder that `config` describes.

    Args:
        config: As for `build_model`. Its merger says how large a merge cell is, and is not built; its language model
            and position encoding are, where the text tower asks for them.
        towers: text_tower and pooling, dicts with `type`; width, that of both towers' vectors; temperature, the first
            scale of similarities (1 / 0.07 in arXiv 2103.00020); bias, the first bias that is added to them, or None.
        vocab_size, device, dtype, seed: As for `build_model`; with one seed the vision encoder begins as there.
        config_key, model_key: Paths of `towers` and of `config` in the whole config, for messages.

    Raises:
        ValueError: A part is missing or unknown, a value is out of range, or two parts do not fit.
    """
    towers = _checked_towers(towers, config_key)
    tower_keys = constructor_keys(TEXT_TOWERS.get(towers['text_tower'].get('type'),
                                                  config_key=f'{config_key}.text_tower')) or ()
    borrows = 'language_model' in tower_keys
    for slot in _SLOTS if borrows else ('vision_encoder', 'merger'):
        _check_slot(config, slot, model_key)
    build = _PartBuilder(config, vocab_size, model_key)
    injected: dict[str, Any] = dict(attention=build.attention, embed_dim=towers['width'])
    if vocab_size is not None:
        injected['vocab_size'] = vocab_size
    with torch.device(device):
        encoder = build.vision_encoder()
        if borrows:
            language_model = injected['language_model'] = build.language_model()
            injected['position_encoding'] = build('position_encoding', head_dim=language_model.head_dim)
        else:
            _check_vocabulary(towers['text_tower'], vocab_size, f'{config_key}.text_tower.vocab_size')
        pooling = POOLINGS.build(towers['pooling'], config_key=f'{config_key}.pooling', vision_dim=encoder.width,
                                 embed_dim=towers['width'])
        text_tower = TEXT_TOWERS.build(towers['text_tower'], config_key=f'{config_key}.text_tower', **injected)
        model = TwoTowers(encoder, pooling, text_tower=text_tower, merge_size=build.merge_size,
                          temperature=Temperature(towers['temperature'], bias=towers['bias']),
                          embed_dim=towers['width'], language_model=injected.get('language_model'), **build.pixels)
    return _finished(model, device, dtype, seed)


def stage_model(config: dict, stage: dict, *, name: str = '', **settings: Any) -> nn.Module:
    """The model that a stage trains: two towers where the stage names `towers`, else the VLM.

    Args:
        config: The whole config.
        stage: Of `config['stages']`; `name` is its name, for messages.
        settings: As for `build_model`, without config_key.
    """
    key = f'stages.{name}.' if name else ''
    model, model_key = (stage['model'], f'{key}model') if 'model' in stage else (config['model'], 'model')
    if not stage.get('towers'):
        return build_model(model, config_key=model_key, **settings)
    return build_two_towers(model, stage['towers'], config_key=f'{key}towers', model_key=model_key, **settings)


class _PartBuilder:
    """Builds the parts of one `model` config, and refuses a width that another part decides."""

    def __init__(self, config: dict, vocab_size: int | None, config_key: str):
        self.config, self.vocab_size, self.config_key = config, vocab_size, config_key
        self.attention = config.get('attention', 'sdpa')
        self.merge_size = _merge_size(config['merger'], config_key)
        self.pixels = {key: config[key] for key in ('image_mean', 'image_std') if key in config}

    def __call__(self, slot: str, **injected: Any) -> nn.Module:
        _refuse_misfit(self.config[slot], injected, slot, self.config_key)
        return _SLOTS[slot].build(self.config[slot], config_key=f'{self.config_key}.{slot}', **injected)

    def vision_encoder(self) -> nn.Module:
        return self('vision_encoder', attention=self.attention, merge_size=self.merge_size)

    def language_model(self) -> nn.Module:
        _check_vocabulary(self.config['language_model'], self.vocab_size,
                          f'{self.config_key}.language_model.vocab_size')
        vocabulary = {} if self.vocab_size is None else dict(vocab_size=self.vocab_size)
        return self('language_model', attention=self.attention, **vocabulary)


def _finished(model: nn.Module, device: torch.device | str, dtype: torch.dtype | None, seed: int | None) -> nn.Module:
    if dtype is not None:
        model = model.to(dtype)
    if seed is not None and torch.device(device).type != 'meta':
        initialise(model, seed)
    return model


def _check_slot(config: dict, slot: str, config_key: str) -> None:
    if slot not in config:
        raise ValueError(f'{config_key}.{slot}: this slot is empty')
    if not isinstance(config[slot], dict):
        raise ValueError(f"{config_key}.{slot}: expected a dict with the key 'type', got {config[slot]!r}")


def _checked_towers(towers: dict, config_key: str) -> dict:
    """`towers` with its defaults; ValueError for a key that is none or a value out of range."""
    for key in towers:
        if key not in _TOWERS:
            raise ValueError(f'{config_key}.{key}: unknown{near_names(key, list(_TOWERS))}; known: '
                             f'{", ".join(_TOWERS)}')
    towers = {**_TOWERS, **towers}
    if not towers['text_tower']:
        raise ValueError(f'{config_key}.text_tower: this slot is empty')
    for slot in ('text_tower', 'pooling'):
        _check_slot(towers, slot, config_key)
    width, scale, bias = towers['width'], towers['temperature'], towers['bias']
    if type(width) is not int or width < 1:
        raise ValueError(f'{config_key}.width: expected a whole number of at least 1, got {width!r}')
    if type(scale) not in (int, float) or not 0 < scale <= LARGEST_SCALE:
        raise ValueError(f'{config_key}.temperature: expected a scale of similarities above 0 and at most '
                         f'{LARGEST_SCALE:.0f}, got {scale!r}')
    if bias is not None and type(bias) not in (int, float):
        raise ValueError(f'{config_key}.bias: expected a number or None, got {bias!r}')
    return towers


def initialise(model: nn.Module, seed: int) -> None:
    """First weights: normal with standard deviation fan_in ** -0.5, zero biases, unit norms.

    At the released widths that is close to the usual 0.02 (2048 ** -0.5 = 0.022). At small widths 0.02 would be so
    little that attention cannot tell its keys apart, and a tiny model does not learn to look at its pictures.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d):
                std = module.weight[0].numel() ** -0.5
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator) * std)
            if getattr(module, 'bias', None) is not None:
                module.bias.zero_()


def _refuse_misfit(part_config: dict, injected: dict, slot: str, config_key: str) -> None:
    """ValueError where a part's config states a width that another part decides, and states another number."""
    for key, source in _DECIDED_BY.items():
        if key in injected and key in part_config and part_config[key] != injected[key]:
            raise ValueError(f'{config_key}.{slot}.{key}: {part_config[key]!r} does not fit the {injected[key]} of '
                             f'{config_key}.{source}; leave it out and it follows')


def _merge_size(merger_config: dict, config_key: str) -> int:
    """The merger's block side, known before the merger is built: the encoder's windows count in these blocks."""
    merger = MERGERS.get(merger_config.get('type'), config_key=f'{config_key}.merger')
    parameter = inspect.signature(merger).parameters.get('merge_size')
    default = getattr(merger, 'merge_size', 1) if parameter is None else parameter.default
    size = merger_config.get('merge_size', default)
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ValueError(f'{config_key}.merger.merge_size: expected a positive whole number of patches, got {size!r}')
    return size


def _check_vocabulary(config: dict, vocab_size: int | None, config_key: str) -> None:
    rows = config.get('vocab_size')
    if rows is not None and vocab_size is not None and rows < vocab_size:
        raise ValueError(f'{config_key}: {rows} rows are fewer than the {vocab_size} tokens of the tokenizer '
                         f'(config key tokenizer)')
