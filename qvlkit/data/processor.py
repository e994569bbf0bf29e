"""One sample from a conversation to numbers: a chain of transforms, the last of which touches pixels.

Source: Qwen2.5-VL (arXiv 2502.13923) sections 2.1 and 2.2. What depends on the model is handed in as plain callables
by whoever builds both: how many tokens a grid becomes, and the position ids of a layout.

    open -> sample frames -> place regions -> (transforms of the config) -> resize      sizes and plans, from headers
    -> announce screen -> write regions -> chat template -> tokenize                    `measure` ends here
    -> cut patches -> positions                                                         `encode` goes on

Shape letters: T tokens, A position axes, N patches.
"""
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from qvlkit.data.collate import collate
from qvlkit.data.formats.openai import read_messages
from qvlkit.data.preprocessor_config import preprocessor_configs, write_json
from qvlkit.data.text_measure import TextMeasure
from qvlkit.data.transforms.announce_screen import AnnounceScreen
from qvlkit.data.transforms.chat_template import JINJA_TEMPLATE, TURN_END, ChatTemplate
from qvlkit.data.transforms.cut_patches import CutPatches
from qvlkit.data.transforms.open_media import OpenMedia
from qvlkit.data.transforms.place_regions import PlaceRegions
from qvlkit.data.transforms.resize_media import ResizeMedia
from qvlkit.data.transforms.sample_frames import SampleFrames
from qvlkit.data.transforms.tokenize import Tokenize
from qvlkit.data.transforms.write_regions import WriteRegions
from qvlkit.data.video_readers.base import VideoInfo
from qvlkit.data.video_readers.decoder import READERS, VideoDecoder
from qvlkit.registry import TRANSFORMS, VIDEO_READERS, near_names
from qvlkit.structures import (
    EncodedSample,
    Grid,
    Layout,
    Measure,
    Media,
    MediaSize,
    PackedBatch,
    Sample,
    SampleError,
    SampleSizes,
    TextSpan,
    TokenizedText,
    Turn,
    VisionGeometry,
    VisionPlan,
    VisionSpan,
)
from qvlkit.utils.seeded import seeded

# What a source may set for its own samples (a mixture's `limits`), and the defaults: those of the released model.
LIMITS = dict(min_pixels=3136, max_pixels=12_845_056, video_min_pixels=100_352, video_max_pixels=602_112,
              video_total_pixels=90_316_800, fps=2.0, min_frames=4, max_frames=768)


class Processor:
    """Samples and chat messages to what a model takes.

    Args:
        tokenizer: From `qvlkit.data.tokenizers`.
        geometry: Of the model's vision encoder and merger.
        num_tokens: Grid in patches -> number of visual tokens (the merger's).
        position_ids: Layout -> (A, T) (the position encoding's `ids`).
        plan: Grids -> VisionPlan (the vision encoder's); only batches need it.
        transforms: Name -> config of a transform or a built one, applied in order between opening and resizing.
        add_vision_id: Write 'Picture 1: ' before each medium of a conversation.
        region_style: How boxes, points and polygons are written; see `WriteRegions`.
        video_readers, video_deadline: Readers of video files in the order in which they are tried, and the seconds that
            each has for one video.
        seed: Of everything random.
        limits: min_pixels, max_pixels (area of a resized image), video_min_pixels, video_max_pixels (of a frame),
            video_total_pixels (that the frame groups of one video share), fps (frames taken for each second of a video;
            of a list of rates, each sample draws one), min_frames, max_frames.
    """

    def __init__(self, tokenizer: Any, geometry: VisionGeometry, *, num_tokens: Callable[[Grid], int],
                 position_ids: Callable[[Layout], torch.Tensor],
                 plan: Callable[[Sequence[Grid]], VisionPlan] | None = None, transforms: dict | None = None,
                 add_vision_id: bool = False, region_style: str = 'json',
                 video_readers: Sequence[str] = READERS,
                 video_deadline: float = 20.0, seed: int = 0, **limits: Any):
        self.tokenizer, self.geometry, self.seed = tokenizer, geometry, seed
        self.num_tokens, self.position_ids, self.plan = num_tokens, position_ids, plan
        self.all_limits = check_limits({**LIMITS, **limits})
        if self.all_limits['max_frames'] < geometry.temporal_patch_size:
            raise ValueError(f'processor.max_frames: {self.all_limits["max_frames"]} frames do not fill a patch of '
                             f'{geometry.temporal_patch_size}')
        modules = {VIDEO_READERS.get(name, config_key='processor.video_readers').__module__ for name in video_readers}
        decoder = VideoDecoder(tuple(video_readers), deadline=video_deadline,
                               modules=sorted(name for name in modules if not name.startswith('qvlkit.')))
        resize = ResizeMedia(geometry=geometry)
        self.transforms = {name: TRANSFORMS.build(part, config_key=f'processor.transforms.{name}')
                           if isinstance(part, dict) else part for name, part in (transforms or {}).items()}
        self.geometry_steps = {
            'open': OpenMedia(decoder=decoder),
            'sample_frames': SampleFrames(temporal_patch_size=geometry.temporal_patch_size),
            'place_regions': PlaceRegions(resized_size=resize.target), **self.transforms, 'resize': resize}
        self.template = ChatTemplate(add_vision_id=add_vision_id)
        self.text_steps = {'announce_screen': AnnounceScreen(), 'write_regions': WriteRegions(region_style),
                           'template': self.template, 'tokenize': Tokenize(tokenizer=tokenizer, num_tokens=num_tokens)}
        self.text_measure = TextMeasure(tokenizer, add_vision_id=add_vision_id, region_style=region_style)
        self.cut_patches = CutPatches(geometry=geometry, decoder=decoder)

    @property
    def limits(self) -> dict[str, int]:
        """The pixel limits, by the names of the constructor's arguments."""
        return {name: value for name, value in self.all_limits.items() if name.endswith('_pixels')}

    @property
    def text_key(self) -> str:
        """Names the tokenizer and how a chat is written: token counts made with the same key hold. '' holds nowhere."""
        return self.text_measure.key

    def encode(self, sample: Sample, *, epoch: int = 0, generation_prompt: bool = False) -> EncodedSample:
        """Sample -> EncodedSample.

        Args:
            sample: With media as path, bytes, data URI, PIL image or array; a video also as a list of frames. It is not
                changed.
            epoch: Which visit of the sample this is; random transforms draw anew at each.
            generation_prompt: End where an answer would begin. The sample must not end with an answer then.

        Raises:
            SampleError: A medium cannot be used, a box is wrong, or there is nothing to answer.
        """
        return self.encode_written(self.written(sample, epoch=epoch, generation_prompt=generation_prompt), epoch=epoch)

    def encode_written(self, sample: Sample, *, epoch: int = 0) -> EncodedSample:
        """What `written` gave -> EncodedSample; its media receive their patches. Errors as for `encode`."""
        sample = self._run({'cut_patches': self.cut_patches}, sample, epoch)
        media, tokens = sample.media(), sample.tokens
        counts = [self.num_tokens(medium.grid) for medium in media]
        ids = self.positions(tokens, media, sample.id)
        return EncodedSample(
            id=sample.id, token_ids=torch.from_numpy(tokens.token_ids), is_target=torch.from_numpy(tokens.is_target),
            position_ids=ids, patches=[medium.patches for medium in media], grids=[medium.grid for medium in media],
            kinds=[medium.kind for medium in media], token_counts=counts,
            visual_rows=torch.from_numpy(tokens.visual_rows), source=sample.source, extra=sample.extra)

    def positions(self, tokens: TokenizedText, media: Sequence[Media], sample_id: str) -> torch.Tensor:
        """(A, T) position ids of a sample's tokens; its media, in reading order, have their grids."""
        counts = [self.num_tokens(medium.grid) for medium in media]
        ids = self.position_ids(self._layout(tokens, media, counts))
        if ids.shape[-1] != len(tokens.token_ids):
            raise ValueError(f'{sample_id}: the position encoding gave {ids.shape[-1]} positions for '
                             f'{len(tokens.token_ids)} tokens; the merger makes {counts} tokens of the grids '
                             f'{[medium.grid for medium in media]}')
        return ids

    def placed(self, sample: Sample, *, epoch: int = 0, augment: bool = True) -> Sample:
        """A private copy whose pictures have their final size, grid and frames, and whose regions are still regions, in
        the space 'pixels' of the picture as the model sees it. No pixel is decoded."""
        steps = self.geometry_steps
        if not augment:
            steps = {name: step for name, step in steps.items()
                     if name not in self.transforms or not getattr(step, 'random', True)}
        return self._run(steps, self._copy(sample), epoch)

    def written(self, sample: Sample, *, epoch: int = 0, generation_prompt: bool = False) -> Sample:
        """As `placed`, with regions as text, and with `segments` and `tokens`: all that needs no pixel."""
        if generation_prompt and sample.turns and sample.turns[-1].role == 'assistant':
            raise SampleError(sample.id, 'a prompt for generation ends with an assistant turn', 'answer_in_prompt')
        steps = self.text_steps
        if generation_prompt:
            template = ChatTemplate(add_vision_id=self.template.add_vision_id, generation_prompt=True)
            steps = {**steps, 'template': template}
        # A question is asked as it is: nothing is drawn.
        return self._run(steps, self.placed(sample, epoch=epoch, augment=not generation_prompt), epoch)

    def measure(self, sample: Sample, *, epoch: int = 0) -> Measure:
        """What `encode` will give, counted from headers and text, without decoding a pixel; SampleError as there."""
        sample = self.written(sample, epoch=epoch)
        return Measure(len(sample.tokens.token_ids), int(sample.tokens.is_target[1:].sum()),
                       tuple(medium.grid for medium in sample.media()))

    def measure_text(self, sample: Sample) -> tuple[int, int] | None:
        """(text tokens, targets) of a sample, whatever its media: what a store notes when it is packed. None if they
        depend on the size of its media, as boxes do."""
        return self.text_measure(sample)

    def measure_sizes(self, sizes: SampleSizes, sample_id: str, *, epoch: int = 0,
                      limits: dict | None = None) -> Measure | None:
        """As `measure`, from what a store knows; None if that is not enough: the text was counted for another
        tokenizer, or a transform does not say `needs_pixels = False`, that is, that it works from sizes alone."""
        if not sizes.text_key or sizes.text_key != self.text_key or any(
                getattr(step, 'needs_pixels', True) for step in self.transforms.values()):
            return None
        media = [_unread(size) for size in sizes.media]
        sample = Sample(sample_id, [Turn('user', media)], limits={**self.all_limits, **(limits or {})})
        grids = tuple(medium.grid for medium in self._run(self.geometry_steps, sample, epoch).media())
        return Measure(sizes.text_tokens + sum(map(self.num_tokens, grids)), sizes.num_targets, grids)

    def shrunk_limits(self, sample: Sample, factor: float, *, epoch: int = 0) -> dict:
        """Limits of the sample under which its largest pictures have `factor` of their area."""
        planned = self.placed(sample, epoch=epoch)
        limits = dict(sample.limits)
        for kind, prefix in (('image', ''), ('video', 'video_')):
            areas = [medium.size[0] * medium.size[1] for medium in planned.media() if medium.kind == kind]
            if areas:
                largest = max(1, int(factor * max(areas)))
                limits[f'{prefix}max_pixels'] = largest
                limits[f'{prefix}min_pixels'] = min(planned.limits[f'{prefix}min_pixels'], largest)
        return limits

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
        write_json(folder / 'preprocessor_config.json', image)
        write_json(folder / 'video_preprocessor_config.json', video)
        if not (folder / 'chat_template.jinja').exists():
            (folder / 'chat_template.jinja').write_text(JINJA_TEMPLATE, encoding='utf-8')
        if not (folder / 'chat_template.json').exists():
            write_json(folder / 'chat_template.json', {'chat_template': JINJA_TEMPLATE})

    def stop_ids(self) -> list[int]:
        """Token ids that end an answer."""
        return [self.tokenizer.special_id(TURN_END), self.tokenizer.special_id('<|endoftext|>')]

    def _copy(self, sample: Sample) -> Sample:
        turns = [Turn(turn.role, [dataclasses.replace(item) if isinstance(item, Media) else item
                                  for item in turn.content]) for turn in sample.turns]
        limits = self.all_limits if not sample.limits else check_limits({**self.all_limits, **sample.limits})
        return dataclasses.replace(sample, turns=turns, limits=limits)

    def _run(self, steps: dict[str, Callable], sample: Sample, epoch: int) -> Sample:
        """Each step in order; one that draws has randomness of its own, fixed by (seed, epoch, sample, step)."""
        for name, step in steps.items():
            rng = seeded(self.seed, epoch, sample.id, name) if getattr(step, 'random', True) else None
            sample = step(sample, rng)
        return sample

    def _layout(self, tokens: TokenizedText, media: Sequence[Media], counts: list[int]) -> Layout:
        """Spans of text and vision in token order."""
        layout: Layout = []
        row, first = 0, 0
        for medium, count in zip(media, counts):
            start = int(tokens.visual_rows[first])
            layout += [TextSpan(start - row), VisionSpan(self.geometry.token_grid(medium.grid),
                                                         medium.seconds_per_grid)]
            row, first = start + count, first + count
        return [*layout, TextSpan(len(tokens.token_ids) - row)]


def _unread(size: MediaSize) -> Media:
    """A medium of which only the size is known."""
    picture = (size.width, size.height)
    if size.kind == 'frames':
        return Media('video', [None] * size.frames, fps=size.frames / size.seconds, size=picture, source_size=picture)
    video = VideoInfo.uniform(*picture, size.frames, size.seconds) if size.kind == 'video' else None
    return Media(size.kind, None, size=picture, source_size=picture, video=video)


def check_limits(limits: dict) -> dict:
    """The limits themselves; ValueError for a name that is none, or numbers that contradict each other."""
    for name in limits:
        if name not in LIMITS:
            raise ValueError(f'processor: no limit is called {name!r}{near_names(name, list(LIMITS))}; limits: '
                             f'{", ".join(LIMITS)}')
    for low, high in (('min_pixels', 'max_pixels'), ('video_min_pixels', 'video_max_pixels'),
                      ('min_frames', 'max_frames')):
        if not 0 < limits[low] <= limits[high]:
            raise ValueError(f'processor: expected 0 < {low} <= {high}, got {limits[low]} and {limits[high]}')
    rates = limits['fps'] if isinstance(limits['fps'], list | tuple) else [limits['fps']]
    if not rates or not all(isinstance(rate, int | float) and rate > 0 for rate in rates):
        raise ValueError(f'processor.fps: expected frames per second above 0, or a list of them, got {limits["fps"]!r}')
    return limits
