"""Options of the command line made from a dataclass's fields: name, type, default, and the docstring as help."""

from __future__ import annotations

import argparse
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any, get_args, get_type_hints

from cclm.files.describe import field_texts


def add_fields(
    parser: argparse._ActionsContainer,
    kind: type,
    names: Sequence[str],
    *,
    choices: Mapping[str, Sequence[str]] | None = None,
    default: Any = MISSING,
) -> None:
    """Add an option for each of these fields. `default`: one for all, instead of the fields' own."""
    hints, docs = get_type_hints(kind), field_texts(kind)
    defaults = {item.name: item.default for item in fields(kind)}
    for name in names:
        option, standard = f"--{name.replace('_', '-')}", defaults[name] if default is MISSING else default
        help_text = " ".join(docs.get(name, "").split()).replace("%", "%%")
        hint = next((arm for arm in get_args(hints[name]) if arm is not types.NoneType), hints[name])
        if hint is bool:
            parser.add_argument(option, action="store_true", help=help_text)
        else:
            standard = None if standard is MISSING else standard
            parser.add_argument(
                option,
                type=hint,
                default=standard,
                choices=(choices or {}).get(name),
                help=help_text,
            )


def read_fields(options: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """Return what was given for these fields, without those that are None."""
    given = {name: getattr(options, name) for name in names}
    return {name: value for name, value in given.items() if value is not None}
