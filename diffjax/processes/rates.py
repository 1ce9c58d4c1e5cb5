"""Symbols that jump by a rate matrix: continuous-time Markov chains.

A chain with rates Q (`Q[i, j]` from i to j, rows summing to 0) has after a run L the transition matrix exp(Q L). The schedule is its clock:
alpha(t) is the chance that an event of rate 1 has not happened by t, so

    L(t) = -log alpha(t),        q(x_t | x_0) = exp(Q L(t))[x_0, x_t],        q(x_t | x_s) = exp(Q log(alpha_s / alpha_t))[x_s, x_t].

`Q = 1 pi^T - I` gives back the jump process of `diffjax.processes.discrete` with the same schedule.

Not by eigenvectors: Q need not be symmetric, its eigenvectors may be nearly parallel or too few, and for rare moves the terms of
`V exp(l L) V^-1` cancel until no digit is left (or a probability below zero). Everything here is a sum of positive terms instead, which
keeps *relative* accuracy in every entry, also the smallest. With the fastest rate q, J = I + Q / q is a stochastic matrix and

    exp(Q L) = exp(-qL) sum_n (qL)^n / n! J^n,

an event of rate q happening n times. For qL <= 1/4 that is twelve terms; what is left of L is a binary number in units of 1/4q, whose
digits choose among the tables exp(Q 2^l / 4q), made in float64 by squaring. alpha = 0 is the limit L -> infinity, a table too.

A row or a column is a vector carried through these matrices, O(K^2 log(qL)) a site and nothing of size K^2 in memory per site.

Source: Campbell et al. 2022, arXiv:2205.14987 (continuous-time discrete diffusion); Jensen 1953 and Grassmann 1977 (uniformisation).
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from diffjax import numerics
from diffjax.numerics import expand_right
from diffjax.processes import chains
from diffjax.processes.base import Process
from diffjax.processes.survival import hazard
from diffjax.schedules import Schedule

_UNIT = 0.25  # the series serves up to this many expected events
_TERMS = 12  # then its rest is 2e-18
_LONGEST = 745.0  # -log of the smallest alpha > 0 in float64


def process(rate_matrix: ArrayLike, schedule: Schedule) -> Process:
    """The process of a rate matrix Q run by a schedule's clock: `q(x_t | x_0) = exp(-Q log alpha(t))[x_0, x_t]`.

    Args:
      rate_matrix: `[K, K]`, known now (not traced): `Q[i, j] >= 0` the rate from i to j, the diagonal minus the rest of the row. It may be
        of any kind: not symmetric, defective, reducible, with absorbing symbols.
      schedule: `t -> (alpha, sigma)`; `-log alpha(t)` is the time the chain has run. alpha may reach 0: the chain has then run for ever.

    Returns:
      a `Process` on integers in [0, K), of any integer dtype that holds K - 1; all capabilities but `score`. `prior` draws from
      the chain's limit law, averaged over where it starts (which an irreducible chain forgets). Where the ends cannot be joined,
      bridges keep x_t. It serves K up to some hundreds; beyond, `discrete.jump` costs nothing per symbol.

    Raises:
      ValueError: not square, negative rates off the diagonal, or rows that do not sum to 0.

    Source: Campbell et al. 2022, arXiv:2205.14987, sec. 4.1 and app. E (a fixed matrix and a clock).

    Example:
      One way only, 0 -> 1 -> 2, at rate 1:

      >>> from diffjax import schedules
      >>> p = process(np.array([[-1.0, 1.0, 0.0], [0.0, -1.0, 1.0], [0.0, 0.0, 0.0]]), schedules.rectified())
      >>> log_prob = p.log_prob(jnp.zeros(3, jnp.int8), jnp.arange(3, dtype=jnp.int8), jnp.full(3, 0.5))
      >>> print(np.exp(log_prob).round(3))  # log 2 later: 1/2, log(2)/2, the rest
      [0.5   0.347 0.153]
    """
    q, jumps, tables, limit = _tables(rate_matrix)
    symbols = len(limit)

    def run(v: Array, elapsed: Array, transpose: bool) -> Array:
        """Vectors `v [..., K]` through the chain for `elapsed [...]`, which may be infinite."""
        v, elapsed = numerics.upcast(v, elapsed)
        elapsed = expand_right(elapsed, v)
        turn = (
            (lambda m: jnp.asarray(m, v.dtype).swapaxes(-1, -2)) if transpose else (lambda m: jnp.asarray(m, v.dtype))
        )
        forever = jnp.isinf(elapsed)
        units = jnp.where(forever, 0, elapsed) * (q / _UNIT)
        whole = jax.lax.stop_gradient(jnp.floor(units))
        events = (units - whole) * _UNIT

        def term(carry, n):
            power, total = carry
            power = chains.product(power, turn(jumps)) * (events / n)
            return (power, total + power), None

        def digit(vector, level):
            scale, table = level
            odd = jnp.floor(whole * scale) % 2 == 1
            return jnp.where(odd, chains.product(vector, turn(table)), vector), None

        (_, total), _ = jax.lax.scan(term, (v, v), jnp.arange(1, _TERMS + 1, dtype=v.dtype))
        levels = jnp.asarray(0.5 ** np.arange(len(tables)), v.dtype), jnp.asarray(tables, v.dtype)
        moved, _ = jax.lax.scan(digit, total * jnp.exp(-events), levels)
        return jnp.where(forever, chains.product(v, turn(limit)), moved)

    def certain(x, like):
        return jax.nn.one_hot(x, symbols, dtype=like.dtype)

    def row(x0, t):
        elapsed = hazard(0.0, t, schedule=schedule)
        return run(certain(x0, elapsed), elapsed, False)

    def column(xt, s, t):
        elapsed = hazard(s, t, schedule=schedule)
        return run(certain(xt, elapsed), elapsed, True)

    def push(weights, s):
        return run(weights, hazard(0.0, s, schedule=schedule), False)

    return chains.process(
        row=row, reach=lambda xt, t: column(xt, 0.0, t), column=column, push=push, prior=limit.mean(0)
    )


def _tables(rate_matrix: ArrayLike) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    """The fastest rate q, J = I + Q/q, the tables exp(Q 2^l / 4q) and their limit, in float64."""
    rates = np.asarray(rate_matrix, np.float64)
    if rates.ndim != 2 or rates.shape[0] != rates.shape[1] or not np.isfinite(rates).all():
        raise ValueError(f"expected a finite rate matrix [K, K], got shape {rates.shape}")
    off = rates - np.diag(np.diag(rates))
    size = max(off.sum(1).max(), np.abs(rates).max())
    if (off < 0).any() or (np.abs(rates.sum(1)) > 1e-5 * size).any():
        raise ValueError(
            "expected rates Q[i, j] >= 0 from i to j and a diagonal that makes each row sum to 0, "
            f"got a least rate {off.min():.3g} and row sums from {rates.sum(1).min():.3g} to {rates.sum(1).max():.3g}"
        )
    leave = off.sum(1)
    q = float(leave.max()) or 1.0
    jumps = off / q + np.diag(1 - leave / q)

    base, power = np.eye(len(off)), np.eye(len(off))
    for n in range(1, 2 * _TERMS):
        power = power @ jumps * (_UNIT / n)
        base = base + power
    tables = [_stochastic(base)]
    for _ in range(max(0, math.ceil(math.log2(_LONGEST * q / _UNIT)))):
        tables.append(_squared(tables[-1]))
    limit = tables[-1]
    for _ in range(200):  # 2^200 units: what has not moved by then never will
        further = _squared(limit)
        if np.abs(further - limit).max() < 1e-16:
            break
        limit = further
    return q, jumps, np.stack(tables), limit


def _stochastic(matrix: np.ndarray) -> np.ndarray:
    # Rounding doubles with every squaring; all of it that is a loss of mass is given back.
    return matrix / matrix.sum(1, keepdims=True)


def _squared(matrix: np.ndarray) -> np.ndarray:
    return _stochastic(matrix @ matrix)
