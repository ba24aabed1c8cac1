"""Checkpoints: what is known of an unfinished run, in one safetensors file that is replaced whole.

The file holds the tensors of the :class:`State`, and as metadata the round and the rows measured so far. Since plans
are pure functions of (seed, round), a run that goes on from a checkpoint ends with the same digits as one that was
never stopped. Layer: sweeps (files).
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fedprox_lib.simulation import State
from fedprox_lib.sweeps import records
from fedprox_lib.sweeps.records import RecordDamaged


@dataclass
class Unfinished:
    """What is known of an unfinished run: ``state`` is None before round 0.

    Attributes:
        path: of its checkpoint.
        state: after its last round.
        rows: what was measured.
        seconds: spent on it before the current start.
        measuring: of these, on measurements.
    """

    path: Path
    state: State | None = None
    rows: list[dict] = field(default_factory=list)
    seconds: float = 0.0
    measuring: float = 0.0


def save_checkpoint(run: Unfinished, seconds: float) -> None:
    """Write a run's checkpoint; ``seconds`` were spent on it since it was started or loaded.

    Raises:
        StoreUnwritable: if it cannot be written; the checkpoint before it stays.
    """
    path, state = run.path, run.state
    assert state is not None
    tensors = {f"params/{name}": w for name, w in state.params.items()}
    tensors |= {f"server/{name}": w for name, w in state.server.items()}
    for client, memory in state.memories.items():
        tensors |= {f"memory/{client}/{name}": w for name, w in memory.items()}
    about = {"round": state.round, "rows": run.rows, "seconds": run.seconds + seconds, "measuring": run.measuring}
    content = save({name: w.cpu().contiguous() for name, w in tensors.items()}, {"run": json.dumps(about)})
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        records.write_file(partial, content)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise records.StoreUnwritable(
            f"checkpoint {path} could not be written ({error}). Free some space or choose a writable folder, then "
            "start again."
        ) from error


def load_checkpoint(path: Path) -> Unfinished:
    """The unfinished run of that checkpoint; one that has not begun if there is none.

    Raises:
        RecordDamaged: if the file is not a whole checkpoint.
    """
    if not path.exists():
        return Unfinished(path)
    parts: dict[str, dict] = {"params": {}, "server": {}}
    memories: dict[int, dict] = {}
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["run"])
            for key in file.keys():  # noqa: SIM118 (not a dictionary)
                kind, _, name = key.partition("/")
                if kind == "memory":
                    client, _, name = name.partition("/")
                    memories.setdefault(int(client), {})[name] = file.get_tensor(key)
                else:
                    parts[kind][name] = file.get_tensor(key)
        state = State(about["round"], parts["params"], parts["server"], memories)
        return Unfinished(path, state, about["rows"], about["seconds"], about["measuring"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise RecordDamaged(f"checkpoint {path} is damaged ({error}): delete it to start this run again.") from error
