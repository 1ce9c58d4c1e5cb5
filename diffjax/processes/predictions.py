"""What a network may predict, and how to turn one prediction into another.

Every prediction is a linear mixture of the two things that make x_t. With `x_t = alpha x_0 + sigma eps`,

    y = a x_0 + b eps:      x0 (1, 0)    eps (0, 1)    v (-sigma, alpha)    flow (alpha', sigma')    score (0, -1/sigma),

where v is that of progressive distillation and flow the velocity dx_t/dt of the path. Two equations, two unknowns: with
D_y = alpha b - sigma a, any prediction z = c x_0 + d eps follows from y and x_t,

    z = [ (c b - d a) x_t + D_z y ] / D_y,

and an error in y is an error D_z / D_y times as large in z. `convert` is that line; the named functions below it are its cases.
Where D_y = 0 the prediction says nothing about the rest (eps at alpha = 0, x0 at sigma = 0): the answer is then 0, the mean of the
prior in either case, and finite.

A *kind* is a function `(t, schedule) -> (a, b)`: `x0`, `eps`, `v`, `flow`, `score`, or your own.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from diffjax import numerics, schedules
from diffjax.numerics import expand_right
from diffjax.processes import gaussian
from diffjax.schedules import Schedule

Kind = Callable[[ArrayLike, Schedule], tuple[Array, Array]]
"""`(t, schedule) -> (a, b)`, the weights of x_0 and eps in a prediction, of t's shape."""

# ----------------------------------------------------------------------------------------------------------- kinds


def x0(t: ArrayLike, schedule: Schedule) -> tuple[Array, Array]:
    """The clean data, weights (1, 0).

    Example:
      >>> print(*x0(0.25, schedules.rectified()))
      1.0 0.0
    """
    alpha, _ = schedule(t)
    return jnp.ones_like(alpha), jnp.zeros_like(alpha)


def eps(t: ArrayLike, schedule: Schedule) -> tuple[Array, Array]:
    """The noise, weights (0, 1). Source: Ho et al. 2020, arXiv:2006.11239, eq. 12.

    Example:
      >>> print(*eps(0.25, schedules.rectified()))
      0.0 1.0
    """
    alpha, _ = schedule(t)
    return jnp.zeros_like(alpha), jnp.ones_like(alpha)


def v(t: ArrayLike, schedule: Schedule) -> tuple[Array, Array]:
    """The mixture `alpha eps - sigma x_0`. Source: Salimans and Ho 2022, arXiv:2202.00512, app. D.

    Example:
      >>> print(*v(0.25, schedules.rectified()))
      -0.25 0.75
    """
    alpha, sigma = schedule(t)
    return -sigma, alpha


def flow(t: ArrayLike, schedule: Schedule) -> tuple[Array, Array]:
    """The velocity of the path, `alpha' x_0 + sigma' eps`; `eps - x_0` for the rectified schedule.

    Source: Lipman et al. 2023, arXiv:2210.02747, eq. 15; Albergo et al. 2023, arXiv:2303.08797, eq. 2.10.

    Example:
      >>> print(*flow(0.25, schedules.rectified()))
      -1.0 1.0
    """
    return schedules.rates(t, schedule=schedule)


def score(t: ArrayLike, schedule: Schedule) -> tuple[Array, Array]:
    """The score of the noising law, `-eps / sigma`; 0 where sigma = 0. Source: Song et al. 2021, arXiv:2011.13456.

    Example:
      >>> print(*score(0.25, schedules.rectified()))
      0.0 -4.0
    """
    _, sigma = schedule(t)
    return jnp.zeros_like(sigma), -numerics.safe_divide(jnp.ones_like(sigma), sigma)


# ------------------------------------------------------------------------------------------------------ conversion


def convert(prediction: Array, xt: Array, t: ArrayLike, *, source: Kind, target: Kind, schedule: Schedule) -> Array:
    """A prediction of one kind as a prediction of another, `[ (c b - d a) x_t + D_z y ] / D_y`.

    Args:
      prediction: `[*batch, *event]`, of kind `source`.
      xt: `[*batch, *event]`, the noisy point that it was made from.
      t: `[*batch]` or scalar.
      source: the kind that came, such as `predictions.eps`.
      target: the kind wanted, such as `predictions.x0`.
      schedule: `t -> (alpha, sigma)`.

    Returns:
      `[*batch, *event]` of the prediction's dtype; 0 where `source` says nothing about `target`.

    Example:
      >>> xt = jnp.array([0.5, 1.0])
      >>> print(convert(jnp.array([2.0, 0.0]), xt, 0.25, source=flow, target=x0, schedule=schedules.rectified()))
      [0. 1.]
    """
    numerics.check_same(prediction=prediction, xt=xt)
    if source is target:
        return prediction
    alpha, sigma = schedule(t)
    (a, b), (c, d) = source(t, schedule), target(t, schedule)
    return _solve(c * b - d * a, xt, alpha * d - sigma * c, prediction, alpha * b - sigma * a)


def to_x0(prediction: Array, xt: Array, t: ArrayLike, *, kind: Kind = eps, schedule: Schedule) -> Array:
    """The estimate x0_hat that a prediction of any kind amounts to, of its shape and dtype: `convert` to `x0`.

    Example:
      >>> print(to_x0(jnp.array([1.0]), jnp.array([1.0]), 0.5, kind=eps, schedule=schedules.rectified()))
      [1.]
    """
    return convert(prediction, xt, t, source=kind, target=x0, schedule=schedule)


def _solve(on_xt: ArrayLike, xt: Array, on_y: ArrayLike, y: Array, divisor: ArrayLike) -> Array:
    # The difference first, then one division: near sigma = 0 two large quotients would cancel.
    wide_x, wide_y, *scalars = numerics.upcast(xt, y, on_xt, on_y, divisor)
    p, q, divisor = (expand_right(v, y) for v in scalars)
    numerator = p * wide_x + q * wide_y
    return numerics.safe_divide(numerator, jnp.broadcast_to(divisor, numerator.shape)).astype(y.dtype)


# The cases, on plain arrays: `alpha` and `sigma` are `[*batch]` or scalars, everything else `[*batch, *event]`.


def x0_to_eps(x0_hat: Array, xt: Array, alpha: ArrayLike, sigma: ArrayLike) -> Array:
    """The noise `(x_t - alpha x_0) / sigma`; 0 where sigma = 0.

    Example:
      >>> print(x0_to_eps(jnp.array([1.0]), jnp.array([2.0]), 1.0, 0.5))
      [2.]
    """
    return _solve(1.0, xt, -jnp.asarray(alpha), x0_hat, sigma)


def eps_to_x0(eps_hat: Array, xt: Array, alpha: ArrayLike, sigma: ArrayLike) -> Array:
    """The clean data `(x_t - sigma eps) / alpha`; 0 where alpha = 0.

    Example:
      >>> print(eps_to_x0(jnp.array([1.0]), jnp.array([2.0]), 0.5, 0.5))
      [3.]
    """
    return _solve(1.0, xt, -jnp.asarray(sigma), eps_hat, alpha)


def v_to_x0(v_hat: Array, xt: Array, alpha: ArrayLike, sigma: ArrayLike) -> Array:
    """The clean data `(alpha x_t - sigma v) / (alpha^2 + sigma^2)`.

    Example:
      >>> print(v_to_x0(jnp.array([0.2]), jnp.array([1.4]), 0.8, 0.6))
      [1.]
    """
    alpha, sigma = numerics.upcast(alpha, sigma)
    return _solve(alpha, xt, -sigma, v_hat, alpha * alpha + sigma * sigma)


def v_to_eps(v_hat: Array, xt: Array, alpha: ArrayLike, sigma: ArrayLike) -> Array:
    """The noise `(sigma x_t + alpha v) / (alpha^2 + sigma^2)`.

    Example:
      >>> print(v_to_eps(jnp.array([0.2]), jnp.array([1.4]), 0.8, 0.6))
      [1.]
    """
    alpha, sigma = numerics.upcast(alpha, sigma)
    return _solve(sigma, xt, alpha, v_hat, alpha * alpha + sigma * sigma)


def x0_to_v(x0_hat: Array, xt: Array, alpha: ArrayLike, sigma: ArrayLike) -> Array:
    """The mixture `v = (alpha x_t - (alpha^2 + sigma^2) x_0) / sigma`; 0 where sigma = 0.

    Example:
      >>> print(x0_to_v(jnp.array([1.0]), jnp.array([2.0]), 0.5, 0.5))
      [1.]
    """
    alpha, sigma = numerics.upcast(alpha, sigma)
    return _solve(alpha, xt, -(alpha * alpha + sigma * sigma), x0_hat, sigma)


def eps_to_v(eps_hat: Array, xt: Array, alpha: ArrayLike, sigma: ArrayLike) -> Array:
    """The mixture `v = ((alpha^2 + sigma^2) eps - sigma x_t) / alpha`; 0 where alpha = 0.

    Example:
      >>> print(eps_to_v(jnp.array([1.0]), jnp.array([2.0]), 0.5, 0.5))
      [-1.]
    """
    alpha, sigma = numerics.upcast(alpha, sigma)
    return _solve(-sigma, xt, alpha * alpha + sigma * sigma, eps_hat, alpha)


def eps_to_score(eps_hat: Array, sigma: ArrayLike) -> Array:
    """The score `-eps / sigma`; 0 where sigma = 0.

    Example:
      >>> print(eps_to_score(jnp.array([1.0]), 0.5))
      [-2.]
    """
    return _solve(0.0, eps_hat, -1.0, eps_hat, sigma)


def score_to_eps(score_hat: Array, sigma: ArrayLike) -> Array:
    """The noise `-sigma score`.

    Example:
      >>> print(score_to_eps(jnp.array([-2.0]), 0.5))
      [1.]
    """
    return _solve(0.0, score_hat, -jnp.asarray(sigma), score_hat, 1.0)


def x0_to_score(x0_hat: Array, xt: Array, alpha: ArrayLike, sigma: ArrayLike) -> Array:
    """The score `(alpha x_0 - x_t) / sigma^2`, Tweedie's formula read backwards; 0 where sigma = 0.

    Example:
      >>> print(x0_to_score(jnp.array([0.0]), jnp.array([1.0]), 0.5, 0.5))
      [-4.]
    """
    return eps_to_score(x0_to_eps(x0_hat, xt, alpha, sigma), sigma)


def score_to_x0(score_hat: Array, xt: Array, alpha: ArrayLike, sigma: ArrayLike) -> Array:
    """The posterior mean `(x_t + sigma^2 score) / alpha`, Tweedie's formula; 0 where alpha = 0.

    Source: Efron 2011, eq. 1.4.

    Example:
      >>> print(score_to_x0(jnp.array([-4.0]), jnp.array([1.0]), 0.5, 0.5))
      [0.]
    """
    (sigma,) = numerics.upcast(sigma)
    return _solve(1.0, xt, sigma * sigma, score_hat, alpha)


def x0_to_flow(
    x0_hat: Array, xt: Array, alpha: ArrayLike, sigma: ArrayLike, dalpha: ArrayLike, dsigma: ArrayLike
) -> Array:
    """The velocity `alpha' x_0 + sigma' (x_t - alpha x_0) / sigma`; 0 where sigma = 0.

    Example:
      >>> print(x0_to_flow(jnp.array([0.0]), jnp.array([0.5]), 0.75, 0.25, -1.0, 1.0))
      [2.]
    """
    alpha, sigma, dalpha, dsigma = numerics.upcast(alpha, sigma, dalpha, dsigma)
    return _solve(dsigma, xt, sigma * dalpha - alpha * dsigma, x0_hat, sigma)


def flow_to_x0(
    flow_hat: Array, xt: Array, alpha: ArrayLike, sigma: ArrayLike, dalpha: ArrayLike, dsigma: ArrayLike
) -> Array:
    """The clean data `(sigma' x_t - sigma u) / (alpha sigma' - sigma alpha')` of a velocity u.

    Example:
      >>> print(flow_to_x0(jnp.array([2.0]), jnp.array([0.5]), 0.75, 0.25, -1.0, 1.0))
      [0.]
    """
    alpha, sigma, dalpha, dsigma = numerics.upcast(alpha, sigma, dalpha, dsigma)
    return _solve(dsigma, xt, -sigma, flow_hat, alpha * dsigma - sigma * dalpha)


# ---------------------------------------------------------------------------------------------- EDM preconditioning


def edm_coefficients(alpha: ArrayLike, sigma: ArrayLike, *, sigma_data: float = 0.5) -> tuple[Array, Array, Array]:
    """The `(c_skip, c_out, c_in)` that make a network's input, output and target of unit variance, for any schedule.

        x0_hat = c_skip x_t + c_out F(c_in x_t, t);  with n = alpha^2 sigma_data^2 + sigma^2,
        c_skip = alpha sigma_data^2 / n,    c_out = sigma sigma_data / sqrt(n),    c_in = 1 / sqrt(n).

    At alpha = 1 it is EDM's table. All three are finite at both ends.

    Args:
      alpha: `[*batch]` or scalar.
      sigma: `[*batch]` or scalar.
      sigma_data: standard deviation of the data.

    Returns:
      three arrays of the shape of alpha and sigma.

    Source: Karras et al. 2022, arXiv:2206.00364, table 1 and app. B.6.

    Example:
      >>> print(*edm_coefficients(1.0, 0.5, sigma_data=0.5))
      0.5 0.35355338 1.4142135
    """
    alpha, sigma = numerics.upcast(alpha, sigma)
    variance = alpha * alpha * sigma_data**2 + sigma * sigma
    c_in = 1 / jnp.sqrt(variance)
    return alpha * sigma_data**2 / variance, sigma * sigma_data * c_in, c_in


def edm(network: Callable[..., Array], *, schedule: Schedule, sigma_data: float = 0.5) -> Callable[..., Array]:
    """A function `predict_x0(xt, t, **conditioning)` from a raw network `(xt, t, **conditioning)`, by EDM preconditioning.

    EDM's c_noise = log(sigma)/4 is left to the network, which is handed t.

    Example:
      >>> predict_x0 = edm(lambda x, t: jnp.zeros_like(x), schedule=schedules.karras())
      >>> print(predict_x0(jnp.array([1.0]), 0.0))
      [0.999984]
    """

    def predict_x0(xt, t, **conditioning):
        c_skip, c_out, c_in = edm_coefficients(*schedule(t), sigma_data=sigma_data)
        output = network(gaussian.perturb(xt, jnp.zeros_like(xt), c_in, 0.0), t, **conditioning)
        return gaussian.perturb(xt, output, c_skip, c_out)

    return predict_x0
