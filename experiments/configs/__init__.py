"""Configs: one default, one small file per experiment that changes a few lines of it, flags that change the rest.

A config file is Python with a function `config()` that returns an `ml_collections.ConfigDict`. Its fields are plain
values; which function a string stands for is decided in `experiments.build` alone.

Here: finding and loading a config (`load`), applying `--config.field=value` flags to it (`override`), and comparing it with
the one a workdir was made with (`differences`).
"""

import argparse
import ast
import difflib
import importlib.util
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ml_collections import ConfigDict

from experiments import UserError

_HERE = Path(__file__).parent


def names() -> list[str]:
    """The names of the configs that come with the project."""
    return sorted(path.stem for path in _HERE.glob("*.py") if not path.stem.startswith("_") and path.stem != "default")


def suggest(word: str, options: Iterable[str]) -> str:
    """` (did you mean X?)` for the nearest of the options, or nothing when none is near."""
    near = difflib.get_close_matches(word, list(options), n=1, cutoff=0.5)
    return f" (did you mean {near[0]}?)" if near else ""


def load(name: str) -> ConfigDict:
    """The config of a name (`spiral`), of a Python file with a function `config()`, or of a workdir's `config.json`.

    Raises:
      UserError: there is no such config; the message lists the names there are.
    """
    path = Path(name) if name.endswith((".py", ".json")) else _HERE / f"{name}.py"
    if name not in [*names(), "default"] and not (path.parent != _HERE and path.is_file()):
        what = "config file" if path.parent != _HERE else "config"
        raise UserError(f"there is no {what} {name!r}{suggest(name, names())}; the configs are: {', '.join(names())}")
    if path.suffix == ".json":
        return read(path)
    spec = importlib.util.spec_from_file_location(f"experiments.configs.{path.stem}", path)
    assert spec is not None  # a path that ends in .py always has one
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "config"):
        raise UserError(f"{path} has no function `config()` that returns an ml_collections.ConfigDict")
    return module.config()


def listing() -> str:
    """Every field of the default config with its value, a flag a line."""
    return "\n".join(f"  --config.{name}={value}" for name, value in _flat(load("default")))


def read(path: Path) -> ConfigDict:
    """The config stored in a JSON file; lists come back as tuples, and fields that are newer than the file have their default."""
    try:
        stored = ConfigDict(_tuples(json.loads(path.read_text())))
    except ValueError as error:
        raise UserError(f"{path} is no readable config: {error}") from error
    for name, value in load("default").items():
        if name not in stored:
            stored[name] = value
        elif isinstance(value, ConfigDict) and name not in ("schedule", "network"):  # whose fields are a function's own
            stored[name] = ConfigDict({**value, **stored[name]})
    return stored


def write(config: ConfigDict, path: Path) -> None:
    """Stores a config as JSON, whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(config.to_dict(), indent=2) + "\n")
    part.replace(path)


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _tuples(item) for name, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def pick(menu: dict[str, Any], name: str, field: str) -> Any:
    """The entry of a menu; a `UserError` that lists them when there is none of that name."""
    if name not in menu:
        raise UserError(f"config.{field} has no choice {name!r}{suggest(name, menu)}; choose among {', '.join(menu)}")
    return menu[name]


# ---------------------------------------------------------------------------------------------------------- flags


def override(config: ConfigDict, flags: Sequence[str]) -> ConfigDict:
    """The config with `--config.a.b=value` flags (or `--config.a.b value`) applied, each checked against what is there.

    Args:
      config: left as it is.
      flags: what is left of the command line.

    Raises:
      UserError: no such field (the message names the nearest and lists those there), a value of another type, or a
        flag of another kind.
    """
    config, flags = ConfigDict(config.to_dict()), list(flags)
    while flags:
        flag = flags.pop(0)
        if not flag.startswith("--config."):
            raise UserError(f"unknown argument {flag!r}; --help lists them")
        name, equals, text = flag.removeprefix("--config.").partition("=")
        if not equals:
            if not flags:
                raise UserError(f"{flag} needs a value: {flag}=VALUE")
            text = flags.pop(0)
        *groups, field = name.split(".")
        place, where = config, ""
        for part in [*groups, field]:
            if not isinstance(place, ConfigDict):
                raise UserError(f"config.{where.rstrip('.')} is a value, not a group of fields")
            if part not in place:
                near = suggest(part, place.keys()) or _elsewhere(part, config)
                raise UserError(
                    f"the config has no field {where + part!r}{near}; "
                    f"the fields {'of config.' + where.rstrip('.') if where else 'are'}: {', '.join(sorted(place.keys()))}"
                )
            where, parent, place = f"{where}{part}.", place, place[part]
        if isinstance(place, ConfigDict):
            raise UserError(f"config.{name} is a group: set one of its fields, {', '.join(sorted(place.keys()))}")
        parent[field] = _value(name, text, place)
    return config


def _elsewhere(part: str, config: ConfigDict) -> str:
    leaves = {name.rpartition(".")[2]: name for name, _ in _flat(config)}
    near = difflib.get_close_matches(part, leaves, n=1, cutoff=0.6)
    return f" (did you mean {leaves[near[0]]}?)" if near else ""


def _value(name: str, text: str, old: Any) -> Any:
    if isinstance(old, str):
        return text
    try:
        value = {"true": True, "false": False}.get(text.lower()) if isinstance(old, bool) else ast.literal_eval(text)
        if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if isinstance(old, tuple):
            value = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    except (ValueError, SyntaxError, MemoryError):
        value = None
    if type(value) is not type(old):
        raise UserError(f"config.{name} expects a value of type {type(old).__name__}, such as {old}, got {text!r}")
    return value


def differences(one: ConfigDict, two: ConfigDict) -> list[str]:
    """`field: one -> two` for every field in which two configs differ, in words."""
    a, b = dict(_flat(one)), dict(_flat(two))
    missing = "(none)"
    return [
        f"{name}: {a.get(name, missing)} -> {b.get(name, missing)}"
        for name in sorted(a.keys() | b.keys())
        if a.get(name, missing) != b.get(name, missing)
    ]


def _flat(config: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, (dict, ConfigDict)):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are a `UserError`, one line, and that never guesses an abbreviation."""

    def __init__(self, **settings: Any):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the arguments")
