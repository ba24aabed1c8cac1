"""What only chapters use: one client's job, the shapes inside a model, the blog's network, words for tables.

Layer: book (PyTorch, pandas).
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from fedprox_lib import tree
from fedprox_lib.algorithms import Algorithm
from fedprox_lib.models import CNN_SHAPES, Model, channels_last, head
from fedprox_lib.plan import UniformPlanner
from fedprox_lib.simulation import Job, State, initial_state
from fedprox_lib.sweeps import results
from fedprox_lib.sweeps.experiment import Experiment
from fedprox_lib.sweeps.federations import PreparedFederation, federation_of
from fedprox_lib.sweeps.store import Store
from fedprox_lib.tree import Params


def cnn_blog() -> Model:
    """The network in the blog's code: padding 1 and padded pooling, 28-26-14-12-7.

    It has as many parameters as :func:`fedprox_lib.models.cnn` and is another network.

    Example:
        >>> cnn_blog().num_parameters
        1663370
    """
    return Model("cnn_blog", dict(CNN_SHAPES), _cnn_blog)


def _cnn_blog(p: Params, x: Tensor) -> Tensor:
    x = channels_last(F.conv2d(x, p["conv1.weight"], p["conv1.bias"], padding=1))  # (b, 32, 26, 26)
    x = F.relu(F.max_pool2d(x, 2, padding=1))  # (b, 32, 14, 14)
    x = F.conv2d(x, p["conv2.weight"], p["conv2.bias"], padding=1)  # (b, 64, 12, 12)
    x = F.relu(F.max_pool2d(x, 2, padding=1))  # (b, 64, 7, 7)
    return head(p, x)


def layer_shapes(model: Model, image_size: int = 28) -> list[tuple[int, ...]]:
    """The shapes of the activations from input to scores, found by running the model on a blank image."""
    seen: list[tuple[int, ...]] = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if getattr(func, "__name__", "") in ("conv2d", "max_pool2d", "boolean_dispatch", "linear", "fn"):
                seen.append(tuple(out.shape[1:]))
            return out

    blank = torch.zeros(1, 1, image_size, image_size)
    with Watch():
        model.logits(tree.map(torch.clone, model.init(0)), blank)
    return [(1, image_size, image_size), *seen]


def one_client(
    experiment: Experiment, client: int, *, federation: PreparedFederation | None = None, state: State | None = None
) -> tuple[PreparedFederation, Job]:
    """A single client's job in the first round, for chapters that look inside local training.

    Args:
        experiment: its partition, work, model and algorithm are used.
        client: which client, whether or not it is in the cohort.
    """
    federation = federation or federation_of(experiment)
    state = state or initial_state(federation.model, experiment.algorithm, experiment.seed)
    everyone = UniformPlanner(
        federation.partition, experiment.work, experiment.seed, federation.partition.num_clients, 0.0
    )
    work = next(work for work in everyone.round_plan(state.round + 1).cohort if work.client == client)
    algorithm = experiment.algorithm
    memory = algorithm.init_memory(state.params)
    job = Job(state.params, work, experiment.work.lr, algorithm, algorithm.hyperparameters(), state.server, memory)
    return federation, job


def with_algorithm(job: Job, algorithm: Algorithm) -> Job:
    """The same job under another algorithm: same start, same rows, same batches."""
    return job._replace(algorithm=algorithm, hyperparameters=algorithm.hyperparameters())


def origins(experiments: Sequence[Experiment], store: Store) -> pd.DataFrame:
    """One row per run: where its record comes from and what it cost."""
    rows = []
    for e in experiments:
        record = results.load_record(e, store)
        rows.append({"record": e.id, "arm": e.label, "outcome": record.outcome["status"], **record.provenance})
    return pd.DataFrame(rows)


def rounds_text(rounds: pd.DataFrame) -> str:
    """Rounds of the replicates of one arm in words: their median and range, or how many never got there.

    Example:
        >>> rounds_text(pd.DataFrame({"rounds": [31.0, 34.2, 36.0], "ran": 40}))
        '34 (31 to 36)'
        >>> rounds_text(pd.DataFrame({"rounds": [31.0, float("nan"), float("nan")], "ran": 40}))
        'more than 40 (1 of 3 got there)'
    """
    got, n = rounds["rounds"].dropna(), len(rounds)
    if len(got) == 0:
        return f"not in {rounds['ran'].min():.0f}"
    # The median of censored values is known as long as fewer than half are censored.
    middle = rounds["rounds"].fillna(np.inf).sort_values().iloc[(n - 1) // 2 : n // 2 + 1].mean()
    if not np.isfinite(middle):
        return f"more than {rounds['ran'].min():.0f} ({len(got)} of {n} got there)"
    if n == 1:
        return f"{middle:.0f}"
    low, high = got.min(), got.max()
    spread = f"{low:.0f} to {high:.0f}" if len(got) == n else f"{low:.0f} or more, {len(got)} of {n} got there"
    return f"{middle:.0f} ({spread})"
