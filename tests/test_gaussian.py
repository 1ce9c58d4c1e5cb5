"""Gaussian and Ornstein-Uhlenbeck processes against Bayes' rule in 50 digits, and against matrix algebra."""

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

from diffjax import schedules
from diffjax.processes import gaussian

SCHEDULES = {
    "vp_linear": schedules.vp_linear(),
    "cosine": schedules.cosine(),
    "rectified": schedules.rectified(),
    "karras": schedules.karras(),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_posterior_is_bayes_rule(name):
    # q(x_s|x_0,x_t) ~ q(x_s|x_0) q(x_t|x_s), completed to a square in precisions, in float64.
    schedule = SCHEDULES[name]
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        for _ in range(20):
            s, t = np.sort(rng.uniform(0.02, 0.98, 2))
            x0, xt = rng.normal(size=2)
            (alpha_s, sigma_s), (alpha_t, sigma_t) = ([float(v) for v in schedule(u)] for u in (s, t))
            a = alpha_t / alpha_s
            v = sigma_t**2 - a**2 * sigma_s**2
            precision = 1 / sigma_s**2 + a**2 / v
            mean = (alpha_s * x0 / sigma_s**2 + a * xt / v) / precision
            ours, std = gaussian.posterior(jnp.asarray([x0]), jnp.asarray([xt]), s, t, schedule=schedule)
            np.testing.assert_allclose(float(ours[0]), mean, rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(float(std), precision**-0.5, rtol=1e-8)


@pytest.mark.parametrize("name", SCHEDULES)
def test_posterior_at_the_edges(name):
    x0, xt = jnp.array([0.3, -2.0]), jnp.array([1.5, 0.7])
    schedule = SCHEDULES[name]
    mean, std = gaussian.posterior(x0, xt, 0.6, 0.6, schedule=schedule)  # s = t
    np.testing.assert_allclose(mean, xt, rtol=1e-5)
    assert float(std) < 1e-3 * float(schedule(0.6)[1])
    if float(schedule(0.0)[1]) == 0:
        mean, std = gaussian.posterior(x0, xt, 0.0, 1.0, schedule=schedule)  # s = 0
        np.testing.assert_allclose(mean, x0, rtol=1e-6)
        assert float(std) == 0
        mean, std = gaussian.posterior(x0, x0, 0.0, 0.0, schedule=schedule)  # both
        assert np.isfinite(mean).all()
    if float(schedule(1.0)[0]) == 0:  # pure noise says nothing: the forward marginal
        mean, std = gaussian.posterior(x0, xt, 0.4, 1.0, schedule=schedule)
        alpha, sigma = schedule(0.4)
        np.testing.assert_allclose(mean, alpha * x0, rtol=1e-6)
        np.testing.assert_allclose(std, sigma, rtol=1e-6)


def ou_reference(x0, xt, s, t, mu, vol, theta):
    """Mean and variance of the Ornstein-Uhlenbeck bridge from the joint Gaussian of (x_s, x_t) given x_0, in 50 digits."""
    x0, xt, s, t, mu, vol, theta = (mp.mpf(float(v)) for v in (x0, xt, s, t, mu, vol, theta))

    def cov(a, b):  # a <= b
        if theta == 0:
            return vol**2 * a
        return vol**2 / (2 * theta) * (mp.exp(-theta * (b - a)) - mp.exp(-theta * (a + b)))

    mean_s, mean_t = (mu + (x0 - mu) * mp.exp(-theta * u) for u in (s, t))
    gain = cov(s, t) / cov(t, t)
    return mean_s + gain * (xt - mean_t), cov(s, s) - gain * cov(s, t), mean_t, cov(t, t)


def test_ornstein_uhlenbeck_bridge_and_marginal_up_to_long_horizons():
    rng = np.random.default_rng(1)
    n, horizon = 300, 100.0
    t = (10 ** rng.uniform(-5, 0, n)).astype(np.float32)
    s = (t * rng.uniform(0.001, 0.999, n)).astype(np.float32)
    mu, x0, xt = (rng.normal(size=n).astype(np.float32) for _ in range(3))
    vol, theta = rng.uniform(0.2, 3, n).astype(np.float32), (10 ** rng.uniform(-4, 1.3, n)).astype(np.float32)
    theta[:5] = 0
    # One site an example: parameters of each example's own, by vmap over one-entry events.
    keys = jax.random.split(jax.random.key(0), n)

    def bridge_moments(mu, vol, theta, x0, xt, s, t):
        p = gaussian.ornstein_uhlenbeck(mu, vol, theta, horizon=horizon)
        # The bridge is mean + std z with z from the key: two keys and their z give both.
        z = jnp.stack([jax.random.normal(k, (1,)) for k in (jax.random.key(0), jax.random.key(1))])[:, 0]
        x = jnp.stack([p.bridge(k, x0[None], xt[None], s, t)[0] for k in (jax.random.key(0), jax.random.key(1))])
        std = (x[1] - x[0]) / (z[1] - z[0])
        return x[0] - std * z[0], std, p.log_prob(x0[None], xt[None], t)

    with jax.enable_x64(True):
        args = [jnp.asarray(v, jnp.float64) for v in (mu, vol, theta, x0, xt, s, t)]
        mean64, std64, logp64 = jax.jit(jax.vmap(bridge_moments))(*args)
    mean32, std32, logp32 = jax.jit(jax.vmap(bridge_moments))(mu, vol, theta, x0, xt, s, t)
    del keys
    with mp.workdps(50):
        refs = [
            ou_reference(*row)
            for row in zip(x0, xt, 100.0 * s.astype(float), 100.0 * t.astype(float), mu, vol, theta, strict=True)
        ]
        mean, var = (np.array([float(r[i]) for r in refs]) for i in (0, 1))
        logp = np.array(
            [
                float(-((mp.mpf(float(x)) - r[2]) ** 2) / (2 * r[3]) - mp.log(2 * mp.pi * r[3]) / 2)
                for x, r in zip(xt, refs, strict=True)
            ]
        )
    np.testing.assert_allclose(mean64, mean, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(std64**2, var, rtol=1e-8)
    np.testing.assert_allclose(logp64, logp, rtol=1e-9, atol=1e-9)
    assert np.max(np.abs(mean32 - mean) / np.maximum(1, np.abs(mean))) < 3e-5
    assert np.max(np.abs(std32.astype(float) ** 2 / var - 1)) < 3e-5  # two draws' difference adds its own rounding
    assert np.max(np.abs(logp32 - logp) / np.maximum(1, np.abs(logp))) < 1e-4


def test_per_dimension_parameters_meet_the_trailing_axes():
    p = gaussian.ornstein_uhlenbeck(jnp.array([0.0, 5.0]), jnp.array([1.0, 2.0]), jnp.array([0.5, 2.0]), horizon=3.0)
    x0, xt = jnp.ones((4, 2)), jnp.full((4, 2), 2.0)
    t = jnp.array([0.1, 0.4, 0.7, 1.0])
    each = [
        gaussian.ornstein_uhlenbeck(*v, horizon=3.0).log_prob(x0[:, i : i + 1], xt[:, i : i + 1], t)
        for i, v in enumerate([(0.0, 1.0, 0.5), (5.0, 2.0, 2.0)])
    ]
    np.testing.assert_allclose(p.log_prob(x0, xt, t), each[0] + each[1], rtol=1e-5)


def test_ornstein_uhlenbeck_is_variance_preserving_at_the_default():
    # volatility 1 and reversion 1/2 is VP with a constant rate of 1: alpha = e^(-tau/2), sigma^2 = 1 - e^-tau.
    def constant(t):
        t = jnp.asarray(t)
        return jnp.exp(-2.0 * t), jnp.sqrt(-jnp.expm1(-4.0 * t))

    ou, vp = gaussian.ornstein_uhlenbeck(horizon=4.0), gaussian.process(constant)
    x0, xt, t = jnp.ones((3, 2)), jnp.zeros((3, 2)), jnp.array([0.1, 0.5, 1.0])
    np.testing.assert_allclose(ou.log_prob(x0, xt, t), vp.log_prob(x0, xt, t), rtol=1e-5)
    key = jax.random.key(0)
    np.testing.assert_allclose(ou.bridge(key, x0, xt, t / 2, t), vp.bridge(key, x0, xt, t / 2, t), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ou.corrupt(key, x0, t), vp.corrupt(key, x0, t), rtol=1e-5, atol=1e-6)


def test_doors():
    p = gaussian.process(schedules.cosine())
    x = jnp.ones((3, 2))
    with pytest.raises(ValueError, match=r"x0.shape=\(3, 2\), xt.shape=\(3, 1\)"):
        p.log_prob(x, x[:, :1], 0.5)
    with pytest.raises(ValueError, match="prefix of the data's shape"):
        p.corrupt(jax.random.key(0), x, jnp.ones(4))
    with pytest.raises(ValueError, match="got t=2"):
        p.corrupt(jax.random.key(0), x, 2)
    with pytest.raises(ValueError, match="horizon > 0"):
        gaussian.ornstein_uhlenbeck(horizon=0.0)
    with pytest.raises(ValueError, match="got t=-1"):
        gaussian.ornstein_uhlenbeck().corrupt(jax.random.key(0), x, -1)
    with pytest.raises(TypeError, match="expected a key"):
        p.corrupt(jnp.ones(2), x, 0.5)
    with pytest.raises(ValueError, match="array of keys"):
        p.corrupt(jax.random.split(jax.random.key(0), 5), x, 0.5)
