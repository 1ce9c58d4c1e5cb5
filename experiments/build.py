"""From a config to functions: the one place where a string picks one.

    experiment = build.experiment(config)          data, network, loss, optimiser
    layout     = build.layout(experiment)          the training step on all devices
    draw       = build.sampler(experiment)         (params, number, seed, label) -> samples, on all local devices

Each table below is a menu. A config group such as `schedule` or `network` names its function in `name`; its other fields are
that function's arguments.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from diffjax import guidance, losses, networks, numerics, samplers, schedules, training
from diffjax.processes import gaussian, predictions
from experiments import UserError, data, spaces
from experiments.configs import suggest
from experiments.devices import spread

SCHEDULES = {
    "vp_linear": schedules.vp_linear,
    "cosine": schedules.cosine,
    "rectified": schedules.rectified,
    "ve": schedules.ve,
    "karras": schedules.karras,
}
NETWORKS = {"mlp": networks.MLP, "unet": networks.UNet}
PREDICTIONS = {
    "x0": predictions.x0,
    "eps": predictions.eps,
    "v": predictions.v,
    "flow": predictions.flow,
    "score": predictions.score,
}
LOSSES = {"squared": losses.squared, "absolute": losses.absolute}
WEIGHTINGS = {
    "uniform": None,  # 1 in the space of the prediction
    "snr": losses.snr,
    "truncated_snr": losses.truncated_snr,
    "min_snr": losses.min_snr(),
    "sigmoid": losses.sigmoid(),
    "edm": losses.edm(),
    "likelihood": losses.likelihood,
}
TIMES = {
    "stratified": schedules.stratified_draw,
    "uniform": schedules.uniform_draw,
    "logit_normal": lambda *args: schedules.logit_normal(schedules.stratified_draw(*args)),
}
OPTIMIZERS = {
    "adam": lambda rate, config: optax.adam(rate),
    "adamw": lambda rate, config: optax.adamw(rate, weight_decay=config.weight_decay),
    "sgd": lambda rate, config: optax.sgd(rate),
}
DECAYS = {
    "cosine": lambda rate, steps: optax.cosine_decay_schedule(rate, max(1, steps)),
    "constant": lambda rate, steps: optax.constant_schedule(rate),
}
SPACINGS = {
    "uniform": lambda schedule: schedules.uniform,
    "quadratic": lambda schedule: schedules.quadratic,
    "karras": schedules.karras_spacing,
    "logsnr": schedules.logsnr_spacing,
}
SOLVERS = {
    "ancestral": lambda config: samplers.gaussian.ancestral(),
    "ddim": lambda config: samplers.gaussian.ddim(config.eta),
    "bridge": lambda config: None,  # samplers.bridge, through the process alone
}
LAYOUTS = {
    "jit": training.parallel.jit_step,
    "pmap": training.parallel.pmap_step,
    "shard_map": training.parallel.shard_map_step,
}


def pick(menu: dict[str, Any], name: str, field: str) -> Any:
    """The entry of a menu; a `UserError` that lists them when there is none of that name."""
    if name not in menu:
        raise UserError(f"config.{field} has no choice {name!r}{suggest(name, menu)}; choose among {', '.join(menu)}")
    return menu[name]


def _made(menu: dict[str, Any], group: ConfigDict, field: str) -> Any:
    factory = pick(menu, group.name, f"{field}.name")
    arguments = {name: value for name, value in group.items() if name != "name"}
    try:
        if "dtype" in arguments:
            arguments["dtype"] = jnp.dtype(arguments["dtype"])
        return factory(**arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"config.{field} does not fit {group.name}: {error}") from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """What a config describes.

    Attributes:
      config: the config.
      dataset: from `experiments.data`.
      schedule: `t -> (alpha, sigma)`.
      apply: `(params, xt, t, label) -> prediction`.
      init: `(key) -> params`.
      loss_fn: `(params, key, index, batch) -> [batch]`.
      optimizer: with clipping, warm-up and decay.
      rate: the learning rate by step.
      mixture: the network as functions of its parts, where examples are dicts; `apply` is not used then.
    """

    config: ConfigDict
    dataset: data.Dataset
    schedule: schedules.Schedule
    apply: Callable[..., jax.Array]
    init: Callable[[jax.Array], Any]
    loss_fn: Callable[..., jax.Array]
    optimizer: optax.GradientTransformation
    rate: Callable[[Any], Any]
    mixture: spaces.Mixture | None = None


def experiment(config: ConfigDict) -> Experiment:
    """The `Experiment` of a config.

    Raises:
      UserError: a name that is on no menu, an argument that does not fit, a data set that is not there.
    """
    schedule = _made(SCHEDULES, config.schedule, "schedule")
    network = _made(NETWORKS, config.network, "network")
    pick(LAYOUTS, config.layout, "layout")
    _steps(config.sampler, schedule)
    rate, optimizer = _optimizer(config)
    dataset = data.load(config.data)
    if dataset.parts is not None:
        settings = {name: config.mixture[name] for name in ("components", "own_times", "held")}
        parts = spaces.mixture(dataset.parts.spaces, lambda outputs: network.clone(outputs=outputs), **settings)
        return Experiment(
            config=config,
            dataset=dataset,
            schedule=schedule,
            apply=parts.guess,
            init=jax.jit(parts.init),
            loss_fn=functools.partial(parts.loss, count=config.batch_size),
            optimizer=optimizer,
            rate=rate,
            mixture=parts,
        )
    if config.conditional:
        if not dataset.classes:
            raise UserError(f"config.conditional=true needs classes, and {dataset.name} has none")
        network = network.clone(num_classes=dataset.classes)
    example = jnp.zeros((1, *dataset.event))
    try:
        jax.eval_shape(network.init, jax.random.key(0), example, jnp.zeros(1))
    except (TypeError, ValueError) as error:
        raise UserError(f"config.network does not fit data of shape {dataset.event}: {error}") from error
    return Experiment(
        config=config,
        dataset=dataset,
        schedule=schedule,
        apply=network.apply,
        init=jax.jit(lambda key: network.init(key, example, jnp.zeros(1))),
        loss_fn=_loss(config, schedule, network),
        optimizer=optimizer,
        rate=rate,
    )


def _optimizer(config: ConfigDict) -> tuple[Callable[[Any], Any], optax.GradientTransformation]:
    group, peak = config.optimizer, config.learning_rate
    decay = pick(DECAYS, group.decay, "optimizer.decay")(peak, config.steps - group.warmup)
    rate = optax.join_schedules([optax.linear_schedule(0.0, peak, max(1, group.warmup)), decay], [group.warmup])
    descent = pick(OPTIMIZERS, group.name, "optimizer.name")(rate, group)
    return rate, optax.chain(optax.clip_by_global_norm(group.clip), descent) if group.clip else descent


def _loss(config: ConfigDict, schedule: schedules.Schedule, network: Any) -> Callable[..., jax.Array]:
    settings = {
        "schedule": schedule,
        "kind": pick(PREDICTIONS, config.prediction, "prediction"),
        "error": pick(LOSSES, config.loss, "loss"),
        "weighting": pick(WEIGHTINGS, config.weighting, "weighting"),
    }
    draw_times = pick(TIMES, config.times, "times")
    dropout = config.network.get("dropout", 0.0) > 0

    def loss_fn(params, key, index, batch):
        noise, hide, drop = numerics.split(numerics.example_keys(key, index), 3)
        t = draw_times(key, index, config.batch_size)
        more = {"dropout_key": drop} if dropout else {}
        if config.conditional:
            hidden = numerics.uniform(hide, index.shape) < config.drop_label
            more["label"] = jnp.where(hidden, -1, batch["label"])
        return losses.regression(noise, lambda xt, t: network.apply(params, xt, t, **more), batch["x0"], t, **settings)

    return loss_fn


def _steps(config: ConfigDict, schedule: schedules.Schedule) -> tuple[Any, jax.Array]:
    """The solver and the times of a config's `sampler` group."""
    factory = pick(SOLVERS, config.name, "sampler.name")
    spacing = pick(SPACINGS, config.spacing, "sampler.spacing")(schedule)
    try:
        return factory(config), schedules.times(config.steps, start=config.start, stop=config.stop, spacing=spacing)
    except ValueError as error:
        raise UserError(f"config.sampler: {error}") from error


def layout(experiment: Experiment) -> training.parallel.Layout:
    """The training step on all devices, as the config's `layout` says. A step that is not finite changes nothing but the counter."""
    config = experiment.config
    if config.batch_size % jax.device_count():
        raise UserError(f"config.batch_size={config.batch_size} does not divide among {jax.device_count()} devices")
    make = functools.partial(
        training.make_step,
        experiment.loss_fn,
        experiment.optimizer,
        ema_decay=training.warm_decay(config.ema_decay),
        skip_nonfinite=True,
    )
    return LAYOUTS[config.layout](make)


def sampler(
    experiment: Experiment, *, keep_walk: bool = False, devices: Sequence[Any] | None = None
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
    config, schedule, event = experiment.config.sampler, experiment.schedule, experiment.dataset.event
    kind = PREDICTIONS[experiment.config.prediction]
    solver, times = _steps(config, schedule)
    process = gaussian.process(schedule)
    track = (lambda x0_hat, xt, t: xt) if keep_walk else None

    def one_device(params, keys, label):
        def predict(xt, t, label):
            more = {"label": label} if experiment.config.conditional else {}
            return experiment.apply(params, xt, t, **more)

        guided = guidance.classifier_free(predict, label, -1, config.guidance)

        def x0_hat(xt, t):
            guess = predictions.to_x0(guided(xt, t), xt, t, kind=kind, schedule=schedule)
            return jnp.clip(guess, -config.clip, config.clip) if config.clip else guess

        first, rest = numerics.split(keys)
        xt = process.prior(first, jax.ShapeDtypeStruct((len(keys), *event), jnp.float32))
        if solver is None:
            end = samplers.bridge.sample(
                rest, lambda key, xt, t: x0_hat(xt, t), xt, times, process=process, track=track
            )
        else:
            end = samplers.gaussian.sample(rest, x0_hat, xt, times, schedule=schedule, solver=solver, track=track)
        return (end[0], jnp.concatenate([end[1], end[0][None]])) if keep_walk else end

    run = spread(one_device, config.chunk, keep_walk, devices)

    def draw(params, number, *, seed, label=None):
        label = np.full(number, -1) if label is None else np.broadcast_to(label, (number,))
        return run(params, number, seed, label.astype(np.int32))

    return draw


def _mixed_sampler(experiment: Experiment, keep_walk: bool, devices: Sequence[Any] | None) -> Callable[..., Any]:
    """`sampler` for examples that are dicts: the bridge of their joint process, parts that are held at time 0."""
    parts, config = experiment.mixture, experiment.config.sampler
    if config.name != "bridge":
        raise UserError(
            f"{experiment.dataset.name} is sampled by its bridge alone: config.sampler.name=bridge, got {config.name!r}"
        )
    _, times = _steps(config, experiment.schedule)
    try:
        walks = spaces.clocks(config.get("clocks", ""), parts.spaces, times)
    except ValueError as error:
        raise UserError(f"config.sampler.clocks: {error}") from error
    track = (lambda x0_hat, xt, t: xt) if keep_walk else None

    @functools.cache
    def program(names):
        def one_device(params, keys, held):
            process = spaces.holding(parts, names, len(keys))
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
