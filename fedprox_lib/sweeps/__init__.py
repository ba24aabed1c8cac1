"""Many runs and their records: experiments by name, trained together where that pays, kept, resumed and compared.

An :class:`Experiment` describes a run, :func:`grid` makes a sweep of it, :func:`run` gives the table of measurements,
training what the store lacks. Layer: sweeps; needs the extra ``chapters``.
"""

from importlib import import_module

from fedprox_lib.extras import brought_by

with brought_by("chapters"):  # what is missing is said here, not deep inside
    for package in ("pandas", "safetensors", "scipy", "tqdm"):
        import_module(package)

from fedprox_lib.sweeps.experiment import Evaluation, Experiment, from_settings, grid
from fedprox_lib.sweeps.lockstep import follow, together
from fedprox_lib.sweeps.results import available, run, table
from fedprox_lib.sweeps.store import Store

__all__ = [
    "Evaluation", "Experiment", "Store", "available", "follow", "from_settings", "grid", "run", "table", "together",
]  # on one line  # fmt: skip
