"""The resampler against a plain loop over frame groups, queries and patches.

Shapes: N patches, D vision width, E language width, Q queries, H heads.
"""
import pytest
import torch

from qvlkit.models.builder import build_model
from qvlkit.models.mergers.resampler import ResamplerMerger
from qvlkit.models.vision_encoders.qwen25_vit import Qwen25ViT

D, E, H, ROWS, COLUMNS = 8, 16, 2, 2, 3
GRIDS = [(1, 4, 6), (2, 2, 4), (1, 8, 2)]


def merger_of(**settings):
    torch.manual_seed(0)
    merger = ResamplerMerger(D, E, queries=[ROWS, COLUMNS], num_heads=H, **settings).double()
    for parameter in merger.parameters():
        torch.nn.init.normal_(parameter)
    return merger


def plan_of(merger, grids=GRIDS):
    """The plan of an encoder that moves patches about in windows."""
    with torch.device('meta'):
        encoder = Qwen25ViT(D, 1, num_heads=1, feed_forward_width=8, patch_size=4, window_size=16,
                            full_attention_blocks=[])
    return merger.arrange(encoder.plan(grids))


def norm(x, layer):
    return (x - x.mean()) / (x.var(unbiased=False) + 1e-6).sqrt() * layer.weight + layer.bias


def sine(row, column):
    """(E,): E / 4 frequencies; sine of the row's angles, then the cosine, then the same of the column."""
    frequencies = 10000.0 ** -(torch.arange(E // 4, dtype=torch.float64) / (E // 4))
    return torch.cat([part for place in (row, column)
                      for part in ((place * frequencies).sin(), (place * frequencies).cos())])


def expected_group(merger, features, positions, rows, columns):
    """Answers of the queries to one frame group, each by itself."""
    values = [norm(merger.input_proj.weight @ x, merger.norm_kv) for x in features]
    keys = values
    if merger.positions:
        keys = [value + sine((row + 0.5) * ROWS / rows - 0.5, (column + 0.5) * COLUMNS / columns - 0.5)
                for value, (row, column) in zip(values, positions.double())]
    answers = []
    for number, query in enumerate(merger.queries.weight):
        query = norm(query, merger.norm_q)
        if merger.positions:
            query = query + sine(*torch.tensor([number // COLUMNS, number % COLUMNS], dtype=torch.float64))
        heads = []
        for q, k, v in zip(merger.q_proj(query).chunk(H), torch.stack([merger.k_proj(key) for key in keys]).chunk(H, 1),
                           torch.stack([merger.v_proj(value) for value in values]).chunk(H, 1)):
            heads.append((k @ q / (E // H) ** 0.5).softmax(0) @ v)
        answers.append(merger.proj.weight @ norm(merger.out_proj(torch.cat(heads)), merger.norm_out))
    return torch.stack(answers)


@pytest.mark.parametrize('attention', ['sdpa', 'eager'])
@pytest.mark.parametrize('positions', [True, False])
def test_it_equals_a_loop_over_groups_queries_and_patches(positions, attention):
    merger = merger_of(positions=positions, attention=attention)
    plan = plan_of(merger)
    assert not plan.order.equal(torch.arange(len(plan.order)))
    features = torch.randn(len(plan.order), D, dtype=torch.float64)
    expected, start = [], 0
    for t, rows, columns in GRIDS:
        for _ in range(t):
            group = slice(start, start + rows * columns)
            expected.append(expected_group(merger, features[group], plan.positions[group], rows, columns))
            start += rows * columns
    torch.testing.assert_close(merger(features, plan), torch.cat(expected), atol=1e-6, rtol=1e-6)


def test_tokens_come_group_by_group_whatever_the_grid():
    merger = merger_of()
    assert merger.token_grid((5, 8, 2)) == (5, ROWS, COLUMNS) and merger.num_tokens((5, 8, 2)) == 30
    plan = plan_of(merger)
    assert plan.token_order.tolist() == list(range(4 * 6))
    assert plan.attention['resampler'].lengths_q == (6,) * 4 and plan.attention['resampler'].lengths_k == (24, 8, 8, 16)
    features = torch.randn(len(plan.order), D, dtype=torch.float64)
    before = merger(features, plan)
    features[24:32] += 1  # the first frame group of the video
    changed = (merger(features, plan) - before).abs().amax(1) > 1e-9
    assert changed.nonzero().squeeze(1).tolist() == list(range(6, 12))


def test_the_order_of_patches_does_not_matter():
    merger = merger_of()
    plan = plan_of(merger, [(1, 8, 6)])
    features = torch.randn(48, D, dtype=torch.float64)
    order = torch.randperm(48)
    plan_moved = plan_of(merger, [(1, 8, 6)])
    plan_moved.extra['resampler_places'] = plan.extra['resampler_places'][order]
    torch.testing.assert_close(merger(features[order], plan_moved), merger(features, plan))
    assert not torch.allclose(merger(features[order], plan), merger(features, plan))


def test_wrong_settings_are_named():
    for settings, message in ((dict(queries=[4]), r'merger.queries: expected rows and columns.*got \[4\]'),
                              (dict(queries=[4, 0]), 'merger.queries'),
                              (dict(num_heads=5), 'num_heads: 5 does not divide the 16 of model.language_model.width')):
        with pytest.raises(ValueError, match=message):
            ResamplerMerger(D, E, **settings)
    with pytest.raises(ValueError, match='positions: 2-D sine positions need .* multiple of 4, got 18'):
        ResamplerMerger(D, 18, num_heads=2)


def test_first_weights_follow_the_seed(model_config):
    config = model_config(merger='ResamplerMerger')
    one, other, third = (build_model(config, seed=seed).merger.queries.weight for seed in (1, 1, 2))
    assert one.equal(other) and not one.equal(third)
