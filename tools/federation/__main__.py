"""Deploys the book's federation on this machine and compares it, round by round, with one process.

    python -m tools.federation [--nodes 4] [--set "algorithm='Scaffold' rounds=5" ...] [--keep]

A SuperLink and SuperNodes are started; the app in them is the repository's own; every round's weights are held against
those of one process. Nothing is left behind, unless ``--keep`` asks for the logs. ``--record`` writes the tables that
the book shows.
"""

from __future__ import annotations

import argparse
import sys

import pandas as pd

from tools.federation.comparison import RECORDED, TOLERANCE, compare, record, require_recordable, settings_of
from tools.federation.deployment import Deployment, app_settings
from tools.federation.processes import DeploymentFailed


def main() -> None:
    """Run the book's app on a SuperLink and SuperNodes of this machine, and compare it with one process."""
    parser = argparse.ArgumentParser(prog="python -m tools.federation", description=main.__doc__)
    parser.add_argument("--nodes", type=int, default=4, help="SuperNodes; default: %(default)s")
    parser.add_argument("--set", action="append", default=[], metavar="SETTINGS", help="a run: \"algorithm='FedAvg'\"")
    parser.add_argument("--keep", action="store_true", help="leave the logs where they are")
    parser.add_argument("--record", action="store_true", help="run what the book shows, and write its tables")
    chosen = parser.parse_args()
    try:
        wanted = RECORDED if chosen.record else [settings_of(text) for text in chosen.set or ["rounds=3"]]
        if chosen.record:
            require_recordable("flower-deployment", "flower-startup")
        tables = []
        with Deployment(chosen.nodes, keep=chosen.keep) as deployment:
            for settings in wanted:
                run = deployment.run(settings)
                e, table = run.experiment, compare(run)
                about = {"algorithm": type(e.algorithm).__name__, "model": e.model, "nodes": chosen.nodes}
                tables.append(pd.concat([pd.DataFrame([about] * len(table)), table], axis=1))
                print(table.to_string(index=False), flush=True)
        every = pd.concat(tables, ignore_index=True)
        if chosen.record:
            about = {"nodes": chosen.nodes, "app": app_settings(), "runs": RECORDED}
            record("flower-deployment", about, every)
            record("flower-startup", about, pd.DataFrame(deployment.phases))
        if not every["max_difference"].max() <= TOLERANCE:
            sys.exit(f"The weights are further from those of one process than {TOLERANCE:g}.")
    except (DeploymentFailed, ValueError) as error:
        sys.exit(f"{error}")
    except KeyboardInterrupt:
        sys.exit("stopped")


if __name__ == "__main__":
    main()
