"""Many runs in lockstep: the jobs of all of them go to the backend at once, and one pass measures them all.

:func:`together` trains experiments; :func:`follow` is the same for a single one. The loop of one run on plain objects
is :func:`fedprox_lib.simulation.simulate`; the tests hold this one to it. Taught in "Fast enough to sweep".
Layer: sweeps (PyTorch).
"""

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from fedprox_lib import simulation, tree
from fedprox_lib.federation import Gradients
from fedprox_lib.simulation import Backend, State
from fedprox_lib.sweeps.experiment import Experiment
from fedprox_lib.sweeps.federations import PreparedFederation, federation_of, federations_of, measure_together
from fedprox_lib.tree import Params


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


def follow(
    experiment: Experiment,
    *,
    backend: Backend = simulation.sequential,
    device: str = "cpu",
    federation: PreparedFederation | None = None,
    state: State | None = None,
) -> Iterator[tuple[State, dict[str, float]]]:
    """Run one experiment round by round.

    Args:
        experiment: what to run.
        backend: who does the jobs.
        device: where the tensors lie.
        federation: a prepared federation, to share data between runs or to bring another planner.
        state: where to go on from; None to start at round 0.

    Yields:
        (state, measurements) as :func:`fedprox_lib.simulation.simulate` does.
    """
    federations = [federation or federation_of(experiment, device)]
    for done in together([experiment], backend=backend, device=device, federations=federations, states=[state]):
        yield done.state, done.measured


def together(
    experiments: Sequence[Experiment],
    *,
    backend: Backend = simulation.sequential,
    device: str = "cpu",
    federations: Sequence[PreparedFederation] | None = None,
    states: Sequence[State | None] | None = None,
) -> Iterator[Progress]:
    """Train several runs in lockstep: the backend gets the jobs of all of them at once.

    Args:
        experiments: the runs; those that share a model and a training set go to the backend together.
        backend: who does the jobs.
        device: where the tensors lie.
        federations: prepared ones, to share data between calls or to bring other planners.
        states: where each run goes on from; None to start at round 0. Runs that are behind catch up first.

    Yields:
        every run after round 0 (unless resumed) and after each of its rounds. A run ends early when a weight stops
        being finite: its last state says in which round.
    """
    prepared = federations or federations_of(experiments, device)
    runs = list(zip(experiments, prepared, strict=True))
    given = states or [None] * len(runs)
    fresh = [i for i, state in enumerate(given) if state is None]
    reached = {i: state for i, state in enumerate(given) if state is not None}
    for i in fresh:
        e, f = runs[i]
        reached[i] = simulation.initial_state(f.model, e.algorithm, e.seed, device)
    for i, progress in zip(fresh, _measured([(*runs[i], reached[i]) for i in fresh]), strict=True):
        reached[i] = progress.state
        yield progress
    going = {i for i, state in reached.items() if state.round < runs[i][0].rounds}
    while going:
        last = min(reached[i].round for i in going)
        due = [i for i in sorted(going) if reached[i].round == last]
        after = _one_round([(*runs[i], reached[i]) for i in due], backend)
        for i, progress in zip(due, _measured([(*runs[i], s) for i, s in zip(due, after, strict=True)]), strict=True):
            reached[i] = progress.state
            if progress.state.round == progress.experiment.rounds or not progress.finite:
                going.remove(i)
            yield progress


_Run = tuple[Experiment, PreparedFederation, State]


def _one_round(runs: Sequence[_Run], backend: Backend) -> list[State]:
    """The states after the next round, which is the same for all."""
    jobs = [
        simulation.round_jobs(
            state,
            f.planner.round_plan(state.round + 1),
            e.algorithm,
            e.work.lr,
            Gradients(f.model, f.train, f.partition, e.seed),
        )
        for e, f, state in runs
    ]
    ends: dict[int, list[Params]] = {}
    while left := [i for i in range(len(runs)) if i not in ends]:  # runs of one model on the same rows are one program
        some = runs[left[0]][1]
        alike = [i for i in left if runs[i][1].train.x is some.train.x and runs[i][1].model == some.model]
        done = iter(backend(some.model, some.train, [job for i in alike for job in jobs[i]]))
        ends |= {i: [next(done) for _ in jobs[i]] for i in alike}
    return [
        simulation.conclude(state, state.round + 1, own, ends[i], e.algorithm, f.partition.num_clients)
        for i, (own, (e, f, state)) in enumerate(zip(jobs, runs, strict=True))
    ]


def _measured(runs: Sequence[_Run]) -> Iterator[Progress]:
    """Measure what is due, all runs with the same rows in one go."""
    finite = [tree.all_finite(state.params) for _, _, state in runs]
    alike: dict[tuple, list[int]] = {}
    for i, (e, f, state) in enumerate(runs):
        due = state.round % e.evaluation.every == 0 or state.round == e.rounds
        if due and finite[i]:
            alike.setdefault(
                (id(f.sampled), id(f.test.x), id(f.partition), id(f.model.shapes), e.evaluation), []
            ).append(i)
    measured: dict[int, tuple[dict[str, float], float]] = {}
    for members in alike.values():
        started = time.perf_counter()
        e, f, _ = runs[members[0]]
        values = measure_together([runs[i][2].params for i in members], f, e.evaluation.gradients)
        share = (time.perf_counter() - started) / len(members)
        measured |= {i: (row, share) for i, row in zip(members, values, strict=True)}
    for i, (e, _, state) in enumerate(runs):
        row, seconds = measured.get(i, ({}, 0.0))
        state, row = simulation.observed(state, row, e.algorithm)
        yield Progress(e, state, row, seconds, finite[i])
