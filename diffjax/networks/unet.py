"""A U-Net for images, `[*batch, height, width, channels]`.

Levels of falling resolution on the way down, the same on the way up, and each block on the way up sees its twin on the way down:

    level 0   blocks --------------------------------> blocks     H x W,     channels * multipliers[0]
    level 1       blocks -----------------------> blocks          H/2 x W/2, channels * multipliers[1]
    level 2           blocks -> middle -> blocks                  H/4 x W/4, channels * multipliers[2]

A block is two 3x3 convolutions with group norms, the second norm scaled and shifted by time and class; attention follows it at the
levels asked for. The last convolution of every branch and of the network starts at zero: an untrained network is a plain
path from input to a zero output.

It is written for few large operations: channels last throughout, a norm with its modulation as one multiply-add, the
modulations of all blocks from one matrix product, resolution halved and doubled by moving 2x2 pixels into channels and back.

Source: Ronneberger et al. 2015, arXiv:1505.04597; Ho et al. 2020, arXiv:2006.11239, appendix B; Dhariwal and Nichol
2021, arXiv:2105.05233, section 3 (adaptive group norm); Karras et al. 2022, arXiv:2206.00364, appendix F.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from diffjax import numerics
from diffjax.networks import layers

_ZEROS = nn.initializers.zeros_init()


class UNet(nn.Module):
    """A U-Net that sees `xt`, time, and where wanted a class and the last estimate of x_0.

    Attributes:
      channels: width at level 0.
      multipliers: width of each level over `channels`; their number is the number of levels. Height and width must be divisible
        by 2^(levels - 1).
      blocks: residual blocks for each level, down and up.
      attention_levels: levels whose blocks are followed by self-attention (0 is full resolution); the middle has it if the last
        level does.
      num_classes: number of classes, or None for a network without.
      self_condition: whether `x0_prev` is an input.
      dropout: rate inside the residual blocks, in [0, 1); at work where a `dropout_key` is given.
      out_channels: channels of the result; those of `xt` by default.
      head_features: channels of one attention head.
      time_features: `[*batch] -> [*batch, n]`, such as `layers.sinusoidal`.
      dtype: what the network computes in (`jnp.bfloat16` on a TPU or GPU). Parameters, statistics of the norms and the last
        convolution are float32 whatever it is.

    Example:
      >>> net = UNet(channels=32, multipliers=(1, 2), attention_levels=(1,), num_classes=10)
      >>> images = jnp.ones((4, 28, 28, 1))
      >>> guess, params = jax.eval_shape(net.init_with_output, jax.random.key(0), images, jnp.zeros(4))
      >>> guess.shape, round(sum(p.size for p in jax.tree.leaves(params)), -4)
      ((4, 28, 28, 1), 890000)
    """

    channels: int = 64
    multipliers: Sequence[int] = (1, 2, 2)
    blocks: int = 2
    attention_levels: Sequence[int] = (2,)
    num_classes: int | None = None
    self_condition: bool = False
    dropout: float = 0.0
    out_channels: int | None = None
    head_features: int = 64
    time_features: Callable[[Array], Array] = layers.sinusoidal
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        xt: Array,
        t: ArrayLike,
        label: ArrayLike | None = None,
        x0_prev: Array | None = None,
        *,
        dropout_key: Array | None = None,
    ) -> Array:
        """The network's output, `[*batch, height, width, out_channels]`, of `xt`'s dtype.

        Args:
          xt: `[*batch, height, width, channels]`.
          t: in [0, 1]; its shape is the batch, a prefix of it, or scalar.
          label: int, shaped as `t` may be; -1 or None for no class.
          x0_prev: of `xt`'s shape; None for no estimate yet.
          dropout_key: one key, or an array of keys `[*batch]` (one an example: the result then does not depend on the layout);
            None for no dropout.
        """
        self._check(xt, t, label, x0_prev)
        lead, image = xt.shape[:-3], xt.shape[-3:]
        x = layers.with_previous(xt, x0_prev, self_condition=self.self_condition, dtype=self.dtype)
        x = x.reshape((-1, *x.shape[-3:]))
        keys = None if dropout_key is None else numerics.as_keys(dropout_key)
        keys = keys.reshape(-1) if keys is not None and keys.ndim else keys

        widths = [self.channels * m for m in self.multipliers]
        down = [(level, w) for level, w in enumerate(widths) for _ in range(self.blocks)]
        outs = [w for _, w in down] + [widths[-1]] * 2 + [w for _, w in reversed(down)]
        modulations = self._modulations(t, label, lead, outs)

        def block(x: Array, level: int, width: int, name: str) -> Array:
            key = None if keys is None else numerics.fold_in(keys, len(modulations))
            x = Residual(width, self.dropout, self.dtype, name=name)(x, modulations.pop(0), key)
            if level in self.attention_levels:
                x = Attention(self.head_features, self.dtype, name=f"{name}_attention")(x)
            return x

        x = layers.Conv(widths[0], dtype=self.dtype, name="input")(x)
        skips = []
        for i, (level, width) in enumerate(down):
            if i and down[i - 1][0] != level:
                x = layers.Dense(x.shape[-1], dtype=self.dtype, name=f"halve_{level}")(pixels_to_channels(x))
            x = block(x, level, width, f"down_{i}")
            skips.append(x)
        last = len(widths) - 1
        x = block(x, last, widths[-1], "middle_0")
        x = block(x, -1, widths[-1], "middle_1")
        for i, (level, width) in reversed(list(enumerate(down))):
            x = block(jnp.concatenate([x, skips.pop()], -1), level, width, f"up_{i}")
            if i and down[i - 1][0] != level:
                x = channels_to_pixels(layers.Dense(4 * width, dtype=self.dtype, name=f"double_{level}")(x))
        outputs = image[-1] if self.out_channels is None else self.out_channels
        x = nn.silu(Norm(jnp.float32, name="output_norm")(x))
        x = layers.Conv(outputs, dtype=jnp.float32, name="output", kernel_init=_ZEROS)(x)
        return x.reshape((*lead, *image[:-1], outputs)).astype(xt.dtype)

    def _modulations(self, t: ArrayLike, label: Any, lead: tuple[int, ...], outs: list[int]) -> list[Array]:
        """A scale and a shift for the channels of each block, `[batch or 1, 2 width]`, all from one matrix product."""
        width = 4 * self.channels
        h = layers.Dense(width, dtype=self.dtype, name="time_0")(self.time_features(jnp.asarray(t)))
        h = layers.align(layers.Dense(width, dtype=self.dtype, name="time_1")(nn.silu(h)), len(lead))
        if self.num_classes is not None:
            vector = layers.LabelEmbedding(self.num_classes, width, name="label")(label)
            h = h + layers.align(vector.astype(self.dtype), len(lead))
        if math.prod(h.shape[:-1]) != 1:
            h = jnp.broadcast_to(h, (*lead, width))
        sizes = [2 * w for w in outs]
        h = layers.Dense(sum(sizes), dtype=jnp.float32, name="modulation")(nn.silu(h.reshape(-1, width)))
        return jnp.split(h, [sum(sizes[:i]) for i in range(1, len(sizes))], -1)

    def _check(self, xt: Array, t: Any, label: Any, x0_prev: Array | None) -> None:
        layers.check_inputs(
            xt, t, label, x0_prev, event=3, num_classes=self.num_classes, self_condition=self.self_condition
        )
        levels = len(self.multipliers)
        if not levels or self.blocks < 1:
            raise ValueError(f"expected one level and one block at least, got {self.multipliers=}, {self.blocks=}")
        height, width = xt.shape[-3:-1]
        if height % 2 ** (levels - 1) or width % 2 ** (levels - 1):
            raise ValueError(
                f"{levels} levels halve an image {levels - 1} times: expected height and width divisible by "
                f"{2 ** (levels - 1)}, got {height}x{width}: pad the images or give fewer multipliers"
            )
        if any(not 0 <= level < levels for level in self.attention_levels):
            raise ValueError(f"expected attention_levels among 0..{levels - 1}, got {self.attention_levels}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"expected a dropout rate in [0, 1), got dropout={self.dropout}")


class Residual(nn.Module):
    """`x` plus two convolutions of it, the second norm scaled and shifted by the modulation: `[batch, H, W, width]`."""

    width: int
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, modulation: Array, key: Array | None) -> Array:
        h = layers.Conv(self.width, dtype=self.dtype, name="conv_0", use_bias=False)(
            nn.silu(Norm(self.dtype, name="norm_0")(x))
        )
        h = nn.silu(Norm(self.dtype, name="norm_1")(h, modulation))
        if self.dropout and key is not None:
            # Drawn flat: a CPU compiles draws of many axes slowly.
            kept = numerics.uniform(key, (len(h), h[0].size)).reshape(h.shape) >= self.dropout
            h = jnp.where(kept, h / (1 - self.dropout), jnp.zeros_like(h))
        h = layers.Conv(self.width, dtype=self.dtype, name="conv_1", kernel_init=_ZEROS, use_bias=False)(h)
        return h + (x if x.shape[-1] == self.width else layers.Dense(self.width, dtype=self.dtype, name="skip")(x))


class Attention(nn.Module):
    """`x` plus self-attention over its pixels: `[batch, H, W, C]`."""

    head_features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, height, width, channels = x.shape
        heads = max(1, channels // self.head_features)
        if channels % heads:
            raise ValueError(f"{heads} heads of about {self.head_features} do not divide {channels} channels")
        h = Norm(self.dtype, name="norm")(x).reshape(batch, height * width, channels)
        # Without a bias: that of the keys would have no gradient but rounding, which Adam blows up to full steps.
        h = layers.Dense(3 * channels, use_bias=False, dtype=self.dtype, name="qkv")(h)
        q, k, v = jnp.split(h.reshape(batch, height * width, 3 * heads, channels // heads), 3, axis=2)
        logits = jnp.einsum("nqhc,nkhc->nhqk", q, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits / math.sqrt(channels // heads)).astype(self.dtype)
        h = jnp.einsum("nhqk,nkhc->nqhc", weights, v).reshape(x.shape)
        return x + layers.Dense(channels, dtype=self.dtype, kernel_init=_ZEROS, name="output")(h)


class Norm(nn.Module):
    """Group norm, with a scale and a shift of each example where a modulation `[batch or 1, 2 C]` is given.

    Statistics and modulation meet in small arrays `[batch, C]`; the image is read once for the sums and once for a multiply-add.

    Source: Wu and He 2018, arXiv:1803.08494, eq. 2-4.
    """

    dtype: Any

    @nn.compact
    def __call__(self, x: Array, modulation: Array | None = None) -> Array:
        batch, height, width, channels = x.shape
        groups = math.gcd(32, max(1, channels // 4), channels)  # at least 4 channels a group
        x = x.astype(jnp.float32)
        sums = jnp.stack([jnp.sum(x, (1, 2)), jnp.sum(x * x, (1, 2))])  # [2, batch, C]
        mean, square = jnp.mean(sums.reshape(2, batch, groups, -1), -1, keepdims=True) / (height * width)
        rate = jax.lax.rsqrt(jnp.maximum(square - mean * mean, 0.0) + 1e-5)
        spread = lambda a: jnp.broadcast_to(a, (batch, groups, channels // groups)).reshape(batch, channels)
        if modulation is None:
            gain = self.param("scale", nn.initializers.ones_init(), (channels,))[None]
            bias = self.param("bias", _ZEROS, (channels,))[None]
        else:
            scale, bias = jnp.split(modulation, 2, -1)
            gain = 1 + scale
        a = spread(rate) * gain
        b = bias - spread(mean) * a
        return (x * a[:, None, None] + b[:, None, None]).astype(self.dtype)


def pixels_to_channels(x: Array) -> Array:
    """`[batch, 2 h, 2 w, c] -> [batch, h, w, 4 c]`, each square of four pixels side by side in the last axis.

    Example:
      >>> print(pixels_to_channels(jnp.arange(4.0).reshape(1, 2, 2, 1)))
      [[[[0. 1. 2. 3.]]]]
    """
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).swapaxes(2, 3).reshape(n, h // 2, w // 2, 4 * c)


def channels_to_pixels(x: Array) -> Array:
    """`[batch, h, w, 4 c] -> [batch, 2 h, 2 w, c]`, the inverse of `pixels_to_channels`.

    Example:
      >>> x = jnp.arange(32.0).reshape(1, 2, 2, 8)
      >>> bool((pixels_to_channels(channels_to_pixels(x)) == x).all())
      True
    """
    n, h, w, c = x.shape
    return x.reshape(n, h, w, 2, 2, c // 4).swapaxes(2, 3).reshape(n, 2 * h, 2 * w, c // 4)
