"""Solvers that remember: each step draws a polynomial through the estimates of the steps before. One network call a step.

With f_0 the present estimate and f_1, f_2, ... the past ones in some frame (`diffjax.samplers.frames`), every solver here is

    x_s = DDIM(x_t, x0_hat) + sum_j e_j f_j        (+ std z),

and they differ in the frame, in how many past estimates they use, and in the e_j, which depend on the grid alone and are worked out before
the loop, for steps of any length. An Adams-Bashforth method integrates the polynomial through f_0, ..., f_(k-1); its first steps, with
fewer of them, are of lower order. A predictor-corrector (UniPC) comes back to the step behind it when the estimate at its end is
known, and integrates again with that one more point; since both are sums over the same estimates, its correction is only
another set of e_j.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import Array

from diffjax.numerics import safe_divide, safe_sqrt
from diffjax.samplers import frames
from diffjax.samplers.frames import Frame
from diffjax.samplers.onestep import Solver, add_noise, combine, ddim, levels

TAPER = 25
"""Grids of fewer steps than this end with orders ..., 2, 1 in solvers that extrapolate x0_hat: the last steps of a coarse grid
are so long in log-SNR that extrapolating over them does harm."""


def dpmpp(order: int = 2, *, sde: bool | float = False, corrected: bool = False, taper: int = TAPER) -> Solver:
    """Multistep DPM-Solver++: x0_hat extrapolated over log-SNR; its SDE forms too.

        x_s = (sigma_s / sigma_t) e^(-sde h) x_t + alpha_s int_0^h (1 + sde) e^((1 + sde)(u - h)) x0(u) du + sigma_s sqrt(1 - e^(-2 sde h)) z.

    As published and widely shipped, order 2 takes (1 - e^-h) h / 2 for the integral of u, and the order-3 solver halves that of u^2,
    so that it converges with order 2, though with smaller errors up to about 40 steps; and the variance of the order-2 SDE solver
    converges with order 1. `corrected` takes the exact integrals: orders 2 and 3, and for the SDE 2 and 2.

    Args:
      order: 1 (DDIM), 2 or 3, of the polynomial's number of points.
      sde: 0 or False is the ODE; 1 or True the reverse SDE; between them, the SDE with sqrt(sde) times its noise.
      corrected: the exact integrals: exponential Adams-Bashforth, of the order it says.
      taper: with fewer steps than this, the orders at the end go down to 1, one a step; 0 never.

    Raises:
      ValueError: another order, or sde outside [0, 1].

    Source: Lu et al. 2022, arXiv:2211.01095, algorithm 2 and app. B; for order 3, Crowson's k-diffusion `sample_dpmpp_3m_sde`.

    Example:
      >>> dpmpp(4)
      Traceback (most recent call last):
      ...
      ValueError: expected order 1, 2 or 3, got order=4
    """
    _check_order(order, (1, 2, 3))
    if not 0 <= sde <= 1:
        raise ValueError(f"expected sde in [0, 1] (0 the ODE, 1 the reverse SDE), got {sde=}")
    frame = frames.data_with_noise(float(sde))
    return _multistep(
        frame, order, taper=taper, rule=_exact if corrected else _published, mend_start=corrected and not sde, sde=sde
    )


def adams(order: int = 3, *, frame: Frame = frames.flow, taper: int = 0) -> Solver:
    """The Adams-Bashforth method in a frame: the polynomial through the last `order` slopes, integrated exactly.

    From order 3 on the first step is corrected when the second estimate is known (the trapezoid rule, no further call): DDIM's first
    step alone would hold the whole walk at order 2. So order 3 is reached from any start, 4 from noise far above the data.

        frames.flow     a flow's velocity over its time: finite at both ends, the best of all in very few steps
        frames.ratio    eps over sigma / alpha: the linear multistep method of k-diffusion, DEIS's "rho AB"
        frames.noise    `deis`
        frames.data     `dpmpp` with exact integrals

    Args:
      order: 1 (DDIM) to 4.
      frame: what is extrapolated, over which clock.
      taper: with fewer steps than this, the orders at the end go down to 1, one a step; 0 never.

    Raises:
      ValueError: another order.

    Source: Bashforth and Adams 1883, with the weights of unequal steps; Zhang and Chen 2023, arXiv:2204.13902, sec. 3.

    Example:
      >>> adams(0)
      Traceback (most recent call last):
      ...
      ValueError: expected order 1, 2, 3 or 4, got order=0
    """
    _check_order(order, (1, 2, 3, 4))
    return _multistep(frame, order, taper=taper, mend_start=True)


def deis(order: int = 3, *, taper: int = 8) -> Solver:
    """The exponential Adams-Bashforth method in noise, eps_hat extrapolated over log-SNR: DEIS. `adams` in `frames.noise`.

    Args:
      order: 1 (DDIM) to 4; 3 is best at 10 network calls, 4 from 20.
      taper: with fewer steps than this, the orders at the end go down to 1, one a step; 0 never.

    Source: Zhang and Chen 2023, arXiv:2204.13902, eq. 14-16, with the polynomial in log-SNR.

    Example:
      >>> len(deis(3).init(jnp.zeros(2)))  # two past estimates
      2
    """
    return adams(order, frame=frames.noise, taper=taper)


def plms(order: int = 4) -> Solver:
    """The pseudo linear multistep method: DDIM's step with an average of the last `order` estimates of the noise.

    With equal steps and order 4 the average is (55 eps_0 - 59 eps_1 + 37 eps_2 - 9 eps_3) / 24; with unequal steps it is the mean over
    [s, t] of the polynomial in t. The step is exact for no polynomial but a constant, so it is of order 2 whatever its name.

    Args:
      order: 1 (DDIM) to 4, the number of estimates.

    Source: Liu et al. 2022, arXiv:2202.09778, eq. 12-13; the first steps by Adams-Bashforth averages of lower order, where the paper has
      Runge-Kutta steps of four calls.

    Example:
      >>> len(plms().init(jnp.zeros(2)))
      3
    """
    _check_order(order, (1, 2, 3, 4))
    return _multistep(_PSEUDO, order)


def unipc(order: int = 3, *, frame: Frame = frames.data, bh1: bool = False, taper: int = TAPER) -> Solver:
    """The predictor-corrector UniPC: Adams-Bashforth, then a correction by the estimate at the step's end. Order one more than it says.

    The estimate is not made again after the correction, so that a step costs one network call. Two-point formulas take B(h) / 2 for the
    integral of u, as published.

    Args:
      order: 1 to 4, of the predictor.
      frame: `frames.data` as published; `frames.noise` errs less from 20 steps, more below.
      bh1: B(h) = h instead of e^h - 1.
      taper: with fewer steps than this, the orders at the end go down to 1, one a step; 0 never.

    Raises:
      ValueError: another order, or `bh1` with a clock that is not log-SNR.

    Source: Zhao et al. 2023, arXiv:2302.04867, algorithms 1-2 and eq. 10-12 (UniC without a second call: algorithm 1).

    Example:
      >>> len(unipc(3).init(jnp.zeros(2)))
      3
    """
    _check_order(order, (1, 2, 3, 4))
    if bh1 and frame.clock is not frames.half_logsnr:
        raise ValueError("B(h) = h is defined for the frames of log-SNR: use frames.data or frames.noise, or bh1=False")

    def rule(moments, h, points, target):
        first, second, *rest = moments
        scale = (frame.slope[0] * target[0] - frame.slope[1] * target[1]) * h if bh1 else first
        return [first, jnp.where(points == 2, 0.5 * scale * h, second), *rest]

    return _multistep(frame, order, taper=taper, rule=rule, corrector=True)


# --------------------------------------------------------------------------------------------------------- the engine


def _check_order(order: int, known: tuple[int, ...]) -> None:
    if order not in known:
        raise ValueError(f"expected order {', '.join(map(str, known[:-1]))} or {known[-1]}, got {order=}")


# A rule makes `(moments, h, points, target) -> moments` of the exact moments what a paper takes for them; h is 0 where it is infinite,
# and `points` the number of points of each step's polynomial.


def _exact(moments, h, points, target):
    return moments


def _published(moments, h, points, target):
    # With two points DPM-Solver++ takes m_0 h / 2 for m_1; with three, phi_3 stands where 2 phi_3 belongs.
    first, second, *rest = moments
    return [first, jnp.where(points == 2, 0.5 * first * h, second), *(0.5 * m for m in rest)]


def _plms_moments(target, source, h, count):
    first = frames.held(target, source, frames.noise)[1]
    return [first * h**k / (k + 1) for k in range(1, count + 1)]


_PSEUDO = Frame(slope=(0.0, 1.0), clock=lambda alpha, sigma, t: t, moments=_plms_moments)


def _orders(steps: int, order: int, taper: int) -> np.ndarray:
    """The number of points of each step's polynomial: as many as there are, and fewer at the end of a short grid."""
    i = np.arange(steps)
    last = steps - i if steps < taper else order
    return np.minimum(np.minimum(order, i + 1), last)


def _multistep(
    frame: Frame,
    order: int,
    *,
    taper: int = 0,
    rule: Callable[..., list[Array]] = _exact,
    corrector: bool = False,
    mend_start: bool = False,
    sde: bool | float = False,
) -> Solver:
    if order == 1 and not corrector and not sde:
        return ddim()
    depth = order if corrector else order - 1

    def plan(times, schedule):
        target, source = levels(times, schedule)
        alpha, sigma = schedule(times)
        clock = frame.clock(alpha, sigma, times)
        h, zero, far = clock[1:] - clock[:-1], jnp.zeros_like(clock[1:]), jnp.full_like(clock[1:], jnp.inf)
        here, reach = (jnp.where(jnp.isfinite(v), v, zero) for v in (clock[:-1], h))
        used = jnp.asarray(_orders(zero.shape[0], order, taper)).reshape((-1,) + (1,) * (zero.ndim - 1))
        past = [jnp.where(used > j, _lagged(clock[:-1], j) - here, far) for j in range(1, order)]

        transfer, first = frames.held(target, source, frame)
        moments = [first, *frame.moments(target, source, h, order)]
        # DDIM's step has the integral of a constant in it already, hence the first zero.
        e = frames.weights([zero, *past], [zero, *rule(moments, reach, used, target)[1:order]])
        if corrector:
            better = frames.weights([h, zero, *past], [zero, *rule(moments, reach, used + 1, target)[1:]])
            gain = [a - b for a, b in zip(better, [zero, *e], strict=True)]
            e = [a + transfer * _behind(b) for a, b in zip([*e, zero], gain, strict=True)]
        elif mend_start and order > 2:
            # DDIM's first step would cost the walk its order: once the second estimate is known, make it the trapezoid's.
            begins = jnp.isfinite(h[:1]) & (h[:1] != 0)
            trapezoid = jnp.where(begins, moments[1][:1], zero[:1]) / jnp.where(begins, h[:1], jnp.ones_like(h[:1]))
            change = transfer * _behind(jnp.concatenate([trapezoid, zero[1:]]))
            e = [e[0] + change, e[1] - change, *e[2:]]

        if not sde:
            return frames.ddim_weights(target, source), frames.slope_weights(source, frame), e, None
        (alpha_s, sigma_s), (alpha_t, sigma_t) = target, source
        r = safe_divide(alpha_t * sigma_s, alpha_s * sigma_t)  # e^-h
        std = sigma_s * safe_sqrt(jnp.maximum(1 - r ** (2 * sde), zero))
        return frames.ddim_weights((alpha_s, sigma_s * r**sde), source), frames.slope_weights(source, frame), e, std

    def step(key, predict_x0, xt, history, s, t, row):
        (on_xt, on_x0), slope, e, std = row
        x0_hat = predict_x0(xt, t)
        f = x0_hat if frame.slope == (1, 0) else combine(list(zip(slope, (xt, x0_hat), strict=True)))
        estimates = [f, *history]
        xs = combine([(on_xt, xt), (on_x0, x0_hat), *zip(e, estimates, strict=True)])
        return xs if std is None else add_noise(key, xs, std), x0_hat, tuple(estimates[:depth])

    return Solver(plan=plan, init=lambda xt: tuple(jnp.zeros_like(xt) for _ in range(depth)), step=step)


def _lagged(clock: Array, steps: int) -> Array:
    """The clock of `steps` rows before; infinite where there is no such row."""
    steps = min(steps, clock.shape[0])
    return jnp.concatenate([jnp.full_like(clock[:steps], jnp.inf), clock[: clock.shape[0] - steps]])


def _behind(values: Array) -> Array:
    """The numbers of the step before; 0 for the first."""
    return jnp.concatenate([jnp.zeros_like(values[:1]), values[:-1]])
