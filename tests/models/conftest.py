"""Small models of any parts, samples with random pixels, and batches of them, for the tests in this folder."""
import numpy as np
import pytest
import torch

from qvlkit.data.collate import collate
from qvlkit.data.image_text import EncodedPair, collate_image_text
from qvlkit.models.builder import build_model, build_two_towers
from qvlkit.structures import EncodedSample, TextSpan, VisionSpan

VOCABULARY, PATCH = 40, 4

# Small settings of every registered part. A new part needs an entry here, and is then held by every contract test.
SMALL = {
    'Qwen25ViT': dict(width=32, depth=3, num_heads=2, feed_forward_width=40, patch_size=PATCH,
                      full_attention_blocks=[1]),
    'Qwen2ViT': dict(width=32, depth=2, num_heads=2, feed_forward_width=56, patch_size=PATCH),
    'HFVisionEncoder': dict(architecture='siglip_vision_model', width=32, depth=2, num_heads=2, feed_forward_width=56,
                            patch_size=PATCH, image_size=4 * PATCH),
    'ResamplerMerger': dict(queries=[2, 3], num_heads=4),
    'PatchMerger': dict(), 'AveragePoolMerger': dict(), 'PixelShuffleMerger': dict(),
    'AbsoluteTimeMRoPE': dict(sections=[1, 1, 2], theta=100.0), 'FrameIndexMRoPE': dict(sections=[2, 1, 1]),
    'RoPE1D': dict(theta=100.0),
    'Qwen2Decoder': dict(width=32, depth=2, num_heads=4, num_kv_heads=2, feed_forward_width=48, vocab_size=VOCABULARY),
    'HFDecoder': dict(architecture='llama', width=32, depth=2, num_heads=4, num_kv_heads=2, feed_forward_width=48,
                      vocab_size=VOCABULARY),
}
SMALL_TOWERS = {
    'MeanPooling': dict(), 'AttentionPooling': dict(num_heads=4),
    'TextTransformer': dict(width=24, depth=2, num_heads=2, feed_forward_width=32), 'LanguageModelTower': dict(),
}
DEFAULTS = dict(vision_encoder='Qwen25ViT', merger='PatchMerger', position_encoding='AbsoluteTimeMRoPE',
                language_model='Qwen2Decoder')


def model_config(merge_size=2, attention='sdpa', **types):
    """A `model` config of small parts. `types` names other parts than the usual ones by slot."""
    config = {slot: dict(SMALL[name], type=name) for slot, name in dict(DEFAULTS, **types).items()}
    config['merger']['merge_size'] = merge_size
    if config['vision_encoder']['type'] == 'Qwen25ViT':
        config['vision_encoder']['window_size'] = 2 * PATCH * merge_size  # two merge cells
    return dict(config, attention=attention)


def make_model(merge_size=2, attention='sdpa', dtype=torch.float32, device='cpu', **types):
    """The model of `model_config`, with weights under which no softmax is flat."""
    model = build_model(model_config(merge_size, attention, **types), dtype=dtype, device=device)
    return model if device == 'meta' else draw_weights(model)


def draw_weights(model):
    """Weights under which no softmax is flat."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * parameter[0].numel() ** -0.5 if parameter.ndim > 1 else
                            0.2 * noise + (0 if name.endswith('bias') else 1))
    return model


def make_towers(pooling='MeanPooling', text_tower='TextTransformer', dtype=torch.float64, merge_size=2, bias=None,
                device='cpu', parts=None, **settings):
    """Two towers of small parts; `settings` are the text tower's, `parts` name others of the model's parts by slot."""
    towers = dict(pooling=dict(SMALL_TOWERS[pooling], type=pooling), width=16, bias=bias,
                  text_tower=dict(SMALL_TOWERS[text_tower], type=text_tower, **settings))
    model = build_two_towers(model_config(merge_size, **(parts or {})), towers, vocab_size=VOCABULARY, dtype=dtype,
                             device=device)
    return model if device == 'meta' else draw_weights(model)


def make_pair(model, grid, length, seed=0):
    """A picture of this grid (in patches) with random pixels, and `length` random tokens."""
    random, geometry = np.random.default_rng(seed), model.geometry
    values = geometry.in_channels * geometry.patch_size**2
    return EncodedPair(f'pair-{seed}', torch.from_numpy(random.integers(0, VOCABULARY, length)),
                       random.integers(0, 256, (int(np.prod(grid)), values), dtype=np.uint8), grid,
                       int(np.prod(geometry.token_grid(grid))), 'drawn')


def make_pairs(model):
    """Pictures on both sides of a window's edge, and captions of several lengths."""
    s = model.geometry.merge_size
    grids = [(1, 2 * s, 3 * s), (1, s, s), (1, 3 * s, 5 * s), (1, 3 * s, 2 * s), (1, s, s)]
    return [make_pair(model, grid, length, seed) for seed, (grid, length) in enumerate(zip(grids, (4, 1, 6, 4, 9)))]


def join_pairs(model, pairs):
    return collate_image_text(pairs, plan=model.vision_encoder.plan, geometry=model.geometry)


def make_sample(model, items, seed=0):
    """Items: a number of text tokens, or (kind, grid in patches[, seconds per frame group]). Pixels are random."""
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
        frames = 1 if kind == 'image' else geometry.temporal_patch_size
        values = geometry.in_channels * frames * geometry.patch_size**2
        media.append((kind, grid, count, random.integers(0, 256, (int(np.prod(grid)), values), dtype=np.uint8)))
    is_target = torch.ones(len(tokens), dtype=torch.bool)
    is_target[rows] = False
    return EncodedSample(
        id=f'sample-{seed}', token_ids=torch.tensor(tokens), is_target=is_target,
        position_ids=model.position_encoding.ids(layout), patches=[medium[3] for medium in media],
        grids=[medium[1] for medium in media], kinds=[medium[0] for medium in media],
        token_counts=[medium[2] for medium in media], visual_rows=torch.tensor(rows, dtype=torch.int64))


def make_batch(model, samples):
    return collate(samples, plan=model.plan, geometry=model.geometry)


@pytest.fixture(name='model_config')
def _model_config():
    return model_config


@pytest.fixture(name='make_model')
def _make_model():
    return make_model


@pytest.fixture(name='make_sample')
def _make_sample():
    return make_sample


@pytest.fixture(name='make_batch')
def _make_batch():
    return make_batch


@pytest.fixture
def small_settings():
    """Part name -> small constructor settings."""
    return SMALL


@pytest.fixture(name='make_towers')
def _make_towers():
    return make_towers


@pytest.fixture(name='make_pairs')
def _make_pairs():
    return make_pairs


@pytest.fixture(name='join_pairs')
def _join_pairs():
    return join_pairs
