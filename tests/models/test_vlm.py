"""The joined model: normalised pixels, media of both kinds in one call, frozen parts, image statistics."""
import dataclasses

import numpy as np
import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from qvlkit.models.builder import build_model
from qvlkit.models.vlm import IMAGE_MEAN, IMAGE_STD


def test_normalise_repeats_a_picture_and_keeps_the_frames_of_a_video(make_model):
    """Values of a patch come as (channel, frame, y, x)."""
    model, side = make_model(), 4
    random = np.random.default_rng(0)
    video = random.integers(0, 256, (5, 3, 2, side * side), dtype=np.uint8)
    expected = (video / 255 - np.array(IMAGE_MEAN)[:, None, None]) / np.array(IMAGE_STD)[:, None, None]
    normalised = model.normalise(torch.from_numpy(video).flatten(1), frames=2)
    assert normalised.dtype == torch.float32
    np.testing.assert_allclose(normalised.numpy(), expected.reshape(5, -1), atol=2e-6)
    picture = model.normalise(torch.from_numpy(video[:, :, 0]).flatten(1), frames=1)
    np.testing.assert_allclose(picture.numpy(), expected[:, :, [0, 0]].reshape(5, -1), atol=2e-6)


def test_image_statistics_come_from_the_config(model_config):
    model = build_model(dict(model_config(), image_mean=[0.5, 0.25, 0.0], image_std=[0.5, 1.0, 2.0]))
    white = model.normalise(torch.full((1, 3 * 16), 255, dtype=torch.uint8), frames=1)
    assert white.view(3, 32)[:, 0].tolist() == [1.0, 0.75, 0.5]


def test_a_still_video_equals_its_picture(make_model, make_sample, make_batch):
    """A video of two equal frames is what a picture becomes: same tokens, whichever list they travel in."""
    model = make_model()
    picture = make_sample(model, [1, ('image', (1, 4, 6)), 1])
    frames = picture.patches[0].reshape(-1, 3, 1, 16).repeat(2, axis=2).reshape(-1, 3 * 2 * 16)
    video = dataclasses.replace(picture, kinds=['video'], patches=[frames])
    with torch.no_grad():
        torch.testing.assert_close(model(make_batch(model, [picture])), model(make_batch(model, [video])))


def test_every_picture_lands_on_its_own_rows(make_model, make_sample, make_batch):
    """Change one medium of a mixed sample: the rows of the others, and all text before it, keep their values."""
    model = make_model()
    layout = [2, ('video', (2, 4, 4), 1.0), 1, ('image', (1, 8, 6)), 1, ('image', (1, 2, 2)), 1,
              ('video', (1, 2, 8), 1.0)]
    sample = make_sample(model, layout)
    spans = torch.split(sample.visual_rows, sample.token_counts)

    def visual_rows(patches):
        batch = make_batch(model, [dataclasses.replace(sample, patches=patches)])
        with torch.no_grad():
            return model.place(torch.zeros(batch.num_tokens, 32), model.merger(model.encode(batch), batch.vision_plan),
                               batch.visual_rows)

    before = visual_rows(sample.patches)
    for index in range(4):
        patches = [255 - patches if index == place else patches for place, patches in enumerate(sample.patches)]
        changed = (visual_rows(patches) - before).abs().amax(1) > 1e-4
        assert changed.nonzero().squeeze(1).tolist() == spans[index].tolist()


def test_place_writes_only_the_named_rows(make_model):
    model = make_model()
    embeddings = torch.arange(12.0).view(6, 2)
    placed = model.place(embeddings, torch.tensor([[-1.0, -2.0], [-3.0, -4.0]]), torch.tensor([4, 1]))
    assert placed.tolist() == [[0, 1], [-3, -4], [4, 5], [6, 7], [-1, -2], [10, 11]]
    assert embeddings[1].tolist() == [2, 3]
    kept = model.place(embeddings, torch.ones(1, 2), torch.zeros(0, dtype=torch.int64))
    assert torch.equal(kept, embeddings)


@pytest.mark.parametrize('frozen', [['vision_encoder'], ['vision_encoder', 'merger']])
def test_frozen_parts_keep_no_graph(frozen, make_model, make_sample, make_batch):
    model = make_model()
    for name in frozen:
        model.parts()[name].requires_grad_(False)
    batch = make_batch(model, [make_sample(model, [2, ('image', (1, 4, 6)), 3])])
    kept = []
    with saved_tensors_hooks(lambda tensor: kept.append(tensor.shape) or tensor, lambda tensor: tensor):
        features = model.encode(batch)
        assert not kept and not features.requires_grad
        tokens = model.merger(features)
    assert bool(kept) == tokens.requires_grad == ('merger' not in frozen)
    model.logits(batch).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith(tuple(frozen)), name


def test_a_frozen_language_model_still_carries_gradients_to_the_merger(make_model, make_sample, make_batch):
    model = make_model()
    model.language_model.requires_grad_(False)
    batch = make_batch(model, [make_sample(model, [2, ('image', (1, 4, 6)), 3])])
    model(batch)[-1].sum().backward()
    assert all(float(parameter.grad.norm()) > 0 for parameter in model.merger.parameters())
    assert all(parameter.grad is None for parameter in model.language_model.parameters())


def test_logits_are_the_head_on_the_hidden_states(make_model, make_sample, make_batch):
    model = make_model()
    batch = make_batch(model, [make_sample(model, [3, ('image', (1, 2, 2)), 3])])
    with torch.no_grad():
        torch.testing.assert_close(model.logits(batch), model(batch) @ model.language_model.head_weight.T)


def test_a_later_token_changes_no_earlier_one(make_model, make_sample, make_batch):
    model = make_model(dtype=torch.float64)
    sample = make_sample(model, [3, ('image', (1, 4, 4)), 5])
    changed = dataclasses.replace(sample, token_ids=sample.token_ids.clone())
    changed.token_ids[-2] = (sample.token_ids[-2] + 1) % 40
    with torch.no_grad():
        before, after = model(make_batch(model, [sample])), model(make_batch(model, [changed]))
    difference = (before - after).abs().amax(1)
    assert (difference[:-2] < 1e-12).all() and (difference[-2:] > 1e-6).all()


@pytest.mark.parametrize('attention', ['sdpa', 'eager'])
def test_autocast_runs_near_float32(attention, make_model, make_sample, make_batch):
    """Mixed precision as in training: float32 weights, products in bfloat16, gradients in float32."""
    model = make_model(attention=attention)
    batch = make_batch(model, [make_sample(model, [2, ('image', (1, 4, 6)), 3, ('video', (2, 4, 4), 1.0), 2])])
    gradients = []
    for enabled in (False, True):
        model.zero_grad(set_to_none=True)
        with torch.autocast('cpu', torch.bfloat16, enabled=enabled):
            loss = model(batch)[:, 0].sum()
        loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()
                          if 'lm_head' not in name})
    exact, rounded = gradients
    for name, gradient in rounded.items():
        assert gradient.dtype == torch.float32
        assert float(torch.cosine_similarity(gradient.flatten(), exact[name].flatten(), dim=0)) > 0.97, name


def test_parts_hold_all_weights(make_model):
    model = make_model()
    ours = {id(parameter) for part in model.parts().values() for parameter in part.parameters()}
    assert ours == {id(parameter) for parameter in model.parameters()}
