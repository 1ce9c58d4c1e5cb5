"""Schedules against 30-digit arithmetic, their derivatives against closed forms, and the grids and draws of time."""

import math

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

from diffjax import schedules

ALL = {
    "vp_linear": schedules.vp_linear(),
    "cosine": schedules.cosine(),
    "rectified": schedules.rectified(),
    "linear_logsnr": schedules.linear_logsnr(-9.0, 7.0),
    "ve": schedules.ve(0.01, 50.0),
    "karras": schedules.karras(),
    "zero_terminal_snr": schedules.zero_terminal_snr(schedules.vp_linear()),
}


def reference(name, t):
    t = mp.mpf(float(t))
    linear = lambda t: mp.exp(-(mp.mpf("0.1") * t + mp.mpf("19.9") * t**2 / 2) / 2)
    if name == "vp_linear":
        alpha = linear(t)
    elif name == "zero_terminal_snr":
        alpha = (linear(t) - linear(1)) / (1 - linear(1))
    elif name == "cosine":
        s = mp.mpf("0.008")
        alpha = mp.cos(mp.pi / 2 * (t + s) / (1 + s)) / mp.cos(mp.pi / 2 * s / (1 + s))
    elif name == "rectified":
        return 1 - t, t
    elif name == "linear_logsnr":
        alpha = 1 / mp.sqrt(1 + mp.exp(16 * t - 7))
    elif name == "ve":
        return mp.mpf(1), mp.mpf("0.01") * mp.mpf(5000) ** t
    else:
        low, high = mp.mpf("0.002") ** (mp.mpf(1) / 7), mp.mpf(80) ** (mp.mpf(1) / 7)
        return mp.mpf(1), (low + t * (high - low)) ** 7
    return alpha, mp.sqrt(1 - alpha**2)


@pytest.mark.parametrize("name", ALL)
def test_schedule_is_exact_in_float32_at_all_times(name):
    # sqrt(1 - alpha^2) would be wrong in the third digit at 1e-5.
    t = np.concatenate([10.0 ** np.linspace(-8, -0.01, 60), 1 - 10.0 ** np.linspace(-6, -1, 20), [1.0]]).astype(
        np.float32
    )
    alpha, sigma = ALL[name](t)
    with mp.workdps(30):
        truth = [reference(name, v) for v in t]
    np.testing.assert_allclose(alpha, [float(a) for a, _ in truth], rtol=3e-6, atol=1e-7)
    np.testing.assert_allclose(sigma, [float(s) for _, s in truth], rtol=3e-6)


@pytest.mark.parametrize("name", ALL)
def test_sde_reproduces_the_schedule(name):
    # d alpha = f alpha dt and d sigma^2 = (2 f sigma^2 + g2) dt, integrated by Gauss-Legendre in float64.
    with jax.enable_x64(True):
        nodes, weights = np.polynomial.legendre.leggauss(40)
        a, b = 0.05, 0.9
        t = a + (b - a) * (nodes + 1) / 2
        f, g2 = schedules.sde_coefficients(jnp.asarray(t), schedule=ALL[name])
        (alpha_a, sigma_a), (alpha_b, sigma_b) = ALL[name](a), ALL[name](b)
        _, sigma = ALL[name](t)
        integral = lambda y: float(np.sum(weights * np.asarray(y)) * (b - a) / 2)
        np.testing.assert_allclose(np.log(alpha_b / alpha_a), integral(f), rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(sigma_b**2 - sigma_a**2, integral(2 * f * sigma**2 + g2), rtol=1e-8)


def test_sde_of_the_linear_schedule_is_its_rate_also_at_zero():
    t = jnp.array([0.0, 1e-6, 0.3, 1.0])
    beta = 0.1 + 19.9 * t
    f, g2 = schedules.sde_coefficients(t, schedule=schedules.vp_linear())
    np.testing.assert_allclose(f, -beta / 2, rtol=1e-5)
    np.testing.assert_allclose(g2, beta, rtol=2e-4)


@pytest.mark.parametrize("name", ALL)
def test_logsnr_and_its_inverse(name):
    t = jnp.array([1e-3, 0.01, 0.2, 0.5, 0.9, 0.99])
    value = schedules.logsnr(t, schedule=ALL[name])
    back = schedules.time_of_logsnr(value, schedule=ALL[name])
    np.testing.assert_allclose(schedules.logsnr(back, schedule=ALL[name]), value, atol=2e-5)
    np.testing.assert_allclose(back, t, rtol=2e-5, atol=2e-6)
    # The derivative of an inverse is the inverse of the derivative.
    slope = jax.vmap(jax.grad(lambda v: schedules.time_of_logsnr(v, schedule=ALL[name])))(value)
    np.testing.assert_allclose(slope * schedules.dlogsnr(t, schedule=ALL[name]), 1.0, rtol=1e-3)
    assert float(schedules.time_of_logsnr(np.inf, schedule=ALL[name])) == 0
    assert float(schedules.time_of_logsnr(-np.inf, schedule=ALL[name])) == 1


@pytest.mark.parametrize("name", ALL)
def test_derivatives_are_finite_at_both_ends_and_noise_grows(name):
    for t in (0.0, 1.0):
        for part in (0, 1):
            assert np.isfinite(jax.grad(lambda u, part=part: ALL[name](u)[part])(t))
        assert np.isfinite(schedules.rates(t, schedule=ALL[name])).all()
    grid = jnp.linspace(0.0, 1.0, 101)
    assert (np.diff(schedules.logsnr(grid, schedule=ALL[name])) < 0).all()


def test_uniform_times_of_the_karras_schedule_are_the_karras_grid():
    n, low, high = 17, 0.002, 80.0
    grid = (high ** (1 / 7) + np.arange(n + 1) / n * (low ** (1 / 7) - high ** (1 / 7))) ** 7
    np.testing.assert_allclose(schedules.karras()(schedules.times(n))[1], grid, rtol=3e-5)
    # The same grid of noise-to-signal through any other schedule.
    t = schedules.times(n, spacing=schedules.karras_spacing(schedules.ve(low, high)))
    np.testing.assert_allclose(schedules.ve(low, high)(t)[1], grid, rtol=3e-4)


def test_grids_are_even_in_what_they_say():
    cosine = schedules.cosine()
    t = schedules.times(20, start=0.99, stop=0.01, spacing=schedules.logsnr_spacing(cosine))
    np.testing.assert_allclose(np.diff(schedules.logsnr(t, schedule=cosine), 2), 0, atol=2e-4)
    np.testing.assert_allclose(np.diff(np.sqrt(schedules.times(20, spacing=schedules.quadratic)), 2), 0, atol=1e-6)
    for spacing in (schedules.uniform, schedules.quadratic, schedules.karras_spacing(schedules.vp_linear())):
        t = schedules.times(7, spacing=spacing)
        assert t[0] == 1
        assert t[-1] == 0
        assert t.shape == (8,)


def test_times_say_what_is_wrong():
    with pytest.raises(ValueError, match="at least one step"):
        schedules.times(0)
    with pytest.raises(ValueError, match="0 <= stop < start <= 1"):
        schedules.times(5, start=0.2, stop=0.4)
    with pytest.raises(ValueError, match="no finite log-SNR"):
        schedules.times(5, spacing=schedules.logsnr_spacing(schedules.cosine()))
    with pytest.raises(ValueError, match="got t=1.5"):
        schedules.cosine()(1.5)
    with pytest.raises(ValueError, match=r"got t=-0\.1"):
        schedules.rectified()(np.array([0.2, -0.1]))
    with pytest.raises(ValueError, match="low < high"):
        schedules.linear_logsnr(6.0, -8.0)
    with pytest.raises(ValueError, match="sigma_min < sigma_max"):
        schedules.ve(1.0, 0.1)


def test_draws_of_time_do_not_depend_on_the_layout_and_stratify_the_whole_batch():
    key = jax.random.key(3)
    index = jnp.arange(64)
    for draw in (schedules.uniform_draw, schedules.stratified_draw):
        whole = draw(key, index, 64)
        parts = jnp.concatenate([draw(key, part, 64) for part in jnp.split(index, 8)])
        np.testing.assert_array_equal(whole, parts)
    cells = np.sort(np.floor(64 * np.asarray(schedules.stratified_draw(key, index, 64))))
    # One in each cell; float32 rounding may push a draw over a cell's edge.
    assert len(set(cells)) >= 63


def test_warps_have_their_densities():
    # Inverse-CDF warps of an even grid: their quantiles are known. No randomness, so no false alarms.
    u = jnp.asarray((np.arange(2000) + 0.5) / 2000, jnp.float32)
    t = np.asarray(schedules.logit_normal(u, mean=-0.5, std=0.8), np.float64)
    logit = np.log(t / (1 - t))
    np.testing.assert_allclose([logit.mean(), logit.std()], [-0.5, 0.8], rtol=3e-3)
    vp = schedules.vp_linear()
    value = schedules.logsnr(schedules.logsnr_importance(u, schedule=vp, low=-8.0, high=6.0), schedule=vp)
    np.testing.assert_allclose(value, 6 - 14 * u, atol=3e-4)


def test_trailing_times_are_those_of_training():
    # Lin et al. 2024, table 2: round(arange(1000, 0, -1000 / S)), counted from 1.
    for steps in (5, 7, 30, 1000):
        expected = np.round(np.arange(steps, 0, -1) * 1000 / steps)
        got = 1000 * np.asarray(schedules.times(steps, spacing=schedules.trailing(1000)), np.float64)
        np.testing.assert_allclose(got[:-1], expected, atol=1e-4)
    with pytest.raises(ValueError, match="does not go down"):
        schedules.times(11, spacing=schedules.trailing(10))


def test_no_signal_is_left_at_the_end_of_zero_terminal_snr():
    rescaled = jax.jit(ALL["zero_terminal_snr"])
    assert [float(v) for v in rescaled(1.0)] == [0.0, 1.0]
    assert [float(v) for v in rescaled(jnp.ones(3))[0]] == [0.0] * 3
    with pytest.raises(ValueError, match=r"alpha\^2 \+ sigma\^2 = 1"):
        schedules.zero_terminal_snr(schedules.ve())


def test_cosine_keeps_the_last_digit_of_alpha_and_its_slopes():
    # A chain with rate r multiplies the error of alpha by r; rounded angles alone would cost 1.2e-7.
    t = np.random.default_rng(0).random(20_000).astype(np.float32)
    a = 0.5 * math.pi * 0.008 / 1.008
    rest, wide = 0.5 * math.pi - a, t.astype(np.float64)
    alpha = lambda t: schedules.cosine()(t)[0]
    slope = jax.grad(alpha)
    for function, exact, bound in (
        (alpha, np.cos(a + rest * wide), 7e-8),
        (slope, -rest * np.sin(a + rest * wide), 4e-7),
        (jax.grad(slope), -(rest**2) * np.cos(a + rest * wide), 1e-6),
    ):
        error = np.abs(np.asarray(jax.vmap(function)(t), np.float64) - exact / math.cos(a))
        assert error.max() <= bound
    ends = alpha(jnp.array([0.0, 1.0]))
    np.testing.assert_array_equal(ends, [1.0, 0.0])
