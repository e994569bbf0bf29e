"""A trainer is put back bit by bit, or refused with the name of what does not fit."""
import json
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from qvlkit.engine.checkpoint import CorruptCheckpointError
from qvlkit.engine.optimizer import build_optimizer
from qvlkit.engine.schedules import WarmupCosine
from qvlkit.engine.seed import rng_state, seed_everything, set_rng_state
from qvlkit.train.checkpointing import load_training_state, save_training_state
from qvlkit.train.hooks.base import Hook


class SmallTrainer:
    """Everything that a checkpoint is made of; dropout and inputs come from the global generator."""

    def __init__(self, work_dir: Path, *, stage: str = 'sft', width: int = 8, parts: dict | None = None, seed: int = 0):
        seed_everything(seed)
        self.model = nn.Sequential(nn.Linear(4, width), nn.Dropout(0.3), nn.LayerNorm(width), nn.Linear(width, 2))
        self.optimizer = build_optimizer(self.model, parts or {}, {'type': 'AdamW', 'lr': 0.01, 'weight_decay': 0.1})
        self.schedule = WarmupCosine(self.optimizer, max_steps=20, warmup_steps=4)
        self.stage, self.work_dir, self.step, self.hooks, self.ema = stage, work_dir, 0, [], None
        self.config = {'seed': seed, 'run': [stage]}
        self.processor = types.SimpleNamespace(
            save=lambda folder: (folder / 'preprocessor_config.json').write_text('{}'))

    def state_dict(self) -> dict:
        return {'step': self.step, 'rng': rng_state()}

    def load_state_dict(self, state: dict) -> None:
        self.step = state['step']
        set_rng_state(state['rng'])

    def train(self, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            self.optimizer.zero_grad()
            loss = self.model(torch.randn(6, 4)).square().mean()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            self.step += 1
            losses.append(loss.item())
        return losses


def test_resume_equals_uninterrupted(tmp_path):
    trainer = SmallTrainer(tmp_path)
    trainer.train(7)
    folder = save_training_state(trainer, keep=2)
    expected = trainer.train(5)
    resumed = SmallTrainer(tmp_path, seed=1)
    assert load_training_state(resumed, tmp_path).path == folder
    assert resumed.step == 7 and resumed.train(5) == expected
    for (name, mine), theirs in zip(trainer.model.state_dict().items(), resumed.model.state_dict().values()):
        assert torch.equal(mine, theirs), name
    assert resumed.schedule.get_last_lr() == trainer.schedule.get_last_lr()


@pytest.mark.parametrize('forget', ['schedule', 'optimizer', 'rng'])
def test_each_part_of_the_state_matters(tmp_path, forget, monkeypatch):
    """The negative control of the test above."""
    trainer = SmallTrainer(tmp_path)
    trainer.train(7)
    save_training_state(trainer)
    expected = trainer.train(5)
    resumed = SmallTrainer(tmp_path, seed=1)
    if forget == 'schedule':
        monkeypatch.setattr(resumed.schedule, 'load_state_dict', lambda state: None)
    elif forget == 'optimizer':
        monkeypatch.setattr('qvlkit.train.checkpointing.unpack_optimizer', lambda *args: None)
    else:
        monkeypatch.setitem(globals(), 'set_rng_state', lambda state: None)
    load_training_state(resumed, tmp_path)
    assert resumed.train(5) != expected


def test_files_and_hooks(tmp_path):
    trainer = SmallTrainer(tmp_path)
    told = []

    class Listener(Hook):
        def before_save_checkpoint(self, trainer) -> None:
            told.append(trainer.step)

    trainer.hooks.append(Listener())
    trainer.train(2)
    folder = save_training_state(trainer)
    assert told == [2]
    assert {path.name for path in folder.iterdir()} == {
        'model.safetensors', 'optimizer.safetensors', 'state.json', 'config.json', 'preprocessor_config.json',
        'manifest.json'}
    assert json.loads((folder / 'config.json').read_text()) == trainer.config


def unchanged(trainer) -> list:
    weights = [tensor.tolist() for tensor in trainer.model.state_dict().values()]
    return [weights, trainer.step, len(trainer.optimizer.state)]


@pytest.mark.parametrize('options, message', [
    ({'stage': 'dpo'}, "stage 'sft', cannot resume stage 'dpo'"),
    ({'width': 6}, r'0.weight is \(8, 4\) in the checkpoint, \(6, 4\) in the model'),
    ({'parts': {'0': {'trainable': False}}}, '0.bias, 0.weight are in the checkpoint')])
def test_what_does_not_fit_is_named_and_changes_nothing(tmp_path, options, message):
    trainer = SmallTrainer(tmp_path)
    trainer.train(2)
    save_training_state(trainer)
    other = SmallTrainer(tmp_path, seed=1, **options)
    before = unchanged(other)
    with pytest.raises(ValueError, match=message):
        load_training_state(other, tmp_path)
    assert unchanged(other) == before


def test_a_corrupt_checkpoint_changes_nothing(tmp_path):
    trainer = SmallTrainer(tmp_path)
    trainer.train(1)
    file = save_training_state(trainer) / 'optimizer.safetensors'
    file.write_bytes(file.read_bytes()[:-1] + b'\x7f')
    other = SmallTrainer(tmp_path, seed=1)
    before = unchanged(other)
    with pytest.raises(CorruptCheckpointError, match='optimizer.safetensors'):
        load_training_state(other, tmp_path)
    assert unchanged(other) == before


def test_a_missing_weight_is_named(tmp_path):
    trainer = SmallTrainer(tmp_path)
    save_training_state(trainer)
    other = SmallTrainer(tmp_path)
    other.model.append(nn.Linear(2, 2))
    with pytest.raises(ValueError, match='4.weight is not in the checkpoint'):
        load_training_state(other, tmp_path)
