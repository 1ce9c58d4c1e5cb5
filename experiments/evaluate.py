"""Measures the samples of a trained run against held-out data.

    python -m experiments.evaluate --workdir runs/digits

Each figure stands beside its floor (real data against real data, sets of the same size; a likelihood's is that of training data) and
baselines (simple models of the data); `evaluation.npz` keeps the samples and the held-out data, so that any figure can be computed again.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import build, data, features, likelihoods, metrics, mixed, run, sample, screen, walks

TITLES = {
    "energy_distance": "energy distance",
    "sliced_wasserstein": "sliced Wasserstein-1",
    "off_manifold": "share off the data",
    "wall_share": "share within .01 of a wall",
    "wall_share_half": "share within .005 of one",
    "frechet_features": "FD on classifier features",
    "kernel_features": "kernel distance on them",
    "confidence": "mean top probability",
    "class_coverage": "share of classes present",
    "class_imbalance": "class frequencies off by",
    "neighbour_ratio": "nearest training image",
    "exact_copies": "exact copies of them",
    "bits_per_dim": "bits per dimension, bound",
    "nats": "-log density in nats",
    "nats_bound": "bound on it",
}


def report(experiment: build.Experiment, draw: Callable[..., Any], params: Any, workdir: Path, **settings: Any) -> dict:
    """Draws, measures, writes `report.json` and `evaluation.npz`, prints the table, and returns the report.

    Args:
      experiment: what was trained.
      draw: from `walks.sampler`.
      params: to draw with.
      workdir: where the files go.
      **settings: `num`, `seed`, `step`, for the record.
    """
    dataset, config = experiment.dataset, experiment.config
    if dataset.parts is not None:
        return _mixed_report(dataset, draw, params, workdir, **settings)
    number, seed = settings["num"], settings["seed"]
    label = None
    if config.conditional:
        label = data.training_sample(dataset, 1 << 20)["label"]
        label = np.random.default_rng(seed).choice(label, number)
    samples = draw(params, number, seed=seed, label=label)
    held = {name: value[:number] for name, value in dataset.test.items()}
    rows, facts = measure(dataset, samples, held, workdir, config.evaluate.splits)
    likely, terms = likelihoods.rows(experiment, params, held["x0"], seed)
    rows, facts = rows | likely, facts | {"likelihood": terms}

    np.savez(workdir / "evaluation.npz", samples=samples, data=held["x0"])
    result = {"metrics": rows, "data": dataset.name, **settings, **facts}
    _write(result, workdir)
    sets = f"{number} samples of step {settings['step']} against {len(held['x0'])} held-out examples of {dataset.name}"
    more = (
        f"; the classifier is right on {facts['classifier_accuracy']:.1%} of them"
        if "classifier_accuracy" in facts
        else ""
    )
    screen.report(rows, TITLES, f"{sets}{more}")
    return result


def _write(result: dict, workdir: Path) -> None:
    part = workdir / "report.part"
    part.write_text(json.dumps(result, indent=2) + "\n")
    part.replace(workdir / "report.json")


def _mixed_report(dataset: data.Dataset, draw: Callable[..., Any], params: Any, workdir: Path, **settings: Any) -> dict:
    """`report` for examples that are dicts, and with some parts held at held-out values if the set says which."""
    parts, number, seed = dataset.parts, settings["num"], settings["seed"]
    samples = draw(params, number, seed=seed)
    rows = mixed.measure(parts, samples)
    if names := settings.get("hold", parts.held):
        held = mixed.held(parts, names, number)
        rows |= mixed.measure_given(parts, draw(params, number, seed=seed + 1, held=held), names)
    np.savez(
        workdir / "evaluation.npz",
        **{f"samples/{n}": x for n, x in samples.items()},
        **{f"data/{n}": x for n, x in parts.test.items()},
    )
    result = {"metrics": rows, "data": dataset.name, **settings}
    _write(result, workdir)
    screen.report(
        rows, TITLES, f"{number} samples of step {settings['step']} against held-out examples of {dataset.name}"
    )
    return result


def measure(
    dataset: data.Dataset, samples: np.ndarray, held: data.Batch, workdir: Path, splits: int
) -> tuple[dict, dict]:
    """`(rows, facts)`: every metric that makes sense for this data set, and what else a reader should know."""
    train = data.training_sample(dataset, 60_000)["x0"]
    sets = {"samples": samples, **metrics.baselines(train[:20_000], len(samples))}
    pairs = [_real(dataset, len(samples), held["x0"], split) for split in range(splits)]
    rows: dict[str, dict] = {}

    def two(name: str, distance: Callable[[np.ndarray, np.ndarray], float], see: Callable = lambda x: x) -> None:
        """Adds a distance between two sets; its floor compares two sets of real data."""
        real = see(held["x0"])
        figures = {key: distance(see(x), real) for key, x in sets.items()}
        rows[name] = metrics.row(figures.pop("samples"), [distance(see(a), see(b)) for a, b in pairs], figures)

    def one(name: str, figure: Callable[[np.ndarray], float]) -> None:
        """Adds a figure of one set; its floor is that of halves of the held-out data, or of sets drawn afresh."""
        figures = {key: figure(x) for key, x in sets.items()}
        halves = [_half(held["x0"], split) if dataset.count else pairs[split][0] for split in range(splits)]
        rows[name] = metrics.row(figures.pop("samples"), [figure(half) for half in halves], figures)

    two("energy_distance", metrics.energy_distance)
    two("sliced_wasserstein", metrics.sliced_wasserstein)
    if not dataset.count and dataset.span:
        # Of simple models, what lies outside is moved to the wall.
        low, high = dataset.span
        near = lambda x, distance: np.minimum(x - low, high - x).min(1) <= distance * (high - low)
        one("wall_share", lambda x: float(near(x, 0.01).mean()))
        one("wall_share_half", lambda x: float(near(x, 0.005).mean()))
        return rows, {"outside": float(((samples < low) | (samples > high)).mean())}
    if not dataset.count:
        near = data.training_sample(dataset, 200_000, seed=1)["x0"]
        one("off_manifold", lambda x: metrics.off_manifold(x, near))
        return rows, {}
    if dataset.classes:
        classifier = features.classifier(dataset, workdir / "classifier.npz")
        real = classifier.probabilities(held["x0"])
        two("frechet_features", metrics.frechet, classifier.features)
        two("kernel_features", metrics.kernel, classifier.features)
        one("confidence", lambda x: metrics.confidence(classifier.probabilities(x)))
        one("class_coverage", lambda x: metrics.coverage(classifier.probabilities(x)))
        one("class_imbalance", lambda x: metrics.imbalance(classifier.probabilities(x), real))
    usual = np.median(metrics.nearest(held["x0"], train))
    one("neighbour_ratio", lambda x: float(np.median(metrics.nearest(x, train)) / usual))
    if dataset.levels:
        one("exact_copies", lambda x: metrics.exact_copies(x, train, levels=dataset.levels))
    return rows, {"classifier_accuracy": classifier.accuracy} if dataset.classes else {}


def _real(dataset: data.Dataset, number: int, held: np.ndarray, split: int) -> tuple[np.ndarray, np.ndarray]:
    # Two sets of real data, as large as samples and held-out data: both held out if there are enough, else one from training.
    if not dataset.count:
        return data.training_sample(dataset, number, seed=100 + split)["x0"], data.training_sample(
            dataset, len(held), seed=200 + split
        )["x0"]
    test = dataset.test["x0"]
    if len(test) >= number + len(held):
        order = np.random.default_rng((split, 4)).permutation(len(test))
        return test[order[:number]], test[order[number : number + len(held)]]
    return data.training_sample(dataset, number, seed=100 + split)["x0"], held


def _half(x: np.ndarray, split: int) -> np.ndarray:
    return x[np.random.default_rng((split, 5)).permutation(len(x))[: len(x) // 2]]


def main(argv: Sequence[str] | None = None) -> None:
    args = sample.arguments("evaluate", "Measures samples against held-out data: WORKDIR/report.json.").parse_args(argv)
    experiment, step, params = sample.load(args)
    more = {} if args.hold is None else {"hold": sample.parts(args.hold)}
    more |= {} if args.clocks is None else {"clocks": args.clocks}
    number = args.num or experiment.config.evaluate.num
    report(experiment, walks.sampler(experiment), params, args.workdir, num=number, seed=args.seed, step=step, **more)
    screen.say(f"written: {args.workdir}/report.json, {args.workdir}/evaluation.npz")


if __name__ == "__main__":
    run(main)
