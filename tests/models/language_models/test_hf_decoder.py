"""Decoders of transformers in our house: packed and with our positions they equal themselves; others are refused.

Shapes: T tokens, E width, V vocabulary.
"""
import sys

import pytest
import torch

from qvlkit.models.language_models.hf_decoder import HFDecoder
from qvlkit.models.language_models.qwen2_decoder import Qwen2Decoder
from qvlkit.models.position_encodings.rope_1d import RoPE1D
from qvlkit.structures import AttentionPlan

SIZES = dict(width=32, depth=3, num_heads=4, num_kv_heads=2, feed_forward_width=48, vocab_size=50)
THETA, LENGTHS = 1000.0, (7, 1, 12, 5)
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-10}
ARCHITECTURES = ['qwen2', 'llama', 'mistral', 'qwen3', 'olmo2']


def reference_of(architecture, *, tied=False, **changes):
    """The same decoder at home, with random weights that reach every corner."""
    import transformers
    config = transformers.AutoConfig.for_model(architecture, **{**dict(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48,
        vocab_size=50, head_dim=8, bos_token_id=None, eos_token_id=None, pad_token_id=None, tie_word_embeddings=tied,
        rope_parameters=dict(rope_type='default', rope_theta=THETA)), **changes})
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation='eager')
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.4 if parameter.ndim > 1 else 0.2) + (parameter.ndim == 1))
    return model.eval()


def ours_of(reference, dtype, **changes):
    decoder = HFDecoder(reference.config.model_type, **{**SIZES, **changes})
    weights = {name: value for name, value in reference.state_dict().items()
               if decoder.lm_head is not None or not name.startswith('lm_head.')}
    decoder.load_state_dict(weights)
    return decoder.to(dtype)


def run(decoder, ids, lengths):
    """Packed samples of these lengths -> logits (T, V)."""
    positions = torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0)
    rotary = RoPE1D(decoder.head_dim, theta=THETA).rotary(positions)
    return decoder.logits(decoder(decoder.embed(ids), rotary, AttentionPlan.from_lengths(lengths, causal=True)))


def token_ids():
    return torch.randint(50, (sum(LENGTHS),), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize('dtype', TOLERANCES, ids=str)
@pytest.mark.parametrize('attention', ['sdpa', 'eager'])
@pytest.mark.parametrize('architecture', ARCHITECTURES)
@torch.no_grad()
def test_its_logits_are_those_of_transformers(architecture, attention, dtype):
    reference = reference_of(architecture).to(dtype)
    reference.set_attn_implementation('sdpa')  # their eager softmax is in float32 whatever the type of the rest
    logits = run(ours_of(reference, dtype, attention=attention), token_ids(), LENGTHS)
    expected = torch.cat([reference(input_ids=ids[None], position_ids=torch.arange(len(ids))[None]).logits[0]
                          for ids in token_ids().split(LENGTHS)])
    assert (logits - expected).norm() < TOLERANCES[dtype] * expected.norm()


@pytest.mark.parametrize('architecture', ARCHITECTURES)
def test_packed_is_alone_and_every_parameter_learns(architecture):
    decoder = ours_of(reference_of(architecture), torch.float64)
    ids, upstream = token_ids(), torch.randn(sum(LENGTHS), 50, dtype=torch.float64)
    packed = run(decoder, ids, LENGTHS)
    (packed * upstream).sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in decoder.named_parameters()}
    decoder.zero_grad()
    alone = []
    for own_ids, own_upstream in zip(ids.split(LENGTHS), upstream.split(LENGTHS)):
        alone.append(run(decoder, own_ids, [len(own_ids)]))
        (alone[-1] * own_upstream).sum().backward()
    assert (packed - torch.cat(alone)).norm() <= 1e-10 * packed.norm()
    for name, parameter in decoder.named_parameters():
        assert float(gradients[name].norm()) > 0, name
        assert (gradients[name] - parameter.grad).norm() <= 1e-10 * parameter.grad.norm(), name


@torch.no_grad()
def test_without_the_plan_samples_would_see_each_other():
    """The control of the test above."""
    decoder = ours_of(reference_of('llama'), torch.float64)
    positions = torch.cat([torch.arange(length) for length in LENGTHS]).unsqueeze(0)
    rotary = RoPE1D(decoder.head_dim, theta=THETA).rotary(positions)
    one = AttentionPlan.from_lengths([sum(LENGTHS)], causal=True)
    mixed = decoder.logits(decoder(decoder.embed(token_ids()), rotary, one))
    assert (mixed - run(decoder, token_ids(), LENGTHS)).norm() > 0.01 * mixed.norm()


@torch.no_grad()
def test_the_weights_of_qwen2_give_our_own_decoder_the_same_logits():
    reference = reference_of('qwen2')
    ours = Qwen2Decoder(**SIZES, norm_eps=1e-6)
    ours.load_state_dict({name.removeprefix('model.'): value for name, value in reference.state_dict().items()})
    expected = run(ours, token_ids(), LENGTHS)
    logits = run(ours_of(reference, torch.float32), token_ids(), LENGTHS)
    assert (logits - expected).norm() < 1e-5 * expected.norm()
    assert ours_of(reference, torch.float32).flops([7, 3], 4) == ours.flops([7, 3], 4)


def test_a_tied_head_is_the_embedding_and_no_row_of_it_is_left_out():
    decoder = ours_of(reference_of('qwen2', tied=True), torch.float32, tie_embeddings=True)
    assert decoder.lm_head is None and decoder.head_weight is decoder.model.embed_tokens.weight
    decoder.embed(torch.tensor([0, 49])).sum().backward()
    assert decoder.head_weight.grad[[0, 49]].equal(torch.ones(2, 32))


def test_a_folder_decides_its_sizes(tmp_path):
    reference = reference_of('qwen3', pad_token_id=3)
    reference.save_pretrained(tmp_path)
    decoder = HFDecoder(path=str(tmp_path), vocab_size=40)
    assert (decoder.architecture, decoder.width, decoder.depth, decoder.vocab_size) == ('qwen3', 32, 3, 50)
    assert HFDecoder(path=str(tmp_path), vocab_size=60).vocab_size == 60
    assert HFDecoder(path=str(tmp_path), width=32).model.embed_tokens.padding_idx is None
    with pytest.raises(ValueError, match='language_model.width: 64 differs from the 32 of model.language_model.path'):
        HFDecoder(path=str(tmp_path), width=64)
    with pytest.raises(ValueError, match="architecture: 'llama' differs from the 'qwen3'"):
        HFDecoder('llama', str(tmp_path))
    with pytest.raises(ValueError, match="path: 'gone' is not a Hugging Face folder"):
        HFDecoder(path='gone')


def test_scaled_attention_is_kept_and_another_head_is_refused(tmp_path):
    from transformers import GraniteConfig
    settings = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, vocab_size=50,
                    intermediate_size=48, bos_token_id=None, eos_token_id=None, pad_token_id=None)
    GraniteConfig(**settings, attention_multiplier=0.2).save_pretrained(tmp_path / 'scaled')
    HFDecoder(path=str(tmp_path / 'scaled'))
    GraniteConfig(**settings, logits_scaling=4.0).save_pretrained(tmp_path / 'divided')
    with pytest.raises(ValueError, match="'granite': packed in one row it differs from transformers' own answer by"):
        HFDecoder(path=str(tmp_path / 'divided'))


@torch.no_grad()
def test_a_sliding_window_is_refused_when_a_sample_is_longer(tmp_path):
    from transformers import MistralConfig
    MistralConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, vocab_size=50,
                  intermediate_size=48, sliding_window=10).save_pretrained(tmp_path)
    decoder = HFDecoder(path=str(tmp_path))
    run(decoder, token_ids()[:19], [10, 9])
    with pytest.raises(ValueError, match='a sample of 11 tokens is longer than the sliding window of 10'):
        run(decoder, token_ids()[:19], [11, 8])


@pytest.mark.parametrize('architecture, reason', [
    ('bloom', r"'bloom' \(BloomForCausalLM\) does not take its attention from transformers' AttentionInterface"),
    ('mamba', 'does not take its attention'), ('cohere', 'rotation is not of the two halves'),
    ('glm', 'rotation is not of the two halves'), ('gpt_neox', 'expected a decoder called "model"'),
    ('opt', 'has no rotary_emb'), ('qwen2_moe', 'has experts'), ('gemma2', "layers of the kind 'sliding_attention'"),
    ('falcon', 'does not take the sizes'), ('lama', "no decoder called 'lama', did you mean 'llama'"),
    (None, 'no decoder called None')])
def test_other_decoders_are_refused_by_name(architecture, reason):
    with pytest.raises(ValueError, match=reason):
        HFDecoder(architecture, **SIZES)


def test_missing_sizes_and_a_missing_library_are_named(monkeypatch):
    with pytest.raises(ValueError, match='expected depth, vocab_size beside architecture, or the path'):
        HFDecoder('llama', **{**SIZES, 'depth': None, 'vocab_size': None})
    with pytest.raises(ValueError, match='width 30 must be an even multiple of num_heads 4'):
        HFDecoder('llama', **{**SIZES, 'width': 30})
    with pytest.raises(ValueError, match="norm_eps: 'starcoder2' has no RMSNorm"):
        HFDecoder('starcoder2', **SIZES, norm_eps=1e-6)
    monkeypatch.setitem(sys.modules, 'transformers', None)
    with pytest.raises(ValueError, match='model.language_model: this part needs the transformers package'):
        HFDecoder('llama', **SIZES)


def test_building_it_draws_no_random_number():
    before = torch.get_rng_state()
    with torch.device('meta'):
        decoder = HFDecoder('llama', **SIZES)
    assert torch.get_rng_state().equal(before)
    assert {parameter.device.type for parameter in decoder.parameters()} == {'meta'}
    assert not dict(decoder.named_buffers())
