"""The benchmarks: peers answer in the agreed words, do the same work, and are found out when they do not."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import compare, protocol, task
from benchmarks.environments import HERE, PEERS, python_of

TINY = replace(task.CHECKS["logistic"], work=replace(task.CHECKS["logistic"].work, epochs=4, batch_size=10))
FULL_BATCHES = replace(TINY, work=replace(TINY.work, batch_size=4000))


def run(peer: str, folder: Path, repeats: int = 1) -> tuple[dict, protocol.Weights]:
    out = folder.parent / f"{folder.name}-{peer}.npz"
    return compare.run_peer(peer, Path(sys.executable), folder, out, repeats=repeats, threads=1, timeout=60)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> tuple[Path, protocol.Task]:
    folder = tmp_path_factory.mktemp("tasks") / "tiny"
    return folder, task.make("tiny", TINY, folder)


@pytest.fixture(scope="module")
def full_batches(tmp_path_factory) -> tuple[Path, protocol.Task]:
    folder = tmp_path_factory.mktemp("tasks") / "full-batches"
    return folder, task.make("full batches", FULL_BATCHES, folder)


@pytest.fixture(scope="module")
def ours(tiny, full_batches) -> dict[str, tuple[dict, protocol.Weights]]:
    return {"tiny": run("ours", tiny[0]), "full batches": run("ours", full_batches[0])}


def test_a_task_survives_the_disk(tiny):
    folder, made = tiny
    read = protocol.read(folder)
    assert read.facts == made.facts and len(read.rows) == made.facts["cohort_size"] * 8
    assert all(np.array_equal(a, b) for a, b in zip(read.rows, made.rows, strict=True))
    assert all(np.array_equal(read.start[name], w) for name, w in made.start.items())
    steps = sum(4 * -(-len(made.rows[k]) // 10) for k in made.cohorts.flat)
    assert made.facts["client_steps"] == steps


def test_answers_keep_to_the_protocol(tiny, ours):
    folder, made = tiny
    answer, weights = run("plain_tensors", folder, repeats=2)
    for peer, one, repeats in (("plain_tensors", answer, 2), ("ours", ours["tiny"][0], 1)):
        assert set(one) == {
            *["peer", "versions", "startup_seconds", "seconds", "client_steps", "all_client_steps", "threads"]
        }
        assert one["peer"] == peer and one["threads"] == 1 and len(one["seconds"]) == repeats
        assert min(one["seconds"]) > 0 and one["startup_seconds"] > 0 and "torch" in one["versions"]
        assert compare.same_steps(made, one) is None
    assert {name: w.shape for name, w in weights.items()} == {name: w.shape for name, w in made.start.items()}
    losses = [compare.training_loss(made, w) for w in (weights, ours["tiny"][1])]
    assert compare.same_loss(made, *losses) is None
    assert compare.training_loss(made, made.start) > 1.1 * losses[1]


@pytest.mark.parametrize("peer", ["plain_tensors", "plain_dataloader"])
def test_peers_agree_with_us_to_rounding_where_no_shuffle_matters(peer, full_batches, ours):
    folder, made = full_batches
    answer, weights = run(peer, folder)
    assert compare.same_weights(made, answer, weights, ours["full batches"][1]) is None
    assert compare.distance(made, weights, ours["full batches"][1]) < 1e-5


@pytest.mark.parametrize("lazy", [{"epochs": 2}, {"mu": 0.9}], ids=str)
def test_who_does_other_work_is_found_out_even_if_it_lies(lazy, full_batches, ours, tmp_path):
    _, made = full_batches
    protocol.write(tmp_path / "lazy", made._replace(facts=made.facts | lazy))
    answer, weights = run("plain_tensors", tmp_path / "lazy")
    if "epochs" in lazy:
        assert "local steps" in compare.same_weights(made, answer, weights, ours["full batches"][1])
    lie = answer | {"client_steps": made.facts["client_steps"]}
    assert "weights" in compare.same_weights(made, lie, weights, ours["full batches"][1])


def test_who_gives_no_answer_is_reported_with_the_reason(tiny):
    with pytest.raises(compare.Failed, match="exit code 1"):
        run("nobody", tiny[0])


def test_every_peer_has_a_script_and_exact_pins():
    scripts = {path.stem for path in (HERE / "peers").glob("*.py")} - {"__init__", "networks"}
    assert scripts | {"ours", "ours_sweep"} == set(PEERS)
    pinned = {path.stem for path in (HERE / "peers" / "requirements").glob("*.txt")}
    assert pinned <= scripts
    for peer in pinned:
        lines = (HERE / "peers" / "requirements" / f"{peer}.txt").read_text().splitlines()
        for line in lines:
            assert line.startswith("#") or re.fullmatch(r"[\w.-]+==[\w.]+", line), line
    assert python_of("plain_tensors") == Path(sys.executable)


def test_the_library_knows_nothing_of_the_benchmarks():
    for path in (HERE.parent / "fedprox_lib").rglob("*.py"):
        assert "benchmarks" not in re.findall(r"^\s*(?:from|import) (\w+)", path.read_text(), re.MULTILINE), path


def test_the_table_names_who_did_other_work_and_who_did_not_run():
    from benchmarks.__main__ import table

    row = {
        "peer": "ours", "threads": 1, "client_steps_per_second": 200.0, "ours_times_faster": 1.0, "client_steps": 100,
        "all_client_steps": 100, "seconds": [0.5, 0.4], "startup_seconds": 1.0, "training_loss": 1.0,
        "check_distance": 0.0,
        "different_work": None,
    }  # fmt: skip
    other = row | {"peer": "lazy", "ours_times_faster": None, "different_work": "did 50 local steps of 100"}
    report = {
        "task": {"workload": "tiny", "client_steps": 100},
        "results": [row, other],
        "not_run": {"absent": "its environment could not be made: no network"},
    }
    text = table(json.loads(json.dumps(report)))
    assert "did 50 local steps of 100" in text and "not run: its environment could not be made: no network" in text
    assert "200..250" in text
