"""Rules of the house that no linter knows. Each takes one file and yields what breaks it, with the line."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator, Mapping

from tests.architecture.sources import Source, imported_names, statements

Rule = Callable[[Source], Iterator[str]]

MAX_FILE_LINES = 600
KNOWS_RANKS = ("cclm/distributed/", "cclm/engine/")
DEEPSPEED_FOLDER = "cclm/engine/deepspeed/"
MODEL_LIBRARIES = frozenset({"torch", "transformers", "numpy", "PIL"})
DRAWER_NAMES = frozenset({"utils", "util", "misc", "common", "helpers", "helper", "registry"})
CHANGES = re.compile(
    r"^next$|\.(add|append|clear|discard|extend|insert|mkdir|pop|popleft|popitem|read|recv|remove|rename|send|setdefault|"
    r"unlink|update|write)$"
)
# A path in somebody's home or workplace, or the host of a package registry: works here, and nowhere else.
PLACES_OF_ONE_MACHINE = re.compile(
    r"(?<![\w.~/-])/(?:home|root|Users|work)/\w|pypi\.org|pythonhosted\.org|registry\.npmjs|download\.pytorch\.org"
)


def ranks_stay_in_their_place(source: Source) -> Iterator[str]:
    """torch.distributed only where ranks are known: `cclm.distributed`, `cclm.engine`."""
    if source.place.startswith(KNOWS_RANKS):
        return
    for line, name in imported_names(source.tree):
        if name == "torch.distributed" or name.startswith("torch.distributed."):
            yield f"{line}: imports torch.distributed"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.distributed":
            yield f"{node.lineno}: uses torch.distributed"


def deepspeed_in_one_folder(source: Source) -> Iterator[str]:
    """deepspeed only in its engine's folder."""
    if source.place.startswith(DEEPSPEED_FOLDER):
        return
    for line, name in imported_names(source.tree):
        if name.split(".")[0] == "deepspeed":
            yield f"{line}: imports {name}"


def init_files_import_nothing(source: Source) -> Iterator[str]:
    """`import cclm.types` must not pay for its neighbours."""
    if source.place.endswith("/__init__.py"):
        for node in ast.walk(source.tree):
            if (
                isinstance(node, ast.Import | ast.ImportFrom)
                and ast.unparse(node) != "from __future__ import annotations"
            ):
                yield f"{node.lineno}: {ast.unparse(node)}"


def model_carries_its_own_code(source: Source) -> Iterator[str]:
    """An exported checkpoint holds copies of `cclm/model/*.py`: siblings by relative import, and few libraries.

    An import inside `try … except ImportError` may name anything: the file works without it.
    """
    if not source.place.startswith("cclm/model/"):
        return
    if source.place.count("/") != 2:
        yield "1: lies in a subfolder, which an exported checkpoint would not carry"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ImportFrom) and node.level > 1:
            yield f"{node.lineno}: reaches out of the folder"
    optional = {line for node in ast.walk(source.tree) if _may_fail(node) for line, _ in imported_names(node)}
    for line, name in imported_names(source.tree):
        first = name.split(".")[0]
        if line not in optional and first not in MODEL_LIBRARIES and first not in sys.stdlib_module_names:
            yield f"{line}: imports {name}"


def _may_fail(node: ast.AST) -> bool:
    """Whether this is a `try` that goes on without the import."""
    return isinstance(node, ast.Try) and any("ImportError" in ast.unparse(item) for item in node.handlers)


def no_print(source: Source) -> Iterator[str]:
    """A library that prints cannot be used by a program that draws a progress bar."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield f"{node.lineno}: print"


def no_bare_except(source: Source) -> Iterator[str]:
    """`except:` also swallows Ctrl-C, and every mistake in the block."""
    for node in statements(source.tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield f"{node.lineno}: except without a type"


def asserts_only_look(source: Source) -> Iterator[str]:
    """`python -O` leaves asserts out, and everything that they do."""
    for node in ast.walk(source.tree):
        for call in ast.walk(node.test) if isinstance(node, ast.Assert) else ():
            if isinstance(call, ast.Call) and CHANGES.search(ast.unparse(call.func)):
                yield f"{node.lineno}: {ast.unparse(call)} in an assert"


def files_stay_short(source: Source) -> Iterator[str]:
    """One concept a file."""
    if source.num_lines > MAX_FILE_LINES:
        yield f"{source.num_lines}: more than {MAX_FILE_LINES} lines"


def no_drawers(source: Source) -> Iterator[str]:
    """A file is named after what it holds; `utils.py` holds everything."""
    stem = source.place.rsplit("/", 1)[-1].removesuffix(".py")
    if stem in DRAWER_NAMES:
        yield f"1: a file named {stem}.py"


def nothing_from_one_machine(source: Source) -> Iterator[str]:
    """No paths of one machine, no package hosts."""
    yield from machine_places(source.text)


def machine_places(text: str) -> Iterator[str]:
    """Yield the lines of any text that name a place of one machine."""
    for number, line in enumerate(text.splitlines(), start=1):
        if PLACES_OF_ONE_MACHINE.search(line):
            yield f"{number}: {line.strip()}"


RULES: Mapping[str, Rule] = {
    rule.__name__: rule
    for rule in (
        ranks_stay_in_their_place,
        deepspeed_in_one_folder,
        init_files_import_nothing,
        model_carries_its_own_code,
        no_print,
        no_bare_except,
        asserts_only_look,
        files_stay_short,
        no_drawers,
        nothing_from_one_machine,
    )
}
