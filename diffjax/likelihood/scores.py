"""Variational bounds of a score, on any space that has one: vectors, a box, angles, rotations.

Noise that spreads data as `dx = f x dt + g dw` is undone by a drift that holds the score of the noisy data. A model's score s in its place makes
another law of paths, and by Girsanov's theorem the divergence between the two is

    KL = 1/2 E_t[g^2(t) |s(x_t, t) - s_q(x_t, t)|^2],        s_q = grad log q(x_t | x_0),

for each x_0, whatever the space: mirrors at a box's walls act on both alike. `girsanov` adds the two ends to it and bounds the probability of data in
levels, as VDM's bound does for Gaussian noise; `density` bounds a density of real data, with the entropies of the ends left out of the sum.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from diffjax import numerics, schedules
from diffjax.likelihood.bounds import Bound, Decode
from diffjax.numerics import expand_right
from diffjax.processes.base import Process, require
from diffjax.schedules import Schedule

Path = Callable[[Array], Array]
"""`u -> t`, increasing: its ends are those of the walk."""


def _times(path: Path | None, u: Array) -> tuple[Array, Array, Array, Array]:
    """`(t, dt/du, start, end)` of uniform draws u."""
    path = path or (lambda u: u)
    (u,) = numerics.upcast(u)
    t, slope = jax.jvp(path, (u,), (jnp.ones_like(u),))
    return t, slope, path(jnp.zeros_like(u)), path(jnp.ones_like(u))


def girsanov(
    key: Array,
    score: Callable[[Array, Array], Array],
    x0: Array,
    u: Array,
    *,
    process: Process,
    schedule: Schedule,
    decode: Decode,
    log_prior: Callable[[Array], Array] | None = None,
    path: Path | None = None,
) -> Bound:
    """The continuous-time bound on -log P(x_0) of each example for noise of any process with a score, from one time each:

        -E log P(x_0 | x_start) + 1/2 E_t[g^2(t) |s - s_q|^2] + KL(q(x_end | x_0) || prior).

    With Gaussian noise it is VDM's; on a box it is the bound of reflected diffusion. For data in levels: real data have a density, for which
    `density` is made.

    Args:
      key: one key, or an array of keys `[*batch]`.
      score: `(xt, t) -> tangent`, the model's; see `cube.scaled_score` and `levels.score`.
      x0: `[*batch, *event]`, the data as real numbers.
      u: `[*batch]`, uniform draws from [0, 1); `schedules.stratified_draw` makes good ones.
      process: with `score` and `log_prob`.
      schedule: the process's own, for g^2(t).
      decode: `(x0, z0) -> log P(x_0 | z_0)`, for z_0 at the path's start; `levels.decoder(..., log_kernel=cube.log_kernel)`, or a network's posterior.
      log_prior: `x1 -> [*batch]` nats, the density a sampler starts from; 0 by default, for the box and rotations.
      path: `u -> t`, increasing, from sigma > 0 to the end; the identity by default. Equal steps in log sigma, as on `schedules.ve`, spread the
        errors evenly.

    Returns:
      a `Bound`, `[*batch]` each. The prior term is estimated from one draw of x_end, so it may be below 0; on a box with
      sigma(1) >= 2 it is 1e-8 a dimension.

    Source: Girsanov 1960; Song et al. 2021, arXiv:2101.09258, theorem 1; Kingma et al. 2021, arXiv:2107.00630, eq. 11-15; on a box: Lou and Ermon 2023,
      arXiv:2304.04740, sec. 4.1.

    Example:
      Two walls, equally likely, cost log 2 each entry:

      >>> from diffjax.likelihood import levels
      >>> from diffjax.processes import cube
      >>> schedule, n = schedules.ve(0.05, 3.0), 20_000
      >>> two = {"levels": jnp.array([0.0, 1.0]), "schedule": schedule}
      >>> law = lambda x, t: levels.posterior(0.0, x, t, log_kernel=cube.log_kernel, **two)
      >>> bound = girsanov(
      ...     jax.random.key(0), lambda x, t: levels.score(law(x, t), x, t, kernel_score=cube.score, **two), jnp.zeros((n, 4)),
      ...     jnp.arange(0.5, n) / n, process=cube.process(schedule), schedule=schedule,
      ...     decode=lambda x0, z0: levels.log_prob(law(z0, 0.0), x0, levels=two["levels"]),
      ... )
      >>> bool(abs(bound.total.mean() - 4 * jnp.log(2.0)) < 0.2)
      True
    """
    kernel_score, kernel_log_prob = require(process, "score"), require(process, "log_prob")
    key_t, key_start, key_end = numerics.split(numerics.as_keys(key), 3)
    t, slope, start, end = _times(path, u)
    (clean,) = numerics.upcast(x0)
    xt = process.corrupt(key_t, clean, t)
    s, s_q = numerics.upcast(score(xt, t), kernel_score(clean, xt, t))
    _, g2 = schedules.sde_coefficients(t, schedule=schedule)
    # The root first: at little noise the scores are large and g small, and their product is of order 1.
    error = expand_right(numerics.safe_sqrt(slope * g2), s) * (s - s_q)
    z0, x1 = process.corrupt(key_start, clean, start), process.corrupt(key_end, clean, end)
    prior = kernel_log_prob(clean, x1, end)
    if log_prior is not None:
        prior = prior - log_prior(x1).astype(prior.dtype)
    return Bound(-decode(x0, z0).astype(error.dtype), 0.5 * numerics.sum_event(error * error, t), prior)


def density(
    key: Array,
    score: Callable[[Array, Array], Array],
    x0: Array,
    u: Array,
    *,
    process: Process,
    schedule: Schedule,
    log_prior: Callable[[Array], Array],
    path: Path | None = None,
) -> Bound:
    """The bound on the mean of -log p(x_start) over x_start ~ q(x_start | x_0), for real data on any space with a score:

        1/2 E_t[g^2(t) (|s|^2 - 2 s . s_q)] - D log(alpha_1 / alpha_start) - E log prior(x_1),

    s the model's score, s_q that of the noising law, p the density of the diffusion that s drives back; equal for the exact score. The
    textbook form has |s - s_q|^2, the entropy of q(x_start | x_0) and a KL at the noisy end. The mean of |s_q|^2 is the growth of the
    entropy of q (de Bruijn's identity), so the entropies cancel, and most of the variance with them.

    Args:
      key: one key, or an array of keys `[*batch]`.
      score: `(xt, t) -> tangent`, the model's.
      x0: `[*batch, *event]`.
      u: `[*batch]`, uniform draws from [0, 1).
      process: with a `score`, such as `cube.process(schedule)`.
      schedule: the process's own, for g^2(t); alpha > 0 at the path's end.
      log_prior: `x1 -> [*batch]` nats; 0 on the box.
      path: `u -> t` as in `continuous`, from the least noise (sigma > 0) to the most.

    Returns:
      a `Bound`, `[*batch]` each; its reconstruction is 0.

    Source: Song et al. 2021, arXiv:2101.09258, theorem 3; Lou and Ermon 2023, arXiv:2304.04740, sec. 4 for reflected diffusions; the form without
      entropies is derived here.

    Example:
      Noise N(0, 1/4) around 0, seen from its exact score, costs its entropy log(1/2) + 1.4189:

      >>> from diffjax.processes import gaussian
      >>> schedule = schedules.ve(0.5, 50.0)
      >>> bound = density(
      ...     jax.random.key(0), lambda x, t: -x / schedule(t)[1][:, None] ** 2, jnp.zeros((20_000, 1)), jnp.arange(0.5, 20_000) / 20_000,
      ...     process=gaussian.process(schedule), schedule=schedule,
      ...     log_prior=lambda x: -0.5 * x[:, 0] ** 2 / 2500 - jnp.log(50.0) - 0.9189,
      ... )
      >>> print(f"{bound.total.mean():.1f}")
      0.7
    """
    kernel_score = require(process, "score")
    key_t, key_end = numerics.split(numerics.as_keys(key))
    t, slope, start, end = _times(path, u)
    xt = process.corrupt(key_t, x0, t)
    s, s_q = numerics.upcast(score(xt, t), kernel_score(x0, xt, t))
    _, g2 = schedules.sde_coefficients(t, schedule=schedule)
    shrunk = jnp.log(schedule(end)[0]) - jnp.log(schedule(start)[0])
    return Bound(
        jnp.zeros_like(t),
        0.5 * slope * g2 * numerics.sum_event(s * (s - 2 * s_q), t) - math.prod(x0.shape[jnp.ndim(t) :]) * shrunk,
        -log_prior(process.corrupt(key_end, x0, end)),
    )
