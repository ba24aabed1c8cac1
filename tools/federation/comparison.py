"""What a deployment did, held round by round against one process, and the tables that the book shows of it."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import version
from typing import Any

import pandas as pd

from fedprox_book import profile
from fedprox_lib import engine
from fedprox_lib.sweeps import checkpoint, lockstep, results
from fedprox_lib.sweeps.experiment import from_settings
from fedprox_lib.sweeps.federations import PreparedFederation
from fedprox_lib.sweeps.provenance import provenance
from tools.federation.deployment import Run, app_settings
from tools.federation.processes import DeploymentFailed

TOLERANCE = 1e-6
"""So far may a weight be from that of one process. On one machine, they have been the same to the last bit."""


def compare(run: Run, federation: PreparedFederation | None = None) -> pd.DataFrame:
    """A row a round: what the deployment did, and how far its weights are from those of one process."""
    rows = []
    with engine.use_threads(1):
        for state, _ in lockstep.follow(run.experiment, federation=federation):
            if state.round:
                there = checkpoint.load_checkpoint(run.path(state.round))
                assert there.state is not None
                apart = [
                    (w.double() - there.state.params[name].double()).abs().max() for name, w in state.params.items()
                ]
                rows.append(there.rows[-1] | {"max_difference": max(map(float, apart))})
    columns = ["round", "used", "asked", "max_difference", "test_accuracy", "seconds", "client_seconds"]
    return pd.DataFrame(rows)[columns]


def require_recordable(*names: str) -> None:
    """Fail before minutes of work, not after: the tables' names must be free and the code committed."""
    store = profile.profile_named("paper").folder / "tables"
    if taken := [name for name in names if (store / name).exists()]:
        raise DeploymentFailed(f"{', '.join(taken)}: recorded in {store}. Delete the folder to record it anew.")
    if (commit := provenance()["commit"]).endswith("+changes"):
        raise DeploymentFailed(f"A record names the commit that it was made with, and {commit} has none: commit first.")


def record(name: str, settings: dict[str, Any], frame: pd.DataFrame) -> None:
    """Write a named table of the book."""
    results.table(name, profile.profile_named("paper"), settings | {"flower": version("flwr")}, lambda: frame)


RECORDED = [
    {"model": model, "algorithm": algorithm, **work}
    for model, work in (("logistic", {"rounds": 5}), ("cnn", {"rounds": 2, "epochs": 1}))
    for algorithm in ("FedAvg", "FedProx", "Scaffold")
]
"""What ``--record`` runs: half of every cohort are stragglers, 2,000 rows on 100 clients, 10 a round."""


def settings_of(text: str) -> dict[str, Any]:
    """What ``--set`` says, as ``flwr run --run-config`` reads it. A wrong one is refused before anything starts."""
    pairs = re.findall(r"(\w+)=('[^']*'|\S+)", text)
    settings = tomllib.loads("\n".join(f"{name} = {value}" for name, value in pairs))
    if unknown := sorted(settings.keys() - app_settings().keys()):
        raise ValueError(f"no setting of the app: {', '.join(unknown)}. They are {', '.join(app_settings())}.")
    from_settings(app_settings() | settings)
    return settings
