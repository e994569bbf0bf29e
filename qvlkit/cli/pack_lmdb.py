"""`qvlkit pack_lmdb SOURCE STORE`: parse, then hand over to data/stores/pack_lmdb.py."""
import argparse
from collections.abc import Callable, Sequence
from typing import Any

from qvlkit.cli.main import run_tool

EXAMPLES = '''\
examples:
  qvlkit pack_lmdb data/chat.json data/chat.lmdb
      a file of conversations and the pictures that it names -> one folder, read at random as fast as the disk allows
  qvlkit pack_lmdb 'shards/part-*.tar' data/chat.lmdb --media-root pictures
      WebDataset shards, Parquet files and saved Hugging Face data sets are read alike
  qvlkit pack_lmdb data/dataset_info.json data/mine.lmdb --dataset mine

If it is stopped, the same command goes on. Records that cannot be used are counted and written to
STORE/quarantine.jsonl. A config then names the folder: data = dict(type='ConversationDataset', path='data/chat.lmdb').
Exit codes: 0 done; 2 a mistake in the arguments or in SOURCE, told in one line; 130 interrupted.'''


def parser() -> argparse.ArgumentParser:
    """The tool's arguments."""
    result = argparse.ArgumentParser(prog='qvlkit pack_lmdb', epilog=EXAMPLES,
                                     description='Pack conversations and their media into an LMDB store.',
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument('source', metavar='SOURCE', nargs='+',
                        help='.json, .jsonl, .parquet or .tar file, several of the last two, or a saved data set')
    result.add_argument('target', metavar='STORE', help='a new folder, or one that the same command has begun')
    result.add_argument('--store', metavar='NAME', help='the store that reads SOURCE (default: by its suffix)')
    result.add_argument('--media-root', metavar='DIR', help="media paths start here (default: SOURCE's folder)")
    result.add_argument('--format', default='auto', help='format of the records (default: auto)')
    result.add_argument('--dataset', metavar='NAME', help='entry of a dataset_info.json')
    result.add_argument('--limit', type=int, metavar='N', help='pack the first N records')
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and run; returns the exit code."""
    return run_tool(pack_lmdb, parser().parse_args(argv))


def pack_lmdb(arguments: argparse.Namespace, **measures: Any) -> None:
    """What the parsed arguments ask for. Imports torch, so that --help need not."""
    from qvlkit.data.datasets.conversation import ConversationDataset
    from qvlkit.data.stores.pack_lmdb import pack
    source = arguments.source[0] if len(arguments.source) == 1 else arguments.source
    dataset = ConversationDataset(source, store=arguments.store, media_root=arguments.media_root,
                                  format=arguments.format, dataset=arguments.dataset, limit=arguments.limit)
    packed = with_progress(lambda progress: pack(dataset, arguments.target, progress=progress, **measures))
    print(f'wrote {arguments.target}: {packed.count:,} records, {packed.media:,} media, {packed.bytes:,} bytes')
    if packed.quarantined:
        print(f'left out {packed.quarantined:,} records; reasons in {arguments.target}/quarantine.jsonl')


def with_progress(work: Callable[[Callable[[int, int], None]], Any]) -> Any:
    """Do `work` under a bar on stderr that counts records."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    console = Console(stderr=True)
    with Progress(TextColumn('packing'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                  console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task('packing', total=None)
        return work(lambda done, total: bar.update(task, completed=done, total=total))


if __name__ == '__main__':
    raise SystemExit(main())
