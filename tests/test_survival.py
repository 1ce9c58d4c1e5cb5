"""What is lost of a schedule's survival, against 40 digits: also where float32's alpha has no digits left to subtract."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from diffjax import schedules
from diffjax.processes import survival

mp = mpmath.mp.clone()
mp.dps = 40


def vp(t):
    return mp.exp(-(mp.mpf(20) - mp.mpf(1) / 10) * t**2 / 4 - t / 20)


def cosine(t):
    start = mp.pi / 2 * mp.mpf("0.008") / mp.mpf("1.008")
    return mp.cos(start + (mp.pi / 2 - start) * t) / mp.cos(start)


SCHEDULES = {
    "rectified": (schedules.rectified(), lambda t: 1 - t),
    "vp_linear": (schedules.vp_linear(), vp),
    "cosine": (schedules.cosine(), cosine),
    "squared": (lambda t: (schedules.cosine()(t)[0] ** 2, t), lambda t: cosine(t) ** 2),
    "exponential": (lambda t: (jnp.exp(-3 * t), t), lambda t: mp.exp(-3 * t)),
}
each = pytest.mark.parametrize("name", SCHEDULES)


def pairs(seed=0, n=60):
    """From the whole interval, near the data, and close to each other."""
    rng = np.random.default_rng(seed)
    t = np.concatenate([rng.uniform(0.01, 0.999, n), 10 ** rng.uniform(-7, -1, n), rng.uniform(0.05, 0.98, n)])
    s = np.concatenate([t[: 2 * n] * rng.uniform(size=2 * n), t[2 * n :] - 10 ** rng.uniform(-6, -1.5, n)])
    s[:5] = s[n : n + 5] = 0
    return np.float32(s), np.float32(t)


@each
def test_what_is_lost_has_its_digits(name):
    schedule, exact = SCHEDULES[name]
    s, t = pairs()
    alphas = [[exact(mp.mpf(float(u))) for u in times] for times in (s, t)]
    loss = np.array([float(a - b) for a, b in zip(*alphas, strict=True)])
    run = np.array([float(mp.log(a / b)) for a, b in zip(*alphas, strict=True)])
    lost, hazard, (a, lost_a, b, lost_b) = jax.jit(
        lambda s, t: [f(s, t, schedule=schedule) for f in (survival.lost, survival.hazard, survival.legs)]
    )(s, t)
    # vp_linear's exponent of 5 is rounded before it is raised: 4e-7 of alpha where t is near 1.
    bound = 1e-6 if name in ("vp_linear", "exponential") else 5e-7
    np.testing.assert_allclose(lost, loss, rtol=bound)
    np.testing.assert_allclose(hazard, run, rtol=2 * bound)
    np.testing.assert_allclose(a, [float(x) for x in alphas[0]], rtol=bound)
    np.testing.assert_allclose(lost_a, [float(1 - x) for x in alphas[0]], rtol=bound)
    np.testing.assert_allclose(b, np.exp(-run), rtol=2 * bound)
    np.testing.assert_allclose(lost_b, -np.expm1(-run), rtol=2 * bound)
    # The difference of float32's alphas would not do.
    plain = np.asarray(schedule(jnp.asarray(s))[0] - schedule(jnp.asarray(t))[0], np.float64)
    assert np.abs(plain / loss - 1).max() > 1e-3


def test_a_schedule_with_a_step_or_a_kink_is_no_worse_than_its_difference():
    t = jnp.linspace(0.0, 1.0, 201)
    for alpha in (
        lambda t: jnp.where(t < 0.5, 1.0, 0.25) * jnp.ones_like(t),
        lambda t: jnp.where(t < 0.3, 1 - t, 0.7 - 0.2 * (t - 0.3)),
        lambda t: jnp.interp(t, jnp.linspace(0.0, 1.0, 6), jnp.array([1.0, 0.9, 0.5, 0.3, 0.1, 0.0])),
    ):
        schedule = lambda t, alpha=alpha: (alpha(jnp.asarray(t)), jnp.asarray(t))
        for gap in (1e-3, 0.02, 0.5):
            s = jnp.maximum(t - gap, 0.0)
            ours = survival.lost(s, t, schedule=schedule)
            with jax.enable_x64(True):
                truth = alpha(np.float64(s)) - alpha(np.float64(t))
            np.testing.assert_allclose(ours, truth, atol=1.1e-6)  # eight units of rounding


def test_ends():
    schedule = schedules.cosine()
    assert survival.survival(0.0, schedule=schedules.linear_logsnr()) == 1
    # alpha(0) is below 1: what is missing goes as soon as time begins, and not before.
    low = schedules.linear_logsnr(-8.0, 2.0)
    rest = 1 - float(low(0.0)[0])
    np.testing.assert_allclose(survival.lost(0.0, 1e-6, schedule=low), rest, rtol=1e-4)
    assert survival.lost(0.0, 0.0, schedule=low) == 0
    assert survival.lost(0.3, 0.3, schedule=schedule) == 0
    np.testing.assert_array_equal(survival.hazard(jnp.array([0.5, 1.0]), jnp.ones(2), schedule=schedule), [np.inf, 0])
    a, lost_a, b, lost_b = survival.legs(1.0, 1.0, schedule=schedule)
    assert (a, lost_a, b, lost_b) == (0, 1, 1, 0)


@each
def test_gradients_are_the_schedules_own(name):
    schedule, exact = SCHEDULES[name]
    s, t = 0.2, 0.6
    ours = jax.grad(lambda s, t: survival.hazard(s, t, schedule=schedule), argnums=(0, 1))(s, t)
    truth = [float(sign * mp.diff(lambda u: mp.log(exact(u)), x)) for sign, x in ((1, s), (-1, t))]
    np.testing.assert_allclose(ours, truth, rtol=2e-6)
    for ends in ((0.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.5, 0.5)):
        slopes = jax.grad(lambda s, t: sum(survival.legs(s, t, schedule=schedule)), argnums=(0, 1))(*ends)
        slopes += jax.grad(lambda s, t: survival.hazard(s, t, schedule=schedule), argnums=(0, 1))(*ends)
        assert np.isfinite(slopes).all(), ends


def test_a_learned_schedule_and_float64():
    learned = lambda w: lambda t: ((1 - jnp.asarray(t)) ** w, jnp.zeros(()))
    slope = jax.grad(lambda w: survival.hazard(0.25, 0.5, schedule=learned(w)))(2.0)
    np.testing.assert_allclose(slope, np.log(1.5), rtol=1e-6)  # w log(.75 / .5)
    with jax.enable_x64(True):
        loss = survival.lost(1e-9, 3e-9, schedule=schedules.rectified())
        assert loss.dtype == jnp.float64
        np.testing.assert_allclose(loss, 2e-9, rtol=1e-14)
    shape = survival.lost(jnp.zeros((3, 1)), jnp.full((3, 4), 0.5), schedule=schedules.cosine()).shape
    assert shape == (3, 4)
    assert survival.lost(0.0, jnp.full(3, 0.5, jnp.bfloat16), schedule=schedules.cosine()).dtype == jnp.float32
