"""From encoded pictures to patches: ours against transformers' PIL image processor, which must agree to the last bit.

    python benchmarks/image_path.py FOLDER [--rounds 7] [--no-save]

FOLDER holds photos, scans or screens (.jpg, .jpeg, .png). Both sides start from the file's bytes, decode them, and
resize by the released limits. Ours ends with uint8 patches without the copied second frame, which the model normalises
on the device; theirs with float32 patches of two frames. The comparison before the timing normalises ours.
"""
import argparse
from io import BytesIO
from pathlib import Path

import harness  # first: it makes qvlkit importable
import numpy as np

from qvlkit.data.preprocessor_config import IMAGE_MEAN, IMAGE_STD
from qvlkit.data.transforms.load_media import load_image
from qvlkit.data.transforms.patchify import patchify_image
from qvlkit.data.transforms.resize import resize_image, smart_resize
from qvlkit.structures import VisionGeometry

GEOMETRY = VisionGeometry(14, 2, 2)
MIN_PIXELS, MAX_PIXELS = 3136, 12_845_056


def read_files(folder: Path) -> list[bytes]:
    """The encoded pictures under `folder`, by name."""
    paths = sorted(path for path in folder.rglob('*') if path.suffix.lower() in ('.jpg', '.jpeg', '.png'))
    if not paths:
        raise SystemExit(f'{folder}: no .jpg, .jpeg or .png file')
    return [path.read_bytes() for path in paths]


def ours(data: bytes) -> np.ndarray:
    """Encoded picture -> uint8 patches (N, C*P*P)."""
    image = load_image(data)
    size = smart_resize(image.height, image.width, factor=GEOMETRY.factor, min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)
    return patchify_image(np.asarray(resize_image(image, size)), GEOMETRY)[0]


def make_theirs():
    """Encoded picture -> float32 patches (N, C*F*P*P), by transformers."""
    from PIL import Image
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
    processor = Qwen2VLImageProcessorPil(size=dict(shortest_edge=MIN_PIXELS, longest_edge=MAX_PIXELS))
    return lambda data: processor(Image.open(BytesIO(data)).convert('RGB'), return_tensors='np').pixel_values


def check_equal(files: list[bytes], theirs) -> None:
    """Ours, normalised with its frame repeated, is theirs, bit for bit; AssertionError if not."""
    mean, std = (np.array(value, np.float32)[:, None, None, None] for value in (IMAGE_MEAN, IMAGE_STD))
    for data in files:
        mine, other = ours(data), theirs(data)
        pixels = mine.reshape(-1, 3, 1, 14, 14).astype(np.float32) / np.float32(255)  # as the model normalises
        repeated = np.repeat((pixels - mean) / std, 2, axis=2).reshape(len(mine), -1)
        assert np.array_equal(repeated, other), f'{np.abs(repeated - other).max()} apart'
        assert other.nbytes == 8 * mine.nbytes


def main() -> None:
    """Check, time, print, save."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('folder', type=Path)
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--no-save', action='store_true')
    arguments = parser.parse_args()
    files, theirs = read_files(arguments.folder), make_theirs()
    check_equal(files, theirs)
    sides = dict(transformers=lambda: [theirs(data) for data in files], ours=lambda: [ours(data) for data in files])
    row = harness.compare(harness.interleaved(sides, rounds=arguments.rounds), 'transformers', 'ours')
    row |= dict(setting=f'{len(files)} pictures', images_per_second=round(1000 * len(files) / row['ours_ms'], 1),
                bytes_of_theirs=round(1 / 8, 3))
    print(row)
    if not arguments.no_save:
        print(harness.save('image_path', row))


if __name__ == '__main__':
    main()
