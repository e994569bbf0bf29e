"""Bad input on the command line: a line that names file, sample and reason and exit code 2, or counted and skipped."""
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from qvlkit.cli import train
from qvlkit.config import load_config, save_config
from qvlkit.convert.huggingface import save_pretrained
from qvlkit.data.tokenizers import ByteLevelBPE
from qvlkit.models.builder import build_model
from qvlkit.train.hooks.jsonl import read_log

ROOT = Path(__file__).parents[2]
SMALLER = [
    'run=[sft]', 'stages.sft.parts.vision_encoder.trainable=true',
    'model.vision_encoder.width=32', 'model.vision_encoder.depth=2', 'model.vision_encoder.num_heads=2',
    'model.vision_encoder.feed_forward_width=48', 'model.vision_encoder.full_attention_blocks=[1]',
    'model.language_model.width=64', 'model.language_model.depth=2', 'model.language_model.num_heads=2',
    'model.language_model.num_kv_heads=1', 'model.language_model.feed_forward_width=96',
    'model.position_encoding.sections=[4,6,6]', 'tokenizer.vocab_size=290', 'stages.sft.loader.row_length=320',
    'stages.sft.loader.window=4', 'stages.sft.loader.num_workers=0', 'stages.sft.max_steps=2',
    'stages.sft.accumulation=1', 'stages.sft.hooks.evaluation=null', 'stages.sft.hooks.console=null',
    'stages.sft.data.type=ConversationDataset', 'stages.sft.data.path=data.json', 'threads=1']


def talk(*texts, images=('good.png',)):
    messages = [dict(role=('user', 'assistant')[index % 2], content=text) for index, text in enumerate(texts)]
    return dict(messages=messages, images=list(images))


GOOD = talk('<image>What is it?', 'A red square.')
# name -> the bad record, kind under which it is counted, what the message must say
BAD_SAMPLES = {
    'missing image': (talk('<image>What?', 'It.', images=['gone.png']), 'missing_media',
                      ['gone.png', 'does not exist']),
    'truncated JPEG': (talk('<image>What?', 'It.', images=['half.jpg']), 'bad_image', ['half.jpg', 'broken']),
    'HTML named .jpg': (talk('<image>What?', 'It.', images=['page.jpg']), 'bad_image', ['page.jpg', 'HTML']),
    'more tags than media': (talk('<image><image>What?', 'It.'), None, ['<image>', '2', '1']),
    'more media than tags': (talk('What?', 'It.'), None, ['<image>', '1']),
    'aspect ratio over 200': (talk('<image>What?', 'It.', images=['line.png']), 'bad_size',
                              ['line.png', 'aspect ratio 201', '200']),
    'empty conversation': (talk(images=()), 'empty_conversation', ['empty']),
    'answer longer than the row': (talk('<image>What?', 'word ' * 400), 'too_long', ['tokens', 'row of 320']),
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Pictures good and bad, and a complete config that trains two steps."""
    result = tmp_path_factory.mktemp('bad')
    Image.new('RGB', (56, 56), 'red').save(result / 'good.png')
    Image.effect_noise((90, 90), 80).convert('RGB').save(result / 'whole.jpg')
    content = (result / 'whole.jpg').read_bytes()
    (result / 'half.jpg').write_bytes(content[:len(content) // 2])
    (result / 'page.jpg').write_text('<!DOCTYPE html><html><body>404 not found</body></html>')
    Image.new('RGB', (804, 4), 'blue').save(result / 'line.png')
    save_config(load_config('qwen25vl_tiny', SMALLER), result / 'small.json')
    return result


@pytest.fixture(autouse=True)
def fresh_log():
    """The tool's log goes to the stderr of its own test."""
    yield
    logging.getLogger('qvlkit').handlers.clear()


@pytest.fixture
def run(folder, tmp_path, capsys):
    """(data, *arguments) -> exit code and stderr. Data: a list of records, or the text of a file of JSON lines."""
    def call(data, *arguments):
        path = folder / ('data.jsonl' if isinstance(data, str) else 'data.json')
        path.write_text(data if isinstance(data, str) else json.dumps(data))
        capsys.readouterr()
        code = train.main([str(folder / 'small.json'), '--work-dir', str(tmp_path / 'run'),
                           '--set', f'stages.sft.data.path={path}', *arguments])
        return code, capsys.readouterr().err
    return call


def error_line(err):
    lines = [line for line in err.splitlines() if line.startswith('error: ')]
    assert len(lines) == 1 and 'Traceback' not in err, err
    return lines[0]


def test_good_data_trains(run, tmp_path):
    """The control: nothing else in this setup stops a run."""
    assert run([GOOD] * 6)[0] == 0
    assert len(read_log(tmp_path / 'run' / 'sft' / 'log.jsonl')) == 2


@pytest.mark.parametrize('name', BAD_SAMPLES)
def test_a_bad_sample_stops_the_run_with_its_file_number_and_reason(run, tmp_path, name):
    record, _, words = BAD_SAMPLES[name]
    code, err = run([GOOD, GOOD, record, GOOD])
    assert code == 2
    for word in ('data.json[2]', *words):
        assert word in error_line(err)
    assert not list((tmp_path / 'run' / 'sft').glob('step_*'))


@pytest.mark.parametrize('name', BAD_SAMPLES)
def test_a_bad_sample_is_counted_and_skipped_where_the_config_says_so(run, tmp_path, name):
    record, kind, words = BAD_SAMPLES[name]
    code, err = run([GOOD, GOOD, record, GOOD], '--set', 'stages.sft.loader.on_error=skip')
    assert code == 0, err
    folder = tmp_path / 'run' / 'sft'
    assert len(read_log(folder / 'log.jsonl')) == 2
    lines = [json.loads(line) for line in (folder / 'quarantine.jsonl').read_text().splitlines()]
    assert {line['sample'] for line in lines} == {'data.json[2]'}
    assert all(word in lines[0]['reason'] for word in words) and (kind is None or lines[0]['kind'] == kind)
    state = json.loads((folder / 'step_2' / 'state.json').read_text())['trainer']['loader']
    assert state['errors'] == {lines[0]['kind']: len(lines)}


def test_a_broken_line_of_json_is_one_bad_sample(run, tmp_path):
    lines = '\n'.join([json.dumps(GOOD), '{"messages": [', json.dumps(GOOD), json.dumps(GOOD)])
    code, err = run(lines)
    assert code == 2
    for word in ('data.jsonl[1]', 'line 2', 'is not JSON'):
        assert word in error_line(err)
    assert run(lines, '--set', 'stages.sft.loader.on_error=skip')[0] == 0
    quarantine = [json.loads(line) for line in (tmp_path / 'run' / 'sft' / 'quarantine.jsonl').read_text().splitlines()]
    assert {line['kind'] for line in quarantine} == {'bad_json'}


def test_a_broken_json_list_is_refused_with_its_place(run, folder, tmp_path, capsys):
    path = folder / 'broken.json'
    path.write_text('[{"messages": []},\n {"messages": ]')
    assert train.main([str(folder / 'small.json'), '--work-dir', str(tmp_path / 'run'),
                       '--set', f'stages.sft.data.path={path}', 'stages.sft.loader.on_error=skip']) == 2
    line = error_line(capsys.readouterr().err)
    assert 'broken.json' in line and 'line 2, column' in line


def test_too_many_bad_samples_end_the_run(run):
    bad = BAD_SAMPLES['missing image'][0]
    code, err = run([GOOD, bad, bad, bad], '--set', 'stages.sft.loader.on_error=skip',
                    'stages.sft.loader.max_bad_in_a_row=3')
    assert code == 2 and 'loader.max_bad_in_a_row' in error_line(err) and 'gone.png' in error_line(err)
    code, err = run([bad, bad], '--set', 'stages.sft.loader.on_error=skip')
    assert code == 2 and 'no usable sample' in error_line(err) and 'missing_media' in error_line(err)


@pytest.mark.parametrize('overrides, words', [
    (['stages.sft.loader.rowlength=3'], ['stages.sft.loader.rowlength', "'row_length'"]),
    (['stages.sft.max_steps=many'], ['stages.sft.max_steps', 'expected int', "'many'"]),
    (['stages.sft.optimizer.lr=fast'], ['stages.sft.optimizer.lr', "'fast'"]),
    (['model.merger.type=PatchMergr'], ['model.merger', "'PatchMerger'"]),
    (['stages.sft.loader.on_error=ignore'], ['loader.on_error', "'skip'"]),
    (['stages.sft.data.path=nowhere.json'], ['nowhere.json', 'no such file']),
])
def test_a_wrong_setting_is_named(run, overrides, words):
    code, err = run([GOOD], '--set', *overrides)
    assert code == 2
    for word in words:
        assert word in error_line(err)


@pytest.fixture(scope='module')
def released(folder):
    """A Hugging Face folder in several shards that fits the config, and the vocabulary that fits the data."""
    path = folder / 'released'
    torch.manual_seed(0)
    config = dict(load_config(folder / 'small.json')['model'])
    tokenizer = ByteLevelBPE(290, texts=['A red square.'])
    tokenizer.save(path / 'tokenizer')
    save_pretrained(build_model(config, vocab_size=tokenizer.vocab_size, seed=0), path / 'model', max_shard_size='60KB')
    return path


def with_tokenizer(released):
    return ['--set', 'tokenizer.type=HFTokenizer', f'tokenizer.path={released / "tokenizer"}']


def test_weights_of_a_released_folder_are_taken(run, released):
    assert len(list((released / 'model').glob('*.safetensors'))) > 1
    code, err = run([GOOD] * 4, *with_tokenizer(released), '--load-from', str(released / 'model'))
    assert code == 0, err


def test_a_missing_shard_is_named(run, released, tmp_path):
    shard = sorted((released / 'model').glob('*.safetensors'))[1]
    shard.rename(tmp_path / 'kept')
    try:
        code, err = run([GOOD] * 4, *with_tokenizer(released), '--load-from', str(released / 'model'))
    finally:
        (tmp_path / 'kept').rename(shard)
    assert code == 2 and shard.name in error_line(err) and str(released / 'model') in error_line(err)
    assert not (tmp_path / 'run' / 'sft').exists()


def test_another_model_family_is_refused_by_name(run, tmp_path):
    other = tmp_path / 'llama'
    other.mkdir()
    (other / 'config.json').write_text(json.dumps(dict(model_type='llama', hidden_size=64)))
    code, err = run([GOOD] * 4, '--load-from', str(other))
    assert code == 2
    for word in (str(other), "'llama'", 'qwen2_5_vl'):
        assert word in error_line(err)


def test_the_tool_itself_ends_with_code_2_and_one_line(folder, tmp_path):
    (folder / 'once.json').write_text(json.dumps([GOOD, BAD_SAMPLES['truncated JPEG'][0]]))
    result = subprocess.run(
        [sys.executable, ROOT / 'tools' / 'train.py', folder / 'small.json', '--work-dir', tmp_path,
         '--set', f'stages.sft.data.path={folder / "once.json"}'],
        capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path, stdin=subprocess.DEVNULL,
        env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert result.returncode == 2
    assert 'once.json[1]' in error_line(result.stderr) and 'half.jpg' in error_line(result.stderr)
