"""The sampler: shares by sample and by token, schedules, ends, orders, and a state that is exact."""
import json
from collections import Counter

import numpy as np
import pytest

from qvlkit.data.datasets.mixture import Mixture
from qvlkit.data.sampler import Sampler, replacements


class Numbered:
    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size


LENGTHS = np.random.default_rng(0).lognormal([4.0, 6.0, 5.0], 0.7, (5000, 3)).astype(int) + 1  # of three sources


def mixture(by='sample', size=5000, **settings):
    weights = settings.pop('weights', (5, 3, 2))
    return Mixture({name: dict(dataset=Numbered(size), weight=weight, **settings)
                    for name, weight in zip('abc', weights)}, by=by)


def run(sampler, count, at_once=256):
    """Draws and the tokens that each source brought."""
    draws, tokens = [], np.zeros(3)
    while len(draws) < count:
        some = sampler.draw(min(at_once, count - len(draws)))
        brought = np.zeros(3)
        for draw in some:
            brought[draw.source] += LENGTHS[draw.index, draw.source]
        sampler.note(brought.astype(int).tolist())
        draws += some
        tokens += brought
    return draws, tokens


def test_sample_shares_are_within_one_of_the_weights_in_every_block():
    draws, _ = run(Sampler(mixture()), 25_600)
    for start in range(0, len(draws), 256):
        counts = Counter(draw.source for draw in draws[start:start + 256])
        assert all(abs(counts[source] - 256 * share) <= 1.001 for source, share in enumerate((0.5, 0.3, 0.2)))
    first = [draw.source for draw in draws[:256]]
    assert first != sorted(first)  # in random order


@pytest.mark.parametrize('at_once', [64, 256, 5000])
def test_token_shares_are_within_three_sigma_after_20000_draws(at_once):
    _, tokens = run(Sampler(mixture('token')), 20_000, at_once)
    wanted, total = np.array([0.5, 0.3, 0.2]), tokens.sum()
    mean, spread = LENGTHS.mean(0), LENGTHS.std(0)
    draws = tokens / mean
    sigma = np.sqrt(draws * spread**2) / total  # of a source's tokens, were its draws fixed in number
    assert (np.abs(tokens / total - wanted) < 3 * sigma).all()
    by_sample = run(Sampler(mixture('sample')), 20_000)[1]
    assert (np.abs(by_sample / by_sample.sum() - wanted) > 3 * sigma).any()  # the test can tell them apart


def test_weights_follow_a_schedule_over_tokens():
    scheduled = mixture('token', weights=([[0, 0.0], [2_000_000, 1.0]], 1, 0))
    sampler = Sampler(scheduled)
    shares = []
    while sum(sampler.tokens) < 3_000_000:
        before = np.array(sampler.tokens)
        run(sampler, 256)
        new = np.array(sampler.tokens) - before
        shares.append((sum(sampler.tokens), new[0] / new.sum()))
    for start in range(0, len(shares) - 8, 8):
        some = shares[start:start + 8]
        lines = [min(tokens / 2_000_000, 1.0) for tokens, _ in some]
        assert abs(np.mean([share for _, share in some]) - np.mean([line / (line + 1) for line in lines])) < 0.05
    assert sampler.drawn[2] == 0


def test_weights_can_be_set_by_path_and_stay():
    nested = Mixture(dict(a=dict(dataset=Numbered(9)), deep=dict(dataset=Mixture(
        dict(b=dict(dataset=Numbered(9)), c=dict(dataset=Numbered(9)))))))
    sampler = Sampler(nested)
    assert sampler.shares().tolist() == [0.5, 0.25, 0.25]
    sampler.set_weights({'deep': 3, 'deep/c': 0})
    assert sampler.shares().tolist() == [0.25, 0.75, 0.0]
    with pytest.raises(ValueError, match="no part 'deep/d'.*'deep/c'"):
        sampler.set_weights({'deep/d': 1})
    again = Sampler(nested)
    again.load_state_dict(json.loads(json.dumps(sampler.state_dict())))
    assert again.shares().tolist() == [0.25, 0.75, 0.0]


def test_an_exhausted_part_gives_its_share_to_the_others_or_ends_the_data():
    def two(**settings):
        return Sampler(Mixture(dict(short=dict(dataset=Numbered(10), epochs=1.5, **settings),
                                    long=dict(dataset=Numbered(1000), epochs=1))))
    sampler = two()
    draws = [draw for _ in range(40) for draw in sampler.draw(100)]
    counts = Counter(draw.source for draw in draws)
    assert counts == {0: 15, 1: 1000} and sampler.ended and sampler.draw(5) == []
    ends = two(exhausted='stop')
    draws = [draw for _ in range(3) for draw in ends.draw(100)]
    assert ends.ended and Counter(draw.source for draw in draws)[0] == 15 and len(draws) < 60


@pytest.mark.parametrize('order', ['shuffle', 'blocks', 'sequential'])
def test_every_epoch_shows_every_sample_once(order):
    sampler = Sampler(Mixture(dict(a=dict(dataset=Numbered(2500), order=order))), seed=3)
    draws = [draw for _ in range(50) for draw in sampler.draw(100)]
    first, second = draws[:2500], draws[2500:]
    for epoch, part in enumerate((first, second)):
        assert {draw.epoch for draw in part} == {epoch}
        assert sorted(draw.index for draw in part) == list(range(2500))
    orders = [[draw.index for draw in part] for part in (first, second)]
    assert (orders[0] == orders[1] == list(range(2500))) == (order == 'sequential')
    neighbours = np.mean(np.abs(np.diff(orders[0])) < 1024)
    assert (neighbours > 0.99) == (order in ('blocks', 'sequential'))


def test_a_resumed_sampler_draws_what_the_first_would_have_drawn():
    whole = Sampler(mixture('token'), seed=1)
    run(whole, 777, at_once=111)
    state = json.loads(json.dumps(whole.state_dict()))
    rest = run(whole, 2000)[0]
    resumed = Sampler(mixture('token'), seed=1)
    resumed.load_state_dict(state)
    assert run(resumed, 2000)[0] == rest
    assert run(Sampler(mixture('token'), seed=1), 2000)[0] != rest  # the state matters
    assert run(Sampler(mixture('token'), seed=2), 2000)[0] != run(Sampler(mixture('token'), seed=1), 2000)[0]


def test_replacements_are_fixed_by_the_draw_and_come_from_its_source():
    draws = Sampler(mixture()).draw(20)
    for draw in draws:
        some = replacements(draw, mixture(), seed=5, tries=8)
        assert some == replacements(draw, mixture(), seed=5, tries=8) != replacements(draw, mixture(), seed=6, tries=8)
        assert {other.source for other in some} == {draw.source} and len({other.index for other in some}) > 4
