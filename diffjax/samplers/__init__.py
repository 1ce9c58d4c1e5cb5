"""Walks from noise to data, each one `lax.scan`.

`bridge` serves any process or joint; `gaussian` holds the solvers for Gaussian schedules.
"""

from diffjax.samplers import bridge, gaussian

__all__ = ["bridge", "gaussian"]
