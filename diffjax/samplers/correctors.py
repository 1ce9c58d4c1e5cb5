"""Steps that leave the noise where it is and pull the sample back to its law: between the steps of another sampler.

A predictor goes from t to s and errs a little. A corrector then moves x_s by something that leaves p_s as it is: Langevin steps along the
score (`correct`, sized by the signal-to-noise rule), or a step up to t with fresh noise and down again (`resampled`), which
inpainting needs.

`predictor_corrector` is the loop for any space, from a score, also without a corrector; `reverse_diffusion` and `reverse_bridge` are predictors for
it, and `denoise` takes off the noise that is left at its end. `corrected` and `resampled` wrap a
solver of `samplers.gaussian`, so that `gaussian.sample` takes them like any other.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from diffjax import numerics
from diffjax.numerics import expand_right
from diffjax.processes.predictions import x0_to_score
from diffjax.samplers import onestep
from diffjax.samplers.langevin import Move, straight
from diffjax.samplers.onestep import Solver
from diffjax.schedules import Schedule

# ---------------------------------------------------------------------------------------------------------- scores


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
      key: one key; or an array of keys `[batch]`, and then each example has its own norms, whatever t's shape.
      score: `(x, t) -> grad log p_t(x)`.
      x: `[*batch, *event]`.
      t: `[*batch]` or scalar.
      ratio: the signal-to-noise ratio r.
      steps: number of steps.
      move: the space, as in `langevin.sample`; `langevin.reflect` for a box.

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

    # Keys of each example's own ask for independence of the batch: then so are the norms.
    batch = t if jnp.ndim(t) >= key.ndim else jnp.zeros(key.shape)

    def step(x, i):
        s = score(x, jnp.asarray(t)).astype(dtype)
        z = numerics.normal(numerics.fold_in(key, i), s.shape, dtype)
        h = expand_right(signal_to_noise(ratio, s, z, batch), s)
        return move(x, h * s + numerics.safe_sqrt(2 * h) * z)[0], None

    return jax.lax.scan(step, x.astype(dtype), jnp.arange(steps))[0].astype(x.dtype)


Predictor = Callable[[Array, Array, Array, Array], Array]
"""`(key, x, s, t) -> x_s`, a step from t down to s."""


def reverse_diffusion(
    score: Callable[[Array, Array], Array],
    *,
    schedule: Schedule,
    move: Move = straight,
    noise: ArrayLike | Callable[[Array], Array] = 1.0,
) -> Predictor:
    """A step `(key, x, s, t) -> x_s` of the reverse Brownian motion on any space with a `move` (schedules with alpha = 1).

    With d = sigma_t^2 - sigma_s^2 the variance that is taken back,

        v = (1 + noise^2)/2 d score(x, t) + noise sqrt(d) z,    x_s = move(x, v),

    which has the right marginals for every noise level in the limit of many steps: 1 is the reverse diffusion, 0 the probability flow. With
    `langevin.reflect` it is the reflected Euler-Maruyama step, with `langevin.clip` the projected one. Schedules with alpha < 1 have better
    steps in `samplers.gaussian`.

    Args:
      score: `(x, t) -> grad log p_t(x)`.
      schedule: `t -> (1, sigma)`.
      move: the space.
      noise: share of fresh noise, >= 0; or `t -> share`, scalar or `[*batch]`, which may go from one kind of walk to another: `lambda t: t` is
        the diffusion at first and the flow at last.

    Source: Song et al. 2021, arXiv:2011.13456, eq. 46; the noise level: Karras et al. 2022, arXiv:2206.00364, eq. 6; on a box: Lou and Ermon
      2023, arXiv:2304.04740, sec. 4 (their g-bar, noise times g).

    Example:
      >>> from diffjax import schedules
      >>> from diffjax.samplers.langevin import reflect
      >>> schedule = schedules.ve(0.01, 1.0)
      >>> predictor = reverse_diffusion(lambda x, t: (0.25 - x) / schedule(t)[1] ** 2, schedule=schedule, move=reflect, noise=0.0)
      >>> print(predictor(jax.random.key(0), jnp.array([0.75]), 0.0, 0.5))
      [0.5025]
    """

    def step(key, x, s, t):
        slope, _, _, taken = _taken(score, schedule, x, s, t)
        share = expand_right(jnp.asarray(noise(t) if callable(noise) else noise, slope.dtype), slope)
        v = 0.5 * (1 + share * share) * taken * slope
        if not (isinstance(noise, (int, float)) and noise == 0):
            v = v + share * numerics.safe_sqrt(taken) * numerics.normal(key, slope.shape, slope.dtype)
        return move(x.astype(slope.dtype), v)[0].astype(x.dtype)

    return step


def reverse_bridge(score: Callable[[Array, Array], Array], *, schedule: Schedule, move: Move = straight) -> Predictor:
    """A step `(key, x, s, t) -> x_s` along the bridge to the clean point that a score points at (schedules with alpha = 1).

    With d = sigma_t^2 - sigma_s^2,

        v = d score(x, t) + sqrt(d) sigma_s / sigma_t z,    x_s = move(x, v):

    the Brownian bridge from x to `x + sigma_t^2 score`, exact in any number of steps where that point is certain, and without noise where
    sigma_s = 0.

    On a box that point is the mean of x_0 on the unfolded line, where the path began without having met a wall. It lies in [0, 1] for every true score,
    but it is no estimate of x_0 itself (at a wall the score is 0, so it is the wall), and `cube.bridge` to it would fold a path that
    is unfolded: its drift, `d cube.score(x + sigma_t^2 score, x)`, is too weak near walls however small the steps. Here it is right.

    Args:
      score: `(x, t) -> grad log p_t(x)`.
      schedule: `t -> (1, sigma)`.
      move: the space; `langevin.reflect` for a box.

    Source: Ho et al. 2020, arXiv:2006.11239, algorithm 2; Song et al. 2021, arXiv:2011.13456, eq. 47; unfolded for a box here.

    Example:
      >>> from diffjax import schedules
      >>> schedule = schedules.ve(0.01, 1.0)
      >>> predictor = reverse_bridge(lambda x, t: (0.3 - x) / schedule(t)[1] ** 2, schedule=schedule)
      >>> print(predictor(jax.random.key(0), jnp.array([0.75]), 0.0, 1.0).round(1))
      [0.3]
    """

    def step(key, x, s, t):
        slope, low, high, taken = _taken(score, schedule, x, s, t)
        left = expand_right(numerics.safe_divide(low, high), slope)
        v = taken * slope + numerics.safe_sqrt(taken) * left * numerics.normal(key, slope.shape, slope.dtype)
        return move(x.astype(slope.dtype), v)[0].astype(x.dtype)

    return step


def _taken(
    score: Callable[[Array, Array], Array], schedule: Schedule, x: Array, s: ArrayLike, t: ArrayLike
) -> tuple[Array, Array, Array, Array]:
    """The score at t, sigma_s, sigma_t, and the variance between, expanded."""
    dtype = numerics.compute_dtype(x)
    slope = score(x, jnp.asarray(t)).astype(dtype)
    low, high = (schedule(time)[1].astype(dtype) for time in (s, t))
    return slope, low, high, expand_right((high - low) * (high + low), slope)


def denoise(
    score: Callable[[Array, Array], Array], x: Array, t: ArrayLike, *, schedule: Schedule, move: Move = straight
) -> Array:
    """`move(x, sigma_t^2 score(x, t))`, x without the noise that is left in it at t: Tweedie's formula, the last step of a walk (alpha = 1).

    It is `reverse_bridge` down to sigma = 0, and is called on what `predictor_corrector` returns. In the plane it is the mean of x_0 given x; on a
    box, that of x_0 unfolded, which leaves points on a wall where they are.

    Args:
      score: `(x, t) -> grad log p_t(x)`.
      x: `[*batch, *event]`.
      t: `[*batch]` or scalar, the last time of the walk, sigma > 0.
      schedule: `t -> (1, sigma)`.
      move: the space.

    Source: Efron 2011; Song et al. 2021, arXiv:2011.13456, app. G; Jolicoeur-Martineau et al. 2021, arXiv:2009.05475 (why it matters). The code of
      reflected diffusion computes the like and returns the noisy point.

    Example:
      >>> from diffjax import schedules
      >>> schedule = schedules.ve(0.1, 1.0)
      >>> print(denoise(lambda x, t: (0.25 - x) / schedule(t)[1] ** 2, jnp.array([0.3]), 0.0, schedule=schedule))
      [0.25]
    """
    dtype = numerics.compute_dtype(x)
    slope = score(x, jnp.asarray(t)).astype(dtype)
    sigma = expand_right(schedule(t)[1].astype(dtype), slope)
    return move(x.astype(dtype), sigma * sigma * slope)[0].astype(x.dtype)


def predictor_corrector(
    key: Array,
    predictor: Predictor,
    score: Callable[[Array, Array], Array] | None,
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
      predictor: `(key, x, s, t) -> x_s`: `reverse_diffusion(...)`, `reverse_bridge(...)`, or any bridge, `lambda key, x, s, t:
        process.bridge(key, guess(x, t), x, s, t)`.
      score: `(x, t) -> grad log p_t(x)`, for the corrector; None without one.
      xt: `[*batch, *event]` at `times[0]`: a draw of `process.prior`, or any start of your own (noisy data at a time below 1, to vary them).
      times: `[steps + 1]` or `[steps + 1, *batch]`, decreasing. The corrector also runs at the last one: where sigma = 0 there, its score must be finite.
      ratio: the corrector's signal-to-noise ratio.
      steps: corrector steps after each step of the predictor; 0 for the predictor alone.
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
    if steps and score is None:
        raise ValueError(f"the corrector's {steps=} need a score: pass one, or steps=0 for the predictor alone")
    key = numerics.as_keys(key)

    def step(x, row):
        i, t, s = row
        key_predict, key_correct = numerics.split(numerics.fold_in(key, i))
        x = predictor(key_predict, x, s, t)
        if steps and score is not None:
            x = correct(key_correct, score, x, s, ratio=ratio, steps=steps, move=move)
        return x, None if track is None else track(x, s)

    rows = (jnp.arange(times.shape[0] - 1), times[:-1], times[1:])
    end, tracked = jax.lax.scan(step, xt, rows)
    return end if track is None else (end, tracked)


# --------------------------------------------------------------------------------------------------------- solvers


def corrected(solver: Solver, *, ratio: ArrayLike = 0.16, steps: int = 1) -> Solver:
    """A solver for `gaussian.sample` that takes Langevin steps after each of its own, at the level it has come to; none at sigma = 0.

    The score is that of the estimate, `(alpha x0_hat - x_s) / sigma^2`, so it is also how guidance by a weight reaches its tilted law: with enough
    steps, each level's sample follows that level's guided score.

    Args:
      solver: one without a memory, such as `ddim()` (a multistep solver's past would not be that of the corrected point).
      ratio: the signal-to-noise ratio r of `signal_to_noise`.
      steps: Langevin steps, each with one call of the model.

    Source: Song et al. 2021, arXiv:2011.13456, algorithms 1-5; guidance: Bradley and Nakkiran 2024, arXiv:2408.09000.

    Example:
      >>> from diffjax import schedules
      >>> from diffjax.samplers import gaussian
      >>> x = gaussian.sample(
      ...     jax.random.key(0), lambda x, t: jnp.full_like(x, 3.0), jnp.ones(2), schedules.times(5), schedule=schedules.cosine(),
      ...     solver=corrected(gaussian.ddim()),
      ... )
      >>> print(x)
      [3. 3.]
    """

    def plan(times, schedule):
        targets, _ = onestep.levels(times, schedule)
        return solver.plan(times, schedule), targets

    def step(key, predict_x0, xt, history, s, t, row):
        inner, (alpha, sigma) = row
        key_predict, key_correct = numerics.split(key)
        xs, x0_hat, history = solver.step(key_predict, predict_x0, xt, history, s, t, inner)
        score = lambda x, s: x0_to_score(predict_x0(x, s), x, alpha, sigma)
        fix = lambda x: correct(key_correct, score, x, s, ratio=ratio, steps=steps)
        return jax.lax.cond(jnp.any(sigma > 0), fix, lambda x: x, xs), x0_hat, history

    return Solver(plan=plan, init=solver.init, step=step)


def resampled(solver: Solver, rounds: int) -> Solver:
    """A solver for `gaussian.sample` that takes each of its steps `rounds` times, going back to t with fresh noise in between.

    From x_s the noising law leads back to `x_t ~ N(a x_s, sigma_t^2 - a^2 sigma_s^2)`, a = alpha_t / alpha_s. It gives the entries that `inpaint` writes
    down the time to tell the others.

    Args:
      solver: a stochastic one without a memory, such as `ancestral()`.
      rounds: times that each step is taken, >= 1: so many calls of the model a step. (RePaint's r, with a jump of one step.)

    Raises:
      ValueError: no rounds.

    Source: Lugmayr et al. 2022 (RePaint), arXiv:2201.09865, algorithm 1.

    Example:
      >>> from diffjax import schedules
      >>> from diffjax.samplers import gaussian
      >>> x = gaussian.sample(
      ...     jax.random.key(0), lambda x, t: jnp.full_like(x, 3.0), jnp.ones(2), schedules.times(5), schedule=schedules.cosine(),
      ...     solver=resampled(gaussian.ancestral(), 3),
      ... )
      >>> print(x)
      [3. 3.]
    """
    if rounds < 1:
        raise ValueError(f"expected at least one round, got {rounds=}")
    if rounds == 1:
        return solver

    def plan(times, schedule):
        (alpha_s, sigma_s), (alpha_t, sigma_t) = onestep.levels(times, schedule)
        back = numerics.safe_divide(alpha_t, alpha_s)
        fresh = numerics.safe_sqrt(jnp.maximum((sigma_t - back * sigma_s) * (sigma_t + back * sigma_s), 0.0))
        return solver.plan(times, schedule), back, fresh

    def step(key, predict_x0, xt, history, s, t, row):
        inner, back, fresh = row

        def again(xt, i):
            key_down, key_up = numerics.split(numerics.fold_in(key, i))
            xs, _, _ = solver.step(key_down, predict_x0, xt, history, s, t, inner)
            z = numerics.normal(key_up, xs.shape, xs.dtype)
            return (expand_right(back, xs) * xs + expand_right(fresh, xs) * z).astype(xt.dtype), None

        xt, _ = jax.lax.scan(again, xt, jnp.arange(rounds - 1))
        return solver.step(numerics.fold_in(key, rounds), predict_x0, xt, history, s, t, inner)

    return Solver(plan=plan, init=solver.init, step=step)
