"""The border of the library: numbers are checked once, with one form of message.

Layer: core (no third party).
"""

from collections.abc import Iterable
from typing import Any


def require_integer(name: str, value: Any, least: int = 1, *, or_none: bool = False) -> None:
    """Raise unless a value is an integer that is large enough, or None where that is allowed.

    Example:
        >>> require_integer("rounds", 0)
        Traceback (most recent call last):
        ...
        ValueError: rounds must be an integer >= 1, got 0.
    """
    if not (isinstance(value, int) and value >= least or or_none and value is None):
        raise ValueError(f"{name} must be an integer >= {least}{' or None' * or_none}, got {value!r}.")


def require_one_of(name: str, value: Any, known: Iterable[str]) -> None:
    """Raise unless a value is one of those that are known."""
    names = list(known)
    if value not in names:
        raise ValueError(f"{name} must be one of {', '.join(names)}, got {value!r}.")
