"""Bounds against entropies, quadrature and enumeration."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from diffjax import likelihood, schedules
from diffjax.likelihood import learned_schedule, levels
from diffjax.processes import cube, discrete, gaussian, predictions, torus

# ---------------------------------------------------------------------------------- E4: a bound that is an equality


def linear_logsnr(high, low):
    def schedule(t):
        value = high + (low - high) * jnp.asarray(t, jnp.float32)
        return jnp.sqrt(jax.nn.sigmoid(value)), jnp.sqrt(jax.nn.sigmoid(-value))

    return schedule


SNR = linear_logsnr(6.0, -8.0)
LEVELS = np.linspace(-1, 1, 17)


def pixels():
    """Levels of held-out digits, and each pixel's distribution on the others."""
    from sklearn.datasets import load_digits

    data = load_digits().data.astype(int)[np.random.default_rng(0).permutation(1797)]
    train, test = data[:1297], data[1297:]
    counts = np.stack([(train == v).sum(0) for v in range(17)], axis=1) + 0.5
    return test, counts / counts.sum(1, keepdims=True)


def independent_pixels(p, schedule):
    """E[x_0 | x_t] of pixels that are independent with laws p [64, 17], exactly."""

    def predict(x, t):
        alpha, sigma = (v[:, None, None] for v in schedule(t))
        values = jnp.asarray(LEVELS, jnp.float32)[None, None]
        share = jax.nn.softmax(jnp.log(p)[None] - 0.5 * ((x[..., None] - alpha * values) / sigma) ** 2, axis=-1)
        return (share * values).sum(-1)

    return predict


def digits_bound(path=None, repeats=40, schedule=SNR):
    """The mean bound of the held-out digits in bits a dimension, and its error: each repeat has stratified times over all of them."""
    test, p = pixels()
    p = jnp.asarray(p, jnp.float32)
    x0 = jnp.asarray(LEVELS[test], jnp.float32)

    def repeat(key):
        u = schedules.stratified_draw(key, jax.random.permutation(key, len(x0)), len(x0))
        bound = likelihood.continuous(
            key, independent_pixels(p, schedule), x0, u, schedule=schedule, kind=predictions.x0, path=path,
            decode=levels.decoder(jnp.asarray(LEVELS, jnp.float32), schedule=schedule, t=0.0, log_prior=jnp.log(p)),
        )  # fmt: skip
        return jax.tree.map(jnp.mean, bound)

    means = jax.jit(lambda keys: jax.lax.map(repeat, keys))(jax.random.split(jax.random.key(1), repeats))
    entropy = -np.log2(np.asarray(p)[np.arange(64)[None], test]).mean()
    return likelihood.summary(means, size=64), entropy


def test_continuous_bound_of_independent_pixels_is_their_cross_entropy():
    terms, entropy = digits_bound()
    mean, error = terms["total"]
    assert abs(entropy - 2.4248) < 0.005
    assert float(error) <= 0.008
    assert abs(float(mean) - entropy) < 3 * float(error)  # a false alarm for 1 seed in 200 (39 degrees of freedom)
    assert float(terms["prior"][0]) < 1e-3


@pytest.mark.slow
def test_the_path_of_times_changes_the_variance_alone():
    crooked = lambda t: SNR(jnp.asarray(t) ** 2)  # another schedule with the same ends
    spread = lambda u: schedules.logsnr_importance(u, schedule=crooked, low=-8.0, high=6.0)
    for path, repeats in ((None, 80), (spread, 40)):
        terms, entropy = digits_bound(path, repeats, crooked)
        mean, error = terms["total"]
        assert abs(float(mean) - entropy) < 3.5 * float(error)


# --------------------------------------------------------------------------------------------------- Gaussian chains


def test_chain_of_gaussian_steps_has_its_closed_form():
    # Data N(0, 1): E|x_0 - x0_hat|^2 = 1 / (1 + SNR_t). Bar 4.5 standard errors of the mean.
    schedule = schedules.cosine()
    times = schedules.times(5, stop=0.1)
    x0 = jax.random.normal(jax.random.key(0), (20_000, 2))
    predict = lambda x, t: schedule(t)[0][:, None] * x
    bound = jax.jit(
        lambda x0: likelihood.discrete(
            jax.random.key(1), predict, x0, times, schedule=schedule, kind=predictions.x0,
            decode=lambda x0, z0: -jnp.abs(z0 - schedule(0.1)[0] * x0).sum(-1),
        )
    )(x0)  # fmt: skip
    snr = np.array([float(jnp.exp(schedules.logsnr(t, schedule=schedule))) for t in times])
    expected = sum((snr[i + 1] - snr[i]) / (1 + snr[i]) for i in range(5))  # two dimensions times a half
    mean, error = likelihood.mean_and_error(bound.diffusion)
    assert abs(float(mean) - expected) < 4.5 * float(error)
    assert float(error) < 0.01 * expected
    # The noise at z_0 is Laplace-scored: E|sigma eps| = sigma sqrt(2/pi) in each dimension.
    mean, error = likelihood.mean_and_error(bound.reconstruction)
    assert abs(float(mean) - 2 * float(schedule(0.1)[1]) * np.sqrt(2 / np.pi)) < 4.5 * float(error)
    assert float(bound.prior.max()) < 1e-6  # alpha(1) = 0


def test_prior_term_by_hand():
    # KL(N(alpha x, sigma^2) || N(0, sigma^2)) = (alpha x / sigma)^2 / 2 a dimension, at t = .8 of the straight line.
    bound = likelihood.discrete(
        jax.random.key(0), lambda x, t: x, jnp.array([[2.0, 4.0]]), jnp.array([0.8, 0.4]), schedule=schedules.rectified(),
        decode=lambda x0, z0: jnp.zeros(1),
    )  # fmt: skip
    np.testing.assert_allclose(bound.prior, [0.5 * (4 + 16) / 16], rtol=1e-5)


@pytest.mark.parametrize("wide", [False, True])
def test_step_is_the_kl_of_its_two_gaussians(wide):
    # By quadrature of q log(q / p), the bridge's mean at x_0 = .7 against that at the guess -.2, for each kind of prediction.
    schedule, s, t = schedules.vp_linear(), 0.3, 0.5
    x0, guess = jnp.array([[0.7]]), jnp.array([[-0.2]])
    std = likelihood.transition_std(schedule) if wide else None
    posteriors = [gaussian.posterior(x, jnp.array([[0.4]]), s, t, schedule=schedule) for x in (x0, guess)]
    (mean_q, sd_q), (mean_p, sd_p) = [(float(m[0, 0]), float(sd)) for m, sd in posteriors]
    if wide:
        (alpha_s, sigma_s), (alpha_t, sigma_t) = ([float(v) for v in schedule(time)] for time in (s, t))
        sd_p = np.sqrt(sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2)
    q, p = stats.norm(mean_q, sd_q), stats.norm(mean_p, sd_p)
    expected = integrate.quad(lambda x: q.pdf(x) * (q.logpdf(x) - p.logpdf(x)), mean_q - 9 * sd_q, mean_q + 9 * sd_q)[0]

    def predict(kind):
        return lambda x, t: predictions.convert(
            jnp.broadcast_to(guess, x.shape), x, t, source=predictions.x0, target=kind, schedule=schedule
        )

    for kind in (predictions.x0, predictions.eps):
        step = functools.partial(likelihood.step, schedule=schedule, kind=kind, std=std)
        got = jax.jit(lambda s, t: step(jax.random.key(0), predict(kind), x0, s, t))(jnp.array([s]), jnp.array([t]))  # noqa: B023
        np.testing.assert_allclose(got, [expected], rtol=2e-4)


# ----------------------------------------------------------------------------------------------- densities on a box


@pytest.mark.slow
def test_bound_on_a_box_is_the_density_for_the_exact_score():
    # Data: the reflected kernel of width .2 around .1 and .7, in two dimensions: the noisy density is the kernel of width sqrt(.04 + sigma^2).
    # Bar 3 standard errors of the gap.
    schedule = schedules.ve(0.01, 3.0)
    centers, n = jnp.array([0.1, 0.7]), 20_000

    def log_p(x, sigma):
        width = jnp.sqrt(0.04 + sigma**2)
        kernels = cube.log_kernel(
            jnp.broadcast_to(centers, (*x.shape, 2)),
            jnp.stack([x, x], -1),
            jnp.broadcast_to(width[:, None, None], (*x.shape, 2)),
        )
        return (jax.nn.logsumexp(kernels, axis=-1) - np.log(2.0)).sum(-1)

    score = lambda x, t: jax.grad(lambda x: log_p(x, schedule(t)[1]).sum())(x)
    key_mode, key_x, key_bound, key_end = jax.random.split(jax.random.key(0), 4)
    x0 = cube.corrupt(key_x, centers[jax.random.randint(key_mode, (n, 2), 0, 2)], jnp.full((n,), 0.2))
    u = schedules.stratified_draw(jax.random.key(3), jnp.arange(n), n)
    process = cube.process(schedule)

    @jax.jit
    def both(x0, u):
        bound = likelihood.density(
            key_bound, score, x0, u, process=process, schedule=schedule, log_prior=lambda x: jnp.zeros(n)
        )
        x_start = process.corrupt(key_end, x0, jnp.zeros(n))
        return bound, -log_p(x_start, jnp.full((n,), 0.01))

    bound, truth = both(x0, u)
    gap, error = likelihood.mean_and_error(bound.total - truth)
    assert float(error) < 0.01
    assert abs(float(gap)) < 3 * float(error)


def test_bound_of_a_density_counts_the_shrinking_of_space():
    # N(0, I) data on a variance-preserving schedule stay N(0, I): the bound is their entropy, 1.4189 a dimension. Bar 4.5 standard errors.
    schedule = schedules.cosine()
    x0 = jax.random.normal(jax.random.key(0), (50_000, 2))
    u = schedules.stratified_draw(jax.random.key(1), jnp.arange(50_000), 50_000)
    bound = jax.jit(
        lambda x0, u: likelihood.density(
            jax.random.key(2), lambda x, t: -x, x0, u, process=gaussian.process(schedule), schedule=schedule,
            log_prior=lambda x: jax.scipy.stats.norm.logpdf(x).sum(-1), path=lambda u: 0.05 + 0.85 * u,
        )
    )(x0, u)  # fmt: skip
    mean, error = likelihood.mean_and_error(bound.total)
    assert abs(float(mean) - (1 + np.log(2 * np.pi))) < 4.5 * float(error)
    assert float(error) < 0.05


# ------------------------------------------------------------------------------------------- E3: symbols, enumerated

START = np.array([0.5, 0.3, 0.2])
STEP = np.array([[0.8, 0.15, 0.05], [0.1, 0.7, 0.2], [0.3, 0.1, 0.6]])
WORDS = np.array(list(itertools.product(range(3), repeat=4)))
P_WORDS = START[WORDS[:, 0]] * np.prod([STEP[WORDS[:, i], WORDS[:, i + 1]] for i in range(3)], axis=0)


def exact_logits(kernel):
    """Log p(x_0^i | x_t) of the chain for every x_t: [x_t, site, K], and p(x_0, x_t) [x_0, x_t], from q(k | x_0^i) [3, K]."""
    count = kernel.shape[1]
    noisy = np.array(list(itertools.product(range(count), repeat=4)))
    joint = P_WORDS[:, None] * np.prod(kernel[WORDS[:, None], noisy[None]], axis=-1)
    hot = np.eye(count)[WORDS]  # [x_0, site, K]
    marginal = np.einsum("wn,wik->nik", joint, hot) / np.maximum(joint.sum(0), 1e-300)[:, None, None]
    return noisy, joint, np.log(np.maximum(marginal, 1e-300))


def enumerated_bound(process, kernel_of_t, steps):
    """The bound in bits a token with the exact posterior's marginals as the guess, all x_0 and x_t enumerated."""
    step = jax.jit(lambda logits, x0, xt, s, t: likelihood.symbols.step(logits, x0, xt, s, t, process=process))
    total = 0.0
    for i in range(1, steps + 1):
        noisy, joint, logits = exact_logits(kernel_of_t(i / steps))
        pairs = np.argwhere(joint > 0)
        s, t = (np.full(len(pairs), v) for v in ((i - 1) / steps, i / steps))
        kl = step(logits[pairs[:, 1]], WORDS[pairs[:, 0]], noisy[pairs[:, 1]], s, t)
        total += float((joint[pairs[:, 0], pairs[:, 1]] * np.asarray(kl)).sum())
    return total / 4 / np.log(2)


def absorbing_kernel(t):
    return np.concatenate([(1 - t) * np.eye(3), np.full((3, 1), t)], axis=1)


def uniform_kernel(t):
    alpha = (np.cos(np.pi / 2 * (t + 0.008) / 1.008) / np.cos(np.pi / 2 * 0.008 / 1.008)) ** 2
    return alpha * np.eye(3) + (1 - alpha) / 3


ABSORBING = {1: 1.496860, 2: 1.318364, 4: 1.236580, 10: 1.189898, 50: 1.165734}
UNIFORM = {1: 1.496860, 2: 1.359174, 4: 1.269667, 10: 1.205044}


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(n, v) if n <= 4 else pytest.param(n, v, marks=pytest.mark.slow) for n, v in ABSORBING.items()],
)
def test_absorbing_bound_of_a_chain_enumerated(steps, expected):
    with jax.enable_x64(True):
        process = discrete.absorbing(schedules.rectified(), vocab=3)
        assert abs(enumerated_bound(process, absorbing_kernel, steps) - expected) < 1e-5


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(n, v) if n <= 2 else pytest.param(n, v, marks=pytest.mark.slow) for n, v in UNIFORM.items()],
)
def test_uniform_bound_of_a_chain_enumerated(steps, expected):
    with jax.enable_x64(True):
        squared = lambda t: (schedules.cosine()(t)[0] ** 2, schedules.cosine()(t)[1])
        process = discrete.uniform(squared, vocab=3)
        assert abs(enumerated_bound(process, uniform_kernel, steps) - expected) < 1e-5


def chain_draws(n):
    rng = np.random.default_rng(0)
    return jnp.asarray(WORDS[rng.choice(81, n, p=P_WORDS)])


def chain_guess(xt, t):
    """The exact posterior's marginals for absorbing noise, by enumeration: the mask (3) says nothing."""
    fits = ((xt[:, None] == 3) | (xt[:, None] == jnp.asarray(WORDS)[None])).all(-1)
    share = fits.astype(jnp.float32) * jnp.asarray(P_WORDS, jnp.float32)[None]
    share = share / share.sum(1, keepdims=True)
    marginal = jnp.tensordot(share, jax.nn.one_hot(jnp.asarray(WORDS), 4), 1)
    return jnp.log(jnp.maximum(marginal, 1e-30))


def test_sampled_bounds_of_symbols_have_the_enumerated_mean():
    # D3PM at T = 4, and infinitely many steps, whose bound is the entropy 1.159772 itself. Bars 4 standard errors.
    x0 = chain_draws(20_000)
    schedule = schedules.rectified()
    process = discrete.absorbing(schedule, vocab=3)

    @jax.jit
    def both(x0):
        u = schedules.stratified_draw(jax.random.key(1), jnp.arange(len(x0)), len(x0))
        chain = likelihood.symbols.discrete(jax.random.key(0), chain_guess, x0, schedules.times(4), process=process)
        masked = likelihood.symbols.masked(
            jax.random.key(2), chain_guess, x0, u, process=process, schedule=schedule, mask=3,
            path=lambda u: u * (2 - u),
        )  # fmt: skip
        return chain, masked

    chain, masked = both(x0)
    for nats, expected in ((chain.total, 1.236580), (masked, 1.159772)):
        mean, error = likelihood.mean_and_error(likelihood.bits_per_dim(nats, 4))
        assert abs(float(mean) - expected) < 4 * float(error)
        assert float(error) < 0.02


def test_prior_term_of_symbols_by_hand():
    # From t = .5 of uniform noise on 3 symbols: q = (2/3, 1/6, 1/6) around x_0, against (1/2, 1/4, 1/4), for two sites.
    process = discrete.uniform(schedules.rectified(), vocab=3)
    bound = likelihood.symbols.discrete(
        jax.random.key(0), lambda xt, t: jnp.zeros((1, 2, 3)), jnp.array([[0, 2]]), jnp.array([0.5, 0.0]), process=process,
        log_prior=jnp.log(jnp.array([0.5, 0.25, 0.25])),
    )  # fmt: skip
    first = 2 / 3 * np.log(4 / 3) + 2 / 6 * np.log(4 / 6)
    second = 1 / 6 * np.log(2 / 6) + 1 / 6 * np.log(4 / 6) + 2 / 3 * np.log(8 / 3)
    np.testing.assert_allclose(bound.prior, [first + second], rtol=1e-5)


# ------------------------------------------------------------------------------------------- levels and real numbers


def test_discretized_gaussian_is_the_mass_of_each_cell():
    grid = np.linspace(-1, 1, 9)
    edges = np.concatenate([[-np.inf], (grid[1:] + grid[:-1]) / 2, [np.inf]])
    cells = jax.jit(lambda x, mean, std: levels.discretized_gaussian(x, mean, std, levels=9))
    for mean, std in ((0.1, 0.3), (-1.4, 0.1), (0.95, 0.05)):
        law = stats.norm(mean, std)
        mirrored = stats.norm(-mean, std)
        # Both tails through the lower one, where scipy keeps its digits.
        expected = np.log(
            [
                law.cdf(b) - law.cdf(a) if a + b < 2 * mean else mirrored.cdf(-a) - mirrored.cdf(-b)
                for a, b in itertools.pairwise(edges)
            ]
        )
        got = cells(jnp.asarray(grid, jnp.float32), jnp.full(9, mean), std)
        np.testing.assert_allclose(got, expected, rtol=2e-4, atol=1e-5)
        assert abs(float(jnp.exp(got).sum()) - 1) < 1e-5
    slope = jax.jit(jax.grad(lambda m: cells(jnp.ones(3), m, 0.01).sum()))(jnp.array([-1.0, 1.0, 5.0]))
    assert np.isfinite(slope).all()


def test_decoder_is_bayes_rule_on_levels():
    values = np.array([-1.0, -0.2, 0.5])
    prior = np.array([[0.2, 0.5, 0.3], [0.6, 0.2, 0.2]])
    schedule = schedules.rectified()
    decode = jax.jit(
        levels.decoder(
            jnp.asarray(values, jnp.float32),
            schedule=schedule,
            t=0.4,
            log_prior=jnp.log(jnp.asarray(prior, jnp.float32)),
        )
    )
    z = np.array([0.3, -0.9])
    joint = prior * stats.norm(0.6 * values[None], 0.4).pdf(z[:, None])
    posterior = joint / joint.sum(1, keepdims=True)
    for a, b in itertools.product(range(3), repeat=2):
        got = decode(jnp.asarray([[values[a], values[b]]], jnp.float32), jnp.asarray([z], jnp.float32))
        np.testing.assert_allclose(got, [np.log(posterior[0, a] * posterior[1, b])], rtol=1e-4, atol=1e-5)


def test_posterior_of_levels_is_bayes_rule():
    values, schedule = jnp.linspace(-1.0, 1.0, 5), schedules.cosine()
    rng = np.random.default_rng(0)
    xt, logits, t = rng.normal(size=(3, 2)), rng.normal(size=(3, 2, 5)), np.array([0.05, 0.4, 0.999])
    logs = levels.posterior(*map(jnp.float32, (logits, xt, t)), levels=values, schedule=schedule)
    alpha, sigma = (np.float64(x)[:, None, None] for x in schedule(jnp.float32(t)))
    weights = np.exp(logits) * stats.norm.pdf(np.float32(xt)[..., None], alpha * np.asarray(values, np.float64), sigma)
    np.testing.assert_allclose(np.exp(logs), weights / weights.sum(-1, keepdims=True), rtol=2e-4, atol=1e-7)
    chosen = levels.log_prob(logs, jnp.array([[-1.0, 0.5]] * 3), levels=values)
    np.testing.assert_allclose(chosen, logs[:, 0, 0] + logs[:, 1, 3], rtol=1e-6)


SHIFTS = np.arange(-15, 16)
FOLDED = {
    "box": (
        cube.log_kernel,
        cube.score,
        np.array([0.0, 0.3, 1.0]),
        lambda v: np.concatenate([v + 2 * SHIFTS, -v + 2 * SHIFTS]),
    ),
    "torus": (torus.log_kernel, torus.score, np.array([-3.0, 0.3, 2.0]), lambda v: v + 2 * np.pi * SHIFTS),
}


@pytest.mark.parametrize("space", FOLDED)
def test_levels_under_other_noise_have_the_posterior_and_the_score_of_their_images(space):
    # The mixture of Gaussians at all images of all levels, in float64, and its slope by a difference.
    kernel, slope, values, images = FOLDED[space]
    schedule = schedules.ve(0.05, 3.0)
    rng = np.random.default_rng(0)
    xt = np.clip(rng.normal(0.5, 0.5, (3, 2)), 0, 1) if space == "box" else rng.uniform(-np.pi, np.pi, (3, 2))
    xt, logits, t = np.float64(np.float32(xt)), rng.normal(size=(3, 2, 3)), np.array([0.3, 0.6, 1.0])
    sigma = np.float64(schedule(jnp.float32(t))[1])

    def weights(x):
        mass = [stats.norm.pdf(x[..., None], images(v), sigma[:, None, None]).sum(-1) for v in values]
        return np.exp(logits) * np.stack(mass, -1)

    settings = {"levels": jnp.asarray(values, jnp.float32), "schedule": schedule}
    a, b, c = (jnp.asarray(x, jnp.float32) for x in (logits, xt, t))
    logs = jax.jit(lambda a, b, c: levels.posterior(a, b, c, log_kernel=kernel, **settings))(a, b, c)
    np.testing.assert_allclose(np.exp(logs), weights(xt) / weights(xt).sum(-1, keepdims=True), rtol=2e-4, atol=1e-6)
    score = jax.jit(lambda a, b, c: levels.score(a, b, c, kernel_score=slope, **settings))(logs, b, c)
    log_p = lambda x: np.log(weights(x).sum(-1))
    truth = (log_p(xt + 1e-5) - log_p(xt - 1e-5)) / 2e-5
    np.testing.assert_allclose(score * sigma[:, None], truth * sigma[:, None], rtol=2e-4, atol=2e-5)


def test_the_score_of_levels_under_gaussian_noise_is_tweedies():
    schedule, values = schedules.cosine(), jnp.linspace(-1.0, 1.0, 5)
    xt, t = jnp.array([[0.3, -1.2], [0.1, 0.9]]), jnp.array([0.1, 0.8])
    logs = levels.posterior(0.0, xt, t, levels=values, schedule=schedule)
    score = levels.score(logs, xt, t, levels=values, schedule=schedule)
    expected = predictions.x0_to_score(jnp.exp(logs) @ values, xt, *schedule(t))
    np.testing.assert_allclose(score, expected, rtol=1e-4, atol=1e-4)


def test_dequantisation_bounds_the_mass_and_reaches_it():
    # N(.2, .5^2) on 4 levels of [-1, 1): uniform noise stays below the log mass; many draws, or the exact law of the noise, reach it.
    law = stats.norm(0.2, 0.5)
    edges = np.linspace(-1, 1, 5)
    truth = np.log(np.diff(law.cdf(edges)))
    log_prob = lambda key, y: jax.scipy.stats.norm.logpdf(y, 0.2, 0.5).sum(-1)
    x = jnp.arange(4)[:, None]

    def exact_noise(key, x):
        low, high = (jnp.asarray(edges, jnp.float32)[x + i] for i in (0, 1))
        cdf = jax.scipy.stats.norm.cdf
        mass = cdf(high, 0.2, 0.5) - cdf(low, 0.2, 0.5)
        y = 0.2 + 0.5 * jax.scipy.special.ndtri(cdf(low, 0.2, 0.5) + jax.random.uniform(key, x.shape) * mass)
        log_q = jax.scipy.stats.norm.logpdf(y, 0.2, 0.5) - jnp.log(mass) + jnp.log(0.5)  # a density of u: dy/du = .5
        return (y - low) / 0.5, log_q.sum(-1)

    bound = jax.jit(
        lambda key, noise, samples: levels.dequantised(key, log_prob, x, levels=4, noise=noise, samples=samples),
        static_argnums=(1, 2),
    )
    np.testing.assert_allclose(bound(jax.random.key(0), exact_noise, 1), truth, atol=1e-5)
    values = bound(jax.random.key(0), None, 20_000)
    np.testing.assert_allclose(values, truth, atol=0.02)
    # The mean over single draws is the mean of log p over the cell, below the log of the mean.
    below = [law.logpdf(np.linspace(a, b, 2001)).mean() + np.log(0.5) for a, b in itertools.pairwise(edges)]
    many = jnp.tile(x, (3000, 1))
    single = levels.dequantised(jax.random.key(1), log_prob, many, levels=4).reshape(3000, 4).mean(0)
    np.testing.assert_allclose(single, below, atol=0.03)
    assert (single < truth + 0.01).all()


# -------------------------------------------------------------------------------------------------- learned schedule


def test_learned_log_snr_falls_between_its_ends():
    params = learned_schedule.init(jax.random.key(0), features=32)
    params = jax.tree.map(lambda p: p + jax.random.normal(jax.random.key(1), p.shape), params)
    schedule = learned_schedule.schedule(params, low=-5.0, high=13.3)
    t = jnp.linspace(0, 1, 201)
    logsnr = jax.jit(lambda t: schedules.logsnr(t, schedule=schedule))(t)
    assert (np.diff(logsnr) < 0).all()
    np.testing.assert_allclose(logsnr[jnp.array([0, -1])], [13.3, -5.0], rtol=1e-5)
    alpha, sigma = jax.jit(schedule)(t)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-6)
    # sigma at logsnr 13.3 is sqrt(sigmoid(-13.3)): no cancellation.
    np.testing.assert_allclose(sigma[0], np.sqrt(1 / (1 + np.exp(13.3))), rtol=1e-5)
    slopes = jax.jit(jax.grad(lambda p: learned_schedule.schedule(p, low=-5.0, high=13.3)(0.4)[0]))(params)
    assert all(np.isfinite(leaf).all() and np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(slopes))


@pytest.mark.slow
def test_variance_falls_when_the_schedule_is_trained_on_it():
    # Independent pixels, the closed-form denoiser: plain SGD on the squares lowers the spread of the diffusion term and leaves its mean.
    _, p = pixels()
    p = jnp.asarray(p, jnp.float32)
    x0 = jnp.asarray(LEVELS[pixels()[0][:256]], jnp.float32)

    def loss(model, params, key):
        schedule = learned_schedule.schedule(params, low=-8.0, high=6.0)
        predict = lambda x, t: model * independent_pixels(p, schedule)(x, t)
        u = jax.random.uniform(jax.random.fold_in(key, 1), (256,))
        return likelihood.continuous(
            key, predict, x0, u, schedule=schedule, kind=predictions.x0, decode=lambda x0, z0: jnp.zeros(256)
        ).diffusion

    def objective(params, key):
        return learned_schedule.variance_minimising(lambda m, p: loss(m, p, key), jnp.ones(()), params).mean()

    @jax.jit
    def train(params):
        def update(params, key):
            slopes = jax.grad(objective)(params, key)
            return jax.tree.map(lambda p, g: p - 3e-4 * g, params, slopes), None

        return jax.lax.scan(update, params, jax.random.split(jax.random.key(2), 60))[0]

    spread = jax.jit(lambda params: jax.vmap(lambda k: loss(1.0, params, k))(jax.random.split(jax.random.key(3), 8)))
    before = learned_schedule.init(jax.random.key(0), features=16)
    first, last = spread(before), spread(train(before))
    assert float(last.std()) < 0.9 * float(first.std())
    assert abs(float(last.mean() - first.mean())) < 4 * float(first.std()) / np.sqrt(first.size)


# ------------------------------------------------------------------------------------------------------ conventions


def test_jit_vmap_grad_keys_and_half_precision():
    schedule = schedules.cosine()
    x0, u = jnp.ones((3, 2)), jnp.array([0.2, 0.5, 0.9])
    keys = jax.random.split(jax.random.key(0), 3)

    def bound(keys, x0, u, scale):
        path = lambda u: 0.01 + 0.99 * u
        return likelihood.continuous(
            keys, lambda x, t: scale.astype(x.dtype) * x, x0, u, schedule=schedule, path=path,
            decode=lambda x0, z0: -jnp.sum((x0 - z0).astype(jnp.float32) ** 2, axis=tuple(range(u.ndim, x0.ndim))),
        )  # fmt: skip

    whole = jax.jit(bound)(keys, x0, u, jnp.ones(()))
    one_by_one = jax.jit(jax.vmap(bound, in_axes=(0, 0, 0, None)))(keys, x0, u, jnp.ones(()))
    np.testing.assert_allclose(one_by_one, whole, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(bound)(keys[1:], x0[1:], u[1:], jnp.ones(())).total, whole.total[1:], rtol=1e-5)
    half = jax.eval_shape(bound, keys, x0.astype(jnp.bfloat16), u, jnp.ones(()))
    assert all(leaf.dtype == jnp.float32 for leaf in half)
    assert np.isfinite(jax.jit(jax.grad(lambda s: bound(keys, x0, u, s).total.sum()))(jnp.ones(())))


def test_units_and_errors():
    bound = likelihood.Bound(jnp.array([1.0, 2.0]), jnp.array([3.0, 5.0]), jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(bound.total, [4.0, 8.0])
    mean, error = likelihood.summary(bound, size=2)["total"]
    np.testing.assert_allclose([mean, error], [6 / 2 / np.log(2), np.sqrt(8 / 2) / 2 / np.log(2)], rtol=1e-6)
    with pytest.raises(ValueError, match="no `posterior_logits`"):
        likelihood.symbols.step(
            jnp.zeros((1, 2)), jnp.zeros(1, int), jnp.zeros(1, int), 0.0, 1.0, process=cube.process(schedules.ve())
        )
    with pytest.raises(ValueError, match="low < high"):
        learned_schedule.schedule(learned_schedule.init(jax.random.key(0), features=2), low=1.0, high=-1.0)
