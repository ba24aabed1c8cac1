"""Run or load: records are whole, checked, identical when made again, and survive being killed."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from fedprox_book import chapters, profile
from fedprox_book.paper import AdaptiveFedProx, FedDane
from fedprox_lib.algorithms import FedAdam, FedAvg, FedProx, Scaffold
from fedprox_lib.plan import LocalWork
from fedprox_lib.sweeps import records, results, training
from fedprox_lib.sweeps.store import Store


def csvs(store):
    """Every recorded table, byte for byte."""
    return {path.parent.name: path.read_bytes() for path in (store / "runs").glob("*/table.csv")}


def test_two_runs_give_the_same_record_to_the_last_digit(quick, tmp_path):
    for name in "ab":
        results.run([quick], tmp_path / name)
    assert csvs(tmp_path / "a") == csvs(tmp_path / "b") != {}


def test_a_table_has_settings_left_and_measurements_right(quick, tmp_path):
    table = results.run([quick, replace(quick, algorithm=FedAvg())], tmp_path)
    assert list(table["round"]) == [0, 1, 2, 3, 4] * 2
    assert set(table["arm"]) == {"FedAvg", "FedProx, mu = 0.1"}
    assert table["diverged_at"].isna().all()
    assert table.groupby("arm")["test_accuracy"].last().min() > 0.25  # it learns: chance is 0.1
    unexplained = set(table) - set(results.COLUMNS) - set(quick.settings())
    assert not unexplained


def test_what_is_recorded_is_loaded_and_not_trained_again(quick, tmp_path, monkeypatch):
    first = results.run([quick], tmp_path)
    monkeypatch.setattr(training, "train_wave", lambda *a, **k: pytest.fail("trained again"))
    pd.testing.assert_frame_equal(first, results.run([quick], tmp_path))


def test_side_by_side_workers_give_the_same_records(quick, tmp_path):
    sweep = [replace(quick, seed=s) for s in range(3)]
    results.run(sweep, tmp_path / "one")
    results.run(sweep, tmp_path / "two", workers=2)
    # another number of workers is another composition of the batches, so the last digits may differ
    one, two = (results.run(sweep, tmp_path / name) for name in ("one", "two"))
    assert np.allclose(one["train_loss"], two["train_loss"], rtol=1e-5)
    assert (one["test_accuracy"] - two["test_accuracy"]).abs().max() < 2e-3


@pytest.mark.parametrize("workers", [1, 2])
def test_two_processes_on_one_results_folder_do_not_corrupt_it(quick, tmp_path, workers):
    """Both train the same sweep at the same time; whoever finishes a run first has recorded it."""
    script = tmp_path / "sweep.py"
    script.write_text(
        "from pathlib import Path\nfrom dataclasses import replace\nfrom fedprox_lib import *\n"
        "from fedprox_lib.sweeps import *\nfrom fedprox_lib.sweeps import results\n"
        f"quick = {replace(quick, rounds=10)!r}\n"
        "if __name__ == '__main__':\n"
        "    sweep = [replace(quick, seed=s) for s in range(4)]\n"
        f"    own = Store(Path({str(tmp_path / 'shared')!r}))\n"
        f"    results.run(sweep, own, workers={workers}, checkpoint_seconds=0)\n"
    )
    both = [subprocess.Popen([sys.executable, script], stderr=subprocess.PIPE) for _ in range(2)]
    for process in both:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()
    sweep = [replace(quick, rounds=10, seed=s) for s in range(4)]
    table = results.run(sweep, Store(tmp_path / "shared", may_train=False))
    assert len(table) == 4 * 11
    assert not list((tmp_path / "shared" / ".partial").iterdir())


@pytest.mark.parametrize(
    "algorithm", [FedProx(mu=0.1), AdaptiveFedProx(mu=0.1), FedDane(mu=0.1), Scaffold(), FedAdam()], ids=repr
)
def test_resuming_from_every_checkpoint_ends_with_the_same_digits(quick, tmp_path, algorithm):
    quick = replace(quick, algorithm=algorithm)
    whole = training.train_wave([quick], tmp_path / "whole")[0].table
    for stop_at in range(quick.rounds):
        store = tmp_path / str(stop_at)
        with pytest.raises(training.Interrupted):
            training.train_wave([quick], store, on_round=lambda e, state, stop=stop_at: state.round < stop)
        assert not (store / "runs").exists()
        pd.testing.assert_frame_equal(training.train_wave([quick], store)[0].table, whole, check_exact=True)
        assert not list((store / ".partial").iterdir())


def wait_for_checkpoint(process, store, seconds=60):
    """Until the process has written a checkpoint of its own (or has ended)."""
    started, end = time.time(), time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        for path in (store / ".partial").glob("*.safetensors"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime > started:
                    return
        time.sleep(0.02)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_sweep_killed_at_random_moments_ends_with_the_same_records(quick, tmp_path, workers):
    """SIGKILL, nothing can be tidied up; the sweep is started again until it gets through."""
    sweep = [replace(quick, seed=s, rounds=70, work=LocalWork(3, 5, 0.05)) for s in range(4)]
    results.run(sweep, tmp_path / "whole", workers=workers)
    script = tmp_path / "sweep.py"
    script.write_text(
        "from dataclasses import replace\n"
        "from pathlib import Path\n"
        "from fedprox_lib import *\n"
        "from fedprox_lib.sweeps import *\nfrom fedprox_lib.sweeps import results\n"
        f"quick = {quick!r}\n"
        "if __name__ == '__main__':\n"
        "    sweep = [replace(quick, seed=s, rounds=70, work=LocalWork(3, 5, 0.05)) for s in range(4)]\n"
        f"    own = Store(Path({str(tmp_path / 'killed')!r}))\n"
        f"    results.run(sweep, own, workers={workers}, checkpoint_seconds=0)\n"
    )
    kills = 0
    chance = random.Random(0)
    while True:
        process = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE)
        if kills < 3:
            wait_for_checkpoint(process, tmp_path / "killed")
            time.sleep(chance.uniform(0, 0.2))
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                kills += 1
                continue
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()
        break
    assert kills >= 2
    killed, whole = (results.run(sweep, tmp_path / name) for name in ("killed", "whole"))
    # runs that were ahead wait for the others, so batches are composed differently: last digits may depend on that
    pd.testing.assert_frame_equal(killed, whole, check_exact=False, rtol=1e-5, atol=1.1e-3)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(tmp_path, workers):
    command = [sys.executable, "-m", "fedprox_book.make", "--profile", "smoke", "--sweep", "choose_mu"]
    command += ["--store", str(tmp_path), "--workers", workers, "--checkpoint-seconds", "0"]
    listen = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731 (a job in the background ignores it)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=listen)
    wait_for_checkpoint(process, tmp_path)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "of 3 runs are recorded; the same command goes on from here" in errors and "Traceback" not in errors
    assert list((tmp_path / ".partial").glob("*.safetensors"))
    again = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert "3 of 3 runs are recorded" in again.stdout
    assert not list((tmp_path / ".partial").iterdir())


def test_a_killed_parent_leaves_no_worker_behind(quick, tmp_path):
    script = tmp_path / "long.py"
    script.write_text(
        "from pathlib import Path\nfrom dataclasses import replace\n"
        "from fedprox_lib import *\nfrom fedprox_lib.sweeps import *\nfrom fedprox_lib.sweeps import results\n"
        f"quick = {quick!r}\n"
        "if __name__ == '__main__':\n"
        "    sweep = [replace(quick, seed=s, rounds=100000) for s in range(2)]\n"
        f"    results.run(sweep, Path({str(tmp_path)!r}), workers=2, checkpoint_seconds=0)\n"
    )
    process = subprocess.Popen([sys.executable, str(script)])
    deadline = time.monotonic() + 60
    while len(list((tmp_path / ".partial").glob("*.safetensors"))) < 2:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.2)
    process.kill()
    process.wait()

    def saved():
        return [p.stat().st_mtime_ns for p in sorted((tmp_path / ".partial").glob("*.safetensors"))]

    time.sleep(3)
    before = saved()
    time.sleep(2)
    assert saved() == before


def test_published_refuses_to_train(quick, tmp_path):
    p = replace(profile.at(tmp_path), may_train=False)
    with pytest.raises(results.RecordMissing, match=r"1 of 1 runs are not in .*make results"):
        results.run([quick], p)
    with pytest.raises(results.RecordMissing, match=r"table 'x' is not in"):
        results.table("x", p, {}, lambda: pytest.fail("computed"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "table.csv").write_text("round\n0\n"), "table.csv was edited"),
        (lambda f: (f / "table.csv").unlink(), "half-written"),
        (lambda f: (f / "record.json").unlink(), "half-written"),
        (lambda f: (f / "record.json").write_text((f / "record.json").read_text()[:100]), "half-written"),
        (
            lambda f: (f / "record.json").write_text((f / "record.json").read_text().replace("0.05", "0.06")),
            "was edited",
        ),
    ],
)
def test_damaged_records_are_named_and_neither_used_nor_replaced(quick, tmp_path, damage, message):
    results.run([quick], tmp_path)
    folder = tmp_path / "runs" / quick.id
    damage(folder)
    left = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(records.RecordDamaged, match=rf"{quick.id} is refused: .*{message}"):
        results.run([quick, replace(quick, seed=1)], tmp_path)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == left
    assert csvs(tmp_path).keys() <= {quick.id}  # nothing else was trained either


def test_a_record_under_a_wrong_name_and_a_stale_one_are_refused(quick, tmp_path, monkeypatch):
    results.run([quick], tmp_path)
    other = replace(quick, seed=1)
    (tmp_path / "runs" / quick.id).rename(tmp_path / "runs" / other.id)
    with pytest.raises(records.RecordDamaged, match="other settings than its name promises"):
        results.run([other], tmp_path)
    (tmp_path / "runs" / other.id).rename(tmp_path / "runs" / quick.id)
    monkeypatch.setattr(records, "NUMERICS_VERSION", 2)
    with pytest.raises(records.RecordDamaged, match="made by numerics version 1, this is 2"):
        results.run([quick], tmp_path)


def test_a_damaged_checkpoint_is_named(quick, tmp_path):
    (tmp_path / ".partial").mkdir()
    (tmp_path / ".partial" / f"{quick.id}.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(records.RecordDamaged, match=r"checkpoint .* is damaged .*delete it"):
        results.run([quick], tmp_path)


def test_a_diverging_run_is_recorded_as_such_and_the_others_go_on(quick, tmp_path):
    # lr * mu = 500: each local step multiplies the distance from w_t by about -499, far beyond float32 in 15 steps
    wild = replace(quick, algorithm=FedProx(mu=1000.0), work=LocalWork(20, 1, 0.5), straggler_fraction=0.0)
    table = results.run([wild, quick], tmp_path)
    assert set(table.loc[table["record"] == wild.id, "diverged_at"]) == {1}
    assert list(table.loc[table["record"] == wild.id, "round"]) == [0]
    assert table.loc[table["record"] == quick.id, "diverged_at"].isna().all()
    outcome = json.loads((tmp_path / "runs" / wild.id / "record.json").read_text())["outcome"]
    assert outcome == {"status": "diverged", "round": 1}


def test_an_unwritable_results_folder_is_refused_before_training(quick, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setattr(training, "train_wave", lambda *a, **k: pytest.fail("trained"))
    with pytest.raises(records.StoreUnwritable, match=r"results folder .* cannot be written .*nothing was trained"):
        results.run([quick], tmp_path / "file" / "results")


def test_a_full_disk_leaves_no_record(quick, tmp_path):
    """The kernel refuses to let files grow past 3,000 bytes: the same error path as a full disk."""
    code = (
        "import resource, sys\nfrom pathlib import Path\nfrom fedprox_lib import *\n"
        "from fedprox_lib.sweeps import *\nfrom fedprox_lib.sweeps import results, records, training\n"
        f"quick = {quick!r}\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
        f"store = Path({str(tmp_path / 'full')!r})\n"
        "try:\n    results.run([quick], store)\n"
        "except records.StoreUnwritable as error: print('before:', error)\n"
        "try:\n    training.train_wave([quick], store, checkpoint_seconds=0)\n"
        "except records.StoreUnwritable as error: print('during:', error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert "before: results folder" in done.stdout, done.stderr
    assert "during: checkpoint" in done.stdout and "could not be written" in done.stdout
    assert [path for path in (tmp_path / "full").rglob("*") if path.is_file()] == []


def test_a_named_table_is_computed_once_and_tied_to_its_settings(tmp_path):
    p = Store(tmp_path)
    frame = pd.DataFrame({"x": [0.1, 1 / 3]})
    assert results.table("t", p, {"data": "mnist5k"}, lambda: frame)["x"].tolist() == [0.1, 1 / 3]
    assert results.table("t", p, {"data": "mnist5k"}, lambda: pytest.fail("again"))["x"].tolist() == [0.1, 1 / 3]
    with pytest.raises(records.RecordDamaged, match="other settings"):
        results.table("t", p, {"data": "mnist"}, lambda: frame)


def test_provenance_says_how_a_record_was_made(quick, tmp_path):
    results.run([quick], tmp_path)
    row = chapters.origins([quick], Store(tmp_path)).iloc[0]
    assert row["outcome"] == "complete" and row["threads"] == 1 and row["backend"] == "batched"
    assert row["numerics_version"] == records.NUMERICS_VERSION and len(row["data_sha256"]) == 64
    assert row["seconds"] > 0 and os.cpu_count() and "cores" in row["machine"]


def test_the_command_trains_what_lacks_and_says_so(tmp_path):
    command = [
        sys.executable,
        "-m",
        "fedprox_book.make",
        "--profile",
        "smoke",
        "--sweep",
        "rerun",
        "--store",
        tmp_path,
    ]
    first, second = (subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2))
    assert "0 of 1 runs are recorded" in first and "1 of 1 runs are recorded" in first
    assert second.startswith("1 of 1 runs are recorded")


def test_the_command_says_in_words_what_it_cannot_train(tmp_path):
    """A damaged file of full MNIST: the message, how far it came, and no traceback."""
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(b"cut off")
    for name in ("train-labels", "t10k-images", "t10k-labels"):
        (tmp_path / "MNIST" / "raw" / f"{name}-idx{1 + 2 * ('images' in name)}-ubyte").write_bytes(b"")
    command = [sys.executable, "-m", "fedprox_book.make", "--sweep", "choose_lr", "--store", tmp_path / "store"]
    command += ["--workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "FEDPROX_DATA": str(tmp_path)})
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "is truncated or altered" in done.stderr and "0 of 2 runs are recorded" in done.stderr
