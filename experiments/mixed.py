"""Examples made of several kinds of things, and toys whose laws are known: what the bridge sampler is for.

    torsions     backbone angles phi and psi of proteins, on the torus
    rotations    rotations from each residue's frame to the next, on SO(3)
    ink          how a handwritten digit's ink is shared among regions, on the simplex
    correlated   two numbers correlated to .999
    symbols      three symbols of four, with a joint law that no product of marginals resembles
    corners      the same three symbols as corners of a simplex, with noise inside it
    joint        a position, an angle, a rotation and a symbol that all tell the same thing
    crystals     perovskite cells (experiments.crystals)

A data set here is a dict of arrays, one for each part; `Mixed` says what the parts are, and what to measure.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw

from diffjax.processes import so3
from experiments import UserError, metrics, plots, spaces

Tree = dict[str, np.ndarray]
_LEGEND = "red: samples, grey: held-out examples"
ASSETS = Path(__file__).parent / "assets"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixed:
    """A data set of dicts of arrays.

    Attributes:
      spaces: what the parts are.
      train: training examples.
      test: held-out examples.
      figures: `(examples) -> {name: value}`, figures of one set that have a true value.
      simple: `(number) -> examples`, draws of a simple model, for a report's baselines; None for independent marginals.
      held: parts that a report also holds at held-out values while it draws the others; empty for none.
      picture: `(samples, test) -> image`, also of samples that are still on their way.
      shown: how many samples a picture is of.
    """

    spaces: dict[str, spaces.Space]
    train: Tree
    test: Tree
    figures: Callable[[Tree], dict[str, float]] = lambda x: {}
    simple: Callable[[int], Tree] | None = None
    held: tuple[str, ...] = ()
    picture: Callable[[Tree, Tree], Image.Image]
    shown: int = 2_000


def size(x: Tree) -> int:
    """The number of examples."""
    return len(next(iter(x.values())))


def rows(x: Tree, index: np.ndarray) -> Tree:
    """The examples of these numbers."""
    return {name: value[index] for name, value in x.items()}


def embed(x: Tree, parts: dict[str, spaces.Space]) -> np.ndarray:
    """Examples as vectors `[n, d]` with chordal distances: angles as (cos, sin), rotations as matrices, symbols one-hot."""
    return np.concatenate([np.asarray(parts[n].embed(x[n])).reshape(len(x[n]), -1) for n in sorted(x)], axis=1)


def independent(x: Tree, number: int, seed: int = 0) -> Tree:
    """A baseline: each number, angle, rotation or symbol drawn from its own marginal, alone."""
    rng = np.random.default_rng(seed)
    drawn = {}
    for name, value in x.items():
        sites = value.reshape(len(value), value.shape[1], -1)
        index = rng.integers(0, len(value), (number, value.shape[1]))
        drawn[name] = np.take_along_axis(sites, index[:, :, None], 0).reshape(number, *value.shape[1:])
    return drawn


def apart(x: Tree, number: int, seed: int = 0) -> Tree:
    """A baseline: each part whole, drawn without regard to the others."""
    rng = np.random.default_rng(seed)
    return {name: value[rng.integers(0, len(value), number)] for name, value in x.items()}


def _baselines(data: Mixed, number: int) -> dict[str, Tree]:
    # Marginals of a set that has but one thing in an example would be the data again.
    alone = {"marginals": independent(data.train, number)} if data.simple is None else {"normal": data.simple(number)}
    return alone | ({"parts": apart(data.train, number)} if len(data.spaces) > 1 else {})


def noise(data: Mixed, number: int) -> Tree:
    """A baseline: what a walk starts from, such as uniform angles and rotations."""
    like = lambda space: jax.ShapeDtypeStruct((number, *space.event), space.dtype)
    return {n: np.asarray(s.process.prior(jax.random.key(0), like(s))) for n, s in data.spaces.items()}


def held(data: Mixed, names: Sequence[str], number: int) -> Tree:
    """These parts of `number` held-out examples, to draw the other parts given them."""
    if unknown := [name for name in names if name not in data.spaces]:
        raise UserError(f"there is no part {unknown[0]!r} to hold; the parts are {', '.join(data.spaces)}")
    if len(set(names)) == len(data.spaces):
        raise UserError(f"nothing is left to draw with {', '.join(names)} held")
    return {name: data.test[name][np.arange(number) % size(data.test)] for name in names}


def measure(data: Mixed, samples: Tree, *, splits: int = 5, most: int = 2_000) -> dict[str, dict]:
    """Rows of a report: energy distances in the chordal embedding, and the set's own figures, with floors and baselines.

    The floor of a distance to held-out examples is that of training examples to them; of one to training examples, that of two sets
    of these. The floor of a figure is that of as many examples drawn from the held-out ones.
    """
    number, half = min(size(samples), size(data.train), most), min(size(samples), size(data.train) // 2, most)
    rng = np.random.default_rng(0)
    some = lambda x, n: rows(x, rng.permutation(size(x))[:n])
    # Sets need not be of one size, since the distance is estimated without bias.
    pairs = [[some(data.train, number), some(data.test, most)] for _ in range(splits)]
    # More samples than real examples cost time alone, and their chance is not the model's fault.
    drawn, simple = some(samples, 5_000), _baselines(data, number)

    def distance(title: str, names: Sequence[str], pairs: list) -> dict[str, dict]:
        see = lambda x: embed({n: x[n] for n in names}, data.spaces)
        floor, target = [metrics.energy_distance(see(a), see(b)) for a, b in pairs], see(pairs[0][1])
        sets = simple | {"noise": noise(data, number)}
        figures = {baseline: metrics.energy_distance(see(x), target) for baseline, x in sets.items()}
        return {title: metrics.row(metrics.energy_distance(see(drawn), target), floor, figures)}

    names = list(data.spaces)
    report = distance("energy_distance", names, pairs)
    orders = [rng.permutation(size(data.train)) for _ in range(splits)]
    twice = [[rows(data.train, order[part]) for part in (np.s_[:half], np.s_[-half:])] for order in orders]
    report |= distance("energy_distance_train", names, twice)
    for name in names if len(names) > 1 else ():
        report |= distance(f"energy_distance_{name}", [name], pairs)
    as_many = lambda: rows(data.test, rng.integers(0, size(data.test), size(samples)))
    truth = [data.figures(as_many()) for _ in range(splits)]
    others = {baseline: data.figures(x) for baseline, x in simple.items()}
    for name, value in data.figures(samples).items():
        report[name] = metrics.row(value, [t[name] for t in truth], {key: x[name] for key, x in others.items()})
    return report


def measure_given(data: Mixed, samples: Tree, names: Sequence[str]) -> dict[str, dict]:
    """Rows for samples with these parts held: the set's figures, beside those of the held-out examples and of
    marginals for the other parts."""
    number, end = size(samples), f"given_{'_'.join(names)}"
    test = rows(data.test, np.arange(number) % size(data.test))
    alone = independent(data.train, number) | {name: test[name] for name in names}
    real, simple, report = data.figures(test), data.figures(alone), {}
    for name, value in data.figures(samples).items():
        report[f"{name}_{end}"] = metrics.row(value, [real[name]], {"marginals": simple[name]})
    return report


# ----------------------------------------------------------------------------------------------------------- proteins


@functools.cache
def _proteins() -> tuple[Tree, np.ndarray]:
    """The residues and which are held out: a quarter of the chains, since neighbours depend on each other."""
    with np.load(ASSETS / "proteins.npz") as file:
        everything = {name: file[name] for name in ("angles", "rotations", "chain")}
    chains = np.random.default_rng(0).permutation(37)
    return everything, np.isin(everything["chain"], chains[:9])


def torsions() -> Mixed:
    everything, test = _proteins()
    angles = {"angles": everything["angles"][:, :2]}

    def picture(samples: Tree, real: Tree) -> Image.Image:
        image = plots.cloud(samples["angles"], real["angles"], square=(-np.pi, np.pi))
        return plots.titled(image, "phi (across) and psi (up) from -180 to 180 degrees", _LEGEND)

    return Mixed(
        spaces={"angles": spaces.angles(2)},
        train=rows(angles, ~test),
        test=rows(angles, test),
        figures=lambda x: {"inside": float(np.mean((x["angles"] >= -np.pi) & (x["angles"] < np.pi)))},
        picture=picture,
    )


def rotations() -> Mixed:
    everything, test = _proteins()
    turns = {"rotations": everything["rotations"][:, None]}

    def vectors(x: Tree) -> np.ndarray:
        q = x["rotations"][:, 0].astype(np.float64)
        q = q * np.where(q[:, :1] < 0, -1, 1)
        norm = np.linalg.norm(q[:, 1:], axis=1, keepdims=True)
        return q[:, 1:] / np.maximum(norm, 1e-12) * 2 * np.arctan2(norm, q[:, :1])

    def picture(samples: Tree, real: Tree) -> Image.Image:
        # The rotation vector, seen along its third and along its first axis.
        a, b = vectors(samples), vectors(real)
        views = [plots.cloud(a[:, v], b[:, v], square=(-np.pi, np.pi)) for v in ([0, 1], [1, 2])]
        said = [plots.titled(i, t) for i, t in zip(views, ("x across, y up", "y across, z up"), strict=True)]
        return plots.titled(_side_by_side(said), "axis times angle of each rotation, from -pi to pi", _LEGEND)

    def normal(number: int) -> Tree:
        # A normal law of the rotation vector that leads from the mean rotation.
        q = turns["rotations"][~test][:, 0]
        mean = np.linalg.eigh(np.einsum("ni,nj->ij", q, q))[1][:, -1].astype(np.float32)
        around = lambda n: jnp.broadcast_to(jnp.asarray(mean), (n, 4))
        v = np.asarray(so3.log(so3.relative(around(len(q)), jnp.asarray(q))))
        drawn = np.random.default_rng(0).multivariate_normal(v.mean(0), np.cov(v.T), number).astype(np.float32)
        return {"rotations": np.asarray(so3.compose(around(number), so3.exp(jnp.asarray(drawn))))[:, None]}

    return Mixed(
        spaces={"rotations": spaces.rotations(1)},
        train=rows(turns, ~test),
        test=rows(turns, test),
        simple=normal,
        picture=picture,
    )


def _needles(
    points: np.ndarray, angles: np.ndarray, colours: np.ndarray, *, side: int = 480, fine: int = 2
) -> Image.Image:
    """Points on [-2, 2]^2 with a needle in a direction, of one of five colours or grey."""
    inks = [(208, 78, 58), (222, 160, 40), (60, 150, 90), (60, 110, 200), (140, 80, 170), (170, 170, 170)]
    sheet = Image.new("RGB", (fine * side, fine * side), "white")
    pen, unit = ImageDraw.Draw(sheet), fine * side / 4
    for point, angle, colour in zip(points, angles, colours, strict=True):
        x, y = unit * (point * [1, -1] + 2)
        ink = inks[min(int(colour), 5)]
        pen.line([x, y, x + unit * 0.22 * np.cos(angle), y - unit * 0.22 * np.sin(angle)], fill=ink, width=fine)
        pen.ellipse([x - 2 * fine, y - 2 * fine, x + 2 * fine, y + 2 * fine], fill=ink)
    return sheet.resize((side, side), Image.Resampling.LANCZOS)


def _side_by_side(images: list[Image.Image]) -> Image.Image:
    sheet = Image.new("RGB", (sum(i.width for i in images), max(i.height for i in images)), "white")
    at = 0
    for image in images:
        sheet.paste(image, (at, 0))
        at += image.width
    return sheet


# ---------------------------------------------------------------------------------------------------------------- ink


def ink(rows_of: int = 2, columns_of: int = 4) -> Mixed:
    """The shares of ink of scikit-learn's 8x8 digits in regions of so many rows and columns: eight numbers that sum to 1."""
    from sklearn import datasets  # takes a second to import

    images = datasets.load_digits().images
    images = images[np.random.default_rng(0).permutation(len(images))]  # the split of `digits`
    each = images.reshape(-1, 8 // rows_of, rows_of, 8 // columns_of, columns_of).sum((2, 4)).reshape(len(images), -1)
    p = (each / each.sum(1, keepdims=True)).astype(np.float32)

    def figures(x: Tree) -> dict[str, float]:
        q = x["ink"].astype(np.float64)
        return {
            "empty": float((q < 0.005).mean()),  # regions with next to nothing
            "sides": float(np.corrcoef(q[:, 0], q[:, -2])[0, 1]),  # what is on the left above and below
            "sum_error": float(np.abs(q.sum(1) - 1).max()),
        }

    def picture(samples: Tree, real: Tree) -> Image.Image:
        shape = (-1, 8 // rows_of, 8 // columns_of)
        tiles = samples["ink"][:64].reshape(shape).repeat(rows_of, 1).repeat(columns_of, 2)
        return plots.grid((1 - 6 * tiles.clip(0, 1 / 3))[..., None])

    return Mixed(
        spaces={"ink": spaces.shares(p.shape[1])},
        train={"ink": p[:1297]},
        test={"ink": p[1297:]},
        figures=figures,
        picture=picture,
    )


# --------------------------------------------------------------------------------------------------------------- toys


def correlated(correlation: float = 0.999) -> Mixed:
    def draw(number: int, seed: int) -> Tree:
        a, b = np.random.default_rng(seed).standard_normal((2, number))
        pair = np.stack([a, correlation * a + np.sqrt(1 - correlation**2) * b], 1)
        return {"x": pair.astype(np.float32)}

    def figures(x: Tree) -> dict[str, float]:
        narrow = (x["x"][:, 1] - x["x"][:, 0]) / np.sqrt(2 * (1 - correlation))
        return {"narrow_std": float(narrow.std()), "correlation": float(np.corrcoef(x["x"].T)[0, 1])}

    return Mixed(
        spaces={"x": spaces.vector(2)},
        train=draw(50_000, 0),
        test=draw(10_000, 1),
        figures=figures,
        picture=lambda samples, real: plots.titled(plots.cloud(samples["x"], real["x"]), _LEGEND),
    )


def _words(sites: int, vocab: int) -> tuple[np.ndarray, Callable[[int, int], np.ndarray]]:
    """A law of words of which every marginal is uniform, and `(number, seed) -> [number, sites]`, draws of it."""
    shape = (vocab,) * sites
    # Words whose letters sum to a multiple of the vocabulary, and a little of all others.
    law = 0.02 + (np.indices(shape).sum(0) % vocab == 0)
    law /= law.sum()

    def draw(number: int, seed: int) -> np.ndarray:
        flat = np.random.default_rng(seed).choice(law.size, number, p=law.reshape(-1))
        return np.stack(np.unravel_index(flat, shape), 1).astype(np.int32)

    return law, draw


def _spelled(law: np.ndarray, read: Callable[[Tree], np.ndarray], **facts: object) -> Mixed:
    """Words of a known law; `read` makes letters of examples, the mask being one more than the last."""
    sites, vocab = law.ndim, law.shape[0]

    def table(x: Tree) -> np.ndarray:
        counted = np.zeros((vocab + 1,) * sites)  # the mask too, which words on their way have
        letters = read(x)
        np.add.at(counted, tuple(letters.T), 1)
        return counted[(slice(vocab),) * sites] / len(letters)

    def figures(x: Tree) -> dict[str, float]:
        found = table(x)
        return {"total_variation": float(0.5 * (np.abs(found - law).sum() + 1 - found.sum()))}

    def picture(samples: Tree, real: Tree) -> Image.Image:
        # Frequency of every word, true above, sampled below.
        both = np.stack([law.reshape(-1), table(samples).reshape(-1)])
        bars = plots.grid((2 * both / both.max() - 1)[:, None, :, None].repeat(8, 1), columns=1)
        return plots.titled(
            bars,
            "how often each word is found, from never (black) to most (white):",
            "above the true law, below the samples",
        )

    return Mixed(figures=figures, picture=picture, **facts)


def symbols(sites: int = 3, vocab: int = 4) -> Mixed:
    law, draw = _words(sites, vocab)
    facts = {"train": {"s": draw(50_000, 0)}, "test": {"s": draw(10_000, 1)}}
    return _spelled(law, lambda x: x["s"], spaces={"s": spaces.symbols(sites, vocab)}, **facts)


def corners(sites: int = 3, vocab: int = 4) -> Mixed:
    law, draw = _words(sites, vocab)
    names = [f"letter_{i}" for i in range(sites)]

    # A part for each letter: so they may have times of their own, and a letter be asked for while the others are told.
    def one_hot(number: int, seed: int) -> Tree:
        return dict(zip(names, np.eye(vocab, dtype=np.float32)[draw(number, seed).T][:, :, None], strict=True))

    def read(x: Tree) -> np.ndarray:  # the nearest corner, of those on their way
        return np.stack([x[name].argmax(-1)[:, 0] for name in names], 1)

    facts = {"train": one_hot(50_000, 0), "test": one_hot(10_000, 1)}
    return _spelled(law, read, spaces={name: spaces.corners(1, vocab) for name in names}, **facts)


def joint(classes: int = 5) -> Mixed:
    centers = 2 * np.pi * np.arange(classes) / classes

    def draw(number: int, seed: int) -> Tree:
        rng = np.random.default_rng(seed)
        c = rng.integers(0, classes, number)
        theta = centers[c]
        half, tilt = (theta + 0.1 * rng.standard_normal(number)) / 2, 0.1 * rng.standard_normal((number, 2)) / 2
        q = np.stack([np.cos(half), tilt[:, 0], tilt[:, 1], np.sin(half)], 1)
        q /= np.linalg.norm(q, axis=1, keepdims=True)
        place = 1.3 * np.stack([np.cos(theta), np.sin(theta)], 1) + 0.08 * rng.standard_normal((number, 2))
        angle = (theta[:, None] + 0.1 * rng.standard_normal((number, 1)) + np.pi) % (2 * np.pi) - np.pi
        return {
            "angle": np.minimum(angle, 3.1415925).astype(np.float32),
            "position": place.astype(np.float32),
            "rotation": q[:, None].astype(np.float32),
            "symbol": ((2 * c) % classes).astype(np.int32)[:, None],
        }

    def readings(x: Tree) -> dict[str, np.ndarray]:
        """The class that each part tells of."""
        q = x["rotation"][:, 0]
        near = lambda angle: np.rint(angle / (2 * np.pi / classes)).astype(int) % classes
        return {
            "angle": near(x["angle"][:, 0]),
            "position": near(np.arctan2(x["position"][:, 1], x["position"][:, 0])),
            "rotation": near(2 * np.arctan2(q[:, 3], q[:, 0])),
            "symbol": (x["symbol"][:, 0] * (classes + 1) // 2) % classes,
        }

    def picture(samples: Tree, real: Tree) -> Image.Image:
        # A needle at each position: its colour is the symbol (grey: masked); left it points along the angle, right it is turned by the rotation.
        turn = 2 * np.arctan2(samples["rotation"][:, 0, 3], samples["rotation"][:, 0, 0])
        ways = {"needles along the angle": samples["angle"][:, 0], "needles turned by the rotation": turn}
        shown = {
            title: (samples["position"][:400], way[:400], samples["symbol"][:400, 0]) for title, way in ways.items()
        }
        panels = [plots.titled(_needles(*what), title) for title, what in shown.items()]
        return plots.titled(
            _side_by_side(panels), "needles at the position, coloured by the symbol: all four tell the same"
        )

    def figures(x: Tree) -> dict[str, float]:
        told = readings(x)
        return {f"{n}_agrees": float(np.mean(told[n] == told["symbol"])) for n in ("angle", "position", "rotation")}

    return Mixed(
        spaces={
            "angle": spaces.angles(1),
            "position": spaces.vector(2),
            "rotation": spaces.rotations(1),
            "symbol": spaces.symbols(1, classes),
        },
        train=draw(20_000, 0),
        test=draw(5_000, 1),
        figures=figures,
        held=("symbol",),
        picture=picture,
        shown=400,
    )
