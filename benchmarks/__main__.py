"""``python -m benchmarks``: makes environments and tasks, runs the peers one after another, prints and keeps a table.

The whole list of peers is run ``--passes`` times, each process timing ``--repeats`` trainings, so that a machine that
drifts drifts for all. Progress goes to stderr, the tables to stdout.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from statistics import median

from benchmarks import compare, machine, task
from benchmarks.environments import HERE, PEERS, NotMade, python_of
from benchmarks.protocol import Weights
from fedprox_lib.sweeps.provenance import provenance

WORK = HERE / ".work"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def options() -> argparse.Namespace:
    listed = lambda text: tuple(text.split(","))  # noqa: E731
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Compare the speed of simulators.")
    parser.add_argument("--workload", type=listed, default=tuple(task.WORKLOADS), help="comma-separated")
    parser.add_argument("--peers", type=listed, default=PEERS, help="comma-separated; ours is always among them")
    parser.add_argument("--threads", type=lambda text: [int(n) for n in text.split(",")], default=[1])
    parser.add_argument("--passes", type=int, default=1, help="how often the list of peers is run")
    parser.add_argument("--repeats", type=int, default=5, help="trainings timed by each process")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds that one process may take")
    parser.add_argument("--save", action="store_true", help="keep the tables in results/benchmarks")
    chosen = parser.parse_args()
    for name, known in (("workload", task.WORKLOADS), ("peers", PEERS)):
        for one in getattr(chosen, name):
            if one not in known:
                parser.error(f"--{name} must be of {', '.join(known)}, got {one}")
    return chosen


class Bench:
    """One workload and everything measured on it."""

    def __init__(self, workload: str, chosen: argparse.Namespace) -> None:
        say(f"{workload}: making the task")
        self.workload, self.chosen = workload, chosen
        self.folders = {"task": WORK / workload, "check": WORK / f"{workload}-check"}
        self.task = task.make(workload, task.WORKLOADS[workload], self.folders["task"])
        self.check = task.make(f"{workload} check", task.CHECKS[workload], self.folders["check"])
        self.not_run: dict[str, str] = {}
        self.distances: dict[str, float] = {}
        self.problems: dict[str, str] = {}
        self.runs: dict[tuple[str, int], dict] = {}

    def peers(self) -> list[str]:
        """Who is still in, ours first."""
        return [peer for peer in PEERS if peer in {"ours", *self.chosen.peers} and peer not in self.not_run]

    def prepare(self) -> None:
        """Environments, and the check, once for every peer."""
        self.pythons: dict[str, Path] = {}
        reference: Weights = {}
        for peer in self.peers():
            try:
                self.pythons[peer] = python_of(peer)
                say(f"{self.workload}: {peer} on the check")
                answer, weights = self._run(peer, "check", repeats=1, threads=os.cpu_count() or 1)
            except (NotMade, compare.Failed) as error:
                self._leave_out(peer, str(error))
                continue
            reference = reference or weights
            self.distances[peer] = compare.distance(self.check, weights, reference)
            if problem := compare.same_weights(self.check, answer, weights, reference):
                self.problems[peer] = problem

    def measure(self) -> None:
        """Every peer, in every pass, on every number of threads."""
        for turn in range(self.chosen.passes):
            for threads in self.chosen.threads:
                for peer in self.peers():
                    before, watch = machine.busy_cores(), machine.Watch()
                    try:
                        answer, weights = self._run(peer, "task", repeats=self.chosen.repeats, threads=threads)
                    except compare.Failed as error:
                        self._leave_out(peer, str(error))
                        continue
                    busy = (before, watch.others())
                    self._add(peer, threads, answer, compare.training_loss(self.task, weights), busy)
                    rate = answer["all_client_steps"] / median(answer["seconds"])
                    say(
                        f"{self.workload}, pass {turn + 1} of {self.chosen.passes}: {peer}, {threads} thread(s): "
                        f"{rate:,.0f} client-steps/s (others kept {busy[0]} cores busy before, {busy[1]} meanwhile)"
                    )

    def report(self) -> dict:
        """Everything, as it is kept."""
        results = []
        for (peer, threads), run in self.runs.items():
            rate = run["all_client_steps"] / median(run["seconds"])
            ours = self.runs["ours", threads]
            problem = self.problems.get(peer)
            results.append(
                {
                    "peer": peer,
                    "threads": threads,
                    "client_steps_per_second": round(rate, 1),
                    "ours_times_faster": None
                    if problem
                    else round(ours["all_client_steps"] / median(ours["seconds"]) / rate, 3),
                    **run,
                    "startup_seconds": round(median(run["startup_seconds"]), 2),
                    "check_distance": self.distances[peer],
                    "different_work": problem,
                }
            )
        return {
            "task": self.task.facts,
            "check": self.check.facts,
            "tolerances": {
                "training_loss": compare.LOSS_TOLERANCE[self.task.facts["model"]],
                "check_distance": compare.CHECK_TOLERANCE,
            },
            "passes": self.chosen.passes,
            "repeats": self.chosen.repeats,
            "results": results,
            "not_run": self.not_run,
        }

    def _run(self, peer: str, which: str, *, repeats: int, threads: int) -> tuple[dict, Weights]:
        out = WORK / "answers" / f"{self.workload}-{which}-{peer}.npz"
        return compare.run_peer(
            peer, self.pythons[peer], self.folders[which], out,
            repeats=repeats, threads=threads, timeout=self.chosen.timeout,
        )  # fmt: skip

    def _leave_out(self, peer: str, reason: str) -> None:
        if peer == "ours":
            raise SystemExit(f"our own run failed: {reason}")
        say(f"{self.workload}: {peer} NOT RUN: {reason}")
        self.not_run[peer] = reason
        self.runs = {key: run for key, run in self.runs.items() if key[0] != peer}

    def _add(self, peer: str, threads: int, answer: dict, loss: float, busy: tuple) -> None:
        new = {
            "client_steps": answer["client_steps"],
            "all_client_steps": answer["all_client_steps"],
            "seconds": [],
            "startup_seconds": [],
            "training_loss": loss,
            "others_cores_before": [],
            "others_cores_meanwhile": [],
            "versions": answer["versions"],
        }
        run = self.runs.setdefault((peer, threads), new)
        run["seconds"] += answer["seconds"]
        run["startup_seconds"].append(answer["startup_seconds"])
        run["others_cores_before"].append(busy[0])
        run["others_cores_meanwhile"].append(busy[1])
        problem = compare.same_steps(self.task, answer)
        problem = problem or compare.same_loss(self.task, loss, self.runs["ours", threads]["training_loss"])
        if problem:
            self.problems.setdefault(peer, problem)


def table(report: dict) -> str:
    """The report as text, ordered by threads and speed."""
    lines = [
        f"{report['task']['workload']}: {report['task']['client_steps']:,} client-steps",
        f"{'peer':18} {'threads':>7} {'client-steps/s':>14} {'slowest..fastest':>17} {'start-up':>9} "
        f"{'ours is':>8} {'loss':>7} {'check':>8}",
    ]
    for row in sorted(report["results"], key=lambda row: (row["threads"], -row["client_steps_per_second"])):
        rates = [row["all_client_steps"] / seconds for seconds in row["seconds"]]
        span = f"{min(rates):,.0f}..{max(rates):,.0f}"
        ratio = "-" if row["ours_times_faster"] is None else f"{row['ours_times_faster']:.2f} x"
        lines.append(
            f"{row['peer']:18} {row['threads']:>7} {row['client_steps_per_second']:>14,.0f} {span:>17} "
            f"{row['startup_seconds']:>7.1f} s {ratio:>8} {row['training_loss']:>7.4f} {row['check_distance']:>8.0e}"
        )
        if row["different_work"]:
            lines.append(f"  different work: {row['different_work']}")
    lines += [f"{peer:18} not run: {reason}" for peer, reason in report["not_run"].items()]
    return "\n".join(lines)


def main() -> None:
    chosen = options()
    say("measuring the machine")
    about = machine.facts()
    say(", ".join(f"{name} {value}" for name, value in about.items()))
    busy = machine.busy_cores(2.0)
    if busy is not None and busy > 0.2:
        say(f"THE MACHINE IS NOT IDLE: other programs keep {busy} cores busy, and all figures will suffer from it.")
    about["busy_cores_before"] = busy
    folder = HERE.parent / "results" / "benchmarks" if chosen.save else WORK / "results"
    folder.mkdir(parents=True, exist_ok=True)
    for workload in chosen.workload:
        bench = Bench(workload, chosen)
        bench.prepare()
        bench.measure()
        facts = provenance()
        report = {**bench.report(), "machine": about, "provenance": facts}
        path = folder / f"{workload}.json"
        path.write_text(json.dumps(report, indent=1) + "\n")
        print(table(report), end="\n\n", flush=True)
        say(f"kept in {path.relative_to(HERE.parent)}")


if __name__ == "__main__":
    main()
