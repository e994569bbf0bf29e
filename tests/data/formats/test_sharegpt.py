"""ShareGPT's records and LLaMA-Factory's dataset_info.json."""
import json

import pytest

from qvlkit.data.formats.sharegpt import read, read_dataset_info
from qvlkit.structures import Media, Turn


def info(tmp_path, entry):
    path = tmp_path / 'dataset_info.json'
    path.write_text(json.dumps({'mine': entry, 'other': {}}))
    return path


def test_messages_with_images():
    record = {'messages': [{'role': 'user', 'content': '<image>Q'}, {'role': 'assistant', 'content': 'A'}],
              'images': ['a.jpg']}
    sample = read(record, sample_id='a.json[0]', source='a', resolve=lambda path: path)
    assert sample.turns == [Turn('user', [Media('image', 'a.jpg'), 'Q']), Turn('assistant', ['A'])]


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


@pytest.mark.parametrize('entry, dataset, reason', [
    ({}, 'mien', "'mien' is not in .*, did you mean 'mine'"), ({}, None, 'it has: mine, other'),
    ({'hf_hub_url': 'x/y'}, 'mine', 'mine.file_name: expected a local'),
    ({'file_name': 'x.json'}, 'mine', "mine.formatting: expected 'sharegpt' or 'openai', got 'alpaca'"),
    ({'file_name': 'x.json', 'formatting': 'sharegpt', 'ranking': True}, 'mine', 'preference pairs'),
    ({'file_name': 'x.json', 'formatting': 'sharegpt', 'tags': {'user_tga': 'x'}}, 'mine', "did you mean 'user_tag'")])
def test_errors(tmp_path, entry, dataset, reason):
    with pytest.raises(ValueError, match=reason):
        read_dataset_info(info(tmp_path, entry), dataset)
