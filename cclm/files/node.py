"""A value that knows where a person wrote it, and what a word without quotes means.

Numbers are read as in YAML 1.2 (`1e-4` is a number, `12:30` and `2024-01-01` are texts, `010` is no number), and each
word keeps its own letters, so that whoever wants a text can tell `no` from `"no"`: YAML 1.1 takes the first for false.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cclm.errors import Problem

COMMAND_LINE = "command line"
_TRUE, _FALSE = ("true", "yes", "on"), ("false", "no", "off")
PLAIN_WORDS: dict[str, bool | None] = {
    **{spelled: True for word in _TRUE for spelled in (word, word.title(), word.upper())},
    **{spelled: False for word in _FALSE for spelled in (word, word.title(), word.upper())},
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
}
"""What YAML 1.1 takes for something else than a text: where a truth is wanted, all of them are understood."""
_FLOAT = re.compile(r"[-+]?(\d[\d_]*\.[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?|[-+]?\d[\d_]*[eE][-+]?\d+", re.ASCII)
_NOT_FINITE = re.compile(r"([-+]?)\.(inf|nan)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Node:
    """A value and where it was written."""

    value: str | int | float | bool | tuple[Node, ...] | dict[str, Node] | None
    """A mapping's keys are texts, whatever YAML would make of them."""
    place: str
    """"recipe.yaml:12" or "command line"."""
    text: str | None = None
    """The letters of a value without quotes."""
    is_argument: bool = False
    """Whether it is a whole argument of a command line, whose quotes the shell took: as a text, it is its letters."""
    key: Node | None = None
    """In a mapping: the key."""

    def walk(self) -> Iterator[Node]:
        """Yield this value and all that are inside of it."""
        yield self
        inside = self.value.values() if isinstance(self.value, dict) else self.value
        for child in inside if not isinstance(inside, str | int | float | None) else ():
            yield from child.walk()


class BrokenError(Exception):
    """A text that cannot be read on, and where."""

    def __init__(self, place: str, text: str) -> None:
        super().__init__(text)
        self.place = place


def plain_word(text: str) -> str | int | float | bool | None:
    """Return what a word means that stands without quotes."""
    if text in PLAIN_WORDS:
        return PLAIN_WORDS[text]
    if not text.isascii() or not (text[0].isdigit() or text[0] in "+-."):
        return text
    try:
        return int(text, 0)  # Python's own rule: 1_000, 0x1F and 0o17, but no 010
    except ValueError:
        pass
    if _FLOAT.fullmatch(text):
        return float(text.replace("_", ""))
    special = _NOT_FINITE.fullmatch(text)
    return float(special[1] + special[2]) if special else text


def plain(node: Node) -> Any:
    """Return the values alone, as `yaml.safe_load` gives them."""
    if isinstance(node.value, dict):
        return {key: plain(child) for key, child in node.value.items()}
    return [plain(child) for child in node.value] if isinstance(node.value, tuple) else node.value


def node_of(value: Any, place: str) -> Node:
    """Return plain values (of TOML, of a program) as nodes that all stand at one place; the way back of `plain`."""
    if isinstance(value, Mapping):
        items = {str(key): node_of(item, place) for key, item in value.items()}
        value = {key: replace(item, key=Node(value=key, place=place)) for key, item in items.items()}
    elif isinstance(value, list | tuple):
        value = tuple(node_of(item, place) for item in value)
    elif not isinstance(value, str | int | float | None):
        value = str(value)  # TOML's dates and times
    return Node(value=value, place=place)


def twice(key: str, place: str, before: Node) -> Problem:
    """Return the problem of a key that stands in one mapping again."""
    text = f"{place}: {key}: this key stands twice in one mapping (before: {before.place}); keep one of them"
    return Problem(text, kind="duplicate_key", key=key, place=place)
