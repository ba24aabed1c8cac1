"""Writes book/scoreboard.md: every claim of the paper with its interval and verdict, as the records give them.

    python -m tools.scoreboard

The part up to the second heading is what the front page shows. tests/book/test_claims.py makes the text again and
compares, so no printed verdict outlives the records it follows from.
"""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from pathlib import Path

from fedprox_book import profile
from fedprox_book.paper import claims
from fedprox_book.paper.claims import Judgement

PAGE = Path(__file__).resolve().parent.parent / "book" / "scoreboard.md"

SIGNS = {"reproduced": "●", "partly": "◐", "not reproduced": "○", "contradicted": "✕", "not run": "–"}
"""Before a verdict, so that a column of them can be scanned."""


def text(judgements: list[Judgement]) -> str:
    """The page."""
    counts = Counter(judgement.verdict for judgement in judgements)
    groups = [(key, list(rows)) for key, rows in groupby(judgements, key=lambda judgement: judgement.claim.id)]
    summary = [
        "# The scoreboard",
        f"Each row is a statement of {{cite:t}}`li2020fedprox`, put so that a record can contradict it. There are "
        f"{len(groups)} of them, judged on the data sets they name: {len(judgements)} verdicts, of which "
        + ", ".join(f"{counts[verdict]} *{verdict}*" for verdict in claims.VERDICTS)
        + ". An identifier leads to the figure, the command prints the numbers. MNIST px is MNIST with each pixel "
        "scaled by itself, as the authors' script does; brackets are the paper's synthetic sets.",
        "| the paper's claim | verdict |\n|---|---|\n" + "\n".join(_row(name, rows) for name, rows in groups),
        "\n".join(f"{SIGNS[verdict]} *{verdict}*: {meaning}." for verdict, meaning in claims.VERDICTS.items()),
        "## Effects and intervals",
        "One value per replicate, paired where two arms are compared; the interval is Student's 95 % interval of their "
        "mean, or Clopper and Pearson's where the value is yes or no. *times* is the geometric mean of a ratio. What "
        "was expected was written down in `fedprox_book/paper/claims.yml` before the records were made.",
    ]
    return "\n\n".join([*summary, *(_details(rows) for _, rows in groups)]) + "\n"


def _row(name: str, rows: list[Judgement]) -> str:
    of = {
        verdict: [claims.titled(row.claim.data) for row in rows if row.verdict == verdict]
        for verdict in claims.VERDICTS
    }
    verdicts = "<br>".join(
        f"{SIGNS[verdict]} *{verdict}*" + (f": {', '.join(sets)}" if any(sets) else "")
        for verdict, sets in of.items()
        if sets
    )
    claim = rows[0].claim
    return f"| {_link(claim)}: {claim.claim}<br>`make claims ID={name}` | {verdicts} |"


def _details(rows: list[Judgement]) -> str:
    claim = rows[0].claim
    head = [f"### {claim.id}", f"{claim.claim} (Paper: {claim.source}. Here: {_link(claim)}.)"]
    if claim.reading or claim.not_run:
        head.append(claim.not_run.capitalize() if claim.not_run else claim.reading)
    if not claim.not_run:
        (bound,) = claim.expected.items()
        head.append(f"Expected: {bound[0]} {' to '.join(map(str, bound[1])) if bound[0] == 'within' else bound[1]}.")
        table = ["| data | part | effect and interval | replicates | verdict |", "|---|---|---|---|---|"]
        for row in rows:
            table += [
                f"| {claims.titled(row.claim.data)} | {part['part']} | {claims.effect(row.claim, part)} | "
                f"{part['replicates']} | {SIGNS[row.verdict]} {row.verdict} |"
                for part in row.parts.to_dict("records")
            ] or [f"| {claims.titled(row.claim.data)} | | | | {SIGNS['not run']} not run |"]
        head.append("\n".join(table))
    return "\n\n".join(head)


def _link(claim: claims.Claim) -> str:
    return f"{{ref}}`{claim.id} <{claim.figure}>`"


def main() -> None:
    PAGE.write_text(text(claims.judge_all(profile.profile_named("published"))), encoding="utf-8")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
