"""Rate matrices against exponentials in 40 digits, and against chains solved by hand."""

import functools
import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import scipy.linalg
import scipy.special

from diffjax import schedules
from diffjax.processes import discrete, rates

RNG = np.random.default_rng(0)


def generator(off):
    off = off * (1 - np.eye(len(off)))
    return off - np.diag(off.sum(1))


CHAINS = {
    "dense": generator(RNG.exponential(size=(7, 7))),
    "stiff": generator(RNG.exponential(size=(6, 6)) ** 6),  # rates from 1e-6 to 1e3
    "cycle": generator(np.roll(np.eye(5), 1, axis=1)),  # complex eigenvalues
    "births": generator(np.diag(np.ones(5), 1)),  # defective: one eigenvector for five equal eigenvalues; absorbing
    "birth and death": generator(np.diag(np.ones(7), 1) + np.diag(np.full(7, 3.0), -1)),  # not symmetric, far tails
    "two islands": generator(scipy.linalg.block_diag(np.ones((2, 2)), np.ones((3, 3)))),  # reducible
    "still": np.zeros((3, 3)),
}
RECTIFIED, COSINE, VP = schedules.rectified(), schedules.cosine(), schedules.vp_linear()
each = pytest.mark.parametrize("name", CHAINS)
PAIRS = [(0.1, 0.3), (0.25, 0.75), (0.5, 0.5), (0.0, 0.6), (0.3, 1.0), (1.0, 1.0), (0.001, 0.01), (0.0, 0.0)]


@functools.cache
def exponential(name, alpha_s, alpha_t):
    """In 40 digits, so that rare moves are known too; a run of 1e9 stands for one without end."""
    if alpha_s == alpha_t:
        return np.eye(len(CHAINS[name]))
    with mpmath.workdps(40):
        run = mpmath.mpf(10**9) if alpha_t == 0 else mpmath.log(mpmath.mpf(alpha_s) / mpmath.mpf(alpha_t))
        return np.array(mpmath.expm(mpmath.matrix(CHAINS[name].tolist()) * run).tolist(), np.float64)


def laws(name, s, t):
    """P_0s, P_st and the bridge [x0, xt, xs] of `rectified` times; x_t itself where there is no way."""
    a_s, a_t = (1 - float(np.float32(u)) for u in (s, t))
    return between(name, a_s, a_t)


def between(name, a_s, a_t):
    first, second = exponential(name, 1.0, a_s), exponential(name, a_s, a_t)
    weights = first[:, None, :] * second.T[None, :, :]
    total = weights.sum(-1, keepdims=True)
    return first, second, np.where(total > 1e-30, weights / np.where(total > 1e-30, total, 1), np.eye(len(first))[None])


@functools.cache
def compiled(name, schedule=RECTIFIED):
    p = rates.process(CHAINS[name], schedule)
    return jax.jit(p.log_prob), jax.jit(p.posterior_logits), jax.jit(p.bridge), jax.jit(p.corrupt)


def answers(name, s, t, schedule=RECTIFIED):
    log_prob, posterior_logits, *_ = compiled(name, schedule)
    n = len(CHAINS[name])
    x0, xt = (jnp.asarray(x.ravel(), jnp.int32) for x in np.mgrid[:n, :n])
    certain = jnp.where(jnp.arange(n)[None] == x0[:, None], 0.0, -jnp.inf)
    times = [jnp.full(n**2, u, jnp.float32) for u in (s, t)]
    forward = np.exp(np.asarray(log_prob(x0, xt, times[1]), np.float64)).reshape(n, n)
    return forward, np.exp(np.asarray(posterior_logits(certain, xt, *times), np.float64)).reshape(n, n, n)


def variation(a, b):
    return 0.5 * np.abs(a - b).sum(-1).max()


@each
def test_forward_and_bridge_against_matrix_exponentials(name):
    for s, t in PAIRS:
        forward, bridge = answers(name, s, t)
        first, second, true_bridge = laws(name, s, t)
        assert variation(forward, first @ second) < 5e-7, t
        assert variation(bridge, true_bridge) < 5e-7, (s, t)


def cosine(t):
    start = 0.5 * mpmath.pi * mpmath.mpf("0.008") / mpmath.mpf("1.008")
    return mpmath.cos(start + (0.5 * mpmath.pi - start) * t) / mpmath.cos(start)


def vp(t):
    return mpmath.exp(-(20 - mpmath.mpf("0.1")) / 4 * t**2 - t / 20)


@pytest.mark.parametrize("name", ["dense", "stiff", "births"])
@pytest.mark.parametrize(("schedule", "exact"), [(COSINE, cosine), (VP, vp)], ids=["cosine", "vp"])
def test_fast_rates_follow_the_schedule_itself_not_its_rounding(name, schedule, exact):
    """alpha's rounding of 6e-8, times rates of 1e3, was 1e-5 of total variation; near the data bridges were off by 1e-2."""
    rng = np.random.default_rng(2)
    late, early, last = rng.uniform(0.02, 0.98, 3), 10 ** rng.uniform(-5, -2, 3), rng.uniform(0.1, 0.95, 3)
    times = [(0.4 * u, u) for u in (*late, *early)] + [(u - 3e-4, u) for u in last]
    for s, t in np.float32(times):
        with mpmath.workdps(40):
            a_s, a_t = (exact(mpmath.mpf(float(u))) for u in (s, t))
        first, second, bridge = between(name, a_s, a_t)
        ours, back = answers(name, s, t, schedule)
        assert variation(ours, first @ second) < 5e-7, t
        reached = (first @ second) > 1e-25  # beyond, float32's own range ends
        assert 0.5 * np.abs(back - bridge).sum(-1)[reached].max() < 5e-7, (s, t)


@each
def test_posterior_logits_sum_the_bridge_over_every_x0(name):
    n = len(CHAINS[name])
    _, posterior_logits, *_ = compiled(name)
    rng = np.random.default_rng(1)
    logits = rng.normal(scale=3, size=(n * n, n)).astype(
        np.float32
    )  # as many as there are pairs: nothing compiles twice
    logits[rng.random(logits.shape) < 0.3] = -np.inf
    logits[:, 0] = 0.5
    xt = rng.integers(0, n, n * n)
    probabilities = scipy.special.softmax(logits.astype(np.float64), axis=1)
    for s, t in PAIRS:
        bridge = laws(name, s, t)[2][:, xt].transpose(1, 0, 2)
        truth = np.einsum("nx,nxs->ns", probabilities, bridge)
        times = [jnp.full(n * n, u, jnp.float32) for u in (s, t)]
        ours = np.exp(np.asarray(posterior_logits(jnp.asarray(logits), jnp.asarray(xt, jnp.int32), *times), np.float64))
        assert variation(ours, truth) < 1e-6, (s, t)
        np.testing.assert_allclose(ours.sum(1), 1, rtol=2e-6)


@each
def test_chapman_kolmogorov(name):
    s, u, t = 0.2, 0.45, 0.9
    to_t, s_from_t = answers(name, s, t)
    _, u_from_t = answers(name, u, t)
    to_u, s_from_u = answers(name, s, u)
    to_s, _ = answers(name, s, s)
    np.testing.assert_allclose(np.einsum("at,ats->as", to_t, s_from_t), to_s, atol=1e-6)
    np.testing.assert_allclose(np.einsum("at,atu->au", to_t, u_from_t), to_u, atol=1e-6)
    through, reachable = np.einsum("atu,aus->ats", u_from_t, s_from_u), to_t > 0
    np.testing.assert_allclose(through[reachable], s_from_t[reachable], atol=1e-6)


def chi_squared(draws, law, n, at):
    """A right sampler fails by chance in 1e-6 of calls: mean + 6 standard deviations + 6."""
    counts, some = np.bincount(np.asarray(draws).ravel(), minlength=len(law)), law > 1e-7
    assert counts[law <= 1e-12].sum() == 0, at
    statistic, freedom = np.sum((counts - n * law)[some] ** 2 / (n * law[some])), some.sum() - 1
    assert statistic <= freedom + 6 * math.sqrt(2 * freedom) + 6, (at, statistic, freedom)


@pytest.mark.parametrize("name", ["dense", "births"])
def test_draws_have_the_law_of_the_matrix_exponentials(name):
    n, count = 5000, len(CHAINS[name])
    x0, xt = (jnp.asarray(np.repeat(x.ravel(), n), jnp.int8) for x in np.mgrid[:count, :count])
    *_, bridge, corrupt = compiled(name)
    s, t = 0.25, 0.75
    first, second, back = laws(name, s, t)
    draws = np.asarray(bridge(jax.random.key(0), x0, xt, s, t))
    noisy = np.asarray(corrupt(jax.random.key(1), x0, t)).reshape(count, count * n)
    assert draws.dtype == noisy.dtype == np.int8
    draws = draws.reshape(count, count, n)
    for a in range(count):
        chi_squared(noisy[a], (first @ second)[a], count * n, a)
        for b in range(count):
            chi_squared(draws[a, b], back[a, b], n, (a, b))


def test_rare_moves_keep_relative_accuracy():
    """Births at rate 1 make a Poisson count: P(j) = exp(-L) L^j / j!. By eigenvectors the small ones would be rounding."""
    t, j = np.float32(0.01), np.arange(5)
    run = -math.log1p(-float(t))
    truth = -run + j * math.log(run) - scipy.special.gammaln(j + 1)
    log_prob, *_ = compiled("births")
    x0, xt = jnp.zeros(36, jnp.int32), jnp.asarray(np.resize(j, 36), jnp.int32)
    np.testing.assert_allclose(log_prob(x0, xt, jnp.full(36, t))[:5], truth, rtol=1e-5)
    # Between these ends the births fall evenly in time: a binomial law at s.
    half = 1 - math.sqrt(1 - float(t))  # half the run
    _, posterior_logits, *_ = compiled("births")
    certain = jnp.where(jnp.arange(6)[None] == x0[:, None], 0.0, -jnp.inf)
    out = posterior_logits(certain, xt, jnp.full(36, half, jnp.float32), jnp.full(36, t))
    np.testing.assert_allclose(np.exp(out[4, :5]), np.array([1, 4, 6, 4, 1]) / 16, rtol=2e-4)


def test_a_rank_one_rate_matrix_is_the_jump_process():
    pi = np.array([0.5, 0.0, 0.3, 0.2])
    for schedule in (schedules.cosine(), schedules.vp_linear()):
        a, b = rates.process(np.ones((4, 1)) * pi - np.eye(4), schedule), discrete.jump(schedule, stationary=pi)
        logits = jax.random.normal(jax.random.key(0), (8, 4))
        xt = jnp.arange(8) % 4
        s, t = jnp.linspace(0.0, 0.9, 8), jnp.linspace(0.3, 1.0, 8)
        ours, theirs = (jax.jit(p.posterior_logits)(logits, xt, s, t) for p in (a, b))
        np.testing.assert_allclose(jnp.exp(ours), jnp.exp(theirs), atol=1e-6)
        ours, theirs = (jax.jit(p.log_prob)(jnp.zeros_like(xt), xt, t) for p in (a, b))
        np.testing.assert_allclose(jnp.exp(ours), jnp.exp(theirs), atol=1e-6)


def test_neighbour_rates_run_in_continuous_time():
    q = discrete.neighbour_rates(np.arange(6.0)[:, None] ** 1.2, neighbours=2)
    np.testing.assert_array_equal(q, q.T)
    p = rates.process(q, schedules.rectified())
    steps = discrete.neighbour_steps([-math.log(0.5)], embeddings=np.arange(6.0)[:, None] ** 1.2, neighbours=2)[0]
    ours = jax.jit(p.log_prob)(jnp.repeat(jnp.arange(6), 6), jnp.tile(jnp.arange(6), 6), jnp.full(36, 0.5))
    np.testing.assert_allclose(np.exp(ours).reshape(6, 6), steps, atol=3e-7)


def test_ends_are_met_exactly_and_ends_that_cannot_be_joined_keep_xt():
    p = rates.process(CHAINS["births"], schedules.cosine(0.02))

    @jax.jit
    def walk(key, x0):
        xt = p.corrupt(key, x0, 1.0)
        ends = [
            (p.bridge(key, x0, xt, 1.0, 1.0), xt),
            (p.bridge(key, x0, xt, 0.0, 1.0), x0),
            (xt, jnp.full_like(x0, 5)),
        ]
        ends.append((p.corrupt(key, x0, 0.0), x0))
        ends.append((p.bridge(key, jnp.full_like(x0, 4), x0, 0.3, 0.6), jnp.maximum(x0, 4)))
        return ends

    *joined, (drawn, _) = walk(jax.random.key(0), jnp.asarray(RNG.integers(0, 6, 2000), jnp.int8))
    for ours, truth in joined:
        np.testing.assert_array_equal(ours, truth)
    x0 = jnp.asarray(np.resize(np.arange(4), 64), jnp.int8)  # births never lead down
    np.testing.assert_array_equal(jax.jit(p.bridge)(jax.random.key(0), jnp.full_like(x0, 4), x0, 0.3, 0.6), x0)
    assert drawn.dtype == jnp.int8


def test_prior_is_the_limit_law():
    q = CHAINS["dense"]
    values, vectors = np.linalg.eig(q.T)
    law = np.real(vectors[:, np.argmax(values.real)])
    law = law / law.sum()
    p = rates.process(q, schedules.cosine())
    x1 = jax.jit(p.prior, static_argnums=1)(jax.random.key(0), jax.ShapeDtypeStruct((50_000,), jnp.int32))
    chi_squared(x1, law, 50_000, "prior")


@pytest.mark.slow
def test_gradients_are_finite_and_right_in_the_clock():
    q = CHAINS["dense"]

    def loss(logits, w, s, t):
        learned = rates.process(q, lambda u: ((1 - jnp.asarray(u, jnp.float32)) ** w, jnp.zeros(())))
        xt = jnp.array([1, 2])
        out = learned.posterior_logits(logits, xt, s, t)
        return jnp.sum(jnp.where(jnp.isfinite(out), out, 0))

    slopes = jax.jit(jax.grad(loss, argnums=(0, 1)))
    logits = jnp.where(jnp.arange(14).reshape(2, 7) % 3 == 0, -jnp.inf, 0.3)
    for s, t in ((0.0, 0.5), (0.5, 0.5), (0.3, 1.0), (1.0, 1.0), (0.0, 0.0)):
        for g in slopes(logits, 1.0, s, t):
            assert np.isfinite(g).all(), (s, t)
    # In a schedule's parameter: d exp(QL)/dL = Q exp(QL) with L = -w log(1 - t).
    row = lambda w: jnp.exp(
        rates.process(q, lambda u: ((1 - jnp.asarray(u, jnp.float32)) ** w, jnp.zeros(()))).log_prob(
            jnp.zeros(7, jnp.int32), jnp.arange(7), jnp.full(7, 0.5)
        )
    )
    truth = (q @ scipy.linalg.expm(q * math.log(2)))[0] * math.log(2)
    np.testing.assert_allclose(jax.jit(jax.jacfwd(row))(1.0), truth, atol=2e-6)


def test_times_of_their_own_and_float64():
    log_prob, *_ = compiled("dense")
    x0, xt = jnp.asarray(RNG.integers(0, 7, (2, 7, 7)))
    per_site = jnp.asarray(RNG.uniform(size=(7, 7)), jnp.float32)
    alone = log_prob(x0.ravel(), xt.ravel(), per_site.ravel())  # the shape of times is the batch
    p = rates.process(CHAINS["dense"], schedules.rectified())
    np.testing.assert_allclose(jax.jit(p.log_prob)(x0, xt, per_site), alone.reshape(7, 7), rtol=1e-5)
    with jax.enable_x64(True):
        xt = jnp.arange(7)
        ours = jax.jit(p.log_prob)(jnp.zeros_like(xt), xt, jnp.full(7, 0.3, jnp.float64))
        assert ours.dtype == jnp.float64
        np.testing.assert_allclose(np.exp(ours), scipy.linalg.expm(-CHAINS["dense"] * np.log(0.7))[0], rtol=1e-12)


def test_matrices_that_are_no_rates_are_refused():
    for wrong in (
        np.zeros((2, 3)),
        np.array([[-1.0, 2.0], [0.0, 0.0]]),
        np.array([[1.0, -1.0], [0.0, 0.0]]),
        np.full((2, 2), np.nan),
    ):
        with pytest.raises(ValueError, match="expected"):
            rates.process(wrong, schedules.rectified())
