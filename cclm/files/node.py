"""A value that knows where a person wrote it, what a word without quotes means, and the scalar that it becomes.

One that does not fit says what came and what to write.
Numbers are read as in YAML 1.2 (`1e-4` is a number, `12:30` and `2024-01-01` are texts, `010` is no number), and each
word keeps its own letters, so that whoever wants a text can tell `no` from `"no"`: YAML 1.1 takes the first for false.
"""

from __future__ import annotations

import enum
import math
import os
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from cclm.files.text import did_you_mean
from cclm.types import LANGUAGE, LOCAL, TEXT_OR_NOTHING, Bounds, PathText

COMMAND_LINE = "command line"
PATH = get_args(PathText)[1]
"""What texts are annotated with that are paths."""
_TRUE, _FALSE = ("true", "yes", "on"), ("false", "no", "off")
PLAIN_WORDS: dict[str, bool | None] = {
    **{spelled: True for word in _TRUE for spelled in (word, word.title(), word.upper())},
    **{spelled: False for word in _FALSE for spelled in (word, word.title(), word.upper())},
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
}
"""What YAML 1.1 takes for something else than a text: where a truth is wanted, all of them are understood."""
_FLOAT = re.compile(r"[-+]?(\d[\d_]*\.[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?|[-+]?\d[\d_]*[eE][-+]?\d+", re.ASCII)
_LONGEST = 80
"""Characters of a value that a message repeats."""
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


class UnfitError(Exception):
    """A value that is not what is wanted: `got`, and perhaps what to do."""


def to_scalar(node: Node, hint: Any, notes: Sequence[Any], *, expands: bool) -> Any:
    """Return a value of the type `hint`, which is annotated with `notes`. UnfitError: it is another value."""
    if hint is Path or (isinstance(hint, type) and issubclass(hint, str) and not issubclass(hint, enum.Enum)):
        text = "" if node.value is None and TEXT_OR_NOTHING in notes else _text(node)
        if LANGUAGE in notes and not isinstance(node.value, str) and not node.is_argument:
            raise UnfitError(said(node))
        is_path = hint is Path or PATH in notes
        try:
            is_local = hint is Path or LOCAL in notes
            return hint(_path(text, expands=expands, is_local=is_local) if is_path else text)
        except ValueError as error:  # a kind of text with rules of its own
            raise UnfitError(f"{said(node)} ({error})") from error
    if hint in (int, float):
        number = _number(node, hint)
        if all(note.hold(number) for note in notes if isinstance(note, Bounds)):
            return number
    elif hint is bool:
        if isinstance(node.value, bool):
            return node.value
    elif hint is type(None):
        if node.value is None:
            return None
    else:
        return _choice(node, hint)
    raise UnfitError(said(node))


def _choice(node: Node, hint: Any) -> Any:
    if get_origin(hint) is Literal:
        choices = {choice: choice for choice in get_args(hint)}
    else:
        assert issubclass(hint, enum.Enum), f"no values of type {hint} are read"
        choices = {member.value: member for member in hint}
    is_text = all(isinstance(choice, str) for choice in choices)
    value = _letters(node) if is_text else node.value
    if not isinstance(value, dict | tuple) and value in choices:
        return choices[value]
    raise UnfitError(said(node) + did_you_mean(str(value), map(str, choices)))


def _number(node: Node, kind: type) -> Any:
    value = node.value
    if isinstance(value, str):
        do = ""
        if node.text is None and value and isinstance(plain_word(value), int | float):
            do = "; write it without quotes"
        elif re.fullmatch(r"[-+]?0[\d_]+", value):
            do = "; with a zero in front YAML's versions disagree about it: leave the zero out, or write 0o for octal"
        raise UnfitError(said(node) + do)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UnfitError(said(node))
    if not math.isfinite(value):
        raise UnfitError(f"{said(node)}, which is not finite")
    if kind is int and value != int(value):
        raise UnfitError(said(node))
    try:
        return kind(value)
    except OverflowError as error:
        raise UnfitError(said(node)) from error


def _text(node: Node) -> str:
    text = _letters(node)
    if text is not None:
        return text
    if isinstance(node.value, bool) and node.text:
        raise UnfitError(f'{said(node)}: write "{node.text}"')
    if node.value is None and node.text:
        raise UnfitError(f'{said(node)}, which a bare {node.text} is in YAML: write "{node.text}" if it is meant')
    raise UnfitError(said(node))


def _letters(node: Node) -> str | None:
    """A value as a text: quoted or plain words, and numbers by their letters; an argument whatever it is."""
    if node.text is not None and node.is_argument:
        return node.text
    if isinstance(node.value, str):
        return node.value
    is_number = isinstance(node.value, int | float) and not isinstance(node.value, bool)
    return node.text if is_number else None


def _path(text: str, *, expands: bool, is_local: bool) -> str:
    if not text or "\0" in text:
        raise UnfitError("an empty text" if not text else "a text with a null character")
    if is_local and "://" in text:
        raise UnfitError(f"the URL {text}; give a path of this machine")
    return expanded(text) if expands else text


def expanded(path: str) -> str:
    """Put in the values of `$VARIABLE`, `${VARIABLE}` and a leading `~` or `~user`; `$$` is a dollar sign.
    UnfitError: a variable that is not set, or a user that is not there."""
    try:
        text = string.Template(path).substitute(os.environ)
    except KeyError as error:
        raise UnfitError(f"{path}, but the variable {error.args[0]} is not set") from error
    except ValueError as error:
        raise UnfitError(f"{path}, whose $ begins no variable's name; write $$ for a dollar sign") from error
    home = os.path.expanduser(text)  # noqa: PTH111  # a text stays a text, URLs with // too
    if text.startswith("~") and home == text:
        raise UnfitError(f"{path}, but there is no such user; write ./{path} for a file of that name")
    return home


def said(node: Node) -> str:
    """Return what came, for a message."""
    if isinstance(node.value, dict):
        return "a mapping"
    if isinstance(node.value, tuple):
        return "a list"
    if node.value is None:
        return "nothing" if node.text == "" else "null"
    if isinstance(node.value, bool):
        return str(node.value).lower()
    quoted = f'the text "{node.value}"' if isinstance(node.value, str) else str(node.value)
    shown = quoted if node.text is None else node.text
    return shown if len(shown) <= _LONGEST else shown[: _LONGEST - 1] + "…"
