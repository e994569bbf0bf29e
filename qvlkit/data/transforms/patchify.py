"""Pixels to rows of patches, in merge-block order, and back, by reshape and transpose alone.

Source: Qwen2.5-VL (arXiv 2502.13923) section 2.1.1. Order of rows: frame group, block row, block column, row in the
block, column in the block, so that the merge_size**2 patches that become one token are neighbours. Order in a row:
channel, frame, y, x. An image's copied second frame is not stored: the model repeats it on the device.

Shape letters: N patches, C channels, F frames in a patch, P patch side, H height, W width.
"""
import numpy as np

from qvlkit.structures import Grid, VisionGeometry


def patchify_image(pixels: np.ndarray, geometry: VisionGeometry) -> tuple[np.ndarray, Grid]:
    """uint8 (H, W, C) -> (N, C*P*P), and the grid (1, H/P, W/P)."""
    return _patchify(pixels[None], geometry, frames_per_patch=1)


def patchify_video(frames: np.ndarray, geometry: VisionGeometry) -> tuple[np.ndarray, Grid]:
    """uint8 (frames, H, W, C) -> (N, C*F*P*P), and the grid (frame groups, H/P, W/P).

    Where the frames do not fill the last group, the last frame is repeated.
    """
    missing = -len(frames) % geometry.temporal_patch_size
    if missing:
        frames = np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)])
    return _patchify(frames, geometry, frames_per_patch=geometry.temporal_patch_size)


def _patchify(frames: np.ndarray, geometry: VisionGeometry, frames_per_patch: int) -> tuple[np.ndarray, Grid]:
    count, height, width, channels = frames.shape
    if height % geometry.factor or width % geometry.factor or channels != geometry.in_channels:
        raise ValueError(f'expected frames of (height, width, channels) with sides in multiples of {geometry.factor} '
                         f'and {geometry.in_channels} channels, got {frames.shape[1:]}')
    side, merge = geometry.patch_size, geometry.merge_size
    groups, rows, columns = count // frames_per_patch, height // side, width // side
    blocks = frames.reshape(groups, frames_per_patch, rows // merge, merge, side, columns // merge, merge, side,
                            channels)
    #                       0 group, 1 frame, 2 block row, 3 row, 4 y, 5 block column, 6 column, 7 x, 8 channel
    ordered = blocks.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
    patches = ordered.reshape(groups * rows * columns, channels * frames_per_patch * side * side)
    return np.ascontiguousarray(patches), (groups, rows, columns)


def unpatchify(patches: np.ndarray, grid: Grid, geometry: VisionGeometry) -> np.ndarray:
    """(N, C*F*P*P) and its grid -> frames (grid[0] * F, H, W, C): the inverse, for images (F = 1) and videos.

    Raises:
        ValueError: There are not as many patches as the grid says, or they are not of this geometry.
    """
    groups, rows, columns = grid
    side, merge, channels = geometry.patch_size, geometry.merge_size, geometry.in_channels
    frames, rest = divmod(patches.shape[1], channels * side**2)
    if len(patches) != groups * rows * columns or rest or frames not in (1, geometry.temporal_patch_size):
        raise ValueError(f'expected {groups * rows * columns} patches of {channels} x {side} x {side} values or '
                         f'{geometry.temporal_patch_size} times as many, got {patches.shape}')
    ordered = patches.reshape(groups, rows // merge, columns // merge, merge, merge, channels, frames, side, side)
    #                       0 group, 1 block row, 2 block column, 3 row, 4 column, 5 channel, 6 frame, 7 y, 8 x
    blocks = ordered.transpose(0, 6, 1, 3, 7, 2, 4, 8, 5)
    return blocks.reshape(groups * frames, rows * side, columns * side, channels)
