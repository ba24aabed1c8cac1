"""The scoreboard: every claim of the paper that our records can judge, with an interval and a verdict.

``claims.yml`` holds the claims, written down before the records were made;
:mod:`fedprox_book.paper.claim_statistics` turns records into one value per replicate; :func:`judge` compares the
interval of their mean with what the claim expects. As a command (``make claims``)::

    python -m fedprox_book.paper.claims            # the whole scoreboard
    python -m fedprox_book.paper.claims C3 C5      # these claims, part by part

Layer: book (pandas and a command line).
"""

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml

from fedprox_book import profile as profiles
from fedprox_book import sweeps, sweeps_paper
from fedprox_book.paper import claim_statistics
from fedprox_book.profile import Profile
from fedprox_lib import engine
from fedprox_lib.algorithms import FedAvg, FedProx
from fedprox_lib.sweeps import lockstep, records, results, statistics

VERDICTS = {
    "reproduced": "for every part the 95 % interval lies within what the claim expects",
    "partly": "for some parts it does, for others not",
    "not reproduced": "for no part it does, and for at least one the interval is on both sides",
    "contradicted": "for every part the 95 % interval lies wholly outside of what the claim expects",
    "not run": "the records that would judge it could not be made",
}
"""What the verdicts mean."""

TITLES = {
    "one_epoch_": "",
    "converged_": "",
    "mnist_per_pixel": "MNIST px",
    "mnist": "MNIST",
    "synthetic_iid": "IID",
    "synthetic_0_0": "(0,0)",
    "synthetic_0.5_0.5": "(0.5,0.5)",
    "synthetic_1_1": "(1,1)",
    "synthetic": "(1,1)",
}
"""What pages call the data sets: px is each pixel scaled by itself, brackets are the paper's synthetic sets.

Replaced in this order, the longer names first."""


@dataclass(frozen=True)
class Claim:
    """One statement of the paper, as ``claims.yml`` has it.

    Attributes:
        id: C0, C1, ...; readings of one statement share the number.
        claim: the statement in our words.
        source: where the paper makes it.
        data: which federation it is judged on; "" if it is about none or several.
        sweeps: names of the sweeps whose records judge it.
        statistic: name of a public function of ``claim_statistics``, or "identity".
        arguments: of that function.
        expected: {"below": x}, {"above": x} or {"within": [low, high]}.
        table: named table to judge by instead of sweeps.
        interval: "t" (Student's) or "exact" (of a proportion: Clopper and Pearson's).
        unit: of the statistic: "nats", "points", "accuracy" (a difference of fractions, printed in points), "factor"
            (a logarithm of a ratio, printed as the ratio), "share", or "" for a plain number.
        figure: of the book that shows it; its label.
        reading: how the paper was read.
        not_run: why it could not be judged; "" if it could.
    """

    id: str
    claim: str
    source: str
    data: str = ""
    sweeps: tuple[str, ...] = ()
    statistic: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    expected: dict[str, Any] = field(default_factory=dict)
    table: str = ""
    interval: str = "t"
    unit: str = ""
    figure: str = ""
    reading: str = ""
    not_run: str = ""


@lru_cache(maxsize=1)
def all_claims() -> tuple[Claim, ...]:
    """The claims in order, one for every data set that a statement names."""
    known = {item.name for item in fields(Claim)}
    claims: list[Claim] = []
    for row in yaml.safe_load((Path(__file__).parent / "claims.yml").read_text(encoding="utf-8")):
        names, besides = (tuple(row.pop(key, ())) for key in ("sweeps", "besides"))
        together = row.pop("together", False) or not names
        entries = {{"with": "arguments", "not run": "not_run"}.get(key, key): value for key, value in row.items()}
        if unread := entries.keys() - known:
            raise ValueError(f"claims.yml: {row['id']} has entries that nothing reads: {', '.join(sorted(unread))}.")
        if together:
            claims.append(Claim(**entries, sweeps=names + besides))
        else:
            of_sets = [(name.removeprefix("paper_"), (name, *besides)) for name in names]
            claims += [Claim(**entries, data=data, sweeps=its) for data, its in of_sets]
    return tuple(claims)


def values(claim: Claim, profile: Profile) -> pd.DataFrame:
    """One value per replicate and part: columns part, replicate, value.

    Raises:
        RecordMissing: if the profile may not train and lacks records.
    """
    if claim.statistic == "identity":
        return _identity()
    found = _table(claim.table, profile) if claim.table else _runs(claim.sweeps, bool(claim.data), profile)
    return getattr(claim_statistics, claim.statistic)(found, **claim.arguments)


def _table(name: str, profile: Profile) -> pd.DataFrame:
    folder = profile.table_folder(name)
    if not folder.exists():
        raise results.RecordMissing(f"table {name!r} is not in {profile.folder}.")
    return records.read(folder).table


@lru_cache(maxsize=4)  # claims that stand side by side read the same records
def _runs(names: tuple[str, ...], one_set: bool, profile: Profile) -> pd.DataFrame:
    wanted = [e for name in names for e in sweeps_paper.PAPER[name](profile)]
    if one_set:  # what stands beside the first sweep may hold other data sets too
        first = wanted[0]
        wanted = [e for e in wanted if (e.data, e.normalisation) == (first.data, first.normalisation)]
    return results.run(wanted, profile)


def parts(claim: Claim, profile: Profile) -> pd.DataFrame:
    """One row per part: replicates, mean, low, high (95 %), and whether it is "inside", "outside" or "open"."""
    rows = []
    for part, of_part in values(claim, profile).groupby("part", sort=False):
        found = of_part["value"].dropna().to_numpy()
        mean, low, high = _interval(claim, found)
        about = {"part": part, "replicates": len(found), "mean": mean, "low": low, "high": high}
        rows.append(about | {"side": side(claim.expected, low, high)})
    return pd.DataFrame(rows)


def side(expected: dict[str, Any], low: float, high: float) -> str:
    """Where an interval lies: inside what is expected, outside, or on both sides ("open", also if there is none).

    Example:
        >>> side({"below": 0}, -2, -1), side({"below": 0}, -2, 1), side({"within": [0, 1]}, 2, 3)
        ('inside', 'open', 'outside')
    """
    ((kind, bound),) = expected.items()
    if not np.isfinite([low, high]).all():
        return "open"
    if kind == "within":
        left, right = bound
        return "inside" if left <= low and high <= right else "outside" if high < left or right < low else "open"
    if kind == "above":
        low, high, bound = -high, -low, -bound
    return "inside" if high < bound else "outside" if low >= bound else "open"


class Judgement(NamedTuple):
    """A claim, one of ``VERDICTS``, and what the verdict follows from (see :func:`parts`; empty if not run)."""

    claim: Claim
    verdict: str
    parts: pd.DataFrame


def judge(claim: Claim, profile: Profile) -> Judgement:
    """The verdict on a claim, from the profile's records. ``VERDICTS`` says what the verdicts mean."""
    if claim.not_run:
        return Judgement(claim, "not run", pd.DataFrame())
    try:
        found = parts(claim, profile)
    except results.RecordMissing:  # a damaged record, or data that lack, must not pass for "not run"
        return Judgement(claim, "not run", pd.DataFrame())
    sides = set(found["side"])
    if len(sides) == 1 and "open" not in sides:
        return Judgement(claim, "reproduced" if sides == {"inside"} else "contradicted", found)
    return Judgement(claim, "partly" if "inside" in sides else "not reproduced", found)


def judge_all(profile: Profile, ids: Sequence[str] = ()) -> list[Judgement]:
    """Every claim in order, or those with these ids."""
    return [judge(claim, profile) for claim in all_claims() if not ids or claim.id in ids]


def tables(judgements: Sequence[Judgement]) -> str:
    """Markdown for a page: one table per claim; folded below, what verdicts mean and how each claim was read."""
    text = []
    folded = [f"- *{verdict}*: {meaning}." for verdict, meaning in VERDICTS.items()]
    folded.append("- MNIST px has each pixel scaled by itself; brackets and IID are the paper's synthetic sets.")
    folded.append("- Final is the mean of the last 20 rounds, where a reading does not say otherwise.")
    for name, rows_of in itertools.groupby(judgements, key=lambda judgement: judgement.claim.id):
        group = list(rows_of)
        claim = group[0].claim
        rows = [
            f"| {titled(c.data)} | {titled(effects(c, found)).replace('; ', '<br>')} | {_counts(found)} | **{v}** |"
            for c, v, found in group
        ]
        head = "| data | effect [95 %] | replicates | verdict |\n|:---|:---|:---|:---|"
        text += [f"**{name}.** {claim.claim}", "\n".join([head, *rows])]
        folded.append(f"- {name}, from {claim.source}. {claim.reading or claim.not_run.capitalize()}")
    text.append(f"Recompute a row: `make claims ID={judgements[0].claim.id}`.")
    return "\n\n".join(
        [*text, "```{dropdown} What the verdicts mean, and how each claim was read", "\n".join(folded) + "\n```"]
    )


def titled(text: str) -> str:
    """A text with the pages' names of data sets in it, whatever sweep they stand in."""
    for data, title in TITLES.items():
        text = text.replace(data, title)
    return text


def _interval(claim: Claim, found: np.ndarray) -> tuple[float, float, float]:
    if not len(found):
        return float("nan"), float("nan"), float("nan")
    if claim.interval == "exact":
        return statistics.proportion(int(found.sum()), len(found))
    return statistics.interval(found)


def effects(claim: Claim, found: pd.DataFrame) -> str:
    """The parts in words, on one line."""
    return "; ".join(
        f"{part['part']}: " * bool(part["part"]) + effect(claim, part) for part in found.to_dict("records")
    )


def effect(claim: Claim, part: dict[str, Any]) -> str:
    """Mean and interval of a part (a row of :func:`parts`) in the claim's unit."""
    if not part["replicates"]:
        return "nothing to judge"
    sign, unit = ("times ", "") if claim.unit == "factor" else ("", claim.unit.replace("accuracy", "points"))

    def number(value: float) -> str:
        if claim.unit == "factor":
            return f"{np.exp(value):.2f}" if abs(value) < 4 else f"{np.exp(value):.1e}"
        if claim.unit in ("points", "accuracy"):
            return f"{value * (100 if claim.unit == 'accuracy' else 1):+.1f}"
        return f"{value:+.3g}"

    return f"{sign}{number(part['mean'])} [{number(part['low'])}, {number(part['high'])}] {unit}".rstrip()


def _counts(found: pd.DataFrame) -> str:
    counts = sorted(set(found["replicates"])) if len(found) else []
    return " to ".join(map(str, counts[:1] + counts[1:][-1:]))


@lru_cache(maxsize=1)
def _identity() -> pd.DataFrame:
    """C0, trained here and now: three rounds of both algorithms, both backends, both models; largest difference."""
    b = replace(sweeps.base(profiles.profile_named("smoke")), rounds=3)
    rows = []
    for model, name, r in itertools.product(("logistic", "cnn"), engine.BACKENDS, (0, 1)):
        ends = []
        for algorithm in (FedAvg(), FedProx(mu=0.0)):
            e = replace(b, model=model, algorithm=algorithm).replicate(r)
            *_, (state, _) = lockstep.follow(e, backend=engine.BACKENDS[name])
            ends.append(state.params)
        gap = max(float((ends[0][key] - ends[1][key]).abs().max()) for key in ends[0])
        rows.append({"part": f"{model}, {name}", "replicate": r, "value": gap})
    return pd.DataFrame(rows)


def claims_command(arguments: Sequence[str] | None = None) -> None:
    """Print the scoreboard, or claims part by part."""
    parser = argparse.ArgumentParser(prog="python -m fedprox_book.paper.claims", description=claims_command.__doc__)
    parser.add_argument("ids", nargs="*", metavar="ID", help="of claims, for example C3; default: all")
    parser.add_argument("--profile", default="published", choices=profiles.PROFILES)
    given = parser.parse_args(arguments)
    known = dict.fromkeys(claim.id for claim in all_claims())
    if unknown := [name for name in given.ids if name not in known]:
        parser.error(f"there is no claim {unknown[0]!r}; the claims are {', '.join(known)}.")
    for claim, verdict, found in judge_all(profiles.profile_named(given.profile), given.ids):
        print(f"{claim.id:9} {claim.data:22} {verdict:15} {claim.claim}")
        if given.ids:
            print(f"  source: {claim.source}; expected: {claim.expected}. {claim.reading or claim.not_run}")
        if len(found):
            print("  " + effects(claim, found) + f" ({_counts(found)} replicates)")


if __name__ == "__main__":
    claims_command()
