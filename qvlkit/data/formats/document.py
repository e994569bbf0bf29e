"""Documents: text without a chat around it, with pictures between its lines or without.

- {"text": "..."}: pure text, verbatim (C4 and others). With "images" or "videos", <image> and <video> stand for them.
- {"images": ["a.jpg", null, ...], "texts": [null, "...", ...]}: OBELICS (arXiv 2306.16527), one of the two at a place.
- {"document": [{"type": "image", "image": "a.jpg"}, {"type": "text", "text": "..."}, "...", ...]}: a list of parts.
"""
from collections.abc import Callable
from typing import Any

from qvlkit.data.formats.content import ContentBuilder
from qvlkit.data.formats.openai import read_part
from qvlkit.data.formats.tagged import media_list
from qvlkit.structures import Sample, SampleError, Turn


def read(record: dict, *, sample_id: str, source: str, resolve: Callable[[str], Any],
         boxes: str | None = None) -> Sample:
    """One document -> Sample of one 'document' turn; SampleError says what is wrong with it."""
    if 'texts' in record:
        content = _interleaved(record, sample_id, resolve)
    elif 'document' in record:
        content = _parts(record['document'], 'document', sample_id, resolve)
    else:
        content = _tagged(record, sample_id, resolve)
    content = [item for item in content if item != '']
    if not any(isinstance(item, str) and item.strip() for item in content):
        raise SampleError(sample_id, 'a document without text: there is nothing to learn', 'no_target')
    return Sample(sample_id, [Turn('document', content)], source)


def _tagged(record: dict, sample_id: str, resolve: Callable) -> list:
    text = record.get('text')
    if not isinstance(text, str):
        raise SampleError(sample_id, f'text: expected text, got {text!r:.100}', 'wrong_type')
    images = media_list(record, 'image', 'images', sample_id)
    videos = media_list(record, 'video', 'videos', sample_id)
    if not images and not videos and not {'image', 'images', 'video', 'videos'} & record.keys():
        return [text]  # '<image>' in a web page is no tag
    builder = ContentBuilder(sample_id=sample_id, resolve=resolve, images=images, videos=videos,
                             fps=record.get('fps', 2.0))
    content = builder.content(text, 'document')
    builder.finish()
    return content


def _interleaved(record: dict, sample_id: str, resolve: Callable) -> list:
    images, texts = record.get('images'), record['texts']
    if not isinstance(images, list) or not isinstance(texts, list) or len(images) != len(texts):
        raise SampleError(sample_id, f"expected 'images' and 'texts' as lists of one length, got {images!r:.100} and "
                          f'{texts!r:.100}', 'wrong_type')
    parts = []
    for index, (image, text) in enumerate(zip(images, texts)):
        if image is not None and text is not None:
            raise SampleError(sample_id, f'images[{index}] and texts[{index}]: expected one of the two, got both',
                              'wrong_type')
        parts += [{'image': image}] if image is not None else [text] if text is not None else []
    return _parts(parts, 'texts', sample_id, resolve)


def _parts(parts: Any, key: str, sample_id: str, resolve: Callable) -> list:
    if not isinstance(parts, list):
        raise SampleError(sample_id, f'{key}: expected a list of parts, got {parts!r:.100}', 'wrong_type')
    return [read_part(part, f'{key}[{index}]', sample_id, resolve) for index, part in enumerate(parts)]
