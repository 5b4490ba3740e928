"""A command line of files and dotted overrides: `--recipe FILE --optimizer.total_steps 100 --data.cache.folder=/x`.

Files are put over each other in their order, key by key; overrides win over all of them, wherever they stand. A value
is YAML (`[en, de]`, `{a: 1}`, `null`), and where a text is expected the argument itself: the shell took the quotes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from cclm.errors import Problem
from cclm.files.document import parse_yaml
from cclm.files.hints import Kinds, split_key
from cclm.files.node import COMMAND_LINE, BrokenError, Node, plain
from cclm.files.reading import raise_problems

HELP = frozenset({"--help", "-h"})
PRINT = "--print_config"


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
