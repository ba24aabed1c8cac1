"""What the scoreboard prints follows from the records, and the records are what the claims say they are."""

import hashlib

import pytest

from fedprox_lib import claims, data, profile, records, results, sweeps_paper
from tools import scoreboard

PAPER, READ_ONLY = profile.get("paper"), profile.get("published")


def test_every_printed_verdict_follows_from_the_records():
    """ "so no printed verdict outlives the records it follows from". If this fails: python -m tools.scoreboard."""
    assert scoreboard.PAGE.read_text(encoding="utf-8") == scoreboard.text(claims.judge_all(READ_ONLY))


def test_the_front_page_shows_the_summary():
    intro = (scoreboard.PAGE.parent / "intro.md").read_text(encoding="utf-8")
    assert "```{include} scoreboard.md\n:start-after:" in intro.replace("\r", "")
    summary = scoreboard.PAGE.read_text(encoding="utf-8").split("## Effects")[0]
    for claim in claims.load():
        assert f"`make claims ID={claim.id}`" in summary and f"<{claim.figure}>`" in summary


@pytest.mark.parametrize("name", sorted(sweeps_paper.PAPER))
def test_records_are_of_the_data_and_the_code_that_the_claims_name(name):
    """Settings and numerics version are compared when a record is read; the data's checksum is compared here."""
    recorded = results.available(sweeps_paper.PAPER[name](PAPER), READ_ONLY)
    if not recorded:
        pytest.skip("not run: the scoreboard says so")
    seen: dict[tuple, set[str]] = {}
    for e in recorded:
        provenance = results.load(e, READ_ONLY).provenance
        assert provenance["numerics_version"] == records.NUMERICS_VERSION
        assert "changes" not in provenance["commit"], "trained by code that was not committed"
        seen.setdefault((e.data, e.data_seed * (e.data in data.SYNTHETIC)), set()).add(provenance["data_sha256"])
    for (of, _), checksums in seen.items():
        assert len(checksums) == 1
        if of == "mnist":
            assert checksums == {hashlib.sha256("".join(data._FULL["mnist"].sha256.values()).encode()).hexdigest()}
