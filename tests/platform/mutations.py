"""Damaged clips without end: the same seed gives the same damage."""

from __future__ import annotations

import struct

import numpy as np

_EXTREMES = (0, 1, 7, 8, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def mutate(clip: bytes, rng: np.random.Generator) -> bytes:
    """One of five kinds of damage; headers are hit more often than pictures."""
    data = bytearray(clip)
    kind = rng.integers(5)
    if kind == 0:  # single bytes anywhere
        for at in rng.integers(len(data), size=rng.integers(1, 40)):
            data[at] ^= int(rng.integers(1, 256))
    elif kind == 1:  # cut
        del data[int(rng.integers(1, len(data))) :]
    elif kind == 2:  # numbers of the header, 1 to 8 bytes long, become extreme
        for _ in range(rng.integers(1, 6)):
            at = _in_header(data, rng)
            size = int(rng.choice([1, 2, 4, 8]))
            value = int(rng.choice(_EXTREMES)) & ((1 << 8 * size) - 1)
            data[at : at + size] = value.to_bytes(size, "big" if rng.integers(2) else "little")
    elif kind == 3:  # a run of bytes is missing, doubled, or from elsewhere
        at, length = int(rng.integers(len(data))), int(rng.integers(1, 300))
        other = int(rng.integers(len(data)))
        data[at : at + length * int(rng.integers(2))] = data[other : other + length * int(rng.integers(2))]
    else:  # sizes of boxes, or four letters of a name
        names = [i for i in range(4, len(data) - 4) if data[i : i + 4].isalnum()]
        if names:
            at = int(rng.choice(names)) - 4 * int(rng.integers(2))
            data[at : at + 4] = struct.pack(">I", int(rng.choice(_EXTREMES)) ^ int(rng.integers(256)))
    return bytes(data)


def _in_header(data: bytearray, rng: np.random.Generator) -> int:
    """A place in the first or in the last kilobyte: where containers keep what they say of themselves."""
    reach = min(len(data), 1200)
    at = int(rng.integers(reach))
    return at if rng.integers(2) else len(data) - reach + at
