"""One written value → text, path, number, truth or choice; one that does not fit says what came and what to write."""

from __future__ import annotations

import enum
import math
import os
import re
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from cclm.files.hints import PATH
from cclm.files.node import Node, plain_word
from cclm.files.text import did_you_mean
from cclm.types import LANGUAGE, LOCAL, TEXT_OR_NOTHING, Bounds

_LONGEST = 80
"""Characters of a value that a message repeats."""


class UnfitError(Exception):
    """A value that is not what is wanted: `got`, and perhaps what to do."""


def to_scalar(node: Node, hint: Any, notes: Sequence[Any], *, expands: bool) -> Any:
    """Return a value of the type `hint`, which is annotated with `notes`.

    Raises:
        UnfitError: it is another value.
    """
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

    Raises:
        UnfitError: a variable that is not set, or a user that is not there.
    """
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
