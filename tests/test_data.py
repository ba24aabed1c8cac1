"""Data are the digits, or letters, they claim to be, or an error names the file."""

import gzip
import shutil
import struct

import numpy as np
import pytest
import torch

from fedprox_book import profile, sweeps_paper
from fedprox_book.paper import LogNormalSizes, femnist
from fedprox_lib import data
from fedprox_lib.sweeps import datasets
from fedprox_lib.sweeps.federations import federation_of


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
    monkeypatch.setitem(datasets._FULL, "mnist", datasets._FULL["mnist"]._replace(sha256=sums))
    monkeypatch.setenv("FEDPROX_DATA", str(tmp_path))
    datasets._load.cache_clear()
    yield raw
    datasets._load.cache_clear()


def test_mnist5k_is_balanced_and_split_once():
    d = datasets.load("mnist5k")
    assert d.train.x.shape == (4000, 1, 28, 28) and d.test.x.shape == (1000, 1, 28, 28)
    assert d.train.y.bincount().tolist() == [400] * 10 and d.test.y.bincount().tolist() == [100] * 10
    assert d.train.x.dtype == torch.float32 and d.train.y.dtype == torch.int64
    as_bytes = lambda x: {row.numpy().tobytes() for row in x}  # noqa: E731
    assert not as_bytes(d.train.x) & as_bytes(d.test.x)


def test_normalisations():
    standard, per_pixel, unit = (datasets.load("mnist5k", name).train.x for name in datasets.NORMALISATIONS)
    assert (float(unit.min()), float(unit.max())) == (0.0, 1.0)
    assert torch.allclose(unit, standard * 0.3081 + 0.1307, atol=1e-6)
    assert abs(float(standard.min()) - (0 - 0.1307) / 0.3081) < 1e-5
    assert abs(float(standard.max()) - (1 - 0.1307) / 0.3081) < 1e-5
    assert float(per_pixel.mean(0).abs().max()) < 1e-3
    assert float(per_pixel.std(0).max()) < 1.01
    with pytest.raises(ValueError, match=r"normalisation must be one of standard, per_pixel, unit, got 'x'"):
        datasets.load("mnist5k", "x")


def test_archives_are_unpacked_and_read_through_torchvision(idx_folder):
    d = datasets.load("mnist")
    assert d.train.x.shape == (20, 1, 28, 28) and d.test.y.tolist() == list(range(10))


def test_a_truncated_archive_is_named(idx_folder):
    archive = idx_folder / "train-images-idx3-ubyte.gz"
    archive.write_bytes(archive.read_bytes()[:-200])
    with pytest.raises(data.DataCorrupt, match=r"train-images-idx3-ubyte.gz is truncated or altered"):
        datasets.load("mnist")
    assert not (idx_folder / "train-images-idx3-ubyte").exists()


def test_an_altered_file_is_named(idx_folder):
    datasets.load("mnist")
    datasets._load.cache_clear()
    labels = idx_folder / "t10k-labels-idx1-ubyte"
    content = bytearray(labels.read_bytes())
    content[-1] ^= 1
    labels.write_bytes(bytes(content))
    with pytest.raises(data.DataCorrupt, match=r"t10k-labels-idx1-ubyte is truncated or altered \(SHA-256"):
        datasets.load("mnist")


def test_a_well_formed_but_other_archive_is_named(idx_folder):
    (idx_folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"other content"))
    with pytest.raises(data.DataCorrupt, match=r"train-labels-idx1-ubyte is truncated or altered"):
        datasets.load("mnist")


def test_missing_full_mnist_names_the_ways_to_get_it(tmp_path, monkeypatch):
    """No network: torchvision's mirrors are replaced by a port nobody listens on."""
    from torchvision import datasets as known

    monkeypatch.setattr(known.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    monkeypatch.setenv("FEDPROX_DATA", str(tmp_path / "empty"))
    datasets._load.cache_clear()
    with pytest.raises(
        datasets.DataMissing, match=r"(?s)connect to the internet.*set FEDPROX_DATA.*data='mnist5k'\) need neither"
    ):
        datasets.load("mnist")


def test_unknown_data_set():
    with pytest.raises(ValueError, match=r"data must be one of mnist, fashion_mnist, mnist5k, femnist, got 'emnist'"):
        datasets.load("emnist")


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_full_data_where_they_are(name, tmp_path, monkeypatch):
    """Runs where FEDPROX_DATA names a folder that holds the set; elsewhere the small IDX files above stand in."""
    import os
    from pathlib import Path

    source = Path(os.environ.get("FEDPROX_DATA", "")) / datasets._FULL[name].folder
    if not os.environ.get("FEDPROX_DATA") or not (source / "raw").is_dir():
        pytest.skip(f"FEDPROX_DATA holds no {name}")
    shutil.copytree(source, tmp_path / source.name)
    for path in [tmp_path / source.name, *(tmp_path / source.name).rglob("*")]:
        path.chmod(0o755)
    monkeypatch.setenv("FEDPROX_DATA", str(tmp_path))
    datasets._load.cache_clear()
    d = datasets.load(name)
    assert d.train.x.shape == (60_000, 1, 28, 28) and d.test.x.shape == (10_000, 1, 28, 28)
    datasets._load.cache_clear()


# --- FEMNIST, on made-up images --------------------------------------------------------------------------------------


OTHERS = [0, 9, 10, 35, 46, 61]
"""Digits, capitals, and the small letters k and z as EMNIST "byclass" numbers them."""


@pytest.fixture
def emnist_folder(tmp_path, monkeypatch):
    """EMNIST's four "byclass" archives as torchvision unpacks them from NIST's zip: 40 and 10 images of every letter.

    Upright, image number i of a file has i in two bytes at the left end of its top row, its label and its part right
    of them, and a bright pixel at its right end. The files hold the images column by column, as EMNIST's do.
    """
    raw = tmp_path / "EMNIST" / "raw"
    raw.mkdir(parents=True)
    for part, of_each in (("train", 40), ("test", 10)):
        labels = np.random.default_rng(of_each).permutation(np.repeat([*range(36, 46), *OTHERS], of_each))
        upright = np.zeros((len(labels), 28, 28), dtype=np.uint8)
        upright[:, 0, :2] = np.stack(divmod(np.arange(len(labels)), 256), axis=1)
        upright[:, 0, 2], upright[:, 0, 3], upright[:, 0, 27] = labels, of_each, 255
        for content, header, array in (
            ("images-idx3", struct.pack(">IIII", 2051, *upright.shape), upright.transpose(0, 2, 1)),
            ("labels-idx1", struct.pack(">II", 2049, len(labels)), labels),
        ):
            archive = raw / f"emnist-byclass-{part}-{content}-ubyte.gz"
            archive.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))
    monkeypatch.setenv("FEDPROX_DATA", str(tmp_path))
    forget()
    yield raw
    forget()


def forget():
    datasets._load.cache_clear()
    datasets.pooled.cache_clear()


def numbers(examples):
    """Each image's number in its file and its label there, read from its pixels."""
    top = (examples.x[:, 0, 0] * 255).round().long()
    return (256 * top[:, 0] + top[:, 1]).tolist(), top[:, 2]


def test_femnist_is_the_letters_a_to_j_upright_in_0_to_1(emnist_folder):
    d = datasets.load("femnist", "unit")
    for part, of_each in ((d.train, 40), (d.test, 10)):
        assert part.x.shape == (10 * of_each, 1, 28, 28) and part.x.dtype == torch.float32
        assert part.y.dtype == torch.int64 and part.y.bincount().tolist() == [of_each] * 10
        assert (part.x[:, 0, 0, 27] == 1).all() and (part.x[:, 0, 27] == 0).all()  # right end of the top, not the left
        found, labels = numbers(part)
        assert torch.equal(labels - 36, part.y)
        assert found == sorted(set(found))  # file order


def test_femnist_takes_so_many_of_a_letter_and_no_more(emnist_folder, monkeypatch):
    assert femnist.MOST_TRAIN + femnist.MOST_TEST == 4_000
    everything = datasets.load("femnist", "unit")
    monkeypatch.setattr(femnist, "MOST_TRAIN", 15)
    monkeypatch.setattr(femnist, "MOST_TEST", 12)
    forget()
    d = datasets.load("femnist", "unit")
    assert d.train.y.bincount().tolist() == [15] * 10 and d.test.y.bincount().tolist() == [10] * 10
    assert set(numbers(d.train)[0]) < set(numbers(everything.train)[0])
    assert datasets.pooled("femnist", "unit").y.bincount().tolist() == [25] * 10


def test_femnist_records_the_checksum_of_what_was_read(emnist_folder):
    before = datasets.load("femnist").sha256
    labels = emnist_folder / "emnist-byclass-test-labels-idx1-ubyte"
    content = bytearray(labels.read_bytes())
    content[-1] ^= 1
    labels.write_bytes(bytes(content))
    forget()
    assert datasets.load("femnist").sha256 != before and len(before) == 64
    labels.write_bytes(content[:-3])
    forget()
    with pytest.raises(data.DataCorrupt, match=r"EMNIST/raw holds a EMNIST file that is truncated or altered"):
        datasets.load("femnist")


@pytest.mark.parametrize("there", [[], ["train-images-idx3", "train-labels-idx1"]])
def test_missing_femnist_names_the_ways_to_get_it(emnist_folder, monkeypatch, there):
    """No network: NIST is replaced by a port nobody listens on. torchvision alone would not miss the test part."""
    from torchvision import datasets as known

    monkeypatch.setattr(known.EMNIST, "url", "http://127.0.0.1:9/gzip.zip")
    for archive in emnist_folder.iterdir():
        if not any(name in archive.name for name in there):
            archive.unlink()
    with pytest.raises(
        datasets.DataMissing, match=r"(?s)femnist is not in .*EMNIST/raw.*set FEDPROX_DATA.*EMNIST/raw/"
    ):
        datasets.load("femnist")


def test_femnist_clients_share_no_image(emnist_folder):
    """The authors' script gives all clients of a letter the same leading images."""
    e = sweeps_paper.femnist(profile.profile_named("paper"))[0]
    e = e.__class__(**{**vars(e), "partition": LogNormalSizes(num_clients=4), "cohort_size": 2})
    federation = federation_of(e)
    held = np.concatenate(federation.partition.rows)
    assert len(held) == len(np.unique(held)) > 0
    pool = datasets.pooled("femnist", "unit")
    images = [{image.numpy().tobytes() for image in pool.take(rows).x} for rows in federation.partition.rows]
    tested = {image.numpy().tobytes() for image in federation.test.x}
    assert len(set.union(*images)) == len(held) and not set.union(*images) & tested
    first, second = (set(pool.labels[rows]) for rows in federation.partition.rows[:2])
    assert first & second == {1, 2, 3, 4}
    assert federation.data_sha256 == datasets.load("femnist", "unit").sha256
