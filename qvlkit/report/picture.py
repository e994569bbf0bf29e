"""A picture of a report with what is marked on it: boxes, points and outlines, drawn over it as SVG.

The marks are in pixels of the picture that was given. A large one is stored smaller, or as JPEG where that is shorter,
and shown in the frame of the original, so marks stay where they are.
"""
import base64
import html
import io
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image

COLOURS = {'green': '#22a35a', 'red': '#e5484d', 'blue': '#3b7dd8', 'orange': '#e08a1e'}  # of marks
STORED_SIDE = 800  # pixels of the longer side at which a picture is stored, at most
PNG_BYTES = 32768  # so much a picture may take as PNG, without loss

Mark = tuple[Sequence[float], str, str]  # coordinates, colour name or CSS colour, label or ''


class Picture(NamedTuple):
    """A picture with its caption (lines are kept, the first one is set bold) and what is marked on it.

    boxes: ((x1, y1, x2, y2) in pixels of the picture, colour name or CSS colour, label or '').
    good: True or False draws a right or wrong mark; None draws none.
    points, polygons: as boxes, with (x, y) and (x1, y1, x2, y2, x3, y3, ...).
    """
    image: Image.Image
    caption: str = ''
    boxes: Sequence[Mark] = ()
    good: bool | None = None
    points: Sequence[Mark] = ()
    polygons: Sequence[Mark] = ()


def picture_html(picture: Picture, *, fine: bool = False, side: int = STORED_SIDE) -> str:
    """The picture as an HTML figure, stored with `side` pixels at most; `fine` for thinner marks, where it is shown
    large."""
    width, height = picture.image.size
    unit = max(width, height) / (180 if fine else 100)
    shapes = [f'<image width="{width}" height="{height}" href="{_image_uri(picture.image, side)}"/>']
    for coordinates, colour, label in picture.polygons:
        spots = _inside(coordinates, (width, height))
        corners = ' '.join(f'{x:g},{y:g}' for x, y in spots)
        shapes += _marked(f'polygon points="{corners}" fill-opacity=".15" stroke-width="{1.2 * unit:g}"', colour, label,
                          spots[0], unit, width, filled=True)
    for coordinates, colour, label in picture.boxes:
        spots = _inside(coordinates, (width, height))
        (x1, x2), (y1, y2) = (sorted(side) for side in zip(*spots))
        shapes += _marked(f'rect x="{x1:g}" y="{y1:g}" width="{x2 - x1:g}" height="{y2 - y1:g}" '
                          f'stroke-width="{1.6 * unit:g}"', colour, label, (x1, y1), unit, width)
    for coordinates, colour, label in picture.points:
        (x, y), = _inside(coordinates, (width, height))
        shapes += _marked(f'circle cx="{x:g}" cy="{y:g}" r="{1.8 * unit:g}" stroke-width="{unit:g}"', colour, label,
                          (x, y - 2 * unit), unit, width)
        shapes += _marked(f'circle cx="{x:g}" cy="{y:g}" r="{0.5 * unit:g}" stroke-width="0"', colour, '', (x, y), unit,
                          width, filled=True)
    kind, mark = {None: ('', ''), True: (' good', '✓'), False: (' bad', '✗')}[picture.good]
    mark = f'<span class=mark>{mark}</span>' if mark else ''
    first, _, rest = html.escape(picture.caption).partition('\n')
    return (f'<figure class="picture{kind}"><div class=frame><svg viewBox="0 0 {width} {height}" role=img>'
            f'{"".join(shapes)}</svg></div><figcaption>{mark}<b>{first}</b>\n{rest}</figcaption></figure>')


def data_uri(data: bytes, kind: str) -> str:
    """Bytes of a MIME type as an address that holds them."""
    return f'data:{kind};base64,{base64.b64encode(data).decode()}'


def _marked(shape: str, colour: str, label: str, spot: tuple[float, float], unit: float, width: int,
            filled: bool = False) -> list[str]:
    """A shape in its colour, and its label near `spot`: to its left near the right edge of a picture so wide."""
    colour = html.escape(COLOURS.get(colour, colour))
    drawn = [f'<{shape} fill="{colour if filled else "none"}" stroke="{colour}"/>']
    if label:
        anchor = ' text-anchor="end"' if spot[0] > 0.8 * width else ''
        drawn.append(f'<text x="{spot[0]:g}" y="{max(spot[1] - unit, 6 * unit):g}" font-size="{6 * unit:g}"{anchor} '
                     f'fill="{colour}" paint-order="stroke" stroke="#fff" stroke-width="{unit:g}">'
                     f'{html.escape(label)}</text>')
    return drawn


def _inside(coordinates: Sequence[float], size: tuple[int, int]) -> list[tuple[float, float]]:
    """Coordinates as (x, y) pairs, those outside the picture moved to its edge."""
    values = [min(max(float(value), 0.0), size[axis % 2]) for axis, value in enumerate(coordinates)]
    return list(zip(values[::2], values[1::2]))


def _image_uri(image: Image.Image, side: int) -> str:
    image = image.convert('RGB')
    if max(image.size) > side:
        image = image.copy()
        image.thumbnail((side, side))
    png = _encoded(image, 'png')
    if len(png) > PNG_BYTES:
        jpeg = _encoded(image, 'jpeg', quality=85)
        if len(jpeg) < len(png):
            return data_uri(jpeg, 'image/jpeg')
    return data_uri(png, 'image/png')


def _encoded(image: Image.Image, kind: str, **settings: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()
