"""What the networks share: features of time, initial weights, the embedding of a class with a learned "no class", checks.

A network sees time as a vector of waves, since a layer that is linear in `t` itself could not tell t = .01 from t = .02:

    sinusoidal   cos(w_k t), sin(w_k t), frequencies w_k in a geometric series     (transformers, DDPM)
    fourier      cos(2 pi f_k t), sin(2 pi f_k t), frequencies f_k ~ N(0, scale^2)  (random Fourier features)

Both take `t` of any shape and append an axis. They are computed in float32 whatever the network computes in: a bfloat16 has
three digits, and 1000 t would lose the waves.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from diffjax import numerics


def sinusoidal(t: ArrayLike, features: int = 64, *, scale: float = 1000.0, max_period: float = 10_000.0) -> Array:
    """Sines and cosines of time at geometric frequencies: `[cos(w_k t), sin(w_k t)]`, w_k = scale max_period^(-k / half).

    Args:
      t: `[*batch]`, in [0, 1].
      features: length of the vector, even; half = features / 2.
      scale: the highest angular frequency; 1000 gives DDPM's features of a step number out of 1,000.
      max_period: ratio of the highest frequency to the lowest (which is left out, as in the source).

    Returns:
      `[*batch, features]`, float32.

    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.5; Ho et al. 2020, arXiv:2006.11239, appendix B.

    Example:
      >>> [round(float(x), 3) for x in sinusoidal(0.002, 4)]
      [-0.416, 1.0, 0.909, 0.02]
    """
    half = _half(features)
    frequencies = scale * np.exp(-math.log(max_period) * np.arange(half) / half)
    return _waves(t, frequencies)


def fourier(t: ArrayLike, frequencies: ArrayLike) -> Array:
    """Sines and cosines of time at given frequencies: `[cos(2 pi f_k t), sin(2 pi f_k t)]`.

    Args:
      t: `[*batch]`, in [0, 1].
      frequencies: `[half]`, in periods per unit of time; see `random_frequencies`.

    Returns:
      `[*batch, 2 half]`, float32.

    Source: Tancik et al. 2020, arXiv:2006.10739, eq. 5; Song et al. 2021, arXiv:2011.13456, appendix C.2.

    Example:
      >>> [round(float(x), 3) for x in fourier(0.1, np.array([1.0, 2.0]))]
      [0.809, 0.309, 0.588, 0.951]
    """
    return _waves(t, 2 * np.pi * np.asarray(frequencies))


def random_frequencies(features: int = 64, *, scale: float = 4.0, seed: int = 0) -> np.ndarray:
    """Frequencies f ~ N(0, scale^2) for `fourier`, `[features / 2]`, the same for a seed for ever.

    They are constants of the program and not parameters: no optimiser decays them and no checkpoint can lose them.

    Example:
      >>> print(random_frequencies(4).round(3))
      [7.056 1.601]
    """
    # The stream of a RandomState is frozen by NumPy; that of a Generator may change between versions.
    return scale * np.random.RandomState(seed).randn(_half(features))


def random_fourier(features: int = 64, *, scale: float = 4.0, seed: int = 0) -> Callable[[ArrayLike], Array]:
    """The map `t -> fourier(t, random_frequencies(...))`, for the field `time_features` of a network.

    Example:
      >>> random_fourier(32)(jnp.zeros(5)).shape
      (5, 32)
    """
    frequencies = random_frequencies(features, scale=scale, seed=seed)
    return lambda t: fourier(t, frequencies)


def _half(features: int) -> int:
    if features < 2 or features % 2:
        raise ValueError(
            f"features come in pairs of a cosine and a sine: expected a positive even number, got {features=}"
        )
    return features // 2


def _waves(t: ArrayLike, frequencies: np.ndarray) -> Array:
    t = jnp.asarray(t, jnp.float32)
    angles = t[..., None] * jnp.asarray(frequencies, jnp.float32).reshape((1,) * t.ndim + (-1,))
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)


def lecun(key: Array, shape: Sequence[int], dtype: Any = jnp.float32, *, std: float | None = None) -> Array:
    """Initial weights `[*inputs, outputs]`, normal with variance 1 / inputs (or `std`^2): a layer then keeps the size of its input.

    Drawn as a flat vector of a length that is a power of two: on a CPU the draws of a network with forty shapes, each compiled
    by itself, took longer than all else in `init`; few lengths, and one axis, compile ten times faster.

    Source: LeCun et al. 1998, "Efficient BackProp", section 4.6.

    Example:
      >>> print(lecun(jax.random.key(0), (3, 3, 64, 64)).std() * 24)
      1.00...
    """
    size = math.prod(shape)
    flat = jax.random.normal(key, (1 << max(size - 1, 0).bit_length(),), dtype)[:size]
    return flat.reshape(tuple(shape)) * (1 / math.sqrt(math.prod(shape[:-1])) if std is None else std)


Dense = functools.partial(nn.Dense, kernel_init=lecun)
Conv = functools.partial(nn.Conv, kernel_size=(3, 3), kernel_init=lecun)


class LabelEmbedding(nn.Module):
    """A learned vector for each class and one for "no class", for classifier-free guidance.

    Label `-1` (any negative number) or None means no class; drop labels to `-1` in training to teach it. A label that is no
    class (`>= num_classes`) gives NaN, loudly: an index known only on the device cannot raise.

    Attributes:
      num_classes: number of classes K; labels are 0..K-1.
      features: length of the vector.

    Source: Ho and Salimans 2022, arXiv:2207.12598, section 3.2.
    """

    num_classes: int
    features: int

    @nn.compact
    def __call__(self, label: ArrayLike | None) -> Array:
        """`label` int `[*batch]` or None -> `[*batch, features]`, float32."""
        table = self.param("table", functools.partial(lecun, std=1.0), (self.num_classes + 1, self.features))
        which = jnp.asarray(-1 if label is None else label)
        if not jnp.issubdtype(which.dtype, jnp.integer):
            raise TypeError(f"expected integer labels, 0..{self.num_classes - 1} or -1 for none, got {which.dtype}")
        k = self.num_classes
        row = jnp.where(which < 0, k, jnp.where(which < k, which, k + 1))
        return jnp.take(table, row, axis=0, mode="fill", fill_value=jnp.nan)


def align(embedding: Array, batch: int) -> Array:
    """`[*shape, features]` with axes of size one before the last, so that it broadcasts over `batch` leading axes.

    Example:
      >>> align(jnp.ones((3, 8)), 2).shape, align(jnp.ones(8), 2).shape
      ((3, 1, 8), (1, 1, 8))
    """
    *shape, features = embedding.shape
    return embedding.reshape((*shape, *(1,) * (batch - len(shape)), features))


def check_inputs(
    xt: Array, t: Any, label: Any, x0_prev: Array | None, *, event: int, num_classes: int | None, self_condition: bool
) -> None:
    """Raises unless the inputs fit each other and the network; `event` is the number of axes of one example."""
    if not jnp.issubdtype(xt.dtype, jnp.floating):
        raise TypeError(
            f"expected floating-point xt, got {xt.dtype=}: embed symbols first, for example by jax.nn.one_hot"
        )
    if xt.ndim < event:
        raise ValueError(f"expected xt with {event} axes of data at least, got {xt.shape=}")
    batch = jax.ShapeDtypeStruct(xt.shape[: xt.ndim - event], xt.dtype)
    numerics.check_batch(t, batch)
    if label is not None:
        if num_classes is None:
            raise ValueError("this network knows no classes: build it with num_classes=K, or pass label=None")
        numerics.check_batch(label, batch, name="label")
        if isinstance(label, int) and label >= num_classes:
            raise ValueError(f"expected a label in 0..{num_classes - 1}, or -1 for no class, got {label=}")
    if x0_prev is not None:
        if not self_condition:
            raise ValueError("this network takes no x0_prev: build it with self_condition=True, or pass x0_prev=None")
        numerics.check_same(xt=xt, x0_prev=x0_prev)


def with_previous(xt: Array, x0_prev: Array | None, *, self_condition: bool, dtype: Any) -> Array:
    """The network's input: `xt`, and beside it in the last axis the last estimate of x_0 (zeros for none yet) if it is used."""
    x = xt.astype(dtype)
    if not self_condition:
        return x
    return jnp.concatenate([x, jnp.zeros_like(x) if x0_prev is None else x0_prev.astype(dtype)], -1)
