"""Small annotation files, and what readers say of broken ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from cclm.annotations.rows import AnnotationFile
from cclm.errors import DataError


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_json(path: Path, value: Any, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, **options), encoding="utf-8")
    return path


def write_text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def broken_at(read: Callable[..., AnnotationFile[Any]], path: Path, *arguments: Any) -> tuple[str, str]:
    """Return reason and place (without folders) of the first thing that is wrong.

    A reader that collects problems finds it, too, and says the path of the file.
    """
    with pytest.raises(DataError) as found:
        read(path, *arguments)
    problems: list[DataError] = []
    read(path, *arguments, problems=problems)
    assert (problems[0].reason, problems[0].where) == (found.value.reason, found.value.where)
    assert found.value.where.startswith(str(path.parent))
    return found.value.reason, found.value.where.rpartition("/")[2]
