"""Parameters of the 3B, 7B and 72B configs, whole and by part: counted in transformers' models, and by hand."""
import pytest

from qvlkit.config import load_config
from qvlkit.models.builder import build_model

# config: encoder, merger, embedding, decoder layers and final norm, output head, all
GOLDEN = {
    'qwen25vl_3b': (631_975_680, 36_708_608, 311_164_928, 2_774_773_760, 0, 3_754_622_976),
    'qwen25vl_7b': (631_975_680, 44_574_464, 544_997_376, 6_525_621_760, 544_997_376, 8_292_166_656),
    'qwen25vl_72b': (636_401_664, 68_172_032, 1_245_708_288, 70_214_787_072, 1_245_708_288, 73_410_777_344),
}


def count(module):
    return 0 if module is None else sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize('name', GOLDEN)
def test_parameter_counts(name):
    model = build_model(load_config(name)['model'], device='meta')
    language_model = model.language_model
    embedding, head = count(language_model.embed_tokens), count(language_model.lm_head)
    assert (count(model.vision_encoder), count(model.merger), embedding, count(language_model) - embedding - head,
            head, count(model)) == GOLDEN[name]


def test_parameters_of_one_block_and_one_layer():
    model = build_model(load_config('qwen25vl_3b')['model'], device='meta')
    assert count(model.vision_encoder.patch_embed) == 1_505_280
    assert {count(block) for block in model.vision_encoder.blocks} == {19_702_200}
    assert {count(layer) for layer in model.language_model.layers} == {77_076_992}


def test_no_config_uses_other_shapes_than_the_released_ones():
    """Widths that no count shows: heads, window, full-attention blocks, sections, base and time scale."""
    for name, heads, kv_heads in (('qwen25vl_3b', 16, 2), ('qwen25vl_7b', 28, 4), ('qwen25vl_72b', 64, 8)):
        model = build_model(load_config(name)['model'], device='meta')
        encoder, positions, decoder = model.vision_encoder, model.position_encoding, model.language_model
        assert (encoder.num_heads, encoder.window_size) == (16, 112)
        assert sorted(encoder.full_attention_blocks) == [7, 15, 23, 31]
        assert (positions.sections, positions.theta, positions.tokens_per_second) == ((16, 24, 24), 1e6, 2)
        assert (decoder.num_heads, decoder.num_kv_heads, decoder.head_dim) == (heads, kv_heads, 128)
        assert {module.eps for module in model.modules() if hasattr(module, 'eps')} == {1e-6}
