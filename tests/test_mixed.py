"""Guesses as mixtures of kernels: densities that integrate to one, draws that follow them, and data sets with the laws they claim."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import experiments
from diffjax import networks, samplers, schedules
from experiments import (
    UserError,
    build,
    configs,
    crystals,
    data,
    evaluate,
    mixed,
    mixtures,
    plots,
    sample,
    spaces,
    train,
    walks,
)


@pytest.fixture(scope="module", autouse=True)
def _default_promotion():
    # Programs run under JAX's defaults; the strictness of conftest is for the library.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def network(outputs):
    return networks.MLP(features=(16, 16), outputs=outputs)


def law(space, raw, xt):
    """Density of one part at points `[n, *event]` and time t, and draws of it, compiled once for all times."""
    density = lambda x, t: jax.vmap(lambda v: space.log_density(raw[:, None], xt, t[None], v[None])[0, 0])(x)
    many = lambda value, n: jnp.broadcast_to(value, (n, *value.shape[1:]))
    draw = lambda key, n, t: space.draw(key, many(raw, n), many(xt, n), jnp.full(n, t))
    return jax.jit(density), jax.jit(draw, static_argnums=1)


@pytest.mark.parametrize(
    ("space", "reach"), [(spaces.vector(1), 12.0), (spaces.angles(1), np.pi)], ids=["vector", "angles"]
)
def test_draws_follow_densities_of_mass_one(space, reach):
    density, draw = law(space, jax.random.normal(jax.random.key(0), (1, space.outputs)), jnp.array([[0.3]]))
    edges = np.linspace(-reach, reach, 200_001)
    for t in (0.02, 0.4, 1.0):
        middles = jnp.asarray((edges[1:] + edges[:-1]) / 2, jnp.float32)[:, None]
        mass = np.exp(np.asarray(density(middles, jnp.float32(t)), np.float64)) * (edges[1] - edges[0])
        np.testing.assert_allclose(mass.sum(), 1, rtol=1e-3)
        x = np.sort(np.asarray(draw(jax.random.key(1), 20_000, t)[:, 0], np.float64))
        below = np.interp(x, edges, np.concatenate([[0], np.cumsum(mass)]))
        assert np.abs(below - (np.arange(20_000) + 0.5) / 20_000).max() < 0.02  # by chance once in 4 million


def test_shares_have_densities_of_mass_one_and_draws_that_follow_them():
    # Of two shares one tells all: the density is over p_1, in [0, 1].
    space = spaces.shares(2)
    seen = jnp.array([[0.15, 0.85]])
    density, draw = law(space, jnp.array([[0.8, -1.5]]), seen)
    p = (np.arange(20_000) + 0.5) / 20_000
    for t in (0.02, 0.5, 1.0):
        pairs = jnp.asarray(np.stack([p, 1 - p], 1), jnp.float32)
        mass = np.exp(np.asarray(density(pairs, jnp.float32(t)), np.float64)) / len(p)
        np.testing.assert_allclose(mass.sum(), 1, rtol=1e-3)
        x = np.sort(np.asarray(draw(jax.random.key(1), 20_000, t)[:, 0], np.float64))
        below = np.interp(x, p, np.cumsum(mass))
        assert np.abs(below - (np.arange(20_000) + 0.5) / 20_000).max() < 0.02  # by chance once in 4 million


def test_corners_are_weighed_by_bayes_rule():
    space, t = spaces.corners(2, 3), jnp.array([0.45])
    raw = jax.random.normal(jax.random.key(0), (1, 1, 6))
    words = [(i, j) for i in range(3) for j in range(3)]
    corner = lambda word: jnp.eye(3)[jnp.array(word)][None]
    xt = space.process.corrupt(jax.random.key(1), corner((0, 2)), t)
    density, log_kernel = jax.jit(space.log_density), jax.jit(space.process.log_prob)
    ours = jnp.stack([density(raw, xt, t, corner(word))[0, 0] for word in words])
    prior = [raw[0, 0, i] + raw[0, 0, 3 + j] for i, j in words]
    told = [log_kernel(corner(word), xt, t)[0] for word in words]
    np.testing.assert_allclose(ours, jax.nn.log_softmax(jnp.stack(prior) + jnp.stack(told)), atol=1e-5)
    drawn = space.draw(jax.random.key(2), raw[:, 0], xt, t)
    np.testing.assert_array_equal(np.sort(drawn, -1), np.broadcast_to([0, 0, 1], (1, 2, 3)))


def test_a_symbol_that_is_there_is_known():
    words = spaces.symbols(1, 6)
    raw = jax.random.normal(jax.random.key(0), (1, 1, 6))
    for seen in (6, 2):  # masked, and there
        p = [words.log_density(raw, jnp.array([[seen]]), jnp.array([0.4]), jnp.array([[k]]))[0, 0] for k in range(6)]
        np.testing.assert_allclose(np.exp(p).sum(), 1, rtol=1e-5)
    assert np.exp(p)[2] > 1 - 1e-6


@pytest.mark.slow
def test_rotations_are_drawn_from_a_density_of_mass_one():
    from diffjax.processes import so3

    space, n = spaces.rotations(1), 100_000
    xt = so3.exp(jnp.array([[[0.3, -0.2, 0.5]]]))
    density, draw = law(space, jax.random.normal(jax.random.key(0), (1, 7)), xt)
    t = jnp.float32(0.8)
    uniform = space.process.prior(jax.random.key(1), jax.ShapeDtypeStruct((n, 1, 4), jnp.float32))  # of mean density 1
    log_p, drawn = density(uniform, t), density(draw(jax.random.key(2), n, t), t)
    p = jnp.exp(log_p)
    assert abs(float(p.mean()) - 1) < 5 * float(p.std()) / np.sqrt(n)  # by chance once in 2 million
    # Entropy twice: an integral over all rotations, and the mean over draws.
    gap = float((p * log_p).mean() - drawn.mean())
    assert abs(gap) < 5 * np.hypot((p * log_p).std(), drawn.std()) / np.sqrt(n)


def test_a_normal_component_is_the_exact_posterior():
    # Two numbers, joint normal with x_t: the conditional law by Schur's complement, in float64.
    space, t = spaces.vector(2), 0.35
    alpha, sigma = (float(v) for v in schedules.cosine()(t))
    mean, scale, below = np.array([0.4, -0.7]), np.array([1.2, 0.3]), -0.9
    root = np.array([[1, 0], [below, 1]]) * np.exp(scale)
    prior = np.linalg.inv(root @ root.T)
    xt, x0 = np.array([0.5, 0.1]), np.array([0.6, -0.4])
    both = alpha**2 * prior + sigma**2 * np.eye(2)
    gain = alpha * prior @ np.linalg.inv(both)
    center, cov = mean + gain @ (xt - alpha * mean), prior - alpha * gain @ prior
    away = x0 - center
    expected = -0.5 * away @ np.linalg.inv(cov) @ away - 0.5 * np.log(np.linalg.det(cov)) - np.log(2 * np.pi)
    raw = jnp.asarray([[[*mean, *scale, below]]], jnp.float32)
    see = lambda v: jnp.asarray(v, jnp.float32)[None]
    ours = float(space.log_density(raw, see(xt), jnp.array([t]), see(x0))[0, 0])
    assert abs(ours - expected) < 0.02  # the floor of the width, a thousandth, is felt a little


def test_directions_add_like_precisions_where_noise_is_small():
    # Between a prior of deviation .1 about .2 and x_t = 0 with noise .1: mean .1, deviation .1 / sqrt 2.
    space = spaces.angles(1)
    t = jnp.log(0.1 / 0.002) / jnp.log(4.0 / 0.002)
    raw = jnp.array([[np.cos(0.2), np.sin(0.2), np.log(100.0)]], jnp.float32)
    _, draw = law(space, raw, jnp.zeros((1, 1)))
    x = np.asarray(draw(jax.random.key(0), 20_000, t), np.float64)
    assert abs(x.mean() - 0.1) < 0.004
    assert abs(x.std() / (0.1 / np.sqrt(2)) - 1) < 0.04


def test_parts_held_clean_stay_and_a_guess_keeps_what_is_known():
    parts = {"a": spaces.vector(2), "s": spaces.symbols(2, 5)}
    model = mixtures.mixture(parts, network, components=3)
    params = model.init(jax.random.key(0))
    n = 16
    x0 = {"a": jnp.ones((n, 2)), "s": jnp.full((n, 2), 3)}
    process = mixtures.holding(model, ["s"], n)
    x1 = process.prior(jax.random.key(1), x0)
    grid = schedules.times(4)
    clocks = {"a": grid, "s": jnp.zeros_like(grid)}
    x = samplers.bridge.sample(
        jax.random.key(2), lambda k, x, t: model.guess(params, k, x, t), x1, clocks, process=process
    )
    np.testing.assert_array_equal(x["s"], 3)
    assert (np.asarray(x["a"]) != 1).any()
    known = model.guess(params, jax.random.key(3), x0, {"a": jnp.array(0.0), "s": jnp.array(1.0)})
    np.testing.assert_array_equal(known["a"], x0["a"])  # not a draw of a narrow law


@pytest.mark.parametrize("turns", [0, pytest.param(1, marks=pytest.mark.slow)])  # heat kernels take long to compile
def test_loss_has_finite_gradients_for_every_space(turns):
    parts = {"a": spaces.vector(2), "b": spaces.angles(3), "d": spaces.symbols(2, 5)}
    parts |= {"e": spaces.shares(4)}
    parts |= {"c": spaces.rotations(1), "f": spaces.corners(2, 3)} if turns else {}
    model = mixtures.mixture(parts, network, components=3, own_times=0.3, held=0.3)
    params = model.init(jax.random.key(0))
    n = 64
    like = {k: jax.ShapeDtypeStruct((n, *s.event), s.dtype) for k, s in parts.items()}
    x0 = model.process.prior(jax.random.key(1), like)
    x0["d"] = jnp.zeros((n, 2), jnp.int32)
    x0["e"] = x0["e"].at[: n // 2].set(jnp.array([0.0, 0.5, 0.5, 0.0]))  # at an edge
    x0 |= {"f": jnp.broadcast_to(jnp.eye(3)[:2], (n, 2, 3))} if turns else {}
    loss = lambda p, key: model.loss(p, key, jnp.arange(n), {"x0": x0}, n).mean()
    value, gradient = jax.jit(jax.value_and_grad(loss))(params, jax.random.key(2))
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


# ------------------------------------------------------------------------------------------------- clocks and held parts

SMALL = [
    "--config.network.features=(16,)",
    "--config.mixture.components=2",
    "--config.batch_size=64",
    "--config.steps=2",
    "--config.sample_every=0",
    "--config.sampler.steps=4",
    "--config.sampler.chunk=32",
    "--config.evaluate.num=64",
]


@pytest.fixture
def small(monkeypatch):
    """A set of three parts that is quick to compile, in place of `joint`: a symbol, an angle near it and a position."""

    def draw(seed):
        rng = np.random.default_rng(seed)
        symbol = rng.integers(0, 5, (400, 1), dtype=np.int32)
        angle = (symbol - 2 + 0.1 * rng.standard_normal((400, 1))).astype(np.float32)
        return {"angle": angle, "position": rng.standard_normal((400, 2)).astype(np.float32), "symbol": symbol}

    toy = mixed.Mixed(
        spaces={"angle": spaces.angles(1), "position": spaces.vector(2), "symbol": spaces.symbols(1, 5)},
        train=draw(0),
        test=draw(1),
        figures=lambda x: {"agrees": float(np.mean(np.rint(x["angle"]) + 2 == x["symbol"]))},
        held=("symbol",),
        picture=lambda samples, real: plots.picture(samples["position"], real["position"]),
    )
    monkeypatch.setitem(data.MIXED, "joint", lambda config: toy)
    return toy


def test_each_part_moves_in_its_own_piece_of_the_walk(small):
    config = configs.override(configs.load("joint"), [*SMALL, "--config.sampler.clocks=symbol=0:.5, angle=.5:1"])
    model = build.experiment(config)
    end, walk = walks.sampler(model, keep_walk=True)(model.init(jax.random.key(0)), 32, seed=0)
    assert (walk["symbol"][:2] == 5).any()  # the mask, at first
    assert (walk["symbol"][2:] < 5).all()
    np.testing.assert_array_equal(walk["symbol"][2:], np.broadcast_to(end["symbol"], (3, 32, 1)))
    np.testing.assert_array_equal(walk["angle"][:3], np.broadcast_to(walk["angle"][0], (3, 32, 1)))
    assert (walk["angle"][3] != walk["angle"][2]).all()
    for i in range(4):  # the part that is not named moves at every step
        assert (walk["position"][i + 1] != walk["position"][i]).all()


@pytest.mark.parametrize(
    ("words", "says"), [("symbl=0:1", "no part 'symbl'"), ("symbol=.5:.5", "from < to"), ("symbol", "part=from:to")]
)
def test_a_mistaken_clock_is_one_clear_line(small, words, says):
    model = build.experiment(configs.override(configs.load("joint"), [*SMALL, f"--config.sampler.clocks={words}"]))
    with pytest.raises(UserError, match=says):
        walks.sampler(model)


def test_held_parts_are_those_of_held_out_examples(small):
    given = mixed.held(small, ["symbol", "angle"], 450)
    assert sorted(given) == ["angle", "symbol"]
    np.testing.assert_array_equal(given["symbol"], np.concatenate([small.test["symbol"], small.test["symbol"][:50]]))
    with pytest.raises(UserError, match="the parts are angle, position, symbol"):
        mixed.held(small, ["angel"], 3)
    with pytest.raises(UserError, match="nothing is left"):
        mixed.held(small, list(small.spaces), 3)


@pytest.mark.slow
def test_programs_hold_parts_at_held_out_values(small, tmp_path, capsys):
    train.main(["--config", "joint", "--workdir", str(tmp_path), *SMALL])
    row = json.loads((tmp_path / "report.json").read_text())["metrics"]["agrees_given_symbol"]
    assert row["floor"][0] > 0.99
    assert row["baselines"]["marginals"] < 0.4
    where = ["--workdir", str(tmp_path), "--num", "40"]
    sample.main([*where, "--hold", "position,symbol", "--clocks", "angle=.25:1"])
    with np.load(tmp_path / "samples.npz") as drawn:
        for name in ("position", "symbol"):
            np.testing.assert_array_equal(drawn[name], small.test[name][:40])
        assert (drawn["angle"] != small.test["angle"][:40]).all()
    evaluate.main([*where, "--hold", "position"])
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["hold"] == ["position"]
    assert report["metrics"]["agrees_given_position"]["value"] < 0.6  # a network that learned nothing
    with pytest.raises(SystemExit):
        experiments.run(lambda: sample.main([*where, "--hold", "angel"]))
    assert "the parts are" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------- data sets


@pytest.fixture(scope="module")
def twin():
    return crystals.crystals()


def test_the_synthetic_cells_obey_the_laws_and_marginals_do_not(twin):
    real, alone = twin.figures(twin.test), twin.figures(mixed.independent(twin.train, 1500))
    assert real["valid_triples"] == 1
    assert real["lattice_r2"] > 0.9
    assert real["masks"] == 0
    assert real["triples_off"] < 0.06
    assert (
        alone["valid_triples"] < 0.88
    )  # letters of the right sites, in the wrong company: .837 by enumeration, +- .010
    assert alone["triples_off"] > 0.25  # and where they are valid, NOO and NNO too often
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
    angles = mixed.torsions()
    assert mixed.size(angles.train) + mixed.size(angles.test) == 5001
    assert np.abs(angles.train["angles"]).max() <= np.float32(np.pi)
    turns = mixed.rotations()
    np.testing.assert_allclose(np.linalg.norm(turns.train["rotations"], axis=-1), 1, atol=1e-6)


def test_ink_is_shared_and_left_goes_with_left():
    ink = mixed.ink()
    assert mixed.size(ink.train) + mixed.size(ink.test) == 1797
    assert ink.figures(ink.test)["sum_error"] < 1e-6
    assert ink.figures(ink.test)["sides"] > 0.7
    assert abs(ink.figures(mixed.independent(ink.train, 2000))["sides"]) < 0.15  # six standard deviations


def test_toys_say_what_they_claim():
    toy = mixed.joint()
    assert all(v > 0.99 for v in toy.figures(toy.test).values())
    assert all(v < 0.3 for v in toy.figures(mixed.independent(toy.train, 4000)).values())
    words = mixed.symbols()
    assert words.figures(words.test)["total_variation"] < 0.05
    assert words.figures(mixed.independent(words.train, 10_000))["total_variation"] > 0.3
    words = mixed.corners()
    assert words.figures(words.test)["total_variation"] < 0.05
    assert words.figures(mixed.independent(words.train, 10_000))["total_variation"] > 0.3
    pair = mixed.correlated()
    assert abs(pair.figures(pair.test)["narrow_std"] - 1) < 0.05


def test_pictures_are_drawn_of_samples_on_their_way(twin):
    number = 20
    toys = (mixed.torsions(), mixed.rotations(), mixed.ink(), mixed.correlated(), mixed.symbols(), mixed.corners())
    for toy in (*toys, mixed.joint(), twin):
        noise = mixed.noise(toy, number)  # symbols are masks
        real = mixed.rows(toy.test, np.arange(number))
        assert toy.picture(noise, toy.test).tobytes() != toy.picture(real, toy.test).tobytes()


def test_measures_notice_a_broken_part():
    toy = mixed.joint()
    good = mixed.rows(toy.train, np.arange(3000))
    bad = {**good, "symbol": np.roll(good["symbol"], 1, axis=0)}
    assert mixed.measure(toy, good)["position_agrees"]["value"] > 0.99
    report = mixed.measure(toy, bad)
    assert report["position_agrees"]["value"] < 0.4
    assert report["energy_distance"]["value"] > 10 * abs(report["energy_distance"]["floor"][0])
    assert report["energy_distance_symbol"]["value"] < report["energy_distance_symbol"]["baselines"]["noise"] / 100


def test_floors_are_of_as_many_examples_and_baselines_are_weaker_than_data():
    toy = mixed.joint()
    small = mixed.Mixed(
        spaces=toy.spaces,
        train=mixed.rows(toy.train, np.arange(3_000)),
        test=mixed.rows(toy.test, np.arange(500)),
        figures=lambda x: {"count": mixed.size(x)} | toy.figures(x),
        picture=toy.picture,
    )
    report = mixed.measure(small, mixed.rows(toy.test, np.arange(500, 2_500)))
    assert report["count"]["floor"] == [2_000, 0]  # not the 500 there are: a maximum over groups depends on it
    assert report["angle_agrees"]["baselines"]["marginals"] < 0.3
    # Parts that are whole but know nothing of each other.
    whole, alone = (report[f"energy_distance{part}"]["baselines"]["parts"] for part in ("", "_position"))
    assert whole > 0.2 > 0.01 > alone
    # One rotation in an example: drawn alone it would be the data again, so a normal law of its vector is drawn.
    turns = mixed.rotations()
    twice = mixed.measure(turns, mixed.rows(turns.train, np.arange(2_000)))["energy_distance_train"]["baselines"]
    assert twice["normal"] > 0.05
    assert "marginals" not in twice


def test_names_of_parts_may_be_spaced():
    assert sample.parts("symbol, angle ") == ["symbol", "angle"]


def test_atoms_keep_their_colours_in_an_animation(twin, tmp_path):
    frames = [twin.picture(mixed.rows(twin.test, np.arange(12 * i, 12 * i + 12)), twin.test) for i in range(3)]
    plots.animate(frames, tmp_path / "walk.gif")
    with Image.open(tmp_path / "walk.gif") as gif:
        for i, frame in enumerate(frames):
            gif.seek(i)
            drawn, shown = np.asarray(frame.convert("RGB"), int), np.asarray(gif.convert("RGB"), int)
            for ink in crystals._INK.values():  # those of few atoms above all
                at = np.abs(drawn - ink).max(-1) < 6
                assert not at.any() or np.abs(shown[at].mean(0) - ink).max() < 15, (i, ink)


def test_a_missing_file_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="synthetic twin"):
        crystals.crystals(str(tmp_path))
