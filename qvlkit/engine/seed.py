"""The global random generators: seeding them, and carrying their states across a restart.

A sample's randomness does not come from here: it is `stable_hash(seed, epoch, sample id)` (design, decision 10). What
is left for the global generators is the initialisation of weights and dropout.
"""
import random

import numpy as np
import torch

from qvlkit.utils.hashing import stable_hash

__all__ = ['rng_state', 'seed_everything', 'set_rng_state', 'stable_hash']


def seed_everything(seed: int, *, config_key: str = 'seed') -> None:
    """Seed Python's, numpy's and torch's generators (all devices).

    Raises:
        ValueError: `seed` is not an integer of 0 to 2**32 - 1 (torch's CPU generator drops higher bits silently).
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2 ** 32:
        raise ValueError(f'{config_key}: expected an integer of 0 to 2**32 - 1, got {seed!r}')
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def rng_state() -> dict:
    """States of all global generators, as plain JSON values (about 20 KB, and 32 bytes for each CUDA device)."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {'python': [version, list(words), gauss],
            'numpy': [kind, keys.tolist(), position, has_gauss, cached],
            'torch': _to_hex(torch.get_rng_state()),
            'cuda': [_to_hex(state) for state in cuda]}


def set_rng_state(state: dict) -> None:
    """Put every generator back to a state that `rng_state` gave.

    A device that the state does not know, or that this machine lacks, is left as it is: a run may go on elsewhere.

    Raises:
        ValueError: The state is not one that `rng_state` gave.
    """
    try:
        version, words, gauss = state['python']
        kind, keys, position, has_gauss, cached = state['numpy']
        torch_state = _from_hex(state['torch'])
        cuda = [_from_hex(text) for text in state['cuda']]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f'not a state of the random generators: {error!r}') from error
    random.setstate((version, tuple(words), gauss))
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(torch_state)
    if torch.cuda.is_available():
        for device, device_state in enumerate(cuda[:torch.cuda.device_count()]):
            torch.cuda.set_rng_state(device_state, device)


def _to_hex(state: torch.Tensor) -> str:
    return state.numpy().tobytes().hex()


def _from_hex(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(bytes.fromhex(text)), dtype=torch.uint8)
