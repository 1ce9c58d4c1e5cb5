"""Functions from a predictor to a predictor, applied before sampling.

`classifier_free` mixes a conditional and an unconditional prediction; `self_conditioned` is the training side of feeding a network its
own last guess.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from diffjax import numerics


def classifier_free(
    predict: Callable[[Array, Array, Any], Array], condition: Any, null: Any, weight: ArrayLike
) -> Callable[[Array, Array], Array]:
    """A predictor `(xt, t) -> (1 + w) predict(condition) - w predict(null)`, both in one batched call.

    Any prediction that is affine in the score may be mixed so: x0, eps, v, flow, score alike. With the Python number 0 the
    unconditional network is not called at all; a traced weight costs both, and never recompiles.

    Args:
      predict: `(xt, t, condition) -> [batch, *event]`, the batch on the first axis.
      condition: pytree of arrays `[batch, ...]`.
      null: pytree of the same structure, the condition that means none; arrays `[batch, ...]` or scalars.
      weight: scalar or `[batch]`, the guidance scale w; 0 is the plain conditional model, -1 the unconditional one.

    Returns:
      `(xt, t) -> [batch, *event]`; t scalar or `[batch]`.

    Source: Ho and Salimans 2022, arXiv:2207.12598, eq. 6.

    Example:
      >>> predict = lambda x, t, label: x * label[:, None].astype(x.dtype)
      >>> guided = classifier_free(predict, condition=jnp.array([1, 2]), null=0, weight=1.0)
      >>> print(guided(jnp.ones((2, 1)), 0.5)[:, 0])
      [2. 4.]
    """
    if isinstance(weight, (int, float)) and weight == 0:
        return lambda xt, t: predict(xt, t, condition)

    def guided(xt, t):
        nulls = jax.tree.map(lambda n, c: jnp.broadcast_to(jnp.asarray(n, c.dtype), c.shape), null, condition)
        both = jax.tree.map(lambda c, n: jnp.concatenate([c, n]), condition, nulls)
        times = jnp.concatenate([t, t]) if jnp.ndim(t) else t
        with_condition, without = jnp.split(predict(jnp.concatenate([xt, xt]), times, both), 2)
        a, b, w = numerics.upcast(with_condition, without, weight)
        return (a + numerics.expand_right(w, a) * (a - b)).astype(with_condition.dtype)

    return guided


def self_conditioned(
    key: Array, predict: Callable[[Any, Array, Any], Any], xt: Any, t: Array, *, rate: float = 0.5
) -> Any:
    """A prediction made from the network's own first estimate for a share `rate` of examples, from zeros for the rest.

    The first estimate is made with zeros and carries no gradient; the second pass is what the loss sees. The bridge sampler with
    `self_condition=True` is the other half.

    Args:
      key: one key, or an array of keys `[batch]`.
      predict: `(xt, t, x0_prev) -> x0_hat`, of xt's structure.
      xt: `[batch, *event]` or a tree of such arrays.
      t: `[batch]`.
      rate: share of examples that see the estimate, in [0, 1].

    Returns:
      `x0_hat`, of xt's structure.

    Source: Chen et al. 2023, arXiv:2208.04202, sec. 3.2 and algorithm 1.

    Example:
      >>> predict = lambda x, t, x0_prev: x + x0_prev
      >>> print(self_conditioned(jax.random.key(0), predict, jnp.ones((2, 1)), jnp.zeros(2), rate=1.0)[:, 0])
      [2. 2.]
    """
    zeros = jax.tree.map(jnp.zeros_like, xt)
    first = jax.lax.stop_gradient(predict(xt, t, zeros))
    seen = numerics.uniform(key, jnp.shape(t)) < rate
    previous = jax.tree.map(lambda a, z: jnp.where(numerics.expand_right(seen, a), a, z), first, zeros)
    return predict(xt, t, previous)
