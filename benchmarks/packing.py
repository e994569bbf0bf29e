"""Packing of a million samples for 1,024 ranks: planned rows against first fit and next fit in draw order.

    python benchmarks/packing.py [--samples 1000000] [--models 3b 72b] [--no-save]

The stream of `sample_lengths.py` goes through a window of at most 65,536 samples, as a loader would take it: what the
last window left over and the next draws, as many rows of 8,192 tokens as they fill, in whole optimizer steps. A sample
costs what the parts of the model say of it: encoder and merger of its grids, the language model of its length, the head
of its targets; times three, for all parts train. Costs are looked up by grid and by length, and are part of the time.

The sides see the same samples with the same costs. 'first fit' has the same window, 'next fit' closes a row at the
first sample that does not fit; both deal rows as they come. A micro-step is as slow as its costliest rank, so the
loss is 1 - mean / max of the ranks' costs, averaged over micro-steps.

Goals: 60 s of planning for a model on two cores; 99.5 % of the tokens of a row used; the costs of the ranks in a
micro-step spread by 0.5 % (standard deviation / mean, median), and max / mean at most 1.05 (99th percentile); the
number of samples of each source in each optimizer step within three standard deviations of the mixture.
"""
import argparse
import time
from collections.abc import Iterator

import harness  # first: it makes qvlkit importable
import numpy as np
import torch
from sample_lengths import MIXTURE, ROW, SOURCES, SampleLengths, sample_lengths

from qvlkit.config import load_config
from qvlkit.data.packing import deal_rows, plan_rows
from qvlkit.models.builder import build_model
from qvlkit.utils.seeded import seeded

RANKS, ACCUMULATION, WINDOW = 1024, 4, 65536
STEP = RANKS * ACCUMULATION  # rows of an optimizer step
GOALS = dict(seconds=60, utilisation=0.995, cv=0.005, max_over_mean=1.05, sigma=3)


def sample_costs(model: torch.nn.Module, lengths: SampleLengths) -> np.ndarray:
    """(N,) training FLOPs of each sample, from the parts' own count of their forward pass."""
    decoder = model.language_model
    of_grid = np.array([model.vision_encoder.flops(grid) + model.merger.flops(grid) for grid in lengths.grids] + [0.0])
    of_length = np.zeros(ROW + 1)
    for length in np.unique(lengths.tokens).tolist():
        of_length[length] = decoder.flops([length], 0)
    forward = of_length[lengths.tokens] + lengths.targets * float(decoder.flops([], 1))
    for column in lengths.pictures.T:
        forward += of_grid[column]
    return 3 * forward


def planned(tokens: np.ndarray, costs: np.ndarray, source: np.ndarray, seed: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(samples, their place in the step) of each optimizer step; a place is micro-step * RANKS + rank."""
    carry, age, drawn, window = np.zeros(0, np.int64), np.zeros(0, np.int64), 0, 0
    while True:
        fresh = np.arange(drawn, min(drawn + WINDOW - len(carry), len(tokens)))
        drawn += len(fresh)
        samples, age = np.concatenate([carry, fresh]), np.concatenate([age, np.zeros(len(fresh), np.int64)])
        steps = int(tokens[samples].sum()) // (ROW * STEP)
        if steps == 0:
            return
        row_of = plan_rows(tokens[samples], costs[samples], row_length=ROW, num_rows=steps * STEP, age=age,
                           source=source[samples])
        used = row_of >= 0
        dealt = deal_rows(np.bincount(row_of[used], costs[samples[used]], steps * STEP), steps=steps,
                          accumulation=ACCUMULATION, ranks=RANKS, rng=seeded(seed, 'deal', window))
        place = np.empty(steps * STEP, np.int64)
        place[dealt.ravel()] = np.arange(steps * STEP)
        placed, place_of = samples[used], place[row_of[used]]
        for step in range(steps):
            here = place_of // STEP == step
            yield placed[here], place_of[here] % STEP
        carry, age, window = samples[~used], age[~used] + 1, window + 1


def in_draw_order(tokens: np.ndarray, open_rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """As `planned`, for first fit among the rows of a window (`open_rows` 0) or, with 1, next fit."""
    row_of, opened = np.empty(len(tokens), np.int64), 0
    for start in range(0, len(tokens), WINDOW):
        window = tokens[start:start + WINDOW].tolist()
        free, low, high = np.full(len(window), ROW), 0, 0  # rows low : high may take a sample
        for index, length in enumerate(window):
            fits = free[low:high] >= length
            row = low + int(fits.argmax()) if high > low else high
            if row == high or not fits[row - low]:
                row, high = high, high + 1
                low = high - open_rows if open_rows else low
            while not open_rows and low < row and free[low] < 64:  # nearly full: never looked at again
                low += 1
            free[row] -= length
            row_of[start + index] = opened + row
        opened += high
    order = np.argsort(row_of, kind='stable')
    ends = np.searchsorted(row_of[order], np.arange(0, opened // STEP + 1) * STEP)
    for first, last in zip(ends, ends[1:]):
        yield order[first:last], row_of[order[first:last]] % STEP


def measure(steps: Iterator[tuple[np.ndarray, np.ndarray]], lengths: SampleLengths, costs: np.ndarray) -> dict:
    """What a way of packing makes of the stream."""
    micro_steps, sigmas, used, rows = [], [], 0, 0
    start = time.perf_counter()
    steps = list(steps)
    seconds = time.perf_counter() - start
    share = np.array(MIXTURE)
    for samples, place in steps:
        row_tokens = np.bincount(place, lengths.tokens[samples], STEP)
        assert row_tokens.max() <= ROW
        used, rows = used + row_tokens.sum(), rows + STEP
        micro_steps.append(np.bincount(place, costs[samples], STEP).reshape(ACCUMULATION, RANKS))
        counts = np.bincount(lengths.source[samples], minlength=len(SOURCES))
        sigmas.append((counts - len(samples) * share) / np.sqrt(len(samples) * share * (1 - share)))
    assert len(seen := np.concatenate([samples for samples, _ in steps])) == len(np.unique(seen))
    work, sigmas = np.concatenate(micro_steps), np.array(sigmas)
    mean, top = work.mean(axis=1), work.max(axis=1)
    cv = work.std(axis=1) / mean
    return dict(seconds=round(seconds, 2), micro_steps=len(work), samples=len(seen),
                utilisation=round(float(used / (rows * ROW)), 5), cv=round(float(np.median(cv)), 5),
                cv_p99=round(float(np.percentile(cv, 99)), 5),
                max_over_mean=round(float(np.percentile(top / mean, 99)), 4),
                straggler_loss=round(float(1 - (mean / top).mean()), 5),
                step_spread=round(float(np.std([part.sum() for part in micro_steps]) / work.sum(axis=1).mean() / ACCUMULATION), 5),
                sigma=round(float(np.abs(sigmas).max()), 2),
                sigmas={name: round(float(value), 2) for name, value in zip(SOURCES, np.abs(sigmas).max(axis=0))})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--samples', type=int, default=1_000_000)
    parser.add_argument('--models', nargs='+', default=['3b', '72b'])
    parser.add_argument('--no-save', action='store_true', help='print only')
    arguments = parser.parse_args()
    lengths = sample_lengths(arguments.samples)
    for name in arguments.models:
        model = build_model(load_config(f'configs/qwen25vl_{name}.py')['model'], device='meta')
        start = time.perf_counter()
        costs = sample_costs(model, lengths)
        print(name, 'costs', time.perf_counter() - start)
        sides = dict(planned=planned(lengths.tokens, costs, lengths.source))
        if not arguments.no_save:
            sides['first fit'] = in_draw_order(lengths.tokens, 0)
            sides['next fit'] = in_draw_order(lengths.tokens, 1)
        for side, steps in sides.items():
            print(side, measure(steps, lengths, costs))


if __name__ == '__main__':
    main()
