"""Files that people write (YAML, JSON, TOML) → nodes. Nothing is lost: a key that stands twice is a problem."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

from cclm.errors import Problem
from cclm.files.node import BrokenError, Node, node_of
from cclm.files.yaml_nodes import parse_yaml

_SURROGATES = re.compile(r"\\u[dD][89abAB]\w\w\\u[dD][c-fC-F]\w\w")


def read_document(path: Path, problems: list[Problem]) -> Node | None:
    """Read a file, by its ending: `.json`, `.toml`, else YAML. What is wrong goes to `problems`; None: all of it is."""
    try:
        return parse_document(_read_text(path), str(path), problems, path.suffix.lower())
    except BrokenError as error:
        problems.append(Problem(f"{error.place}: {error}", kind="unreadable", place=error.place))
        return None


def parse_document(text: str, name: str, problems: list[Problem], suffix: str = ".yaml") -> Node:
    """Parse the text of a file of this name.

    Raises:
        BrokenError: it is not of the form that the suffix says.
    """
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
