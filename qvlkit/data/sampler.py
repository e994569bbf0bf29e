"""The sampler: which sample of which source comes next. Small, exact state; no pixel, no text.

Draws are made in blocks. In a block every source gets its share, within one sample, in random order; so the mix of any
stretch is nearly that of the mixture. What is drawn depends on the state and the seed alone.
"""
import dataclasses
from typing import Any, NamedTuple

import numpy as np

from qvlkit.data.datasets.mixture import Mixture, Source
from qvlkit.registry import near_names
from qvlkit.utils.seeded import seeded

BLOCK = 256  # draws that are dealt together
NEIGHBOURS = 1024  # samples of a run that order 'blocks' keeps together


class Draw(NamedTuple):
    """One sample to be read: source number, index in it, and how often the source had been read before."""
    source: int
    index: int
    epoch: int


class Sampler:
    """Draws from a mixture.

    Args:
        mixture: The sources and their shares.
        seed: Of everything that is drawn.
    """

    def __init__(self, mixture: Mixture, *, seed: int = 0):
        self.mixture, self.seed = mixture, seed
        count = len(mixture.sources)
        self.drawn = [0] * count  # samples of each source so far
        self.noted = [0] * count  # of those, the ones whose tokens are known
        self.tokens = [0] * count  # tokens of those
        self.blocks = 0  # blocks dealt so far
        self.debts: dict[str, float] = {}  # tokens that a part of a token-weighted mixture has had too few
        self.fixed: dict[str, float] = {}  # weights set from outside, by path
        self.ended = False
        self._orders: dict[int, tuple[int, np.ndarray]] = {}
        self._below = _sources_below(mixture)

    def draw(self, count: int) -> list[Draw]:
        """The next draws: `count`, but at most one block, and fewer if the data ends. Tell `note` what they brought
        before the next call."""
        count = min(count, BLOCK)
        draws: list[Draw] = []
        while not draws and not self.ended:
            shares = self.shares(count)
            if not shares.any():
                self.ended = True
                break
            rng = seeded(self.seed, 'mixture', self.blocks)
            steps = (np.arange(count) + rng.random()) / count
            chosen = np.minimum(np.searchsorted(np.cumsum(shares), steps, side='right'), len(shares) - 1)
            draws = self._take(rng.permutation(chosen).tolist())
            self.blocks += 1
        return draws

    def shares(self, count: int = BLOCK) -> np.ndarray:
        """The probability of each source in the next `count` draws: (sources,), summing to 1, or zeros if all are
        exhausted."""
        shares = np.zeros(len(self.mixture.sources))
        self._share(self.mixture, '', 1.0, shares, count)
        total = shares.sum()
        return shares / total if total else shares

    def note(self, tokens: list[int]) -> None:
        """Tell how many tokens of each source the last draws brought, so that token shares can be kept."""
        self._settle(self.mixture, '', tokens)
        self.tokens = [before + new for before, new in zip(self.tokens, tokens)]
        self.noted = list(self.drawn)

    def set_weights(self, weights: dict[str, float]) -> None:
        """Replace the weights of parts, by path ('images/charts'); they hold until they are set again."""
        for path, weight in weights.items():
            if path not in self._below:
                raise ValueError(f'set_weights: the mixture has no part {path!r}{near_names(path, list(self._below))}; '
                                 f'parts: {", ".join(self._below)}')
            if not weight >= 0:
                raise ValueError(f'set_weights: {path}: expected a number of at least 0, got {weight!r}')
        self.fixed.update(weights)
        self.debts = {}

    def state_dict(self) -> dict:
        """All that the next draw depends on."""
        return dict(drawn=list(self.drawn), noted=list(self.noted), tokens=list(self.tokens), blocks=self.blocks,
                    debts=dict(self.debts), fixed=dict(self.fixed), ended=self.ended)

    def load_state_dict(self, state: dict) -> None:
        """Go on where `state` was taken."""
        for key, value in state.items():
            setattr(self, key, type(value)(value) if isinstance(value, list | dict) else value)

    def _take(self, chosen: list[int]) -> list[Draw]:
        draws = []
        for source in chosen:
            part, drawn = self.mixture.sources[source], self.drawn[source]
            if drawn >= part.draws:
                if part.exhausted == 'stop':
                    self.ended = True
                    break
                continue
            epoch, place = divmod(drawn, len(part.dataset))
            self.drawn[source] += 1
            draws.append(Draw(source, int(self._order(source, part, epoch)[place]), epoch))
        return draws

    def _order(self, source: int, part: Source, epoch: int) -> np.ndarray:
        """Indices of a source in the order of an epoch."""
        if source not in self._orders or self._orders[source][0] != epoch:
            self._orders[source] = epoch, _order(part, seeded(self.seed, 'order', part.name, epoch))
        return self._orders[source][1]

    def _left(self, path: str) -> bool:
        """Whether the part at `path` can still give something, or ends the data when it cannot."""
        sources = self.mixture.sources
        return any(self.drawn[i] < sources[i].draws or sources[i].exhausted == 'stop' for i in self._below[path])

    def _weights(self, mixture: Mixture, prefix: str) -> dict[str, float]:
        """Normalised weights of a mixture's parts that have something left."""
        tokens = float(sum(self.tokens))
        weights = {key: self.fixed.get(prefix + key, mixture.weight(key, tokens)) for key in mixture.parts
                   if self._left(prefix + key)}
        total = sum(weights.values())
        return {key: weight / total for key, weight in weights.items()} if total else {}

    def _share(self, mixture: Mixture, prefix: str, share: float, shares: np.ndarray, count: int) -> None:
        """Add each source's part of `share` to `shares`."""
        weights = self._weights(mixture, prefix)
        if mixture.by == 'token' and weights:
            weights = self._steered(weights, prefix, count * share)
        for key, weight in weights.items():
            part = mixture.parts[key]
            if isinstance(part, Mixture):
                self._share(part, f'{prefix}{key}/', share * weight, shares, count)
            else:
                shares[self._below[prefix + key][0]] += share * weight

    def _steered(self, weights: dict[str, float], prefix: str, count: float) -> dict[str, float]:
        """Shares of the next `count` draws that bring the wanted shares of tokens: by mean lengths so far, with what a
        part has had too little repaid."""
        drawn = {key: sum(self.noted[i] for i in self._below[prefix + key]) for key in weights}
        tokens = {key: sum(self.tokens[i] for i in self._below[prefix + key]) for key in weights}
        mean = sum(tokens.values()) / sum(drawn.values()) if any(tokens.values()) else 1.0
        wanted = {key: max(weight * mean * count + self.debts.get(prefix + key, 0.0), 0.02 * weight * mean * count)
                  for key, weight in weights.items() if weight}
        result = {key: wanted[key] * drawn[key] / tokens[key] if tokens[key] else wanted[key] / mean
                  for key in wanted}
        total = sum(result.values())
        return {key: value / total for key, value in result.items()}

    def _settle(self, mixture: Mixture, prefix: str, tokens: list[int]) -> None:
        """Book what each part of each token-weighted mixture should have had, and what it had."""
        had = {key: sum(tokens[i] for i in self._below[prefix + key]) for key in mixture.parts}
        if mixture.by == 'token':
            weights = self._weights(mixture, prefix)
            for key in mixture.parts:
                owed = weights.get(key, 0.0) * sum(had.values()) - had[key]
                self.debts[prefix + key] = self.debts.get(prefix + key, 0.0) + owed if key in weights else 0.0
        for key, part in mixture.parts.items():
            if isinstance(part, Mixture):
                self._settle(part, f'{prefix}{key}/', tokens)


def _sources_below(mixture: Mixture) -> dict[str, list[int]]:
    """Path of each part, at every depth -> numbers of the sources in it."""
    below: dict[str, list[int]] = {}
    for number, source in enumerate(mixture.sources):
        names = source.name.split('/')
        for depth in range(1, len(names) + 1):
            below.setdefault('/'.join(names[:depth]), []).append(number)
    return below


def _order(part: Source, rng: np.random.Generator) -> np.ndarray:
    count = len(part.dataset)
    if part.order == 'sequential':
        return np.arange(count)
    if part.order == 'shuffle':
        return rng.permutation(count)
    starts = rng.permutation(np.arange(0, count, NEIGHBOURS))
    return np.concatenate([start + rng.permutation(min(NEIGHBOURS, count - start)) for start in starts])


def replacements(draw: Draw, mixture: Mixture, *, seed: int, tries: int) -> list[Draw]:
    """Samples of the same source to take one's place that cannot be used: fixed by the seed and the draw alone."""
    rng = seeded(seed, 'replacement', draw.source, draw.index, draw.epoch)
    count = len(mixture.sources[draw.source].dataset)
    return [draw._replace(index=int(index)) for index in rng.integers(count, size=tries)]


def described(state: dict, mixture: Mixture) -> dict[str, Any]:
    """Samples and tokens of each source so far, for people."""
    return {source.name: dict(samples=drawn, tokens=tokens)
            for source, drawn, tokens in zip(mixture.sources, state['drawn'], state['tokens'])}


def same_mixture(mixture: Mixture) -> dict:
    """What must not change between a stop and a resume: names, sizes and settings of the sources, and their shares."""
    sources = [{**{f.name: getattr(source, f.name) for f in dataclasses.fields(source) if f.name != 'dataset'},
                'samples': len(source.dataset)} for source in mixture.sources]
    return dict(sources=sources, shares=_weights_of(mixture))


def _weights_of(mixture: Mixture) -> dict:
    return dict(by=mixture.by, **{key: [mixture.weights[key], _weights_of(part) if isinstance(part, Mixture) else None]
                                  for key, part in mixture.parts.items()})
