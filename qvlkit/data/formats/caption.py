"""A picture or a video and what it shows: {"image": "a.jpg", "caption": "..."} or {"video": ..., "caption": "..."}.

It is read as a document: first the medium, then the caption, without a question.
"""
from collections.abc import Callable
from typing import Any

from qvlkit.data.formats.content import ContentBuilder
from qvlkit.data.formats.tagged import media_list
from qvlkit.structures import Sample, SampleError, Turn


def read(record: dict, *, sample_id: str, source: str, resolve: Callable[[str], Any],
         boxes: str | None = None) -> Sample:
    """One captioned medium -> Sample of one 'document' turn; SampleError says what is wrong with it."""
    caption = record.get('caption')
    if not isinstance(caption, str) or not caption.strip():
        raise SampleError(sample_id, f'caption: expected text, got {caption!r:.100}', 'wrong_type')
    images = media_list(record, 'image', 'images', sample_id)
    videos = media_list(record, 'video', 'videos', sample_id)
    if len(images) + len(videos) != 1:
        raise SampleError(sample_id, f'expected one image or one video with a caption, got {len(images)} images and '
                          f'{len(videos)} videos', 'tag_count')
    builder = ContentBuilder(sample_id=sample_id, resolve=resolve, images=images, videos=videos,
                             fps=record.get('fps', 2.0))
    content = builder.content('<image>' if images else '<video>', 'document')
    return Sample(sample_id, [Turn('document', [*content, caption])], source)
