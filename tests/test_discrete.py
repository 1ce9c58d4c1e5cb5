"""Symbols against enumeration and matrix exponentials.

References write every law down in full: exponentials of the jump process's rate matrix `1 pi^T - I`, products of step matrices, and sums over
every x_0, in float64. The processes answer in float32.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from diffjax import schedules
from diffjax.processes import discrete

K = 5
UNEVEN = np.array([0.4, 0.0, 0.25, 0.05, 0.3])  # one symbol that noise never brings
MAKERS = {
    "uniform": (lambda s: discrete.uniform(s, vocab=K), np.full(K, 1 / K)),
    "absorbing": (lambda s: discrete.absorbing(s, vocab=K - 1), np.eye(K)[K - 1]),
    "jump": (lambda s: discrete.jump(s, stationary=UNEVEN), UNEVEN),
}
PAIRS = [(0.1, 0.3), (0.25, 0.75), (0.5, 0.5), (0.0, 0.6), (0.3, 1.0), (1.0, 1.0), (0.001, 0.002), (0.0, 0.0)]
each = pytest.mark.parametrize("name", MAKERS)


def transition(pi, alpha_s, alpha_t):
    """exp of the rates `1 pi^T - I`, run for log(alpha_s / alpha_t); for ever where alpha_t = 0."""
    if alpha_s == alpha_t:
        return np.eye(len(pi))
    run = 700.0 if alpha_t == 0 else np.log(alpha_s / alpha_t)
    return scipy.linalg.expm((np.ones((len(pi), 1)) * pi - np.eye(len(pi))) * run)


def laws(pi, s, t):
    """P_0t and the bridge [x0, xt, xs] of `rectified` times, with x_t itself where the ends cannot be joined."""
    a_s, a_t = (1 - float(np.float32(u)) for u in (s, t))
    first, second = transition(pi, 1.0, a_s), transition(pi, a_s, a_t)
    return first @ second, bridges(first, second)


def bridges(first, second, least=1e-12):
    weights = first[:, None, :] * second.T[None, :, :]
    total = weights.sum(-1, keepdims=True)
    return np.where(total > least, weights / np.where(total > least, total, 1), np.eye(first.shape[0])[None])


@functools.cache
def compiled(p):
    return jax.jit(p.log_prob), jax.jit(p.posterior_logits)


def answers(p, s, t, symbols=K):
    """The same from a process: exp(log_prob) and exp(posterior_logits) of a certain guess, for all pairs."""
    log_prob, posterior_logits = compiled(p)
    x0, xt = (jnp.asarray(x.ravel(), jnp.int32) for x in np.mgrid[:symbols, :symbols])
    certain = jnp.where(jnp.arange(symbols)[None] == x0[:, None], 0.0, -jnp.inf)
    times = [jnp.full(symbols**2, u, jnp.float32) for u in (s, t)]
    forward = np.exp(np.asarray(log_prob(x0, xt, times[1]), np.float64)).reshape(symbols, symbols)
    back = np.exp(np.asarray(posterior_logits(certain, xt, *times), np.float64))
    return forward, back.reshape(symbols, symbols, symbols)


def variation(a, b):
    return 0.5 * np.abs(a - b).sum(-1).max()


def chi_squared(draws, law, n, at=""):
    """A right sampler fails by chance in 1e-6 of calls: mean + 6 standard deviations + 6."""
    law = np.asarray(law, np.float64)
    counts = np.bincount(np.asarray(draws).ravel(), minlength=len(law))
    assert counts[law <= 1e-9].sum() == 0, at
    some = law > 1e-9
    statistic, freedom = np.sum((counts - n * law)[some] ** 2 / (n * law[some])), max(some.sum() - 1, 0)
    assert statistic <= freedom + 6 * math.sqrt(2 * freedom) + 6, (at, statistic, freedom)


# -------------------------------------------------------------------------------------------------- jump processes


@each
def test_forward_and_bridge_against_matrix_exponentials(name):
    make, pi = MAKERS[name]
    p = make(schedules.rectified())
    for s, t in PAIRS:
        forward, bridge = answers(p, s, t)
        true_forward, true_bridge = laws(pi, s, t)
        assert variation(forward, true_forward) < 5e-7, t
        assert variation(bridge, true_bridge) < 5e-7, (s, t)


@each
def test_laws_near_the_data_and_over_short_steps_keep_their_digits(name):
    """By differences of float32's alphas the bridges below were wrong by up to 1e-2: 1 - alpha is mostly rounding there."""
    make, pi = MAKERS[name]
    p = make(schedules.cosine())
    rng = np.random.default_rng(3)
    start = 0.5 * math.pi * 0.008 / 1.008
    early = 10 ** rng.uniform(-5, -1, 8)
    for s, t in np.float32([(0.6 * u, u) for u in early] + [(u, u + 2e-4) for u in rng.uniform(0.05, 0.9, 6)]):
        # 1 - alpha by half angles, in float64; then both transition matrices in full, and Bayes' rule.
        gone = [
            2
            * math.sin(0.5 * (0.5 * math.pi - start) * u)
            * math.sin(start + 0.5 * (0.5 * math.pi - start) * u)
            / math.cos(start)
            for u in (float(s), float(t))
        ]
        a_s, a_t = (1 - g for g in gone)
        between = (gone[1] - gone[0]) / a_s
        first, second = ((1 - g) * np.eye(K) + g * np.ones((K, 1)) * pi for g in (gone[0], between))
        ours, bridge = answers(p, s, t)
        assert variation(ours, a_t * np.eye(K) + gone[1] * np.ones((K, 1)) * pi) < 5e-7, t
        assert variation(bridge, bridges(first, second, least=1e-25)) < 5e-7, (s, t)


@each
def test_bridge_draws_have_the_law_of_the_matrix_exponentials(name):
    make, pi = MAKERS[name]
    p = make(schedules.rectified())
    n = 20_000
    x0, xt = (jnp.asarray(np.repeat(x.ravel(), n), jnp.int8) for x in np.mgrid[:K, :K])
    bridge, corrupt = jax.jit(p.bridge), jax.jit(p.corrupt)
    for i, (s, t) in enumerate([(0.25, 0.75), (0.3, 1.0), (0.5, 0.52)]):
        forward, back = laws(pi, s, t)
        draws = np.asarray(bridge(jax.random.key(i), x0, xt, s, t)).reshape(K, K, n)
        noisy = np.asarray(corrupt(jax.random.key(i), x0, t)).reshape(K, K * n)
        for a in range(K):
            chi_squared(noisy[a], forward[a], K * n, (t, a))
            for b in range(K):
                chi_squared(draws[a, b], back[a, b], n, (s, t, a, b))


@each
def test_chapman_kolmogorov(name):
    make, _ = MAKERS[name]
    p = make(schedules.rectified())
    s, u, t = 0.2, 0.45, 0.9
    to_t, s_from_t = answers(p, s, t)
    _, u_from_t = answers(p, u, t)
    to_u, s_from_u = answers(p, s, u)
    to_s, _ = answers(p, s, s)
    np.testing.assert_allclose(np.einsum("at,ats->as", to_t, s_from_t), to_s, atol=1e-6)
    np.testing.assert_allclose(np.einsum("at,atu->au", to_t, u_from_t), to_u, atol=1e-6)
    through = np.einsum("atu,aus->ats", u_from_t, s_from_u)
    reachable = to_t > 0
    np.testing.assert_allclose(through[reachable], s_from_t[reachable], atol=1e-6)
    np.testing.assert_allclose(to_t.sum(1), 1, atol=1e-6)


def random_logits(seed, n, symbols):
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=3, size=(n, symbols))
    logits[rng.random((n, symbols)) < 0.3] = -np.inf
    logits[np.arange(n), rng.integers(0, symbols, n)] = 1.0  # each guess is a guess of something
    logits[: n // 4] += rng.normal(size=(n // 4, 1)) * 50  # not normalised
    return logits.astype(np.float32)


def check_marginalised(posterior_logits, bridge, s, t, seed, symbols=K):
    logits = random_logits(seed, 200, symbols)
    xt = np.random.default_rng(seed).integers(0, symbols, 200)
    probabilities = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    truth = np.einsum("nx,nxs->ns", probabilities, bridge[:, xt].transpose(1, 0, 2))
    ours = posterior_logits(jnp.asarray(logits), jnp.asarray(xt), s, t)
    assert variation(np.exp(np.asarray(ours, np.float64)), truth) < 1e-6, (s, t)


@each
def test_posterior_logits_sum_the_bridge_over_every_x0(name):
    make, pi = MAKERS[name]
    posterior_logits = jax.jit(make(schedules.rectified()).posterior_logits)
    for i, (s, t) in enumerate(PAIRS):
        check_marginalised(posterior_logits, laws(pi, s, t)[1], s, t, i)


def test_posterior_logits_keep_small_probabilities_apart():
    """In logs: a guess of 1e-30 for a masked symbol is 1e-30 of the reveals, not 0."""
    p = discrete.absorbing(schedules.rectified(), vocab=3)
    logits = jnp.log(jnp.array([[1.0, 1e-30, 1e-12]]))
    out = p.posterior_logits(logits, jnp.array([3]), 0.25, 0.5)
    np.testing.assert_allclose(out[0], [math.log(0.5), math.log(0.5e-30), math.log(0.5e-12), math.log(0.5)], rtol=1e-6)


def test_mask_entry_may_be_left_off_the_logits():
    p = discrete.absorbing(schedules.cosine(), vocab=4)
    logits = jax.random.normal(jax.random.key(0), (6, 4))
    xt = jnp.array([4, 4, 0, 1, 2, 3])
    padded = jnp.concatenate([logits, jnp.full((6, 1), -jnp.inf)], axis=1)
    short, full = (jax.jit(p.posterior_logits)(x, xt, 0.3, 0.8) for x in (logits, padded))
    assert short.shape == (6, 5)
    np.testing.assert_array_equal(short, full)
    np.testing.assert_array_equal(jnp.exp(short[2:]), jax.nn.one_hot(xt[2:], 5))  # revealed symbols stay


@each
def test_ends_are_met_exactly(name):
    make, _ = MAKERS[name]
    for schedule in (
        schedules.cosine(0.02),
        schedules.vp_linear(),
    ):  # the first rounds alpha(0) to 1 - 6e-8; alpha(1) is 0, and not
        p = make(schedule)
        x0 = jnp.asarray(np.random.default_rng(0).integers(0, K, 4000), jnp.int8)

        @jax.jit
        def walk(key, x0, p=p):
            ends = []
            for t in (0.3, 1.0):
                xt = p.corrupt(key, x0, t)
                ends.append((p.bridge(key, x0, xt, t, t), xt))
                ends.append((p.bridge(key, x0, xt, 0.0, t), x0))
                ends.append(
                    (jnp.argmax(p.posterior_logits(jax.nn.one_hot(x0, K), xt, t, t), axis=-1).astype(x0.dtype), xt)
                )
            ends.append((p.corrupt(key, x0, jnp.zeros(())), x0))
            ends.append((p.bridge(key, x0, x0, 0.0, 0.0), x0))
            return ends

        for ours, truth in walk(jax.random.key(1), x0):
            np.testing.assert_array_equal(ours, truth)


def test_ends_that_cannot_be_joined_keep_xt():
    p = discrete.absorbing(schedules.rectified(), vocab=3)
    x0, xt = jnp.array([0, 1, 2, 0]), jnp.array([1, 2, 0, 2])
    np.testing.assert_array_equal(p.bridge(jax.random.key(0), x0, xt, 0.2, 0.7), xt)
    assert np.isneginf(p.log_prob(x0, xt, jnp.full(4, 0.7))).all()
    p = discrete.jump(schedules.rectified(), stationary=UNEVEN)
    np.testing.assert_array_equal(p.bridge(jax.random.key(0), x0, jnp.ones_like(x0), 0.2, 0.7), jnp.ones_like(x0))


def test_many_symbols_take_no_memory():
    """50,000 symbols at 1,024 positions, 16 examples: an axis of symbols would take 3.3 GB."""
    pi = np.random.default_rng(0).dirichlet(np.full(50_000, 0.3))
    x = jax.ShapeDtypeStruct((16, 1024), jnp.uint16)
    t = jax.ShapeDtypeStruct((16,), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    for p in (
        discrete.uniform(schedules.cosine(), vocab=50_000),
        discrete.absorbing(schedules.cosine(), vocab=50_000),
        discrete.jump(schedules.cosine(), stationary=pi),
    ):
        for function, arguments in ((p.corrupt, (key, x, t)), (p.bridge, (key, x, x, t, t)), (p.log_prob, (x, x, t))):
            used = jax.jit(function).lower(*arguments).compile().memory_analysis()
            assert used.temp_size_in_bytes + used.output_size_in_bytes < 4e6


def test_fresh_symbols_are_even_where_float32_is_too_coarse():
    """786,432 symbols, 10.7 to each of float32's 2^23 uniform numbers: by those alone every third symbol would come 6% too rarely."""
    vocab, n = 3 * 2**18, 300_000
    for p in (
        discrete.uniform(schedules.rectified(), vocab=vocab),
        discrete.jump(schedules.rectified(), stationary=np.full(vocab, 1 / vocab)),
    ):
        x1 = np.asarray(jax.jit(p.prior)(jax.random.key(0), jnp.zeros(n, jnp.int32)))
        chi_squared(x1 % 3, np.full(3, 1 / 3), n)
        chi_squared(x1 // 2**14, np.full(48, 1 / 48), n)


def test_data_keep_their_integer_type_and_other_data_are_refused():
    for dtype, name in itertools.product((jnp.int8, jnp.uint8, jnp.int16, jnp.int32), MAKERS):
        p = MAKERS[name][0](schedules.cosine())
        key = jax.eval_shape(lambda: jax.random.key(0))
        x0 = jax.ShapeDtypeStruct((2, 3), dtype)
        assert jax.eval_shape(p.prior, key, x0).dtype == jax.eval_shape(p.corrupt, key, x0, 0.5).dtype == dtype
        guess = jax.ShapeDtypeStruct((2, 3), jnp.int32)  # an argmax is int32 whatever the data are
        assert jax.eval_shape(p.bridge, key, guess, x0, 0.2, 0.5).dtype == dtype
    p = discrete.absorbing(schedules.cosine(), vocab=128)
    with pytest.raises(ValueError, match="129 symbols need a dtype that holds 128"):
        p.corrupt(jax.random.key(0), jnp.zeros(3, jnp.int8), 0.5)
    with pytest.raises(TypeError, match="symbols are integers"):
        p.corrupt(jax.random.key(0), jnp.zeros(3), 0.5)
    with pytest.raises(ValueError, match="expected logits of shape"):
        p.posterior_logits(jnp.zeros((3, 100)), jnp.zeros(3, jnp.int32), 0.2, 0.5)
    with pytest.raises(ValueError, match="sum to 1"):
        discrete.jump(schedules.cosine(), stationary=np.ones(3))
    with pytest.raises(ValueError, match="vocab"):
        discrete.uniform(schedules.cosine(), vocab=0)
    with pytest.raises(ValueError, match="rows sum to 1"):
        discrete.markov(np.ones((2, 3, 3)))
    assert p.score is None


@pytest.mark.slow
def test_times_keys_and_transformations():
    p = discrete.jump(schedules.cosine(), stationary=UNEVEN)
    x0 = jnp.asarray(np.random.default_rng(0).integers(0, K - 1, (4, 3)))
    s, t = jnp.array([0.0, 0.2, 0.4, 0.9]), jnp.array([0.3, 0.5, 0.9, 1.0])
    keys = jax.random.split(jax.random.key(0), 4)
    logits = jax.random.normal(jax.random.key(1), (4, 3, K))

    def all_of(key, x0, s, t, logits):
        xt = p.corrupt(key, x0, t)
        return xt, p.bridge(key, x0, xt, s, t), p.log_prob(x0, xt, t), p.posterior_logits(logits, xt, s, t)

    together = jax.jit(all_of)(keys, x0, s, t, logits)
    assert together[2].shape == (4,)
    for a, b in zip(jax.jit(jax.vmap(all_of))(keys, x0, s, t, logits), together, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    xt = together[0]
    per_site = jnp.broadcast_to(t[:, None], (4, 3))
    np.testing.assert_allclose(jax.jit(p.log_prob)(x0, xt, per_site).sum(1), together[2], rtol=1e-5)
    half = jax.jit(p.posterior_logits)(logits.astype(jnp.bfloat16), xt, s, t)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(jnp.exp(half.astype(jnp.float32)), jnp.exp(together[3]), atol=0.03)


@each
def test_gradients_are_finite_at_the_edges(name):
    p = MAKERS[name][0]
    logits = jnp.array([[0.0, -jnp.inf, 1.0, 2.0, -jnp.inf]])
    # A schedule with a parameter, as it would be learned.
    learned = lambda w: lambda t: ((1 - jnp.asarray(t, jnp.float32)) ** w, jnp.zeros(()))

    def loss(logits, w, s, t, xt):
        out = p(learned(w)).posterior_logits(logits, xt, s, t)
        likelihood = p(learned(w)).log_prob(jnp.zeros_like(xt), xt, t)
        return jnp.sum(jnp.where(jnp.isfinite(out), out, 0.0)) + jnp.where(jnp.isfinite(likelihood), likelihood, 0.0)

    slopes = jax.jit(jax.grad(loss, argnums=(0, 1)))
    for s, t in ((0.0, 0.5), (0.5, 0.5), (0.3, 1.0), (1.0, 1.0), (0.0, 0.0)):
        for xt in (0, K - 1):
            for g in slopes(logits, 1.0, s, t, jnp.array([xt])):
                assert np.isfinite(g).all(), (s, t, xt)


# -------------------------------------------------------------------------------------------------- step matrices

T = 6
BETAS = np.array([0.02, 0.05, 0.1, 0.2, 0.4, 0.7])
STEPS = {
    "uniform": discrete.uniform_steps(BETAS, vocab=K),
    "absorbing": discrete.absorbing_steps(1 / np.arange(T, 0, -1), vocab=K - 1),
    "gaussian": discrete.gaussian_steps(0.2 + BETAS, vocab=K),
    "banded": discrete.banded_steps(BETAS, vocab=K, width=2),
    "neighbours": discrete.neighbour_steps(
        4 * BETAS, embeddings=np.random.default_rng(0).normal(size=(K, 3)), neighbours=2
    ),
}
of_steps = pytest.mark.parametrize("name", STEPS)


def product(steps):
    return functools.reduce(np.matmul, steps, np.eye(K))


@of_steps
def test_step_matrices_against_products(name):
    p, q = discrete.markov(STEPS[name]), STEPS[name]
    posterior_logits = jax.jit(p.posterior_logits)
    for j, k in ((0, 1), (1, 2), (2, 5), (0, 6), (5, 6), (4, 4), (6, 6)):
        forward, bridge = answers(p, j / T, k / T)
        first, second = product(q[:j]), product(q[j:k])
        assert variation(forward, first @ second) < 5e-7
        assert variation(bridge, bridges(first, second, 1e-30)) < 5e-7
        check_marginalised(posterior_logits, bridges(first, second, 1e-30), j / T, k / T, j)


@of_steps
def test_step_matrices_are_stochastic_and_have_their_law_at_last(name):
    q = STEPS[name]
    assert q.shape == (T, K, K)
    assert (q >= 0).all()
    np.testing.assert_allclose(q.sum(-1), 1, rtol=1e-14)
    law = np.linalg.matrix_power(q[-1], 100_000)[0]
    np.testing.assert_allclose(law, np.eye(K)[-1] if name == "absorbing" else np.full(K, 1 / K), atol=1e-9)


def test_step_matrices_by_hand():
    # Austin et al.: off-diagonals exp(-4 d^2 / ((K-1)^2 beta)) over their sum for d = -(K-1) .. K-1; here K = 2, beta = 4 / log 2.
    np.testing.assert_allclose(discrete.gaussian_steps([4 / math.log(2)], vocab=2)[0], [[0.75, 0.25], [0.25, 0.75]])
    np.testing.assert_allclose(
        discrete.neighbour_steps([0.7], embeddings=[[0.0], [1.0]], neighbours=1)[0],
        scipy.linalg.expm(0.7 * np.array([[-1.0, 1.0], [1.0, -1.0]])),
    )
    assert (discrete.banded_steps([0.5], vocab=6, width=2)[0] > 0).sum(1).tolist() == [3, 4, 5, 5, 4, 3]
    np.testing.assert_array_equal(discrete.gaussian_steps([0.0], vocab=4)[0], np.eye(4))


def test_uniform_steps_are_the_uniform_jump_process():
    alpha = np.cumprod(1 - BETAS)
    jump = discrete.uniform(lambda t: (jnp.interp(t, jnp.arange(T + 1) / T, jnp.r_[1.0, alpha]), t), vocab=K)
    stepwise, jumping = jax.jit(discrete.markov(STEPS["uniform"]).posterior_logits), jax.jit(jump.posterior_logits)
    logits = jax.random.normal(jax.random.key(0), (K, K))
    for j, k in ((0, 3), (3, 4), (2, 6)):
        a, b = (f(logits, jnp.arange(K), j / T, k / T) for f in (stepwise, jumping))
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_step_matrix_draws_and_times_of_their_own():
    q, p, n = STEPS["gaussian"], discrete.markov(STEPS["gaussian"]), 20_000
    j, k = np.array([0, 1, 2, 5]), np.array([1, 4, 3, 6])
    x0 = jnp.broadcast_to(jnp.array([0, 4, 2, 1], jnp.int8)[:, None], (4, n))
    xt = jnp.broadcast_to(jnp.array([0, 1, 3, 4], jnp.int8)[:, None], (4, n))
    s, t = jnp.asarray(j / T, jnp.float32), jnp.asarray(k / T, jnp.float32)
    draws = np.asarray(jax.jit(p.bridge)(jax.random.key(0), x0, xt, s, t))
    noisy = np.asarray(jax.jit(p.corrupt)(jax.random.key(1), x0, t))
    assert draws.dtype == noisy.dtype == np.int8
    for i in range(4):
        a, b = int(x0[i, 0]), int(xt[i, 0])
        chi_squared(draws[i], bridges(product(q[: j[i]]), product(q[j[i] : k[i]]))[a, b], n, i)
        chi_squared(noisy[i], product(q[: k[i]])[a], n, i)
    x1 = p.prior(jax.random.key(2), jax.ShapeDtypeStruct((n,), jnp.int8))
    chi_squared(x1, product(q).mean(0), n)
    slope = jax.grad(lambda x: p.posterior_logits(x, jnp.arange(K), 1 / T, 4 / T)[0, 1])(jnp.zeros((K, K)))
    assert np.isfinite(slope).all()


# ------------------------------------------------------------------------------------------- the bound, enumerated

START = np.array([0.5, 0.3, 0.2])
CHAIN = np.array([[0.8, 0.15, 0.05], [0.1, 0.7, 0.2], [0.3, 0.1, 0.6]])
ENTROPY = 1.159772  # bits a token, of sequences of 4
BOUNDS = {
    "absorbing": dict(zip((1, 2, 4, 10, 50, 200, 1000), (1.496860, 1.318364, 1.236580, 1.189898, 1.165734, 1.161260, 1.160070), strict=True)),
    "uniform": dict(zip((1, 2, 4, 10, 50, 200, 1000), (1.496860, 1.359174, 1.269667, 1.205044, 1.168774, 1.162016, 1.160221), strict=True)),
}  # fmt: skip


def enumerated_bound(name, steps):
    """The variational bound of a Markov chain's sequences in bits a token, x_0's exact posterior in the network's place.

    All 81 clean and all noisy sequences are listed. `posterior_logits` gives the reverse step; the forward side is float64 NumPy.
    """
    length, vocab = 4, 3
    clean = np.array(list(itertools.product(range(vocab), repeat=length)))
    p_clean = START[clean[:, 0]] * np.prod([CHAIN[clean[:, i], clean[:, i + 1]] for i in range(length - 1)], axis=0)
    symbols, pi = (vocab + 1, np.eye(vocab + 1)[vocab]) if name == "absorbing" else (vocab, np.full(vocab, 1 / vocab))
    # The row's survival is Nichol and Dhariwal's alpha-bar, a Gaussian's alpha squared.
    squared = lambda t: (schedules.cosine(0.008)(t)[0] ** 2, jnp.asarray(t))
    schedule = schedules.rectified() if name == "absorbing" else squared
    noisy = np.array(list(itertools.product(range(symbols), repeat=length)))

    def alpha(t):
        if name == "absorbing":
            return 1 - t
        return (np.cos((t + 0.008) / 1.008 * np.pi / 2) / np.cos(0.008 / 1.008 * np.pi / 2)) ** 2

    @jax.jit
    def reverse(logits, s, t):
        xt = jnp.asarray(noisy)
        return discrete.posterior_logits(logits, xt, s, t, schedule=schedule, stationary=jnp.asarray(pi))

    bits = 0.0
    for k in range(1, steps + 1):
        s, t = (k - 1) / steps, k / steps
        a_s, a_t = (max(alpha(u), 0.0) if u < 1 else 0.0 for u in (s, t))
        eye = np.eye(symbols)
        first, both = a_s * eye + (1 - a_s) * pi, a_t * eye + (1 - a_t) * pi
        b = a_t / a_s
        second = b * eye + (1 - b) * pi
        likelihood = np.prod([both[clean[:, i]][:, noisy[:, i]] for i in range(length)], axis=0)  # [clean, noisy]
        joint = p_clean[:, None] * likelihood
        p_noisy = joint.sum(0)
        sites = np.stack(
            [np.stack([joint[clean[:, i] == v].sum(0) for v in range(vocab)], -1) for i in range(length)], 1
        )
        sites = sites / np.where(p_noisy > 0, p_noisy, 1)[:, None, None]
        sites[p_noisy == 0] = 1 / vocab  # never met
        with np.errstate(divide="ignore", invalid="ignore"):
            logits = np.log(np.concatenate([sites, np.zeros((*sites.shape[:2], symbols - vocab))], -1))
            log_reverse = np.asarray(reverse(jnp.asarray(logits), jnp.asarray(s), jnp.asarray(t)))
            assert log_reverse.dtype == np.float64
            true = first[:, None, :] * second.T[None]
            true = true / np.where(true.sum(-1, keepdims=True) > 0, true.sum(-1, keepdims=True), 1)
            true = true[:vocab][:, noisy].transpose(1, 2, 0, 3)  # [noisy, site, x0, xs]
            terms = np.where(true > 0, true * (np.log(true) - log_reverse[:, :, None]), 0).sum(-1)
            bits += np.sum(p_noisy[:, None, None] * np.where(sites > 0, sites * terms, 0)) / math.log(2) / length
    return bits


def check_bounds(name, counts):
    with jax.enable_x64(True):
        values = [enumerated_bound(name, steps) for steps in counts]
    np.testing.assert_allclose(values, [BOUNDS[name][steps] for steps in counts], atol=1e-5)
    assert np.all(np.diff(values) < 0)
    assert values[-1] > ENTROPY


@pytest.mark.parametrize("name", BOUNDS)
def test_the_bound_of_a_chain_by_enumeration(name):
    check_bounds(name, (1, 2, 4, 10, 50))


@pytest.mark.slow
@pytest.mark.parametrize("name", BOUNDS)
def test_the_bound_of_a_chain_by_enumeration_in_many_steps(name):
    check_bounds(name, (50, 200, 1000))
