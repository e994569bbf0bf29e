import pytest

from qvlkit.planning.synthetic import KINDS, SyntheticSamples
from qvlkit.structures import Media


def test_one_of_each_kind_in_turn():
    samples = SyntheticSamples()
    counts = [[media.kind for media in samples[index].turns[0].content if isinstance(media, Media)]
              for index in range(len(KINDS))]
    assert counts == [[], ['image'], ['image'] * 3, ['video']]
    assert [sample.turns[0].role for sample in (samples[0], samples[4])] == ['user', 'user']
    assert samples[5].id != samples[1].id
    with pytest.raises(IndexError):
        samples[len(samples)]
