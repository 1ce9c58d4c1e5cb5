"""How far samples are from data: distances, and what they mean beside a floor and baselines.

A figure says nothing alone. Each is reported with its **floor**, what real data score against real data in sets of the
same size (mean and standard deviation over several splits), and with **baselines**, what simple models of the data score.

    energy_distance        0 iff the laws are equal; unbiased, so near the floor it may be negative
    sliced_wasserstein     mean over directions of the 1-D Wasserstein distance, in the data's own unit
    off_manifold           share of samples with no real point near
    frechet, kernel        on features of a classifier (experiments.features): never to be called FID or KID
    nearest                distance from each sample to the nearest training example: memorisation, blur

Arrays are NumPy, examples along the first axis; whatever the event's shape, it is flattened.
"""

from collections.abc import Sequence

import numpy as np
from scipy import spatial

Array = np.ndarray


def _flat(x: Array) -> Array:
    return np.asarray(x, np.float64).reshape(len(x), -1)


# ------------------------------------------------------------------------------------------------- distances of laws


def energy_distance(x: Array, y: Array) -> float:
    """`2 E|X - Y| - E|X - X'| - E|Y - Y'|`, estimated without bias from two sets.

    Source: Szekely and Rizzo 2013, J. Stat. Plan. Inference 143, eq. 2.5, with U-statistics for the inner means.

    Example:
      >>> round(energy_distance(np.array([0.0, 2.0]), np.array([5.0, 6.0])), 6)
      6.0
    """
    x, y = _flat(x), _flat(y)
    inner = [2 * spatial.distance.pdist(z).sum() / (len(z) * (len(z) - 1)) for z in (x, y)]
    across = sum(spatial.distance.cdist(x[i : i + 1024], y).sum() for i in range(0, len(x), 1024)) / (len(x) * len(y))
    return float(2 * across - sum(inner))


def sliced_wasserstein(x: Array, y: Array, *, directions: int = 256, seed: int = 0) -> float:
    """The mean over random directions of the 1-D Wasserstein-1 distance `int |F(u) - G(u)| du` of the projections.

    Source: Rabin et al. 2012, "Wasserstein barycenter and its application to texture mixing", eq. 5, with the cost |.|.

    Example:
      >>> round(sliced_wasserstein(np.array([0.0, 1.0]), np.array([3.0, 4.0])), 6)
      3.0
    """
    x, y = _flat(x), _flat(y)
    axes = np.random.default_rng(seed).standard_normal((x.shape[1], directions))
    axes /= np.linalg.norm(axes, axis=0)
    return float(np.mean([_wasserstein(x @ axis, y @ axis) for axis in axes.T]))


def _wasserstein(a: Array, b: Array) -> float:
    a, b = np.sort(a), np.sort(b)
    if len(a) == len(b):
        return float(np.abs(a - b).mean())
    both = np.sort(np.concatenate([a, b]))
    gap = np.searchsorted(a, both[:-1], "right") / len(a) - np.searchsorted(b, both[:-1], "right") / len(b)
    return float(np.sum(np.abs(gap) * np.diff(both)))


def frechet(x: Array, y: Array) -> float:
    """The Fréchet distance of the Gaussians with the features' means and covariances,
    `|m - m'|^2 + tr(C + C' - 2 (C C')^(1/2))`.

    It grows as sets get smaller: compare at one size only, and with the floor.

    Source: Dowson and Landau 1982, J. Multivariate Anal. 12, eq. 4.

    Example:
      >>> round(frechet(np.array([[-1.0], [1.0]]), np.array([[0.0], [4.0]])), 6)  # 4 + (sqrt 8 - sqrt 2)^2
      6.0
    """
    x, y = _flat(x), _flat(y)
    mean, (c, d) = x.mean(0) - y.mean(0), (np.atleast_2d(np.cov(z, rowvar=False)) for z in (x, y))
    # tr (C D)^(1/2) = sum of singular values of C^(1/2) D^(1/2): symmetric roots only, so nothing turns complex.
    cross = np.linalg.svd(_root(c) @ _root(d), compute_uv=False).sum()
    return float(mean @ mean + np.trace(c) + np.trace(d) - 2 * cross)


def _root(c: Array) -> Array:
    values, vectors = np.linalg.eigh(c)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


def kernel(x: Array, y: Array) -> float:
    """The squared maximum mean discrepancy under the kernel `(x.y / d + 1)^3`, estimated without bias, times 1,000.

    Source: Gretton et al. 2012, J. Mach. Learn. Res. 13, eq. 3; the kernel is that of Binkowski et al. 2018,
      arXiv:1801.01401, sec. 4.

    Example:
      >>> round(kernel(np.array([[0.0], [0.0]]), np.array([[1.0], [1.0]])), 3)  # 1000 (1 + 8 - 2)
      7000.0
    """
    x, y = _flat(x), _flat(y)

    def inner(a):
        values = (a @ a.T / a.shape[1] + 1) ** 3
        return (values.sum() - np.trace(values)) / (len(a) * (len(a) - 1))

    return float(1000 * (inner(x) + inner(y) - 2 * ((x @ y.T / x.shape[1] + 1) ** 3).mean()))


# --------------------------------------------------------------------------------------------------------- neighbours


def nearest(x: Array, reference: Array) -> Array:
    """The Euclidean distance from each example to the nearest of the reference, `[n]`.

    Example:
      >>> print(nearest(np.array([0.0, 5.0]), np.array([1.0, 7.0])))
      [1. 2.]
    """
    x, reference = (np.asarray(z, np.float32).reshape(len(z), -1) for z in (x, reference))
    if x.shape[1] <= 8:
        return spatial.cKDTree(reference).query(x)[0]
    squares = np.einsum("ij,ij->i", reference, reference)
    rows = []
    for i in range(0, len(x), 256):
        part = x[i : i + 256]
        best = np.argmin(squares - 2 * part @ reference.T, 1)
        rows.append(np.linalg.norm(part - reference[best], axis=1))  # anew: the expanded square cancels near a copy
    return np.concatenate(rows)


def off_manifold(x: Array, reference: Array, *, radius: float = 0.1) -> float:
    """The share of examples farther than `radius` from every reference point.

    Example:
      >>> off_manifold(np.array([0.0, 0.05, 3.0, 9.0]), np.array([0.0, 3.0]))
      0.25
    """
    return float(np.mean(nearest(x, reference) > radius))


def exact_copies(x: Array, reference: Array, *, levels: int) -> float:
    """The number of examples that equal a reference example once rounded to `levels` values on [-1, 1].

    Example:
      >>> exact_copies(np.array([[0.4, -1.0], [-0.9, 0.9]]), np.array([[-1.0, 1.0]]), levels=3)
      1.0
    """
    rounded = lambda z: np.rint((np.clip(_flat(z), -1, 1) + 1) * (levels - 1) / 2).astype(np.int32)
    known = {row.tobytes() for row in rounded(reference)}
    return float(sum(row.tobytes() in known for row in rounded(x)))


# ---------------------------------------------------------------------------------------------- what a classifier says


def confidence(probabilities: Array) -> float:
    """The mean of the largest probability a classifier gives, in (0, 1].

    Example:
      >>> confidence(np.array([[0.9, 0.1], [0.3, 0.7]]))
      0.8
    """
    return float(np.mean(probabilities.max(1)))


def coverage(probabilities: Array) -> float:
    """The share of classes to which at least one example is assigned.

    Example:
      >>> coverage(np.array([[0.9, 0.1], [0.8, 0.2]]))
      0.5
    """
    return len(np.unique(probabilities.argmax(1))) / probabilities.shape[1]


def imbalance(probabilities: Array, reference: Array) -> float:
    """The total variation between the class frequencies of two sets, in [0, 1].

    Example:
      >>> imbalance(np.array([[0.9, 0.1], [0.8, 0.2]]), np.array([[0.9, 0.1], [0.2, 0.8]]))
      0.5
    """
    shares = [np.bincount(p.argmax(1), minlength=p.shape[1]) / len(p) for p in (probabilities, reference)]
    return float(0.5 * np.abs(shares[0] - shares[1]).sum())


# --------------------------------------------------------------------------------------- beside floor and baselines


def baselines(train: Array, number: int, *, seed: int = 0) -> dict[str, Array]:
    """Samples of simple models of the data, by name, each `[number, *event]`.

    `gaussian` has the data's mean and covariance, `marginals` draws each coordinate from its own marginal, `uniform` fills the
    box around the data.
    """
    rng = np.random.default_rng(seed)
    x = _flat(train)
    shape = (number, *train.shape[1:])
    mean = x.mean(0)
    # Normal weights on the examples give the sample covariance without ever forming it.
    weights = rng.standard_normal((number, len(x))) / np.sqrt(len(x) - 1)
    sets = {
        "gaussian": mean + weights @ (x - mean),
        "marginals": np.take_along_axis(x, rng.integers(0, len(x), (number, x.shape[1])), 0),
        "uniform": rng.uniform(x.min(0), x.max(0), (number, x.shape[1])),
    }
    return {name: values.reshape(shape).astype(np.float32) for name, values in sets.items()}


def row(value: float, floor: Sequence[float], simple: dict[str, float]) -> dict:
    """A report's row `{"value", "floor": [mean, sd], "baselines"}` from the figure of the samples, those of several splits of
    real data, and those of simple models by name.

    Example:
      >>> row(3.0, [1.0, 2.0, 3.0], {"uniform": 9.0})
      {'value': 3.0, 'floor': [2.0, 1.0], 'baselines': {'uniform': 9.0}}
    """
    spread = float(np.std(floor, ddof=1)) if len(floor) > 1 else 0.0
    return {"value": value, "floor": [float(np.mean(floor)), spread], "baselines": simple}
