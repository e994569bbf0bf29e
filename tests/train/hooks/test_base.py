"""The points come in order, and metrics are read in one transfer."""
import pytest
import torch

from qvlkit.registry import HOOKS
from qvlkit.train.hooks.base import Hook, read_metrics


def test_points_come_in_order(make_trainer):
    seen = []

    class Recorder(Hook):
        def __getattribute__(self, name):
            if name.startswith(('before_', 'after_')):
                seen.append(name)
            return super().__getattribute__(name)

    make_trainer(Recorder(), max_steps=2).run()
    step = ['before_train_iter', 'after_train_iter']
    assert seen == ['before_run', 'before_train', *step, *step, 'after_train', 'after_run']


def test_every(make_trainer):
    trainer = make_trainer(max_steps=7)
    steps = []
    for trainer.step in range(1, 8):
        if Hook.every(trainer, 3):
            steps.append(trainer.step)
    assert steps == [3, 6, 7]


def test_metrics_are_read_at_once(transfers):
    rows = [{'loss': torch.tensor(0.1), 'tokens': torch.tensor(2 ** 40), 'lr': 0.5}, {'loss': torch.tensor([2.5])}]
    numbers = read_metrics(rows)
    assert transfers.number == 1
    assert numbers == [{'loss': pytest.approx(0.1), 'tokens': 2 ** 40, 'lr': 0.5}, {'loss': 2.5}]
    assert isinstance(numbers[0]['tokens'], int) and isinstance(rows[0]['loss'], torch.Tensor)


@pytest.mark.parametrize('name', ['ConsoleHook', 'JSONLHook', 'TensorBoardHook', 'CheckpointHook'])
@pytest.mark.parametrize('interval', [0, -1, 2.5, '10', True])
def test_bad_intervals_are_named(name, interval):
    if name == 'TensorBoardHook':
        pytest.importorskip('tensorboard')
    with pytest.raises(ValueError, match=f'{name}.interval'):
        HOOKS.build({'type': name, 'interval': interval})
