"""The fast path: the jobs of many clients, of one run or of a whole sweep, trained as one batched program.

Which question this answers: *how can a sweep cost minutes?* Read it top to bottom:

1. Jobs that visit the same rows in the same order form a *unit*: the arms of a comparison meet the same clients and
   batches (the paper's protocol, section 5.1), so a batch is fetched once and multiplied with the weights of all of
   them together. A straggler's order is the beginning of the full one, so it belongs to the same unit.
2. Units are sorted by their number of steps and cut into *chunks* whose weights stay in the cache.
3. A chunk takes its steps: one gradient for all, each algorithm's rule on stacked tensors, one update in place. Who is
   done gets learning rate 0; when a quarter is done, the others are stacked anew.

The numbers are those of :func:`fedprox_lib.simulate.sequential` up to rounding; ``tests/test_engine.py`` holds every
algorithm to it. Taught in "Fast enough to sweep". Room: PyTorch computation. May import simulate and what it stands on.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from fedprox_lib import simulate
from fedprox_lib.data import Examples
from fedprox_lib.models import Model
from fedprox_lib.simulate import Job
from fedprox_lib.tree import Params

CHUNK_BYTES = {"cpu": 1 << 20, "cuda": 1 << 30}
"""Weights trained side by side, by device.

On a CPU they should stay in the second-level cache; 1 MiB (33 logistic regressions of 784 features) gave more steps a
second than half and twice as much, in trials that are not kept. A CNN is larger than that, so it is trained one client
at a time.
"""

BATCH_BYTES = 4 << 20
"""Batches are fetched for as many steps at a time as fit into this, at least one step."""

MOST_STEPS = 256
"""And for at most so many."""

STILL_TRAINING = 0.75
"""A stack is made anew, without those that are done, when fewer than this fraction of it still train."""

Unit = list[int]
"""Jobs with one order of rows, by their position in the list of jobs."""


def batched(model: Model, train: Examples, jobs: Sequence[Job]) -> list[Params]:
    """Do the jobs, many at a time: the same as :func:`fedprox_lib.simulate.sequential` up to rounding."""
    size = sum(w.numel() * w.element_size() for w in jobs[0].start.values()) if jobs else 1
    most = jobs_at_once(size, train.y.device.type)
    packed: dict[int, Params] = {}

    def pack(tree: Params) -> Params:
        """What a local rule may read has the names of the parameters; other memory stays behind."""
        if id(tree) not in packed:
            packed[id(tree)] = model.packed(tree) if tree.keys() == model.shapes.keys() else {}
        return packed[id(tree)]

    given, jobs = jobs, [j._replace(start=pack(j.start), server=pack(j.server), memory=pack(j.memory)) for j in jobs]
    ends: list[Params] = [job.start for job in jobs]
    for units in chunks(jobs, most):
        done = 0
        while units:
            stop = _next_stack(units, jobs, done)
            _train_stack(model, train, units, jobs, ends, done, stop)
            units = [left for unit in units if (left := [i for i in unit if jobs[i].work.num_steps > stop])]
            done = stop
    return [end if job.work.num_steps else job.start for end, job in zip(ends, given, strict=True)]


BACKENDS = {"sequential": simulate.sequential, "batched": batched}
"""Who does the jobs, by name."""

DEFAULT = "batched"


def jobs_at_once(parameter_bytes: int, device: str) -> int:
    """How many clients' models of that size train side by side in one chunk."""
    return max(1, CHUNK_BYTES[device.partition(":")[0]] // parameter_bytes)


def chunks(jobs: Sequence[Job], most: int) -> Iterator[list[Unit]]:
    """Cut jobs into chunks of at most ``most`` jobs, longest work first."""
    units: dict[tuple[int, int], Unit] = {}
    for i, job in enumerate(jobs):
        if job.work.num_steps:
            # The very same array or the beginning of it: planners that share their draws hand out one.
            units.setdefault((job.work.order.ctypes.data, int(job.work.batch_sizes[0])), []).append(i)
    parts = [part.tolist() for unit in units.values() for part in np.array_split(unit, -(-len(unit) // most))]
    parts.sort(key=lambda unit: -max(jobs[i].work.num_steps for i in unit))
    chunk: list[Unit] = []
    for unit in parts:
        if chunk and (len(chunk) + 1) * max(map(len, [*chunk, unit])) > most:
            yield chunk
            chunk = []
        chunk.append(unit)
    if chunk:
        yield chunk


def _next_stack(units: list[Unit], jobs: Sequence[Job], done: int) -> int:
    """The step at which so many are done that the others are worth a stack of their own."""
    ends = np.sort([jobs[i].work.num_steps for unit in units for i in unit])
    return int(ends[min(len(ends) - 1, int((1 - STILL_TRAINING) * len(units) * max(map(len, units))))])


def _train_stack(
    model: Model, train: Examples, units: list[Unit], jobs: Sequence[Job], ends: list[Params], done: int, stop: int
) -> None:
    """Steps ``done`` to ``stop`` of a stack with axes (unit, place, ...), from ``ends`` to ``ends``.

    Each algorithm has a range of places of its own. A unit with fewer jobs of it than others has empty places there,
    filled with a job that does not move.
    """
    table, ranges = _lay_out(units, jobs)
    num_units = len(units)
    number_of = lambda what: np.array([[what(jobs[i]) for i, _ in row] for row in table])  # noqa: E731
    num_steps = number_of(lambda job: job.work.num_steps) * np.array([[real for _, real in row] for row in table])
    lr = number_of(lambda job: job.lr)

    w = {name: t.clone() for name, t in _stacked([ends[i] for row in table for i, _ in row], num_units).items()}
    some = next(iter(w.values()))
    wide = lambda a, t: torch.as_tensor(np.asarray(a, dtype=float)).to(some).view(num_units, -1, *[1] * (t.dim() - 2))  # noqa: E731
    updates: list[tuple] = []
    for places in ranges:
        own = [jobs[i] for row in table for i, _ in row[places]]
        starts = _stacked([job.start for job in own], num_units)
        server, memory = (_stacked([getattr(job, kind) for job in own], num_units) for kind in ("server", "memory"))
        for name, t in w.items():
            read = [{name: tree[name]} if tree else {} for tree in (starts, server, memory)]
            numbers = {key: wide([job.numbers[key] for job in own], t) for key in own[0].numbers}
            updates.append((own[0].algorithm.local_gradient, name, places, [{name: t[:, places]}, *read, numbers]))

    finishing = {done, *num_steps.ravel().tolist()}
    longest = [max((jobs[i] for i in unit), key=lambda job: job.work.num_steps) for unit in units]
    for s, (x, y, weights) in enumerate(_batches(model, train, longest, done, stop), done):
        if s in finishing:  # who is done has learning rate 0 from now on; units that are done leave at the end
            training = num_steps > s
            first = slice(int(training.any(axis=1).sum()))
            cut = lambda tree: {name: t[first] for name, t in tree.items()}  # noqa: B023, E731
            rates = [wide(lr * training, w[name])[first, places] for _, name, places, _ in updates]
            now = [(rule, name, places, [cut(tree) for tree in trees]) for rule, name, places, trees in updates]
            w_now = cut(w)
        g = model.gradients_together(w_now, x[first], y[first], weights[first])
        for (rule, name, places, trees), rate in zip(now, rates, strict=True):
            direction = rule({name: g[name][:, places]}, *trees)
            trees[0][name].addcmul_(rate, direction[name], value=-1)

    for u, row in enumerate(table):
        for place, (i, real) in enumerate(row):
            if real:
                ends[i] = {name: t[u, place] for name, t in w.items()}
                if jobs[i].work.num_steps <= stop:
                    ends[i] = model.unpacked(ends[i])


def _lay_out(units: list[Unit], jobs: Sequence[Job]) -> tuple[list[list[tuple[int, bool]]], list[slice]]:
    """Rows of (job, whether it really stands here) for the units, and the range of places of each algorithm."""
    table: list[list[tuple[int, bool]]] = [[] for _ in units]
    ranges = []
    for algorithm in dict.fromkeys(type(jobs[i].algorithm) for unit in units for i in unit):
        own = [[i for i in unit if type(jobs[i].algorithm) is algorithm] for unit in units]
        width, anybody = max(map(len, own)), next(i for row in own for i in row)
        ranges.append(slice(len(table[0]), len(table[0]) + width))
        for row, mine in zip(table, own, strict=True):
            row += [(i, True) for i in mine] + [(anybody, False)] * (width - len(mine))
    return table, ranges


def _batches(
    model: Model, train: Examples, longest: list[Job], done: int, stop: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """x (u, b, ...), y and weights (u, b) of steps ``done`` to ``stop``, from the job with most steps of each unit.

    A batch with fewer rows than others of its step, or none, is filled up with rows of weight 0. Some steps are fetched
    at a time.
    """
    row_bytes = train.x[0].numel() * train.x.element_size()
    largest = sum(int(job.work.batch_sizes.max()) for job in longest) * row_bytes
    at_a_time = max(1, min(MOST_STEPS, BATCH_BYTES // largest))
    all_starts = [job.work.starts for job in longest]
    for begin in range(done, stop, at_a_time):
        span = slice(begin, min(begin + at_a_time, stop))
        sizes = np.zeros((span.stop - begin, len(longest)), dtype=np.int64)
        starts = np.zeros_like(sizes)
        for u, job in enumerate(longest):
            part = job.work.batch_sizes[span]
            sizes[: len(part), u] = part
            starts[: len(part), u] = all_starts[u][begin : begin + len(part)]
        place = np.arange(sizes.max())
        inside = place < sizes[:, :, None]  # (steps, units, batch)
        at = np.where(inside, starts[:, :, None] + place, 0)
        rows = torch.from_numpy(np.stack([job.work.order[at[:, u]] for u, job in enumerate(longest)], axis=1))
        weights = torch.from_numpy(inside / np.maximum(sizes, 1)[:, :, None]).to(train.x)
        placed = rows.flatten().to(train.y.device)
        x = model.packed_rows(train.x.index_select(0, placed)).unflatten(0, rows.shape)
        y = train.y.index_select(0, placed).view(rows.shape)
        for s, width in enumerate(sizes.max(axis=1).tolist()):
            yield x[s, :, :width], y[s, :, :width], weights[s, :, :width]


def _stacked(trees: list[Params], num_units: int) -> Params:
    """(jobs, ...) as (units, places, ...). A single tree keeps the layout of its convolutions."""
    if len(trees) == 1:
        return {name: t[None, None] for name, t in trees[0].items()}
    return {name: torch.stack([t[name] for t in trees]).unflatten(0, (num_units, -1)) for name in trees[0]}
