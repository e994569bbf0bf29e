"""A folder of broken, odd and hostile pictures, read in one child process: defined RGB or a reason, in little memory.

Read twice, the second time with Pillow made lenient for the whole process, as some data tools do on import: the outcome
is the same. What each kind becomes in detail is tested beside `load_media`.
"""
import json
import os
import struct
import subprocess
import sys
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from qvlkit.data.transforms.load_media import load_image
from qvlkit.data.transforms.regions import to_resized
from qvlkit.data.transforms.resize import resize_image, smart_resize
from qvlkit.structures import Box

ROOT = Path(__file__).parents[2]
CODE = '''
import hashlib, json, resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from PIL import ImageFile
from qvlkit.data.transforms.load_media import MediaError, load_image
folder = Path(sys.argv[1])
load_image(folder / "plain.png")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
outcomes = []
for ImageFile.LOAD_TRUNCATED_IMAGES in (False, True):
    outcome = {}
    for path in sorted(folder.iterdir()):
        try:
            image = load_image(path)
            outcome[path.name] = [image.mode, *image.size, hashlib.sha256(image.tobytes()).hexdigest()]
        except MediaError as error:
            assert path.name in error.reason and len(error.reason) < 1000, error.reason
            outcome[path.name] = [error.kind, error.reason]
    outcomes.append(outcome)
print(json.dumps([outcomes, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before]))
'''


def encoded(image, format, **options):
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def chunk(name, data):
    return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))


def png(width, height, *chunks):
    """A black PNG; of a huge one only the beginning of its rows."""
    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + b''.join(chunk(*pair) for pair in (
        (b'IHDR', header), *chunks, (b'IDAT', zlib.compress(bytes(min(height * (3 * width + 1), 10_000)))),
        (b'IEND', b'')))


def jpeg_of_size(width, height):
    """A small JPEG whose header claims another size."""
    data = bytearray(encoded(Image.new('RGB', (16, 16)), 'JPEG'))
    start = data.index(b'\xff\xc0') + 5
    data[start:start + 4] = struct.pack('>HH', height, width)
    return bytes(data)


def pictures():
    """Name -> (file, what it becomes: a size, or kind of error and words of its reason)."""
    noise = Image.effect_noise((60, 40), 90).convert('RGB')
    photo, whole = encoded(noise, 'JPEG'), encoded(noise, 'PNG')
    red, blue = (Image.new('RGB', (60, 40), colour) for colour in ('red', 'blue'))
    palette = noise.convert('P')
    exif = Image.Exif()
    exif[0x0112] = 6
    text, profile, short = (b'k\0\0' + zlib.compress(bytes(size), 1) for size in (300_000_000, 300_000_000, 900_000))
    broken, large, right = 'bad_image', ('too_large', 'too large'), (60, 40)
    return {
        'plain.png': (whole, right), 'png-named.jpg': (whole, right),
        'closed.jpg': (photo[:len(photo) // 2] + b'\xff\xd9', (broken, 'end early')),
        'grey.jpg': (encoded(Image.new('RGB', (60, 40), (128, 128, 128)), 'JPEG'), right),
        'closed-grey.jpg': (encoded(noise.convert('L'), 'JPEG')[:-300] + b'\xff\xd9', (broken, 'end early')),
        'half.jpg': (photo[:len(photo) // 2], (broken, '')),
        'half.png': (whole[:len(whole) // 2], (broken, '')), 'nearly-whole.jpg': (photo[:-200], (broken, '')),
        'empty.jpg': (b'', (broken, 'is empty')), 'page.jpg': (b'<!DOCTYPE html><html>404</html>', (broken, 'HTML')),
        'cmyk.jpg': (encoded(noise.convert('CMYK'), 'JPEG'), right),
        'sixteen.png': (encoded(Image.fromarray(np.full((40, 60), 32768, dtype=np.uint16)), 'PNG'), right),
        'palette.png': (encoded(palette, 'PNG', transparency=3), right),
        'palette-alpha.png': (encoded(palette, 'PNG', transparency=bytes(range(256))), right),
        'moving.gif': (encoded(red, 'GIF', save_all=True, append_images=[blue] * 300), right),
        'cut-moving.gif': (encoded(red, 'GIF', save_all=True, append_images=[blue, noise])[:-400], right),
        'turned.jpg': (encoded(noise.transpose(Image.Transpose.ROTATE_90), 'JPEG', exif=exif), right),
        'bad-exif.jpg': (photo[:2] + b'\xff\xe1\0\x14Exif\0\0' + b'\xff' * 12 + photo[2:], right),
        'white.jpg': (encoded(Image.new('RGB', (2000, 1500), 'white'), 'JPEG', quality=1, optimize=True,
                              progressive=True), (2000, 1500)),
        'one.png': (encoded(Image.new('RGB', (1, 1)), 'PNG'), (1, 1)),
        'line.png': (encoded(Image.new('RGB', (900, 3)), 'PNG'), (900, 3)),
        'text.png': (png(60, 40, (b'zTXt', text)), (broken, 'broken')),
        'texts.png': (png(60, 40, *[(b'zTXt', short)] * 400), (broken, 'broken')),
        'profile.png': (png(60, 40, (b'iCCP', profile)), None),  # read without its profile, or refused
        'ten.png': (png(10_000, 10_000), large), 'twenty.png': (png(20_000, 20_000), large),
        'wide.png': (png(2 ** 31 - 1, 1), large), 'sixty.jpg': (jpeg_of_size(65_500, 65_500), large),
        'claims-more.jpg': (jpeg_of_size(4_000, 4_000), (broken, 'too few for')),
        'sixty.gif': (b'GIF89a' + struct.pack('<HH', 60_000, 60_000) + encoded(red, 'GIF')[10:], large),
        'fifty.bmp': (b'BM' + bytes(8) + struct.pack('<IIiiHH24x', 54, 40, 50_000, 50_000, 1, 24), large)}


@pytest.fixture(scope='module')
def given():
    return pictures()


@pytest.fixture(scope='module')
def read(tmp_path_factory, given):
    """(outcome as usual, outcome with Pillow made lenient, growth of the child's memory in bytes)."""
    folder = tmp_path_factory.mktemp('pictures')
    for name, (data, _) in given.items():
        (folder / name).write_bytes(data)
    result = subprocess.run([sys.executable, '-c', CODE, folder, ROOT], capture_output=True, text=True, timeout=100,
                            check=False, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert result.returncode == 0, result.stderr[-3000:]
    (usual, lenient), growth = json.loads(result.stdout)
    return usual, lenient, growth * 1024


def test_each_picture_is_defined_or_refused_with_its_reason(given, read):
    usual, found = read[0], {}
    for name, (_, expected) in given.items():
        outcome = usual[name]
        found[name] = outcome[:3] if outcome[0] == 'RGB' else outcome
        if expected is None:
            assert found[name] == ['RGB', 60, 40] or outcome[0] == 'bad_image', (name, outcome)
        elif isinstance(expected[0], int):
            assert found[name] == ['RGB', *expected], (name, outcome)
        else:
            assert outcome[0] == expected[0] and expected[1] in outcome[1], (name, outcome)


def test_the_outcome_is_the_same_where_pillow_was_made_lenient(read):
    assert read[0] == read[1]


def test_memory_stays_small(read):
    assert read[2] < 200e6


def test_a_line_has_no_size_for_the_model():
    with pytest.raises(ValueError, match='300'):
        smart_resize(3, 900, factor=28, min_pixels=3136, max_pixels=12_845_056)


@pytest.mark.parametrize('orientation', [3, 6, 8])
def test_boxes_mean_the_upright_picture(orientation):
    """A camera's picture is stored turned: boxes in source pixels are of what a viewer sees, and stay on the object."""
    upright = Image.new('RGB', (320, 200))
    ImageDraw.Draw(upright).rectangle((64, 40, 127, 139), fill='white')  # pixels 64..127, 40..139
    turn = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    loaded = load_image(encoded(upright.transpose(turn), 'PNG', exif=exif))
    height, width = smart_resize(loaded.height, loaded.width, factor=28, min_pixels=3136, max_pixels=12_845_056)
    box = to_resized(Box((64, 40, 128, 140)), [(loaded.size, (width, height))])
    rows, columns = np.nonzero(np.asarray(resize_image(loaded, (height, width)).convert('L')) > 127)
    found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert loaded.size == (320, 200) and np.abs(np.array(box.coordinates) - found).max() <= 1
