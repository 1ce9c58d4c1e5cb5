"""One training step on many devices: under `jit` with sharded data, under `pmap`, under `shard_map`.

All three do the same arithmetic: the parameters are on every device, the batch is cut along its first axis, each device takes
the loss and gradient of its piece, and one mean over the devices joins them.

    jit_step         one program on global arrays; the compiler finds the cut from where the data lie
    pmap_step        one program a device; the state carries a leading axis of devices
    shard_map_step   one program a device, on global arrays

Each takes the same arguments and returns a `Layout`: the step under one signature, and the functions that carry states and
batches to the devices and back. So a choice of layout is a choice among three functions, and a result does not depend on it:

    make = functools.partial(make_step, loss_fn, optimizer, ema_decay=0.999)
    layout = shard_map_step(make)
    state = layout.place_state(init(params, optimizer))
    for batch in batches:
        state, metrics = layout.step(state, key, layout.place_batch(batch))
    params = layout.read_state(state).ema

With `jax.distributed` each process hands in its own part of the batch, of equal size, in the order of the processes.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from diffjax.training.state import TrainState

AXIS = "devices"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """A compiled training step and the ways to and from its devices.

    Attributes:
      step: `(state, key, batch) -> (state, metrics)`. The state is donated: use the one that is returned. `key` is the run's
        key, the same at every call and in every process. Metrics are scalars (`[inner_steps]` with inner steps), and stay on
        the devices until they are looked at.
      place_state: a `TrainState` anywhere -> a copy on all devices, safe to donate.
      place_batch: a pytree of arrays `[batch, ...]` (`[inner_steps, batch, ...]` with inner steps), this process' part
        of the global batch -> the same data on the devices.
      read_state: a placed state -> a copy on one device, which outlives the donation of its source.
      devices: the devices, in the order of the batch.
    """

    step: Callable[[TrainState, Array, Any], tuple[TrainState, dict[str, Array]]]
    place_state: Callable[[TrainState], TrainState]
    place_batch: Callable[[Any], Any]
    read_state: Callable[[TrainState], TrainState]
    devices: tuple[Any, ...]


def jit_step(
    make_step: Callable[..., Callable],
    *,
    devices: Sequence[Any] | None = None,
    inner_steps: int = 1,
    unroll: bool | int | None = None,
) -> Layout:
    """A `Layout` under `jax.jit`: global arrays, the batch sharded over the devices, the state replicated.

    Args:
      make_step: `(axis_name=...) -> step`, such as `functools.partial(make_step, loss_fn, optimizer, ema_decay=0.999)`.
      devices: the devices to use; all of them by default.
      inner_steps: steps taken in one call, over a leading axis of the batch; saves the way back to Python between them.
      unroll: as in `jax.lax.scan`, for the inner steps. By default they are unrolled on a CPU, where the gradient of a
        convolution inside a loop is tens of times slower, and looped elsewhere, where compiling stays short.

    Raises:
      ValueError: `inner_steps` is not positive; while placing, a batch that the devices do not divide.

    Example:
      >>> import functools, optax
      >>> from diffjax import training
      >>> fit = lambda params, key, index, batch: (params - batch) ** 2
      >>> make = functools.partial(training.make_step, fit, optax.sgd(0.25), ema_decay=0.9)
      >>> layout = jit_step(make, devices=jax.devices()[:1])
      >>> state = layout.place_state(training.init(jnp.array(1.0), optax.sgd(0.25)))
      >>> for _ in range(3):
      ...     state, metrics = layout.step(state, jax.random.key(0), layout.place_batch(np.full(8, 5.0)))
      >>> print(layout.read_state(state).params, metrics["loss"])
      4.5 1.0
    """
    mesh = _mesh(devices)
    run = _inner(make_step(axis_name=None), inner_steps, _unroll(unroll, mesh))

    def step(state, key, batch):
        # Told where the numbers lie, the compiler makes each device draw the noise of its own examples.
        index = jax.lax.with_sharding_constraint(jnp.arange(_size(batch, inner_steps)), NamedSharding(mesh, P(AXIS)))
        return run(state, key, index, batch)

    return _global_layout(step, mesh, inner_steps)


def shard_map_step(
    make_step: Callable[..., Callable],
    *,
    devices: Sequence[Any] | None = None,
    inner_steps: int = 1,
    unroll: bool | int | None = None,
) -> Layout:
    """A `Layout` under `jax.shard_map`: global arrays as for `jit_step`, the program written for one device.

    Arguments as in `jit_step`.
    """
    mesh = _mesh(devices)
    run = _inner(make_step(axis_name=AXIS), inner_steps, _unroll(unroll, mesh))
    mapped = jax.shard_map(
        lambda state, key, batch: run(state, key, _numbers(batch, inner_steps), batch),
        mesh=mesh,
        in_specs=(P(), P(), _rows(inner_steps)),
        out_specs=P(),
        # The step's mean over the devices makes the outputs equal. The checker would ask as much of every loop inside a
        # user's loss (a carry that starts as a constant), which the other two layouts do not.
        check_vma=False,
    )
    return _global_layout(mapped, mesh, inner_steps)


def pmap_step(
    make_step: Callable[..., Callable],
    *,
    devices: Sequence[Any] | None = None,
    inner_steps: int = 1,
    unroll: bool | int | None = None,
) -> Layout:
    """A `Layout` under `jax.pmap`: the state and the batch carry a leading axis of this process' devices.

    Arguments as in `jit_step`.
    """
    mesh = _mesh(devices)
    local = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
    here = Mesh(np.array(local), (AXIS,))
    run = _inner(make_step(axis_name=AXIS), inner_steps, _unroll(unroll, mesh))
    axis = int(inner_steps > 1)
    step = jax.pmap(
        lambda state, key, batch: run(state, key, _numbers(batch, inner_steps), batch),
        axis_name=AXIS,
        in_axes=(0, None, axis),
        out_axes=(0, None),
        devices=list(mesh.devices.flat),
        donate_argnums=0,
    )

    def place_state(state):
        stacked = jax.tree.map(lambda x: x[None], _here(state))
        return _copies(stacked, local, NamedSharding(here, P(AXIS)), lead=len(local))

    def place_batch(batch):
        _check_batch(batch, inner_steps, len(local))

        def cut(x):
            shape = (*x.shape[:axis], len(local), x.shape[axis] // len(local), *x.shape[axis + 1 :])
            return jax.device_put(x.reshape(shape), NamedSharding(here, _rows(inner_steps)))

        return jax.tree.map(cut, batch)

    def read_state(state):
        # x[0] would be a gather over all the devices.
        return jax.tree.map(lambda x: jnp.squeeze(x.addressable_shards[0].data, 0).copy(), state)

    return Layout(
        step=step,
        place_state=place_state,
        place_batch=place_batch,
        read_state=read_state,
        devices=tuple(mesh.devices.flat),
    )


def _global_layout(step: Callable, mesh: Mesh, inner_steps: int) -> Layout:
    local = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
    everywhere, rows = NamedSharding(mesh, P()), NamedSharding(mesh, _rows(inner_steps))
    # Told the places, jit moves a key that lies on one device; a state or batch that is not placed is moved too.
    compiled = jax.jit(step, in_shardings=(everywhere, everywhere, rows), out_shardings=everywhere, donate_argnums=0)

    def place_batch(batch):
        _check_batch(batch, inner_steps, len(local))
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(rows, x), batch)

    return Layout(
        step=compiled,
        place_state=lambda state: _copies(_here(state), local, everywhere),
        place_batch=place_batch,
        read_state=lambda state: jax.tree.map(lambda x: x.addressable_shards[0].data.copy(), state),
        devices=tuple(mesh.devices.flat),
    )


def _mesh(devices: Sequence[Any] | None) -> Mesh:
    # Sorted by process, so that the rows a process hands in are neighbours in the global batch.
    chosen = sorted(jax.devices() if devices is None else devices, key=lambda d: (d.process_index, d.id))
    return Mesh(np.array(chosen), (AXIS,))


def _rows(inner_steps: int) -> P:
    return P(AXIS) if inner_steps == 1 else P(None, AXIS)


def _unroll(unroll: bool | int | None, mesh: Mesh) -> bool | int:
    return mesh.devices.flat[0].platform == "cpu" if unroll is None else unroll


def _inner(step: Callable, inner_steps: int, unroll: bool | int) -> Callable:
    if inner_steps < 1:
        raise ValueError(f"expected a positive number of inner steps, got {inner_steps=}")
    if inner_steps == 1:
        return step

    def steps(state, key, index, batches):
        return jax.lax.scan(lambda s, b: step(s, key, index, b), state, batches, unroll=unroll)

    return steps


def _size(batch: Any, inner_steps: int) -> int:
    return jax.tree.leaves(batch)[0].shape[int(inner_steps > 1)]


def _numbers(batch: Any, inner_steps: int) -> Array:
    """The global numbers of this device's examples."""
    size = _size(batch, inner_steps)
    return jax.lax.axis_index(AXIS) * size + jnp.arange(size)


def _check_batch(batch: Any, inner_steps: int, devices: int) -> None:
    lead = {np.shape(x)[: 1 + int(inner_steps > 1)] for x in jax.tree.leaves(batch)}
    wanted = "[batch, ...]" if inner_steps == 1 else f"[{inner_steps}, batch, ...]"
    if len(lead) != 1 or len(shape := lead.pop()) != 1 + int(inner_steps > 1) or shape[:-1] not in ((), (inner_steps,)):
        raise ValueError(
            f"expected a batch of arrays {wanted} of one size, got shapes {[np.shape(x) for x in jax.tree.leaves(batch)]}"
        )
    if shape[-1] % devices:
        raise ValueError(
            f"expected a batch that {devices} devices divide, got {shape[-1]} examples: change the batch size"
        )


def _here(state: Any) -> Any:
    """The state with what is spread over several processes read from this one (it is the same on each)."""
    return jax.tree.map(
        lambda x: x.addressable_shards[0].data if isinstance(x, jax.Array) and not x.is_fully_addressable else x, state
    )


def _copies(tree: Any, devices: Sequence[Any], sharding: NamedSharding, lead: int | None = None) -> Any:
    """Global arrays with a fresh copy of each leaf on each device; `lead` is the size of axis 0 where the copies are stacked."""
    pieces = [jax.device_put(tree, d, may_alias=False) for d in devices]

    def gather(*shards):
        shape = shards[0].shape if lead is None else (lead, *shards[0].shape[1:])
        return jax.make_array_from_single_device_arrays(shape, sharding, list(shards))

    return jax.tree.map(gather, *pieces)
