"""The same rounds on Flower: apps for a simulation or a deployment, with the numbers of one process.

:mod:`fedprox_lib.flower.apps` has the pair of apps, :mod:`fedprox_lib.flower.strategy` what the server adds to a round.
Layer: flower (network); needs the extra ``flower``.
"""

from fedprox_lib.extras import brought_by

with brought_by("flower"):
    from fedprox_lib.flower.apps import make_apps, simulate_federation
    from fedprox_lib.flower.strategy import FederationFailed, PlannedStrategy

__all__ = ["FederationFailed", "PlannedStrategy", "make_apps", "simulate_federation"]
