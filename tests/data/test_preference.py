"""Pairs as rows: the tokens and positions of the plain conversations, who sees whom, what is refused, what is cut."""
import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from qvlkit.data.collate import BUCKET_NAMES, collate
from qvlkit.data.preference import PreferenceProcessor, collate_pairs
from qvlkit.data.processor import Processor
from qvlkit.data.tokenizers import StandInTokenizer
from qvlkit.models.builder import build_model
from qvlkit.models.layers.attention import dense_mask
from qvlkit.structures import Box, Media, Sample, SampleError, Turn

TOKENIZER = StandInTokenizer(300)
CONFIG = dict(
    vision_encoder=dict(type='Qwen25ViT', width=32, depth=2, num_heads=2, feed_forward_width=40, patch_size=14,
                        temporal_patch_size=2, window_size=56, full_attention_blocks=[1]),
    merger=dict(type='PatchMerger', merge_size=2),
    position_encoding=dict(type='AbsoluteTimeMRoPE', sections=[2, 3, 3], tokens_per_second=2, theta=1e4),
    language_model=dict(type='Qwen2Decoder', width=32, depth=2, num_heads=2, num_kv_heads=1, feed_forward_width=48,
                        vocab_size=300))
RULES = build_model(CONFIG, device='meta')


def processor(**limits):
    return Processor(TOKENIZER, RULES.geometry, num_tokens=RULES.merger.num_tokens,
                     position_ids=RULES.position_encoding.ids, plan=RULES.vision_encoder.plan,
                     **dict(min_pixels=56 * 56, max_pixels=112 * 112) | limits)


def picture(seed=0, width=84, height=56):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def pair(question=('what?',), chosen='a cat', rejected='some dog or other', before=(), name='pairs.json[0]', **given):
    turns = [*before, Turn('user', list(question)), Turn('assistant', [chosen])]
    return Sample(name, turns, 'pairs', rejected=[Turn('assistant', [rejected])], **given)


PAIRS = {
    'text': pair(),
    'picture': pair([Media('image', picture()), 'what is it?']),
    'two_pictures': pair(['one', Media('image', picture()), 'two', Media('image', picture(1, 56, 112)), '?'], 'x', 'y'),
    'many_turns': pair(before=[Turn('system', ['Be brief.']), Turn('user', [Media('image', picture(2)), 'hi']),
                               Turn('assistant', ['hello'])]),
    'boxes': pair([Media('image', picture()), 'where?'], Box((10, 10, 40, 40), 'cat'), Box((0, 0, 84, 56))),
    'one_token': pair(chosen='', rejected='!'),
}


def conversations(sample):
    """The two plain conversations of a pair."""
    return [dataclasses.replace(sample, turns=turns, rejected=[])
            for turns in (sample.turns, sample.turns[:-1] + sample.rejected)]


def join(samples, **given):
    return collate_pairs(samples, plan=RULES.vision_encoder.plan, geometry=RULES.geometry, **given)


@pytest.mark.parametrize('name', list(PAIRS))
def test_tokens_positions_and_targets_are_those_of_the_plain_conversations(name):
    plain = processor()
    encoded = PreferenceProcessor(plain).encode(PAIRS[name])
    prompt, *answers = encoded.lengths
    parts = encoded.token_ids.split(encoded.lengths)
    places = encoded.position_ids.split(encoded.lengths, dim=1)
    for side, sample in enumerate(conversations(PAIRS[name])):
        whole = plain.encode(sample)
        assert torch.cat([parts[0], parts[1 + side]]).tolist() == whole.token_ids.tolist()
        assert torch.equal(torch.cat([places[0], places[1 + side]], dim=1), whole.position_ids)
        assert whole.is_target[prompt:].all() and not whole.is_target[prompt - 1]
        assert TOKENIZER.decode(parts[1 + side].tolist(), skip_special=False).endswith('<|im_end|>\n')
        assert places[1 + side][:, 0].tolist() == [int(places[0].max()) + 1] * 3
        assert [patches.tolist() for patches in whole.patches] == [patches.tolist() for patches in encoded.patches]
        assert whole.visual_rows.tolist() == encoded.visual_rows.tolist()
    assert TOKENIZER.decode(parts[0].tolist(), skip_special=False).endswith('<|im_start|>assistant\n')
    assert encoded.is_target.tolist() == [False] * prompt + [True] * sum(answers)
    measure = PreferenceProcessor(plain).measure(PAIRS[name])
    assert (measure.length, measure.num_targets, list(measure.grids)) == (
        encoded.length, sum(answers), encoded.grids)


def test_an_earlier_answer_is_prompt():
    encoded = PreferenceProcessor(processor()).encode(PAIRS['many_turns'])
    text = TOKENIZER.decode(encoded.token_ids[encoded.is_target].tolist(), skip_special=False)
    assert text == 'a cat<|im_end|>\nsome dog or other<|im_end|>\n'


def test_each_answer_sees_the_prompt_and_itself():
    """Every pair of rows of a batch: may the first see the second?"""
    samples = [PreferenceProcessor(processor()).encode(PAIRS[name]) for name in ('picture', 'text', 'many_turns')]
    batch = join(samples)
    seen = torch.zeros(batch.num_tokens, batch.num_tokens, dtype=torch.int64)
    mask = dense_mask(batch.attention)
    seen.index_add_(1, batch.attention.key_index, mask.long())
    pair_of = torch.arange(3).repeat_interleave(torch.tensor([sample.length for sample in samples]))
    part_of = torch.cat([torch.arange(3).repeat_interleave(torch.tensor(sample.lengths)) for sample in samples])
    same_part = (part_of[:, None] == part_of) | (part_of == 0)
    order = torch.arange(batch.num_tokens)
    expected = (pair_of[:, None] == pair_of) & same_part & (order <= order[:, None])
    assert seen.tolist() == expected.long().tolist()


def test_targets_groups_and_answers_of_a_batch():
    names = ['picture', 'text', 'one_token']
    samples = [PreferenceProcessor(processor()).encode(PAIRS[name]) for name in names]
    batch = join(samples, sources=('other', 'pairs'))
    rows, ids, answers, groups, start = [], [], [], [], 0
    for number, sample in enumerate(samples):
        prompt, chosen, rejected = sample.lengths
        for side, first, length in ((0, prompt, chosen), (1, prompt + chosen, rejected)):
            rows += [start + prompt - 1, *range(start + first, start + first + length - 1)]
            ids += sample.token_ids[first:first + length].tolist()
            answers += [2 * number + side] * length
            groups += [len(BUCKET_NAMES) + bool(sample.grids)] * length
        start += sample.length
    assert batch.target_rows.tolist() == rows and batch.target_ids.tolist() == ids
    assert batch.answer_of_target.tolist() == answers
    assert batch.target_groups.tolist() == groups and batch.num_groups == 2 * len(BUCKET_NAMES)
    assert batch.answer_lengths.tolist() == [list(sample.lengths[1:]) for sample in samples]
    assert (batch.num_pairs, batch.num_targets) == (3, len(rows))
    assert batch.content_keys == tuple(sample.content_key for sample in samples)
    moved = batch.to('meta')
    assert moved.answer_of_target.device.type == moved.attention.key_index.device.type == 'meta'
    assert moved.content_keys == batch.content_keys


def test_a_picture_is_there_once_and_text_carries_the_blank_one():
    plain = processor()
    encoded = PreferenceProcessor(plain).encode(PAIRS['picture'])
    alone = collate([plain.encode(conversations(PAIRS['picture'])[0])], plan=plain.plan, geometry=plain.geometry)
    batch = join([encoded])
    assert torch.equal(batch.image_patches, alone.image_patches)
    assert torch.equal(batch.visual_rows, alone.visual_rows)
    text = join([PreferenceProcessor(plain).encode(PAIRS['text'])])
    assert text.image_patches.shape[0] == 4 and not text.image_patches.any() and not text.visual_rows.numel()


def test_only_answers_are_cut_at_their_end():
    encode = PreferenceProcessor(processor(), max_answer_tokens=4).encode
    whole = PreferenceProcessor(processor()).encode(PAIRS['picture'])
    cut = encode(PAIRS['picture'])
    prompt, chosen, _ = whole.lengths
    assert cut.lengths == (prompt, 4, 4)
    kept = [*range(prompt + 4), *range(prompt + chosen, prompt + chosen + 4)]
    assert cut.token_ids.tolist() == whole.token_ids[kept].tolist()
    assert torch.equal(cut.position_ids, whole.position_ids[:, kept])
    assert [patches.tolist() for patches in cut.patches] == [patches.tolist() for patches in whole.patches]
    assert PreferenceProcessor(processor(), max_answer_tokens=4).measure(PAIRS['picture']).length == prompt + 8
    with pytest.raises(SampleError, match='are the same tokens, cut to trainer.max_answer_tokens=4'):
        encode(pair(chosen='aaaaX', rejected='aaaaY'))


VIDEO = pair([Media('video', [picture(seed) for seed in range(4)], fps=2.0), 'what happens?'])


@pytest.mark.parametrize('sample, kind, message', [
    (Sample('a.json[7]', [Turn('user', ['q']), Turn('assistant', ['a'])]), 'no_rejected',
     r"a\.json\[7\]: it has no rejected answer.*format 'preference'"),
    (VIDEO, 'video_pair', 'trainer.allow_video=True'),
    (pair(chosen=Media('image', picture())), 'media_in_answer', 'chosen: the answer holds a picture'),
    (pair(rejected=Media('image', picture())), 'media_in_answer', 'rejected: the answer holds a picture'),
    (pair(chosen='same', rejected='same'), 'same_answers', r'pairs\.json\[0\]: the chosen and the rejected'),
    (dataclasses.replace(pair(), turns=pair().turns[:-1]), 'no_answer', r"got the roles \['user'\]"),
    (dataclasses.replace(pair(), rejected=pair().turns), 'no_answer', 'rejected: expected one assistant turn')])
def test_what_is_no_pair_is_refused(sample, kind, message):
    for work in (PreferenceProcessor(processor()).encode, PreferenceProcessor(processor()).measure):
        with pytest.raises(SampleError, match=message) as error:
            work(sample)
        assert error.value.kind == kind


def test_a_video_that_is_allowed_has_the_positions_of_the_plain_conversation():
    plain = processor(video_min_pixels=3136, video_max_pixels=6272)
    encoded = PreferenceProcessor(plain, allow_video=True).encode(VIDEO)
    prompt, chosen, _ = encoded.lengths
    rejected = plain.encode(conversations(VIDEO)[1])
    assert torch.equal(encoded.position_ids[:, prompt + chosen:], rejected.position_ids[:, prompt:])
    assert join([encoded]).video_patches.shape[0] > 0


@pytest.mark.parametrize('value', [0, -1, 2.5, True])
def test_a_bad_length_of_answers_is_named(value):
    with pytest.raises(ValueError, match=r'trainer\.max_answer_tokens: expected a whole number'):
        PreferenceProcessor(processor(), max_answer_tokens=value)


def test_the_content_key_is_of_everything_a_model_sees():
    encode = PreferenceProcessor(processor()).encode
    question = [Media('image', picture()), 'what is it?']
    key = encode(pair(question)).content_key
    assert len(bytes.fromhex(key)) == 16
    assert encode(pair(question, name='other.json[3]')).content_key == key
    pixel = picture()
    pixel.putpixel((3, 5), (1, 2, 3))
    others = [pair([Media('image', pixel), 'what is it?']), pair(question, 'a cot'), pair(question, rejected='a dog'),
              pair([*question, '!']), pair(question[::-1]), pair(question, 'a ', 'cat some dog'),
              pair([Media('image', picture(0, 56, 84)), 'what is it?'])]
    keys = {encode(other).content_key for other in others}
    assert len(keys) == len(others) and key not in keys
    cut = PreferenceProcessor(processor(), max_answer_tokens=5).encode(pair(question)).content_key
    assert cut not in {key, *keys}
