"""Explicit Runge-Kutta steps along a grid of times, and adaptive ones by diffrax: how `samplers.ode` integrates.

From y at tau a step of size h evaluates the slopes `k_j = f(y + h sum_i a_ji k_i, tau + c_j h)` and goes to `y + h sum_j b_j k_j`. A method is a
function `(field, y, times, flow, observe)`; the flow supplies the clock tau(t) and its inverse.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from diffjax.numerics import expand_right

Field = Callable[[ArrayLike, Any, Array], Any]
"""`(i, y, t) -> dy/dtau` on pytrees; i counts the evaluations."""

Method = Callable[..., Any]
"""`(field, y, times, flow, observe) -> (y, observed)`: carries y from times[0] to times[-1]; `observe(y, t)` is kept after each step."""


class Tableau(NamedTuple):
    """The coefficients of an explicit Runge-Kutta method: fractions c of the step, rows a of weights, and final weights b."""

    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]


EULER = Tableau(c=(0.0,), a=((),), b=(1.0,))
HEUN = Tableau(c=(0.0, 1.0), a=((), (1.0,)), b=(0.5, 0.5))
RK4 = Tableau(c=(0.0, 0.5, 0.5, 1.0), a=((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), b=(1 / 6, 1 / 3, 1 / 3, 1 / 6))
# The fifth-order solution of Dormand and Prince 1980, table 2, in six evaluations.
DOPRI5 = Tableau(
    c=(0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0),
    a=(
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    ),
    b=(35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)


def fixed(tableau: Tableau = RK4) -> Method:
    """The method that takes one Runge-Kutta step between neighbouring times, in one `lax.scan`.

    Args:
      tableau: `EULER` (order 1, one evaluation a step), `HEUN` (2, two), `RK4` (4, four), `DOPRI5` (5, six), or your own.

    Example:
      >>> from diffjax import schedules
      >>> from diffjax.samplers import ode
      >>> flow = ode.plain(lambda x, t: x)
      >>> print(ode.sample(flow, jnp.array([1.0]), schedules.times(2), method=fixed(EULER)))
      [0.25]
    """
    stages = len(tableau.b)
    rows = jnp.array([row + (0.0,) * (stages - len(row)) for row in tableau.a])

    def add(y, h, weights, slopes):
        move = lambda y, k: y + expand_right(h.astype(y.dtype), y) * jnp.tensordot(weights.astype(y.dtype), k, 1)
        return jax.tree.map(move, y, slopes)

    def solve(field, y, times, flow, observe):
        tau = flow.clock(times)
        # The times of all stages, found at once: a time that was asked for is used as it is.
        ends = {0.0: times[:-1], 1.0: times[1:]}
        nodes = [ends[c] if c in ends else flow.time(tau[:-1] + c * (tau[1:] - tau[:-1])) for c in tableau.c]

        def step(y, row):
            i, h, t, after = row

            # One loop over stages too, so that the model is compiled once.
            def stage(slopes, row):
                j, weights, t = row
                slope = field(i * stages + j, add(y, h, weights, slopes), t)
                return jax.tree.map(lambda all, k: all.at[j].set(k), slopes, slope), None

            none = jax.tree.map(lambda y: jnp.zeros((stages, *y.shape), y.dtype), y)
            slopes, _ = jax.lax.scan(stage, none, (jnp.arange(stages), rows, t))
            y = add(y, h, jnp.array(tableau.b), slopes)
            return y, None if observe is None else observe(y, after)

        return jax.lax.scan(step, y, (jnp.arange(len(times) - 1), tau[1:] - tau[:-1], jnp.stack(nodes, 1), times[1:]))

    return solve


def adaptive(*, rtol: float = 1e-5, atol: float = 1e-5, max_steps: int = 4096) -> Method:
    """The method that lets diffrax choose the steps (Dormand-Prince 5 with a PID controller) between the first time and the last.

    Per-example times and `track` have no place here, and one step serves the whole batch. With `ode.hutchinson` the
    probes stay the same along the path.

    Args:
      rtol: relative tolerance of a step.
      atol: absolute tolerance of a step.
      max_steps: steps after which the solve fails.

    Raises:
      ImportError: diffrax is not installed.

    Source: Dormand and Prince 1980; Kidger 2021, arXiv:2202.02435.
    """
    try:
        import diffrax  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            "adaptive steps need diffrax: pip install 'diffjax[adaptive]'; runge_kutta.fixed(DOPRI5) needs nothing"
        ) from error

    def solve(field, y, times, flow, observe):
        if observe is not None or jnp.ndim(times) != 1:
            raise ValueError(
                f"adaptive steps go from times[0] to times[-1] untracked: expected times [steps + 1], {times.shape=}"
            )
        tau = flow.clock(times)
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda tau, y, args: field(0, y, flow.time(tau))),
            diffrax.Dopri5(),
            tau[0],
            tau[-1],
            None,
            y,
            stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
            max_steps=max_steps,
        )
        return jax.tree.map(lambda leaf: leaf[-1], solution.ys), None

    return solve
