"""Where records are: a folder, and whether what it lacks may be trained. Layer: sweeps (files)."""

import os
from dataclasses import dataclass
from pathlib import Path

from fedprox_lib.sweeps import records


@dataclass(frozen=True)
class Store:
    """A folder of records.

    Attributes:
        folder: runs lie in ``folder/runs``, tables in ``folder/tables``.
        may_train: whether what is missing is trained, or refused.
        advice: what to do where it is refused, a sentence.
    """

    folder: Path
    may_train: bool = True
    advice: str = "Use a store that may train."

    def run_folder(self, name: str) -> Path:
        """Of the run with that id."""
        return self.folder / "runs" / name

    def table_folder(self, name: str) -> Path:
        """Of the table of that name."""
        return self.folder / "tables" / name

    def require_writable(self) -> None:
        """Fail before training, not after it.

        Raises:
            StoreUnwritable: if a small file cannot be written there.
        """
        probe = self.folder / ".partial" / f"probe.{os.getpid()}"
        try:
            probe.parent.mkdir(parents=True, exist_ok=True)
            records.write_file(probe, b"x" * 4096)
            probe.unlink()
        except OSError as error:
            if probe.parent.is_dir():
                probe.unlink(missing_ok=True)
            raise records.StoreUnwritable(
                f"results folder {self.folder} cannot be written ({error}); nothing was trained. Free some space or "
                "choose a writable folder."
            ) from error


def store_at(where: Store | Path | str) -> Store:
    """A store, or the folder of one, which may train."""
    return where if isinstance(where, Store) else Store(Path(where))
