"""What Flower's simulation costs, and whether it gives our numbers: the same rounds in one process and on Flower.

``python -m benchmarks.federation`` runs each experiment side by side, pass after pass, and writes
``results/benchmarks/federation.json``: seconds of every round, of which the clients' own, the start (to the end of
round 1), and the largest difference of any weight from the one process. In one process the clients are trained one
after another on one thread (``sequential``, which is also what a node does) and by the engine (``batched``).
Evaluation is left out.
"""

import argparse
import json
import sys
import time
from dataclasses import replace

from benchmarks import machine
from benchmarks.environments import HERE
from fedprox_lib import engine
from fedprox_lib.algorithms import FedAvg, Scaffold
from fedprox_lib.flower import apps as flower
from fedprox_lib.sweeps import lockstep
from fedprox_lib.sweeps.experiment import Evaluation, Experiment, from_settings
from fedprox_lib.sweeps.federations import federations_of
from fedprox_lib.sweeps.provenance import provenance
from fedprox_lib.tree import Params
from tools.federation.deployment import app_settings

LOGISTIC = replace(from_settings(app_settings()), evaluation=Evaluation(every=10**6, train_rows=10, test_rows=10))
"""What ``flwr run .`` runs: 100 clients of 20 digits, ten a round, half of them stragglers, FedProx."""

CNN = replace(LOGISTIC, model="cnn", work=replace(LOGISTIC.work, epochs=1), rounds=5)

MORE_WORK = replace(CNN, train_rows=None, work=replace(CNN.work, epochs=5), rounds=4)
"""With all 4,000 bundled digits that are for training, and five epochs: seconds of computing a round."""

EXPERIMENTS = {"logistic": (LOGISTIC, [2, 10, 100]), "cnn": (CNN, [2, 10]), "cnn, more work": (MORE_WORK, [10])}


def one_process(e: Experiment, backend: str) -> tuple[list[Params], list[float]]:
    """The weights after every round, and what each round took."""
    [federation] = federations_of([e])
    weights, seconds, begin = [], [], time.perf_counter()
    for state, _ in lockstep.follow(e, backend=engine.BACKENDS[backend], federation=federation):
        weights.append(state.params)
        seconds.append(round(time.perf_counter() - begin, 4))
        begin = time.perf_counter()
    return weights[1:], seconds[1:]


def compared(name: str, e: Experiment, num_nodes: list[int], passes: int) -> list[dict]:
    """One row a pass and way to run the experiment."""
    rows: list[dict] = []
    about = {"experiment": name, "algorithm": type(e.algorithm).__name__}
    for turn in range(passes):
        busy = machine.busy_cores()
        expected, seconds = one_process(e, "sequential")
        rows.append({**about, "engine": "sequential", "nodes": 0, "seconds": seconds})
        weights, seconds = one_process(e, "batched")
        rows.append({**about, "engine": "batched", "nodes": 0, "seconds": seconds, **_differences(weights, expected)})
        for nodes in num_nodes:
            rounds = flower.simulate_federation(e, nodes)
            rows.append(
                {
                    **about, "engine": "simulation", "nodes": nodes,
                    "seconds": [round(row["seconds"], 4) for _, row in rounds],
                    "client_seconds": [round(row["client_seconds"], 4) for _, row in rounds],
                    "used": [row["used"] for _, row in rounds], "asked": [row["asked"] for _, row in rounds],
                    **_differences([state.params for state, _ in rounds], expected),
                }
            )  # fmt: skip
        for row in rows[-2 - len(num_nodes) :]:
            row |= {"pass": turn, "others_cores": busy}
            print(json.dumps(row), file=sys.stderr, flush=True)
    return rows


def _differences(weights: list[Params], expected: list[Params]) -> dict[str, list[float]]:
    largest = lambda a, b: max(float((a[name] - b[name]).abs().max()) for name in b)  # noqa: E731
    return {"max_difference": [largest(a, b) for a, b in zip(weights, expected, strict=True)]}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.federation", description=__doc__)
    parser.add_argument("--passes", type=int, default=3, help="of the experiments that are timed")
    parser.add_argument("--save", action="store_true", help="keep the result in results/benchmarks")
    chosen = parser.parse_args()
    runs: list[dict] = []
    report = {"machine": machine.facts(), "provenance": provenance(), "runs": runs}
    with engine.use_threads(1):
        for name, (e, nodes) in EXPERIMENTS.items():
            runs += compared(name, e, nodes, chosen.passes)
            if e is not MORE_WORK:
                for algorithm in (FedAvg(), Scaffold()):  # for the numbers, not for the times
                    runs += compared(name, replace(e, algorithm=algorithm), nodes, 1)
    folder = HERE.parent / "results" / "benchmarks" if chosen.save else HERE / ".work" / "results"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "federation.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
