"""Values of a file or command line → frozen dataclasses; each mistake is a problem with its place, none stops the rest.

    kind: type with hints   ─┐
    nodes (document.py)     ─┴─▶ Converter ─▶ instance | INVALID, problems, the place of every key

A class may have `__post_init__` (raises ValueError or ConfigError) and `validation_errors()` (yields sentences that
begin with the name of the field that is to blame): both are asked as soon as their own fields are right, whatever is
wrong elsewhere.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass, replace
from typing import Any, Final, get_args, get_origin

from cclm.errors import ConfigError, Problem
from cclm.files.hints import (
    INLINE,
    Kinds,
    hints_of,
    is_required,
    known_keys,
    members_of,
    nearest,
    options_of,
    shape_of,
    table_of,
    without_notes,
    words_for,
)
from cclm.files.node import Node, plain
from cclm.files.scalars import UnfitError, said, to_scalar

INVALID: Final = object()
"""In place of a value that could not be made."""
_MOST_NAMED = 12
_FIRST_NAME = re.compile(r"\w+(\.\w+|\[\w+\])*")


class Converter:
    """Makes typed values of one tree, and remembers what was wrong and where everything stands.

    Args:
        kinds: the classes of mappings whose values' class depends on the key.
        expands: whether `~` and `$VARIABLE` in paths are expanded.
        asks_rules: whether `validation_errors` are asked for; not of what another version has found right.
    """

    def __init__(self, kinds: Kinds | None = None, *, expands: bool = True, asks_rules: bool = True) -> None:
        self.kinds, self._expands, self._asks_rules = kinds or {}, expands, asks_rules
        self.problems: list[Problem] = []
        self.places: dict[str, str] = {}
        """Where each dotted key stands."""
        self._known: list[str] = []

    def convert(self, node: Node, kind: Any, key: str = "") -> Any:
        """Return a value of this type, or INVALID."""
        if isinstance(kind, type) and is_dataclass(kind):
            self._known = [f"{key}.{known}".lstrip(".") for known in known_keys(kind, self.kinds)]
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

    def _value(self, node: Node, hint: Any, key: str) -> Any:
        inner, notes = without_notes(hint)
        if inner is Any:
            return self._free(node, key)
        members = members_of(inner)
        if len(members) > 1:
            return self._union(node, hint, members, key)
        shape = shape_of(inner)
        if shape is not None and not isinstance(node.value, shape):
            return self._wrong(hint, key, said(node))
        if isinstance(inner, type) and is_dataclass(inner):
            return self._instance(node, inner, key)
        if shape is dict:
            return self._mapping(node, hint, key)
        if shape is tuple:
            return self._sequence(node, inner, key)
        try:
            return to_scalar(node, inner, notes, expands=self._expands)
        except UnfitError as error:
            return self._wrong(hint, key, str(error))

    def _wrong(self, hint: Any, key: str, got: str) -> Any:
        self.add(key, f"expected {words_for(hint)}, got {got}", "wrong_value")
        return INVALID

    def _free(self, node: Node, key: str) -> Any:
        """Any value, as it is; but no number that is none."""
        for inside in node.walk():
            if isinstance(inside.value, float) and not math.isfinite(inside.value):
                return self._wrong(float, key, f"{said(inside)}, which is not finite")
        return plain(node)

    def _union(self, node: Node, hint: Any, members: tuple[Any, ...], key: str) -> Any:
        """Null if that is a member, else the first member that fits; of those of another shape nothing is told."""
        if node.value is None and type(None) in members:
            return None
        shape = type(node.value) if isinstance(node.value, dict | tuple) else None
        fitting = [member for member in members if member is not type(None) and shape_of(member) is shape]
        if not fitting:
            return self._wrong(hint, key, said(node))
        if len(fitting) == 1:
            return self._value(node, fitting[0], key)
        for member in fitting:
            attempt = Converter(self.kinds, expands=self._expands, asks_rules=self._asks_rules)
            value = attempt._value(node, member, key)
            if not attempt.problems:
                self.places.update(attempt.places)
                return value
        return self._wrong(hint, key, said(node))

    def _instance(self, node: Node, kind: type, key: str) -> Any:
        """A dataclass: its fields, then its rules."""
        assert isinstance(node.value, dict)
        options, hints = options_of(kind), hints_of(kind)
        given, inline = dict(node.value), [name for name, item in options.items() if item.metadata.get(INLINE)]
        values: dict[str, Any] = {}
        for name in inline:
            table = table_of(hints[name], self.kinds)
            own = {word: given.pop(word) for word in list(given) if word in table}
            values[name] = self._mapping(replace(node, value=own), hints[name], key)
        for name, child in given.items():
            path = f"{key}.{name}" if key else name
            self.places[path] = child.key.place if child.key else child.place
            if name in options and name not in inline:
                values[name] = self._value(child, hints[name], path)
            else:
                tables = [word for item in inline for word in table_of(hints[item], self.kinds)]
                self._unknown(path, [*(name for name in options if name not in inline), *tables])
        missing = [name for name, item in options.items() if is_required(item) and name not in values]
        for name in missing:
            path = f"{key}.{name}" if key else name
            self.add(path, f"missing: expected {words_for(hints[name])}", "missing_key")
        if missing or any(value is INVALID for value in values.values()):
            return INVALID
        return self._obeying(kind, values, key)

    def _obeying(self, kind: type, values: Mapping[str, Any], key: str) -> Any:
        try:
            made = kind(**values)
        except ConfigError as error:
            return self._broken(kind, error.problems, key)
        except (ValueError, TypeError) as error:
            return self._broken(kind, [str(error)], key)
        rules = getattr(made, "validation_errors", None) if self._asks_rules else None
        if rules is not None and (broken := list(rules())):
            self._broken(kind, broken, key)
        return made

    def _broken(self, kind: type, rules: Iterable[str], key: str) -> Any:
        """Note the rules that an instance breaks, each under the field that its sentence begins with."""
        names = {*options_of(kind), *(word for table in self.kinds.values() for word in table)}
        for rule in rules:
            first = _FIRST_NAME.match(rule)
            field = first[0] if first and first[0].partition(".")[0].partition("[")[0] in names else ""
            path = ".".join(part for part in (key, field) if part)
            self.add(path, rule[len(field) :].lstrip(":").strip())
        return INVALID

    def _unknown(self, path: str, siblings: list[str]) -> None:
        meant = nearest(path, siblings, self._known)
        hint = f"; did you mean {meant}?" if meant else ""
        if not meant and len(siblings) <= _MOST_NAMED:
            hint = f"; known here: {', '.join(siblings)}"
        self.add(path, f"unknown key{hint}", "unknown_key")

    def _mapping(self, node: Node, hint: Any, key: str) -> Any:
        assert isinstance(node.value, dict)
        inner = without_notes(hint)[0]
        key_hint, value_hint = get_args(inner) or (str, Any)
        table = table_of(inner, self.kinds)
        made: dict[Any, Any] = {}
        is_valid = True
        for name, child in node.value.items():
            path = f"{key}.{name}" if key else name
            self.places[path] = child.key.place if child.key else child.place
            if table and name not in table:
                self._unknown(path, list(table))
                continue
            name_node = child.key or Node(value=name, place=child.place)
            found = self._value(name_node, key_hint, path), self._value(child, table.get(name, value_hint), path)
            is_valid = is_valid and INVALID not in found
            made[found[0] if found[0] is not INVALID else name] = found[1]
        return made if is_valid else INVALID

    def _sequence(self, node: Node, hint: Any, key: str) -> Any:
        assert isinstance(node.value, tuple)
        origin, elements = get_origin(hint) or hint, get_args(hint) or (Any,)
        if origin is tuple and len(elements) > 1 and elements[1] is not ...:
            if len(elements) != len(node.value):
                return self._wrong(hint, key, f"a list of {len(node.value)}")
        else:
            elements = elements[:1] * len(node.value)
        found = []
        for number, (child, element) in enumerate(zip(node.value, elements, strict=True)):
            path = f"{key}[{number}]"
            self.places[path] = child.place
            found.append(self._value(child, element, path))
        if any(item is INVALID for item in found):
            return INVALID
        return origin(found) if origin in (list, set, frozenset) else tuple(found)
