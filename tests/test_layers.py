"""The order of the layers, read from the imports: a file imports only from lines above it (its own family allowed)."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
LAYERS = [
    "threefry",
    "pairs",
    "numerics",
    "schedules",
    "processes",
    "losses",
    "likelihood",
    "guidance",
    "samplers",
    "networks",
    "training",
]
FILES = sorted((ROOT / "diffjax").rglob("*.py"))


def layer(parts):
    return LAYERS.index(parts[0]) if parts and parts[0] in LAYERS else None


def imports(path):
    """The dotted names under diffjax that a file imports, `from diffjax.a import b` as a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield "relative"
            continue
        else:
            continue
        yield from (name.removeprefix("diffjax").lstrip(".") for name in names if name.split(".")[0] == "diffjax")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_up_only(path):
    own = layer(path.relative_to(ROOT / "diffjax").with_suffix("").parts)
    for name in imports(path):
        assert name != "relative", f"{path} imports relatively: say where from"
        theirs = layer(name.split("."))
        if own is None or theirs is None:
            continue
        assert theirs <= own, f"{path} imports diffjax.{name}, which stands below it"
        if LAYERS[own] == "networks":
            assert LAYERS[theirs] in ("numerics", "networks"), (
                f"{path}: networks know nothing of diffusion, but import {name}"
            )


def test_every_file_has_its_layer():
    names = {p.relative_to(ROOT / "diffjax").parts[0].removesuffix(".py") for p in FILES} - {"__init__"}
    assert names <= set(LAYERS), f"new layers belong in the list above: {names - set(LAYERS)}"


def test_the_core_loads_no_framework():
    own = LAYERS.index("samplers")
    core = [
        p.relative_to(ROOT).with_suffix("")
        for p in FILES
        if (layer(p.relative_to(ROOT / "diffjax").with_suffix("").parts) or 0) <= own
    ]
    names = [
        ".".join(p.parts).removesuffix(".__init__") for p in core if p.name != "so3_table"
    ]  # a script, which needs scipy
    foreign = ["flax", "optax", "orbax", "scipy", "matplotlib", "tensorflow", "tensorflow_datasets", "ml_collections"]
    code = f"import sys, importlib\nfor n in {names}: importlib.import_module(n)\nprint([n for n in {foreign} if n in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_every_file_says_what_it_is():
    for path in FILES:
        assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring that says what it is"


def test_no_assert_guards_input():
    # `python -O` removes asserts; the door deserves a ValueError that explains.
    for path in FILES:
        assert not [n.lineno for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Assert)], path
