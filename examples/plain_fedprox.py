"""All of FedProx in plain PyTorch: three arms meet the same clients, stragglers and mini-batches, round by round.

FedAvg drops stragglers. FedProx keeps them, and its term mu/2 ||w - w_t||^2 holds a client near w_t, where it starts.
Given the same draws, fedprox_lib comes to the same weights (tests/test_examples.py).
Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020. Run: python examples/plain_fedprox.py
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Weights = dict[str, Tensor]
Examples = tuple[Tensor, Tensor]  # images x and their labels y


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


class Work(NamedTuple):  # what one client does in one round
    num_examples: int  # n_k, the rows it holds: its weight in the average
    is_straggler: bool
    batches: list[Examples]  # one per local step, in order


def label_shards(labels: Tensor, deal: Tensor) -> list[Tensor]:
    """Sort the rows by label, cut them into chunks, deal these: client k gets the chunks deal[k]; deal is (N, 2)."""
    chunks = labels.argsort(stable=True).tensor_split(deal.numel())
    return [torch.cat([chunks[i] for i in hand]) for hand in deal.tolist()]


def draw_cohort(clients: list[Examples], size: int, stragglers: int, epochs: int, batch_size: int) -> list[Work]:
    """Who takes part in a round, and what they do: stragglers 1 to E epochs, the others all E."""
    cohort = []
    for i, k in enumerate(torch.randperm(len(clients))[:size].tolist()):
        (x, y), is_straggler = clients[k], i < stragglers
        passes = int(torch.randint(1, epochs + 1, (1,))) if is_straggler else epochs
        batches = [(x[rows], y[rows]) for _ in range(passes) for rows in torch.randperm(len(y)).split(batch_size)]
        cohort.append(Work(len(y), is_straggler, batches))
    return cohort


def train_client(model: nn.Module, w_t: Weights, work: Work, lr: float, mu: float) -> Weights:
    """Local SGD from w_t on the client's loss plus the proximal term (equation 2 of the paper); returns w_k."""
    model.load_state_dict(w_t)  # copies: w_t stays as it is
    sgd = torch.optim.SGD(model.parameters(), lr=lr)
    for x, y in work.batches:
        distance = sum((w - w_t[name]).square().sum() for name, w in model.named_parameters())  # ||w - w_t||^2
        loss = F.cross_entropy(model(x), y) + mu / 2 * distance
        sgd.zero_grad()
        loss.backward()
        sgd.step()
    return {name: w.clone() for name, w in model.state_dict().items()}


def run_round(model: nn.Module, w_t: Weights, cohort: list[Work], lr: float, mu: float, keep: bool) -> Weights:
    """One round: train the cohort, without its stragglers unless they are kept, and average the w_k by n_k."""
    trained = [work for work in cohort if keep or not work.is_straggler]
    total = sum(work.num_examples for work in trained)
    average = {name: torch.zeros_like(w) for name, w in w_t.items()}
    for work in trained:
        for name, w in train_client(model, w_t, work, lr, mu).items():
            average[name] += work.num_examples / total * w
    return average if trained else w_t


@torch.no_grad()
def accuracy(model: nn.Module, w: Weights, x: Tensor, y: Tensor) -> float:
    model.load_state_dict(w)
    return (model(x).argmax(1) == y).double().mean().item()


if __name__ == "__main__":
    from fedprox_lib.data import digits  # 5,000 handwritten digits; any images (n, 1, 28, 28) and labels (n,) will do

    (x, y), test = digits()
    torch.manual_seed(0)
    torch.set_num_threads(1)  # mini-batches of ten digits are too small for more
    clients = [(x[rows], y[rows]) for rows in label_shards(y, deal=torch.randperm(200).view(100, 2))]
    model, arms = CNN(), {"FedAvg": (0.0, False), "FedProx, mu = 0": (0.0, True), "FedProx, mu = 1": (1.0, True)}
    weights = dict.fromkeys(arms, CNN().state_dict())  # one start for all three
    for t in range(1, 6):
        cohort = draw_cohort(clients, size=10, stragglers=9, epochs=5, batch_size=10)
        for arm, (mu, keep) in arms.items():
            weights[arm] = run_round(model, weights[arm], cohort, lr=0.03, mu=mu, keep=keep)
            print(f"round {t}, {arm}: test accuracy {accuracy(model, weights[arm], *test):.1%}")
