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


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


def small(command, workdir):
    """A README command as this interpreter runs it, in a temporary workdir, for a few steps."""
    words = shlex.split(command)
    words = [sys.executable, *words[words.index("-m") :]]
    if "--workdir" in words:
        words[words.index("--workdir") + 1] = str(workdir / "run")
    else:
        words += ["--workdir", str(workdir / "first")]
    if "experiments.train" in words:
        words = [w for w in words if not w.startswith(("--config.steps", "--config.layout"))]
        words += ["--config.steps=3", "--config.batch_size=8", "--config.sampler.steps=2", "--config.evaluate.num=16"]
        words += ["--config.evaluate.splits=2"]
        if "digits" in words:
            words += ["--config.network.channels=8"]
    else:
        for flag, value in (("--num", "8"), ("--steps", "2")):
            if flag in words:
                words[words.index(flag) + 1] = value
        if "experiments.evaluate" in words:
            words += ["--num", "16"]
    return words


@pytest.mark.slow
@pytest.mark.parametrize("command", PROGRAMS)
def test_programs_run_in_small_form(command, workdir):
    run = subprocess.run(small(command, workdir), cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout + run.stderr
    if "experiments.train" in command:
        made = workdir / ("run" if "--workdir" in command else "first")
        for name in ("config.json", "checkpoints", "metrics.jsonl", "samples", "report.json"):
            assert (made / name).exists(), name


def test_pictures_are_there():
    for path in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (ROOT / path).is_file(), path
