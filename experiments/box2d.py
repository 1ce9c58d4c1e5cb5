"""A density on the unit square that lies at its walls: on two of them, in corners, around a point, and thinly everywhere.

Each component is a normal law folded into the square, `fold(center + width eps)`. So all that one may ask has a closed form: the density, the share
near the walls, and, since noise only adds to the widths, the score at any noise.
"""

import numpy as np
from scipy import special

WEIGHTS = np.array([0.3, 0.2, 0.15, 0.1, 0.15, 0.1])
CENTERS = np.array([[0.0, 0.55], [0.6, 0.0], [1.0, 1.0], [1.0, 0.0], [0.6, 0.65], [0.5, 0.5]])
WIDTHS = np.array([[0.03, 0.3], [0.3, 0.03], [0.05, 0.05], [0.04, 0.08], [0.08, 0.08], [2.0, 2.0]])
_CELLS = 2 * np.arange(-20, 21)  # images in so many double cells hold all of the widest component


def draw(rng: np.random.Generator, number: int) -> np.ndarray:
    """Points `[number, 2]` of the density."""
    which = rng.choice(len(WEIGHTS), number, p=WEIGHTS)
    u = CENTERS[which] + WIDTHS[which] * rng.standard_normal((number, 2))
    return np.abs(u - 2 * np.rint(u / 2))


def log_prob(x: np.ndarray, noise: float = 0.0) -> np.ndarray:
    """`log p(x)` of points `[n, 2]` in nats, after a reflected motion of standard deviation `noise`.

    Example:
      >>> print(log_prob(np.array([[0.0, 0.5], [0.25, 0.25]])).round(3), log_prob(np.array([[0.25, 0.25]]), 1.0).round(3))
      [ 2.366 -2.303] [0.]
    """
    widths = np.hypot(WIDTHS, noise)[:, None]
    each = np.zeros((len(WEIGHTS), *x.shape))  # of components, entry by entry
    for cell in _CELLS:
        for image in (x + cell, cell - x):
            each += np.exp(-0.5 * ((image - CENTERS[:, None]) / widths) ** 2)
    each /= widths * np.sqrt(2 * np.pi)
    return np.log(np.tensordot(WEIGHTS, each.prod(-1), 1))


def wall_share(distance: float) -> float:
    """The probability of a point within `distance` of a wall.

    Example:
      >>> print(round(wall_share(0.01), 4), wall_share(0.5))
      0.2112 1.0
    """
    below = lambda edge: special.ndtr((edge + _CELLS - CENTERS[..., None]) / WIDTHS[..., None])
    inside = sum(below(b) - below(a) for a, b in [(distance, 1 - distance), (distance - 1, -distance)])
    return float(1 - WEIGHTS @ inside.sum(-1).prod(-1))
