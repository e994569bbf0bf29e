"""The log has each step once, also where runs are cut off and resumed."""
import json
import math

import pytest
import torch

from qvlkit.train.hooks.checkpoint import CheckpointHook
from qvlkit.train.hooks.jsonl import JSONLHook, read_log


def steps(trainer) -> list[int]:
    return [row['step'] for row in read_log(trainer.work_dir / 'log.jsonl')]


def test_rows_hold_the_metrics(make_trainer, transfers):
    trainer = make_trainer(JSONLHook(interval=4))
    trainer.run()
    assert transfers.number == 3
    rows = read_log(trainer.work_dir / 'log.jsonl')
    assert [row['step'] for row in rows] == list(range(1, 11))
    assert rows[3] == {'step': 4, 'seconds': rows[3]['seconds'], 'loss': 2.5, 'grad_norm': 1.5, 'lr': 0.25,
                       'num_tokens': 100, 'num_targets': 40}
    assert [row['seconds'] for row in rows] == sorted(row['seconds'] for row in rows)


@pytest.mark.parametrize('stop_at', [4, 5, 7, 9])
def test_a_resumed_log_has_each_step_once(make_trainer, stop_at):
    """Checkpoints every 3 steps, writing every 5: a checkpoint's steps are in the log all the same."""
    first = make_trainer(JSONLHook(interval=5), CheckpointHook(interval=3))
    first.run(stop_at=stop_at)
    saved = first.saved[-1][0]
    assert steps(first)[:saved] == list(range(1, saved + 1))
    with open(first.work_dir / 'log.jsonl', 'a') as file:
        file.write('{"step": 99, "lo')  # a row that a kill cut in half
    resumed = make_trainer(JSONLHook(interval=5), step=saved)
    resumed.run()
    assert steps(resumed) == list(range(1, 11))
    seconds = [row['seconds'] for row in read_log(resumed.work_dir / 'log.jsonl')]
    assert seconds == sorted(seconds)


def test_a_fresh_run_keeps_the_older_log(make_trainer):
    make_trainer(JSONLHook(), max_steps=3).run()
    trainer = make_trainer(JSONLHook(), max_steps=2)
    trainer.run()
    assert steps(trainer) == [1, 2]
    assert len(read_log(trainer.work_dir / 'log.previous.jsonl')) == 3


def test_what_waits_is_written_where_training_breaks_off(make_trainer):
    trainer = make_trainer(JSONLHook(interval=100))
    trainer.run(stop_at=3)
    assert not (trainer.work_dir / 'log.jsonl').exists()
    trainer.call('after_run')
    assert steps(trainer) == [1, 2, 3]


def test_a_loss_that_is_no_number_is_kept(make_trainer):
    hook = JSONLHook(interval=1)
    trainer = make_trainer(hook)
    hook.before_train(trainer)
    trainer.step, trainer.metrics = 1, {'loss': torch.tensor(float('nan'))}
    hook.after_train_iter(trainer)
    assert math.isnan(read_log(trainer.work_dir / 'log.jsonl')[0]['loss'])


@pytest.mark.parametrize('line', ['{"step": 1', '[1]', '{"loss": 1}'])
def test_a_damaged_log_names_its_line(tmp_path, line):
    path = tmp_path / 'log.jsonl'
    path.write_text(f'{json.dumps({"step": 1})}\n{line}\n{json.dumps({"step": 3})}\n')
    with pytest.raises(ValueError, match='line 2'):
        read_log(path)
