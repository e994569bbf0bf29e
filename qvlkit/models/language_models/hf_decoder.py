"""Any decoder of the transformers library whose attention goes through its AttentionInterface: Llama, Qwen2, Mistral.

Source: transformers' AttentionInterface; LLaMA, arXiv 2302.13971; Qwen2, arXiv 2407.10671.
Shapes: T packed tokens, E width, H heads, Hk key-value heads, d head width, V vocabulary.

What is taken over is proven when the part is built: a tiny decoder of the same config reads two samples in one packed
row, and has to give what transformers gives for each alone.
"""
import copy
import functools
import inspect
import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.nn import functional as F

from qvlkit.models.layers.transformers_models import (
    attention_name,
    build_from_config,
    folder_config,
    need_sizes,
    require_transformers,
    settle_sizes,
)
from qvlkit.registry import LANGUAGE_MODELS, near_names
from qvlkit.structures import AttentionPlan

KEY = 'model.language_model'
_NAMES = dict(width='hidden_size', depth='num_hidden_layers', num_heads='num_attention_heads',
              num_kv_heads='num_key_value_heads', feed_forward_width='intermediate_size', norm_eps='rms_norm_eps',
              tie_embeddings='tie_word_embeddings')
_NEEDED = ('width', 'depth', 'num_heads', 'num_kv_heads', 'feed_forward_width', 'vocab_size')


class GivenRotary(nn.Module):
    """In the place of a decoder's own rotary module: the angles come in as its position ids."""

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(2, T, d/2) -> cos, sin (1, T, d), each half twice, in x's dtype."""
        cos, sin = torch.cat((position_ids, position_ids), dim=-1).to(x.dtype).unsqueeze(1)
        return cos, sin


@LANGUAGE_MODELS.register_module()
class HFDecoder(nn.Module):
    """A decoder of transformers over packed embeddings; positions, plans and cache are ours.

    Its tensors have the names of its Hugging Face checkpoints: `qvlkit.convert.parts.load_part` fills them.

    Args:
        architecture: Its model_type in transformers, for example 'llama', 'qwen2', 'qwen3', 'mistral'.
        path: Instead, a local Hugging Face folder whose config.json decides every size. Weights are not read here.
        width, depth, num_heads, num_kv_heads, feed_forward_width: E, layers, H, Hk, and the hidden width of the
            feed-forward network.
        vocab_size: V; injected from the tokenizer where the config leaves it open. With `path`, the folder's rows if
            those are more.
        tie_embeddings: Use the embedding as the output head.
        norm_eps: Of every norm; the architecture's own if absent.
        attention: Name of the attention backend; injected.

    Raises:
        ValueError: transformers is not installed or does not know the architecture, a size is missing, or the decoder
            does something that packed rows cannot: the message names it.
    """

    def __init__(self, architecture: str | None = None, path: str | None = None, *, width: int | None = None,
                 depth: int | None = None, num_heads: int | None = None, num_kv_heads: int | None = None,
                 feed_forward_width: int | None = None, vocab_size: int | None = None,
                 tie_embeddings: bool | None = None, norm_eps: float | None = None, attention: str = 'sdpa'):
        super().__init__()
        transformers = require_transformers(KEY)
        sizes = dict(width=width, depth=depth, num_heads=num_heads, num_kv_heads=num_kv_heads,
                     feed_forward_width=feed_forward_width)
        optional = dict(tie_embeddings=tie_embeddings, norm_eps=norm_eps)
        config = _decoder_config(architecture, path, {**sizes, **optional}, vocab_size)
        _check_architecture(config)
        _prove(config.to_json_string(use_diff=False), attention)
        self.architecture, self.architectures = config.model_type, (config.model_type,)
        self.width, self.depth, self.vocab_size = config.hidden_size, config.num_hidden_layers, config.vocab_size
        self.num_heads, self.num_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = _head_dim(config)
        self.model = build_from_config(transformers.AutoModel, config, attention)
        self.model.rotary_emb = GivenRotary()
        self.model.get_input_embeddings().padding_idx = None  # every row learns
        self.lm_head = None if config.tie_word_embeddings else nn.Linear(self.width, self.vocab_size, bias=False)

    @staticmethod
    def released_to_ours(name: str) -> str | None:
        """Name of a tensor in a checkpoint of the architecture -> name here; None if there is none."""
        return name if name.startswith(('model.', 'lm_head.')) else None

    @property
    def head_weight(self) -> torch.Tensor:
        """(V, E): the output head, which is the embedding where they are tied."""
        return self.model.get_input_embeddings().weight if self.lm_head is None else self.lm_head.weight

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """(T,) -> (T, E)."""
        return self.model.get_input_embeddings()(token_ids)

    def forward(self, embeddings: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], plan: AttentionPlan,
                cache=None) -> torch.Tensor:
        """(T, E) -> (T, E), after the final norm. `cache.layer(i)` keeps keys and values of earlier tokens."""
        output = self.model(inputs_embeds=embeddings.unsqueeze(0), position_ids=torch.stack(rotary), use_cache=False,
                            qvlkit_plan=plan, qvlkit_cache=cache)
        return output.last_hidden_state.squeeze(0)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(T, E) -> (T, V)."""
        return F.linear(hidden, self.head_weight)

    def flops(self, lengths: Sequence[int], num_logits: int) -> int:
        """Forward FLOPs over packed samples of these lengths, causal, with the head on `num_logits` rows."""
        linear = sum(module.weight.numel() for module in self.model.modules() if isinstance(module, nn.Linear))
        attention = 2 * self.num_heads * self.head_dim * sum(length * (length + 1) for length in lengths)
        return 2 * sum(lengths) * linear + self.depth * attention + 2 * num_logits * self.width * self.vocab_size


def _head_dim(config: Any) -> int:
    return getattr(config, 'head_dim', None) or config.hidden_size // config.num_attention_heads


def _decoder_config(architecture: str | None, path: str | None, given: dict[str, Any], vocab_size: int | None) -> Any:
    """The config of transformers, from a folder or from plain sizes."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN
    if path is not None:
        config = folder_config(path, KEY)
        if architecture not in (None, config.model_type):
            raise ValueError(f'{KEY}.architecture: {architecture!r} differs from the {config.model_type!r} of '
                             f'{KEY}.path')
        settle_sizes(config, given, _NAMES, KEY)
        config.vocab_size = max(config.vocab_size, vocab_size or 0)
        architecture = config.model_type
    if architecture not in KNOWN:
        raise ValueError(f'{KEY}.architecture: transformers has no decoder called {architecture!r}'
                         f'{near_names(architecture, list(KNOWN))}')
    if path is None:
        need_sizes({key: {**given, 'vocab_size': vocab_size}[key] for key in _NEEDED}, KEY)
        width, heads, kv_heads = given['width'], given['num_heads'], given['num_kv_heads']
        if width % heads or heads % kv_heads or width // heads % 2:
            raise ValueError(f'{KEY}: width {width} must be an even multiple of num_heads {heads}, and num_heads of '
                             f'num_kv_heads {kv_heads}')
        stated = {_NAMES[key]: value for key, value in given.items() if value is not None}
        try:
            config = AutoConfig.for_model(architecture, **{
                **stated, 'head_dim': width // heads, 'vocab_size': vocab_size,
                'tie_word_embeddings': bool(given['tie_embeddings'])})
        except (AttributeError, TypeError) as error:
            raise ValueError(f'{KEY}.architecture: {architecture!r} does not take the sizes that decoders with rotary '
                             f'positions have ({error})') from error
        if given['norm_eps'] is not None and 'rms_norm_eps' not in inspect.signature(type(config)).parameters:
            raise ValueError(f'{KEY}.norm_eps: {architecture!r} has no RMSNorm; leave it out')
        if getattr(config, 'sliding_window', None) is not None:
            config.sliding_window = None
    for key in ('bos_token_id', 'eos_token_id', 'pad_token_id'):
        setattr(config, key, None)
    return config


def _check_architecture(config: Any) -> None:
    """ValueError that names what the decoder does beyond full attention in packed rows, as far as its config says."""
    from transformers import AutoModelForCausalLM
    name = f'{KEY}.architecture: {config.model_type!r}'
    decoder = AutoModelForCausalLM._model_mapping[type(config)]
    if not getattr(decoder, '_supports_attention_backend', False):
        raise ValueError(f"{name} ({decoder.__name__}) does not take its attention from transformers' "
                         'AttentionInterface, so it cannot read packed rows')
    kinds = set(getattr(config, 'layer_types', None) or ()) - {'full_attention'}
    if kinds:
        raise ValueError(f'{name} has layers of the kind {sorted(kinds)[0]!r}; expected full attention in every layer')
    for key, what in (('num_experts', 'experts'), ('num_local_experts', 'experts'), ('n_routed_experts', 'experts'),
                      ('attention_dropout', 'dropout in its attention')):
        if getattr(config, key, None):
            raise ValueError(f'{name} has {what} ({key} {getattr(config, key)!r}), which is not supported')
    if any(getattr(config, key, None) is None for key in ('num_key_value_heads', 'intermediate_size', 'hidden_size')):
        raise ValueError(f'{name} does not name its sizes as decoders with rotary positions do')


@functools.lru_cache(maxsize=64)
def _prove(config_text: str, attention: str) -> None:
    """Compare a tiny decoder of this config, packed and through our attention, with transformers' own; ValueError."""
    import transformers
    values = json.loads(config_text)
    name = f'{KEY}.architecture: {values["model_type"]!r}'
    config = _tiny(transformers.AutoConfig.for_model(values.pop('model_type'), **values))
    backend = attention if attention in ('eager', 'sdpa') else 'sdpa'  # the others need an accelerator
    try:
        with (unset_fake_temporarily(), torch.random.fork_rng(devices=[]), torch.device('cpu'), torch.no_grad(),
              torch.autocast('cpu', enabled=False)):
            torch.manual_seed(0)
            reference = transformers.AutoModelForCausalLM.from_config(
                copy.deepcopy(config), attn_implementation='eager', dtype=torch.float32, trust_remote_code=False).eval()
            packed = transformers.AutoModel.from_config(
                copy.deepcopy(config), attn_implementation=attention_name(backend), dtype=torch.float32,
                trust_remote_code=False).eval()
            _compare(reference, packed, name)
    except (RuntimeError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise ValueError(f'{name} does not run in packed rows: {error}') from error


def _tiny(config: Any) -> Any:
    """The same architecture with two narrow layers."""
    shared = config.num_key_value_heads < config.num_attention_heads
    config.num_attention_heads, config.num_key_value_heads = 4, 2 if shared else 4
    if getattr(config, 'head_dim', None) is not None:
        config.head_dim = 8
    config.hidden_size, config.intermediate_size, config.num_hidden_layers, config.vocab_size = 32, 48, 2, 24
    if getattr(config, 'layer_types', None) is not None:
        config.layer_types = ['full_attention'] * 2
    return config


def _compare(reference: nn.Module, packed: nn.Module, name: str) -> None:
    """ValueError unless the packed decoder gives the reference's logits of two samples."""
    packed.load_state_dict(reference.base_model.state_dict())
    samples = torch.arange(9).mul(7).remainder(23).add(1).split([4, 5])
    rotary = getattr(packed, 'rotary_emb', None)
    head = reference.get_output_embeddings()
    if reference.base_model_prefix != 'model' or not isinstance(head, nn.Linear) or head.bias is not None:
        raise ValueError(f'{name}: expected a decoder called "model" below a linear head without bias')
    if rotary is None:
        raise ValueError(f'{name} has no rotary_emb: its positions are not rotary ones of all layers')
    angles = []
    for sample in samples:
        found = rotary(torch.zeros(1, len(sample), 32), torch.arange(len(sample)).unsqueeze(0))
        cos, sin = found if isinstance(found, tuple) and len(found) == 2 else (torch.zeros(1, 1, 2), torch.ones(1))
        first, second = cos.chunk(2, dim=-1)
        if cos.shape != (1, len(sample), 8) or not torch.equal(first, second):
            raise ValueError(f'{name}: its rotation is not of the two halves of the whole head (partial or interleaved '
                             'rotary positions), which our position encodings give')
        angles.append(torch.stack((first[0], sin[0, :, :4])))
    packed.rotary_emb = GivenRotary()
    plan = AttentionPlan.from_lengths([len(sample) for sample in samples], causal=True)
    embeddings = packed.get_input_embeddings()(torch.cat(samples)).unsqueeze(0)
    hidden = packed(inputs_embeds=embeddings, position_ids=torch.cat(angles, dim=1), use_cache=False, qvlkit_plan=plan
                    ).last_hidden_state[0]
    logits = F.linear(hidden, head.weight)
    expected = torch.cat([reference(input_ids=sample.unsqueeze(0), use_cache=False).logits[0] for sample in samples])
    error = float((logits - expected).norm() / expected.norm())
    if not error < 1e-4:
        raise ValueError(f"{name}: packed in one row it differs from transformers' own answer by {error:.2g}; its "
                         'attention, positions or head are not of the kind that this part takes over')
