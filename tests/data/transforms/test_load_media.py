"""Every kind of broken or unusual picture: defined RGB, or a refusal with the reason. Never grey filling."""
import base64
import pickle
import struct
import tracemalloc
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin

from qvlkit.data.transforms.load_media import MediaError, load_image


def picture(width=40, height=24):
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x * 5 % 256, y * 9 % 256, (x + y) * 3 % 256], axis=-1).astype(np.uint8))


def encoded(image, format, **options):
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png_header(width, height):
    def chunk(name, data):
        return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0))
            + chunk(b'IDAT', zlib.compress(b'\0' * 1000)) + chunk(b'IEND', b''))


def test_path_bytes_base64_pil_and_array_agree(tmp_path):
    data = encoded(picture(), 'PNG')
    path = tmp_path / 'a.png'
    path.write_bytes(data)
    uri = 'data:image/png;base64,' + base64.b64encode(data).decode()
    expected = np.asarray(picture())
    for source in (path, str(path), data, uri, picture(), expected):
        loaded = load_image(source)
        assert loaded.mode == 'RGB'
        np.testing.assert_array_equal(np.asarray(loaded), expected)


class Drawing:
    size = 40, 24

    def __init__(self, drawn):
        self.drawn = drawn

    def draw(self):
        return self.drawn


def test_a_source_that_draws_is_drawn_and_then_a_picture_like_any_other():
    np.testing.assert_array_equal(np.asarray(load_image(Drawing(picture()))), np.asarray(picture()))
    assert load_image(Drawing(picture().convert('L'))).mode == 'RGB'
    with pytest.raises(MediaError, match=r'Drawing\.draw\(\) to give a PIL image, got NoneType'):
        load_image(Drawing(None))


def test_content_decides_not_the_name(tmp_path):
    path = tmp_path / 'a.jpg'
    path.write_bytes(encoded(picture(), 'PNG'))
    np.testing.assert_array_equal(np.asarray(load_image(path)), np.asarray(picture()))


@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_orientation_is_applied(orientation):
    upright = picture()
    back = {2: [Image.Transpose.FLIP_LEFT_RIGHT], 3: [Image.Transpose.ROTATE_180],
            4: [Image.Transpose.FLIP_TOP_BOTTOM], 5: [Image.Transpose.TRANSPOSE], 6: [Image.Transpose.ROTATE_90],
            7: [Image.Transpose.TRANSVERSE], 8: [Image.Transpose.ROTATE_270]}
    stored = upright
    for step in back.get(orientation, []):
        stored = stored.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    loaded = load_image(encoded(stored, 'PNG', exif=exif))
    assert loaded.size == upright.size
    np.testing.assert_array_equal(np.asarray(loaded), np.asarray(upright))


def test_transparency_is_composited_on_white():
    layer = np.zeros((2, 2, 4), dtype=np.uint8)
    layer[0, 0] = (200, 0, 0, 255)
    layer[1, 1] = (0, 0, 0, 128)
    pixels = np.asarray(load_image(encoded(Image.fromarray(layer), 'PNG')))
    assert tuple(pixels[0, 0]) == (200, 0, 0) and tuple(pixels[0, 1]) == (255, 255, 255)
    assert abs(int(pixels[1, 1, 0]) - 127) <= 1


def test_palette_with_transparent_entry_is_white_there():
    image = Image.new('P', (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    pixels = np.asarray(load_image(encoded(image, 'PNG', transparency=1)))
    assert tuple(pixels[0, 0]) == (10, 20, 30) and tuple(pixels[0, 1]) == (255, 255, 255)


def test_sixteen_bit_grey_is_scaled_not_clipped():
    grey = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    pixels = np.asarray(load_image(encoded(Image.fromarray(grey), 'PNG')))
    assert pixels[0, :, 0].tolist() == [0, 1, 128, 255]
    np.testing.assert_array_equal(pixels[..., 0], pixels[..., 2])


@pytest.mark.parametrize('mode, format', [('CMYK', 'JPEG'), ('L', 'PNG'), ('1', 'PNG'), ('LA', 'PNG'), ('P', 'GIF'),
                                          ('RGB', 'WEBP'), ('RGB', 'BMP'), ('RGB', 'TIFF')])
def test_modes_and_formats_become_rgb(mode, format):
    loaded = load_image(encoded(picture().convert(mode), format))
    assert loaded.mode == 'RGB' and loaded.size == (40, 24)


def test_cmyk_keeps_its_colours():
    red = Image.new('RGB', (16, 16), (220, 30, 40)).convert('CMYK')
    pixel = load_image(encoded(red, 'JPEG', quality=95)).getpixel((8, 8))
    assert np.abs(np.array(pixel) - (220, 30, 40)).max() < 12


def test_an_animation_gives_its_first_frame():
    frames = [Image.new('RGB', (8, 8), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    data = encoded(frames[0], 'GIF', save_all=True, append_images=frames[1:])
    assert load_image(data).getpixel((4, 4)) == (255, 0, 0)


def test_one_pixel():
    assert load_image(encoded(Image.new('RGB', (1, 1), (1, 2, 3)), 'PNG')).getpixel((0, 0)) == (1, 2, 3)


@pytest.mark.parametrize('lenient', [False, True])
@pytest.mark.parametrize('format', ['JPEG', 'PNG', 'WEBP'])
def test_half_a_file_is_refused_even_where_pillow_was_made_lenient(tmp_path, monkeypatch, lenient, format):
    monkeypatch.setattr(ImageFile, 'LOAD_TRUNCATED_IMAGES', lenient)
    data = encoded(picture(400, 300), format)
    path = tmp_path / 'half.jpg'
    path.write_bytes(data[:len(data) // 2])
    with pytest.raises(MediaError, match=r'half\.jpg'):
        load_image(path)
    with pytest.raises(MediaError):  # opened leniently by somebody else, not yet decoded
        load_image(Image.open(BytesIO(encoded(picture(400, 300), 'JPEG')[:900])))
    assert ImageFile.LOAD_TRUNCATED_IMAGES is lenient


@pytest.mark.parametrize('content, reason', [
    (b'', 'is empty'), (b'<!DOCTYPE html><html>404</html>', 'looks like HTML'), (b'just some text', 'not a picture'),
    (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', 'not a picture'), (b'\xff\xd8\xff', 'bad.jpg')])
def test_what_is_no_picture_is_refused(tmp_path, content, reason):
    path = tmp_path / 'bad.jpg'
    path.write_bytes(content)
    with pytest.raises(MediaError, match=reason) as caught:
        load_image(path)
    assert 'bad.jpg' in str(caught.value)


@pytest.mark.parametrize('side', [10_000, 20_000])
def test_bombs_are_refused_from_the_header(tmp_path, side):
    path = tmp_path / 'bomb.png'
    path.write_bytes(png_header(side, side))
    tracemalloc.start()
    with pytest.raises(MediaError, match=r'bomb\.png.* too large') as caught:
        load_image(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.kind == 'too_large' and peak < 20e6


def test_bombs_are_refused_where_pillow_s_own_limit_was_lifted(monkeypatch):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', None)
    with pytest.raises(MediaError, match='10000 x 10000 pixels'):
        load_image(png_header(10_000, 10_000))


def test_huge_text_chunk_is_refused():
    info = PngImagePlugin.PngInfo()
    info.add_text('comment', 'x' * 80_000_000, zip=True)
    with pytest.raises(MediaError, match='broken'):
        load_image(encoded(picture(), 'PNG', pnginfo=info))


def test_huge_colour_profile_gives_rgb_or_a_reason():
    data = encoded(picture(), 'PNG', icc_profile=bytes(20_000_000))
    try:
        np.testing.assert_array_equal(np.asarray(load_image(data)), np.asarray(picture()))
    except MediaError as error:
        assert 'broken' in str(error)


@pytest.mark.parametrize('source, kind', [
    ('http://127.0.0.1/a.png', 'url_refused'), ('https://example.org/a.png', 'url_refused'),
    ('file:///etc/passwd', 'url_refused'), ('no/such/file.png', 'missing_media'), ('a\0b.png', 'missing_media'),
    ('data:image/png;base64,%%%', 'bad_image'), ('data:text/html,hello', 'bad_image'), (17, 'wrong_type'),
    (np.zeros((4, 4), dtype=np.uint8), 'wrong_type'), (np.zeros((4, 4, 3)), 'wrong_type')])
def test_sources_that_are_refused(source, kind):
    with pytest.raises(MediaError) as caught:
        load_image(source)
    assert caught.value.kind == kind


def test_an_oversized_data_uri_is_refused_before_it_is_decoded():
    with pytest.raises(MediaError, match='above the limit'):
        load_image('data:image/png;base64,' + 'A' * (64 * 2 ** 20))


def test_floating_point_grey_is_refused():
    with pytest.raises(MediaError, match='32-bit'):
        load_image(Image.fromarray(np.zeros((4, 4), dtype=np.float32)))


def test_errors_travel_between_processes():
    error = pickle.loads(pickle.dumps(MediaError('broken', 'bad_image')))
    assert (error.reason, error.kind) == ('broken', 'bad_image')
