"""Texts and web pages that are filled in: one way to open a Jinja template."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def open_template(path: Path, *, html: bool) -> Any:
    """Return a template whose `render` refuses names that nobody gave.

    `html`: every value is escaped, and lines that hold only a statement leave none behind. Else nothing is escaped.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # a login node often needs none

    environment = Environment(
        loader=FileSystemLoader(path.parent),
        undefined=StrictUndefined,
        autoescape=html,
        trim_blocks=html,
        lstrip_blocks=html,
        keep_trailing_newline=not html,
    )
    return environment.get_template(path.name)
