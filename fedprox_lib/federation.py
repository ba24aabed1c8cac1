"""An experiment made concrete: its data as tensors, who holds which rows, the plans of its rounds, what is measured.

Which question this answers: *what exactly is trained and measured when an Experiment runs?* :meth:`Federation.of`
loads, subsets and cuts the data; :func:`prepare` does it for a whole sweep, whose runs then share what they have in
common; :func:`measure` evaluates the models of many runs in one pass over the rows.

Taught in "FedAvg and FedProx side by side" and "Fast enough to sweep". Room: the border between NumPy decisions and
PyTorch computation. May import data, models, partition, plan, experiment, diagnostics and what they stand on.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from fedprox_lib import data, diagnostics, models, synthetic, tree
from fedprox_lib.data import Examples
from fedprox_lib.experiment import Experiment
from fedprox_lib.models import Model
from fedprox_lib.partition import Partition, hold_out
from fedprox_lib.plan import BySizePlanner, Planner, RoundPlan, UniformPlanner, require_cohort
from fedprox_lib.rng import stream
from fedprox_lib.tree import Params

HELD_OUT = 0.2
"""Of every client's rows, for testing, where ``split="within_clients"`` (paper, appendix C.2)."""


@dataclass(frozen=True)
class Federation:
    """An experiment made concrete: tensors, partition, model, plans.

    Attributes:
        train: the rows that ``partition`` counts, on the device.
        test: the test rows that are evaluated.
        sampled: numbers of the rows of ``train`` on which the training loss is taken, sorted.
        partition: rows of ``train`` by client.
        model: the model.
        planner: the plan producer; replace it to run another protocol.
        data_sha256: checksum of the data, for provenance.
    """

    train: Examples
    test: Examples
    sampled: np.ndarray
    partition: Partition
    model: Model
    planner: Planner
    data_sha256: str

    @classmethod
    def of(cls, experiment: Experiment, device: str = "cpu") -> "Federation":
        """Load, subset and cut the data of an experiment."""
        if experiment.data in data.SYNTHETIC:
            train, test, partition = synthetic.federate(synthetic.generate(experiment.data, experiment.data_seed))
            sha256 = hashlib.sha256(train.x.numpy().tobytes() + train.y.numpy().tobytes()).hexdigest()
            return cls._of(experiment, train, test, partition, sha256, device)
        loaded = data.load(experiment.data, experiment.normalisation)
        train, test = loaded.train, loaded.test
        if experiment.split == "within_clients":
            train = data.pooled(experiment.data, experiment.normalisation)
        if experiment.train_rows is not None:
            if experiment.train_rows > len(train.y):
                raise ValueError(
                    f"train_rows must be at most {len(train.y)}, the rows to be cut of {experiment.data}, "
                    f"got {experiment.train_rows}."
                )
            train = train.take(_subset(experiment.data_seed, "subset", len(train.y), experiment.train_rows))
        partition = experiment.partition.split(train.labels, data_seed=experiment.data_seed)
        if experiment.split == "within_clients":
            partition, held_out = hold_out(partition, HELD_OUT, data_seed=experiment.data_seed)
            test = train.take(np.concatenate(held_out.rows))
        return cls._of(experiment, train, test, partition, loaded.sha256, device)

    @classmethod
    def _of(
        cls, experiment: Experiment, train: Examples, test: Examples, partition: Partition, sha256: str, device: str
    ) -> "Federation":
        measured = experiment.evaluation
        held = np.sort(np.concatenate(partition.rows))
        sampled = held[_subset(experiment.data_seed, "train sample", len(held), measured.train_rows)]
        test_rows = _subset(experiment.data_seed, "test sample", len(test.y), measured.test_rows)
        place = lambda e: Examples(e.x.to(device), e.y.to(device))  # noqa: E731
        return cls(
            place(train),
            place(test if measured.test_rows is None else test.take(test_rows)),
            sampled,
            partition,
            models.get(experiment.model, train.x[0].numel()),
            _planner(experiment, partition),
            sha256,
        )


class Gradients(NamedTuple):
    """What clients answer in the first exchange of a round that has two (FedDane): gradients on all their rows.

    Attributes:
        model: the model.
        train: the rows that ``partition`` counts.
        partition: who holds which.
        seed: of the draw of clients.
    """

    model: Model
    train: Examples
    partition: Partition
    seed: int

    def at(self, w_t: Params, plan: RoundPlan, number: int) -> tuple[Params, dict[int, Params]]:
        """g_t, the n_k-weighted mean over ``number`` clients, and grad F_k(w_t) for each client of the plan's cohort.

        The clients asked are drawn evenly from all, from seed and round alone: every arm asks the same ones, and those
        of a smaller number are among those of a larger.
        """
        require_cohort(number, self.partition.num_clients, "gradient_clients")
        asked = np.sort(stream(self.seed, "gradients", plan.round).permutation(self.partition.num_clients)[:number])
        cohort = [work.client for work in plan.cohort]
        gradient = lambda k: self.model.gradient(w_t, *self.train.take(self.partition.rows[k]))  # noqa: E731
        own = {k: gradient(k) for k in {*asked.tolist(), *cohort}}
        n_k = torch.from_numpy(self.partition.sizes[asked]).to(self.train.x.device, torch.float64)
        stacked = tree.stack([own[int(k)] for k in asked])
        mean = tree.map(lambda g: torch.tensordot(n_k / n_k.sum(), g.double(), dims=1).to(g.dtype), stacked)
        return mean, {k: own[k] for k in cohort}


def prepare(experiments: Sequence[Experiment], device: str = "cpu") -> list[Federation]:
    """The federations of a sweep. What two runs have in common they share.

    Runs with the same data seed share tensors and partition, runs that also have the same seed share the drawing of
    plans, and all train from one tensor, so that a batched program can take the rows of all clients from it.
    """
    bases: dict[tuple, Federation] = {}
    for e in experiments:
        if _data_key(e) not in bases:
            bases[_data_key(e)] = Federation.of(e, device)
    pooled = dict(zip(bases, _pooled(list(bases.values())), strict=True))
    drawn: dict[tuple, dict] = {}
    federations = []
    for e in experiments:
        base = pooled[_data_key(e)]
        shared = drawn.setdefault((_data_key(e), e.seed), {})
        federations.append(replace(base, planner=_planner(e, base.partition, shared)))
    return federations


def _data_key(e: Experiment) -> tuple:
    return (e.data, e.normalisation, e.split, e.train_rows, e.data_seed, e.partition, e.evaluation, e.model)


def _planner(e: Experiment, partition: Partition, drawn: dict | None = None) -> Planner:
    if e.sampling == "by_size":
        return BySizePlanner(partition, e.work, e.seed, e.cohort_size)
    return UniformPlanner(
        partition, e.work, e.seed, e.cohort_size, e.straggler_fraction, e.straggler_epochs,
        {} if drawn is None else drawn,
    )  # fmt: skip


def _pooled(federations: list[Federation]) -> list[Federation]:
    """The same federations with their training rows in one tensor, one after the other."""
    distinct = {f.train.x.data_ptr(): f.train for f in federations}
    if len(distinct) == 1:
        return federations
    pool = Examples(*(torch.cat(parts) for parts in zip(*distinct.values(), strict=True)))
    sizes = [len(train.y) for train in distinct.values()]
    offsets = dict(zip(distinct, np.cumsum([0, *sizes[:-1]]), strict=True))
    return [
        replace(
            f,
            train=pool,
            sampled=f.sampled + offsets[f.train.x.data_ptr()],
            partition=Partition(tuple(rows + offsets[f.train.x.data_ptr()] for rows in f.partition.rows)),
        )
        for f in federations
    ]


def _subset(seed: int, name: str, available: int, wanted: int | None) -> np.ndarray:
    """``wanted`` of the numbers below ``available``, sorted; all of them if None or more than there are."""
    if wanted is None or wanted >= available:
        return np.arange(available)
    return np.sort(stream(seed, name).permutation(available)[:wanted])


def measure(params: Sequence[Params], federation: Federation, gradients: bool = False) -> list[dict[str, float]]:
    """The measurements of a round, for the models of runs that are evaluated on the same rows.

    ``results.COLUMNS`` says what each one is.
    """
    stacked = tree.map(lambda w: w[None], tree.stack(params))  # (1, runs, ...): all look at the same rows
    model = federation.model
    train_loss, _ = model.evaluate_together(stacked, *federation.train, federation.sampled)
    test_loss, accuracy = model.evaluate_together(stacked, *federation.test)
    columns = {"train_loss": train_loss, "test_loss": test_loss, "test_accuracy": accuracy}
    if gradients:
        columns |= diagnostics.gradient_spread(model, stacked, federation.train, federation.partition)
    return [{name: float(values[i]) for name, values in columns.items()} for i in range(len(params))]
