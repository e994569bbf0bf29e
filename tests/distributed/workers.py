"""What the tests of this folder run in processes of their own: `python workers.py FUNCTION FOLDER`."""
import json
import os
import sys
from pathlib import Path

import torch

from qvlkit.data.collate import collate
from qvlkit.engine.strategies.ddp import DDP
from qvlkit.engine.strategies.processes import processes
from qvlkit.structures import Sample, Turn
from qvlkit.train.hooks.base import Hook
from qvlkit.train.recipe import build_stage


class Numbers(Hook):
    """Keeps the metrics of each step."""

    def __init__(self):
        self.rows = []

    def after_train_iter(self, trainer):
        self.rows.append({name: float(value) for name, value in trainer.metrics.items()})


def trainer_of(arguments, folder):
    """In float64, on as many ranks as there are."""
    trainer = build_stage(arguments['config'], arguments['stage'], folder / arguments['stage'])
    trainer.model.to(torch.float64)
    live = getattr(trainer, 'live', None)  # DPO's reference keeps copies of parts
    for part in live.copies.values() if live is not None else ():
        part.to(torch.float64)
    trainer.hooks = [Numbers()]
    return trainer


def told(trainer):
    """Metrics of each step, and a weight by which any other model is told apart."""
    return dict(steps=trainer.hooks[0].rows, weights={name: value.flatten().tolist()
                                                      for name, value in trainer.model.state_dict().items()})


def train(arguments, folder):
    """All steps of a stage, from its own data."""
    trainer = trainer_of(arguments, folder)
    trainer.fit()
    return told(trainer)


def train_rows(arguments, folder):
    """Steps of given rows: 'p' stands for a sample with pictures, 't' for one of text. Each rank takes its share."""
    trainer = trainer_of(arguments, folder)
    strategy, processor = trainer.strategy, trainer.processor
    pictures = iter(range(100))

    def sample(kind, number):
        if kind == 'p':
            return trainer.loader.dataset.sources[0].dataset[next(pictures)]
        return Sample(f'text{number}', [Turn('user', [f'{number} + 1?']), Turn('assistant', [f'{number + 1}, {kind}'])])
    shapes = []
    original = strategy.reduce_gradients

    def reduce_gradients(parameters):
        shapes.append([None if parameter.grad is None else list(parameter.grad.shape) for parameter in parameters])
        original(parameters)
    strategy.reduce_gradients = reduce_gradients
    for step, rows in enumerate(arguments['rows']):
        encoded = [[processor.encode(sample(kind, 10 * step + place)) for place, kind in enumerate(row)]
                   for row in rows]
        batches = [collate(row, plan=processor.plan, geometry=trainer.model.geometry) for row in encoded]
        trainer.metrics = trainer.train_step(batches[strategy.rank::strategy.world_size])
        trainer.call_hooks('after_train_iter')
    return {**told(trainer), 'shapes': shapes}


def train_shares(arguments, folder):
    """Steps whose rows are given for each of two ranks, as numbers of samples; one process takes those of both."""
    trainer = trainer_of(arguments, folder)
    strategy, loader = trainer.strategy, trainer.loader
    trainer.begin_reference() if hasattr(trainer, 'begin_reference') else None
    trainer.call_hooks('before_train')
    for shares in arguments['steps']:
        own = shares[strategy.rank] if strategy.world_size > 1 else sum(shares, [])
        rows = [loader.rows.collate([loader.processor.encode(loader.dataset[index]) for index in row]) for row in own]
        trainer.metrics = trainer.train_step(rows)
        trainer.step += 1
        trainer.call_hooks('after_train_iter')
    return told(trainer)


def collectives(arguments, folder):
    """The strategy alone: sums, rows of unequal number, gradients that some ranks lack."""
    strategy = DDP(device='cpu')
    rank, result = strategy.rank, {}
    result['sum'] = strategy.sum_over_ranks(torch.tensor([rank + 1.0, 10.0])).tolist()
    own = torch.full((2 * rank, 2), float(rank + 1), dtype=torch.float64, requires_grad=True)
    rows, first = strategy.gather_rows(own)
    result['rows'], result['first'] = rows.tolist(), first
    weights = torch.arange(rows.numel(), dtype=torch.float64).view_as(rows) * (rank + 1)
    rows.mul(weights).sum().backward()
    result['gradient'] = own.grad.tolist()
    numbers, _ = strategy.gather_rows(torch.arange(3 - rank))
    result['numbers'] = numbers.tolist()
    torch.manual_seed(rank)
    layers = torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.Linear(2, 1).double(), torch.nn.Linear(1, 1)])
    strategy.prepare(layers)
    result['weights'] = [parameter.flatten().tolist() for parameter in layers.parameters()]
    for number, layer in enumerate(layers):
        for parameter in layer.parameters():
            if number == 0 or (number == 1 and rank == 0):
                parameter.grad = torch.full_like(parameter, rank + 1.0)
    strategy.reduce_gradients(layers.parameters())
    result['gradients'] = [None if parameter.grad is None else parameter.grad.flatten().tolist()
                           for parameter in layers.parameters()]
    strategy.barrier()
    return result


def sources(arguments, folder):
    """A run with SourcesHook -> its lines, as the main rank wrote them."""
    from qvlkit.train.hooks.sources import SourcesHook
    trainer = build_stage(arguments['config'], arguments['stage'], folder / 'stage')
    trainer.hooks = [SourcesHook(interval=2)]
    trainer.fit()
    trainer.strategy.barrier()
    return [json.loads(line) for line in (folder / 'stage' / 'sources.jsonl').read_text().splitlines()]


class Poison(Hook):
    """Makes some steps bad on one rank: at the positions of the data, as bad data do."""

    def __init__(self, trainer, positions, rank, value):
        self.positions, self.trainer, original = positions, trainer, trainer.compute_loss

        def compute_loss(batch):
            here = trainer.strategy.rank == rank and trainer.guard.position in positions
            loss = original(batch)
            return loss * value if here else loss
        trainer.compute_loss = compute_loss
        self.before, self.equal = None, []

    def before_optimizer_step(self, trainer):
        self.before = [value.clone() for value in trainer.model.state_dict().values()]

    def after_train_iter(self, trainer):
        now = trainer.model.state_dict().values()
        self.equal.append(all(torch.equal(a, b) for a, b in zip(self.before, now)))


def poisoned(arguments, folder):
    """A run some of whose steps are bad on one rank -> which steps changed nothing, and how the run ended."""
    work_dir = Path(arguments.get('work_dir', folder / 'stage'))
    trainer = build_stage(arguments['config'], arguments['stage'], work_dir)
    poison = Poison(trainer, arguments['positions'], arguments['rank'], float(arguments['value']))
    trainer.hooks.append(poison)
    if arguments.get('resume'):
        trainer.resume()
    error = None
    try:
        trainer.fit()
    except ValueError as caught:
        error = str(caught)
    trainer.strategy.barrier()
    file = work_dir / 'guard.jsonl'
    log = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    total = sum(float(value.double().sum()) for value in trainer.model.state_dict().values())
    return dict(equal=poison.equal, error=error, guard=trainer.guard.state_dict(), log=log, step=trainer.step,
                total=repr(total))


def main(function, folder):
    """Call the function and leave what it returns in the folder."""
    folder = Path(folder)
    torch.set_num_threads(1)
    with processes():
        result = globals()[function](json.loads((folder / 'arguments.json').read_text()), folder)
        (folder / f'result{os.environ.get("RANK", "0")}.json').write_text(json.dumps(result))


if __name__ == '__main__':
    main(*sys.argv[1:])
