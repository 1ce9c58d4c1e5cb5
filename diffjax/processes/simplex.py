"""Probability vectors: the simplex of d + 1 entries, through the box [0, 1]^d or through the ordered chamber.

*Through the box.* Break a stick of length 1 into p_1, p_2, ..; before break i the length `r_(i-1) = p_i + .. + p_(d+1)` is left, and the
break keeps the share r_i / r_(i-1). Under the uniform law on the simplex the shares are independent, share i with the distribution function
x^k, k = d - i + 1. So

    u_i = (r_i / r_(i-1))^(d - i + 1),        |du / dp| = d!        (the powers telescope)

maps the simplex onto the box with a constant Jacobian, uniform to uniform, and all of `cube` carries over: density, score and bridge.
(The shares themselves would not do: from a uniform box they make vectors of whose 1,000 entries nine in ten underflow.)

*Through the chamber.* d ordered points `0 <= x_1 <= .. <= x_d <= 1` have d + 1 gaps, a probability vector: an affine map. Points that run in
the box and are sorted again run in the chamber and are reflected by its walls, so `chamber_fold(x_0 + sigma eps)` is exact noising there. Its
density is a sum over the d! orders of the points; so this comes as maps, and not as a `Process`.

Which one? The box has density, score and bridge, but it stretches: an entry that takes the share b of what is left has `u = (1 - b)^k`, so that noise
sigma on u is felt as soon as b > -log(sigma) / k, and beyond b > 87 / k float32 knows u as 0 only. Vectors near the uniform one fit at any size
(d = 4096: there and back to 2e-6 of each entry and of 0.1 / d), vectors near a corner only if they are short. The chamber keeps every vector, each
entry to 1e-7 of the whole.

Source: Connor and Mosimann 1969, J. Am. Stat. Assoc. 64, sec. 2 (independent shares, Beta(1, k) breaks under the uniform law); Lou and Ermon 2023,
arXiv:2304.04740, sec. 5 (the simplex through the box). The constant Jacobian is derived here.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from diffjax import numerics
from diffjax.processes import cube
from diffjax.processes.base import Process, require
from diffjax.schedules import Schedule

# ------------------------------------------------------------------------------------------------- through the box


def _check_last(x: Any, least: int, what: str) -> None:
    if not x.shape or x.shape[-1] < least:
        raise ValueError(f"expected {what} on the last axis, {least} or more, got {x.shape=}")


def _powers(d: int, like: Array) -> Array:
    """k = d - i + 1, broadcast."""
    return jnp.broadcast_to(jnp.arange(d, 0, -1, dtype=like.dtype), (*like.shape[:-1], d))


def _log_kept(q: Array) -> Array:
    """`log(r_i / r_(i-1))` `[..., d]` of probabilities `[..., d + 1]`, -inf where entry i takes all; an equal split where nothing is left."""
    left = jnp.flip(jnp.cumsum(jnp.flip(q, -1), -1), -1)  # r_(i-1), a sum of positives and not 1 minus one
    before, after = left[..., :-1], left[..., 1:]
    k = _powers(q.shape[-1] - 1, left[..., :-1])
    # Numbers are selected before they are divided or logged, so that gradients are finite.
    empty = before == 0
    before = jnp.where(empty, k + 1, before)
    broken, kept = jnp.where(empty, jnp.ones_like(k), q[..., :-1]) / before, jnp.where(empty, k, after) / before
    small, none, half = broken < 0.5, kept == 0, jnp.full_like(k, 0.5)
    log_few, log_many = jnp.log(jnp.where(small | none, half, kept)), jnp.log1p(-jnp.where(small, broken, half))
    return jnp.where(none, jnp.full_like(k, -jnp.inf), jnp.where(small, log_many, log_few))


def _from_log_kept(log_kept: Array) -> Array:
    start = jnp.ones_like(log_kept[..., :1])
    left = jnp.concatenate([start, jnp.exp(jnp.cumsum(log_kept, -1))], -1)
    return left * jnp.concatenate([-jnp.expm1(log_kept), start], -1)


def _log_kept_of_cube(u: Array) -> Array:
    none = u == 0
    log_u = jnp.where(none, jnp.full_like(u, -jnp.inf), jnp.log(jnp.where(none, jnp.ones_like(u), u)))
    return log_u / _powers(u.shape[-1], u)


def to_cube(p: Array) -> Array:
    """The point `u` of the box, `u_i = (r_i / r_(i-1))^(d-i+1)`, of a probability vector p.

    Args:
      p: `[..., d + 1]`, >= 0, each vector of a sum > 0. Only ratios count, so that rounding in the sum does no harm.

    Returns:
      `[..., d]` in [0, 1], of p's dtype. Where nothing is left to share (r_(i-1) = 0), the point of an equal split.

    Raises:
      ValueError: fewer than two entries.

    Example:
      >>> print(to_cube(jnp.array([[0.25, 0.25, 0.5], [0.0, 1.0, 0.0]])).round(4))
      [[0.5625 0.6667]
       [1.     0.    ]]
    """
    _check_last(p, 2, "probabilities")
    (q,) = numerics.upcast(p)
    log_kept = _log_kept(q)
    return jnp.exp(_powers(log_kept.shape[-1], log_kept) * log_kept).astype(p.dtype)


def from_cube(u: Array) -> Array:
    """The probability vector `p` of a point u of the box, the inverse of `to_cube`.

    Args:
      u: `[..., d]` in [0, 1].

    Returns:
      `[..., d + 1]` of u's dtype, >= 0, of sum 1 up to rounding. Where u_i = 0, entry i takes all that is left.

    Raises:
      ValueError: a scalar.

    Example:
      >>> print(from_cube(jnp.array([0.5625, 2 / 3])).round(4))
      [0.25 0.25 0.5 ]
    """
    _check_last(u, 1, "coordinates of the box")
    (v,) = numerics.upcast(u)
    return _from_log_kept(_log_kept_of_cube(v)).astype(u.dtype)


# --------------------------------------------------------------------------------------------- through the chamber


def to_chamber(p: Array) -> Array:
    """The ordered points `x_i = p_1 + .. + p_i`, `[..., d]`, of a probability vector `[..., d + 1]`, of p's dtype.

    Example:
      >>> print(to_chamber(jnp.array([0.25, 0.25, 0.5])))
      [0.25 0.5 ]
    """
    _check_last(p, 2, "probabilities")
    (q,) = numerics.upcast(p)
    # Prefix sums made in a tree can step back by a rounding.
    x = jax.lax.cummax(jnp.cumsum(q, -1), axis=q.ndim - 1)
    return (x[..., :-1] / x[..., -1:]).astype(p.dtype)


def from_chamber(x: Array) -> Array:
    """The gaps `(x_1, x_2 - x_1, .., 1 - x_d)`, `[..., d + 1]`, of ordered points of [0, 1] `[..., d]`, of x's dtype.

    Example:
      >>> print(from_chamber(jnp.array([0.25, 0.5])))
      [0.25 0.25 0.5 ]
    """
    _check_last(x, 1, "ordered points")
    (y,) = numerics.upcast(x)
    edge = jnp.zeros_like(y[..., :1])
    return jnp.diff(jnp.concatenate([edge, y, edge + 1], -1), axis=-1).astype(x.dtype)


def chamber_fold(u: ArrayLike) -> Array:
    """The ordered points `sort(fold(u))` that free points u `[..., d]` on the line are reflected to, of u's dtype.

    `chamber_fold(x_0 + sigma eps)` with eps ~ N(0, I_d) is Brownian motion reflected in the chamber, after a run sigma.

    Source: the reflection principle for Weyl chambers: Grabiner 1999, Ann. Inst. H. Poincare 35, sec. 2.

    Example:
      >>> print(chamber_fold(jnp.array([0.5, -0.25, 1.25])))
      [0.25 0.5  0.75]
    """
    return jnp.sort(cube.fold(u), axis=-1)


# --------------------------------------------------------------------------------------------------------- process


def process(schedule: Schedule) -> Process:
    """Reflected Brownian motion of probability vectors, run in the box and seen on the simplex.

    Data `[*batch, *event]` hold their vectors on the last axis, which belongs to the event: one time serves a whole vector.

    Args:
      schedule: `t -> (alpha, sigma)`, whose sigma is the standard deviation of the motion in the box; alpha is not read. The prior is the uniform law
        on the simplex, Dirichlet(1, .., 1): let sigma(1) be 2 or more, as in `schedules.ve(0.01, 3.0)`.

    Returns:
      a `Process` with all capabilities but `posterior_logits`. `log_prob` is the density against Lebesgue measure of the first d entries, as
      a Dirichlet density is commonly written: log d! for each vector at the end. `score` is its gradient along the simplex: of the ambient
      gradients (they differ off the simplex) the one whose entries sum to 0.

    Source: Lou and Ermon 2023, arXiv:2304.04740, sec. 5.

    Example:
      >>> from diffjax import schedules
      >>> p = process(schedules.ve(0.01, 3.0))
      >>> x0 = jnp.array([0.7, 0.2, 0.1])
      >>> xt = p.corrupt(jax.random.key(0), x0, 0.8)
      >>> print(round(float(xt.sum()), 5), round(float(jnp.exp(p.log_prob(x0, xt, 1.0))), 4))
      1.0 2.0
    """
    box = cube.process(schedule)
    box_bridge, box_log_prob, box_score = (require(box, name) for name in ("bridge", "log_prob", "score"))

    def check(t, p):
        _check_last(p, 2, "probabilities")
        numerics.check_batch(t, jax.ShapeDtypeStruct(p.shape[:-1], p.dtype))

    def out(u, *ends):
        # A coordinate that rests at an end keeps that end's share, also where the box is too coarse for it. Elsewhere a 0 is
        # something within half a step of it, which must not make a corner of the whole vector.
        log_kept = _log_kept_of_cube(jnp.maximum(u, jnp.full_like(u, float(jnp.finfo(u.dtype).eps) / 4)))
        for p, u_end in ends:
            log_kept = jnp.where(u == u_end, _log_kept(p), log_kept)
        return _from_log_kept(log_kept)

    def prior(key, like):
        _check_last(like, 2, "probabilities")
        shape, dtype = (*like.shape[:-1], like.shape[-1] - 1), numerics.compute_dtype(like)
        return out(numerics.uniform(key, shape, dtype)).astype(like.dtype)

    def corrupt(key, x0, t):
        check(t, x0)
        (start,) = numerics.upcast(x0)
        u0 = to_cube(start)
        return out(box.corrupt(key, u0, t), (start, u0)).astype(x0.dtype)

    def bridge(key, x0, xt, s, t):
        numerics.check_same(x0=x0, xt=xt)
        check(s, xt)
        check(t, xt)
        start, end = numerics.upcast(x0, xt)
        u0, ut = to_cube(start), to_cube(end)
        return out(box_bridge(key, u0, ut, s, t), (start, u0), (end, ut)).astype(xt.dtype)

    def log_prob(x0, xt, t):
        check(t, xt)
        start, end = numerics.upcast(x0, xt)
        vectors = math.prod(xt.shape[jnp.ndim(t) : -1])
        return box_log_prob(to_cube(start), to_cube(end), t) + vectors * math.lgamma(xt.shape[-1])

    def score(x0, xt, t):
        check(t, xt)
        start, end = numerics.upcast(x0, xt)
        ut, pull = jax.vjp(to_cube, end)
        (gradient,) = pull(box_score(to_cube(start), ut, t))
        return (gradient - gradient.mean(-1, keepdims=True)).astype(xt.dtype)

    return Process(prior=prior, corrupt=corrupt, bridge=bridge, log_prob=log_prob, score=score)
