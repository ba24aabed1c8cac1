"""The fast path: the jobs of many clients, of one run or of a whole sweep, trained as one batched program.

Which question this answers: *how can a sweep cost minutes?* Read it top to bottom:

1. Jobs that follow the same rule and visit the same rows in the same order form a *unit*: the arms of a comparison
   meet the same clients and batches (the paper's protocol, section 5.1), so a batch is fetched once and multiplied
   with the weights of all of them together.
2. Units of equal width are sorted by their number of steps and cut into *chunks* whose weights stay in the cache.
   Those of a chunk that still train at step s are a prefix, so nobody computes a step that is thrown away.
3. A chunk takes its steps: one gradient for all, the algorithm's rule on stacked tensors, one update in place.

The numbers are those of :func:`fedprox_lib.simulate.sequential` up to rounding; ``tests/test_engine.py`` holds every
algorithm to it. Taught in "Fast enough to sweep". Room: PyTorch computation. May import simulate and what it stands on.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedprox_lib import simulate
from fedprox_lib.algorithms import Algorithm
from fedprox_lib.data import Examples
from fedprox_lib.models import Model
from fedprox_lib.simulate import Job
from fedprox_lib.tree import Params

CHUNK_BYTES = {"cpu": 1 << 20, "cuda": 1 << 30}
"""Weights trained side by side, by device.

On a CPU they should stay in the second-level cache: measured, 1 MiB (33 logistic regressions of 784 features) gives
the most steps a second. A CNN is larger than that, so it is trained one client at a time, which measurement favours
too: on a CPU its convolutions gain nothing from being batched over clients.
"""

SEGMENT = 256
"""So many steps are laid out at a time, which bounds memory where one client needs 20,000 steps a round."""


def batched(model: Model, train: Examples, jobs: Sequence[Job]) -> list[Params]:
    """Do the jobs, many at a time: the same as :func:`simulate.sequential` up to rounding."""
    size = sum(w.numel() * w.element_size() for w in jobs[0].start.values()) if jobs else 1
    most = jobs_at_once(size, train.y.device.type)
    ends: list[Params] = [{}] * len(jobs)
    for units in chunks(jobs, most):
        for numbers, trained in zip(
            units, train_chunk(model, train, [[jobs[i] for i in u] for u in units]), strict=True
        ):
            for i, w in zip(numbers, trained, strict=True):
                ends[i] = w
    return ends


BACKENDS = {"sequential": simulate.sequential, "batched": batched}
"""Who does the jobs, by name."""

DEFAULT = "batched"


def jobs_at_once(parameter_bytes: int, device: str) -> int:
    """How many clients' models of that size train side by side in one chunk."""
    return max(1, CHUNK_BYTES[device.partition(":")[0]] // parameter_bytes)


def chunks(jobs: Sequence[Job], most: int) -> Iterator[list[list[int]]]:
    """Cut jobs into chunks: lists of units of equal width, longest work first, at most ``most`` jobs in all.

    A unit is a list of positions in ``jobs``.
    """
    units: dict[tuple, list[int]] = {}
    for i, job in enumerate(jobs):
        # The very same array, not an equal one: planners that share their draws hand out one array.
        units.setdefault((type(job.algorithm), id(job.work.order), job.work.num_steps), []).append(i)
    by_width: dict[tuple[type[Algorithm], int], list[list[int]]] = {}
    for (rule, _, _), members in units.items():
        for part in np.array_split(members, -(-len(members) // most)):
            by_width.setdefault((rule, len(part)), []).append(part.tolist())
    for (_, width), alike in by_width.items():
        alike.sort(key=lambda unit: -jobs[unit[0]].work.num_steps)
        height = max(1, most // width)
        for first in range(0, len(alike), height):
            yield alike[first : first + height]


def train_chunk(model: Model, train: Examples, units: list[list[Job]]) -> list[list[Params]]:
    """Train u units of m jobs each; axes are always (unit, job, ...)."""
    jobs = [job for unit in units for job in unit]
    w_t = _stacked([job.start for job in jobs], len(units))
    server, memory = (
        _stacked([{name: t for name, t in tree.items() if name in w_t} for tree in trees], len(units))
        for trees in ([job.server for job in jobs], [job.memory for job in jobs])
    )
    w = {name: t.clone() for name, t in w_t.items()}
    some = next(iter(w.values()))
    column = lambda values: torch.tensor(values, dtype=some.dtype, device=some.device).view(some.shape[:2])  # noqa: E731
    lr = column([job.lr for job in jobs])
    numbers = {key: column([job.numbers[key] for job in jobs]) for key in jobs[0].numbers}
    rule = jobs[0].algorithm.local_gradient

    def first(active: int, name: str) -> tuple:
        """What the update of a parameter needs of the first so many units, numbers shaped to broadcast."""
        wide = lambda c: c[:active].view(active, -1, *[1] * (w[name].dim() - 2))  # noqa: E731
        trees = [{name: tree[name][:active]} if name in tree else {} for tree in (w, w_t, server, memory)]
        return wide(lr), *trees, {key: wide(c) for key, c in numbers.items()}

    active = 0
    for step in _schedule([unit[0] for unit in units], some):
        if step.active != active:  # some units are done: go on with a shorter prefix
            active = step.active
            now = {name: first(active, name) for name in w}
            w_now = {name: t[:active] for name, t in w.items()}
        shape, rows = step.rows.shape, step.rows.flatten()
        x, y = train.x.index_select(0, rows).unflatten(0, shape), train.y[rows].view(shape)
        g = model.gradients_together(w_now, x, y, step.weights)
        for name, (lr_now, *operands) in now.items():
            direction = rule({name: g[name]}, *operands)
            w_now[name].addcmul_(lr_now, direction[name], value=-1)
    return [[{name: t[i, j] for name, t in w.items()} for j in range(len(unit))] for i, unit in enumerate(units)]


class Step(NamedTuple):
    """One step of a chunk: how many units still train, on which rows (a, b), weighted how (a, b)."""

    active: int
    rows: Tensor
    weights: Tensor


def _schedule(jobs: list[Job], like: Tensor) -> Iterator[Step]:
    """The steps of a chunk, from one job of each unit, longest first.

    A batch with fewer rows than others of its step is filled up with rows of weight 0.
    """
    num_steps = np.array([job.work.num_steps for job in jobs])
    for first in range(0, int(num_steps.max(initial=0)), SEGMENT):
        going = int((num_steps > first).sum())
        span = range(first, min(first + SEGMENT, int(num_steps[0])))
        sizes = np.zeros((len(span), going), dtype=np.int64)
        starts = np.zeros_like(sizes)
        for k, job in enumerate(jobs[:going]):
            part = job.work.batch_sizes[first : span.stop]
            sizes[: len(part), k] = part
            starts[: len(part), k] = job.work.batch_sizes[:first].sum() + np.cumsum(part) - part
        place = np.arange(sizes.max())
        inside = place < sizes[:, :, None]  # (steps, units, batch)
        rows = np.zeros(inside.shape, dtype=np.int64)
        for k, job in enumerate(jobs[:going]):
            at = np.minimum(starts[:, k, None] + place, len(job.work.order) - 1)
            rows[:, k] = job.work.order[at]
        weights = torch.from_numpy(inside / np.maximum(sizes, 1)[:, :, None]).to(like)
        placed = torch.from_numpy(rows).to(like.device)
        active = (num_steps[:, None] > np.array(span)).sum(0).tolist()
        width = [int(sizes[s, :a].max()) for s, a in enumerate(active)]
        for s, (a, b) in enumerate(zip(active, width, strict=True)):
            yield Step(a, placed[s, :a, :b], weights[s, :a, :b])


def _stacked(trees: list[Params], num_units: int) -> Params:
    """(jobs, ...) as (units, jobs a unit, ...). A single tree keeps the layout of its convolutions."""
    if len(trees) == 1:
        return {name: t[None, None] for name, t in trees[0].items()}
    return {name: torch.stack([t[name] for t in trees]).unflatten(0, (num_units, -1)) for name in trees[0]}
