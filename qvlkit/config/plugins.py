"""Import the plugins that a config names, and those that are installed, so that their parts are registered."""
import importlib
import importlib.metadata
import sys
from collections.abc import Iterable
from pathlib import Path

ENTRY_POINTS = 'qvlkit.plugins'
# Files of a plugin's folder that are not its package.
NOT_PACKAGES = ('setup', 'conftest', 'tests', 'test', 'configs', 'docs', 'build', 'dist')


def load_plugins(names: Iterable[str] = (), folder: Path | None = None) -> None:
    """Import installed plugins (entry points), then the named ones.

    Args:
        names: Folders (relative to the current directory, or to `folder` or one above it) or module names.
        folder: Where the config lies.

    Raises:
        ValueError: There is no such folder or module, or it does not import.
    """
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        _import(entry.value.partition(':')[0], f'the installed plugin {entry.name}')
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise ValueError(f'plugins: expected a list of folders or module names, got {names!r}')
    for name in names:
        place = _find_folder(name, folder)
        if place is not None:
            _import_folder(place, name)
        elif '/' in name or name.startswith('.'):
            raise ValueError(f'plugins: no such folder: {name!r} (looked in {Path.cwd()}'
                             + (f' and from {folder} upwards)' if folder else ')'))
        else:
            _import(name, f'plugins: {name!r}')


def _find_folder(name: str, folder: Path | None) -> Path | None:
    path = Path(name).expanduser()
    roots = [Path.cwd(), *([folder, *folder.parents] if folder else [])]
    if '/' not in name and not path.is_absolute():
        roots = roots[:1]
    return next((root / path for root in roots if (root / path).is_dir()), None)


def _import_folder(folder: Path, name: str) -> None:
    """Import the packages and modules in a plugin's folder, or the folder itself if it is a package."""
    folder = folder.resolve()
    if (folder / '__init__.py').is_file():
        root, modules = folder.parent, [folder.name]
    else:
        root = folder / 'src' if (folder / 'src').is_dir() else folder
        modules = sorted(path.parent.name for path in root.glob('*/__init__.py'))
        modules += sorted(path.stem for path in root.glob('*.py'))
        modules = [module for module in modules if module not in NOT_PACKAGES and not module.startswith('test_')]
    if not modules:
        raise ValueError(f'plugins: {name!r}: {folder} holds no Python package or module')
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    for module in modules:
        _import(module, f'plugins: {name!r}')


def _import(module: str, what: str) -> None:
    try:
        importlib.import_module(module)
    except (ImportError, KeyError, SyntaxError, TypeError, ValueError) as error:
        raise ValueError(f'{what}: importing {module} failed: {type(error).__name__}: {error}') from error
