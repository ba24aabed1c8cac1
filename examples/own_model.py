"""A network of your own: a CNN with group normalisation, as one writes it in PyTorch, trained by FedProx.

`models.from_module` keeps the network's own start, drawn from the seed of the run, so that the scales of the
normalisations begin at 1. Batch normalisation would be refused: its running statistics are no parameters, and how to
average them is a question of its own. Needs the extra `digits`. Run: python examples/own_model.py
"""

import torch
from torch import Tensor, nn

from fedprox_lib import Federation, FedProx, LabelShards, LocalWork, data, models, simulate


class Net(nn.Module):
    """Two convolutions with their normalisations, then one dense layer: 9,274 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, kernel_size=5, padding=2)
        self.norm1 = nn.GroupNorm(num_groups=4, num_channels=8)
        self.conv2 = nn.Conv2d(8, 16, kernel_size=3, padding=1)
        self.norm2 = nn.GroupNorm(num_groups=4, num_channels=16)
        self.out = nn.Linear(16 * 7 * 7, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.max_pool2d(self.norm1(self.conv1(x)).relu(), 2)  # (b, 1, 28, 28) -> (b, 8, 14, 14)
        x = torch.max_pool2d(self.norm2(self.conv2(x)).relu(), 2)  # -> (b, 16, 7, 7)
        return self.out(x.flatten(1))  # -> (b, 10)


def main(rounds: int = 3) -> list[float]:
    """Train and print; returns the test accuracy after every round, 0 included."""
    train, test = data.digits()
    partition = LabelShards(num_clients=50).split(train.labels, data_seed=0)
    model = models.from_module(Net())
    print(
        f"{model.name}: {model.num_parameters:,} parameters; scales start at", *model.init(0)["norm1.weight"].tolist()
    )
    federation = Federation(train, test, partition, model)
    work = LocalWork(epochs=5, batch_size=10, lr=0.03)
    accuracies = []
    for state, measured in simulate(federation, FedProx(mu=0.1), work=work, rounds=rounds, cohort_size=20, seed=0):
        print(f"round {state.round}: test accuracy {measured['test_accuracy']:.3f}")
        accuracies.append(measured["test_accuracy"])
    return accuracies


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
