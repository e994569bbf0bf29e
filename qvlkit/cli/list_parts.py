"""`qvlkit list_parts [SLOT]`: the registered parts that a config can name, a line each."""
import argparse
import inspect
from collections.abc import Sequence
from typing import Any

from qvlkit.cli.main import run_tool

EXAMPLES = '''\
examples:
  qvlkit list_parts            every part
  qvlkit list_parts merger     the parts for one slot
  qvlkit list_parts --plugin plugins/my_merger merger'''


def parser() -> argparse.ArgumentParser:
    """The tool's arguments."""
    result = argparse.ArgumentParser(prog='qvlkit list_parts', epilog=EXAMPLES,
                                     description='List the registered parts that a config can name by `type`.',
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument('slot', metavar='SLOT', nargs='?', help='only this kind of part, for example merger or hooks')
    result.add_argument('--plugin', metavar='NAME', action='append', default=[],
                        help="import this plugin's folder or module first")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and print; returns the exit code."""
    arguments = parser().parse_args(argv)
    return run_tool(list_parts, arguments.slot, arguments.plugin)


def list_parts(slot: str | None, plugins: Sequence[str] = ()) -> None:
    """Print a table of the parts of one slot, or of all.

    Raises:
        ValueError: No slot is called so.
    """
    from rich.console import Console
    from rich.table import Table

    from qvlkit.config import load_plugins
    from qvlkit.registry import ALL, near_names
    load_plugins(plugins)
    kinds = ALL
    if slot is not None:
        wanted = slot.lower().replace('_', ' ').replace('-', ' ')
        kinds = [kind for kind in ALL if kind.name == wanted or f'{kind.name}s' == wanted]
        if not kinds:
            names = [kind.name.replace(' ', '_') for kind in ALL]
            raise ValueError(f'no slot is called {slot!r}{near_names(slot, names)}; slots: {", ".join(names)}')
    table = Table('slot', 'type', 'what it is', box=None, header_style='bold')
    for kind in kinds:
        for name in kind.names():
            table.add_row(kind.name, name, first_line(kind.get(name)))
    Console().print(table)


def first_line(part: Any) -> str:
    """The first line of the docstring of a function, or of a class's own: one that is inherited tells of another."""
    text = part.__dict__.get('__doc__') if inspect.isclass(part) else part.__doc__
    return (inspect.cleandoc(text or '') or '-').splitlines()[0]


if __name__ == '__main__':
    raise SystemExit(main())
