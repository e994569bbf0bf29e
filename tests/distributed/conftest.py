"""Runs of several processes: each is started as torchrun starts it, and killed at a deadline."""
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
DEADLINE = 120.0  # seconds

_spec = importlib.util.spec_from_file_location('small_config', HERE.parent / 'train' / 'conftest.py')
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
small_file, small, losses, six_stages = _module.small_file, _module.small, _module.losses, _module.six_stages


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return listener.getsockname()[1]


def _finish(processes: list[subprocess.Popen], deadline: float) -> list[str]:
    """Wait for all; where one fails or the deadline passes, kill all and say what they wrote."""
    end = time.monotonic() + deadline
    while any(process.poll() is None for process in processes):
        if time.monotonic() > end or any(process.poll() for process in processes):
            break
        time.sleep(0.05)
    late = [process.poll() is None for process in processes]
    for process in processes:
        process.kill()
    texts = [process.communicate()[0] for process in processes]
    codes = [process.returncode for process in processes]
    assert not any(codes), f'exit codes {codes}, still running {late}:\n' + '\n---\n'.join(texts)[-6000:]
    return texts


@pytest.fixture
def on_ranks(tmp_path):
    """Call a function of workers.py in `ranks` processes -> what each returned.

    The function gets `arguments`, plain data, and an empty folder that the processes share.
    """
    def run(function: str, ranks: int, arguments: dict, *, deadline: float = DEADLINE) -> list:
        folder = tmp_path / f'{function}_{ranks}_{len(list(tmp_path.iterdir()))}'
        folder.mkdir()
        (folder / 'arguments.json').write_text(json.dumps(arguments))
        port, processes = _free_port(), []
        for rank in range(ranks):
            environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
            if ranks > 1:
                environment |= {'RANK': str(rank), 'LOCAL_RANK': str(rank), 'WORLD_SIZE': str(ranks),
                                'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port), 'TORCHELASTIC_RUN_ID': 'test'}
            processes.append(subprocess.Popen(
                [sys.executable, str(HERE / 'workers.py'), function, str(folder)], env=environment, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
        _finish(processes, deadline)
        return [json.loads((folder / f'result{rank}.json').read_text()) for rank in range(ranks)]
    return run
