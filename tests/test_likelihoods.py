"""What evaluate says of likelihoods, with models whose likelihood is known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import schedules
from diffjax.likelihood import levels
from diffjax.processes import cube, predictions
from experiments import UserError, box2d, build, configs, data, grounds, likelihoods


def with_model(name, flags, model):
    experiment = build.experiment(configs.override(configs.load(name), flags))
    return dataclasses.replace(experiment, model=lambda params: model)


GROUNDS = {
    "plane": (grounds.plane(predictions.x0), schedules.linear_logsnr(-8.0, 6.0)),
    "box": (grounds.box((-1.0, 1.0)), schedules.ve(0.02, 3.0)),
}


@pytest.mark.parametrize("space", GROUNDS)
def test_independent_pixels_have_the_bits_of_their_histograms(monkeypatch, space):
    # Logits of each pixel's own frequencies: the bound is then their cross-entropy, whatever the noise in between.
    monkeypatch.setattr(likelihoods, "CALLS", 30_000)
    (ground, schedule), values = GROUNDS[space], np.linspace(-1, 1, 17, dtype=np.float32)
    places, kernel = ground.enter(values), {"log_kernel": ground.log_kernel}
    digits = data.load(configs.load("digits").data)
    seen = data.training_sample(digits, 20_000)["x0"]
    counts = 1.0 + (np.abs(seen[..., None] - values).argmin(-1)[..., None] == np.arange(17)).sum(0)
    logits = np.log(counts / counts.sum(-1, keepdims=True)).astype(np.float32)

    def log_levels(xt, t):
        return levels.posterior(logits, xt, t, levels=places, schedule=schedule, **kernel)

    predict = lambda xt, t: ground.from_levels(log_levels(xt, t), xt, t, places, schedule)
    model = build.Model(ground=ground, schedule=schedule, predict=predict, log_levels=log_levels)
    experiment = with_model("digits", [], model)
    rows, facts = likelihoods.rows(experiment, (), digits.test["x0"][:300])
    row = rows["bits_per_dim"]
    truth = likelihoods.independent_pixels(seen, digits.test["x0"][:300], values)
    assert row["baselines"]["marginals"] == truth
    assert truth == pytest.approx(2.42, abs=0.03)  # 2.425 on all 500
    assert row["value"] == pytest.approx(truth, abs=0.02)  # 100 times an example: s.e. .004
    parts = facts["bits_per_dim"]
    assert row["value"] == pytest.approx(parts["reconstruction"] + parts["diffusion"] + parts["prior"], rel=1e-5)


def test_points_of_a_normal_law_have_its_density():
    schedule = schedules.vp_linear()
    experiment = with_model("spiral", [], None)
    train = data.training_sample(experiment.dataset, 20_000)["x0"]
    mean, (widths, axes) = train.mean(0), np.linalg.eigh(np.cov(train.T))
    mean, axes, widths = (np.float32(x) for x in (mean, axes, widths))

    def score(xt, t):
        alpha, sigma = schedule(t)
        return -((xt - alpha * mean[None]) @ axes / (alpha**2 * widths + sigma**2)[None]) @ axes.T

    model = build.Model(ground=grounds.plane(predictions.score), schedule=schedule, predict=score)
    experiment = dataclasses.replace(experiment, model=lambda params: model)
    rows, _ = likelihoods.rows(experiment, (), experiment.dataset.test["x0"][:500])
    # The flow starts from N(0, 1) where the law itself is a little off it, alpha(1) = .0066.
    assert rows["nats"]["value"] == pytest.approx(rows["nats"]["baselines"]["gaussian"], abs=5e-3)
    assert rows["nats"]["floor"][0] == pytest.approx(0.66, abs=0.15)


def box2d_score(schedule):
    """The score of box2d under noise, from its closed form."""
    centers, widths, weights = (jnp.asarray(x, jnp.float32) for x in (box2d.CENTERS, box2d.WIDTHS, box2d.WEIGHTS))

    def one(x, sigma):
        widest = jnp.hypot(widths, sigma)
        log_p = jnp.log(weights) + jax.vmap(jax.vmap(cube.log_kernel), (0, None, 0))(centers, x, widest).sum(-1)
        return jax.nn.softmax(log_p) @ jax.vmap(jax.vmap(cube.score), (0, None, 0))(centers, x, widest)

    return lambda xt, t: jax.vmap(one)(xt, jnp.broadcast_to(schedule(t)[1], xt.shape[:1]))


def test_points_of_box2d_have_its_density_by_flow_and_by_bound(monkeypatch):
    monkeypatch.setattr(likelihoods, "CALLS", 4_000)
    schedule, n = schedules.ve(0.003, 5.0), 400
    model = build.Model(ground=grounds.box((0.0, 1.0)), schedule=schedule, predict=box2d_score(schedule))
    experiment = with_model("box2d", [], model)
    rows, facts = likelihoods.rows(experiment, (), experiment.dataset.test["x0"][:n])
    # The points have moved by a tenth of the narrowest width: .01 nats at most, and they differ in a little luck.
    assert rows["nats"]["value"] == pytest.approx(facts["nats"]["truth"], abs=0.02)
    bound = facts["nats_bound"]
    assert abs(bound["above_nats"]) < 5 * bound["above_nats_error"]  # by chance once in a million
    assert bound["above_nats_error"] < 0.05


def test_levels_need_data_that_take_some():
    with pytest.raises(UserError, match="number of levels"):
        build.experiment(configs.override(configs.load("spiral"), ["--config.prediction=levels"]))
