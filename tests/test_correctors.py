"""Solvers with steps in between: counted calls, closed-form variances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import schedules
from diffjax.samplers import correctors, gaussian

SCHEDULE = schedules.cosine()


def counting(calls):
    """E[x_0 | x_t] of N(0, 1) data, which notes each call at run time."""

    def predict(x, t):
        jax.debug.callback(lambda: calls.append(1))
        return SCHEDULE(t)[0] * x

    return predict


@pytest.mark.parametrize(
    ("solver", "expected"),
    [(correctors.resampled(gaussian.ancestral(), 3), 12), (correctors.corrected(gaussian.ddim(), steps=2), 4 + 2 * 3)],
)
def test_each_call_of_the_model_is_one_that_was_asked_for(solver, expected):
    calls = []
    run = lambda k, x: gaussian.sample(k, counting(calls), x, schedules.times(4), schedule=SCHEDULE, solver=solver)
    jax.block_until_ready(jax.jit(run)(jax.random.key(0), jnp.ones((2, 1))))
    jax.effects_barrier()
    assert len(calls) == expected  # no Langevin step at sigma = 0


def test_resampled_steps_have_the_variance_of_their_recursion():
    # One step from t to s and the way back, on N(0, 1) data with the posterior mean: linear in x with closed-form coefficients.
    times, rounds = jnp.array([0.8, 0.5]), 4
    solver = correctors.resampled(gaussian.ancestral(), rounds)
    predict = lambda x, t: SCHEDULE(t)[0] * x
    x = 1.3 * jax.random.normal(jax.random.key(0), (200_000,))
    end = jax.jit(lambda k, x: gaussian.sample(k, predict, x, times, schedule=SCHEDULE, solver=solver))(
        jax.random.key(1), x
    )
    (alpha_t, sigma_t), (alpha_s, sigma_s) = ([float(v) for v in SCHEDULE(t)] for t in (0.8, 0.5))
    a, r = alpha_t / alpha_s, (alpha_t * sigma_s / (alpha_s * sigma_t)) ** 2
    slope = alpha_s * (1 - r) * alpha_t + a * (sigma_s / sigma_t) ** 2  # the bridge's mean with x0_hat = alpha_t x
    down = lambda v: slope**2 * v + sigma_s**2 * (1 - r)
    variance = 1.3**2
    for _ in range(rounds - 1):
        variance = a**2 * down(variance) + sigma_t**2 - a**2 * sigma_s**2
    assert abs(float(end.var()) / down(variance) - 1) < 0.015  # s.e. .0032


@pytest.mark.slow
def test_correctors_mend_the_variance_of_coarse_steps():
    # Ancestral steps with a point estimate narrow N(0, 1) data; Langevin steps at each level pull it back.
    x1 = jax.random.normal(jax.random.key(0), (50_000, 1))
    predict = lambda x, t: SCHEDULE(t)[0] * x
    times = schedules.times(8, stop=0.05)
    variances = []
    for solver in (gaussian.ancestral(), correctors.corrected(gaussian.ancestral(), ratio=0.1, steps=20)):
        run = lambda k, x, solver=solver: gaussian.sample(k, predict, x, times, schedule=SCHEDULE, solver=solver)
        variances.append(float(jax.jit(run)(jax.random.key(1), x1).var()))
    assert variances[0] < 0.93
    assert abs(variances[1] - 1) < 0.04


def test_a_corrected_sample_does_not_depend_on_its_company():
    keys, x1 = jax.random.split(jax.random.key(0), 4), jax.random.normal(jax.random.key(1), (4, 3))
    solver = correctors.resampled(correctors.corrected(gaussian.ancestral()), 2)
    predict = lambda x, t: SCHEDULE(t)[0] * x
    run = jax.jit(lambda k, x: gaussian.sample(k, predict, x, schedules.times(3), schedule=SCHEDULE, solver=solver))
    np.testing.assert_allclose(run(keys, x1)[1:3], run(keys[1:3], x1[1:3]), rtol=1e-6)


def test_no_rounds_are_refused():
    with pytest.raises(ValueError, match="rounds=0"):
        correctors.resampled(gaussian.ancestral(), 0)
    solver = gaussian.ancestral()
    assert correctors.resampled(solver, 1) is solver
