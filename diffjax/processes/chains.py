"""What any chain on K symbols needs.

A chain is known by its transition probabilities P_st[i, j] = q(x_t = j | x_s = i). With a row of P_0s and a column of P_st

    q(x_s | x_0, x_t) = P_0s[x_0, x_s] P_st[x_s, x_t] / P_0t[x_0, x_t],

and with x_0 summed out over a guess p, `q(x_0) = p(x_0) / P_0t[x_0, x_t]` pushed forward to s and multiplied by the column. `process` writes
this down once; `step_matrices.markov` and `rates.process` bring the rows and columns. Jump processes have a shorter way:
`diffjax.processes.discrete`.

Source: Austin et al. 2021 (D3PM), arXiv:2107.03006, eq. 1-3.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpy.typing import ArrayLike as Table

from diffjax import numerics
from diffjax.processes.base import Process

# ---------------------------------------------------------------------------------------------------- at the door


def check_symbols(symbols: int, **arrays: Array | jax.ShapeDtypeStruct) -> None:
    """Raises unless the arrays hold integers of a dtype that can count to `symbols - 1`. Values are not looked at.

    Example:
      >>> check_symbols(300, x0=jnp.zeros(2, jnp.int8))
      Traceback (most recent call last):
      ...
      ValueError: 300 symbols need a dtype that holds 299, got x0.dtype=dtype('int8')
    """
    for name, x in arrays.items():
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise TypeError(f"symbols are integers (not one-hot, not probabilities), got {name}.dtype={x.dtype!r}")
        if jnp.iinfo(x.dtype).max < symbols - 1:
            raise ValueError(f"{symbols} symbols need a dtype that holds {symbols - 1}, got {name}.dtype={x.dtype!r}")


def check_pair(symbols: int, x0: Array, xt: Array) -> Array:
    """`x0` in xt's dtype, both checked: a guess is often int32 where the data are int8.

    Example:
      >>> print(check_pair(3, jnp.array([1]), jnp.array([2], jnp.int8)).dtype)
      int8
    """
    numerics.check_same(x0=x0, xt=xt)
    check_symbols(symbols, x0=x0, xt=xt)
    return x0.astype(xt.dtype)


def check_logits(logits: Array, x: Array, symbols: int) -> None:
    """Raises a `ValueError` unless the logits are `[*x.shape, symbols]`.

    Example:
      >>> check_logits(jnp.zeros((2, 3)), jnp.zeros(2, int), 4)
      Traceback (most recent call last):
      ...
      ValueError: expected logits of shape [*xt.shape, symbols] = (2, 4), got logits_x0.shape=(2, 3)
    """
    if tuple(logits.shape) != (*x.shape, symbols):
        raise ValueError(
            f"expected logits of shape [*xt.shape, symbols] = {(*x.shape, symbols)}, got logits_x0.shape={logits.shape}"
        )


# ---------------------------------------------------------------------------------------------------------- pieces


def safe_log(p: Array) -> Array:
    """`log p`, -inf where p = 0 (or below, by rounding), with derivative 0 there.

    Example:
      >>> print(safe_log(jnp.array([0.0, 1.0])), jax.grad(safe_log)(0.0))
      [-inf   0.] 0.0
    """
    positive = p > 0
    return jnp.where(positive, jnp.log(jnp.where(positive, p, jnp.ones_like(p))), jnp.full_like(p, -jnp.inf))


def _or_one(x: Array) -> Array:
    return jnp.where(x > 0, x, jnp.ones_like(x))


def log_sum(a: Array, b: Array) -> Array:
    """`log(exp a + exp b)` elementwise; where both are -inf, -inf with derivative 0 (that of `jnp.logaddexp` is NaN there).

    Example:
      >>> print(log_sum(jnp.array(-jnp.inf), jnp.array(0.0)))
      0.0
    """
    top = jax.lax.stop_gradient(jnp.maximum(a, b))
    top = jnp.where(jnp.isfinite(top), top, jnp.zeros_like(top))
    return top + safe_log(jnp.exp(a - top) + jnp.exp(b - top))


def log_meeting(p: Array, q: Array) -> Array:
    """`log(p q)` up to a constant in each row, of p's shape `[*shape, K]`; -inf where either is 0.

    The product relative to its largest entry keeps float32's digits, which the sum of two large logs would lose; logs serve where the
    product would underflow.

    Example:
      >>> low, high = log_meeting(jnp.array([1e-30, 1e-30]), jnp.array([1e-30, 2e-30]))
      >>> print(round(float(high - low), 3))  # log 2, of products that float32 cannot hold
      0.693
    """
    both = p * q
    top = jax.lax.stop_gradient(jnp.max(both, axis=-1, keepdims=True))
    top = jnp.where(top > 1e-30, top, jnp.ones_like(top))
    return jnp.where(both > 1e-30, safe_log(both / top), safe_log(p) + safe_log(q) - jnp.log(top))


def product(v: Array, matrix: Array) -> Array:
    """Row vectors times matrices, `v M`: one matrix for all, or one for each leading index.

    Args:
      v: `[*batch, *event, K]`.
      matrix: `[*batch, K, K]`; axes of size one serve all.

    Returns:
      `[*batch, *event, K]`, in full float32 also where the device would rather round to fewer bits.

    Example:
      >>> product(jnp.ones((2, 5, 7, 3)), jnp.ones((2, 3, 3))).shape
      (2, 5, 7, 3)
    """
    lead = matrix.ndim - 2
    flat = v.reshape(v.shape[:lead] + (-1, v.shape[-1]))
    return jnp.matmul(flat, matrix.astype(v.dtype), precision=jax.lax.Precision.HIGHEST).reshape(v.shape)


def categorical(key: Array, weights: Array, otherwise: Array) -> Array:
    """A draw from each row of weights by inverse CDF; a symbol of weight 0 is never drawn.

    Args:
      key: one key, or an array of keys `[*batch]`.
      weights: `[*shape, K]`, >= 0, of any sum.
      otherwise: `[*shape]`, returned where all weights are 0.

    Returns:
      `[*shape]` of otherwise's dtype.

    Example:
      >>> print(categorical(jax.random.key(0), jnp.array([[0.0, 2.0], [0.0, 0.0]]), jnp.array([5, 5])))
      [1 5]
    """
    summed = jnp.cumsum(weights, axis=-1)
    goal = numerics.uniform(key, weights.shape[:-1], weights.dtype) * summed[..., -1]
    past = (summed > goal[..., None]) & (weights > 0)
    # Rounding may leave the goal beyond every partial sum.
    drawn = jnp.where(jnp.any(past, axis=-1), jnp.argmax(past, axis=-1), jnp.argmax(weights, axis=-1))
    return jnp.where(summed[..., -1] > 0, drawn.astype(otherwise.dtype), otherwise)


def process(
    *,
    row: Callable[[Array, ArrayLike], Array],
    reach: Callable[[Array, ArrayLike], Array],
    column: Callable[[Array, ArrayLike, ArrayLike], Array],
    push: Callable[[Array, ArrayLike], Array],
    prior: Table,
) -> Process:
    """The process of a chain on K symbols, given its transition probabilities P.

    Args:
      row: `(x0, t) -> [*x0.shape, K]`, P_0t[x0, :].
      reach: `(xt, t) -> [*xt.shape, K]`, P_0t[:, xt].
      column: `(xt, s, t) -> [*xt.shape, K]`, P_st[:, xt].
      push: `(weights [*shape, K], s) -> [*shape, K]`, weights P_0s.
      prior: `[K]`, the law of x_1.

    Returns:
      a `Process`, all capabilities but `score`. Where the ends cannot be joined, bridges keep x_t.

    Example:
      >>> flip = jnp.array([[0.9, 0.1], [0.1, 0.9]])
      >>> p = process(
      ...     row=lambda x0, t: flip[x0],
      ...     reach=lambda xt, t: flip[xt],
      ...     column=lambda xt, s, t: jnp.eye(2)[xt],
      ...     push=lambda w, s: product(w, flip),
      ...     prior=[0.5, 0.5],
      ... )
      >>> print(p.log_prob(jnp.array([0]), jnp.array([1]), 0.5).round(4))
      -2.3026
    """
    law = np.asarray(prior, np.float64)
    symbols = len(law)

    def draw_prior(key, like):
        check_symbols(symbols, like=like)
        # Behind the barrier XLA does not work a large constant out while compiling.
        weights = jnp.broadcast_to(jax.lax.optimization_barrier(jnp.asarray(law)), (*like.shape, symbols))
        return categorical(key, weights, jnp.zeros(like.shape, like.dtype))

    def corrupt(key, x0, t):
        check_symbols(symbols, x0=x0)
        return categorical(key, row(x0, t), x0)

    def bridge(key, x0, xt, s, t):
        x0 = check_pair(symbols, x0, xt)
        log_weights = log_meeting(row(x0, s), column(xt, s, t))
        top = jnp.max(log_weights, axis=-1, keepdims=True)
        return categorical(key, jnp.exp(log_weights - jnp.where(jnp.isfinite(top), top, jnp.zeros_like(top))), xt)

    def log_prob(x0, xt, t):
        x0 = check_pair(symbols, x0, xt)
        each = jnp.take_along_axis(row(x0, t), xt[..., None].astype(jnp.int32), axis=-1)[..., 0]
        return numerics.sum_event(safe_log(each), t)

    def posterior_logits(logits_x0, xt, s, t):
        check_logits(logits_x0, xt, symbols)
        check_symbols(symbols, xt=xt)
        guess, ways, last = numerics.upcast(logits_x0, reach(xt, t), column(xt, s, t))
        guess = jax.nn.log_softmax(guess)
        some = ways > 0
        log_q = jnp.where(some, guess - safe_log(_or_one(ways)), -jnp.inf)
        top = jnp.max(jax.lax.stop_gradient(log_q), axis=-1, keepdims=True)
        q = jnp.exp(log_q - jnp.where(jnp.isfinite(top), top, jnp.zeros_like(top)))
        joined = log_meeting(push(q, s), last)
        # Guesses that cannot lead to x_t count for x_t itself.
        led = jnp.sum(jnp.where(some, jnp.exp(guess), jnp.zeros_like(guess)), axis=-1, keepdims=True)
        stray = jnp.sum(jnp.where(some, jnp.zeros_like(guess), jnp.exp(guess)), axis=-1, keepdims=True)
        possible = jnp.any(jnp.isfinite(joined), axis=-1, keepdims=True)
        joined = jax.nn.log_softmax(jnp.where(possible, joined, jnp.zeros_like(joined))) + safe_log(led)
        here = jnp.arange(symbols, dtype=xt.dtype).reshape((1,) * xt.ndim + (symbols,)) == xt[..., None]
        kept = jnp.where(here, safe_log(stray), -jnp.inf)
        certain = jnp.where(here, jnp.zeros_like(joined), -jnp.inf)
        return jnp.where(possible, log_sum(joined, kept), certain).astype(logits_x0.dtype)

    return Process(
        prior=draw_prior, corrupt=corrupt, bridge=bridge, log_prob=log_prob, posterior_logits=posterior_logits
    )
