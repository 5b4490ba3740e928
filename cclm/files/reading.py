"""THE reader of files: those that people write become typed values, those that programs write plain JSON.

    read_typed(Profile, path)      one file of a known form (typed_values: plain values of a known form)
    read_yaml(path)                one file of any form, checked for duplicate keys
    read_json(path, default)       what a program of ours wrote
    to_yaml(values)                the way back

A command line with files and overrides: `cclm.files.overrides`.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from cclm.errors import ConfigError, Problem
from cclm.files.document import read_document
from cclm.files.node import node_of, plain
from cclm.files.typed import Converter

Kind = TypeVar("Kind")


def read_typed(kind: type[Kind], path: Path, *, expected: str, do: str) -> Kind:
    """Read a YAML, JSON or TOML file into a dataclass of options, or a type such as `Mapping[str, tuple[str, ...]]`.

    `expected` and `do`: what it should be, and what to do about it, for the error's sentence. ConfigError: with every
    mistake, each with its line and key.
    """
    converter = Converter()
    node = read_document(path, converter.problems)
    if node is not None:
        value = converter.convert(node, kind)
    raise_problems(converter.problems, str(path), expected, do)
    made: Kind = value
    return made


def typed_values(kind: type[Kind], values: Any, *, where: str, expected: str, do: str) -> Kind:
    """Make typed values of plain ones, as `read_typed` makes them of a file. ConfigError: with every mistake."""
    converter = Converter()
    made: Kind = converter.convert(node_of(values, where), kind)
    raise_problems(converter.problems, where, expected, do)
    return made


def read_yaml(path: Path, *, expected: str, do: str) -> Any:
    """Read a YAML, JSON or TOML file of any form; mappings, lists and plain values come back.
    ConfigError: it is missing, a folder, may not be read, is not UTF-8 or broken, or has a key twice."""
    problems: list[Problem] = []
    node = read_document(path, problems)
    raise_problems(problems, str(path), expected, do)
    assert node is not None, "without a problem there is a value"
    return plain(node)


def read_json(path: Path, default: Any, kind: type = dict) -> Any:
    """Return the contents of a JSON file that a program wrote, or `default` if there is none.
    ConfigError: it is a folder, may not be read, is not UTF-8 or not JSON, or holds something else than a `kind` (where
    `default` is a list: than a list)."""
    if not path.exists():
        return default
    kind = list if isinstance(default, list) else kind
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, kind):
            raise ValueError("no list" if kind is list else "no mapping")
        return found
    except (OSError, ValueError, RecursionError) as error:
        got = "a folder" if isinstance(error, IsADirectoryError) else getattr(error, "strerror", None) or f"{error}"
        raise ConfigError(
            where=str(path),
            expected="a JSON file",
            got=got if isinstance(error, OSError) else f"broken JSON: {got}",
            do="Remove it, or run the command that writes it again.",
        ) from error


def raise_problems(problems: Sequence[Problem], where: str, expected: str, do: str) -> None:
    """Raise one ConfigError with all problems, if there are any; those of the file `where` name only their line."""
    if not problems:
        return
    own = []
    for problem in problems:
        text = problem.removeprefix(f"{where}: ").replace(f"{where}:", "line ", 1)
        own.append(Problem(text, kind=problem.kind, key=problem.key, place=problem.place))
    raise ConfigError(where=where, expected=expected, problems=own, do=do)


def to_plain(value: Any) -> Any:
    """Return mappings, lists, texts, numbers, truths and None."""
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: to_plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list | set | frozenset):
        return [to_plain(item) for item in value]
    if isinstance(value, enum.Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value


def to_yaml(value: Any) -> str:
    """Return YAML text that reads back as the same values."""
    import yaml

    text: str = yaml.safe_dump(to_plain(value), sort_keys=False, allow_unicode=True)
    return text
