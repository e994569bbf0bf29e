"""One sample from a conversation to numbers: decode, resize, cut into patches, write boxes, render, tokenize.

Source: Qwen2.5-VL (arXiv 2502.13923) sections 2.1 and 2.2. What depends on the model is handed in as plain callables
by whoever builds both: how many tokens a grid becomes, and the position ids of a layout.

Shape letters: T tokens, A position axes, N patches, C channels, F frames in a patch, P patch side.
"""
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qvlkit.data.collate import collate
from qvlkit.data.formats.grounding import regions_to_text
from qvlkit.data.formats.openai import read_messages
from qvlkit.data.transforms.chat_template import JINJA_TEMPLATE, TURN_END, Segment, render
from qvlkit.data.transforms.load_media import MediaError, load_image
from qvlkit.data.transforms.patchify import patchify_image, patchify_video
from qvlkit.data.transforms.regions import Size, to_resized
from qvlkit.data.transforms.resize import resize_image, smart_resize, video_frame_limits
from qvlkit.structures import (
    EncodedSample,
    Grid,
    Layout,
    Media,
    PackedBatch,
    Region,
    Sample,
    SampleError,
    TextSpan,
    Turn,
    VisionGeometry,
    VisionPlan,
    VisionSpan,
)

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the released model, for pixels in [0, 1]
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
_LIMITS = ('min_pixels', 'max_pixels', 'video_min_pixels', 'video_max_pixels')


@dataclasses.dataclass
class _LoadedMedium:
    patches: np.ndarray
    grid: Grid
    source_size: Size
    resized_size: Size
    seconds_per_grid: float


class Processor:
    """Samples and chat messages to what a model takes.

    Args:
        tokenizer: From `qvlkit.data.tokenizers`.
        geometry: Of the model's vision encoder and merger.
        num_tokens: Grid in patches -> number of visual tokens (the merger's).
        position_ids: Layout -> (A, T) (the position encoding's `ids`).
        plan: Grids -> VisionPlan (the vision encoder's); only batches need it.
        min_pixels, max_pixels: Area of a resized image.
        video_min_pixels, video_max_pixels: Area of a resized video frame.
        video_total_pixels: Area that the frame groups of one video share.
    """

    def __init__(self, tokenizer: Any, geometry: VisionGeometry, *, num_tokens: Callable[[Grid], int],
                 position_ids: Callable[[Layout], torch.Tensor],
                 plan: Callable[[Sequence[Grid]], VisionPlan] | None = None, min_pixels: int = 3136,
                 max_pixels: int = 12_845_056, video_min_pixels: int = 100_352, video_max_pixels: int = 602_112,
                 video_total_pixels: int = 90_316_800):
        for low, high, name in ((min_pixels, max_pixels, 'pixels'),
                                (video_min_pixels, video_max_pixels, 'video pixels')):
            if not 0 < low <= high:
                raise ValueError(f'processor: expected 0 < min <= max {name}, got {low} and {high}')
        self.tokenizer, self.geometry = tokenizer, geometry
        self.num_tokens, self.position_ids, self.plan = num_tokens, position_ids, plan
        self.min_pixels, self.max_pixels = min_pixels, max_pixels
        self.video_min_pixels, self.video_max_pixels = video_min_pixels, video_max_pixels
        self.video_total_pixels = video_total_pixels

    @property
    def limits(self) -> dict[str, int]:
        """The pixel limits, by the names of the constructor's arguments."""
        return {name: getattr(self, name) for name in (*_LIMITS, 'video_total_pixels')}

    def encode(self, sample: Sample, *, generation_prompt: bool = False) -> EncodedSample:
        """Sample -> EncodedSample.

        Args:
            sample: With media as path, bytes, data URI, PIL image or array; a video is a list of such frames.
            generation_prompt: End where an answer would begin. The sample must not end with an answer then.

        Raises:
            SampleError: A medium cannot be used, a box is wrong, or there is nothing to answer.
        """
        if generation_prompt and sample.turns and sample.turns[-1].role == 'assistant':
            raise SampleError(sample.id, 'a prompt for generation ends with an assistant turn', 'answer_in_prompt')
        media = [item for turn in sample.turns for item in turn.content if isinstance(item, Media)]
        loaded = [self._load(medium, sample.id) for medium in media]
        sizes = [(medium.source_size, medium.resized_size) for medium in loaded]
        try:
            turns = [Turn(turn.role, regions_to_text([to_resized(item, sizes) if isinstance(item, Region) else item
                                                      for item in turn.content])) for turn in sample.turns]
        except ValueError as error:
            raise SampleError(sample.id, str(error), 'bad_box') from error
        token_counts = [self.num_tokens(medium.grid) for medium in loaded]
        token_ids, is_target, visual_rows = self._tokenize(render(turns, generation_prompt=generation_prompt),
                                                           token_counts)
        ids = self.position_ids(self._layout(len(token_ids), visual_rows, loaded, token_counts))
        if ids.shape[-1] != len(token_ids):
            raise ValueError(f'{sample.id}: the position encoding gave {ids.shape[-1]} positions for '
                             f'{len(token_ids)} tokens; the merger makes {token_counts} tokens of the grids '
                             f'{[medium.grid for medium in loaded]}')
        return EncodedSample(
            id=sample.id, token_ids=torch.from_numpy(token_ids), is_target=torch.from_numpy(is_target),
            position_ids=ids, patches=[medium.patches for medium in loaded],
            grids=[medium.grid for medium in loaded], kinds=[medium.kind for medium in media],
            token_counts=token_counts, visual_rows=torch.from_numpy(visual_rows), source=sample.source,
            extra=sample.extra)

    def from_messages(self, messages: list[dict], sample_id: str = 'messages') -> Sample:
        """Chat messages (content: text, or parts of type text, image, image_url, video) -> Sample.

        Paths are the caller's own and may lead anywhere; URLs are refused when the sample is encoded.
        """
        turns = read_messages(messages, sample_id=sample_id, resolve=lambda source: source)
        if not turns:
            raise SampleError(sample_id, 'the conversation is empty', 'empty_conversation')
        return Sample(sample_id, turns)

    def __call__(self, messages: list[dict], add_generation_prompt: bool = False) -> PackedBatch:
        """Chat messages -> a batch of one sample."""
        encoded = self.encode(self.from_messages(messages), generation_prompt=add_generation_prompt)
        return collate([encoded], plan=self.plan, geometry=self.geometry)

    def save(self, folder: str | Path) -> None:
        """Write the tokenizer, the pixel limits and the chat template in Hugging Face's form."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(folder)
        image, video = preprocessor_configs(self.geometry, self.limits)
        _write_json(folder / 'preprocessor_config.json', image)
        _write_json(folder / 'video_preprocessor_config.json', video)
        if not (folder / 'chat_template.jinja').exists():
            (folder / 'chat_template.jinja').write_text(JINJA_TEMPLATE, encoding='utf-8')
        if not (folder / 'chat_template.json').exists():
            _write_json(folder / 'chat_template.json', {'chat_template': JINJA_TEMPLATE})

    def stop_ids(self) -> list[int]:
        """Token ids that end an answer."""
        return [self.tokenizer.special_id(TURN_END), self.tokenizer.special_id('<|endoftext|>')]

    def _load(self, medium: Media, sample_id: str) -> _LoadedMedium:
        """Decode, resize and cut one medium; every failure names the sample."""
        try:
            if medium.kind == 'video':
                return self._load_video(medium)
            image = load_image(medium.source)
            size = smart_resize(image.height, image.width, factor=self.geometry.factor, min_pixels=self.min_pixels,
                                max_pixels=self.max_pixels)
            patches, grid = patchify_image(np.asarray(resize_image(image, size)), self.geometry)
            return _LoadedMedium(patches, grid, image.size, (size[1], size[0]), 0.0)
        except MediaError as error:
            raise SampleError(sample_id, error.reason, error.kind) from error
        except ValueError as error:
            raise SampleError(sample_id, f'{_name(medium.source)}{error}', 'bad_size') from error

    def _load_video(self, medium: Media) -> _LoadedMedium:
        frames = medium.source
        if isinstance(frames, np.ndarray) and frames.ndim == 4:
            frames = list(frames)
        if not isinstance(frames, (list, tuple, str, bytes, Path)):
            raise MediaError(f'expected a video as a list of frames, got {type(frames).__name__}', 'wrong_type')
        if not isinstance(frames, (list, tuple)):
            raise MediaError(f'video {_name(frames)}is a file: for now a video is given as a list of its frames',
                             'unsupported_video')
        if not frames:
            raise MediaError('a video without frames', 'empty_video')
        images = [load_image(frame) for frame in frames]
        first = images[0]
        for index, image in enumerate(images):
            if image.size != first.size:
                raise MediaError(f'frame {index} of a video has {image.width} x {image.height} pixels, frame 0 has '
                                 f'{first.width} x {first.height}', 'frame_size')
        low, high = video_frame_limits(len(images), min_pixels=self.video_min_pixels,
                                       max_pixels=self.video_max_pixels, total_pixels=self.video_total_pixels,
                                       temporal_patch_size=self.geometry.temporal_patch_size)
        size = smart_resize(first.height, first.width, factor=self.geometry.factor, min_pixels=low, max_pixels=high)
        pixels = np.stack([np.asarray(resize_image(image, size)) for image in images])
        patches, grid = patchify_video(pixels, self.geometry)
        return _LoadedMedium(patches, grid, first.size, (size[1], size[0]),
                             self.geometry.temporal_patch_size / float(medium.fps))

    def _tokenize(self, segments: list[Segment], token_counts: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Segments -> token_ids (T,), is_target (T,), visual_rows (sum of token_counts,)."""
        ids, lengths, targets, visual = [], [], [], []
        for segment in segments:
            if segment.kind == 'text':
                piece = np.array(self.tokenizer.encode(segment.text), dtype=np.int64)
            else:
                count = token_counts[segment.media_index] if segment.kind == 'vision' else 1
                piece = np.full(count, self.tokenizer.special_id(segment.text), dtype=np.int64)
            ids.append(piece)
            lengths.append(len(piece))
            targets.append(segment.is_target)
            visual.append(segment.kind == 'vision')
        return np.concatenate(ids), np.repeat(targets, lengths), np.flatnonzero(np.repeat(visual, lengths))

    def _layout(self, length: int, visual_rows: np.ndarray, loaded: list[_LoadedMedium],
                token_counts: list[int]) -> Layout:
        """Spans of text and vision in token order."""
        layout: Layout = []
        row, first = 0, 0
        for medium, count in zip(loaded, token_counts):
            start = int(visual_rows[first])
            grid = self.geometry.token_grid(medium.grid)
            layout += [TextSpan(start - row), VisionSpan(grid, medium.seconds_per_grid)]
            row, first = start + count, first + count
        return [*layout, TextSpan(length - row)]


def preprocessor_configs(geometry: VisionGeometry, limits: dict[str, int]) -> tuple[dict, dict]:
    """Hugging Face's preprocessor_config.json and video_preprocessor_config.json."""
    common = {'do_resize': True, 'resample': 3, 'do_rescale': True, 'rescale_factor': 1 / 255, 'do_normalize': True,
              'do_convert_rgb': True, 'image_mean': list(IMAGE_MEAN), 'image_std': list(IMAGE_STD),
              'patch_size': geometry.patch_size, 'temporal_patch_size': geometry.temporal_patch_size,
              'merge_size': geometry.merge_size, 'processor_class': 'Qwen2_5_VLProcessor'}
    image = {**common, 'image_processor_type': 'Qwen2VLImageProcessor', 'min_pixels': limits['min_pixels'],
             'max_pixels': limits['max_pixels'],
             'size': {'shortest_edge': limits['min_pixels'], 'longest_edge': limits['max_pixels']}}
    video = {**common, 'video_processor_type': 'Qwen2VLVideoProcessor', 'min_pixels': limits['video_min_pixels'],
             'max_pixels': limits['video_max_pixels'], 'total_pixels': limits['video_total_pixels'],
             'size': {'shortest_edge': limits['video_min_pixels'], 'longest_edge': limits['video_max_pixels']}}
    return image, video


def read_limits(folder: str | Path) -> dict[str, int]:
    """The pixel limits in a folder's preprocessor configs, as arguments of `Processor`; absent ones are left out."""
    limits: dict[str, int] = {}
    for prefix, name in (('', 'preprocessor_config.json'), ('video_', 'video_preprocessor_config.json')):
        path = Path(folder) / name
        if not path.is_file():
            continue
        config = json.loads(path.read_text(encoding='utf-8'))
        size = config.get('size') or {}
        for key, edge in (('min_pixels', 'shortest_edge'), ('max_pixels', 'longest_edge')):
            value = config.get(key) or size.get(edge)
            if value:
                limits[prefix + key] = int(value)
        if prefix and config.get('total_pixels'):
            limits['video_total_pixels'] = int(config['total_pixels'])
    return limits


def _name(source: Any) -> str:
    return f'{str(source)[:300]!r}: ' if isinstance(source, (str, Path)) else ''


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + '\n', encoding='utf-8')
