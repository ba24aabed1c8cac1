"""A federation: data, who holds which rows of it, a model, and who decides about rounds.

It is built from objects and knows no name, no file and no experiment; :mod:`fedprox_lib.sweeps.federations` builds one
from an experiment's names. Taught in "FedAvg and FedProx side by side". Layer: core (NumPy decisions meet PyTorch).
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from fedprox_lib import tree
from fedprox_lib.data import Examples
from fedprox_lib.models import Model
from fedprox_lib.partition import Partition
from fedprox_lib.plan import Planner, RoundPlan, require_cohort
from fedprox_lib.rng import stream
from fedprox_lib.tree import Params


@dataclass(frozen=True)
class Federation:
    """Data with who holds what, a model and a planner.

    Attributes:
        train: the rows that ``partition`` counts.
        test: the test rows that are evaluated.
        partition: rows of ``train`` by client.
        model: the model.
        planner: who decides about rounds; replace it to run another protocol. None leaves it to
            :func:`fedprox_lib.simulation.simulate`, which then plans uniformly.
    """

    train: Examples
    test: Examples
    partition: Partition
    model: Model
    planner: Planner | None = None

    def measure(self, w: Params) -> dict[str, float]:
        """Training loss (nats, over the rows that clients hold), test loss and test accuracy of a model."""
        held = self.train.take(np.sort(np.concatenate(self.partition.rows)))
        train_loss, _ = self.model.loss_and_correct(w, *held, chunk=100)
        test_loss, correct = self.model.loss_and_correct(w, *self.test, chunk=100)
        return {
            "train_loss": float(train_loss.mean()),
            "test_loss": float(test_loss.mean()),
            "test_accuracy": float(correct.double().mean()),
        }


class Gradients(NamedTuple):
    """What clients answer in the first exchange of a round that has two: gradients on all their rows.

    Attributes:
        model: the model.
        train: the rows that ``partition`` counts.
        partition: who holds which.
        seed: of the draw of clients.
    """

    model: Model
    train: Examples
    partition: Partition
    seed: int

    def at(self, w_t: Params, plan: RoundPlan, number: int) -> tuple[Params, dict[int, Params]]:
        """The n_k-weighted mean over ``number`` clients at w_t, and grad F_k(w_t) of each client of the plan's cohort.

        The clients asked are drawn evenly from all, from seed and round alone: every arm asks the same ones, and those
        of a smaller number are among those of a larger.
        """
        require_cohort(number, self.partition.num_clients, "gradient_clients")
        asked = np.sort(stream(self.seed, "gradients", plan.round).permutation(self.partition.num_clients)[:number])
        cohort = [work.client for work in plan.cohort]
        own = {
            k: self.model.gradient(w_t, *self.train.take(self.partition.rows[k])) for k in {*asked.tolist(), *cohort}
        }
        n_k = torch.from_numpy(self.partition.sizes[asked]).to(self.train.x.device, torch.float64)
        stacked = tree.stack([own[int(k)] for k in asked])
        mean = tree.map(lambda g: torch.tensordot(n_k / n_k.sum(), g.double(), dims=1).to(g.dtype), stacked)
        return mean, {k: own[k] for k in cohort}
