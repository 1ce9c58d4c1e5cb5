"""The grounds that noise runs on: the plane, where it is Gaussian, and the box [0, 1]^d, whose walls reflect it.

A `Ground` says what a model is there: how data come in and go out, what a network's output means, its loss, its likelihood and its flow. So the
rest of the program is one and the same; only solvers are of one ground or the other (`experiments.walks`).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from diffjax import likelihood, losses
from diffjax.likelihood import levels
from diffjax.numerics import expand_right
from diffjax.processes import Process, cube, gaussian, predictions
from diffjax.samplers import correctors, langevin, ode
from diffjax.schedules import Schedule


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ground:
    """Functions that belong together.

    Attributes:
      kind: what is predicted, once an output is read.
      process: `(schedule) -> Process`.
      enter: data as points of the ground.
      leave: its inverse.
      see: points as a network of images sees them, on about [-1, 1].
      features: points `[*batch, d]` as a perceptron sees them.
      read: `(output, xt, t, schedule) -> prediction`.
      log_kernel: noise of an entry, for `levels.posterior`.
      from_levels: `(log_levels, xt, t, values, schedule) -> prediction`, what probabilities of levels amount to.
      estimate: `(predict, xt, t, schedule) -> x0_hat`, the mean of x_0: on the box that of the unfolded line.
      loss: `(key, predict, x0, t, schedule, error, weighting) -> [batch]`.
      bound: `(key, predict, x0, u, schedule, decode, path) -> likelihood.Bound`, for data in levels.
      flow: `(predict, schedule) -> ode.Flow`.
    """

    kind: predictions.Kind
    process: Callable[[Schedule], Process]
    enter: Callable[[Any], Any]
    leave: Callable[[Any], Any]
    see: Callable[[Array], Array]
    features: Callable[[Array], Array]
    read: Callable[..., Array]
    log_kernel: levels.LogKernel
    from_levels: Callable[..., Array]
    estimate: Callable[..., Array]
    loss: Callable[..., Array]
    bound: Callable[..., likelihood.Bound]
    flow: Callable[..., ode.Flow]


def _same(x: Any) -> Any:
    return x


def plane(kind: predictions.Kind) -> Ground:
    """Vectors of any size under `x_t = alpha x_0 + sigma eps`, data as they are; levels are read by their mean."""

    def estimate(predict, xt, t, schedule):
        return predictions.to_x0(predict(xt, t), xt, t, kind=kind, schedule=schedule)

    def bound(key, predict, x0, u, *, schedule, decode, path):
        return likelihood.continuous(key, predict, x0, u, schedule=schedule, decode=decode, kind=kind, path=path)

    return Ground(
        kind=kind,
        process=gaussian.process,
        enter=_same,
        leave=_same,
        see=_same,
        features=_same,
        read=lambda output, xt, t, schedule: output,
        log_kernel=levels.normal,
        from_levels=lambda log_levels, xt, t, values, schedule: jnp.exp(log_levels) @ values,
        estimate=estimate,
        loss=lambda *args, **more: losses.regression(*args, kind=kind, **more),
        bound=bound,
        flow=lambda predict, schedule: ode.gaussian(predict, schedule=schedule, kind=kind),
    )


def box(span: tuple[float, float], *, walls: bool = False) -> Ground:
    """The box under reflected noise: data between two numbers come in as [0, 1], and everything is told by the score.

    A score is read from an output of order 1 as `output min(1 / sigma, 2 pi q)`, q = exp(-pi^2 sigma^2 / 2), what the kernel's own score comes to at
    most: 2 pi q is its last harmonic. Where the box is all but full nothing drives the walk, and what a network errs by there would, for its way is
    as long as sigma. A perceptron sees cosines, which are even about each wall, on the unfolded line as well.

    Weights are those of the noise, `sigma` times the score; "uniform" is 1 there, the same for all times.

    Args:
      span: least and largest value of the data.
      walls: whether the score is 0 at the walls whatever the network says.
    """
    low, high = span

    def features(x):
        return jnp.concatenate([jnp.cos(jnp.pi * k * x) for k in (1, 2, 4, 8, 16)], axis=-1)

    def read(output, xt, t, schedule):
        sigma = schedule(t)[1]
        most = jnp.minimum(1.0, 2 * jnp.pi * sigma * jnp.exp(-0.5 * jnp.square(jnp.pi * sigma)))
        return cube.scaled_score(expand_right(most, xt) * output, xt, sigma, walls=walls)

    def from_levels(log_levels, xt, t, values, schedule):
        return levels.score(log_levels, xt, t, levels=values, schedule=schedule, kernel_score=cube.score)

    def estimate(predict, xt, t, schedule):
        return correctors.denoise(predict, xt, t, schedule=schedule, move=langevin.reflect)

    def loss(key, predict, x0, t, *, schedule, error, weighting):
        del error  # squared
        weigh = lambda t: losses.weight(t, schedule, kind=predictions.score, weighting=weighting or losses.snr)
        return losses.score_matching(key, predict, x0, t, process=cube.process(schedule), weight=weigh)

    def bound(key, predict, x0, u, *, schedule, decode, path):
        process = cube.process(schedule)
        return likelihood.girsanov(key, predict, x0, u, process=process, schedule=schedule, decode=decode, path=path)

    return Ground(
        kind=predictions.score,
        process=cube.process,
        enter=lambda x: (x - low) / (high - low),
        leave=lambda x: low + (high - low) * x,
        see=lambda x: 2 * x - 1,
        features=features,
        read=read,
        log_kernel=cube.log_kernel,
        from_levels=from_levels,
        estimate=estimate,
        loss=loss,
        bound=bound,
        flow=lambda predict, schedule: ode.folded(predict, schedule=schedule, fold=cube.fold, length=1.0),
    )
