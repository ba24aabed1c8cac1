"""A federation deployed on this machine: one SuperLink and its SuperNodes, for as long as a ``with`` block lasts.

On entry, :class:`Deployment` writes keys and certificates and starts one ``flower-superlink`` (TLS, only registered
SuperNodes) and the ``flower-supernode`` processes, on the loopback interface and on ports that were free.
:meth:`Deployment.run` gives it the repository's own app with ``flwr run``. On exit, however it comes about, every
process is stopped, those that Flower started among them, and the folder with all that was written is removed.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedprox_lib.sweeps import checkpoint
from fedprox_lib.sweeps.experiment import Experiment, from_settings
from tools.federation.keys import write_certificates, write_node_key
from tools.federation.processes import HOST, DeploymentFailed, Processes, until, why

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Run:
    """One ``flwr run`` of the app.

    Attributes:
        experiment: what runs.
        output: folder of the states after every round.
        process: the ``flwr run --stream`` that follows it.
        log: what the ServerApp says.
    """

    experiment: Experiment
    output: Path
    process: subprocess.Popen
    log: Path

    def path(self, t: int) -> Path:
        """The state after round t."""
        return self.output / f"{self.experiment.id}-{t:05d}.safetensors"

    @property
    def round(self) -> int:
        """The last round whose state is there."""
        return max((t for t in range(self.experiment.rounds + 1) if self.path(t).exists()), default=0)

    def rows(self) -> list[dict[str, Any]]:
        """One row a round, as :func:`fedprox_lib.flower.apps.make_apps` describes them."""
        return checkpoint.load_checkpoint(self.path(self.round)).rows

    def reach(self, t: int, seconds: float) -> None:
        """Wait until the state after round t is there."""
        until(lambda: self.path(t).exists() or self.process.poll() is not None, seconds, f"round {t}", self.log)
        if not self.path(t).exists():
            raise DeploymentFailed(f"The run ended in round {self.round + 1} and not after round {t}. {why(self.log)}")

    def wait(self, seconds: float) -> None:
        """Wait until the run has ended with its last round."""
        self.reach(self.experiment.rounds, seconds)
        until(lambda: self.process.poll() is not None, 60, "the end of the run", self.log)


class Deployment(Processes):
    """A SuperLink and its SuperNodes on this machine, for as long as the ``with`` block lasts.

    Attributes:
        folder: keys, certificates, logs, databases and everything else that is written.
        nodes: name -> its SuperNode's process; those of the start are ``node-0`` and so on.
        phases: what the start took, a row a phase.
    """

    def __init__(
        self, nodes: int = 4, *, below: Path = ROOT / ".federation", keep: bool = False, say: Callable = print
    ) -> None:
        if nodes < 1:
            raise ValueError(f"nodes must be >= 1, got {nodes}.")
        super().__init__(below)
        self.num_nodes, self.below, self.keep, self.say = nodes, below, keep, say
        self.nodes: dict[str, subprocess.Popen] = {}
        self.phases: list[dict[str, Any]] = []
        self._signals: dict[int, Any] = {}

    def __enter__(self) -> Deployment:
        for number in (signal.SIGTERM, signal.SIGHUP):  # Ctrl-C raises by itself
            self._signals[number] = signal.signal(number, lambda number, frame: sys.exit(128 + number))
        self.below.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(prefix="run-", dir=self.below.resolve()))  # mode 0700
        try:
            self._start()
        except BaseException as error:
            self.__exit__(type(error))
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        before = {n: signal.signal(n, signal.SIG_IGN) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        try:
            with self._timed("everything stopped"):
                self.stop()
            if self.keep:
                self.say(f"kept: {self.folder}")
            else:
                shutil.rmtree(self.folder, ignore_errors=True)
                with contextlib.suppress(OSError):
                    self.below.rmdir()
            if self.pids() or self.open_ports():
                raise DeploymentFailed(
                    f"Still there: processes {self.pids()}, ports {self.open_ports()}. Stop them with kill -9."
                )
        finally:
            for number, handler in (before | self._signals).items():
                signal.signal(number, handler)

    def _start(self) -> None:
        with self._timed("keys and certificates"):
            for name in ("tmp", "keys"):
                (self.folder / name).mkdir(mode=0o700)
            write_certificates(self.folder / "keys")
            for name in ("superlink", *(f"node-{i}" for i in range(self.num_nodes))):
                self.make_home(name)
        with self._timed("SuperLink"):
            self.start_superlink()
        with self._timed(f"{self.num_nodes} SuperNodes registered"):
            for i in range(self.num_nodes):
                self.register(f"node-{i}")
        with self._timed(f"{self.num_nodes} SuperNodes online"):
            for i in range(self.num_nodes):
                self.start_node(f"node-{i}", i)
            for i in range(self.num_nodes):
                self.await_online(f"node-{i}")

    def start_superlink(self) -> subprocess.Popen:
        """Start it, again if need be: its database and its port stay the same. Returns when it answers."""
        keys = self.folder / "keys"
        self.superlink = self.start(
            "superlink", "flower-superlink", "--host", HOST, "--port", str(self.ports["superlink"]),
            "--ssl-certfile", str(keys / "server.pem"), "--ssl-keyfile", str(keys / "server.key"),
            "--ssl-ca-certfile", str(keys / "ca.pem"), "--enable-supernode-auth",
            "--database", str(self.folder / "superlink.db"),
        )  # fmt: skip
        cli = self.folder / "cli"
        cli.mkdir(mode=0o700, exist_ok=True)
        address, ca = f"{HOST}:{self.ports['superlink']}", keys / "ca.pem"
        connection = f'[superlink.here]\naddress = "{address}"\nroot-certificates = "{ca}"\ninsecure = false\n'
        (cli / "config.toml").write_text(connection)
        context = ssl.create_default_context(cafile=str(ca))

        def answers() -> bool:
            try:
                plain = socket.create_connection((HOST, self.ports["superlink"]), 1)
                with plain, context.wrap_socket(plain, server_hostname=HOST):
                    return True
            except OSError:
                return False

        self.wait_for(answers, "superlink", self.superlink, 90)
        return self.superlink

    def register(self, name: str) -> None:
        """Make a key pair of that name, unless there is one, and tell the SuperLink the public key."""
        key = self.node_key(name)
        done = self.start("cli", "flwr", "supernode", "register", f"{key}.pub", "here")
        if done.wait(90):
            raise DeploymentFailed(f"The SuperLink did not register {name}. {why(self.log('cli'))}")

    def node_key(self, name: str) -> Path:
        """The private key of that name; the public one lies beside it."""
        key = self.folder / "keys" / name
        if not key.exists():
            write_node_key(key)
        return key

    def start_node(self, name: str, partition_id: int, ca: Path | None = None) -> subprocess.Popen:
        """Start a SuperNode with the key of that name; it hosts the clients k with k mod nodes = partition_id."""
        self.make_home(name)
        self.nodes[name] = self.start(
            name, "flower-supernode", "--superlink", f"{HOST}:{self.ports['superlink']}",
            "--root-certificates", str(ca or self.folder / "keys" / "ca.pem"),
            "--auth-supernode-private-key", str(self.node_key(name)),
            "--host", HOST, "--port", str(self.ports[name]),
            "--node-config", f"partition-id={partition_id} num-partitions={self.num_nodes}",
        )  # fmt: skip
        return self.nodes[name]

    def await_online(self, name: str, seconds: float = 90) -> None:
        """Wait until the SuperLink has let it in."""
        self.wait_for(lambda: "SuperNode ID" in self.said(name), name, self.nodes[name], seconds)

    def begin(self, settings: dict[str, Any], output: Path | None = None) -> Run:
        """Start ``flwr run`` with these settings over those of pyproject.toml.

        Args:
            settings: as in ``[tool.flwr.app.config]``.
            output: the folder of an earlier run that shall go on; None for a new one.
        """
        output = output or Path(tempfile.mkdtemp(prefix="output-", dir=self.folder))
        config = settings | {"output": str(output), "keep_rounds": True}
        given = " ".join(f"{name}={json.dumps(value)}" for name, value in config.items())
        name = f"flwr-{output.name}"
        process = self.start(name, "flwr", "run", str(ROOT), "here", "--stream", "--run-config", given, home="cli")
        return Run(from_settings(app_settings() | settings), output, process, self.log(name))

    def run(self, settings: dict[str, Any], seconds: float = 600) -> Run:
        """Run the app to its end."""
        run = self.begin(settings)
        what = f"{run.experiment.label}, {run.experiment.model}"
        with self._timed(f"{what}: from flwr run to the end of round 1"):
            run.reach(1, seconds)
        with self._timed(f"{what}: from there to the end of the run, {run.experiment.rounds} rounds"):
            run.wait(seconds)
        return run

    @contextlib.contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.phases.append({"phase": phase, "seconds": round(time.monotonic() - began, 2)})
        self.say(f"{self.phases[-1]['seconds']:7.1f} s  {phase}")


def app_settings() -> dict[str, Any]:
    """The settings of the app, as they stand in pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
