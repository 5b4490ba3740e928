"""A virtual environment with a few distributions and what they require, and nothing else; made in half a second.

It has no pip: its site-packages holds links to the distributions of this environment.
"""

from __future__ import annotations

import re
import sys
import venv
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

WANTED = ("torch", "transformers", "safetensors", "pillow", "tokenizers")
"""What a user of an exported folder has."""


def make_clean_environment(folder: Path, names: tuple[str, ...] = WANTED) -> Path:
    """Make it; return its interpreter."""
    venv.EnvBuilder(with_pip=False, symlinks=True).create(folder)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site_packages = folder / "lib" / version / "site-packages"
    for found in closure(names):
        for top, source in top_level(found).items():
            if not (site_packages / top).exists():
                (site_packages / top).symlink_to(source)
    return folder / "bin" / "python"


def closure(names: tuple[str, ...]) -> list[Distribution]:
    """The named distributions and all that they require, without extras."""
    found: dict[str, Distribution] = {}
    waiting = list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            if name in names:
                raise
            continue  # optional on this platform; what really needs it will say so
        requirements = map(Requirement, found[name].requires or ())
        waiting += [one.name for one in requirements if one.marker is None or one.marker.evaluate({"extra": ""})]
    return list(found.values())


def top_level(found: Distribution) -> dict[str, Path]:
    """What lies of a distribution directly in site-packages."""
    names = {file.parts[0] for file in found.files or () if file.parts[0] not in ("..", "__pycache__")}
    return {name: Path(str(found.locate_file(name))) for name in names}
