"""What two towers know of held-out pairs: they find a picture's caption, a caption's picture, and name a class.

Source: arXiv 2103.00020, section 3.1 (zero-shot classification; an ensemble of prompts is the mean of their vectors)
and appendix E (retrieval). The towers are handed in as functions, so that nothing here knows how pairs are embedded.
Shapes: n pictures, C distinct captions, K classes, W common width.
"""
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from qvlkit.data.image_text import EncodedPair, ImageTextProcessor
from qvlkit.evaluation.chance import constant_answer_chance
from qvlkit.evaluation.metrics import wilson_interval
from qvlkit.structures import Sample

RECALL_AT = (1, 5)
Embed = Callable[[list[EncodedPair]], torch.Tensor]  # at most batch_size pairs -> (number, W), of unit length


@dataclasses.dataclass
class Score:
    """A share of `count` in [0, 1], its 95 % interval (low, high), and what chance gives."""
    share: float
    count: int
    low: float
    high: float
    chance: float
    chance_by: str


class ZeroShotEvaluator:
    """Held-out pairs, encoded once and embedded as often as wanted.

    Args:
        dataset: Samples with one picture and a caption. Where they have extra['class'], or a text in extra['answer'],
            that is the picture's class, and every class is written into the templates.
        processor: Encodes pairs.
        batch_size: Most pairs in one call of a tower.
        templates: Captions of a class, with {} where its name stands. Their vectors are averaged.

    Raises:
        ValueError: The dataset is empty, only some samples have a class, or a template lacks its {}.
    """

    def __init__(self, dataset: Any, processor: ImageTextProcessor, *, batch_size: int = 64,
                 templates: Sequence[str] = ('{}',)):
        if len(dataset) == 0:
            raise ValueError('zero-shot: expected held-out pairs, but the dataset has none')
        for template in templates or ['']:
            if template.count('{}') != 1:
                raise ValueError(f'zero_shot.templates: expected texts with one {{}} for the class, got {template!r}')
        self.batch_size = batch_size
        samples = [dataset[index] for index in range(len(dataset))]
        self.pairs = [processor.encode(sample) for sample in samples]
        captions = [processor.caption_text(sample) for sample in samples]
        places = {text: place for place, text in enumerate(dict.fromkeys(captions))}
        self.captions = [processor.caption(text) for text in places]
        self.caption_of = torch.tensor([places[text] for text in captions])  # (n,)
        self.labels = _labels(samples)
        self.classes = list(dict.fromkeys(self.labels))
        self.prompts = [processor.caption(template.format(name)) for name in self.classes for template in templates]
        if self.labels:
            numbers = {name: number for number, name in enumerate(self.classes)}
            self.class_of = torch.tensor([numbers[label] for label in self.labels])

    def __call__(self, embed_images: Embed, embed_texts: Embed) -> dict[str, Score]:
        """Name of each number -> its score; 'zero-shot accuracy' only where the samples have classes."""
        images, captions = self._all(embed_images, self.pairs), self._all(embed_texts, self.captions)
        similarities = images @ captions.T  # (n, C)
        own = torch.zeros_like(similarities, dtype=torch.bool).scatter_(1, self.caption_of[:, None], True)
        scores = {}
        if self.labels:
            prompts = self._all(embed_texts, self.prompts).unflatten(0, (len(self.classes), -1))
            classes = F.normalize(prompts.mean(1), dim=-1)
            right = (images @ classes.T).argmax(1) == self.class_of
            chance = constant_answer_chance(self.labels, 1 / len(self.classes))
            scores['zero-shot accuracy'] = _score(right, *chance)
        for most in RECALL_AT:
            by = f'{most} drawn of {{}} {{}}'
            scores[f'retrieval recall@{most}'] = _score(
                _found(similarities, own, most), *_chance(own, most, by.format(len(self.captions), 'captions')))
            scores[f'caption to picture recall@{most}'] = _score(
                _found(similarities.T, own.T, most), *_chance(own.T, most, by.format(len(self.pairs), 'pictures')))
        return scores

    def _all(self, embed: Embed, pairs: list[EncodedPair]) -> torch.Tensor:
        """(number of pairs, W) in float64 on the CPU."""
        rows = [embed(pairs[start:start + self.batch_size]) for start in range(0, len(pairs), self.batch_size)]
        return torch.cat(rows).double().cpu()


def _labels(samples: list[Sample]) -> list[str]:
    """The class of each sample; empty if none has one."""
    labels = [sample.extra.get('class', sample.extra.get('answer')) for sample in samples]
    named = [isinstance(label, str) for label in labels]
    if any(named) and not all(named):
        raise ValueError(f"{samples[named.index(False)].id}: has neither extra['class'] nor a text in extra['answer'], "
                         f'but {sum(named)} of {len(named)} held-out pairs have: name the class of all or of none')
    return labels if all(named) else []


def _found(similarities: torch.Tensor, own: torch.Tensor, most: int) -> torch.Tensor:
    """(rows,) bool: whether something that belongs to the row is among the `most` nearest."""
    nearest = similarities.topk(min(most, similarities.shape[1]), dim=1).indices
    return own.gather(1, nearest).any(1)


def _chance(own: torch.Tensor, most: int, by: str) -> tuple[float, str]:
    """That a draw of `most` without looking finds something of the row's own, averaged over rows."""
    size = own.shape[1]
    most = min(most, size)
    misses = [math.comb(size - count, most) / math.comb(size, most) for count in own.sum(1).tolist()]
    return 1 - sum(misses) / len(misses), by


def _score(right: torch.Tensor, chance: float, chance_by: str) -> Score:
    hits, count = int(right.sum()), len(right)
    return Score(hits / count, count, *wilson_interval(hits, count), chance, chance_by)
