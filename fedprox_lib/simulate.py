"""A federation in one process: rounds, clients, local steps, and nothing hidden in between.

Reading order: :func:`simulate` runs the rounds of an experiment, :func:`together` those of many in lockstep;
:func:`run_round` is one round; a *job* is what one client gets to do in it; a *backend* does the jobs.
:func:`sequential` is the definition: clients one after another, step by step, through :func:`local_step`. The fast
backend, :mod:`fedprox_lib.engine`, is tested against it.

Taught in "The model and one client" and "FedAvg and FedProx side by side". Room: PyTorch computation; plans come in
as NumPy and become tensors here. May import all of the above but results and figures.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch

from fedprox_lib import models, tree
from fedprox_lib.algorithms import Algorithm, Reports
from fedprox_lib.data import Examples
from fedprox_lib.experiment import Experiment
from fedprox_lib.federation import Federation, Gradients, measure, prepare
from fedprox_lib.models import Model
from fedprox_lib.plan import ClientWork, RoundPlan, UniformPlanner
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
    gradients: Gradients | None = None,
) -> State:
    """One round: drop stragglers if the algorithm does, train the rest, collect reports, update the server.

    ``gradients`` is for algorithms that ask clients for them first (FedDane).
    """
    jobs = round_jobs(state, plan, algorithm, lr, gradients)
    return _conclude(state, plan.round, jobs, backend(model, train, jobs), algorithm, num_clients)


def round_jobs(
    state: State, plan: RoundPlan, algorithm: Algorithm, lr: float, gradients: Gradients | None = None
) -> list[Job]:
    """What the clients of a round get to do, sorted by client number: the sum must not depend on who answers first.

    If the algorithm asks for gradients, they stand where memories do: g_t as the server's, grad F_k(w_t) as a client's.
    """
    if not algorithm.keeps_partial_work:
        plan = plan.without_stragglers()
    numbers = algorithm.numbers_at(state.server)
    server, memories = state.server, state.memories
    if algorithm.asks_gradients and plan.cohort:
        if gradients is None:
            raise ValueError(f"{type(algorithm).__name__} asks clients for gradients: pass gradients=Gradients(...).")
        server, memories = gradients.at(state.params, plan, numbers["gradient_clients"])
    return [
        Job(
            state.params,
            work,
            lr,
            algorithm,
            numbers,
            server,
            memories.get(work.client) or algorithm.init_memory(state.params),
        )
        for work in sorted(plan.cohort, key=lambda work: work.client)
    ]


class Reply(NamedTuple):
    """What one client sends back.

    Attributes:
        client: its number.
        num_examples: its weight, n_k in rows (or how often it was drawn, where clients are drawn by size).
        num_steps: tau_k, the local steps it did.
        delta: w_k - w_t.
        extra: what else its algorithm sends.
    """

    client: int
    num_examples: int
    num_steps: int
    delta: Params
    extra: Params


def reply_of(job: Job, w: Params) -> tuple[Reply, Params]:
    """The client's half of the end of a round: (what it sends, what it remembers)."""
    delta = tree.subtract(w, job.start)
    extra, memory = job.algorithm.report(delta, job.work.num_steps, job.lr, job.server, job.memory, job.numbers)
    return Reply(job.work.client, job.work.num_examples, job.work.num_steps, delta, extra), memory


def aggregate(state: State, t: int, replies: Sequence[Reply], algorithm: Algorithm, num_clients: int) -> State:
    """The server's half: replies, sorted by client number, become the state after round t. None leave w_t unchanged."""
    if not replies:
        return state._replace(round=t)
    reports = Reports(
        tree.stack([reply.delta for reply in replies]),
        tree.stack([reply.extra for reply in replies]),
        torch.tensor([reply.num_examples for reply in replies], dtype=torch.float64),
        torch.tensor([reply.num_steps for reply in replies], dtype=torch.float64),
    )
    numbers = algorithm.numbers_at(state.server)
    params, server = algorithm.server_update(state.params, state.server, reports, numbers, num_clients)
    return state._replace(round=t, params=tree.map(tree.laid_out, params), server=server)


def _conclude(
    state: State, t: int, jobs: list[Job], ends: list[Params], algorithm: Algorithm, num_clients: int
) -> State:
    """Both halves, where clients and server are one process."""
    done = [reply_of(job, w) for job, w in zip(jobs, ends, strict=True)]
    memories = state.memories | {reply.client: memory for reply, memory in done if memory}
    return aggregate(state._replace(memories=memories), t, [reply for reply, _ in done], algorithm, num_clients)


def initial_state(experiment: Experiment, device: str = "cpu", model: Model | None = None) -> State:
    """Round 0: the seeded weights and empty memories."""
    params = (model or models.get(experiment.model)).init(experiment.seed)
    params = tree.map(lambda w: tree.laid_out(w.to(device)), params)
    return State(0, params, experiment.algorithm.init_server(params), {})


class Progress(NamedTuple):
    """One run after one round.

    Attributes:
        experiment: which run.
        state: its state.
        measured: the measurements, empty in rounds that its evaluation skips.
        seconds_measuring: what they cost, this run's share.
        finite: whether all weights are finite numbers; a run ends where they are not.
    """

    experiment: Experiment
    state: State
    measured: dict[str, float]
    seconds_measuring: float
    finite: bool


def together(
    experiments: Sequence[Experiment],
    *,
    backend: Backend = sequential,
    device: str = "cpu",
    federations: Sequence[Federation] | None = None,
    states: Sequence[State | None] | None = None,
) -> Iterator[Progress]:
    """Train several runs in lockstep: the backend gets the jobs of all of them at once.

    Args:
        experiments: runs of one model and one batch size.
        backend: who does the jobs.
        device: where the tensors lie.
        federations: prepared ones, to share data between calls or to bring other plan producers.
        states: where each run goes on from; None to start at round 0. Runs that are behind catch up first.

    Yields:
        every run after round 0 (unless resumed) and after each of its rounds. A run ends early when a weight stops
        being finite: its last state says in which round.
    """
    given = federations or prepare(experiments, device)
    given_states = states or [None] * len(experiments)
    runs = list(zip(experiments, given, strict=True))
    fresh = [(i, initial_state(e, device, f.model)) for i, (e, f) in enumerate(runs) if given_states[i] is None]
    now = {i: s for i, s in enumerate(given_states) if s is not None} | dict(fresh)
    for (i, _), progress in zip(fresh, _measured([(runs[i], s) for i, s in fresh]), strict=True):
        now[i] = progress.state
        yield progress
    going = {i for i, s in now.items() if s.round < runs[i][0].rounds}
    while going:
        t = 1 + min(now[i].round for i in going)
        due = [i for i in sorted(going) if now[i].round == t - 1]
        jobs = []
        for e, f, state in ((*runs[i], now[i]) for i in due):
            gradients = Gradients(f.model, f.train, f.partition, e.seed)
            jobs.append(round_jobs(state, f.planner.round_plan(t), e.algorithm, e.work.lr, gradients))
        ends = iter(backend(runs[due[0]][1].model, runs[due[0]][1].train, [job for part in jobs for job in part]))
        for i, part in zip(due, jobs, strict=True):
            e, f = runs[i]
            now[i] = _conclude(now[i], t, part, [next(ends) for _ in part], e.algorithm, f.partition.num_clients)
        for i, progress in zip(due, _measured([(runs[i], now[i]) for i in due]), strict=True):
            now[i] = progress.state
            if t == progress.experiment.rounds or not progress.finite:
                going.remove(i)
            yield progress


def _measured(done: list[tuple[tuple[Experiment, Federation], State]]) -> Iterator[Progress]:
    """Measure what is due, all runs with the same rows in one go."""
    finite = [tree.all_finite(state.params) for _, state in done]
    groups: dict[tuple, list[int]] = {}
    for i, ((e, f), state) in enumerate(done):
        due = state.round % e.evaluation.every == 0 or state.round == e.rounds
        if due and finite[i]:
            groups.setdefault((id(f.sampled), id(f.test.x), id(f.partition), e.evaluation), []).append(i)
    measured: dict[int, tuple[dict[str, float], float]] = {}
    for members in groups.values():
        started = time.perf_counter()
        (e, f), _ = done[members[0]]
        values = measure([done[i][1].params for i in members], f, e.evaluation.gradients)
        share = (time.perf_counter() - started) / len(members)
        measured |= {i: (row, share) for i, row in zip(members, values, strict=True)}
    for i, ((e, _), state) in enumerate(done):
        row, seconds = measured.get(i, ({}, 0.0))
        if row and e.algorithm.watches_loss:
            state = state._replace(server=e.algorithm.observe(state.server, row["train_loss"]))
            row |= {"next_mu": e.algorithm.numbers_at(state.server)["mu"]}
        yield Progress(e, state, row, seconds, finite[i])


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
    federations = [federation or Federation.of(experiment, device)]
    for done in together([experiment], backend=backend, device=device, federations=federations, states=[state]):
        yield done.state, done.measured


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
