"""Processes of Flower that leave nothing behind: started apart, found wherever they went, stopped for certain.

Flower starts processes of its own, some in sessions of their own, and some outlive the one that started them. So pids
of children are not enough: a process counts as ours if the environment it was started with names our folder. That needs
``/proc``, so it needs Linux.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

HOST = "127.0.0.1"
"""Nobody else can reach what listens here."""

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
}
"""What every process of Flower is told: nothing goes to the network but to its server, nothing is installed."""


class DeploymentFailed(RuntimeError):
    """What was required did not come; the message has the reason that the logs give."""


class Processes:
    """Programs of Flower that write below one folder, and their ports.

    Attributes:
        folder: where each has its own ``FLWR_HOME`` and its log.
        ports: name -> the port kept for it.
    """

    def __init__(self, folder: Path) -> None:
        if not Path("/proc/self/environ").exists():
            raise DeploymentFailed("Processes are found in /proc, and there is none: please use Linux.")
        self.folder = folder
        self.ports: dict[str, int] = {}
        self._children: list[subprocess.Popen] = []
        self._log_starts: dict[str, int] = {}

    def start(self, name: str, *command: str, home: str = "") -> subprocess.Popen:
        """Start a program of Flower in a session of its own, so that Ctrl-C reaches us alone."""
        tools = str(Path(sys.executable).parent)
        environment = os.environ | QUIET | {
            "FLWR_HOME": str(self.folder / (home or name)),
            "TMPDIR": str(self.folder / "tmp"),
            "PATH": f"{tools}{os.pathsep}{os.environ.get('PATH', os.defpath)}",  # Flower calls flower-superexec
        }  # fmt: skip
        with self.log(name).open("ab") as log:
            self._log_starts[name] = log.tell()
            process = subprocess.Popen(
                [str(Path(tools, command[0])), *command[1:]], cwd=self.folder, env=environment, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        self._children.append(process)
        return process

    def make_home(self, name: str) -> None:
        """A folder and a free port for a process. The system chooses the port; nobody else asked for it since."""
        (self.folder / name).mkdir(mode=0o700, exist_ok=True)
        if name not in self.ports:
            with socket.socket() as free:
                free.bind((HOST, 0))
                self.ports[name] = free.getsockname()[1]

    def wait_for(self, there: Callable[[], bool], name: str, process: subprocess.Popen, seconds: float) -> None:
        """Wait until it is there, or say why it ended."""
        until(lambda: there() or process.poll() is not None, seconds, name, self.log(name))
        if process.poll() is not None:
            raise DeploymentFailed(f"{name} ended with exit code {process.poll()}. {why(self.log(name))}")

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def said(self, name: str) -> str:
        """What a process has written since its last start."""
        return self.log(name).read_bytes()[self._log_starts[name] :].decode(errors="replace")

    def pids(self) -> list[int]:
        """Every process whose environment names our folder, whoever started it."""
        mark, found = f"FLWR_HOME={self.folder}/".encode(), []
        for entry in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):  # it ended, or is another user's
                if mark in entry.read_bytes():
                    found.append(int(entry.parent.name))
        return found

    def open_ports(self) -> list[int]:
        """Those of our ports on which somebody listens."""

        def listens(port: int) -> bool:
            with socket.socket() as probe:
                return probe.connect_ex((HOST, port)) == 0

        return [port for port in self.ports.values() if listens(port)]

    def stop(self, seconds: float = 10.0) -> None:
        """Ask every process to stop; those that have not within ``seconds`` are killed."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            asked: set[int] = set()
            end = time.monotonic() + seconds
            while (pids := self.pids()) and time.monotonic() < end:
                for pid in set(pids) - asked:  # one at a time, and those that were started meanwhile
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)
                asked |= set(pids)
                time.sleep(0.1)
                for child in self._children:
                    child.poll()
        for child in self._children:
            child.poll()


def until(there: Callable[[], bool], seconds: float, what: str, log: Path) -> None:
    """Wait, not for ever."""
    end = time.monotonic() + seconds
    while not there():
        if time.monotonic() > end:
            raise DeploymentFailed(f"After {seconds:.0f} s still without {what}. {why(log)}")
        time.sleep(0.1)


def why(log: Path, lines: int = 25) -> str:
    """The end of a log, from the last error on if there is one."""
    said = log.read_text(errors="replace").splitlines()
    errors = [i for i, line in enumerate(said) if re.search(r"Traceback|ERROR|Error", line)]
    start = max(errors[-1] - 3, 0) if errors else len(said) - lines
    return f"{log.name} says:\n" + "\n".join(said[max(start, 0) :][:lines])
