"""What a server adds to a round when its clients are across a network: who is there, what came back, when to stop.

What can go wrong between sending w_t and averaging, and what is done about it? Read :class:`PlannedStrategy` top to
bottom: it learns which node hosts which clients, sends each node one message with all its jobs of the round, checks
every client's reply before it counts, and leaves the arithmetic to :func:`fedprox_lib.simulation.aggregate`. What was
refused or did not come is named; what cannot go on says so.

Taught in "The same numbers on a real federation". Layer: flower (network).
"""

import logging
import time
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedprox_lib import simulation, tree
from fedprox_lib.federation import Federation
from fedprox_lib.simulation import Job, Reply, State
from fedprox_lib.sweeps.experiment import Experiment
from fedprox_lib.sweeps.federations import PreparedFederation, federation_of
from fedprox_lib.tree import Params

log = logging.getLogger("flwr")

OnRound = Callable[[State, dict[str, Any]], None]
"""What is called after every round."""


class FederationFailed(RuntimeError):
    """The federation cannot go on. The state of the last whole round is kept where one was asked to be kept."""


LOOK_SECONDS = 0.1
"""How often to look for replies. Flower 1.41's own loop looks every 3 s on a deployment and so misses news: a killed
node's work is reported lost only to who looks while the node is away, and one that is restarted again and again is away
for a second or two."""


def exchange(grid: Grid, messages: list[Message], seconds: float) -> list[Message]:
    """Send messages and wait for their replies, the bound at most; those that did not come by then are left out."""
    waiting = {number for number in grid.push_messages(messages) if number}  # none for what could not be sent
    replies: list[Message] = []
    end = time.monotonic() + seconds
    while waiting and time.monotonic() < end:
        time.sleep(LOOK_SECONDS)
        came = list(grid.pull_messages(waiting))
        replies += came
        waiting -= {message.metadata.reply_to_message_id for message in came}
    return replies


class PlannedStrategy:
    """What the server does: send a round's jobs, check what comes back, aggregate in the order of clients.

    Its two steps are named as those of Flower's strategies; the loop around them is its own, see :data:`LOOK_SECONDS`.

    Attributes:
        state: after the last round.
        round_seconds: bound of every wait.
    """

    def __init__(self, experiment: Experiment, state: State | None, on_round: OnRound, round_seconds: float) -> None:
        require_one_exchange(experiment)
        self.experiment, self.on_round, self.round_seconds = experiment, on_round, round_seconds
        self.federation = federation_of_run(experiment)
        self.state = state or simulation.initial_state(self.federation.model, experiment.algorithm, experiment.seed)
        if self.state.round and experiment.algorithm.init_memory(self.state.params):
            raise FederationFailed(
                f"{type(experiment.algorithm).__name__} cannot go on from round {self.state.round} in a new run: what "
                "its clients remember stayed with the old run. Start at round 0, in another output folder."
            )
        self.hosts: dict[int, int] = {}  # partition-id -> node; the last that came, where two say the same
        self.met: set[int] = set()  # nodes that have said what they host
        self.num_partitions = 0
        self.asked: dict[int, dict[int, Job]] = {}  # node -> client -> its job of this round
        self.remembered: dict[int, int] = {}  # client -> round of its last reply that was used
        self.problems: list[str] = []
        self.started = 0.0

    def start(self, grid: Grid) -> None:
        """Run the rounds that are left."""
        while self.state.round < self.experiment.rounds:
            self.aggregate_train(exchange(grid, self.configure_train(grid), self.round_seconds))

    def configure_train(self, grid: Grid) -> list[Message]:
        """One message for every node that hosts clients of the cohort."""
        self.started, self.problems, self.asked = time.monotonic(), [], {}
        present = self._meet(grid)
        e, t = self.experiment, self.state.round + 1
        for job in simulation.round_jobs(self.state, self.federation.planner.round_plan(t), e.algorithm, e.work.lr):
            client = job.work.client
            node = self.hosts.get(client % self.num_partitions)
            if node in present:
                self.asked.setdefault(node, {})[client] = job
            else:
                self.problems.append(f"client {client}: the node that hosts it is away")
        messages, params = [], ArrayRecord(self.state.params)
        for node, jobs in self.asked.items():
            todo = {
                "round": t,
                "clients": list(jobs),
                "num-steps": [job.work.num_steps for job in jobs.values()],
                "remembered": [self.remembered.get(client, 0) for client in jobs],
            }
            content = {"params": params, "server": ArrayRecord(self.state.server), "todo": ConfigRecord(todo)}
            messages.append(Message(RecordDict(content), dst_node_id=node, message_type="train"))
        return messages

    def _meet(self, grid: Grid) -> set[int]:
        """The nodes that are there. New ones are asked what they host; before the first round, until all have come."""
        began, first = time.monotonic(), not self.hosts
        refusals: set[str] = set()
        while True:
            present = set(grid.get_node_ids())
            new = [Message(RecordDict(), node, "query.whoami") for node in present - self.met]
            left = began + self.round_seconds - time.monotonic()
            for answer in exchange(grid, new, max(left, 1.0)):
                refusal = answer.error.reason if answer.has_error() else self._place(answer)
                if refusal and refusal not in refusals:
                    log.warning("a node is not used: %s", refusal)
                    refusals.add(refusal)
            missing = sorted(set(range(self.num_partitions)) - set(self.hosts))
            if not first or (self.hosts and not missing):
                return present
            if left < 0:
                raise FederationFailed(
                    f"After {self.round_seconds:.0f} s {len(self.hosts)} of {self.num_partitions or 'all'} nodes came"
                    + (f", without partition-id {', '.join(map(str, missing))}" if missing else "")
                    + ". Start the missing SuperNodes, each with --node-config 'partition-id=... num-partitions=...'. "
                    + " ".join(sorted(refusals))
                )
            time.sleep(0.5)

    def _place(self, answer: Message) -> str | None:
        """Note which partition a node hosts, or say why it hosts none."""
        node = answer.metadata.src_node_id
        self.met.add(node)
        try:
            place, of = (int(answer.content["place"][name]) for name in ("partition-id", "num-partitions"))
        except Exception as error:
            return f"Node {node} does not say what it hosts ({error!r})."
        if not 0 <= place < of or self.num_partitions not in (0, of):
            return (
                f"Node {node} says partition-id={place} num-partitions={of}: the first must be below the second, and "
                "the second the same on every node."
            )
        self.hosts[place], self.num_partitions = node, of
        return None

    def aggregate_train(self, replies: Iterable[Message]) -> None:
        """w_{t+1} from the replies that pass the checks; the others are counted."""
        t, waited = self.state.round + 1, dict(self.asked)
        used: dict[int, Reply] = {}
        seconds = 0.0
        for message in replies:
            if message.has_error():
                reason = message.error.reason or ""
                if "RayActorError" in reason or "ActorDiedError" in reason:
                    raise FederationFailed(
                        f"In round {t} a process of the simulation died. Flower keeps the dead process in its pool, so "
                        f"every later round would lose clients to it: start again, from the last state. ({reason})"
                    )
                self.problems.append(f"a node failed with code {message.error.code}: {reason}")
                continue
            jobs = waited.pop(message.metadata.src_node_id, {})
            replies_of_node, seconds_of_node = _checked(message.content, jobs, self.federation, self.problems)
            used |= replies_of_node
            seconds += seconds_of_node
        self.problems += [f"client {client}: no reply" for jobs in waited.values() for client in jobs]
        asked = sum(map(len, self.asked.values()))
        for problem in self.problems:
            log.warning("round %s, %s", t, problem)
        if self.problems and not used:
            raise FederationFailed(f"Round {t} brought no usable reply: {'; '.join(self.problems)}.")
        self.remembered |= dict.fromkeys(used, t)
        e, f = self.experiment, self.federation
        in_order = [used[client] for client in sorted(used)]
        self.state = simulation.aggregate(self.state, t, in_order, e.algorithm, f.partition.num_clients)
        row: dict[str, Any] = {"round": t, "asked": asked, "used": len(used), "problems": self.problems}
        row |= {"seconds": time.monotonic() - self.started, "client_seconds": seconds}
        if t % e.evaluation.every == 0 or t == e.rounds:
            loss, correct = f.model.loss_and_correct(self.state.params, *f.test, chunk=100)
            row |= {"test_loss": float(loss.mean()), "test_accuracy": float(correct.double().mean())}
        log.info("round %s of %s: %s of %s replies used, %.1f s", t, e.rounds, len(used), asked, row["seconds"])
        self.on_round(self.state, row)


def _checked(
    content: RecordDict, jobs: dict[int, Job], f: Federation, problems: list[str]
) -> tuple[dict[int, Reply], float]:
    """A node's usable replies by client, and how long it worked; what is wrong with the others goes to ``problems``.

    Whatever a node sends, it can cost no more than its own clients the round: anything that cannot be read is caught.
    """
    try:
        work, notes = content["work"], {int(k): str(note) for k, note in content["notes"].items()}
        sent = dict(zip(work["clients"], work["num-examples"], strict=True))
        seconds = float(work["seconds"])
    except Exception as error:
        problems += [f"client {k}: its node's reply cannot be read ({error!r})" for k in jobs]
        return {}, 0.0
    problems += [f"client {k}: was not asked of the node that replied for it" for k in sent if k not in jobs]
    used = {}
    for k, job in jobs.items():
        if k in sent:
            try:
                used[k] = _reply(content, job, sent[k], held=len(f.partition.rows[k]))
            except ValueError as error:
                problems.append(f"client {k}: {error}")
                continue
        if k in notes or k not in sent:
            problems.append(f"client {k}: {notes.get(k, 'not in the reply of its node')}")
    return used, seconds


def _reply(content: RecordDict, job: Job, num_examples: float, held: int) -> Reply:
    """One client's reply out of its node's, in the form that this server's own client would give it, or ValueError."""
    k = job.work.client
    expected, _ = simulation.reply_of(job, job.start)
    try:
        delta, extra = params_of(content[f"delta {k}"]), params_of(content[f"extra {k}"])
    except Exception as error:
        raise ValueError(f"its reply cannot be read ({error!r})") from error
    for got, wanted in ((delta, expected.delta), (extra, expected.extra)):
        if _form(got) != _form(wanted):
            raise ValueError(f"sent {_form(got)} instead of {_form(wanted)}")
        if not tree.all_finite(got):
            raise ValueError("its weights are not finite")
    if num_examples not in range(1, held + 1):
        raise ValueError(f"says that it trained on {num_examples} examples and holds {held}")
    return expected._replace(num_examples=int(num_examples), delta=delta, extra=extra)


def require_one_exchange(e: Experiment) -> None:
    if e.algorithm.gradient_clients or e.algorithm.watches_loss or e.sampling != "uniform":
        raise ValueError(
            "On Flower a round is one exchange, and the server sees no training rows: the algorithm must be FedAvg, "
            f"FedProx, Scaffold, FedAvgM or FedAdam and sampling 'uniform', got {type(e.algorithm).__name__} and "
            f"{e.sampling!r}."
        )


@lru_cache(maxsize=1)
def federation_of_run(e: Experiment) -> PreparedFederation:
    """Prepared once a process: a node of a simulation gets many messages."""
    return federation_of(e)


def params_of(record: ArrayRecord) -> Params:
    return tree.map(tree.laid_out, record.to_torch_state_dict()) if record else {}


def _form(params: Params) -> dict[str, tuple]:
    return {name: (str(w.dtype), *w.shape) for name, w in sorted(params.items())}
