"""The reference of preference training: the model as it was when the stage began, live or as stored numbers.

What does not train is shared with the policy, not copied: frozen parts, the features of a frozen vision encoder, and
parts of which only adapters (peft's) train, which are switched off for the reference.
Shapes: N patches, D vision width, E language width, T tokens of a row.
"""
import contextlib
import copy
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qvlkit.engine.adapters import adapters_disabled, is_adapter
from qvlkit.engine.checkpoint import read_tensors, write_tensors
from qvlkit.structures import PreferenceBatch

FORMAT_VERSION = 1
START_WEIGHTS = 'start_weights.safetensors'  # of a live reference, for a resume


@contextlib.contextmanager
def outputs_of(module: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collects what `module` returns: the model is called as a whole, as whoever placed it expects."""
    outputs: list[torch.Tensor] = []
    handle = module.register_forward_hook(lambda module, arguments, output: outputs.append(output))
    try:
        yield outputs
    finally:
        handle.remove()


class LiveReference:
    """A frozen model beside the policy, made at the start of a stage.

    Args:
        model: The policy, with `requires_grad` set. Parts that train are copied; so is the vision encoder if it trains,
            and then the reference makes its own vision pass.

    Raises:
        ValueError: A part that trains is sharded over devices, where it cannot be copied.
    """

    def __init__(self, model: nn.Module):
        self.copies: dict[str, nn.Module] = {}
        for name, part in model.parts().items():
            if any(parameter.requires_grad and not is_adapter(key) for key, parameter in part.named_parameters()):
                if any(hasattr(parameter, 'full_tensor') for parameter in part.parameters()):
                    raise ValueError(f"trainer.reference: {name} is sharded over devices and cannot be copied; say "
                                     "trainer.reference='stored'")
                self.copies[name] = copy.deepcopy(part).requires_grad_(False).eval()
        self.model = copy.copy(model)  # the same parts, but for the copies
        self.model._modules = {**model._modules, **self.copies}
        self.shares_features = not any(parameter.requires_grad for parameter in model.vision_encoder.parameters())

    @torch.no_grad()
    def __call__(self, batch: PreferenceBatch, features: torch.Tensor) -> torch.Tensor:
        """Batch, and the policy's features (N, D) of its pictures -> hidden states (T, E)."""
        with adapters_disabled(self.model):
            return self.model(batch, features=features if self.shares_features else None)

    def save(self, path: Path) -> None:
        """Write the copies, if there are any."""
        if self.copies:
            _write(path, {f'{part}.{name}': tensor for part, module in self.copies.items()
                          for name, tensor in module.state_dict().items()})

    def load(self, path: Path, weights: str) -> None:
        """Put the copies back to what `save` wrote; `weights` is the hash that the reference had.

        Raises:
            ValueError: The file is absent, or does not hold those weights.
        """
        if self.copies and not path.is_file():
            raise ValueError(f'resume: {path} is missing: it holds the weights with which the stage began, which are '
                             'the reference; start the stage anew')
        stored = read_tensors(path) if self.copies else {}
        for part, module in self.copies.items():
            module.load_state_dict({name.removeprefix(f'{part}.'): tensor for name, tensor in stored.items()
                                    if name.startswith(f'{part}.')})
        if (found := weights_hash(self.model)) != weights:
            raise ValueError(f'resume: {path} makes the reference {found}, but the run that stopped had {weights}; '
                             'start the stage anew')


def weights_hash(model: nn.Module) -> str:
    """Names every weight of the model bit by bit, but for adapters: a reference computes without them."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        if is_adapter(name):
            continue
        tensor = tensor.full_tensor() if hasattr(tensor, 'full_tensor') else tensor
        digest.update(f'{name} {tensor.dtype} {tuple(tensor.shape)} '.encode())
        if tensor.device.type != 'meta':
            digest.update(tensor.contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class StoredReference:
    """Log-probabilities of both answers of each pair under the reference, by the pair's content.

    PATH.safetensors holds `keys` (n, 16) uint8 and `sums` (n, 2); PATH.json, written last, says of which weights and of
    which processor they are.

    Args:
        path: The .safetensors file.
        keys: Content key of each pair.
        sums: (n, 2) summed log-probabilities of the chosen and the rejected answer, on the CPU.
    """

    def __init__(self, path: Path, keys: list[str], sums: torch.Tensor):
        self.path, self.numbers = path, sums
        self.places = {key: place for place, key in enumerate(keys)}

    def sums(self, batch: PreferenceBatch) -> torch.Tensor:
        """(pairs, 2) of a batch, on the CPU; ValueError for a pair that is not there, with its sample id."""
        for key, sample_id in zip(batch.content_keys, batch.sample_ids):
            if key not in self.places:
                raise ValueError(
                    f'{sample_id}: {self.path} has no reference log-probabilities of this pair: the data or the '
                    'processor have changed since they were computed, or a transform draws anew at each visit; delete '
                    "the file to compute them again, or say trainer.reference='live'")
        return self.numbers[[self.places[key] for key in batch.content_keys]]

    @staticmethod
    def exists(path: Path) -> bool:
        """Whether a finished store is there."""
        return path.is_file() and path.with_suffix('.json').is_file()

    @classmethod
    def load(cls, path: Path, header: dict[str, Any]) -> 'StoredReference':
        """Read a store.

        Args:
            header: What must be true of it: `store_header`.

        Raises:
            ValueError: It is absent, cannot be read, or is of other weights or another processor.
        """
        if not cls.exists(path):
            raise ValueError(f'trainer.reference_path: {path} is missing or unfinished; it can be computed only at the '
                             'start of a stage')
        try:
            found = json.loads(path.with_suffix('.json').read_text(encoding='utf-8'))
        except ValueError as error:
            raise ValueError(f'{path.with_suffix(".json")}: not readable as JSON ({error}); delete it and {path.name} '
                             'to compute them again') from error
        for key, expected in json.loads(json.dumps(header)).items():
            if found.get(key) != expected:
                raise ValueError(f'trainer.reference_path: {path} was computed with {key} {found.get(key)!r}, but this '
                                 f'run has {expected!r}; delete the file to compute it again, or name another')
        tensors = read_tensors(path)
        if len(tensors['keys']) != found['pairs']:
            raise ValueError(f'{path}: {len(tensors["keys"])} pairs, but its header says {found["pairs"]}; delete the '
                             'file to compute it again')
        return cls(path, [bytes(key).hex() for key in tensors['keys'].numpy()], tensors['sums'])

    @staticmethod
    def save(path: Path, header: dict[str, Any], keys: list[str], sums: torch.Tensor) -> None:
        """Write a store, all of it or nothing that `exists`."""
        places = {key: place for place, key in enumerate(keys)}  # a pair that came twice is kept once
        path.with_suffix('.json').unlink(missing_ok=True)
        _write(path, dict(sums=sums[list(places.values())],
                          keys=torch.tensor([list(bytes.fromhex(key)) for key in places], dtype=torch.uint8)))
        partial = path.with_suffix('.json.tmp')
        partial.write_text(json.dumps({**header, 'pairs': len(places)}, indent=1), encoding='utf-8')
        os.replace(partial, path.with_suffix('.json'))


def store_header(weights: str, processor: Any) -> dict[str, Any]:
    """What a store is true for: these weights (`weights_hash`), this tokenizer and chat, these limits."""
    return dict(format_version=FORMAT_VERSION, weights=weights, text_key=processor.text_key,
                limits=processor.all_limits)


def _write(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'{path.stem}.tmp.safetensors')
    write_tensors(partial, tensors)
    os.replace(partial, path)
