"""Makes `so3_table.npy`, from which `so3_kernel.stretch` samples. Needs scipy; run `python -m diffjax.processes.so3_table`.

For each width t the angle w and the radius r = |z|, z ~ N(0, I_3), are matched by their distribution functions, F_t(w) = P(|z| <= r), in float64
(by the survival functions above the median, so that the tail is right too). Stored are the coefficients of the bicubic spline through

    rho(x, r) = w / (r sqrt(2 x)),        x = 1 - exp(-t/2) in [0, 1],  r in [0, 7],

which is 1 at t = 0, even in r, and flat at t = infinity.
"""

import math
import pathlib

import numpy as np

from diffjax.processes.so3_kernel import TABLE_RADIUS, TABLE_SCALE

NODES, WEIGHTS = np.polynomial.legendre.leggauss(8)
CELLS = (48, 64)  # in x and in r: 14 kB, and an error of 1.4e-6 in the distribution function


def angle_density(w: np.ndarray, t: float) -> np.ndarray:
    """The density of the angle, `f(w; t) (1 - cos w) / pi` on [0, pi], in float64 by plain sums."""
    if t < 2.5:
        k = np.arange(-4, 5)
        x = w[..., None] + 2 * math.pi * k
        total = np.sum((-1.0) ** k * x * np.exp(-x * x / (2 * t)), axis=-1)
        return math.exp(t / 8) * math.sqrt(2 * math.pi) * t**-1.5 * total * 2 * np.sin(w / 2) / math.pi
    l = np.arange(12)
    waves = (2 * l + 1) * np.exp(-l * (l + 1) * t / 2) * np.sin((l + 0.5) * w[..., None])
    return waves.sum(-1) * 2 * np.sin(w / 2) / math.pi


def angle_of_radius(r: np.ndarray, t: float, *, panels: int = 1500) -> np.ndarray:
    """The increasing map T_t: the angle that a heat kernel stays below as often as |z| stays below r; shape of r."""
    from scipy import stats

    edges = np.linspace(0, min(math.pi, 12 * math.sqrt(t)), panels + 1)
    width = edges[1]
    mass = (angle_density(edges[:-1, None] + width * (NODES + 1) / 2, t) * WEIGHTS * width / 2).sum(-1)
    below = np.concatenate([[0], np.cumsum(mass)])
    above = np.concatenate([np.cumsum(mass[::-1])[::-1], [0]])
    cdf, survival = stats.chi.cdf(r, 3), stats.chi.sf(r, 3)
    upper = cdf > 0.5
    i = np.where(upper, np.searchsorted(-above, -survival), np.searchsorted(below, cdf)) - 1
    i = np.clip(i, 0, panels - 1)
    low, w = edges[i], edges[i] + width / 2
    for _ in range(60):  # Newton's method within the panel
        part = (angle_density(low[:, None] + (w - low)[:, None] * (NODES + 1) / 2, t) * WEIGHTS).sum(-1) * (w - low) / 2
        excess = np.where(upper, survival - (above[i] - part), below[i] + part - cdf)
        w = np.clip(w - excess / np.maximum(angle_density(w, t), 1e-300), low, low + width)
    return w


def spline_coefficients(values: np.ndarray, *, even: bool) -> np.ndarray:
    """Coefficients `[n + 2, ...]` of the cubic spline through values `[n, ...]` on a uniform grid; at the start even or free."""
    n = len(values)
    system, right = np.zeros((n + 2, n + 2)), np.zeros((n + 2, *values.shape[1:]))
    for i in range(n):
        system[i + 1, i : i + 3] = 1 / 6, 4 / 6, 1 / 6
    right[1:-1] = values
    system[0, :4] = (1, 0, -1, 0) if even else (1, -3, 3, -1)  # free: no cubic term in the end cells
    system[-1, -4:] = (1, -3, 3, -1)
    return np.linalg.solve(system, right)


def table(cells: tuple[int, int] = CELLS) -> np.ndarray:
    """The spline's coefficients `[cells_x + 3, cells_r + 3]`, float32."""
    r = np.maximum(np.linspace(0, TABLE_RADIUS, cells[1] + 1), 1e-3)
    rows = [np.ones_like(r)]
    for x in np.linspace(0, 1, cells[0] + 1)[1:]:
        t = -TABLE_SCALE * math.log1p(-x) if x < 1 else 1e3
        rows.append(angle_of_radius(r, t) / (r * math.sqrt(TABLE_SCALE * x)))
    half = spline_coefficients(np.stack(rows), even=False)
    return spline_coefficients(half.T, even=True).T.astype(np.float32)


if __name__ == "__main__":
    np.save(pathlib.Path(__file__).with_name("so3_table.npy"), table())
