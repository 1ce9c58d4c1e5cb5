"""Vectors, angles, rotations and symbols in any mixture: a network that guesses them all from all, as a distribution.

Walking a bridge towards a *sample* of p(x_0 | x_t) is exact for any number of steps, towards its mean it is not (and the mean of rotations
or symbols is none of them). So the network gives a distribution, a mixture whose components are the spaces' own noise kernels:

    p(x_0 | x_t) = sum_k w_k prod_i K_i(x_0^i; m_ki, s_ki),

with one k for all parts i, so that they are guessed together. It is taught by its exact negative log-likelihood (`log_kernel` of the
torus and of SO(3) give it), and a guess is a draw: a component, then each part from its kernel.

A `Space` is one part: its process, what the network sees of it, and what the network's numbers mean. Times are one a part, so that parts may
be at different times, or held clean (time 0) while the rest is generated.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from diffjax import numerics, schedules
from diffjax.networks import layers
from diffjax.numerics import expand_right
from diffjax.processes import Process, discrete, gaussian, joint, masked, so3, torus

Tree = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Space:
    """One part of an example, for a network.

    Attributes:
      process: its noise.
      event: shape of the part in one example.
      dtype: of its data.
      features: `(xt) -> [batch, f]`, what the network sees.
      embed: `(x) -> [batch, ...]`, a map to a flat space with chordal distances, for metrics.
      outputs: how many numbers of the network describe it, for each component.
      log_density: `(raw [batch, k, outputs], xt, t [batch], x0) -> [batch, k]`, log of each component's density at x0, in nats.
      draw: `(key, raw [batch, outputs], xt, t) -> x0`, a draw of one component.
    """

    process: Process
    event: tuple[int, ...]
    dtype: Any
    features: Callable[[Array], Array]
    embed: Callable[[Any], Any]
    outputs: int
    log_density: Callable[..., Array]
    draw: Callable[..., Array]


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
        features=lambda xt: xt,
        embed=lambda x: x,
        outputs=2 * size + len(below),
        log_density=log_density,
        draw=draw,
    )


def angles(size: int) -> Space:
    """`size` angles in [-pi, pi), under Brownian motion of standard deviation .01 to 4; components are wrapped normal.

    The network describes a component as it would be without noise, by a vector: its direction is the mean, its length r how sure. x_t
    adds a vector of its own: in a product of von Mises densities they add. A wrapped normal of deviation w counts as
    r = 1 / (2 sinh(w^2 / 2)), about 1 / w^2 for small w and the first moment for large.

    Example:
      >>> angles(2).outputs  # a direction of two numbers and the logarithm of a length, for each
      6
    """
    schedule = schedules.ve(0.01, 4.0)

    def directions(x):
        return jnp.concatenate([jnp.cos(x), jnp.sin(x)], axis=-1)

    def read(raw, xt, t):
        sigma = expand_right(schedule(t)[1], xt)
        x, y, log_length = jnp.split(raw, 3, axis=-1)
        length = jnp.exp(jnp.clip(log_length, -6.0, 6.0))
        # No surer than a tenth of the noise: what is finer is for a later step, and would drown the rest of the loss.
        most = 1 / (1e-4 + (0.1 * sigma) ** 2)
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
        features=directions,
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
        features=lambda xt: matrix(xt).reshape(xt.shape[0], 6 * size),
        embed=lambda x: so3.to_matrix(jnp.asarray(x)),
        outputs=7 * size,
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
        return _categorical(key, log_p(raw, xt)).astype(xt.dtype)

    return Space(
        process=discrete.absorbing(schedule, vocab=vocab),
        event=(size,),
        dtype=jnp.int32,
        features=lambda xt: jax.nn.one_hot(xt, vocab + 1).reshape(xt.shape[0], -1),
        embed=lambda x: jax.nn.one_hot(x, vocab),
        outputs=size * vocab,
        log_density=log_density,
        draw=draw,
    )


def _categorical(key: Array, logits: Array) -> Array:
    u = numerics.uniform(key, logits.shape)
    return jnp.argmax(logits - jnp.log(-jnp.log(jnp.maximum(u, 1e-20))), axis=-1)


# ------------------------------------------------------------------------------------------------------- all together


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture:
    """A network on a dict of spaces, as functions of its parameters.

    Attributes:
      spaces: the parts, by name.
      process: their joint.
      init: `(key) -> params`.
      loss: `(params, key, index, batch, count) -> [batch]`, nats; the batch holds `x0`, a dict.
      guess: `(params, key, xt, times) -> x0_hat`, a draw of p(x_0 | x_t).
    """

    spaces: dict[str, Space]
    process: Process
    init: Callable[[Array], Any]
    loss: Callable[..., Array]
    guess: Callable[..., Tree]


def mixture(
    spaces: dict[str, Space],
    network: Callable[[int], Any],
    *,
    components: int = 8,
    own_times: float = 0.25,
    held: float = 0.25,
) -> Mixture:
    """The `Mixture` of parts, on a network of a given number of outputs.

    Args:
      spaces: the parts, by name.
      network: `(outputs) -> Linen module` on `[batch, features]`, such as an MLP.
      components: of the mixture.
      own_times: share of training examples whose parts have a time each of their own.
      held: share of examples with one part, chosen at random, clean: for conditioning on it. None where there is one part only.
    """
    names = sorted(spaces)
    sizes = [spaces[n].outputs for n in names]
    net = network(components * (1 + sum(sizes)))
    everything = joint({n: spaces[n].process for n in names})
    if len(names) == 1:
        own_times, held = 0.0, 0.0

    def read(params, xt, times):
        seen = [spaces[n].features(xt[n]) for n in names]
        clocks = [layers.sinusoidal(times[n]) for n in names]
        batch = seen[0].shape[0]
        clocks = [jnp.broadcast_to(c, (batch, c.shape[-1])) for c in clocks]
        raw = net.apply(params, jnp.concatenate(seen + clocks, axis=-1), times[names[0]])
        weights, *rest = jnp.split(raw, _edges([components, *(components * s for s in sizes)]), axis=-1)
        parts = {n: r.reshape(batch, components, s) for n, r, s in zip(names, rest, sizes, strict=True)}
        return jax.nn.log_softmax(weights, axis=-1), parts

    def init(key):
        example = {n: jnp.zeros((1, *spaces[n].event), spaces[n].dtype) for n in names}
        seen = sum(spaces[n].features(example[n]).shape[-1] + layers.sinusoidal(jnp.zeros(1)).shape[-1] for n in names)
        return net.init(key, jnp.zeros((1, seen)), jnp.zeros(1))

    def loss(params, key, index, batch, count):
        keys = numerics.example_keys(key, index)
        for_noise, for_choice, for_times, for_part = numerics.split(keys, 4)
        shared = schedules.stratified_draw(key, index, count)
        choice, part = numerics.uniform(for_choice, index.shape), numerics.uniform(for_part, index.shape)
        own = numerics.uniform(for_times, (*index.shape, len(names)))
        times = {}
        for i, n in enumerate(names):
            t = jnp.where(choice < own_times, own[..., i], shared)
            clean = (choice > 1 - held) & (jnp.floor(part * len(names)) == i)
            times[n] = jnp.where(clean, jnp.zeros_like(t), t)
        xt = everything.corrupt(for_noise, batch["x0"], times)
        log_weights, parts = read(params, xt, times)
        each = [spaces[n].log_density(parts[n], xt[n], times[n], batch["x0"][n]) for n in names]
        # A part that is clean is known: its term would be a density at a point.
        each = [jnp.where(times[n][:, None] == 0, jnp.zeros_like(e), e) for n, e in zip(names, each, strict=True)]
        return -jax.nn.logsumexp(log_weights + sum(each), axis=-1)

    def guess(params, key, xt, times):
        if not isinstance(times, dict):
            times = dict.fromkeys(names, times)
        batch = jax.tree.leaves(xt)[0].shape[0]
        times = {n: jnp.broadcast_to(times[n], (batch,)) for n in names}
        log_weights, parts = read(params, xt, times)
        first, *rest = numerics.split(key, 1 + len(names))
        chosen = _categorical(first, log_weights)
        draws = {}
        for n, k in zip(names, rest, strict=True):
            raw = jnp.take_along_axis(parts[n], chosen[:, None, None], axis=1)[:, 0]
            x0 = spaces[n].draw(k, raw, xt[n], times[n])
            held = expand_right(times[n] == 0, x0)
            draws[n] = jnp.where(held, xt[n], x0)
        return draws

    return Mixture(spaces=spaces, process=everything, init=init, loss=loss, guess=guess)


def _edges(sizes: list[int]) -> list[int]:
    edges, at = [], 0
    for size in sizes[:-1]:
        at += size
        edges.append(at)
    return edges


def holding(mixture: Mixture, names: list[str], number: int) -> Process:
    """The joint process with the named parts held clean, for `number` examples: masks, one for each part."""
    parts = {
        n: masked(space.process, jnp.full(number, True)) if n in names else space.process
        for n, space in mixture.spaces.items()
    }
    return joint(parts)


def clocks(text: str, names: Iterable[str], times: Array) -> dict[str, Array]:
    """The times of each part in a walk, from words such as `elements=0:.5, lattice=.5:1`: this part moves in that piece of the walk.

    Before its piece a part waits at `times[0]`, after it at `times[-1]`. A part that is not named moves all the time.

    Args:
      text: `part=from:to` with shares of the walk's steps, separated by commas; "" for parts that move together.
      names: of the parts.
      times: `[steps + 1]` of a part that moves all the time.

    Raises:
      ValueError: other words, no such part, or a piece outside [0, 1] or empty.

    Example:
      >>> slow = clocks("a=0:.5", ["a", "b"], jnp.linspace(1.0, 0.0, 5))
      >>> print(slow["a"], slow["b"])
      [1.  0.5 0.  0.  0. ] [1.   0.75 0.5  0.25 0.  ]
    """
    pieces = dict.fromkeys(names, (0.0, 1.0))
    for word in filter(None, (word.strip() for word in text.split(","))):
        try:
            name, piece = word.split("=")
            start, end = (float(number) for number in piece.split(":"))
        except ValueError:
            raise ValueError(f"expected `part=from:to` such as `{next(iter(pieces))}=0:.5`, got {word!r}") from None
        if name not in pieces:
            raise ValueError(f"there is no part {name!r}; the parts are {', '.join(pieces)}")
        if not 0 <= start < end <= 1:
            raise ValueError(f"expected a piece 0 <= from < to <= 1 of the walk, got {word!r}")
        pieces[name] = (start, end)
    steps = len(times) - 1
    places = jnp.arange(steps + 1.0)
    late = lambda start, end: jnp.clip((places - start * steps) / (end - start), 0, steps)
    return {name: jnp.interp(late(*piece), places, times) for name, piece in pieces.items()}
