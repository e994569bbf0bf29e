import copy
import math

import pytest

from qvlkit.convert.config_mapping import model_from_config, read_values, updated_config, values_from_model

# The keys of the released 3B config.json that matter here, flat form.
RELEASED_3B = {
    'architectures': ['Qwen2_5_VLForConditionalGeneration'], 'attention_dropout': 0.0, 'bos_token_id': 151643,
    'eos_token_id': 151645, 'image_token_id': 151655, 'hidden_act': 'silu', 'hidden_size': 2048,
    'intermediate_size': 11008, 'max_position_embeddings': 128000, 'max_window_layers': 70, 'model_type': 'qwen2_5_vl',
    'num_attention_heads': 16, 'num_hidden_layers': 36, 'num_key_value_heads': 2, 'rms_norm_eps': 1e-06,
    'rope_theta': 1000000.0, 'sliding_window': 32768, 'tie_word_embeddings': True, 'torch_dtype': 'bfloat16',
    'use_cache': True, 'use_sliding_window': False,
    'vision_config': {'depth': 32, 'hidden_act': 'silu', 'hidden_size': 1280, 'intermediate_size': 3420,
                      'num_heads': 16, 'in_chans': 3, 'out_hidden_size': 2048, 'patch_size': 14,
                      'spatial_merge_size': 2, 'spatial_patch_size': 14, 'window_size': 112,
                      'fullatt_block_indexes': [7, 15, 23, 31], 'tokens_per_second': 2, 'temporal_patch_size': 2},
    'rope_scaling': {'type': 'mrope', 'mrope_section': [16, 24, 24]}, 'vocab_size': 151936}
MODEL_3B = dict(
    vision_encoder=dict(type='Qwen25ViT', width=1280, depth=32, num_heads=16, feed_forward_width=3420, patch_size=14,
                        temporal_patch_size=2, window_size=112, full_attention_blocks=[7, 15, 23, 31]),
    merger=dict(type='PatchMerger', merge_size=2),
    position_encoding=dict(type='AbsoluteTimeMRoPE', sections=[16, 24, 24], tokens_per_second=2, theta=1e6),
    language_model=dict(type='Qwen2Decoder', width=2048, depth=36, num_heads=16, num_kv_heads=2,
                        feed_forward_width=11008, vocab_size=151936, tie_embeddings=True, norm_eps=1e-6),
    attention='sdpa')
TEXT_KEYS = ('hidden_size', 'intermediate_size', 'num_attention_heads', 'num_hidden_layers', 'num_key_value_heads',
             'rms_norm_eps', 'vocab_size', 'hidden_act', 'use_sliding_window', 'attention_dropout')


def nested():
    """The same model as transformers 5 writes it."""
    config = copy.deepcopy(RELEASED_3B)
    text = {key: config.pop(key) for key in TEXT_KEYS}
    text['rope_parameters'] = {'rope_type': 'default', 'mrope_section': [16, 24, 24],
                               'rope_theta': config.pop('rope_theta')}
    del config['rope_scaling']
    config['vision_config']['rope_parameters'] = {'rope_type': 'axial', 'rope_theta': 10000.0}
    text['layer_types'] = ['full_attention'] * 36
    return {**config, 'text_config': text}


def changed(path, value):
    """RELEASED_3B with one key changed."""
    config = copy.deepcopy(RELEASED_3B)
    *sections, key = path.split('.')
    table = config
    for section in sections:
        table = table[section]
    table[key] = value
    return config


def test_flat_and_nested_forms_give_the_same_model():
    assert model_from_config(RELEASED_3B) == MODEL_3B
    assert model_from_config(nested()) == MODEL_3B


def test_absent_keys_have_the_reference_defaults():
    from transformers import Qwen2_5_VLConfig
    reference = Qwen2_5_VLConfig()
    bare = {'model_type': 'qwen2_5_vl', 'vision_config': {'out_hidden_size': 8192}}
    model = model_from_config(bare)
    vision, text = reference.vision_config, reference.text_config
    assert model['vision_encoder'] == dict(
        type='Qwen25ViT', width=vision.hidden_size, depth=vision.depth, num_heads=vision.num_heads,
        feed_forward_width=vision.intermediate_size, patch_size=vision.patch_size,
        temporal_patch_size=vision.temporal_patch_size, window_size=vision.window_size,
        full_attention_blocks=list(vision.fullatt_block_indexes))
    assert model['merger']['merge_size'] == vision.spatial_merge_size
    assert model['position_encoding'] == dict(type='AbsoluteTimeMRoPE', sections=[16, 24, 24], theta=1e6,
                                              tokens_per_second=vision.tokens_per_second)
    assert model['language_model'] == dict(
        type='Qwen2Decoder', width=text.hidden_size, depth=text.num_hidden_layers, num_heads=text.num_attention_heads,
        num_kv_heads=text.num_key_value_heads, feed_forward_width=text.intermediate_size, vocab_size=text.vocab_size,
        tie_embeddings=reference.tie_word_embeddings, norm_eps=text.rms_norm_eps)
    assert (model['vision_encoder']['width'], model['language_model']['norm_eps']) == (3584, 1e-5)


def test_tying_may_stand_in_the_text_section():
    config = nested()
    del config['tie_word_embeddings']
    assert not read_values(config)['tie_word_embeddings']
    config['text_config']['tie_word_embeddings'] = True
    assert read_values(config)['tie_word_embeddings']


@pytest.mark.parametrize('family', ['qwen2_vl', 'qwen3_vl', 'llava', None])
def test_other_families_are_refused(family):
    with pytest.raises(ValueError, match=f'model_type: {family!r} is a config of another model family'):
        model_from_config(changed('model_type', family))


@pytest.mark.parametrize('kind', ['yarn', 'linear', 'dynamic', 'longrope', 'llama3'])
@pytest.mark.parametrize('key', ['type', 'rope_type'])
def test_scaled_positions_are_refused_by_name(kind, key):
    with pytest.raises(ValueError, match=f'rope_scaling.{key}: {kind!r}'):
        model_from_config(changed('rope_scaling', {key: kind, 'factor': 4, 'mrope_section': [16, 24, 24]}))


@pytest.mark.parametrize('path, value', [
    ('use_sliding_window', True), ('hidden_act', 'gelu'), ('vision_config.hidden_act', 'quick_gelu'),
    ('attention_bias', False), ('mlp_bias', True), ('attention_dropout', 0.1), ('vision_config.depth', '32'),
    ('vision_config.patch_size', [14, 14]), ('num_hidden_layers', True), ('rms_norm_eps', math.nan),
    ('vocab_size', math.inf), ('head_dim', 64), ('vision_config.out_hidden_size', 3584),
    ('rope_scaling.mrope_section', [16, 24, 23]), ('vision_config', 7),
    ('quantization_config', {'quant_method': 'awq'}),
    ('layer_types', ['full_attention', 'sliding_attention']), ('rope_scaling.partial_rotary_factor', 0.5),
    ('vision_config.rope_parameters', {'rope_type': 'axial', 'rope_theta': 5.0})])
def test_what_our_parts_do_not_compute_is_refused_by_name(path, value):
    with pytest.raises(ValueError, match=path.rpartition('.')[2]):
        model_from_config(changed(path, value))


@pytest.mark.parametrize('base', [RELEASED_3B, nested()])
def test_an_unchanged_model_leaves_the_config_alone(base):
    assert updated_config(base, values_from_model(MODEL_3B), dtype='bfloat16') is base


@pytest.mark.parametrize('base', [RELEASED_3B, nested(), None])
@pytest.mark.parametrize('slot, key, value', [
    ('language_model', 'depth', 4), ('language_model', 'tie_embeddings', False), ('language_model', 'vocab_size', 500),
    ('position_encoding', 'theta', 5e6), ('position_encoding', 'sections', [24, 20, 20]),
    ('position_encoding', 'tokens_per_second', 4), ('vision_encoder', 'full_attention_blocks', [31]),
    ('merger', 'merge_size', 4)])
def test_a_changed_model_changes_the_config_and_reads_back(base, slot, key, value):
    model = copy.deepcopy(MODEL_3B)
    model[slot][key] = value
    before = copy.deepcopy(base)
    config = updated_config(base, values_from_model(model), dtype='float32', token_ids={'image_token_id': 7})
    assert base == before
    assert model_from_config(config) == model
    assert config['image_token_id'] == 7 and config['torch_dtype'] == 'float32'


def test_a_new_language_width_reaches_the_merger():
    model = copy.deepcopy(MODEL_3B)
    model['language_model'].update(width=4096, num_heads=32)
    config = updated_config(RELEASED_3B, values_from_model(model), dtype='bfloat16')
    assert config['vision_config']['out_hidden_size'] == 4096


def test_defaults_of_our_parts_are_filled_in():
    model = copy.deepcopy(MODEL_3B)
    for key in ('window_size', 'patch_size', 'full_attention_blocks'):
        del model['vision_encoder'][key]
    del model['language_model']['vocab_size']
    assert values_from_model(model, vocab_size=151936) == read_values(RELEASED_3B)


@pytest.mark.parametrize('slot, key, value, message', [
    ('merger', 'type', 'AveragePoolMerger', "model.merger.type: 'AveragePoolMerger' has no counterpart"),
    ('vision_encoder', 'norm_eps', 1e-5, 'model.vision_encoder.norm_eps: 1e-05 cannot be exported'),
    ('vision_encoder', 'dept', 3, "model.vision_encoder.dept: Qwen25ViT has no argument 'dept', did you mean 'depth'"),
    ('position_encoding', 'tokens_per_second', 2.5, 'model.position_encoding.tokens_per_second: expected'),
    ('language_model', 'vocab_size', None, 'model.language_model.vocab_size')])
def test_what_hugging_face_lacks_cannot_be_exported(slot, key, value, message):
    model = copy.deepcopy(MODEL_3B)
    model[slot][key] = value
    with pytest.raises(ValueError, match=message):
        values_from_model(model)
