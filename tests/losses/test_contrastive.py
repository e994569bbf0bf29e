"""Contrastive losses: against the papers' formulas, in chunks, and dealt to ranks of uneven size.

Shapes: N pairs, W width.
"""
import math

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from qvlkit.losses.contrastive import InfoNCE, SigLIP, nearest_is_own
from qvlkit.registry import LOSSES

PAIRS, WIDTH = 13, 6
every_loss = pytest.mark.parametrize('kind', ['InfoNCE', 'SigLIP'])


def inputs(dtype=torch.float64, pairs=PAIRS):
    """Embeddings, scale and bias, as leaves."""
    generator = torch.Generator().manual_seed(0)
    sides = [F.normalize(torch.randn(pairs, WIDTH, dtype=torch.float64, generator=generator), dim=1) for _ in range(2)]
    return [value.to(dtype).requires_grad_() for value in (*sides, torch.tensor(7.0), torch.tensor(-3.0))]


def of_ranks(loss, lengths, leaves):
    """Sum of what each rank computes of its own rows; the whole is one rank of all."""
    image, text, scale, bias = leaves
    first, parts = 0, []
    for length in lengths:
        own = slice(first, first + length)
        parts.append(loss(image[own], text[own], image, text, first=first, scale=scale, bias=bias))
        first += length
    return torch.stack(parts).sum()


def loss_and_gradients(loss, lengths, leaves):
    value = of_ranks(loss, lengths, leaves)
    return [value.detach(), *torch.autograd.grad(value, leaves, materialize_grads=True)]


def build(kind, **settings):
    return LOSSES.build(dict(type=kind, **settings))


def test_info_nce_is_the_papers_formula():
    leaves = inputs()
    image, text, scale, _ = (leaf.detach() for leaf in leaves)
    expected = 0.0
    for i in range(PAIRS):
        rows, columns = (math.exp(scale * image[i] @ text[i]) / sum(math.exp(pair) for pair in pairs) for pairs in
                         (scale * image[i] @ text.T, scale * image @ text[i]))
        expected -= 0.5 * (math.log(rows) + math.log(columns))
    assert of_ranks(InfoNCE(), [PAIRS], leaves).item() == pytest.approx(expected, rel=1e-12)


def test_siglip_is_the_papers_formula():
    leaves = inputs()
    image, text, scale, bias = (leaf.detach() for leaf in leaves)
    expected = 0.0
    for i in range(PAIRS):
        for j in range(PAIRS):
            label = 1 if i == j else -1
            expected += math.log1p(math.exp(-label * (scale * image[i] @ text[j] + bias)))
    assert of_ranks(SigLIP(), [PAIRS], leaves).item() == pytest.approx(expected, rel=1e-12)
    without = SigLIP()(image, text, image, text, first=0, scale=scale)
    assert without.item() == pytest.approx(of_ranks(SigLIP(), [PAIRS], [*leaves[:3], torch.tensor(0.0)]).item())


@every_loss
@pytest.mark.parametrize('lengths', [[5, 8], [1, 12], [4, 2, 7]], ids=str)
def test_uneven_ranks_are_one_process(kind, lengths):
    """Divided by the number of pairs, the sums over ranks are the loss of one process, and so are all gradients."""
    whole, dealt = (loss_and_gradients(build(kind), parts, inputs()) for parts in ([PAIRS], lengths))
    for value, expected in zip(dealt, whole):
        torch.testing.assert_close(value / PAIRS, expected / PAIRS, rtol=0, atol=1e-10)
    alone = loss_and_gradients(lambda image, text, *_, first, **rest: build(kind)(image, text, image, text, first=0,
                                                                                  **rest), lengths, inputs())
    assert abs(alone[0] - whole[0]) / PAIRS > 1e-3  # the control: without the other ranks' rows the loss is another


@every_loss
@pytest.mark.parametrize('chunk_rows', [1, 4, 12, 13])
@pytest.mark.parametrize('dtype, tolerance', [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=str)
def test_chunked_equals_plain(kind, chunk_rows, dtype, tolerance):
    for lengths in ([PAIRS], [5, 8]):
        for value, expected in zip(loss_and_gradients(build(kind, chunk_rows=chunk_rows), lengths, inputs(dtype)),
                                   loss_and_gradients(build(kind), lengths, inputs(dtype))):
            assert value.dtype == dtype
            assert float((value - expected).norm()) <= tolerance * float(expected.norm()) + 1e-30


@every_loss
def test_gradients_are_right(kind):
    leaves = inputs(pairs=5)
    assert torch.autograd.gradcheck(lambda *values: of_ranks(build(kind, chunk_rows=2), [3, 2], values), leaves)


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation gives."""
    values = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.values = max(self.values, result.numel())
        return result


@every_loss
def test_chunks_never_hold_all_similarities(kind):
    sizes = {}
    for chunk_rows in (8, 64):
        leaves = inputs(pairs=64)
        with Largest() as largest:
            torch.autograd.grad(of_ranks(build(kind, chunk_rows=chunk_rows), [64], leaves), leaves[:3])
        sizes[chunk_rows] = largest.values
    assert sizes == {8: 8 * 64, 64: 64 * 64}


@every_loss
def test_autocast_does_not_round_similarities(kind):
    leaves = inputs(torch.float32)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        mixed = of_ranks(build(kind), [PAIRS], leaves)
        rounded = leaves[0] @ leaves[1].T
    assert torch.equal(mixed, of_ranks(build(kind), [PAIRS], leaves)) and rounded.dtype == torch.bfloat16


def test_nearest_is_own():
    texts = torch.eye(4)
    images = torch.tensor([[0, 0, 1, 0.1], [0, 0.2, 1, 0]])  # the third and, wrongly, the third again
    for chunk_rows in (1, 5):
        assert nearest_is_own(images, texts, first=2, chunk_rows=chunk_rows).tolist() == [1, 0]


@every_loss
def test_chunk_rows_is_checked(kind):
    with pytest.raises(ValueError, match='loss.chunk_rows: expected at least 1, got 0'):
        build(kind, chunk_rows=0)
