"""`qvlkit.load`: a folder -> a model and its processor."""
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from qvlkit.convert.adapted_files import open_weights
from qvlkit.convert.folders import ModelFolder, open_folder
from qvlkit.convert.huggingface import Progress, load_weights
from qvlkit.convert.key_mapping import EMBEDDING, embedding_name, released_name
from qvlkit.convert.weight_files import read_json
from qvlkit.models.builder import build_model
from qvlkit.models.vlm import VLM

if TYPE_CHECKING:
    from qvlkit.data.processor import Processor

_PLACEHOLDERS = {'image_token_id': '<|image_pad|>', 'video_token_id': '<|video_pad|>'}


def load(folder: str | Path, *, dtype: str | torch.dtype = 'auto', device: str | torch.device = 'cpu',
         attention: str = 'sdpa', progress: Progress | None = None) -> tuple[VLM, 'Processor']:
    """A model that is ready to answer, and what turns messages into its input.

    Args:
        folder: A Hugging Face folder, a converted one, a training checkpoint, or the folder of a training stage.
        dtype: Of the weights in memory; 'auto' takes that of the stored embedding.
        device: Where the weights go.
        attention: Name of the attention backend.

    Returns:
        (model in evaluation mode, processor).

    Raises:
        FileNotFoundError: The folder, its weights or a shard are not there.
        ValueError: The folder holds another model family, tensors that do not fit, pickles, or no tokenizer.
    """
    from qvlkit.data.preprocessor_config import read_limits
    from qvlkit.data.processor import Processor
    from qvlkit.data.tokenizers import HFTokenizer
    opened = open_folder(folder)
    tokenizer = HFTokenizer(str(opened.path))
    check_placeholders(opened, tokenizer)
    model = load_model(opened, dtype=dtype, device=device, attention=attention, vocab_size=tokenizer.vocab_size,
                       progress=progress)
    processor = Processor(tokenizer, model.geometry, num_tokens=model.merger.num_tokens,
                          token_grid=model.merger.token_grid, position_ids=model.position_encoding.ids, plan=model.plan,
                          **read_limits(opened.path))
    return model, processor


def load_model(folder: str | Path | ModelFolder, *, dtype: str | torch.dtype = 'auto',
               device: str | torch.device = 'cpu', attention: str = 'sdpa', vocab_size: int | None = None,
               progress: Progress | None = None) -> VLM:
    """The model of a folder alone; it needs no tokenizer. Arguments and errors as `load`.

    Args:
        vocab_size: Tokens of the tokenizer, which the embedding must have rows for.
    """
    opened = folder if isinstance(folder, ModelFolder) else open_folder(folder)
    files = open_weights(opened.path)
    config = {**opened.model, 'attention': attention, **_normalisation(opened)}
    embedding = embedding_name(files.names())
    if embedding is None:
        raise ValueError(f'{opened.path}: the weights hold no embedding; expected {EMBEDDING!r} or '
                         f'{released_name(EMBEDDING)!r}')
    rows = files.shape(embedding)[0]
    if vocab_size is not None and vocab_size > rows:
        raise ValueError(f'{opened.path}: the tokenizer has {vocab_size} tokens, the embedding {rows} rows')
    kind = files.dtype(embedding) if dtype == 'auto' else dtype
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise ValueError(f"dtype: expected 'auto' or a floating-point torch.dtype, got {dtype!r}")
    model = build_model(config, vocab_size=rows, device='meta', dtype=kind)
    if set(dict(model.named_buffers())) <= set(model.state_dict()):
        model = model.to_empty(device=device)
    else:  # a part computes buffers that no file holds: let it
        model = build_model(config, vocab_size=rows, device=device, dtype=kind)
    load_weights(model, opened, progress=progress)
    return model.eval()


def check_placeholders(folder: ModelFolder, tokenizer) -> None:
    """ValueError if config.json and the tokenizer disagree on the ids of the picture and video placeholders."""
    config = read_json(folder.config_file) if folder.kind != 'training' and folder.config_file is not None else {}
    for key, token in _PLACEHOLDERS.items():
        if key in config and config[key] != tokenizer.special_id(token):
            raise ValueError(f'{folder.config_file}: {key}: {config[key]!r} is not the id of {token!r} in the '
                             f'tokenizer beside it, which is {tokenizer.special_id(token)}')


def _normalisation(folder: ModelFolder) -> dict:
    """Mean and deviation of the colours from preprocessor_config.json, where the model's config leaves them open."""
    path = folder.path / 'preprocessor_config.json'
    content = read_json(path) if path.is_file() else {}
    return {key: content[key] for key in ('image_mean', 'image_std') if content.get(key) and key not in folder.model}
