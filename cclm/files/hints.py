"""What the type of an option says: what is inside of it, every key of the tree, and its words for people."""

from __future__ import annotations

import enum
import types
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from cclm.files.text import nearest_word
from cclm.types import Bounds, PathText

READER_NOTES = "reader_notes"
"""Attribute of a class of texts: what every field of that type is annotated with."""
Kinds = Mapping[type, Mapping[str, type]]
"""Base class → key → the class of that key's value: `Mapping[str, Base]` then holds another class for each key."""
PATH = get_args(PathText)[1]
"""What texts are annotated with that are paths."""
_WORDS: dict[Any, str] = {
    **{int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path", Any: "a value"},
    type(None): "null",
}


@cache
def hints_of(kind: type) -> dict[str, Any]:
    """Return the types of a dataclass's fields, those that it inherits too, with their annotations."""
    return get_type_hints(kind, include_extras=True)


def options_of(kind: type) -> dict[str, Field[Any]]:
    """Return the fields that can be given, by name."""
    return {item.name: item for item in fields(kind) if item.init}


def is_required(item: Field[Any]) -> bool:
    """Return whether a field has no default."""
    return item.default is MISSING and item.default_factory is MISSING


def members_of(hint: Any) -> list[tuple[Any, tuple[Any, ...]]]:
    """Return the members of a union, or the one type, each with what it is annotated with."""
    notes: tuple[Any, ...] = ()
    if get_origin(hint) is Annotated:
        hint, *rest = get_args(hint)
        notes = tuple(rest)
    if get_origin(hint) not in (Union, types.UnionType):
        return [(hint, notes + getattr(hint, READER_NOTES, ()))]
    return [(inner, notes + more) for member in get_args(hint) for inner, more in members_of(member)]


def shape_of(kind: Any) -> type | None:
    """Return dict for what is written as a mapping, tuple for what is written as a list, None for a single value."""
    origin = get_origin(kind) or kind
    if not isinstance(origin, type):
        return None
    if is_dataclass(origin) or issubclass(origin, Mapping):
        return dict
    return tuple if issubclass(origin, Sequence | AbstractSet) and not issubclass(origin, str) else None


def inside_of(hint: Any, kinds: Kinds) -> tuple[dict[str, Any], Any]:
    """Return what stands inside a mapping: the type of every known key, and of any other key (None: there is none)."""
    named: dict[str, Any] = {}
    free = None
    for kind, _ in members_of(hint):
        if shape_of(kind) is not dict:
            continue
        if is_dataclass(kind):
            named.update({name: hints_of(kind)[name] for name in options_of(kind)})  # type: ignore[arg-type]
            continue
        free = (get_args(kind) or (str, Any))[1]
        if table := kinds.get(free):
            named, free = {**named, **table}, None
    return named, free


def known_keys(hint: Any, kinds: Kinds, prefix: str = "") -> Iterator[str]:
    """Yield every dotted key of a tree of dataclasses, inner nodes included."""
    for name, inner in inside_of(hint, kinds)[0].items():
        yield prefix + name
        yield from known_keys(inner, kinds, f"{prefix}{name}.")


def split_key(hint: Any, dotted: str, kinds: Kinds) -> list[str]:
    """Cut a dotted key into its parts; a free key of a mapping of plain values may hold dots itself."""
    parts, rest = [], dotted
    while "." in rest:
        named, free = inside_of(hint, kinds)
        if free is not None and inside_of(free, kinds) == ({}, None):
            break
        first, rest = rest.split(".", 1)
        parts.append(first)
        hint = named.get(first, free)
    return [*parts, rest]


def nearest(key: str, siblings: Sequence[str], everywhere: Sequence[str]) -> str | None:
    """Return the dotted key that was probably meant: a neighbour, else one whose last word is alike, else one alike."""
    before, _, name = key.rpartition(".")
    last_words = {known.rpartition(".")[2]: known for known in reversed(everywhere)}
    beside = nearest_word(name, siblings)
    if beside and name not in last_words:
        return f"{before}.{beside}" if before else beside
    alike = nearest_word(name, last_words, cutoff=0.75)
    return last_words[alike] if alike else nearest_word(key, everywhere) or None


def words_for(hint: Any) -> str:
    """Return what a value of this type is called: "a whole number of at least 1", "one of joint, alternate"."""
    members = members_of(hint)
    words = " or ".join(_words(kind, notes) for kind, notes in members if kind is not type(None))
    if (type(None), ()) not in members or not words:
        return words or "null"
    return words + (", or null" if "," in words else " or null")


def _words(kind: Any, notes: Sequence[Any]) -> str:
    named = next((note for note in notes if isinstance(note, str)), None)
    if named is not None:
        return named
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(str(choice) if choice != "" else '""' for choice in get_args(kind))
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return "one of " + ", ".join(str(member.value) for member in kind)
    if shape_of(kind) is dict:
        return "a mapping"
    if shape_of(kind) is tuple:
        elements = get_args(kind)
        if get_origin(kind) is tuple and elements[1:] not in ((), (...,)):
            return f"a list of {len(elements)}: " + ", ".join(map(words_for, elements))
        return "a list, each " + words_for(elements[0]) if elements else "a list"
    bounds = next((f" {note}" for note in notes if isinstance(note, Bounds)), "")
    return _WORDS.get(kind, "a text") + bounds
