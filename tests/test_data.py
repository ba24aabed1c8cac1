"""Data are the digits they claim to be, or an error names the file."""

import gzip
import shutil
import struct

import numpy as np
import pytest
import torch

from fedprox_lib import data


@pytest.fixture
def idx_folder(tmp_path, monkeypatch):
    """A small genuine IDX data set in torchvision's layout, known to the loader by its checksums."""
    import hashlib

    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    sums = {}
    for part, n in (("train", 20), ("t10k", 10)):
        images, labels = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8), np.arange(n, dtype=np.uint8) % 10
        for name, content in (
            (f"{part}-images-idx3-ubyte", struct.pack(">IIII", 2051, n, 28, 28) + images.tobytes()),
            (f"{part}-labels-idx1-ubyte", struct.pack(">II", 2049, n) + labels.tobytes()),
        ):
            (raw / f"{name}.gz").write_bytes(gzip.compress(content))
            sums[name] = hashlib.sha256(content).hexdigest()
    monkeypatch.setitem(data._FULL, "mnist", data._FULL["mnist"]._replace(sha256=sums))
    monkeypatch.setenv("FEDPROX_DATA", str(tmp_path))
    data._load.cache_clear()
    yield raw
    data._load.cache_clear()


def test_mnist5k_is_balanced_and_split_once():
    d = data.load("mnist5k")
    assert d.train.x.shape == (4000, 1, 28, 28) and d.test.x.shape == (1000, 1, 28, 28)
    assert d.train.y.bincount().tolist() == [400] * 10 and d.test.y.bincount().tolist() == [100] * 10
    assert d.train.x.dtype == torch.float32 and d.train.y.dtype == torch.int64
    as_bytes = lambda x: {row.numpy().tobytes() for row in x}  # noqa: E731
    assert not as_bytes(d.train.x) & as_bytes(d.test.x)


def test_normalisations():
    standard, per_pixel = data.load("mnist5k").train.x, data.load("mnist5k", "per_pixel").train.x
    assert abs(float(standard.min()) - (0 - 0.1307) / 0.3081) < 1e-5
    assert abs(float(standard.max()) - (1 - 0.1307) / 0.3081) < 1e-5
    assert float(per_pixel.mean(0).abs().max()) < 1e-3
    assert float(per_pixel.std(0).max()) < 1.01
    with pytest.raises(ValueError, match=r"normalisation must be one of standard, per_pixel, got 'x'"):
        data.load("mnist5k", "x")


def test_archives_are_unpacked_and_read_through_torchvision(idx_folder):
    d = data.load("mnist")
    assert d.train.x.shape == (20, 1, 28, 28) and d.test.y.tolist() == list(range(10))


def test_a_truncated_archive_is_named(idx_folder):
    archive = idx_folder / "train-images-idx3-ubyte.gz"
    archive.write_bytes(archive.read_bytes()[:-200])
    with pytest.raises(data.DataCorrupt, match=r"train-images-idx3-ubyte.gz is truncated or altered"):
        data.load("mnist")
    assert not (idx_folder / "train-images-idx3-ubyte").exists()


def test_an_altered_file_is_named(idx_folder):
    data.load("mnist")
    data._load.cache_clear()
    labels = idx_folder / "t10k-labels-idx1-ubyte"
    content = bytearray(labels.read_bytes())
    content[-1] ^= 1
    labels.write_bytes(bytes(content))
    with pytest.raises(data.DataCorrupt, match=r"t10k-labels-idx1-ubyte is truncated or altered \(SHA-256"):
        data.load("mnist")


def test_a_well_formed_but_other_archive_is_named(idx_folder):
    (idx_folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"other content"))
    with pytest.raises(data.DataCorrupt, match=r"train-labels-idx1-ubyte is truncated or altered"):
        data.load("mnist")


def test_missing_full_mnist_names_the_ways_to_get_it(tmp_path, monkeypatch):
    """No network: torchvision's mirrors are replaced by a port nobody listens on."""
    from torchvision import datasets

    monkeypatch.setattr(datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    monkeypatch.setenv("FEDPROX_DATA", str(tmp_path / "empty"))
    data._load.cache_clear()
    with pytest.raises(
        data.DataMissing, match=r"(?s)connect to the internet.*set FEDPROX_DATA.*'published' needs neither"
    ):
        data.load("mnist")


def test_unknown_data_set():
    with pytest.raises(ValueError, match=r"data must be one of mnist, fashion_mnist, mnist5k, got 'emnist'"):
        data.load("emnist")


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_full_data_where_they_are(name, tmp_path, monkeypatch):
    """Runs where FEDPROX_DATA names a folder that holds the set; elsewhere the small IDX files above stand in."""
    import os
    from pathlib import Path

    source = Path(os.environ.get("FEDPROX_DATA", "")) / data._FULL[name].folder
    if not os.environ.get("FEDPROX_DATA") or not (source / "raw").is_dir():
        pytest.skip(f"FEDPROX_DATA holds no {name}")
    shutil.copytree(source, tmp_path / source.name)
    for path in [tmp_path / source.name, *(tmp_path / source.name).rglob("*")]:
        path.chmod(0o755)
    monkeypatch.setenv("FEDPROX_DATA", str(tmp_path))
    data._load.cache_clear()
    d = data.load(name)
    assert d.train.x.shape == (60_000, 1, 28, 28) and d.test.x.shape == (10_000, 1, 28, 28)
    data._load.cache_clear()
