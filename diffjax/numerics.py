"""Small tools that every formula leans on: shapes of times, keys, precision.

Three conventions hold in all of diffjax, and live here.

* **The shape of `t` is the batch**: `x.shape == t.shape + event`. A scalar `t` serves a whole array. `expand_right`
  lines a time up with the data, `sum_event` sums what is not batch.
* **Half precision in, half precision out, float32 between**: `upcast` widens the data for the arithmetic, and results are
  cast back once.
* **A key is one key or an array of keys `[batch]`.** With an array, example `i` draws from key `i` alone, so that a
  sample does not depend on the company it is drawn in. `normal`, `uniform` and `split` take either.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from diffjax import threefry

# ---------------------------------------------------------------------------------------------------------- shapes


def expand_right(t: ArrayLike, like: Any) -> Array:
    """`t` with axes of size one appended until it broadcasts against `like` from the left.

    Args:
      t: `[*batch]`.
      like: array (or `ShapeDtypeStruct`) `[*batch, *event]`.

    Returns:
      `[*batch, 1, ..., 1]`, of `like`'s rank. A scalar stays a scalar.

    Raises:
      ValueError: `t` has more axes than `like`, or its shape is no prefix of `like`'s.

    Example:
      >>> expand_right(jnp.ones(3), jnp.ones((3, 2, 2))).shape
      (3, 1, 1)
    """
    t = jnp.asarray(t)
    check_batch(t, like)
    return t.reshape(t.shape + (1,) * (len(like.shape) - t.ndim)) if t.ndim else t


def check_batch(t: Any, like: Any, *, name: str = "t") -> None:
    """Raises a `ValueError` unless `t`'s shape is a prefix of `like`'s (axes of size one broadcast).

    Example:
      >>> check_batch(jnp.ones(3), jnp.ones((4, 2)))
      Traceback (most recent call last):
      ...
      ValueError: the shape of `t` is the batch: expected a prefix of the data's shape (4, 2), or a scalar, got t.shape=(3,)
    """
    shape, data = np.shape(t), tuple(like.shape)
    if len(shape) > len(data) or any(n not in (1, m) for n, m in zip(shape, data, strict=False)):
        raise ValueError(
            f"the shape of `{name}` is the batch: expected a prefix of the data's shape {data}, or a scalar, "
            f"got {name}.shape={shape}"
        )


def check_time(*times: Any) -> None:
    """Raises a `ValueError` for a time outside [0, 1] that is known now: a Python number or a NumPy array.

    Traced and device values are left alone, since looking at them would stop the device.

    Example:
      >>> check_time(0.5, 1.5)
      Traceback (most recent call last):
      ...
      ValueError: time runs from 0 (data) to 1 (noise), got t=1.5
    """
    for t in times:
        if isinstance(t, (int, float, np.ndarray, np.generic)):
            bad = ~((np.asarray(t) >= 0) & (np.asarray(t) <= 1))
            if bad.any():
                raise ValueError(f"time runs from 0 (data) to 1 (noise), got t={np.asarray(t)[bad].flat[0]}")


def check_same(**arrays: Any) -> None:
    """Raises a `ValueError` unless all arrays have one shape; the message names them.

    Example:
      >>> check_same(x0=jnp.ones(2), xt=jnp.ones(3))
      Traceback (most recent call last):
      ...
      ValueError: expected arrays of one shape, got x0.shape=(2,), xt.shape=(3,)
    """
    if len({np.shape(x) for x in arrays.values()}) > 1:
        came = ", ".join(f"{name}.shape={np.shape(x)}" for name, x in arrays.items())
        raise ValueError(f"expected arrays of one shape, got {came}")


def sum_event(x: Array, t: ArrayLike) -> Array:
    """`x` `[*batch, *event]` summed over the event: shape `[*batch]`, the shape of `t`.

    Example:
      >>> sum_event(jnp.ones((3, 2, 2)), jnp.zeros(3))
      Array([4., 4., 4.], dtype=float32)
    """
    return jnp.sum(x, axis=tuple(range(np.ndim(t), x.ndim)))


# ------------------------------------------------------------------------------------------------------- precision


def compute_dtype(*arrays: Any) -> Any:
    """The floating type to calculate in: float64 if any array is (Python numbers alone: JAX's default), else float32.

    Example:
      >>> print(compute_dtype(jnp.ones(2, jnp.bfloat16)))
      float32
    """
    dtypes = [x.dtype for x in arrays if hasattr(x, "dtype")]
    default = jnp.result_type(float)  # float64 where x64 is on
    wide = default == jnp.float64 and (not dtypes or jnp.dtype(jnp.float64) in dtypes)
    return jnp.dtype(jnp.float64 if wide else jnp.float32)


def upcast(*arrays: ArrayLike) -> tuple[Array, ...]:
    """The arrays in their common `compute_dtype`. Half-precision data are widened once, at the door.

    Example:
      >>> x, y = upcast(jnp.ones(2, jnp.bfloat16), 0.5)
      >>> print(x.dtype, y.dtype)
      float32 float32
    """
    dtype = compute_dtype(*arrays)
    return tuple(jnp.asarray(x, dtype) for x in arrays)


def safe_sqrt(x: ArrayLike) -> Array:
    """`sqrt(x)` whose derivative at 0 is large and finite (5e11) instead of infinite, so that `0 * inf` never arises.

    Example:
      >>> print(safe_sqrt(jnp.array([0.0, 4.0])))
      [0. 2.]
    """
    return _safe_sqrt(jnp.asarray(x))


@jax.custom_jvp
def _safe_sqrt(x):
    return jnp.sqrt(x)


@_safe_sqrt.defjvp
def _safe_sqrt_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    # The public function again, so that second derivatives take this rule too.
    return safe_sqrt(x), 0.5 * dx / safe_sqrt(jnp.maximum(x, 1e-24))


def safe_divide(numerator: Array, denominator: Array) -> Array:
    """`numerator / denominator`, and 0 where the denominator is 0; gradients are finite there too.

    The denominator is selected first and divided by once: a `where` around the quotient alone gives NaN gradients.

    Example:
      >>> print(safe_divide(jnp.array([1.0, 1.0]), jnp.array([0.0, 2.0])))
      [0.  0.5]
    """
    zero = denominator == 0
    return jnp.where(zero, jnp.zeros_like(numerator), numerator) / jnp.where(
        zero, jnp.ones_like(denominator), denominator
    )


# ------------------------------------------------------------------------------------------------------------ keys


def as_keys(key: Array) -> Array:
    """A typed key array; raw `uint32` keys `[..., 2]` of `jax.random.PRNGKey` are wrapped.

    Example:
      >>> as_keys(jax.random.PRNGKey(0)).shape
      ()
    """
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key
    if key.dtype == jnp.uint32:
        return jax.random.wrap_key_data(key)
    raise TypeError(f"expected a key such as jax.random.key(0), or an array of keys, got {key.dtype=}, {key.shape=}")


def _per_key(function: Callable[..., Any], key: Array) -> Any:
    key = as_keys(key)
    for _ in range(key.ndim):
        function = jax.vmap(function)
    return function(key)


def split(key: Array, num: int = 2) -> Array:
    """`num` new keys for each key: `[num, *key.shape]`, so that `a, b = split(key)` works for one key and for an array.

    Example:
      >>> split(jax.random.split(jax.random.key(0), 5), 3).shape
      (3, 5)
    """
    return jnp.moveaxis(_per_key(lambda k: jax.random.split(k, num), key), -1, 0)


def fold_in(key: Array, data: ArrayLike) -> Array:
    """`jax.random.fold_in` for one key and for an array of keys: shape of `key`.

    Example:
      >>> fold_in(jax.random.split(jax.random.key(0), 5), 3).shape
      (5,)
    """
    return _per_key(lambda k: jax.random.fold_in(k, data), key)


def example_keys(key: Array, index: Array) -> Array:
    """One key for each global example number: `fold_in(key, index[i])`, shape of `index`.

    A draw made this way depends on the example alone, not on the device or the batch it stands in.

    Example:
      >>> example_keys(jax.random.key(0), jnp.arange(4)).shape
      (4,)
    """
    function = lambda i: jax.random.fold_in(as_keys(key), i)
    for _ in range(index.ndim):
        function = jax.vmap(function)
    return function(index)


def _draw(sampler: Callable[..., Array], key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    key = as_keys(key)
    if key.shape != tuple(shape)[: key.ndim]:
        raise ValueError(
            f"an array of keys serves the leading axes of the draw: expected a prefix of {tuple(shape)}, got {key.shape=}"
        )
    return _per_key(lambda k: sampler(k, tuple(shape)[key.ndim :], dtype), key)


def normal(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Standard normal draws `[*shape]`; with an array of keys each serves its own leading index.

    Example:
      >>> keys = jax.random.split(jax.random.key(0), 4)
      >>> bool((normal(keys, (4, 3))[2] == normal(keys[2], (3,))).all())
      True
    """
    return _draw(threefry.normal, key, shape, dtype)


def uniform(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Uniform draws on [0, 1) `[*shape]`; with an array of keys each serves its own leading index.

    Example:
      >>> uniform(jax.random.key(0), (2, 3)).shape
      (2, 3)
    """
    return _draw(threefry.uniform, key, shape, dtype)


def tree_keys(key: Array, tree: Any, *, is_leaf: Callable[[Any], bool] | None = None) -> Any:
    """A pytree of `tree`'s structure with one key a leaf. A tree of one leaf gets `key` itself.

    Example:
      >>> sorted(tree_keys(jax.random.key(0), {"a": 1, "b": 2}))
      ['a', 'b']
    """
    treedef = jax.tree.structure(tree, is_leaf=is_leaf)
    n = treedef.num_leaves
    return jax.tree.unflatten(treedef, [key] if n == 1 else list(split(key, n)))


# ----------------------------------------------------------------------------------------------------- divergence


def divergence(function: Callable[[Array], Array], x: Array) -> Array:
    """The divergence `sum_i d f_i / d x_i` of a map from an array to one of the same shape, exactly, as a scalar.

    One forward-mode pass for each component, run one after another so that memory does not grow with the dimension.

    Args:
      function: `[*event] -> [*event]`.
      x: `[*event]`; `vmap` for a batch.

    Example:
      >>> print(divergence(lambda x: x**2, jnp.array([1.0, 2.0])))
      6.0
    """
    flat = x.reshape(-1)

    def component(i):
        unit = jnp.zeros_like(flat).at[i].set(jnp.ones((), x.dtype)).reshape(x.shape)
        return jax.jvp(function, (x,), (unit,))[1].reshape(-1)[i]

    return jnp.sum(jax.lax.map(component, jnp.arange(flat.size)))


def hutchinson(key: Array, function: Callable[[Array], Array], x: Array, *, probes: int = 1) -> Array:
    """An unbiased estimate of the `divergence` by Rademacher probes `E[v^T J v]`, a scalar.

    Args:
      key: one key.
      function: `[*event] -> [*event]`.
      x: `[*event]`.
      probes: number of probes averaged.

    Source: Hutchinson 1989; Grathwohl et al. 2019, arXiv:1810.01367, eq. 7.

    Example:
      >>> print(hutchinson(jax.random.key(0), lambda x: 3 * x, jnp.ones(4)))
      12.0
    """

    def probe(k):
        v = jax.random.rademacher(k, x.shape, x.dtype)
        return jnp.sum(v * jax.jvp(function, (x,), (v,))[1])

    return jnp.mean(jax.lax.map(probe, jax.random.split(as_keys(key), probes)))
