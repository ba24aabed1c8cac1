"""A federation in one process: rounds, clients, local steps, and nothing hidden in between.

Reading order: :func:`simulate` runs the rounds of an experiment; :func:`run_round` is one round; a *job* is what one
client gets to do in it; a *backend* does the jobs. :func:`sequential` is the definition: clients one after another,
step by step, through :func:`local_step`, the only line of local training in the library. Every faster path is tested
against it.

Taught in "The model and one client" and "FedAvg and FedProx side by side". Room: PyTorch computation; plans come in
as NumPy and become tensors here. May import all of the above but results and figures.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from fedprox_lib import data, models, tree
from fedprox_lib.algorithms import Algorithm, Reports
from fedprox_lib.data import Data, Examples
from fedprox_lib.experiment import Experiment
from fedprox_lib.models import Model
from fedprox_lib.partition import Partition
from fedprox_lib.plan import ClientWork, Planner, RoundPlan, UniformPlanner
from fedprox_lib.rng import stream
from fedprox_lib.tree import Params


class State(NamedTuple):
    """All that changes between rounds.

    Attributes:
        round: t, 0 before training.
        params: w_t.
        server: the algorithm's server memory.
        memories: client number -> that client's memory, only for clients that have some.
    """

    round: int
    params: Params
    server: Params
    memories: dict[int, Params]


class Job(NamedTuple):
    """What one client does in one round: the unit of work of every backend.

    Attributes:
        start: w_t, where it starts and what the proximal term pulls back to.
        work: its rows in their order of batches.
        lr: learning rate of its SGD.
        algorithm: whose local rule it follows.
        numbers: the algorithm's numbers.
        server: server memory that was sent along.
        memory: what this client remembers.
    """

    start: Params
    work: ClientWork
    lr: float
    algorithm: Algorithm
    numbers: dict
    server: Params
    memory: Params


Backend = Callable[[Model, Examples, Sequence[Job]], list[Params]]
"""Does jobs: returns each client's w_k after its local steps."""


def local_step(w: Params, batch: Examples, job: Job, model: Model) -> Params:
    """One SGD step of one client: w - lr * (the algorithm's direction)."""
    g = model.gradient(w, batch.x, batch.y)
    direction = job.algorithm.local_gradient(g, w, job.start, job.server, job.memory, job.numbers)
    return tree.map(lambda w, d: torch.sub(w, d, alpha=job.lr), w, direction)


def path(model: Model, train: Examples, job: Job) -> Iterator[Params]:
    """w after every local step of a job, for looking inside."""
    w = job.start
    for rows in job.work.batches():
        w = local_step(w, train.take(rows), job, model)
        yield w


def sequential(model: Model, train: Examples, jobs: Sequence[Job]) -> list[Params]:
    """The definition: one client after another, one step after another."""
    finished = []
    for job in jobs:
        w = job.start
        for w in path(model, train, job):  # noqa: B007 (the last w is the result)
            pass
        finished.append(w)
    return finished


def run_round(
    state: State,
    plan: RoundPlan,
    train: Examples,
    *,
    model: Model,
    algorithm: Algorithm,
    lr: float,
    num_clients: int,
    backend: Backend = sequential,
) -> State:
    """One round: drop stragglers if the algorithm does, train the rest, collect reports, update the server.

    An empty cohort leaves w_t unchanged. Reports are sorted by client number, so that the sum does not depend on who
    answered first.
    """
    if not algorithm.keeps_partial_work:
        plan = plan.without_stragglers()
    if not plan.cohort:
        return state._replace(round=plan.round)
    numbers = algorithm.numbers()
    jobs = [
        Job(
            state.params,
            work,
            lr,
            algorithm,
            numbers,
            state.server,
            state.memories.get(work.client) or algorithm.init_memory(state.params),
        )
        for work in sorted(plan.cohort, key=lambda work: work.client)
    ]
    memories, deltas, extras = dict(state.memories), [], []
    for job, w in zip(jobs, backend(model, train, jobs), strict=True):
        delta = tree.subtract(w, state.params)
        extra, memory = algorithm.report(delta, job.work.num_steps, lr, state.server, job.memory, numbers)
        deltas.append(delta)
        extras.append(extra)
        if memory:
            memories[job.work.client] = memory
    reports = Reports(
        tree.stack(deltas),
        tree.stack(extras),
        torch.tensor([job.work.num_examples for job in jobs], dtype=torch.float64),
        torch.tensor([job.work.num_steps for job in jobs], dtype=torch.float64),
    )
    params, server = algorithm.server_update(state.params, state.server, reports, numbers, num_clients)
    return State(plan.round, tree.map(tree.laid_out, params), server, memories)


@dataclass(frozen=True)
class Federation:
    """An experiment made concrete: tensors, partition, model, plans.

    Attributes:
        train: the federation's rows only (after ``train_rows``), on the device.
        test: the test rows that are evaluated.
        train_sample: the rows on which the training loss is taken.
        partition: rows of ``train`` by client.
        model: the model.
        planner: the plan producer; replace it to run another protocol.
        data_sha256: checksum of the data, for provenance.
    """

    train: Examples
    test: Examples
    train_sample: Examples
    partition: Partition
    model: Model
    planner: Planner
    data_sha256: str

    @classmethod
    def of(cls, experiment: Experiment, device: str = "cpu") -> "Federation":
        """Load, subset and cut the data of an experiment."""
        loaded: Data = data.load(experiment.data, experiment.normalisation)
        train = loaded.train
        if experiment.train_rows is not None:
            if experiment.train_rows > len(train.y):
                raise ValueError(
                    f"train_rows must be at most {len(train.y)}, the training rows of {experiment.data}, "
                    f"got {experiment.train_rows}."
                )
            train = train.take(_subset(experiment.data_seed, "subset", len(train.y), experiment.train_rows))
        partition = experiment.partition.split(train.labels, data_seed=experiment.data_seed)
        planner = UniformPlanner(
            partition,
            experiment.work,
            experiment.seed,
            experiment.cohort_size,
            experiment.straggler_fraction,
            experiment.straggler_epochs,
        )
        rows = experiment.evaluation.train_rows
        held = np.sort(np.concatenate(partition.rows))
        sample = held[_subset(experiment.data_seed, "train sample", len(held), rows)]
        test = loaded.test.take(
            _subset(experiment.data_seed, "test sample", len(loaded.test.y), experiment.evaluation.test_rows)
        )
        place = lambda e: Examples(e.x.to(device), e.y.to(device))  # noqa: E731
        return cls(
            place(train),
            place(test),
            place(train.take(sample)),
            partition,
            models.get(experiment.model),
            planner,
            loaded.sha256,
        )


def _subset(seed: int, name: str, available: int, wanted: int | None) -> np.ndarray:
    """``wanted`` of the numbers below ``available``, sorted; all of them if None or more than there are."""
    if wanted is None or wanted >= available:
        return np.arange(available)
    return np.sort(stream(seed, name).permutation(available)[:wanted])


def initial_state(experiment: Experiment, device: str = "cpu") -> State:
    """Round 0: the seeded weights and empty memories."""
    params = models.get(experiment.model).init(experiment.seed)
    params = tree.map(lambda w: tree.laid_out(w.to(device)), params)
    return State(0, params, experiment.algorithm.init_server(params), {})


def measure(state: State, federation: Federation) -> dict[str, float]:
    """The measurements of a round; ``results.COLUMNS`` says what each one is."""
    train_loss, _ = federation.model.loss_and_correct(state.params, *federation.train_sample, chunk=100)
    test_loss, correct = federation.model.loss_and_correct(state.params, *federation.test, chunk=100)
    return {
        "train_loss": float(train_loss.mean()),
        "test_loss": float(test_loss.mean()),
        "test_accuracy": float(correct.double().mean()),
    }


def simulate(
    experiment: Experiment,
    *,
    backend: Backend = sequential,
    device: str = "cpu",
    federation: Federation | None = None,
    state: State | None = None,
) -> Iterator[tuple[State, dict[str, float]]]:
    """Run an experiment round by round.

    Args:
        experiment: what to run.
        backend: who does the jobs.
        device: where the tensors lie.
        federation: a prepared federation, to share data between runs or to bring another plan producer.
        state: where to go on from; None to start at round 0.

    Yields:
        (state, measurements) after round 0 (unless resumed) and after every round; the measurements are empty in
        rounds that ``experiment.evaluation`` skips. The iteration ends early when a weight stops being finite: the
        last state says in which round.
    """
    federation = federation or Federation.of(experiment, device)
    if state is None:
        state = initial_state(experiment, device)
        yield state, measure(state, federation)
    for t in range(state.round + 1, experiment.rounds + 1):
        state = run_round(
            state,
            federation.planner.round_plan(t),
            federation.train,
            model=federation.model,
            algorithm=experiment.algorithm,
            lr=experiment.work.lr,
            num_clients=federation.partition.num_clients,
            backend=backend,
        )
        if not tree.all_finite(state.params):
            yield state, {}
            return
        due = t % experiment.evaluation.every == 0 or t == experiment.rounds
        yield state, measure(state, federation) if due else {}


def one_client(
    experiment: Experiment, client: int, *, federation: Federation | None = None, state: State | None = None
) -> tuple[Federation, Job]:
    """A single client's job in the first round, for chapters that look inside local training.

    Args:
        experiment: its partition, work, model and algorithm are used.
        client: which client, whether or not it is in the cohort.
    """
    federation = federation or Federation.of(experiment)
    state = state or initial_state(experiment)
    everyone = UniformPlanner(
        federation.partition, experiment.work, experiment.seed, federation.partition.num_clients, 0.0
    )
    work = next(work for work in everyone.round_plan(state.round + 1).cohort if work.client == client)
    algorithm = experiment.algorithm
    job = Job(
        state.params, work, experiment.work.lr, algorithm, algorithm.numbers(), state.server,
        algorithm.init_memory(state.params),
    )  # fmt: skip
    return federation, job


def with_algorithm(job: Job, algorithm: Algorithm) -> Job:
    """The same job under another algorithm: same start, same rows, same batches."""
    return job._replace(algorithm=algorithm, numbers=algorithm.numbers())
