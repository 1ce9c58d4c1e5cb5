"""What a network is taught with: per-example losses, of the shape of `t`.

`regression` is denoising score matching in all its dresses. With `x_t = alpha x_0 + sigma eps` the network predicts a mixture
`y = a x_0 + b eps` (`diffjax.processes.predictions`), and

    loss(t) = w(t) mean_event error(y_hat(x_t, t) - y).

Without a weighting, w = 1 in the space of the prediction itself (the "simple" loss). A weighting is defined once, for the noise, and
carried into any other space by the exact factor between the errors, `|eps - eps_hat|^2 = (alpha / D_y)^2 |y - y_hat|^2`,
D_y = alpha b - sigma a: so min-SNR is the same objective whatever the network predicts.

Everything is computed in float32 whatever the network's type, and a `where` mask leaves entries out of the mean.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from diffjax import numerics, schedules
from diffjax.numerics import expand_right
from diffjax.processes import gaussian, predictions
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
    return _mean_event(error(hat - target), t, where)


def _mean_event(values: Array, t: ArrayLike, where: ArrayLike | None) -> Array:
    if where is None:
        return jnp.mean(values, axis=tuple(range(jnp.ndim(t), values.ndim)))
    kept = jnp.broadcast_to(expand_right(jnp.asarray(where, bool), values), values.shape)
    total = numerics.sum_event(jnp.where(kept, values, jnp.zeros_like(values)), t)
    return total / jnp.maximum(numerics.sum_event(kept.astype(values.dtype), t), jnp.ones((), values.dtype))


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
