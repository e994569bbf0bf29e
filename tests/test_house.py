"""The house rules: who imports whom, sizes, the one backward(), and imports that stay light."""
import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'qvlkit'

# Imports go downward only, and the folders of one level never import each other.
LEVELS = [
    {'registry', 'structures', 'report', 'utils', 'config'},
    {'models', 'losses', 'data', 'engine'},
    {'generation'},
    {'convert', 'curation', 'evaluation', 'planning'},
    {'train', 'agent'},
    {'testing', 'ablation'},
    {'cli'},
]
LEVEL = {folder: level for level, folders in enumerate(LEVELS) for folder in folders}
# Within the lowest level: a config is checked against the registries.
ALLOWED = {('config', 'registry')}
HEAVY = ('cv2', 'transformers', 'deepspeed', 'ray', 'gradio', 'matplotlib')
MAX_FILE, MAX_FUNCTION = 500, 60


def sources() -> list[Path]:
    paths = sorted(PACKAGE.rglob('*.py'))
    assert len(paths) > 30
    return paths


def module_name(path: Path) -> str:
    return '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__')


def imported(tree: ast.Module, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """(line, full name) of each module that a file imports anywhere, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ''
            if node.level:
                parts = module.split('.') + (['_'] if is_package else [])
                base = '.'.join(parts[:-node.level] + ([base] if base else []))
            for alias in node.names:
                yield node.lineno, f'{base}.{alias.name}'


def room(name: str) -> str:
    """The folder or file directly below qvlkit that a module belongs to."""
    return (name.split('.') + [''])[1]


def wrong_imports(text: str, module: str, is_package: bool = False) -> list[str]:
    found = []
    here = room(module)
    for line, name in imported(ast.parse(text), module, is_package):
        there = room(name)
        if name.split('.')[0] in ('configs', 'plugins', 'tests', 'tools', 'benchmarks'):
            found.append(f'{module}:{line} imports {name}')
        if name.split('.')[0] != 'qvlkit' or there == here or (here, there) in ALLOWED:
            continue
        if there not in LEVEL:
            found.append(f'{module}:{line} imports {name}: only what lies in a folder of the table')
        elif LEVEL[there] >= LEVEL[here]:
            found.append(f'{module}:{line} imports {name}: level {LEVEL[here]} imports level {LEVEL[there]}')
    return found


def test_imports_go_downward_only():
    found = []
    for path in sources():
        if path != PACKAGE / '__init__.py':  # resolves its few public names lazily
            assert room(module_name(path)) in LEVEL, f'{path} is not in the table of levels'
            found += wrong_imports(path.read_text(), module_name(path), path.name == '__init__.py')
    assert not found, '\n'.join(found)


@pytest.mark.parametrize('text, module', [
    ('from qvlkit.data import packing', 'qvlkit.models.vlm'),
    ('def f():\n    import qvlkit.train.trainer', 'qvlkit.engine.seed'),
    ('from ..losses import cross_entropy', 'qvlkit.models.vlm'),
    ('from qvlkit import report', 'qvlkit.registry'),
    ('import qvlkit', 'qvlkit.models.vlm'),
    ('from plugins import x', 'qvlkit.models.vlm'),
])
def test_a_wrong_import_is_seen(text, module):
    assert wrong_imports(text, module)
    assert not wrong_imports('import torch\nfrom qvlkit.structures import Grid\nfrom .layers import norms',
                             'qvlkit.models.vlm')


def test_only_the_trainer_calls_backward():
    callers = [module_name(path) for path in sources() for node in ast.walk(ast.parse(path.read_text()))
               if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == 'backward']
    assert set(callers) == {'qvlkit.train.trainer'} and len(callers) == 1, callers


def test_files_and_functions_stay_short():
    found = []
    for path in sources():
        text = path.read_text()
        if (lines := text.count('\n')) > MAX_FILE:
            found.append(f'{path} has {lines} lines')
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                if (lines := node.end_lineno - node.lineno + 1) > MAX_FUNCTION:
                    found.append(f'{path}:{node.lineno} {node.name} has {lines} lines')
    assert not found, '\n'.join(found)


def test_no_broad_except_and_no_settings_by_environment_variable():
    found = []
    reads_environment = {'qvlkit.config.load', 'qvlkit.cli.main'}  # to redact its secrets; to log on one rank
    for path in sources():
        module = module_name(path)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler):
                names = {name.id for name in ast.walk(node.type) if isinstance(name, ast.Name)} if node.type else {''}
                if names & {'', 'Exception', 'BaseException'}:
                    found.append(f'{path}:{node.lineno} catches everything')
            elif isinstance(node, ast.Attribute) and node.attr in ('environ', 'getenv'):
                if isinstance(node.value, ast.Name) and node.value.id == 'os' and not module.startswith(
                        'qvlkit.engine') and module not in reads_environment:
                    found.append(f'{path}:{node.lineno} reads an environment variable')
    assert not found, '\n'.join(found)


def test_every_file_says_what_it_is():
    found = [str(path) for path in sources() if path.read_text().strip() and not ast.get_docstring(
        ast.parse(path.read_text()))]
    assert not found, found


def test_every_module_imports_and_nothing_heavy_comes_along():
    modules = ['qvlkit', *(module_name(path) for path in sources() if path.name != '__main__.py')]
    code = f'''
import importlib, sys
for name in {modules!r}:
    importlib.import_module(name)
    heavy = [module for module in {HEAVY!r} if module in sys.modules]
    assert not heavy, f'importing {{name}} imports {{heavy}}'
'''
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT.parent,
                            env={**os.environ, 'PYTHONPATH': str(ROOT)}, timeout=120, check=False)
    assert result.returncode == 0, result.stderr[-3000:]


def test_importing_the_package_does_not_import_torch():
    code = 'import sys, qvlkit, qvlkit.cli.train; assert "torch" not in sys.modules'
    subprocess.run([sys.executable, '-c', code], cwd=ROOT.parent, env={**os.environ, 'PYTHONPATH': str(ROOT)},
                   timeout=60, check=True)
