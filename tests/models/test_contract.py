"""The contract that every registered part of every slot keeps, in a whole small model.

Shapes: T packed tokens, E language width.
"""
import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from qvlkit.registry import LANGUAGE_MODELS, MERGERS, POSITION_ENCODINGS, VISION_ENCODERS

SLOTS = dict(vision_encoder=VISION_ENCODERS, merger=MERGERS, position_encoding=POSITION_ENCODINGS,
             language_model=LANGUAGE_MODELS)
USUAL = dict(vision_encoder='Qwen25ViT', merger='PatchMerger', position_encoding='AbsoluteTimeMRoPE',
             language_model='Qwen2Decoder')
# All keys of a softmax share this: it has no influence, and its gradient is rounding.
WITHOUT_INFLUENCE = ('self_attn.k_proj.bias',)
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5}


def in_whole_models():
    """Every registered part in its slot, the other slots as usual; every encoder and merger at merge size 4 too."""
    usual = dict(USUAL)
    variants = {'-'.join(usual.values()): usual}
    for slot, registry in SLOTS.items():
        variants.update({name: {**usual, slot: name} for name in registry.names() if name != usual[slot]})
    for slot in ('vision_encoder', 'merger'):
        variants.update({f'{name}-4': {**usual, slot: name, 'merge_size': 4} for name in SLOTS[slot].names()})
    variants['merge-1'] = dict(usual, merge_size=1)
    return pytest.mark.parametrize('parts', variants.values(), ids=variants)


def samples_of(model, make_sample):
    """Text alone; images; a video; images and videos mixed: sides in merge cells, some past a window's edge."""
    s = model.merger.merge_size
    image, wide, smallest = ('image', (1, 2 * s, 3 * s)), ('image', (1, 3 * s, 5 * s)), ('image', (1, s, s))
    fast, slow = ('video', (3, 2 * s, s), 0.3), ('video', (2, 3 * s, 4 * s), 1.7)
    layouts = [[5], [2, image, 3], [1, fast, 4], [smallest, 2], [1, wide, 1, slow, 1, smallest, 1, fast, 6]]
    return [make_sample(model, layout, seed) for seed, layout in enumerate(layouts)]


def outputs_and_gradients(model, batch, upstream):
    """Hidden states (T, E), and the gradients of their product with `upstream`."""
    model.zero_grad(set_to_none=True)
    hidden = model(batch)
    (hidden * upstream).sum().backward()
    return hidden.detach(), {name: parameter.grad for name, parameter in model.named_parameters()
                             if 'lm_head' not in name}


def has_influence(parts, name):
    return parts['vision_encoder'] != 'HFVisionEncoder' or not (
        name.startswith('vision_encoder.') and name.endswith(WITHOUT_INFLUENCE))


def assert_close(value, expected, tolerance, name=''):
    error, scale = float((value - expected).norm()), float(expected.norm())
    assert error <= tolerance * scale + 1e-13, f'{name}: {error} of {scale}'


@in_whole_models()
@pytest.mark.parametrize('dtype', TOLERANCES, ids=str)
def test_packed_equals_alone(parts, dtype, make_model, make_sample, make_batch):
    model = make_model(dtype=dtype, **parts)
    samples = samples_of(model, make_sample)
    upstream = [torch.randn(sample.length, model.language_model.width, dtype=dtype,
                            generator=torch.Generator().manual_seed(index)) for index, sample in enumerate(samples)]
    packed, packed_gradients = outputs_and_gradients(model, make_batch(model, samples), torch.cat(upstream))
    summed = {}
    for sample, own_upstream, own_rows in zip(samples, upstream, packed.split([sample.length for sample in samples])):
        alone, gradients = outputs_and_gradients(model, make_batch(model, [sample]), own_upstream)
        assert_close(own_rows, alone, TOLERANCES[dtype], sample.id)
        for name, gradient in gradients.items():
            summed[name] = summed.get(name, 0) + gradient
    for name, gradient in packed_gradients.items():
        if not has_influence(parts, name):
            assert float(gradient.norm()) < 1e-5 * float(packed_gradients[name.replace('bias', 'weight')].norm())
            continue
        assert float(gradient.norm()) > 0, name
        assert_close(gradient, summed[name], TOLERANCES[dtype], name)


@in_whole_models()
def test_eager_and_sdpa_agree_in_the_whole_model(parts, make_model, make_sample, make_batch):
    results = []
    for attention in ('eager', 'sdpa'):
        model = make_model(dtype=torch.float64, attention=attention, **parts)
        batch = make_batch(model, samples_of(model, make_sample))
        upstream = torch.randn(batch.num_tokens, model.language_model.width, dtype=torch.float64,
                               generator=torch.Generator().manual_seed(0))
        results.append(outputs_and_gradients(model, batch, upstream))
    (eager, eager_gradients), (sdpa, sdpa_gradients) = results
    assert_close(sdpa, eager, 1e-10)
    for name, gradient in sdpa_gradients.items():
        if has_influence(parts, name):
            assert_close(gradient, eager_gradients[name], 1e-10, name)


@in_whole_models()
def test_a_text_only_batch_gives_zero_gradients_to_the_vision_parts(parts, make_model, make_sample, make_batch):
    model = make_model(**parts)
    batch = make_batch(model, [make_sample(model, [7])])
    assert batch.visual_rows.numel() == 0
    assert batch.image_patches.shape[0] == model.merger.merge_size**2
    model.logits(batch).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        vision = name.startswith(('vision_encoder.', 'merger.'))
        assert (float(parameter.grad.abs().max()) == 0) == vision, name


@in_whole_models()
@pytest.mark.parametrize('attention', ['sdpa', 'eager'])
def test_forward_and_backward_ask_the_device_for_no_number(parts, attention, make_model, make_sample, make_batch):
    """Meta tensors hold no numbers: .item(), .tolist(), .cpu(), nonzero and mask lookups raise on them."""
    model = make_model(device='meta', attention=attention, **parts)
    for layouts in (samples_of(model, make_sample), [make_sample(model, [7])]):
        batch = make_batch(model, layouts).to('meta')
        logits = model.logits(batch)
        assert logits.shape == (batch.num_tokens, model.language_model.vocab_size)
        logits.sum().backward()


@pytest.mark.parametrize('question', [
    lambda features: features.sum().item(), lambda features: features[0].tolist(),
    lambda features: features[features > 0], lambda features: features.nonzero(), lambda features: features.cpu()])
def test_a_part_that_asks_the_device_is_caught(question, make_model, make_sample, make_batch):
    model = make_model(device='meta')
    model.merger.register_forward_pre_hook(lambda merger, inputs: (question(inputs[0]), None)[1])
    batch = make_batch(model, samples_of(model, make_sample)).to('meta')
    with pytest.raises((NotImplementedError, RuntimeError)):
        model(batch)


@in_whole_models()
def test_the_plan_is_pure_and_a_permutation(parts, make_model):
    model = make_model(device='meta', **parts)  # no weights to look at
    s = model.merger.merge_size
    grids = [(1, 2 * s, 3 * s), (3, s, 5 * s), (1, s, s)]
    plan, again = model.vision_encoder.plan(grids), model.vision_encoder.plan(list(grids))
    patches = sum(int(np.prod(grid)) for grid in grids)
    assert plan.order.sort().values.equal(torch.arange(patches))
    cell_of_token = plan.token_order
    assert cell_of_token.sort().values.equal(torch.arange(patches // s**2))
    arranged = model.plan(grids)
    assert arranged.order.equal(plan.order) and arranged.attention.keys() >= plan.attention.keys()
    assert arranged.token_order.sort().values.equal(torch.arange(sum(map(model.merger.num_tokens, grids))))
    assert [int(np.prod(model.merger.token_grid(grid))) for grid in grids] == list(map(model.merger.num_tokens, grids))
    # Frame groups stay in order, each whole.
    group = torch.repeat_interleave(torch.tensor([rows * columns for t, rows, columns in grids for _ in range(t)]))
    assert group[plan.order].equal(group)
    assert plan.order.equal(again.order) and plan.positions.equal(again.positions)
    assert {tensor.device.type for tensor in (plan.order, plan.token_order, plan.positions)} == {'cpu'}
    assert plan.positions.shape == (patches, 2)
    assert plan.grids == tuple(grids)
    for name, attention in plan.attention.items():
        assert not attention.causal and sum(attention.lengths_q) == patches, name
    # Patches of a merge cell stay neighbours, in their own order.
    cells = plan.order.view(-1, s * s)
    assert (cells[:, 0] % (s * s) == 0).all()
    assert (cells - cells[:, :1]).equal(torch.arange(s * s).expand_as(cells))
    assert (cells[:, 0] // (s * s)).equal(cell_of_token)


@in_whole_models()
def test_a_merger_makes_as_many_tokens_as_it_says(parts, make_model, make_sample, make_batch):
    model = make_model(**parts)
    s = model.merger.merge_size
    for kind, grid in (('image', (1, s, s)), ('image', (1, 3 * s, 2 * s)), ('video', (3, 2 * s, s))):
        batch = make_batch(model, [make_sample(model, [1, (kind, grid), 1])])
        tokens = model.merger(model.encode(batch), batch.vision_plan)
        assert tokens.shape == (model.merger.num_tokens(grid), model.language_model.width)


@in_whole_models()
def test_flops_are_what_torch_counts(parts, make_model):
    model = make_model(device='meta', **parts)
    encoder, merger, s = model.vision_encoder, model.merger, model.merger.merge_size
    for grid in ((1, s, s), (1, 3 * s, 5 * s), (3, 4 * s, 2 * s)):
        plan = model.plan([grid]).to('meta')
        values = encoder.in_channels * encoder.temporal_patch_size * encoder.patch_size**2
        patches = torch.empty(len(plan.order), values, device='meta')
        features = torch.empty(len(plan.order), encoder.width, device='meta')
        assert counted(lambda: encoder(patches, plan)) == pytest.approx(encoder.flops(grid), rel=0.02)  # noqa: B023
        assert counted(lambda: merger(features, plan)) == pytest.approx(merger.flops(grid), rel=0.02)  # noqa: B023


@pytest.mark.parametrize('name', LANGUAGE_MODELS.names())
def test_flops_of_the_language_model_are_what_torch_counts(name, make_model, make_sample, make_batch):
    model = make_model(device='meta', language_model=name)
    decoder, lengths, num_logits = model.language_model, (9, 40, 17), 11
    batch = make_batch(model, [make_sample(model, [length]) for length in lengths]).to('meta')
    embeddings = torch.empty(sum(lengths), decoder.width, device='meta')
    rotary = model.position_encoding.rotary(batch.position_ids)
    total = counted(lambda: decoder.logits(decoder(embeddings, rotary, batch.attention)[:num_logits]))
    # torch counts the masked upper triangle of causal attention too; `flops` does not.
    masked = decoder.depth * sum(2 * decoder.width * length * (length - 1) for length in lengths)
    assert total - masked == pytest.approx(decoder.flops(lengths, num_logits), rel=0.02)


def counted(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize('name', POSITION_ENCODINGS.names())
def test_position_ids_are_of_each_sample_alone(name, make_model, make_sample):
    model = make_model(position_encoding=name)
    encoding = model.position_encoding
    for sample in samples_of(model, make_sample):
        assert sample.position_ids.shape == (encoding.num_axes, sample.length)
        assert sample.position_ids.dtype == torch.int64
        assert sample.position_ids.amin() == 0 and sample.position_ids[:, 0].tolist() == [0] * encoding.num_axes
        cos, sin = encoding.rotary(sample.position_ids)
        assert cos.shape == sin.shape == (sample.length, model.language_model.head_dim // 2)
        assert cos.dtype == sin.dtype == torch.float32
        torch.testing.assert_close(cos**2 + sin**2, torch.ones_like(cos))


@in_whole_models()
def test_bfloat16_stays_near_float32(parts, make_model, make_sample, make_batch):
    model = make_model(**parts)
    batch = make_batch(model, samples_of(model, make_sample))
    expected = model(batch).detach()
    rounded = model.to(torch.bfloat16)(batch)
    assert rounded.dtype == torch.bfloat16
    assert float((rounded.detach() - expected).norm() / expected.norm()) < 0.05
