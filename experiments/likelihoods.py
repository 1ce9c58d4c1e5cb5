"""Likelihoods of held-out data under a trained model, beside training data and simple models.

Pixels of a number of levels: the continuous-time variational bound, in bits per dimension. Points in space: the density of the probability
flow, with the exact divergence, in nats; on the box also the bound on that of the reflected diffusion. The label, where there is one, stays unknown: this is p(x), not p(x | label).
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.neighbors import KernelDensity

from diffjax import likelihood, schedules
from diffjax.likelihood import levels
from diffjax.samplers import ode
from experiments import build, data, metrics

CALLS = 20_000  # of the network, an example each
PIECE = 500  # examples at a time, fewer where an example's probabilities of levels are many
HELD_AT_ONCE = 2**26  # of those numbers


def rows(experiment: build.Experiment, params: object, held: np.ndarray, seed: int = 0) -> tuple[dict, dict]:
    """`(rows, facts)`: a row of a report (less is better) with its standard error and terms as facts.

    The floor of a bound is its value on as many training examples: what is below it on held-out ones has been learned by heart.

    Args:
      experiment: what was trained.
      params: the network's.
      held: held-out examples `[n, *event]`.
      seed: of the noise.
    """
    dataset = experiment.dataset
    if dataset.levels:
        return _bound(experiment, params, held, seed)
    train = data.training_sample(dataset, 20_000)["x0"]
    return _density(experiment, params, held, train, seed) if held.ndim == 2 and held.shape[1] <= 16 else ({}, {})


def _bound(experiment: build.Experiment, params: object, held: np.ndarray, seed: int) -> tuple[dict, dict]:
    dataset, size = experiment.dataset, held[0].size
    values = np.linspace(-1, 1, dataset.levels, dtype=np.float32)
    ground, schedule = experiment.model(params).ground, experiment.model(params).schedule
    places = ground.enter(values)
    high, low = (float(schedules.logsnr(t, schedule=schedule)) for t in (0.0, 1.0))
    # Where a flat law on levels is sharp enough: their distance is five standard deviations.
    sharp = 2 * math.log(5 / (places[1] - places[0]))
    if experiment.model(params).log_levels is None:
        high = min(high, sharp)
    low, high = max(low, -12.0), min(high, sharp + 3)

    @functools.partial(jax.jit, static_argnums=4)
    def bound(params, key, x0, u, draws):
        model, x0 = experiment.model(params), ground.enter(x0)
        path = lambda u: schedules.logsnr_importance(u, schedule=model.schedule, low=low, high=high)
        start = path(jnp.zeros(()))
        decode = levels.decoder(places, schedule=model.schedule, t=start, log_kernel=ground.log_kernel)
        if model.log_levels is not None:
            decode = lambda x0, z0: levels.log_prob(
                model.log_levels(z0, jnp.broadcast_to(start, len(x0))), x0, levels=places
            )

        def one(row):
            key, shift = row
            settings = {"schedule": model.schedule, "decode": decode, "path": path}
            terms = ground.bound(key, model.predict, x0, (u + shift) % 1, **settings)
            return jnp.stack([*terms, terms.total])

        # Evenly spaced times for each example: what is left of the variance is that of the noise.
        shifts = jnp.arange(draws, dtype=jnp.float32) / draws
        return likelihood.bits_per_dim(jax.lax.map(one, (jax.random.split(key, draws), shifts)).mean(0), size)

    def measured(x0, salt):
        key, draws = jax.random.fold_in(jax.random.key(seed), salt), max(1, CALLS // len(x0))
        u = np.random.default_rng((seed, salt)).random(len(x0)).astype(np.float32)
        piece = max(1, min(PIECE, HELD_AT_ONCE // (size * len(values))))
        starts = range(0, len(x0), piece)
        terms = [bound(params, jax.random.fold_in(key, i), x0[i : i + piece], u[i : i + piece], draws) for i in starts]
        return np.concatenate(terms, axis=1)

    train = data.training_sample(dataset, 20_000)["x0"]
    terms, seen = measured(held, 0), measured(train[: len(held)], 1)
    error = float(terms[-1].std(ddof=1) / math.sqrt(len(held)))
    rows = {
        "bits_per_dim": metrics.row(
            float(terms[-1].mean()), [float(half.mean()) for half in np.array_split(seen[-1], 5)],
            {"marginals": independent_pixels(train, held, values)},
        )
    }  # fmt: skip
    names = ("reconstruction", "diffusion", "prior")
    return rows, {"bits_per_dim": {"error": error, **{n: float(x.mean()) for n, x in zip(names, terms, strict=False)}}}


def independent_pixels(train: np.ndarray, held: np.ndarray, values: np.ndarray) -> float:
    """Bits per dimension of each pixel's own histogram, one added to each count."""
    index = lambda x: np.rint((x.reshape(len(x), -1) - values[0]) / (values[1] - values[0])).astype(int)
    known = index(train)
    counts = np.ones((known.shape[1], len(values)))
    for pixel, found in enumerate(known.T):
        counts[pixel] += np.bincount(found, minlength=len(values))
    share = counts / counts.sum(-1, keepdims=True)
    return float(-np.log2(np.take_along_axis(share, index(held).T, axis=1)).mean())


def _density(
    experiment: build.Experiment, params: object, held: np.ndarray, train: np.ndarray, seed: int
) -> tuple[dict, dict]:
    key, box = jax.random.key(seed), experiment.config.space == "box"

    @jax.jit
    def log_prob(params, x0):
        model = experiment.model(params)
        # Reflected noise never ends at 0: the density is that of points with the last of it, which the bound is of too.
        stop = 0.0 if box else 1e-3
        x0 = model.process.corrupt(key, model.ground.enter(x0), jnp.zeros(())) if box else x0
        times = schedules.times(50, stop=stop, spacing=ode.equal_angles(model.schedule, sigma_data=0.1 if box else 0.5))
        return ode.log_prob(key, model.ground.flow(model.predict, model.schedule), x0, times)

    pieces = [held[i : i + PIECE] for i in range(0, len(held), PIECE)]
    values = np.concatenate([log_prob(params, piece) for piece in pieces])
    if experiment.dataset.log_prob is not None:
        truth = experiment.dataset.log_prob(held)
    else:
        # What the true law says of its own points, from a kernel estimate as fine as so many points allow.
        near = data.training_sample(experiment.dataset, 200_000, seed=1)["x0"]
        truth = KernelDensity(bandwidth=0.02, rtol=1e-3).fit(near).score_samples(held)
    floor, normal = [-float(part.mean()) for part in np.array_split(truth, 5)], _normal_log_prob(train, held)
    rows = {"nats": metrics.row(-float(values.mean()), floor, {"gaussian": -normal})}
    facts = {"nats": {"error": float(values.std(ddof=1) / math.sqrt(len(held))), "truth": -float(truth.mean())}}
    if not box:
        return rows, facts

    @jax.jit
    def bound(params, key, x0, u):
        model = experiment.model(params)
        settings = {"process": model.process, "schedule": model.schedule, "log_prior": lambda x1: jnp.zeros(len(x1))}

        def one(row):
            key, shift = row
            x = model.ground.enter(x0)
            return likelihood.density(key, model.predict, x, (u + shift) % 1, **settings).total

        draws = max(1, 10 * CALLS // len(held))
        shifts = jnp.arange(draws, dtype=jnp.float32) / draws
        return jax.lax.map(one, (jax.random.split(key, draws), shifts)).mean(0)

    u = np.random.default_rng(seed).random(len(held)).astype(np.float32)
    parts = np.array_split(np.arange(len(held)), len(pieces))
    above = np.concatenate([bound(params, jax.random.fold_in(key, i), held[p], u[p]) for i, p in enumerate(parts)])
    rows["nats_bound"] = metrics.row(float(above.mean()), floor, {"gaussian": -normal})
    # Both are of the same points: what they differ by has an error of its own.
    gap = above + values
    facts["nats_bound"] = {
        "error": float(above.std(ddof=1) / math.sqrt(len(held))),
        "above_nats": float(gap.mean()),
        "above_nats_error": float(gap.std(ddof=1) / math.sqrt(len(held))),
    }
    return rows, facts


def _normal_log_prob(train: np.ndarray, held: np.ndarray) -> float:
    mean, covariance = train.mean(0), np.cov(train.T)
    distance = np.einsum("ni,ij,nj->n", held - mean, np.linalg.inv(covariance), held - mean)
    return float(-0.5 * (distance.mean() + np.linalg.slogdet(2 * np.pi * covariance)[1]))
