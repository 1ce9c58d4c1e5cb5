"""Losses against direct evaluation, and the promise that a weighting means the same whatever is predicted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import losses, schedules
from diffjax.numerics import expand_right
from diffjax.processes import cube, gaussian, predictions, so3, torus

KINDS = {k: getattr(predictions, k) for k in ("x0", "eps", "v", "flow", "score")}
WEIGHTINGS = {
    "snr": losses.snr,
    "truncated": losses.truncated_snr,
    "min": losses.min_snr(5.0),
    "sigmoid": losses.sigmoid(-1.0),
    "edm": losses.edm(0.5),
    "likelihood": losses.likelihood,
}


@pytest.mark.parametrize("weighting", WEIGHTINGS.values(), ids=WEIGHTINGS)
@pytest.mark.parametrize(
    "schedule", [schedules.cosine(), schedules.rectified(), schedules.karras()], ids=["cosine", "rectified", "karras"]
)
def test_a_weighting_is_the_same_loss_whatever_is_predicted(weighting, schedule):
    # One estimate of x_0, turned into each kind of prediction: equal weighted losses.
    key, t = jax.random.key(0), jnp.linspace(0.02, 0.98, 7)
    x0 = jax.random.normal(jax.random.key(1), (7, 4))
    estimate = lambda xt: 0.3 * jnp.tanh(xt) + 0.1
    values = []
    for kind in KINDS.values():
        predict = lambda xt, u, kind=kind: predictions.convert(
            estimate(xt), xt, u, source=predictions.x0, target=kind, schedule=schedule
        )
        values.append(losses.regression(key, predict, x0, t, schedule=schedule, kind=kind, weighting=weighting))
    for value in values[1:]:
        np.testing.assert_allclose(value, values[0], rtol=2e-3)


def test_weights_are_the_published_ones():
    # Written out for a variance-preserving schedule: SNR = alpha^2 / sigma^2.
    s, t = schedules.cosine(), jnp.linspace(0.05, 0.95, 9)
    alpha, sigma = s(t)
    snr = alpha**2 / sigma**2
    w = lambda kind, weighting: losses.weight(t, s, kind=KINDS[kind], weighting=weighting)
    np.testing.assert_allclose(w("x0", losses.snr), snr, rtol=1e-4)
    np.testing.assert_allclose(w("v", losses.snr), snr / (snr + 1), rtol=1e-4)
    np.testing.assert_allclose(w("x0", losses.min_snr(5.0)), np.minimum(snr, 5), rtol=1e-4)
    np.testing.assert_allclose(w("v", losses.min_snr(5.0)), np.minimum(snr, 5) / (snr + 1), rtol=1e-4)
    np.testing.assert_allclose(w("v", losses.truncated_snr), np.maximum(snr, 1) / (snr + 1), rtol=1e-4)
    np.testing.assert_allclose(w("eps", losses.sigmoid(-1.0)), 1 / (1 + np.e * snr), rtol=1e-4)
    # -1/2 dSNR/dt on x_0 (Kingma et al. 2021, eq. 13), the derivative by central differences.
    ratio = lambda u: (s(u)[0] / s(u)[1]) ** 2
    with jax.enable_x64(True):
        u = jnp.asarray(np.asarray(t), jnp.float64)
        slope = -0.5 * (ratio(u + 1e-6) - ratio(u - 1e-6)) / 2e-6
    np.testing.assert_allclose(w("x0", losses.likelihood), slope, rtol=1e-3)
    e = sigma / alpha
    np.testing.assert_allclose(w("x0", losses.edm(0.5)), (e**2 + 0.25) / (e * 0.5) ** 2, rtol=1e-4)


@pytest.mark.parametrize("weighting", WEIGHTINGS.values(), ids=WEIGHTINGS)
def test_weights_and_losses_are_finite_at_both_ends(weighting):
    t = jnp.array([0.0, 1.0])
    for schedule in (schedules.cosine(), schedules.vp_linear(), schedules.rectified()):
        # The bound's own weight is infinite where the log-SNR is, by definition.
        if weighting is losses.likelihood:
            continue
        assert np.isfinite(weighting(t, schedule)).all()
    v = losses.weight(t, schedules.cosine(), kind=predictions.v, weighting=losses.truncated_snr)
    np.testing.assert_allclose(v, 1.0, rtol=1e-4)


def test_loss_is_the_mean_error_of_the_prediction():
    key, t, s = jax.random.key(0), jnp.array([0.2, 0.7]), schedules.rectified()
    x0 = jax.random.normal(jax.random.key(1), (2, 3))
    seen = {}

    def predict(xt, u):
        seen.update(xt=xt, t=u)
        return jnp.zeros_like(xt)

    mse = losses.regression(key, predict, x0, t, schedule=s, kind=predictions.flow)
    eps = (seen["xt"] - (1 - t)[:, None] * x0) / t[:, None]
    np.testing.assert_allclose(mse, np.mean((eps - x0) ** 2, axis=1), rtol=1e-5)
    mae = losses.regression(key, predict, x0, t, schedule=s, kind=predictions.flow, error=losses.absolute)
    np.testing.assert_allclose(mae, np.mean(np.abs(eps - x0), axis=1), rtol=1e-5)
    where = jnp.array([[True, False, True], [False, False, False]])
    part = losses.regression(key, predict, x0, t, schedule=s, kind=predictions.flow, where=where)
    np.testing.assert_allclose(part, [np.mean(((eps - x0) ** 2)[0, [0, 2]]), 0.0], rtol=1e-5)


def test_noise_has_unit_variance_and_depends_on_the_example_alone():
    from diffjax import numerics

    key, index = jax.random.key(0), jnp.arange(4096)
    keys = numerics.example_keys(key, index)
    zero = lambda xt, t: jnp.zeros_like(xt)
    x0 = jnp.zeros((4096, 2))
    loss = losses.regression(keys, zero, x0, jnp.full(4096, 0.5), schedule=schedules.cosine())
    # Mean of 8192 squared normals: standard error .0156; |z| > 5 happens once in 2 million.
    assert abs(float(loss.mean()) - 1) < 5 * np.sqrt(2 / 8192)
    part = losses.regression(keys[100:108], zero, x0[:8], jnp.full(8, 0.5), schedule=schedules.cosine())
    np.testing.assert_array_equal(part, loss[100:108])


def test_half_precision_networks_are_judged_in_float32():
    x0 = jnp.ones((2, 1000))
    loss = losses.regression(
        jax.random.key(0), lambda xt, t: xt.astype(jnp.bfloat16), x0, jnp.full(2, 0.5), schedule=schedules.cosine()
    )
    assert loss.dtype == jnp.float32
    assert losses.mean_error(x0.astype(jnp.bfloat16), x0, jnp.zeros(2)).dtype == jnp.float32


# ------------------------------------------------------------------------------------------ angles, rotations, symbols


def test_wrapped_error_is_the_shortest_way_round():
    a = np.linspace(-3.1, 3.1, 41)
    truth = np.minimum(np.abs(a[:, None] - a), 2 * np.pi - np.abs(a[:, None] - a)) ** 2
    ours = losses.wrapped(jnp.asarray(a[:, None] - a, jnp.float32))
    np.testing.assert_allclose(ours, truth, atol=1e-5)
    assert np.isfinite(jax.vmap(jax.grad(losses.wrapped))(jnp.array([0.0, np.pi, -np.pi, 7.0]))).all()


def test_rotation_error_is_the_squared_angle_with_finite_gradients_everywhere():
    # The angle of q^-1 r from rotation matrices in float64, trace = 1 + 2 cos.
    from scipy.spatial.transform import Rotation

    rng = np.random.default_rng(0)
    angles = np.concatenate([10.0 ** np.linspace(-4, 0, 20), np.linspace(1, np.pi - 1e-3, 20)])
    axes = rng.normal(size=(40, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    start = Rotation.random(40, random_state=1)
    end = start * Rotation.from_rotvec(axes * angles[:, None])
    q, r = (jnp.asarray(x.as_quat()[:, [3, 0, 1, 2]], jnp.float32) for x in (start, end))
    for sign in (1, -1):
        error = losses.rotation_error(q, sign * r, jnp.zeros(40))
        np.testing.assert_allclose(jnp.sqrt(error), angles, rtol=2e-4, atol=5e-7)
    gradient = jax.grad(lambda a, b: losses.rotation_error(a, b, 0.0), argnums=(0, 1))
    for other in (jnp.array([1.0, 0, 0, 0]), jnp.array([0.0, 1, 0, 0]), jnp.array([-1.0, 0, 0, 0])):
        for g in gradient(jnp.array([1.0, 0, 0, 0]), other):
            assert np.isfinite(g).all()


def test_cross_entropy_is_the_log_probability_of_the_symbol():
    logits = jax.random.normal(jax.random.key(0), (2, 3, 5))
    target = jnp.array([[0, 4, 2], [1, 1, 3]])
    p = np.exp(np.asarray(logits, np.float64))
    p /= p.sum(-1, keepdims=True)
    truth = -np.log(np.take_along_axis(p, np.asarray(target)[..., None], -1)[..., 0])
    np.testing.assert_allclose(losses.cross_entropy(logits, target, jnp.zeros(2)), truth.mean(1), rtol=1e-5)
    where = jnp.array([[True, False, True], [False, False, False]])
    np.testing.assert_allclose(
        losses.cross_entropy(logits, target, jnp.zeros(2), where=where), [truth[0, [0, 2]].mean(), 0.0], rtol=1e-5
    )
    with pytest.raises(ValueError, match="vocab"):
        losses.cross_entropy(logits[..., 0], target, jnp.zeros(2))


def test_what_is_left_out_leaves_no_trace_in_gradients():
    kept, junk = jnp.array([[False, True]]), jnp.array([[jnp.nan, 1.0]])
    slope = jax.grad(lambda h: losses.mean_error(h, junk, jnp.zeros(1), where=kept).sum())(jnp.zeros((1, 2)))
    np.testing.assert_array_equal(slope, [[0.0, -2.0]])
    q = jnp.array([[[1.0, 0, 0, 0], [0.6, 0.8, 0, 0]]])
    bad = q.at[0, 0].set(jnp.nan)
    slope = jax.grad(lambda h: losses.rotation_error(h, bad, jnp.zeros(1), where=kept).sum())(q)
    assert np.isfinite(slope).all()
    slope = jax.grad(lambda h: losses.cross_entropy(h, jnp.zeros((1, 2), int), jnp.zeros(1), where=kept).sum())(
        jnp.full((1, 2, 3), jnp.nan).at[0, 1].set(0.0)
    )
    np.testing.assert_allclose(slope[0], [[0, 0, 0], [-2 / 3, 1 / 3, 1 / 3]], rtol=1e-6)


def test_scales_grow_with_time_from_a_floor():
    t = jnp.linspace(0.0, 1.0, 11)
    for scale in (losses.gaussian_scale, losses.angle_scale, losses.rotation_scale, losses.symbol_scale):
        value = scale(t, schedules.cosine())
        assert (np.diff(value) >= 0).all()
        np.testing.assert_allclose(value[0], 0.01, rtol=1e-6)
        assert np.isfinite(jax.vmap(jax.grad(lambda t, scale=scale: scale(t, schedules.cosine())))(t)).all()
    # The formulas of Diffusions.jl; its rotations' variance counts half angles.
    sigma = 0.7
    noise = lambda t: (jnp.float32(0.8), jnp.float32(sigma))
    np.testing.assert_allclose(losses.angle_scale(0.5, noise), 2 * np.sqrt(1 - np.exp(-(sigma**2) / 8)), rtol=1e-6)
    np.testing.assert_allclose(losses.rotation_scale(0.5, noise), np.sqrt(1 - np.exp(-5 * sigma**2 / 4)), rtol=1e-6)
    np.testing.assert_allclose(losses.symbol_scale(0.5, noise), np.sqrt(0.2), rtol=1e-6)


# -------------------------------------------------------------------------------------------------- score matching

SPACES = {
    "box": (cube.process, [[0.0, 0.4, 0.9], [0.8, 0.5, 1.0]], lambda x: x),
    "torus": (torus.process, [[0.0, 3.0, -1.0], [1.0, -3.0, 2.0]], lambda x: x),
    "vectors": (gaussian.process, [[0.0, 3.0, -1.0], [1.0, -3.0, 2.0]], lambda x: x),
    "rotations": (
        so3.process,
        [[[1, 0, 0, 0], [0.6, 0, 0.8, 0]], [[0, 0.6, 0, 0.8], [0, 0, 1, 0]]],
        lambda x: x[..., :1] * x[..., 1:],
    ),
}


@pytest.mark.parametrize(
    "space",
    [
        "box",
        "rotations",
        pytest.param("torus", marks=pytest.mark.slow),
        pytest.param("vectors", marks=pytest.mark.slow),
    ],
)
def test_the_score_of_noisy_data_is_what_score_matching_finds(space):
    # Two points, equally likely: their score at t is the posterior mean of theirs. Adding entries +-1 that depend on x_t costs 1 an entry, the cross
    # term being 0 on average; a false alarm for 1 seed in 15,000.
    make, points, feature = SPACES[space]
    schedule, n = schedules.ve(0.1, 2.0), 40_000
    process = make(schedule)
    points = jnp.asarray(points, jnp.float32)
    x0 = jnp.repeat(points, n // 2, axis=0)
    t = schedules.stratified_draw(jax.random.key(1), jax.random.permutation(jax.random.key(2), n), n)

    def exact(x, t):
        each = [
            (process.log_prob(p, x, t), process.score(p, x, t))
            for p in (jnp.broadcast_to(p[None], x.shape) for p in points)
        ]
        share = expand_right(jax.nn.sigmoid(each[0][0] - each[1][0]), each[0][1])
        return share * each[0][1] + (1 - share) * each[1][1]

    moved = lambda x, t: exact(x, t) + jnp.sign(jnp.sin(5 * feature(x)))
    weight = losses.variance(schedule)
    loss = lambda score: losses.score_matching(jax.random.key(0), score, x0, t, process=process, weight=weight)
    more = np.asarray(jax.jit(lambda: (loss(moved) - loss(exact)) / weight(t))())
    assert more.shape == (n,)
    # At little noise a point's score is large: weighed by sigma, all times say as much.
    sigma = np.asarray(schedule(t)[1])
    terms = (more - 1) * sigma
    assert np.abs(terms).max() > 0.1
    assert abs(terms.mean()) < 4 * terms.std() / np.sqrt(n)


def test_weights_of_scores():
    schedule, t = schedules.ve(0.01, 5.0), jnp.array([0.1, 0.7])
    x0 = jnp.full((2, 3), 0.2)
    loss = lambda weight: losses.score_matching(
        jax.random.key(0), lambda x, t: x, x0, t, process=cube.process(schedule), weight=weight
    )
    sigma = 0.01 * 500 ** np.array([0.1, 0.7])
    np.testing.assert_allclose(loss(losses.variance(schedule)), loss(None) * sigma**2, rtol=1e-5)
    # d sigma^2 / dt = 2 log(500) sigma^2
    np.testing.assert_allclose(loss(losses.diffusion(schedule)), loss(None) * 2 * np.log(500) * sigma**2, rtol=1e-5)


@pytest.mark.parametrize("least", [1e-6, 1e-12])
def test_score_matching_is_finite_at_little_noise(least):
    schedule = schedules.ve(least, 3.0)
    x0 = jnp.asarray([[0.0, 0.3, 1.0]], jnp.bfloat16)

    def loss(scale, t):
        score = lambda x, t: cube.scaled_score(scale * x, x, schedule(t)[1], walls=True)
        settings = {"process": cube.process(schedule), "weight": losses.diffusion(schedule)}
        return losses.score_matching(jax.random.key(0), score, x0, t, **settings)[0]

    value, slope = jax.jit(jax.value_and_grad(loss))(0.5, jnp.zeros(1))
    assert value.dtype == jnp.float32
    assert np.isfinite([value, slope]).all()
    assert value < 1e3  # below the smallest sigma of the kernels nothing is noised


def test_scores_that_are_masked_do_not_count():
    process, t = so3.process(schedules.ve(0.1, 2.0)), jnp.array([0.5, 0.5])
    q = jnp.broadcast_to(jnp.array([1.0, 0, 0, 0]), (2, 3, 4))
    mask = jnp.array([[True, False, True], [False, True, True]])
    junk = lambda x, t: jnp.where(mask[..., None], 0.0, jnp.nan) + jnp.zeros((2, 3, 3))
    loss = lambda score: losses.score_matching(jax.random.key(0), score, q, t, process=process, where=mask)
    np.testing.assert_array_equal(loss(junk), loss(lambda x, t: jnp.zeros((2, 3, 3))))
