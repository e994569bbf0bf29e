"""Attention backends against a plain loop over queries, forward and backward.

Shapes: q (Tq, H, d), k and v (Tk, Hk, d).
"""
import pytest
import torch

from qvlkit.models.layers import attention
from qvlkit.models.layers.attention import attention_backend, dense_mask
from qvlkit.registry import ATTENTION_BACKENDS
from qvlkit.structures import AttentionPlan

GPU_BACKENDS = ['varlen', 'flash_attn', 'flex']

# name: queries and keys of each segment, causal, key_index
PLANS = {
    'causal': ([5, 1, 7, 7], None, True, None),
    'full': ([4, 4, 4, 2, 9, 9, 1], None, False, None),
    'more_keys_causal': ([3, 1, 2, 5], [7, 4, 2, 6], True, None),
    'more_keys_full': ([3, 3, 1], [7, 7, 5], False, None),
    'decoding': ([1, 1, 1], [4, 9, 6], True, None),
    # Two answers (rows 4, 5 and 6, 7, 8) after one prompt (rows 0 to 3): each sees the prompt and itself.
    'shared_prompt': ([2, 3], [6, 7], True, [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 6, 7, 8]),
    'scattered_keys': ([2, 2], [3, 2], False, [8, 0, 3, 5, 5]),
}


def make_plan(name):
    lengths_q, lengths_k, causal, key_index = PLANS[name]
    return AttentionPlan.from_lengths(lengths_q, lengths_k, causal=causal,
                                      key_index=None if key_index is None else torch.tensor(key_index))


def inputs(plan, kv_heads=4, heads=4, head_dim=8, dtype=torch.float64, device='cpu'):
    generator = torch.Generator().manual_seed(0)
    num_keys = sum(plan.lengths_k) if plan.key_index is None else int(plan.key_index.max()) + 1
    shapes = (sum(plan.lengths_q), heads), (num_keys, kv_heads), (num_keys, kv_heads), (sum(plan.lengths_q), heads)
    *qkv, upstream = (torch.randn(*shape, head_dim, generator=generator, dtype=torch.float64).to(device, dtype)
                      for shape in shapes)
    return [x.requires_grad_() for x in qkv], upstream


def by_hand(q, k, v, plan):
    """One query, one head at a time, from the words of AttentionPlan."""
    if plan.key_index is not None:
        k, v = k[plan.key_index], v[plan.key_index]
    rows, first_query, first_key = [], 0, 0
    for queries, keys in zip(plan.lengths_q, plan.lengths_k):
        for i in range(queries):
            seen = first_key + (i + keys - queries + 1 if plan.causal else keys)
            heads = []
            for head in range(q.shape[1]):
                shared = head * k.shape[1] // q.shape[1]
                scores = k[first_key:seen, shared] @ q[first_query + i, head] / q.shape[-1] ** 0.5
                heads.append(scores.softmax(0) @ v[first_key:seen, shared])
            rows.append(torch.stack(heads))
        first_query, first_key = first_query + queries, first_key + keys
    return torch.stack(rows)


def results(backend, qkv, upstream, plan):
    output = backend(*qkv, plan)
    return [output.detach(), *torch.autograd.grad((output * upstream).sum(), qkv)]


@pytest.mark.parametrize('kv_heads', [4, 2, 1])
@pytest.mark.parametrize('case', PLANS)
@pytest.mark.parametrize('name', ['eager', 'sdpa'])
def test_equals_the_plain_loop(name, case, kv_heads):
    plan = make_plan(case)
    qkv, upstream = inputs(plan, kv_heads)
    for value, expected in zip(results(attention_backend(name), qkv, upstream, plan),
                               results(by_hand, qkv, upstream, plan)):
        torch.testing.assert_close(value, expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize('case', PLANS)
def test_sdpa_equals_eager_in_float32(case):
    plan = make_plan(case)
    qkv, upstream = inputs(plan, kv_heads=2, dtype=torch.float32)
    for value, expected in zip(results(attention_backend('sdpa'), qkv, upstream, plan),
                               results(attention_backend('eager'), qkv, upstream, plan)):
        assert float((value - expected).norm() / expected.norm()) <= 1e-5


@pytest.mark.parametrize('case', [name for name, plan in PLANS.items() if plan[3] is None])
@pytest.mark.parametrize('name', ['eager', 'sdpa'])
def test_a_segment_does_not_feel_the_others(name, case):
    plan = make_plan(case)
    q, k, v = (x.detach() for x in inputs(plan)[0])
    before = attention_backend(name)(q, k, v, plan)
    first, keys = plan.lengths_q[0], plan.lengths_k[0]
    for x, rows in ((q, first), (k, keys), (v, keys)):
        x[rows:] = 100.0
    torch.testing.assert_close(attention_backend(name)(q, k, v, plan)[:first], before[:first], atol=1e-12, rtol=0)


def test_dense_mask_of_a_small_plan():
    plan = AttentionPlan.from_lengths([2, 1], [3, 2], causal=True)
    assert dense_mask(plan).int().tolist() == [[1, 1, 0, 0, 0],
                                               [1, 1, 1, 0, 0],
                                               [0, 0, 0, 1, 1]]


def test_plan_lengths_and_runs():
    plan = AttentionPlan.from_lengths([4, 4, 2, 4], causal=False)
    assert plan.runs == ((2, 4, 4), (1, 2, 2), (1, 4, 4))
    assert plan.cu_q.tolist() == plan.cu_k.tolist() == [0, 4, 8, 10, 14]
    assert (plan.max_q, plan.max_k, plan.cu_q.dtype) == (4, 4, torch.int32)
    with pytest.raises(ValueError, match='2 query segments but 1 key segments'):
        AttentionPlan.from_lengths([1, 2], [3], causal=False)


@pytest.mark.filterwarnings('ignore:flex_attention called without torch.compile')
@pytest.mark.parametrize('case', PLANS)
def test_the_mask_of_flex_without_its_kernel(case, monkeypatch):
    """FlexAttention uncompiled is a plain program that any CPU runs: it holds the mask and the layout, forward."""
    from torch.nn.attention.flex_attention import flex_attention
    monkeypatch.setattr(attention, '_compiled_flex', lambda: flex_attention)
    plan = make_plan(case)
    q, k, v = (x.detach() for x in inputs(plan, kv_heads=2, head_dim=16)[0])
    torch.testing.assert_close(attention_backend('flex')(q, k, v, plan), by_hand(q, k, v, plan), atol=1e-10, rtol=1e-10)


def test_an_unknown_backend_and_a_missing_package_are_named(monkeypatch):
    with pytest.raises(ValueError, match=r"model\.attention.*'spda'.*did you mean 'sdpa'"):
        attention_backend('spda')
    monkeypatch.setitem(__import__('sys').modules, 'flash_attn', None)  # as if it were not installed
    plan = make_plan('causal')
    with pytest.raises(ValueError, match=r'flash-attn package; install qvlkit\[flash\]'):
        attention_backend('flash_attn')(*inputs(plan)[0], plan)


def test_every_backend_is_tested_here():
    assert ATTENTION_BACKENDS.names() == sorted(['eager', 'sdpa', *GPU_BACKENDS])


@pytest.mark.gpu
@pytest.mark.parametrize('kv_heads', [4, 2])
@pytest.mark.parametrize('case', PLANS)
@pytest.mark.parametrize('name', GPU_BACKENDS)
def test_gpu_backends_round_no_worse_than_eager(name, case, kv_heads):
    """In bfloat16, against eager in float64: an error of at most three times that of eager in bfloat16."""
    if not torch.cuda.is_available():
        pytest.skip(f'{name} needs a GPU')
    if name == 'flash_attn':
        pytest.importorskip('flash_attn', reason='flash_attn needs the flash-attn package')
    plan = make_plan(case).to('cuda')
    qkv, upstream = inputs(plan, kv_heads, head_dim=64, dtype=torch.bfloat16, device='cuda')
    exact = results(attention_backend('eager'), [x.detach().double().requires_grad_() for x in qkv],
                    upstream.double(), plan)
    rounded = results(attention_backend('eager'), qkv, upstream, plan)
    for value, plain, expected in zip(results(attention_backend(name), qkv, upstream, plan), rounded, exact):
        limit = 3 * float((plain - expected).norm()) + 1e-3 * float(expected.norm())
        assert float((value - expected).norm()) <= limit
