"""The code and the recipe that a job will run, copied into its run folder: later edits do not change a queued job.

RUN/code/            the programs and the library; folders of data beside them are links into the checkout
RUN/code.sha256      one hash over all copied files; preflight compares it on every node
RUN/recipe.yaml      the recipe with its overrides merged in
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cclm.errors import ConfigError
from cclm.files.atomic import replace_text
from cclm.files.reading import read_yaml
from launch.slurm.preflight import code_hash

CODE = "code"
HASH_NAME = "code.sha256"
RECIPE_NAME = "recipe.yaml"
COPIED = ("cclm", "pretrain", "finetune", "shards", "launch", "ds_configs", "pyproject.toml")
"""What a job may need of the checkout; what does not exist is left out."""
NOT_COPIED = shutil.ignore_patterns("__pycache__", "*.pyc")
NOT_LINKED = frozenset({*COPIED, "tests", "docs", "benchmarks", "build", "dist"})


def take_snapshot(checkout: Path, run_folder: Path, *, anew: bool = False) -> str:
    """Copy the code into the run folder, unless an earlier submission did (`anew`: replace it); returns its hash."""
    code = run_folder / CODE
    if code.exists() and not anew and (run_folder / HASH_NAME).exists():
        return (run_folder / HASH_NAME).read_text(encoding="utf-8").strip()
    partial = run_folder / f".{CODE}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name in COPIED:
        source = checkout / name
        if source.is_dir():
            shutil.copytree(source, partial / name, ignore=NOT_COPIED)
        elif source.is_file():
            shutil.copy2(source, partial / name)
    for source in sorted(checkout.iterdir()):
        if source.is_dir() and source.name[0] != "." and source.name not in NOT_LINKED:
            (partial / source.name).symlink_to(source.resolve())
    (run_folder / HASH_NAME).unlink(missing_ok=True)
    if code.is_symlink():  # a point of a sweep leaves the code that it shared with the others
        code.unlink()
    shutil.rmtree(code, ignore_errors=True)
    partial.rename(code)
    found = code_hash(code)
    replace_text(run_folder / HASH_NAME, found + "\n")
    return found


def find_recipe(name: str, shipped: Path) -> Path:
    """Return the path of a recipe given by its path or by its name in the folder `shipped`."""
    path = Path(name) if Path(name).is_file() else shipped / f"{name}.yaml"
    if path.is_file():
        return path
    names = ", ".join(sorted(item.stem for item in shipped.glob("*.yaml"))) or f"nothing (no {shipped})"
    raise ConfigError(
        where="recipe", expected=f"the path of a YAML file or one of {names}", got=repr(name), do="Check the name."
    )


def merge_recipe(recipe: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Read a recipe and put dotted overrides (`--a.b 3` or `--a.b=3`, values in YAML) into it.

    Raises:
        ConfigError: the recipe is no mapping, or an override has no value.
    """
    import yaml  # here, so that everything else of `launch` runs with the standard library alone

    content = read_yaml(recipe, expected="a YAML mapping", do="Repair it.")
    if not isinstance(content, dict):
        raise ConfigError(where=str(recipe), expected="a YAML mapping", got=type(content).__name__, do="Repair it.")
    for key, text in _pairs(overrides):
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(where=f"--{key}", expected="a value in YAML", got=repr(text), do="Repair it.") from error
        put_value(content, key, value)
    return content


def put_value(content: dict[str, Any], key: str, value: Any) -> None:
    """Put a value at a dotted key; mappings on the way are made.

    Raises:
        ConfigError: something on the way is no mapping.
    """
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
    import yaml

    path = run_folder / RECIPE_NAME
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    replace_text(path, f"# {origin} with the overrides of its submission\n{text}")
    return path


def folders_named_in(value: Any, base: Path) -> list[str]:
    """Folders that a recipe names and that exist: what every node must be able to read."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return sorted({found for item in value for found in folders_named_in(item, base)})
    return [str((base / value).absolute())] if isinstance(value, str) and value and (base / value).is_dir() else []
