"""FedProx in Flower's ordinary way: Flower's own strategy, a client of one's own, the term from `fedprox_lib.proximal`.

The strategy only sends mu; the term is up to the client, and Flower's documentation shows it without the square. Needs
the extras `digits` and `flower`. Run: python examples/flower_client.py
"""

import os

# ruff: noqa: E402 (Flower and Ray read these when they are imported: no telemetry, no question for updates)
os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0"}

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp, strategy
from flwr.simulation import run_simulation
from torch import nn

from fedprox_lib import data
from fedprox_lib.proximal import anchored, proximal_penalty

client_app, server_app = ClientApp(), ServerApp()
model = nn.Sequential(nn.Flatten(), nn.Linear(784, 50), nn.ReLU(), nn.Linear(50, 10))  # every process has its own


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Local SGD from w_t, the weights in the message, and held near them."""
    config = message.content["config"]
    (x, y), _ = data.digits()
    mine = torch.where(y // 2 == context.node_config["partition-id"])[0]  # client k holds the digits 2k and 2k + 1
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=config["lr"])
    with anchored(model) as anchor:  # w_t, once per round
        for _ in range(config["epochs"]):
            for rows in mine[torch.randperm(len(mine))].split(config["batch-size"]):
                loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
                loss += proximal_penalty(model, anchor, config["proximal-mu"])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    reply = {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord({"num-examples": len(mine)})}
    return Message(RecordDict(reply), reply_to=message)


def evaluate(server_round: int, weights: ArrayRecord) -> MetricRecord:
    _, (x, y) = data.digits()
    model.load_state_dict(weights.to_torch_state_dict())
    return MetricRecord({"test-accuracy": (model(x).argmax(1) == y).double().mean().item()})


@server_app.main()
def serve(grid: Grid, context: Context) -> None:
    work = ConfigRecord({"lr": 0.05, "epochs": 2, "batch-size": 20})
    fedprox = strategy.FedProx(proximal_mu=0.1, fraction_evaluate=0.0, min_available_nodes=5)
    fedprox.start(grid, ArrayRecord(model.state_dict()), num_rounds=5, train_config=work, evaluate_fn=evaluate)


if __name__ == "__main__":
    run_simulation(server_app, client_app, num_supernodes=5, backend_config={"client_resources": {"num_cpus": 1}})
