"""The wheel: it builds, and what it installs works from an empty folder."""
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    """A folder with the installed wheel, built from a copy of the checkout."""
    folder = tmp_path_factory.mktemp('packaging')
    source = folder / 'source'
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(
        '.git', 'work', 'build', 'dist', '*.egg-info', '__pycache__', '.*_cache', 'tests'))
    run('-m', 'pip', 'wheel', '--quiet', '--no-deps', '--no-build-isolation', '--wheel-dir', folder, source)
    wheel, = folder.glob('qvlkit-*.whl')
    target = folder / 'target'
    run('-m', 'pip', 'install', '--quiet', '--no-deps', '--no-index', '--target', target, wheel)
    return wheel, target


def run(*arguments, **keywords):
    result = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=300,
                            stdin=subprocess.DEVNULL, check=False, **keywords)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_the_wheel_ships_the_package_and_the_configs_and_nothing_else(installed):
    names = zipfile.ZipFile(installed[0]).namelist()
    for path in (ROOT / 'configs').rglob('*'):
        if path.is_file() and '__pycache__' not in path.parts:  # the samples' records, pictures and clips, too
            assert f'qvlkit/_configs/{path.relative_to(ROOT / "configs")}' in names
    for path in (ROOT / 'qvlkit').rglob('*.md'):
        assert str(path.relative_to(ROOT)) in names
    assert any(name.endswith('licenses/LICENSE') for name in names)
    assert {name.split('/')[0].split('-')[0] for name in names} == {'qvlkit'}


def test_the_command_works_from_an_empty_folder(installed, tmp_path):
    wheel, target = installed
    environment = {**os.environ, 'PYTHONPATH': str(target)}
    command = str(target / 'bin' / 'qvlkit')
    assert 'train' in run(command, '--help', cwd=tmp_path, env=environment)
    assert 'PatchMerger' in run(command, 'list_parts', 'merger', cwd=tmp_path, env=environment)
    code = ("import qvlkit, sys; from qvlkit.config import load_config\n"
            "assert qvlkit.__file__.startswith(sys.argv[1]), qvlkit.__file__\n"
            "print(list(load_config('configs/qwen25vl_tiny.py').stages))")
    assert 'sft' in run('-c', code, str(target), cwd=tmp_path, env=environment)
    assert not list(tmp_path.iterdir())
