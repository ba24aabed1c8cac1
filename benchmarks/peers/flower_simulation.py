"""Flower's simulation: a stock ``FedProx`` strategy told its cohorts, one virtual node a client, Ray underneath.

The client app is the quickstart's shape with the training loop of ``plain_tensors`` inside. Start-up is everything
until all nodes have said which partition they hold and the actors have trained; the rounds are timed after that, inside
the server app. There are as many actors as threads, each on one thread, which is how Flower uses several cores; its
driver and Ray's own processes share those cores. The strategy weighs clients by examples, Flower's own rule.
"""

import logging
import os
import tempfile
import time
from functools import lru_cache
from pathlib import Path

# Before Flower is imported, which is when it reads them.
os.environ |= {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
os.environ.setdefault("FLWR_HOME", str(Path(tempfile.gettempdir(), "fedprox-benchmarks-flower")))

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedProx
from flwr.simulation import run_simulation

from benchmarks import protocol
from benchmarks.peers.networks import arrays, network, tensors
from benchmarks.peers.plain_tensors import train_client

client_app = ClientApp()


@lru_cache(maxsize=1)
def data(folder: str) -> tuple[protocol.Task, torch.Tensor, torch.Tensor]:
    """The task, read once in every actor."""
    torch.set_num_threads(1)
    task = protocol.read(Path(folder))
    return task, torch.from_numpy(task.x), torch.from_numpy(task.y)


@client_app.query("partition")
def partition(message: Message, context: Context) -> Message:
    number = int(context.node_config["partition-id"])
    return Message(RecordDict({"reply": MetricRecord({"partition-id": number})}), reply_to=message)


@client_app.train()
def train(message: Message, context: Context) -> Message:
    config = message.content["config"]
    task, x, y = data(config["task"])
    rows = torch.from_numpy(task.rows[int(context.node_config["partition-id"])])
    net = network(task.facts["model"])
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    work = {name: task.facts[name] for name in ("epochs", "batch_size", "lr")}
    steps = train_client(net, x[rows], y[rows], mu=config["proximal-mu"], **work)
    reply = {
        "arrays": ArrayRecord(net.state_dict()),
        "metrics": MetricRecord({"num-examples": len(rows), "num-steps": steps}),
    }
    return Message(RecordDict(reply), reply_to=message)


class TheseCohorts(FedProx):
    """Flower's FedProx, with the cohorts given instead of drawn; it counts the local steps of the replies."""

    def __init__(self, nodes: dict[int, int], cohorts: np.ndarray, mu: float) -> None:
        super().__init__(fraction_evaluate=0.0, proximal_mu=mu)
        self.nodes, self.cohorts, self.steps = nodes, cohorts, 0

    def configure_train(self, server_round, arrays, config, grid):
        config["proximal-mu"], config["server-round"] = self.proximal_mu, server_round
        record = RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: config})
        chosen = [self.nodes[int(k)] for k in self.cohorts[server_round - 1]]
        return self._construct_messages(record, chosen, "train")

    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        failed = [reply.error for reply in replies if reply.has_error()]
        if failed or len(replies) != len(self.cohorts[server_round - 1]):
            raise RuntimeError(f"round {server_round}: {len(replies)} replies, errors {failed}")
        self.steps += sum(int(reply.content["metrics"]["num-steps"]) for reply in replies)
        return super().aggregate_train(server_round, replies)


def partitions(grid: Grid, expected: int) -> dict[int, int]:
    """Which node holds which partition: partition number -> node id, asked once."""
    while len(nodes := list(grid.get_node_ids())) < expected:
        time.sleep(0.1)
    messages = [Message(RecordDict(), dst_node_id=node, message_type="query.partition") for node in nodes]
    replies = grid.send_and_receive(messages, timeout=600)
    found = {reply.content["reply"]["partition-id"]: reply.metadata.src_node_id for reply in replies}
    if len(found) != expected:
        raise RuntimeError(f"only {len(found)} of {expected} nodes said which partition they hold")
    return found


def main() -> None:
    args = protocol.arguments()
    logging.getLogger("flwr").setLevel(logging.WARNING)
    task = protocol.read(args.task)
    server_app = ServerApp()

    @server_app.main()
    def serve(grid: Grid, context: Context) -> None:
        nodes = partitions(grid, len(task.rows))

        def rounds(cohorts: np.ndarray) -> tuple[protocol.Weights, int]:
            strategy = TheseCohorts(nodes, cohorts, task.facts["mu"])
            result = strategy.start(
                grid,
                initial_arrays=ArrayRecord(tensors(task.start)),
                num_rounds=len(cohorts),
                train_config=ConfigRecord({"task": str(args.task.resolve())}),
            )
            return arrays(result.arrays.to_torch_state_dict()), strategy.steps

        warm_up = task.cohorts[:1, : 2 * args.threads]
        packages = ("flwr", "ray", "torch", "numpy")
        protocol.run("flower_simulation", packages, args, task, rounds, warm_up=warm_up)

    run_simulation(
        server_app=server_app,
        client_app=client_app,
        num_supernodes=len(task.rows),
        backend_config={
            "init_args": {"num_cpus": args.threads, "include_dashboard": False, "log_to_driver": False},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )


if __name__ == "__main__":
    # Under its own name, so that Ray's processes can import what they are sent.
    from benchmarks.peers import flower_simulation

    flower_simulation.main()
