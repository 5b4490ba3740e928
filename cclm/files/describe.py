"""Dataclasses explain themselves by the docstrings under their fields: in `--help` of a tree, in argparse's options."""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import sys
import textwrap
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from itertools import pairwise
from typing import Any, get_args, get_type_hints

from cclm.files.reading import to_plain
from cclm.files.typed import Kinds, inside_of, is_required, members_of, options_of, words_for

_WIDTH = 110


def describe(hint: Any, kinds: Kinds | None = None, prefix: str = "") -> str:
    """Return the help of all options, in the order of their classes."""
    kind = next((kind for kind, _ in members_of(hint) if is_dataclass(kind)), None)
    options = {} if kind is None else options_of(kind)  # type: ignore[arg-type]
    lines: list[str] = []
    for name, inner in _options_inside(hint, kinds or {}).items():
        text = field_texts(kind).get(name, inner.__doc__ or "") if kind is not None else ""  # type: ignore[arg-type]
        if _options_inside(inner, kinds or {}):
            lines += ["", f"--{prefix}{name}  a mapping of the options below", *_indented(text)]
            lines += [describe(inner, kinds, f"{prefix}{name}.")]
            continue
        default = "required" if is_required(options[name]) else f"default: {_default(options[name])}"
        line = f"--{prefix}{name}  {words_for(inner)} ({default})"
        lines += [*textwrap.wrap(line, _WIDTH, subsequent_indent="        "), *_indented(text)]
    return "\n".join(lines)


def _options_inside(hint: Any, kinds: Kinds) -> dict[str, Any]:
    """Return the type of each key inside a mapping; NAME is any key whose value is a mapping of known keys."""
    named, free = inside_of(hint, kinds)
    return named or ({"NAME": free} if inside_of(free, kinds)[0] else {})


def _indented(text: str) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), _WIDTH, initial_indent="    ", subsequent_indent="    ")


def _default(item: Field[Any]) -> str:
    value = item.default if item.default_factory is MISSING else item.default_factory()
    return json.dumps(to_plain(value), ensure_ascii=False)


@cache
def field_texts(kind: type) -> dict[str, str]:
    """Return the docstrings under the fields of a dataclass, those that it inherits too, by name."""
    found: dict[str, str] = {}
    for owner in reversed(kind.__mro__):
        if getattr(sys.modules.get(owner.__module__), "__file__", None) is None:
            continue
        definition = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
        for pair in pairwise(getattr(definition, "body", ())):
            match pair:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = inspect.cleandoc(text)
    return found


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
            standard, known = None if standard is MISSING else standard, (choices or {}).get(name)
            parser.add_argument(option, type=hint, default=standard, choices=known, help=help_text)


def read_fields(options: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """Return what was given for these fields, without those that are None."""
    given = {name: getattr(options, name) for name in names}
    return {name: value for name, value in given.items() if value is not None}
