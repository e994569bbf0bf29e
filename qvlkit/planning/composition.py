"""What a mixture is made of: languages, turns, pictures and subsets, by samples and by tokens.

Source: Qwen2.5-VL Technical Report, arXiv 2502.13923, section 2.3.1: half of the conversations text, half with pictures
or videos, mostly Chinese and English, of one and of several turns and pictures, in named subsets. Counted are the
samples that training would draw first, as the mixture's weights have it. A language is told by its script alone.
"""
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qvlkit.data.datasets.mixture import Mixture
from qvlkit.data.planner import measure_draw
from qvlkit.data.sampler import Sampler
from qvlkit.structures import Sample, SampleError

COMPOSITION = 'composition.json'
# Subset of the report -> words by which a source's name says that it belongs there.
SUBSETS = {
    'text': ('text',), 'general VQA': ('vqa', 'question', 'general', 'chat'),
    'caption': ('caption', 'knowledge', 'pair'), 'maths': ('math',), 'code': ('code', 'coding'),
    'security': ('security', 'safety'), 'doc/OCR': ('ocr', 'doc', 'document', 'chart', 'table'),
    'grounding': ('grounding', 'pointing', 'detection'), 'video': ('video',), 'agent': ('agent', 'screen')}
OTHER = 'other'
LANGUAGES = ('English', 'Chinese', 'other', 'none')
TEXT_READ = 4000  # characters of a sample by which its language is told

_MARKUP = re.compile(r'<[^<>]*>|"\w+":')
_LETTER = re.compile(r'[^\W\d_]')
_HAN = re.compile('[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]')
_KANA = re.compile('[\u3040-\u30ff]')
_LATIN = re.compile('[A-Za-z\u00c0-\u024f\u1e00-\u1eff]')


@dataclass
class Composition:
    """Counts of some samples: property -> value -> [samples, tokens], the properties being those of `properties`.

    unusable: samples that were drawn and cannot be used; they are in no other number.
    """
    counts: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    samples: int = 0
    tokens: int = 0
    unusable: int = 0

    def add(self, sample: Sample, tokens: int) -> None:
        """Count one sample."""
        self.samples, self.tokens = self.samples + 1, self.tokens + tokens
        for name, value in properties(sample).items():
            count = self.counts.setdefault(name, {}).setdefault(value, [0, 0])
            count[0] += 1
            count[1] += tokens

    def shares(self, name: str) -> dict[str, tuple[float, float]]:
        """Value of a property -> its share of the samples and of the tokens, the largest first."""
        found = sorted(self.counts.get(name, {}).items(), key=lambda item: (-item[1][0], item[0]))
        return {value: (samples / max(1, self.samples), tokens / max(1, self.tokens))
                for value, (samples, tokens) in found}

    def table(self) -> tuple[list[str], list[list]]:
        """Header and rows for people."""
        rows = [[name if place == 0 else '', value, f'{self.counts[name][value][0]:,}', f'{100 * by_sample:.1f} %',
                 f'{100 * by_token:.1f} %']
                for name in self.counts for place, (value, (by_sample, by_token)) in enumerate(
                    self.shares(name).items())]
        return ['of', 'value', 'samples', 'by sample', 'by token'], rows

    def to_dict(self) -> dict:
        """As plain data: what composition.json holds."""
        return dict(samples=self.samples, tokens=self.tokens, unusable=self.unusable, **{
            name: {value: dict(samples=count[0], tokens=count[1], by_sample=round(shares[0], 4),
                               by_token=round(shares[1], 4))
                   for value, shares in self.shares(name).items() for count in [self.counts[name][value]]}
            for name in self.counts})

    def write(self, folder: str | Path) -> Path:
        """Write composition.json into `folder`, whole or not at all."""
        path = Path(folder) / COMPOSITION
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f'{path.name}.{os.getpid()}.tmp')
        temporary.write_text(json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + '\n', encoding='utf-8')
        os.replace(temporary, path)
        return path


def compose(samples: Iterable[tuple[Sample, int]]) -> Composition:
    """The composition of (sample, its tokens)."""
    found = Composition()
    for sample, tokens in samples:
        found.add(sample, tokens)
    return found


def drawn_composition(mixture: Mixture, processor: Any, *, samples: int = 2000, seed: int = 0) -> Composition:
    """The composition of what training draws first. Headers and text are read, no pixel is decoded.

    Args:
        mixture: Of the stage's loader.
        processor: Has `measure`, as the loader's.
        samples: How many to draw; fewer if the data end before.
        seed: Of the run.
    """
    sampler, found = Sampler(mixture, seed=seed), Composition()
    while found.samples + found.unusable < samples and not sampler.ended:
        brought = [0] * len(mixture.sources)
        for draw in sampler.draw(samples - found.samples - found.unusable):
            try:
                tokens = measure_draw(draw, mixture, processor).length
                found.add(mixture.sample(draw.source, draw.index), tokens)
            except SampleError:
                found.unusable += 1
                continue
            brought[draw.source] += tokens
        sampler.note(brought)
    return found


def properties(sample: Sample) -> dict[str, str]:
    """What a sample is counted under: kind, subset, language, turns, images, videos."""
    media = [medium.kind for medium in sample.media()]
    questions = sum(turn.role == 'user' for turn in sample.turns)
    is_document = any(turn.role == 'document' for turn in sample.turns)
    return {'kind': 'multimodal' if media else 'text', 'subset': subset(sample), 'language': language(sample),
            'turns': 'document' if is_document else _bucket(questions), 'images': _bucket(media.count('image')),
            'videos': _bucket(media.count('video'))}


def subset(sample: Sample) -> str:
    """The report's subset: what `extra` says, or the last part of the source's path that names one, or 'other'."""
    if isinstance(given := sample.extra.get('subset'), str) and given:
        return given
    for piece in reversed(sample.source.lower().split('/')):
        words = [word.removesuffix('s') for word in re.split(r'[^a-z]+', piece) if word]
        for name, known in SUBSETS.items():
            if any(word in known for word in words):
                return 'text' if name == 'general VQA' and not sample.media() else name
    return OTHER


def language(sample: Sample) -> str:
    """'Chinese', 'English', 'other', or 'none' where there are no letters; of questions, answers and documents.

    Han letters count as a third of the text or more: Chinese, unless there are Kana. Latin letters: English, unless
    more than one in a hundred has an accent. So German without an umlaut is told as English.
    """
    text = ' '.join(item for turn in sample.turns if turn.role in ('user', 'assistant', 'document')
                    for item in turn.content if isinstance(item, str))
    text = _MARKUP.sub(' ', text[:TEXT_READ])
    letters = len(_LETTER.findall(text))
    if not letters:
        return 'none'
    han, kana, latin = (len(pattern.findall(text)) for pattern in (_HAN, _KANA, _LATIN))
    if kana > 0.1 * (han + kana) and han + kana > 0.3 * letters:
        return 'other'
    if han >= letters / 3:
        return 'Chinese'
    accented = latin - len(re.findall('[A-Za-z]', text))
    return 'English' if latin > 0.6 * letters and accented <= 0.01 * latin else 'other'


def _bucket(count: int) -> str:
    return str(count) if count < 3 else '3 to 5' if count < 6 else '6 or more'
