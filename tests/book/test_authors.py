"""The authors' protocol: our engine against what their code printed, our plans and data against plain re-enactments.

The re-enactments below use NumPy's global generator, as the authors do, between a save and a restore of its state.
"""
# ruff: noqa: NPY002

import contextlib
import gzip
import hashlib
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from fedprox_book import profile
from fedprox_book.paper import authors, synthetic
from fedprox_book.paper.authors_plan import AuthorsPlanner
from fedprox_lib import data, engine, models
from fedprox_lib.algorithms import FedAvg, FedProx
from fedprox_lib.partition import Partition
from fedprox_lib.plan import LocalWork

RECORDED = profile.committed_store() / "authors"
CURVE = RECORDED / "synthetic_iid_fedprox_mu1_stragglers0.5_E20.csv"


@contextlib.contextmanager
def global_generators(seed=0):
    """Use the global generators and leave them as they were."""
    before = np.random.get_state(), random.getstate()
    np.random.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before[0])
        random.setstate(before[1])


def recorded_init():
    return np.loadtxt(RECORDED / "init.csv", delimiter=",", dtype=np.float32)  # (61, 10): kernel, bias


def as_params(rows):
    return {"dense.weight": torch.from_numpy(rows[:-1].T.copy()), "dense.bias": torch.from_numpy(rows[-1].copy())}


# --- what the authors' code printed --------------------------------------------------------------


@pytest.mark.parametrize("backend", engine.BACKENDS)
def test_the_recorded_curve_is_reproduced(backend):
    clients = synthetic.generate("synthetic_iid", 3)
    rows = authors.reenact(
        clients,
        as_params(recorded_init()),
        FedProx(mu=1.0),
        LocalWork(20, 10, 0.01),
        rounds=12,
        cohort_size=10,
        straggler_fraction=0.5,
        backend=engine.BACKENDS[backend],
    )
    ours, theirs = pd.DataFrame(rows), pd.read_csv(CURVE)
    assert list(ours) == list(authors.COLUMNS) == list(theirs)
    assert list(ours["round"]) == list(theirs["round"]) == list(range(13))
    difference = (ours - theirs).abs()
    assert (difference.train_loss / theirs.train_loss)[:12].max() < 1e-4
    assert (difference.gradient_variance / theirs.gradient_variance)[:12].max() < 1e-3
    assert (difference.train_accuracy * sum(len(c.y) for c in clients)).max() < 1.5  # rows
    assert (difference.test_accuracy * sum(len(c.test_y) for c in clients)).max() < 1.5
    assert np.isfinite(ours.to_numpy()).all()  # theirs lacks two numbers after the last round


def test_the_recorded_data_are_made_again():
    """To six decimals: the last bit of NumPy's power, and so of the features, differs between processors."""
    digest = hashlib.sha256()
    for client in synthetic.generate("synthetic_iid", 3):
        for array in client[1:]:
            digest.update(np.rint(array * 1e6).astype("<i8").tobytes())
    assert digest.hexdigest() == (RECORDED / "data.sha256").read_text().strip()


# --- synthetic data ------------------------------------------------------------------------------


def recipe(spread):
    """B1 and B2 of the authors' scripts with the global generators: [(x, y)] in order, shuffled, before the split."""
    sizes = [int(size) + 50 for size in np.random.lognormal(mean=4, sigma=2, size=30)]
    sigma = np.diag([np.power(j, -1.2) for j in range(1, 61)])
    iid = spread is None
    if not iid:
        u, centre = np.random.normal(0, spread, 30), np.random.normal(0, spread, 30)
        v = [np.random.normal(centre[k], 1, 60) for k in range(30)]
    else:
        w, b = np.random.normal(0, 1, (60, 10)), np.random.normal(0, 1, 10)
    made = []
    for k, size in enumerate(sizes):
        if not iid:
            w, b = np.random.normal(u[k], 1, (60, 10)), np.random.normal(u[k], 1, 10)
        x = np.random.multivariate_normal(np.zeros(60) if iid else v[k], sigma, size)
        made.append([(row, int((row @ w + b).argmax())) for row in x])
    for rows in made:
        random.shuffle(rows)
    return made


@pytest.mark.parametrize("name", synthetic.SPREADS)
def test_generated_sets_follow_the_recipe_draw_by_draw(name):
    with global_generators(5):
        expected = recipe(synthetic.SPREADS[name])
    clients = synthetic.generate(name, 5)
    assert [client.id for client in clients] == [f"f_{k:05d}" for k in range(30)]
    for client, rows in zip(clients, expected, strict=True):
        assert len(client.y) == int(0.9 * len(rows)) and len(client.test_y) == len(rows) - len(client.y)
        assert np.array_equal(np.concatenate([client.x, client.test_x]), [x for x, _ in rows])
        assert np.concatenate([client.y, client.test_y]).tolist() == [y for _, y in rows]


def test_generating_is_deterministic_and_moves_no_global_generator():
    before = repr((np.random.get_state(), random.getstate()))
    one, two, other = (synthetic.generate("synthetic_1_1", seed) for seed in (0, 0, 1))
    assert repr((np.random.get_state(), random.getstate())) == before
    assert all(np.array_equal(a, b) for c, d in zip(one, two, strict=True) for a, b in zip(c, d, strict=True))
    assert not np.array_equal(one[0].x[:50], other[0].x[:50])
    # the sizes are drawn first, so another set of the same seed has the same
    assert [len(c.y) for c in synthetic.generate("synthetic_iid", 0)] == [len(c.y) for c in one]
    recorded = synthetic.generate("synthetic_iid", 3)
    assert (sum(len(c.y) for c in recorded), sum(len(c.test_y) for c in recorded)) == (7308, 826)


@pytest.mark.parametrize(("name", "seed"), [("synthetic_2_2", 0), ("synthetic_iid", -1), ("synthetic_iid", 0.5)])
def test_unknown_sets_and_seeds_are_refused(name, seed):
    with pytest.raises(ValueError, match="must be (one of synthetic_iid|an integer)"):
        synthetic.generate(name, seed)


def test_labels_where_the_softmax_overflows_are_the_authors():
    weights = np.zeros((60, 10))
    weights[0] = [1, 2, 800, 0, 900, 0, 0, 0, 0, 0]
    x = np.zeros((2, 60))
    x[:, 0] = [1.0, 0.5]  # exp(800) and exp(900) overflow; exp(400) and exp(450) do not
    assert synthetic._labels(x, weights, np.zeros(10)).tolist() == [2, 4]


def test_federating_numbers_the_rows_client_by_client():
    clients = synthetic.generate("synthetic_0_0", 2)
    train, test, partition = data.federate(clients)
    assert (train.x.dtype, train.y.dtype) == (torch.float32, torch.int64)
    assert np.array_equal(np.concatenate(partition.rows), np.arange(len(train.y)))
    held = train.take(partition.rows[7])
    assert np.array_equal(held.x.numpy(), clients[7].x.astype(np.float32))
    assert held.y.tolist() == clients[7].y.tolist()
    assert len(test.y) == sum(len(client.test_y) for client in clients)


# --- LEAF files ----------------------------------------------------------------------------------


def leaf(**changes):
    users = ["b", "a"]
    rows = {"b": {"x": [[1.0, 2.0]], "y": [1.0]}, "a": {"x": [[3.0, 4.0], [5.0, 6.0]], "y": [0, 2]}}
    return {"users": users, "num_samples": [1, 2], "user_data": rows} | changes


def write(path, content):
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


@pytest.mark.parametrize("suffix", ["json", "json.gz"])
def test_leaf_files_come_back_as_they_were_written(tmp_path, suffix):
    clients = sorted(synthetic.generate("synthetic_0.5_0.5", 0), key=lambda c: len(c.y))[:5]
    paths = [tmp_path / f"{part}.{suffix}" for part in ("train", "test")]
    synthetic.write_leaf(clients, *paths)
    for before, after in zip(sorted(clients, key=lambda c: c.id), data.read_leaf(*paths), strict=True):
        assert before.id == after.id
        assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(before[1:], after[1:], strict=True))


def test_clients_are_sorted_by_id_and_may_lack_test_rows(tmp_path):
    nothing = {"x": [], "y": []}
    train = write(tmp_path / "train.json", leaf())
    test = write(tmp_path / "test.json.gz", leaf(num_samples=[0, 0], user_data={"a": nothing, "b": nothing}))
    a, b = data.read_leaf(train, test)
    assert (a.id, b.id, a.x.tolist(), b.y.tolist(), a.test_x.shape) == ("a", "b", [[3, 4], [5, 6]], [1], (0, 2))


ROWS = leaf()["user_data"]
MALFORMED = {
    "not json": (b"{", "must be a JSON file"),
    "no object": ([1], "has no list 'users'"),
    "no user_data": (leaf(user_data=None), "has no dict 'user_data'"),
    "other users": (leaf(users=["a", "c"]), "must list the same clients"),
    "nobody": (leaf(users=[], num_samples=[], user_data={}), "at least one"),
    "count": (leaf(num_samples=[1, 3]), "got 2, 2 and 3"),
    "no y": (leaf(user_data=ROWS | {"a": {"x": [[1, 2]]}}), "KeyError: 'y'"),
    "ragged": (leaf(user_data=ROWS | {"a": {"x": [[1], [1, 2]], "y": [0, 0]}}), "rows of numbers of one length"),
    "text": (leaf(user_data=ROWS | {"a": {"x": ["to be", "or not"], "y": [0, 0]}}), "features are numbers"),
    "scalar": (leaf(user_data=ROWS | {"a": {"x": [[1, 2], [3, 4]], "y": 1}}), "a number a row"),
    "label": (leaf(user_data=ROWS | {"a": {"x": [[1, 2], [3, 4]], "y": [0, 0.5]}}), "labels 0, 1, 2"),
    "infinite": (leaf(user_data=ROWS | {"a": {"x": [[1, 2], [3, float("inf")]], "y": [0, 0]}}), "finite features"),
    "width": (leaf(user_data=ROWS | {"b": {"x": [[1.0]], "y": [0]}}), "as many features"),
    "empty": (leaf(num_samples=[0, 2], user_data=ROWS | {"b": {"x": [], "y": []}}), "needs training rows"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_leaf_files_are_refused_by_name(tmp_path, case):
    content, message = MALFORMED[case]
    train, test = write(tmp_path / "train.json", content), write(tmp_path / "test.json", leaf())
    with pytest.raises(data.LeafMalformed, match=message) as caught:
        data.read_leaf(train, test)
    assert "train.json" in str(caught.value)


def test_files_that_do_not_belong_together_or_are_cut_are_refused(tmp_path):
    train = write(tmp_path / "train.json", leaf())
    test = write(tmp_path / "test.json", {"users": ["a"], "num_samples": [2], "user_data": {"a": ROWS["a"]}})
    with pytest.raises(data.LeafMalformed, match="lacks 'b'"):
        data.read_leaf(train, test)
    cut = tmp_path / "cut.json.gz"
    cut.write_bytes(gzip.compress(json.dumps(leaf()).encode())[:40])
    with pytest.raises(data.LeafMalformed, match="cut.json.gz must be a JSON file"):
        data.read_leaf(train, cut)


# --- plans ---------------------------------------------------------------------------------------

SIZES = (7, 30, 12, 1, 25, 10, 9, 11, 40)


def partition_of(sizes):
    return Partition(tuple(np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])))


def protocol(sizes, fedprox, drop, epochs, k, rounds):
    """Their trainers' decisions, with arrays of rows in place of data: [[(client, [order of each epoch])]] by round."""
    starts = np.cumsum([0, *sizes])
    x = [np.stack([np.arange(starts[c], starts[c + 1])] * 3, axis=1) for c in range(len(sizes))]  # (n_k, 3) features
    y = [rows[:, 0].astype(float) for rows in x]
    played = []
    for i in range(rounds):
        np.random.seed(i)
        selected = np.random.choice(range(len(sizes)), min(k, len(sizes)), replace=False)
        np.random.seed(i)
        active = np.random.choice(selected, round(k * (1 - drop)), replace=False)
        done = []
        for c in selected if fedprox else active:
            visits = []
            for _ in range(epochs if c in active else np.random.randint(low=1, high=epochs)):
                np.random.seed(100)
                state = np.random.get_state()
                np.random.shuffle(x[c])
                np.random.set_state(state)
                np.random.shuffle(y[c])
                assert np.array_equal(x[c][:, 0], y[c])
                visits.append(y[c].astype(int).tolist())
            done.append((int(c), visits))
        played.append(done)
    return played


@pytest.mark.parametrize("fedprox", [False, True])
@pytest.mark.parametrize(
    ("drop", "epochs", "batch", "k"),
    [
        (0, 1, 10, 4),
        (0.1, 4, 10, 9),
        (0.5, 20, 7, 6),
        (0.9, 3, 5, 9),
        (0.5, 2, 1, 12),
        (1.0, 5, 100, 5),
        (0.04, 1, 3, 9),
    ],
)
def test_plans_are_those_of_the_authors_trainers(fedprox, drop, epochs, batch, k):
    with global_generators():
        expected = protocol(SIZES, fedprox, drop, epochs, k, rounds=6)
    work = LocalWork(epochs, batch, 0.1)
    before = repr(np.random.get_state())
    planner = AuthorsPlanner(partition_of(SIZES), work, k, drop, keeps_partial_work=fedprox)
    for t, done in enumerate(expected, 1):
        plan = planner.round_plan(t)
        assert plan.round == t and [work.client for work in plan.cohort] == [client for client, _ in done]
        for share, (client, visits) in zip(plan.cohort, done, strict=True):
            batches = [epoch[i : i + batch] for epoch in visits for i in range(0, len(epoch), batch)]
            assert [rows.tolist() for rows in share.batches()] == batches
            assert share.num_examples == SIZES[client]
    assert repr(np.random.get_state()) == before


def test_any_round_can_be_asked_for_at_any_time():
    def make():
        return AuthorsPlanner(partition_of(SIZES), LocalWork(3, 4, 0.1), 5, 0.5, keeps_partial_work=True)

    planner, in_turn = make(), make()
    orders = [[share.order.tolist() for share in in_turn.round_plan(t).cohort] for t in (1, 2, 3, 4)]
    for t in (4, 2, 2, 3, 1):
        assert [share.order.tolist() for share in planner.round_plan(t).cohort] == orders[t - 1]


def test_fedavg_neither_trains_nor_shuffles_stragglers():
    """The first epoch of a client's first round starts from its rows in their order, whoever was dropped before."""
    rows = partition_of(SIZES).rows
    planner = AuthorsPlanner(partition_of(SIZES), LocalWork(2, 4, 0.1), 9, 0.5, keeps_partial_work=False)
    trained: set[int] = set()
    for t in range(1, 9):
        plan = planner.round_plan(t)
        assert len(plan.cohort) == round(9 * 0.5) and not any(share.straggler for share in plan.cohort)
        for share in plan.cohort:
            first = np.random.RandomState(100).permutation(rows[share.client])
            fresh = np.array_equal(share.order[: len(first)], first)
            assert fresh == (share.client not in trained or len(first) == 1)
            trained.add(share.client)


def test_a_stragglers_epochs_follow_from_the_client_before_it():
    """Frozen: after a client of n rows always the same number; E - 1 at most."""
    epochs = 20
    planner = AuthorsPlanner(partition_of(SIZES), LocalWork(epochs, 5, 0.1), 9, 0.9, keeps_partial_work=True)
    drawn: dict[int, set[int]] = {}
    for t in range(1, 30):
        cohort = planner.round_plan(t).cohort
        assert sum(not share.straggler for share in cohort) == 1
        for before, share in zip(cohort, cohort[1:], strict=False):
            if share.straggler:
                drawn.setdefault(before.num_examples, set()).add(len(share.order) // share.num_examples)
    assert set(drawn) == set(SIZES) and all(len(found) == 1 for found in drawn.values())
    assert max(max(found) for found in drawn.values()) < epochs


@pytest.mark.parametrize(
    ("work", "k", "drop", "message"),
    [
        (LocalWork(1, 5, 0.1), 5, 0.5, "epochs must be at least 2 where FedProx has stragglers, got 1"),
        (LocalWork(2, 5, 0.1), 10, 0.0, "cohort_size .* must be at most 9, the number of clients, got 10"),
        (LocalWork(2, 5, 0.1), 0, 0.0, "cohort_size .* must be an integer >= 1, got 0"),
        (LocalWork(2, 5, 0.1), 5, 50, r"straggler_fraction .* must be in \[0, 1\], got 50"),
    ],
)
def test_what_the_authors_code_cannot_do_is_an_error(work, k, drop, message):
    with pytest.raises(ValueError, match=message):
        AuthorsPlanner(partition_of(SIZES), work, k, drop, keeps_partial_work=True)
    if work.epochs == 1:  # FedAvg only drops them
        AuthorsPlanner(partition_of(SIZES), work, k, drop, keeps_partial_work=False)


# --- training ------------------------------------------------------------------------------------


def scores_and_gradient(w, x, y):
    """Softmax regression by hand, float64, w (61, 10): mean loss, correct rows, gradient of the mean loss."""
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    scores = x @ w
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    loss = -np.log(p[np.arange(len(y)), y]).mean()
    correct = (scores.argmax(axis=1) == y).sum()
    p[np.arange(len(y)), y] -= 1
    return loss, correct, x.T @ p / len(y)


def by_hand(clients, w, played, lr, mu, batch):
    """Train on the decisions of :func:`protocol` and measure; rows of ``authors.COLUMNS``."""
    x, y = np.concatenate([c.x for c in clients]), np.concatenate([c.y for c in clients])
    n = np.array([len(c.y) for c in clients])

    def measured(i, w):
        seen = [scores_and_gradient(w, c.x, c.y) for c in clients]
        tested = sum(scores_and_gradient(w, c.test_x, c.test_y)[1] for c in clients) / sum(
            len(c.test_y) for c in clients
        )
        mean = sum(size * g for size, (_, _, g) in zip(n, seen, strict=True)) / n.sum()
        variance = np.mean([((g - mean) ** 2).sum() for _, _, g in seen])
        loss = sum(size * each for size, (each, _, _) in zip(n, seen, strict=True)) / n.sum()
        return i, loss, sum(c for _, c, _ in seen) / n.sum(), tested, variance

    rows = [measured(0, w)]
    for i, done in enumerate(played, 1):
        ends = []
        for _, visits in done:
            w_k = w.copy()
            for order in visits:
                for start in range(0, len(order), batch):
                    b = order[start : start + batch]
                    w_k = w_k - lr * (scores_and_gradient(w_k, x[b], y[b])[2] + mu * (w_k - w))
            ends.append(w_k)
        p = np.array([n[client] for client, _ in done])
        w = sum(q * w_k for q, w_k in zip(p / p.sum(), ends, strict=True)) if ends else w
        rows.append(measured(i, w))
    return pd.DataFrame(rows, columns=authors.COLUMNS)


@pytest.mark.parametrize(("algorithm", "drop"), [(FedAvg(), 0.5), (FedAvg(), 1.0), (FedProx(mu=0.0), 0.9)])
def test_training_agrees_with_numpy_in_double_precision(algorithm, drop):
    clients = sorted(synthetic.generate("synthetic_1_1", 0), key=lambda c: len(c.y))[:8]
    keeps = algorithm.keeps_partial_work
    with global_generators():
        played = protocol([len(c.y) for c in clients], keeps, drop, epochs=3, k=4, rounds=3)
    init = np.random.RandomState(1).normal(0, 0.1, (61, 10)).astype(np.float32)
    theirs = by_hand(clients, init.astype(float), played, lr=0.01, mu=0.0, batch=7)
    work = LocalWork(3, 7, 0.01)
    ours = pd.DataFrame(
        authors.reenact(clients, as_params(init), algorithm, work, rounds=3, cohort_size=4, straggler_fraction=drop)
    )
    assert np.allclose(ours, theirs, rtol=1e-5, atol=0)
    assert (theirs.train_loss.nunique() == 1) == (drop == 1.0)  # nobody to average: the weights stay


# --- command line --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A small federation and weights on disk, and the words of a command that trains on them."""
    folder = tmp_path_factory.mktemp("authors")
    clients = sorted(synthetic.generate("synthetic_0_0", 1), key=lambda c: len(c.y))[:6]
    synthetic.write_leaf(clients[::-1], folder / "train.json", folder / "test.json.gz")
    np.savez(folder / "init.npz", kernel=recorded_init()[:-1], bias=recorded_init()[-1])
    words = {
        "--train": folder / "train.json",
        "--test": folder / "test.json.gz",
        "--init": folder / "init.npz",
        "--algorithm": "fedprox",
        "--mu": 1,
        "--drop-percent": 0.5,
        "--epochs": 2,
        "--rounds": 2,
        "--lr": 0.01,
        "--batch-size": 10,
        "--clients-per-round": 4,
        "--out": folder / "curve.csv",
    }
    return folder, words


def command(words):
    return [str(word) for pair in words.items() for word in pair]


def test_the_command_writes_the_curve(files):
    folder, words = files
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "fedprox_book.paper.authors", *command(words)],
        cwd=Path(__file__).resolve().parents[2],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    rows = authors.reenact(
        data.read_leaf(folder / "train.json", folder / "test.json.gz"),
        as_params(recorded_init()),
        FedProx(mu=1.0),
        LocalWork(2, 10, 0.01),
        rounds=2,
        cohort_size=4,
        straggler_fraction=0.5,
    )
    written = pd.read_csv(folder / "curve.csv", engine="python")  # reads back every digit
    pd.testing.assert_frame_equal(written, pd.DataFrame(rows), check_exact=True)


def test_the_command_generates_and_notes_what_it_does_not_use(files, tmp_path, capsys):
    authors.authors_command(["--generate", "synthetic_iid", "--seed", "3", "--out", str(tmp_path / "new" / "data")])
    made = tmp_path / "new" / "data"
    parts = [made / f"synthetic_iid_{part}.json.gz" for part in ("train", "test")]
    assert "30 clients, 7308 training rows" in capsys.readouterr().out
    assert data.read_leaf(*parts)[4].x.tolist() == synthetic.generate("synthetic_iid", 3)[4].x.tolist()
    authors.authors_command(command(files[1] | {"--algorithm": "fedavg", "--out": tmp_path / "c.csv"}))
    assert "--mu 1.0 is not used" in capsys.readouterr().err
    assert len(pd.read_csv(tmp_path / "c.csv")) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--train": "nowhere.json"}, "No such file or directory: 'nowhere.json'"),
        ({"--init": "nowhere.npz"}, "No such file or directory: 'nowhere.npz'"),
        ({"--init": RECORDED / "init.csv"}, "must be an .npz file with kernel and bias"),
        ({"--train": RECORDED / "init.csv"}, "must be a JSON file"),
        ({"--drop-percent": 50}, r"must be in \[0, 1\], got 50"),
        ({"--epochs": 1}, "at E = 1"),
        ({"--rounds": 0}, "rounds must be an integer >= 1, got 0"),
        ({"--lr": -1}, "lr must be a finite number > 0, got -1"),
        ({"--mu": -1}, "mu >= 0, got mu=-1"),
        ({"--batch-size": 0}, "batch_size must be an integer >= 1, got 0"),
        ({"--clients-per-round": 40}, "must be at most 6, the number of clients, got 40"),
        ({"--algorithm": "fedsgd"}, "invalid choice: 'fedsgd'"),
        ({"--out": "no/such/folder/curve.csv"}, "No such file or directory"),
    ],
)
def test_wrong_words_are_explained(files, changes, message, capsys):
    with pytest.raises(SystemExit) as caught:
        authors.authors_command(command(files[1] | changes))
    assert caught.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_what_is_lacking_is_named(files, tmp_path, capsys):
    with pytest.raises(SystemExit):
        authors.authors_command(["--algorithm", "fedprox", "--out", str(tmp_path)])
    assert "please also give --train, --test, --init, --mu, --drop-percent" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        authors.authors_command(["--generate", "synthetic_iid", "--out", str(tmp_path)])
    assert "please also give --seed." in capsys.readouterr().err


def test_weights_and_data_must_fit(files, tmp_path):
    folder, _ = files
    clients = data.read_leaf(folder / "train.json", folder / "test.json.gz")
    settings = {"rounds": 1, "cohort_size": 2, "straggler_fraction": 0.0}
    for d, classes, message in ((59, 10, "for the 60 features"), (60, 3, r"in 0\.\.2")):
        with pytest.raises(ValueError, match=message):
            authors.reenact(clients, models.logistic(d, classes).init(0), FedAvg(), LocalWork(1, 10, 0.1), **settings)
    np.savez(tmp_path / "odd.npz", kernel=np.zeros((60, 10)), bias=np.zeros(9))
    with pytest.raises(ValueError, match=r"got \(60, 10\) and \(9,\)"):
        authors.read_init(tmp_path / "odd.npz")
    np.savez(tmp_path / "lacking.npz", kernel=np.zeros((60, 10)))
    with pytest.raises(ValueError, match="kernel and bias"):
        authors.read_init(tmp_path / "lacking.npz")
