"""The solvers one by one: exactness where a polynomial is exact, the published formulas, orders, errors, and no infinity anywhere."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy import integrate

from diffjax import numerics, schedules
from diffjax.samplers import frames, gaussian

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def walk(predict, schedule, solver, **options):
    """The compiled sampler `(x, times) -> sample`."""
    key = jax.random.key(0)
    return jit(lambda x, times: gaussian.sample(key, predict, x, times, schedule=schedule, solver=solver, **options))


# -------------------------------------------------------------------------------------------------------- weights


def test_exponential_moments_against_mpmath():
    # By Kummer's function, int_0^1 e^-zv v^k dv = M(k+1, k+2, -z) / (k+1); the other is e^-z M(k+1, k+2, z) / (k+1).
    z = np.array([-30.0, -2.0, -1.999, -0.3, -1e-4, 0.0, 1e-6, 0.01, 0.5, 1.99, 2.01, 7.0, 40.0])
    with mpmath.workdps(40):
        m = lambda k, a: mpmath.hyp1f1(k + 1, k + 2, a) / (k + 1)
        fall = [[float(m(k, -a)) for a in z] for k in range(5)]
        rise = [[float(mpmath.exp(-a) * m(k, a)) for a in z] for k in range(5)]
    for dtype, tolerance in ((np.float32, 3e-6), (np.float64, 2e-14)):
        with jax.enable_x64(dtype == np.float64):
            got = jit(frames.exponential_moments, static_argnums=1)(jnp.asarray(z, dtype), 4)
        np.testing.assert_allclose(np.asarray(got[0]), fall, rtol=tolerance)
        np.testing.assert_allclose(np.asarray(got[1]), rise, rtol=tolerance)


def weights(nodes):
    """The weights of a step of length one."""
    moments = [1 / (k + 1) for k in range(len(nodes))]
    asarray = lambda values: [jnp.asarray(v) for v in values]
    return jit(lambda u, m: frames.weights(list(u), list(m)))(asarray(nodes), asarray(moments))


def test_weights_of_equal_steps_are_those_of_the_books():
    # Adams-Bashforth and Adams-Moulton of order 4; Hairer, Norsett and Wanner, sec. III.1.
    np.testing.assert_allclose(weights([0.0, -1.0, -2.0, -3.0]), np.array([55, -59, 37, -9]) / 24, rtol=2e-6)
    np.testing.assert_allclose(weights([1.0, 0.0, -1.0, -2.0]), np.array([9, 19, -5, 1]) / 24, rtol=2e-6)


@pytest.mark.parametrize("silent", [np.inf, -np.inf, np.nan, 0.0])
def test_a_node_that_is_infinite_or_double_takes_no_part(silent):
    np.testing.assert_allclose(weights([0.0, silent, -1.0, silent]), [1.5, 0.0, -0.5, 0.0], rtol=1e-6)


# --------------------------------------------------------------------------------------------- polynomials are exact
# If the slope of a frame is a polynomial of the clock, of degree below the order, every step with a complete past is exact.

CASES = {
    "data": (frames.data, schedules.vp_linear()),
    "noise": (frames.noise, schedules.vp_linear()),
    "ratio": (frames.ratio, schedules.karras(0.1, 5.0)),
    "flow": (frames.flow, schedules.cosine()),
}


def clock_and_scale(name, alpha, sigma):
    if name in ("data", "noise"):
        return np.log(alpha / sigma)
    return sigma / alpha if name == "ratio" else sigma / (alpha + sigma)


def polynomial_problem(name, schedule, coefficients):
    """A denoiser whose slope is a polynomial of the clock, and the exact solution by quadrature of the definition of the frame."""
    level = lambda t: tuple(np.asarray(v, float) for v in schedule(t))

    def slope(t):
        alpha, sigma = schedule(t)
        if name in ("data", "noise"):
            c = jnp.log(alpha / sigma)
        else:
            c = sigma / alpha if name == "ratio" else sigma / (alpha + sigma)
        return sum(a * c**k for k, a in enumerate(coefficients))

    def predict(x, t):
        alpha, sigma = schedule(t)
        if name == "data":
            return jnp.broadcast_to(slope(t), x.shape)
        if name == "flow":  # alpha x0 + sigma (x0 + f) = x
            return (x - sigma * slope(t)) / (alpha + sigma)
        return (x - sigma * slope(t)) / alpha

    def exact(x, t, s):
        f = lambda c: sum(a * c**k for k, a in enumerate(coefficients))
        (alpha_t, sigma_t), (alpha_s, sigma_s) = level(t), level(s)
        # d(x / scale) = f dq: scale sigma, q = alpha / sigma = e^c; scale alpha, q = sigma / alpha = e^-c or c; scale alpha + sigma, q = c.
        scale_t, scale_s = {"data": (sigma_t, sigma_s), "flow": (alpha_t + sigma_t, alpha_s + sigma_s)}.get(
            name, (alpha_t, alpha_s)
        )
        rate = {"data": np.exp, "noise": lambda c: -np.exp(-c)}.get(name, lambda c: 1.0)
        a, b = (clock_and_scale(name, *level(v)) for v in (t, s))
        return scale_s * (x / scale_t + integrate.quad(lambda c: f(c) * rate(c), a, b, epsabs=1e-13, epsrel=1e-13)[0])

    return predict, exact


@pytest.mark.parametrize("name", list(CASES))
@pytest.mark.parametrize(
    ("make", "order", "complete"), [(gaussian.adams, 2, 1), (gaussian.adams, 4, 3), (gaussian.unipc, 3, 3)]
)
def test_a_polynomial_slope_is_integrated_exactly(name, make, order, complete):
    frame, schedule = CASES[name]
    with jax.enable_x64(True):
        times = jnp.asarray([0.95, 0.9, 0.78, 0.7, 0.55, 0.3, 0.2])
        predict, exact = polynomial_problem(name, schedule, [0.3, -1.1, 0.7, 0.4][:order])
        path = [np.array(0.4)]
        for t, s in itertools.pairwise(times):
            path.append(exact(path[-1], float(t), float(s)))
        ends = steps_from(path, predict, schedule, make(order, frame=frame, taper=0), times)
    np.testing.assert_allclose(ends[complete:], path[complete + 1 :], rtol=1e-10, atol=1e-11)
    assert abs(ends[0] - path[1]) > 1e-4  # without a past the step is not exact: the test can fail


def steps_from(path, predict, schedule, solver, times):
    """Where each step of a solver ends that starts on the path, with the estimates made on the path behind it."""

    @jit
    def run(path, times):
        rows = solver.plan(times, schedule)
        history, ends = solver.init(path[0]), []
        for i in range(times.shape[0] - 1):
            row = jax.tree.map(lambda v, i=i: v[i], rows)
            end, _, history = solver.step(None, predict, path[i], history, times[i + 1], times[i], row)
            ends.append(end)
        return jnp.stack(ends)

    return np.asarray(run(jnp.asarray(np.array(path)), times))


# ---------------------------------------------------------------------------------------------- published formulas
# Each solver against its paper's own lines, written out in NumPy for alpha = 1 or in general, on a denoiser without structure.

SIGMAS = np.array([9.0, 4.0, 2.5, 1.0, 0.6, 0.25, 0.1])


def wild(x, sigma):
    return np.tanh(1.3 * x + 0.2) * (1 + 0.3 * np.sin(sigma))


def end_of(solver):
    """The solver's end on the schedule sigma = 10 t, alpha = 1."""
    schedule = lambda t: (jnp.ones_like(t), 10.0 * t)
    predict = lambda x, t: jnp.tanh(1.3 * x + 0.2) * (1 + 0.3 * jnp.sin(10.0 * t))
    with jax.enable_x64(True):
        return np.asarray(walk(predict, schedule, solver)(jnp.asarray(9.0 * START), jnp.asarray(SIGMAS / 10)))


START = np.array([0.4, -1.2, 0.05])


def pairs():
    return list(itertools.pairwise(SIGMAS))


def published_heun():
    x = 9.0 * START
    for a, b in pairs():
        d = (x - wild(x, a)) / a
        y = x + (b - a) * d
        x = x + (b - a) * 0.5 * (d + (y - wild(y, b)) / b)
    return x


def published_2s():
    x = 9.0 * START
    for a, b in pairs():
        m = math.sqrt(a * b)
        u = m / a * x - math.expm1(-math.log(a / m)) * wild(x, a)
        x = b / a * x - math.expm1(-math.log(a / b)) * wild(u, m)
    return x


def published_2m():
    x, old, h_old = 9.0 * START, None, None
    for a, b in pairs():
        h, d = math.log(a / b), wild(x, a)
        mixed = d if old is None else (1 + h / (2 * h_old)) * d - h / (2 * h_old) * old
        x, old, h_old = b / a * x - math.expm1(-h) * mixed, d, h
    return x


def published_3m():
    x, past = 9.0 * START, []
    for a, b in pairs():
        h, d = math.log(a / b), wild(x, a)
        phi1 = -math.expm1(-h)
        y = b / a * x + phi1 * d
        if len(past) == 1:
            ((d1, h1),) = past
            y = y + 0.5 * phi1 * (d - d1) * h / h1
        elif past:
            (d1, h1), (d2, h2) = past[-1], past[-2]
            first, second = (d - d1) * h / h1, (d1 - d2) * h / h2
            slope = first + (first - second) * h1 / (h1 + h2)
            curve = (first - second) * h / (h1 + h2)
            phi2 = math.expm1(-h) / h + 1
            phi3 = phi2 / h - 0.5
            y = y + phi2 * slope - phi3 * curve
        past.append((d, h))
        x = y
    return x


def published_unipc(order, data, bh1):
    """The paper's system R_p(h) a = g_p / B(h), solved with NumPy, with the taper's lower orders at the end."""
    lam, x, f, start, used = -np.log(SIGMAS), 9.0 * START, [], None, None

    def update(x, n, k, new=None):
        a, b, h = SIGMAS[n], SIGMAS[n + 1], lam[n + 1] - lam[n]
        hh = -h if data else h
        big = hh if bh1 else math.expm1(hh)
        ratios = [(lam[n - j] - lam[n]) / h for j in range(1, k)]
        differences = [(f[n - j] - f[n]) / r for j, r in enumerate(ratios, 1)]
        if new is not None:
            ratios, differences = [*ratios, 1.0], [*differences, new - f[n]]
        size = len(ratios)
        phi, right = math.expm1(hh) / hh - 1, []
        for i in range(1, size + 1):
            right.append(phi * math.factorial(i) / big)
            phi = phi / hh - 1 / math.factorial(i + 1)
        a_p = (
            [0.5]
            if size == 1
            else np.linalg.solve([[r**i for r in ratios] for i in range(size)], right)
            if size
            else []
        )
        change = big * sum(c * d for c, d in zip(a_p, differences, strict=True))
        return b / a * x - math.expm1(hh) * f[n] - change if data else x - b * (math.expm1(hh) * f[n] + change)

    steps = len(SIGMAS) - 1
    for n in range(steps):
        new = wild(x, SIGMAS[n]) if data else (x - wild(x, SIGMAS[n])) / SIGMAS[n]
        if n:
            x = update(start, n - 1, used, new)
        f.append(new)
        start, used = x, min(order, n + 1, steps - n)
        x = update(x, n, used)
    return x


@pytest.mark.parametrize(
    ("solver", "published"),
    [
        (gaussian.heun(), published_heun),
        (gaussian.dpmpp_2s(), published_2s),
        (gaussian.dpmpp(2, taper=0), published_2m),
        (gaussian.dpmpp(3, taper=0), published_3m),
        (gaussian.unipc(2), lambda: published_unipc(2, True, False)),
        (gaussian.unipc(2, bh1=True), lambda: published_unipc(2, True, True)),
        (gaussian.unipc(3), lambda: published_unipc(3, True, False)),
        (gaussian.unipc(3, bh1=True, frame=frames.noise), lambda: published_unipc(3, False, True)),
    ],
)
def test_solvers_are_those_of_their_papers(solver, published):
    np.testing.assert_allclose(end_of(solver), published(), rtol=1e-9, atol=1e-11)


def test_churn_is_that_of_its_paper(monkeypatch):
    # sigma_hat = sigma (1 + gamma), x_hat = x + sqrt(sigma_hat^2 - sigma^2) z with z = 1, then Heun from sigma_hat.
    monkeypatch.setattr(numerics, "normal", lambda key, shape, dtype: jnp.ones(shape, dtype))
    gamma, x = min(1.2 / 6, math.sqrt(2) - 1), 9.0 * START
    for a, b in pairs():
        raised = min(a * (1 + gamma), 10.0)  # the schedule ends at 10
        x, a = x + 1.1 * math.sqrt(raised**2 - a**2), raised
        d = (x - wild(x, a)) / a
        y = x + (b - a) * d
        x = x + (b - a) * 0.5 * (d + (y - wild(y, b)) / b)
    np.testing.assert_allclose(end_of(gaussian.heun(1.2, s_noise=1.1)), x, rtol=1e-8)


# ------------------------------------------------------------------------------------------------ orders and errors
# A mixture of six anisotropic Gaussians; its endpoints by DOP853.

MEANS = np.array([[1.1, 0.0], [0.2, 1.0], [-0.9, 0.6], [-0.8, -0.7], [0.1, -1.2], [0.5, 0.2]])
AXES = np.array([[0.30, 0.08], [0.25, 0.10], [0.12, 0.28], [0.2, 0.2], [0.35, 0.07], [0.10, 0.22]]) ** 2
WEIGHTS = np.log([0.2, 0.1, 0.25, 0.15, 0.2, 0.1])


def mixture(schedule):
    def predict(x, t):
        alpha, sigma = schedule(t)
        mean, spread = jnp.asarray(MEANS, x.dtype)[None], jnp.asarray(AXES, x.dtype)[None]
        off = x[:, None] - alpha * mean
        v = alpha**2 * spread + sigma**2
        log_p = -0.5 * jnp.sum(off**2 / v + jnp.log(v), -1) + jnp.asarray(WEIGHTS, x.dtype)[None]
        return jnp.sum(jax.nn.softmax(log_p)[..., None] * (mean + alpha * spread / v * off), 1)

    return predict


@functools.cache
def endpoints():
    """32 starts at sigma = 80 and where the probability-flow ODE takes them at 0.002, by DOP853 on the ODE in log sigma."""
    start = 80 * np.random.default_rng(0).normal(size=(32, 2))

    def velocity(log_sigma, flat):
        sigma, x = np.exp(log_sigma), flat.reshape(-1, 2)
        off, v = x[:, None] - MEANS, AXES + sigma**2
        log_p = -0.5 * np.sum(off**2 / v + np.log(v), -1) + WEIGHTS
        p = np.exp(log_p - log_p.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        return (x - np.sum(p[..., None] * (MEANS + AXES / v * off), 1)).ravel()  # dx / dlog sigma = x - x0_hat

    solution = integrate.solve_ivp(
        velocity, np.log([80.0, 0.002]), start.ravel(), method="DOP853", rtol=1e-13, atol=1e-14
    )
    return start, solution.y[:, -1].reshape(-1, 2)


def error(solver, steps):
    start, end = endpoints()
    schedule = schedules.karras()
    with jax.enable_x64(True):
        got = walk(mixture(schedule), schedule, solver)(jnp.asarray(start), jnp.linspace(1.0, 0.0, steps + 1))
    return math.sqrt(np.mean((np.asarray(got) - end) ** 2))


ORDERS = {
    "ddim": (gaussian.ddim(), 1), "dpmpp2": (gaussian.dpmpp(2), 2), "dpmpp3": (gaussian.dpmpp(3), 2),
    "dpmpp3 corrected": (gaussian.dpmpp(3, corrected=True), 3), "deis2": (gaussian.deis(2), 2), "deis3": (gaussian.deis(3), 3),
    "adams2": (gaussian.adams(2), 2), "adams3": (gaussian.adams(3), 3), "ratio3": (gaussian.adams(3, frame=frames.ratio), 3),
    "plms": (gaussian.plms(), 2), "unipc1": (gaussian.unipc(1), 2), "unipc2": (gaussian.unipc(2), 3), "unipc2 bh1": (gaussian.unipc(2, bh1=True), 3),
    "unipc2 noise": (gaussian.unipc(2, frame=frames.noise), 3), "heun": (gaussian.heun(), 2),
    "heun flow": (gaussian.heun(frame=frames.flow), 2), "2s": (gaussian.dpmpp_2s(), 2),
}  # fmt: skip
QUICK = ["ddim", "deis3", "unipc2", "heun"]


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in ORDERS])
def test_errors_fall_with_the_order(name):
    # From 160 to 320 steps, lower orders at the start included.
    solver, order = ORDERS[name]
    assert abs(math.log2(error(solver, 160) / error(solver, 320)) - order) < 0.2


def smooth_error(solver, steps, sigma_min, sigma_max):
    """The error on N(m, c^2), where the exact walk keeps (x - m) / sqrt(c^2 + sigma^2)."""
    schedule, m, c2 = schedules.karras(sigma_min, sigma_max), np.array([0.5, -1.0, 0.0]), np.array([0.09, 1.0, 9.0])
    start = np.array([1.0, -0.5, 2.0]) * sigma_max

    def predict(x, t):
        variance = schedule(t)[1] ** 2
        return (jnp.asarray(m) * variance + jnp.asarray(c2) * x) / (jnp.asarray(c2) + variance)

    with jax.enable_x64(True):
        end = walk(predict, schedule, solver)(jnp.asarray(start), jnp.linspace(1.0, 0.0, steps + 1))
    exact = m + (start - m) * np.sqrt((c2 + sigma_min**2) / (c2 + sigma_max**2))
    return np.sqrt(np.mean((np.asarray(end) - exact) ** 2))


@pytest.mark.parametrize(
    ("solver", "order", "sigma_min", "sigma_max"),
    [
        # From moderate noise, where the first step decides:
        (gaussian.deis(3), 3, 0.1, 10.0), (gaussian.adams(3), 3, 0.1, 10.0), (gaussian.unipc(2), 3, 0.1, 10.0),
        (gaussian.adams(3, frame=frames.data), 3, 0.1, 10.0),
        # The fourth orders, on the usual range:
        (gaussian.deis(4), 4, 0.002, 80.0), (gaussian.unipc(3), 4, 0.002, 80.0),
    ],
)  # fmt: skip
def test_errors_fall_with_the_order_from_the_first_step(solver, order, sigma_min, sigma_max):
    coarse, fine = (smooth_error(solver, steps, sigma_min, sigma_max) for steps in (160, 320))
    assert abs(math.log2(coarse / fine) - order) < 0.2


def test_higher_orders_pay():
    # One DDIM walk of 80 calls against 20 calls of the others, and 80 against 80.
    plain = error(gaussian.ddim(), 80)
    assert error(gaussian.deis(3), 20) < 0.6 * plain
    assert error(gaussian.unipc(3), 80) < plain / 200


# -------------------------------------------------------------------------------------------------------- no infinity

EVERY = {
    "ddim": gaussian.ddim(), "eta": gaussian.ddim(0.3), "ancestral": gaussian.ancestral(), "heun": gaussian.heun(), "churn": gaussian.heun(5.0),
    "heun flow": gaussian.heun(frame=frames.flow), "2s": gaussian.dpmpp_2s(), "2s ancestral": gaussian.dpmpp_2s(1.0), "dpmpp2": gaussian.dpmpp(2),
    "dpmpp3": gaussian.dpmpp(3), "corrected": gaussian.dpmpp(3, corrected=True), "sde1": gaussian.dpmpp(1, sde=True),
    "sde2": gaussian.dpmpp(2, sde=True), "sde3": gaussian.dpmpp(3, sde=0.5), "deis2": gaussian.deis(2), "deis4": gaussian.deis(4),
    "adams": gaussian.adams(4), "ratio": gaussian.adams(4, frame=frames.ratio), "plms": gaussian.plms(), "unipc2": gaussian.unipc(2),
    "bh1": gaussian.unipc(2, bh1=True), "unipc3": gaussian.unipc(3), "unipc noise": gaussian.unipc(3, frame=frames.noise, bh1=True),
    "unipc ratio": gaussian.unipc(3, frame=frames.ratio), "unipc flow": gaussian.unipc(4, frame=frames.flow),
}  # fmt: skip

KINDS = [schedules.vp_linear(), schedules.cosine(), schedules.karras(), schedules.rectified(), schedules.ve()]


def side_by_side(t):
    """Five schedules at once, each for its share of the last axis."""
    alpha, sigma = zip(
        *(kind(part) for kind, part in zip(KINDS, jnp.split(t, len(KINDS), axis=-1), strict=True)), strict=True
    )
    return jnp.concatenate(alpha, -1), jnp.concatenate(sigma, -1)


def shrink(x, t):
    """E[x_0 | x_t] for data N(0, 1/4)."""
    alpha, sigma = side_by_side(t)
    return alpha * 0.25 / (alpha**2 * 0.25 + sigma**2) * x


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in ("2s", "ratio", "unipc3") else pytest.mark.slow) for n in EVERY]
)
def test_no_solver_is_infinite_anywhere(name):
    # Every number of steps from 1 to 50 at once, on five schedules, to 0 and to 1e-3: a grid of n steps is one of 50 whose last rows stay
    # where they are.
    stops, counts = (0.0, 1e-3), range(1, 51)
    grids = [np.concatenate([np.linspace(1.0, stop, n + 1), np.full(50 - n, stop)]) for stop in stops for n in counts]
    times = jnp.asarray(np.tile(np.stack(grids, 1), (1, len(KINDS))), jnp.float32)
    start = side_by_side(times[0])[1] * np.random.default_rng(0).normal(size=times.shape[1]).astype(np.float32)
    run = walk(shrink, side_by_side, EVERY[name])
    end = np.asarray(run(start, times)).reshape(len(KINDS), len(stops), len(counts))
    assert np.isfinite(end).all()
    assert np.abs(end[:, :, 19:]).max() < 4  # and from 20 steps sane: eight standard deviations
    # The grids of few steps as they are: the lower orders at their ends.
    for n in (1, 2, 3):
        few = jnp.asarray(np.tile(np.linspace(1.0, (0.0, 1e-3), n + 1), (1, len(KINDS))), jnp.float32)
        assert np.isfinite(run(start[: few.shape[1]], few)).all()


@pytest.mark.parametrize(
    ("solver", "start"),
    [(gaussian.adams(3), 1.0), (gaussian.unipc(3, frame=frames.flow), 1.0), (gaussian.deis(3), 0.9)],
)
def test_the_ends_are_limits(solver, start):
    # sigma = 0, and for the clock of `flow` alpha = 0, give what small values give, not answers of their own.
    predict = lambda x, t: jnp.tanh(2 * x + t) * 0.8
    with jax.enable_x64(True):
        x, run = jnp.array([0.3, -1.0]), walk(predict, schedules.rectified(), solver)
        ends = [run(x, jnp.array([start - tiny, 0.8, 0.65, 0.4, 0.2, 0.1, tiny])) for tiny in (0.0, 1e-9)]
    np.testing.assert_allclose(*ends, atol=1e-7)


@pytest.mark.parametrize(
    "solver", [gaussian.dpmpp(3), gaussian.unipc(3), gaussian.dpmpp(2, sde=True), gaussian.dpmpp_2s(), gaussian.heun()]
)
def test_a_step_to_clean_data_takes_the_estimate(solver):
    predict = lambda x, t: jnp.full_like(x, 0.8) * t
    end = walk(predict, schedules.cosine(), solver)(jnp.array([0.3, -1.0]), jnp.array([1.0, 0.5, 0.25, 0.0]))
    np.testing.assert_allclose(end, [0.2, 0.2], rtol=1e-6)


def test_float32_walks_stay_with_float64_ones():
    # 50 steps on the mixture in either precision: 3e-5 is a few hundred roundings, 4e-4 of the solver's own error at 20 steps.
    schedule = schedules.vp_linear()
    for solver in (gaussian.dpmpp(3), gaussian.unipc(3, frame=frames.noise), gaussian.heun(frame=frames.flow)):
        ends = []
        for wide in (False, True):
            with jax.enable_x64(wide):
                start = jnp.asarray(np.random.default_rng(1).normal(size=(64, 2)), jnp.float64 if wide else jnp.float32)
                grid = jnp.linspace(1.0, 1e-3, 51, dtype=start.dtype)
                ends.append(np.asarray(walk(mixture(schedule), schedule, solver)(start, grid)))
        assert np.sqrt(np.mean((ends[0] - ends[1]) ** 2)) < 3e-5
