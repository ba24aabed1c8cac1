"""A stranger's rows: arrays with client ids, pairs, data sets in torchvision's manner, LEAF files with images."""

import json

import numpy as np
import pytest
import torch

from fedprox_lib import FedAvg, Federation, LocalWork, data, hold_out, models, simulate
from fedprox_lib.data import from_arrays, from_dataset, from_pairs
from fedprox_lib.partition import IID

IDS = np.array(["Bo", "Al", "Bo", "Cy", "Al", "Bo"])


def rows(*shape, n=6, seed=0):
    return np.random.default_rng(seed).standard_normal((n, *shape)), np.array([0, 1, 2, 0, 1, 2])[:n]


def same(a, b):
    (a, p), (b, q) = a, b
    assert a.x.dtype == b.x.dtype and torch.equal(a.x, b.x) and torch.equal(a.y, b.y)
    assert [r.tolist() for r in p.rows] == [r.tolist() for r in q.rows]


@pytest.mark.parametrize("shape", [(4,), (1, 5, 5), (3, 5, 4), (2, 3, 4, 5)])
def test_arrays_tensors_and_lists_come_to_the_same(shape):
    x, y = rows(*shape)
    found, partition = from_arrays(x, y, IDS)
    assert found.x.shape == (6, *shape) and found.x.dtype == torch.float64 and found.y.dtype == torch.int64
    assert np.array_equal(found.x, x) and np.array_equal(found.labels, y)
    assert [held.tolist() for held in partition.rows] == [[1, 4], [0, 2, 5], [3]]
    assert all(held.dtype == np.int64 for held in partition.rows)
    same((found, partition), from_arrays(torch.from_numpy(x), torch.from_numpy(y), IDS.tolist()))
    same((found, partition), from_arrays(x.tolist(), y.tolist(), list(IDS)))
    same((found, partition), from_arrays(torch.from_numpy(x).requires_grad_(), y.astype(np.uint16), IDS))


@pytest.mark.parametrize(
    "ids",
    [[7, 3, 7, 9, 3, 7], [0.7, 0.3, 0.7, 0.9, 0.3, 0.7], torch.tensor([7, 3, 7, 9, 3, 7]), np.array(IDS, dtype=object)],
)
def test_ids_are_whatever_can_be_sorted(ids):
    _, partition = from_arrays(*rows(4), ids)
    assert [held.tolist() for held in partition.rows] == [[1, 4], [0, 2, 5], [3]]


def test_what_is_not_float64_becomes_float32():
    _, y = rows(4)
    for dtype in (np.uint8, np.uint16, np.int64, np.float16, np.float32, bool):
        assert from_arrays(np.ones((6, 4), dtype), y, IDS)[0].x.dtype == torch.float32
    assert from_arrays(np.full((6, 4), 255, np.uint8), y, IDS)[0].x.unique().tolist() == [255.0]
    assert from_arrays(torch.ones(6, 4, dtype=torch.bfloat16), y, IDS)[0].x.dtype == torch.float32


@pytest.mark.filterwarnings("error")
def test_memory_is_not_shared_and_any_layout_is_read():
    x, y = rows(4)
    found, _ = from_arrays(x, y, IDS)
    t = torch.from_numpy(x)
    also, _ = from_arrays(t, torch.from_numpy(y), IDS)
    before = x.copy()
    x *= 0
    y += 1
    assert np.array_equal(found.x, before) and np.array_equal(also.x, before) and found.y.tolist() == [0, 1, 2] * 2
    before.flags.writeable = False
    assert np.array_equal(from_arrays(before[::-1, ::2], y, IDS)[0].x, before[::-1, ::2])
    pixels = np.ones((6, 8, 8, 3)).transpose(0, 3, 1, 2)
    for images in (pixels, torch.from_numpy(pixels)):
        assert from_arrays(images, y, IDS)[0].x.is_contiguous()


def test_pairs_are_arrays_sorted_by_client():
    x, y = rows(1, 5, 5)
    by_client = np.argsort(IDS, kind="stable")
    pairs = [(x[name == IDS], y[name == IDS]) for name in np.unique(IDS)]
    same(from_pairs(iter(pairs)), from_arrays(x[by_client], y[by_client], IDS[by_client]))


class Coloured:
    """What torchvision's data sets offer: a length, and (image, label) by number."""

    def __init__(self, n=6, image=torch.from_numpy, label=int):
        self.x, self.y = np.random.default_rng(0).random((n, 3, 8, 8), dtype=np.float32), np.arange(n) % 3
        self.image, self.label = image, label

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        if not 0 <= i < len(self):
            raise IndexError(i)
        return self.image(self.x[i]), self.label(self.y[i])


@pytest.mark.parametrize("image", [torch.from_numpy, np.asarray, lambda image: image.tolist()])
@pytest.mark.parametrize("label", [int, np.int64, torch.tensor])
def test_a_data_set_of_three_channels(image, label):
    dataset = Coloured(image=image, label=label)
    found = from_dataset(dataset)
    assert found.x.shape == (6, 3, 8, 8) and found.y.tolist() == [0, 1, 2, 0, 1, 2] and found.y.dtype == torch.int64
    assert np.allclose(found.x, dataset.x)
    part = from_dataset(torch.utils.data.Subset(dataset, [4, 1]))
    assert torch.equal(part.x, found.take(np.array([4, 1])).x) and part.y.tolist() == [1, 1]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_own_rows_train(dtype):
    """NumPy's own numbers are float64: the weights follow them."""
    x, y = rows(4, n=6)
    found, partition = from_arrays(np.tile(x, (5, 1)).astype(dtype), np.tile(y, 5), np.repeat(["a", "b", "c"], 10))
    train, test = hold_out(partition, 0.2, data_seed=0)
    federation = Federation(found, found.take(np.concatenate(test.rows)), train, models.logistic(4, 3))
    run = simulate(
        federation, FedAvg(), work=LocalWork(epochs=3, batch_size=4, lr=0.5), rounds=3, cohort_size=2, seed=0
    )
    losses = [(state.params["dense.weight"].dtype, measured["train_loss"]) for state, measured in run]
    assert losses[-1][1] < losses[0][1] and losses[0][0] == found.x.dtype


def test_a_data_set_is_cut_by_the_library_s_partitions():
    train = from_dataset(Coloured(30))
    federation = Federation(train, from_dataset(Coloured(9)), IID(3).split(train.labels, data_seed=0), None)
    assert federation.partition.sizes.tolist() == [10, 10, 10]


X, Y = rows(4)
GAPS = X.copy()
GAPS[3, 1] = np.nan
REFUSED = {
    "x longer": (lambda: from_arrays(X, Y[:5], IDS), r"x must have shape .*got \(6, 4\) and \(5,\): give every row"),
    "ids shorter": (
        lambda: from_arrays(X, Y, IDS[:5]),
        r"one id per row, 6 in all.*got shape \(5,\).*say of every row",
    ),
    "ids per feature": (lambda: from_arrays(X, Y, X), r"one id per row, 6 in all.*got shape \(6, 4\)"),
    "ids missing": (lambda: from_arrays(X, Y, [1, 2, np.nan, 1, np.nan, 2]), r"none of them NaN.*with 2 NaN"),
    "half a label": (lambda: from_arrays(X, Y + 0.5, IDS), r"y must be whole .*row 0 has 0.5: number the classes"),
    "labels from -1": (lambda: from_arrays(X, Y - 1, IDS), r"y must be whole numbers >= 0, but row 0 has -1"),
    "label NaN": (lambda: from_arrays(X, np.where(Y == 1, np.nan, Y), IDS), r"but row 1 has nan: number the classes"),
    "label inf": (lambda: from_arrays(X, np.where(Y == 1, np.inf, Y), IDS), r"but row 1 has inf: number the classes"),
    "one-hot": (lambda: from_arrays(X, np.eye(3)[Y], IDS), r"and y \(n,\).*got \(6, 4\) and \(6, 3\)"),
    "words": (lambda: from_arrays(X, IDS, IDS), r"y whole numbers, got other things.*number the classes from 0"),
    "NaN": (lambda: from_arrays(GAPS, Y, IDS), r"x must be finite, but row 3 has nan: fill the gaps"),
    "inf": (lambda: from_arrays(np.where(np.isnan(GAPS), -np.inf, GAPS), Y, IDS), r"finite, but row 3 has -inf"),
    "flat": (lambda: from_arrays(X[:, 0], Y, IDS), r"x must have shape \(n, \.\.\.\).*got \(6,\) and \(6,\)"),
    "ragged": (lambda: from_arrays([[1, 2], [3]], [0, 1], [0, 1]), r"rows of numbers, all of one shape.*pad or crop"),
    "nothing": (lambda: from_arrays([], [], []), r"with one n >= 1, got \(0,\) and \(0,\)"),
    "no rows": (lambda: from_arrays(X[:0], Y[:0], IDS[:0]), r"with one n >= 1, got \(0, 4\)"),
    "one number": (lambda: from_arrays(1.0, 1, 1), r"x must have shape .*got \(\) and \(\)"),
    "an empty client": (lambda: from_pairs([(X, Y), (X[:0], Y[:0])]), r"client 1: .*leave out clients without rows"),
    "a client's labels": (lambda: from_pairs([(X, Y), (X, Y - 1)]), r"client 1: y must be whole numbers >= 0"),
    "nobody": (lambda: from_pairs([]), r"every client, at least one, needs rows of one shape, got no client"),
    "other widths": (
        lambda: from_pairs([(X, Y), (X, Y), (X[:, :3], Y)]),
        r"got \(4,\) at client 0, \(3,\) at client 2: pad or crop",
    ),
    "an empty data set": (lambda: from_dataset(Coloured(0)), r"from_dataset: .*with one n >= 1"),
    "images of two sizes": (
        lambda: from_dataset([(np.ones((3, 8, 8)), 0), (np.ones((3, 9, 8)), 1)]),
        r"from_dataset: x must be rows of numbers, all of one shape",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_named(case):
    make, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        make()


def leaf(x, y=(0, 1)):
    names = ["b", "a"]
    return {"users": names, "num_samples": [2, 2], "user_data": {name: {"x": x, "y": list(y)} for name in names}}


@pytest.mark.parametrize("shape", [(4,), (28, 28), (3, 5, 4)])
def test_leaf_files_by_str_path_keep_the_shape_of_images(tmp_path, shape):
    x = np.arange(2 * np.prod(shape)).reshape(2, *shape)
    paths = [str(tmp_path / name) for name in ("train.json", "test.json")]
    empty = {"x": [], "y": []}
    held = {"a": {"x": x.tolist(), "y": [1, 0]}, "b": empty}
    test = {"users": ["a", "b"], "num_samples": [2, 0], "user_data": held}
    for path, content in zip(paths, (leaf(x.tolist()), test), strict=True):
        with open(path, "w") as file:
            json.dump(content, file)
    clients = data.read_leaf(*paths)
    assert [client.id for client in clients] == ["a", "b"]
    assert all(np.array_equal(client.x, x) for client in clients) and clients[1].test_x.shape == (0, *shape)
    train, test_rows, partition = data.federate(clients)
    assert train.x.shape == (4, *shape) and train.x.dtype == torch.float32 and test_rows.x.shape == (2, *shape)
    assert [held.tolist() for held in partition.rows] == [[0, 1], [2, 3]]


def test_leaf_files_of_other_shapes_and_missing_files_are_named(tmp_path):
    train, test = (str(tmp_path / name) for name in ("train.json", "test.json"))
    with pytest.raises(FileNotFoundError):
        data.read_leaf(train, test)
    for path, x in ((train, np.ones((2, 4, 4))), (test, np.ones((2, 16)))):
        with open(path, "w") as file:
            json.dump(leaf(x.tolist()), file)
    with pytest.raises(data.LeafMalformed, match=r"test.json: .*as many features as those of 'a', \[4, 4\], .* \[16\]"):
        data.read_leaf(train, test)
    with open(train, "w") as file:
        json.dump(leaf([5, 6]), file)
    with pytest.raises(data.LeafMalformed, match=r"test.json: .*'a', \[1\]"):
        data.read_leaf(train, test)
    for wrong in (5, [[1], [1, 2]], ["to be", "or not"]):
        with open(train, "w") as file:
            json.dump(leaf(wrong), file)
        with pytest.raises(data.LeafMalformed, match=r"train.json: client 'b'.*features are numbers"):
            data.read_leaf(train, test)
