"""Fixtures that tests in several folders use."""
import os
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import settings

os.environ.setdefault('GOMP_SPINCOUNT', '50000')  # before torch is imported: as qvlkit's tools do it
settings.register_profile('the same examples every time', derandomize=True)
settings.load_profile('the same examples every time')
BITS = 18  # enough to number the frames of two hours


def pytest_collection_modifyitems(items):
    """What is run for acceptance alone is no quick test either."""
    for item in items:
        if item.get_closest_marker('acceptance'):
            item.add_marker('slow')


def _picture(number: int, width: int, height: int) -> np.ndarray:
    """A grey picture that shows its number: a bar for each bit in the upper half, bright for 1; the lower is plain."""
    image = np.full((height, width), 90, np.uint8)
    bits = np.arange(number, number + 1)[:, None] >> np.arange(BITS) & 1
    image[:height // 2, :width // BITS * BITS] = np.where(bits, 220, 30).repeat(width // BITS, 1)
    return image


def _number(image: np.ndarray) -> int:
    """The number that a frame shows."""
    height, width = image.shape[:2]
    bars = image[2:height // 2 - 2, :width // BITS * BITS].reshape(height // 2 - 4, BITS, -1, 3)
    return sum(1 << bit for bit, bar in enumerate(bars.mean((0, 2, 3))) if bar > 125)


def _write(path: Path, frames: int, rate, *, codec: str = 'libx264', options: dict | None = None, times=None,
           gop: int = 250, turn: int = 0, size: tuple[int, int] = (72, 48), format: str | None = None) -> Path:
    """A video file of numbered frames; `times` in milliseconds, for a variable rate; `turn` in degrees."""
    av = pytest.importorskip('av')
    base = Fraction(1, 1000) if times is not None else 1 / Fraction(rate)
    with av.open(str(path), 'w', format=format) as container:
        stream = container.add_stream(codec, rate=Fraction(rate), options=options or {})
        stream.width, stream.height = size
        stream.pix_fmt = 'yuvj420p' if codec == 'mjpeg' else 'yuv420p'
        stream.codec_context.gop_size = gop
        stream.codec_context.time_base = stream.time_base = base
        if turn:
            if not hasattr(stream, 'set_display_rotation'):
                pytest.skip('this PyAV cannot write a video that is to be turned')
            stream.set_display_rotation(turn)
        colour = np.full((size[1] // 2, size[0]), 128, np.uint8)
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(np.concatenate([_picture(index, *size), colour]),
                                              format=stream.pix_fmt)
            frame.pts, frame.time_base = index if times is None else times[index], base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope='session')
def shorten():
    """Config -> a copy with two blocks in each part and a few samples in each data set that is made."""
    def shorter(value, key=''):
        if isinstance(value, dict):
            value = {name: shorter(item, name) for name, item in value.items()}
            if 'full_attention_blocks' in value:
                value['full_attention_blocks'] = [1]
            return value
        return min(value, {'depth': 2, 'size': 40, 'window': 16}.get(key, value)) if type(value) is int else value

    def shorten(config):
        config = shorter(config.to_dict())
        for stage in config['stages'].values():
            stage['loader']['num_workers'] = 0
        return config
    return shorten


@pytest.fixture(scope='session')
def clips() -> SimpleNamespace:
    """Numbered videos: `write` makes a file, `number` reads a frame, `picture` is what was drawn."""
    return SimpleNamespace(write=_write, number=_number, picture=_picture)
