"""The tool: a folder that a config can name, one line for a mistake."""
import json
import logging

import pytest
from PIL import Image

from qvlkit.cli import pack_lmdb
from qvlkit.data.datasets.conversation import ConversationDataset

pytest.importorskip('lmdb')


@pytest.fixture(autouse=True)
def fresh_log():
    yield
    logging.getLogger('qvlkit').handlers.clear()


@pytest.fixture
def source(tmp_path):
    Image.new('RGB', (8, 8)).save(tmp_path / 'a.png')
    turns = [{'from': 'human', 'value': '<image>Q'}, {'from': 'gpt', 'value': 'A'}]
    records = [{'image': name, 'conversations': turns} for name in ('a.png', 'b.png')]
    (tmp_path / 'x.json').write_text(json.dumps(records))
    return tmp_path / 'x.json'


def test_packs_and_tells(source, tmp_path, capsys):
    assert pack_lmdb.main([str(source), str(tmp_path / 'out')]) == 0
    printed = capsys.readouterr().out
    assert '1 records, 1 media' in printed and 'left out 1 records' in printed
    assert len(ConversationDataset(str(tmp_path / 'out'))) == 1
    assert pack_lmdb.main([str(source), str(tmp_path / 'out')]) == 0  # once more is no mistake


@pytest.mark.parametrize('arguments, words', [
    (['none.json', 'out'], ['none.json', 'does not exist']), (['x.json.gz', 'out'], ['compressed']),
    (['x.json', 'out', '--limit', '1', '--store', 'JSNStore'], ["'JSONStore'"]),
    (['x.json', '.'], ['is not empty'])])
def test_mistakes_take_one_line(source, tmp_path, capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert pack_lmdb.main(arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith('error: ')
    assert all(word in lines[0] for word in words), lines
