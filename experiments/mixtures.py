"""A network that guesses all parts of an example from all of them, as a distribution.

Walking a bridge towards a *sample* of p(x_0 | x_t) is exact for any number of steps, towards its mean it is not (and the mean of rotations
or symbols is none of them). So the network gives a distribution, a mixture whose components are products of the spaces' own laws:

    p(x_0 | x_t) = sum_k w_k prod_i p_i(x_0^i; network's numbers of component k, x_t^i),

with one k for all parts i, so that they are guessed together. It is taught by its exact negative log-likelihood, and a guess is a draw: a
component, then each part from its law.

Times are one a part: parts may be at different times, move in pieces of a walk of their own (`clocks`), or be held clean, at time 0, while
the rest is generated (`holding`).
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
from diffjax.processes import Process, joint, masked
from experiments.spaces import Space, categorical

Tree = dict[str, Any]


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
        seen = [spaces[n].features(xt[n], jnp.broadcast_to(times[n], xt[n].shape[:1])) for n in names]
        clocks = [layers.sinusoidal(times[n]) for n in names]
        batch = seen[0].shape[0]
        clocks = [jnp.broadcast_to(c, (batch, c.shape[-1])) for c in clocks]
        raw = net.apply(params, jnp.concatenate(seen + clocks, axis=-1), times[names[0]])
        weights, *rest = jnp.split(raw, _edges([components, *(components * s for s in sizes)]), axis=-1)
        parts = {n: r.reshape(batch, components, s) for n, r, s in zip(names, rest, sizes, strict=True)}
        return jax.nn.log_softmax(weights, axis=-1), parts

    def init(key):
        example = {n: jnp.zeros((1, *spaces[n].event), spaces[n].dtype) for n in names}
        seen = sum(
            spaces[n].features(example[n], jnp.ones(1)).shape[-1] + layers.sinusoidal(jnp.zeros(1)).shape[-1]
            for n in names
        )
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
        chosen = categorical(first, log_weights)
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
