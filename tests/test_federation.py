"""The federation on a SuperLink and SuperNodes: the numbers of one process, and what remains when something is killed.

Everything marked ``federation`` runs the real thing, with TLS and authentication (``make test-federation``). With
FEDPROX_RECORD=1 the faults are also recorded, as the table ``flower-faults-deployment``.
"""

import os
import re
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import pytest

from fedprox_lib.federation import Federation
from fedprox_lib.plan import Planner
from tools import federation, federation_keys
from tools.deployment import ROOT, Deployment
from tools.processes import HOST, DeploymentFailed, Processes, until

LINUX = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found in /proc")
pytestmark = LINUX
SMALL = {"algorithm": "FedProx", "epochs": 1, "round_seconds": 240.0}
COLUMNS = ("fault", "done", "happened", "seconds", "used", "asked", "rounds", "max_difference")


def assert_nothing_is_left(deployment):
    assert deployment.pids() == [] and deployment.open_ports() == []
    assert not deployment.folder.exists()


@pytest.fixture(scope="module")
def four_nodes():
    """One deployment for the tests that leave it as it was: its start takes longer than a round."""
    with Deployment(4) as deployment:
        yield deployment
    assert_nothing_is_left(deployment)


@pytest.fixture(scope="module")
def report():
    """Takes a row a fault."""
    rows = []
    if record := os.environ.get("FEDPROX_RECORD") == "1":
        federation.require_recordable("flower-faults-deployment")
    yield lambda *row: rows.append(dict(zip(COLUMNS, row, strict=True)))
    if record and len(rows) == 5:  # all of them, or none
        about = {"app": federation.app_settings(), "changed": SMALL}
        federation.record("flower-faults-deployment", about, pd.DataFrame(rows))


# --- the same numbers ----------------------------------------------------------------------------


def named(settings):
    return "{model}-{algorithm}".format(**settings)


@pytest.mark.federation
@pytest.mark.parametrize("settings", federation.RECORDED, ids=named)
def test_every_round_has_the_weights_of_one_process(four_nodes, settings):
    table = federation.compare(four_nodes.run(settings))
    assert len(table) == settings["rounds"]
    assert (table["used"] == table["asked"]).all()
    assert table["max_difference"].max() <= federation.TOLERANCE


# --- who is let in -------------------------------------------------------------------------------


def ended(deployment, name, seconds=60):
    """How a SuperNode ended: the reason that it gives."""
    process = deployment.nodes[name]
    until(lambda: process.poll() is not None, seconds, f"the end of {name}", deployment.log(name))
    said = re.sub(r"\x1b\[\d+m", "", deployment.said(name))
    return process.returncode, said


@pytest.mark.federation
def test_strangers_are_refused_and_the_federation_goes_on(four_nodes, tmp_path, report):
    run = four_nodes.begin(SMALL | {"rounds": 2})
    run.reach(1, 300)
    began = time.monotonic()
    four_nodes.start_node("stranger", 0)
    code, said = ended(four_nodes, "stranger")
    refused = time.monotonic() - began
    assert code != 0 and "Exit Code: 305" in said and "code: 2004" in said
    assert "SuperNode ID" not in said

    federation_keys.write_certificates(tmp_path)  # of another authority
    four_nodes.register("misled")
    began = time.monotonic()
    four_nodes.start_node("misled", 0, ca=tmp_path / "ca.pem")
    code, wrong = ended(four_nodes, "misled")
    assert code != 0 and "Exit Code: 305" in wrong and "certificate verify failed" in wrong

    run.wait(300)
    table = federation.compare(run)
    assert list(table["used"]) == [10, 10] and table["max_difference"].max() == 0
    last = table.iloc[-1]
    rows = (
        ("a key that nobody registered", "a SuperNode started with it", "refused: exit 305, error 2004", refused),
        ("another authority's certificate", "a SuperNode started with it", "it refuses the server: exit 305, "
         "certificate verify failed", time.monotonic() - began),
    )  # fmt: skip
    for fault, done, happened, seconds in rows:
        report(fault, done, happened, round(seconds, 1), last["used"], last["asked"], "none", last["max_difference"])


# --- a SuperNode is killed -----------------------------------------------------------------------


@dataclass
class Without:
    """A plan producer that leaves clients out of rounds."""

    planner: Planner
    missing: dict[int, set[int]]

    def round_plan(self, t):
        plan = self.planner.round_plan(t)
        return replace(plan, cohort=tuple(w for w in plan.cohort if w.client not in self.missing.get(t, set())))


def missed(run):
    """Which clients the run's own rows say were missed, by round."""
    found = {
        row["round"]: {int(k) for k in re.findall(r"client (\d+)", "; ".join(row["problems"]))} for row in run.rows()
    }
    return {t: clients for t, clients in found.items() if clients}


def difference_without(run, missing):
    """To one process in which these clients were left out of these rounds."""
    made = Federation.of(run.experiment)
    return federation.compare(run, replace(made, planner=Without(made.planner, missing)))


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
    plan = Federation.of(run.experiment).planner.round_plan(t)
    return {work.client for work in plan.cohort if work.client % nodes == partition_id}


@pytest.fixture(scope="module")
def three_nodes():
    with Deployment(3) as deployment:
        yield deployment
    assert_nothing_is_left(deployment)


@pytest.mark.federation
def test_a_killed_node_comes_back_with_its_key_but_only_after_its_time_is_up(three_nodes, report):
    run = three_nodes.begin(SMALL | {"rounds": 5})
    killed = kill_in_round(three_nodes, run, "node-1", 2)
    refusals = []
    while True:
        three_nodes.start_node("node-1", 1)
        process = three_nodes.nodes["node-1"]
        until(lambda p=process: p.poll() is not None or "SuperNode ID" in three_nodes.said("node-1"), 60, "node-1",
              three_nodes.log("node-1"))  # fmt: skip
        if process.poll() is None:
            break
        refusals.append((time.monotonic() - killed, ended(three_nodes, "node-1")[1]))
        assert time.monotonic() - killed < 150, refusals[-1]
    back = time.monotonic() - killed
    run.reach(2, 300)
    assert refusals and all("Exit Code: 305" in said for _, said in refusals)
    run.wait(300)

    missing = missed(run)
    assert missing[2] == cohort_on(run, 2, 1, 3) and set(missing) <= {2, 3, 4}
    assert all(clients == cohort_on(run, t, 1, 3) for t, clients in missing.items())
    table = difference_without(run, missing)
    assert table["max_difference"].max() <= federation.TOLERANCE
    row = table[table["round"] == 2].iloc[0]
    reason = re.search(r"\[code: \d+\][^\n]*", refusals[0][1])
    report(
        "SuperNode killed (-9) in round 2", "restarted with the same key until it was let in",
        f"refused {len(refusals)} times (exit 305, {reason[0] if reason else 'no code'}), the first after "
        f"{refusals[0][0]:.0f} s; let in after {back:.0f} s",
        round(row["seconds"], 1), row["used"], row["asked"], ", ".join(map(str, missing)),
        table["max_difference"].max(),
    )  # fmt: skip


@pytest.mark.federation
def test_a_killed_node_is_replaced_at_once_by_one_with_another_key(three_nodes, report):
    three_nodes.register("spare")
    run = three_nodes.begin(SMALL | {"rounds": 4})
    killed = kill_in_round(three_nodes, run, "node-2", 2)
    three_nodes.start_node("spare", 2)
    three_nodes.await_online("spare")
    joined = time.monotonic() - killed
    run.wait(400)

    missing = missed(run)
    assert missing == {2: cohort_on(run, 2, 2, 3)}
    table = difference_without(run, missing)
    assert table["max_difference"].max() <= federation.TOLERANCE
    row = table[table["round"] == 2].iloc[0]
    report(
        "SuperNode killed (-9) in round 2", "another with another registered key and the same partition-id",
        f"let in after {joined:.0f} s; hosts the clients from round 3 on",
        round(row["seconds"], 1), row["used"], row["asked"], "2", table["max_difference"].max(),
    )  # fmt: skip


# --- the SuperLink is killed ---------------------------------------------------------------------


@pytest.mark.federation
def test_a_killed_superlink_costs_a_round_and_the_weights_end_the_same(report):
    with Deployment(2) as deployment:
        first = deployment.begin(SMALL | {"rounds": 20})
        first.reach(12, 900)
        time.sleep(3)  # into round 13
        os.kill(deployment.superlink.pid, signal.SIGKILL)
        deployment.superlink.wait()
        killed = time.monotonic()
        until(lambda: first.process.poll() is not None, 90, "the end of flwr run", first.log)
        assert first.round < 20
        until(
            lambda: all("Connection attempt failed" in deployment.said(name) for name in deployment.nodes)
            or any(node.poll() is not None for node in deployment.nodes.values()),
            90, "a SuperNode that misses its server", deployment.log("node-0"),
        )  # fmt: skip
        deployment.start_superlink()
        up = time.monotonic() - killed
        names = list(deployment.nodes)
        until(
            lambda: all("Connection successful" in deployment.said(name) for name in names)
            or any(node.poll() is not None for node in deployment.nodes.values()),
            120, "the SuperNodes", deployment.log("node-0"),
        )  # fmt: skip
        gone = {name: node.returncode for name, node in deployment.nodes.items() if node.poll() is not None}
        for name in gone:
            deployment.start_node(name, names.index(name))
            deployment.await_online(name)
        connected = time.monotonic() - killed
        stopped_at = first.round
        second = deployment.begin(SMALL | {"rounds": 20}, output=first.output)
        second.reach(stopped_at + 1, 300)
        resumed = time.monotonic() - killed
        second.wait(900)
        table = federation.compare(second)
        assert list(table["round"]) == list(range(1, 21))
        assert (table["used"] == table["asked"]).all()
        assert table["max_difference"].max() == 0
        nodes = f"the SuperNodes exit ({gone}) and are started again" if gone else "the SuperNodes wait for it"
        row = table[table["round"] == stopped_at + 1].iloc[0]
        report(
            f"SuperLink killed (-9) in round {stopped_at + 1} of 20", "restarted with its database; the same flwr run",
            f"flwr run ends with code {first.process.returncode}; {nodes}: server up after {up:.0f} s, nodes "
            f"connected after {connected:.0f} s; the run goes on at round {stopped_at + 1}",
            round(resumed, 1), row["used"], row["asked"], str(stopped_at + 1), table["max_difference"].max(),
        )  # fmt: skip
    assert_nothing_is_left(deployment)


# --- the tool is stopped -------------------------------------------------------------------------


def command_line(pid):
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")


@pytest.mark.federation
@pytest.mark.parametrize(
    ("number", "when"),
    [(signal.SIGINT, "SuperNodes online"), (signal.SIGTERM, "SuperNodes online"), (signal.SIGTERM, "keys and")],
)
def test_a_stopped_tool_leaves_nothing_behind(number, when):
    before = set((ROOT / ".federation").glob("run-*"))
    tool = subprocess.Popen(
        [sys.executable, "-u", "-m", "tools.federation", "--nodes", "2"], cwd=ROOT, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells ignore it in the background
    )  # fmt: skip
    timer = threading.Timer(120, tool.kill)
    timer.start()
    try:
        said = ""
        while when not in said:
            line = tool.stdout.readline()
            assert line, said
            said += line
        (folder,) = set((ROOT / ".federation").glob("run-*")) - before
        time.sleep(15 if "online" in when else 1.5)  # the first round has begun; the SuperLink is being started
        started = Processes(folder)
        lines = [command_line(pid) for pid in started.pids()]
        assert lines
        ports = {line[line.index("--port") + 1] for line in lines if "--port" in line}
        started.ports = {port: int(port) for port in ports}
        tool.send_signal(number)
        said += tool.communicate(timeout=60)[0]
    finally:
        timer.cancel()
        tool.kill()
    assert tool.returncode == (1 if number == signal.SIGINT else 128 + number), said
    assert "Traceback" not in said and "everything stopped" in said
    assert_nothing_is_left(started)


def test_processes_in_sessions_of_their_own_are_found_and_stopped(tmp_path):
    """A grandchild that left the session, lost its parent and does not listen to SIGTERM."""
    grandchild = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('here'); time.sleep(60)"
    start = f"Popen([sys.executable, '-u', '-c', {grandchild!r}], start_new_session=True)"
    child = f"import sys; from subprocess import Popen; {start}"
    processes = Processes(tmp_path)
    processes.start("one", Path(sys.executable).name, "-c", child).wait(30)
    until(lambda: "here" in processes.said("one"), 30, "the grandchild", processes.log("one"))
    assert len(processes.pids()) == 1
    processes.stop(seconds=1)
    assert processes.pids() == []


def test_a_start_that_fails_says_why_and_leaves_nothing(tmp_path, monkeypatch):
    pytest.importorskip("flwr")
    write = federation_keys.write_certificates

    def spoil(folder):
        write(folder)
        (folder / "server.key").write_text("not a key")

    monkeypatch.setattr(federation_keys, "write_certificates", spoil)
    deployment = Deployment(1, below=tmp_path / "below")
    with pytest.raises(DeploymentFailed, match="superlink ended with exit code"), deployment:
        pass
    assert_nothing_is_left(deployment)
    assert not (tmp_path / "below").exists()


def test_a_reason_is_found_in_the_log(tmp_path):
    log = tmp_path / "flwr.log"
    log.write_text("fine\n" * 40 + "Traceback\nValueError: mu must be >= 0, got -1\n")
    with pytest.raises(DeploymentFailed, match="mu must be >= 0"):
        until(lambda: False, 0, "round 1", log)


# --- keys and certificates -----------------------------------------------------------------------


def test_private_keys_are_readable_by_their_owner_only(tmp_path):
    federation_keys.write_certificates(tmp_path)
    federation_keys.write_node_key(tmp_path / "node-0")
    names = {"ca.pem", "server.pem", "server.key", "node-0", "node-0.pub"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}
    with pytest.raises(FileExistsError):
        federation_keys.write_node_key(tmp_path / "node-0")  # a registered key is not replaced


@pytest.mark.parametrize(("name", "trusted"), [("localhost", True), (HOST, True), ("example.org", False)])
def test_a_certificate_counts_for_its_hosts_and_from_its_authority(tmp_path, name, trusted):
    for folder in ("ours", "theirs"):
        (tmp_path / folder).mkdir()
        federation_keys.write_certificates(tmp_path / folder)
    assert handshake(tmp_path / "ours", tmp_path / "ours" / "ca.pem", name) == trusted
    assert not handshake(tmp_path / "ours", tmp_path / "theirs" / "ca.pem", name)


def handshake(keys, ca, name):
    """Whether a client that trusts an authority accepts the server by that name. Strict, as Python 3.13 is."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(keys / "server.pem", keys / "server.key")
    client = ssl.create_default_context(cafile=ca)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    there, here = socket.socketpair()
    with there, here:

        def serve():
            try:
                server.wrap_socket(there, server_side=True).close()
            except OSError:
                there.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            client.wrap_socket(here, server_hostname=name).close()
            return True
        except ssl.SSLError:
            here.close()
            return False
        finally:
            thread.join()
