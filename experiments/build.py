"""From a config to functions: the one place where a string picks one.

    experiment = build.experiment(config)          data, network, loss, optimiser
    layout     = build.layout(experiment)          the training step on all devices
    draw       = walks.sampler(experiment)         (params, number, seed, label) -> samples, on all local devices

Each table below is a menu. A config group such as `schedule` or `network` names its function in `name`; its other fields are
that function's arguments.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from diffjax import losses, networks, numerics, schedules, training
from diffjax.likelihood import learned_schedule, levels
from diffjax.processes import Process, predictions
from experiments import UserError, data, grounds, mixtures, walks
from experiments.configs import pick

SCHEDULES = {
    "vp_linear": schedules.vp_linear,
    "cosine": schedules.cosine,
    "rectified": schedules.rectified,
    "ve": schedules.ve,
    "karras": schedules.karras,
    "linear_logsnr": schedules.linear_logsnr,
    "learned": lambda **settings: Learned(**settings),
}
NETWORKS = {"mlp": networks.MLP, "unet": networks.UNet}
PREDICTIONS = {
    "x0": predictions.x0,
    "eps": predictions.eps,
    "v": predictions.v,
    "flow": predictions.flow,
    "score": predictions.score,
    "levels": predictions.x0,  # logits of each level a pixel can take, beside what the noisy pixel says itself; x_0 is their mean
}
GROUNDS = {"plane": lambda *args: _plane(*args), "box": lambda *args: _box(*args)}
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
LAYOUTS = {
    "jit": training.parallel.jit_step,
    "pmap": training.parallel.pmap_step,
    "shard_map": training.parallel.shard_map_step,
}


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
class Learned:
    """The settings of a schedule that is trained beside the network: its log-SNR at both ends, and its width."""

    low: float = -10.0
    high: float = 10.0
    features: int = 128

    def of(self, params: Any) -> schedules.Schedule:
        return learned_schedule.schedule(params, low=self.low, high=self.high)

    def init(self, key: jax.Array) -> Any:
        return learned_schedule.init(key, features=self.features)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A network with its parameters, and what its output means.

    Attributes:
      ground: the plane or the box.
      schedule: `t -> (alpha, sigma)`.
      predict: `(xt, t, **label) -> prediction`, of the ground's kind.
      log_levels: `(xt, t, **label) -> [*batch, *event, levels]`, log-probabilities, where the network tells levels apart.
    """

    ground: grounds.Ground
    schedule: schedules.Schedule
    predict: Callable[..., jax.Array]
    log_levels: Callable[..., jax.Array] | None = None

    @property
    def process(self) -> Process:
        """The noise of the ground on this schedule."""
        return self.ground.process(self.schedule)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """What a config describes.

    Attributes:
      config: the config.
      dataset: from `experiments.data`.
      model: `params -> Model`.
      init: `(key) -> params`.
      loss_fn: `(params, key, index, batch) -> [batch]`.
      optimizer: with clipping, warm-up and decay.
      rate: the learning rate by step.
      mixture: the network as functions of its parts, where examples are dicts; there is no `model` then.
    """

    config: ConfigDict
    dataset: data.Dataset
    model: Callable[[Any], Model] | None
    init: Callable[[jax.Array], Any]
    loss_fn: Callable[..., jax.Array]
    optimizer: optax.GradientTransformation
    rate: Callable[[Any], Any]
    mixture: mixtures.Mixture | None = None


def experiment(config: ConfigDict) -> Experiment:
    """The `Experiment` of a config.

    Raises:
      UserError: a name that is on no menu, an argument that does not fit, a data set that is not there.
    """
    schedule = _made(SCHEDULES, config.schedule, "schedule")
    network = _made(NETWORKS, config.network, "network")
    pick(LAYOUTS, config.layout, "layout")
    curve = schedule.of(schedule.init(jax.random.key(0))) if isinstance(schedule, Learned) else schedule
    ground = pick(GROUNDS, config.space, "space")
    walks.steps(config, curve)
    rate, optimizer = _optimizer(config)
    dataset = data.load(config.data)
    known = {"config": config, "dataset": dataset, "optimizer": optimizer, "rate": rate}
    if dataset.parts is not None:
        if config.space != "plane":
            raise UserError(
                f"config.space={config.space} is for one array, and {dataset.name} has parts with spaces of their own"
            )
        settings = {name: config.mixture[name] for name in ("components", "own_times", "held")}
        parts = mixtures.mixture(dataset.parts.spaces, lambda outputs: network.clone(outputs=outputs), **settings)
        loss_fn = functools.partial(parts.loss, count=config.batch_size)
        return Experiment(model=None, init=jax.jit(parts.init), loss_fn=loss_fn, mixture=parts, **known)
    if config.conditional:
        if not dataset.classes:
            raise UserError(f"config.conditional=true needs classes, and {dataset.name} has none")
        network = network.clone(num_classes=dataset.classes)
    init, model = _model(config, schedule, network, dataset, ground(config, curve, dataset))
    try:
        jax.eval_shape(init, jax.random.key(0))
    except (TypeError, ValueError) as error:
        raise UserError(f"config.network does not fit data of shape {dataset.event}: {error}") from error
    return Experiment(model=model, init=jax.jit(init), loss_fn=_loss(config, model), **known)


def _plane(config: ConfigDict, curve: schedules.Schedule, dataset: data.Dataset) -> grounds.Ground:
    return grounds.plane(pick(PREDICTIONS, config.prediction, "prediction"))


def _box(config: ConfigDict, curve: schedules.Schedule, dataset: data.Dataset) -> grounds.Ground:
    """The box, if what else the config says makes sense there."""
    wanted = {"prediction": ("score", "levels"), "loss": ("squared",), "schedule.name": ("ve", "karras")}
    for field, choices in wanted.items():
        found = functools.reduce(lambda group, name: group[name], field.split("."), config)
        if found not in choices:
            raise UserError(f"config.space=box needs config.{field}={' or '.join(choices)}, got {found!r}")
    first, last = (float(curve(t)[1]) for t in (0.0, 1.0))
    if not first > 0 or last < 2:
        ends = f"config.schedule goes from {first:g} to {last:g}"
        raise UserError(f"config.space=box needs noise from above 0 to 2 or more, where the box is full; {ends}")
    if dataset.span is None:
        raise UserError(
            f"config.space=box needs data between two bounds, as images and box2d are; {dataset.name} is not"
        )
    return grounds.box(dataset.span, walls=config.walls)


def _model(
    config: ConfigDict, schedule: Any, network: Any, dataset: data.Dataset, ground: grounds.Ground
) -> tuple[Callable[[jax.Array], Any], Callable[[Any], Model]]:
    """`(init, model)` of a network on this data: images are flat for a perceptron, and levels take an output each."""
    event, counted = dataset.event, dataset.levels if config.prediction == "levels" else 1
    if not counted:
        raise UserError(f"config.prediction=levels needs data that take a number of levels, and {dataset.name} do not")
    flat = isinstance(network, networks.MLP)
    outputs = np.prod(event).item() if flat else event[-1]
    network = network.clone(**{"outputs" if flat else "out_channels": outputs * counted})
    values = ground.enter(np.linspace(-1, 1, counted, dtype=np.float32))

    def see(x):
        return ground.features(x.reshape(*x.shape[: x.ndim - len(event)], -1)) if flat else ground.see(x)

    def init(key):
        params = network.init(key, see(jnp.zeros((1, *event))), jnp.zeros(1))
        # Two trees of parameters where there are two things to learn.
        return (
            {"network": params, "schedule": schedule.init(jax.random.fold_in(key, 1))}
            if isinstance(schedule, Learned)
            else params
        )

    def model(params):
        weights, curve = params, schedule
        if isinstance(schedule, Learned):
            weights, curve = params["network"], schedule.of(params["schedule"])

        def output(xt, t, **more):
            return network.apply(weights, see(xt), t, **more).reshape(*xt.shape, *([counted] if counted > 1 else []))

        def log_levels(xt, t, **more):
            settings = {"levels": values, "schedule": curve, "log_kernel": ground.log_kernel}
            return levels.posterior(output(xt, t, **more), xt, t, **settings)

        def predict(xt, t, **more):
            if counted == 1:
                return ground.read(output(xt, t, **more), xt, t, curve)
            return ground.from_levels(log_levels(xt, t, **more), xt, t, values, curve)

        return Model(ground=ground, schedule=curve, predict=predict, log_levels=log_levels if counted > 1 else None)

    return init, model


def _optimizer(config: ConfigDict) -> tuple[Callable[[Any], Any], optax.GradientTransformation]:
    group, peak = config.optimizer, config.learning_rate
    decay = pick(DECAYS, group.decay, "optimizer.decay")(peak, config.steps - group.warmup)
    rate = optax.join_schedules([optax.linear_schedule(0.0, peak, max(1, group.warmup)), decay], [group.warmup])
    descent = pick(OPTIMIZERS, group.name, "optimizer.name")(rate, group)
    return rate, optax.chain(optax.clip_by_global_norm(group.clip), descent) if group.clip else descent


def _loss(config: ConfigDict, model: Callable[[Any], Model]) -> Callable[..., jax.Array]:
    settings = {
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
        now = model(params)
        predict = functools.partial(now.predict, **more)
        return now.ground.loss(noise, predict, now.ground.enter(batch["x0"]), t, schedule=now.schedule, **settings)

    if config.schedule.name != "learned":
        return loss_fn

    def both(params, key, index, batch):
        loss = lambda network, schedule: loss_fn({"network": network, "schedule": schedule}, key, index, batch)
        return learned_schedule.variance_minimising(loss, params["network"], params["schedule"])

    return both


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
