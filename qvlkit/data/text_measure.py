"""Text measure: how many tokens a sample has beside its visual ones, counted without opening a medium.

A store notes these counts when it is packed; together with the sizes of its media they are enough to plan rows. They
hold for one tokenizer and one way to write a chat, which `key` names.
"""
from typing import Any

from qvlkit.data.transforms.chat_template import ChatTemplate
from qvlkit.data.transforms.tokenize import Tokenize
from qvlkit.data.transforms.write_regions import WriteRegions
from qvlkit.structures import Media, Region, Sample, Turn
from qvlkit.utils.hashing import stable_hash


class TextMeasure:
    """Called with a sample, it gives (text tokens, targets); see `Processor.measure_text`.

    Args:
        tokenizer: From `qvlkit.data.tokenizers`.
        add_vision_id, region_style: As for `Processor`.
    """

    def __init__(self, tokenizer: Any, *, add_vision_id: bool = False, region_style: str = 'json'):
        self.template = ChatTemplate(add_vision_id=add_vision_id)
        self.write = WriteRegions(region_style)
        self.tokenize = Tokenize(tokenizer=tokenizer, num_tokens=_no_tokens)
        self._key: str | None = None

    def __call__(self, sample: Sample) -> tuple[int, int] | None:
        """Tokens of the rendered text, control tokens included and placeholders not, and the targets among them.

        None for a sample with boxes, points or outlines: their numbers, and so their tokens, depend on the size at
        which a picture is seen, on its edits, and on which of them a crop leaves. So does what an agent is told of its
        screen.
        """
        if 'platform' in sample.extra or any(isinstance(item, Region) for turn in sample.turns for item in
        turn.content):
            return None
        turns = [Turn(turn.role, list(turn.content)) for turn in sample.turns]
        tokens = self._tokens(Sample(sample.id, turns))
        return len(tokens.token_ids), int(tokens.is_target[1:].sum())

    @property
    def key(self) -> str:
        """Names the tokenizer and how a chat is written; '' for a tokenizer without a fingerprint."""
        if self._key is None:
            fingerprint = getattr(self.tokenize.tokenizer, 'fingerprint', '')
            self._key = fingerprint and f'{stable_hash(fingerprint, self.write.style, self._rendering()):016x}'
        return self._key

    def _tokens(self, sample: Sample) -> Any:
        for step in (self.write, self.template, self.tokenize):
            sample = step(sample, None)
        return sample.tokens

    def _rendering(self) -> str:
        """How one conversation with everything in it, and a document, are written."""
        chat = [Turn('user', [Media('image', None), 'a', Media('video', None), 'b']), Turn('assistant', ['c']),
                Turn('tool', ['d']), Turn('tool', ['e']), Turn('assistant', ['f'])]
        document = [Turn('document', ['a', Media('image', None), 'b'])]
        return repr([(segment.kind, segment.text, segment.is_target) for turns in (chat, document)
                     for segment in self.template(Sample('probe', turns), None).segments])


def _no_tokens(grid: Any) -> int:
    return 0
