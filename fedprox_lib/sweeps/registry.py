"""Names of what experiments are made of, as records have them: algorithms, partitions, models, data sets, samplings.

A record says ``"algorithm": "FedProx"``; here is the class of that name. The library registers its own below; a package
that brings more registers them when it is imported, by one call of :func:`register`. Names never depend on where a
class lies. Layer: sweeps (descriptions).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from fedprox_lib import models
from fedprox_lib.algorithms import Algorithm, FedAdam, FedAvg, FedAvgM, FedProx, Scaffold
from fedprox_lib.data import Examples, Images
from fedprox_lib.models import Model
from fedprox_lib.partition import IID, Dirichlet, LabelShards, Partition, PowerLaw
from fedprox_lib.plan import Planner, UniformPlanner
from fedprox_lib.require import require_one_of

Parts = tuple[Images, Images, str]
"""Training images, test images, and the checksum of what they were made from."""


class DataSet(NamedTuple):
    """A data set by name: either images that a partition cuts, or clients that are generated from the data seed.

    Attributes:
        num_features: numbers in a row.
        num_rows: training rows; where the sizes of clients are drawn, a middling number.
        images: reads the images and labels; they are scaled afterwards.
        generate: ``generate(data_seed)`` gives training rows, test rows and who holds which.
    """

    num_features: int
    num_rows: int
    images: Callable[[], Parts] | None = None
    generate: Callable[[int], tuple[Examples, Examples, Partition]] | None = None


ALGORITHMS: dict[str, type[Algorithm]] = {}
PARTITIONS: dict[str, Any] = {}
MODELS: dict[str, Callable[..., Model]] = {}
"""Name -> function of the number of features; of nothing for ``IMAGE_MODELS``."""
IMAGE_MODELS: set[str] = set()
"""Those for images of 28 x 28 pixels only."""
DATASETS: dict[str, DataSet] = {}
SAMPLINGS: dict[str, Callable[[Any, Partition, dict], Planner]] = {}
"""Name -> function of an experiment, a partition and a dictionary of orders already drawn."""

SOURCES: list[str] = []
"""Modules that have registered something; a worker process imports them first."""


def register(
    source: str,
    *,
    algorithms: Sequence[type[Algorithm]] = (),
    partitions: Sequence[type] = (),
    models: Mapping[str, Callable[[int], Model]] | None = None,
    image_models: Mapping[str, Callable[[], Model]] | None = None,
    datasets: Mapping[str, DataSet] | None = None,
    samplings: Mapping[str, Callable[[Any, Partition, dict], Planner]] | None = None,
) -> None:
    """Make things known by name. Classes go by their own.

    Args:
        source: the module that calls, its ``__name__``: importing it registers them again elsewhere.
        algorithms: dataclasses that are algorithms.
        partitions: dataclasses with ``num_clients`` and ``split``.
        models: functions of the number of features.
        image_models: functions of nothing; for images of 28 x 28 pixels.
        datasets: data sets.
        samplings: functions that make the planner of an experiment.
    """
    SOURCES.append(source)
    ALGORITHMS.update({cls.__name__: cls for cls in algorithms})
    PARTITIONS.update({cls.__name__: cls for cls in partitions})
    MODELS.update({**(models or {}), **(image_models or {})})
    IMAGE_MODELS.update(image_models or {})
    DATASETS.update(datasets or {})
    SAMPLINGS.update(samplings or {})


def model_named(name: str, num_features: int = 784) -> Model:
    """The model of that name, for rows of that many features.

    Example:
        >>> model_named("cnn").num_parameters
        1663370
    """
    require_one_of("model", name, MODELS)
    if name not in IMAGE_MODELS:
        return MODELS[name](num_features)
    if num_features != 784:
        raise ValueError(f"model {name!r} needs images of 28 x 28 = 784 pixels, got rows of {num_features} features.")
    return MODELS[name]()


def _uniform(e: Any, partition: Partition, drawn: dict) -> Planner:
    return UniformPlanner(partition, e.work, e.seed, e.cohort_size, e.straggler_fraction, e.straggler_epochs, drawn)


register(
    __name__,
    algorithms=[FedAvg, FedProx, Scaffold, FedAvgM, FedAdam],
    partitions=[IID, LabelShards, PowerLaw, Dirichlet],
    models={"logistic": models.logistic},
    image_models={"cnn": models.cnn},
    samplings={"uniform": _uniform},
)
