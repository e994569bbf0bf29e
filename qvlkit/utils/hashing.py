"""One number from many parts, the same on every machine and in every process."""
import hashlib


def stable_hash(*parts: int | float | str | bytes | bool | None) -> int:
    """A 63-bit number fixed by `parts`, for example `stable_hash(seed, epoch, sample_id)`.

    Unlike `hash()` it does not change between processes, and parts cannot run into each other: ('ab', 'c') and
    ('a', 'bc') differ, as do 1, 1.0, True and '1'.

    Raises:
        ValueError: A part is of another type, whose text form might not be stable.
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        if part is not None and not isinstance(part, (int, float, str, bytes)):
            raise ValueError(f'stable_hash takes numbers, text, bytes and None, got {part!r} ({type(part).__name__})')
        data = part if isinstance(part, bytes) else str(part).encode('utf-8', 'surrogatepass')
        digest.update(f'{type(part).__name__}:{len(data)}:'.encode())
        digest.update(data)
    return int.from_bytes(digest.digest(), 'little') >> 1
