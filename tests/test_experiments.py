"""The programs as a person meets them: one line for a mistake, a run that is a function of its config, a kill that costs nothing."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict
from PIL import Image

import experiments
from diffjax import schedules
from diffjax.processes import cube, predictions
from experiments import (
    UserError,
    box2d,
    build,
    checkpoints,
    configs,
    data,
    evaluate,
    grounds,
    plots,
    prepare,
    sample,
    train,
    walks,
)

SMALL = [
    "--config.network.features=(16,)",
    "--config.batch_size=64",
    "--config.steps=60",
    "--config.log_every=10",
    "--config.sample_every=0",
    "--config.checkpoint_every=20",
    "--config.sampler.steps=5",
    "--config.sampler.chunk=16",
    "--config.evaluate.num=64",
    "--config.evaluate.splits=2",
]


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """Keeps compiled programs for this file's tests, which make the same ones again and again."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def fails(capsys, main, *args):
    """The one line on stderr of a program that refuses."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        experiments.run(lambda: main([str(arg) for arg in args]))
    assert exit_.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


# ------------------------------------------------------------------------------------------------------------- mistakes


def test_a_mistake_is_one_line_that_says_what_to_do(capsys, tmp_path):
    line = fails(capsys, train.main, "--config", "spirl", "--workdir", tmp_path / "a")
    assert "did you mean spiral?" in line
    assert "digits" in line
    line = fails(capsys, train.main, "--workdir", tmp_path / "a", "--config.lerning_rate=1")
    assert "did you mean learning_rate?" in line
    assert "batch_size" in line
    line = fails(capsys, train.main, "--workdir", tmp_path / "a", "--config.optimizer.wramup=1")
    assert "did you mean warmup?" in line
    assert "clip" in line
    line = fails(capsys, train.main, "--workdir", tmp_path / "a", "--config.optimizer.lerning_rate=1")
    assert "did you mean learning_rate?" in line
    for flag, word in [
        ("--config.steps=many", "type int"),
        ("--config.steps=1.5", "type int"),
        ("--config.conditional=1", "type bool"),
        ("--config.steps", "needs a value"),
        ("--config.data=x", "is a group"),
        ("--config.steps.x=1", "is a value"),
        ("--confg.steps=1", "unknown argument"),
        ("--config.prediction=noise", "x0, eps, v, flow, score"),
        ("--config.layout=pjit", "jit, pmap, shard_map"),
        ("--config.schedule.name=linear", "did you mean vp_linear?"),
        ("--config.network.features=()", "config.network"),
        ("--config.conditional=true", "needs classes"),
        ("--config.batch_size=63", "does not divide among 8 devices"),
        ("--config.data.name=digit", "did you mean digits?"),
        ("--config.sampler.eta=2.0", "eta in [0, 1]"),
        ("--config.space=cube", "choose among plane, box"),
        ("--config.sampler.name=reflected", "reflected walks on the box, and config.space=plane"),
        ("--config.space=box", "ancestral walks on the plane, and config.space=box; choose among reflected"),
    ]:
        more = ["--config.sampler.name=ddim"] if "eta" in flag else []
        assert word in fails(capsys, train.main, "--workdir", tmp_path / "a", *more, flag)
    for flag, word in [
        ("--config.data.name=spiral", "needs data between two bounds"),
        ("--config.prediction=eps", "needs config.prediction=score or levels"),
        ("--config.loss=absolute", "needs config.loss=squared"),
        ("--config.schedule.sigma_max=1.0", "from 0.003 to 1"),
        ("--config.sampler.noise=-1.0", "noise in [0, 1]"),
        ("--config.data.name=torsions", "for one array"),
    ]:
        assert word in fails(capsys, train.main, "--config", "box2d", "--workdir", tmp_path / "a", flag)
    assert not (tmp_path / "a").exists()
    for program in (sample, evaluate):
        assert "there is no run in" in fails(capsys, program.main, "--workdir", tmp_path / "a")
        assert "--workdir" in fails(capsys, program.main)


def test_a_missing_data_set_says_how_to_get_it(capsys, tmp_path):
    args = ["--config.data.name=mnist", f"--config.data.dir={tmp_path}", "--workdir", tmp_path / "a"]
    line = fails(capsys, train.main, *args)
    assert f"python -m experiments.prepare mnist --dir {tmp_path}" in line
    assert "--config.data.dir=" in line
    assert not (tmp_path / "a").exists()


def test_a_value_takes_the_type_of_the_field():
    config = configs.override(
        configs.load("spiral"),
        [
            "--config.learning_rate=1",
            "--config.data.flip",
            "True",
            "--config.network.features=[8,4]",
            "--config.data.dir=3",
        ],
    )
    assert config.learning_rate == 1.0
    assert isinstance(config.learning_rate, float)
    assert (config.data.flip, config.network.features, config.data.dir) == (True, (8, 4), "3")
    assert configs.load("spiral").learning_rate != 1


def test_a_config_survives_its_file(tmp_path):
    for name in configs.names():
        config = configs.load(name)
        configs.write(config, tmp_path / "config.json")
        assert configs.differences(config, configs.load(str(tmp_path / "config.json"))) == []


# ----------------------------------------------------------------------------------------------------------------- data


@pytest.mark.parametrize("name", ["spiral", "digits"])
def test_a_batch_is_a_function_of_seed_and_step_and_processes_share_it(name):
    dataset = data.load(configs.override(configs.load("spiral"), [f"--config.data.name={name}"]).data)

    def taken(start, number, **settings):
        batches = data.batches(dataset, batch_size=48, start=start, **settings)
        return [next(batches) for _ in range(number)]

    whole = taken(0, 60, seed=1)
    for later, batch in zip(taken(55, 5, seed=1), whole[55:], strict=True):
        jax.tree.map(np.testing.assert_array_equal, later, batch)
    parts = [taken(55, 5, seed=1, process=i, processes=3) for i in range(3)]
    for step in range(5):
        joined = jax.tree.map(lambda *x: np.concatenate(x), *[part[step] for part in parts])
        jax.tree.map(np.testing.assert_array_equal, joined, whole[55 + step])
    assert not (taken(0, 1, seed=2)[0]["x0"] == whole[0]["x0"]).all()
    with pytest.raises(UserError, match="does not divide"):
        taken(0, 1, seed=1, process=0, processes=5)


def test_an_epoch_holds_each_example_once_in_an_order_of_its_own():
    order = np.concatenate([data._order(1297, 0, 100 * step, 100) for step in range(40)])
    epochs = [order[1297 * i : 1297 * (i + 1)] for i in range(3)]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(1297))
    assert (epochs[0] != epochs[1]).mean() > 0.9


def test_digits_are_split_once_and_lie_on_seventeen_levels():
    digits = data.load(configs.load("digits").data)
    train_x0 = data.training_sample(digits, 9_999)["x0"]
    assert (len(train_x0), len(digits.test["x0"])) == (1297, 500)
    both = np.concatenate([train_x0, digits.test["x0"]])
    np.testing.assert_array_equal(np.unique(both), np.linspace(-1, 1, 17))
    assert set(digits.test["label"]) == set(range(10))


def test_box2d_is_drawn_from_its_density():
    edges = (np.arange(500) + 0.5) / 500
    grid = np.stack(np.meshgrid(edges, edges, indexing="ij"), -1).reshape(-1, 2)
    wall = (np.minimum(grid, 1 - grid) < 0.01).any(1)
    for noise in (0.0, 0.1, 3.0):
        density = np.exp(box2d.log_prob(grid, noise))
        np.testing.assert_allclose(density.mean(), 1, rtol=1e-6)
    np.testing.assert_allclose(density, 1, rtol=1e-5)  # the box is full
    density = np.exp(box2d.log_prob(grid))
    np.testing.assert_allclose(
        (density * wall).mean(), box2d.wall_share(0.01), rtol=1e-3
    )  # the midpoint rule errs by 2e-4
    # Shares of draws in cells: chi squared of 400 cells, above 560 by chance once in 10 million.
    x = box2d.draw(np.random.default_rng(0), 200_000)
    assert ((x >= 0) & (x <= 1)).all()
    cells = lambda weights, x: np.histogram2d(*x.T, bins=20, range=[[0, 1], [0, 1]], weights=weights)[0]
    expected = cells(density, grid) * len(x) / len(grid)
    assert ((cells(None, x) - expected) ** 2 / expected).sum() < 560


def test_an_image_is_cropped_to_its_middle_square_and_resized():
    image = np.zeros((8, 12, 3), np.uint8)
    image[:, 2:10] = 200
    image[:, :2] = 90
    np.testing.assert_array_equal(data._fit(image, 4), np.full((4, 4, 3), 200))
    assert data._fit(image, 0) is image
    assert data._fit(image[:, :, :1], 4).shape == (4, 4, 1)


def tiny_set(folder):
    """Writes seven random images under the name `tiny`, as tfds does."""
    import tensorflow_datasets as tfds

    rows = [
        {"image": np.random.default_rng(i).integers(0, 256, (10, 12, 3)).astype(np.uint8), "label": i % 3}
        for i in range(7)
    ]

    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        @classmethod
        def _get_pkg_dir_path(cls):
            return tfds.core.Path(folder)

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "label": tfds.features.ClassLabel(num_classes=3),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager):
            return {"train": self._generate_examples(rows), "test": self._generate_examples(rows[:4])}

        def _generate_examples(self, rows):
            yield from enumerate(rows)

    prepare.prepare(Tiny(data_dir=str(folder), file_format="array_record"))
    return rows


def test_a_tfds_set_is_prepared_and_read_without_tensorflow(tmp_path):
    rows = tiny_set(tmp_path)
    config = configs.override(
        configs.load("spiral"), ["--config.data.name=tiny", f"--config.data.dir={tmp_path}", "--config.data.size=10"]
    )
    tiny = data.load(config.data)
    assert (tiny.event, tiny.classes, tiny.levels, tiny.count) == ((10, 10, 3), 3, 256, 7)
    everything = tiny.take(np.arange(7))
    wanted = {row["image"][:, 1:11].tobytes(): row["label"] for row in rows}
    found = {
        np.rint((x + 1) * 127.5).astype(np.uint8).tobytes(): label
        for x, label in zip(*everything.values(), strict=True)
    }
    assert found == wanted
    assert "tensorflow" not in sys.modules
    config.data.test = "tost"
    with pytest.raises(UserError, match="Unknown split"):
        data.load(config.data)


# -------------------------------------------------------------------------------------------------------------- drawing


def test_a_config_older_than_a_field_is_read_with_its_default(tmp_path):
    old = configs.load("digits").to_dict()
    del old["sampler"]["denoise"], old["mixture"]
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert configs.load(str(tmp_path / "config.json")).to_dict() == configs.load("digits").to_dict()


def test_pictures_show_what_they_are_given(tmp_path):
    black_and_white = np.stack([np.full((2, 2, 1), -1.0), np.full((2, 2, 1), 1.0)])
    sheet = np.asarray(plots.grid(black_and_white, columns=2, gap=0))
    half = sheet.shape[1] // 2
    assert (sheet[:, :half] == 0).all()
    assert (sheet[:, half:] == 255).all()
    corner = np.asarray(plots.cloud(np.array([[0.9, 0.9], [np.nan, 0.0]]), np.array([[-1.0, -1.0], [1.0, 1.0]])))
    red = (corner[:, :, 0] > corner[:, :, 1].astype(int) + 50).nonzero()
    assert red[0].mean() < corner.shape[0] / 2 < red[1].mean()  # up and to the right
    plots.walk(np.zeros((9, 3, 4, 4, 1)), tmp_path / "walk.gif", frames=4)
    with Image.open(tmp_path / "walk.gif") as film:
        assert film.format == "GIF"


@pytest.mark.parametrize(
    "solver", ["ancestral", *(pytest.param(s, marks=pytest.mark.slow) for s in ("ddim", "bridge"))]
)
def test_samples_do_not_depend_on_the_number_of_devices_or_of_samples(solver):
    flags = [*SMALL, f"--config.sampler.name={solver}", "--config.sampler.chunk=4"]
    small = build.experiment(configs.override(configs.load("spiral"), flags))
    params = small.init(jax.random.key(0))
    draw = walks.sampler(small)
    one, all_eight = (d(params, 50, seed=3) for d in (walks.sampler(small, devices=jax.devices()[:1]), draw))
    np.testing.assert_array_equal(one, all_eight)
    np.testing.assert_array_equal(draw(params, 7, seed=3), one[:7])
    assert not (one == draw(params, 50, seed=4)).any()
    ends, walk = walks.sampler(small, keep_walk=True)(params, 7, seed=3)
    np.testing.assert_allclose(ends, one[:7], atol=1e-6)
    np.testing.assert_array_equal(walk[-1], ends)
    assert walk.shape == (6, 7, 2)


@pytest.mark.slow
@pytest.mark.parametrize("solver", walks.SOLVERS["plane"])
def test_every_solver_by_its_name(solver):
    # Data at one point, known exactly: three steps lead there from any noise.
    flags = [f"--config.sampler.name={solver}", "--config.sampler.steps=3", "--config.sampler.spacing=trailing"]
    experiment = build.experiment(configs.override(configs.load("spiral"), [*flags, "--config.sampler.chunk=8"]))
    schedule = schedules.vp_linear()
    predict = lambda xt, t: jnp.full_like(xt, 0.25)
    model = build.Model(ground=grounds.plane(predictions.x0), schedule=schedule, predict=predict)
    end = walks.sampler(dataclasses.replace(experiment, model=lambda params: model))((), 8, seed=0)
    np.testing.assert_allclose(end, 0.25, atol=1e-5)


@pytest.mark.parametrize("solver", walks.SOLVERS["box"])
def test_on_the_box_no_state_is_ever_outside_and_each_solver_finds_a_point(solver):
    flags = [f"--config.sampler.name={solver}", "--config.sampler.steps=30", "--config.sampler.chunk=8"]
    config = configs.override(configs.load("box2d"), [*flags, "--config.network.features=(8,)"])
    experiment = build.experiment(config)
    params = jax.tree.map(lambda x: 3 * x + 0.3, experiment.init(jax.random.key(0)))  # far from any sense
    end, walk = walks.sampler(experiment, keep_walk=True)(params, 8, seed=0)
    assert walk.shape == (31, 8, 2)
    assert ((walk >= 0) & (walk <= 1)).all()
    np.testing.assert_array_equal(walk[-1], end)
    # Data at one point near a corner, by its exact score: what is left is the last noise, .003.
    config = configs.override(config, ["--config.sampler.steps=100"])
    schedule, point = schedules.ve(0.003, 5.0), jnp.array([0.02, 0.7])
    score = lambda xt, t: cube.score(point[None], xt, schedule(t)[1])
    model = build.Model(ground=grounds.box((0.0, 1.0)), schedule=schedule, predict=score)
    known = dataclasses.replace(build.experiment(config), model=lambda params: model)
    end = walks.sampler(known)((), 8, seed=0)
    np.testing.assert_allclose(end, np.broadcast_to(point, (8, 2)), atol=0.02)  # 6 standard deviations
    config.sampler.denoise = True
    clean = walks.sampler(dataclasses.replace(known, config=config))((), 8, seed=0)
    np.testing.assert_allclose(clean, np.broadcast_to(point, (8, 2)), atol=1e-4)


def test_guidance_on_the_box_leaves_the_class_that_is_hidden_behind():
    # Classes are told apart by where they lie; the class that is not told, -1, lies elsewhere. A weight of -1 leaves that alone.
    schedule, ground = schedules.ve(0.01, 5.0), grounds.box((-1.0, 1.0))

    def score(xt, t, label):
        place = jnp.where(label < 0, 0.9, 0.1 + 0.05 * label.astype(jnp.float32))
        return cube.score(jnp.broadcast_to(place[:, None, None, None], xt.shape), xt, schedule(t)[1])

    model = build.Model(ground=ground, schedule=schedule, predict=score)
    for weight, expected in [(-1.0, 0.9), (0.0, 0.25)]:
        flags = [f"--config.sampler.guidance={weight}", "--config.sampler.chunk=4"]
        experiment = build.experiment(configs.override(configs.load("digits_reflected"), flags))
        draw = walks.sampler(dataclasses.replace(experiment, model=lambda params: model))
        end = draw((), 4, seed=0, label=3)
        np.testing.assert_allclose(
            end, 2 * expected - 1, atol=1e-4
        )  # seen as data are, on [-1, 1], without the last noise


@pytest.mark.parametrize("prediction", ["score", "levels"])
def test_images_are_taught_on_the_box(prediction):
    config = configs.override(configs.load("digits_reflected"), [f"--config.prediction={prediction}"])
    config.network = ConfigDict({"name": "mlp", "features": (16,)})
    experiment = build.experiment(config)
    params = experiment.init(jax.random.key(0))
    batch = jax.tree.map(jnp.asarray, data.training_sample(experiment.dataset, 128))
    loss = lambda params: experiment.loss_fn(params, jax.random.key(1), jnp.arange(128), batch).mean()
    value, slopes = jax.jit(jax.value_and_grad(loss))(params)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((value, slopes)))
    assert max(np.abs(x).max() for x in jax.tree.leaves(slopes)) > 0


def test_a_learned_schedule_trains_beside_its_network():
    config = configs.override(
        configs.load("digits_levels"), ["--config.schedule.name=learned", "--config.batch_size=8"]
    )
    config.network = ConfigDict({"name": "mlp", "features": (16,)})
    experiment = build.experiment(config)
    params = experiment.init(jax.random.key(0))
    batch = jax.tree.map(jnp.asarray, data.training_sample(experiment.dataset, 8))
    loss = lambda params: experiment.loss_fn(params, jax.random.key(1), jnp.arange(8), batch).mean()
    slopes = jax.jit(jax.grad(loss))(params)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(slopes))
    assert max(np.abs(x).max() for x in jax.tree.leaves(slopes["schedule"])) > 0
    # The ends stay where they are, so that the bound's own ends do; the curve between them moves.
    moved = jax.tree.map(lambda p, g: p - 0.5 * jnp.sign(g), params, slopes)
    t = jnp.linspace(0, 1, 5)
    before, after = (schedules.logsnr(t, schedule=experiment.model(p).schedule) for p in (params, moved))
    np.testing.assert_allclose(after[jnp.array([0, 4])], [6, -8], atol=1e-4)
    assert np.abs(before - after)[1:4].max() > 1e-3


# ----------------------------------------------------------------------------------------------------------------- runs


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_run_holds_what_it_promises_and_refuses_another_config(capsys, tmp_path):
    args = [*SMALL, "--workdir", str(tmp_path), "--config.sample_every=20"]
    assert train.main(args) == 0
    assert [line["step"] for line in lines(tmp_path)] == [10, 20, 30, 40, 50, 60]
    assert all(np.isfinite(line["loss"]) for line in lines(tmp_path))
    assert checkpoints.steps(tmp_path / "checkpoints") == [20, 40, 60]
    assert json.loads((tmp_path / "config.json").read_text())["steps"] == 60
    assert {p.name for p in (tmp_path / "samples").iterdir()} == {
        "step_00000020.png",
        "step_00000040.png",
        "final.png",
        "walk.gif",
    }
    assert list((tmp_path / "tensorboard").glob("events*"))
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report["metrics"]) == {"energy_distance", "sliced_wasserstein", "off_manifold", "nats"}
    for row in report["metrics"].values():
        assert set(row) == {"value", "floor", "baselines"}
        assert len(row["floor"]) == 2
    with np.load(tmp_path / "evaluation.npz") as kept:
        again = evaluate.metrics.energy_distance(kept["samples"], kept["data"])
    assert report["metrics"]["energy_distance"]["value"] == pytest.approx(again, abs=1e-9)
    assert "energy distance" in capsys.readouterr().out

    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    line = fails(capsys, train.main, *args, "--config.seed=1", "--config.optimizer.clip=2.0")
    assert "seed: 0 -> 1" in line
    assert "optimizer.clip: 1.0 -> 2.0" in line
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before

    # The same run, longer and in another layout, from its own config; a damaged checkpoint is passed over and lines after it are dropped.
    newest = next(
        p for p in (tmp_path / "checkpoints" / "00000060").rglob("d/*") if p.is_file() and p.stat().st_size > 2000
    )
    content = bytearray(newest.read_bytes())
    content[1000] ^= 4
    newest.write_bytes(content)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7')
    assert train.main(["--workdir", str(tmp_path), "--config.steps=70", "--config.layout=pmap"]) == 0
    said = capsys.readouterr().out
    assert "checkpoint 60 is damaged" in said
    assert "going on from step 40" in said
    assert [line["step"] for line in lines(tmp_path)] == [10, 20, 30, 40, 50, 60, 70]
    assert "already, past config.steps=30" in fails(capsys, train.main, "--workdir", tmp_path, "--config.steps=30")
    assert configs.load(str(tmp_path / "config.json")).steps == 70

    sample.main(["--workdir", str(tmp_path), "--num", "20", "--solver", "ddim", "--steps", "3", "--seed", "5"])
    with np.load(tmp_path / "samples.npz") as kept:
        assert kept["samples"].shape == (20, 2)
    assert "guidance needs" in fails(capsys, sample.main, "--workdir", tmp_path, "--guidance", "1.0")
    assert "not a class" in fails(capsys, sample.main, "--workdir", tmp_path, "--label", "1")
    assert "choose among ancestral" in fails(capsys, sample.main, "--workdir", tmp_path, "--solver", "rk45")


@pytest.mark.slow
def test_a_run_on_the_box_reports_its_walls_and_likelihoods(tmp_path):
    args = [*SMALL, "--workdir", str(tmp_path), "--config.sample_every=20"]
    assert train.main(["--config", "box2d", *args]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    names = {"energy_distance", "sliced_wasserstein", "wall_share", "wall_share_half", "nats", "nats_bound"}
    assert set(report["metrics"]) == names
    assert report["outside"] == 0
    assert report["metrics"]["wall_share"]["floor"][0] == pytest.approx(box2d.wall_share(0.01), abs=0.15)
    for solver in walks.SOLVERS["box"]:
        sample.main(["--workdir", str(tmp_path), "--num", "20", "--solver", solver, "--steps", "3"])
        with np.load(tmp_path / "samples.npz") as kept:
            assert ((kept["samples"] >= 0) & (kept["samples"] <= 1)).all()


@pytest.mark.slow
def test_box2d_is_learned(tmp_path):
    assert train.main(["--config", "box2d", "--workdir", str(tmp_path), "--config.sample_every=0"]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    rows, likely = report["metrics"], report["likelihood"]["nats_bound"]
    assert rows["energy_distance"]["value"] <= 4e-4  # four standard deviations of its floor
    for name, distance in [("wall_share", 0.01), ("wall_share_half", 0.005)]:
        assert rows[name]["value"] == pytest.approx(box2d.wall_share(distance), rel=0.1)
    assert abs(likely["above_nats"]) < 4 * likely["above_nats_error"]


def test_a_loss_that_is_not_finite_stops_the_run_and_is_not_saved(capsys, tmp_path):
    flags = ["--config.optimizer.name=sgd", "--config.optimizer.clip=0.0", "--config.learning_rate=1e30"]
    line = fails(capsys, train.main, *SMALL, *flags, "--config.checkpoint_every=1", "--workdir", tmp_path)
    assert "not finite at step" in line
    known = checkpoints.steps(tmp_path / "checkpoints")
    assert known
    assert all(checkpoints.damage(tmp_path / "checkpoints" / f"{step:08d}") is None for step in known)


def program(workdir, *flags, **more):
    """Training in a process of its own, on one device; compiled programs are shared by the processes of a test."""
    environment = {
        **os.environ,
        "XLA_FLAGS": "",
        "JAX_COMPILATION_CACHE_DIR": str(workdir.parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        **more,
    }
    command = [sys.executable, "-m", "experiments.train", "--workdir", str(workdir), *SMALL, *flags]
    return subprocess.Popen(
        command,
        cwd=Path(__file__).parents[1],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def until(process, workdir, step):
    """Waits until a running program has logged a step."""
    while process.poll() is None:
        if (workdir / "metrics.jsonl").exists() and f'"step": {step},' in (workdir / "metrics.jsonl").read_text():
            return
        time.sleep(0.005)


def ending(process):
    out, _ = process.communicate()
    return process.returncode, out


def outcome(workdir):
    """Every bit of the final state, and the logged losses."""
    experiment = build.experiment(configs.load(str(workdir / "config.json")))
    step, state = checkpoints.restore(workdir / "checkpoints", sample.saved_shape(experiment))
    return (
        step,
        [leaf.tobytes() for leaf in jax.tree.leaves(state)],
        [(line["step"], line["loss"]) for line in lines(workdir)],
    )


LONGER = ["--config.steps=400", "--config.checkpoint_every=50"]


def test_killed_and_stopped_a_run_ends_on_the_same_bits(tmp_path):
    assert ending(program(tmp_path / "whole", *LONGER))[0] == 0
    cut = program(tmp_path / "cut", *LONGER)
    until(cut, tmp_path / "cut", 80)
    cut.send_signal(signal.SIGKILL)
    assert ending(cut)[0] == -signal.SIGKILL
    cut = program(tmp_path / "cut", *LONGER)
    until(cut, tmp_path / "cut", 160)
    cut.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    code, said = ending(cut)
    assert code == 0, said
    assert (
        time.monotonic() - asked < 15
    )  # .7 s on a quiet machine, promised within 5; tests may share theirs with others
    assert "stopped and saved at step" in said
    assert "going on from step" in said
    code, said = ending(program(tmp_path / "cut", *LONGER))
    assert code == 0, said
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")
    assert outcome(tmp_path / "cut")[0] == 400


@pytest.mark.slow
def test_killed_at_twenty_moments_a_run_ends_on_the_same_bits(tmp_path):
    flags = [*LONGER, "--config.steps=4000", "--config.checkpoint_every=10"]
    assert ending(program(tmp_path / "whole", *flags))[0] == 0
    rng = np.random.default_rng(0)
    kills = 0
    for target in range(190, 3990, 190):
        process = program(tmp_path / "cut", *flags)
        until(process, tmp_path / "cut", target // 10 * 10)
        time.sleep(rng.uniform(0, 0.03))
        process.kill()
        kills += ending(process)[0] == -signal.SIGKILL
    assert kills == 20
    assert ending(program(tmp_path / "cut", *flags))[0] == 0
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0])
def test_the_spiral_is_learned(tmp_path, seed):
    assert train.main(["--workdir", str(tmp_path), f"--config.seed={seed}", "--config.sample_every=0"]) == 0
    rows = json.loads((tmp_path / "report.json").read_text())["metrics"]
    assert rows["energy_distance"]["value"] <= 0.005
    assert rows["sliced_wasserstein"]["value"] <= 0.075
    assert rows["off_manifold"]["value"] <= 0.03


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    assert ending(program(tmp_path / "one"))[0] == 0
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    pair = [
        program(
            tmp_path / "two",
            "--distributed",
            JAX_COORDINATOR_ADDRESS=address,
            JAX_NUM_PROCESSES="2",
            JAX_PROCESS_ID=str(number),
        )
        for number in range(2)
    ]
    assert [ending(process)[0] for process in pair] == [0, 0]
    experiment = build.experiment(configs.load(str(tmp_path / "one" / "config.json")))
    one, two = (
        checkpoints.restore(tmp_path / name / "checkpoints", sample.saved_shape(experiment))[1]["state"]
        for name in ("one", "two")
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), one.params, two.params)
    assert [line["step"] for line in lines(tmp_path / "two")] == [10, 20, 30, 40, 50, 60]
