"""Walks that need only a score: Langevin steps, Metropolis, annealing, and the corrector of predictor-corrector.

The diffusion `dx = s(x) dtau + sqrt(2) dw` with `s = grad log p` leaves p as it is. A step of size h draws a displacement and moves along it,

    v = h s(x) + sqrt(2 h) z,    y = move(x, v),    z ~ N(0, I),

and the law of the chain is off by O(h). Metropolis' test mends that: go to y with probability min(1, r), else stay,

    log r = log p(y) - log p(x) + log N(w; h s(y), 2h) - log N(v; h s(x), 2h),

where w is the displacement that leads from y back to x. `(x, v) -> (y, w)` undoes itself and keeps volume, so the test is exact on
every space that has such a `move`: the plane (`straight`), a box with mirrors for walls (`reflect`), angles and rotations (`geodesic`).
Without a score the walk is random-walk Metropolis.

`sample` is that chain. `annealed` runs it down a ladder of noise levels; `correct` takes steps at one noise level, sized by the
signal-to-noise rule, and `predictor_corrector` takes them after every step of any other sampler.
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


def signal_to_noise(ratio: ArrayLike, score: Array, z: Array, t: ArrayLike) -> Array:
    """The Langevin step size `h = 2 (ratio |z| / |score|)^2`, of t's shape; 0 where the score is 0.

    So sized, the score's part of the step is `2 ratio` times the noise's: the step fits any noise level untold.

    Args:
      ratio: the paper's r; 0.16 there for VE images, 0.01 to 0.2 elsewhere.
      score: `[*batch, *event]`.
      z: `[*batch, *event]`, the step's own noise.
      t: `[*batch]`; only its shape is read. For times `[batch]` each example has its own norms, and the step does not depend on its
        company. For a scalar they run over the whole array, as the paper's code averages them over the batch: better in few dimensions,
        where the norm of a single score may be almost 0.

    Source: Song et al. 2021, arXiv:2011.13456, algorithms 4-5 (the factor alpha_i of algorithm 5 tends to 1 with the number of steps, and is left out).

    Example:
      >>> print(signal_to_noise(0.5, jnp.array([2.0, 0.0]), jnp.array([0.0, 1.0]), 0.5))
      0.125
    """
    score, z, ratio = numerics.upcast(score, z, ratio)
    return 2 * ratio * ratio * numerics.safe_divide(numerics.sum_event(z * z, t), numerics.sum_event(score * score, t))


def correct(
    key: Array,
    score: Callable[[Array, Array], Array],
    x: Array,
    t: ArrayLike,
    *,
    ratio: ArrayLike = 0.16,
    steps: int = 1,
    move: Move = straight,
) -> Array:
    """`x` after Langevin steps at the fixed noise level t, sized by `signal_to_noise`: the corrector, which pulls x back to p_t.

    Args:
      key: one key, or an array of keys `[batch]`.
      score: `(x, t) -> grad log p_t(x)`.
      x: `[*batch, *event]`.
      t: `[*batch]` or scalar.
      ratio: the signal-to-noise ratio r.
      steps: number of steps.
      move: as in `sample`; `reflect` for a box.

    Returns:
      `[*batch, *event]` of x's dtype.

    Source: Song et al. 2021, arXiv:2011.13456, algorithms 4-5.

    Example:
      >>> x = correct(jax.random.key(0), lambda x, t: -x, jnp.full(5000, 2.0), 0.5, steps=100)
      >>> print(jnp.abs(x.mean()) < 0.1, jnp.abs(x.std() - 1) < 0.1)
      True True
    """
    key = numerics.as_keys(key)
    dtype = numerics.compute_dtype(x)

    def step(x, i):
        s = score(x, jnp.asarray(t)).astype(dtype)
        z = numerics.normal(numerics.fold_in(key, i), s.shape, dtype)
        h = expand_right(signal_to_noise(ratio, s, z, t), s)
        return move(x, h * s + numerics.safe_sqrt(2 * h) * z)[0], None

    return jax.lax.scan(step, x.astype(dtype), jnp.arange(steps))[0].astype(x.dtype)


def reverse_diffusion(
    score: Callable[[Array, Array], Array], *, schedule: Schedule, move: Move = straight, noise: ArrayLike = 1.0
) -> Callable[[Array, Array, Array, Array], Array]:
    """A step `(key, x, s, t) -> x_s` of the reverse Brownian motion on any space with a `move` (schedules with alpha = 1).

    With d = sigma_t^2 - sigma_s^2 the variance that is taken back,

        v = (1 + noise^2)/2 d score(x, t) + noise sqrt(d) z,    x_s = move(x, v),

    which has the right marginals for every noise level in the limit of many steps: 1 is the reverse diffusion, 0 the probability flow. With
    `reflect` it is the reflected Euler-Maruyama step. Schedules with alpha < 1 have better steps in `samplers.gaussian`.

    Args:
      score: `(x, t) -> grad log p_t(x)`.
      schedule: `t -> (1, sigma)`.
      move: the space.
      noise: share of fresh noise, >= 0.

    Source: Song et al. 2021, arXiv:2011.13456, eq. 46; the noise level: Karras et al. 2022, arXiv:2206.00364, eq. 6; on a box: Lou and Ermon
      2023, arXiv:2304.04740, sec. 4.

    Example:
      >>> from diffjax import schedules
      >>> schedule = schedules.ve(0.01, 1.0)
      >>> predictor = reverse_diffusion(lambda x, t: (0.25 - x) / schedule(t)[1] ** 2, schedule=schedule, move=reflect, noise=0.0)
      >>> print(predictor(jax.random.key(0), jnp.array([0.75]), 0.0, 0.5))
      [0.5025]
    """

    def step(key, x, s, t):
        dtype = numerics.compute_dtype(x)
        slope = score(x, jnp.asarray(t)).astype(dtype)
        low, high = (schedule(time)[1].astype(dtype) for time in (s, t))
        taken = expand_right((high - low) * (high + low), slope)
        share = jnp.asarray(noise, dtype)
        v = 0.5 * (1 + share * share) * taken * slope
        if not (isinstance(noise, (int, float)) and noise == 0):
            v = v + share * numerics.safe_sqrt(taken) * numerics.normal(key, slope.shape, dtype)
        return move(x.astype(dtype), v)[0].astype(x.dtype)

    return step


def predictor_corrector(
    key: Array,
    predictor: Callable[[Array, Array, Array, Array], Array],
    score: Callable[[Array, Array], Array],
    xt: Array,
    times: Array,
    *,
    ratio: ArrayLike = 0.16,
    steps: int = 1,
    move: Move = straight,
    track: Callable[[Array, Array], Any] | None = None,
) -> Any:
    """The end of a walk from `xt` at `times[0]` to `times[-1]`: a predictor's step to each time, then Langevin steps there.

    Args:
      key: one key, or an array of keys `[batch]`.
      predictor: `(key, x, s, t) -> x_s`: `reverse_diffusion(...)`, or a bridge, `lambda key, x, s, t: process.bridge(key, guess(x, t), x, s, t)`.
      score: `(x, t) -> grad log p_t(x)`, for the corrector.
      xt: `[*batch, *event]` at `times[0]`.
      times: `[steps + 1]` or `[steps + 1, *batch]`, decreasing. The corrector also runs at the last one: where sigma = 0 there, its score must be finite.
      ratio: the corrector's signal-to-noise ratio.
      steps: corrector steps after each step of the predictor.
      move: the corrector's space.
      track: `(x, t) -> pytree`, called after each corrector.

    Returns:
      `[*batch, *event]`; with `track`, `(sample, tracked)`.

    Source: Song et al. 2021, arXiv:2011.13456, algorithm 1 (2-3 for VE and VP).

    Example:
      >>> from diffjax import schedules
      >>> schedule = schedules.ve(0.01, 10.0)
      >>> score = lambda x, t: (3 - x) / schedule(t)[1] ** 2
      >>> x1 = 10 * jax.random.normal(jax.random.key(0), (4,))
      >>> x = predictor_corrector(jax.random.key(1), reverse_diffusion(score, schedule=schedule), score, x1, schedules.times(50))
      >>> print(jnp.round(x, 1))
      [3. 3. 3. 3.]
    """
    if jnp.ndim(times) < 1 or times.shape[0] < 2:
        raise ValueError(f"expected times of shape [steps + 1, ...] with at least one step, got {jnp.shape(times)}")
    numerics.check_batch(times[0], xt, name="times[0]")
    key = numerics.as_keys(key)

    def step(x, row):
        i, t, s = row
        key_predict, key_correct = numerics.split(numerics.fold_in(key, i))
        x = predictor(key_predict, x, s, t)
        x = correct(key_correct, score, x, s, ratio=ratio, steps=steps, move=move)
        return x, None if track is None else track(x, s)

    rows = (jnp.arange(times.shape[0] - 1), times[:-1], times[1:])
    end, tracked = jax.lax.scan(step, xt, rows)
    return end if track is None else (end, tracked)
