import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from qvlkit.convert.weight_files import WeightFiles, parse_size, write_weights


def write(folder, tensors, **options):
    folder.mkdir(exist_ok=True)
    write_weights(folder, {name: tensor.nbytes for name, tensor in tensors.items()}, tensors.__getitem__, **options)
    return folder


@pytest.fixture
def tensors():
    return {name: torch.randn(4, 8).to(dtype) for name, dtype in
            (('a', torch.float32), ('b', torch.bfloat16), ('c', torch.float32), ('d', torch.float16))}


def test_shards_stay_below_their_size_and_read_back(tmp_path, tensors):
    write(tmp_path, tensors, max_shard_size=200)
    index = json.loads((tmp_path / 'model.safetensors.index.json').read_text())
    assert index['weight_map'] == {'a': 'model-00001-of-00002.safetensors', 'b': 'model-00001-of-00002.safetensors',
                                   'c': 'model-00002-of-00002.safetensors', 'd': 'model-00002-of-00002.safetensors'}
    assert index['metadata']['total_size'] == 128 + 64 + 128 + 64
    files = WeightFiles(tmp_path)
    for name, tensor in tensors.items():
        assert files.shape(name) == (4, 8) and files.dtype(name) == tensor.dtype
        assert torch.equal(files.read(name), tensor)


def test_one_file_has_no_index(tmp_path, tensors):
    write(tmp_path, tensors, max_shard_size='5GB')
    assert [file.name for file in tmp_path.iterdir()] == ['model.safetensors']
    assert sorted(WeightFiles(tmp_path).names()) == sorted(tensors)


def test_a_tensor_larger_than_a_shard_has_its_own(tmp_path, tensors):
    write(tmp_path, tensors, max_shard_size=1)
    assert len(list(tmp_path.glob('*.safetensors'))) == 4


def test_missing_shards_are_named(tmp_path, tensors):
    write(tmp_path, tensors, max_shard_size=100)
    (tmp_path / 'model-00002-of-00004.safetensors').unlink()
    (tmp_path / 'model-00004-of-00004.safetensors').unlink()
    with pytest.raises(FileNotFoundError, match='missing model-00002-of-00004.safetensors, model-00004-of-00004'):
        WeightFiles(tmp_path)


@pytest.mark.parametrize('cut', [1, 100, 10_000])
def test_a_cut_off_file_is_named(tmp_path, tensors, cut):
    write(tmp_path, tensors)
    content = (tmp_path / 'model.safetensors').read_bytes()
    (tmp_path / 'model.safetensors').write_bytes(content[:-cut])
    with pytest.raises(ValueError, match='model.safetensors: not a whole safetensors file'):
        WeightFiles(tmp_path)


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), 'w')


@pytest.mark.parametrize('name', ['pytorch_model.bin', 'model.pt', 'model.pth'])
def test_a_hostile_pickle_is_refused_and_does_not_run(tmp_path, name):
    marker = tmp_path / 'marker'
    (tmp_path / name).write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises(ValueError, match=f'{name}: weights in a pickle are refused.*no flag allows it'):
        WeightFiles(tmp_path)
    (tmp_path / name).rename(tmp_path / 'model.safetensors')
    with pytest.raises(ValueError, match='not a whole safetensors file'):
        WeightFiles(tmp_path)
    assert not marker.exists()
    pickle.loads((tmp_path / 'model.safetensors').read_bytes()).close()  # the payload does work
    assert marker.exists()


@pytest.mark.parametrize('content, message', [
    ('{', 'not readable as JSON'), ('[]', 'expected a table'), ('{"weight_map": {}}', "expected a table 'weight_map'"),
    ('{"weight_map": {"a": "../a.safetensors"}}', 'not the name of a .safetensors file in the same folder'),
    ('{"weight_map": {"a": "a.bin"}}', 'not the name of a .safetensors file in the same folder'),
    ('{"weight_map": {"a": "x.safetensors", "b": "x.safetensors"}}',
     "'b' lies in x.safetensors, which does not hold it")])
def test_an_index_that_does_not_fit_is_refused(tmp_path, content, message):
    save_file({'a': torch.zeros(1)}, tmp_path / 'x.safetensors')
    (tmp_path / 'model.safetensors.index.json').write_text(content)
    with pytest.raises(ValueError, match=message):
        WeightFiles(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path, tensors):
    write(tmp_path, tensors, max_shard_size=200)
    second = tmp_path / 'model-00002-of-00002.safetensors'
    save_file({**load_file(second), 'a': tensors['a']}, second)
    with pytest.raises(ValueError, match="'a' lies in model-00001-of-00002.safetensors too"):
        WeightFiles(tmp_path)


def test_no_weights_at_all(tmp_path):
    with pytest.raises(FileNotFoundError, match='no weights; expected model.safetensors'):
        WeightFiles(tmp_path)
    with pytest.raises(FileNotFoundError, match='no such folder'):
        WeightFiles(tmp_path / 'absent')


def test_whole_numbers_are_no_weights(tmp_path):
    save_file({'a': torch.zeros(2, dtype=torch.int8)}, tmp_path / 'model.safetensors')
    with pytest.raises(ValueError, match="'a' is stored as I8"):
        WeightFiles(tmp_path).dtype('a')


def test_sizes():
    assert parse_size('5GB') == 5 * 10**9 and parse_size('1.5 mb') == 1_500_000 and parse_size(300) == 300
    for wrong in ('5TB', '', 'GB', 0, -1):
        with pytest.raises(ValueError, match='max_shard_size'):
            parse_size(wrong)
