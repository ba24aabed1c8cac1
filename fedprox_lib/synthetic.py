"""The paper's four synthetic federations, drawn number for number as the authors' scripts draw them; LEAF files.

Which question this answers: *what data did the authors train on?* Thirty clients, 60 features, 10 labels, and sizes
from a log-normal law, so that one client may hold most of the rows (Li et al. 2020, section 5.1 and appendix C.1):

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

Taught in "Do we compute what the authors computed?". Room: NumPy data, files, and the border to PyTorch. May import
data, partition.
"""

import gzip
import json
import random
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from fedprox_lib.data import Examples
from fedprox_lib.partition import Partition

NUM_CLIENTS, NUM_FEATURES, NUM_CLASSES = 30, 60, 10

SPREADS = {"synthetic_iid": None, "synthetic_0_0": 0.0, "synthetic_0.5_0.5": 0.5, "synthetic_1_1": 1.0}
"""The sets by name, with alpha = beta: the spread of the clients' models and of their features; None where all share.

It is used as a standard deviation. The paper writes N(0, alpha), which would make it a variance; only for 0.5 does
that matter.
"""


class Client(NamedTuple):
    """What one client holds, d features a row.

    Attributes:
        id: its name, such as ``"f_00000"``.
        x: (n, d) float64, training rows.
        y: (n,) int64, their labels, 0-based.
        test_x: (m, d) float64.
        test_y: (m,) int64.
    """

    id: str
    x: np.ndarray
    y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray


class LeafMalformed(ValueError):
    """A LEAF file is not what it should be; the message names it."""


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


def federate(clients: Sequence[Client]) -> tuple[Examples, Examples, Partition]:
    """The library's view of such clients.

    Returns:
        (training rows, test rows, partition): all clients' rows one client after another, x (n, d) float32 and y (n,)
        int64; ``partition.rows[k]`` numbers the training rows of client k.
    """

    def examples(x: Sequence[np.ndarray], y: Sequence[np.ndarray]) -> Examples:
        return Examples(torch.from_numpy(np.concatenate(x).astype(np.float32)), torch.from_numpy(np.concatenate(y)))

    ends = np.cumsum([len(client.y) for client in clients])
    return (
        examples([client.x for client in clients], [client.y for client in clients]),
        examples([client.test_x for client in clients], [client.test_y for client in clients]),
        Partition(tuple(np.split(np.arange(ends[-1]), ends[:-1]))),
    )


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


def read_leaf(train: Path, test: Path) -> tuple[Client, ...]:
    """Read two LEAF files (.json or .json.gz) whose features are numbers.

    Returns:
        The clients of the training file, sorted by id as the authors' reader sorts them, whatever the order of
        ``users``. Clients that only the test file knows are left out.

    Raises:
        FileNotFoundError: if a file is not there.
        LeafMalformed: if a file is not LEAF data, if the two do not belong together, or if a client has nothing to
            train on.
    """
    training, testing = _read(train), _read(test)
    if missing := sorted(training.keys() - testing.keys()):
        raise LeafMalformed(
            f"{test} must hold every client of {train}, but lacks {missing[0]!r} ({len(missing)} in all): "
            "give the two files of one data set."
        )
    clients = [Client(name, *training[name], *testing[name]) for name in sorted(training)]
    num_features = clients[0].x.shape[1]
    for client in clients:
        if not len(client.y):
            raise LeafMalformed(f"{train}: every client needs training rows, but {client.id!r} has none: leave it out.")
        for path, x in ((train, client.x), (test, client.test_x)):
            if len(x) and x.shape[1] != num_features:
                raise LeafMalformed(
                    f"{path}: all rows must have as many features as those of {clients[0].id!r}, {num_features}, but "
                    f"those of {client.id!r} have {x.shape[1]}: give the two files of one data set."
                )
    # A client without test rows leaves no trace of the number of features in its file.
    return tuple(client._replace(test_x=client.test_x.reshape(-1, num_features)) for client in clients)


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


def _read(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Client id -> (x, y) of one LEAF file, checked."""
    try:
        content = path.read_bytes()
        leaf = json.loads(gzip.decompress(content) if path.suffix == ".gz" else content)
    except FileNotFoundError:
        raise
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise LeafMalformed(f"{path} must be a JSON file, plain or .gz, but cannot be read as one: {error}.") from error
    keys = {"users": list, "num_samples": list, "user_data": dict}
    for key, kind in keys.items():
        if not (isinstance(leaf, dict) and isinstance(leaf.get(key), kind)):
            raise LeafMalformed(
                f"{path} must be a LEAF file, a JSON object with {', '.join(keys)}, but it has no {kind.__name__} "
                f"{key!r}: give a file as --generate writes it."
            )
    users, counts, user_data = leaf["users"], leaf["num_samples"], leaf["user_data"]
    if not users or sorted(users, key=str) != sorted(user_data) or len(counts) != len(users):
        raise LeafMalformed(
            f"{path}: users, num_samples and user_data must list the same clients, at least one, but they list "
            f"{len(users)}, {len(counts)} and {len(user_data)}, or other names: write the file again."
        )
    return {name: _rows(path, name, user_data[name], count) for name, count in zip(users, counts, strict=True)}


def _rows(path: Path, name: str, held: Any, count: Any) -> tuple[np.ndarray, np.ndarray]:
    try:
        x, y = np.array(held["x"], dtype=np.float64), np.array(held["y"], dtype=np.float64)
        x = x.reshape(len(x), -1) if len(x) else np.empty((0, 0))
        num_labels = len(y)
    except (KeyError, TypeError, ValueError) as error:
        raise LeafMalformed(
            f"{path}: client {name!r} must have x, rows of numbers of one length, and y, a number a row; got "
            f"{type(error).__name__}: {error}. Only data sets whose features are numbers can be used."
        ) from error
    if not (len(x) == num_labels == count and y.ndim == 1):
        raise LeafMalformed(
            f"{path}: client {name!r} must have as many rows in x as labels in y as num_samples says, got {len(x)}, "
            f"{num_labels} and {count}: write the file again."
        )
    if not (np.isfinite(x).all() and (y >= 0).all() and (y == np.floor(y)).all() and (y < 2**31).all()):
        raise LeafMalformed(
            f"{path}: client {name!r} must have finite features and labels 0, 1, 2, ..., got something else: number "
            "the labels from 0 and leave out rows with gaps."
        )
    return x, y.astype(np.int64)
