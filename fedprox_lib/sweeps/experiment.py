"""One run, described: an :class:`Experiment` is a frozen record of everything that changes its numbers.

It computes nothing. Its ``id`` is a hash of its settings (only of those that differ from their defaults, so that a new
field leaves old ids alone), and ``settings()`` are the left-hand columns of every results table. ``grid`` makes
sweeps. Device, threads and library versions are not part of it: they are provenance.

Layer: sweeps (descriptions).
"""

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import Any

from fedprox_lib.algorithms import Algorithm
from fedprox_lib.partition import Scheme
from fedprox_lib.plan import LocalWork, require_cohort, require_stragglers
from fedprox_lib.require import require_integer, require_one_of
from fedprox_lib.sweeps import registry
from fedprox_lib.sweeps.datasets import NORMALISATIONS

SPLITS = ("official", "within_clients")
"""Where test rows come from."""


@dataclass(frozen=True)
class Evaluation:
    """What is measured, and how often. Round 0 and the last round always are.

    Attributes:
        every: measure after every that many rounds, >= 1.
        train_rows: the training loss is taken on the first that many of the federation's rows in a fixed random order;
            None for all. A full CNN evaluation costs more than a round of training.
        test_rows: likewise for the test set.
        gradients: whether to measure gradient variance and dissimilarity too, which takes the gradient of every
            client of the federation.
    """

    every: int = 1
    train_rows: int | None = None
    test_rows: int | None = None
    gradients: bool = False

    def __post_init__(self) -> None:
        for name in ("every", "train_rows", "test_rows"):
            require_integer(f"evaluation {name}", getattr(self, name), or_none=name != "every")
        if not isinstance(self.gradients, bool):
            raise ValueError(f"evaluation gradients must be True or False, got {self.gradients!r}.")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A run of one algorithm on one federation.

    Attributes:
        algorithm: what clients and server do.
        partition: how the training rows are cut.
        work: local epochs E, batch size B, learning rate.
        rounds: T >= 1.
        cohort_size: K clients per round, in [1, N].
        straggler_fraction: of the cohort, in [0, 1]; counts are exact.
        straggler_epochs: "1..E" (paper) or "1..E-1" (authors' code).
        model: one of ``registry.MODELS``.
        data: one of ``registry.DATASETS``.
        normalisation: one of ``datasets.NORMALISATIONS``.
        split: "official", the test set that comes with the data; or "within_clients", where training and test set are
            pooled and every client holds out 20 % of its rows for testing (paper, appendix C.2).
        sampling: who makes the plans, one of ``registry.SAMPLINGS``: "uniform" draws evenly and weighs by n_k.
        train_rows: a random subset of the training set of that size, drawn with ``data_seed``; None for all of it.
        evaluation: cadence and subsets.
        seed: cohorts, stragglers, batches and initial weights.
        data_seed: subset and partition.
    """

    algorithm: Algorithm
    partition: Scheme
    work: LocalWork
    rounds: int
    cohort_size: int
    straggler_fraction: float = 0.0
    straggler_epochs: str = "1..E"
    model: str = "cnn"
    data: str = "mnist"
    normalisation: str = "standard"
    split: str = "official"
    sampling: str = "uniform"
    train_rows: int | None = None
    evaluation: Evaluation = field(default_factory=Evaluation)
    seed: int = 0
    data_seed: int = 0

    def __post_init__(self) -> None:
        self._require_parts()
        self._require_numbers()
        self._require_names()
        self._require_fitting_data()

    def _require_parts(self) -> None:
        """Algorithm and partition are objects, and the algorithm can run on them."""
        if not isinstance(self.algorithm, Algorithm):
            require_one_of("algorithm", self.algorithm, registry.ALGORITHMS)
        if type(self.partition).__name__ not in registry.PARTITIONS:
            require_one_of("partition", self.partition, registry.PARTITIONS)
        if self.algorithm.watches_loss and self.evaluation.every != 1:
            raise ValueError(
                f"{type(self.algorithm).__name__} follows the training loss from round to round, so evaluation every "
                f"must be 1, got {self.evaluation.every}."
            )
        if self.algorithm.gradient_clients:
            require_cohort(self.algorithm.gradient_clients, self.partition.num_clients, "gradient_clients")

    def _require_numbers(self) -> None:
        """Counts, fractions and seeds are in their ranges."""
        require_integer("rounds", self.rounds)
        require_cohort(self.cohort_size, self.partition.num_clients)
        require_stragglers(self.straggler_fraction, self.straggler_epochs)
        require_integer("train_rows", self.train_rows, or_none=True)
        require_integer("seed", self.seed, least=0)
        require_integer("data_seed", self.data_seed, least=0)

    def _require_names(self) -> None:
        """What goes by name is known."""
        require_one_of("model", self.model, registry.MODELS)
        require_one_of("data", self.data, registry.DATASETS)
        require_one_of("normalisation", self.normalisation, NORMALISATIONS)
        require_one_of("split", self.split, SPLITS)
        require_one_of("sampling", self.sampling, registry.SAMPLINGS)
        if self.sampling != "uniform" and self.straggler_fraction:
            raise ValueError(
                f"sampling={self.sampling!r} is defined without stragglers only, got "
                f"straggler_fraction={self.straggler_fraction!r}: use 0, or sampling='uniform'."
            )

    def _require_fitting_data(self) -> None:
        """Data that come with their clients are not cut, scaled or split."""
        comes_with_clients = registry.DATASETS[self.data].generate is not None
        uncut = [name for name, cls in registry.PARTITIONS.items() if getattr(cls, "keeps_clients", False)]
        if comes_with_clients != (type(self.partition).__name__ in uncut):
            federated = [name for name, data in registry.DATASETS.items() if data.generate]
            raise ValueError(
                f"partition must be {' or '.join(uncut) or 'another'} for the data sets that come with their clients "
                f"({', '.join(federated)}) and for no other, got {type(self.partition).__name__} and "
                f"data={self.data!r}."
            )
        given = (self.model, self.normalisation, self.split, self.train_rows)
        if comes_with_clients and given != ("logistic", "standard", "official", None):
            raise ValueError(
                f"data={self.data!r} needs model='logistic', normalisation='standard', split='official' (its own) and "
                f"train_rows=None, got {self.model!r}, {self.normalisation!r}, {self.split!r} and {self.train_rows!r}."
            )

    def replicate(self, r: int) -> "Experiment":
        """The same run with seed and data seed r."""
        return replace(self, seed=r, data_seed=r)

    def settings(self) -> dict[str, Any]:
        """One scalar per setting, flat: ``algorithm``, ``mu``, ``partition``, ``num_clients``, ... and so on."""
        flat: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name in ("algorithm", "partition"):
                flat |= {item.name: type(value).__name__, **asdict(value)}
            elif item.name == "work":
                flat |= asdict(value)
            elif item.name == "evaluation":
                # What is off stays unmentioned, so that records made before it existed keep their settings.
                flat |= {f"evaluation_{name}": entry for name, entry in asdict(value).items() if entry is not False}
            elif item.name not in ("split", "sampling") or value != item.default:  # likewise
                flat[item.name] = value
        return flat

    @property
    def id(self) -> str:
        """12 hexadecimal digits: the name of its record."""
        changed = {
            item.name: _named(getattr(self, item.name))
            for item in fields(self)
            if getattr(self, item.name) != _default(item)
        }
        return hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def label(self) -> str:
        """Short name of the arm, for legends: ``FedProx, mu = 0.1``."""
        given = (f"{name} = {value:g}" for name, value in asdict(self.algorithm).items())
        return ", ".join([type(self.algorithm).__name__, *given])


def from_settings(settings: Mapping[str, Any]) -> Experiment:
    """The experiment of these flat settings, the inverse of :meth:`Experiment.settings`.

    What is not given keeps its default, and so does what is None or empty (a TOML file has no None). Settings of other
    algorithms and partitions are passed over, so that ``algorithm`` alone turns FedProx into FedAvg.

    Raises:
        ValueError: for an algorithm or partition that does not exist, and for what :class:`Experiment` refuses.
    """
    given = {name: value for name, value in settings.items() if value is not None and value != ""}

    def make(cls: Any, prefix: str = "") -> Any:
        lacking = [f.name for f in fields(cls) if _default(f) is MISSING and prefix + f.name not in given]
        if lacking:
            raise ValueError(f"{cls.__name__} needs settings that are not given: {', '.join(lacking)}.")
        return cls(**{f.name: given[prefix + f.name] for f in fields(cls) if prefix + f.name in given})

    for name, known in (("algorithm", registry.ALGORITHMS), ("partition", registry.PARTITIONS)):
        require_one_of(name, given.get(name), known)
    parts = {
        "algorithm": make(registry.ALGORITHMS[given["algorithm"]]),
        "partition": make(registry.PARTITIONS[given["partition"]]),
        "work": make(LocalWork),
        "evaluation": make(Evaluation, "evaluation_"),
    }
    names = [item.name for item in fields(Experiment)]
    return Experiment(**{name: given[name] for name in names if name in given} | parts)


def _default(item: Any) -> Any:
    return item.default_factory() if item.default_factory is not MISSING else item.default


def _named(value: Any) -> Any:
    """A setting as JSON: dataclasses with class name and non-default fields, numbers as floats (1 is 1.0)."""
    if hasattr(value, "__dataclass_fields__"):
        kept = {f.name: _named(getattr(value, f.name)) for f in fields(value) if getattr(value, f.name) != _default(f)}
        return {"is": type(value).__name__, **kept}
    return float(value) if isinstance(value, int | float) else value


def grid(base: Experiment, **axes: Iterable[Any]) -> list[Experiment]:
    """Every combination of the axes; the last axis varies fastest.

    ``replicate`` is an axis too: it sets ``seed`` and ``data_seed`` together.

    Raises:
        TypeError: for an axis that is no field of :class:`Experiment`; the message lists the fields.
    """
    valid = [item.name for item in fields(Experiment)] + ["replicate"]
    if unknown := [name for name in axes if name not in valid]:
        raise TypeError(f"unknown experiment field {unknown[0]!r}; the fields are {', '.join(valid)}.")
    sweep = []
    for values in itertools.product(*axes.values()):
        changes = dict(zip(axes, values, strict=True))
        r = changes.pop("replicate", None)
        one = replace(base, **changes)
        sweep.append(one if r is None else one.replicate(r))
    return sweep
