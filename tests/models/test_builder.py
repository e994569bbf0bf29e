"""The builder: the chain of parts, and misfits named by both config keys."""
import pytest
import torch

from qvlkit.models.builder import build_model


@pytest.mark.parametrize('slot, changes, words', [
    ('merger', dict(vision_dim=48), ['model.merger.vision_dim', '48', 'model.vision_encoder.width', '32']),
    ('merger', dict(language_dim=48), ['model.merger.language_dim', '48', 'model.language_model.width', '32']),
    ('position_encoding', dict(head_dim=16, sections=[2, 3, 3]),
     ['model.position_encoding.head_dim', '16', 'model.language_model', '8']),
    ('vision_encoder', dict(merge_size=4), ['model.vision_encoder.merge_size', '4', 'model.merger.merge_size', '2']),
    ('position_encoding', dict(sections=[1, 1, 1]),
     ['model.position_encoding.sections', '3', 'model.language_model', '4']),
    ('language_model', dict(num_heads=8), ['model.position_encoding.sections', '4', 'model.language_model', '2']),
    ('merger', dict(merge_size=3), ['model.vision_encoder.window_size', '16', 'model.merger.merge_size', '3']),
    ('vision_encoder', dict(window_size=20),
     ['model.vision_encoder.window_size', '20', 'model.merger.merge_size', '2']),
    ('vision_encoder', dict(num_heads=3), ['model.vision_encoder', 'width 32', 'num_heads 3']),
    ('vision_encoder', dict(full_attention_blocks=[3]),
     ['model.vision_encoder.full_attention_blocks', '[3]', 'depth 3']),
    ('language_model', dict(num_kv_heads=3), ['model.language_model', 'num_heads 4', 'num_kv_heads 3']),
    ('merger', dict(merge_size=0), ['model.merger.merge_size', '0']),
    ('merger', dict(merge_size=True), ['model.merger.merge_size', 'True']),
    ('merger', dict(type='PatchMergr'), ['model.merger.type', "'PatchMergr'", "did you mean 'PatchMerger'"]),
    ('language_model', dict(widht=32), ['model.language_model.widht', "did you mean 'width'"]),
])
def test_a_misfit_is_refused_with_numbers_and_keys(model_config, slot, changes, words):
    config = model_config()
    config[slot].update(changes)
    with pytest.raises(ValueError) as error:
        build_model(config)
    assert all(word in str(error.value) for word in words), error.value


def test_values_that_agree_with_the_chain_may_be_stated(model_config):
    config = model_config()
    config['merger'].update(vision_dim=32, language_dim=32)
    config['vision_encoder'].update(merge_size=2)
    config['position_encoding'].update(head_dim=8)
    build_model(config)


@pytest.mark.parametrize('slot', ['vision_encoder', 'merger', 'position_encoding', 'language_model'])
def test_an_empty_slot_and_a_wrong_value_are_named(model_config, slot):
    config = model_config()
    config[slot] = config[slot]['type']
    with pytest.raises(ValueError, match=rf"model\.{slot}: expected a dict with the key 'type', got '"):
        build_model(config)
    del config[slot]
    with pytest.raises(ValueError, match=rf'recipe\.model\.{slot}: this slot is empty'):
        build_model(config, config_key='recipe.model')


def test_widths_follow_from_one_change(model_config):
    """A wider encoder, a wider decoder and a larger merge cell: no second edit."""
    config = model_config(merge_size=4)
    config['vision_encoder'].update(width=48)
    config['language_model'].update(width=64)
    config['position_encoding'].update(sections=[2, 2, 4])
    model = build_model(config, device='meta')
    assert model.merger.ln_q.weight.shape == (48,)
    assert model.merger.mlp[0].weight.shape == (48 * 16, 48 * 16)
    assert model.merger.mlp[2].weight.shape == (64, 48 * 16)
    assert (model.geometry.merge_size, model.geometry.factor, model.vision_encoder.merge_size) == (4, 16, 4)
    assert model.merger.num_tokens((1, 8, 12)) == 6


def test_the_vocabulary_comes_from_the_tokenizer_where_the_config_leaves_it_open(model_config):
    config = model_config()
    assert build_model(config, vocab_size=30).language_model.vocab_size == 40  # spare rows are kept
    with pytest.raises(ValueError, match=r'model\.language_model\.vocab_size: 40 rows .* 41 tokens .*tokenizer'):
        build_model(config, vocab_size=41)
    del config['language_model']['vocab_size']
    assert build_model(config, vocab_size=33).language_model.embed_tokens.weight.shape == (33, 32)
    with pytest.raises(ValueError, match=r'model\.language_model\.vocab_size'):
        build_model(config)


def test_a_seed_draws_the_same_weights_whatever_was_drawn_before(model_config):
    first = build_model(model_config(), seed=3).state_dict()
    torch.rand(5)
    again = build_model(model_config(), seed=3).state_dict()
    other = build_model(model_config(), seed=4).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert any(not torch.equal(value, other[name]) for name, value in first.items())
    for name, value in first.items():
        if name.endswith('bias'):
            assert not value.any(), name
        elif value.ndim == 1:
            assert (value == 1).all(), name
        else:
            assert float(value.std()) == pytest.approx(value.shape[1] ** -0.5, rel=0.15), name
            assert abs(float(value.mean())) < 0.1 * float(value.std()), name


def test_dtype_and_attention_reach_every_part(model_config):
    from qvlkit.models.layers.attention import eager
    model = build_model(model_config(attention='eager'), dtype=torch.float64)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    backends = [module.attend for module in model.modules() if hasattr(module, 'attend')]
    assert len(backends) == 5 and all(backend is eager for backend in backends)


def test_the_config_is_not_changed(model_config):
    config = model_config()
    build_model(config, vocab_size=30, seed=0)
    assert config == model_config()


def test_a_tied_head_is_the_embedding(model_config):
    config = model_config()
    config['language_model'].update(tie_embeddings=True)
    tied = build_model(config).language_model
    assert tied.head_weight is tied.embed_tokens.weight
    assert not any('lm_head' in name for name, _ in tied.named_parameters())
    config['language_model'].update(tie_embeddings=False)
    untied = build_model(config).language_model
    assert untied.head_weight is untied.lm_head.weight
