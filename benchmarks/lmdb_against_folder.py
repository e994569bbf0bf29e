"""Reading samples at random: an LMDB store against the folder of files that it was packed from.

    python benchmarks/lmdb_against_folder.py [--samples 20000] [--workers 2] [--rounds 10] [--folder DIR] [--no-save]

Each sample is a record of JSON lines and a small JPEG of its own. Both sides are the same ConversationDataset, read by
torch's DataLoader in the same shuffled orders. A sample is the parsed record with the bytes of its picture, which are
not decoded, since that costs both sides the same. The LMDB side also checks the SHA-256 of both, the folder checks
nothing. Every byte must be equal first. Files are in the page cache after the first round on both sides: what is
compared is the work of a read, not the disk. Goal: LMDB is not slower.
"""
import argparse
import json
import tempfile
from io import BytesIO
from pathlib import Path

import harness  # first: it makes qvlkit importable
import numpy as np
import torch
from PIL import Image

from qvlkit.data.datasets.conversation import ConversationDataset
from qvlkit.data.stores.pack_lmdb import pack


class Samples(torch.utils.data.Dataset):
    """(characters of the text, bytes of the picture) of a sample, as a worker would hand them to decoding."""

    def __init__(self, path: Path):
        self.dataset = ConversationDataset(str(path))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[int, bytes]:
        sample = self.dataset[index]
        source = sample.media()[0].source
        data = source.read_bytes() if isinstance(source, Path) else source
        return sum(len(item) for turn in sample.turns for item in turn.content if isinstance(item, str)), data


class Order(torch.utils.data.Sampler):
    """All samples in a shuffled order, another one in each epoch."""

    def __init__(self, count: int):
        self.count, self.epoch = count, 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self):
        self.epoch += 1
        return iter(np.random.default_rng(self.epoch).permutation(self.count).tolist())


def make_folder(folder: Path, samples: int) -> Path:
    """JSON lines and a JPEG of 96 x 64 pixels for each; no two pictures are equal."""
    (folder / 'pictures').mkdir(parents=True)
    generator = np.random.default_rng(0)
    with open(folder / 'chat.jsonl', 'w', encoding='utf-8') as lines:
        for number in range(samples):
            buffer = BytesIO()
            coarse = Image.fromarray(generator.integers(0, 256, (8, 12, 3), dtype=np.uint8))
            coarse.resize((96, 64)).save(buffer, 'JPEG', quality=85)
            name = f'pictures/{number:06d}.jpg'
            (folder / name).write_bytes(buffer.getvalue())
            lines.write(json.dumps({'image': name, 'conversations': [
                {'from': 'human', 'value': f'<image>\nWhat is in picture {number}? ' + 'Describe it. ' * 8},
                {'from': 'gpt', 'value': f'Coloured fields, picture {number}. ' * 6}]}) + '\n')
    return folder / 'chat.jsonl'


def check_equal(sides: dict[str, Samples]) -> int:
    """Bytes of all pictures; AssertionError unless both sides give the same for every sample."""
    total, (one, other) = 0, sides.values()
    assert len(one) == len(other)
    for index in range(len(one)):
        expected, found = one[index], other[index]
        assert expected == found, f'sample {index} differs'
        total += len(found[1])
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--samples', type=int, default=20_000)
    parser.add_argument('--workers', type=int, default=2)
    parser.add_argument('--rounds', type=int, default=10)
    parser.add_argument('--folder', help='where to make the files (default: a temporary folder)')
    parser.add_argument('--no-save', action='store_true', help='print only')
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        files = make_folder(Path(temporary), arguments.samples)
        packed = pack(ConversationDataset(str(files)), Path(temporary) / 'chat.lmdb')
        sides = dict(folder=Samples(files), lmdb=Samples(Path(temporary) / 'chat.lmdb'))
        total = check_equal(sides)
        loaders = {name: torch.utils.data.DataLoader(
            side, sampler=Order(arguments.samples), batch_size=64, collate_fn=list, num_workers=arguments.workers,
            persistent_workers=arguments.workers > 0) for name, side in sides.items()}

        def read(name: str) -> None:
            assert sum(len(data) for batch in loaders[name] for _, data in batch) == total

        seconds = harness.interleaved({name: lambda name=name: read(name) for name in sides}, rounds=arguments.rounds)
    row = dict(setting=f'{arguments.samples:,} samples, {total / arguments.samples:,.0f} bytes a picture, '
                       f'{arguments.workers} workers', data_mdb_bytes=packed.bytes, picture_bytes=total)
    row |= harness.compare(seconds, 'folder', 'lmdb')
    for name in sides:
        row[f'{name}_samples_per_second'] = round(arguments.samples * 1000 / row[f'{name}_ms'])
    print(f'folder {row["folder_samples_per_second"]:,} samples/s, lmdb {row["lmdb_samples_per_second"]:,} samples/s, '
          f'{row["ratio"]:.2f} times as fast (quartiles {row["ratio_quartiles"]})')
    if not arguments.no_save:
        print(f'written: {harness.save("lmdb_against_folder", row)}')


if __name__ == '__main__':
    main()
