"""Boxes as text and back: Qwen2.5-VL's JSON.

Source: Qwen2.5-VL (arXiv 2502.13923) section 2.2.1: absolute pixels of the resized image. A box with a label is
written {"bbox_2d": [x1, y1, x2, y2], "label": "..."}, neighbouring ones as one list; a box without a label is written
[x1, y1, x2, y2], so that the text around it decides the form.
"""
import json
import math
import re

from qvlkit.structures import Box

_NUMBER = r'\s*(-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)\s*'
_COORDINATES = r'\[' + ','.join([_NUMBER] * 4) + r'\]'
_BBOX = re.compile(r'"bbox_2d"\s*:\s*' + _COORDINATES)
_OBJECT = re.compile(r'\{[^{}]*"bbox_2d"[^{}]*\}')
_FENCE = re.compile(r'```[\w-]*\s*\n?(.*?)(?:```|$)', re.DOTALL)
_LABEL_KEYS = ('label', 'text_content', 'sub_label')


def write_box(box: Box) -> str:
    """One box: its coordinates, or with a label a JSON object."""
    coordinates = '[' + ', '.join(_number(value) for value in box.coordinates) + ']'
    if not box.label:
        return coordinates
    return f'{{"bbox_2d": {coordinates}, "label": {json.dumps(box.label, ensure_ascii=False)}}}'


def write_boxes(boxes: list[Box]) -> str:
    """A JSON list of boxes: '[{"bbox_2d": [x1, y1, x2, y2], "label": "..."}]'."""
    return '[' + ', '.join(write_box(box) for box in boxes) + ']'


def boxes_to_text(content: list) -> list:
    """Turn content with its boxes written out: labelled neighbours become one JSON list. Other items are kept."""
    written, run = [], []
    for item in [*content, None]:
        if isinstance(item, Box) and item.label:
            run.append(item)
            continue
        if run:
            written.append(write_boxes(run))
            run = []
        if isinstance(item, Box):
            written.append(write_box(item))
        elif item is not None:
            written.append(item)
    return written


def find_boxes(text: str, media_index: int) -> list:
    """Text split at each '"bbox_2d": [x1, y1, x2, y2]' in source pixels -> str and Box, which join to the same text."""
    pieces, end = [], 0
    for match in _BBOX.finditer(text):
        start = match.end() - len(match.group()) + match.group().index('[')
        coordinates = tuple(float(value) for value in match.groups())
        pieces += [text[end:start], Box(coordinates, '', media_index, 'source')]
        end = match.end()
    return pieces + ([text[end:]] if text[end:] else [])


def parse_boxes(text: str) -> list[Box]:
    """The boxes of a model's answer, in the space 'resized'; an empty list if there is none.

    Code fences and text around the JSON are ignored. Where the JSON as a whole does not parse (it was cut off, a comma
    is missing), the objects that do are taken. Boxes that are not four finite numbers are left out.
    """
    fenced = _FENCE.search(text)
    body = fenced.group(1) if fenced and 'bbox_2d' in fenced.group(1) else text
    records = _whole(body)
    if records is None:
        records = [record for match in _OBJECT.finditer(body) for record in _whole(match.group()) or []]
    boxes = []
    for record in records:
        coordinates = record.get('bbox_2d') if isinstance(record, dict) else None
        if not _is_box(coordinates):
            continue
        label = next((record[key] for key in _LABEL_KEYS if isinstance(record.get(key), str)), '')
        boxes.append(Box(tuple(coordinates), label, 0, 'resized'))
    return boxes


def _whole(text: str) -> list | None:
    """The JSON list or object that `text` is or holds, as a list; None if it does not parse."""
    starts = [position for position in (text.find('['), text.find('{')) if position >= 0]
    if not starts:
        return []
    try:
        value, _ = json.JSONDecoder().raw_decode(text[min(starts):])
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict):
        return [value]
    return value if value and all(isinstance(item, dict) for item in value) else None


def _is_box(value: object) -> bool:
    return (isinstance(value, list) and len(value) == 4
            and all(isinstance(number, (int, float)) and not isinstance(number, bool) and math.isfinite(number)
                    for number in value))


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))
