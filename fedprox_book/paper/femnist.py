"""The recipe of the paper's FEMNIST: handwritten letters from EMNIST, five letters per client, sizes log-normal.

Tested on made-up images and never run: no number in this book was made with it. EMNIST's checksums are not known to us,
so the checksum of what was read is recorded instead. Taught in "Systems heterogeneity". Layer: book (NumPy data).
"""

from dataclasses import dataclass

import numpy as np

from fedprox_lib.partition import Partition, holders_by_label, partition_of
from fedprox_lib.require import require_integer
from fedprox_lib.rng import stream
from fedprox_lib.sweeps.datasets import Source, verified_images
from fedprox_lib.sweeps.registry import Parts

EMNIST = Source(
    "EMNIST",
    "EMNIST",
    {
        f"emnist-byclass-{part}-{content}-ubyte": None
        for part in ("train", "test")
        for content in ("images-idx3", "labels-idx1")
    },
    split="byclass",
)

LETTER_A = 36
"""EMNIST "byclass" numbers 0-9, A-Z, a-z in this order."""

MOST_TRAIN, MOST_TEST = 3_200, 800
"""From the two parts of EMNIST, at most: 4,000 of a letter in all, as in the authors' code, a fifth for testing."""


def letters_a_to_j() -> Parts:
    """The letters a to j as labels 0 to 9.

    # differs from authors' code: it shrinks the images of NIST's Special Database 19 as they are, whereas EMNIST crops
    # and centres them and makes the ink bright; and it takes the 4,000 from NIST's own training part.
    """
    train, test, sha256 = verified_images("femnist", EMNIST)

    def letters(images: np.ndarray, labels: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
        rows = np.sort(np.concatenate([np.flatnonzero(labels == LETTER_A + c)[:most] for c in range(10)]))
        # EMNIST's files hold images column by column, which torchvision leaves so.
        return np.ascontiguousarray(images[rows].transpose(0, 2, 1)), labels[rows] - LETTER_A

    return letters(*train, MOST_TRAIN), letters(*test, MOST_TEST), sha256


@dataclass(frozen=True)
class LogNormalSizes:
    """Few labels per client, equally often, sizes log-normal: the paper's FEMNIST (Li et al. 2020, appendix C.1).

    Client k draws n_k = log-normal(4, 1) + 5 and gets n_k / ``labels_per_client`` rows of each of the labels k, k+1,
    ... (mod classes), rounded down, but at least two. A label's rows are shuffled and handed out one after the other.

    # differs from authors' code: it has 3 labels per client where the paper says 5. And a reversed comparison moves it
    # back to a label's first image for nearly every client, so that a label's holders share images; here no two do.

    Attributes:
        num_clients: N, 200 in the paper.
        labels_per_client: 5 in the paper, 3 in the authors' code.

    Example:
        >>> labels = np.repeat(np.arange(10), 400)
        >>> LogNormalSizes(num_clients=10).split(labels, data_seed=0).label_counts(labels)[9].tolist()
        [14, 14, 14, 14, 0, 0, 0, 0, 0, 14]
    """

    num_clients: int = 200
    labels_per_client: int = 5

    def __post_init__(self) -> None:
        require_integer("num_clients", self.num_clients)
        require_integer("labels_per_client", self.labels_per_client)

    def split(self, labels: np.ndarray, *, data_seed: int) -> Partition:
        labels = np.asarray(labels)
        rng = stream(data_seed, "partition")
        sizes = rng.lognormal(4.0, 1.0, self.num_clients) + 5
        of_each_label = np.maximum((sizes / self.labels_per_client).astype(int), 2)
        held: list[list[np.ndarray]] = [[] for _ in range(self.num_clients)]
        for label, holders in enumerate(holders_by_label(self.num_clients, self.labels_per_client, labels)):
            rows = rng.permutation(np.flatnonzero(labels == label))
            ends = np.cumsum(of_each_label[holders])
            if holders and ends[-1] > len(rows):
                raise ValueError(
                    f"{len(holders)} clients need {ends[-1]} rows of label {label}, but the data have {len(rows)}: "
                    "use fewer clients, another data seed or more rows."
                )
            for k, piece in zip(holders, np.split(rows, ends)[: len(holders)], strict=True):
                held[k].append(piece)
        return partition_of([np.concatenate(pieces) for pieces in held])
