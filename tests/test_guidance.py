"""Guidance against laws that are known: what is exact, and where it leads when it is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from diffjax import guidance, schedules
from diffjax.processes import gaussian as gaussian_process
from diffjax.processes import predictions
from diffjax.samplers import bridge, correctors, gaussian, langevin, ode

# ----------------------------------------------------------------------------------------------- a mixture on a plane

MEANS = np.array([[1.5, 1.0], [-1.0, -1.0], [0.8, -1.5]])
ROOTS = np.array([[[0.6, 0.0], [0.3, 0.2]], [[0.8, 0.0], [-0.4, 0.3]], [[0.6, 0.0], [0.0, 0.6]]])
COVARIANCES = ROOTS @ ROOTS.transpose(0, 2, 1)
WEIGHTS = np.array([0.4, 0.35, 0.25])


def each_mode(x, t, schedule):
    """log p(mode, x_t) [n, 3] and E[x_0 | mode, x_t] [n, 3, 2], by Gaussian conditioning."""
    means, covariances, weights = (jnp.asarray(v, jnp.float32) for v in (MEANS, COVARIANCES, WEIGHTS))
    alpha, sigma = schedule(t)
    noisy = alpha**2 * covariances + sigma**2 * jnp.eye(2)[None]
    apart = x[:, None] - alpha * means[None]
    solved = jnp.einsum("kij,nkj->nki", jnp.linalg.inv(noisy), apart)
    log_p = jnp.log(weights)[None] - 0.5 * (apart * solved).sum(-1) - 0.5 * jnp.linalg.slogdet(noisy)[1][None]
    return log_p, means[None] + alpha * jnp.einsum("kij,nkj->nki", covariances, solved)


def mixture_x0(schedule):
    def predict(x, t):
        log_p, clean = each_mode(x, t, schedule)
        return (jax.nn.softmax(log_p, axis=1)[..., None] * clean).sum(1)

    return predict


# ------------------------------------------------------------------------------------------------ two predictions


def test_classifier_free_is_one_call_or_none():
    seen = []

    def predict(x, t, condition):
        seen.append((x.shape, condition["label"].shape, jnp.shape(t)))
        return x * condition["label"][:, None]

    x, label = jnp.ones((3, 2)), {"label": jnp.array([1.0, 2.0, 3.0])}
    guided = guidance.classifier_free(predict, label, {"label": 0.5}, jnp.array([1.0, 2.0, 0.0]))
    np.testing.assert_allclose(guided(x, jnp.full(3, 0.5))[:, 0], [1.5, 5.0, 3.0])
    assert seen == [((6, 2), (6,), (6,))]
    np.testing.assert_allclose(guidance.classifier_free(predict, label, {"label": 0.5}, -1.0)(x, 0.5), 0.5 * x)
    guidance.classifier_free(predict, label, {"label": 0.5}, 0)(x, 0.5)
    assert seen[-1] == ((3, 2), (3,), ())


def test_classifier_free_mixes_any_kind_alike():
    schedule, t = schedules.cosine(), jnp.asarray(0.4)
    x = jax.random.normal(jax.random.key(0), (4, 2))
    x0 = lambda x, t, c: jnp.tanh(x) * c[:, None]
    eps = lambda x, t, c: predictions.convert(
        x0(x, t, c), x, t, source=predictions.x0, target=predictions.eps, schedule=schedule
    )
    guided = [guidance.classifier_free(f, jnp.arange(4.0), -1.0, 2.5) for f in (x0, eps)]
    np.testing.assert_allclose(predictions.to_x0(guided[1](x, t), x, t, schedule=schedule), guided[0](x, t), atol=1e-5)


def test_autoguidance_and_rescaling_by_hand():
    x = jnp.array([[1.0, 3.0], [2.0, -2.0]])
    good, worse = lambda x, t: x, lambda x, t: 0.5 * x + 1
    plain = guidance.autoguidance(good, worse, 2.0)(x, 0.5)
    np.testing.assert_allclose(plain, 3 * x - 2 * (0.5 * x + 1))
    full = guidance.autoguidance(good, worse, 2.0, combine=guidance.rescaled(1.0))(x, 0.5)
    np.testing.assert_allclose(full.std(axis=1), x.std(axis=1), rtol=1e-6)
    np.testing.assert_allclose(full, plain / 2, rtol=1e-6)  # the guided spread is twice the good one's
    half = guidance.autoguidance(good, worse, 2.0, combine=guidance.rescaled(0.5))(x, 0.5)
    np.testing.assert_allclose(half, 0.5 * full + 0.5 * plain, rtol=1e-6)
    assert guidance.autoguidance(good, worse, 0) is good


def test_interval_calls_the_one_that_is_asked_for():
    calls = []
    note = lambda name, scale: lambda x, t: jax.debug.callback(lambda: calls.append(name)) or scale * x
    predict = jax.jit(guidance.interval(note("guided", 2.0), note("plain", 1.0), low=0.2, high=0.6))
    for t, expected in ((0.2, "plain"), (0.3, "guided"), (0.6, "guided"), (0.7, "plain")):
        calls.clear()
        np.testing.assert_allclose(predict(jnp.ones(2), jnp.float32(t)), 2.0 if expected == "guided" else 1.0)
        jax.effects_barrier()
        assert calls == [expected]
    np.testing.assert_allclose(predict(jnp.ones((2, 1)), jnp.array([0.1, 0.5]))[:, 0], [1.0, 2.0])


# -------------------------------------------------------------------------------------------- where a weight leads


def test_weighted_guidance_through_the_flow_ends_elsewhere_than_the_tilted_law():
    # N(0, 1) guided away from N(0, 4), w = 1, alpha = 1: the flow is linear, x ~ (1 + sigma^2)^((1+w)/2) (4 + sigma^2)^(-w/2), which ends at a
    # standard deviation of 1/2 for noise of sigma: variance .25. The tilted law p_c^2 / p has variance 1 / (2 - 1/4) = .571.
    schedule = schedules.ve(0.005, 60.0)
    predict = lambda x, t, v: x * (v / (v + schedule(t)[1] ** 2))[:, None]
    guided = guidance.classifier_free(predict, jnp.ones(1), 4.0, 1.0)
    flow = ode.gaussian(guided, schedule=schedule)
    times = schedules.times(30, spacing=ode.equal_angles(schedule))
    end = jax.jit(lambda x: ode.sample(flow, x, times))(jnp.full((1, 1), 60.0))
    assert abs(float(end[0, 0]) - 0.5) < 2e-3


@pytest.mark.slow
def test_weighted_guidance_with_langevin_steps_reaches_the_tilted_law():
    # The same pair. Each Langevin step of ratio .1 has h = .02 v, so it widens the law by about 1%; the variance's own s.e. is 1%.
    schedule = schedules.ve(0.05, 60.0)
    predict = lambda x, t, v: x * (v / (v + schedule(t)[1] ** 2))[:, None]
    guided = guidance.classifier_free(predict, jnp.ones(20_000), 4.0, 1.0)
    solver = correctors.corrected(gaussian.ddim(), ratio=0.1, steps=8)
    x1 = 60 * jax.random.normal(jax.random.key(0), (20_000, 1))
    times = schedules.times(60)
    end = jax.jit(lambda k, x: gaussian.sample(k, guided, x, times, schedule=schedule, solver=solver))(
        jax.random.key(1), x1
    )
    assert abs(float(end.var()) / (1 / (2 / (1 + 0.05**2) - 1 / (4 + 0.05**2))) - 1) < 0.06


def test_guided_score_is_that_of_the_tilted_mixture_and_langevin_samples_it():
    # Mode 2 of three on a line against all of them, w = 1.5: KS against quadrature of p_c^2.5 / p^1.5; bar 1e-4 (steps of h = .004 are biased less).
    means, widths, shares = np.array([-1.2, 0.0, 1.0]), np.array([0.6, 0.8, 0.5]), np.array([0.3, 0.4, 0.3])
    law = lambda xp, pdf, x: sum(s * pdf(x, m, w) for s, m, w in zip(shares, means, widths, strict=True))
    log_one = lambda x: jax.scipy.stats.norm.logpdf(x, 1.0, 0.5)
    log_all = lambda x: jnp.log(law(jnp, jax.scipy.stats.norm.pdf, x))
    slope = lambda f: lambda x: jax.grad(lambda x: f(x).sum())(x)
    scores = lambda x, t, one: jnp.where(one[:, None], slope(log_one)(x), slope(log_all)(x))
    guided = guidance.classifier_free(scores, jnp.ones(10_000, bool), False, 1.5)
    np.testing.assert_allclose(
        guided(jnp.full((10_000, 1), 0.3), 0.0)[0],
        jax.grad(lambda x: 2.5 * log_one(x) - 1.5 * log_all(x))(0.3), rtol=1e-5,
    )  # fmt: skip
    x = jax.random.normal(jax.random.key(0), (10_000, 1))
    chain = lambda k, x: langevin.sample(k, lambda x: guided(x, 0.0), x, step_size=0.004, steps=300)
    end = np.asarray(jax.jit(chain)(jax.random.key(1), x))[:, 0]
    grid = np.linspace(-4, 6, 20_001)
    tilted = stats.norm(1.0, 0.5).pdf(grid) ** 2.5 / law(np, stats.norm.pdf, grid) ** 1.5
    cdf = integrate.cumulative_trapezoid(tilted, grid, initial=0)
    assert stats.kstest(end, lambda x: np.interp(x, grid, cdf / cdf[-1])).pvalue > 1e-4


@pytest.mark.parametrize(
    "kind",
    [
        predictions.x0,
        predictions.eps,
        pytest.param(predictions.v, marks=pytest.mark.slow),
        pytest.param(predictions.score, marks=pytest.mark.slow),
    ],
)
def test_classifier_guidance_is_bayes_rule(kind):
    # The true p(mode | x_t) turns E[x_0 | x_t] into E[x_0 | x_t, mode].
    schedule, t = schedules.cosine(), jnp.asarray(0.3)
    x = jax.random.normal(jax.random.key(0), (6, 2))
    predict = lambda x, t: predictions.convert(
        mixture_x0(schedule)(x, t), x, t, source=predictions.x0, target=kind, schedule=schedule
    )
    log_likelihood = lambda x, t: jax.nn.log_softmax(each_mode(x, t, schedule)[0], axis=1)[:, 1]
    guided = guidance.classifier(predict, log_likelihood, schedule=schedule, kind=kind)
    got = jax.jit(lambda x: predictions.to_x0(guided(x, t), x, t, kind=kind, schedule=schedule))(x)
    np.testing.assert_allclose(got, each_mode(x, t, schedule)[1][:, 1], atol=2e-4)
    assert guidance.classifier(predict, log_likelihood, 0, schedule=schedule) is predict


# ------------------------------------------------------------------------------------------------------- thresholds


def test_thresholds_by_hand():
    x = jnp.array([[4.0, 2.0, -1.0, 0.0], [0.5, -0.2, 0.1, 0.3]])
    same = lambda x, t: x
    np.testing.assert_allclose(guidance.static_threshold(same, low=-0.5, high=2.0)(x, 0.5)[0], [2.0, 2.0, -0.5, 0.0])
    # |x| sorted 0 1 2 4: the percentile 2/3 is 2; the second example is in range and stays.
    dynamic = guidance.dynamic_threshold(same, percentile=2 / 3)(x, 0.5)
    np.testing.assert_allclose(dynamic, [[1.0, 1.0, -0.5, 0.0], x[1]], rtol=1e-5)
    assert guidance.dynamic_threshold(same)(x.astype(jnp.bfloat16), 0.5).dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="percentile"):
        guidance.dynamic_threshold(same, percentile=0.0)
    with pytest.raises(ValueError, match="low < high"):
        guidance.static_threshold(same, low=1.0, high=-1.0)


# ------------------------------------------------------------------------------------------ observations, Gaussian


def random_gaussian(d, seed=0):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(d, d))
    return rng.normal(size=d), root @ root.T / d + 0.1 * np.eye(d)


def gaussian_x0(mean, covariance, schedule):
    mean, covariance = jnp.asarray(mean, jnp.float32), jnp.asarray(covariance, jnp.float32)

    def predict(x, t):
        alpha, sigma = schedule(t)
        gain = alpha * covariance @ jnp.linalg.inv(alpha**2 * covariance + sigma**2 * jnp.eye(len(mean)))
        return mean[None] + (x - alpha * mean[None]) @ gain.T

    return predict


def conditional_mean(mean, covariance, matrix, noise, alpha, sigma, x, y):
    """E[x_0 | x_t, y] with x_t = alpha x_0 + sigma eps, y = A x_0 + noise: one linear regression on both, in float64."""
    both = np.concatenate([alpha * np.eye(len(mean)), matrix])
    spread = both @ covariance @ both.T + np.diag(np.r_[np.full(len(mean), sigma**2), np.full(len(matrix), noise**2)])
    seen = np.concatenate([x, y], axis=1) - both @ mean
    return mean + seen @ np.linalg.solve(spread, both @ covariance)


@pytest.mark.parametrize("t", [pytest.param(0.1, marks=pytest.mark.slow), 0.6])
def test_kalman_guidance_is_exact_for_gaussian_data(t):
    schedule = schedules.cosine()
    mean, covariance = random_gaussian(5)
    matrix = np.random.default_rng(1).normal(size=(3, 5))
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(4, 5)), rng.normal(size=(4, 3))
    guided = guidance.kalman(
        gaussian_x0(mean, covariance, schedule), jnp.asarray(y, jnp.float32), lambda x: x @ jnp.asarray(matrix.T, jnp.float32),
        noise=0.1, schedule=schedule, iterations=6,
    )  # fmt: skip
    got = jax.jit(guided)(jnp.asarray(x, jnp.float32), jnp.float32(t))
    alpha, sigma = (float(v) for v in schedule(t))
    np.testing.assert_allclose(got, conditional_mean(mean, covariance, matrix, 0.1, alpha, sigma, x, y), atol=2e-3)


def test_pseudo_inverse_guidance_is_exact_for_isotropic_data_only():
    schedule, t = schedules.cosine(), jnp.float32(0.5)
    alpha, sigma = (float(v) for v in schedule(0.5))
    matrix = np.eye(5)[:2]
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(4, 5)), rng.normal(size=(4, 2))

    def error(mean, covariance, method):
        predict = gaussian_x0(mean, covariance, schedule)
        truth = conditional_mean(mean, covariance, matrix, 0.1, alpha, sigma, x, y)
        guided = method(predict, jnp.asarray(y, jnp.float32), lambda x: x[:, :2])
        return float(np.abs(jax.jit(guided)(jnp.asarray(x, jnp.float32), t) - truth).max())

    pigdm = lambda *a: guidance.pigdm(*a, noise=0.1, schedule=schedule, data_std=1.5)
    dps = lambda *a: guidance.dps(*a, noise=0.1, schedule=schedule)
    isotropic = (np.arange(5.0), 1.5**2 * np.eye(5))
    assert error(*isotropic, pigdm) < 1e-4
    assert error(*random_gaussian(5), pigdm) > 0.05
    assert error(*isotropic, dps) > 1.0  # sure of y long before it may be


def test_dps_is_the_gradient_of_its_likelihood():
    # x0_hat = sin x_t, y = x0_hat^2 + noise: alpha/sigma^2-weighted derivative by hand. A nonlinear map will do.
    schedule, t = schedules.rectified(), 0.5
    x, y = np.array([[0.3, -0.7]]), np.array([[0.2, 0.1]])
    guided = guidance.dps(
        lambda x, t: jnp.sin(x), jnp.asarray(y, jnp.float32), lambda v: v**2, noise=0.3, schedule=schedule
    )
    slope = (y - np.sin(x) ** 2) / 0.09 * 2 * np.sin(x) * np.cos(x)
    np.testing.assert_allclose(guided(jnp.asarray(x, jnp.float32), t), np.sin(x) + 0.5 * slope, rtol=1e-4)
    with pytest.raises(ValueError, match="noise > 0"):
        guidance.dps(lambda x, t: x, jnp.zeros((1, 1)), lambda x: x, noise=0.0, schedule=schedule)


# ------------------------------------------------------------------------------------------------------- inpainting

KNOWN = 0.3  # the first coordinate; the second then has three modes


def conditional_cdf():
    """The distribution function of x_2 given x_1 = KNOWN, in closed form."""
    share = WEIGHTS * stats.norm(MEANS[:, 0], np.sqrt(COVARIANCES[:, 0, 0])).pdf(KNOWN)
    slope = COVARIANCES[:, 1, 0] / COVARIANCES[:, 0, 0]
    law = stats.norm(
        MEANS[:, 1] + slope * (KNOWN - MEANS[:, 0]), np.sqrt(COVARIANCES[:, 1, 1] - slope * COVARIANCES[:, 1, 0])
    )
    return lambda x: (share / share.sum() * law.cdf(np.asarray(x)[:, None])).sum(1)


def walk(predict, solver, steps, schedule, n=4000):
    x1 = jax.random.normal(jax.random.key(0), (n, 2))
    run = lambda k, x: gaussian.sample(k, predict, x, schedules.times(steps), schedule=schedule, solver=solver)
    return np.asarray(jax.jit(run)(jax.random.key(1), x1))


def test_exact_likelihood_guidance_samples_the_conditional_of_a_mixture():
    # p(x_1 = KNOWN | x_t) of the mixture in closed form, as a classifier's likelihood: the sampler ends in the conditional law.
    # KS distance .03 is the bar; noise alone stays below it but once in 700.
    schedule = schedules.cosine()
    covariances = jnp.asarray(COVARIANCES, jnp.float32)

    def log_likelihood(x, t):
        alpha, sigma = schedule(t)
        log_p, clean = each_mode(x, t, schedule)
        inverse = jnp.linalg.inv(alpha**2 * covariances + sigma**2 * jnp.eye(2)[None])
        left = covariances - alpha**2 * covariances @ inverse @ covariances  # Cov[x_0 | mode, x_t]
        variance = left[:, 0, 0][None] + 0.03**2
        seen = -0.5 * (KNOWN - clean[..., 0]) ** 2 / variance - 0.5 * jnp.log(variance)
        return jax.nn.logsumexp(jax.nn.log_softmax(log_p, axis=1) + seen, axis=1)

    guided = guidance.classifier(mixture_x0(schedule), log_likelihood, schedule=schedule)
    end = walk(guided, gaussian.dpmpp(2), 80, schedule)
    assert np.abs(end[:, 0] - KNOWN).max() < 0.2
    assert stats.kstest(end[:, 1], conditional_cdf()).statistic < 0.03


def inpainted(rounds, steps, schedule=None):
    schedule = schedule or schedules.cosine()
    predict = guidance.inpaint(mixture_x0(schedule), jnp.array([[KNOWN, 0.0]]), jnp.array([[True, False]]))
    end = walk(predict, correctors.resampled(gaussian.ancestral(), rounds), steps, schedule)
    np.testing.assert_allclose(end[:, 0], KNOWN, rtol=1e-6)
    return stats.kstest(end[:, 1], conditional_cdf()).statistic


def test_inpainting_nears_the_conditional_as_steps_are_repeated():
    once, often = inpainted(1, 60), inpainted(16, 60)
    assert often < 0.5 * once
    assert often < 0.08


@pytest.mark.slow
def test_inpainting_reaches_the_conditional_in_the_limit():
    assert inpainted(20, 400) < 0.035  # noise alone: .013, above .03 once in 700


def test_known_entries_follow_the_noising_law_of_their_values():
    schedule = schedules.cosine()
    predict = guidance.inpaint(mixture_x0(schedule), jnp.array([[2.0, 0.0]]), jnp.array([[True, False]]))
    x1 = jax.random.normal(jax.random.key(0), (20_000, 2))
    run = lambda k, x: gaussian.sample(
        k,
        predict,
        x,
        schedules.times(4),
        schedule=schedule,
        solver=gaussian.ancestral(),
        track=lambda x0, x, t: x[:, 0],
    )
    _, kept = jax.jit(run)(jax.random.key(1), x1)
    for t, x in zip((0.75, 0.5, 0.25), kept[1:], strict=True):
        alpha, sigma = (float(v) for v in schedule(t))
        assert stats.kstest(np.asarray(x), stats.norm(2 * alpha, sigma).cdf).pvalue > 1e-4
    with pytest.raises(TypeError, match="bool"):
        guidance.inpaint(mixture_x0(schedule), jnp.zeros((1, 2)), jnp.zeros((1, 2)))


# ------------------------------------------------------------------------------------------------------ conventions


def test_all_of_them_compose_in_every_sampler():
    schedule = schedules.cosine()
    network = lambda x, t, label: jnp.tanh(x) * label[:, None].astype(x.dtype)
    condition = guidance.classifier_free(network, jnp.ones(3), 0.5, jnp.float32(2.0), combine=guidance.rescaled())
    condition = guidance.interval(condition, lambda x, t: network(x, t, jnp.ones(3)), low=0.1, high=0.8)
    bent = guidance.pigdm(condition, jnp.zeros((3, 1)), lambda x: x[:, :1], noise=0.1, schedule=schedule)
    predict = guidance.inpaint(guidance.dynamic_threshold(bent), jnp.full((1, 4), 0.5), jnp.arange(4)[None] == 3)
    x1, times = jax.random.normal(jax.random.key(0), (3, 4)), schedules.times(3)

    @jax.jit
    def ends(key, x1):
        walk = gaussian.sample(key, predict, x1, times, schedule=schedule, solver=gaussian.ancestral())
        process = gaussian_process.process(schedule)
        return walk, bridge.sample(key, lambda k, x, t: predict(x, t), x1, times, process=process)

    for end in ends(jax.random.key(1), x1):
        assert np.isfinite(end).all()
        np.testing.assert_allclose(end[:, 3], 0.5, rtol=1e-5)
    assert predict(x1.astype(jnp.bfloat16), 0.5).dtype == jnp.bfloat16
    slope = jax.jit(jax.grad(lambda x: predict(x, jnp.float32(1.0)).sum()))(x1)
    assert np.isfinite(slope).all()


def test_self_conditioning_shows_a_share_its_own_guess_without_its_gradient():
    seen = []

    def predict(x, t, before):
        seen.append(before)
        return 2 * x + 3 * before

    x = jnp.ones((4000, 1))
    out = guidance.self_conditioned(jax.random.key(0), predict, x, jnp.zeros(4000), rate=0.25)
    assert float(jnp.abs(seen[0]).max()) == 0
    assert set(np.unique(out)) == {2.0, 8.0}
    assert abs(float((out == 8).mean()) - 0.25) < 0.03  # s.e. .0068
    slope = jax.grad(
        lambda x: guidance.self_conditioned(jax.random.key(0), predict, x, jnp.zeros(4000), rate=1.0).sum()
    )(x)
    np.testing.assert_allclose(slope, 2.0)  # not 8: the first pass carries none


def test_self_conditioning_of_symbols_shows_their_guess_and_returns_logits():
    seen = []

    def predict(x, t, before):
        seen.append(before)
        return jax.nn.one_hot(x["s"], 4) + 2 * jax.nn.one_hot(before["s"], 4)

    xt = {"s": jnp.full((2000, 3), 2, jnp.int8)}
    guess = lambda logits: {"s": jnp.argmax(logits, axis=-1)}
    logits = guidance.self_conditioned(jax.random.key(0), predict, xt, jnp.zeros(2000), guess=guess)
    assert seen[1]["s"].dtype == jnp.int8
    # Zeros first, so that symbol 0 is the first guess; then it is shown to half of the examples, and the others see zeros again, which is the same symbol.
    np.testing.assert_array_equal(seen[0]["s"], 0)
    assert logits.shape == (2000, 3, 4)
    fixed = lambda logits: {"s": jnp.full((2000, 3), 3)}
    guidance.self_conditioned(jax.random.key(1), predict, xt, jnp.zeros(2000), guess=fixed)
    shown = np.asarray(seen[3]["s"])
    assert set(np.unique(shown)) == {0, 3}
    assert (shown == shown[:, :1]).all()  # whole examples
    assert abs((shown[:, 0] == 3).mean() - 0.5) < 0.06  # s.e. .011
