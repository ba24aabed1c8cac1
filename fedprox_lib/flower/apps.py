"""The same experiment on Flower: a ServerApp and a ClientApp around the library's own round.

How does what we learned in one process run on many machines, with the same numbers?
:func:`make_apps` gives the pair for an experiment, :func:`simulate_federation` runs it in a simulation; ``server_app``
and ``client_app`` are the pair that ``flwr run`` starts, with the experiment in the run's configuration. Nothing is
learned twice: the plan says who works, a client is :func:`fedprox_lib.simulation.sequential` and
:func:`fedprox_lib.simulation.reply_of`, the server is :func:`fedprox_lib.simulation.aggregate`.

What a network adds is in :mod:`fedprox_lib.flower.strategy`. A node hosts many clients: client k lives on the node
whose partition-id is k modulo their number, and gets its jobs in the one message per round that the node is sent.
Taught in "The same numbers on a real federation". Layer: flower (network).
"""

import logging
import os
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Flower reads these when it is imported: no telemetry, no question for updates, no packages fetched for a run.
for name, value in {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # or Ray prints a warning
}.items():
    os.environ.setdefault(name, value)

# ruff: noqa: E402 (imports below, for that reason)
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod
from flwr.serverapp import Grid, ServerApp

from fedprox_lib import simulation
from fedprox_lib.engine import use_threads
from fedprox_lib.flower.strategy import OnRound, PlannedStrategy, federation_of_run, params_of, require_one_exchange
from fedprox_lib.plan import ClientWork, client_order
from fedprox_lib.simulation import Backend, Job, State
from fedprox_lib.sweeps.checkpoint import load_checkpoint, save_checkpoint
from fedprox_lib.sweeps.experiment import Experiment, from_settings

ROUND_SECONDS = 600.0
"""The longest a round waits for its nodes, and the first one for all of them to appear."""


def _nothing(state: State, row: dict[str, Any]) -> None:
    """What happens after a round if nobody asks for more."""


def make_apps(
    experiment: Experiment | None = None,
    *,
    backend: Backend = simulation.sequential,
    mods: Sequence[Mod] = (),
    on_round: OnRound = _nothing,
    output: Path | None = None,
    keep_rounds: bool = False,
    round_seconds: float = ROUND_SECONDS,
) -> tuple[ServerApp, ClientApp]:
    """The pair of apps that runs an experiment.

    Args:
        experiment: what to run; None to read it from each run's configuration (``[tool.flwr.app.config]``).
        backend: who does a client's jobs.
        mods: Flower's hooks around the ClientApp, which see its messages and replies.
        on_round: called after every round with the state and a row: the round, how many clients' replies were used
            (``used``) and asked for (``asked``), the ``problems`` in words, ``seconds`` of the round,
            ``client_seconds`` (the sum of what its nodes computed), and test loss and accuracy where measured.
        output: a folder that keeps the state after the last round; a run of the same experiment goes on from there.
            What clients remember stays with the nodes of a run, so SCAFFOLD cannot go on.
        keep_rounds: whether the folder keeps the states of all rounds.
        round_seconds: bound of every wait.

    Raises:
        ValueError: for experiments that need more of the server than one exchange a round: an algorithm that asks for
            gradients first (FedDane) or follows the training loss (AdaptiveFedProx), and sampling by size.
    """
    if experiment:
        require_one_exchange(experiment)
    server, client = ServerApp(), ClientApp(mods=list(mods))

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        config: dict[str, Any] = dict(context.run_config)
        e = experiment or from_settings(config)
        folder = config.get("output") or output
        state, write = _kept(e, Path(folder), config.get("keep_rounds", keep_rounds)) if folder else (None, _nothing)

        def after_round(state: State, row: dict[str, Any]) -> None:
            write(state, row)
            on_round(state, row)

        with use_threads(1):
            seconds = float(config.get("round_seconds", round_seconds))
            PlannedStrategy(e, state, after_round, seconds).start(grid)

    @client.query("whoami")
    def whoami(message: Message, context: Context) -> Message:
        place = {name: int(context.node_config[name]) for name in ("partition-id", "num-partitions")}
        return Message(RecordDict({"place": MetricRecord(place)}), reply_to=message)

    @client.train()
    def train(message: Message, context: Context) -> Message:
        with use_threads(1):
            return _train(message, context, experiment or from_settings(context.run_config), backend)

    return server, client


def simulate_federation(experiment: Experiment, num_nodes: int = 10, **options: Any) -> list[tuple[State, dict]]:
    """Run an experiment in Flower's simulation and return (state, row) of every round.

    The one place that knows how a simulation is started from Python: Flower 1.41 calls ``run_simulation`` deprecated,
    and offers only the command ``flwr run`` instead.

    Args:
        experiment: what to run.
        num_nodes: over how many virtual nodes its clients are spread. Each core works for one of them at a time.
        **options: of :func:`make_apps`.

    Raises:
        FederationFailed: if it cannot go on.
    """
    # Seconds to import, and only a simulation needs it. In a notebook without widgets two warnings come with it.
    logging.getLogger("ray.widgets").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="IProgress not found")
        import ray  # noqa: F401
    from flwr.simulation import run_simulation

    rounds: list[tuple[State, dict]] = []
    then = options.pop("on_round", _nothing)

    def on_round(state: State, row: dict[str, Any]) -> None:
        rounds.append((state, row))
        then(state, row)

    ray = {"logging_level": "error", "log_to_driver": False, "include_dashboard": False, "num_cpus": os.cpu_count()}
    server, client = make_apps(experiment, on_round=on_round, **options)
    # Flower tells its story in the log, and ours is in the rows.
    log = logging.getLogger("flwr")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        run_simulation(
            server, client, num_nodes, backend_config={"client_resources": {"num_cpus": 1}, "init_args": ray}
        )
    finally:
        log.setLevel(level)
    return rounds


def _train(message: Message, context: Context, e: Experiment, backend: Backend) -> Message:
    """A node's part of a round: the jobs of the clients it hosts, one after another."""
    f, todo, started = federation_of_run(e), message.content["todo"], time.monotonic()
    w_t, server = params_of(message.content["params"]), params_of(message.content["server"])
    t, hyperparameters = todo["round"], e.algorithm.hyperparameters_at(server)
    records, sent, notes = RecordDict(), {}, {}
    for k, num_steps, remembered in zip(todo["clients"], todo["num-steps"], todo["remembered"], strict=True):
        rows = f.partition.rows[k]
        # The client draws its own batches: they are a function of (seed, round, client).
        order, sizes = client_order(e.seed, t, k, rows, epochs=e.work.epochs, batch_size=e.work.batch_size)
        order, sizes = order[: sizes[:num_steps].sum()], sizes[:num_steps]
        memory = e.algorithm.init_memory(w_t)
        if memory and remembered:
            if context.state.get(f"round {k}", {}).get("round") == remembered:
                memory = params_of(context.state[f"memory {k}"])
            else:
                notes[str(k)] = f"what it remembers is not of round {remembered}, the last that counted; it began anew"
        job = Job(
            w_t, ClientWork(k, False, len(rows), order, sizes), e.work.lr, e.algorithm, hyperparameters, server, memory
        )
        try:
            [w] = backend(f.model, f.train, [job])
            reply, memory = simulation.reply_of(job, w)
        except Exception as error:  # one client's failure is not its neighbours'
            notes[str(k)] = f"{type(error).__name__}: {error}"
            continue
        sent[k] = reply.num_examples
        records[f"delta {k}"], records[f"extra {k}"] = ArrayRecord(reply.delta), ArrayRecord(reply.extra)
        if memory:
            context.state[f"memory {k}"] = ArrayRecord(memory)
            context.state[f"round {k}"] = MetricRecord({"round": t})
    seconds = time.monotonic() - started
    records["work"] = MetricRecord({"clients": list(sent), "num-examples": list(sent.values()), "seconds": seconds})
    records["notes"] = ConfigRecord(notes)
    return Message(records, reply_to=message)


def _kept(e: Experiment, folder: Path, keep_rounds: bool) -> tuple[State | None, OnRound]:
    """Where a run that writes into a folder goes on, and how it writes its rounds there."""
    folder.mkdir(parents=True, exist_ok=True)

    def path_of(t: int) -> Path:
        return folder / f"{e.id}-{t:05d}.safetensors"

    found = sorted(folder.glob(f"{e.id}-*.safetensors"))
    run = load_checkpoint(found[-1] if found else path_of(0))

    def write(state: State, row: dict[str, Any]) -> None:
        run.rows.append(row)
        before, run.path, run.state = run.path, path_of(state.round), state
        save_checkpoint(run, 0.0)
        if not keep_rounds:
            before.unlink(missing_ok=True)

    return run.state, write


# One name an assignment: `flwr run` looks for them in the syntax tree, and does not see a tuple's.
_apps = make_apps()
server_app = _apps[0]
client_app = _apps[1]
