"""The loader: the same rows for any number of workers, exact resumes, ranks, ends, weights, unusable samples."""
import itertools
import json

import pytest
import torch

from qvlkit.data.datasets.mixture import Mixture
from qvlkit.data.loader import PackedLoader
from qvlkit.structures import EncodedSample, Measure, Sample, SampleError

LENGTHS = [3 + 7 * index % 11 for index in range(37)]
BAD = {5: 'missing_media', 17: 'bad_json'}  # index -> kind of error


class Dataset:
    """bad: indices that cannot be read; broken: indices that can be measured and not encoded."""

    def __init__(self, size=37, bad=(), broken=(), name='file.json', lengths=LENGTHS):
        self.size, self.bad, self.broken, self.name, self.lengths = size, bad, broken, name, lengths

    def __len__(self):
        return self.size

    def sample_id(self, index):
        return f'{self.name}[{index}]'

    def __getitem__(self, index):
        if index in self.bad:
            raise SampleError(self.sample_id(index), 'cannot be used', BAD.get(index, 'bad_sample'))
        return Sample(self.sample_id(index), [], extra=dict(length=self.lengths[index % len(self.lengths)],
                                                            broken=index in self.broken))


class Processor:
    """Samples that are nothing but lengths. `changed`: sample -> (length, targets) other than the dataset's."""

    def __init__(self, **changed):
        self.changed = changed

    def measure(self, sample, *, epoch=0):
        length, targets = self.changed.get(sample.id, (sample.extra['length'], 1))
        return Measure(length, min(targets, length - 1))

    def encode(self, sample, *, epoch=0):
        if sample.extra['broken']:
            raise SampleError(sample.id, 'truncated', 'bad_image')
        measure = self.measure(sample, epoch=epoch)
        is_target = torch.arange(measure.length) >= measure.length - measure.num_targets
        return EncodedSample(sample.id, torch.arange(measure.length), is_target, None, [], [], [], [], None,
                             source=sample.source)


class Batch(list):
    """Stands in for a PackedBatch: the ids of a row; knows its tokens and its sources."""

    def __init__(self, samples):
        super().__init__(sample.id for sample in samples)
        self.tokens, self.sources = sum(sample.length for sample in samples), {sample.source for sample in samples}


def loader(dataset=None, processor=None, **settings):
    settings = dict(row_length=32, window=20, seed=3) | settings
    return PackedLoader(Dataset() if dataset is None else dataset, processor or Processor(), Batch, **settings)


def steps(loader, count):
    return [list(map(list, rows)) for rows in itertools.islice(loader, count)]


def sources(**settings):
    """A token-weighted mixture of three, on a schedule."""
    return Mixture(dict(a=dict(dataset=Dataset(50, name='a', lengths=[5, 9, 4]), weight=[[0, 1.0], [3000, 0.1]]),
                        b=dict(dataset=Dataset(40, name='b', lengths=[20, 31]), weight=1.0),
                        c=dict(dataset=Dataset(30, name='c', lengths=[2, 3]), weight=0.5)), by='token', **settings)


@pytest.mark.parametrize('num_workers', [1, 2, 3])
def test_rows_do_not_depend_on_workers(num_workers):
    assert steps(loader(num_workers=num_workers), 24) == steps(loader(), 24)


def test_rows_are_full_and_an_epoch_is_seen_before_much_of_the_next():
    seen, tokens = [], []
    for rows in itertools.islice(loader(), 60):
        assert rows[0].tokens <= 32
        seen += rows[0]
        tokens.append(rows[0].tokens)
    assert sum(tokens) / (32 * 60) > 0.95
    first = seen[:74]
    assert len(set(first)) == 37 and max(map(first.count, set(first))) <= 3


@pytest.mark.parametrize('accumulation, workers', [(1, (0, 0)), (3, (0, 2)), (2, (2, 3)), (2, (3, 0))])
def test_resuming_anywhere_goes_on_as_if_nothing_had_been(accumulation, workers):
    straight = steps(loader(sources(), accumulation=accumulation, window=60), 20)
    inside = 0
    for stop in (1, 2, 3, 4, 5, 7, 9, 12):
        if any(workers) and stop not in (2, 5):
            continue
        first = loader(sources(), accumulation=accumulation, window=60, num_workers=workers[0])
        assert steps(first, stop) == straight[:stop]
        state = json.loads(json.dumps(first.state_dict()))
        inside += state['step'] > 0
        second = loader(sources(), accumulation=accumulation, window=60, num_workers=workers[1])
        second.load_state_dict(state)
        assert steps(second, 20 - stop) == straight[stop:]
    assert inside
    assert steps(loader(sources(), accumulation=accumulation, window=60), 10) != straight[10:]  # the state matters


def test_resuming_decodes_nothing_of_what_was_seen():
    class Counting(Processor):
        encoded = []

        def encode(self, sample, *, epoch=0):
            Counting.encoded.append(sample.id)
            return super().encode(sample, epoch=epoch)
    first = loader(sources(), Counting(), window=60)
    steps(first, 7)
    state = first.state_dict()
    assert state['step'] > 1
    Counting.encoded.clear()
    second = loader(sources(), Counting(), window=60)
    second.load_state_dict(state)
    assert sum(steps(second, 1)[0], []) == Counting.encoded


def test_ranks_share_the_steps_of_one_rank_with_as_many_rows():
    whole = steps(loader(sources(), accumulation=4), 12)
    for ranks in (2, 4):
        parts = [steps(loader(sources(), accumulation=4 // ranks, rank=rank, world_size=ranks), 12)
                 for rank in range(ranks)]
        for step, rows in enumerate(whole):
            assert sorted(sum((part[step] for part in parts), [])) == sorted(rows)


def test_rows_are_even_in_cost():
    lengths = [2 + index * 7 % 11 for index in range(120)]

    def cost(measure):
        return measure.length * (3.0 if measure.num_targets > 1 else 1.0)
    processor = Processor(**{f'file.json[{i}]': (length, 1 if i % 3 else 2) for i, length in enumerate(lengths)})

    def spread(cost_function):
        stream = loader(Dataset(120), processor, accumulation=4, window=120, row_length=64, cost=cost_function)
        worst = 0.0
        for rows in itertools.islice(stream, 6):
            row_costs = [sum(cost(processor.measure(Sample(name, [], extra=dict(length=1)))) for name in row)
                         for row in rows]
            worst = max(worst, max(row_costs) / (sum(row_costs) / len(row_costs)))
        return worst
    assert spread(cost) < 1.05 < spread(None)


def test_data_that_end_are_given_out_to_the_last_sample():
    for accumulation in (1, 3):
        data = Mixture(dict(a=dict(dataset=Dataset(), epochs=1)))
        given = steps(loader(data, accumulation=accumulation), 1000)
        assert sorted(sum(sum(given, []), [])) == sorted(f'file.json[{index}]' for index in range(37))
        assert {len(rows) for rows in given[:-1]} <= {accumulation}


def test_weights_set_while_running_hold_from_the_next_window_on_and_survive_a_resume():
    def run(workers, stop=None):
        stream = loader(sources(), num_workers=workers)
        rows = iter(stream)
        given = [next(rows) for _ in range(4)]
        stream.set_weights({'a': 0, 'b': 0})
        state = json.loads(json.dumps(stream.state_dict()))
        if stop is not None:
            stream = loader(sources(), num_workers=workers)
            stream.load_state_dict(state)
            rows = iter(stream)
        return given + [next(rows) for _ in range(40)]
    first = run(0)
    assert all(name.startswith('c') for rows in first[25:] for row in rows for name in row)
    assert run(2) == run(0, stop=4) == first
    with pytest.raises(ValueError, match="no part 'd'"):
        loader(sources()).set_weights({'d': 1})


@pytest.mark.parametrize('num_workers', [0, 1])
@pytest.mark.parametrize('data', [dict(bad=BAD), dict(broken=BAD)])
def test_the_first_bad_sample_stops_the_run(data, num_workers):
    with pytest.raises(SampleError, match=r'file.json\[\d+\]: (cannot be used|truncated)'):
        steps(loader(Dataset(**data), num_workers=num_workers), 24)


def test_skipped_samples_are_counted_once_and_written_down(tmp_path):
    stream = loader(Dataset(bad=BAD), on_error='skip', quarantine=tmp_path / 'deep' / 'quarantine.jsonl')
    seen = {name for rows in steps(stream, 60) for row in rows for name in row}
    assert seen == {f'file.json[{index}]' for index in range(37) if index not in BAD}
    lines = [json.loads(line) for line in (tmp_path / 'deep' / 'quarantine.jsonl').read_text().splitlines()]
    assert sorted(lines, key=lambda line: line['kind']) == [
        dict(sample='file.json[17]', source='file.json', kind='bad_json', reason='cannot be used'),
        dict(sample='file.json[5]', source='file.json', kind='missing_media', reason='cannot be used')]
    assert stream.errors == dict(missing_media=1, bad_json=1)


@pytest.mark.parametrize('num_workers', [0, 2])
def test_a_sample_that_breaks_when_decoded_is_replaced_by_the_same_one_every_time(num_workers):
    def run(**settings):
        stream = loader(Dataset(broken=range(0, 37, 5)), on_error='skip', num_workers=num_workers, **settings)
        return [(list(rows[0]), rows[0].tokens) for rows in itertools.islice(stream, 40)], stream
    first, stream = run()
    assert first == run()[0]
    assert stream.errors == dict(bad_image=8)
    assert not {f'file.json[{index}]' for index in range(0, 37, 5)} & {name for row, _ in first for name in row}
    assert sum(tokens for _, tokens in first) / (32 * 40) > 0.9  # the places were filled
    state = stream.state_dict()
    again = loader(Dataset(broken=range(0, 37, 5)), on_error='skip')
    again.load_state_dict(state)
    assert steps(again, 20) == steps_behind(40)


def steps_behind(count):
    return steps(loader(Dataset(broken=range(0, 37, 5)), on_error='skip'), count + 20)[count:]


def lines_of(file):
    return sorted(line for line in file.read_text().splitlines())


def test_a_row_of_nothing_but_bad_samples_is_an_empty_step_on_its_rank_and_in_the_file_of_its_rank(tmp_path):
    """Every second sample is short and breaks, so that rows of short ones are lost whole: none other is as short."""
    def run(name, **settings):
        data = Dataset(64, bad=[3], broken=range(0, 64, 2), lengths=[5, 40])
        stream = loader(data, on_error='skip', row_length=40, window=64, max_bad_share=1.0, max_bad_in_a_row=1000,
                        quarantine=tmp_path / name / 'quarantine.jsonl', **settings)
        return [[list(row) for row in rows] for rows in itertools.islice(stream, 40)], stream

    whole, one = run('one', accumulation=2)
    shares = [run('two', rank=rank, world_size=2) for rank in range(2)]
    first, second = (steps for steps, _ in shares)
    assert len(first) == len(second) == 40
    assert any(a and not b for a, b in zip(first, second)) and any(b and not a for a, b in zip(first, second))
    both = [sorted(a + b) for a, b in zip(first, second) if a or b]
    assert both == [sorted(rows) for rows in whole][:len(both)] and all(whole)  # one process gives no empty step
    assert {path.name for path in (tmp_path / 'two').iterdir()} == {'quarantine.jsonl', 'quarantine.rank1.jsonl'}
    files = [lines_of(tmp_path / 'two' / name) for name in ('quarantine.jsonl', 'quarantine.rank1.jsonl')]
    planned = [line for line in files[0] + files[1] if 'cannot be used' in line]
    assert len(planned) == 1 and planned[0] in files[0]  # all ranks plan, and one writes what planning shows
    encoded = [[json.loads(line)['sample'] for line in file if 'truncated' in line] for file in files]
    assert encoded[0] and encoded[1] and len(set(encoded[0])) == len(encoded[0])
    assert {*encoded[0], *encoded[1]} == {f'file.json[{index}]' for index in range(0, 64, 2)}
    assert {*files[0], *files[1]} == set(lines_of(tmp_path / 'one' / 'quarantine.jsonl'))
    for rank, (_, stream) in enumerate(shares):
        assert stream.errors == dict(bad_sample=1, bad_image=len(encoded[rank]))


@pytest.mark.parametrize('rank', [0, 1])
def test_a_resume_behind_an_empty_step_goes_on_with_the_next(rank):
    def make():
        return loader(Dataset(64, broken=range(0, 64, 2), lengths=[5, 40]), on_error='skip', row_length=40, window=64,
                      max_bad_share=1.0, max_bad_in_a_row=1000, rank=rank, world_size=2)
    straight = steps(make(), 24)
    empty = [number for number, rows in enumerate(straight) if not rows][0]
    first, second = make(), make()
    steps(first, empty + 1)
    second.load_state_dict(first.state_dict())
    assert steps(second, 8) == straight[empty + 1:empty + 9]


def test_a_resume_does_not_count_what_it_plans_again(tmp_path):
    file = tmp_path / 'quarantine.jsonl'
    settings = dict(on_error='skip', quarantine=file, shuffle=False, window=37)
    first = loader(Dataset(bad=BAD), **settings)
    steps(first, 2)
    second = loader(Dataset(bad=BAD), **settings)
    second.load_state_dict(first.state_dict())
    steps(second, 1)
    assert second.errors == first.errors == dict(missing_media=1, bad_json=1)
    assert len(file.read_text().splitlines()) == 2


def test_a_resume_that_meets_other_samples_is_refused():
    first = loader(Dataset(), on_error='skip', window=37)
    steps(first, 2)
    second = loader(Dataset(bad=BAD), on_error='skip', window=37)
    second.load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match='resume: .*cannot be read now .*file.json'):
        steps(second, 1)


def test_a_wholly_bad_source_ends_the_run_with_its_name():
    data = Mixture(dict(good=dict(dataset=Dataset(2000)), shard=dict(
        dataset=Dataset(2000, bad=range(2000), name='shard-7.tar'), weight=0.001)))
    with pytest.raises(ValueError, match=r"8 samples of 'shard' in a row.*max_bad_in_a_row.*shard-7.tar\["):
        steps(loader(data, on_error='skip', max_bad_in_a_row=8, max_bad_share=1.0), 10_000)


def test_a_few_bad_samples_pass_and_too_large_a_share_ends_the_run():
    few = loader(Dataset(4000, bad=range(0, 4000, 200)), on_error='skip')  # 0.5 %
    steps(few, 700)
    assert few.errors and few.errors['bad_sample'] <= 20
    with pytest.raises(ValueError, match=r'more than 1.0% .loader.max_bad_share.*file.json'):
        steps(loader(Dataset(4000, bad=range(0, 4000, 40)), on_error='skip'), 700)


@pytest.mark.parametrize('num_workers', [0, 2])
@pytest.mark.parametrize('kind', ['bad', 'broken'])
def test_bad_samples_in_a_row_are_counted_by_source_in_workers_too(num_workers, kind):
    """Good samples of a source between its bad ones end the row, wherever they were found."""
    scattered = loader(Dataset(400, **{kind: range(0, 400, 20)}), on_error='skip', num_workers=num_workers,
                       max_bad_in_a_row=6, max_bad_share=1.0)
    steps(scattered, 90)
    assert sum(scattered.errors.values()) > 12


def test_no_usable_sample_at_all_is_an_error_and_not_an_endless_loop():
    with pytest.raises(ValueError, match='no usable sample in a whole epoch'):
        steps(loader(Dataset(9, bad=range(9)), on_error='skip', max_bad_share=1.0), 1)


@pytest.mark.parametrize('measure, kind, message', [
    ((33, 1), 'too_long', '33 tokens do not fit a row of 32 .loader.row_length'),
    ((9, 0), 'no_target', 'no token is a target'), ((1, 1), 'no_target', 'no token is a target')])
def test_samples_that_cannot_be_trained_on(measure, kind, message):
    processor = Processor(**{'file.json[9]': measure})
    with pytest.raises(SampleError, match=message) as caught:
        steps(loader(processor=processor), 24)
    assert (caught.value.sample_id, caught.value.kind) == ('file.json[9]', kind)
    skipping = loader(processor=processor, on_error='skip')
    steps(skipping, 20)
    assert skipping.errors == {kind: 1}


@pytest.mark.parametrize('oversize, lengths', [('drop', []), ('own_row', [40])])
def test_samples_longer_than_a_row_go_as_their_source_says(oversize, lengths):
    data = Mixture(dict(a=dict(dataset=Dataset(), oversize=oversize)))
    found = [rows[0] for rows in itertools.islice(loader(data, Processor(**{'file.json[9]': (40, 1)})), 40)
             if 'file.json[9]' in rows[0]]
    assert sorted({row.tokens for row in found}) == lengths and all(len(row) == 1 for row in found)


def test_a_row_may_be_filled_to_the_last_token():
    assert steps(loader(Dataset(lengths=[32])), 1)


@pytest.mark.parametrize('change, word', [
    (dict(row_length=33), 'row_length was 32 .* 33 now'), (dict(window=9), 'window'), (dict(seed=4), 'seed'),
    (dict(dataset=Dataset(38)), "sources was .*'samples': 37"), (dict(shuffle=False), 'sources.*sequential'),
    (dict(accumulation=2), 'rows_per_step')])
def test_a_resume_with_other_data_or_other_packing_is_refused(change, word):
    with pytest.raises(ValueError, match=f'resume: .*{word}'):
        loader(**change).load_state_dict(loader().state_dict())


@pytest.mark.parametrize('settings, word', [
    (dict(row_length=0), 'loader.row_length'), (dict(row_length=2.5), 'loader.row_length'),
    (dict(num_workers=-1), 'loader.num_workers'), (dict(window='8'), 'loader.window'),
    (dict(on_error='ignore'), "'raise' or 'skip'.*'ignore'"), (dict(dataset=Dataset(0)), 'no samples'),
    (dict(max_bad_share=2), 'loader.max_bad_share'), (dict(accumulation=0), 'accumulation')])
def test_wrong_settings_are_named(settings, word):
    with pytest.raises(ValueError, match=word):
        loader(**settings)


def test_with_workers_a_bad_sample_keeps_its_source_and_good_ones_between_bad_ones_count(tmp_path):
    file = tmp_path / 'quarantine.jsonl'
    stream = loader(Dataset(4000, broken=range(0, 4000, 200)), on_error='skip', max_bad_in_a_row=8, num_workers=2,
                    quarantine=file)
    steps(stream, 700)
    assert stream.errors['bad_image'] > 8
    assert {json.loads(line)['source'] for line in file.read_text().splitlines()} == {'file.json'}


def test_long_samples_in_rows_of_their_own_leave_no_step_short():
    data = Mixture(dict(a=dict(dataset=Dataset(lengths=[5, 6, 70]), oversize='own_row')))
    for rows in itertools.islice(loader(data, accumulation=4, window=3), 12):
        assert len(rows) == 4


def test_samples_left_out_for_their_length_are_counted():
    data = Mixture(dict(a=dict(dataset=Dataset(lengths=[5, 6, 70]), oversize='drop', epochs=1)))
    stream = loader(data)
    steps(stream, 100)
    assert stream.left_out == 12 and stream.state_dict()['left_out'] == 12 and not stream.errors


def test_a_mixture_is_not_left_unshuffled_without_a_word():
    with pytest.raises(ValueError, match="loader.shuffle.*order='sequential'"):
        loader(sources(), shuffle=False)


def test_a_resume_with_other_weights_is_refused():
    other = Mixture({name: dict(dataset=source.dataset, weight=1.0) for name, source in zip(
        'abc', sources().sources)}, by='token')
    with pytest.raises(ValueError, match='resume: shares was'):
        loader(other).load_state_dict(loader(sources()).state_dict())


@pytest.mark.parametrize('num_workers', [0, 1])
def test_good_samples_of_one_window_stand_between_its_bad_ones(num_workers):
    data = Dataset(4000, bad=range(0, 4000, 200))  # 0.5 %: twenty bad ones in one window, none next to another
    stream = loader(data, on_error='skip', max_bad_in_a_row=8, window=4000, num_workers=num_workers)
    steps(stream, 3)
    assert stream.errors == dict(bad_sample=20)
