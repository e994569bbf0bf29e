"""Two processes train as one does with twice the rows; the strategy's sums, and what a rank does without."""
import importlib.util
import json
from pathlib import Path

import pytest

from qvlkit.engine.strategies.ddp import DDP, buckets
from qvlkit.engine.strategies.processes import build_strategy, processes

_spec = importlib.util.spec_from_file_location('workers', Path(__file__).parent / 'workers.py')
workers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(workers)

# Trainer -> stage of the small config, and the overrides that make it this trainer's. The loader gives two ranks the
# rows that one process accumulates.
TRAINERS = {
    'SFTTrainer': ('sft', []),
    'PretrainTrainer': ('visual', ['stages.visual.loader.row_length=256', 'stages.visual.loader.window=64']),
    'ContrastiveTrainer': ('contrastive', ['stages.contrastive.loader.row_length=256',
                                           'stages.contrastive.loader.window=64']),
    'DPOTrainer': ('dpo', ['stages.dpo.loader.row_length=512', 'stages.dpo.loader.window=32']),
}
SAME = ('loss', 'grad_norm', 'lr', 'num_tokens', 'num_targets', 'flops')


def assert_same(one, two):
    """Steps and weights of one process and of each of two."""
    for rank in two:
        for step, (expected, found) in enumerate(zip(one['steps'], rank['steps'], strict=True)):
            for name in SAME:
                assert found[name] == pytest.approx(expected[name], rel=1e-10, abs=1e-10), (step, name)
        assert rank['weights'].keys() == one['weights'].keys()
        for name, values in one['weights'].items():
            assert rank['weights'][name] == pytest.approx(values, rel=0, abs=1e-10), name


@pytest.mark.slow
@pytest.mark.parametrize('trainer', TRAINERS)
def test_two_ranks_are_one_process_with_twice_the_rows(small, on_ranks, trainer, tmp_path):
    stage, overrides = TRAINERS[trainer]
    config = small(*overrides, f'run=[{stage}]', f'stages.{stage}.max_steps=4', f'stages.{stage}.loader.num_workers=0')
    one, = on_ranks('train', 1, dict(config={**config, 'stages': with_rows(config, stage, 2)}, stage=stage))
    two = on_ranks('train', 2, dict(config={**config, 'stages': with_rows(config, stage, 1)}, stage=stage))
    assert len(one['steps']) == 4 and one['steps'][0]['loss'] != one['steps'][1]['loss']
    assert_same(one, two)


def with_rows(config, stage, accumulation):
    return {**config['stages'], stage: {**config['stages'][stage], 'accumulation': accumulation}}


ROWS = [['pp', 'p'], ['ttt', 'pp'], ['pt', 't'], ['tt', 't'], ['p', 'tpt']]


@pytest.mark.slow
def test_pictures_texts_and_both_on_either_rank(small, on_ranks):
    """A rank without pictures runs the vision encoder on a blank one: its gradients are zeros and have a shape."""
    arguments = dict(config=small(), stage='sft', rows=ROWS)
    one, = on_ranks('train_rows', 1, arguments)
    two = on_ranks('train_rows', 2, arguments)
    assert_same(one, two)
    assert two[0]['shapes'] == two[1]['shapes'] == one['shapes']
    assert all(shape is not None for step in one['shapes'] for shape in step)
    wrong = dict(arguments, rows=[['pp', 'p'], ['ttt', 'ttt'], *ROWS[2:]])  # the control: other rows are seen
    other = on_ranks('train_rows', 2, wrong)
    with pytest.raises(AssertionError):
        assert_same(one, other)


# Of each step the rows of two ranks, as numbers of samples: nothing on one, the other, or both, and unequal numbers.
SHARES = [[[], [[0, 1, 2]]], [[[3, 4]], [[5, 6, 7]]], [[[8, 9]], []], [[[10, 11], [12, 13, 14]], [[15, 16]]], [[], []],
          [[[1], [2, 3]], []], [[[4, 5]], [[0, 7]]]]


@pytest.mark.parametrize('trainer', ['ContrastiveTrainer', *(pytest.param(name, marks=pytest.mark.slow)
                                                             for name in TRAINERS if name != 'ContrastiveTrainer')])
def test_a_rank_without_rows_keeps_in_step(small, on_ranks, trainer, tmp_path):
    """Bad samples have cost a rank all its rows, or one of them: the others wait for nothing, and the step is the same.

    In the first step, too, where a rank without rows has nothing to name its metrics by.
    """
    stage, _ = TRAINERS[trainer]
    config = small(f'run=[{stage}]', f'stages.{stage}.max_steps=7', f'stages.{stage}.loader.num_workers=0')
    arguments = dict(config=config, stage=stage, steps=SHARES)
    two = on_ranks('train_shares', 2, arguments, deadline=60.0)
    with processes():
        one = workers.train_shares(arguments, tmp_path)
    assert [step['num_targets'] > 0 for step in one['steps']] == [True] * 4 + [False] + [True] * 2
    assert_same(one, two)
    noted = one['steps'][0].keys() - {*SAME, 'skipped'}
    for rank in two:
        for number, (expected, found) in enumerate(zip(one['steps'], rank['steps'])):
            for name in noted if number != 4 else ():
                assert found[name] == pytest.approx(expected[name], rel=1e-9, abs=1e-10), (number, name)
    arguments['steps'] = [SHARES[0], [[[3, 4]], [[5, 6, 8]]], *SHARES[2:]]  # the control: another row in one step
    with processes(), pytest.raises(AssertionError):
        assert_same(workers.train_shares(arguments, tmp_path / 'other'), two)


def test_sums_rows_and_gradients_over_ranks(on_ranks):
    first, second = on_ranks('collectives', 2, {})
    assert first['sum'] == second['sum'] == [3.0, 20.0]
    assert first['rows'] == second['rows'] == [[2.0, 2.0]] * 2 and (first['first'], second['first']) == (0, 0)
    assert first['gradient'] == [] and second['gradient'] == [[0.0, 3.0], [6.0, 9.0]]  # weights 1x + 2x
    assert first['numbers'] == second['numbers'] == [0, 1, 2, 0, 1]
    assert first['weights'] == second['weights']
    for rank in (first, second):
        assert rank['gradients'] == [[3.0] * 4, [3.0] * 2, [1.0] * 2, [1.0], None, None]


def test_a_group_of_one_needs_no_launcher():
    import torch
    with processes():
        strategy = build_strategy(dict(strategy=dict(type='DDP', device='cpu'), precision='fp32'))
        assert isinstance(strategy, DDP) and (strategy.rank, strategy.world_size, strategy.is_main) == (0, 1, True)
        rows, start = strategy.gather_rows(torch.ones(2, 3, requires_grad=True))
        assert rows.tolist() == [[1.0] * 3] * 2 and start == 0
    assert not torch.distributed.is_initialized()


def test_buckets_hold_one_dtype_and_no_more_than_they_may():
    import torch
    tensors = [torch.zeros(4), torch.zeros(2, dtype=torch.float64), torch.zeros(4), torch.zeros(100), torch.zeros(1)]
    found = [[tensor.numel() for tensor in bucket] for bucket in buckets(tensors, 32)]
    assert sorted(found) == sorted([[4, 4], [100], [1], [2]])


def test_one_device_under_several_processes_is_refused(monkeypatch):
    monkeypatch.setenv('TORCHELASTIC_RUN_ID', 'of-a-test')
    monkeypatch.setenv('WORLD_SIZE', '2')
    with pytest.raises(ValueError, match=r"strategy: SingleDevice .* started 2; .*type='DDP'"):
        build_strategy(dict(strategy=dict(type='SingleDevice')))
    with pytest.raises(ValueError, match='no strategy is registered'):
        build_strategy(dict(strategy=dict(type='DPP')))


@pytest.mark.slow
def test_loss_by_source_is_that_of_all_ranks(small, on_ranks, tmp_path):
    records = [{'messages': [{'role': 'user', 'content': f'{i}?'}, {'role': 'assistant', 'content': str(2 * i)}]}
               for i in range(30)]
    (tmp_path / 'sums.json').write_text(json.dumps(records))
    config = small(
        'stages.sft.data.type=Mixture', 'stages.sft.data.parts.drawn.dataset={type: PictureTasks, size: 20}',
        f'stages.sft.data.parts.sums.dataset={{type: ConversationDataset, path: "{tmp_path / "sums.json"}"}}',
        'stages.sft.optimizer.lr=0.0', 'stages.sft.max_steps=5')
    one, = on_ranks('sources', 1, dict(config={**config, 'stages': with_rows(config, 'sft', 2)}, stage='sft'))
    two = on_ranks('sources', 2, dict(config=config, stage='sft'))
    assert two[0] == two[1] and [line['step'] for line in one] == [2, 4, 5]
    for expected, found in zip(one, two[0], strict=True):
        for kind in ('sources', 'pictures'):
            assert expected[kind].keys() == found[kind].keys()
            for name, numbers in expected[kind].items():
                assert found[kind][name] == pytest.approx(numbers, rel=1e-6), name
