"""What diffjax costs beside the same work written by hand, and how far its solvers err: `python -m experiments.bench [NAMES...]`.

    sampler    a sampler's steps / a scan of nothing but the network
    train      a training step / the same step written by hand
    inner      several training steps in one call / one step a call, for a U-Net
    reflected  a training step by the exact score of reflected noise / by Gaussian noise, the same U-Net
    corrupt    noising an array eagerly, step by step in Python / plain jnp operations
    cube       the score of reflected Brownian motion / a Gaussian score with one exp
    loop       a solver's loop with a trivial network / its bare arithmetic
    solvers    error of each solver at its exact endpoint, by the number of network calls
    stochastic sliced Wasserstein-2 distance of stochastic solvers' samples to their law

Each row has the least time of both sides, and the median of their ratios in rounds of one run each, in turns: processor time on a CPU (so that
neighbours on the machine count less), elapsed time elsewhere. Absolute times mean little. Needs only the core and the `nn` extra; peers in the last table
if they are installed.
"""

import argparse
import functools
import importlib.util
import math
import platform
import time
from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffjax import __version__, guidance, losses, networks, numerics, schedules, training
from diffjax.processes import cube, gaussian
from diffjax.samplers import bridge, frames
from diffjax.samplers import gaussian as solvers

# ---------------------------------------------------------------------------------------------------------- timing


def seconds(variants: dict[str, Callable[[], Any]], rounds: int = 15) -> dict[str, np.ndarray]:
    """The times `[rounds]` of each variant, all of them run in turns; compiled and warmed first."""
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    for run in variants.values():
        jax.block_until_ready(run())
    taken = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            start = clock()
            jax.block_until_ready(run())
            taken[name].append(clock() - start)
    return {name: np.asarray(row) for name, row in taken.items()}


def table(title: str, rows: list[tuple[str, np.ndarray, np.ndarray, float]]) -> None:
    """Prints rows of (name, seconds by round, seconds of the floor by round, bar)."""
    print(f"\n{title}")
    for name, took, floor, bar in rows:
        ratio, least = np.median(took / floor), 1e3 * took.min()
        verdict = "" if ratio <= bar else "   above the bar"
        print(f"  {name:44s} {least:9.3f} ms / {1e3 * floor.min():9.3f} ms = {ratio:5.2f}   (<= {bar:g}){verdict}")


# --------------------------------------------------------------------------------------------------- against hand-written


def sampler() -> None:
    """Bridge and Gaussian samplers on 4096 points of the plane, beside a scan of the network alone."""
    schedule, times = schedules.vp_linear(), schedules.times(20, stop=1e-3)
    plain, labelled = networks.MLP(), networks.MLP(num_classes=10)
    x, label = jax.random.normal(jax.random.key(0), (4096, 2)), jnp.zeros(4096, jnp.int32)
    params = plain.init(jax.random.key(1), x, times[0])
    more = labelled.init(jax.random.key(1), x, times[0], label)
    process, key = gaussian.process(schedule), jax.random.key(2)

    def bare(network, params, *condition):
        step = lambda x, t: (network.apply(params, x, t, *condition), None)
        return jax.jit(lambda x: jax.lax.scan(step, x, times[:-1])[0])

    def walk(predict, solver):
        return jax.jit(lambda x: solvers.sample(key, predict, x, times, schedule=schedule, solver=solver))

    predict = lambda x, t: plain.apply(params, x, t)
    condition = lambda x, t, label: labelled.apply(more, x, t, label)
    guided = lambda weight: guidance.classifier_free(condition, label, -1, weight)
    through_bridge = jax.jit(lambda x: bridge.sample(key, lambda key, x, t: predict(x, t), x, times, process=process))
    twice, labels = jnp.concatenate([x, x]), jnp.concatenate([label, -1 - label])
    floor, floor_label = bare(plain, params), bare(labelled, more, label)
    floor_twice = bare(labelled, more, labels)
    variants = {
        "bridge.sample": (lambda: through_bridge(x), lambda: floor(x), 1.03),
        "ancestral": (functools.partial(walk(predict, solvers.ancestral()), x), lambda: floor(x), 1.03),
        "ddim": (functools.partial(walk(predict, solvers.ddim()), x), lambda: floor(x), 1.03),
        "unipc(3)": (functools.partial(walk(predict, solvers.unipc(3)), x), lambda: floor(x), 1.03),
        "ddim, guidance 0": (functools.partial(walk(guided(0), solvers.ddim()), x), lambda: floor_label(x), 1.03),
        "ddim, guidance 2 (floor: twice the batch)": (
            functools.partial(walk(guided(2.0), solvers.ddim()), x), lambda: floor_twice(twice), 1.03,
        ),
    }  # fmt: skip
    compare("sampler / bare network: MLP 3 x 128, 4096 points, 20 steps", variants, rounds=40)


def compare(title: str, variants: dict[str, tuple[Callable, Callable, float]], rounds: int = 15) -> None:
    """Times each variant in turns with its floor, and prints the ratios."""
    rows = []
    for name, (run, floor, bar) in variants.items():
        took = seconds({"run": run, "floor": floor}, rounds)
        rows.append((name, took["run"], took["floor"], bar))
    table(title, rows)


def train() -> None:
    """A training step of batch 512 with Adam and an average, beside one written by hand."""
    schedule, network, optimizer, batch = schedules.vp_linear(), networks.MLP(), optax.adam(1e-3), 512
    x0 = jax.random.normal(jax.random.key(0), (batch, 2))
    params, key = network.init(jax.random.key(1), x0, jnp.zeros(batch)), jax.random.key(2)

    def loss_fn(params, key, index, batch):
        t = schedules.stratified_draw(key, index, x0.shape[0])
        predict = lambda x, t: network.apply(params, x, t)
        return losses.regression(numerics.example_keys(key, index), predict, batch, t, schedule=schedule)

    @functools.partial(jax.jit, donate_argnums=0)
    def by_hand(state, key, x0):
        step, params, ema, opt_state = state
        key_t, key_eps = jax.random.split(jax.random.fold_in(key, step))
        t, eps = jax.random.uniform(key_t, (batch,)), jax.random.normal(key_eps, x0.shape)
        alpha, sigma = schedule(t)

        def loss(params):
            xt = alpha[:, None] * x0 + sigma[:, None] * eps
            return jnp.mean((network.apply(params, xt, t) - eps) ** 2)

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(grads, opt_state)
        params = optax.apply_updates(params, updates)
        ema = jax.tree.map(lambda e, p: 0.999 * e + 0.001 * p, ema, params)
        return (step + 1, params, ema, opt_state), value

    make = functools.partial(training.make_step, loss_fn, optimizer, ema_decay=0.999)
    layout = training.parallel.jit_step(make, devices=jax.devices()[:1])
    data = layout.place_batch(x0)
    states = {"ours": layout.place_state(training.init(params, optimizer))}
    states["by hand"] = jax.tree.map(jnp.copy, (jnp.zeros((), jnp.int32), params, params, optimizer.init(params)))

    def run(name, step, data):
        for _ in range(20):
            states[name], _ = step(states[name], key, data)
        return states[name]

    ours, hand = (functools.partial(run, *args) for args in (("ours", layout.step, data), ("by hand", by_hand, x0)))
    compare("training step / by hand: MLP 3 x 128, batch 512, 20 steps", {"jit_step": (ours, hand, 1.05)}, rounds=25)


def inner() -> None:
    """Eight training steps of a small U-Net in one call, beside eight calls."""
    schedule, network, optimizer = (
        schedules.cosine(),
        networks.UNet(channels=16, multipliers=(1, 2), attention_levels=()),
        optax.adam(1e-3),
    )
    x0 = jax.random.normal(jax.random.key(0), (8, 16, 28, 28, 1))
    params, key = network.init(jax.random.key(1), x0[0], jnp.zeros(16)), jax.random.key(2)

    def loss_fn(params, key, index, batch):
        t = schedules.stratified_draw(key, index, x0.shape[1])
        predict = lambda x, t: network.apply(params, x, t)
        return losses.regression(numerics.example_keys(key, index), predict, batch, t, schedule=schedule)

    make = functools.partial(training.make_step, loss_fn, optimizer, ema_decay=0.999)
    one, many = (training.parallel.jit_step(make, devices=jax.devices()[:1], inner_steps=k) for k in (1, 8))
    states = {
        "one": one.place_state(training.init(params, optimizer)),
        "many": many.place_state(training.init(params, optimizer)),
    }
    rows, block = [one.place_batch(x) for x in x0], many.place_batch(x0)

    def singly():
        for row in rows:
            states["one"], _ = one.step(states["one"], key, row)
        return states["one"]

    def together():
        states["many"], _ = many.step(states["many"], key, block)
        return states["many"]

    compare(
        "8 training steps in one call / in eight: U-Net, batch 16 x 28 x 28",
        {"inner_steps=8": (together, singly, 1.1)},
        rounds=4,
    )


def reflected() -> None:
    """A training step of a U-Net on 28 x 28 images by the exact reflected score, beside the same step by the Gaussian noise."""
    network = networks.UNet(channels=32, multipliers=(1, 2), blocks=1, attention_levels=())
    optimizer, batch = optax.adam(1e-3), 32
    x0 = jax.random.uniform(jax.random.key(0), (batch, 28, 28, 1))
    params, key = network.init(jax.random.key(1), x0, jnp.zeros(batch)), jax.random.key(2)
    plane, box = schedules.cosine(), schedules.ve(0.01, 5.0)
    process, weight = cube.process(box), losses.variance(box)

    def gaussian_loss(params, key, index, batch):
        t = schedules.stratified_draw(key, index, x0.shape[0])
        predict = lambda x, t: network.apply(params, x, t)
        return losses.regression(numerics.example_keys(key, index), predict, batch, t, schedule=plane)

    def reflected_loss(params, key, index, batch):
        t = schedules.stratified_draw(key, index, x0.shape[0])
        score = lambda x, t: cube.scaled_score(network.apply(params, x, t), x, box(t)[1])
        keys = numerics.example_keys(key, index)
        return losses.score_matching(keys, score, batch, t, process=process, weight=weight)

    def run(name, step, data):
        for _ in range(4):
            states[name], _ = step(states[name], key, data)
        return states[name]

    variants, states = {}, {}
    for name, loss_fn in (("box", reflected_loss), ("plane", gaussian_loss)):
        make = functools.partial(training.make_step, loss_fn, optimizer, ema_decay=0.999)
        layout = training.parallel.jit_step(make, devices=jax.devices()[:1])
        states[name] = layout.place_state(training.init(params, optimizer))
        variants[name] = functools.partial(run, name, layout.step, layout.place_batch(x0))
    compare(
        "training step, reflected score / Gaussian noise: U-Net, batch 32 x 28 x 28",
        {"score matching on the box": (variants["box"], variants["plane"], 1 / 0.95)},
        rounds=10,
    )


def corrupt() -> None:
    """Noising eagerly, beside plain operations on arrays."""
    schedule = schedules.vp_linear()
    process, key, t = gaussian.process(schedule), jax.random.key(0), jnp.linspace(0.1, 0.9, 64)
    variants = {}
    for shape in ((64, 2), (64, 32, 32, 3)):
        x0 = jnp.ones(shape)
        alpha, sigma = (numerics.expand_right(v, x0) for v in schedule(t))
        plain = lambda x0=x0, alpha=alpha, sigma=sigma: alpha * x0 + sigma * jax.random.normal(key, x0.shape)
        ours = lambda x0=x0: process.corrupt(key, x0, t)
        variants[f"corrupt {shape}"] = many(ours), many(plain), 3.0
    compare("eager corrupt / plain operations (alpha, sigma given), 20 calls", variants)


def many(run: Callable[[], Any], calls: int = 20) -> Callable[[], Any]:
    """The last of several calls."""
    return lambda: [run() for _ in range(calls)][-1]


def cube_score() -> None:
    """The score of reflected Brownian motion on images, beside a Gaussian score with one exp for each entry."""
    keys = jax.random.split(jax.random.key(0), 2)
    x0, xt = (jax.random.uniform(key, (128, 32, 32, 3)) for key in keys)
    plain = jax.jit(lambda x0, xt, s: (x0 - xt) / s**2 * jnp.exp(-((xt - x0) ** 2) / (2 * s**2)))
    # A fifth of a millisecond is too short for a clock, so twenty calls, each waited for.
    twenty = lambda score, sigma: lambda: [jax.block_until_ready(score(x0, xt, sigma)) for _ in range(20)][-1]
    variants = {}
    for name, low, high in (("small sigma", 0.01, 0.3), ("all sigma", 0.01, 2.0), ("large sigma", 0.4, 2.0)):
        sigma = jnp.linspace(low, high, 128)[:, None, None, None]
        variants[name] = twenty(jax.jit(cube.score), sigma), twenty(plain, sigma), 10.0
    compare("cube score / Gaussian score with one exp: 20 x 128 x 32 x 32 x 3", variants)


# ------------------------------------------------------------------------------------------------------------ solvers


def loop() -> None:
    """Solvers with a trivial network on 64 x 3 x 32 x 32, beside their arithmetic: one sum of as many arrays as they remember."""
    schedule, steps = schedules.vp_linear(), 50
    x, times, key = jnp.ones((64, 3, 32, 32)), schedules.times(steps, stop=1e-3), jax.random.key(0)
    predict = lambda x, t: 0.5 * x

    def arithmetic(past, noisy):
        weights = tuple(jnp.linspace(0.1, 0.2, steps) for _ in range(past + 3))

        def step(carry, now):
            x, history = carry
            i, w = now
            x0_hat = predict(x, None)
            new = w[0] * x + w[1] * x0_hat
            for weight, old in zip(w[2:], history, strict=False):
                new = new + weight * old
            if noisy:
                new = new + w[-1] * jax.random.normal(jax.random.fold_in(key, i), x.shape)
            return (new, (x0_hat, *history)[:past]), None

        return jax.jit(lambda x: jax.lax.scan(step, (x, (x,) * past), (jnp.arange(steps), weights))[0][0])

    cases = {
        "ddim()": (solvers.ddim(), 0, False), "dpmpp(2)": (solvers.dpmpp(2), 1, False), "dpmpp(3)": (solvers.dpmpp(3), 2, False),
        "deis(3)": (solvers.deis(3), 2, False), "adams(4)": (solvers.adams(4), 3, False), "unipc(3)": (solvers.unipc(3), 3, False),
        "heun(), two calls a step": (solvers.heun(), 1, False), "ancestral()": (solvers.ancestral(), 0, True),
        "dpmpp(3, sde=True)": (solvers.dpmpp(3, sde=True), 2, True),
    }  # fmt: skip
    variants = {}
    for name, (solver, past, noisy) in cases.items():
        walk = jax.jit(
            lambda x, solver=solver: solvers.sample(key, predict, x, times, schedule=schedule, solver=solver)
        )
        variants[name] = functools.partial(walk, x), functools.partial(arithmetic(past, noisy), x), 2.1
    compare("solver loop / arithmetic: trivial network, 64 x 3 x 32 x 32, 50 steps", variants)


# Eight modes on a ring: radial standard deviation .05, tangential sqrt(.025).
LOG_WEIGHTS = [-2.3200495, -1.8165523, -2.47704075, -2.0830589, -2.00860848, -1.68633453, -2.03634167, -2.51666668]
CALLS = (5, 10, 20, 40, 80)
SOLVERS = {
    "ddim(), euler()": solvers.ddim(),
    "heun()": solvers.heun(),
    "heun(frame=flow)": solvers.heun(frame=frames.flow),
    "dpmpp_2s()": solvers.dpmpp_2s(),
    "dpmpp(2)": solvers.dpmpp(2),
    "dpmpp(2, corrected)": solvers.dpmpp(2, corrected=True),
    "dpmpp(3)": solvers.dpmpp(3),
    "dpmpp(3, corrected)": solvers.dpmpp(3, corrected=True),
    "deis(2)": solvers.deis(2),
    "deis(3)": solvers.deis(3),
    "deis(4)": solvers.deis(4),
    "adams(2)": solvers.adams(2),
    "adams(3)": solvers.adams(3),
    "adams(4, frame=ratio)": solvers.adams(4, frame=frames.ratio),
    "plms()": solvers.plms(),
    "unipc(2)": solvers.unipc(2),
    "unipc(2, bh1, taper)": solvers.unipc(2, bh1=True, taper=1000),
    "unipc(2, frame=noise)": solvers.unipc(2, frame=frames.noise),
    "unipc(3)": solvers.unipc(3),
    "unipc(3, frame=noise)": solvers.unipc(3, frame=frames.noise),
    "unipc(4, frame=noise)": solvers.unipc(4, frame=frames.noise),
}
TWO_CALLS = ("heun", "dpmpp_2s")
PUBLISHED = {  # the best of diffusers, k-diffusion and azula on the same target and grid, other starts
    "DDIM, Euler": (1.1e-1, 5.3e-2, 2.6e-2, 1.5e-2, 9.3e-3),
    "Heun": (2.5, 6.3e-1, 4.9e-2, 8.4e-3, 2.1e-3),
    "DPM-Solver++ 2M": (6.8e-2, 6.8e-2, 1.5e-2, 3.9e-3, 9.6e-4),
    "DPM-Solver++ 3M": (6.6e-2, 1.05e-1, 1.5e-2, 1.2e-3, 1.4e-4),
    "exponential Adams 3": (7.9e-2, 2.5e-2, 6.7e-3, 1.4e-3, 2.3e-4),
    "UniPC 2": (6.6e-2, 6.0e-2, 7.9e-3, 1.6e-3, 1.9e-4),
    "UniPC 3": (6.6e-2, 9.1e-2, 1.4e-2, 6.1e-4, 2.9e-5),
}


def ring(x, sigma):
    """E[x_0 | x_0 + sigma eps = x] for the ring of modes."""
    angle = 0.1 + 2 * math.pi / 8 * jnp.arange(8)
    out = jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1)
    along = jnp.stack([-out[:, 1], out[:, 0]], -1)
    difference = x[:, None] - out[None]
    moved, log_p = out[None], jnp.asarray(LOG_WEIGHTS)[None]
    for axis, variance in ((out, 0.0025), (along, 0.025)):
        projection = jnp.sum(difference * axis[None], -1)
        total = variance + sigma**2
        moved = moved + (variance / total * projection)[..., None] * axis[None]
        log_p = log_p - 0.5 * (projection**2 / total + jnp.log(total))
    return jnp.sum(jax.nn.softmax(log_p)[..., None] * moved, 1)


def errors() -> None:
    """Root-mean-square error at the end of the probability-flow ODE from sigma = 80 to 0.002, Karras grid, float64."""
    with jax.enable_x64(True):
        schedule = schedules.karras()
        start = jnp.asarray(80 * np.random.default_rng(0).normal(size=(256, 2)))

        def end(solver, steps):
            predict = lambda x, t: ring(x, schedule(t)[1])
            walk = jax.jit(
                lambda x, times: solvers.sample(jax.random.key(0), predict, x, times, schedule=schedule, solver=solver)
            )
            return walk(start, jnp.linspace(1.0, 0.0, steps + 1))

        exact = end(solvers.deis(4), 4000)
        rms = lambda x: float(jnp.sqrt(jnp.mean((x - exact) ** 2)))
        rows = {
            name: [rms(end(solver, calls // 2 if name.startswith(TWO_CALLS) else calls)) for calls in CALLS]
            for name, solver in SOLVERS.items()
        }
        rows["best"] = [min(column) for column in zip(*rows.values(), strict=True)]
        print("\nerror at the exact endpoint, by network calls: 8 modes on a ring, sigma 80 -> 0.002, rho 7")
        lines = {**rows, **{f"published: {name}": row for name, row in PUBLISHED.items()}, **peers(start, rms)}
        print(f"  {'':28s}" + "".join(f"{calls:10d}" for calls in CALLS))
        for name, row in lines.items():
            print(f"  {name:28s}" + "".join(f"{value:10.1e}" for value in row))


STOCHASTIC = {
    "ancestral()": solvers.ancestral(),
    "dpmpp(2, sde)": solvers.dpmpp(2, sde=True),
    "dpmpp(2, sde, corrected)": solvers.dpmpp(2, sde=True, corrected=True),
    "dpmpp(3, sde)": solvers.dpmpp(3, sde=True),
    "dpmpp(3, sde, corrected)": solvers.dpmpp(3, sde=True, corrected=True),
}


def distances(count: int = 50_000, calls: int = 40, seeds: int = 4) -> None:
    """Sliced W2 to the ring's law of stochastic solvers' samples; the floor is that of as many real points."""
    angles = np.pi * (np.arange(64) + 0.5) / 64
    axes = np.stack([np.cos(angles), np.sin(angles)])
    weights = np.exp(LOG_WEIGHTS) / np.exp(LOG_WEIGHTS).sum()

    def real(rng):
        angle = 0.1 + 2 * np.pi / 8 * rng.choice(8, count, p=weights)
        out = np.stack([np.cos(angle), np.sin(angle)], -1)
        along = np.stack([-out[:, 1], out[:, 0]], -1)
        radial, tangential = rng.normal(size=(2, count, 1))
        return out * (1 + 0.05 * radial) + along * math.sqrt(0.025) * tangential

    # The quantiles of the law itself, but for a hundredth of a sample's variance.
    many = np.random.default_rng(0)
    quantiles = np.mean([np.sort(real(many) @ axes, axis=0) for _ in range(100)], axis=0)
    distance = lambda x: float(np.sqrt(np.mean((np.sort(np.asarray(x) @ axes, axis=0) - quantiles) ** 2)))
    schedule, times = schedules.karras(), jnp.linspace(1.0, 0.0, calls + 1)
    rows = {"(real points)": [distance(real(np.random.default_rng(1 + seed))) for seed in range(4 * seeds)]}
    predict = lambda x, t: ring(x, schedule(t)[1])
    for name, solver in STOCHASTIC.items():
        walk = jax.jit(lambda k, x, s=solver: solvers.sample(k, predict, x, times, schedule=schedule, solver=s))
        keys = [jax.random.split(jax.random.key(seed)) for seed in range(seeds)]
        rows[name] = [distance(walk(key, 80 * jax.random.normal(first, (count, 2)))) for first, key in keys]
    print(f"\nsliced W2 of {count} samples to their law, {calls} network calls, float32: mean and range over seeds")
    for name, row in rows.items():
        print(f"  {name:28s}{np.mean(row):10.4f}{min(row):10.4f} -{max(row):7.4f}")


def peers(start: jax.Array, rms: Callable[[Any], float]) -> dict[str, list[float]]:
    """The same of k-diffusion's samplers, where it is installed."""
    if importlib.util.find_spec("k_diffusion") is None:
        print("\n(k_diffusion is not installed: its rows are left out)")
        return {}
    import k_diffusion
    import torch

    def denoise(x, sigma, **_):
        return torch.from_numpy(np.array(ring(jnp.asarray(x.numpy()), float(sigma[0]))))

    sampling, rows = k_diffusion.sampling, {}
    for name in ("euler", "heun", "lms", "dpmpp_2m", "dpmpp_2s_ancestral", "dpmpp_3m_sde"):
        method, rows[f"k-diffusion: {name}"] = getattr(sampling, f"sample_{name}"), []
        for calls in CALLS:
            steps = calls // 2 if name in ("heun", "dpmpp_2s_ancestral") else calls
            sigmas = torch.from_numpy(np.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), steps + 1) ** 7)
            more = {"eta": 0.0} if "sde" in name or "ancestral" in name else {}
            with torch.no_grad():
                x = method(denoise, torch.from_numpy(np.array(start)), sigmas, disable=True, **more)
            rows[f"k-diffusion: {name}"].append(rms(jnp.asarray(x.numpy())))
    return rows


BENCHES = {
    "sampler": sampler, "train": train, "inner": inner, "reflected": reflected, "corrupt": corrupt, "cube": cube_score, "loop": loop, "solvers": errors, "stochastic": distances,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAMES", help=f"of {', '.join(BENCHES)}; all by default")
    names = parser.parse_args().names or list(BENCHES)
    unknown = [name for name in names if name not in BENCHES]
    if unknown:
        parser.error(f"no bench is named {unknown[0]!r}: there are {', '.join(BENCHES)}")
    device = jax.devices()[0]
    print(
        f"diffjax {__version__}, jax {jax.__version__}, flax {flax.__version__}, optax {optax.__version__}, "
        f"Python {platform.python_version()}; {jax.device_count()} x {device.device_kind} ({device.platform})"
    )
    for name in names:
        BENCHES[name]()


if __name__ == "__main__":
    main()
