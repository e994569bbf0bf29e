"""Media inside the rows of a table: taken out of the record, and named in it by 'stored:0', 'stored:1', ...

Bytes, and dicts of 'bytes' and 'path' (as datasets writes an image column), become such a reference; one that has a
path alone becomes the path. A table gives each of its structs every key, so keys without a value are left out.
"""
from pathlib import Path
from typing import Any

from qvlkit.data.transforms.load_media import MediaError
from qvlkit.structures import SampleSizes

PREFIX = 'stored:'


def take_out(row: dict) -> tuple[dict, list[bytes]]:
    """A row -> the record, and its media in the order of their numbers."""
    media: list[bytes] = []

    def plain(value: Any) -> Any:
        if isinstance(value, (bytes, bytearray, memoryview)):
            media.append(bytes(value))
            return f'{PREFIX}{len(media) - 1}'
        if isinstance(value, dict):
            if value and set(value) <= {'bytes', 'path'}:
                data = value.get('bytes')
                return plain(data) if data is not None else value.get('path')
            return {key: item for key, item in ((key, plain(item)) for key, item in value.items()) if item is not None}
        if isinstance(value, list):
            return [plain(item) for item in value]
        return value

    return plain(dict(row=row))['row'], media


def is_stored(text: Any) -> bool:
    """Whether a reference names bytes stored beside the record."""
    return isinstance(text, str) and text.startswith(PREFIX)


def pick(media: list[bytes], text: str) -> bytes:
    """The medium that 'stored:3' names."""
    number = text[len(PREFIX):]
    if not (number.isascii() and number.isdigit() and len(number) < 9 and int(number) < len(media)):
        raise MediaError(f'{text[:80]!r} names no medium of this record, which has {len(media)}', 'missing_media')
    return media[int(number)]


class TableStore:
    """What stores of tables share. A store has `_read(index)` (a row), `_root` (a MediaRoot) and `_row` (the last row
    whose media were asked for, and they)."""

    def record(self, index: int) -> dict:
        return take_out(self._read(index))[0]

    def resolve(self, index: int, text: str) -> Path | bytes:
        if not is_stored(text):
            return self._root.resolve(text)
        if self._row[0] != index:
            self._row = (index, take_out(self._read(index))[1])
        return pick(self._row[1], text)

    def sizes(self, index: int) -> SampleSizes | None:
        return None
