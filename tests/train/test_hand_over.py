"""Where a stage's weights come from: the stage before, other stages, folders, nowhere; and what is refused."""
import json
import logging
import re

import pytest
import torch

from qvlkit.convert.huggingface import save_pretrained
from qvlkit.data.tokenizers import HFTokenizer
from qvlkit.train.hand_over import first_weights
from qvlkit.train.recipe import build_stage, run_recipe
from qvlkit.train.summary import read_summary

PARTS = ('vision_encoder', 'merger', 'language_model')


@pytest.fixture
def two(small):
    """A config of two stages, `sft` and then `more`, with overrides of the small config."""
    def make(*overrides, **more):
        config = small('stages.sft.max_steps=2', *overrides)
        config['stages']['more'] = {**json.loads(json.dumps(config['stages']['sft'])), **more}
        config['run'] = ['sft', 'more']
        return config
    return make


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def same_parts(first, second):
    """Parts whose tensors are all equal in two state dicts."""
    return {part for part in PARTS if all(
        torch.equal(value, second[name]) for name, value in first.items() if name.startswith(f'{part}.'))}


def started(config, folder, name='more'):
    sources = first_weights(config, name, folder)
    return weights(build_stage(config, name, folder / 'probe', load_from=sources))


def test_without_init_all_parts_come_from_the_stage_before(two, tmp_path):
    config = two()
    run_recipe(config, stages=['sft'], work_dir=tmp_path)
    fresh = weights(build_stage(config, 'more', tmp_path / 'fresh'))
    handed = started(config, tmp_path)
    assert first_weights(config, 'sft', tmp_path) == {}
    assert not same_parts(fresh, handed)
    checkpoint = weights(build_stage(config, 'sft', tmp_path / 'x', load_from=str(tmp_path / 'sft')))
    assert same_parts(handed, checkpoint) == set(PARTS)


def test_init_names_the_source_of_each_part(two, tmp_path):
    config = two(init=dict(vision_encoder='sft', language_model=None))
    run_recipe(config, stages=['sft'], work_dir=tmp_path)
    fresh = weights(build_stage(config, 'more', tmp_path / 'fresh'))
    checkpoint = weights(build_stage(config, 'sft', tmp_path / 'x', load_from=str(tmp_path / 'sft')))
    handed = started(config, tmp_path)
    assert same_parts(handed, checkpoint) == {'vision_encoder'}
    assert same_parts(handed, fresh) == {'merger', 'language_model'}


def test_a_part_comes_from_a_hugging_face_folder(two, small, tmp_path):
    released = build_stage(small('seed=5'), 'sft', tmp_path / 'x')
    save_pretrained(released.model, tmp_path / 'released', processor=released.processor)
    config = two(init=dict(language_model=str(tmp_path / 'released')))
    assert same_parts(started(config, tmp_path), weights(released)) == {'language_model'}


def test_a_stage_that_run_leaves_out_is_skipped_and_told(two, tmp_path, caplog):
    config = two(init=dict(vision_encoder='sft'))
    config['run'] = ['more']
    with caplog.at_level(logging.WARNING, 'qvlkit'):
        assert first_weights(config, 'more', tmp_path) == {}
    assert 'stages.more.init.vision_encoder: stage sft is not in run' in caplog.text


@pytest.mark.parametrize('init, message', [
    (None, "stages.more starts from stage 'sft', which has no checkpoint"),
    (dict(merger='sft'), "stages.more.init.merger: its weights come from stage 'sft', which has no checkpoint"),
    (dict(merger='gone'), 'stages.more.init.merger: no such stage (contrastive, ')], ids=str)
def test_a_source_that_is_not_there_is_an_error(two, tmp_path, init, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        run_recipe(two(init=init), stages=['more'], work_dir=tmp_path)


def test_a_finished_stage_is_not_run_again_and_changed_settings_are_told(two, tmp_path, caplog):
    config = two()
    run_recipe(config, stages=['sft'], work_dir=tmp_path)
    before = (tmp_path / 'sft' / 'log.jsonl').stat().st_mtime_ns
    summary = read_summary(tmp_path / 'sft')
    assert summary['steps'] == 2 and summary['tokens'] > 100 and summary['trainable'] == summary['parameters']
    config['stages']['sft']['optimizer']['lr'] = 0.5
    with caplog.at_level(logging.INFO, 'qvlkit'):
        run_recipe(config, work_dir=tmp_path, resume=True)
    assert 'stage sft was run with other settings than the config has now: optimizer.lr: 0.002 -> 0.5' in caplog.text
    assert (tmp_path / 'sft' / 'log.jsonl').stat().st_mtime_ns == before
    assert f'stage more: model from {tmp_path / "sft"}' in caplog.text
    assert read_summary(tmp_path / 'more')['init'] == f'model from {tmp_path / "sft"}'
    page = (tmp_path / 'report.html').read_text()
    assert 'What each stage' not in page and '<td>more</td>' in page and '<td>sft</td>' in page


def test_all_stages_share_one_tokenizer_that_has_read_all_their_data(two, tmp_path):
    config = two()
    config['stages']['more']['data'] = dict(type='LongTexts', size=50)
    run_recipe(config, work_dir=tmp_path)
    files = [(tmp_path / name / 'step_2' / 'tokenizer.json').read_text() for name in ('sft',)]
    files += [(tmp_path / 'more' / 'step_2' / 'tokenizer.json').read_text(), (tmp_path / 'tokenizer' / 'tokenizer.json')
              .read_text()]
    assert len(set(files)) == 1
    text = 'The captain is Anna. The password is gold.'
    alone = build_stage(config, 'sft', tmp_path / 'x').processor.tokenizer
    assert len(HFTokenizer(str(tmp_path / 'tokenizer')).encode(text)) < len(alone.encode(text))
