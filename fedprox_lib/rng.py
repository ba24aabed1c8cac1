"""Addressable randomness: every random decision of the book has a name, and a stream of its own.

All random numbers come from :func:`stream` and from nowhere else. There is no global generator to seed, no generator
is passed along and used up, and the order of calls cannot matter: round 70 can be drawn without the first 69, and two
algorithms that ask for the same address see the same numbers.

Layer: core (NumPy).
"""

import zlib

import numpy as np


def stream(seed: int, *address: str | int) -> np.random.Generator:
    """The random stream that belongs to an address, such as ``stream(seed, "cohort", 70)``.

    Args:
        seed: experiment seed or data seed, an integer >= 0.
        *address: words and integers >= 0 that name the decision. Words enter as their CRC-32.

    Returns:
        A fresh PCG-64 generator. The same seed and address give the same numbers on any machine.

    Example:
        >>> int(stream(0, "cohort", 70).integers(1000)) == int(stream(0, "cohort", 70).integers(1000))
        True
        >>> int(stream(0, "cohort", 70).integers(10**9)) == int(stream(0, "cohort", 71).integers(10**9))
        False
    """
    key = tuple(zlib.crc32(a.encode()) if isinstance(a, str) else int(a) for a in address)
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)))
