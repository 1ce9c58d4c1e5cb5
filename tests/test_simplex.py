"""The simplex against facts of the Dirichlet laws, determinants and quadrature."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffjax import schedules
from diffjax.processes import cube, simplex

SCHEDULE = schedules.ve(0.01, 3.0)
N = 20_000
# sqrt(n) D of Kolmogorov and Smirnov exceeds 2.6 with probability 2.7e-6: below 2e-4 for this file.
THRESHOLD = 2.6


def kolmogorov(sample, cdf=lambda x: x):
    u = np.sort(cdf(np.asarray(sample, np.float64).ravel()))
    i = np.arange(len(u))
    return np.sqrt(len(u)) * max(np.max((i + 1) / len(u) - u), np.max(u - i / len(u)))


def dirichlet(concentration, n, seed=0):
    return np.random.default_rng(seed).dirichlet(concentration, n).astype(np.float32)


# ------------------------------------------------------------------------------------------------------------- maps


@pytest.mark.parametrize("d", [1, 2, 30, 4096])
def test_round_trips(d):
    p = dirichlet(np.ones(d + 1), 30)
    u = jnp.asarray(np.random.default_rng(1).random((30, d)), jnp.float32)
    back = np.asarray(simplex.from_cube(simplex.to_cube(jnp.asarray(p))))
    assert (np.abs(back - p) <= 2e-6 * (p + 0.1 / d)).all()
    np.testing.assert_allclose(back.sum(-1), 1, atol=1e-6)
    np.testing.assert_allclose(simplex.to_cube(simplex.from_cube(u)), u, atol=1e-6)
    gaps = np.asarray(simplex.from_chamber(simplex.to_chamber(jnp.asarray(p))))
    np.testing.assert_allclose(gaps, p, atol=2e-7)
    assert (gaps >= 0).all()
    x = jnp.sort(u, -1)
    np.testing.assert_allclose(simplex.to_chamber(simplex.from_chamber(x)), x, atol=2e-6)


def test_by_hand():
    p = jnp.array([0.5, 0.3, 0.1, 0.1])
    np.testing.assert_allclose(simplex.to_cube(p), [0.5**3, 0.4**2, 0.5], rtol=1e-6)
    np.testing.assert_allclose(simplex.to_chamber(p), [0.5, 0.8, 0.9], rtol=1e-6)
    np.testing.assert_allclose(simplex.to_cube(3 * p), simplex.to_cube(p), rtol=1e-6)  # ratios alone
    assert simplex.to_cube(p.astype(jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("d", [2, 7])
def test_the_jacobian_is_constant(d):
    def jacobians(q):  # in the first d entries
        free = lambda q: jnp.append(q, 1 - jnp.sum(q))
        return jax.jacobian(lambda q: (simplex.to_cube(free(q)), simplex.to_chamber(free(q))))(q)

    with jax.enable_x64(True):
        p = np.random.default_rng(d).dirichlet(np.full(d + 1, 2.0), 3)
        box, chamber = jax.jit(jax.vmap(jacobians))(jnp.asarray(p[:, :-1]))
        np.testing.assert_allclose(np.linalg.slogdet(box)[1], math.lgamma(d + 1), rtol=1e-9)
        np.testing.assert_allclose(np.linalg.det(chamber), 1, rtol=1e-9)


@pytest.mark.parametrize("d", [1, 3, 50])
def test_uniform_box_and_chamber_are_the_uniform_simplex(d):
    u = jax.random.uniform(jax.random.key(d), (N, d))
    for p in (simplex.from_cube(u), simplex.from_chamber(simplex.chamber_fold(u))):
        for i in sorted({0, d // 2, d}):  # each entry of Dirichlet(1, .., 1) is Beta(1, d)
            assert kolmogorov(p[:, i], stats.beta(1, d).cdf) < THRESHOLD
        if d > 1:  # and the share of two of the others is uniform
            assert kolmogorov(p[:, -1] / (p[:, -1] + p[:, 0])) < THRESHOLD
    v = simplex.to_cube(jnp.asarray(dirichlet(np.ones(d + 1), N)))
    for i in sorted({0, d // 2, d - 1}):
        assert kolmogorov(v[:, i]) < THRESHOLD


def test_chamber_fold_is_motion_reflected_in_the_chamber():
    # Its law is that of independent reflected points put in order: P(least > a) and P(largest <= a) are products.
    x0, sigma = np.array([0.1, 0.15, 0.9]), 0.2
    x = simplex.chamber_fold(x0[None] + sigma * jax.random.normal(jax.random.key(0), (N, 3)))
    assert (jnp.diff(x, axis=-1) >= 0).all()
    grid = np.linspace(0, 1, 4001)
    density = np.exp(np.float64(cube.log_kernel(jnp.asarray(x0, jnp.float32)[:, None], jnp.float32(grid)[None], sigma)))
    cdf = np.concatenate([np.zeros((3, 1)), np.cumsum((density[:, 1:] + density[:, :-1]) / 2, 1)], 1) / 4000
    assert kolmogorov(x[:, 0], lambda v: np.interp(v, grid, 1 - np.prod(1 - cdf, 0))) < THRESHOLD
    assert kolmogorov(x[:, 2], lambda v: np.interp(v, grid, np.prod(cdf, 0))) < THRESHOLD


# ---------------------------------------------------------------------------------------------------------- process


def test_density_on_the_triangle():
    p = simplex.process(SCHEDULE)
    nodes, weights = np.polynomial.legendre.leggauss(100)
    a, w = (nodes + 1) / 2, weights / 2
    # p = (a, (1 - a) b, (1 - a)(1 - b)) has area element (1 - a) da db.
    a, b, w = a[:, None] + 0 * a, 0 * a[:, None] + a, w[:, None] * w * (1 - a[:, None])
    points = jnp.asarray(np.stack([a, (1 - a) * b, (1 - a) * (1 - b)], -1).reshape(-1, 3), jnp.float32)
    for x0 in ([0.2, 0.3, 0.5], [0.9, 0.1, 0.0]):
        for t in (0.5, 0.7, 1.0):
            log_prob = p.log_prob(jnp.broadcast_to(jnp.array(x0), points.shape), points, jnp.full(len(points), t))
            np.testing.assert_allclose(np.sum(w.ravel() * np.exp(np.float64(log_prob))), 1, rtol=1e-5)
    # In the end it is Dirichlet(1, .., 1), whose density is d!.
    for d in (4, 300):
        x0, x1 = (jnp.asarray(dirichlet(np.ones(d + 1), 5, seed)) for seed in (1, 2))
        want = stats.dirichlet.logpdf(np.full(d + 1, 1 / (d + 1)), np.ones(d + 1))
        np.testing.assert_allclose(p.log_prob(x0, x1, jnp.ones(5)), np.full(5, want), rtol=1e-6, atol=1e-5)


def test_score_is_the_gradient_along_the_simplex():
    p = simplex.process(SCHEDULE)
    with jax.enable_x64(True):
        x0, xt = (jnp.asarray(dirichlet(np.full(5, 2.0), 6, seed), jnp.float64) for seed in (1, 2))
        x0, xt = (v / v.sum(-1, keepdims=True) for v in (x0, xt))
        t = jnp.linspace(0.3, 1.0, 6)
        log_prob = jax.jit(p.log_prob)
        score, gradient = jax.jit(lambda x: (p.score(x0, x, t), jax.grad(lambda x: jnp.sum(p.log_prob(x0, x, t)))(x)))(
            xt
        )
        np.testing.assert_allclose(score.sum(-1), 0, atol=1e-9 * float(jnp.abs(score).max()))
        np.testing.assert_allclose(score, gradient - gradient.mean(-1, keepdims=True), rtol=1e-9)
        for i in range(4):  # against differences along the simplex, from one entry to the next
            step = 1e-7 * (jnp.eye(5)[i] - jnp.eye(5)[i + 1])[None]
            difference = (log_prob(x0, xt + step, t) - log_prob(x0, xt - step, t)) / 2e-7
            np.testing.assert_allclose(score[:, i] - score[:, i + 1], difference, rtol=1e-5, atol=1e-5)


def test_process_laws():
    p = simplex.process(SCHEDULE)
    keys = jax.random.split(jax.random.key(3), 5)
    x0 = jnp.broadcast_to(jnp.array([0.6, 0.3, 0.1]), (N, 3))
    s, t = 0.5, 0.8

    @jax.jit
    def draw(x0):
        far = jnp.broadcast_to(jnp.array([0.1, 0.2, 0.7]), (N, 3))
        bridged = p.bridge(keys[0], x0, p.corrupt(keys[1], x0, t), s, t)
        hop = p.bridge(keys[2], x0, p.bridge(keys[3], x0, far, 0.7, t), s, 0.7)
        return p.corrupt(keys[4], x0, s), bridged, p.bridge(keys[4], x0, far, s, t), hop, p.corrupt(keys[0], x0, 1.0)

    direct, bridged, jump, hop, last = map(np.asarray, draw(x0))
    for a, b in ((direct, bridged), (jump, hop)):  # the marginal; Chapman-Kolmogorov
        for i in range(3):
            assert stats.ks_2samp(a[:, i], b[:, i]).pvalue > 2e-6
    for x in (last, p.prior(keys[1], jax.ShapeDtypeStruct((N, 3), jnp.float32))):
        for i in range(3):
            assert kolmogorov(x[:, i], stats.beta(1, 2).cdf) < THRESHOLD
    np.testing.assert_allclose(direct.sum(-1), 1, atol=1e-6)
    assert (direct >= 0).all()


def test_both_ends_are_met_whatever_the_vector():
    p, key = simplex.process(schedules.rectified()), jax.random.key(0)
    peaked = dirichlet(np.full(1000, 0.05), 4)  # entries the box takes for corners
    corners = np.eye(1000, dtype=np.float32)[[0, 1, 500, 999]]
    for x0, xt in ((peaked, corners), (corners, dirichlet(np.ones(1000), 4))):
        x0, xt = jnp.asarray(x0), jnp.asarray(xt)
        np.testing.assert_allclose(p.bridge(key, x0, xt, 0.0, 0.5), x0, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(p.bridge(key, x0, xt, 0.5, 0.5), xt, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(p.corrupt(key, x0, 0.0), x0, rtol=1e-4, atol=1e-6)


def test_zeros_and_ones_are_finite():
    p, key = simplex.process(SCHEDULE), jax.random.key(0)
    x = jnp.array(
        [[1.0, 0, 0, 0], [0, 0, 0, 1], [0, 1, 0, 0], [0.5, 0, 0.5, 0], [0, 0, 0.2, 0.8], [0.25, 0.25, 0.25, 0.25]]
    )
    x0, xt = jnp.repeat(x, 6, 0), jnp.tile(x, (6, 1))

    @jax.jit
    def everything(t):  # one NaN or infinity anywhere shows in the sum or in its gradient
        def total(a, b):
            outs = (
                p.log_prob(a, b, t),
                p.score(a, b, t),
                p.bridge(key, a, b, t / 2, t) ** 2,
                p.corrupt(key, a, t) ** 2,
            )
            maps = (simplex.from_cube(simplex.to_cube(a)) ** 2, simplex.to_chamber(a) * simplex.to_chamber(b))
            return sum(jnp.sum(v) for v in outs + maps)

        return jax.value_and_grad(total, argnums=(0, 1))(x0, xt)

    for t in (0.0, 0.5, 1.0):
        assert all(np.isfinite(v).all() for v in jax.tree.leaves(everything(jnp.full(36, t))))
    np.testing.assert_allclose(simplex.from_cube(simplex.to_cube(x)), x, atol=1e-6)


def test_shapes_dtypes_and_doors():
    p, key = simplex.process(SCHEDULE), jax.random.key(0)
    x0, xt = (jnp.asarray(dirichlet(np.ones(4), 6, seed)).reshape(2, 3, 4) for seed in (1, 2))
    t = jnp.array([0.4, 0.9])
    whole = p.log_prob(x0, xt, t)  # the event is three vectors
    each = p.log_prob(x0, xt, jnp.broadcast_to(t[:, None], (2, 3)))
    np.testing.assert_allclose(each.sum(-1), whole, rtol=1e-5)
    keys = jax.random.split(key, 2)
    np.testing.assert_allclose(p.corrupt(keys, x0, t)[1], p.corrupt(keys[1], x0[1], t[1]), rtol=1e-5, atol=1e-6)
    half = x0.astype(jnp.bfloat16)
    assert p.corrupt(key, half, t).dtype == p.prior(key, half).dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="prefix of the data's shape"):
        p.corrupt(key, x0, jnp.full(x0.shape, 0.5))  # one time for each entry makes no vector
    with pytest.raises(ValueError, match="probabilities on the last axis, 2 or more"):
        simplex.to_cube(jnp.ones((3, 1)))
    with pytest.raises(ValueError, match="one shape"):
        p.bridge(key, x0, xt[:1], t / 2, t)
