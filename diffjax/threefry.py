"""The draws of `jax.random` in one fused pass on CPUs.

`jax.random` makes 32 random bits of each entry's number n by twenty rounds of Threefry-2x32, keyed by two words k,

    (a, b) = threefry(k, (0, n)),        bits = a xor b.

Its rounds run in a loop there on CPUs, an array through memory in every turn. Written out they are one loop over the entries with the inverse error
function inside: less time for draws of up to 65,536 numbers, and less to compile. A sampler of small examples draws at each of its steps, so that this counts.
Larger draws, other devices, other kinds of keys and of numbers take `jax.random`'s own code. The bits are the same everywhere, and so are uniform draws; normal
ones may differ in their last digit, which depends on how a compiler fuses the inverse error function.

Source: Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3, SC'11.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA  # of the key schedule
_MOST = 2**16  # numbers at once: of more, jax.random's own passes are shared among the processor's cores


def normal(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """`jax.random.normal(key, shape, dtype)`.

    Args:
      key: one key.
      shape: of the draw.
      dtype: of the draw.

    Returns:
      `[*shape]`, standard normal.

    Example:
      >>> key = jax.random.key(0)
      >>> print(jnp.abs(normal(key, (5, 2)) - jax.random.normal(key, (5, 2))).max() < 1e-6)
      True
    """
    return _draw(_fused_normal, jax.random.normal, key, tuple(shape), dtype)


def uniform(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """`jax.random.uniform(key, shape, dtype)`.

    Args:
      key: one key.
      shape: of the draw.
      dtype: of the draw.

    Returns:
      `[*shape]`, on [0, 1).

    Example:
      >>> key = jax.random.key(0)
      >>> bool((uniform(key, (5, 2)) == jax.random.uniform(key, (5, 2))).all())
      True
    """
    return _draw(_fused_uniform, jax.random.uniform, key, tuple(shape), dtype)


def _draw(fused: Callable, reference: Callable, key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    ours = str(jax.random.key_impl(key)) == "threefry2x32" and jax.threefry_partitionable.value
    if not ours or dtype != jnp.float32 or math.prod(shape) > _MOST:
        return reference(key, shape, dtype)
    return _by_platform(fused, reference, key, shape)


@functools.partial(jax.jit, static_argnums=(0, 1, 3))
def _by_platform(fused: Callable, reference: Callable, key: Array, shape: tuple[int, ...]) -> Array:
    return jax.lax.platform_dependent(
        key, cpu=lambda key: fused(key, shape), default=lambda key: reference(key, shape, jnp.float32)
    )


def _fused_uniform(key: Array, shape: tuple[int, ...]) -> Array:
    return (_mantissas(key, math.prod(shape)) - 1).reshape(shape)


def _fused_normal(key: Array, shape: tuple[int, ...]) -> Array:
    low = jnp.nextafter(jnp.float32(-1), jnp.float32(0))
    u = (_mantissas(key, math.prod(shape)) - 1) * (1 - low) + low
    return (jnp.float32(math.sqrt(2)) * jax.lax.erf_inv(jnp.maximum(u, low))).reshape(shape)


# Everything runs over one long axis, whatever the shape: short ones do not fill the processor's lanes.


def _mantissas(key: Array, count: int) -> Array:
    """Uniform on [1, 2): random bits where a float32 keeps its fraction."""
    bits = jax.lax.shift_right_logical(_bits(key, count), jnp.uint32(9)) | jnp.uint32(0x3F800000)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _bits(key: Array, count: int) -> Array:
    first, second = jax.random.key_data(key)
    schedule = (first, second, first ^ second ^ jnp.uint32(_PARITY))
    a = jnp.broadcast_to(schedule[0], (count,))
    b = jnp.arange(count, dtype=jnp.uint32) + schedule[1]
    for group in range(5):
        for turn in _ROTATIONS[group % 2]:
            a = a + b
            b = a ^ ((b << jnp.uint32(turn)) | jax.lax.shift_right_logical(b, jnp.uint32(32 - turn)))
        a = a + schedule[(group + 1) % 3]
        b = b + schedule[(group + 2) % 3] + jnp.uint32(group + 1)
    return a ^ b
