"""The fast path: the jobs of many clients, of one run or of a whole sweep, trained as one batched program.

How a sweep comes to cost minutes. Read it top to bottom:

1. Jobs that visit the same rows in the same order form a *group*: the arms of a comparison meet the same clients and
   batches (the paper's protocol, section 5.1), so a batch is fetched once and multiplied with the weights of all of
   them together. A straggler's order is the beginning of the full one, so it belongs to the same group.
2. Groups are sorted by their number of steps and cut into *stacks*, the jobs that train side by side, whose weights
   stay in the cache. A stack is a table: groups down, slots across.
3. A stack takes its steps: one gradient for all, each algorithm's rule on stacked tensors, one update in place. A job
   that is finished gets learning rate 0; when a quarter is finished, the others are stacked anew.

The numbers are those of :func:`fedprox_lib.simulation.sequential` up to rounding; ``tests/test_engine.py`` holds every
algorithm to it. Taught in "Fast enough to sweep". Layer: core (PyTorch).
"""

import contextlib
import ctypes
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap

from fedprox_lib import simulation, tree
from fedprox_lib.algorithms import Algorithm
from fedprox_lib.data import Examples
from fedprox_lib.models import Model
from fedprox_lib.partition import Partition
from fedprox_lib.plan import ClientWork
from fedprox_lib.simulation import Job
from fedprox_lib.tree import Params

STACK_BYTES = {"cpu": 1 << 20, "cuda": 1 << 30}
"""Weights trained side by side, by device.

On a CPU they should stay in the second-level cache; 1 MiB (33 logistic regressions of 784 features) gave more steps per
second than half and twice as much, in trials that are not kept. A CNN is larger than that, so it is trained one client
at a time.
"""

BATCH_BYTES = 4 << 20
"""Batches are fetched for as many steps at a time as fit into this, at least one step."""

MOST_STEPS = 256
"""And for at most so many."""

STILL_TRAINING = 0.75
"""A stack is made anew, without the jobs that are finished, when fewer than this fraction of it still train."""

Group = list[int]
"""Jobs with one order of rows, by their position in the list of jobs."""


def batched(model: Model, train: Examples, jobs: Sequence[Job]) -> list[Params]:
    """Do the jobs, many at a time: the same as :func:`fedprox_lib.simulation.sequential` up to rounding.

    What cannot be stacked is trained one client at a time, with a warning that names it: a local rule that is not entry
    by entry, and a model with a loss of its own.
    """
    if any(reason := [why_not_stacked(model, job.algorithm) for job in jobs]):
        alone = iter(simulation.sequential(model, train, [j for j, why in zip(jobs, reason, strict=True) if why]))
        rest = iter(batched(model, train, [j for j, why in zip(jobs, reason, strict=True) if not why]))
        for why in dict.fromkeys(filter(None, reason)):
            warnings.warn(f"trained one client at a time: {why}.", stacklevel=2)
        return [next(alone) if why else next(rest) for why in reason]
    if not jobs:
        return []
    most = jobs_at_once(sum(w.numel() * w.element_size() for w in jobs[0].start.values()), train.y.device.type)
    given, jobs = jobs, _packed_jobs(model, jobs)
    ends: list[Params] = [job.start for job in jobs]
    for stack in stacks(jobs, most):
        begin = 0
        while stack:
            stop = restack_at(stack, jobs)
            _train_stack(model, train, stack, jobs, ends, begin, stop)
            stack = [left for group in stack if (left := [i for i in group if jobs[i].work.num_steps > stop])]
            begin = stop
    return [end if job.work.num_steps else job.start for end, job in zip(ends, given, strict=True)]


BACKENDS = {"sequential": simulation.sequential, "batched": batched}
"""The backends by name."""

DEFAULT = "batched"


def why_not_stacked(model: Model, algorithm: Algorithm) -> str:
    """Why a model or an algorithm's local rule cannot be trained on stacked tensors; "" if it can."""
    home = next(cls for cls in type(algorithm).__mro__ if "local_gradient" in vars(cls))
    if not vars(home).get("entrywise", False):
        return f"the local rule of {home.__name__} is not marked entrywise (a rule with norms or ifs must not be)"
    if model.own_loss or type(model).loss is not Model.loss or type(model).gradient is not Model.gradient:
        return f"model {model.name!r} has a loss of its own, or scores that depend on the batch"
    return ""


def jobs_at_once(parameter_bytes: int, device: str) -> int:
    """How many clients' models of that size train side by side in one stack."""
    return max(1, STACK_BYTES[device.partition(":")[0]] // parameter_bytes)


def stacks(jobs: Sequence[Job], most: int) -> Iterator[list[Group]]:
    """Cut jobs into stacks of at most ``most`` slots, longest work first."""
    found: dict[int, list[Group]] = {}
    for i, job in enumerate(jobs):
        if job.work.num_steps:
            # Planners that share their draws hand out one array: where it lies says where to look, its content decides.
            there = found.setdefault(job.work.order.ctypes.data, [])
            group = next((group for group in there if _share_batches(jobs[group[0]].work, job.work)), None)
            if group is None:
                there.append([i])
            else:
                group.append(i)
    every = [group for there in found.values() for group in there]
    groups = [part.tolist() for group in every for part in np.array_split(group, -(-len(group) // most))]
    groups.sort(key=lambda group: -max(jobs[i].work.num_steps for i in group))
    stack: list[Group] = []
    for group in groups:
        if stack and (len(stack) + 1) * max(map(len, [*stack, group])) > most:
            yield stack
            stack = []
        stack.append(group)
    if stack:
        yield stack


def _share_batches(a: ClientWork, b: ClientWork) -> bool:
    """Whether the one's mini-batches are the beginning of the other's."""
    steps, rows = min(a.num_steps, b.num_steps), min(len(a.order), len(b.order))
    return np.array_equal(a.batch_sizes[:steps], b.batch_sizes[:steps]) and np.array_equal(
        a.order[:rows], b.order[:rows]
    )


def restack_at(stack: list[Group], jobs: Sequence[Job]) -> int:
    """The step at which so many jobs are finished that the others are worth a stack of their own."""
    ends = np.sort([jobs[i].work.num_steps for group in stack for i in group])
    return int(ends[min(len(ends) - 1, int((1 - STILL_TRAINING) * len(stack) * max(map(len, stack))))])


class Layout(NamedTuple):
    """Where the jobs of a stack stand.

    Each algorithm has a range of slots of its own. A group with fewer jobs of it than others has empty slots there,
    filled with a job that does not move.

    Attributes:
        jobs: (groups, slots) positions in the list of jobs.
        real: (groups, slots) bool; False where a job only fills an empty slot.
        slots: the range of slots of each algorithm.
    """

    jobs: list[list[int]]
    real: np.ndarray
    slots: list[slice]

    @classmethod
    def of(cls, stack: list[Group], jobs: Sequence[Job]) -> "Layout":
        """Lay out a stack."""
        table: list[list[int]] = [[] for _ in stack]
        real: list[list[bool]] = [[] for _ in stack]
        slots: list[slice] = []
        for algorithm in dict.fromkeys(type(jobs[i].algorithm) for group in stack for i in group):
            own = [[i for i in group if type(jobs[i].algorithm) is algorithm] for group in stack]
            width, anybody = max(map(len, own)), next(i for row in own for i in row)
            slots.append(slice(len(table[0]), len(table[0]) + width))
            for row, marks, mine in zip(table, real, own, strict=True):
                row += mine + [anybody] * (width - len(mine))
                marks += [True] * len(mine) + [False] * (width - len(mine))
        return cls(table, np.array(real), slots)


class _Rule(NamedTuple):
    """An algorithm's local rule for one parameter, on the slots that follow it; tensors are (groups, slots, ...)."""

    algorithm: Algorithm
    name: str
    slots: slice
    w: Tensor
    start: Params
    server: Params
    memory: Params
    hyperparameters: Params
    rate: Tensor

    def cut(self, num_groups: int, training: Tensor) -> "_Rule":
        """The first groups alone; where a slot no longer trains, the learning rate is 0 from now on."""
        first = slice(num_groups)
        rate = self.rate * _wide(training[:, self.slots], self.w)
        start, server, memory, hyperparameters = (
            tree.map(lambda t: t[first], each) for each in (self.start, self.server, self.memory, self.hyperparameters)
        )
        return self._replace(
            w=self.w[first],
            rate=rate[first],
            start=start,
            server=server,
            memory=memory,
            hyperparameters=hyperparameters,
        )

    def step(self, g: Params) -> None:
        """One local step, in place."""
        own = ({self.name: g[self.name][:, self.slots]}, {self.name: self.w})
        direction = self.algorithm.local_gradient(*own, self.start, self.server, self.memory, self.hyperparameters)
        self.w.addcmul_(self.rate, direction[self.name], value=-1)


def _rules(w: Params, layout: Layout, jobs: Sequence[Job]) -> list[_Rule]:
    """The rules that change a stack's weights w (groups, slots, ...), which they share memory with."""
    found = []
    num_groups = len(layout.jobs)
    for slots in layout.slots:
        own = [jobs[i] for row in layout.jobs for i in row[slots]]
        starts, servers, memories = (
            _stacked([getattr(job, kind) for job in own], num_groups) for kind in ("start", "server", "memory")
        )
        lr = _numbers([job.lr for job in own], num_groups)
        for name, t in w.items():
            start, server, memory = ({name: each[name]} if each else {} for each in (starts, servers, memories))
            hyperparameters = {
                key: _wide(_numbers([job.hyperparameters[key] for job in own], num_groups), t)
                for key in own[0].hyperparameters
            }
            rate = _wide(lr, t)
            found.append(
                _Rule(own[0].algorithm, name, slots, t[:, slots], start, server, memory, hyperparameters, rate)
            )
    return found


def _train_stack(
    model: Model, train: Examples, stack: list[Group], jobs: Sequence[Job], ends: list[Params], begin: int, stop: int
) -> None:
    """Steps ``begin`` to ``stop`` of a stack, from ``ends`` to ``ends``."""
    layout = Layout.of(stack, jobs)
    num_steps = np.array([[jobs[i].work.num_steps for i in row] for row in layout.jobs]) * layout.real
    w = tree.map(torch.clone, _stacked([ends[i] for row in layout.jobs for i in row], len(stack)))
    rules = _rules(w, layout, jobs)
    changes = {begin, *num_steps.ravel().tolist()}
    longest = [max((jobs[i] for i in group), key=lambda job: job.work.num_steps) for group in stack]
    for s, (x, y, weights) in enumerate(_batches(model, train, longest, begin, stop), begin):
        if s in changes:
            training = torch.from_numpy(num_steps > s)
            active = int(training.any(1).sum())  # groups that are finished stand last
            now, w_now = [rule.cut(active, training) for rule in rules], {name: t[:active] for name, t in w.items()}
        g = gradients_together(model, w_now, x[:active], y[:active], weights[:active])
        for rule in now:
            rule.step(g)
    for group, (row, marks) in enumerate(zip(layout.jobs, layout.real, strict=True)):
        for slot, i in enumerate(row):
            if marks[slot]:
                ends[i] = {name: t[group, slot] for name, t in w.items()}
                if jobs[i].work.num_steps <= stop:
                    ends[i] = unpacked(model, ends[i])


def _batches(
    model: Model, train: Examples, longest: list[Job], begin: int, stop: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """x (groups, b, ...), y and weights (groups, b) of some steps, from the job with most steps of each group.

    A batch with fewer rows than others of its step, or none, is filled up with rows of weight 0. Some steps are fetched
    at a time.
    """
    row_bytes = train.x[0].numel() * train.x.element_size()
    largest = sum(int(job.work.batch_sizes.max()) for job in longest) * row_bytes
    at_a_time = max(1, min(MOST_STEPS, BATCH_BYTES // largest))
    for first in range(begin, stop, at_a_time):
        rows, inside = _rows_of_steps(longest, first, min(first + at_a_time, stop))
        sizes = inside.sum(2)
        weights = torch.from_numpy(inside / np.maximum(sizes, 1)[:, :, None]).to(train.x)
        placed = torch.from_numpy(rows).flatten().to(train.y.device)
        x = packed_rows(model, train.x.index_select(0, placed)).unflatten(0, rows.shape)
        y = train.y.index_select(0, placed).view(rows.shape)
        for s, width in enumerate(sizes.max(axis=1).tolist()):
            yield x[s, :, :width], y[s, :, :width], weights[s, :, :width]


def _rows_of_steps(longest: list[Job], first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers (steps, groups, b) of the batches of some steps, and which of them are really in the batch."""
    sizes = np.zeros((last - first, len(longest)), dtype=np.int64)
    starts = np.zeros_like(sizes)
    for group, job in enumerate(longest):
        part = job.work.batch_sizes[first:last]
        sizes[: len(part), group] = part
        starts[: len(part), group] = job.work.starts[first : first + len(part)]
    position = np.arange(sizes.max())
    inside = position < sizes[:, :, None]
    at = np.where(inside, starts[:, :, None] + position, 0)
    return np.stack([job.work.order[at[:, group]] for group, job in enumerate(longest)], axis=1), inside


def _stacked(trees: list[Params], num_groups: int) -> Params:
    """(jobs, ...) as (groups, slots, ...). A single tree keeps the layout of its convolutions."""
    if len(trees) == 1:
        return {name: t[None, None] for name, t in trees[0].items()}
    return {
        name: torch.stack([t[name].contiguous() for t in trees]).unflatten(0, (num_groups, -1)) for name in trees[0]
    }


def _numbers(values: Sequence[float], num_groups: int) -> Tensor:
    """One number per job as (groups, slots) float64."""
    return torch.tensor([float(value) for value in values], dtype=torch.float64).view(num_groups, -1)


def _wide(numbers: Tensor, like: Tensor) -> Tensor:
    """(groups, slots) numbers as they broadcast over tensors (groups, slots, ...) of a type and device."""
    return numbers.to(like).view(*numbers.shape, *[1] * (like.dim() - 2))


@contextlib.contextmanager
def use_threads(threads: int = 1) -> Iterator[None]:
    """Compute on so many threads. One is the rule: sums then have one order, and another core does another run.

    On Linux freed memory is also kept for reuse, or the kernel zeroes fresh pages at every local step of the CNN.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL(None)
            libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
            libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# --- many models at once: groups of models; the models of a group look at the same rows -------------------------------
# A linear model is packed for it: the bias becomes the last column of the weights, and rows get a last entry of 1.


def _packed_jobs(model: Model, jobs: Sequence[Job]) -> list[Job]:
    """The jobs with packed trees. What a local rule may read has the names of the parameters; other memory stays."""
    seen: dict[int, Params] = {}

    def pack(params: Params) -> Params:
        if id(params) not in seen:
            seen[id(params)] = packed(model, params) if params.keys() == model.shapes.keys() else {}
        return seen[id(params)]

    return [j._replace(start=pack(j.start), server=pack(j.server), memory=pack(j.memory)) for j in jobs]


def packed(model: Model, params: Params) -> Params:
    """Parameters (..., shape), or anything shaped like them, as the methods below take them."""
    if not model.is_linear:
        return params
    return {"dense": torch.cat([params["dense.weight"], params["dense.bias"][..., None]], -1)}


def unpacked(model: Model, params: Params) -> Params:
    """The inverse of :func:`packed`, in memory of its own."""
    if not model.is_linear:
        return {name: p.clone() for name, p in params.items()}
    w = params["dense"]
    return {"dense.weight": w[..., :-1].contiguous(), "dense.bias": w[..., -1].contiguous()}


def packed_rows(model: Model, x: Tensor) -> Tensor:
    """Rows (n, ...) as the methods below take them."""
    return F.pad(x.flatten(1), (0, 1), value=1.0) if model.is_linear else x


def logits_together(model: Model, params: Params, x: Tensor) -> Tensor:
    """Scores (u, b, m, 10) of packed parameters (u, m, ...) on packed rows x (u, b, ...)."""
    if model.is_linear:
        w = params["dense"]  # (u, m, 10, d + 1)
        return torch.bmm(x, w.flatten(1, 2).transpose(1, 2)).unflatten(2, w.shape[1:3])
    return vmap(vmap(model.logits, (0, None)))(params, x).transpose(1, 2)


def gradients_together(model: Model, params: Params, x: Tensor, y: Tensor, weights: Tensor) -> Params:
    """Gradients (u, m, ...) of the weighted sum of cross-entropies over packed rows x (u, b, ...).

    y and weights are (u, b). Weights of 1/b make it the mean; a weight of 0 leaves a row out.
    """
    if model.is_linear:
        p = _softmax(logits_together(model, params, x))
        label = y[:, :, None, None].expand(*p.shape[:3], 1)
        p.scatter_(3, label, -1.0, reduce="add")
        p *= weights[:, :, None, None]  # d loss / d scores
        return {"dense": torch.bmm(p.flatten(2).transpose(1, 2), x).view(params["dense"].shape)}

    def loss(params: Params, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
        return (weights * F.cross_entropy(model.logits(params, x), y, reduction="none")).sum()

    if weights.shape[0] == next(iter(params.values())).shape[1] == 1:  # one model: no need to batch convolutions
        leaves = {name: p[0, 0].detach().requires_grad_() for name, p in params.items()}
        value = loss(leaves, x[0], y[0], weights[0])
        grads = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
        return {name: g[None, None] for name, g in zip(leaves, grads, strict=True)}
    return vmap(vmap(grad(loss), (0, None, None, None)))(params, x, y, weights)


@torch.no_grad()
def evaluate_together(
    model: Model, params: Params, x: Tensor, y: Tensor, rows: np.ndarray | None = None
) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy and accuracy, (m,) float64 each, of parameters (1, m, ...) on the given rows; None: all.

    A single model is evaluated by :meth:`fedprox_lib.models.Model.loss_and_correct`, in float64 from the scores on.
    """
    index = torch.from_numpy(np.arange(len(y)) if rows is None else rows).to(y.device)
    num_models = next(iter(params.values())).shape[1]
    if num_models == 1:
        one = {name: p[0, 0] for name, p in params.items()}
        every = len(index) == len(y)
        losses, right = model.loss_and_correct(one, *((x, y) if every else (x[index], y[index])), chunk=100)
        return losses.mean()[None], right.double().mean()[None]
    loss, correct = (torch.zeros(num_models, dtype=torch.float64, device=y.device) for _ in range(2))
    params = packed(model, params)
    for part in index.split(1000):
        scores = logits_together(model, params, packed_rows(model, x[part])[None])[0].transpose(1, 2)  # (b, 10, m)
        labels = y[part][:, None].expand(-1, num_models)
        loss += F.cross_entropy(scores, labels, reduction="none").double().sum(0)
        correct += (scores.argmax(1) == labels).sum(0)
    return loss / len(index), correct / len(index)


@torch.no_grad()
def gradient_spread(model: Model, params: Params, train: Examples, partition: Partition) -> dict[str, Tensor]:
    """How much the clients' gradients differ at w, for many models at once.

    ``gradient_variance`` is E_k ||grad F_k - grad f||^2 and ``dissimilarity`` is B(w) = sqrt(E_k ||grad F_k||^2 /
    ||grad f||^2) (Li et al. 2020, Definition 3; 1 where both are 0). E_k weighs client k by p_k = n_k / n, so
    grad f = E_k grad F_k.

    # differs from the authors' code: it weighs all clients alike in the variance that the paper's Fig. 2 shows.

    Args:
        model: the model.
        params: (1, m, ...), m models.
        train: the rows that ``partition`` counts.
        partition: who holds which.

    Returns:
        Two columns, (m,) float64 each.
    """
    params = packed(model, params)
    mean = {name: torch.zeros(p.shape[1:], dtype=torch.float64, device=p.device) for name, p in params.items()}
    square = torch.zeros(next(iter(params.values())).shape[1], dtype=torch.float64, device=train.y.device)
    total = int(partition.sizes.sum())
    for held in partition.rows:
        x, y = train.take(held)
        weights = torch.full((1, len(y)), 1 / len(y), dtype=x.dtype, device=x.device)
        with torch.enable_grad():
            gradients = gradients_together(model, params, packed_rows(model, x)[None], y[None], weights)
        for name, g in gradients.items():
            mean[name] += len(y) / total * g[0].double()
            square += len(y) / total * g[0].flatten(1).double().square().sum(1)
    of_mean = sum((g.flatten(1).square().sum(1) for g in mean.values()), torch.zeros_like(square))
    return {
        "gradient_variance": (square - of_mean).clamp(min=0),
        "dissimilarity": torch.where(square > 0, (square / of_mean).sqrt(), torch.ones_like(square)),
    }


def _softmax(scores: Tensor) -> Tensor:
    """Over the last axis, which is short: there torch.softmax is slow, except on little."""
    if scores.numel() < 1000:
        return torch.softmax(scores, -1)
    p = (scores - scores.amax(-1, keepdim=True)).exp_()
    return p.div_(p.sum(-1, keepdim=True))
