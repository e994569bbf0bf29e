"""Held-out preference accuracy: by hand, against the stage's start, and over a resume."""
import json
from types import SimpleNamespace

import pytest
import torch

from qvlkit.losses.preference import DPOLoss
from qvlkit.structures import Sample, Turn
from qvlkit.train.hooks.preference import PreferenceHook


def batch(keys):
    count = len(keys)
    moved = SimpleNamespace(content_keys=tuple(keys), sample_ids=tuple(keys), num_pairs=count,
                            answer_lengths=torch.tensor([[1, 4]] * count))
    moved.to = lambda *_, **__: moved
    return moved


class Trainer:
    """Gives the numbers of five pairs, before and after."""
    stage, device, step, start_hash = 'dpo', 'cpu', 0, 'weights'
    start = torch.tensor([[-1.0, -2.0], [-3.0, -2.0], [-2.0, -2.0], [-5.0, -4.0], [-9.0, -6.0]])
    end = torch.tensor([[-1.0, -3.0], [-3.0, -2.5], [-2.0, -2.0], [-6.0, -4.0], [-5.0, -6.0]])

    def __init__(self, work_dir):
        self.work_dir, self.results, self.loss = work_dir, {}, DPOLoss(0.5)
        self.processor = SimpleNamespace(text_key='t', all_limits={}, plan=None)
        self.model = SimpleNamespace(geometry=None)
        self.loader = SimpleNamespace(processor=SimpleNamespace(encode=lambda sample: sample.id))

    def collate(self, keys, **_):
        return batch(keys)

    def rows(self, numbers, batch):
        return numbers[[int(key, 16) for key in batch.content_keys]]

    def start_sums(self, batch):
        return self.rows(self.start, batch), self.rows(self.start, batch)

    def policy_sums(self, batch):
        return self.rows(self.end, batch)


PAIRS = [Sample(f'{index:032x}', [Turn('user', ['q'])]) for index in range(5)]


def test_shares_by_hand(tmp_path):
    trainer, hook = Trainer(tmp_path), PreferenceHook(PAIRS, rows=2)
    hook.before_train(trainer)
    hook.after_train(trainer)
    assert trainer.results['preference accuracy'] == dict(
        before=0.5, after=pytest.approx(3.5 / 5), chance=0.5, unit='%', count=5)
    assert trainer.results['own log-probability prefers chosen'] == dict(
        before=pytest.approx(1.5 / 5), after=pytest.approx(2.5 / 5), chance=0.5, unit='%', count=5)
    assert trainer.results['own log-probability of a token prefers chosen']['before'] == pytest.approx(0.0)
    written = json.loads((tmp_path / 'evaluation.json').read_text())['preference']
    assert written['before']['margin'] == 0
    assert written['after']['margin'] == pytest.approx(0.5 * (1 + 0.5 + 0 - 1 + 4) / 5)


def test_a_resume_keeps_the_start(tmp_path):
    first = Trainer(tmp_path)
    PreferenceHook(PAIRS).before_train(first)
    whole, hook = Trainer(tmp_path), PreferenceHook(PAIRS)
    whole.step, whole.start_sums = 3, lambda batch: pytest.fail('the model is no longer at its start')
    hook.before_train(whole)
    hook.after_train(whole)
    assert whole.results['preference accuracy']['after'] == pytest.approx(3.5 / 5)
    assert whole.results['preference accuracy']['before'] == 0.5
    other = Trainer(tmp_path)
    other.step, other.start_hash = 3, 'others'
    with pytest.raises(ValueError, match='was computed with weights'):
        PreferenceHook(PAIRS).before_train(other)


def test_only_a_trainer_of_pairs_will_do(tmp_path):
    with pytest.raises(ValueError, match='needs a DPOTrainer, but stages.sft.trainer.type is SimpleNamespace'):
        PreferenceHook(PAIRS).before_train(SimpleNamespace(stage='sft'))
