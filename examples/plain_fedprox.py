"""All of FedProx in plain PyTorch: three arms meet the same clients, stragglers and mini-batches, round by round.

FedAvg drops stragglers. FedProx keeps what they got done, and its proximal term mu/2 ||w - w_t||^2 holds every client
near w_t, the weights it was sent; mu = 0 shows what keeping alone does. Whatever is drawn at random is an argument, so
fedprox_lib can be given the same draws: it comes to the same weights (tests/test_examples.py).
Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020. Run: python examples/plain_fedprox.py
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Weights = dict[str, Tensor]


class CNN(nn.Module):
    """The network of McMahan et al. 2017 for images of 28 x 28 pixels: 1,663,370 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, kernel_size=5, padding="same")
        self.conv2 = nn.Conv2d(32, 64, kernel_size=5, padding="same")
        self.dense = nn.Linear(64 * 7 * 7, 512)
        self.out = nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)  # (b, 1, 28, 28) -> (b, 32, 14, 14)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)  # -> (b, 64, 7, 7)
        return self.out(F.relu(self.dense(x.flatten(1))))  # -> (b, 10)


class Work(NamedTuple):
    """What one client does in one round."""

    num_examples: int  # n_k, how many rows it holds: its weight in the average
    is_straggler: bool
    batches: list[Tensor]  # row numbers of each mini-batch, in order


def label_shards(labels: Tensor, deal: Tensor) -> list[Tensor]:
    """Sort the rows by label, cut them into as many chunks as are dealt; client k holds the chunks deal[k], (N, 2)."""
    chunks = labels.argsort(stable=True).tensor_split(deal.numel())
    return [torch.cat([chunks[i] for i in hand]) for hand in deal.tolist()]


def draw_cohort(clients: list[Tensor], size: int, stragglers: int, epochs: int, batch_size: int) -> list[Work]:
    """Who takes part in a round, which of them are stragglers, and how much they do: E epochs, stragglers 1 to E."""
    cohort = []
    for i, k in enumerate(torch.randperm(len(clients))[:size].tolist()):
        rows, is_straggler = clients[k], i < stragglers
        passes = int(torch.randint(1, epochs + 1, ())) if is_straggler else epochs
        batches = [b for _ in range(passes) for b in rows[torch.randperm(len(rows))].split(batch_size)]
        cohort.append(Work(len(rows), is_straggler, batches))
    return cohort


def train_client(model: nn.Module, w_t: Weights, x: Tensor, y: Tensor, work: Work, lr: float, mu: float) -> Weights:
    """Local SGD from w_t on the client's loss plus the proximal term; returns w_k."""
    model.load_state_dict(w_t)  # copies: w_t stays where it is
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for batch in work.batches:
        distance = sum(((w - w_t[name]) ** 2).sum() for name, w in model.named_parameters())  # ||w - w_t||^2
        loss = F.cross_entropy(model(x[batch]), y[batch]) + mu / 2 * distance
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: w.clone() for name, w in model.state_dict().items()}


def run_round(
    model: nn.Module, w_t: Weights, x: Tensor, y: Tensor, cohort: list[Work], lr: float, mu: float, keep: bool
) -> Weights:
    """One round: train the clients, without the stragglers unless they are kept; average, weighted by n_k."""
    cohort = [work for work in cohort if keep or not work.is_straggler]
    if not cohort:
        return w_t
    ends = [train_client(model, w_t, x, y, work, lr, mu) for work in cohort]
    total = sum(work.num_examples for work in cohort)
    return {
        name: sum(work.num_examples / total * w_k[name] for work, w_k in zip(cohort, ends, strict=True)) for name in w_t
    }


@torch.no_grad()
def accuracy(model: nn.Module, w: Weights, x: Tensor, y: Tensor) -> float:
    """The share of rows whose label the model finds."""
    model.load_state_dict(w)
    return (model(x).argmax(1) == y).double().mean().item()


if __name__ == "__main__":
    from fedprox_lib.data import digits  # 5,000 handwritten digits; any images (n, 1, 28, 28) and labels (n,) will do

    (x, y), test = digits()
    torch.manual_seed(0)
    clients, model = label_shards(y, deal=torch.randperm(200).view(100, 2)), CNN()
    arms = {"FedAvg": (0.0, False), "FedProx, mu = 0": (0.0, True), "FedProx, mu = 0.1": (0.1, True)}
    start = {name: w.clone() for name, w in model.state_dict().items()}
    weights = dict.fromkeys(arms, start)
    print("round", *arms, sep="   ")
    for t in range(1, 7):
        cohort = draw_cohort(clients, size=10, stragglers=5, epochs=3, batch_size=10)
        for arm, (mu, keep) in arms.items():
            weights[arm] = run_round(model, weights[arm], x, y, cohort, lr=0.05, mu=mu, keep=keep)
        print(f"{t:5}", *(f"{accuracy(model, w, *test):{len(arm)}.3f}" for arm, w in weights.items()), sep="   ")
