"""`qvlkit train CONFIG`: load the config, then hand it to train/recipe.py (or to dry_run.py)."""
import argparse
from collections.abc import Sequence

from qvlkit.cli.main import run_tool

EXAMPLES = '''\
examples:
  qvlkit train qwen25vl_tiny
      the first run: a model of a few million parameters on data that it makes itself, on a CPU, in minutes
  qvlkit train qwen25vl_tiny --set stages.sft.optimizer.lr=1e-4 stages.sft.max_steps=50
      the same with two settings changed; a key that does not exist is an error that names the nearest ones
  qvlkit train qwen25vl_tiny --set model.merger.type=AveragePoolMerger
      another part in one slot; `qvlkit list_parts` lists what there is
  qvlkit train my_config.py --stages sft --resume
      one stage, from its newest intact checkpoint on
  qvlkit train my_config.py --dry-run
      build everything, show what would run, and train nothing

Each stage writes its checkpoints and logs into WORK_DIR/STAGE.
Exit codes: 0 done; 2 a mistake in the arguments, the config or the data, told in one line; 130 interrupted.'''


def parser() -> argparse.ArgumentParser:
    """The tool's arguments."""
    result = argparse.ArgumentParser(prog='qvlkit train', epilog=EXAMPLES,
                                     description='Train the stages of a config, one after the other.',
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument('config', metavar='CONFIG',
                        help='a .py, .yaml or .json config, or the name of a shipped one such as qwen25vl_tiny')
    result.add_argument('--stages', metavar='A,B',
                        help="run only these stages, in this order (default: the config's run)")
    result.add_argument('--set', metavar='KEY=VALUE', nargs='+', action='extend', default=[], dest='overrides',
                        help='change settings: key.path=value, where value is a number, a string, true, null or [a, b]')
    result.add_argument('--resume', action='store_true',
                        help='go on from the newest intact checkpoint in the work folder')
    result.add_argument('--load-from', metavar='DIR', help='start the first stage from the weights of this checkpoint')
    result.add_argument('--dry-run', action='store_true', help='build everything and show it, but train nothing')
    result.add_argument('--work-dir', metavar='DIR', help="write here instead of the config's work_dir")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and run; returns the exit code."""
    arguments = parser().parse_args(argv)
    return run_tool(train, arguments)


def train(arguments: argparse.Namespace) -> int | None:
    """What the parsed arguments ask for. Imports torch, so that --help need not."""
    from qvlkit.config import check_complete, load_config
    config = load_config(arguments.config, arguments.overrides)
    if arguments.work_dir is not None:
        config.work_dir = arguments.work_dir
    stages = list(config.get('run', []))
    if arguments.stages is not None:
        stages = [stage.strip() for stage in arguments.stages.split(',') if stage.strip()]
    check_complete(config, stages)
    if arguments.dry_run:
        from qvlkit.cli.dry_run import dry_run
        return dry_run(config, stages=stages, load_from=arguments.load_from)
    from qvlkit.train.recipe import run_recipe
    return run_recipe(config, stages=stages, resume=arguments.resume, load_from=arguments.load_from,
                      work_dir=arguments.work_dir)


if __name__ == '__main__':
    raise SystemExit(main())
