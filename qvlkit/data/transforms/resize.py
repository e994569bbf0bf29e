"""The one resize function: for training, packing, boxes, evaluation and export.

Source: Qwen2-VL (arXiv 2409.12191) section 2.1, native resolution; the arithmetic is that of the released image
processor: nearest multiple of the factor, then scaled into the pixel limits. Sizes are (height, width) in pixels.
"""
import math

from PIL import Image

MAX_ASPECT_RATIO = 200


def smart_resize(height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """The size at which the model sees a picture: (height, width), both multiples of `factor`.

    Args:
        height, width: Size of the picture.
        factor: `VisionGeometry.factor`, in pixels.
        min_pixels, max_pixels: Limits of the resized area.

    Raises:
        ValueError: A side is below 1, or the aspect ratio is above 200.
    """
    if height < 1 or width < 1:
        raise ValueError(f'a picture needs at least 1 x 1 pixels, got height {height} and width {width}')
    ratio = max(height, width) / min(height, width)
    if ratio > MAX_ASPECT_RATIO:
        raise ValueError(f'aspect ratio {ratio:g} ({width} x {height} pixels) is above {MAX_ASPECT_RATIO}')
    rows, columns = round(height / factor), round(width / factor)  # ties to even
    area = rows * columns * factor ** 2
    if area > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rows = max(1, math.floor(height / shrink / factor))
        columns = max(1, math.floor(width / shrink / factor))
    elif area < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows, columns = math.ceil(height * grow / factor), math.ceil(width * grow / factor)
    return rows * factor, columns * factor


def resize_image(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """`image` at `size` (height, width) by Pillow's bicubic filter; the same object if it has that size."""
    height, width = size
    if image.size == (width, height):
        return image
    return image.resize((width, height), Image.Resampling.BICUBIC)


def video_frame_limits(num_frames: int, *, min_pixels: int, max_pixels: int, total_pixels: int,
                       temporal_patch_size: int) -> tuple[int, int]:
    """Pixel limits of each frame of a video: (min, max).

    A long video's frames share `total_pixels`, counted once for each frame group, but keep a little more than
    `min_pixels` each.
    """
    share = total_pixels / num_frames * temporal_patch_size
    return min_pixels, int(max(min(max_pixels, share), int(min_pixels * 1.05)))
