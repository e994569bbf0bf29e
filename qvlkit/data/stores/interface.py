"""What a store is: records and their media by index, whatever file they lie in.

A store is a registered class, one file each. The rules all of them keep:

- Access is by index, so that sampling needs no other state than numbers.
- Files are opened when they are needed, and again in each process: a store may be pickled, forked, and used after
  `close()`.
- A record may be a stranger's. A reference in it leads to bytes stored beside it, to a data URI, or to a file under the
  media root, and to nothing else. Nothing is unpickled, nothing is unpacked onto the disk.
- What is wrong with one record is a `SampleError`; what is wrong with a whole store is a `StoreError`.
"""
from pathlib import Path
from typing import Protocol

from qvlkit.structures import SampleSizes


class StoreError(ValueError):
    """A store that cannot be used at all.

    Args:
        path: Its file or folder.
        reason: What is wrong, with the value and what was expected.
        kind: Short name: 'missing', 'unfinished', 'truncated', 'not_a_store', 'archive_refused', 'not_writable', 'busy'
            or 'other_source'.
    """

    def __init__(self, path: str | Path, reason: str, kind: str = 'not_a_store'):
        super().__init__(f'{path}: {reason}')
        self.path, self.reason, self.kind = str(path), reason, kind

    def __reduce__(self):
        return type(self), (self.path, self.reason, self.kind)


class Store(Protocol):
    """Records by index."""

    name: str  # what the samples' source is called by default

    def __len__(self) -> int:
        """Number of records."""

    def record(self, index: int) -> dict:
        """The record at `index`, made of what JSON can hold; SampleError if it is broken."""

    def record_id(self, index: int) -> str:
        """File and place of a record, for example 'chat.json[3]' or 'shard-000.tar[17]'."""

    def resolve(self, index: int, text: str) -> Path | bytes:
        """What a media reference in the record at `index` means; MediaError if it means nothing that may be read."""

    def sizes(self, index: int) -> SampleSizes | None:
        """Sizes of the sample that the record becomes, known without reading it; None where they are not."""

    def close(self) -> None:
        """Let go of open files. The next use opens them again."""


def check_index(index: int, count: int, name: str) -> None:
    """IndexError unless there is such a record."""
    if not 0 <= index < count:
        raise IndexError(f'{name} has {count} records, asked for {index}')


def needs(library: str, part: str, error: ImportError) -> ValueError:
    """The error of a store whose library is not installed."""
    return ValueError(f"{part} needs the package {library!r}, which cannot be imported ({error}); "
                      f"pip install 'qvlkit[stores]'")
