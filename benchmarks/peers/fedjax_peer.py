"""FedJAX's own ``fed_prox`` on its default backend, which compiles one local step and calls it batch by batch.

FedJAX fills the last batch of an epoch from the next epoch, which makes fewer steps than the task asks for (a client of
12 rows: 24 instead of 40). Its clients here are therefore given the task's batches: shuffled anew every epoch, the last
one as small as it comes. Each size of batch is compiled once, in the warm-up.
"""

import os
import sys

# Before JAX is imported, which is when it reads them.
if "--threads=1" in sys.argv:
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import jax
import jax.numpy as jnp
import numpy as np

# The newest FedJAX (0.0.17) uses names that JAX has removed since.
jax.tree_map = jax.tree_util.tree_map
jax.tree_multimap = jax.tree_util.tree_multimap = jax.tree_util.tree_map

import fedjax  # noqa: E402
from fedjax.algorithms import fed_prox  # noqa: E402

from benchmarks import protocol  # noqa: E402


class Client(fedjax.ClientDataset):
    """A client whose epochs end where the task's do."""

    rng = np.random.default_rng(0)
    steps = 0

    def shuffle_repeat_batch(self, hparams):
        for _ in range(hparams.num_epochs):
            order = self.rng.permutation(len(self))
            for begin in range(0, len(order), hparams.batch_size):
                rows = order[begin : begin + hparams.batch_size]
                Client.steps += 1
                yield {name: values[rows] for name, values in self.raw_examples.items()}


def per_example_loss(params, batch, rng):
    scores = batch["x"] @ params["dense.weight"].T + params["dense.bias"]
    return -jax.nn.log_softmax(scores)[jnp.arange(len(batch["y"])), batch["y"]]


def main() -> None:
    args = protocol.arguments()
    task = protocol.read(args.task)
    facts = task.facts
    if facts["model"] != "logistic":
        raise SystemExit("this peer has only the logistic regression")
    clients = [Client({"x": task.x[rows], "y": task.y[rows]}) for rows in task.rows]
    algorithm = fed_prox.fed_prox(
        per_example_loss,
        client_optimizer=fedjax.optimizers.sgd(facts["lr"]),
        server_optimizer=fedjax.optimizers.sgd(1.0),
        client_batch_hparams=fedjax.ShuffleRepeatBatchHParams(
            batch_size=facts["batch_size"], num_epochs=facts["epochs"]
        ),
        proximal_weight=facts["mu"],
    )

    def rounds(cohorts: np.ndarray) -> tuple[protocol.Weights, int]:
        Client.steps = 0
        state = algorithm.init({name: jnp.asarray(w) for name, w in task.start.items()})
        for t, cohort in enumerate(cohorts):
            keys = jax.random.split(jax.random.PRNGKey(t), len(cohort))
            state, _ = algorithm.apply(state, [(int(k), clients[k], key) for k, key in zip(cohort, keys, strict=True)])
        jax.block_until_ready(state.params)
        return {name: np.asarray(w) for name, w in state.params.items()}, Client.steps

    protocol.run("fedjax_peer", ("fedjax", "jax", "numpy"), args, task, rounds, warm_up=task.cohorts)


if __name__ == "__main__":
    main()
