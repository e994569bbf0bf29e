"""Messages whose content is a list of typed parts, as OpenAI's API and Hugging Face's processors take them.

{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}},
{"type": "text", "text": "..."}]}, ...]}. A part is an image if its type is 'image' or 'image_url' or it has such a key,
a video if its type is 'video' or it has that key; a video is a list of frames, with `fps` beside it. Text is verbatim:
'<image>' in it is no tag.
"""
import math
from collections.abc import Callable
from typing import Any

from qvlkit.data.formats.grounding import find_regions, holds_regions
from qvlkit.data.transforms.load_media import MediaError
from qvlkit.structures import Media, Region, Sample, SampleError, Turn

ROLES = ('system', 'user', 'assistant', 'tool')


def read(record: dict, *, sample_id: str, source: str, resolve: Callable[[str], Any],
         boxes: str | None = None) -> Sample:
    """One record -> Sample; SampleError says what is wrong with it."""
    messages = record.get('messages')
    return Sample(sample_id, read_messages(messages, sample_id=sample_id, resolve=resolve, boxes=boxes), source)


def read_messages(messages: Any, *, sample_id: str, resolve: Callable[[Any], Any],
                  boxes: str | None = None) -> list[Turn]:
    """Chat messages -> turns.

    Args:
        messages: Dicts with 'role' and 'content': text, or a list of parts. Regions may stand among the parts.
        sample_id: For errors.
        resolve: What a part gives as its medium -> what to load; raises MediaError.
        boxes: As for `ContentBuilder`.

    Raises:
        SampleError: Wrong types, an unknown role or part, a bad media path.
    """
    if not isinstance(messages, list):
        raise SampleError(sample_id, f'messages: expected a list of turns, got {type(messages).__name__}', 'wrong_type')
    turns: list[Turn] = []
    media_count = 0
    for index, message in enumerate(messages):
        where = f'messages[{index}]'
        if not isinstance(message, dict):
            raise SampleError(sample_id, f'{where}: expected a dict, got {type(message).__name__}', 'wrong_type')
        role, parts = message.get('role'), message.get('content')
        if role not in ROLES:
            raise SampleError(sample_id, f'{where}.role: unknown role {role!r:.100}; expected one of '
                              f'{", ".join(ROLES)}', 'unknown_role')
        if isinstance(parts, str):
            parts = [parts]
        if not isinstance(parts, list):
            raise SampleError(sample_id, f'{where}.content: expected text or a list of parts, got {parts!r:.100}',
                              'wrong_type')
        content: list = []
        for position, part in enumerate(parts):
            item = read_part(part, f'{where}.content[{position}]', sample_id, resolve)
            media_count += isinstance(item, Media)
            if boxes and role == 'assistant' and isinstance(item, str) and holds_regions(item):
                if not media_count:
                    raise SampleError(sample_id, f'{where}: a box, but no image or video comes before it', 'bad_box')
                content += [piece for piece in find_regions(item, media_count - 1, boxes) if piece]
            elif item:
                content.append(item)
        turns.append(Turn(role, content))
    return turns


def read_part(part: Any, where: str, sample_id: str, resolve: Callable[[Any], Any]) -> str | Media | Region:
    """One part -> text, a medium or a region; SampleError, with `where`, if it is none."""
    if isinstance(part, (str, Region)):
        return part
    if not isinstance(part, dict):
        raise SampleError(sample_id, f'{where}: expected a dict or text, got {type(part).__name__}', 'wrong_type')
    kind = part.get('type')
    try:
        if kind in ('image', 'image_url') or 'image' in part or 'image_url' in part:
            return Media('image', _resolve_image(part, resolve))
        if kind == 'video' or 'video' in part:
            frames = part.get('video')
            fps = part.get('fps', 2.0)
            if not isinstance(fps, (int, float)) or isinstance(fps, bool) or not math.isfinite(fps) or fps <= 0:
                raise MediaError(f'fps: expected a number above 0, got {fps!r:.100}', 'wrong_type')
            listed = isinstance(frames, (list, tuple))
            return Media('video', [resolve(frame) for frame in frames] if listed else resolve(frames), float(fps))
    except MediaError as error:
        raise SampleError(sample_id, f'{where}: {error.reason}', error.kind) from error
    if kind == 'text' or (kind is None and 'text' in part):
        if not isinstance(part.get('text'), str):
            raise SampleError(sample_id, f'{where}.text: expected text, got {part.get("text")!r:.100}', 'wrong_type')
        return part['text']
    raise SampleError(sample_id, f"{where}.type: expected 'text', 'image', 'image_url' or 'video', got {kind!r:.100}",
                      'wrong_type')


def _resolve_image(part: dict, resolve: Callable[[Any], Any]) -> Any:
    given = part.get('image', part.get('image_url'))
    if isinstance(given, dict):
        given = given.get('url')
    if given is None:
        raise MediaError(f'an image part without an image: its keys are {sorted(map(str, part))}', 'wrong_type')
    return resolve(given)
