"""A checkpoint is believed only when every byte is as it was written, and nothing that goes wrong takes an older one along."""

import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import UserError, checkpoints


def tree(seed=0):
    key = jax.random.key(seed)
    params = {"w": jax.random.normal(key, (5, 3)), "half": jnp.full(4, 1.5, jnp.bfloat16)}
    return {"params": params, "opt": optax.adam(1e-3).init(params), "step": jnp.int32(7), "none": ()}


def same(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_what_is_restored_is_what_was_saved_bit_for_bit(tmp_path):
    saved = tree(3)
    checkpoints.save(tmp_path, 12, saved)
    step, found = checkpoints.restore(tmp_path, tree())
    assert step == 12
    assert same(found, saved)


def test_nothing_saved_is_nothing_restored(tmp_path):
    assert checkpoints.restore(tmp_path / "none", tree()) is None


def test_the_newest_few_are_kept_and_an_abandoned_future_goes(tmp_path):
    for step in (1, 2, 3, 9):
        checkpoints.save(tmp_path, step, tree(), keep=3)
    assert checkpoints.steps(tmp_path) == [2, 3, 9]
    checkpoints.save(tmp_path, 4, tree(), keep=3)
    assert checkpoints.steps(tmp_path) == [2, 3, 4]


def test_a_step_saved_again_is_replaced(tmp_path):
    checkpoints.save(tmp_path, 1, tree(0))
    checkpoints.save(tmp_path, 1, tree(1))
    assert same(checkpoints.restore(tmp_path, tree())[1], tree(1))
    assert [path.name for path in tmp_path.iterdir()] == ["00000001"]


def flip(place, rng):
    """Flips one bit somewhere in the files of a checkpoint, chosen uniformly over all their bytes; returns how to undo it."""
    files = [path for path in sorted(place.rglob("*")) if path.is_file()]
    sizes = np.array([path.stat().st_size for path in files])
    path = files[rng.choice(len(files), p=sizes / sizes.sum())]
    original = path.read_bytes()
    changed = bytearray(original)
    changed[rng.integers(len(changed))] ^= 1 << rng.integers(8)
    path.write_bytes(changed)
    return lambda: path.write_bytes(original)


@pytest.mark.parametrize("rounds", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_every_flipped_bit_is_seen_and_the_step_before_is_used(tmp_path, rounds):
    checkpoints.save(tmp_path, 1, tree(1))
    place = checkpoints.save(tmp_path, 2, tree(2))
    rng = np.random.default_rng(rounds)
    for flipped in range(rounds):
        undo, lines = flip(place, rng), []
        assert checkpoints.damage(place)
        if flipped < 3:
            step, found = checkpoints.restore(tmp_path, tree(), report=lines.append)
            assert step == 1
            assert same(found, tree(1))
            assert len(lines) == 1
            assert "checkpoint 2 is damaged" in lines[0]
            assert "\n" not in lines[0]
        undo()
    assert checkpoints.restore(tmp_path, tree())[0] == 2


def test_a_lost_or_an_added_file_is_seen(tmp_path):
    place = checkpoints.save(tmp_path, 1, tree())
    (place / "state" / "extra").write_text("")
    assert "extra" in checkpoints.damage(place)
    (place / "state" / "extra").unlink()
    assert checkpoints.damage(place) is None
    next(path for path in place.rglob("d/*") if path.is_file()).unlink()
    assert "missing" in checkpoints.damage(place)
    with pytest.raises(UserError, match="no older one"):
        checkpoints.restore(tmp_path, tree())


def test_a_state_that_is_not_finite_is_never_written(tmp_path):
    checkpoints.save(tmp_path, 1, tree())
    bad = tree()
    bad["params"]["half"] = bad["params"]["half"].at[2].set(jnp.inf)
    with pytest.raises(checkpoints.NotFinite, match=r"params\.half"):
        checkpoints.save(tmp_path, 2, bad)
    assert checkpoints.steps(tmp_path) == [1]


def test_another_shape_or_name_is_an_error_that_names_the_leaf(tmp_path):
    # orbax itself pads an array of another shape with zeros.
    checkpoints.save(tmp_path, 1, tree())
    other = tree()
    other["params"]["w"] = jnp.zeros((6, 3))
    with pytest.raises(UserError, match=r"params\.w is \(\(5, 3\), 'float32'\), expected \(\(6, 3\)"):
        checkpoints.restore(tmp_path, other)
    with pytest.raises(UserError, match="expected nothing"):
        checkpoints.restore(tmp_path, {"step": jnp.int32(0)})


def test_a_disk_that_does_not_take_it_costs_no_older_checkpoint(tmp_path, monkeypatch):
    checkpoints.save(tmp_path, 1, tree())

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "_flush", full)
    with pytest.raises(UserError, match="No space left"):
        checkpoints.save(tmp_path, 2, tree())
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["00000001"]
    assert checkpoints.restore(tmp_path, tree())[0] == 1


def test_a_disk_without_room_is_noticed_before_writing(tmp_path, monkeypatch):
    checkpoints.save(tmp_path, 1, tree())
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match="1,000 are free"):
        checkpoints.save(tmp_path, 2, tree())
    assert checkpoints.steps(tmp_path) == [1]


_WRITER = """
import sys, numpy as np
from experiments import checkpoints
print("ready", flush=True)
for step in range(1, 10_000):
    checkpoints.save(sys.argv[1], step, {"x": np.full((200, 1000), step, np.float32)}, keep=2)
"""


@pytest.mark.parametrize("moments", [2, pytest.param(12, marks=pytest.mark.slow)])
def test_a_process_killed_while_saving_leaves_a_whole_checkpoint(tmp_path, moments):
    rng = np.random.default_rng(0)
    for moment in range(moments):
        folder = tmp_path / str(moment)
        process = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(folder)], stdout=subprocess.PIPE, cwd=os.getcwd()
        )
        process.stdout.readline()
        while not checkpoints.steps(folder):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        step, found = checkpoints.restore(folder, {"x": np.zeros((200, 1000), np.float32)}, report=pytest.fail)
        assert (found["x"] == step).all()
