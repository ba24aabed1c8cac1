"""A federation in one process: rounds, clients, local steps, and nothing hidden in between.

Reading order: :func:`simulate` runs the rounds of a federation; :func:`run_round` is one round; a *job* is what one
client gets to do in it; a *backend* does the jobs. :func:`sequential` is the definition: clients one after another,
step by step, through :func:`local_step`. The fast backend, :mod:`fedprox_lib.engine`, is tested against it.

Taught in "The model and one client" and "FedAvg and FedProx side by side". Layer: core (PyTorch; plans come in as
NumPy arrays and become tensors here).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch

from fedprox_lib import tree
from fedprox_lib.algorithms import Algorithm, Hyperparameters, Replies
from fedprox_lib.data import Examples
from fedprox_lib.federation import Federation, Gradients
from fedprox_lib.models import Model
from fedprox_lib.plan import ClientWork, LocalWork, RoundPlan, UniformPlanner
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

    def to(self, device: str) -> "State":
        """The same with its tensors on a device."""

        def place(params: Params) -> Params:
            return tree.map(lambda w: tree.laid_out(w.to(device)), params)

        memories = {client: place(memory) for client, memory in self.memories.items()}
        return State(self.round, place(self.params), place(self.server), memories)


class Job(NamedTuple):
    """What one client does in one round: the unit of work of every backend.

    Attributes:
        start: w_t, where it starts and what the proximal term pulls back to.
        work: its rows in their order of batches.
        lr: learning rate of its SGD.
        algorithm: whose local rule it follows.
        hyperparameters: the algorithm's, in this round.
        server: server memory that was sent along.
        memory: what this client remembers.
    """

    start: Params
    work: ClientWork
    lr: float
    algorithm: Algorithm
    hyperparameters: Hyperparameters
    server: Params
    memory: Params


Backend = Callable[[Model, Examples, Sequence[Job]], list[Params]]
"""Does jobs: returns each client's w_k after its local steps."""


def local_step(w: Params, batch: Examples, job: Job, model: Model) -> Params:
    """One SGD step of one client: w - lr * (the algorithm's direction)."""
    g = model.gradient(w, batch.x, batch.y)
    direction = job.algorithm.local_gradient(g, w, job.start, job.server, job.memory, job.hyperparameters)
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
    gradients: Gradients | None = None,
) -> State:
    """One round: drop stragglers if the algorithm does, train the rest, collect replies, update the server.

    ``gradients`` is for algorithms that ask clients for them first.
    """
    jobs = round_jobs(state, plan, algorithm, lr, gradients)
    return conclude(state, plan.round, jobs, backend(model, train, jobs), algorithm, num_clients)


def round_jobs(
    state: State, plan: RoundPlan, algorithm: Algorithm, lr: float, gradients: Gradients | None = None
) -> list[Job]:
    """What the clients of a round get to do, sorted by client number: the sum must not depend on who answers first.

    If the algorithm asks for gradients, they stand where memories do: g_t as the server's, grad F_k(w_t) as a client's.
    """
    if not algorithm.keeps_partial_work:
        plan = plan.without_stragglers()
    hyperparameters = algorithm.hyperparameters_at(state.server)
    server, memories = state.server, state.memories
    if algorithm.gradient_clients and plan.cohort:
        if gradients is None:
            raise ValueError(f"{type(algorithm).__name__} asks clients for gradients: pass gradients=Gradients(...).")
        server, memories = gradients.at(state.params, plan, algorithm.gradient_clients)
    return [
        Job(
            state.params,
            work,
            lr,
            algorithm,
            hyperparameters,
            server,
            memories.get(work.client) or algorithm.init_memory(state.params),
        )
        for work in sorted(plan.cohort, key=lambda work: work.client)
    ]


class Reply(NamedTuple):
    """What one client sends back.

    Attributes:
        client: its number.
        num_examples: n_k in rows.
        num_steps: tau_k, the local steps it did.
        delta: w_k - w_t.
        extra: what else its algorithm sends.
        weight: of the client in the average, as the plan says; None for n_k.
    """

    client: int
    num_examples: int
    num_steps: int
    delta: Params
    extra: Params
    weight: float | None = None


def reply_of(job: Job, w: Params) -> tuple[Reply, Params]:
    """The client's half of the end of a round: (what it sends, what it remembers)."""
    delta = tree.subtract(w, job.start)
    extra, memory = job.algorithm.reply(delta, job.work.num_steps, job.lr, job.server, job.memory, job.hyperparameters)
    work = job.work
    return Reply(work.client, work.num_examples, work.num_steps, delta, extra, work.weight), memory


def aggregate(state: State, t: int, replies: Sequence[Reply], algorithm: Algorithm, num_clients: int) -> State:
    """The server's half: replies, sorted by client number, become the state after round t; without any, w_t stays."""
    if not replies:
        return state._replace(round=t)
    weights = [reply.num_examples if reply.weight is None else reply.weight for reply in replies]
    stacked = Replies(
        tree.stack([reply.delta for reply in replies]),
        tree.stack([reply.extra for reply in replies]),
        torch.tensor([reply.num_examples for reply in replies], dtype=torch.float64),
        torch.tensor([reply.num_steps for reply in replies], dtype=torch.float64),
        torch.tensor(weights, dtype=torch.float64),
    )
    hyperparameters = algorithm.hyperparameters_at(state.server)
    params, server = algorithm.server_update(state.params, state.server, stacked, hyperparameters, num_clients)
    return state._replace(round=t, params=tree.map(tree.laid_out, params), server=server)


def conclude(
    state: State, t: int, jobs: list[Job], ends: list[Params], algorithm: Algorithm, num_clients: int
) -> State:
    """Both halves of the end of a round, where clients and server are one process."""
    done = [reply_of(job, w) for job, w in zip(jobs, ends, strict=True)]
    memories = state.memories | {reply.client: memory for reply, memory in done if memory}
    return aggregate(state._replace(memories=memories), t, [reply for reply, _ in done], algorithm, num_clients)


def initial_state(
    model: Model, algorithm: Algorithm, seed: int, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> State:
    """Round 0: the seeded weights and empty memories."""
    params = State(0, model.init(seed, dtype), {}, {}).to(device).params
    return State(0, params, algorithm.init_server(params), {})


def observed(state: State, row: dict[str, float], algorithm: Algorithm) -> tuple[State, dict[str, float]]:
    """After a measurement: an algorithm that watches the loss is told, and what it changes joins the measurements."""
    if not (row and algorithm.watches_loss):
        return state, row
    state = state._replace(server=algorithm.observe(state.server, row["train_loss"]))
    following = algorithm.hyperparameters_at(state.server)
    return state, row | {f"next_{name}": value for name, value in following.items()}


def simulate(
    federation: Federation,
    algorithm: Algorithm,
    *,
    work: LocalWork,
    rounds: int,
    seed: int,
    cohort_size: int | None = None,
    straggler_fraction: float = 0.0,
    straggler_epochs: str = "1..E",
    every: int = 1,
    backend: Backend = sequential,
    state: State | None = None,
) -> Iterator[tuple[State, dict[str, float]]]:
    """Train a federation round by round.

    Args:
        federation: data with who holds what, a model, and a planner or none.
        algorithm: what clients and server do.
        work: local epochs, batch size and learning rate of a client that has time; where the federation has a planner,
            that one decides about epochs and batches, and the learning rate alone counts here.
        rounds: T >= 1.
        seed: of initial weights, cohorts, stragglers and batches.
        cohort_size: K clients per round, in [1, N]; for a federation without a planner of its own.
        straggler_fraction: of the cohort, in [0, 1]; likewise.
        straggler_epochs: "1..E" (paper) or "1..E-1" (authors' code); likewise.
        every: measure after every that many rounds, and after the last.
        backend: who does the jobs.
        state: where to go on from; None to start at round 0.

    Yields:
        (state, measurements) after round 0 (unless resumed) and after every round; the measurements are empty in
        rounds that ``every`` skips. The iteration ends early when a weight stops being finite: the last state says in
        which round.

    Example:
        >>> from fedprox_lib import FedProx, LabelShards, data, models
        >>> train, test = data.digits()
        >>> shards = LabelShards(num_clients=50).split(train.labels, data_seed=0)
        >>> clients = Federation(train, test, shards, models.logistic())
        >>> work = LocalWork(epochs=2, batch_size=10, lr=0.03)
        >>> run = simulate(clients, FedProx(mu=0.1), work=work, rounds=3, cohort_size=10, seed=0)
        >>> [state.round for state, measured in run if measured["test_accuracy"] > 0]
        [0, 1, 2, 3]
    """
    planner = federation.planner
    if planner is None:
        if cohort_size is None:
            raise ValueError("cohort_size is needed: how many clients take part in a round (or a planner that says).")
        planner = UniformPlanner(federation.partition, work, seed, cohort_size, straggler_fraction, straggler_epochs)
    if algorithm.watches_loss and every != 1:
        raise ValueError(
            f"{type(algorithm).__name__} follows the loss from round to round, so every must be 1, got {every}."
        )
    train, model = federation.train, federation.model
    gradients = Gradients(model, train, federation.partition, seed)
    if state is None:
        state = initial_state(model, algorithm, seed, str(train.y.device), train.x.dtype)
        state, row = observed(state, federation.measure(state.params), algorithm)
        yield state, row
    while state.round < rounds and tree.all_finite(state.params):
        plan = planner.round_plan(state.round + 1)
        state = run_round(
            state,
            plan,
            train,
            model=model,
            algorithm=algorithm,
            lr=work.lr,
            num_clients=federation.partition.num_clients,
            backend=backend,
            gradients=gradients,
        )
        due = state.round % every == 0 or state.round == rounds
        row = federation.measure(state.params) if due and tree.all_finite(state.params) else {}
        state, row = observed(state, row, algorithm)
        yield state, row
