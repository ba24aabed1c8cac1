"""This library on the task: ``simulate.run_round``, planning included, with the backend that defines the results."""

import numpy as np
import torch

from benchmarks import protocol
from fedprox_lib import models, simulate, tree
from fedprox_lib.algorithms import FedProx
from fedprox_lib.data import Examples
from fedprox_lib.partition import Partition
from fedprox_lib.plan import LocalWork, UniformPlanner


def main() -> None:
    args = protocol.arguments()
    torch.set_num_threads(args.threads)
    task = protocol.read(args.task)
    facts = task.facts
    train = Examples(torch.from_numpy(task.x), torch.from_numpy(task.y))
    partition = Partition(tuple(task.rows))
    work = LocalWork(facts["epochs"], facts["batch_size"], facts["lr"])
    planner = UniformPlanner(partition, work, facts["seed"], facts["cohort_size"], straggler_fraction=0.0)
    start = {name: tree.laid_out(torch.from_numpy(w)) for name, w in task.start.items()}

    def rounds(cohorts: np.ndarray) -> tuple[protocol.Weights, int]:
        state, steps = simulate.State(0, start, {}, {}), 0
        for t in range(1, len(cohorts) + 1):
            plan = planner.round_plan(t)
            state = simulate.run_round(
                state,
                plan,
                train,
                model=models.get(facts["model"]),
                algorithm=FedProx(mu=facts["mu"]),
                lr=facts["lr"],
                num_clients=partition.num_clients,
                backend=simulate.sequential,
            )
            steps += sum(client.num_steps for client in plan.cohort)
        return {name: w.contiguous().numpy() for name, w in state.params.items()}, steps

    protocol.run("ours", ("torch", "numpy"), args, task, rounds)


if __name__ == "__main__":
    main()
