"""The console command `qvlkit TOOL ...`: finds the tool's module, which parses, builds and calls."""
import importlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

TOOLS = {
    'train': 'Train the stages of a config, one after the other',
    'convert': 'Turn a Hugging Face checkpoint into one of ours, or back',
    'inspect_data': 'Show what a model is given: samples, tokens, packing, as a page',
    'pack_lmdb': 'Pack conversations and their media into an LMDB store',
    'list_parts': 'List the registered parts that a config can name',
}


def usage() -> str:
    """What `qvlkit --help` prints."""
    tools = '\n'.join(f'  {name:<12} {line}' for name, line in TOOLS.items())
    return (f'usage: qvlkit TOOL ...\n\nTrain vision-language models from parts that a config puts together.\n\n'
            f'tools:\n{tools}\n\n'
            f'example:\n  qvlkit train qwen25vl_tiny          a first run, on a CPU, in minutes\n\n'
            f'`qvlkit TOOL --help` explains a tool.')


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool that the first argument names with the other arguments; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ('-h', '--help', 'help'):
        print(usage())
        return 0
    tool = argv[0].replace('-', '_')
    if tool not in TOOLS:
        import difflib
        near = difflib.get_close_matches(tool, TOOLS, n=1)
        hint = f', did you mean {near[0]!r}?' if near else ''
        print(f'qvlkit: no tool is called {argv[0]!r}{hint}; tools: {", ".join(TOOLS)}', file=sys.stderr)
        return 2
    return run_tool(importlib.import_module(f'qvlkit.cli.{tool}').main, argv[1:])


def run_tool(tool: Callable[..., Any], *args: Any, **kwargs: Any) -> int:
    """Call a tool's function and turn how it ends into an exit code.

    Returns:
        The function's own result if it is an int, else 0; 2 for a user's error (ValueError or FileNotFoundError),
        told in one line on stderr; 130 when interrupted.
    """
    log_to_stderr()
    let_threads_sleep()
    try:
        result = tool(*args, **kwargs)
    except (ValueError, FileNotFoundError) as error:
        print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        return 130
    return result if type(result) is int else 0


def let_threads_sleep() -> None:
    """Let idle threads of the CPU's matrix products sleep soon, unless the user decides otherwise.

    By default they spin for milliseconds while they wait, and take the core from loader workers and every other
    process: beside other busy processes a training step was seen to take ten times as long. Sleeping at once costs a
    third of the speed on an idle machine; this is between the two. Works until torch is imported.
    """
    if 'OMP_WAIT_POLICY' not in os.environ:
        os.environ.setdefault('GOMP_SPINCOUNT', '50000')


def log_to_stderr() -> None:
    """Show qvlkit's log on stderr, of the first process only where a launcher started several."""
    logger = logging.getLogger('qvlkit')
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter('%(message)s'))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO if os.environ.get('RANK', '0') == '0' else logging.ERROR)
