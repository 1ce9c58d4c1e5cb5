"""What evaluate says of likelihoods, with models whose likelihood is known."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import schedules
from diffjax.likelihood import levels
from diffjax.processes import predictions
from experiments import UserError, build, configs, data, grounds, likelihoods


def with_model(name, flags, model):
    experiment = build.experiment(configs.override(configs.load(name), flags))
    return dataclasses.replace(experiment, model=lambda params: model)


def test_independent_pixels_have_the_bits_of_their_histograms(monkeypatch):
    # Logits of each pixel's own frequencies: the bound is then their cross-entropy, whatever the noise in between.
    monkeypatch.setattr(likelihoods, "CALLS", 30_000)
    schedule, values = schedules.linear_logsnr(-8.0, 6.0), np.linspace(-1, 1, 17, dtype=np.float32)
    digits = data.load(configs.load("digits").data)
    seen = data.training_sample(digits, 20_000)["x0"]
    counts = 1.0 + (np.abs(seen[..., None] - values).argmin(-1)[..., None] == np.arange(17)).sum(0)
    logits = np.log(counts / counts.sum(-1, keepdims=True)).astype(np.float32)

    def log_levels(xt, t):
        return levels.posterior(logits, xt, t, levels=values, schedule=schedule)

    ground, predict = grounds.plane(predictions.x0), lambda xt, t: jnp.exp(log_levels(xt, t)) @ values
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


def test_levels_need_data_that_take_some():
    with pytest.raises(UserError, match="number of levels"):
        build.experiment(configs.override(configs.load("spiral"), ["--config.prediction=levels"]))
