"""Which store a path leads to, and what is said where there is none."""
import re
import sys

import pytest

from qvlkit.data.stores.interface import StoreError
from qvlkit.data.stores.opening import expand, find_store, open_store
from qvlkit.registry import STORES


def test_every_store_is_registered():
    assert STORES.names() == ['HuggingFaceStore', 'JSONStore', 'LMDBStore', 'ParquetStore', 'TarStore']


def test_the_suffix_or_the_files_of_a_folder_decide(tmp_path):
    for name in ('lmdb/data.mdb', 'saved/state.json'):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    for path, store in (('x.json', 'JSONStore'), ('x.jsonl', 'JSONStore'), ('x.parquet', 'ParquetStore'),
                        ('x-*.parquet', 'ParquetStore'), ('x-*.tar', 'TarStore'), (['a.tar', 'b.tar'], 'TarStore'),
                        (tmp_path / 'lmdb', 'LMDBStore'), (tmp_path / 'saved', 'HuggingFaceStore')):
        assert find_store(path) == store


@pytest.mark.parametrize('path, words', [
    ('x.jsonl.gz', ['compressed', '.gz', 'decompress']), ('x.tar.gz', ['compressed']), ('x.zip', ['compressed']),
    ('none.csv', ["'none.csv' does not exist"]), ('x.jsnol', ["'x.jsnol' does not exist"]),
    ([], ['expected a path']), (['a.tar', 'b.parquet'], ['.parquet files or .tar files only']),
    (['a.json', 'b.json'], ['.tar files only']), (7, ['expected a path'])])
def test_what_no_store_reads(path, words):
    with pytest.raises(ValueError, match='.*'.join(map(re.escape, words))):
        open_store(path)


def test_near_names(folder):
    (folder / 'x.jsnol').touch()
    with pytest.raises(ValueError, match=r"no store reads .*did you mean '\.json"):
        open_store(folder / 'x.jsnol')
    with pytest.raises(ValueError, match="did you mean 'JSONStore'"):
        open_store(folder / 'chat.json', store='JsonStor')
    with pytest.raises(ValueError, match="store.media_root: LMDBStore has no argument 'media_root'"):
        open_store(folder, store='LMDBStore', media_root='x')
    assert len(open_store(folder / 'chat.json', store='JSONStore', media_root=folder)) == 4


def test_a_folder_is_told_what_to_name(tmp_path):
    with pytest.raises(ValueError, match='is a folder that no store reads'):
        open_store(tmp_path)
    (tmp_path / 'a.parquet').touch()
    with pytest.raises(ValueError, match=r'name its files: .*\*\.parquet'):
        open_store(tmp_path)
    (tmp_path / 'train').mkdir()
    (tmp_path / 'train' / 'state.json').touch()
    with pytest.raises(ValueError, match='several splits; name one of them: .*train'):
        open_store(tmp_path)


def test_expand(tmp_path):
    for name in ('s-1.tar', 's-0.tar', 'x.txt'):
        (tmp_path / name).touch()
    assert [file.name for file in expand(tmp_path / 's-*.tar', '.tar')] == ['s-0.tar', 's-1.tar']
    assert [file.name for file in expand([tmp_path / 's-1.tar'], '.tar')] == ['s-1.tar']
    for path, reason in (('t-*.tar', 'no file matches'), ('s-{0..1}.tar', 'braces are not expanded'),
                         ('no.tar', 'does not exist'), ('x.txt', 'expected .tar files')):
        with pytest.raises(ValueError, match=reason):
            expand(tmp_path / path, '.tar')


@pytest.mark.parametrize('library, name', [('pyarrow', 'x.parquet'), ('lmdb', 'packed'), ('datasets', 'saved')])
def test_a_library_that_is_not_installed_is_named(tmp_path, monkeypatch, library, name):
    (tmp_path / 'x.parquet').touch()
    for file in ('packed/data.mdb', 'saved/state.json'):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).write_text('{"_data_files": []}')
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ValueError, match=rf"needs the package '{library}'.*pip install 'qvlkit\[stores\]'"):
        open_store(tmp_path / name)


def test_errors_travel():
    import pickle
    error = pickle.loads(pickle.dumps(StoreError('x', 'is cut', 'truncated')))
    assert (error.path, error.reason, error.kind, str(error)) == ('x', 'is cut', 'truncated', 'x: is cut')
