"""Files that come with the code: recipes, DeepSpeed JSON and profiles of the checkout, and templates."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from cclm.errors import ConfigError
from cclm.files.text import did_you_mean

CHECKOUT = Path(__file__).resolve().parents[2]
"""Where the programs lie beside the library; in a job's snapshot, the snapshot."""


def find_shipped(name: str, folder: Path, suffix: str, *, where: str, do: str) -> Path:
    """Return the path of a file that is named by its path, or by its name without suffix if it lies in `folder`.

    A relative path that is not there is looked for in the checkout, too. `where`: the option or key that named it.
    ConfigError: there is no such file; it lists the shipped ones.
    """
    for path in (Path(name), folder / f"{name}{suffix}", CHECKOUT / name):
        with suppress(OSError):  # a name that is too long
            if path.is_file():
                return path
    names = sorted(path.stem for path in folder.glob(f"*{suffix}"))
    raise ConfigError(
        where=where,
        expected=f"the path of a {suffix[1:].upper()} file or one of {', '.join(names) or f'nothing (no {folder})'}",
        got=repr(name) + did_you_mean(Path(name).stem, names),
        do=do,
    )


def open_template(path: Path, *, html: bool) -> Any:
    """Return a Jinja template whose `render` refuses names that nobody gave.

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
