"""The parent's end of the process that decodes (`child.py`): start it, ask it, kill it.

It is a plain subprocess and not one of `multiprocessing`, since a loader's workers may not have such children.
"""
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Sequence

START = 120.0  # seconds that a busy machine may take to start Python
_CODE = '''import json, sys
sys.path[:], parent, modules = json.loads(sys.argv[1])
from qvlkit.data.video_readers.child import main
main(parent, modules)'''


class ChildError(Exception):
    """The process gave no answer: it was killed at its deadline (`timeout`), or it ended by itself.

    Args:
        reason: What happened.
        timeout: Whether it was too late.
    """

    def __init__(self, reason: str, timeout: bool = False):
        super().__init__(reason)
        self.timeout = timeout


class Child:
    """A running process that decodes. Any failure ends it.

    Args:
        modules: To be imported in it first.
    """

    def __init__(self, modules: Sequence[str] = ()):
        self.owner = os.getpid()
        self._log = tempfile.TemporaryFile()
        arguments = json.dumps([sys.path, os.getpid(), list(modules)])
        self._process = subprocess.Popen([sys.executable, '-c', _CODE, arguments], bufsize=0, stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, stderr=self._log)
        self.stop = weakref.finalize(self, _stop, self._process, os.getpid())
        self._selector = selectors.PollSelector()
        self._selector.register(self._process.stdout, selectors.EVENT_READ)
        self._buffer = bytearray()
        self._deadline = START
        self._silent_until = self._end = time.monotonic() + START
        self.receive()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def alive(self) -> bool:
        """Whether it can be asked."""
        return self.stop.alive and self._process.poll() is None

    def ask(self, request: dict, *, deadline: float, longest: float) -> None:
        """Send a request, whose answer `receive` then gives message by message.

        Args:
            request: See `child.py`.
            deadline: Seconds that may pass before each message.
            longest: Seconds that the whole answer may take.
        """
        self._log.seek(0)
        self._log.truncate()
        self._deadline = deadline
        self._silent_until, self._end = time.monotonic() + deadline, time.monotonic() + longest
        try:
            self._process.stdin.write(json.dumps({**request, 'deadline': deadline}).encode() + b'\n')
        except BrokenPipeError:
            self._ended()

    def receive(self) -> tuple[dict, bytes]:
        """The next message: header and payload."""
        while (cut := self._buffer.find(b'\n')) < 0:
            self._more()
        header = json.loads(self._buffer[:cut])
        size = cut + 1 + header['bytes']
        while len(self._buffer) < size:
            self._more()
        payload = bytes(memoryview(self._buffer)[cut + 1:size])
        del self._buffer[:size]
        self._silent_until = time.monotonic() + self._deadline
        return header, payload

    def _more(self) -> None:
        """Wait for bytes of the current message."""
        left = min(self._silent_until, self._end) - time.monotonic()
        if left <= 0 or not self._selector.select(left):
            self.stop()
            raise ChildError(f'no sign of life for {self._deadline:g} s' if self._silent_until <= self._end else
                             'not ready in time', timeout=True)
        data = os.read(self._process.stdout.fileno(), 2 ** 20)
        if not data:
            self._ended()
        self._buffer += data

    def _ended(self) -> None:
        code = self._process.wait()
        self.stop()
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - 4000))
        lines = self._log.read().decode(errors='replace').strip().splitlines()
        raise ChildError(f'its process ended by itself ({f"signal {-code}" if code < 0 else f"exit code {code}"})'
                         + (f': {lines[-1][:300]}' if lines else ''))


def _stop(process: subprocess.Popen, owner: int) -> None:
    """Kill the process and wait for it; in a copy made by fork, only let go of it."""
    if os.getpid() == owner:
        process.kill()
        process.wait()
    process.stdin.close()
    process.stdout.close()
