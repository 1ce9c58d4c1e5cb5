"""A multilayer perceptron for vectors: points of the plane, angles, rows of a table."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from diffjax.networks import layers


class MLP(nn.Module):
    """A perceptron that sees `xt`, time, and where wanted a class and the last estimate of x_0.

    Time and class are added to the first hidden layer: the same as writing them beside `xt`, and computed once where one
    time serves the whole batch.

    Attributes:
      features: widths of the hidden layers.
      outputs: size of the last axis of the result; that of `xt` by default.
      num_classes: number of classes, or None for a network without.
      self_condition: whether `x0_prev` is an input.
      time_features: `[*batch] -> [*batch, n]`, such as `layers.sinusoidal` or `layers.random_fourier()`.
      activation: between the layers.
      dtype: what the hidden layers compute in (`jnp.bfloat16` on a TPU or GPU). Parameters are float32 whatever it is, and so is the
        last layer.

    Example:
      >>> import jax
      >>> net = MLP(num_classes=10)
      >>> params = net.init(jax.random.key(0), jnp.ones((4, 2)), jnp.zeros(4))
      >>> net.apply(params, jnp.ones((4, 2)), 0.5, label=3).shape
      (4, 2)
    """

    features: Sequence[int] = (128, 128, 128)
    outputs: int | None = None
    num_classes: int | None = None
    self_condition: bool = False
    time_features: Callable[[Array], Array] = layers.sinusoidal
    activation: Callable[[Array], Array] = nn.silu
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, xt: Array, t: ArrayLike, label: ArrayLike | None = None, x0_prev: Array | None = None) -> Array:
        """The network's output, `[*batch, outputs]`, of `xt`'s dtype.

        Args:
          xt: `[*batch, d]`.
          t: in [0, 1]; its shape is the batch, a prefix of it, or scalar.
          label: int, shaped as `t` may be; -1 or None for no class.
          x0_prev: of `xt`'s shape; None for no estimate yet.
        """
        layers.check_inputs(
            xt, t, label, x0_prev, event=1, num_classes=self.num_classes, self_condition=self.self_condition
        )
        if not self.features:
            raise ValueError("expected one hidden layer at least, got features=()")
        width, *rest = self.features
        batch = xt.ndim - 1
        x = layers.with_previous(xt, x0_prev, self_condition=self.self_condition, dtype=self.dtype)
        time = layers.Dense(width, use_bias=False, dtype=self.dtype, name="time")(self.time_features(jnp.asarray(t)))
        h = layers.Dense(width, dtype=self.dtype, name="input")(x) + layers.align(time, batch)
        if self.num_classes is not None:
            label_vector = layers.LabelEmbedding(self.num_classes, width, name="label")(label)
            h = h + layers.align(label_vector.astype(self.dtype), batch)
        for i, width in enumerate(rest):
            h = layers.Dense(width, dtype=self.dtype, name=f"hidden_{i}")(self.activation(h))
        outputs = xt.shape[-1] if self.outputs is None else self.outputs
        h = self.activation(h).astype(jnp.float32)
        return layers.Dense(outputs, dtype=jnp.float32, name="output")(h).astype(xt.dtype)
