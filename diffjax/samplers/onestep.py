"""Solvers without a memory: DDIM, ancestral and Euler steps, Heun's and the midpoint's.

What a solver is, too: a record of three functions. `plan` knows the grid and the schedule and works out, for all steps at once and
outside the loop, the few numbers that each step needs; `step` is then a handful of multiplications and the network's call.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from diffjax import numerics
from diffjax.numerics import expand_right, safe_divide
from diffjax.samplers import frames
from diffjax.samplers.frames import Frame
from diffjax.schedules import Schedule, time_of_logsnr

PredictX0 = Callable[[Array, Array], Array]
"""`(xt, t) -> x0_hat`, of xt's shape."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Solver:
    """How to walk a grid of times: a record of pure functions, compared by identity.

    Attributes:
      plan: `(times, schedule) -> rows`, a pytree of arrays `[steps, *batch]`: the numbers of each step.
      init: `(xt) -> history`, the pytree that the first step finds; its shapes never change.
      step: `(key, predict_x0, xt, history, s, t, row) -> (xs, x0_hat, history)`, from t to s. xt and what `predict_x0` gives are float32
        or float64. A deterministic solver ignores the key.
    """

    plan: Callable[[Array, Schedule], Any]
    init: Callable[[Array], Any]
    step: Callable[..., tuple[Array, Array, Any]]


def levels(times: Array, schedule: Schedule) -> tuple[frames.Level, frames.Level]:
    """The `(alpha, sigma)` that each step of a grid goes to, and comes from: `(targets, sources)`, arrays `[steps, *batch]`.

    Example:
      >>> from diffjax import schedules
      >>> targets, sources = levels(jnp.array([1.0, 0.5, 0.0]), schedules.rectified())
      >>> print(targets[1], sources[1])
      [0.5 0. ] [1.  0.5]
    """
    alpha, sigma = schedule(times)
    return (alpha[1:], sigma[1:]), (alpha[:-1], sigma[:-1])


def combine(terms: list[tuple[Array, Array]]) -> Array:
    """The sum of `weight * array`, each weight `[*batch]` or a scalar.

    Example:
      >>> print(combine([(jnp.array(2.0), jnp.ones(2)), (jnp.array([1.0, 3.0]), jnp.ones(2))]))
      [3. 5.]
    """
    first, *rest = [expand_right(w, x) * x for w, x in terms]
    return sum(rest, start=first)


def add_noise(key: Array, x: Array, std: Array) -> Array:
    """`x + std z`, z ~ N(0, I).

    Example:
      >>> print(add_noise(jax.random.key(0), jnp.ones(2), jnp.array(0.0)))
      [1. 1.]
    """
    return x + expand_right(std, x) * numerics.normal(key, x.shape, x.dtype)


def split_noise(target: frames.Level, source: frames.Level, eta: float) -> tuple[Array, Array]:
    """The noise of x_s that is kept of eps_hat and that is drawn afresh: `(kept, new)`, kept^2 + new^2 = sigma_s^2.

    new is eta times the bridge's std, `sigma_s sqrt(1 - r)`, r = (alpha_t sigma_s / (alpha_s sigma_t))^2 the share of the old noise that the
    bridge keeps. For VP schedules this is the paper's `eta sqrt((1 - abar_s) / (1 - abar_t)) sqrt(1 - abar_t / abar_s)`.

    Source: Song et al. 2021, arXiv:2010.02502, eq. 16.

    Example:
      >>> one = jnp.array(1.0)
      >>> kept, new = split_noise((one, one * 3), (one, one * 5), 1.0)
      >>> print(round(float(kept), 4), round(float(new), 4))
      1.8 2.4
    """
    (alpha_s, sigma_s), (alpha_t, sigma_t) = target, source
    r = jnp.minimum(safe_divide(alpha_t * sigma_s, alpha_s * sigma_t) ** 2, jnp.ones_like(sigma_s))
    # sqrt(sigma_s^2 - new^2) without cancelling.
    kept = sigma_s * numerics.safe_sqrt((1 - eta) * (1 + eta) + eta * eta * r)
    return kept, eta * sigma_s * numerics.safe_sqrt(1 - r)


# ------------------------------------------------------------------------------------------------- one estimate a step


def ddim(eta: float = 0.0) -> Solver:
    """The DDIM step: `x_s = alpha_s x0_hat + sqrt(sigma_s^2 - new^2) eps_hat + new z`, new = eta times the bridge's std.

    At eta = 0 it is deterministic (no noise is drawn), of order 1, and runs both ways: with times that increase it encodes data
    as noise. At eta = 1 it is ancestral sampling. In the terms of k-diffusion eta = 1 is "Euler ancestral".

    Args:
      eta: share of fresh noise, in [0, 1].

    Raises:
      ValueError: eta outside [0, 1].

    Source: Song et al. 2021, arXiv:2010.02502, eq. 12 and 16.

    Example:
      >>> ddim(1.5)
      Traceback (most recent call last):
      ...
      ValueError: expected eta in [0, 1] (0 deterministic, 1 ancestral), got eta=1.5
    """
    check_eta(eta)

    def plan(times, schedule):
        (alpha_s, sigma_s), source = levels(times, schedule)
        kept, new = split_noise((alpha_s, sigma_s), source, eta) if eta else (sigma_s, None)
        return frames.ddim_weights((alpha_s, kept), source), new

    def step(key, predict_x0, xt, history, s, t, row):
        (on_xt, on_x0), new = row
        x0_hat = predict_x0(xt, t)
        xs = combine([(on_xt, xt), (on_x0, x0_hat)])
        return xs if new is None else add_noise(key, xs, new), x0_hat, history

    return Solver(plan=plan, init=lambda xt: None, step=step)


def check_eta(eta: float) -> None:
    """Raises a `ValueError` for an eta outside [0, 1]."""
    if not 0 <= eta <= 1:
        raise ValueError(f"expected eta in [0, 1] (0 deterministic, 1 ancestral), got {eta=}")


def ancestral() -> Solver:
    """The ancestral step of DDPM: a draw of the bridge `q(x_s | x_0 = x0_hat, x_t)`, the same law as `ddim(1.0)`.

    Source: Ho et al. 2020, arXiv:2006.11239, algorithm 2, with the posterior variance.

    Example:
      >>> ancestral().init(jnp.zeros(2)) is None  # no history
      True
    """
    return ddim(1.0)


def euler() -> Solver:
    """Euler's step of the probability-flow ODE in `d(x / alpha) = eps_hat d(sigma / alpha)`, which is DDIM's at eta = 0. Order 1.

    It is Euler's step in the frame `flow` too, and so for a flow's velocity under the rectified schedule.

    Source: Karras et al. 2022, arXiv:2206.00364, algorithm 1 without lines 6-8.

    Example:
      >>> euler().init(jnp.zeros(2)) is None
      True
    """
    return ddim(0.0)


# ------------------------------------------------------------------------------------------------ two estimates a step


def heun(churn: float = 0.0, *, s_noise: float = 1.0, frame: Frame = frames.ratio) -> Solver:
    """Heun's step: Euler's to s, a second estimate there, and the mean of the two slopes. Order 2, two network calls a step.

    The second call is left out where it could have no say, as in the step to sigma = 0.

    Args:
      churn: EDM's S_churn, >= 0: before each step sigma / alpha is raised by the factor 1 + min(churn / steps, sqrt 2 - 1) with fresh
        noise (not beyond t = 1).
      s_noise: EDM's S_noise, the standard deviation of that noise.
      frame: whose slope is averaged; `frames.ratio` is EDM's, `frames.flow` errs less in few steps.

    Raises:
      ValueError: a negative churn.

    Source: Karras et al. 2022, arXiv:2206.00364, algorithms 1 and 2.

    Example:
      >>> heun(-1.0)
      Traceback (most recent call last):
      ...
      ValueError: expected churn >= 0 (0 deterministic), got churn=-1.0
    """
    if churn < 0:
        raise ValueError(f"expected churn >= 0 (0 deterministic), got {churn=}")

    def plan(times, schedule):
        target, source = levels(times, schedule)
        t, stir = times[:-1], None
        if churn:
            gamma = min(churn / (times.shape[0] - 1), math.sqrt(2) - 1)
            t = _time_at(frames.half_logsnr(*source, t) - math.log1p(gamma), t, schedule)
            raised = schedule(t)
            grow = jnp.where(source[0] > 0, safe_divide(raised[0], source[0]), jnp.ones_like(t))
            new = numerics.safe_sqrt(jnp.maximum(raised[1] ** 2 - (grow * source[1]) ** 2, jnp.zeros_like(t)))
            stir, source = (t, grow, s_noise * new), raised
        return stir, _two_stages(target, target, source, (times[1:], times[:-1]), frame)

    def step(key, predict_x0, xt, history, s, t, row):
        stir, stages = row
        if stir is not None:
            t, grow, new = stir
            xt = add_noise(key, combine([(grow, xt)]), new)
        return *_walk(predict_x0, xt, s, t, stages), history

    return Solver(plan=plan, init=lambda xt: None, step=step)


def dpmpp_2s(eta: float = 0.0) -> Solver:
    """The single-step DPM-Solver++(2S): a second estimate halfway in log-SNR. Order 2, two network calls a step (one to sigma = 0).

        x_s = (sigma_s / sigma_t) x_t + alpha_s (1 - e^-h) x0_hat(halfway).

    It needs no past, and so stands a guidance weight that changes from step to step, or few large steps, better than `dpmpp(2)`.

    Args:
      eta: share of fresh noise, in [0, 1]: the step goes to the noise `kept` of `split_noise`, and new noise is added.
        In the terms of k-diffusion eta = 1 is "DPM-Solver++(2S) ancestral".

    Raises:
      ValueError: eta outside [0, 1].

    Source: Lu et al. 2022, arXiv:2211.01095, algorithm 1 with r = 1/2.

    Example:
      >>> dpmpp_2s(2.0)
      Traceback (most recent call last):
      ...
      ValueError: expected eta in [0, 1] (0 deterministic, 1 ancestral), got eta=2.0
    """
    check_eta(eta)

    def plan(times, schedule):
        (alpha_s, sigma_s), source = levels(times, schedule)
        kept, new = split_noise((alpha_s, sigma_s), source, eta) if eta else (sigma_s, None)
        here, there = frames.half_logsnr(*source, times), frames.half_logsnr(alpha_s, kept, times)
        middle = _time_at(0.5 * (here + there), times[1:], schedule)
        return (
            middle,
            _two_stages((alpha_s, kept), schedule(middle), source, (middle, times[:-1]), frames.data, True),
            new,
        )

    def step(key, predict_x0, xt, history, s, t, row):
        middle, stages, new = row
        xs, x0_hat = _walk(predict_x0, xt, middle, t, stages)
        return xs if new is None else add_noise(key, xs, new), x0_hat, history

    return Solver(plan=plan, init=lambda xt: None, step=step)


def _time_at(half_logsnr: Array, otherwise: Array, schedule: Schedule) -> Array:
    """The time of a log(alpha / sigma), and `otherwise` where that is infinite."""
    finite = jnp.isfinite(half_logsnr)
    return jnp.where(finite, time_of_logsnr(2 * jnp.where(finite, half_logsnr, 0.0), schedule=schedule), otherwise)


def _two_stages(target, middle, source, times, frame, halve=False):
    """The numbers of `x_s = DDIM + w [f(middle) - f(source)]`: the weights of (xt, x0_hat) in the DDIM steps to the target and to the
    middle, and those of (x_middle, x0_middle, xt, x0_hat) in the change of f."""
    c_middle, c_source = (frame.clock(*level, t) for level, t in zip((middle, source), times, strict=True))
    h, u = frame.clock(*target, times[0]) - c_source, c_middle - c_source
    if halve:  # the paper's m_1, of the same order as the exact one
        finite = jnp.isfinite(h)
        moment = 0.5 * frames.held(target, source, frame)[1] * jnp.where(finite, h, jnp.zeros_like(h))
    else:
        (moment,) = frame.moments(target, source, h, 1)
    # At sigma = 0 the slope is unknown, and at an infinite distance it is no news.
    useful = (middle[1] > 0) & jnp.isfinite(u)
    w = jnp.where(useful, safe_divide(moment, jnp.where(useful, u, jnp.ones_like(u))), jnp.zeros_like(u))
    there, here = frames.slope_weights(middle, frame), frames.slope_weights(source, frame)
    change = (w * there[0], w * there[1], -w * here[0], -w * here[1])
    return frames.ddim_weights(target, source), frames.ddim_weights(middle, source), change


def _walk(predict_x0, xt, middle, t, stages):
    (on_xt, on_x0), (to_middle, of_x0), change = stages
    x0_hat = predict_x0(xt, t)
    first = combine([(on_xt, xt), (on_x0, x0_hat)])

    def improved():
        x_middle = combine([(to_middle, xt), (of_x0, x0_hat)])
        x0_middle = predict_x0(x_middle, middle)
        return first + combine(list(zip(change, (x_middle, x0_middle, xt, x0_hat), strict=True)))

    called = jnp.any(jnp.stack([jnp.any(w != 0) for w in change]))
    return jax.lax.cond(called, improved, lambda: first), x0_hat
