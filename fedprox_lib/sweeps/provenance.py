"""Who, where, when: everything about a record that does not change its numbers. Layer: sweeps (descriptions)."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fedprox_lib.sweeps import registry


def provenance(**facts: Any) -> dict[str, Any]:
    """Time, versions, commit and machine of a record that is made now, and the facts given."""
    return {
        "made_utc": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "fedprox_lib": _version("fedprox-lib"),
        "commit": commit(),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "numpy")},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        **facts,
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


@lru_cache(maxsize=1)
def commit() -> str:
    """The commit of the checkout that this code lies in.

    With "+changes" if files of the library differ from it, or of a package beside it that has registered something.
    """
    here = Path(__file__).resolve().parents[2]
    packages = [name for name in {source.partition(".")[0] for source in registry.SOURCES} if (here / name).is_dir()]

    def ask(*words: str) -> str:
        return subprocess.run(["git", "-C", here, *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = ask("status", "--porcelain", "--", *packages)
        return ask("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
