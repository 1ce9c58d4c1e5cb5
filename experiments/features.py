"""A small classifier of real images, trained from a fixed seed: what it sees in samples is what the metrics compare.

Its penultimate layer gives the features of the Fréchet and kernel distances, its last layer the classes and how sure it is. The
same data set gives the same classifier, up to the machine's rounding; it is kept as `classifier.npz` in the workdir.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from experiments import data
from experiments.data import Dataset


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classifier:
    """What a trained classifier offers.

    Attributes:
      features: `images -> [n, 64]`, of mean 0 and mean variance 1 on the training set.
      probabilities: `images -> [n, classes]`.
      accuracy: on held-out data.
    """

    features: Callable[[np.ndarray], np.ndarray]
    probabilities: Callable[[np.ndarray], np.ndarray]
    accuracy: float


class _Net(nn.Module):
    classes: int

    @nn.compact
    def __call__(self, x):
        width = 32
        while True:
            x = nn.relu(nn.Conv(width, (3, 3))(x))
            x = nn.relu(nn.Conv(width, (3, 3), strides=2)(x))
            if x.shape[1] <= 8:
                break
            width = min(2 * width, 64)
        # Bounded features: no unit can be dead, none can run away on what it never saw.
        seen = nn.tanh(nn.Dense(64)(x.reshape(len(x), -1)))
        return seen, nn.Dense(self.classes)(seen)


def classifier(dataset: Dataset, cache: Path, *, steps: int = 800, batch_size: int = 128) -> Classifier:
    """The classifier of a data set with labels, read from the cache or trained now (seconds for digits, a minute for MNIST).

    Args:
      dataset: with classes.
      cache: file to keep it in.
      steps: of training, with Adam and a cosine decay.
      batch_size: examples a step.
    """
    net = _Net(dataset.classes)
    params = net.init(jax.random.key(0), jnp.zeros((1, *dataset.event)))
    some = data.training_sample(dataset, 2_000)
    told = f"{net} {steps} {batch_size}".encode() + Path(__file__).read_bytes()
    mark = hashlib.sha256(some["x0"].tobytes() + some["label"].tobytes() + told).hexdigest()
    stored = _read(cache, mark)
    if stored is None:
        stored = jax.device_get(_train(net, params, dataset, steps, batch_size))
        flat = traverse_util.flatten_dict(stored, sep="/")
        part = cache.with_suffix(".part.npz")
        np.savez(part, mark=mark, **flat)
        part.replace(cache)

    apply = jax.jit(lambda x: (lambda seen, logits: (seen, nn.softmax(logits)))(*net.apply(stored, x)))

    def run(x: np.ndarray, which: int) -> np.ndarray:
        # In pieces of one size, so that one compiled program serves any number.
        padded = np.concatenate([x, np.zeros((-len(x) % 250, *x.shape[1:]), np.float32)])
        return np.concatenate([np.asarray(apply(part)[which]) for part in np.split(padded, len(padded) // 250)])[
            : len(x)
        ]

    seen = run(some["x0"], 0)
    mean, spread = seen.mean(0), np.sqrt(seen.var(0).mean())
    guess = run(dataset.test["x0"], 1).argmax(1)
    return Classifier(
        features=lambda x: (run(x, 0) - mean) / spread,
        probabilities=lambda x: run(x, 1),
        accuracy=float((guess == dataset.test["label"]).mean()),
    )


def _read(cache: Path, mark: str) -> Any:
    if not cache.is_file():
        return None
    with np.load(cache) as stored:
        if str(stored["mark"]) != mark:
            return None
        return traverse_util.unflatten_dict({name: stored[name] for name in stored.files if name != "mark"}, sep="/")


def _train(net: _Net, params: Any, dataset: Dataset, steps: int, batch_size: int) -> Any:
    optimizer = optax.adamw(optax.cosine_decay_schedule(2e-3, steps), weight_decay=1e-2)
    opt_state = optimizer.init(params)

    @jax.jit
    def step(params, opt_state, batch):
        def loss(params):
            logits = net.apply(params, batch["x0"])[1]
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    batches = data.batches(dataset, seed=20_001, batch_size=batch_size)
    for _, batch in zip(range(steps), batches, strict=False):
        params, opt_state = step(params, opt_state, batch)
    return params
