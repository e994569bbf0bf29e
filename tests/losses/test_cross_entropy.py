"""Chunked linear cross-entropy against the plain path.

Shapes: S supervised rows, E width, V vocabulary.
"""
import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from qvlkit.losses.cross_entropy import FullCrossEntropy, LinearCrossEntropy
from qvlkit.registry import LOSSES

ROWS, WIDTH, VOCABULARY = 23, 12, 37


def inputs(dtype=torch.float64, rows=ROWS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, WIDTH, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(0, VOCABULARY, (rows,), generator=generator)


def loss_and_gradients(loss, hidden, weight, targets, scale=1.0):
    value = loss(hidden, weight, targets)
    return [value.detach(), *torch.autograd.grad(value * scale, (hidden, weight))]


@pytest.mark.parametrize('chunk_rows', [1, 3, 22, 23, 24, 1024])
@pytest.mark.parametrize('dtype, tolerance', [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=str)
def test_chunked_equals_full(chunk_rows, dtype, tolerance):
    arguments = inputs(dtype)
    for value, expected in zip(loss_and_gradients(LinearCrossEntropy(chunk_rows=chunk_rows), *arguments),
                               loss_and_gradients(FullCrossEntropy(), *arguments)):
        assert value.dtype == dtype
        assert float((value - expected).norm()) <= tolerance * float(expected.norm())


def test_full_is_the_textbook_sum():
    hidden, weight, targets = inputs()
    logits = hidden @ weight.T
    expected = sum(logits[row].logsumexp(0) - logits[row, target] for row, target in enumerate(targets))
    torch.testing.assert_close(FullCrossEntropy()(hidden, weight, targets), expected)


@pytest.mark.parametrize('chunk_rows', [2, 100])
def test_gradcheck(chunk_rows):
    hidden, weight, targets = inputs(rows=5)
    assert torch.autograd.gradcheck(lambda h, w: 3 * LinearCrossEntropy(chunk_rows=chunk_rows)(h, w, targets),
                                    (hidden, weight))


def test_the_upstream_gradient_scales_both_gradients():
    arguments = inputs()
    _, *plain = loss_and_gradients(LinearCrossEntropy(chunk_rows=5), *arguments)
    _, *scaled = loss_and_gradients(LinearCrossEntropy(chunk_rows=5), *arguments, scale=-0.37)
    for gradient, expected in zip(scaled, plain):
        torch.testing.assert_close(gradient, -0.37 * expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize('frozen', ['weight', 'hidden'])
def test_a_frozen_input_gets_no_gradient_and_the_other_is_unchanged(frozen):
    hidden, weight, targets = inputs()
    _, *expected = loss_and_gradients(FullCrossEntropy(), hidden, weight, targets)
    chosen = dict(hidden=hidden, weight=weight)
    chosen[frozen].requires_grad_(False)
    LinearCrossEntropy(chunk_rows=4)(hidden, weight, targets).backward()
    assert chosen[frozen].grad is None
    for x, gradient in zip((hidden, weight), expected):
        if x.requires_grad:
            torch.testing.assert_close(x.grad, gradient, atol=1e-10, rtol=1e-10)


def test_a_tied_head_gathers_both_gradients():
    """The embedding that is also the head: rows used as input and as output add up."""
    hidden, weight, targets = inputs()
    tokens = torch.arange(ROWS) % VOCABULARY
    expected, = torch.autograd.grad(FullCrossEntropy()(weight[tokens] * hidden, weight, targets), weight)
    value, = torch.autograd.grad(LinearCrossEntropy(chunk_rows=4)(weight[tokens] * hidden, weight, targets), weight)
    torch.testing.assert_close(value, expected, atol=1e-10, rtol=1e-10)


def test_without_gradients_nothing_is_kept():
    hidden, weight, targets = inputs()
    with torch.no_grad():
        value = LinearCrossEntropy(chunk_rows=4)(hidden, weight, targets)
    assert not value.requires_grad
    torch.testing.assert_close(value, FullCrossEntropy()(hidden, weight, targets).detach())


def test_no_targets_give_zero_loss_and_zero_gradients():
    hidden, weight, targets = inputs(rows=0)
    value, grad_hidden, grad_weight = loss_and_gradients(LinearCrossEntropy(), hidden, weight, targets)
    assert value == 0 and grad_hidden.shape == (0, WIDTH)
    assert torch.equal(grad_weight, torch.zeros_like(weight))


def test_bfloat16_sums_in_float32():
    arguments = inputs(torch.bfloat16)
    value, *gradients = loss_and_gradients(LinearCrossEntropy(chunk_rows=5), *arguments)
    exact = [x.detach().double().requires_grad_() for x in arguments[:2]]
    expected, *expected_gradients = loss_and_gradients(FullCrossEntropy(), *exact, arguments[2])
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(float(expected), rel=1e-2)
    for gradient, wanted in zip(gradients, expected_gradients):
        assert gradient.dtype == torch.bfloat16
        assert float((gradient - wanted).norm() / wanted.norm()) < 0.02


@pytest.mark.parametrize('hidden_dtype', [torch.float32, torch.bfloat16], ids=str)
def test_autocast_keeps_the_dtypes_of_the_gradients(hidden_dtype):
    """Float32 weights, hidden states in either dtype, products in bfloat16: as the plain path does it."""
    _, weight, targets = inputs(torch.float32)
    hidden = inputs(hidden_dtype)[0]
    results = []
    for loss in (LinearCrossEntropy(chunk_rows=5), FullCrossEntropy()):
        with torch.autocast('cpu', torch.bfloat16):
            value = loss(hidden, weight, targets)
        results.append([value.detach(), *torch.autograd.grad(value, (hidden, weight))])
    for value, expected in zip(*results):
        assert value.dtype == expected.dtype
        assert float((value - expected).norm() / expected.norm()) < 0.01


def test_autocast_multiplies_in_its_own_dtype():
    hidden, weight, targets = inputs(torch.float32)
    with torch.autocast('cpu', torch.bfloat16), ProductDtypes() as products:
        LinearCrossEntropy(chunk_rows=5)(hidden, weight, targets)
    assert products.seen == {torch.bfloat16}


def test_the_meta_device_gives_shapes():
    hidden, weight, targets = (x.detach().to('meta') for x in inputs())
    value = LinearCrossEntropy(chunk_rows=5)(hidden.requires_grad_(), weight, targets)
    value.backward()
    assert value.shape == () and hidden.grad.shape == hidden.shape


@pytest.mark.parametrize('scale', [1.0, 100.0, 1e4])
def test_large_logits_stay_finite(scale):
    hidden, weight, targets = inputs(torch.float32)
    hidden = hidden.detach().mul(scale).requires_grad_()
    value, *gradients = loss_and_gradients(LinearCrossEntropy(chunk_rows=5), hidden, weight, targets)
    assert all(bool(x.isfinite().all()) for x in (value, *gradients))


class ProductDtypes(TorchDispatchMode):
    """Collects the dtypes in which matrices are multiplied."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if 'mm' in func.overloadpacket.__name__:
            self.seen.update(x.dtype for x in args if isinstance(x, torch.Tensor))
        return func(*args, **(kwargs or {}))


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
    hidden, weight, targets = inputs(rows=400)
    with LargestTensor() as full:
        FullCrossEntropy()(hidden, weight, targets).backward()
    with LargestTensor() as chunked:
        LinearCrossEntropy(chunk_rows=8)(hidden, weight, targets).backward()
    assert full.values == 400 * VOCABULARY
    assert chunked.values == 400 * WIDTH  # the gradient of the hidden states; a chunk's logits are fewer


def test_losses_are_registered_and_check_their_settings():
    assert isinstance(LOSSES.build(dict(type='LinearCrossEntropy', chunk_rows=3)), LinearCrossEntropy)
    assert isinstance(LOSSES.build(dict(type='FullCrossEntropy')), FullCrossEntropy)
    with pytest.raises(ValueError, match=r'loss\.chunk_rows: expected at least 1, got 0'):
        LinearCrossEntropy(chunk_rows=0)


def test_the_sum_is_that_of_torch():
    hidden, weight, targets = inputs()
    torch.testing.assert_close(LinearCrossEntropy(chunk_rows=6)(hidden, weight, targets),
                               F.cross_entropy(hidden @ weight.T, targets, reduction='sum'), atol=1e-10, rtol=1e-10)
