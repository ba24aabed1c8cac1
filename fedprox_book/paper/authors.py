"""The authors' experiments on the authors' data: their decisions, our engine, and what their code prints.

:class:`fedprox_book.paper.authors_plan.AuthorsPlanner` decides as their trainers do (litian96/FedProx at d2a4501), the
library's engine trains, and :func:`measure_as_authors` takes their measurements. With their data and initial weights
the curves agree. As a command::

    python -m fedprox_book.paper.authors --train TRAIN.json --test TEST.json --init INIT.npz --out CURVE.csv \\
        --algorithm fedprox --mu 1 --drop-percent 0.5 --epochs 20 --rounds 12 --lr 0.01 --batch-size 10 \\
        --clients-per-round 10
    python -m fedprox_book.paper.authors --generate synthetic_iid --seed 3 --out FOLDER

Their code is MIT-licensed; it is re-enacted here, and none of it is copied. Taught in "Do we compute what the authors
computed?". Layer: book (PyTorch and a command line).
"""

import argparse
import csv
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from fedprox_book.paper import synthetic
from fedprox_book.paper.authors_plan import AuthorsPlanner
from fedprox_lib import data, engine, models, simulation, tree
from fedprox_lib.algorithms import Algorithm, FedAvg, FedProx
from fedprox_lib.data import Client, Examples
from fedprox_lib.engine import use_threads
from fedprox_lib.models import Model
from fedprox_lib.partition import Partition
from fedprox_lib.plan import LocalWork, Planner
from fedprox_lib.simulation import Backend, State
from fedprox_lib.tree import Params

COLUMNS = ("round", "train_loss", "train_accuracy", "test_accuracy", "gradient_variance")
"""What :func:`curve` measures, and the columns of the command's CSV file."""


def reenact(
    clients: Sequence[Client],
    init: Params,
    algorithm: Algorithm,
    work: LocalWork,
    *,
    rounds: int,
    cohort_size: int,
    straggler_fraction: float,
    backend: Backend = engine.batched,
) -> Iterator[dict[str, float]]:
    """Train logistic regression as the authors' code does.

    Args:
        clients: the federation in the order of ids, as ``synthetic.generate`` and ``data.read_leaf`` give it.
        init: initial weights, ``dense.weight`` (classes, d) and ``dense.bias`` (classes,) float32.
        algorithm: FedAvg or FedProx; it also decides whose trainer is re-enacted.
        work: E, B and lr.
        rounds: R >= 1.
        cohort_size: K.
        straggler_fraction: in [0, 1].
        backend: who does the jobs.

    Returns:
        The rows of :func:`curve`, R + 1 of them, computed as they are asked for.

    Raises:
        ValueError: if something is out of range, or weights and data do not fit each other.
    """
    if not (isinstance(rounds, int) and rounds >= 1):
        raise ValueError(f"rounds must be an integer >= 1, got {rounds!r}.")
    train, test, partition = data.federate(clients)
    num_features, largest = train.x[0].numel(), max(int(e.y.max()) for e in (train, test) if len(e.y))
    num_classes, expected = init["dense.weight"].shape
    if expected != num_features:
        raise ValueError(
            f"the initial weights must be for the {num_features} features of the data, but are for {expected}: give "
            "weights and data of one model."
        )
    if largest >= num_classes:
        raise ValueError(
            f"the labels must be in 0..{num_classes - 1}, the classes of the initial weights, but the data have label "
            f"{largest}: give weights and data of one model."
        )
    keeps = algorithm.keeps_partial_work
    planner = AuthorsPlanner(partition, work, cohort_size, straggler_fraction, keeps_partial_work=keeps)
    model = models.logistic(num_features, num_classes)
    return curve(train, test, partition, planner, model, init, algorithm, lr=work.lr, rounds=rounds, backend=backend)


def curve(
    train: Examples,
    test: Examples,
    partition: Partition,
    planner: Planner,
    model: Model,
    init: Params,
    algorithm: Algorithm,
    *,
    lr: float,
    rounds: int,
    backend: Backend = engine.batched,
) -> Iterator[dict[str, float]]:
    """Train under any planner and measure at the start of every round, as the authors do, and after the last one.

    A round without a client to train leaves the weights as they are.
    # differs from authors' code: it stops with an IndexError when FedAvg has nothing to average.

    Yields:
        R + 1 rows with the keys ``COLUMNS``; see :func:`measure_as_authors`.
    """
    state = State(0, init, algorithm.init_server(init), {})
    yield {"round": 0, **measure_as_authors(model, state.params, train, test, partition)}
    for t in range(1, rounds + 1):
        state = simulation.run_round(
            state,
            planner.round_plan(t),
            train,
            model=model,
            algorithm=algorithm,
            lr=lr,
            num_clients=partition.num_clients,
            backend=backend,
        )
        yield {"round": t, **measure_as_authors(model, state.params, train, test, partition)}


def measure_as_authors(
    model: Model, w: Params, train: Examples, test: Examples, partition: Partition
) -> dict[str, float]:
    """What the authors' code prints about a round, over all N clients.

    Returns:
        ``train_loss``: cross-entropy in nats, sum of n_k/n F_k(w). ``train_accuracy``, ``test_accuracy``: correct rows
        over rows, in [0, 1]; the latter NaN without test rows. ``gradient_variance``: the plain mean over clients of
        ||grad f(w) - grad F_k(w)||^2, where grad f is the sum of n_k/n grad F_k.
        # differs from authors' code: only its FedProx trainer prints the variance, and not after the last round.
    """
    loss, right = model.loss_and_correct(w, *train)
    _, test_right = model.loss_and_correct(w, *test)
    local = tree.stack([tree.map(torch.Tensor.double, model.gradient(w, *train.take(k))) for k in partition.rows])
    p = torch.from_numpy(partition.sizes / partition.sizes.sum()).to(loss.device)
    gap = tree.map(lambda g: g - torch.tensordot(p, g, dims=1), local)  # (N, ...)
    return {
        "train_loss": float(loss.mean()),
        "train_accuracy": float(right.double().mean()),
        "test_accuracy": float(test_right.double().mean()),
        "gradient_variance": float(tree.dot(gap, gap)) / partition.num_clients,
    }


def read_init(path: Path) -> Params:
    """Initial weights from an .npz file that holds ``kernel`` (d, classes) and ``bias`` (classes,), as TensorFlow does.

    Raises:
        FileNotFoundError: if the file is not there.
        ValueError: if it is something else.
    """
    try:
        with np.load(path) as file:
            kernel, bias = (np.asarray(file[name], dtype=np.float32) for name in ("kernel", "bias"))
    except FileNotFoundError:
        raise
    except (OSError, EOFError, KeyError, TypeError, AttributeError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} must be an .npz file with kernel and bias, but: {error}.") from error
    if kernel.ndim != 2 or bias.shape != kernel.shape[1:]:
        raise ValueError(
            f"{path} must hold kernel (features, classes) and bias (classes,), got {kernel.shape} and {bias.shape}."
        )
    return {"dense.weight": torch.from_numpy(kernel.T.copy()), "dense.bias": torch.from_numpy(bias)}


def authors_command(arguments: Sequence[str] | None = None) -> None:
    """The command line: generate a data set, or train and write the curve."""
    parser = argparse.ArgumentParser(
        prog="python -m fedprox_book.paper.authors",
        description="Re-enact the authors' code, or generate their synthetic data.",
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="CSV file of the curve; folder with --generate")
    add("--generate", choices=synthetic.SPREADS, help="write this data set as LEAF files and stop")
    add("--seed", type=int, help="of --generate")
    add("--train", type=Path, help="LEAF file, .json or .json.gz")
    add("--test", type=Path, help="LEAF file, .json or .json.gz")
    add("--init", type=Path, help=".npz file with kernel (features, classes) and bias (classes,)")
    add("--algorithm", choices=("fedavg", "fedprox"))
    add("--mu", type=float, help="of fedprox")
    add("--drop-percent", type=float, help="fraction of stragglers, in [0, 1]; the authors' name for it")
    add("--epochs", type=int, help="E")
    add("--rounds", type=int, help="R; the curve has R + 1 rows")
    add("--lr", type=float, help="learning rate of local SGD")
    add("--batch-size", type=int, help="B")
    add("--clients-per-round", type=int, help="K")
    add("--backend", choices=engine.BACKENDS, default=engine.DEFAULT)
    given = parser.parse_args(arguments)
    unneeded = {"generate", "seed"} | ({"mu"} if given.algorithm == "fedavg" else set())
    needed = {"seed"} if given.generate else vars(given).keys() - unneeded
    if lacking := [name for name, value in vars(given).items() if value is None and name in needed]:
        parser.error(f"please also give {', '.join('--' + name.replace('_', '-') for name in lacking)}.")
    try:
        _generate(given) if given.generate else _train(given)
    except (OSError, ValueError) as error:
        parser.error(str(error))


def _generate(given: argparse.Namespace) -> None:
    clients = synthetic.generate(given.generate, given.seed)
    given.out.mkdir(parents=True, exist_ok=True)
    train, test = (given.out / f"{given.generate}_{part}.json.gz" for part in ("train", "test"))
    synthetic.write_leaf(clients, train, test)
    print(f"{len(clients)} clients, {sum(len(c.y) for c in clients)} training rows: {train}, {test}")


def _train(given: argparse.Namespace) -> None:
    if given.algorithm == "fedavg" and given.mu:
        print(f"FedAvg has no proximal term: --mu {given.mu} is not used.", file=sys.stderr)
    rows = reenact(
        data.read_leaf(given.train, given.test),
        read_init(given.init),
        FedAvg() if given.algorithm == "fedavg" else FedProx(mu=given.mu),
        LocalWork(given.epochs, given.batch_size, given.lr),
        rounds=given.rounds,
        cohort_size=given.clients_per_round,
        straggler_fraction=given.drop_percent,
        backend=engine.BACKENDS[given.backend],
    )
    with use_threads(1), open(given.out, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        for row in tqdm(rows, total=given.rounds + 1, unit="round", disable=None):  # None: only on a terminal
            table.writerow(row)
            file.flush()


if __name__ == "__main__":
    authors_command()
