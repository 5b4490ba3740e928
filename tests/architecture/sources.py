"""The repository's Python files, parsed once, for the tests that read code instead of running it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CODE_FOLDERS = ("cclm", "pretrain", "finetune", "shards", "launch")


@dataclass(frozen=True)
class Source:
    """One Python file."""

    place: str
    """Path inside the repository, with slashes."""
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        """The parsed file."""
        return ast.parse(self.text)

    @property
    def num_lines(self) -> int:
        """All lines."""
        return self.text.count("\n")

    @property
    def num_filled_lines(self) -> int:
        """Lines that are not blank."""
        return sum(1 for line in self.text.splitlines() if line.strip())


@cache
def read_sources(*folders: str) -> tuple[Source, ...]:
    """Read every Python file below these folders of the repository."""
    paths = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return tuple(Source(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")) for path in paths)


def statements(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the tree, its statements and its handlers of errors, inner ones too; far fewer than all of its nodes."""
    todo = [tree]
    while todo:
        node = todo.pop()
        yield node
        for part in ("body", "handlers", "orelse", "finalbody", "cases"):
            todo += getattr(node, part, ())


def imported_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, absolute dotted name) for each import; `from a import b` yields both "a" and "a.b"."""
    for node in statements(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"
