"""Flower's FedProx baselines, re-enacted: what each of their slips does, in a few lines of our own.

What would this book's engine compute if it decided as that code does? Each class or function here is one slip found in
the baselines of github.com/adap/flower, as an algorithm, a plan producer or a function; :mod:`fedprox_book.audit` says
where each one lies and since when, and measures what it does. The library knows nothing of them: it has no switch for a
bug, and nothing but the audit and its chapter imports this module. Flower is licensed under Apache 2.0; its code is
re-enacted, and none of it is copied.

Taught in "The baseline as published". Layer: book (NumPy decisions, and PyTorch in the two rules of local training).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fedprox_lib import tree
from fedprox_lib.algorithms import FedProx, Hyperparameters
from fedprox_lib.data import Examples
from fedprox_lib.models import Model
from fedprox_lib.partition import Partition
from fedprox_lib.plan import RoundPlan, UniformPlanner
from fedprox_lib.rng import stream
from fedprox_lib.tree import Params

# --- local training --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class UnsquaredProx(FedProx):
    r"""The proximal term without its square, tensor by tensor: mu/2 times the sum of the norms of w - w_t.

    Its gradient has length mu/2 for every tensor, however far that tensor has moved, and 0 where it has not moved.
    It is not arithmetic entry by entry, so it needs the backend ``sequential``.

    Attributes:
        mu: >= 0; 1 in the blog's code.
    """

    @staticmethod
    def local_gradient(
        g: Params, w: Params, w_t: Params, server: Params, memory: Params, hyperparameters: Hyperparameters
    ) -> Params:
        def pulled(g: Tensor, w: Tensor, w_t: Tensor) -> Tensor:
            d = w - w_t
            length = torch.linalg.vector_norm(d)
            return g + hyperparameters["mu"] / 2 * d / length if length > 0 else g

        return tree.map(pulled, g, w, w_t)


def train_with_anchor(
    model: Model,
    w: Params,
    batches: Iterable[Examples],
    anchor: Iterable[Tensor],
    *,
    lr: float,
    mu: float,
    squared: bool = False,
) -> Params:
    """Local SGD as one writes it from the documentation of Flower's strategy: norms of differences from an anchor.

    Args:
        model: whose loss is penalised.
        w: w_t, where training starts.
        batches: the mini-batches, in order.
        anchor: the tensors of w_t in the order of ``w``. The documented ``copy.deepcopy(net).parameters()`` is an
            iterator: it is used up by the first batch, and later batches find nothing to compare with.
        lr: learning rate.
        mu: weight of the term, mu/2 times the sum over tensors.
        squared: whether the norms are squared; the documented lines do not.
    """
    for batch in batches:
        leaves = {name: t.detach().clone().requires_grad_() for name, t in w.items()}
        term = torch.zeros(())
        for local, start in zip(leaves.values(), anchor, strict=False):
            distance = torch.linalg.vector_norm(local - start)
            term = term + (distance**2 if squared else distance)
        loss = model.loss(leaves, *batch) + mu / 2 * term
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        w = {name: t.detach() - lr * g for (name, t), g in zip(leaves.items(), gradients, strict=True)}
    return w


# --- data ------------------------------------------------------------------------------------------------------------


def balanced_by_counts(labels: np.ndarray) -> np.ndarray:
    """Rows of a "balanced" training set, where each class is looked for at its *count* and not where it begins.

    Sorted by label, the blocks are [0, m) and, for each class count c, [c, c + m), with m the smallest count.

    Args:
        labels: (n,) int.

    Returns:
        ((classes + 1) m,) int64 row numbers, with repetitions.

    Example:
        >>> balanced_by_counts(np.repeat([0, 1, 2], [3, 2, 4])).tolist()  # labels 0 0 0 1 1 2 2 2 2
        [0, 1, 3, 4, 2, 3, 4, 5]
    """
    order, counts = np.argsort(labels, kind="stable"), np.bincount(labels)
    smallest = counts.min()
    return np.concatenate([order[:smallest], *(order[c : c + smallest] for c in counts)])


def balanced_by_offsets(labels: np.ndarray) -> np.ndarray:
    """What was meant: the first m rows of every class, found where the class begins.

    Example:
        >>> balanced_by_offsets(np.repeat([0, 1, 2], [3, 2, 4])).tolist()
        [0, 1, 3, 4, 5, 6]
    """
    order, counts = np.argsort(labels, kind="stable"), np.bincount(labels)
    return np.concatenate([order[start : start + counts.min()] for start in np.cumsum(counts) - counts])


def held_out_of_the_pool(partition: Partition, num_test: int, seed: int) -> tuple[np.ndarray, Partition]:
    """Test rows drawn from the rows that the clients hold, and the partition as it would be without them.

    A test set is held out only if the clients use the second; the FEMNIST split gives them all rows.

    Args:
        partition: of all rows.
        num_test: how many of them to test on.
        seed: of the draw.

    Returns:
        (num_test,) int64 row numbers, sorted, and the partition without them.
    """
    held = np.sort(np.concatenate(partition.rows))
    test = np.sort(stream(seed, "test from the pool").permutation(held)[:num_test])
    return test, Partition(tuple(rows[~np.isin(rows, test)] for rows in partition.rows))


# --- plans -----------------------------------------------------------------------------------------------------------


def cohort_size_of(num_clients: int, fraction_fit: float, min_fit_clients: int) -> int:
    """Clients that Flower's server selects: the fraction, or the minimum if that is more.

    Example:
        >>> [cohort_size_of(100, 1.0, int(100 * (1 - s))) for s in (0.0, 0.5, 0.9)]  # the blog's configuration
        [100, 100, 100]
    """
    return max(int(num_clients * fraction_fit), min_fit_clients)


@dataclass(frozen=True)
class CountsBatches:
    """Another planner's rounds, in which a client reports its mini-batches an epoch, ceil(n_k / B), as its examples.

    Attributes:
        planner: whose rounds.
    """

    planner: UniformPlanner

    def round_plan(self, t: int) -> RoundPlan:
        """The same work under other weights."""
        plan, size = self.planner.round_plan(t), self.planner.work.batch_size
        return replace(plan, cohort=tuple(replace(c, num_examples=-(-c.num_examples // size)) for c in plan.cohort))


@dataclass(frozen=True)
class TossesCoins:
    """Another planner's rounds, in which a coin decides for every client by itself whether it is a straggler.

    Attributes:
        planner: whose cohorts, epochs of stragglers and batches; its ``straggler_fraction`` is the coin's probability.
        schedule: number of the table of coins. Runs that share it meet the same stragglers; the current baseline
            tosses anew whenever a client comes to life, so there no two runs share it.
    """

    planner: UniformPlanner
    schedule: int = 0

    def is_straggler(self, t: int) -> np.ndarray:
        """(N,) bool: the coins of all clients in round t."""
        coins = stream(self.planner.seed, "coins", self.schedule, t).random(self.planner.partition.num_clients)
        return coins < self.planner.straggler_fraction

    def round_plan(self, t: int) -> RoundPlan:
        """Draws do not depend on the straggler fraction, so both plans have the same clients in the same places."""
        on_time, late = (replace(self.planner, straggler_fraction=s).round_plan(t) for s in (0.0, 1.0))
        coins = self.is_straggler(t)
        pairs = zip(on_time.cohort, late.cohort, strict=True)
        return RoundPlan(t, tuple(slow if coins[slow.client] else full for full, slow in pairs))


# --- what is reported ------------------------------------------------------------------------------------------------


def reported_loss(losses: Sequence[float] | np.ndarray, batch_size: int) -> float:
    """Sum of the *means* of the mini-batches, divided by the number of *rows*: about B times too small.

    Args:
        losses: (n,) of the rows, in nats.
        batch_size: B of the test loader.

    Example:
        >>> reported_loss([1.0] * 40, 10)
        0.1
    """
    rows = np.asarray(losses, dtype=float)
    return sum(float(rows[i : i + batch_size].mean()) for i in range(0, len(rows), batch_size)) / len(rows)
