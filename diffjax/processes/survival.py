"""How long symbols last, with all its digits.

A symbol is still there at t with probability alpha(t), its *survival*. Near the data alpha is close to 1, and in float32 the little that is
missing is mostly rounding: at t = 1e-4, where 1 - t has an error of 3e-8, a bridge made from it is wrong by 3e-4. Steps between times close to
each other lose their digits likewise. What is lost on the way from s to t is also an integral,

    alpha(s) - alpha(t) = int_s^t -alpha'(u) du,

a sum of small things instead of a difference of large ones. `lost` is the difference, corrected by Gauss-Legendre quadrature of the
schedule's own derivative: where quadrature has converged, and by no more than rounding can have spoiled, so that a schedule which is not
smooth is no worse off than before.

From it all else follows without cancellation: `1 - alpha(t) = lost(0, t)`, the chance of a jump `lost(s, t) / alpha(s)`, and the hazard
`log alpha(s) - log alpha(t) = log(1 + lost(s, t) / alpha(t))`, the clock of `diffjax.processes.rates`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from diffjax import numerics
from diffjax.schedules import Schedule

_RULES = [np.polynomial.legendre.leggauss(n) for n in (3, 6)]  # twice the nodes square a small error
_CONVERGED = 1e-4
_ROUNDING = 8  # units in the last place that a schedule's own arithmetic may cost alpha


def survival(t: ArrayLike, *, schedule: Schedule) -> Array:
    """The probability alpha(t) that a symbol has not jumped by t, of t's shape, in [0, 1] and exactly 1 at t = 0.

    A schedule's rounding may leave 1 - 6e-8 at t = 0, and clean data must stay clean.

    Example:
      >>> from diffjax import schedules
      >>> print(survival(jnp.array([0.0, 0.25, 1.0]), schedule=schedules.rectified()))
      [1.   0.75 0.  ]
    """
    alpha = schedule(t)[0]
    alpha = jnp.clip(alpha, jnp.zeros_like(alpha), jnp.ones_like(alpha))
    return jnp.where(jnp.broadcast_to(jnp.asarray(t) == 0, alpha.shape), jnp.ones_like(alpha), alpha)


def lost(s: ArrayLike, t: ArrayLike, *, schedule: Schedule) -> Array:
    """What is lost of the survival between s and t, `alpha(s) - alpha(t) >= 0`, to float32's relative precision.

    Args:
      s: `[*batch]` or scalar, s <= t.
      t: `[*batch]` or scalar.
      schedule: `t -> (alpha, sigma)`, with a derivative by `jax.jvp`. Where alpha(0) is below 1 by more than rounding, the rest is
        lost as soon as t > 0 (and known to its own rounding only).

    Returns:
      an array of the times' common shape.

    Source: derived here.

    Example:
      float32 has 1 - t in steps of 6e-8:

      >>> from diffjax import schedules
      >>> print(lost(0.0, 1.1e-7, schedule=schedules.rectified()), 1 - (1 - jnp.float32(1.1e-7)))
      1.1e-07 1.1920929e-07
    """
    s, t = jnp.broadcast_arrays(*numerics.upcast(s, t))
    alpha = lambda u: numerics.upcast(schedule(u)[0])[0]
    slope = lambda u: jax.jvp(alpha, (u,), (jnp.ones_like(u),))[1]

    def integral(nodes, weights):
        # A plain sum: a product of matrices would be rounded to few bits on accelerators.
        at = lambda x, w: w * slope(s + x * (t - s))
        rows = (jnp.asarray(0.5 + 0.5 * nodes, t.dtype), jnp.asarray(0.5 * weights, t.dtype))
        return (s - t) * jnp.sum(jax.vmap(at)(*rows), axis=0)

    alpha_s = alpha(s)
    difference = alpha_s - alpha(t)
    coarse, fine = (integral(*rule) for rule in _RULES)
    rounding = _ROUNDING * jnp.finfo(t.dtype).eps * alpha_s
    correction = jnp.clip(fine - difference, -rounding, rounding)
    # Where more than half is lost the difference has its digits.
    better = (jnp.abs(fine - coarse) <= _CONVERGED * jnp.abs(fine)) & (difference < 0.5 * alpha_s)
    # The derivative is that of the difference, which has lost nothing.
    difference = difference + jax.lax.stop_gradient(jnp.where(better, correction, jnp.zeros_like(correction)))

    rest = 1 - alpha(jnp.zeros_like(s))
    rest = jnp.where((s == 0) & (t > 0) & (rest > rounding), rest, jnp.zeros_like(rest))
    return jnp.maximum(difference + rest, jnp.zeros_like(difference))


def legs(s: ArrayLike, t: ArrayLike, *, schedule: Schedule) -> tuple[Array, Array, Array, Array]:
    """The survivals over [0, s] and [s, t] and what each lacks of 1: `(a, 1 - a, b, 1 - b)`, in the times' shapes.

    Where alpha(s) = 0 nothing is left to decay and b = 1: s = t is then the identity there too.

    Example:
      >>> from diffjax import schedules
      >>> print(*(float(x) for x in legs(0.25, 0.5, schedule=schedules.rectified())))
      0.75 0.25 0.6666666865348816 0.3333333432674408
    """
    a, alpha_t = numerics.upcast(survival(s, schedule=schedule), survival(t, schedule=schedule))
    dead = a == 0
    alive = jnp.where(dead, jnp.ones_like(a), a)
    decay = jnp.clip(jnp.where(dead, 0, lost(s, t, schedule=schedule)) / alive, 0, 1)
    return a, lost(0.0, s, schedule=schedule), jnp.where(dead, jnp.ones_like(decay), alpha_t / alive), decay


def hazard(s: ArrayLike, t: ArrayLike, *, schedule: Schedule) -> Array:
    """The integrated hazard `log alpha(s) - log alpha(t) >= 0` between s and t, of the times' common shape, to relative precision.

    Infinite where alpha(t) = 0 < alpha(s), with derivative 0; 0 where both are 0.

    Example:
      >>> from diffjax import schedules
      >>> print([round(float(hazard(0.0, t, schedule=schedules.rectified())), 12) for t in (1e-9, 0.75, 1.0)])
      [1e-09, 1.386294364929, inf]
    """
    first, last = numerics.upcast(survival(s, schedule=schedule), survival(t, schedule=schedule))
    gone = lost(s, t, schedule=schedule)
    first, last = jnp.broadcast_arrays(first, last)
    some = last > 0
    finite = jnp.log1p(jnp.where(some, gone, 0) / jnp.where(some, last, jnp.ones_like(last)))
    return jnp.where(some, finite, jnp.where(first > 0, jnp.inf, 0).astype(last.dtype))
