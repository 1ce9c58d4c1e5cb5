"""The program on reflected diffusion: its exact scores and its truth by quadrature, and that it runs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import reflected

SIDE = 800
MIDDLE = (np.arange(SIDE) + 0.5) / SIDE


@pytest.mark.parametrize("label", [0, -1])
def test_the_plain_denoiser_is_the_mean_under_gaussian_noise(label):
    # By quadrature on the square, at points inside and outside, from much noise to little.
    rng, mass = np.random.default_rng(0), np.exp(reflected.log_density(label, MIDDLE))
    times = np.array([1.0, 0.9, 0.5, 0.1, 0.03])
    alpha, sigma = (np.asarray(v, np.float64)[:, None] for v in reflected.PLAIN(jnp.float32(times)))
    z = np.float32(alpha * rng.uniform(-1, 1, (5, 2)) + 1.5 * sigma * rng.normal(size=(5, 2)))
    got = jax.jit(reflected.plain_denoiser)(jnp.asarray(z), jnp.float32(times), jnp.full(5, label))
    u = 2 * MIDDLE - 1
    logs = -0.5 * ((z[..., None] - alpha[..., None] * u) / sigma[..., None]) ** 2
    noise = np.exp(logs - logs.max(-1, keepdims=True))
    weight = mass[None] * noise[:, 0, :, None] * noise[:, 1, None, :]
    weight /= weight.sum((1, 2), keepdims=True)
    expected = np.stack([(weight.sum(2) * u).sum(1), (weight.sum(1) * u).sum(1)], 1)
    np.testing.assert_allclose(got, expected, atol=2e-4)


def test_the_reflected_score_is_the_slope_of_the_density():
    # At sigma_min = .01 on widths of .1 the noisy density is the clean one to 1%.
    log_p = reflected.log_density(0, MIDDLE)
    x = np.stack([MIDDLE[[80, 400, 1]], MIDDLE[[300, 700, 600]]], 1)
    got = reflected.reflected_score(jnp.asarray(x, jnp.float32), jnp.float32(0.0), jnp.zeros(3, int))
    slopes = np.stack(np.gradient(log_p, 1 / SIDE), -1)[[80, 400, 1], [300, 700, 600]]
    np.testing.assert_allclose(got, slopes, rtol=0.03, atol=0.05)


def test_the_tilted_law_is_its_formula_and_its_draws_follow_it():
    mass = reflected.tilted(2.5, 100)
    middle = (np.arange(100) + 0.5) / 100
    p, everything = (np.exp(reflected.log_density(label, middle)) for label in (0, -1))
    np.testing.assert_allclose(mass * (p**3.5 / everything**2.5).sum(), p**3.5 / everything**2.5, rtol=1e-4)
    x = reflected.draws(mass, 20_000, 0)
    counts, _ = np.histogram(x[:, 0], 10, (0, 1))
    expected = 20_000 * mass.sum(1).reshape(10, 10).sum(1)
    assert (
        ((counts - expected) ** 2 / (expected + 5)).sum()
    ) < 35  # chi-square of 9 degrees: 1 seed in 10,000 and less
    walls = reflected.tilted(2.5)
    assert abs(reflected.at_walls(reflected.draws(walls, 50_000, 1)) - reflected.truly_at_walls(walls)) < 0.002


@pytest.mark.slow
def test_the_program_draws_and_reports(tmp_path, capsys):
    reflected.main(["--quick", "--out", str(tmp_path)])
    report = json.loads((tmp_path / "report.json").read_text())["figures"]
    assert set(report) == {"truth", *reflected.METHODS}
    assert {f.name for f in tmp_path.glob("*.png")} == {"kernel.png", "walk.png", "guidance.png"}
    figures = np.array(
        [[row[w][name] for w in row for name in ("walls", "energy", "sliced")] for row in report.values()]
    )
    assert np.isfinite(figures).all()
    # Without guidance every walk meets its class; thresholded and reflected ones alike (the class and all classes are 150 apart).
    assert max(report[name]["0.0"]["energy"][0] for name in report) < 0.02
    assert "w = 15" in capsys.readouterr().out
