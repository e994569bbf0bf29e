"""Models of the transformers library as parts of ours: their attention runs through our backends and plans.

Source: transformers' AttentionInterface, by which its models look their attention function up by name.

Our function is registered as 'qvlkit_BACKEND'. A model that runs under such a name makes no mask of its own. The
AttentionPlan reaches the function through the model's own forward pass: as the keyword `qvlkit_plan` where the model
hands keywords on, or in the place of the attention mask where it does not. Nothing is kept between calls, so a block
that is computed a second time in the backward pass sees the same plan.

Shapes: T packed rows, H heads, Hk key-value heads, d head width.
"""
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses import FakeTensor

from qvlkit.models.layers.attention import attention_backend
from qvlkit.structures import AttentionPlan


def require_transformers(config_key: str) -> Any:
    """The library; ValueError where it is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise ValueError(f'{config_key}: this part needs the transformers package; install it, or choose another type'
                         ) from error
    return transformers


def folder_config(path: str | Path, config_key: str) -> Any:
    """The config of a local Hugging Face folder. Nothing is downloaded and no code of the folder is run.

    Raises:
        ValueError: There is no such folder, or transformers does not know what lies there.
    """
    transformers = require_transformers(config_key)
    folder = Path(path).expanduser()
    if not (folder / 'config.json').is_file():
        raise ValueError(f'{config_key}.path: {str(path)!r} is not a Hugging Face folder; expected one with '
                         'config.json')
    try:
        return transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError, OSError) as error:
        raise ValueError(f'{config_key}.path: {str(path)!r} holds a model that transformers does not know: {error}'
                         ) from error


def settle_sizes(config: Any, given: dict[str, Any], names: dict[str, str], config_key: str) -> None:
    """ValueError where a size that is stated beside `path` differs from the folder's.

    Args:
        config: Of the folder.
        given: Our name -> stated value; None is not stated.
        names: Our name -> its name in `config`.
    """
    for key, value in given.items():
        theirs = getattr(config, names[key], None)
        if value is not None and value != theirs:
            raise ValueError(f'{config_key}.{key}: {value!r} differs from the {theirs!r} of {config_key}.path; leave '
                             'it out and it follows')


def need_sizes(given: dict[str, Any], config_key: str) -> None:
    """ValueError that names the sizes which are missing where no `path` gives them."""
    missing = [key for key, value in given.items() if value is None]
    if missing:
        raise ValueError(f'{config_key}: expected {", ".join(missing)} beside architecture, or the path of a Hugging '
                         'Face folder')


def build_from_config(model: Any, config: Any, attention: str) -> nn.Module:
    """A model of transformers with its own first weights, on the device of the context, under our attention.

    Args:
        model: Class of transformers, or an AutoModel, that builds from a config.
        attention: Name of our backend.
    """
    make = model.from_config if hasattr(model, 'from_config') else model._from_config

    def made() -> nn.Module:
        return make(config, attn_implementation=attention_name(attention), dtype=torch.get_default_dtype())

    device = torch.get_default_device()
    if not isinstance(torch.empty(0), FakeTensor):
        return made()
    with torch.device('meta'):  # fake tensors have no values to draw
        built = made()
    for module in built.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(torch.empty_like(parameter, device=device)))
    return built


def attention_name(backend: str) -> str:
    """The name under which transformers finds our backend; it is registered if it was not yet."""
    from transformers import AttentionInterface
    attend = attention_backend(backend)
    name = f'qvlkit_{backend}'

    def planned_attention(module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
                          attention_mask: Any = None, *, scaling: float | None = None, qvlkit_plan: Any = None,
                          qvlkit_cache: Any = None, **others: Any) -> tuple[torch.Tensor, None]:
        """q (1, H, T, d), k and v (1, Hk, T, d) -> (1, T, H, d)."""
        plan = attention_mask if qvlkit_plan is None else qvlkit_plan
        _refuse_other_arithmetic(module, plan, others)
        q, k, v = (x.squeeze(0).transpose(0, 1).to(value.dtype) for x in (query, key, value))
        width = q.shape[-1]
        if scaling is not None and scaling != width ** -0.5:  # what the backends divide by
            q = q * (scaling * width ** 0.5)
        if qvlkit_cache is not None:
            k, v = qvlkit_cache.layer(module.layer_idx)(k, v)
        return attend(q, k, v, plan).unsqueeze(0), None

    AttentionInterface.register(name, planned_attention)
    return name


def _refuse_other_arithmetic(module: nn.Module, plan: Any, others: dict[str, Any]) -> None:
    name = type(module).__name__
    if not isinstance(plan, AttentionPlan):
        raise ValueError(f'{name}: its attention hands no plan on; it cannot read packed rows')
    for key in ('softcap', 's_aux', 'dropout'):
        if isinstance(others.get(key), torch.Tensor) or others.get(key):
            raise ValueError(f'{name}: {key} in the attention is not supported; expected none')
    window = others.get('sliding_window')
    if window is not None and plan.max_k > window:
        raise ValueError(f'{name}: a sample of {plan.max_k} tokens is longer than the sliding window of {window}, and '
                         'windows are not supported; shorten the rows (loader.row_length) or choose another decoder')
