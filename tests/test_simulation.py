"""The loop on plain objects: no name, no file, no experiment; and the lockstep of sweeps gives the same numbers."""

import importlib
from dataclasses import replace

import numpy as np
import pytest
import torch

import fedprox_lib
from fedprox_book.paper import AdaptiveFedProx, FedDane
from fedprox_lib import FedAvg, Federation, FedProx, LocalWork, Scaffold, UniformPlanner, batched, data, simulate
from fedprox_lib._moved import MOVED
from fedprox_lib.sweeps import follow
from fedprox_lib.sweeps.federations import federation_of

WORK = LocalWork(epochs=2, batch_size=4, lr=0.05)


@pytest.fixture
def clients(toy):
    """The 7 ragged clients of the fixture, with themselves as test set."""
    model, train, partition = toy
    return Federation(
        data.Examples(train.x.float(), train.y), data.Examples(train.x.float(), train.y), partition, model
    )


@pytest.mark.parametrize(
    "algorithm",
    [FedAvg(), FedProx(mu=0.3), Scaffold(), AdaptiveFedProx(mu=0.2), FedDane(mu=0.1, gradient_clients=4)],
    ids=repr,
)
def test_the_loop_on_objects_is_the_one_of_an_experiment(quick, algorithm):
    """Every weight to the last bit; losses are summed over the same rows in another order."""
    e = replace(quick, algorithm=algorithm)
    prepared = federation_of(e)
    plain = Federation(prepared.train, prepared.test, prepared.partition, prepared.model)
    loop = simulate(
        plain, algorithm, work=e.work, rounds=e.rounds, seed=e.seed, cohort_size=e.cohort_size,
        straggler_fraction=e.straggler_fraction,
    )  # one call  # fmt: skip
    for (state, row), (expected, measured) in zip(loop, follow(e), strict=True):
        assert state.round == expected.round
        assert all(torch.equal(state.params[name], w) for name, w in expected.params.items())
        assert row.keys() == measured.keys()
        assert row == {name: pytest.approx(value, rel=1e-6) for name, value in measured.items()}


def test_batched_is_the_same_up_to_rounding(clients):
    ends = []
    for backend in (fedprox_lib.sequential, batched):
        *_, (state, _) = simulate(
            clients,
            FedProx(mu=0.3),
            work=WORK,
            rounds=3,
            seed=0,
            cohort_size=5,
            straggler_fraction=0.5,
            backend=backend,
        )
        ends.append(state.params["dense.weight"])
    assert torch.allclose(*ends, rtol=1e-5, atol=1e-7) and not torch.equal(ends[0], torch.zeros_like(ends[0]))


def test_a_planner_of_its_own_decides(clients):
    planner = UniformPlanner(clients.partition, WORK, seed=5, cohort_size=3, straggler_fraction=1.0)
    own = list(simulate(replace(clients, planner=planner), FedProx(mu=0.0), work=WORK, rounds=2, seed=0))
    other = list(simulate(clients, FedProx(mu=0.0), work=WORK, rounds=2, seed=0, cohort_size=3))
    assert torch.equal(own[0][0].params["dense.bias"], other[0][0].params["dense.bias"])
    assert not torch.equal(own[-1][0].params["dense.bias"], other[-1][0].params["dense.bias"])


def test_going_on_is_running_through(clients):
    how = {"work": WORK, "rounds": 4, "seed": 1, "cohort_size": 4}
    whole = [state for state, _ in simulate(clients, Scaffold(), **how)]
    rest = [state for state, _ in simulate(clients, Scaffold(), state=whole[2], **how)]
    assert [state.round for state in rest] == [3, 4]
    assert all(torch.equal(rest[-1].params[name], w) for name, w in whole[-1].params.items())


def test_measurements_come_every_so_often_and_at_the_end(clients):
    run = simulate(clients, FedAvg(), work=WORK, rounds=5, seed=0, cohort_size=2, every=3)
    assert [bool(row) for _, row in run] == [True, False, False, True, False, True]


def test_it_ends_where_weights_are_no_longer_finite(clients):
    wild = replace(WORK, lr=1e38)
    states = [state for state, _ in simulate(clients, FedAvg(), work=wild, rounds=9, seed=0, cohort_size=7)]
    assert states[-1].round < 9 and not np.isfinite(states[-1].params["dense.weight"].numpy()).all()


def test_what_is_missing_is_named(clients):
    with pytest.raises(ValueError, match="cohort_size is needed"):
        next(simulate(clients, FedAvg(), work=WORK, rounds=1, seed=0))
    with pytest.raises(ValueError, match=r"AdaptiveFedProx follows the loss .* every must be 1, got 2"):
        next(simulate(clients, AdaptiveFedProx(mu=0.1), work=WORK, rounds=4, seed=0, cohort_size=2, every=2))


@pytest.mark.parametrize("name", MOVED)
def test_names_of_version_0_1_say_where_they_are_now(name):
    """As a module, as an attribute and from the package; and what they name is there."""
    where = MOVED[name]
    message = rf"fedprox_lib\.{name} has moved to {where} in version 0\.2"
    if name != "simulate" and "." not in name:  # the function has the old module's name
        with pytest.raises(ImportError, match=message):
            getattr(fedprox_lib, name)
        with pytest.raises(ImportError, match=message):
            exec(f"from fedprox_lib import {name}")
    with pytest.raises(ImportError, match=message):
        importlib.import_module(f"fedprox_lib.{name}")
    there = importlib.import_module(where)
    short = name.rpartition(".")[2]
    assert where.endswith(short) or hasattr(there, short) or short.partition("_")[0] in where or name == "simulate"


def test_other_names_are_missing_as_usual():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        fedprox_lib.nothing  # noqa: B018 (that it is asked for is the test)
    with pytest.raises(ModuleNotFoundError, match="No module named 'fedprox_lib.nothing'"):
        importlib.import_module("fedprox_lib.nothing")
