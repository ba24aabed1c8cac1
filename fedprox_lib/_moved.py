"""Where the names of version 0.1 are now: old imports fail, and the message says what to write instead.

Layer: core (no third party).
"""

import sys
from importlib.abc import MetaPathFinder
from typing import Any

_BOOK = "fedprox_book"
_PAPER = "fedprox_book.paper"
_SWEEPS = "fedprox_lib.sweeps"

MOVED = {
    **dict.fromkeys(["Experiment", "Evaluation", "grid"], _SWEEPS),
    **{
        name: f"{_SWEEPS}.{name}" for name in ("experiment", "parallel", "records", "results", "statistics", "training")
    },
    **{name: f"{_BOOK}.{name}" for name in ("audit", "baselines", "diagnostics", "figures", "profile", "sweeps_paper")},
    **{
        name: f"{_PAPER}.{name}"
        for name in ("authors", "authors_plan", "claim_statistics", "claims", "synthetic", "theory")
    },
    **dict.fromkeys(["audit_blog", "audit_later", "audit_table"], f"{_BOOK}.audit"),
    **dict.fromkeys(["figures_compare", "figures_paper", "figures_speed"], f"{_BOOK}.figures"),
    **{"simulate": "fedprox_lib.simulation", "flower_server": "fedprox_lib.flower.strategy"},
    **{"AdaptiveFedProx": _PAPER, "FedDane": _PAPER, "AsGenerated": _PAPER, "LogNormalSizes": _PAPER},
    **{"algorithms.adaptive": f"{_PAPER}.adaptive", "algorithms.feddane": f"{_PAPER}.feddane"},
}
"""Name in ``fedprox_lib`` -> where it is now. (``fedprox_lib.simulate`` is the function since 0.2.)"""


def say_where(name: str) -> Any:
    """As the package's ``__getattr__``: asked for what it does not have."""
    if name in MOVED:
        raise ImportError(f"fedprox_lib.{name} is {MOVED[name]} since version 0.2; CHANGELOG.md has all new names.")
    raise AttributeError(f"module 'fedprox_lib' has no attribute {name!r}")


class _Finder(MetaPathFinder):
    """Asked last, for modules that nobody has found."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        package, _, name = fullname.partition(".")
        if package == "fedprox_lib" and name in MOVED:
            say_where(name)


sys.meta_path.append(_Finder())
