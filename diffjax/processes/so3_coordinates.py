"""Rotations in other coordinates: matrices, and raw numbers as networks give them.

A network's output becomes a unit quaternion through `normalize` (four numbers), `from_bcd` or `so3.exp` (three) or `from_six` (six). All are
differentiable, and defined for every input. Other libraries' "flat quaternions" are arrays like ours, mostly with the axis of four first.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from diffjax import numerics
from diffjax.processes.so3_group import check_last, squared_length, upper

# ---------------------------------------------------------------------------------------------------------- matrices


def to_matrix(q: Array) -> Float[Array, "*b 3 3"]:
    """The rotation matrix R of q: `R x = q (0, x) q^-1`.

    Args:
      q: `[..., 4]`, unit quaternions.

    Returns:
      `[..., 3, 3]` of q's dtype; columns are the body's axes.

    Source: Sola 2017, arXiv:1711.02508, eq. 115.

    Example:
      >>> print(to_matrix(jnp.full(4, 0.5)))  # a third of a turn about (1, 1, 1): x to y to z to x
      [[0. 0. 1.]
       [1. 0. 0.]
       [0. 1. 0.]]
    """
    check_last(4, q=q)
    (wide,) = numerics.upcast(q)
    w, x, y, z = (wide[..., i] for i in range(4))
    rows = [
        [w * w + x * x - y * y - z * z, 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), w * w - x * x + y * y - z * z, 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), w * w - x * x - y * y + z * z],
    ]
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2).astype(q.dtype)


def from_matrix(matrix: Array) -> Float[Array, "*b 4"]:
    """The unit quaternion of a rotation matrix, that with real part >= 0.

    The ten products q_i q_j are linear in the matrix. The row of `q q^T` whose diagonal entry is largest, at least 1/4, is q times a number that is
    never small: no division by nearly zero at any angle.

    Args:
      matrix: `[..., 3, 3]`, orthogonal with determinant 1 (see `from_six` for raw numbers).

    Returns:
      `[..., 4]` of the matrix's dtype.

    Raises:
      ValueError: the last two axes are not 3 x 3.

    Source: Shepperd 1978, Quaternion from rotation matrix.

    Example:
      >>> print(from_matrix(jnp.diag(jnp.array([1.0, -1.0, -1.0]))))
      [0. 1. 0. 0.]
    """
    if matrix.shape[-2:] != (3, 3):
        raise ValueError(f"expected rotation matrices [..., 3, 3], got {matrix.shape=}")
    (m,) = numerics.upcast(matrix)
    (a, b, c), (d, e, f), (g, h, i) = ([m[..., row, column] for column in range(3)] for row in range(3))
    rows = [  # 4 q q^T
        [1 + a + e + i, h - f, c - g, d - b],
        [h - f, 1 + a - e - i, b + d, c + g],
        [c - g, b + d, 1 - a + e - i, f + h],
        [d - b, c + g, f + h, 1 - a - e + i],
    ]
    outer = jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)  # [..., 4, 4]
    best = jnp.argmax(jnp.diagonal(outer, axis1=-2, axis2=-1), axis=-1)
    row = jnp.take_along_axis(outer, best[..., None, None], axis=-2)[..., 0, :]
    return normalize(upper(row)).astype(matrix.dtype)


# --------------------------------------------------------------------------------------------------- from raw numbers


def normalize(x: Array) -> Float[Array, "*b 4"]:
    """The unit quaternion `x / |x|` nearest to four raw numbers; the identity for x = 0, with finite derivatives there.

    Example:
      >>> print(normalize(jnp.array([[3.0, 0.0, 4.0, 0.0], [0.0, 0.0, 0.0, 0.0]])))
      [[0.6 0.  0.8 0. ]
       [1.  0.  0.  0. ]]
    """
    check_last(4, x=x)
    (wide,) = numerics.upcast(x)
    unit = jnp.concatenate([jnp.ones_like(wide[..., :1]), jnp.zeros_like(wide[..., 1:])], axis=-1)
    return _unit(wide, unit).astype(x.dtype)


def from_bcd(bcd: Array) -> Float[Array, "*b 4"]:
    """The unit quaternion `(1, b, c, d) / sqrt(1 + b^2 + c^2 + d^2)` of three raw numbers: a smooth map from R^3.

    It reaches every rotation by less than pi once; half turns lie at infinity.

    Args:
      bcd: `[..., 3]`, `tan(w/2) n`; a network's free output.

    Returns:
      `[..., 4]` of bcd's dtype.

    Source: Jumper et al. 2021, AlphaFold, Suppl. algorithm 23; `bcds2flatquats` of Diffusions.jl.

    Example:
      >>> print(jnp.round(from_bcd(jnp.array([0.0, 0.0, 1.0])), 4))
      [0.7071 0.     0.     0.7071]
    """
    check_last(3, bcd=bcd)
    return normalize(jnp.concatenate([jnp.ones_like(bcd[..., :1]), bcd], axis=-1))


def to_bcd(q: Array) -> Float[Array, "*b 3"]:
    """The three numbers `(x, y, z) / w = tan(w/2) n` of a quaternion scaled so that its real part is one; infinite for half turns.

    Example:
      >>> print(jnp.round(to_bcd(from_bcd(jnp.array([0.5, -2.0, 1.0]))), 4))
      [ 0.5 -2.   1. ]
    """
    check_last(4, q=q)
    (wide,) = numerics.upcast(q)
    return (wide[..., 1:] / wide[..., :1]).astype(q.dtype)


def from_six(x: Array) -> Float[Array, "*b 4"]:
    """The rotation whose first two axes are six raw numbers made orthonormal (Gram and Schmidt): continuous onto all rotations.

    No map from fewer than five numbers has a continuous right inverse, so networks learn this one most easily.

    Args:
      x: `[..., 6]`, two vectors, neither zero nor parallel (degenerate input gives the nearest axis that is defined, never NaN).

    Returns:
      `[..., 4]` of x's dtype, real part >= 0.

    Source: Zhou et al. 2019, arXiv:1812.07035, eq. 15-16.

    Example:
      >>> print(jnp.round(to_matrix(jax.jit(from_six)(jnp.array([2.0, 0.0, 0.0, 5.0, 0.0, 3.0])))[:, 1], 4) + 0.0)
      [0. 0. 1.]
    """
    check_last(6, x=x)
    (wide,) = numerics.upcast(x)
    first = _unit(wide[..., :3], jnp.zeros(3, wide.dtype).at[0].set(1))
    other = _scaled(wide[..., 3:], jnp.zeros(3, wide.dtype))
    second = other - jnp.sum(first * other, axis=-1, keepdims=True) * first
    # If the second vector is no help, the coordinate axis least aligned with the first one is.
    spare = jnp.eye(3, dtype=wide.dtype)[jnp.argmin(jnp.abs(first), axis=-1)]
    second = _unit(second, spare)
    second = _unit(second - jnp.sum(first * second, axis=-1, keepdims=True) * first, spare)
    return from_matrix(jnp.stack([first, second, jnp.cross(first, second)], axis=-1)).astype(x.dtype)


def _scaled(x: Array, otherwise: Array) -> Array:
    """x over its largest entry, so that squares neither overflow nor underflow, or `otherwise` where x is zero. It cancels, so it needs no derivative."""
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, keepdims=True))
    # A compiler may multiply by the reciprocal, which float32 does not hold for the largest numbers.
    shrink = jnp.where(largest > 1, 0.0625, 1.0).astype(x.dtype)
    scaled = (shrink * x) / jnp.where(largest == 0, jnp.ones_like(largest), shrink * largest)
    return jnp.where(largest == 0, jnp.broadcast_to(otherwise, x.shape), scaled)


def _unit(x: Array, otherwise: Array) -> Array:
    """x / |x|, or `otherwise` where x is zero."""
    scaled = _scaled(x, otherwise)
    return scaled / jnp.sqrt(squared_length(scaled))[..., None]
