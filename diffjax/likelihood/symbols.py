"""Variational bounds for data of symbols, term by term in nats.

The bridge with x_0 summed out turns a network's guess into the model's step, and each step costs the KL between the bridge's law and the
model's: `step` at a given x_t, `discrete` for a whole chain (D3PM). With a mask symbol and infinitely many steps the bound is a weighted
cross-entropy of the masked sites: `masked`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from diffjax import numerics, schedules
from diffjax.likelihood.bounds import Bound
from diffjax.processes.base import Process, require
from diffjax.processes.survival import lost
from diffjax.schedules import Schedule


def kl(logits_q: Array, logits_p: Array) -> Array:
    """`KL(q || p)` in nats of laws on symbols given by their logits (-inf allowed in q), summed over the last axis.

    Example:
      >>> q, p = jnp.log(jnp.array([1.0, 0.0])), jnp.log(jnp.array([0.5, 0.5]))
      >>> print(jnp.round(kl(q, p), 4))
      0.6931
    """
    log_q, log_p = (jax.nn.log_softmax(v) for v in numerics.upcast(logits_q, logits_p))
    never = log_q == -jnp.inf
    # Both logs are set to 0 there before they meet, so that no -inf is subtracted from another.
    ratio = jnp.where(never, jnp.zeros_like(log_q), log_q) - jnp.where(never, jnp.zeros_like(log_p), log_p)
    return jnp.sum(jnp.exp(log_q) * ratio, axis=-1)


def step(logits_x0: Array, x0: Array, xt: Array, s: ArrayLike, t: ArrayLike, *, process: Process) -> Array:
    """The KL in nats between the bridge's law of x_s and the model's, at a given x_t, for each example: D3PM's L_{t-1}, and at s = 0 its L_0.

    Args:
      logits_x0: `[*batch, *event, K]`, the model's guess of x_0 from x_t.
      x0: `[*batch, *event]` of integers.
      xt: `[*batch, *event]` of integers, a draw of `process.corrupt`.
      s: `[*batch]` or scalar, s < t.
      t: `[*batch]` or scalar.
      process: with `posterior_logits`.

    Returns:
      t's shape, nats summed over the event. At s = 0 it is -log p(x_0 | x_t).

    Source: Austin et al. 2021, arXiv:2107.03006, eq. 1 and sec. 3.3.

    Example:
      >>> from diffjax import schedules
      >>> from diffjax.processes.discrete import absorbing
      >>> process = absorbing(schedules.rectified(), vocab=2)
      >>> fair = jnp.log(jnp.array([[0.5, 0.5, 0.0]]))
      >>> print(jnp.round(step(fair, jnp.array([0]), jnp.array([2]), 0.0, 1.0, process=process), 4))
      0.6931
    """
    posterior = require(process, "posterior_logits")
    hot = jnp.arange(logits_x0.shape[-1], dtype=x0.dtype).reshape((1,) * x0.ndim + (-1,)) == x0[..., None]
    certain = jnp.where(hot, 0.0, -jnp.inf).astype(logits_x0.dtype)
    return numerics.sum_event(kl(posterior(certain, xt, s, t), posterior(logits_x0, xt, s, t)), t)


def discrete(
    key: Array,
    predict_logits: Callable[[Array, Array], Array],
    x0: Array,
    times: Array,
    *,
    process: Process,
    log_prior: Array | None = None,
) -> Bound:
    """The bound of D3PM for each example, all steps of the grid summed, each with noise of its own; for any process on symbols.

    Args:
      key: one key, or an array of keys `[batch]`.
      predict_logits: `(xt, t) -> [batch, *event, K]`, the guess of x_0; called once a step.
      x0: `[batch, *event]` of integers.
      times: `[steps + 1]`, decreasing, to 0. The last step is the reconstruction.
      process: with `posterior_logits`.
      log_prior: `[K]`, the log-probabilities of the symbols that a sampler starts from; then the process needs `log_prob`. None if
        nothing is left of the data at `times[0]` (a schedule with alpha = 0 there), where the prior term is 0.

    Returns:
      a `Bound`, `[batch]` each.

    Source: Austin et al. 2021, arXiv:2107.03006, eq. 1.

    Example:
      Four fair coins, known to be fair: 4 log 2 = 2.7726 nats, spread over the steps as they are revealed.

      >>> from diffjax import schedules
      >>> from diffjax.processes.discrete import absorbing
      >>> process = absorbing(schedules.rectified(), vocab=2)
      >>> fair = lambda xt, t: jnp.log(jnp.broadcast_to(jnp.array([0.5, 0.5, 0.0]), (*xt.shape, 3)))
      >>> bound = discrete(jax.random.key(0), fair, jnp.zeros((2000, 4), int), schedules.times(3), process=process)
      >>> print(jnp.round(bound.total.mean(), 1))
      2.8
    """
    key = numerics.as_keys(key)
    lead = x0.shape[:1]

    def walk(_, row):
        i, t, s = row
        t, s = jnp.broadcast_to(t, lead), jnp.broadcast_to(s, lead)
        xt = process.corrupt(numerics.fold_in(key, i), x0, t)
        return None, step(predict_logits(xt, t), x0, xt, s, t, process=process)

    _, terms = jax.lax.scan(walk, None, (jnp.arange(len(times) - 1), times[:-1], times[1:]))
    prior = jnp.zeros_like(terms[0])
    if log_prior is not None:
        log_q = _log_marginals(process, x0, times[0], log_prior.shape[0])
        pi = jnp.broadcast_to(log_prior.reshape((1,) * x0.ndim + (-1,)), log_q.shape)
        prior = jnp.sum(kl(log_q, pi), axis=tuple(range(1, x0.ndim)))
    return Bound(terms[-1], jnp.sum(terms[:-1], axis=0), prior)


def _log_marginals(process: Process, x0: Array, t: Array, count: int) -> Array:
    # log q(x_t = k | x_0) for every k and every site, each site as an event of its own.
    every = jax.vmap(require(process, "log_prob"), in_axes=(0, 0, None))
    one = lambda k: every(x0.ravel(), jnp.full_like(x0, k).ravel(), t).reshape(x0.shape)
    return jnp.stack([one(k) for k in range(count)], axis=-1)


def masked(
    key: Array,
    predict_logits: Callable[[Array, Array], Array],
    x0: Array,
    u: Array,
    *,
    process: Process,
    schedule: Schedule,
    mask: int,
    path: Callable[[Array], Array] | None = None,
) -> Array:
    """The bound of absorbing diffusion with infinitely many steps for each example, from one time each, in nats.

        -log p(x_0) <= E_t[ -alpha'(t) / (1 - alpha(t)) sum over masked sites of -log p(x_0 | x_t) ],

    which is the limit of `discrete`, and the same for every schedule from alpha = 1 to alpha = 0.

    Args:
      key: one key, or an array of keys `[*batch]`.
      predict_logits: `(xt, t) -> [*batch, *event, K]`.
      x0: `[*batch, *event]` of integers.
      u: `[*batch]`, uniform draws; `schedules.stratified_draw` makes good ones.
      process: `discrete.absorbing(schedule, vocab=mask)`.
      schedule: the process's own, for its rate.
      mask: the symbol that stands for none.
      path: `u -> t`, increasing from 0 to 1; the identity by default.

    Returns:
      `[*batch]` nats.

    Source: Sahoo et al. 2024, arXiv:2406.07524, eq. 10; Shi et al. 2024, arXiv:2406.04329.

    Example:
      >>> from diffjax import schedules
      >>> from diffjax.processes.discrete import absorbing
      >>> schedule = schedules.rectified()
      >>> fair = lambda xt, t: jnp.log(jnp.broadcast_to(jnp.array([0.5, 0.5, 0.0]), (*xt.shape, 3)))
      >>> u = jnp.arange(0.5, 20_000) / 20_000
      >>> nats = masked(
      ...     jax.random.key(0), fair, jnp.zeros((20_000, 4), int), u, process=absorbing(schedule, vocab=2), schedule=schedule, mask=2
      ... )
      >>> print(jnp.round(nats.mean(), 1))  # 4 log 2 = 2.7726
      2.8
    """
    path = path or (lambda u: u)
    (u,) = numerics.upcast(u)
    t, slope = jax.jvp(path, (u,), (jnp.ones_like(u),))
    xt = process.corrupt(key, x0, t)
    log_p = jax.nn.log_softmax(numerics.upcast(predict_logits(xt, t))[0])
    chosen = jnp.take_along_axis(log_p, x0[..., None], axis=-1)[..., 0]
    hidden = xt == mask
    nats = numerics.sum_event(jnp.where(hidden, -chosen, jnp.zeros_like(chosen)), t)
    rate, _ = schedules.rates(t, schedule=schedule)
    return -slope * numerics.safe_divide(rate * nats, lost(0.0, t, schedule=schedule))
