"""Sample lengths for the packing benchmark: a stream of text, pictures, sets of pictures and videos, made from a seed.

Text lengths are log-normal. Pictures have 4 x 4 to 64 x 64 merge cells at mixed aspect ratios, videos 4 to 32 frame
groups; each kind draws from a few hundred grids, as real data after resizing does. What a sample shows is held to
`VISUAL` tokens, as a pixel budget per sample does, and the whole of it to 8,192. The kinds come as a mixture sampler
deals them: every block of 256 draws holds its share of each kind, to within one.

Nothing here is measured on real data: the shapes are plausible, the seed is fixed. The caps matter: a sample that alone
costs more than a mean row, such as a text of 8,192 tokens on a 72B model or one with many more visual tokens than the
mean row, fits into no row of mean cost, and its micro-step waits for it.
"""
from dataclasses import dataclass

import numpy as np

SOURCES = ('text', 'image', 'multi_image', 'video')
MIXTURE = (0.45, 0.33, 0.12, 0.10)  # shares of samples
BLOCK = 256  # draws that keep the mixture
MERGE = 2  # side of a merge cell in patches
SIDES = (4, 64)  # of a picture, in merge cells
PICTURES = 6  # of one sample, at most
ROW, VISUAL = 8192, 4608  # tokens of a sample at most, and of what it shows
# Text tokens: median, sigma, most
TEXT = {'text': (500, 0.8, 6144), 'image': (180, 0.8, 2048), 'multi_image': (300, 0.8, 2048), 'video': (250, 0.8, 2048)}
MARKS = 2  # tokens around each picture or video


@dataclass(frozen=True)
class SampleLengths:
    """A stream of N samples in draw order.

    Attributes:
        source: (N,) index into SOURCES.
        tokens: (N,) all tokens of a sample.
        visual: (N,) of these, visual ones.
        targets: (N,) text tokens with a loss.
        pictures: (N, PICTURES) indices into grids, -1 where there is none.
        grids: Distinct grids (frame groups, rows, columns), in patches.
    """
    source: np.ndarray
    tokens: np.ndarray
    visual: np.ndarray
    targets: np.ndarray
    pictures: np.ndarray
    grids: list[tuple[int, int, int]]


def make_grids(rng: np.random.Generator, count: int, *, median: float, sigma: float,
               frames: tuple[int, int] = (1, 1)) -> np.ndarray:
    """(count, 3) frame groups, rows, columns in merge cells: log-normal cells of a frame, log-normal aspect ratio."""
    t = np.exp(rng.uniform(np.log(frames[0]), np.log(frames[1] + 1), count)).astype(int)
    cells, aspect = rng.lognormal(np.log(median), sigma, count), rng.lognormal(0.0, 0.4, count)
    sides = np.stack([np.sqrt(cells * aspect), np.sqrt(cells / aspect)], axis=1)
    sides = np.clip(np.rint(sides), *SIDES).astype(int)
    grids = np.column_stack([t, sides])
    while (over := grids.prod(axis=1) > VISUAL).any():  # a pixel budget: fewer frames, or a smaller picture
        video = over & (grids[:, 0] > frames[0])
        grids[video, 0] -= 1
        grids[over & ~video, 1:] -= 1
    return grids


def draw_sources(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count,) kinds: each block of 256 draws holds its share of each kind to within one, in random order."""
    ends = np.arange(1, -(-count // BLOCK) + 1)[:, None] * BLOCK * np.cumsum(MIXTURE)
    owed = np.diff(np.rint(ends), axis=1, prepend=0).astype(int)  # up to the end of each block
    per_block = np.diff(owed, axis=0, prepend=0)
    kinds = np.stack([np.repeat(np.arange(len(SOURCES)), block) for block in per_block])
    return rng.permuted(kinds, axis=1).ravel()[:count].astype(np.int8)


def sample_lengths(count: int = 1_000_000, seed: int = 0) -> SampleLengths:
    """The stream; the same for the same arguments."""
    rng = np.random.default_rng(seed)
    tables = [make_grids(rng, 400, median=480, sigma=0.9), make_grids(rng, 400, median=320, sigma=0.7),
              make_grids(rng, 400, median=160, sigma=0.5, frames=(4, 32))]
    cells = np.concatenate(tables)
    tokens_of = np.append(cells.prod(axis=1), 0)  # the last for 'no picture'
    source = draw_sources(rng, count)
    pictures = np.full((count, PICTURES), -1, np.int16)
    wanted = np.select([source == 2, source == 0], [rng.integers(2, PICTURES, count, endpoint=True), 0], 1)
    first = np.cumsum([0] + [len(table) for table in tables])
    for kind in (1, 2, 3):
        rows = np.flatnonzero(source == kind)
        drawn = rng.integers(first[kind - 1], first[kind], (len(rows), PICTURES))
        keep = np.arange(PICTURES) < wanted[rows, None]
        keep &= np.cumsum(tokens_of[drawn], axis=1) <= VISUAL
        pictures[rows] = np.where(keep, drawn, -1)
    visual = tokens_of[pictures].sum(axis=1)
    median, sigma, most = np.array([TEXT[name] for name in SOURCES])[source].T
    room = ROW - visual - MARKS * (pictures >= 0).sum(axis=1)
    text = np.clip(np.rint(rng.lognormal(np.log(median), sigma)), 8, np.minimum(most, room)).astype(int)
    targets = np.maximum(1, np.rint(text * rng.beta(2, 3, count))).astype(int)
    grids = [(int(t), int(h) * MERGE, int(w) * MERGE) for t, h, w in cells]
    return SampleLengths(source, ROW - room + text, visual, targets, pictures, grids)
