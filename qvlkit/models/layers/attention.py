"""Attention over packed segments, behind one AttentionPlan.

Every backend takes q (Tq, H, d), k and v (Tk, Hk, d) with H a multiple of Hk, and a plan, and returns (Tq, H, d). All
equal `eager` within rounding, forward and backward. None asks the device for a number: lengths are host integers.

    eager        one dense masked softmax: the reference, for small inputs
    sdpa         one dense call for each run of equal segments, no mask over other segments: CPU and anywhere
    varlen       torch.nn.attention.varlen, one kernel for all segments: CUDA
    flash_attn   the flash-attn package's variable-length kernel: CUDA
    flex         FlexAttention with a block mask of segments: CUDA
"""
import functools
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional as F

from qvlkit.registry import ATTENTION_BACKENDS
from qvlkit.structures import AttentionPlan

FEW_CALLS = 8  # of sdpa: not worth sorting segments for


def attention_backend(name: str) -> Callable[..., torch.Tensor]:
    """The backend registered as `name`; ValueError with near names if there is none."""
    return ATTENTION_BACKENDS.get(name, config_key='model.attention')


def _gather_keys(k: torch.Tensor, v: torch.Tensor, plan: AttentionPlan) -> tuple[torch.Tensor, torch.Tensor]:
    if plan.key_index is None:
        return k, v
    return k.index_select(0, plan.key_index), v.index_select(0, plan.key_index)


def _segments(lengths: tuple[int, ...], cumulative: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Segment number and place inside the segment of each row, both (T,)."""
    total = sum(lengths)
    repeats = cumulative.diff().long()
    segment = torch.repeat_interleave(torch.arange(len(lengths), device=cumulative.device), repeats, output_size=total)
    return segment, torch.arange(total, device=cumulative.device) - cumulative[:-1].long()[segment]


def dense_mask(plan: AttentionPlan) -> torch.Tensor:
    """(Tq, Tk) bool: True where the query may see the key."""
    segment_q, place_q = _segments(plan.lengths_q, plan.cu_q)
    segment_k, place_k = _segments(plan.lengths_k, plan.cu_k)
    mask = segment_q[:, None] == segment_k[None, :]
    if plan.causal:
        extra_keys = (plan.cu_k.diff() - plan.cu_q.diff()).long()[segment_q]
        mask &= place_k[None, :] <= (place_q + extra_keys)[:, None]
    return mask


@ATTENTION_BACKENDS.register_module('eager')
def eager(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: AttentionPlan) -> torch.Tensor:
    """One masked softmax over all rows, in float32 or better: memory grows with Tq * Tk."""
    k, v = _gather_keys(k, v, plan)
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores = torch.einsum('qhd,khd->hqk', q, k) * q.shape[-1] ** -0.5
    scores = scores.masked_fill(~dense_mask(plan), torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1, dtype=torch.promote_types(q.dtype, torch.float32)).to(q.dtype)
    return torch.einsum('hqk,khd->qhd', weights, v)


@ATTENTION_BACKENDS.register_module('sdpa')
def sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: AttentionPlan) -> torch.Tensor:
    """One scaled_dot_product_attention call for each run of neighbouring segments with equal lengths.

    On a CPU, where a call costs more than moving its rows, segments of many mixed lengths are first sorted by length.
    """
    if q.device.type == 'cpu' and plan.key_index is None and len(plan.runs) > FEW_CALLS and (
            sorting := _by_length(plan)) is not None:
        order, back, sorted_plan = sorting
        return sdpa(*(x.index_select(0, order) for x in (q, k, v)), sorted_plan).index_select(0, back)
    k, v = _gather_keys(k, v, plan)
    rows_q = [count * length_q for count, length_q, _ in plan.runs]
    rows_k = [count * length_k for count, _, length_k in plan.runs]
    outputs = [_dense_run(*parts, run, plan.causal)
               for *parts, run in zip(q.split(rows_q), k.split(rows_k), v.split(rows_k), plan.runs)]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _by_length(plan: AttentionPlan) -> tuple[torch.Tensor, torch.Tensor, AttentionPlan] | None:
    """Order of the rows with segments sorted by length, the way back, and the plan for it; None if that is not worth
    it. Made once for a plan, from host integers."""
    if not hasattr(plan, 'sorting'):
        plan.sorting = None
        if plan.lengths_q == plan.lengths_k and len(plan.runs) > 2 * len(set(plan.lengths_q)):
            lengths = np.array(plan.lengths_q)
            segments = np.argsort(lengths, kind='stable')
            starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])[segments]
            lengths = lengths[segments]
            ends = np.cumsum(lengths)
            order = np.repeat(starts - (ends - lengths), lengths) + np.arange(ends[-1])
            back = np.empty_like(order)
            back[order] = np.arange(len(order))
            plan.sorting = (torch.from_numpy(order), torch.from_numpy(back),
                            AttentionPlan.from_lengths(lengths.tolist(), causal=plan.causal))
    return plan.sorting


def _dense_run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, run: tuple[int, int, int],
               causal: bool) -> torch.Tensor:
    count, length_q, length_k = run
    q, k, v = (x.unflatten(0, (count, length)).transpose(1, 2)
               for x, length in ((q, length_q), (k, length_k), (v, length_k)))
    mask = None
    if causal and length_q not in (1, length_k):  # a single query at the bottom right sees every key
        if q.device.type == 'cuda':
            from torch.nn.attention.bias import causal_lower_right
            mask = causal_lower_right(length_q, length_k)
        else:  # what the bias would become here; it knows no fake tensors
            mask = torch.ones(length_q, length_k, dtype=torch.bool, device=q.device).tril(length_k - length_q)
    output = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal and length_q == length_k,
                                            enable_gqa=q.shape[1] != k.shape[1])
    return output.transpose(1, 2).flatten(0, 1)


@ATTENTION_BACKENDS.register_module('varlen')
def varlen(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: AttentionPlan) -> torch.Tensor:
    """torch's own variable-length kernel; needs CUDA and float16 or bfloat16."""
    from torch.nn.attention.varlen import varlen_attn
    k, v = _gather_keys(k, v, plan)
    return varlen_attn(q, k, v, plan.cu_q, plan.cu_k, plan.max_q, plan.max_k,
                       window_size=(-1, 0) if plan.causal else (-1, -1), enable_gqa=q.shape[1] != k.shape[1])


@ATTENTION_BACKENDS.register_module('flash_attn')
def flash_attn(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: AttentionPlan) -> torch.Tensor:
    """The flash-attn package (pip install 'qvlkit[flash]'); needs CUDA and float16 or bfloat16."""
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError as error:
        raise ValueError("model.attention='flash_attn' needs the flash-attn package; "
                         "install qvlkit[flash] or set model.attention to 'varlen' or 'sdpa'") from error
    k, v = _gather_keys(k, v, plan)
    return flash_attn_varlen_func(q, k, v, plan.cu_q, plan.cu_k, plan.max_q, plan.max_k, causal=plan.causal)


@functools.cache
def _compiled_flex():
    from torch.nn.attention.flex_attention import flex_attention
    return torch.compile(flex_attention, dynamic=True)


@ATTENTION_BACKENDS.register_module('flex')
def flex(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: AttentionPlan) -> torch.Tensor:
    """FlexAttention, compiled; blocks of 128 rows that no segment shares are skipped. CUDA."""
    from torch.nn.attention.flex_attention import create_block_mask
    k, v = _gather_keys(k, v, plan)
    segment_q, place_q = _segments(plan.lengths_q, plan.cu_q)
    segment_k, place_k = _segments(plan.lengths_k, plan.cu_k)
    last_key = place_q + (plan.cu_k.diff() - plan.cu_q.diff()).long()[segment_q]
    causal = plan.causal

    def visible(batch, head, query, key):
        same = segment_q[query] == segment_k[key]
        return same & (place_k[key] <= last_key[query]) if causal else same

    mask = create_block_mask(visible, None, None, q.shape[0], k.shape[0], device=q.device)
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    output = _compiled_flex()(q, k, v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1])
    return output.squeeze(0).transpose(0, 1)
