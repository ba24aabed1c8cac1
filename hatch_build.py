"""Puts the committed records into the wheel: results/ becomes fedprox_book/_results.

A reader who installed the wheel with pip has no repository beside it, and the notebooks draw from
the records. In an editable install fedprox_book finds them at ../results, so nothing is copied
there.
"""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class RecordsInWheel(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        results = Path(self.root, "results")
        for path in sorted(results.rglob("*")):
            inside = path.relative_to(results)
            # Checkpoints of unfinished runs live in hidden folders.
            hidden = any(part.startswith(".") for part in inside.parts)
            if path.suffix in {".csv", ".json"} and not hidden:
                build_data["force_include"][str(path)] = f"fedprox_book/_results/{inside.as_posix()}"
