"""Reflected diffusion from end to end with exact scores: samples, likelihoods, guidance, against laws in closed form.

The data are mixtures of folded Gaussians, some of them leaning on walls. Noise only widens their parts, so density, distribution function and score are
known at all times: the truth below is written with scipy's normal law and images, in float64; the score that is walked, with `cube`'s kernels.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from diffjax import guidance, likelihood, schedules
from diffjax.likelihood import levels
from diffjax.processes import cube
from diffjax.samplers import correctors, langevin, ode

SCHEDULE = schedules.ve(0.01, 3.0)
LINE = {"centers": np.array([[0.0], [0.97], [0.4]]), "widths": np.array([[0.06], [0.1], [0.2]])}
_rng = np.random.default_rng(5)
BOX = {
    "centers": np.concatenate([[[0, 0.5, 1, 0.3], [1, 0.02, 0.6, 0.9]], _rng.uniform(size=(3, 4))]),
    "widths": _rng.uniform(0.05, 0.3, (5, 4)),
}


# -------------------------------------------------------------------------------------------------------- the truth


def images(center, width, x, function):
    """The sum over the images of x of a function of (image - center) / width, and over those of 0; float64."""
    shifts = 2.0 * np.arange(-8, 9)
    places = np.concatenate([x[..., None] + shifts, -x[..., None] + shifts], -1)
    return function((places - center[..., None]) / width[..., None])


def log_density(x, sigma, data, weights=None):
    """`log p_sigma` of each x [n, D], float64."""
    width = np.sqrt(data["widths"] ** 2 + sigma**2)
    kernels = images(data["centers"], width, np.asarray(x, np.float64)[:, None], lambda z: np.exp(-0.5 * z * z)).sum(-1)
    each = np.log(kernels / (width * np.sqrt(2 * np.pi))).sum(-1)
    weights = np.ones(len(width)) / len(width) if weights is None else weights
    return special.logsumexp(each, b=weights, axis=-1)


def below(x, sigma, data):
    """The share of each coordinate that lies in [0, x], float64: x [n], the answer [n, D]."""
    width = np.sqrt(data["widths"] ** 2 + sigma**2)
    x = np.broadcast_to(np.asarray(x, np.float64)[:, None, None], (len(x), *width.shape))
    shifts = 2.0 * np.arange(-8, 9)
    cells = [
        special.ndtr((sign * x[..., None] + shifts - data["centers"][..., None]) / width[..., None]) for sign in (1, -1)
    ]
    return (cells[0] - cells[1]).sum(-1).mean(-2)


def draws(n, data, sigma=0.0, seed=0):
    rng = np.random.default_rng(seed)
    mode = rng.integers(len(data["widths"]), size=n)
    x = data["centers"][mode] + np.hypot(data["widths"][mode], sigma) * rng.normal(size=(n, data["widths"].shape[1]))
    return jnp.asarray(np.abs(x - 2 * np.round(x / 2)), jnp.float32)


def model_score(data, schedule=SCHEDULE, weights=None):
    """`(x, t) -> grad log p_t(x)` from the library's kernels, in x's dtype."""
    centers, widths = (jnp.asarray(data[name], jnp.float32)[None] for name in ("centers", "widths"))
    prior = jnp.zeros((1, centers.shape[1])) if weights is None else jnp.log(jnp.asarray(weights, jnp.float32))[None]

    def score(x, t):
        sigma = jnp.broadcast_to(schedule(t)[1], x.shape[:1])[:, None, None]
        point = x.astype(jnp.float32)[:, None]
        shape = (x.shape[0], *centers.shape[1:])
        start, width = jnp.broadcast_to(centers, shape), jnp.sqrt(widths**2 + sigma**2)
        share = jax.nn.softmax(prior + cube.log_kernel(start, jnp.broadcast_to(point, shape), width).sum(-1), axis=1)
        return (share[..., None] * cube.score(start, jnp.broadcast_to(point, shape), width)).sum(1).astype(x.dtype)

    return score


def distance(x, sigma, data=LINE):
    """Kolmogorov's distance of samples on the line from the truth."""
    x = np.sort(np.asarray(x, np.float64).ravel())
    cdf = below(x, sigma, data)[:, 0]
    steps = np.arange(len(x) + 1) / len(x)
    return max(np.abs(cdf - steps[1:]).max(), np.abs(cdf - steps[:-1]).max())


def near_walls(x):
    """The share of entries within .005 of a wall."""
    return float(np.minimum(x, 1 - x).__lt__(0.005).mean())


def truly_near_walls(sigma, data):
    edge = below(np.array([0.005, 0.995]), sigma, data)
    return float((edge[0] + 1 - edge[1]).mean())


def walk(predictor, x1, steps, score=None, **settings):
    run = lambda key, x: correctors.predictor_corrector(
        key,
        predictor,
        score,
        x,
        schedules.times(steps),
        steps=0 if score is None else 1,
        move=langevin.reflect,
        **settings,
    )
    return np.asarray(jax.jit(run)(jax.random.key(2), x1))


def test_the_truth_is_true():
    # The distribution function's slope is the density, which integrates to one.
    grid = np.linspace(0, 1, 4001)
    p = np.exp(log_density(grid[:, None], 0.05, LINE))
    np.testing.assert_allclose(np.trapezoid(p, grid), 1, atol=1e-6)
    np.testing.assert_allclose(below(grid, 0.05, LINE)[2000, 0], np.trapezoid(p[:2001], grid[:2001]), atol=1e-6)
    assert distance(draws(40_000, LINE, 0.05), 0.05) < 1.95 / 200  # a false alarm in 1,000 seeds


# ---------------------------------------------------------------------------------------------------------- samples


@pytest.mark.parametrize(
    "noise",
    [0.0, pytest.param(0.5, marks=pytest.mark.slow), 1.0, lambda t: t],
    ids=["flow", "half", "diffusion", "annealed"],
)
def test_every_noise_level_walks_to_the_law(noise):
    # Kolmogorov's distance of 40,000 samples: .0068 is passed by 5% of exact draws, .0098 by 0.1%; 200 steps err by .004 (and 100 by twice that).
    x1 = jax.random.uniform(jax.random.key(1), (40_000, 1))
    predictor = correctors.reverse_diffusion(model_score(LINE), schedule=SCHEDULE, move=langevin.reflect, noise=noise)
    x = walk(predictor, x1, 200)
    assert distance(x, 0.01) < 0.012
    assert abs(near_walls(x) / truly_near_walls(0.01, LINE) - 1) < 0.1


def test_annealed_noise_is_asked_for_at_each_time():
    # A score of 0 and noise t: the step from t = .5 adds .5 sqrt(d) z, d = sigma_t^2 - sigma_s^2. 40,000 draws: s.e. of the spread .0035.
    flat = lambda x, t: jnp.zeros_like(x)
    step = correctors.reverse_diffusion(flat, schedule=schedules.ve(0.01, 1.0), noise=lambda t: t)
    x = step(jax.random.key(0), jnp.zeros((2, 20_000)), jnp.array([0.3, 0.5]), jnp.array([0.5, 1.0]))
    sigma = lambda t: 0.01 ** (1 - t)
    expected = [0.5 * np.sqrt(sigma(0.5) ** 2 - sigma(0.3) ** 2), np.sqrt(1 - sigma(0.5) ** 2)]
    np.testing.assert_allclose(x.std(1), expected, rtol=0.02)


@pytest.mark.slow
def test_projected_steps_pile_mass_up_at_the_walls():
    x1 = jax.random.uniform(jax.random.key(1), (20_000, 1))
    predictor = correctors.reverse_diffusion(model_score(LINE), schedule=SCHEDULE, move=langevin.clip)
    assert near_walls(walk(predictor, x1, 100)) > 1.3 * truly_near_walls(0.01, LINE)


def test_the_unfolded_bridge_is_exact_for_data_at_a_wall():
    # A path unfolded from the wall began at the wall, certainly: then two steps are as good as many, and no noise is left at sigma = 0.
    schedule = lambda t: (jnp.ones_like(t), 0.2 * jnp.asarray(t))
    score = lambda x, t: cube.score(0.0, x, schedule(t)[1])
    step = correctors.reverse_bridge(score, schedule=schedule, move=langevin.reflect)
    x1 = cube.corrupt(jax.random.key(0), jnp.zeros(40_000), 0.2)
    x = walk(step, x1, 2)
    np.testing.assert_allclose(x, 0, atol=1e-7)
    half = np.sort(np.asarray(step(jax.random.key(1), x1, 0.5, 1.0)))
    gap = np.abs(2 * special.ndtr(half / 0.1) - 1 - (np.arange(len(half)) + 0.5) / len(half)).max()
    assert gap < 1.95 / 200


def test_the_unfolded_bridge_walks_to_the_law():
    x1 = jax.random.uniform(jax.random.key(1), (40_000, 1))
    score = model_score(LINE)
    x = walk(correctors.reverse_bridge(score, schedule=SCHEDULE, move=langevin.reflect), x1, 100)
    assert distance(x, 0.01) < 0.01


@pytest.mark.slow
def test_a_folded_bridge_to_the_unfolded_mean_misses_the_law():
    # What a score network might be plugged into by mistake: .056, .058, .055 at 100, 200, 400 steps (the unfolded one: .0045 at 100).
    x1 = jax.random.uniform(jax.random.key(1), (40_000, 1))
    score, process = model_score(LINE), cube.process(SCHEDULE)

    def folded(key, x, s, t):
        return process.bridge(key, x + SCHEDULE(t)[1] ** 2 * score(x, t), x, s, t)

    assert distance(walk(folded, x1, 200), 0.01) > 0.03


def test_denoising_moves_to_the_mean_of_the_unfolded_start():
    # By quadrature over the line, on which the data are mirrored at every wall.
    t = 0.6
    sigma = float(SCHEDULE(t)[1])
    x = np.array([0.0, 0.02, 0.3, 0.98])
    grid = np.linspace(-8, 9, 170_001)
    p = np.exp(log_density(np.abs(grid - 2 * np.round(grid / 2))[:, None], 0.0, LINE))
    weight = p * np.exp(-0.5 * ((x[:, None] - grid) / sigma) ** 2)
    got = correctors.denoise(
        model_score(LINE), jnp.asarray(x[:, None], jnp.float32), t, schedule=SCHEDULE, move=langevin.reflect
    )
    np.testing.assert_allclose(got[:, 0], (weight * grid).sum(1) / weight.sum(1), atol=2e-6)


def test_denoising_takes_off_the_last_noise():
    # Data on two points: what a walk leaves scattered by sigma_min = .01 is taken to the points themselves.
    two = {"centers": np.array([[0.2], [0.7]]), "widths": np.array([[1e-4], [1e-4]])}
    score = model_score(two)
    x = walk(
        correctors.reverse_diffusion(score, schedule=SCHEDULE, move=langevin.reflect),
        jax.random.uniform(jax.random.key(1), (500, 1)),
        100,
    )
    apart = lambda x: np.abs(np.asarray(x) - np.array([0.2, 0.7])).min(-1)
    assert apart(x).mean() > 0.005
    assert apart(correctors.denoise(score, jnp.asarray(x), 0.0, schedule=SCHEDULE, move=langevin.reflect)).max() < 1e-3


def test_correctors_leave_the_law_as_it_is():
    t = 0.5  # sigma = .17
    sigma = float(SCHEDULE(t)[1])
    x = draws(40_000, LINE, sigma)
    fix = lambda move: jax.jit(
        lambda x: correctors.correct(jax.random.key(0), model_score(LINE), x, t, ratio=0.1, steps=50, move=move)
    )(x)
    assert distance(fix(langevin.reflect), sigma) < 0.014
    assert near_walls(np.asarray(fix(langevin.clip))) > 2 * truly_near_walls(sigma, LINE)


@pytest.mark.slow
def test_a_walk_starts_where_it_is_told_to():
    # From noisy data at t = .4, not from the prior: law kept, and each end still near its start.
    x = draws(20_000, LINE, float(SCHEDULE(0.4)[1]))
    predictor = correctors.reverse_diffusion(model_score(LINE), schedule=SCHEDULE, move=langevin.reflect)
    times = schedules.times(60, start=0.4)
    end = jax.jit(lambda x: correctors.predictor_corrector(jax.random.key(0), predictor, None, x, times, steps=0))(x)
    assert distance(end, 0.01) < 0.02
    assert np.corrcoef(np.asarray(x)[:, 0], np.asarray(end)[:, 0])[0, 1] > 0.9


def test_a_corrector_without_a_score_is_refused():
    with pytest.raises(ValueError, match="steps=0"):
        correctors.predictor_corrector(
            jax.random.key(0), lambda key, x, s, t: x, None, jnp.zeros(1), schedules.times(2)
        )


# -------------------------------------------------------------------------------------------------------- E10: the box


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "bar"), [(25, 5e-3), (50, 5e-4)])  # of four evaluations
def test_log_likelihood_of_mixtures_in_the_box(steps, bar):
    # Every example is a draw of the mixture; those at walls and in corners are among them.
    x = draws(200, BOX)
    flow = ode.folded(model_score(BOX), schedule=SCHEDULE, fold=cube.fold, length=1.0)
    got = jax.jit(lambda x: ode.log_prob(jax.random.key(0), flow, x, schedules.times(steps)))(x)
    error = np.asarray(got) - log_density(np.asarray(x), 0.01, BOX)
    assert np.sqrt((error**2).mean()) < bar


WALKS = {
    "diffusion": lambda score: correctors.reverse_diffusion(score, schedule=SCHEDULE, move=langevin.reflect),
    "bridge": lambda score: correctors.reverse_bridge(score, schedule=SCHEDULE, move=langevin.reflect),
    "projected": lambda score: correctors.reverse_diffusion(score, schedule=SCHEDULE, move=langevin.clip),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["diffusion", "predictor-corrector", "bridge", "flow", "projected"])
def test_samples_have_the_mass_at_the_walls(name):
    # 20,000 samples in four dimensions: the share, .0168, has a standard error of 2.7%; bar 10%, and 20% at least for projected steps.
    x1, score = jax.random.uniform(jax.random.key(1), (20_000, 4)), model_score(BOX)
    if name == "flow":
        flow = ode.folded(score, schedule=SCHEDULE, fold=cube.fold, length=1.0)
        x = np.asarray(jax.jit(lambda x: ode.sample(flow, x, schedules.times(30)))(x1))
    elif name == "predictor-corrector":
        x = walk(WALKS["diffusion"](score), x1, 200, score, ratio=0.1)
    else:
        x = walk(WALKS[name](score), x1, 200)
    assert x.min() >= 0
    assert x.max() <= 1
    excess = near_walls(x) / truly_near_walls(0.01, BOX) - 1
    assert excess > 0.2 if name == "projected" else abs(excess) < 0.1


# ------------------------------------------------------------------------------------------------------- likelihoods


@pytest.mark.parametrize(
    ("data", "repeats"), [(LINE, 8), pytest.param(BOX, 32, marks=pytest.mark.slow)], ids=["line", "box"]
)
def test_bound_of_a_mixture_has_no_gap_for_the_exact_score(data, repeats):
    # From sigma = 1e-4, against -log p of the same points. Each point has times of its own, evenly spaced, most of them where
    # the data's widths are: sigma from .01 to 1. A false alarm in 370 seeds.
    schedule, n = schedules.ve(1e-4, 3.0), 20_000
    process, score, x0 = cube.process(schedule), model_score(data, schedule), draws(n, data)
    path = lambda u: jnp.interp(u, jnp.array([0, 0.05, 0.95, 1.0]), jnp.array([0, 0.447, 0.893, 1.0]))
    u = schedules.stratified_draw(jax.random.key(3), jnp.arange(n), n)

    def one(row):
        key, shift = row
        none = lambda x: jnp.zeros(n)
        settings = {"process": process, "schedule": schedule, "log_prior": none, "path": path}
        return likelihood.density(key, score, x0, (u + shift) % 1, **settings).total

    keys = jax.random.split(jax.random.key(0), repeats)
    total = jax.jit(lambda keys: jax.lax.map(one, (keys, jnp.arange(repeats) / repeats)).mean(0))(keys)
    gap, error = likelihood.mean_and_error(total + log_density(np.asarray(x0), 0.0, data))
    assert float(error) <= 0.01
    assert abs(float(gap)) < 3 * float(error)


def test_the_bound_grows_by_what_a_wrong_score_costs():
    # s + c(x) makes the bound larger by 1/2 E_t[g^2 |c|^2]: here c = 1 on half the box, seen between sigma = .5 and 1, where half the mass is there.
    schedule = schedules.ve(0.5, 1.0)
    n, process, score = (
        20_000,
        cube.process(schedule),
        model_score({"centers": np.array([[0.5]]), "widths": np.array([[0.2]])}, schedule),
    )
    x0, u = jnp.full((n, 1), 0.5), schedules.stratified_draw(jax.random.key(3), jnp.arange(n), n)
    score = lambda x, t: cube.score(0.5, x, schedule(t)[1])
    wrong = lambda x, t: score(x, t) + (x > 0.5).astype(x.dtype)
    settings = {"process": process, "schedule": schedule}
    none = lambda *x: jnp.zeros(n)
    for bound in (
        lambda score: likelihood.density(jax.random.key(0), score, x0, u, log_prior=none, **settings),
        lambda score: likelihood.girsanov(jax.random.key(0), score, x0, u, decode=none, **settings),
    ):
        more = jax.jit(lambda bound=bound: bound(wrong).diffusion - bound(score).diffusion)()
        mean, error = likelihood.mean_and_error(more)
        assert abs(float(mean) - 0.5 * 0.5 * (1 - 0.25)) < 4 * max(float(error), 1e-3)


def independent(p, values, schedule):
    """`(law, score, decode)` of entries that take levels independently with probabilities p [D, K], exact."""
    settings = {"levels": jnp.asarray(values, jnp.float32), "schedule": schedule}
    law = lambda x, t: levels.posterior(jnp.log(p), x, t, log_kernel=cube.log_kernel, **settings)
    score = lambda x, t: levels.score(law(x, t), x, t, kernel_score=cube.score, **settings)
    start = levels.decoder(
        schedule=schedule, t=0.0, log_prior=jnp.log(p), log_kernel=cube.log_kernel, levels=settings["levels"]
    )
    return law, score, start


def cross_entropy_and_bound(index, p, schedule, repeats):
    """Nats a dimension of held-out levels index [n, D], and the reflected bound with its error, each repeat with low-variance times."""
    n, size = index.shape
    values = np.linspace(0, 1, p.shape[1])
    p = jnp.asarray(p, jnp.float32)
    _, score, decode = independent(p, values, schedule)
    x0 = jnp.asarray(values[index], jnp.float32)

    def repeat(key):
        u = schedules.stratified_draw(key, jax.random.permutation(key, n), n)
        bound = likelihood.girsanov(key, score, x0, u, process=cube.process(schedule), schedule=schedule, decode=decode)
        return jax.tree.map(jnp.mean, bound)

    means = jax.jit(lambda keys: jax.lax.map(repeat, keys))(jax.random.split(jax.random.key(1), repeats))
    return -np.log(np.asarray(p)[np.arange(size)[None], index]).mean(), likelihood.summary(means), size


@pytest.mark.parametrize(
    "start", [pytest.param(0.02, marks=pytest.mark.slow), 0.2]
)  # certain at the start; and an honest share of the reconstruction: levels lie .25 apart
def test_reflected_bound_of_independent_levels_is_their_cross_entropy(start):
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(5), 4)
    index = np.stack([rng.choice(5, 4000, p=row) for row in p], 1)
    entropy, terms, size = cross_entropy_and_bound(index, p, schedules.ve(start, 3.0), 40)
    mean, error = (float(v) / size for v in terms["total"])
    assert error <= 0.01
    assert abs(mean - entropy) < 3.3 * error  # a false alarm for 1 seed in 500 (39 degrees of freedom)
    assert (float(terms["reconstruction"][0]) > 0.5) == (start == 0.2)
    assert abs(float(terms["prior"][0])) < 1e-4


@pytest.mark.slow
def test_reflected_bound_of_independent_pixels_is_their_cross_entropy():
    # The digits of E4, in mirrors: 2.4248 bits a dimension.
    from sklearn.datasets import load_digits

    data = load_digits().data.astype(int)[np.random.default_rng(0).permutation(1797)]
    train, test = data[:1297], data[1297:]
    counts = np.stack([(train == v).sum(0) for v in range(17)], axis=1) + 0.5
    entropy, terms, size = cross_entropy_and_bound(
        test, counts / counts.sum(1, keepdims=True), schedules.ve(0.01, 3.0), 40
    )
    mean, error = (float(likelihood.bits_per_dim(v, size)) for v in terms["total"])
    assert abs(entropy / np.log(2) - 2.4248) < 0.005
    assert error <= 0.01
    assert abs(mean - entropy / np.log(2)) < 3 * error


# ---------------------------------------------------------------------------------------------------------- guidance

CLASSES = np.array([[0.8, 0.1, 0.1], [0.05, 0.45, 0.5]])  # weights of the parts in either class, which overlap


def by_class(x, t, label):
    """The score of one class, or of both together for the label -1."""
    table = jnp.asarray(np.concatenate([CLASSES, CLASSES.mean(0, keepdims=True)]), jnp.float32)
    parts = jax.vmap(lambda w: model_score(LINE, weights=w)(x, t))(table)  # [3, n, 1]
    return jnp.take_along_axis(parts, jnp.where(label < 0, 2, label)[None, :, None], axis=0)[0]


def guided(weight, n, label=0):
    return guidance.classifier_free(by_class, condition=jnp.full(n, label), null=-1, weight=weight)


def test_langevin_steps_under_guidance_have_the_tilted_law():
    # At one noise level the guided score is that of p(x|c)^(1+w) p(x)^-w; its distribution function by quadrature. 20,000 chains from the prior.
    t, n, weight = 0.55, 20_000, 1.5
    sigma = float(SCHEDULE(t)[1])
    x = jax.random.uniform(jax.random.key(1), (n, 1))
    x = jax.jit(
        lambda x: langevin.sample(
            jax.random.key(0), lambda x: guided(weight, n)(x, t), x, step_size=2e-3, steps=400, move=langevin.reflect
        )
    )(x)
    grid = np.linspace(0, 1, 4001)
    log_p = [log_density(grid[:, None], sigma, LINE, weights) for weights in (CLASSES[0], CLASSES.mean(0))]
    tilted = np.exp((1 + weight) * log_p[0] - weight * log_p[1])
    cdf = np.concatenate([[0], np.cumsum((tilted[1:] + tilted[:-1]) / 2)])
    ends = np.interp(np.sort(np.asarray(x)[:, 0]), grid, cdf / cdf[-1])
    assert np.abs(ends - (np.arange(n) + 0.5) / n).max() < 0.02  # .0138 is passed by 0.1% of exact draws
    plain = np.exp(log_p[0])
    cdf = np.concatenate([[0], np.cumsum((plain[1:] + plain[:-1]) / 2)])
    assert np.abs(np.interp(np.sort(np.asarray(x)[:, 0]), grid, cdf / cdf[-1]) - (np.arange(n) + 0.5) / n).max() > 0.05


def test_no_guidance_is_the_class_and_none_at_all_everything():
    x, t = draws(50, LINE, 0.1), 0.5
    scores = jax.jit(
        lambda x: [
            *(guided(weight, 50)(x, t) for weight in (0.0, -1.0)),
            *(model_score(LINE, weights=weights)(x, t) for weights in (CLASSES[0], CLASSES.mean(0))),
        ]
    )(x)
    np.testing.assert_allclose(scores[0], scores[2], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(scores[1], scores[3], rtol=1e-4, atol=1e-4)


def guided_walk(name, key, weight, x1):
    score = guided(weight, len(x1))
    if name == "flow":
        flow = ode.folded(score, schedule=SCHEDULE, fold=cube.fold, length=1.0)
        return ode.sample(flow, x1, schedules.times(5))
    steps = 1 if name == "predictor-corrector" else 0
    predictor = WALKS.get(name, WALKS["diffusion"])(score)
    end = correctors.predictor_corrector(
        key, predictor, score, x1, schedules.times(30), steps=steps, move=langevin.reflect
    )
    return correctors.denoise(score, end, 0.0, schedule=SCHEDULE, move=langevin.reflect)


_SLOW = [
    (name, dtype) for name in ("predictor-corrector", "bridge", "projected") for dtype in (jnp.bfloat16, jnp.float32)
]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("diffusion", jnp.bfloat16),
        pytest.param("flow", jnp.bfloat16, marks=pytest.mark.slow),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in _SLOW),
    ],
)
def test_no_sample_leaves_the_box(name, dtype):
    # Coarse steps under a guidance of 15, which bounce from wall to wall; the whole walk under vmap and jit, a weight for each row.
    x1 = jax.random.uniform(jax.random.key(1), (2, 500, 1)).astype(dtype)
    run = jax.jit(jax.vmap(functools.partial(guided_walk, name)))
    x = run(jax.random.split(jax.random.key(0), 2), jnp.array([15.0, 0.0]), x1)
    assert x.dtype == dtype
    x = np.asarray(x, np.float32)
    assert x.min() >= 0
    assert x.max() <= 1
    # Without guidance the first class is met, which has .815 of its mass below .2; not by clipping.
    assert name == "projected" or abs((x[1] < 0.2).mean() - 0.815) < 0.12
