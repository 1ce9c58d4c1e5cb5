"""Cubic perovskite cells ABX3: fifteen fractional coordinates on a torus, five symbols and a lattice constant, generated together.

With `data.dir` the real cells of Perov-5 are read from `perov5.npz` there; without, a synthetic twin that obeys the same laws is drawn:

* the three X atoms form one of seven multisets, each about as often as the others;
* the logarithm of the lattice constant is linear in the composition, with noise that leaves R^2 = .93;
* how often a cell is distorted (an atom more than .05 from its ideal site) depends on the X triple;
* no composition of the test set occurs in the training set.

A model of independent marginals has none of them. `figures` measures each.

Source of the set: Castelli et al. 2012, Energy Environ. Sci. 5, 9034; Xie et al. 2022, arXiv:2110.06197.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from experiments import UserError, mixed, plots, spaces

IDEAL = np.array([[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0], [0, 0.5, 0.5]])
TRIPLES = ("FNO", "FOO", "NNN", "NNO", "NOO", "OOO", "OOS")
_INK = {"N": (60, 95, 210), "O": (215, 55, 45), "F": (70, 165, 75), "S": (225, 180, 30)}


def crystals(folder: str = "") -> mixed.Mixed:
    """The cells of a folder, or the synthetic twin; the lattice constant is standardised as `log a`."""
    if folder:
        path = Path(folder) / "perov5.npz"
        if not path.is_file():
            raise UserError(f"expected {path}, the cells of Perov-5; leave config.data.dir empty for a synthetic twin")
        with np.load(path) as file:
            symbols = [str(s) for s in file["symbols"]]
            raw = {
                part: {k: file[f"{part}_{k}"] for k in ("lattice", "elements", "coords")} for part in ("train", "test")
            }
    else:
        symbols, raw = _twin(3_787, 1_500)
    log = np.log(raw["train"]["lattice"])
    mean, std = float(log.mean()), float(log.std())

    def parts(x: dict) -> mixed.Tree:
        angles = 2 * np.pi * (np.asarray(x["coords"], np.float64) % 1)
        angles = np.where(angles >= np.pi, angles - 2 * np.pi, angles).astype(np.float32)
        return {
            "coords": np.clip(
                angles.reshape(-1, 15), -np.float32(np.pi), np.nextafter(np.float32(np.pi), np.float32(0))
            ),
            "elements": np.asarray(x["elements"], np.int32),
            "lattice": ((np.log(x["lattice"]) - mean) / std)[:, None].astype(np.float32),
        }

    train, test = parts(raw["train"]), parts(raw["test"])
    vocab = len(symbols)
    usual = bent(train, symbols)
    words, counts = np.unique(triples(train["elements"], symbols), return_counts=True)
    law = dict(zip(words, counts / counts.sum(), strict=True))
    weights = np.linalg.lstsq(_composition(train["elements"], vocab), train["lattice"][:, 0], rcond=None)[0]

    def figures(x: mixed.Tree) -> dict[str, float]:
        value = x["lattice"][:, 0]
        error = value - _composition(x["elements"], vocab) @ weights
        named = triples(x["elements"], symbols)
        out = {
            "valid_triples": float(np.isin(named, TRIPLES).mean()),
            "lattice_r2": float(1 - np.mean(error**2) / np.var(value)),
            "masks": float(np.sum(x["elements"] >= vocab)),
        }
        # Words against those of the training cells, as a total variation: independent letters make many valid words, not as often.
        words, counts = np.unique(named, return_counts=True)
        now = dict(zip(words, counts / len(named), strict=True))
        out["triples_off"] = 0.5 * float(sum(abs(now.get(word, 0.0) - law.get(word, 0.0)) for word in {*now, *law}))
        rates = bent(x, symbols)
        # Over the triples, the greatest difference from the training cells.
        out["distorted_off"] = max(abs(rates[triple] - usual[triple]) for triple in TRIPLES)
        return out | {f"distorted_{triple}": rate for triple, rate in rates.items()}

    return mixed.Mixed(
        spaces={"coords": spaces.angles(15), "elements": spaces.symbols(5, vocab), "lattice": spaces.vector(1)},
        train=train,
        test=test,
        figures=figures,
        held=("elements",),
        picture=lambda samples, real: picture(samples, symbols, np.exp(mean + std * samples["lattice"][:, 0])),
        shown=12,
    )


def triples(elements: np.ndarray, symbols: list[str]) -> np.ndarray:
    """The multiset of the three X atoms as a sorted word, such as `NOO`."""
    names = np.array([*symbols, "?"])
    return np.array(["".join(sorted(names[np.minimum(row, len(symbols))])) for row in elements[:, 2:]])


def distorted(angles: np.ndarray) -> np.ndarray:
    """Whether any atom lies more than .05 of the cell from its ideal site, `[n]` bool."""
    away = angles.reshape(-1, 5, 3) / (2 * np.pi) - IDEAL
    return np.linalg.norm(away - np.round(away), axis=-1).max(axis=1) > 0.05


def bent(x: mixed.Tree, symbols: list[str]) -> dict[str, float]:
    """The share of distorted cells, for each X triple."""
    bent, named = distorted(x["coords"]), triples(x["elements"], symbols)
    return {triple: float(bent[named == triple].mean()) if (named == triple).any() else 0.0 for triple in TRIPLES}


def _composition(elements: np.ndarray, vocab: int) -> np.ndarray:
    one_hot = np.eye(vocab + 1)[elements]
    return np.concatenate([one_hot[:, 0], one_hot[:, 1], one_hot[:, 2:].sum(1), np.ones((len(elements), 1))], 1)


def _twin(train: int, test: int) -> tuple[list[str], dict[str, dict]]:
    """Symbols and cells with the laws above, from a fixed seed."""
    rng = np.random.default_rng(11)
    symbols = ["F", "N", "O", "S", *(f"M{i}" for i in range(36))]
    index = {s: i for i, s in enumerate(symbols)}
    rate = dict(zip(TRIPLES, (0.18, 0.13, 0.39, 0.57, 0.39, 0.40, 0.80), strict=True))
    # Sites of the letters: a fixed order for each triple, as in the real cells, here the one in which letters drawn independently for
    # each site are valid least often, 84% (seven such triples allow no less: F and S are rare).
    order = dict(zip(TRIPLES, ("FON", "OFO", "NNN", "NON", "NOO", "OOO", "OSO"), strict=True))
    anions = dict(zip(TRIPLES, rng.normal(0, 0.03, 7), strict=True))
    cations = rng.normal(0, 0.06, (2, len(symbols)))
    metals = np.arange(4, len(symbols))
    every = np.array([(a, b, t) for a in metals for b in metals if a != b for t in range(7)])
    every = every[rng.permutation(len(every))[: train + test]]
    cells = []
    for a, b, t in every:
        triple = TRIPLES[t]
        bent = rng.random() < rate[triple]
        shift = np.zeros((5, 3))
        shift[:, 0] = rng.normal(0, 0.004, 5)
        if bent:
            shift[:, 0] += rng.choice([-1, 1]) * np.array([0.12, 0.02, -0.08, -0.08, 0.05]) * rng.uniform(0.8, 1.6)
        log_a = 1.4 + cations[0, a] + cations[1, b] + anions[triple] + rng.normal(0, 0.014)
        cells.append((np.exp(log_a), [a, b, *(index[s] for s in order[triple])], (IDEAL + shift) % 1))
    lattice, elements, coords = (np.array(column) for column in zip(*cells, strict=True))
    everything = {"lattice": lattice.astype(np.float32), "elements": elements, "coords": coords.astype(np.float32)}
    cut = lambda part: {name: value[part] for name, value in everything.items()}
    return symbols, {"train": cut(slice(None, train)), "test": cut(slice(train, None))}


def picture(samples: mixed.Tree, symbols: list[str], lattice: np.ndarray, *, number: int = 12) -> Image.Image:
    """Cells side by side, to scale, in an oblique view: B dark with a bond to its nearest X atoms, X in the usual colours of its elements
    (N blue, O red, F green, S yellow), A light; an atom on a face is drawn on both, and a distorted cell has a yellow ground."""
    fine, side, columns = 2, 230, 4
    number = min(number, len(lattice))
    sheet = Image.new("RGB", (columns * side * fine, -(-number // columns) * side * fine), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12 * fine)
    # x to the right, y into the page, z up.
    view = np.array([[1.0, 0.0], [0.36, -0.26], [0.0, -1.0]])
    corners = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    edges = [(a, b) for a in range(8) for b in range(a) if np.abs(corners[a] - corners[b]).sum() == 1]
    around = np.array([[i, j, k] for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (-1, 0, 1)])
    bent = distorted(samples["coords"][:number])
    for n in range(number):
        left, top = (n % columns) * side * fine, (n // columns) * side * fine
        if bent[n]:
            pen.rectangle([left + 6, top + 6, left + side * fine - 6, top + side * fine - 6], fill=(255, 249, 228))
        scale = fine * 110 * lattice[n] / 4.2
        # The cell's middle at the same place whatever its size.
        place = lambda x, scale=scale, left=left, top=top: (
            np.array([left + fine * side / 2, top + fine * (side / 2 - 8)]) + scale * (np.asarray(x) - 0.5) @ view
        )
        for a, b in edges:
            pen.line([*place(corners[a]), *place(corners[b])], fill=(200, 200, 200), width=fine)
        at = (samples["coords"][n].reshape(5, 3) / (2 * np.pi)) % 1
        names = [symbols[e] if e < len(symbols) else "?" for e in samples["elements"][n]]
        images = [(at[i] + shift, i) for i in range(5) for shift in around]
        bonds = sorted((x for x in images if x[1] > 1), key=lambda x: np.linalg.norm(x[0] - at[1]))[:6]
        for end, _ in bonds:
            pen.line([*place(at[1]), *place(end)], fill=(150, 150, 160), width=2 * fine)
        inside = [x for x in images if np.abs(x[0] - 0.5).max() <= 0.53]
        for position, i in sorted([*inside, *bonds], key=lambda atom: -atom[0][1]):
            (x, y), radius = place(position), fine * (12, 9, 8)[min(i, 2)]
            ink = ((150, 190, 215), (85, 85, 95))[i] if i < 2 else _INK.get(names[i], (190, 60, 190))
            pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=ink, outline="white", width=fine)
            shine = tuple((v + 2 * 255) // 3 for v in ink)
            x, y, radius = x - radius / 3, y - radius / 3, radius / 4
            pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=shine)
        words = f"{names[0]} {names[1]} {' '.join(names[2:])}    a = {lattice[n]:.2f}"
        pen.text((left + fine * side / 2, top + fine * (side - 20)), words, fill=(60, 60, 60), anchor="mm", font=font)
    image = sheet.resize((sheet.width // fine, sheet.height // fine), Image.Resampling.LANCZOS)
    key = "A light blue, B dark with its bonds, X: N blue, O red, F green, S yellow; on a yellow ground: distorted"
    return plots.titled(image, key, "a: the cell's edge in angstrom")
