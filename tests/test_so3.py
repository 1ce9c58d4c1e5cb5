"""Rotations. References: the character series in mpmath and in float64, scipy's rotations, quadrature on the disk, autodiff.

A uniform unit quaternion (g0, g1, g2, g3) has (g0, g3) uniform on the unit disk. The bridge's law is symmetric about the axis of q0^-1 qt,
so with that axis along z its whole law is a density on the disk, which a fine grid of points integrates.
"""

import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy import stats
from scipy.spatial.transform import Rotation

from diffjax import schedules
from diffjax.processes import gaussian, joint, so3, so3_kernel, so3_table
from diffjax.samplers import bridge as sampler

mpmath.mp.dps = 50
RNG = np.random.default_rng(20240607)
ONE = jnp.array([1.0, 0.0, 0.0, 0.0])
N = 20_000  # draws of a fast test: one shape, so that each law is compiled once

corrupt, bridge = jax.jit(so3.corrupt), jax.jit(so3.bridge)
log_kernel, score = jax.jit(so3.log_kernel), jax.jit(so3.score)
log, exp, compose, relative, geodesic = (
    jax.jit(f) for f in (so3.log, so3.exp, so3.compose, so3.relative, so3.geodesic)
)
to_matrix, from_matrix = jax.jit(so3.to_matrix), jax.jit(so3.from_matrix)


def many(q, n=N):
    return jnp.broadcast_to(jnp.asarray(q, jnp.float32), (n, 4))


# -------------------------------------------------------------------------------------------------------- references


def mp_heat(w, t):
    """(f, f') at the angle w by the character series, as many terms as it takes."""
    w, t = mpmath.mpf(w), mpmath.mpf(t)
    x, y = 2 * mpmath.cos(w), 2 * mpmath.sin(w)
    chi, last, slope, last_slope = mpmath.mpf(1), mpmath.mpf(-1), mpmath.mpf(0), mpmath.mpf(0)
    f, df, decay, ratio, step = mpmath.mpf(0), mpmath.mpf(0), mpmath.mpf(1), mpmath.exp(-t), mpmath.exp(-t)
    for l in range(100_000):
        f += (2 * l + 1) * decay * chi
        df += (2 * l + 1) * decay * slope
        if (2 * l + 1) ** 3 * decay < mpmath.mpf(10) ** -45:
            return f, df
        slope, last_slope = x * slope - y * chi - last_slope, slope
        chi, last = x * chi - last, chi
        decay *= ratio  # exp(-l(l+1)t/2) -> exp(-(l+1)(l+2)t/2)
        ratio *= step
    raise AssertionError("the series did not end")


def mp_turn(q0, qt):
    """(angle, axis) of q0^-1 qt for the float32 numbers as they are, with angle <= pi."""
    a, b = ([mpmath.mpf(float(x)) for x in q] for q in (q0, qt))
    u = [
        a[0] * b[1] - a[1] * b[0] - a[2] * b[3] + a[3] * b[2],
        a[0] * b[2] - a[2] * b[0] - a[3] * b[1] + a[1] * b[3],
        a[0] * b[3] - a[3] * b[0] - a[1] * b[2] + a[2] * b[1],
    ]
    real = sum(x * y for x, y in zip(a, b, strict=True))
    length = mpmath.sqrt(sum(x * x for x in u))
    sign = 1 if real >= 0 else -1
    return 2 * mpmath.atan2(length, abs(real)), [sign * x / length for x in u]


def heat(w, t):
    """f(w; t) in float64, w any shape in (0, pi], t > 0: by characters, or by images where their sum would cancel."""
    if t < 1:
        winds = np.arange(-3, 4)
        a = w[..., None] + 2 * np.pi * winds
        images = ((-1.0) ** winds * a * np.exp(-(a**2) / (2 * t))).sum(-1)
        return math.sqrt(2 * math.pi) * t**-1.5 * math.exp(t / 8) * images / np.sin(w / 2)
    l = np.arange(20)
    return ((2 * l + 1) * np.exp(-l * (l + 1) * t / 2) * np.sin((l + 0.5) * w[..., None])).sum(-1) / np.sin(w / 2)


def angle(p, q):
    p, q = np.asarray(p, np.float64), np.asarray(q, np.float64)
    return (
        2 * np.arcsin(np.clip(np.minimum(np.linalg.norm(p - q, axis=-1), np.linalg.norm(p + q, axis=-1)) / 2, 0, 1)) * 2
    )


def rotations(n, seed=0):
    """Random rotations, float32 `[n, 4]`."""
    return quaternion(Rotation.from_quat(np.random.default_rng(seed).normal(size=(n, 4))))


def turns(n, angles, rng=RNG):
    """float32 pairs (q0, qt) with random q0 and axes and about these angles."""
    axes = rng.normal(size=(n, 3))
    v = axes / np.linalg.norm(axes, axis=1, keepdims=True) * np.asarray(angles)[:, None]
    q0 = Rotation.from_quat(rng.normal(size=(n, 4)))
    qt = q0 * Rotation.from_rotvec(v)
    sign = rng.choice([-1, 1], size=(n, 1))
    return quaternion(q0), quaternion(qt) * jnp.asarray(sign, jnp.float32)


def quaternion(rotation):
    return jnp.asarray(np.roll(rotation.as_quat(), 1, axis=-1), jnp.float32)


def ks(draws, grid, cdf):
    """The largest difference between the empirical distribution function and one given on a grid."""
    draws = np.sort(np.asarray(draws, np.float64).ravel())
    truth, n = np.interp(draws, grid, cdf), len(draws)
    return max(np.max(np.arange(1, n + 1) / n - truth), np.max(truth - np.arange(n) / n))


def angle_law(t, n=20_000):
    """The distribution function of the angle, by the midpoint rule."""
    edges = np.linspace(0, min(math.pi, 9 * math.sqrt(t)), n + 1)
    middle = (edges[1:] + edges[:-1]) / 2
    mass = so3_table.angle_density(middle, t) * edges[1]
    return edges, np.concatenate([[0], np.cumsum(mass)])


# ------------------------------------------------------------------------------------------------------------- group


def test_conversions_agree_with_scipy():
    v = RNG.normal(size=(200, 3)).astype(np.float32)
    truth = Rotation.from_rotvec(v.astype(np.float64))
    q = exp(jnp.asarray(v))
    np.testing.assert_allclose(to_matrix(q), truth.as_matrix(), atol=6e-7)
    np.testing.assert_allclose(log(q), truth.as_rotvec(), atol=2e-6)
    back = from_matrix(jnp.asarray(truth.as_matrix(), jnp.float32))
    assert angle(back, quaternion(truth)).max() < 2e-6
    assert (np.asarray(back[:, 0]) >= 0).all()
    half_turns = Rotation.from_rotvec(np.pi * np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0.6, -0.8]]))
    half = from_matrix(jnp.asarray(half_turns.as_matrix(), jnp.float32))
    assert angle(half, quaternion(half_turns)).max() < 2e-6


def test_products_compose_as_matrices_do():
    p, q, r = (rotations(50, seed) for seed in range(3))
    np.testing.assert_allclose(to_matrix(compose(p, q)), np.asarray(to_matrix(p)) @ np.asarray(to_matrix(q)), atol=1e-6)
    np.testing.assert_allclose(compose(compose(p, q), r), compose(p, compose(q, r)), atol=1e-6)
    np.testing.assert_allclose(compose(q, so3.inverse(q)), jnp.broadcast_to(ONE, (50, 4)), atol=1e-6)
    assert angle(compose(p, relative(p, q)), q).max() < 2e-6
    np.testing.assert_allclose(angle(geodesic(p, q, 0.0), p), 0, atol=2e-6)
    np.testing.assert_allclose(angle(geodesic(p, q, 1.0), q), 0, atol=2e-6)
    fraction = jnp.linspace(0, 1, 50)
    np.testing.assert_allclose(angle(p, geodesic(p, q, fraction)), fraction * angle(p, q), atol=3e-6)


def test_small_turns_keep_their_digits():
    # Rounding q to float32 moves it by 1e-7 and the angle by 1e-4 of itself, but not its reading.
    q0, qt = turns(30, np.full(30, 1e-3))
    v = np.asarray(log(relative(q0, qt)), np.float64)
    for i in range(30):
        w, axis = mp_turn(q0[i], qt[i])
        np.testing.assert_allclose(v[i], [float(w * x) for x in axis], atol=4e-7 * float(w))


@jax.jit
def there_and_back(v):
    function = lambda v: so3.log(so3.exp(v))
    return function(v), jax.jacrev(function)(v), jax.jacfwd(jax.jacrev(function))(v)


@pytest.mark.parametrize("length", [0.0, 1e-6, 1e-3, 0.3, 0.6, 1.1, 3.0, 3.14])
def test_exp_and_log_have_right_first_and_second_derivatives(length):
    # log(exp(v)) = v: first derivatives the identity, second none.
    v = length * jnp.array([2.0, -1.0, 2.0]) / 3
    value, first, second = there_and_back(v)
    np.testing.assert_allclose(value, v, atol=1e-6)
    np.testing.assert_allclose(first, np.eye(3), atol=2e-6)
    np.testing.assert_allclose(second, np.zeros((3, 3, 3)), atol=2e-5)


def test_derivatives_at_the_identity_and_at_half_a_turn_by_hand():
    both = lambda f: jax.jit(lambda x: (jax.jacrev(f)(x), jax.jacfwd(jax.jacrev(f))(x)))
    first, second = (np.asarray(x) for x in both(so3.exp)(jnp.zeros(3)))
    np.testing.assert_allclose(first, np.vstack([np.zeros(3), np.eye(3) / 2]))
    np.testing.assert_allclose(second[0], -np.eye(3) / 4)  # cos |v|/2 = 1 - |v|^2 / 8
    np.testing.assert_allclose(second[1:], 0)
    # log(q) = 2 u / r near q = (1, 0, 0, 0)
    slopes = both(so3.log)
    first, second = (np.asarray(x) for x in slopes(ONE))
    np.testing.assert_allclose(first, np.hstack([np.zeros((3, 1)), 2 * np.eye(3)]))
    np.testing.assert_allclose(second[:, 0, 1:], -2 * np.eye(3))
    # log(r, u) = (pi - 2 r / |u|) u / |u| + O(r^3) near r = 0
    first, second = (np.asarray(x) for x in slopes(jnp.array([0.0, 0.0, 0.0, 1.0])))
    np.testing.assert_allclose(first, np.array([[0, np.pi, 0, 0], [0, 0, np.pi, 0], [-2, 0, 0, 0]]), atol=1e-6)
    np.testing.assert_allclose(second[2, 0], [0, 0, 0, 2], atol=1e-6)  # d/dr d/d|u| of -2 r / |u|
    np.testing.assert_allclose(second[0, 0], [0, -2, 0, 0], atol=1e-6)


def test_minus_q_is_the_same_rotation():
    q0, qt = turns(64, RNG.uniform(0, np.pi, 64))
    half = jnp.array([[0.0, 0.6, 0.0, -0.8], [0.0, 0.0, -1.0, 0.0]])
    np.testing.assert_array_equal(log(qt), log(-qt))
    np.testing.assert_array_equal(log(half), log(-half))
    np.testing.assert_allclose(log(half), np.pi * np.array([[0.6, 0, -0.8], [0, 1, 0]]), rtol=1e-6)
    sigma = jnp.full(64, 0.7)
    for function in (log_kernel, score):
        value = function(q0, qt, sigma)
        np.testing.assert_allclose(function(-q0, qt, sigma), value, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(function(q0, -qt, sigma), value, rtol=1e-5, atol=1e-5)


def test_raw_numbers_become_rotations():
    x = jax.random.normal(jax.random.key(0), (100, 6)) * 3
    m = np.asarray(jax.jit(lambda x: so3.to_matrix(so3.from_six(x)))(x), np.float64)
    np.testing.assert_allclose(m @ np.swapaxes(m, 1, 2), np.broadcast_to(np.eye(3), m.shape), atol=2e-6)
    np.testing.assert_allclose(np.linalg.det(m), 1, atol=2e-6)
    first = np.asarray(x[:, :3]) / np.linalg.norm(x[:, :3], axis=1, keepdims=True)
    np.testing.assert_allclose(m[:, :, 0], first, atol=2e-6)  # the first axis keeps its direction
    assert (np.einsum("bi,bi->b", m[:, :, 1], np.asarray(x[:, 3:])) > 0).all()
    np.testing.assert_allclose(so3.to_bcd(so3.from_bcd(x[:, :3])), x[:, :3], rtol=2e-5)
    v = jnp.array([0.0, 0.8, 0.6])
    np.testing.assert_allclose(so3.from_bcd(jnp.tan(0.7) * v), so3.exp(1.4 * v), atol=1e-6)
    np.testing.assert_allclose(so3.normalize(-5 * so3.exp(v)), -so3.exp(v), atol=1e-6)
    # Nothing is NaN for degenerate output, nor is its gradient.
    for function, size in ((so3.from_six, 6), (so3.normalize, 4), (so3.from_bcd, 3)):
        raw = jnp.stack([jnp.zeros(size), jnp.ones(size), 1e18 * jnp.ones(size), jnp.linspace(0, 1e-18, size)])
        value, slopes = jax.jit(jax.vmap(lambda x, f=function: (f(x), jax.jacrev(f)(x))))(raw)
        np.testing.assert_allclose(jnp.linalg.norm(value, axis=-1), 1, rtol=1e-5)
        assert bool(jnp.isfinite(slopes).all()), function


# ------------------------------------------------------------------------------------------------- density and score


def against_mpmath(n, seed):
    """Worst errors of the log density (mixed) and of the score (relative) at n random points within the bars' range."""
    rng = np.random.default_rng(seed)
    sigma = (10 ** rng.uniform(-2, 0.5, n)).astype(np.float32)
    q0, qt = turns(n, rng.uniform(0, 1, n) * np.minimum(6 * sigma, np.pi - 0.05), rng)
    log_f = np.asarray(log_kernel(q0, qt, jnp.asarray(sigma)), np.float64)
    slope = np.asarray(score(q0, qt, jnp.asarray(sigma)), np.float64)
    worst = [0.0, 0.0]
    for i in range(n):
        w, axis = mp_turn(q0[i], qt[i])
        f, df = mp_heat(w, mpmath.mpf(float(sigma[i])) ** 2)
        truth = float(mpmath.log(f))
        worst[0] = max(worst[0], abs(log_f[i] - truth) / max(1, abs(truth)))
        size = float(df / f)
        error = slope[i] - [float(x) * size for x in axis]
        worst[1] = max(worst[1], np.linalg.norm(error) / abs(size))
    return worst


def test_density_and_score_against_the_series():
    log_error, score_error = against_mpmath(64, 0)
    assert log_error < 3e-6
    assert score_error < 2e-5


@pytest.mark.slow
def test_density_and_score_against_the_series_at_many_points():
    log_error, score_error = against_mpmath(2_000, 1)
    assert log_error < 3e-6
    assert score_error < 2e-5


def test_far_tails_and_half_turns():
    # Up to 300 sigma, and up to half a turn, where two geodesics meet.
    sigma = np.tile(np.array([0.01, 0.05, 0.2, 0.7, 1.0, 1.3, 1.4, 1.42, 1.5, 3.0] * 6, np.float32), 2)[:64]
    angles = np.concatenate([np.repeat([2.0, 3.1, np.pi - 1e-3, np.pi - 1e-5], 16)])
    q0, qt = turns(64, angles)
    log_f, slope = log_kernel(q0, qt, jnp.asarray(sigma)), np.asarray(score(q0, qt, jnp.asarray(sigma)), np.float64)
    for i in range(64):
        w, axis = mp_turn(q0[i], qt[i])
        t = mpmath.mpf(float(sigma[i])) ** 2
        # The character series would need thousands of digits here; the sum over geodesics is exact in any case.
        terms = [(w + 2 * mpmath.pi * k, (-1) ** k) for k in range(-6, 7)]
        total = sum(s * x * mpmath.exp(-x * x / (2 * t)) for x, s in terms)
        slopes = sum(s * (1 - x * x / t) * mpmath.exp(-x * x / (2 * t)) for x, s in terms)
        truth = t / 8 + mpmath.log(mpmath.sqrt(2 * mpmath.pi) * total / mpmath.sin(w / 2)) - 1.5 * mpmath.log(t)
        size = float(slopes / total - mpmath.cot(w / 2) / 2)
        np.testing.assert_allclose(float(log_f[i]), float(truth), rtol=5e-7, atol=2e-6)
        # Near half a turn the score is the difference of two pulls, each of pi / t.
        np.testing.assert_allclose(
            slope[i], [float(x) * size for x in axis], atol=2e-6 * abs(size) + 4e-7 * np.pi / float(t)
        )


def end_turned(function):
    """As a function of a small turn of qt's body."""
    return lambda v, q0, qt, sigma: function(q0, so3.compose(qt, so3.exp(v)), sigma)


@jax.jit
def gradients(q0, qt, sigma):
    """The gradients of the log density under small turns of either body."""
    start_turned = lambda v: so3.log_kernel(so3.compose(q0, so3.exp(v)), qt, sigma)
    return jax.grad(end_turned(so3.log_kernel))(jnp.zeros(3), q0, qt, sigma), jax.grad(start_turned)(jnp.zeros(3))


@pytest.mark.parametrize("sigma", [0.02, 0.5, 1.3, 1.6, 3.0])
def test_score_is_the_gradient_of_the_log_density(sigma):
    q0, qt = turns(64, np.linspace(0, min(4 * sigma, np.pi), 64))
    ours = np.asarray(score(q0, qt, jnp.full(64, sigma)))
    for i in (0, 1, 20, 40, 63):
        end, start = gradients(q0[i], qt[i], sigma)
        np.testing.assert_allclose(ours[i], end, rtol=2e-4, atol=2e-5 / sigma**2)
        # The gradient in q0's frame is that in qt's, turned, with the other sign.
        turn = np.asarray(to_matrix(relative(q0[i], qt[i])))
        np.testing.assert_allclose(start, -turn @ ours[i], rtol=2e-4, atol=2e-5 / sigma**2)


hessian_of_log = jax.jit(lambda *a: jax.hessian(end_turned(so3.log_kernel))(jnp.zeros(3), *a))
jacobian_of_score = jax.jit(lambda *a: jax.jacfwd(end_turned(so3.score))(jnp.zeros(3), *a))
HALF = np.array([0.6, 0.0, 0.8])


def check_second_derivatives(second, t):
    sigma = float(np.float32(math.sqrt(t)))
    log_f = lambda w: mpmath.log(mp_heat(w, mpmath.mpf(sigma) ** 2)[0])
    curve = lambda w: float(mpmath.diff(log_f, w, 2, h=mpmath.mpf(10) ** -8))
    with mpmath.workdps(80):
        truth = curve(mpmath.mpf(0)) * np.eye(3)  # at the identity all directions are alike
    np.testing.assert_allclose(second(ONE, ONE, sigma), truth, rtol=1e-4, atol=1e-4 * np.abs(truth).max())
    # Near half a turn, w = pi - u, two geodesics count: f ~ e^(-u^2/2t) (pi cosh(pi u/t) - u sinh(pi u/t)) / cos(u/2), which bends
    # by (pi/t)^2 - 3/t + 1/4. Across the axis the angle pi is an extremum of no slope: nothing bends.
    with mpmath.workdps(80):
        truth = ((math.pi / t) ** 2 - 3 / t + 0.25 if t < 0.1 else curve(mpmath.pi)) * np.outer(HALF, HALF)
    half = jnp.asarray(np.concatenate([[0.0], HALF]), jnp.float32)
    np.testing.assert_allclose(second(ONE, half, sigma), truth, atol=1e-4 * np.abs(truth).max())


@pytest.mark.parametrize("t", [0.01, 0.3, 1.9, 2.1, 6.0])
def test_derivatives_of_the_score_at_the_identity_and_at_half_a_turn(t):
    check_second_derivatives(jacobian_of_score, t)


@pytest.mark.slow
@pytest.mark.parametrize("t", [0.01, 0.3, 1.9, 2.1, 6.0])
def test_second_derivatives_of_the_density_at_the_identity_and_at_half_a_turn(t):
    check_second_derivatives(hessian_of_log, t)


@pytest.mark.slow
def test_third_derivatives_are_finite():
    # As the training of a divergence needs them.
    half = jnp.asarray(np.concatenate([[0.0], HALF]), jnp.float32)
    divergence = lambda v, *a: jnp.trace(jax.jacfwd(end_turned(so3.score))(v, *a))
    slope = jax.jit(lambda *a: jax.grad(divergence)(jnp.zeros(3), *a))
    for sigma in (0.05, 1.0, 2.0):
        np.testing.assert_allclose(slope(ONE, ONE, sigma), 0, atol=1e-3 / sigma**2)  # the density is even
        assert bool(jnp.isfinite(slope(ONE, half, sigma)).all())


def test_the_derivative_in_sigma():
    q0, qt = turns(64, np.linspace(0.1, 3.0, 64))
    slopes = jax.jit(jax.grad(lambda sigma: so3.log_kernel(q0, qt, sigma).sum()))
    for sigma in (0.3, 1.0, 2.0):
        slope = slopes(jnp.full(64, sigma))
        for i in (0, 30, 63):
            w, _ = mp_turn(q0[i], qt[i])
            truth = float(mpmath.diff(lambda s, w=w: mpmath.log(mp_heat(w, s * s)[0]), sigma))
            np.testing.assert_allclose(float(slope[i]), truth, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("sigma", [0.01, 0.05, 0.3, 1.0, 1.41, 1.42, 2.0, 5.0, 80.0])
def test_density_has_mass_one(sigma):
    nodes, weights = np.polynomial.legendre.leggauss(200)
    top = min(np.pi, 9 * sigma)
    w = (nodes + 1) / 2 * top
    q = np.stack([np.cos(w / 2), np.sin(w / 2), 0 * w, 0 * w], axis=1).astype(np.float32)
    w = 2 * np.arctan2(q[:, 1].astype(np.float64), q[:, 0].astype(np.float64))  # the angles that float32 holds
    f = np.exp(np.asarray(log_kernel(many(ONE, 200), jnp.asarray(q), sigma), np.float64))
    mass = np.sum(weights * top / 2 * f * (1 - np.cos(w)) / np.pi)
    assert abs(mass - 1) < 2e-6


def test_density_is_invariant_on_both_sides():
    q0, qt = turns(64, RNG.uniform(0, 2, 64))
    g, sigma = rotations(64, 5), jnp.full(64, 0.5)
    value = log_kernel(q0, qt, sigma)
    for a, b in (
        (compose(g, q0), compose(g, qt)),
        (compose(q0, g), compose(qt, g)),
        (qt, q0),
    ):  # the last: motion is reversible
        np.testing.assert_allclose(log_kernel(a, b, sigma), value, atol=2e-5)


# ---------------------------------------------------------------------------------------------------------- sampling


stretch = jax.jit(so3_kernel.stretch)


@pytest.mark.parametrize("sigma", [1e-4, 0.01, 0.1, 0.4, 0.8, 1.2, 1.7, 2.5, 5.0, 50.0])
def test_angles_are_matched_to_radii_by_their_distribution_functions(sigma):
    # No chance in it: where |z| stays below r, the angle stays below T(r).
    r = np.linspace(0.02, 6, 500)
    w = r * np.asarray(stretch(jnp.asarray(r * r, jnp.float32), jnp.full(500, sigma)), np.float64)
    grid, cdf = angle_law(sigma**2)
    ours = np.interp(w, grid, cdf)
    assert np.abs(ours - stats.chi.cdf(r, 3)).max() < 5e-6
    assert (np.diff(ours) > -1e-6).all()
    assert w.max() < np.pi + 2e-3


def test_the_shipped_table_is_what_the_script_makes():
    rows = so3_table.table()
    np.testing.assert_allclose(so3_kernel._table(), rows, atol=1e-6)
    assert rows.nbytes < 20_000


START = np.array([0.5, -0.1, 0.7, 0.5])  # of length 1


def test_draws_have_the_law_of_the_kernel():
    # 20,000 draws, 6 statistics: a KS of 2.2 / sqrt(n) is passed by chance in 1 - 8e-4 of the runs (and the draws are seeded).
    for sigma in (0.05, 1.0, 4.0):
        q0 = many(START)
        qt = corrupt(jax.random.key(0), q0, sigma)
        v = np.asarray(log(relative(q0, qt)), np.float64)
        w = np.linalg.norm(v, axis=1)
        assert ks(w, *angle_law(sigma**2)) < 2.2 / math.sqrt(N)
        axis = v / w[:, None]  # uniform on the sphere: each entry uniform on [-1, 1]
        assert ks(axis[:, 2], np.array([-1.0, 1.0]), np.array([0.0, 1.0])) < 2.2 / math.sqrt(N)
        assert np.abs(axis.mean(0)).max() < 4.5 / math.sqrt(3 * N)


@pytest.mark.slow
@pytest.mark.parametrize("sigma", [0.01, 0.03, 0.1, 0.3, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0])
def test_a_million_draws_have_the_law_of_the_kernel(sigma):
    # At 1e6 draws chance alone gives 2e-3 with probability 7e-4.
    q0 = many(START, 1_000_000)
    qt = corrupt(jax.random.key(1), q0, sigma)
    assert ks(angle(q0, qt), *angle_law(sigma**2)) < 2e-3


def test_the_turn_is_in_the_body_frame():
    q0, g = rotations(N, 1), rotations(N, 2)
    moved = compose(g, corrupt(jax.random.key(2), q0, 0.5))
    assert angle(corrupt(jax.random.key(2), compose(g, q0), 0.5), moved).max() < 3e-6


def test_large_sigma_is_uniform_and_so_is_the_prior():
    grid = np.linspace(0, np.pi, 2000)
    law = (grid - np.sin(grid)) / np.pi
    p = so3.process(schedules.ve(0.01, 5.0))
    x0 = many(START)
    for q in (
        jax.jit(p.prior)(jax.random.key(0), x0),
        corrupt(jax.random.key(1), x0, 5.0),
        corrupt(jax.random.key(2), x0, 3e4),
    ):
        np.testing.assert_allclose(np.linalg.norm(q, axis=1), 1, atol=1e-6)
        for center in np.eye(4):
            assert ks(angle(q, center), grid, law) < 2.4 / math.sqrt(N)  # 12 of these: 2e-4 by chance


def test_draws_are_smooth_in_sigma():
    z = jnp.linspace(0.0, 4.0, 500) ** 2
    turn = jax.jit(lambda sigma: jax.jvp(lambda s: so3_kernel.stretch(z, s * jnp.ones(500)), (sigma,), (jnp.ones(()),)))
    np.testing.assert_allclose(turn(jnp.zeros(()))[1], 1, rtol=1e-6)  # q0 exp(sigma z) at first
    for sigma in (0.2, 1.0, 2.0):
        h = 0.02
        rise = np.asarray(turn(jnp.asarray(sigma + h))[0] - turn(jnp.asarray(sigma - h))[0]) / (2 * h)
        np.testing.assert_allclose(turn(jnp.asarray(sigma))[1], rise, atol=5e-3)


# ------------------------------------------------------------------------------------------------------------ bridge


def statistics(g0, g3, w):
    """What the law of a rotation is judged by: its angles to both ends, and where it lies along the axis."""
    first = 2 * np.arccos(np.clip(np.abs(g0), 0, 1))
    second = 2 * np.arccos(np.clip(np.abs(np.cos(w / 2) * g0 + np.sin(w / 2) * g3), 0, 1))
    return first, second, g3 * np.where(g0 < 0, -1, 1)


def bridge_law(s, t, w):
    """Points (g0, g3) spread evenly in the angle and the inclination to the axis, and the weights of the bridge's law there."""
    top = min(math.pi, w + 9 * math.sqrt(s * (t - s) / t) + 0.2)
    # One point somewhere in each cell: values that tie would make steps of the distribution functions.
    i, j = np.indices((1500, 400)) + np.random.default_rng(0).random((2, 1500, 400))
    a, inclination = i / 1500 * top, j / 400 * math.pi
    g0, g3 = np.cos(a / 2), np.sin(a / 2) * np.cos(inclination)
    _, second, _ = statistics(g0, g3, w)
    fine = np.linspace(1e-6, math.pi, 4000)
    weight = np.interp(a, fine, heat(fine, s)) * np.interp(second, fine, heat(fine, t - s))
    weight = weight * (1 - np.cos(a)) * np.sin(inclination)
    return g0.ravel(), g3.ravel(), weight.ravel() / weight.sum()


def bridge_errors(s, t, w, n, key=0):
    """KS distances of n draws of the bridge at variance s of t, ends w apart, from quadrature."""
    g0, g3, weight = bridge_law(s, t, w)
    # A frame of its own: q0 anywhere, the axis of the turn anywhere.
    q0, lift = (Rotation.from_quat(x) for x in np.random.default_rng(3).normal(size=(2, 4)))
    qt = q0 * lift * Rotation.from_rotvec([0, 0, w]) * lift.inv()
    ends = [many(quaternion(x), n) for x in (q0, qt)]
    qs = bridge(jax.random.key(key), *ends, math.sqrt(s), math.sqrt(t))
    turn = lift.inv() * q0.inv() * Rotation.from_quat(np.roll(np.asarray(qs, np.float64), -1, axis=-1)) * lift
    turn = np.roll(turn.as_quat(), 1, axis=-1)
    distances = []
    for truth, ours in zip(statistics(g0, g3, w), statistics(turn[:, 0], turn[:, 3], w), strict=True):
        order = np.argsort(truth)
        distances.append(ks(ours, truth[order], np.cumsum(weight[order]) - weight[order] / 2))
    across = turn[:, 1:3]  # about the axis nothing is preferred
    return max(distances), np.max(np.abs(across.mean(0)) / (across.std(0) / math.sqrt(n)))


@pytest.mark.parametrize(("s", "t", "w"), [(0.05, 0.15, 0.4), (0.5, 1.0, math.pi), (1.5, 4.0, 1.5)])
def test_bridge_has_the_law_of_the_quadrature(s, t, w):
    # 20,000 draws: chance alone gives 2.2 / sqrt(n) in one of 9 statistics with probability 1e-3.
    error, z = bridge_errors(s, t, w, N)
    assert error < 2.2 / math.sqrt(N)
    assert z < 5


GRID = [
    *[(0.02, 0.1, 0.3), (0.05, 0.1, 0.9), (0.09, 0.1, 2.0), (0.25, 0.5, 1.5), (0.1, 0.5, 3.0), (0.5, 1.0, math.pi)],
    *[(0.3, 1.0, 0.7), (0.9, 1.0, 2.5), (1.0, 2.0, 0.05), (1.5, 4.0, 1.5), (5.0, 10.0, 3.0)],
    # Others: where the far way first counts, a wide end, both ends wide, ends far in the tail.
    *[
        (0.36, 0.89, 0.84),
        (1.0, 2.0, 0.67),
        (0.34, 0.55, 0.67),
        (59.0, 60.0, 0.05),
        (0.5, 20.0, 2.0),
        (0.05, 0.1, math.pi),
    ],
]


@pytest.mark.slow
@pytest.mark.parametrize(("s", "t", "w"), GRID)
def test_bridge_has_the_law_of_the_quadrature_on_a_grid(s, t, w):
    # 200,000 draws: chance alone gives 5e-3 in one of 51 statistics with probability 5e-3; the draws are seeded.
    error, z = bridge_errors(s, t, w, 200_000, key=1)
    assert error < 5e-3
    assert z < 5


def test_bridge_ends():
    q0, qt = turns(N, np.concatenate([RNG.uniform(0, np.pi, N - 20), np.full(10, np.pi), np.zeros(10)]))
    key = jax.random.key(0)
    for sigma in (1e-6, 0.01, 1.0, 50.0):
        np.testing.assert_array_equal(bridge(key, q0, qt, sigma, sigma), qt)
        np.testing.assert_array_equal(bridge(key, q0, qt, 0.0, sigma), q0)
        assert bool(jnp.isfinite(bridge(key, q0, qt, sigma / 2, sigma)).all())
    np.testing.assert_array_equal(bridge(key, q0, q0, 0.0, 0.0), q0)
    # Near an end the path is within 7 standard deviations (1e-3 for each axis) of it, plus the drift towards the other.
    assert angle(bridge(key, q0, qt, 1e-3, 0.5), q0).max() < 8e-3
    assert angle(bridge(key, q0, qt, math.sqrt(0.25 - 1e-6), 0.5), qt).max() < 8e-3


def test_bridge_between_antipodes_takes_both_ways():
    q = bridge(jax.random.key(0), many(ONE), many([0.0, 0.0, 0.0, 1.0]), 0.1, 0.1 * math.sqrt(2))
    v = np.asarray(log(q))
    np.testing.assert_allclose(np.abs(v[:, 2]).mean(), np.pi / 2, atol=0.005)  # halfway, on either side
    assert abs((v[:, 2] > 0).mean() - 0.5) < 4.5 * 0.5 / math.sqrt(N)


def test_far_ends_are_bridged_along_the_geodesic():
    # A guess may lie 1,000 sigma away: the bridge is then normal about the geodesic's point, up to the curvature.
    sigma = 2e-3
    qt, middle = (many([math.cos(w / 2), 0.0, 0.0, math.sin(w / 2)]) for w in (2.0, 1.0))
    q = bridge(jax.random.key(0), many(ONE), qt, sigma / math.sqrt(2), sigma)
    v = np.asarray(log(relative(middle, q)), np.float64) / sigma
    # Along it the variance is 1/4; across, 1/4 over (L/2) cot(L/2), L = 1. Standard errors are 1% and .004.
    bend = 0.5 / math.tan(0.5)
    np.testing.assert_allclose(v.var(0), [0.25 / bend, 0.25 / bend, 0.25], rtol=0.05)
    assert np.abs(v.mean(0)).max() < 0.02


def same_law(a, b, q0, qt):
    """Two-sample KS of five statistics, at 2.4 sqrt(2/n): 2e-5 by chance each."""
    v, u = (np.asarray(log(relative(many(q0), x))) for x in (a, b))
    pairs = [(angle(a, np.asarray(e)), angle(b, np.asarray(e))) for e in (q0, qt)] + [
        (v[:, i], u[:, i]) for i in range(3)
    ]
    for x, y in pairs:
        assert stats.ks_2samp(x, y).statistic < 2.4 * math.sqrt(2 / N)


@pytest.mark.parametrize(("s", "u", "t"), [(0.2, 0.3, 0.5), (0.9, 1.2, 1.8)])
def test_bridge_after_corrupt_has_the_marginal_and_bridges_compose(s, u, t):
    x0, (a, b, c, d, e) = many(START), jax.random.split(jax.random.key(0), 5)
    xt = corrupt(a, x0, t)
    same_law(corrupt(e, x0, s), bridge(b, x0, xt, s, t), START, ONE)
    one = many(xt[0])
    hop = bridge(d, x0, bridge(c, x0, one, u, t), s, u)
    same_law(bridge(b, x0, one, s, t), hop, START, xt[0])  # Chapman-Kolmogorov


# ----------------------------------------------------------------------------------------------------------- process

P = so3.process(schedules.ve(0.01, 5.0))


def test_times_per_example_and_per_site():
    x0, t = rotations(15).reshape(3, 5, 4), jnp.array([0.2, 0.6, 0.9])
    xt = rotations(15, 1).reshape(3, 5, 4)
    log_p, slope = jax.jit(P.log_prob)(x0, xt, t), jax.jit(P.score)(x0, xt, t)
    sites = jax.jit(P.log_prob)(x0, xt, jnp.broadcast_to(t[:, None], (3, 5)))
    assert (log_p.shape, sites.shape, slope.shape) == ((3,), (3, 5), (3, 5, 3))
    sigma = np.repeat(0.01 * 500 ** np.asarray(t), 5)  # the schedule, by hand
    flat = [jnp.resize(x.reshape(15, 4), (64, 4)) for x in (x0, xt)]
    np.testing.assert_allclose(sites.ravel(), log_kernel(*flat, jnp.resize(sigma, 64))[:15], rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(slope.reshape(15, 3), score(*flat, jnp.resize(sigma, 64))[:15], rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(log_p, sites.sum(1), rtol=1e-5, atol=1e-5)


def walk(keys, x0, t):
    xt = P.corrupt(keys, x0, t)
    return xt, P.bridge(keys, x0, xt, 0.5 * t, t), P.prior(keys, x0)


def test_each_example_draws_from_its_own_key():
    x0, t, keys = rotations(8).reshape(4, 2, 4), jnp.full(4, 0.7), jax.random.split(jax.random.key(1), 4)
    together, alone = jax.jit(P.corrupt)(keys, x0, t), jax.jit(P.corrupt)(keys[2], x0[2], t[2])
    np.testing.assert_allclose(together[2], alone, atol=2e-6)


@pytest.mark.slow
def test_mapped_is_looped_is_eager():
    x0, t, keys = rotations(8).reshape(4, 2, 4), jnp.full(4, 0.7), jax.random.split(jax.random.key(1), 4)
    together, mapped = jax.jit(walk)(keys, x0, t), jax.jit(jax.vmap(walk))(keys, x0, t)
    eager = walk(keys[2], x0[2], t[2])
    for a, b, c in zip(together, mapped, eager, strict=True):
        assert a.shape == x0.shape
        np.testing.assert_allclose(a, b, atol=2e-6)
        np.testing.assert_allclose(a[2], c, atol=2e-6)


def test_types_are_kept():
    half = jax.ShapeDtypeStruct((3, 4), jnp.bfloat16)
    key, shape = jax.random.key(0), jax.eval_shape
    assert shape(P.corrupt, key, half, 0.5) == half
    assert shape(P.bridge, key, half, half, 0.3, 0.5) == half
    assert shape(P.prior, key, half) == half
    assert shape(P.score, half, half, 0.5).dtype == jnp.bfloat16
    assert shape(P.log_prob, half, half, 0.5).dtype == jnp.float32
    with jax.enable_x64(True):
        double = jax.ShapeDtypeStruct((3, 4), jnp.float64)
        assert shape(so3.corrupt, key, double, 0.5) == double
        assert shape(so3.bridge, key, double, double, 0.3, 0.5) == double


def test_double_precision_is_double():
    with jax.enable_x64(True):
        angles, sigmas = [0.3, 1.0, 2.0, 3.1] * 3, np.repeat([0.3, 1.3, 1.5], 4)
        q0, qt = (np.asarray(q, np.float64) for q in turns(12, angles))
        log_f, slope = jax.jit(lambda a, b, s: (so3.log_kernel(a, b, s), so3.score(a, b, s)))(q0, qt, sigmas)
        for i in range(12):
            w, axis = mp_turn(q0[i], qt[i])
            f, df = mp_heat(w, mpmath.mpf(sigmas[i]) ** 2)
            np.testing.assert_allclose(float(log_f[i]), float(mpmath.log(f)), rtol=1e-13, atol=1e-13)
            np.testing.assert_allclose(slope[i], [float(df / f * x) for x in axis], rtol=1e-10, atol=1e-11)


def test_no_noise_is_the_start_and_everything_is_finite_there():
    x0 = rotations(N)
    np.testing.assert_array_equal(corrupt(jax.random.key(1), x0, 0.0), x0)
    q0 = x0[:64]
    np.testing.assert_array_equal(score(q0, q0, jnp.zeros(64)), jnp.zeros((64, 3)))
    slopes = jax.jit(jax.grad(lambda *a: so3.log_kernel(*a).sum(), argnums=(0, 1, 2)))
    antipode = compose(q0, jnp.broadcast_to(jnp.array([0.0, 0.6, 0.0, 0.8]), (64, 4)))
    for qt in (q0, rotations(64, 1), antipode):
        for sigma in (0.0, 1e-7, 1e-6, 1e-5, 1e-3, 0.1, 1.0, 100.0):
            values = [
                log_kernel(q0, qt, jnp.full(64, sigma)),
                score(q0, qt, jnp.full(64, sigma)),
                *slopes(q0, qt, jnp.full(64, sigma)),
            ]
            assert all(bool(jnp.isfinite(x).all()) for x in values), sigma


@pytest.mark.slow
def test_gradients_pass_through_the_bridge():
    x0, xt = rotations(4), rotations(4, 1)
    slopes = jax.jit(jax.grad(lambda a, b, s, t: so3.bridge(jax.random.key(0), a, b, s, t).sum(), argnums=(0, 1, 2, 3)))
    for end in (xt, x0):
        for s, t in ((0.1, 0.2), (0.2, 0.2), (0.0, 0.2), (0.0, 0.0)):
            assert all(bool(jnp.isfinite(x).all()) for x in slopes(x0, end, s, t)), (s, t)


@pytest.mark.slow
def test_the_walk_ends_on_a_guess_and_rotations_join_positions():
    frames = joint({"position": gaussian.process(schedules.cosine()), "rotation": P})
    target = {"position": jnp.ones((2, 3)), "rotation": rotations(2)}
    x1 = frames.prior(jax.random.key(1), target)
    walk = jax.jit(lambda key: sampler.sample(key, lambda key, x, t: target, x1, schedules.times(4), process=frames))
    end = walk(jax.random.key(2))
    np.testing.assert_allclose(end["position"], target["position"], atol=1e-3)
    assert angle(end["rotation"], target["rotation"]).max() < 0.1  # ve leaves sigma_min = .01 at t = 0


def test_errors_say_what_was_expected():
    q = rotations(3)
    with pytest.raises(ValueError, match=r"last axis of size 4.*q\.shape=\(3, 3\)"):
        so3.log(jnp.zeros((3, 3)))
    with pytest.raises(ValueError, match="one shape"):
        so3.log_kernel(q, q[:2], 0.5)
    with pytest.raises(ValueError, match="the batch"):
        so3.corrupt(jax.random.key(0), q, jnp.ones(2))
    with pytest.raises(ValueError, match="at least one proposal"):
        so3.bridge(jax.random.key(0), q, q, 0.1, 0.2, proposals=0)
    with pytest.raises(ValueError, match=r"unit quaternions"):
        P.prior(jax.random.key(0), jnp.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"3, 3"):
        so3.from_matrix(jnp.zeros((2, 4)))


def test_raw_numbers_of_any_size_become_rotations():
    for x in ([3e38, 3e38, 0, 0], [1e-37, 0, 1e-37, 0], [0, 0, 9e37, 1e-30]):
        q = np.asarray(x, np.float64) / np.linalg.norm(np.asarray(x, np.float64))
        for run in (so3.normalize, jax.jit(so3.normalize)):
            np.testing.assert_allclose(run(jnp.asarray(x, jnp.float32)), q, atol=1e-6)
    np.testing.assert_allclose(so3.from_bcd(jnp.array([8.6e37, 0, 0])), [0, 1, 0, 0], atol=1e-6)
    for size in (1e-30, 1e-16, 1.0, 2e19, 1e37):
        axes = so3.to_matrix(so3.from_six(jnp.array([0, size, 0, 0, 0, 1.0])))
        np.testing.assert_allclose(axes[:, :2], [[0, 0], [1, 0], [0, 1]], atol=1e-6)
