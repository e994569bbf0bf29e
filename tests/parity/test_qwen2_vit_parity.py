"""Our Qwen2-VL vision transformer against transformers' vision tower: features before the merger, and gradients."""
import numpy as np
import pytest
import torch

from qvlkit.models.vision_encoders.qwen2_vit import Qwen2ViT

GRIDS = {
    'one': [(1, 4, 6)],
    'smallest': [(1, 2, 2)],
    'mixed': [(1, 8, 8), (1, 6, 10), (1, 2, 2), (3, 4, 6), (1, 16, 4)],
}


def random_weights(ours, theirs, seed=0):
    """The same weights for both, with unit gain; returns pairs of parameters that correspond."""
    generator = torch.Generator().manual_seed(seed)
    targets, pairs = dict(theirs.named_parameters()), {}
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * parameter.shape[1] ** -0.5 if parameter.ndim == 2 else
                            0.2 * noise + (0 if name.endswith('bias') else 1))
            pairs[name] = parameter, targets[name]
            targets[name].copy_(parameter.reshape(targets[name].shape))
    assert set(targets) - set(pairs) == {name for name in targets if name.startswith('merger.')}
    return pairs


def compare(width, num_heads, depth, grids, seed=0):
    transformers = pytest.importorskip('transformers')
    tower = pytest.importorskip('transformers.models.qwen2_vl.modeling_qwen2_vl')
    theirs = tower.Qwen2VisionTransformerPretrainedModel._from_config(transformers.Qwen2VLConfig(vision_config=dict(
        embed_dim=width, hidden_size=32, depth=depth, num_heads=num_heads)).vision_config, attn_implementation='eager')
    ours = Qwen2ViT(width, depth, num_heads=num_heads)
    pairs = random_weights(ours, theirs, seed)
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randn(sum(int(np.prod(grid)) for grid in grids), 3 * 2 * 14 * 14, generator=generator)
    plan = ours.plan(grids)
    features = ours(patches[plan.order], plan)
    expected = theirs(patches, grid_thw=torch.tensor(grids)).last_hidden_state[plan.order]
    error = (features - expected).abs().max() / expected.abs().max()
    assert error.item() <= 1e-5
    upstream = torch.randn(features.shape, generator=generator)
    features.backward(upstream)
    expected.backward(upstream)
    for name, (mine, other) in pairs.items():
        a, b = mine.grad.double().flatten(), other.grad.double().flatten()
        assert float(a @ b / (a.norm() * b.norm())) >= 0.999999, name
        assert float(a.norm()) == pytest.approx(float(b.norm()), rel=1e-4), name


@pytest.mark.parametrize('grids', GRIDS.values(), ids=GRIDS)
def test_features_and_gradients_equal_transformers(grids):
    compare(64, 4, 3, grids)


@pytest.mark.acceptance
@pytest.mark.parametrize('grids', GRIDS.values(), ids=GRIDS)
def test_real_widths_equal_transformers(grids):
    compare(1280, 16, 2, grids, seed=1)
