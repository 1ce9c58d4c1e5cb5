"""Solvers for Gaussian schedules, on top of an estimate of x_0.

The model is a function `predict_x0(xt, t)`; `predictions.to_x0` makes one from any network. From x_t the estimate of the noise is
`eps_hat = (x_t - alpha_t x0_hat) / sigma_t`, and every method here is a way of going to an earlier s,

    x_s = alpha_s x0_hat + (noise kept) eps_hat + (noise new) z,     kept^2 + new^2 = sigma_s^2.

`sample` is the loop; a `Solver` is a small record of pure functions whose history, if it has one, lives in the scan's carry.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from diffjax import numerics
from diffjax.numerics import expand_right
from diffjax.processes.predictions import x0_to_eps
from diffjax.schedules import Schedule

PredictX0 = Callable[[Array, Array], Array]
"""`(xt, t) -> x0_hat`, of xt's shape."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Solver:
    """How to take one step: a record of pure functions, compared by identity.

    Attributes:
      init: `(xt) -> history`, the pytree that the first step finds; its shapes never change.
      step: `(key, predict_x0, xt, history, s, t, schedule) -> (xs, x0_hat, history)`, from t to s < t. A deterministic
        solver ignores the key.
    """

    init: Callable[[Array], Any]
    step: Callable[..., tuple[Array, Array, Any]]


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

    Args:
      key: one key, or an array of keys `[batch]`; step i draws from `fold_in(key, i)`.
      predict_x0: `(xt, t) -> x0_hat`; t is `times[i]` as it is.
      xt: `[*batch, *event]` at `times[0]`, such as `gaussian.process(schedule).prior(key, like)`.
      times: `[steps + 1]` decreasing or `[steps + 1, *batch]`; as many steps are taken as asked for.
      schedule: `t -> (alpha, sigma)`.
      solver: `ddim(eta)`, `ancestral()`, ...
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

    def step(carry, row):
        x, history = carry
        i, t, s = row
        moved, x0_hat, history = solver.step(numerics.fold_in(key, i), predict_x0, x, history, s, t, schedule)
        return (moved.astype(x.dtype), history), None if track is None else track(x0_hat, x, t)

    rows = (jnp.arange(times.shape[0] - 1), times[:-1], times[1:])
    (end, _), tracked = jax.lax.scan(step, (xt, solver.init(xt)), rows)
    return end if track is None else (end, tracked)


def ddim(eta: float = 0.0) -> Solver:
    """The DDIM step: `x_s = alpha_s x0_hat + sqrt(sigma_s^2 - new^2) eps_hat + new z`, new = eta times the bridge's std.

    At eta = 0 it is deterministic (no noise is drawn), at eta = 1 ancestral sampling. For VP schedules the bridge's std is the paper's
    `sqrt((1 - abar_s) / (1 - abar_t)) sqrt(1 - abar_t / abar_s)`; as written here it holds for any schedule.

    Args:
      eta: share of fresh noise, in [0, 1].

    Raises:
      ValueError: eta outside [0, 1].

    Source: Song et al. 2021, arXiv:2010.02502, eq. 12 and 16.

    Example:
      >>> ddim(1.5)
      Traceback (most recent call last):
      ...
      ValueError: expected eta in [0, 1] (0 deterministic, 1 ancestral), got eta=1.5
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"expected eta in [0, 1] (0 deterministic, 1 ancestral), got {eta=}")

    def step(key, predict_x0, xt, history, s, t, schedule):
        x0_hat = predict_x0(xt, t)
        (alpha_s, sigma_s), (alpha_t, sigma_t) = schedule(s), schedule(t)
        clean, noisy = numerics.upcast(x0_hat, xt)
        eps_hat = x0_to_eps(clean, noisy, alpha_t, sigma_t)
        if eta == 0:
            xs = expand_right(alpha_s, xt) * clean + expand_right(sigma_s, xt) * eps_hat
            return xs.astype(xt.dtype), x0_hat, history
        # r = (alpha_t sigma_s / (alpha_s sigma_t))^2, the share of the old noise that the bridge keeps.
        r = jnp.minimum(numerics.safe_divide(alpha_t * sigma_s, alpha_s * sigma_t) ** 2, 1.0)
        new = eta * sigma_s * jnp.sqrt(1 - r)
        kept = sigma_s * jnp.sqrt((1 - eta) * (1 + eta) + eta * eta * r)  # sqrt(sigma_s^2 - new^2) without cancelling
        xs = expand_right(alpha_s, xt) * clean + expand_right(kept, xt) * eps_hat
        xs = xs + expand_right(new, xt) * numerics.normal(key, xt.shape, clean.dtype)
        return xs.astype(xt.dtype), x0_hat, history

    return Solver(init=lambda xt: None, step=step)


def ancestral() -> Solver:
    """The ancestral step of DDPM: a draw of the bridge `q(x_s | x_0 = x0_hat, x_t)`, the same law as `ddim(1.0)`.

    Source: Ho et al. 2020, arXiv:2006.11239, algorithm 2, with the posterior variance.

    Example:
      >>> ancestral().init(jnp.zeros(2)) is None  # no history
      True
    """
    return ddim(1.0)
