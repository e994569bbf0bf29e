"""Greedy decoding of packed prompts: one pass over all prompts, then one token for each unfinished sequence at a time.

Shapes: B sequences, T tokens of all prompts, A position axes, V vocabulary.
"""
from collections.abc import Callable, Collection, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from qvlkit.data.collate import collate
from qvlkit.generation.cache import KVCache
from qvlkit.structures import AttentionPlan, EncodedSample


@torch.inference_mode()
def generate_tokens(model: Any, prompts: Sequence[EncodedSample], *, plan: Callable, max_new_tokens: int,
                    stop_ids: Collection[int]) -> list[list[int]]:
    """The answers' token ids, without the token that stopped them.

    Args:
        model: A VLM.
        prompts: Encoded with a generation prompt at their end.
        plan: The model's `plan`.
        max_new_tokens: Longest answer.
        stop_ids: Tokens that end an answer.
    """
    device, language_model = next(model.parameters()).device, model.language_model
    lengths = np.array([prompt.length for prompt in prompts])
    bases = np.array([0, *accumulate(lengths + max_new_tokens)])
    cache = KVCache(language_model.depth, (int(bases[-1]), language_model.num_kv_heads, language_model.head_dim),
                    device=device, dtype=language_model.head_weight.dtype)
    batch = collate(prompts, plan=plan, geometry=model.geometry).to(device)
    cache.rows = torch.from_numpy(_stretches(bases[:-1], lengths)).to(device)
    last_rows = torch.from_numpy(lengths.cumsum() - 1).to(device)
    hidden = model(batch, cache)[last_rows]
    positions = torch.stack([prompt.position_ids.amax() + 1 for prompt in prompts])
    cache.reading = True

    answers: list[list[int]] = [[] for _ in prompts]
    active = np.arange(len(prompts))
    for step in range(max_new_tokens):
        tokens = language_model.logits(hidden).argmax(-1).cpu().numpy()
        going = np.array([token not in stop_ids for token in tokens])
        active, tokens = active[going], tokens[going]
        for sequence, token in zip(active, tokens):
            answers[sequence].append(int(token))
        if len(active) == 0 or step == max_new_tokens - 1:
            break
        key_lengths = lengths[active] + step + 1
        attention = AttentionPlan.from_lengths([1] * len(active), key_lengths, causal=True, key_index=torch.from_numpy(
            _stretches(bases[active], key_lengths))).to(device)
        cache.rows = torch.from_numpy(bases[active] + key_lengths - 1).to(device)
        position_ids = (positions[active] + step).expand(model.position_encoding.num_axes, -1).to(device)
        hidden = language_model(language_model.embed(torch.from_numpy(tokens).to(device)),
                                model.position_encoding.rotary(position_ids), attention, cache)
    return answers


def _stretches(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """start, start + 1, ..., for `length` rows of each stretch."""
    return np.concatenate([np.arange(start, start + length) for start, length in zip(starts, lengths)])


def generate(model: Any, processor: Any, messages: list[dict], max_new_tokens: int = 256) -> str:
    """The model's answer to chat messages.

    Args:
        model, processor: From `qvlkit.load`.
        messages: [{'role': 'user', 'content': text or a list of parts}, ...].
        max_new_tokens: Longest answer.
    """
    prompt = processor.encode(processor.from_messages(messages), generation_prompt=True)
    answer, = generate_tokens(model, [prompt], plan=model.plan, max_new_tokens=max_new_tokens,
                              stop_ids=processor.stop_ids())
    return processor.tokenizer.decode(answer)
