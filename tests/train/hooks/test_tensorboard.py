"""Curves on the disk, read back with TensorBoard's own reader."""
import sys

import pytest

from qvlkit.train.hooks.tensorboard import TensorBoardHook


def test_curves(make_trainer):
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    trainer = make_trainer(TensorBoardHook(interval=4))
    trainer.run(stop_at=9)
    trainer.call('before_save_checkpoint')
    resumed = make_trainer(TensorBoardHook(interval=5), step=4)
    resumed.run()
    events = EventAccumulator(str(trainer.work_dir / 'tensorboard'))
    events.Reload()
    assert set(events.Tags()['scalars']) == {f'train/{name}' for name in trainer.metrics}
    assert [(e.step, e.value) for e in events.Scalars('train/loss')] == [(4, 2.5), (5, 2.0), (10, 1.0)]  # no step 8


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', None)
    with pytest.raises(ValueError, match='pip install tensorboard'):
        TensorBoardHook()
