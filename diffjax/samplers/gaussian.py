"""Solvers for Gaussian schedules, on top of an estimate of x_0.

The model is a function `predict_x0(xt, t)`; `predictions.to_x0` makes one from any network. From x_t the estimate of the noise is
`eps_hat = (x_t - alpha_t x0_hat) / sigma_t`, and the simplest way to an earlier s holds both estimates fixed,

    x_s = alpha_s x0_hat + (noise kept) eps_hat + (noise new) z,     kept^2 + new^2 = sigma_s^2.

`sample` is the loop. The solvers, by the number of network calls that they take a step and what they remember:

    diffjax.samplers.onestep     ddim(eta) ancestral() euler()                             one call
                                 heun(churn) dpmpp_2s(eta)                                 two calls
    diffjax.samplers.multistep   dpmpp(order, sde) deis(order) adams(order) plms(order)    one call, past estimates
                                 unipc(order)                                              and a correction by the next one

`diffjax.samplers.frames` holds the theory that they share. All but the stochastic ones also run from data to noise: give times that
increase, and `sample` encodes.

Which one? On a target with known endpoints (`python -m experiments.bench solvers`) the least error with an exact network had, by
network calls, adams(3) at 5, deis(3) at 10, unipc(3, frame=frames.noise) and deis(4) at 20, unipc(4, frame=frames.noise) from 40. Solvers that
extrapolate the noise lose when it is estimated badly near the data; dpmpp(2) then is the safe choice, and dpmpp(3, sde=True) or
heun(churn) where fresh noise should make up for a network's own errors.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from diffjax import numerics
from diffjax.samplers import frames
from diffjax.samplers.multistep import adams, deis, dpmpp, plms, unipc
from diffjax.samplers.onestep import PredictX0, Solver, ancestral, ddim, dpmpp_2s, euler, heun
from diffjax.schedules import Schedule

__all__ = [
    "PredictX0",
    "Solver",
    "adams",
    "ancestral",
    "ddim",
    "deis",
    "dpmpp",
    "dpmpp_2s",
    "euler",
    "frames",
    "heun",
    "plms",
    "sample",
    "unipc",
]


def sample(
    key: Array,
    predict_x0: PredictX0,
    xt: Array,
    times: Array,
    *,
    schedule: Schedule,
    solver: Solver,
    track: Callable[[Array, Array, Array], Any] | None = None,
) -> Any:
    """The end x_s of a solver's walk from `xt` at `times[0]` to `times[-1]`.

    Wrap it in `jax.jit` with model, schedule and solver bound: one compiled program then serves any times of one length.
    Half-precision data are float32 between the calls of the model, which sees them in their own type.

    Args:
      key: one key, or an array of keys `[batch]`; step i draws from `fold_in(key, i)`. Deterministic solvers draw nothing.
      predict_x0: `(xt, t) -> x0_hat`; t is `times[i]` as it is (solvers with two calls a step also ask between the times).
      xt: `[*batch, *event]` at `times[0]`, such as `gaussian.process(schedule).prior(key, like)`.
      times: `[steps + 1]` or `[steps + 1, *batch]`, decreasing; increasing to encode data as noise (DDIM inversion). As many steps
        are taken as asked for.
      schedule: `t -> (alpha, sigma)`.
      solver: `ddim(eta)`, `dpmpp(2)`, `unipc(3)`, ...
      track: `(x0_hat, xt, t) -> pytree`, called at each step; what it returns is stacked over steps.

    Returns:
      `[*batch, *event]`; with `track`, `(sample, tracked)`.

    Raises:
      ValueError: `times` has no two rows, or its batch is not that of xt.

    Example:
      Data at one point, with the exact estimate:

      >>> from diffjax import schedules
      >>> walk = sample(
      ...     jax.random.key(0), lambda x, t: jnp.full_like(x, 3.0), jnp.ones((2, 1)), schedules.times(5),
      ...     schedule=schedules.cosine(), solver=ddim(),
      ... )
      >>> print(walk[0])
      [3.]
    """
    if jnp.ndim(times) < 1 or times.shape[0] < 2:
        raise ValueError(f"expected times of shape [steps + 1, ...] with at least one step, got {jnp.shape(times)}")
    numerics.check_batch(times[0], xt, name="times[0]")
    key = numerics.as_keys(key)
    dtype = numerics.compute_dtype(xt)
    rows = solver.plan(times.astype(numerics.compute_dtype(xt, times)), schedule)
    rows = jax.tree.map(lambda row: row.astype(dtype), rows)

    def predict(x, t):
        return predict_x0(x.astype(xt.dtype), t).astype(dtype)

    def step(carry, now):
        x, history = carry
        i, t, s, row = now
        moved, x0_hat, history = solver.step(numerics.fold_in(key, i), predict, x, history, s, t, row)
        kept = None if track is None else track(x0_hat.astype(xt.dtype), x.astype(xt.dtype), t)
        return (moved, history), kept

    start = xt.astype(dtype)
    steps = (jnp.arange(times.shape[0] - 1), times[:-1], times[1:], rows)
    (end, _), tracked = jax.lax.scan(step, (start, solver.init(start)), steps)
    end = end.astype(xt.dtype)
    return end if track is None else (end, tracked)
