"""Small models of any parts, samples with random pixels, and batches of them, for the tests in this folder."""
import numpy as np
import pytest
import torch

from qvlkit.data.collate import collate
from qvlkit.models.builder import build_model
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
    if device != 'meta':
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise * parameter[0].numel() ** -0.5 if parameter.ndim > 1 else
                                0.2 * noise + (0 if name.endswith('bias') else 1))
    return model


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
