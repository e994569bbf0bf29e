"""When the trainer is told to save."""
import pytest

from qvlkit.train.hooks.checkpoint import CheckpointHook


@pytest.mark.parametrize('options, start, expected', [
    ({'interval': 4}, 0, [4, 8, 10]), ({'interval': 4, 'at_end': False}, 0, [4, 8]), ({'interval': 5}, 0, [5, 10]),
    ({'interval': 4}, 8, [10]), ({'interval': 4}, 10, []), ({'interval': 50}, 0, [10])])
def test_steps(make_trainer, options, start, expected):
    trainer = make_trainer(CheckpointHook(**options, keep=2), step=start)
    trainer.run()
    assert trainer.saved == [(step, 2) for step in expected]


def test_bad_keep():
    with pytest.raises(ValueError, match='CheckpointHook.keep.*0'):
        CheckpointHook(keep=0)
