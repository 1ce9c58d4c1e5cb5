"""Langevin sampling of a density on the line, and what Metropolis' test mends: no network, no training.

    python -m experiments.langevin

The density p(x) ~ (0.2 + cos^2 2x) exp(-0.1 x^2) has hills every pi / 2. Walks that know only its score pass from one to
another; unadjusted steps are off by their size, adjusted ones (MALA) are not. The moments are known in closed form.
"""

import argparse
import functools
import math
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from rich import box, table

from diffjax.samplers import langevin
from experiments import configs, run, screen

NORMALISER = 0.7 * math.sqrt(10 * math.pi)
BINS = np.linspace(-8, 8, 81)


def log_density(x: jax.Array) -> jax.Array:
    """`log p(x)` of each x, normalised to within e^-40."""
    return jnp.log(0.2 + jnp.cos(2 * x) ** 2) - 0.1 * x**2 - math.log(NORMALISER)


def score(x: jax.Array) -> jax.Array:
    """The derivative of `log_density`."""
    return jax.grad(lambda x: log_density(x).sum())(x)


WALKS = {
    "MALA, step .3": functools.partial(langevin.sample, score=score, step_size=0.3, metropolis=log_density),
    "unadjusted, step .1": functools.partial(langevin.sample, score=score, step_size=0.1),
    "unadjusted, step .02": functools.partial(langevin.sample, score=score, step_size=0.02),
    "Metropolis, step .5": functools.partial(langevin.sample, score=None, step_size=0.5, metropolis=log_density),
}


def exact(number: int, seed: int) -> np.ndarray:
    """Independent draws, by the inverse of a fine table of the distribution function."""
    grid = np.linspace(-16, 16, 400_001)
    cdf = np.cumsum(np.exp(np.asarray(log_density(grid), np.float64)))
    return np.interp(np.random.default_rng(seed).random(number), cdf / cdf[-1], grid)


def figures(x: np.ndarray) -> dict[str, float]:
    """Kullback-Leibler divergence of a histogram from the density, in nats, and two moments."""
    fine = np.linspace(BINS[0], BINS[-1], 80 * 200 + 1)
    p = np.exp(np.asarray(log_density((fine[1:] + fine[:-1]) / 2), np.float64))
    mass = p.reshape(80, 200).sum(1) * (fine[1] - fine[0])
    count = np.histogram(np.clip(x, BINS[0], BINS[-1]), BINS)[0] / len(x)
    seen = count > 0
    return {
        "KL": float(np.sum(count[seen] * np.log(count[seen] / mass[seen]))),
        "E x^2": float(np.mean(x**2)),
        "E cos 4x": float(np.mean(np.cos(4 * x))),
    }


def picture(walks: dict[str, np.ndarray], paths: np.ndarray) -> Figure:
    """Histograms of all walks on the density, and some of the paths of the first."""
    figure = Figure(figsize=(10, 6), layout="constrained")
    parts = figure.subplot_mosaic("ab;cd;ee")
    grid = np.linspace(-8, 8, 1000)
    density = np.exp(np.asarray(log_density(grid)))
    for axes, (name, x) in zip((parts[i] for i in "abcd"), walks.items(), strict=True):
        axes.hist(x, BINS, density=True, color="0.75")
        axes.plot(grid, density, color="tab:red", lw=1)
        axes.set(title=name, yticks=[], xlim=(-8, 8))
    parts["e"].plot(paths, lw=0.7)
    parts["e"].set(title=f"some paths of {next(iter(walks))}", xlabel="step", ylabel="x", xlim=(0, len(paths)))
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    parser = configs.Parser(prog="python -m experiments.langevin", description=__doc__.split("\n")[0])
    parser.add_argument("--chains", type=int, default=5_000, metavar="N")
    parser.add_argument("--steps", type=int, default=2_000, metavar="S", help="of each chain")
    parser.add_argument("--seed", type=int, default=0, metavar="K")
    parser.add_argument("--picture", type=Path, default=Path("runs/langevin.png"), metavar="FILE")
    args: argparse.Namespace = parser.parse_args(argv)
    key, start = jax.random.key(args.seed), jnp.zeros(args.chains)

    sheet = table.Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    for name in ("", "KL", "E x^2", "E cos 4x"):
        sheet.add_column(name, justify="right" if name else "left", no_wrap=True)
    show = lambda name, row: sheet.add_row(name, f"{row['KL']:.4f}", f"{row['E x^2']:.3f}", f"{row['E cos 4x']:.4f}")
    ends = {}
    for name, walk in WALKS.items():
        ends[name] = np.asarray(jax.jit(functools.partial(walk, steps=args.steps))(key, x=start), np.float64)
        show(name, figures(ends[name]))
    show("independent draws", figures(exact(args.chains, args.seed)))
    show("truth", {"KL": 0.0, "E x^2": 5.0, "E cos 4x": 5 / 14})
    screen.console.print(sheet)

    first = functools.partial(next(iter(WALKS.values())), steps=min(args.steps, 500), track=lambda x, accepted: x[:6])
    args.picture.parent.mkdir(parents=True, exist_ok=True)
    picture(ends, jax.jit(first)(key, x=start)[1]).savefig(args.picture, dpi=120)
    screen.say(f"picture: {args.picture}")


if __name__ == "__main__":
    run(main)
