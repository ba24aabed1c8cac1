"""A plain PyTorch client loop that indexes tensors with a permutation: what a careful baseline looks like."""

import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import protocol
from benchmarks.peers.networks import arrays, network, tensors


def train_client(net: nn.Module, x: Tensor, y: Tensor, epochs: int, batch_size: int, lr: float, mu: float) -> int:
    """FedProx at one client, in place; the penalty goes through autograd. Returns the number of steps."""
    start = [w.detach().clone() for w in net.parameters()]
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    steps = 0
    for _ in range(epochs):
        for batch in torch.randperm(len(y)).split(batch_size):
            optimizer.zero_grad()
            penalty = sum(((w - w_t) ** 2).sum() for w, w_t in zip(net.parameters(), start, strict=True))
            loss = F.cross_entropy(net(x[batch]), y[batch]) + mu / 2 * penalty
            loss.backward()
            optimizer.step()
            steps += 1
    return steps


def main() -> None:
    args = protocol.arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    task = protocol.read(args.task)
    work = {name: task.facts[name] for name in ("epochs", "batch_size", "lr", "mu")}
    x, y = torch.from_numpy(task.x), torch.from_numpy(task.y)
    data = [(x[rows], y[rows]) for rows in map(torch.from_numpy, task.rows)]
    net = network(task.facts["model"])

    def rounds(cohorts: np.ndarray) -> tuple[protocol.Weights, int]:
        w_t, steps = tensors(task.start), 0
        for cohort in cohorts:
            total = sum(len(task.rows[k]) for k in cohort)
            average = {name: torch.zeros_like(w) for name, w in w_t.items()}
            for k in cohort:
                net.load_state_dict(copy.deepcopy(w_t))
                steps += train_client(net, *data[k], **work)
                for name, w in net.state_dict().items():
                    average[name] += w * (len(task.rows[k]) / total)
            w_t = average
        return arrays(w_t), steps

    protocol.run("plain_tensors", ("torch", "numpy"), args, task, rounds, warm_up=task.cohorts[:1, :1])


if __name__ == "__main__":
    main()
