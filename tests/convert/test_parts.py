"""One part from each kind of folder, against folders that transformers or our own trainer wrote."""
import json
import logging
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from qvlkit.convert.huggingface import describe, from_hf
from qvlkit.convert.load import load_model
from qvlkit.convert.parts import load_part
from qvlkit.engine.checkpoint import save_checkpoint
from qvlkit.models.builder import build_model
from qvlkit.structures import AttentionPlan

ROWS, WIDTH = 300, 64
PARTS = ('vision_encoder', 'merger', 'language_model')


@pytest.fixture
def model(folders):
    """A model of the released folder's sizes with other weights."""
    return build_model(describe(load_model(folders['untied'])), seed=7)


def write_text_checkpoint(folder, *, rows=ROWS, tied=False, **changes):
    """A Qwen2ForCausalLM with random weights, as transformers writes it."""
    from transformers import Qwen2Config, Qwen2ForCausalLM
    torch.manual_seed(3)
    config = Qwen2Config(**{**dict(
        vocab_size=rows, hidden_size=WIDTH, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, rms_norm_eps=1e-6, tie_word_embeddings=tied, bos_token_id=1, eos_token_id=2,
        rope_parameters=dict(rope_type='default', rope_theta=1e6)), **changes})
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    return model.eval()


def state_of(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_only_this_part_is_loaded(model, part, source, expected):
    before = state_of(model)
    load_part(model, part, source)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name] if name.startswith(f'{part}.') else before[name]), name
    assert any(not torch.equal(before[name], expected[name]) for name in before if name.startswith(f'{part}.'))


@pytest.mark.parametrize('part', PARTS)
def test_from_a_released_and_from_a_converted_folder(model, folders, tmp_path, part):
    expected = load_model(folders['untied']).state_dict()
    from_hf(folders['untied'], tmp_path / 'ours')
    other = build_model(describe(model), seed=8)
    assert_only_this_part_is_loaded(model, part, folders['untied'], expected)
    assert_only_this_part_is_loaded(other, part, tmp_path / 'ours', expected)


@pytest.mark.parametrize('part', PARTS)
def test_from_a_stage_and_into_any_module(model, tmp_path, part):
    trained = build_model(describe(model), seed=9)

    def write_config(folder):
        (folder / 'config.json').write_text(json.dumps({'model': describe(trained)}))
    save_checkpoint(tmp_path / 'sft', 1, tensors={'model.safetensors': trained.state_dict()}, state={'step': 1},
                    write_more=write_config)
    assert_only_this_part_is_loaded(model, part, tmp_path / 'sft', trained.state_dict())
    pair = nn.ModuleDict({part: getattr(build_model(describe(model), seed=1), part), 'other': nn.Linear(2, 2)})
    assert_only_this_part_is_loaded(pair, part, tmp_path / 'sft' / 'step_1', trained.state_dict())


def text_logits(model, ids):
    positions = torch.arange(len(ids)).expand(3, -1)
    decoder = model.language_model
    return decoder.logits(decoder(decoder.embed(ids), model.position_encoding.rotary(positions),
                                  AttentionPlan.from_lengths([len(ids)], causal=True)))


@pytest.mark.parametrize('tied', [False, True])
@pytest.mark.parametrize('ours_tied', [False, True])
@torch.no_grad()
def test_a_text_checkpoint_answers_as_before(model, tmp_path, tied, ours_tied):
    reference = write_text_checkpoint(tmp_path, tied=tied)
    config = describe(model)
    config['language_model']['tie_embeddings'] = ours_tied
    model = build_model(config, seed=7)
    if ours_tied and not tied:
        before = state_of(model)
        with pytest.raises(ValueError, match=r"'lm_head.weight' differs from 'model.embed_tokens.weight'"):
            load_part(model, 'language_model', tmp_path)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        return
    load_part(model, 'language_model', tmp_path)
    ids = torch.arange(40) * 7 % ROWS
    expected = reference(ids[None]).logits[0]
    assert (text_logits(model, ids) - expected).norm() < 1e-5 * expected.norm()


def test_further_rows_of_ours_keep_their_first_weights(model, tmp_path, caplog):
    reference = write_text_checkpoint(tmp_path, rows=280).state_dict()
    before = state_of(model.language_model)
    with caplog.at_level(logging.WARNING):
        load_part(model, 'language_model', tmp_path)
    assert 'has 280 rows; rows 280 to 299 of language_model.embed_tokens.weight keep' in caplog.text
    after = model.language_model.state_dict()
    for name, released in (('embed_tokens.weight', 'model.embed_tokens.weight'), ('lm_head.weight', 'lm_head.weight')):
        assert torch.equal(after[name][:280], reference[released])
        assert torch.equal(after[name][280:], before[name][280:])


@pytest.mark.parametrize('changes, complaint', [
    (dict(rows=320), 'model.embed_tokens.weight has (320, 64), expected (300, 64)'),
    (dict(intermediate_size=80), 'has (80, 64), expected (96, 64)'),
    (dict(num_hidden_layers=1), '12 missing: language_model.layers.1.input_layernorm.weight'),
    (dict(num_hidden_layers=3), 'left over: model.layers.2.input_layernorm.weight'),
])
def test_what_does_not_fit_is_refused_before_anything_is_copied(model, tmp_path, changes, complaint):
    write_text_checkpoint(tmp_path, **changes)
    before = state_of(model)
    with pytest.raises(ValueError, match=re.escape(complaint)) as error:
        load_part(model, 'language_model', tmp_path)
    assert f'{tmp_path}: the tensors do not fit the language_model' in str(error.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_misshapen_patch_embedding_is_seen_through_its_other_shape(model, released):
    file = released / 'model.safetensors'
    save_file({name: tensor[..., :7].contiguous() if 'patch_embed' in name else tensor
               for name, tensor in load_file(file).items()}, file, metadata={'format': 'pt'})
    with pytest.raises(ValueError, match=re.escape('has (64, 3, 2, 14, 7), expected (64, 3, 2, 14, 14)')):
        load_part(model, 'vision_encoder', released)
    load_part(model, 'merger', released)  # what lies in other parts does not matter


def test_wrong_names_and_wrong_folders(model, folders, tmp_path):
    with pytest.raises(ValueError, match="no such part, did you mean 'merger'"):
        load_part(model, 'merge', folders['untied'])
    with pytest.raises(FileNotFoundError, match='no such folder'):
        load_part(model, 'merger', tmp_path / 'absent')
    with pytest.raises(ValueError, match='not a model folder'):
        load_part(model, 'merger', tmp_path)
    write_text_checkpoint(tmp_path / 'text')
    with pytest.raises(ValueError, match="model_type: 'qwen2' does not fit the merger, a PatchMerger; expected one of "
                                         "'qwen2_5_vl', or a folder of ours"):
        load_part(model, 'merger', tmp_path / 'text')
    model.tower = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="hold nothing of 'tower'; parts there: language_model, merger, vision_enc"):
        load_part(model, 'tower', folders['untied'])
