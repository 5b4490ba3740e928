"""Files that people write (YAML, JSON, TOML) → nodes. Nothing is lost: a key that stands twice is a problem."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from cclm.errors import Problem
from cclm.files.node import BrokenError, Node, node_of, plain_word

MAX_DEPTH = 64
MAX_VALUES = 100_000
"""With every alias written out."""
_TEXT_TAGS = ("!", "tag:yaml.org,2002:str")
_SURROGATES = re.compile(r"\\u[dD][89abAB]\w\w\\u[dD][c-fC-F]\w\w")


def read_document(path: Path, problems: list[Problem]) -> Node | None:
    """Read a file, by its ending: `.json`, `.toml`, else YAML. What is wrong goes to `problems`; None: all of it is."""
    try:
        return parse_document(_read_text(path), str(path), problems, path.suffix.lower())
    except BrokenError as error:
        problems.append(Problem(f"{error.place}: {error}", kind="unreadable", place=error.place))
        return None


def parse_document(text: str, name: str, problems: list[Problem], suffix: str = ".yaml") -> Node:
    """Parse the text of a file of this name. BrokenError: it is not of the form that the suffix says."""
    if suffix == ".json":
        return _parse_json(text, name, problems)
    return _parse_toml(text, name) if suffix == ".toml" else parse_yaml(text, name + ":{}", problems)


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a null byte in the name
        got = getattr(error, "strerror", None) or str(error)
        if isinstance(error, FileNotFoundError | IsADirectoryError):
            got = "no such file" if isinstance(error, FileNotFoundError) else "a folder"
        elif isinstance(error, UnicodeDecodeError):
            got = f"bytes that are not UTF-8 (at byte {error.start})"
        raise BrokenError(str(path), got) from error


def _parse_json(text: str, name: str, problems: list[Problem]) -> Node:
    """JSON is YAML but for its tabs and its surrogates; Python's own reader says whether it is JSON."""
    try:
        json.loads(text, parse_constant=_no_number)
    except json.JSONDecodeError as error:
        raise BrokenError(f"{name}:{error.lineno}", f"broken JSON: {error.msg}, column {error.colno}") from error
    except (ValueError, RecursionError) as error:
        raise BrokenError(name, f"broken JSON: {error}") from error
    text = _SURROGATES.sub(lambda pair: str(json.loads(f'"{pair[0]}"')), text.replace("\t", " "))
    return parse_yaml(text, name + ":{}", problems)


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is no number")


def _parse_toml(text: str, name: str) -> Node:
    """TOML refuses a key that stands twice by itself; its values have no lines."""
    try:
        tomllib = importlib.import_module("tomllib")
    except ImportError as error:
        raise BrokenError(name, "TOML, which Python 3.10 does not read; write YAML, or take a newer Python") from error
    try:
        return node_of(tomllib.loads(text), name)
    except (ValueError, RecursionError) as error:
        raise BrokenError(name, f"broken TOML: {error}") from error


def parse_yaml(text: str, place: str, problems: list[Problem]) -> Node:
    """Parse one YAML document; an empty one is null. Keys that stand twice go to `problems`.

    `place`: what stands in a node's place, with {} for the number of its line. BrokenError: it is no YAML, or goes
    further than plain values.
    """
    import yaml  # `launch` starts without it

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where it is built
    try:
        return _Composer(yaml, yaml.parse(text, Loader=loader), place, problems).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        got = error.problem or error.context or "not understood"
        raise BrokenError(place.format(line), f"broken YAML: {got}") from error
    except (yaml.YAMLError, UnicodeError) as error:
        raise BrokenError(place.format(1), "broken YAML: " + " ".join(str(error).split())) from error


class _Composer:
    def __init__(self, yaml: Any, events: Iterator[Any], place: str, problems: list[Problem]) -> None:
        self._yaml, self._events, self._place, self._problems = yaml, events, place, problems
        self._anchors: dict[str | None, tuple[Node, int] | None] = {}
        """Nodes that may be repeated, with the number of their values; None: not complete yet."""

    def document(self) -> Node:
        """Return the one document."""
        found: Node | None = None
        for event in self._events:
            if isinstance(event, self._yaml.NodeEvent):
                if found is not None:
                    raise BrokenError(self._at(event), "a second YAML document; give each a file of its own")
                found = self._node(event, 0)[0]
        return found or Node(value=None, place=self._place.format(1), text="")

    def _at(self, event: Any) -> str:
        return self._place.format(event.start_mark.line + 1)

    def _node(self, event: Any, depth: int) -> tuple[Node, int]:
        """Return a node and the number of its values."""
        place = self._at(event)
        if depth > MAX_DEPTH:
            raise BrokenError(place, f"values that are nested more than {MAX_DEPTH} deep")
        if isinstance(event, self._yaml.AliasEvent):
            known = self._anchors.get(event.anchor)
            if known is None:
                text = f"the alias *{event.anchor} without an anchor &{event.anchor} that is complete before it"
                raise BrokenError(place, text)
            return replace(known[0], place=place), known[1]
        self._anchors[event.anchor] = None
        is_scalar = isinstance(event, self._yaml.ScalarEvent)
        if event.tag is not None and not (is_scalar and event.tag in _TEXT_TAGS):
            raise BrokenError(place, f"the YAML tag {event.tag}; write the value itself")
        if is_scalar:
            is_plain = event.implicit[0]
            value = plain_word(event.value) if is_plain else event.value
            node, size = Node(value=value, place=place, text=event.value if is_plain else None), 1
        else:
            is_list = isinstance(event, self._yaml.SequenceStartEvent)
            node, size = (self._sequence if is_list else self._mapping)(place, depth + 1)
        if size > MAX_VALUES:
            raise BrokenError(place, f"more than {MAX_VALUES:,} values, with every alias written out")
        self._anchors[event.anchor] = node, size
        return node, size

    def _sequence(self, place: str, depth: int) -> tuple[Node, int]:
        items, size = [], 1
        while not isinstance(event := next(self._events), self._yaml.SequenceEndEvent):
            item, more = self._node(event, depth)
            items.append(item)
            size += more
        return Node(value=tuple(items), place=place), size

    def _mapping(self, place: str, depth: int) -> tuple[Node, int]:
        own: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        size = 1
        while not isinstance(event := next(self._events), self._yaml.MappingEndEvent):
            key, _ = self._node(event, depth)
            value, more = self._node(next(self._events), depth)
            size += more
            if isinstance(key.value, tuple | dict):
                raise BrokenError(key.place, "a list or mapping as a key; write a text")
            name = key.text if key.text is not None else str(key.value)
            if key.text == "<<":
                merged = {**_brought(value), **merged}
                continue
            if name in own:
                told = f"this key stands twice in one mapping (before: {own[name].place}); keep one of them"
                text = f"{key.place}: {name}: {told}"
                self._problems.append(Problem(text, kind="duplicate_key", key=name, place=key.place))
            own[name] = replace(value, key=key)
        return Node(value={**merged, **own}, place=place), size


def _brought(value: Node) -> dict[str, Node]:
    """What a merge key `<<` brings: the keys of a mapping, or of several, of which the first wins."""
    found: dict[str, Node] = {}
    for item in value.value if isinstance(value.value, tuple) else (value,):
        if not isinstance(item.value, dict):
            raise BrokenError(value.place, "a merge key << with something else than mappings")
        found = {**item.value, **found}
    return found
