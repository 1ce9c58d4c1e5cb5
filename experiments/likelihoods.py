"""Likelihoods of held-out data under a trained model, beside training data and simple models.

Pixels of a number of levels: the continuous-time variational bound, in bits per dimension. Points in space: the density of the probability
flow, with the exact divergence, in nats. The label, where there is one, stays unknown: this is p(x), not p(x | label).
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
PIECE = 500  # examples at a time


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
    schedule = experiment.model(params).schedule
    high, low = (float(schedules.logsnr(t, schedule=schedule)) for t in (0.0, 1.0))
    # Where a flat law on levels is sharp enough: their distance is five standard deviations.
    sharp = 2 * math.log(5 / (values[1] - values[0]))
    if experiment.model(params).log_levels is None:
        high = min(high, sharp)
    low, high = max(low, -12.0), min(high, sharp + 3)

    @functools.partial(jax.jit, static_argnums=4)
    def bound(params, key, x0, u, draws):
        model = experiment.model(params)
        path = lambda u: schedules.logsnr_importance(u, schedule=model.schedule, low=low, high=high)
        start = path(jnp.zeros(()))
        decode = levels.decoder(values, schedule=model.schedule, t=start)
        if model.log_levels is not None:
            decode = lambda x0, z0: levels.log_prob(
                model.log_levels(z0, jnp.broadcast_to(start, len(x0))), x0, levels=values
            )

        def one(row):
            key, shift = row
            terms = likelihood.continuous(
                key, model.predict, x0, (u + shift) % 1, schedule=model.schedule, decode=decode, kind=model.kind, path=path
            )  # fmt: skip
            return jnp.stack([*terms, terms.total])

        # Evenly spaced times for each example: what is left of the variance is that of the noise.
        shifts = jnp.arange(draws, dtype=jnp.float32) / draws
        return likelihood.bits_per_dim(jax.lax.map(one, (jax.random.split(key, draws), shifts)).mean(0), size)

    def measured(x0, salt):
        key, draws = jax.random.fold_in(jax.random.key(seed), salt), max(1, CALLS // len(x0))
        u = np.random.default_rng((seed, salt)).random(len(x0)).astype(np.float32)
        starts = range(0, len(x0), PIECE)
        terms = [bound(params, jax.random.fold_in(key, i), x0[i : i + PIECE], u[i : i + PIECE], draws) for i in starts]
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
    index = lambda x: np.abs(x.reshape(len(x), -1, 1) - values).argmin(-1)
    counts = (index(train)[..., None] == np.arange(len(values))).sum(0) + 1
    share = counts / counts.sum(-1, keepdims=True)
    return float(-np.log2(np.take_along_axis(share, index(held).T, axis=1)).mean())


def _density(
    experiment: build.Experiment, params: object, held: np.ndarray, train: np.ndarray, seed: int
) -> tuple[dict, dict]:
    @jax.jit
    def log_prob(params, x0):
        model = experiment.model(params)
        flow = ode.gaussian(model.predict, schedule=model.schedule, kind=model.kind)
        times = schedules.times(50, stop=1e-3, spacing=ode.equal_angles(model.schedule))
        return ode.log_prob(jax.random.key(seed), flow, x0, times)

    values = np.concatenate([log_prob(params, held[i : i + PIECE]) for i in range(0, len(held), PIECE)])
    normal = _normal_log_prob(train, held)
    # What the true law says of its own points, from a kernel estimate as fine as so many points allow.
    near = data.training_sample(experiment.dataset, 200_000, seed=1)["x0"]
    truth = KernelDensity(bandwidth=0.02, rtol=1e-3).fit(near).score_samples(held)
    row = metrics.row(
        -float(values.mean()), [-float(part.mean()) for part in np.array_split(truth, 5)], {"gaussian": -normal}
    )
    return {"nats": row}, {"nats": {"error": float(values.std(ddof=1) / math.sqrt(len(held)))}}


def _normal_log_prob(train: np.ndarray, held: np.ndarray) -> float:
    mean, covariance = train.mean(0), np.cov(train.T)
    distance = np.einsum("ni,ij,nj->n", held - mean, np.linalg.inv(covariance), held - mean)
    return float(-0.5 * (distance.mean() + np.linalg.slogdet(2 * np.pi * covariance)[1]))
