"""From tagged text to content in reading order: what the tagged formats share.

Tags stand for media in order: the first <image> is the first of the record's images. In records with `objects`
(ms-swift's form: {'ref': [...], 'bbox': [[x1, y1, x2, y2], ...], 'image_id': [...]}), <ref-object> and <bbox> stand for
their entries in order. Tags that are left over, on either side, are an error.
"""
import math
import re
from collections.abc import Callable
from typing import Any

from qvlkit.data.formats.grounding import find_regions, holds_regions
from qvlkit.data.transforms.load_media import MediaError
from qvlkit.structures import Box, Media, SampleError

_MEDIA_TAGS = re.compile(r'(<image>|<video>)')
_ALL_TAGS = re.compile(r'(<image>|<video>|<ref-object>|<bbox>)')
BOX_SOURCES = (None, 'source', 'thousand', 'unit')


class ContentBuilder:
    """Replaces the tags of one record's turns, in order, by its media and boxes.

    Args:
        sample_id: For errors.
        resolve: A path in the record -> what to load; raises MediaError.
        images: The record's images, as paths.
        videos: The record's videos: each a path, or a list of frames' paths.
        fps: Frames per second of frame lists: one number, or one for each video.
        objects: Boxes and references in ms-swift's form.
        boxes: The space of each '"bbox_2d": [...]', "point_2d" and "polygon_2d" in answers, which are rescaled with the
            picture: 'source' (its pixels), 'thousand' or 'unit'. None leaves answers as they are.
    """

    def __init__(self, *, sample_id: str, resolve: Callable[[str], Any], images: list, videos: list, fps: Any = 2.0,
                 objects: dict | None = None, boxes: str | None = None):
        self.sample_id, self._resolve, self._boxes = sample_id, resolve, boxes
        self._files = {'image': images, 'video': videos}
        self._used = {'image': 0, 'video': 0}
        self._fps = self._fps_of(fps, len(videos))
        self._image_positions: list[int] = []  # media index of each image
        self._media_count = 0
        self._objects = self._check_objects(objects)
        self._objects_used = {'ref': 0, 'bbox': 0}
        self._placed_boxes: list[tuple[Box, int]] = []

    def content(self, text: str, role: str) -> list:
        """One turn's text -> str, Media and Box in reading order; text is kept verbatim."""
        pattern = _ALL_TAGS if self._objects else _MEDIA_TAGS
        items: list = []
        for piece in pattern.split(text):
            if piece in ('<image>', '<video>'):
                if role == 'assistant':
                    raise self._error(f'an answer holds the tag {piece}, which stands for media in a question only',
                                      'tag_in_answer')
                items.append(self._medium(piece[1:-1]))
            elif self._objects and piece in ('<ref-object>', '<bbox>'):
                items.append(self._object('ref' if piece == '<ref-object>' else 'bbox'))
            elif piece and self._boxes and role == 'assistant' and holds_regions(piece):
                if not self._media_count:
                    raise self._error('an answer has a box, but no image or video comes before it', 'bad_box')
                items += [item for item in find_regions(piece, self._media_count - 1, self._boxes) if item]
            elif piece:
                items.append(piece)
        return items

    def finish(self) -> None:
        """Check that every medium and object has been used, and link boxes to their images."""
        for kind, files in self._files.items():
            if self._used[kind] != len(files):
                raise self._error(f'{self._used[kind]} <{kind}> tags but {len(files)} {kind}s', 'tag_count')
        for key, used in self._objects_used.items():
            given = len(self._objects.get(key, [])) if self._objects else 0
            if used != given:
                tag = '<ref-object>' if key == 'ref' else '<bbox>'
                raise self._error(f'{used} {tag} tags but {given} entries in objects.{key}', 'tag_count')
        for box, image in self._placed_boxes:
            if not 0 <= image < len(self._image_positions):
                raise self._error(f'objects.image_id {image}: the record has {len(self._image_positions)} images',
                                  'bad_box')
            box.media_index = self._image_positions[image]

    def _medium(self, kind: str) -> Media:
        files, index = self._files[kind], self._used[kind]
        self._used[kind] += 1
        if index >= len(files):
            raise self._error(f'<{kind}> tag number {index + 1}, but {len(files)} {kind}s', 'tag_count')
        if kind == 'image':
            self._image_positions.append(self._media_count)
        self._media_count += 1
        try:
            if isinstance(files[index], list):
                return Media(kind, [self._resolve(frame) for frame in files[index]], self._fps[index])
            source = self._resolve(files[index])
        except MediaError as error:
            raise self._error(error.reason, error.kind) from error
        return Media(kind, source, self._fps[index]) if kind == 'video' else Media(kind, source)

    def _object(self, key: str) -> Any:
        entries, index = self._objects.get(key, []), self._objects_used[key]
        self._objects_used[key] += 1
        if index >= len(entries):
            raise self._error(f'placeholder number {index + 1} for objects.{key}, which has {len(entries)} entries',
                              'tag_count')
        if key == 'ref':
            return entries[index]
        box = Box(tuple(float(value) for value in entries[index]))
        images = self._objects.get('image_id') or [0] * len(entries)
        self._placed_boxes.append((box, images[index]))
        return box

    def _check_objects(self, objects: Any) -> dict | None:
        if objects is None or objects == {}:
            return None
        if not isinstance(objects, dict):
            raise self._error(f"objects: expected a dict with 'ref' and 'bbox', got {type(objects).__name__}",
                              'wrong_type')
        if objects.get('bbox_type', 'real') != 'real':
            raise self._error(f"objects.bbox_type {objects['bbox_type']!r}: expected 'real' (source pixels)", 'bad_box')
        for key in ('ref', 'bbox', 'image_id'):
            if not isinstance(objects.get(key, []), list):
                raise self._error(f'objects.{key}: expected a list, got {objects[key]!r:.200}', 'wrong_type')
        for entry in objects.get('ref', []):
            if not isinstance(entry, str):
                raise self._error(f'objects.ref: expected strings, got {entry!r:.200}', 'wrong_type')
        for entry in objects.get('bbox', []):
            if not (isinstance(entry, list) and len(entry) == 4 and all(map(_is_number, entry))):
                raise self._error(f'objects.bbox: expected [x1, y1, x2, y2], got {entry!r:.200}', 'bad_box')
        images, count = objects.get('image_id') or [], len(objects.get('bbox', []))
        if images and (len(images) != count or not all(type(image) is int for image in images)):
            raise self._error(f'objects.image_id: expected a whole number for each of {count} boxes, got '
                              f'{images!r:.200}', 'bad_box')
        return objects

    def _fps_of(self, fps: Any, count: int) -> list[float]:
        values = fps if isinstance(fps, list) else [fps] * count
        if len(values) != count or not all(_is_number(value) and value > 0 for value in values):
            raise self._error(f'fps: expected a number above 0, or one for each of {count} videos, got {fps!r:.200}',
                              'wrong_type')
        return [float(value) for value in values]

    def _error(self, reason: str, kind: str) -> SampleError:
        return SampleError(self.sample_id, reason, kind)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
