"""Langevin chains: exact laws where Metropolis makes them exact, closed-form biases where it does not."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from diffjax import numerics, schedules
from diffjax.samplers import correctors, langevin


def log_p(x):
    """The density of E1 up to its constant: Z = .7 sqrt(10 pi), E cos 4x = 5/14."""
    return jnp.log(0.2 + jnp.cos(2 * x) ** 2) - 0.1 * x**2


score = jax.grad(lambda x: log_p(x).sum())


def quantile_draws(density, low, high, n, seed):
    """n exact draws of a one-dimensional density by its numerically integrated inverse distribution function."""
    grid = np.linspace(low, high, 20_001)
    cdf = integrate.cumulative_trapezoid(density(grid), grid, initial=0)
    u = np.random.default_rng(seed).uniform(size=n)
    return jnp.asarray(np.interp(u * cdf[-1], cdf, grid), jnp.float32), lambda x: np.interp(x, grid, cdf / cdf[-1])


# ------------------------------------------------------------------------------- Metropolis keeps the law, exactly
# Each test starts at the law and asks whether a few large steps leave it: KS at 1e-4, so a false alarm once in 10,000.


@pytest.mark.parametrize("with_score", [True, False])
def test_metropolis_on_the_line_leaves_the_law(with_score):
    density = lambda x: (0.2 + np.cos(2 * x) ** 2) * np.exp(-0.1 * x**2)
    x, cdf = quantile_draws(density, -15, 15, 20_000, 0)
    end, rate = langevin.sample(
        jax.random.key(1), score if with_score else None, x, step_size=0.4, steps=10, metropolis=log_p,
        track=lambda x, accepted: accepted.mean(),
    )  # fmt: skip
    assert 0.3 < float(rate.mean()) < 0.9
    assert np.mean(np.asarray(end) != np.asarray(x)) > 0.9
    assert stats.kstest(np.asarray(end), cdf).pvalue > 1e-4


def test_metropolis_with_mirrors_leaves_the_law():
    # Two thirds of the mass lie within .25 of a wall, so most steps meet one.
    log_density = lambda x: 4 * x + jnp.log(1 + 3 * (1 - x) ** 8)
    density = lambda x: np.exp(4 * x) * (1 + 3 * (1 - x) ** 8)
    x, cdf = quantile_draws(density, 0, 1, 20_000, 2)
    end, rate = langevin.sample(
        jax.random.key(3), jax.grad(lambda x: log_density(x).sum()), x, step_size=0.1, steps=10,
        metropolis=log_density, move=langevin.reflect, track=lambda x, accepted: accepted.mean(),
    )  # fmt: skip
    assert 0.3 < float(rate.mean()) < 0.95
    assert float(end.min()) >= 0
    assert float(end.max()) <= 1
    assert stats.kstest(np.asarray(end), cdf).pvalue > 1e-4


def test_metropolis_on_the_circle_leaves_the_law():
    log_density = lambda x: 2 * jnp.cos(x - 3.0)
    x, cdf = quantile_draws(lambda x: np.exp(2 * np.cos(x - 3.0)), -np.pi, np.pi, 20_000, 4)
    wrap = lambda x: (x + jnp.pi) % (2 * jnp.pi) - jnp.pi
    end = langevin.sample(
        jax.random.key(5), lambda x: -2 * jnp.sin(x - 3.0), x, step_size=0.5, steps=10, metropolis=log_density,
        move=langevin.geodesic(lambda x, v: wrap(x + v)),
    )  # fmt: skip
    assert stats.kstest(np.asarray(end), cdf).pvalue > 1e-4


def compose(p, q):
    a, u, b, v = p[..., :1], p[..., 1:], q[..., :1], q[..., 1:]
    return jnp.concatenate([a * b - (u * v).sum(-1, keepdims=True), a * v + b * u + jnp.cross(u, v)], -1)


def exp(v):
    angle = jnp.linalg.norm(v, axis=-1, keepdims=True)
    return jnp.concatenate([jnp.cos(angle / 2), v * jnp.sinc(angle / (2 * jnp.pi)) / 2], -1)


def test_metropolis_on_rotations_leaves_the_law():
    # p ~ exp(2 q_0^2) against Haar; q_0 = cos(w/2), and w has density (1 - cos w)/pi p. Body-frame score: d/dv q_0(q exp v) = -q_{1:}/2.
    log_density = lambda q: 2 * q[..., 0] ** 2
    tangent = lambda q: -2 * q[..., :1] * q[..., 1:]
    key = jax.random.key(6)
    q = jax.random.normal(key, (30_000, 4))
    q = q / jnp.linalg.norm(q, axis=-1, keepdims=True)
    q = q[jax.random.uniform(jax.random.key(7), (30_000,)) < jnp.exp(log_density(q) - 2)]  # rejection: exact draws
    end = langevin.sample(
        jax.random.key(8), tangent, q, step_size=0.3, steps=10, metropolis=log_density,
        move=langevin.geodesic(lambda q, v: compose(q, exp(v))),
    )  # fmt: skip
    w = np.linspace(0, np.pi, 4001)
    cdf = integrate.cumulative_trapezoid((1 - np.cos(w)) * np.exp(2 * np.cos(w / 2) ** 2), w, initial=0)
    angle = 2 * np.arccos(np.clip(np.abs(np.asarray(end[:, 0])), 0, 1))
    assert len(end) > 4000
    assert stats.kstest(angle, lambda x: np.interp(x, w, cdf / cdf[-1])).pvalue > 1e-4
    assert float(jnp.abs(jnp.linalg.norm(end, axis=-1) - 1).max()) < 1e-5


def test_a_move_undoes_itself():
    key_x, key_v = jax.random.split(jax.random.key(0))
    x, v = jax.random.uniform(key_x, (1000,)), 3 * jax.random.normal(key_v, (1000,))
    for move in (langevin.straight, langevin.reflect):
        y, w = move(x, v)
        back, again = move(y, w)
        np.testing.assert_allclose(back, x, atol=2e-6)
        np.testing.assert_allclose(again, v, atol=1e-6)
    y, _ = langevin.reflect(jnp.array([0.0, 1.0, 0.5, 0.5]), jnp.array([0.0, 0.0, 0.5, -0.5]))
    np.testing.assert_array_equal(y, [0, 1, 1, 0])


def test_metropolis_never_goes_where_there_is_no_density():
    log_density = lambda x: jnp.where(x > 0, -x, jnp.where(x > -0.5, -jnp.inf, jnp.nan))
    end = langevin.sample(jax.random.key(0), None, jnp.ones(1000), step_size=0.5, steps=50, metropolis=log_density)
    assert float(end.min()) > 0


# ----------------------------------------------------------------------------- without Metropolis: closed-form biases


def test_unadjusted_chain_has_the_variance_of_its_recursion():
    # On N(0, 1): var' = (1 - h)^2 var + 2h, towards 1 / (1 - h/2). Relative s.e. of a variance: sqrt(2/n) = .0022; bar 4.5 of them.
    for steps in (1, 5, 40):
        end = langevin.sample(jax.random.key(steps), lambda x: -x, jnp.full(400_000, 2.0), step_size=0.3, steps=steps)
        variance = 0.0
        for _ in range(steps):
            variance = 0.7**2 * variance + 0.6
        assert abs(float(end.mean()) - 2 * 0.7**steps) < 0.01
        assert abs(float(end.var()) / variance - 1) < 0.01


def test_step_size_may_differ_by_example():
    h = jnp.array([[0.1], [0.4]]) * jnp.ones((2, 200_000))
    end = langevin.sample(jax.random.key(0), lambda x: -x, jnp.zeros((2, 200_000)), step_size=h, steps=1)
    np.testing.assert_allclose(end.var(axis=1), [0.2, 0.8], rtol=0.015)


def test_annealed_chain_has_the_variance_of_its_recursion():
    # Data at 0 under noise sigma: score -x / sigma^2, h = .1 sigma^2, so var' = .81 var + .2 sigma^2 at each step.
    schedule = schedules.ve(0.1, 10.0)
    times = schedules.times(4)
    end, kept = langevin.annealed(
        jax.random.key(0), lambda x, t: -x / schedule(t)[1] ** 2, 10 * jax.random.normal(jax.random.key(1), (200_000,)),
        times, schedule=schedule, steps=3, track=lambda x, t: x.var(),
    )  # fmt: skip
    variance, expected = 100.0, []
    for sigma in 0.1 * 100 ** np.linspace(1, 0, 5):
        for _ in range(3):
            variance = 0.81 * variance + 0.2 * sigma**2
        expected.append(variance)
    np.testing.assert_allclose(kept, expected, rtol=0.015)
    assert float(end.var()) == pytest.approx(expected[-1], rel=0.015)


def test_signal_to_noise_rule_by_hand():
    # |z|^2 = 2, |g|^2 = 25: h = 2 (.1)^2 2/25.
    g, z = jnp.array([[3.0, 4.0], [0.0, 0.0]]), jnp.array([[1.0, -1.0], [1.0, 1.0]])
    np.testing.assert_allclose(correctors.signal_to_noise(0.1, g, z, jnp.zeros(2)), [0.0016, 0.0], rtol=1e-6)
    np.testing.assert_allclose(correctors.signal_to_noise(0.1, g, z, 0.0), 2 * 0.01 * 4 / 25, rtol=1e-6)


def test_predictor_corrector_has_the_variance_of_its_recursion():
    # Data N(0, 1), alpha = 1, score -x / (1 + sigma^2). Predictor: var' = (1 - d/v)^2 var + d with v = 1 + sigma_t^2, d = sigma_t^2 - sigma_s^2.
    # Corrector, norms over the whole array: h = 2 r^2 v_s^2 / var, var' = (1 - h / v_s)^2 var + 2h. s.e. .0022, bar 4.5 of them.
    schedule = schedules.ve(0.1, 5.0)
    score_t = lambda x, t: -x / (1 + schedule(t)[1] ** 2)
    x1 = jnp.sqrt(26.0) * jax.random.normal(jax.random.key(0), (400_000,))
    times = schedules.times(6)
    end = correctors.predictor_corrector(
        jax.random.key(1),
        correctors.reverse_diffusion(score_t, schedule=schedule),
        score_t,
        x1,
        times,
        ratio=0.3,
        steps=2,
    )
    variance = 26.0
    sigmas = 0.1 * 50 ** np.linspace(1, 0, 7)
    for high, low in itertools.pairwise(sigmas):
        d = high**2 - low**2
        variance = (1 - d / (1 + high**2)) ** 2 * variance + d
        for _ in range(2):
            h = 2 * 0.3**2 * (1 + low**2) ** 2 / variance
            variance = (1 - h / (1 + low**2)) ** 2 * variance + 2 * h
    assert abs(float(end.var()) / variance - 1) < 0.01


def test_reverse_diffusion_without_noise_is_the_probability_flow():
    # dx = d sigma^2 / 2 x / (1 + sigma^2) has x ~ sqrt(1 + sigma^2); Euler over 2,000 steps.
    schedule = schedules.karras(0.01, 3.0)
    step = correctors.reverse_diffusion(lambda x, t: -x / (1 + schedule(t)[1] ** 2), schedule=schedule, noise=0.0)
    times = schedules.times(2000)
    body = lambda x, row: (step(jax.random.key(0), x, *row), None)
    end, _ = jax.lax.scan(body, jnp.array([1.0, -2.0]), (times[1:], times[:-1]))
    np.testing.assert_allclose(end, np.array([1.0, -2.0]) * np.sqrt(1.0001 / 10), rtol=2e-3)


# ------------------------------------------------------------------------------------------------------- conventions


def test_a_sample_does_not_depend_on_its_company():
    keys, x = jax.random.split(jax.random.key(0), 6), jax.random.normal(jax.random.key(1), (6, 2))
    t = jnp.full((3, 6), 0.5)

    @jax.jit
    def walk(k, x, t):
        chain = langevin.sample(k, lambda x: -x, x, step_size=0.3, steps=3, metropolis=lambda x: -0.5 * (x * x).sum(-1))
        return chain, correctors.predictor_corrector(k, lambda key, x, s, t: 0.9 * x, lambda x, t: -x, x, t)

    # One time for all changes nothing: keys of its own give each example its own norms.
    for whole, part in zip(walk(keys, x, t), walk(keys[2:4], x[2:4], t[:, 0]), strict=True):
        np.testing.assert_allclose(whole[2:4], part, rtol=1e-6)


def test_jit_vmap_pmap_grad_and_half_precision():
    chain = lambda k, x: langevin.sample(k, lambda x: -x, x, step_size=0.3, steps=3, metropolis=lambda x: -0.5 * x**2)
    keys, x = jax.random.split(jax.random.key(0), 2), jnp.array([-1.0, 0.5])
    eager = chain(keys, x)
    for transformed in (jax.jit(chain), jax.vmap(chain), jax.pmap(chain)):
        np.testing.assert_allclose(transformed(keys, x), eager, rtol=1e-6)
    assert np.isfinite(jax.jit(jax.grad(lambda x: chain(keys, x).sum()))(x)).all()
    half = x.astype(jnp.bfloat16)
    assert chain(keys, half).dtype == jnp.bfloat16
    ladder = lambda x: langevin.annealed(
        jax.random.key(0), lambda x, t: -x, x, schedules.times(3), schedule=schedules.ve(), steps=2
    )
    assert jax.eval_shape(ladder, half).dtype == jnp.bfloat16


def test_gradients_are_finite_where_the_score_vanishes():
    moved = lambda x: correctors.correct(jax.random.key(0), lambda x, t: -x, x, 0.5).sum()
    assert np.isfinite(jax.grad(moved)(jnp.zeros(3))).all()


def test_what_is_wrong_is_said_at_the_door():
    x = jnp.zeros(3)
    with pytest.raises(ValueError, match="a score, or a log density"):
        langevin.sample(jax.random.key(0), None, x, step_size=0.1, steps=1)
    with pytest.raises(ValueError, match="steps=0"):
        langevin.sample(jax.random.key(0), score, x, step_size=0.1, steps=0)
    with pytest.raises(ValueError, match="step_size=-0.1"):
        langevin.sample(jax.random.key(0), score, x, step_size=-0.1, steps=1)
    with pytest.raises(ValueError, match="metropolis"):
        langevin.sample(jax.random.key(0), score, x, step_size=0.1, steps=1, metropolis=lambda x: jnp.zeros(2))
    with pytest.raises(ValueError, match="at least one step"):
        correctors.predictor_corrector(jax.random.key(0), lambda *a: x, lambda x, t: x, x, jnp.zeros(1))


# ------------------------------------------------------------------------------------------------------------- E1


def divergence_from_truth(x, bins=80, reach=8.0):
    """KL(histogram || p) in nats over 80 bins, whose own bias at 5,000 draws is 79/10,000 = .0079."""
    edges = np.linspace(-reach, reach, bins + 1)
    density = lambda x: (0.2 + np.cos(2 * x) ** 2) * np.exp(-0.1 * x**2) / (0.7 * np.sqrt(10 * np.pi))
    truth = np.array([integrate.quad(density, a, b)[0] for a, b in itertools.pairwise(edges)])
    share = np.histogram(x, edges)[0] / len(x)
    kept = share > 0
    return float((share[kept] * np.log(share[kept] / truth[kept])).sum())


def physicist(seed, step_size, steps, metropolis):
    key, start = jax.random.split(jax.random.key(seed))
    chain = jax.jit(lambda k, x: langevin.sample(k, score, x, step_size=step_size, steps=steps, metropolis=metropolis))
    return np.asarray(chain(key, 3 * jax.random.normal(start, (5000,))), np.float64)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_mala_reaches_the_physicists_density(seed):
    # E cos 4x has a standard error of .0097 at 5,000 draws; KL bias .0079 with sd .0013: a false alarm about once in 100 seeds.
    x = physicist(seed, 0.5, 400, log_p)
    assert divergence_from_truth(x) <= 0.012
    assert abs(np.cos(4 * x).mean() - 5 / 14) <= 0.025
    assert abs((x**2).mean() - 5) < 0.4  # s.e. .1


def test_unadjusted_steps_of_a_tenth_do_not():
    x = physicist(0, 0.1, 500, None)
    assert divergence_from_truth(x) > 0.04


def test_array_of_keys_needs_the_batch():
    with pytest.raises(ValueError, match="array of keys"):
        langevin.sample(numerics.split(jax.random.key(0), 2), score, jnp.zeros(3), step_size=0.1, steps=1)
