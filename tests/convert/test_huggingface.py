"""Folder -> ours -> folder, against folders that transformers wrote."""
import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from qvlkit.cli.convert import main
from qvlkit.convert.folders import open_folder
from qvlkit.convert.huggingface import describe, from_hf, save_pretrained, to_hf
from qvlkit.convert.load import load, load_model
from qvlkit.convert.weight_files import WeightFiles

CARRIED = ('tokenizer.json', 'tokenizer_config.json', 'preprocessor_config.json', 'video_preprocessor_config.json',
           'generation_config.json', 'chat_template.jinja')


def contents(folder):
    """{name: (kind, bytes)} of all tensors."""
    files = WeightFiles(folder)
    return {name: (files.dtype(name), files.shape(name), files.read(name).view(torch.uint8).numpy().tobytes())
            for name in files.names()}


def rewrite(folder, change):
    """Pass the tensors of a single-file folder through `change`."""
    file = folder / 'model.safetensors'
    tensors = {name: tensor.clone() for name, tensor in change(load_file(file)).items()}
    save_file(tensors, file, metadata={'format': 'pt'})


def there_and_back(source, tmp_path, **options):
    from_hf(source, tmp_path / 'ours', **options)
    to_hf(tmp_path / 'ours', tmp_path / 'back', **options)
    return tmp_path / 'back'


@pytest.mark.parametrize('name', ['untied', 'tied'])
def test_there_and_back_is_the_same_folder(folders, tmp_path, name):
    source = folders[name]
    back = there_and_back(source, tmp_path)
    assert contents(back) == contents(source)
    assert ('lm_head.weight' in contents(back)) == (name == 'untied')
    for file in ('config.json', *CARRIED):
        assert (back / file).read_bytes() == (source / file).read_bytes(), file
    assert {file.name for file in back.iterdir()} == {file.name for file in source.iterdir()}


def test_the_converted_folder_has_our_names(folders, tmp_path):
    from_hf(folders['tied'], tmp_path / 'ours')
    model = load_model(tmp_path / 'ours')
    assert {name: shape for name, (_, shape, _) in contents(tmp_path / 'ours').items()} == {
        name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert json.loads((tmp_path / 'ours' / 'model.json').read_text())['model'] == open_folder(folders['tied']).model
    assert not (tmp_path / 'ours' / 'config.json').exists()  # or transformers would load it, with random weights


def new_names(tensors):
    return {name.replace('visual.', 'model.visual.', 1) if name.startswith('visual.') else
            name.replace('model.', 'model.language_model.', 1) if name.startswith('model.') else name: tensor
            for name, tensor in tensors.items()}


def test_new_names_are_read_and_released_names_written(released, folders, tmp_path):
    rewrite(released, new_names)
    assert 'model.language_model.norm.weight' in contents(released)
    assert contents(there_and_back(released, tmp_path)) == contents(folders['untied'])


def test_a_flat_config_is_read_and_carried(released, tmp_path):
    nested = json.loads((released / 'config.json').read_text())
    text = nested.pop('text_config')
    rope = text.pop('rope_parameters')
    del text['model_type'], nested['vision_config']['rope_parameters']
    flat = {**nested, **text, 'rope_theta': rope['rope_theta'], 'torch_dtype': 'float32',
            'rope_scaling': {'type': 'mrope', 'mrope_section': rope['mrope_section']}}
    expected = open_folder(released).model
    (released / 'config.json').write_text(json.dumps(flat))
    assert open_folder(released).model == expected
    back = there_and_back(released, tmp_path)
    assert json.loads((back / 'config.json').read_text()) == flat


def test_shards_in_and_out(folders, tmp_path):
    from transformers import Qwen2_5_VLForConditionalGeneration
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folders['untied'])
    model.save_pretrained(tmp_path / 'sharded', max_shard_size='300KB')
    assert (tmp_path / 'sharded' / 'model.safetensors.index.json').exists()
    back = there_and_back(tmp_path / 'sharded', tmp_path, max_shard_size='200KB')
    assert len(list(back.glob('*.safetensors'))) > 3
    assert contents(back) == contents(folders['untied'])
    again = Qwen2_5_VLForConditionalGeneration.from_pretrained(back)
    for (name, one), (_, other) in zip(model.state_dict().items(), again.state_dict().items()):
        assert torch.equal(one, other), name


def test_bfloat16_stays_bfloat16_bit_for_bit(released, tmp_path):
    rewrite(released, lambda tensors: {name: tensor.bfloat16() for name, tensor in tensors.items()})
    back = there_and_back(released, tmp_path)
    assert contents(back) == contents(released)
    assert load_model(released).merger.ln_q.weight.dtype == torch.bfloat16
    assert load_model(released, dtype=torch.float64).merger.ln_q.weight.dtype == torch.float64


def test_export_in_another_dtype_says_so_in_the_config(folders, tmp_path):
    from_hf(folders['untied'], tmp_path / 'ours')
    to_hf(tmp_path / 'ours', tmp_path / 'back', dtype=torch.bfloat16)
    assert {kind for kind, *_ in contents(tmp_path / 'back').values()} == {torch.bfloat16}
    assert json.loads((tmp_path / 'back' / 'config.json').read_text())['dtype'] == 'bfloat16'


def test_a_redundant_tied_head_must_equal_the_embedding(folders, tmp_path):
    source = shutil.copytree(folders['tied'], tmp_path / 'source')
    rewrite(source, lambda tensors: {**tensors, 'lm_head.weight': tensors['model.embed_tokens.weight']})
    assert contents(there_and_back(source, tmp_path)) == contents(folders['tied'])
    rewrite(source, lambda tensors: {**tensors, 'lm_head.weight': tensors['lm_head.weight'] + 1})
    with pytest.raises(ValueError, match="'lm_head.weight' differs from 'model.embed_tokens.weight'"):
        load_model(source)


def test_missing_left_over_and_misshapen_tensors_are_all_listed(released, tmp_path):
    def spoil(tensors):
        del tensors['model.norm.weight'], tensors['lm_head.weight']
        return {**tensors, 'visual.extra.weight': torch.zeros(2), 'model.layers.0.self_attn.rotary_emb.inv_freq':
                torch.zeros(8), 'visual.merger.mlp.2.bias': torch.zeros(65),
                'visual.patch_embed.proj.weight': torch.zeros(64, 3, 2, 14, 7)}
    rewrite(released, spoil)
    with pytest.raises(ValueError) as error:
        from_hf(released, tmp_path / 'ours')
    for part in ('2 missing: model.norm.weight, lm_head.weight', '2 left over', 'visual.extra.weight', 'inv_freq',
                 'visual.merger.mlp.2.bias has (65,), expected (64,)',
                 'visual.patch_embed.proj.weight has (64, 3, 2, 14, 7), expected (64, 3, 2, 14, 14)'):
        assert part in str(error.value)
    assert not list(tmp_path.glob('ours*'))  # nothing half-written stays


def test_long_lists_are_cut_and_counted(released):
    rewrite(released, lambda tensors: {**tensors, **{f'extra.{i}': torch.zeros(1) for i in range(30)}})
    with pytest.raises(ValueError, match='30 left over: .*, and 10 more'):
        load_model(released)


def test_code_beside_the_weights_is_neither_run_nor_copied(released, tmp_path, caplog):
    marker = tmp_path / 'marker'
    (released / 'modeling_x.py').write_text(f'open({str(marker)!r}, "w")')
    config = json.loads((released / 'config.json').read_text())
    config['auto_map'] = {'AutoModel': 'modeling_x.Model', 'AutoProcessor': 'modeling_x.Processor'}
    (released / 'config.json').write_text(json.dumps(config))
    with caplog.at_level(logging.WARNING):
        back = there_and_back(released, tmp_path)
        load(released)
    assert 'modeling_x.py' in caplog.text
    assert not marker.exists() and not list(tmp_path.glob('ours/*.py')) and not list(back.glob('*.py'))


def test_save_pretrained_of_a_changed_model(folders, tmp_path):
    model, processor = load(folders['untied'])
    with torch.no_grad():
        model.merger.ln_q.weight.add_(1)
    save_pretrained(model, tmp_path / 'with', source=folders['untied'])
    save_pretrained(model, tmp_path / 'without', processor=processor)
    expected = contents(folders['untied'])
    for name in ('with', 'without'):
        got = contents(tmp_path / name)
        assert {key for key in got if got[key] != expected[key]} == {'visual.merger.ln_q.weight'} and len(got) == len(
            expected)
        assert open_folder(tmp_path / name).model == open_folder(folders['untied']).model
        again, _ = load(tmp_path / name)
        assert torch.equal(again.merger.ln_q.weight, model.merger.ln_q.weight)
    assert (tmp_path / 'with' / 'config.json').read_bytes() == (folders['untied'] / 'config.json').read_bytes()
    ids = json.loads((tmp_path / 'without' / 'config.json').read_text())
    assert ids['image_token_id'] == processor.tokenizer.special_id('<|image_pad|>')


def test_a_model_without_counterpart_cannot_be_saved(folders, tmp_path):
    model = load_model(folders['untied'])
    model.vision_encoder.blocks[0].norm1.eps = 1e-5
    with pytest.raises(ValueError, match='norm_eps: 1e-05 cannot be exported'):
        save_pretrained(model, tmp_path / 'out')
    model.merger = torch.nn.Identity()
    with pytest.raises(ValueError, match="model.merger.type: 'Identity' has no counterpart"):
        save_pretrained(model, tmp_path / 'out')
    assert describe(model)['merger'] == {'type': 'Identity'} and not (tmp_path / 'out').exists()


def test_a_training_checkpoint_is_exported(folders, tmp_path):
    from qvlkit.engine.checkpoint import save_checkpoint
    model, processor = load(folders['tied'])
    config = {'model': describe(model), 'tokenizer': {'type': 'HFTokenizer', 'path': str(folders['tied'])}}
    del config['model']['language_model']['vocab_size']  # left to the tokenizer

    def write_more(folder):
        (folder / 'config.json').write_text(json.dumps(config))
        processor.save(folder)
    for step in (1, 2):
        with torch.no_grad():
            model.merger.ln_q.weight.add_(1)
        save_checkpoint(tmp_path / 'sft', step, tensors={'model.safetensors': model.state_dict()}, state={'step': step},
                        write_more=write_more)
    to_hf(tmp_path / 'sft', tmp_path / 'back')
    got, expected = contents(tmp_path / 'back'), contents(folders['tied'])
    assert {key for key in expected if got[key] != expected[key]} == {'visual.merger.ln_q.weight'}
    assert (tmp_path / 'back' / 'config.json').read_bytes() == (folders['tied'] / 'config.json').read_bytes()
    assert (tmp_path / 'back' / 'generation_config.json').exists()
    for folder in (tmp_path / 'sft', tmp_path / 'sft' / 'step_2', tmp_path / 'back'):
        assert torch.equal(load(folder)[0].merger.ln_q.weight, model.merger.ln_q.weight)
    weights = tmp_path / 'sft' / 'step_2' / 'model.safetensors'
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match='model.safetensors: its content is not what was written'):
        load(tmp_path / 'sft' / 'step_2')


def test_the_command(folders, tmp_path, capsys):
    source, ours, back = str(folders['tied']), str(tmp_path / 'ours'), str(tmp_path / 'back')
    assert main(['from-hf', source, ours, '--max-shard-size', '200KB']) == 0
    assert main(['to-hf', ours, back]) == 0
    assert contents(back) == contents(source)
    capsys.readouterr()
    for arguments, message in ((['to-hf', ours, back], 'nothing is overwritten'),
                               (['to-hf', source, back + '2'], 'is a Hugging Face folder already'),
                               (['from-hf', ours, back + '2'], 'expected a Hugging Face folder'),
                               (['from-hf', source, back + '2', '--dtype', 'float16'], 'belong to to-hf'),
                               (['from-hf', str(tmp_path / 'absent'), back + '2'], 'no such folder'),
                               (['from-hf', source, back + '2', '--max-shard-size', '5 apples'], 'max_shard_size')):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error and error.count('\n') == 1
    assert not (tmp_path / 'back2').exists()
