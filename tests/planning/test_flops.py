from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from qvlkit.losses.cross_entropy import LinearCrossEntropy
from qvlkit.planning.flops import batch_flops, format_flops, reference_flops
from qvlkit.structures import AttentionPlan

FROZEN = [{}, {'vision_encoder': False}, {'vision_encoder': False, 'merger': False},
          {'vision_encoder': False, 'language_model': False}]


def counted(small, trainable):
    """Operations that torch itself counts, with attention as matrix products: those of the masked half too."""
    model = small.build(seed=0)
    for part, trains in trainable.items():
        getattr(model, part).requires_grad_(trains)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        hidden = model(small.row)
        LinearCrossEntropy()(hidden.index_select(0, small.row.target_rows), model.language_model.head_weight,
                             small.row.target_ids).backward()
    return counter.get_total_flops()


@pytest.mark.parametrize('trainable', FROZEN, ids=str)
def test_close_to_what_torch_counts(small, trainable):
    model = small.build(device='meta')
    parts = batch_flops(model, small.row, trainable)
    language = model.language_model
    masked_half = language.depth * 2 * language.width * sum(n * (n - 1) for n in small.row.attention.lengths_q)
    ours = sum(part.total for part in parts) + masked_half * parts[-1].total / parts[-1].forward
    tolerance = 0.02 if trainable.get('language_model', True) else 0.08  # a frozen part's attention counts too low
    assert ours == pytest.approx(counted(small, trainable), rel=tolerance)


def test_backward_follows_the_gradient(small):
    model = small.build(device='meta')

    def ratios(**trainable):
        return [part.backward / part.forward for part in batch_flops(model, small.row, trainable)]

    assert ratios() == [2, 2, 2]
    assert ratios(vision_encoder=False) == [0, 2, 2]
    assert ratios(vision_encoder=False, language_model=False) == [0, 2, 1]
    assert ratios(merger=False) == [2, 1, 2]


def test_the_head_runs_on_supervised_rows_alone(small):
    model = small.build(device='meta').language_model
    lengths = small.row.attention.lengths_q
    more = model.flops(lengths, 100) - model.flops(lengths, 0)
    assert more == 100 * 2 * model.width * model.vocab_size
    part = batch_flops(small.build(device='meta'), small.row, {})[-1]
    assert part.forward == model.flops(lengths, small.row.num_targets)
    assert 0 < small.row.num_targets < torch.tensor(lengths).sum()


def test_units():
    assert format_flops(1.5e12) == '1.50 TFLOP'
    assert format_flops(2.782e16) == '27.82 PFLOP'
    assert format_flops(3e18) == '3,000.00 PFLOP'


def test_of_preference_pairs_answers_see_the_prompt_that_is_computed_once(small):
    """Against a count by hand: P = 5 prompt tokens, answers of 3 and 2, and a second pair."""
    model = small.build(device='meta').language_model
    plan = AttentionPlan.from_lengths([5, 3, 2, 4, 1, 6], [5, 8, 7, 4, 5, 10], causal=True)
    attended = (1 + 2 + 3 + 4 + 5) + (6 + 7 + 8) + (6 + 7) + (1 + 2 + 3 + 4) + 5 + (5 + 6 + 7 + 8 + 9 + 10)
    kv = model.num_kv_heads * model.head_dim
    matrices = 2 * model.width**2 + 2 * model.width * kv + 3 * model.width * model.feed_forward_width
    by_hand = model.depth * (2 * 21 * matrices + 4 * model.width * attended) + 2 * 12 * model.width * model.vocab_size
    batch = SimpleNamespace(attention=plan, num_targets=12, vision_plan=small.row.vision_plan)
    whole = small.build(device='meta')
    parts = {part.part: part for part in batch_flops(whole, batch, {'vision_encoder': False})}
    assert parts['language_model'].forward == by_hand and parts['language_model'].backward == 2 * by_hand
    own, shared = (reference_flops(whole, batch, shares_features=flag) for flag in (False, True))
    assert shared.total == shared.forward == by_hand + parts['merger'].forward
    assert own.forward - shared.forward == parts['vision_encoder'].forward
