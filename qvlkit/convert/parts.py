"""One part of a model from a folder: where a run takes its decoder from one place and its encoder from another.

    load_part(model, 'vision_encoder', STAGE)             a training checkpoint or the folder of a stage
    load_part(model, 'language_model', CONVERTED)         a converted folder
    load_part(model, 'merger', QWEN2_5_VL)                a released Qwen2.5-VL
    load_part(model, 'language_model', QWEN2_5)           a text checkpoint (Qwen2ForCausalLM) into Qwen2Decoder
    load_part(model, 'vision_encoder', SIGLIP)            a checkpoint of the architecture that HFVisionEncoder or
                                                          HFDecoder holds

Names and shapes are checked before a byte is copied. Pickles and code are refused as everywhere.
"""
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from qvlkit.convert.adapted_files import open_weights
from qvlkit.convert.config_mapping import MODEL_TYPE
from qvlkit.convert.folders import CONFIG, MODEL, open_folder
from qvlkit.convert.huggingface import refuse_misfit
from qvlkit.convert.key_mapping import PATCH_EMBEDDING, map_names, released_shape
from qvlkit.convert.weight_files import WeightFiles, read_json
from qvlkit.engine.checkpoint import MANIFEST, checkpoints
from qvlkit.registry import near_names
from qvlkit.structures import VisionGeometry

_log = logging.getLogger(__name__)
_HEAD = 'lm_head.weight'


@dataclass
class _Source:
    """Where the tensors of one part lie: {name in the part: name in the files}, and what nobody takes.

    text: a checkpoint of a language model alone, whose vocabulary may differ. tied: its head is its embedding.
    """
    files: WeightFiles
    names: dict[str, str]
    left: list[str] = field(default_factory=list)
    released: bool = False
    text: bool = False
    tied: bool = False


def load_part(model: nn.Module, part: str, source: str | Path) -> None:
    """Copy the weights of one part from a folder into a built model; each tensor takes the model's own dtype.

    Args:
        model: A VLM, or any module with a child of this name.
        part: 'vision_encoder', 'merger', 'language_model' or another child.
        source: One of the folders above. Of a text checkpoint whose vocabulary has fewer rows than the model's, the
            first rows are filled and the others keep their first weights; the log says so.

    Raises:
        FileNotFoundError: The folder, its weights or a shard are not there.
        ValueError: The model has no such part, the folder holds another architecture, or tensors are missing, left
            over or of another shape (a text checkpoint with more rows than the model's vocabulary too). Nothing was
            copied then.
    """
    children = dict(model.named_children())
    if part not in children:
        raise ValueError(f'part {part!r}: the model has no such part{near_names(part, list(children))}; parts: '
                         f'{", ".join(children)}')
    module = children[part]
    found = _open(module, part, Path(source).expanduser())
    state = module.state_dict()
    embedding = next((name for name in state if name.endswith('embed_tokens.weight')), None)
    _match_head(found, state, embedding)
    growing = {embedding, _HEAD} if found.text else set()
    missing = [f'{part}.{name}' for name in state if name not in found.names]
    left = found.left + [stored for name, stored in found.names.items() if name not in state]
    wrong = []
    for name, tensor in state.items():
        if name not in found.names:
            continue
        stored, shape = found.files.shape(found.names[name]), _stored_shape(found, part, module, name, tensor)
        if stored != shape and not (name in growing and stored[1:] == shape[1:] and stored[0] < shape[0]):
            wrong.append(f'{found.names[name]} has {stored}, expected {shape}')
    refuse_misfit(f'{found.files.folder}: the tensors do not fit the {part}', missing, left, wrong)
    for name, tensor in state.items():
        rows = found.files.shape(found.names[name])[0] if name in growing else None
        if rows is not None and rows < len(tensor):
            _log.warning('%s: %s has %d rows; rows %d to %d of %s.%s keep their first weights', found.files.folder,
                         found.names[name], rows, rows, len(tensor) - 1, part, name)
    with torch.no_grad():
        for name, tensor in state.items():
            content = found.files.read(found.names[name])
            target = tensor[:len(content)] if name in growing else tensor
            target.copy_(content.reshape(target.shape))


def _open(module: nn.Module, part: str, path: Path) -> _Source:
    """Recognise the folder and give names in the part to its tensors."""
    ours = (path / MODEL).is_file() or (path / MANIFEST).is_file() or (path.is_dir() and checkpoints(path))
    content = {} if ours or not (path / CONFIG).is_file() else read_json(path / CONFIG)
    family = content.get('model_type')
    if family is None or family == MODEL_TYPE:
        folder = open_folder(path)  # says what is wrong with a folder of no known kind
        files = open_weights(folder.path)
        mapped = map_names(files.names())[0] if folder.kind == 'huggingface' else {name: name for name in files.names()}
        names = {name.removeprefix(f'{part}.'): stored for name, stored in mapped.items()
                 if name.startswith(f'{part}.')}
        if not names:
            there = sorted({name.partition('.')[0] for name in mapped})
            raise ValueError(f'{folder.path}: the weights hold nothing of {part!r}; parts there: {", ".join(there)}')
        return _Source(files, names, released=folder.kind == 'huggingface',
                       tied=folder.kind == 'huggingface' and _is_tied(content))
    rule = _foreign_rule(module, part, family, path)
    files = WeightFiles(path)
    names, left = {}, []
    for stored in files.names():
        name = rule(stored)
        if name is None:
            left.append(stored)
        elif name:
            names[name] = stored
    return _Source(files, names, left, text=part == 'language_model', tied=_is_tied(content))


def _foreign_rule(module: nn.Module, part: str, family: str, path: Path) -> Callable[[str], str | None]:
    """Name in a checkpoint of another architecture -> name in the part, '' for what the part leaves out, None for what
    is not known; ValueError if the part does not hold that architecture."""
    taken = ('qwen2',) if type(module).__name__ == 'Qwen2Decoder' else getattr(module, 'architectures', ())
    if family not in taken:
        expected = ', '.join(map(repr, (MODEL_TYPE, *taken)))
        raise ValueError(f'{path / CONFIG}: model_type: {family!r} does not fit the {part}, a {type(module).__name__}; '
                         f'expected one of {expected}, or a folder of ours')
    return getattr(module, 'released_to_ours', _qwen2_to_ours)


def _qwen2_to_ours(name: str) -> str | None:
    """Name in a Qwen2ForCausalLM -> name in Qwen2Decoder."""
    if name.startswith('model.'):
        return name.removeprefix('model.')
    return name if name == _HEAD else None


def _match_head(found: _Source, state: dict, embedding: str | None) -> None:
    """Settle head and embedding: a head beyond a tied part has to equal the embedding, and a tied checkpoint fills the
    head of an untied part from its embedding."""
    if embedding not in found.names:
        return
    if _HEAD in found.names and _HEAD not in state:
        head, rows = found.names[_HEAD], found.names[embedding]
        if not torch.equal(found.files.read(head), found.files.read(rows)):
            raise ValueError(f'{found.files.folder}: {head!r} differs from {rows!r}, but language_model.tie_embeddings '
                             'makes them one; expected equal tensors, or only the embedding')
        del found.names[_HEAD]
    elif _HEAD in state and _HEAD not in found.names and found.tied:
        found.names[_HEAD] = found.names[embedding]


def _is_tied(config: dict) -> bool:
    return bool(config.get('tie_word_embeddings') or (config.get('text_config') or {}).get('tie_word_embeddings'))


def _stored_shape(found: _Source, part: str, module: nn.Module, name: str, tensor: torch.Tensor) -> tuple[int, ...]:
    """Shape that the files should give to a tensor of the part."""
    if not found.released or f'{part}.{name}' != PATCH_EMBEDDING:
        return tuple(tensor.shape)
    geometry = VisionGeometry(module.patch_size, module.temporal_patch_size, module.merge_size, module.in_channels)
    return released_shape(PATCH_EMBEDDING, tensor.shape, geometry)
