"""Sizes of media from their headers: what a store notes when a record is packed, so that rows can be planned unread."""
import warnings
from collections.abc import Callable
from io import BytesIO
from typing import Any

from PIL import Image

from qvlkit.data.transforms.load_media import (
    _DECODE_ERRORS,
    EXIF_ORIENTATION,
    FORMATS,
    MAX_SOURCE_PIXELS,
    MediaError,
    describe,
)
from qvlkit.data.transforms.sample_frames import is_steady
from qvlkit.structures import Media, MediaSize

MeasureVideo = Callable[[Any], MediaSize | None]  # encoded bytes or a path -> its size, or None if it is not known


def measure_medium(medium: Media, measure_video: MeasureVideo | None = None) -> MediaSize | None:
    """The size of a medium whose source is encoded bytes, or a list of such frames; None where it is not known.

    Raises:
        MediaError: It is not a picture, or is too large.
    """
    if medium.kind == 'image':
        return MediaSize('image', *image_size(medium.source))
    if isinstance(medium.source, list):
        width, height = image_size(medium.source[0])
        return MediaSize('frames', width, height, len(medium.source), len(medium.source) / medium.fps)
    if medium.start is not None or medium.end is not None or measure_video is None:
        return None
    size = measure_video(medium.source)
    return size if size is not None and size.frames else None


def video_measure(decoder: Any) -> MeasureVideo:
    """Measures videos with a `VideoDecoder`, by their headers.

    None for a stream of variable rate, whose frames are chosen by their own times; and where no reader is at hand or
    none answers in time, which says nothing about the video. MediaError for what is no video.
    """
    def measure(source: Any) -> MediaSize | None:
        try:
            info = decoder.probe(source)
        except MediaError as error:
            if error.kind in ('no_video_reader', 'video_timeout'):
                return None
            raise
        if not is_steady(info):
            return None
        return MediaSize('video', info.width, info.height, info.num_frames, info.seconds)
    return measure


def image_size(data: bytes) -> tuple[int, int]:
    """(width, height) of an encoded picture, turned upright; only its header is read."""
    name = describe(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            with Image.open(BytesIO(data), formats=FORMATS) as image:
                width, height = image.size
                if width * height > MAX_SOURCE_PIXELS:
                    raise MediaError(f'{name} is too large to decode: {width} x {height} pixels, limit '
                                     f'{MAX_SOURCE_PIXELS}', 'too_large')
                # Pillow tells a TIFF's size upright. It decodes a PNG to look for an orientation behind the pixels, so
                # it is asked only if there is one.
                has_exif = image.format != 'TIFF' and (image.format != 'PNG' or b'eXIf' in data)
                turned = has_exif and image.getexif().get(EXIF_ORIENTATION) in (5, 6, 7, 8)
    except MediaError:
        raise
    except Image.DecompressionBombError as error:
        raise MediaError(f'{name} is too large to decode: {error}', 'too_large') from error
    except _DECODE_ERRORS as error:
        raise MediaError(f'{name} is broken: {error}') from error
    return (height, width) if turned else (width, height)
