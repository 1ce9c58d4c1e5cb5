"""Vectors, angles, rotations, shares and symbols as parts of an example, for a network that guesses them all (`experiments.mixtures`).

A `Space` is one part: its process, what the network sees of it, and what the network's numbers mean. They describe components of a mixture,
each a law of x_0 given x_t with a density and a draw.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from diffjax import numerics, schedules
from diffjax.numerics import expand_right
from diffjax.processes import Process, cube, discrete, gaussian, simplex, so3, torus
from diffjax.processes.base import require

Tree = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Space:
    """One part of an example, for a network.

    Attributes:
      process: its noise.
      event: shape of the part in one example.
      dtype: of its data.
      features: `(xt, t) -> [batch, f]`, what the network sees.
      embed: `(x) -> [batch, ...]`, a map to a flat space with chordal distances, for metrics.
      outputs: how many numbers of the network describe it, for each component.
      log_density: `(raw [batch, k, outputs], xt, t [batch], x0) -> [batch, k]`, log of each component's density at x0, in nats.
      draw: `(key, raw [batch, outputs], xt, t) -> x0`, a draw of one component.
    """

    process: Process
    event: tuple[int, ...]
    dtype: Any
    features: Callable[[Array, Array], Array]
    embed: Callable[[Any], Any]
    outputs: int
    log_density: Callable[..., Array]
    draw: Callable[..., Array]


def _from_nothing(unit: float, most: float) -> schedules.Schedule:
    """Noise that grows like `schedules.ve` above `unit`, and in proportion to t below, from none at all: a walk then ends on its guess."""
    growth = math.log1p(most / unit)

    def schedule(t):
        (t,) = numerics.upcast(t)
        return jnp.ones_like(t), unit * jnp.expm1(growth * t)

    return schedule


def _width(raw: Array, scale: Array) -> Array:
    # Of the order of what is unknown at this time, a fifteenth of it to twice; the floor keeps the density bounded.
    return scale * jnp.exp(jnp.clip(raw, -2.7, 0.7)) + 1e-3


def vector(size: int) -> Space:
    """`size` real numbers of about unit variance, under the cosine schedule; components are normal, of any covariance.

    The network describes a component as it would be without noise, N(m, P^-1) with P = U D U' (U unit lower triangular); Bayes' rule adds
    what x_t = alpha x_0 + sigma eps tells:

        x_0 ~ N(M^-1 (alpha x_t + sigma^2 P m), sigma^2 M^-1),    M = alpha^2 + sigma^2 P.

    So a law that is normal needs constants only, however narrow it is beside the noise.

    Example:
      >>> vector(3).outputs  # a mean, three precisions, three more below the diagonal
      9
    """
    schedule = schedules.cosine()
    below, after = jnp.tril_indices(size, -1)

    def read(raw, xt, t):
        alpha, sigma = (expand_right(v, xt) for v in schedule(t))
        mean, log_scale, lower = jnp.split(raw, [size, 2 * size], axis=-1)
        unit = jnp.broadcast_to(jnp.eye(size), (*mean.shape, size)).at[..., below, after].set(lower)
        root = unit * jnp.exp(jnp.clip(log_scale, -3.0, 3.5))[..., None, :]
        precision = root @ jnp.swapaxes(root, -1, -2)
        matrix = alpha[..., None] ** 2 * jnp.eye(size) + sigma[..., None] ** 2 * precision
        factor = jnp.linalg.cholesky(matrix)
        known = alpha * xt + sigma**2 * (precision @ mean[..., None])[..., 0]
        # Standard deviations sigma times the inverse factor; the floor keeps the density bounded.
        return jax.scipy.linalg.cho_solve((factor, True), known[..., None])[..., 0], factor / (sigma + 1e-3)[..., None]

    def log_density(raw, xt, t, x0):
        mean, factor = jax.vmap(read, in_axes=(1, None, None), out_axes=1)(raw, xt, t)
        z = jnp.swapaxes(factor, -1, -2) @ (x0[:, None] - mean)[..., None]
        scale = jnp.log(jnp.diagonal(factor, axis1=-2, axis2=-1))
        return jnp.sum(scale - 0.5 * jnp.square(z[..., 0]) - 0.5 * jnp.log(2 * jnp.pi), axis=-1)

    def draw(key, raw, xt, t):
        mean, factor = read(raw, xt, t)
        noise = numerics.normal(key, xt.shape)[..., None]
        return mean + jax.scipy.linalg.solve_triangular(factor, noise, trans=1, lower=True)[..., 0]

    return Space(
        process=gaussian.process(schedule),
        event=(size,),
        dtype=jnp.float32,
        features=lambda xt, t: xt,
        embed=lambda x: x,
        outputs=2 * size + len(below),
        log_density=log_density,
        draw=draw,
    )


def angles(size: int) -> Space:
    """`size` angles in [-pi, pi), under Brownian motion of standard deviation .002 to 4; components are wrapped normal.

    The network describes a component as it would be without noise, by a vector: its direction is the mean, its length r how sure. x_t
    adds a vector of its own: in a product of von Mises densities they add. A wrapped normal of deviation w counts as
    r = 1 / (2 sinh(w^2 / 2)), about 1 / w^2 for small w and the first moment for large.

    Example:
      >>> angles(2).outputs  # a direction of two numbers and the logarithm of a length, for each
      6
    """
    schedule = schedules.ve(0.002, 4.0)

    def directions(x):
        return jnp.concatenate([jnp.cos(x), jnp.sin(x)], axis=-1)

    def read(raw, xt, t):
        sigma = expand_right(schedule(t)[1], xt)
        x, y, log_length = jnp.split(raw, 3, axis=-1)
        length = jnp.exp(jnp.clip(log_length, -6.0, 10.0))
        # No surer than a tenth of the noise: what is finer is for a later step, and would drown the rest of the loss.
        most = 1 / (4e-6 + (0.1 * sigma) ** 2)
        length = length / jnp.sqrt(1 + (x**2 + y**2) * (length / most) ** 2)
        seen = 0.5 / jnp.sinh(0.5 * sigma**2)
        x, y = seen * jnp.cos(xt) + length * x, seen * jnp.sin(xt) + length * y
        width = jnp.sqrt(2 * jnp.arcsinh(0.5 / jnp.sqrt(x**2 + y**2 + 1e-6)))
        return jnp.arctan2(y, x), width

    def log_density(raw, xt, t, x0):
        mean, width = jax.vmap(read, in_axes=(1, None, None), out_axes=1)(raw, xt, t)
        return jnp.sum(torus.log_kernel(mean, jnp.broadcast_to(x0[:, None], mean.shape), width), axis=-1)

    def draw(key, raw, xt, t):
        mean, width = read(raw, xt, t)
        return torus.corrupt(key, mean, width)

    return Space(
        process=torus.process(schedule),
        event=(size,),
        dtype=jnp.float32,
        features=lambda xt, t: directions(xt),
        embed=directions,
        outputs=3 * size,
        log_density=log_density,
        draw=draw,
    )


def rotations(size: int) -> Space:
    """`size` rotations as unit quaternions, under Brownian motion of standard deviation .01 to 3; components are heat kernels.

    Example:
      >>> rotations(2).event
      (2, 4)
    """
    schedule = schedules.ve(0.01, 3.0)

    def matrix(q):  # the first two axes of the body: continuous, and the same for q and -q
        return jnp.swapaxes(so3.to_matrix(q)[..., :, :2], -1, -2).reshape(*q.shape[:-1], 6)

    def read(raw, xt, t):
        sigma = expand_right(schedule(t)[1], xt)
        raw = raw.reshape(*raw.shape[:-1], size, 7)
        mean = so3.from_six(matrix(xt) / sigma + raw[..., :6])
        return mean, _width(raw[..., 6], jnp.minimum(sigma, 1.0)[..., 0])

    def log_density(raw, xt, t, x0):
        mean, width = jax.vmap(read, in_axes=(1, None, None), out_axes=1)(raw, xt, t)
        return jnp.sum(so3.log_kernel(mean, jnp.broadcast_to(x0[:, None], mean.shape), width), axis=-1)

    def draw(key, raw, xt, t):
        mean, width = read(raw, xt, t)
        return so3.corrupt(key, mean, width)

    return Space(
        process=so3.process(schedule),
        event=(size, 4),
        dtype=jnp.float32,
        features=lambda xt, t: matrix(xt).reshape(xt.shape[0], 6 * size),
        embed=lambda x: so3.to_matrix(jnp.asarray(x)),
        outputs=7 * size,
        log_density=log_density,
        draw=draw,
    )


def shares(size: int) -> Space:
    """A probability vector of `size` entries under reflected noise of standard deviation up to 3; components are kernels of the box.

    In the coordinates of the box, where density is that of the simplex up to a constant. The network describes a component as it would be without noise,
    by a center and a width; x_t adds its own as a normal law does to another, which is Bayes' rule away from the walls, and close to it elsewhere.

    Example:
      >>> shares(4).outputs  # a center and a width in each of three coordinates
      6
    """
    schedule = _from_nothing(0.01, 3.0)

    def read(raw, ut, t):
        center, log_width = jnp.split(raw, 2, axis=-1)
        precise, seen = jnp.exp(-2 * jnp.clip(log_width, -4.0, 0.7)), 1 / (expand_right(schedule(t)[1], ut) ** 2 + 1e-8)
        mean = (precise * jax.nn.sigmoid(center) + seen * ut) / (precise + seen)
        return mean, 1 / jnp.sqrt(precise + seen) + 1e-3

    def log_density(raw, xt, t, x0):
        mean, width = jax.vmap(read, in_axes=(1, None, None), out_axes=1)(raw, simplex.to_cube(xt), t)
        u0 = jnp.broadcast_to(simplex.to_cube(x0)[:, None], mean.shape)
        return jnp.sum(cube.log_kernel(mean, u0, width), axis=-1) + math.lgamma(size)

    def draw(key, raw, xt, t):
        mean, width = read(raw, simplex.to_cube(xt), t)
        return simplex.from_cube(cube.corrupt(key, mean, width))

    return Space(
        process=simplex.process(schedule),
        event=(size,),
        dtype=jnp.float32,
        features=lambda xt, t: jnp.concatenate([xt, 2 * simplex.to_cube(xt) - 1], axis=-1),
        embed=lambda x: x,
        outputs=2 * (size - 1),
        log_density=log_density,
        draw=draw,
    )


def corners(size: int, vocab: int) -> Space:
    """`size` symbols 0..vocab-1 as corners of a simplex each, under reflected noise inside it; components are categorical over corners.

    The network's logits are those of the symbols without noise; each corner's own density at x_t completes them to the exact posterior. It sees
    that posterior for a flat prior.

    Example:
      >>> corners(5, vocab=4).event
      (5, 4)
    """
    process = simplex.process(_from_nothing(0.01, 3.0))
    log_kernel, eye = require(process, "log_prob"), jnp.eye(vocab)

    def log_p(raw, xt, t):
        shape = (*xt.shape[:-1], vocab, vocab)  # from every corner to every point
        there = jnp.broadcast_to(xt[..., None, :], shape)
        told = log_kernel(jnp.broadcast_to(eye, shape), there, jnp.broadcast_to(expand_right(t, xt), shape[:-1]))
        return jax.nn.log_softmax(raw.reshape(*raw.shape[:-1], size, vocab) + told, axis=-1)

    def log_density(raw, xt, t, x0):
        log = jax.vmap(log_p, in_axes=(1, None, None), out_axes=1)(raw, xt, t)
        return jnp.sum(jnp.take_along_axis(log, jnp.argmax(x0, -1)[:, None, :, None], axis=-1), axis=(-1, -2))

    def draw(key, raw, xt, t):
        return jax.nn.one_hot(categorical(key, log_p(raw, xt, t)), vocab, dtype=xt.dtype)

    return Space(
        process=process,
        event=(size, vocab),
        dtype=jnp.float32,
        features=lambda xt, t: jnp.exp(log_p(jnp.zeros((1, size * vocab)), xt, t)).reshape(xt.shape[0], -1),
        embed=lambda x: x,
        outputs=size * vocab,
        log_density=log_density,
        draw=draw,
    )


def symbols(size: int, vocab: int) -> Space:
    """`size` symbols 0..vocab-1 that are masked one by one (the mask is `vocab`); components are categorical.

    Example:
      >>> symbols(5, vocab=56).outputs
      280
    """
    schedule = schedules.rectified()

    def log_p(raw, xt):
        logits = raw.reshape(*raw.shape[:-1], size, vocab)
        # A symbol that is there was never masked: it is known.
        known = 40.0 * jax.nn.one_hot(xt, vocab)
        return jax.nn.log_softmax(logits + known, axis=-1)

    def log_density(raw, xt, t, x0):
        log = jax.vmap(log_p, in_axes=(1, None), out_axes=1)(raw, xt)
        index = jnp.broadcast_to(x0[:, None, :, None], (*log.shape[:-1], 1))
        return jnp.sum(jnp.take_along_axis(log, index, axis=-1)[..., 0], axis=-1)

    def draw(key, raw, xt, t):
        return categorical(key, log_p(raw, xt)).astype(xt.dtype)

    return Space(
        process=discrete.absorbing(schedule, vocab=vocab),
        event=(size,),
        dtype=jnp.int32,
        features=lambda xt, t: jax.nn.one_hot(xt, vocab + 1).reshape(xt.shape[0], -1),
        embed=lambda x: jax.nn.one_hot(x, vocab),
        outputs=size * vocab,
        log_density=log_density,
        draw=draw,
    )


def categorical(key: Array, logits: Array) -> Array:
    """A draw of a symbol along the last axis, with probabilities `softmax(logits)`."""
    u = numerics.uniform(key, logits.shape)
    return jnp.argmax(logits - jnp.log(-jnp.log(jnp.maximum(u, 1e-20))), axis=-1)
