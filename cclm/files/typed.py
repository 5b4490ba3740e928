"""Values of a file or command line → frozen dataclasses; each mistake is a problem with its place, none stops the rest.

    kind: type with hints   ─┐
    nodes (node.py)         ─┴─▶ Converter ─▶ instance | INVALID, problems, the place of every key

A class may have `__post_init__` (raises ValueError or ConfigError) and `validation_errors()` (yields sentences that
begin with the name of the field that is to blame): both are asked as soon as their own fields are right, whatever is
wrong elsewhere.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from typing import Any, Final, get_args, get_origin

from cclm.errors import ConfigError, Problem
from cclm.files.hints import (
    Kinds,
    hints_of,
    inside_of,
    is_required,
    known_keys,
    members_of,
    nearest,
    options_of,
    shape_of,
    words_for,
)
from cclm.files.node import Node, UnfitError, plain, said, to_scalar

INVALID: Final = object()
"""In place of a value that could not be made."""
_MOST_NAMED = 12
_FIRST_NAME = re.compile(r"\w+(\.\w+|\[\w+\])*")


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
        """A dataclass, or a mapping with free keys."""
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
