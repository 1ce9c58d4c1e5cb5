"""The probability flow against closed forms, jacobians and known densities."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from diffjax import schedules
from diffjax.processes import predictions
from diffjax.samplers import ode, runge_kutta
from diffjax.samplers.runge_kutta import DOPRI5, EULER, HEUN, RK4, fixed

# ------------------------------------------------------------------------------------------------ Gaussian data

MEAN, STD = np.array([1.0, -0.5]), np.array([0.5, 2.0])


def gaussian_flow(schedule, kind):
    """The flow of N(MEAN, STD^2) data, through the prediction of the given kind."""

    def predict(x, t):
        alpha, sigma = schedule(t)
        mean, std = jnp.asarray(MEAN, x.dtype), jnp.asarray(STD, x.dtype)
        eps = sigma * (x - alpha * mean[None]) / (alpha**2 * std**2 + sigma**2)[None]
        clean = mean[None] + (alpha * std**2 / (alpha**2 * std**2 + sigma**2))[None] * (x - alpha * mean[None])
        a, b = kind(t, schedule)
        return a * clean + b * eps

    return ode.gaussian(predict, schedule=schedule, kind=kind)


CASES = [
    ("cosine, x0", schedules.cosine(), predictions.x0, 1e-4),
    ("rectified, flow", schedules.rectified(), predictions.flow, 1e-4),
    ("vp, eps", schedules.vp_linear(), predictions.eps, 2e-4),  # x0 is off by 1e-7 / alpha = 1.5e-5 at t = 1
    ("karras, score", schedules.karras(), predictions.score, 2e-4),
]


@pytest.mark.parametrize(
    ("name", "schedule", "kind", "bar"),
    [*CASES[:2], *(pytest.param(*case, marks=pytest.mark.slow) for case in CASES[2:])],
    ids=[c[0] for c in CASES],
)
def test_paths_of_gaussian_data_keep_their_quantile(name, schedule, kind, bar):
    # (x_t - alpha m) / sqrt(alpha^2 s^2 + sigma^2) stays what it is, from pure noise to clean data.
    times = schedules.times(24, spacing=ode.equal_angles(schedule))
    flow = gaussian_flow(schedule, kind)
    quantile = np.array([[0.3, -1.2], [2.0, 1.5], [0.0, 0.0]])
    (a1, s1), (a0, s0) = ([float(v) for v in schedule(t)] for t in (1.0, 0.0))
    x1 = a1 * MEAN + quantile * np.sqrt(a1**2 * STD**2 + s1**2)
    x0 = a0 * MEAN + quantile * np.sqrt(a0**2 * STD**2 + s0**2)
    sampled = jax.jit(lambda x: ode.sample(flow, x, times))(jnp.asarray(x1, jnp.float32))
    np.testing.assert_allclose(sampled, x0, atol=bar)
    encoded = jax.jit(lambda x: ode.encode(flow, x, times))(jnp.asarray(x0, jnp.float32))
    np.testing.assert_allclose(encoded / s1, x1 / s1, atol=bar)


@pytest.mark.parametrize(("tableau", "order"), [(EULER, 1), (HEUN, 2), (RK4, 4), (DOPRI5, 5)])
def test_error_falls_with_the_order_of_the_method(tableau, order):
    # Van der Pol's oscillator; the truth by scipy at a tolerance of 1e-13.
    field = lambda xp, x: 5 * xp.array([x[1], (1 - x[0] ** 2) * x[1] - x[0]])
    start = np.array([1.0, 0.5])
    solution = solve_ivp(lambda t, x: field(np, x), (1, 0), start, rtol=1e-13, atol=1e-13, method="DOP853")
    with jax.enable_x64(True):
        flow = ode.plain(lambda x, t: field(jnp, x))
        solve = jax.jit(
            lambda x, n: ode.sample(flow, x, 1 - jnp.arange(n + 1) / n, method=fixed(tableau)), static_argnums=1
        )
        error = lambda n: np.linalg.norm(np.asarray(solve(start, n)) - solution.y[:, -1])
        assert abs(np.log2(error(80) / error(160)) - order) < 0.15


# ------------------------------------------------------------------------------------------------- log-likelihoods

MODES, WIDTHS, WEIGHTS = (
    np.array([[2.0, 0.0], [-1.0, 1.5], [-0.5, -2.0]]),
    np.array([0.3, 0.6, 0.15]),
    np.array([0.5, 0.3, 0.2]),
)


def mixture_log_prob(x, alpha, sigma):
    modes, widths, weights = (jnp.asarray(v, jnp.float32) for v in (MODES, WIDTHS, WEIGHTS))
    variance = (alpha * widths) ** 2 + sigma**2
    square = ((x[:, None] - alpha * modes[None]) ** 2).sum(-1)
    return jax.nn.logsumexp(
        (jnp.log(weights) - jnp.log(2 * jnp.pi * variance))[None] - 0.5 * square / variance[None], axis=1
    )


def mixture_x0(schedule):
    """E[x_0 | x_t] of the mixture, through each mode's own posterior, finite at alpha = 0."""
    modes, widths, weights = (jnp.asarray(v, jnp.float32) for v in (MODES, WIDTHS, WEIGHTS))

    def predict(x, t):
        alpha, sigma = schedule(t)
        variance = (alpha * widths) ** 2 + sigma**2
        apart = x[:, None] - alpha * modes[None]
        share = jax.nn.softmax((jnp.log(weights / variance))[None] - 0.5 * (apart**2).sum(-1) / variance[None], axis=1)
        return (share[..., None] * (modes[None] + (alpha * widths**2 / variance)[None, :, None] * apart)).sum(1)

    return predict


def mixture_draws(n):
    rng = np.random.default_rng(0)
    mode = rng.choice(3, n, p=WEIGHTS)
    return jnp.asarray(MODES[mode] + WIDTHS[mode, None] * rng.normal(size=(n, 2)), jnp.float32)


@pytest.mark.parametrize(
    "schedule",
    [
        schedules.cosine(),
        pytest.param(schedules.vp_linear(), marks=pytest.mark.slow),
        pytest.param(schedules.rectified(), marks=pytest.mark.slow),
        pytest.param(schedules.karras(), marks=pytest.mark.slow),
    ],
)
def test_log_likelihood_of_a_mixture_in_a_hundred_evaluations(schedule):
    x = mixture_draws(400)
    times = schedules.times(25, spacing=ode.equal_angles(schedule))
    alpha, sigma = schedule(1.0)
    flow = ode.gaussian(mixture_x0(schedule), schedule=schedule)
    got = jax.jit(
        lambda x: ode.log_prob(
            jax.random.key(0), flow, x, times, log_prior=lambda x1: mixture_log_prob(x1, alpha, sigma)
        )
    )(x)
    error = np.asarray(got - mixture_log_prob(x, *schedule(0.0)))
    assert np.abs(error).max() < 1e-3
    assert np.sqrt((error**2).mean()) < 1e-4


@pytest.mark.parametrize(
    "schedule", [schedules.karras(0.1, 5.0), pytest.param(schedules.rectified(), marks=pytest.mark.slow)]
)
def test_log_prob_is_the_change_of_variables(schedule):
    # log p(x_0) = log p_1(x_1) + log |det dx_1/dx_0|, the jacobian by autodiff through the solver, for a flow that no data made.
    with jax.enable_x64(True):
        mixing = 0.8 * jax.random.normal(jax.random.key(0), (3, 3), jnp.float64)
        flow = ode.gaussian(lambda x, t: jnp.tanh(x @ mixing) * (1 + t), schedule=schedule, kind=predictions.v)
        x0 = jnp.array([[0.3, -1.0, 0.5]])
        times = schedules.times(40, spacing=ode.equal_angles(schedule))
        sigma = schedule(1.0)[1]

        @jax.jit
        def both(x):
            encode = lambda x: ode.encode(flow, x[None], times)[0]
            x1 = encode(x[0])
            base = -0.5 * ((x1 / sigma) ** 2).sum() - 3 * jnp.log(sigma) - 1.5 * np.log(2 * np.pi)
            expected = base + jnp.linalg.slogdet(jax.jacfwd(encode)(x[0]))[1]
            return ode.log_prob(jax.random.key(0), flow, x, times)[0], expected

        got, expected = both(x0)
        assert got.dtype == jnp.float64
        np.testing.assert_allclose(got, expected, atol=2e-6)


def test_density_of_a_learned_field_integrates_to_one():
    flow = ode.plain(lambda x, t: jnp.sin(3 * x) * (0.5 + t) + 0.3)
    x = jnp.linspace(-8, 8, 2001)
    log_p = jax.jit(lambda x: ode.log_prob(jax.random.key(0), flow, x, schedules.times(30)))(x)
    assert abs(float(jnp.trapezoid(jnp.exp(log_p), x)) - 1) < 1e-4


# ----------------------------------------------------------------------------------------------------- divergences


def matrix_field(d, seed=0):
    mixing = jax.random.normal(jax.random.key(seed), (d, d))
    return mixing, lambda x: jnp.sin(x) @ mixing


def test_exact_divergence_of_images_and_beyond_one_block():
    d = 40  # more than the 32 dimensions of a block
    mixing, function = matrix_field(d)
    x = jax.random.normal(jax.random.key(1), (2, 3, d))
    value, divergence = jax.jit(lambda x: ode.exact(jax.random.key(0), function, x, 2))(x)
    np.testing.assert_allclose(divergence, (jnp.cos(x) * jnp.diag(mixing)[None, None]).sum(-1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(value, function(x), rtol=1e-5, atol=1e-5)
    as_image = lambda z: function(z.reshape(2, d)).reshape(z.shape)
    _, image = jax.jit(lambda x: ode.exact(jax.random.key(0), as_image, x, 1))(x[:, 0].reshape(2, 5, 8))
    np.testing.assert_allclose(image, divergence[:, 0], rtol=1e-5, atol=1e-5)


def test_hutchinson_is_unbiased_and_its_probes_help():
    # z over 20,000 draws, bar 4.5: a false alarm once in 100,000. The variance of v'Jv is sum_{i<j} (J_ij + J_ji)^2;
    # with 2^m probes only i = j mod 2^m remain.
    d = 8
    mixing, function = matrix_field(d)
    x = jnp.zeros((20_000, d))
    off = np.asarray(mixing + mixing.T)
    for probes in (1, 4):
        _, estimate = jax.jit(lambda x, probes=probes: ode.hutchinson(probes)(jax.random.key(2), function, x, 1))(x)
        kept = [off[i, j] ** 2 for i in range(d) for j in range(i) if (i - j) % probes == 0]
        variance = float(np.sum(kept))
        error = float(estimate.mean() - jnp.trace(mixing))
        assert abs(error) < 4.5 * np.sqrt(variance / 20_000) + 1e-4
        assert float(estimate.var()) == pytest.approx(variance, rel=0.05, abs=1e-6)


def test_hutchinson_log_likelihood_is_unbiased():
    # Expectation over probes is the exact-trace value of the same grid. 2,000 keys pooled, bar 4.5 s.e.
    mixing, _ = matrix_field(5)
    flow = ode.plain(lambda x, t: jnp.tanh(x @ mixing) * (0.3 + t))
    x = jnp.broadcast_to(jnp.array([0.3, -0.2, 0.8, 0.0, -1.0]), (2000, 5))
    times = schedules.times(5)
    log_prob = lambda key, x, trace: ode.log_prob(key, flow, x, times, method=fixed(HEUN), trace=trace)
    estimate, exact = jax.jit(
        lambda key: (log_prob(key, x, ode.hutchinson(2)), log_prob(key, x[:1], ode.exact)[0])
    )(jax.random.key(1))  # fmt: skip
    assert float(estimate.std()) > 0.01
    assert abs(float(estimate.mean() - exact)) < 4.5 * float(estimate.std()) / np.sqrt(2000)


# ------------------------------------------------------------------------------------------------ boxes and angles

IMAGES = np.arange(-8.0, 9.0)
BOX_CENTERS = np.array([[0.02, 0.02, 0.02, 0.02], [0.99, 0.99, 0.3, 0.6], [0.4, 0.8, 0.5, 0.15]])
BOX_WIDTHS = np.array([[0.1, 0.25, 0.06, 0.2], [0.15, 0.3, 0.1, 0.08], [0.2, 0.05, 0.3, 0.12]])


def fold(u):
    return jnp.abs(u - 2 * jnp.round(u / 2))


def box_draws(n, noise=0.0):
    rng = np.random.default_rng(1)
    mode = rng.integers(3, size=n)
    width = np.sqrt(BOX_WIDTHS[mode] ** 2 + noise**2)
    return fold(jnp.asarray(BOX_CENTERS[mode] + width * rng.normal(size=(n, 4)), jnp.float32))


def box_log_prob(x, sigma):
    """A mixture of reflected Gaussians on [0, 1]^4 by images; two modes lean on walls."""
    centers = jnp.asarray(BOX_CENTERS, jnp.float32)[None, ..., None]
    std = jnp.sqrt(jnp.asarray(BOX_WIDTHS, jnp.float32)[None, ..., None] ** 2 + sigma**2)
    shifts = jnp.asarray(2 * IMAGES, jnp.float32)[None, None, None]
    point = x[:, None, :, None]
    apart = jnp.concatenate([point - centers + shifts, point + centers + shifts], axis=-1)
    log_kernel = jax.nn.logsumexp(-0.5 * (apart / std) ** 2, axis=-1) - jnp.log(std[..., 0] * np.sqrt(2 * np.pi))
    return jax.nn.logsumexp(log_kernel.sum(-1), axis=-1) - np.log(3.0)


BOX = schedules.ve(0.01, 3.0)
BOX_FLOW = ode.folded(
    lambda x, t: jax.grad(lambda x: box_log_prob(x, BOX(t)[1]).sum())(x), schedule=BOX, fold=fold, length=1.0
)


@pytest.mark.parametrize(("steps", "bar"), [(25, 5e-3), pytest.param(50, 5e-4, marks=pytest.mark.slow)])
def test_log_likelihood_of_a_reflected_mixture(steps, bar):
    x = box_draws(128)
    times = schedules.times(steps)
    got = jax.jit(lambda x: ode.log_prob(jax.random.key(0), BOX_FLOW, x, times))(x)
    error = np.asarray(got - box_log_prob(x, 0.01))
    assert np.sqrt((error**2).mean()) < bar / 3


def test_unfolded_velocity_is_the_mirror_image_across_each_wall():
    # Paths never cross a wall; a numerical step that does must find there the flow seen in the mirror.
    z = box_draws(5)
    inside = BOX_FLOW.velocity(z, jnp.asarray(0.3))
    np.testing.assert_allclose(BOX_FLOW.velocity(-z, jnp.asarray(0.3)), -inside, rtol=1e-5)
    np.testing.assert_allclose(BOX_FLOW.velocity(2 - z, jnp.asarray(0.3)), -inside, rtol=2e-4)
    np.testing.assert_allclose(BOX_FLOW.velocity(z + 2, jnp.asarray(0.3)), inside, rtol=2e-4)


@pytest.mark.slow
def test_reflected_samples_keep_the_mass_at_the_walls():
    # The share within .005 of a wall in any of four dimensions, among 40,000 samples; truth by sampling the mixture itself. s.e. of the difference .003.
    truth = np.asarray(box_draws(40_000, 0.01))
    x1 = jax.random.uniform(jax.random.key(1), (40_000, 4))
    sampled = np.asarray(jax.jit(lambda x: ode.sample(BOX_FLOW, x, schedules.times(40)))(x1))
    assert sampled.min() >= 0
    assert sampled.max() <= 1
    near = lambda x: (np.minimum(x, 1 - x) < 0.005).any(-1).mean()
    assert abs(near(sampled) - near(truth)) < 0.012
    for i in range(4):
        assert abs(sampled[:, i].mean() - truth[:, i].mean()) < 0.01


@pytest.mark.slow
def test_angles_flow_around_the_circle():
    # A wrapped Gaussian of std 1 at 3: p by 9 images, 25 steps.
    schedule = schedules.ve(0.01, 4.0)
    wrap = lambda x: (x + jnp.pi) % (2 * jnp.pi) - jnp.pi

    def log_p(x, sigma):
        std = jnp.sqrt(1 + sigma**2)
        apart = (x[:, None] - 3.0 + 2 * jnp.pi * jnp.arange(-4.0, 5.0)[None]) / std
        return jax.nn.logsumexp(-0.5 * apart**2, axis=-1) - jnp.log(std * np.sqrt(2 * np.pi))

    flow = ode.folded(
        lambda x, t: jax.grad(lambda x: log_p(x, schedule(t)[1]).sum())(x), schedule=schedule, fold=wrap,
        length=2 * np.pi,
    )  # fmt: skip
    x = jnp.linspace(-3.1, 3.1, 9)
    got = jax.jit(lambda x: ode.log_prob(jax.random.key(0), flow, x, schedules.times(25)))(x)
    np.testing.assert_allclose(got, log_p(x, 0.01), atol=1e-3)


# ------------------------------------------------------------------------------------------------------ conventions


def test_equal_angles_by_hand():
    # On the rectified schedule tan(angle) = t / (1 - t): equal steps of pi/8.
    angles = np.array([4, 3, 2, 1, 0]) * np.pi / 8
    times = schedules.times(4, spacing=ode.equal_angles(schedules.rectified(), sigma_data=1.0))
    np.testing.assert_allclose(times, np.sin(angles) / (np.sin(angles) + np.cos(angles)), atol=1e-6)


def test_times_of_each_example_and_tracks():
    flow = gaussian_flow(schedules.cosine(), predictions.x0)
    x = jnp.array([[0.3, -1.2], [2.0, 1.5]])
    long, short = schedules.times(4), schedules.times(4, start=0.8)
    # The closed-form estimate broadcasts a scalar time only: make it serve each example.
    by_example = ode.gaussian(lambda x, t: jax.vmap(lambda x, t: gaussian_x0(x, t))(x, t), schedule=schedules.cosine())
    both, kept = ode.sample(
        by_example, x, jnp.stack([long, short], axis=1), method=fixed(HEUN), track=lambda x, t: (x, t)
    )
    for i, times in enumerate((long, short)):
        alone = ode.sample(flow, x[i : i + 1], times, method=fixed(HEUN))
        np.testing.assert_allclose(both[i], alone[0], rtol=1e-5)
    np.testing.assert_array_equal(kept[0][-1], both)
    np.testing.assert_array_equal(kept[1][:, 1], short[1:])


def gaussian_x0(x, t):
    alpha, sigma = schedules.cosine()(t)
    mean, std = jnp.asarray(MEAN, jnp.float32), jnp.asarray(STD, jnp.float32)
    return mean + alpha * std**2 / (alpha**2 * std**2 + sigma**2) * (x - alpha * mean)


def test_vmap_grad_and_half_precision():
    flow = gaussian_flow(schedules.cosine(), predictions.x0)
    times = schedules.times(2)
    x = jnp.array([[0.3, -1.2], [2.0, 1.5]])
    log_prob = lambda x: ode.log_prob(jax.random.key(0), flow, x, times, method=fixed(HEUN))
    value, slope = jax.jit(jax.value_and_grad(lambda x: log_prob(x).sum()))(x)
    assert np.isfinite(slope).all()
    np.testing.assert_allclose(jax.vmap(lambda x: log_prob(x[None])[0])(x).sum(), value, rtol=1e-5)
    half = x.astype(jnp.bfloat16)
    assert jax.eval_shape(lambda x: ode.sample(flow, x, times), half).dtype == jnp.bfloat16
    assert jax.eval_shape(log_prob, half).dtype == jnp.float32
    grad_of_sample = jax.jit(jax.grad(lambda x: ode.sample(flow, x, times).sum()))(x)
    assert np.isfinite(grad_of_sample).all()


def test_what_is_wrong_is_said_at_the_door():
    flow = ode.plain(lambda x, t: x)
    with pytest.raises(ValueError, match="at least one step"):
        ode.sample(flow, jnp.zeros(2), jnp.ones(1))
    with pytest.raises(ValueError, match=r"times\[0\]"):
        ode.sample(flow, jnp.zeros(2), jnp.ones((3, 5)))
    with pytest.raises(ValueError, match="add an axis"):
        ode.log_prob(jax.random.key(0), flow, jnp.zeros(()), schedules.times(2))
    with pytest.raises(ValueError, match="probes=0"):
        ode.hutchinson(0)


def test_adaptive_steps_need_diffrax_and_say_so():
    if importlib.util.find_spec("diffrax") is None:
        with pytest.raises(ImportError, match="pip install"):
            runge_kutta.adaptive()
        return
    flow = gaussian_flow(schedules.cosine(), predictions.x0)
    got = ode.sample(flow, jnp.array([[0.3, -1.2]]), schedules.times(1), method=runge_kutta.adaptive())
    np.testing.assert_allclose(got, MEAN + STD * np.array([[0.3, -1.2]]), atol=1e-3)
    log_p = ode.log_prob(jax.random.key(0), flow, got, schedules.times(1), method=runge_kutta.adaptive())
    z = (np.asarray(got) - MEAN) / STD
    expected = -0.5 * (z**2).sum() - np.log(2 * np.pi * STD.prod())
    np.testing.assert_allclose(log_p[0], expected, atol=1e-3)
