"""Gaussian noising: `x_t = alpha_t x_0 + sigma_t eps`, eps ~ N(0, I), and everything about it that has a closed form.

The transition from s to t > s is Gaussian too, `q(x_t | x_s) = N(a x_s, sigma_t^2 - a^2 sigma_s^2)` with a = alpha_t / alpha_s,
so Bayes' rule gives the bridge `q(x_s | x_0, x_t) = N(mean, std^2)`. Writing b = sigma_s / sigma_t and r = (a b)^2,

    mean = alpha_s (1 - r) x_0 + a b^2 x_t,        std = sigma_s sqrt(1 - r),

where only alpha_s and sigma_t are divided by, so that it holds at s = 0 (clean data) and at alpha_t = 0 (pure noise).

`perturb`, `posterior`, `log_prob` and `score` are the formulas; `process` makes a `Process` of any schedule;
`ornstein_uhlenbeck` is the one with a mean, a volatility and a speed of its own for each dimension, computed from increments of time,
which the log-SNR form would lose in float32.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from diffjax import numerics
from diffjax.numerics import expand_right
from diffjax.processes.base import Process
from diffjax.schedules import Schedule

# -------------------------------------------------------------------------------------------------------- formulas


def perturb(x0: Array, eps: Array, alpha: ArrayLike, sigma: ArrayLike) -> Array:
    """The noisy point `x_t = alpha x_0 + sigma eps`.

    Args:
      x0: `[*batch, *event]`, clean data.
      eps: `[*batch, *event]`, standard normal noise.
      alpha: `[*batch]` or scalar, the share of signal.
      sigma: `[*batch]` or scalar, the share of noise.

    Returns:
      `[*batch, *event]` of x0's dtype.

    Raises:
      ValueError: x0 and eps differ in shape, or alpha and sigma do not lead it.

    Source: Ho et al. 2020, arXiv:2006.11239, eq. 4.

    Example:
      >>> print(perturb(jnp.array([1.0, 2.0]), jnp.array([1.0, -1.0]), 0.5, 0.5))
      [1.  0.5]
    """
    numerics.check_same(x0=x0, eps=eps)
    clean, noise, alpha, sigma = numerics.upcast(x0, eps, alpha, sigma)
    return (expand_right(alpha, x0) * clean + expand_right(sigma, x0) * noise).astype(x0.dtype)


def posterior(x0: Array, xt: Array, s: ArrayLike, t: ArrayLike, *, schedule: Schedule) -> tuple[Array, Array]:
    """The mean and standard deviation of the bridge `q(x_s | x_0, x_t)`.

    Args:
      x0: `[*batch, *event]`, the clean end.
      xt: `[*batch, *event]`, the noisy end.
      s: `[*batch]` or scalar, the time asked for, s <= t.
      t: `[*batch]` or scalar, the time of xt.
      schedule: `t -> (alpha, sigma)`.

    Returns:
      `(mean [*batch, *event], std)`; std of the times' shape. At s = t they are (xt, 0), at sigma_s = 0 (x0, 0).

    Source: Ho et al. 2020, arXiv:2006.11239, eq. 6-7; Kingma et al. 2021, arXiv:2107.00630, app. A.2.

    Example:
      >>> from diffjax import schedules
      >>> mean, std = posterior(jnp.zeros(2), jnp.ones(2), 0.5, 1.0, schedule=schedules.vp_linear())
      >>> print(round(float(mean[0]), 4), round(float(std), 4))
      0.0215 0.9594
    """
    numerics.check_same(x0=x0, xt=xt)
    keep, pull, std, alpha_s = _posterior_coefficients(s, t, schedule, numerics.compute_dtype(x0, xt))
    clean, noisy = numerics.upcast(x0, xt)
    mean = expand_right(alpha_s * keep, xt) * clean + expand_right(pull, xt) * noisy
    return mean.astype(xt.dtype), std


def _posterior_coefficients(s: ArrayLike, t: ArrayLike, schedule: Schedule, dtype) -> tuple[Array, Array, Array, Array]:
    (alpha_s, sigma_s), (alpha_t, sigma_t) = ([v.astype(dtype) for v in schedule(time)] for time in (s, t))
    # alpha_s = 0 leaves only s = t, where the bridge is the identity: a = 1.
    noise = alpha_s == 0
    a = jnp.where(noise, jnp.ones_like(alpha_t), alpha_t) / jnp.where(noise, jnp.ones_like(alpha_s), alpha_s)
    b = numerics.safe_divide(sigma_s, sigma_t)
    keep = jnp.maximum(1 - (a * b) ** 2, jnp.zeros((), dtype))
    return keep, a * b * b, sigma_s * numerics.safe_sqrt(keep), alpha_s


def log_prob(x0: Array, xt: Array, t: ArrayLike, *, schedule: Schedule) -> Array:
    """`log q(x_t | x_0) = log N(x_t; alpha_t x_0, sigma_t^2 I)` in nats, summed over the event.

    Args:
      x0: `[*batch, *event]`.
      xt: `[*batch, *event]`.
      t: `[*batch]` or scalar, with sigma_t > 0.
      schedule: `t -> (alpha, sigma)`.

    Returns:
      t's shape `[*batch]`, float32 (float64 if the data are).

    Example:
      >>> from diffjax import schedules
      >>> print(round(float(log_prob(jnp.zeros(1), jnp.zeros(1), 1.0, schedule=schedules.rectified())), 4))
      -0.9189
    """
    numerics.check_same(x0=x0, xt=xt)
    clean, noisy = numerics.upcast(x0, xt)
    alpha, sigma = (expand_right(v.astype(clean.dtype), xt) for v in schedule(t))
    z = (noisy - alpha * clean) / sigma
    return numerics.sum_event(-0.5 * z * z - jnp.log(sigma) - 0.5 * math.log(2 * math.pi), t)


def score(x0: Array, xt: Array, t: ArrayLike, *, schedule: Schedule) -> Array:
    """The gradient of `log q(x_t | x_0)` in x_t: `(alpha_t x_0 - x_t) / sigma_t^2`, of xt's shape and dtype.

    Where sigma_t = 0 there is no density and 0 is returned.

    Source: Vincent 2011, eq. 12; Song et al. 2021, arXiv:2011.13456.

    Example:
      >>> from diffjax import schedules
      >>> print(score(jnp.zeros(2), jnp.array([1.0, -2.0]), 0.5, schedule=schedules.rectified()))
      [-4.  8.]
    """
    numerics.check_same(x0=x0, xt=xt)
    clean, noisy = numerics.upcast(x0, xt)
    alpha, sigma = (expand_right(v.astype(clean.dtype), xt) for v in schedule(t))
    # Divided twice: sigma^2 underflows long before sigma does.
    sigma = jnp.broadcast_to(sigma, xt.shape)
    return numerics.safe_divide(numerics.safe_divide(alpha * clean - noisy, sigma), sigma).astype(xt.dtype)


# --------------------------------------------------------------------------------------------------------- process


def process(schedule: Schedule) -> Process:
    """The Gaussian process of a schedule, on arrays of any shape: VP, VE and flows alike.

    Args:
      schedule: `t -> (alpha, sigma)` from `diffjax.schedules`, or your own.

    Returns:
      a `Process` with prior N(0, sigma(1)^2 I), all capabilities but `posterior_logits`.

    Example:
      >>> from diffjax import schedules
      >>> p = process(schedules.cosine())
      >>> x0, t = jnp.ones((4, 2)), jnp.array([0.1, 0.2, 0.5, 1.0])
      >>> xt = p.corrupt(jax.random.key(0), x0, t)
      >>> p.bridge(jax.random.key(1), x0, xt, 0.0 * t, t)[0].tolist()  # s = 0 is the clean end
      [1.0, 1.0]
    """

    def prior(key, like):
        sigma = schedule(1.0)[1]
        dtype = numerics.compute_dtype(like)
        return (sigma.astype(dtype) * numerics.normal(key, like.shape, dtype)).astype(like.dtype)

    # Compiled, so that a call outside `jit` is one dispatch instead of twenty; inlined inside one.
    @functools.partial(jax.jit, inline=True)
    def noised(key, x0, t):
        alpha, sigma = schedule(t)
        return perturb(x0, numerics.normal(key, x0.shape, numerics.compute_dtype(x0)), alpha, sigma)

    def corrupt(key, x0, t):
        numerics.check_time(t)  # a Python number is one no longer inside
        return noised(key, x0, t)

    @functools.partial(jax.jit, inline=True)
    def between(key, x0, xt, s, t):
        dtype = numerics.compute_dtype(x0, xt)
        mean, std = posterior(x0.astype(dtype), xt.astype(dtype), s, t, schedule=schedule)
        return (mean + expand_right(std, xt) * numerics.normal(key, xt.shape, dtype)).astype(xt.dtype)

    def bridge(key, x0, xt, s, t):
        numerics.check_time(s, t)
        return between(key, x0, xt, s, t)

    return Process(
        prior=prior,
        corrupt=corrupt,
        bridge=bridge,
        log_prob=lambda x0, xt, t: log_prob(x0, xt, t, schedule=schedule),
        score=lambda x0, xt, t: score(x0, xt, t, schedule=schedule),
    )


def ornstein_uhlenbeck(
    mean: ArrayLike = 0.0, volatility: ArrayLike = 1.0, reversion: ArrayLike = 0.5, *, horizon: float = 10.0
) -> Process:
    """The mean-reverting process `dx = reversion (mean - x) dtau + volatility dw`, tau = horizon t.

    With d = tau_t - tau_s: decay `a(d) = exp(-reversion d)`, variance `v(d) = volatility^2 d phi(2 reversion d)`,
    phi(y) = (1 - e^-y) / y. The bridge combines the two increments, `v_0t = a_st^2 v_0s + v_st` (a sum of positives):

        mean_s = mean + [a_0s v_st (x_0 - mean) + a_st v_0s (x_t - mean)] / v_0t,     var_s = v_0s v_st / v_0t.

    Args:
      mean: scalar or an array that broadcasts with the event from the right (per-dimension parameters).
      volatility: likewise, > 0.
      reversion: likewise, >= 0; 0 is Brownian motion.
      horizon: the process time that t = 1 stands for, > 0. At reversion * horizon = 5 the prior is stationary to 7e-3.

    Returns:
      a `Process` with prior q(x_1 | x_0 = mean), all capabilities but `posterior_logits`.

    Raises:
      ValueError: horizon is not positive.

    Source: Uhlenbeck and Ornstein 1930; the bridge by Bayes' rule on the two increments.

    Example:
      >>> p = ornstein_uhlenbeck(mean=jnp.array([0.0, 3.0]), volatility=1.0, reversion=0.5)
      >>> x1 = p.prior(jax.random.key(0), jnp.zeros((10_000, 2)))
      >>> print(jnp.round(x1[:, 1].mean(), 1), jnp.round(x1[:, 1].std(), 1))
      3.0 1.0
    """
    if not horizon > 0:
        raise ValueError(f"expected horizon > 0, the process time at t = 1, got {horizon=}")

    def parameters(x):
        dtype = numerics.compute_dtype(x)
        values = [jnp.asarray(p, dtype) for p in (mean, volatility, reversion)]
        # Padded on the left by hand, so that per-dimension parameters meet the trailing axes of the data.
        return [v.reshape((1,) * (len(x.shape) - v.ndim) + v.shape) if v.ndim else v for v in values], dtype

    def increment(d, x, dtype):
        (_, vol, theta), _ = parameters(x)
        d = expand_right(d.astype(dtype), x)
        y = 2 * theta * d
        small = y < 1e-3  # series below, where the quotient has lost its digits only in its derivative
        safe = jnp.where(small, jnp.ones_like(y), y)
        phi = jnp.where(small, 1 - y / 2 + y * y / 6, -jnp.expm1(-safe) / safe)
        return jnp.exp(-theta * d), vol * vol * d * phi

    def clock(t, dtype):
        numerics.check_time(t)
        return jnp.asarray(t, dtype)

    def marginal(x0, t):
        # x_0, the mean's way from it (which is small near the data, where the mean itself would lose it) and the variance.
        (mu, _, theta), dtype = parameters(x0)
        elapsed = horizon * clock(t, dtype)
        start = x0.astype(dtype)
        _, variance = increment(elapsed, x0, dtype)
        return start, jnp.expm1(-theta * expand_right(elapsed, x0)) * (start - mu), variance

    def prior(key, like):
        (mu, *_), dtype = parameters(like)
        _, variance = increment(jnp.asarray(horizon, dtype), like, dtype)
        return (mu + jnp.sqrt(variance) * numerics.normal(key, like.shape, dtype)).astype(like.dtype)

    def corrupt(key, x0, t):
        start, drift, variance = marginal(x0, t)
        noise = numerics.safe_sqrt(variance) * numerics.normal(key, x0.shape, start.dtype)
        return (start + (drift + noise)).astype(x0.dtype)

    def bridge(key, x0, xt, s, t):
        numerics.check_same(x0=x0, xt=xt)
        (mu, *_), dtype = parameters(xt)
        s, t = clock(s, dtype), clock(t, dtype)
        a_s, v_s = increment(horizon * s, xt, dtype)
        a_st, v_st = increment(horizon * (t - s), xt, dtype)
        v_t = a_st * a_st * v_s + v_st
        # At t = 0 all variances vanish and both ends agree; weights (0, 1) keep xt.
        stuck = v_t == 0
        total = jnp.where(stuck, jnp.ones_like(v_t), v_t)
        from_x0, from_xt = a_s * v_st / total, jnp.where(stuck, jnp.ones_like(v_t), a_st * v_s) / total
        center = mu + from_x0 * (x0.astype(dtype) - mu) + from_xt * (xt.astype(dtype) - mu)
        std = numerics.safe_sqrt(v_s * v_st / total)
        return (center + std * numerics.normal(key, xt.shape, dtype)).astype(xt.dtype)

    def log_prob(x0, xt, t):
        numerics.check_same(x0=x0, xt=xt)
        start, drift, variance = marginal(x0, t)
        error = (xt.astype(start.dtype) - start) - drift
        density = -0.5 * (error * error / variance + jnp.log(2 * math.pi * variance))
        return numerics.sum_event(density, t)

    def score(x0, xt, t):
        numerics.check_same(x0=x0, xt=xt)
        start, drift, variance = marginal(x0, t)
        variance = jnp.broadcast_to(variance, xt.shape)
        return numerics.safe_divide(drift - (xt.astype(start.dtype) - start), variance).astype(xt.dtype)

    return Process(prior=prior, corrupt=corrupt, bridge=bridge, log_prob=log_prob, score=score)
