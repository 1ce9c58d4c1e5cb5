"""Drawing on many devices so that nobody can tell from the samples how many there were."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from diffjax import numerics


def spread(
    one_device: Callable[..., Any], chunk: int, keep_walk: bool, devices: Sequence[Any] | None
) -> Callable[..., Any]:
    """`(params, number, seed, given) -> samples`: pieces of one size on every device, each example with a key of its own."""
    mesh = Mesh(np.array(devices or jax.local_devices()), ("devices",))
    rows, everywhere = P("devices"), NamedSharding(mesh, P())
    out = (rows, P(None, "devices")) if keep_walk else rows
    run = jax.jit(jax.shard_map(one_device, mesh=mesh, in_specs=(P(), rows, rows), out_specs=out, check_vma=False))
    width = chunk * mesh.size

    def draw(params, number, seed, given):
        params = jax.device_put(params, everywhere)
        # The last piece is filled up with copies, which are dropped again.
        filled = np.minimum(np.arange(number + -number % width), number - 1)
        given = jax.tree.map(lambda x: np.asarray(x)[filled], given)
        pieces = []
        for start in range(0, number, width):
            keys = numerics.example_keys(jax.random.key(seed), jnp.arange(start, start + width))
            piece = run(params, keys, jax.tree.map(lambda x, at=start: x[at : at + width], given))
            pieces.append(jax.tree.map(np.asarray, piece))
        if not keep_walk:
            return jax.tree.map(lambda *x: np.concatenate(x)[:number], *pieces)
        ends, walks = zip(*pieces, strict=True)
        return (
            jax.tree.map(lambda *x: np.concatenate(x)[:number], *ends),
            jax.tree.map(lambda *x: np.concatenate(x, 1)[:, :number], *walks),
        )

    return draw
