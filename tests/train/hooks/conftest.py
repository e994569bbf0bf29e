"""A trainer that only counts, and tells its hooks."""
import types
from pathlib import Path

import pytest
import torch

from qvlkit.engine.strategies.single import SingleDevice


class CountingTrainer:
    """Calls hooks as the trainer does; the loss of step n is 10 / n, and each step has 100 tokens."""

    def __init__(self, work_dir: Path, hooks: list, max_steps: int = 10, step: int = 0):
        self.work_dir, self.hooks, self.max_steps, self.step = work_dir, hooks, max_steps, step
        self.stage, self.config, self.metrics, self.saved = 'sft', {'seed': 0}, {}, []
        self.strategy, self.extra = SingleDevice(device='cpu'), {}

    def call(self, point: str) -> None:
        for hook in self.hooks:
            getattr(hook, point)(self)

    def save(self, *, keep=None) -> None:
        self.call('before_save_checkpoint')
        self.saved.append((self.step, keep))

    def run(self, stop_at: int | None = None) -> None:
        """To the end, or as if killed after step `stop_at`."""
        self.call('before_run')
        self.call('before_train')
        while self.step < self.max_steps:
            self.call('before_train_iter')
            self.step += 1
            self.metrics = {'loss': torch.tensor(10 / self.step), 'grad_norm': torch.tensor(1.5), 'lr': 0.25,
                            'num_tokens': torch.tensor(100), 'num_targets': 40, **self.extra}
            self.call('after_train_iter')
            if self.step == stop_at:
                return
        self.call('after_train')
        self.call('after_run')


@pytest.fixture
def make_trainer(tmp_path):
    def make(*hooks, **options) -> CountingTrainer:
        return CountingTrainer(tmp_path / 'run' / 'sft', list(hooks), **options)
    return make


@pytest.fixture
def transfers(monkeypatch) -> types.SimpleNamespace:
    """Counts how often tensors are read into Python."""
    count = types.SimpleNamespace(number=0)
    for name in ('tolist', 'item', '__float__', '__int__'):
        original = getattr(torch.Tensor, name)

        def counted(self, *args, _original=original):
            count.number += 1
            return _original(self, *args)
        monkeypatch.setattr(torch.Tensor, name, counted)
    return count
