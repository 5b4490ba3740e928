"""What a dataclass of options says about itself: types of its fields, their words for people, every key of the tree."""

from __future__ import annotations

import difflib
import enum
import types
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from cclm.types import Bounds, PathText

INLINE = "inline"
"""`field(metadata={INLINE: True})` on a mapping of dataclasses: its keys stand beside the other fields' in the file."""
Kinds = Mapping[type, Mapping[str, type]]
"""Base class → key → the class of that key's value: `Mapping[str, Base]` then holds another class for each key."""
PATH = get_args(PathText)[1]
"""What texts are annotated with that are paths."""
_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
    Any: "a value",
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


def without_notes(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return a type and what it is annotated with."""
    if get_origin(hint) is not Annotated:
        return hint, ()
    inner, *notes = get_args(hint)
    return inner, tuple(notes)


def members_of(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the type itself."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def dataclass_in(hint: Any) -> type | None:
    """Return the dataclass that a type is, or is besides null."""
    for member in members_of(without_notes(hint)[0]):
        inner = without_notes(member)[0]
        if isinstance(inner, type) and is_dataclass(inner):
            return inner
    return None


def mapping_in(hint: Any) -> tuple[Any, Any] | None:
    """Return the types of keys and values of the mapping that a type is, or is besides null."""
    for member in members_of(without_notes(hint)[0]):
        inner = without_notes(member)[0]
        if shape_of(inner) is dict:
            keys, values = get_args(inner) or (str, Any)
            return keys, values
    return None


def shape_of(hint: Any) -> type | None:
    """Return dict for what is written as a mapping, tuple for what is written as a list, None for a single value."""
    origin = get_origin(without_notes(hint)[0]) or without_notes(hint)[0]
    if not isinstance(origin, type):
        return None
    if is_dataclass(origin) or issubclass(origin, Mapping):
        return dict
    return tuple if issubclass(origin, Sequence | AbstractSet) and not issubclass(origin, str) else None


def words_for(hint: Any) -> str:
    """Return what a value of this type is called: "a whole number of at least 1", "one of joint, alternate"."""
    inner, notes = without_notes(hint)
    bounds = next((f" {note}" for note in notes if isinstance(note, Bounds)), "")
    named = next((note for note in notes if isinstance(note, str)), None)
    if named is not None:
        return named
    members = [member for member in members_of(inner) if member is not type(None)]
    if len(members) < len(members_of(inner)) or len(members) > 1:
        words = " or ".join(words_for(member) for member in members)
        null = ", or null" if "," in words else " or null"
        return words + (null if len(members) < len(members_of(inner)) else "")
    origin = get_origin(inner)
    if origin is Literal:
        return "one of " + ", ".join(map(_spelled, get_args(inner)))
    if isinstance(inner, type) and issubclass(inner, enum.Enum):
        return "one of " + ", ".join(str(member.value) for member in inner)
    if shape_of(inner) is dict:
        return "a mapping"
    if shape_of(inner) is tuple:
        elements = get_args(inner)
        if origin is tuple and len(elements) > 1 and elements[1] is not ...:
            return f"a list of {len(elements)}: " + ", ".join(words_for(element) for element in elements)
        return "a list, each " + words_for(elements[0]) if elements else "a list"
    return _WORDS.get(inner, "a text" if isinstance(inner, type) and issubclass(inner, str) else str(inner)) + bounds


def _spelled(value: object) -> str:
    return str(value) if value != "" else '""'


def known_keys(kind: type, kinds: Kinds, prefix: str = "") -> Iterator[str]:
    """Yield the dotted key of every field of a tree of dataclasses, inner nodes included."""
    for name, item in options_of(kind).items():
        hint = hints_of(kind)[name]
        if item.metadata.get(INLINE):
            for key, value in table_of(hint, kinds).items():
                yield prefix + key
                yield from known_keys(value, kinds, f"{prefix}{key}.")
            continue
        yield prefix + name
        inner = dataclass_in(hint)
        inside = {f"{name}.": inner} if inner is not None else {}
        for key, kind_of_value in table_of(hint, kinds).items():
            yield f"{prefix}{name}.{key}"
            inside[f"{name}.{key}."] = kind_of_value
        for below, each in inside.items():
            yield from known_keys(each, kinds, prefix + below)


def table_of(hint: Any, kinds: Kinds) -> Mapping[str, type]:
    """Return which class each key of a mapping has, if that depends on the key."""
    found = mapping_in(hint)
    return kinds.get(without_notes(found[1])[0], {}) if found is not None else {}


def inner_hint(hint: Any, key: str, kinds: Kinds) -> Any:
    """Return the type of what stands at a key of a value of this type; None if there can be no such key."""
    kind, mapping = dataclass_in(hint), mapping_in(hint)
    if kind is not None:
        if key in options_of(kind):
            return hints_of(kind)[key]
        inline = [hints_of(kind)[name] for name, item in options_of(kind).items() if item.metadata.get(INLINE)]
        return next((table_of(found, kinds)[key] for found in inline if key in table_of(found, kinds)), None)
    if mapping is not None:
        return table_of(hint, kinds).get(key, mapping[1])
    return None


def split_key(hint: Any, dotted: str, kinds: Kinds) -> list[str]:
    """Cut a dotted key into its parts; a free key of a mapping of plain values may hold dots itself."""
    parts, rest = [], dotted
    while "." in rest:
        first, after = rest.split(".", 1)
        mapping = mapping_in(hint) if dataclass_in(hint) is None else None
        if mapping is not None and dataclass_in(mapping[1]) is None and mapping_in(mapping[1]) is None:
            break
        parts.append(first)
        hint, rest = inner_hint(hint, first, kinds), after
    return [*parts, rest]


def nearest(key: str, siblings: Sequence[str], everywhere: Sequence[str]) -> str | None:
    """Return the dotted key that was probably meant: a neighbour, else one whose last word is alike, else one alike."""
    before, _, name = key.rpartition(".")
    beside = difflib.get_close_matches(name, siblings, n=1, cutoff=0.6)
    if beside:
        return f"{before}.{beside[0]}" if before else beside[0]
    last_words = {known.rpartition(".")[2]: known for known in reversed(everywhere)}
    alike = difflib.get_close_matches(name, last_words, n=1, cutoff=0.75)
    if alike:
        return last_words[alike[0]]
    return next(iter(difflib.get_close_matches(key, everywhere, n=1, cutoff=0.6)), None)
