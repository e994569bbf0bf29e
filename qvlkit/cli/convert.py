"""`qvlkit convert from-hf|to-hf|adapters SRC DST`: parse, then hand over to convert/."""
import argparse
from collections.abc import Callable, Sequence

from qvlkit.cli.main import run_tool

EXAMPLES = '''\
examples:
  qvlkit convert from-hf Qwen2.5-VL-3B-Instruct work/qwen25vl_3b
      Hugging Face folder -> folder with our names, from which a run can start (and back, bit for bit)
  qvlkit convert to-hf work/my_run/sft Qwen2.5-VL-3B-mine
      the newest intact checkpoint of a training stage -> folder that transformers loads
  qvlkit convert to-hf work/my_run/sft/step_500 mine --dtype bfloat16 --config-from Qwen2.5-VL-3B-Instruct
      one checkpoint, in bfloat16, with the config.json and generation settings of the model that it came from
  qvlkit convert adapters work/my_run/sft my_adapters
      the adapters alone of a stage in which nothing else trained -> folder that peft loads onto its base model

Weights pass through one shard at a time. Pickled weights and code in SRC are never run. DST must be new or empty.
Exit codes: 0 done; 2 a mistake in the arguments or in SRC, told in one line; 130 interrupted.'''
DTYPES = ('float32', 'bfloat16', 'float16')


def parser() -> argparse.ArgumentParser:
    """The tool's arguments."""
    result = argparse.ArgumentParser(prog='qvlkit convert', epilog=EXAMPLES,
                                     description='Turn a Hugging Face checkpoint into one of ours, or back.',
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument('direction', choices=('from-hf', 'to-hf', 'adapters'),
                        help='take SRC from Hugging Face, or to it, or its adapters to peft')
    result.add_argument('source', metavar='SRC', help='from-hf: a Hugging Face folder; to-hf: a folder written by '
                                                      'from-hf, a training checkpoint, or the folder of a stage')
    result.add_argument('target', metavar='DST', help='a new or empty folder')
    result.add_argument('--max-shard-size', metavar='SIZE', default='5GB', help='largest weight file (default: 5GB)')
    result.add_argument('--dtype', choices=DTYPES, help='to-hf: kind of the written weights (default: as stored)')
    result.add_argument('--config-from', metavar='DIR',
                        help='to-hf of a training checkpoint: the folder whose config.json is carried on')
    result.add_argument('--ema', action='store_true',
                        help='to-hf of a training checkpoint: write the moving averages of the weights that trained')
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and run; returns the exit code."""
    arguments = parser().parse_args(argv)
    return run_tool(convert, arguments)


def convert(arguments: argparse.Namespace) -> None:
    """What the parsed arguments ask for. Imports torch, so that --help need not."""
    if arguments.direction != 'to-hf' and (arguments.dtype or arguments.config_from or arguments.ema):
        raise ValueError('--dtype, --config-from and --ema belong to to-hf; '
                         f'{arguments.direction} keeps everything as it is')
    if arguments.direction == 'adapters':
        from qvlkit.convert.peft_adapters import export_adapters
        export_adapters(arguments.source, arguments.target)
        print(f'wrote {arguments.target}')
        return
    import torch

    from qvlkit.convert.huggingface import from_hf, to_hf
    if arguments.direction == 'from-hf':
        with_progress(arguments, lambda progress: from_hf(
            arguments.source, arguments.target, max_shard_size=arguments.max_shard_size, progress=progress))
    else:
        with_progress(arguments, lambda progress: to_hf(
            arguments.source, arguments.target, max_shard_size=arguments.max_shard_size, progress=progress,
            dtype=getattr(torch, arguments.dtype) if arguments.dtype else None, config_from=arguments.config_from,
            ema=arguments.ema))


def with_progress(arguments: argparse.Namespace, work: Callable[[Callable[[int, int], None]], None]) -> None:
    """Do `work` under a bar on stderr that counts bytes."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
    console = Console(stderr=True)
    with Progress(TextColumn('{task.description}'), BarColumn(), DownloadColumn(), TimeRemainingColumn(),
                  console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(arguments.direction, total=None)
        work(lambda done, total: bar.update(task, completed=done, total=total))
    print(f'wrote {arguments.target}')


if __name__ == '__main__':
    raise SystemExit(main())
