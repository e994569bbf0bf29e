"""Randomness that depends on nothing but what it is named after."""
import numpy as np

from qvlkit.utils.hashing import stable_hash


def seeded(*key: int | str) -> np.random.Generator:
    """A generator whose whole stream is fixed by `key`, for example (seed, split, index).

    Workers, ranks and resumes that ask with the same key draw the same numbers. Philox is counter-based: making a
    generator costs microseconds, so every sample has its own. Different keys give independent streams.
    """
    return np.random.Generator(np.random.Philox(key=stable_hash(*key)))
