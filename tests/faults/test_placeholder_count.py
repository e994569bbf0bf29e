"""More placeholders than media, or fewer: an error that names the sample, in every format; no medium is misplaced."""
import json

import pytest
from PIL import Image

from qvlkit.data.datasets.conversation import ConversationDataset
from qvlkit.structures import SampleError


def chat(text, answer='A'):
    return [{'role': 'user', 'content': text}, {'role': 'assistant', 'content': answer}]


def parts(count):
    return [{'role': 'user', 'content': [*[{'type': 'image'}] * count, {'type': 'text', 'text': 'Q'}]}]


RECORDS = {
    'llava': lambda tags, files: {'conversations': [{'from': 'human', 'value': tags}, {'from': 'gpt', 'value': 'A'}],
                                  'image': files},
    'sharegpt': lambda tags, files: {'messages': chat(tags), 'images': files},
    'preference': lambda tags, files: {'messages': chat(tags)[:1], 'images': files, 'chosen': chat('')[1],
                                       'rejected': chat('', 'B')[1]},
    'preference in parts': lambda tags, files: {'prompt': parts(tags.count('<')), 'images': files, 'chosen': 'A',
                                                'rejected': 'B'},
    'alpaca': lambda tags, files: {'instruction': tags, 'output': 'A', 'images': files},
    'document': lambda tags, files: {'text': tags + 'text', 'images': files}}


@pytest.mark.parametrize('form', RECORDS)
@pytest.mark.parametrize('tags, files', [(1, 2), (2, 1), (0, 1), (1, 0), (3, 2)])
def test_a_wrong_count_names_the_sample(tmp_path, form, tags, files):
    Image.new('RGB', (28, 28)).save(tmp_path / 'a.png')
    rows = [RECORDS[form]('<image>' * count, ['a.png'] * number) for count, number in ((1, 1), (tags, files))]
    path = tmp_path / 'rows.json'
    path.write_text(json.dumps(rows))
    data = ConversationDataset(str(path))
    assert len(data[0].media()) == 1  # the control
    with pytest.raises(SampleError) as caught:
        data[1]
    assert str(caught.value).startswith('rows.json[1]: ') and caught.value.kind in ('tag_count', 'wrong_type')
    assert 'image' in caught.value.reason
