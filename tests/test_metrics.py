"""Each figure against SciPy, brute force, or a case solved by hand; the estimators are unbiased; the figures see what they should."""

import doctest
import math

import jax
import numpy as np
import pytest
from scipy import linalg, stats

from experiments import data, features, metrics


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def test_energy_distance_is_the_sum_over_pairs():
    x, y = normal(0, 5, 3), normal(1, 7, 3) + 0.5
    across = np.mean([np.linalg.norm(a - b) for a in x for b in y])
    inner = [
        np.mean([np.linalg.norm(z[i] - z[j]) for i in range(len(z)) for j in range(len(z)) if i != j]) for z in (x, y)
    ]
    assert metrics.energy_distance(x, y) == pytest.approx(2 * across - sum(inner), rel=1e-12)


def test_energy_distance_of_shifted_normals_is_the_closed_form():
    # In one dimension E|N(m, 2)| = 2/sqrt(pi) e^(-m^2/4) + m erf(m/2); 40,000 pairs of points leave a deviation of about .01.
    m = 1.5
    exact = 2 * (2 / math.sqrt(math.pi) * math.exp(-(m**2) / 4) + m * math.erf(m / 2)) - 4 / math.sqrt(math.pi)
    assert metrics.energy_distance(normal(0, 4000, 1), normal(1, 4000, 1) + m) == pytest.approx(exact, abs=0.06)


def test_energy_and_kernel_estimates_average_to_zero_between_equal_laws():
    # A biased (V-statistic) energy distance would average 2 E|X - X'| / n = .18 here. z-test, false alarm 1e-4.
    for distance in (metrics.energy_distance, metrics.kernel):
        values = np.array([distance(normal(2 * i, 20, 2), normal(2 * i + 1, 20, 2)) for i in range(300)])
        assert abs(values.mean()) < 3.9 * values.std() / math.sqrt(len(values))


@pytest.mark.parametrize(("n", "m"), [(40, 40), (40, 25), (7, 100)])
def test_wasserstein_in_one_dimension_is_scipys(n, m):
    x, y = normal(0, n), 2 * normal(1, m) + 0.3
    expected = stats.wasserstein_distance(x, y)
    assert metrics.sliced_wasserstein(x, y) == pytest.approx(expected, rel=1e-9)  # every direction is +-1


def test_sliced_wasserstein_of_a_shift_is_its_mean_projection():
    # A shift by d moves every projection by |d cos a|, whose mean over directions of the plane is 2 |d| / pi.
    x = normal(0, 50, 2)
    assert metrics.sliced_wasserstein(x, x + np.array([3.0, 4.0]), directions=20_000) == pytest.approx(
        10 / math.pi, rel=0.01
    )


def test_frechet_is_the_formula_with_a_matrix_square_root():
    x, y = normal(0, 60, 4) @ normal(5, 4, 4), normal(1, 80, 4) + 1
    c, d = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    gap = x.mean(0) - y.mean(0)
    expected = gap @ gap + np.trace(c + d - 2 * np.real(linalg.sqrtm(c @ d)))
    assert metrics.frechet(x, y) == pytest.approx(expected, rel=1e-9)
    assert metrics.frechet(x, x) == pytest.approx(0, abs=1e-9)


def test_frechet_stays_real_and_finite_with_fewer_examples_than_features():
    x, y = normal(0, 5, 30), normal(1, 6, 30)
    assert 0 < metrics.frechet(x, y) < 100
    assert metrics.frechet(x, x) == pytest.approx(0, abs=1e-6)


def test_kernel_distance_is_the_sum_over_pairs():
    x, y = normal(0, 4, 3), normal(1, 5, 3)

    def k(a, b):
        return (a @ b / 3 + 1) ** 3

    inner = [np.mean([k(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j]) for z in (x, y)]
    across = np.mean([k(a, b) for a in x for b in y])
    assert metrics.kernel(x, y) == pytest.approx(1000 * (sum(inner) - 2 * across), rel=1e-9)


@pytest.mark.parametrize("dimension", [2, 30])
def test_the_nearest_neighbour_is_the_nearest_and_a_copy_is_at_zero(dimension):
    x, reference = normal(0, 300, dimension), normal(1, 500, dimension)
    x[7] = reference[400]
    brute = np.linalg.norm(x[:, None] - reference[None], axis=-1).min(1)
    found = metrics.nearest(x, reference)
    np.testing.assert_allclose(found, brute, rtol=1e-4)  # float32
    assert found[7] == 0


def test_off_manifold_counts_points_beyond_the_radius():
    # A unit grid: a point uniform in a cell is within .1 of a corner with probability pi .01 (binomial, false alarm 1e-6).
    grid = np.stack(np.meshgrid(np.arange(11.0), np.arange(11.0)), -1).reshape(-1, 2)
    points = 10 * np.random.default_rng(0).random((20_000, 2))
    expected = 1 - math.pi * 0.01
    assert metrics.off_manifold(points, grid) == pytest.approx(
        expected, abs=4.9 * math.sqrt(expected * (1 - expected) / 2e4)
    )


def test_a_copy_is_found_through_rounding_and_a_neighbour_is_not():
    levels = 17
    train = np.random.default_rng(0).integers(0, levels, (50, 8, 8, 1)) / 8 - 1
    copies = train[:3] + np.random.default_rng(1).uniform(-0.06, 0.06, train[:3].shape)
    other = train[3:5].copy()
    other[:, 0, 0] = np.where(other[:, 0, 0] < 0, 1.0, -1.0)
    assert metrics.exact_copies(np.concatenate([copies, other]), train, levels=levels) == 3


def test_baselines_have_the_marginals_and_the_covariance_they_claim():
    # Sampling deviations at 20,000 draws are below .01; bars at five of them.
    train = (normal(0, 3000, 2) @ np.array([[1.0, 0.9], [0.0, 0.3]]) + 2).astype(np.float32)
    sets = metrics.baselines(train, 20_000)
    np.testing.assert_allclose(np.cov(sets["gaussian"].T), np.cov(train.T), atol=0.06)
    assert stats.ks_2samp(sets["marginals"][:, 0], train[:, 0]).statistic < 0.04
    assert abs(np.corrcoef(sets["marginals"].T)[0, 1]) < 0.04 < abs(np.corrcoef(train.T)[0, 1])
    assert (sets["uniform"].min(0) >= train.min(0)).all()
    assert (sets["uniform"].max(0) <= train.max(0)).all()


def test_the_spirals_baselines_score_as_they_do_elsewhere():
    # Figures of another implementation, at n = 2,000: a Gaussian fit has energy distance .028 and 58% off the manifold.
    points = data.load(type("Config", (), {"name": "spiral"})())
    train, near = (data.training_sample(points, n, seed=n)["x0"] for n in (20_000, 200_000))
    sample = metrics.baselines(train, 2_000)["gaussian"]
    assert metrics.energy_distance(sample, points.test["x0"][:2000]) == pytest.approx(0.028, abs=0.006)
    assert metrics.off_manifold(sample, near) == pytest.approx(0.58, abs=0.04)
    assert metrics.off_manifold(points.test["x0"][:2000], near) < 0.002


@pytest.mark.slow
def test_the_classifier_knows_digits_sees_noise_and_is_kept(tmp_path):
    digits = data.load(type("Config", (), {"name": "digits"})())
    with jax.numpy_dtype_promotion("standard"):  # which optax is written for
        first = features.classifier(digits, tmp_path / "classifier.npz")
    assert first.accuracy > 0.96
    again = features.classifier(digits, tmp_path / "classifier.npz")  # read, not trained
    np.testing.assert_array_equal(first.features(digits.test["x0"]), again.features(digits.test["x0"]))
    real, train = digits.test["x0"], data.training_sample(digits, 500)["x0"]
    noisy = train + 0.5 * normal(0, *train.shape).astype(np.float32)  # of .3 bounded features hardly take notice: 1.6
    distance = [metrics.frechet(first.features(x), first.features(real)) for x in (train, noisy)]
    assert distance[0] < 1.5 < distance[1]
    assert metrics.coverage(first.probabilities(real)) == 1


def test_the_examples_in_the_docstrings_hold():
    assert doctest.testmod(metrics).failed == 0
