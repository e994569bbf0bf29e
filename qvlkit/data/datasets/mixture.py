"""Several datasets as one: which shares they have, in which order each is read, and what happens at its end.

A mixture may hold mixtures. As a dataset it is its parts laid end to end; which sample is drawn next is the sampler's
work (data/sampler.py), from what stands here.
"""
import copy
import dataclasses
import math
from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from qvlkit.registry import DATASETS, near_names
from qvlkit.structures import Sample, SampleSizes

PART_KEYS = ('dataset', 'weight', 'order', 'epochs', 'exhausted', 'oversize', 'limits')
ORDERS = ('shuffle', 'blocks', 'sequential')
EXHAUSTED = ('drop', 'stop')
OVERSIZE = ('error', 'drop', 'shrink', 'own_row')
BY = ('sample', 'token')
SCHEDULE_EXAMPLE = '[[0, 1.0], [1000000000, 0.2]]'


@dataclass(frozen=True)
class Source:
    """A dataset that is not a mixture, as a mixture reads it.

    name: its path in the mixture, 'images/charts'. order: 'shuffle' (anew in each epoch), 'blocks' (runs of neighbours
    in random order, for storage that reads forward), 'sequential'. epochs: how often it is read, without end if None.
    exhausted: at its end its share goes to the others ('drop') or the data ends ('stop'). oversize: what becomes of a
    sample longer than a row. limits: what it sets instead of the processor's own.
    """
    name: str
    dataset: Any
    order: str = 'shuffle'
    epochs: float | None = None
    exhausted: str = 'drop'
    oversize: str = 'error'
    limits: dict = field(default_factory=dict)

    @property
    def draws(self) -> float:
        """How many samples it can give."""
        return math.inf if self.epochs is None else math.ceil(self.epochs * len(self.dataset))


@DATASETS.register_module()
class Mixture:
    """Datasets drawn by weight.

    Args:
        parts: Name of each part -> dict(dataset=its config or a built dataset) and, where wanted, weight=1.0, order,
            epochs, exhausted, oversize, limits (see `Source`). A weight is a number, or a schedule over tokens:
            [[0, 1.0], [1000000000, 0.2]] falls in a straight line and stays at the last value. Without 'order', a part
            is shuffled. A part that is a mixture has dataset and weight alone.
        by: Whether weights are shares of the 'sample's or of the 'token's. Shares of tokens are steered: what a part
            has had too little of it gets in the next draws.
        name: Name of the mixture.

    `source` of a sample is its part's path. As a sequence, a mixture is its parts end to end, each once.

    Raises:
        ValueError: A part is empty or ill-formed, or a weight is not a number of at least 0.
    """

    def __init__(self, parts: dict[str, dict], *, by: str = 'sample', name: str = 'mixture'):
        if not parts:
            raise ValueError('Mixture.parts: expected at least one dataset, got none')
        if by not in BY:
            raise ValueError(f'Mixture.by: expected one of {BY}, got {by!r}{near_names(by, list(BY))}')
        self.by, self.name = by, name
        self.weights: dict[str, list[tuple[float, float]]] = {}
        self.parts: dict[str, Mixture | Source] = {}
        for key, part in parts.items():
            where = f'Mixture.parts.{key}'
            if not isinstance(part, dict) or 'dataset' not in part:
                raise ValueError(f"{where}: expected a dict with 'dataset' and perhaps {', '.join(PART_KEYS[1:])}, "
                                 f'got {part!r:.300}')
            for given in part:
                if given not in PART_KEYS:
                    raise ValueError(f'{where}.{given}: unknown key{near_names(given, list(PART_KEYS))}; known: '
                                     f'{", ".join(PART_KEYS)}')
            self.weights[key] = _schedule(part.get('weight', 1.0), f'{where}.weight')
            self.parts[key] = _part(key, part, where)
        if not any(weight for points in self.weights.values() for _, weight in points):
            raise ValueError('Mixture.parts: every weight is 0')
        self.sources = self._sources()
        self._ends = list(accumulate(len(source.dataset) for source in self.sources))

    def weight(self, key: str, tokens: float) -> float:
        """The weight of a part after so many tokens."""
        points = self.weights[key]
        place = bisect_right(points, tokens, key=lambda point: point[0])
        if place == 0 or place == len(points):
            return points[max(0, place - 1)][1]
        (x0, y0), (x1, y1) = points[place - 1:place + 1]
        return y0 + (y1 - y0) * (tokens - x0) / (x1 - x0)

    def read_once(self) -> 'Mixture':
        """The same mixture, in which a source that does not say how often it is read is read once."""
        once = copy.copy(self)
        once.parts = {key: part.read_once() if isinstance(part, Mixture) else
                      dataclasses.replace(part, epochs=1.0 if part.epochs is None else part.epochs)
                      for key, part in self.parts.items()}
        once.sources = once._sources()
        return once

    def _sources(self) -> list[Source]:
        found = []
        for key, part in self.parts.items():
            if isinstance(part, Mixture):
                found += [dataclasses.replace(source, name=f'{key}/{source.name}') for source in part.sources]
            else:
                found.append(part)
        return found

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f'{self.name}: index {index} of {len(self)}')
        place = bisect_right(self._ends, index)
        return self.sample(place, index - (self._ends[place - 1] if place else 0))

    def sample(self, source: int, index: int) -> Sample:
        """Sample `index` of source number `source`, under the source's name and limits."""
        part = self.sources[source]
        sample = part.dataset[index]
        return dataclasses.replace(sample, source=part.name, limits={**part.limits, **sample.limits})

    def sizes(self, source: int, index: int) -> SampleSizes | None:
        """What the source's store knows of a sample without reading it, if anything."""
        sizes = getattr(self.sources[source].dataset, 'sizes', None)
        return sizes(index) if sizes is not None else None


def as_mixture(dataset: Any, order: str = 'shuffle') -> Mixture:
    """The dataset itself if it is a mixture, else a mixture of it alone."""
    if isinstance(dataset, Mixture):
        return dataset
    return Mixture({getattr(dataset, 'name', None) or 'data': dict(dataset=dataset, order=order)})


def _part(key: str, part: dict, where: str) -> Any:
    dataset = part['dataset']
    if isinstance(dataset, dict):
        dataset = DATASETS.build(dataset, config_key=f'{where}.dataset')
    if len(dataset) == 0:
        raise ValueError(f'{where}.dataset: expected samples, but it has none')
    settings = {name: part[name] for name in PART_KEYS[2:] if name in part}
    if isinstance(dataset, Mixture):
        if settings:
            raise ValueError(f'{where}.{next(iter(settings))}: a part that is a mixture has none; say it of its parts')
        return dataset
    for name, allowed in (('order', ORDERS), ('exhausted', EXHAUSTED), ('oversize', OVERSIZE)):
        if name in settings and settings[name] not in allowed:
            raise ValueError(f'{where}.{name}: expected one of {", ".join(allowed)}, got {settings[name]!r}'
                             f'{near_names(settings[name], list(allowed))}')
    epochs = settings.get('epochs')
    if epochs is not None and not (isinstance(epochs, int | float) and epochs > 0):
        raise ValueError(f'{where}.epochs: expected a number above 0, or None to read it without end, got {epochs!r}')
    if not isinstance(settings.get('limits', {}), dict):
        raise ValueError(f'{where}.limits: expected a dict such as dict(max_pixels=200704), got {settings["limits"]!r}')
    return Source(key, dataset, **settings)


def _schedule(weight: Any, where: str) -> list[tuple[float, float]]:
    """A weight as (tokens, weight) points in order."""
    points = weight if isinstance(weight, list | tuple) else [[0, weight]]
    for point in points:
        if not (isinstance(point, list | tuple) and len(point) == 2 and all(
                isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
                for value in point)):
            raise ValueError(f'{where}: expected a number of at least 0, or a schedule such as {SCHEDULE_EXAMPLE}, '
                             f'got {weight!r:.200}')
    if [point[0] for point in points] != sorted({point[0] for point in points}) or not points:
        raise ValueError(f'{where}: expected tokens that rise, as in {SCHEDULE_EXAMPLE}, got {weight!r:.200}')
    return [(float(tokens), float(value)) for tokens, value in points]
