"""A virtual environment with a few distributions and what they require, and nothing else; made in half a second.

It has no pip: its site-packages holds links to the distributions of this environment.
"""

from __future__ import annotations

import re
import subprocess
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


def add_release(base: Path, folder: Path, requirement: str) -> Path:
    """Make an environment with another release of one distribution over a clean one; return its interpreter.

    Raises:
        NoRegistryError: pip reached none.
    """
    venv.EnvBuilder(with_pip=False, symlinks=True).create(folder)
    (packages,) = (folder / "lib").glob("python*/site-packages")
    (below,) = (base / "lib").glob("python*/site-packages")
    (packages / "base.pth").write_text(f"{below}\n", encoding="utf-8")
    python = folder / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-compile", "--upgrade"]
    command += ["--disable-pip-version-check", "--no-input", "--timeout", "20", "--retries", "1", requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        words = " ".join(done.stderr.split())
        if "from versions: none" in words or "onnection" in words or "imed out" in words:
            raise NoRegistryError(words[-300:])
        raise RuntimeError(words[-3000:])
    return python


class NoRegistryError(Exception):
    """Nothing can be installed here."""


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
