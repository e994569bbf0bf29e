import pytest

from qvlkit.convert.key_mapping import map_names, our_name, released_name, released_shape
from qvlkit.structures import VisionGeometry

ROWS = [
    ('visual.patch_embed.proj.weight', 'model.visual.patch_embed.proj.weight',
     'vision_encoder.patch_embed.proj.weight'),
    ('visual.blocks.3.attn.qkv.bias', 'model.visual.blocks.3.attn.qkv.bias', 'vision_encoder.blocks.3.attn.qkv.bias'),
    ('visual.merger.mlp.0.weight', 'model.visual.merger.mlp.0.weight', 'merger.mlp.0.weight'),
    ('model.embed_tokens.weight', 'model.language_model.embed_tokens.weight', 'language_model.embed_tokens.weight'),
    ('model.layers.1.mlp.up_proj.weight', 'model.language_model.layers.1.mlp.up_proj.weight',
     'language_model.layers.1.mlp.up_proj.weight'),
    ('model.norm.weight', 'model.language_model.norm.weight', 'language_model.norm.weight'),
    ('lm_head.weight', 'lm_head.weight', 'language_model.lm_head.weight'),
]


@pytest.mark.parametrize('released, new, ours', ROWS)
def test_both_spellings_become_ours_and_ours_the_released_one(released, new, ours):
    assert our_name(released) == our_name(new) == ours
    assert released_name(ours) == released


def test_names_of_other_architectures_are_unknown():
    assert map_names(['transformer.wte.weight', 'lm_head.weight']) == (
        {'language_model.lm_head.weight': 'lm_head.weight'}, ['transformer.wte.weight'])


def test_one_tensor_in_two_spellings_is_refused():
    with pytest.raises(ValueError, match="'model.norm.weight' and 'model.language_model.norm.weight'"):
        map_names(['model.norm.weight', 'model.language_model.norm.weight'])


def test_a_tensor_of_a_foreign_part_cannot_be_exported():
    with pytest.raises(ValueError, match="'text_tower.weight' has no place"):
        released_name('text_tower.weight')


def test_only_the_patch_embedding_changes_shape():
    geometry = VisionGeometry(14, 2, 2)
    assert released_shape('vision_encoder.patch_embed.proj.weight', (64, 1176), geometry) == (64, 3, 2, 14, 14)
    assert released_shape('merger.mlp.0.weight', (256, 256), geometry) == (256, 256)
