"""Angles: Brownian motion wrapped round the circle, each entry on its own (together, a torus).

On the line the motion has run a variance v = sigma^2 and has the density phi_v. The circle sees every image of the start, 2 pi apart:

    p(x_t | x_0) = sum_k phi_v(d + 2 pi k)                                 images: few where v is small
                 = (1 + 2 sum_{n>=1} q^(n^2) cos(n d)) / 2 pi,             waves: few where v is large

with d = x_t - x_0 and q = exp(-v/2); the two are one theta function, by Poisson summation. They meet at v = 3, where five images or four
waves are exact to 1e-17. Both ends given, the path has wound k times round with probability proportional to phi(d + 2 pi k), and given
k it is a Brownian bridge on the line: that is the exact bridge. As v grows the law becomes uniform, `|2 pi p - 1| < 2.1 exp(-v/2)`.

What keeps this right to float32 is the short arc. `x_t - x_0` is rounded, and so is pi; at sigma = 0.001 an error of one unit in the
last place there is an error of 1 in the score near the antipode. So the difference is kept with its rounding error, and the distance to the
start and the distance to the antipode are each computed from the side on which they are small.

`wrap`, `corrupt`, `log_kernel`, `score` and `bridge` are the formulas, elementwise in radians; `process` makes a `Process` of them.
`interpolated_bridge` is a cheaper bridge, close to the exact one where sigma_t is small.

Source: Mardia and Jupp 2000, Directional Statistics, sec. 3.5.7 (wrapped normal); De Bortoli et al. 2022, arXiv:2202.02763, app. (heat
kernel of the torus); Jing et al. 2022, arXiv:2206.01729, sec. 3.1 (torsion angles).
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from diffjax import numerics, pairs
from diffjax.numerics import expand_right
from diffjax.processes.base import Process
from diffjax.schedules import Schedule

_CROSSOVER = 3.0  # the variance where images hand over to waves
_FLAT = 30.0  # a run of this variance leaves a law uniform to 6e-7
_WINDINGS = 7  # |k| <= 7 holds all but 1e-9 of the windings of a variance 2 * _FLAT
_TINY = 1e-6  # sigma below this counts as this: finer than float32 tells angles near pi apart

# 2 pi in two parts; k times the first (13 bits) is exact for |k| < 2048, also in float32.
_TURN = round(2 * math.pi * 2**10) / 2**10
_TURN_REST = -1.7817820413523073e-05
# pi beyond its float64 value, for the same reason.
_PI_REST = 1.2246467991473532e-16


def _pi(dtype) -> tuple[float, float, float]:
    """pi as a sum of three numbers of this dtype, each what the ones before it lack."""
    high = float(np.asarray(math.pi, dtype))
    middle = float(np.asarray((math.pi - high) + _PI_REST, dtype))
    return high, middle, ((math.pi - high) - middle) + _PI_REST


def _edge(dtype) -> float:
    """The largest number of this dtype below pi."""
    high = np.asarray(math.pi, dtype)
    return float(high if math.pi - float(high) > 0 else np.nextafter(high, np.asarray(0, dtype)))


@jax.custom_jvp
def _wrap(u):
    high, *_ = _pi(u.dtype)
    k = jnp.floor(u * (0.5 / math.pi) + 0.5)
    turned = jnp.clip((u - k * _TURN) - k * _TURN_REST, -_edge(u.dtype), _edge(u.dtype))
    return jnp.where((u >= -high) & (u < high), u, turned)


@_wrap.defjvp
def _wrap_jvp(primals, tangents):
    return wrap(*primals), tangents[0]  # slope 1 everywhere, also across the cut


def wrap(u: ArrayLike) -> Array:
    """The angle `u` modulo 2 pi, in [-pi, pi), of u's shape and dtype.

    Angles already there are returned as they are. The derivative is 1 everywhere: on the circle the cut is no place.

    Args:
      u: any shape, radians; exact to the last place up to 2,048 turns.

    Example:
      >>> print(wrap(jnp.array([0.5, 4.0, -jnp.pi, jnp.pi])).round(4))
      [ 0.5    -2.2832 -3.1416 -3.1416]
    """
    return _wrap(*numerics.upcast(u)).astype(jnp.result_type(u))


def _arc(x0: Array, xt: Array) -> tuple[Array, Array, Array]:
    """The short way from x0 to xt, in [-pi, pi], what rounding took from it, and pi less its length, each to full relative accuracy."""
    high, middle, low = _pi(xt.dtype)
    x0, xt = (jnp.where(jnp.abs(u) <= high, u, _wrap(u)) for u in (x0, xt))  # pi itself is left as exact as it came
    difference, lost = pairs.two_sum(xt, -x0)
    lost = jax.lax.stop_gradient(lost)
    side = jnp.where(difference >= 0, jnp.ones_like(difference), -jnp.ones_like(difference))
    # pi less the difference: the first two differences are exact where the two cancel, at the antipode.
    left = side * (((side * high - difference) + (side * middle - lost)) + side * low)
    direct = left >= 0
    arc, arc_lost = pairs.two_sum(
        jnp.where(direct, difference, difference - side * (2 * high)),
        jnp.where(direct, lost, lost - side * (2 * middle)),
    )
    return arc, jax.lax.stop_gradient(arc_lost), jnp.where(direct, left, -left)


def _size(arc: Array, left: Array) -> tuple[Array, Array, Array]:
    """The arc's sign, +1 at 0 so that sign^2 = 1 also in derivatives, its length, and what is left of pi, whose slope is minus the length's."""
    sign = jnp.where(arc >= 0, jnp.ones_like(arc), -jnp.ones_like(arc))
    length = sign * arc
    return sign, length, jax.lax.stop_gradient(left) + (jax.lax.stop_gradient(length) - length)


def _images(length: Array, left: Array, v: Array) -> tuple[Array, ...]:
    """The weights of the images k = 1, -1, 2, -2 relative to the nearest; none is above 1."""
    g = jnp.exp(-2 * math.pi**2 / v)  # at v's own shape
    e, f = jnp.exp(-2 * math.pi * left / v), jnp.exp(-2 * math.pi * length / v)
    return e, g * f, (g * e) ** 2, g**4 * f * f


def _waves(length: Array, sigma: Array) -> tuple[Array, Array]:
    """`2 sum_{n<=4} q^(n^2) cos(n d)` and `2 sum n q^(n^2) sin(n d)`, by Chebyshev's recursion from one cosine and one sine."""
    q1, q2, q3, q4 = (2 * jnp.exp(-0.5 * n * n * sigma * sigma) for n in (1, 2, 3, 4))  # at sigma's own shape
    c, s = jnp.cos(length), jnp.sin(length)
    u1 = 2 * c  # sin(n d) = s u_(n-1), cos(n d) = (u_n - u_(n-2)) / 2
    u2 = u1 * u1 - 1
    u3 = u1 * u2 - u1
    cosines = q1 * c + q2 * (u1 * c - 1) + q3 * c * (u2 - 2) + q4 * (1 - 2 * (s * u1) ** 2)
    return cosines, s * (q1 + 2 * q2 * u1 + 3 * q3 * u2 + 4 * q4 * u3)


def _aligned(x0: ArrayLike, xt: ArrayLike, *sigmas: ArrayLike) -> tuple[Array, ...]:
    numerics.check_same(x0=x0, xt=xt)
    start, end, *widths = numerics.upcast(x0, xt, *sigmas)
    for sigma in widths:
        numerics.check_batch(sigma, end, name="sigma")
    return start, end, *(expand_right(sigma, end) for sigma in widths)


# -------------------------------------------------------------------------------------------------------- formulas


def corrupt(key: Array, x0: Array, sigma: ArrayLike) -> Array:
    """A draw `x_t = wrap(x_0 + sigma eps)`, eps ~ N(0, 1), of x0's shape and dtype.

    Args:
      key: one key, or an array of keys `[*batch]`.
      x0: `[*batch, *event]`, radians.
      sigma: `[*batch]` or anything that broadcasts from the left, the standard deviation of the motion on the line, >= 0.

    Example:
      >>> x = corrupt(jax.random.key(0), jnp.full(1000, 3.0), 0.5)
      >>> bool((x >= -jnp.pi).all() and (x < jnp.pi).all())
      True
    """
    numerics.check_batch(sigma, x0, name="sigma")
    start, width = numerics.upcast(x0, sigma)
    return wrap(start + expand_right(width, x0) * numerics.normal(key, x0.shape, start.dtype)).astype(x0.dtype)


def log_kernel(x0: ArrayLike, xt: ArrayLike, sigma: ArrayLike) -> Array:
    """`log p(x_t | x_0)` of each entry after a run of standard deviation sigma, in nats against radians.

    Args:
      x0: `[*batch, *event]`, radians.
      xt: `[*batch, *event]`, radians.
      sigma: broadcasts from the left, >= 0; below 1e-6 it counts as 1e-6.

    Returns:
      `[*batch, *event]` of xt's dtype. Within 1e-6 `max(1, |log p|)` of the truth in float32. Its derivative in both
      angles is `score`; all derivatives, of any order and in sigma too, are those of the exact density.

    Source: Mardia and Jupp 2000, eq. 3.5.64-65.

    Example:
      >>> x = jnp.array([0.0, 3.0])
      >>> print(log_kernel(jnp.zeros(2), x, 0.5).round(4), log_kernel(jnp.zeros(2), x, 9.0).round(4))
      [ -0.2258 -18.197699] [-1.8378999 -1.8378999]
    """
    return _log_kernel(*_aligned(x0, xt, sigma)).astype(jnp.result_type(xt))


def _log_density(x0: Array, xt: Array, sigma: Array) -> Array:
    arc, lost, left = _arc(x0, xt)
    _, length, left = _size(arc, left)
    small, near, wide = _regimes(sigma)
    images = pairs.log_normal(arc, lost, near) + jnp.log1p(sum(_images(length, left, near**2)))
    waves, _ = _waves(length, wide)
    return jnp.where(small, images, jnp.log1p(waves) - math.log(2 * math.pi))


def _regimes(sigma: Array) -> tuple[Array, Array, Array]:
    """Whether images serve, and the sigmas for images and for waves: each is in its own range also where the other serves."""
    border = jnp.asarray(math.sqrt(_CROSSOVER), sigma.dtype)
    small = sigma < border
    near = jnp.where(small, sigma, border)
    return small, jnp.where(near < _TINY, jnp.asarray(_TINY, sigma.dtype), near), jnp.where(small, border, sigma)


@jax.custom_jvp
def _log_kernel(x0, xt, sigma):
    return _log_density(x0, xt, sigma)


@_log_kernel.defjvp
def _log_kernel_jvp(primals, tangents):
    # The score has a form that stays exact near the antipode, which autodiff would not find; the rest is autodiff's.
    (x0, xt, sigma), (dx0, dxt, dsigma) = primals, tangents
    along = score(x0, xt, sigma) * (dxt - dx0)
    across = jax.jvp(lambda w: _log_density(x0, xt, w), (sigma,), (dsigma,))[1]
    return log_kernel(x0, xt, sigma), along + across


def score(x0: ArrayLike, xt: ArrayLike, sigma: ArrayLike) -> Array:
    """The gradient of `log_kernel` in x_t, per radian.

    Args:
      x0: `[*batch, *event]`, radians.
      xt: `[*batch, *event]`, radians.
      sigma: broadcasts from the left, >= 0; below 1e-6 it counts as 1e-6. At 0 there is no density and 0 is returned.

    Returns:
      `[*batch, *event]` of xt's dtype: `-d / sigma^2` near the start, 0 at the start and at the antipode.

    Example:
      >>> print(score(jnp.zeros(3), jnp.array([0.5, 3.0, -3.0]), 0.5).round(3))
      [ -2.       -11.304001  11.304001]
    """
    start, end, width = _aligned(x0, xt, sigma)
    arc, _, left = _arc(start, end)
    sign, length, left = _size(arc, left)
    small, near, wide = _regimes(width)

    e, f, e2, f2 = _images(length, left, near**2)
    total = 1 + e + f + e2 + f2
    # v times the score, from the start's side and, the images paired about the antipode, from the antipode's.
    from_start = length * total - 2 * math.pi * (e - f + 2 * (e2 - f2))
    # 1 - e without cancellation; its slope is taken of e, since expm1's own derivative, expm1 + 1, would cancel.
    rest = jax.lax.stop_gradient(-jnp.expm1(-2 * math.pi * left / near**2)) + (jax.lax.stop_gradient(e) - e)
    from_antipode = math.pi * (rest + 3 * (f - e2) + 5 * f2) - left * total
    images = jnp.where(left > math.pi / 2, from_start, from_antipode) / total / near / near

    cosines, sines = _waves(length, wide)
    waves = sines / (1 + cosines)
    value = -sign * jnp.where(small, images, waves)
    return jnp.where(width == 0, jnp.zeros_like(value), value).astype(jnp.result_type(xt))


def _legs(sigma_s: Array, sigma_t: Array) -> tuple[Array, Array]:
    """The variances run over [0, s] and [s, t], cut at `_FLAT`, beyond which a leg forgets its start."""
    rest = jnp.maximum(sigma_t - sigma_s, jnp.zeros_like(sigma_t)) * (sigma_t + sigma_s)  # no cancellation of squares
    flat = jnp.asarray(_FLAT, sigma_t.dtype)
    return jnp.minimum(sigma_s * sigma_s, flat), jnp.minimum(rest, flat)


def bridge(key: Array, x0: Array, xt: Array, sigma_s: ArrayLike, sigma_t: ArrayLike) -> Array:
    """An exact draw of x_s given both ends, the motion having run sigma_s at s and sigma_t at t.

    With a and b the variances of the legs [0, s] and [s, t], and d the short way from x_0 to x_t: the path winds k times more with
    probability proportional to `exp(-(d + 2 pi k)^2 / 2(a + b))`, and then

        x_s = wrap(x_0 + a/(a+b) (d + 2 pi k) + sqrt(ab/(a+b)) eps).

    Each leg is cut at variance 30, by which it has forgotten where it began (to 6e-7), so that 15 windings serve any sigma.

    Args:
      key: one key, or an array of keys `[*batch]`.
      x0: `[*batch, *event]`, radians.
      xt: `[*batch, *event]`, radians.
      sigma_s: broadcasts from the left, 0 <= sigma_s <= sigma_t.
      sigma_t: likewise.

    Returns:
      `[*batch, *event]` in [-pi, pi), of xt's dtype: x0 at sigma_s = 0, xt at sigma_s = sigma_t > 0.

    Source: the mixture over windings is Bayes' rule on the line's images; Diffusions.jl (Murrell group) has it with 13 images.

    Example:
      >>> x = bridge(jax.random.key(0), jnp.full(4, 3.0), jnp.full(4, -3.0), 0.1, 0.2)
      >>> bool((jnp.abs(x) > 2.5).all())  # across the cut, not through 0
      True
    """
    start, end, low, high = _aligned(x0, xt, sigma_s, sigma_t)
    a, b = _legs(low, high)
    arc, _, left = _arc(start, end)
    sign, length, left = _size(arc, left)
    key_k, key_eps = numerics.split(key)

    # Weights relative to k = 0. Where a + b = 0 there is one end, and any of the exponents will do.
    length, left, v = jax.lax.stop_gradient((length, left, jnp.maximum(a + b, jnp.asarray(_TINY**2, a.dtype))))
    ahead = [jnp.exp(-2 * math.pi * k * (math.pi * k + length) / v) for k in range(1, _WINDINGS + 1)]
    behind = [jnp.exp(-2 * math.pi * k * (math.pi * (k - 1) + left) / v) for k in range(1, _WINDINGS + 1)]
    weights = [*behind[::-1], jnp.ones_like(length), *ahead]
    goal = numerics.uniform(key_k, xt.shape, start.dtype) * sum(weights)
    passed, count = jnp.zeros_like(goal), jnp.zeros_like(goal)
    for w in weights:  # inverse CDF without a new axis, so that memory does not grow
        passed = passed + w
        count = count + (passed <= goal).astype(goal.dtype)
    way = arc + sign * (2 * math.pi * (count - _WINDINGS))
    return _between(key_eps, start, end, way, a, b).astype(xt.dtype)


def _between(key: Array, x0: Array, xt: Array, way: Array, a: Array, b: Array) -> Array:
    """A draw of the Brownian bridge that goes `way` from x0, wrapped."""
    before, after = numerics.safe_divide(a, a + b), numerics.safe_divide(b, a + b)
    std = numerics.safe_sqrt(before * b)
    # From the nearer end, so that each end is met exactly.
    center = jnp.where(before <= after, x0 + before * way, xt - after * way)
    return wrap(center + std * numerics.normal(key, xt.shape, xt.dtype))


def interpolated_bridge(key: Array, x0: Array, xt: Array, sigma_s: ArrayLike, sigma_t: ArrayLike) -> Array:
    """A draw of x_s from an approximate bridge: a free path's point at s, moved by its share of the short way from the path's end to x_t.

    By Matheron's rule this is a Brownian bridge to an image of x_t: the winding alone is off, an image being chosen with the mass
    of N(x_0, sigma_t^2) within pi of it instead of its density at it. No sum over images. Between ends a quarter turn apart it is 5e-4 from the exact law in total
    variation at sigma_t = 0.5, but 0.06 at 1 and 0.09 at 2.

    Args:
      key: one key, or an array of keys `[*batch]`.
      x0: `[*batch, *event]`, radians.
      xt: `[*batch, *event]`, radians.
      sigma_s: broadcasts from the left, 0 <= sigma_s <= sigma_t.
      sigma_t: likewise.

    Returns:
      `[*batch, *event]` in [-pi, pi), of xt's dtype.

    Source: Diffusions.jl (Murrell group), WrappedInterpolatedBrownianDiffusion.

    Example:
      >>> print(interpolated_bridge(jax.random.key(0), jnp.zeros(2), jnp.ones(2), 1.0, 1.0))
      [1. 1.]
    """
    start, end, low, high = _aligned(x0, xt, sigma_s, sigma_t)
    a, b = low * low, jnp.maximum(high - low, jnp.zeros_like(high)) * (high + low)
    key_end, key_eps = numerics.split(key)
    reached = start + high * numerics.normal(key_end, xt.shape, end.dtype)  # the free path at t
    way = (reached - start) + wrap(end - reached)
    return _between(key_eps, start, end, way, a, b).astype(xt.dtype)


# --------------------------------------------------------------------------------------------------------- process


def process(schedule: Schedule, *, bridge=bridge) -> Process:
    """Wrapped Brownian motion on angles, of any shape, its standard deviation `sigma(t)` from a schedule.

    Args:
      schedule: `t -> (alpha, sigma)`; alpha is not used. `sigma(1) >= 4` makes the uniform prior right to 7e-4 of its density
        (`2.1 exp(-sigma(1)^2 / 2)`), e.g. `schedules.ve(0.01, 5.0)`.
      bridge: `bridge`, or `interpolated_bridge`, or another function of their signature.

    Returns:
      a `Process` with the uniform prior, all capabilities but `posterior_logits`. Data are radians.

    Example:
      >>> from diffjax import schedules
      >>> p = process(schedules.ve(0.01, 5.0))
      >>> x0, t = jnp.ones((4, 2)), jnp.array([0.0, 0.2, 0.5, 1.0])
      >>> xt = p.corrupt(jax.random.key(0), x0, t)
      >>> p.log_prob(x0, xt, t).shape, p.score(x0, xt, t).shape
      ((4,), (4, 2))
    """

    def sigma(t, x):
        return expand_right(schedule(t)[1].astype(numerics.compute_dtype(x)), x)

    def prior(key, like):
        dtype = numerics.compute_dtype(like)
        return wrap(2 * math.pi * numerics.uniform(key, like.shape, dtype)).astype(like.dtype)

    def log_prob(x0, xt, t):
        start, end = numerics.upcast(x0, xt)
        return numerics.sum_event(log_kernel(start, end, sigma(t, xt)), t)

    return Process(
        prior=prior,
        corrupt=lambda key, x0, t: corrupt(key, x0, sigma(t, x0)),
        bridge=lambda key, x0, xt, s, t: bridge(key, x0, xt, sigma(s, xt), sigma(t, xt)),
        log_prob=log_prob,
        score=lambda x0, xt, t: score(x0, xt, sigma(t, xt)),
    )
