"""The README is true: its Python runs, its commands run in small form, and CI runs the test command it names."""

import pathlib
import re
import shlex
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands():
    lines = [line for block in blocks("bash") for line in block.strip().splitlines()]
    return [part.strip() for line in lines for part in line.split("&&")]


PROGRAMS = [c for c in commands() if "-m experiments." in c]


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.strip().splitlines()[-1][:40])
def test_python_runs(code, capsys):
    # As it stands, but for the length of training.
    exec(compile(code.replace("range(2000)", "range(500)"), "README.md", "exec"), {})
    if "ring" in code:
        assert float(capsys.readouterr().out) == pytest.approx(1, abs=0.15)


def test_python_block_lengths_keep_the_promise():
    model = next(code for code in blocks("python") if "make_step" in code)
    lines = [line for line in model.splitlines() if line.strip() and not line.startswith(("import", "from"))]
    assert len(lines) < 30


def test_commands_install_run_and_test():
    installs = [c for c in commands() if "pip install" in c]
    for extras in installs:
        for name in re.findall(r"\[(.*?)\]", extras):
            assert f"\n{name} = [" in (ROOT / "pyproject.toml").read_text()
    ci = (ROOT / ".ci" / "run").read_text().splitlines()
    for line in blocks("bash")[1].strip().split("&&")[1:]:  # all but the venv, which CI makes anew each time
        assert any(
            line.strip().split(" ", 1)[-1].replace("install -e", "") in c.replace("install --quiet -e", "") for c in ci
        ), line


def small(command, folder):
    """A README command as this interpreter runs it, with its workdir in a temporary folder, for a few steps."""
    words = shlex.split(command)
    words = [sys.executable, *words[words.index("-m") :]]
    if "experiments.reflected" in words:
        return [*words, "--quick", "--out", str(folder / "reflected")]
    if "experiments.langevin" in words:
        return [*words, "--steps", "20", "--chains", "100", "--picture", str(folder / "langevin.png")]
    if "--workdir" in words:
        at = words.index("--workdir") + 1
        words[at] = str(folder / pathlib.Path(words[at]).name)
    else:
        words += ["--workdir", str(folder / "first")]
    if "experiments.train" in words:
        words = [w for w in words if not w.startswith(("--config.steps", "--config.layout"))]
        words += ["--config.steps=3", "--config.batch_size=8", "--config.sampler.steps=2", "--config.evaluate.num=16"]
        words += ["--config.evaluate.splits=2"]
        if "digits" in words:
            words += ["--config.network.channels=8"]
        return words
    for flag, value in (("--num", "8"), ("--steps", "2")):
        if flag in words:
            words[words.index(flag) + 1] = value
    return words if "--num" in words else [*words, "--num", "16"]


@pytest.mark.slow
def test_programs_run_in_small_form(tmp_path):
    # One after the other, since some go on with what others have trained.
    for command in dict.fromkeys(PROGRAMS):
        words = small(command, tmp_path)
        run = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=600)
        assert run.returncode == 0, command + run.stdout + run.stderr
        if "experiments.train" in words:
            for name in ("config.json", "checkpoints", "metrics.jsonl", "samples", "report.json"):
                assert (pathlib.Path(words[words.index("--workdir") + 1]) / name).exists(), name


def test_pictures_are_there():
    for path in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (ROOT / path).is_file(), path
