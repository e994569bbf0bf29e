import pytest

from qvlkit.data.datasets.mixture import Mixture, as_mixture
from qvlkit.registry import DATASETS
from qvlkit.structures import Sample


class Numbered:
    def __init__(self, name, size):
        self.name, self.size = name, size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return Sample(f'{self.name}[{index}]', [], self.name, limits=dict(fps=1.0))


def part(name, size, **settings):
    return dict(dataset=Numbered(name, size), **settings)


def test_as_a_sequence_it_is_its_parts_end_to_end_under_their_names_and_limits():
    inner = Mixture(dict(b=part('b', 2), c=part('c', 1, limits=dict(max_pixels=99, fps=4.0))))
    mixture = Mixture(dict(a=part('a', 3), deep=dict(dataset=inner)))
    assert [source.name for source in mixture.sources] == ['a', 'deep/b', 'deep/c'] and len(mixture) == 6
    assert [mixture[i].id for i in range(6)] == ['a[0]', 'a[1]', 'a[2]', 'b[0]', 'b[1]', 'c[0]']
    assert [mixture[i].source for i in (2, 3, 5)] == ['a', 'deep/b', 'deep/c']
    assert mixture[5].limits == dict(max_pixels=99, fps=1.0)  # the sample's own say goes before its source's
    with pytest.raises(IndexError):
        mixture[6]


def test_a_schedule_is_a_straight_line_between_its_points():
    mixture = Mixture(dict(a=part('a', 1, weight=[[0, 1.0], [100, 0.2]]), b=part('b', 1)))
    assert [round(mixture.weight('a', tokens), 9) for tokens in (0, 50, 100, 1e9)] == [1.0, 0.6, 0.2, 0.2]


def test_parts_are_built_from_configs():
    mixture = DATASETS.build({'type': 'Mixture', 'parts': {'drawn': {'dataset': {'type': 'PictureTasks', 'size': 9}}}})
    assert mixture[4].source == 'drawn' and mixture[4].id == 'picture_tasks/train[4]'
    assert as_mixture(mixture) is mixture
    assert [source.name for source in as_mixture(Numbered('x', 2)).sources] == ['x']


@pytest.mark.parametrize(('parts', 'words'), [
    ({}, 'at least one'), ({'a': {'weight': 1}}, 'parts.a'), ({'a': part('a', 0)}, 'parts.a.dataset'),
    ({'a': part('a', 1, weight=-1)}, 'parts.a.weight.*-1'), ({'a': part('a', 1, weight=0)}, 'every weight is 0'),
    ({'a': part('a', 1, weight=float('nan'))}, 'parts.a.weight'),
    ({'a': part('a', 1, weight=[[5, 1], [2, 1]])}, 'parts.a.weight.*tokens that rise'),
    ({'a': part('a', 1, order='shufle')}, "parts.a.order.*'shuffle'"),
    ({'a': part('a', 1, epochs=0)}, 'parts.a.epochs'),
    ({'a': part('a', 1, oversize='cut')}, 'parts.a.oversize.*drop'),
    ({'a': part('a', 1, exausted='drop')}, "parts.a.exausted.*'exhausted'"),
    ({'a': dict(dataset=Mixture(dict(b=part('b', 1))), epochs=1)}, 'parts.a.epochs.*mixture'),
    ({'a': {'dataset': {'type': 'PictureTask', 'size': 9}}}, "'PictureTasks'")])
def test_wrong_parts_are_named(parts, words):
    with pytest.raises(ValueError, match=words):
        Mixture(parts)
