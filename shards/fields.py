"""A map of a recipe -> a dataclass of settings; every mistake is a complaint with its place, none stops the reading."""

from __future__ import annotations

import difflib
import math
import types
import typing
from collections.abc import Collection, Mapping
from dataclasses import Field, fields
from typing import Any, TypeVar

Settings = TypeVar("Settings")

_WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", tuple: "a list of texts"}


def read_fields(kind: type[Settings], given: object, prefix: str, complaints: list[str]) -> Settings:
    """Return the settings that a map gives; what is wrong is left at its default and complained about.

    Args:
        kind: a dataclass whose fields all have defaults and are int, float, str, bool, tuple of str, or one of them
            or None; `metadata` may hold `least`, `most` and `choices`.
        given: the map.
        prefix: where it stands, for complaints: "photos.filters".
        complaints: is appended to.
    """
    if not isinstance(given, Mapping):
        complaints.append(f"{prefix}: not a map")
        return kind()
    known = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]
    complaints += unknown_names(given, known, f"{prefix}.")
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for name in known.keys() & given.keys():
        wrong = _wrong(given[name], hints[name], known[name])
        if wrong:
            complaints.append(f"{prefix}.{name}: {given[name]!r} is not {wrong}")
        else:
            values[name] = tuple(given[name]) if isinstance(given[name], list) else given[name]
    return kind(**values)


def _wrong(value: object, hint: object, field: Field[Any]) -> str:
    """Return what the value should have been, or nothing if it is that."""
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in allowed:
        return ""
    kind = next(typing.get_origin(each) or each for each in allowed if each is not type(None))
    least, most, choices = (field.metadata.get(name) for name in ("least", "most", "choices"))
    words = _WORDS[kind]
    if choices:
        words = f"one of {', '.join(repr(choice) for choice in choices)}"
    elif least is not None and most is not None:
        words += f" between {least} and {most}"
    elif least is not None:
        words += f" of at least {least}"
    if kind is tuple:
        fine = isinstance(value, list) and all(isinstance(item, str) for item in value)
    elif kind is float:
        fine = type(value) in (int, float) and math.isfinite(typing.cast(float, value))
    else:
        fine = type(value) is kind
    if fine and kind in (int, float):
        number = typing.cast(float, value)
        fine = (least is None or number >= least) and (most is None or number <= most)
    return "" if fine and (not choices or value in choices) else words


def unknown_names(given: Collection[Any], known: Collection[str], prefix: str) -> list[str]:
    """Return a complaint for each name that is not known, with the nearest that is."""
    complaints = []
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), list(known), n=1)
            hint = f" (did you mean {near[0]}?)" if near else f" (known: {', '.join(sorted(known))})"
            complaints.append(f"{prefix}{key}: unknown{hint}")
    return complaints
