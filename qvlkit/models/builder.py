"""Builds a VLM from its config: joins the four parts, injects widths and geometry, refuses a misfit."""
import inspect

import torch
from torch import nn

from qvlkit.models.vlm import VLM
from qvlkit.registry import LANGUAGE_MODELS, MERGERS, POSITION_ENCODINGS, VISION_ENCODERS

# What a part receives from another part, and the config key that decides it.
_DECIDED_BY = dict(vision_dim='vision_encoder.width', language_dim='language_model.width',
                   head_dim='language_model (width / num_heads)', merge_size='merger.merge_size')


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
    config = dict(config)
    slots = dict(language_model=LANGUAGE_MODELS, vision_encoder=VISION_ENCODERS, merger=MERGERS,
                 position_encoding=POSITION_ENCODINGS)
    for slot in slots:
        if slot not in config:
            raise ValueError(f'{config_key}.{slot}: this slot is empty')
        if not isinstance(config[slot], dict):
            raise ValueError(f"{config_key}.{slot}: expected a dict with the key 'type', got {config[slot]!r}")
    extra = {key: config[key] for key in ('image_mean', 'image_std') if key in config}
    attention = config.get('attention', 'sdpa')
    _check_vocabulary(config['language_model'], vocab_size, f'{config_key}.language_model.vocab_size')

    def build(slot: str, **injected) -> nn.Module:
        _refuse_misfit(config[slot], injected, slot, config_key)
        return slots[slot].build(config[slot], config_key=f'{config_key}.{slot}', **injected)

    with torch.device(device):
        language_model = build('language_model', attention=attention,
                               **({} if vocab_size is None else dict(vocab_size=vocab_size)))
        encoder = build('vision_encoder', attention=attention, merge_size=_merge_size(config['merger'], config_key))
        merger = build('merger', vision_dim=encoder.width, language_dim=language_model.width, attention=attention)
        positions = build('position_encoding', head_dim=language_model.head_dim)
        model = VLM(encoder, merger, position_encoding=positions, language_model=language_model, **extra)
    if dtype is not None:
        model = model.to(dtype)
    if seed is not None and torch.device(device).type != 'meta':
        initialise(model, seed)
    return model


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
