"""The same experiment on Flower's simulation: equal numbers, and what happens when clients misbehave.

Every test here runs Flower itself, with its Ray processes. Those that need minutes are marked ``federation``.
"""

import os
import time
from dataclasses import dataclass, replace

import psutil
import pytest
import torch

flower = pytest.importorskip("fedprox_lib.flower", reason="needs the extra `flower`", exc_type=ImportError)

from fedprox_lib import simulate  # noqa: E402
from fedprox_lib.algorithms import AdaptiveFedProx, FedAvg, FedDane, FedProx, Scaffold  # noqa: E402
from fedprox_lib.experiment import Experiment  # noqa: E402
from fedprox_lib.federation import Federation  # noqa: E402
from fedprox_lib.flower_server import FederationFailed, PlannedStrategy  # noqa: E402
from fedprox_lib.partition import IID, LabelShards  # noqa: E402
from fedprox_lib.plan import LocalWork, Planner  # noqa: E402


@pytest.fixture(autouse=True)
def nothing_is_left_behind():
    """No process of Ray's outlives a simulation, nor any other child of ours."""
    before = processes()
    yield
    deadline = time.monotonic() + 10
    while (left := processes() - before) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left


def processes() -> set[tuple[int, str]]:
    """(pid, name) of our children, theirs, and whatever calls itself Ray; zombies do not count."""
    ours = {child.pid for child in psutil.Process().children(recursive=True)}
    found = set()
    for process in psutil.process_iter(["pid", "name", "status"]):
        pid, name, status = (process.info[key] for key in ("pid", "name", "status"))
        if status != psutil.STATUS_ZOMBIE and (pid in ours or name.startswith(("ray::", "raylet", "gcs_server"))):
            found.add((pid, name))
    return found


@dataclass(frozen=True)
class LeavingOut:
    """A plan without some clients: what a round should come to if their replies do not count."""

    planner: Planner
    clients: frozenset[int]

    def round_plan(self, t):
        plan = self.planner.round_plan(t)
        return replace(plan, cohort=tuple(work for work in plan.cohort if work.client not in self.clients))


def in_one_process(experiment: Experiment, leaving_out: set[int] = frozenset()) -> list:
    federation = Federation.of(experiment)
    federation = replace(federation, planner=LeavingOut(federation.planner, frozenset(leaving_out)))
    return [state for state, _ in simulate.simulate(experiment, federation=federation)][1:]


def furthest(a: dict, b: dict) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def everybody() -> Experiment:
    """Eight clients, all of them in every round."""
    return Experiment(
        algorithm=FedProx(mu=0.1),
        data="mnist5k",
        model="logistic",
        train_rows=400,
        partition=IID(num_clients=8),
        work=LocalWork(epochs=2, batch_size=10, lr=0.05),
        rounds=3,
        cohort_size=8,
    )


def test_bad_replies_are_refused_and_counted_and_the_round_goes_on():
    def backend(model, train, jobs):
        [job] = jobs
        if job.work.client == 1:
            raise RuntimeError("out of battery")
        [w] = simulate.sequential(model, train, jobs)
        return [{name: t * float("nan") for name, t in w.items()}] if job.work.client == 2 else [w]

    def forge(message, context, call_next):
        from flwr.app import Array, ArrayRecord

        reply = call_next(message, context)
        content = reply.content
        if "work" in content and 3 in content["work"]["clients"]:
            delta = content["delta 3"]
            content["delta 3"] = ArrayRecord({"dense.weight": Array(torch.zeros(10, 99)), "x": delta["dense.bias"]})
        if "work" in content and 4 in content["work"]["clients"]:
            content["work"]["clients"] = [7 if k == 4 else k for k in content["work"]["clients"]]
            for kind in ("delta", "extra"):
                content[f"{kind} 7"] = content.pop(f"{kind} 4")
        for client, forged in ((5, 0), (6, 51)):  # each holds 50 rows
            if "work" in content and client in content["work"]["clients"]:
                at = list(content["work"]["clients"]).index(client)
                counts = list(content["work"]["num-examples"])
                content["work"]["num-examples"] = counts[:at] + [forged] + counts[at + 1 :]
        return reply

    e = everybody()
    rounds = flower.simulate_federation(e, 4, backend=backend, mods=[forge])
    expected = in_one_process(e, leaving_out={1, 2, 3, 4, 5, 6})
    for (state, row), alone in zip(rounds, expected, strict=True):
        assert row["asked"] == 8 and row["used"] == 2  # clients 0 and 7
        assert furthest(state.params, alone.params) == 0
        said = "\n".join(row["problems"])
        assert "client 1: RuntimeError: out of battery" in said
        assert "client 2: its weights are not finite" in said
        assert "client 3: sent {'dense.weight': ('torch.float32', 10, 99)" in said
        assert "client 7: was not asked of the node that replied for it" in said
        assert "client 4: not in the reply of its node" in said
        assert "client 5: says that it trained on 0 examples and holds 50" in said
        assert "client 6: says that it trained on 51 examples and holds 50" in said
        assert len(row["problems"]) == 7


def test_a_process_of_the_simulation_that_dies_ends_the_run_with_a_clear_message():
    def backend(model, train, jobs):
        if jobs[0].work.client == 3:
            os._exit(1)
        return simulate.sequential(model, train, jobs)

    with pytest.raises(FederationFailed, match="In round 1 a process of the simulation died"):
        flower.simulate_federation(everybody(), 4, backend=backend)


@pytest.mark.parametrize(
    "changes",
    [
        {"algorithm": AdaptiveFedProx(mu=0.0)},
        {"algorithm": FedDane(mu=0.0, gradient_clients=8)},
        {"sampling": "by_size"},
    ],
    ids=str,
)
def test_what_needs_more_than_one_exchange_is_refused(changes):
    with pytest.raises(ValueError, match="On Flower a round is one exchange"):
        flower.make_apps(replace(everybody(), **changes))


LOGISTIC = replace(
    everybody(),
    partition=LabelShards(num_clients=100),
    train_rows=2000,
    rounds=5,
    cohort_size=10,
    straggler_fraction=0.5,
)
CNN = replace(LOGISTIC, model="cnn", rounds=2, work=LocalWork(epochs=1, batch_size=10, lr=0.05))


@pytest.mark.federation
@pytest.mark.parametrize("algorithm", [FedAvg(), FedProx(mu=0.1), Scaffold()], ids=lambda a: type(a).__name__)
@pytest.mark.parametrize(("base", "num_nodes"), [(LOGISTIC, 2), (LOGISTIC, 10), (LOGISTIC, 100), (CNN, 2), (CNN, 10)])
def test_simulation_gives_the_numbers_of_one_process(base, num_nodes, algorithm):
    e = replace(base, algorithm=algorithm)
    rounds = flower.simulate_federation(e, num_nodes)
    assert len(rounds) == e.rounds
    for (state, row), alone in zip(rounds, in_one_process(e), strict=True):
        assert furthest(state.params, alone.params) == 0 and not row["problems"]


@pytest.mark.federation
def test_a_run_stopped_at_round_12_goes_on_to_the_same_weights(tmp_path):
    e = replace(LOGISTIC, rounds=20)

    def pull_the_plug(state, row):
        if state.round == 12:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        flower.simulate_federation(e, 10, output=tmp_path, on_round=pull_the_plug)
    rest = flower.simulate_federation(e, 10, output=tmp_path)
    assert [row["round"] for _, row in rest] == list(range(13, 21))
    assert furthest(rest[-1][0].params, in_one_process(e)[-1].params) == 0
    assert [path.name for path in tmp_path.iterdir()] == [f"{e.id}-00020.safetensors"]
    with pytest.raises(FederationFailed, match="Scaffold cannot go on from round 20"):
        PlannedStrategy(replace(e, algorithm=Scaffold()), rest[-1][0], lambda state, row: None, 1.0)
