"""How much signal and how much noise there is at time t.

A *schedule* is a function `t -> (alpha, sigma)`, made by a lower-case factory. A Gaussian process reads

    x_t = alpha(t) x_0 + sigma(t) eps,    eps ~ N(0, I),    logsnr(t) = 2 log(alpha / sigma);

reflected, wrapped and rotational processes read `sigma` as the standard deviation of their Brownian motion (alpha = 1);
jump processes on symbols read `alpha` as the probability that a symbol has not jumped yet.

Derivatives are never stored: `sde_coefficients` and `dlogsnr` take `jax.jvp`. Any function of the same signature is a
schedule, also one with learned parameters.

Then: `times`, the grids a sampler walks (`uniform`, `quadratic`, `karras_spacing`, `logsnr_spacing`, `trailing`), and the draws of t that
training uses (`uniform_draw`, `stratified_draw`, and the warps `logit_normal` and `logsnr_importance`).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from diffjax import numerics

Schedule = Callable[[ArrayLike], tuple[Array, Array]]
"""`t -> (alpha, sigma)`: two arrays of t's shape."""

Spacing = Callable[[Array, float, float], Array]
"""`(u, start, stop) -> t`: fractions of the way from start to stop, to times."""


def _time(t: ArrayLike) -> Array:
    numerics.check_time(t)
    return numerics.upcast(t)[0]


# ------------------------------------------------------------------------------------------------------- schedules


def vp_linear(beta_min: float = 0.1, beta_max: float = 20.0) -> Schedule:
    """The variance-preserving schedule with a rate beta(t) linear in t: `alpha = exp(-1/2 int_0^t beta)`, alpha^2 + sigma^2 = 1.

    Args:
      beta_min: rate at t = 0, >= 0.
      beta_max: rate at t = 1; 20 leaves alpha(1) = 0.0066.

    Returns:
      a schedule. `sigma` comes from `expm1`: `sqrt(1 - alpha^2)` would be 0.6% off at t = 1e-5.

    Source: Ho et al. 2020, arXiv:2006.11239, sec. 4; Song et al. 2021, arXiv:2011.13456, eq. 32-33.

    Example:
      >>> alpha, sigma = vp_linear()(0.5)
      >>> print(round(float(alpha), 4), round(float(sigma), 4))
      0.2812 0.9597
    """

    def schedule(t):
        t = _time(t)
        log_alpha = -0.25 * t * t * (beta_max - beta_min) - 0.5 * t * beta_min
        return jnp.exp(log_alpha), numerics.safe_sqrt(-jnp.expm1(2 * log_alpha))

    return schedule


def cosine(offset: float = 0.008) -> Schedule:
    """The cosine schedule: `alpha = cos(a + (pi/2 - a) t) / cos(a)`, a = pi/2 offset / (1 + offset), alpha^2 + sigma^2 = 1.

    Args:
      offset: keeps a little noise at the first step; the paper's s.

    Returns:
      a schedule with alpha(1) = 0 and sigma(0) = 0 exactly, and no cancellation at either end
      (`cos^2 a - cos^2(a + d) = sin d sin(2a + d)`).

    Source: Nichol and Dhariwal 2021, arXiv:2102.09672, eq. 17.

    Example:
      >>> alpha, sigma = cosine()(0.5)
      >>> print(round(float(alpha), 4), round(float(sigma), 4))
      0.7027 0.7114
    """
    a = 0.5 * math.pi * offset / (1 + offset)
    rest = 0.5 * math.pi / (1 + offset)  # pi/2 - a
    # A rounded angle would cost alpha twice its own rounding, which a fast chain multiplies: so it is a step from the nearest of 17 exact values.
    grid = rest * (1 - np.arange(17) / 16)
    sines, cosines = np.sin(grid) / math.cos(a), np.cos(grid) / math.cos(a)

    def schedule(t):
        t = _time(t)
        near = jax.lax.stop_gradient(jnp.round(16 * t))
        index = near.astype(jnp.int32)
        sine, cosine = (jnp.asarray(table, t.dtype)[index] for table in (sines, cosines))
        turn = rest * (t - near / 16)
        alpha = sine - (sine * 2 * jnp.sin(0.5 * turn) ** 2 + cosine * jnp.sin(turn))
        sigma = numerics.safe_sqrt(jnp.sin(rest * t) * jnp.sin(2 * a + rest * t)) / math.cos(a)
        return alpha, sigma

    return schedule


def linear_logsnr(low: float = -10.0, high: float = 10.0) -> Schedule:
    """The variance-preserving schedule whose log-SNR falls in a line from `high` at t = 0 to `low` at t = 1.

    Under it uniform times weigh all errors in the noise alike in the variational bound, whose terms at the two ends `low` and `high` decide.

    Raises:
      ValueError: low is not below high.

    Source: Kingma et al. 2021, arXiv:2107.00630, app. H (with fixed ends).

    Example:
      >>> print([round(float(logsnr(t, schedule=linear_logsnr(-8.0, 6.0))), 3) for t in (0.0, 0.5, 1.0)])
      [6.0, -1.0, -8.0]
    """
    if not low < high:
        raise ValueError(f"expected low < high, the log-SNR of noise below that of data, got {low=}, {high=}")

    def schedule(t):
        t = _time(t)
        value = high * (1 - t) + low * t
        return jnp.exp(0.5 * jax.nn.log_sigmoid(value)), jnp.exp(0.5 * jax.nn.log_sigmoid(-value))

    return schedule


def rectified() -> Schedule:
    """The straight line from data to noise: `alpha = 1 - t`, `sigma = t`.

    Source: Liu et al. 2023, arXiv:2209.03003; Lipman et al. 2023, arXiv:2210.02747.

    Example:
      >>> print(*rectified()(0.25))
      0.75 0.25
    """

    def schedule(t):
        t = _time(t)
        return 1 - t, t

    return schedule


def ve(sigma_min: float = 0.01, sigma_max: float = 50.0) -> Schedule:
    """The variance-exploding schedule: `alpha = 1`, `sigma = sigma_min (sigma_max / sigma_min)^t`.

    Data at t = 0 carry noise sigma_min: a sampler that should end on clean data takes its last step to x0_hat.

    Source: Song et al. 2021, arXiv:2011.13456, eq. 30-31.

    Example:
      >>> print(*ve(0.01, 100.0)(0.5))
      1.0 1.0
    """
    _check_increasing(sigma_min, sigma_max)
    low, span = math.log(sigma_min), math.log(sigma_max / sigma_min)

    def schedule(t):
        t = _time(t)
        return jnp.ones_like(t), jnp.exp(low + span * t)

    return schedule


def karras(sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Schedule:
    """The schedule under which uniform times are the Karras grid: `sigma^(1/rho)` is linear in t, `alpha = 1`.

    Source: Karras et al. 2022, arXiv:2206.00364, eq. 5.

    Example:
      >>> alpha, sigma = karras()(jnp.array([0.0, 0.5, 1.0]))
      >>> print([round(float(s), 3) for s in sigma])
      [0.002, 2.515, 80.0]
    """
    _check_increasing(sigma_min, sigma_max)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)

    def schedule(t):
        t = _time(t)
        # Lerp in both weights: exact at both ends.
        return jnp.ones_like(t), (low * (1 - t) + high * t) ** rho

    return schedule


def zero_terminal_snr(schedule: Schedule) -> Schedule:
    """A variance-preserving schedule rescaled so that no signal is left at t = 1: `alpha' = alpha_0 (alpha - alpha_1) / (alpha_0 - alpha_1)`.

    A network trained with alpha(1) > 0 sees the data's mean at its first step, and sampling from N(0, I) then loses it (images of
    medium brightness). With alpha(1) = 0 predict v or x0: eps says nothing of x_0 there.

    Args:
      schedule: with alpha^2 + sigma^2 = 1, such as `vp_linear()`.

    Returns:
      a schedule with alpha(1) = 0 exactly, alpha(0) as before, and sigma from `1 - alpha'` without cancellation.

    Raises:
      ValueError: alpha^2 + sigma^2 is not 1.

    Source: Lin et al. 2024, arXiv:2305.08891, algorithm 1.

    Example:
      >>> alpha, sigma = zero_terminal_snr(vp_linear())(jnp.array([0.5, 1.0]))
      >>> print([round(float(a), 4) for a in alpha], [round(float(s), 4) for s in sigma])
      [0.2764, 0.0] [0.961, 1.0]
    """
    alpha, sigma = schedule(1.0)
    norm = alpha**2 + sigma**2
    if not isinstance(norm, Tracer) and abs(float(norm) - 1) > 1e-4:
        raise ValueError(f"expected a schedule with alpha^2 + sigma^2 = 1, got {float(norm):.4g} at t = 1")

    def rescaled(t):
        t = _time(t)
        alpha, sigma = schedule(t)
        first, last = (schedule(jnp.full_like(t, end)) for end in (0.0, 1.0))
        lost = lambda level: level[1] ** 2 / (1 + level[0])  # 1 - alpha
        span = first[0] - last[0]
        short = (first[0] * lost((alpha, sigma)) - last[0] * lost(first)) / span
        alpha = first[0] * (alpha - last[0]) / span
        # Zero at t = 1 whatever the compiler rounds, with the derivative that it has.
        alpha = alpha - jax.lax.stop_gradient(jnp.where(t >= 1, alpha, jnp.zeros_like(t)))
        return alpha, numerics.safe_sqrt(short * (1 + alpha))

    return rescaled


def _check_increasing(sigma_min: float, sigma_max: float) -> None:
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"expected 0 < sigma_min < sigma_max, got {sigma_min=}, {sigma_max=}")


# ----------------------------------------------------------------------------------------------------- derivatives


def logsnr(t: ArrayLike, *, schedule: Schedule) -> Array:
    """The log signal-to-noise ratio `2 log(alpha / sigma)` in nats, of t's shape; +inf where sigma = 0, -inf where alpha = 0.

    Source: Kingma et al. 2021, arXiv:2107.00630, sec. 3.

    Example:
      >>> print(logsnr(0.5, schedule=rectified()))
      0.0
    """
    alpha, sigma = schedule(t)
    return 2 * (jnp.log(alpha) - jnp.log(sigma))


def time_of_logsnr(value: ArrayLike, *, schedule: Schedule) -> Array:
    """The inverse of `logsnr`: the t in [0, 1] at which a schedule has this log-SNR, of value's shape.

    By bisection, so it serves every monotone schedule; values beyond the schedule's range give 0 or 1. The derivative is
    the implicit one, `dt = dvalue / logsnr'(t)`.

    Example:
      >>> print(round(float(time_of_logsnr(0.0, schedule=rectified())), 6))
      0.5
    """
    value = numerics.upcast(value)[0]

    def halve(_, bounds):
        low, high = bounds
        middle = 0.5 * (low + high)
        noisier = logsnr(middle, schedule=schedule) < value
        return jnp.where(noisier, low, middle), jnp.where(noisier, middle, high)

    # From [0, 1] to the spacing of floats near 1e-10 (float64: 1e-20), where float32 times of interest end.
    steps = 36 if value.dtype == jnp.float32 else 70
    fixed = jax.lax.stop_gradient(value)
    move = jnp.where(jnp.isfinite(fixed), value, jnp.zeros_like(value))  # 0 in value, carries the derivative
    low, high = jax.lax.fori_loop(0, steps, halve, (jnp.zeros_like(fixed), jnp.ones_like(fixed)))
    t = jax.lax.stop_gradient(0.5 * (low + high))
    t = jnp.where(fixed >= logsnr(jnp.zeros_like(t), schedule=schedule), jnp.zeros_like(t), t)
    t = jnp.where(fixed <= logsnr(jnp.ones_like(t), schedule=schedule), jnp.ones_like(t), t)
    return t + numerics.safe_divide(
        move - jax.lax.stop_gradient(move), jax.lax.stop_gradient(dlogsnr(t, schedule=schedule))
    )


def _interior(t: Array) -> Array:
    # sigma ~ sqrt(t) has no derivative at 0, though every product that is used has a limit: take it a hair inside.
    return jnp.maximum(t, jnp.asarray(1e-10, t.dtype))


def _derivatives(t: ArrayLike, schedule: Schedule) -> tuple[Array, Array, Array, Array]:
    t = _interior(_time(t))
    (alpha, sigma), (dalpha, dsigma) = jax.jvp(schedule, (t,), (jnp.ones_like(t),))
    return alpha, sigma, dalpha, dsigma


def rates(t: ArrayLike, *, schedule: Schedule) -> tuple[Array, Array]:
    """The derivatives `(d alpha / dt, d sigma / dt)` of a schedule, each of t's shape, by `jax.jvp`.

    Where `sigma` grows like sqrt(t) its derivative at 0 is that at t = 1e-10: large and finite.

    Example:
      >>> print(*rates(0.25, schedule=rectified()))
      -1.0 1.0
    """
    return _derivatives(t, schedule)[2:]


def dlogsnr(t: ArrayLike, *, schedule: Schedule) -> Array:
    """The derivative of the log-SNR in t (negative), of t's shape, finite at t = 0.

    Example:
      >>> print(dlogsnr(0.5, schedule=rectified()))
      -8.0
    """
    alpha, sigma, dalpha, dsigma = _derivatives(t, schedule)
    return 2 * (dalpha / alpha - dsigma / sigma)


def sde_coefficients(t: ArrayLike, *, schedule: Schedule) -> tuple[Array, Array]:
    """The linear drift f and squared diffusion g2 of `dx = f x dt + sqrt(g2) dw` with marginals alpha, sigma.

        f = d log alpha / dt,        g2 = d sigma^2 / dt - 2 f sigma^2.

    Args:
      t: `[*batch]` in [0, 1].

    Returns:
      `(f, g2)`, each `[*batch]`. Where alpha = 0 the drift is truly -infinite; sample there with x_0 or v predictions.

    Source: Kingma et al. 2021, arXiv:2107.00630, app. C; Karras et al. 2022, arXiv:2206.00364, app. B.

    Example:
      beta(t) = 0.1 + 19.9 t, so f = -beta/2 and g2 = beta:

      >>> f, g2 = sde_coefficients(0.5, schedule=vp_linear())
      >>> print(round(float(f), 3), round(float(g2), 2))
      -5.025 10.05
    """
    alpha, sigma, dalpha, dsigma = _derivatives(t, schedule)
    f = dalpha / alpha
    return f, 2 * sigma * (dsigma - f * sigma)


# ------------------------------------------------------------------------------------------------------ time grids


def uniform(u: Array, start: float, stop: float) -> Array:
    """Equal steps in t.

    Example:
      >>> print(uniform(jnp.array([0.0, 0.5, 1.0]), 1.0, 0.0))
      [1.  0.5 0. ]
    """
    return start * (1 - u) + stop * u


def quadratic(u: Array, start: float, stop: float) -> Array:
    """Equal steps in sqrt(t): finer near the data.

    Source: Song et al. 2021 (DDIM), arXiv:2010.02502, app. D.2.

    Example:
      >>> print(quadratic(jnp.array([0.0, 0.5, 1.0]), 1.0, 0.0))
      [1.   0.25 0.  ]
    """
    return (math.sqrt(start) * (1 - u) + math.sqrt(stop) * u) ** 2


def warped(function: Callable[[Array], Array], inverse: Callable[[Array], Array]) -> Spacing:
    """Equal steps in `inverse(t)`: the times `function(u)` for u evenly from inverse(start) to inverse(stop).

    Args:
      function: increasing, such as `jnp.exp`.
      inverse: its inverse, such as `jnp.log`; finite at both ends of the grid.

    Example:
      >>> print([round(float(t), 4) for t in times(2, stop=0.01, spacing=warped(jnp.exp, jnp.log))])
      [1.0, 0.1, 0.01]
    """

    def spacing(u, start, stop):
        return function(inverse(jnp.asarray(start)) * (1 - u) + inverse(jnp.asarray(stop)) * u)

    return spacing


def karras_spacing(schedule: Schedule, rho: float = 7.0) -> Spacing:
    """Equal steps in `(sigma / alpha)^(1/rho)`, for any schedule. `start` must have alpha > 0.

    Source: Karras et al. 2022, arXiv:2206.00364, eq. 5.

    Example:
      >>> grid = times(4, stop=0.01, spacing=karras_spacing(vp_linear()))
      >>> print([round(float(t), 3) for t in grid])
      [1.0, 0.858, 0.643, 0.25, 0.01]
    """

    def spacing(u, start, stop):
        ends = [jnp.exp(-0.5 * logsnr(t, schedule=schedule)) ** (1 / rho) for t in (start, stop)]
        return time_of_logsnr(-2 * rho * jnp.log(ends[0] * (1 - u) + ends[1] * u), schedule=schedule)

    return spacing


def logsnr_spacing(schedule: Schedule) -> Spacing:
    """Equal steps in log-SNR, for any schedule. Both ends must have a finite one (`stop` > 0 where sigma(0) = 0).

    Source: Lu et al. 2022 (DPM-Solver), arXiv:2206.00927, sec. 3.3.

    Example:
      >>> grid = times(2, start=0.9, stop=0.1, spacing=logsnr_spacing(rectified()))
      >>> print([round(float(t), 3) for t in grid])
      [0.9, 0.5, 0.1]
    """

    def spacing(u, start, stop):
        ends = [logsnr(t, schedule=schedule) for t in (start, stop)]
        return time_of_logsnr(ends[0] * (1 - u) + ends[1] * u, schedule=schedule)

    return spacing


def trailing(levels: int = 1000) -> Spacing:
    """Equal steps rounded to the times k / levels that a network of discrete time was trained at, the first of them pure noise.

    "Leading" grids, as in much older code, never ask at the last level, where sampling starts.

    Args:
      levels: number of times in training, at least the number of steps.

    Source: Lin et al. 2024, arXiv:2305.08891, sec. 3.3 and table 2.

    Example:
      >>> print(jnp.round(1000 * times(7, spacing=trailing(1000))))
      [1000.  857.  714.  571.  429.  286.  143.    0.]
    """

    def spacing(u, start, stop):
        return jnp.round(levels * uniform(u, start, stop)) / levels

    return spacing


def times(steps: int, *, start: float = 1.0, stop: float = 0.0, spacing: Spacing = uniform) -> Array:
    """The grid a sampler walks: `steps + 1` times from `start` down to `stop`, both ends exact.

    Args:
      steps: number of steps, >= 1; as many as the sampler then takes.
      start: first time, in [0, 1].
      stop: last time, in [0, start).
      spacing: `uniform`, `quadratic`, `trailing(levels)`, `warped(f, inverse)`, `karras_spacing(schedule)`, `logsnr_spacing(schedule)`, or your own `(u, start, stop) -> t`.

    Returns:
      `[steps + 1]`, strictly decreasing.

    Raises:
      ValueError: no steps, or ends out of order, or a spacing that is not finite between them.

    Example:
      >>> print(times(4))
      [1.   0.75 0.5  0.25 0.  ]
    """
    if steps < 1:
        raise ValueError(f"expected at least one step, got {steps=}")
    if not 0 <= stop < start <= 1:
        raise ValueError(f"expected 0 <= stop < start <= 1, got {start=}, {stop=}")
    with jax.ensure_compile_time_eval():
        u = jnp.linspace(0.0, 1.0, steps + 1)
        grid = spacing(u, start, stop).at[0].set(start).at[-1].set(stop)
        if not bool(jnp.all(jnp.diff(grid) < 0)):
            raise ValueError(
                f"this spacing does not go down from {start=} to {stop=} in {steps} steps: an end where alpha or sigma "
                "is 0 has no finite log-SNR (choose stop > 0 or start < 1), and steps too fine meet in float32"
            )
    return grid


# ------------------------------------------------------------------------------------------------------ draws of t


def uniform_draw(key: Array, index: Array, count: int | None = None) -> Array:
    """An independent t ~ U[0, 1) for each global example number, of index's shape.

    Args:
      key: the step's key, the same on every device.
      index: `[*batch]` int, the global example numbers.
      count: unused; there so that this and `stratified_draw` are interchangeable.

    Example:
      >>> uniform_draw(jax.random.key(0), jnp.arange(3)).shape
      (3,)
    """
    del count
    return numerics.uniform(numerics.example_keys(key, index), index.shape)


def stratified_draw(key: Array, index: Array, count: int) -> Array:
    """One t in each of `count` equal cells: `(u + index / count) mod 1` with one shared u ~ U[0, 1), of index's shape.

    Each t is uniform alone; the batch covers [0, 1) evenly, which lowers the variance of the loss. On several devices
    every one has the same key, so the global batch is stratified.

    Source: Kingma et al. 2021, arXiv:2107.00630, app. I.1.

    Example:
      >>> t = stratified_draw(jax.random.key(0), jnp.arange(4), 4)
      >>> print(jnp.sort(jnp.floor(4 * t)))
      [0. 1. 2. 3.]
    """
    return (jax.random.uniform(numerics.as_keys(key)) + index.astype(jnp.float32) / count) % 1


def logit_normal(u: Array, *, mean: float = 0.0, std: float = 1.0) -> Array:
    """Warps uniform draws into `logit(t) ~ N(mean, std^2)`, of u's shape: more of the middle, where rectified flows learn most.

    Source: Esser et al. 2024, arXiv:2403.03206, eq. 19.

    Example:
      >>> print(logit_normal(jnp.array(0.5)))
      0.5
    """
    tiny = jnp.asarray(1e-7, u.dtype)
    return jax.nn.sigmoid(mean + std * jax.scipy.special.ndtri(jnp.clip(u, tiny, 1 - tiny)))


def logsnr_importance(u: Array, *, schedule: Schedule, low: float = -12.0, high: float = 12.0) -> Array:
    """Warps uniform draws into times whose log-SNR is uniform on [low, high], of u's shape.

    The density of such a t is `|logsnr'(t)| / (high - low)`: divide a weight by it to keep an expectation.

    Source: Kingma and Gao 2023, arXiv:2303.00848, sec. 2.

    Example:
      >>> print(round(float(logsnr_importance(jnp.array(0.5), schedule=rectified())), 6))
      0.5
    """
    return time_of_logsnr(high + (low - high) * u, schedule=schedule)
