"""The box [0, 1]^d: Brownian motion between mirrors, each entry on its own.

On the line the motion is `x_0 + sigma eps`. Mirrors at 0 and 1 fold the line into the box, `fold(u) = |u - 2 round(u/2)|`, so

    x_t = fold(x_0 + sigma eps),        p(x_t | x_0) = sum over all u that fold to x_t of phi_sigma(u - x_0),

with no mass lost and none piled up at the walls, where clipping would put it. As sigma grows the law becomes uniform:
`|p - 1| < 2.1 exp(-pi^2 sigma^2 / 2)`, which is 1.5e-2 at sigma = 1, 6e-9 at 2. So a schedule should end at sigma(1) >= 2.

The places that fold to x_t are its mirror images, one in each cell of length 1: `j + x_t` in even cells, `j + 1 - x_t` in odd ones. Both ends
given, the path on the line went to one of them, with probability proportional to phi_sigma(image - x_0), and given which it is a Brownian bridge
to there, folded: that is the exact bridge.

`fold`, `corrupt`, `log_kernel`, `score` and `bridge` are the formulas, elementwise; `process` makes a `Process` of them. `scaled_score` gives a
network's output the size of a score. `image_log_kernel` and `harmonic_log_kernel` are the two series of the density with a number of terms of your choice. How the density and its slopes stay right
to float32 in all tails is told in `cube_kernel`.

Source: Lou and Ermon 2023, Reflected Diffusion Models, arXiv:2304.04740, sec. 3-4; the exact bridge is derived here.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from diffjax import numerics
from diffjax.numerics import expand_right
from diffjax.processes import cube_kernel
from diffjax.processes.base import Process
from diffjax.schedules import Schedule

_FLAT = 4.0  # a run of this variance leaves a law uniform to 6e-9
_CAP = 3.0  # and one of this standard deviation to 1e-19: larger sigmas count as this, and lose no digits in folding
_MIRRORS = 5  # images at up to 5 double cells to either side hold all but 4e-8 of a variance _FLAT

# ------------------------------------------------------------------------------------------------------ at the door


def _check_sigmas(**sigmas: ArrayLike) -> None:
    for name, sigma in sigmas.items():
        if isinstance(sigma, (int, float)) and not sigma >= 0:
            raise ValueError(f"expected a standard deviation {name} >= 0, got {name}={sigma}")


def _flat(x: ArrayLike, shape: tuple[int, ...], lead: int) -> Array:
    """`x` broadcast to `shape` with the first `lead` axes merged, and the others: elementwise loops then run over a long last axis."""
    return jnp.broadcast_to(x, shape).reshape(math.prod(shape[:lead]), math.prod(shape[lead:]))


def _aligned(x0: ArrayLike, xt: ArrayLike, *sigmas: ArrayLike) -> tuple[tuple[int, ...], list[Array]]:
    """The common shape, and `x0, xt` `[m, n]` and `sigmas` `[m, 1]` in one precision; what depends on sigma alone costs m, not m n."""
    start, end, *widths = numerics.upcast(x0, xt, *sigmas)
    shape = jnp.broadcast_shapes(start.shape, end.shape)
    lead = max((w.ndim for w in widths), default=0)
    for w in widths:
        numerics.check_batch(w, jax.ShapeDtypeStruct(shape, w.dtype), name="sigma")
    like = jax.ShapeDtypeStruct(shape[:lead], end.dtype)
    return shape, [
        *(_flat(x, shape, lead) for x in (start, end)),
        *(_flat(expand_right(w, like), shape[:lead], lead) for w in widths),
    ]


def _floored(sigma: Array) -> Array:
    return jnp.maximum(sigma, jnp.full_like(sigma, 8 * float(jnp.finfo(sigma.dtype).eps)))


def _dtype(x: ArrayLike) -> Any:
    dtype = jnp.result_type(x)
    return dtype if jnp.issubdtype(dtype, jnp.floating) else numerics.compute_dtype(x)


# -------------------------------------------------------------------------------------------------------- formulas


def fold(u: ArrayLike) -> Array:
    """The point of [0, 1] that `u` on the line folds to, `|u - 2 round(u/2)|`, of u's shape and dtype.

    The derivative is +1 or -1, and +1 on [0, 1], both ends included.

    Example:
      >>> print(fold(jnp.array([0.25, 1.25, -0.25, 7.5])))
      [0.25 0.75 0.25 0.5 ]
    """
    (v,) = numerics.upcast(u)
    v = v - 2 * jnp.round(v / 2)
    return jnp.where(v < 0, -v, v).astype(_dtype(u))


def corrupt(key: Array, x0: Array, sigma: ArrayLike) -> Array:
    """A draw `x_t = fold(x_0 + sigma eps)`, eps ~ N(0, 1), of x0's shape and dtype.

    Args:
      key: one key, or an array of keys `[*batch]`.
      x0: `[*batch, *event]` in [0, 1].
      sigma: `[*batch]` or anything that broadcasts from the left, the standard deviation of the motion on the line, >= 0.

    Example:
      >>> x = corrupt(jax.random.key(0), jnp.full(1000, 0.9), 0.5)
      >>> bool((x >= 0).all() and (x <= 1).all())
      True
    """
    _check_sigmas(sigma=sigma)
    numerics.check_batch(sigma, x0, name="sigma")
    start, width = numerics.upcast(x0, sigma)
    width = expand_right(jnp.minimum(width, jnp.full_like(width, _CAP)), x0)
    return fold(start + width * numerics.normal(key, x0.shape, start.dtype)).astype(x0.dtype)


def log_kernel(x0: ArrayLike, xt: ArrayLike, sigma: ArrayLike) -> Array:
    """`log p(x_t | x_0)` of each entry after a run of standard deviation sigma, in nats.

    Args:
      x0: `[*batch, *event]` in [0, 1]; a scalar serves all.
      xt: `[*batch, *event]` in [0, 1]: `fold` first what may lie outside.
      sigma: broadcasts from the left, >= 0. Below 8 machine epsilons (1e-6 in float32), where neighbouring numbers lie farther apart than sigma, it
        counts as that: at 0 the value is finite, and the derivative in sigma is 0.

    Returns:
      `[*batch, *event]` of xt's dtype. In float32 within 1e-6 `max(1, |log p|)` of the truth, in all tails. Its derivatives in x0, xt and
      sigma have forms of their own, of the same accuracy; the density is symmetric, so that the derivative in x0 is
      `score(xt, x0, sigma)`.

    Source: Lou and Ermon 2023, arXiv:2304.04740, eq. 15-17 (the two series).

    Example:
      >>> print(log_kernel(0.2, jnp.array([0.2, 0.9]), 0.1).round(4), log_kernel(0.2, jnp.array([0.2, 0.9]), 5.0).round(4))
      [  1.384  -23.1164] [0. 0.]
    """
    _check_sigmas(sigma=sigma)
    shape, (start, end, width) = _aligned(x0, xt, sigma)
    return _log_kernel(start, end, _floored(width)).reshape(shape).astype(_dtype(xt))


def score(x0: ArrayLike, xt: ArrayLike, sigma: ArrayLike) -> Array:
    """The derivative of `log_kernel` in x_t, entry by entry.

    Args:
      x0: `[*batch, *event]` in [0, 1]; a scalar serves all.
      xt: `[*batch, *event]` in [0, 1].
      sigma: broadcasts from the left, >= 0, with the floor of `log_kernel`. At 0 there is no density and 0 is returned.

    Returns:
      `[*batch, *event]` of xt's dtype: `(x0 - xt) / sigma^2` far from the walls, 0 at the walls. In float32 within 1e-6 `max(1, |sigma score|)` of
      the truth, sigma times the score, in all tails. Its derivatives (the divergence in a likelihood) have forms of their own.

    Example:
      >>> print(score(0.5, jnp.array([0.0, 0.4, 0.9]), 0.1).round(1))
      [  0.  10. -40.]
    """
    _check_sigmas(sigma=sigma)
    shape, (start, end, width) = _aligned(x0, xt, sigma)
    value = _score(start, end, _floored(width))
    return jnp.where(width == 0, jnp.zeros_like(value), value).reshape(shape).astype(_dtype(xt))


def scaled_score(output: Array, xt: Array, sigma: ArrayLike, *, walls: bool = False) -> Array:
    """The score that a network's raw `output` of order 1 stands for, `output / sigma`; with `walls` times a factor that is 0 at the walls,

        m(x) = tanh(sin(pi x) / (pi sigma)) / tanh(1 / (pi sigma)).

    Seen on the line, the density of noisy data is even about each wall, whatever the data: so the score is odd about it, and smooth, and
    vanishes there like the distance to it. For little noise m is tanh(distance / sigma), the profile of data at a distance sigma, and 1 a few
    sigma inside; for much noise it is sin(pi x), the profile of the last harmonic to fade, `q cos(pi x) cos(pi x0)`.

    Args:
      output: `[*batch, *event]`, of order 1 at all noise levels.
      xt: `[*batch, *event]` in [0, 1]; read with `walls` alone.
      sigma: `[*batch]` or anything that broadcasts from the left, with the floor of `log_kernel`.
      walls: whether to hold the score at 0 at the walls, where data lie between walls and not at them alone.

    Returns:
      `[*batch, *event]` of xt's dtype.

    Source: 1 / sigma: Song and Ermon 2020, arXiv:2006.09011, technique 3; a score that is 0 at the walls: Fishman et al. 2023, arXiv:2304.05364, who
      multiply by the distance, cut off at a constant; this profile is derived here.

    Example:
      >>> print(scaled_score(jnp.ones(4), jnp.array([0.0, 0.1, 0.5, 1.0]), 0.1, walls=True).round(1))
      [ 0.   7.6 10.   0. ]
    """
    _check_sigmas(sigma=sigma)
    numerics.check_same(output=output, xt=xt)
    raw, x, width = numerics.upcast(output, xt, sigma)
    width = _floored(expand_right(width, x))
    if walls:
        # From the nearer wall, so that the sine is exactly 0 at both.
        sine, reach = jnp.sin(math.pi * jnp.minimum(x, 1 - x)), math.pi * width
        raw = raw * jnp.tanh(sine / reach) / jnp.tanh(1 / reach)
    return (raw / width).astype(_dtype(xt))


def image_log_kernel(x0: ArrayLike, xt: ArrayLike, sigma: ArrayLike, terms: int = 4) -> Array:
    """`log p(x_t | x_0)` from its first `terms` images alone: exact for small sigma, as `log_kernel` is, and too low for large.

    Args:
      x0: `[*batch, *event]` in [0, 1].
      xt: `[*batch, *event]` in [0, 1].
      sigma: broadcasts from the left, > 0.
      terms: number of images, >= 1, in order of their cells from the nearest outwards.

    Returns:
      `[*batch, *event]`, nats, of xt's dtype.

    Example:
      >>> print([round(float(image_log_kernel(0.2, 0.9, 2.0, terms)), 3) for terms in (1, 4, 16)])
      [-1.673, -0.355, -0.0]
    """
    return _series(cube_kernel.image_series, x0, xt, sigma, terms)


def harmonic_log_kernel(x0: ArrayLike, xt: ArrayLike, sigma: ArrayLike, terms: int = 5) -> Array:
    """`log p(x_t | x_0)` from its first `terms` cosine waves alone: exact for large sigma; for small, -inf where the waves sum below 0.

    Args:
      x0: `[*batch, *event]` in [0, 1].
      xt: `[*batch, *event]` in [0, 1].
      sigma: broadcasts from the left, > 0.
      terms: number of waves, >= 1, beside the constant 1.

    Returns:
      `[*batch, *event]`, nats, of xt's dtype.

    Example:
      >>> print([round(float(harmonic_log_kernel(0.2, 0.9, sigma, 2)), 4) for sigma in (1.0, 0.1)])
      [-0.0111, -inf]
    """
    return _series(cube_kernel.harmonic_series, x0, xt, sigma, terms)


def _series(series: Any, x0: ArrayLike, xt: ArrayLike, sigma: ArrayLike, terms: int) -> Array:
    if terms < 1:
        raise ValueError(f"expected at least one term, got {terms=}")
    _check_sigmas(sigma=sigma)
    shape, (start, end, width) = _aligned(x0, xt, sigma)
    return series(start, end, _floored(width), terms).reshape(shape).astype(_dtype(xt))


# ------------------------------------------------------------------------------------------------- derivative rules
#
# The primal of each rule is the function with the rule, never the bare formula: second and third derivatives then take
# the rules too. Slopes that nobody asked for (symbolic zeros) are not computed.


@jax.custom_jvp
def _log_kernel(x0, xt, sigma):
    return cube_kernel.log_density(x0, xt, sigma)


@jax.custom_jvp
def _score(x0, xt, sigma):
    return cube_kernel.slope(x0, xt, sigma)


@jax.custom_jvp
def _sigma_slope(x0, xt, sigma):
    return cube_kernel.sigma_slope(x0, xt, sigma)


@functools.partial(_log_kernel.defjvp, symbolic_zeros=True)
def _log_kernel_jvp(primals, tangents):
    x0, xt, sigma = primals
    slopes = (
        lambda: _score(xt, x0, sigma),
        lambda: _score(x0, xt, sigma),
        lambda: _sigma_slope(x0, xt, sigma),
    )
    return _log_kernel(*primals), _along(xt, slopes, tangents)


@functools.partial(_score.defjvp, symbolic_zeros=True)
def _score_jvp(primals, tangents):
    in_xt, in_x0, in_sigma = cube_kernel.curvatures(*primals)
    return _score(*primals), _along(primals[1], (lambda: in_x0, lambda: in_xt, lambda: in_sigma), tangents)


@functools.partial(_sigma_slope.defjvp, symbolic_zeros=True)
def _sigma_slope_jvp(primals, tangents):
    x0, xt, sigma = primals
    slopes = (
        lambda: cube_kernel.curvatures(xt, x0, sigma)[2],
        lambda: cube_kernel.curvatures(x0, xt, sigma)[2],
        lambda: jax.jvp(lambda w: cube_kernel.sigma_slope(x0, xt, w), (sigma,), (jnp.ones_like(sigma),))[1],
    )
    return _sigma_slope(*primals), _along(xt, slopes, tangents)


def _along(like, slopes, tangents):
    rows = zip(slopes, tangents, strict=True)
    return sum((f() * d for f, d in rows if not isinstance(d, SymbolicZero)), jnp.zeros_like(like))


# ----------------------------------------------------------------------------------------------------------- bridge


def _legs(sigma_s: Array, sigma_t: Array) -> tuple[Array, Array, Array, Array]:
    """The variance run freely, the shares of the bridge before and after s, and the variance of the bridge's whole.

    At most `_FLAT` of the variance before t matters: what went before is a free run, for x_t has forgotten where that ended.
    """
    whole, before = sigma_t * sigma_t, sigma_s * sigma_s
    rest = jnp.maximum(sigma_t - sigma_s, jnp.zeros_like(whole)) * (sigma_t + sigma_s)  # no difference of squares
    flat = jnp.full_like(whole, _FLAT)
    bridged = jnp.where(whole <= flat, before, jnp.maximum(flat - rest, jnp.zeros_like(whole)))
    span = jnp.minimum(whole, flat)
    free = jnp.clip(before - bridged, 0, _CAP**2)
    return free, numerics.safe_divide(bridged, span), numerics.safe_divide(jnp.minimum(rest, span), span), span


def _way(u: Array, x0: Array, xt: Array, span: Array) -> tuple[Array, Array]:
    """The way on the line from x0 to one of xt's images, chosen with weight phi_span by `u` ~ U[0, 1), and its cell's parity +-1.

    Images come in two combs of spacing 2: `xt - x0 + 2m`, and `-xt - x0 + 2m`, mirrored. In each the weights fall from the tooth
    nearest to 0 outwards, in ratios that fall by a constant factor, all at most 1: five exponentials serve 22 images.
    """
    v = jnp.maximum(span, jnp.full_like(span, 1e-30))
    low = xt + x0 < 1
    combs = [
        (jnp.ones_like(xt), xt - x0),
        (
            jnp.exp(-2 / v * jnp.where(low, x0 * xt, (1 - x0) * (1 - xt))),
            jnp.where(low, -(xt + x0), (1 - xt) + (1 - x0)),
        ),
    ]
    fall = jnp.exp(-4 / v)  # of sigma's shape
    teeth = []  # (weight, way), the first comb first
    for weight, way in combs:
        out = jnp.where(way < 0, -jnp.ones_like(way), jnp.ones_like(way))
        teeth.append((weight, way))
        for side in (-1, 1):
            ratio, w = jnp.exp(-2 / v * (1 + side * out * way)), weight
            for m in range(1, _MIRRORS + 1):
                w = w * ratio
                ratio = ratio * fall
                teeth.append((w, way + 2 * m * side * out))
    goal = u * sum((w for w, _ in teeth), jnp.zeros_like(u))
    passed, chosen, parity = jnp.zeros_like(u), teeth[0][1], jnp.ones_like(u)
    for i, (w, way) in enumerate(teeth):  # inverse CDF without a new axis, so that memory does not grow
        reached = goal >= passed
        chosen = jnp.where(reached, way, chosen)
        if i == len(teeth) // 2:
            parity = jnp.where(reached, -parity, parity)
        passed = passed + w
    return chosen, parity


def bridge(key: Array, x0: Array, xt: Array, sigma_s: ArrayLike, sigma_t: ArrayLike) -> Array:
    """An exact draw of x_s given both ends, the motion having run sigma_s at s and sigma_t at t, of xt's shape and dtype.

    Unfold, choose an image u of x_t with weight `phi(u - x_0)`, and fold the Brownian bridge back:

        x_s = fold(x_0 + f (u - x_0) + sigma_t sqrt(f (1 - f)) eps),        f = sigma_s^2 / sigma_t^2.

    Where sigma_t^2 > 4 the path first runs freely until 4 are left, for x_t is blind to all before (to 6e-9): so 22 images serve any sigma.

    Args:
      key: one key, or an array of keys `[*batch]`.
      x0: `[*batch, *event]`. What lies outside [0, 1], as a network's guess may, is folded in.
      xt: `[*batch, *event]` in [0, 1].
      sigma_s: broadcasts from the left, 0 <= sigma_s <= sigma_t.
      sigma_t: likewise.

    Returns:
      `[*batch, *event]` in [0, 1], of xt's dtype: x0 at sigma_s = 0, xt at sigma_s = sigma_t.

    Raises:
      ValueError: x0 and xt differ in shape, sigmas do not lead it, or Python numbers sigma_s > sigma_t.

    Example:
      >>> x = bridge(jax.random.key(0), jnp.full(4, 0.1), jnp.full(4, 0.2), 0.0, 0.5)
      >>> print(x, bridge(jax.random.key(0), x, jnp.full(4, 0.2), 0.5, 0.5))
      [0.1 0.1 0.1 0.1] [0.2 0.2 0.2 0.2]
    """
    _check_sigmas(sigma_s=sigma_s, sigma_t=sigma_t)
    if isinstance(sigma_s, (int, float)) and isinstance(sigma_t, (int, float)) and sigma_s > sigma_t:
        raise ValueError(f"the bridge goes back in time: expected sigma_s <= sigma_t, got {sigma_s=}, {sigma_t=}")
    numerics.check_same(x0=x0, xt=xt)
    shape, (start, end, low, high) = _aligned(x0, xt, sigma_s, sigma_t)
    key_free, key_image, key_eps = numerics.split(key, 3)
    free_eps, eps = (numerics.normal(k, shape, start.dtype).reshape(start.shape) for k in (key_free, key_eps))
    u = numerics.uniform(key_image, shape, start.dtype).reshape(start.shape)
    return cube_kernel.halved(_between, start, end, low, high, u, free_eps, eps).reshape(shape).astype(xt.dtype)


@jax.jit
def _between(x0: Array, xt: Array, sigma_s: Array, sigma_t: Array, u: Array, free_eps: Array, eps: Array) -> Array:
    free, before, after, span = _legs(sigma_s, sigma_t)
    x0 = fold(x0 + numerics.safe_sqrt(free) * free_eps)
    way, parity = _way(u, x0, xt, span)
    # From the nearer end, so that each end is met exactly.
    center = jnp.where(after > before, x0 + before * way, xt - parity * after * way)
    return fold(center + numerics.safe_sqrt(span * before * after) * eps)


# --------------------------------------------------------------------------------------------------------- process


def process(schedule: Schedule) -> Process:
    """Reflected Brownian motion on [0, 1]^d under a schedule, whose sigma is the standard deviation of the motion; alpha is not read.

    Data of any shape, in [0, 1]; entries are independent, so times may be given per entry too.

    Args:
      schedule: `t -> (alpha, sigma)`. The prior is uniform: let sigma(1) be 2 or more, as in `schedules.ve(0.01, 3.0)`.

    Returns:
      a `Process` with all capabilities but `posterior_logits`. `log_prob` is against Lebesgue measure, nats.

    Source: Lou and Ermon 2023, arXiv:2304.04740, sec. 3.

    Example:
      >>> from diffjax import schedules
      >>> p = process(schedules.ve(0.01, 3.0))
      >>> x0 = jnp.full((2, 5), 0.9)
      >>> xt = p.corrupt(jax.random.key(0), x0, jnp.array([0.0, 1.0]))
      >>> print(p.log_prob(x0, xt, jnp.ones(2)).round(4))
      [0. 0.]
    """

    def sigma(t, like):
        numerics.check_batch(t, like)
        return schedule(t)[1].astype(numerics.compute_dtype(like))

    def log_prob(x0, xt, t):
        start, end = numerics.upcast(x0, xt)
        return numerics.sum_event(log_kernel(start, end, sigma(t, end)), t)

    def prior(key, like):
        return numerics.uniform(key, like.shape, numerics.compute_dtype(like)).astype(like.dtype)

    return Process(
        prior=prior,
        corrupt=lambda key, x0, t: corrupt(key, x0, sigma(t, x0)),
        bridge=lambda key, x0, xt, s, t: bridge(key, x0, xt, sigma(s, xt), sigma(t, xt)),
        log_prob=log_prob,
        score=lambda x0, xt, t: score(x0, xt, sigma(t, xt)),
    )
