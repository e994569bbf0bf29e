"""The loader: the same rows for any number of workers, resuming inside a chunk, order, unusable samples."""
import itertools
import json

import pytest
import torch

from qvlkit.data.loader import PackedLoader
from qvlkit.structures import EncodedSample, Sample, SampleError

LENGTHS = [3 + 7 * index % 11 for index in range(37)]
BAD = {5: 'missing_media', 17: 'bad_json'}  # index -> kind of error


class Dataset:
    def __init__(self, size=37, bad=()):
        self.size, self.bad = size, bad

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if index in self.bad:
            raise SampleError(f'file.json[{index}]', 'cannot be used', BAD.get(index, 'bad_sample'))
        return Sample(f'file.json[{index}]', [], extra=dict(index=index))


def encode(sample, length=None, targets=1):
    length = length or LENGTHS[sample.extra['index'] % len(LENGTHS)]
    is_target = torch.zeros(length, dtype=torch.bool)
    is_target[length - targets:] = True
    return EncodedSample(sample.id, torch.arange(length), is_target, None, [], [], [], [], None)


def ids_and_length(samples):
    """Stands in for collate: what the tests look at."""
    return tuple(sample.id for sample in samples), sum(sample.length for sample in samples)


def loader(dataset=None, encode=encode, **settings):
    settings = dict(row_length=32, chunk_size=8, seed=3) | settings
    return PackedLoader(Dataset() if dataset is None else dataset, encode, ids_and_length, **settings)


def steps(loader, count):
    return list(itertools.islice(loader, count))



@pytest.mark.parametrize('num_workers', [1, 2])
def test_rows_do_not_depend_on_workers(num_workers):
    assert steps(loader(num_workers=num_workers), 24) == steps(loader(), 24)


def test_an_epoch_shows_every_sample_once_and_no_row_is_too_long():
    seen = []
    stream = loader()
    for (row, length), in stream:
        if stream.epoch == 1:
            break
        assert length <= 32
        seen += row
    assert sorted(seen) == sorted(f'file.json[{index}]' for index in range(37))


@pytest.mark.parametrize('accumulation, num_workers', [(1, 0), (3, 0), (3, 2)])
def test_resuming_inside_a_chunk_goes_on_as_if_nothing_had_been(accumulation, num_workers):
    straight = steps(loader(accumulation=accumulation), 20)
    inside = 0
    for stop in range(1, 12):
        first = loader(accumulation=accumulation)
        assert steps(first, stop) == straight[:stop]
        state = json.loads(json.dumps(first.state_dict()))
        rows, _ = first.chunks[state['epoch'], state['chunk']]
        inside += 0 < state['row'] < len(rows)
        if num_workers and stop not in (1, 5):
            continue
        second = loader(accumulation=accumulation, num_workers=num_workers)
        second.load_state_dict(state)
        assert steps(second, 20 - stop) == straight[stop:]
    assert inside


def test_the_state_matters():
    straight = steps(loader(), 8)
    assert steps(loader(), 4) != straight[4:]


def test_order_differs_by_epoch_and_by_seed_and_stays_without_shuffling():
    chunks = loader().chunks
    orders = [chunks.order(epoch).tolist() for epoch in (0, 1, 0)]
    assert orders[0] != orders[1] and orders[0] == orders[2]
    assert all(sorted(order) == list(range(37)) for order in orders)
    assert loader(seed=4).chunks.order(0).tolist() != orders[0]
    assert loader(shuffle=False).chunks.order(5).tolist() == list(range(37))
    assert steps(loader(seed=4), 5) != steps(loader(), 5)


@pytest.mark.parametrize('num_workers', [0, 1])
def test_the_first_bad_sample_stops_the_run(num_workers):
    with pytest.raises(SampleError, match=r'file.json\[\d+\]: cannot be used'):
        steps(loader(Dataset(bad=BAD), num_workers=num_workers), 24)


def test_skipped_samples_are_counted_and_written_down(tmp_path):
    stream = loader(Dataset(bad=BAD), on_error='skip', quarantine=tmp_path / 'deep' / 'quarantine.jsonl')
    seen = []
    for (row, _), in stream:
        if stream.epoch == 1:
            break
        seen += row
    assert sorted(seen) == sorted(f'file.json[{index}]' for index in range(37) if index not in BAD)
    lines = [json.loads(line) for line in (tmp_path / 'deep' / 'quarantine.jsonl').read_text().splitlines()]
    assert sorted(lines[:2], key=lambda line: line['kind']) == [
        dict(sample='file.json[17]', kind='bad_json', reason='cannot be used'),
        dict(sample='file.json[5]', kind='missing_media', reason='cannot be used')]
    assert sum(stream.errors.values()) == len(lines)


def test_a_resume_does_not_count_the_chunk_that_it_reads_again(tmp_path):
    file = tmp_path / 'quarantine.jsonl'
    settings = dict(on_error='skip', quarantine=file, shuffle=False, chunk_size=37)
    first = loader(Dataset(bad=BAD), **settings)
    steps(first, 2)
    second = loader(Dataset(bad=BAD), **settings)
    second.load_state_dict(first.state_dict())
    steps(second, 1)
    assert second.errors == first.errors == dict(missing_media=1, bad_json=1)
    assert len(file.read_text().splitlines()) == 2
    stricter = loader(Dataset(), **settings, max_errors=1)  # no further error: nothing to stop for
    stricter.load_state_dict(first.state_dict())
    assert steps(stricter, 1)


def test_too_many_bad_samples_end_the_run():
    bad = loader(Dataset(bad=range(0, 37, 4)), on_error='skip', max_errors=4)
    with pytest.raises(ValueError, match=r'more than 4 samples .*loader.max_errors.*bad_sample.*file.json'):
        steps(bad, 40)
    assert steps(loader(Dataset(bad=[0, 4, 8, 12]), on_error='skip', max_errors=4), 5)


def test_no_usable_sample_at_all_is_an_error_and_not_an_endless_loop():
    with pytest.raises(ValueError, match='no usable sample in a whole epoch'):
        steps(loader(Dataset(bad=range(37)), on_error='skip', max_errors=1000), 1)


@pytest.mark.parametrize('settings, kind, message', [
    (dict(length=33), 'too_long', '33 tokens do not fit a row of 32 .loader.row_length'),
    (dict(targets=0), 'no_target', 'no token is a target'),
    (dict(length=1), 'no_target', 'no token is a target'),
])
def test_samples_that_cannot_be_trained_on(settings, kind, message):
    def bad_encode(sample):
        return encode(sample, **(settings if sample.id == 'file.json[9]' else {}))
    with pytest.raises(SampleError, match=message) as caught:
        steps(loader(encode=bad_encode), 24)
    assert (caught.value.sample_id, caught.value.kind) == ('file.json[9]', kind)
    skipping = loader(encode=bad_encode, on_error='skip')
    steps(skipping, 8)
    assert skipping.errors == {kind: 1}


def test_a_row_may_be_filled_to_the_last_token():
    assert steps(loader(encode=lambda sample: encode(sample, length=32)), 1)


@pytest.mark.parametrize('change, word', [
    (dict(row_length=33), 'row_length was 32 .* 33 now'), (dict(chunk_size=9), 'chunk_size'), (dict(seed=4), 'seed'),
    (dict(dataset=Dataset(38)), 'num_samples was 37'), (dict(shuffle=False), 'seed')])
def test_a_resume_with_other_data_or_other_packing_is_refused(change, word):
    with pytest.raises(ValueError, match=f'resume: .*{word}'):
        loader(**change).load_state_dict(loader().state_dict())


@pytest.mark.parametrize('settings, word', [
    (dict(row_length=0), 'loader.row_length'), (dict(row_length=2.5), 'loader.row_length'),
    (dict(num_workers=-1), 'loader.num_workers'), (dict(chunk_size='8'), 'loader.chunk_size'),
    (dict(on_error='ignore'), "'raise' or 'skip'.*'ignore'"), (dict(dataset=Dataset(0)), 'no samples'),
    (dict(accumulation=0), 'accumulation')])
def test_wrong_settings_are_named(settings, word):
    with pytest.raises(ValueError, match=word):
        loader(**settings)
