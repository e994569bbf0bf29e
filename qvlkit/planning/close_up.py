"""One sample as the model gets it: pictures rebuilt from its patches, regions where they lie, tokens with their roles.

Shape letters: T tokens, A position axes.
"""
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from qvlkit.data.datasets.mixture import Mixture
from qvlkit.data.image_text import EncodedPair
from qvlkit.data.planner import drawn_sample
from qvlkit.data.processor import Processor
from qvlkit.data.transforms.chat_template import END_OF_TEXT
from qvlkit.data.transforms.patchify import unpatchify
from qvlkit.planning.survey import Item
from qvlkit.report.picture import Picture
from qvlkit.structures import Box, EncodedSample, Media, Point, Region, Sample, SampleError

REGION_COLOURS = ('green', 'orange', 'blue', 'red')
STRIP = 8  # frames of a video that are shown
LOOKED_AT = 2000  # planned samples among which those to show are chosen
SHOWN = 1200, 400  # tokens of a long sample that are shown, at its start and at its end
CHARACTER = 4  # bytes of a character at most, hence tokens


class Piece(NamedTuple):
    """A stretch of tokens: its text, its role ('target', 'control', 'visual', 'context', of a preference pair 'chosen'
    and 'rejected') and its ids."""
    text: str
    role: str
    ids: tuple[int, ...]


@dataclass
class CloseUp:
    """A sample, planned and encoded.

    placed: with its regions in pixels of the pictures as the model sees them. frames: of each medium, uint8 (frames, H,
    W, C) rebuilt from the patches. roles (T,): of each token. kind: 'conversation', 'caption' (a picture and its
    caption: the tokens are the caption) or 'preference'.
    """
    item: Item
    placed: Sample
    encoded: EncodedSample
    frames: list[np.ndarray]
    roles: np.ndarray
    kind: str = 'conversation'

    def facts(self) -> str:
        """What it takes of a row, in one line."""
        encoded, visual = self.encoded, sum(self.encoded.token_counts)
        targets = f'{int(encoded.is_target.sum()):,}'
        if self.kind == 'caption':
            return f'{visual + encoded.length:,} tokens: {visual:,} cells of the picture, {targets} of its caption'
        if self.kind == 'conversation':
            return f'{encoded.length:,} tokens, of which {targets} targets and {visual:,} visual'
        prompt, chosen, rejected = encoded.lengths
        starts = [encoded.position_ids[:, row].tolist() for row in (prompt, prompt + chosen)]
        first, second = (', '.join(map(str, start)) for start in starts)
        where = f'both from position ({first})' if first == second else f'from positions ({first}) and ({second})'
        return (f'{encoded.length:,} tokens: {prompt:,} of the prompt ({visual:,} visual), {chosen:,} of the chosen '
                f'and {rejected:,} of the rejected answer, {where}')

    def regions(self, media_index: int) -> list[Region]:
        """Regions on one medium, in reading order."""
        return [part for turn in self.placed.turns for part in turn.content
                if isinstance(part, Region) and part.media_index == media_index]

    def pictures(self, media_index: int) -> list[Picture]:
        """One picture of an image, or some frames of a video with their times, with the regions drawn in."""
        medium, frames = self.placed.media()[media_index], self.frames[media_index]
        regions = self.regions(media_index)
        captions = {0: _image_caption(medium, regions)} if medium.kind == 'image' else self._times(media_index)
        marks: dict[type, list] = defaultdict(list)
        for number, region in enumerate(regions):
            kind = type(region) if isinstance(region, Box | Point) else None
            marks[kind].append((region.coordinates, REGION_COLOURS[number % len(REGION_COLOURS)], region.label))
        return [Picture(Image.fromarray(frames[index]), caption, marks[Box], None, marks[Point], marks[None])
                for index, caption in captions.items()]

    def _times(self, media_index: int) -> dict[int, str]:
        """Frames to show, evenly spaced -> when each is, in the file and for the model."""
        medium, frames = self.placed.media()[media_index], self.frames[media_index]
        first = sum(self.encoded.token_counts[:media_index])
        per_group = self.encoded.token_counts[media_index] // medium.grid[0]
        captions = {}
        for index in np.unique(np.linspace(0, len(frames) - 1, min(STRIP, len(frames))).round().astype(int)).tolist():
            group = index * medium.grid[0] // len(frames)
            row = int(self.encoded.visual_rows[first + group * per_group])
            shown = min(index, len(medium.frames) - 1)
            note = ', repeated' if index > shown else ''
            captions[index] = (f'{_seconds(medium, medium.frames[shown]):.2f} s\nframe {medium.frames[shown]}{note}\n'
                               f'group {group} at {group * medium.seconds_per_grid:.2f} s, '
                               f't = {int(self.encoded.position_ids[0, row])}')
        return captions

    def pieces(self, tokenizer: Any) -> Iterator[Piece]:
        """All tokens as text; runs of placeholders are one piece, and so are tokens that share a character."""
        ids, roles = self.encoded.token_ids.tolist(), self.roles.tolist()
        start = 0
        while start < len(ids):
            end = start + 1
            if roles[start] == 'visual':
                while end < len(ids) and roles[end] == 'visual' and ids[end] == ids[start]:
                    end += 1
                text = f'{tokenizer.decode(ids[start:start + 1], skip_special=False)} x {end - start}'
            else:
                text = tokenizer.decode(ids[start:end], skip_special=False)
                while '\ufffd' in text and end < min(len(ids), start + CHARACTER) and roles[end] == roles[start]:
                    end += 1
                    text = tokenizer.decode(ids[start:end], skip_special=False)
            yield Piece(text or f'[{ids[start]}]', roles[start], tuple(ids[start:end]))
            start = end

    def positions(self) -> dict[str, tuple[list[int], list[int]]]:
        """Axis -> (token indices, position ids), without the points in the middle of straight lines."""
        ids = self.encoded.position_ids.numpy()
        names = ('t', 'h', 'w') if len(ids) == 3 else tuple(f'axis {number}' for number in range(len(ids)))
        return {name: _corners(row) for name, row in zip(names, ids)}


def close_up(item: Item, mixture: Mixture, processor: Any) -> CloseUp:
    """Encode one planned sample, by the steps that training takes; SampleError if it cannot be used.

    Args:
        item: The sample.
        mixture, processor: The loader's: the processor is what the stage's trainer encodes with.
    """
    draw = item.placed.draw
    sample = drawn_sample(draw, mixture, processor, item.placed.shrink)
    encoded = processor.encode(sample, epoch=draw.epoch)
    if encoded.length != item.placed.length:
        raise SampleError(item.id, f'has {encoded.length} tokens and was planned with {item.placed.length}: the data '
                          'or its index have changed', 'length_changed')
    whole, kind = run_processor(processor), 'conversation'
    control = {END_OF_TEXT}
    if not isinstance(encoded, EncodedSample):  # of image_text.py
        encoded, kind = _caption(encoded), 'caption'
    else:
        written = whole.written(sample, epoch=draw.epoch)
        control |= {segment.text for segment in written.segments if segment.kind == 'control'}
    frames = [unpatchify(np.asarray(patches), grid, whole.geometry)
              for patches, grid in zip(encoded.patches, encoded.grids)]
    ids = [whole.tokenizer.special_id(text) for text in control]  # plain text never gives these
    is_control = np.isin(encoded.token_ids.numpy(), ids)
    roles = np.where(is_control, 'control', 'context').astype('<U12')
    roles[encoded.visual_rows.numpy()] = 'visual'
    roles[encoded.is_target.numpy() & (~is_control if kind == 'caption' else True)] = 'target'
    if hasattr(encoded, 'lengths'):  # of preference.py
        kind, (prompt, chosen, _) = 'preference', encoded.lengths
        roles[prompt:prompt + chosen], roles[prompt + chosen:] = 'chosen', 'rejected'
    return CloseUp(item, whole.placed(sample, epoch=draw.epoch), encoded, frames, roles, kind)


def run_processor(encoder: Any) -> Processor:
    """The run's processor of what a trainer encodes with: itself, or what it is made of."""
    return getattr(encoder, 'processor', encoder)


def _caption(pair: EncodedPair) -> EncodedSample:
    """A picture and its caption as a sample whose tokens are the caption."""
    length = len(pair.token_ids)
    return EncodedSample(pair.id, pair.token_ids, torch.ones(length, dtype=torch.bool), torch.arange(length)[None],
                         [pair.patches], [pair.grid], ['image'], [pair.num_cells],
                         torch.zeros(0, dtype=torch.int64), pair.source, pair.extra)


def close_ups(items: Sequence[Item], count: int, mixture: Mixture, processor: Any
              ) -> Iterator[CloseUp | SampleError]:
    """Close-ups of `count` planned samples, if so many can be encoded, and the errors of those that cannot.

    No sample comes twice, and the most different come first: of other kinds of media, then of other sources, then with
    regions or without. Errors have a `source`.
    """
    groups, taken, failed = _groups(items, mixture), defaultdict(int), 0
    while groups and taken['all'] < count and failed <= 4 * count:
        key = min(groups, key=lambda key: (
            taken['kind', key[0]], taken['source', key[1]], taken[key], not key[2]))
        item = groups[key].popleft()
        if not groups[key]:
            del groups[key]
        try:
            found = close_up(item, mixture, processor)
        except SampleError as error:
            error.source = item.source
            failed += 1
            yield error
            continue
        for part in ('all', key, ('kind', key[0]), ('source', key[1])):
            taken[part] += 1
        yield found


def _groups(items: Sequence[Item], mixture: Mixture) -> dict[tuple[str, str, bool], deque[Item]]:
    """(kind of media, source, whether it has regions) -> planned samples, each at its earliest visit only."""
    groups: dict[tuple, deque[Item]] = defaultdict(deque)
    once: dict[tuple, Item] = {}
    for item in sorted(items, key=lambda item: item.placed.draw.epoch):
        once.setdefault((item.placed.draw.source, item.placed.draw.index), item)
    for (source, index), item in islice(once.items(), LOOKED_AT):
        sample = mixture.sample(source, index)
        kinds = {medium.kind for medium in sample.media()}
        kind = next((name for name in ('video', 'image') if name in kinds), 'text')
        has_regions = any(isinstance(part, Region) for turn in sample.turns for part in turn.content)
        groups[kind, item.source, has_regions].append(item)
    return groups


def _image_caption(medium: Media, regions: Sequence[Region]) -> str:
    width, height = medium.size
    caption = f'{width} x {height} pixels'
    outside = [region for region in regions if not all(
        -0.5 <= value <= medium.size[axis % 2] + 0.5 for axis, value in enumerate(region.coordinates))]
    if regions:
        caption += f'\n{len(regions)} marked'
    if outside:
        caption += f', {len(outside)} OUTSIDE THE PICTURE: {list(outside[0].coordinates)}'
    return caption


def _seconds(medium: Media, frame: int) -> float:
    """When a frame of a video is shown, in its file or list."""
    return float(medium.video.timestamps[frame]) if medium.video is not None else frame / float(medium.fps)


def _corners(ids: np.ndarray) -> tuple[list[int], list[int]]:
    bends = np.flatnonzero(np.diff(ids, n=2)) + 1
    keep = np.unique(np.concatenate([[0], bends, [len(ids) - 1]]))
    return keep.tolist(), ids[keep].tolist()
