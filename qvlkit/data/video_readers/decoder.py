"""Read videos, whatever they are: each reader in turn, in a process that is killed when it hangs.

    decoder = VideoDecoder()
    info = decoder.probe('a.mp4')                      # size and times, nothing decoded
    frames = decoder.read('a.mp4', [0, 15, 30, 45], edits=[Resize(224, 168)])   # uint8 (4, 168, 224, 3)

Edits are done as each frame is decoded, so hours of video never lie in memory, only what comes out. The process lives
on from one request to the next; it is started at the first one and again after it was killed. Each process that uses a
decoder (a worker of a loader, after a fork or a pickle) has its own.
"""
import hashlib
import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from qvlkit.data.transforms.edits import Edit, to_json
from qvlkit.data.transforms.load_media import MediaError, is_url
from qvlkit.data.video_readers.base import VideoInfo
from qvlkit.data.video_readers.process import Child, ChildError

READERS = ('PyAVReader', 'DecordReader', 'TorchCodecReader')
REMEMBERED = 32  # videos whose times are kept
# Beginnings of files that FFmpeg would follow to other files, or that are no video at all.
REFUSED = {b'#EXTM3U': 'a playlist', b'ffconcat': 'a playlist', b'v=0': 'a session description', b'<': 'HTML or XML'}


@dataclass(frozen=True)
class _File:
    """A video on disk: how errors name it, where it is, and what it is remembered by."""
    name: str
    path: str
    key: tuple


class VideoDecoder:
    """Probe and read video files.

    Args:
        readers: Registered names, in the order in which they are tried. Those whose package is absent are passed over.
        deadline: Seconds that a reader may take to open a file, and again for each frame.
        longest: Seconds that a reader may take for a whole request.
        modules: To be imported in the decoding process first, for readers that are registered elsewhere.
    """

    def __init__(self, readers: Sequence[str] = READERS, deadline: float = 20.0, *, longest: float = 600.0,
                 modules: Sequence[str] = ()):
        if not readers:
            raise ValueError('readers: expected the name of at least one video reader, got none')
        self.readers, self.deadline = tuple(readers), float(deadline)
        self.longest, self.modules = float(longest), tuple(modules)
        self._reset()

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if not key.startswith('_')}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._reset()

    def _reset(self) -> None:
        self._owner, self._lock = os.getpid(), threading.RLock()
        self._child: Child | None = None
        self._known: OrderedDict[tuple, tuple[VideoInfo, str]] = OrderedDict()  # with the reader that knew
        self._absent: dict[str, str] = {}  # reader -> why its package cannot be used

    def close(self) -> None:
        """End the decoding process."""
        if self._child is not None and self._owner == os.getpid():
            self._child.stop()
        self._child = None

    def probe(self, source: str | Path | bytes) -> VideoInfo:
        """Size and times of a video, remembered until the file changes.

        Raises:
            ValueError: A reader is not registered, or one of `modules` does not import.
            MediaError: There is no such file, or no reader can read it; kinds 'missing_media', 'bad_video',
                'video_timeout' (no reader answered in time) and 'no_video_reader'.
        """
        with self._use(source) as file:
            return self._probe(file)[0]

    def read(self, source: str | Path | bytes, frames: Sequence[int], edits: Sequence[Edit] = ()) -> np.ndarray:
        """Frames of a video after `edits`, uint8 (n, H, W, 3).

        If the stream turns out to end before the container says, on every reader, the last frame there is stands for
        those that are not, and `probe` says from then on how many there are.

        Args:
            source: Path or encoded bytes.
            frames: Indices below `probe(source).num_frames`, ascending; they may repeat.
            edits: What is done to each frame.

        Raises:
            ValueError: An index is out of range or out of order; or as for `probe`.
            MediaError: As for `probe`.
        """
        with self._use(source) as file:
            info, knower = self._probe(file)
            frames = [int(index) for index in frames]
            if not frames or frames[0] < 0 or frames[-1] >= info.num_frames or frames != sorted(frames):
                raise ValueError(f'frames of {file.name}: expected ascending indices from 0 to {info.num_frames - 1}, '
                                 f'got {str(frames)[:200]}')
            request = dict(do='read', frames=frames, edits=to_json(edits))
            decodable: dict[str, int] = {}
            try:
                return self._first_answer(file, request, knower, decodable)[0]
            except MediaError:
                if not max(decodable.values(), default=0):
                    raise
            knower, count = max(decodable.items(), key=lambda item: item[1])
            if count < info.num_frames:
                info = replace(info, timestamps=info.timestamps[:count], seconds=float(info.timestamps[count]))
                self._remember(file, info, knower)
            request['frames'] = [min(index, count - 1) for index in frames]
            return self._first_answer(file, request, knower, {})[0]

    def _probe(self, file: _File) -> tuple[VideoInfo, str]:
        if file.key not in self._known:
            self._remember(file, *self._first_answer(file, dict(do='probe')))
        self._known.move_to_end(file.key)
        return self._known[file.key]

    def _remember(self, file: _File, info: VideoInfo, reader: str) -> None:
        self._known[file.key] = info, reader
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)

    def _first_answer(self, file: _File, request: dict, first: str = '', decodable: dict | None = None) -> tuple:
        """(answer, reader) of the first reader that has one; `first` is asked before the others."""
        reasons, late, kinds = [], 0, []
        for reader in sorted(self.readers, key=lambda name: name != first):
            if reader in self._absent:
                continue
            try:
                return self._ask(dict(request, reader=reader, path=file.path)), reader
            except ChildError as error:
                reasons.append(f'{reader}: {error}')
                late += error.timeout
            except _Refusal as error:
                if error.kind == 'unknown_reader':
                    raise ValueError(error.reason) from None
                if error.kind == 'no_video_reader':
                    self._absent[reader] = error.reason
                    continue
                reasons.append(f'{reader}: {error.reason.replace(repr(file.path), "it")}')
                kinds.append(error.kind)
                if error.decodable and decodable is not None:
                    decodable[reader] = error.decodable
        if not reasons:
            raise MediaError(f'{file.name}: no video reader can be used: ' + '; '.join(self._absent.values()),
                             'no_video_reader')
        kind = 'video_timeout' if late == len(reasons) else 'too_large' if 'too_large' in kinds else 'bad_video'
        raise MediaError(f'{file.name} cannot be read as a video ({"; ".join(reasons)})', kind)

    def _ask(self, request: dict) -> VideoInfo | np.ndarray:
        """One request to one reader, all messages of its answer."""
        if self._child is None or not self._child.alive():
            try:
                self._child = Child(self.modules)
            except ChildError as error:
                raise ValueError(f'the process that decodes videos does not start ({error}); modules to be imported in '
                                 f'it: {list(self.modules)}') from error
        child, answered = self._child, False
        try:
            child.ask(request, deadline=self.deadline, longest=self.longest)
            answer = _receive_info(child) if request['do'] == 'probe' else _receive_frames(child, request['frames'])
            answered = True
            return answer
        except _Refusal:
            answered = True
            raise
        finally:
            if not answered:  # also when Ctrl-C comes between two messages
                child.stop()

    @contextmanager
    def _use(self, source: str | Path | bytes) -> Iterator[_File]:
        """The source as a file, which is looked at before a reader sees it."""
        if self._owner != os.getpid():  # a fork: the process is the parent's, and so may the lock be
            self._reset()
        with self._lock:
            if isinstance(source, (bytes, bytearray, memoryview)):
                with tempfile.NamedTemporaryFile(prefix='qvlkit_video_') as file:
                    file.write(source)
                    file.flush()
                    digest = hashlib.blake2b(source, digest_size=16).digest()
                    yield _checked(_File(f'video of {len(source)} bytes', file.name, (digest,)), bytes(source[:16]))
                return
            if not isinstance(source, (str, Path)):
                raise MediaError(f'expected a video as path or bytes, got {type(source).__name__}', 'wrong_type')
            name = repr(str(source)[:500])
            if is_url(str(source)):
                raise MediaError(f'{name} is a URL: only files and bytes are read', 'url_refused')
            try:
                with open(source, 'rb') as file:
                    head, status = file.read(16), os.stat(file.fileno())
            except FileNotFoundError:
                raise MediaError(f'{name} does not exist', 'missing_media') from None
            except (OSError, ValueError) as error:
                raise MediaError(f'{name} cannot be read: {error}', 'missing_media') from error
            path = os.path.abspath(source)
            yield _checked(_File(name, path, (path, status.st_mtime_ns, status.st_size)), head)


class _Refusal(Exception):
    """A reader's own answer that it cannot."""

    def __init__(self, header: dict):
        super().__init__(header['error'])
        self.reason, self.kind, self.decodable = header['error'], header['kind'], header['decodable']


def _checked(file: _File, head: bytes) -> _File:
    """The file, unless its first bytes say that it is no video."""
    if not head:
        raise MediaError(f'{file.name} is empty (0 bytes)', 'bad_video')
    for mark, what in REFUSED.items():
        if head.lstrip(b'\xef\xbb\xbf \r\n\t').startswith(mark):
            raise MediaError(f'{file.name} is not a video: it looks like {what}', 'bad_video')
    return file


def _receive(child: Child) -> tuple[dict, bytes]:
    header, payload = child.receive()
    if 'error' in header:
        raise _Refusal(header)
    return header, payload


def _receive_info(child: Child) -> VideoInfo:
    header, payload = _receive(child)
    width, height, seconds = header['info']
    return VideoInfo(width, height, np.frombuffer(payload, np.float64), seconds)


def _receive_frames(child: Child, indices: Sequence[int]) -> np.ndarray:
    """All frames; memory for them is taken when the size of the first is known."""
    frames = None
    for i in range(len(indices)):
        header, payload = _receive(child)
        if frames is None:
            frames = np.empty((len(indices), *header['shape']), np.uint8)
        frames[i] = np.frombuffer(payload, np.uint8).reshape(header['shape'])
    return frames
