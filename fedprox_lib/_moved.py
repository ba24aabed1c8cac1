"""Where the names of version 0.1 are now: old imports fail, and the message says what to write instead.

Layer: core (no third party).
"""

import sys
from importlib.abc import MetaPathFinder
from typing import Any

_PLACES = """
fedprox_lib.simulation: simulate
fedprox_lib.sweeps: Experiment Evaluation grid
fedprox_lib.sweeps.*: experiment parallel records results statistics training
fedprox_lib.flower.strategy: flower_server
fedprox_book.*: audit baselines diagnostics figures profile sweeps_paper
fedprox_book.audit: audit_blog audit_later audit_table
fedprox_book.figures: figures_compare figures_paper figures_speed
fedprox_book.paper: AdaptiveFedProx FedDane AsGenerated LogNormalSizes
fedprox_book.paper.*: authors authors_plan claim_statistics claims synthetic theory
fedprox_book.paper.adaptive: algorithms.adaptive
fedprox_book.paper.feddane: algorithms.feddane
"""

MOVED = {
    name: place.replace("*", name)
    for place, names in (line.split(": ") for line in _PLACES.strip().splitlines())
    for name in names.split()
}
"""Name in ``fedprox_lib`` -> where it is now. (``fedprox_lib.simulate`` is the function since 0.2.)"""


def say_where(name: str) -> Any:
    """As the package's ``__getattr__``: asked for what it does not have."""
    if name in MOVED:
        raise ImportError(
            f"fedprox_lib.{name} has moved to {MOVED[name]} in version 0.2; the changelog lists them all."
        )
    raise AttributeError(f"module 'fedprox_lib' has no attribute {name!r}")


class _Finder(MetaPathFinder):
    """Asked last, for modules that nobody has found."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        package, _, name = fullname.partition(".")
        if package == "fedprox_lib" and name in MOVED:
            say_where(name)


sys.meta_path.append(_Finder())
