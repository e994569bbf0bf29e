"""Questions and answers as documents, for pre-training: the media, then the text, without a chat around them."""
import dataclasses
from typing import Any

from qvlkit.registry import DATASETS
from qvlkit.structures import Media, Sample, Turn


@DATASETS.register_module()
class AsDocuments:
    """Each conversation of a dataset as one 'document' turn.

    Args:
        dataset: Config of a dataset of conversations, or a built one.
        questions: True writes 'question answer', a line for each pair; False the answers alone, as captions.
        name: Name of the dataset; that of `dataset` if absent.

    `extra` is that of the conversation.
    """

    def __init__(self, dataset: Any, *, questions: bool = True, name: str | None = None):
        self.dataset = DATASETS.build(dataset, config_key='AsDocuments.dataset') if isinstance(
            dataset, dict) else dataset
        self.questions, self.name = questions, name or getattr(self.dataset, 'name', 'documents')

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        sample = self.dataset[index]
        media, text = [], []
        for turn in sample.turns:
            media += [item for item in turn.content if isinstance(item, Media)]
            if turn.role == 'assistant' or (self.questions and turn.role == 'user'):
                written = [item for item in turn.content if not isinstance(item, Media)]
                text += [*written, ' ' if turn.role == 'user' else '\n']
        return dataclasses.replace(sample, turns=[Turn('document', [*media, *text[:-1]])], source=self.name)
