"""What a network is taught with: per-example losses, of the shape of `t`.

`regression` is denoising score matching in all its dresses. With `x_t = alpha x_0 + sigma eps` the network predicts a mixture
`y = a x_0 + b eps` (`diffjax.processes.predictions`), and

    loss(t) = w(t) mean_event error(y_hat(x_t, t) - y).

Without a weighting, w = 1 in the space of the prediction itself (the "simple" loss). A weighting is defined once, for the noise, and
carried into any other space by the exact factor between the errors, `|eps - eps_hat|^2 = (alpha / D_y)^2 |y - y_hat|^2`,
D_y = alpha b - sigma a: so min-SNR is the same objective whatever the network predicts.

`score_matching` is the same for a score on any space: a box, a torus, rotations.

Everything is computed in float32 whatever the network's type, and a `where` mask leaves entries out of the mean.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from diffjax import numerics, schedules
from diffjax.numerics import expand_right
from diffjax.processes import gaussian, predictions, torus
from diffjax.processes.base import Process, require
from diffjax.processes.predictions import Kind
from diffjax.schedules import Schedule

Error = Callable[[Array], Array]
"""An elementwise penalty of `y_hat - y`: `squared`, `absolute`, or your own."""

Weighting = Callable[[ArrayLike, Schedule], Array]
"""`(t, schedule) -> w`, the weight of a squared error *in the noise*, of t's shape."""

# ---------------------------------------------------------------------------------------------------------- errors


def squared(difference: Array) -> Array:
    """The square of a difference, for mean squared error.

    Example:
      >>> print(squared(jnp.array([-2.0])))
      [4.]
    """
    return difference * difference


def absolute(difference: Array) -> Array:
    """The absolute value of a difference, for mean absolute error.

    Example:
      >>> print(absolute(jnp.array([-2.0])))
      [2.]
    """
    return jnp.abs(difference)


def wrapped(difference: Array) -> Array:
    """The squared shortest way around the circle, `wrap(difference)^2`, for angles in radians.

    Example:
      >>> print(jnp.round(wrapped(jnp.array([6.0])), 4))  # 2 pi - 6 = 0.2832
      [0.0802]
    """
    return squared(torus.wrap(difference))


def mean_error(
    hat: Array, target: Array, t: ArrayLike, *, error: Error = squared, where: ArrayLike | None = None
) -> Array:
    """The mean over the event of `error(hat - target)`, of t's shape, in float32.

    Args:
      hat: `[*batch, *event]`, the estimate.
      target: `[*batch, *event]`.
      t: `[*batch]`; only its shape is read.
      error: elementwise penalty.
      where: bool, aligned from the left; False entries are left out of the mean (a mean of none is 0).

    Example:
      >>> print(mean_error(jnp.array([[1.0, 5.0]]), jnp.zeros((1, 2)), jnp.zeros(1), where=jnp.array([[True, False]])))
      [1.]
    """
    numerics.check_same(hat=hat, target=target)
    numerics.check_batch(t, target)
    hat, target = numerics.upcast(hat, target)
    return _mean_event(error(_kept(hat, where) - _kept(target, where)), t, where)


def _kept(values: Array, where: ArrayLike | None) -> Array:
    # Zeros before the error is taken: a NaN that is left out after it would still be in the gradient.
    if where is None:
        return values
    return jnp.where(expand_right(jnp.asarray(where, bool), values), values, jnp.zeros_like(values))


def _mean_event(values: Array, t: ArrayLike, where: ArrayLike | None) -> Array:
    if where is None:
        return jnp.mean(values, axis=tuple(range(jnp.ndim(t), values.ndim)))
    kept = jnp.broadcast_to(expand_right(jnp.asarray(where, bool), values), values.shape)
    total = numerics.sum_event(jnp.where(kept, values, jnp.zeros_like(values)), t)
    return total / jnp.maximum(numerics.sum_event(kept.astype(values.dtype), t), jnp.ones((), values.dtype))


def rotation_error(hat: Array, target: Array, t: ArrayLike, *, where: ArrayLike | None = None) -> Array:
    """The mean over sites of the squared angle between two rotations, in rad^2, of t's shape.

    With s = |q - r|^2 / 4, taken for the nearer of +-r, the angle is `4 asin(sqrt s)`; its square is analytic in s, so that by its series
    near 0 value and gradient are exact and finite from the identity to half a turn.

    Args:
      hat: `[*batch, *sites, 4]`, unit quaternions (`so3.from_bcd` makes them of three free numbers).
      target: `[*batch, *sites, 4]`, unit quaternions; q and -q are one rotation.
      t: `[*batch]`; only its shape is read.
      where: bool `[*batch, *sites]`, aligned from the left; sites that count.

    Source: Diffusions.jl has a cubic in 1 - |<q, r>| here, which is this up to the second order.

    Example:
      >>> quarter = jnp.array([0.5**0.5, 0.5**0.5, 0.0, 0.0])
      >>> print(jnp.round(jnp.sqrt(rotation_error(quarter, jnp.array([1.0, 0.0, 0.0, 0.0]), 0.5)), 4))  # pi / 2
      1.5708
    """
    numerics.check_same(hat=hat, target=target)
    q, r = (_kept(x, where) for x in numerics.upcast(hat, target))
    r = jnp.where(jnp.sum(q * r, axis=-1, keepdims=True) < 0, -r, r)
    s = jnp.sum(squared(q - r), axis=-1) / 4
    small = s < 0.02
    # asin(sqrt s)^2 = 1/2 sum (4 s)^n / (n^2 C(2n, n))
    series = s * (1 + s * (1 / 3 + s * (8 / 45 + s * (4 / 35 + s * 128 / 1575))))
    far = jnp.arcsin(jnp.sqrt(jnp.clip(jnp.where(small, 0.25 * jnp.ones_like(s), s), 0, 0.999)))
    return _mean_event(16 * jnp.where(small, series, far * far), t, where)


def cross_entropy(logits: Array, target: Array, t: ArrayLike, *, where: ArrayLike | None = None) -> Array:
    """The mean over sites of `-log p(x_0 | x_t)` in nats, of t's shape.

    Args:
      logits: `[*batch, *sites, vocab]`, unnormalised log-probabilities of the clean symbol.
      target: `[*batch, *sites]` int, the clean symbols.
      t: `[*batch]`; only its shape is read.
      where: bool `[*batch, *sites]`, aligned from the left, such as the masked sites alone.

    Raises:
      ValueError: logits are not target's shape and a vocabulary.

    Example:
      >>> print(jnp.round(cross_entropy(jnp.zeros((1, 2, 4)), jnp.array([[0, 3]]), jnp.zeros(1)), 4))  # log 4
      [1.3863]
    """
    if logits.shape[:-1] != target.shape:
        raise ValueError(f"expected logits of shape {target.shape} + (vocab,), got {logits.shape=}")
    (wide,) = numerics.upcast(logits)
    wide = _kept(wide, where)
    chosen = jnp.take_along_axis(wide, target[..., None].astype(jnp.int32), axis=-1)[..., 0]
    return _mean_event(jax.nn.logsumexp(wide, axis=-1) - chosen, t, where)


# ------------------------------------------------------------------------------------------------------ regression


def regression(
    key: Array,
    predict: Callable[[Array, Array], Array],
    x0: Array,
    t: ArrayLike,
    *,
    schedule: Schedule,
    kind: Kind = predictions.eps,
    error: Error = squared,
    weighting: Weighting | None = None,
    where: ArrayLike | None = None,
) -> Array:
    """The denoising loss `w(t) mean error(y_hat(x_t, t) - y)` of each example, of t's shape.

    Args:
      key: one key, or an array of keys `[batch]` (see `numerics.example_keys`).
      predict: `(xt, t) -> [*batch, *event]`, a prediction of the given kind; parameters and conditioning bound already.
      x0: `[*batch, *event]`, clean data.
      t: `[*batch]` in [0, 1].
      schedule: `t -> (alpha, sigma)`.
      kind: what the network predicts: `predictions.x0`, `eps`, `v`, `flow` or `score`.
      error: `squared` or `absolute`. A weighting scales either by the factor that is exact for `squared`.
      weighting: None (1 in the prediction's own space), or a `Weighting` such as `min_snr()`.
      where: bool mask of entries that count.

    Returns:
      `[*batch]` float32, per entry of the event (multiply by its size for nats under `likelihood`).

    Source: Vincent 2011; Ho et al. 2020, arXiv:2006.11239, eq. 14; Kingma and Gao 2023, arXiv:2303.00848, eq. 4.

    Example:
      A perfect predictor of the noise, for data at zero:

      >>> perfect = lambda xt, t: xt / expand_right(t, xt)
      >>> loss = regression(
      ...     jax.random.key(0), perfect, jnp.zeros((2, 3)), jnp.array([0.3, 0.6]), schedule=schedules.rectified()
      ... )
      >>> print(jnp.round(loss, 6))
      [0. 0.]
    """
    eps = numerics.normal(key, x0.shape, numerics.compute_dtype(x0))
    xt = gaussian.perturb(x0, eps, *schedule(t))
    a, b = kind(t, schedule)
    target = gaussian.perturb(x0.astype(eps.dtype), eps, a, b)
    loss = mean_error(predict(xt, jnp.asarray(t)), target, t, error=error, where=where)
    return loss if weighting is None else weight(t, schedule, kind=kind, weighting=weighting) * loss


def weight(t: ArrayLike, schedule: Schedule, *, kind: Kind, weighting: Weighting) -> Array:
    """The weight of a squared error in the space of `kind` that equals `weighting` in the space of the noise, of t's shape.

    Example:
      min-SNR in the space of x_0 is min(SNR, 5), whatever its form for the noise:

      >>> print(round(float(weight(0.5, schedules.rectified(), kind=predictions.x0, weighting=min_snr(5.0))), 4))
      1.0
    """
    alpha, sigma = schedule(t)
    # alpha^2 / D^2 with logits clipped, so that it meets the weighting's own clip at both ends.
    share = jax.nn.sigmoid(_logsnr(t, schedule))
    if kind is predictions.eps:
        factor = jnp.ones_like(alpha)
    elif kind is predictions.x0:
        factor = jnp.exp(_logsnr(t, schedule))
    elif kind is predictions.score:
        factor = sigma * sigma
    else:
        a, b = kind(t, schedule)
        factor = share * (alpha * alpha + sigma * sigma) / (alpha * b - sigma * a) ** 2
    return weighting(t, schedule) * factor


# -------------------------------------------------------------------------------------------------- score matching


def score_matching(
    key: Array,
    score: Callable[[Array, Array], Array],
    x0: Array,
    t: ArrayLike,
    *,
    process: Process,
    weight: Callable[[ArrayLike], Array] | None = None,
    where: ArrayLike | None = None,
) -> Array:
    """The denoising score matching loss of each example on any space, of t's shape:

        w(t) mean_event |score(x_t, t) - grad log q(x_t | x_0)|^2,        x_t ~ q(x_t | x_0).

    Its minimiser is the score of the noisy data, `grad log p_t(x_t)`, whatever the weight. That of a single point grows like 1 / sigma:
    `variance(schedule)` weighs all times about alike, and `diffusion(schedule)` makes the likelihood's bound of it.

    Args:
      key: one key, or an array of keys `[batch]`.
      score: `(xt, t) -> tangent`, the network's; parameters and conditioning bound already. A tangent has xt's shape; on rotations it is `[..., 3]`,
        in the body's frame. `cube.scaled_score` makes one of a raw output.
      x0: `[*batch, *event]`, clean data. Noise is added in float32 whatever their type, for bfloat16 could not hold little of it.
      t: `[*batch]` in [0, 1].
      process: with a `score`: `cube.process(schedule)`, `torus.process`, `so3.process`, `gaussian.process`.
      weight: `t -> [*batch]`; 1 by default.
      where: bool, aligned with the tangent from the left; entries that count.

    Returns:
      `[*batch]` float32, per entry of the tangent. The root of the weight multiplies both scores before they are subtracted and squared, so that
      no square overflows at little noise.

    Source: Vincent 2011, eq. 11; on a box: Lou and Ermon 2023, arXiv:2304.04740, sec. 4.1; on manifolds: De Bortoli et al. 2022, arXiv:2202.02763, sec. 3.3.

    Example:
      A perfect score for data in the corner of a box:

      >>> from diffjax.processes import cube
      >>> schedule = schedules.ve(0.01, 5.0)
      >>> perfect = lambda xt, t: cube.score(0.0, xt, schedule(t)[1])
      >>> loss = score_matching(
      ...     jax.random.key(0), perfect, jnp.zeros((2, 3)), jnp.array([0.3, 0.6]), process=cube.process(schedule), weight=variance(schedule)
      ... )
      >>> print(loss)
      [0. 0.]
    """
    kernel_score = require(process, "score")
    (clean,) = numerics.upcast(x0)
    xt = process.corrupt(key, clean, t)
    hat, target = numerics.upcast(score(xt, jnp.asarray(t)), kernel_score(clean, xt, t))
    if weight is not None:
        root = expand_right(numerics.safe_sqrt(weight(t)).astype(target.dtype), target)
        hat, target = root * hat, root * target
    return mean_error(hat, target, t, where=where)


def variance(schedule: Schedule) -> Callable[[ArrayLike], Array]:
    """The weight `t -> sigma(t)^2` of a squared score, under which all times count about alike.

    Source: Song and Ermon 2019, arXiv:1907.05600, sec. 4.2.

    Example:
      >>> print(variance(schedules.rectified())(0.5))
      0.25
    """
    return lambda t: jnp.square(schedule(t)[1])


def diffusion(schedule: Schedule) -> Callable[[ArrayLike], Array]:
    """The weight `t -> g^2(t)` of a squared score, for t ~ U[0, 1]: half of it, summed over the event, is the likelihood's bound in nats.

    On `schedules.ve` it is `2 log(sigma_max / sigma_min) sigma^2`, a multiple of `variance`.

    Source: Song et al. 2021, arXiv:2101.09258, theorem 1; Lou and Ermon 2023, arXiv:2304.04740, sec. 4.1 for reflected diffusions.

    Example:
      >>> print(round(float(diffusion(schedules.ve(0.1, 10.0))(0.5)), 3))  # 2 log(100)
      9.21
    """
    return lambda t: schedules.sde_coefficients(t, schedule=schedule)[1]


# --------------------------------------------------------------------------------------------------------- scalers
#
# A guess of x_0 errs by an amount that grows with t until everything is forgotten. Dividing the loss of each space by about the
# square root of that amount balances the times, and the parts of a joint process. Floored at 0.01, so that t = 0 is finite.
#
# They are those of Diffusions.jl in diffjax's units. Its `standardloss` has constants on top, which bring the spaces to like sizes: rotations are
# divided by 4, symbols multiplied by 1.44 K / (K - 1).


def _root(share: Array) -> Array:
    # The floor first: the root's derivative at 0 is infinite.
    return jnp.sqrt(jnp.maximum(share, jnp.asarray(1e-4, share.dtype)))


def gaussian_scale(t: ArrayLike, schedule: Schedule) -> Array:
    """The scale `sqrt(sigma^2 / (alpha^2 + sigma^2))` to divide a squared error of vectors by, of t's shape.

    Source: Diffusions.jl's scaler `sqrt(1 - exp(-t reversion))`, which is this at alpha^2 = exp(-t reversion).

    Example:
      >>> print(gaussian_scale(1.0, schedules.rectified()))
      1.0
    """
    alpha, sigma = schedule(t)
    return jnp.maximum(sigma * jax.lax.rsqrt(alpha * alpha + sigma * sigma), 0.01)


def angle_scale(t: ArrayLike, schedule: Schedule) -> Array:
    """The scale `2 sqrt(1 - exp(-sigma^2 / 8))` to divide a `wrapped` error by, of t's shape.

    Example:
      >>> print(angle_scale(1.0, schedules.ve(0.01, 100.0)))
      2.0
    """
    _, sigma = schedule(t)
    return _root(-4 * jnp.expm1(-sigma * sigma / 8))


def rotation_scale(t: ArrayLike, schedule: Schedule) -> Array:
    """The scale `sqrt(1 - exp(-5/4 sigma^2))` to divide a `rotation_error` by, of t's shape.

    Source: Diffusions.jl's scaler `sqrt(1 - exp(-5 T))`; its variance T is that of half the angle, our sigma^2 / 4.

    Example:
      >>> print(rotation_scale(1.0, schedules.ve(0.01, 100.0)))
      1.0
    """
    _, sigma = schedule(t)
    return _root(-jnp.expm1(-1.25 * sigma * sigma))


def symbol_scale(t: ArrayLike, schedule: Schedule) -> Array:
    """The scale `sqrt(1 - alpha)` to divide a `cross_entropy` by, alpha the probability of no jump, of t's shape.

    Example:
      >>> print(symbol_scale(0.25, schedules.rectified()))
      0.5
    """
    alpha, _ = schedule(t)
    return _root(1 - alpha)


# ------------------------------------------------------------------------------------------------------ weightings


def _logsnr(t: ArrayLike, schedule: Schedule) -> Array:
    # Clipped at +-60 nats, far outside any use, so that every weight is finite where alpha or sigma is 0.
    return jnp.clip(schedules.logsnr(t, schedule=schedule), -60.0, 60.0)


def snr(t: ArrayLike, schedule: Schedule) -> Array:
    """Weight 1 on the noise, which is SNR on x_0: the "simple" loss of DDPM for any prediction.

    Source: Ho et al. 2020, arXiv:2006.11239, eq. 14.

    Example:
      >>> print(snr(0.25, schedules.rectified()))
      1.0
    """
    return jnp.ones_like(schedule(t)[0])


def truncated_snr(t: ArrayLike, schedule: Schedule) -> Array:
    """The weight max(SNR, 1) on x_0, so max(1, 1/SNR) on the noise: pure noise still teaches.

    Source: Salimans and Ho 2022, arXiv:2202.00512, sec. 4.

    Example:
      >>> print(truncated_snr(0.75, schedules.rectified()))
      9.0
    """
    return jnp.exp(jnp.maximum(-_logsnr(t, schedule), 0.0))


def min_snr(gamma: float = 5.0) -> Weighting:
    """The weight min(SNR, gamma) on x_0, so min(1, gamma/SNR) on the noise: nearly clean data do not dominate.

    Source: Hang et al. 2023, arXiv:2303.09556, eq. 9.

    Example:
      >>> print(round(float(min_snr(5.0)(0.25, schedules.rectified())), 4))
      0.5556
    """

    def weighting(t, schedule):
        return jnp.minimum(gamma * jnp.exp(-_logsnr(t, schedule)), 1.0)

    return weighting


def sigmoid(bias: float = -1.0) -> Weighting:
    """The weight sigmoid(bias - logsnr) on the noise, monotone in time, so that it is a bound on augmented data.

    Source: Kingma and Gao 2023, arXiv:2303.00848, sec. 4 (k = bias); Hoogeboom et al. 2024, arXiv:2410.19324.

    Example:
      >>> print(sigmoid(0.0)(0.5, schedules.rectified()))
      0.5
    """

    def weighting(t, schedule):
        return jax.nn.sigmoid(bias - _logsnr(t, schedule))

    return weighting


def edm(sigma_data: float = 0.5) -> Weighting:
    """EDM's weight, (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 on x_0: 1 on the preconditioned network's own output.

    With `e = sigma / alpha`, that is `(e^2 + sigma_data^2) / sigma_data^2` on the noise.

    Source: Karras et al. 2022, arXiv:2206.00364, table 1.

    Example:
      >>> print(edm(0.5)(0.5, schedules.rectified()))
      5.0
    """

    def weighting(t, schedule):
        return jnp.exp(-_logsnr(t, schedule)) / sigma_data**2 + 1

    return weighting


def likelihood(t: ArrayLike, schedule: Schedule) -> Array:
    """The weight `-logsnr'(t) / 2` on the noise, for t ~ U[0, 1]: the continuous-time bound, in nats once summed over the event.

    For times drawn otherwise divide by their density.

    Source: Kingma et al. 2021, arXiv:2107.00630, eq. 17; Song et al. 2021, arXiv:2101.09258, theorem 1.

    Example:
      >>> print(likelihood(0.5, schedules.rectified()))
      4.0
    """
    return -0.5 * schedules.dlogsnr(t, schedule=schedule)
