import copy

import pytest

from qvlkit.models.builder import stage_model
from qvlkit.planning.memory import model_memory
from qvlkit.planning.readiness import absent_paths, check_ready

STAGE = dict(trainer=dict(type='SFTTrainer'), data=dict(type='ConversationDataset', path='data/none.json'),
             parts=dict(vision_encoder=dict(trainable=False)), optimizer=dict(type='AdamW', lr=1e-5))


@pytest.fixture
def config(small):
    model = copy.deepcopy(small.config)
    model['language_model']['vocab_size'] = 512
    return dict(model=model, tokenizer=dict(type='HFTokenizer', path='nowhere'), run=['sft'],
                stages=dict(sft=copy.deepcopy(STAGE)))


def test_every_reason_in_one_sentence(config):
    with pytest.raises(ValueError) as error:
        check_ready(config, device_bytes=1000)
    text = str(error.value)
    assert "tokenizer.path: no such folder 'nowhere'" in text
    assert "stages.sft.data.path: no such file 'data/none.json'" in text
    assert 'model: ' in text and 'parameters need' in text and '1,000 B' in text
    assert '\n' not in text


def test_ready(config, tmp_path):
    (tmp_path / 'data.json').write_text('[]')
    config['tokenizer']['path'] = str(tmp_path)
    config['stages']['sft']['data']['path'] = str(tmp_path / 'data.json')
    check_ready(config)
    with pytest.raises(ValueError, match='^model: .*parameters need'):
        check_ready(config, device_bytes=10_000)


def test_frozen_parts_need_less(config, tmp_path):
    config['tokenizer'], config['stages']['sft']['data'] = dict(type='ByteLevelBPE', vocab_size=512), {}
    limit = 20 * 2**20
    config['stages']['sft']['parts'] = dict(vision_encoder=dict(trainable=False), merger=dict(trainable=False))
    check_ready(config, device_bytes=limit)
    config['stages']['sft']['parts'] = {}
    with pytest.raises(ValueError, match='model: '):
        check_ready(config, device_bytes=limit)


def test_paths_inside_a_mixture_are_found_by_their_key(config):
    part = dict(dataset=dict(type='ConversationDataset', path='gone.jsonl', media_root='gone'), weight=1.0)
    config['stages']['sft']['data'] = dict(type='Mixture', parts=dict(chat=part))
    assert [str(path) for path in absent_paths(config, ['sft'])] == [
        "tokenizer.path: no such folder 'nowhere'",
        "stages.sft.data.parts.chat.dataset.path: no such file 'gone.jsonl'",
        "stages.sft.data.parts.chat.dataset.media_root: no such folder 'gone'"]


def test_a_stage_that_does_not_run_is_not_asked(config):
    config['stages']['other'] = copy.deepcopy(STAGE)
    with pytest.raises(ValueError) as error:
        check_ready(config, ['other'], device_bytes=2**40)
    assert 'stages.sft' not in str(error.value) and 'stages.other.data.path' in str(error.value)


def test_a_model_that_a_stage_replaces_is_named_there(config):
    config['tokenizer'] = dict(type='ByteLevelBPE', vocab_size=512)
    config['stages']['sft'] |= dict(data={}, model=copy.deepcopy(config['model']))
    with pytest.raises(ValueError, match='^stages.sft.model: '):
        check_ready(config, device_bytes=1)


def test_first_weights_that_are_not_there_are_told_before_the_run(config):
    config['tokenizer'] = dict(type='ByteLevelBPE', vocab_size=512)
    config['stages']['sft'] |= dict(data={}, init=dict(language_model='gone', merger=None))
    config['stages']['next'] = {**config['stages']['sft'], 'init': dict(merger='sft')}
    with pytest.raises(ValueError, match=r"^stages\.sft\.init\.language_model: no such stage \(sft, next\) or folder "
                                         "'gone'; --dry-run"):
        check_ready(config, ['sft', 'next'])
    check_ready(config, ['sft', 'next'], starting=['next'])  # a resume needs them no more


@pytest.mark.parametrize('changes, word', [
    (dict(trainer=dict(type='DPOTrainer')), "the reference's copy"), (dict(ema=dict(decay=0.9)), 'the moving average')])
def test_copies_count(config, changes, word):
    config['tokenizer'], config['stages']['sft']['data'] = dict(type='ByteLevelBPE', vocab_size=512), {}
    model = stage_model(config, config['stages']['sft'], vocab_size=512, device='meta')
    plain = model_memory(model, dict(vision_encoder=False)).total
    check_ready(config, device_bytes=plain)
    config['stages']['sft'] |= changes
    with pytest.raises(ValueError, match=f'optimizer states, {word}, but'):
        check_ready(config, device_bytes=plain)
    if 'trainer' in changes:
        config['stages']['sft']['trainer']['reference'] = 'stored'
        check_ready(config, device_bytes=plain)
