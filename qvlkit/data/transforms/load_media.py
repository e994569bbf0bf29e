"""Whatever holds a picture, to an upright 8-bit RGB picture, or a MediaError that says why not.

What comes out is defined for every kind of file:

- EXIF orientation is applied; of an animation the first frame is taken.
- Transparency is composited on white, as in the official demo code.
- 16-bit grey is scaled by 255 / 65535, not clipped; CMYK, palette and grey go through Pillow's conversion.
- 32-bit grey ('I', 'F') has no agreed white level and is refused.
- A file is judged by its content, not by its name. A truncated file is refused, never filled with grey, even where
  another library has switched Pillow's leniency on for the whole process, or where a JPEG's end mark was put back.
- The number of pixels is checked in the header, before anything is decoded.

URLs are refused: pictures come from disk or memory.
"""
import base64
import binascii
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'GIF', 'TIFF')
MAX_SOURCE_PIXELS = 89_478_485  # a quarter of a GiB of RGB, Pillow's own limit
MAX_DATA_URI = 64 * 2 ** 20  # characters
EXIF_ORIENTATION = 0x0112
SIDEWAYS = (5, 6, 7, 8)  # orientations that exchange width and height

# What Pillow is known to raise on broken input, beside its own UnidentifiedImageError (an OSError).
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError,
                  OverflowError, ZeroDivisionError, struct.error, zlib.error)
_DATA_URI = re.compile(r'data:[\w/+.-]*(?:;[\w=.-]+)*;base64,', re.ASCII)
_URL = re.compile(r'\s*(?:[A-Za-z][A-Za-z0-9+.-]*://|file:|https?:)')
_truncation_lock = threading.RLock()


class MediaError(ValueError):
    """A picture that cannot be used.

    Args:
        reason: What is wrong, naming the file where there is one.
        kind: Short name under which such errors are counted.
    """

    def __init__(self, reason: str, kind: str = 'bad_image'):
        super().__init__(reason)
        self.reason, self.kind = reason, kind

    def __reduce__(self):
        return type(self), (self.reason, self.kind)


def is_url(text: str) -> bool:
    """Whether `text` is an address (http://, file://, ...) and not a path."""
    return _URL.match(text) is not None


def load_image(source: Any) -> Image.Image:
    """A path, encoded bytes, a base64 data URI, a PIL image, a uint8 array (H, W, 3), or an object with `draw()`, which
    gives a PIL image -> RGB picture.

    Raises:
        MediaError: The source is missing, is not a picture, is broken, or is too large.
    """
    return _with_opened(source, _decode)


def image_size(source: Any) -> tuple[int, int]:
    """(width, height) of the upright picture, from its header; what `load_image` takes, and an object with `size`.

    Raises:
        MediaError: As `load_image`, except for what only decoding shows.
    """
    if hasattr(source, 'draw'):
        return source.size
    return _with_opened(source, _upright_size)


def _with_opened(source: Any, use: Callable[[Image.Image, str, Any], Any]) -> Any:
    """`use(image, name, file)` of the opened, undecoded picture, while its file, if it has one, is open."""
    name = describe(source)
    if hasattr(source, 'draw'):
        source = source.draw()
        if not isinstance(source, Image.Image):
            raise MediaError(f'expected {name}.draw() to give a PIL image, got {type(source).__name__}', 'wrong_type')
    if isinstance(source, np.ndarray):
        return use(_from_array(source), name, None)
    if isinstance(source, Image.Image):
        return use(source, name, None)
    if isinstance(source, str):
        if source.startswith('data:'):
            return _with_opened(decode_data_uri(source), use)
        if is_url(source):
            raise MediaError(f'{name} is a URL: only files and bytes are read', 'url_refused')
    if isinstance(source, (bytes, bytearray, memoryview)):
        file = BytesIO(source)
        return use(_open(file, name), name, file)
    if not isinstance(source, (str, Path)):
        raise MediaError(f'expected an image as path, bytes, data URI, PIL image, array or an object with draw(), got '
                         f'{type(source).__name__}', 'wrong_type')
    try:
        with open(source, 'rb') as file:
            return use(_open(file, name), name, file)
    except FileNotFoundError:
        raise MediaError(f'{name} does not exist', 'missing_media') from None
    except MediaError:
        raise
    except (OSError, ValueError) as error:
        raise MediaError(f'{name} cannot be read: {error}', 'missing_media') from error


def decode_data_uri(text: str) -> bytes:
    """The bytes in 'data:image/...;base64,...'; MediaError if it is not one, is broken, or is above 64 MiB."""
    if len(text) > MAX_DATA_URI:
        raise MediaError(f'data URI of {len(text)} characters is above the limit of {MAX_DATA_URI}', 'too_large')
    header = _DATA_URI.match(text)
    if header is None:
        raise MediaError(f'expected data:...;base64,..., got {text[:40]!r}')
    try:
        return base64.b64decode(text[header.end():], validate=True)
    except binascii.Error as error:
        raise MediaError(f'data URI {text[:40]!r} is not valid base64: {error}') from error


def describe(source: Any) -> str:
    """How an error names a source: its path, or what it is."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f'image of {len(source)} bytes'
    if isinstance(source, str):
        return f'data URI {source[:30]!r}' if source.startswith('data:') else repr(source[:200])
    if isinstance(source, Path):
        return repr(str(source)[:500])
    if isinstance(source, Image.Image):
        return repr(getattr(source, 'filename', '')) if getattr(source, 'filename', '') else f'PIL image {source.size}'
    return type(source).__name__


@contextmanager
def _whole_files_only() -> Iterator[None]:
    """Pillow refuses truncated files inside this block, whatever the process-wide switch says."""
    with _truncation_lock:
        before = ImageFile.LOAD_TRUNCATED_IMAGES
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = before


def _open(file: Any, name: str) -> Image.Image:
    """Open an encoded picture by its content, undecoded."""
    head = file.read(64)
    file.seek(0)
    if not head:
        raise MediaError(f'{name} is empty (0 bytes)')
    try:
        with _whole_files_only(), warnings.catch_warnings():  # text and profiles are unpacked here already
            warnings.simplefilter('error', Image.DecompressionBombWarning)
            image = Image.open(file, formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise MediaError(f'{name} is too large to decode: {error}', 'too_large') from error
    except UnidentifiedImageError as error:
        found = 'looks like HTML or XML' if head.lstrip()[:1] == b'<' else f'begins with {head[:8]!r}'
        raise MediaError(f'{name} is not a picture ({", ".join(FORMATS)}): it {found}') from error
    except _DECODE_ERRORS as error:
        raise MediaError(f'{name} is broken: {error}') from error
    _check_length(image, file, name)
    return image


def _check_length(image: Image.Image, file: Any, name: str) -> None:
    """Refuse a JPEG with less than a bit for each block of 8 x 8 pixels: libjpeg would fill the rest with grey."""
    if image.format == 'JPEG':
        position = file.tell()
        size = file.seek(0, 2)
        file.seek(position)
        if image.width * image.height > size * 8 * 64:
            raise MediaError(f'{name} is broken: {size} bytes are too few for {image.width} x {image.height} pixels')


def _is_filled_with_grey(image: Image.Image, file: Any) -> bool:
    """Whether a decoded JPEG ended early, but with its end mark: libjpeg fills the rest with grey and says nothing.

    Its last pixel is mid-grey then. To tell it from a grey picture, it is decoded again with more data before the end
    mark: that changes the picture only if there was too little.
    """
    if image.format != 'JPEG':
        return False
    last = np.asarray(image.crop((image.width - 1, image.height - 1, image.width, image.height)))
    if last.min() < 126 or last.max() > 130:
        return False
    file.seek(0)
    data = file.read()
    end = data.rfind(b'\xff\xd9')
    longer = data[:end].rstrip(b'\xff') + bytes(range(1, 250)) * 40 + data[end:]
    with _whole_files_only(), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        again = Image.open(BytesIO(longer), formats=('JPEG',))
        try:
            again.load()
        except _DECODE_ERRORS:
            return True
        return again.tobytes() != image.tobytes()


def _check_pixels(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width * height > MAX_SOURCE_PIXELS:
        raise MediaError(f'{name} is too large to decode: {width} x {height} pixels, limit {MAX_SOURCE_PIXELS}',
                         'too_large')


def _upright_size(image: Image.Image, name: str, file: Any) -> tuple[int, int]:
    """The size of an opened picture after its orientation is applied."""
    _check_pixels(image, name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            turned = image.getexif().get(EXIF_ORIENTATION, 1) in SIDEWAYS
    except _DECODE_ERRORS as error:
        raise MediaError(f'{name} is broken: {error}') from error
    return image.size[::-1] if turned else image.size


def _decode(image: Image.Image, name: str, file: Any) -> Image.Image:
    """Decode an opened picture, turn it upright and convert it to RGB."""
    _check_pixels(image, name)
    try:
        with _whole_files_only(), warnings.catch_warnings():
            warnings.simplefilter('ignore')  # odd EXIF blocks and palettes are not worth a line for each sample
            image.load()
            if file is not None and _is_filled_with_grey(image, file):
                raise MediaError(f'{name} is broken: its picture data end early, though the file is closed properly')
            if image.getexif().get(EXIF_ORIENTATION, 1) != 1:
                image = ImageOps.exif_transpose(image)
            return _to_rgb(image, name)
    except MediaError:
        raise
    except _DECODE_ERRORS as error:
        raise MediaError(f'{name} is broken: {error}') from error


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == 'RGB' and not image.has_transparency_data:
        return image
    if image.mode.startswith('I;16'):
        grey = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8)).convert('RGB')
    if image.mode in ('I', 'F'):
        raise MediaError(f'{name} has 32-bit pixels (mode {image.mode!r}), whose white level is unknown')
    if image.has_transparency_data:
        layer = image.convert('RGBA')
        white = Image.new('RGBA', layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert('RGB')
    return image.convert('RGB')


def _from_array(array: np.ndarray) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise MediaError(f'expected a uint8 array (height, width, 3), got {array.dtype} {array.shape}', 'wrong_type')
    return Image.fromarray(array)
