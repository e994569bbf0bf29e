import pytest
import torch
from torch._subclasses import FakeTensorMode

from qvlkit.engine.adapters import add_adapters
from qvlkit.engine.ema import WeightAverage
from qvlkit.engine.optimizer import build_optimizer
from qvlkit.losses.cross_entropy import LinearCrossEntropy
from qvlkit.planning.memory import format_bytes, head_memory, model_memory, saved_activations
from qvlkit.train.reference import LiveReference


def loss_of(model, row):
    hidden = model(row)
    return LinearCrossEntropy()(hidden.index_select(0, row.target_rows), model.language_model.head_weight,
                                row.target_ids)


def test_weights_gradients_and_states_are_what_a_step_holds(small):
    model = small.build(seed=0)
    model.vision_encoder.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    loss_of(model, small.row).backward()
    optimizer.step()
    memory = model_memory(model, {'vision_encoder': False})

    def size(tensors):
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    assert memory.weights == size(model.parameters())
    assert memory.gradients == size(p.grad for p in model.parameters() if p.grad is not None)
    assert memory.optimizer == size(state[key] for state in optimizer.state.values()
                                    for key in ('exp_avg', 'exp_avg_sq'))
    assert memory.total == memory.weights + memory.gradients + memory.optimizer


def count(model, row):
    with saved_activations(model) as sizes:
        loss = loss_of(model, row)
    loss.backward()
    return sum(sizes)


def test_fake_tensors_keep_as_many_bytes_as_real_ones(small):
    real = count(small.build(seed=0), small.row)
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = count(small.build(), small.row)
    assert fake == real > 0


def test_a_storage_counts_once_and_parameters_do_not():
    layer = torch.nn.Linear(8, 8, bias=False)
    x = torch.ones(4, 8, requires_grad=True)
    with saved_activations(layer) as sizes:
        layer(x).square().sum()
    assert sum(sizes) == 2 * 4 * 8 * 4  # the input, and the output that square() keeps


def test_frozen_parts_keep_less(small):
    whole, frozen = small.build(seed=0), small.build(seed=0)
    frozen.vision_encoder.requires_grad_(False)
    assert count(frozen, small.row) < count(whole, small.row)


def test_the_chunk_is_never_larger_than_the_targets():
    few = head_memory(num_targets=10, vocab_size=1000, chunk_rows=64, compute_dtype=torch.bfloat16)
    many = head_memory(num_targets=500, vocab_size=1000, chunk_rows=64, compute_dtype=torch.bfloat16)
    assert (few, many) == (10 * 1000 * 8, 64 * 1000 * 8)


def test_units():
    assert [format_bytes(count) for count in (12, 1536, 3 * 2**30, 2**40, 2**51)] == [
        '12 B', '1.50 KiB', '3.00 GiB', '1.00 TiB', '2,048.00 TiB']


@pytest.mark.parametrize('quantize', [None, 'int8', 'nf4'])
def test_of_a_part_with_adapters_these_have_gradients_and_states(small, quantize):
    if quantize == 'nf4':
        pytest.importorskip('bitsandbytes')
    config = dict(parts=['language_model'], rank=2, quantize=quantize)
    model, planned = (add_adapters(small.build(**options), config) for options in (dict(seed=0), dict(device='meta')))
    optimizer = build_optimizer(model, {'merger': {'trainable': False}}, {'type': 'AdamW', 'lr': 1e-3})
    loss_of(model, small.row).backward()
    optimizer.step()
    memory = model_memory(planned, {'merger': False})
    assert memory.weights == sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
    assert memory.gradients == sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    assert memory.optimizer == sum(state[key].nbytes for state in optimizer.state.values()
                                   for key in ('exp_avg', 'exp_avg_sq'))
    saved = {None: 0, 'int8': 3, 'nf4': 3.5}[quantize] * 2 * (2 * 192 * 192 + 2 * 192 * 64 + 3 * 192 * 512)
    whole = model_memory(add_adapters(small.build(device='meta'), config | dict(quantize=None)), {}).weights
    assert 0.85 * saved <= whole - memory.weights <= saved  # less the scales


@pytest.mark.parametrize('frozen, lora', [(['vision_encoder'], None), ([], None), (['merger'], ['language_model'])])
def test_a_reference_and_an_average_are_as_large_as_their_copies(small, frozen, lora):
    model = add_adapters(small.build(seed=0), lora and dict(parts=lora, rank=2))
    parts = {part: dict(trainable=False) for part in frozen}
    build_optimizer(model, parts, {'type': 'AdamW', 'lr': 1e-3})
    memory = model_memory(model, dict.fromkeys(frozen, False), reference=True, average=True)
    copies = LiveReference(model).copies
    assert memory.reference == sum(p.nbytes for part in copies.values() for p in [*part.parameters(), *part.buffers()])
    assert memory.average == sum(tensor.nbytes for tensor in WeightAverage(model, 0.9).tensors().values())
    plain = model_memory(model, dict.fromkeys(frozen, False))
    assert plain.total == memory.total - memory.reference - memory.average
    assert not {'reference', 'average'} & plain.categories().keys()
