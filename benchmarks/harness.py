"""What the benchmarks share: sides timed turn by turn in one run, ratios with their spread, rows of results.

A ratio is taken within each round, where both sides met the same machine, and its median is reported with the quartiles
of the rounds.
"""
import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that is not installed
RESULTS = Path(__file__).parent / 'results'


def machine() -> str:
    """Such as '2-core AMD EPYC, torch 2.13.0 CPU'."""
    model = platform.processor()
    cpuinfo = Path('/proc/cpuinfo')
    if cpuinfo.is_file():
        names = [line.partition(':')[2].strip() for line in cpuinfo.read_text().splitlines()
                 if line.startswith('model name')]
        model = names[0] if names else model
    return f'{os.cpu_count()}-core {model}, torch {torch.__version__.partition("+")[0]} CPU'


def interleaved(sides: dict[str, Callable[[], object]], *, rounds: int, warmup: int = 1, calls: int = 1,
                before: Callable[[], None] | None = None) -> dict[str, list[float]]:
    """Seconds of each side in each round; the sides take turns in going first.

    Args:
        sides: Name -> what is timed.
        rounds: How often each side runs.
        warmup: Rounds before the first that counts.
        calls: Runs in one turn, of which the median counts: for what takes a few milliseconds.
        before: Called before each run, untimed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(warmup + rounds):
        order = list(sides) if number % 2 else list(sides)[::-1]
        for name in order:
            gc.collect()
            turn = statistics.median(_time(sides[name], before) for _ in range(calls))
            if number >= warmup:
                seconds[name].append(turn)
    return seconds


def _time(side: Callable[[], object], before: Callable[[], None] | None) -> float:
    if before is not None:
        before()
    start = time.perf_counter()
    result = side()
    elapsed = time.perf_counter() - start
    del result
    return elapsed


def spread(values: list[float]) -> tuple[float, float, float]:
    """Median, lower and upper quartile."""
    low, middle, high = statistics.quantiles(values, n=4, method='inclusive')
    return middle, low, high


def compare(seconds: dict[str, list[float]], slow: str, fast: str) -> dict:
    """How many times faster `fast` is than `slow`: the median over rounds and its quartiles, and both medians in ms."""
    middle, low, high = spread([a / b for a, b in zip(seconds[slow], seconds[fast])])
    return {'ratio': round(middle, 2), 'ratio_quartiles': [round(low, 2), round(high, 2)],
            f'{slow}_ms': round(1000 * statistics.median(seconds[slow]), 3),
            f'{fast}_ms': round(1000 * statistics.median(seconds[fast]), 3), 'rounds': len(seconds[fast])}


def peak_mib(side: Callable[[], object]) -> int:
    """MiB that this process grows by while it runs `side`: its own high-water mark, which Linux keeps."""
    Path('/proc/self/clear_refs').write_text('5')  # the mark falls to the present size
    before = _status('VmRSS')
    side()
    return (_status('VmHWM') - before) // 1024


def _status(field: str) -> int:
    """KiB of a field of this process's status."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f'{field}:')).split()[1])


def save(name: str, row: dict) -> Path:
    """Write the row into results/NAME.json in place of the row of the same machine and setting."""
    path = RESULTS / f'{name}.json'
    rows = json.loads(path.read_text(encoding='utf-8')) if path.is_file() else []
    row = {'machine': machine(), 'threads': torch.get_num_threads(), **row}
    same = ('machine', 'threads', 'setting')
    rows = [old for old in rows if any(old.get(key) != row.get(key) for key in same)] + [row]
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(rows, indent=2) + '\n', encoding='utf-8')
    return path
