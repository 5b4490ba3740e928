"""THE reader of files: those that people write become typed values, those that programs write plain JSON.

    read_typed(Profile, path)      one file of a known form (typed_values: plain values of a known form)
    read_yaml(path)                one file of any form, checked for duplicate keys
    read_json(path, default)       what a program of ours wrote
    to_yaml(values)                the way back

A command line of files and dotted overrides, `--recipe FILE --optimizer.total_steps 100 --data.cache.folder=/x`: files
are put over each other in their order, key by key; overrides win over all of them, wherever they stand. A value is YAML
(`[en, de]`, `{a: 1}`, `null`), and where a text is expected the argument itself: the shell took the quotes.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from cclm.errors import ConfigError, Problem
from cclm.files.document import parse_yaml, read_document
from cclm.files.node import COMMAND_LINE, BrokenError, Node, node_of, plain
from cclm.files.typed import Converter, Kinds, split_key

Kind = TypeVar("Kind")
HELP = frozenset({"--help", "-h"})
PRINT = "--print_config"


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


@dataclass(frozen=True, kw_only=True)
class CommandLine:
    """What stands on a command line."""

    files: tuple[str, ...]
    """Names of files, in their order."""
    overrides: tuple[tuple[str, Node], ...]
    """Dotted keys with their values, in their order."""
    wants_help: bool
    wants_config: bool
    """`--print_config`: show the resolved configuration and do nothing."""
    problems: tuple[Problem, ...]
    """Words that are no option, options without a value."""


def parse_arguments(arguments: Sequence[str], file_option: str) -> CommandLine:
    """Sort a command line; `file_option` is what names a file, "--recipe" say."""
    files: list[str] = []
    overrides: list[tuple[str, Node]] = []
    problems: list[Problem] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word in HELP or word == PRINT:
            continue
        name, equals, value = word.partition("=")
        if not name.startswith("--") or name == "--":
            text = f"{COMMAND_LINE}: expected options like --KEY VALUE, got {word}"
            problems.append(Problem(text, kind="wrong_value", place=COMMAND_LINE))
            continue
        if not equals:
            if not rest or rest[0].startswith("--"):
                text = f"{COMMAND_LINE}: {name[2:]}: expected a value after {name}, got {rest[0] if rest else 'none'}"
                problems.append(Problem(text, kind="wrong_value", key=name[2:], place=COMMAND_LINE))
                continue
            value = rest.pop(0)
        if name == file_option:
            files.append(value)
        else:
            overrides.append((name[2:], override_value(value, problems)))
    return CommandLine(
        files=tuple(files),
        overrides=tuple(overrides),
        wants_help=any(word in HELP for word in arguments),
        wants_config=PRINT in arguments,
        problems=tuple(problems),
    )


def override_value(text: str, problems: list[Problem]) -> Node:
    """Return the value of a command-line argument; what is no YAML is a text. Keys that stand twice are problems."""
    try:
        found = parse_yaml(text, COMMAND_LINE, problems)
    except BrokenError:
        return Node(value=text, place=COMMAND_LINE, text=text, is_argument=True)
    is_quoted = isinstance(found.value, str) and found.text is None and text.strip()[:1] in ("'", '"')
    return found if is_quoted else replace(found, text=text, is_argument=True)


def plain_value(text: str, where: str) -> Any:
    """Return the value of an argument without knowing what is expected: a number, a list, a text, …; `where`: of whom.
    ConfigError: it is no YAML, or has a key twice."""
    problems: list[Problem] = []
    try:
        found = parse_yaml(text, COMMAND_LINE, problems)
    except BrokenError as error:
        problems.append(Problem(str(error), kind="unreadable", place=COMMAND_LINE))
    raise_problems(problems, where, "a value in YAML", f"Repair {text!r}, or quote it for the shell.")
    return plain(found)


def merged(below: Node, above: Node) -> Node:
    """Put one file over another: mappings key by key, anything else as a whole."""
    if not (isinstance(below.value, dict) and isinstance(above.value, dict)):
        return replace(above, key=above.key or below.key)
    both = dict(below.value)
    for key, node in above.value.items():
        both[key] = merged(both[key], node) if key in both else node
    return replace(above, value=both)


def with_override(root: Node, dotted: str, value: Node, kind: Any, kinds: Kinds | None = None) -> Node:
    """Put a value at a dotted key of a tree of the type `kind`; mappings on the way are made."""
    return _put(root, split_key(kind, dotted, kinds or {}), value)


def _put(node: Node, parts: Sequence[str], value: Node) -> Node:
    first, *rest = parts
    inside = dict(node.value) if isinstance(node.value, dict) else {}
    before = inside.get(first, Node(value={}, place=value.place))
    key = Node(value=first, place=value.place)
    put = _put(before, rest, value) if rest else value
    inside[first] = replace(put, key=before.key if rest and before.key else key)
    return replace(node, value=inside)
