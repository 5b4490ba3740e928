"""Who may import whom: the contracts of pyproject.toml, and what programs really load when they start."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.architecture.sources import ROOT, read_sources

HEAVY = ("torch", "deepspeed", "transformers")


def test_import_contracts() -> None:
    command = [sys.executable, "-c", "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=6000, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def loaded_by(modules: list[str]) -> set[str]:
    """Import these modules in a fresh interpreter; return the names of all top-level modules it then holds."""
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)\nprint(*sys.modules)"
    command = [sys.executable, "-c", code, *modules]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr
    return {name.split(".")[0] for name in result.stdout.split()}


def modules_of(folder: str) -> list[str]:
    return [source.place.removesuffix(".py").replace("/", ".") for source in read_sources(folder)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "folder", ["shards", "launch", "cclm/shardfile", "cclm/files", "cclm/rows", "cclm/annotations", "cclm/recipe"]
)
def test_starts_without_torch(folder: str) -> None:
    assert not loaded_by(modules_of(folder)) & set(HEAVY)


def test_shared_words_load_nothing_but_the_standard_library() -> None:
    loaded = loaded_by(["cclm.types", "cclm.errors", "cclm.files.atomic"])
    bare = loaded_by([])
    assert loaded - bare - set(sys.stdlib_module_names) == {"cclm"}


def test_launch_loads_nothing_but_the_standard_library() -> None:
    loaded = loaded_by(modules_of("launch"))
    assert loaded - loaded_by([]) - set(sys.stdlib_module_names) == {"cclm", "launch"}


def test_tracking_loads_torch_only_when_it_opens_tensorboard() -> None:
    assert "torch" not in loaded_by(["cclm.track.metrics", "cclm.track.progress", "cclm.run.status"])


def test_tables_of_results_load_no_torch() -> None:
    modules = ["cclm.evaluate.results", "cclm.evaluate.table_text", "cclm.evaluate.significance"]
    assert not loaded_by(modules) & set(HEAVY)
