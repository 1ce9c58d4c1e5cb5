"""The box against 50-digit sums, quadrature and counting."""

import math
import time

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

from diffjax import numerics, schedules
from diffjax.processes import cube, cube_kernel

SCHEDULE = schedules.ve(0.01, 3.0)

# -------------------------------------------------------------------------------------------------------- references


def log_density(x0, xt, s):
    """The sum of images (sigma < 1) or of harmonics, in mpmath's precision; smooth beyond the walls too."""
    if s < 1:
        cells = range(-int(12 * s) - 3, int(12 * s) + 4)
        far = [2 * k + e * x0 - xt for k in cells for e in (1, -1)]
        near = min(abs(u) for u in far)
        weights = mp.fsum(mp.exp((near - abs(u)) * (near + abs(u)) / (2 * s * s)) for u in far)
        return mp.log(weights) - near * near / (2 * s * s) - mp.log(s * mp.sqrt(2 * mp.pi))
    waves = (mp.exp(-((n * mp.pi * s) ** 2) / 2) * mp.cos(n * mp.pi * xt) * mp.cos(n * mp.pi * x0) for n in range(1, 8))
    return mp.log(1 + 2 * mp.fsum(waves))


def truth(x0, xt, s):
    """log p and its derivatives (xt, x0, s, xt xt, xt x0, xt s, s s) by differences, which 60 digits can bear."""
    with mp.workdps(60):
        at = [mp.mpf(float(v)) for v in (x0, xt, s)]
        h = at[2] * mp.mpf("1e-12")
        f = lambda *d: log_density(*(a + u * h for a, u in zip(at, d, strict=True)))
        center, x, y, z = f(0, 0, 0), (0, 1, 0), (1, 0, 0), (0, 0, 1)

        def first(d):
            return (f(*d) - f(*(-u for u in d))) / (2 * h)

        def second(d):
            return (f(*d) - 2 * center + f(*(-u for u in d))) / h**2

        def mixed(d, e):
            both, apart = [u + v for u, v in zip(d, e, strict=True)], [u - v for u, v in zip(d, e, strict=True)]
            return (second(both) - second(apart)) / 4

        return [
            float(v) for v in (center, first(x), first(y), first(z), second(x), mixed(x, y), mixed(x, z), second(z))
        ]


ORDER = np.array([0, 1, 1, 1, 2, 2, 2, 2])  # powers of sigma that make each free of units


def points(n, seed):
    """Pairs anywhere, near one another, at walls, in corners, in far tails; sigma from 1e-4 to 10, often near the border."""
    rng = np.random.default_rng(seed)

    def coordinate():
        small, kind = 10 ** rng.uniform(-8, -1, n), rng.integers(0, 6, n)
        return np.choose(kind, [np.zeros(n), np.ones(n), small, 1 - small, rng.random(n), rng.random(n)])

    s = np.where(rng.random(n) < 0.4, rng.uniform(0.25, 0.6, n), 10 ** rng.uniform(-4, 1, n))
    x0, xt = coordinate(), coordinate()
    xt = np.where(rng.random(n) < 0.3, np.clip(x0 + 2 * s * rng.normal(size=n), 0, 1), xt)
    return [v.astype(np.float32) for v in (x0, xt, s)]


def all_derivatives(x0, xt, s):
    one = jnp.ones_like(xt)

    def slopes(x0, xt, s):
        value, pull = jax.vjp(cube.log_kernel, x0, xt, s)
        d0, dt, ds = pull(one)
        return value, dt, d0, ds

    f = slopes(x0, xt, s)
    score = cube.score(x0, xt, s)
    along = lambda i: jax.jvp(
        lambda *a: cube.score(*a), (x0, xt, s), tuple(one if i == j else 0 * one for j in range(3))
    )
    ss = jax.jvp(lambda s: slopes(x0, xt, s)[3], (s,), (one,))[1]
    return *f, along(1)[1], along(0)[1], along(2)[1], ss, score


def check_against_truth(n, seed, bars):
    x0, xt, s = points(n, seed)
    want = np.array([truth(*p) for p in zip(x0, xt, s, strict=True)])
    got = np.array(jax.jit(all_derivatives)(*map(jnp.asarray, (x0, xt, s))), np.float64).T
    np.testing.assert_array_equal(got[:, -1], got[:, 1])  # the score is the gradient
    unit = s.astype(np.float64)[:, None] ** ORDER
    error = np.abs(got[:, :-1] - want) * unit / np.maximum(1, np.abs(want) * unit)
    worst = error.max(0)
    assert (worst <= bars).all(), f"{worst} at {[(x0[i], xt[i], s[i]) for i in error.argmax(0)]}"


BARS = np.array([1e-6, 1e-6, 1e-6, 1e-6, 5e-6, 5e-6, 5e-6, 2e-5])


def test_density_and_all_slopes_in_float32():
    check_against_truth(250, np.random.SeedSequence().entropy, BARS)  # fresh points each time


@pytest.mark.slow
def test_density_and_all_slopes_in_float32_at_many_points():
    check_against_truth(6000, np.random.SeedSequence().entropy, BARS)


def test_density_where_its_two_large_terms_cancel():
    """Near four sigma at little noise log p is of order 1 and its terms are 9 and -8: from rounded ones it is wrong by 2e-6."""
    rng = np.random.default_rng(4)
    s = np.float32(10 ** rng.uniform(-4, -2, 400))
    x0 = np.float32(np.where(rng.random(400) < 0.5, rng.uniform(0.1, 0.9, 400), 4 * s * rng.random(400)))
    z = np.sqrt(-2 * np.log(s * math.sqrt(2 * math.pi))) + rng.uniform(-0.2, 0.2, 400)
    xt = np.float32(x0 + s * z)
    want = np.array([float(log_density(*[mp.mpf(float(v)) for v in row])) for row in zip(x0, xt, s, strict=True)])
    for kernel in (cube.log_kernel, cube.image_log_kernel):
        for a, b in ((x0, xt), (xt, x0)):  # the series too, on either side of x_0
            got = np.asarray(kernel(a, b, s), np.float64)
            assert (np.abs(got - want) / np.maximum(1, np.abs(want))).max() < 4e-7


def test_mixed_derivatives_agree_in_either_order_also_in_opposite_corners():
    x0, xt, s = points(1500, 9)
    corner = np.float32(10 ** np.random.default_rng(9).uniform(-8.5, -4, (2, 500)))
    x0[:500], xt[:500], s[:500] = corner[0], 1 - corner[1], np.float32(10 ** np.linspace(-4, -0.5, 500))
    density = lambda *a: cube.log_kernel(*a)
    for i in (0, 1):
        there, back = (jax.jit(jax.vmap(jax.grad(jax.grad(density, a), b)))(x0, xt, s) for a, b in ((i, 2), (2, i)))
        unit = s.astype(np.float64) ** 2
        np.testing.assert_allclose(unit * back, unit * there, rtol=1e-6, atol=1e-6)


def test_an_empty_batch_is_no_trouble():
    nothing, sigma = jnp.zeros((0, 5)), jnp.ones(0)
    assert cube.log_kernel(nothing, nothing, sigma).shape == cube.score(nothing, nothing, sigma).shape == (0, 5)
    assert cube.bridge(jax.random.key(0), nothing, nothing, 0.5 * sigma, sigma).shape == (0, 5)


def test_density_and_score_in_float64_to_1e_13():
    with jax.enable_x64(True):
        x0, xt, s = (v.astype(np.float64) for v in points(150, 1))
        want = np.array([truth(*p)[:4] for p in zip(x0, xt, s, strict=True)])
        value, pull = jax.vjp(cube.log_kernel, jnp.asarray(x0), jnp.asarray(xt), jnp.asarray(s))
        d0, dt, ds = pull(jnp.ones(150))
        for got, true, unit in zip((value, dt, d0, ds), want.T, (1, s, s, s), strict=True):
            assert got.dtype == jnp.float64
            np.testing.assert_array_less(np.abs(got - true) * unit / np.maximum(1, np.abs(true) * unit), 1e-13)


# ------------------------------------------------------------------------------------------------------- derivatives


def test_third_derivatives_take_the_rules():
    # A rule whose primal is the bare formula is right at the second order and wrong at the third. Differences of the second
    # derivatives, which stand against 60 digits above, in float64; forward mode over reverse, and reverse over forward.
    with jax.enable_x64(True):
        at = tuple(map(jnp.asarray, ([0.05, 0.6, 0.05, 0.6], [0.12, 0.7, 0.12, 0.7], [0.08, 0.08, 0.9, 0.9])))
        unit = lambda i: tuple(jnp.full(4, float(i == j)) for j in range(3))
        curvature = lambda *a: jax.jvp(cube.score, a, unit(1))[1]
        mixed = lambda *a: jax.grad(lambda *b: jnp.sum(cube.score(*b)), argnums=2)(*a)

        def both(*a):
            reverse = jax.grad(lambda *b: jnp.sum(curvature(*b)), argnums=(0, 1, 2))(*a)
            forward = [jax.jvp(mixed, a, unit(i))[1] for i in range(3)]
            return *reverse, *forward

        h = 1e-5
        moved = jax.jit(lambda *a: (curvature(*a), mixed(*a)))
        differences = [
            [(p - q) / (2 * h) for p, q in zip(moved(*shift(at, i, h)), moved(*shift(at, i, -h)), strict=True)]
            for i in range(3)
        ]
        want = [d[0] for d in differences] + [d[1] for d in differences]
        for ours, true in zip(jax.jit(both)(*at), want, strict=True):
            np.testing.assert_allclose(ours, true, rtol=2e-5, atol=2e-5)


def shift(at, i, h):
    return [v + h * (i == j) for j, v in enumerate(at)]


def test_divergence_of_the_score_by_autodiff():
    xt = jnp.array([0.0, 0.003, 0.35, 0.8, 1.0])
    x0 = jnp.array([0.04, 0.02, 0.5, 0.75, 0.9])
    divergence = jax.jit(lambda sigma: numerics.divergence(lambda x: cube.score(x0, x, sigma), xt))
    for sigma in (0.03, 0.2, 0.41, 0.43, 1.5):
        ours = divergence(sigma)
        want = sum(truth(a, b, np.float32(sigma))[4] for a, b in zip(x0, xt, strict=True))
        np.testing.assert_allclose(ours, want, rtol=2e-5)


def test_sigma_zero_and_the_edges_are_finite():
    x0, xt = jnp.array([0.0, 0.3, 0.5, 1.0]), jnp.array([0.0, 0.3, 0.9, 0.0])

    @jax.jit
    def values_and_gradients(s):
        total = lambda f: jax.value_and_grad(lambda *a: jnp.sum(f(*a)), argnums=(0, 1, 2))(x0, xt, s)
        return total(cube.log_kernel), total(cube.score)

    for sigma in (0.0, 1e-30, 1e-7, 1e30):
        assert all(np.isfinite(v).all() for v in jax.tree.leaves(values_and_gradients(jnp.full(4, sigma))))
    np.testing.assert_array_equal(cube.score(x0, xt, 0.0), 0)
    # The floor is 8 epsilons, and below it nothing depends on sigma.
    np.testing.assert_array_equal(cube.log_kernel(x0, xt, 0.0), cube.log_kernel(x0, xt, 8 * 2.0**-23))
    assert jax.grad(lambda s: jnp.sum(cube.log_kernel(x0, xt, s)))(0.0) == 0


# ------------------------------------------------------------------------------------------------------------ series


def test_each_series_is_exact_where_its_terms_suffice():
    x0, xt, sigma = jnp.array([0.0, 0.3, 0.1, 1.0]), jnp.array([1.0, 0.9, 0.2, 0.95]), jnp.array([0.05, 0.3, 0.6, 2.0])
    want = [truth(*p)[0] for p in zip(x0, xt, sigma, strict=True)]
    np.testing.assert_allclose(cube.image_log_kernel(x0, xt, sigma, 25), want, rtol=3e-6, atol=3e-6)
    np.testing.assert_allclose(cube.image_log_kernel(x0, xt, sigma)[:2], want[:2], rtol=3e-6, atol=3e-6)
    # Below 0.3 the waves cancel by more than float32 holds.
    np.testing.assert_allclose(cube.harmonic_log_kernel(x0, xt, sigma, 12)[1:], want[1:], rtol=2e-4, atol=3e-6)
    np.testing.assert_allclose(cube.harmonic_log_kernel(x0, xt, sigma)[2:], want[2:], rtol=3e-6, atol=3e-6)
    gauss = -0.5 * (0.6 / 0.4) ** 2 - np.log(0.4 * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(cube.image_log_kernel(0.3, 0.9, 0.4, 1), gauss, rtol=1e-6)  # one image: the Gaussian
    one_wave = np.log(1 + 2 * np.exp(-0.5 * np.pi**2 * 0.36) * np.cos(0.3 * np.pi) * np.cos(0.9 * np.pi))
    np.testing.assert_allclose(cube.harmonic_log_kernel(0.3, 0.9, 0.6, 1), one_wave, rtol=1e-5)
    with pytest.raises(ValueError, match="at least one term"):
        cube.image_log_kernel(0.3, 0.9, 0.4, 0)


# -------------------------------------------------------------------------------------------------- laws of the kernel


def quadrature(n=60, panels=40):
    nodes, weights = np.polynomial.legendre.leggauss(n)
    left = np.arange(panels) / panels
    x = (left[:, None] + (nodes + 1) / (2 * panels)).ravel()
    return jnp.asarray(x, jnp.float32), np.tile(weights / (2 * panels), panels)


def test_density_integrates_to_one_and_kernels_compose():
    z, w = quadrature()
    for sigma in (0.02, 0.2, 0.419, 0.421, 3.0):
        for x0 in (0.0, 0.01, 0.4, 1.0):
            np.testing.assert_allclose(np.sum(w * np.exp(np.float64(cube.log_kernel(x0, z, sigma)))), 1, rtol=2e-6)
    for a, b in ((0.05, 0.1), (0.3, 0.3), (0.2, 1.0)):  # Chapman-Kolmogorov
        legs = np.float64(cube.log_kernel(0.1, z, a)) + np.float64(cube.log_kernel(0.35, z, b))
        whole = cube.log_kernel(0.1, 0.35, float(np.hypot(a, b)))
        np.testing.assert_allclose(np.log(np.sum(w * np.exp(legs))), whole, rtol=1e-5, atol=2e-6)


def test_fold_is_the_triangle_wave():
    u = jnp.array([-3.25, -1.0, -0.75, 0.0, 0.375, 1.0, 1.25, 2.0, 2.5, 100.125])
    np.testing.assert_array_equal(cube.fold(u), [0.75, 1.0, 0.75, 0.0, 0.375, 1.0, 0.75, 0.0, 0.5, 0.125])
    slope = jax.vmap(jax.grad(cube.fold))(u)
    np.testing.assert_array_equal(slope[jnp.array([0, 2, 3, 4, 5, 6, 8, 9])], [1, -1, 1, 1, 1, -1, 1, 1])
    assert cube.fold(u.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_corrupt_from_a_wall_loses_and_piles_up_nothing():
    n = 40_000
    for x0, sigma in ((0.0, 0.1), (0.97, 0.3), (0.5, 80.0)):
        x = cube.corrupt(jax.random.key(1), jnp.full(n, x0), sigma)
        assert kolmogorov(cdf(x0, sigma), x) < THRESHOLD
    assert cube.corrupt(jax.random.key(0), jnp.full(4, 0.25), 0.0).tolist() == [0.25] * 4


# ------------------------------------------------------------------------------------------------------------ bridge

# sqrt(n) D of Kolmogorov and Smirnov exceeds 2.6 with probability 2 exp(-2 2.6^2) = 2.7e-6: below 2e-4 for all cases of this file.
THRESHOLD = 2.6
GRID = np.linspace(0, 1, 100_001)


def density(x, y, s):
    """In float64, by a plain sum."""
    if s < 1:
        cells = range(-int(6 * s) - 2, int(6 * s) + 3)
        return sum(np.exp(-0.5 * ((x + e * y + 2 * k) / s) ** 2) for k in cells for e in (1, -1)) / (
            s * np.sqrt(2 * np.pi)
        )
    return 1 + 2 * sum(
        np.exp(-0.5 * (n * np.pi * s) ** 2) * np.cos(n * np.pi * x) * np.cos(n * np.pi * y) for n in range(1, 5)
    )


def cumulative(p):
    c = np.concatenate([[0], np.cumsum((p[1:] + p[:-1]) / 2)])
    return c / c[-1]


def cdf(x0, s):
    return cumulative(density(GRID, x0, s))


def bridge_cdf(x0, xt, s, t):
    log_legs = np.log(np.maximum(density(GRID, x0, s), 1e-300)) + np.log(
        np.maximum(density(GRID, xt, np.sqrt(t * t - s * s)), 1e-300)
    )
    return cumulative(np.exp(log_legs - log_legs.max()))


def kolmogorov(c, sample):
    u = np.sort(np.interp(np.asarray(sample, np.float64).ravel(), GRID, c))
    i = np.arange(len(u))
    return np.sqrt(len(u)) * max(np.max((i + 1) / len(u) - u), np.max(u - i / len(u)))


CASES = [
    # sigma_s, sigma_t, x0, xt
    (0.005, 0.01, 0.5, 0.51),
    (0.009, 0.01, 0.0, 0.004),
    (0.004, 0.012, 0.999, 0.995),
    (0.01, 0.03, 0.02, 0.01),
    (0.02, 0.05, 0.3, 0.4),
    (0.045, 0.05, 1.0, 0.97),
    (0.03, 0.1, 0.05, 0.05),
    (0.07, 0.1, 0.2, 0.6),  # far apart
    (0.05, 0.2, 0.0, 1.0),
    (0.15, 0.2, 0.95, 0.9),
    (0.1, 0.3, 0.5, 0.5),
    (0.25, 0.3, 0.1, 0.9),
    (0.2, 0.5, 0.0, 0.0),
    (0.4, 0.5, 0.3, 0.8),
    (0.1, 0.7, 0.9, 0.1),
    (0.6, 0.7, 1.0, 0.0),
    (0.3, 1.0, 0.2, 0.3),
    (0.9, 1.0, 0.7, 0.05),
    (0.5, 1.4, 0.0, 0.5),
    (1.2, 1.4, 0.4, 1.0),
    (0.2, 1.9, 0.6, 0.2),
    (1.8, 1.9, 0.1, 0.8),
    (1.95, 2.0, 0.3, 0.6),
    (1.5, 2.1, 0.3, 0.6),  # the free run begins
    (2.05, 2.1, 0.9, 0.95),
    (0.4, 3.0, 0.2, 0.7),  # s within it
    (2.9, 3.0, 0.5, 0.0),
    (4.9, 5.0, 0.0, 0.35),
    (0.1, 10.0, 0.8, 0.1),
    (9.99, 10.0, 0.25, 0.9),
]


def draw_bridges(n, cases, seed):
    s, t, x0, xt = (jnp.asarray(v, jnp.float32) for v in zip(*cases, strict=True))
    full = lambda v: jnp.broadcast_to(v[:, None], (len(cases), n))
    return jax.jit(cube.bridge)(jax.random.key(seed), full(x0), full(xt), s, t)


def test_bridge_law_against_quadrature():
    cases = CASES[::2]
    sample = draw_bridges(20_000, cases, 0)
    for (s, t, x0, xt), x in zip(cases, sample, strict=True):
        assert kolmogorov(bridge_cdf(x0, xt, s, t), x) < THRESHOLD, (s, t, x0, xt)


@pytest.mark.slow
def test_bridge_law_against_quadrature_at_400_000_draws():
    for i, (s, t, x0, xt) in enumerate(CASES):
        x = draw_bridges(400_000, [(s, t, x0, xt)], i)
        assert kolmogorov(bridge_cdf(x0, xt, s, t), x) < THRESHOLD, (s, t, x0, xt)


def test_bridge_meets_its_ends_exactly():
    key = jax.random.key(0)
    x0, xt = jax.random.uniform(key, (2, 1000))
    for t in (0.01, 0.5, 1.9, 3.0, 50.0):
        np.testing.assert_array_equal(cube.bridge(key, x0, xt, t, t), xt)
        np.testing.assert_array_equal(cube.bridge(key, x0, xt, 0.0, t), x0)
    np.testing.assert_array_equal(cube.bridge(key, x0, x0, 0.0, 0.0), x0)
    # Close to an end, close to it, also through a mirror.
    assert jnp.max(jnp.abs(cube.bridge(key, x0, xt, 1e-4, 3.0) - x0)) < 6e-4
    assert jnp.max(jnp.abs(cube.bridge(key, x0, xt, 1.5 - 1e-8, 1.5) - xt)) < 2e-3
    # A guess outside the box is folded in.
    np.testing.assert_allclose(cube.bridge(key, x0 + 2, xt, 0.0, 1.0), x0, atol=3e-7)
    x = cube.bridge(key, -x0, xt, 0.5, 1.0)
    assert ((x >= 0) & (x <= 1)).all()


# ----------------------------------------------------------------------------------------------------- shapes and doors


def test_large_arrays_are_taken_in_halves_that_keep_their_places():
    for m, n in ((1, 4098), (64, 80), (3, 2000), (3, 2001), (5000, 1)):
        x, y, s = jnp.arange(m * n).reshape(m, n), 2 * jnp.ones((m, n), int), jnp.arange(m)[:, None]
        got = cube_kernel.halved(lambda x, y, s: (x + 7 * s, x * y), x, y, s)
        np.testing.assert_array_equal(got[0], x + 7 * s)
        np.testing.assert_array_equal(got[1], x * y)


def test_shapes_dtypes_and_transformations():
    x0, xt = jax.random.uniform(jax.random.key(0), (2, 64, 9, 8))
    s = jnp.linspace(0.05, 2.0, 64)
    whole = cube.score(x0, xt, s)  # in halves
    np.testing.assert_allclose(jax.jit(jax.vmap(cube.score))(x0, xt, s), whole, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(cube.score(x0[37], xt[37], s[37]), whole[37], rtol=1e-5, atol=1e-5)
    a, b = (v[:4].astype(jnp.bfloat16) for v in (x0, xt))
    for out in (cube.score(a, b, s[:4]), cube.corrupt(jax.random.key(0), a, s[:4])):
        assert out.dtype == jnp.bfloat16


def test_a_wrong_argument_is_refused_at_the_door():
    x = jnp.full((4, 2), 0.5)
    with pytest.raises(ValueError, match=r"sigma >= 0, got sigma=-0\.1"):
        cube.score(x, x, -0.1)
    with pytest.raises(ValueError, match="sigma_s <= sigma_t"):
        cube.bridge(jax.random.key(0), x, x, 0.2, 0.1)
    with pytest.raises(ValueError, match="one shape"):
        cube.bridge(jax.random.key(0), x, x[:1], 0.1, 0.2)
    with pytest.raises(ValueError, match="prefix of the data's shape"):
        cube.log_kernel(x, x, jnp.ones(2))


# ----------------------------------------------------------------------------------------------------------- process


def test_process_laws():
    p, n = cube.process(SCHEDULE), 20_000
    keys = jax.random.split(jax.random.key(5), 5)
    x0 = jnp.broadcast_to(jnp.array([0.03, 0.6]), (n, 2))
    s, t = 0.55, 0.85
    sigma_s = float(SCHEDULE(s)[1])
    xs = p.bridge(keys[0], x0, p.corrupt(keys[1], x0, t), s, t)
    for i in range(2):  # bridge after corrupt has the marginal
        assert kolmogorov(cdf(float(x0[0, i]), sigma_s), xs[:, i]) < THRESHOLD
    for x in (p.corrupt(keys[2], x0, 1.0), p.prior(keys[3], jax.ShapeDtypeStruct((n, 2), jnp.float32))):
        assert kolmogorov(GRID, x) < THRESHOLD  # uniform in the end
    # The bridge's two steps are one step: Chapman-Kolmogorov, from one far end.
    far = jnp.broadcast_to(jnp.array([0.9, 0.1]), (n, 2))
    hop = p.bridge(keys[0], x0, p.bridge(keys[4], x0, far, 0.7, t), s, 0.7)
    for i in range(2):
        law = bridge_cdf(float(x0[0, i]), float(far[0, i]), sigma_s, float(SCHEDULE(t)[1]))
        assert kolmogorov(law, hop[:, i]) < THRESHOLD


def test_process_density_and_score():
    p = cube.process(SCHEDULE)
    x0, xt = jax.random.uniform(jax.random.key(0), (2, 6, 4, 3))
    t = jnp.linspace(0.1, 1.0, 6)
    log_prob = p.log_prob(x0, xt, t)
    assert log_prob.shape == (6,)
    each = p.log_prob(x0, xt, jnp.broadcast_to(t[:, None, None], xt.shape))  # times of their own
    np.testing.assert_allclose(each.sum((1, 2)), log_prob, rtol=1e-5, atol=1e-5)
    want = truth(x0[2, 1, 1], xt[2, 1, 1], np.float32(SCHEDULE(t)[1][2]))
    np.testing.assert_allclose(each[2, 1, 1], want[0], rtol=2e-6)
    gradient = jax.grad(lambda x: jnp.sum(p.log_prob(x0, x, t)))(xt)
    np.testing.assert_allclose(p.score(x0, xt, t), gradient, rtol=1e-6, atol=1e-6)
    assert p.log_prob(x0.astype(jnp.bfloat16), xt.astype(jnp.bfloat16), t).dtype == jnp.float32


# ------------------------------------------------------------------------------------------------------------- speed


@pytest.mark.slow
@pytest.mark.parametrize("per_example", [True, False])
def test_score_costs_at_most_ten_gaussian_scores(per_example):
    shape = (128, 32, 32, 3)
    x0, xt = jax.random.uniform(jax.random.key(0), (2, *shape))
    sigma = jnp.geomspace(0.01, 5.0, 128) if per_example else jnp.float32(0.3)

    def gaussian(x0, xt, sigma):
        s = numerics.expand_right(sigma, xt)
        return (x0 - xt) / (s * s) * jnp.exp(-((x0 - xt) ** 2) / (2 * s * s))

    functions, best = [jax.jit(gaussian), jax.jit(cube.score)], [np.inf, np.inf]
    for round_ in range(80):  # by turns, and the best of each: others use the machine too
        for i, f in enumerate(functions):
            start = time.perf_counter()
            f(x0, xt, sigma).block_until_ready()
            if round_:
                best[i] = min(best[i], time.perf_counter() - start)
    assert best[1] <= 10 * best[0], f"{best[1] / x0.size * 1e9:.2f} against {best[0] / x0.size * 1e9:.2f} ns an entry"


# ------------------------------------------------------------------------------------------------- a network's score


def test_a_scaled_score_has_the_profile_of_true_ones_at_the_walls():
    # Much noise: the last harmonic, seen through the true score of a far point. Little noise: the true score of data two points
    # a distance sigma from either wall, less its pull to the middle: sigma^2 s + x = sigma tanh(x / sigma).
    x = jnp.linspace(0.0, 1.0, 101)
    much = cube.scaled_score(jnp.ones(101), x, 2.9, walls=True)
    true = cube.score(1.0, x, 2.9)
    np.testing.assert_allclose(much / much[50], true / true[50], atol=2.5e-3)
    sigma, near = 0.02, x[:10]
    little = cube.scaled_score(jnp.ones(10), near, sigma, walls=True)
    np.testing.assert_allclose(little, cube.score(sigma, near, sigma) + near / sigma**2, rtol=4e-3, atol=1e-3)


def test_a_scaled_score_is_odd_about_the_walls_and_even_about_the_middle():
    x, output = jnp.linspace(0.0, 1.0, 11), jnp.full(11, 3.0)
    for sigma in (0.0, 1e-4, 0.3, 5.0):
        value = cube.scaled_score(output, x, sigma, walls=True)
        np.testing.assert_array_equal(value[jnp.array([0, 10])], 0)
        np.testing.assert_allclose(value, value[::-1], rtol=1e-5)
        assert value[5] == pytest.approx(float(cube.scaled_score(output, x, sigma)[5]), rel=1e-5)
        slope = jax.jit(jax.grad(lambda x, sigma=sigma: cube.scaled_score(output, x, sigma, walls=True).sum()))(x)
        assert np.isfinite(slope).all()
        assert slope[0] > 0


def test_a_scaled_score_takes_a_sigma_for_each_example():
    x = jnp.full((2, 3), 0.25)
    both = cube.scaled_score(jnp.ones((2, 3)), x, jnp.array([0.1, 2.0]))
    np.testing.assert_allclose(both, [[10.0] * 3, [0.5] * 3], rtol=1e-6)
    half = cube.scaled_score(jnp.ones((2, 3), jnp.bfloat16), x.astype(jnp.bfloat16), jnp.array([0.1, 2.0]), walls=True)
    assert half.dtype == jnp.bfloat16
    with pytest.raises(ValueError, match=r"xt\.shape"):
        cube.scaled_score(jnp.ones(2), x, 0.1)
