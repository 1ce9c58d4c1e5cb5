"""Changes of the estimate of x_0 itself: keeping it in the data's range, and feeding a network its own last guess."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from diffjax import numerics
from diffjax.numerics import expand_right

PredictX0 = Callable[[Array, Array], Array]
"""`(xt, t) -> x0_hat`, `[batch, *event]`; `predictions.to_x0` makes one of any other kind."""


def static_threshold(predict_x0: PredictX0, *, low: float = -1.0, high: float = 1.0) -> PredictX0:
    """A predictor of x_0 clipped to [low, high], the range of the data.

    Args:
      predict_x0: `(xt, t) -> x0_hat`.
      low: least value of the data.
      high: greatest value of the data.

    Raises:
      ValueError: low is not below high.

    Source: Ho et al. 2020, arXiv:2006.11239 (their code); Saharia et al. 2022, arXiv:2205.11487, sec. 2.3.

    Example:
      >>> print(static_threshold(lambda x, t: 3 * x)(jnp.array([[-1.0, 0.1]]), 0.5))
      [[-1.   0.3]]
    """
    if not low < high:
        raise ValueError(f"expected low < high, got {low=}, {high=}")
    return lambda xt, t: jnp.clip(predict_x0(xt, t), low, high)


def dynamic_threshold(predict_x0: PredictX0, *, percentile: float = 0.995, limit: float = 1.0) -> PredictX0:
    """A predictor of x_0 shrunk into [-limit, limit] by its own spread: `limit clip(x0, -s, s) / s`, s the percentile of |x0|, at least the limit.

    Where guidance pushes many values out of range, clipping saturates them; this pulls the others inwards instead.

    Args:
      predict_x0: `(xt, t) -> x0_hat`, the batch on the first axis: each example has its own s.
      percentile: share of the values that are not clipped, in (0, 1].
      limit: the data lie in [-limit, limit].

    Raises:
      ValueError: percentile outside (0, 1].

    Source: Saharia et al. 2022, arXiv:2205.11487, sec. 2.3 and app. A.

    Example:
      >>> predict = dynamic_threshold(lambda x, t: x, percentile=1.0)
      >>> print(predict(jnp.array([[2.0, 1.0], [0.5, 0.1]]), 0.5))
      [[1.  0.5]
       [0.5 0.1]]
    """
    if not 0 < percentile <= 1:
        raise ValueError(f"expected a percentile in (0, 1], got {percentile=}")

    def predict(xt, t):
        estimate = predict_x0(xt, t)
        (x0,) = numerics.upcast(estimate)
        s = jnp.quantile(jnp.abs(x0).reshape(x0.shape[0], -1), percentile, axis=1)
        s = expand_right(jnp.maximum(s, jnp.asarray(limit, s.dtype)), x0)
        return (limit * jnp.clip(x0, -s, s) / s).astype(estimate.dtype)

    return predict


def self_conditioned(
    key: Array,
    predict: Callable[[Any, Array, Any], Any],
    xt: Any,
    t: Array,
    *,
    guess: Callable[[Any], Any] = lambda prediction: prediction,
    rate: float = 0.5,
) -> Any:
    """A prediction made from the network's own first estimate for a share `rate` of examples, from zeros for the rest.

    The first estimate is made with zeros and carries no gradient; the second pass is what the loss sees. The bridge sampler with
    `self_condition=True` is the other half: it starts from zeros too (for symbols that is symbol 0) and hands on its guesses.

    Args:
      key: one key, or an array of keys `[batch]`.
      predict: `(xt, t, x0_prev) -> prediction`, x0_prev of xt's structure.
      xt: `[batch, *event]` or a tree of such arrays.
      t: `[batch]`.
      guess: `prediction -> x0_hat`, of xt's structure: what the sampler's guess makes of a prediction, such as `argmax` of a symbol's
        logits. By default the prediction is the guess.
      rate: share of examples that see the estimate, in [0, 1].

    Returns:
      the second prediction.

    Source: Chen et al. 2023, arXiv:2208.04202, sec. 3.2 and algorithm 1.

    Example:
      >>> predict = lambda x, t, x0_prev: x + x0_prev
      >>> print(self_conditioned(jax.random.key(0), predict, jnp.ones((2, 1)), jnp.zeros(2), rate=1.0)[:, 0])
      [2. 2.]

      Symbols: the network gives logits, and is shown its likeliest symbol.

      >>> predict = lambda x, t, x0_prev: 2 * jax.nn.one_hot(x, 3) + jax.nn.one_hot(x0_prev, 3)
      >>> argmax = lambda logits: jnp.argmax(logits, axis=-1)
      >>> print(self_conditioned(jax.random.key(0), predict, jnp.array([[1, 2]]), jnp.zeros(1), guess=argmax, rate=1.0))
      [[[0. 3. 0.]
        [0. 0. 3.]]]
    """
    zeros = jax.tree.map(jnp.zeros_like, xt)
    first = guess(jax.lax.stop_gradient(predict(xt, t, zeros)))
    seen = numerics.uniform(key, jnp.shape(t)) < rate
    previous = jax.tree.map(lambda a, z: jnp.where(expand_right(seen, z), a.astype(z.dtype), z), first, zeros)
    return predict(xt, t, previous)
