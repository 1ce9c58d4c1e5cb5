"""Guesses as mixtures of kernels: densities that integrate to one, draws that follow them, and data sets with the laws they claim."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import networks, samplers, schedules
from experiments import crystals, mixed, spaces


@pytest.fixture(scope="module", autouse=True)
def _default_promotion():
    # Programs run under JAX's defaults; the strictness of conftest is for the library.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def network(outputs):
    return networks.MLP(features=(16, 16), outputs=outputs)


@pytest.mark.parametrize("t", [0.02, 0.4, 1.0])
def test_densities_of_a_guess_integrate_to_one(t):
    raw = jax.random.normal(jax.random.key(0), (1, 1, 6))
    time = jnp.array([t])
    line = spaces.vector(1)
    x = jnp.linspace(-60.0, 60.0, 400_001)
    p = jax.vmap(lambda v: line.log_density(raw[..., :2], jnp.array([[0.3]]), time, v[None, None])[0, 0])(x)
    np.testing.assert_allclose(np.sum(np.exp(np.asarray(p, np.float64))) * 120 / 400_000, 1, rtol=1e-3)
    circle = spaces.angles(1)
    x = jnp.linspace(-jnp.pi, jnp.pi, 100_001)[:-1]
    p = jax.vmap(lambda v: circle.log_density(raw[..., :3], jnp.array([[0.3]]), time, v[None, None])[0, 0])(x)
    np.testing.assert_allclose(np.sum(np.exp(np.asarray(p, np.float64))) * 2 * np.pi / 100_000, 1, rtol=1e-3)
    words = spaces.symbols(1, 6)
    for seen in (6, 2):  # masked, and there
        p = [words.log_density(raw, jnp.array([[seen]]), time, jnp.array([[k]]))[0, 0] for k in range(6)]
        np.testing.assert_allclose(np.exp(p).sum(), 1, rtol=1e-5)
    assert np.exp(p)[2] > 1 - 1e-6  # a symbol that is there is known


def test_rotations_have_a_density_of_mass_one():
    from diffjax.processes import so3

    space = spaces.rotations(1)
    raw = jax.random.normal(jax.random.key(0), (1, 1, 7))
    xt = so3.exp(jnp.array([[[0.3, -0.2, 0.5]]]))
    n = 200_000
    q = space.process.prior(jax.random.key(1), jax.ShapeDtypeStruct((n, 1, 4), jnp.float32))  # uniform: mean density 1
    p = jnp.exp(jax.vmap(lambda v: space.log_density(raw, xt, jnp.array([0.8]), v[None])[0, 0])(q))
    assert abs(float(p.mean()) - 1) < 5 * float(p.std()) / np.sqrt(n)  # by chance once in 2 million


@pytest.mark.parametrize(
    "space", [spaces.vector(2), spaces.angles(2), spaces.rotations(1)], ids=["vector", "angles", "rotations"]
)
def test_draws_follow_the_density(space):
    # E[-log p] under its own draws is the entropy of the kernel: compare with draws of the same kernel's mean log density computed
    # on an independent half; and a draw scores better than a shifted one.
    raw = jax.random.normal(jax.random.key(3), (1, space.outputs))
    n = 4_000
    xt = space.process.prior(jax.random.key(4), jax.ShapeDtypeStruct((1, *space.event), jnp.float32))
    rows = jnp.broadcast_to(raw, (n, space.outputs))
    many, t = jnp.broadcast_to(xt, (n, *space.event)), jnp.full(n, 0.3)
    x0 = space.draw(jax.random.key(5), rows, many, t)
    score = space.log_density(rows[:, None], many, t, x0)[:, 0]
    other = space.log_density(rows[:, None] + 1.5, many, t, x0)[:, 0]
    assert score.mean() > other.mean()
    assert np.isfinite(score).all()


def test_parts_held_clean_stay_and_a_guess_keeps_what_is_known():
    parts = {"a": spaces.vector(2), "s": spaces.symbols(2, 5)}
    model = spaces.mixture(parts, network, components=3)
    params = model.init(jax.random.key(0))
    n = 16
    x0 = {"a": jnp.ones((n, 2)), "s": jnp.full((n, 2), 3)}
    process = spaces.holding(model, ["s"], n)
    x1 = process.prior(jax.random.key(1), x0)
    grid = schedules.times(4)
    clocks = {"a": grid, "s": jnp.zeros_like(grid)}
    x = samplers.bridge.sample(
        jax.random.key(2), lambda k, x, t: model.guess(params, k, x, t), x1, clocks, process=process
    )
    np.testing.assert_array_equal(x["s"], 3)
    assert (np.asarray(x["a"]) != 1).any()


def test_loss_has_finite_gradients_for_every_space():
    parts = {"a": spaces.vector(2), "b": spaces.angles(3), "c": spaces.rotations(2), "d": spaces.symbols(2, 5)}
    model = spaces.mixture(parts, network, components=3, own_times=0.3, held=0.3)
    params = model.init(jax.random.key(0))
    n = 64
    like = {k: jax.ShapeDtypeStruct((n, *s.event), s.dtype) for k, s in parts.items()}
    x0 = model.process.prior(jax.random.key(1), like)
    x0["d"] = jnp.zeros((n, 2), jnp.int32)
    loss = lambda p, key: model.loss(p, key, jnp.arange(n), {"x0": x0}, n).mean()
    value, gradient = jax.jit(jax.value_and_grad(loss))(params, jax.random.key(2))
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


# --------------------------------------------------------------------------------------------------------- data sets


@pytest.fixture(scope="module")
def twin():
    return crystals.crystals()


def test_the_synthetic_cells_obey_the_laws_and_marginals_do_not(twin):
    real, alone = twin.figures(twin.test), twin.figures(mixed.independent(twin.train, 1500))
    assert real["valid_triples"] == 1
    assert real["lattice_r2"] > 0.9
    assert real["masks"] == 0
    assert alone["valid_triples"] < 0.95  # letters of the right sites, in the wrong company
    assert alone["lattice_r2"] < 0.3
    for triple in crystals.TRIPLES:
        assert abs(real[f"distorted_{triple}"] - twin.figures(twin.train)[f"distorted_{triple}"]) < 0.12
    train = {tuple(e) for e in twin.train["elements"]}
    assert not train & {tuple(e) for e in twin.test["elements"]}


def test_a_cell_is_distorted_past_a_twentieth():
    at = np.broadcast_to(crystals.IDEAL, (3, 5, 3)).copy()
    at[1, 2, 0] += 0.06
    at[2, 3, 1] -= 0.04
    angles = (2 * np.pi * at + np.pi) % (2 * np.pi) - np.pi
    np.testing.assert_array_equal(crystals.distorted(angles.reshape(3, 15)), [False, True, False])


def test_proteins_split_by_chain():
    data = mixed.torsions()
    assert mixed.size(data.train) + mixed.size(data.test) == 5001
    assert np.abs(data.train["angles"]).max() <= np.float32(np.pi)
    turns = mixed.rotations()
    np.testing.assert_allclose(np.linalg.norm(turns.train["rotations"], axis=-1), 1, atol=1e-6)


def test_toys_say_what_they_claim():
    toy = mixed.joint()
    assert all(v > 0.99 for v in toy.figures(toy.test).values())
    assert all(v < 0.3 for v in toy.figures(mixed.independent(toy.train, 4000)).values())
    words = mixed.symbols()
    assert words.figures(words.test)["total_variation"] < 0.05
    assert words.figures(mixed.independent(words.train, 10_000))["total_variation"] > 0.3
    pair = mixed.correlated()
    assert abs(pair.figures(pair.test)["narrow_std"] - 1) < 0.05


def test_measures_notice_a_broken_part():
    toy = mixed.joint()
    good = mixed.rows(toy.train, np.arange(3000))
    bad = {**good, "symbol": np.roll(good["symbol"], 1, axis=0)}
    assert mixed.measure(toy, good)["position_agrees"]["value"] > 0.99
    report = mixed.measure(toy, bad)
    assert report["position_agrees"]["value"] < 0.4
    assert report["energy_distance"]["value"] > 10 * abs(report["energy_distance"]["floor"][0])


def test_a_missing_file_is_one_clear_line(tmp_path):
    from experiments import UserError

    with pytest.raises(UserError, match="synthetic twin"):
        crystals.crystals(str(tmp_path))
