"""What a reader of the console sees, and how rarely the device is asked."""
import io

import pytest
import torch
from rich.console import Console

from qvlkit.train.hooks.console import ConsoleHook


@pytest.fixture
def clock(monkeypatch):
    """Time goes by two seconds a reading."""
    ticks = iter(range(0, 1000, 2))
    monkeypatch.setattr('qvlkit.train.hooks.console.time.perf_counter', lambda: float(next(ticks)))


def test_plain_lines_where_there_is_no_terminal(make_trainer, clock):
    output = io.StringIO()
    make_trainer(ConsoleHook(interval=4, console=Console(file=output, width=40))).run()
    assert output.getvalue().splitlines() == [
        'sft 4/10  loss 2.5000  grad_norm 1.500  lr 2.50e-01  200 tokens/s  0:00:03 left',
        'sft 8/10  loss 1.2500  grad_norm 1.500  lr 2.50e-01  200 tokens/s  0:00:01 left',
        'sft 10/10  loss 1.0000  grad_norm 1.500  lr 2.50e-01  100 tokens/s  0:00:00 left']


def test_a_bar_on_a_terminal(make_trainer):
    output = io.StringIO()
    console = Console(file=output, width=140, force_terminal=True, color_system=None)
    hook = ConsoleHook(interval=5, console=console)
    make_trainer(hook, step=5).run()
    assert '10/10' in output.getvalue() and 'loss 1.0000' in output.getvalue() and 'tokens/s' in output.getvalue()
    assert hook._bar is None


def test_the_bar_is_taken_down_where_training_breaks_off(make_trainer):
    console = Console(file=io.StringIO(), force_terminal=True)
    hook = ConsoleHook(console=console)
    trainer = make_trainer(hook)
    trainer.run(stop_at=3)
    assert hook._bar is not None
    hook.after_run(trainer)
    assert hook._bar is None


def test_the_device_is_read_every_interval_only(make_trainer, transfers):
    make_trainer(ConsoleHook(interval=5, console=Console(file=io.StringIO()))).run()
    assert transfers.number == 2


def test_use_of_the_device_skipped_steps_and_what_a_trainer_notes(make_trainer, clock, monkeypatch):
    """200 TFLOP a step, 4 steps in 2 seconds: 400 TFLOP/s on all ranks."""
    output = io.StringIO()
    trainer = make_trainer(ConsoleHook(interval=4, console=Console(file=output, width=40)), max_steps=4)
    trainer.extra = dict(flops=torch.tensor(2e14, dtype=torch.float64), skipped=torch.tensor(False), accuracy=0.75)
    trainer.run()
    assert 'accuracy 0.75  200 tokens/s  400.00 TFLOP/s  0:00:00 left' in output.getvalue()
    assert 'skipped' not in output.getvalue() and 'MFU' not in output.getvalue()
    monkeypatch.setattr('qvlkit.train.hooks.console.peak_flops', lambda device, dtype: 500e12)
    trainer.step, trainer.extra['skipped'] = 0, torch.tensor(True)
    trainer.strategy.world_size = 2
    trainer.run()
    assert '200 tokens/s  MFU 40.0%  4 skipped' in output.getvalue()
