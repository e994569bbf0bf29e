"""A picture and where its objects are, as detection and pointing sets have it.

{"image": "a.jpg", "objects": [{"bbox": [x1, y1, x2, y2], "label": "cat"}, {"point": [x, y], "label": "eye"},
{"polygon": [[x, y], ...], "label": "leaf"}, {"bbox": null, "label": "dog"}], "space": "source", "question": "..."}.

It becomes a question and an answer of typed regions, so that they move with the picture. What has no place (null) is
asked for too, and the answer says that it is not there: a category that is absent, as in Rex-Omni.
"""
import math
from collections.abc import Callable
from typing import Any

from qvlkit.data.formats.content import ContentBuilder
from qvlkit.registry import near_names
from qvlkit.structures import Box, Point, Polygon, Region, Sample, SampleError, Turn

KINDS = {'bbox': Box, 'point': Point, 'polygon': Polygon}
SPACES = ('source', 'resized', 'thousand', 'unit')
_EXPECTED = {'bbox': '[x1, y1, x2, y2] with x1 <= x2 and y1 <= y2', 'point': '[x, y]',
             'polygon': '[[x, y], ...] of 3 corners or more'}


def read(record: dict, *, sample_id: str, source: str, resolve: Callable[[str], Any],
         boxes: str | None = None) -> Sample:
    """One record -> Sample; SampleError says what is wrong with it.

    Args:
        boxes: The space of the coordinates where the record names none; None stands for 'source'.
    """
    image, objects = record.get('image'), record.get('objects')
    if not isinstance(image, str):
        raise SampleError(sample_id, f'image: expected one path, got {image!r:.100}', 'wrong_type')
    if not isinstance(objects, list) or not objects:
        raise SampleError(sample_id, f'objects: expected a list of objects, got {objects!r:.100}', 'wrong_type')
    space = record.get('space') or boxes or 'source'
    if space not in SPACES:
        near = near_names(space, list(SPACES)) if isinstance(space, str) else ''
        raise SampleError(sample_id, f'space: {space!r:.100} is unknown{near}; expected one of {", ".join(SPACES)}',
                          'bad_box')
    found = [_read_object(entry, index, space, sample_id) for index, entry in enumerate(objects)]
    question = record.get('question')
    if question is None:
        question = _question([label for _, label in found], [region for region, _ in found if region])
    if not isinstance(question, str):
        raise SampleError(sample_id, f'question: expected text, got {question!r:.100}', 'wrong_type')
    builder = ContentBuilder(sample_id=sample_id, resolve=resolve, images=[image], videos=[])
    content = builder.content(question if '<image>' in question else f'<image>\n{question}', 'user')
    builder.finish()
    return Sample(sample_id, [Turn('user', content), Turn('assistant', _answer(found))], source)


def _read_object(entry: Any, index: int, space: str, sample_id: str) -> tuple[Region | None, str]:
    """(region, label); no region for a category that is absent."""
    where = f'objects[{index}]'
    keys = [key for key in KINDS if isinstance(entry, dict) and key in entry]
    if len(keys) != 1:
        raise SampleError(sample_id, f"{where}: expected a dict with one of 'bbox', 'point' and 'polygon', got "
                          f'{entry!r:.100}', 'wrong_type')
    key, label = keys[0], entry.get('label', '')
    if not isinstance(label, str) or (entry[key] is None and not label):
        raise SampleError(sample_id, f'{where}.label: expected text, got {label!r:.100}', 'wrong_type')
    if entry[key] is None:
        return None, label
    values = entry[key]
    if key == 'polygon' and isinstance(values, list) and all(isinstance(corner, list) and len(corner) == 2
                                                             for corner in values):
        values = [number for corner in values for number in corner]
    right = isinstance(values, list) and all(
        isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) for value in values)
    if not right or not {'bbox': len(values) == 4, 'point': len(values) == 2,
                         'polygon': len(values) >= 6 and len(values) % 2 == 0}[key] or (
            key == 'bbox' and (values[0] > values[2] or values[1] > values[3])):
        raise SampleError(sample_id, f'{where}.{key}: expected {_EXPECTED[key]}, got {entry[key]!r:.200}', 'bad_box')
    return KINDS[key](tuple(map(float, values)), label, 0, space), label


def _question(labels: list[str], regions: list[Region]) -> str:
    names = ', '.join(dict.fromkeys(label for label in labels if label)) or 'object'
    verb = 'Point to' if regions and all(isinstance(region, Point) for region in regions) else 'Locate'
    return f'{verb} every instance of: {names}.'


def _answer(found: list[tuple[Region | None, str]]) -> list:
    """Regions in order, then a line for each category that is not there."""
    content: list = []
    for region, label in found:
        if region is not None:
            content += ['\n', region] if content and not label else [region]
    present = {label for region, label in found if region is not None}
    for label in dict.fromkeys(label for region, label in found if region is None):
        if label not in present:
            content.append(('\n' if content else '') + f'There is no {label} in the picture.')
    return content
