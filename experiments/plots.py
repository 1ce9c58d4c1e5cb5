"""Pictures: grids of images, clouds of points, and the reverse walk as a GIF.

All are drawn with NumPy and Pillow, in milliseconds, so that a picture every few hundred steps costs training nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_GREY, _RED = np.array([205, 212, 222], np.uint8), np.array([208, 78, 58], np.uint8)
_DISC = [(i, j) for i in range(-3, 4) for j in range(-3, 4) if i * i + j * j <= 9]


def picture(samples: np.ndarray, reference: np.ndarray | None = None, *, columns: int | None = None) -> Image.Image:
    """A picture of samples: points of the plane over real ones in grey, or a grid of images on [-1, 1].

    Args:
      samples: `[n, 2]` or `[n, height, width, 1 or 3]`.
      reference: real points, for the plane; they also set the frame.
      columns: of the grid; about a square by default.
    """
    if samples.ndim == 2:
        return cloud(samples, samples if reference is None else reference)
    return grid(samples, columns=columns)


def grid(images: np.ndarray, *, columns: int | None = None, gap: int = 1) -> Image.Image:
    """Images `[n, height, width, 1 or 3]` on [-1, 1] side by side, enlarged to be seen."""
    n, height, width, channels = images.shape
    columns = columns or int(np.ceil(np.sqrt(n)))
    rows = -(-n // columns)
    pixels = np.clip(np.rint((np.nan_to_num(images) + 1) * 127.5), 0, 255).astype(np.uint8)
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, channels), 64, np.uint8)
    for i, image in enumerate(pixels):
        top, left = gap + (i // columns) * (height + gap), gap + (i % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = image
    scale = max(1, round(640 / max(sheet.shape[:2])))
    flat = Image.fromarray(sheet[:, :, 0] if channels == 1 else sheet)
    return flat.resize((flat.width * scale, flat.height * scale), Image.Resampling.NEAREST)


def cloud(
    points: np.ndarray, reference: np.ndarray, *, side: int = 480, square: tuple[float, float] | None = None
) -> Image.Image:
    """Points `[n, 2]` in red over real ones in grey, in a square frame set by the real ones, or by a square that is drawn."""
    if square is None:
        return next(clouds([points], reference, side=side))
    corners = np.array([[x, y] for x in square for y in square])
    image = next(clouds([points], reference, side=side, frame=corners))
    at = [side * (0.5 + sign / 2.4) for sign in (-1, 1)]  # the frame is 1.2 times as wide
    ImageDraw.Draw(image).rectangle([at[0], at[0], at[1], at[1]], outline=(120, 120, 120))
    return image


def titled(image: Image.Image, *lines: str) -> Image.Image:
    """The image under lines of text that say what it shows."""
    font, line = ImageFont.load_default(size=14), 20
    width = max(image.width, *(round(font.getlength(text)) + 16 for text in lines))
    sheet = Image.new("RGB", (width, image.height + line * len(lines) + 10), "white")
    for i, text in enumerate(lines):
        ImageDraw.Draw(sheet).text((width / 2, line * i + 15), text, fill=(60, 60, 60), anchor="mm", font=font)
    sheet.paste(image, ((width - image.width) // 2, line * len(lines) + 10))
    return sheet


def clouds(
    sets: Iterable[np.ndarray], reference: np.ndarray, *, side: int, frame: np.ndarray | None = None
) -> Iterator[Image.Image]:
    """A picture for each set of points, all in one frame over one set of real points."""
    frame = reference if frame is None else frame
    center = (frame.max(0) + frame.min(0)) / 2
    reach = 0.6 * float((frame.max(0) - frame.min(0)).max())
    # Twice as fine, then halved: smooth dots.
    real = _dots((reference - center) / reach, 2 * side)
    ground = np.where(real[:, :, None], _GREY, np.uint8(255))
    for points in sets:
        covered = _dots((points - center) / reach, 2 * side)
        sheet = np.where(covered[:, :, None], _RED, ground)
        yield Image.fromarray(sheet).resize((side, side), Image.Resampling.BOX)


def _dots(points: np.ndarray, side: int) -> np.ndarray:
    # True where a dot lies, for points on [-1, 1]^2; the first axis runs down the picture.
    inside = np.isfinite(points).all(1) & (np.abs(points) < 1).all(1)
    x, y = ((points[inside] + 1) / 2 * (side - 1)).astype(int).T
    covered = np.zeros((side, side), bool)
    for i, j in _DISC:
        covered[np.clip(side - 1 - y + i, 0, side - 1), np.clip(x + j, 0, side - 1)] = True
    return covered


def animate(frames: Sequence[Image.Image], path: Path, *, seconds: float = 4.0, rest: float = 1.5) -> None:
    """Writes frames as a GIF that runs for so many seconds, rests on the last one and starts again."""
    each = max(20, round(1000 * seconds / len(frames)))
    # One palette for all, from frames along the way: a palette for each gives a small thing another colour in every frame.
    some = [frames[i].convert("RGB") for i in np.unique(np.linspace(0, len(frames) - 1, 5).round().astype(int))]
    sheet = Image.new("RGB", (some[0].width, some[0].height * len(some)))
    for i, frame in enumerate(some):
        sheet.paste(frame, (0, i * frame.height))
    palette = sheet.quantize(256, method=Image.Quantize.FASTOCTREE)
    frames = [frame.convert("RGB").quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    durations = [each] * (len(frames) - 1) + [round(1000 * rest)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0)


def walk(states: np.ndarray, path: Path, reference: np.ndarray | None = None, *, frames: int = 40) -> None:
    """Writes the GIF of a reverse walk `[steps, n, *event]`: `frames` of its states, the last one included."""
    chosen = np.unique(np.linspace(0, len(states) - 1, frames).round().astype(int))
    if states.ndim == 3:
        animate(list(clouds(states[chosen], states[-1] if reference is None else reference, side=320)), path)
    else:
        animate([grid(states[i]) for i in chosen], path)


def mixed_walk(
    states: dict[str, np.ndarray], path: Path, draw: Callable[..., Image.Image], *, frames: int = 40
) -> None:
    """Writes the GIF of a reverse walk of dicts of arrays `[steps, n, ...]`; `draw` makes a picture of each state."""
    steps = len(next(iter(states.values())))
    chosen = np.unique(np.linspace(0, steps - 1, frames).round().astype(int))
    animate([draw({name: value[i] for name, value in states.items()}) for i in chosen], path)


def separately(images: np.ndarray, folder: Path) -> None:
    """Writes each image as a PNG of its own size, `00000.png`, `00001.png`, ..., in place of those of an earlier call."""
    for old in folder.glob("[0-9]*.png"):
        old.unlink()
    pixels = np.clip(np.rint((images + 1) * 127.5), 0, 255).astype(np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(folder / f"{i:05d}.png")
