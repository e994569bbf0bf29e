"""Chunked log-probabilities against log_softmax: values, gradients for any upstream gradient, memory.

Shapes: S rows, E width, V vocabulary.
"""
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from qvlkit.losses.log_probabilities import linear_log_probabilities

ROWS, WIDTH, VOCABULARY = 23, 12, 37


def inputs(dtype=torch.float64, rows=ROWS):
    generator = torch.Generator().manual_seed(0)
    hidden, weight, upstream = (torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)
                                for shape in ((rows, WIDTH), (VOCABULARY, WIDTH), (rows,)))
    targets = torch.randint(0, VOCABULARY, (rows,), generator=generator)
    return hidden.requires_grad_(), weight.requires_grad_(), targets, upstream


def plain(hidden, weight, targets):
    return (hidden @ weight.T).log_softmax(-1).gather(1, targets[:, None]).squeeze(1)


def with_gradients(values, hidden, weight, upstream):
    return [values.detach(), *torch.autograd.grad(values, (hidden, weight), upstream)]


@pytest.mark.parametrize('chunk_rows', [1, 4, 22, 23, 1024])
@pytest.mark.parametrize('dtype, tolerance', [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=str)
def test_values_and_gradients_are_those_of_log_softmax(chunk_rows, dtype, tolerance):
    hidden, weight, targets, upstream = inputs(dtype)
    found = with_gradients(linear_log_probabilities(hidden, weight, targets, chunk_rows), hidden, weight, upstream)
    for value, expected in zip(found, with_gradients(plain(hidden, weight, targets), hidden, weight, upstream)):
        assert value.dtype == dtype
        assert float((value - expected).norm()) <= tolerance * float(expected.norm())


@pytest.mark.parametrize('frozen', ['hidden', 'weight'])
def test_what_is_frozen_gets_no_gradient(frozen):
    hidden, weight, targets, upstream = inputs()
    expected = with_gradients(plain(hidden, weight, targets), hidden, weight, upstream)[1:]
    dict(hidden=hidden, weight=weight)[frozen].requires_grad_(False)
    linear_log_probabilities(hidden, weight, targets, 4).backward(upstream)
    for x, gradient in zip((hidden, weight), expected):
        assert (x.grad is None) == (not x.requires_grad)
        if x.requires_grad:
            torch.testing.assert_close(x.grad, gradient, atol=1e-10, rtol=1e-10)


def test_a_tied_head_gathers_both_gradients():
    _, weight, targets, upstream = inputs()
    hidden = weight[targets - 1]
    expected, = torch.autograd.grad(plain(hidden, weight, targets), weight, upstream, retain_graph=True)
    found, = torch.autograd.grad(linear_log_probabilities(hidden, weight, targets, 5), weight, upstream)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize('hidden_dtype', [torch.float32, torch.bfloat16], ids=str)
def test_autocast_is_as_on_the_plain_path(hidden_dtype):
    _, weight, targets, upstream = inputs(torch.float32)
    hidden = inputs(hidden_dtype)[0]
    results = []
    for chunk_rows in (5, 1024):
        with torch.autocast('cpu', torch.bfloat16):
            values = linear_log_probabilities(hidden, weight, targets, chunk_rows)
        results.append(with_gradients(values, hidden, weight, upstream))
    for value, expected in zip(*results):
        assert value.dtype == expected.dtype
        assert float((value - expected).norm() / expected.norm()) < 0.01


class LargestTensor(TorchDispatchMode):
    """Remembers how many values the largest tensor had that any operation made."""
    values = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, (tuple, list)) else [output]:
            if isinstance(tensor, torch.Tensor):
                self.values = max(self.values, tensor.numel())
        return output


def test_memory_is_that_of_one_chunk():
    hidden, weight, targets, upstream = inputs(rows=400)
    largest = []
    for chunk_rows in (8, 1024):
        with LargestTensor() as mode:
            linear_log_probabilities(hidden, weight, targets, chunk_rows).backward(upstream)
        largest.append(mode.values)
    assert largest == [400 * WIDTH, 400 * VOCABULARY]


def test_large_logits_stay_finite():
    hidden, weight, targets, upstream = inputs(torch.float32)
    hidden = hidden.detach().mul(1e4).requires_grad_()
    found = with_gradients(linear_log_probabilities(hidden, weight, targets, 5), hidden, weight, upstream)
    assert all(bool(x.isfinite().all()) for x in found)
