"""Guidance by two predictions or by a likelihood.

A score that is pushed away from a worse one, `s + w (s - s_worse)`, belongs to `p (p / p_worse)^w` at each noise level: more of what sets the good
model apart. The worse model is the unconditional one (`classifier_free`) or a weak one (`autoguidance`); where p / p_worse is known as a
likelihood, its gradient is added (`classifier`). Any prediction affine in the score may be mixed so: x0, eps, v, flow and score alike.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from diffjax import numerics
from diffjax.numerics import expand_right
from diffjax.processes import predictions
from diffjax.processes.predictions import Kind
from diffjax.schedules import Schedule

Predictor = Callable[[Array, Array], Array]
"""`(xt, t) -> [batch, *event]`, a prediction of any kind."""

Combine = Callable[[Array, Array, Array], Array]
"""`(good, worse, weight) -> prediction`, in float32: `extrapolate` or `rescaled(...)`."""

# ---------------------------------------------------------------------------------------------------- how to combine


def extrapolate(good: Array, worse: Array, weight: Array) -> Array:
    """`good + w (good - worse)`, weight scalar or `[batch]`.

    Example:
      >>> print(extrapolate(jnp.array([2.0]), jnp.array([1.5]), jnp.array(2.0)))
      [3.]
    """
    return good + expand_right(weight, good) * (good - worse)


def rescaled(share: float = 0.7) -> Combine:
    """A way to combine that takes the extrapolation back to the good prediction's own standard deviation, by a share.

    Large weights raise the contrast of images; with `g = extrapolate(...)` this gives `g (share std(good)/std(g) + 1 - share)`, the standard
    deviations over each example.

    Args:
      share: the paper's phi, in [0, 1]; 0 is `extrapolate`.

    Source: Lin et al. 2024, arXiv:2305.08891, eq. 14-16.

    Example:
      >>> good, worse = jnp.array([[1.0, -1.0]]), jnp.array([[0.0, 0.0]])
      >>> print(rescaled(1.0)(good, worse, jnp.array(3.0)))
      [[ 1. -1.]]
    """

    def combine(good, worse, weight):
        guided = extrapolate(good, worse, weight)
        spread = lambda x: numerics.safe_sqrt(jnp.var(x, axis=tuple(range(1, x.ndim)), keepdims=True))
        return guided * (share * numerics.safe_divide(spread(good), spread(guided)) + (1 - share))

    return combine


def _combined(combine: Combine, good: Array, worse: Array, weight: ArrayLike) -> Array:
    a, b, w = numerics.upcast(good, worse, weight)
    return combine(a, b, w).astype(good.dtype)


def _nothing(weight: ArrayLike) -> bool:
    return isinstance(weight, (int, float)) and weight == 0


# -------------------------------------------------------------------------------------------------- two predictions


def classifier_free(
    predict: Callable[[Array, Array, Any], Array],
    condition: Any,
    null: Any,
    weight: ArrayLike,
    *,
    combine: Combine = extrapolate,
) -> Predictor:
    """A predictor `(xt, t) -> (1 + w) predict(condition) - w predict(null)`, both in one batched call.

    Any prediction that is affine in the score may be mixed so: x0, eps, v, flow, score alike. With the Python number 0 the
    unconditional network is not called at all; a traced weight costs both, and never recompiles.

    Args:
      predict: `(xt, t, condition) -> [batch, *event]`, the batch on the first axis.
      condition: pytree of arrays `[batch, ...]`.
      null: pytree of the same structure, the condition that means none; arrays `[batch, ...]` or scalars.
      weight: scalar or `[batch]`, the guidance scale w; 0 is the plain conditional model, -1 the unconditional one.
      combine: `extrapolate`, or `rescaled(share)`.

    Returns:
      `(xt, t) -> [batch, *event]`; t scalar or `[batch]`.

    Source: Ho and Salimans 2022, arXiv:2207.12598, eq. 6.

    Example:
      >>> predict = lambda x, t, label: x * label[:, None].astype(x.dtype)
      >>> guided = classifier_free(predict, condition=jnp.array([1, 2]), null=0, weight=1.0)
      >>> print(guided(jnp.ones((2, 1)), 0.5)[:, 0])
      [2. 4.]
    """
    if _nothing(weight):
        return lambda xt, t: predict(xt, t, condition)

    def guided(xt, t):
        nulls = jax.tree.map(lambda n, c: jnp.broadcast_to(jnp.asarray(n, c.dtype), c.shape), null, condition)
        both = jax.tree.map(lambda c, n: jnp.concatenate([c, n]), condition, nulls)
        times = jnp.concatenate([t, t]) if jnp.ndim(t) else t
        good, worse = jnp.split(predict(jnp.concatenate([xt, xt]), times, both), 2)
        return _combined(combine, good, worse, weight)

    return guided


def autoguidance(
    predict: Predictor, weak: Predictor, weight: ArrayLike, *, combine: Combine = extrapolate
) -> Predictor:
    """A predictor `(xt, t) -> (1 + w) predict - w weak`, led away from the mistakes of a smaller or less trained model of the same data.

    Args:
      predict: `(xt, t) -> [batch, *event]`.
      weak: a worse predictor of the same kind, with the same condition.
      weight: scalar or `[batch]`; the paper's w is 1 more. With the Python number 0 `weak` is not called.
      combine: `extrapolate`, or `rescaled(share)`.

    Source: Karras et al. 2024, arXiv:2406.02507.

    Example:
      >>> guided = autoguidance(lambda x, t: x, lambda x, t: 0.5 * x, 1.0)
      >>> print(guided(jnp.ones((1, 2)), 0.5))
      [[1.5 1.5]]
    """
    if _nothing(weight):
        return predict
    return lambda xt, t: _combined(combine, predict(xt, t), weak(xt, t), weight)


def interval(guided: Predictor, plain: Predictor, *, low: ArrayLike, high: ArrayLike) -> Predictor:
    """A predictor that is `guided` for times in (low, high] and `plain` elsewhere: guidance is harmful at high noise, and idle at low.

    With one time for all only the one that is asked for is called; with times `[batch]` both are.

    Args:
      guided: `(xt, t) -> [batch, *event]`.
      plain: likewise, and of the same kind.
      low: time, in [0, 1]. For a noise level: `schedules.time_of_logsnr(-2 log(sigma / alpha), schedule=...)`.
      high: time, in [0, 1].

    Source: Kynkaanniemi et al. 2024, arXiv:2404.07724.

    Example:
      >>> predict = interval(lambda x, t: 2 * x, lambda x, t: x, low=0.2, high=0.6)
      >>> print(*(predict(jnp.array([1.0]), t)[0] for t in (0.1, 0.5, 0.9)))
      1.0 2.0 1.0
    """
    numerics.check_time(low, high)

    def predict(xt, t):
        t = jnp.asarray(t)
        inside = (t > low) & (t <= high)
        if t.ndim == 0:
            return jax.lax.cond(inside, guided, plain, xt, t)
        inside = expand_right(inside, xt)
        return jnp.where(inside, guided(xt, t), plain(xt, t))

    return predict


# ------------------------------------------------------------------------------------------------------ a likelihood


def classifier(
    predict: Predictor,
    log_likelihood: Callable[[Array, Array], Array],
    weight: ArrayLike = 1.0,
    *,
    schedule: Schedule,
    kind: Kind = predictions.x0,
) -> Predictor:
    """A predictor whose score is `s(x_t) + w grad log p(y | x_t)`: Bayes' rule at every noise level, exact at w = 1.

    A prediction y = a x_0 + b eps moves by `-w (sigma / alpha)(alpha b - sigma a) grad`: by `-w sigma grad` for eps, by `w sigma^2/alpha grad`
    for x0. Where alpha = 0 nothing of the data is left to classify, and the prediction stays as it is.

    Args:
      predict: `(xt, t) -> [batch, *event]`.
      log_likelihood: `(xt, t) -> log p(y | x_t)`, `[batch]`, of noisy points; any differentiable function that treats examples apart.
      weight: scalar or `[batch]`. With the Python number 0 the likelihood is not called.
      schedule: `t -> (alpha, sigma)`.
      kind: what is predicted.

    Source: Dhariwal and Nichol 2021, arXiv:2105.05233, eq. 13-14; Song et al. 2021, arXiv:2011.13456, eq. 14.

    Example:
      Data N(0, 1), and an observation y = x_0 + noise that is all but exact: p(y | x_t) = N(y; alpha x_t, sigma^2).

      >>> from diffjax import schedules
      >>> schedule, y = schedules.cosine(), 2.0
      >>> log_p = lambda x, t: -0.5 * (y - schedule(t)[0] * x) ** 2 / schedule(t)[1] ** 2
      >>> guided = classifier(lambda x, t: schedule(t)[0] * x, log_p, schedule=schedule)
      >>> print(jnp.round(guided(jnp.array([0.3]), 0.5), 4))  # E[x_0 | x_t, y] = y
      [2.]
    """
    if _nothing(weight):
        return predict

    def guided(xt, t):
        prediction = predict(xt, t)
        gradient = jax.grad(lambda x: jnp.sum(log_likelihood(x, t)))(xt)
        alpha, sigma = schedule(t)
        a, b = kind(t, schedule)
        moved = numerics.safe_divide(sigma * (sigma * a - alpha * b), alpha)
        y, g, moved, w = numerics.upcast(prediction, gradient, moved, weight)
        return (y + expand_right(w, y) * expand_right(moved, y) * g).astype(prediction.dtype)

    return guided
