"""What an image with containers for this code must hold, one requirement a line: the base of both recipes beside.

    python3 requirements.py PYPROJECT [EXTRA …] > requirements.txt

The dependencies of pyproject.toml and of the named extras; the code itself is not among them, since it comes from the
run folder. Standard library only: it runs in a bare image.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path


def requirements(pyproject: Path, extras: Sequence[str]) -> Iterator[str]:
    """Yield the requirements of the project, then those of the extras (KeyError: no such extra)."""
    tomllib = import_module("tomllib")  # of Python 3.11, which the images have; others never call this
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    yield from project["dependencies"]
    for extra in extras:
        yield from project["optional-dependencies"][extra]


if __name__ == "__main__":
    for line in requirements(Path(sys.argv[1]), sys.argv[2:]):
        sys.stdout.write(f"{line}\n")
