"""Symbols that jump: data are integers, and noise replaces them.

In a *jump process* each symbol is kept with probability alpha(t), its survival, and is otherwise drawn afresh from a
stationary law pi:

    q(x_t | x_0) = alpha_t [x_t = x_0] + (1 - alpha_t) pi(x_t).

pi uniform gives multinomial diffusion, pi all on one extra symbol ("mask") gives absorbing diffusion, and any other pi will do. Let a be
the survival over [0, s] and b = alpha_t / alpha_s that over [s, t]. Bayes' rule gives the bridge as a mixture of three parts,

    x_s = x_0      with weight  a (1 - b) pi(x_t) + a b [x_0 = x_t],
    x_s = x_t      with weight  (1 - a) b pi(x_t),
    x_s ~ pi       with weight  (1 - a)(1 - b) pi(x_t),

so a draw costs the same for any number of symbols K, and no array with an axis of length K is ever made. `posterior_logits` is the bridge
with x_0 summed out over a network's guess, in O(K) instead of O(K^2).

Where the two ends cannot be joined (pi(x_t) = 0 and x_0 != x_t: an unmasked symbol and another guess) there is no law to draw from. All
bridges then keep x_t, which is what a sampler wants: what has been revealed stays.

Everything is made of what is *lost* of alpha, which keeps its digits near the data too (`diffjax.processes.survival`).

alpha is read as it is. Where the literature means a Gaussian's alpha-bar, such as the cosine of Nichol and Dhariwal, that is alpha squared:
`lambda t: (schedule(t)[0] ** 2, schedule(t)[1])`.

`uniform`, `absorbing` and `jump` make processes. `markov` takes D3PM step matrices, of which `uniform_steps`, `absorbing_steps`,
`gaussian_steps`, `banded_steps` and `neighbour_steps` make the well-known ones (all from `diffjax.processes.step_matrices`); a rate matrix
goes to `diffjax.processes.rates`.

Source: Austin et al. 2021 (D3PM), arXiv:2107.03006; Hoogeboom et al. 2021, arXiv:2102.05379; Felsenstein 1981 for the process with
any pi (F81). The three-part bridge and its sum over x_0 are derived here.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpy.typing import ArrayLike as Table

from diffjax import numerics
from diffjax.numerics import expand_right
from diffjax.processes import chains
from diffjax.processes.base import Process, require
from diffjax.processes.chains import safe_log as _log
from diffjax.processes.step_matrices import (
    absorbing_steps,
    banded_steps,
    gaussian_steps,
    markov,
    neighbour_rates,
    neighbour_steps,
    uniform_steps,
)
from diffjax.processes.survival import legs, lost, survival
from diffjax.schedules import Schedule

__all__ = [
    "absorbing",
    "absorbing_steps",
    "banded_steps",
    "gaussian_steps",
    "jump",
    "markov",
    "neighbour_rates",
    "neighbour_steps",
    "posterior_logits",
    "survival",
    "uniform",
    "uniform_steps",
]

_SMALL = 1e-30  # products of probabilities below it may leave float32

# ------------------------------------------------------------------------------------------------- x_0 marginalised


def posterior_logits(
    logits_x0: Array, xt: Array, s: ArrayLike, t: ArrayLike, *, schedule: Schedule, stationary: ArrayLike
) -> Array:
    """The bridge with x_0 summed out: `log sum_x0 p(x_0) q(x_s | x_0, x_t)` for all x_s, normalised.

    With q(x_0) = p(x_0) / q(x_t | x_0) every term is a product of something in x_0 and x_s and something in x_s alone, so

        p(x_s) = [a q(x_s) + (1 - a) pi(x_s) sum q] [b [x_s = x_t] + (1 - b) pi(x_t)],

    which is O(K) a site. (Putting the probabilities p in the place of a certain x_0 in the bridge's formula, as is often done, is
    another law: it is right only where p is certain.)

    Args:
      logits_x0: `[*batch, *event, K]`, a guess of x_0; need not be normalised, may hold -inf.
      xt: `[*batch, *event]` of integers in [0, K).
      s: `[*batch]` or scalar, s <= t.
      t: `[*batch]` or scalar.
      schedule: `t -> (alpha, sigma)`; alpha is the survival.
      stationary: `[K]`, the law pi of fresh symbols, summing to 1; may hold zeros.

    Returns:
      `[*batch, *event, K]`, log-probabilities in nats, of logits_x0's dtype. A guess that cannot lead to x_t counts for x_t itself.

    Raises:
      ValueError: shapes that do not fit.

    Source: Austin et al. 2021, arXiv:2107.03006, eq. 3-4, summed here in closed form.

    Example:
      Half masked, so a masked symbol (2) is revealed with probability 1/2 on the way to s = 0.25:

      >>> from diffjax import schedules
      >>> logits = jnp.log(jnp.array([[0.9, 0.1, 0.0]]))
      >>> out = posterior_logits(
      ...     logits, jnp.array([2]), 0.25, 0.5, schedule=schedules.rectified(), stationary=jnp.array([0.0, 0.0, 1.0])
      ... )
      >>> print(np.exp(out).round(3))
      [[0.45 0.05 0.5 ]]
    """
    symbols = np.shape(stationary)[-1] if np.ndim(stationary) == 1 else 0
    chains.check_logits(logits_x0, xt, symbols)
    guess, pi, *coefficients = numerics.upcast(logits_x0, stationary, *legs(s, t, schedule=schedule))
    for c in coefficients:
        numerics.check_batch(c, xt)
    a, lost_a, b, lost_b = (expand_right(c, guess) for c in coefficients)

    pi_t = pi[xt][..., None]
    here = jnp.arange(symbols, dtype=xt.dtype).reshape((1,) * xt.ndim + (symbols,)) == xt[..., None]
    pi = pi.reshape((1,) * xt.ndim + (symbols,))
    forgotten = lost_a + a * lost_b  # 1 - ab as a sum of positives
    elsewhere = forgotten * pi_t  # q(x_t | x_0) for x_0 != x_t

    # q(x_0), from `share = q(x_t | elsewhere) / q(x_t | x_t)`: from x_t itself there are more ways to x_t.
    share = numerics.safe_divide(elsewhere, a * b + elsewhere)
    guess = jax.nn.log_softmax(guess)
    q = jnp.exp(guess) * jnp.where(here, share, jnp.ones_like(share))
    total = jnp.sum(q, axis=-1, keepdims=True)
    log_q = guess + jnp.where(here, _log(share), jnp.zeros_like(share)) - _log(total)
    first = a * numerics.safe_divide(q, total) + lost_a * pi
    last, last_here = lost_b * pi_t, b + lost_b * pi_t
    joined = first * jnp.where(here, last_here, last)
    norm = jnp.sum(joined, axis=-1, keepdims=True)
    # Products keep the digits of what is likely, logs what float32 cannot hold.
    log_first = chains.log_sum(_log(a) + log_q, _log(lost_a) + _log(pi))
    far = log_first + jnp.where(here, _log(last_here), _log(last)) - _log(norm)
    out = jnp.where(joined > _SMALL, _log(numerics.safe_divide(joined, norm)), far)
    # x_t = x_0 for sure: x_s is there too, whatever the guess says.
    certain = jnp.where(here, jnp.zeros_like(out), jnp.full_like(out, -jnp.inf))
    return jnp.where(elsewhere > _SMALL, out, certain).astype(logits_x0.dtype)


# -------------------------------------------------------------------------------------------------- jump processes


def _bits(key: Array, shape: tuple[int, ...]) -> Array:
    """Uniform integers in [0, 2^31), of 16 and 15 bits: one float32 draw has 23, too coarse for thousands of symbols."""
    u = numerics.uniform(key, (*shape, 2))
    high, low = jnp.floor(u[..., 0] * 2**16), jnp.floor(u[..., 1] * 2**15)
    return high.astype(jnp.uint32) * jnp.uint32(2**15) + low.astype(jnp.uint32)


def _jump(
    schedule: Schedule,
    *,
    symbols: int,
    fresh: Callable[[Array, tuple[int, ...]], Array],
    mass: Callable[[Array, np.dtype], Array],
    stationary: np.ndarray,
) -> Process:
    """The jump process of pi given as a sampler `(key, shape) -> symbols`, a look-up `(x, dtype) -> pi(x)` and a vector."""

    def prior(key, like):
        chains.check_symbols(symbols, like=like)
        return fresh(key, tuple(like.shape)).astype(like.dtype)

    def corrupt(key, x0, t):
        chains.check_symbols(symbols, x0=x0)
        alpha = expand_right(survival(t, schedule=schedule), x0)
        key_keep, key_fresh = numerics.split(key)
        keep = numerics.uniform(key_keep, x0.shape, alpha.dtype) < alpha
        return jnp.where(keep, x0, fresh(key_fresh, x0.shape).astype(x0.dtype))

    def bridge(key, x0, xt, s, t):
        x0 = chains.check_pair(symbols, x0, xt)
        a, lost_a, b, lost_b = (expand_right(c, xt) for c in legs(s, t, schedule=schedule))
        pi_t = mass(xt, a.dtype)
        to_x0 = a * lost_b * pi_t + jnp.where(x0 == xt, a * b, jnp.zeros_like(pi_t))
        to_xt = lost_a * b * pi_t
        total = to_x0 + to_xt + lost_a * lost_b * pi_t
        key_part, key_fresh = numerics.split(key)
        goal = numerics.uniform(key_part, xt.shape, a.dtype) * total
        other = jnp.where(goal < to_x0 + to_xt, xt, fresh(key_fresh, xt.shape).astype(xt.dtype))
        return jnp.where(total > 0, jnp.where(goal < to_x0, x0, other), xt)

    def log_prob(x0, xt, t):
        x0 = chains.check_pair(symbols, x0, xt)
        alpha = expand_right(survival(t, schedule=schedule), xt)
        renewed = expand_right(lost(0.0, t, schedule=schedule), xt) * mass(xt, alpha.dtype)
        return numerics.sum_event(_log(renewed + jnp.where(x0 == xt, alpha, jnp.zeros_like(alpha))), t)

    def marginalised(logits_x0, xt, s, t):
        chains.check_symbols(symbols, xt=xt)
        return posterior_logits(logits_x0, xt, s, t, schedule=schedule, stationary=jnp.asarray(stationary))

    return Process(prior=prior, corrupt=corrupt, bridge=bridge, log_prob=log_prob, posterior_logits=marginalised)


def jump(schedule: Schedule, *, stationary: Table) -> Process:
    """The jump process with any stationary law: `q(x_t | x_0) = alpha_t [x_t = x_0] + (1 - alpha_t) pi(x_t)`.

    Args:
      schedule: `t -> (alpha, sigma)`; alpha is the survival, sigma is not used.
      stationary: `[K]` probabilities pi, known now (not traced), such as the frequencies of the symbols in the data. Zeros are allowed.

    Returns:
      a `Process` on integers in [0, K), of any shape and any integer dtype that holds K - 1; all capabilities but `score`. `prior` draws
      from pi. Fresh symbols are drawn with 31 bits by binary search: each probability is right to 2^-31.

    Raises:
      ValueError: pi is no probability vector. TypeError: data are no integers.

    Source: Felsenstein 1981; Austin et al. 2021, arXiv:2107.03006, app. A.

    Example:
      >>> from diffjax import schedules
      >>> p = jump(schedules.rectified(), stationary=jnp.array([0.5, 0.3, 0.2]))
      >>> x0 = jnp.array([2, 2, 2], jnp.int8)
      >>> print(jnp.exp(p.log_prob(x0, jnp.arange(3, dtype=jnp.int8), jnp.full(3, 0.5))).round(3))
      [0.25 0.15 0.6 ]
    """
    pi = np.asarray(stationary, np.float64)
    if pi.ndim != 1 or not (pi >= 0).all() or not abs(pi.sum() - 1) < 1e-4:
        raise ValueError(
            f"expected stationary probabilities [K] >= 0 that sum to 1, got shape {pi.shape} with sum {pi.sum():.6g}"
        )
    pi = pi / pi.sum()
    # Symbols are drawn by integers, exactly: float32's cumulative sums would lose the small ones.
    last = int(np.flatnonzero(pi)[-1])
    thresholds = np.round(np.cumsum(pi)[:last] * 2.0**31).astype(np.uint32)

    def fresh(key, shape):
        return jnp.searchsorted(jnp.asarray(thresholds), _bits(key, shape), side="right")

    return _jump(
        schedule,
        symbols=len(pi),
        fresh=fresh,
        mass=lambda x, dtype: jnp.asarray(pi, dtype)[x],
        stationary=pi,
    )


def uniform(schedule: Schedule, *, vocab: int) -> Process:
    """The jump process to a uniform symbol (multinomial diffusion).

    Args:
      schedule: `t -> (alpha, sigma)`; alpha is the survival.
      vocab: number of symbols K; data are integers in [0, K).

    Returns:
      a `Process`, as of `jump`.

    Source: Hoogeboom et al. 2021, arXiv:2102.05379, eq. 11; Austin et al. 2021, arXiv:2107.03006, app. A.2.1.

    Example:
      >>> from diffjax import schedules
      >>> p = uniform(schedules.cosine(), vocab=50_000)
      >>> p.corrupt(jax.random.key(0), jnp.zeros((4, 8), jnp.uint16), jnp.full(4, 0.5)).dtype
      dtype('uint16')
    """
    _check_vocab(vocab)

    def fresh(key, shape):
        # The remainder favours small symbols by K / 2^31.
        return (_bits(key, shape) % jnp.uint32(vocab)).astype(jnp.int32)

    return _jump(
        schedule,
        symbols=vocab,
        fresh=fresh,
        mass=lambda x, dtype: jnp.full(x.shape, 1 / vocab, dtype),
        stationary=np.full(vocab, 1 / vocab),
    )


def absorbing(schedule: Schedule, *, vocab: int) -> Process:
    """The jump process to an extra symbol, the mask, where symbols stay: masked diffusion.

    Args:
      schedule: `t -> (alpha, sigma)`; alpha is the share of symbols not yet masked. It should end at alpha(1) = 0.
      vocab: number of symbols V in the data, integers in [0, V). The mask is the symbol V; noisy data are in [0, V].

    Returns:
      a `Process` with a prior all of masks. `posterior_logits` takes logits with or without an entry for the mask (without: a
      clean symbol is never the mask) and gives V + 1. A symbol that is not masked stays, whatever the guess.

    Source: Austin et al. 2021, arXiv:2107.03006, app. A.2.2; Sahoo et al. 2024, arXiv:2406.07524.

    Example:
      >>> from diffjax import schedules
      >>> p = absorbing(schedules.rectified(), vocab=4)
      >>> print(p.corrupt(jax.random.key(0), jnp.array([0, 1, 2, 3]), jnp.array([0.0, 0.0, 1.0, 1.0])))
      [0 1 4 4]
    """
    _check_vocab(vocab)
    process = _jump(
        schedule,
        symbols=vocab + 1,
        fresh=lambda key, shape: jnp.full(shape, vocab, jnp.int32),
        mass=lambda x, dtype: (x == jnp.asarray(vocab, x.dtype)).astype(dtype),
        stationary=np.concatenate([np.zeros(vocab), [1.0]]),
    )
    inner = require(process, "posterior_logits")

    def with_mask(logits_x0, xt, s, t):
        if logits_x0.shape[-1] == vocab:
            never = jnp.full((*logits_x0.shape[:-1], 1), -jnp.inf, logits_x0.dtype)
            logits_x0 = jnp.concatenate([logits_x0, never], axis=-1)
        return inner(logits_x0, xt, s, t)

    return Process(
        prior=process.prior,
        corrupt=process.corrupt,
        bridge=process.bridge,
        log_prob=process.log_prob,
        posterior_logits=with_mask,
    )


def _check_vocab(vocab: int) -> None:
    if not 1 <= vocab < 2**31:
        raise ValueError(f"expected a number of symbols, 1 <= vocab < 2^31, got {vocab=}")
