"""What training remembers, and one step of it.

One step of stochastic gradient descent on a loss that draws its own noise:

    key_k    = fold_in(key, k)                                    the step's key, the same on every device
    L(w)     = 1/B sum_i loss_fn(w, key_k, i, batch_i)            the mean over the *global* batch, i the global number
    w       <- optimiser(w, dL/dw)
    w_ema   <- d w_ema + (1 - d) w                                always in float32
    k       <- k + 1

Nothing else is random and nothing else is kept, so a run is a function of `(key, state, batches)`: it may be stopped and
taken up at any step, and because a loss draws for example `i` from `fold_in(key_k, i)`, it does not depend on how the batch is
spread over devices. `make_step` writes this step for one device; `diffjax.training.parallel` runs it on many.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from diffjax import numerics

LossFn = Callable[[Any, Array, Array, Any], Array]
Decay = float | Callable[[ArrayLike], Array]


@flax.struct.dataclass
class TrainState:
    """All that training remembers: a frozen pytree (`replace` makes a changed copy).

    Attributes:
      step: int32 scalar, the number of steps taken, skipped ones included.
      params: what the loss is differentiated by.
      ema: the exponential moving average of `params`, float32 (float64 for float64 parameters).
      opt_state: the optimiser's own state.
    """

    step: Any
    params: Any
    ema: Any
    opt_state: Any


def init(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """A `TrainState` at step 0; its average starts at the parameters.

    Every leaf of the average is a new buffer, since a state that is donated may hold none of them twice.

    Args:
      params: a pytree of floating-point arrays, such as a network's variables.
      optimizer: an optax gradient transformation.

    Example:
      >>> state = init({"w": jnp.ones(2, jnp.bfloat16)}, optax.adam(1e-3))
      >>> print(state.step, state.params["w"].dtype, state.ema["w"].dtype)
      0 bfloat16 float32
    """
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(lambda p: jnp.array(p, numerics.compute_dtype(p), copy=True), params),
        opt_state=optimizer.init(params),
    )


def warm_decay(decay: float) -> Callable[[ArrayLike], Array]:
    """An averaging decay `d_k = min(decay, (1 + k) / (10 + k))` for `make_step`: short memory while training is young.

    With a constant decay d the average still holds d^k of the random start at step k (37% after 1,000 steps at .999);
    with this one the start is forgotten within the first steps and the memory grows with the run, up to 1 / (1 - decay) steps.

    Args:
      decay: the decay in the long run, in [0, 1).

    Source: `num_updates` of TensorFlow's ExponentialMovingAverage.

    Example:
      >>> print([round(float(warm_decay(0.999)(k)), 3) for k in (0, 90, 1_000_000)])
      [0.1, 0.91, 0.999]
    """
    _check_decay(decay)

    def at(step: ArrayLike) -> Array:
        k = jnp.asarray(step, jnp.float32)
        return jnp.minimum(jnp.float32(decay), (1 + k) / (10 + k))

    return at


def make_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: Decay,
    axis_name: str | None = None,
    skip_nonfinite: bool = False,
) -> Callable[[TrainState, Array, Array, Any], tuple[TrainState, dict[str, Array]]]:
    """One training step `(state, key, index, batch) -> (state, metrics)`, as one device sees it; not yet compiled.

    Args:
      loss_fn: `(params, key, index, batch) -> [batch]`, the loss of each example. `key` is the step's, the same on every
        device; `index` `[batch]` holds the global numbers of the examples: draw for each from
        `numerics.example_keys(key, index)` and no result depends on the layout.
      optimizer: an optax gradient transformation.
      ema_decay: decay of the average in [0, 1), or a function of the step such as `warm_decay(0.999)`.
      axis_name: the mapped axis over which the batch is spread (inside `pmap` or `shard_map`); `None` if this step sees the whole
        batch (plain `jit`, sharded or not).
      skip_nonfinite: `True` leaves parameters, average and optimiser as they were at a step whose loss or gradient is not
        finite; the counter moves on, so that the next step draws other noise. `False` lets it through.

    Returns:
      the step. It takes the run's key (the step's own is `fold_in(key, state.step)`), the same at every call. Its metrics
      stay on the device: `loss` (mean over the global batch), `grad_norm` (of the mean gradient, before the optimiser) and
      `nonfinite` (int32, 1 where either is not finite).

    Raises:
      ValueError: `ema_decay` out of range; while tracing, a loss that is not one number an example.

    Example:
      >>> fit = lambda params, key, index, batch: (params["w"] - batch) ** 2
      >>> optimizer = optax.sgd(0.25)
      >>> step = make_step(fit, optimizer, ema_decay=0.5)
      >>> state, metrics = step(init({"w": jnp.array(1.0)}, optimizer), jax.random.key(0), jnp.arange(2), jnp.array([3.0, 5.0]))
      >>> print(state.params["w"], state.ema["w"], metrics["loss"], metrics["grad_norm"])
      2.5 1.75 10.0 6.0
    """
    if not callable(ema_decay):
        _check_decay(ema_decay)

    def mean_loss(params: Any, key: Array, index: Array, batch: Any) -> Array:
        losses = loss_fn(params, key, index, batch)
        if jnp.shape(losses) != index.shape:
            raise ValueError(
                f"loss_fn must return one loss an example, expected shape {index.shape}, got {jnp.shape(losses)}: "
                "reduce over the event, not over the batch"
            )
        return jnp.mean(numerics.upcast(losses)[0])

    def step(state: TrainState, key: Array, index: Array, batch: Any) -> tuple[TrainState, dict[str, Array]]:
        key = numerics.fold_in(key, state.step)
        params = state.params
        if axis_name is not None:
            # shard_map sums the gradient of a parameter it knows to be replicated, pmap does not: with a copy marked as each
            # device's own, neither does, and the mean below is right under both.
            params = jax.tree.map(lambda p: jax.lax.pcast(p, axis_name, to="varying"), params)
        loss, grads = jax.value_and_grad(mean_loss)(params, key, index, batch)
        if axis_name is not None:
            loss, grads = jax.lax.pmean((loss, grads), axis_name)
        grad_norm = optax.tree.norm(jax.tree.map(lambda g: numerics.upcast(g)[0], grads))
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)

        def update(state: TrainState) -> TrainState:
            # optax is written for jax's default promotion; a program that is stricter may train all the same.
            with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
                updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            decay = ema_decay(state.step) if callable(ema_decay) else ema_decay
            ema = jax.tree.map(lambda e, p: _average(e, p, decay), state.ema, params)
            return dataclasses.replace(state, params=params, ema=ema, opt_state=opt_state)

        new = jax.lax.cond(finite, update, lambda state: state, state) if skip_nonfinite else update(state)
        new = dataclasses.replace(new, step=state.step + 1)
        return new, {"loss": loss, "grad_norm": grad_norm, "nonfinite": (~finite).astype(jnp.int32)}

    return step


def _average(average: Array, value: Array, decay: Any) -> Array:
    d = jnp.asarray(decay, average.dtype)
    return d * average + (1 - d) * value.astype(average.dtype)


def _check_decay(decay: float) -> None:
    if not 0 <= decay < 1:
        raise ValueError(f"expected an averaging decay in [0, 1), 0 for no average, got ema_decay={decay}")
