"""Writes constraints.txt: the installed version of everything the project needs, at any depth.

Run it (`make pins`) in an environment in which the tests pass. Packages that come only with a
CUDA build of torch are left out, so that the file forces no graphics card on anybody.
"""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HEADER = """\
# The versions the book was tested with: for `pip install -c constraints.txt`.
# Written by `make pins`; the ranges we promise are in pyproject.toml.
"""
PROJECT = "fedprox-lib"
EXTRAS = ("notebooks", "build", "flower", "dev")
CUDA_ONLY = re.compile(r"nvidia-|cuda-|triton$")


def needed(name: str, extras: set[str], found: dict[str, str]) -> None:
    """Add to `found` the version of `name` and of what it requires with these extras."""
    for text in metadata.requires(name) or []:
        requirement = Requirement(text)
        environments = [{"extra": extra} for extra in (*extras, "")]
        if requirement.marker and not any(map(requirement.marker.evaluate, environments)):
            continue
        child = canonicalize_name(requirement.name)
        if CUDA_ONLY.match(child) or (child in found and not requirement.extras):
            continue
        if child != PROJECT:  # our extras ask for one another
            # Without torch's "+cpu", which only some sources of wheels have.
            found[child] = metadata.version(child).split("+")[0]
        needed(child, requirement.extras, found)


def main() -> None:
    found: dict[str, str] = {}
    needed(PROJECT, set(EXTRAS), found)
    lines = [f"{name}=={version}\n" for name, version in sorted(found.items())]
    Path("constraints.txt").write_text(HEADER + "".join(lines), encoding="utf-8")
    print(f"constraints.txt: {len(lines)} packages")


if __name__ == "__main__":
    main()
