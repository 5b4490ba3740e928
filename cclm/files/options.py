"""Options of the command line made from a dataclass's fields: name, type, default, and the docstring as help."""

from __future__ import annotations

import argparse
import ast
import inspect
import textwrap
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from functools import cache
from typing import Any, get_args, get_type_hints


def add_fields(
    parser: argparse._ActionsContainer,
    kind: type,
    names: Sequence[str],
    *,
    choices: Mapping[str, Sequence[str]] | None = None,
    default: Any = MISSING,
) -> None:
    """Add an option for each of these fields. `default`: one for all, instead of the fields' own."""
    hints, docs = get_type_hints(kind), docstrings(kind)
    defaults = {item.name: item.default for item in fields(kind)}
    for name in names:
        option, standard = f"--{name.replace('_', '-')}", defaults[name] if default is MISSING else default
        hint = next((arm for arm in get_args(hints[name]) if arm is not types.NoneType), hints[name])
        if hint is bool:
            parser.add_argument(option, action="store_true", help=docs.get(name, ""))
        else:
            standard = None if standard is MISSING else standard
            parser.add_argument(
                option,
                type=hint,
                default=standard,
                choices=(choices or {}).get(name),
                help=docs.get(name, "").replace("%", "%%"),
            )


def read_fields(options: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """Return what was given for these fields, without those that are None."""
    given = {name: getattr(options, name) for name in names}
    return {name: value for name, value in given.items() if value is not None}


@cache
def docstrings(kind: type) -> dict[str, str]:
    """Return the string under each field of a class."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(body, ast.ClassDef)
    return dict(_documented(body))


def _documented(body: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for before, after in zip(body.body, body.body[1:], strict=False):
        is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name) and is_text:
            yield before.target.id, " ".join(str(ast.literal_eval(after.value)).split())  # type: ignore[attr-defined]
