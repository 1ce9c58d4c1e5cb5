"""The density of Brownian motion between two mirrors, and its slopes: the formulas under `cube`.

A run of standard deviation sigma from x0, on [0, 1] with mirrors at both ends, has at x the density (symmetric in x and x0)

    p(x | x0) = sum_k phi(x - x0 + 2k) + phi(x + x0 + 2k)               images: the mirrors show x0 at 2k + x0 and 2k - x0
              = 1 + 2 sum_{n>=1} q^(n^2) cos(n pi x) cos(n pi x0),      harmonics, q = exp(-pi^2 sigma^2 / 2)

two forms of one theta function (Jacobi). Few images serve where sigma is small, few harmonics where it is large. Each has a trap, the
same one: near a wall, and in the tails, large terms of both signs leave a small rest.

*Images.* Reflect the interval if need be so that x <= x0, and take the nearest image out of the sum. With X = x, Y = x0, d = Y - X and primes
for distances to the far wall, the four nearest, at distances d, X + Y, X' + Y' and 2 - d, weigh 1, a, c and b c, where
a = exp(-2XY/s^2), c = exp(-2X'Y'/s^2), b = exp(-2X(1 + Y')/s^2). All else is sums of positive terms and of 1 - a and 1 - b, which have series:

    s^2 d log p / dx = {d (1 - a) - 2 a X + c [(X' + Y')(1 - b) - 2 b X]} / D,       D = 1 + a + c + bc.

*Harmonics.* Where x and x0 lie at opposite walls, p is small against its terms. There p = theta_4(q) + a sum of deviations that
vanish at the corner, theta_4(q) = p(0 | 1). Chebyshev's recursion gives all waves from one sine an entry.

Second derivatives of the images are covariances of their places r_i under the weights w_i, taken pair by pair,
`sum_{i<j} w_i w_j (r_i - r_j)^2 / D^2`: no difference of large squares appears.

Source: the two series: Feller 1971, An Introduction to Probability Theory II, X.5; Lou and Ermon 2023, arXiv:2304.04740, sec. 4.1. The
cancellation-free forms are derived here.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffjax import pairs


class Terms(NamedTuple):
    """How many terms give full precision: seven images below the border, harmonics above it."""

    border: float
    harmonics: int
    sine: int  # terms of the sine's series on [0, pi/4]
    decay: int  # and of that of 1 - exp(-u) on [0, 1/4]


def terms(dtype) -> Terms:
    """At the border the images that are left out weigh 1e-10 (float64: 1e-17), and the harmonics 1e-9 (1e-21)."""
    return Terms(0.42, 4, 5, 7) if dtype == jnp.float32 else Terms(0.32, 9, 9, 13)


@jax.custom_jvp
def decay(u: Array) -> tuple[Array, Array]:
    """`(exp(-u), 1 - exp(-u))`, each to full relative accuracy, and so are their derivatives."""
    a = jnp.exp(-u)
    # u (1 - u/2 (1 - u/3 (...))) where 1 - a would cancel: a third of the cost of expm1.
    small = jnp.where(u < 0.25, u, jnp.zeros_like(u))
    series = jnp.ones_like(u)
    for n in range(terms(u.dtype).decay, 1, -1):
        series = 1 - small * (1 / n) * series
    return a, jnp.where(u < 0.25, small * series, 1 - a)


@decay.defjvp
def _decay_jvp(primals, tangents):
    # Not by the branches: where 1 - a is rounded to 1, its slope a is not 0.
    a, rest = decay(*primals)
    return (a, rest), (-a * tangents[0], a * tangents[0])


# --------------------------------------------------------------------------------------------------------- images


class _Images(NamedTuple):
    """The nearest images, in names as above, seen from the wall on x's side of x0."""

    x: Array
    y: Array
    x_far: Array
    y_far: Array
    d: Array
    sign: Array  # +1 where x <= x0, -1 where the interval was reflected
    a: Array
    one_minus_a: Array
    b: Array
    one_minus_b: Array
    c: Array
    rest: list[tuple[Array, Array, int]]  # weight, place and parity of three more, of weight 1e-5 at most
    total: Array

    @property
    def pull(self) -> Array:
        """`s^2 d log p / dx` times `total`, before the sign."""
        back = (self.x_far + self.y_far) * self.one_minus_b - 2 * self.b * self.x
        near = self.d * self.one_minus_a - 2 * self.a * self.x + self.c * back
        return near + sum((w * r for w, r, _ in self.rest), jnp.zeros_like(near))


def _images(x0: Array, xt: Array, s: Array) -> _Images:
    flip = xt > x0

    def here(near, far):
        return jnp.where(flip, far, near)

    x, x_far, y, y_far = here(xt, 1 - xt), here(1 - xt, xt), here(x0, 1 - x0), here(1 - x0, x0)
    # Not abs: its slope at 0 is 0, and the curvature of log p there is not.
    d = here(x0 - xt, xt - x0)
    k = 2 / (s * s)
    a, one_minus_a = decay(k * x * y)
    b, one_minus_b = decay(k * x * (1 + y_far))
    c = jnp.exp(-k * x_far * y_far)
    rest = [
        (jnp.exp(-k * (1 + d)), 2 + d, 1),
        (jnp.exp(-k * (1 + x) * (1 + y)), -(2 + x + y), -1),
        (jnp.exp(-k * (1 + x_far) * (1 + y_far)), 2 + x_far + y_far, -1),
    ]
    total = 1 + a + c * (1 + b) + sum((w for w, _, _ in rest), jnp.zeros_like(d))
    one = jnp.ones_like(xt)
    return _Images(x, y, x_far, y_far, d, here(one, -one), a, one_minus_a, b, one_minus_b, c, rest, total)


# ------------------------------------------------------------------------------------------------------- harmonics


class _Waves(NamedTuple):
    """`cos n pi x` and `sin n pi x / sin pi x` of both ends for n = 1.., the amplitudes q^(n^2), and the density."""

    amplitudes: list[Array]
    cos_x: list[Array]
    ratio_x: list[Array]
    cos_y: list[Array]
    ratio_y: list[Array]
    sin_x: Array
    sin_y: Array
    density: Array

    def total(self, power: int, f: list[Array], g: list[Array]) -> Array:
        """`sum_n n^power q^(n^2) f_n g_n`."""
        rows = zip(self.amplitudes, f, g, strict=True)
        return sum((float(n**power) * q * u * v for n, (q, u, v) in enumerate(rows, 1)), jnp.zeros_like(self.density))


def _amplitudes(s: Array, border: float, count: int) -> tuple[list[Array], Array]:
    """`q^(n^2)` for n = 1.. and theta_4(q) = p(0 | 1), of sigma's own shape.

    Exponents are measured from the border, where precision is dear, so that they and their errors are small there.
    """
    beyond = (s - border) * (s + border)
    q = [
        math.exp(-0.5 * (n * math.pi * border) ** 2) * jnp.exp(-0.5 * (n * math.pi) ** 2 * beyond)
        for n in range(1, count + 1)
    ]
    return q, sum((2 * (-1.0) ** n * a for n, a in enumerate(q, 1)), jnp.ones_like(s))


def _circle(x: Array, count: int) -> tuple[Array, Array, Array]:
    """`sin^2(pi m / 2)` of m, the distance to the nearer wall; `cos pi x`; `sin pi x`, to full relative accuracy at both walls."""
    m = jnp.where(x < 0.5, x, 1 - x)
    taylor = [(math.pi / 2) ** k / math.factorial(k) * (-1) ** (k // 2) for k in range(2 * count + 1)]
    sin, cos = m * _horner(taylor[1::2], m * m), _horner(taylor[::2], m * m)
    h = sin * sin
    away = 1 - 2 * h
    return h, jnp.where(x < 0.5, away, -away), 2 * sin * cos


def _horner(coefficients: list[float], x: Array) -> Array:
    value = jnp.full_like(x, coefficients[-1])
    for c in coefficients[-2::-1]:
        value = value * x + c
    return value


def _chebyshev(c: Array, s: Array, count: int) -> tuple[list[Array], list[Array]]:
    """T_n(c) and U_{n-1}(c) for n = 1 .. count, of a cosine and its sine."""
    # cos 2a from the smaller of the two: later terms inherit its error.
    t, u = [c, jnp.where(c * c < 0.5, 2 * c * c - 1, 1 - 2 * s * s)], [jnp.ones_like(c), 2 * c]
    for _ in range(count - 2):
        t.append(2 * c * t[-1] - t[-2])
        u.append(2 * c * u[-1] - u[-2])
    return t, u


def _waves(x0: Array, xt: Array, s: Array) -> _Waves:
    border, count, sine, _ = terms(xt.dtype)
    q, theta = _amplitudes(s, border, count)
    (hx, cx, sin_x), (hy, cy, sin_y) = _circle(xt, sine), _circle(x0, sine)
    (cos_x, ratio_x), (cos_y, ratio_y) = _chebyshev(cx, sin_x, count), _chebyshev(cy, sin_y, count)
    # cos(n pi x) cos(n pi y) - (-1)^n, the first two as sums of positives.
    apart = 2 * (hx + hy - 2 * hx * hy)
    first = jnp.where((xt < 0.5) == (x0 < 0.5), 2 - apart, apart)
    a, b = sin_x * sin_x, sin_y * sin_y
    deviations = [first, -2 * (a + b - 2 * a * b)]
    deviations += [u * v - (-1.0) ** n for n, (u, v) in enumerate(zip(cos_x[2:], cos_y[2:], strict=True), 3)]
    density = theta + 2 * sum(a * w for a, w in zip(q, deviations, strict=True))
    return _Waves(q, cos_x, ratio_x, cos_y, ratio_y, sin_x, sin_y, density)


# ------------------------------------------------------------------------------------------------------- evaluation


def halved(function: Callable[..., Any], *arrays: Array) -> Any:
    """`function` of arrays `[m, n]` and `[m, 1]`, elementwise; on CPUs in a loop of two turns, where there is much to do.

    XLA nests its CPU loops as the axes of the result are, and would run the formulas over 3 channels at a time, many times slower. It does not
    fuse across a loop, and inside keeps to the long axis. The halves leave through the carry, since stacking is not shared among cores.
    """
    m, n = jnp.broadcast_shapes(*(x.shape for x in arrays))
    if jax.default_backend() != "cpu" or m * n < 4096:
        return function(*arrays)
    rows = math.gcd(m * n, 16) if 1 in (m, n) else m  # what the cores share
    shape = rows, m * n // rows
    axis = 0 if rows % 2 == 0 else 1
    if shape[axis] % 2:
        return function(*arrays)

    def halves(x):
        x = x.reshape(shape) if x.shape == (m, n) else x
        if x.shape[axis] == 1:
            return jnp.broadcast_to(x, (2, *x.shape))
        return x.reshape(2, rows // 2, -1) if axis == 0 else x.reshape(rows, 2, -1).swapaxes(0, 1)

    def turn(carry, half):
        return (carry[1], function(*half)), None

    halved_arrays = [halves(x) for x in arrays]
    result = jax.eval_shape(function, *(x[0] for x in halved_arrays))
    empty = jax.tree.map(lambda r: jnp.zeros(r.shape, r.dtype), result)
    parts, _ = jax.lax.scan(turn, (empty, empty), halved_arrays)
    return jax.tree.map(lambda *p: jnp.concatenate(p, axis).reshape(m, n), *parts)


def _either(images: Callable[..., Any], waves: Callable[..., Any], *arrays: Array) -> Any:
    """The images' form below the border, the harmonics' above, each at a sigma of its own range also where the other serves."""

    def form(x0, xt, sigma):
        border = jnp.full_like(sigma, terms(xt.dtype).border)
        small = sigma < border
        low, high = jnp.where(small, sigma, border), jnp.where(small, border, sigma)
        return jax.tree.map(lambda p, q: jnp.where(small, p, q), images(x0, xt, low), waves(x0, xt, high))

    return halved(form, *arrays)


# ----------------------------------------------------------------------------------------------- density and slopes
#
# Compiled here, so that a call outside `jit` does not run hundreds of small operations one by one.


@jax.jit
def log_density(x0: Array, xt: Array, sigma: Array) -> Array:
    """`log p(xt | x0)` `[m, n]` of x0 and xt `[m, n]` and sigma `[m, 1]`."""

    def images(x0, xt, s):
        return pairs.log_normal(*pairs.two_sum(xt, -x0), s) + jnp.log(_images(x0, xt, s).total)

    return _either(images, lambda x0, xt, s: jnp.log(_waves(x0, xt, s).density), x0, xt, sigma)


@jax.jit
def slope(x0: Array, xt: Array, sigma: Array) -> Array:
    """`d log p / d xt`."""

    def images(x0, xt, s):
        i = _images(x0, xt, s)
        return i.sign * i.pull / (i.total * (s * s))

    def waves(x0, xt, s):
        w = _waves(x0, xt, s)
        return -2 * math.pi * w.sin_x * w.total(1, w.ratio_x, w.cos_y) / w.density

    return _either(images, waves, x0, xt, sigma)


@jax.jit
def sigma_slope(x0: Array, xt: Array, sigma: Array) -> Array:
    """`d log p / d sigma`; by the heat equation dp / d sigma = sigma d^2 p / dx^2."""

    def images(x0, xt, s):
        i = _images(x0, xt, s)
        others = i.a * i.x * i.y + i.c * (i.x_far * i.y_far + i.b * (i.x + i.y_far))
        others = others + sum((w * (r - i.d) * (r + i.d) / 4 for w, r, _ in i.rest), jnp.zeros_like(others))
        return ((i.d - s) * (i.d + s) + 4 * others / i.total) / (s * s * s)

    def waves(x0, xt, s):
        w = _waves(x0, xt, s)
        return -2 * math.pi**2 * s * w.total(2, w.cos_x, w.cos_y) / w.density

    return _either(images, waves, x0, xt, sigma)


@jax.jit
def curvatures(x0: Array, xt: Array, sigma: Array) -> tuple[Array, Array, Array]:
    """The derivatives of `slope` in xt, x0 and sigma."""
    return _either(_image_curvatures, _wave_curvatures, x0, xt, sigma)


def _image_curvatures(x0: Array, xt: Array, s: Array) -> tuple[Array, Array, Array]:
    # The images' places seen from xt, r_i; the same seen from x0 by reflection, -e_i r_i with e_i the parity; and r_i^2: three covariances,
    # pair by pair. Images 2 and 4 against 3 and 1 cancel but for a - b = a (1 - exp(-4 X Y' / s^2)).
    i = _images(x0, xt, s)
    x, y, x_far, y_far, a, b, c = i.x, i.y, i.x_far, i.y_far, i.a, i.b, i.c
    r = 1 / (s * s)
    a_minus_b = a * decay(4 * r * x * y_far)[1]
    bc = b * c
    variance = a * y * y + c * y_far**2 + bc + a * c + a * bc * y_far**2 + c * bc * (1 + y_far) ** 2
    across = a * x * y + c * x_far * y_far + c * a_minus_b - a * bc * y_far * (1 + x) - c * bc * x * (1 + y_far)
    skew = c * x_far * y_far**2 + c * (y_far * a_minus_b - x * (a + b)) - x * a * y * y
    skew = skew - a * bc * y_far**2 * (1 + x) - c * bc * x * (1 + y_far) ** 2
    variance, across, skew = 4 * variance, 4 * across, 8 * skew
    parity = i.one_minus_a - c * i.one_minus_b
    nearest = [(1.0, i.d, 1), (a, -(x + y), -1), (c, x_far + y_far, -1), (bc, -(1 + x + y_far), 1)]
    for w, u, e in i.rest:
        parity = parity + e * w
        for v, z, f in nearest:
            variance = variance + w * v * (u - z) ** 2
            across = across + w * v * (u - z) * (f * z - e * u)
            skew = skew + w * v * (u - z) ** 2 * (u + z)
    square = i.total * i.total
    return (
        (r * variance / square - 1) * r,
        (r * across / square + parity / i.total) * r,
        i.sign * (r * skew / square - 2 * i.pull / i.total) * r / s,
    )


def _wave_curvatures(x0: Array, xt: Array, s: Array) -> tuple[Array, Array, Array]:
    w = _waves(x0, xt, s)
    px = -2 * math.pi * w.sin_x * w.total(1, w.ratio_x, w.cos_y) / w.density
    py = -2 * math.pi * w.sin_y * w.total(1, w.cos_x, w.ratio_y) / w.density
    pxx = -2 * math.pi**2 * w.total(2, w.cos_x, w.cos_y) / w.density
    pxy = 2 * math.pi**2 * w.sin_x * w.sin_y * w.total(2, w.ratio_x, w.ratio_y) / w.density
    pxxx = 2 * math.pi**3 * w.sin_x * w.total(3, w.ratio_x, w.cos_y) / w.density
    return pxx - px * px, pxy - px * py, s * (pxxx - px * pxx)


# ------------------------------------------------------------------------------------------- the two series, plainly


def image_series(x0: Array, xt: Array, sigma: Array, count: int) -> Array:
    """The log of the first `count` images, from the nearest cell outwards: cells 0, -1, 1, -2, 2, ... as seen from xt's side."""
    i = _images(x0, xt, sigma)
    # By how much the squared distance to the image in cell j exceeds d^2: j (j + 2d) in even cells, 4 (m - X)(m - Y) with m = (j + 1) / 2 in
    # odd ones; no difference is left to cancel.
    past = lambda m, near, far: far + (m - 1) if m > 0 else near - m
    beyond = []
    for k in range(count):
        j = (k + 1) // 2 * (-1) ** k
        if j % 2:
            m = (j + 1) // 2
            beyond.append(4 * past(m, i.x, i.x_far) * past(m, i.y, i.y_far))
        else:
            beyond.append(j * (j + 2 * i.d) if j >= 0 else -2 * j * ((-j // 2 - 1) + (i.x + i.y_far)))
    scale = -0.5 / (sigma * sigma)
    exponents = jnp.stack([scale * b for b in beyond])
    return pairs.log_normal(*pairs.two_sum(xt, -x0), sigma) + jax.nn.logsumexp(exponents, axis=0)


def harmonic_series(x0: Array, xt: Array, sigma: Array, count: int) -> Array:
    """The log of the first `count` harmonics; -inf where their sum is not positive."""
    n = np.pi * np.arange(1, count + 1)
    q = lambda k: jnp.exp(-0.5 * (k * sigma) ** 2)
    density = 1 + 2 * sum(
        (q(float(k)) * jnp.cos(float(k) * xt) * jnp.cos(float(k) * x0) for k in n), jnp.zeros_like(xt)
    )
    return jnp.log(jnp.maximum(density, jnp.zeros_like(density)))
