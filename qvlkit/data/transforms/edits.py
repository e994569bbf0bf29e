"""Edits: what is done to the pixels of a picture, planned before a pixel is decoded.

An edit knows three things: the size it leaves, where a point goes, and how to do it to a decoded picture. So sizes,
boxes and token counts follow from plans alone, and pixels are touched once, at the end. Edits are plain numbers, so
they travel to another process as JSON.

Sizes are (width, height) in pixels; points are continuous (x, y), the picture spanning 0 to width and 0 to height.
"""
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from PIL import Image

from qvlkit.data.transforms.resize import resize_image

Size = tuple[int, int]
Spot = tuple[float, float]


@dataclass(frozen=True)
class Crop:
    """Keep the rectangle from (x1, y1) to (x2, y2)."""
    x1: int
    y1: int
    x2: int
    y2: int

    def size(self, size: Size) -> Size:
        """(width, height) before -> after."""
        return self.x2 - self.x1, self.y2 - self.y1

    def move(self, spot: Spot, size: Size) -> Spot:
        """(x, y) on a picture of `size` -> where it is afterwards; outside the picture if it was cut off."""
        return spot[0] - self.x1, spot[1] - self.y1

    def apply(self, image: Image.Image) -> Image.Image:
        """The cropped picture."""
        return image.crop((self.x1, self.y1, self.x2, self.y2))


@dataclass(frozen=True)
class Flip:
    """Mirror left and right."""

    def size(self, size: Size) -> Size:
        """As for Crop."""
        return size

    def move(self, spot: Spot, size: Size) -> Spot:
        """As for Crop."""
        return size[0] - spot[0], spot[1]

    def apply(self, image: Image.Image) -> Image.Image:
        """The mirrored picture."""
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


@dataclass(frozen=True)
class Resize:
    """Scale to width x height pixels, by the one resize function."""
    width: int
    height: int

    def size(self, size: Size) -> Size:
        """As for Crop."""
        return self.width, self.height

    def move(self, spot: Spot, size: Size) -> Spot:
        """As for Crop."""
        return spot[0] * self.width / size[0], spot[1] * self.height / size[1]

    def apply(self, image: Image.Image) -> Image.Image:
        """The scaled picture."""
        return resize_image(image, (self.height, self.width))


Edit = Crop | Flip | Resize
_BY_NAME = {edit.__name__: edit for edit in (Crop, Flip, Resize)}


def apply_edits(image: Image.Image, edits: Sequence[Edit]) -> Image.Image:
    """The picture after all edits, in order."""
    for edit in edits:
        image = edit.apply(image)
    return image


def to_json(edits: Sequence[Edit]) -> list[dict]:
    """Edits as plain data."""
    return [{'edit': type(edit).__name__, **asdict(edit)} for edit in edits]


def from_json(records: Sequence[dict]) -> tuple[Edit, ...]:
    """The reverse of `to_json`."""
    return tuple(_BY_NAME[record['edit']](**{key: value for key, value in record.items() if key != 'edit'})
                 for record in records)
