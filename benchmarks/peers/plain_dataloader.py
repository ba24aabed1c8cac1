"""A plain PyTorch client loop with a DataLoader a client: what most published baselines look like."""

import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from benchmarks import protocol
from benchmarks.peers.networks import arrays, network, tensors


def train_client(net: nn.Module, loader: DataLoader, epochs: int, lr: float, mu: float) -> int:
    """FedProx at one client, in place; the penalty goes through autograd. Returns the number of steps."""
    start = [w.detach().clone() for w in net.parameters()]
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    steps = 0
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            penalty = sum(((w - w_t) ** 2).sum() for w, w_t in zip(net.parameters(), start, strict=True))
            loss = F.cross_entropy(net(x), y) + mu / 2 * penalty
            loss.backward()
            optimizer.step()
            steps += 1
    return steps


def main() -> None:
    args = protocol.arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    task = protocol.read(args.task)
    work = {name: task.facts[name] for name in ("epochs", "lr", "mu")}
    data = TensorDataset(torch.from_numpy(task.x), torch.from_numpy(task.y))
    loaders = [
        DataLoader(Subset(data, rows.tolist()), batch_size=task.facts["batch_size"], shuffle=True) for rows in task.rows
    ]
    net = network(task.facts["model"])

    def rounds(cohorts: np.ndarray) -> tuple[protocol.Weights, int]:
        w_t, steps = tensors(task.start), 0
        for cohort in cohorts:
            total = sum(len(task.rows[k]) for k in cohort)
            average = {name: torch.zeros_like(w) for name, w in w_t.items()}
            for k in cohort:
                net.load_state_dict(copy.deepcopy(w_t))
                steps += train_client(net, loaders[k], **work)
                for name, w in net.state_dict().items():
                    average[name] += w * (len(task.rows[k]) / total)
            w_t = average
        return arrays(w_t), steps

    protocol.run("plain_dataloader", ("torch", "numpy"), args, task, rounds, warm_up=task.cohorts[:1, :1])


if __name__ == "__main__":
    main()
