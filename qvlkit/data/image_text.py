"""Pairs of a picture and its caption, for contrastive pre-training: measured, encoded, and joined to a batch.

Source: Learning Transferable Visual Models From Natural Language Supervision, arXiv 2103.00020, section 2. Pictures
keep their aspect ratio, as in Qwen2.5-VL, arXiv 2502.13923, section 2.1.1.

A pair comes from a captioned document (its texts are the caption) or from a conversation (what the assistant says is).
Shape letters: B pairs, T caption tokens, N patches, M merge cells.
"""
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from qvlkit.data.formats.grounding import SpecialToken
from qvlkit.data.transforms.chat_template import END_OF_TEXT
from qvlkit.structures import (
    AttentionPlan,
    Grid,
    ImageTextBatch,
    Measure,
    Sample,
    SampleError,
    SampleSizes,
    VisionGeometry,
    VisionPlan,
)

LEARNED_ROLES = ('document', 'assistant')  # of the turns whose text is the caption


@dataclass
class EncodedPair:
    """A pair as numbers. token_ids (T,) int64; patches uint8 (N, C*P*P) in block order; `num_cells` merge cells."""
    id: str
    token_ids: torch.Tensor
    patches: np.ndarray
    grid: Grid
    num_cells: int
    source: str = ''
    extra: dict = field(default_factory=dict)

    @property
    def length(self) -> int:
        return self.num_cells + len(self.token_ids)


class ImageTextProcessor:
    """Samples to pairs; what a loader and an evaluation need of them.

    Args:
        processor: The run's Processor: pictures are opened, resized and cut by it.
        max_text_tokens: Longest caption, its end-of-text token counted; what is over is cut off.

    Raises:
        ValueError: max_text_tokens leaves no room for text.
    """

    def __init__(self, processor: Any, *, max_text_tokens: int = 77):
        if not isinstance(max_text_tokens, int) or isinstance(max_text_tokens, bool) or max_text_tokens < 2:
            raise ValueError(f'trainer.max_text_tokens: expected a whole number of at least 2 (a token and the end of '
                             f'text), got {max_text_tokens!r}')
        self.processor, self.max_text_tokens = processor, max_text_tokens
        self.geometry, self.plan, self.tokenizer = processor.geometry, processor.plan, processor.tokenizer

    def num_tokens(self, grid: Grid) -> int:
        """What a picture of this grid (in patches) takes of a row: its merge cells."""
        return math.prod(self.geometry.token_grid(grid))

    def measure(self, sample: Sample, *, epoch: int = 0) -> Measure:
        """What `encode` will give, without decoding a pixel; a pair is one target. SampleError as there."""
        written = self._written(sample, epoch)
        grid = written.media()[0].grid
        return Measure(self.num_tokens(grid) + len(self._caption_ids(written)), 1, (grid,))

    def measure_sizes(self, sizes: SampleSizes, sample_id: str, *, epoch: int = 0, limits: dict | None = None) -> None:
        """None: a store counts the tokens of a rendered chat, not of a caption."""
        return None

    def shrunk_limits(self, sample: Sample, factor: float, *, epoch: int = 0) -> dict:
        """As `Processor.shrunk_limits`."""
        return self.processor.shrunk_limits(sample, factor, epoch=epoch)

    def encode(self, sample: Sample, *, epoch: int = 0) -> EncodedPair:
        """Sample -> EncodedPair.

        Raises:
            SampleError: There is not exactly one picture, no caption, or the picture cannot be used.
        """
        written = self._written(sample, epoch)
        ids = self._caption_ids(written)
        medium = self.processor.cut_patches(written, None).media()[0]
        return EncodedPair(sample.id, torch.tensor(ids, dtype=torch.int64), medium.patches, medium.grid,
                           self.num_tokens(medium.grid), sample.source, sample.extra)

    def caption(self, text: str) -> EncodedPair:
        """A caption alone, beside the smallest blank picture: for its embedding."""
        side, geometry = self.geometry.merge_size, self.geometry
        blank = np.zeros((side * side, geometry.in_channels * geometry.patch_size**2), dtype=np.uint8)
        return EncodedPair(f'caption {text!r}', torch.tensor(self._ids(text), dtype=torch.int64), blank,
                           (1, side, side), 1)

    def caption_text(self, sample: Sample) -> str:
        """The caption of a sample, in full."""
        return _caption(self._written(sample, 0))

    def _written(self, sample: Sample, epoch: int) -> Sample:
        """A private copy with its picture planned and regions as text; SampleError unless it has one picture."""
        kinds = [medium.kind for medium in sample.media()]
        if kinds != ['image']:
            raise SampleError(sample.id, f'a pair has exactly one image, got {kinds or "no medium"}', 'not_a_pair')
        return self.processor.written(sample, epoch=epoch)

    def _caption_ids(self, written: Sample) -> list[int]:
        text = _caption(written)
        if not text.strip():
            raise SampleError(written.id, 'a pair needs a caption: the text of a document or of the assistant, got '
                              'none', 'no_target')
        return self._ids(text)

    def _ids(self, text: str) -> list[int]:
        ids = self.tokenizer.encode(text)[:self.max_text_tokens - 1]
        return [*ids, self.tokenizer.special_id(END_OF_TEXT)]


def _caption(written: Sample) -> str:
    """The texts of a document as they stand; those of an assistant's turns with a blank between turns."""
    turns = [''.join(item for item in turn.content if isinstance(item, str) and not isinstance(item, SpecialToken))
             for turn in written.turns if turn.role in LEARNED_ROLES]
    return ' '.join(turns)


def collate_image_text(samples: Sequence[EncodedPair], *, plan: Callable[[Sequence[Grid]], VisionPlan],
                       geometry: VisionGeometry, sources: Sequence[str] = ()) -> ImageTextBatch:
    """Pairs end to end, with every index that the two towers need.

    Args:
        samples: In the order in which they stand in the row.
        plan: The vision encoder's `plan`.
        geometry: Of the model.
        sources: Names of the data's sources; not needed here.
    """
    grids = [sample.grid for sample in samples]
    vision_plan = plan(grids)
    lengths = np.array([math.prod(grid) for grid in grids])
    order = vision_plan.order.numpy()
    captions = np.array([len(sample.token_ids) for sample in samples])
    ends = np.cumsum(captions)
    frame_values = geometry.in_channels * geometry.patch_size**2
    return ImageTextBatch(
        image_patches=torch.from_numpy(np.concatenate([sample.patches for sample in samples])[order]),
        video_patches=torch.zeros(0, frame_values * geometry.temporal_patch_size, dtype=torch.uint8),
        vision_plan=vision_plan,
        picture_index=torch.from_numpy(np.repeat(np.arange(len(samples)), lengths)[order]),
        picture_lengths=torch.from_numpy(lengths),
        token_ids=torch.cat([sample.token_ids for sample in samples]),
        position_ids=torch.from_numpy(np.arange(ends[-1]) - np.repeat(ends - captions, captions))[None],
        attention=AttentionPlan.from_lengths(captions, causal=True),
        caption_index=torch.from_numpy(np.repeat(np.arange(len(samples)), captions)),
        caption_lengths=torch.from_numpy(captions), last_rows=torch.from_numpy(ends - 1),
        sample_ids=tuple(sample.id for sample in samples), sources=tuple(sample.source for sample in samples))
