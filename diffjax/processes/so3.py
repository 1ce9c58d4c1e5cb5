"""Rotations: Brownian motion on SO(3), its density and score, exact sampling, and its bridge.

Rotations are unit quaternions (w, x, y, z) `[..., 4]`, and q and -q are the same one (`so3_group`, `so3_coordinates`; their functions are names of this module too).
Noise is a product of ever smaller random turns of the body. After a variance t = sigma^2 per axis,

    q_t = q_0 exp(v),        q_t has the density f(w; t),  w = angle(q_0^-1 q_t),

with respect to Haar measure of mass 1. For small sigma v is normal with standard deviation sigma; for large sigma q_t is uniform.
f is the heat kernel of `so3_kernel`: exact to float32 for any sigma and any w, tails included.

The *score* is a tangent vector of the body frame, the gradient of `log f(q_0, q_t exp(v))` in v at v = 0: a step of Langevin's chain or of a
reverse equation is `compose(qt, exp(step))`. By symmetry it points along the axis of q_0^-1 q_t.

The *bridge* is `f(q_0, q; s) f(q, q_t; t-s) / f(q_0, q_t; t)`, with which no series can be sampled directly. But it is close to a mixture of two heat
kernels, one on each of the two geodesics from q_0 to q_t, so a fixed number of draws from that mixture, run through Metropolis' rule,
are exact for all purposes. (A path of small steps bent to the end by slerp, as elsewhere, is off by .01 to .14 in distribution.)

A position with a rotation (SE(3)) is `joint({"position": gaussian.process(a), "rotation": so3.process(b)})`.

Source: Leach et al. 2022, Denoising diffusion probabilistic models on SO(3) for rotational alignment; Yim et al. 2023, arXiv:2302.02277.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from diffjax import numerics
from diffjax.processes import so3_kernel
from diffjax.processes.base import Process
from diffjax.processes.so3_coordinates import from_bcd, from_matrix, from_six, normalize, to_bcd, to_matrix
from diffjax.processes.so3_group import compose, exact_relative, exp, geodesic, inverse, log, relative, squared_length
from diffjax.schedules import Schedule

__all__ = [
    "bridge",
    "compose",
    "corrupt",
    "exp",
    "from_bcd",
    "from_matrix",
    "from_six",
    "geodesic",
    "inverse",
    "log",
    "log_kernel",
    "normalize",
    "process",
    "relative",
    "score",
    "to_bcd",
    "to_matrix",
    "uniform",
]

# ---------------------------------------------------------------------------------------------------- the heat kernel


def uniform(key: Array, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Rotations uniform under Haar measure, `[*shape, 4]`: directions of normal draws in R^4.

    Args:
      key: one key, or an array of keys that serves the leading axes.
      shape: how many, without the axis of the quaternion.

    Source: Shoemake 1992, Uniform random rotations.

    Example:
      >>> uniform(jax.random.key(0), (5,)).shape
      (5, 4)
    """
    return normalize(numerics.normal(key, (*shape, 4)))


def corrupt(key: Array, q0: Array, sigma: ArrayLike) -> Float[Array, "*b 4"]:
    """A draw `q_t = q_0 exp(v)` of Brownian motion from q_0, exact for any sigma and without steps.

    The angle is an increasing function of |z|, z ~ N(0, I_3), and the axis is z's (`so3_kernel.stretch`). So q_t is smooth in q_0 and in sigma,
    and draws of one key with different sigma lie on one curve.

    Args:
      key: one key or an array of keys `[batch]`.
      q0: `[*batch, *sites, 4]`, unit quaternions.
      sigma: `[*batch]`, `[*batch, *sites]` or scalar, >= 0: standard deviation per axis of the rotation vector, radians.

    Returns:
      `[*batch, *sites, 4]` of q0's dtype; q_0 itself where sigma = 0.

    Raises:
      ValueError: the last axis is not of size 4, or sigma's shape does not lead.

    Example:
      >>> q0 = jnp.broadcast_to(exp(jnp.zeros(3)), (10_000, 4))
      >>> v = log(jax.jit(corrupt)(jax.random.key(0), q0, 0.1))
      >>> print([round(float(s), 2) for s in v.std(axis=0)])
      [0.1, 0.1, 0.1]
    """
    q0_, sigma = _aligned(sigma, q0=q0)
    z = numerics.normal(key, (*sigma.shape, 3), q0_.dtype)
    return compose(q0_, exp(_turn(z, sigma))).astype(q0.dtype)


def _turn(z: Array, sigma: Array) -> Array:
    return so3_kernel.stretch(squared_length(z), sigma)[..., None] * z


def log_kernel(q0: Array, qt: Array, sigma: ArrayLike) -> Float[Array, "*b"]:
    """`log f(q_0, q_t; sigma^2)`, the log density of q_t given q_0 in nats, with respect to Haar measure of mass 1.

    Args:
      q0: `[*batch, *sites, 4]`.
      qt: likewise. Only directions count, and q and -q are one.
      sigma: `[*batch]`, `[*batch, *sites]` or scalar, >= 0; below 1e-6 it is read as 1e-6, so that the density stays finite.

    Returns:
      `[*batch, *sites]`, float32 (float64 if the data are): one for each rotation. First and second derivatives in all three arguments
      are right everywhere, also where q_t = q_0 and where they are half a turn apart.

    Raises:
      ValueError: q0 and qt differ in shape, or sigma's shape does not lead.

    Example:
      >>> q0, qt = exp(jnp.zeros(3)), exp(jnp.array([0.3, 0.0, 0.4]))
      >>> print(round(float(jax.jit(log_kernel)(q0, qt, 0.25)), 3))
      3.789
    """
    q0, qt, sigma = _aligned(sigma, q0=q0, qt=qt)
    square, real, z2 = so3_kernel.sharp(exact_relative(q0, qt), sigma)
    return so3_kernel.log_density(square, real, sigma, z2)


def score(q0: Array, qt: Array, sigma: ArrayLike) -> Float[Array, "*b 3"]:
    """The gradient of `log f(q_0, q_t exp(v); sigma^2)` in v at v = 0: a tangent vector in q_t's body frame.

    It is `n d log f / dw` with w n = log(q_0^-1 q_t), close to `-w n / sigma^2` for small sigma.

    Args:
      q0: `[*batch, *sites, 4]`.
      qt: likewise.
      sigma: `[*batch]`, `[*batch, *sites]` or scalar.

    Returns:
      `[*batch, *sites, 3]` of qt's dtype, 1/radians; 0 where sigma = 0 (there is no density).

    Example:
      >>> q0, qt = exp(jnp.zeros(3)), exp(jnp.array([0.0, 0.0, 0.2]))
      >>> print(jnp.round(jax.jit(score)(q0, qt, 0.1), 2) + 0.0)
      [  0.     0.   -19.98]
    """
    dtype = qt.dtype
    q0, qt, sigma = _aligned(sigma, q0=q0, qt=qt)
    turn = relative(q0, qt)
    vector = turn[..., 1:]
    slope = so3_kernel.slope(squared_length(vector), turn[..., 0], sigma)
    return (jnp.where(sigma == 0, jnp.zeros_like(slope), slope)[..., None] * vector).astype(dtype)


def _aligned(sigma: ArrayLike, **quaternions: Array) -> tuple[Array, ...]:
    """The quaternions and sigma in one floating type, sigma in the shape of the rotations."""
    numerics.check_same(**quaternions)
    for name, q in quaternions.items():
        if q.ndim < 1 or q.shape[-1] != 4:
            raise ValueError(f"expected unit quaternions [..., 4], got {name}.shape={q.shape}")
    *wide, sigma = numerics.upcast(*quaternions.values(), sigma)
    like = wide[0][..., 0]
    return *wide, jnp.broadcast_to(numerics.expand_right(sigma, like), like.shape)


# --------------------------------------------------------------------------------------------------------- the bridge


def bridge(
    key: Array,
    q0: Array,
    qt: Array,
    sigma_s: ArrayLike,
    sigma_t: ArrayLike,
    *,
    proposals: int = 8,
) -> Float[Array, "*b 4"]:
    """A draw of q_s given q_0 and q_t, where Brownian motion has sigma_s <= sigma_t: from both sides at once.

    With a = sigma_s^2, b = sigma_t^2 - sigma_s^2 the law is `p(q) ~ f(q_0, q; a) f(q, q_t; b)`. Candidates come from a mixture r of two heat
    kernels at the fraction a / (a+b) of the two geodesics, of lengths w and 2 pi - w, with the variance of a flat bridge, ab / (a+b),
    widened by 1.1 and by the bending of the sphere (across a geodesic of length L a precision is (L/2) cot(L/2) times that of the
    plane). All are drawn and weighed in parallel; then the first is replaced by each next one with probability min(1, ratio of p / r).

    If p / r <= M, the law after n candidates is within (1 - 1/M)^n of p in total variation. M is 1.15 in the median and below 1.8 over
    sigma_t^2 in [.1, 100] and all angles: 1e-7 and 2e-3 for n = 8.

    Args:
      key: one key or an array of keys `[batch]`.
      q0: `[*batch, *sites, 4]`, the clean end.
      qt: likewise, the noisy end; the two may be half a turn apart.
      sigma_s: `[*batch]`, `[*batch, *sites]` or scalar.
      sigma_t: likewise, >= sigma_s.
      proposals: n >= 1, the cost.

    Returns:
      `[*batch, *sites, 4]` of qt's dtype; q_t where sigma_s = sigma_t, q_0 where sigma_s = 0.

    Raises:
      ValueError: shapes as above, or no proposals.

    Source: the rule: Tierney 1994, Ann. Stat. 22, sec. 2.3.3; its rate: Mengersen and Tweedie 1996, Ann. Stat. 24, thm 2.1.

    Example:
      >>> q0 = jnp.broadcast_to(exp(jnp.zeros(3)), (10_000, 4))
      >>> qt = jnp.broadcast_to(exp(jnp.array([0.0, 0.0, 1.0])), (10_000, 4))
      >>> qs = jax.jit(bridge)(jax.random.key(0), q0, qt, 0.1, 0.1 * 2**0.5)
      >>> print(jnp.round(log(qs).mean(axis=0), 1) + 0.0)  # halfway
      [0.  0.  0.5]
    """
    if proposals < 1:
        raise ValueError(f"expected at least one proposal, got {proposals=}")
    dtype = qt.dtype
    *_, late = _aligned(sigma_t, q0=q0, qt=qt)
    start, end, early = _aligned(sigma_s, q0=q0, qt=qt)
    early, late = early * early, jnp.maximum((late - early) * (late + early), 0)
    centers, spreads, log_shares = _proposal(start, end, early, late)

    many = (*early.shape, proposals)
    key_way, key_turn, key_rule = numerics.split(key, 3)
    second = jnp.log(numerics.uniform(key_way, many, start.dtype)) < log_shares[1][..., None]
    center = jnp.where(second[..., None], centers[1][..., None, :], centers[0][..., None, :])
    spread = jnp.where(second, spreads[1][..., None], spreads[0][..., None])
    turn = _turn(numerics.normal(key_turn, (*many, 3), start.dtype), spread)
    # Without the barrier XLA fuses, and so computes the candidates anew for each of their many uses.
    candidates = jax.lax.optimization_barrier(compose(center, exp(turn)))  # [..., n, 4]

    # All four densities in one call: to compile the kernel once.
    origins = jnp.stack([start, end, *centers])[..., None, :]
    sigmas = jnp.stack([numerics.safe_sqrt(early), numerics.safe_sqrt(late), *spreads])[..., None]
    shape = (4, *candidates.shape)
    turns = relative(jnp.broadcast_to(origins, shape), jnp.broadcast_to(candidates[None], shape))
    logs = so3_kernel.log_density(squared_length(turns[..., 1:]), turns[..., 0], jnp.broadcast_to(sigmas, shape[:-1]))
    weight = (
        logs[0]
        + logs[1]
        - jnp.logaddexp(*(share[..., None] + f for share, f in zip(log_shares, logs[2:], strict=True)))
    )
    threshold = jnp.log(numerics.uniform(key_rule, many, start.dtype))

    def rule(kept, row):
        accept = row[2] < row[1] - kept[1]
        return (jnp.where(accept, row[0], kept[0]), jnp.where(accept, row[1], kept[1])), None

    weight, threshold = (jnp.moveaxis(x, -1, 0) for x in (weight, threshold))
    first = (jnp.zeros(early.shape, jnp.int32), weight[0])
    (last, _), _ = jax.lax.scan(rule, first, (jnp.arange(1, proposals, dtype=jnp.int32), weight[1:], threshold[1:]))
    q = jnp.take_along_axis(candidates, last[..., None, None], axis=-2)[..., 0, :]
    q = jnp.where((early == 0)[..., None], start, q)
    return jnp.where((late == 0)[..., None], end, q).astype(dtype)


def _proposal(start: Array, end: Array, early: Array, late: Array) -> tuple[tuple[Array, Array], ...]:
    """The mixture on both geodesics: centers `[..., 4]`, standard deviations and log shares `[...]`, a pair of each."""
    total = early + late
    fraction = numerics.safe_divide(early, total)
    v = log(relative(start, end))
    angle = numerics.safe_sqrt(squared_length(v))
    # The axis, and any one where there is none.
    some = jnp.zeros_like(v).at[..., 0].set(1)
    axis = jnp.where((angle == 0)[..., None], some, v / jnp.where(angle == 0, jnp.ones_like(angle), angle)[..., None])

    def bend(length: Array) -> Array:
        # Clipped where the far arc exceeds half a turn of the sphere, beyond which the paths spread out again.
        half = jnp.maximum(length / 2, 1e-3)
        return jnp.maximum(half / jnp.tan(half), 0.25)

    centers, spreads = [], []
    for length in (angle, angle - 2 * math.pi):
        centers.append(compose(start, exp((fraction * length)[..., None] * axis)))
        far = jnp.abs(length)
        curvature = (1 - fraction) * bend(far * fraction) + fraction * bend(far * (1 - fraction))
        spreads.append(numerics.safe_sqrt(1.1 * early * (1 - fraction) / curvature))
    # Terms k = 0 and k = -1 of the sum over geodesics. The prefactor 2 pi/w - 1 is capped, for as w -> 0 the term k = 1 cancels its growth.
    excess = 2 * math.pi * (math.pi - angle) / jnp.maximum(total, so3_kernel.FLOOR**2)
    prefactor = jnp.minimum(2 * math.pi / jnp.maximum(angle, 0.5) - 1, 6.0)
    log_odds = jnp.log(prefactor) - excess
    return tuple(centers), tuple(spreads), (-jax.nn.softplus(log_odds), -jax.nn.softplus(-log_odds))


# --------------------------------------------------------------------------------------------------------- the process


def process(schedule: Schedule) -> Process:
    """The process of a schedule on rotations: Brownian motion with standard deviation sigma(t), alpha unused.

    Events are `[*sites, 4]`, each site a rotation with noise of its own; times may be per example or per site. The uniform prior is the law at t = 1 if sigma(1) is
    large: the density is within 9 e^(-sigma^2) of 1, 1e-3 at sigma = 3 and 1e-10 at sigma = 5. `schedules.ve(0.01, 5.0)` is a good choice.
    (Diffusions.jl counts variance in half angles: its T is our sigma^2 / 4.)

    Args:
      schedule: `t -> (alpha, sigma)`.

    Returns:
      a `Process` with all capabilities but `posterior_logits`; its score is a tangent vector `[*batch, *sites, 3]` of the body frame.

    Example:
      >>> from diffjax import schedules
      >>> p = process(schedules.ve(0.01, 5.0))
      >>> x0 = jnp.broadcast_to(exp(jnp.zeros(3)), (3, 7, 4))
      >>> jax.jit(p.corrupt)(jax.random.key(1), x0, jnp.array([0.1, 0.5, 1.0])).shape
      (3, 7, 4)
    """

    def prior(key, like):
        if len(like.shape) < 1 or like.shape[-1] != 4:
            raise ValueError(f"expected unit quaternions [..., 4], got {like.shape=}")
        return uniform(key, tuple(like.shape[:-1])).astype(like.dtype)

    def width(t):
        return schedule(t)[1]

    return Process(
        prior=prior,
        corrupt=lambda key, x0, t: corrupt(key, x0, width(t)),
        bridge=lambda key, x0, xt, s, t: bridge(key, x0, xt, width(s), width(t)),
        log_prob=lambda x0, xt, t: numerics.sum_event(log_kernel(x0, xt, width(t)), t),
        score=lambda x0, xt, t: score(x0, xt, width(t)),
    )
