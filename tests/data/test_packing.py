"""Packing: rows within their budget, full, equally costly; nothing waits for ever; steps that cost the same."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvlkit.data.packing import SHED, deal_rows, plan_rows


@st.composite
def windows(draw):
    """tokens, costs, age, source, row_length, num_rows: any, small ones."""
    row_length = draw(st.integers(1, 60))
    count = draw(st.integers(0, 40))
    each = dict(min_size=count, max_size=count)
    tokens = draw(st.lists(st.integers(1, row_length), **each))
    costs = draw(st.lists(st.floats(0, 1e15), **each))
    age, source = (draw(st.lists(st.integers(0, 3), **each)) for _ in range(2))
    num_rows = draw(st.integers(0, min(8, sum(tokens) // row_length)))
    return np.array(tokens, int), np.array(costs), np.array(age, int), np.array(source, int), row_length, num_rows


def lognormal(seed, count, *, median, row_length, sigma=0.9):
    """tokens and costs: of half of the samples every token costs twice as much."""
    rng = np.random.default_rng(seed)
    tokens = np.clip(rng.lognormal(np.log(median), sigma, count), 1, row_length).astype(int)
    return tokens, tokens * (1.0 + (rng.random(count) < 0.5)) + 1e-5 * tokens**2


def first_fit_rows(lengths, row_length):
    """What is compared with: each sample into the first row that has room."""
    rows, free = [], []
    for index, length in enumerate(lengths):
        row = next((row for row, space in enumerate(free) if length <= space), len(rows))
        if row == len(rows):
            rows.append([])
            free.append(row_length)
        rows[row].append(index)
        free[row] -= length
    return rows


def sums(row_of, values, num_rows):
    return np.bincount(row_of[row_of >= 0], values[row_of >= 0], num_rows)


@given(windows())
@settings(max_examples=60, deadline=None)
def test_whole_samples_in_rows_within_the_budget_and_the_same_each_time(window):
    tokens, costs, age, source, row_length, num_rows = window
    plan = dict(row_length=row_length, num_rows=num_rows, age=age, source=source)
    row_of = plan_rows(tokens, costs, **plan)
    assert row_of.shape == tokens.shape and row_of.dtype == np.int32
    assert ((row_of >= -1) & (row_of < num_rows)).all()
    used = sums(row_of, tokens, num_rows)
    assert (used <= row_length).all()
    assert (used > 0).all()  # num_rows is at most tokens // row_length
    assert np.array_equal(row_of, plan_rows(tokens, costs, **plan))


@given(windows())
@settings(max_examples=60, deadline=None)
def test_what_is_left_over_fits_nowhere(window):
    """The rows' gaps, before the last swaps, were all smaller than the smallest sample left over."""
    tokens, costs, age, source, row_length, num_rows = window
    assert SHED * row_length * 8 < 1  # rows as small as these give up nothing
    row_of = plan_rows(tokens, costs, row_length=row_length, num_rows=num_rows, age=age, source=source)
    left = tokens[row_of < 0]
    if num_rows and len(left):
        assert num_rows * row_length - tokens[row_of >= 0].sum() <= num_rows * (left.min() - 1)


@given(windows())
@settings(max_examples=60, deadline=None)
def test_of_the_oldest_at_least_one_gets_a_row(window):
    tokens, costs, age, source, row_length, num_rows = window
    row_of = plan_rows(tokens, costs, row_length=row_length, num_rows=num_rows, age=age + 2, source=source)
    if num_rows:
        assert (row_of[age == age.max()] >= 0).any()


@given(st.integers(0, 10**6), st.integers(1, 8), st.sampled_from([20, 60, 150]))
@settings(max_examples=60, deadline=None)
def test_few_rows_are_full_where_samples_are_plenty(seed, num_rows, median):
    tokens, costs = lognormal(seed, 256, median=median, row_length=1024)
    num_rows = min(num_rows, int(0.9 * tokens.sum()) // 1024)  # plenty: a tenth is left over at least
    row_of = plan_rows(tokens, costs, row_length=1024, num_rows=num_rows)
    assert tokens[row_of >= 0].sum() >= 0.97 * 1024 * (row_of.max() + 1)


def test_the_overdue_go_before_larger_ones():
    tokens, plan = [4, 8, 7, 9], dict(row_length=10, num_rows=2)
    assert plan_rows(tokens, np.ones(4), **plan)[0] == -1  # 8 and 7 first: 4 fits beside neither
    assert plan_rows(tokens, np.ones(4), **plan, age=[2, 0, 0, 0])[0] >= 0


def stream(tokens, costs, *, window, row_length, multiple=1):
    """Lay a stream out window by window: (row_of, samples, age) of each."""
    carry, age, drawn = np.zeros(0, int), np.zeros(0, int), 0
    while True:
        fresh = np.arange(drawn, min(len(tokens), drawn + window - len(carry)))
        drawn += len(fresh)
        samples, age = np.concatenate([carry, fresh]), np.concatenate([age, np.zeros(len(fresh), int)])
        num_rows = tokens[samples].sum() // row_length // multiple * multiple
        if num_rows == 0:
            return
        row_of = plan_rows(tokens[samples], costs[samples], row_length=row_length, num_rows=num_rows, age=age)
        yield row_of, samples, age
        carry, age = samples[row_of < 0], age[row_of < 0] + 1


@pytest.mark.parametrize('median, multiple', [(100, 1), (100, 8), (400, 1), (700, 4)])
def test_no_sample_waits_longer_than_three_windows(median, multiple):
    tokens, costs = lognormal(3, 4000, median=median, row_length=1024)
    seen = []
    for row_of, samples, age in stream(tokens, costs, window=128, row_length=1024, multiple=multiple):
        assert age.max() <= 3
        seen.append(samples[row_of >= 0])
    seen = np.concatenate(seen)
    assert len(np.unique(seen)) == len(seen) > 3800


def test_rows_of_like_cost_where_first_fit_has_unlike_ones():
    tokens, costs = lognormal(0, 4096, median=500, row_length=8192, sigma=0.8)
    num_rows = int(tokens.sum() // 8192 // 64 * 64)
    row_of = plan_rows(tokens, costs, row_length=8192, num_rows=num_rows)
    planned = sums(row_of, costs, num_rows)
    first_fit = np.array([costs[row].sum() for row in first_fit_rows(tokens[:2048].tolist(), 8192)[:-20]])
    assert first_fit.std() / first_fit.mean() > 0.05
    assert np.diff(np.percentile(planned, [10, 90]))[0] < 0.01 * planned.mean()  # largest first alone: 0.023
    assert planned.max() < 1.02 * planned.mean()


def test_left_overs_are_mostly_the_end_of_the_draw():
    tokens, costs = lognormal(5, 4096, median=500, row_length=8192)
    placed = plan_rows(tokens, costs, row_length=8192, num_rows=int(tokens.sum() // 8192 * 0.85)) >= 0
    assert placed[:3000].mean() > 0.9 and placed[-500:].mean() < 0.4


@pytest.mark.parametrize('seed', range(3))
def test_what_is_placed_has_the_mixture_of_the_draw(seed):
    """Short samples of one source, long ones of the other; without `source` the short ones lose a percent."""
    source = np.arange(4096) % 2
    tokens = np.random.default_rng(seed).lognormal(np.log(np.where(source, 300, 900)), 0.5).clip(1, 8192).astype(int)
    row_of = plan_rows(tokens, tokens * (1.0 + source), row_length=8192, num_rows=int(tokens.sum() // 8192 * 0.8),
                       source=source)
    assert abs(source[row_of >= 0].mean() - 0.5) < 0.004


def test_one_row_large_samples_and_none():
    one = dict(row_length=8, num_rows=1)
    assert plan_rows([8], [1.0], **one).tolist() == [0]
    assert plan_rows([5, 5, 3], [1.0, 1.0, 1.0], **one).tolist() in ([0, -1, 0], [-1, 0, 0])
    assert plan_rows([5, 5, 5], [1.0, 2.0, 3.0], row_length=8, num_rows=2).tolist().count(-1) == 1
    assert plan_rows([1, 7, 8], [0.0, 0.0, 0.0], row_length=8, num_rows=2).min() == 0
    assert plan_rows([], [], row_length=8, num_rows=0).tolist() == []
    assert plan_rows([], [], row_length=8, num_rows=3).tolist() == []
    assert plan_rows([3, 3], [1.0, 1.0], row_length=8, num_rows=0).tolist() == [-1, -1]


@pytest.mark.parametrize('tokens, costs, more, message', [
    ([8, 9], [1, 1], {}, 'sample 1 has 9 tokens, expected 1 to row_length 8'),
    ([0], [1], {}, 'sample 0 has 0 tokens'),
    ([1, 2], [1, float('nan')], {}, 'sample 1 costs nan'),
    ([1], [-1], {}, 'sample 0 costs -1'),
    ([1, 2], [1], {}, 'of one length'),
    ([1], [1], dict(age=[0, 0]), 'of one length'),
    ([1], [1], dict(num_rows=-1), 'num_rows must be at least 0, got -1'),
])
def test_what_cannot_be_planned_is_refused(tokens, costs, more, message):
    with pytest.raises(ValueError, match=message):
        plan_rows(tokens, costs, **{**dict(row_length=8, num_rows=1), **more})


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 6), st.integers(0, 100))
@settings(max_examples=60, deadline=None)
def test_each_row_is_dealt_once_and_the_same_rows_by_the_same_lot(steps, accumulation, ranks, seed):
    costs = np.random.default_rng(seed).lognormal(size=steps * accumulation * ranks)
    shape = dict(steps=steps, accumulation=accumulation, ranks=ranks)
    dealt = deal_rows(costs, **shape, rng=np.random.default_rng(seed))
    assert dealt.shape == (steps, accumulation, ranks)
    assert sorted(dealt.ravel()) == list(range(len(costs)))
    assert np.array_equal(dealt, deal_rows(costs, **shape, rng=np.random.default_rng(seed)))


def test_steps_cost_the_same_and_ranks_side_by_side_too():
    costs = np.random.default_rng(1).normal(1, 0.1, 4 * 4 * 32)
    dealt = deal_rows(costs, steps=4, accumulation=4, ranks=32, rng=np.random.default_rng(2))
    work = costs[dealt]
    assert np.ptp(work.sum(axis=(1, 2))) < 0.01 * work.sum(axis=(1, 2)).mean()  # by lot: 2 %
    bounds = sorted((micro.min(), micro.max()) for micro in work[0])
    assert all(top <= low for (_, top), (low, _) in zip(bounds, bounds[1:]))  # runs of the sorted rows
    assert work.sum(axis=1).std() < work.std()  # of a rank's four micro-steps: by lot twice as much
    first, other = (deal_rows(costs, steps=4, accumulation=4, ranks=32, rng=np.random.default_rng(seed))
                    for seed in (2, 3))
    assert set(first[0].ravel()) != set(other[0].ravel())  # which step gets a row is drawn


def test_a_deal_that_does_not_come_out_even_is_refused():
    with pytest.raises(ValueError, match='7 rows cannot be dealt to 2 steps x 1 micro-steps x 4 ranks = 8 places'):
        deal_rows(np.ones(7), steps=2, accumulation=1, ranks=4, rng=np.random.default_rng(0))
