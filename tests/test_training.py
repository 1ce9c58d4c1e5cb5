"""The training step against hand-written ones, and the layouts against each other."""

import functools
import os
import pathlib
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from diffjax import networks, numerics, training
from diffjax.training import parallel

SLOW_CASES = [("sgd", 1), ("sgd", 2), ("sgd", 4), ("adam", 8)]
LAYOUTS = [parallel.jit_step, parallel.pmap_step, parallel.shard_map_step]
KEY = jax.random.key(7)
DATA = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)


def start():
    rng = np.random.default_rng(1)
    return {
        "w": jnp.asarray(rng.normal(size=(3, 8)), jnp.float32) / 2,
        "v": jnp.asarray(rng.normal(size=(8, 3)), jnp.float32) / 3,
    }


def denoise(params, key, index, batch):
    """A loss that draws: predict the noise that was added to each example."""
    noise = numerics.normal(numerics.example_keys(key, index), batch.shape)
    return jnp.sum((jnp.tanh((batch + noise) @ params["w"]) @ params["v"] - noise) ** 2, -1)


def make(loss, optimizer, **options):
    return functools.partial(training.make_step, loss, optimizer, **{"ema_decay": 0.9, **options})


def train(layout, state, batches):
    """The state after the batches, and the metrics of each call. Each step is awaited: a queue of collectives on simulated
    devices can hang."""
    placed, history = layout.place_state(state), []
    for batch in batches:
        placed, metrics = layout.step(placed, KEY, layout.place_batch(batch))
        jax.block_until_ready(placed)
        history.append(metrics)
    return placed, history


def largest_difference(a, b):
    return max(
        float(np.abs(np.asarray(x, np.float64) - np.asarray(y, np.float64)).max())
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@jax.jit
@jax.grad
def gradient_by_hand(p, noise):
    return jnp.mean(jnp.sum((jnp.tanh((DATA + noise) @ p["w"]) @ p["v"] - noise) ** 2, -1))


def by_hand(optimizer, steps):
    """The same training without the library's step: full batch, one device."""
    params = start()
    ema, opt_state = params, optimizer.init(params)
    for k in range(steps):
        key = jax.random.fold_in(KEY, k)
        keys = jax.vmap(lambda i, key=key: jax.random.fold_in(key, i))(jnp.arange(len(DATA)))
        noise = jax.vmap(lambda k: jax.random.normal(k, (3,)))(keys)
        gradient = gradient_by_hand(params, noise)
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = optimizer.update(gradient, opt_state, params)
        params = jax.tree.map(lambda p, u: p + u, params, updates)
        ema = jax.tree.map(lambda e, p: 0.9 * e + 0.1 * p, ema, params)
    return params, ema


# ------------------------------------------------------------------------------------------------------------ layouts


@pytest.fixture(scope="module")
def after_ten():
    return {name: by_hand(optimizer, 10) for name, optimizer in OPTIMIZERS.items()}


OPTIMIZERS = {"sgd": optax.sgd(0.05), "adam": optax.adam(1e-2)}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("name", "devices"),
    [("sgd", 8), ("adam", 2), *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW_CASES)],
)
def test_ten_steps_in_any_layout_are_those_of_a_hand_written_loop(layout, name, devices, after_ten):
    # Plain SGD shows a gradient that is N times too large; Adam would hide it.
    traces = []
    counted = lambda *args: traces.append(1) or denoise(*args)
    run = layout(make(counted, OPTIMIZERS[name]), devices=jax.devices()[:devices])
    placed, history = train(run, training.init(start(), OPTIMIZERS[name]), [DATA] * 10)
    state = run.read_state(placed)
    params, ema = after_ten[name]
    assert largest_difference(state.params, params) <= 1e-6
    assert largest_difference(state.ema, ema) <= 1e-6
    assert int(state.step) == 10
    assert len(run.devices) == devices
    assert len(traces) == 1  # one compilation serves the whole run
    # Every device holds the same bits, or they would drift apart.
    for leaf in jax.tree.leaves(placed.params):
        pieces = [np.asarray(s.data) for s in leaf.addressable_shards]
        assert len(pieces) == devices
        assert all(np.array_equal(pieces[0], p) for p in pieces)
    assert all(m["loss"].shape == () and m["nonfinite"] == 0 for m in history)


def test_the_step_is_right_under_a_shard_map_that_checks_replication(after_ten):
    # There the gradient of a replicated parameter is summed already; a mean on top would leave it 8 times too large.
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    one = training.make_step(denoise, OPTIMIZERS["sgd"], ema_decay=0.9, axis_name="d", skip_nonfinite=True)
    step = jax.jit(jax.shard_map(one, mesh=mesh, in_specs=(P(), P(), P("d"), P("d")), out_specs=P()))
    state = training.init(start(), OPTIMIZERS["sgd"])
    for _ in range(10):
        state, _ = jax.block_until_ready(step(state, KEY, jnp.arange(16), DATA))
    assert largest_difference(state.params, after_ten["sgd"][0]) <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(("name", "layouts"), [("sgd", LAYOUTS[::2]), ("adam", LAYOUTS[1:2])])
def test_a_convolution_network_trains_alike_in_every_layout(name, layouts):
    # Adam divides rounding by the root of the second moment, so its steps differ by a share of the rate: 1e-6 holds at a
    # rate a network like this trains with. (A parameter without a gradient but rounding would differ by full steps.)
    optimizer = {"sgd": optax.sgd(0.05), "adam": optax.adam(1e-3)}[name]
    net = networks.UNet(channels=8, multipliers=(1,), blocks=1, attention_levels=(0,), num_classes=3)
    images = np.random.default_rng(2).normal(size=(8, 8, 8, 1)).astype(np.float32)

    def loss(params, key, index, batch):
        a, b = numerics.split(numerics.example_keys(key, index))
        t, noise = numerics.uniform(a, index.shape), numerics.normal(b, batch["x"].shape)
        a = numerics.expand_right(t, noise)
        return jnp.mean(
            (net.apply(params, (1 - a) * batch["x"] + a * noise, t, batch["label"]) - noise) ** 2, (1, 2, 3)
        )

    params = jax.jit(net.init)(jax.random.key(1), images[:1], jnp.zeros(1))
    params = jax.tree.map(lambda p: p + 0.01, params)
    batch = {"x": images, "label": np.arange(8) % 4 - 1}
    ends = []
    for layout, count in [(parallel.jit_step, 1), *((layout, 8) for layout in layouts)]:
        run = layout(make(loss, optimizer), devices=jax.devices()[:count])
        ends.append(run.read_state(train(run, training.init(params, optimizer), [batch] * 10)[0]))
    assert largest_difference(ends[0].params, params) > 1e-3
    assert max(largest_difference(ends[0].params, e.params) for e in ends[1:]) <= 1e-6


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("inner_steps", [1, 2])
def test_examples_keep_their_global_numbers_and_the_step_its_key(layout, inner_steps):
    def numbered(params, key, index, batch):
        draws = jax.vmap(lambda k: jax.random.normal(k))(numerics.example_keys(key, index))
        return draws + 1e6 * (index - batch).astype(jnp.float32) ** 2 + 0 * params

    run = layout(make(numbered, optax.sgd(0.0)), inner_steps=inner_steps)
    batch = np.arange(16) if inner_steps == 1 else np.tile(np.arange(16), (inner_steps, 1))
    _, history = train(run, training.init(jnp.zeros(()), optax.sgd(0.0)), [batch] * 3)
    losses = np.concatenate([np.atleast_1d(m["loss"]) for m in history])
    for k, loss in enumerate(losses):
        key = jax.random.fold_in(KEY, k)
        expected = np.mean([jax.random.normal(jax.random.fold_in(key, i)) for i in range(16)])
        assert loss == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_loop_inside_the_loss_runs_in_every_layout(layout):
    # The carry starts as a constant and becomes each device's own, which shard_map's checker would refuse.
    def loss(params, key, index, batch):
        total, _ = jax.lax.scan(lambda c, x: (c + params * x, None), jnp.zeros(index.shape), batch.T)
        return total**2

    run = layout(make(loss, optax.sgd(0.01)))
    placed, _ = train(run, training.init(jnp.ones(()), optax.sgd(0.01)), [DATA])
    expected = 1 - 0.01 * 2 * np.mean(DATA.sum(1) ** 2)
    assert float(run.read_state(placed).params) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "layout", [LAYOUTS[0], *(pytest.param(layout, marks=pytest.mark.slow) for layout in LAYOUTS[1:])]
)
def test_inner_steps_are_single_steps_in_one_call(layout):
    batches = [np.roll(DATA, k, 0) for k in range(4)]
    single, many = layout(make(denoise, optax.sgd(0.1))), layout(make(denoise, optax.sgd(0.1)), inner_steps=2)
    state = training.init(start(), optax.sgd(0.1))
    one, singles = train(single, state, batches)
    two, pairs = train(many, state, [np.stack(batches[:2]), np.stack(batches[2:])])
    assert largest_difference(single.read_state(one), many.read_state(two)) <= 1e-6
    assert pairs[0]["loss"].shape == (2,)
    np.testing.assert_allclose(
        np.concatenate([m["loss"] for m in pairs]), [float(m["loss"]) for m in singles], rtol=1e-5
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_states_and_batches_lie_where_the_layout_says(layout):
    run = layout(make(denoise, optax.sgd(0.1)), devices=jax.devices()[:4])
    state = training.init(start(), optax.sgd(0.1))
    placed, batch = run.place_state(state), run.place_batch({"x": DATA, "y": np.arange(16)})
    for leaf in jax.tree.leaves(batch):
        rows = [
            s.data.reshape(-1, *leaf.shape[2:]) if layout is parallel.pmap_step else s.data
            for s in leaf.addressable_shards
        ]
        assert {s.device for s in leaf.addressable_shards} == set(run.devices)
        assert all(len(r) == 4 for r in rows)
    np.testing.assert_array_equal(np.asarray(batch["y"]).reshape(-1), np.arange(16))
    assert all(
        s.data.size == leaf.size // (4 if layout is parallel.pmap_step else 1)
        for leaf in jax.tree.leaves(placed)
        for s in leaf.addressable_shards
    )
    back = run.read_state(placed)
    assert jax.tree.structure(back) == jax.tree.structure(state)
    assert largest_difference(back, state) == 0
    assert all(len(leaf.sharding.device_set) == 1 for leaf in jax.tree.leaves(back))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_state_is_donated_and_nothing_else_is_lost(layout):
    run = layout(make(denoise, optax.sgd(0.1)))
    state = training.init(start(), optax.sgd(0.1))
    placed = run.place_state(state)
    read = run.read_state(placed)
    key = jax.device_put(KEY, jax.devices()[0])
    after, _ = run.step(placed, key, run.place_batch(DATA))
    jax.block_until_ready(after)
    assert placed.params["w"].is_deleted()
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((state, read, after)))
    assert largest_difference(read, state) == 0


@pytest.mark.slow
def test_inner_steps_of_a_convolution_are_not_slow_on_a_cpu():
    # A gradient of a convolution inside a loop is 25-45 times slower; 3 leaves room for a busy machine.
    net = networks.UNet(channels=8, multipliers=(1,), blocks=1, attention_levels=())
    images = np.random.default_rng(2).normal(size=(16, 16, 16, 1)).astype(np.float32)

    def loss(params, key, index, batch):
        return jnp.mean((net.apply(params, batch, jnp.zeros(len(index))) - 1) ** 2, (1, 2, 3))

    state = training.init(jax.jit(net.init)(KEY, images[:1], jnp.zeros(1)), optax.sgd(1e-3))
    best = []
    for inner_steps in (1, 2):
        run = parallel.jit_step(make(loss, optax.sgd(1e-3)), devices=jax.devices()[:1], inner_steps=inner_steps)
        batch = run.place_batch(images if inner_steps == 1 else np.stack([images] * inner_steps))
        placed, times = run.place_state(state), []
        for _ in range(8):
            begin = time.perf_counter()
            placed, _ = run.step(placed, KEY, batch)
            jax.block_until_ready(placed)
            times.append((time.perf_counter() - begin) / inner_steps)
        best.append(min(times[1:]))
    assert best[1] <= 3 * best[0]


TWO = """
import sys, functools
import jax, numpy as np, optax
jax.distributed.initialize(f"localhost:{sys.argv[1]}", 2, int(sys.argv[2]))
from test_training import DATA, LAYOUTS, denoise, make, start, train
from diffjax import training
for layout in LAYOUTS:
    for inner_steps in (1, 2):
        run = layout(make(denoise, optax.adam(0.01)), inner_steps=inner_steps)
        mine = DATA[8 * jax.process_index() :][:8]
        batches = [mine] * 4 if inner_steps == 1 else [np.stack([mine] * 2)] * 2
        state, _ = train(run, training.init(start(), optax.adam(0.01)), batches)
        values = np.concatenate([np.ravel(x) for x in jax.tree.leaves(run.read_state(state).params)])
        print("END", " ".join(repr(float(v)) for v in values), flush=True)
"""


@pytest.mark.slow
def test_two_processes_give_the_result_of_one():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    here = pathlib.Path(__file__).parent
    env = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)]),
    }
    command = [sys.executable, "-c", TWO, str(port)]
    pair = [
        subprocess.Popen([*command, str(rank)], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=240)[0] for process in pair]
    finally:
        for process in pair:
            process.kill()
    run = parallel.jit_step(make(denoise, optax.adam(0.01)), devices=jax.devices()[:1])
    state, _ = train(run, training.init(start(), optax.adam(0.01)), [DATA] * 4)
    expected = np.concatenate([np.ravel(x) for x in jax.tree.leaves(run.read_state(state).params)])
    for output in outputs:
        rows = [line.split()[1:] for line in output.splitlines() if line.startswith("END")]
        assert len(rows) == 6, output
        for row in rows:
            np.testing.assert_allclose(np.array(row, np.float64), expected, atol=1e-6)


# --------------------------------------------------------------------------------------------------------------- step


def test_a_quadratic_goes_the_way_solved_by_hand():
    # w <- w - r 2 (w - c): the error shrinks by q = 1 - 2 r each step; the average is a geometric sum of it.
    r, d, c, w0, n = 0.1, 0.75, 3.0, 1.0, 12
    q = 1 - 2 * r
    step = jax.jit(
        training.make_step(lambda p, key, index, batch: (p - batch) ** 2, optax.sgd(r), ema_decay=d), donate_argnums=0
    )
    state = training.init(jnp.array(w0), optax.sgd(r))
    for k in range(n):
        state, metrics = step(state, KEY, jnp.arange(2), jnp.full(2, c))
        assert float(metrics["loss"]) == pytest.approx((w0 - c) ** 2 * q ** (2 * k), rel=1e-5)
        assert float(metrics["grad_norm"]) == pytest.approx(2 * abs(w0 - c) * q**k, rel=1e-5)
    assert float(state.params) == pytest.approx(c + (w0 - c) * q**n, rel=1e-6)
    average = c + (w0 - c) * (d**n + (1 - d) * q * (d**n - q**n) / (d - q))
    assert float(state.ema) == pytest.approx(average, rel=1e-6)


def test_the_average_is_float32_and_keeps_what_half_precision_would_lose():
    params = {"w": jnp.ones(4, jnp.bfloat16)}
    step = training.make_step(lambda p, key, index, batch: 0 * jnp.sum(p["w"]) + batch, optax.sgd(1.0), ema_decay=0.999)
    state = training.init(params, optax.sgd(1.0))
    assert state.ema["w"].dtype == jnp.float32
    state = state.replace(ema={"w": jnp.full(4, 0.5)})
    state, metrics = jax.jit(step)(state, KEY, jnp.arange(2), jnp.zeros(2, jnp.bfloat16))
    assert (state.params["w"].dtype, state.ema["w"].dtype, metrics["loss"].dtype) == (
        jnp.bfloat16,
        jnp.float32,
        jnp.float32,
    )
    np.testing.assert_allclose(state.ema["w"], 0.5005, rtol=1e-6)  # 0.5 in bfloat16


def test_a_half_precision_loss_is_averaged_in_float32():
    # 256 + 1 = 256 in bfloat16: a mean taken there would be far off.
    losses = jnp.arange(512, dtype=jnp.float32) % 7
    step = training.make_step(lambda p, key, index, batch: batch + 0 * p, optax.sgd(1.0), ema_decay=0.0)
    _, metrics = jax.jit(step)(
        training.init(jnp.zeros((), jnp.bfloat16), optax.sgd(1.0)), KEY, jnp.arange(512), losses.astype(jnp.bfloat16)
    )
    assert float(metrics["loss"]) == pytest.approx(float(np.mean(np.arange(512) % 7)), rel=1e-6)


def test_the_average_forgets_the_random_start_sooner_with_a_warm_up():
    def weight_of_the_start(decay, steps):
        # Parameters jump to 0 at once; the average is then what is left of the start.
        step = jax.jit(
            training.make_step(lambda p, key, index, batch: 0.5 * (p - batch) ** 2, optax.sgd(1.0), ema_decay=decay)
        )
        state = training.init(jnp.ones(()), optax.sgd(1.0))
        for _ in range(steps):
            state, _ = step(state, KEY, jnp.arange(1), jnp.zeros(1))
        return float(state.ema)

    assert weight_of_the_start(0.99, 20) == pytest.approx(0.99**20, rel=1e-5)
    # prod_k (1 + k) / (10 + k) = 9! k! / (k + 9)! telescopes.
    telescoped = np.prod([j / (20 + j) for j in range(1, 10)])
    assert weight_of_the_start(training.warm_decay(0.99), 20) == pytest.approx(telescoped, rel=1e-5)
    assert float(training.warm_decay(0.99)(10**6)) == pytest.approx(0.99)


def poisoned(bad, params, key, index, batch):
    """A loss with one bad example in a poisoned batch: at 0 a logarithm is not finite, and of a square root only the slope."""
    size = jnp.sum(params**2) * batch[:, 3]
    return (batch[:, :3] @ params) ** 2 + (jnp.log(size) if bad == "loss" else jnp.sqrt(size))


GOOD = np.concatenate([DATA, np.ones((16, 1), np.float32)], 1)
POISON = np.where(np.arange(64).reshape(16, 4) == 5 * 4 + 3, np.float32(0), GOOD)  # one example, so one device of eight


@pytest.mark.parametrize(
    ("layout", "bad"), [*((layout, "loss") for layout in LAYOUTS), (parallel.jit_step, "gradient")]
)
def test_a_nonfinite_step_is_skipped_on_every_device(layout, bad):
    optimizer = optax.adam(0.1)
    run = layout(make(functools.partial(poisoned, bad), optimizer, skip_nonfinite=True))
    state = training.init(jnp.ones(3), optimizer)
    placed, history = train(run, state, [POISON])
    after = run.read_state(placed)
    assert int(history[0]["nonfinite"]) == 1
    assert bool(jnp.isfinite(history[0]["loss"])) == (bad == "gradient")
    assert int(after.step) == 1
    assert largest_difference(after.replace(step=state.step), state) == 0
    assert all(
        np.array_equal(s.data, leaf.addressable_shards[0].data)
        for leaf in jax.tree.leaves(placed)
        for s in leaf.addressable_shards
    )
    placed, history = train(run, after, [GOOD])
    assert int(history[0]["nonfinite"]) == 0
    assert largest_difference(run.read_state(placed).params, after.params) > 0.01


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_a_nonfinite_step_is_let_through_unless_asked(bad):
    step = jax.jit(training.make_step(functools.partial(poisoned, bad), optax.sgd(0.1), ema_decay=0.9))
    state, metrics = step(training.init(jnp.ones(3), optax.sgd(0.1)), KEY, jnp.arange(16), POISON)
    assert int(metrics["nonfinite"]) == 1
    assert not np.isfinite(state.params).any()


def test_a_skipped_step_draws_other_noise_next_time():
    seen = []
    step = training.make_step(
        lambda p, key, index, batch: p * batch + jax.random.normal(key) * jnp.ones(2),
        optax.sgd(0.1),
        ema_decay=0.5,
        skip_nonfinite=True,
    )
    state = training.init(jnp.ones(()), optax.sgd(0.1))
    state, _ = step(state, KEY, jnp.arange(2), jnp.full(2, jnp.nan))
    for _ in range(2):
        _, metrics = step(state, KEY, jnp.arange(2), jnp.zeros(2))
        seen.append(float(metrics["loss"]))
    assert seen[0] == seen[1] == pytest.approx(float(jax.random.normal(jax.random.fold_in(KEY, 1))), abs=1e-6)


def test_clipping_and_schedules_of_optax_see_the_global_gradient():
    # Clipped to length 1, then a rate that halves: 1 - 1 - .5 - .25 whatever the devices.
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(lambda k: 0.5**k))
    for layout in LAYOUTS:
        run = layout(make(lambda p, key, index, batch: p * batch, optimizer))
        placed, history = train(run, training.init(jnp.ones(()), optimizer), [np.full(16, 100.0, np.float32)] * 3)
        assert float(run.read_state(placed).params) == pytest.approx(-0.75, abs=1e-6)
        assert float(history[0]["grad_norm"]) == pytest.approx(100.0)


def test_a_state_may_be_traced_without_values():
    shapes = jax.eval_shape(lambda p: training.init(p, optax.adam(1e-3)), start())
    assert shapes.ema["w"].shape == (3, 8)
    assert jax.tree.map(lambda _: P(), shapes).params == {"w": P(), "v": P()}


# ------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_batch_that_does_not_fit_is_refused_in_words(layout):
    run = layout(make(denoise, optax.sgd(0.1)))
    with pytest.raises(ValueError, match="8 devices divide, got 12 examples"):
        run.place_batch(DATA[:12])
    with pytest.raises(ValueError, match=r"of one size, got shapes \[\(16, 3\), \(8, 3\)\]"):
        run.place_batch([DATA, DATA[:8]])
    with pytest.raises(ValueError, match="of one size"):
        run.place_batch([DATA, np.float32(1)])
    with pytest.raises(ValueError, match=r"\[3, batch, ...\]"):
        layout(make(denoise, optax.sgd(0.1)), inner_steps=3).place_batch(DATA)
    with pytest.raises(ValueError, match="inner_steps=0"):
        layout(make(denoise, optax.sgd(0.1)), inner_steps=0)


def test_a_loss_or_a_decay_that_does_not_fit_is_refused_in_words():
    step = training.make_step(lambda p, key, index, batch: jnp.mean(batch) + p, optax.sgd(0.1), ema_decay=0.9)
    with pytest.raises(ValueError, match=r"one loss an example, expected shape \(16,\), got \(\)"):
        step(training.init(jnp.ones(()), optax.sgd(0.1)), KEY, jnp.arange(16), DATA)
    for decay in (1.0, -0.1):
        with pytest.raises(ValueError, match="ema_decay"):
            training.make_step(denoise, optax.sgd(0.1), ema_decay=decay)
        with pytest.raises(ValueError, match="ema_decay"):
            training.warm_decay(decay)
