"""The heat kernel of the rotation group: its density, its slope in the angle, and its exact sampling.

Brownian motion on rotations that has run for the variance t = sigma^2 per axis has, with respect to Haar measure of mass 1
(`(1 - cos w)/pi dw` for the angle w in [0, pi]), the density

    f(w; t) = sum_(l >= 0) (2l + 1) exp(-l(l+1) t/2) sin((l + 1/2) w) / sin(w/2).                                       (1)

Poisson's summation turns it into a sum over the geodesics that lead there, of lengths |w + 2 pi k|,

    f(w; t) = e^(t/8) sqrt(2 pi) t^(-3/2) / sin(w/2)  sum_k (-1)^k (w + 2 pi k) exp(-(w + 2 pi k)^2 / 2t).               (2)

Seven terms of (1) for t >= 2 and five of (2) below give full float64 precision everywhere, tails included. (The truncated (1) alone, in
common use, is wrong by half at 6 sigma.) Taking the term k = 0 out of (2) leaves a factor B that pairs k with -k:

    f = e^(t/8) sqrt(2 pi) t^(-3/2)  w/sin(w/2)  e^(-w^2/2t)  B,
    B = 1 + sum_(k = 1, 2) (-1)^k [E- (1 - 2 pi k/w) + E+ (1 + 2 pi k/w)],      E-+ = exp(-2 pi k (pi k -+ w) / t).      (3)

Both forms are analytic functions of a quaternion, also at w = 0 and w = pi, and are written as such: of `square = |u|^2` and `real` of the
quaternion (real, u), never of w alone, so that their derivatives come out right, too; pi - w is taken from the real part, where it
is exact.

*Sampling.* |z| of a standard normal z in R^3 and the angle w both have one-dimensional laws, so there is one increasing map w = T_t(|z|)
between them. `stretch` is T_t(|z|)/|z|, a smooth and nearly constant function, from a small table (`so3_table` makes it). The axis is z/|z|.

Source: Nikolayev and Savyolova 1997 (the density); Camporesi 1990, Phys. Rep. 196, sec. 6 (sums over geodesics); Leach et al.
2022, Denoising diffusion on SO(3); De Bortoli et al. 2022, arXiv:2202.02763; Yim et al. 2023, arXiv:2302.02277, sec. 3.
"""

import functools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffjax.pairs import Pair, pair_product, pair_square, pair_sum
from diffjax.processes.so3_group import angle_ratio, series, squared_length

FLOOR = 1e-6
"""Widths below this, finer than float32 quaternions can hold, are read as this, so that the density stays finite at sigma = 0."""

TABLE_RADIUS = 7.0  # |z| covered by the table; the chance beyond is 4e-10
TABLE_SCALE = 2.0  # the table's other axis is x = 1 - exp(-t / TABLE_SCALE): t = 0 and t = infinity are its ends


def log_density(square: Array, real: Array, sigma: Array, z2: Array | None = None) -> Array:
    """`log f(w; sigma^2)` in nats at a quaternion (real, u): a function of its direction only.

    Args:
      square: |u|^2 = sin^2(w/2) of the relative quaternion.
      real: cos(w/2) >= 0, of the same shape.
      sigma: standard deviation per axis, >= 0, of the same shape.
      z2: w^2/t if it is known better than from the rounded `square` (see `sharp`).

    Returns:
      the same shape. Error in float32: about one rounding of the largest term, w^2/2t.

    Example:
      >>> print(jnp.round(jax.jit(log_density)(jnp.zeros(2), jnp.ones(2), jnp.array([0.1, 10.0])), 4))
      [8.5211 0.    ]
    """
    sigma = jnp.maximum(sigma, FLOOR)
    short = sigma * sigma < 2
    root2 = jnp.full_like(sigma, math.sqrt(2))
    if z2 is None:
        z2 = scaled_square(square, real, sigma)
    by_geodesics = _geodesics(square, real, jnp.where(short, sigma, root2), jnp.where(short, z2, jnp.ones_like(z2)))
    return jnp.where(short, by_geodesics, _characters(square, real, jnp.where(short, root2, sigma)))


def scaled_square(square: Array, real: Array, sigma: Array) -> Array:
    """`w^2 / t`, of the arguments' shape."""
    return square * (angle_ratio(square, real) / jnp.maximum(sigma, FLOOR)) ** 2


def _geodesics(square: Array, real: Array, sigma: Array, z2: Array) -> Array:
    """Equation (3), for t <= 2."""
    t = sigma * sigma
    ratio = angle_ratio(square, real)
    # The angles w and pi - w, each from its exact side. (Where square is tiny, either the even form below serves or all E are 0.)
    tiny = square < 1e-8
    u, r = (jnp.where(tiny, jnp.ones_like(x), x) for x in (square, real))
    u = jnp.sqrt(u)
    w, rest = 2 * jnp.atan2(u, r), 2 * jnp.atan2(r, u)
    # In the even form t is at least .04, below which E = 0: else its factors overflow.
    wide = jnp.maximum(t, 0.04)
    total = jnp.zeros_like(t)
    for k in (1, 2):
        minus = jnp.exp(-2 * math.pi * k * (math.pi * (k - 1) + rest) / t) * (1 - 2 * math.pi * k / w)
        plus = jnp.exp(-2 * math.pi * k * (math.pi * k + w) / t) * (1 + 2 * math.pi * k / w)
        # Where y = (2 pi k w/t)^2 < 1, their sum as an even function of w: 2 exp(-2 pi^2 k^2/t) (cosh sqrt y - 4 pi^2 k^2/t sinhc sqrt y).
        y = square * (2 * math.pi * k * ratio / wide) ** 2
        near = (y < 1) & (t == wide)
        even = jnp.where(near, y, jnp.zeros_like(y))
        cosh = series(even, [1 / math.factorial(2 * i) for i in range(9)])
        sinhc = series(even, [1 / math.factorial(2 * i + 1) for i in range(9)])
        loops = 2 * jnp.exp(-2 * (math.pi * k) ** 2 / wide) * (cosh - (2 * math.pi * k) ** 2 / wide * sinhc)
        total = total + (-1) ** k * jnp.where(near, loops, minus + plus)
    stretched = ratio * jnp.sqrt(square + real * real)  # w / sin(w/2)
    return t / 8 + jnp.log(math.sqrt(2 * math.pi) * stretched / sigma**3) - z2 / 2 + jnp.log1p(total)


def _characters(square: Array, real: Array, sigma: Array) -> Array:
    """Equation (1), for t >= 2, by the recurrence `chi_(l+1) = 2 cos w chi_l - chi_(l-1)` of the characters."""
    twice_cos = 2 * (real * real - square) / (real * real + square)
    last, chi = jnp.full_like(square, -1), jnp.ones_like(square)
    total = jnp.zeros_like(square)
    for l in range(1, 7):
        last, chi = chi, twice_cos * chi - last
        total = total + (2 * l + 1) * jnp.exp(-l * (l + 1) / 2 * sigma * sigma) * chi
    return jnp.log1p(total)


def slope(square: Array, real: Array, sigma: Array) -> Array:
    """`(d log f / dw) / |u|`: times the vector part u it is the gradient of log f under a small turn.

    A turn by dw about the own axis changes `square` by |u| real dw and `real` by -|u|/2 dw, so that this is one directional
    derivative, in the direction (real, -1/2), and nothing is divided by |u|.

    Args and shapes as in `log_density`.

    Example:
      >>> print(jnp.round(jax.jit(slope)(jnp.zeros(1), jnp.ones(1), jnp.full(1, 0.1)), 1))  # -2/t + 1/6, w = 2|u|
      [-199.8]
    """
    direction = (real, jnp.full_like(real, -0.5))
    return jax.jvp(lambda s, r: log_density(s, r, sigma), (square, real), direction)[1]


def sharp(turn: Pair, sigma: Array) -> tuple[Array, Array, Array]:
    """`(square, real, z2)` of a quaternion known as a pair of floats, z2 = w^2/t to about one rounding.

    In the tail w^2/2t is 18 and more, and cancels against a log normaliser of that size: four roundings on the way to it would cost 5e-6
    nats. So the squares are carried as pairs too. For w > 1.1, and in float64, the plain value is good enough.

    Args:
      turn: `[..., 4]`, twice (`so3_group.exact_relative`).
      sigma: `[...]`.
    """
    high, low = turn
    square, real = squared_length(high[..., 1:]), high[..., 0]
    z2 = scaled_square(square, real, sigma)
    if z2.dtype != jnp.float32:
        return square, real, z2
    high, low, width = (jax.lax.stop_gradient(x) for x in (high, low, jnp.maximum(sigma, FLOOR)))
    top = functools.reduce(pair_sum, [pair_square((high[..., i], low[..., i])) for i in (1, 2, 3)])
    below = pair_product(high[..., 0], width)
    below = pair_square((below[0], below[1] + low[..., 0] * width))  # (sigma cos w/2)^2
    # w^2/t = 4 tan^2(w/2) / t times (atan(s)/s)^2, a series in y = s^2.
    good = (top[0] > 0) & (top[0] < 0.4 * high[..., 0] ** 2)
    a, b, c = (jnp.where(good, x, jnp.ones_like(x)) for x in (top[0], below[0], high[..., 0]))
    y = jnp.where(good, a / (c * c), jnp.zeros_like(a))
    sums = np.cumsum(1 / np.arange(1.0, 40.0, 2.0))
    bent = series(y, [4 * (-1) ** n / (n + 1) * float(sums[n]) for n in range(18)])
    best = a / b * (bent + bent * (top[1] / a - below[1] / b))
    return square, real, z2 + jax.lax.stop_gradient(jnp.where(good, best, z2) - z2)


def stretch(square: Array, sigma: Array) -> Array:
    """`T_t(r) / r` at r = sqrt(square), t = sigma^2: times z ~ N(0, I_3), r = |z|, a rotation vector with the law of the heat kernel.

    `sigma sqrt(phi(t/2)) rho`, phi(y) = (1 - e^-y)/y, where rho is a bicubic spline in (1 - e^(-t/2), r). It misses the law of the
    angle by 1.4e-6 in the largest difference of distribution functions, for any sigma from 0 to infinity.

    Args:
      square: |z|^2 >= 0.
      sigma: >= 0, of the same shape.

    Returns:
      the same shape; `sigma` at sigma -> 0.

    Example:
      >>> print([round(float(x), 3) for x in jax.jit(stretch)(jnp.full(3, 3.0), jnp.array([0.0, 0.5, 9.0]))])
      [0.0, 0.495, 1.446]
    """
    table = jnp.asarray(_table(), sigma.dtype)
    y = sigma * sigma / TABLE_SCALE
    small = y < 1e-2
    tiny = jnp.where(small, y, jnp.zeros_like(y))
    safe = jnp.where(small, jnp.ones_like(y), y)
    phi = jnp.where(small, 1 - tiny / 2 + tiny**2 / 6 - tiny**3 / 24, -jnp.expm1(-safe) / safe)
    zero = square == 0
    radius = jnp.where(zero, jnp.zeros_like(square), jnp.sqrt(jnp.where(zero, jnp.ones_like(square), square)))
    i, row = _knots(-jnp.expm1(-y), table.shape[0] - 3)
    j, column = _knots(radius / TABLE_RADIUS, table.shape[1] - 3)
    flat, corner = table.reshape(-1), i * table.shape[1] + j
    rho = sum(
        row[a] * column[b] * jnp.take(flat, corner + (a * table.shape[1] + b)) for a in range(4) for b in range(4)
    )
    return sigma * jnp.sqrt(phi) * rho


def _knots(x: Array, cells: int) -> tuple[Array, list[Array]]:
    """The cell of x in [0, 1] on a uniform grid, and the four cubic B-splines that are not zero there."""
    scaled = jnp.clip(x, 0, 1) * cells
    cell = jnp.clip(jnp.floor(jax.lax.stop_gradient(scaled)), 0, cells - 1)
    u = scaled - cell
    splines = [(1 - u) ** 3, 3 * u**3 - 6 * u**2 + 4, -3 * u**3 + 3 * u**2 + 3 * u + 1, u**3]
    return cell.astype(jnp.int32), [s / 6 for s in splines]


@functools.cache
def _table() -> np.ndarray:
    return np.load(pathlib.Path(__file__).with_name("so3_table.npy"))
