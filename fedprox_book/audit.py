"""What this book found in Flower's FedProx baselines, one record a slip, and a command that measures any of them again.

Which question this answers: *where is it, since when, is it fixed, and how do I see it for myself?* ``DEFECTS`` lists
the slips with file, function and commit of github.com/adap/flower; the measurements are in
:mod:`fedprox_book.audit_blog` and :mod:`fedprox_book.audit_later`, and tests of ours pin what is right. As a command::

    python -m fedprox_book.audit                        # what there is
    python -m fedprox_book.audit batch-counts           # trains again on full MNIST and compares with the record
    python -m fedprox_book.audit batch-counts --profile smoke

Taught in "The baseline as published". Room: pandas and a command line. May import audit_blog, audit_later and what
they stand on.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from fedprox_book import audit_blog, audit_later
from fedprox_book import profile as profiles
from fedprox_book.audit_table import MEANT, PUBLISHED, summary
from fedprox_book.profile import Profile
from fedprox_lib.sweeps.datasets import DataMissing
from fedprox_lib.sweeps.results import RecordMissing

BLOG, LATER, NOW = "8c63abf50c", "010feb0440", "fdef7afb1d"
"""The commits that were read: the blog's code (February 2023), its successor (October 2023), March 2026."""

_OLD = "baselines/flwr_baselines/publications/fedprox_mnist"
_NEW = "baselines/fedprox/fedprox"


@dataclass(frozen=True)
class Defect:
    """One slip.

    Attributes:
        key: its name on the command line.
        title: in a few words.
        where: ``path::function`` in adap/flower.
        commit: at which it was read.
        what: one sentence.
        still: whether it is there, in whatever file, at ``NOW``.
        history: since when, and by which commit it was fixed, in words.
        pinned_by: tests of ours that hold the library to what is right.
        moves_accuracy: whether test accuracy is among what is measured.
        measure: gives the table, from the record or by training.
    """

    key: str
    title: str
    where: str
    commit: str
    what: str
    still: bool
    history: str
    pinned_by: tuple[str, ...]
    moves_accuracy: bool
    measure: Callable[[Profile], pd.DataFrame]

    @property
    def url(self) -> str:
        """The file at the commit."""
        return f"https://github.com/adap/flower/blob/{self.commit}/{self.where.partition('::')[0]}"

    @property
    def command(self) -> str:
        """What measures it again."""
        return f"python -m fedprox_book.audit {self.key}"


_LIST = (
    Defect(
        "unsquared", "The norm without its square", f"{_OLD}/model.py::_training_loop", BLOG,
        "The penalty adds up the norms of the tensors' differences, not their squares.",
        False, f"from {BLOG} on; fixed in the baseline by cbe2bc4563 (September 2023, pull request 2210)",
        ("tests/test_algorithms.py::test_proximal_steps_match_the_closed_form_of_a_quadratic",
         "tests/test_algorithms.py::test_one_client_matches_torch_sgd_on_the_penalised_loss"),
        True, audit_blog.unsquared,
    ),
    Defect(
        "two-digits", "Balanced down to two digits", f"{_OLD}/dataset.py::_balance_classes", BLOG,
        "The sorted rows are cut at the class counts instead of at the places where the classes begin.",
        True, "fixed in the FedProx baseline by 8872ec3146 (July 2023, pull request 1918); baselines/flwr_baselines/"
        f"flwr_baselines/publications/fedavg_mnist/dataset.py still has it at {NOW}",
        ("tests/test_partition.py::test_label_shards_as_the_blog_tells",
         "tests/test_audit.py::test_our_shards_hold_every_row_and_every_digit"),
        True, audit_blog.two_digits,
    ),
    Defect(
        "everybody", "All clients, every round, one arm", f"{_OLD}/main.py::main", BLOG,
        "fraction_fit=1.0 selects all clients, so the smaller min_fit_clients changes nothing, nobody is dropped, and "
        "there is no FedAvg to compare with.",
        False, "since 8872ec3146 (July 2023) 10 clients a round, and FedAvg drops its stragglers",
        ("tests/test_plan.py::test_straggler_counts_are_exact_in_every_round",
         "tests/test_experiment.py::test_sweeps_pair_their_arms"),
        True, audit_blog.everybody,
    ),
    Defect(
        "batch-counts", "Batches counted as examples", f"{_OLD}/client.py::FlowerClient.fit", BLOG,
        "A client reports len(trainloader), its mini-batches, as the number of its examples.",
        True, f"harmless there, where all clients are equal; still so at {LATER} and {NOW}, where they are not",
        ("tests/test_algorithms.py::test_the_average_weighs_rows_not_batches_and_not_work",),
        True, audit_blog.batch_counts,
    ),
    Defect(
        "tenfold-loss", "A loss ten times too small", f"{_OLD}/model.py::test", BLOG,
        "Means over mini-batches are added up and divided by the number of rows.",
        True, f"unchanged in {_NEW}/model.py at {NOW}",
        ("tests/test_diagnostics.py::test_metrics_are_means_over_rows_for_any_chunk",),
        False, audit_blog.tenfold_loss,
    ),
    Defect(
        "unseeded", "Luck of its own for every run", f"{_OLD}/client.py::gen_client_fn", BLOG,
        "Initial weights, stragglers and batches come from generators that nobody seeds; two runs share only the data.",
        True, f"at {LATER} the sizes of the clients too ({_NEW}/dataset_preparation.py, _power_law_split); at {NOW} "
        "the partition is seeded, the rest is not",
        ("tests/test_plan.py::test_round_70_needs_no_history_and_no_global_generator",
         "tests/test_experiment.py::test_initial_weights_depend_on_the_seed_alone",
         "tests/test_results.py::test_two_runs_give_the_same_record_to_the_last_digit"),
        True, audit_blog.unseeded,
    ),
    Defect(
        "upper-end", "The upper end of a straggler's epochs", f"{_OLD}/client.py::FlowerClient.fit", BLOG,
        "NumPy's randint(1, E) draws from 1..E-1; the paper says 1..E. The authors' own code does the same.",
        True, f"unchanged in {_NEW}/client_app.py at {NOW}",
        ("tests/test_plan.py::test_straggler_epochs_are_uniform_on_their_range",),
        True, audit_blog.upper_end,
    ),
    Defect(
        "bernoulli", "A coin for every straggler", f"{_NEW}/client.py::gen_client_fn", LATER,
        "Each client is a straggler with probability s by itself, so their number varies from round to round.",
        True, f"from {BLOG} on; it matters since stragglers are dropped (8872ec3146, July 2023)",
        ("tests/test_plan.py::test_straggler_counts_are_exact_in_every_round",),
        True, audit_later.bernoulli,
    ),
    Defect(
        "redrawn", "A schedule drawn anew at every birth", f"{_NEW}/client_app.py::client_fn", NOW,
        "Whenever a client object is made it draws a whole schedule, unseeded, and reads one entry of it.",
        True, "in the port to Flower Apps (be663c70e7, February 2025)",
        ("tests/test_plan.py::test_the_straggler_fraction_changes_nothing_but_who_straggles",
         "tests/test_audit.py::test_our_arms_meet_the_same_stragglers"),
        True, audit_later.redrawn,
    ),
    Defect(
        "leak", "Test images in the clients' hands", f"{_NEW}/dataset.py::prepare_test_loader", NOW,
        "FEMNIST's test set is a tenth of the split that the clients are given in full.",
        True, "from aea46f6d3d (June 2025) on, for FEMNIST only; MNIST has its own test set",
        ("tests/test_audit.py::test_no_client_holds_a_row_that_we_test_on",),
        True, audit_later.leak,
    ),
    Defect(
        "snippet", "An anchor that is used up", "framework/py/flwr/server/strategy/fedprox.py::FedProx", NOW,
        "The documentation keeps the global weights in an iterator, which the first mini-batch uses up; and its norm "
        "lacks the square.",
        True, "in both strategies' docstrings (the other is framework/py/flwr/serverapp/strategy/fedprox.py), and so "
        "in the released flwr 1.41.0; the baselines themselves copy the weights into a list",
        ("tests/test_algorithms.py::test_a_stronger_leash_keeps_closer_in_the_stable_regime",
         "tests/test_algorithms.py::test_one_client_matches_torch_sgd_on_the_penalised_loss"),
        False, audit_later.snippet,
    ),
)  # fmt: skip

DEFECTS = {defect.key: defect for defect in _LIST}
"""The slips by key, the blog's own first."""


def find(key: str) -> Defect:
    """The slip of that name.

    Raises:
        ValueError: if there is none; the message lists the names.
    """
    if key not in DEFECTS:
        raise ValueError(f"defect must be one of {', '.join(DEFECTS)}, got {key!r}.")
    return DEFECTS[key]


def describe(table: pd.DataFrame) -> str:
    """The summary of a table in lines of text, with the interval of the paired difference."""
    lines = []
    for row in summary(table).to_dict("records"):
        interval = f" [{row['low']:+.4f}, {row['high']:+.4f}]" if row["replicates"] > 1 else ""
        lines.append(
            f"  {row['setting']}: {row['metric']}: {PUBLISHED} {row[PUBLISHED]:.4f}, {MEANT} {row[MEANT]:.4f}, "
            f"difference {row['difference']:+.4f}{interval}, replicates: {row['replicates']}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure one slip again, or list them all."""
    parser = argparse.ArgumentParser(prog="python -m fedprox_book.audit", description=main.__doc__)
    parser.add_argument("key", nargs="?", help="which; without it they are listed")
    parser.add_argument("--profile", choices=("smoke", "paper"), default="paper", help="default: %(default)s")
    parser.add_argument("--store", type=Path, help="keep the new records here; by default they are thrown away")
    given = parser.parse_args(arguments)
    if given.key is None:
        print("\n".join(f"{d.key:14} {d.title}" for d in DEFECTS.values()))
        return
    try:
        defect = find(given.key)
    except ValueError as error:
        parser.error(str(error))
    print(f"{defect.title}\n{defect.what}\n{defect.url} ({defect.where.partition('::')[2]})\n{defect.history}")
    with tempfile.TemporaryDirectory(prefix="fedprox-audit-") as temporary:
        store = given.store or Path(temporary)
        try:
            fresh = defect.measure(replace(profiles.profile_named(given.profile), folder=store, may_train=True))
        except DataMissing as error:
            sys.exit(f"{error}\nOr add --profile smoke, which uses the digits that come with the installation.")
    print(f"measured now, profile {given.profile}:\n{describe(fresh)}")
    try:
        print(f"the book's record, full MNIST:\n{describe(defect.measure(profiles.profile_named('published')))}")
    except RecordMissing as error:
        print(f"the book has no record of it: {error}")


if __name__ == "__main__":
    main()
