"""Walks that need only a score: Langevin steps, Metropolis, annealing, and the corrector of predictor-corrector.

The diffusion `dx = s(x) dtau + sqrt(2) dw` with `s = grad log p` leaves p as it is. A step of size h draws a displacement and moves along it,

    v = h s(x) + sqrt(2 h) z,    y = move(x, v),    z ~ N(0, I),

and the law of the chain is off by O(h). Metropolis' test mends that: go to y with probability min(1, r), else stay,

    log r = log p(y) - log p(x) + log N(w; h s(y), 2h) - log N(v; h s(x), 2h),

where w is the displacement that leads from y back to x. `(x, v) -> (y, w)` undoes itself and keeps volume, so the test is exact on
every space that has such a `move`: the plane (`straight`), a box with mirrors for walls (`reflect`), angles and rotations (`geodesic`). (`clip`, a box
with walls that hold, is no such move: it is there to be compared with.)
Without a score the walk is random-walk Metropolis.

`sample` is that chain, and `annealed` runs it down a ladder of noise levels. `samplers.correctors` uses the same steps between those of
another sampler.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from diffjax import numerics
from diffjax.numerics import expand_right
from diffjax.schedules import Schedule

Move = Callable[[Array, Array], tuple[Array, Array]]
"""`(x, v) -> (y, w)`: where a displacement v leads from x, and the displacement w that leads from y back to x."""

# ----------------------------------------------------------------------------------------------------------- moves


def straight(x: Array, v: Array) -> tuple[Array, Array]:
    """The move of the plane, `(x + v, -v)`.

    Example:
      >>> y, w = straight(jnp.array([1.0]), jnp.array([0.5]))
      >>> print(y, w)
      [1.5] [-0.5]
    """
    return x + v, -v


def reflect(x: Array, v: Array) -> tuple[Array, Array]:
    """The move of the box [0, 1]^d with mirrors for walls: `x + v` folded back, and the way back, turned as often as v was.

    Source: the reflected Euler-Maruyama step of Lou and Ermon 2023, arXiv:2304.04740, sec. 4.2.

    Example:
      >>> y, w = reflect(jnp.array([0.75]), jnp.array([0.5]))
      >>> print(y, w)
      [0.75] [0.5]
    """
    u = x + v
    cell = jnp.floor(u)
    odd = cell % 2 == 1
    return jnp.where(odd, cell + 1 - u, u - cell), jnp.where(odd, v, -v)


def clip(x: Array, v: Array) -> tuple[Array, Array]:
    """The move of the box [0, 1]^d that stops at the walls, `clip(x + v, 0, 1)`: thresholding, the baseline that `reflect` is compared with.

    What would have passed a wall stays on it, so that mass piles up there. No way leads back from it: fit for `correctors.reverse_diffusion` alone,
    not for Metropolis' test, and Langevin steps with it do not keep their law at the walls to first order.

    Source: the projected step of Saharia et al. 2022, arXiv:2205.11487 and others, as Lou and Ermon 2023, arXiv:2304.04740, sec. 2 read it.

    Example:
      >>> y, _ = clip(jnp.array([0.75]), jnp.array([0.5]))
      >>> print(y)
      [1.]
    """
    return jnp.clip(x + v, 0, 1), -v


def geodesic(retract: Callable[[Array, Array], Array]) -> Move:
    """The move `(retract(x, v), -v)` of a space whose displacements are read in a frame carried along, as angles and rotations.

    Args:
      retract: `(x, v) -> y`, the point that a tangent v leads to, with `retract(retract(x, v), -v) = x`: `torus.wrap(x + v)`, or
        `so3.compose(q, so3.exp(v))` with v in the body's frame (x and v may differ in their last axis).

    Example:
      >>> move = geodesic(lambda x, v: (x + v) % 1.0)
      >>> y, w = move(jnp.array([0.75]), jnp.array([0.5]))
      >>> print(y, w)
      [0.25] [-0.5]
    """
    return lambda x, v: (retract(x, v), -v)


# --------------------------------------------------------------------------------------------------------- a chain


def sample(
    key: Array,
    score: Callable[[Array], Array] | None,
    x: Array,
    *,
    step_size: ArrayLike,
    steps: int,
    metropolis: Callable[[Array], Array] | None = None,
    move: Move = straight,
    track: Callable[[Array, Array], Any] | None = None,
) -> Any:
    """The end of a Langevin chain from `x`: unadjusted, or with `metropolis` a chain whose law is exactly p.

    Args:
      key: one key, or an array of keys `[batch]`; step i draws from `fold_in(key, i)`.
      score: `x -> grad log p`, a tangent for each point. None for a random walk, which then needs `metropolis`.
      x: `[*batch, *event]`, where the chains start. They are carried in float32 (float64 if x is), whatever x's type.
      step_size: h > 0 in the units of x^2, scalar or `[*batch]`. The noise of a step has variance 2h.
      steps: number of steps, >= 1.
      metropolis: `x -> log p [*batch]`, up to a constant; makes it MALA (a random walk without a score). Its shape says what an
        example is. For the score of a given log density, `jax.grad(lambda x: log_p(x).sum())`.
      move: `straight`, `reflect`, `geodesic(...)`, or your own.
      track: `(x, accepted) -> pytree`, called after each step; what it returns is stacked over steps. `accepted` is bool
        `[*batch]` (a scalar True without metropolis).

    Returns:
      `[*batch, *event]` of x's dtype; with `track`, `(sample, tracked)`.

    Raises:
      ValueError: neither a score nor a log density; a step size or a number of steps that is not positive.

    Source: Roberts and Tweedie 1996, Bernoulli 2(4); the test on (x, v): Green 1995, Neklyudov et al. 2020, arXiv:2006.16653.

    Example:
      >>> log_p = lambda x: -0.5 * x**2
      >>> x, rate = sample(
      ...     jax.random.key(0), jax.grad(lambda x: log_p(x).sum()), jnp.zeros(5000), step_size=0.8, steps=20,
      ...     metropolis=log_p, track=lambda x, accepted: accepted.mean(),
      ... )
      >>> print(jnp.abs(x.var() - 1) < 0.1, jnp.round(rate.mean(), 1))
      True 0.8
    """
    if score is None and metropolis is None:
        raise ValueError("expected a score, or a log density as `metropolis`, or both, got neither")
    if steps < 1:
        raise ValueError(f"expected at least one step, got {steps=}")
    if isinstance(step_size, (int, float)) and not step_size > 0:
        raise ValueError(f"expected step_size > 0, got {step_size=}")
    dtype = numerics.compute_dtype(x)
    h = jnp.asarray(step_size, dtype)
    key = numerics.as_keys(key)

    def drift(x):
        return jnp.zeros_like(x) if score is None else score(x).astype(dtype)

    def propose(key, x, s):
        z = numerics.normal(key, s.shape, dtype)
        width = expand_right(h, s)
        return z, move(x, width * s + jnp.sqrt(2 * width) * z)

    def unadjusted(x, i):
        _, (y, _) = propose(numerics.fold_in(key, i), x, drift(x))
        return y, None if track is None else track(y, jnp.asarray(True))

    def adjusted(log_density, carry, i):
        x, s, log_p = carry
        key_noise, key_test = numerics.split(numerics.fold_in(key, i))
        z, (y, back) = propose(key_noise, x, s)
        s_y, log_p_y = drift(y), log_density(y)
        width = expand_right(h, s)
        z_back = (back - width * s_y) / jnp.sqrt(2 * width)
        log_ratio = log_p_y - log_p - 0.5 * numerics.sum_event(z_back * z_back - z * z, log_p)
        # A comparison with NaN is false: a point without a density is never moved to.
        accepted = jnp.log(numerics.uniform(key_test, log_p.shape, dtype)) < log_ratio
        chosen = jax.tree.map(
            lambda new, old: jnp.where(expand_right(accepted, old), new, old), (y, s_y, log_p_y), carry
        )
        return chosen, None if track is None else track(chosen[0], accepted)

    wide = x.astype(dtype)
    if metropolis is None:
        end, tracked = jax.lax.scan(unadjusted, wide, jnp.arange(steps))
    else:
        log_density = lambda x: metropolis(x).astype(dtype)
        log_p = log_density(wide)
        numerics.check_batch(log_p, x, name="metropolis(x)")
        step = functools.partial(adjusted, log_density)
        (end, _, _), tracked = jax.lax.scan(step, (wide, drift(wide), log_p), jnp.arange(steps))
    return end.astype(x.dtype) if track is None else (end.astype(x.dtype), tracked)


# ------------------------------------------------------------------------------------------- chains at noise levels


def annealed(
    key: Array,
    score: Callable[[Array, Array], Array],
    x: Array,
    times: Array,
    *,
    schedule: Schedule,
    steps: int,
    step_size: ArrayLike = 0.1,
    move: Move = straight,
    track: Callable[[Array, Array], Any] | None = None,
) -> Any:
    """The end of Langevin chains run at one noise level after another, `steps` at each, with `h = step_size sigma_t^2`.

    The last sample carries the noise of the last level; `predictions.score_to_x0` takes it off.

    Args:
      key: one key, or an array of keys `[batch]`.
      score: `(x, t) -> grad log p_t(x)`.
      x: `[*batch, *event]`, a draw of the prior at `times[0]`.
      times: `[levels]` or `[levels, *batch]`, decreasing. A level with sigma = 0 leaves x where it is.
      schedule: `t -> (alpha, sigma)`; only sigma is read.
      steps: Langevin steps at each level.
      step_size: in units of sigma_t^2. The paper's epsilon / (2 sigma_L^2); its figures for CIFAR-10 make 0.1.
      move: as in `sample`.
      track: `(x, t) -> pytree`, called after each level.

    Returns:
      `[*batch, *event]` of x's dtype; with `track`, `(sample, tracked)`.

    Source: Song and Ermon 2019, arXiv:1907.05600, algorithm 1.

    Example:
      Data at 3, seen through the exact score:

      >>> from diffjax import schedules
      >>> schedule = schedules.ve(0.01, 10.0)
      >>> score = lambda x, t: (3 - x) / schedule(t)[1] ** 2
      >>> x = annealed(
      ...     jax.random.key(0), score, jnp.zeros(4), schedules.times(9), schedule=schedule, steps=30
      ... )
      >>> print(jnp.round(x, 1))
      [3. 3. 3. 3.]
    """
    if jnp.ndim(times) < 1:
        raise ValueError(f"expected times of shape [levels, ...], got {jnp.shape(times)}")
    numerics.check_batch(times[0], x, name="times[0]")
    key = numerics.as_keys(key)
    dtype = numerics.compute_dtype(x)

    def level(x, row):
        i, t = row
        h = jnp.asarray(step_size, dtype) * schedule(t)[1].astype(dtype) ** 2
        x = sample(numerics.fold_in(key, i), lambda x: score(x, t), x, step_size=h, steps=steps, move=move)
        return x, None if track is None else track(x, t)

    end, tracked = jax.lax.scan(level, x.astype(dtype), (jnp.arange(times.shape[0]), times))
    return end.astype(x.dtype) if track is None else (end.astype(x.dtype), tracked)
