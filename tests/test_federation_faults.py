"""What is left of a federation when something fails: a stranger comes, a SuperNode is killed, the SuperLink is killed.

Each runs the real thing, with TLS and authentication (``make test-federation``). With FEDPROX_RECORD=1 they are also
recorded, as the table ``flower-faults-deployment``.
"""

import os
import re
import signal
import time
from pathlib import Path

import pandas as pd
import pytest

from fedprox_lib.sweeps.federations import federation_of
from tools.federation import comparison, deployment, keys
from tools.federation.deployment import Deployment
from tools.federation.processes import until

pytestmark = [
    pytest.mark.federation,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found in /proc"),
]
SMALL = {"algorithm": "FedProx", "epochs": 1, "round_seconds": 240.0}
COLUMNS = ("fault", "done", "happened", "seconds", "used", "asked", "rounds", "max_difference")
"""``seconds``, and how many ``used`` of the ``asked`` clients, are of the round of the fault (where the SuperLink is
killed, from then to the round's end); ``rounds`` are those in which clients are missing; ``max_difference`` is to one
process in which just these clients are left out of just these rounds."""


def assert_nothing_is_left(deployment):
    assert deployment.pids() == [] and deployment.open_ports() == []
    assert not deployment.folder.exists()


@pytest.fixture(scope="module")
def report():
    """Takes a row a fault."""
    rows = []
    if record := os.environ.get("FEDPROX_RECORD") == "1":
        comparison.require_recordable("flower-faults-deployment")
    yield lambda *row: rows.append(dict(zip(COLUMNS, row, strict=True)))
    if record and len(rows) == 6:  # all of them, or none
        about = {"app": deployment.app_settings(), "changed": SMALL}
        comparison.record("flower-faults-deployment", about, pd.DataFrame(rows))


@pytest.fixture(scope="module")
def three_nodes():
    with Deployment(3) as deployment:
        yield deployment
    assert_nothing_is_left(deployment)


# --- the SuperLink is killed ---------------------------------------------------------------------


def test_a_killed_superlink_costs_a_round_and_the_weights_end_the_same(report):
    with Deployment(2) as deployment:
        first = deployment.begin(SMALL | {"rounds": 20})
        first.reach(12, 900)
        time.sleep(3)  # into round 13
        os.kill(deployment.superlink.pid, signal.SIGKILL)
        deployment.superlink.wait()
        killed = time.monotonic()
        until(lambda: first.process.poll() is not None, 90, "the end of flwr run", first.log)
        stopped_at = first.round
        assert first.process.returncode != 0 and stopped_at < 20
        time.sleep(10)  # the SuperNodes look for it in vain
        deployment.start_superlink()
        up = time.monotonic() - killed
        second = deployment.begin(SMALL | {"rounds": 20}, output=first.output)
        second.reach(stopped_at + 1, 400)
        resumed = time.monotonic() - killed
        second.wait(900)
        assert all(node.poll() is None for node in deployment.nodes.values())
        table = comparison.compare(second)
        assert list(table["round"]) == list(range(1, 21))
        assert (table["used"] == table["asked"]).all()
        assert table["max_difference"].max() == 0
        row = table.to_dict("records")[stopped_at]
        report(
            f"SuperLink killed (-9) in round {stopped_at + 1} of 20", "restarted with its database; the same flwr run",
            f"flwr run ends with code {first.process.returncode}; the SuperNodes wait for their server, which is up "
            f"after {up:.0f} s; the run goes on at round {stopped_at + 1}",
            round(resumed, 1), row["used"], row["asked"], "none", table["max_difference"].max(),
        )  # fmt: skip
    assert_nothing_is_left(deployment)


# --- who is let in -------------------------------------------------------------------------------


def ended(deployment, name, seconds=60):
    """How a SuperNode ended: the reason that it gives."""
    process = deployment.nodes[name]
    until(lambda: process.poll() is not None, seconds, f"the end of {name}", deployment.log(name))
    said = re.sub(r"\x1b\[\d+m", "", deployment.said(name))
    return process.returncode, said


def test_strangers_are_refused_and_the_federation_goes_on(three_nodes, tmp_path, report):
    run = three_nodes.begin(SMALL | {"rounds": 2})
    run.reach(1, 300)
    began = time.monotonic()
    three_nodes.start_node("stranger", 0)
    code, said = ended(three_nodes, "stranger")
    refused = time.monotonic() - began
    assert code != 0 and "Exit Code: 305" in said and "code: 2004" in said
    assert "SuperNode ID" not in said

    keys.write_certificates(tmp_path)  # of another authority
    three_nodes.register("misled")
    began = time.monotonic()
    three_nodes.start_node("misled", 0, ca=tmp_path / "ca.pem")
    code, wrong = ended(three_nodes, "misled")
    refuses = time.monotonic() - began
    assert code != 0 and "Exit Code: 305" in wrong and "certificate verify failed" in wrong

    run.wait(300)
    table = comparison.compare(run)
    assert list(table["used"]) == [10, 10] and table["max_difference"].max() == 0
    last = table.to_dict("records")[-1]
    for fault, happened in (
        ("a key that nobody registered", f"refused after {refused:.0f} s: exit 305, error 2004"),
        (
            "another authority's certificate",
            f"it refuses the server after {refuses:.0f} s: exit 305, wrong certificate",
        ),
    ):
        report(fault, "a SuperNode started with it in round 2", happened, round(last["seconds"], 1), last["used"],
               last["asked"], "none", last["max_difference"])  # fmt: skip


# --- a SuperNode is killed -----------------------------------------------------------------------


def missed(run):
    """Which clients the run's own rows say were missed, by round."""
    found = {
        row["round"]: {int(k) for k in re.findall(r"client (\d+)", "; ".join(row["problems"]))} for row in run.rows()
    }
    return {t: clients for t, clients in found.items() if clients}


@pytest.fixture
def difference_without(without):
    """To one process in which these clients were left out of these rounds."""
    return lambda run, missing: comparison.compare(run, without(federation_of(run.experiment), missing))


def kill_in_round(deployment, run, name, t):
    """kill -9 a SuperNode while its client works in round t. Returns when it was."""
    run.reach(t - 1, 300)
    seen = deployment.said(name).count("Start `flwr-clientapp` process")
    until(
        lambda: deployment.said(name).count("Start `flwr-clientapp` process") > seen or run.round >= t,
        120, "work in the round", deployment.log(name),
    )  # fmt: skip
    assert run.round == t - 1
    os.kill(deployment.nodes[name].pid, signal.SIGKILL)
    deployment.nodes[name].wait()
    return time.monotonic()


def cohort_on(run, t, partition_id, nodes):
    """The clients of a round's cohort that a node hosts."""
    plan = federation_of(run.experiment).planner.round_plan(t)
    return {work.client for work in plan.cohort if work.client % nodes == partition_id}


@pytest.mark.parametrize("again", ["again and again", "at once, and when the round was over"])
def test_a_killed_node_comes_back_with_its_key_but_only_after_its_time_is_up(
    three_nodes, report, difference_without, again
):
    """Then its clients of that round are given up, after a minute.

    If it is back before the ServerApp has looked, which is a matter of a tenth of a second, nobody ever says that its
    answer is lost. Then the bound of a round is what ends it: without one, the run would wait for ever.
    """
    waits = again != "again and again"
    run = three_nodes.begin(SMALL | {"rounds": 8 if waits else 5, "round_seconds": 120.0})
    killed = kill_in_round(three_nodes, run, "node-1", 2)
    refusals = []
    while True:
        three_nodes.start_node("node-1", 1)
        process = three_nodes.nodes["node-1"]
        until(
            lambda p=process: p.poll() is not None or "SuperNode ID" in three_nodes.said("node-1"),
            60, "node-1", three_nodes.log("node-1"),
        )  # fmt: skip
        after = time.monotonic() - killed
        if process.poll() is None:
            back = run.round + 1  # this round may lack it still, the next ones not
            break
        refusals.append((after, ended(three_nodes, "node-1")[1]))
        assert after < 150, refusals[-1]
        if waits:
            run.reach(2, 150)
    run.wait(400)
    assert refusals and all("Exit Code: 305" in said and "code: 2004" in said for _, said in refusals)

    missing = missed(run)
    assert list(missing) == list(range(2, 2 + len(missing))) and max(missing) <= back < run.experiment.rounds
    assert all(clients == cohort_on(run, t, 1, 3) for t, clients in missing.items())
    table = difference_without(run, missing)
    assert table["max_difference"].max() <= comparison.TOLERANCE
    row = table.to_dict("records")[1]
    told = any("code 5" in problem for problem in run.rows()[1]["problems"])
    assert told if waits else told or 110 < row["seconds"] < 140
    end = "the SuperLink reported the loss (error 5)" if told else "nobody reported the loss: the bound ended the round"
    report(
        "SuperNode killed (-9) in round 2",
        f"restarted with the same key, {again}",
        f"refused until its time was up: {len(refusals)} times, first after {refusals[0][0]:.0f} s (exit 305, error "
        f"2004); let in after {after:.0f} s; {end}",
        round(row["seconds"], 1), row["used"], row["asked"], ", ".join(map(str, missing)),
        table["max_difference"].max(),
    )  # fmt: skip


def test_a_killed_node_is_replaced_at_once_by_one_with_another_key(three_nodes, report, difference_without):
    three_nodes.register("spare")
    run = three_nodes.begin(SMALL | {"rounds": 3})
    killed = kill_in_round(three_nodes, run, "node-2", 2)
    three_nodes.start_node("spare", 2)
    three_nodes.await_online("spare")
    joined = time.monotonic() - killed
    run.wait(400)

    missing = missed(run)
    assert missing == {2: cohort_on(run, 2, 2, 3)}
    table = difference_without(run, missing)
    assert table["max_difference"].max() <= comparison.TOLERANCE
    row = table.to_dict("records")[1]
    report(
        "SuperNode killed (-9) in round 2", "another with another registered key and the same partition-id",
        f"let in after {joined:.0f} s; hosts the clients from round 3 on",
        round(row["seconds"], 1), row["used"], row["asked"], "2", table["max_difference"].max(),
    )  # fmt: skip
