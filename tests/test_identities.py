"""Every committed record is what it was: its id, its settings and its label, and the identity of the named tables.

``identities.csv`` beside this file was written once, before the library was taken apart into rooms. A new field of an
experiment enters identity only where it differs from its default, so no line of that file ever changes; new records add
lines: ``python -m tests.test_identities`` appends those that are missing.
"""

import csv
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import fedprox_book  # noqa: F401 (registers what the book's records name)
from fedprox_book.profile import committed_store
from fedprox_lib.sweeps import from_settings

PINS = Path(__file__).with_name("identities.csv")
STORE = committed_store()


def settings_of(folder: Path) -> dict:
    return json.loads((folder / "record.json").read_text(encoding="utf-8"))["settings"]


def digest(settings: dict) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def pinned() -> dict[str, dict[str, str]]:
    with open(PINS, newline="", encoding="utf-8") as file:
        return {row["record"]: row for row in csv.DictReader(file)}


def recorded() -> Iterator[tuple[str, Path]]:
    """Names as they stand in the file, and folders."""
    for folder in sorted((STORE / "runs").iterdir()):
        yield folder.name, folder
    for folder in sorted((STORE / "tables").iterdir()):
        yield f"tables/{folder.name}", folder


def line_of(name: str, folder: Path) -> dict[str, str]:
    settings = settings_of(folder)
    label = "" if name.startswith("tables/") else from_settings(settings).label
    return {"record": name, "label": label, "settings_sha256": digest(settings)}


def test_every_record_is_pinned_and_every_pin_has_its_record():
    assert sum(not name.startswith("tables/") for name in pinned()) >= 1_729
    assert {name for name, _ in recorded()} == set(pinned())


def test_ids_settings_and_labels_are_those_that_were_pinned():
    """An experiment that is made from a record's settings has the record's name, settings and label."""
    pins, wrong = pinned(), []
    for name, folder in recorded():
        settings = settings_of(folder)
        if line_of(name, folder) != pins[name]:
            wrong.append(name)
        if not name.startswith("tables/"):
            made = from_settings(settings)
            if made.id != name or json.loads(json.dumps(made.settings())) != settings:
                wrong.append(name)
    assert not wrong


@pytest.mark.parametrize("changed", [{"lr": 0.5}, {"seed": 99}, {"mu": 7.0}], ids=str)
def test_another_setting_is_another_identity(changed):
    """That the comparison above can fail."""
    name = next(name for name, row in pinned().items() if row["label"] == "FedProx, mu = 1")
    settings = settings_of(STORE / "runs" / name) | changed
    assert from_settings(settings).id != name and digest(settings) != pinned()[name]["settings_sha256"]


if __name__ == "__main__":
    known = pinned()
    with open(PINS, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["record", "label", "settings_sha256"], lineterminator="\n")
        writer.writerows(line_of(name, folder) for name, folder in recorded() if name not in known)
