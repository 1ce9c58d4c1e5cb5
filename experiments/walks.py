"""From noise to samples: a config's `sampler` group as a program on all local devices.

    draw = walks.sampler(experiment)          (params, number, seed, label) -> samples

Solvers and spacings are menus, as in `experiments.build`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from diffjax import guidance, numerics, samplers, schedules
from diffjax.processes import gaussian, predictions
from experiments import UserError, mixtures
from experiments.configs import pick
from experiments.devices import spread

if TYPE_CHECKING:
    from experiments import build

SPACINGS = {
    "uniform": lambda schedule: schedules.uniform,
    "quadratic": lambda schedule: schedules.quadratic,
    "karras": schedules.karras_spacing,
    "logsnr": schedules.logsnr_spacing,
    "trailing": lambda schedule: schedules.trailing(),
}
SOLVERS = {
    "ancestral": lambda config: samplers.gaussian.ancestral(),
    "bridge": lambda config: None,  # samplers.bridge, through the process alone
    "ddim": lambda config: samplers.gaussian.ddim(config.eta),
    "euler": lambda config: samplers.gaussian.euler(),
    "heun": lambda config: samplers.gaussian.heun(config.churn),
    "dpmpp2": lambda config: samplers.gaussian.dpmpp(2),
    "dpmpp3": lambda config: samplers.gaussian.dpmpp(3),
    "dpmpp2_sde": lambda config: samplers.gaussian.dpmpp(2, sde=True),
    "dpmpp3_sde": lambda config: samplers.gaussian.dpmpp(3, sde=True),
    "dpmpp_2s": lambda config: samplers.gaussian.dpmpp_2s(config.eta),
    "deis2": lambda config: samplers.gaussian.deis(2),
    "deis3": lambda config: samplers.gaussian.deis(3),
    "unipc2": lambda config: samplers.gaussian.unipc(2),
    "unipc3": lambda config: samplers.gaussian.unipc(3),
    "adams3": lambda config: samplers.gaussian.adams(3),
    "plms": lambda config: samplers.gaussian.plms(),
}


def steps(config: ConfigDict, schedule: schedules.Schedule) -> tuple[Any, jax.Array]:
    """The solver and the times of a config's `sampler` group."""
    factory = pick(SOLVERS, config.name, "sampler.name")
    spacing = pick(SPACINGS, config.spacing, "sampler.spacing")(schedule)
    try:
        return factory(config), schedules.times(config.steps, start=config.start, stop=config.stop, spacing=spacing)
    except ValueError as error:
        raise UserError(f"config.sampler: {error}") from error


def sampler(
    experiment: build.Experiment, *, keep_walk: bool = False, devices: Sequence[Any] | None = None
) -> Callable[..., Any]:
    """A function `draw(params, number, *, seed, label=None, held=None)` that returns `[number, *event]`, drawn on all local devices.

    Each sample has a key of its own, `fold_in(seed, i)`, and devices work on pieces of one size (`config.sampler.chunk`): sample i is
    the same however many devices there are. It is compiled once, for any number. Where examples are dicts, so are samples, and
    `held` may be a dict of parts `[number, ...]` to hold clean while the others are drawn.

    Args:
      experiment: from `experiment`; its config's `sampler` group says how to walk.
      keep_walk: return `(samples, walk)` instead, walk `[steps + 1, number, *event]`.
      devices: to draw on; all of this process by default.
    """
    if experiment.mixture is not None:
        return _mixed_sampler(experiment, keep_walk, devices)
    config, event = experiment.config.sampler, experiment.dataset.event
    track = (lambda x0_hat, xt, t: xt) if keep_walk else None

    def one_device(params, keys, label):
        model = experiment.model(params)
        schedule, process = model.schedule, gaussian.process(model.schedule)
        solver, times = steps(config, schedule)

        def predict(xt, t, label):
            more = {"label": label} if experiment.config.conditional else {}
            return model.predict(xt, t, **more)

        guided = guidance.classifier_free(predict, label, -1, config.guidance)

        def x0_hat(xt, t):
            guess = predictions.to_x0(guided(xt, t), xt, t, kind=model.kind, schedule=schedule)
            return jnp.clip(guess, -config.clip, config.clip) if config.clip else guess

        first, rest = numerics.split(keys)
        xt = process.prior(first, jax.ShapeDtypeStruct((len(keys), *event), jnp.float32))
        if solver is None:
            end = samplers.bridge.sample(
                rest, lambda key, xt, t: x0_hat(xt, t), xt, times, process=process, track=track
            )
        else:
            end = samplers.gaussian.sample(rest, x0_hat, xt, times, schedule=schedule, solver=solver, track=track)
        if config.denoise:
            last = x0_hat(end[0] if keep_walk else end, times[-1])
            end = (last, end[1]) if keep_walk else last
        return (end[0], jnp.concatenate([end[1], end[0][None]])) if keep_walk else end

    run = spread(one_device, config.chunk, keep_walk, devices)

    def draw(params, number, *, seed, label=None):
        label = np.full(number, -1) if label is None else np.broadcast_to(label, (number,))
        return run(params, number, seed, label.astype(np.int32))

    return draw


def _mixed_sampler(experiment: build.Experiment, keep_walk: bool, devices: Sequence[Any] | None) -> Callable[..., Any]:
    """`sampler` for examples that are dicts: the bridge of their joint process, parts that are held at time 0."""
    parts, config = experiment.mixture, experiment.config.sampler
    if config.name != "bridge":
        raise UserError(
            f"{experiment.dataset.name} is sampled by its bridge alone: config.sampler.name=bridge, got {config.name!r}"
        )
    _, times = steps(config, schedules.cosine())  # the schedule of its numbers
    try:
        walks = mixtures.clocks(config.get("clocks", ""), parts.spaces, times)
    except ValueError as error:
        raise UserError(f"config.sampler.clocks: {error}") from error
    track = (lambda x0_hat, xt, t: xt) if keep_walk else None

    @functools.cache
    def program(names):
        def one_device(params, keys, held):
            process = mixtures.holding(parts, names, len(keys))
            like = {n: jnp.zeros((len(keys), *s.event), s.dtype) for n, s in parts.spaces.items()} | held
            clocks = {n: jnp.zeros_like(times) if n in names else each for n, each in walks.items()}
            first, rest = numerics.split(keys)
            end = samplers.bridge.sample(
                rest,
                functools.partial(parts.guess, params),
                process.prior(first, like),
                clocks,
                process=process,
                track=track,
            )
            if not keep_walk:
                return end
            return end[0], jax.tree.map(lambda walk, last: jnp.concatenate([walk, last[None]]), end[1], end[0])

        return spread(one_device, config.chunk, keep_walk, devices)

    def draw(params, number, *, seed, label=None, held=None):
        held = held or {}
        return program(tuple(sorted(held)))(params, number, seed, held)

    return draw
