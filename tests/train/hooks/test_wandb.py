"""What reaches Weights & Biases, against a stand-in for the package."""
import sys
import types

import pytest

from qvlkit.train.hooks.wandb import WandbHook


@pytest.fixture
def calls(monkeypatch) -> list:
    """Everything that the package was asked to do."""
    calls = []
    run = types.SimpleNamespace(log=lambda values, step: calls.append(('log', step, values['loss'])),
                                finish=lambda: calls.append(('finish',)))

    def init(**options):
        calls.append(('init', options))
        return run
    monkeypatch.setitem(sys.modules, 'wandb', types.SimpleNamespace(init=init))
    return calls


@pytest.mark.parametrize('options, mode', [({}, 'offline'), ({'mode': 'online'}, 'online')])
def test_calls(make_trainer, calls, options, mode):
    trainer = make_trainer(WandbHook(interval=5, **options))
    trainer.run()
    assert calls == [('init', {'project': 'qvlkit', 'name': 'run-sft', 'mode': mode, 'dir': str(trainer.work_dir),
                               'config': {'seed': 0}}), ('log', 5, 2.0), ('log', 10, 1.0), ('finish',)]


def test_mistakes_are_named(monkeypatch):
    with pytest.raises(ValueError, match="WandbHook.mode.*'on'"):
        WandbHook(mode='on')
    monkeypatch.setitem(sys.modules, 'wandb', None)
    with pytest.raises(ValueError, match='pip install wandb'):
        WandbHook()
