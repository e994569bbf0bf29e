"""The config's language model as text tower: the decoder's own hidden states, and its weights by their usual names."""
import pytest
import torch

from qvlkit.structures import TextSpan


@pytest.mark.parametrize('positions', ['AbsoluteTimeMRoPE', 'RoPE1D'])
def test_it_is_the_decoders_last_hidden_state_projected(make_towers, make_pairs, join_pairs, make_model, positions):
    model = make_towers(text_tower='LanguageModelTower', parts=dict(position_encoding=positions))
    vlm = make_model(dtype=torch.float64, position_encoding=positions)
    vlm.language_model.load_state_dict(model.language_model.state_dict())
    pairs = make_pairs(model)
    embedded = model.text_tower(join_pairs(model, pairs))
    for pair, row in zip(pairs, embedded):
        decoder, encoding = vlm.language_model, vlm.position_encoding
        rotary = encoding.rotary(encoding.ids([TextSpan(len(pair.token_ids))]))
        plan = join_pairs(model, [pair]).attention
        hidden = decoder(decoder.embed(pair.token_ids), rotary, plan)
        torch.testing.assert_close(row, model.text_tower.proj(hidden[-1]), rtol=0, atol=1e-10)


def test_its_weights_are_the_part_language_model(make_towers, make_model):
    model = make_towers(text_tower='LanguageModelTower')
    names = set(model.state_dict())
    assert {name for name in make_model().state_dict() if name.startswith('language_model.')} == {
        name for name in names if name.startswith('language_model.')}
    assert [name for name in names if name.startswith('text_tower.')] == ['text_tower.proj.weight']
    assert list(model.parts()) == ['vision_encoder', 'pooling', 'text_tower', 'language_model', 'temperature']


def test_moving_the_towers_moves_what_the_tower_uses(make_towers, make_pairs, join_pairs):
    """The tower holds no second copy."""
    model = make_towers(text_tower='LanguageModelTower').float()
    batch = join_pairs(model, make_pairs(model))
    before = model.embed_texts(batch)
    assert before.dtype == torch.float32
    with torch.no_grad():
        model.language_model.norm.weight[0] += 1
    assert not torch.equal(model.embed_texts(batch), before)
