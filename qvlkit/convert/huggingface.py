"""Checkpoints from and to Hugging Face: tensor by tensor, names and shapes checked before a byte is copied.

    from_hf(SRC, DST)           Hugging Face folder -> converted folder (our names, model.json)
    to_hf(SRC, DST)             converted folder or training checkpoint -> Hugging Face folder
    load_weights(model, SRC)    any of these -> a built model
    save_pretrained(model, DST) a model in memory -> Hugging Face folder

There and back gives the same tensors bit for bit, and the same config.json unless the model was changed.
"""
import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from qvlkit.convert.adapted_files import open_weights
from qvlkit.convert.config_mapping import FIELDS, SLOTS, updated_config, values_from_model
from qvlkit.convert.folders import ModelFolder, carry, hugging_face_config, new_folder, open_folder, write_model
from qvlkit.convert.key_mapping import (
    EMBEDDING,
    HEAD,
    embedding_name,
    map_names,
    released_name,
    released_shape,
)
from qvlkit.convert.weight_files import WeightFiles, read_json, write_weights
from qvlkit.models.builder import build_model
from qvlkit.structures import VisionGeometry

Progress = Callable[[int, int], None]  # bytes done, bytes in all
CONFIG, GENERATION = 'config.json', 'generation_config.json'
_SHOWN = 20  # tensors that an error names
_TOKENS = {'image_token_id': '<|image_pad|>', 'video_token_id': '<|video_pad|>',
           'vision_start_token_id': '<|vision_start|>', 'vision_end_token_id': '<|vision_end|>'}
_NEW_TOKENS = {'bos_token_id': '<|endoftext|>', 'eos_token_id': '<|im_end|>'}


def from_hf(source: str | Path, target: str | Path, *, max_shard_size: int | str = '5GB',
            progress: Progress | None = None) -> None:
    """Hugging Face folder -> converted folder.

    Raises:
        FileNotFoundError: The folder, its weights or a shard are not there.
        ValueError: The config is refused, a tensor is missing, left over or of another shape, a file is not whole,
            or `target` is not empty.
    """
    folder = open_folder(source)
    if folder.kind != 'huggingface':
        raise ValueError(f'{folder.path}: is of the kind {folder.kind!r} already; expected a Hugging Face folder')
    with new_folder(target) as partial:
        files = WeightFiles(folder.path)
        model = _on_meta(folder, files)
        names = match_names(files, model, folder)
        _write(partial, {ours: _Tensor(tuple(tensor.shape), files.dtype(names[ours]), files.reader(names[ours]))
                         for ours, tensor in model.state_dict().items()}, max_shard_size, progress)
        write_model(folder, partial)
        carry(folder.path, partial)


def to_hf(source: str | Path, target: str | Path, *, config_from: str | Path | None = None,
          dtype: torch.dtype | None = None, max_shard_size: int | str = '5GB', ema: bool = False,
          progress: Progress | None = None) -> None:
    """Converted folder, training checkpoint or stage folder -> Hugging Face folder.

    Args:
        config_from: Hugging Face or converted folder whose config.json and generation settings are carried on, for
            a training checkpoint; if absent, the one that the run's tokenizer came from.
        dtype: Of the written weights; as stored if absent.
        ema: Of what trained in a stage with the key `ema`, write the moving averages.

    Raises:
        FileNotFoundError, ValueError: As `from_hf`; also for a part that Hugging Face's architecture lacks.
    """
    folder = open_folder(source)
    if folder.kind == 'huggingface':
        raise ValueError(f'{folder.path}: is a Hugging Face folder already')
    config_file = _config_file(config_from) if config_from is not None else folder.config_file
    with new_folder(target) as partial:
        files = open_weights(folder.path, ema=ema)
        values = values_from_model(folder.model, vocab_size=_rows(files))
        model = _on_meta(folder, files)
        names = match_names(files, model, folder)
        if config_file is not None and config_file.parent != folder.path:
            carry(config_file.parent, partial)
        carry(folder.path, partial)
        tensors = {ours: _Tensor(files.shape(name), dtype or files.dtype(name), files.reader(name))
                   for ours, name in names.items()}
        _write_released(partial, values, tensors, model.geometry, config_file, max_shard_size, progress)


def save_pretrained(model: nn.Module, folder: str | Path, *, source: str | Path | None = None, processor=None,
                    dtype: torch.dtype | None = None, max_shard_size: int | str = '5GB') -> None:
    """A model in memory -> Hugging Face folder, which transformers loads.

    Args:
        model: A VLM of the released architecture.
        source: Hugging Face or converted folder that the model came from: its config.json, tokenizer and processor
            files are carried along.
        processor: Its tokenizer and pixel limits are written, over those of `source`.
        dtype: Of the written weights; as they are if absent.

    Raises:
        ValueError: A part that Hugging Face's architecture lacks, or `folder` is not empty.
    """
    values = values_from_model(describe(model))
    config_file = _config_file(source) if source is not None else None
    with new_folder(folder) as partial:
        if config_file is not None:
            carry(config_file.parent, partial)
        if processor is not None:
            processor.save(partial)
        tensors = {name: _Tensor(tuple(tensor.shape), dtype or tensor.dtype, tensor.detach().cpu)
                   for name, tensor in model.state_dict().items()}
        _write_released(partial, values, tensors, model.geometry, config_file, max_shard_size, None)


def load_weights(model: nn.Module, source: str | Path | ModelFolder, *, ema: bool = False,
                 progress: Progress | None = None) -> None:
    """Copy the weights of a folder into a built model, one tensor at a time; each takes the model's own dtype.

    Args:
        ema: Of what trained in a stage with the key `ema`, take the moving averages.

    Raises:
        FileNotFoundError, ValueError: As `from_hf`. Nothing was copied then.
    """
    folder = source if isinstance(source, ModelFolder) else open_folder(source)
    files = open_weights(folder.path, ema=ema)
    names = match_names(files, model, folder)
    state = model.state_dict()
    total, done = sum(tensor.nbytes for tensor in state.values()), 0
    with torch.no_grad():
        for ours, tensor in state.items():
            tensor.copy_(files.read(names[ours]).reshape(tensor.shape))
            done += tensor.nbytes
            if progress is not None:
                progress(done, total)


def match_names(files: WeightFiles, model: nn.Module, folder: ModelFolder) -> dict[str, str]:
    """{our name: name in the files} for the tensors of `model`, which may be on the meta device.

    Raises:
        ValueError: Tensors are missing, left over or of another shape; the message lists them.
    """
    state = model.state_dict()
    released = folder.kind == 'huggingface'
    mapped, left = map_names(files.names()) if released else ({name: name for name in files.names()}, [])
    if HEAD in mapped and HEAD not in state and EMBEDDING in mapped:
        if not torch.equal(files.read(mapped[HEAD]), files.read(mapped[EMBEDDING])):
            raise ValueError(f'{folder.path}: {mapped[HEAD]!r} differs from {mapped[EMBEDDING]!r}, but the config ties '
                             'them (tie_word_embeddings); expected equal tensors, or only the embedding')
        del mapped[HEAD]
    left += [name for ours, name in mapped.items() if ours not in state]
    missing = [released_name(ours) if released else ours for ours in state if ours not in mapped]
    wrong = []
    for ours, tensor in state.items():
        if ours in mapped:
            shape = released_shape(ours, tensor.shape, model.geometry) if released else tuple(tensor.shape)
            stored = files.shape(mapped[ours])
            if stored != shape:
                wrong.append(f'{mapped[ours]} has {stored}, expected {shape}')
    refuse_misfit(f'{folder.path}: the tensors do not fit the config', missing, left, wrong)
    return {ours: mapped[ours] for ours in state}


def refuse_misfit(complaint: str, missing: list[str], left: list[str], wrong: list[str]) -> None:
    """ValueError with the first names of each list, unless all are empty."""
    if missing or left or wrong:
        raise ValueError(f'{complaint}{_listed("missing", missing)}{_listed("left over", left)}'
                         f'{_listed("of another shape", wrong)}')


def describe(model: nn.Module) -> dict:
    """The complete `model` config of a built VLM, from its parts' own attributes."""
    parts = {slot: getattr(model, slot) for slot in SLOTS}
    config = {slot: {'type': type(part).__name__} for slot, part in parts.items()}
    for _, slot, key in FIELDS.values():
        value = getattr(parts[slot], key, None)
        if value is not None:
            config[slot][key] = sorted(value) if isinstance(value, frozenset) else value
    if all(config[slot]['type'] == part for slot, (_, part) in SLOTS.items()):
        decoder = parts['language_model']
        config['language_model'].update(norm_eps=decoder.norm.eps, tie_embeddings=decoder.lm_head is None)
        config['vision_encoder']['norm_eps'] = parts['vision_encoder'].blocks[0].norm1.eps
        config['merger']['norm_eps'] = parts['merger'].ln_q.eps
    return config


@dataclass(frozen=True)
class _Tensor:
    """A tensor to write: its shape and kind are known, its content is read when its turn comes."""
    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], torch.Tensor]


def _write(folder: Path, tensors: Mapping[str, _Tensor], max_shard_size: int | str, progress: Progress | None) -> None:
    sizes = {name: math.prod(tensor.shape) * tensor.dtype.itemsize for name, tensor in tensors.items()}
    total, done = sum(sizes.values()), 0

    def read(name: str) -> torch.Tensor:
        nonlocal done
        done += sizes[name]
        if progress is not None:
            progress(done, total)
        return tensors[name].read().to(tensors[name].dtype).reshape(tensors[name].shape)

    write_weights(folder, sizes, read, max_shard_size=max_shard_size)


def _write_released(folder: Path, values: Mapping, tensors: Mapping[str, _Tensor], geometry: VisionGeometry,
                    config_file: Path | None, max_shard_size: int | str, progress: Progress | None) -> None:
    """Weights by their released names, config.json and generation settings, beside the tokenizer files in `folder`."""
    released = {released_name(name): replace(tensor, shape=released_shape(name, tensor.shape, geometry))
                for name, tensor in tensors.items()}
    _write(folder, released, max_shard_size, progress)
    dtype = str(tensors[EMBEDDING].dtype).removeprefix('torch.')
    ids = _special_ids(folder)
    base = read_json(config_file) if config_file is not None else None
    token_ids = {key: ids[token] for key, token in _TOKENS.items() if token in ids}
    if base is None:
        token_ids |= {key: ids[token] for key, token in _NEW_TOKENS.items() if token in ids}
    config = updated_config(base, values, dtype=dtype, token_ids=token_ids)
    if config is base:
        shutil.copyfile(config_file, folder / CONFIG)
    else:
        _write_json(folder / CONFIG, config)
    if all(token in ids for token in _NEW_TOKENS.values()) and not (folder / GENERATION).exists():
        end, text_end = ids['<|im_end|>'], ids['<|endoftext|>']
        _write_json(folder / GENERATION, {'bos_token_id': text_end, 'eos_token_id': [end, text_end],
                                          'pad_token_id': text_end, 'do_sample': False})


def _special_ids(folder: Path) -> dict[str, int]:
    """Ids of the added tokens of the tokenizer in `folder`; empty if there is none."""
    table = read_json(folder / 'tokenizer.json') if (folder / 'tokenizer.json').is_file() else {}
    return {token['content']: token['id'] for token in table.get('added_tokens') or ()}


def _config_file(folder: str | Path) -> Path:
    """The Hugging Face config.json of `folder`, which has to be there."""
    file = hugging_face_config(Path(folder).expanduser())
    if file is None:
        raise ValueError(f'{folder}: expected a Hugging Face or converted folder, with its {CONFIG}')
    return file


def _listed(what: str, items: list[str]) -> str:
    if not items:
        return ''
    more = f', and {len(items) - _SHOWN} more' if len(items) > _SHOWN else ''
    return f'; {len(items)} {what}: {", ".join(items[:_SHOWN])}{more}'


def _write_json(path: Path, content: Mapping) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + '\n', encoding='utf-8')


def _on_meta(folder: ModelFolder, files: WeightFiles) -> nn.Module:
    """The folder's model without memory; the embedding's rows come from the weights where the config leaves them."""
    return build_model(folder.model, vocab_size=_rows(files), device='meta')


def _rows(files: WeightFiles) -> int | None:
    """Rows of the embedding in files with our names; None for others, whose config says them."""
    name = embedding_name([name for name in files.names() if name.startswith('language_model.')])
    return None if name is None else files.shape(name)[0]
