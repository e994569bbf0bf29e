"""ChatML: turns to segments, each of which knows whether it is a target.

Source: Qwen2.5-VL (arXiv 2502.13923) and the chat template of the released checkpoints. A turn is
<|im_start|>, role, newline, content, <|im_end|>, newline. Where the first turn is not the system's, one that says
'You are a helpful assistant.' comes before it. Targets are the assistant's text, its <|im_end|> and the newline.

Control tokens exist only as segments of kind 'control', and targets only by structure: text that happens to
contain '<|im_end|>' or 'assistant' stays text. Nothing is searched for afterwards.
"""
from dataclasses import dataclass

import numpy as np

from qvlkit.data.formats.grounding import SpecialToken
from qvlkit.registry import TRANSFORMS
from qvlkit.structures import Media, Sample, SampleError, Turn

DEFAULT_SYSTEM = 'You are a helpful assistant.'
TURN_START, TURN_END, END_OF_TEXT = '<|im_start|>', '<|im_end|>', '<|endoftext|>'
VISION_START, VISION_END = '<|vision_start|>', '<|vision_end|>'
PLACEHOLDERS = {'image': '<|image_pad|>', 'video': '<|video_pad|>'}
MEDIA_TITLES = {'image': 'Picture', 'video': 'Video'}
ROLES = ('system', 'user', 'assistant', 'tool')


@dataclass
class Segment:
    """A stretch of the rendered chat.

    kind 'control': one special token, `text` its name. kind 'text': plain text. kind 'vision': the placeholders of the
    medium `media_index`, `text` the name of their token.
    """
    kind: str
    text: str
    is_target: bool = False
    media_index: int = -1


@TRANSFORMS.register_module()
class ChatTemplate:
    """Fill `segments`: a conversation as ChatML, a document as plain text.

    Args:
        add_vision_id: Write 'Picture 1: ', 'Video 1: ' before each medium of a conversation.
        generation_prompt: End where an answer would begin.
    """
    random = False

    def __init__(self, *, add_vision_id: bool = False, generation_prompt: bool = False):
        self.add_vision_id, self.generation_prompt = add_vision_id, generation_prompt

    def __call__(self, sample: Sample, rng: np.random.Generator | None) -> Sample:
        """SampleError where a document is not the sample's only turn."""
        if any(turn.role == 'document' for turn in sample.turns):
            if len(sample.turns) != 1:
                raise SampleError(sample.id, 'a document is a sample of its own, without a chat around it',
                                  'unknown_role')
            sample.segments = render_document(sample.turns[0].content)
        else:
            try:
                sample.segments = render(sample.turns, add_vision_id=self.add_vision_id,
                                         generation_prompt=self.generation_prompt)
            except ValueError as error:
                raise SampleError(sample.id, str(error), 'unknown_role') from error
        return sample


class _Writer:
    """Collects segments; neighbouring text of one kind becomes one segment, hence one call of the tokenizer."""

    def __init__(self):
        self.segments: list[Segment] = []

    def control(self, name: str, is_target: bool = False) -> None:
        self.segments.append(Segment('control', name, is_target))

    def text(self, text: str, is_target: bool = False) -> None:
        last = self.segments[-1] if self.segments else None
        if last and last.kind == 'text' and last.is_target == is_target:
            last.text += text
        elif text:
            self.segments.append(Segment('text', text, is_target))

    def item(self, item: str, is_target: bool) -> None:
        """Text, or a control token that content holds as such."""
        if isinstance(item, SpecialToken):
            self.control(str(item), is_target)
        else:
            self.text(item, is_target)

    def vision(self, kind: str, media_index: int) -> None:
        self.control(VISION_START)
        self.segments.append(Segment('vision', PLACEHOLDERS[kind], False, media_index))
        self.control(VISION_END)


def render(turns: list[Turn], *, add_vision_id: bool = False, generation_prompt: bool = False) -> list[Segment]:
    """Turns whose content is str and Media -> segments in token order.

    The header of an assistant's turn is a segment apart from the answer, because generation starts between them.
    Neighbouring 'tool' turns become one user turn of <tool_response> blocks.

    Args:
        turns: In order. Boxes have become text before.
        add_vision_id: Write 'Picture 1: ', 'Video 1: ' before each medium, counted over the whole chat.
        generation_prompt: End with the header of an assistant's turn.

    Raises:
        ValueError: A role or a medium's kind is unknown.
    """
    writer = _Writer()
    if not turns or turns[0].role != 'system':
        _open_turn(writer, 'system')
        writer.text(DEFAULT_SYSTEM)
        _close_turn(writer)
    numbers = dict.fromkeys(PLACEHOLDERS, 0)
    media_index = 0
    for index, turn in enumerate(turns):
        if turn.role not in ROLES:
            raise ValueError(f'role {turn.role!r} of turn {index}: expected one of {", ".join(ROLES)}')
        is_target = turn.role == 'assistant'
        is_tool = turn.role == 'tool'
        if not (is_tool and index and turns[index - 1].role == 'tool'):
            _open_turn(writer, 'user' if is_tool else turn.role)
        else:
            writer.text('\n')
        if is_tool:
            writer.text('<tool_response>\n')
        for item in turn.content:
            if not isinstance(item, Media):
                writer.item(item, is_target)
                continue
            if item.kind not in PLACEHOLDERS:
                raise ValueError(f"media kind {item.kind!r}: expected 'image' or 'video'")
            numbers[item.kind] += 1
            if add_vision_id:
                writer.text(f'{MEDIA_TITLES[item.kind]} {numbers[item.kind]}: ')
            writer.vision(item.kind, media_index)
            media_index += 1
        if is_tool:
            writer.text('\n</tool_response>')
            if index + 1 < len(turns) and turns[index + 1].role == 'tool':
                continue
        _close_turn(writer, is_target)
    if generation_prompt:
        _open_turn(writer, 'assistant')
    return writer.segments


def render_document(content: list) -> list[Segment]:
    """Text and media in reading order -> segments: all text is a target, and <|endoftext|> after it.

    For captions, OCR, interleaved pages and plain text, in pre-training (Qwen2.5-VL, section 2.2.1).
    """
    writer, media_index = _Writer(), 0
    for item in content:
        if isinstance(item, Media):
            writer.vision(item.kind, media_index)
            media_index += 1
        else:
            writer.item(item, True)
    writer.control(END_OF_TEXT, True)
    return writer.segments


def _open_turn(writer: _Writer, role: str) -> None:
    writer.control(TURN_START)
    writer.text(role + '\n')


def _close_turn(writer: _Writer, is_target: bool = False) -> None:
    writer.control(TURN_END, is_target)
    writer.text('\n', is_target)


# The same rendering for Hugging Face's tools, written into exported folders.
JINJA_TEMPLATE = (
    "{%- set count = namespace(image=0, video=0) -%}"
    "{%- if not messages or messages[0]['role'] != 'system' -%}"
    "{{- '<|im_start|>system\\n" + DEFAULT_SYSTEM + "<|im_end|>\\n' -}}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{%- set tool = message['role'] == 'tool' -%}"
    "{%- if tool and not loop.first and loop.previtem['role'] == 'tool' -%}{{- '\\n' -}}"
    "{%- else -%}{{- '<|im_start|>' + ('user' if tool else message['role']) + '\\n' -}}{%- endif -%}"
    "{%- if tool -%}{{- '<tool_response>\\n' -}}{%- endif -%}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}"
    "{%- else -%}{%- for item in message['content'] -%}"
    "{%- if item['type'] == 'image' or 'image' in item or 'image_url' in item -%}"
    "{%- set count.image = count.image + 1 -%}"
    "{%- if add_vision_id -%}{{- 'Picture ' ~ count.image ~ ': ' -}}{%- endif -%}"
    "{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}"
    "{%- elif item['type'] == 'video' or 'video' in item -%}"
    "{%- set count.video = count.video + 1 -%}"
    "{%- if add_vision_id -%}{{- 'Video ' ~ count.video ~ ': ' -}}{%- endif -%}"
    "{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}"
    "{%- elif 'text' in item -%}{{- item['text'] -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{%- if tool -%}{{- '\\n</tool_response>' -}}{%- endif -%}"
    "{%- if not (tool and not loop.last and loop.nextitem['role'] == 'tool') -%}{{- '<|im_end|>\\n' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}")
