"""Packing: samples laid whole into rows that are full and equally costly, and rows dealt to steps and ranks.

All ranks wait for the costliest row of a micro-step, and a picture costs the vision encoder what text does not: rows of
the same length are not rows of the same cost. So both are planned, tokens and cost, over a window of samples at once:
`plan_rows` makes the rows, `deal_rows` gives each optimizer step its share of them and puts rows of equal cost side by
side.

Shapes: S samples, R rows, M members of a row that a round of swaps looks at.
"""
from collections.abc import Sequence

import numpy as np

BATCHES = 16  # samples are laid out R / BATCHES at a time
SWAP_ROUNDS = 100
CYCLES = 2
FIRST = 0.99
NEAR = 8
EXCHANGES = 12
SLACK = 1 / 300
SHED = 0.002
TOLERANCE = 1e-3
GOLDEN = 0.618
MEMBERS = 8  # M


def pack(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Indices of the samples in each row: first fit in the order given; rows in the order they were opened.

    pack([5, 3, 4, 2], 8) is [[0, 1], [2, 3]]. Every length must be at most row_length.
    """
    rows: list[list[int]] = []
    free: list[int] = []
    for index, length in enumerate(lengths):
        if length > row_length:
            raise ValueError(f'sample {index} has {length} tokens, more than row_length {row_length}')
        row = next((row for row, space in enumerate(free) if length <= space), None)
        if row is None:
            rows.append([])
            free.append(row_length)
            row = len(rows) - 1
        rows[row].append(index)
        free[row] -= length
    return rows


def plan_rows(tokens: np.ndarray, costs: np.ndarray, *, row_length: int, num_rows: int,
              age: np.ndarray | None = None) -> np.ndarray:
    """Lay samples whole into exactly `num_rows` rows that are full and cost the same.

    The oldest samples, then the first drawn, are taken until they would fill the rows: what is left over is mostly the
    end of the draw, not a kind of sample. Large samples go into the emptiest rows, costly ones to cheap rows; swaps
    between costly and cheap rows even out the rest; the smallest samples and then the best-fitting left-overs close the
    gaps. There is no chance in it.

    Args:
        tokens: (S,) of each sample, in draw order; at least 1, at most `row_length`.
        costs: (S,) of each sample, in any unit that adds up.
        row_length: Tokens of a row, at most.
        num_rows: About sum(tokens) // row_length.
        age: (S,) how often each sample was left over before. Carry a sample on with its age + 1 and in its old order:
            of the oldest at least one is placed in each call, so nothing waits for ever.

    Returns:
        (S,) int32: the row of each sample, -1 for what is left over.
    """
    tokens, costs = np.asarray(tokens, np.int64), np.asarray(costs, np.float64)
    age = np.zeros(len(tokens), np.int64) if age is None else np.asarray(age, np.int64)
    _check(tokens, costs, age, row_length, num_rows)
    rows = _Rows(tokens, costs, row_length, num_rows)
    if num_rows == 0 or len(tokens) == 0:
        return rows.row_of
    queue = np.argsort(-age, kind='stable')
    due = np.searchsorted(np.cumsum(tokens[queue]), FIRST * num_rows * row_length, 'right')
    chosen = queue[:max(due, 1)]
    overdue = age[chosen] > 1
    for level in np.unique(age[chosen[overdue]])[::-1]:
        rows.spread(chosen[age[chosen] == level])
    rows.spread(chosen[~overdue])
    for _ in range(CYCLES):
        rows.even_out(costs)
        rows.exchange(costs, queue, keep=age > 1)
    rows.fill(queue)
    rows.even_out(costs)
    rows.shed(costs, keep=age > 1)
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


def _check(tokens: np.ndarray, costs: np.ndarray, age: np.ndarray, row_length: int, num_rows: int) -> None:
    if not tokens.shape == costs.shape == age.shape == (tokens.size,):
        raise ValueError(f'tokens, costs and age must be flat and of one length, got shapes {tokens.shape}, '
                         f'{costs.shape} and {age.shape}')
    if num_rows < 0:
        raise ValueError(f'num_rows must be at least 0, got {num_rows}')
    if not np.isfinite(costs).all():
        raise ValueError(f'sample {np.argmin(np.isfinite(costs))} has no finite cost')
    if len(wrong := np.flatnonzero((tokens < 1) | (tokens > row_length))):
        raise ValueError(f'sample {wrong[0]} has {tokens[wrong[0]]} tokens, expected 1 to row_length {row_length}')


class _Rows:
    """Rows being filled: which samples they have, what is free in each, and how much dearer than the mean each is."""

    def __init__(self, tokens: np.ndarray, costs: np.ndarray, row_length: int, num_rows: int):
        self.tokens = tokens
        self.excess = costs - tokens * (costs.sum() / max(1, tokens.sum()))  # (S,) cost above that of its tokens
        self.row_of = np.full(len(tokens), -1, np.int32)
        self.free = np.full(num_rows, row_length, np.int64)
        self.costs_mean = costs.sum() / max(1, num_rows)
        self.above = np.zeros(num_rows)  # sum of excess

    def _put(self, samples: np.ndarray, rows: np.ndarray) -> None:
        """One sample into each of different rows."""
        self.row_of[samples] = rows
        self.free[rows] -= self.tokens[samples]
        self.above[rows] += self.excess[samples]

    def spread(self, samples: np.ndarray) -> None:
        """Lay samples, large ones first, into the emptiest rows; what does not fit stays out."""
        samples = samples[np.argsort(-self.tokens[samples], kind='stable')]
        size = -(-len(self.free) // BATCHES)
        for start in range(0, len(samples), size):
            batch = samples[start:start + size]
            rows = np.argpartition(-self.free, len(batch) - 1)[:len(batch)]
            batch = batch[np.argsort(self.excess[batch], kind='stable')]
            rows = rows[np.argsort(-self.above[rows], kind='stable')]
            fits = self.tokens[batch] <= self.free[rows]
            self._put(batch[fits], rows[fits])
            if not fits.all():  # these by size alone
                batch, rows = batch[~fits], rows[~fits]
                batch = batch[np.argsort(-self.tokens[batch], kind='stable')]
                rows = rows[np.argsort(-self.free[rows], kind='stable')]
                fits = self.tokens[batch] <= self.free[rows]
                self._put(batch[fits], rows[fits])

    def fill(self, samples: np.ndarray) -> None:
        """Give each row the largest sample that fits into what is free of it, again and again."""
        samples = samples[self.row_of[samples] < 0]
        samples = samples[np.argsort(self.tokens[samples], kind='stable')]
        while len(samples):
            rows = np.argsort(-self.free, kind='stable')
            fitting = np.searchsorted(self.tokens[samples], self.free[rows], 'right') - 1
            places = np.arange(len(rows))
            picked = np.minimum.accumulate(fitting + places) - places  # strictly falling: no sample twice
            rows, picked = rows[picked >= 0], picked[picked >= 0]
            if not len(rows):
                return
            self._put(samples[picked], rows)
            samples = np.delete(samples, picked)

    def even_out(self, value: np.ndarray) -> None:
        """Swap single samples between rows of high and of low value as long as that brings the two together.

        Args:
            value: (S,) what should sum to the same in each row.
        """
        half = len(self.free) // 2
        placed = np.flatnonzero(self.row_of >= 0)
        placed = placed[np.argsort(self.row_of[placed], kind='stable')]
        count = np.bincount(self.row_of[placed], minlength=len(self.free))
        if half == 0 or not len(placed):
            return
        first = np.cumsum(count) - count  # `placed` holds the members of row r at first[r] : first[r] + count[r]
        total = np.bincount(self.row_of[placed], value[placed], minlength=len(self.free))
        tolerance = TOLERANCE * np.abs(self.costs_mean)
        for turn in range(SWAP_ROUNDS):
            order = np.argsort(total, kind='stable')
            low, high = np.roll(order[:half], int(turn * GOLDEN * half)), order[::-1][:half]
            some = (total[high] - total[low] > tolerance) & (np.minimum(count[low], count[high]) > 0)
            low, high = low[some], high[some]
            place = [(first[rows, None] + (np.arange(MEMBERS) + turn * MEMBERS) % count[rows, None])
                     for rows in (high, low)]
            up, down = placed[place[0]][:, :, None], placed[place[1]][:, None, :]
            moved = self.tokens[up] - self.tokens[down]  # tokens from high to low
            gap = total[high] - total[low]
            left = np.abs(gap[:, None, None] - 2 * (value[up] - value[down]))
            left[(moved > self.free[low, None, None]) | (-moved > self.free[high, None, None])] = np.inf
            best = left.reshape(len(low), -1).argmin(axis=1)
            pair = np.arange(len(low))
            better = left.reshape(len(low), -1)[pair, best] < gap * (1 - 1e-9)
            pair, i, j = pair[better], best[better] // MEMBERS, best[better] % MEMBERS
            low, high = low[better], high[better]
            at_high, at_low = place[0][pair, i], place[1][pair, j]
            up, down = placed[at_high], placed[at_low]
            placed[at_high], placed[at_low] = down, up
            self.row_of[up], self.row_of[down] = low, high
            for rows, sign in ((low, 1), (high, -1)):
                self.free[rows] -= sign * (self.tokens[up] - self.tokens[down])
                self.above[rows] += sign * (self.excess[up] - self.excess[down])
                total[rows] += sign * (value[up] - value[down])

    def shed(self, value: np.ndarray, keep: np.ndarray) -> None:
        """Take a sample out of rows that still stand out by their value, the worst first, as long as few tokens go.

        Args:
            value: As for `even_out`.
            keep: (S,) samples that stay where they are.
        """
        total = np.bincount(self.row_of[self.row_of >= 0], value[self.row_of >= 0], minlength=len(self.free))
        over = total - np.median(total)
        samples = np.flatnonzero((self.row_of >= 0) & ~keep)
        left = np.abs(over[self.row_of[samples]] - value[samples])
        samples = samples[left < over[self.row_of[samples]]]
        left = np.abs(over[self.row_of[samples]] - value[samples])
        samples = samples[np.lexsort((left, self.row_of[samples]))]
        samples = samples[np.unique(self.row_of[samples], return_index=True)[1]]  # the best of each row
        samples = samples[np.argsort(-over[self.row_of[samples]], kind='stable')]
        limit = SHED * (self.free.sum() + self.tokens[self.row_of >= 0].sum())
        samples = samples[:np.searchsorted(np.cumsum(self.tokens[samples]), limit, 'right')]
        self.free[self.row_of[samples]] += self.tokens[samples]
        self.above[self.row_of[samples]] -= self.excess[samples]
        self.row_of[samples] = -1

    def exchange(self, value: np.ndarray, samples: np.ndarray, keep: np.ndarray) -> None:
        """Take a sample out of a row and put one of `samples` in, where that fills the row or brings its value right.

        Args:
            value: As for `even_out`.
            samples: What may come in, if it is not in a row.
            keep: (S,) samples that stay where they are.
        """
        length = (self.free.sum() + self.tokens[self.row_of >= 0].sum()) / len(self.free)
        for _ in range(EXCHANGES):
            pool = samples[self.row_of[samples] < 0]
            inside = np.flatnonzero(self.row_of >= 0)
            total = np.bincount(self.row_of[inside], value[inside], minlength=len(self.free))
            rate = value[inside].sum() / self.tokens[inside].sum()
            target = np.median(total + rate * self.free)
            worst = np.abs(total / target - 1) + np.maximum(0, self.free / length - SLACK)
            inside = inside[(worst[self.row_of[inside]] > SLACK) & ~keep[inside]]
            if not len(pool) or not len(inside):
                return
            pool = pool[np.argsort(self.tokens[pool], kind='stable')]
            rows = self.row_of[inside]
            near = np.searchsorted(self.tokens[pool], self.tokens[inside] + self.free[rows], 'right')[:, None]
            near = near - 1 - np.arange(NEAR)
            other = pool[near.clip(min=0)]
            free = self.free[rows, None] + self.tokens[inside, None] - self.tokens[other]
            left = np.abs((total[rows, None] + value[other] - value[inside, None]) / target - 1)
            left = np.where(near >= 0, left + np.maximum(0, free / length - SLACK), np.inf)
            pick = left.argmin(axis=1)
            index = np.arange(len(pick))
            gain, other = worst[rows] - left[index, pick], other[index, pick]
            order = np.argsort(-gain, kind='stable')
            order = order[:np.count_nonzero(gain > 1e-4)]
            order = order[np.sort(np.unique(rows[order], return_index=True)[1])]
            order = order[np.unique(other[order], return_index=True)[1]]
            if not len(order):
                return
            out, come, rows = inside[order], other[order], rows[order]
            self.row_of[out] = -1
            self.free[rows] += self.tokens[out]
            self.above[rows] -= self.excess[out]
            self._put(come, rows)
