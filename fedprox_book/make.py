"""Make the book's records: ``python -m fedprox_book.make`` (``make results``) trains every sweep that is not recorded.

On all cores, with a progress bar; stopped at any moment, it goes on where it was. Layer: book (a command line).
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch

from fedprox_book import profile as profiles
from fedprox_book import sweeps, sweeps_paper
from fedprox_lib import engine
from fedprox_lib.data import DataCorrupt
from fedprox_lib.sweeps import records, results
from fedprox_lib.sweeps.datasets import DataMissing
from fedprox_lib.sweeps.parallel import TooLarge


def make_records() -> None:
    """Train every sweep of the book that the store lacks."""
    parser = argparse.ArgumentParser(prog="python -m fedprox_book.make", description=make_records.__doc__)
    groups = {"book": sweeps.BOOK | sweeps.PLANNED, "paper": sweeps_paper.PAPER}
    every = groups["book"] | groups["paper"]
    by_name = every | {name: sweep for name, (sweep, _) in sweeps_paper.NOT_RUN.items()}
    parser.add_argument("--only", choices=groups, help="only the sweeps of the chapters, or only the paper's own")
    parser.add_argument("--sweep", choices=sorted(by_name), action="append", help="only this sweep (repeatable)")
    parser.add_argument("--profile", default="paper", choices=profiles.PROFILES)
    parser.add_argument("--store", type=Path, help="another results folder")
    parser.add_argument("--workers", type=int, help="processes side by side; by default one per core, on a GPU one")
    parser.add_argument("--backend", default=engine.DEFAULT, choices=engine.BACKENDS)
    parser.add_argument("--memory-gib", type=float, default=4.0, help="for all workers together; default: %(default)s")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default here: %(default)s"
    )
    parser.add_argument("--checkpoint-seconds", type=float)
    chosen = parser.parse_args()
    profile = profiles.profile_named(chosen.profile)
    if chosen.store:
        profile = replace(profile, folder=chosen.store, may_train=True)
    experiments = [e for name in chosen.sweep or groups.get(chosen.only, every) for e in by_name[name](profile)]

    def recorded() -> int:
        return sum(profile.run_folder(e.id).exists() for e in experiments)

    print(f"{recorded()} of {len(experiments)} runs are recorded in {profile.folder}", flush=True)
    try:
        results.run(
            experiments,
            profile,
            workers=chosen.workers,
            backend=chosen.backend,
            device=chosen.device,
            memory_gib=chosen.memory_gib,
            checkpoint_seconds=chosen.checkpoint_seconds,
        )
    except KeyboardInterrupt:
        sys.exit(f"stopped: {recorded()} of {len(experiments)} runs are recorded; the same command goes on from here")
    except (DataMissing, DataCorrupt, records.RecordDamaged, records.StoreUnwritable, TooLarge) as error:
        sys.exit(f"{error}\n{recorded()} of {len(experiments)} runs are recorded in {profile.folder}")
    print(f"{recorded()} of {len(experiments)} runs are recorded in {profile.folder}")


if __name__ == "__main__":
    make_records()
