"""The probability flow: samples, encodings and exact log-likelihoods by an ordinary differential equation.

The deterministic flow with the marginals of `x_t = alpha x_0 + sigma eps` moves along `dx/dt = alpha' x0_hat + sigma' eps_hat`, and so
does any learned velocity field. Where sigma' or alpha'/alpha is infinite (t = 0 of VP schedules, alpha = 0) that form cannot be
integrated. In the angle `theta = atan2(sigma, alpha)` and the point `z = x / n`, n = sqrt(alpha^2 + sigma^2), it can:

    z = cos(theta) x_0 + sin(theta) eps,        dz/dtheta = cos(theta) eps_hat - sin(theta) x0_hat,

bounded at both ends for every schedule and every prediction; at sigma = 0 it is 0, as sigma times a finite score must be. Densities
follow from the divergence,

    log p(x_0) = log p_1(x_1) + d log(n_1 / n_0) + int div_z (dz/dtheta) dtheta.

On a box or a circle Brownian noise has `dx/dsigma = -sigma score`. There the flow runs on the unfolded line, z with x = fold(z), where
it has no walls: its drift is the score times the sign of fold'(z).

A `Flow` holds the equation in such coordinates: `gaussian`, `folded`, or `plain` for a velocity as it is. `sample`, `encode` and `log_prob`
walk it with the Runge-Kutta steps of `samplers.runge_kutta`, fixed or adaptive. `exact` and `hutchinson` are the two divergences.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from diffjax import numerics, schedules
from diffjax.numerics import expand_right
from diffjax.processes import predictions
from diffjax.processes.predictions import Kind
from diffjax.samplers.runge_kutta import Method, fixed
from diffjax.schedules import Schedule

# ------------------------------------------------------------------------------------------------------------ flows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flow:
    """An ordinary differential equation on the clock and in the coordinates that suit it: a record of pure functions.

    Attributes:
      velocity: `(z, t) -> dz/dtau`, of z's shape.
      clock: `t -> tau`, monotone, of t's shape.
      time: `tau -> t`, its inverse.
      scale: `t -> n`, of t's shape; `x = fold(n z)`.
      fold: `x -> x`, onto the space, with slopes +-1.
      log_base: `(x, t) -> log p_t(x)` of each entry alone, of x's shape: the density assumed at the noisy end.
    """

    velocity: Callable[[Array, Array], Array]
    clock: Callable[[Array], Array]
    time: Callable[[Array], Array]
    scale: Callable[[Array], Array]
    fold: Callable[[Array], Array]
    log_base: Callable[[Array, Array], Array]


def _same(x: Any) -> Any:
    return x


def _log_normal(x: Array, std: ArrayLike) -> Array:
    std = expand_right(jnp.asarray(std, x.dtype), x)
    return -0.5 * (x / std) ** 2 - jnp.log(std) - 0.5 * math.log(2 * math.pi)


def gaussian(predict: Callable[[Array, Array], Array], *, schedule: Schedule, kind: Kind = predictions.x0) -> Flow:
    """The probability flow of a Gaussian schedule, from any prediction.

    Args:
      predict: `(xt, t) -> [*batch, *event]`, a prediction of the given kind.
      schedule: `t -> (alpha, sigma)`, any; times may touch sigma = 0 and alpha = 0.
      kind: what is predicted: `predictions.x0`, `eps`, `v`, `flow` or `score`.

    Returns:
      a `Flow` with base N(0, sigma_t^2 I) at the noisy end. Where alpha is not 0 there, that leaves out the data's own share: pass a better
      `log_prior` to `log_prob` if it matters.

    Source: Song et al. 2021, arXiv:2011.13456, eq. 13; the angle: Salimans and Ho 2022, arXiv:2202.00512, app. D.

    Example:
      Data N(0, 1) stay so on a cosine schedule, and nothing moves:

      >>> from diffjax.samplers.runge_kutta import HEUN
      >>> flow = gaussian(lambda x, t: -x, schedule=schedules.cosine(), kind=predictions.score)
      >>> print(f"{sample(flow, jnp.array(0.5), schedules.times(2), method=fixed(HEUN)):.4f}")
      0.5000
    """

    def scale(t):
        return jnp.hypot(*schedule(t))

    def turn(t, schedule):  # the kind of dz/dtheta
        alpha, sigma = schedule(t)
        n = jnp.hypot(alpha, sigma)
        return -sigma / n, alpha / n

    def velocity(z, t):
        x = expand_right(scale(t).astype(z.dtype), z) * z
        # A network in half precision must not round what is integrated.
        y = predict(x, t).astype(z.dtype)
        return predictions.convert(y, x, t, source=kind, target=turn, schedule=schedule)

    return Flow(
        velocity=velocity,
        clock=_angle(schedule),
        time=_time_of_angle(schedule),
        scale=scale,
        fold=_same,
        log_base=lambda x, t: _log_normal(x, schedule(t)[1]),
    )


def _angle(schedule: Schedule) -> Callable[[ArrayLike], Array]:
    def angle(t):
        alpha, sigma = schedule(t)
        return jnp.arctan2(sigma, alpha)

    return angle


def _time_of_angle(schedule: Schedule, sigma_data: float = 1.0) -> Callable[[Array], Array]:
    def time(angle):
        ratio = jnp.log(jnp.cos(angle)) - jnp.log(sigma_data * jnp.sin(angle))
        t = schedules.time_of_logsnr(jnp.clip(2 * ratio, -100.0, 100.0), schedule=schedule)
        # The ends are exact, also where the log-SNR is infinite.
        first, last = (jnp.arctan2(sigma, sigma_data * alpha) for alpha, sigma in (schedule(0.0), schedule(1.0)))
        t = jnp.where(angle <= first.astype(t.dtype), jnp.zeros_like(t), t)
        return jnp.where(angle >= last.astype(t.dtype), jnp.ones_like(t), t)

    return time


def folded(
    score: Callable[[Array, Array], Array],
    *,
    schedule: Schedule,
    fold: Callable[[Array], Array],
    length: float,
) -> Flow:
    """The probability flow of Brownian motion on a box or a torus, `dx/dsigma = -sigma score`, on the unfolded line.

    No mollifier at the walls is needed, and no mass is lost there.

    Args:
      score: `(x, t) -> grad log p_t(x)` for x on the space.
      schedule: `t -> (1, sigma)`.
      fold: from the line onto the space, elementwise, with slopes +-1: `cube.fold`, or `torus.wrap`.
      length: of the space in one dimension, 1 for the box and 2 pi for angles: the base is uniform.

    Returns:
      a `Flow` on the clock atan(sigma). The score must be finite at every time, so sigma > 0 as a rule.

    Source: the flow: Lou and Ermon 2023, arXiv:2304.04740, sec. 4.3; unfolding replaces its mollified walls.

    Example:
      >>> from diffjax.samplers.runge_kutta import HEUN
      >>> fold = lambda u: jnp.abs(u - 2 * jnp.round(u / 2))
      >>> flow = folded(lambda x, t: jnp.zeros_like(x), schedule=schedules.ve(0.01, 5.0), fold=fold, length=1.0)
      >>> print(log_prob(jax.random.key(0), flow, jnp.array([[0.2, 0.9]]), schedules.times(2), method=fixed(HEUN)))
      [0.]
    """

    def velocity(z, t):
        x, slope = jax.jvp(fold, (z,), (jnp.ones_like(z),))
        sigma = expand_right(schedule(t)[1].astype(z.dtype), z)
        return -sigma * (1 + sigma * sigma) * slope * score(x, t).astype(z.dtype)  # d sigma / d theta = 1 + sigma^2

    return Flow(
        velocity=velocity,
        clock=_angle(schedule),
        time=_time_of_angle(schedule),
        scale=lambda t: schedule(t)[0],
        fold=fold,
        log_base=lambda x, t: jnp.full_like(x, -math.log(length)),
    )


def plain(velocity: Callable[[Array, Array], Array]) -> Flow:
    """The flow `dx/dt = velocity(x, t)` as it is, with base N(0, I) at the noisy end: a rectified flow, or any field of your own.

    Example:
      >>> flow = plain(lambda x, t: x)
      >>> print(f"{sample(flow, jnp.array(1.0), schedules.times(10)):.4f}")  # exp(-1)
      0.3679
    """
    log_base = lambda x, t: _log_normal(x, 1.0)
    return Flow(velocity=velocity, clock=_same, time=_same, scale=jnp.ones_like, fold=_same, log_base=log_base)


def equal_angles(schedule: Schedule, *, sigma_data: float = 0.5) -> schedules.Spacing:
    """The spacing with equal steps in `atan2(sigma, alpha sigma_data)`, the grid on which Runge-Kutta steps count most.

    On it the error hardly depends on the schedule: a mixture with widths .15 to .6 and modes 2 apart has its log-likelihood within 1e-3 nats
    after 25 steps of `RK4` (and within 3e-2 on uniform times of vp_linear).

    Args:
      schedule: `t -> (alpha, sigma)`; ends may have sigma = 0 or alpha = 0.
      sigma_data: the scale of the data's features: half of all steps lie at smaller sigma / alpha.

    Example:
      >>> print(schedules.times(2, spacing=equal_angles(schedules.rectified(), sigma_data=1.0)))
      [1.  0.5 0. ]
    """

    def spacing(u, start, stop):
        first, last = (jnp.arctan2(sigma, sigma_data * alpha) for alpha, sigma in (schedule(start), schedule(stop)))
        # In one piece: compiled once, where a grid made eagerly would compile each operation.
        return jax.jit(_time_of_angle(schedule, sigma_data))(first * (1 - u) + last * u)

    return spacing


# -------------------------------------------------------------------------------------------------------- the walks


def _check(times: Array, x: Array) -> None:
    if jnp.ndim(times) < 1 or times.shape[0] < 2:
        raise ValueError(f"expected times of shape [steps + 1, ...] with at least one step, got {jnp.shape(times)}")
    numerics.check_batch(times[0], x, name="times[0]")


def _enter(flow: Flow, x: Array, t: Array) -> Array:
    (z,) = numerics.upcast(x)
    return z / expand_right(flow.scale(t).astype(z.dtype), z)


def _leave(flow: Flow, z: Array, t: Array) -> Array:
    return flow.fold(expand_right(flow.scale(t).astype(z.dtype), z) * z)


def sample(
    flow: Flow,
    x: Array,
    times: Array,
    *,
    method: Method | None = None,
    track: Callable[[Array, Array], Any] | None = None,
) -> Any:
    """The point at `times[-1]` of the path through `x` at `times[0]`.

    Args:
      flow: `gaussian(...)`, `folded(...)` or `plain(...)`.
      x: `[*batch, *event]` at `times[0]`, such as a draw of the prior. It is carried in float32 (float64 if x is).
      times: `[steps + 1]` or `[steps + 1, *batch]`, in either direction.
      method: `fixed()` by default, four evaluations a step.
      track: `(x, t) -> pytree`, called after each step; what it returns is stacked over steps.

    Returns:
      `[*batch, *event]` of x's dtype; with `track`, `(sample, tracked)`.

    Raises:
      ValueError: `times` has no two rows, or its batch is not that of x.

    Source: Song et al. 2021, arXiv:2011.13456, sec. 4.3.

    Example:
      >>> flow = plain(lambda x, t: 2 * t * jnp.ones_like(x))
      >>> print(sample(flow, jnp.array([1.0]), schedules.times(4)))
      [0.]
    """
    _check(times, x)
    observe = None if track is None else lambda z, t: track(_leave(flow, z, t), t)
    field = lambda i, z, t: flow.velocity(z, t).astype(z.dtype)
    z, tracked = (method or fixed())(field, _enter(flow, x, times[0]), times, flow, observe)
    end = _leave(flow, z, times[-1]).astype(x.dtype)
    return end if track is None else (end, tracked)


def encode(flow: Flow, x0: Array, times: Array, *, method: Method | None = None) -> Array:
    """The noise `x` at `times[0]` that `sample` takes to `x0` at `times[-1]`: the same grid walked backwards.

    Example:
      >>> flow = plain(lambda x, t: jnp.sin(x))
      >>> x = sample(flow, jnp.array([1.0]), schedules.times(10))
      >>> print(jnp.round(encode(flow, x, schedules.times(10)), 4))
      [1.]
    """
    return sample(flow, x0, times[::-1], method=method)


def log_prob(
    key: Array,
    flow: Flow,
    x0: Array,
    times: Array,
    *,
    log_prior: Callable[[Array], Array] | None = None,
    method: Method | None = None,
    trace: "Trace | None" = None,
) -> Array:
    """`log p(x0)` of each example under the flow, in nats: `log p_1(x_1)` plus the divergence along its path.

    Args:
      key: one key; used by `hutchinson` alone.
      flow: `gaussian(...)`, `folded(...)` or `plain(...)`. Examples must not depend on each other (no batch norm in training mode).
      x0: `[batch, *event]` at `times[-1]`; `[*batch, *event]` with per-example times. It is dequantised data, if the data are levels
        (`likelihood.dequantised`).
      times: `[steps + 1]` or `[steps + 1, *batch]`, the sampler's grid, from noise to data.
      log_prior: `x1 -> [*batch]` nats; the flow's own base by default.
      method: `fixed()` by default.
      trace: `exact` by default; `hutchinson(probes)` in many dimensions.

    Returns:
      `[*batch]`, float32 (float64 if x0 is). If noise remains at `times[-1]` it is the density of the noisy data there.

    Source: Chen et al. 2018, arXiv:1806.07366, theorem 1; Song et al. 2021, arXiv:2011.13456, app. D.2.

    Example:
      x_0 = exp(-1) x_1, so log p(0) = log N(0) + 1:

      >>> flow = plain(lambda x, t: x)
      >>> print(f"{log_prob(jax.random.key(0), flow, jnp.zeros(1), schedules.times(4))[0]:.4f}")
      0.0811
    """
    _check(times, x0)
    batch = max(jnp.ndim(times) - 1, 1)
    if x0.ndim < 1:
        raise ValueError(f"expected x0 of shape [batch, *event], got {x0.shape=}: add an axis, x0[None]")
    key, trace = numerics.as_keys(key), trace or exact
    dims = math.prod(x0.shape[batch:])

    def field(i, y, t):
        velocity = lambda z: flow.velocity(z, t).astype(z.dtype)
        return trace(jax.random.fold_in(key, i), velocity, y[0], batch)

    rising = times[::-1]
    start = _enter(flow, x0, rising[0])
    (end, total), _ = (method or fixed())(field, (start, jnp.zeros(x0.shape[:batch], start.dtype)), rising, flow, None)
    x1 = _leave(flow, end, rising[-1])
    if log_prior is None:
        base = jnp.sum(flow.log_base(x1, rising[-1]), axis=tuple(range(batch, x1.ndim)))
    else:
        base = log_prior(x1).astype(total.dtype)
    grown = jnp.log(flow.scale(rising[-1]) / flow.scale(rising[0])).astype(total.dtype)
    return base + total + dims * expand_right(grown, base)


# ----------------------------------------------------------------------------------------------------- divergences

Trace = Callable[[Array, Callable[[Array], Array], Array, int], tuple[Array, Array]]
"""`(key, function, z, batch) -> (function(z), divergence [*batch])` of a function that maps each example alone; `batch` counts its axes."""


def exact(key: Array, function: Callable[[Array], Array], z: Array, batch: int) -> tuple[Array, Array]:
    """`function(z)` and its divergence `sum_i d f_i / d z_i` for each example, by one forward derivative a dimension.

    The whole batch shares each derivative, 32 dimensions at a time.

    Example:
      >>> value, divergence = exact(jax.random.key(0), lambda x: x**2, jnp.array([[1.0, 2.0], [0.0, 5.0]]), 1)
      >>> print(divergence)
      [ 6. 10.]
    """
    del key
    value, push = jax.linearize(function, z)
    event = z.shape[batch:]
    size = math.prod(event)

    def entry(i):
        unit = jax.nn.one_hot(i, size, dtype=z.dtype).reshape((1,) * batch + event)
        return jnp.sum(unit * push(jnp.broadcast_to(unit, z.shape)), axis=tuple(range(batch, z.ndim)))

    # A loop of one turn costs more than none.
    every = jax.vmap(entry) if size <= 32 else lambda i: jax.lax.map(entry, i, batch_size=32)
    return value, jnp.sum(every(jnp.arange(size)), axis=0)


def hutchinson(probes: int = 1) -> Trace:
    """The unbiased estimate `mean_k v_k^T J v_k` of the divergence, from Rademacher probes that are fresh at every evaluation.

    The probes of one estimate are antithetic in pairs of dimensions: `v_k = v * h_k` with one random v and the signs h_k of a Hadamard
    matrix. Each is a Rademacher vector, but summed over 2^m of them all entries `J_ij` cancel except those with i = j mod 2^m. (`-v` would
    be no help: it gives the same number as v.) With as many probes as dimensions, a power of two, the estimate is exact.

    Args:
      probes: k, number of derivatives taken; powers of two cancel best.

    Source: Hutchinson 1989; Grathwohl et al. 2019, arXiv:1810.01367, eq. 7; Hadamard probes: Bekas, Kokiopoulou and Saad 2007.

    Example:
      >>> mixing = jnp.array([[1.0, 5.0], [-2.0, 3.0]])
      >>> value, divergence = hutchinson(2)(jax.random.key(0), lambda x: x @ mixing, jnp.ones((1, 2)), 1)
      >>> print(divergence)
      [4.]
    """
    if probes < 1:
        raise ValueError(f"expected at least one probe, got {probes=}")

    def trace(key, function, z, batch):
        value, push = jax.linearize(function, z)
        event = z.shape[batch:]
        v = jax.random.rademacher(key, z.shape, z.dtype)
        index = jnp.arange(math.prod(event), dtype=jnp.uint32).reshape((1,) * batch + event)

        def probe(k):
            signs = 1 - 2 * (jax.lax.population_count(index & k) % 2).astype(z.dtype)
            u = v * signs
            return jnp.sum(u * push(u), axis=tuple(range(batch, z.ndim)))

        return value, jnp.mean(jax.lax.map(probe, jnp.arange(probes, dtype=jnp.uint32)), axis=0)

    return trace
