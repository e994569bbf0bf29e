"""Boxes, points and outlines as text and back, in a closed table of styles.

Sources: Qwen2.5-VL (arXiv 2502.13923) section 2.2.1 and its cookbooks for 'json' and 'xml', in whole pixels of the
resized picture; Qwen2-VL (arXiv 2409.12191) section 2.1 for 'qwen2', 0 to 1000 over each side, between special tokens.

    json    [{"bbox_2d": [x1, y1, x2, y2], "label": "cat"}, {"point_2d": [x, y], ...}, {"polygon_2d": [[x, y], ...]}]
    xml     <box x1="1" y1="2" x2="3" y2="4">cat</box>, <points x1="1" y1="2" x2="3" y2="4" alt="cat">cat</points>
    plain   cat: x1,y1,x2,y2
    qwen2   <|object_ref_start|>cat<|object_ref_end|><|box_start|>(x1,y1),(x2,y2)<|box_end|>

Without a label a region is written as bare coordinates, so that the text around it decides the form. One that stands as
a value in JSON text (right behind '"key": ') is written as JSON in every style.
"""
import dataclasses
import html
import itertools
import json
import re
from collections.abc import Callable, Sequence

from qvlkit.data.formats.grounding_parsers import PARSERS, parse_json
from qvlkit.registry import near_names
from qvlkit.structures import Box, Point, Polygon, Region

Size = tuple[int, int]  # width, height
KEYS = {Box: 'bbox_2d', Point: 'point_2d', Polygon: 'polygon_2d'}
_NUMBER = r'\s*(-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)\s*'
_NUMBERS = re.compile(_NUMBER)
_PAIR = r'\s*\[' + _NUMBER + ',' + _NUMBER + r'\]\s*'
_KEYED = re.compile(
    r'"(?:(?P<box>bbox_2d)"\s*:\s*(?P<corners>\[' + ','.join([_NUMBER] * 4) + r'\])'
    r'|(?P<point>point_2d)"\s*:\s*(?P<spot>\[' + ','.join([_NUMBER] * 2) + r'\])'
    r'|(?P<polygon>polygon_2d)"\s*:\s*(?P<outline>\[' + _PAIR + '(?:,' + _PAIR + r'){2,}\]))')
_JSON_VALUE = re.compile(r'"\s*:\s*\Z')


class SpecialToken(str):
    """A control token among a turn's content: the renderer emits the token itself, not the characters of its name."""


def regions_to_text(content: list, sizes: Sequence[Size] | None = None, style: str = 'json') -> list:
    """Turn content with its regions written out -> str, SpecialToken and whatever else it held, in order.

    Args:
        content: With regions in the space 'resized' (as `finish` leaves them). Numbers are written as they are.
        sizes: For each medium of the sample, its resized (width, height); 'qwen2' needs it.
        style: 'json', 'xml', 'plain' or 'qwen2'.

    Raises:
        ValueError: The style is unknown, or 'qwen2' lacks the size of a region's medium.
    """
    check_style(style)
    written: list = []
    run: list[Region] = []  # neighbours with labels
    for item in [*content, None]:
        inline = isinstance(item, Region) and (not item.label or _is_json_value(written) and not run)
        if isinstance(item, Region) and not inline:
            run.append(item)
            continue
        if run:
            written += WRITERS[style](run, sizes)
            run = []
        if inline:
            bare = dataclasses.replace(item, label='')
            as_json = style == 'json' or _is_json_value(written)
            written += [_json_coordinates(bare)] if as_json else WRITERS[style]([bare], sizes)
        elif item is not None:
            written.append(item)
    return written


def check_style(style: str) -> None:
    """ValueError with near names unless `style` is in the table."""
    if style not in WRITERS:
        raise ValueError(f'style: {style!r} is unknown{near_names(style, list(WRITERS))}; expected one of '
                         f'{", ".join(WRITERS)}')


def parse_regions(text: str, style: str = 'auto', size: Size | None = None) -> list[Region]:
    """The regions of a model's answer, in reading order; an empty list if there is none.

    Lenient: text around them, code fences, a cut-off end, missing commas and another order of attributes do no harm.
    What is not finite numbers, as many as its kind has, is left out. 'auto' takes the first style of which there are
    signs.

    Args:
        text: The answer.
        style: 'auto' or one of the table.
        size: The resized (width, height) of the picture. With it, regions are in the space 'resized'; without it those
            of the style 'qwen2' are in the space 'thousand'.
    """
    if style != 'auto':
        check_style(style)
        regions = PARSERS[style](text)
    elif '<|box_start|>' in text or '<|quad_start|>' in text:
        regions = PARSERS['qwen2'](text)
    else:
        regions = PARSERS['json'](text) or PARSERS['xml'](text)
        if not any(region.label for region in regions) and '{' not in text:  # perhaps 'label: [x1, y1, x2, y2]'
            plain = PARSERS['plain'](text)
            regions = plain if not regions or any(region.label for region in plain) else regions
    if size is None:
        return regions
    return [_from_thousand(region, size) if region.space == 'thousand' else region for region in regions]


def parse_boxes(text: str) -> list[Box]:
    """The boxes of an answer in JSON, in the space 'resized'; bare coordinates do not count."""
    return [region for region in parse_json(text, bare=False) if isinstance(region, Box)]


def find_regions(text: str, media_index: int, space: str = 'source') -> list:
    """Text split at each '"bbox_2d": [...]', '"point_2d": [...]' and '"polygon_2d": [[...], ...]'.

    The result is str and regions without labels in `space`, which join to the same text.
    """
    pieces, end = [], 0
    for match in _KEYED.finditer(text):
        kind, group = next((kind, group) for kind, name, group in (
            (Box, 'box', 'corners'), (Point, 'point', 'spot'), (Polygon, 'polygon', 'outline')) if match[name])
        coordinates = tuple(float(value) for value in _NUMBERS.findall(match[group]))
        pieces += [text[end:match.start(group)], kind(coordinates, '', media_index, space)]
        end = match.end(group)
    return pieces + ([text[end:]] if text[end:] else [])


def holds_regions(text: str) -> bool:
    """Whether `find_regions` may find something in `text`."""
    return any(f'"{key}"' in text for key in KEYS.values())


def _write_json(regions: list[Region], sizes: Sequence[Size] | None) -> list:
    return ['[' + ', '.join(f'{{"{KEYS[type(region)]}": {_json_coordinates(region)}, "label": '
                            f'{json.dumps(region.label, ensure_ascii=False)}}}' for region in regions) + ']']


def _write_xml(regions: list[Region], sizes: Sequence[Size] | None) -> list:
    """Neighbouring points of one label share an element, as in the cookbook."""
    lines = []
    for (kind, label), group in itertools.groupby(regions, lambda region: (type(region), region.label)):
        group, label = list(group), html.escape(label)
        if kind is Point:
            spots = [value for region in group for value in region.coordinates]
            alt = f' alt="{label}"' if label else ''
            lines.append(f'<points {_attributes(spots)}{alt}>{label}</points>')
        else:
            name = 'box' if kind is Box else 'polygon'
            lines += [f'<{name} {_attributes(region.coordinates)}>{label}</{name}>' for region in group]
    return ['\n'.join(lines)]


def _write_plain(regions: list[Region], sizes: Sequence[Size] | None) -> list:
    """A region on each line; a label's line breaks become spaces."""
    return ['\n'.join((' '.join(region.label.split()) + ': ' if region.label else '')
                      + ','.join(map(_number, region.coordinates)) for region in regions)]


def _write_qwen2(regions: list[Region], sizes: Sequence[Size] | None) -> list:
    """Outlines stand between the quad tokens; a point is a box token pair with one corner."""
    written: list = []
    for region in regions:
        if region.label:
            written += [SpecialToken('<|object_ref_start|>'), region.label, SpecialToken('<|object_ref_end|>')]
        values = _to_thousand(region, sizes)
        corners = ','.join(f'({x},{y})' for x, y in zip(values[::2], values[1::2]))
        name = 'quad' if isinstance(region, Polygon) else 'box'
        written += [SpecialToken(f'<|{name}_start|>'), corners, SpecialToken(f'<|{name}_end|>')]
    return written


# The closed table of styles: regions with one kind of label state (all with, or one without) -> content items.
WRITERS: dict[str, Callable[[list[Region], Sequence[Size] | None], list]] = {
    'json': _write_json, 'xml': _write_xml, 'plain': _write_plain, 'qwen2': _write_qwen2}


def _to_thousand(region: Region, sizes: Sequence[Size] | None) -> list[int]:
    if region.space == 'thousand':
        return [round(value) for value in region.coordinates]
    if region.space != 'resized' or sizes is None or not 0 <= region.media_index < len(sizes):
        raise ValueError(f"style 'qwen2': {list(region.coordinates)} in the space {region.space!r} on medium "
                         f"{region.media_index}: expected the space 'resized' and the size of that medium, got the "
                         f'sizes {sizes}')
    size = sizes[region.media_index]
    return [min(max(round(value * 1000 / size[axis % 2]), 0), 1000) for axis, value in enumerate(region.coordinates)]


def _from_thousand(region: Region, size: Size) -> Region:
    coordinates = tuple(value * size[axis % 2] / 1000 for axis, value in enumerate(region.coordinates))
    return dataclasses.replace(region, coordinates=coordinates, space='resized')


def _is_json_value(written: list) -> bool:
    last = written[-1] if written else None
    return isinstance(last, str) and _JSON_VALUE.search(last[-20:]) is not None


def _json_coordinates(region: Region) -> str:
    values = [_number(value) for value in region.coordinates]
    if isinstance(region, Polygon):
        values = [f'[{x}, {y}]' for x, y in zip(values[::2], values[1::2])]
    return '[' + ', '.join(values) + ']'


def _attributes(coordinates: Sequence[float]) -> str:
    return ' '.join(f'{"xy"[axis % 2]}{axis // 2 + 1}="{_number(value)}"' for axis, value in enumerate(coordinates))


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))
