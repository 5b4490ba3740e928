"""A recipe and its overrides, as `submit`, `sweep` and `run` read them before anything starts.

recipe.yaml + `--a.b 3` ── merge_recipe ──> content ── check_recipe ──> RUN/recipe.yaml
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from cclm.errors import ConfigError
from cclm.files.atomic import replace_text
from cclm.files.reading import plain_value, read_yaml, to_yaml
from cclm.files.shipped import CHECKOUT, find_shipped
from cclm.recipe.words import MEASURE, spelled_out, to_measure

RECIPE_NAME = "recipe.yaml"
TRAINING = ("pretrain", "finetune")
"""Programs whose recipes name the run folder."""
Recipe: TypeAlias = "tuple[dict[str, Any], Path]"
"""A recipe with its overrides, and where it came from."""


def check_recipe(recipe: Path, overrides: Sequence[str], world_size: int, *, files_exist: bool = True) -> None:
    """Raise ConfigError if a training run of this recipe, its overrides and so many ranks cannot work.

    The one place that plan, submit, sweep and run call, before anything is written or queued. What deserves a line is
    said on stderr. Shard sets and models that lie elsewhere, or that another job makes first (`files_exist` false), are
    looked at when the run starts.
    """
    from cclm.recipe.check import check_recipe as check  # here: everything else of `launch` needs the standard library

    words = _in_keys(recipe, overrides)
    checked = check(["--recipe", str(recipe), *words], world_size=world_size, files_exist=files_exist)
    for note in checked.notes:
        sys.stderr.write(f"note: {note}\n")


def read_recipe(name: str, overrides: Sequence[str], world_size: int, *, files_exist: bool = True) -> Recipe:
    """Find, check and read a training recipe with its overrides; "measure" is that of a run, which they name first."""
    if name == MEASURE:
        _, name, *overrides = to_measure(overrides)
    shipped = [recipes_of(program) for program in TRAINING]
    origin = find_recipe(name, next((folder for folder in shipped if (folder / f"{name}.yaml").is_file()), shipped[0]))
    content = merge_recipe(origin, overrides)
    check_recipe(origin, overrides, world_size, files_exist=files_exist)
    return content, origin


def recipes_of(program: str) -> Path:
    """Return a program's folder of recipes: the working folder's, if that is a checkout."""
    here = Path(program) / "recipes"
    return here if here.is_dir() else CHECKOUT / here


def find_recipe(name: str, shipped: Path) -> Path:
    """Return the path of a recipe given by its path or by its name in the folder `shipped`."""
    return find_shipped(name, shipped, ".yaml", where="recipe", do="Check the name.")


def merge_recipe(recipe: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Read a recipe and put dotted overrides (`--a.b 3` or `--a.b=3`, values in YAML) into it. Raise ConfigError if
    the recipe is no mapping, or an override has no value."""
    content = read_yaml(recipe, expected="a YAML mapping", do="Repair it.")
    if not isinstance(content, dict):
        raise ConfigError(where=str(recipe), expected="a YAML mapping", got=type(content).__name__, do="Repair it.")
    for key, text in _pairs(spelled_out(overrides, content)):
        put_value(content, key, plain_value(text, f"--{key}"))
    return content


def _in_keys(recipe: Path, overrides: Sequence[str]) -> list[str]:
    """Return overrides without the short words of fine-tuning."""
    content = read_yaml(recipe, expected="a YAML mapping", do="Repair it.")
    return spelled_out(overrides, content) if isinstance(content, dict) else list(overrides)


def program_of(content: Mapping[str, Any]) -> str:
    """Return the program that a recipe is for."""
    return TRAINING[1] if content.get("finetune") is not None else TRAINING[0]


def put_value(content: dict[str, Any], key: str, value: Any) -> None:
    """Put a value at a dotted key; mappings on the way are made. Raise ConfigError if something on the way is no
    mapping."""
    *path, last = key.split(".")
    place = content
    for name in path:
        place = place.setdefault(name, {})
        if not isinstance(place, dict):
            raise ConfigError(where=f"--{key}", expected=f"a mapping at {name}", got="a value", do="Check the key.")
    place[last] = value


def _pairs(overrides: Sequence[str]) -> Iterator[tuple[str, str]]:
    rest = iter(overrides)
    for word in rest:
        key, equals, value = word.removeprefix("--").partition("=")
        found = value if equals else next(rest, None)
        if not word.startswith("--") or found is None:
            raise ConfigError(
                where="after `--`", expected="overrides like --optimizer.total_steps 100", got=repr(word),
                do="Give each key a value.",
            )  # fmt: skip
        yield key, found


def write_recipe(run_folder: Path, content: dict[str, Any], origin: Path) -> Path:
    """Write the merged recipe into the run folder."""
    path = run_folder / RECIPE_NAME
    replace_text(path, f"# {origin} with the overrides of its submission\n{to_yaml(content)}")
    return path


def run_folder_of(content: dict[str, Any]) -> Path | None:
    """Return the run folder that a recipe names; None if it names none."""
    named = content.get("run_folder")
    return Path(os.path.expandvars(str(named))).expanduser().absolute() if named else None


def recipe_of(command: Sequence[str], world_size: int) -> Recipe | None:
    """Return the recipe of a command line `python -m pretrain --recipe R --a.b 3` or `python -m finetune R --a.b 3`;
    None if it is another command."""
    start = next((at + 2 for at, word in enumerate(command[:-1]) if word == "-m" and command[at + 1] in TRAINING), None)
    if start is None:
        return None
    words = list(command[start:])
    if command[start - 1] == TRAINING[1] and words and not words[0].startswith("-"):
        words = to_measure(words[1:]) if words[0] == MEASURE else ["--recipe", *words]
    try:
        pairs = list(_pairs(words))
    except ConfigError:  # `--help` and the like: the program itself answers
        return None
    names = [value for key, value in pairs if key == "recipe"]
    overrides = [f"--{key}={value}" for key, value in pairs if key != "recipe"]
    if not names:
        return None
    # What stands in a recipe behind another one (`--recipe few_shot`) wins over that one, key by key.
    others = (find_recipe(name, recipes_of(command[start - 1])) for name in names[1:])
    behind = [word for path in others for word in as_options(dotted(merge_recipe(path, ())))]
    return read_recipe(names[0], [*behind, *overrides], world_size)


def dotted(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings: {"a": {"b": 1}} is {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, item in values.items():
        flat |= dotted(item, f"{prefix}{key}.") if isinstance(item, dict) and item else {f"{prefix}{key}": item}
    return flat


def as_options(overrides: Mapping[str, Any]) -> list[str]:
    """Return overrides, by dotted key, as words of a command line."""
    return [f"--{key}={json.dumps(value, ensure_ascii=False)}" for key, value in overrides.items()]


def folders_read(recipe: dict[str, Any], base: Path) -> tuple[str, ...]:
    """Return the folders that a training recipe reads and that exist: what every node must be able to read."""
    return tuple(_folders_in([recipe.get("data"), recipe.get("views"), recipe.get("start")], base))


def _folders_in(value: Any, base: Path) -> list[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return sorted({found for item in value for found in _folders_in(item, base)})
    if not isinstance(value, str) or not value:
        return []
    folder = base / Path(os.path.expandvars(value)).expanduser()
    return [str(folder.absolute())] if folder.is_dir() else []
