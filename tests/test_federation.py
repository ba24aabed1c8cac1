"""The federation on a SuperLink and SuperNodes: keys, processes, and in every round the numbers of one process.

Everything marked ``federation`` runs the real thing, with TLS and authentication (``make test-federation``). What
happens when something is killed is in ``test_federation_faults.py``.
"""

import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tools.federation import comparison, keys
from tools.federation.deployment import ROOT, Deployment
from tools.federation.processes import HOST, DeploymentFailed, Processes, until

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found in /proc")


def assert_nothing_is_left(deployment):
    assert deployment.pids() == [] and deployment.open_ports() == []
    assert not deployment.folder.exists()


# --- keys and certificates -----------------------------------------------------------------------


def test_private_keys_are_readable_by_their_owner_only(tmp_path):
    keys.write_certificates(tmp_path)
    keys.write_node_key(tmp_path / "node-0")
    names = {"ca.pem", "server.pem", "server.key", "node-0", "node-0.pub"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}
    with pytest.raises(FileExistsError):
        keys.write_node_key(tmp_path / "node-0")  # a registered key is not replaced


@pytest.mark.parametrize(("name", "trusted"), [("localhost", True), (HOST, True), ("example.org", False)])
def test_a_certificate_counts_for_its_hosts_and_from_its_authority(tmp_path, name, trusted):
    for folder in ("ours", "theirs"):
        (tmp_path / folder).mkdir()
        keys.write_certificates(tmp_path / folder)
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


# --- processes -----------------------------------------------------------------------------------


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
    write = keys.write_certificates

    def spoil(folder):
        write(folder)
        (folder / "server.key").write_text("not a key")

    monkeypatch.setattr("tools.federation.deployment.write_certificates", spoil)
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


# --- the same numbers ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def four_nodes():
    """One deployment for the tests that leave it as it was: its start takes longer than a round."""
    with Deployment(4) as deployment:
        yield deployment
    assert_nothing_is_left(deployment)


def named(settings):
    return "{model}-{algorithm}".format(**settings)


@pytest.mark.federation
@pytest.mark.parametrize("settings", comparison.RECORDED, ids=named)
def test_every_round_has_the_weights_of_one_process(four_nodes, settings):
    table = comparison.compare(four_nodes.run(settings))
    assert len(table) == settings["rounds"]
    assert (table["used"] == table["asked"]).all()
    assert table["max_difference"].max() <= comparison.TOLERANCE


@pytest.mark.federation
def test_a_run_that_fails_shows_what_its_serverapp_said(four_nodes):
    with pytest.raises(DeploymentFailed, match="On Flower a round is one exchange"):
        four_nodes.run({"algorithm": "FedDane"}, 180)


# --- what is asked for ---------------------------------------------------------------------------


def test_settings_are_read_as_flower_reads_them():
    wanted = {"algorithm": "FedAvg", "rounds": 5, "lr": 0.1}
    assert comparison.settings_of("algorithm='FedAvg' rounds=5 lr=0.1") == wanted


@pytest.mark.parametrize(
    ("text", "why"),
    [("round=5", "no setting of the app: round"), ("algorithm='FedX'", "algorithm must be"), ("mu=-1", "mu >= 0")],
)
def test_wrong_settings_are_refused_before_anything_starts(text, why):
    with pytest.raises(ValueError, match=why):
        comparison.settings_of(text)
