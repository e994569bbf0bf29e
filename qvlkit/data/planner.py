"""The planner: draws samples, measures them without decoding, and lays them into rows of equal tokens and compute.

A window of samples is planned at a time: drawn by the sampler, measured from headers, laid into rows by `plan_rows`,
and dealt to optimizer steps, micro-steps and ranks by `deal_rows`. Every rank plans the same windows and takes its own
rows. What a window holds depends on the state before it and on the seed: not on workers, nor, while ranks x
accumulation stay, on ranks.
"""
import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from qvlkit.data.datasets.mixture import Mixture
from qvlkit.data.packing import deal_rows, plan_rows
from qvlkit.data.sampler import Draw, Sampler
from qvlkit.structures import Measure, SampleError
from qvlkit.utils.seeded import seeded


class Placed(NamedTuple):
    """A sample in a row: which it is, how many tokens it has, and by how much its pictures were made smaller."""
    draw: Draw
    length: int
    shrink: float = 1.0


@dataclass
class Waiting:
    """A measured sample that has no row yet."""
    placed: Placed
    cost: float
    age: int = 0


@dataclass
class Window:
    """Planned steps: `steps[i][j]` is row j of step i for this rank, a list of `Placed`.

    state: of the planner after the window. errors: samples that could not be used, in the order of their draws.
    num_samples: samples drawn for it, `left_out` of them for their length. key: a hash of everything that was
    planned, for all ranks.
    """
    steps: list[list[list[Placed]]]
    state: dict
    errors: list[SampleError] = field(default_factory=list)
    num_samples: int = 0
    key: str = ''
    left_out: int = 0


class Planner:
    """Iterating gives one window after another, until the data ends.

    Args:
        mixture: The sources.
        processor: Its `measure` and `measure_sizes`.
        cost: Measure -> cost of a sample in a training step, in any unit; tokens if None.
        row_length: Tokens of a row, at most.
        window: Samples that are planned together, at least; larger windows make fuller and more even rows.
        accumulation: Rows of each rank in an optimizer step.
        rank, world_size: Whose rows to give.
        seed: Of everything drawn.
    """

    def __init__(self, mixture: Mixture, processor: Any, cost: Callable[[Measure], float] | None = None, *,
                 row_length: int, window: int, accumulation: int = 1, rank: int = 0, world_size: int = 1,
                 seed: int = 0):
        self.mixture, self.processor, self.cost = mixture, processor, cost
        self.row_length, self.window, self.accumulation = row_length, window, accumulation
        self.rank, self.world_size, self.seed = rank, world_size, seed
        self.sampler = Sampler(mixture, seed=seed)
        self.waiting: list[Waiting] = []
        self.windows = 0
        self._good: set[int] = set()  # sources of which a good sample was met since their last bad one
        self.left_out = 0  # samples of the window that are longer than a row, and whose source leaves such out

    def __iter__(self) -> Iterator[Window]:
        while (window := self.next_window()) is not None:
            yield window

    def next_window(self) -> Window | None:
        """Plan the next window; None if the data has ended. One without steps brought errors alone."""
        errors, drawn, fruitless = [], 0, 0
        self.left_out = 0
        while not self.sampler.ended and (len(self.waiting) < self.window or
                                          self._rows_waiting() < self.accumulation * self.world_size):
            draws = self.sampler.draw(max(self.window - len(self.waiting), self.window // 4, 1))
            accepted = self._measure(draws, errors)
            self.waiting += accepted
            drawn += len(draws)
            fruitless = 0 if accepted else fruitless + len(draws)
            if fruitless >= self.window:  # let the loader count the errors, and stop if there are too many
                return Window([], self.state_dict(), errors, drawn, left_out=self.left_out)
        if not self.waiting:
            return Window([], self.state_dict(), errors, drawn, left_out=self.left_out) if drawn else None
        steps = self._lay_out()
        self.windows += 1
        mine = [[row[self.rank] for row in step] for step in steps]
        return Window(mine, self.state_dict(), errors, drawn, _key(steps), self.left_out)

    def _rows_waiting(self) -> int:
        """How many rows the waiting samples fill."""
        lengths = [item.placed.length for item in self.waiting]
        return sum(length > self.row_length for length in lengths) + sum(
            length for length in lengths if length <= self.row_length) // self.row_length

    def _measure(self, draws: list[Draw], errors: list[SampleError]) -> list[Waiting]:
        """What the draws will cost; tells the sampler, and collects what cannot be used."""
        accepted, tokens = [], [0] * len(self.mixture.sources)
        for draw in draws:
            try:
                found = self._measure_one(draw)
            except SampleError as error:
                error.source, error.after_good = self.mixture.sources[draw.source].name, draw.source in self._good
                self._good.discard(draw.source)
                errors.append(error)
                continue
            if found is not None:
                self._good.add(draw.source)
                accepted.append(found)
                tokens[draw.source] += found.placed.length
        self.sampler.note(tokens)
        return accepted

    def _measure_one(self, draw: Draw) -> Waiting | None:
        """One draw, measured; None if it is longer than a row and its source says to leave such samples out."""
        source = self.mixture.sources[draw.source]
        measure = measure_draw(draw, self.mixture, self.processor)
        shrink = 1.0
        if measure.length > self.row_length and source.oversize == 'shrink' and measure.grids:
            measure, shrink = self._shrunk(draw, measure)
        if measure.length > self.row_length and source.oversize != 'own_row':
            if source.oversize == 'drop':
                self.left_out += 1
                return None
            raise SampleError(sample_name(draw, self.mixture), f'{measure.length} tokens do not fit a row of '
                              f'{self.row_length} (loader.row_length); nothing is ever cut', 'too_long')
        if not measure.num_targets:
            raise SampleError(sample_name(draw, self.mixture),
                              'no token is a target: the conversation has no answer', 'no_target')
        cost = self.cost(measure) if self.cost is not None else float(measure.length)
        return Waiting(Placed(draw, measure.length, shrink), cost)

    def _shrunk(self, draw: Draw, measure: Measure) -> tuple[Measure, float]:
        """The sample with pictures so much smaller that it fits a row, if that is possible; and the factor of area."""
        visual = sum(map(self.processor.num_tokens, measure.grids))
        shrink = 1.0
        for _ in range(8):
            room = self.row_length - (measure.length - visual)
            if room <= 0:
                break
            shrink *= 0.97 * room / visual
            measure = measure_draw(draw, self.mixture, self.processor, shrink=shrink)
            visual = sum(map(self.processor.num_tokens, measure.grids))
            if measure.length <= self.row_length:
                break
        return measure, shrink

    def _lay_out(self) -> list[list[list[list[Placed]]]]:
        """Rows of all ranks, (steps, accumulation, ranks); what found no place goes on waiting."""
        per_step = self.accumulation * self.world_size
        long = [item for item in self.waiting if item.placed.length > self.row_length]
        rest = [item for item in self.waiting if item.placed.length <= self.row_length]
        rows = self._rows_waiting()
        rows -= rows % per_step
        if not rows:  # the end of the data: what is left, in one smaller step
            return [self._last_step(long, rest)]
        laid, costs, left = self._rows(long, rest, rows)
        self.waiting = [Waiting(item.placed, item.cost, item.age + 1) for item in left]
        dealt = deal_rows(np.array(costs), steps=rows // per_step, accumulation=self.accumulation,
                          ranks=self.world_size, rng=seeded(self.seed, 'deal', self.windows))
        return [[[laid[row] for row in micro] for micro in step] for step in dealt.tolist()]

    def _rows(self, long: list[Waiting], rest: list[Waiting], rows: int
              ) -> tuple[list[list[Placed]], list[float], list[Waiting]]:
        """`rows` rows, each one's cost, and what found no place; a sample longer than a row has a row of its own."""
        own, room = long[:rows], rows - len(long[:rows])
        members: list[list[Waiting]] = [[] for _ in range(room)]
        left = list(long[rows:])
        if room and rest:
            row_of = plan_rows(np.array([item.placed.length for item in rest]), np.array([item.cost for item in rest]),
                               row_length=self.row_length, num_rows=room, age=np.array([item.age for item in rest]),
                               source=np.array([item.placed.draw.source for item in rest]))
            for item, row in zip(rest, row_of.tolist()):
                (members[row] if row >= 0 else left).append(item)
        else:
            left += rest
        for row in members:  # neighbours of equal length share a call of attention
            row.sort(key=lambda item: item.placed.length)
        full = members + [[item] for item in own]
        return ([[item.placed for item in row] for row in full], [sum(item.cost for item in row) for row in full], left)

    def _last_step(self, long: list[Waiting], rest: list[Waiting]) -> list[list[list[Placed]]]:
        """Everything that waits in one step with as many rows as it takes, the same number for each rank."""
        total = len(long) + math.ceil(sum(item.placed.length for item in rest) / self.row_length)
        rows = math.ceil(total / self.world_size) * self.world_size
        laid, _, left = self._rows(long, rest, rows)
        while left:
            rows += self.world_size
            laid, _, left = self._rows(long, rest, rows)
        self.waiting = []
        return [laid[start:start + self.world_size] for start in range(0, rows, self.world_size)]

    def state_dict(self) -> dict:
        """All that the next window depends on."""
        return dict(sampler=self.sampler.state_dict(), windows=self.windows, waiting=[
            [*item.placed.draw, item.placed.length, item.placed.shrink, item.cost, item.age] for item in self.waiting])

    def load_state_dict(self, state: dict) -> None:
        """Go on where `state` was taken."""
        self.sampler.load_state_dict(state['sampler'])
        self.windows = state['windows']
        self.waiting = [Waiting(Placed(Draw(*item[:3]), item[3], item[4]), item[5], item[6])
                        for item in state['waiting']]


def measure_draw(draw: Draw, mixture: Mixture, processor: Any, shrink: float = 1.0) -> Measure:
    """A draw's measure: from its store where that knows enough, else from the sample."""
    source = mixture.sources[draw.source]
    sizes = mixture.sizes(draw.source, draw.index)
    if sizes is not None and shrink == 1.0:
        measure = processor.measure_sizes(sizes, sample_name(draw, mixture), epoch=draw.epoch, limits=source.limits)
        if measure is not None:
            return measure
    return processor.measure(drawn_sample(draw, mixture, processor, shrink), epoch=draw.epoch)


def drawn_sample(draw: Draw, mixture: Mixture, processor: Any, shrink: float = 1.0) -> Any:
    """The sample of a draw, with limits that make its pictures smaller by `shrink` in area."""
    sample = mixture.sample(draw.source, draw.index)
    if shrink != 1.0:
        sample.limits = processor.shrunk_limits(sample, shrink, epoch=draw.epoch)
    return sample


def sample_name(draw: Draw, mixture: Mixture) -> str:
    """The id of a draw's sample, without reading the sample where the dataset can tell."""
    dataset = mixture.sources[draw.source].dataset
    name = getattr(dataset, 'sample_id', None)
    return name(draw.index) if name is not None else dataset[draw.index].id


def _key(steps: list) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for step in steps:
        for micro in step:
            for row in micro:
                digest.update(repr([tuple(placed) for placed in row]).encode())
    return digest.hexdigest()
