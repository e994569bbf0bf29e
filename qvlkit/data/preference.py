"""Preference pairs to numbers: one row [prompt | chosen answer | rejected answer], the prompt and its media once.

A pair is what SFT would see twice: the conversation with the better last answer, and with the worse one. Everything
before the last answer is prompt, earlier answers too. Source: Qwen2.5-VL (arXiv 2502.13923) section 2.3; sharing the
prompt: arXiv 2410.20305.

Shape letters: T tokens of a row, P, C, R of prompt, chosen and rejected answer, S targets, A position axes.
"""
import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch

from qvlkit.data.collate import BUCKET_NAMES, collate_media, target_group
from qvlkit.data.processor import Processor
from qvlkit.structures import (
    AttentionPlan,
    EncodedSample,
    Grid,
    Measure,
    Media,
    PreferenceBatch,
    Sample,
    SampleError,
    SampleSizes,
    VisionGeometry,
    VisionPlan,
)


@dataclass(kw_only=True)
class EncodedPair(EncodedSample):
    """A pair as a row of P + C + R tokens; `is_target` is true for both answers, whose positions both follow the
    prompt's. lengths: (P, C, R). content_key: hash of all that a model sees of the pair."""
    lengths: tuple[int, int, int]
    content_key: str


class PreferenceProcessor:
    """Samples with `rejected` turns to pairs.

    Args:
        processor: Encodes conversations.
        allow_video: Take pairs whose prompt has a video; they are refused otherwise, as the report has none.
        max_answer_tokens: Cut the end of longer answers; None cuts nothing. A prompt is never cut, nor its media.
    """

    def __init__(self, processor: Processor, *, allow_video: bool = False, max_answer_tokens: int | None = None):
        if max_answer_tokens is not None and (isinstance(max_answer_tokens, bool) or not isinstance(
                max_answer_tokens, int) or max_answer_tokens < 1):
            raise ValueError(f'trainer.max_answer_tokens: expected a whole number of at least 1, or None to cut '
                             f'nothing, got {max_answer_tokens!r}')
        self.processor, self.allow_video, self.max_answer_tokens = processor, allow_video, max_answer_tokens

    def num_tokens(self, grid: Grid) -> int:
        """Visual tokens of a grid in patches."""
        return self.processor.num_tokens(grid)

    def encode(self, sample: Sample, *, epoch: int = 0) -> EncodedPair:
        """Sample -> EncodedPair.

        Raises:
            SampleError: As for conversations, and: there is no rejected answer, an answer holds media, the prompt has
                a video that is not allowed, or the answers are the same.
        """
        chosen, rejected, lengths = self._written(sample, epoch)
        prompt, *answers = lengths
        encoded = self.processor.encode_written(chosen, epoch=epoch)
        # After the pixels are cut: only then are the times of a video's frames final.
        others = self.processor.positions(rejected.tokens, chosen.media(), sample.id)
        kept = prompt + answers[0]
        row = slice(prompt, prompt + answers[1])
        token_ids = torch.cat([encoded.token_ids[:kept], torch.from_numpy(rejected.tokens.token_ids)[row]])
        positions = torch.cat([encoded.position_ids[:, :kept], others[:, row]], dim=1)
        fields = {field.name: getattr(encoded, field.name) for field in dataclasses.fields(encoded)}
        fields.update(token_ids=token_ids, position_ids=positions, is_target=torch.arange(len(token_ids)) >= prompt)
        return EncodedPair(**fields, lengths=lengths,
                           content_key=_content_key(token_ids, positions, lengths, encoded))

    def measure(self, sample: Sample, *, epoch: int = 0) -> Measure:
        """What `encode` will give, without decoding a pixel; SampleError as there."""
        chosen, _, lengths = self._written(sample, epoch)
        return Measure(sum(lengths), sum(lengths[1:]), tuple(medium.grid for medium in chosen.media()))

    def measure_sizes(self, sizes: SampleSizes, sample_id: str, *, epoch: int = 0,
                      limits: dict | None = None) -> Measure | None:
        """None: stores count the tokens of one answer only."""
        return None

    def shrunk_limits(self, sample: Sample, factor: float, *, epoch: int = 0) -> dict:
        """Limits of the sample under which its largest pictures have `factor` of their area."""
        return self.processor.shrunk_limits(sample, factor, epoch=epoch)

    def _written(self, sample: Sample, epoch: int) -> tuple[Sample, Sample, tuple[int, int, int]]:
        """The conversation with each answer, as tokens, and (P, C, R)."""
        self._check(sample)
        sides = [self.processor.written(dataclasses.replace(sample, turns=turns, rejected=[]), epoch=epoch)
                 for turns in (sample.turns, sample.turns[:-1] + sample.rejected)]
        ids = [side.tokens.token_ids for side in sides]
        # The last answer is a stretch of targets up to the end: the header before it is none.
        prompt = int(np.flatnonzero(~sides[0].tokens.is_target)[-1]) + 1
        answers = [side_ids[prompt:][:self.max_answer_tokens] for side_ids in ids]
        if not np.array_equal(ids[0][:prompt], ids[1][:prompt]):
            raise SampleError(sample.id, 'the two conversations differ before the last answer', 'other_prompt')
        if np.array_equal(*answers):
            cut = '' if self.max_answer_tokens is None else f', cut to trainer.max_answer_tokens={len(answers[0])}'
            raise SampleError(sample.id, f'the chosen and the rejected answer are the same tokens{cut}', 'same_answers')
        return *sides, (prompt, len(answers[0]), len(answers[1]))

    def _check(self, sample: Sample) -> None:
        if not sample.rejected:
            raise SampleError(sample.id, "it has no rejected answer; a pair has 'chosen' and 'rejected' (format "
                              "'preference')", 'no_rejected')
        for name, turns in (('chosen', sample.turns), ('rejected', sample.rejected)):
            if not turns or turns[-1].role != 'assistant' or (name == 'rejected' and len(turns) != 1):
                raise SampleError(sample.id, f'{name}: expected one assistant turn as the last answer, got the roles '
                                  f'{[turn.role for turn in turns]}', 'no_answer')
            if any(isinstance(item, Media) for item in turns[-1].content):
                raise SampleError(sample.id, f'{name}: the answer holds a picture or video; media belong to the prompt',
                                  'media_in_answer')
        if not self.allow_video and any(medium.kind == 'video' for medium in sample.media()):
            raise SampleError(sample.id, 'the prompt has a video; pairs are text and pictures unless '
                              'trainer.allow_video=True', 'video_pair')


def _content_key(token_ids: torch.Tensor, positions: torch.Tensor, lengths: tuple[int, int, int],
                 encoded: EncodedSample) -> str:
    """Hash of tokens, positions, (P, C, R), grids and pixels."""
    digest = hashlib.blake2b(repr((lengths, encoded.kinds, encoded.grids)).encode(), digest_size=16)
    for array in (token_ids.numpy(), positions.numpy(), *encoded.patches):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def collate_pairs(samples: Sequence[EncodedPair], *, plan: Callable[[Sequence[Grid]], VisionPlan],
                  geometry: VisionGeometry, sources: Sequence[str] = ()) -> PreferenceBatch:
    """One row of pairs as a batch; arguments as for `collate`."""
    starts = [0, *accumulate(sample.length for sample in samples)][:-1]
    target_rows, target_ids, keys = [], [], []
    for start, sample in zip(starts, samples):
        prompt, *answers = sample.lengths
        first = prompt
        for length in answers:
            rows = torch.arange(start + first - 1, start + first - 1 + length)
            rows[0] = start + prompt - 1  # the last row of the prompt predicts the first token
            own = torch.arange(start + first, start + first + length)
            target_rows.append(rows)
            target_ids.append(sample.token_ids[first:first + length])
            if first == prompt:
                keys.append(torch.arange(start, start + prompt))
            keys += [torch.arange(start, start + prompt), own]
            first += length
    lengths = [length for sample in samples for length in sample.lengths]
    seen = [length if place == 0 else sample.lengths[0] + length
            for sample in samples for place, length in enumerate(sample.lengths)]
    answer_lengths = torch.tensor([sample.lengths[1:] for sample in samples])
    groups = None
    if sources:
        groups = torch.tensor([target_group(sample, sources) for sample in samples]).repeat_interleave(
            answer_lengths.sum(1))
    image_patches, video_patches, vision_plan, visual_rows = collate_media(samples, starts, plan, geometry)
    return PreferenceBatch(
        token_ids=torch.cat([sample.token_ids for sample in samples]),
        position_ids=torch.cat([sample.position_ids for sample in samples], dim=1),
        attention=AttentionPlan.from_lengths(lengths, seen, causal=True, key_index=torch.cat(keys)),
        image_patches=image_patches, video_patches=video_patches, vision_plan=vision_plan, visual_rows=visual_rows,
        target_rows=torch.cat(target_rows), target_ids=torch.cat(target_ids),
        target_groups=groups, num_groups=len(sources) * len(BUCKET_NAMES),
        sample_ids=tuple(sample.id for sample in samples), sources=tuple(sample.source for sample in samples),
        answer_of_target=torch.arange(2 * len(samples)).repeat_interleave(answer_lengths.flatten()),
        answer_lengths=answer_lengths, content_keys=tuple(sample.content_key for sample in samples))
