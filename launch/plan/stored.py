"""Read a plan back from `RUN/slurm/plan.json`: the other half of `SlurmPlan.to_json`."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from cclm.errors import ConfigError
from cclm.files.reading import read_json
from launch.plan.slurm_job import PLAN_NAME, SLURM_FOLDER, SlurmPlan

T = TypeVar("T")


def read_plan(run_folder: Path) -> SlurmPlan:
    """Return the plan of a run that was submitted to Slurm.

    Raises:
        ConfigError: it never was, an older version did it, or the folder has been moved since.
    """
    path = run_folder / SLURM_FOLDER / PLAN_NAME
    values = read_json(path, None)
    if values is None:
        raise ConfigError(
            where=str(run_folder), expected="a run that was submitted to Slurm", got=f"no {SLURM_FOLDER}/{PLAN_NAME}",
            do="Use `python -m launch submit`; a run on this machine goes on with the command that began it.",
        )  # fmt: skip
    missing = sorted({field.name for field in fields(SlurmPlan)} - values.keys())
    if missing:
        raise ConfigError(
            where=str(path), expected=f"the keys {', '.join(missing)}", got="a plan of an older version",
            do="Give the command of the submission again.",
        )  # fmt: skip
    plan = rebuild(SlurmPlan, values)
    if plan.run_folder.resolve() != run_folder.resolve():
        raise ConfigError(
            where=str(run_folder), expected=f"the folder {plan.run_folder}, as its plan and script say",
            got="another place: it was moved or copied", do="Move it back, or submit its recipe anew.",
        )  # fmt: skip
    return plan


def rebuild(kind: type[T], values: Mapping[str, Any]) -> T:
    """Make a dataclass of ours from what JSON has left of it: lists become tuples, strings paths."""
    hints = get_type_hints(kind)
    return kind(**{name: _value(hints[name], value) for name, value in values.items()})


def _value(hint: Any, value: Any) -> Any:
    if isinstance(hint, types.UnionType):
        return (
            None if value is None else _value(next(arm for arm in get_args(hint) if arm is not types.NoneType), value)
        )
    if hint is Path:
        return Path(value)
    if get_origin(hint) is tuple:
        return tuple(value)
    return rebuild(hint, value) if isinstance(hint, type) and is_dataclass(hint) else value
