"""The command line: help, exit codes and messages."""
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from qvlkit.cli import list_parts, main, train
from qvlkit.registry import ALL

ROOT = Path(__file__).parents[2]
CONFIG = '''
model = dict(attention='sdpa')
tokenizer = dict(type='StandInTokenizer')
stages = dict(sft=dict(trainer=dict(type='SFTTrainer'), data=dict(type='PictureTasks'), loader=dict(), max_steps=1,
                       optimizer=dict(type='AdamW', lr=1e-3), schedule=dict(type='WarmupCosine')))
run = ['sft']
work_dir = 'out'
seed = 3
'''


@pytest.fixture
def config(tmp_path):
    path = tmp_path / 'small.py'
    path.write_text(CONFIG)
    return str(path)


@pytest.fixture
def calls(monkeypatch):
    """Stands in for the recipe and the dry run, and records how they are called."""
    result = []
    for name, function in [('qvlkit.train.recipe', 'run_recipe'), ('qvlkit.cli.dry_run', 'dry_run')]:
        module = ModuleType(name)
        setattr(module, function, lambda *args, function=function, **kwargs: result.append((function, args, kwargs)))
        monkeypatch.setitem(sys.modules, name, module)
    return result


def run(*arguments, cwd):
    return subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=60,
                          stdin=subprocess.DEVNULL, env={**os.environ, 'PYTHONPATH': ''}, check=False)


@pytest.mark.parametrize('tool', ['train', 'list_parts', 'convert', 'inspect_data'])
def test_help_answers_in_three_seconds_from_any_folder(tmp_path, tool):
    start = time.perf_counter()
    result = run(ROOT / 'tools' / f'{tool}.py', '--help', cwd=tmp_path)
    assert time.perf_counter() - start < 3
    assert result.returncode == 0 and 'usage: qvlkit' in result.stdout and 'example' in result.stdout


def test_a_missing_config_is_one_line_and_exit_code_2(tmp_path):
    result = run(ROOT / 'tools' / 'train.py', 'qwen25vl_tinny', cwd=tmp_path)
    assert result.returncode == 2 and not result.stdout
    assert result.stderr.count('\n') == 1 and 'Traceback' not in result.stderr
    assert 'qwen25vl_tinny' in result.stderr and "did you mean 'qwen25vl_tiny'" in result.stderr


def test_arguments_reach_the_recipe(config, calls):
    code = train.main([config, '--stages', 'sft', '--set', 'seed=4', 'stages.sft.max_steps=2',
                       '--set', 'precision=fp32', '--resume', '--load-from', 'there', '--work-dir', 'here'])
    (function, (loaded,), keywords), = calls
    assert code == 0 and function == 'run_recipe'
    assert (loaded.seed, loaded.stages.sft.max_steps, loaded.precision) == (4, 2, 'fp32')
    assert keywords == dict(stages=['sft'], resume=True, load_from='there', work_dir='here')


def test_dry_run_trains_nothing(config, calls):
    assert train.main([config, '--dry-run']) == 0
    assert [call[0] for call in calls] == ['dry_run']


@pytest.mark.parametrize('arguments, word', [
    (['--set', 'sede=4'], "did you mean 'seed'"), (['--stages', 'stf'], "did you mean 'sft'"),
    (['--stages', ','], 'sft'), (['--set', 'run=[]'], 'run'), (['--set', 'seed'], 'key.path=value'),
])
def test_a_users_mistake_is_exit_code_2(config, calls, capsys, arguments, word):
    assert train.main([config, *arguments]) == 2
    assert word in capsys.readouterr().err and not calls


def test_a_missing_key_is_named_before_any_work(tmp_path, calls, capsys):
    path = tmp_path / 'small.py'
    for key, line in [('work_dir', "work_dir = 'out'\n"), ('stages.sft.max_steps', ' max_steps=1,')]:
        path.write_text(CONFIG.replace(line, ''))
        assert train.main([str(path)]) == 2
        assert f'error: {key}: the config lacks' in capsys.readouterr().err and not calls


@pytest.mark.parametrize('error, code', [(ValueError('a\nb'), 2), (FileNotFoundError('gone'), 2),
                                         (KeyboardInterrupt(), 130)])
def test_exit_codes(capsys, error, code):
    def tool():
        raise error
    assert main.run_tool(tool) == code
    assert capsys.readouterr().err.count('\n') == 1
    assert main.run_tool(lambda: 143) == 143 and main.run_tool(lambda: None) == 0


def test_a_bug_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        main.run_tool(lambda: 1 / 0)


def test_the_console_command_lists_its_tools(capsys):
    assert main.main(['--help']) == 0
    text = capsys.readouterr().out
    for tool in main.TOOLS:
        assert tool in text and (ROOT / 'tools' / f'{tool}.py').is_file()
        assert (ROOT / 'qvlkit' / 'cli' / f'{tool}.py').is_file()
    assert main.main(['trian']) == 2
    assert "did you mean 'train'" in capsys.readouterr().err


def test_list_parts(capsys):
    assert list_parts.main(['merger']) == 0
    assert 'PatchMerger' in capsys.readouterr().out
    assert main.main(['list-parts', 'vision_encoders']) == 0
    assert 'Qwen25ViT' in capsys.readouterr().out
    assert list_parts.main(['mergr']) == 2
    assert "did you mean 'merger'" in capsys.readouterr().err


def test_every_listed_part_says_what_it_is(capsys):
    assert list_parts.main(['attention_backend']) == 0
    assert 'One scaled_dot_product_attention call' in ' '.join(capsys.readouterr().out.split())
    for kind in ALL:
        for name in kind.names():
            assert list_parts.first_line(kind.get(name)) != '-', name
