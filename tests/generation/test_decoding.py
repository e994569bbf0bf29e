"""Cached decoding: the same tokens and hidden states as a full pass at each token, for packed prompts of all kinds."""
import numpy as np
import pytest
import torch

from qvlkit.data.collate import collate
from qvlkit.data.processor import Processor
from qvlkit.data.tokenizers import StandInTokenizer
from qvlkit.generation.decoding import generate, generate_tokens
from qvlkit.models.builder import build_model
from qvlkit.structures import EncodedSample, TextSpan, VisionSpan

VOCABULARY, PATCH = 60, 4
MODEL = dict(
    vision_encoder=dict(type='Qwen25ViT', width=32, depth=2, num_heads=2, feed_forward_width=40, patch_size=PATCH,
                        window_size=16, full_attention_blocks=[1]),
    merger=dict(type='PatchMerger', merge_size=2),
    position_encoding=dict(type='AbsoluteTimeMRoPE', sections=[1, 1, 2], tokens_per_second=2, theta=100.0),
    language_model=dict(type='Qwen2Decoder', width=32, depth=3, num_heads=4, num_kv_heads=2, feed_forward_width=48,
                        tie_embeddings=False))
PROMPTS = [[7], [3, ('image', (1, 6, 8)), 4], [1], [2, ('image', (1, 2, 2)), 3, ('video', (2, 4, 4), 0.7), 9],
           [('image', (1, 8, 2)), 1]]


def make_model(position_encoding=None, dtype=torch.float64, vocab_size=VOCABULARY, **parts):
    config = MODEL if position_encoding is None else dict(MODEL, position_encoding=position_encoding)
    config = {**config, **{slot: {**config[slot], **changes} for slot, changes in parts.items()}}
    model = build_model(config, vocab_size=vocab_size, dtype=dtype, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.ndim > 1 else 1)  # answers that differ, and do not repeat one token
    return model.eval()


def make_layout_and_sample(model, items, seed):
    random, geometry = np.random.default_rng(seed), model.geometry
    layout, tokens, rows, media = [], [], [], []
    for item in items:
        if isinstance(item, int):
            layout.append(TextSpan(item))
            tokens += random.integers(0, VOCABULARY, item).tolist()
            continue
        kind, grid, *seconds = item
        count = model.merger.num_tokens(grid)
        layout.append(VisionSpan(model.merger.token_grid(grid), *seconds))
        rows += range(len(tokens), len(tokens) + count)
        tokens += [0] * count
        values = geometry.in_channels * (1 if kind == 'image' else geometry.temporal_patch_size) * PATCH**2
        media.append((kind, grid, count, random.integers(0, 256, (int(np.prod(grid)), values), dtype=np.uint8)))
    return layout, EncodedSample(
        id=f'prompt {seed}', token_ids=torch.tensor(tokens), is_target=torch.zeros(len(tokens), dtype=torch.bool),
        position_ids=model.position_encoding.ids(layout), patches=[item[3] for item in media],
        grids=[item[1] for item in media], kinds=[item[0] for item in media], token_counts=[item[2] for item in media],
        visual_rows=torch.tensor(rows, dtype=torch.int64))


def longer(model, layout, sample, answer):
    """The sample with the answer behind it, its positions made anew from the whole layout."""
    return EncodedSample(**{
        **vars(sample), 'token_ids': torch.cat([sample.token_ids, torch.tensor(answer, dtype=torch.int64)]),
        'is_target': torch.zeros(sample.length + len(answer), dtype=torch.bool),
        'position_ids': model.position_encoding.ids([*layout, TextSpan(len(answer))])})


def greedy_without_cache(model, layout, sample, max_new_tokens, stop_ids=()):
    """(answer, hidden state before each choice), by a full pass over the one sequence for each token."""
    answer, states = [], []
    for _ in range(max_new_tokens):
        whole = longer(model, layout, sample, answer)
        batch = collate([whole], plan=model.plan, geometry=model.geometry)
        with torch.no_grad():
            states.append(model(batch)[-1])
            token = int(model.language_model.logits(states[-1]).argmax())
        if token in stop_ids:
            break
        answer.append(token)
    return answer, states


@pytest.fixture
def decode(monkeypatch):
    """generate_tokens, which also notes the hidden states from which each token is chosen."""
    def run(model, prompts, **arguments):
        seen = []
        logits = model.language_model.logits
        monkeypatch.setattr(model.language_model, 'logits', lambda hidden: seen.append(hidden) or logits(hidden))
        answers = generate_tokens(model, prompts, plan=model.plan, **arguments)
        monkeypatch.undo()
        return answers, seen
    return run


@pytest.mark.parametrize('position_encoding', [
    None, dict(type='FrameIndexMRoPE', sections=[2, 1, 1], theta=100.0), dict(type='RoPE1D', theta=100.0)],
    ids=['AbsoluteTimeMRoPE', 'FrameIndexMRoPE', 'RoPE1D'])
def test_cached_is_uncached(decode, position_encoding):
    check_cached_is_uncached(decode, make_model(position_encoding))


@pytest.mark.parametrize('architecture', ['llama', 'qwen2', 'qwen3'])
def test_cached_is_uncached_in_decoders_of_transformers(decode, architecture):
    check_cached_is_uncached(decode, make_model(language_model=dict(type='HFDecoder', architecture=architecture)))


def test_cached_is_uncached_behind_a_resampler(decode):
    check_cached_is_uncached(decode, make_model(merger=dict(type='ResamplerMerger', queries=[2, 3], num_heads=4)))


def check_cached_is_uncached(decode, model):
    prompts = [make_layout_and_sample(model, items, seed) for seed, items in enumerate(PROMPTS)]
    answers, states = decode(model, [sample for _, sample in prompts], max_new_tokens=12, stop_ids=[])
    assert len(states) == 12 and len({tuple(answer) for answer in answers}) == len(prompts)
    for index, (layout, sample) in enumerate(prompts):
        expected, hidden = greedy_without_cache(model, layout, sample, 12)
        assert answers[index] == expected
        torch.testing.assert_close(torch.stack([step[index] for step in states]), torch.stack(hidden), rtol=0,
                                   atol=1e-10)


def test_finished_sequences_leave_and_the_others_do_not_notice(decode):
    model = make_model()
    prompts = [make_layout_and_sample(model, items, seed) for seed, items in enumerate(PROMPTS)]
    free, _ = decode(model, [sample for _, sample in prompts], max_new_tokens=12, stop_ids=[])
    stop_ids = {free[0][3], free[2][0], free[3][6]}
    answers, states = decode(model, [sample for _, sample in prompts], max_new_tokens=12, stop_ids=stop_ids)
    for answer, whole in zip(answers, free):
        ends = [index for index, token in enumerate(whole) if token in stop_ids]
        assert answer == whole[:ends[0] if ends else 12]  # without the token that stopped it
    assert answers[2] == [] and len(answers[0]) <= 3
    sizes = [len(hidden) for hidden in states]
    assert sizes == [sum(len(answer) >= step for answer in answers) for step in range(len(sizes))]
    assert sizes[0] == len(prompts) and sizes[-1] < len(prompts)


def test_decoding_ends_where_all_sequences_have_ended(decode):
    model = make_model()
    prompts = [make_layout_and_sample(model, items, seed)[1] for seed, items in enumerate(PROMPTS)]
    answers, states = decode(model, prompts, max_new_tokens=12, stop_ids=range(VOCABULARY))
    assert answers == [[]] * len(prompts) and len(states) == 1


@pytest.mark.parametrize('count', [1, 2, 5])
def test_no_answer_is_longer_than_asked_for(decode, count):
    model = make_model()
    prompts = [make_layout_and_sample(model, items, seed)[1] for seed, items in enumerate(PROMPTS)]
    answers, states = decode(model, prompts, max_new_tokens=count, stop_ids=[])
    assert [len(answer) for answer in answers] == [count] * len(prompts) and len(states) == count


def test_other_pixels_give_another_answer():
    """The control: what is compared above does depend on the picture."""
    model = make_model()
    one, other = (make_layout_and_sample(model, PROMPTS[1], 1)[1] for _ in range(2))
    other.patches[0] = 255 - other.patches[0]
    answers = generate_tokens(model, [one, other], plan=model.plan, max_new_tokens=12, stop_ids=[])
    assert answers[0] != answers[1]


def test_generate_answers_messages_with_text():
    tokenizer = StandInTokenizer(400)
    model = make_model(vocab_size=tokenizer.vocab_size, dtype=torch.float32)
    processor = Processor(tokenizer, model.geometry, num_tokens=model.merger.num_tokens,
                          position_ids=model.position_encoding.ids, plan=model.plan, min_pixels=64,
                          max_pixels=1024)
    messages = [{'role': 'user', 'content': [{'type': 'image', 'image': np.full((20, 30, 3), 200, dtype=np.uint8)},
                                             {'type': 'text', 'text': 'What?'}]}]
    prompt = processor.encode(processor.from_messages(messages), generation_prompt=True)
    ids, = generate_tokens(model, [prompt], plan=processor.plan, max_new_tokens=9, stop_ids=processor.stop_ids())
    assert generate(model, processor, messages, max_new_tokens=9) == tokenizer.decode(ids)
    assert not model.training
