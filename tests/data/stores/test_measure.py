"""Sizes from headers are the sizes that decoding gives."""
from io import BytesIO

import pytest
from PIL import Image

from qvlkit.data.stores.measure import image_size, measure_medium
from qvlkit.data.transforms.load_media import MediaError, load_image
from qvlkit.structures import Media, MediaSize


@pytest.mark.parametrize('form', ['JPEG', 'PNG', 'WEBP', 'TIFF'])
@pytest.mark.parametrize('orientation', [None, 1, 3, 6, 8, 9])
def test_equal_to_the_decoded_upright_picture(form, orientation):
    image, exif = Image.new('RGB', (12, 5), 'green'), Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    buffer = BytesIO()
    image.save(buffer, form, **(dict(exif=exif) if orientation else {}))
    assert image_size(buffer.getvalue()) == load_image(buffer.getvalue()).size


def test_png_with_its_orientation_behind_the_pixels(make):
    data = make.encoded(size=(12, 5), form='PNG')
    exif = Image.Exif()
    exif[0x0112] = 6
    body = exif.tobytes().removeprefix(b'Exif\0\0')
    import struct
    import zlib
    chunk = struct.pack('>I', len(body)) + b'eXIf' + body + struct.pack('>I', zlib.crc32(b'eXIf' + body))
    data = data[:-12] + chunk + data[-12:]
    assert image_size(data) == load_image(data).size == (5, 12)


def test_nothing_is_decoded(make, monkeypatch):
    data = make.encoded(size=(640, 480))
    monkeypatch.setattr(Image.Image, 'load', lambda self: pytest.fail('decoded'))
    assert image_size(data) == (640, 480)


def test_broken_and_huge_pictures(make):
    for data in (b'', b'<html>', make.encoded()[:20]):
        with pytest.raises(MediaError):
            image_size(data)
    png = bytearray(make.encoded(form='PNG'))
    png[16:24] = (20_000).to_bytes(4, 'big') * 2
    with pytest.raises(MediaError, match='broken|too large'):
        image_size(bytes(png))


def test_videos(make):
    frames = Media('video', [make.encoded(size=(6, 4))] * 3, fps=2.0)
    assert measure_medium(frames) == MediaSize('frames', 6, 4, 3, 1.5)
    known = MediaSize('video', 6, 4, 30, 1.0)
    assert measure_medium(Media('video', b'mp4')) is None
    assert measure_medium(Media('video', b'mp4'), lambda data: known if data == b'mp4' else None) == known
    assert measure_medium(Media('video', b'mp4'), lambda data: MediaSize('video', 6, 4)) is None
    assert measure_medium(Media('video', b'mp4', start=1.0), lambda data: known) is None
