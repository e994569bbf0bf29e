"""The processes of a run: joined when the first strategy needs it, parted at the end of the run.

torchrun tells each process by its environment who it is; this file is the only one that reads it.
"""
import contextlib
import datetime
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from qvlkit.registry import STRATEGIES


def launched_processes() -> int:
    """How many processes torchrun started; 1 where it did not."""
    return int(os.environ.get('WORLD_SIZE', '1')) if dist.is_available() and dist.is_torchelastic_launched() else 1


def build_strategy(config: dict) -> Any:
    """The strategy that a config names; without one, DDP if torchrun started several processes, else one device.

    Args:
        config: The whole config; `strategy` and `precision` are read.

    Raises:
        ValueError: There are several processes, but the strategy is of one.
    """
    processes = launched_processes()
    settings = config.get('strategy') or dict(type='DDP' if processes > 1 else 'SingleDevice')
    if processes > 1 and settings.get('type') == 'SingleDevice':
        raise ValueError(f'strategy: SingleDevice is one process, but torchrun started {processes}; take '
                         "strategy=dict(type='DDP'), or start it without torchrun")
    return STRATEGIES.build(settings, config_key='strategy', precision=config.get('precision', 'auto'))


@contextlib.contextmanager
def processes() -> Iterator[None]:
    """Around a run, also as a decorator: parts the processes that its strategies joined, however it ends."""
    before = dist.is_available() and dist.is_initialized()
    try:
        yield
    finally:
        if not before and dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()


def own_device(device: str | torch.device | None) -> torch.device:
    """The device of this process, and torch's current one if it is a CUDA device."""
    device = torch.device(device or ('cuda' if torch.cuda.is_available() else 'cpu'))
    if device.type != 'cuda':
        return device
    number = int(os.environ.get('LOCAL_RANK', '0')) if device.index is None else device.index
    if number >= torch.cuda.device_count():
        raise ValueError(f'strategy: process {number} of this machine finds {torch.cuda.device_count()} CUDA devices; '
                         'start at most one process for each (torchrun --nproc-per-node)')
    device = torch.device('cuda', number)
    torch.cuda.set_device(device)
    return device


def connect(device: torch.device, timeout: float) -> None:
    """Join the other processes, once: as torchrun's environment says, or as a group of one without it."""
    if dist.is_initialized():
        return
    settings = dict(backend='cpu:gloo,cuda:nccl' if device.type == 'cuda' else 'gloo',
                    timeout=datetime.timedelta(seconds=timeout))
    if not dist.is_torchelastic_launched():
        settings |= dict(store=dist.HashStore(), rank=0, world_size=1)
    dist.init_process_group(**settings)
