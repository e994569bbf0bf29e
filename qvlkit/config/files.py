"""Find a config file, read it and the files it inherits, and return plain data.

Python files go through MMEngine's Config (text `_base_` inheritance, string types), with its custom imports, its
variables and its lazy imports off. YAML and JSON are data: MMEngine's YAML loader would run what a tag names, so
OmegaConf reads them; it refuses Python tags, duplicate keys and alias bombs.
"""
import ast
import json
import math
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qvlkit.registry import near_names

SUFFIXES = ('.py', '.yaml', '.yml', '.json')
REFUSED = (
    (re.compile(r'''\{\{\s*['"]?\s*\$'''), 'a config does not read environment variables ({{$NAME}}); write the value'),
    (re.compile(r'\$\{\s*oc\.'), 'a config does not run resolvers (${oc...}) or read environment variables; '
                                 'write the value'),
    (re.compile(r'''^[\s{]*["']?custom_imports["']?\s*[=:]''', re.MULTILINE),
     "custom_imports would run any module; name a plugin's folder or module in plugins = [...] instead"),
)
# What the statements of a Python config raise.
FILE_ERRORS = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, OSError,
               RuntimeError, SyntaxError, TypeError, ValueError)


def shipped_folder() -> Path:
    """The configs that come with qvlkit: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / '_configs'
    return installed if installed.is_dir() else package.parent / 'configs'


def find_config(name: str | Path) -> Path:
    """The file that `name` means: a path, or the name of a shipped config with or without 'configs/' and '.py'.

    Raises:
        ValueError: There is no such file; names near ones.
    """
    path = Path(name).expanduser()
    spellings = [path] if path.suffix in SUFFIXES else [path.with_name(path.name + suffix) for suffix in SUFFIXES]
    places = list(spellings)
    if not path.is_absolute():
        shipped = shipped_folder()
        places += [shipped / Path(*spelling.parts[spelling.parts[0] == 'configs':]) for spelling in spellings]
    for place in places:
        if place.is_file():
            return place.resolve()
    if path.is_file():
        raise ValueError(f'{path}: a config file ends in {", ".join(SUFFIXES)}')
    around = sorted(p.stem for p in _files_in(path.parent))
    shipped = sorted(p.stem for p in _files_in(shipped_folder()))
    raise ValueError(f'{name}: no such config file{near_names(path.stem, around + shipped)}; '
                     f'shipped configs: {", ".join(shipped)}')


def _files_in(folder: Path) -> Iterator[Path]:
    return (path for path in folder.glob('*') if path.suffix in SUFFIXES) if folder.is_dir() else iter(())


def read_chain(path: Path, children: tuple[Path, ...] = ()) -> tuple[dict, list[dict]]:
    """The merged config of a file, and the merged configs of all the files that it inherits.

    Args:
        path: An existing file.
        children: The files that inherit this one, for finding circles.

    Raises:
        ValueError: The file is not what a config may be; names the file, and the line where there is one.
    """
    if path in children:
        raise ValueError(f'{children[-1]}: _base_: {path} inherits this file; circles cannot be resolved')
    try:
        text = path.read_text(encoding='utf-8')
    except UnicodeDecodeError as error:
        raise ValueError(f'{path}: expected UTF-8 text: {error}') from error
    for pattern, reason in REFUSED:
        if match := pattern.search(text):
            line = text.count('\n', 0, match.end()) + 1
            raise ValueError(f'{path}, line {line}: {reason}')
    data = None if path.suffix == '.py' else _read_data(path, text)
    bases = _base_paths(path, text, data)
    ancestors, merged = [], {}
    for base in bases:
        config, above = read_chain(base, (*children, path))
        if repeated := merged.keys() & config.keys():
            raise ValueError(f'{path}: _base_: {", ".join(sorted(repeated))} comes from two files; keep it in one')
        merged.update(config)
        ancestors += [config, *above]
    return _plain_top(path, _run(path) if data is None else _merge(path, data, merged)), ancestors


def _base_paths(path: Path, text: str, data: dict | None) -> list[Path]:
    """The files that `_base_` names, relative to the file."""
    bases = []
    if data is not None:
        bases = data.pop('_base_', [])
    else:
        for statement in _parse(path, text).body:
            targets = statement.targets if isinstance(statement, ast.Assign) else []
            if any(isinstance(target, ast.Name) and target.id == '_base_' for target in targets):
                try:
                    bases = ast.literal_eval(statement.value)
                except ValueError as error:
                    raise ValueError(f'{path}, line {statement.lineno}: _base_ is a string or a list of strings, '
                                     'written out') from error
    bases = [bases] if isinstance(bases, str) else bases
    found = []
    for base in bases:
        place = path.parent / str(base)
        if not isinstance(base, str) or place.suffix not in SUFFIXES or not place.is_file():
            near = near_names(place.name, [p.name for p in _files_in(place.parent)])
            raise ValueError(f'{path}: _base_: no such config file: {base!r}{near}')
        if data is None and place.suffix != '.py':
            raise ValueError(f'{path}: _base_: a Python config inherits Python configs, got {base!r}')
        found.append(place.resolve())
    return found


def _parse(path: Path, text: str) -> ast.Module:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError) as error:
        raise ValueError(f'{path}, line {getattr(error, "lineno", 1)}: {error.args[0]}') from error


def _run(path: Path) -> dict:
    """A Python config with what it inherits, as MMEngine reads it."""
    from mmengine.config import Config
    try:
        config = Config.fromfile(path, use_predefined_variables=False, import_custom_modules=False,
                                 use_environment_variables=False, lazy_import=False)
    except FILE_ERRORS as error:
        lines, traceback = [1], error.__traceback__
        while traceback is not None:
            if traceback.tb_frame.f_code.co_filename == str(path):
                lines.append(traceback.tb_lineno)
            traceback = traceback.tb_next
        raise ValueError(f'{path}, line {lines[-1]}: {type(error).__name__}: {error}') from error
    return config.to_dict()


def _read_data(path: Path, text: str) -> dict:
    """A YAML or JSON file as the data it spells."""
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    try:
        if path.suffix == '.json':
            data = json.loads(text, object_pairs_hook=_unique)
        else:
            data = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except yaml.MarkedYAMLError as error:
        line = f', line {error.problem_mark.line + 1}' if error.problem_mark else ''
        raise ValueError(f'{path}{line}: {_one_line(error.problem)}') from error
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        raise ValueError(f'{path}: {_one_line(error)}') from error
    if not isinstance(data, dict):
        raise ValueError(f'{path}: expected keys and values, got {type(data).__name__}')
    if path.suffix != '.json':
        _refuse_interpolation(path, data, '')
    return data


def _one_line(message: Any) -> str:
    return ' '.join(str(message).split())


def _unique(pairs: list[tuple[str, Any]]) -> dict:
    """JSON pairs as a dict, each key once."""
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f'found duplicate key {next(key for key in keys if keys.count(key) > 1)}')
    return result


def _refuse_interpolation(path: Path, value: Any, key: str) -> None:
    if isinstance(value, str) and '${' in value:
        raise ValueError(f'{path}: {key}: interpolation is not supported, write the value; got {value!r}')
    for name, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        _refuse_interpolation(path, item, f'{key}.{name}'.lstrip('.'))


def _merge(path: Path, data: dict, base: dict) -> dict:
    """`data` over `base`, dict by dict, with MMEngine's rules (`_delete_=True` starts a dict afresh)."""
    from mmengine.config import Config
    try:
        return Config._merge_a_into_b(data, base)
    except (TypeError, KeyError) as error:
        raise ValueError(f'{path}: {_one_line(error)}') from error


def _plain_top(path: Path, config: dict) -> dict:
    """The config's settings: names that start with an underscore, and what a Python config imports, are not among
    them."""
    code = (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType)
    return {key: plain(value, key, str(path)) for key, value in config.items()
            if not (isinstance(key, str) and key.startswith('_')) and not isinstance(value, code)}


def plain(value: Any, key: str, file: str) -> Any:
    """`value` as JSON knows it: dict, list, str, int, float, bool, None."""
    if isinstance(value, dict):
        for name in value:
            if not isinstance(name, str):
                raise ValueError(f'{file}: {key}: keys are strings, got {name!r}')
        return {sys.intern(str(name)): plain(item, f'{key}.{name}', file) for name, item in value.items()
                if name != '_delete_'}
    if isinstance(value, list | tuple):
        return [plain(item, f'{key}.{index}', file) for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f'{file}: {key}: expected a finite number, got {value}')
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Path):
        return str(value)
    raise ValueError(f'{file}: {key}: expected plain data (numbers, strings, lists, dicts), '
                     f'got {type(value).__name__} {value!r}')
