"""Reading and writing sharded safetensors, one tensor at a time, so that a 72B model passes through a small machine.

A folder holds `model.safetensors`, or shards and `model.safetensors.index.json` that says which tensor lies in which.
Pickles (.bin, .pt, .pth, .ckpt) are refused: loading one can run any code that its author put there.
"""
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

SINGLE, INDEX = 'model.safetensors', 'model.safetensors.index.json'
PICKLES = ('.bin', '.pt', '.pth', '.ckpt', '.pkl', '.pickle')
_DTYPES = {'F64': torch.float64, 'F32': torch.float32, 'F16': torch.float16, 'BF16': torch.bfloat16}


class WeightFiles:
    """The tensors of a folder, by name; read when asked for.

    Args:
        folder: Where `model.safetensors` or its index lies. Only headers are read here.

    Raises:
        FileNotFoundError: No weights, or a shard is missing; all missing ones are named.
        ValueError: Only pickles, a file that is not whole, or an index that does not fit its shards.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._files: dict[str, Any] = {}
        self._home: dict[str, str] = {}
        self._original: dict[str, str] = {}
        index = self._index()
        for shard in sorted(set(index.values())) if index is not None else [SINGLE]:
            self._open(shard)
        astray = [name for name, shard in (index or {}).items() if self._home.get(name) != shard]
        if astray:
            raise ValueError(f'{self.folder / INDEX}: it says that {astray[0]!r} lies in {index[astray[0]]}, which '
                             f'does not hold it (so for {len(astray)} tensors)')

    def names(self) -> list[str]:
        """Names of all tensors."""
        return list(self._home)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from the header."""
        return tuple(self._slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype:
        """Kind of a tensor, from the header; ValueError if it is not a plain floating-point one."""
        stored = self._slice(name).get_dtype()
        if stored not in _DTYPES:
            raise ValueError(f'{self.folder / self._home[name]}: {name!r} is stored as {stored}; expected one of '
                             f'{", ".join(_DTYPES)} (quantized checkpoints are not read)')
        return _DTYPES[stored]

    def read(self, name: str) -> torch.Tensor:
        """One tensor, on the CPU."""
        return self._files[self._home[name]].get_tensor(self._original.get(name, name))

    def reader(self, name: str) -> Callable[[], torch.Tensor]:
        """A function that reads the tensor when it is called."""
        return lambda: self.read(name)

    def _slice(self, name: str):
        return self._files[self._home[name]].get_slice(self._original.get(name, name))

    def _index(self) -> dict[str, str] | None:
        """The index as {tensor: shard}; None if one file holds everything."""
        if not self.folder.is_dir():
            raise FileNotFoundError(f'{self.folder}: no such folder')
        if (self.folder / SINGLE).exists():
            return None
        path = self.folder / INDEX
        if not path.exists():
            pickles = sorted(file.name for file in self.folder.iterdir() if file.suffix in PICKLES)
            if pickles:
                raise ValueError(f'{self.folder / pickles[0]}: weights in a pickle are refused, because loading one '
                                 f'can run any code in it, and no flag allows it; expected {SINGLE} or {INDEX}')
            raise FileNotFoundError(f'{self.folder}: no weights; expected {SINGLE} or {INDEX}')
        table = read_json(path).get('weight_map')
        if not isinstance(table, dict) or not all(isinstance(shard, str) for shard in table.values()) or not table:
            raise ValueError(f"{path}: expected a table 'weight_map' of tensor names and shards")
        for shard in set(table.values()):
            if Path(shard).name != shard or not shard.endswith('.safetensors'):
                raise ValueError(f'{path}: {shard!r} is not the name of a .safetensors file in the same folder')
        missing = sorted(shard for shard in set(table.values()) if not (self.folder / shard).exists())
        if missing:
            raise FileNotFoundError(f'{self.folder}: missing {", ".join(missing)}, which {INDEX} names')
        return table

    def _open(self, shard: str) -> None:
        path = self.folder / shard
        try:
            file = safe_open(path, framework='pt')
        except SafetensorError as error:
            raise ValueError(f'{path}: not a whole safetensors file ({error}); was its download or copy cut '
                             'off?') from error
        stored = set(file.keys())
        aliases = json.loads((file.metadata() or {}).get('aliases', '{}'))  # written by engine/checkpoint.py
        if not isinstance(aliases, dict) or not stored.issuperset(aliases.values()):
            raise ValueError(f'{path}: its aliases name tensors that it does not hold')
        self._original.update(aliases)
        for name in [*sorted(stored), *aliases]:
            if name in self._home:
                raise ValueError(f'{path}: {name!r} lies in {self._home[name]} too')
            self._home[name] = shard
        self._files[shard] = file


def write_weights(folder: str | Path, sizes: Mapping[str, int], read: Callable[[str], torch.Tensor], *,
                  max_shard_size: int | str = '5GB') -> None:
    """Write tensors into one file, or into shards with an index; one shard is in memory at a time.

    Args:
        folder: An existing folder.
        sizes: Bytes of each tensor as it will be written, in the order of writing.
        read: Gives a tensor by name.
        max_shard_size: Bytes, or a number with KB, MB or GB (powers of 1000). A larger tensor has a shard of its own.
    """
    limit = parse_size(max_shard_size)
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    index = {}
    for number, names in enumerate(shards, start=1):
        file = SINGLE if len(shards) == 1 else f'model-{number:05d}-of-{len(shards):05d}.safetensors'
        index.update(dict.fromkeys(names, file))
        save_file({name: read(name).contiguous() for name in names}, Path(folder) / file, metadata={'format': 'pt'})
    if len(shards) > 1:
        content = {'metadata': {'total_size': sum(sizes.values())}, 'weight_map': dict(sorted(index.items()))}
        (Path(folder) / INDEX).write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')


def parse_size(size: int | str) -> int:
    """'5GB' -> 5_000_000_000; ValueError if it is no positive size."""
    match = re.fullmatch(r'(\d+(?:\.\d+)?)\s*([KMG]?B)?', str(size).strip().upper())
    number = int(float(match[1]) * {None: 1, 'B': 1, 'KB': 10**3, 'MB': 10**6, 'GB': 10**9}[match[2]]) if match else 0
    if number < 1:
        raise ValueError(f"max_shard_size: expected bytes or a size such as '5GB', got {size!r}")
    return number


def read_json(path: Path) -> dict:
    """A JSON file that holds a table.

    Raises:
        FileNotFoundError, ValueError: With the path.
    """
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(f'{path}: not readable as JSON ({error})') from error
    if not isinstance(content, dict):
        raise ValueError(f'{path}: expected a table, got {type(content).__name__}')
    return content
