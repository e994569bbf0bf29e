"""`qvlkit pack_lmdb SOURCE STORE`: parse, then hand over to data/stores/pack_lmdb.py."""
import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from qvlkit.cli.main import run_tool

EXAMPLES = '''\
examples:
  qvlkit pack_lmdb data/chat.json data/chat.lmdb
      a file of conversations and the pictures that it names -> one folder, read at random as fast as the disk allows
  qvlkit pack_lmdb 'shards/part-*.tar' data/chat.lmdb --media-root pictures
      WebDataset shards, Parquet files and saved Hugging Face data sets are read alike
  qvlkit pack_lmdb data/dataset_info.json data/mine.lmdb --dataset mine
  qvlkit pack_lmdb data/chat.json data/chat.lmdb --tokenizer checkpoints/qwen25vl_3b
      also counts tokens and measures videos: training with this tokenizer then plans its rows without reading a record
  qvlkit pack_lmdb data/chat.json data/chat.lmdb --config my_config.py
      the same with the tokenizer and the processor's settings of a config

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
    result.add_argument('--boxes', choices=('source', 'thousand', 'unit'),
                        help="the space of boxes in answers, as the data set's own setting")
    result.add_argument('--limit', type=int, metavar='N', help='pack the first N records')
    counting = result.add_mutually_exclusive_group()
    counting.add_argument('--tokenizer', metavar='DIR', help='count tokens with the tokenizer of this folder')
    counting.add_argument('--config', metavar='CONFIG', help='count tokens with the tokenizer of this config')
    result.add_argument('--stage', metavar='NAME', help="the config's stage (default: the first that it runs)")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and run; returns the exit code."""
    return run_tool(pack_lmdb, parser().parse_args(argv))


def pack_lmdb(arguments: argparse.Namespace) -> None:
    """What the parsed arguments ask for. Imports torch, so that --help need not."""
    from qvlkit.data.datasets.conversation import ConversationDataset
    from qvlkit.data.stores.pack_lmdb import pack
    source = arguments.source[0] if len(arguments.source) == 1 else arguments.source
    dataset = ConversationDataset(source, store=arguments.store, media_root=arguments.media_root,
                                  format=arguments.format, dataset=arguments.dataset, boxes=arguments.boxes,
                                  limit=arguments.limit)
    with measures(arguments) as counting:
        packed = with_progress(lambda progress: pack(dataset, arguments.target, progress=progress, **counting))
    print(f'wrote {arguments.target}: {packed.count:,} records, {packed.media:,} media, {packed.bytes:,} bytes')
    if packed.quarantined:
        print(f'left out {packed.quarantined:,} records; reasons in {arguments.target}/quarantine.jsonl')


@contextmanager
def measures(arguments: argparse.Namespace) -> Iterator[dict]:
    """What `pack` needs to note sizes, as its keyword arguments; nothing where no tokenizer is named."""
    from qvlkit.data.stores.measure import video_measure
    from qvlkit.data.text_measure import TextMeasure
    from qvlkit.data.tokenizers import HFTokenizer
    from qvlkit.data.video_readers.decoder import READERS, VideoDecoder
    if arguments.stage is not None and arguments.config is None:
        raise ValueError('--stage names a stage of a config: give --config too')
    if arguments.tokenizer is None and arguments.config is None:
        yield {}
        return
    settings: dict = {}
    if arguments.config is not None:
        tokenizer, settings = of_config(arguments.config, arguments.stage)
    else:
        tokenizer = HFTokenizer(arguments.tokenizer)
    text = TextMeasure(tokenizer, **{key: settings[key] for key in ('add_vision_id', 'region_style')
                                     if key in settings})
    if not text.key:
        raise ValueError(f'{type(tokenizer).__name__} has no fingerprint: its counts could not be told from those of '
                         'another tokenizer')
    decoder = VideoDecoder(tuple(settings.get('video_readers', READERS)), settings.get('video_deadline', 20.0))
    try:
        yield dict(measure=text, text_key=text.key, measure_video=video_measure(decoder))
    finally:
        decoder.close()


def of_config(name: str, stage: str | None) -> tuple[Any, dict]:
    """The tokenizer that a stage of a config trains with, and its processor's settings."""
    from qvlkit.config import check_complete, load_config
    from qvlkit.registry import DATASETS, TOKENIZERS
    from qvlkit.train.recipe import dataset_texts
    config = load_config(name)
    stages = [stage] if stage is not None else list(config.get('run', []))[:1]
    check_complete(config, stages)
    chosen = config['stages'][stages[0]]

    def texts() -> Iterator[str]:  # read only by a tokenizer that is trained on the run's own data
        yield from dataset_texts(DATASETS.build(chosen['data'], config_key=f'stages.{stages[0]}.data'))
    return (TOKENIZERS.build(config['tokenizer'], config_key='tokenizer', texts=texts()),
            chosen.get('processor', config.get('processor', {})))


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
