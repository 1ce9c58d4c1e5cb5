"""Data in levels (pixels 0..255) and models of real numbers: how a probability of the one comes from the other.

A variational bound ends with p(x_0 | z_0), a law on levels given a nearly clean point: `decoder` weighs each level by the noise it would take
(`posterior`, which a network's logits may sharpen at any noise, Gaussian or folded into a box; `score` is what that says of the score),
`discretized_gaussian` integrates one Gaussian over the cell of each level. A density on real numbers, such as that of `samplers.ode`, becomes a
probability through noise within the cell: `dequantised`.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from diffjax import numerics
from diffjax.numerics import expand_right
from diffjax.schedules import Schedule

LogKernel = Callable[[Array, Array, Array], Array]
"""`(start, xt, sigma) -> log density` of each entry of xt given where its noise began, alpha x_0, up to a constant; sigma has t's shape."""


def normal(start: Array, xt: Array, sigma: ArrayLike) -> Array:
    """The `LogKernel` of Gaussian noise, `-(x_t - start)^2 / 2 sigma^2`, without its constant.

    Example:
      >>> print(normal(jnp.zeros(1), jnp.ones(1), 0.5))
      [-2.]
    """
    start, end, sigma = numerics.upcast(start, xt, sigma)
    return -0.5 * jnp.square((end - start) / expand_right(sigma, end))


def normal_score(start: Array, xt: Array, sigma: ArrayLike) -> Array:
    """The derivative of `normal` in x_t, `(start - x_t) / sigma^2`.

    Example:
      >>> print(normal_score(jnp.zeros(1), jnp.ones(1), 0.5))
      [-4.]
    """
    start, end, sigma = numerics.upcast(start, xt, sigma)
    scale = expand_right(sigma, end)
    return (start - end) / scale / scale


def _against(kernel: LogKernel, levels: ArrayLike, xt: Array, t: ArrayLike, schedule: Schedule) -> Array:
    """A kernel from every level to each entry of xt, `[*batch, *event, K]`."""
    values, z, alpha, sigma = numerics.upcast(levels, xt, *schedule(t))
    z = z[..., None]
    start = expand_right(alpha, z) * values.reshape((1,) * (z.ndim - 1) + (-1,))
    start, z = jnp.broadcast_arrays(start, z)
    return kernel(start, z, sigma)


def posterior(
    logits: ArrayLike, xt: Array, t: ArrayLike, *, levels: ArrayLike, schedule: Schedule, log_kernel: LogKernel = normal
) -> Array:
    """The log-probabilities of each entry's level given its noisy value, `log p(x_0 = v | x_t)`, `[*batch, *event, K]`.

        p(v | x_t) ~ exp(logits_v) k(alpha v -> x_t),        k = N(x_t; alpha v, sigma^2) by default.

    A network that gives the logits need not learn what the noisy entry itself says of its level, only what the others say; sharp at
    little noise, it is a classifier where there is nothing but noise.

    Args:
      logits: broadcast against `[*batch, *event, K]`; 0 for a flat prior.
      xt: `[*batch, *event]`.
      t: `[*batch]` or scalar; sigma > 0.
      levels: `[K]`, increasing, the real numbers that data take.
      schedule: `t -> (alpha, sigma)`.
      log_kernel: the noise of an entry: `normal`, `cube.log_kernel` on a box, `torus.log_kernel` for angles.

    Source: Bayes; the decomposition is that of Kingma et al. 2021, arXiv:2107.00630, eq. 8, at any noise.

    Example:
      >>> from diffjax import schedules
      >>> logs = posterior(0.0, jnp.zeros(1), 0.5, levels=jnp.array([-1.0, 0.0, 1.0]), schedule=schedules.rectified())
      >>> print(jnp.round(100 * jnp.exp(logs)))  # percent
      [[27. 45. 27.]]
    """
    told = _against(log_kernel, levels, xt, t, schedule)
    (extra,) = numerics.upcast(logits)
    return jax.nn.log_softmax(extra.reshape((1,) * (told.ndim - extra.ndim) + extra.shape) + told)


def score(
    log_probs: Array,
    xt: Array,
    t: ArrayLike,
    *,
    levels: ArrayLike,
    schedule: Schedule,
    kernel_score: LogKernel = normal_score,
) -> Array:
    """The score that a law on levels implies, `E[d/dx_t log k(alpha v -> x_t) | x_t]`, of xt's shape, in float32.

    Where `log_probs` are the true posterior it is the score of the noisy data.

    Args:
      log_probs: `[*batch, *event, K]`, as from `posterior`.
      xt: `[*batch, *event]`.
      t: `[*batch]` or scalar; sigma > 0.
      levels: `[K]`, the real numbers that data take.
      schedule: `t -> (alpha, sigma)`.
      kernel_score: `(start, xt, sigma) -> slope`: `normal_score`, `cube.score` on a box, `torus.score` for angles.

    Source: the score of a mixture is the posterior mean of its parts' scores: Vincent 2011; Efron 2011 (Tweedie's formula).

    Example:
      Even odds of 0 and 1 on a box, midway between:

      >>> from diffjax import schedules
      >>> from diffjax.processes import cube
      >>> settings = {"levels": jnp.array([0.0, 1.0]), "schedule": schedules.ve(0.01, 5.0)}
      >>> logs = posterior(0.0, jnp.array([0.5]), 0.3, log_kernel=cube.log_kernel, **settings)
      >>> print(score(logs, jnp.array([0.5]), 0.3, kernel_score=cube.score, **settings))
      [0.]
    """
    slopes = _against(kernel_score, levels, xt, t, schedule)
    return jnp.sum(jnp.exp(log_probs).astype(slopes.dtype) * slopes, axis=-1)


def log_prob(log_probs: Array, x0: Array, *, levels: ArrayLike) -> Array:
    """What `[*batch, *event, K]` log-probabilities say of the levels that data take, summed over the event: `[batch]`.

    Args:
      log_probs: as from `posterior`; the first axis is the batch.
      x0: `[batch, *event]`, each entry (nearest to) a level.
      levels: `[K]`.

    Example:
      >>> halves = jnp.log(jnp.full((1, 2, 2), 0.5))
      >>> print(log_prob(halves, jnp.array([[0.0, 1.0]]), levels=jnp.array([0.0, 1.0])))
      [-1.3862944]
    """
    clean, values = numerics.upcast(x0, levels)
    index = jnp.argmin(jnp.abs(clean[..., None] - values.reshape((1,) * clean.ndim + (-1,))), axis=-1)
    chosen = jnp.take_along_axis(log_probs, index[..., None], axis=-1)[..., 0]
    return jnp.sum(chosen, axis=tuple(range(1, chosen.ndim)))


def decoder(
    levels: ArrayLike, *, schedule: Schedule, t: ArrayLike, log_prior: ArrayLike = 0.0, log_kernel: LogKernel = normal
) -> Callable[[Array, Array], Array]:
    """The decoder `p(x_0 = v | z_0) ~ k(alpha v -> z_0) p(v)` on levels v, each entry alone: a function `(x0, z0) -> [*batch]`.

    Args:
      levels: `[K]`, increasing, the real numbers that data take.
      schedule: `t -> (alpha, sigma)`.
      t: scalar, the time of z_0.
      log_prior: log p(v), broadcast against `[batch, *event, K]`; 0 (flat) is VDM's.
      log_kernel: the noise of an entry, as in `posterior`.

    Source: Kingma et al. 2021, arXiv:2107.00630, app. D (with p(v) flat).

    Example:
      >>> from diffjax import schedules
      >>> decode = decoder(jnp.array([-1.0, 1.0]), schedule=schedules.rectified(), t=0.1)
      >>> print(jnp.round(decode(jnp.array([[1.0], [-1.0]]), jnp.array([[0.9], [0.0]])), 4))
      [ 0.     -0.6931]
    """
    settings = {"levels": levels, "schedule": schedule, "log_kernel": log_kernel}
    return lambda x0, z0: log_prob(posterior(log_prior, z0, t, **settings), x0, levels=levels)


def discretized_gaussian(
    x0: Array, mean: Array, std: ArrayLike, *, levels: int = 256, low: float = -1.0, high: float = 1.0
) -> Array:
    """The log-probability in nats, entry by entry, that N(mean, std^2) falls into the cell of x_0 among equally spaced levels.

    The first and the last cell reach to infinity, so that the probabilities of all levels sum to one.

    Args:
      x0: `[*batch, *event]`, levels `low + k (high - low) / (levels - 1)`.
      mean: `[*batch, *event]`.
      std: `[*batch]` or scalar.
      levels: number of levels.
      low: the first level.
      high: the last level.

    Returns:
      `[*batch, *event]`, float32.

    Source: Ho et al. 2020, arXiv:2006.11239, eq. 13.

    Example:
      >>> print(jnp.round(discretized_gaussian(jnp.array([-1.0]), jnp.array([0.0]), 1.0, levels=2), 4))  # log 1/2
      [-0.6931]
    """
    clean, center, std = numerics.upcast(x0, mean, std)
    scale = expand_right(std, clean)
    half = 0.5 * (high - low) / (levels - 1)
    below, above = (clean - half - center) / scale, (clean + half - center) / scale
    # A cell on the right of the mean is mirrored to the left, where the distribution function has all its digits.
    flip = below + above > 0
    below, above = jnp.where(flip, -above, below), jnp.where(flip, -below, above)
    first, last = clean < low + half, clean > high - half
    open_below = jnp.where(flip, last, first)
    open_above = jnp.where(flip, first, last)
    log_above = jnp.where(
        open_above,
        jnp.zeros_like(above),
        jax.scipy.stats.norm.logcdf(jnp.where(open_above, jnp.zeros_like(above), above)),
    )
    log_below = jax.scipy.stats.norm.logcdf(below)
    gap = jnp.where(open_below, jnp.full_like(below, -jnp.inf), log_below - log_above)
    gap = jnp.minimum(gap, jnp.asarray(-1e-30, gap.dtype))
    return log_above + jnp.log(-jnp.expm1(gap))


def dequantised(
    key: Array,
    log_prob: Callable[[Array, Array], Array],
    x: Array,
    *,
    levels: int,
    low: float = -1.0,
    high: float = 1.0,
    noise: Callable[[Array, Array], tuple[Array, Array]] | None = None,
    samples: int = 1,
) -> Array:
    """A lower bound in nats on log P(x) of data in levels, from a density of real numbers, for each example.

        log P(x) = log int p(y) dy over the cell of x >= E[log p(y) - log q(u | x)] + D log((high - low) / levels),
        y = low + (high - low) (x + u) / levels,        u ~ q(u | x) on [0, 1)^D.

    Args:
      key: one key.
      log_prob: `(key, y) -> [batch]` nats, such as `ode.log_prob` with its arguments bound.
      x: `[batch, *event]` of integers in [0, levels).
      levels: number of levels, such as 256.
      low: where level 0 begins.
      high: where the last level ends.
      noise: `(key, x) -> (u, log q(u | x) [batch])`, a learned law for variational dequantisation; uniform by default.
      samples: draws of u; more than one takes the log of the mean, a tighter bound.

    Returns:
      `[batch]` nats.

    Source: Theis et al. 2016, arXiv:1511.01844, sec. 3.1; Ho et al. 2019, arXiv:1902.00275, sec. 3.1 (variational); Burda et al. 2016, arXiv:1509.00519, eq. 8.

    Example:
      A flat density on [-1, 1] gives each of 4 levels probability 1/4:

      >>> flat = lambda key, y: jnp.full(y.shape[0], -jnp.log(2.0))
      >>> print(jnp.round(dequantised(jax.random.key(0), flat, jnp.array([[0], [3]]), levels=4), 4))
      [-1.3863 -1.3863]
    """
    size = math.prod(x.shape[1:])

    def flat(key, x):
        return jax.random.uniform(key, x.shape), jnp.zeros(x.shape[:1])

    def draw(key):
        key_noise, key_density = numerics.split(key)
        u, log_q = (noise or flat)(key_noise, x)
        y = low + (high - low) * (x.astype(u.dtype) + u) / levels
        return log_prob(key_density, y) - log_q + size * math.log((high - low) / levels)

    values = jax.lax.map(draw, numerics.split(numerics.as_keys(key), samples))
    return jax.nn.logsumexp(values, axis=0) - math.log(samples)
