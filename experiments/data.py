"""Data sets behind one iterator of dicts.

    dataset = data.load(config.data)
    for batch in data.batches(dataset, seed=0, batch_size=128, start=step): batch["x0"], batch["label"]

Two kinds are embedded and need no network: point sets in the plane or the unit square, drawn afresh for each batch, and scikit-learn's 8x8
digits. Every other name is a `tensorflow_datasets` image set, read without tensorflow from its array_record files.

**The batch is a pure function of (seed, step)**: a run that starts again at step k sees what it would have seen, on
one process or on many (each takes its slice of the same global batch), and there is no iterator state to save.

Images are float32 in [-1, 1], `[n, height, width, channels]`.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from experiments import UserError, box2d, crystals, mixed
from experiments.configs import suggest

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """Where examples come from.

    Attributes:
      name: for titles.
      event: shape of one example.
      classes: number of classes; 0 = no labels.
      levels: number of values a pixel can take on [-1, 1]; 0 = continuous.
      span: the least and the largest value an entry can have; None = without bounds.
      log_prob: `(x) -> [n]`, the true density in nats, where it is known.
      count: number of training examples; 0 = drawn afresh without end.
      take: `(indices) -> batch` of training examples, or `(rng, number) -> batch` where count is 0.
      test: held-out examples, a batch.
      parts: what the parts are, for examples that are dicts (`experiments.mixed`): `x0` is then a dict of arrays.
    """

    name: str
    event: tuple[int, ...]
    classes: int = 0
    levels: int = 0
    span: tuple[float, float] | None = None
    log_prob: Callable[[np.ndarray], np.ndarray] | None = None
    count: int = 0
    flip: bool = False
    take: Callable[..., Batch]
    test: Batch
    parts: mixed.Mixed | None = None


def load(config: ConfigDict) -> Dataset:
    """The data set that a config's `data` group describes.

    Raises:
      UserError: no such name, or files that are not there; the message says how to get them.
    """
    if config.name in POINTS:
        return _points(config.name)
    if config.name in MIXED:
        return _mixed(config)
    return _digits() if config.name == "digits" else _tfds(config)


def batches(
    dataset: Dataset, *, seed: int, batch_size: int, start: int = 0, process: int = 0, processes: int = 1
) -> Iterator[Batch]:
    """The batches of steps `start`, `start + 1`, ... without end, prepared one or two ahead on a thread.

    Args:
      dataset: from `load`.
      seed: of the order and of the draws.
      batch_size: examples of the global batch, a multiple of `processes`.
      start: first step.
      process: which slice of the global batch this process takes.
      processes: number of slices.
    """
    if batch_size % processes:
        raise UserError(f"batch_size {batch_size} does not divide among {processes} processes")
    share = batch_size // processes
    mine = slice(process * share, (process + 1) * share)

    # A batch is taken in one go: per-example machinery would cost more than a step of a small model.
    def batch(step: int) -> Batch:
        rng = np.random.default_rng((seed, step))
        if dataset.count == 0:
            # The whole batch is drawn and a slice kept, so that the number of processes does not matter.
            return {name: value[mine] for name, value in dataset.take(rng, batch_size).items()}
        mirrored = rng.random(batch_size)[mine] < 0.5
        taken = dataset.take(_order(dataset.count, seed, step * batch_size, batch_size)[mine])
        if dataset.flip:
            x0 = taken["x0"]
            taken["x0"] = np.where(mirrored[:, None, None, None], x0[:, :, ::-1], x0)
        return taken

    ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    return iter(grain.MapDataset.range(start, sys.maxsize).map(batch).to_iter_dataset(ahead))


def _order(count: int, seed: int, first: int, number: int) -> np.ndarray:
    # Positions first..first + number of an endless sequence: one permutation of the examples after another.
    places = np.arange(first, first + number)
    epochs = places // count
    return np.concatenate(
        [_permutation(count, seed, int(epoch))[places[epochs == epoch] % count] for epoch in np.unique(epochs)]
    )


@functools.lru_cache(maxsize=4)
def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch, 1)).permutation(count)


def training_sample(dataset: Dataset, number: int, seed: int = 0) -> Batch:
    """`number` training examples at random (fewer if there are fewer), for baselines, floors and neighbours."""
    rng = np.random.default_rng((seed, 2))
    if dataset.count == 0:
        return dataset.take(rng, number)
    return dataset.take(np.sort(rng.permutation(dataset.count)[:number]))


# ------------------------------------------------------------------------------------------------- points in the plane


def _spiral(rng: np.random.Generator, number: int) -> np.ndarray:
    angle = 3 * np.pi * np.sqrt(rng.random(number))
    arm = angle[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1) / 5
    return arm + 0.05 * rng.standard_normal((number, 2))


def _moons(rng: np.random.Generator, number: int) -> np.ndarray:
    angle, side = np.pi * rng.random(number), rng.integers(0, 2, number) * 2 - 1
    arc = np.stack([side * (np.cos(angle) - 0.5), side * (np.sin(angle) - 0.25)], 1)
    return arc + 0.05 * rng.standard_normal((number, 2))


def _gaussians(rng: np.random.Generator, number: int) -> np.ndarray:
    angle = 2 * np.pi * rng.integers(0, 8, number) / 8
    return 1.5 * np.stack([np.cos(angle), np.sin(angle)], 1) + 0.1 * rng.standard_normal((number, 2))


def _checkerboard(rng: np.random.Generator, number: int) -> np.ndarray:
    column, row = rng.integers(0, 4, number), 2 * rng.integers(0, 2, number)
    return np.stack([column, row + column % 2], 1) - 2 + rng.random((number, 2))


POINTS = {
    "spiral": _spiral,
    "moons": _moons,
    "gaussians": _gaussians,
    "checkerboard": _checkerboard,
    "box2d": box2d.draw,
}


def _points(name: str) -> Dataset:
    def take(rng: np.random.Generator, number: int) -> Batch:
        return {"x0": POINTS[name](rng, number).astype(np.float32)}

    facts = {"span": (0.0, 1.0), "log_prob": box2d.log_prob} if name == "box2d" else {}
    return Dataset(name=name, event=(2,), take=take, test=take(np.random.default_rng((0, 3)), 20_000), **facts)


# --------------------------------------------------------------------------------------------- several kinds of things

MIXED = {
    "torsions": lambda config: mixed.torsions(),
    "rotations": lambda config: mixed.rotations(),
    "ink": lambda config: mixed.ink(),
    "correlated": lambda config: mixed.correlated(),
    "symbols": lambda config: mixed.symbols(),
    "corners": lambda config: mixed.corners(),
    "joint": lambda config: mixed.joint(),
    "crystals": lambda config: crystals.crystals(config.dir),
}


def _mixed(config: ConfigDict) -> Dataset:
    parts = MIXED[config.name](config)

    def take(indices: np.ndarray) -> Batch:
        return {"x0": mixed.rows(parts.train, indices)}

    return Dataset(
        name=config.name, event=(), count=mixed.size(parts.train), take=take, test={"x0": parts.test}, parts=parts
    )


# -------------------------------------------------------------------------------------------------------------- images


def _digits() -> Dataset:
    from sklearn import datasets  # takes a second to import

    raw = datasets.load_digits()
    order = np.random.default_rng(0).permutation(len(raw.target))
    x0 = (raw.images[order, :, :, None] / 8 - 1).astype(np.float32)
    label = raw.target[order].astype(np.int32)
    return _held(x0[:1297], label[:1297], x0[1297:], label[1297:], name="digits", classes=10, levels=17)


def _held(x0, label, test_x0, test_label, **facts: Any) -> Dataset:
    # `x0` may be uint8: widened when taken.
    def take(indices: np.ndarray) -> Batch:
        return {"x0": _unit(x0[indices]), "label": label[indices]}

    test = {"x0": _unit(test_x0), "label": test_label}
    return Dataset(event=x0.shape[1:], span=(-1.0, 1.0), count=len(x0), take=take, test=test, **facts)


def _unit(image: np.ndarray) -> np.ndarray:
    return image.astype(np.float32) / np.float32(127.5) - np.float32(1) if image.dtype == np.uint8 else image


def _tfds(config: ConfigDict) -> Dataset:
    train, test = _source(config, config.train), _source(config, config.test)
    classes = train.dataset_info.features["label"].num_classes
    facts = {"name": config.name, "classes": classes, "levels": 256, "flip": config.flip}
    test_x0, test_label = _decode(test, range(len(test)), config.size)
    if len(train) * test_x0[0].size <= 4 * 2**30:
        return _held(*_decode(train, range(len(train)), config.size), test_x0, test_label, **facts)

    def take(indices: np.ndarray) -> Batch:  # too big to hold: decoded each time
        x0, label = _decode(train, indices.tolist(), config.size)
        return {"x0": _unit(x0), "label": label}

    facts |= {"span": (-1.0, 1.0), "test": {"x0": _unit(test_x0), "label": test_label}}
    return Dataset(event=test_x0.shape[1:], count=len(train), take=take, **facts)


def _source(config: ConfigDict, split: str) -> Any:
    import tensorflow_datasets as tfds
    from absl import logging

    logging.set_verbosity(logging.ERROR)  # what it warns of is said better below
    where = config.dir or "~/tensorflow_datasets"
    try:
        return tfds.data_source(
            config.name,
            split=split,
            data_dir=config.dir or None,
            download=False,
            builder_kwargs={"file_format": "array_record"},
        )
    except tfds.core.DatasetNotFoundError as error:
        known = ["digits", *POINTS, *MIXED, *tfds.list_builders(with_community_datasets=False)]
        raise UserError(
            f"there is no data set {config.name!r}{suggest(config.name, known)}: the embedded ones are digits, "
            f"{', '.join([*POINTS, *MIXED])}; any other is a tfds name, or a folder of array_record files under config.data.dir ({where})"
        ) from error
    except (KeyError, FileNotFoundError, AssertionError, ImportError, NotImplementedError) as error:
        raise UserError(
            f"the data set {config.name!r} is not in {where}: say where it is with --config.data.dir=DIR, or get it with "
            f"`python -m experiments.prepare {config.name}{f' --dir {config.dir}' if config.dir else ''}` (which runs "
            f"tfds.builder({config.name!r}).download_and_prepare(file_format='array_record') without tensorflow)"
        ) from error
    except ValueError as error:  # an unknown split
        raise UserError(f"the data set {config.name!r} in {where}: {error}") from error


def _decode(source: Any, indices: Any, size: int) -> tuple[np.ndarray, np.ndarray]:
    # In pieces, so that originals of any size are never all in memory.
    images, labels = [], []
    for first in range(0, len(indices), 256):
        for row in source.__getitems__(list(indices[first : first + 256])):
            images.append(_fit(row["image"], size))
            labels.append(row["label"])
    if len({image.shape for image in images}) > 1:
        raise UserError("the images differ in size: choose one with --config.data.size=N")
    return np.stack(images), np.asarray(labels, np.int32)


def _fit(image: np.ndarray, size: int) -> np.ndarray:
    """The middle square of an image, resized to `size` pixels a side; 0 leaves it as it is."""
    height, width, channels = image.shape
    if size in (0, height) and (size == 0 or height == width):
        return image
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = Image.fromarray(image[top : top + side, left : left + side, 0 if channels == 1 else slice(None)])
    return np.asarray(square.resize((size, size), Image.Resampling.LANCZOS)).reshape(size, size, channels)
