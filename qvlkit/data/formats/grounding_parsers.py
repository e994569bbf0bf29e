"""Lenient parsers of grounded answers, one for each style of `grounding.py`: text -> regions, never an error.

What they read is written by a model and may be cut off, so each is linear in the length of the text.
"""
import html
import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

from qvlkit.structures import Box, Point, Polygon, Region

_NUM = r'-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?'
_NUMBER = re.compile(_NUM)
_FENCE = re.compile(r'```[\w-]*\s*\n?(.*?)(?:```|$)', re.DOTALL)
_LIST = rf'\[\s*{_NUM}(?:[\s,]+{_NUM})*+\s*\]'
_NESTED = rf'\[\s*{_LIST}(?:[\s,]+{_LIST})*+\s*\]'
# In JSON that does not parse as a whole: an object without objects in it, or a list of numbers or of such lists.
_PIECE = re.compile(rf'(\{{(?:[^{{}}"]|"(?:[^"\\]|\\.)*+")*+\}})|{_NESTED}|{_LIST}', re.DOTALL)
_KEYS = {'bbox_2d': Box, 'bbox': Box, 'point_2d': Point, 'point': Point, 'polygon_2d': Polygon, 'polygon': Polygon}
_LABELS = ('label', 'text_content', 'sub_label')
_LOOSE_COORDINATES = re.compile(rf'"({"|".join(_KEYS)})"\s*:?\s*({_NESTED}|{_LIST})')
_LOOSE_LABEL = re.compile(rf'"(?:{"|".join(_LABELS)})"\s*:?\s*("(?:[^"\\]|\\.)*+")')
_ELEMENT = re.compile(r'<(points?|box|polygon)\b([^<>]*+)>?([^<]*+)', re.IGNORECASE)
_ATTRIBUTE = re.compile(r'([A-Za-z_]\w*)\s*=\s*(?:"([^"]*)"|\'([^\']*)\'|([^\s"\'>/]+))')
_AXIS = re.compile(r'([xy])(\d{0,6})\Z')
_TOKEN = re.compile(r'(<\|(?:object_ref|box|quad)_(?:start|end)\|>)')
_CORNER = re.compile(rf'\(\s*({_NUM})\s*[,\s]\s*({_NUM})\s*\)')
_CORNERS = re.compile(rf'{_CORNER.pattern}(?:[\s,]*{_CORNER.pattern})*+')
_NUMBERS_ONLY = re.compile(r'[\s\d.,()\[\]eE+-]+')
_FOUR = re.compile(rf'(?<![\d.,]){_NUM}(?:\s*,\s*{_NUM}){{3}}(?![\d,])')
_MAX_COORDINATES = 10_000


def parse_json(text: str, *, bare: bool = True) -> list[Region]:
    """Objects with bbox_2d, point_2d or polygon_2d, and where `bare` lists of 2 or 4 numbers or of 3 pairs or more."""
    fenced = _FENCE.search(text)
    body = fenced.group(1) if fenced and ('[' in fenced.group(1) or '{' in fenced.group(1)) else text
    found: list[Region] = []
    position = 0
    while (start := _next_bracket(body, position)) is not None:
        try:
            value, position = json.JSONDecoder().raw_decode(body, start)
            found += _walk(value, bare)
        except (ValueError, RecursionError):
            return found + _pieces(body[start:], bare)
    return found


def _next_bracket(text: str, position: int) -> int | None:
    places = [place for place in (text.find('[', position), text.find('{', position)) if place >= 0]
    return min(places) if places else None


def _walk(value: Any, bare: bool) -> Iterator[Region]:
    if isinstance(value, dict):
        keys = [key for key in _KEYS if key in value]
        for key in keys:
            label = next((value[name] for name in _LABELS if isinstance(value.get(name), str)), '')
            yield from _region(_KEYS[key], value[key], label)
        if not keys:
            for item in value.values():
                yield from _walk(item, False)
    elif isinstance(value, list):
        kind = _kind(value)
        if kind is None:
            for item in value:
                yield from _walk(item, bare)
        elif bare:
            yield from _region(kind, value, '')


def _kind(value: list) -> type | None:
    """What a bare list of coordinates is: None if it is none."""
    if value and all(map(_is_number, value)):
        return {2: Point, 4: Box}.get(len(value), Polygon)
    if len(value) >= 3 and all(isinstance(item, list) and len(item) == 2 and all(map(_is_number, item))
                               for item in value):
        return Polygon
    return None


def _region(kind: type, value: Any, label: str, space: str = 'resized') -> Iterator[Region]:
    """One region if `value` holds as many finite numbers as its kind has."""
    if isinstance(value, list) and value and all(isinstance(item, list) for item in value):
        value = [number for item in value for number in item] if kind is Polygon else None
    if not isinstance(value, list) or not all(map(_is_number, value)) or len(value) > _MAX_COORDINATES:
        return
    count = len(value)
    if {Box: count == 4, Point: count == 2, Polygon: count >= 6 and count % 2 == 0}[kind]:
        yield kind(tuple(value), label, 0, space)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _pieces(text: str, bare: bool) -> list[Region]:
    """Regions of text that is not JSON as a whole."""
    found: list[Region] = []
    for match in _PIECE.finditer(text):
        piece = match.group()
        try:
            found += _walk(json.loads(piece), bare)
            continue
        except (ValueError, RecursionError):
            pass
        if not match.group(1):
            found += _walk(_loose_list(piece), bare)
            continue
        label = _LOOSE_LABEL.search(piece)
        for key, coordinates in _LOOSE_COORDINATES.findall(piece):
            found += _region(_KEYS[key], _loose_list(coordinates), _loads(label.group(1)) if label else '')
    return found


def _loose_list(text: str) -> list:
    """'[1 2, 3 4]' or '[[1 2], [3, 4], ...]' with commas missing."""
    if text.count('[') > 1:
        return [_numbers(part) for part in re.findall(r'\[([^\[\]]*)\]', text)]
    return _numbers(text)


def _loads(text: str) -> str:
    try:
        return json.loads(text)
    except ValueError:
        return text[1:-1]


def _numbers(text: str) -> list:
    """Numbers of a text: whole ones as int, those that are not finite left out."""
    values = [int(number) if len(number) < 16 and number.lstrip('-').isdigit() else float(number)
              for number in _NUMBER.findall(text)]
    return [value for value in values if math.isfinite(value)]


def parse_xml(text: str) -> list[Region]:
    """Elements points, point, box and polygon, attributes x1, y1, x2, ... in any order; the text or alt is the name."""
    found: list[Region] = []
    for match in _ELEMENT.finditer(text):
        given = {name.lower(): html.unescape(double or single or plain)
                 for name, double, single, plain in _ATTRIBUTE.findall(match.group(2))}
        values = _paired(given)
        label = html.unescape(match.group(3)).strip() if not match.group(2).endswith('/') else ''
        label = label or given.get('alt', '').strip()
        kind = {'box': Box, 'polygon': Polygon}.get(match.group(1).lower(), Point)
        groups = [values] if kind is not Point else [values[i:i + 2] for i in range(0, len(values), 2)]
        for group in groups:
            found += _region(kind, group, label)
    return found


def _paired(attributes: dict[str, str]) -> list:
    """x1, y1, x2, y2, ... from attributes, in the order of their numbers; an x without its y is left out."""
    axes: dict[str, dict[int, float]] = {'x': {}, 'y': {}}
    for name, text in attributes.items():
        axis, numbers = _AXIS.match(name), _numbers(text)
        if axis and len(numbers) == 1:
            axes[axis.group(1)][int(axis.group(2) or 0)] = numbers[0]
    return [axes[axis][number] for number in sorted(axes['x'].keys() & axes['y'].keys()) for axis in 'xy']


def parse_qwen2(text: str) -> list[Region]:
    """Coordinates between special tokens; in text without the tokens, corners in parentheses, without labels."""
    pieces = _TOKEN.split(text)
    if len(pieces) == 1:
        return [region for match in _CORNERS.finditer(text) for region in _corners(match.group(), '', 'thousand')]
    found: list[Region] = []
    label, state = '', ''
    for piece in pieces:
        if _TOKEN.fullmatch(piece):
            state = piece[2:-2]
            label = '' if state == 'object_ref_start' else label
        elif state == 'object_ref_start':
            label = piece.strip()
        elif state in ('box_start', 'quad_start'):
            found += _corners(piece, label, 'thousand')
        elif piece.strip() or piece and state != 'object_ref_end':
            label = ''  # a label holds for the boxes right behind it
    return found


def _corners(text: str, label: str, space: str) -> Iterator[Region]:
    values = [_numbers(part) for corner in _CORNER.findall(text) for part in corner]
    flat = [number for value in values for number in value]
    yield from _region({2: Point, 4: Box}.get(len(flat), Polygon), flat, label, space)


def parse_plain(text: str) -> list[Region]:
    """Lines of 'label: x1,y1,x2,y2' or of the numbers alone; in other lines, each run of four numbers."""
    found: list[Region] = []
    for line in text.splitlines():
        label, _, rest = line.strip().rpartition(':')
        if _NUMBERS_ONLY.fullmatch(rest) and any(map(str.isdigit, rest)):
            values = _numbers(rest)
            found += _region({2: Point, 4: Box}.get(len(values), Polygon), values, label.strip())
        else:
            found += [region for match in _FOUR.finditer(line) for region in _region(Box, _numbers(match.group()), '')]
    return found


PARSERS: dict[str, Callable[[str], list[Region]]] = {
    'json': parse_json, 'xml': parse_xml, 'plain': parse_plain, 'qwen2': parse_qwen2}
