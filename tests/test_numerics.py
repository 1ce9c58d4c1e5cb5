"""The conventions every formula leans on: shapes of times, keys, safe roots and quotients, divergence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import numerics


def test_safe_divide_and_sqrt_have_finite_derivatives_of_every_order_at_zero():
    x = jnp.array([0.0, 2.0])
    quotient = lambda a, b: numerics.safe_divide(a, b).sum()
    for order in (0, 1):
        assert np.isfinite(jax.grad(quotient, argnums=order)(x, x)).all()
    assert np.isfinite(jax.hessian(lambda b: quotient(jnp.ones(2), b))(x)).all()
    root = lambda v: numerics.safe_sqrt(v).sum()
    assert np.isfinite(jax.grad(root)(x)).all()
    # Away from 0 all derivatives are the square root's: a rule that forgot itself would be wrong at second order.
    np.testing.assert_allclose(jax.grad(jax.grad(numerics.safe_sqrt))(4.0), -1 / 32, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(jax.grad(jax.grad(numerics.safe_sqrt)))(4.0), 3 / 256, rtol=1e-6)


def test_an_array_of_keys_serves_each_example_alone():
    keys = jax.random.split(jax.random.key(0), 6)
    for draw in (numerics.normal, numerics.uniform):
        whole = draw(keys, (6, 3))
        np.testing.assert_array_equal(whole[4], draw(keys[4], (3,)))
        np.testing.assert_array_equal(whole[2:4], draw(keys[2:4], (2, 3)))
    first, second = numerics.split(keys)
    a, b = numerics.split(keys[3])
    assert (jax.random.key_data(first[3]) == jax.random.key_data(a)).all()
    assert (jax.random.key_data(second[3]) == jax.random.key_data(b)).all()
    assert (
        jax.random.key_data(numerics.fold_in(keys, 7)[1]) == jax.random.key_data(jax.random.fold_in(keys[1], 7))
    ).all()
    raw = jax.random.PRNGKey(5)
    np.testing.assert_array_equal(numerics.normal(raw, (2,)), jax.random.normal(jax.random.key(5), (2,)))
    with pytest.raises(TypeError, match="expected a key"):
        numerics.as_keys(jnp.ones(2))


@pytest.mark.parametrize(
    ("draw", "reference"), [(numerics.normal, jax.random.normal), (numerics.uniform, jax.random.uniform)]
)
def test_draws_are_those_of_jax_random(draw, reference):
    # The same bits; the last digits of an inverse error function are the compiler's choice.
    same = np.testing.assert_array_equal if draw is numerics.uniform else np.testing.assert_array_almost_equal_nulp
    nulp = {} if draw is numerics.uniform else {"nulp": 4}
    for seed in (0, 1, 2**31 - 1):
        key = jax.random.key(seed)
        for shape in ((), (1,), (3, 0), (257, 3), (40_000,), (70_000,)):
            same(np.asarray(draw(key, shape)), np.asarray(reference(key, shape)), **nulp)
            assert draw(key, shape).shape == shape
    keys = jax.random.split(jax.random.key(7), 5)
    theirs = jax.vmap(lambda key: reference(key, (4,)))(keys)
    same(np.asarray(jax.jit(lambda keys: draw(keys, (5, 4)))(keys)), np.asarray(theirs), **nulp)
    for key, dtype in ((jax.random.key(1, impl="rbg"), jnp.float32), (jax.random.key(1), jnp.bfloat16)):
        np.testing.assert_array_equal(draw(key, (6,), dtype), reference(key, (6,), dtype))
    with jax.threefry_partitionable(False):  # another way to number the entries
        np.testing.assert_array_equal(draw(jax.random.key(1), (6,)), reference(jax.random.key(1), (6,)))


def test_divergence_is_the_trace_of_the_jacobian_and_hutchinson_estimates_it():
    a = jnp.asarray(np.random.default_rng(0).normal(size=(6, 6)), jnp.float32)
    f = lambda x: jnp.tanh(a @ x.reshape(-1)).reshape(2, 3)
    x = jnp.linspace(-1.0, 1.0, 6).reshape(2, 3)
    truth = jnp.trace(jax.jacobian(lambda v: f(v.reshape(2, 3)).reshape(-1))(x.reshape(-1)))
    np.testing.assert_allclose(numerics.divergence(f, x), truth, rtol=1e-5)
    estimates = jax.jit(jax.vmap(lambda k: numerics.hutchinson(k, f, x)))(jax.random.split(jax.random.key(0), 4000))
    z = (estimates.mean() - truth) / (estimates.std() / np.sqrt(4000))
    assert abs(float(z)) < 5  # by chance once in 2 million
    averaged = jax.jit(jax.vmap(lambda k: numerics.hutchinson(k, f, x, probes=16)))(
        jax.random.split(jax.random.key(1), 500)
    )
    assert 0.15 < averaged.std() / estimates.std() < 0.35


def test_precision_is_widened_once():
    half = jnp.ones(2, jnp.bfloat16)
    assert numerics.compute_dtype(half) == jnp.float32
    assert numerics.compute_dtype(half, 0.5) == jnp.float32
    assert numerics.compute_dtype(np.float64(1.0)) == jnp.float32  # x64 is off: NumPy's doubles do not widen
    with jax.enable_x64(True):
        assert numerics.compute_dtype(0.5) == jnp.float64
        assert numerics.compute_dtype(jnp.ones(2, jnp.float32), 0.5) == jnp.float32


def test_tree_keys_are_distinct_and_a_single_leaf_keeps_its_key():
    key = jax.random.key(0)
    assert (jax.random.key_data(numerics.tree_keys(key, {"a": 0})["a"]) == jax.random.key_data(key)).all()
    keys = jax.tree.leaves(numerics.tree_keys(key, {"a": (1, 2), "b": 3}))
    assert len({tuple(np.asarray(jax.random.key_data(k)).tolist()) for k in keys}) == 3
