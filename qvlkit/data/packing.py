"""Packing: samples laid whole into rows that are full and equally costly, and rows dealt to steps and ranks.

All ranks wait for the costliest row of a micro-step, and a picture costs the vision encoder what text does not: rows of
one length are not rows of one cost. So tokens and cost are planned together, over a window of many samples: `plan_rows`
makes the rows, `deal_rows` gives each optimizer step its share of them and puts rows of equal cost side by side.

A row of one long text stays cheap, and one of a large video costly, whatever is done: what evens those out is
accumulation, for `deal_rows` puts them into one micro-step.

Shapes: S samples, R rows.
"""
import numpy as np

FIRST = 0.99  # of the rows' tokens: samples placed in draw order; they all fit, and leave gaps to exchange into
BATCHES = 16  # samples are spread R / BATCHES at a time
CYCLES = 2  # of evening out, exchanging and filling
SWAPS = 100  # rounds of swaps in a cycle
PATIENCE = 10  # rounds without a swap after which a cycle ends
MEMBERS = 8  # samples of a row that a round of swaps looks at
EXCHANGES = 12  # rounds of exchanges in a cycle
NEAR = 8  # samples outside that an exchange looks at
SLACK = 1 / 200  # of a row: tokens that may stay free, and what its cost may be off before it exchanges samples
EVEN = 1e-3  # rows whose costs differ by less, relative to the mean, do not swap
SHED = 0.002  # of all tokens: what costly rows may give up in the end
GOLDEN = 0.618  # of the rows: a shift that brings other rows together in each round


def plan_rows(tokens: np.ndarray, costs: np.ndarray, *, row_length: int, num_rows: int,
              age: np.ndarray | None = None, source: np.ndarray | None = None) -> np.ndarray:
    """Lay samples whole into `num_rows` rows that are full and cost the same.

    The oldest samples, then the first drawn, are taken until they nearly fill the rows: what is left over is the end of
    the draw, not a kind of sample. Large ones go into the emptiest rows, costly ones to cheap rows. Then costly and
    cheap rows swap samples, rows exchange samples with the left-overs to close their gaps, and small left-overs fill
    what is still free. No chance is in it: the same samples give the same rows.

    Args:
        tokens: (S,) of each sample, in draw order; at least 1, at most `row_length`.
        costs: (S,) of each sample, in any unit that adds up.
        row_length: Tokens of a row, at most.
        num_rows: Up to sum(tokens) // row_length, so that no row stays empty.
        age: (S,) how often each sample was left over before. Left-overs come first in the next call, in their order,
            with age + 1. From age 2 on the oldest are placed before all others, so nothing waits for ever.
        source: (S,) a number for where each sample is from. Exchanges stay within a source, and so keep the mixture.

    Returns:
        (S,) int32: the row of each sample, -1 for what is left over.
    """
    tokens, costs = np.asarray(tokens, np.int64), np.asarray(costs, np.float64)
    age, source = (np.zeros(len(tokens), np.int64) if array is None else np.asarray(array, np.int64)
                   for array in (age, source))
    _check(tokens, costs, age, source, row_length, num_rows)
    rows = _Rows(tokens, costs, row_length, num_rows)
    if num_rows == 0 or len(tokens) == 0:
        return rows.row_of
    queue = np.argsort(-age, kind='stable')
    due = np.searchsorted(np.cumsum(tokens[queue]), FIRST * num_rows * row_length, 'right')
    chosen = queue[:max(1, due)]
    waiting = age[chosen].clip(min=1)
    for level in np.unique(waiting)[::-1]:
        rows.spread(chosen[waiting == level])
    stays = age > 1
    for _ in range(CYCLES):
        rows.even_out()
        rows.exchange(source, stays)
        rows.fill(queue)
    rows.even_out()
    rows.shed(stays)
    return rows.row_of


def deal_rows(costs: np.ndarray, *, steps: int, accumulation: int, ranks: int,
              rng: np.random.Generator) -> np.ndarray:
    """Deal rows to optimizer steps, and within a step to micro-steps and ranks.

    Of each run of `steps` rows of like cost every step gets one, by lot: steps cost the same, and see the same mixture.
    In a step the rows are sorted by cost and cut into micro-steps, so ranks that work side by side work equally long.

    Args:
        costs: (R,) of each row; R = steps * accumulation * ranks.
        rng: Draws which step gets which row, and the order of ranks and micro-steps.

    Returns:
        (steps, accumulation, ranks) int64: row numbers, each once.
    """
    costs = np.asarray(costs, np.float64)
    if steps * accumulation * ranks != len(costs):
        raise ValueError(f'{len(costs)} rows cannot be dealt to {steps} steps x {accumulation} micro-steps x '
                         f'{ranks} ranks = {steps * accumulation * ranks} places')
    order = np.argsort(costs, kind='stable').reshape(accumulation * ranks, steps)
    dealt = rng.permuted(order, axis=1).T.reshape(steps, accumulation, ranks).copy()
    dealt[:, 1::2] = dealt[:, 1::2, ::-1]  # a rank that had the cheapest of a micro-step has the costliest of the next
    for step in dealt:
        step[:] = step[rng.permutation(accumulation)][:, rng.permutation(ranks)]
    return dealt


def _check(tokens: np.ndarray, costs: np.ndarray, age: np.ndarray, source: np.ndarray, row_length: int,
           num_rows: int) -> None:
    if not tokens.shape == costs.shape == age.shape == source.shape == (tokens.size,):
        raise ValueError(f'tokens, costs, age and source must be flat and of one length, got shapes {tokens.shape}, '
                         f'{costs.shape}, {age.shape} and {source.shape}')
    if num_rows < 0:
        raise ValueError(f'num_rows must be at least 0, got {num_rows}')
    if len(wrong := np.flatnonzero(~(np.isfinite(costs) & (costs >= 0)))):
        raise ValueError(f'sample {wrong[0]} costs {costs[wrong[0]]}, expected a finite number of at least 0')
    if len(wrong := np.flatnonzero((tokens < 1) | (tokens > row_length))):
        raise ValueError(f'sample {wrong[0]} has {tokens[wrong[0]]} tokens, expected 1 to row_length {row_length}')


class _Rows:
    """Rows being filled: the row of each sample (-1: outside), the free tokens and the cost of each row."""

    def __init__(self, tokens: np.ndarray, costs: np.ndarray, row_length: int, num_rows: int):
        self.tokens, self.row_length = tokens, row_length
        self.costs = costs / (costs.max(initial=0.0) or 1.0)
        self.rate = self.costs.sum() / max(1, tokens.sum()) or 1.0  # mean cost of a token
        self.row_of = np.full(len(tokens), -1, np.int32)
        self.free = np.full(num_rows, row_length, np.int64)
        self.cost = np.zeros(num_rows)

    def _put(self, samples: np.ndarray, rows: np.ndarray) -> None:
        """One sample from outside into each of different rows."""
        self.row_of[samples] = rows
        self.free[rows] -= self.tokens[samples]
        self.cost[rows] += self.costs[samples]

    def _take(self, samples: np.ndarray) -> None:
        """One sample out of each of different rows."""
        rows = self.row_of[samples]
        self.row_of[samples] = -1
        self.free[rows] += self.tokens[samples]
        self.cost[rows] -= self.costs[samples]

    def _members(self, keep: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(samples sorted by row, where each row begins, how many it has), without those of `keep`."""
        inside = np.flatnonzero(self.row_of >= 0 if keep is None else (self.row_of >= 0) & ~keep)
        inside = inside[np.argsort(self.row_of[inside], kind='stable')]
        count = np.bincount(self.row_of[inside], minlength=len(self.free))
        return inside, np.cumsum(count) - count, count

    def spread(self, samples: np.ndarray) -> None:
        """Lay samples, large ones first, into the emptiest rows; what does not fit stays outside."""
        samples = samples[np.argsort(-self.tokens[samples], kind='stable')]
        dear = self.costs - self.rate * self.tokens
        size = -(-len(self.free) // BATCHES)
        for start in range(0, len(samples), size):
            batch = samples[start:start + size]
            rows = np.argpartition(-self.free, len(batch) - 1)[:len(batch)]
            above = self.cost[rows] - self.rate * (self.row_length - self.free[rows])
            batch, rows = batch[np.argsort(dear[batch], kind='stable')], rows[np.argsort(-above, kind='stable')]
            fits = self.tokens[batch] <= self.free[rows]
            self._put(batch[fits], rows[fits])
            batch, rows = batch[~fits], rows[~fits]  # these by size alone
            batch = batch[np.argsort(-self.tokens[batch], kind='stable')]
            rows = rows[np.argsort(-self.free[rows], kind='stable')]
            fits = self.tokens[batch] <= self.free[rows]
            self._put(batch[fits], rows[fits])

    def fill(self, samples: np.ndarray) -> None:
        """Give each row the largest sample from outside that fits, again and again, until none fits anywhere."""
        samples = samples[self.row_of[samples] < 0]
        samples = samples[np.argsort(self.tokens[samples], kind='stable')]
        while len(samples):
            rows = np.argsort(-self.free, kind='stable')
            fitting = np.searchsorted(self.tokens[samples], self.free[rows], 'right') - 1
            place = np.arange(len(rows))
            picked = np.minimum.accumulate(fitting + place) - place  # strictly falling: no sample twice
            rows, picked = rows[picked >= 0], picked[picked >= 0]
            if not len(rows):
                return
            self._put(samples[picked], rows)
            samples = np.delete(samples, picked)

    def even_out(self) -> None:
        """Swap samples between costly and cheap rows, one for one, as long as their costs come together."""
        half = len(self.free) // 2
        inside, first, count = self._members()
        idle = 0
        for turn in range(SWAPS):
            order = np.argsort(self.cost, kind='stable')
            low, high = np.roll(order[:half], int(turn * GOLDEN * half)), order[::-1][:half]
            apart = self.cost[high] - self.cost[low] > EVEN * self.cost.mean()
            apart &= np.minimum(count[low], count[high]) > 0
            low, high = low[apart], high[apart]
            if not len(low) or idle == PATIENCE:
                return
            members = turn * MEMBERS + np.arange(MEMBERS)
            at_high, at_low = (first[rows, None] + members % count[rows, None] for rows in (high, low))
            pair, i, j = self._best_swaps(inside[at_high], inside[at_low], high, low)
            idle = 0 if len(pair) else idle + 1
            low, high, at_high, at_low = low[pair], high[pair], at_high[pair, i], at_low[pair, j]
            up, down = inside[at_high], inside[at_low]
            inside[at_high], inside[at_low] = down, up
            self._take(up)
            self._take(down)
            self._put(up, low)
            self._put(down, high)

    def _best_swaps(self, up: np.ndarray, down: np.ndarray, high: np.ndarray,
                    low: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each pair of rows the swap that leaves the smallest difference: (pairs, member of high, member of low).

        Args:
            up, down: (pairs, MEMBERS) samples of the costly and of the cheap row.
            high, low: (pairs,) the rows.
        """
        moved = self.tokens[up][:, :, None] - self.tokens[down][:, None, :]  # tokens from high to low
        gap = self.cost[high] - self.cost[low]
        left = np.abs(gap[:, None, None] - 2 * (self.costs[up][:, :, None] - self.costs[down][:, None, :]))
        left[(moved > self.free[low, None, None]) | (-moved > self.free[high, None, None])] = np.inf
        left = left.reshape(len(gap), -1)
        best = left.argmin(axis=1)
        pair = np.flatnonzero(left[np.arange(len(gap)), best] < gap * (1 - EVEN))
        return pair, best[pair] // MEMBERS, best[pair] % MEMBERS

    def exchange(self, source: np.ndarray, stays: np.ndarray) -> None:
        """Rows with a gap, or a cost that is off, give a sample for a better one of the same source from outside.

        Which member a row gives goes by turn: if the best one went, the most common sizes would leave the stream.

        Args:
            source: (S,) where each sample is from.
            stays: (S,) samples that do not leave their row.
        """
        key = source * (self.row_length + 1) + self.tokens
        for turn in range(EXCHANGES):
            target = np.median(self.cost + self.rate * self.free)
            off = self._off(self.cost, self.free, target)
            inside, first, count = self._members(stays)
            pool = np.flatnonzero(self.row_of < 0)
            rows = np.flatnonzero((off > SLACK) & (count > 0))
            if not len(pool) or not len(rows):
                return
            out = inside[first[rows] + turn % count[rows]]
            pool = pool[np.argsort(key[pool], kind='stable')]
            near = np.searchsorted(key[pool], key[out] + self.free[rows], 'right')[:, None] - 1 - np.arange(NEAR)
            come = pool[near.clip(min=0)]
            free = self.free[rows, None] + self.tokens[out, None] - self.tokens[come]
            left = self._off(self.cost[rows, None] + self.costs[come] - self.costs[out, None], free, target)
            left[(near < 0) | (source[come] != source[out, None])] = np.inf
            pick = left.argmin(axis=1)[:, None]
            gain, come = off[rows] - np.take_along_axis(left, pick, 1)[:, 0], np.take_along_axis(come, pick, 1)[:, 0]
            order = np.argsort(-gain, kind='stable')[:np.count_nonzero(gain > 0)]
            order = order[np.unique(come[order], return_index=True)[1]]  # who gains most gets it
            self._take(out[order])
            self._put(come[order], rows[order])

    def _off(self, cost: np.ndarray, free: np.ndarray, target: float) -> np.ndarray:
        """How far rows are from what they should be: their cost, and free tokens beyond the slack, as shares."""
        return np.abs(cost - target) / (self.rate * self.row_length) + np.maximum(0, free / self.row_length - SLACK)

    def shed(self, stays: np.ndarray) -> None:
        """Take a sample out of rows that still stand out by their cost, the costliest first, while few tokens go.

        Args:
            stays: (S,) samples that do not leave their row.
        """
        over = self.cost - np.median(self.cost)
        inside, _, count = self._members(stays)
        rows = self.row_of[inside]
        left = np.abs(over[rows] - self.costs[inside])  # from the median, without it
        better = (left < over[rows]) & (np.bincount(self.row_of[self.row_of >= 0], minlength=len(over))[rows] > 1)
        inside, left, rows = inside[better], left[better], rows[better]
        best = np.lexsort((left, rows))
        best = best[np.unique(rows[best], return_index=True)[1]]  # one of each row
        best = best[np.argsort(-over[rows[best]], kind='stable')]
        limit = SHED * self.row_length * len(self.free)
        self._take(inside[best[:np.searchsorted(np.cumsum(self.tokens[inside[best]]), limit, 'right')]])
