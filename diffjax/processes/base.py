"""What a process is, and the two ways of making one from others.

A process is a noising law q(x_t | x_0), t from 0 (data) to 1 (noise), together with its *bridge*
q(x_s | x_0, x_t), s <= t: where the path may have been at s, given both its ends. That pair is all a sampler needs:

    x_t ~ corrupt(x_0, t)             teach a network to guess x_0 from x_t
    x_s ~ bridge(guess(x_t), x_t)     walk from x_1 ~ prior to x_0

Where a density or a score is known too, score-based samplers, likelihoods and correctors come for free.

`joint` runs a pytree of processes side by side with one time (or a tree of times); `masked` holds some entries clean.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from diffjax import numerics

_ALTERNATIVES = {
    "bridge": "use a sampler that needs only `score`, such as samplers.langevin or samplers.ode",
    "log_prob": "use the variational bounds of diffjax.likelihood, which need only the bridge",
    "score": "use samplers.bridge.sample, which needs only the bridge and a guess of x_0",
    "posterior_logits": "draw x_0 from its logits and use `bridge`: only processes on symbols marginalise x_0 out",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Process:
    """A noising process and its bridge: a frozen record of pure functions.

    The shape of `t` is the batch (`x.shape == t.shape + event`; a scalar serves all). A capability that does not exist is `None`;
    `require` turns that into an error that names the alternative.

    It is deliberately *not* a pytree: `jax.tree.map` over a dict of processes treats each as a leaf. To `jit` it is a
    constant, compared by identity, so a record that is rebuilt is a new function and retraces: build it once, outside
    the step. To learn a schedule, build the record from the parameters *inside* the loss, where they are traced anyway.

    Attributes:
      prior: `(key, like) -> x1`, a draw of q(x_1), of the shape and dtype of `like` (an array or a `jax.ShapeDtypeStruct`).
      corrupt: `(key, x0, t) -> xt`, a draw of q(x_t | x_0), of the shape and dtype of `x0`.
      bridge: `(key, x0, xt, s, t) -> xs`, a draw of q(x_s | x_0, x_t) for s <= t.
      log_prob: `(x0, xt, t) -> [*batch]`, log q(x_t | x_0) in nats, summed over the event.
      score: `(x0, xt, t) -> tangent`, the gradient of `log_prob` in x_t.
      posterior_logits: `(logits_x0, xt, s, t) -> logits_xs`, symbols only: the bridge with x_0 marginalised out.
    """

    prior: Callable[[Array, Any], Any]
    corrupt: Callable[[Array, Any, Any], Any]
    bridge: Callable[[Array, Any, Any, Any, Any], Any] | None = None
    log_prob: Callable[[Any, Any, Any], Array] | None = None
    score: Callable[[Any, Any, Any], Any] | None = None
    posterior_logits: Callable[[Any, Any, Any, Any], Any] | None = None


def require(process: Process, capability: str) -> Callable[..., Any]:
    """The named capability of a process.

    Raises:
      ValueError: the process does not have it; the message says what to use instead.

    Example:
      >>> from diffjax import schedules
      >>> from diffjax.processes import gaussian
      >>> require(gaussian.process(schedules.cosine()), "posterior_logits")
      Traceback (most recent call last):
      ...
      ValueError: this process has no `posterior_logits`: draw x_0 from its logits and use `bridge`: only processes on symbols marginalise x_0 out
    """
    function = getattr(process, capability)
    if function is None:
        raise ValueError(f"this process has no `{capability}`: {_ALTERNATIVES[capability]}")
    return function


def joint(processes: Any) -> Process:
    """The process of a pytree of independent processes, on data of the same tree.

    `q(x_t | x_0) = prod_i q_i(x_t^i | x_0^i)`: noise falls on each part alone; what ties the parts together is the network
    that guesses them all from all. A joint of one process is that process.

    Args:
      processes: a pytree (dict, tuple, nested) whose leaves are `Process`. Data have the same structure. Times are one
        for all, or a tree of the same structure: each part then has its own clock.

    Returns:
      a `Process` on trees. It has those capabilities that every part has; `log_prob` is the sum of the parts'.

    Raises:
      ValueError: the tree is empty, or data arrive in another structure.

    Example:
      SE(3) is a joint of a position and a rotation; here a plane and a line:

      >>> from diffjax import schedules
      >>> from diffjax.processes import gaussian
      >>> plane_and_line = joint({"a": gaussian.process(schedules.cosine()), "b": gaussian.process(schedules.rectified())})
      >>> x0 = {"a": jnp.ones((3, 2)), "b": jnp.ones((3, 1))}
      >>> plane_and_line.corrupt(jax.random.key(0), x0, jnp.full(3, 0.5))["b"].shape
      (3, 1)
    """
    leaves, treedef = jax.tree.flatten(processes)
    if not leaves or not all(isinstance(p, Process) for p in leaves):
        raise ValueError(f"expected a pytree whose leaves are diffjax Process records, got {treedef}")

    def parts(tree: Any, what: str) -> list[Any]:
        try:
            return treedef.flatten_up_to(tree)
        except ValueError as error:
            raise ValueError(
                f"expected {what} in the structure of the processes, {treedef}, got {jax.tree.structure(tree)}"
            ) from error

    def clocks(t: Any) -> list[Any]:
        return treedef.flatten_up_to(t) if treedef != _LEAF and jax.tree.structure(t) == treedef else [t] * len(leaves)

    def keys(key: Array) -> list[Array]:
        return [key] if len(leaves) == 1 else list(numerics.split(key, len(leaves)))

    def has(capability: str) -> bool:
        return all(getattr(p, capability) is not None for p in leaves)

    def prior(key, like):
        return treedef.unflatten(
            [p.prior(k, a) for p, k, a in zip(leaves, keys(key), parts(like, "`like`"), strict=True)]
        )

    def corrupt(key, x0, t):
        return treedef.unflatten(
            [p.corrupt(k, a, u) for p, k, a, u in zip(leaves, keys(key), parts(x0, "x0"), clocks(t), strict=True)]
        )

    def bridge(key, x0, xt, s, t):
        rows = zip(leaves, keys(key), parts(x0, "x0"), parts(xt, "xt"), clocks(s), clocks(t), strict=True)
        return treedef.unflatten([require(p, "bridge")(k, a, b, u, v) for p, k, a, b, u, v in rows])

    def log_prob(x0, xt, t):
        rows = zip(leaves, parts(x0, "x0"), parts(xt, "xt"), clocks(t), strict=True)
        return functools.reduce(jnp.add, [require(p, "log_prob")(a, b, u) for p, a, b, u in rows])

    def score(x0, xt, t):
        rows = zip(leaves, parts(x0, "x0"), parts(xt, "xt"), clocks(t), strict=True)
        return treedef.unflatten([require(p, "score")(a, b, u) for p, a, b, u in rows])

    def posterior_logits(logits_x0, xt, s, t):
        rows = zip(leaves, parts(logits_x0, "logits_x0"), parts(xt, "xt"), clocks(s), clocks(t), strict=True)
        return treedef.unflatten([require(p, "posterior_logits")(a, b, u, v) for p, a, b, u, v in rows])

    return Process(
        prior=prior,
        corrupt=corrupt,
        bridge=bridge if has("bridge") else None,
        log_prob=log_prob if has("log_prob") else None,
        score=score if has("score") else None,
        posterior_logits=posterior_logits if has("posterior_logits") else None,
    )


_LEAF = jax.tree.structure(0)


def masked(process: Process, frozen: Any) -> Process:
    """The process with some entries held clean, for conditioning and inpainting of parts that are known.

    A frozen entry is never noised, never moved by the bridge, has score 0 and adds nothing to `log_prob`.

    Args:
      process: any process whose entries are independent. In a joint, mask the part: `joint({"a": masked(p, frozen), "b": q})`.
      frozen: bool, True = stays clean; aligned with the data from the left (`[batch]` freezes whole examples,
        `[batch, sites]` sites; `[1, sites]` the same sites everywhere). It may be traced, so one compiled function
        serves changing masks.

    Returns:
      a `Process`. Its `prior` takes the clean values from `like`, which must be an array then; its `bridge` keeps the
      frozen entries of `xt` and ignores the guess there; its `posterior_logits` are certain of them.

    Raises:
      TypeError: `frozen` is not of bool type; `prior` is given a `ShapeDtypeStruct`.

    Example:
      >>> from diffjax import schedules
      >>> from diffjax.processes import gaussian
      >>> half = masked(gaussian.process(schedules.cosine()), jnp.array([[True, False]]))
      >>> xt = half.corrupt(jax.random.key(0), jnp.ones((3, 2)), jnp.full(3, 0.5))
      >>> print(xt[:, 0], bool((xt[:, 1] != 1).all()))
      [1. 1. 1.] True
    """
    frozen = jnp.asarray(frozen)
    if frozen.dtype != jnp.bool_:
        raise TypeError(f"expected a bool array (True = stays clean), got {frozen.dtype=}")

    def keep(clean, moved):
        return jax.tree.map(lambda a, b: jnp.where(numerics.expand_right(frozen, b), a, b), clean, moved)

    def prior(key, like):
        if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(like)):
            raise TypeError(
                "a masked prior needs the clean values: pass `like` as an array that holds them, not a ShapeDtypeStruct"
            )
        return keep(like, process.prior(key, like))

    def corrupt(key, x0, t):
        return keep(x0, process.corrupt(key, x0, t))

    def bridge(key, x0, xt, s, t):
        return keep(xt, require(process, "bridge")(key, x0, xt, s, t))

    def log_prob(x0, xt, t):
        # The density of each entry alone: its own time makes each entry an example of its own.
        lead = jax.tree.leaves(xt)[0].shape[: max(frozen.ndim, jnp.ndim(t))]
        each = jnp.broadcast_to(numerics.expand_right(t, jax.ShapeDtypeStruct(lead, frozen.dtype)), lead)
        values = require(process, "log_prob")(x0, xt, each)
        return numerics.sum_event(jnp.where(numerics.expand_right(frozen, values), jnp.zeros_like(values), values), t)

    def score(x0, xt, t):
        value = require(process, "score")(x0, xt, t)
        return keep(jax.tree.map(jnp.zeros_like, value), value)

    def posterior_logits(logits_x0, xt, s, t):
        logits = require(process, "posterior_logits")(logits_x0, xt, s, t)
        return keep(jnp.log(jax.nn.one_hot(xt, logits.shape[-1], dtype=logits.dtype)), logits)

    return Process(
        prior=prior,
        corrupt=corrupt,
        bridge=bridge if process.bridge is not None else None,
        log_prob=log_prob if process.log_prob is not None else None,
        score=score if process.score is not None else None,
        posterior_logits=posterior_logits if process.posterior_logits is not None else None,
    )
