"""The paper's four synthetic federations, drawn number for number as the authors' scripts draw them.

What the authors trained on: thirty clients, 60 features, 10 labels, and sizes from a log-normal law, so that one
client may hold most of the rows (Li et al. 2020, section 5.1 and appendix C.1):

=====================  ==========================================================================================
``synthetic_iid``      one linear model labels everybody's rows; all features have one law
``synthetic_0_0``      every client has a linear model and a feature mean of its own, drawn around the same centres
``synthetic_0.5_0.5``  and the centres spread too, with standard deviation 0.5
``synthetic_1_1``      or 1: the most heterogeneous
=====================  ==========================================================================================

The authors' scripts (litian96/FedProx at d2a4501, MIT-licensed) set no seed. Here they are re-enacted, not copied, on
private generators of the kinds they use, NumPy's legacy one and Python's: ``generate(name, s)`` gives what their script
gives on the same processor after both global generators were seeded with s (on another, NumPy's ``power`` may round
one number of the recipe differently in its last bit). The global generators are neither read nor moved.

Taught in "Do we compute what the authors computed?". Layer: book (NumPy data and files).
"""

import gzip
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from fedprox_lib.data import Client, Examples, federate
from fedprox_lib.partition import Partition

NUM_CLIENTS, NUM_FEATURES, NUM_CLASSES = 30, 60, 10

SPREADS = {"synthetic_iid": None, "synthetic_0_0": 0.0, "synthetic_0.5_0.5": 0.5, "synthetic_1_1": 1.0}
"""The sets by name, with alpha = beta: the spread of the clients' models and of their features; None where all share.

It is used as a standard deviation. The paper writes N(0, alpha), which would make it a variance; only for 0.5 does
that matter.
"""


@dataclass(frozen=True)
class AsGenerated:
    """The clients that a data set comes with: the paper's synthetic sets are generated client by client.

    Attributes:
        num_clients: N, always 30.
    """

    keeps_clients: ClassVar[bool] = True
    """Marks it as being for data sets that come with their clients."""

    num_clients: int = 30

    def __post_init__(self) -> None:
        if self.num_clients != 30:
            raise ValueError(f"num_clients must be 30, for so many the synthetic sets have, got {self.num_clients!r}.")

    def split(self, labels: np.ndarray, *, data_seed: int) -> Partition:
        raise ValueError("AsGenerated cuts nothing: it is for data sets that come with their clients (synthetic_...).")


def generate(name: str, seed: int) -> tuple[Client, ...]:
    """One of the authors' synthetic federations.

    Args:
        name: one of ``SPREADS``.
        seed: in [0, 2^32), as for NumPy's legacy generator. Totals vary widely: 5,000 to 33,000 rows are usual.

    Returns:
        30 clients; of each one's n rows the first int(0.9 n), after a shuffle, are for training.

    Example:
        >>> clients = generate("synthetic_iid", seed=3)
        >>> clients[0].id, clients[0].x.shape, clients[0].test_x.shape
        ('f_00000', (1802, 60), (201, 60))
    """
    if name not in SPREADS:
        raise ValueError(f"the synthetic set must be one of {', '.join(SPREADS)}, got {name!r}.")
    if not (isinstance(seed, int) and 0 <= seed < 2**32):
        raise ValueError(f"seed must be an integer in [0, 2**32), got {seed!r}.")
    rng, shuffler = np.random.RandomState(seed), random.Random(seed)
    spread = SPREADS[name]
    # The order of the draws is the recipe: every line that draws moves the generator for the lines below it.
    sizes = rng.lognormal(4, 2, NUM_CLIENTS).astype(int) + 50
    if spread is None:
        feature_means = np.zeros((NUM_CLIENTS, NUM_FEATURES))
        shared = _linear_model(rng, 0.0)
        models = (shared for _ in sizes)
    else:
        model_means = rng.normal(0, spread, NUM_CLIENTS)
        centres = rng.normal(0, spread, NUM_CLIENTS)
        feature_means = np.array([rng.normal(centre, 1, NUM_FEATURES) for centre in centres])
        models = (_linear_model(rng, mean) for mean in model_means)  # lazily: a client's model, then its rows
    covariance = np.diag(np.arange(1.0, NUM_FEATURES + 1) ** -1.2)
    drawn = []
    for size, feature_mean, (weights, bias) in zip(sizes, feature_means, models, strict=True):
        x = rng.multivariate_normal(feature_mean, covariance, size)
        drawn.append((x, _labels(x, weights, bias)))
    return tuple(_split(f"f_{k:05d}", x, y, shuffler) for k, (x, y) in enumerate(drawn))


def generated_federation(name: str, data_seed: int) -> tuple[Examples, Examples, Partition]:
    """Training rows, test rows and partition of one of the sets: what an experiment asks for by name."""
    return federate(generate(name, data_seed))


def write_leaf(clients: Sequence[Client], train: Path, test: Path) -> None:
    """Write clients as two LEAF files: ``users``, ``user_data``, ``num_samples``. A name ending in .gz is compressed.

    Unpacked, the files are those that the authors' scripts write, byte for byte.
    """
    for path, rows in ((train, [c[1:3] for c in clients]), (test, [c[3:5] for c in clients])):
        content = {
            "users": [client.id for client in clients],
            "user_data": {
                # Labels are written as floats (3.0), as the scripts do.
                client.id: {"x": x.tolist(), "y": y.astype(float).tolist()}
                for client, (x, y) in zip(clients, rows, strict=True)
            },
            "num_samples": [len(y) for _, y in rows],
        }
        encoded = json.dumps(content).encode()
        path.write_bytes(gzip.compress(encoded, mtime=0) if path.suffix == ".gz" else encoded)


def _linear_model(rng: np.random.RandomState, mean: float) -> tuple[np.ndarray, np.ndarray]:
    return rng.normal(mean, 1, (NUM_FEATURES, NUM_CLASSES)), rng.normal(mean, 1, NUM_CLASSES)


def _labels(x: np.ndarray, weights: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """The most probable class of every row, (n,) int64; no noise.

    The softmax does not change which class that is, except where exp overflows: then the first class to do so wins
    (inf / inf is nan, and argmax stops there). Rows one by one, so that rounding is the authors' too.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        weight = np.exp([np.dot(row, weights) + bias for row in x])
        return np.argmax(weight / weight.sum(axis=1, keepdims=True), axis=1)


def _split(name: str, x: np.ndarray, y: np.ndarray, shuffler: random.Random) -> Client:
    order = list(range(len(y)))
    shuffler.shuffle(order)
    train, test = np.split(np.array(order), [int(0.9 * len(y))])  # differs from paper: it says 80 % for training
    return Client(name, x[train], y[train], x[test], y[test])
