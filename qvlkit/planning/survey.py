"""A survey of a stage's data: steps planned as training plans them, nothing decoded, every sample's cost kept.

    loader's planner -> windows -> the first `steps` steps, and the samples that could not be used
"""
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from qvlkit.data.datasets.mixture import Mixture
from qvlkit.data.loader import PackedLoader
from qvlkit.data.planner import Placed, Planner, Waiting, sample_name
from qvlkit.data.sampler import Draw, Sampler
from qvlkit.structures import Measure, SampleError

Progress = Callable[[str, int, int | None], None]  # what is being done, how much of it is done, of how much


@dataclass(frozen=True)
class Item:
    """A sample in a row. share: `placed.length` and what of it is visual and learned; cost: of a training step."""
    id: str
    source: str
    placed: Placed
    cost: float
    visual: int
    targets: int


@dataclass
class Survey:
    """Planned steps: `steps[i][j]` is row j of step i.

    drawn: source -> samples drawn for these windows; left_out: of those, longer than a row and dropped; errors: not
    usable, each with its `source`. ended: the data ended before as many steps as were asked for. asked: source -> its
    share of the draws, as the mixture's weights say at the start.
    """
    steps: list[list[list[Item]]]
    row_length: int
    sources: list[str]
    asked: dict[str, float]
    drawn: Counter
    left_out: Counter
    errors: list[SampleError]
    ended: bool

    @property
    def rows(self) -> list[list[Item]]:
        """Rows of all steps, in order."""
        return [row for step in self.steps for row in step]

    @property
    def items(self) -> list[Item]:
        """Samples of all rows, in order."""
        return [item for row in self.rows for item in row]

    def of_source(self, source: str) -> list[Item]:
        """Samples of one source."""
        return [item for item in self.items if item.source == source]

    def row_tokens(self) -> np.ndarray:
        """(rows,) tokens of each row."""
        return np.array([sum(item.placed.length for item in row) for row in self.rows])

    def step_costs(self) -> list[np.ndarray]:
        """(rows of the step,) costs, for each step."""
        return [np.array([sum(item.cost for item in row) for row in step]) for step in self.steps]


def survey(loader: PackedLoader, *, steps: int, epoch: int = 0, progress: Progress | None = None) -> Survey:
    """Plan the first steps of a loader's data, in this process.

    Args:
        loader: As training builds it; it is not changed.
        steps: Optimizer steps to plan.
        epoch: Each source is read as at its visit of this number: in that visit's order, with its random transforms.
        progress: Told the samples measured and the steps planned.

    Raises:
        ValueError: `steps` or `epoch` is out of range, or no sample at all can be used.
    """
    if steps < 1 or epoch < 0:
        raise ValueError(f'expected steps of at least 1 and an epoch of at least 0, got {steps} and {epoch}')
    progress = progress or (lambda what, done, total: None)
    planner = _Recorder(loader, epoch, progress)
    asked = dict(zip((source.name for source in loader.mixture.sources), planner.sampler.shares().tolist()))
    planned, errors, ended, empty = [], [], False, 0
    while len(planned) < steps:
        window = planner.next_window()
        if window is None:
            ended = True
            break
        errors += window.errors
        planned += window.steps
        empty = 0 if window.steps else empty + window.num_samples
        if empty > len(loader.mixture):  # a source that is read without end, and nothing of it is usable
            break
        progress('planning steps', min(len(planned), steps), steps)
    if not planned:
        raise ValueError('data: no sample can be used' + (f'; the first: {errors[0]}' if errors else ''))
    items = [[[planner.item(placed) for placed in row] for row in step] for step in planned[:steps]]
    return Survey(items, loader.settings['row_length'], list(asked), asked, planner.drawn, planner.too_long,
                  _each_once(errors), ended)


class _Recorder(Planner):
    """A planner that keeps what it measures, and tells how far it is."""

    def __init__(self, loader: PackedLoader, epoch: int, progress: Progress):
        super().__init__(loader.mixture, loader.processor, self._kept_cost, **loader.settings)
        self.real_cost, self.progress = loader.cost, progress
        if epoch:
            self.sampler = _LaterSampler(loader.mixture, loader.settings['seed'], epoch)
        self.drawn, self.too_long = Counter(), Counter()
        self._known: dict[Draw, tuple[Measure, float]] = {}
        self._last = Measure(0, 0)

    def item(self, placed: Placed) -> Item:
        """A placed sample with what was measured of it."""
        measure, cost = self._known[placed.draw]
        return Item(sample_name(placed.draw, self.mixture), self.mixture.sources[placed.draw.source].name, placed, cost,
                    sum(map(self.processor.num_tokens, measure.grids)), measure.num_targets)

    def _kept_cost(self, measure: Measure) -> float:
        self._last = measure
        return float(measure.length) if self.real_cost is None else self.real_cost(measure)

    def _measure_one(self, draw: Draw) -> Waiting | None:
        source = self.mixture.sources[draw.source].name
        self.drawn[source] += 1
        self.progress('measuring samples', self.drawn.total(), None)
        found = super()._measure_one(draw)
        if found is None:
            self.too_long[source] += 1
        else:
            self._known[draw] = self._last, found.cost
        return found


class _LaterSampler(Sampler):
    """A sampler whose sources have been read through `epoch` times before."""

    def __init__(self, mixture: Mixture, seed: int, epoch: int):
        super().__init__(mixture, seed=seed)
        self.epoch = epoch

    def _take(self, chosen: list[int]) -> list[Draw]:
        return [draw._replace(epoch=draw.epoch + self.epoch) for draw in super()._take(chosen)]

    def _order(self, source: int, part: Any, epoch: int) -> np.ndarray:
        return super()._order(source, part, epoch + self.epoch)


def _each_once(errors: list[SampleError]) -> list[SampleError]:
    return list({error.sample_id: error for error in errors}.values())
