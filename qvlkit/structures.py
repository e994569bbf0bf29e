"""What crosses a folder border: plain data, no behaviour beyond building and moving itself.

Shape letters: T packed tokens, N patches, M visual tokens, S supervised rows, B segments or pairs, A position axes,
C colour channels, F frames in a patch (temporal patch size), P patch side.
"""
import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

Grid = tuple[int, int, int]  # frame groups, rows, columns, in patches


class SampleError(ValueError):
    """A sample that cannot be used, with the place it came from and the reason.

    Args:
        sample_id: File and record, for example 'chat.json[3]'.
        reason: What is wrong, with the value and what was expected.
        kind: Short name under which such errors are counted, for example 'missing_media'.
    """

    def __init__(self, sample_id: str, reason: str, kind: str = 'bad_sample'):
        super().__init__(f'{sample_id}: {reason}')
        self.sample_id, self.reason, self.kind = sample_id, reason, kind
        self.source = ''  # name of the source it came from, once the loader knows it
        self.after_good = False  # whether a good sample of that source was met since its last bad one

    def __reduce__(self):
        return type(self), (self.sample_id, self.reason, self.kind), {
            'source': self.source, 'after_good': self.after_good}


@dataclass(frozen=True)
class VisionGeometry:
    """How pixels become patches and patches become language tokens.

    Everything that depends on sizes (resize factor, placeholder counts, box scale) reads them here.
    """
    patch_size: int
    temporal_patch_size: int
    merge_size: int
    in_channels: int = 3

    @property
    def factor(self) -> int:
        """Sides of a resized image are multiples of this many pixels."""
        return self.patch_size * self.merge_size

    def token_grid(self, grid: Grid) -> Grid:
        """A grid of patches as a grid of merge cells."""
        t, rows, columns = grid
        return t, rows // self.merge_size, columns // self.merge_size


@dataclass(frozen=True)
class MediaSize:
    """What is known of a medium before it is decoded.

    width, height: pixels of the upright picture. frames: decodable frames of a video, 0 for an image. seconds: how long
    the video lasts, its last frame included.
    """
    kind: str  # 'image', 'video' (a file of steady rate), or 'frames' (a video given as its frames)
    width: int
    height: int
    frames: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class SampleSizes:
    """What a store knows of a record without reading it: enough to plan rows.

    text_tokens: tokens of the rendered sample except visual ones; num_targets: those that are learned; media: in
    reading order. `text_key` names the tokenizer and the template that counted them: with others the numbers are void.
    """
    text_tokens: int
    num_targets: int
    media: tuple[MediaSize, ...] = ()
    text_key: str = ''


@dataclass
class Media:
    """An image or a video inside a conversation.

    `source` is a path, encoded bytes, a PIL image, an array, an object with `size` and `draw()`, or for a video also a
    list of those (its frames). `start` and `end` cut a video, in seconds.

    Transforms plan first and touch pixels last: `size` is the (width, height) that the picture has after the `edits`
    planned so far, and `edits` is what will be done to each decoded frame, in order. What is planned is therefore known
    without decoding.
    """
    kind: str  # 'image' or 'video'
    source: Any
    fps: float = 2.0  # frames per second of a video's frame list; a file's stream tells its own time
    start: float | None = None
    end: float | None = None
    video: Any = None  # of a video: its frames' times (VideoInfo), once opened
    size: tuple[int, int] | None = None  # (width, height) now: after orientation and the edits planned so far
    source_size: tuple[int, int] | None = None  # (width, height) before any edit, orientation applied
    edits: tuple = ()
    frames: tuple[int, ...] = ()  # which frames of a video are taken
    seconds_per_grid: float = 0.0  # time between frame groups of a video
    patches: Any = None  # uint8 (N, C*P*P) of an image or (N, C*F*P*P) of a video, in block order
    grid: Grid | None = None


@dataclass
class Region:
    """A place on one medium of the sample: coordinates x1, y1, x2, y2, ... in the space that `space` names.

    Spaces: 'source' (pixels of the original upright picture), 'pixels' (of the picture as it is after the edits planned
    so far), 'resized' (pixels of the picture resized for the model, before any other edit), 'thousand' (0 to 1000 over
    each side) and 'unit' (0 to 1).
    """
    coordinates: tuple[float, ...]
    label: str = ''
    media_index: int = 0
    space: str = 'source'


@dataclass
class Box(Region):
    """A rectangle (x1, y1, x2, y2)."""


@dataclass
class Point(Region):
    """A point (x, y)."""


@dataclass
class Polygon(Region):
    """A closed outline (x1, y1, x2, y2, x3, y3, ...), three corners or more."""


@dataclass
class Turn:
    """One message or a document: role 'system', 'user', 'assistant', 'tool' or 'document', content in reading order.

    A sample of one 'document' turn is read without a chat around it: its text is learned, its media are not.
    """
    role: str
    content: list  # of str, Media, Region


@dataclass
class Sample:
    """A conversation or a document as a dataset gives it, before pixels are decoded or text is tokenized.

    rejected: of a preference pair, the turns that stand where the conversation's last answer stands, and are worse;
    empty otherwise. limits: what this sample's source sets instead of the processor's own, for example max_pixels or
    fps.
    """
    id: str
    turns: list[Turn]
    source: str = ''  # name of the dataset it came from
    extra: dict = field(default_factory=dict)  # what a metric needs: task name, expected answer, ...
    rejected: list[Turn] = field(default_factory=list)
    limits: dict = field(default_factory=dict)
    segments: list = field(default_factory=list)  # of Segment: the rendered text, with its placeholders and targets
    tokens: 'TokenizedText | None' = None

    def media(self) -> list[Media]:
        """Its media in reading order."""
        return [item for turn in self.turns for item in turn.content if isinstance(item, Media)]


@dataclass
class TokenizedText:
    """token_ids (T,) int64; is_target (T,) bool; visual_rows (M,) int64: rows of the placeholders, in order."""
    token_ids: Any
    is_target: Any
    visual_rows: Any


@dataclass
class TextSpan:
    """`length` text tokens in a sample's layout."""
    length: int


@dataclass
class VisionSpan:
    """The tokens of one image or video in a sample's layout.

    `grid` counts merge cells (frame groups, rows, columns); `seconds_per_grid` is the time between frame groups,
    0.0 for an image. Seconds are floats: they are multiplied before they are truncated.
    """
    grid: Grid
    seconds_per_grid: float = 0.0

    @property
    def length(self) -> int:
        t, rows, columns = self.grid
        return t * rows * columns


Layout = list  # of TextSpan | VisionSpan, in token order


@dataclass(frozen=True)
class Measure:
    """What a sample will cost a row, known without decoding: its tokens, its targets, its grids in patches."""
    length: int
    num_targets: int
    grids: tuple[Grid, ...] = ()


@dataclass
class EncodedSample:
    """A sample as numbers, ready to be packed.

    token_ids (T,) int64; is_target (T,) bool; position_ids (A, T) int64; patches: one uint8 array for each medium,
    (N, C*P*P) for an image (its second frame is a copy and is not stored) and (N, C*F*P*P) for a video, in block
    order; grids and token_counts: one for each medium; visual_rows (sum of token_counts,): rows of the placeholders.
    """
    id: str
    token_ids: Any
    is_target: Any
    position_ids: Any
    patches: list
    grids: list[Grid]
    kinds: list[str]
    token_counts: list[int]
    visual_rows: Any
    source: str = ''
    extra: dict = field(default_factory=dict)

    @property
    def length(self) -> int:
        return len(self.token_ids)


def move(value: Any, device: torch.device | str, non_blocking: bool = False) -> Any:
    """Copy of a dataclass, list, dict or tensor with every tensor on `device`; other values are kept."""
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=non_blocking)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(value, **{
            f.name: move(getattr(value, f.name), device, non_blocking) for f in dataclasses.fields(value)})
    if isinstance(value, dict):
        return {key: move(item, device, non_blocking) for key, item in value.items()}
    return value


@dataclass
class AttentionPlan:
    """Which query may see which key, for packed segments: made on the CPU, before the forward pass.

    Segment b holds queries cu_q[b]:cu_q[b+1] and keys cu_k[b]:cu_k[b+1]. Within a segment every query sees every
    key, or, if `causal`, query i of n sees keys up to i + (m - n) of m (aligned at the bottom right, so that the last
    query sees all). `key_index` (K,) gathers keys and values first, when segments share keys or read from a cache.

    Lengths are also kept as host integers, so that no backend has to ask the device for a number.
    """
    cu_q: torch.Tensor  # (B + 1,) int32
    cu_k: torch.Tensor  # (B + 1,) int32
    lengths_q: tuple[int, ...]
    lengths_k: tuple[int, ...]
    causal: bool
    runs: tuple[tuple[int, int, int], ...]  # neighbouring segments of equal lengths: (count, queries, keys)
    key_index: torch.Tensor | None = None  # (K,) int64

    @classmethod
    def from_lengths(cls, lengths_q, lengths_k=None, *, causal: bool, key_index: torch.Tensor | None = None):
        """A plan for segments of these lengths; `lengths_k` defaults to `lengths_q`."""
        queries = np.array(lengths_q, dtype=np.int64).reshape(-1)
        keys = queries if lengths_k is None else np.array(lengths_k, dtype=np.int64).reshape(-1)
        if len(queries) != len(keys):
            raise ValueError(f'{len(queries)} query segments but {len(keys)} key segments')
        changes = np.ones(len(queries), dtype=bool)
        np.not_equal(queries[1:], queries[:-1], out=changes[1:])
        if keys is not queries:
            changes[1:] |= keys[1:] != keys[:-1]
        starts = np.flatnonzero(changes)
        counts = np.diff(starts, append=len(queries))
        runs = tuple(zip(counts.tolist(), queries[starts].tolist(), keys[starts].tolist()))
        cu_q, lengths_q = _cumulative(queries), tuple(queries.tolist())
        cu_k, lengths_k = (cu_q, lengths_q) if keys is queries else (_cumulative(keys), tuple(keys.tolist()))
        return cls(cu_q, cu_k, lengths_q, lengths_k, causal, runs, key_index)

    @property
    def max_q(self) -> int:
        return max(self.lengths_q, default=0)

    @property
    def max_k(self) -> int:
        return max(self.lengths_k, default=0)

    def to(self, device, non_blocking: bool = False) -> 'AttentionPlan':
        return move(self, device, non_blocking)


def _cumulative(lengths: np.ndarray) -> torch.Tensor:
    cumulative = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=cumulative[1:])
    return torch.from_numpy(cumulative)


@dataclass
class VisionPlan:
    """How an encoder wants its patches, made on the CPU from the grids alone.

    order (N,): the encoder's row n is row order[n] of the media's concatenated block-order patches. The collator
    applies it to the uint8 patches, so the model gathers nothing.
    token_order (M,): visual token m of the merger's output is token token_order[m] of the media in reading order.
    positions (N, 2): row and column of each patch in its own picture, already in the encoder's order.
    attention: plans by name, for example 'window' and 'full'.
    """
    order: torch.Tensor
    token_order: torch.Tensor
    positions: torch.Tensor
    attention: dict[str, AttentionPlan]
    grids: tuple[Grid, ...] = ()

    def to(self, device, non_blocking: bool = False) -> 'VisionPlan':
        return move(self, device, non_blocking)


@dataclass
class PackedBatch:
    """Rows of samples laid end to end: no batch axis, no padding.

    token_ids (T,) int64; position_ids (A, T) int64, computed for each sample alone; attention: causal by sample.
    image_patches (Ni, C*P*P) and video_patches (Nv, C*F*P*P) uint8, in the vision plan's order, images first.
    visual_rows (M,): the row that each visual token takes, in the order in which the merger emits them.
    target_rows (S,): rows whose hidden state predicts a target; target_ids (S,): those targets; target_groups (S,): the
    group under which each target's loss is logged, of `num_groups` (source x number of visual tokens), if any.

    A batch without media carries one smallest blank picture with no visual_rows, so that every rank runs every part.
    """
    token_ids: torch.Tensor
    position_ids: torch.Tensor
    attention: AttentionPlan
    image_patches: torch.Tensor
    video_patches: torch.Tensor
    vision_plan: VisionPlan
    visual_rows: torch.Tensor
    target_rows: torch.Tensor
    target_ids: torch.Tensor
    sample_ids: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    target_groups: torch.Tensor | None = None
    num_groups: int = 0

    @property
    def num_tokens(self) -> int:
        return self.token_ids.numel()

    @property
    def num_targets(self) -> int:
        return self.target_ids.numel()

    def to(self, device, non_blocking: bool = False) -> 'PackedBatch':
        return move(self, device, non_blocking)

    def pin_memory(self) -> 'PackedBatch':
        return _pin(self)


@dataclass
class ImageTextBatch:
    """Pairs of a picture and its caption, laid end to end: no batch axis, no padding. B pairs.

    image_patches (N, C*P*P) uint8, in the vision plan's order; video_patches (0, C*F*P*P), empty: an encoder is fed as
    from a PackedBatch. picture_index (N,) int64: the picture, 0 ... B - 1, that each feature in the plan's order
    belongs to; picture_lengths (B,) int64: features of each.
    token_ids (T,) int64: the captions, each with its end-of-text token; position_ids (1, T) int64, from 0 in each;
    attention: causal by caption. caption_index (T,) and caption_lengths (B,) as for pictures; last_rows (B,) int64: row
    of each caption's last token.
    """
    image_patches: torch.Tensor
    video_patches: torch.Tensor
    vision_plan: VisionPlan
    picture_index: torch.Tensor
    picture_lengths: torch.Tensor
    token_ids: torch.Tensor
    position_ids: torch.Tensor
    attention: AttentionPlan
    caption_index: torch.Tensor
    caption_lengths: torch.Tensor
    last_rows: torch.Tensor
    sample_ids: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Visual tokens, as merge cells, and text tokens."""
        return self.vision_plan.token_order.numel() + self.token_ids.numel()

    @property
    def num_targets(self) -> int:
        """Pairs."""
        return self.last_rows.numel()

    def to(self, device, non_blocking: bool = False) -> 'ImageTextBatch':
        return move(self, device, non_blocking)

    def pin_memory(self) -> 'ImageTextBatch':
        return _pin(self)


@dataclass(kw_only=True)
class PreferenceBatch(PackedBatch):
    """Preference pairs end to end; a pair is one row [prompt | chosen answer | rejected answer].

    Both answers have the positions that follow the prompt. attention: three segments for each pair, prompt on prompt,
    each answer on [prompt; itself]; so an answer does not see the other, and one pass of a decoder serves both.
    target_rows, target_ids: of both answers; the last row of a prompt predicts the first token of each.
    answer_of_target (S,) int64: 2 * pair + 0 for the chosen answer, + 1 for the rejected one.
    answer_lengths (pairs, 2) int64: targets of the chosen and of the rejected answer.
    content_keys: a name of each pair's content, for what is stored about it.
    """
    answer_of_target: torch.Tensor
    answer_lengths: torch.Tensor
    content_keys: tuple[str, ...]

    @property
    def num_pairs(self) -> int:
        return len(self.content_keys)


def _pin(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.pin_memory()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(value, **{f.name: _pin(getattr(value, f.name)) for f in dataclasses.fields(value)})
    if isinstance(value, dict):
        return {key: _pin(item) for key, item in value.items()}
    return value
