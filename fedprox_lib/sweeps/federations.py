"""An experiment made concrete: its data as tensors, who holds which rows, the plans of its rounds, what is measured.

What exactly is trained and measured when an :class:`Experiment` runs? :func:`federation_of` loads, subsets and cuts the
data; :func:`federations_of` does it for a whole sweep, whose runs then share what they have in common;
:func:`measure_together` evaluates the models of many runs in one pass over the rows.

Taught in "FedAvg and FedProx side by side" and "Fast enough to sweep". Layer: sweeps (NumPy decisions meet PyTorch).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from fedprox_lib import engine, tree
from fedprox_lib.data import Examples
from fedprox_lib.federation import Federation
from fedprox_lib.partition import Partition, hold_out
from fedprox_lib.plan import Planner
from fedprox_lib.rng import stream
from fedprox_lib.sweeps import datasets, registry
from fedprox_lib.sweeps.experiment import Experiment
from fedprox_lib.tree import Params

HELD_OUT = 0.2
"""Of every client's rows, for testing, where ``split="within_clients"`` (paper, appendix C.2)."""


@dataclass(frozen=True, kw_only=True)
class PreparedFederation(Federation):
    """The federation of an experiment.

    Attributes:
        planner: the plan producer; replace it to run another protocol.
        sampled: numbers of the rows of ``train`` on which the training loss is taken, sorted.
        data_sha256: checksum of the data, for provenance.
    """

    planner: Planner
    sampled: np.ndarray
    data_sha256: str


def federation_of(experiment: Experiment, device: str = "cpu") -> PreparedFederation:
    """Load, subset and cut the data of an experiment."""
    e, generate = experiment, registry.DATASETS[experiment.data].generate
    if generate:
        train, test, partition = generate(e.data_seed)
        sha256 = hashlib.sha256(train.x.numpy().tobytes() + train.y.numpy().tobytes()).hexdigest()
    else:
        train, test, partition, sha256 = _cut(e)
    held = np.sort(np.concatenate(partition.rows))
    test_rows = _subset(e.data_seed, "test sample", len(test.y), e.evaluation.test_rows)
    return PreparedFederation(
        train=train.to(device),
        test=(test if e.evaluation.test_rows is None else test.take(test_rows)).to(device),
        sampled=held[_subset(e.data_seed, "train sample", len(held), e.evaluation.train_rows)],
        partition=partition,
        model=registry.model_named(e.model, train.x[0].numel()),
        planner=planner_of(e, partition),
        data_sha256=sha256,
    )


def _cut(e: Experiment) -> tuple[Examples, Examples, Partition, str]:
    """Training and test rows of a data set of images, cut as the experiment says."""
    loaded = datasets.load(e.data, e.normalisation)
    train, test = loaded.train, loaded.test
    if e.split == "within_clients":
        train = datasets.pooled(e.data, e.normalisation)
    if e.train_rows is not None:
        if e.train_rows > len(train.y):
            raise ValueError(
                f"train_rows must be at most {len(train.y)}, the rows to be cut of {e.data}, got {e.train_rows}."
            )
        train = train.take(_subset(e.data_seed, "subset", len(train.y), e.train_rows))
    partition = e.partition.split(train.labels, data_seed=e.data_seed)
    if e.split == "within_clients":
        partition, held_out = hold_out(partition, HELD_OUT, data_seed=e.data_seed)
        test = train.take(np.concatenate(held_out.rows))
    return train, test, partition, loaded.sha256


def planner_of(experiment: Experiment, partition: Partition, drawn: dict | None = None) -> Planner:
    """Who decides about an experiment's rounds; ``drawn`` holds orders that others have drawn already."""
    return registry.SAMPLINGS[experiment.sampling](experiment, partition, {} if drawn is None else drawn)


def federations_of(experiments: Sequence[Experiment], device: str = "cpu") -> list[PreparedFederation]:
    """The federations of a sweep. What two runs have in common they share.

    Runs with the same data seed share tensors and partition, runs that also have the same seed share the drawing of
    plans, and all train from one tensor, so that a batched program can take the rows of all clients from it.
    """
    bases: dict[tuple, PreparedFederation] = {}
    for e in experiments:
        if _data_key(e) not in bases:
            bases[_data_key(e)] = federation_of(e, device)
    pooled = dict(zip(bases, _pooled(list(bases.values())), strict=True))
    drawn: dict[tuple, dict] = {}
    federations = []
    for e in experiments:
        base = pooled[_data_key(e)]
        shared = drawn.setdefault((_data_key(e), e.seed), {})
        federations.append(replace(base, planner=planner_of(e, base.partition, shared)))
    return federations


def _data_key(e: Experiment) -> tuple:
    return (e.data, e.normalisation, e.split, e.train_rows, e.data_seed, e.partition, e.evaluation, e.model)


def _pooled(federations: list[PreparedFederation]) -> list[PreparedFederation]:
    """The same federations with their training rows in one tensor, one after the other; row numbers count in that."""
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


def measure_together(
    params: Sequence[Params], federation: PreparedFederation, gradients: bool = False
) -> list[dict[str, float]]:
    """The measurements of a round, for the models of runs that are evaluated on the same rows.

    ``results.COLUMNS`` says what each one is.
    """
    stacked = tree.map(lambda w: w[None], tree.stack(params))  # (1, runs, ...): all look at the same rows
    model = federation.model
    train_loss, _ = engine.evaluate_together(model, stacked, *federation.train, federation.sampled)
    test_loss, accuracy = engine.evaluate_together(model, stacked, *federation.test)
    columns = {"train_loss": train_loss, "test_loss": test_loss, "test_accuracy": accuracy}
    if gradients:
        columns |= engine.gradient_spread(model, stacked, federation.train, federation.partition)
    return [{name: float(values[i]) for name, values in columns.items()} for i in range(len(params))]
