"""Wrapped Brownian motion against 40-digit sums, quadrature and autodiff.

References add up images of the start, as many as matter, in mpmath; the bridge's law is the product of two such densities.
"""

import functools
import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from diffjax import schedules
from diffjax.processes import torus

mpmath.mp.dps = 40
log_kernel, score = jax.jit(torus.log_kernel), jax.jit(torus.score)


def exact(x0, xt, sigma):
    """log p, its first two derivatives in xt and its derivative in sigma, of floating numbers taken as exact."""
    d, s = mpmath.mpf(float(xt)) - mpmath.mpf(float(x0)), mpmath.mpf(float(sigma))
    middle, reach = -int(mpmath.nint(d / (2 * mpmath.pi))), int(mpmath.ceil(2 * s)) + 3
    images = [d + 2 * mpmath.pi * k for k in range(middle - reach, middle + reach + 1)]
    nearest = min(abs(y) for y in images)
    w = [mpmath.exp((nearest**2 - y * y) / (2 * s * s)) for y in images]
    total = sum(w)
    first = sum(y * a for y, a in zip(images, w, strict=True)) / total
    second = sum(y * y * a for y, a in zip(images, w, strict=True)) / total
    log_p = -(nearest**2) / (2 * s * s) - mpmath.log(s * mpmath.sqrt(2 * mpmath.pi)) + mpmath.log(total)
    return [float(v) for v in (log_p, -first / s**2, (second - first**2) / s**4 - 1 / s**2, second / s**3 - 1 / s)]


def points(n, seed):
    """Anywhere, near the start, and within reach of the antipode, where one unit in the last place of pi matters."""
    rng = np.random.default_rng(seed)
    sigma = np.exp(rng.uniform(np.log(1e-3), np.log(20), n))
    x0, xt = rng.uniform(-np.pi, np.pi, (2, n))
    m = n // 3
    xt[:m] = x0[:m] + sigma[:m] * rng.normal(size=m)
    xt[m : 2 * m] = x0[m : 2 * m] + np.pi + sigma[m : 2 * m] ** 2 * rng.choice([0, 1e-3, 0.1, 1], m)
    x0[-8:], xt[-8:] = np.repeat([0, -np.pi / 2, -np.pi, 3.1], 2), np.repeat([-np.pi, np.pi / 2, 0, -3.1], 2)
    x0[-16:-8] = xt[-16:-8]
    return *(torus.wrap(a.astype(np.float32)) for a in (x0, xt)), jnp.asarray(sigma, jnp.float32)


def mixed(ours, truth):
    return np.max(np.abs(np.asarray(ours, np.float64) - truth) / np.maximum(1, np.abs(truth)))


@jax.jit
@jax.vmap
def all_derivatives(x0, xt, sigma):
    slope, first = jax.value_and_grad(torus.score, argnums=1)(x0, xt, sigma)
    second = jax.grad(gradient, argnums=1)(x0, xt, sigma)
    return (
        torus.log_kernel(x0, xt, sigma),
        slope,
        jax.grad(torus.log_kernel, argnums=(0, 1, 2))(x0, xt, sigma),
        first,
        second,
    )


def gradient(x0, xt, sigma):
    return jax.grad(torus.log_kernel, argnums=1)(x0, xt, sigma)


def check_kernel(n, seed):
    x0, xt, sigma = points(n, seed)
    width = np.asarray(sigma, np.float64)
    log_p, slope, bend, widening = np.array([exact(*row) for row in zip(x0, xt, sigma, strict=True)]).T
    ours, score_, gradients, by_score, by_density = all_derivatives(x0, xt, sigma)
    assert mixed(ours, log_p) < 5e-7
    assert mixed(width * np.asarray(score_), width * slope) < 2e-6
    assert mixed(-width * np.asarray(gradients[0]), width * slope) < 2e-6
    assert mixed(width * np.asarray(gradients[1]), width * slope) < 2e-6
    assert mixed(width * np.asarray(gradients[2]), width * widening) < 2e-6
    for second in (by_score, by_density):  # second derivatives
        assert mixed(width**2 * np.asarray(second), width**2 * bend) < 5e-6


def test_density_across_the_cut_and_score_at_the_antipode_have_their_digits():
    rng = np.random.default_rng(6)
    sigma = np.float32(10 ** rng.uniform(-3, -1.5, 600))
    # Near four sigma, where the density's large terms cancel, across 0 and across the cut; and a few units in the last place from the antipode.
    middle = np.where(rng.random(600) < 0.5, 0.0, np.pi)
    z = np.sqrt(-2 * np.log(sigma * math.sqrt(2 * math.pi)))
    near = middle - sigma * z * rng.random(600)
    far = np.where(np.arange(600) < 300, near + sigma * z, near + np.pi)
    x0, xt = (torus.wrap(v.astype(np.float32)) for v in (near, far))
    want = np.array([exact(*row) for row in zip(x0, xt, sigma, strict=True)])
    for density, slope in ((torus.log_kernel, torus.score), (log_kernel, score)):  # out of jit as well
        assert mixed(density(x0, xt, sigma), want[:, 0]) < 5e-7
        assert mixed(sigma * np.asarray(slope(x0, xt, sigma)), sigma * want[:, 1]) < 2e-6
    high = jnp.float32(np.pi)  # beyond pi, so that its distance from -pi is more than a turn
    bend = jax.grad(torus.score, argnums=1)(high, -high, 1.5)
    np.testing.assert_allclose(bend, exact(high, -high, 1.5)[2], rtol=1e-5)


def test_density_score_and_derivatives_against_40_digits():
    check_kernel(600, 0)


@pytest.mark.slow
def test_density_score_and_derivatives_against_40_digits_on_many_points():
    for seed in (1, 2, 3):
        check_kernel(4000, seed)


def test_second_derivatives_in_angle_and_sigma_agree_with_differences():
    with jax.enable_x64(True):
        x0, xt, sigma = (jnp.asarray(a, jnp.float64) for a in points(100, 5))
        crossed = jax.jit(jax.vmap(jax.grad(jax.grad(torus.log_kernel, argnums=2), argnums=1)))(x0, xt, sigma)
        h = 1e-6 * sigma
        difference = (score(x0, xt, sigma + h) - score(x0, xt, sigma - h)) / (2 * h)
    crossed, difference, sigma = (np.asarray(a) for a in (crossed, difference, sigma))
    assert mixed(sigma**2 * crossed, sigma**2 * difference) < 1e-6


def test_the_slope_at_the_start_and_at_the_antipode():
    slope = jax.jit(jax.grad(torus.score, argnums=1))
    np.testing.assert_allclose(slope(0.5, 0.5, 0.1), -100, rtol=1e-5)  # a Gaussian's -1 / sigma^2
    # Two images, half a turn away each: (pi^2 / v - 1) / v.
    np.testing.assert_allclose(slope(0.0, -math.pi, 1.0), math.pi**2 - 1, rtol=1e-5)


def test_density_is_one_in_mass_continuous_at_the_crossover_and_uniform_at_last():
    x = torus.wrap(
        2 * np.pi * (np.arange(2000, dtype=np.float32) / 2000)
    )  # equal weights are exact for periodic functions
    for sigma in (0.05, 0.3, 1.5, 1.7320, 1.7321, 4.0, 20.0):
        p = np.exp(np.asarray(log_kernel(jnp.full_like(x, 2.0), x, sigma), np.float64))
        np.testing.assert_allclose(p.mean() * 2 * np.pi, 1, rtol=1e-6)
    np.testing.assert_allclose(p, 1 / (2 * np.pi), rtol=1e-6)
    below, above = (log_kernel(jnp.zeros_like(x), x, s) for s in (np.float32(3**0.5) - 2e-7, np.float32(3**0.5)))
    np.testing.assert_allclose(below, above, atol=2e-6)


def test_everything_has_period_two_pi_and_is_even():
    x0, xt, sigma = points(200, 7)
    np.testing.assert_array_equal(score(-x0, -xt, sigma), -score(x0, xt, sigma))
    np.testing.assert_array_equal(log_kernel(xt, x0, sigma), log_kernel(x0, xt, sigma))
    moderate = sigma > 0.3  # a turn more costs the angle four units in the last place
    a, b = log_kernel(x0, xt + 4 * np.pi, sigma), log_kernel(x0, xt, sigma)
    np.testing.assert_allclose(a[moderate], b[moderate], rtol=1e-5, atol=1e-5)


def test_wrap_lands_in_range_leaves_what_is_there_and_has_slope_one():
    rng = np.random.default_rng(0)
    u = np.concatenate([rng.uniform(-60, 60, 4000), np.arange(-20, 21) * np.pi]).astype(np.float32)
    w = np.asarray(torus.wrap(u))
    assert (np.abs(w[:-41].astype(np.float64)) < np.pi).all()
    assert (w >= -np.pi).all()
    assert (w < np.pi).all()
    gap = np.array([float(mpmath.mpf(float(a)) - mpmath.mpf(float(b))) for a, b in zip(u, w, strict=True)])
    np.testing.assert_allclose(gap / (2 * np.pi), np.round(gap / (2 * np.pi)), atol=5e-8)
    np.testing.assert_array_equal(torus.wrap(w), w)
    np.testing.assert_array_equal(jax.jit(jax.vmap(jax.grad(torus.wrap)))(u), np.ones_like(u))
    assert torus.wrap(jnp.float32(-math.pi)) == jnp.float32(-math.pi)
    assert torus.wrap(jnp.float32(math.pi)) < 0
    for dtype in (jnp.bfloat16, jnp.float16):
        half = torus.wrap(jnp.asarray(u, dtype))
        assert half.dtype == dtype
        assert bool((jnp.abs(half.astype(jnp.float32)) < math.pi).all())


def test_float64_in_float64_out():
    with jax.enable_x64(True):
        x0, xt, sigma = (jnp.asarray(a, jnp.float64) for a in points(100, 11))
        sigma = jnp.concatenate([sigma[:-8], jnp.linspace(1.6, 1.9, 8)])
        log_p, slope, _, _ = np.array(
            [exact(*(np.float64(a) for a in row)) for row in zip(x0, xt, sigma, strict=True)]
        ).T
        assert score(x0, xt, sigma).dtype == jnp.float64
        assert mixed(log_kernel(x0, xt, sigma), log_p) < 1e-14
        assert mixed(sigma * score(x0, xt, sigma), np.asarray(sigma) * slope) < 1e-13


BINS = 64


@functools.cache
def wrapped_normal(mean, sigma, n):
    """Density on the n midpoints of a partition of [-pi, pi), by images."""
    x = (np.arange(n) + 0.5) / n * 2 * np.pi - np.pi
    k = np.arange(-math.ceil(2 * sigma) - 3, math.ceil(2 * sigma) + 4)
    return np.exp(-((x[:, None] - mean + 2 * np.pi * k) ** 2) / (2 * sigma**2)).sum(1)


def bridge_law(x0, xt, sigma_s, sigma_t):
    """The exact law of x_s in `BINS` bins, by the midpoint rule on the product of both legs' densities."""
    n = BINS * 512
    law = wrapped_normal(x0, sigma_s, n) * wrapped_normal(xt, math.sqrt(sigma_t**2 - sigma_s**2), n)
    return law.reshape(BINS, -1).sum(1) / law.sum()


@functools.partial(jax.jit, static_argnums=(0, 6))
def histogram(bridge, key, x0, xt, sigma_s, sigma_t, n):
    x = bridge(key, jnp.full(n, x0), jnp.full(n, xt), sigma_s, sigma_t)
    cell = jnp.floor((x + math.pi) * (BINS / (2 * math.pi))).astype(jnp.int32)
    return jnp.bincount(jnp.clip(cell, 0, BINS - 1), length=BINS)


ENDS = [  # x0, xt, sigma_s, sigma_t
    (1.0, -1.0, 0.5, 1.0),
    (3.0, -3.0, 0.3, 0.5),
    (0.0, 3.1, 0.8, 1.2),
    (-1.5707963, 1.5707963, 0.5, 0.8),
    (-2.0, 2.5, 1.5, 4.0),
    (0.5, 2.0, 5.0, 5.2),  # a first leg that has forgotten its start
    (0.5, 2.0, 1.0, 12.0),  # a second one that has forgotten its end
    (0.5, 2.0, 6.0, 20.0),
    (1.0, 1.0, 3.0, 7.0),
]


def check_bridge(ends, n, bridge=torus.bridge):
    for i, (x0, xt, sigma_s, sigma_t) in enumerate(ends):
        law = bridge_law(x0, xt, sigma_s, sigma_t)
        counts = np.asarray(histogram(bridge, jax.random.key(i), x0, xt, sigma_s, sigma_t, n))
        # Pearson's statistic over bins that expect 5 or more: chi-squared, so `mean + 6 standard deviations` is
        # passed by a right sampler but for 1e-6 (its right tail is heavier than a normal's) in each case.
        big = n * law > 5
        statistic = np.sum((counts[big] - n * law[big]) ** 2 / (n * law[big]))
        freedom = big.sum()
        assert statistic < freedom + 6 * math.sqrt(2 * freedom) + 6, (i, statistic, freedom)
        assert counts[~big].sum() < n * law[~big].sum() + 30, i


def test_bridge_has_the_law_of_the_two_legs():
    check_bridge(ENDS, 200_000)


@pytest.mark.slow
def test_bridge_law_in_total_variation():
    """Within 1e-3 of quadrature in 8 bins. Sampling alone leaves 4e-4 +- 1.1e-4 at 8e6 draws: a false alarm in 1e-6 of runs."""
    for i, ends in enumerate(ENDS):
        draws = [histogram(torus.bridge, jax.random.key(100 * i + j), *ends, 1_000_000) for j in range(8)]
        counts = np.sum(np.asarray(draws, np.int64), axis=0).reshape(8, -1).sum(1)
        variation = 0.5 * np.abs(counts / counts.sum() - bridge_law(*ends).reshape(8, -1).sum(1)).sum()
        assert variation < 1e-3, ends


def test_interpolated_bridge_chooses_the_winding_by_mass():
    """Its law: Brownian bridges to the images, weighted by the mass of N(x0, sigma_t^2) within pi of each."""
    for i, (x0, xt, sigma_s, sigma_t) in enumerate([(0.0, 1.5, 0.6, 1.0), (1.0, -2.8, 1.0, 2.0)]):
        k = np.arange(-4, 5)
        image = xt + 2 * np.pi * k
        normal_cdf = np.vectorize(lambda z: 0.5 * math.erfc(-z / math.sqrt(2)))
        mass = normal_cdf((image + np.pi - x0) / sigma_t) - normal_cdf((image - np.pi - x0) / sigma_t)
        share = (sigma_s / sigma_t) ** 2
        n = BINS * 512
        law = sum(
            m * wrapped_normal(x0 + share * (y - x0), sigma_s * math.sqrt(1 - share), n)
            for m, y in zip(mass, image, strict=True)
        )
        law = law.reshape(BINS, -1).sum(1) / law.sum()
        counts = np.asarray(histogram(torus.interpolated_bridge, jax.random.key(i), x0, xt, sigma_s, sigma_t, 200_000))
        big = 200_000 * law > 5
        statistic = np.sum((counts - 200_000 * law)[big] ** 2 / (200_000 * law[big]))
        assert statistic < big.sum() + 6 * math.sqrt(2 * big.sum()) + 6
        exact_law = bridge_law(x0, xt, sigma_s, sigma_t)
        assert 1e-3 < 0.5 * np.abs(law - exact_law).sum() < 0.2  # near the exact bridge, and not it


def test_bridges_meet_their_ends_and_stay_finite_where_nothing_moves():
    x0, xt, _ = points(100, 13)
    key = jax.random.key(0)
    for bridge in (jax.jit(torus.bridge), jax.jit(torus.interpolated_bridge)):
        for sigma in (1e-3, 1.0, 5.4, 9.0, 50.0):
            np.testing.assert_array_equal(bridge(key, x0, xt, sigma, sigma), xt)
            np.testing.assert_array_equal(bridge(key, x0, xt, 0.0, sigma), x0)
        np.testing.assert_array_equal(bridge(key, x0, x0, 0.0, 0.0), x0)
    total = lambda *ends: jnp.sum(torus.bridge(key, *ends))
    slopes = jax.jit(jax.grad(total, argnums=(0, 1, 2, 3)))
    for low, high in ((0.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.5, 1.0)):
        for g in slopes(x0, xt, low, high):
            assert np.isfinite(g).all()
    for function in (log_kernel, score):
        for g in jax.jit(jax.vmap(jax.grad(function, argnums=(0, 1, 2))))(x0, xt, jnp.zeros_like(x0)):
            assert np.isfinite(g).all()
        assert np.isfinite(function(x0, xt, 0.0)).all()
    assert (score(x0, xt, 0.0) == 0).all()


def test_sigma_lines_up_with_the_batch_and_keys_serve_their_example():
    x0 = jnp.asarray(np.random.default_rng(0).uniform(-3, 3, (4, 3)), jnp.float32)
    xt, sigma = -x0, jnp.array([0.1, 0.5, 2.0, 5.0])
    keys = jax.random.split(jax.random.key(1), 4)

    def both(key, a, b, s):
        return torus.score(a, b, s), torus.bridge(key, a, b, 0.5 * s, s), torus.corrupt(key, a, s)

    together, alone = jax.jit(both)(keys, x0, xt, sigma), jax.jit(both)
    for i in range(4):
        for a, b in zip(alone(keys[i], x0[i], xt[i], sigma[i]), together, strict=True):
            np.testing.assert_allclose(a, b[i], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="prefix of the data's shape"):
        torus.score(x0, xt, jnp.ones(3))
    with pytest.raises(ValueError, match="one shape"):
        torus.log_kernel(x0, xt[:2], 1.0)


def test_process_sums_over_the_event_keeps_half_precision_and_takes_another_bridge():
    schedule = schedules.ve(0.01, 5.0)
    p = torus.process(schedule)
    x0, t = jnp.ones((4, 2), jnp.bfloat16), jnp.array([0.2, 0.4, 0.6, 1.0])

    @jax.jit
    def walk(key):
        xt = p.corrupt(key, x0, t)
        wide = torus.log_kernel(x0.astype(jnp.float32), xt.astype(jnp.float32), schedule(t)[1])
        x1 = p.prior(key, jax.ShapeDtypeStruct((100_000,), jnp.float32))
        return xt, p.bridge(key, x0, xt, 0.5 * t, t), p.score(x0, xt, t), p.log_prob(x0, xt, t), wide, x1

    *half, log_p, wide, x1 = walk(jax.random.key(0))
    assert all(a.dtype == jnp.bfloat16 and a.shape == (4, 2) for a in half)
    np.testing.assert_allclose(log_p, wide.sum(1), rtol=1e-6)
    x1 = np.asarray(x1, np.float64)
    # Three Fourier coefficients of a uniform angle, 6 standard errors each.
    assert np.abs([np.cos(x1).mean(), np.sin(x1).mean(), np.cos(2 * x1).mean()]).max() < 6 * math.sqrt(0.5 / 1e5)
    assert x1.min() >= -np.pi
    assert x1.max() < np.pi

    def spy(key, a, b, low, high):
        assert low.shape == high.shape == (4, 1)
        return b

    other = torus.process(schedule, bridge=spy)
    np.testing.assert_array_equal(other.bridge(jax.random.key(0), x0, half[0], 0.5 * t, t), half[0])
