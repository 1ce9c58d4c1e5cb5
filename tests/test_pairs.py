"""Floats in pairs against wider arithmetic, and the normal density they make."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from diffjax import pairs


def test_sums_and_products_in_two_parts_lose_nothing():
    rng = np.random.default_rng(0)
    a, b = (np.float32(rng.normal(size=5000) * 10 ** rng.uniform(-6, 6, 5000)) for _ in range(2))
    for two, exact, digits in ((pairs.two_sum, np.add, 64), (pairs.pair_product, np.multiply, 46)):
        for run in (two, jax.jit(two)):
            high, low = run(jnp.asarray(a), jnp.asarray(b))
            whole = np.asarray(high, np.longdouble) + np.asarray(low, np.longdouble)
            truth = exact(a.astype(np.longdouble), b.astype(np.longdouble))
            assert (np.abs(whole - truth) <= 2.0**-digits * np.abs(truth)).all()
            assert (np.abs(np.asarray(low)) <= 2.0**-21 * np.abs(np.asarray(high))).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_normal_density_has_its_digits_where_its_terms_cancel(dtype):
    rng = np.random.default_rng(1)
    sigma = (10 ** rng.uniform(-6, 3, 4000)).astype(dtype)
    z = np.where(rng.random(4000) < 0.5, np.sqrt(np.maximum(0, -2 * np.log(sigma * 2.5))), rng.uniform(-30, 30, 4000))
    x = (sigma * (z + rng.normal(size=4000) * 0.1)).astype(dtype)
    lost = (x * rng.uniform(-1, 1, 4000) * np.finfo(dtype).eps / 2).astype(dtype)
    with mpmath.workdps(40), jax.enable_x64(dtype == np.float64):
        rows = [[mpmath.mpf(float(v)) for v in row] for row in zip(x, lost, sigma, strict=True)]
        truth = np.array([-(((a + b) / s) ** 2) / 2 - mpmath.log(s * mpmath.sqrt(2 * mpmath.pi)) for a, b, s in rows])
        args = [jnp.asarray(v) for v in (x, lost, sigma)]
        for ours in (pairs.log_normal(*args), jax.jit(pairs.log_normal)(*args)):
            error = np.array(
                [abs(a - b) / max(1, abs(b)) for a, b in zip(np.asarray(ours).tolist(), truth, strict=True)]
            )
            assert error.max() < 3 * np.finfo(dtype).eps
        slopes = jax.vmap(jax.grad(pairs.log_normal, argnums=(0, 2)))(*args)
        np.testing.assert_allclose(slopes[0] * sigma, -x / sigma, rtol=20 * np.finfo(dtype).eps)
        np.testing.assert_allclose(
            slopes[1] * sigma, (x / sigma) ** 2 - 1, rtol=1e-5 if dtype == np.float32 else 1e-12, atol=1e-5
        )
