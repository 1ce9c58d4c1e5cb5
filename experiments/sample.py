"""Draws samples from a trained run.

    python -m experiments.sample --workdir runs/digits --num 64 --steps 12 --solver dpmpp3 --guidance 2

Where an example has several parts, `--hold` takes some from held-out examples and draws the others given them, and `--clocks` gives
parts pieces of the walk of their own:

    python -m experiments.sample --workdir runs/crystals --hold elements
    python -m experiments.sample --workdir runs/crystals --clocks elements=0:.5,coords=.3:1

The result depends on the seed and the settings alone: each sample has a key of its own, so it is the same however many
devices share the work.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffjax import training
from experiments import UserError, build, checkpoints, configs, data, mixed, plots, run, screen, walks


def arguments(program: str, description: str) -> configs.Parser:
    """The parser of what `sample` and `evaluate` share."""
    parser = configs.Parser(prog=f"python -m experiments.{program}", description=description)
    parser.add_argument("--workdir", type=Path, required=True, metavar="DIR", help="of a run of experiments.train")
    parser.add_argument("--num", type=_positive, metavar="N", help="number of samples")
    parser.add_argument("--seed", type=int, default=0, metavar="K")
    parser.add_argument("--steps", type=_positive, metavar="S", help="of the sampler")
    parser.add_argument(
        "--solver",
        metavar="NAME",
        help="; ".join(f"on the {space} {', '.join(menu)}" for space, menu in walks.SOLVERS.items()),
    )
    parser.add_argument("--eta", type=float, metavar="E", help="of ddim: 0 deterministic, 1 ancestral")
    parser.add_argument("--noise", type=float, metavar="G", help="of the box: 0 the flow's steps, 1 the diffusion's")
    parser.add_argument("--spacing", metavar="NAME", help=f"of the times: {', '.join(walks.SPACINGS)}")
    parser.add_argument("--guidance", type=float, metavar="W", help="classifier-free weight; 0 = none")
    parser.add_argument("--clocks", metavar="TEXT", help="when in the walk each part moves, as elements=0:.5")
    parser.add_argument("--hold", metavar="PARTS", help="parts that stay at values of held-out examples")
    return parser


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text}")
    return number


def parts(text: str) -> list[str]:
    """The names in a list such as `position, angle`."""
    return [name.strip() for name in text.split(",")]


def load(args: argparse.Namespace) -> tuple[build.Experiment, int, Any]:
    """`(experiment, step, params)` of a workdir: its config with the arguments' changes to the sampler, its averaged parameters."""
    path = args.workdir / "config.json"
    if not path.is_file():
        raise UserError(f"there is no run in {args.workdir}: no config.json; make one with python -m experiments.train")
    config = configs.read(path)
    changes = {
        "steps": args.steps,
        "name": args.solver,
        "spacing": args.spacing,
        "eta": args.eta,
        "noise": args.noise,
        "guidance": args.guidance,
        "clocks": args.clocks,
    }
    config.sampler.update({name: value for name, value in changes.items() if value is not None})
    if config.sampler.guidance and not config.conditional:
        raise UserError("guidance needs a network that is told the class: train with --config.conditional=true")
    experiment = build.experiment(config)
    if experiment.mixture is None and (args.clocks is not None or args.hold is not None):
        raise UserError(f"--clocks and --hold are for examples of several parts; those of {config.data.name} have one")
    found = checkpoints.restore(args.workdir / "checkpoints", saved_shape(experiment), report=screen.say)
    if found is None:
        raise UserError(f"the run in {args.workdir} has no checkpoint yet")
    return experiment, found[0], found[1]["state"].ema


def saved_shape(experiment: build.Experiment) -> Any:
    """The structure, shapes and dtypes of what training saves, without computing it."""
    state = jax.eval_shape(lambda: training.init(experiment.init(jax.random.key(0)), experiment.optimizer))
    return {"state": state, "window": np.zeros(2)}


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments("sample", "Draws samples from a trained run: WORKDIR/samples/*.png and WORKDIR/samples.npz.")
    parser.add_argument("--label", type=int, metavar="L", help="class of all samples; by default they take turns")
    args = parser.parse_args(argv)
    experiment, step, params = load(args)
    dataset, number = experiment.dataset, args.num or 64
    label = None
    if experiment.config.conditional:
        label = np.arange(number) % dataset.classes if args.label is None else args.label
    if args.label is not None and not (label is not None and 0 <= args.label < dataset.classes):
        classes = f"0..{dataset.classes - 1}" if label is not None else "none, since the network is not told the class"
        raise UserError(f"--label {args.label} is not a class of this run; its classes are {classes}")

    more = {} if args.hold is None else {"held": mixed.held(dataset.parts, parts(args.hold), number)}
    samples = walks.sampler(experiment)(params, number, seed=args.seed, label=label, **more)
    folder = args.workdir / "samples"
    folder.mkdir(exist_ok=True)
    if dataset.parts is not None:
        np.savez(args.workdir / "samples.npz", **samples)
        dataset.parts.picture(samples, dataset.parts.test).save(folder / "all.png")
    else:
        np.savez(args.workdir / "samples.npz", samples=samples)
        if samples.ndim == 4:
            plots.separately(samples, folder)
        reference = data.training_sample(dataset, 5_000)["x0"] if samples.ndim == 2 else None
        plots.picture(samples, reference).save(folder / "all.png")
    screen.say(f"{number} samples of step {step}: {folder}/all.png, {args.workdir}/samples.npz")


if __name__ == "__main__":
    run(main)
