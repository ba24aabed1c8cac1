"""The scoreboard judges as it says: statistics by hand, verdicts from intervals, claims that read nothing else."""

import inspect
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from fedprox_book import diagnostics, profile, sweeps_paper
from fedprox_book.paper import claim_statistics, claims, theory
from fedprox_book.paper.claim_statistics import final_difference, log_ratio, step_to_next
from fedprox_book.paper.claims import Claim
from fedprox_lib import simulation
from fedprox_lib.algorithms import FedAvg, FedProx
from fedprox_lib.sweeps import lockstep, records
from fedprox_lib.sweeps.experiment import Evaluation
from fedprox_lib.sweeps.federations import federation_of

DROP, KEEP, PROX = "FedAvg", "FedProx, mu = 0", "FedProx, mu = 1"


def runs(*curves, data="toy"):
    """Runs from (arm, fraction, seed, losses); accuracy is 1 - loss / 10."""
    parts = []
    for arm, fraction, seed, loss in curves:
        loss = np.asarray(loss, dtype=float)
        parts.append(
            pd.DataFrame(
                {
                    "arm": arm,
                    "straggler_fraction": fraction,
                    "seed": seed,
                    "round": range(len(loss)),
                    "data": data,
                    "train_loss": loss,
                    "test_accuracy": 1 - loss / 10,
                    "gradient_variance": loss**2,
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def means(found):
    return {part: round(float(value), 10) for part, value in found.groupby("part", sort=False)["value"].mean().items()}


# --- statistics ------------------------------------------------------------------------------------------------------


def test_final_is_the_mean_of_the_last_twenty_and_differences_are_paired():
    def flat(level):
        return [9.0] * 5 + [level] * 20

    table = runs((DROP, 0.9, 0, flat(3)), (DROP, 0.9, 1, flat(5)), (KEEP, 0.9, 0, flat(2)), (KEEP, 0.9, 1, flat(3)))
    found = final_difference(table, metric="train_loss", arm=KEEP, baseline=DROP, stragglers=[0.9])
    assert found["value"].tolist() == [-1.0, -2.0] and set(found["part"]) == {"90 %"}


def test_without_stragglers_fedavg_stands_for_mu_0():
    table = runs((DROP, 0.0, 0, [2.0] * 3), (PROX, 0.0, 0, [1.5] * 3))
    found = final_difference(table, metric="train_loss", arm=PROX, baseline=KEEP, stragglers=[0.0])
    assert found["value"].tolist() == [-0.5]
    with pytest.raises(ValueError, match="there is no run of 'FedProx, mu = 0' at 50 % stragglers"):
        final_difference(table, metric="train_loss", arm=KEEP, baseline=DROP, stragglers=[0.5])


def test_steps_between_shares_of_stragglers():
    table = runs((DROP, 0.0, 0, [1.0]), (DROP, 0.5, 0, [1.5]), (DROP, 0.9, 0, [4.0]))
    found = step_to_next(table, metric="train_loss", arm=DROP, by="straggler_fraction")
    assert means(found) == {"0 % to 50 %": 0.5, "50 % to 90 %": 2.5}


def test_roughness_is_the_spread_of_changes_not_of_values():
    """A straight line is perfectly smooth, whatever its slope; here the changes spread 4 times as much."""
    calm, wild = np.cumsum([5, 1, -1, 1, -1, 1]), np.cumsum([5, 4, -4, 4, -4, 4])
    table = runs((DROP, 0.0, 0, wild), (PROX, 0.0, 0, calm))
    names = {"metric": "roughness", "arm": PROX, "baseline": KEEP}
    found = log_ratio(table, **names)
    assert found["value"].tolist() == pytest.approx([-np.log(4)]) and found["part"].tolist() == ["0 %"]
    both = log_ratio(pd.concat([table, table.assign(data="other")]), **names)
    assert both["part"].tolist() == ["toy 0 %", "other 0 %"] and both["value"].nunique() == 1


def test_rescued_counts_only_what_was_ill():
    """Rising by more than 1 within ten rounds is divergence; a run that ends early, with no number left, is, too."""
    ill, well = [0.0] * 5 + [1.5] * 10, [0.0] * 15
    slow = np.linspace(0, 1.4, 16)[:15]  # rises by 1.3, but by less than 1 in any ten rounds
    table = runs(
        (KEEP, 0.5, 0, ill),
        (PROX, 0.5, 0, well),
        (KEEP, 0.5, 1, ill),
        (PROX, 0.5, 1, ill),
        (KEEP, 0.5, 2, slow),
        (PROX, 0.5, 2, ill),
        (KEEP, 0.5, 3, well[:6]),
        (PROX, 0.5, 3, well),
    )
    found = claim_statistics.rescued(table, arm=PROX, baseline=KEEP, stragglers=[0.5])
    assert dict(zip(found["replicate"], found["value"], strict=True)) == {0: 1.0, 1: 0.0, 3: 1.0}
    nobody = claim_statistics.rescued(
        runs((KEEP, 0.9, 0, well), (PROX, 0.9, 0, well)), arm=PROX, baseline=KEEP, stragglers=[0.9]
    )
    assert nobody["part"].tolist() == ["90 %"] and nobody["value"].isna().all()


def test_the_rule_behind_the_22_percent_stops_each_arm_for_itself():
    """FedAvg stands still from round 3 on (loss 2.0); the other diverges in round 11 (loss 3.0); points of accuracy."""
    still = [4.0, 3.0, 2.0, 2.00005, 0.0, 0.0, 0, 0, 0, 0, 0, 0, 0]
    rising = [1.9, 1.7, 1.6, 1.5, 1.4, 1.3, 1.2, 1.1, 1.05, 1.02, 1.0, 3.0, 0.5]
    table = runs((DROP, 0.9, 0, still), (PROX, 0.9, 0, rising))
    found = claim_statistics.gap_where_stopped(table, arm=PROX, baseline=DROP)
    assert found["value"].tolist() == pytest.approx([100 * ((1 - 0.3) - (1 - 0.200005))])
    never = runs((DROP, 0.9, 0, [3.0, 2.0, 1.0]), (PROX, 0.9, 0, [3.0, 2.0, 1.5]))
    assert claim_statistics.gap_where_stopped(never, arm=PROX, baseline=DROP)["value"].tolist() == pytest.approx([-5.0])


def test_rounds_to_within_ten_percent_of_the_best():
    fast, slow, never = [4.0, 1.05, 1.0, 1.0], [4.0, 3.0, 1.1, 1.0], [4.0, 3.0, 2.0, 1.5]

    def ratio(loss):
        table = runs((DROP, 0.0, 0, fast), (PROX, 0.0, 0, loss))
        return log_ratio(table, metric="train_loss", arm=PROX, baseline=DROP, above_best=0.1)["value"].tolist()

    assert ratio(slow) == pytest.approx([np.log(2)])
    assert ratio(never) == pytest.approx([np.log(3)])  # never counts as the last round


def test_a_ratio_of_curves_is_their_geometric_mean_without_round_0():
    table = runs((DROP, 0.0, 0, [5.0, 1.0, 2.0]), (PROX, 0.0, 0, [5.0, 2.0, 16.0]))
    found = log_ratio(table, metric="train_loss", arm=PROX, baseline=DROP)
    assert found["value"].tolist() == pytest.approx([np.log(4)])  # 2 and 8 times as much


def test_ranks_are_correlated_over_the_second_half():
    first, late = [0.0, 9.0, 1.0, 8.0], [5.0, 4.0, 3.0, 2.0, 1.0]
    table = runs((DROP, 0.0, 0, first + late)).assign(other=lambda t: [0, 0, 0, 0, *np.exp(late)])
    find = claim_statistics.rank_correlation
    assert find(table, x="other", y="train_loss", arms=[DROP], stragglers=0.0)["value"].tolist() == [1.0]
    table["other"] = -table["other"]
    assert find(table, x="other", y="train_loss", arms=[DROP], stragglers=0.0)["value"].tolist() == [-1.0]


def test_between_sets_sampling_mu_and_the_better_arm():
    a, b = runs((DROP, 0.0, 0, [1.0, 1.0]), data="a"), runs((DROP, 0.0, 0, [2.0, 8.0]), data="b")
    sets = step_to_next(pd.concat([a, b]), metric="train_loss", arm=DROP, by="data")
    assert means(sets) == {"a to b": round(float(np.log(4)), 10)}
    flat = [2.0] * 101
    both = [
        runs((KEEP, 0.0, 0, flat), (KEEP, 0.0, 1, flat)),
        runs((KEEP, 0.0, 0, np.array(flat) - 0.5)).assign(sampling="by_size"),
    ]
    ways = {"sampling": ("by_size", "uniform"), "until": 100}
    by_size = final_difference(pd.concat(both), metric="train_loss", arm=[KEEP], baseline=None, **ways)
    assert by_size["value"].tolist() == [-0.5]  # replicate 1 has no twin
    arms = runs((DROP, 0.0, 0, flat), (PROX, 0.0, 0, [1.0] * 101), ("AdaptiveFedProx, mu = 0", 0.0, 0, [1.2] * 101))
    better = final_difference(arms, metric="train_loss", arm="AdaptiveFedProx", baseline=[DROP, PROX])
    assert better["value"].tolist() == pytest.approx([0.2])
    mus = final_difference(arms, metric="train_loss", arm=[KEEP], baseline=PROX)
    assert means(mus) == {"mu = 0": 1.0}
    assert means(claim_statistics.largest(arms, metric="train_loss", arms=[PROX], stragglers=0.0)) == {PROX: 1.0}


# --- verdicts --------------------------------------------------------------------------------------------------------


def claim(expected, **more):
    return Claim("C", "a claim", "a source", statistic="final_difference", expected=expected, **more)


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([[-1.0, -1.1, -0.9]], "reproduced"),
        ([[-1.0, -1.1, -0.9], [1.0, 1.1, 0.9]], "partly"),
        ([[-1.0, -1.1, -0.9], [-1.0, 1.1, 0.9]], "partly"),
        ([[-1.0, 1.1, 0.9]], "not reproduced"),
        ([[1.0, 1.1, 0.9], [-1.0, 1.1, 0.9]], "not reproduced"),
        ([[1.0, 1.1, 0.9]], "contradicted"),
        ([[-1.0]], "not reproduced"),  # one replicate has no interval
        ([[np.nan]], "not reproduced"),
    ],
)
def test_verdicts_follow_from_intervals(monkeypatch, values, verdict):
    table = pd.concat(
        pd.DataFrame({"part": f"part {i}", "replicate": range(len(v)), "value": v}) for i, v in enumerate(values)
    )
    monkeypatch.setattr(claims, "values", lambda claim, profile: table)
    assert claims.judge(claim({"below": 0}), profile.profile_named("published")).verdict == verdict


def test_sides_at_their_bounds():
    assert claims.side({"within": [0, 0]}, 0.0, 0.0) == "inside"  # what C0 asks for, to the last bit
    assert claims.side({"below": 0}, -1.0, 0.0) == "open" and claims.side({"below": 0}, 0.0, 1.0) == "outside"
    assert claims.side({"above": 0}, 0.1, 1.0) == "inside" and claims.side({"above": 0}, -1.0, 0.0) == "outside"


def test_a_proportion_has_an_exact_interval(monkeypatch):
    table = pd.DataFrame({"part": "50 %", "replicate": range(10), "value": [1.0] * 10})
    monkeypatch.setattr(claims, "values", lambda claim, profile: table)
    found = claims.parts(claim({"above": 0.5}, interval="exact"), profile.profile_named("published"))
    assert found["low"].tolist() == pytest.approx([0.025**0.1]) and found["side"].tolist() == ["inside"]


def test_a_damaged_record_does_not_pass_for_not_run(tmp_path):
    gamma = next(c for c in claims.all_claims() if c.table)
    own = profile.Profile(tmp_path, may_train=False, name="own", data="mnist5k")
    assert claims.judge(gamma, own).verdict == "not run"
    (tmp_path / "tables" / gamma.table).mkdir(parents=True)
    with pytest.raises(records.RecordDamaged, match="half-written or unreadable"):
        claims.judge(gamma, own)


# --- claims.yml ------------------------------------------------------------------------------------------------------


def test_every_claim_can_be_judged_or_says_why_not():
    known = claims.all_claims()
    offered = {name for name, f in vars(claim_statistics).items() if inspect.isfunction(f) and name[0] != "_"}
    assert len({(c.id, c.data) for c in known}) == len(known)
    assert {f"C{i}" for i in range(19)} <= {c.id for c in known}
    for c in known:
        assert c.claim.endswith(".") and c.source
        if c.not_run:
            assert not c.statistic
        else:
            assert c.statistic in {*offered, "identity"} and len(c.expected) == 1
            assert set(c.sweeps) <= sweeps_paper.PAPER.keys()
            assert c.sweeps or c.table or c.statistic == "identity"
    used = {c.statistic for c in known}
    assert used >= offered, "a statistic that no claim uses"


def test_the_sweeps_hold_the_arms_that_feddane_is_judged_by():
    """A name of an arm is text in claims.yml; here FedDane's are held to the labels of the experiments."""
    for name in ("smoke", "paper"):
        runs = sweeps_paper.feddane(profile.profile_named(name))
        assert len({e.id for e in runs}) == len(runs) == 7 * (2 if name == "smoke" else 5)
        for c in (c for c in claims.all_claims() if c.id.startswith("C15")):
            beside = sweeps_paper.PAPER[c.sweeps[0]](profile.profile_named(name))
            full = [
                e for e in [*runs, *beside] if e.data == beside[0].data and e.seed == 1 and not e.straggler_fraction
            ]
            (arm,), (base,) = ([e for e in full if e.label == c.arguments[kind]] for kind in ("arm", "baseline"))
            assert replace(arm, algorithm=base.algorithm) == base  # they differ in the algorithm alone


def test_fedprox_0_is_fedavg_bit_for_bit():
    """C0, with both backends and both models."""
    (c0,) = [c for c in claims.all_claims() if c.id == "C0"]
    _, verdict, found = claims.judge(c0, profile.profile_named("published"))
    assert verdict == "reproduced" and len(found) == 4 and (found["mean"] == 0).all()


# --- theory ----------------------------------------------------------------------------------------------------------


def test_rho_term_by_term():
    """Theorem 4 with numbers that one can do on paper: K = 2, gamma = 0, B = 1, L = 1, mu = 10, so sqrt(2K) = 2."""
    by_hand = 1 / 10 - 1 / 10 - 1 / 100 - 1 / 200 - 1 / 200 * 6
    found = theory.rho(10.0, gamma=0.0, dissimilarity=1.0, smoothness=1.0, cohort_size=2)
    assert found == pytest.approx(by_hand)
    # gamma = 1, B = 2: (1 - 2)/10, then 2 * 2 * sqrt(2)/(10 sqrt(2)), 4/100, 16/200, 16/200 * 6
    found = theory.rho(10.0, gamma=1.0, dissimilarity=2.0, smoothness=1.0, cohort_size=2)
    assert found == pytest.approx(-1 / 10 - 4 / 10 - 4 / 100 - 16 / 200 - 16 / 200 * 6)
    with pytest.raises(ValueError, match="Theorem 4 needs mu > L_- >= 0, got mu=1.0 and L_-=2.0"):
        theory.rho(1.0, gamma=0.0, dissimilarity=1.0, smoothness=1.0, cohort_size=2, concavity=2.0)


def test_more_epochs_of_the_same_batches_are_measured_along_a_run():
    smoke = profile.profile_named("smoke")
    e = sweeps_paper.paper_synthetic(smoke, "synthetic_iid")
    e = replace(e, algorithm=FedProx(mu=1.0), rounds=1)
    table = theory.along([e], rounds=[1, 2], epochs=[1, 2])  # at the start of round 2, which is not trained
    assert len(table) == 2 * 2 * e.cohort_size
    assert set(table["round"]) == {1, 2} and (table["gamma"] > 0).all() and (table["dissimilarity"] >= 1).all()
    whole = table.groupby(["round", "epochs"])
    assert (whole["rho"].nunique() == 1).all()
    for (_, _), part in whole:
        row = part.iloc[0]
        assert row["rho"] == pytest.approx(
            theory.rho(
                1.0,
                gamma=part["gamma"].max(),
                dissimilarity=row["dissimilarity"],
                smoothness=row["smoothness"],
                cohort_size=e.cohort_size,
            )
        )
    with pytest.raises(ValueError, match="needs FedProx with mu > 0"):
        theory.along([e, replace(e, algorithm=FedAvg())], [1], [1])
    with pytest.raises(ValueError, match="gradients measured"):
        theory.along([replace(e, evaluation=Evaluation())], [1], [1])


def test_runs_looked_at_together_are_looked_at_as_alone():
    """gamma after all epochs is that of the model which the run itself averages."""
    smoke = profile.profile_named("smoke")
    e = replace(sweeps_paper.paper_synthetic(smoke, "synthetic_1_1"), algorithm=FedProx(mu=1.0), rounds=1)
    other = replace(e, data="synthetic_0_0")
    both = theory.along([e, other.replicate(1)], [2], [1, 2])
    alone = theory.along([e], [2], [1, 2])
    mine = both[both["data"] == e.data].reset_index(drop=True)
    pd.testing.assert_frame_equal(mine, alone, rtol=1e-4)

    federation = federation_of(e)
    (_, _), (state, _) = lockstep.follow(e, federation=federation)
    jobs = simulation.round_jobs(state, federation.planner.round_plan(2), e.algorithm, e.work.lr)
    last = alone[alone["epochs"] == e.work.epochs].set_index("client")["gamma"]
    for job, w in zip(jobs, simulation.sequential(federation.model, federation.train, jobs), strict=True):
        held = federation.train.take(federation.partition.rows[job.work.client])
        gamma = diagnostics.inexactness(federation.model, w, state.params, held, 1.0)
        assert last[job.work.client] == pytest.approx(gamma, rel=1e-3)


def test_the_table_behind_c17_and_c18_rho_is_found_by_its_name(tmp_path, capsys):
    theory.theory_command(["--profile", "smoke", "--store", str(tmp_path)])
    assert f"table 'paper-gamma': {4 * 2 * 2 * 2 * 10} rows" in capsys.readouterr().out
    smoke = replace(profile.profile_named("smoke"), folder=tmp_path)
    judged = {claim.id: parts for claim, _, parts in claims.judge_all(smoke, ["C17", "C18-rho"])}
    assert len(judged["C17"]) == len(judged["C18-rho"]) == 4


def test_a_page_shows_every_verdict_and_how_each_claim_was_read():
    judged = claims.judge_all(profile.profile_named("published"), ["C5", "C5-mu", "C14-mu", "C-femnist"])
    text = claims.tables(judged)
    for claim, verdict, parts in judged:
        [row] = [
            line
            for line in text.split(f"**{claim.id}.** {claim.claim}")[1].split("**C")[0].splitlines()
            if line.startswith(f"| {claims.titled(claim.data)} |") and line.endswith(f"| **{verdict}** |")
        ]
        assert row.count("[") == len(parts)
        assert f"- {claim.id}, from {claim.source}. {claim.reading or claim.not_run.capitalize()}" in text
    assert not any(name in text for name in claims.TITLES if "_" in name)
    assert all("_" not in claims.titled(claim.data) for claim in claims.all_claims())
