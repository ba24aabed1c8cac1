"""The two models as the modules that a PyTorch program would write; their parameters have the task's names."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Logistic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(784, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x)


class CNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 5, padding=2)
        self.conv2 = nn.Conv2d(32, 64, 5, padding=2)
        self.dense = nn.Linear(7 * 7 * 64, 512)
        self.out = nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.out(F.relu(self.dense(x.flatten(1))))


def network(name: str) -> nn.Module:
    """A fresh model of that name."""
    return {"logistic": Logistic, "cnn": CNN}[name]()


def tensors(weights: dict) -> dict[str, Tensor]:
    """NumPy weights as a state dictionary."""
    return {name: torch.from_numpy(w.copy()) for name, w in weights.items()}


def arrays(state: dict[str, Tensor]) -> dict:
    """A state dictionary as NumPy weights."""
    return {name: w.detach().cpu().numpy().copy() for name, w in state.items()}
