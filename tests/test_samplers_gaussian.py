"""The loop over Gaussian steps: exact laws of its samples, its noise, its calls, its types and its compilations."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import numerics, schedules
from diffjax.samplers import frames, gaussian

# Small programs, run once: what costs is the compiler.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def walk(predict, schedule, solver, **options):
    """The compiled sampler `(key, x, times) -> sample`."""
    return jit(
        lambda key, x, times: gaussian.sample(key, predict, x, times, schedule=schedule, solver=solver, **options)
    )


# -------------------------------------------------------------------------------------------------- exact samples
# Data N(m, c^2) for each dimension, with the exact E[x_0 | x_t] = m + g (x_t - alpha m), g = alpha c^2 / (alpha^2 c^2 + sigma^2). Every
# step is then affine in (x_1, z_1, ..., z_n). A batch of 2 + n rows reads the coefficients off: row 0 starts at 0 without noise,
# row 1 at 1 without noise, row 1 + i at 0 with the i-th noise set to one. Mean and variance follow without any error but rounding.

M, C = np.array([0.7, -1.5, 0.0]), np.array([0.5, 2.0, 1.0])


def posterior_mean(schedule):
    def predict_x0(xt, t):
        alpha, sigma = (numerics.expand_right(v, xt) for v in schedule(t))
        m, c2 = (jnp.broadcast_to(jnp.asarray(v, xt.dtype), xt.shape) for v in (M, C**2))
        return m + alpha * c2 / (alpha**2 * c2 + sigma**2) * (xt - alpha * m)

    return predict_x0


def unit_noise(monkeypatch):
    """The step's number takes the place of its key, and unit vectors that of its noise."""
    monkeypatch.setattr(numerics, "as_keys", lambda key: key)
    monkeypatch.setattr(numerics, "fold_in", lambda key, i: i)

    def normal(i, shape, dtype):
        row = (jnp.arange(shape[0]) == 2 + i).astype(dtype)
        return jnp.broadcast_to(row.reshape((-1,) + (1,) * (len(shape) - 1)), shape)

    monkeypatch.setattr(numerics, "normal", normal)


def sampled_moments(solver, schedule, times):
    """Mean and variance of the samples that start at x_1 ~ N(0, sigma_1^2)."""
    steps = times.shape[0] - 1
    start = jnp.zeros((steps + 2, len(M))).at[1].set(1.0)
    run = lambda x: gaussian.sample(jnp.array(0), posterior_mean(schedule), x, times, schedule=schedule, solver=solver)
    rows = np.asarray(jit(run)(start))
    gain, *noise = rows[1:] - rows[0]
    return rows[0], gain**2 * np.asarray(schedule(times[0])[1]) ** 2 + np.sum(np.square(noise), axis=0)


def abar(name, t):
    """The share of signal alpha^2 in NumPy, by the papers' own formulas."""
    if name == "vp_linear":
        return np.exp(-(0.1 * t + 0.5 * 19.9 * t**2))
    f = lambda u: np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    return f(t) / f(0.0)


def recursion(name, times, eta):
    """Mean and variance by the recursion of DDIM's equations 12 and 16, written in abar."""
    mean, variance = np.zeros(len(M)), np.ones(len(M)) * (1 - abar(name, times[0]))
    for t, s in itertools.pairwise(times):
        at, as_ = abar(name, t), abar(name, s)
        g = np.sqrt(at) * C**2 / (at * C**2 + 1 - at)
        new = eta * np.sqrt((1 - as_) / (1 - at)) * np.sqrt(max(0.0, 1 - at / as_))
        # x_s = sqrt(as) x0 + sqrt(1 - as - new^2) (x_t - sqrt(at) x0) / sqrt(1 - at) + new z, x0 = (1 - g sqrt(at)) M + g x_t.
        on_eps = np.sqrt(max(0.0, 1 - as_ - new**2)) / np.sqrt(1 - at)
        on_x0 = np.sqrt(as_) - on_eps * np.sqrt(at)
        mean = on_eps * mean + on_x0 * ((1 - g * np.sqrt(at)) * M + g * mean)
        variance = (on_eps + on_x0 * g) ** 2 * variance + new**2
    return mean, variance


def ancestral_recursion(name, times):
    """The same for ancestral steps, from Bayes' rule in precisions: q(x_s | x_0) times q(x_t | x_s)."""
    mean, variance = np.zeros(len(M)), np.ones(len(M)) * (1 - abar(name, times[0]))
    for t, s in itertools.pairwise(times):
        at, as_ = abar(name, t), abar(name, s)
        g = np.sqrt(at) * C**2 / (at * C**2 + 1 - at)
        if s == 0:  # the bridge ends at x_0 itself
            on_xt, on_x0, new2 = 0.0, 1.0, 0.0
        else:
            a2 = at / as_
            precision = 1 / (1 - as_) + a2 / (1 - a2)
            new2 = 1 / precision
            on_x0, on_xt = np.sqrt(as_) / (1 - as_) / precision, np.sqrt(a2) / (1 - a2) / precision
        mean = on_xt * mean + on_x0 * ((1 - g * np.sqrt(at)) * M + g * mean)
        variance = (on_xt + on_x0 * g) ** 2 * variance + new2
    return mean, variance


@pytest.mark.parametrize("name", ["vp_linear", "cosine"])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0, "ancestral"])
def test_samples_of_gaussian_data_have_the_exact_mean_and_variance(monkeypatch, name, eta):
    # Red for a time index shifted by one, for noise x 1.3, for eta^2 in eta's place: each moves the variance by a percent or more.
    unit_noise(monkeypatch)
    times = np.linspace(1.0, 0.0, 13) ** 1.3
    expected = ancestral_recursion(name, times) if eta == "ancestral" else recursion(name, times, eta)
    with jax.enable_x64(True):
        solver = gaussian.ancestral() if eta == "ancestral" else gaussian.ddim(eta)
        got = sampled_moments(solver, getattr(schedules, name)(), jnp.asarray(times))
    np.testing.assert_allclose(got[0], expected[0], atol=1e-8)
    np.testing.assert_allclose(got[1], expected[1], rtol=1e-7)


@pytest.mark.parametrize(
    ("solver", "order", "bound"),
    [(gaussian.dpmpp(1, sde=0.5), 1, 0.06), (gaussian.dpmpp(2, sde=True), 1, 0.04),
     (gaussian.dpmpp(2, sde=True, corrected=True), 2, 0.005), (gaussian.dpmpp(3, sde=True), 2, 0.002)],
)  # fmt: skip
def test_variance_of_stochastic_samples_converges_with_the_order(monkeypatch, solver, order, bound):
    # To N(m, c^2 + sigma_min^2), where the reverse SDE ends for any amount of noise. The weak order shows without one random number.
    unit_noise(monkeypatch)
    with jax.enable_x64(True):
        grids = [jnp.linspace(1.0, 0.0, steps + 1) for steps in (48, 96)]
        coarse, fine = (sampled_moments(solver, schedules.ve(0.02, 40.0), grid)[1] for grid in grids)
    coarse, fine = (np.abs(v / (C**2 + 0.02**2) - 1) for v in (coarse, fine))
    assert np.all(np.log2(coarse / fine) > order - 0.2)
    assert np.all(fine < bound)


def test_dpm_solver_sde_of_order_one_is_ancestral():
    x, t = jnp.array([[0.3, -2.0], [1.0, 0.5]]), schedules.times(6)
    run = lambda solver: walk(lambda x, t: 0.5 * x, schedules.cosine(), solver)(jax.random.key(3), x, t)
    np.testing.assert_allclose(run(gaussian.dpmpp(1, sde=True)), run(gaussian.ancestral()), rtol=2e-5, atol=1e-6)


# -------------------------------------------------------------------------------------------------- both directions


def test_encoding_and_decoding_come_back():
    # The exact flow of N(m, c^2) is a rescaling, so the encoding is known: (x_1 - alpha m) / sqrt(alpha^2 c^2 + sigma^2) = (x_0 - m) / c.
    schedule = schedules.vp_linear()
    with jax.enable_x64(True):
        x0 = jnp.asarray(np.random.default_rng(0).normal(M, C, (5, 3)))
        grid = jnp.linspace(0.0, 1.0, 401)
        alpha, sigma = (np.asarray(v) for v in schedule(grid[-1]))
        exact = alpha * M + (np.asarray(x0) - M) / C * np.sqrt(alpha**2 * C**2 + sigma**2)
        for solver, error in ((gaussian.ddim(), 0.05), (gaussian.adams(3), 0.005), (gaussian.heun(), 0.005)):
            run = walk(posterior_mean(schedule), schedule, solver)
            code = run(jax.random.key(0), x0, grid)
            np.testing.assert_allclose(code, exact, atol=error)
            np.testing.assert_allclose(run(jax.random.key(0), code, grid[::-1]), x0, atol=error)


# ------------------------------------------------------------------------------------------------- keys and batches


@pytest.mark.parametrize(
    "solver", [gaussian.ancestral(), gaussian.dpmpp(2, sde=True), gaussian.heun(10.0), gaussian.unipc(3)]
)
def test_a_sample_does_not_depend_on_its_batch(solver):
    grid = schedules.times(7, stop=0.01)
    keys = numerics.example_keys(jax.random.key(5), jnp.arange(8))
    x1 = numerics.normal(keys, (8, 3, 5))
    # An elementwise network, so that no sum over the batch changes its order; and the compiler as users have it.
    run = jax.jit(
        lambda key, x: gaussian.sample(
            key, lambda x, t: x / (1 + x * x), x, grid, schedule=schedules.vp_linear(), solver=solver
        )
    )
    together = np.asarray(run(keys, x1))
    alone = [np.asarray(run(keys[i : i + 1], x1[i : i + 1]))[0] for i in (0, 3, 7)]
    np.testing.assert_array_equal(alone, together[[0, 3, 7]])


@pytest.mark.parametrize(
    "solver", [gaussian.ddim(0.4), gaussian.dpmpp(3), gaussian.heun(frame=frames.flow), gaussian.dpmpp_2s(0.5)]
)
def test_each_example_may_have_its_own_times(solver):
    grids = jnp.stack(
        [schedules.times(6), schedules.times(6, stop=0.1), schedules.times(6, spacing=schedules.quadratic)]
    )
    keys = numerics.example_keys(jax.random.key(5), jnp.arange(3))
    x1 = numerics.normal(keys, (3, 2))
    # The network is handed the times as they are, one for each example.
    run = walk(lambda x, t: jnp.tanh(x * (1 + numerics.expand_right(t, x))), schedules.cosine(), solver)
    alone = jnp.concatenate([run(keys[i : i + 1], x1[i : i + 1], grids[i][:, None]) for i in range(3)])
    np.testing.assert_allclose(run(keys, x1, grids.T), alone, rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(run(keys[:1], x1[:1], grids[0]), alone[:1], rtol=2e-5, atol=2e-6)


# ---------------------------------------------------------------------------------------------------- costs and types


def counting(monkeypatch):
    counts = {"calls": 0, "draws": 0}

    def bump(name):
        counts[name] += 1

    def predict(x, t):
        jax.debug.callback(lambda: bump("calls"))
        return 0.5 * x

    draw = numerics.normal

    def normal(key, shape, dtype=jnp.float32):
        jax.debug.callback(lambda: bump("draws"))
        return draw(key, shape, dtype)

    monkeypatch.setattr(numerics, "normal", normal)
    return counts, predict


@pytest.mark.parametrize(
    ("solver", "calls", "draws"),
    [(gaussian.ddim(), 5, 0), (gaussian.ancestral(), 5, 5), (gaussian.dpmpp(2, sde=True), 5, 5), (gaussian.unipc(3), 5, 0),
     (gaussian.deis(3), 5, 0), (gaussian.plms(), 5, 0), (gaussian.heun(), 9, 0), (gaussian.dpmpp_2s(), 9, 0), (gaussian.dpmpp_2s(1.0), 9, 5)],
)  # fmt: skip
def test_no_call_and_no_draw_is_wasted(monkeypatch, solver, calls, draws):
    # Five steps from t = .9 to sigma = 0: the last needs no second call; one draw a step, and none if nothing is random.
    counts, predict = counting(monkeypatch)
    end = walk(predict, schedules.rectified(), solver)(
        jax.random.key(0), jnp.ones((2, 2)), schedules.times(5, start=0.9)
    )
    jax.block_until_ready(end)
    jax.effects_barrier()
    assert counts == {"calls": calls, "draws": draws}


def test_one_program_serves_all_times_of_one_length():
    traced = []
    schedule = schedules.vp_linear()

    @jit
    def run(x, times):
        traced.append(times.shape)
        draw = functools.partial(gaussian.sample, jax.random.key(0), lambda x, t: 0.5 * x, x, times, schedule=schedule)
        return draw(solver=gaussian.dpmpp(3)) + draw(solver=gaussian.heun(2.0))

    spacings = [
        schedules.uniform,
        schedules.quadratic,
        schedules.karras_spacing(schedule),
        schedules.logsnr_spacing(schedule),
    ]
    ends = {float(run(jnp.ones(2), schedules.times(6, stop=0.01, spacing=spacing))[0]) for spacing in spacings}
    assert len(ends) == 4
    assert traced == [(7,)]
    assert run._cache_size() == 1
    run(jnp.ones(2), schedules.times(8, stop=0.01))
    assert traced == [(7,), (9,)]


@pytest.mark.parametrize("solver", [gaussian.ddim(), gaussian.dpmpp(2)])
def test_half_precision_is_wide_between_calls(solver):
    # With x0_hat = 0 noise shrinks in proportion, here by 2 in 800 steps. Each step is below bfloat16's spacing: a carry of that
    # type would not move at all.
    seen = []

    def predict(x, t):
        seen.append(x.dtype)
        return jnp.zeros_like(x)

    x = jnp.linspace(-2, 2, 8, dtype=jnp.bfloat16)
    half = walk(predict, schedules.rectified(), solver)(jax.random.key(1), x, schedules.times(800, stop=0.5))
    assert set(seen) == {jnp.dtype(jnp.bfloat16)}
    assert half.dtype == jnp.bfloat16
    np.testing.assert_array_equal(half, 0.5 * x)


def test_track_sees_every_step():
    grid = schedules.times(4)
    run = walk(lambda x, t: x * 0 + t, schedules.cosine(), gaussian.unipc(2), track=lambda x0_hat, xt, t: (t, x0_hat))
    end, (times, x0_hats) = run(jax.random.key(0), jnp.ones(3), grid)
    np.testing.assert_array_equal(times, grid[:-1])
    np.testing.assert_array_equal(x0_hats, jnp.broadcast_to(grid[:-1, None], (4, 3)))
    np.testing.assert_allclose(end, jnp.broadcast_to(grid[-2], (3,)), rtol=1e-6)  # to sigma = 0: the last estimate


@pytest.mark.parametrize(
    "solver",
    [gaussian.ddim(0.5), gaussian.dpmpp(3, sde=True), gaussian.unipc(3), gaussian.heun(1.0), gaussian.dpmpp_2s()],
)
def test_gradients_are_finite_and_right(solver):
    # From alpha = 0 to sigma = 0, in the network's parameter and in the start; against a central difference in float64.
    with jax.enable_x64(True):
        grid, x = jnp.linspace(1.0, 0.0, 6), jnp.array([0.5, -1.0])

        def loss(a, scale):
            predict = lambda x, t: jnp.tanh(a * x)
            end = gaussian.sample(
                jax.random.key(0), predict, scale * x, grid, schedule=schedules.cosine(), solver=solver
            )
            return jnp.sum(end**2)

        got = jit(jax.grad(loss, argnums=(0, 1)))(0.7, 1.0)
        h, loss = 1e-5, jit(loss)
        expected = (
            (loss(0.7 + h, 1.0) - loss(0.7 - h, 1.0)) / (2 * h),
            (loss(0.7, 1.0 + h) - loss(0.7, 1.0 - h)) / (2 * h),
        )
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("solver", [gaussian.deis(3), gaussian.unipc(2), gaussian.adams(3)])
def test_gradients_in_the_times_are_finite(solver):
    # A grid may be learned, also at its two ends, where log-SNR is infinite.
    loss = lambda t: gaussian.sample(
        jax.random.key(0), lambda x, t: 0.5 * x, jnp.ones(2), t, schedule=schedules.rectified(), solver=solver
    ).sum()
    assert np.isfinite(jit(jax.grad(loss))(schedules.times(4))).all()


def test_sample_runs_under_vmap_and_pmap():
    grid, x = schedules.times(5), jnp.linspace(-1.0, 1.0, 16).reshape(8, 2)
    keys = jax.random.split(jax.random.key(0), 8)
    one = lambda key, x, times: gaussian.sample(
        key, lambda x, t: jnp.tanh(x), x, times, schedule=schedules.rectified(), solver=gaussian.dpmpp_2s(1.0)
    )
    compiled = jit(one)
    expected = np.stack([compiled(keys[i], x[i], grid) for i in (0, 1)])
    np.testing.assert_allclose(
        jit(jax.vmap(one, in_axes=(0, 0, None)))(keys, x, grid)[:2], expected, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        np.asarray(jax.pmap(one, in_axes=(0, 0, None))(keys, x, grid))[:2], expected, rtol=1e-5, atol=1e-6
    )


def test_bad_arguments_are_met_at_the_door():
    run = lambda times: gaussian.sample(
        jax.random.key(0), lambda x, t: x, jnp.ones((2, 2)), times, schedule=schedules.cosine(), solver=gaussian.ddim()
    )
    with pytest.raises(ValueError, match="at least one step"):
        run(jnp.ones(1))
    with pytest.raises(ValueError, match=r"times\[0\]"):
        run(jnp.ones((3, 5)))
    for make in (gaussian.dpmpp, gaussian.deis, gaussian.adams, gaussian.unipc, gaussian.plms):
        with pytest.raises(ValueError, match="expected order"):
            make(5)
    for make in (gaussian.ddim, gaussian.dpmpp_2s):
        with pytest.raises(ValueError, match="eta"):
            make(-0.1)
    with pytest.raises(ValueError, match="log-SNR"):
        gaussian.unipc(2, frame=frames.flow, bh1=True)


def test_plms_is_its_papers_average_in_equal_steps():
    # The averages of Liu et al. 2022, eq. 12, with DDIM's transfer; by a loop in float64.
    schedule, times = schedules.vp_linear(), np.linspace(0.9, 0.1, 9)
    predict = lambda x, t: np.tanh(x) * (1 - 0.5 * t)
    averages = [[1], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]
    with jax.enable_x64(True):
        rates = [tuple(float(v) for v in schedule(jnp.float64(t))) for t in times]
        x, seen = np.array([0.7, -1.3]), []
        for (alpha_t, sigma_t), (alpha_s, sigma_s), t in zip(rates, rates[1:], times, strict=False):
            seen.insert(0, (x - alpha_t * predict(x, t)) / sigma_t)
            eps = sum(a * e for a, e in zip(averages[min(len(seen), 4) - 1], seen, strict=False))
            x = alpha_s * (x - sigma_t * eps) / alpha_t + sigma_s * eps
        end = gaussian.sample(
            jax.random.key(0), lambda x, t: jnp.tanh(x) * (1 - 0.5 * t), jnp.array([0.7, -1.3]), jnp.asarray(times),
            schedule=schedule, solver=gaussian.plms(),
        )  # fmt: skip
        np.testing.assert_allclose(end, x, rtol=1e-12)
