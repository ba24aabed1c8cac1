"""The same experiment on Flower's simulation: equal numbers, and what happens when clients misbehave.

Every test here runs Flower itself, with its Ray processes. Those that need minutes are marked ``federation``.
"""

import os
import time
from dataclasses import replace

import psutil
import pytest
import torch

flower = pytest.importorskip("fedprox_lib.flower", reason="needs the extra `flower`", exc_type=ImportError)

from fedprox_book.paper import AdaptiveFedProx, FedDane  # noqa: E402
from fedprox_lib import simulation  # noqa: E402
from fedprox_lib.algorithms import FedAdam, FedAvg, FedAvgM, FedProx, Scaffold  # noqa: E402
from fedprox_lib.flower.strategy import FederationFailed, PlannedStrategy  # noqa: E402
from fedprox_lib.partition import IID, LabelShards  # noqa: E402
from fedprox_lib.plan import LocalWork  # noqa: E402
from fedprox_lib.sweeps import lockstep  # noqa: E402
from fedprox_lib.sweeps.experiment import Experiment  # noqa: E402
from fedprox_lib.sweeps.federations import federation_of  # noqa: E402


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


@pytest.fixture
def in_one_process(without):
    """The states of all rounds, where the replies of some clients in some of them do not count."""

    def run(e: Experiment, leaving_out: dict[int, set[int]] | None = None) -> list:
        federation = without(federation_of(e), leaving_out or {})
        return [state for state, _ in lockstep.follow(e, federation=federation)][1:]

    return run


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


def spoil(content):
    """What the clients of a node could send instead of what they computed."""
    from flwr.app import Array, ArrayRecord, MetricRecord

    work = content["work"]
    hosted = list(work["clients"])
    if 3 in hosted:
        bias = content["delta 3"]["dense.bias"]
        content["delta 3"] = ArrayRecord({"dense.weight": Array(torch.zeros(10, 99)), "x": bias})
    if 4 in hosted:
        work["clients"] = [7 if k == 4 else k for k in hosted]
        for kind in ("delta", "extra"):
            content[f"{kind} 7"] = content.pop(f"{kind} 4")
    for client, forged in ((5, 0), (6, 26)):  # each holds 25 rows
        if client in hosted:
            counts = zip(hosted, work["num-examples"], strict=True)
            work["num-examples"] = [forged if k == client else count for k, count in counts]
    if 9 in hosted:
        content["delta 9"] = MetricRecord({"dense.weight": 1.0})
    if 10 in hosted:
        content["delta 10"]["dense.weight"].data = b"cut off"
    if 0 in hosted:
        del work["seconds"]
    if 15 in hosted:
        content["work"] = ArrayRecord({})


def test_bad_replies_are_refused_and_counted_and_the_round_goes_on(in_one_process):
    def backend(model, train, jobs):
        [job] = jobs
        if job.work.client == 1:
            raise RuntimeError("out of battery")
        [w] = simulation.sequential(model, train, jobs)
        return [{name: t * float("nan") for name, t in w.items()}] if job.work.client == 2 else [w]

    def forge(message, context, call_next):
        reply = call_next(message, context)
        if "work" in reply.content:
            spoil(reply.content)
        return reply

    e = replace(everybody(), partition=IID(num_clients=16), cohort_size=16)
    rounds = flower.simulate_federation(e, 8, backend=backend, mods=[forge])  # clients k and k + 8 share a node
    expected = in_one_process(e, dict.fromkeys(range(1, 4), set(range(16)) - {11, 12, 13, 14}))
    for (state, row), alone in zip(rounds, expected, strict=True):
        assert row["asked"] == 16 and row["used"] == 4
        assert furthest(state.params, alone.params) == 0
        problems = [
            "client 0: its node's reply cannot be read (KeyError",
            "client 1: RuntimeError: out of battery",
            "client 2: its weights are not finite",
            "client 3: sent {'dense.weight': ('torch.float32', 10, 99)",
            "client 4: not in the reply of its node",
            "client 5: says that it trained on 0 examples and holds 25",
            "client 6: says that it trained on 26 examples and holds 25",
            "client 7: was not asked of the node that replied for it",
            "client 7: its node's reply cannot be read (",
            "client 8: its node's reply cannot be read (KeyError",
            "client 9: its reply cannot be read (",
            "client 10: its reply cannot be read (",
            "client 15: its node's reply cannot be read (",
        ]
        assert len(row["problems"]) == len(problems)
        assert all(any(said.startswith(problem) for said in row["problems"]) for problem in problems)


@pytest.mark.federation
def test_nodes_that_talk_nonsense_about_what_they_host_are_named_before_the_first_round():
    def forge(message, context, call_next):
        reply = call_next(message, context)
        if context.node_config["partition-id"] == 2:
            del reply.content["place"]
        elif context.node_config["partition-id"] == 3:
            reply.content["place"]["partition-id"] = 4
        return reply

    with pytest.raises(FederationFailed) as failed:
        flower.simulate_federation(everybody(), 4, mods=[forge], round_seconds=90.0)
    said = str(failed.value)
    assert "2 of 4 nodes came, without partition-id 2, 3" in said
    assert "does not say what it hosts (KeyError" in said
    assert "says partition-id=4 num-partitions=4: the first must be below the second, and the second the same" in said


@pytest.mark.federation
def test_a_node_that_takes_too_long_is_missed_for_the_round_and_back_in_the_next(in_one_process):
    def dawdle(message, context, call_next):
        reply = call_next(message, context)
        if "work" in reply.content and message.content["todo"]["round"] == 2 and 3 in reply.content["work"]["clients"]:
            time.sleep(70)
        return reply

    rounds = flower.simulate_federation(everybody(), 4, mods=[dawdle], round_seconds=60.0)
    expected = in_one_process(everybody(), {2: {3, 7}})
    assert [furthest(state.params, alone.params) for (state, _), alone in zip(rounds, expected, strict=True)] == [0] * 3
    assert [row["problems"] for _, row in rounds] == [[], ["client 3: no reply", "client 7: no reply"], []]
    assert 60 <= rounds[1][1]["seconds"] < 65


def test_a_client_whose_reply_was_refused_begins_anew_and_its_node_says_so(without):
    """Its node remembers round 2 of SCAFFOLD, and the server round 1, the last that counted."""

    def forge(message, context, call_next):
        reply = call_next(message, context)
        if "work" in reply.content and message.content["todo"]["round"] == 2:
            work = reply.content["work"]
            counts = zip(work["clients"], work["num-examples"], strict=True)
            work["num-examples"] = [0 if k == 5 else count for k, count in counts]
        return reply

    e = replace(everybody(), algorithm=Scaffold(), rounds=4)
    rounds = flower.simulate_federation(e, 4, mods=[forge])
    federation = without(federation_of(e), {2: {5}})
    alone = [state for state, _ in lockstep.follow(replace(e, rounds=2), federation=federation)]
    forgotten = alone[2]._replace(memories={k: m for k, m in alone[2].memories.items() if k != 5})
    alone += [state for state, _ in lockstep.follow(e, federation=federation, state=forgotten)]
    assert [furthest(state.params, one.params) for (state, _), one in zip(rounds, alone[1:], strict=True)] == [0] * 4
    assert [(row["used"], row["problems"]) for _, row in rounds] == [
        (8, []),
        (7, ["client 5: says that it trained on 0 examples and holds 50"]),
        (8, ["client 5: what it remembers is not of round 1, the last that counted; it began anew"]),
        (8, []),
    ]


def test_a_process_of_the_simulation_that_dies_ends_the_run_with_a_clear_message():
    def backend(model, train, jobs):
        if jobs[0].work.client == 3:
            os._exit(1)
        return simulation.sequential(model, train, jobs)

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
@pytest.mark.parametrize(
    ("algorithm", "base", "num_nodes"),
    [
        *((a, LOGISTIC, n) for n in (2, 10, 100) for a in (FedAvg(), FedProx(mu=0.1), Scaffold())),
        *((a, CNN, n) for n in (2, 10) for a in (FedAvg(), FedProx(mu=0.1), Scaffold())),
        *((a, LOGISTIC, 10) for a in (FedAvgM(), FedAdam())),
    ],
    ids=lambda value: getattr(value, "model", str(value).split("(")[0]),
)
def test_simulation_gives_the_numbers_of_one_process(algorithm, base, num_nodes, in_one_process):
    e = replace(base, algorithm=algorithm)
    rounds = flower.simulate_federation(e, num_nodes)
    assert len(rounds) == e.rounds
    for (state, row), alone in zip(rounds, in_one_process(e), strict=True):
        assert furthest(state.params, alone.params) == 0 and not row["problems"]


@pytest.mark.federation
def test_a_run_stopped_at_round_12_goes_on_to_the_same_weights(tmp_path, in_one_process):
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
