"""Estimates of x_0 bent towards an observation: inpainting, and y = A x_0 + noise for any linear A.

Given x_t, x_0 is spread around x0_hat(x_t) with covariance C, and Tweedie's second formula gives C = (sigma^2 / alpha) J^T, J = d x0_hat / d x_t. If that
spread is called Gaussian, then y | x_t ~ N(A x0_hat, S) with S = A C A^T + noise^2, and with Bayes' rule in the score,

    x0_hat  ->  x0_hat + C A^T S^-1 (y - A x0_hat),

a Kalman update, where C A^T comes from one backward pass of the model. The three methods differ in the S they take:

    kalman   A C A^T + noise^2         C as it is; exact for Gaussian data
    pigdm    r^2 A A^T + noise^2       C replaced by r^2 I inside S; exact for isotropic Gaussian data
    dps      noise^2                   C replaced by 0 inside S; too sure of y until the noise is gone

`inpaint` writes known entries into x0_hat, and the bridge then carries them along exactly as noised data; what it leaves out is their say in
the other entries, beyond what x_t tells.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from diffjax import numerics
from diffjax.guidance.estimates import PredictX0
from diffjax.numerics import expand_right
from diffjax.schedules import Schedule

Operator = Callable[[Array], Array]
"""A linear map `[batch, *event] -> [batch, *measurements]` of each example alone; its transpose is found by JAX."""


def inpaint(predict_x0: PredictX0, known: Array, frozen: Array) -> PredictX0:
    """A predictor of x_0 whose known entries are the known values: replacement, the simplest inpainting.

    Under a bridge (`samplers.bridge`, `gaussian.ancestral`) the known entries of x_t then follow the noising law of their values, with no noise to be
    kept apart. The other entries see them only through x_t, which is not the conditional law; repeated steps
    (`samplers.correctors.resampled`) come closer to it.

    Args:
      predict_x0: `(xt, t) -> x0_hat`.
      known: `[batch, *event]`, or what broadcasts to it; read where `frozen`.
      frozen: bool, True = known; aligned from the left as in `processes.masked`.

    Raises:
      TypeError: `frozen` is not of bool type.

    Source: Song et al. 2021, arXiv:2011.13456, app. I.2; Lugmayr et al. 2022 (RePaint), arXiv:2201.09865, eq. 8.

    Example:
      >>> predict = inpaint(lambda x, t: x, jnp.array([[5.0, 0.0]]), jnp.array([[True, False]]))
      >>> print(predict(jnp.array([[1.0, 2.0]]), 0.5))
      [[5. 2.]]
    """
    frozen = jnp.asarray(frozen)
    if frozen.dtype != jnp.bool_:
        raise TypeError(f"expected a bool array (True = known), got {frozen.dtype=}")

    def predict(xt, t):
        x0_hat = predict_x0(xt, t)
        values = jnp.broadcast_to(jnp.asarray(known, x0_hat.dtype), x0_hat.shape)
        return jnp.where(expand_right(frozen, x0_hat), values, x0_hat)

    return predict


def kalman(
    predict_x0: PredictX0,
    observation: Array,
    operator: Operator,
    *,
    noise: ArrayLike,
    schedule: Schedule,
    iterations: int = 8,
) -> PredictX0:
    """A predictor of E[x_0 | x_t, y] by moment matching: `x0_hat + C A^T (A C A^T + noise^2)^-1 (y - A x0_hat)`, C from the model's jacobian.

    Exact for Gaussian data of any covariance. The system is solved by conjugate gradients, each iteration a forward and a backward pass of the
    model's linear part; as many iterations as measurements solve it exactly.

    Args:
      predict_x0: `(xt, t) -> x0_hat`, `[batch, *event]`, each example alone.
      observation: y, `[batch, *measurements]`.
      operator: the linear map A.
      noise: its standard deviation, a scalar, >= 0 (> 0 where A C A^T may be singular).
      schedule: `t -> (alpha, sigma)`. Where alpha = 0 the estimate is left as it is.
      iterations: of conjugate gradients.

    Source: Boys et al. 2023, arXiv:2310.06721; Finzi et al. 2023, arXiv:2306.07526.

    Example:
      Data N(0, I) on a plane, their sum observed to be 4: E[x_0 | x_1, y] = (2, 2).

      >>> from diffjax import schedules
      >>> schedule = schedules.cosine()
      >>> guided = kalman(
      ...     lambda x, t: schedule(t)[0] * x, jnp.array([4.0]), lambda x: x.sum(-1), noise=0.0, schedule=schedule, iterations=1
      ... )
      >>> print(jnp.round(guided(jnp.zeros((1, 2)), 0.99), 3))
      [[2. 2.]]
    """
    return _guided(predict_x0, observation, operator, noise, schedule, iterations, lambda spread, t: spread)


def pigdm(
    predict_x0: PredictX0,
    observation: Array,
    operator: Operator,
    *,
    noise: ArrayLike,
    schedule: Schedule,
    data_std: float = 1.0,
    iterations: int = 8,
) -> PredictX0:
    """A predictor of x_0 by pseudo-inverse guidance: `x0_hat + C A^T (r^2 A A^T + noise^2)^-1 (y - A x0_hat)`.

    r^2 = data_std^2 sigma^2 / (alpha^2 data_std^2 + sigma^2) is the spread that isotropic Gaussian data have; for those it is exact. For a mask
    or orthonormal measurements one iteration solves the system.

    Args:
      predict_x0: `(xt, t) -> x0_hat`, `[batch, *event]`, each example alone.
      observation: y, `[batch, *measurements]`.
      operator: the linear map A.
      noise: its standard deviation, a scalar, >= 0.
      schedule: `t -> (alpha, sigma)`. Where alpha = 0 the estimate is left as it is.
      data_std: standard deviation of the data.
      iterations: of conjugate gradients; it needs no further passes of the model.

    Source: Song et al. 2023, PseudoInverse-Guided Diffusion Models, ICLR, sec. 3.

    Example:
      >>> from diffjax import schedules
      >>> schedule = schedules.cosine()
      >>> guided = pigdm(lambda x, t: schedule(t)[0] * x, jnp.array([4.0]), lambda x: x.sum(-1), noise=0.0, schedule=schedule)
      >>> print(jnp.round(guided(jnp.zeros((1, 2)), 0.99), 3))
      [[2. 2.]]
    """

    def inside(spread, t):
        alpha, sigma = schedule(t)
        square = (data_std * sigma) ** 2 / ((data_std * alpha) ** 2 + sigma**2)
        return lambda x: expand_right(square.astype(x.dtype), x) * x

    return _guided(predict_x0, observation, operator, noise, schedule, iterations, inside)


def dps(
    predict_x0: PredictX0, observation: Array, operator: Operator, *, noise: ArrayLike, schedule: Schedule
) -> PredictX0:
    """A predictor of x_0 by diffusion posterior sampling: the score of `N(y; A x0_hat(x_t), noise^2)` added, as though x0_hat were x_0.

    It overweighs y by (A C A^T + noise^2) / noise^2 as long as noise remains, so it is stiff for small `noise`: a larger one than the
    observation's own plays the part of the paper's step size.

    Args:
      predict_x0: `(xt, t) -> x0_hat`, `[batch, *event]`, each example alone.
      observation: y, `[batch, *measurements]`.
      operator: the map A, which may be nonlinear here.
      noise: standard deviation, a scalar, > 0.
      schedule: `t -> (alpha, sigma)`. Where alpha = 0 the estimate is left as it is.

    Raises:
      ValueError: noise = 0.

    Source: Chung et al. 2023, arXiv:2209.14687, sec. 3.

    Example:
      >>> from diffjax import schedules
      >>> schedule = schedules.rectified()
      >>> guided = dps(lambda x, t: x, jnp.array([1.0]), lambda x: x, noise=1.0, schedule=schedule)
      >>> print(guided(jnp.array([0.0]), 0.5))  # sigma^2 / alpha = 1/2
      [0.5]
    """
    if isinstance(noise, (int, float)) and not noise > 0:
        raise ValueError(f"expected noise > 0, got {noise=}: `pigdm` and `kalman` take exact observations")

    def predict(xt, t):
        def measured(x):
            x0_hat = predict_x0(x, t)
            return operator(x0_hat), x0_hat

        seen, pull, x0_hat = jax.vjp(measured, xt, has_aux=True)
        wide, y, std = numerics.upcast(seen, observation, noise)
        (back,) = pull(((y - wide) / (std * std)).astype(seen.dtype))
        return _moved(x0_hat, back, t, schedule)

    return predict


def _moved(x0_hat: Array, back: Array, t: ArrayLike, schedule: Schedule) -> Array:
    # x0_hat + sigma^2 / alpha times a gradient of a log-likelihood.
    clean, gradient, alpha, sigma = numerics.upcast(x0_hat, back, *schedule(t))
    return (clean + expand_right(numerics.safe_divide(sigma * sigma, alpha), clean) * gradient).astype(x0_hat.dtype)


def _guided(predict_x0, observation, operator, noise, schedule, iterations, inside) -> PredictX0:
    if iterations < 1:
        raise ValueError(f"expected at least one iteration, got {iterations=}")

    def predict(xt, t):
        x0_hat, pull = jax.vjp(lambda x: predict_x0(x, t), xt)
        clean, y, std, alpha, sigma = numerics.upcast(x0_hat, observation, noise, *schedule(t))
        transpose = jax.linear_transpose(operator, clean)
        factor = expand_right(numerics.safe_divide(sigma * sigma, alpha), clean)
        spread = lambda x: factor * pull(x.astype(x0_hat.dtype))[0].astype(clean.dtype)
        within = inside(spread, t)

        def system(w):
            return operator(within(transpose(w)[0])) + std * std * w

        weights = _conjugate_gradients(system, y - operator(clean), iterations)
        return (clean + spread(transpose(weights)[0])).astype(x0_hat.dtype)

    return predict


def _conjugate_gradients(system: Callable[[Array], Array], b: Array, iterations: int) -> Array:
    """The solution of a symmetric positive system for each example, `[batch, *measurements]`; examples may finish early."""

    def dot(p, q):
        return jnp.sum(p * q, axis=tuple(range(1, b.ndim)), keepdims=True)

    def solve(system, b):
        enough = 1e-14 * dot(b, b)  # of the squared residual: below it only rounding is left to divide by

        def step(state, _):
            x, r, p, square = state
            moved = system(p)
            length = jnp.where(square > enough, numerics.safe_divide(square, dot(p, moved)), jnp.zeros_like(square))
            x, r = x + length * p, r - length * moved
            new = dot(r, r)
            return (x, r, r + numerics.safe_divide(new, square) * p, new), None

        (x, *_), _ = jax.lax.scan(step, (jnp.zeros_like(b), b, b, dot(b, b)), None, length=iterations)
        return x

    # Derivatives solve the same system again, instead of going back through the iterations.
    return jax.lax.custom_linear_solve(system, b, solve, symmetric=True)
