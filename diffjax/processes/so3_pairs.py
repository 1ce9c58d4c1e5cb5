"""Floats in pairs: twice the digits, for the few places where a difference of nearly equal numbers must be right.

A pair is an unevaluated sum of two floats, the second below the last digit of the first. Sums carry their rounding errors; products are split into halves of the
digits, which multiply exactly. Nothing here has a derivative of its own: the callers say what it is.

Source: Dekker 1971, Numer. Math. 18; Knuth 1969, The art of computer programming 2, sec. 4.2.2.
"""

import jax
import jax.numpy as jnp
from jax import Array

Pair = tuple[Array, Array]
"""A number as an unevaluated sum of two floats."""


def pair_sum(a: Pair, b: Pair) -> Pair:
    """The sum of two pairs.

    Example:
      >>> one, small = jnp.ones(()), jnp.asarray(1e-10)
      >>> print(*pair_sum((one, 0 * one), (small, 0 * one)))
      1.0 1e-10
    """
    s = a[0] + b[0]
    v = s - a[0]
    return _carry(s, (a[0] - (s - v)) + (b[0] - v) + (a[1] + b[1]))


def pair_product(a: Array, b: Array) -> Pair:
    """The product of two floats as a pair. Halves multiply exactly, so that no compiler's fused multiply-add can change it.

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
