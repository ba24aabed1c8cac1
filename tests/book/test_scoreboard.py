"""What the scoreboard prints follows from the records, and the records are what the claims say they are."""

import hashlib

import pytest

from fedprox_book import profile, sweeps_paper
from fedprox_book.paper import claims, synthetic
from fedprox_lib.sweeps import datasets, records, results
from tools import scoreboard

SAID = ("C1", "C3", "C6", "C7", "C8", "C18")
PAPER, READ_ONLY = profile.profile_named("paper"), profile.profile_named("published")


def test_every_printed_verdict_follows_from_the_records():
    """ "so no printed verdict outlives the records it follows from". If this fails: python -m tools.scoreboard."""
    assert scoreboard.PAGE.read_text(encoding="utf-8") == scoreboard.text(claims.judge_all(READ_ONLY))


def test_the_front_page_shows_the_summary():
    intro = (scoreboard.PAGE.parent / "intro.md").read_text(encoding="utf-8")
    assert "```{include} scoreboard.md\n:start-after:" in intro.replace("\r", "")
    summary = scoreboard.PAGE.read_text(encoding="utf-8").split("## Effects")[0]
    for claim in claims.all_claims():
        assert f"`make claims ID={claim.id}`" in summary and f"<{claim.figure}>`" in summary


def test_what_the_front_page_says_in_short():
    """ "Training is steadier (C3) and the model more accurate, whatever the share of stragglers, and without any (C6).
    On IID data it makes training slower (C8). Keeping unfinished work lowers MNIST's loss when nine of ten clients
    straggle, and not noticeably when half of them do (C1) ... only partly so (C7), and off IID data the theorem's
    premise does not hold (C18)".
    """
    verdicts = {name: {j.claim.data: j.verdict for j in claims.judge_all(READ_ONLY, [name])} for name in SAID}
    assert set(verdicts["C3"].values()) == set(verdicts["C6"].values()) == {"reproduced"}
    assert verdicts["C8"] == {"synthetic_iid": "reproduced"} and verdicts["C7"] == {"": "partly"}
    assert {data for data, verdict in verdicts["C18"].items() if verdict == "contradicted"} == {
        "synthetic_0_0",
        "synthetic_0.5_0.5",
        "synthetic_1_1",
    }
    for judgement in claims.judge_all(READ_ONLY, ["C1"]):
        side = judgement.parts.set_index("part")["side"]
        assert side["50 %"] == "open" and (side["90 %"] == "inside") == ("mnist" in judgement.claim.data)


@pytest.mark.parametrize("name", sorted(sweeps_paper.PAPER))
def test_records_are_of_the_data_and_the_code_that_the_claims_name(name):
    """Settings and numerics version are compared when a record is read; the data's checksum is compared here."""
    recorded = results.available(sweeps_paper.PAPER[name](PAPER), READ_ONLY)
    if not recorded:
        pytest.skip("not run: the scoreboard says so")
    seen: dict[tuple, set[str]] = {}
    for e in recorded:
        provenance = results.load_record(e, READ_ONLY).provenance
        assert provenance["numerics_version"] == records.NUMERICS_VERSION
        assert "changes" not in provenance["commit"], "trained by code that was not committed"
        seen.setdefault((e.data, e.data_seed * (e.data in synthetic.SPREADS)), set()).add(provenance["data_sha256"])
    for (of, _), checksums in seen.items():
        assert len(checksums) == 1
        if of == "mnist":
            assert checksums == {hashlib.sha256("".join(datasets._FULL["mnist"].sha256.values()).encode()).hexdigest()}
