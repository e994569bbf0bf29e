"""Pre-training: predict the next token of documents and conversations.

Source: Qwen2.5-VL Technical Report, arXiv 2502.13923, section 2.2 and table 2. Its three stages differ in what trains,
in the data and in the length of a row, and all of that stands in the config:

    visual          vision encoder and merger; captions, visual knowledge, OCR                         8,192
    multimodal      all parts; text, interleaved pages, questions, grounding, documents, video, agents 8,192
    long_context    all parts; long videos, long documents, long trajectories                          32,768
"""
from collections.abc import Callable
from typing import Any

from qvlkit.registry import LOSSES, TRAINERS
from qvlkit.train.sft import SFTTrainer
from qvlkit.train.trainer import Trainer


@TRAINERS.register_module()
class PretrainTrainer(Trainer):
    """Next-token loss on every text token of a document, and on the answers of a conversation.

    Args:
        loss: As for `SFTTrainer`.
        arguments: As for `Trainer`.
    """
    compute_loss = SFTTrainer.compute_loss  # the same sum: what is a target, the sample's form decides

    def __init__(self, *, loss: dict | Callable | None = None, **arguments: Any):
        super().__init__(**arguments)
        loss = loss or dict(type='LinearCrossEntropy')
        self.loss = LOSSES.build(loss, config_key='trainer.loss') if isinstance(loss, dict) else loss
