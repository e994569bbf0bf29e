"""The tool: a folder that a config can name, one line for a mistake."""
import json
import logging

import pytest
from PIL import Image

from qvlkit.cli import pack_lmdb
from qvlkit.config import load_config, save_config
from qvlkit.data.datasets.conversation import ConversationDataset
from qvlkit.data.tokenizers import StandInTokenizer
from qvlkit.models.builder import build_model
from qvlkit.train.recipe import build_processor, build_tokenizer

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


@pytest.fixture
def config(source, tmp_path):
    """A config whose tokenizer is a folder's, and one that is trained on the data."""
    StandInTokenizer(400).save(tmp_path / 'tokenizer')
    data = ['stages.sft.data.type=ConversationDataset', f'stages.sft.data.path={source}']
    for name, tokenizer in (('folder', ['tokenizer.type=HFTokenizer', f'tokenizer.path={tmp_path / "tokenizer"}']),
                            ('trained', ['tokenizer.vocab_size=300'])):
        loaded = load_config('qwen25vl_tiny', [*data, *tokenizer])
        loaded['processor']['add_vision_id'] = name == 'trained'
        save_config(loaded, tmp_path / f'{name}.json')
    return lambda name: str(tmp_path / f'{name}.json')


def test_tokens_are_counted_for_a_tokenizer_or_a_config(source, tmp_path, config):
    arguments = dict(tokenizer=['--tokenizer', str(tmp_path / 'tokenizer')], folder=['--config', config('folder')],
                     trained=['--config', config('trained'), '--stage', 'sft'], none=[])
    sizes = {}
    for name, given in arguments.items():
        assert pack_lmdb.main([str(source), str(tmp_path / 'out' / name), *given]) == 0
        sizes[name] = ConversationDataset(str(tmp_path / 'out' / name)).sizes(0)
    assert sizes['none'] is None and sizes['tokenizer'] == sizes['folder'] != sizes['trained']
    for name in ('folder', 'trained'):  # what a stage of this config trains with can use them
        stage = load_config(config(name))
        dataset = ConversationDataset(str(source))
        processor = build_processor(build_model(stage['model'], vocab_size=400, device='meta'),
                                    build_tokenizer(stage['tokenizer'], dataset), stage['processor'])
        assert processor.measure_sizes(sizes[name], 's') == processor.measure(dataset[0])


@pytest.mark.parametrize('arguments, words', [
    (['--tokenizer', 'nowhere'], ['tokenizer.path', 'nowhere']), (['--stage', 'sft'], ['--config']),
    (['--config', 'qwen25vl_tiny', '--stage', 'sf'], ["'sf'", "'sft'"])])
def test_mistakes_in_what_is_counted_for(source, tmp_path, capsys, arguments, words):
    assert pack_lmdb.main([str(source), str(tmp_path / 'out'), *arguments]) == 2
    told = capsys.readouterr().err
    assert all(word in told for word in words), told
