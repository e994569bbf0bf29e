"""A stage with adapters, averages or a freeze schedule: resumed exactly, handed over as plain weights."""
import json

import pytest
import torch
from safetensors.torch import load_file

from qvlkit.config import load_config
from qvlkit.convert.adapted_files import open_weights
from qvlkit.convert.huggingface import load_weights, to_hf
from qvlkit.convert.load import load_model
from qvlkit.convert.parts import load_part
from qvlkit.engine.adapters import adapters_disabled, merge_adapters
from qvlkit.models.builder import build_model
from qvlkit.registry import DATASETS
from qvlkit.train.recipe import build_stage, build_tokenizer

PARTS = ['vision_encoder', 'merger', 'language_model']
LORA = {'lora': {'parts': PARTS, 'rank': 4, 'alpha': 12, 'dropout': 0.1}}
STAGES = {
    'lora': LORA,
    'int8': {'lora': {'parts': ['language_model'], 'quantize': 'int8'}},
    'nf4': {'lora': {'parts': ['language_model'], 'rank': 4, 'quantize': 'nf4'}},
    'ema': {'ema': {'decay': 0.8}},
    'lora and ema': LORA | {'ema': {'decay': 0.8}},
    'freezing': {'parts': {'vision_encoder': {'trainable': [[0, False], [3, True]], 'layer_decay': 0.7},
                           'merger': {'trainable': [[0, True], [5, False]]}}},
    'lora and freezing': LORA | {'parts': {'language_model': {'trainable': [[0, False], [3, True]]}}},
    'muon': {'optimizer': {'type': 'Muon', 'lr': 1e-3}}}


@pytest.fixture(scope='module')
def tokenizer(small_file):
    config = load_config(small_file, [])
    return build_tokenizer(config['tokenizer'], DATASETS.build(config['stages']['sft']['data']))


@pytest.fixture
def stage(small, tmp_path, tokenizer):
    """(folder, settings of the stage) -> trainer."""
    def make(name: str, settings: dict, **options):
        if 'nf4' in str(settings):
            pytest.importorskip('bitsandbytes')
        config = small('stages.sft.max_steps=6')
        config['stages']['sft'].update(json.loads(json.dumps(settings)))
        config['stages']['sft']['hooks'] = {}
        return build_stage(config, 'sft', tmp_path / name, tokenizer=tokenizer, **options)
    return make


def plain_model(trainer):
    """A model of the same config with other weights."""
    return build_model(trainer.config['model'], vocab_size=trainer.model.language_model.vocab_size, seed=5)


def everything(trainer) -> dict[str, torch.Tensor]:
    tensors = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    for name, parameter in trainer.model.named_parameters():
        tensors |= {f'{key}/{name}': value.clone() for key, value in trainer.optimizer.state.get(parameter, {}).items()
                    if torch.is_tensor(value)}
    averages = trainer.ema.tensors() if trainer.ema else {}
    return tensors | {f'ema/{name}': value.clone() for name, value in averages.items()}


@pytest.mark.parametrize('name', [pytest.param(name, marks=pytest.mark.slow) if name in ('int8', 'lora and ema', 'lora')
                                  else name for name in STAGES])
def test_resumed_equals_uninterrupted(stage, name):
    whole = stage('whole', STAGES[name])
    whole.fit()
    first = stage('first', STAGES[name])
    first.max_steps = 4
    first.fit()
    first.save()
    again = stage('first', STAGES[name])
    again.resume()
    assert again.step == 4
    again.fit()
    mine, theirs = everything(whole), everything(again)
    assert mine.keys() == theirs.keys()
    assert not [key for key in mine if not torch.equal(mine[key], theirs[key])]
    first_again = everything(first)
    assert any(not torch.equal(mine[key], first_again[key]) for key in first_again)  # the last steps do something


@pytest.mark.parametrize('name', ['lora', 'int8', 'nf4'])
def test_consumers_see_merged_plain_weights(stage, tmp_path, name):
    trainer = stage('sft', STAGES[name])
    trainer.fit()
    folder = trainer.save()
    stored = load_file(folder / 'model.safetensors')
    assert any('lora_A' in key for key in stored) and any('base_layer' in key for key in stored)
    expected = {key: value.clone() for key, value in merge_adapters(trainer.model).state_dict().items()}
    assert any(not torch.equal(value, stored.get(key.replace('.weight', '.base_layer.weight'), value))
               for key, value in expected.items())
    model = plain_model(trainer)
    load_weights(model, folder)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in expected.items())
    model = plain_model(trainer)
    load_part(model, 'language_model', folder)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in expected.items()
               if key.startswith('language_model.'))
    model = load_model(folder)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in expected.items())
    to_hf(folder, tmp_path / 'released')
    model = plain_model(trainer)
    load_weights(model, tmp_path / 'released')
    assert all(torch.equal(model.state_dict()[key], value) for key, value in expected.items())


def test_the_next_stage_starts_from_merged_weights(stage):
    trainer = stage('one', STAGES['lora'])
    trainer.fit()
    trainer.save()
    merged = merge_adapters(trainer.model).state_dict()
    following = stage('two', {}, load_from=str(trainer.work_dir))
    assert all(torch.equal(value, merged[key]) for key, value in following.model.state_dict().items())
    following = stage('three', STAGES['lora'], load_from=str(trainer.work_dir))
    with adapters_disabled(following.model):
        state = {key.replace('.base_layer.', '.'): value for key, value in following.model.state_dict().items()}
    assert all(torch.equal(state[key], value) for key, value in merged.items())


def test_adapters_without_their_scale_are_refused(stage):
    trainer = stage('sft', STAGES['lora'])
    folder = trainer.save()
    config = json.loads((folder / 'config.json').read_text())
    del config['stages']['sft']['lora']
    (folder / 'config.json').write_text(json.dumps(config))
    with pytest.raises(ValueError, match='adapters, but config.json has no stages.sft.lora'):
        open_weights(folder)


def test_the_average_follows_its_formula_and_is_loaded_on_request(stage, tmp_path):
    trainer = stage('sft', STAGES['ema'])
    average = {name: value.double() for name, value in trainer.ema.tensors().items()}

    class Follow:
        def __getattr__(self, point):
            return lambda trainer: None

        def after_train_iter(self, trainer):
            for name, parameter in trainer.model.named_parameters():
                average[name] = 0.8 * average[name] + 0.2 * parameter.detach().double()
    trainer.hooks.append(Follow())
    trainer.fit()
    folder = trainer.save()
    stored = load_file(folder / 'ema.safetensors')
    assert stored.keys() == average.keys()
    for name, value in stored.items():
        torch.testing.assert_close(value.double(), average[name], rtol=1e-5, atol=1e-6)
        assert not torch.equal(value, trainer.model.get_parameter(name))
    for ema in (False, True):
        model = plain_model(trainer)
        load_weights(model, folder, ema=ema)
        wanted = stored if ema else dict(trainer.model.named_parameters())
        assert all(torch.equal(value, model.get_parameter(name)) for name, value in wanted.items())
    to_hf(folder, tmp_path / 'released', ema=True)
    model = plain_model(trainer)
    load_weights(model, tmp_path / 'released')
    assert all(torch.equal(value, model.get_parameter(name)) for name, value in stored.items())


def test_averages_of_adapters_are_merged(stage):
    trainer = stage('sft', STAGES['lora and ema'])
    trainer.fit()
    folder = trainer.save()
    with torch.no_grad():
        for name, value in trainer.ema.tensors().items():
            trainer.model.get_parameter(name).copy_(value)
    expected = merge_adapters(trainer.model).state_dict()
    model = plain_model(trainer)
    load_weights(model, folder, ema=True)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in expected.items())


def test_an_average_that_is_not_there_is_named(stage):
    trainer = stage('sft', {})
    folder = trainer.save()
    with pytest.raises(ValueError, match='holds no ema.safetensors'):
        load_weights(plain_model(trainer), folder, ema=True)
    with pytest.raises(ValueError, match='stages.sft.ema asks for a moving average'):
        stage('sft', STAGES['ema']).resume()


@pytest.mark.parametrize('ema, message', [({'decay': 1.0}, 'stages.sft.ema.decay: .*1.0'), ({}, 'ema.decay: .*None'),
                                          ({'deacy': 0.9}, "stages.sft.ema.deacy: .*'decay'")])
def test_a_bad_average_is_named(stage, ema, message):
    with pytest.raises(ValueError, match=message):
        stage('sft', {'ema': ema})
