"""LLaMA-Factory's dataset_info.json."""
import json

import pytest

from qvlkit.data.datasets.conversation import ConversationDataset
from qvlkit.data.formats.dataset_info import read_dataset_info
from qvlkit.data.formats.sharegpt import read
from qvlkit.structures import Media, Turn


def info(tmp_path, entry):
    path = tmp_path / 'dataset_info.json'
    path.write_text(json.dumps({'mine': entry, 'other': {}}))
    return path


def test_names_of_an_entry_are_used(tmp_path):
    path = info(tmp_path, {'file_name': 'x.json', 'formatting': 'sharegpt',
                           'columns': {'messages': 'chat', 'images': 'pics'},
                           'tags': {'role_tag': 'who', 'content_tag': 'says', 'user_tag': 'me',
                                    'assistant_tag': 'you'}})
    file_name, names, form = read_dataset_info(path, 'mine')
    assert (file_name, form) == ('x.json', 'sharegpt')
    record = {'chat': [{'who': 'me', 'says': '<image>'}, {'who': 'you', 'says': 'A'}], 'pics': ['p']}
    sample = read(record, sample_id='x', source='x', resolve=lambda path: path, names=names)
    assert sample.turns == [Turn('user', [Media('image', 'p')]), Turn('assistant', ['A'])]


def test_silent_entries_take_llama_factory_s_defaults(tmp_path):
    names = read_dataset_info(info(tmp_path, {'file_name': 'x.json', 'formatting': 'sharegpt'}), 'mine')[1]
    assert (names.messages, names.role_tag, names.user_tag) == ('conversations', 'from', 'human')
    names, form = read_dataset_info(info(tmp_path, {'file_name': 'x.json'}), 'mine')[1:]
    assert (names.prompt, names.query, names.response, form) == ('instruction', 'input', 'output', 'alpaca')


@pytest.mark.parametrize('entry, record', [
    ({'columns': {'prompt': 'q', 'query': 'more', 'response': 'a'}}, {'q': 'Q', 'more': '', 'a': 'A'}),
    ({'ranking': True, 'columns': {'prompt': 'q', 'chosen': 'good', 'rejected': 'bad'}},
     {'q': 'Q', 'good': 'A', 'bad': 'B'}),
    ({'ranking': True, 'formatting': 'sharegpt', 'columns': {'messages': 'chat', 'chosen': 'good', 'rejected': 'bad'}},
     {'chat': [{'from': 'human', 'value': 'Q'}], 'good': {'from': 'gpt', 'value': 'A'},
      'bad': {'from': 'gpt', 'value': 'B'}})])
def test_instructions_and_pairs_are_read_under_their_names(tmp_path, entry, record):
    path = info(tmp_path, {'file_name': 'x.json', **entry})
    (tmp_path / 'x.json').write_text(json.dumps([record]))
    sample = ConversationDataset(str(path), dataset='mine')[0]
    assert sample.turns == [Turn('user', ['Q']), Turn('assistant', ['A'])]
    assert sample.rejected == ([Turn('assistant', ['B'])] if entry.get('ranking') else [])


@pytest.mark.parametrize('entry, dataset, reason', [
    ({}, 'mien', "'mien' is not in .*, did you mean 'mine'"), ({}, None, 'it has: mine, other'),
    ({'hf_hub_url': 'x/y'}, 'mine', 'mine.file_name: expected a local'),
    ({'file_name': 'x.json', 'formatting': 'chatml'}, 'mine',
     "mine.formatting: expected 'alpaca', 'sharegpt' or 'openai', got 'chatml'"),
    ({'file_name': 'x.json', 'ranking': 'yes'}, 'mine', 'mine.ranking: expected true or false'),
    ({'file_name': 'x.json', 'columns': {'chosen': 'c'}}, 'mine', 'mine.columns.chosen: unknown'),
    ({'file_name': 'x.json', 'columns': {'kto_tag': 'c'}}, 'mine', 'mine.columns.kto_tag: unknown'),
    ({'file_name': 'x.json', 'formatting': 'sharegpt', 'tags': {'user_tga': 'x'}}, 'mine', "did you mean 'user_tag'")])
def test_errors(tmp_path, entry, dataset, reason):
    with pytest.raises(ValueError, match=reason):
        read_dataset_info(info(tmp_path, entry), dataset)
