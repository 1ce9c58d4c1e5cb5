"""Variational bounds on -log p, term by term.

Noising makes a chain x_0 -> ... -> x_1, and a model that walks it back has, for each example,

    -log p(x_0) <=  -E log p(x_0 | z_0)      reconstruction: from the least noisy point z_0 to the data
                    + sum over steps of KL   diffusion: the model's steps back against the bridge's
                    + KL(q(x_1 | x_0) || p)  prior: what is left of the data at the noisy end,

each a mean over the noise. `continuous` draws one time for each example (the bound of infinitely many steps), `discrete` walks all steps of
a grid, both with Gaussian noise. `likelihood.scores` has the bounds of a score on any space, `likelihood.symbols` those for
symbols. All return a `Bound` of the three terms in nats; `summary` averages them, with standard errors, also in bits per dimension.

For data that are levels (pixels 0..255), `likelihood.levels` has laws p(x_0 | z_0) on levels, and dequantisation. A schedule may be learned:
`likelihood.learned_schedule`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from diffjax import losses, numerics, schedules
from diffjax.numerics import expand_right
from diffjax.processes import gaussian, predictions
from diffjax.processes.predictions import Kind
from diffjax.schedules import Schedule

Decode = Callable[[Array, Array], Array]
"""`(x0, z0) -> log p(x_0 | z_0)` in nats, `[*batch]`."""

# -------------------------------------------------------------------------------------------------- terms and units


class Bound(NamedTuple):
    """A bound on -log p of each example by its terms, in nats, each `[*batch]`: an estimate from one draw of the noise."""

    reconstruction: Array
    diffusion: Array
    prior: Array

    @property
    def total(self) -> Array:
        """The bound itself, `[*batch]` in nats."""
        return self.reconstruction + self.diffusion + self.prior


def bits_per_dim(nats: ArrayLike, size: int) -> Array:
    """`nats / (size log 2)`: nats an example as bits a dimension (or a character), of nats' shape.

    Example:
      >>> print(bits_per_dim(jnp.array([64 * 0.6931472]), 64))
      [1.]
    """
    return jnp.asarray(nats) / (size * math.log(2.0))


def mean_and_error(values: ArrayLike) -> tuple[Array, Array]:
    """The mean over all values and its standard error `sd / sqrt(n)`, two scalars.

    The values count as independent. Where times are stratified over a batch, pass the means of several batches: their error is the
    true one, much smaller.

    Example:
      >>> print(*mean_and_error(jnp.array([1.0, 3.0])))
      2.0 1.0
    """
    (values,) = numerics.upcast(values)
    return jnp.mean(values), jnp.std(values, ddof=1) / math.sqrt(values.size)


def summary(bound: Bound, *, size: int | None = None) -> dict[str, tuple[Array, Array]]:
    """The mean and standard error of each term and of the total: `{"total": (mean, error), "reconstruction": ..., ...}`.

    Args:
      bound: of a data set, or of many draws.
      size: entries of an example; given, the figures are bits per dimension, else nats per example.

    Example:
      >>> bound = Bound(jnp.array([1.0, 3.0]), jnp.zeros(2), jnp.ones(2))
      >>> print(*summary(bound)["total"])
      3.0 1.0
    """
    terms = {"total": bound.total, **bound._asdict()}
    return {name: mean_and_error(v if size is None else bits_per_dim(v, size)) for name, v in terms.items()}


# -------------------------------------------------------------------------------------------------- Gaussian bounds


def _size(x: Array, t: ArrayLike) -> int:
    return math.prod(x.shape[jnp.ndim(t) :])


def _gaussian_ends(
    key: Array, x0: Array, low: Array, high: Array, schedule: Schedule, decode: Decode
) -> tuple[Array, Array]:
    """The reconstruction from the time `low` and the prior term at the time `high`."""
    clean, *scalars = numerics.upcast(x0, *schedule(low), *schedule(high))
    alpha_0, sigma_0, alpha_1, sigma_1 = scalars
    z0 = gaussian.perturb(clean, numerics.normal(key, x0.shape, clean.dtype), alpha_0, sigma_0)
    # KL(N(alpha x_0, sigma^2) || N(0, sigma^2)), against the prior that a sampler starts from.
    prior = 0.5 * numerics.sum_event((expand_right(alpha_1 / sigma_1, x0) * clean) ** 2, low)
    return -decode(x0, z0.astype(x0.dtype)).astype(clean.dtype), prior


def continuous(
    key: Array,
    predict: Callable[[Array, Array], Array],
    x0: Array,
    u: Array,
    *,
    schedule: Schedule,
    decode: Decode,
    kind: Kind = predictions.eps,
    path: Callable[[Array], Array] | None = None,
) -> Bound:
    """The continuous-time bound of VDM for each example, from one time each: `1/2 E_t[-logsnr'(t) |eps - eps_hat|^2]` and the ends.

    The diffusion term depends on the schedule only through the log-SNR at its ends; in between, the schedule, the draws of u and the path
    only change the variance. `schedules.stratified_draw` makes good draws.

    Args:
      key: one key, or an array of keys `[*batch]`.
      predict: `(xt, t) -> [*batch, *event]`, of the given kind.
      x0: `[*batch, *event]`, the data as real numbers.
      u: `[*batch]`, uniform draws from [0, 1).
      schedule: `t -> (alpha, sigma)`; sigma must be positive at the path's end.
      decode: `(x0, z0) -> log p(x_0 | z_0)`, for z_0 at the path's start; see `levels.decoder`.
      kind: what is predicted.
      path: `u -> t`, increasing, its ends being those of the chain; the identity by default. `lambda u:
        schedules.logsnr_importance(u, schedule=schedule, low=-8.0, high=6.0)` spreads the times evenly over the log-SNR, so that all errors
        |eps - eps_hat|^2 have one weight, 7 = (8 + 6) / 2. Its slope is found by jvp.

    Returns:
      a `Bound`, `[*batch]` each.

    Source: Kingma et al. 2021, arXiv:2107.00630, eq. 17-18 and app. B.

    Example:
      Data at 0, which a perfect predictor knows, cost nothing:

      >>> schedule = schedules.rectified()
      >>> bound = continuous(
      ...     jax.random.key(0), lambda x, t: x / expand_right(t, x), jnp.zeros((4, 2)), jnp.array([0.2, 0.4, 0.6, 0.8]),
      ...     schedule=schedule, decode=lambda x0, z0: jnp.zeros(4),
      ... )
      >>> print(jnp.round(bound.total, 4))
      [0. 0. 0. 0.]
    """
    key_noise, key_end = numerics.split(numerics.as_keys(key))
    path = path or (lambda u: u)
    (u,) = numerics.upcast(u)
    t, slope = jax.jvp(path, (u,), (jnp.ones_like(u),))
    error = losses.regression(key_noise, predict, x0, t, schedule=schedule, kind=kind, weighting=losses.likelihood)
    reconstruction, prior = _gaussian_ends(
        key_end, x0, path(jnp.zeros_like(u)), path(jnp.ones_like(u)), schedule, decode
    )
    return Bound(reconstruction, slope * _size(x0, t) * error, prior)


def step(
    key: Array,
    predict: Callable[[Array, Array], Array],
    x0: Array,
    s: ArrayLike,
    t: ArrayLike,
    *,
    schedule: Schedule,
    kind: Kind = predictions.eps,
    std: Callable[[ArrayLike, ArrayLike], Array] | None = None,
) -> Array:
    """The KL in nats between the bridge's step from t to s and the model's, for each example: the bound's loss at one of its steps.

    With the bridge's own standard deviation in both it is `1/2 (SNR_s - SNR_t) |x_0 - x0_hat|^2`, for any schedule.

    Args:
      key: one key, or an array of keys `[*batch]`.
      predict: `(xt, t) -> [*batch, *event]`, of the given kind.
      x0: `[*batch, *event]`.
      s: `[*batch]` or scalar, with sigma_s > 0.
      t: `[*batch]` or scalar, s < t.
      schedule: `t -> (alpha, sigma)`.
      kind: what is predicted.
      std: `(s, t) -> [*batch]`, the model's standard deviation; None for the bridge's. DDPM's larger choice is `transition_std`.

    Returns:
      t's shape, nats.

    Source: Ho et al. 2020, arXiv:2006.11239, eq. 5-8; Kingma et al. 2021, arXiv:2107.00630, eq. 13-14.

    Example:
      >>> schedule = schedules.rectified()  # SNR 9 and 1, so 1/2 8 |1|^2
      >>> print(round(float(step(jax.random.key(0), lambda x, t: x * 0, jnp.ones(1), 0.25, 0.5, schedule=schedule, kind=predictions.x0)), 3))
      4.0
    """

    def weighting(t, schedule):
        # On the noise: (SNR_s / SNR_t - 1) / 2, clipped as the losses' weights are.
        early, late = (jnp.clip(schedules.logsnr(time, schedule=schedule), -60.0, 60.0) for time in (s, t))
        return 0.5 * jnp.expm1(early - late)

    same = _size(x0, t) * losses.regression(key, predict, x0, t, schedule=schedule, kind=kind, weighting=weighting)
    if std is None:
        return same
    _, bridge_std = gaussian.posterior(x0, x0, s, t, schedule=schedule)
    ratio = 2 * (jnp.log(bridge_std) - jnp.log(std(s, t)))
    return same * jnp.exp(ratio) + 0.5 * _size(x0, t) * (jnp.expm1(ratio) - ratio)


def transition_std(schedule: Schedule) -> Callable[[ArrayLike, ArrayLike], Array]:
    """`(s, t) -> sqrt(sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2)`, the noise of a forward step: DDPM's larger choice, sqrt(beta_t).

    Source: Ho et al. 2020, arXiv:2006.11239, sec. 3.2.

    Example:
      >>> print(round(float(transition_std(schedules.rectified())(0.25, 0.5)), 4))
      0.4714
    """

    def std(s, t):
        (alpha_s, sigma_s), (alpha_t, sigma_t) = schedule(s), schedule(t)
        kept = alpha_t * sigma_s / alpha_s
        return numerics.safe_sqrt((sigma_t - kept) * (sigma_t + kept))

    return std


def discrete(
    key: Array,
    predict: Callable[[Array, Array], Array],
    x0: Array,
    times: Array,
    *,
    schedule: Schedule,
    decode: Decode,
    kind: Kind = predictions.eps,
    std: Callable[[ArrayLike, ArrayLike], Array] | None = None,
) -> Bound:
    """The bound of a chain of finitely many Gaussian steps for each example, all of them summed, each with noise of its own.

    DDPM's L_0 is the reconstruction from its first noise level: let `times` end there, and `decode` ask the network.

    Args:
      key: one key, or an array of keys `[batch]`.
      predict: `(xt, t) -> [batch, *event]`, of the given kind; called once a step.
      x0: `[batch, *event]`.
      times: `[steps + 1]`, decreasing, from the noisy end to z_0, where sigma > 0.
      schedule: `t -> (alpha, sigma)`.
      decode: `(x0, z0) -> log p(x_0 | z_0)`, `[batch]`.
      kind: what is predicted.
      std: as in `step`.

    Returns:
      a `Bound`, `[batch]` each.

    Source: Ho et al. 2020, arXiv:2006.11239, eq. 5; Kingma et al. 2021, arXiv:2107.00630, eq. 11.

    Example:
      >>> bound = discrete(
      ...     jax.random.key(0), lambda x, t: x * 0, jnp.ones((2, 1)), schedules.times(4, stop=0.5), schedule=schedules.rectified(),
      ...     decode=lambda x0, z0: jnp.zeros(2), kind=predictions.x0,
      ... )
      >>> print(jnp.round(bound.diffusion, 3))  # 1/2 (SNR(.5) - SNR(1))
      [0.5 0.5]
    """
    key_steps, key_end = numerics.split(numerics.as_keys(key))
    lead = x0.shape[:1]

    def add(total, row):
        i, t, s = row
        kl = step(
            numerics.fold_in(key_steps, i), predict, x0, jnp.broadcast_to(s, lead), jnp.broadcast_to(t, lead),
            schedule=schedule, kind=kind, std=std,
        )  # fmt: skip
        return total + kl.astype(total.dtype), None

    rows = (jnp.arange(len(times) - 1), times[:-1], times[1:])
    diffusion, _ = jax.lax.scan(add, jnp.zeros(lead, numerics.compute_dtype(x0)), rows)
    ends = [jnp.broadcast_to(times[i], lead) for i in (-1, 0)]
    reconstruction, prior = _gaussian_ends(key_end, x0, ends[0], ends[1], schedule, decode)
    return Bound(reconstruction, diffusion, prior)
