"""Values of a file or command line → frozen dataclasses; each mistake is a problem with its place, none stops the rest.

    kind: type with hints   ─┐
    nodes (node.py)         ─┴─▶ Converter ─▶ instance | INVALID, problems, the place of every key

The functions before it say what a type holds: what is inside of it, every key of the tree, its words for people.

A class may have `__post_init__` (raises ValueError or ConfigError) and `validation_errors()` (yields sentences that
begin with the name of the field that is to blame): both are asked as soon as their own fields are right, whatever is
wrong elsewhere.
"""

from __future__ import annotations

import enum
import math
import re
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from cclm.errors import ConfigError, Problem
from cclm.files.node import Node, UnfitError, plain, said, to_scalar
from cclm.files.text import nearest_word
from cclm.types import Bounds

READER_NOTES = "reader_notes"
"""Attribute of a class of texts: what every field of that type is annotated with."""
Kinds = Mapping[type, Mapping[str, type]]
"""Base class → key → the class of that key's value: `Mapping[str, Base]` then holds another class for each key."""
_WORDS: dict[Any, str] = {
    **{int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path", Any: "a value"},
    type(None): "null",
}
INVALID: Final = object()
"""In place of a value that could not be made."""
_MOST_NAMED = 12
_FIRST_NAME = re.compile(r"\w+(\.\w+|\[\w+\])*")


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


class Converter:
    """Makes typed values of one tree, and remembers what was wrong and where everything stands.

    `is_resolved`: this or another version has found it right before, and has written it down; then no `~` and
    `$VARIABLE` in paths is expanded, and no `validation_errors` are asked for.
    """

    def __init__(self, kinds: Kinds | None = None, *, is_resolved: bool = False) -> None:
        self.kinds, self._is_resolved = kinds or {}, is_resolved
        self.problems: list[Problem] = []
        self.places: dict[str, str] = {}
        """Where each dotted key stands."""
        self._known: list[str] = []

    def convert(self, node: Node, kind: Any, key: str = "") -> Any:
        """Return a value of this type, or INVALID."""
        self._known = [_joined(key, known) for known in known_keys(kind, self.kinds)]
        self.places.setdefault(key, node.place)
        return self._value(node, kind, key)

    def add(self, key: str, text: str, kind: str = "rule") -> None:
        """Note a problem about a key; its place is that of the key or of the nearest one around it."""
        around = key
        while around not in self.places and around:
            around = re.sub(r"(\.|^)[^.\[]*$|\[\w+\]$", "", around)
        place = self.places.get(around, "")
        told = ": ".join(part for part in (place, key, text) if part)
        self.problems.append(Problem(told, kind=kind, key=key, place=place))

    def _wrong(self, hint: Any, key: str, got: str) -> Any:
        self.add(key, f"expected {words_for(hint)}, got {got}", "wrong_value")
        return INVALID

    def _value(self, node: Node, hint: Any, key: str) -> Any:
        """Null if that is a member of a union, else the first member that fits; one of another shape tells nothing."""
        members = members_of(hint)
        if node.value is None and (type(None), ()) in members[1:]:
            return None
        shape = type(node.value) if isinstance(node.value, dict | tuple) else None
        fitting = [(kind, notes) for kind, notes in members if shape_of(kind) is shape or kind is Any]
        fitting = [member for member in fitting if member[0] is not type(None)] or fitting
        if not fitting and node.is_argument:  # what looks like a list or mapping may be a text
            return self._value(Node(value=node.text, place=node.place), hint, key)
        if len(fitting) == 1:
            return self._member(node, *fitting[0], hint, key)
        for kind, notes in fitting:
            attempt = Converter(self.kinds, is_resolved=self._is_resolved)
            value = attempt._member(node, kind, notes, hint, key)
            if not attempt.problems:
                self.places.update(attempt.places)
                return value
        return self._wrong(hint, key, said(node))

    def _member(self, node: Node, kind: Any, notes: tuple[Any, ...], hint: Any, key: str) -> Any:
        if kind is Any:
            return self._free(node, key)
        if isinstance(node.value, dict):
            return self._mapping(node.value, kind, key)
        if isinstance(node.value, tuple):
            return self._sequence(node.value, kind, key)
        try:
            return to_scalar(node, kind, notes, expands=not self._is_resolved)
        except UnfitError as error:
            return self._wrong(hint, key, str(error))

    def _free(self, node: Node, key: str) -> Any:
        """Any value, as it is; but no number that is none."""
        for inside in node.walk():
            if isinstance(inside.value, float) and not math.isfinite(inside.value):
                return self._wrong(float, key, f"{said(inside)}, which is not finite")
        return plain(node)

    def _mapping(self, given: Mapping[str, Node], kind: Any, key: str) -> Any:
        named, free = inside_of(kind, self.kinds)
        made: dict[Any, Any] = {}
        for name, child in given.items():
            path, word = _joined(key, name), child.key or Node(value=name, place=child.place)
            self.places[path] = word.place
            if name in named:
                made[name] = self._value(child, named[name], path)
            elif free is not None:
                found = self._value(word, get_args(kind)[0] if get_args(kind) else str, path)
                made[name if found is INVALID else found] = self._value(child, free, path)
                made |= {name: INVALID} if found is INVALID else {}
            else:
                meant = nearest(path, list(named), self._known)
                listed = f"; known here: {', '.join(named)}" if len(named) <= _MOST_NAMED else ""
                self.add(path, "unknown key" + (f"; did you mean {meant}?" if meant else listed), "unknown_key")
        if not is_dataclass(kind):
            return INVALID if INVALID in made.values() else made
        return self._instance(kind, made, key)

    def _instance(self, kind: Any, made: dict[str, Any], key: str) -> Any:
        """Build a dataclass of its converted options, if all of them are there and right, and ask for its rules."""
        for name, item in options_of(kind).items():
            if is_required(item) and name not in made:
                self.add(_joined(key, name), f"missing: expected {words_for(hints_of(kind)[name])}", "missing_key")
                made[name] = INVALID
        if any(value is INVALID for value in made.values()):
            return INVALID
        try:
            instance = kind(**made)
        except ConfigError as error:
            return self._broken(kind, error.problems, key)
        except (ValueError, TypeError) as error:
            return self._broken(kind, [str(error)], key)
        if hasattr(instance, "validation_errors") and not self._is_resolved:
            self._broken(kind, instance.validation_errors(), key)
        return instance

    def _broken(self, kind: type, rules: Iterable[str], key: str) -> Any:
        """Note the rules that an instance breaks, each under the field that its sentence begins with."""
        named = inside_of(kind, self.kinds)[0]
        for rule in rules:
            first = _FIRST_NAME.match(rule)
            field = first[0] if first and re.split(r"[.\[]", first[0])[0] in named else ""
            self.add(_joined(key, field), rule[len(field) :].lstrip(":").strip())
        return INVALID

    def _sequence(self, given: tuple[Node, ...], kind: Any, key: str) -> Any:
        origin, elements = get_origin(kind) or kind, get_args(kind) or (Any,)
        if origin is not tuple or elements[1:] in ((), (...,)):
            elements = elements[:1] * len(given)
        if len(elements) != len(given):
            return self._wrong(kind, key, f"a list of {len(given)}")
        found = []
        for number, (child, element) in enumerate(zip(given, elements, strict=True)):
            self.places[f"{key}[{number}]"] = child.place
            found.append(self._value(child, element, f"{key}[{number}]"))
        if any(item is INVALID for item in found):
            return INVALID
        return found if origin is list else tuple(found)


def _joined(key: str, name: str) -> str:
    return f"{key}.{name}" if key and name else key or name
