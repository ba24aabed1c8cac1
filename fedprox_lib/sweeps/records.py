"""Records on disk: a folder with a table (CSV) and what it is (JSON), written whole or not at all, checked when read.

``<store>/runs/<id>/``     one run: a row per measured round; its settings, its outcome, its provenance
``<store>/tables/<name>/`` a named table of a chapter: a heatmap, a path, per-digit accuracies

A record is written to ``<store>/.partial`` and appears under its name by one rename, so an interrupted write leaves no
record. Checksums inside it make an edited or incomplete one an error that names it: it is neither used nor replaced.
Layer: sweeps (files).
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

NUMERICS_VERSION = 1
"""Raised by every change of the code that changes results; records of another version are refused."""


class Record(NamedTuple):
    """A table and what it is.

    Attributes:
        settings: what its identity was made from.
        table: the measurements.
        outcome: {"status": "complete"} or {"status": "diverged", "round": t}.
        provenance: code, versions, machine, time; not part of the identity.
    """

    settings: dict[str, Any]
    table: pd.DataFrame
    outcome: dict[str, Any]
    provenance: dict[str, Any]


class RecordDamaged(ValueError):
    """A record is incomplete, edited, or not what its name says; the message names it."""


class StoreUnwritable(OSError):
    """The results folder cannot be written; nothing was recorded."""


def write(folder: Path, record: Record) -> None:
    """Write a record under a name that is free. If somebody else finished it first, theirs stays."""
    partial = folder.parent.parent / ".partial" / f"{folder.name}.{os.getpid()}"
    table = record.table.to_csv(index=False)
    content = {
        "settings": record.settings,
        "outcome": record.outcome,
        "provenance": {**record.provenance, "numerics_version": NUMERICS_VERSION},
        "table_sha256": hashlib.sha256(table.encode()).hexdigest(),
    }
    content["record_sha256"] = _digest(content)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        write_file(partial / "table.csv", table.encode())
        write_file(partial / "record.json", (json.dumps(content, indent=1) + "\n").encode())
        if not folder.exists():
            partial.rename(folder)
    except OSError as error:
        if not folder.exists():
            raise StoreUnwritable(
                f"record {folder} could not be written ({error}); nothing was recorded under that name. "
                "Free some space or choose a writable folder, then start again."
            ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read(folder: Path, settings: dict[str, Any] | None = None) -> Record:
    """Read a record and check that it is whole, unedited and, if given, made with these settings.

    Raises:
        RecordDamaged: if it is not, or if it was made by another numerics version.
    """

    def refuse(why: str) -> RecordDamaged:
        return RecordDamaged(
            f"record {folder} is refused: {why}. Restore it from version control, or delete the folder and make it "
            "again with 'make results'."
        )

    try:
        table = (folder / "table.csv").read_bytes()
        content = json.loads((folder / "record.json").read_text(encoding="utf-8"))
        stated = content.pop("record_sha256")
        if stated != _digest(content):
            raise refuse("record.json was edited")
        if content["table_sha256"] != hashlib.sha256(table).hexdigest():
            raise refuse("table.csv was edited")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        if isinstance(error, RecordDamaged):
            raise
        raise refuse(f"it is half-written or unreadable ({error!r})") from error
    if settings is not None and content["settings"] != json.loads(json.dumps(settings)):
        raise refuse("it was made with other settings than its name promises")
    if (made := content["provenance"]["numerics_version"]) != NUMERICS_VERSION:
        raise refuse(f"it was made by numerics version {made}, this is {NUMERICS_VERSION}")
    frame = pd.read_csv(folder / "table.csv", engine="python")  # this engine reads back every digit that was written
    return Record(content["settings"], frame, content["outcome"], content["provenance"])


def write_file(path: Path, content: bytes) -> None:
    """Write bytes and wait until they are on disk."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
