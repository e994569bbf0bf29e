"""Tar store: WebDataset shards. Members that share a name up to its first dot are one record.

The .json member is the record; other members are its media, by extension, and a .txt member is its caption. Headers
are read once, to know where each member lies; nothing is unpacked. A shard is refused as a whole if it is compressed,
or if a member is a link or a device, is too large, or has a name that leads out of a folder.
Source: the WebDataset format, https://github.com/webdataset/webdataset.
"""
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from qvlkit.data.formats.media_paths import MediaRoot
from qvlkit.data.stores.interface import StoreError, check_index
from qvlkit.data.stores.opening import expand, name_of
from qvlkit.data.transforms.load_media import MediaError, decode_data_uri
from qvlkit.registry import STORES
from qvlkit.structures import SampleError, SampleSizes

IMAGES = ('jpg', 'jpeg', 'png', 'webp', 'bmp', 'gif', 'tif', 'tiff')
VIDEOS = ('mp4', 'webm', 'mkv', 'avi', 'mov', 'm4v', 'mpg', 'mpeg')
BLOCK = 512
MAX_NAME_BYTES = 64 * 2 ** 10  # of the members that hold another member's long name
_NAMES = {b'L': 'GNU long name', b'x': 'pax header', b'g': 'pax header', b'K': 'GNU long link'}
_REGULAR, _FOLDER = (b'0', b'\0'), b'5'


@dataclass(frozen=True)
class _Member:
    name: str
    start: int
    size: int


@STORES.register_module()
class TarStore:
    """Groups of members of .tar files as records.

    Args:
        path: A .tar file, a glob, or a list of files.
        media_root: If given, references that are no member may be paths under it.
        allow_hosts: Hosts from which URLs in records are fetched; empty: URLs are refused.
        max_member_bytes: A shard with a larger member is refused.

    A record that names no media itself is given 'image' or 'images', 'video' or 'videos', and, if it lacks one,
    'caption'. A reference is a member's name, with or without its folder, or its extension.

    Raises:
        ValueError: A file is missing, is not a plain tar, or is refused (StoreError).
    """

    def __init__(self, path: str | Path | list, *, media_root: str | Path | None = None,
                 allow_hosts: Sequence[str] = (), max_member_bytes: int = 2 ** 30):
        self.files = expand(path, '.tar')
        self.name = name_of(self.files)
        self._root = None if media_root is None else MediaRoot(media_root, allow_hosts=allow_hosts)
        self._members: list[list[_Member]] = []  # of each record
        files, rows = [], []
        for number, file in enumerate(self.files):
            groups = _group(file, max_member_bytes)
            self._members += groups
            files += [number] * len(groups)
            rows += range(len(groups))
        self._places = np.array([files, rows], dtype=np.int64).T  # (count, 2): file, and record in it

    def __len__(self) -> int:
        return len(self._members)

    def record_id(self, index: int) -> str:
        file, row = self._places[index]
        return f'{self.files[file].name}[{row}]'

    def record(self, index: int) -> dict:
        check_index(index, len(self), self.name)
        record: dict = {}
        texts = {_extension(member): member for member in self._members[index]}
        if 'json' in texts:
            try:
                record = json.loads(self._read(index, texts['json']))
            except (ValueError, RecursionError, MediaError) as error:
                raise SampleError(self.record_id(index), f'member {texts["json"].name!r} is not JSON: {error}',
                                  'bad_json') from error
            if not isinstance(record, dict):
                raise SampleError(self.record_id(index), f'expected a record (a dict) in {texts["json"].name!r}, got '
                                  f'{type(record).__name__}', 'wrong_type')
        if not {'image', 'images', 'video', 'videos'} & set(record):
            for one, several, suffixes in (('image', 'images', IMAGES), ('video', 'videos', VIDEOS)):
                names = [PurePosixPath(member.name).name for member in self._members[index]
                         if _extension(member).rpartition('.')[2].lower() in suffixes]
                if names:
                    record |= {one: names[0]} if len(names) == 1 else {several: names}
        if 'txt' in texts and 'caption' not in record:
            try:
                record['caption'] = self._read(index, texts['txt']).decode()
            except (UnicodeDecodeError, MediaError) as error:
                raise SampleError(self.record_id(index), f'member {texts["txt"].name!r}: {error}',
                                  'bad_text') from error
        return record

    def resolve(self, index: int, text: str) -> Path | bytes:
        if not isinstance(text, str) or not text:
            raise MediaError(f'expected a media reference, got {text!r:.200}', 'wrong_type')
        if text.startswith('data:'):
            return decode_data_uri(text)
        for member in self._members[index]:
            if text in (member.name, PurePosixPath(member.name).name, _extension(member)):
                return self._read(index, member)
        if self._root is not None:
            return self._root.resolve(text)
        names = ', '.join(repr(member.name) for member in self._members[index])
        raise MediaError(f'{text[:200]!r} is no member of this record, which has {names:.300}', 'missing_media')

    def sizes(self, index: int) -> SampleSizes | None:
        return None

    def close(self) -> None:
        """Nothing is held open."""

    def _read(self, index: int, member: _Member) -> bytes:
        file = self.files[self._places[index, 0]]
        try:
            with open(file, 'rb') as opened:
                opened.seek(member.start)
                data = opened.read(member.size)
        except OSError as error:
            raise MediaError(f'{str(file)!r} cannot be read: {error}', 'missing_media') from error
        if len(data) != member.size:
            raise MediaError(f'member {member.name!r} has {len(data)} bytes, expected {member.size}: {str(file)!r} was '
                             'cut since it was opened', 'corrupt_record')
        return data


def _extension(member: _Member) -> str:
    """'left.jpg' of 'a/007.left.jpg'."""
    return PurePosixPath(member.name).name.partition('.')[2]


def _group(file: Path, max_bytes: int) -> list[list[_Member]]:
    """Neighbouring members that share a name up to its first dot; hidden files belong to nobody."""
    groups: list[list[_Member]] = []
    last = None
    for member in _index(file, max_bytes):
        path = PurePosixPath(member.name)
        if path.name.startswith('.'):
            continue
        key = str(path.parent / path.name.partition('.')[0])
        if key != last:
            groups.append([])
            last = key
        groups[-1].append(member)
    return groups


def _index(file: Path, max_bytes: int) -> Iterator[_Member]:
    """The regular files of a tar, by its headers alone."""
    total = file.stat().st_size
    with open(file, 'rb') as opened:
        place, long_name = 0, {}
        while place + BLOCK <= total:
            opened.seek(place)
            block = opened.read(BLOCK)
            if not block.strip(b'\0'):
                return
            try:
                info = tarfile.TarInfo.frombuf(block, 'utf-8', 'surrogateescape')
            except tarfile.HeaderError as error:
                hint = ': it is compressed; decompress it first' if block[:2] in (b'\x1f\x8b', b'BZ', b'\xfd7') else ''
                raise StoreError(file, f'no tar header at byte {place} ({error}){hint}') from error
            info.name = long_name.get('path', info.name)
            size = _size(long_name.get('size', info.size), file, info.name)
            start = place + BLOCK
            place = start + -(-size // BLOCK) * BLOCK
            if start + size > total:
                raise StoreError(file, f'member {info.name[:200]!r} claims {size:,} bytes, but the file ends after '
                                 f'{total - start:,}', 'truncated')
            if info.type in _NAMES:
                if size > MAX_NAME_BYTES:
                    raise StoreError(file, f'a {_NAMES[info.type]} of {size:,} bytes, limit {MAX_NAME_BYTES:,}',
                                     'archive_refused')
                long_name |= _long_name(info.type, opened.read(size), file)
                continue
            long_name = {}
            if info.type != _FOLDER:
                _check_member(file, info, size, max_bytes)
                yield _Member(str(PurePosixPath(info.name)), start, size)


def _check_member(file: Path, info: tarfile.TarInfo, size: int, max_bytes: int) -> None:
    """StoreError unless the member is a plain file of modest size with a name inside the archive."""
    reason = None
    if info.type not in _REGULAR:
        kinds = ((info.issym(), 'a symbolic link'), (info.islnk(), 'a hard link'), (info.isdev(), 'a device or a pipe'))
        reason = f'is {next((word for is_kind, word in kinds if is_kind), f"of the unknown type {info.type!r}")}'
    elif info.name.startswith('/') or '..' in PurePosixPath(info.name).parts or '\0' in info.name:
        reason = 'has a name that leads out of the archive'
    elif size > max_bytes:
        reason = f'has {size:,} bytes, limit {max_bytes:,} (max_member_bytes)'
    if reason:
        raise StoreError(file, f'member {info.name[:200]!r} {reason}; the archive is refused', 'archive_refused')


def _size(value: str | int, file: Path, name: str) -> int:
    size = int(value) if str(value).isascii() and str(value).isdigit() and len(str(value)) < 19 else -1
    if size < 0:
        raise StoreError(file, f'member {name[:200]!r} has the size {str(value)[:40]!r}', 'archive_refused')
    return size


def _long_name(kind: bytes, data: bytes, file: Path) -> dict[str, str]:
    """What a name member says of the next one: its 'path', and in a pax header perhaps its 'size'."""
    if kind == b'L':
        return {'path': data.rstrip(b'\0').decode('utf-8', 'surrogateescape')}
    found: dict[str, str] = {}
    while kind == b'x' and data.strip(b'\0'):  # records of the form b'<length> <key>=<value>\n'
        digits = data.partition(b' ')[0]
        length = int(digits) if digits.isdigit() and len(digits) < 8 else 0
        key, equals, value = data[len(digits) + 1:length].partition(b'=')
        if not equals or length > len(data) or not value.endswith(b'\n'):
            raise StoreError(file, f'a broken pax header: {data[:40]!r}')
        if key.startswith(b'GNU.sparse'):
            raise StoreError(file, 'a sparse member; the archive is refused', 'archive_refused')
        if key in (b'path', b'size'):
            found[key.decode()] = value[:-1].decode('utf-8', 'surrogateescape')
        data = data[length:]
    return found
