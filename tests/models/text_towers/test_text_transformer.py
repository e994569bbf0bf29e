"""The small text tower: what a caption's vector depends on, and what it costs."""
import dataclasses

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def embedded(model, batch, **changes):
    return model.text_tower(dataclasses.replace(batch, **changes))


@pytest.mark.parametrize('settings', [dict(), dict(causal=False), dict(read='mean'),
                                      dict(causal=False, read='mean')], ids=str)
def test_every_token_and_its_place_matters_to_its_own_caption_alone(make_towers, make_pairs, join_pairs, settings):
    model = make_towers(**settings)
    batch = join_pairs(model, make_pairs(model))
    before = embedded(model, batch)
    for row in (0, 4, 6):  # the first token of captions 0 and 1, the second of caption 2
        ids = batch.token_ids.clone()
        ids[row] = (ids[row] + 1) % 40
        moved = (embedded(model, batch, token_ids=ids) - before).abs().amax(1) > 1e-9
        assert moved.nonzero().flatten().tolist() == [batch.caption_index[row].item()]
    swapped = batch.token_ids.clone()
    swapped[[0, 1]] = swapped[[1, 0]]
    assert (embedded(model, batch, token_ids=swapped) - before).abs()[0].max() > 1e-9


def test_a_causal_token_does_not_see_those_behind_it(make_towers, make_pairs, join_pairs):
    """Read in the middle of a caption, the vector depends on what follows only without `causal`."""
    for causal in (True, False):
        model = make_towers(causal=causal)
        batch = join_pairs(model, make_pairs(model))
        early = batch.last_rows.clone()
        early[0] -= 2
        ids = batch.token_ids.clone()
        ids[batch.last_rows[0]] = (ids[batch.last_rows[0]] + 1) % 40
        before, after = (embedded(model, batch, last_rows=early, token_ids=tokens) for tokens in (batch.token_ids, ids))
        assert torch.equal(before[0], after[0]) == causal


@pytest.mark.parametrize('causal', [True, False])
def test_flops_are_what_torch_counts(make_towers, make_pairs, join_pairs, causal):
    model = make_towers(causal=causal)
    batch = join_pairs(model, make_pairs(model))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.text_tower(batch)
    lengths, tower = batch.attention.lengths_q, model.text_tower
    masked = tower.depth * 2 * tower.width * sum(length * (length - 1) for length in lengths) if causal else 0
    assert counter.get_total_flops() - masked == tower.flops(lengths)


@pytest.mark.parametrize('settings, words', [
    (dict(read='first'), ['towers.text_tower.read', "'first'", 'last, mean']),
    (dict(num_heads=8), ['towers.text_tower', 'width 24', 'num_heads 8']),
    (dict(vocab_size=30), ['towers.text_tower.vocab_size', '30', '40']),
    (dict(dept=2), ['towers.text_tower.dept', "did you mean 'depth'"])])
def test_refusals(make_towers, settings, words):
    with pytest.raises(ValueError) as error:
        make_towers(**settings)
    assert all(word in str(error.value) for word in words), error.value
