"""Ablations of the recipe are one override each: a stage left out, a part unfrozen, another loss, adapters."""
import pytest
import torch

from qvlkit.engine.adapters import is_adapter
from qvlkit.losses.preference import IPOLoss
from qvlkit.train.recipe import build_stage, run_recipe
from qvlkit.train.summary import read_summary


@pytest.fixture
def recipe(small, shorten):
    """overrides -> the whole recipe with few samples, rows and steps, on the smaller model."""
    def make(*overrides):
        config = shorten(small(*overrides))
        for stage in config['stages'].values():
            stage['max_steps'] = 2
            stage['loader']['row_length'] = min(384, stage['loader']['row_length'])
            stage['hooks'] = dict(checkpoint=dict(type='CheckpointHook', interval=2))
        return config
    return make


def changed_parts(trainer):
    """Parts of which a step changes something."""
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train_step(next(iter(trainer.loader)))
    return {name.partition('.')[0] for name, value in trainer.model.state_dict().items()
            if not torch.equal(value, before[name])}


def test_stages_are_left_out(recipe, tmp_path):
    run_recipe(recipe('run=[visual,multimodal,sft]'), work_dir=tmp_path)
    init = {name: read_summary(tmp_path / name)['init'] for name in ('visual', 'multimodal', 'sft')}
    assert init == dict(visual='first weights', multimodal=f'model from {tmp_path / "visual"}',
                        sft=f'model from {tmp_path / "multimodal"}')


def test_a_whole_model_right_after_the_towers_takes_their_encoder(recipe, tmp_path):
    run_recipe(recipe('run=[contrastive,multimodal]'), work_dir=tmp_path)
    assert read_summary(tmp_path / 'multimodal')['init'] == f'vision encoder from {tmp_path / "contrastive"}'


def test_the_vision_encoder_is_unfrozen(recipe, tmp_path):
    frozen, free = (build_stage(recipe(f'stages.sft.parts.vision_encoder.trainable={value}'), 'sft', tmp_path / value)
                    for value in ('false', 'true'))
    assert changed_parts(frozen) == {'merger', 'language_model'}
    assert changed_parts(free) == {'vision_encoder', 'merger', 'language_model'}


def test_dpo_becomes_ipo(recipe, tmp_path):
    trainer = build_stage(recipe('stages.dpo.trainer.loss.type=IPOLoss'), 'dpo', tmp_path)
    assert isinstance(trainer.loss, IPOLoss)
    trainer.begin_reference()
    first = trainer.train_step(next(iter(trainer.loader)))['loss'].item()
    assert first == pytest.approx((1 / (2 * trainer.loss.beta)) ** 2, rel=1e-5)  # of equal policy and reference


@pytest.mark.parametrize('overrides', [
    ['stages.sft.lora.parts=[language_model]', 'stages.sft.lora.rank=2'],
    ['stages.sft.lora={parts: [language_model], rank: 2}']], ids=['keys', 'dict'])
def test_adapters_take_the_place_of_weights(recipe, tmp_path, overrides):
    config = recipe(*overrides)
    assert config['stages']['sft']['lora'] == dict(parts=['language_model'], rank=2)
    trainer = build_stage(config, 'sft', tmp_path)
    trained = [name for name, parameter in trainer.model.language_model.named_parameters() if parameter.requires_grad]
    assert trained and all(map(is_adapter, trained))
    assert 'language_model' in changed_parts(trainer)
