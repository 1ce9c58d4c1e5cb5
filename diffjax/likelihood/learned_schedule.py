"""A schedule with parameters: a monotone network for the log-SNR, and the gradient that teaches it to lower the loss's variance.

Between given ends the log-SNR may fall along any curve; the continuous-time bound does not change, only the variance of its estimate
from random times does. So the curve, unlike the model, is trained on the variance:

    -logsnr(t) = low + (high - low) (n(t) - n(0)) / (n(1) - n(0)),    n(t) = l_1 + l_3(sigmoid(l_2(l_1))),    l_i affine with positive weights.

`init` makes parameters, `schedule` makes a schedule of them: build it inside the loss. `variance_minimising` joins the two objectives in one loss.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from diffjax import numerics
from diffjax.schedules import Schedule


def init(key: Array, *, features: int = 1024) -> dict[str, Array]:
    """Random parameters of the curve: a pytree of arrays, to be trained beside the model's.

    Args:
      key: one key.
      features: width of the monotone layer.

    Source: Kingma et al. 2021, arXiv:2107.00630, app. H.

    Example:
      >>> sorted(init(jax.random.key(0), features=8))
      ['inner_bias', 'inner_weight', 'outer_weight', 'slope']
    """
    if features < 1:
        raise ValueError(f"expected at least one feature, got {features=}")
    key_weight, key_bias = numerics.split(numerics.as_keys(key))
    # Sigmoids of either side of the unit interval and slopes of about 1 to 10: the curve starts as a gentle bend.
    return {
        "slope": jnp.zeros(()),
        "inner_weight": jax.random.normal(key_weight, (features,)) + 1.0,
        "inner_bias": 4.0 * jax.random.normal(key_bias, (features,)),
        "outer_weight": jnp.zeros((features,)),
    }


def schedule(params: dict[str, Array], *, low: float | Array, high: float | Array) -> Schedule:
    """The variance-preserving schedule whose log-SNR falls from `high` at t = 0 to `low` at t = 1 along the learned curve.

    Args:
      params: from `init`; any values give a decreasing log-SNR.
      low: log-SNR at t = 1, such as -5; may be learned too, by the bound itself.
      high: log-SNR at t = 0, such as 13.3.

    Returns:
      `t -> (alpha, sigma)`, for all uses of a schedule. alpha^2 = sigmoid(logsnr) and sigma^2 = sigmoid(-logsnr), each without cancellation.

    Raises:
      ValueError: low is not below high.

    Source: Kingma et al. 2021, arXiv:2107.00630, app. H.

    Example:
      >>> from diffjax import schedules
      >>> learned = schedule(init(jax.random.key(0), features=8), low=-5.0, high=13.0)
      >>> print(f"{schedules.logsnr(0.0, schedule=learned):.3f} {schedules.logsnr(1.0, schedule=learned):.3f}")
      13.000 -5.000
    """
    if isinstance(low, (int, float)) and isinstance(high, (int, float)) and not low < high:
        raise ValueError(f"expected low < high, the log-SNR of noise below that of data, got {low=}, {high=}")

    def curve(t):
        weight, outer = jax.nn.softplus(params["inner_weight"]), jax.nn.softplus(params["outer_weight"])
        lead = (1,) * t.ndim + (-1,)
        hidden = jax.nn.sigmoid(weight.reshape(lead) * 4 * t[..., None] + params["inner_bias"].reshape(lead))
        return jax.nn.softplus(params["slope"]) * t + jnp.mean(outer.reshape(lead) * hidden, axis=-1)

    def learned(t):
        numerics.check_time(t)
        (t,) = numerics.upcast(t)
        start, end = curve(jnp.zeros(())), curve(jnp.ones(()))
        # In both weights, so that the ends are exact.
        share = (curve(t) - start) / (end - start)
        value = high * (1 - share) + low * share
        return jnp.exp(0.5 * jax.nn.log_sigmoid(value)), jnp.exp(0.5 * jax.nn.log_sigmoid(-value))

    return learned


def variance_minimising(loss: Callable[[Any, Any], Array], params: Any, schedule_params: Any) -> Array:
    """The losses `loss(params, schedule_params)` `[*batch]`, whose gradient in the model's parameters is the losses' own and in the
    schedule's is that of their squares.

    Since the mean does not depend on the curve, the mean square is the variance plus a constant. It costs a second pass of the model.

    Args:
      loss: `(params, schedule_params) -> [*batch]`, such as `likelihood.continuous(...).diffusion`, the same draws in both passes.
      params: the model's parameters.
      schedule_params: from `init`.

    Source: Kingma et al. 2021, arXiv:2107.00630, app. I.2 (which saves the second pass by the chain rule).

    Example:
      >>> loss = lambda a, b: a * b * jnp.ones(1)
      >>> print(*jax.grad(lambda a, b: variance_minimising(loss, a, b).sum(), argnums=(0, 1))(2.0, 3.0))
      3.0 24.0
    """
    fixed = jax.lax.stop_gradient
    values = loss(params, fixed(schedule_params))
    squares = loss(fixed(params), schedule_params) ** 2
    return values + (squares - fixed(squares))
