"""SigLIP in our house: equal to itself at home on its own grid, on other grids, packed; foreign ones are refused.

Shapes: N patches, D width, C colours, P patch side.
"""
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from qvlkit.models.vision_encoders.hf_vision_encoder import HFVisionEncoder, resize_weights

SIZES = dict(width=32, depth=2, num_heads=4, feed_forward_width=48, patch_size=4)
SIDE, P = 6, 4
ARCHITECTURES = ['siglip_vision_model', 'siglip2_vision_model']


def encoder_of(architecture, dtype=torch.float32, **changes):
    encoder = HFVisionEncoder(architecture, **SIZES, image_size=SIDE * P, **changes)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in encoder.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 1 + 0.2 * noise)
    return encoder.to(dtype)


def patches_of(picture, merge_size=2):
    """(C, rows * P, columns * P) -> (N, C*P*P) in block order."""
    colours, height, width = picture.shape
    cells = picture.view(colours, height // (merge_size * P), merge_size, P, width // (merge_size * P), merge_size, P)
    return cells.permute(1, 4, 2, 5, 0, 3, 6).reshape(-1, colours * P * P)


def reference_of(encoder):
    """transformers' own model with the same weights."""
    from transformers import Siglip2VisionModel, SiglipVisionModel
    kind = SiglipVisionModel if encoder.architecture == 'siglip_vision_model' else Siglip2VisionModel
    reference = kind._from_config(encoder.model.config, attn_implementation='eager')
    reference.load_state_dict(encoder.model.state_dict())
    return reference.eval()


def at_home(reference, picture):
    """(N, D) in reading order."""
    rows, columns = picture.shape[1] // P, picture.shape[2] // P
    if type(reference).__name__ == 'SiglipVisionModel':
        return reference(picture[None]).last_hidden_state[0]
    flat = picture.view(3, rows, P, columns, P).permute(1, 3, 2, 4, 0).reshape(1, rows * columns, -1)
    return reference(flat, pixel_attention_mask=torch.ones(1, rows * columns, dtype=torch.long),
                     spatial_shapes=torch.tensor([[rows, columns]])).last_hidden_state[0]


def assert_equals_home(encoder, rows, columns):
    picture = torch.randn(3, rows * P, columns * P, generator=torch.Generator().manual_seed(rows))
    plan = encoder.plan([(1, rows, columns)])
    features = encoder(patches_of(picture), plan)
    reading = plan.positions[:, 0] * columns + plan.positions[:, 1]
    expected = at_home(reference_of(encoder), picture)[reading]
    assert (features - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize('attention', ['sdpa', 'eager'])
@pytest.mark.parametrize('architecture', ARCHITECTURES)
@torch.no_grad()
def test_its_features_are_those_of_transformers_on_the_learnt_grid(architecture, attention):
    assert_equals_home(encoder_of(architecture, attention=attention), SIDE, SIDE)


@pytest.mark.parametrize('grid', [(4, 6), (8, 2), (14, 10), (2, 2)])
@torch.no_grad()
def test_positions_are_resized_to_other_grids_as_siglip2_does(grid):
    assert_equals_home(encoder_of('siglip2_vision_model'), *grid)


@pytest.mark.parametrize('size', [1, 3, 6, 7, 20])
def test_the_weights_are_those_of_torchs_resize(size):
    learnt = torch.randn(1, 1, SIDE, SIDE, dtype=torch.float64)
    expected = F.interpolate(learnt, (size, SIDE), mode='bilinear', align_corners=False, antialias=True)[0, 0]
    weights = torch.from_numpy(resize_weights(size, SIDE)).double()
    torch.testing.assert_close(weights @ learnt[0, 0], expected, atol=1e-6, rtol=1e-5)
    assert np.array_equal(resize_weights(SIDE, SIDE), np.eye(SIDE, dtype=np.float32))


def test_packed_is_alone_and_frames_do_not_see_each_other():
    encoder = encoder_of('siglip_vision_model', torch.float64)
    grids = [(1, 4, 6), (3, 2, 4), (1, 4, 6), (2, 8, 6)]
    counts = [int(np.prod(grid)) for grid in grids]
    patches = torch.randn(sum(counts), 3 * P * P, dtype=torch.float64)
    packed = encoder(patches, encoder.plan(grids))
    packed.square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert float(parameter.grad.norm()) > 0 or name.endswith('k_proj.bias'), name
    with torch.no_grad():
        alone = [encoder(own, encoder.plan([grid])) for own, grid in zip(patches.split(counts), grids)]
        assert (packed - torch.cat(alone)).norm() < 1e-10 * packed.norm()
        frames = torch.cat([encoder(frame, encoder.plan([(1, 2, 4)])) for frame in patches[24:48].split(8)])
        assert (alone[1] - frames).norm() < 1e-10 * frames.norm()


@pytest.mark.parametrize('whole', [False, True])
def test_a_folder_decides_its_sizes(tmp_path, whole):
    from transformers import SiglipConfig, SiglipVisionConfig
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, patch_size=4,
                 image_size=24)
    (SiglipConfig(vision_config=sizes) if whole else SiglipVisionConfig(**sizes)).save_pretrained(tmp_path)
    encoder = HFVisionEncoder(path=str(tmp_path))
    assert encoder.architecture == 'siglip_vision_model'
    assert (encoder.width, encoder.patch_size, encoder.side) == (32, 4, SIDE)
    with pytest.raises(ValueError, match='vision_encoder.depth: 5 differs from the 2 of model.vision_encoder.path'):
        HFVisionEncoder(path=str(tmp_path), depth=5)
    with pytest.raises(ValueError, match='image_size: 28 differs from the 24'):
        HFVisionEncoder(path=str(tmp_path), image_size=28)
    with pytest.raises(ValueError, match="architecture: 'siglip2_vision_model' differs"):
        HFVisionEncoder('siglip2_vision_model', str(tmp_path))


def test_what_cannot_be_built_is_named(monkeypatch):
    with pytest.raises(ValueError, match="'clip_vision_model' is not supported.*; expected one of siglip_vision_model"):
        HFVisionEncoder('clip_vision_model', **SIZES, image_size=24)
    with pytest.raises(ValueError, match='expected image_size beside architecture, or the path'):
        HFVisionEncoder('siglip_vision_model', **SIZES)
    with pytest.raises(ValueError, match='width 32 must be a multiple of num_heads 5'):
        HFVisionEncoder('siglip_vision_model', **{**SIZES, 'num_heads': 5}, image_size=24)
    with pytest.raises(ValueError, match='patch_size: expected a whole number'):
        HFVisionEncoder('siglip_vision_model', **{**SIZES, 'patch_size': 0}, image_size=24)
    monkeypatch.setitem(sys.modules, 'transformers', None)
    with pytest.raises(ValueError, match='model.vision_encoder: this part needs the transformers package'):
        HFVisionEncoder('siglip_vision_model', **SIZES, image_size=24)


def test_a_built_one_holds_no_buffer():
    with torch.device('meta'):
        assert not dict(HFVisionEncoder('siglip_vision_model', **SIZES, image_size=24).named_buffers())
