"""Frozen means frozen: no gradient, no change, no state, and for an encoder at the front no kept activation."""
import json

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from qvlkit.train.recipe import build_stage

PARTS = ['vision_encoder', 'merger', 'language_model']
CASES = [(frozen, adapted, False) for frozen in PARTS for adapted in (None, *PARTS) if adapted != frozen]
CASES += [(frozen, None, [[0, False], [2, True]]) for frozen in PARTS]


def watch_gradients(trainer) -> set[str]:
    """A set that gets the names of the parameters that have a gradient after the last backward pass of a step."""
    found, clip = set(), trainer.strategy.clip_gradients

    def watched(parameters, max_norm):
        found.update(name for name, p in trainer.model.named_parameters() if p.grad is not None)
        return clip(parameters, max_norm)
    trainer.strategy.clip_gradients = watched
    return found


@pytest.fixture
def stage(small, tmp_path):
    """(frozen part or schedule, adapted part) -> trainer of two steps with much weight decay."""
    def make(frozen: str | None, adapted: str | None, trainable=False):
        config = small('stages.sft.max_steps=2', 'stages.sft.optimizer.weight_decay=0.5')
        settings = {'parts': {frozen: {'trainable': trainable}}} if frozen else {}
        if adapted:
            settings['lora'] = {'parts': [adapted], 'rank': 2}
        config['stages']['sft'].update(json.loads(json.dumps(settings)))
        config['stages']['sft']['hooks'] = {}
        trainer = build_stage(config, 'sft', tmp_path / 'sft')
        trainer.model.vision_encoder.register_buffer('tally', torch.zeros(3))
        return trainer
    return make


@pytest.mark.parametrize('frozen, adapted, trainable', CASES)
def test_a_frozen_part_does_not_change(stage, frozen, adapted, trainable):
    trainer = stage(frozen, adapted, trainable)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    reached = watch_gradients(trainer)
    trainer.fit()
    after = trainer.model.state_dict()
    changed = {name.partition('.')[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == set(PARTS) - {frozen}
    assert {name.partition('.')[0] for name in reached} == set(PARTS) - {frozen}
    module = getattr(trainer.model, frozen)
    assert not any(trainer.optimizer.state.get(p) for p in module.parameters())
    assert not module.training
    if adapted:  # of the adapted part, the base is frozen as well
        of_part = {name: p for name, p in trainer.model.named_parameters() if name.startswith(f'{adapted}.')}
        assert all(torch.equal(before[name], p) == ('lora_' not in name) for name, p in of_part.items())
        assert reached & of_part.keys() == {name for name in of_part if 'lora_' in name}


def kept_by_encoder(trainer) -> int:
    """Tensors that the encoder's forward pass keeps for the backward pass, in one row."""
    row = next(iter(trainer.loader))[0]
    trainer.model.train()
    trainer.freezing.apply(trainer.step)
    kept = []
    with saved_tensors_hooks(lambda tensor: kept.append(tensor.shape) or tensor, lambda tensor: tensor):
        features = trainer.model.encode(row)
    assert features.requires_grad == bool(kept)
    return len(kept)


def test_a_frozen_encoder_keeps_no_activation(stage):
    assert kept_by_encoder(stage(None, None)) > 20
    assert kept_by_encoder(stage('vision_encoder', None)) == 0
    assert kept_by_encoder(stage('vision_encoder', 'language_model')) == 0
    assert kept_by_encoder(stage('vision_encoder', None, [[0, False], [1, True]])) == 0
    trainer = stage('vision_encoder', None, [[0, False], [1, True]])
    trainer.step = 1
    assert kept_by_encoder(trainer) > 20
