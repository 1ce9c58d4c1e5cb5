"""Walks from noise to data, each one `lax.scan`.

`bridge` serves any process or joint; `gaussian` holds the solvers for Gaussian schedules; `langevin` needs only a score,
`correctors` takes its steps between those of another sampler; `ode` walks the probability flow, with likelihoods, by
the steps of `runge_kutta`.
"""

from diffjax.samplers import bridge, correctors, gaussian, langevin, ode, runge_kutta

__all__ = ["bridge", "correctors", "gaussian", "langevin", "ode", "runge_kutta"]
