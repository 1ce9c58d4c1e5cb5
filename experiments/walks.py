"""From noise to samples: a config's `sampler` group as a program on all local devices.

    draw = walks.sampler(experiment)          (params, number, seed, label) -> samples

Solvers and spacings are menus, as in `experiments.build`; the plane and the box have solvers of their own.
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
from diffjax.samplers import correctors, langevin, ode
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
# A solver is `(config) -> walk`, and `walk(key, model, predict, x0_hat, xt, times, keep)` returns the end, with `keep` also all states before it.


def _gaussian(make: Callable[[ConfigDict], Any]) -> Callable[[ConfigDict], Callable[..., Any]]:
    """A solver of `samplers.gaussian`."""

    def factory(config):
        solver = make(config)

        def walk(key, model, predict, x0_hat, xt, times, keep):
            track = (lambda x0_hat, xt, t: xt) if keep else None
            settings = {"schedule": model.schedule, "solver": solver, "track": track}
            return samplers.gaussian.sample(key, x0_hat, xt, times, **settings)

        return walk

    return factory


def _bridge(config: ConfigDict) -> Callable[..., Any]:
    """The bridge to the estimate, through the process alone."""

    def walk(key, model, predict, x0_hat, xt, times, keep):
        track = (lambda x0_hat, xt, t: xt) if keep else None
        guess = lambda key, xt, t: x0_hat(xt, t)
        return samplers.bridge.sample(key, guess, xt, times, process=model.process, track=track)

    return walk


def _flow(config: ConfigDict) -> Callable[..., Any]:
    """The probability flow, unfolded, by Runge-Kutta steps of four evaluations each."""

    def walk(key, model, predict, x0_hat, xt, times, keep):
        end = ode.sample(model.ground.flow(predict, model.schedule), xt, times, track=_state if keep else None)
        return _from_first(xt, end) if keep else end

    return walk


def _scored(step: Callable[..., correctors.Predictor], *, corrector: bool = False) -> Callable[..., Any]:
    """Steps from a score on the box, each followed, with a corrector, by a Langevin step at the level reached."""

    def factory(config):
        if not 0 <= config.noise <= 1 or config.anneal < 0:
            raise ValueError(f"expected noise in [0, 1] and anneal >= 0, got {config.noise} and {config.anneal}")

        def walk(key, model, predict, x0_hat, xt, times, keep):
            predictor = step(config, predict, model.schedule)

            def both(key, x, s, t):
                first, then = numerics.split(key)
                x, size = predictor(first, x, s, t), 2 * (config.ratio * model.schedule(s)[1]) ** 2
                move = {"step_size": size, "steps": 1, "move": langevin.reflect}
                return langevin.sample(then, lambda x: predict(x, s), x, **move)

            settings = {"steps": 0, "track": _state if keep else None}
            end = correctors.predictor_corrector(key, both if corrector else predictor, None, xt, times, **settings)
            return _from_first(xt, end) if keep else end

        return walk

    return factory


def _diffusion(move: langevin.Move) -> Callable[..., correctors.Predictor]:
    def step(config, score, schedule):
        noise = (lambda t: config.noise * t**config.anneal) if config.anneal else config.noise
        return correctors.reverse_diffusion(score, schedule=schedule, move=move, noise=noise)

    return step


def _unfolded_bridge(config: ConfigDict, score: Callable[..., Any], schedule: schedules.Schedule) -> Any:
    return correctors.reverse_bridge(score, schedule=schedule, move=langevin.reflect)


def _state(x: Any, t: Any) -> Any:
    return x


def _from_first(first: jax.Array, end: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """States before each step, from those after each step."""
    return end[0], jnp.concatenate([first[None], end[1][:-1]])


SOLVERS = {
    "plane": {
        "ancestral": _gaussian(lambda config: samplers.gaussian.ancestral()),
        "bridge": _bridge,
        "ddim": _gaussian(lambda config: samplers.gaussian.ddim(config.eta)),
        "euler": _gaussian(lambda config: samplers.gaussian.euler()),
        "heun": _gaussian(lambda config: samplers.gaussian.heun(config.churn)),
        "dpmpp2": _gaussian(lambda config: samplers.gaussian.dpmpp(2)),
        "dpmpp3": _gaussian(lambda config: samplers.gaussian.dpmpp(3)),
        "dpmpp2_sde": _gaussian(lambda config: samplers.gaussian.dpmpp(2, sde=True, corrected=True)),
        "dpmpp3_sde": _gaussian(lambda config: samplers.gaussian.dpmpp(3, sde=True)),
        "dpmpp_2s": _gaussian(lambda config: samplers.gaussian.dpmpp_2s(config.eta)),
        "deis2": _gaussian(lambda config: samplers.gaussian.deis(2)),
        "deis3": _gaussian(lambda config: samplers.gaussian.deis(3)),
        "unipc2": _gaussian(lambda config: samplers.gaussian.unipc(2)),
        "unipc3": _gaussian(lambda config: samplers.gaussian.unipc(3)),
        "adams3": _gaussian(lambda config: samplers.gaussian.adams(3)),
        "plms": _gaussian(lambda config: samplers.gaussian.plms()),
    },
    "box": {
        "reflected": _scored(_diffusion(langevin.reflect)),
        "projected": _scored(_diffusion(langevin.clip)),
        "corrected": _scored(_diffusion(langevin.reflect), corrector=True),
        "bridge": _scored(_unfolded_bridge),
        "flow": _flow,
    },
}


def steps(config: ConfigDict, schedule: schedules.Schedule) -> tuple[Callable[..., Any], jax.Array]:
    """The walk and the times of a config's `sampler` group, on the config's space."""
    group, menu = config.sampler, SOLVERS[config.space]
    if elsewhere := [space for space, others in SOLVERS.items() if group.name in others and group.name not in menu]:
        raise UserError(
            f"config.sampler.name={group.name} walks on the {elsewhere[0]}, and config.space={config.space}; choose among {', '.join(menu)}"
        )
    factory = pick(menu, group.name, "sampler.name")
    spacing = pick(SPACINGS, group.spacing, "sampler.spacing")(schedule)
    try:
        return factory(group), schedules.times(group.steps, start=group.start, stop=group.stop, spacing=spacing)
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

    def one_device(params, keys, label):
        model = experiment.model(params)
        ground, schedule = model.ground, model.schedule
        walk, times = steps(experiment.config, schedule)

        def predict(xt, t, label):
            more = {"label": label} if experiment.config.conditional else {}
            return model.predict(xt, t, **more)

        guided = guidance.classifier_free(predict, label, -1, config.guidance)

        def x0_hat(xt, t):
            guess = ground.estimate(guided, xt, t, schedule)
            return jnp.clip(guess, -config.clip, config.clip) if config.clip else guess

        first, rest = numerics.split(keys)
        xt = model.process.prior(first, jax.ShapeDtypeStruct((len(keys), *event), jnp.float32))
        found = walk(rest, model, guided, x0_hat, xt, times, keep_walk)
        end, states = found if keep_walk else (found, None)
        if config.denoise:
            end = x0_hat(end, times[-1])
        end = ground.leave(end)
        return (end, jnp.concatenate([ground.leave(states), end[None]])) if keep_walk else end

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
    _, times = steps(experiment.config, schedules.cosine())  # the schedule of its numbers
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
