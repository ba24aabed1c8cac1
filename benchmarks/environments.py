"""An environment for every peer, under ``benchmarks/.envs``: made once, made again when its pins change.

Peers without a file of pins (``peers/requirements/<peer>.txt``) run in the project's own environment.
"""

import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = HERE / ".envs"

PEERS = ("ours", "ours_sweep", "plain_tensors", "plain_dataloader", "pfl_research", "fedjax_peer", "flower_simulation")
"""Everyone, in the order in which they run."""


class NotMade(Exception):
    """A peer's environment could not be made; the message is the reason."""


def python_of(peer: str) -> Path:
    """The interpreter that runs a peer, after making its environment if need be."""
    pins = HERE / "peers" / "requirements" / f"{peer}.txt"
    if not pins.exists():
        return Path(sys.executable)
    home = ENVIRONMENTS / peer
    python, stamp = home / "bin" / "python", home / "pins.txt"
    if stamp.exists() and stamp.read_text() == pins.read_text():
        return python
    print(f"making the environment of {peer} ...", file=sys.stderr, flush=True)
    shutil.rmtree(home, ignore_errors=True)
    _do(sys.executable, "-m", "venv", str(home))
    _do(str(python), "-m", "pip", "install", "--quiet", "-r", str(pins))
    stamp.write_text(pins.read_text())
    return python


def _do(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        errors = [line for line in said if line.startswith("ERROR")] or said[-1:] or ["no message"]
        raise NotMade(f"its environment could not be made: {errors[0]}")
