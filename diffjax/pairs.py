"""Floats in pairs: twice the digits, for the few places where a difference of nearly equal numbers must be right.

A pair is an unevaluated sum of two floats, the second below the last digit of the first. Sums carry their rounding errors; products are split into halves of the
digits, which multiply exactly. Pairs have no derivatives of their own (the callers say what they are); `log_normal`, made of them, has.

Source: Dekker 1971, Numer. Math. 18; Knuth 1969, The art of computer programming 2, sec. 4.2.2.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array

Pair = tuple[Array, Array]
"""A number as an unevaluated sum of two floats."""


def two_sum(a: Array, b: Array) -> Pair:
    """The sum of two floats as a pair, each part of their common shape: `a + b` rounded, and what rounding took from it.

    Example:
      >>> print(*two_sum(jnp.ones(()), jnp.asarray(1e-10)))
      1.0 1e-10
    """
    s = a + b
    v = s - a
    return s, (a - (s - v)) + (b - v)


def pair_sum(a: Pair, b: Pair) -> Pair:
    """The sum of two pairs, each part of their common shape.

    Example:
      >>> one, small = jnp.ones(()), jnp.asarray(1e-10)
      >>> print(*pair_sum((one, 0 * one), (small, 0 * one)))
      1.0 1e-10
    """
    s, lost = two_sum(a[0], b[0])
    return _carry(s, lost + (a[1] + b[1]))


def pair_product(a: Array, b: Array) -> Pair:
    """The product of two floats as a pair, each part of their common shape. Halves multiply exactly, so that no compiler's fused multiply-add can change it.

    Example:
      >>> third = jnp.float32(1 / 3)
      >>> high, low = pair_product(third, third)
      >>> float(high) + float(low) == float(third) ** 2  # 48 digits of 53
      True
    """
    (ah, al), (bh, bl) = _halves(a), _halves(b)
    high = (ah * bh + ah * bl) + al * bh
    return high, (((ah * bh - high) + ah * bl) + al * bh) + al * bl


def pair_square(a: Pair) -> Pair:
    """The square of a pair, of shape and type of its parts.

    Example:
      >>> print(*pair_square((jnp.ones(()), jnp.asarray(1e-10))))
      1.0 2e-10
    """
    high, low = pair_product(a[0], a[0])
    return _carry(high, low + 2 * a[0] * a[1])


def _carry(high: Array, low: Array) -> Pair:
    s = high + low
    return s, low - (s - high)


def _halves(x: Array) -> Pair:
    """The leading half of the digits, cut off bit by bit, and the rest."""
    integer, digits = (jnp.int32, 12) if x.dtype == jnp.float32 else (jnp.int64, 27)
    bits = jax.lax.bitcast_convert_type(x, integer) & jnp.asarray(-(2**digits), integer)
    high = jax.lax.bitcast_convert_type(bits, x.dtype)
    return high, x - high


# ------------------------------------------------------------------------------------------------ a density made of them

_LOG2_HIGH, _LOG2_LOW = 355 / 512, math.log(2) - 355 / 512  # nine bits: its multiples are exact


@jax.custom_jvp
def log_normal(x: Array, lost: Array, sigma: Array) -> Array:
    """`log N(x + lost; 0, sigma^2)` in nats, elementwise, within 3e-7 `max(1, |value|)` in float32.

    Where sigma is small, `-log sigma` and `-x^2 / 2 sigma^2` are large and of opposite signs near four sigma, and what they leave is theirs and x's
    rounding. Here both are in two parts.

    Args:
      x: the distance from the mean.
      lost: what rounding took from x, such as `two_sum`'s second part, or 0.
      sigma: > 0.

    Returns:
      an array of the arguments' common shape, nats.

    Example:
      >>> print(round(float(log_normal(jnp.float32(4e-4), jnp.float32(0.0), jnp.float32(1e-4))), 5))  # log(1e4 / sqrt(2 pi)) - 8
      0.2914
    """
    x, lost, sigma = jnp.broadcast_arrays(x, lost, sigma)
    z = x / sigma
    back, back_lost = pair_product(z, sigma)
    rest = (((x - back) - back_lost) + lost) / sigma  # z + rest is the quotient
    square, square_lost = pair_product(z, z)
    m, e = jnp.frexp(sigma)
    low = m < math.sqrt(0.5)
    m, e = jnp.where(low, 2 * m, m), (e - low.astype(e.dtype)).astype(sigma.dtype)
    large = -0.5 * square - e * _LOG2_HIGH
    return large - ((0.5 * square_lost + z * rest) + (e * _LOG2_LOW + jnp.log(m) + 0.5 * math.log(2 * math.pi)))


@log_normal.defjvp
def _log_normal_jvp(primals, tangents):
    x, lost, sigma = primals
    z = (x + lost) / sigma
    return log_normal(*primals), (z * z - 1) / sigma * tangents[2] - z / sigma * (tangents[0] + tangents[1])
