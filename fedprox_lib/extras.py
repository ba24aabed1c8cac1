"""Optional packages: what is missing is named together with the extra that brings it. Layer: core (no third party)."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def brought_by(extra: str) -> Iterator[None]:
    """Around an import of an optional package: a missing one becomes an error that says how to get it.

    Example:
        >>> with brought_by("digits"):
        ...     import no_such_package
        Traceback (most recent call last):
        ...
        ModuleNotFoundError: no_such_package is not installed: pip install "fedprox-lib[digits]" brings it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        message = f'{error.name} is not installed: pip install "fedprox-lib[{extra}]" brings it.'
        raise ModuleNotFoundError(message, name=error.name) from None
