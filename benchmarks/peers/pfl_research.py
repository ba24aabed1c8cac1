"""pfl-research: its FedProx algorithm on its simulated backend.

Its in-memory ``Dataset`` visits a client's batches in the same order every epoch; the rows are shuffled when the client
is drawn, and that is what is timed.
"""

import os
import sys
from types import SimpleNamespace

os.environ["PFL_PYTORCH_DEVICE"] = "cpu"

import numpy as np
import torch
import torch.nn.functional as F
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.fedprox import FedProx, FedProxParams
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Weighted
from pfl.model.pytorch import PyTorchModel

from benchmarks import protocol
from benchmarks.peers.networks import arrays, network, tensors


class Learner(torch.nn.Module):
    """What pfl wants of a model: ``loss`` and ``metrics``."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.net = network(name)
        self.steps = 0

    def loss(self, x, y, is_eval=False):
        self.steps += 1
        return F.cross_entropy(self.net(x), y)

    def metrics(self, x, y):
        return {"loss": Weighted(0.0, len(x))}  # nothing is evaluated


def main() -> None:
    args = protocol.arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    task = protocol.read(args.task)
    facts = task.facts
    x, y = torch.from_numpy(task.x), torch.from_numpy(task.y)
    rows = [torch.from_numpy(r) for r in task.rows]
    learner = Learner(facts["model"])
    model = PyTorchModel(
        model=learner,
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD(learner.parameters(), lr=1.0),
    )
    draws = SimpleNamespace(order=iter(()))

    def dataset(client: int) -> Dataset:
        shuffled = rows[client][torch.randperm(len(rows[client]))]
        return Dataset(raw_data=[x[shuffled], y[shuffled]], user_id=str(client))

    backend = SimulatedBackend(
        training_data=FederatedDataset(dataset, lambda: next(draws.order)),
        val_data=None,
        postprocessors=[WeightByDatapoints()],
    )

    def rounds(cohorts: np.ndarray) -> tuple[protocol.Weights, int]:
        learner.net.load_state_dict(tensors(task.start))
        learner.steps = 0
        draws.order = iter(int(k) for k in cohorts.flat)
        FedProx().run(
            algorithm_params=FedProxParams(
                central_num_iterations=len(cohorts),
                evaluation_frequency=sys.maxsize,
                train_cohort_size=cohorts.shape[1],
                val_cohort_size=0,
                mu=facts["mu"],
            ),
            backend=backend,
            model=model,
            model_train_params=NNTrainHyperParams(
                local_learning_rate=facts["lr"],
                local_num_epochs=facts["epochs"],
                local_batch_size=facts["batch_size"],
            ),
            model_eval_params=NNEvalHyperParams(local_batch_size=1000),
            callbacks=[],
        )
        return arrays(learner.net.state_dict()), learner.steps

    protocol.run("pfl_research", ("pfl", "torch", "numpy"), args, task, rounds, warm_up=task.cohorts[:1, :1])


if __name__ == "__main__":
    main()
