"""Conversions among x0, eps, v, flow and score: each against its definition from a known (x0, eps), and at both ends."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import schedules
from diffjax.processes import gaussian, predictions

SCHEDULES = {
    "vp_linear": schedules.vp_linear(),
    "cosine": schedules.cosine(),
    "rectified": schedules.rectified(),
    "karras": schedules.karras(),
}
KINDS = {k: getattr(predictions, k) for k in ("x0", "eps", "v", "flow", "score")}


def definitions(x0, eps, t, schedule):
    """The five predictions from what they are made of; the velocity by differentiating the path."""
    alpha, sigma = schedule(t)
    path = lambda u: schedule(u)[0] * x0 + schedule(u)[1] * eps
    return {
        "x0": x0,
        "eps": eps,
        "v": alpha * eps - sigma * x0,
        "flow": jax.jvp(path, (t,), (jnp.ones_like(t),))[1],
        "score": jax.grad(lambda x: gaussian.log_prob(x0, x, t, schedule=schedule).sum())(path(t)),
    }, path(t)


@pytest.mark.parametrize("name", SCHEDULES)
def test_any_prediction_becomes_any_other(name):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x0, eps = (jnp.asarray(rng.normal(size=(1,))) for _ in range(2))
        for t in (0.03, 0.4, 0.97):
            values, xt = definitions(x0, eps, jnp.asarray([t]), SCHEDULES[name])
            for a, b in itertools.product(KINDS, KINDS):
                out = predictions.convert(values[a], xt, t, source=KINDS[a], target=KINDS[b], schedule=SCHEDULES[name])
                np.testing.assert_allclose(out, values[b], rtol=1e-6, atol=1e-9, err_msg=f"{a} to {b} at {t}")


@pytest.mark.parametrize("name", SCHEDULES)
def test_conversions_and_their_gradients_are_finite_at_both_ends(name):
    x = jnp.array([[0.5, -1.0], [2.0, 0.1]])
    t = jnp.array([0.0, 1.0])
    for a, b in itertools.product(KINDS.values(), KINDS.values()):
        f = lambda y, x, a=a, b=b: predictions.convert(y, x, t, source=a, target=b, schedule=SCHEDULES[name])
        assert np.isfinite(f(x, x)).all()
        for g in jax.grad(lambda y, x, f=f: f(y, x).sum(), argnums=(0, 1))(x, x):
            assert np.isfinite(g).all()


def test_what_is_known_at_the_ends_is_kept():
    x, y = jnp.array([[0.5, -1.0]]), jnp.array([[2.0, 0.3]])
    cosine = schedules.cosine()
    # Pure noise: v = -x_0, and eps says nothing about x_0. Clean data: x_t is x_0, and v is eps.
    np.testing.assert_allclose(predictions.to_x0(y, x, 1.0, kind=predictions.v, schedule=cosine), -y, rtol=1e-6)
    np.testing.assert_array_equal(predictions.to_x0(y, x, 1.0, kind=predictions.eps, schedule=cosine), 0)
    np.testing.assert_allclose(predictions.to_x0(y, x, 0.0, kind=predictions.eps, schedule=cosine), x, rtol=1e-6)
    np.testing.assert_allclose(predictions.to_x0(y, x, 0.0, kind=predictions.flow, schedule=cosine), x, rtol=1e-5)


def test_named_functions_are_the_cases():
    rng = np.random.default_rng(1)
    x0, eps = (jnp.asarray(rng.normal(size=(5, 3)), jnp.float32) for _ in range(2))
    t = jnp.linspace(0.1, 0.9, 5)
    s = schedules.cosine()
    alpha, sigma = s(t)
    rates = schedules.rates(t, schedule=s)
    a, b = alpha[:, None], sigma[:, None]
    xt, v, u = a * x0 + b * eps, a * eps - b * x0, rates[0][:, None] * x0 + rates[1][:, None] * eps
    p = predictions
    for ours, truth in [
        (p.x0_to_eps(x0, xt, alpha, sigma), eps),
        (p.eps_to_x0(eps, xt, alpha, sigma), x0),
        (p.v_to_x0(v, xt, alpha, sigma), x0),
        (p.v_to_eps(v, xt, alpha, sigma), eps),
        (p.x0_to_v(x0, xt, alpha, sigma), v),
        (p.eps_to_v(eps, xt, alpha, sigma), v),
        (p.eps_to_score(eps, sigma), -eps / b),
        (p.score_to_eps(-eps / b, sigma), eps),
        (p.x0_to_score(x0, xt, alpha, sigma), -eps / b),
        (p.score_to_x0(-eps / b, xt, alpha, sigma), x0),
        (p.x0_to_flow(x0, xt, alpha, sigma, *rates), u),
        (p.flow_to_x0(u, xt, alpha, sigma, *rates), x0),
    ]:
        np.testing.assert_allclose(ours, truth, rtol=3e-5, atol=3e-5)
        assert ours.dtype == jnp.float32
    assert p.v_to_x0(v.astype(jnp.bfloat16), xt.astype(jnp.bfloat16), alpha, sigma).dtype == jnp.bfloat16


def test_edm_gives_unit_variance_input_and_target_for_any_schedule():
    # Exact moments: x_0 ~ N(0, c^2); input c_in x_t and target (x_0 - c_skip x_t) / c_out have variance 1, and the target is
    # uncorrelated with x_t (which is what makes c_out smallest).
    c = 0.7
    for schedule in SCHEDULES.values():
        alpha, sigma = schedule(jnp.linspace(0.02, 0.99, 30))
        skip, out, c_in = predictions.edm_coefficients(alpha, sigma, sigma_data=c)
        variance = alpha**2 * c**2 + sigma**2
        np.testing.assert_allclose(c_in**2 * variance, 1, rtol=1e-5)
        np.testing.assert_allclose(((1 - skip * alpha) ** 2 * c**2 + skip**2 * sigma**2) / out**2, 1, rtol=2e-3)
        np.testing.assert_allclose(alpha * c**2 - skip * variance, 0, atol=1e-5)
    model = predictions.edm(lambda x, t: 0 * x, schedule=schedules.cosine(), sigma_data=c)
    np.testing.assert_allclose(model(jnp.ones((2, 3)), jnp.array([0.0, 1.0])), [[1.0] * 3, [0.0] * 3], atol=1e-6)
