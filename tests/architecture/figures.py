"""`python -m tests.architecture.figures`: the house style in numbers; exits with 1 if one of them does not hold.

Code is cclm, pretrain, shards and launch. Lines are lines that are not blank, but a folder's size counts all lines. A
function's length counts from `def` to its last line, docstring included, decorators not.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tests.architecture.rules import no_bare_except
from tests.architecture.sources import CODE_FOLDERS, Source, read_sources, statements

Function = ast.FunctionDef | ast.AsyncFunctionDef
SHORT_FUNCTION_LINES = 40
LONG_FUNCTION_LINES = 60
LONG_FILE_LINES = 400
NO_BUDGET = 400
BUDGETS = {
    "cclm": 720,
    "cclm/annotations": 2050,
    "cclm/checkpoint": 890,
    "cclm/cli": 710,
    "cclm/costs": 420,
    "cclm/data": 4040,
    "cclm/distributed": 670,
    "cclm/engine": 2500,
    "cclm/evaluate": 2220,
    "cclm/files": 1850,
    "cclm/forecast": 630,
    "cclm/hub": 2670,
    "cclm/model": 3900,
    "cclm/objectives": 390,
    "cclm/ops": 2000,
    "cclm/pretrained": 1970,
    "cclm/recipe": 690,
    "cclm/report": 910,
    "cclm/retrieve": 1750,
    "cclm/rows": 900,
    "cclm/run": 2740,
    "cclm/shardfile": 1860,
    "cclm/track": 590,
    "cclm/train": 4940,
    "cclm/views": 2840,
    "finetune": 1810,
    "launch": 5370,
    "pretrain": 360,
    "shards": 7200,
}
"""Most lines of each folder. The best program is the one that needs less: raising a number needs a reason in
docs/log.md."""


@dataclass(frozen=True)
class Figure:
    """One number and its floor."""

    name: str
    value: float
    floor: float
    unit: str = "%"

    @property
    def holds(self) -> bool:
        """Whether the number is high enough."""
        return self.value >= self.floor

    def __str__(self) -> str:
        mark = "ok " if self.holds else "LOW"
        return f"{mark} {self.name:42} {self.value:6.2f} {self.unit:1}   (at least {self.floor:g})"


def functions(source: Source) -> Iterator[Function]:
    """Every function and method of a file, inner ones too."""
    return (node for node in statements(source.tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def is_annotated(function: Function) -> bool:
    """Whether the result and every argument but `self` and `cls` carry a type."""
    arguments = function.args
    listed = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    listed += [extra for extra in (arguments.vararg, arguments.kwarg) if extra is not None]
    bare = [item.arg for item in listed if item.annotation is None and item.arg not in ("self", "cls")]
    return function.returns is not None and not bare


def length(function: Function) -> int:
    """Lines from `def` to the end."""
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


def public_nodes(node: ast.Module | ast.ClassDef) -> Iterator[ast.Module | ast.ClassDef | Function]:
    """The module or class itself, and every public class, function and method in it (inner functions are private)."""
    yield node
    for child in node.body:
        if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
            yield from public_nodes(child)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and not child.name.startswith("_"):
            yield child


def percent(flags: Sequence[bool]) -> float:
    """Share of true flags; 100 if there is nothing to judge."""
    return 100 * sum(flags) / len(flags) if flags else 100.0


def measure(code: Sequence[Source], tests: Sequence[Source]) -> list[Figure]:
    """Compute every figure that has a floor."""
    every = [function for source in code for function in functions(source)]
    of_tests = [function for source in tests for function in functions(source)]
    documented = [ast.get_docstring(node) is not None for source in code for node in public_nodes(source.tree)]
    test_lines = sum(source.num_filled_lines for source in tests)
    code_lines = max(sum(source.num_filled_lines for source in code), 1)
    short = [length(function) <= SHORT_FUNCTION_LINES for function in every]
    typed_excepts = [not list(no_bare_except(source)) for source in code]
    return [
        Figure("functions with full annotations", percent([is_annotated(function) for function in every]), 95),
        Figure("functions of tests with full annotations", percent([is_annotated(one) for one in of_tests]), 99),
        Figure("public names with a docstring", percent(documented), 90),
        Figure("test lines per code line", test_lines / code_lines, 0.6, ""),
        Figure(f"functions of at most {SHORT_FUNCTION_LINES} lines", percent(short), 90),
        Figure("files without a bare except", percent(typed_excepts), 100),
    ]


def comment_share(code: Sequence[Source]) -> float:
    """Percent of the code's lines that hold a comment."""
    tokens = (token for source in code for token in tokenize.generate_tokens(io.StringIO(source.text).readline))
    return 100 * sum(token.type == tokenize.COMMENT for token in tokens) / sum(source.num_lines for source in code)


def folder_sizes(code: Sequence[Source]) -> dict[str, int]:
    """Lines by folder: the library's parts, and the programs."""
    sizes: dict[str, int] = {}
    for source in code:
        parts = source.place.split("/")
        folder = "/".join(parts[:2]) if parts[0] == "cclm" and len(parts) > 2 else parts[0]
        sizes[folder] = sizes.get(folder, 0) + source.num_lines
    return sizes


def over_budget(sizes: Mapping[str, int], budgets: Mapping[str, int] = BUDGETS) -> list[str]:
    """Name the folders that hold more lines than they may; one without a budget may hold `NO_BUDGET`."""
    return [
        f"{folder}: {lines} lines, at most {budgets.get(folder, NO_BUDGET)}"
        for folder, lines in sorted(sizes.items())
        if lines > budgets.get(folder, NO_BUDGET)
    ]


def long_things(code: Sequence[Source]) -> Iterator[str]:
    """Name what is longer than usual: allowed, but worth a look."""
    for source in code:
        if source.num_lines > LONG_FILE_LINES:
            yield f"file of {source.num_lines} lines: {source.place}"
        for function in functions(source):
            if length(function) > LONG_FUNCTION_LINES:
                yield f"function of {length(function)} lines: {source.place}:{function.lineno} {function.name}"


def main() -> int:
    """Print the figures; return the exit code."""
    code, tests = read_sources(*CODE_FOLDERS), read_sources("tests")
    figures = measure(code, tests)
    lines = sum(source.num_filled_lines for source in code)
    print(f"{len(code)} code files, {lines} lines; {len(tests)} test files")
    print(*figures, sep="\n")
    print(f"    {comment_share(code):.1f} % of the lines hold a comment")
    long = list(long_things(code))
    print(*(f"    {thing}" for thing in long or ["no function over 60 lines, no file over 400"]), sep="\n")
    sizes = folder_sizes(code)
    print(f"lines by folder, of {sum(sizes.values())}:")
    print(
        *(f"    {name:18} {lines:6} of {BUDGETS.get(name, NO_BUDGET):6}" for name, lines in sorted(sizes.items())),
        sep="\n",
    )
    too_large = over_budget(sizes)
    print(*(f"LOW {folder}" for folder in too_large), sep="\n")
    return 0 if all(figure.holds for figure in figures) and not too_large else 1


if __name__ == "__main__":
    sys.exit(main())
