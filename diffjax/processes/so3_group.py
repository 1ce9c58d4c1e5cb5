"""The group of rotations as unit quaternions: exponential and logarithm, products, and the way from one to another.

A rotation by the angle w about the unit axis n is the quaternion (Hamilton's convention, real part first)

    q = (cos w/2, n sin w/2) = exp(w n),        v = w n = log(q),  0 <= w <= pi,

and q and -q are the same rotation. `compose(p, q)` turns by q first, then by p, as matrices multiply. The *body frame* of q is
the one it carries along: a small turn v of the body is `compose(q, exp(v))`.

Everything here is an analytic function of the four numbers, and is computed that way: the angle by `atan2`, never `acos`, and
`sin(w/2)/w` and its inverse by their series in w^2 near 0, so that derivatives of any order are right at the identity. At w = pi the
logarithm jumps from v to -v, as it must; one side is chosen, by a rule that does not depend on the sign of q.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from diffjax import numerics
from diffjax.pairs import Pair, pair_product, pair_sum

# ----------------------------------------------------------------------------------------- exponential and logarithm


def exp(v: Array) -> Float[Array, "*b 4"]:
    """The rotation `q = (cos |v|/2, v sin(|v|/2) / |v|)` by the angle |v| about the axis v.

    Args:
      v: `[..., 3]`, a rotation vector in radians, of any length.

    Returns:
      `[..., 4]`, a unit quaternion of v's dtype.

    Raises:
      ValueError: the last axis is not of size 3.

    Source: Sola 2017, arXiv:1711.02508, eq. 101.

    Example:
      >>> print(jnp.round(exp(jnp.array([0.0, 0.0, jnp.pi / 2])), 4))
      [0.7071 0.     0.     0.7071]
    """
    check_last(3, v=v)
    (wide,) = numerics.upcast(v)
    real, ratio = _cos_and_sinc(squared_length(wide))
    return jnp.stack([real, *(ratio * wide[..., i] for i in range(3))], axis=-1).astype(v.dtype)


def _cos_and_sinc(square: Array) -> tuple[Array, Array]:
    """`cos(w/2)` and `sin(w/2)/w` as functions of `square = w^2`, analytic at 0."""
    small = square < 1
    y = jnp.where(small, square, jnp.zeros_like(square)) / 4
    w = jnp.sqrt(jnp.where(small, jnp.ones_like(square), square))
    cos = jnp.where(small, series(y, [(-1) ** k / math.factorial(2 * k) for k in range(9)]), jnp.cos(w / 2))
    sinc = series(y, [(-1) ** k / math.factorial(2 * k + 1) / 2 for k in range(9)])
    return cos, jnp.where(small, sinc, jnp.sin(w / 2) / w)


def log(q: Array) -> Float[Array, "*b 3"]:
    """The rotation vector `v = w n` of q, the shortest of those with exp(v) = q.

    Of the two vectors v and -v at w = pi exactly, that whose first non-zero entry is positive is returned, for q and -q alike.

    Args:
      q: `[..., 4]`, quaternions; only their direction counts, so rounding of their length does no harm.

    Returns:
      `[..., 3]` of q's dtype, radians, of length in [0, pi].

    Raises:
      ValueError: the last axis is not of size 4.

    Source: Sola 2017, arXiv:1711.02508, eq. 105.

    Example:
      >>> print(jnp.round(log(-exp(jnp.array([0.0, 0.5, -1.0]))), 4))
      [ 0.   0.5 -1. ]
    """
    check_last(4, q=q)
    (wide,) = numerics.upcast(q)
    wide = upper(wide)
    vector = wide[..., 1:]
    return (angle_ratio(squared_length(vector), wide[..., 0])[..., None] * vector).astype(q.dtype)


def angle_ratio(square: Array, real: Array) -> Array:
    """The factor `w / |u|` by which the vector part u of a quaternion is stretched into its logarithm, `2 atan2(|u|, r) / |u|`.

    Args:
      square: |u|^2 >= 0, the squared length of the vector part.
      real: r >= 0, the real part, of the same shape.

    Returns:
      the same shape; analytic in `square` at 0, where it is 2 / r.

    Example:
      >>> print(angle_ratio(jnp.array([0.0, 1.0]), jnp.array([1.0, 0.0])))
      [2.        3.1415927]
    """
    small = square < 0.05 * real * real
    one = jnp.ones_like(square)
    r = jnp.where(small, real, one)
    y = jnp.where(small, square, jnp.zeros_like(square)) / (r * r)
    u = jnp.sqrt(jnp.where(small, one, square))
    near = series(y, [2 * (-1) ** k / (2 * k + 1) for k in range(11)]) / r
    return jnp.where(small, near, 2 * jnp.atan2(u, jnp.where(small, one, real)) / u)


def squared_length(v: Array) -> Array:
    """`|v|^2` over the last axis, entry by entry: what XLA fuses without computing v anew for each use, as it does with a reduction.

    Example:
      >>> print(squared_length(jnp.array([3.0, 4.0])))
      25.0
    """
    return functools.reduce(jnp.add, [v[..., i] * v[..., i] for i in range(v.shape[-1])])


def series(y: Array, coefficients: list[float]) -> Array:
    """`sum_k c_k y^k` by Horner's rule, of y's shape.

    Example:
      >>> print(series(jnp.array([2.0]), [1.0, 0.0, 3.0]))
      [13.]
    """
    total = jnp.full_like(y, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        total = total * y + c
    return total


def upper(q: Array) -> Array:
    """q or -q, whichever has its first non-zero entry positive: one representative of each rotation.

    Example:
      >>> print(upper(jnp.array([0.0, -0.6, 0.8, 0.0])))
      [-0.   0.6 -0.8 -0. ]
    """
    sign = jnp.sign(q)
    first = sign[..., 3]
    for i in (2, 1, 0):
        first = jnp.where(sign[..., i] == 0, first, sign[..., i])
    return jnp.where(first[..., None] < 0, -q, q)


# ---------------------------------------------------------------------------------------------------------- products


def compose(p: Array, q: Array) -> Float[Array, "*b 4"]:
    """The rotation `p q`: q first, then p, as `to_matrix(p) @ to_matrix(q)`.

    Args:
      p: `[..., 4]`.
      q: `[..., 4]`, of the same shape.

    Returns:
      `[..., 4]`, their Hamilton product, in p's dtype.

    Raises:
      ValueError: the shapes differ.

    Example:
      >>> quarter = exp(jnp.array([0.0, 0.0, jnp.pi / 2]))
      >>> print(jnp.round(log(compose(quarter, quarter)), 4))
      [0.     0.     3.1416]
    """
    check_last(4, p=p, q=q)
    numerics.check_same(p=p, q=q)
    left, right = numerics.upcast(p, q)
    return _product(left, right).astype(p.dtype)


def _product(p: Array, q: Array) -> Array:
    a, b, c, d = (p[..., i] for i in range(4))
    e, f, g, h = (q[..., i] for i in range(4))
    return jnp.stack(
        [
            a * e - b * f - c * g - d * h,
            a * f + b * e + c * h - d * g,
            a * g - b * h + c * e + d * f,
            a * h + b * g - c * f + d * e,
        ],
        axis=-1,
    )


def inverse(q: Array) -> Float[Array, "*b 4"]:
    """The rotation that undoes q: its conjugate `(w, -x, -y, -z)`, of q's shape and dtype.

    Example:
      >>> q = exp(jnp.array([0.1, 0.2, 0.3]))
      >>> print(jnp.round(compose(q, inverse(q)), 4))
      [1. 0. 0. 0.]
    """
    check_last(4, q=q)
    return jnp.concatenate([q[..., :1], -q[..., 1:]], axis=-1)


def relative(p: Array, q: Array) -> Float[Array, "*b 4"]:
    """The turn `p^-1 q` that leads from p to q, in the body frame of p; its real part is >= 0.

    For p near q, or nearly half a turn away, a plain product loses the digits of the entries that nearly cancel. Here products are exact and sums
    are carried with their rounding errors, so that the angle, and what it lacks to pi, keep full *relative* precision, however small.

    Args:
      p: `[..., 4]`.
      q: `[..., 4]`, of the same shape.

    Returns:
      `[..., 4]` in q's dtype, float32 at least.

    Source: Dekker 1971, Numer. Math. 18 (exact products); Knuth 1969, sec. 4.2.2 (exact sums).

    Example:
      >>> p = exp(jnp.array([1.0, 2.0, 0.5]))
      >>> q = compose(p, exp(jnp.array([0.0, 0.0, 0.5])))
      >>> print(jnp.round(log(relative(p, q)), 4) + 0.0)
      [0.  0.  0.5]
    """
    return exact_relative(p, q)[0]


def geodesic(p: Array, q: Array, fraction: ArrayLike) -> Float[Array, "*b 4"]:
    """The rotation `p exp(fraction log(p^-1 q))` on the shortest way from p (fraction 0) to q (fraction 1): slerp.

    Args:
      p: `[..., 4]`.
      q: `[..., 4]`, of the same shape.
      fraction: `[*batch]` or scalar; beyond [0, 1] it goes on along the same axis.

    Returns:
      `[..., 4]` in p's dtype.

    Source: Shoemake 1985, Animating rotation with quaternion curves, sec. 3.3.

    Example:
      >>> identity, half = exp(jnp.zeros(3)), exp(jnp.array([0.0, 0.0, 1.0]))
      >>> print(jnp.round(log(geodesic(identity, half, 0.25)), 4))
      [0.   0.   0.25]
    """
    v = log(relative(p, q))
    start, fraction = numerics.upcast(p, fraction)
    return _product(start, exp(numerics.expand_right(fraction, v) * v)).astype(p.dtype)


def exact_relative(p: Array, q: Array) -> Pair:
    """`p^-1 q` with real part >= 0 as a pair of floats: `relative`, and what rounding took from it (which has no derivative).

    Example:
      >>> p = jnp.full(4, 0.5)
      >>> high, low = exact_relative(p, p + jnp.array([1e-7, 0.0, 0.0, 0.0]))
      >>> print(high[0], low[0] * 2**24)
      1.0 1.0
    """
    check_last(4, p=p, q=q)
    numerics.check_same(p=p, q=q)
    # The barrier keeps XLA from fusing, and so repeating, the whole product in each of the many uses of its entries.
    high, low = jax.lax.optimization_barrier(_exact_relative(*numerics.upcast(p, q)))
    down = high[..., :1] < 0
    return jnp.where(down, -high, high), jnp.where(down, -low, low)


@jax.custom_jvp
def _exact_relative(p: Array, q: Array) -> Pair:
    a, b, c, d = (q[..., i] for i in range(4))
    columns = [(a, b, c, d), (b, -a, d, -c), (c, -d, -a, b), (d, c, -b, -a)]  # p* q = sum_i p[i] columns[i]
    return functools.reduce(
        pair_sum, [pair_product(p[..., i, None], jnp.stack(column, axis=-1)) for i, column in enumerate(columns)]
    )


@_exact_relative.defjvp
def _exact_relative_jvp(primals, tangents):
    (p, q), (dp, dq) = primals, tangents
    high, low = _exact_relative(p, q)
    return (high, low), (_product(inverse(dp), q) + _product(inverse(p), dq), jnp.zeros_like(low))


def check_last(size: int, **arrays: Array) -> None:
    """Raises a `ValueError` unless the last axis of each array has this size.

    Example:
      >>> check_last(4, q=jnp.zeros(3))
      Traceback (most recent call last):
      ...
      ValueError: expected a last axis of size 4, got q.shape=(3,)
    """
    for name, x in arrays.items():
        if x.ndim < 1 or x.shape[-1] != size:
            raise ValueError(f"expected a last axis of size {size}, got {name}.shape={x.shape}")
