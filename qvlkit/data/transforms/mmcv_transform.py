"""MMCV: one of MMCV's own transforms, on the decoded pictures of a sample; boxes, points and outlines go along.

Source: MMCV 2 (https://github.com/open-mmlab/mmcv), mmcv.transforms. Nothing of a picture is known before it is decoded
then, so planning rows decodes every picture once more: our own transforms, which plan, are much cheaper.
"""
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from qvlkit.data.transforms.cut_patches import decode_picture
from qvlkit.data.transforms.edits import Crop
from qvlkit.data.transforms.load_media import MediaError
from qvlkit.data.transforms.regions import move
from qvlkit.registry import TRANSFORMS, near_names
from qvlkit.structures import Box, Media, Point, Region, Sample, SampleError

COLORS = ('bgr', 'rgb')


@TRANSFORMS.register_module()
class MMCVTransform:
    """Run a transform that MMCV registers on each image of a sample. It may draw from numpy's and Python's randomness.

    MMCV gets `img` (H, W, 3) uint8, `img_shape`, `ori_shape`, `gt_bboxes` (n, 4), `gt_bboxes_labels` (n,), the number
    of each box among the picture's, and `gt_keypoints` (m, 1, 3): points and corners of outlines, each a thing of its
    own. A region of which nothing is left leaves the sample.

    Args:
        transform: MMCV's config, such as dict(type='RandomFlip', prob=0.5); those inside it too are MMCV's.
        color: Order of the channels that it works in: 'bgr', MMCV's own, or 'rgb'.
    """
    needs_pixels = True

    def __init__(self, transform: dict, *, color: str = 'bgr'):
        if color not in COLORS:
            raise ValueError(f"MMCVTransform.color: expected 'bgr' or 'rgb', got {color!r}"
                             f'{near_names(str(color), list(COLORS))}')
        self.color = color
        self.transform = _build(transform)
        self.name = transform['type']

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """SampleError for a video, or a picture that does not decode; ValueError where what comes out is no picture."""
        for index, medium in enumerate(sample.media()):
            if medium.kind != 'image':
                raise SampleError(sample.id, f'MMCVTransform ({self.name}) changes images, and medium {index} is a '
                                  f'{medium.kind}', 'unsupported_video')
            try:
                picture = np.asarray(decode_picture(medium))
            except MediaError as error:
                raise SampleError(sample.id, error.reason, error.kind) from error
            regions = [item for turn in sample.turns for item in turn.content
                       if isinstance(item, Region) and item.media_index == index]
            results = self._run(_request(picture if self.color == 'rgb' else picture[..., ::-1], regions), rng)
            picture = self._picture(results['img'])
            height, width = picture.shape[:2]
            _take(medium, picture if self.color == 'rgb' else np.ascontiguousarray(picture[..., ::-1]))
            moved = iter(_moved(regions, results, (width, height)))
            for turn in sample.turns:
                turn.content = [item for item in (next(moved) if any(item is region for region in regions) else item
                                                  for item in turn.content) if item is not None]
        return sample

    def _run(self, request: dict, rng: np.random.Generator) -> dict:
        boxes, corners = len(request['gt_bboxes']), len(request['gt_keypoints'])
        try:
            with _global_randomness(int(rng.integers(2 ** 32))):
                results = self.transform(request)
        except KeyError as error:
            raise ValueError(f'MMCVTransform: {self.name} needs {error}, which a decoded picture has not') from error
        if not isinstance(results, dict) or 'img' not in results:
            raise ValueError(f"MMCVTransform: expected {self.name} to give a dict with 'img', got "
                             f'{type(results).__name__}')
        if (len(results['gt_bboxes']), len(results['gt_keypoints'])) != (boxes, corners):
            raise ValueError(f'MMCVTransform: {self.name} was given {boxes} boxes and {corners} points, and gave back '
                             f'{len(results["gt_bboxes"])} and {len(results["gt_keypoints"])}')
        return results

    def _picture(self, picture: Any) -> np.ndarray:
        """uint8 (H, W, 3) of what came out; grey is copied to the three channels."""
        if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8:
            what = f'{picture.dtype} values' if isinstance(picture, np.ndarray) else f'a {type(picture).__name__}'
            raise ValueError(f'MMCVTransform: {self.name} gives {what}, expected a uint8 picture; the model scales and '
                             'normalizes pixels itself')
        if picture.ndim == 2 or picture.shape[2:] == (1,):
            picture = np.repeat(picture.reshape(*picture.shape[:2], 1), 3, axis=2)
        if picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
            raise ValueError(f'MMCVTransform: {self.name} gives a picture of shape {picture.shape}, expected '
                             '(height, width, 3)')
        return picture


def _build(config: Any) -> Any:
    """MMCV's transform; only names that it registers, at every depth."""
    try:
        from mmcv.transforms import TRANSFORMS as THEIRS
    except ImportError as error:
        raise ValueError(f"MMCVTransform needs the package 'mmcv', which cannot be imported ({error}); "
                         f"pip install 'qvlkit[mmcv]'") from error
    if not isinstance(config, dict) or 'type' not in config:
        raise ValueError(f"MMCVTransform.transform: expected a dict with the key 'type', got {config!r:.200}")
    _check_names(config, sorted(THEIRS.module_dict), 'MMCVTransform.transform')
    try:
        return THEIRS.build(config)
    except (TypeError, AssertionError, KeyError) as error:
        raise ValueError(f'MMCVTransform.transform: {config["type"]} cannot be built: {error}') from error


def _check_names(value: Any, names: list[str], where: str) -> None:
    if isinstance(value, dict):
        name = value.get('type')
        if 'type' in value and name not in names:
            raise ValueError(f'{where}.type: MMCV registers no transform {name!r}{near_names(str(name), names)}; '
                             f'registered: {", ".join(names)}')
        for key, item in value.items():
            _check_names(item, names, f'{where}.{key}')
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_names(item, names, f'{where}.{index}')


@contextmanager
def _global_randomness(seed: int) -> Iterator[None]:
    """numpy's and Python's global randomness start from `seed` inside this block, and are as before behind it."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    np.random.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


def _request(picture: np.ndarray, regions: list[Region]) -> dict:
    """What MMCV's transforms work on."""
    boxes = [region.coordinates for region in regions if isinstance(region, Box)]
    corners = [(*spot, 1.0) for region in regions if not isinstance(region, Box)
               for spot in zip(region.coordinates[::2], region.coordinates[1::2])]
    return dict(img=np.ascontiguousarray(picture), img_shape=picture.shape[:2], ori_shape=picture.shape[:2],
                gt_bboxes=np.array(boxes, np.float32).reshape(-1, 4),
                gt_bboxes_labels=np.arange(len(boxes), dtype=np.int64),
                gt_keypoints=np.array(corners, np.float32).reshape(-1, 1, 3))


def _take(medium: Media, picture: np.ndarray) -> None:
    """The picture stands in the medium's place; nothing is planned on it yet."""
    medium.source, medium.edits = picture, ()
    medium.size = medium.source_size = (picture.shape[1], picture.shape[0])


def _moved(regions: list[Region], results: dict, size: tuple[int, int]) -> Iterator[Region | None]:
    """Each region where MMCV left it, in order; None for one of which nothing is left."""
    boxes, corners = iter(results['gt_bboxes']), iter(results['gt_keypoints'][:, 0])
    for region in regions:
        if isinstance(region, Box):
            (x1, y1, x2, y2), visible = next(boxes).tolist(), True
            spots = [(min(x1, x2), min(y1, y2)), (max(x1, x2), max(y1, y2))]
        else:
            found = [next(corners).tolist() for _ in region.coordinates[::2]]
            spots, visible = [(x, y) for x, y, _ in found], any(seen for *_, seen in found)
        if not isinstance(region, Point):  # what lay outside was clipped to a line on the border
            visible = _is_flat(region.coordinates) or not _is_flat([value for spot in spots for value in spot])
        region = replace(region, coordinates=tuple(value for spot in spots for value in spot))
        yield move(region, Crop(0, 0, *size), size) if visible else None


def _is_flat(coordinates: Sequence[float]) -> bool:
    return any(min(axis) == max(axis) for axis in (coordinates[::2], coordinates[1::2]))
