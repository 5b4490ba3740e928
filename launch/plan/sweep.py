"""A sweep as a value: one recipe, many points, each a mapping of overrides and a training run of its own.

RUN/sweep.json     what was asked for; the same command again compares itself with it
RUN/code/          one snapshot of the code for all points
RUN/points/N/      a run folder like any other; its `code` is a link to RUN/code
"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cclm.errors import ConfigError
from cclm.files.atomic import replace_text
from cclm.files.reading import plain_value, read_json, read_yaml
from cclm.run.status import DoneMarker
from launch.plan.recipe import as_options, dotted, put_value

SWEEP_NAME = "sweep.json"
POINTS = "points"
OURS = "run_folder"
"""The one key that no point may change: each has its own."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What was asked for."""

    recipe: str
    """Where the recipe came from."""
    base: Mapping[str, Any]
    """The recipe with the overrides that all points share."""
    points: tuple[Mapping[str, Any], ...]
    """Each point's own overrides, by dotted key."""

    def content(self, number: int) -> dict[str, Any]:
        """The recipe of a point. Raise ConfigError if an override goes into a value that is no mapping."""
        content = copy.deepcopy(dict(self.base))
        for key, value in self.points[number].items():
            put_value(content, key, value)
        return content

    def to_text(self) -> str:
        """Return one line for each point."""
        width = len(str(len(self.points) - 1))
        return "\n".join(f"point {number:{width}}  {said(point)}" for number, point in enumerate(self.points))


def said(overrides: Mapping[str, Any]) -> str:
    """Return overrides on one line, for people."""
    return "  ".join(word.removeprefix("--") for word in as_options(overrides))


def make_points(vary: Sequence[str], listed: Path | None) -> tuple[Mapping[str, Any], ...]:
    """Return every listed point combined with every combination of the varied values. Raise ConfigError if there is no
    point. `vary`: words like "optimizer.learning_rate=1e-4,3e-4"; `listed`: a YAML list of mappings of keys."""
    axes = [parse_axis(word) for word in vary]
    keys = [key for key, _ in axes]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise ConfigError(where="--vary", expected="each key once", got=", ".join(twice), do="Put its values together.")
    if not axes and listed is None:
        raise ConfigError(
            where="sweep", expected="--vary KEY=VALUE,VALUE or --points FILE", got="neither",
            do="For example: --vary optimizer.learning_rate=1e-4,3e-4",
        )  # fmt: skip
    first = read_points(listed) if listed is not None else [{}]
    combined = itertools.product(*([(key, value) for value in values] for key, values in axes))
    grid = [dotted(dict(pairs)) for pairs in combined]
    points = tuple({**point, **overrides} for point in first for overrides in grid)
    if any(OURS in point for point in points):
        raise ConfigError(where="sweep", expected=f"points without {OURS}", got=OURS, do="Each point has its own.")
    return points


def parse_axis(word: str) -> tuple[str, list[Any]]:
    """Parse "key=value,value": the values are the elements of a YAML list."""
    key, equals, text = word.partition("=")
    try:
        values = plain_value(f"[{text}]", "--vary")
    except ConfigError:
        values = []
    if not key or not equals or not values:
        raise ConfigError(
            where="--vary", expected="KEY=VALUE,VALUE with values in YAML", got=repr(word),
            do="For example: --vary optimizer.learning_rate=1e-4,3e-4",
        )  # fmt: skip
    return key, values


def read_points(path: Path) -> list[dict[str, Any]]:
    """Read a file that lists points. A nested mapping changes only the keys that it names."""
    do = "For example: - {optimizer.learning_rate: 1.0e-4, seed: 2}"
    content = read_yaml(path, expected="a list of points", do=do)
    if not isinstance(content, list) or not content or not all(isinstance(item, dict) for item in content):
        raise ConfigError(where=str(path), expected="a list of mappings", got=type(content).__name__, do=do)
    return [dotted(item) for item in content]


def point_folder(folder: Path, number: int) -> Path:
    """Run folder of a point."""
    return folder / POINTS / str(number)


def is_sweep(folder: Path) -> bool:
    """Whether a sweep lives in this folder."""
    return (folder / SWEEP_NAME).exists()


def read_sweep(folder: Path) -> Sweep:
    """Read what was asked for. Raise ConfigError if there is no sweep in this folder."""
    values = read_json(folder / SWEEP_NAME, None)
    if values is None:
        raise ConfigError(
            where=str(folder), expected=f"the folder of a sweep, with {SWEEP_NAME}", got="none",
            do="Name the --run-folder of a `launch sweep`.",
        )  # fmt: skip
    return Sweep(recipe=values["recipe"], base=values["base"], points=tuple(values["points"]))


def write_sweep(folder: Path, sweep: Sweep, command: Sequence[str]) -> None:
    """Write down what was asked for, with the command that did."""
    values = {"command": list(command), "recipe": sweep.recipe, "base": sweep.base, "points": list(sweep.points)}
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / SWEEP_NAME, json.dumps(values, indent=2, default=str, ensure_ascii=False) + "\n")


def check_same_sweep(folder: Path, sweep: Sweep) -> None:
    """Raise ConfigError if another sweep lives in this folder: its points would not compare with these."""
    if not is_sweep(folder):
        return
    before = read_sweep(folder)
    asked = json.loads(json.dumps({"base": sweep.base, "points": list(sweep.points)}, default=str))
    changed = [f"{len(sweep.points)} other points"] if list(before.points) != asked["points"] else []
    changed += ["another recipe, or other overrides for all points"] if before.base != asked["base"] else []
    if changed:
        raise ConfigError(
            where=str(folder), expected=f"the sweep of {SWEEP_NAME}, as before", got=" and ".join(changed),
            do="Give the same command, or choose another --run-folder.",
        )  # fmt: skip


def points_not_done(folder: Path, count: int) -> list[int]:
    """Points without a done marker."""
    return [number for number in range(count) if DoneMarker(point_folder(folder, number)).read() is None]
