"""Four ways of writing one equation, and the weights of a step in each.

The probability-flow ODE of `x_t = alpha x_0 + sigma eps` is `dx = x0_hat d alpha + eps_hat d sigma`, with the two estimates tied by
`x = alpha x0_hat + sigma eps_hat`. Choose a *slope* f = p x0_hat + q eps_hat that changes little along the path, and a *clock* c in
which it is nearly a polynomial. If f were constant the step would be DDIM's, whatever the frame,

    x_s = (sigma_s / sigma_t) x_t + (alpha_s - alpha_t sigma_s / sigma_t) x0_hat;

what a frame adds is the integral of f's change against a kernel that the linear part of the equation leaves:

    x_s = DDIM + int_0^h kernel(u) [f(u) - f(0)] du,    u = c - c_t, h = c_s - c_t,    moments m_k = int_0^h kernel(u) u^k du.

    frame      slope f        clock c                 moments
    data       x0             log(alpha / sigma)      alpha_s int_0^h e^(u-h) u^k du                    DPM-Solver++
    noise      eps            log(alpha / sigma)      -(alpha_s sigma_t / alpha_t) int_0^h e^-u u^k du   DEIS, DPM-Solver
    ratio      eps            sigma / alpha           alpha_s h^(k+1) / (k+1)                           EDM, linear multistep
    flow       eps - x0       sigma / (alpha+sigma)   (alpha_s + sigma_s) h^(k+1) / (k+1)               Adams for a flow's velocity

`weights` turns moments into the weights of estimates made at known places. A place at an infinite distance (pure noise on a
logarithmic clock, or a past that does not exist yet) says nothing of the change of f and gets the weight 0, so that a solver warms
up, starts at alpha = 0 and ends at sigma = 0 without a special case.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array

from diffjax.numerics import safe_divide

Level = tuple[Array, Array]
"""`(alpha, sigma)`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frame:
    """A slope, a clock and the moments of its kernel.

    Attributes:
      slope: the Python numbers `(p, q)` of f = p x0_hat + q eps_hat.
      clock: `(alpha, sigma, t) -> c`, monotone along the path; infinite where it must be.
      moments: `(target, source, h, count) -> [m_1, ..., m_count]`, from the level `source` to the level `target`, h apart on
        the clock. Finite always; 0 where there is no extrapolating.
    """

    slope: tuple[float, float]
    clock: Callable[[Array, Array, Array], Array]
    moments: Callable[[Level, Level, Array, int], list[Array]]


def half_logsnr(alpha: Array, sigma: Array, t: Array) -> Array:
    """The logarithmic clock `log(alpha / sigma)`, of alpha's shape: -inf at pure noise, +inf at clean data, gradients finite.

    Example:
      >>> print(half_logsnr(jnp.array([0.0, 0.5, 1.0]), jnp.array([1.0, 0.5, 0.0]), jnp.zeros(3)))
      [-inf   0.  inf]
    """
    del t
    log = lambda v: jnp.log(jnp.where(v > 0, v, jnp.ones_like(v)))
    inside = log(alpha) - log(sigma)
    infinite = jnp.asarray(jnp.inf, inside.dtype)
    return jnp.where(alpha > 0, jnp.where(sigma > 0, inside, infinite), -infinite)


_NODES, _WEIGHTS = 0.5 * np.array(np.polynomial.legendre.leggauss(14)) + [[0.5], [0.0]]  # on [0, 1]


def exponential_moments(z: Array, count: int) -> tuple[list[Array], list[Array]]:
    """The moments `int_0^1 e^-zv v^k dv` and `int_0^1 e^-z(1-v) v^k dv`, k = 0, ..., count, two lists of arrays of z's shape.

    The second are k! phi_(k+1)(-z). By their recursions in k for |z| > 2; below, where these lose a digit for each power of z, by
    Gauss-Legendre quadrature of 14 points, good to 1e-16 there.

    Source: Hochbruck and Ostermann 2010, eq. 2.10-2.11, for the phi functions.

    Example:
      >>> fall, rise = exponential_moments(jnp.array(0.0), 2)
      >>> print([round(float(m), 4) for m in fall], [round(float(m), 4) for m in rise])
      [1.0, 0.5, 0.3333] [1.0, 0.5, 0.3333]
    """
    small = jnp.abs(z) < 2
    inside, outside = jnp.where(small, z, jnp.zeros_like(z)), jnp.where(small, jnp.full_like(z, 2.0), z)
    v, weight = (jnp.asarray(a.reshape((-1,) + (1,) * z.ndim), z.dtype) for a in (_NODES, _WEIGHTS))
    at_v, at_rest = (jnp.exp(-a * inside[None]) for a in (v, 1 - v))
    last = jnp.exp(-outside)
    far_fall = far_rise = -jnp.expm1(-outside) / outside
    fall, rise = [], []
    for k in range(count + 1):
        if k:
            far_fall, far_rise = (k * far_fall - last) / outside, (1 - k * far_rise) / outside
        fall.append(jnp.where(small, jnp.sum(weight * v**k * at_v, axis=0), far_fall))
        rise.append(jnp.where(small, jnp.sum(weight * v**k * at_rest, axis=0), far_rise))
    return fall, rise


def data_with_noise(eta: float) -> Frame:
    """The frame `data` for the reverse SDE with sqrt(eta) times its noise: moments `alpha_s int_0^h (1 + eta) e^((1 + eta)(u - h)) u^k du`.

    Source: Lu et al. 2022, arXiv:2211.01095, app. B, for eta = 1.

    Example:
      >>> data_with_noise(1.0).slope
      (1.0, 0.0)
    """

    def moments(target, source, h, count):
        del source
        rate = 1.0 + eta
        safe = jnp.where(jnp.isfinite(h), h, jnp.zeros_like(h))  # a step to sigma = 0 takes x0_hat as it is
        _, rise = exponential_moments(rate * safe, count)
        return [rate * target[0] * safe ** (k + 1) * rise[k] for k in range(1, count + 1)]

    return Frame(slope=(1.0, 0.0), clock=half_logsnr, moments=moments)


def _noise_moments(target, source, h, count):
    finite = jnp.isfinite(h)
    safe = jnp.where(finite, h, jnp.ones_like(h))
    fall, _ = exponential_moments(safe, count)
    scale = -safe_divide(target[0] * source[1], source[0])
    # To sigma = 0: int_0^inf e^-u u^k du = k!.
    return [
        scale * jnp.where(finite, safe ** (k + 1) * fall[k], jnp.full_like(h, math.factorial(k)))
        for k in range(1, count + 1)
    ]


def _power_moments(scale):
    def moments(target, source, h, count):
        del source
        safe = jnp.where(jnp.isfinite(h), h, jnp.zeros_like(h))  # a step from alpha = 0
        return [scale(*target) * safe ** (k + 1) / (k + 1) for k in range(1, count + 1)]

    return moments


def _ratio(alpha, sigma, t):
    del t
    infinite = jnp.full_like(alpha, jnp.inf)
    return jnp.where(alpha > 0, safe_divide(sigma, alpha), infinite)


data = data_with_noise(0.0)
"""x0_hat over log(alpha / sigma). Source: Lu et al. 2022, arXiv:2211.01095, eq. 8."""

noise = Frame(slope=(0.0, 1.0), clock=half_logsnr, moments=_noise_moments)
"""eps_hat over log(alpha / sigma). Source: Lu et al. 2022, arXiv:2206.00927, eq. 3.4; Zhang and Chen 2023, arXiv:2204.13902."""

ratio = Frame(slope=(0.0, 1.0), clock=_ratio, moments=_power_moments(lambda alpha, sigma: alpha))
"""eps_hat over sigma / alpha: x / alpha obeys `dy = eps d(sigma / alpha)`. Source: Karras et al. 2022, arXiv:2206.00364, app. B;
Song et al. 2021, arXiv:2010.02502, eq. 14."""

flow = Frame(
    slope=(-1.0, 1.0),
    clock=lambda alpha, sigma, t: sigma / (alpha + sigma),
    moments=_power_moments(lambda alpha, sigma: alpha + sigma),
)
"""The velocity eps_hat - x0_hat over the time sigma / (alpha + sigma) of the straight flow that any schedule is a rescaling of:
`x / (alpha + sigma)` moves on it. Nothing is infinite at either end. Source: Liu et al. 2023, arXiv:2209.03003; Lipman et al.
2024, arXiv:2412.06264, sec. 4.6, for the change of schedule."""


def held(target: Level, source: Level, frame: Frame) -> tuple[Array, Array]:
    """The weights `(a, m_0)` of the step `x_s = a x_t + m_0 f` with f held fixed; 0 where f alone does not say it.

        a = (alpha_s q - sigma_s p) / (alpha_t q - sigma_t p),    m_0 = (alpha_t sigma_s - sigma_t alpha_s) / (alpha_t q - sigma_t p),

    the solution of `(alpha_s, sigma_s) = a (alpha_t, sigma_t) + m_0 (p, q)`: the step is exact for a fixed x_0 and a fixed eps.

    Example:
      >>> target, source = (jnp.array(1.0), jnp.array(0.25)), (jnp.array(1.0), jnp.array(0.5))
      >>> print(*held(target, source, data))
      0.5 0.5
    """
    (p, q), (alpha_s, sigma_s), (alpha_t, sigma_t) = frame.slope, target, source
    divisor = q * alpha_t - p * sigma_t
    return safe_divide(q * alpha_s - p * sigma_s, divisor), safe_divide(alpha_t * sigma_s - sigma_t * alpha_s, divisor)


def slope_weights(level: Level, frame: Frame) -> tuple[Array, Array]:
    """The weights of (x_t, x0_hat) in `f = p x0_hat + q (x_t - alpha x0_hat) / sigma`; at sigma = 0 eps counts as its mean, 0.

    Example:
      >>> print(*slope_weights((jnp.array(1.0), jnp.array(0.5)), noise))
      2.0 -2.0
    """
    (p, q), (alpha, sigma) = frame.slope, level
    return safe_divide(jnp.full_like(sigma, q), sigma), p - q * safe_divide(alpha, sigma)


def ddim_weights(target: Level, source: Level) -> tuple[Array, Array]:
    """The weights of (x_t, x0_hat) in the step `x_s = alpha_s x0_hat + sigma_s eps_hat`, finite at both ends.

    Where sigma_t = 0 the noise is unknown and its mean, 0, is taken: an encoding may start at clean data.

    Source: Song et al. 2021, arXiv:2010.02502, eq. 12 at sigma = 0.

    Example:
      >>> print(*ddim_weights((jnp.array(1.0), jnp.array(0.25)), (jnp.array(1.0), jnp.array(0.5))))
      0.5 0.5
    """
    (alpha_s, sigma_s), (alpha_t, sigma_t) = target, source
    kept = jnp.where(sigma_t > 0, safe_divide(sigma_s, sigma_t), safe_divide(alpha_s, alpha_t))
    return kept, alpha_s - kept * alpha_t


def weights(nodes: Sequence[Array], moments: Sequence[Array]) -> list[Array]:
    """The weights w_j with `int kernel(u) f(u) du = sum_j w_j f(u_j)` for the polynomial f through all finite nodes.

    By Lagrange's polynomials, `prod_i (u - u_i) / (u_j - u_i)`, expanded in powers. A node that is infinite, not a number, or
    falls together with one before it takes no part.

    Args:
      nodes: u_j, arrays of one shape.
      moments: m_0, m_1, ..., as many as nodes.

    Example:
      Simpson's rule on [0, 2], and the trapezoid when the middle is missing:

      >>> moments = [jnp.array(2.0), jnp.array(2.0), jnp.array(8 / 3)]
      >>> print([round(float(w), 3) for w in weights([jnp.array(0.0), jnp.array(2.0), jnp.array(1.0)], moments)])
      [0.333, 0.333, 1.333]
      >>> print([round(float(w), 3) for w in weights([jnp.array(0.0), jnp.array(2.0), jnp.array(jnp.inf)], moments)])
      [1.0, 1.0, 0.0]
    """
    u = jnp.stack(list(nodes))
    count = u.shape[0]
    earlier = jnp.isfinite(u[None, :]) & (u[:, None] == u[None, :]) & _square(np.tri(count, k=-1), u)
    seen = jnp.isfinite(u) & ~jnp.any(earlier, axis=1)
    one, zero = jnp.ones_like(u), jnp.zeros_like(u)
    basis = jnp.stack([one] + [zero] * (count - 1), axis=1)  # of node j, the coefficient of u^k: [count, count, ...]
    for i in range(count):
        # Times (u - u_i) / (u_j - u_i), in all bases but node i's own.
        takes_part = seen & seen[i][None] & (jnp.arange(count) != i).reshape((-1,) + (1,) * (u.ndim - 1))
        gap = jnp.where(takes_part, u - u[i][None], one)
        slope = jnp.where(takes_part, 1 / gap, zero)[:, None]
        offset = jnp.where(takes_part, -jnp.where(seen[i], u[i], zero[i])[None] / gap, one)[:, None]
        raised = jnp.concatenate([jnp.zeros_like(basis[:, :1]), basis[:, :-1]], axis=1)
        basis = offset * basis + slope * raised
    return list(jnp.where(seen, jnp.sum(basis * jnp.stack(list(moments))[None], axis=1), zero))


def _square(mask, u):
    return jnp.asarray(mask.reshape(mask.shape + (1,) * (u.ndim - 1)), bool)
