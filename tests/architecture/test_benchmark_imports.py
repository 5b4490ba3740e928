"""Programs that CI does not run import what is there: mypy reads the code of the product alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.architecture.sources import CODE_FOLDERS, ROOT, imported_names, read_sources

OWN = (*CODE_FOLDERS, "benchmarks", "tests")


def file_of(module: str) -> Path | None:
    """The file of a module of ours, if there is one."""
    path = ROOT.joinpath(*module.split("."))
    files = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in files if file.is_file()), path if path.is_dir() else None)


def names_in(file: Path) -> Iterator[str]:
    """What a module binds at its top, or below an `if` or `try` there."""
    todo: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8"))] if file.is_file() else []
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name).split(".")[0] for alias in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        else:
            todo += ast.iter_child_nodes(node)


def is_there(name: str) -> bool:
    """Whether a dotted name is a module of ours, or a name in one."""
    module, _, last = name.rpartition(".")
    file = file_of(module) if module else None
    return file_of(name) is not None or (file is not None and last in names_in(file))


def test_benchmarks_import_what_is_there() -> None:
    asked = [
        (f"{source.place}:{line}", name)
        for source in read_sources("benchmarks")
        for line, name in imported_names(source.tree)
        if name.split(".")[0] in OWN
    ]
    assert len(asked) > 100
    assert not [f"{place} imports {name}" for place, name in asked if not is_there(name)]


def test_a_name_that_is_gone_is_told() -> None:
    assert is_there("cclm.run.machine.process_memory_bytes") and is_there("benchmarks.gpu.parts")
    assert not is_there("benchmarks.resume.peak_mb") and not is_there("cclm.run.no_module")
