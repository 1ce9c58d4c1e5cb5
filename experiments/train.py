"""Trains a diffusion model from a config, before one's eyes.

    python -m experiments.train                                         # the spiral
    python -m experiments.train --config digits --workdir runs/mine --config.steps=2000

A run is a function of its config: the batch, the noise and the parameters of step k follow from the seed and k. So a run that is
stopped, by Ctrl-C, SIGTERM or a power cut, goes on with the same command and ends on the same bits.
"""

import argparse
import collections
import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from PIL import Image
from tensorboardX import SummaryWriter

from diffjax import training
from experiments import UserError, build, checkpoints, configs, data, evaluate, plots, run, screen, walks

# A run may go on with more steps, and where neither numbers nor data change: on other devices, with the data elsewhere.
_FREE = ("steps:", "layout:", "data.dir:")


def main(argv: Sequence[str] | None = None) -> int:
    parser = configs.Parser(
        prog="python -m experiments.train",
        description="Trains a diffusion model. Run again with the same command, it goes on where it was.",
        epilog="configs: " + ", ".join(configs.names()) + "\n\nfields, with their defaults:\n" + configs.listing(),
    )
    parser.add_argument("--config", metavar="NAME_OR_PATH", help="a config's name or file (default: spiral)")
    parser.add_argument("--workdir", type=Path, metavar="DIR", help="where all goes (default: runs/NAME)")
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on from the last checkpoint (default), or start afresh and drop what the workdir holds",
    )
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="one of several processes: on a TPU pod or SLURM as it is, elsewhere set JAX_COORDINATOR_ADDRESS, "
        "JAX_NUM_PROCESSES and JAX_PROCESS_ID",
    )
    args, flags = parser.parse_known_args(argv)
    if args.distributed:
        numbers = {"num_processes": "JAX_NUM_PROCESSES", "process_id": "JAX_PROCESS_ID"}
        jax.distributed.initialize(**{k: int(os.environ[v]) for k, v in numbers.items() if v in os.environ})
    name = args.config or "spiral"
    workdir = args.workdir or Path("runs") / Path(name).stem
    if args.config is None and (workdir / "config.json").is_file():
        name = str(workdir / "config.json")
    config = configs.override(configs.load(name), flags)
    experiment = build.experiment(config)
    layout = build.layout(experiment)
    claim(workdir, config, resume=args.resume)
    return train(experiment, layout, workdir)


def claim(workdir: Path, config: ConfigDict, *, resume: bool) -> None:
    """Makes the workdir this config's own, or refuses; nothing of another run is ever written over."""
    stored = workdir / "config.json"
    if stored.is_file():
        lines = configs.differences(configs.read(stored), config)
        differ = [line for line in lines if not line.startswith(_FREE)]
        if differ:
            raise UserError(
                f"{workdir} holds a run of another config ({'; '.join(differ)}); choose another --workdir, or the same settings"
            )
        reached = max(checkpoints.steps(workdir / "checkpoints"), default=0)
        if resume and reached > config.steps:
            raise UserError(f"{workdir} is at step {reached} already, past config.steps={config.steps}")
    elif (workdir / "checkpoints").exists():
        raise UserError(
            f"{workdir} holds checkpoints and no config.json, so they are not known to fit; choose another --workdir"
        )
    if jax.process_index() > 0:
        return
    if not resume:
        for made in ("checkpoints", "samples", "tensorboard"):
            shutil.rmtree(workdir / made, ignore_errors=True)
        (workdir / "metrics.jsonl").unlink(missing_ok=True)
    (workdir / "samples").mkdir(parents=True, exist_ok=True)
    configs.write(config, stored)


def train(experiment: build.Experiment, layout: training.parallel.Layout, workdir: Path) -> int:
    """Trains from the last checkpoint to the last step, then measures; returns the program's exit code."""
    config, folder = experiment.config, workdir / "checkpoints"
    for_params, key = jax.random.split(jax.random.key(config.seed))
    start, state = 0, training.init(experiment.init(for_params), experiment.optimizer)
    # Beside the state: sum and number of the losses since the last line, so that the lines too are those of an unbroken run.
    window = np.zeros(2)
    found = checkpoints.restore(folder, {"state": state, "window": window}, report=screen.say)
    if found is not None:
        start, state, window = found[0], found[1]["state"], found[1]["window"]
        screen.say(f"going on from step {start} in {workdir}")
    size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    screen.say(
        f"{experiment.dataset.name}: {size:,} parameters, {len(layout.devices)} {layout.devices[0].platform} device(s)"
    )
    state = layout.place_state(state)
    batches = data.batches(
        experiment.dataset,
        seed=config.seed,
        batch_size=config.batch_size,
        start=start,
        process=jax.process_index(),
        processes=jax.process_count(),
    )
    board = Board(experiment, workdir, start)
    # A step is handed to the device before the last one is over, and looked at when it is over: the device never waits for
    # this loop. (Several simulated devices on one CPU may wait for each other for ever unless each step is awaited.)
    ahead = 0 if layout.devices[0].platform == "cpu" and len(layout.devices) > 1 else 1
    pending: collections.deque[tuple[int, dict]] = collections.deque()

    def settle(most: int) -> None:
        nonlocal window
        while len(pending) > most:
            step, seen = pending.popleft()
            if int(seen["nonfinite"]):
                raise FloatingPointError(step)
            window = window + np.array([float(seen["loss"]), 1.0])

    def save(step: int) -> None:
        settle(0)
        kept = {"state": layout.read_state(state), "window": window}
        checkpoints.save(folder, step, kept, keep=config.keep_checkpoints)

    came: list[int] = []

    def stopped() -> bool:
        if jax.process_count() == 1:
            return bool(came)
        # All processes stop at the same step: they ask each other now and then.
        return step % config.log_every == 0 and bool(multihost_utils.process_allgather(np.array(bool(came))).any())

    step, saved, clock, last = start, start, time.perf_counter(), start
    with signals(came.append), contextlib.closing(board), screen.training(start, config.steps) as update:
        try:
            while step < config.steps and not stopped():
                state, seen = layout.step(state, key, layout.place_batch(next(batches)))
                step += 1
                pending.append((step, seen))
                settle(ahead)
                if step == start + 1:
                    clock, last = time.perf_counter(), step  # compiling is no step
                if step % config.log_every == 0 or step == config.steps:
                    settle(0)
                    now = time.perf_counter()
                    rate = (step - last) / (now - clock) if step > last else 0.0
                    clock, last = now, step
                    loss, window = float(window[0] / window[1]), np.zeros(2)
                    board.write(step, loss=loss, grad_norm=float(seen["grad_norm"]), steps_per_second=rate)
                    update(step, loss, rate)
                pause = time.perf_counter()
                if config.sample_every and step % config.sample_every == 0 and step < config.steps:
                    board.picture(step, layout.read_state(state).ema)
                if step % config.checkpoint_every == 0 or step == config.steps:
                    save(step)
                    saved = step
                clock += time.perf_counter() - pause
            settle(0)
        except FloatingPointError as error:
            known = checkpoints.steps(folder)
            kept = f"the last checkpoint is of step {known[-1]}" if known else "there is no checkpoint yet"
            raise UserError(
                f"loss or gradient is not finite at step {error}; {kept}. Try a smaller config.learning_rate or config.optimizer.clip"
            ) from None
        if step > saved:
            save(step)
        if step < config.steps:
            screen.say(f"stopped and saved at step {step}; the same command goes on from there")
            return 0
    with signals(lambda number: sys.exit(0)):  # all is saved; the same command will finish the figures
        board.finish(step, layout.read_state(state).ema)
    return 0


@contextlib.contextmanager
def signals(handle: Callable[[int], Any]) -> Iterator[None]:
    """Hands Ctrl-C and SIGTERM to `handle`, once; a second one ends the program as usual."""
    names = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in names}

    def once(number, frame):
        for each in names:
            signal.signal(each, signal.SIG_DFL)
        handle(number)

    for number in names:
        signal.signal(number, once)
    try:
        yield
    finally:
        for number in names:
            signal.signal(number, before[number])


class Board:
    """Where a run's lines, curves and pictures go; only the first process writes."""

    def __init__(self, experiment: build.Experiment, workdir: Path, start: int):
        self.experiment, self.workdir = experiment, workdir
        self.silent = jax.process_index() > 0
        if self.silent:
            return
        self.lines = workdir / "metrics.jsonl"
        _keep_until(self.lines, start)
        self.events = SummaryWriter(str(workdir / "tensorboard"), purge_step=start + 1 if start else None)
        self.draw = walks.sampler(experiment)
        # Every picture starts from the same noise, so that one sees the model change and nothing else.
        self.reference, self.mixed = None, experiment.dataset.parts
        if len(experiment.dataset.event) == 1:
            self.reference = data.training_sample(experiment.dataset, 5_000)["x0"]

    def write(self, step: int, **values: float) -> None:
        """Adds a line to metrics.jsonl and a point to each TensorBoard curve."""
        if self.silent:
            return
        values["learning_rate"] = float(self.experiment.rate(step))
        with self.lines.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self.events.add_scalar(name, value, step)

    def picture(self, step: int, params: Any) -> None:
        """Draws samples and keeps them as a PNG and on TensorBoard."""
        if self.silent:
            return
        number, label = self._wanted()
        image = self._drawn(self.draw(params, number, seed=1, label=label))
        image.save(self.workdir / "samples" / f"step_{step:08d}.png")
        self.events.add_image("samples", np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def _drawn(self, samples: Any) -> Image.Image:
        if self.mixed is not None:
            return self.mixed.picture(samples, self.mixed.test)
        return plots.picture(samples, self.reference)

    def _wanted(self) -> tuple[int, np.ndarray | None]:
        number = self.mixed.shown if self.mixed is not None else 64 if self.reference is None else 2_000
        classes = self.experiment.dataset.classes
        return number, np.arange(number) % classes if self.experiment.config.conditional else None

    def close(self) -> None:
        """Ends the TensorBoard events; left open, they complain when the program ends."""
        if not self.silent:
            self.events.close()

    def finish(self, step: int, params: Any) -> None:
        """The last picture, the reverse walk as a GIF, and the figures."""
        if self.silent:
            return
        number, label = self._wanted()
        folder = self.workdir / "samples"
        samples, walk = walks.sampler(self.experiment, keep_walk=True)(params, number, seed=1, label=label)
        self._drawn(samples).save(folder / "final.png")
        if self.mixed is not None:
            plots.mixed_walk(walk, folder / "walk.gif", self._drawn)
        else:
            plots.walk(walk, folder / "walk.gif", self.reference)
        settings = {"num": self.experiment.config.evaluate.num, "seed": 0, "step": step}
        evaluate.report(self.experiment, self.draw, params, self.workdir, **settings)
        screen.say(f"pictures: {folder}/final.png, {folder}/walk.gif; figures: {self.workdir}/report.json")


def _keep_until(lines: Path, step: int) -> None:
    """Drops the lines after a step, and one that was cut short, so that each step is there once."""
    if not lines.exists():
        return
    kept = []
    for line in lines.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except ValueError:
            continue
    part = lines.with_suffix(".part")
    part.write_text("".join(kept))
    part.replace(lines)


if __name__ == "__main__":
    run(main)
