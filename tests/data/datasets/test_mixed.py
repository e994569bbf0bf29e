import pytest

from qvlkit.data.datasets.mixed import MixedDataset
from qvlkit.registry import DATASETS
from qvlkit.structures import Sample


class Numbered:
    def __init__(self, name, size):
        self.name, self.size = name, size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return Sample(f'{self.name}[{index}]', [], self.name)


def mixture(seed=0, size=4000):
    return MixedDataset({'many': {'dataset': Numbered('a', 5000), 'weight': 3}, 'few': {'dataset': Numbered('b', 7)}},
                        size, seed)


def test_shares_follow_the_weights_and_sources_are_the_parts_names():
    mixed = mixture()
    sources = [mixed[i].source for i in range(4000)]
    assert 2880 <= sources.count('many') <= 3120 and sources.count('many') + sources.count('few') == 4000


def test_a_sample_depends_on_seed_and_index_alone():
    assert [mixture()[i].id for i in (9, 3, 3999)] == [mixture()[i].id for i in (9, 3, 3999)]
    assert [mixture()[i].id for i in range(50)] != [mixture(seed=1)[i].id for i in range(50)]


def test_a_part_gives_every_sample_before_it_repeats_one():
    mixed = mixture()
    ids = [mixed[i].id for i in range(4000)]
    many = [key for key in ids if key.startswith('a')]
    few = [key for key in ids if key.startswith('b')]
    assert len(set(many)) == len(many)
    assert few[:14] == [f'b[{i % 7}]' for i in range(14)]


def test_parts_are_built_from_configs():
    mixed = DATASETS.build({'type': 'MixedDataset', 'size': 5, 'parts': {
        'drawn': {'dataset': {'type': 'PictureTasks', 'size': 9}}}})
    assert mixed[4].source == 'drawn' and mixed[4].id == 'picture_tasks/train[4]'


@pytest.mark.parametrize(('parts', 'words'), [
    ({}, 'at least one'), ({'a': {'weight': 1}}, 'parts.a'), ({'a': {'dataset': Numbered('a', 0)}}, 'parts.a.dataset'),
    ({'a': {'dataset': Numbered('a', 1), 'weight': 0}}, 'parts.a.weight'),
    ({'a': {'dataset': {'type': 'PictureTask', 'size': 9}}}, "'PictureTasks'")])
def test_wrong_parts_are_named(parts, words):
    with pytest.raises(ValueError, match=words):
        MixedDataset(parts, 10)
