"""Our model against transformers' Qwen2.5-VL: logits, and the gradient of every parameter, on random weights.

Samples start as pixels and messages; both models get the same weights, patches and position ids. The ids are ours:
transformers 5.3 to 5.24 lets text after a video start before the video's last temporal id, unlike the released
training semantics. Samples packed into one row are compared with transformers run on one sample at a time.
"""
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from qvlkit.convert.key_mapping import our_name
from qvlkit.data.collate import collate
from qvlkit.data.processor import Processor
from qvlkit.data.tokenizers import StandInTokenizer
from qvlkit.losses.cross_entropy import LinearCrossEntropy
from qvlkit.models.builder import build_model
from qvlkit.structures import Media, Sample, Turn

VOCABULARY = 280  # 256 bytes, 22 added tokens and two rows that no token uses

SMALL = dict(
    vision_encoder=dict(type='Qwen25ViT', width=64, depth=4, num_heads=4, feed_forward_width=92, patch_size=14,
                        temporal_patch_size=2, window_size=112, full_attention_blocks=[1, 3]),
    merger=dict(type='PatchMerger', merge_size=2),
    position_encoding=dict(type='AbsoluteTimeMRoPE', sections=[2, 3, 3], tokens_per_second=2, theta=1e6),
    language_model=dict(type='Qwen2Decoder', width=64, depth=3, num_heads=4, num_kv_heads=2, feed_forward_width=112,
                        vocab_size=VOCABULARY, tie_embeddings=False, norm_eps=1e-6))
REAL_WIDTHS = dict(
    vision_encoder=dict(type='Qwen25ViT', width=1280, depth=2, num_heads=16, feed_forward_width=3420, patch_size=14,
                        temporal_patch_size=2, window_size=112, full_attention_blocks=[1]),
    merger=dict(type='PatchMerger', merge_size=2),
    position_encoding=dict(type='AbsoluteTimeMRoPE', sections=[16, 24, 24], tokens_per_second=2, theta=1e6),
    language_model=dict(type='Qwen2Decoder', width=2048, depth=2, num_heads=16, num_kv_heads=2,
                        feed_forward_width=11008, vocab_size=VOCABULARY, tie_embeddings=True, norm_eps=1e-6))

# A turn is a list of text and media; media are (kind, grid in patches, frames per second). Users speak first.
IMAGE, VIDEO = 'image', 'video'
CASES = {
    'text': [['two and two?'], ['4']],
    'one_image': [[(IMAGE, (1, 4, 6)), 'what is it?'], ['a cat']],
    'smallest_images': [[(IMAGE, (1, 2, 2)), 'and', (IMAGE, (1, 4, 4)), '?'], ['dots']],
    'sides_of_8_and_16': [[(IMAGE, (1, 8, 8)), (IMAGE, (1, 16, 8)), (IMAGE, (1, 8, 16)), 'which?'], ['all']],
    'odd_sides': [[(IMAGE, (1, 6, 10)), 'a', (IMAGE, (1, 10, 18)), 'b', (IMAGE, (1, 2, 14))], ['c']],
    'mixed_sizes': [[(IMAGE, (1, 4, 4)), (IMAGE, (1, 12, 6)), (IMAGE, (1, 2, 20)), (IMAGE, (1, 10, 10)), 'count'],
                    ['four']],
    'videos': [[(VIDEO, (3, 4, 10), 2.0), 'then', (VIDEO, (4, 6, 4), 3.1), 'what happens?'], ['rain']],
    'slow_video': [[(VIDEO, (2, 10, 8), 0.3), 'what happens?'], ['snow']],
    'interleaved': [['look', (IMAGE, (1, 6, 4)), 'and', (VIDEO, (2, 4, 4), 4.0), 'then', (IMAGE, (1, 2, 2))], ['yes'],
                    ['again', (IMAGE, (1, 8, 4)), (VIDEO, (3, 2, 4), 1.0), '!'], ['a longer answer, with text'],
                    ['thanks'], ['bye']],
}


def randomise(model, seed):
    """Weights under which no softmax is flat and no row dies: unit gain, biases and norms away from 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 2:
                parameter.copy_(noise * parameter.shape[1] ** -0.5)
            else:
                parameter.copy_(0.2 * noise + (0 if name.endswith('bias') else 1))


def transformers_model(config, ours, tokenizer, attention):
    """The same architecture in transformers, with copies of our weights."""
    transformers = pytest.importorskip('transformers')
    vision, language, positions = config['vision_encoder'], config['language_model'], config['position_encoding']
    theirs = transformers.Qwen2_5_VLForConditionalGeneration._from_config(transformers.Qwen2_5_VLConfig(
        vision_config=dict(
            hidden_size=vision['width'], depth=vision['depth'], num_heads=vision['num_heads'],
            intermediate_size=vision['feed_forward_width'], patch_size=vision['patch_size'],
            temporal_patch_size=vision['temporal_patch_size'], window_size=vision['window_size'],
            fullatt_block_indexes=vision['full_attention_blocks'], spatial_merge_size=config['merger']['merge_size'],
            out_hidden_size=language['width'], tokens_per_second=positions['tokens_per_second']),
        text_config=dict(
            hidden_size=language['width'], num_hidden_layers=language['depth'],
            num_attention_heads=language['num_heads'], num_key_value_heads=language['num_kv_heads'],
            intermediate_size=language['feed_forward_width'], vocab_size=VOCABULARY,
            rms_norm_eps=language['norm_eps'], pad_token_id=None, bos_token_id=None, eos_token_id=None,
            rope_parameters=dict(rope_type='default', rope_theta=positions['theta'],
                                 mrope_section=positions['sections'])),
        tie_word_embeddings=language['tie_embeddings'],
        image_token_id=tokenizer.special_id('<|image_pad|>'), video_token_id=tokenizer.special_id('<|video_pad|>'),
        vision_start_token_id=tokenizer.special_id('<|vision_start|>'),
        vision_end_token_id=tokenizer.special_id('<|vision_end|>')), attn_implementation=attention, dtype=torch.float32)
    weights = dict(ours.named_parameters())
    with torch.no_grad():
        copied = set()
        for name, parameter in theirs.named_parameters():
            parameter.copy_(weights[our_name(name)].reshape(parameter.shape))
            copied.add(our_name(name))
    assert copied == set(weights)
    return theirs.eval()


class Pair:
    """Both models with equal weights, and what transformers makes of each sample, computed once."""

    def __init__(self, config, attention='sdpa', their_attention='eager', seed=0):
        self.tokenizer = StandInTokenizer(278)
        self.ours = build_model(dict(config, attention=attention))
        randomise(self.ours, seed)
        self.theirs = transformers_model(config, self.ours, self.tokenizer, their_attention)
        self.processor = Processor(self.tokenizer, self.ours.geometry, num_tokens=self.ours.merger.num_tokens,
                                   position_ids=self.ours.position_encoding.ids, min_pixels=1, video_min_pixels=1)
        self.expected = {}

    def encode(self, name):
        """The case as random pixels and text -> EncodedSample whose grids are those that the case asks for."""
        random, side = np.random.default_rng(len(name)), self.ours.geometry.patch_size
        frames, grids = self.ours.geometry.temporal_patch_size, []

        def media(kind, grid, fps=2.0):
            grids.append(grid)
            shape = (grid[1] * side, grid[2] * side, 3)
            pictures = [random.integers(0, 256, shape, dtype=np.uint8)
                        for _ in range(1 if kind == IMAGE else grid[0] * frames)]
            return Media(IMAGE, pictures[0]) if kind == IMAGE else Media(VIDEO, pictures, fps=fps)

        turns = [Turn(('user', 'assistant')[index % 2], [item if isinstance(item, str) else media(*item)
                                                        for item in turn])
                 for index, turn in enumerate(CASES[name])]
        sample = self.processor.encode(Sample(name, turns))
        assert sample.grids == grids
        return sample

    def transformers_result(self, name):
        """Logits (T, V) and the gradients of the summed loss by our names, of one sample alone."""
        if name not in self.expected:
            sample = self.encode(name)
            media = {}
            for kind, suffix, frames in ((IMAGE, '', 1), (VIDEO, '_videos', self.ours.geometry.temporal_patch_size)):
                chosen = [index for index, value in enumerate(sample.kinds) if value == kind]
                if chosen:
                    patches = torch.from_numpy(np.concatenate([sample.patches[index] for index in chosen]))
                    media[f'pixel_values{suffix}'] = self.ours.normalise(patches, frames)
                    media[f'{kind}_grid_thw'] = torch.tensor([sample.grids[index] for index in chosen])
            self.theirs.zero_grad(set_to_none=True)
            logits = self.theirs(input_ids=sample.token_ids[None], position_ids=sample.position_ids[:, None],
                                 use_cache=False, **media).logits[0]
            rows = sample.is_target[1:].nonzero().squeeze(1)
            F.cross_entropy(logits[rows], sample.token_ids[1:][rows], reduction='sum').backward()
            gradients = {our_name(key): torch.zeros(parameter.shape) if parameter.grad is None
                         else parameter.grad.clone() for key, parameter in self.theirs.named_parameters()}
            self.expected[name] = logits.detach(), gradients
        return self.expected[name]

    def our_result(self, names):
        """Logits of each sample and the gradients of the summed loss, of all samples packed into one row."""
        samples = [self.encode(name) for name in names]
        batch = collate(samples, plan=self.ours.plan, geometry=self.ours.geometry)
        self.ours.zero_grad(set_to_none=True)
        hidden = self.ours(batch)
        LinearCrossEntropy(chunk_rows=7)(hidden[batch.target_rows], self.ours.language_model.head_weight,
                                         batch.target_ids).backward()
        logits = self.ours.language_model.logits(hidden.detach()).detach()
        gradients = {name: parameter.grad for name, parameter in self.ours.named_parameters()}
        return logits.split([sample.length for sample in samples]), gradients

    def compare(self, names):
        """Hold the packed samples to transformers; returns (largest relative error, smallest cosine)."""
        logits, gradients = self.our_result(names)
        expected = [self.transformers_result(name) for name in names]
        errors = {}
        for name, ours, (theirs, _) in zip(names, logits, expected):
            assert ours.shape == theirs.shape
            errors[name] = float((ours - theirs).abs().max() / theirs.abs().max())
        assert max(errors.values()) <= 1e-5, errors
        cosines = {}
        for name, gradient in gradients.items():
            ours = gradient.double().flatten()
            theirs = sum(sample_gradients[name].double() for _, sample_gradients in expected).flatten()
            norms = float(ours.norm()), float(theirs.norm())
            if max(norms) < 1e-12:
                continue
            cosines[name] = float(ours @ theirs) / (norms[0] * norms[1])
            assert norms[0] == pytest.approx(norms[1], rel=1e-4), name
        worst = min(cosines, key=cosines.get)
        assert cosines[worst] >= 0.999999, (worst, cosines[worst])
        return max(errors.values()), cosines


@pytest.fixture(scope='module')
def small():
    return Pair(SMALL)


@pytest.mark.parametrize('case', CASES)
def test_logits_and_gradients_equal_transformers(small, case):
    _, cosines = small.compare([case])
    parts = {name.split('.')[0] for name in cosines}  # those whose gradient is not zero on both sides
    assert parts == ({'language_model'} if case == 'text' else {'vision_encoder', 'merger', 'language_model'})


def test_packed_samples_equal_transformers_one_sample_at_a_time(small):
    _, cosines = small.compare(list(CASES))
    assert set(cosines) == {name for name, _ in small.ours.named_parameters()}


def test_a_wrong_weight_or_position_is_noticed(small):
    """The comparison itself can fail: at a millionth of one weight's scale it passes, at a hundredth it does not."""
    weight = small.ours.vision_encoder.blocks[2].attn.qkv.weight
    kept = weight.detach().clone()
    try:
        for scale, passes in ((1e-7, True), (1e-2, False)):
            with torch.no_grad():
                weight.copy_(kept * (1 + scale))
            if passes:
                small.compare(['odd_sides'])
            else:
                with pytest.raises(AssertionError):
                    small.compare(['odd_sides'])
    finally:
        with torch.no_grad():
            weight.copy_(kept)


def test_position_ids_of_text_and_images_equal_transformers(small):
    image_id = small.tokenizer.special_id('<|image_pad|>')
    for case in ('text', 'one_image', 'smallest_images', 'sides_of_8_and_16', 'odd_sides', 'mixed_sizes'):
        sample = small.encode(case)
        grids = torch.tensor(sample.grids) if sample.grids else None
        ids, _ = small.theirs.model.get_rope_index(
            sample.token_ids[None], image_grid_thw=grids, mm_token_type_ids=(sample.token_ids == image_id).int()[None])
        assert torch.equal(sample.position_ids, ids[:, 0].long())


@pytest.mark.parametrize('attention', ['sdpa', 'eager'])
@pytest.mark.parametrize('tied', [False, True])
@pytest.mark.parametrize('their_attention', ['eager', 'sdpa'])
@pytest.mark.parametrize('seed', [1, 2])
@pytest.mark.acceptance
def test_every_case_alone_and_packed(attention, tied, their_attention, seed):
    config = dict(SMALL, language_model=dict(SMALL['language_model'], tie_embeddings=tied))
    pair = Pair(config, attention, their_attention, seed)
    for case in CASES:
        pair.compare([case])
    pair.compare(list(CASES))
    pair.compare(list(reversed(CASES)))


def test_real_widths_equal_transformers():
    """Head widths, sections and the merger as released; only the feed-forward networks are narrow, for speed."""
    narrow = dict(REAL_WIDTHS, **{part: dict(REAL_WIDTHS[part], feed_forward_width=256)
                                  for part in ('vision_encoder', 'language_model')})
    Pair(narrow).compare(['one_image'])


@pytest.mark.acceptance
def test_real_widths_packed_equal_transformers():
    Pair(REAL_WIDTHS, their_attention='sdpa').compare(list(CASES))
