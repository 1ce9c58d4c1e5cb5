"""Reflected diffusion with exact scores, in pictures and figures: no network, no training.

    python -m experiments.reflected [--out runs/reflected]

`kernel.png`: the transition density by mirror images and by harmonics, and the noise at which one series takes over from the other.
`walk.png`: paths between mirrors, and their way back. `guidance.png` and a table: a mixture on the square, one of two overlapping classes
asked for with guidance w, against the density p(x|c)^(1+w) p(x)^-w that guidance is named after. Reflected walks stay in the square by
themselves; a plain diffusion, here with the exact denoiser of the same data, is held there by clipping its estimate (static threshold),
by shrinking it (dynamic threshold), or only at the end. `report.json` holds the table.

No walk samples that density exactly: the guided score at each noise level is that of a product of noisy densities, not of the product with noise.
A corrector's steps at each level go to the product at that level, and at the last one it is what is wanted.

What comes out: without guidance all walks meet the class, but projected steps hold 3.1% of the entries at walls instead of 2.0%. With guidance no walk
without a corrector meets the density, more steps do not help (100 to 800 alike), and reflection is no cure: at w = 2.5 reflected and thresholded
diffusions are equally far from it, at w = 15 dynamic thresholding is nearest, and deterministic flows are farthest, the reflected one with 78% of its
entries at walls. Ten corrections a step bring the reflected walk to the floor up to w = 2.5, and at w = 15 closer than any other reflected one.
"""

import argparse
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from matplotlib.figure import Figure
from rich import box, table

from diffjax import guidance, schedules
from diffjax.processes import cube
from diffjax.samplers import correctors, gaussian, langevin, ode
from experiments import configs, metrics, run, screen

WEIGHTS = (0.0, 1.0, 2.5, 15.0)
BAND = 0.005  # what counts as at a wall
BOX, PLAIN = schedules.ve(0.01, 3.0), schedules.cosine()

# Two classes of two folded Gaussians each, a half of either class among the other's; the first leans on the left wall and into a corner.
CENTERS = np.array([[0.05, 0.3], [0.35, 0.95], [0.6, 0.25], [0.45, 0.65]])
WIDTHS = np.array([[0.12, 0.2], [0.25, 0.1], [0.25, 0.2], [0.2, 0.2]])
SHARES = np.array([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5], [0.25, 0.25, 0.25, 0.25]])  # of class 0, class 1, all

Walk = Callable[[Array, Array], Array]
"""`(key, weight) -> samples`."""

# ------------------------------------------------------------------------------------------------------ exact scores


def _mixture(log_kernels: Array, slopes: Array, label: Array) -> Array:
    """The score of a mixture from those of its parts `[n, parts, 2]`; the label -1 stands for all classes."""
    prior = jnp.log(jnp.asarray(SHARES, jnp.float32))[label]
    share = jax.nn.softmax(prior + log_kernels.sum(-1), axis=-1)
    return (share[..., None] * slopes).sum(1)


def reflected_score(x: Array, t: Array, label: Array) -> Array:
    """The score of a class under reflected noise: folded Gaussians get wider."""
    _, sigma = BOX(t)
    width = jnp.sqrt(
        jnp.square(jnp.asarray(WIDTHS, jnp.float32))[None] + jnp.broadcast_to(sigma, x.shape[:1])[:, None, None] ** 2
    )
    centers, point = (
        jnp.broadcast_to(jnp.asarray(CENTERS, jnp.float32)[None], width.shape),
        jnp.broadcast_to(x[:, None], width.shape),
    )
    return _mixture(cube.log_kernel(centers, point, width), cube.score(centers, point, width), label)


def plain_denoiser(z: Array, t: Array, label: Array) -> Array:
    """`E[u | z]` of the same data on [-1, 1], u = 2x - 1, under Gaussian noise `z = alpha u + sigma eps`.

    On [-1, 1] a folded Gaussian is the sum of its images, and each, given z, a Gaussian cut off at the ends.
    """
    alpha, sigma = (v[:, None, None, None] for v in PLAIN(jnp.broadcast_to(t, z.shape[:1])))
    image = np.concatenate(
        [sign * (2 * CENTERS[..., None] - 1) + 4.0 * np.arange(-1, 2) + (1 - sign) for sign in (1, -1)], -1
    )
    start, width = jnp.asarray(image, jnp.float32)[None], jnp.asarray(2 * WIDTHS, jnp.float32)[None, ..., None]
    total = jnp.sqrt((alpha * width) ** 2 + sigma**2)
    spread, away = width * sigma / total, z[:, None, :, None] - alpha * start
    mean = start + alpha * (width / total) ** 2 * away

    def log_mass(mean):  # of N(mean, spread^2) on [-1, 1], from the tail that has all its digits
        high, low = (jax.scipy.special.log_ndtr((end - jnp.abs(mean)) / spread) for end in (1, -1))
        return high + jnp.log1p(-jnp.exp(low - high))

    mass, slope = jax.jvp(log_mass, (mean,), (jnp.ones_like(mean),))
    logs = mass - 0.5 * (away / total) ** 2 - jnp.log(total)
    cut = jnp.sum(jax.nn.softmax(logs, -1) * jnp.clip(mean + spread**2 * slope, -1, 1), -1)
    return _mixture(jax.nn.logsumexp(logs, -1), cut, label)


# ------------------------------------------------------------------------------------------------------------ truth


def log_density(label: int, points: np.ndarray) -> np.ndarray:
    """`log p(x | class)` on the lattice points x points of the square, `[m, m]`."""
    kernels = [
        np.asarray(cube.log_kernel(jnp.float32(c), jnp.asarray(points, jnp.float32), w), np.float64)
        for c, w in zip(CENTERS.flat, WIDTHS.flat, strict=True)
    ]
    parts = [np.exp(kernels[2 * i][:, None] + kernels[2 * i + 1][None]) for i in range(len(CENTERS))]
    return np.log(sum(share * part for share, part in zip(SHARES[label], parts, strict=True)))


def tilted(weight: float, side: int = 800) -> np.ndarray:
    """The masses of `side` x `side` cells under p(x|c)^(1+w) p(x)^-w, c = 0."""
    middle = (np.arange(side) + 0.5) / side
    logs = (1 + weight) * log_density(0, middle) - weight * log_density(-1, middle)
    mass = np.exp(logs - logs.max())
    return mass / mass.sum()


def draws(mass: np.ndarray, number: int, seed: int) -> np.ndarray:
    """Points of a lattice's law, uniform within their cells."""
    rng, side = np.random.default_rng(seed), len(mass)
    cell = rng.choice(mass.size, number, p=mass.ravel())
    return (np.stack(np.divmod(cell, side), 1) + rng.random((number, 2))) / side


def at_walls(x: np.ndarray) -> float:
    """The share of entries within `BAND` of a wall."""
    return float(np.mean(np.minimum(x, 1 - x) < BAND))


def truly_at_walls(mass: np.ndarray) -> float:
    """The same of a lattice's law."""
    cells = round(BAND * len(mass))
    return float(np.mean([edge[:cells].sum() + edge[-cells:].sum() for edge in (mass.sum(1), mass.sum(0))]))


# ------------------------------------------------------------------------------------------------------------ walks


def _guided(predict: Callable[..., Array], number: int, weight: Array) -> Callable[[Array, Array], Array]:
    return guidance.classifier_free(predict, condition=jnp.zeros(number, int), null=-1, weight=weight)


def reflected(steps: int, number: int, *, move: Any = langevin.reflect, noise: Any = 1.0, corrections: int = 0) -> Walk:
    """A reverse diffusion on the box, and a last step without noise."""

    def walk(key, weight):
        score = _guided(reflected_score, number, weight)
        start, key = jax.random.uniform(jax.random.fold_in(key, 1), (number, 2)), jax.random.fold_in(key, 2)
        predictor = correctors.reverse_diffusion(score, schedule=BOX, move=move, noise=noise)
        x = correctors.predictor_corrector(
            key, predictor, score, start, schedules.times(steps), ratio=0.1, steps=corrections, move=move
        )
        return correctors.denoise(score, x, 0.0, schedule=BOX, move=move)

    return walk


def flow(steps: int, number: int) -> Walk:
    """The probability flow of the box, four evaluations a step."""

    def walk(key, weight):
        field = ode.folded(_guided(reflected_score, number, weight), schedule=BOX, fold=cube.fold, length=1.0)
        return ode.sample(field, jax.random.uniform(key, (number, 2)), schedules.times(steps // 4))

    return walk


def plain(
    steps: int, number: int, *, threshold: Any = lambda predict: predict, solver: Any = gaussian.ancestral
) -> Walk:
    """A Gaussian diffusion of data on [-1, 1] with a threshold on its estimates, and clipped at its end."""

    def walk(key, weight):
        start, key = jax.random.normal(jax.random.fold_in(key, 1), (number, 2)), jax.random.fold_in(key, 2)
        predict = threshold(_guided(plain_denoiser, number, weight))
        # Fine near the data: the last estimate is a mean, which keeps clear of the walls by as much noise as it sees.
        times = schedules.times(steps, spacing=schedules.quadratic)
        x = gaussian.sample(key, predict, start, times, schedule=PLAIN, solver=solver())
        return jnp.clip((x + 1) / 2, 0, 1)

    return walk


# A percentile of the two entries of a point is the greater of them.
DYNAMIC = functools.partial(guidance.dynamic_threshold, percentile=1.0)
METHODS: dict[str, Callable[[int, int], Walk]] = {
    "reflected diffusion": reflected,
    "reflected flow": flow,
    "reflected, annealed noise": functools.partial(reflected, noise=lambda t: t),
    "projected diffusion": functools.partial(reflected, move=langevin.clip),
    "plain, static threshold": functools.partial(plain, threshold=guidance.static_threshold),
    "plain, dynamic threshold": functools.partial(plain, threshold=DYNAMIC),
    "plain, clipped at the end": plain,
    "plain flow, static": functools.partial(plain, threshold=guidance.static_threshold, solver=gaussian.ddim),
    "reflected, 10 corrections": functools.partial(reflected, corrections=10),
}


def compare(number: int, seeds: int, steps: int) -> tuple[dict[str, Any], dict[tuple[str, float], np.ndarray]]:
    """Figures of all methods and weights, `{method: {weight: {figure: [mean, sd]}}}` with the truth and its floor among them, and samples."""
    report: dict[str, Any] = {}
    samples: dict[tuple[str, float], np.ndarray] = {}
    truths = {weight: tilted(weight) for weight in WEIGHTS}
    real = {
        w: [draws(m, number, seed) for seed in range(2 * seeds)] for w, m in truths.items()
    }  # one half for the methods, one for the floor

    def figures(sets: Sequence[np.ndarray], weight: float) -> dict[str, list[float]]:
        pairs = list(zip(sets, real[weight], strict=False))
        values = {
            "walls": [at_walls(x) for x, _ in pairs],
            "energy": [metrics.energy_distance(x, y) for x, y in pairs],
            "sliced": [metrics.sliced_wasserstein(x, y, directions=64) for x, y in pairs],
        }
        return {name: [float(np.mean(v)), float(np.std(v, ddof=1))] for name, v in values.items()}

    report["truth"] = {w: figures(real[w][seeds:], w) | {"walls": [truly_at_walls(truths[w]), 0.0]} for w in WEIGHTS}
    for name, method in METHODS.items():
        walk = jax.jit(method(steps, number * seeds))
        report[name] = {}
        for weight in WEIGHTS:
            x = np.asarray(walk(jax.random.key(0), jnp.float32(weight)), np.float64)
            report[name][weight] = figures(np.split(x, seeds), weight)
            samples[name, weight] = x[:number]
    return report, samples


def sheet(report: dict[str, Any], figure: str, title: str, scale: float) -> table.Table:
    """A table of one figure: methods down, weights across, mean and standard deviation over seeds."""
    lines = table.Table(
        box=box.SIMPLE_HEAD, show_edge=False, padding=0, title=title, title_justify="left", title_style=""
    )
    lines.add_column("", no_wrap=True)
    for weight in WEIGHTS:
        lines.add_column(f"w = {weight:g}", justify="right", no_wrap=True)
    for name, row in report.items():
        cells = [row[weight][figure] for weight in WEIGHTS]
        lines.add_row(name, *(f"{scale * mean:.2f} ± {scale * spread:.2f}" for mean, spread in cells))
    return lines


# --------------------------------------------------------------------------------------------------------- pictures


def kernel_picture() -> Figure:
    """Both series cut short at three noise levels, and how far off they are anywhere, by noise level."""
    picture = Figure(figsize=(12, 6), layout="constrained")
    rows = picture.subplots(2, 3)
    grid = jnp.linspace(0, 1, 201)
    starts, ends = jnp.broadcast_to(grid[::10, None], (21, 201)), jnp.broadcast_to(grid[None], (21, 201))
    for axes, sigma in zip(rows[0], (0.15, 0.335, 0.7), strict=True):
        axes.plot(grid, np.exp(cube.log_kernel(0.2, grid, sigma)), color="0.7", lw=5, label="exact")
        for terms, style in ((1, ":"), (2, "--")):
            axes.plot(
                grid,
                np.exp(cube.image_log_kernel(0.2, grid, sigma, terms)),
                style,
                color="tab:blue",
                label=f"images: {terms}",
            )
            axes.plot(
                grid,
                np.exp(cube.harmonic_log_kernel(0.2, grid, sigma, terms)),
                style,
                color="tab:red",
                label=f"harmonics: {terms}",
            )
        axes.set(title=f"p(x | 0.2), sigma = {sigma}", xlim=(0, 1), ylim=(0, None))
    rows[0, 0].legend(fontsize=7)
    sigmas = np.geomspace(0.05, 2, 40)
    worst = jax.jit(
        lambda sigma, terms, series: jnp.abs(
            jnp.exp(series(starts, ends, sigma, terms)) - jnp.exp(cube.log_kernel(starts, ends, sigma))
        ).max(),
        static_argnums=(1, 2),
    )
    for axes, terms in zip(rows[1], (1, 2, 4), strict=True):
        for series, color, name in (
            (cube.image_log_kernel, "tab:blue", "images"),
            (cube.harmonic_log_kernel, "tab:red", "harmonics"),
        ):
            errors = [max(float(worst(jnp.float32(s), terms, series)), 1e-8) for s in sigmas]
            axes.loglog(sigmas, errors, color=color, label=f"{terms} {name}")
        axes.axvline(0.335, color="0.7", lw=1, zorder=0)
        axes.set(xlabel="sigma", title="largest error of the density", ylim=(1e-8, 20))
        axes.legend(fontsize=7)
    return picture


def walk_picture(seed: int, steps: int) -> Figure:
    """Paths of the noise between mirrors, and of the reverse diffusion, over the density of all noise levels."""
    label, many = 0, 4000
    times = schedules.times(steps)
    rng = np.random.default_rng(seed)
    start = draws(tilted(0.0), many, seed)[:, 0]

    def noised(x, row):
        key, s, t = row
        low, high = BOX(s)[1], BOX(t)[1]
        x = cube.corrupt(key, x, jnp.sqrt((high - low) * (high + low)))
        return x, x

    keys = jax.random.split(jax.random.key(seed), steps)
    first = cube.corrupt(jax.random.key(seed + 1), jnp.asarray(start, jnp.float32), 0.01)
    _, there = jax.lax.scan(noised, first, (keys, times[::-1][:-1], times[::-1][1:]))
    score = lambda x, t: reflected_score(x, t, jnp.full(len(x), label))
    predictor = correctors.reverse_diffusion(score, schedule=BOX, move=langevin.reflect)
    x1 = jnp.asarray(rng.random((many, 2)), jnp.float32)
    _, back = jax.jit(
        lambda x: correctors.predictor_corrector(
            jax.random.key(seed), predictor, None, x, times, steps=0, track=lambda x, t: x[:, 0]
        )
    )(x1)
    picture = Figure(figsize=(12, 4.5), layout="constrained")
    for axes, states, clock, title in (
        (picture.add_subplot(1, 2, 1), np.asarray(there), times[::-1][1:], "noise: folded at the walls"),
        (picture.add_subplot(1, 2, 2), np.asarray(back), times[1:], "and back, by the exact score"),
    ):
        shade = np.stack([np.histogram(x, 100, (0, 1), density=True)[0] for x in states], 1)
        order = slice(None) if clock[0] < clock[-1] else slice(None, None, -1)
        axes.imshow(shade[:, order], extent=(0, 1, 0, 1), origin="lower", aspect="auto", cmap="Greys", vmax=6)
        axes.plot(clock, states[:, :5], lw=0.8)
        axes.set(xlabel="t", ylabel="x", title=title, xlim=(clock[0], clock[-1]), ylim=(0, 1))
    return picture


def guidance_picture(samples: dict[tuple[str, float], np.ndarray]) -> Figure:
    """Samples at three weights beside the density that they are named after."""
    shown = (
        "reflected diffusion",
        "reflected flow",
        "reflected, 10 corrections",
        "plain, static threshold",
        "plain, dynamic threshold",
    )
    weights = (0.0, 2.5, 15.0)
    picture = Figure(figsize=(3 * (len(shown) + 1), 3 * len(weights)), layout="constrained")
    for row, weight in zip(picture.subplots(len(weights), len(shown) + 1), weights, strict=True):
        row[0].imshow(np.sqrt(tilted(weight, 200)).T, extent=(0, 1, 0, 1), origin="lower", cmap="Greys")
        row[0].set(ylabel=f"w = {weight:g}", title="p(x|c)^(1+w) p(x)^-w")
        for axes, name in zip(row[1:], shown, strict=True):
            axes.plot(*samples[name, weight].T, ".", ms=1.5, color="tab:red")
            axes.set(title=name, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        for axes in row:
            axes.set(xticks=[], yticks=[])
    return picture


def main(argv: Sequence[str] | None = None) -> None:
    parser = configs.Parser(prog="python -m experiments.reflected", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/reflected"), metavar="DIR")
    parser.add_argument("--steps", type=int, default=200, metavar="S", help="of each walk, in calls of the score")
    parser.add_argument("--quick", action="store_true", help="a trial in seconds: few points, two seeds")
    args: argparse.Namespace = parser.parse_args(argv)
    number, seeds, steps = (200, 2, min(args.steps, 20)) if args.quick else (1000, 5, args.steps)
    args.out.mkdir(parents=True, exist_ok=True)
    kernel_picture().savefig(args.out / "kernel.png", dpi=120)
    walk_picture(0, steps).savefig(args.out / "walk.png", dpi=120)
    report, samples = compare(number, seeds, steps)
    guidance_picture(samples).savefig(args.out / "guidance.png", dpi=120)
    for figure, title, scale in (
        ("energy", "energy distance to p(x|c)^(1+w) p(x)^-w, times 1,000; truth: two sets of draws", 1000),
        ("sliced", "sliced Wasserstein-1 distance, times 1,000", 1000),
        ("walls", f"entries within {BAND} of a wall, percent", 100),
    ):
        screen.console.print(sheet(report, figure, title, scale))
        screen.say("")
    facts = {"number": number, "seeds": seeds, "steps": steps, "figures": report}
    (args.out / "report.json").write_text(json.dumps(facts, indent=1))
    screen.say(f"pictures and report.json: {args.out}")


if __name__ == "__main__":
    run(main)
