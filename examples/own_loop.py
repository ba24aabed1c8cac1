"""The proximal term in a training loop of one's own: momentum, clipped gradients, and how far clients drift from w_t.

`train_client` is an ordinary loop; the two lines marked as new are all that FedProx adds to it. `fedprox_lib.proximal`
says what the term comes to with other optimisers and with clipping. Run: python examples/own_loop.py
"""

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fedprox_lib import LabelShards, data, tree
from fedprox_lib.proximal import add_proximal_gradient, anchored


def train_client(model: nn.Module, loader: DataLoader, mu: float, epochs: int = 3) -> None:
    """Train the model in place; it holds w_t, the weights from the server, when it comes in."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    with anchored(model) as anchor:  # new: w_t, once per round
        for _ in range(epochs):
            for x, y in loader:
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
                add_proximal_gradient(model, anchor, mu)  # new: after clipping, so that the pull is not clipped
                optimizer.step()


def federate(model: nn.Module, loaders: list[DataLoader], mu: float, rounds: int) -> list[float]:
    """FedProx with all clients in every round; returns their mean drift ||w_k - w_t|| per round."""
    sizes = [len(loader.dataset) for loader in loaders]
    drifts = []
    for _ in range(rounds):
        w_t: dict[str, Tensor] = deepcopy(model.state_dict())
        ends = []
        for loader in loaders:
            model.load_state_dict(w_t)
            train_client(model, loader, mu)
            ends.append(deepcopy(model.state_dict()))
        drifts.append(sum(float(tree.norm(tree.subtract(w_k, w_t))) for w_k in ends) / len(ends))
        shares = [n_k / sum(sizes) for n_k in sizes]
        model.load_state_dict({name: sum(p * w_k[name] for p, w_k in zip(shares, ends, strict=True)) for name in w_t})
    return drifts


if __name__ == "__main__":
    torch.set_num_threads(1)  # the model is too small for more
    train, test = data.digits()
    shards = LabelShards(num_clients=10).split(train.labels, data_seed=0)  # few digits per client
    loaders = [DataLoader(TensorDataset(*train.take(rows)), batch_size=20, shuffle=True) for rows in shards.rows]
    for mu in (0.0, 0.1, 1.0):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(784, 50), nn.ReLU(), nn.Linear(50, 10))
        drifts = federate(model, loaders, mu, rounds=5)
        accuracy = (model(test.x).argmax(1) == test.y).double().mean()
        print(f"mu = {mu}: drift by round", *(f"{d:.2f}" for d in drifts), f"| test accuracy {accuracy:.1%}")
