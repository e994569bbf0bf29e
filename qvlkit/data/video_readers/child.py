"""The process that decodes: it answers requests of `decoder.py`, one after the other, until its parent is gone.

A request is one line of JSON on standard input. The answer is a series of messages on standard output, each a line of
JSON and as many raw bytes as that line says:

    {"do": "probe", "reader": "PyAVReader", "path": ..., "deadline": 20}
        -> {"info": [width, height, seconds], "bytes": n} and the times of all frames (float64)
    {"do": "read", "frames": [0, 15], "edits": [...], ...}
        -> for each frame {"shape": [h, w, 3], "bytes": n} and its pixels (uint8)
    either may end with {"error": ..., "kind": ..., "decodable": ...}

What libraries print goes to standard error. A reader that spins in C can neither be interrupted nor notice that its
parent has died, so the kernel's alarm clock ends this process some seconds after the deadline.
"""
import importlib
import json
import os
import select
import signal
import sys
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from PIL import Image

from qvlkit.data.transforms.edits import apply_edits, from_json
from qvlkit.data.transforms.load_media import MAX_SOURCE_PIXELS, MediaError
from qvlkit.data.video_readers.base import VideoReader

GRACE = 5.0  # seconds after its deadline at which a forgotten process ends


class Decoder:
    """Answers requests; keeps the reader of the last one open.

    Args:
        out: Where answers go.
    """

    def __init__(self, out: BinaryIO):
        self._out, self._key, self._reader = out, None, None

    def answer(self, request: dict) -> None:
        """Send the messages that answer one request."""
        self._set_alarm(request)
        try:
            reader = self._open(request['reader'], request['path'])
            if request['do'] == 'probe':
                info = reader.info()
                self._send(dict(info=[info.width, info.height, info.seconds]), info.timestamps.tobytes())
            else:
                self._send_frames(reader, request)
        except (MediaError, OSError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            self._forget()
            self._send(dict(error=str(error) or type(error).__name__, kind=getattr(error, 'kind', 'bad_video'),
                            decodable=getattr(error, 'decodable', 0)))
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _send_frames(self, reader: VideoReader, request: dict) -> None:
        info, edits, indices = reader.info(), from_json(request['edits']), request['frames']
        for index, frame in zip(indices, reader.frames(indices)):
            if frame.shape != (info.height, info.width, 3):
                raise MediaError(f'frame {index} of {request["path"]!r} has the shape {frame.shape}, '
                                 f'its stream {(info.height, info.width, 3)}', 'bad_video')
            if edits:
                frame = np.asarray(apply_edits(Image.fromarray(frame), edits))
            self._send(dict(shape=frame.shape), np.ascontiguousarray(frame).tobytes())
            self._set_alarm(request)

    def _open(self, name: str, path: str) -> VideoReader:
        """The reader of this file; of the last request if it was for the same."""
        from qvlkit.registry import VIDEO_READERS
        status = os.stat(path)
        key = name, path, status.st_mtime_ns, status.st_size, status.st_ino
        if self._key != key:
            self._forget()
            try:
                reader_type = VIDEO_READERS.get(name, config_key='readers')
            except ValueError as error:
                raise MediaError(str(error), 'unknown_reader') from error
            reader = reader_type(path)
            info = reader.info()
            if info.width * info.height > MAX_SOURCE_PIXELS:
                reader.close()
                raise MediaError(f'{path!r} is too large to decode: {info.width} x {info.height} pixels, limit '
                                 f'{MAX_SOURCE_PIXELS}', 'too_large')
            self._reader, self._key = reader, key
        return self._reader

    def _forget(self) -> None:
        if self._reader is not None:
            self._reader.close()
        self._reader = self._key = None

    def _send(self, header: dict, payload: bytes = b'') -> None:
        self._out.write(json.dumps({**header, 'bytes': len(payload)}).encode() + b'\n' + payload)
        self._out.flush()

    def _set_alarm(self, request: dict) -> None:
        signal.setitimer(signal.ITIMER_REAL, request['deadline'] + GRACE)


def requests(parent: int) -> Iterator[dict]:
    """Requests from standard input, until it is closed or the process `parent` is gone."""
    buffer = b''
    while True:
        while b'\n' not in buffer:
            if select.select([0], [], [], GRACE)[0]:
                data = os.read(0, 2 ** 16)
                if not data:
                    return
                buffer += data
            elif os.getppid() != parent:
                return
        line, buffer = buffer.split(b'\n', 1)
        yield json.loads(line)


def main(parent: int, modules: list[str]) -> None:
    """Serve until the parent is gone.

    Args:
        parent: Its process id.
        modules: To be imported first; they register readers.
    """
    out = os.fdopen(os.dup(1), 'wb')
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group; the parent decides when to stop
        signal.signal(number, signal.SIG_IGN)
    for module in modules:
        importlib.import_module(module)
    decoder = Decoder(out)
    out.write(b'{"ready": true, "bytes": 0}\n')
    out.flush()
    for request in requests(parent):
        decoder.answer(request)
