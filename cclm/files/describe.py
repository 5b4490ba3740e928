"""`--help` of a tree of options: every key with its type, its default and the docstring under the field."""

from __future__ import annotations

import ast
import inspect
import json
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field
from functools import cache
from itertools import pairwise
from typing import Any

from cclm.files.hints import (
    INLINE,
    Kinds,
    dataclass_in,
    hints_of,
    is_required,
    mapping_in,
    options_of,
    table_of,
    words_for,
)
from cclm.files.plain import to_plain

_WIDTH = 110


def describe(kind: type, kinds: Kinds | None = None) -> str:
    """Return the help of all options, in the order of their classes."""
    return "\n".join(_described(kind, kinds or {}, ""))


def _described(kind: type, kinds: Kinds, prefix: str) -> Iterator[str]:
    for name, item in options_of(kind).items():
        hint = hints_of(kind)[name]
        if item.metadata.get(INLINE):
            for key, each in table_of(hint, kinds).items():
                yield from _block(each, kinds, f"{prefix}{key}", each.__doc__ or "")
            continue
        inner = dataclass_in(hint)
        text = field_texts(kind).get(name, "")
        inside = _inside(hint, kinds)
        if inside:
            yield from ["", f"--{prefix}{name}  a mapping", *_indented(text)]
            for key, each in inside.items():
                yield from _block(each, kinds, f"{prefix}{name}.{key}", each.__doc__ or "")
            continue
        if inner is not None:
            yield from _block(inner, kinds, f"{prefix}{name}", text)
            continue
        default = "required" if is_required(item) else f"default: {_default(item)}"
        yield from textwrap.wrap(
            f"--{prefix}{name}  {words_for(hint)} ({default})", _WIDTH, subsequent_indent="        "
        )
        yield from _indented(text)


def _inside(hint: Any, kinds: Kinds) -> Mapping[str, type]:
    """Return the classes of a mapping's values by key; NAME is any key."""
    mapping = mapping_in(hint) if dataclass_in(hint) is None else None
    value = dataclass_in(mapping[1]) if mapping is not None else None
    return table_of(hint, kinds) or ({"NAME": value} if value is not None else {})


def _block(kind: type, kinds: Kinds, key: str, text: str) -> Iterator[str]:
    yield ""
    yield f"--{key}  a mapping of the options below"
    yield from _indented(text)
    yield from _described(kind, kinds, f"{key}.")


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
        for node in _body_of(owner):
            found.update(node)
    return found


def _body_of(owner: type) -> Iterator[dict[str, str]]:
    source = getattr(sys.modules.get(owner.__module__), "__file__", None)
    if source is None or owner is object:
        return
    definition = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
    body = definition.body if isinstance(definition, ast.ClassDef) else []
    for field, text in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            value = text.value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield {field.target.id: inspect.cleandoc(value.value)}
