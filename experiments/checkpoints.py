"""Checkpoints that are believed only when every byte is as it was written.

    checkpoints/00001000/state/...         the tree, written by orbax
    checkpoints/00001000/MANIFEST.sha256   a line for each file, as `sha256sum -c MANIFEST.sha256` reads it

orbax alone restores a flipped bit without a word, so `restore` compares every file with the manifest first; a step that
does not match is reported in one line and the one before it is used. A step is written beside its place and renamed into
it once it is whole and on disk: a process killed at any moment leaves the old steps and a scrap that the next save sweeps up.

Trees are saved as plain arrays on the host, so that a run may go on with another number of devices or another layout.
"""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from experiments import UserError

_MANIFEST = "MANIFEST.sha256"


class NotFinite(UserError):
    """A state with NaN or infinity in it, which is not worth keeping."""


def steps(directory: str | Path) -> list[int]:
    """The steps that have a checkpoint, oldest first; whether they are sound is not looked at."""
    return sorted(int(path.name) for path in Path(directory).glob("*") if path.name.isdigit() and path.is_dir())


def save(directory: str | Path, step: int, tree: Any, *, keep: int = 3) -> Path:
    """Writes the tree as the checkpoint of a step, all or nothing, and drops all but the newest `keep`.

    Steps beyond this one are dropped too: they are a future that was found damaged and is being walked again.

    Args:
      directory: made if it is not there.
      step: number of the step, >= 0.
      tree: pytree of arrays, on the host or fully addressable.
      keep: number of checkpoints to keep, >= 1.

    Raises:
      NotFinite: the tree holds NaN or infinity; nothing is written.
      UserError: the disk does not take it; older checkpoints are untouched.
    """
    directory = Path(directory).absolute()
    leaves = {name: np.asarray(leaf) for name, leaf in _named(tree).items()}
    broken = [name for name, leaf in leaves.items() if not _finite(leaf)]
    if broken:
        more = f" and {len(broken) - 1} others" if len(broken) > 1 else ""
        raise NotFinite(f"step {step} is not saved: {broken[0]}{more} holds NaN or infinity")
    place, part = directory / f"{step:08d}", directory / f"{step:08d}.part"
    first = jax.process_index() == 0
    try:
        if first:
            directory.mkdir(parents=True, exist_ok=True)
            for scrap in directory.glob("*.part"):
                shutil.rmtree(scrap)
            part.mkdir()
            _check_room(part, sum(leaf.nbytes for leaf in leaves.values()))
        _meet(f"part {step}")
        _orbax().save(part / "state", leaves)
        _meet(f"written {step}")
        if first:
            (part / _MANIFEST).write_text(
                "".join(f"{digest}  {name}\n" for name, digest in sorted(_digests(part).items()))
            )
            _flush(part)
            if place.exists():
                place.rename(directory / f"{step:08d}.old.part")
            part.rename(place)
            _flush_folder(directory)
            shutil.rmtree(directory / f"{step:08d}.old.part", ignore_errors=True)
            known = steps(directory)
            for number in [n for n in known if n > step] + [n for n in known if n <= step][:-keep]:
                shutil.rmtree(directory / f"{number:08d}")
    except Exception as error:  # orbax reports a full disk as any of several types
        if isinstance(error, (OSError, ValueError, RuntimeError)):
            if first:
                shutil.rmtree(part, ignore_errors=True)
            raise UserError(f"could not save step {step} in {directory}: {_line(error)}") from error
        raise
    _meet(f"saved {step}")
    return place


def restore(
    directory: str | Path, like: Any, *, step: int | None = None, report: Callable[[str], None] = print
) -> tuple[int, Any] | None:
    """`(step, tree)` of the newest sound checkpoint, or None when there is no checkpoint at all.

    Args:
      directory: as given to `save`.
      like: pytree of arrays or `ShapeDtypeStruct`, of the structure, shapes and dtypes to be restored.
      step: this one and no other.
      report: called with one line for each checkpoint that is damaged and passed over.

    Returns:
      the step and the tree, NumPy arrays in the structure of `like`; bit for bit what was saved.

    Raises:
      UserError: there are checkpoints, and none is sound or fits `like`.
    """
    directory = Path(directory).absolute()
    known = steps(directory) if step is None else [step]
    wanted = {name: np.empty(leaf.shape, leaf.dtype) for name, leaf in _named(like).items()}
    faults = []
    for number in reversed(known):
        place = directory / f"{number:08d}"
        fault = damage(place)
        if fault is None:
            _check_fit(place, wanted)
            leaves = _orbax().load(place / "state", wanted)
            return number, jax.tree.unflatten(jax.tree.structure(like), [leaves[name] for name in wanted])
        faults.append(f"checkpoint {number} is damaged ({fault})")
        if number != known[0]:
            report(faults[-1] + "; using the one before it")
    if faults:
        raise UserError(f"{faults[-1]} and there is no older one in {directory}")
    return None


def damage(place: Path) -> str | None:
    """What is wrong with the files of a checkpoint, in a few words, or None when all are as written."""
    try:
        lines = (place / _MANIFEST).read_text().splitlines()
        listed = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
        found = _digests(place)
    except (OSError, ValueError) as error:  # ValueError: no text, or no pair
        return f"unreadable: {_line(error)}"
    if listed == found:
        return None
    name = sorted(name for name in listed.keys() | found.keys() if listed.get(name) != found.get(name))[0]
    return f"{name} {'is missing' if name not in found else 'differs from what was written'}"


def _named(tree: Any) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in jax.tree.leaves_with_path(tree)
    }


def _check_fit(place: Path, wanted: dict[str, np.ndarray]) -> None:
    # orbax pads or cuts an array of another shape without a word.
    held = _orbax().metadata(place / "state").metadata
    facts = [{name: (tuple(leaf.shape), str(leaf.dtype)) for name, leaf in tree.items()} for tree in (held, wanted)]
    for name in sorted(facts[0].keys() | facts[1].keys()):
        have, want = (f.get(name, "nothing") for f in facts)
        if have != want:
            raise UserError(
                f"checkpoint {place} does not fit this network or optimiser: {name} is {have}, expected {want}"
            )


def _finite(leaf: np.ndarray) -> bool:
    # jnp's, since NumPy takes a bfloat16 for no float.
    return not jnp.issubdtype(leaf.dtype, jnp.inexact) or bool(np.isfinite(leaf).all())


def _digests(place: Path) -> dict[str, str]:
    files = [path for path in place.rglob("*") if path.is_file() and path.name != _MANIFEST]
    return {str(path.relative_to(place)): _digest(path) for path in files}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(place: Path) -> None:
    for path in [*place.rglob("*"), place]:
        if path.is_dir():
            _flush_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _flush_folder(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _check_room(place: Path, size: int) -> None:
    # orbax fails on a full disk as well, after pages of tracebacks from its threads.
    room, need = shutil.disk_usage(place).free, int(1.1 * size) + 2**18
    if room < need:
        raise OSError(f"no space left on device: {need:,} bytes are needed, {room:,} are free")


def _meet(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _orbax() -> Any:
    from orbax.checkpoint import v1  # half a second to import

    return v1
