"""Data sets by name: MNIST and Fashion-MNIST through torchvision, and the digits that need no network.

Which digits, scaled how, and are they really those digits? Files are checked against known checksums every time they
are opened; a truncated or altered file is named, never read. Full MNIST is looked for in the folder that
``FEDPROX_DATA`` names (torchvision's layout, ``MNIST/raw/``), else in the cache folder, where torchvision downloads it.

Taught in "What federated data looks like". Layer: sweeps (files, downloads and PyTorch).
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

from fedprox_lib.data import DIGITS_SHA256, DataCorrupt, Examples, digit_images, standardised
from fedprox_lib.require import require_one_of
from fedprox_lib.sweeps import registry

NORMALISATIONS = ("standard", "per_pixel", "unit")
"""The choices of scaling.

``standard`` is (x - 0.1307) / 0.3081 for every pixel, as torchvision's examples and the blog do; ``per_pixel`` is
(x - mean_j) / (std_j + 0.001) pixel by pixel on 0..255, as the paper's MNIST, which has a heavier tail; ``unit`` is
0..255 scaled to 0..1, as the paper's FEMNIST.
"""


class Data(NamedTuple):
    """A data set: its training and test examples, and the checksum of what they were made from."""

    train: Examples
    test: Examples
    sha256: str


class DataMissing(FileNotFoundError):
    """Full data are not on this machine; the message names the ways to get them."""


class Source(NamedTuple):
    """Where a full data set lies, and the SHA-256 of its four unpacked IDX files, None where it is not known to us."""

    folder: str
    torchvision_class: str
    sha256: Mapping[str, str | None]
    split: str | None = None


_FULL = {
    "mnist": Source(
        "MNIST",
        "MNIST",
        {
            "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
    ),
    "fashion_mnist": Source(
        "FashionMNIST",
        "FashionMNIST",
        {
            "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
    ),
}


def load(name: str, normalisation: str = "standard") -> Data:
    """Load a data set.

    Args:
        name: a registered data set of images.
        normalisation: one of ``NORMALISATIONS``; statistics are those of the training examples.

    Raises:
        DataMissing: full data are neither on this machine nor to be downloaded.
        DataCorrupt: a file is truncated or altered.
    """
    files = [known for known, data in registry.DATASETS.items() if data.images]
    require_one_of("data", name, files)
    require_one_of("normalisation", normalisation, NORMALISATIONS)
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
    source = registry.DATASETS[name].images
    assert source is not None
    train, test, sha256 = source()
    if normalisation == "standard":
        return Data(standardised(*train), standardised(*test), sha256)
    shift, scale = 0.0, 255.0
    if normalisation == "per_pixel":
        pixels = train[0].astype(np.float64)
        shift, scale = pixels.mean(0), pixels.std(0) + 0.001

    def examples(x: np.ndarray, y: np.ndarray) -> Examples:
        scaled = ((x - shift) / scale).astype(np.float32)
        return Examples(torch.from_numpy(scaled)[:, None], torch.from_numpy(y.astype(np.int64)))

    return Data(examples(*train), examples(*test), sha256)


def cache_dir() -> Path:
    """Where downloads go: ``$XDG_CACHE_HOME/fedprox_lib`` or ``~/.cache/fedprox_lib``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedprox_lib"


def verified_images(name: str, source: Source) -> registry.Parts:
    """The images and labels of a full data set, downloaded if need be, and the checksum of its files.

    Raises:
        DataMissing: they are neither on this machine nor to be downloaded.
        DataCorrupt: a file is truncated or altered.
    """
    root = Path(os.environ.get("FEDPROX_DATA") or cache_dir())
    raw = root / source.folder / "raw"
    allow_torchvision_beside_cpu_torch()
    from torchvision import datasets as known

    options = {"split": source.split} if source.split else {}
    cls = partial(getattr(known, source.torchvision_class), root, **options)
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
                f"holds {source.folder}/raw/ with the four IDX files. The 5,000 digits (data='mnist5k') need neither."
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


def _full(name: str) -> registry.Parts:
    return verified_images(name, _FULL[name])


def _digits() -> registry.Parts:
    return *digit_images(), DIGITS_SHA256


registry.register(
    __name__,
    datasets={
        "mnist": registry.DataSet(784, 60_000, images=partial(_full, "mnist")),
        "fashion_mnist": registry.DataSet(784, 60_000, images=partial(_full, "fashion_mnist")),
        "mnist5k": registry.DataSet(784, 4_000, images=_digits),
    },
)
