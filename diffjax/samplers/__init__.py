"""Walks from noise to data, each one `lax.scan`.

`bridge` serves any process or joint; `gaussian` holds the solvers for Gaussian schedules; `langevin` needs only a score.
"""

from diffjax.samplers import bridge, gaussian, langevin

__all__ = ["bridge", "gaussian", "langevin"]
